"""How often each caller came in a window of time: in a SQLite file that a machine's processes share, or in Redis.

Not by the `limits` library: it asks its storage once for each window and once more for what is left of it, and counts
in windows that begin with a caller's first request. Here one statement counts in all windows or in none, and windows
are the clock's.
"""

import atexit
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
from django.conf import settings
from django.core.signals import setting_changed
from redis import Redis
from redis.exceptions import RedisError

from yral_chat.database import file_at

logger = logging.getLogger(__name__)


class Window(NamedTuple):
    """Of the clock, in seconds since 1970, and how many requests of a caller may pass in it."""

    name: str
    starts: int
    ends: int
    most: int


class Counted(NamedTuple):
    """`counts` are by the windows' names, with this request if it passed. One that didn't pass counts nowhere."""

    passed: bool
    counts: dict[str, int]


class Unavailable(Exception):
    """The counters can't be reached, read or written."""


class Counters(Protocol):
    at_once: int  # threads of a process that may count at the same time

    def count(self, caller: bytes, windows: Sequence[Window]) -> Counted: ...

    def close(self) -> None: ...


class FileCounters:
    """A few connections per process, of which each request borrows one for the moment that it counts.

    A lock, or a row that a writing statement returns, would be held while the thread waits for Python's own lock, and
    with it everybody else: under load that costs more than the counting. Nothing waits for the disk: after a power cut
    the counts may be gone. Who finds the file locked looks again after half a millisecond, for a second; SQLite's own
    waiting sleeps so long in between that somebody starves under load.
    """

    at_once = 2
    PATIENCE, PAUSE = 1.0, 0.0005
    SWEEP = 64  # requests between two looks for callers who are gone, each at 1/256 of all

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._requests = count(1)
        self._closed = 0  # how often
        self._opened: tuple[int, int] | None = None  # the file

    def count(self, caller: bytes, windows: Sequence[Window]) -> Counted:
        until = time.monotonic() + self.PATIENCE
        try:
            with self._borrowed(until) as connection:
                if next(self._requests) % self.SWEEP == 0:
                    _patiently(lambda: _sweep(connection, windows[0].starts - 3600), until)
                values = (*chain.from_iterable(windows), caller)
                changed = _patiently(lambda: connection.execute(_count_sql(len(windows)), values).rowcount, until)
                current = max(window.starts for window in windows)
                ((counts,),) = connection.execute(COUNTS, (caller, current)).fetchall()
        except (sqlite3.Error, OSError) as exc:
            raise Unavailable(f"{self.path}: {exc}") from exc
        return Counted(changed > 0, orjson.loads(counts))

    @contextmanager
    def _borrowed(self, until: float) -> Iterator[sqlite3.Connection]:
        if self._opened != file_at(self.path):  # deleted or replaced: others would count in another one
            self.close()
        closed_before = self._closed
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _patiently(self._open, until)
        try:
            yield connection
        except BaseException:
            connection.close()
            self.close()  # the others may be of a file that was replaced
            raise
        self._idle.append(connection)
        if self._closed != closed_before:  # while it was borrowed
            self.close()

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            for statement in PREPARE:
                connection.execute(statement).close()
        except BaseException:
            connection.close()
            raise
        self._opened = file_at(self.path)
        return connection

    def close(self) -> None:
        self._closed += 1
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()


def _patiently[T](call: Callable[[], T], until: float) -> T:
    """Again while somebody else is writing."""
    while True:
        try:
            return call()
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(FileCounters.PAUSE)


def _sweep(connection: sqlite3.Connection, before: int) -> None:
    """Callers are known by digests: those that begin with one random byte are a fair share of them."""
    first = os.urandom(1)
    connection.execute(SWEEP, (first, first + b"\xff" * DIGEST, before))


TABLE = """
CREATE TABLE IF NOT EXISTS counters (
    caller BLOB, window TEXT, starts INTEGER NOT NULL, ends INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (caller, window)
) WITHOUT ROWID
"""
PREPARE = ("PRAGMA synchronous=OFF", "PRAGMA cache_size=-256", "PRAGMA journal_mode=WAL", TABLE)
COUNTS = "SELECT json_group_object(window, count) FROM counters WHERE caller = ? AND ends > ?"
SWEEP = "DELETE FROM counters WHERE caller BETWEEN ? AND ? AND ends < ?"


@cache
def _count_sql(windows: int) -> str:
    """A row may be of the next window already, when a request comes a moment late: then it counts in that one. If it
    is of a later one still, the clock was wrong."""
    caller = f"?{4 * windows + 1}"
    return f"""
        INSERT INTO counters (caller, window, starts, ends, count)
        WITH asked (window, starts, ends, most) AS (VALUES {", ".join(["(?, ?, ?, ?)"] * windows)})
        SELECT {caller}, window, starts, ends, 1 FROM asked WHERE NOT EXISTS (
            SELECT 1 FROM asked CROSS JOIN counters AS held USING (window)
            WHERE caller = {caller} AND held.starts BETWEEN asked.starts AND asked.ends AND count >= most
        )
        ON CONFLICT (caller, window) DO UPDATE SET
            count = iif(starts BETWEEN excluded.starts AND excluded.ends, count, 0) + 1,
            starts = iif(starts BETWEEN excluded.starts AND excluded.ends, starts, excluded.starts),
            ends = iif(starts BETWEEN excluded.starts AND excluded.ends, ends, excluded.ends)
    """  # noqa: S608


