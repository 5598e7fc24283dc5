"""What requests cost as the tables grow: CPU a request at 1,000, 100,000 and 1,000,000 messages, in one run.

    uv run python -m tests.growth [--sizes 1000 100000 1000000] [--rounds 12] [--requests 60] [--postgresql URL]
    uv run python -m tests.growth --start [--sizes …]

A gunicorn of one process serves each database; with --postgresql they are made on that server and dropped at the end.
The light caller has the same 800 messages in all of them. The heavy one has 40,000 and is only in those of at least
100,000. Rounds of the same request go to one database after the other, so that other work on the machine hurts all
alike. A round's CPU is that of the server's processes and of PostgreSQL's for its connections. Printed are microseconds
at the first size, and the medians of the rounds' ratios to it.

--start times the entrypoint instead, from its start to its first answer, with the file in memory and read from disk.
"""

import argparse
import http.client
import json
import os
import random
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import batched
from pathlib import Path
from typing import Any

import django
import psycopg

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")
os.environ.setdefault("LOG_FILE", "")
os.environ.setdefault("JWT_SECRET_KEY", "only-for-this-measurement-Xq4mZs8Lw2Kd7Rb")
django.setup()

from tests.conftest import token  # noqa: E402
from tests.fake_gemini import FakeGemini  # noqa: E402
from tests.request_cost import cpu_seconds  # noqa: E402
from tests.servers import CHATS, Server, environment, free_port, manage, on_postgresql, start, wait_until_it_answers  # noqa: E402

LIGHT, HEAVY = "light", "heavy"
ALSO_HEAVY = 100_000
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = ["plan", "rest", "walk", "sleep", "water", "again", "today", "never", "नमस्ते", "strong", "sugar", "💪"]
COLUMNS = {
    "conversations": "id user_id influencer_id created_at updated_at message_count metadata",
    "messages": "id conversation_id sequence role content message_type media_urls token_count created_at in_reply_to_id"
    " blocked stopped body_hash metadata",
    "turns": "question_id conversation_id state created_at finished_at attempts model finish_reason error_code"
    " prompt_tokens output_tokens thinking_tokens total_tokens sent event_ends events_before stop_requested"
    " text_so_far",
}


# A database of so many messages


