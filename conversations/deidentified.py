"""The views' twins for dashboards, in a file of their own: no text, no name or id of a user, nothing of a prompt.

A user's or a conversation's hash is keyed, so that nobody without the key finds one by trying ids, and it's the same in
every export. The file is written elsewhere and takes its name when it is whole: who reads the old one can go on.
"""

import fcntl
import hashlib
import hmac
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from conversations.analytics import VIEWS, views_are_made
from yral_chat import secret_keys

HASH_DIGITS = 24
BATCH = 2000
HASHED = {"user_hash": "user_id", "conversation_hash": "conversation_id"}
TYPES = {"text": "TEXT", "integer": "INTEGER", "real": "REAL", "boolean": "BOOLEAN", "date": "DATE"} | {
    "timestamp": "TIMESTAMP"
}


class ExportRefused(Exception):
    """The text says why, and that the file of before stays."""


@dataclass(frozen=True, slots=True)
class Twin:
    view: str
    columns: tuple[str, ...]  # a new one of the view comes here by hand or not at all
    indexes: tuple[str, ...]


_SPENT = ("time_spent_seconds", "time_spent_minutes", "time_spent_hours")
_MESSAGES = ("total_messages", "user_messages", "assistant_messages")
_SEEN = ("first_message_at", "last_message_at", "last_seen_at")
TWINS = {
    "bi_user_conversation_summary": Twin(
        "v_user_conversation_summary",
        ("user_hash", "bot_id", "bot_name", "conversation_hash", *_SEEN, *_SPENT, *_MESSAGES, "active_days"),
        ("user_hash", "bot_id", "last_message_at"),
    ),
    "bi_conversation_threads": Twin(
        "v_conversation_threads",
        (
            *("conversation_hash", "user_hash", "bot_id", "bot_name", "sequence", "role", "message_type", "characters"),
            *("pictures", "audio_seconds", "token_count", "blocked", "stopped", "created_at"),
        ),
        ("conversation_hash, sequence", "created_at, bot_id", "user_hash"),
    ),
    "bi_bot_performance": Twin("v_bot_performance", tuple(VIEWS["v_bot_performance"].columns), ("bot_id",)),
    "bi_user_engagement": Twin(
        "v_user_engagement",
        ("user_hash", "conversations", *_MESSAGES, *_SEEN, "active_days", *_SPENT),
        ("user_hash", "last_seen_at"),
    ),
    "bi_daily_activity": Twin("v_daily_activity", tuple(VIEWS["v_daily_activity"].columns), ("activity_date",)),
    "bi_recent_activity": Twin(
        "v_recent_activity",
        ("activity_date", "bot_id", "bot_name", "active_users", "active_conversations", *_MESSAGES, "last_message_at"),
        ("activity_date, bot_id",),
    ),
}


def hash_key() -> bytes:
    """ANALYTICS_HASH_KEY, or the one that is kept beside the database; made at the first export."""
    try:
        return (settings.ANALYTICS_HASH_KEY or secret_keys.kept(settings.ANALYTICS_KEPT_KEY)).encode()
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is shorter than 32 bytes"
        raise ExportRefused(
            f"ANALYTICS_HASH_KEY isn't set, and none can be kept in {settings.ANALYTICS_KEPT_KEY} ({why})."
        ) from exc


def export(path: Path) -> Iterator[tuple[str, int]]:
    """Writes the file; yields each table's name and rows. The file is there when the last one was taken."""
    if not views_are_made():
        raise ExportRefused("The database lacks the views that are exported. Run: manage.py migrate")
    key = hash_key()
    with _only_here(path):
        _refuse_what_is_not_ours(path)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
        try:
            yield from _written(draft, key)
            _put(draft, path)
        except (sqlite3.Error, DatabaseError, OSError) as exc:
            raise ExportRefused(f"Nothing was exported, and {path} is as it was: {exc}") from exc
        finally:
            draft.unlink(missing_ok=True)


