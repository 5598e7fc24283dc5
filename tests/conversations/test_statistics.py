"""The figures behind the page of statistics, of what was really said and of days that are over."""

import datetime as dt
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext

from conversations.models import Conversation, Message, Turn
from conversations.statistics import Figures, Span, statistics_of
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks, fails, says

pytestmark = pytest.mark.django_db
MAY = dt.date(2026, 5, 1)
NOON = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def ask(coach: Influencer) -> Callable[..., Turn]:
    """A turn of a day that is over, as the service would have left it."""

    def asked(at: dt.datetime = NOON, user: str = "alice", influencer: Influencer = coach, **fields: Any) -> Turn:
        talk, _ = Conversation.objects.get_or_create(user_id=user, influencer=influencer)
        talk.message_count += 2 if fields.get("state", "done") in ("done", "blocked") else 1
        talk.save()
        last = Message.objects.filter(conversation=talk).count()
        question = Message.objects.create(conversation=talk, sequence=last + 1, role="user", created_at=at)
        if talk.message_count > last + 1:
            later = at + dt.timedelta(seconds=1)
            Message.objects.create(
                conversation=talk, sequence=last + 2, role="assistant", created_at=later, in_reply_to=question
            )
        return Turn.objects.create(question=question, conversation=talk, created_at=at, **{"state": "done", **fields})

    return asked


@pytest.fixture
def in_may() -> Iterator[None]:
    with time_machine.travel(NOON):
        yield


@pytest.mark.django_db(transaction=True)  # what looks after turns must see them while the model thinks
def test_a_day_of_real_turns_is_counted(
    alice: Api, bob: Api, coach: Influencer, gemini: FakeGemini, in_may: None
) -> None:
    hers, his = alice.open(coach)["id"], bob.open(coach)["id"]
    gemini.will(says("Hello!", tokens=12), blocks(), says("Again."), fails(400))
    assert [alice.send(hers, text).status_code for text in ("One", "Two")] == [200, 200]
    assert bob.send(his, "Three").status_code == 200
    assert bob.send(his, "Four").status_code == 503

    found = statistics_of(Span.of_the_last(1))

    assert (found.messages, found.users) == (2 + 7, 2)  # with two greetings; the failed question has no answer
    turns = found.turns
    assert (turns.questions, turns.answered, turns.blocked, turns.failed) == (4, 2, 1, 1)
    assert (turns.stopped, turns.under_way, turns.unpriced) == (0, 0, 0)
    recorded = Turn.objects.all()
    assert turns.total_tokens == sum(turn.total_tokens for turn in recorded) > 0
    assert turns.cost_usd == sum(turn.cost_usd or 0 for turn in recorded) > 0
    assert [(day.day, day.messages, day.users, day.turns) for day in found.days] == [(MAY, 9, 2, turns)]
    (persona,) = found.personas
    assert (persona.influencer_id, persona.display_name, persona.status) == (coach.pk, "Coach Asha", "active")
    assert (persona.users, persona.turns) == (2, turns)


def test_nothing_was_said(db: None) -> None:
    found = statistics_of(Span(MAY, MAY + dt.timedelta(days=1)))
    assert (found.messages, found.users, found.turns, found.personas) == (0, 0, Figures(), [])
    assert [(day.day.day, day.messages, day.turns) for day in found.days] == [(1, 0, Figures()), (2, 0, Figures())]


def test_days_end_at_midnight_of_utc(ask: Callable[..., Turn]) -> None:
    ask(dt.datetime(2026, 4, 30, 23, 59, 59, 999999, tzinfo=dt.UTC), state="failed")
    ask(dt.datetime(2026, 5, 1, tzinfo=dt.UTC), state="failed")
    ask(dt.datetime(2026, 5, 1, 23, 59, 59, 999999, tzinfo=dt.UTC), state="failed")
    ask(dt.datetime(2026, 5, 2, tzinfo=dt.UTC), user="bob", state="failed")

    of_one_day = statistics_of(Span(MAY, MAY))
    assert (of_one_day.messages, of_one_day.users, of_one_day.turns.failed) == (2, 1, 2)
    of_three = statistics_of(Span(dt.date(2026, 4, 30), dt.date(2026, 5, 2)))
    assert [(day.messages, day.users, day.turns.questions) for day in of_three.days] == [
        (1, 1, 1),
        (2, 1, 2),
        (1, 1, 1),
    ]
    assert of_three.users == 2


