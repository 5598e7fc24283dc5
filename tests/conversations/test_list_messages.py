"""GET /api/v1/chat/conversations/{id}/messages: pages of the one order of messages."""

import datetime as dt
import re
import uuid
from typing import Any

import pytest
import time_machine

from conversations.models import Conversation, Message, get_owned
from conversations.serializers import messages_page
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, fails

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")
UNKNOWN = "7c0d2b1e-0000-4000-8000-000000000000"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
FIELDS = {
    "id",
    "conversation_id",
    "role",
    "content",
    "message_type",
    "media_urls",
    "audio_url",
    "audio_duration_seconds",
    "token_count",
    "created_at",
    "blocked",
    "stopped",
}


def fill(conversation: Conversation, count: int) -> None:
    """Rows until it holds `count` messages; it has the greeting."""
    start = conversation.created_at
    Message.objects.bulk_create(
        Message(
            conversation=conversation,
            sequence=number,
            role="assistant" if number % 2 else "user",
            content=f"number {number}",
            created_at=start + dt.timedelta(milliseconds=number),
        )
        for number in range(2, count + 1)
    )
    Conversation.objects.filter(pk=conversation.pk).update(
        message_count=count, updated_at=start + dt.timedelta(milliseconds=count)
    )


def moments(response: Any) -> list[dt.datetime]:
    return [dt.datetime.fromisoformat(message["created_at"]) for message in response.json()["messages"]]


def test_a_message_has_every_field_of_the_contract(alice: Api, conversation: Conversation) -> None:
    response = alice.messages(conversation)

    assert response.status_code == 200
    greeting = Message.objects.get()
    message = response.json()["messages"][0]
    assert set(message) >= FIELDS
    assert message | {"created_at": ""} == {
        "id": str(greeting.pk),
        "conversation_id": str(conversation.pk),
        "role": "assistant",
        "content": "Hi, I'm your coach!",
        "message_type": "text",
        "media_urls": [],
        "audio_url": None,
        "audio_duration_seconds": None,
        "token_count": None,
        "created_at": "",
        "blocked": False,
        "stopped": False,
        "away": False,
    }
    assert dt.datetime.fromisoformat(message["created_at"]) == greeting.created_at


def test_the_newest_come_first_unless_asked_otherwise(alice: Api, conversation: Conversation) -> None:
    turn = alice.send(conversation, "Hello").json()
    said = ["Hi, I'm your coach!", "Hello", turn["assistant_message"]["content"]]

    assert [m["content"] for m in alice.messages(conversation).json()["messages"]] == said[::-1]
    assert [m["content"] for m in alice.messages(conversation, order="desc").json()["messages"]] == said[::-1]
    assert [m["content"] for m in alice.messages(conversation, order="asc").json()["messages"]] == said


def test_a_listed_message_is_what_sending_answered(alice: Api, conversation: Conversation) -> None:
    turn = alice.send(conversation, media_urls=["https://example.com/a.jpg"], audio_duration_seconds=3).json()

    listed = alice.messages(conversation).json()["messages"]
    assert listed[:2] == [turn["assistant_message"], turn["user_message"]]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("size", [7, 50, 200])
def test_pages_neither_repeat_nor_lose_one(alice: Api, conversation: Conversation, order: str, size: int) -> None:
    fill(conversation, 433)

    paged: list[str] = []
    for offset in range(0, 440, size):
        page = alice.messages(conversation, limit=size, offset=offset, order=order).json()
        assert page["conversation_id"] == str(conversation.pk)
        assert (page["total"], page["limit"], page["offset"]) == (433, size, offset)
        paged += [message["id"] for message in page["messages"]]

    rows = Message.objects.of(conversation.pk).order_by("sequence").values_list("id", flat=True)
    expected = [str(id) for id in rows]
    assert paged == (expected if order == "asc" else expected[::-1])


