"""How often somebody may call: through the API, with the clock in the test's hand, against both places that count."""

import itertools
import json
import re
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.conf import settings as configured
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from redis import Redis

from conversations.models import Conversation, Message
from media_uploads.models import MediaUpload
from personas.models import Influencer
from tests.conftest import Api, token
from tests.conversations.media import picture, record
from tests.conversations.test_races import at_once
from tests.conversations.test_statements import Statements
from tests.fake_gemini import FakeGemini, fails, says
from tests.servers import environment, free_port, manage, python, running, running_redis
from tests.yral_chat.test_house import API
from yral_chat import counters
from yral_chat.ai.retrying import ATTEMPTS
from yral_chat.throttling import windows_of

PERSONAS = "/api/v1/influencers"
CHATS = "/api/v1/chat/conversations"
NOON = datetime(2026, 5, 4, 12, 0, 20, tzinfo=UTC)
HEADERS = [f"X-RateLimit-{what}-{window}" for what in ("Limit", "Remaining") for window in ("Minute", "Hour")]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


def through_redis(settings: Any, address: str) -> None:
    options = {"socket_timeout": 1, "socket_connect_timeout": 1}
    backend = "django.core.cache.backends.redis.RedisCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": address, "OPTIONS": options}}
    settings.CACHE_URL = address