class RedisCounters:
    """A key per caller and window, gone soon after the window; one round trip a request. Valkey speaks the same."""

    at_once = 32  # connections, too
    SCRIPT = """
        local counts, passed = {}, 1
        for place, key in ipairs(KEYS) do
            counts[place] = tonumber(redis.call('GET', key) or 0)
            if counts[place] >= tonumber(ARGV[2 * place - 1]) then passed = 0 end
        end
        if passed == 1 then
            for place, key in ipairs(KEYS) do
                counts[place] = redis.call('INCR', key)
                if counts[place] == 1 then redis.call('EXPIRE', key, ARGV[2 * place]) end
            end
        end
        return {passed, unpack(counts)}
    """

    def __init__(self, address: str, options: dict[str, Any]) -> None:
        self._redis = Redis.from_url(address, **options)
        self._count = self._redis.register_script(self.SCRIPT)

    def count(self, caller: bytes, windows: Sequence[Window]) -> Counted:
        keys = [f"yral_chat:limit:{{{caller.hex()}}}:{window.name}:{window.starts}" for window in windows]
        limits = [number for window in windows for number in (window.most, window.ends - window.starts + 60)]
        try:
            passed, *counts = self._count(keys, limits)
        except (RedisError, OSError) as exc:
            raise Unavailable(f"CACHE_URL: {type(exc).__name__}") from exc
        names = [window.name for window in windows]
        return Counted(bool(passed), dict(zip(names, counts, strict=True)))

    def close(self) -> None:
        self._redis.close()


class Forgiving:
    """Counters that fail let everybody pass. One of the two log lines tells when that begins, one when it ends; both at
    most once in SILENCE seconds.

    Who failed isn't asked for PAUSE seconds, and then by one request only, which alone says that they work again. Those
    who come at once wait here for their place: hundreds that try at the same time would take Python's lock from each
    other until their time is up.
    """

    PAUSE, SILENCE = 2.0, 60.0

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._places = threading.BoundedSemaphore(counters.at_once)
        self._failing = self._told = False
        self._not_before = 0.0
        self._told_at = float("-inf")
        self._lock = threading.Lock()

    def count(self, caller: str, windows: Sequence[Window]) -> Counted | None:
        """None if nobody could count."""
        with self._places:
            probes = self._failing
            if probes and not self._may_probe():
                return None
            try:
                counted = self.counters.count(digest(caller), windows)
            except Unavailable as exc:
                self._fails(exc)
                return None
            if probes:
                self._works()
            return counted

    def _may_probe(self) -> bool:
        with self._lock:
            if time.monotonic() < self._not_before:
                return False
            self._not_before = time.monotonic() + self.PAUSE
            return True

    def _fails(self, exc: Unavailable) -> None:
        with self._lock:
            now = time.monotonic()
            self._failing, self._not_before = True, now + self.PAUSE
            if self._told or now < self._told_at + self.SILENCE:
                return
            self._told, self._told_at = True, now
        logger.error("Requests aren't counted, and none is limited: the counters can't be used (%s).", exc)

    def _works(self) -> None:
        with self._lock:
            self._failing, told, self._told = False, self._told, False
        if told:
            logger.warning("Requests are counted and limited again.")


DIGEST = 16


def digest(caller: str) -> bytes:
    """Of one size, however long a user's id, and no list of users."""
    return hashlib.blake2b(caller.encode(), digest_size=DIGEST).digest()


def make() -> Counters:
    if settings.CACHE_URL:
        cache_settings = settings.CACHES["default"]
        return RedisCounters(cache_settings["LOCATION"], cache_settings["OPTIONS"])
    return FileCounters(settings.RATE_LIMIT_DATABASE)


_first = threading.Lock()
_made: list[Forgiving] = []
_of_the_parent: list[Forgiving] = []  # kept: to close a SQLite connection of another process is harmful


def of_this_process() -> Forgiving:
    """Nothing is opened before the first request is counted."""
    if not _made:
        with _first:
            if not _made:
                _made.append(Forgiving(make()))
    return _made[0]


def close() -> None:
    while _made:
        _made.pop().counters.close()


def _after_fork() -> None:
    global _first
    _first = threading.Lock()
    _of_the_parent.extend(_made)
    _made.clear()


def _forget(*, setting: str, **kwargs: object) -> None:
    if setting in ("RATE_LIMIT_DATABASE", "CACHE_URL", "CACHES"):
        close()


atexit.register(close)
os.register_at_fork(after_in_child=_after_fork)
setting_changed.connect(_forget)
