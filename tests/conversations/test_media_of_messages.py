"""What may stand in a message, what is stored of it, who gets to see it, and what becomes of it."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import connection, transaction
from django.test import Client

from conversations.models import Conversation, Message
from conversations.services import delete_conversation
from media_uploads.models import MediaUpload
from personas.models import Influencer
from tests.conftest import Api
from tests.conversations.media import images, picture, record, sound, take, upload
from tests.conversations.test_statements import Statements, statements_of
from tests.fake_gemini import REPLY, FakeGemini, fails, says

pytestmark = pytest.mark.usefixtures("media_folder")
PATH = "/api/v1/chat/conversations"
UNKNOWN = "0b5c3c8e-2a52-4a5c-9a39-0d0b1c8a9f11"


def show(api: Api, conversation: Any, *urls: str, content: Any = None, kind: str = "image", **fields: Any) -> Any:
    return api.send(conversation, content, message_type=kind, media_urls=list(urls), **fields)


def question() -> Message:
    return Message.objects.filter(role="user").latest("sequence")


def assert_nothing_stored(gemini: FakeGemini) -> None:
    assert not Message.objects.filter(role="user").exists()
    assert not MediaUpload.objects.exclude(use_count=0, first_used_at=None).exists()
    assert gemini.requests == []


def read(url: str) -> tuple[int, bytes]:
    """As a stranger's browser does, without a token."""
    response: Any = Client().get(url.removeprefix("http://testserver"))
    return response.status_code, b"".join(response.streaming_content) if response.streaming else response.content


# Keys and links


FORMS: dict[str, Callable[[str, str], str]] = {
    "key": lambda key, url: key,
    "link": lambda key, url: url,
    "without its signature": lambda key, url: url.partition("?")[0],
    "with a wrong signature": lambda key, url: f"{url[:-3]}abc",
    "with a fragment": lambda key, url: f"{url}#t=1",
    "in spaces": lambda key, url: f"  {url} ",
}


@pytest.mark.parametrize("form", FORMS)
def test_keys_and_links_of_ones_own_are_stored_as_keys(
    alice: Api, conversation: Conversation, gemini: FakeGemini, form: str
) -> None:
    gemini.default = says("fine")
    seen, heard = upload(alice, picture("blue"), "image"), upload(alice, sound(), "audio")
    key, note = seen["storage_key"], heard["storage_key"]

    response = show(alice, conversation, FORMS[form](key, seen["url"]))

    assert response.status_code == 200, response.content
    assert question().media_urls == [key]
    assert images(gemini.last) == ["blue"]
    (shown,) = response.json()["user_message"]["media_urls"]
    assert re.fullmatch(rf"http://testserver/media/{key}\?expires=\d+&signature=[\w-]+", shown)
    response = alice.send(conversation, None, message_type="audio", audio_url=FORMS[form](note, heard["url"]))
    assert response.status_code == 200, response.content
    assert question().audio_url == note


