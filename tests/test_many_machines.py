"""Two servers as two machines have them: on one PostgreSQL (by TLS), one Redis and one bucket."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

import boto3
import psycopg
import pytest
from redis import Redis

from tests.conversations.test_turn_processes import Gate, new_chat, text_of
from tests.conversations.test_turn_processes import gate as gate
from tests.fake_gemini import Answer, FakeGemini, says, streams
from tests.media_uploads.conftest import BUCKET, form, png
from tests.media_uploads.conftest import s3_server as s3_server
from tests.postgresql import Cluster, make_certificate, running_postgresql
from tests.servers import (
    CHATS,
    Got,
    Server,
    environment,
    free_port,
    manage,
    running_redis,
    start,
    wait_until_it_answers,
)

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

WAITING = int(os.environ.get("WAITING_TURNS", "120"))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Cluster]:
    with running_postgresql() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared(
    postgresql: Cluster, gemini_server: FakeGemini, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """What the machines have in common, as settings; the database has the personas."""
    folder = tmp_path_factory.mktemp("shared")
    store = boto3.client("s3", endpoint_url=s3_server, aws_access_key_id="operator", aws_secret_access_key="operator")
    store.create_bucket(Bucket=BUCKET)
    store.close()
    with running_redis(folder) as redis:
        env = environment(
            folder,
            gemini_server.url,
            9,
            DATABASE_URL=postgresql.url(),
            CACHE_URL=redis,
            USE_S3="true",
            S3_ENDPOINT_URL=s3_server,
            AWS_ACCESS_KEY_ID="the-key-id",
            AWS_SECRET_ACCESS_KEY="the-secret-access-key",
            AWS_S3_BUCKET=BUCKET,
            RATE_LIMIT_UPLOAD_PER_MINUTE="5",
        )
        manage(env, "migrate", "--verbosity", "0")
        manage(env, "seed_personas")
        yield env


@pytest.fixture(scope="module")
def machines(shared: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """One process each, with the threads and the pool that are usual."""
    made = []
    for kind in ("gunicorn", "uvicorn"):
        env = {**shared, "PORT": str(free_port()), "WEB_CONCURRENCY": "1", "WEB_THREADS": "256"}
        made.append(start(kind, env, tmp_path_factory.mktemp(kind)))
    try:
        for server in made:
            wait_until_it_answers(server)
        yield made
    finally:
        for server in made:
            server.stop()


class Talked(NamedTuple):
    user: str
    text: str
    answer: Got
    began: float
    ended: float


def uploaded(server: Server, user: str) -> Got:
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    return server.call("POST", "/api/v1/media/upload", form(png(), "image"), user, **headers)


# One service


def test_opened_at_both_at_once_it_is_one_conversation(machines: list[Server]) -> None:
    body = {"influencer_id": machines[0].influencers[0]}

    with ThreadPoolExecutor(20) as pool:
        got = list(pool.map(lambda number: machines[number % 2].call("POST", CHATS, body, "opener"), range(20)))

    assert {one.status for one in got} == {201}
    assert len({one.json()["id"] for one in got}) == 1
    assert machines[0].rows("SELECT message_count FROM conversations WHERE user_id = ?", "opener") == [(1,)]


def test_a_limit_counts_at_both(machines: list[Server]) -> None:
    if time.time() % 60 > 50:
        time.sleep(61 - time.time() % 60)  # it counts by the clock's minute

    got = [uploaded(machines[number % 2], "uploader").status for number in range(7)]

    assert got == [200] * 5 + [429] * 2


def test_a_file_that_one_took_is_seen_and_used_by_the_other(machines: list[Server], gemini: FakeGemini) -> None:
    one, other = machines
    key = uploaded(one, "photographer").json()["storage_key"]
    chat = other.open(other.influencers[0], "photographer")

    sent = other.call(
        "POST",
        f"{CHATS}/{chat}/messages",
        {"message_type": "multimodal", "content": "What is it?", "media_urls": [key]},
        "photographer",
    )

    assert sent.status == 200, sent.content
    assert any("inlineData" in part for part in gemini.last.body["contents"][-1]["parts"])
    for server in machines:
        listed = server.call("GET", f"{CHATS}/{chat}/messages", None, "photographer").json()
        (link,) = listed["messages"][1]["media_urls"]
        assert urlsplit(link).path.endswith(key)


def test_a_persona_edited_at_one_is_obeyed_by_the_other_in_its_next_turn(
    machines: list[Server], shared: dict[str, str], gemini: FakeGemini
) -> None:
    other = machines[1]
    chat = other.open(other.influencers[1], "reader")
    assert other.send(chat, "Before?", "reader").status == 200

    edit = f"Influencer.objects.filter(pk={other.influencers[1]!r}).update(system_instructions='Speak in rhymes.')"
    manage(shared, "shell", "-v", "0", "-c", f"from personas.models import Influencer; {edit}")

    assert other.send(chat, "After?", "reader").status == 200
    before, after = gemini.requests[-2:]
    assert "Speak in rhymes." in after.system
    assert "Speak in rhymes." not in before.system


# Connections


def test_waiting_turns_hold_few_connections(machines: list[Server], gemini: FakeGemini) -> None:
    """With WAITING_TURNS=500 in the environment, that many."""
    gemini.default = Answer(says("Well thought.").body, delay=2)
    with ThreadPoolExecutor(32) as pool:
        chats = list(pool.map(lambda n: machines[n % 2].open(machines[0].influencers[0], f"w{n}"), range(WAITING)))
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        with psycopg.connect(machines[0].database_url) as watcher:
            while not over.wait(0.05):
                (found,) = watcher.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datid > 0 AND pid <> pg_backend_pid()"
                ).fetchone() or (0,)
                watcher.rollback()
                seen.append(found)

    looking = threading.Thread(target=look)
    looking.start()
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(WAITING) as pool:
            got = list(pool.map(lambda n: machines[n % 2].send(chats[n], "Hello!", f"w{n}").status, range(WAITING)))
    finally:
        over.set()
        looking.join()

    print(f"{WAITING} turns in {time.monotonic() - began:.1f} s with {max(seen)} connections at most")
    assert Counter(got) == {200: WAITING}
    assert max(seen) <= 20


# TLS


def test_postgresql_is_reached_by_tls_and_only_if_it_is_the_right_one(
    machines: list[Server], shared: dict[str, str], postgresql: Cluster, tmp_path: Path
) -> None:
    connect = "from django.db import connection as c; del c.settings_dict['OPTIONS']['pool']; c.ensure_connection()"
    wrong = {
        "no encryption": {"sslmode": "disable", "sslrootcert": ""},
        "certificate verify failed": {"sslrootcert": str(make_certificate(tmp_path))},
    }

    assert machines[0].rows(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datid > 0"
    ) == [(True,)]
    for why, options in wrong.items():
        with pytest.raises(AssertionError, match=why):
            manage({**shared, "DATABASE_URL": postgresql.url(**options)}, "shell", "-v", "0", "-c", connect)


# PostgreSQL is away for a while


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_of_postgresql_is_a_moment_of_errors_and_nothing_is_lost(
    how: str, machines: list[Server], postgresql: Cluster, gemini: FakeGemini
) -> None:
    """Thrown out, and crashed."""
    gemini.default = Answer(says("Well thought.").body, delay=0.2)
    chats = {user: machines[0].open(machines[0].influencers[0], user) for user in (f"{how}-{n}" for n in range(8))}
    got: list[Talked] = []
    over = threading.Event()

    def talk(user: str) -> None:
        for number in count(1):
            if over.is_set():
                return
            text, began = f"Question {number} of {user}", time.monotonic()
            answer = machines[number % 2].send(chats[user], text, user)
            got.append(Talked(user, text, answer, began, time.monotonic()))

    with ThreadPoolExecutor(8) as pool:
        talking = [pool.submit(talk, user) for user in chats]
        time.sleep(1)
        postgresql.stop(how)
        time.sleep(1.5)
        postgresql.start()
        back = time.monotonic()
        time.sleep(4)
        over.set()
        for one in talking:
            one.result()

    failed = [each for each in got if each.answer.status != 200]
    for each in failed:
        assert each.answer.status in (500, 503), each.answer.content
        assert set(each.answer.json()) == {"error", "message", "details"}
    assert max(each.ended - each.began for each in got) < 8, "nobody hangs"
    assert not [each for each in failed if each.began > back + 3], "it has recovered"
    answered = "SELECT q.content FROM messages q JOIN messages a ON a.in_reply_to_id = q.id WHERE q.conversation_id = ?"
    stored = Counter(text for chat in chats.values() for (text,) in machines[0].rows(answered, UUID(chat)))
    assert set(stored) >= {each.text for each in got if each.answer.status == 200}
    assert set(stored.values()) == {1}


# Redis is away


def test_a_stream_goes_on_when_redis_dies_and_limits_are_open(
    machines: list[Server], shared: dict[str, str], gemini: FakeGemini, gate: Gate
) -> None:
    """The last test here: it stays away."""
    one, other = machines
    gemini.will(streams("One ", "two ", "three.", gate=gate))
    chat = new_chat(one)

    with chat.stream(one, "Count!") as phone:
        gate.let(1)
        first = next(phone.events)
        with Redis.from_url(shared["CACHE_URL"]) as redis:
            redis.shutdown(nosave=True)
        with chat.follow(other, phone.question) as follower:
            assert next(follower.events) == first
            gate.let(3)
            rest = list(follower.events)
            assert rest == list(phone.events)
    began = time.monotonic()
    taken = [uploaded(machines[number % 2], "without-redis").status for number in range(7)]

    assert text_of([first, *rest]) == "One two three."
    assert rest[-1].name == "done"
    assert taken == [200] * 7
    assert time.monotonic() - began < 5, "nobody waits for it"
