"""What the service says of itself, to anybody, at no cost: /, /health, /status, the schema and its pages."""

import datetime as dt
import json
import os
import re
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.test import Client

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks, fails, says
from tests.servers import python
from yral_chat import dependencies, operations

PUBLIC = ("/", "/health", "/status", "/docs", "/redoc", "/openapi.json", "/openapi.yaml")


def is_utc_with_microseconds(text: str) -> bool:
    return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", text) is not None


@pytest.mark.django_db
@pytest.mark.parametrize("path", PUBLIC)
def test_it_needs_no_token_and_carries_the_headers(path: str, nobody: Api, gemini: FakeGemini) -> None:
    response = nobody.get(path)

    assert response.status_code == 200
    assert response["X-API-Version"] == "v1"
    assert re.fullmatch(r"[0-9a-f-]{36}", response["X-Correlation-ID"])
    assert not gemini.requests


def test_the_root_says_what_this_is(nobody: Api) -> None:
    said = nobody.get("/").json()

    assert said["service"] == "Yral AI Chat API"
    assert said["version"] == configured.APP_VERSION
    assert said["status"] == "running"
    assert said["docs"] == "/docs"
    assert said["health"] == "/health"


def test_the_name_and_version_are_settings(nobody: Api, settings: Any) -> None:
    settings.APP_NAME, settings.APP_VERSION = "Another name", "9.9.9"

    assert nobody.get("/").json()["service"] == "Another name"
    assert nobody.get("/").json()["version"] == "9.9.9"


# /health


@pytest.mark.django_db
def test_health_has_exactly_these_keys(nobody: Api) -> None:
    response = nobody.get("/health")

    assert response.status_code == 200
    said = response.json()
    assert set(said) == {"status", "timestamp", "services"}
    assert said["status"] == "healthy"
    assert is_utc_with_microseconds(said["timestamp"])
    assert abs(dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(said["timestamp"])) < dt.timedelta(seconds=30)
    assert set(said["services"]) == {"database", "gemini_api"}
    for service in said["services"].values():
        assert set(service) == {"status", "latency_ms", "error"}
        assert service["status"] == "up"
        assert isinstance(service["latency_ms"], int | float)
        assert service["latency_ms"] >= 0
        assert service["error"] is None


def model_health(api: Api) -> Any:
    response = api.get("/health")
    assert response.status_code == 200
    assert response.json()["status"] == "healthy"
    return response.json()["services"]["gemini_api"]


