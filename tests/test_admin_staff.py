"""Staff and their groups, through the admin's real pages: who changed whose rights, and what they were before."""

from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.test import Client

from personas.models import Influencer
from tests.personas.page import Page
from tests.test_admin_personas import PAYLOAD, assert_inert, change, page, saved, submit

STAFF, GROUPS, CHANGES = "/admin/auth/user/", "/admin/auth/group/", "/admin/admin/logentry/"
Desk = Callable[[User], Client]


def history(client: Client, url: str) -> str:
    return page(client, f"{url}history/").text


@pytest.fixture
def client(desk: Desk, superuser: User) -> Client:
    return desk(superuser)


def test_a_change_of_rights_is_on_record_with_before_and_after(client: Client, editor: User) -> None:
    url = f"{STAFF}{editor.pk}/"
    form = page(client, f"{url}change/").form("user_form")
    groups = [str(Group.objects.get(name=name).pk) for name in ("Content editors", "Support")]
    form |= {"groups": groups, "is_superuser": ["on"], "first_name": ["Eda"]}

    assert client.post(f"{url}change/", form).status_code == 302

    said = history(client, url)
    assert "Groups (before: Content editors; after: Content editors, Support)" in said
    assert "Superuser status (before: no; after: yes)" in said
    assert "First name (before: none; after: Eda)" in said
    assert "root" in said


def test_a_new_colleague_and_a_password_are_on_record_and_no_password_is(client: Client, editor: User) -> None:
    form = page(client, f"{STAFF}add/").form("user_form")
    secret = "correct-horse-battery"
    form |= {"username": ["colleague"], "password1": [secret], "password2": [secret]}
    assert client.post(f"{STAFF}add/", form).status_code == 302

    made = User.objects.get(username="colleague")
    said = history(client, f"{STAFF}{made.pk}/")
    assert "Added." in said
    assert "after: colleague" in said
    client.post(f"{STAFF}{editor.pk}/password/", {"password1": secret, "password2": secret, "usable_password": "true"})
    assert "password" in history(client, f"{STAFF}{editor.pk}/")
    assert not LogEntry.objects.filter(change_message__contains=secret).exists()


def test_the_rights_of_a_group_are_on_record_also_when_it_goes(client: Client) -> None:
    group = Group.objects.get(name="Analysts")
    url = f"{GROUPS}{group.pk}/"
    form = page(client, f"{url}change/").form("group_form")
    view = Permission.objects.get(codename="view_turn")
    form["permissions"] = [*form.get("permissions", []), str(view.pk)]
    assert client.post(f"{url}change/", form).status_code == 302
    before = "before: Can see the statistics; after: Can see the statistics, Can view turn"
    assert before in history(client, url)

    assert client.post(f"{url}delete/", {"post": "yes"}).status_code == 302
    gone = LogEntry.objects.get(action_flag=3)
    assert "Can view turn" in gone.change_message
    assert not Group.objects.filter(name="Analysts").exists()


def test_nobody_makes_themselves_more_than_they_are(desk: Desk, superuser: User) -> None:
    """With all of Django's rights over staff and groups."""
    clerk = User.objects.create_user("clerk", is_staff=True)
    clerk.user_permissions.set(Permission.objects.filter(content_type__app_label="auth"))
    client, group = desk(clerk), Group.objects.get(name="Support")
    before = list(User.objects.order_by("pk").values()), list(Group.permissions.through.objects.order_by("pk").values())

    assert client.get(STAFF).status_code == 200, "to look is theirs"
    secret = {"password1": "correct-horse-battery", "password2": "correct-horse-battery", "usable_password": "true"}
    for place in (f"{STAFF}{clerk.pk}/change/", f"{STAFF}{superuser.pk}/password/", f"{GROUPS}{group.pk}/change/"):
        form = {"username": "clerk", "is_superuser": "on", "is_staff": "on", "groups": [group.pk], **secret}
        assert client.post(place, form).status_code == 403, place
    for place in (f"{STAFF}add/", f"{GROUPS}add/", f"{GROUPS}{group.pk}/delete/", f"{STAFF}{superuser.pk}/delete/"):
        assert client.post(place, {**secret, "username": "x", "name": "x", "post": "yes"}).status_code == 403, place
    now = list(User.objects.order_by("pk").values()), list(Group.permissions.through.objects.order_by("pk").values())
    assert now == before


def test_who_did_anything_here_is_not_deleted_for_the_record_would_go_with_them(
    client: Client, desk: Desk, editor: User, coach: Influencer
) -> None:
    saved(submit(desk(editor), change(coach), initial_greeting="The editor's"))
    newcomer = User.objects.create_user("newcomer", is_staff=True)

    assert "The record of what editor did here" in page(client, f"{STAFF}{editor.pk}/delete/").text
    client.post(f"{STAFF}{editor.pk}/delete/", {"post": "yes"})
    chosen = {"action": "delete_selected", "_selected_action": [editor.pk, newcomer.pk], "post": "yes"}
    client.post(STAFF, chosen)
    assert User.objects.filter(pk__in=[editor.pk, newcomer.pk]).count() == 2
    assert LogEntry.objects.filter(user=editor, change_message__contains="The editor's").exists()

    assert client.post(f"{STAFF}{newcomer.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not User.objects.filter(pk=newcomer.pk).exists()


def test_superusers_see_what_was_changed_also_of_what_is_gone_and_change_nothing_of_it(
    client: Client, desk: Desk, publisher: User, make_influencer: Callable[..., Influencer]
) -> None:
    persona = make_influencer(display_name=f"Gone {PAYLOAD[:60]}", system_instructions=f"She said {PAYLOAD}")
    client.post(f"/admin/personas/influencer/{persona.pk}/delete/", {"post": "yes"})
    entry = LogEntry.objects.get(object_id=persona.pk)
    one = f"{CHANGES}{entry.pk}/change/"

    for url in (CHANGES, f"{CHANGES}?q=Gone", one):
        assert "Gone" in page(client, url).text
        assert_inert(page(client, url))
        assert desk(publisher).get(url).status_code == 403
    assert "She said" in page(client, one).text
    for place in (f"{CHANGES}add/", one, one.replace("change", "delete")):
        assert client.post(place, {"post": "yes", "object_repr": "x"}).status_code == 403
    client.post(CHANGES, {"action": "delete_selected", "_selected_action": [entry.pk], "post": "yes"})
    assert LogEntry.objects.filter(pk=entry.pk, object_repr=entry.object_repr).exists()


def test_markup_in_a_name_is_inert_in_the_record(client: Client, editor: User) -> None:
    url = f"{STAFF}{editor.pk}/"
    form = page(client, f"{url}change/").form("user_form")
    client.post(f"{url}change/", {**form, "first_name": [PAYLOAD[:150]]})

    assert_inert(page(client, f"{url}history/"))
    assert_inert(Page(client.get("/admin/")))
    assert "x-canary" in history(client, url)
