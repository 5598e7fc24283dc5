"""Who may do what in the admin, generated over all its addresses and all groups: a new page can't escape.

Threats A3, A10, A11 and A24.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axes.models import AccessAttempt, AccessLog
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.utils import timezone

from conversations.models import Message, Reading, Turn
from personas.models import Influencer
from tests.conftest import Api, member, token
from tests.personas.page import Page
from tests.test_admin_media import row as upload_row
from tests.yral_chat.test_house import patterns

Desk = Callable[[User], Client]
GROUPS = {
    "Content editors": {"personas"},
    "Publishers": {"personas"},
    "Support": {"conversations", "media_uploads"},
    "Analysts": {"statistics"},
}
ADDRESSES = sorted({(route, pattern.name or "") for route, pattern in patterns() if route.startswith("admin/")})
# For everybody, or for all staff
OPEN = {"index", "login", "logout", "password_change", "password_change_done", "jsi18n", "view_on_site", "search"}
OPEN |= {"toggle_sidebar", "autocomplete", ""}


@pytest.fixture
def rows(alice: Api, coach: Influencer) -> dict[str, Any]:
    """One of each kind, by what the addresses call it."""
    chat = alice.open(coach)["id"]
    alice.send(chat, "Words of alice's")
    upload = upload_row("alice")
    login = {"username": "somebody", "ip_address": "198.51.100.7"}
    somebody = User.objects.create_user("somebody", is_staff=True)
    LogEntry.objects.log_actions(somebody.pk, [coach], CHANGE, change_message="Words of a change's")
    return {
        "logentry": LogEntry.objects.get().pk,
        "influencer": coach.pk,
        "conversation": chat,
        "message": Message.objects.get(role="user").pk,
        "turn": Turn.objects.get().pk,
        "mediaupload": upload.pk,
        "upload_id": upload.pk,
        "user": somebody.pk,
        "group": Group.objects.get(name="Support").pk,
        "accessattempt": AccessAttempt.objects.create(**login, failures_since_start=1).pk,
        "accesslog": AccessLog.objects.create(**login).pk,
        "reading": Reading.objects.create(
            reader=somebody, user_id="alice", reason="Words of a colleague's", valid_until=timezone.now()
        ).pk,
    }


def addresses(rows: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each with its name."""
    for route, name in ADDRESSES:
        model = route.split("/")[2] if route.count("/") > 2 else ""
        row = str(rows.get(model, 1))
        path = route.replace("<uuid:conversation_id>", str(rows["conversation"]))
        path = path.replace("<uuid:upload_id>", str(rows["upload_id"])).replace("<int:version_id>", "1")
        for part in ("<path:object_id>", "<path:influencer_id>", "<id>", "<str:object_id>"):
            path = path.replace(part, row)
        path = re.sub("<int:[^>]*>", "1", path.replace("<uuid:message_id>", str(rows["message"])))
        path = re.sub("<uuid:[^>]*>", str(rows["upload_id"]), path)
        yield "/" + path, name


def state() -> list[Any]:
    """All rows that staff could write."""
    models = [
        model
        for model in apps.get_models()
        if model._meta.label
        not in ("sessions.Session", "axes.AccessLog", "axes.AccessAttempt", "contenttypes.ContentType")
    ]
    return [(model._meta.label, sorted(map(repr, model._base_manager.values_list()))) for model in models]


def own(path: str, areas: set[str]) -> bool:
    return any(path.startswith(f"/admin/{area}/") for area in areas)


def test_the_addresses_are_found() -> None:
    names = {name for _, name in ADDRESSES}
    assert len(ADDRESSES) > 60
    assert {"personas_influencer_publish", "conversations_conversation_reason", "auth_user_changelist"} <= names


@pytest.mark.parametrize("group", [*GROUPS, ""])
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_group_opens_its_own_pages_and_no_other(desk: Desk, rows: dict[str, Any], group: str, method: str) -> None:
    user = member("worker", group) if group else User.objects.create_user("worker", is_staff=True)
    client, before = desk(user), state()
    client.raise_request_exception = False
    for path, name in addresses(rows):
        if name in OPEN or own(path, GROUPS.get(group, set())):
            continue
        answer = getattr(client, method)(path, {"post": "yes", "action": "delete_selected"} if method == "post" else {})
        assert answer.status_code in (403, 404, 405), (path, answer.status_code)
        assert b"Words of" not in answer.content
    assert [one for one in state() if one not in before] == []


