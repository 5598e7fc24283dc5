"""Staff and files, through the real pages of the admin: looked at, never changed, and inert."""

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from conversations.models import Reading
from media_uploads.models import MediaUpload
from tests.conftest import Api
from tests.media_uploads.conftest import forget_storage, kept, png
from tests.personas.page import Page
from tests.reasons import give_reason

MEDIA = "/admin/media_uploads/mediaupload/"
XSS = "<script>alert('xss')</script>\"><img src=x onerror=alert(1)>"
Desk = Callable[[User], Client]

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any) -> Path:
    settings.MEDIA_UPLOAD_DIR = tmp_path / "media"
    forget_storage(settings, "LocalMedia")
    return tmp_path / "media"


@pytest.fixture
def at_desk(desk: Desk, superuser: User) -> Client:
    return desk(superuser)


def page(client: Client, url: str, **query: Any) -> Page:
    response = client.get(url, query)
    assert response.status_code == 200, (url, response.status_code)
    return Page(response)


def detail(upload: MediaUpload) -> str:
    return f"{MEDIA}{upload.pk}/change/"


def row(owner: str = "alice", **fields: Any) -> MediaUpload:
    values = {
        "owner_id": owner,
        "storage_key": f"alice/{uuid.uuid4()}.png",
        "kind": "image",
        "size": 10,
        "mime_type": "image/png",
        "sha256": "0" * 64,
        **fields,
    }
    return MediaUpload.objects.create(**values)


def pictures(shown: Page) -> list[str]:
    return [attrs["src"] for tag, attrs in shown.tags if tag in ("img", "audio") and "/media/" in attrs.get("src", "")]


def file_on(client: Client, upload: MediaUpload) -> str:
    """The address of the file, from the page that shows it."""
    (src,) = pictures(page(client, looked_at(upload)))
    return src


def looked_at(upload: MediaUpload) -> str:
    return f"/admin/conversations/conversation/file/{upload.pk}/"


def test_a_picture_is_looked_at_on_a_page_of_its_own(at_desk: Client, alice: Api) -> None:
    kept(alice, png(20, 10))
    upload = MediaUpload.objects.get()
    give_reason(at_desk, upload)

    assert page(at_desk, MEDIA).link("Look") == page(at_desk, detail(upload)).link("Look") == looked_at(upload)
    opened = at_desk.get(file_on(at_desk, upload))
    assert opened.status_code == 200
    assert opened["Content-Type"] == "image/png"
    opened.close()


def test_a_sound_can_be_played(at_desk: Client, alice: Api) -> None:
    kept(alice, kind="audio")
    upload = MediaUpload.objects.get()
    give_reason(at_desk, upload)

    opened = at_desk.get(file_on(at_desk, upload), headers={"Range": "bytes=0-3"})
    assert (opened.status_code, opened.getvalue()) == (206, b"RIFF")


def test_no_page_leads_to_a_file_without_a_reason_and_one_reason_opens_one_user_s(
    at_desk: Client, alice: Api, bob: Api
) -> None:
    for user in (alice, alice, bob):
        kept(user, png(20, 10))
    of_alice = list(MediaUpload.objects.filter(owner_id="alice"))
    of_bob = MediaUpload.objects.get(owner_id="bob")

    for upload in (*of_alice, of_bob):
        for url in (MEDIA, detail(upload)):
            assert not pictures(page(at_desk, url))
            assert "signature=" not in page(at_desk, url).html
        asked = at_desk.get(looked_at(upload))
        assert asked.status_code == 302
        assert asked["Location"].startswith(f"{looked_at(upload)}reason/?next=")

    answer = give_reason(at_desk, of_alice[0], then=looked_at(of_alice[0]))
    assert answer["Location"] == looked_at(of_alice[0])
    assert all(file_on(at_desk, upload) for upload in of_alice)
    assert at_desk.get(looked_at(of_bob)).status_code == 302
    kept_reason = Reading.objects.get()
    assert (kept_reason.user_id, kept_reason.conversation_id) == ("alice", None)


def test_the_detail_shows_what_is_known_of_a_file(at_desk: Client, alice: Api) -> None:
    kept(alice, png(20, 10))
    upload = MediaUpload.objects.get()
    shown = page(at_desk, detail(upload))

    for value in (upload.pk, upload.owner_id, upload.storage_key, upload.sha256, upload.mime_type, "20", "10"):
        assert str(value) in shown.text


