"""Crashes reach Sentry, handled errors don't, and nothing personal goes with them: from a real server to a fake one."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import CANARY, token
from tests.fake_gemini import REPLY, Answer, FakeGemini, fails, streams
from tests.fake_sentry import FakeSentry
from tests.servers import (
    API_KEY,
    CHATS,
    COMMANDS,
    JWT_SECRET,
    SECRET,
    Server,
    copied,
    environment,
    free_port,
    manage,
    python,
    running,
)

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

SAID = "What I say is nobody's business, 4711."


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentry")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    with sqlite3.connect(folder / "chat.db") as rows:
        rows.execute("UPDATE ai_influencers SET system_instructions = system_instructions || ?", [CANARY])
    rows.close()
    return folder


@pytest.fixture
def sentry() -> Iterator[FakeSentry]:
    fake = FakeSentry()
    yield fake
    fake.stop()


@pytest.fixture(params=COMMANDS)
def server(
    request: pytest.FixtureRequest, database: Path, sentry: FakeSentry, gemini_server: FakeGemini, tmp_path: Path
) -> Iterator[Server]:
    folder = tmp_path / request.param
    copied(database, folder)
    env = environment(folder, gemini_server.url, free_port(), SENTRY_DSN=sentry.dsn, WEB_CONCURRENCY="1")
    with running(request.param, env, folder) as started:
        yield started


def drop(server: Server, table: str) -> None:
    with closing(sqlite3.connect(server.database_url.removeprefix("sqlite:///"), timeout=20)) as rows:
        rows.execute(f"DROP TABLE {table}")


def test_crashes_are_reported_and_nothing_else(server: Server, sentry: FakeSentry, gemini: FakeGemini) -> None:
    conversation = server.open(server.influencers[0], "private-user-77")
    gemini.will(fails(400, f"Bad request: {SAID}"))
    assert server.send(conversation, SAID, "private-user-77").status == 503
    assert server.call("GET", CHATS, user=None).status == 401
    assert server.call("POST", CHATS, {}, "private-user-77").status == 422
    assert server.call("GET", "/nothing").status == 404
    assert sentry.events() == []

    # A streamed turn, in whose thread there is nobody to answer to: its table is gone when the answer shall be kept.
    gemini.will(Answer(chunks=streams(REPLY, " More.").chunks, before=lambda: drop(server, "turns")))
    body = {"message_type": "text", "content": SAID}
    headers: Any = {"X-Correlation-ID": "find-this-stream"}
    streamed = server.call("POST", f"{CHATS}/{conversation}/messages/stream", body, "private-user-77", **headers)
    assert b"event: error" in streamed.content
    stream_crash = sentry.event("find-this-stream")

    drop(server, "messages")
    headers = {"X-Correlation-ID": "find-this-request"}
    got = server.call("GET", f"{CHATS}/{conversation}/messages?note={SAID[:4]}", user="private-user-77", **headers)
    assert got.status == 500
    view_crash = sentry.event("find-this-request")

    for event in (stream_crash, view_crash):
        assert event["environment"] == "production"
        assert event["release"] == configured.APP_VERSION
        assert "no such table" in event["exception"]["values"][-1]["value"]
        assert not {"request", "user", "extra", "breadcrumbs", "contexts"} & {k for k, v in event.items() if v}
        assert not [f for e in event["exception"]["values"] for f in e["stacktrace"]["frames"] if "vars" in f]
    raw = json.dumps(sentry.raw)
    made = token("private-user-77").split(".")[0]
    for secret in (SAID, REPLY, CANARY, API_KEY, JWT_SECRET, SECRET, made, "private-user-77", conversation):
        assert secret not in raw
    others = [event for event in sentry.events() if event not in (stream_crash, view_crash)]
    assert {event["tags"]["correlation_id"] for event in others} <= {"-"}, "of the thread that looks after turns"
    assert len(others) <= 5, "though it misses the table five times a second"


def test_a_crash_that_repeats_silences_no_other(server: Server, sentry: FakeSentry) -> None:
    drop(server, "ai_influencers")
    drop(server, "conversations")
    for number in range(8):
        listed = server.call("GET", "/api/v1/influencers", user=None, **{"X-Correlation-ID": f"one-{number}"})
        assert listed.status == 500
    assert server.call("GET", CHATS, **{"X-Correlation-ID": "another"}).status == 500

    assert sentry.event("another")["exception"]["values"][-1]["type"] == "OperationalError"
    ids = {event["tags"]["correlation_id"] for event in sentry.events()}
    assert {one for one in ids if one.startswith("one-")} == {f"one-{number}" for number in range(5)}


def test_without_a_dsn_it_isn_t_even_imported() -> None:
    code = "import django; django.setup(); import yral_chat.urls, sys; print([m for m in sys.modules if 'sentry' in m])"
    env = {"PATH": "/usr/bin:/bin", "ENV_FILE": "", "LOG_FILE": "", "DJANGO_SETTINGS_MODULE": "yral_chat.settings"}
    run = python(env, "-c", code, timeout=60)

    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
