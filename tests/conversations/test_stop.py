"""POST …/messages/{question}/stop: the text so far is kept."""

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection

from conversations.live import here
from conversations.models import Conversation, Message, Turn
from tests.conftest import Api, wait_until
from tests.conversations.media import record
from tests.conversations.test_races import assert_gapless, at_once, rows, slowly
from tests.conversations.test_stream import (
    PATH,
    as_in_a_running_service,
    events_of,
    follow,
    open_stream,
    parsed,
    texts,
)
from tests.fake_gemini import REPLY, Answer, FakeGemini, fails, says, streams

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["as_in_a_running_service"]


def stop(api: Api, conversation: Any, question_id: Any) -> Any:
    return api.post(f"{PATH}/{getattr(conversation, 'pk', conversation)}/messages/{question_id}/stop", {})


def held(*chunks: str, at: int, seconds: float = 5) -> tuple[Answer, threading.Event]:
    """A stream that comes no further than chunk `at` till the event is set."""
    released = threading.Event()
    return streams(*chunks, gate=lambda n: released.wait(seconds) if n == at else None), released


def stopped_before_its_text(api: Api, conversation: Any, gemini: FakeGemini) -> str:
    """The id of the question. Its stream has been read to the end."""
    answer, released = held("One.", at=0)
    gemini.will(answer)
    response = open_stream(api, conversation)
    wait_until(lambda: gemini.requests)
    stop(api, conversation, response["X-Message-ID"])
    released.set()
    response.getvalue()
    return str(response["X-Message-ID"])