def test_nothing_can_be_written(at_desk: Client, alice: Api, folder: Path) -> None:
    kept(alice)
    upload = MediaUpload.objects.get()
    before = list(MediaUpload.objects.values())

    assert at_desk.get(f"{MEDIA}add/").status_code == 403
    assert at_desk.post(f"{MEDIA}add/", {"owner_id": "bob"}).status_code == 403
    assert at_desk.post(detail(upload), {"owner_id": "bob", "storage_key": "bob/x"}).status_code == 403
    assert at_desk.get(f"{MEDIA}{upload.pk}/delete/").status_code == 403
    assert at_desk.post(f"{MEDIA}{upload.pk}/delete/", {"post": "yes"}).status_code == 403
    at_desk.post(MEDIA, {"action": "delete_selected", "_selected_action": [str(upload.pk)], "post": "yes"})
    shown = page(at_desk, detail(upload))
    assert not [href for _, href in shown.links if href.startswith(MEDIA) and href.endswith(("/add/", "/delete/"))]
    assert not [attrs for tag, attrs in shown.tags if tag in ("input", "textarea") and attrs.get("name") == "owner_id"]
    assert list(MediaUpload.objects.values()) == before
    assert (folder / upload.storage_key).exists()


def test_an_evil_user_id_is_shown_as_the_text_that_it_is(at_desk: Client) -> None:
    kept(Api(XSS))
    upload = MediaUpload.objects.get()

    for url in (MEDIA, detail(upload), f"{MEDIA}?q={XSS}"):
        shown = page(at_desk, url)
        assert "<script>alert(" not in shown.html
        assert not [attrs for tag, attrs in shown.tags if attrs.get("src") == "x" or "onerror" in attrs]
        assert XSS in shown.text or "q=" in url


def test_even_an_evil_row_is_inert(at_desk: Client) -> None:
    """However it came there."""
    upload = row(XSS, storage_key='x"><script>alert(1)</script>.png', mime_type="<script>alert(2)"[:50], sha256="<b>")

    for url in (MEDIA, detail(upload)):
        shown = page(at_desk, url)
        assert "<script>alert(" not in shown.html
        assert "<b>" not in shown.html


@pytest.mark.parametrize("rows", [1, 40])
def test_rows_cost_no_statements(at_desk: Client, rows: int) -> None:
    for number in range(rows):
        row(f"user-{number}")

    with CaptureQueriesContext(connection) as queries:
        assert len(re.findall("Look</a>", page(at_desk, MEDIA).html)) == rows
    assert len(queries) <= 6, [query["sql"] for query in queries]


def test_a_file_is_found_by_its_owner_key_or_hash(at_desk: Client) -> None:
    mine, _ = row("alice", sha256="a" * 64), row("bob", sha256="b" * 64)

    for words in ("alice", mine.storage_key, "a" * 64):
        assert page(at_desk, MEDIA, q=words).link("Look") == looked_at(mine)
    assert "Look" not in page(at_desk, MEDIA, q="ali").text


def test_sounds_can_be_listed_alone(at_desk: Client) -> None:
    row()
    sound = row(kind="audio", mime_type="audio/wav", storage_key=f"alice/{uuid.uuid4()}.wav")

    listed = page(at_desk, MEDIA, kind__exact="audio")
    assert listed.link("Listen") == looked_at(sound)
    assert "Look" not in listed.text


def test_staff_without_the_permission_see_nothing(desk: Desk) -> None:
    upload = row()
    client = desk(User.objects.create_user("new", is_staff=True))

    for url in (MEDIA, detail(upload), looked_at(upload), f"{looked_at(upload)}reason/"):
        response = client.get(url)
        assert response.status_code == 403
        assert upload.storage_key.encode() not in response.content
    assert MEDIA not in client.get("/admin/").content.decode()


def test_staff_with_the_permission_look(desk: Desk) -> None:
    upload = row()
    user = User.objects.create_user("looks", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_mediaupload"))

    assert page(desk(user), MEDIA).link("Look") == looked_at(upload)
    give_reason(desk(user), upload)
    assert upload.storage_key in file_on(desk(user), upload)
    assert upload.storage_key in page(desk(user), detail(upload)).text


def test_nobody_else_gets_in(alice: Api) -> None:
    upload = row()

    for url in (MEDIA, detail(upload), looked_at(upload), f"{looked_at(upload)}reason/"):
        response = alice.get(url)
        assert response.status_code == 302
        assert response["Location"].startswith("/admin/login/")