def test_the_model_is_down_after_a_failed_call_and_up_after_one_that_worked(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    assert model_health(alice)["status"] == "up"

    gemini.will(fails(403, "Key AIza-secret refused."))
    assert alice.send(conversation, "one").status_code == 503
    down = model_health(alice)
    assert down["status"] == "down"
    assert down["error"]
    for secret in ("AIza-secret", configured.GEMINI_API_KEY, "127.0.0.1", "one"):
        assert secret not in json.dumps(down["error"])

    asked = len(gemini.requests)
    assert model_health(alice)["status"] == "down"
    assert len(gemini.requests) == asked

    assert alice.send(conversation, "one").status_code == 200
    assert model_health(alice) == {"status": "up", "latency_ms": model_health(alice)["latency_ms"], "error": None}
    assert model_health(alice)["latency_ms"] > 0


@pytest.mark.parametrize("answer", [blocks(), says("", finish="SAFETY")], ids=["blocked question", "blocked answer"])
def test_a_blocked_turn_is_no_failure_of_the_model(
    alice: Api, conversation: Conversation, gemini: FakeGemini, answer: Any
) -> None:
    gemini.will(answer)
    assert alice.send(conversation).status_code == 200

    assert model_health(alice)["status"] == "up"


def test_asking_for_health_never_asks_the_model(nobody: Api, db: None, gemini: FakeGemini) -> None:
    for _ in range(5):
        for path in PUBLIC:
            nobody.get(path)

    assert not gemini.requests


def test_without_a_key_the_offline_engine_is_up(nobody: Api, db: None, settings: Any) -> None:
    settings.GEMINI_API_KEY = ""

    assert model_health(nobody)["status"] == "up"


ASK = """
import json, sys, time
import django
django.setup()
from django.test import Client
for path in sys.argv[1:]:
    started = time.monotonic()
    response = Client(raise_request_exception=False).get(path)
    print(json.dumps([response.status_code, response.content.decode(), time.monotonic() - started]))
"""


def asked_with_database(url: str, *paths: str) -> list[tuple[int, str, float]]:
    """(status, body, seconds) of these, by a service whose database is at `url`."""
    env = {**os.environ, "DATABASE_URL": url, "DJANGO_SETTINGS_MODULE": "yral_chat.settings", "ALLOWED_HOSTS": "*"}
    run = python(env, "-c", ASK, *paths, timeout=90)
    assert run.returncode == 0, run.stderr
    return [tuple(json.loads(line)) for line in run.stdout.splitlines() if line.startswith("[")]


def assert_unhealthy(status: int, body: str, seconds: float, *secrets: str) -> None:
    said = json.loads(body)
    assert status == 503
    assert set(said) == {"status", "timestamp", "services"}
    assert said["status"] == "unhealthy"
    assert said["services"]["database"]["status"] == "down"
    assert said["services"]["database"]["error"]
    assert said["services"]["gemini_api"]["status"] == "up"
    for secret in secrets:
        assert secret not in body
    assert seconds < 6, "a load balancer doesn't wait that long"


def test_health_is_unhealthy_when_the_database_file_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "chat.db").symlink_to(tmp_path / "not mounted" / "chat.db")
    (health, root, status, influencers) = asked_with_database(
        f"sqlite:///{tmp_path}/chat.db", "/health", "/", "/status", "/api/v1/influencers"
    )

    assert_unhealthy(*health, str(tmp_path))
    assert root[0] == 200
    for code, body, _ in (influencers,):
        assert code == 500
        assert json.loads(body)["error"] == "internal_server_error"
    said = json.loads(status[1])
    assert status[0] == 200
    assert (said["database"]["connected"], said["statistics"]["total_messages"]) == (False, 0)
    assert str(tmp_path) not in influencers[1] + status[1]


def test_health_is_unhealthy_soon_when_postgresql_is_down() -> None:
    (health,) = asked_with_database("postgres://someone:hunter2hunter2@127.0.0.1:9/nowhere", "/health")

    assert_unhealthy(*health, "hunter2hunter2", "127.0.0.1", "nowhere")


# /status


def test_status_counts_what_is_there(alice: Api, bob: Api, make_influencer: Any, nobody: Api) -> None:
    first, second = make_influencer(), make_influencer()
    make_influencer(is_active=Influencer.Status.COMING_SOON)
    alice.send(alice.open(first)["id"])
    alice.open(second)
    bob.open(first)

    said = nobody.get("/status").json()

    assert set(said) == {
        "service",
        "version",
        "environment",
        "uptime_seconds",
        "database",
        "statistics",
        "timestamp",
    }
    assert said["statistics"] == {"total_conversations": 3, "total_messages": 5, "active_influencers": 2}
    assert set(said["database"]) == {"connected", "pool_size", "active_connections"}
    assert said["database"]["connected"] is True
    assert 0 < said["database"]["active_connections"] <= said["database"]["pool_size"]
    assert said["environment"] == "development"
    assert said["service"] == "Yral AI Chat API"
    assert is_utc_with_microseconds(said["timestamp"])


@pytest.mark.django_db
def test_status_of_an_empty_service_is_zeros_and_time_passes(nobody: Api) -> None:
    first = nobody.get("/status").json()
    time.sleep(0.01)
    second = nobody.get("/status").json()

    assert first["statistics"] == {"total_conversations": 0, "total_messages": 0, "active_influencers": 0}
    assert 0 < first["uptime_seconds"] < second["uptime_seconds"]


