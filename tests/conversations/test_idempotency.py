"""Idempotency-Key and client_message_id: the same message sent again is the same turn."""

import datetime as dt
import threading
import time
from typing import Any

import pytest
import time_machine

from conversations.models import Conversation, Message, Turn
from personas.models import Influencer
from tests.conftest import Api
from tests.conversations.test_races import assert_gapless, at_once, rows, slowly
from tests.conversations.test_stream import as_in_a_running_service, events_of, open_stream
from tests.fake_gemini import REPLY, FakeGemini, fails, streams

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["as_in_a_running_service"]
PATH = "/api/v1/chat/conversations"


def send(api: Api, conversation: Any, content: Any = "Hello!", *, key: str = "", **fields: Any) -> Any:
    body = {"message_type": "text", "content": content, **fields}
    path = f"{PATH}/{getattr(conversation, 'pk', conversation)}/messages"
    headers = {**api.headers(), **({"Idempotency-Key": key} if key else {})}
    return api.client.post(path, body, content_type="application/json", headers=headers)


def by_header(api: Api, conversation: Any, content: Any = "Hello!", name: str = "key-1") -> Any:
    return send(api, conversation, content, key=name)


def by_body(api: Api, conversation: Any, content: Any = "Hello!", name: str = "key-1") -> Any:
    return send(api, conversation, content, client_message_id=name)


BOTH = pytest.mark.parametrize("sent", [by_header, by_body])


@BOTH
def test_the_same_again_is_the_same_turn(alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any) -> None:
    first = sent(alice, conversation)
    between = alice.send(conversation, "something else")

    again = sent(alice, conversation)

    assert (first.status_code, between.status_code, again.status_code) == (200, 200, 200)
    assert again.json() == first.json()
    assert len(rows(conversation)) == 4
    assert len(gemini.requests) == 2


@BOTH
def test_without_it_the_same_again_is_another_message(
    alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any
) -> None:
    sent(alice, conversation)
    sent(alice, conversation, name="key-2")
    alice.send(conversation)

    assert [content for _, role, content in rows(conversation) if role == "user"] == ["Hello!"] * 3


@BOTH
def test_another_body_under_it_is_a_conflict(
    alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any
) -> None:
    first = sent(alice, conversation).json()

    refused = sent(alice, conversation, "Something else")

    assert refused.status_code == 409
    assert refused.json()["error"] == "conflict"
    message_id = first["user_message"]["id"]
    assert refused.json()["details"] == {"reason": "idempotency_mismatch", "message_id": message_id}
    assert len(rows(conversation)) == 2
    assert len(gemini.requests) == 1