def fill(database_url: str, influencers: list[str], messages: int) -> None:
    """A migrated database with these personas. Ids are as random as real ones, so that the indexes are as well."""
    rng = random.Random(7)
    left = messages
    owners = [(LIGHT, len(influencers), 80)]
    if messages >= ALSO_HEAVY:
        owners.append((HEAVY, len(influencers), 40_000 // len(influencers)))
    with writer(database_url) as write:
        for user, talks, each in owners:
            left -= talks * each
            write(rows_of(user, influencers[:talks], each, rng))
        users = ((f"user-{rng.getrandbits(64):x}", rng.sample(influencers, 2)) for _ in range(max(0, left) // 100))
        for some in batched(users, 50):
            write(row for user, talks in some for row in rows_of(user, talks, 50, rng))


def rows_of(user: str, influencers: list[str], each: int, rng: random.Random) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Table and row, of a conversation with each of the influencers that has `each` messages."""
    for influencer in influencers:
        talk, at = uuid.UUID(int=rng.getrandbits(128)), BEGAN + timedelta(seconds=rng.randrange(20_000_000))
        last = at + timedelta(seconds=each)
        yield "conversations", (talk, user, influencer, at, last, each, "{}")
        question = None
        for number in range(1, each + 1):
            pk, at, answers = uuid.UUID(int=rng.getrandbits(128)), at + timedelta(seconds=1), number % 2 == 0
            role, content = ("assistant" if answers else "user"), " ".join(rng.choices(WORDS, k=40 if answers else 12))
            fields = (role, content, "text", "[]", 60 if answers else None, at, question if answers else None)
            yield "messages", (pk, talk, number, *fields, False, False, "" if answers else "f" * 64, "{}")
            if not answers:
                sent = json.dumps({"system": "e" * 64, "memories": "", "messages": list(range(number, number + 10))})
                counts = (1, "gemini-2.5-flash", "STOP", "", 600, 60, 0, 660, sent, "[40, 90, 120]", 0, False, "")
                yield "turns", (pk, talk, "done", at, at, *counts)
                question = pk


@contextmanager
def writer(database_url: str) -> Iterator[Callable[[Iterator[tuple[str, tuple[Any, ...]]]], None]]:
    """Writes rows of any tables, all in one transaction."""
    kind = sqlite_writer if database_url.startswith("sqlite") else postgresql_writer
    with kind(database_url) as write_table:

        def write(rows: Iterator[tuple[str, tuple[Any, ...]]]) -> None:
            found: dict[str, list[tuple[Any, ...]]] = {table: [] for table in COLUMNS}
            for table, row in rows:
                found[table].append(row)
            for table, its in found.items():
                write_table(table, COLUMNS[table].split(), its)

        yield write


@contextmanager
def sqlite_writer(url: str) -> Iterator[Callable[..., None]]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    known = {uuid.UUID: lambda value: value.hex, datetime: lambda value: value.replace(tzinfo=None).isoformat(" ")}

    def write(table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
        plain = ([known[type(v)](v) if type(v) in known else v for v in row] for row in rows)
        slots = ", ".join("?" * len(columns))
        connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({slots})", plain)

    with connection:
        yield write
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


@contextmanager
def postgresql_writer(url: str) -> Iterator[Callable[..., None]]:
    with psycopg.connect(url) as connection:

        def write(table: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
            with connection.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()) as copy:
                for row in rows:
                    copy.write_row(row)

        yield write
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")


# The requests


@dataclass
class Place:
    """A database of some size behind a server, and the conversations of those who call."""

    size: int
    server: Server
    talks: dict[str, list[str]] = field(default_factory=dict)

    def cpu(self) -> float:
        used = cpu_seconds(self.server.process.pid)
        if not self.server.database_url.startswith("sqlite"):
            backends = self.server.rows("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
            used += sum(cpu_seconds(pid) for (pid,) in backends)
        return used


Request = tuple[str, str, Any]  # method, path, body


def requests(place: Place, user: str) -> dict[str, Callable[[int], Request]]:
    """By name; each takes a number and goes through the caller's conversations with it."""
    talks = place.talks[user]
    deep = {LIGHT: 60, HEAVY: 40_000 // len(talks) - 50}[user]

    def messages(number: int, offset: int) -> Request:
        return "GET", f"{CHATS}/{talks[number % len(talks)]}/messages?limit=20&offset={offset}", None

    def send(number: int) -> Request:
        body = {"message_type": "text", "content": f"What now? {number} {time.time_ns()}"}
        return "POST", f"{CHATS}/{talks[number % len(talks)]}/messages", body

    return {
        "personas": lambda number: ("GET", "/api/v1/influencers", None),
        "conversations": lambda number: ("GET", f"{CHATS}?limit=20", None),
        "newest messages": lambda number: messages(number, 0),
        "a deep page": lambda number: messages(number, deep),
        "send": send,
    }


def round_of(place: Place, user: str, make: Callable[[int], Request], count: int) -> float:
    """Microseconds of CPU a request."""
    connection = http.client.HTTPConnection("127.0.0.1", place.server.port)
    headers = {"Authorization": f"Bearer {token(user)}", "Content-Type": "application/json"}
    before = place.cpu()
    for number in range(count):
        method, path, body = make(number)
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
    used = place.cpu() - before
    connection.close()
    return used / count * 1e6


def measured(places: list[Place], rounds: int, count: int) -> dict[str, dict[tuple[int, str], list[float]]]:
    """Microseconds by request, then by size and caller."""
    found: dict[str, dict[tuple[int, str], list[float]]] = {}
    callers = [(place, user) for place in places for user in place.talks]
    for number in range(-1, rounds):
        for name in requests(*callers[0]):
            for place, user in callers if number % 2 else callers[::-1]:
                used = round_of(place, user, requests(place, user)[name], count)
                if number >= 0:  # the first warms up
                    found.setdefault(name, {}).setdefault((place.size, user), []).append(used)
    return found


def table(found: dict[str, dict[tuple[int, str], list[float]]]) -> str:
    callers = list(next(iter(found.values())))
    first, *others = sorted(callers)
    heads = "".join(f"{f'{size:,}':>12}{', heavy' if user == HEAVY else '':7}" for size, user in others)
    lines = [f"{'messages':18}{first[0]:>8,} µs{heads}"]
    for name, by in found.items():
        ratios = [statistics.median(b / a for a, b in zip(by[first], by[one], strict=True)) for one in others]
        cells = "".join(f"{ratio:>12.2f}{'':7}" for ratio in ratios)
        lines.append(f"{name:18}{statistics.median(by[first]):>11,.0f}{cells}")
    return "\n".join(line.rstrip() for line in lines)


def served(folder: Path, size: int, url: str, gemini: FakeGemini) -> Place:
    changed = {"DATABASE_URL": url, "WEB_CONCURRENCY": "1", "WEB_THREADS": "8", "RATE_LIMIT_PER_MINUTE": "0"}
    env = environment(folder, gemini.url, free_port(), **changed, RATE_LIMIT_PER_HOUR="0", MALLOC_ARENA_MAX="2")
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    server = start("gunicorn", env, folder)
    try:
        wait_until_it_answers(server)
        began = time.monotonic()
        fill(url, server.influencers, size)
        print(f"{size:,} messages in {time.monotonic() - began:.0f} s", file=sys.stderr)
        place = Place(size, server)
        for user in (LIGHT, HEAVY) if size >= ALSO_HEAVY else (LIGHT,):
            listed = server.call("GET", f"{CHATS}?limit=100", user=user).json()
            place.talks[user] = [one["id"] for one in listed["conversations"]]
    except BaseException:
        server.stop()
        raise
    return place


def start_of(folder: Path, size: int, gemini: FakeGemini) -> str:
    """How long the entrypoint takes with so many messages. It reads every page of the file."""
    place = served(folder, size, f"sqlite:///{folder}/chat.db", gemini)
    place.server.stop()
    file = folder / "chat.db"
    cells = []
    for forgotten in (False, True):
        if forgotten:
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        env = environment(folder, gemini.url, free_port(), DATABASE_URL=f"sqlite:///{file}")
        server = start("entrypoint", env, folder)
        try:
            wait_until_it_answers(server, 600)
            took = time.monotonic() - began
        finally:
            server.stop()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        cells.append(f"{f'{took:.1f} s, CPU {cpu:.1f} s':>24}")
    return f"{size:>12,}{file.stat().st_size / 1e6:>12,.0f} MB{''.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--postgresql", default="", metavar="URL")
    parser.add_argument("--start", action="store_true", help="time the entrypoint instead")
    given = parser.parse_args()
    gemini = FakeGemini()
    with tempfile.TemporaryDirectory() as name, ExitStack() as until_the_end:
        until_the_end.callback(gemini.stop)
        places = []
        if given.start:
            print(f"{'messages':>12}{'file':>15}{'in memory':>24}{'from disk':>24}")
        for size in sorted(given.sizes):
            folder = Path(name) / str(size)
            folder.mkdir()
            if given.start:
                print(start_of(folder, size, gemini))
                continue
            url = f"sqlite:///{folder}/chat.db"
            if given.postgresql:
                url = until_the_end.enter_context(on_postgresql(at=given.postgresql))
            place = served(folder, size, url, gemini)
            until_the_end.callback(place.server.stop)
            places.append(place)
        if given.start:
            return
        print(table(measured(places, given.rounds, given.requests)))


if __name__ == "__main__":
    main()
