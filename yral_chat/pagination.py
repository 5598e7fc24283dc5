"""Offset pages. Out of range is 422, never clamped; every list they cut has a total order."""

from dataclasses import dataclass

from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.utils.functional import cached_property
from rest_framework.request import Request

from yral_chat.errors import invalid_query

MAX_OFFSET = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Page:
    limit: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.limit


def base_url(request: Request) -> str:
    """Scheme, host and SCRIPT_NAME under which the caller reached us, to build links with."""
    return request.build_absolute_uri("/")[:-1] + str(request.META["SCRIPT_NAME"]).rstrip("/")


def page_of(request: Request, *, limit: int, most: int) -> Page:
    """?limit=&offset= of the request; `limit` is the default, `most` the largest allowed. Raises Invalid."""
    return Page(
        limit=_whole_number(request, "limit", limit, 1, most),
        offset=_whole_number(request, "offset", 0, 0, MAX_OFFSET),
    )


def _whole_number(request: Request, name: str, default: int, least: int, most: int) -> int:
    given = request.query_params.getlist(name)
    if not given:
        return default
    raw = given[0] if len(given) == 1 else ""
    digits = raw.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 12):
        raise invalid_query(name, "A valid whole number is required.", "int_parsing")
    if not least <= int(raw) <= most:
        raise invalid_query(name, f"Must be between {least} and {most}.", "out_of_range")
    return int(raw)


def one_of(request: Request, name: str, default: str, choices: tuple[str, ...]) -> str:
    value = request.query_params.get(name, default)
    if value not in choices:
        raise invalid_query(name, f"Must be one of: {', '.join(choices)}.", "enum")
    return value


class CappedPaginator(Paginator):
    """For admin lists of big tables: counts no further than 10,000 rows, so that no page scans the table."""

    cap = 10_000

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if isinstance(rows, QuerySet):
            return rows.order_by()[: self.cap].count()
        return len(rows)
