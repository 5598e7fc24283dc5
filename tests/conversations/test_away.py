"""A persona that is paused, or whose tokens of the day are spent, answers with its away message."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.utils import timezone

from conversations.models import AlternativeAnswer, Conversation, Message, Turn
from personas import operating
from personas.models import Influencer, PersonaDay
from tests.conftest import Api
from tests.conversations.media import record
from tests.fake_gemini import REPLY, FakeGemini, blocks, fails, says

TALK = "/api/v1/chat/conversations"
GYM = "I'm at the gym without my phone. Talk at six!"


def pause(influencer: Influencer, message: str = GYM) -> None:
    operating.operate(influencer_id=influencer.pk, values={"paused_at": timezone.now(), "away_message": message})


def end_pause(influencer: Influencer) -> None:
    operating.operate(influencer_id=influencer.pk, values={"paused_at": None})


def cap(influencer: Influencer, tokens: int | None) -> None:
    operating.operate(influencer_id=influencer.pk, values={"daily_token_cap": tokens})


def regenerate(api: Api, conversation: Conversation, turn: dict[str, Any]) -> Any:
    return api.post(f"{TALK}/{conversation.pk}/messages/{turn['user_message']['id']}/regenerate", None)


def spent() -> int:
    return sum(PersonaDay.objects.values_list("tokens", flat=True))


def test_a_paused_persona_answers_with_its_away_message_and_no_model_is_asked(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    pause(coach)

    response = alice.send(conversation, "Are you there?")

    assert response.status_code == 200
    turn = response.json()
    assert (turn["away"], turn["blocked"]) == (True, False)
    answer = turn["assistant_message"]
    assert (answer["content"], answer["away"], answer["blocked"], answer["token_count"]) == (GYM, True, False, None)
    assert (turn["user_message"]["content"], turn["user_message"]["away"]) == ("Are you there?", False)
    assert gemini.requests == []
    stored = Turn.objects.get()
    assert (stored.state, stored.finish_reason, stored.attempts, stored.total_tokens) == ("away", "PAUSED", 0, 0)
    assert (stored.model, stored.cost_usd, stored.error_code) == ("", None, "")
    shown = alice.messages(conversation).json()["messages"]
    assert [one["away"] for one in shown] == [True, False, False]
    assert alice.open(coach)["recent_messages"] == shown
    assert spent() == 0


def test_without_a_text_of_its_own_it_says_a_sentence_of_ours(
    alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    pause(coach, "  ")

    assert alice.send(conversation).json()["assistant_message"]["content"] == operating.AWAY


def test_the_next_turn_after_the_pause_is_answered_and_sees_nothing_of_it(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    alice.send(conversation, "one")
    pause(coach)
    alice.send(conversation, "two")
    end_pause(coach)

    turn = alice.send(conversation, "three").json()

    assert (turn["away"], turn["assistant_message"]["content"]) == (False, REPLY)
    assert not any("two" in text or GYM in text for _, parts in gemini.last.texts for text in parts)
    assert gemini.last.question == "three"


def test_the_same_message_with_its_key_is_the_same_turn(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    pause(coach)
    first = alice.send(conversation, "one", client_message_id="1").json()
    end_pause(coach)

    assert alice.send(conversation, "one", client_message_id="1").json() == first
    assert gemini.requests == []
    assert alice.send(conversation, "one").json()["away"] is False, "without a key it is another message"


def test_a_question_that_waits_for_its_answer_gets_the_away_message(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))
    assert alice.send(conversation, "one").status_code == 503
    pause(coach)

    assert alice.send(conversation, "one").json()["away"] is True

    assert Message.objects.filter(role="user").count() == 1
    assert Turn.objects.get().attempts == 1, "that of the first send"


def test_an_away_message_is_replaced_once_the_persona_is_back(
    alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    pause(coach)
    turn = alice.send(conversation).json()
    assert regenerate(alice, conversation, turn).json() == turn, "while it's away nothing changes"
    end_pause(coach)

    again = regenerate(alice, conversation, turn).json()

    assert (again["away"], again["assistant_message"]["content"]) == (False, REPLY)
    assert Turn.objects.get().state == "done"
    kept = AlternativeAnswer.objects.get()
    assert (kept.content, kept.away) == (GYM, True)


def test_an_answer_is_not_replaced_by_an_away_message(
    alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    turn = alice.send(conversation).json()
    pause(coach)

    response = regenerate(alice, conversation, turn)

    assert (response.status_code, response.json()["details"]["reason"]) == (409, "away")
    assert response.json()["message"] == GYM
    assert Message.objects.get(pk=turn["assistant_message"]["id"]).content == REPLY
    assert Turn.objects.get().state == "done"


def test_a_paused_persona_is_still_found_and_opened(
    alice: Api, coach: Influencer, make_influencer: Callable[..., Influencer]
) -> None:
    pause(coach)

    assert alice.get(f"/api/v1/influencers/{coach.pk}").json()["is_active"] == "active"
    assert alice.open(coach)["recent_messages"][0]["away"] is False
    other = alice.open(make_influencer())
    assert alice.send(other["id"]).json()["away"] is False, "others aren't paused"


# Tokens of a day


def test_once_the_tokens_of_the_day_are_spent_it_is_away_until_midnight(
    alice: Api, bob: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini, time_machine: Any
) -> None:
    time_machine.move_to(dt.datetime(2026, 11, 25, 23, 59, tzinfo=dt.UTC), tick=False)
    cap(coach, 100)

    assert [alice.send(conversation, text).json()["away"] for text in ("one", "two", "three")] == [False, False, True]

    assert spent() == 104, "two turns of 52"
    assert bob.send(bob.open(coach)["id"]).json()["away"] is True, "it's the persona's cap, not the user's"
    assert {turn.finish_reason for turn in Turn.objects.filter(state="away")} == {"TOKEN_CAP"}
    assert len(gemini.requests) == 2
    time_machine.move_to(dt.datetime(2026, 11, 26, tzinfo=dt.UTC), tick=False)
    assert alice.send(conversation, "four").json()["away"] is False
    assert dict(PersonaDay.objects.values_list("day", "tokens")) == {
        dt.date(2026, 11, 25): 104,
        dt.date(2026, 11, 26): 52,
    }


def test_a_higher_cap_or_none_brings_it_back_on_the_next_turn(
    alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    alice.send(conversation, "one")
    answers = []
    for tokens in (52, 53, 1, None):
        cap(coach, tokens)
        answers.append(alice.send(conversation, str(tokens)).json()["away"])

    assert answers == [True, False, True, False], "what was spent before there was a cap counts"


def test_failed_attempts_blocked_answers_and_voice_notes_count(
    alice: Api, conversation: Conversation, gemini: FakeGemini, media_folder: Any
) -> None:
    gemini.chooses = lambda asked: says("", finish="MAX_TOKENS")
    assert alice.send(conversation, "one").status_code == 503
    gemini.chooses = None
    failed = spent()
    assert failed == Turn.objects.get().total_tokens >= 52
    gemini.will(blocks())
    assert alice.send(conversation, "two").json()["blocked"] is True
    blocked = spent()
    assert blocked == sum(Turn.objects.values_list("total_tokens", flat=True))

    note = {"message_type": "audio", "content": None, "audio_url": record(alice)}
    gemini.will(says("How many squats?"), says(REPLY))
    assert alice.send(conversation, **note).status_code == 200

    assert spent() == blocked + 104, "of the transcription and of the answer"


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_cap_that_can_not_be_is_refused(coach: Influencer, tokens: int) -> None:
    with pytest.raises(ValidationError):
        cap(coach, tokens)