def test_status_scans_no_messages(nobody: Api, conversation: Conversation, django_assert_max_num_queries: Any) -> None:
    with django_assert_max_num_queries(3) as asked:
        nobody.get("/status")
    assert not [query["sql"] for query in asked.captured_queries if 'FROM "messages"' in query["sql"]]


# The schema and its pages


class Addresses(HTMLParser):
    """Everything that a page makes a browser load or lets it follow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]


def addresses(html: str) -> list[str]:
    parser = Addresses()
    parser.feed(html)
    return parser.found


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_loads_nothing_from_other_hosts(path: str, nobody: Api) -> None:
    response = nobody.get(path)
    html = response.content.decode()

    assert response["Content-Type"].startswith("text/html")
    found = addresses(html)
    assert found
    for address in found:
        assert re.match(r"/(?!/)|data:", address), address
    assert not re.findall(r"""(?:https?:)?//[a-z0-9-]+\.[a-z]{2,}[^\s"']*""", html)
    assert "@import" not in html


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_what_a_page_loads_is_there(path: str, nobody: Api) -> None:
    for address in addresses(nobody.get(path).content.decode()):
        if address.startswith("/"):
            response = nobody.get(address)
            assert response.status_code == 200, address
            assert len(b"".join(response)) > 100, address


def test_both_pages_show_our_schema(nobody: Api) -> None:
    assert "/openapi.json" in nobody.get("/docs").content.decode()
    assert "/openapi.json" in nobody.get("/redoc").content.decode()


def test_the_schema_is_openapi_3_1(nobody: Api) -> None:
    response = nobody.get("/openapi.json")
    schema = json.loads(response.content)

    assert "json" in response["Content-Type"]
    assert schema["openapi"].startswith("3.1")
    assert schema["info"]["title"]
    assert "/api/v1/chat/conversations" in schema["paths"]


@pytest.mark.parametrize("path", PUBLIC)
@pytest.mark.parametrize("query", ["format=yaml", "lang=xx", "lang=../../etc", "version=../x", "callback=alert(1)"])
def test_nothing_in_the_query_upsets_it(path: str, query: str, db: None) -> None:
    assert Client(raise_request_exception=False).get(f"{path}?{query}").status_code == 200


def test_status_asks_the_database_at_most_every_three_seconds(
    make_influencer: Any, nobody: Api, django_assert_num_queries: Any, monkeypatch: Any
) -> None:
    assert operations.STATUS_FOR == 3
    first = nobody.get("/status").json()
    make_influencer()
    with django_assert_num_queries(0):
        second = nobody.get("/status").json()
    assert second["statistics"] == first["statistics"]

    monkeypatch.setattr(operations, "STATUS_FOR", 0.0)
    assert nobody.get("/status").json()["statistics"]["active_influencers"] == 1


# /health?deep=1

METRICS_TOKEN = "a-token-for-operators-0123456789"


def deep(settings: Any, authorization: str = f"Bearer {METRICS_TOKEN}") -> Any:
    settings.METRICS_TOKEN = METRICS_TOKEN
    return Client().get("/health?deep=1", headers={"Authorization": authorization})


@pytest.mark.django_db
@pytest.mark.parametrize("authorization", ["", "Bearer wrong", f"Basic {METRICS_TOKEN}"])
def test_who_has_no_token_gets_the_plain_health(authorization: str, settings: Any) -> None:
    response = deep(settings, authorization)

    assert response.status_code == 200
    assert set(response.json()["services"]) == {"database", "gemini_api"}


