"""/metrics: private, right with several processes, and without ids. What deploy/ says of it is true."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings as configured
from django.test import Client
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from conversations.live import here
from conversations.models import Conversation
from media_uploads import services as uploads
from tests.conftest import Api, wait_until
from tests.fake_gemini import FakeGemini, blocks, fails, says
from tests.servers import (
    COMMANDS,
    Server,
    children,
    copied,
    environment,
    free_port,
    manage,
    python,
    start,
    wait_until_it_answers,
)
from yral_chat import metric_files, metrics
from yral_chat.ai.breaker import Breaker
from yral_chat.errors import BadRequest

pytestmark = pytest.mark.own_database

TOKEN = "a-token-for-prometheus-0123456789"
DEPLOY: Path = configured.BASE_DIR / "deploy"


def parsed(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the samples that have these labels, at least."""
    wanted = set(labels.items())
    return sum(v for (sample, have), v in parsed(text).items() if sample == name and wanted <= have)


def scraped(**meta: Any) -> str:
    response = Client(HTTP_HOST="localhost").get("/metrics", **meta)
    assert response.status_code == 200, response.content
    return response.content.decode()


# Who may see it


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("token", "meta", "status"),
    [
        ("", {}, 200),
        ("", {"REMOTE_ADDR": "::1"}, 200),
        ("", {"REMOTE_ADDR": "203.0.113.9"}, 404),
        ("", {"REMOTE_ADDR": ""}, 404),
        ("", {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}, 404),
        ("", {"HTTP_FORWARDED": "for=127.0.0.1"}, 404),
        ("", {"HTTP_HOST": "localhost:8000"}, 200),
        ("", {"HTTP_HOST": "127.0.0.1:8000"}, 200),
        ("", {"HTTP_HOST": "[::1]:8000"}, 200),
        ("", {"HTTP_HOST": "chat.example"}, 404),
        ("", {"HTTP_HOST": "localhost.chat.example"}, 404),
        (TOKEN, {}, 404),
        (TOKEN, {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}, 200),
        (TOKEN, {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}", "HTTP_HOST": "chat.example"}, 200),
        (TOKEN, {"HTTP_AUTHORIZATION": f"bearer {TOKEN}", "REMOTE_ADDR": "203.0.113.9"}, 200),
        (TOKEN, {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}x"}, 404),
        (TOKEN, {"HTTP_AUTHORIZATION": TOKEN}, 404),
        (TOKEN, {"HTTP_AUTHORIZATION": "Bearer \xff"}, 404),
        (TOKEN, {"QUERY_STRING": f"token={TOKEN}"}, 404),
    ],
)
def test_it_is_private(token: str, meta: dict[str, Any], status: int, settings: Any) -> None:
    settings.METRICS_TOKEN = token
    settings.ALLOWED_HOSTS = ["*"]
    client = Client(HTTP_HOST="localhost")

    response = client.get("/metrics", **meta)

    assert response.status_code == status
    if status == 404:
        assert response.json()["error"] == "not_found"
        assert client.post("/metrics", **meta).status_code == 404, "it doesn't say that it is there"
    else:
        assert response["Content-Type"].startswith("text/plain; version=0.0.4")


@pytest.mark.django_db
def test_it_can_be_switched_off(settings: Any) -> None:
    settings.METRICS_ENABLED = False

    assert Client().get("/metrics").status_code == 404


# What it counts


def test_requests_are_counted_by_route_and_never_by_address(
    alice: Api, conversation: Conversation, nobody: Api
) -> None:
    before = scraped()
    alice.messages(conversation)
    alice.messages("no-uuid-q4711z")
    nobody.get("/nothing/q4711z")
    nobody.client.generic("BREWq4711z", "/health")
    after = scraped()

    def counted(**labels: str) -> float:
        name = "yral_chat_http_request_duration_seconds_count"
        return value(after, name, **labels) - value(before, name, **labels)

    route = "/api/v1/chat/conversations/<str:conversation_id>/messages"
    assert counted(method="GET", route=route, status="200") == 1
    assert counted(method="GET", route=route, status="404") == 1
    assert counted(route="unmatched", status="404") == 1
    assert counted(method="OTHER", route="/health", status="405") == 1
    assert "q4711z" not in after.lower()
    assert str(conversation.pk) not in after
    assert "alice" not in after


def test_turns_and_calls_are_counted(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    while here.all():  # a stream that a test before left
        time.sleep(0.01)
    before = scraped()
    alice.send(conversation, "one")
    gemini.will(fails(503), says("After all."))
    alice.send(conversation, "two")
    gemini.will(blocks())
    alice.send(conversation, "three")
    gemini.will(fails(400))
    alice.send(conversation, "four")
    after = scraped()

    def grew(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    model = "gemini-2.5-flash"
    assert grew("yral_chat_turns_total", outcome="done", model=model) == 2
    assert grew("yral_chat_turns_total", outcome="blocked", model=model) == 1
    assert grew("yral_chat_turns_total", outcome="failed", model=model) == 1
    assert grew("yral_chat_model_calls_total", kind="reply", outcome="answered") == 2
    assert grew("yral_chat_model_calls_total", outcome="refused") == 1
    assert grew("yral_chat_model_attempts_total", model=model) == 5
    assert grew("yral_chat_model_tokens_total", direction="prompt") == 120
    assert grew("yral_chat_model_tokens_total", direction="output") == 24
    assert grew("yral_chat_turn_reply_seconds_count", model=model) == 3
    assert grew("yral_chat_turn_first_token_seconds_count", model=model) == 2
    for gauge in ("turns_running", "turns_waiting", "streams_open", "breaker_open_processes"):
        assert value(after, f"yral_chat_{gauge}") == 0


def test_an_open_breaker_is_seen(alice: Api, conversation: Conversation, gemini: FakeGemini, monkeypatch: Any) -> None:
    monkeypatch.setattr(Breaker, "FAILURES", 1)
    gemini.will(fails(403))
    alice.send(conversation, "down")
    assert value(scraped(), "yral_chat_breaker_open_processes", model="gemini-2.5-flash") == 1

    alice.send(conversation, "down")
    assert value(scraped(), "yral_chat_model_calls_total", outcome="not_asked") > 0


def test_uploads_are_counted_by_kind_and_outcome(db: None) -> None:
    before = scraped()
    with pytest.raises(BadRequest):
        uploads.store_upload(owner_id="alice", kind="image", file=_Bytes(), size=3)

    grew = value(scraped(), "yral_chat_uploads_total", kind="image", outcome="refused")
    assert grew - value(before, "yral_chat_uploads_total", kind="image", outcome="refused") == 1


def _Bytes() -> Any:
    import io

    return io.BytesIO(b"no picture")


def test_the_models_of_personas_are_a_bounded_label() -> None:
    known = set(metrics._models)
    try:
        labels = {metrics.model_label(f"model-{number}") for number in range(100)}
        assert len(labels) <= metrics.MOST_MODELS + 1
        assert "other" in labels
        assert metrics.model_label(configured.GEMINI_MODEL) == configured.GEMINI_MODEL
    finally:
        metrics._models.clear()
        metrics._models.update(known)


# Several processes


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    return folder


@pytest.fixture
def serve(database: Path, tmp_path: Path) -> Iterator[Any]:
    started: list[Server] = []

    def go(kind: str, **changed: str) -> Server:
        folder = tmp_path / f"{kind}{len(started)}"
        copied(database, folder)
        changed = {"RATE_LIMIT_DATABASE": f"{tmp_path}/rate_limits.db", "TMPDIR": str(tmp_path), **changed}
        env = environment(folder, "http://127.0.0.1:9", free_port(), METRICS_TOKEN=TOKEN, **changed)
        server = start(kind, env, folder)
        started.append(server)
        wait_until_it_answers(server)
        return server

    yield go
    for server in started:
        server.stop()


def metrics_of(server: Server) -> str:
    got = server.call("GET", "/metrics", user=None, Authorization=f"Bearer {TOKEN}")
    assert got.status == 200, got.content
    return got.content.decode()


LISTED = {"route": "/api/v1/influencers", "status": "200"}
COUNT = "yral_chat_http_request_duration_seconds_count"


def listed(server: Server) -> float:
    """Requests for the list, as its metrics say."""
    return value(metrics_of(server), COUNT, **LISTED)


def list_often(server: Server, times: int) -> None:
    for _ in range(times):
        assert server.call("GET", "/api/v1/influencers", user=None).status == 200


def folder_of(server: Server, parent: Path) -> Path:
    return next(parent.glob(f"{metric_files.PREFIX}{os.getuid()}-{server.process.pid}-*"))


def kill_workers(server: Server) -> None:
    """All at once; others have taken their places when it returns."""
    before = children(server)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(children(server) - before) == len(before), "no others came", 20)
    wait_until_it_answers(server)


@pytest.mark.drill
@pytest.mark.parametrize("kind", COMMANDS)
def test_processes_are_counted_together_and_leave_no_folder(kind: str, serve: Any, tmp_path: Path) -> None:
    server = serve(kind, WEB_CONCURRENCY="3")
    before = listed(server)
    list_often(server, 30)

    assert listed(server) - before == 30
    assert folder_of(server, tmp_path).stat().st_mode & 0o777 == 0o700
    server.stop()
    if kind == "gunicorn":  # uvicorn's main process knows nothing of us: there the next start does it
        assert not list(tmp_path.glob(f"{metric_files.PREFIX}*"))


@pytest.mark.drill
def test_what_a_dead_process_counted_stays_and_its_gauges_go(serve: Any, tmp_path: Path) -> None:
    server = serve("gunicorn", WEB_CONCURRENCY="2")
    list_often(server, 20)
    before, killed = listed(server), children(server)
    kill_workers(server)

    assert listed(server) >= before + 1
    folder = folder_of(server, tmp_path)
    left = [file for file in folder.iterdir() for pid in killed if f"_{pid}-" in file.name]
    assert not left
    assert listed(server) >= before + 1
    assert value(metrics_of(server), "yral_chat_turns_running") == 0


@pytest.mark.drill
def test_a_start_removes_what_killed_services_left_and_nothing_of_those_that_run(serve: Any, tmp_path: Path) -> None:
    """Also of one whose processes it can't see, as in another container."""
    dead, unseen = (tmp_path / f"{metric_files.PREFIX}{os.getuid()}-9999999{number}-1" for number in (1, 2))
    dead.mkdir()
    unseen.mkdir()
    with (unseen / metric_files.IN_USE).open("w") as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        first, second = serve("gunicorn"), serve("gunicorn")

    assert not dead.exists()
    assert unseen.exists()
    list_often(first, 3)
    assert folder_of(first, tmp_path) != folder_of(second, tmp_path)
    assert listed(first) >= 3


@pytest.mark.drill
def test_a_reload_keeps_what_was_counted(serve: Any, tmp_path: Path) -> None:
    server = serve("gunicorn", WEB_CONCURRENCY="1")
    list_often(server, 10)
    before, (worker,) = listed(server), children(server)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: children(server) and worker not in children(server), "no reload", 30)
    wait_until_it_answers(server)

    assert listed(server) >= before + 1


# Whatever becomes of the files, requests are answered


@pytest.mark.drill
@pytest.mark.parametrize("kind", COMMANDS)
def test_processes_count_on_when_somebody_removes_the_folder(kind: str, serve: Any, tmp_path: Path) -> None:
    server = serve(kind, WEB_CONCURRENCY="2")
    list_often(server, 10)
    before = listed(server)
    for folder in tmp_path.glob(f"{metric_files.PREFIX}*"):
        shutil.rmtree(folder)

    assert metrics_of(server), "whoever answers makes it anew"
    wait_until(lambda: listed(server) == before, "what a living process counted is gone", 10)
    shutil.rmtree(next(tmp_path.glob(f"{metric_files.PREFIX}*")))
    if kind == "gunicorn":
        kill_workers(server)
    list_often(server, 10)
    wait_until(lambda: listed(server) >= 10, "it doesn't count any more", 10)


@pytest.mark.drill
def test_files_have_their_room_on_the_disk_before_they_are_written(serve: Any, tmp_path: Path) -> None:
    server = serve("gunicorn")
    folder = folder_of(server, tmp_path)
    wait_until(lambda: len(list(folder.glob("*.db"))) == 2 * len(metric_files.KINDS), "a process has no files")
    for file in folder.glob("*.db"):
        assert file.stat().st_blocks * 512 >= file.stat().st_size


def test_a_file_grows_with_room_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "counter_1-1.db"
    file = metric_files.File(path)
    keys = [f"{number:0200}" for number in range(2000)]
    for number, key in enumerate(keys):
        file.make_room([key])
        file.put(key, number)
    file.close()  # type: ignore[no-untyped-call]

    assert path.stat().st_blocks * 512 >= path.stat().st_size > 2000 * 200
    again = metric_files.File(path)
    assert [again.get(key) for key in keys] == list(range(2000))
    again.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True).returncode:
        pytest.skip("Only root can mount a disk that is soon full.")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.drill