def test_the_two_kinds_are_apart(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    by_header(alice, conversation)

    assert by_body(alice, conversation, "Something else").status_code == 200


def test_either_of_two_finds_it(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    first = send(alice, conversation, key="header", client_message_id="body").json()

    assert send(alice, conversation, key="header").json() == first
    assert send(alice, conversation, client_message_id="body").json() == first
    assert send(alice, conversation, key="header", client_message_id="other").json() == first


def test_it_belongs_to_its_conversation(
    alice: Api, bob: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    by_header(alice, conversation)

    assert by_header(bob, bob.open(coach)["id"], "bob's words").status_code == 200


@BOTH
def test_a_503_is_not_remembered_as_success(
    alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any
) -> None:
    gemini.will(fails(400))
    assert sent(alice, conversation).status_code == 503
    question = Message.objects.get(role="user")

    again = sent(alice, conversation)

    assert again.status_code == 200
    assert again.json()["user_message"]["id"] == str(question.pk)
    assert len(rows(conversation)) == 2


@BOTH
def test_a_failed_message_is_answered_even_after_others(
    alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any
) -> None:
    gemini.will(fails(400))
    sent(alice, conversation, "first")
    alice.send(conversation, "second")

    again = sent(alice, conversation, "first").json()

    assert again["assistant_message"]["content"] == REPLY
    assert [content for _, _, content in rows(conversation)] == ["first", "second", REPLY, REPLY]
    assert gemini.last.texts[-1] == ("user", ["first"]), "what was said after it is no history of it"
    assert sent(alice, conversation, "first").json() == again
    assert_gapless(conversation)


@BOTH
def test_it_is_kept_for_seven_days(alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any) -> None:
    first = sent(alice, conversation).json()
    with time_machine.travel(dt.datetime.now(dt.UTC) + dt.timedelta(days=6, hours=23), tick=True):
        assert sent(alice, conversation).json() == first
    with time_machine.travel(dt.datetime.now(dt.UTC) + dt.timedelta(days=7, hours=1), tick=True):
        later = sent(alice, conversation)
        assert later.status_code == 200
        assert later.json()["user_message"]["id"] != first["user_message"]["id"]
        assert sent(alice, conversation, "Something else").status_code == 409


def test_a_message_without_one_that_failed_is_continued_by_a_send_that_has_one(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    alice.send(conversation)
    first = by_header(alice, conversation).json()

    assert by_header(alice, conversation).json() == first
    assert len(rows(conversation)) == 2


def test_a_failed_message_with_one_is_continued_by_a_tap_on_retry_without(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    by_header(alice, conversation)

    assert alice.send(conversation).status_code == 200
    assert len(rows(conversation)) == 2


def test_a_new_one_on_the_words_of_a_failed_message_is_a_new_message(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    by_header(alice, conversation, name="key-1")

    assert by_header(alice, conversation, name="key-2").status_code == 200
    assert [role for _, role, _ in rows(conversation)] == ["user", "user", "assistant"]


@BOTH
@pytest.mark.parametrize("value", ["x" * 256, "a\x00b"], ids=["too long", "NUL"])
def test_one_that_cannot_be_stored_is_422(
    alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any, value: str
) -> None:
    response = sent(alice, conversation, name=value)

    assert response.status_code == 422
    assert response.json()["details"]["errors"][0]["loc"] in (
        ["header", "Idempotency-Key"],
        ["body", "client_message_id"],
    )
    assert rows(conversation) == []


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_blank_one_is_none(alice: Api, conversation: Conversation, gemini: FakeGemini, value: Any) -> None:
    for _ in range(2):
        assert send(alice, conversation, client_message_id=value).status_code == 200
    assert len(rows(conversation)) == 4


def test_two_that_meet_in_one_send_must_be_of_one_message(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    send(alice, conversation, "X", key="A")
    second = send(alice, conversation, "Y", client_message_id="B").json()["user_message"]["id"]

    refused = send(alice, conversation, "X", key="A", client_message_id="B")

    assert refused.status_code == 409
    assert refused.json()["details"] == {"reason": "idempotency_mismatch", "message_id": second}
    assert send(alice, conversation, "X", key="A", client_message_id="C").status_code == 200


def test_its_days_begin_when_it_comes(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    """Also for a question that was asked long before, without it."""
    gemini.will(fails(400))
    alice.send(conversation)
    with time_machine.travel(dt.datetime.now(dt.UTC) + dt.timedelta(days=8), tick=True):
        first = by_header(alice, conversation).json()
        assert by_header(alice, conversation).json() == first
    assert len(rows(conversation)) == 2


def test_it_is_kept_by_a_turn_that_it_only_joined(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    asked = threading.Event()
    gemini.will(slowly("slowly", 0.5, before=asked.set))

    def join() -> Any:
        assert asked.wait(5)
        return by_header(alice, conversation)

    first, joined = at_once(lambda: alice.send(conversation), join)

    assert joined.json() == first.json()
    assert by_header(alice, conversation).json() == first.json()
    assert len(rows(conversation)) == 2


def test_a_number_will_do(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    first = send(alice, conversation, client_message_id=17).json()

    assert send(alice, conversation, client_message_id="17").json() == first


# Many at once


@pytest.mark.parametrize("key", ["", "one-key"], ids=["without a key", "with a key"])
def test_fifty_identical_sends_at_once_are_one_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini, key: str
) -> None:
    gemini.default.delay = 0.5

    responses = at_once(*[lambda: send(alice, conversation, key=key)] * 50)

    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses}) == 1
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", REPLY)]
    assert len(gemini.requests) == 1
    assert_gapless(conversation)


def test_fifty_identical_sends_behind_another_turn_are_one_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    asked = threading.Event()
    gemini.will(slowly("first answer", 0.5, before=asked.set))

    def later() -> Any:
        assert asked.wait(5)
        return send(alice, conversation, "second")

    responses = at_once(lambda: send(alice, conversation, "first"), *[later] * 50)

    assert {response.status_code for response in responses} == {200}
    assert len({response.content for response in responses[1:]}) == 1
    assert [content for _, _, content in rows(conversation)] == ["first", "first answer", "second", REPLY]


def test_copies_of_a_turn_that_fails_all_get_its_503(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    slow = fails(400)
    slow.delay = 0.5
    gemini.will(slow)

    responses = at_once(*[lambda: send(alice, conversation, key="k")] * 5)

    assert {response.status_code for response in responses} == {503}
    assert len(gemini.requests) == 1
    assert rows(conversation) == [(2, "user", "Hello!")]
    assert send(alice, conversation, key="k").status_code == 200


@BOTH
def test_it_waits_for_a_turn_that_runs(alice: Api, conversation: Conversation, gemini: FakeGemini, sent: Any) -> None:
    gemini.default.delay = 0.5

    def later() -> Any:
        time.sleep(0.2)
        return sent(alice, conversation)

    first, second = at_once(lambda: sent(alice, conversation), later)

    assert first.json() == second.json()
    assert len(gemini.requests) == 1


# In streams too


def test_a_stream_with_the_same_key_joins_or_replays(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.default = streams("One. ", "Two.", pause=0.2)

    first, second = at_once(*[lambda: events_of(open_stream(alice, conversation, key="k"))] * 2)
    assert len(gemini.requests) == 1
    events_of(open_stream(alice, conversation, "something else"))
    third = events_of(open_stream(alice, conversation, key="k"))

    assert first == second == third
    assert len(gemini.requests) == 2
    assert open_stream(alice, conversation, "other words", key="k").status_code == 409
    sent = send(alice, conversation, key="k").json()
    assert sent["assistant_message"] == first[-1].data["assistant_message"]


# Waiting


def test_a_turn_that_would_begin_too_late_is_a_409_and_nothing_is_stored(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 2.5
    asked = threading.Event()
    gemini.will(slowly("first answer", 2, before=asked.set))

    def later() -> Any:
        assert asked.wait(5)
        started = time.monotonic()
        return send(alice, conversation, "second"), time.monotonic() - started

    first, (refused, seconds) = at_once(lambda: send(alice, conversation, "first"), later)

    assert first.status_code == 200
    assert refused.status_code == 409
    assert refused.json()["details"] == {"reason": "turn_in_progress"}
    assert seconds < 2.5
    assert [content for _, _, content in rows(conversation)] == ["first", "first answer"]
    assert send(alice, conversation, "second").status_code == 200


def test_they_are_answered_in_the_order_in_which_they_came(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.default.delay = 0.4

    def nth(number: int) -> Any:
        time.sleep(0.25 * number)
        return send(alice, conversation, f"question {number}")

    at_once(*[lambda number=number: nth(number) for number in range(5)])

    asked = [content for _, role, content in rows(conversation) if role == "user"]
    assert asked == [f"question {number}" for number in range(5)]


def test_turns_of_other_conversations_do_not_wait(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    gemini.default.delay = 0.5
    others = [Api(f"user-{number}") for number in range(5)]
    opened = [api.open(coach)["id"] for api in others]
    started = time.monotonic()

    at_once(*[lambda api=api, to=to: send(api, to) for api, to in zip(others, opened, strict=True)])

    assert time.monotonic() - started < 2
    assert Turn.objects.filter(state="done").count() == 5
