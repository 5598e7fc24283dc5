"""POST …/messages/stream, and GET …/messages/{question}/stream: the answer as it is written."""

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from conversations import events
from conversations.live import here
from conversations.models import Conversation, Message, Turn
from personas.models import Influencer
from tests.conftest import Api, wait_until
from tests.conversations.test_races import assert_gapless, at_once, rows
from tests.fake_gemini import REPLY, Answer, FakeGemini, blocks, fails, says, streams
from yral_chat import ai

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "/api/v1/chat/conversations"
FRAME = re.compile(r"id: (?P<question>[0-9a-f-]{36})/(?P<number>\d+)\nevent: (?P<event>\w+)\ndata: (?P<data>.*)\n\n")


@pytest.fixture(autouse=True)
def as_in_a_running_service(gemini: FakeGemini) -> Iterator[None]:
    ai.warm_up()
    connection.close()
    yield
    wait_until(lambda: not here.all(), "a turn of this test still runs")
    connection.close()


@dataclass
class Event:
    number: int
    event: str
    data: dict[str, Any]


def open_stream(api: Api, conversation: Any, content: Any = "Hello!", *, key: str = "", **fields: Any) -> Any:
    body = {"message_type": "text", "content": content, **fields}
    path = f"{PATH}/{getattr(conversation, 'pk', conversation)}/messages/stream"
    headers = {**api.headers(), **({"Idempotency-Key": key} if key else {})}
    return api.client.post(path, body, content_type="application/json", headers=headers)


def follow(api: Api, conversation: Any, question_id: Any, last: str = "") -> Any:
    path = f"{PATH}/{getattr(conversation, 'pk', conversation)}/messages/{question_id}/stream"
    headers = {**api.headers(), **({"Last-Event-ID": last} if last else {})}
    return api.client.get(path, headers=headers)


def parsed(text: str, question_id: str) -> list[Event]:
    """Every byte belongs to a frame or to a comment."""
    found = []
    for block in text.split("\n\n")[:-1]:
        if block.startswith(":"):
            continue
        match = FRAME.fullmatch(block + "\n\n")
        assert match, block
        assert match["question"] == question_id
        found.append(Event(int(match["number"]), match["event"], json.loads(match["data"])))
    return found


def events_of(response: Any) -> list[Event]:
    assert response.status_code == 200, response.content
    return parsed(response.getvalue().decode(), response["X-Message-ID"])


def texts(found: list[Event]) -> list[str]:
    return [one.data["text"] for one in found if one.event == "token"]


def test_the_answer_comes_in_tokens_and_then_as_the_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("Start ", "small, ", "keep it ", "regular."))

    response = open_stream(alice, conversation)
    found = events_of(response)

    assert [one.event for one in found] == ["token"] * (len(found) - 1) + ["done"]
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert len(found) > 3
    assert all(one.data.keys() == {"text"} for one in found[:-1])
    assert "".join(texts(found)) == "Start small, keep it regular."
    done = found[-1].data
    assert done.keys() == {"user_message", "assistant_message", "provider", "model", "tokens", "blocked", "away"}
    assert (done["provider"], done["model"], done["tokens"], done["blocked"]) == (
        *("gemini", "gemini-2.5-flash", 16, False),
    )
    newest = alice.messages(conversation).json()["messages"]
    assert [done["assistant_message"], done["user_message"]] == newest[:2]
    assert response["X-Message-ID"] == done["user_message"]["id"]
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", "Start small, keep it regular.")]
    assert_gapless(conversation)


