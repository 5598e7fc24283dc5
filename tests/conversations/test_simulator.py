"""X-Chat-Scenario: the failure simulator of development and staging."""

import time
from typing import Any

import pytest

from conversations.models import Conversation, Message, Turn
from tests.conftest import CANARY, Api
from tests.conversations.media import record
from tests.conversations.test_stream import PATH, Event, as_in_a_running_service, events_of, texts
from tests.fake_gemini import FakeGemini
from yral_chat import ai
from yral_chat.ai.offline import EMOJI, LONG, MARKDOWN, SCENES

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.own_database]
__all__ = ["as_in_a_running_service"]  # a fixture

FAILURES = {  # scene: status and code of a plain answer, code in a stream, pieces before it
    "empty": (503, "ai_service_unavailable", "TRANSIENT", 0),
    "quota": (503, "ai_service_unavailable", "TRANSIENT", 0),
    "down": (503, "ai_service_unavailable", "TRANSIENT", 0),
    "refused": (503, "ai_service_unavailable", "NO_PROVIDER", 0),
    "cut_mid_stream": (503, "ai_service_unavailable", "TRANSIENT", 5),
    "crash": (500, "internal_server_error", "UNKNOWN", 0),
    "timeout": (503, "ai_service_unavailable", "TRANSIENT", 0),
}
TEXTS = {"emoji": EMOJI, "long": LONG, "markdown": MARKDOWN}


@pytest.fixture(autouse=True)
def no_real_model(gemini: FakeGemini, settings: Any) -> Any:
    settings.GEMINI_TIMEOUT_SECONDS = 3
    yield
    assert gemini.requests == []


def send(api: Api, conversation: Conversation, scene: str, content: str = "Hello!", path: str = "messages") -> Any:
    body = {"message_type": "text", "content": content}
    headers = {**api.headers(), "X-Chat-Scenario": scene}
    return api.client.post(f"{PATH}/{conversation.pk}/{path}", body, content_type="application/json", headers=headers)


def streamed(api: Api, conversation: Conversation, scene: str) -> list[Event]:
    return events_of(send(api, conversation, scene, path="messages/stream"))


@pytest.mark.parametrize("scene", FAILURES)
def test_it_fails_as_told_and_keeps_the_question(alice: Api, conversation: Conversation, scene: str) -> None:
    status, code, *_ = FAILURES[scene]

    answer = send(alice, conversation, scene)

    assert (answer.status_code, answer.json()["error"]) == (status, code)
    assert Message.objects.get(conversation=conversation, role="user").content == "Hello!"
    assert Turn.objects.get().state == Turn.State.FAILED


@pytest.mark.parametrize("scene", FAILURES)
def test_a_stream_fails_as_told(alice: Api, conversation: Conversation, scene: str) -> None:
    *_, code, pieces = FAILURES[scene]

    *tokens, last = streamed(alice, conversation, scene)

    assert (last.event, last.data["code"]) == ("error", code)
    assert len(tokens) == pieces


def test_quota_says_when_to_come_again(alice: Api, conversation: Conversation) -> None:
    assert send(alice, conversation, "quota")["Retry-After"] == "30"


@pytest.mark.parametrize("scene", TEXTS)
def test_it_says_what_is_hard_to_show(alice: Api, conversation: Conversation, scene: str) -> None:
    found = streamed(alice, conversation, scene)

    assert found[-1].data["assistant_message"]["content"] == TEXTS[scene]
    assert "".join(texts(found)) == TEXTS[scene]
    assert len(texts(found)) > 10
    assert send(alice, conversation, scene, "And again").json()["assistant_message"]["content"] == TEXTS[scene]


def test_emoji_come_whole_though_the_model_cuts_them(alice: Api, conversation: Conversation) -> None:
    pieces = texts(streamed(alice, conversation, "emoji"))

    assert any("👨‍👩‍👧‍👦" in piece for piece in pieces)
    assert any("🏳️‍🌈" in piece for piece in pieces)


def test_what_is_blocked_is_deflected(alice: Api, conversation: Conversation) -> None:
    turn = send(alice, conversation, "blocked").json()
    found = streamed(alice, conversation, "blocked")

    assert turn["blocked"] is True
    assert [one.event for one in found] == ["done"]
    assert found[0].data["blocked"] is True


