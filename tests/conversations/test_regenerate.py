"""POST …/messages/{question}/regenerate: another answer in the place of the last one."""

import threading
from typing import Any

import pytest

from conversations.models import AlternativeAnswer, Conversation, Message, Turn
from tests.conftest import Api
from tests.conversations.test_races import assert_gapless, at_once, rows, slowly
from tests.conversations.test_stream import as_in_a_running_service, events_of, follow, open_stream
from tests.fake_gemini import REPLY, FakeGemini, blocks, fails, says, streams

pytestmark = pytest.mark.django_db(transaction=True)
__all__ = ["as_in_a_running_service"]
PATH = "/api/v1/chat/conversations"


def regenerate(api: Api, conversation: Any, question_id: Any) -> Any:
    return api.post(f"{PATH}/{getattr(conversation, 'pk', conversation)}/messages/{question_id}/regenerate", {})


def test_the_new_answer_takes_the_place_of_the_old_one_which_is_kept(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    old = alice.send(conversation).json()
    gemini.will(says("Another one.", tokens=3))

    response = regenerate(alice, conversation, old["user_message"]["id"])

    assert response.status_code == 200, response.content
    new = response.json()
    assert new.keys() == {"user_message", "assistant_message", "blocked", "away"}
    assert new["user_message"] == old["user_message"]
    assert (new["assistant_message"]["content"], new["assistant_message"]["token_count"]) == ("Another one.", 3)
    assert new["assistant_message"]["id"] != old["assistant_message"]["id"]
    assert new["assistant_message"]["created_at"] > old["assistant_message"]["created_at"]
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", "Another one.")]
    page = alice.messages(conversation).json()
    assert (page["total"], page["messages"][0]) == (3, new["assistant_message"])
    kept = AlternativeAnswer.objects.get()
    assert (str(kept.pk), kept.content) == (old["assistant_message"]["id"], REPLY)
    assert str(kept.question_id) == old["user_message"]["id"]
    assert_gapless(conversation)


def test_the_model_sees_neither_the_old_answer_nor_the_question_twice(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    alice.send(conversation, "first")
    turn = alice.send(conversation, "second").json()
    before = gemini.last.body

    regenerate(alice, conversation, turn["user_message"]["id"])

    assert gemini.last.body == before
    alice.send(conversation, "third")
    assert len(gemini.last.texts) == 7


def test_it_can_be_done_again_and_again(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    question = alice.send(conversation).json()["user_message"]["id"]
    for number in range(3):
        gemini.will(says(f"answer {number}"))
        assert regenerate(alice, conversation, question).status_code == 200

    assert rows(conversation)[-1] == (3, "assistant", "answer 2")
    assert sorted(AlternativeAnswer.objects.values_list("content", flat=True)) == [REPLY, "answer 0", "answer 1"][::1]
    turn = Turn.objects.get()
    assert (turn.state, turn.attempts, turn.output_tokens) == ("done", 4, 4 * 12)


def test_if_the_model_is_down_the_old_answer_stays(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    old = alice.send(conversation).json()
    gemini.will(fails(400))

    response = regenerate(alice, conversation, old["user_message"]["id"])

    assert (response.status_code, response.json()["error"]) == (503, "ai_service_unavailable")
    assert alice.messages(conversation).json()["messages"][0] == old["assistant_message"]
    assert not AlternativeAnswer.objects.exists()
    turn = Turn.objects.get()
    assert (turn.state, turn.error_code, turn.finish_reason, turn.attempts) == ("done", "", "STOP", 2)
    assert Conversation.objects.get().running_token is None


def test_only_the_last_answer_can_be_replaced(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    first = alice.send(conversation, "first").json()
    alice.send(conversation, "second")

    response = regenerate(alice, conversation, first["user_message"]["id"])

    assert response.status_code == 409
    assert (response.json()["error"], response.json()["details"]) == ("conflict", {"reason": "not_the_last_message"})
    assert not AlternativeAnswer.objects.exists()


def test_a_question_without_an_answer_gets_one(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(fails(400))
    alice.send(conversation)

    response = regenerate(alice, conversation, Message.objects.get(role="user").pk)

    assert response.status_code == 200
    assert rows(conversation) == [(2, "user", "Hello!"), (3, "assistant", REPLY)]
    assert not AlternativeAnswer.objects.exists()


def test_a_blocked_answer_can_be_replaced_and_be_the_replacement(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(blocks(), says("Fine."), blocks())
    question = alice.send(conversation).json()["user_message"]["id"]

    assert regenerate(alice, conversation, question).json()["blocked"] is False
    assert Turn.objects.get().state == "done"
    assert regenerate(alice, conversation, question).json()["blocked"] is True
    assert Turn.objects.get().state == "blocked"


def test_its_replay_is_the_new_answer_with_higher_numbers(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("One. ", "Two."))
    response = open_stream(alice, conversation)
    first = events_of(response)
    gemini.will(says("Another one."))
    regenerate(alice, conversation, response["X-Message-ID"])

    token, done = events_of(follow(alice, conversation, response["X-Message-ID"]))

    assert token.data == {"text": "Another one."}
    assert token.number > first[-1].number
    assert done.data["assistant_message"]["content"] == "Another one."


def test_two_at_once_give_two_answers_one_after_the_other(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    question = alice.send(conversation).json()["user_message"]["id"]
    gemini.default = slowly("Another one.", 0.2)

    responses = at_once(*[lambda: regenerate(alice, conversation, question)] * 2)

    assert [response.status_code for response in responses] == [200, 200]
    assert AlternativeAnswer.objects.count() == 2
    assert_gapless(conversation)


def test_a_message_sent_meanwhile_waits_and_sees_the_new_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    question = alice.send(conversation).json()["user_message"]["id"]
    asked = threading.Event()
    gemini.will(slowly("Another one.", 0.5, before=asked.set))

    def send() -> Any:
        assert asked.wait(5)
        return alice.send(conversation, "And now?")

    replaced, sent = at_once(lambda: regenerate(alice, conversation, question), send)

    assert (replaced.status_code, sent.status_code) == (200, 200)
    assert gemini.last.texts[-2] == ("model", ["Another one."])


def test_they_go_with_their_conversation(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    question = alice.send(conversation).json()["user_message"]["id"]
    regenerate(alice, conversation, question)

    deleted = alice.delete(f"{PATH}/{conversation.pk}").json()

    assert deleted["deleted_messages_count"] == 3, "alternatives are no messages"
    assert not AlternativeAnswer.objects.exists()
    assert not Turn.objects.exists()