def test_the_headers_keep_proxies_from_holding_it_back(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    response = open_stream(alice, conversation)
    response.getvalue()

    assert response["Content-Type"] == "text/event-stream"
    assert response["Cache-Control"] == "no-cache, no-transform"
    assert response["X-Accel-Buffering"] == "no"
    assert "Content-Encoding" not in response
    assert "Content-Length" not in response


def test_the_headers_go_out_before_the_model_says_anything(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    released = threading.Event()
    gemini.will(streams("Hello", "!", gate=lambda n: released.wait(5)))

    response = open_stream(alice, conversation)
    came = iter(response)
    try:
        assert next(came).startswith(b":"), "a comment, which clients pass over"
        assert Message.objects.filter(role="user").count() == 1
    finally:
        released.set()
        list(came)


def test_tokens_arrive_while_the_model_still_writes(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    written, released = [], threading.Event()

    def gate(number: int) -> None:
        written.append(number)
        if number == 2:
            assert released.wait(5)

    gemini.will(streams("One. ", "Two. ", "Three.", gate=gate))
    response = open_stream(alice, conversation)
    came = iter(response)
    next(came)

    first = parsed(next(came).decode(), response["X-Message-ID"])
    assert "".join(texts(first)) in "One. Two."
    assert Turn.objects.get().state == "streaming"
    assert Turn.objects.get().finished_at is None
    released.set()
    list(came)
    assert Turn.objects.get().state == "done"


def test_a_quiet_stream_is_kept_alive_by_comments(
    alice: Api, conversation: Conversation, gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events.KEEP_ALIVE == 10
    monkeypatch.setattr(events, "KEEP_ALIVE", 0.1)
    gemini.will(streams("Hello!", gate=lambda n: time.sleep(0.5)))

    text = open_stream(alice, conversation).getvalue().decode()

    assert text.count(": alive\n\n") >= 3
    assert "event: done" in text


GRAPHEMES = ["👩‍👩‍👧‍👦", " ", "🇮🇳", "🇺🇸", " ", "न", "म", "स्ते", " ", "क्ष", "त्रि", "य", " ", "e\u0301", " ", "👍🏽", "!"]
EMOJI = "".join(GRAPHEMES)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_token_ends_inside_a_grapheme(alice: Api, conversation: Conversation, gemini: FakeGemini, size: int) -> None:
    pieces = [EMOJI[at : at + size] for at in range(0, len(EMOJI), size)]
    gemini.will(streams(*pieces))

    found = events_of(open_stream(alice, conversation))

    assert "".join(texts(found)) == EMOJI
    assert len(texts(found)) >= 10
    assert set(accumulate(map(len, texts(found)))) <= set(accumulate(map(len, GRAPHEMES)))


def test_space_around_the_answer_is_neither_sent_nor_stored(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams(" \n", "  Hello\n", "\nyou", " ", "\n "))

    found = events_of(open_stream(alice, conversation))

    assert "".join(texts(found)) == "Hello\n\nyou" == found[-1].data["assistant_message"]["content"]


def test_thoughts_are_no_tokens(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    answer = streams("Hello ", "you")
    assert answer.chunks
    answer.chunks.insert(0, {"candidates": [{"content": {"parts": [{"text": "Hmm, greet them.", "thought": True}]}}]})
    gemini.will(answer)

    found = events_of(open_stream(alice, conversation))

    assert "".join(texts(found)) == "Hello you"


# What comes before the stream is ordinary JSON


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), ({"message_type": "text"}, 422), ({"message_type": "image", "media_urls": ["bob/x.jpg"]}, 403)],
    ids=["malformed", "invalid", "a foreign file"],
)
def test_refusals_come_before_the_stream_opens(
    alice: Api, conversation: Conversation, gemini: FakeGemini, body: Any, status: int
) -> None:
    path = f"{PATH}/{conversation.pk}/messages/stream"
    response = alice.client.post(path, body, content_type="application/json", headers=alice.headers())

    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    assert set(response.json()) == {"error", "message", "details"}
    assert rows(conversation) == []
    assert gemini.requests == []


def test_nobody_streams_to_a_persona_that_was_retired(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    Influencer.objects.update(is_active="discontinued")

    response = open_stream(alice, conversation)

    assert (response.status_code, response.json()["message"]) == (404, "Influencer not found")


# What goes wrong while it is open


def error_of(response: Any) -> dict[str, Any]:
    found = events_of(response)
    assert [one.event for one in found].count("error") == 1
    assert found[-1].event == "error"
    assert found[-1].data.keys() == {"code", "message", "retryable"}
    return found[-1].data


@pytest.mark.parametrize(
    ("answers", "code", "retryable"),
    [
        ([fails(503)] * 4, "TRANSIENT", True),
        ([says("")] * 2, "TRANSIENT", True),
        ([streams("", finish="MAX_TOKENS")] * 2, "TRANSIENT", True),
        ([fails(400)], "NO_PROVIDER", False),
        ([fails(403)], "NO_PROVIDER", False),
    ],
    ids=["down", "empty", "cut before any text", "refuses the request", "refuses the key"],
)
def test_a_failure_is_an_error_event_and_the_question_is_kept(
    alice: Api, conversation: Conversation, gemini: FakeGemini, answers: list[Answer], code: str, retryable: bool
) -> None:
    gemini.will(*answers)

    response = open_stream(alice, conversation)
    error = error_of(response)

    assert (error["code"], error["retryable"]) == (code, retryable)
    assert "FAILED" not in error["message"]
    assert rows(conversation) == [(2, "user", "Hello!")]
    turn = Turn.objects.get()
    assert (turn.state, turn.error_code) == ("failed", code)
    again = events_of(open_stream(alice, conversation))
    assert again[-1].event == "done"
    assert again[-1].data["user_message"]["id"] == response["X-Message-ID"]
    assert len(rows(conversation)) == 2


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_stream_cut_by_the_model_stores_nothing_and_is_not_asked_again(
    alice: Api, conversation: Conversation, gemini: FakeGemini, after: int
) -> None:
    gemini.will(streams("One. ", "Two. ", "Three. ", "Four.", cut_after=after))

    found = events_of(open_stream(alice, conversation))

    assert (found[-1].event, found[-1].data["code"], found[-1].data["retryable"]) == ("error", "TRANSIENT", True)
    sent = "".join(texts(found))
    assert "One. Two. Three. Four.".startswith(sent)
    assert rows(conversation) == [(2, "user", "Hello!")]
    if sent:
        assert len(gemini.requests) == 1


def test_a_stream_that_ends_without_its_last_chunk_is_cut(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("One. ", "Two. ", finish=""))

    assert error_of(open_stream(alice, conversation))["code"] == "TRANSIENT"
    assert rows(conversation) == [(2, "user", "Hello!")]


@pytest.mark.parametrize(
    "chunk",
    [
        5,
        [1],
        {"candidates": [5]},
        {"candidates": [{"finishReason": 5}]},
        {"error": 5},
        {"error": {"code": "x"}},
        b"data: {\r\n\r\n",
    ],
    ids=str,
)
def test_a_chunk_that_makes_no_sense_is_a_failure_like_any_other(
    alice: Api, conversation: Conversation, gemini: FakeGemini, chunk: Any
) -> None:
    gemini.default = Answer(chunks=[chunk])

    error = error_of(open_stream(alice, conversation))

    assert (error["code"], error["retryable"]) == ("TRANSIENT", True)
    assert rows(conversation) == [(2, "user", "Hello!")]


def test_a_database_that_fails_at_the_end_of_a_turn_is_the_end_of_its_stream(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """Nobody is kept waiting; the answer is lost, and the question is asked again."""
    done = threading.Event()

    def gate(number: int) -> None:
        if number == 1:
            with connections["default"].cursor() as cursor:
                cursor.execute("ALTER TABLE turns RENAME TO turns_elsewhere")
            connections.close_all()
            done.set()

    gemini.will(streams("One. ", "Two.", gate=gate))
    try:
        found = events_of(open_stream(alice, conversation))
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE turns_elsewhere RENAME TO turns")

    assert done.is_set()
    assert found[-1].event == "error"
    assert found[-1].data["retryable"] is True


def test_an_empty_answer_is_asked_for_once_more(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(says(""), streams("Hello", "!"))

    assert events_of(open_stream(alice, conversation))[-1].event == "done"
    assert len(gemini.requests) == 2
    assert Turn.objects.get().attempts == 2


def test_a_blocked_question_is_done_with_the_deflection(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(blocks())

    (done,) = events_of(open_stream(alice, conversation))

    assert (done.event, done.data["blocked"], done.data["assistant_message"]["blocked"]) == ("done", True, True)
    assert Turn.objects.get().state == "blocked"
    assert [role for _, role, _ in rows(conversation)] == ["user", "assistant"]


def test_an_answer_blocked_on_its_way_is_an_error_and_the_deflection_is_stored(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("You take ", "a big ", "", finish="SAFETY"))

    response = open_stream(alice, conversation)
    found = events_of(response)

    assert (found[-1].event, found[-1].data["code"], found[-1].data["retryable"]) == ("error", "BLOCKED_CONTENT", False)
    answer = Message.objects.get(in_reply_to=response["X-Message-ID"])
    assert answer.blocked
    assert "You take" not in answer.content
    assert Turn.objects.get().state == "blocked"
    replay = events_of(follow(alice, conversation, response["X-Message-ID"]))
    assert [(one.number, one.event, one.data) for one in replay] == [(found[-1].number, "error", found[-1].data)]
    alice.send(conversation, "Something else")
    assert "You take" not in str(gemini.last.body)
    assert "Hello!" not in str(gemini.last.body)


def test_silence_before_the_first_token_ends_the_stream(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 1
    gemini.will(streams("late", gate=lambda n: time.sleep(2)))
    started = time.monotonic()

    assert error_of(open_stream(alice, conversation))["code"] == "TRANSIENT"
    assert time.monotonic() - started < 1.5


def test_silence_between_tokens_ends_the_stream(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    settings.STREAM_GAP_SECONDS = 0.6
    gemini.will(streams("One. ", "Two. ", "Three.", gate=lambda n: time.sleep(2 if n == 2 else 0)))
    started = time.monotonic()

    found = events_of(open_stream(alice, conversation))

    assert (texts(found)[0][:3], found[-1].event) == ("One", "error")
    assert time.monotonic() - started < 1.5


def test_a_stream_may_last_longer_than_a_turn_but_not_for_ever(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS, settings.STREAM_TIMEOUT_SECONDS = 1, 2
    gemini.will(streams(*["word "] * 14, pause=0.1), streams(*["word "] * 60, pause=0.1))

    assert events_of(open_stream(alice, conversation, "one"))[-1].event == "done"
    assert events_of(open_stream(alice, conversation, "two"))[-1].event == "error"


def test_deleted_while_it_streams_it_is_an_error_and_nothing_is_stored(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    def gate(number: int) -> None:
        if number == 1:
            at_once(lambda: alice.delete(f"{PATH}/{conversation.pk}"))

    gemini.will(streams("One. ", "Two.", gate=gate))

    error = error_of(open_stream(alice, conversation))

    assert (error["code"], error["message"], error["retryable"]) == ("UNKNOWN", "Conversation not found", False)
    assert not Message.objects.exists()
    assert not Turn.objects.exists()


# The answer belongs to the database


@pytest.mark.parametrize("read", [0, 1, 2, 3])
def test_who_leaves_loses_nothing_and_goes_on_where_it_left(
    alice: Api, conversation: Conversation, gemini: FakeGemini, read: int
) -> None:
    left = threading.Event()
    gemini.will(streams("One. ", "Two. ", "Three. ", "Four.", gate=lambda n: left.wait(5) if n == 3 else None))
    response = open_stream(alice, conversation)
    came, text = iter(response), ""
    while len(seen := parsed(text, response["X-Message-ID"])) < min(read, 2):
        text += next(came).decode()
    response.close()
    left.set()
    wait_until(lambda: Turn.objects.get().state == "done")
    connection.close()

    last = f"{response['X-Message-ID']}/{seen[-1].number}" if seen else ""
    rest = events_of(follow(alice, conversation, response["X-Message-ID"], last))

    assert "".join(texts([*seen, *rest])) == "One. Two. Three. Four."
    assert [one.number for one in (*seen, *rest)] == list(range(1, len(seen) + len(rest) + 1))
    assert rest[-1].event == "done"
    assert rows(conversation)[-1] == (3, "assistant", "One. Two. Three. Four.")


def test_a_running_answer_can_be_joined_and_both_get_all_of_it(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    joined = threading.Event()
    gemini.will(streams("One. ", "Two. ", "Three.", gate=lambda n: joined.wait(5) if n == 2 else None))
    response = open_stream(alice, conversation)
    came = iter(response)
    text = next(came).decode() + next(came).decode()

    second = follow(alice, conversation, response["X-Message-ID"])
    joined.set()

    found = events_of(second)
    text += b"".join(came).decode()
    assert parsed(text, response["X-Message-ID"]) == found
    assert "".join(texts(found)) == "One. Two. Three."


def test_a_replay_is_the_stream_as_it_was(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(streams("One. ", "Two 👩‍👩‍👧‍👦. ", "Three."))
    response = open_stream(alice, conversation)
    question, first = response["X-Message-ID"], events_of(response)

    assert events_of(follow(alice, conversation, question)) == first
    for number in range(len(first) + 1):
        assert events_of(follow(alice, conversation, question, f"{question}/{number}")) == first[number:]
    assert events_of(open_stream(alice, conversation, client_message_id=None)) != first, "it's a new message"


def test_an_ordinary_turn_replays_as_one_token(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    turn = alice.send(conversation).json()

    token, done = events_of(follow(alice, conversation, turn["user_message"]["id"]))

    assert (token.data, done.event) == ({"text": REPLY}, "done")
    assert done.data["assistant_message"] == turn["assistant_message"]


def test_an_ordinary_turn_can_be_joined_while_it_runs(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    joined, asked = threading.Event(), threading.Event()

    def before() -> None:
        asked.set()
        assert joined.wait(5)

    answer = says("Hello you")
    answer.before = before
    gemini.will(answer)

    def join() -> Any:
        assert asked.wait(5)
        response = follow(alice, conversation, Message.objects.get(role="user").pk)
        joined.set()
        return events_of(response)

    sent, found = at_once(lambda: alice.send(conversation), join)

    assert sent.status_code == 200
    assert [one.event for one in found] == ["token", "done"]
    assert texts(found) == ["Hello you"]


def test_a_failed_turn_replays_its_error(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(fails(400))
    response = open_stream(alice, conversation)
    found = events_of(response)

    assert events_of(follow(alice, conversation, response["X-Message-ID"])) == found


def test_who_left_is_told_that_the_answer_failed_after_all_that_was_sent(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """A failed answer's tokens are not kept: its end has a number above theirs all the same."""
    gemini.will(streams("One. ", "Two. ", "Three.", cut_after=2))
    response = open_stream(alice, conversation)
    *tokens, end = events_of(response)

    last = f"{response['X-Message-ID']}/{tokens[-1].number}"
    assert events_of(follow(alice, conversation, response["X-Message-ID"], last)) == [end]


def test_the_numbers_go_on_rising_in_the_next_attempt(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("One. ", "Two. ", "Three.", cut_after=2))
    first = events_of(open_stream(alice, conversation))

    response = open_stream(alice, conversation)
    second = events_of(response)

    assert first[-1].number < second[0].number
    last = f"{response['X-Message-ID']}/{first[-1].number}"
    assert events_of(follow(alice, conversation, response["X-Message-ID"], last)) == second


@pytest.mark.parametrize(
    "last", ["7", "x/1", "{other}/1", "{question}", "{question}/-1", "{question}/1.5", "{question}/1/2"]
)
def test_a_last_event_id_of_something_else_is_422(
    alice: Api, conversation: Conversation, gemini: FakeGemini, last: str
) -> None:
    question = alice.send(conversation).json()["user_message"]["id"]

    response = follow(
        alice, conversation, question, last.format(question=question, other="0" * 8 + "-0000-0000-0000-" + "0" * 12)
    )

    assert response.status_code == 422
    assert response.json()["details"]["errors"][0]["loc"] == ["header", "Last-Event-ID"]


# Among other turns


def test_a_stream_repeated_after_a_failed_send_continues_it_and_the_other_way_round(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400), streams("Hello!"), fails(400), says("Hello again!"))

    assert alice.send(conversation, "one").status_code == 503
    assert events_of(open_stream(alice, conversation, "one"))[-1].event == "done"
    assert events_of(open_stream(alice, conversation, "two"))[-1].event == "error"
    assert alice.send(conversation, "two").status_code == 200
    assert [content for _, _, content in rows(conversation)] == ["one", "Hello!", "two", "Hello again!"]


def test_two_streams_of_the_same_message_are_one_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.default = streams("One. ", "Two.", pause=0.3)

    first, second = at_once(*[lambda: events_of(open_stream(alice, conversation))] * 2)

    assert first == second
    assert len(gemini.requests) == 1


def test_a_send_of_what_is_streaming_waits_for_it(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(streams("One. ", "Two.", pause=0.5))
    response = open_stream(alice, conversation)

    turn = alice.send(conversation).json()

    assert turn["user_message"]["id"] == response["X-Message-ID"]
    assert turn["assistant_message"]["content"] == "One. Two."
    assert events_of(response)[-1].data["assistant_message"] == turn["assistant_message"]


def test_another_message_waits_till_the_stream_has_ended_and_sees_all_of_it(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("One. ", "Two.", pause=0.5))
    response = open_stream(alice, conversation, "first")

    assert alice.send(conversation, "second").status_code == 200

    assert events_of(response)[-1].event == "done"
    assert [content for _, _, content in rows(conversation)] == ["first", "One. Two.", "second", REPLY]
    assert gemini.last.texts[-2] == ("model", ["One. Two."])


def test_a_stream_that_cannot_begin_in_time_is_a_plain_409(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 1.5
    gemini.will(streams("One. ", "Two.", gate=lambda n: time.sleep(3 if n else 0)))
    running = open_stream(alice, conversation, "first")
    wait_until(lambda: Turn.objects.get().state == "streaming")

    refused = open_stream(alice, conversation, "second")

    assert refused.status_code == 409
    assert (refused.json()["error"], refused.json()["details"]) == ("conflict", {"reason": "turn_in_progress"})
    assert [content for _, _, content in rows(conversation)] == ["first"]
    running.getvalue()


def test_pictures_and_voice_notes_can_be_streamed_to(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    body: dict[str, Any] = {"message_type": "multimodal", "media_urls": ["https://example.com/a.jpg"]}

    found = events_of(open_stream(alice, conversation, "Look", **body))

    assert found[-1].data["user_message"]["media_urls"] == ["https://example.com/a.jpg"]
    assert found[-1].data["user_message"]["message_type"] == "multimodal"


def test_without_a_key_the_offline_engine_streams_too(alice: Api, conversation: Conversation, settings: Any) -> None:
    settings.GEMINI_API_KEY = ""

    found = events_of(open_stream(alice, conversation))

    assert found[-1].data["provider"] == "offline"
    assert len(texts(found)) > 5
    assert "".join(texts(found)) == found[-1].data["assistant_message"]["content"]


@pytest.mark.django_db(transaction=True)
def test_a_streamed_answer_shows_that_the_model_is_well_again(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(403))
    assert alice.send(conversation, "one").status_code == 503
    assert alice.get("/health").json()["services"]["gemini_api"]["status"] == "down"

    gemini.will(streams("Back ", "again."))
    body = {"message_type": "text", "content": "two"}
    path = f"/api/v1/chat/conversations/{conversation.pk}/messages/stream"
    streamed = alice.client.post(path, body, content_type="application/json", headers=alice.headers())
    assert b"event: done" in streamed.getvalue()

    assert alice.get("/health").json()["services"]["gemini_api"]["status"] == "up"


# A persona that is away


def test_an_away_message_is_one_piece_and_a_replay_tells_the_same(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    Influencer.objects.update(paused_at=timezone.now(), away_message="Back at six!")

    response = open_stream(alice, conversation)
    found = events_of(response)

    assert texts(found) == ["Back at six!"]
    assert (found[-1].event, found[-1].data["away"], found[-1].data["tokens"]) == ("done", True, 0)
    assert gemini.requests == []
    turn = f"{PATH}/{conversation.pk}/messages/{response['X-Message-ID']}"
    assert events_of(alice.get(f"{turn}/stream")) == found
    stopped = alice.post(f"{turn}/stop", None).json()
    assert (stopped["away"], stopped["stopped"]) == (True, False)