def test_an_expired_link_is_as_good_as_its_key(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    seen = upload(alice, picture("blue"), "image")
    with time_machine.travel(time.time() + 100_000):
        assert read(seen["url"])[0] == 403
        response = show(alice, conversation, seen["url"])
        assert response.status_code == 200
        assert read(response.json()["user_message"]["media_urls"][0])[0] == 200

    assert question().media_urls == [seen["storage_key"]]
    assert images(gemini.last) == ["blue"]


@pytest.mark.parametrize("base", ["https://cdn.example/media", "http://cdn.example:8080/a/b"])
def test_links_under_the_configured_address_are_ours(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any, base: str
) -> None:
    before = upload(alice, picture("blue"), "image")
    settings.MEDIA_BASE_URL = base
    seen = upload(alice, picture("red"), "image")
    assert seen["url"].startswith(f"{base}/{seen['storage_key']}?expires=")

    response = show(alice, conversation, seen["url"], f"{base}/{seen['storage_key']}", before["url"])

    assert response.status_code == 200, response.content
    assert question().media_urls == [seen["storage_key"]] * 2 + [before["storage_key"]]
    assert images(gemini.last) == ["red", "red", "blue"]
    assert all(url.startswith(f"{base}/") for url in response.json()["user_message"]["media_urls"])


@pytest.mark.parametrize("kind", ["image", "multimodal", "text", "audio"])
@pytest.mark.parametrize("form", ["key", "link", "without its signature"])
def test_somebody_elses_file_is_403_and_nothing_is_stored(
    alice: Api, bob: Api, conversation: Conversation, gemini: FakeGemini, kind: str, form: str
) -> None:
    own = take(alice, "red")
    seen, heard = upload(bob, picture("blue"), "image"), upload(bob, sound(), "audio")
    his_picture = FORMS[form](seen["storage_key"], seen["url"])
    his_sound = FORMS[form](heard["storage_key"], heard["url"])
    field: dict[str, Any]
    for field in (
        {"media_urls": [his_picture]},
        {"media_urls": [*own, his_picture]},
        {"media_urls": own, "audio_url": his_sound},
    ):
        if kind == "audio":
            field = {"audio_url": his_sound, **field}
        response = alice.send(conversation, "Hello", message_type=kind, **field)
        assert response.status_code == 403, response.content
        assert response.json()["error"] == "forbidden"
        assert "signature" not in response.content.decode()

    assert_nothing_stored(gemini)


@pytest.mark.parametrize(
    "url",
    [
        f"alice/{UNKNOWN}.jpg",
        f"http://testserver/media/alice/{UNKNOWN}.jpg?expires=1&signature=x",
        "http://example.com/a.jpg",
        "HTTP://example.com/a.jpg",
        "ftp://example.com/a.jpg",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "//example.com/a.jpg",
        "https:///a.jpg",
        "https:a.jpg",
        "../alice/x.jpg",
        "a.jpg",
        "🌍",
    ],
)
def test_an_unknown_key_and_what_is_no_https_address_are_403(
    alice: Api, conversation: Conversation, gemini: FakeGemini, url: str
) -> None:
    own = take(alice, "red")
    for kind in ("image", "text"):
        assert show(alice, conversation, *own, url, content="x", kind=kind).status_code == 403
    assert alice.send(conversation, "x", message_type="audio", audio_url=url).status_code == 403

    assert_nothing_stored(gemini)


@pytest.mark.parametrize("change", [str.upper, lambda key: f"/{key}", lambda key: f"{key}?x", lambda key: f"./{key}"])
def test_a_key_is_a_key_only_letter_by_letter(
    alice: Api, conversation: Conversation, gemini: FakeGemini, change: Callable[[str], str]
) -> None:
    (key,) = take(alice, "red")

    assert show(alice, conversation, change(key)).status_code == 403
    assert_nothing_stored(gemini)


def test_whose_a_file_is_stands_in_its_row_and_not_in_its_key(
    alice: Api, bob: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    (key,) = take(alice, "red")
    MediaUpload.objects.update(owner_id="bob")

    assert show(alice, conversation, key).status_code == 403
    assert_nothing_stored(gemini)


def test_a_sound_as_a_picture_and_a_picture_as_a_sound_are_422(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    seen, heard = upload(alice, picture(), "image"), upload(alice, sound(), "audio")
    for pic, snd in ((seen["storage_key"], heard["storage_key"]), (seen["url"], heard["url"])):
        for kind in ("image", "text"):
            response = show(alice, conversation, pic, snd, content="x", kind=kind)
            assert response.status_code == 422
            assert response.json()["details"]["errors"][0]["loc"] == ["body", "media_urls"]
        for kind in ("audio", "text"):
            response = alice.send(conversation, "x", message_type=kind, audio_url=pic)
            assert response.status_code == 422
            assert response.json()["details"]["errors"][0]["loc"] == ["body", "audio_url"]
            assert seen["storage_key"] not in response.content.decode()

    assert_nothing_stored(gemini)


def test_an_owner_whose_id_is_no_file_name_uses_his_files_all_the_same(
    make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    carol = Api("carol@example.com/../alice")
    opened = carol.open(make_influencer())
    seen = upload(carol, picture("lime"), "image")
    assert seen["storage_key"].startswith("~")

    for url in (seen["storage_key"], seen["url"]):
        assert show(carol, opened["id"], url).status_code == 200
        assert question().media_urls == [seen["storage_key"]]
        assert images(gemini.last)[-1:] == ["lime"]


# The same message again


def test_a_resend_with_the_link_instead_of_the_key_continues_the_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    seen, other = upload(alice, picture("red"), "image"), upload(alice, picture("blue"), "image")
    gemini.will(fails(400))
    assert show(alice, conversation, seen["storage_key"], other["url"], content="Look!").status_code == 503
    kept = question()

    turn = show(alice, conversation, seen["url"].partition("?")[0], other["storage_key"], content=" Look! ").json()

    assert turn["user_message"]["id"] == str(kept.pk)
    assert turn["assistant_message"]["content"] == REPLY
    assert images(gemini.requests[0]) == images(gemini.requests[1]) == ["red", "blue"]
    assert Message.objects.count() == 3


def test_other_pictures_another_order_or_another_type_are_another_message(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    red, blue = take(alice, "red", "blue")
    gemini.default = fails(400)
    for number, (urls, kind) in enumerate(
        [([red], "image"), ([red, blue], "image"), ([blue, red], "image"), ([blue, red], "multimodal")], 1
    ):
        assert show(alice, conversation, *urls, kind=kind).status_code == 503
        assert show(alice, conversation, *urls, kind=kind.upper()).status_code == 503
        assert Message.objects.filter(role="user").count() == number


def test_a_message_counts_once_as_a_use_whatever_is_resent(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    (key,) = take(alice, "red")
    note = record(alice)
    gemini.default = fails(400)
    show(alice, conversation, key, key, audio_url=note)
    first = MediaUpload.objects.get(storage_key=key)
    assert first.first_used_at is not None
    assert (first.use_count, MediaUpload.objects.get(storage_key=note).use_count) == (1, 1)

    gemini.default = says("fine")
    show(alice, conversation, key, key, audio_url=note)
    assert MediaUpload.objects.get(storage_key=key).use_count == 1

    show(alice, conversation, key)
    alice.send(conversation, "as a text", media_urls=[key])
    again = MediaUpload.objects.get(storage_key=key)
    assert (again.use_count, again.first_used_at) == (3, first.first_used_at)
    assert MediaUpload.objects.get(storage_key=note).use_count == 1


# Who gets to see it


def test_every_reading_signs_afresh_and_shows_everywhere_a_message_is(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    (key,) = take(alice, "red")
    note = record(alice)
    data = picture("red")
    show(alice, conversation, key, "https://example.com/a.jpg", audio_url=note)
    links: list[str] = []
    for hours in (0, 1, 24 * 365):
        with time_machine.travel(time.time() + 3600 * hours, tick=False):
            page = alice.messages(conversation).json()["messages"][1]
            recent = alice.get(PATH).json()["conversations"][0]["recent_messages"][1]
            opened = alice.open(conversation.influencer)["recent_messages"][1]
            assert page == recent == opened
            assert page["media_urls"][1] == "https://example.com/a.jpg"
            assert read(page["media_urls"][0])[0] == read(page["audio_url"])[0] == 200
            assert f"/{key}?" in page["media_urls"][0]
            assert f"/{note}?" in page["audio_url"]
            links.append(page["media_urls"][0])

    assert len(set(links)) == 3
    assert len(read(links[0])[1]) > 0
    assert data[:8] == read(links[0])[1][:8]
    assert "signature" not in str(Message.objects.values())
    assert "testserver" not in str(Message.objects.values())


def test_a_link_stays_the_same_for_a_third_of_its_life(alice: Api, conversation: Conversation) -> None:
    show(alice, conversation, *take(alice, "red"))
    with time_machine.travel(1_800_000_000, tick=False) as clock:
        first = alice.messages(conversation).json()["messages"][1]["media_urls"]
        clock.shift(299)
        assert alice.messages(conversation).json()["messages"][1]["media_urls"] == first
        clock.shift(2)
        assert alice.messages(conversation).json()["messages"][1]["media_urls"] != first
        assert read(first[0])[0] == 200
        clock.shift(900)
        assert read(first[0])[0] == 403


def test_nobody_else_gets_a_link(
    alice: Api, bob: Api, nobody: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    (key,) = take(alice, "red")
    show(alice, conversation, key)
    theirs = bob.open(conversation.influencer)

    answers = [
        bob.messages(conversation),
        bob.get(PATH),
        bob.post(PATH, {"influencer_id": conversation.influencer_id}),
        bob.messages(theirs["id"]),
        show(bob, conversation, key),
        show(bob, theirs["id"], key),
        bob.send(theirs["id"], "x", media_urls=[key]),
        bob.delete(f"{PATH}/{conversation.pk}"),
        nobody.messages(conversation),
    ]

    assert [answer.status_code for answer in answers] == [403, 200, 201, 200, 403, 403, 403, 403, 401]
    assert not [
        answer.content for answer in answers if b"signature" in answer.content or key.encode() in answer.content
    ]
    assert read(f"/media/{key}")[0] == 403


def test_a_key_that_came_into_an_external_address_is_not_signed(
    alice: Api, bob: Api, conversation: Conversation
) -> None:
    (key,) = take(bob, "red")
    for url in (f"https://example.com/media/{key}", f"https://example.com/{key}", f"https://testserver:1/media/{key}"):
        response = alice.send(conversation, "x", media_urls=[url])
        assert response.json()["user_message"]["media_urls"] == [url]


# What becomes of it


@pytest.fixture
def commits(django_capture_on_commit_callbacks: Any) -> Any:
    """What waits for the commit happens at the end of the block."""
    return lambda: django_capture_on_commit_callbacks(execute=True)


def test_deleting_a_conversation_removes_its_files_after_the_commit(
    alice: Api, conversation: Conversation, media_folder: Path, commits: Any, gemini: FakeGemini
) -> None:
    keys, note, unused = take(alice, "red", "blue", "lime"), record(alice), take(alice, "cyan")[0]
    show(alice, conversation, *keys[:2])
    alice.send(conversation, "a text", media_urls=keys[1:])
    alice.send(conversation, None, message_type="audio", audio_url=note)
    link = alice.messages(conversation).json()["messages"][1]["audio_url"]

    with commits():
        assert alice.delete(f"{PATH}/{conversation.pk}").status_code == 200
        assert all((media_folder / key).exists() for key in [*keys, note]), "not before"

    assert list(MediaUpload.objects.values_list("storage_key", flat=True)) == [unused]
    assert not any((media_folder / key).exists() for key in [*keys, note])
    assert (media_folder / unused).exists()
    assert read(link)[0] == 404


def test_files_that_another_message_shows_stay(
    alice: Api,
    conversation: Conversation,
    make_influencer: Callable[..., Influencer],
    media_folder: Path,
    commits: Any,
    gemini: FakeGemini,
) -> None:
    shared, own = take(alice, "red", "blue")
    other = alice.open(make_influencer())["id"]
    show(alice, conversation, shared, own)
    show(alice, conversation, shared)
    alice.send(other, "Look!", media_urls=[shared])
    assert MediaUpload.objects.get(storage_key=shared).use_count == 3

    with commits():
        alice.delete(f"{PATH}/{conversation.pk}")

    assert MediaUpload.objects.get().storage_key == shared
    assert MediaUpload.objects.get().use_count == 1
    assert (media_folder / shared).exists()
    assert not (media_folder / own).exists()
    assert read(alice.messages(other).json()["messages"][1]["media_urls"][0])[0] == 200
    with commits():
        alice.delete(f"{PATH}/{other}")
    assert not MediaUpload.objects.exists()
    assert not (media_folder / shared).exists()


def test_a_file_that_is_gone_already_does_not_stop_the_deletion(
    alice: Api, conversation: Conversation, media_folder: Path, commits: Any, gemini: FakeGemini
) -> None:
    keys = take(alice, "red", "blue")
    show(alice, conversation, *keys, "https://example.com/a.jpg")
    (media_folder / keys[0]).unlink()

    with commits():
        assert alice.delete(f"{PATH}/{conversation.pk}").status_code == 200

    assert not MediaUpload.objects.exists()
    assert not (media_folder / keys[1]).exists()


def test_the_deleted_file_can_be_used_no_more(
    alice: Api, conversation: Conversation, commits: Any, gemini: FakeGemini
) -> None:
    (key,) = take(alice, "red")
    show(alice, conversation, key)
    with commits():
        alice.delete(f"{PATH}/{conversation.pk}")

    assert show(alice, alice.open(conversation.influencer)["id"], key).status_code == 403


@pytest.mark.django_db(transaction=True)
def test_a_deletion_that_is_rolled_back_keeps_everything(
    alice: Api, conversation: Conversation, media_folder: Path, gemini: FakeGemini
) -> None:
    (key,) = take(alice, "red")
    show(alice, conversation, key)

    with transaction.atomic():
        delete_conversation(conversation_id=str(conversation.pk), user_id="alice")
        assert not Message.objects.exists()
        transaction.set_rollback(True)

    assert (media_folder / key).exists()
    assert MediaUpload.objects.get().use_count == 1
    assert read(alice.messages(conversation).json()["messages"][1]["media_urls"][0])[0] == 200

    assert alice.delete(f"{PATH}/{conversation.pk}").status_code == 200
    assert not (media_folder / key).exists()
    assert not MediaUpload.objects.exists()


# What it costs


def test_lists_and_deleting_cost_the_same_with_any_number_of_media(
    alice: Api, conversation: Conversation, make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    keys = take(alice, "red", "blue", "lime")

    def costs() -> tuple[int, int]:
        return statements_of(lambda: alice.messages(conversation)), statements_of(lambda: alice.get(PATH))

    alice.send(conversation, "no media")
    before = costs()
    for opened in (conversation, alice.open(make_influencer())["id"]):
        show(alice, opened, keys[0])
        show(alice, opened, *keys, audio_url=record(alice))
        alice.send(opened, "x", media_urls=[*keys, "https://example.com/a.jpg"])
    assert costs() == before
    assert before[0] <= 2
    assert before[1] <= 3

    assert statements_of(lambda: alice.delete(f"{PATH}/{conversation.pk}")) <= 7 + 5


def test_only_keys_and_addresses_are_looked_up_in_one_statement(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    keys, note = take(alice, "red", "blue"), record(alice)
    ran = Statements()
    with connection.execute_wrapper(ran):
        show(alice, conversation, *keys, audio_url=note)

    assert len([sql for sql in ran if sql.startswith("SELECT") and "media_uploads" in sql]) == 1
    assert len([sql for sql in ran if sql.startswith("UPDATE") and "media_uploads" in sql]) == 1