def test_an_answer_after_midnight_is_a_message_of_its_own_day_and_a_turn_of_the_question_s(
    ask: Callable[..., Turn],
) -> None:
    ask(dt.datetime(2026, 5, 1, 23, 59, 59, 500000, tzinfo=dt.UTC))
    found = statistics_of(Span(MAY, MAY + dt.timedelta(days=1)))
    assert [(day.messages, day.turns.answered, day.users) for day in found.days] == [(1, 1, 1), (1, 0, 0)]


def test_tokens_costs_and_times_are_those_of_the_record(ask: Callable[..., Turn]) -> None:
    spent = {"prompt_tokens": 100, "output_tokens": 20, "thinking_tokens": 5, "total_tokens": 125, "attempts": 2}
    for ms in (*range(1000, 2000, 50), 30_049):
        ask(ms_to_end=ms, ms_to_first_token=ms // 2, cost_usd=Decimal("0.00000012"), **spent)
    ask(state="failed", ms_to_end=25_000, **spent)  # by a model without a price; its time is no time to reply
    ask(state="pending")

    turns = statistics_of(Span(MAY, MAY)).turns

    assert (turns.questions, turns.answered, turns.failed, turns.under_way) == (23, 21, 1, 1)
    assert (turns.attempts, turns.prompt_tokens, turns.output_tokens) == (44, 2200, 440)
    assert (turns.thinking_tokens, turns.total_tokens) == (110, 2750)
    assert (turns.cost_usd, turns.unpriced) == (Decimal("0.00000252"), 1)
    assert (turns.mean_ms, turns.mean_ms_to_first_token) == (
        round((29_500 + 30_049) / 21),
        round((14_750 + 15_024) / 21),
    )
    assert (turns.median_ms, turns.p95_ms) == (1550, 1950)  # in the middle of their tenth of a second


def test_personas_are_told_apart_the_most_asked_first(
    ask: Callable[..., Turn], make_influencer: Callable[..., Influencer]
) -> None:
    retired, idle = make_influencer(is_active="discontinued"), make_influencer()
    ask(ms_to_end=400)
    for user in ("alice", "bob", "bob"):
        ask(user=user, influencer=retired, state="blocked")

    found = statistics_of(Span(MAY, MAY))

    assert [(one.display_name, one.status, one.users) for one in found.personas] == [
        (retired.display_name, "discontinued", 2),
        ("Coach Asha", "active", 1),
    ]
    assert [(one.turns.questions, one.turns.blocked, one.turns.median_ms) for one in found.personas] == [
        (3, 3, None),
        (1, 0, 450),
    ]
    assert idle.pk not in {one.influencer_id for one in found.personas}
    assert (found.users, found.days[0].users) == (2, 2)  # alice asked two personas


def test_a_deleted_conversation_is_not_counted(alice: Api, ask: Callable[..., Turn]) -> None:
    ask()
    ask(user="bob")
    assert alice.delete(f"/api/v1/chat/conversations/{Conversation.objects.get(user_id='alice').pk}").status_code == 200
    found = statistics_of(Span(MAY, MAY))
    assert (found.messages, found.users, found.turns.questions) == (2, 1, 1)


@pytest.mark.parametrize("days", [0, -3, 3661])
def test_a_span_that_can_t_be_is_refused(days: int) -> None:
    with pytest.raises(ValueError, match=r"after the last|at most 3660"):
        Span.of_the_last(days)


def test_only_rows_of_the_span_are_read_however_many_days_there_are(ask: Callable[..., Turn]) -> None:
    ask()
    with CaptureQueriesContext(connection) as queries:
        statistics_of(Span.of_the_last(1))
        few = len(queries)
        statistics_of(Span.of_the_last(365))
    assert (few, len(queries)) == (3, 6)
    if connection.vendor == "sqlite":
        for query in queries.captured_queries[:2]:
            with connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
                assert "SCAN" not in " ".join(row[3] for row in cursor.fetchall())
