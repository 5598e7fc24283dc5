"""What staff and the business ask of a span of days: messages, users, replies, failures, tokens, cost, time to reply.

A day is a UTC day, and a turn belongs to the day on which its question came. What was deleted isn't counted.
"""

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.db.models import CharField, Count, DateField, F, Func, Q, QuerySet, StringAgg, Sum, Value
from django.db.models.functions import Cast
from django.utils import timezone

from conversations.models import Message, Turn
from personas.models import Influencer

LONGEST = 3660  # days
STEP_MS = 100  # to which medians and 95th percentiles are exact
SUMMED = ("attempts", "prompt_tokens", "output_tokens", "thinking_tokens", "total_tokens", "cost_usd")
COUNTED = {
    "answered": Q(state=Turn.State.DONE),
    "stopped": Q(state=Turn.State.STOPPED),
    "blocked": Q(state=Turn.State.BLOCKED),
    "failed": Q(state=Turn.State.FAILED),
    "away": Q(state=Turn.State.AWAY),
    "under_way": Q(state__in=Turn.UNDER_WAY),
    "unpriced": Q(cost_usd=None, total_tokens__gt=0),
}


@dataclass(frozen=True, slots=True)
class Span:
    """Days of UTC, both included. Raises ValueError for one that can't be."""

    first: dt.date
    last: dt.date

    def __post_init__(self) -> None:
        if self.first > self.last:
            raise ValueError("The first day is after the last.")
        if len(self) > LONGEST:
            raise ValueError(f"A span has at most {LONGEST} days.")

    @classmethod
    def of_the_last(cls, days: int) -> "Span":
        """With today."""
        today = timezone.now().date()
        return cls(today - dt.timedelta(days=days - 1), today)

    def __len__(self) -> int:
        return (self.last - self.first).days + 1

    def __iter__(self) -> Iterator[dt.date]:
        return (self.first + dt.timedelta(days=number) for number in range(len(self)))

    @property
    def begins(self) -> dt.datetime:
        return dt.datetime.combine(self.first, dt.time.min, dt.UTC)

    @property
    def ends(self) -> dt.datetime:
        """The first moment after it."""
        return dt.datetime.combine(self.last, dt.time.min, dt.UTC) + dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of turns. Times are those of the answered ones, from when the turn was begun; None where none was answered."""

    questions: int = 0
    answered: int = 0
    stopped: int = 0
    blocked: int = 0
    failed: int = 0
    away: int = 0
    under_way: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    total_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced: int = 0  # turns that used tokens of a model without a known price: their cost is missing above
    mean_ms_to_first_token: int | None = None
    mean_ms: int | None = None
    median_ms: int | None = None
    p95_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Day:
    day: dt.date
    messages: int = 0  # of both sides
    users: int = 0  # who wrote something
    turns: Figures = field(default_factory=Figures)


@dataclass(frozen=True, slots=True)
class Persona:
    """One that was asked something."""

    influencer_id: str
    display_name: str
    status: str
    users: int
    turns: Figures


@dataclass(frozen=True, slots=True)
class Statistics:
    span: Span
    messages: int
    users: int
    turns: Figures
    days: list[Day]  # each of the span, in order
    personas: list[Persona]  # the most asked first


def statistics_of(span: Span) -> Statistics:
    """Three queries, two of them by an index of times: 90 days of a million messages take 0.7 s of CPU."""
    messages = dict(_messages(span).values_list("day").annotate(n=Count("*")))  # not of "pk", which isn't in the index
    asked = _tallies(span)
    by_day, by_persona = _merged(asked, 0), _merged(asked, 1)
    all_of_it = sum(by_day.values(), Tally())
    return Statistics(
        span,
        messages=sum(messages.values()),
        users=len(all_of_it.users),
        turns=all_of_it.figures(),
        days=[Day(day, messages.get(day, 0), len(by_day[day].users), by_day[day].figures()) for day in span],
        personas=_personas(by_persona),
    )


class UtcDay(Func):
    """Of a time. Django's TruncDate calls Python for each row of SQLite, which takes several times as long."""

    output_field = DateField()

    def as_sqlite(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="substr(%(expressions)s, 1, 10)", **extra)

    def as_postgresql(self, compiler: Any, connection: Any, **extra: Any) -> Any:
        return self.as_sql(compiler, connection, template="(%(expressions)s AT TIME ZONE 'UTC')::date", **extra)