def test_the_total_is_the_counter_and_what_is_there(alice: Api, conversation: Conversation, coach: Influencer) -> None:
    for question in ("one", "two", "three"):
        alice.send(conversation, question)

    page = alice.messages(conversation).json()
    assert page["total"] == len(page["messages"]) == alice.open(coach)["message_count"] == 7
    assert Message.objects.count() == 7


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_what_is_said_while_a_page_is_read_is_not_in_it(alice: Api, conversation: Conversation, order: str) -> None:
    """The page fits the total that was read before it."""
    before = get_owned(str(conversation.pk), "alice")
    alice.send(conversation, "In between")

    page = messages_page(before, offset=0, limit=50, order=order, base_url="")

    assert len(page) == before.message_count == 1


def test_the_default_page_is_the_newest_fifty(alice: Api, conversation: Conversation) -> None:
    fill(conversation, 60)

    page = alice.messages(conversation).json()
    assert (page["limit"], page["offset"], page["total"]) == (50, 0, 60)
    assert [m["content"] for m in page["messages"]] == [f"number {n}" for n in range(60, 10, -1)]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("offset", [1, 5, 1000, 2_000_000_000])
def test_past_the_end_there_is_an_empty_page(alice: Api, conversation: Conversation, order: str, offset: int) -> None:
    response = alice.messages(conversation, offset=offset, limit=200, order=order)

    assert response.status_code == 200
    assert response.json()["messages"] == []
    assert response.json()["total"] == 1


def test_a_page_across_the_end_is_short(alice: Api, conversation: Conversation) -> None:
    fill(conversation, 5)

    for order, expected in (("desc", ["number 2", "Hi, I'm your coach!"]), ("asc", ["number 4", "number 5"])):
        page = alice.messages(conversation, offset=3, limit=50, order=order).json()
        assert [m["content"] for m in page["messages"]] == expected


def test_a_conversation_without_messages_has_an_empty_page(alice: Api, make_influencer: Any) -> None:
    opened = alice.open(make_influencer(initial_greeting=""))

    page = alice.messages(opened["id"]).json()
    assert page == {"conversation_id": opened["id"], "messages": [], "total": 0, "limit": 50, "offset": 0}


def test_another_conversations_messages_are_not_in_it(alice: Api, bob: Api, coach: Influencer) -> None:
    mine, theirs = alice.open(coach), bob.open(coach)
    bob.send(theirs["id"], "a secret")

    assert "a secret" not in alice.messages(mine["id"]).content.decode()


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "-5"},
        {"limit": "many"},
        {"limit": "5.5"},
        {"limit": ""},
        {"offset": "-1"},
        {"offset": "x"},
        {"offset": "99999999999999999999"},
        {"order": "newest"},
        {"order": "ASC"},
        {"order": ""},
    ],
    ids=str,
)
def test_a_bad_query_is_422(alice: Api, conversation: Conversation, query: dict[str, str]) -> None:
    response = alice.messages(conversation, **query)

    assert response.status_code == 422
    assert response.json()["error"] == "validation_error"
    assert response.json()["details"]["errors"][0]["loc"] == ["query", *query]


def test_the_query_is_looked_at_before_the_conversation(alice: Api, bob: Api, conversation: Conversation) -> None:
    assert alice.messages(uuid.uuid4(), limit=0).status_code == 422
    assert bob.messages(conversation, limit=0).status_code == 422


@pytest.mark.parametrize("unknown", [UNKNOWN, "7", "not-a-uuid", "x" * 3000, "💪", "%00"])
def test_an_unknown_conversation_is_not_found(alice: Api, conversation: Conversation, unknown: str) -> None:
    response = alice.messages(unknown)

    assert response.status_code == 404
    assert response.json()["error"] == "not_found"


def test_a_strangers_conversation_is_forbidden_and_says_nothing_of_it(bob: Api, conversation: Conversation) -> None:
    response = bob.messages(conversation)

    assert response.status_code == 403
    assert response.json()["error"] == "forbidden"
    assert "alice" not in response.content.decode()
    assert "coach" not in response.content.decode()


