"""A turn's record: its state, what it took, and what was sent. And turns whose process died."""

import datetime as dt
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, transaction
from django.utils import timezone

from conversations import turns
from conversations.models import Conversation, Message, PromptText, Turn, get_owned
from conversations.sent import rebuilt
from personas.models import Influencer
from tests.conftest import Api
from tests.conversations.media import record, take
from tests.conversations.test_send_audio import speak
from tests.conversations.test_send_pictures import show
from tests.fake_gemini import REPLY, FakeGemini, blocks, fails, says
from yral_chat import metrics
from yral_chat.ai import Reply, Usage
from yral_chat.ai.gemini import request_body
from yral_chat.ai.prices import PRICES, cost

pytestmark = pytest.mark.django_db


def test_a_turn_is_recorded(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(fails(503), says("Hello!", tokens=12, thought="Hmm."))
    assert gemini.answers[1].body["usageMetadata"].update({"thoughtsTokenCount": 30, "totalTokenCount": 82}) is None

    sent = alice.send(conversation).json()

    turn = Turn.objects.get()
    assert str(turn.pk) == sent["user_message"]["id"]
    assert (turn.state, turn.error_code, turn.finish_reason, turn.attempts) == ("done", "", "STOP", 2)
    assert turn.model == "gemini-2.5-flash"
    assert (turn.prompt_tokens, turn.output_tokens, turn.thinking_tokens, turn.total_tokens) == (40, 12, 30, 82)
    assert turn.cost_usd == Decimal("0.00011700")
    assert turn.ms_to_first_token is not None
    assert turn.ms_to_end is not None
    assert 300 <= turn.ms_to_first_token <= turn.ms_to_end < 3000
    assert turn.finished_at
    assert turn.finished_at >= turn.created_at


def test_a_failed_turn_is_recorded_and_its_next_attempt_adds_to_it(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(says(""), says(""))
    assert alice.send(conversation).status_code == 503
    turn = Turn.objects.get()
    assert (turn.state, turn.error_code, turn.attempts, turn.prompt_tokens) == ("failed", "TRANSIENT", 2, 80)
    assert turn.ms_to_first_token is None
    assert turn.cost_usd == 2 * cost("gemini-2.5-flash", Usage(40, 12), timezone.now().date())  # type: ignore[operator]

    alice.send(conversation)

    turn = Turn.objects.get()
    assert (turn.state, turn.error_code, turn.attempts, turn.prompt_tokens) == ("done", "", 3, 120)


def test_a_refused_turn_says_so(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(fails(403))
    alice.send(conversation)

    turn = Turn.objects.get()
    assert (turn.state, turn.error_code, turn.attempts, turn.cost_usd) == ("failed", "NO_PROVIDER", 1, Decimal(0))


def test_a_blocked_turn_is_recorded(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(blocks())
    alice.send(conversation)

    turn = Turn.objects.get()
    assert (turn.state, turn.finish_reason, turn.prompt_tokens) == ("blocked", "SAFETY", 40)


def test_a_model_without_a_price_costs_what_nobody_knows(
    alice: Api, make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    alice.send(alice.open(make_influencer(model="somebody-elses"))["id"])

    turn = Turn.objects.get()
    assert (turn.model, turn.cost_usd, turn.total_tokens) == ("somebody-elses", None, 52)


def test_a_price_is_that_of_the_day_and_of_the_longest_name() -> None:
    day = dt.date(2026, 1, 1)
    million = Usage(prompt=1_000_000, output=1_000_000, thinking=1_000_000)

    assert cost("gemini-2.5-flash", million, day) == Decimal("0.30") + 2 * Decimal("2.50")
    assert cost("gemini-2.5-flash-001", million, day) == cost("gemini-2.5-flash", million, day)
    assert cost("gemini-2.5-flash-lite", million, day) == Decimal("0.10") + 2 * Decimal("0.40")
    assert cost("gemini-2.5-flashy", million, day) is None
    assert cost("gemini-2.5-flash", million, dt.date(2024, 1, 1)) is None
    assert len({(price.model, price.since) for price in PRICES}) == len(PRICES)


# What was sent


def assert_rebuilt(gemini: FakeGemini) -> None:
    turn = Turn.objects.order_by("created_at").last()
    assert turn
    assert request_body(rebuilt(turn)) == gemini.last.body


def test_what_was_sent_can_be_made_again_of_references(
    alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini, settings: Any
) -> None:
    Conversation.objects.update(metadata={"memories": {"name": "Alice", "goal": "run 10 km"}})
    for number in range(8):
        alice.send(conversation, f"question {number} 🌱")
    settings.GEMINI_THINKING_BUDGET = 128
    alice.send(conversation, "the last")
    asked = gemini.last.body

    coach.system_instructions, coach.temperature = "Rewritten by staff.", 1.5
    coach.save()
    Conversation.objects.update(metadata={})
    settings.GEMINI_TEMPERATURE, settings.GEMINI_THINKING_BUDGET, settings.GEMINI_MAX_TOKENS = 0.1, None, 7
    with time_machine.travel(dt.datetime.now(dt.UTC) + dt.timedelta(days=40)):
        assert_rebuilt(gemini)

    turn = Turn.objects.order_by("created_at").last()
    assert turn
    assert gemini.last.body == asked
    assert len(str(turn.sent)) < 600, "references, not copies"
    assert "question" not in str(turn.sent)
    assert turn.sent["messages"] == list(range(8, 19))


def test_the_texts_are_kept_once(alice: Api, bob: Api, coach: Influencer, gemini: FakeGemini) -> None:
    for api in (alice, bob):
        opened = api.open(coach)["id"]
        for number in range(3):
            api.send(opened, str(number))

    assert PromptText.objects.count() == 1
    assert coach.system_instructions in PromptText.objects.get().text


def test_blocked_turns_are_left_out_when_it_is_made_again(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(says("one"), blocks(), says("three"))
    for number in range(3):
        alice.send(conversation, f"question {number}")

    assert_rebuilt(gemini)


def test_pictures_are_sent_again_as_they_were(
    alice: Api, conversation: Conversation, gemini: FakeGemini, media_folder: Path, settings: Any
) -> None:
    keys = take(alice, "red", "blue", "lime")
    show(alice, conversation, *keys)
    show(alice, conversation, keys[0], "https://example.com/never-opened.jpg")
    assert_rebuilt(gemini)
    alice.send(conversation, "And now?")
    assert_rebuilt(gemini)

    settings.CONTEXT_IMAGES = 0
    assert_rebuilt(gemini)
    alice.send(conversation, "And without them?")
    assert_rebuilt(gemini)


def test_a_voice_note_that_was_not_understood_then_is_not_understood_now(
    alice: Api, conversation: Conversation, gemini: FakeGemini, media_folder: Path
) -> None:
    key = record(alice)
    gemini.will(fails(400))
    assert speak(alice, conversation, key).status_code == 200
    failed = gemini.last.body
    turn = Turn.objects.get()
    assert request_body(rebuilt(turn)) == failed

    note = Message.objects.get(role="user")
    note.content, note.metadata = "[Transcribed: now it was]", {**note.metadata, "transcription": "done"}
    note.save()

    assert request_body(rebuilt(turn)) == failed


# Turns whose process died


def begin(conversation: Conversation, content: str = "Hello!") -> turns.Claim:
    """As a process that dies right after it."""
    draft = turns.Draft("text", content, [], None, None)
    with transaction.atomic():
        mine = get_owned(str(conversation.pk), "alice", lock=True)
        claim = turns.claim_for_draft(mine, draft, [], 0, arrived=timezone.now(), is_next=True)
    assert isinstance(claim, turns.Claim)
    return claim


def test_a_turn_is_not_abandoned_while_somebody_holds_it(conversation: Conversation) -> None:
    begin(conversation)

    assert turns.end_abandoned() == 0
    assert Turn.objects.get().state == "pending"
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=9), tick=False):
        assert turns.end_abandoned() == 0


@pytest.mark.parametrize("state", ["pending", "streaming"])
def test_a_turn_whose_lock_ran_out_has_failed(conversation: Conversation, state: str) -> None:
    begin(conversation)
    Turn.objects.update(state=state)

    with time_machine.travel(timezone.now() + dt.timedelta(seconds=11), tick=False):
        assert turns.end_abandoned() == 1
        assert turns.end_abandoned() == 0

    turn = Turn.objects.get()
    assert (turn.state, turn.error_code) == ("failed", "interrupted")
    assert Conversation.objects.get().running_token is None


@pytest.mark.parametrize("settled_by", ["the sweep", "a resend", "a stop"])
def test_a_turn_whose_process_died_is_counted_once_by_who_settles_it(
    alice: Api, conversation: Conversation, settled_by: str, django_capture_on_commit_callbacks: Any
) -> None:
    def abandoned() -> float:
        return float(metrics.TURNS.labels("abandoned", "none")._value.get())

    before, claim = abandoned(), begin(conversation)
    settle: dict[str, Callable[[], Any]] = {
        "the sweep": turns.end_abandoned,
        "a resend": lambda: alice.send(conversation),
        "a stop": lambda: alice.post(f"/api/v1/chat/conversations/{conversation.pk}/messages/{claim.turn.pk}/stop", {}),
    }
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=11), tick=False):
        for name in (settled_by, *settle):
            with django_capture_on_commit_callbacks(execute=True):
                settle[name]()

    assert abandoned() - before == 1


def test_a_regeneration_that_died_leaves_the_turn_as_it_was(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    question = Message.objects.get(pk=alice.send(conversation).json()["user_message"]["id"])
    with transaction.atomic():
        mine = get_owned(str(conversation.pk), "alice", lock=True)
        turns.claim_to_regenerate(mine, str(question.pk), is_next=True)
    assert Turn.objects.get().state == "pending"

    with time_machine.travel(timezone.now() + dt.timedelta(seconds=11), tick=False):
        assert turns.end_abandoned() == 1

    assert Turn.objects.get().state == "done"


def test_a_lock_is_renewed_by_its_token_alone(conversation: Conversation) -> None:
    claim = begin(conversation)
    until = Conversation.objects.get().running_until
    assert until

    assert turns.renew({conversation.pk: (other := uuid.uuid4())}) == {other}
    assert Conversation.objects.get().running_until == until
    assert turns.renew({conversation.pk: claim.token}) == set()
    renewed = Conversation.objects.get().running_until
    assert renewed
    assert renewed > until


def test_who_was_taken_for_dead_drops_what_it_has(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    """It was only slow: another process went on with the turn meanwhile."""
    claim = begin(conversation)
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=11), tick=True):
        assert alice.send(conversation).status_code == 200

        reply = Reply("too late", "gemini-2.5-flash")
        with pytest.raises(turns.Lost):
            turns.keep_answer(claim, reply, turns.Effort())
        with pytest.raises(turns.Lost):
            turns.begin_streaming(claim, turns.Effort())
        turns.keep_failure(claim, turns.Effort(), "UNKNOWN")

    assert [message.content for message in Message.objects.order_by("sequence")][1:] == ["Hello!", REPLY]
    assert Turn.objects.get().state == "done"


def test_a_dead_turn_delays_another_message_no_longer_than_its_lock(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    begin(conversation, "from a process that died")
    Conversation.objects.update(running_until=timezone.now() + dt.timedelta(seconds=0.6))

    assert alice.send(conversation, "another").status_code == 200
    assert alice.send(conversation, "a third").status_code == 200


def said_again(
    conversation: Conversation, arrived: dt.datetime, joined: uuid.UUID | None = None
) -> turns.Claim | turns.Outcome | turns.Busy:
    """By somebody whose first look came only now."""
    draft = turns.Draft("text", "Hello!", [], None, None)
    with transaction.atomic():
        mine = get_owned(str(conversation.pk), "alice", lock=True)
        return turns.claim_for_draft(mine, draft, [], mine.message_count, arrived=arrived, joined=joined, is_next=True)


def test_who_joined_a_turn_that_somebody_else_took_over_gets_its_answer(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """And doesn't ask once more: what it joined is answered by now, and it isn't newer than its arrival."""
    question = uuid.UUID(alice.send(conversation).json()["user_message"]["id"])

    found = said_again(conversation, timezone.now(), question)

    assert isinstance(found, turns.Outcome)
    assert found.question.pk == question


def test_a_copy_that_came_before_the_answer_gets_it_however_late_it_is_looked_at(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    question = uuid.UUID(alice.send(conversation).json()["user_message"]["id"])
    answered = Message.objects.get(role="assistant", sequence=3).created_at

    found = said_again(conversation, answered - dt.timedelta(milliseconds=1))
    assert isinstance(found, turns.Outcome)
    assert found.question.pk == question
    assert isinstance(said_again(conversation, answered), turns.Claim)


def test_a_question_that_an_older_version_asked_is_like_any_other(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """It runs beside the new one for a while, and knows no turns."""
    gemini.will(fails(400))
    alice.send(conversation)
    Turn.objects.all().delete()
    question = Message.objects.get(role="user")
    path = f"/api/v1/chat/conversations/{conversation.pk}/messages/{question.pk}"

    assert b"event: error" in alice.get(f"{path}/stream").getvalue()
    assert alice.post(f"{path}/stop", {}).status_code == 200
    assert alice.send(conversation).json()["user_message"]["id"] == str(question.pk)
    Turn.objects.all().delete()
    assert alice.post(f"{path}/regenerate", {}).status_code == 200


def test_what_is_remembered_of_a_user_goes_with_the_conversation(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    Conversation.objects.update(metadata={"memories": {"secret": "afraid of heights"}})
    alice.send(conversation)
    assert PromptText.objects.filter(text__contains="afraid of heights").count() == 1

    alice.delete(f"/api/v1/chat/conversations/{conversation.pk}")

    assert not PromptText.objects.filter(text__contains="afraid").exists()
    assert PromptText.objects.count() == 1, "the instructions, which are nobody's"


# Rules of the table


def test_a_question_has_one_turn_and_a_key_too(conversation: Conversation) -> None:
    claim = begin(conversation)
    with pytest.raises(IntegrityError), transaction.atomic():
        Turn.objects.create(question_id=claim.question.pk, conversation=conversation)
    with pytest.raises(IntegrityError), transaction.atomic():
        Turn.objects.update(state="lost")


def test_every_question_of_an_older_database_has_a_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    from importlib import import_module

    from django.apps import apps

    gemini.will(says("one"), blocks(), fails(400))
    for number in range(3):
        alice.send(conversation, str(number))
    Turn.objects.all().delete()

    migration: Any = import_module("conversations.migrations.0003_turns_of_earlier_questions")
    migration.give_each_question_a_turn(apps, None)
    migration.give_each_question_a_turn(apps, None)

    states = Turn.objects.order_by("question__sequence").values_list("state", "error_code")
    assert list(states) == [("done", ""), ("blocked", ""), ("failed", "interrupted")]
    assert alice.send(conversation, "2").status_code == 200