@pytest.fixture(params=["file", "redis"])
def counted_in(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> Iterator[str]:
    """Nobody has called yet."""
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    if request.param == "redis":
        address = request.getfixturevalue("redis")
        subprocess.run(["redis-cli", "-u", address, "flushall"], check=True, capture_output=True)
        through_redis(settings, address)
    yield request.param
    counters.close()


@pytest.fixture
def limited(settings: Any, counted_in: str) -> Any:
    """Three a minute, five an hour, two sends and one upload."""
    settings.RATE_LIMIT_PER_MINUTE, settings.RATE_LIMIT_PER_HOUR = 3, 5
    settings.RATE_LIMIT_MODEL_PER_MINUTE, settings.RATE_LIMIT_UPLOAD_PER_MINUTE = 2, 1
    return settings


@pytest.fixture
def clock() -> Iterator[Any]:
    with time_machine.travel(NOON, tick=False) as traveller:
        yield traveller


def upload(api: Api) -> Any:
    body = {"file": SimpleUploadedFile("photo.png", picture()), "type": "image"}
    return api.client.post("/api/v1/media/upload", body, headers=api.headers())


def statuses(call: Callable[[], Any], times: int) -> list[int]:
    return [call().status_code for _ in range(times)]


def told(response: Any) -> list[int]:
    """Limit of the minute and of the hour, and what is left of them."""
    return [int(response[name]) for name in HEADERS]


def from_address(address: str, **headers: str) -> Any:
    return Client().get(PERSONAS, REMOTE_ADDR=address, headers=headers)


pytestmark = [pytest.mark.django_db, pytest.mark.own_database]


# What a caller is told


def test_the_minute_s_requests_pass_and_the_next_is_refused_as_the_contract_says(
    alice: Api, limited: Any, clock: Any
) -> None:
    answers = [alice.get(CHATS) for _ in range(4)]

    assert [one.status_code for one in answers] == [200, 200, 200, 429]
    assert [told(one) for one in answers] == [[3, 5, 2, 4], [3, 5, 1, 3], [3, 5, 0, 2], [3, 5, 0, 2]]
    refused = answers[-1]
    assert refused["Content-Type"] == "application/json"
    assert refused["Retry-After"] == "40"
    assert refused["X-API-Version"] == "v1"
    assert refused["X-Correlation-ID"]
    assert refused.json() == {
        "error": "rate_limit_exceeded",
        "message": "Too many requests. Please try again in 40 seconds.",
        "details": {"retry_after": 40, "limit_type": "minute"},
    }


def test_the_windows_are_the_clock_s(alice: Api, limited: Any, clock: Any) -> None:
    assert statuses(lambda: alice.get(CHATS), 4)[-1] == 429
    clock.move_to(NOON.replace(second=59, microsecond=999_999))
    late = alice.get(CHATS)
    assert (late.status_code, late["Retry-After"]) == (429, "1")
    assert late.json()["message"] == "Too many requests. Please try again in 1 second."

    clock.move_to(NOON.replace(minute=1, second=0))
    assert statuses(lambda: alice.get(CHATS), 3) == [200, 200, 429]
    over = alice.get(CHATS)
    assert over.json()["details"] == {"retry_after": 59 * 60, "limit_type": "hour"}
    assert told(over) == [3, 5, 1, 0]

    clock.move_to(NOON.replace(hour=13, minute=0, second=0))
    assert told(alice.get(CHATS)) == [3, 5, 2, 4]


def test_who_keeps_knocking_waits_no_longer_for_it(alice: Api, limited: Any, clock: Any) -> None:
    """What is refused by the minute isn't taken from the hour."""
    assert Counter(statuses(lambda: alice.get(CHATS), 40)) == {200: 3, 429: 37}

    clock.move_to(NOON.replace(minute=1))
    assert statuses(lambda: alice.get(CHATS), 2) == [200, 200]


def test_the_limit_that_is_over_last_is_the_one_that_is_told(alice: Api, limited: Any, clock: Any) -> None:
    limited.RATE_LIMIT_PER_HOUR = 3

    assert statuses(lambda: alice.get(CHATS), 3) == [200] * 3
    assert alice.get(CHATS).json()["details"] == {"retry_after": 3580, "limit_type": "hour"}


def test_what_was_used_up_in_windows_that_are_over_is_not_told(alice: Api, limited: Any, clock: Any) -> None:
    limited.RATE_LIMIT_PER_HOUR = 3
    assert statuses(lambda: alice.get(CHATS), 4) == [200, 200, 200, 429]
    clock.move_to(NOON.replace(hour=13))
    limited.RATE_LIMIT_PER_MINUTE = 2
    refused = [alice.get(CHATS) for _ in range(3)][-1]
    assert refused.json()["details"] == {"retry_after": 40, "limit_type": "minute"}
    assert told(refused) == [2, 3, 0, 1]


def test_every_answer_of_the_api_tells_the_limits(
    alice: Api, nobody: Api, conversation: Conversation, counted_in: str, settings: Any, gemini: FakeGemini
) -> None:
    settings.RATE_LIMIT_PER_MINUTE, settings.RATE_LIMIT_PER_HOUR = 300, 5000
    gemini.will(fails(400))
    bad = Client().get(CHATS, headers={"Authorization": "Bearer nonsense"})
    head = Client().head(PERSONAS)
    huge = alice.post(CHATS, {"influencer_id": "x" * 2_000_000})
    malformed = alice.client.post(CHATS, "{", content_type="application/json", headers=alice.headers())
    answers = {
        200: alice.get(CHATS),
        201: alice.post(CHATS, {"influencer_id": conversation.influencer_id}),
        400: malformed,
        401: nobody.get(CHATS),
        404: alice.get("/api/nothing"),
        405: alice.delete(PERSONAS),
        413: huge,
        415: alice.client.post(CHATS, "a", content_type="text/plain", headers=alice.headers()),
        422: alice.get(CHATS, limit=0),
        503: alice.send(conversation),
    }

    assert {status: one.status_code for status, one in answers.items()} == {status: status for status in answers}
    for one in (*answers.values(), bad, head, alice.get("/api"), alice.get("/api/v1/")):
        assert told(one)[:2] == [300, 5000], one.content
        assert 0 < told(one)[2] < 300


@pytest.mark.django_db(transaction=True)
def test_a_stream_tells_the_limits(alice: Api, conversation: Conversation, limited: Any) -> None:
    body = {"message_type": "text", "content": "Hello!"}
    response = alice.post(f"{CHATS}/{conversation.pk}/messages/stream", body)

    assert response.getvalue()
    assert told(response) == [3, 5, 2, 4]


def test_a_crash_tells_the_limits(alice: Api, limited: Any) -> None:
    limited.ROOT_URLCONF = "tests.yral_chat.crashing_urls"
    crashed = alice.get("/api/v1/crash")

    assert told(crashed) == [3, 5, 2, 4]


def test_what_isn_t_the_api_is_free(limited: Any, conversation: Conversation) -> None:
    paths = (
        "/",
        "/health",
        "/status",
        "/docs",
        "/openapi.json",
        "/media/a/b.jpg",
        "/admin/login/",
        "/apis",
        "/nothing",
    )
    for path in paths:
        for _ in range(6):
            response = Client().get(path)
            assert response.status_code != 429
            assert not set(HEADERS) & set(response.headers), path


def test_zero_switches_a_limit_off(alice: Api, conversation: Conversation, limited: Any, clock: Any) -> None:
    limited.RATE_LIMIT_PER_MINUTE = limited.RATE_LIMIT_MODEL_PER_MINUTE = 0
    response = alice.send(conversation)
    assert {name for name in HEADERS if name in response} == {"X-RateLimit-Limit-Hour", "X-RateLimit-Remaining-Hour"}
    assert statuses(lambda: alice.send(conversation), 5) == [200] * 4 + [429]

    limited.RATE_LIMIT_PER_HOUR = 0
    assert not set(HEADERS) & set(alice.get(CHATS).headers)
    assert statuses(lambda: alice.send(conversation), 5) == [200] * 5


# Who is counted


def test_an_account_is_one_caller_from_wherever_it_calls(limited: Any, clock: Any) -> None:
    """A16"""
    bearer = {"Authorization": f"Bearer {token('alice')}"}
    answers = [from_address(f"198.51.100.{n}", **bearer).status_code for n in range(5)]

    assert answers == [200, 200, 200, 429, 429]
    fresh = {"Authorization": f"bearer  {token('alice', iat=1)}"}
    assert from_address("198.51.100.9", **fresh).status_code == 429, "another token of the account"
    other = {"Authorization": f"Bearer {token('bob')}"}
    assert from_address("198.51.100.1", **other).status_code == 200
    assert from_address("198.51.100.1").status_code == 200


def test_an_address_is_one_caller_whatever_it_claims(limited: Any, clock: Any) -> None:
    """A16: no header makes a new one of it, and neither does a bad token."""
    for number in range(3):
        forged = {
            "X-Forwarded-For": f"203.0.113.{number}",
            "Authorization": f"Bearer {token(str(number), key='x' * 40)}",
        }
        forged |= {"X-Real-IP": f"203.0.113.{number}", "Forwarded": f"for=203.0.113.{number}"}
        assert from_address("198.51.100.1", **forged).status_code == 200

    assert from_address("198.51.100.1", **{"X-Forwarded-For": "203.0.113.9"}).status_code == 429
    assert from_address("198.51.100.2").status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:198.51.100.1", "198.51.100.1", True),
        ("::ffff:198.51.100.1", "::ffff:198.51.100.2", False),
        ("fe80::1%eth0", "fe80::2", True),
        ("", "", True),
        ("not an address", "not an address", True),
    ],
)
def test_an_ipv6_network_of_64_bits_is_one_address(one: str, other: str, same: bool, limited: Any, clock: Any) -> None:
    assert [from_address(one).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert from_address(other).status_code == (429 if same else 200)


def test_errors_and_bad_tokens_count(alice: Api, nobody: Api, limited: Any, clock: Any) -> None:
    assert [
        alice.get("/api/x").status_code,
        alice.get(CHATS, limit=0).status_code,
        alice.delete(PERSONAS).status_code,
    ] == [
        404,
        422,
        405,
    ]
    assert alice.get(CHATS).status_code == 429
    expired = {"Authorization": f"Bearer {token('alice', exp=1)}"}
    answers = [Client().get(CHATS, headers=expired).status_code for _ in range(4)]
    assert answers == [401, 401, 401, 429], "a good token's account isn't asked for what others do with a bad one"
    assert nobody.get(PERSONAS).status_code == 429


def test_a_refused_request_costs_no_statement_and_its_body_is_not_read(
    alice: Api, conversation: Conversation, limited: Any, clock: Any, gemini: FakeGemini
) -> None:
    assert statuses(lambda: alice.get(CHATS), 3) == [200] * 3
    ran = Statements()
    with connection.execute_wrapper(ran):
        refused = alice.client.post(CHATS, "{broken", content_type="application/json", headers=alice.headers())
        sent = alice.send(conversation)
    assert (refused.status_code, sent.status_code) == (429, 429)
    assert ran == []
    assert gemini.requests == []
    assert not Message.objects.filter(role="user").exists()


# What costs more


def test_sends_and_uploads_have_limits_of_their_own(
    alice: Api, conversation: Conversation, limited: Any, clock: Any, media_folder: None, gemini: FakeGemini
) -> None:
    limited.RATE_LIMIT_PER_MINUTE = limited.RATE_LIMIT_PER_HOUR = 50
    assert [alice.send(conversation, said).status_code for said in ("Hello!", "And then?")] == [200, 200]
    question = alice.messages(conversation).json()["messages"][1]["id"]
    body = {"message_type": "text", "content": "Hello!"}
    for path in ("messages", "messages/stream", f"messages/{question}/regenerate"):
        refused = alice.post(f"{CHATS}/{conversation.pk}/{path}", body)
        assert refused.status_code == 429, path
        assert refused.json()["details"] == {"retry_after": 40, "limit_type": "model_minute"}
        assert told(refused) == [50, 50, 47, 47]
    assert len(gemini.requests) == 2

    assert upload(alice).status_code == 200
    assert upload(alice).json()["details"]["limit_type"] == "upload_minute"
    assert MediaUpload.objects.count() == 1
    assert alice.messages(conversation).status_code == 200, "reading is limited by the general limit alone"
    clock.move_to(NOON.replace(minute=1))
    assert (alice.send(conversation).status_code, upload(alice).status_code) == (200, 200)


COSTLY = {"sendMessage": "model", "streamMessage": "model", "regenerateAnswer": "model", "uploadMedia": "upload"}


def test_every_route_that_asks_a_model_or_takes_a_file_is_limited_as_such(limited: Any, clock: Any, alice: Api) -> None:
    """Generated from the URL conf: a new POST under /messages or /media must say what it is."""
    limited.RATE_LIMIT_PER_MINUTE = limited.RATE_LIMIT_PER_HOUR = 1000
    schema = json.loads(Client().get("/openapi.json").content)
    seen = {}
    for number, (route, method) in enumerate(API):
        caller = Api(f"caller-{number}")
        path = "/" + re.sub(r"<(?:\w+:)?(\w+)>", "nothing", route)
        named = schema["paths"]["/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route)][method]["operationId"]
        answers = [getattr(caller.client, method)(path, headers=caller.headers()) for _ in range(3)]
        if answers[-1].status_code == 429:
            seen[named] = answers[-1].json()["details"]["limit_type"].partition("_")[0]
    assert seen == COSTLY


@pytest.mark.django_db(transaction=True)
def test_sends_at_once_don_t_outrun_the_limit_and_each_asks_the_model_a_bounded_number_of_times(
    limited: Any, make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    """A15: with a model that fails, retries included."""
    limited.RATE_LIMIT_PER_MINUTE = limited.RATE_LIMIT_PER_HOUR = 1000
    limited.RATE_LIMIT_MODEL_PER_MINUTE = 3
    gemini.default = fails(500)
    personas = [make_influencer() for _ in range(8)]
    chats = [Api("alice").open(one)["id"] for one in personas]
    wait_for_a_fresh_minute()

    answers = at_once(*(partial(Api("alice").send, chat) for chat in chats))

    assert Counter(one.status_code for one in answers) == {503: 3, 429: 5}
    assert len(gemini.requests) <= 3 * ATTEMPTS


def wait_for_a_fresh_minute(needed: float = 20) -> None:
    if (left := 60 - time.time() % 60) < needed:
        time.sleep(left)


def test_a_voice_note_s_transcription_is_part_of_its_send(
    alice: Api, conversation: Conversation, limited: Any, clock: Any, media_folder: None, gemini: FakeGemini
) -> None:
    """A15"""
    limited.RATE_LIMIT_PER_MINUTE = limited.RATE_LIMIT_PER_HOUR = limited.RATE_LIMIT_UPLOAD_PER_MINUTE = 50
    keys = [record(alice) for _ in range(3)]
    gemini.chooses = lambda asked: says("Words.")

    def speak(key: str) -> Any:
        return alice.send(conversation, None, message_type="audio", audio_url=key)

    assert [speak(key).status_code for key in keys] == [200, 200, 429]
    assert len(gemini.requests) == 4, "two were heard and answered"


# Exact, however many count


def test_threads_pass_exactly_as_many_as_may(alice: Api, limited: Any) -> None:
    limited.RATE_LIMIT_PER_MINUTE, limited.RATE_LIMIT_PER_HOUR = 0, 50
    wait_for_a_fresh_hour()
    headers = alice.headers()

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: Client().get("/api/nothing", headers=headers).status_code, range(100)))

    assert Counter(answers) == {404: 50, 429: 50}


def wait_for_a_fresh_hour(needed: float = 60) -> None:
    if (left := 3600 - time.time() % 3600) < needed:
        time.sleep(left)


HAMMER = """
import sys
import django; django.setup()
from concurrent.futures import ThreadPoolExecutor
from yral_chat import counters
from yral_chat.counters import Window
threads, each, most = map(int, sys.argv[1:])
windows = [Window("minute", 60, 120, 10**9), Window("hour", 0, 3600, most)]
print("ready", flush=True)
sys.stdin.readline()
def hammer(_):
    return sum(counters.of_this_process().count(f"one of {threads}", windows).passed for _ in range(each))
with ThreadPoolExecutor(threads) as pool:
    print(sum(pool.map(hammer, range(threads))))
"""


@pytest.mark.drill
@pytest.mark.parametrize(("threads", "each"), [(8, 200), (256, 6)])
@pytest.mark.parametrize("place", ["file", "redis"])
def test_three_processes_of_many_threads_pass_exactly_as_many_as_may(
    place: str, threads: int, each: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """They begin at one moment, so that they also make the file at once."""
    env = environment(tmp_path, "http://127.0.0.1:9", 9, DJANGO_SETTINGS_MODULE="yral_chat.settings")
    if place == "redis":
        env["CACHE_URL"] = request.getfixturevalue("redis")
    most = 22 * threads * each // 10  # so that two of them don't reach it alone
    command = [sys.executable, "-c", HAMMER, str(threads), str(each), str(most)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    hammers = [subprocess.Popen(command, env=env, cwd=configured.BASE_DIR, text=True, **pipes) for _ in range(3)]
    assert [process.stdout.readline() for process in hammers if process.stdout] == ["ready\n"] * 3
    for process in hammers:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120) for process in hammers]

    passed = [int(out) for out, _ in said]
    assert [errors for _, errors in said] == [""] * 3
    assert sum(passed) == most, passed
    assert min(passed) > 0


@pytest.mark.drill
@pytest.mark.parametrize("place", ["file", "redis"])
def test_gunicorn_s_processes_count_together(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, gemini: FakeGemini
) -> None:
    changed = {"RATE_LIMIT_PER_HOUR": "100", "WEB_CONCURRENCY": "2"}
    if place == "redis":
        changed["CACHE_URL"] = request.getfixturevalue("redis")
    env = environment(tmp_path, gemini.url, free_port(), **changed)
    manage(env, "migrate", "--verbosity", "0")
    wait_for_a_fresh_hour()
    with running("gunicorn", env, tmp_path) as server:
        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(lambda _: server.call("GET", PERSONAS, user=f"of-{place}"), range(200)))
        assert Counter(one.status for one in answers) == {200: 100, 429: 100}
        left = sorted(int(one.headers["x-ratelimit-remaining-hour"]) for one in answers if one.status == 200)
        assert left[0] == 0
        assert "counters" not in server.log


