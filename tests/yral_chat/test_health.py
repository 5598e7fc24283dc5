"""/health and /status of real servers whose database was damaged, deleted, or doesn't answer any more."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import wait_until
from tests.fake_gemini import FakeGemini
from tests.servers import (
    COMMANDS,
    POSTGRESQL,
    Got,
    Server,
    copied,
    environment,
    free_port,
    manage,
    on_postgresql,
    python,
    running,
)
from tests.stalling_proxy import StallingProxy

TIMED_OUT = 3.0  # seconds: 2 for the database, and the rest for a busy machine


@contextmanager
def asked(kind: str, folder: Path, gemini: FakeGemini, **changed: str) -> Iterator[Server]:
    """One process, each of whose threads has asked the database."""
    env = environment(folder, gemini.url, free_port(), WEB_CONCURRENCY="1", WEB_THREADS="8", **changed)
    with running(kind, env, folder) as server:
        at_once(server, "/api/v1/influencers", 16)
        assert health(server) == (200, "up")
        yield server


def filled(folder: Path, **changed: str) -> None:
    env = environment(folder, "http://127.0.0.1:9", 9, **changed)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")


def health(server: Server) -> tuple[int, Any]:
    got = server.call("GET", "/health", user=None)
    return got.status, got.json()["services"]["database"]["status"]


def at_once(server: Server, path: str, number: int) -> list[tuple[Got, float]]:
    """The answers to so many callers, and how long each waited."""

    def ask(_: int) -> tuple[Got, float]:
        asked = time.monotonic()
        return server.call("GET", path, user=None), time.monotonic() - asked

    with ThreadPoolExecutor(number) as callers:
        return list(callers.map(ask, range(number)))


# SQLite


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated and seeded SQLite file."""
    folder = tmp_path_factory.mktemp("health")
    filled(folder)
    return folder


@pytest.fixture(params=COMMANDS)
def on_sqlite(request: pytest.FixtureRequest, database: Path, tmp_path: Path, gemini: FakeGemini) -> Iterator[Server]:
    copied(database, tmp_path / "folder")
    with asked(request.param, tmp_path / "folder", gemini) as server:
        yield server


def file_of(server: Server) -> Path:
    return Path(server.database_url.removeprefix("sqlite:///"))


@pytest.mark.drill
@pytest.mark.own_database
def test_a_damaged_file_is_seen_by_every_thread(on_sqlite: Server) -> None:
    file_of(on_sqlite).write_bytes(b"garbage" * 100_000)

    assert {got.status for got, _ in at_once(on_sqlite, "/health", 16)} == {503}
    status = on_sqlite.call("GET", "/status", user=None)
    assert status.status == 200
    assert status.json()["database"]["connected"] is False
    assert set(status.json()["statistics"].values()) == {0}


@pytest.mark.drill
@pytest.mark.own_database
def test_a_deleted_file_is_seen_and_nothing_is_written_to_it_any_more(on_sqlite: Server) -> None:
    for name in ("", "-wal", "-shm"):
        file_of(on_sqlite).with_name(file_of(on_sqlite).name + name).unlink(missing_ok=True)

    assert {got.status for got, _ in at_once(on_sqlite, "/health", 16)} == {503}
    opened = on_sqlite.call("POST", "/api/v1/chat/conversations", {"influencer_id": on_sqlite.influencers[0]})
    assert opened.status == 500
    assert health(on_sqlite) == (503, "down")


@pytest.mark.drill
@pytest.mark.own_database
def test_a_file_that_was_put_in_its_place_is_used_at_once(on_sqlite: Server) -> None:
    file = file_of(on_sqlite)
    restored = file.with_name("restored.db")
    on_sqlite.rows(f"VACUUM INTO '{restored}'")
    for name in ("-wal", "-shm"):
        file.with_name(file.name + name).unlink(missing_ok=True)
    restored.replace(file)

    assert {got.status for got, _ in at_once(on_sqlite, "/health", 16)} == {200}
    conversation = on_sqlite.open(on_sqlite.influencers[0], "alice")
    assert len(on_sqlite.rows("SELECT id FROM conversations")) == 1, conversation


@pytest.mark.drill
@pytest.mark.own_database
def test_the_look_leaves_the_wal_as_it_is(database: Path, tmp_path: Path) -> None:
    """Which with Litestream nobody else may move into the database."""
    copied(database, tmp_path / "folder")
    file, wal = (tmp_path / "folder" / name for name in ("chat.db", "chat.db-wal"))
    writer = sqlite3.connect(file)
    writer.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE written (lately)")
    writer.close()
    size = wal.stat().st_size
    asks = "import django; django.setup(); from yral_chat.operations import database_health; print(database_health())"

    run = python(environment(tmp_path / "folder", "", 9, DJANGO_SETTINGS_MODULE="yral_chat.settings"), "-c", asks)

    assert "'up'" in run.stdout, run.stderr
    assert wal.stat().st_size == size > 0


# PostgreSQL


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a migrated and seeded database."""
    if not POSTGRESQL:
        pytest.skip("TEST_DATABASE_URL names no PostgreSQL: one that stalls wasn't tested.")
    with on_postgresql() as url:
        filled(tmp_path_factory.mktemp("postgresql"), DATABASE_URL=url)
        yield url


@pytest.fixture
def proxy(postgresql: str) -> Iterator[StallingProxy]:
    address = urlsplit(postgresql)
    made = StallingProxy(address.hostname or "", address.port or 5432)
    yield made
    made.stop()


@pytest.fixture(params=COMMANDS)
def on_a_proxy(
    request: pytest.FixtureRequest, postgresql: str, proxy: StallingProxy, tmp_path: Path, gemini: FakeGemini
) -> Iterator[Server]:
    """Its pool has several connections."""
    address = urlsplit(postgresql)
    user = address.netloc.rpartition("@")[0]
    url = address._replace(netloc=f"{user}@127.0.0.1:{proxy.port}").geturl()
    with asked(request.param, tmp_path, gemini, DATABASE_URL=url, DATABASE_POOL_SIZE="4") as server:
        yield server
        proxy.go_on()


def test_a_postgresql_that_stalls_is_down_after_two_seconds_for_everybody(
    on_a_proxy: Server, proxy: StallingProxy
) -> None:
    proxy.stall()

    for _ in range(2):
        for got, seconds in at_once(on_a_proxy, "/health", 6):
            assert (got.status, got.json()["services"]["database"]["status"]) == (503, "down")
            assert seconds < TIMED_OUT
    for got, seconds in at_once(on_a_proxy, "/status", 6):
        assert (got.status, got.json()["database"]["connected"]) == (200, False)
        assert seconds < TIMED_OUT
    assert "yral_chat_database_up 0" in on_a_proxy.call("GET", "/metrics", user=None).content.decode()

    proxy.go_on()
    wait_until(lambda: health(on_a_proxy) == (200, "up"), "it doesn't recover", 20)


def test_other_requests_fail_too_instead_of_waiting_for_ever(on_a_proxy: Server, proxy: StallingProxy) -> None:
    proxy.stall()

    for got, seconds in at_once(on_a_proxy, "/api/v1/influencers", 8):
        assert got.status == 500
        assert seconds < 45, "20 for the pool's connection and 20 for the statement"

    proxy.go_on()
    wait_until(lambda: health(on_a_proxy) == (200, "up"), "it doesn't recover", 20)
    assert on_a_proxy.call("GET", "/api/v1/influencers", user=None).status == 200