def test_the_text_so_far_is_kept_and_marked(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    answer, released = held("One. ", "Two. ", "Three. ", "Four.", at=2)
    gemini.will(answer)
    response = open_stream(alice, conversation)
    wait_until(lambda: Turn.objects.get().state == "streaming")
    came = iter(response)
    text = next(came).decode() + next(came).decode()
    started = time.monotonic()

    stopped = stop(alice, conversation, response["X-Message-ID"])

    assert time.monotonic() - started < 1
    released.set()
    assert stopped.status_code == 200, stopped.content
    body = stopped.json()
    assert body.keys() == {"user_message", "assistant_message", "blocked", "away", "stopped"}
    assert (body["stopped"], body["blocked"]) == (True, False)
    assert body["assistant_message"]["stopped"] is True
    kept = body["assistant_message"]["content"]
    assert "One. Two. Three.".startswith(kept)
    assert kept.startswith("One.")
    found = parsed(text + b"".join(came).decode(), response["X-Message-ID"])
    assert "".join(texts(found)) == kept, "what went out is what is stored"
    assert found[-1].event == "done"
    assert found[-1].data["stopped"] is True
    assert found[-1].data["assistant_message"] == body["assistant_message"]
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", kept)]
    assert_gapless(conversation)


def test_the_tokens_of_a_stopped_turn_are_counted(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    answer, released = held("One. ", "Two. ", "Three.", at=2)
    gemini.will(answer)
    response = open_stream(alice, conversation)
    wait_until(lambda: Turn.objects.get().state == "streaming")
    time.sleep(0.1)
    stop(alice, conversation, response["X-Message-ID"])
    released.set()
    response.getvalue()

    turn = Turn.objects.get()
    assert (turn.state, turn.finish_reason, turn.attempts) == ("stopped", "STOPPED", 1)
    assert (turn.prompt_tokens, turn.output_tokens, turn.total_tokens) == (40, 8, 48)
    assert turn.cost_usd
    assert turn.ms_to_first_token is not None
    assert Message.objects.get(role="assistant", stopped=True).token_count == 8


def test_the_models_connection_is_hung_up(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(streams(*["word "] * 200, pause=0.05))
    response = open_stream(alice, conversation)
    wait_until(lambda: Turn.objects.get().state == "streaming")

    stop(alice, conversation, response["X-Message-ID"])
    response.getvalue()

    wait_until(lambda: gemini.hung_up == 1, "the model still writes")


def test_with_no_text_yet_nothing_is_stored(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    answer, released = held("One.", at=0)
    gemini.will(answer)
    response = open_stream(alice, conversation)
    wait_until(lambda: gemini.requests)

    stopped = stop(alice, conversation, response["X-Message-ID"]).json()

    released.set()
    assert (stopped["stopped"], stopped["assistant_message"]) == (True, None)
    assert stopped["user_message"]["id"] == response["X-Message-ID"]
    (done,) = events_of(response)
    assert (done.event, done.data["stopped"], done.data["assistant_message"]) == ("done", True, None)
    assert rows(conversation) == [(2, "user", "Hello!")]
    assert Turn.objects.get().state == "stopped"
    (replayed,) = events_of(follow(alice, conversation, response["X-Message-ID"]))
    assert replayed == done


def test_a_message_stopped_before_its_answer_can_be_sent_again(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    question = stopped_before_its_text(alice, conversation, gemini)

    turn = alice.send(conversation).json()

    assert turn["user_message"]["id"] == question
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", REPLY)]
    assert Turn.objects.get().state == "done"


def test_another_message_can_be_sent_at_once_after_a_stop(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    answer, released = held("One.", at=0)
    gemini.will(answer)
    response = open_stream(alice, conversation, "first")
    wait_until(lambda: gemini.requests)
    stop(alice, conversation, response["X-Message-ID"])
    started = time.monotonic()

    assert alice.send(conversation, "second").status_code == 200

    assert time.monotonic() - started < 2
    released.set()
    response.getvalue()


def test_stopping_twice_says_the_same(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    answer, released = held("One. ", "Two. ", "Three.", at=2)
    gemini.will(answer)
    response = open_stream(alice, conversation)
    wait_until(lambda: Turn.objects.get().state == "streaming")

    first, second = at_once(*[lambda: stop(alice, conversation, response["X-Message-ID"]).json()] * 2)
    released.set()
    response.getvalue()

    assert first == second == stop(alice, conversation, response["X-Message-ID"]).json()
    assert first["stopped"] is True


def test_a_turn_that_has_ended_stays_as_it_is(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    turn = alice.send(conversation).json()

    stopped = stop(alice, conversation, turn["user_message"]["id"])

    assert stopped.status_code == 200
    assert stopped.json() == {**turn, "stopped": False}
    assert Turn.objects.get().state == "done"


def test_a_failed_turn_stays_failed(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(*[says("")] * 2)
    response = open_stream(alice, conversation)
    response.getvalue()

    stopped = stop(alice, conversation, response["X-Message-ID"]).json()

    assert (stopped["assistant_message"], stopped["stopped"]) == (None, False)
    assert Turn.objects.get().state == "failed"


def test_a_turn_stopped_before_its_first_token_is_recorded_too(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    stopped_before_its_text(alice, conversation, gemini)

    wait_until(lambda: Turn.objects.get().attempts == 1)
    turn = Turn.objects.get()
    assert (turn.state, turn.finish_reason, turn.model) == ("stopped", "STOPPED", "gemini-2.5-flash")
    assert turn.sent["messages"]


def test_a_turn_is_stopped_while_its_voice_note_is_written_down(
    alice: Api, conversation: Conversation, gemini: FakeGemini, media_folder: Path
) -> None:
    gemini.will(slowly("never heard", 6))
    note = record(alice)
    response = open_stream(alice, conversation, None, message_type="audio", audio_url=note)
    wait_until(lambda: gemini.requests)
    started = time.monotonic()

    stop(alice, conversation, response["X-Message-ID"])

    (done,) = events_of(response)
    assert time.monotonic() - started < 1
    assert done.data["stopped"] is True
    wait_until(lambda: not here.all())
    assert Message.objects.get(role="user").metadata.get("transcription") is None, "it can be listened to later"


def test_a_turn_is_stopped_between_two_tries(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.default = fails(503)
    response = open_stream(alice, conversation)
    wait_until(lambda: len(gemini.requests) >= 2)
    started = time.monotonic()

    stop(alice, conversation, response["X-Message-ID"])

    assert events_of(response)[-1].data["stopped"] is True
    wait_until(lambda: not here.all())
    assert time.monotonic() - started < 0.7


def test_an_ordinary_send_can_be_stopped_and_is_told(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    asked = threading.Event()
    gemini.will(slowly("late", 5, before=asked.set))

    def halt() -> Any:
        assert asked.wait(5)
        return stop(alice, conversation, Message.objects.get(role="user").pk)

    started = time.monotonic()
    sent, stopped = at_once(lambda: alice.send(conversation), halt)

    assert time.monotonic() - started < 3
    assert stopped.json()["stopped"] is True
    assert sent.status_code == 409
    assert sent.json()["details"] == {"reason": "stopped"}
    assert rows(conversation) == [(2, "user", "Hello!")]


def test_a_stop_that_races_the_end_leaves_one_true_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """Whoever is first in the database wins, and everybody tells the same."""

    def stop_later(api: Api, question: str, seconds: float) -> Any:
        time.sleep(seconds)
        return stop(api, conversation, question).json()

    endings = set()
    for number in range(12):
        gemini.will(streams("One. ", "Two. ", "Three.", pause=0.02))
        response = open_stream(alice, conversation, f"question {number}")
        question = response["X-Message-ID"]
        found, stopped = at_once(partial(events_of, response), partial(stop_later, alice, question, 0.01 * number))
        answer = Message.objects.filter(in_reply_to=question).first()
        done = found[-1].data
        assert found[-1].event == "done"
        assert done["assistant_message"] == stopped["assistant_message"]
        assert done.get("stopped", False) == stopped["stopped"]
        assert "".join(texts(found)) == (answer.content if answer else "")
        assert Turn.objects.get(pk=question).state == ("stopped" if stopped["stopped"] else "done")
        endings.add(Turn.objects.get(pk=question).state)
    assert_gapless(conversation)
    assert not Conversation.objects.exclude(running_token=None).exists()
    assert endings == {"stopped", "done"}


def test_only_a_question_of_this_conversation_can_be_stopped(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    turn = alice.send(conversation).json()

    for unknown in (uuid4(), turn["assistant_message"]["id"], "no-uuid"):
        assert stop(alice, conversation, unknown).status_code == 404
    connection.close()