def test_a_request_that_comes_a_moment_late_counts_in_the_next_minute(alice: Api, limited: Any, clock: Any) -> None:
    """Its clock was read before the turn of the minute, and it counts after others did: nothing is forgotten."""
    limited.RATE_LIMIT_PER_HOUR = 100
    clock.move_to(NOON.replace(minute=1, second=0))
    assert statuses(lambda: alice.get(CHATS), 2) == [200, 200]
    clock.move_to(NOON.replace(minute=0, second=59))
    alice.get(CHATS)
    clock.move_to(NOON.replace(minute=1, second=0))
    assert Counter(statuses(lambda: alice.get(CHATS), 3))[200] <= 1


def test_a_clock_that_was_wrong_locks_nobody_out(alice: Api, limited: Any, clock: Any) -> None:
    clock.move_to(NOON.replace(year=2030))
    assert statuses(lambda: alice.get(CHATS), 6)[-1] == 429
    clock.move_to(NOON)
    assert alice.get(CHATS).status_code == 200


# What it leaves behind


def test_redis_forgets_callers_by_itself(alice: Api, redis: str, settings: Any) -> None:
    subprocess.run(["redis-cli", "-u", redis, "flushall"], check=True, capture_output=True)
    through_redis(settings, redis)
    alice.get(PERSONAS)

    with closing(Redis.from_url(redis)) as client:
        keys = client.keys("yral_chat:limit:*")
        assert len(keys) == 2
        assert all(0 < client.ttl(key) <= 3660 for key in keys)
    counters.close()