def _messages(span: Span) -> QuerySet[Any, Any]:
    return Message.objects.filter(_in(span)).order_by().annotate(day=UtcDay("created_at"))


def _turns(span: Span) -> QuerySet[Any, Any]:
    named = {"day": UtcDay("created_at"), "persona": F("conversation__influencer")}
    return Turn.objects.filter(_in(span)).order_by().annotate(**named)


def _in(span: Span) -> Q:
    return Q(created_at__gte=span.begins, created_at__lt=span.ends)


SUMS = {
    "questions": Count("*"),
    **{name: Count("pk", filter=which) for name, which in COUNTED.items()},
    **{f"sum_{name}": Sum(name) for name in SUMMED},
    "ms": Sum("ms_to_end", filter=COUNTED["answered"]),
    "timed": Count("ms_to_end", filter=COUNTED["answered"]),
    "ms_first": Sum("ms_to_first_token", filter=COUNTED["answered"]),
    "timed_first": Count("ms_to_first_token", filter=COUNTED["answered"]),
}
STEPS = StringAgg(
    Cast(F("ms_to_end") / STEP_MS, CharField()), delimiter=Value("\n"), filter=COUNTED["answered"], default=Value("")
)
USERS = StringAgg("conversation__user_id", delimiter=Value("\n"))  # no id has a line end in it


@dataclass(slots=True)
class Tally:
    """Of some turns: what SUMS adds up, in its order; how many answers took how many steps of time; who asked."""

    sums: list[Any] = field(default_factory=lambda: [0] * len(SUMS))
    steps: Counter[str] = field(default_factory=Counter)
    users: set[str] = field(default_factory=set)

    def add(self, sums: Iterable[Any], steps: Iterable[str] | Mapping[str, int], users: Iterable[str]) -> None:
        self.sums = [mine + (its or 0) for mine, its in zip(self.sums, sums, strict=True)]
        self.steps.update(steps)
        self.users.update(users)

    def __add__(self, other: "Tally") -> "Tally":
        both = Tally()
        for one in (self, other):
            both.add(one.sums, one.steps, one.users)
        return both

    def figures(self) -> Figures:
        total = dict(zip(SUMS, self.sums, strict=True))
        times = {int(step): count for step, count in self.steps.items()}
        return Figures(
            questions=total["questions"],
            **{name: total[name] for name in COUNTED},
            **{name: total[f"sum_{name}"] for name in SUMMED if name != "cost_usd"},
            cost_usd=round(Decimal(total["sum_cost_usd"]), 8),
            mean_ms_to_first_token=_mean(total["ms_first"], total["timed_first"]),
            mean_ms=_mean(total["ms"], total["timed"]),
            median_ms=_quantile(times, 0.5),
            p95_ms=_quantile(times, 0.95),
        )


def _tallies(span: Span) -> dict[tuple[dt.date, str], Tally]:
    """Of each day and persona. One reading of the turns gives all of it: to read them is what takes time."""
    found: dict[tuple[dt.date, str], Tally] = defaultdict(Tally)
    by = ("day", "persona")
    rows = (
        _turns(span).values(*by).annotate(steps=STEPS, askers=USERS, **SUMS).values_list(*by, "steps", "askers", *SUMS)
    )
    for day, persona, steps, askers, *sums in rows:
        found[day, persona].add(sums, steps.split(), askers.split("\n"))
    return found


def _merged(tallies: dict[tuple[dt.date, str], Tally], place: int) -> dict[Any, Tally]:
    """By the day (0) or the persona (1)."""
    found: dict[Any, Tally] = defaultdict(Tally)
    for key, tally in tallies.items():
        found[key[place]].add(tally.sums, tally.steps, tally.users)
    return found


def _mean(total: int, count: int) -> int | None:
    return round(total / count) if count else None


def _quantile(times: dict[int, int], part: float) -> int | None:
    """The middle of the step in which it is."""
    left = part * sum(times.values())
    for step in sorted(times):
        left -= times[step]
        if left <= 0:
            return step * STEP_MS + STEP_MS // 2
    return None


def _personas(tallies: dict[str, Tally]) -> list[Persona]:
    found = [
        Persona(pk, name, status, len(tallies[pk].users), tallies[pk].figures())
        for pk, name, status in Influencer.objects.values_list("pk", "display_name", "is_active")
        if pk in tallies
    ]
    return sorted(found, key=lambda persona: (-persona.turns.questions, persona.display_name, persona.influencer_id))
