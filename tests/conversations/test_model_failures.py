"""The model is down, slow, blocked or talks nonsense: 503 and the question kept, or a deflection that is marked."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from conversations.models import Conversation, Message
from conversations.turns import DEFLECTION
from personas.models import Influencer
from tests.conftest import CANARY, Api
from tests.fake_gemini import REPLY, Answer, FakeGemini, blocks, fails, says
from yral_chat import ai

GREETING = ("assistant", "Hi, I'm your coach!")


@pytest.fixture
def one_attempt(gemini: FakeGemini, settings: Any) -> None:
    """The limit of a turn: enough for one attempt. The client is made before, as in a running service."""
    settings.GEMINI_TIMEOUT_SECONDS = 0.75
    ai.warm_up()


@pytest.fixture
def two_attempts(gemini: FakeGemini, settings: Any) -> None:
    """Time for a retry, and hardly for a third attempt."""
    settings.GEMINI_TIMEOUT_SECONDS = 1.5
    ai.warm_up()


def stored(conversation: Any) -> list[tuple[str, str]]:
    return list(Message.objects.of(conversation.pk).order_by("sequence").values_list("role", "content"))


def assert_kept_without_an_answer(response: Any, conversation: Conversation) -> None:
    """503, worth trying again, nothing told of the inside; the question and only the question is stored."""
    assert response.status_code == 503, response.content
    answer = response.json()
    assert answer["error"] == "ai_service_unavailable"
    assert answer["message"]
    assert answer["details"] == {}
    assert 1 <= int(response["Retry-After"]) <= 60
    assert "Simulated" not in response.content.decode()
    assert stored(conversation) == [GREETING, ("user", "Hello!")]
    conversation.refresh_from_db()
    assert conversation.message_count == 2


def candidates(*values: Any) -> Answer:
    return Answer({"candidates": list(values)})


# Down


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_a_model_that_stays_down_is_503_and_the_question_is_kept(
    alice: Api, conversation: Conversation, gemini: FakeGemini, two_attempts: None, status: int
) -> None:
    gemini.default = fails(status)

    assert_kept_without_an_answer(alice.send(conversation), conversation)
    assert len(gemini.requests) > 1, "it is worth more than one try"


def test_it_gives_up_after_a_few_attempts(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    """With the whole of the limit left."""
    gemini.default = fails(503)
    started = time.monotonic()

    assert_kept_without_an_answer(alice.send(conversation), conversation)
    assert 2 <= len(gemini.requests) <= 6
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_of_our_request_is_not_tried_again(
    alice: Api, conversation: Conversation, gemini: FakeGemini, status: int
) -> None:
    gemini.default = fails(status)

    assert_kept_without_an_answer(alice.send(conversation), conversation)
    assert len(gemini.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_after_one_failure_one_retry_answers(
    alice: Api, conversation: Conversation, gemini: FakeGemini, status: int
) -> None:
    gemini.will(fails(status))

    response = alice.send(conversation)

    assert response.status_code == 200
    assert response.json()["assistant_message"]["content"] == REPLY
    assert len(gemini.requests) == 2
    assert gemini.requests[0].body == gemini.requests[1].body
    assert stored(conversation) == [GREETING, ("user", "Hello!"), ("assistant", REPLY)]


def test_after_one_reset_connection_one_retry_answers(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(Answer(drop=True))

    assert alice.send(conversation).status_code == 200
    assert len(gemini.requests) == 2
    assert stored(conversation) == [GREETING, ("user", "Hello!"), ("assistant", REPLY)]


def test_a_kept_connection_that_went_stale_is_no_failure(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    alice.send(conversation, "one")
    gemini.will(Answer(drop=True))

    assert alice.send(conversation, "two").status_code == 200


def test_connections_that_are_always_reset_are_a_model_that_is_down(
    alice: Api, conversation: Conversation, gemini: FakeGemini, two_attempts: None
) -> None:
    gemini.default = Answer(drop=True)

    assert_kept_without_an_answer(alice.send(conversation), conversation)
    assert len(gemini.requests) > 1


def test_a_model_that_nobody_answers_for_is_down(
    alice: Api, conversation: Conversation, settings: Any, one_attempt: None
) -> None:
    settings.GEMINI_BASE_URL = "http://127.0.0.1:9"

    assert_kept_without_an_answer(alice.send(conversation), conversation)


def test_the_conversation_goes_on_when_the_model_is_back(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    alice.send(conversation, "one")

    assert alice.send(conversation, "two").status_code == 200
    assert [role for role, _ in stored(conversation)] == ["assistant", "user", "user", "assistant"]


# Slow


def within(seconds: float, call: Callable[[], Any]) -> Any:
    started = time.monotonic()
    response = call()
    took = time.monotonic() - started
    assert took < seconds, f"the turn took {took:.1f} s"
    return response


def test_a_model_that_hangs_is_given_up_in_time(
    alice: Api, conversation: Conversation, gemini: FakeGemini, one_attempt: None
) -> None:
    gemini.default = says(REPLY)
    gemini.default.delay = 3

    assert_kept_without_an_answer(within(1.5, lambda: alice.send(conversation)), conversation)


def test_the_limit_holds_for_all_attempts_together(
    alice: Api, conversation: Conversation, gemini: FakeGemini, two_attempts: None
) -> None:
    gemini.default = fails(503)
    gemini.default.delay = 0.3

    assert_kept_without_an_answer(within(2.2, lambda: alice.send(conversation)), conversation)


def test_a_retry_gets_only_the_time_that_is_left(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 1.5
    ai.warm_up()
    slow = says(REPLY)
    slow.delay = 3
    gemini.will(fails(503), slow)

    assert_kept_without_an_answer(within(2.2, lambda: alice.send(conversation)), conversation)
    assert len(gemini.requests) == 2


def test_an_answer_that_trickles_in_ends_with_the_limit(
    alice: Api, conversation: Conversation, gemini: FakeGemini, one_attempt: None
) -> None:
    gemini.default = says(REPLY)
    gemini.default.trickle = 0.05

    assert_kept_without_an_answer(within(1.5, lambda: alice.send(conversation)), conversation)


def test_an_answer_whose_head_trickles_in_ends_with_the_limit(
    alice: Api, conversation: Conversation, gemini: FakeGemini, one_attempt: None
) -> None:
    gemini.default = says(REPLY)
    gemini.default.trickle_head = 0.04

    assert_kept_without_an_answer(within(1.5, lambda: alice.send(conversation)), conversation)


def test_a_slow_answer_within_the_limit_is_an_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini, one_attempt: None
) -> None:
    slow = says(REPLY)
    slow.delay = 0.2
    gemini.will(slow)

    assert alice.send(conversation).status_code == 200
    assert len(gemini.requests) == 1


# Nonsense


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b""),
        Answer(b"not json"),
        Answer(b'{"candidates": ['),
        Answer(b"\xff\xfe\xfd"),
        Answer(b"<html>Bad gateway</html>"),
        Answer([]),
        Answer([1, 2]),
        Answer(None),
        Answer("text"),
        Answer(7),
        Answer(True),
        Answer({}),
        Answer({"candidates": None}),
        Answer({"candidates": []}),
        Answer({"candidates": {}}),
        Answer({"candidates": {"0": {}}}),
        Answer({"candidates": "text"}),
        Answer({"candidates": 7}),
        candidates(None),
        candidates("text"),
        candidates(["text"]),
        candidates({}),
        candidates({"content": None}),
        candidates({"content": "text"}),
        candidates({"content": []}),
        candidates({"content": [1]}),
        candidates({"content": {"parts": None}}),
        candidates({"content": {"parts": []}}),
        candidates({"content": {"parts": "text"}}),
        candidates({"content": {"parts": 7}}),
        candidates({"content": {"parts": {"text": "a"}}}),
        candidates({"content": {"parts": [None]}}),
        candidates({"content": {"parts": ["text"]}}),
        candidates({"content": {"parts": [{"text": None}]}}),
        candidates({"content": {"parts": [{"text": 7}]}}),
        candidates({"content": {"parts": [{"text": ["a"]}]}}),
        candidates({"content": {"parts": [{"text": {"a": "b"}}]}}),
        candidates({"content": {"parts": [{"inlineData": {"data": "QUJD"}}]}, "finishReason": "STOP"}),
        candidates({"content": {"parts": [{"functionCall": {"name": "f"}}]}, "finishReason": "STOP"}),
        candidates({"finishReason": "STOP"}),
        candidates({"finishReason": "OTHER"}),
        candidates({"finishReason": "MALFORMED_FUNCTION_CALL"}),
        candidates({"finishReason": ["MAX_TOKENS"]}),
        Answer({"candidates": [{"content": {"parts": [{"text": "a"}]}}], "usageMetadata": "many"}),
        Answer({"candidates": [{"content": {"parts": [{"text": "a"}]}}], "promptFeedback": ["SAFETY"]}),
        says(""),
        says("  \n "),
        says("", finish="MAX_TOKENS"),
        says("", thought="I think about it."),
        says("", thought="I think about it.", finish="MAX_TOKENS"),
    ],
    ids=lambda answer: repr(answer.body)[:60],
)
def test_an_answer_with_nothing_to_show_is_a_failure(
    alice: Api, conversation: Conversation, gemini: FakeGemini, answer: Answer
) -> None:
    gemini.default = answer

    assert_kept_without_an_answer(alice.send(conversation), conversation)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"<html>",
        [],
        [{"error": {"code": 503}}],
        [1, 2],
        None,
        "text",
        7,
        {},
        {"error": None},
        {"error": "text"},
        {"error": []},
        {"error": {"code": "x", "status": 7, "message": ["a"]}},
    ],
    ids=repr,
)
@pytest.mark.parametrize("status", [503, 400])
def test_an_error_of_any_shape_is_a_failure(
    alice: Api, conversation: Conversation, gemini: FakeGemini, one_attempt: None, status: int, body: Any
) -> None:
    gemini.default = Answer(body, status=status)

    assert_kept_without_an_answer(alice.send(conversation), conversation)


@pytest.mark.parametrize("status", [201, 204, 301, 302, 304])
def test_another_status_is_a_failure_and_no_redirect_is_followed(
    alice: Api, conversation: Conversation, gemini: FakeGemini, one_attempt: None, status: int
) -> None:
    gemini.default = Answer(b"" if status in (204, 304) else says(REPLY).body, status=status)

    assert_kept_without_an_answer(alice.send(conversation), conversation)


@pytest.mark.parametrize("count", ["12", -5, 2**40, 1.5, True, [12], {"a": 1}], ids=repr)
def test_a_token_count_that_is_none_costs_no_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini, count: Any
) -> None:
    answer = says("Hi.")
    answer.body["usageMetadata"]["candidatesTokenCount"] = count
    gemini.will(answer)

    response = alice.send(conversation)

    assert response.status_code == 200, response.content
    assert response.json()["assistant_message"]["content"] == "Hi."
    assert response.json()["assistant_message"]["token_count"] is None


def test_a_null_character_in_an_answer_is_no_crash(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    """PostgreSQL stores none; SQLite would, and clients cut texts at it."""
    gemini.default = says("Hello\x00 there")

    response = alice.send(conversation)

    assert response.status_code in (200, 503), response.content
    assert "\x00" not in json.dumps(stored(conversation), ensure_ascii=False)
    if response.status_code == 200:
        assert "\x00" not in response.json()["assistant_message"]["content"]


def test_a_finish_reason_and_model_of_any_length_are_no_crash(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(says("Hi.", finish="X" * 5000))

    assert alice.send(conversation).status_code == 200


# Cut, thought


def test_what_was_said_before_the_tokens_ran_out_is_kept(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(says("First, warm", finish="MAX_TOKENS"))

    assert alice.send(conversation).json()["assistant_message"]["content"] == "First, warm"
    assert stored(conversation)[-1] == ("assistant", "First, warm")


def test_thoughts_are_never_shown(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(says("Hi.", thought="The user is probably sad."))

    response = alice.send(conversation)

    assert response.json()["assistant_message"]["content"] == "Hi."
    assert stored(conversation)[-1] == ("assistant", "Hi.")
    assert not Message.objects.filter(metadata__icontains="probably sad").exists()


def test_the_parts_of_an_answer_are_one_text(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    answer = says("")
    answer.body["candidates"][0]["content"]["parts"] = [{"text": "One, "}, {"text": "two."}, {"text": ""}]
    gemini.will(answer)

    assert alice.send(conversation).json()["assistant_message"]["content"] == "One, two."


# Blocked

BLOCKED = [
    blocks(),
    Answer({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
    Answer({"promptFeedback": {"blockReason": "OTHER"}, "candidates": []}),
    candidates({"finishReason": "SAFETY", "index": 0}),
    candidates({"finishReason": "SAFETY", "content": {}}),
    says("Something half said that must", finish="SAFETY"),
    says("", finish="PROHIBITED_CONTENT"),
    says("", finish="BLOCKLIST"),
    says("", finish="RECITATION"),
    says("", finish="SPII"),
]


@pytest.mark.parametrize("answer", BLOCKED, ids=lambda answer: repr(answer.body)[:70])
def test_a_blocked_turn_is_answered_with_a_deflection_that_is_marked(
    alice: Api, conversation: Conversation, gemini: FakeGemini, answer: Answer
) -> None:
    gemini.will(answer)

    response = alice.send(conversation)

    assert response.status_code == 200, response.content
    turn = response.json()
    assert turn["blocked"] is True
    assert turn["assistant_message"]["blocked"] is True
    assert turn["user_message"]["blocked"] is False
    assert turn["assistant_message"]["content"] == DEFLECTION
    assert turn["assistant_message"]["message_type"] == "text"
    assert stored(conversation) == [GREETING, ("user", "Hello!"), ("assistant", DEFLECTION)]
    assert Message.objects.get(blocked=True).content == DEFLECTION
    assert "half said" not in response.content.decode()
    assert len(gemini.requests) == 1
    assert alice.messages(conversation).json()["messages"][0]["blocked"] is True


def test_the_deflection_is_the_personas_own(
    alice: Api, make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    opened = alice.open(make_influencer(deflection="  Let's get back to your training!  "))
    gemini.will(blocks())

    turn = alice.send(opened["id"]).json()

    assert turn["assistant_message"]["content"] == "Let's get back to your training!"
    assert Message.objects.get(blocked=True).content == "Let's get back to your training!"


def test_a_blank_deflection_is_the_default_sentence(
    alice: Api, make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    opened = alice.open(make_influencer(deflection="  "))
    gemini.will(blocks())

    assert alice.send(opened["id"]).json()["assistant_message"]["content"] == DEFLECTION


def test_the_turn_after_a_blocked_one_is_an_ordinary_one(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(blocks())
    alice.send(conversation, "one")

    turn = alice.send(conversation, "two").json()

    assert turn["blocked"] is False
    assert turn["assistant_message"]["content"] == REPLY


# Secrets


def test_the_key_travels_in_a_header_and_never_in_the_address(
    alice: Api, conversation: Conversation, gemini: FakeGemini, settings: Any
) -> None:
    alice.send(conversation)

    assert gemini.last.headers["x-goog-api-key"] == settings.GEMINI_API_KEY
    assert settings.GEMINI_API_KEY not in gemini.last.path
    assert "key=" not in gemini.last.path
    assert settings.GEMINI_API_KEY not in json.dumps(gemini.last.body)


@pytest.mark.parametrize(
    "answer",
    [
        says(REPLY),
        blocks(),
        fails(503),
        fails(400, f"API key not valid: test-key-that-must-never-be-logged. Your prompt was: {CANARY}"),
        fails(429, f"test-key-that-must-never-be-logged {CANARY}"),
        Answer(f"not json {CANARY}".encode()),
        Answer({"candidates": [CANARY]}),
        Answer(drop=True),
    ],
    ids=["answer", "blocked", "503", "400", "429", "malformed", "odd", "drop"],
)
def test_neither_the_key_nor_the_prompt_nor_what_was_said_is_logged(
    alice: Api,
    conversation: Conversation,
    gemini: FakeGemini,
    settings: Any,
    one_attempt: None,
    caplog: pytest.LogCaptureFixture,
    answer: Answer,
) -> None:
    caplog.set_level(logging.DEBUG)
    gemini.default = answer

    response = alice.send(conversation, "My private question")

    lines = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    for secret in (settings.GEMINI_API_KEY, CANARY, "My private question", REPLY):
        assert secret not in lines
    assert settings.GEMINI_API_KEY not in response.content.decode()
    assert CANARY not in response.content.decode()


def test_a_refused_key_is_told_to_who_runs_the_service(
    alice: Api, conversation: Conversation, gemini: FakeGemini, caplog: pytest.LogCaptureFixture
) -> None:
    gemini.will(fails(403))
    alice.send(conversation)

    assert "GEMINI_API_KEY" in caplog.text