def test_what_is_blocked_after_text_went_out_is_an_error_of_the_stream(alice: Api, conversation: Conversation) -> None:
    *tokens, last = streamed(alice, conversation, "blocked_mid_stream")

    assert len(tokens) == 5
    assert (last.event, last.data["code"]) == ("error", "BLOCKED_CONTENT")


@pytest.mark.parametrize("path", ["messages", "messages/stream"])
def test_the_same_message_sent_again_is_answered(alice: Api, conversation: Conversation, path: str) -> None:
    assert send(alice, conversation, "down_then_ok").status_code == 503

    again = send(alice, conversation, "down_then_ok", path=path)

    if path == "messages":
        assert again.status_code == 200
    else:
        assert events_of(again)[-1].event == "done"
    assert Message.objects.filter(conversation=conversation, role="user").count() == 1


def test_slow_ones_take_their_share_of_the_time(alice: Api, conversation: Conversation) -> None:
    for scene, share in (("slow", 0.33), ("slow_first_token", 0.4)):
        began = time.monotonic()
        assert send(alice, conversation, scene, scene).status_code == 200
        assert time.monotonic() - began > share * 3 * 0.9


def test_a_slow_answer_can_be_stopped(alice: Api, conversation: Conversation, settings: Any) -> None:
    settings.GEMINI_TIMEOUT_SECONDS = 60
    live = send(alice, conversation, "slow", path="messages/stream")
    question = live["X-Message-ID"]
    path = f"{PATH}/{conversation.pk}/messages/{question}/stop"

    assert alice.client.post(path, headers=alice.headers()).status_code == 200
    assert events_of(live)[-1].data["stopped"] is True


def test_an_answer_can_be_regenerated_by_it(alice: Api, conversation: Conversation) -> None:
    turn = send(alice, conversation, "markdown").json()
    path = f"messages/{turn['user_message']['id']}/regenerate"

    assert send(alice, conversation, "down", path=path).status_code == 503
    assert send(alice, conversation, "emoji", path=path).json()["assistant_message"]["content"] == EMOJI


def test_a_model_that_is_down_hears_no_voice_note(alice: Api, conversation: Conversation) -> None:
    body = {"message_type": "audio", "audio_url": record(alice)}
    headers = {**alice.headers(), "X-Chat-Scenario": "down"}
    path = f"{PATH}/{conversation.pk}/messages"

    assert alice.client.post(path, body, content_type="application/json", headers=headers).status_code == 503
    heard = Message.objects.get(conversation=conversation, role="user")
    assert heard.content == "[Audio message - transcription failed]"


def test_it_leaves_the_model_s_health_and_the_persona_s_instructions_alone(
    alice: Api, conversation: Conversation
) -> None:
    for number in range(12):  # more than opens a breaker
        answer = send(alice, conversation, "down", f"Hello {number}")
        assert answer.status_code == 503
        assert CANARY not in answer.content.decode()

    assert ai.health().up
    assert ai.breaker_of("gemini-2.5-flash").state == "closed"


def test_an_unknown_scene_is_refused_before_anything_is_stored(alice: Api, conversation: Conversation) -> None:
    answer = send(alice, conversation, "earthquake")

    assert answer.status_code == 422
    error = answer.json()["details"]["errors"][0]
    assert error["loc"] == ["header", "X-Chat-Scenario"]
    assert all(scene in error["msg"] for scene in SCENES)
    assert not Message.objects.filter(role="user").exists()


@pytest.mark.parametrize("path", ["messages", "messages/stream"])
def test_production_refuses_it(alice: Api, conversation: Conversation, settings: Any, path: str) -> None:
    settings.PRODUCTION = True

    answer = send(alice, conversation, "emoji", path=path)

    assert answer.status_code == 422
    assert "development and staging" in answer.json()["details"]["errors"][0]["msg"]
    assert not Message.objects.filter(role="user").exists()


def test_it_is_over_with_the_request(alice: Api, conversation: Conversation, settings: Any) -> None:
    send(alice, conversation, "emoji")
    settings.GEMINI_API_KEY = ""

    assert alice.send(conversation, "And now?").json()["assistant_message"]["content"].startswith("[offline]")


def test_the_document_lists_the_scenes(settings: Any) -> None:
    rows = [f"| `{name}` | {says} |" for name, says in ai.scenes().items()]

    assert (settings.BASE_DIR / "docs/api/simulator.md").read_text().rstrip().splitlines()[-len(rows) :] == rows