def test_a_refusal_is_a_page_of_the_desk_which_leads_back(desk: Desk, rows: dict[str, Any]) -> None:
    client = desk(member("worker", "Analysts"))
    for path, status, said in (
        ("/admin/personas/influencer/", 403, "You are not allowed to do this. Ask a superuser"),
        (f"/admin/conversations/message/{rows['message']}/why/", 403, "You are not allowed"),
        ("/admin/nowhere/", 404, "There is nothing at this address."),
    ):
        shown = client.get(path)
        assert shown.status_code == status
        assert said in Page(shown).text
        assert "/admin/" in Page(shown).attributes("href")
        assert "/admin/statistics/" in Page(shown).attributes("href"), "the navigation is there"


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_s_own_pages_do_open(desk: Desk, rows: dict[str, Any], group: str) -> None:
    client = desk(member("worker", group))
    lists = {
        "personas": ["/admin/personas/influencer/"],
        "conversations": [f"/admin/conversations/{name}/" for name in ("conversation", "message", "turn")],
        "media_uploads": ["/admin/media_uploads/mediaupload/"],
        "statistics": ["/admin/statistics/"],
    }
    for area in GROUPS[group]:
        for path in lists[area]:
            assert client.get(path).status_code == 200


def actions() -> Iterator[tuple[str, str]]:
    for model, page in admin.site._registry.items():
        names = {"delete_selected", *(str(getattr(one, "__name__", one)) for one in page.actions or ())}
        yield from ((f"/admin/{model._meta.app_label}/{model._meta.model_name}/", name) for name in sorted(names))


def test_who_may_only_look_changes_nothing_at_any_address_and_by_no_action(desk: Desk, rows: dict[str, Any]) -> None:
    """With the right to view everything (A3)."""
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename__startswith="view_"))
    client, before = desk(viewer), state()
    client.raise_request_exception = False
    form = {"post": "yes", "_save": "Save", "name": "x", "username": "x", "revision": "", "is_superuser": "on"}
    form |= {"content": "x", "change_note": "x", "password1": "xX-12345-xX", "password2": "xX-12345-xX"}

    for path, name in addresses(rows):
        if name not in OPEN and "reason" not in name:  # giving a reason is what lookers do
            client.post(path, form)
    for path, action in actions():
        row = str(rows.get(path.split("/")[3], 1))
        client.post(path, {"action": action, "_selected_action": [row], "index": "0", "post": "yes"})

    assert [one for one in state() if one not in before] == []


def test_nobody_gets_in_by_a_token_or_without_a_login(rows: dict[str, Any], superuser: User) -> None:
    """A11, and A1 for the desk."""
    for headers in ({}, {"Authorization": f"Bearer {token(str(superuser.pk))}"}):
        client = Client(headers=headers)
        for path, name in addresses(rows):
            if name in ("login", ""):
                continue
            for answer in (client.get(path), client.post(path)):
                assert answer.status_code in (302, 404, 405), path
                if answer.status_code == 302:
                    assert "/login/" in answer["Location"] or path.endswith("logout/"), (path, answer["Location"])


def test_who_is_switched_off_or_put_out_of_a_group_loses_every_page_at_once(desk: Desk, rows: dict[str, Any]) -> None:
    """A10."""
    worker = member("worker", "Support")
    client = desk(worker)
    assert client.get("/admin/conversations/message/").status_code == 200
    worker.groups.clear()
    assert client.get("/admin/conversations/message/").status_code == 403
    User.objects.filter(pk=worker.pk).update(is_active=False)
    for path, name in addresses(rows):
        if name not in ("login", "logout", ""):
            assert client.get(path).status_code in (302, 404), path


def test_no_page_stands_in_a_frame_and_no_form_comes_from_elsewhere(rows: dict[str, Any], superuser: User) -> None:
    """A24."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(superuser)
    before = state()
    for path, name in addresses(rows):
        got = client.get(path, headers={"Origin": "https://evil.example"}) if name != "logout" else client.post(path)
        assert got["X-Frame-Options"] == "DENY", path
        assert "Access-Control-Allow-Origin" not in got, path
        if name not in ("jsi18n", ""):
            forged = client.post(path, {"post": "yes"}, headers={"Origin": "https://evil.example"})
            assert forged.status_code in (403, 404, 405), (path, forged.status_code)
    assert [one for one in state() if one not in before] == []