def test_without_a_token_it_is_401(nobody: Api, conversation: Conversation) -> None:
    assert nobody.messages(conversation).status_code == 401
    assert nobody.messages("no-such-conversation", limit=0).status_code == 401


def test_a_retired_influencers_messages_can_still_be_read(alice: Api, conversation: Conversation) -> None:
    Influencer.objects.update(is_active="discontinued")

    assert alice.messages(conversation).status_code == 200


def assert_rising_by_a_millisecond(alice: Api, conversation: Any, count: int) -> None:
    rising = moments(alice.messages(conversation, order="asc"))
    assert len(rising) == count
    steps = [later - earlier for earlier, later in zip(rising, rising[1:], strict=False)]
    assert min(steps) >= dt.timedelta(milliseconds=1)


def test_times_rise_by_a_millisecond_each_while_the_clock_stands_still(alice: Api, coach: Influencer) -> None:
    with time_machine.travel(NOON, tick=False):
        opened = alice.open(coach)
        for question in ("one", "two", "three"):
            assert alice.send(opened["id"], question).status_code == 200

        assert_rising_by_a_millisecond(alice, opened["id"], 7)
        assert moments(alice.messages(opened["id"]))[0] == NOON + dt.timedelta(milliseconds=6)


def test_times_rise_even_when_the_clock_goes_back(alice: Api, coach: Influencer) -> None:
    with time_machine.travel(NOON) as clock:
        opened = alice.open(coach)
        alice.send(opened["id"], "before")
        clock.move_to(NOON - dt.timedelta(hours=1))
        alice.send(opened["id"], "after")

        assert_rising_by_a_millisecond(alice, opened["id"], 5)


def test_times_rise_when_a_question_was_kept_without_an_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    alice.send(conversation, "one")
    alice.send(conversation, "two")

    assert_rising_by_a_millisecond(alice, conversation, 4)


def test_a_message_bears_the_time_at_which_it_was_sent(alice: Api, coach: Influencer) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        opened = alice.open(coach)
        clock.move_to(NOON + dt.timedelta(hours=3))
        alice.send(opened["id"])

        assert moments(alice.messages(opened["id"]))[1] == NOON + dt.timedelta(hours=3)
        assert moments(alice.messages(opened["id"]))[2] == NOON


def test_the_first_message_without_a_greeting_bears_the_time_at_which_it_was_sent(
    alice: Api, make_influencer: Any
) -> None:
    """Not the time at which the conversation was opened, which may be days ago."""
    with time_machine.travel(NOON, tick=False) as clock:
        opened = alice.open(make_influencer(initial_greeting=""))
        clock.move_to(NOON + dt.timedelta(hours=3))
        alice.send(opened["id"])

        assert moments(alice.messages(opened["id"]))[1] == NOON + dt.timedelta(hours=3)


@pytest.mark.parametrize("micro", [0, 1, 120000, 999999])
def test_times_always_have_microseconds_and_an_offset(alice: Api, coach: Influencer, micro: int) -> None:
    with time_machine.travel(NOON.replace(microsecond=micro), tick=False):
        opened = alice.open(coach)
        turn = alice.send(opened["id"]).json()
        listed = alice.get("/api/v1/chat/conversations").json()["conversations"][0]
        told = [
            opened["created_at"],
            opened["updated_at"],
            opened["last_message"]["created_at"],
            opened["recent_messages"][0]["created_at"],
            turn["user_message"]["created_at"],
            turn["assistant_message"]["created_at"],
            listed["created_at"],
            listed["updated_at"],
            listed["last_message"]["created_at"],
            *[message["created_at"] for message in alice.messages(opened["id"]).json()["messages"]],
        ]

    assert all(MOMENT.fullmatch(moment) for moment in told), told
    assert opened["created_at"] == f"2026-03-01T12:00:00.{micro:06}+00:00"