def test_a_full_disk_stops_no_request(serve: Any, small_disk: Path) -> None:
    server = serve("gunicorn", WEB_CONCURRENCY="1", RATE_LIMIT_DATABASE=f"{small_disk}/rate_limits.db")
    list_often(server, 10)
    full = small_disk / "full"
    with suppress(OSError), full.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))

    list_often(server, 10)
    before = listed(server)
    for path in ("/", "/health", "/nothing", "/openapi.json"):
        assert server.call("GET", path, user=None).status < 500
    kill_workers(server)
    list_often(server, 10)
    assert listed(server) >= before
    assert server.log.count("Metrics are kept in each process's memory alone") == 1
    full.unlink()
    wait_until(lambda: listed(server) >= before + 10, "it doesn't find its way back", 15)
    assert "Metrics are in their files again" in server.log


@pytest.mark.drill
def test_a_folder_that_may_not_be_written_is_replaced_by_the_temporary_one(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    server = serve("gunicorn", RATE_LIMIT_DATABASE=f"{tmp_path}/file/rate_limits.db")
    list_often(server, 10)

    assert listed(server) >= 10
    assert folder_of(server, tmp_path)


@pytest.mark.drill
def test_nobody_waits_for_a_process_that_stopped_while_it_read(serve: Any, tmp_path: Path) -> None:
    server = serve("gunicorn", WEB_CONCURRENCY="2")
    list_often(server, 10)
    before = listed(server)
    with (folder_of(server, tmp_path) / metric_files.READING).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kill_workers(server)
        started = time.monotonic()
        assert listed(server) >= before + 1
        assert time.monotonic() - started < 5
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0


@pytest.mark.drill
def test_commands_make_no_folder(database: Path, tmp_path: Path) -> None:
    manage(environment(database, "http://127.0.0.1:9", 9, RATE_LIMIT_DATABASE=f"{tmp_path}/x.db"), "check")

    assert not list(tmp_path.iterdir())


@pytest.mark.drill
def test_the_measure_of_what_it_costs_runs_as_documented() -> None:
    run = python({"PATH": os.environ["PATH"]}, "-m", "tests.request_cost", "--rounds", "2", "--requests", "5")

    assert re.search(r"^ratio \d", run.stdout, re.MULTILINE), run.stdout + run.stderr


def test_every_number_has_a_kind_of_file() -> None:
    assert {number.kind for number in metric_files._numbers} <= set(metric_files.KINDS)


# What deploy/ says of it


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\byral_chat_\w+", expression))


def exposed() -> set[str]:
    """The names of /metrics, also of what has no value yet."""
    names = {
        "yral_chat_replica_answers",
        "yral_chat_replica_behind_seconds",
        "yral_chat_restore_drill_timestamp_seconds",
    }
    for family in text_string_to_metric_families(scraped()):
        names |= {sample.name for sample in family.samples} | {family.name}
    for each in vars(metrics).values():
        kind, name = getattr(each, "_type", ""), getattr(each, "_name", "")
        if kind == "counter":
            names.add(f"{name}_total")
        elif kind == "histogram":
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")}
        elif kind == "gauge":
            names.add(name)
    return names


@pytest.mark.drill
@pytest.mark.django_db
def test_every_metric_of_the_alerts_and_the_dashboard_exists() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    dashboard = json.loads((DEPLOY / "grafana/yral_ai_chat.json").read_text())
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]

    assert len(expressions) > 20
    for expression in expressions:
        assert names_in(expression), expression
        assert names_in(expression) <= exposed(), expression


def test_every_metric_is_on_the_dashboard() -> None:
    shown = names_in((DEPLOY / "grafana/yral_ai_chat.json").read_text())
    names = {each._name for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)}

    for name in {*names, "yral_chat_database_up"}:
        assert {name, f"{name}_total", f"{name}_bucket"} & shown, name


def test_every_alert_says_what_to_do() -> None:
    alerts = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["description"]


def promtool(*arguments: str | Path, given: str = "") -> None:
    program = shutil.which("promtool")
    if program is None:
        assert "CI" not in os.environ, "CI must check with promtool: it isn't installed."
        pytest.skip("promtool isn't installed: Prometheus' own check wasn't made.")
    run = subprocess.run([program, *arguments], input=given, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_promtool_accepts_the_alerts() -> None:
    promtool("check", "rules", DEPLOY / "prometheus/alerts.yml")


@pytest.mark.drill
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", DEPLOY / "prometheus/alerts_test.yml")


@pytest.mark.django_db
def test_promtool_accepts_the_metrics() -> None:
    promtool("check", "metrics", given=scraped())