def test_callers_who_are_gone_are_forgotten(
    settings: Any, tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters.FileCounters, "SWEEP", 1)
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"

    def held() -> int:
        with closing(sqlite3.connect(settings.RATE_LIMIT_DATABASE)) as connection:
            return int(connection.execute("SELECT COUNT(*) FROM counters").fetchone()[0])

    def come(first: int, last: int) -> None:
        counter = counters.of_this_process()
        windows = windows_now()
        for number in range(first, last):
            counter.count(f"account {number}", windows)

    def windows_now() -> list[counters.Window]:
        return windows_of(None, time.time())

    come(0, 3000)
    assert held() == 6000, "two rows a caller, however often it came"
    come(0, 3000)
    assert held() == 6000
    clock.move_to(NOON.replace(hour=15))
    windows = windows_now()
    for _ in range(256 * 4):
        counters.of_this_process().count("account who-stays", windows)
    assert held() < 600
    counters.close()


def test_the_file_holds_no_user_and_no_address(alice: Api, settings: Any, tmp_path: Path) -> None:
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    Api("user-canary-of-the-counters").get(CHATS)
    from_address("198.51.100.77")
    counters.close()

    kept = b"".join(path.read_bytes() for path in tmp_path.glob("rate_limits.db*"))
    assert kept
    assert b"canary" not in kept
    assert b"198.51" not in kept


