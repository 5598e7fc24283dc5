"""Staff read what users said with a reason that is kept; without one no page tells a word of it."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.db.models import ProtectedError
from django.test import Client
from django.utils import timezone

from conversations.models import Conversation, Message, NotChanged, Reading
from personas.models import Influencer
from tests.conftest import Api
from tests.personas.page import Page
from tests.reasons import WHY, give_reason, question
from tests.test_admin_personas import PAYLOAD, assert_inert, page

CONVERSATIONS = "/admin/conversations/conversation/"
MESSAGES = "/admin/conversations/message/"
TURNS = "/admin/conversations/turn/"
READINGS = "/admin/conversations/reading/"
SAID = "How do I touch my toes?"
Desk = Callable[[User], Client]


@pytest.fixture
def chat(alice: Api, conversation: Conversation) -> Conversation:
    assert alice.send(conversation, SAID).status_code == 200
    Conversation.objects.update(metadata={"memories": {"name": "Asha from Pune"}})
    conversation.refresh_from_db()
    return conversation


@pytest.fixture(params=["support", "superuser"])
def reader(request: pytest.FixtureRequest, desk: Desk) -> Client:
    """Superusers are asked, too."""
    return desk(request.getfixturevalue(request.param))


def read_at(chat: Conversation) -> list[str]:
    """Every page on which something stands that was said."""
    asked = Message.objects.get(role="user", conversation=chat)
    messages = [f"{MESSAGES}{pk}/change/" for pk in chat.messages.values_list("pk", flat=True)]
    return [f"{MESSAGES}?conversation__id__exact={chat.pk}", f"{TURNS}{asked.pk}/change/", *messages]


def everywhere(chat: Conversation) -> list[str]:
    return [
        *("/admin/", CONVERSATIONS, MESSAGES, TURNS, f"{CONVERSATIONS}{chat.pk}/change/"),
        *(f"{MESSAGES}?q={chat.pk}", f"{TURNS}?q={chat.pk}", f"{MESSAGES}?role__exact=user"),
        *(f"{url}history/".replace("change/history", "history") for url in read_at(chat)[1:]),
        *read_at(chat),
    ]


def test_without_a_reason_no_page_tells_what_was_said(reader: Client, chat: Conversation) -> None:
    for url in everywhere(chat):
        shown = reader.get(url, follow=True)
        assert shown.status_code == 200, url
        for words in ("toes", "coach!", "Pune", "You are Persona"):
            assert words not in shown.content.decode(), (url, words)


def test_a_page_asks_and_leads_on_to_what_was_wanted(reader: Client, chat: Conversation) -> None:
    for url in read_at(chat):
        asked = reader.get(url)
        assert asked.status_code == 302
        assert asked["Location"].split("?")[0] == question(chat)

    wanted = read_at(chat)[1]
    form = Page(reader.get(wanted, follow=True)).form("reason_form")
    answer = reader.post(question(chat), {**form, "purpose": "fault", "reason": WHY})

    assert (answer.status_code, answer["Location"]) == (302, wanted)
    for url in read_at(chat):
        assert reader.get(url).status_code == 200
    assert "toes" in page(reader, read_at(chat)[0]).text
    assert "toes" in page(reader, MESSAGES).text
    assert "toes" in page(reader, TURNS).text
    assert "Pune" in page(reader, f"{CONVERSATIONS}{chat.pk}/change/").text


def test_it_is_kept_who_read_whose_when_why_and_from_where(desk: Desk, support: User, chat: Conversation) -> None:
    before = timezone.now()
    client = desk(support)
    client.defaults["REMOTE_ADDR"] = "198.51.100.7"
    give_reason(client, chat, purpose="report", reason="Ticket 4711: an insult was reported")

    kept = Reading.objects.get()
    assert (kept.reader, kept.user_id, kept.conversation_id) == (support, "alice", chat.pk)
    assert (kept.persona, kept.purpose, kept.reason) == (
        "Coach Asha",
        "report",
        "Ticket 4711: an insult was reported",
    )
    assert kept.address == "198.51.100.7"
    assert before <= kept.created_at <= timezone.now()
    assert kept.valid_until - kept.created_at == dt.timedelta(hours=1)


@pytest.mark.parametrize(
    ("purpose", "reason", "said"),
    [
        ("", WHY, "This field is required."),
        ("asked", "", "This field is required."),
        ("asked", "   ", "This field is required."),
        ("asked", "because", "Say why in a few words"),
        ("asked", "a - . ! b", "Say why in a few words"),
        ("curiosity", WHY, "Select a valid choice"),
        ("asked", "far too long " * 50, "at most 500 characters"),
        ("asked", "one two three\x00", "Null characters"),
    ],
)
def test_a_reason_that_is_none_opens_nothing(
    desk: Desk, support: User, chat: Conversation, purpose: str, reason: str, said: str
) -> None:
    client = desk(support)

    answer = client.post(question(chat), {"purpose": purpose, "reason": reason})

    assert answer.status_code == 200
    assert said in Page(answer).text
    assert not Reading.objects.exists()
    assert client.get(read_at(chat)[0]).status_code == 302


def test_a_reason_in_any_language_is_one(desk: Desk, support: User, chat: Conversation) -> None:
    give_reason(desk(support), chat, reason="उत्तर नहीं आया")
    assert Reading.objects.get().reason == "उत्तर नहीं आया"


def test_a_reason_holds_for_an_hour(desk: Desk, support: User, chat: Conversation) -> None:
    client, now = desk(support), timezone.now()
    with time_machine.travel(now, tick=False) as clock:
        give_reason(client, chat)
        clock.shift(dt.timedelta(minutes=59))
        assert "toes" in page(client, read_at(chat)[0]).text
        assert client.get(question(chat)).status_code == 302, "nobody is asked twice"
        clock.shift(dt.timedelta(minutes=1))
        for url in read_at(chat):
            assert client.get(url).status_code == 302
        assert "toes" not in page(client, MESSAGES).text
        give_reason(client, chat)
        assert "toes" in page(client, MESSAGES).text
    assert Reading.objects.count() == 2


def test_a_reason_is_one_person_s_for_one_conversation(
    desk: Desk, support: User, superuser: User, chat: Conversation, coach: Influencer, bob: Api
) -> None:
    bobs = bob.open(coach)["id"]
    bob.send(bobs, "Only for the coach")
    give_reason(desk(support), chat)

    listed = page(desk(support), MESSAGES).text
    assert "toes" in listed
    assert "Only for the coach" not in listed
    assert desk(support).get(f"{MESSAGES}?conversation__id__exact={bobs}").status_code == 302
    assert desk(superuser).get(read_at(chat)[0]).status_code == 302
    assert "toes" not in page(desk(superuser), MESSAGES).text


@pytest.mark.parametrize(
    "query",
    [
        "content__contains=toes",
        "content__icontains=toes",
        "content__regex=.*toes",
        "metadata__a=b",
        "in_reply_to__content__contains=toes",
        "answer__content__contains=toes",
        "turn__text_so_far__contains=t",
        "conversation__metadata__memories__name=Asha",
        "question__content__contains=toes",
        "sent__has_key=system",
        "text_so_far__contains=t",
        "messages__content__contains=toes",
        "prompt_texts__text__contains=toes",
        "media_urls__contains=x",
        "body_hash=x",
    ],
)
@pytest.mark.parametrize("url", [CONVERSATIONS, MESSAGES, TURNS])
def test_a_filter_by_what_was_said_is_refused(
    desk: Desk, support: User, chat: Conversation, url: str, query: str
) -> None:
    """Whether anything is found would tell it."""
    answer = desk(support).get(f"{url}?{query}")
    assert answer.status_code in (302, 400)
    assert answer.get("Location", f"{url}?e=1") == f"{url}?e=1"


def test_a_search_without_a_reason_finds_no_words(desk: Desk, support: User, chat: Conversation) -> None:
    client = desk(support)
    for query in ("q=toes", f"q=toes&conversation__id__exact={uuid.uuid4()}", "q=toes&role__exact=user"):
        shown = client.get(f"{MESSAGES}?{query}")
        assert shown.status_code == 200
        assert shown.context["cl"].result_count == 0
    asked = client.get(f"{MESSAGES}?q=toes&conversation__id__exact={chat.pk}")
    assert asked["Location"].startswith(question(chat))
    found = client.get(
        "/admin/autocomplete/",
        {"app_label": "conversations", "model_name": "turn", "field_name": "question", "term": "toes"},
    )
    assert found.status_code == 403 or found.json()["results"] == []


def test_an_address_written_otherwise_opens_nothing(desk: Desk, support: User, chat: Conversation) -> None:
    message = Message.objects.get(role="user")
    plain, quoted = message.pk.hex, str(message.pk).replace("-", "_2D")
    for key in (plain, quoted, f"{{{message.pk}}}", str(message.pk).upper(), f"urn:uuid:{message.pk}"):
        for url in (MESSAGES, TURNS):
            for query in ("", "?_to_field=id", "?_popup=1", "?_changelist_filters=q%3Dx"):
                shown = desk(support).get(f"{url}{key}/change/{query}", follow=True)
                assert "toes" not in shown.content.decode()
    assert desk(support).post(f"{MESSAGES}{message.pk}/change/", {"_save": "x"}).status_code == 403


@pytest.mark.parametrize(
    "then",
    [
        *("https://evil.example/", "//evil.example/admin/", "javascript:alert(1)", "/\\evil.example", "/api/v1/", ""),
        *("http:///admin/", "\t//evil.example", "admin/", "/administration/"),
    ],
)
def test_a_reason_leads_to_no_other_place(desk: Desk, support: User, chat: Conversation, then: str) -> None:
    assert give_reason(desk(support), chat, then=then)["Location"] == read_at(chat)[0] + "&o=0"


@pytest.mark.parametrize("who", ["editor", "publisher", "analyst"])
def test_others_are_not_even_asked(desk: Desk, request: pytest.FixtureRequest, chat: Conversation, who: str) -> None:
    client = desk(request.getfixturevalue(who))
    for url in (question(chat), *read_at(chat), READINGS):
        assert client.get(url).status_code == 403
    assert client.post(question(chat), {"purpose": "asked", "reason": WHY}).status_code == 403
    assert not Reading.objects.exists()


def test_of_an_unknown_conversation_nothing_is_asked(desk: Desk, support: User, chat: Conversation) -> None:
    assert desk(support).get(question(uuid.uuid4())).status_code == 404
    assert desk(support).get(f"/admin/conversations/conversation/file/{uuid.uuid4()}/").status_code == 404


# The log


def test_the_log_is_for_superusers_alone(desk: Desk, support: User, superuser: User, chat: Conversation) -> None:
    give_reason(desk(support), chat)
    one = f"{READINGS}{Reading.objects.get().pk}/change/"

    for url in (READINGS, one):
        assert desk(support).get(url).status_code == 403
        text = page(desk(superuser), url).text
        for words in ("support", "alice", "Coach Asha", "The user asked us for help", WHY, "127.0.0.1"):
            assert words in text, words
    assert READINGS not in page(desk(support), "/admin/").html
    assert READINGS in page(desk(superuser), "/admin/").html
    for words in ("alice", "support", str(chat.pk)):
        assert desk(superuser).get(READINGS, {"q": words}).context["cl"].result_count == 1
    assert desk(superuser).get(READINGS, {"q": "ali"}).context["cl"].result_count == 0


def test_the_log_outlives_the_conversation(desk: Desk, superuser: User, alice: Api, chat: Conversation) -> None:
    give_reason(desk(superuser), chat)
    assert alice.delete(f"/api/v1/chat/conversations/{chat.pk}").status_code == 200

    assert WHY in page(desk(superuser), READINGS).text
    assert "alice" in page(desk(superuser), READINGS).text


def test_nobody_changes_or_deletes_the_log(desk: Desk, superuser: User, chat: Conversation) -> None:
    client = desk(superuser)
    give_reason(client, chat)
    kept = Reading.objects.get()
    before = list(Reading.objects.values())

    for place in ("add/", f"{kept.pk}/delete/"):
        assert client.get(READINGS + place).status_code == 403
        assert client.post(READINGS + place, {"post": "yes"}).status_code == 403
    assert client.post(f"{READINGS}{kept.pk}/change/", {"reason": "Another"}).status_code == 403
    client.post(READINGS, {"action": "delete_selected", "_selected_action": [str(kept.pk)], "post": "yes"})
    refused: list[Callable[[], Any]] = [
        kept.delete,
        kept.save,
        Reading.objects.all().delete,
        lambda: Reading.objects.update(reason="Another"),
    ]
    for change in refused:
        with pytest.raises(NotChanged):
            change()
    with pytest.raises(ProtectedError):
        superuser.delete()
    with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE readings SET reason = 'Another'")
    assert list(Reading.objects.values()) == before


def test_the_database_wants_a_reason(support: User) -> None:
    with pytest.raises(IntegrityError):
        Reading.objects.create(reader=support, user_id="alice", purpose="asked", reason="", valid_until=timezone.now())


def test_markup_in_a_reason_or_a_name_is_inert(desk: Desk, superuser: User, coach: Influencer) -> None:
    api = Api(PAYLOAD)
    chat = api.open(coach)["id"]
    client = desk(superuser)
    assert_inert(Page(client.get(question(chat))))
    give_reason(client, chat, reason=f"Look at this: {PAYLOAD}")

    for url in (READINGS, f"{READINGS}{Reading.objects.get().pk}/change/"):
        assert_inert(page(client, url))
    refused = client.post(question(chat), {"purpose": PAYLOAD, "reason": PAYLOAD, "next": PAYLOAD})
    assert refused.status_code == 200
    assert_inert(Page(refused))
