"""The desk's page of statistics: charts and figures of a span of days, each leading to its rows."""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlencode

from django.contrib.auth.mixins import PermissionRequiredMixin
from django.core.cache import cache
from django.http import HttpRequest
from django.urls import reverse
from django.views.generic import TemplateView

from conversations.models import Turn
from conversations.statistics import Day, Figures, Persona, Span, Statistics, statistics_of

CHOICES = (7, 30, 90)  # days
USUAL = 30
LONGEST = 366
KEPT, LONG_KEPT = 1, 10  # minutes that figures may be old, and those of more than USUAL days
TALL = 100  # of a chart, in units of its own


class StatisticsPage(PermissionRequiredMixin, TemplateView):
    """Counts alone: no user's id and no text, so that who sees it needn't be somebody who may read chats."""

    permission_required = "conversations.view_statistics"
    raise_exception = True
    template_name = "admin/statistics.html"
    admin_site: Any = None

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        span, days, error = chosen(self.request)
        found = kept(span)
        rows = Rows(self.request, span)
        return {
            **self.admin_site.each_context(self.request),
            "title": "Statistics",
            "span": span,
            "days": days,
            "choices": CHOICES,
            "error": error,
            "minutes": minutes(span),
            "found": found,
            "cards": cards(found, rows),
            "charts": charts(found.days, rows),
            "tables": [persona_table(found.personas, rows), day_table(found.days, rows)],
        }


def kept(span: Span) -> Statistics:
    """A year of a large database takes seconds: long spans are counted less often."""
    name = f"statistics-{span.first}-{span.last}"
    return cast(Statistics, cache.get_or_set(name, lambda: statistics_of(span), minutes(span) * 60))


def minutes(span: Span) -> int:
    return LONG_KEPT if len(span) > USUAL else KEPT


def chosen(request: HttpRequest) -> tuple[Span, int, str]:
    """The span that was asked for, as a number of days (0: dates were given), and why it isn't another one."""
    given = request.GET
    usual = Span.of_the_last(USUAL)
    if given.get("first") or given.get("last"):
        try:
            span = Span(dt.date.fromisoformat(given.get("first", "")), dt.date.fromisoformat(given.get("last", "")))
        except (ValueError, OverflowError):
            return usual, USUAL, "Please give two dates, the earlier one first. These are the last 30 days."
        if len(span) > LONGEST or span.first.year < 2000 or span.last.year > 9000:
            return usual, USUAL, "Please choose at most 366 days. These are the last 30."
        return span, 0, ""
    days = {str(choice): choice for choice in CHOICES}.get(given.get("days", ""), USUAL)
    return Span.of_the_last(days), days, ""


class Rows:
    """Where the rows behind a figure are listed; empty for who may not read them."""

    def __init__(self, request: HttpRequest, span: Span, **only: str) -> None:
        self.request, self.span, self.only = request, span, only
        may = request.user.has_perm
        self.may_see = {"message": may("conversations.view_message"), "turn": may("conversations.view_turn")}
        self.may_see_personas = may("personas.view_influencer") or may("personas.change_influencer")

    def of_day(self, day: dt.date) -> "Rows":
        return Rows(self.request, Span(day, day), **self.only)

    def of_persona(self, influencer_id: str) -> "Rows":
        return Rows(self.request, self.span, conversation__influencer__id__exact=influencer_id)

    def listed(self, model: str, **only: str) -> str:
        if not self.may_see[model]:
            return ""
        when = {"created_at__gte": self.span.begins.isoformat(), "created_at__lt": self.span.ends.isoformat()}
        return f"{reverse(f'admin:conversations_{model}_changelist')}?{urlencode({**when, **self.only, **only})}"

    @property
    def messages(self) -> str:
        return self.listed("message")

    @property
    def turns(self) -> str:
        return self.listed("turn")

    @property
    def answered(self) -> str:
        return self.listed("turn", state__exact=Turn.State.DONE)

    @property
    def failed(self) -> str:
        return self.listed("turn", state__exact=Turn.State.FAILED)

    @property
    def blocked(self) -> str:
        return self.listed("turn", state__exact=Turn.State.BLOCKED)

    @property
    def stopped(self) -> str:
        return self.listed("turn", state__exact=Turn.State.STOPPED)

    @property
    def away(self) -> str:
        return self.listed("turn", state__exact=Turn.State.AWAY)


@dataclass(frozen=True)
class Card:
    title: str
    value: str
    link: str
    note: str = ""


def cards(found: Statistics, rows: Rows) -> list[Card]:
    turns = found.turns
    unpriced = f"without {turns.unpriced:,} turns of a model that has no price" if turns.unpriced else ""
    return [
        Card("Messages", f"{found.messages:,}", rows.messages, "of users and personas"),
        Card("Users", f"{found.users:,}", rows.turns, "who wrote something"),
        Card("Replies", f"{turns.answered:,}", rows.answered, f"to {turns.questions:,} questions"),
        Card("Failed", f"{turns.failed:,}", rows.failed, percent(turns.failed, turns)),
        Card("Blocked", f"{turns.blocked:,}", rows.blocked, percent(turns.blocked, turns)),
        Card("Time to reply", seconds(turns.median_ms), rows.answered, f"95 % within {seconds(turns.p95_ms)}"),
        Card("Tokens", f"{turns.total_tokens:,}", rows.turns, "read, thought and written"),
        Card("Cost", dollars(turns), rows.turns, unpriced),
    ]