@pytest.mark.django_db
def test_deep_health_looks_at_storage_cache_disk_and_replica(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_UPLOAD_DIR = tmp_path / "uploads"

    response = deep(settings)

    services = response.json()["services"]
    assert response.status_code == 200, services
    assert set(services) == {"database", "gemini_api", "storage", "cache", "disk", "replica"}
    for name in ("storage", "cache", "disk"):
        assert services[name]["status"] == "up"
        assert services[name]["error"] is None
    assert services["disk"]["free_bytes"]["media"] > 0
    assert services["replica"]["status"] == "unknown"
    assert not list((tmp_path / "uploads").iterdir()), "no file is left behind"


@pytest.mark.django_db
def test_a_storage_that_is_down_makes_it_unhealthy_and_shows_no_path(settings: Any, tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    settings.MEDIA_UPLOAD_DIR = tmp_path / "a-file"

    response = deep(settings)

    assert response.status_code == 503
    assert response.json()["status"] == "unhealthy"
    assert response.json()["services"]["storage"]["status"] == "down"
    assert str(tmp_path) not in response.content.decode()


@pytest.mark.django_db
def test_a_cache_that_is_down_makes_it_unhealthy_and_shows_no_password(settings: Any) -> None:
    settings.CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": "redis://:hunter2hunter2@127.0.0.1:9/0",
        }
    }
    response = deep(settings)

    assert response.status_code == 503
    assert response.json()["services"]["cache"]["status"] == "down"
    assert "hunter2" not in response.content.decode()


@pytest.fixture
def sqlite_and_replica(tmp_path: Path) -> tuple[Path, Path]:
    """A database file and a replica's, written now."""
    file, replica = tmp_path / "chat.db", tmp_path / "replica" / "ltx" / "0" / "1.ltx"
    file.write_bytes(b"database")
    replica.parent.mkdir(parents=True)
    replica.write_bytes(b"replica")
    return file, replica


@pytest.mark.parametrize(
    ("database_age", "replica_age", "status"), [(0, 5, "up"), (0, 600, "down"), (9000, 9000, "up")]
)
def test_a_replica_is_late_by_what_it_lacks_not_by_its_age(
    database_age: int, replica_age: int, status: str, sqlite_and_replica: tuple[Path, Path]
) -> None:
    now = time.time()
    for file, age in zip(sqlite_and_replica, (database_age, replica_age), strict=True):
        os.utime(file, (now - age, now - age))

    health = dependencies.compared(sqlite_and_replica[0], str(sqlite_and_replica[0].parent / "replica"))

    assert health["status"] == status
    assert health["behind_seconds"] == pytest.approx(replica_age - database_age, abs=2)
    assert health["age_seconds"] == pytest.approx(replica_age, abs=2)


def test_a_log_of_the_database_that_comes_and_goes_is_no_trouble(sqlite_and_replica: tuple[Path, Path]) -> None:
    database = sqlite_and_replica[0]
    wal, over = database.with_name(database.name + "-wal"), threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            wal.touch()
            wal.unlink()

    coming_and_going = threading.Thread(target=come_and_go)
    coming_and_going.start()
    found: list[set[str]] = []
    end = time.monotonic() + 30
    try:
        while len(found) < 3000 or ({"database"} not in found and time.monotonic() < end):
            found.append(set(dependencies.sqlite_files(database)))
    finally:
        over.set()
        coming_and_going.join()
    assert {"database"} in found
    assert all("database" in names for names in found)


def test_a_folder_out_of_reach_is_no_trouble(settings: Any, tmp_path: Path) -> None:
    settings.LOG_FILE = f"{tmp_path}/{'x' * 300}/chat.log"
    settings.RATE_LIMIT_DATABASE = Path(settings.LOG_FILE)

    assert "logs" not in dependencies.disk_health()["free_bytes"]


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="There is no second disk.")
def test_a_disk_of_the_metrics_own_is_looked_at(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_UPLOAD_DIR = tmp_path
    settings.RATE_LIMIT_DATABASE = Path("/dev/shm/rate_limits.db")
    assert "metrics" in dependencies.disk_health()["free_bytes"]

    settings.RATE_LIMIT_DATABASE = tmp_path / "rate_limits.db"
    assert "metrics" not in dependencies.disk_health()["free_bytes"]


def test_an_empty_replica_is_down(sqlite_and_replica: tuple[Path, Path]) -> None:
    database, newest = sqlite_and_replica
    newest.unlink()

    assert dependencies.compared(database, str(newest.parent))["status"] == "down"