@contextmanager
def _only_here(path: Path) -> Iterator[None]:
    """No other export writes it now. What killed ones left is removed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as exc:
        raise ExportRefused(f"{path.parent} can't be written to ({exc.strerror}).") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise ExportRefused(f"Another export to {path} is under way.") from exc
        for left in path.parent.glob(f".{path.name}.*.draft*"):
            left.unlink()
        yield


def _refuse_what_is_not_ours(path: Path) -> None:
    """An export takes the place of an export, never of another file: it might be the database."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as there:
            names = {name for (name,) in there.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        names = set()
    if "bi_export" not in names or not all(name.startswith(("bi_", "sqlite_")) for name in names):
        raise ExportRefused(f"{path} is no earlier export: name another file, or remove that one.")


def _written(draft: Path, key: bytes) -> Iterator[tuple[str, int]]:
    with closing(sqlite3.connect(draft, isolation_level=None)) as target, _snapshot() as rows_of:
        target.execute("PRAGMA journal_mode=OFF")
        target.execute("PRAGMA synchronous=OFF")  # it is synced once, when it is whole
        target.execute("BEGIN")
        target.execute("CREATE TABLE bi_export (exported_at TIMESTAMP NOT NULL)")
        target.execute("INSERT INTO bi_export VALUES (?)", [_moment(timezone.now())])
        hashes = _hashes(key)
        for name, twin in TWINS.items():
            yield name, _copied(name, twin, rows_of, target, hashes)
        target.execute("COMMIT")
        target.execute("ANALYZE")


def _copied(name: str, twin: Twin, rows_of: Callable[[str], Iterator[Any]], target: Any, hashes: Any) -> int:
    kinds = VIEWS[twin.view].columns
    sources = [HASHED.get(column, column) for column in twin.columns]
    typed = ", ".join(f"{column} {TYPES[kinds[source]]}" for column, source in zip(twin.columns, sources, strict=True))
    convert = [hashes.get(c) or CONVERTED.get(c) or CONVERTED.get(kinds.get(c, "")) for c in twin.columns]
    places = [(place, one) for place, one in enumerate(convert) if one]

    def converted() -> Iterator[list[Any]]:
        for row in rows_of(f"SELECT {', '.join(sources)} FROM {twin.view}"):  # noqa: S608
            changed = list(row)
            for place, one in places:
                if changed[place] is not None:
                    changed[place] = one(changed[place])
            yield changed

    target.execute(f"CREATE TABLE {name} ({typed})")
    slots = ", ".join("?" * len(sources))
    count = int(target.executemany(f"INSERT INTO {name} VALUES ({slots})", converted()).rowcount)  # noqa: S608
    for number, columns in enumerate(twin.indexes):
        target.execute(f"CREATE INDEX {name}_{number} ON {name} ({columns})")
    return max(count, 0)


@contextmanager
def _snapshot() -> Iterator[Callable[[str], Iterator[Any]]]:
    """All is read as of one moment. No writer waits for it: on SQLite it is a reader of the write-ahead log."""
    if connection.vendor == "sqlite":
        path = Path(connection.settings_dict["NAME"]).resolve()
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=20)) as source:
            source.execute("PRAGMA cache_size=-32000")
            source.execute("BEGIN")
            yield source.execute
    else:
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            yield _from_postgresql


def _from_postgresql(sql: str) -> Iterator[Any]:
    """Without holding all rows in memory."""
    with connection.chunked_cursor() as cursor:
        cursor.execute(sql)
        while rows := cursor.fetchmany(BATCH):
            yield from rows


def _hashes(key: bytes) -> dict[str, Callable[[str], str]]:
    """What makes a user's id, and a conversation's, into its hash. Each id is hashed once."""

    class Known(dict[str, str]):
        def __init__(self, of_what: str) -> None:
            self.begun = hmac.new(key, f"{of_what}\0".encode(), hashlib.sha256)

        def __missing__(self, value: str) -> str:
            made = self.begun.copy()
            made.update(value.encode())
            self[value] = made.hexdigest()[:HASH_DIGITS]
            return self[value]

    return {column: Known(source).__getitem__ for column, source in HASHED.items()}


def _moment(value: Any) -> str:
    """To the second, in UTC, as SQLite and Metabase read it. SQLite gave it as text."""
    return value[:19] if isinstance(value, str) else f"{value:%Y-%m-%d %H:%M:%S}"


def _inert(text: str) -> str:
    """No spreadsheet takes it for a formula: Metabase's answers are downloaded as CSV."""
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) or text.startswith(("\t", "\r")) else text


CONVERTED: dict[str, Callable[[Any], Any]] = {
    "timestamp": _moment,
    "date": str,
    "boolean": int,
    "bot_name": _inert,
    "category": _inert,
}


def _put(draft: Path, path: Path) -> None:
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.chmod(0o444)
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