# Who can't count lets everybody pass


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(one.levelname, one.getMessage()) for one in caplog.records if one.name == "yral_chat.counters"]


@pytest.mark.drill
@pytest.mark.parametrize("trouble", ["a folder", "no SQLite file", "its folder is a file"])
def test_a_file_that_cannot_be_used_lets_requests_pass_and_is_told_of_once_and_when_it_is_well(
    trouble: str, alice: Api, settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = settings.RATE_LIMIT_DATABASE = tmp_path / "counted" / "rate_limits.db"
    settings.RATE_LIMIT_PER_MINUTE = settings.RATE_LIMIT_PER_HOUR = 2
    wrong = path.parent if trouble == "its folder is a file" else path
    wrong.parent.mkdir(exist_ok=True)
    if trouble == "a folder":
        wrong.mkdir()
    else:
        wrong.write_text("This is no database. " * 500)

    answers = [alice.get(CHATS) for _ in range(6)]
    assert [one.status_code for one in answers] == [200] * 6
    assert {tuple(told(one)) for one in answers} == {(2, 2, 2, 2)}
    ((level, said),) = lines(caplog)
    assert level == "ERROR"
    assert str(path) in said

    wrong.rmdir() if trouble == "a folder" else wrong.unlink()
    wait_for_a_fresh_minute()
    time.sleep(counters.Forgiving.PAUSE)
    assert statuses(lambda: alice.get(CHATS), 4) == [200, 200, 429, 429]
    assert [level for level, _ in lines(caplog)] == ["ERROR", "WARNING"]
    counters.close()


@pytest.mark.parametrize("replaced", [False, True])
def test_processes_count_together_again_after_somebody_removed_the_file(
    replaced: bool, alice: Api, settings: Any, tmp_path: Path
) -> None:
    path = settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    settings.RATE_LIMIT_PER_MINUTE = 4
    wait_for_a_fresh_minute()
    assert statuses(lambda: alice.get(CHATS), 2) == [200, 200]
    for file in tmp_path.glob("rate_limits.db*"):
        file.unlink()
    another = counters.make()  # as of another process
    if replaced:
        another.count(counters.digest("account alice"), windows_of(None, time.time()))

    assert alice.get(CHATS).status_code == 200
    counted = another.count(counters.digest("account alice"), windows_of(None, time.time()))
    another.close()
    counters.close()

    assert path.exists()
    assert counted.counts["minute"] == (3 if replaced else 2)


def test_a_file_that_somebody_holds_costs_one_request_a_second_and_the_others_nothing(
    alice: Api, settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    assert alice.get(CHATS).status_code == 200
    with closing(sqlite3.connect(settings.RATE_LIMIT_DATABASE, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: Client().get("/api/nothing").status_code, range(40)))
        took = time.monotonic() - began
    assert answers == [404] * 40
    assert 1 <= took < 2.5
    assert len(lines(caplog)) == 1
    counters.close()


def test_counters_that_come_and_go_are_told_of_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    class Moody:
        at_once = 8

        def __init__(self) -> None:
            self.asked = itertools.count()

        def count(self, caller: bytes, windows: Any) -> counters.Counted:
            if next(self.asked) % 3 == 2:
                raise counters.Unavailable("a test")
            return counters.Counted(True, {})

        def close(self) -> None:
            pass

    forgiving = counters.Forgiving(Moody())
    forgiving.PAUSE = 0.02

    def come(_: int) -> counters.Counted | None:
        time.sleep(0.01)
        return forgiving.count("one", [])

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(come, range(800)))

    assert None in answers
    assert any(answers[-200:])
    assert Counter(level for level, _ in lines(caplog))["ERROR"] == 1
    assert len(lines(caplog)) <= 2


def test_a_redis_that_is_down_lets_requests_pass_at_once(
    alice: Api, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    through_redis(settings, f"redis://:Pw-canary-1@127.0.0.1:{free_port()}/0")
    settings.RATE_LIMIT_PER_MINUTE = 2
    began = time.monotonic()

    assert statuses(lambda: alice.get(PERSONAS), 10) == [200] * 10
    assert time.monotonic() - began < 1
    assert [level for level, _ in lines(caplog)] == ["ERROR"]
    assert "Pw-canary-1" not in caplog.text


def test_a_redis_that_hangs_holds_up_nobody_for_more_than_a_second(
    alice: Api, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        through_redis(settings, f"redis://127.0.0.1:{deaf.getsockname()[1]}/0")
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: Client().get("/api/nothing").status_code, range(40)))
        took = time.monotonic() - began
        counters.close()
    assert answers == [404] * 40
    assert took < 2.5
    assert len(lines(caplog)) == 1


def test_a_redis_that_comes_back_counts_again(
    alice: Api, settings: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings.RATE_LIMIT_PER_HOUR = 2
    wait_for_a_fresh_hour()
    with running_redis(tmp_path) as address:
        through_redis(settings, address)
        assert statuses(lambda: alice.get(PERSONAS), 3) == [200, 200, 429]
        subprocess.run(["redis-cli", "-u", address, "script", "flush"], check=True, capture_output=True)
        assert alice.get(PERSONAS).status_code == 429, "it doesn't remember the script any more"
        subprocess.run(["redis-cli", "-u", address, "config", "set", "maxmemory", "1"], check=True, capture_output=True)
        assert Api("bob").get(PERSONAS).status_code == 200
        assert [level for level, _ in lines(caplog)] == ["ERROR"]
        subprocess.run(["redis-cli", "-u", address, "config", "set", "maxmemory", "0"], check=True, capture_output=True)
        time.sleep(counters.Forgiving.PAUSE)
        assert statuses(lambda: Api("bob").get(PERSONAS), 3) == [200, 200, 429]
        assert [level for level, _ in lines(caplog)] == ["ERROR", "WARNING"]
        counters.close()


# What it costs


def test_counting_takes_less_than_a_tenth_of_a_millisecond(settings: Any, tmp_path: Path) -> None:
    """Of CPU, in the middle of many: a noisy machine says nothing about the rest. Minute, hour and sends."""
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    counter = counters.of_this_process()
    counter.count("account 0", windows_of("model", time.time()))
    best = 1.0
    for _ in range(10):
        began = time.process_time()
        for number in range(500):
            counter.count(f"account {number}", windows_of("model", time.time()))
        best = min(best, (time.process_time() - began) / 500)
    assert best < 0.0001
    counters.close()


@pytest.mark.drill
def test_each_process_has_a_connection_of_its_own(settings: Any, tmp_path: Path) -> None:
    """A server that forks after it counted."""
    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    code = """
import os, sys, django; django.setup()
from yral_chat import counters
windows = [counters.Window("hour", 0, 3600, 3)]
count = lambda: counters.of_this_process().count("one", windows).passed
before = count()
child = os.fork()
passed = [count(), count()]
if child == 0:
    os._exit(sum(passed))
print(before + sum(passed) + os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    env = environment(tmp_path, "http://127.0.0.1:9", 9, DJANGO_SETTINGS_MODULE="yral_chat.settings")
    run = python(env, "-c", code)
    assert run.returncode == 0, run.stderr
    assert (run.stdout.strip(), run.stderr) == ("3", "")
