"""What processes tell each other about a turn that one of them runs: stop it; I follow it; this far it is.

Through the shared cache where one is configured and answers, else through the turn's row.
"""

import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

from django.conf import settings
from django.core.cache import cache
from django.utils import timezone
from redis.exceptions import RedisError

from conversations.models import Turn
from yral_chat.database import write_transaction

logger = logging.getLogger(__name__)
WATCHED = dt.timedelta(seconds=3)  # a follower says anew that it's there
AWAY = 5.0  # seconds that a cache which failed is left alone
KEPT = 150  # seconds, longer than any turn streams


@dataclass(frozen=True, slots=True)
class Signals:
    stop: frozenset[uuid.UUID]
    watched: frozenset[uuid.UUID]


class Board:
    _away_until = 0.0  # of time.monotonic: a cache that hangs would cost a second each time

    @property
    def _cached(self) -> bool:
        return bool(settings.CACHE_URL) and time.monotonic() >= self._away_until

    def ask_to_stop(self, turn: Turn) -> None:
        """The row says it already, in the transaction that found the turn under way."""
        if self._cached:
            self._set(_key("stop", turn.pk, turn.events_before), True)

    def signals(self, running: Mapping[uuid.UUID, int]) -> Signals:
        """For what runs here: each question's id, and its attempt's `events_before`."""
        if self._cached:
            stop, watch = ({_key(kind, *one): one[0] for one in running.items()} for kind in ("stop", "watch"))
            found = self._get_many([*stop, *watch])
            if found is not None:
                return Signals(
                    frozenset(pk for key, pk in stop.items() if key in found),
                    frozenset(pk for key, pk in watch.items() if key in found),
                )
        now = timezone.now()
        signalled = Turn.objects.signalled().filter(pk__in=list(running))
        rows = list(signalled.values_list("pk", "state", "events_before", "stop_requested", "watched_until"))
        rows = [row for row in rows if row[2] == running[row[0]]]  # else an attempt isn't committed yet, or lost
        return Signals(
            frozenset(pk for pk, state, _, stop, _ in rows if stop or state not in Turn.UNDER_WAY),
            frozenset(pk for pk, _, _, _, until in rows if until and until > now),
        )

    def watch(self, turn: Turn) -> None:
        if self._cached and self._set(_key("watch", turn.pk, turn.events_before), True, WATCHED.seconds):
            return
        with write_transaction():
            Turn.objects.under_way().filter(pk=turn.pk).update(watched_until=timezone.now() + WATCHED)

    def tell(self, question_id: uuid.UUID, events_before: int, pieces: list[str]) -> None:
        if self._cached and self._set(_key("text", question_id, events_before), pieces):
            return
        told = {"text_so_far": "".join(pieces), "event_ends": event_ends(pieces)}
        with write_transaction():
            Turn.objects.under_way().filter(pk=question_id, events_before=events_before).update(**told)

    def pieces(self, turn: Turn) -> list[str]:
        """Of a turn whose row was read just now."""
        if self._cached:
            key = _key("text", turn.pk, turn.events_before)
            if found := self._get_many([key]):
                return list(found[key])
        return cut(turn.text_so_far, turn.event_ends)

    def _set(self, key: str, value: object, seconds: int = KEPT) -> bool:
        try:
            cache.set(key, value, seconds)
        except RedisError as exc:
            self._leave_alone(exc)
            return False
        return True

    def _get_many(self, keys: list[str]) -> dict[str, list[str]] | None:
        try:
            return cache.get_many(keys)
        except RedisError as exc:
            self._leave_alone(exc)
            return None

    def _leave_alone(self, exc: RedisError) -> None:
        self._away_until = time.monotonic() + AWAY
        logger.warning("The cache doesn't answer (%s): turns use the database.", type(exc).__name__)


def _key(kind: str, question_id: uuid.UUID, events_before: int) -> str:
    """Of one attempt of a turn: what was said to or of an earlier one doesn't reach it."""
    return f"turn-{kind}:{question_id}:{events_before}"


def event_ends(pieces: Iterable[str]) -> list[int]:
    """Where each piece ends in the text."""
    return list(accumulate(map(len, pieces)))


def cut(text: str, ends: list[int]) -> list[str]:
    """The pieces that end there; all of it as one where that isn't known."""
    if not ends or ends[-1] != len(text):
        return [text] if text else []
    return [text[start:end] for start, end in pairwise([0, *ends])]


board = Board()