def percent(part: int, turns: Figures) -> str:
    return f"{part / turns.questions:.1%} of questions" if turns.questions else ""


def seconds(ms: int | None) -> str:
    return "–" if ms is None else f"{ms / 1000:.1f} s"


def dollars(turns: Figures) -> str:
    return f"${turns.cost_usd:,.2f}" if turns.cost_usd >= 1 or not turns.cost_usd else f"${turns.cost_usd:.4f}"


@dataclass(frozen=True)
class Bar:
    """A day's, in units of the chart: each is 10 wide, and `TALL` is the highest."""

    x: int
    y: float
    height: float
    said: str
    link: str


@dataclass(frozen=True)
class Chart:
    title: str
    most: str
    bars: list[Bar]

    @property
    def wide(self) -> int:
        return 10 * len(self.bars)

    @property
    def summary(self) -> str:
        return f"{len(self.bars)} days, day by day. The table at the end has the figures."


def charts(days: list[Day], rows: Rows) -> list[Chart]:
    def of(title: str, value: Callable[[Day], float], listed: str, say: Callable[[float], str] = in_numbers) -> Chart:
        return chart(title, [(day, value(day), getattr(rows.of_day(day.day), listed)) for day in days], say)

    return [
        of("Messages", lambda day: day.messages, "messages"),
        of("Users", lambda day: day.users, "turns"),
        of("Replies", lambda day: day.turns.answered, "answered"),
        of("Failed", lambda day: day.turns.failed, "failed"),
        of("Blocked", lambda day: day.turns.blocked, "blocked"),
        of("Time to reply", lambda day: (day.turns.median_ms or 0) / 1000, "answered", in_seconds),
        of("Tokens", lambda day: day.turns.total_tokens, "turns"),
        of("Cost", lambda day: float(day.turns.cost_usd), "turns", in_dollars),
    ]


def in_seconds(value: float) -> str:
    return f"{value:.1f} s"


def in_dollars(value: float) -> str:
    return f"${value:,.4f}" if 0 < value < 1 else f"${value:,.2f}"


def in_numbers(value: float) -> str:
    return f"{value:,.0f}"


def chart(title: str, days: list[tuple[Day, float, str]], say: Callable[[float], str]) -> Chart:
    most = max(value for _, value, _ in days)
    bars = []
    for number, (day, value, link) in enumerate(days):
        height = round(value / most * TALL, 1) if most else 0
        said = f"{day.day:%-d %B %Y}: {say(value)}"
        bars.append(Bar(10 * number, round(TALL - height, 1), height, said, link))
    return Chart(title, say(most), bars)


@dataclass(frozen=True)
class Cell:
    text: str
    link: str = ""
    share: float | None = None  # of the largest in its column, in percent


@dataclass(frozen=True)
class Table:
    title: str
    heads: list[str]
    lines: list[list[Cell]]
    nothing: str = "Nobody wrote anything in these days."


FIGURES = [
    "Questions",
    "Replies",
    "Failed",
    "Blocked",
    "Stopped",
    "Away",
    "Tokens",
    "Cost",
    "Time to reply",
    "95 % within",
]


def figures(turns: Figures, rows: Rows) -> list[Cell]:
    return [
        Cell(f"{turns.questions:,}", rows.turns),
        Cell(f"{turns.answered:,}", rows.answered),
        Cell(f"{turns.failed:,}", rows.failed),
        Cell(f"{turns.blocked:,}", rows.blocked),
        Cell(f"{turns.stopped:,}", rows.stopped),
        Cell(f"{turns.away:,}", rows.away),
        Cell(f"{turns.total_tokens:,}"),
        Cell(dollars(turns)),
        Cell(seconds(turns.median_ms)),
        Cell(seconds(turns.p95_ms)),
    ]


def persona_table(personas: list[Persona], rows: Rows) -> Table:
    most = max((one.turns.questions for one in personas), default=0)
    lines = []
    for one in personas:
        page = reverse("admin:personas_influencer_change", args=[one.influencer_id]) if rows.may_see_personas else ""
        share = Cell("", share=one.turns.questions / most * 100)
        found = figures(one.turns, rows.of_persona(one.influencer_id))
        lines.append([Cell(one.display_name, page), share, Cell(f"{one.users:,}"), *found])
    return Table("Persona by persona", ["Persona", "", "Users", *FIGURES], lines)


def day_table(days: list[Day], rows: Rows) -> Table:
    lines = []
    for day in reversed(days):
        those = rows.of_day(day.day)
        counts = [Cell(f"{day.messages:,}", those.messages), Cell(f"{day.users:,}")]
        lines.append([Cell(f"{day.day:%-d %b %Y}"), *counts, *figures(day.turns, those)])
    return Table("Day by day", ["Day", "Messages", "Users", *FIGURES], lines)
