"""deploy/metabase/dashboard.py against a server that takes what Metabase takes; its questions on a real export."""

import importlib.util
import io
import json
import re
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.core.management import call_command

from personas.models import Influencer
from tests.conftest import Api
from tests.servers import environment, manage

pytestmark = pytest.mark.drill

SCRIPT = configured.BASE_DIR / "deploy/metabase/dashboard.py"
KEY, USER, PASSWORD = "mb_key-of-the-tests", "admin@example.com", "a-password"
NEEDED: dict[str, dict[str, type]] = {  # of each request's body; nothing else may be there
    "POST session": {"username": str, "password": str},
    "POST database": {"name": str, "engine": str, "details": dict},
    "PUT database": {"name": str, "engine": str, "details": dict},
    "POST collection": {"name": str},
    "POST card": {"name": str, "display": str, "dataset_query": dict, "visualization_settings": dict}
    | {"collection_id": int},
    "PUT card": {"name": str, "display": str, "dataset_query": dict, "visualization_settings": dict}
    | {"collection_id": int},
    "POST dashboard": {"name": str, "collection_id": int},
    "PUT dashboard": {"dashcards": list},
}


@dataclass
class FakeMetabase:
    """Keeps what it's given, by kind and id, and refuses what Metabase would."""

    wraps_lists: bool = True  # as newer versions do
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def answer(self, method: str, path: str, headers: Any, body: Any) -> tuple[int, Any]:
        self.asked.append((method, path))
        kind, *rest = path.partition("?")[0].split("/")
        if (method, kind) == ("POST", "session"):
            right = body == {"username": USER, "password": PASSWORD}
            return (200, {"id": "a-session"}) if right else (401, {"errors": {"password": "did not match"}})
        if headers.get("X-Api-Key") != KEY and headers.get("X-Metabase-Session") != "a-session":
            return 401, "Unauthenticated"
        if method == "GET":
            return 200, self._list(kind, rest, path)
        if rest[1:] == ["sync_schema"]:
            return 200, {"status": "ok"}
        wrong = self._wrong(f"{method} {kind}", body)
        return (400, {"errors": wrong}) if wrong else (200, self._kept(kind, rest, body))

    def _list(self, kind: str, rest: list[str], path: str) -> Any:
        if rest:  # collection/<id>/items?models=<kind>
            of = path.partition("models=")[2]
            return {"data": [row for row in self.rows.get(of, []) if row["collection_id"] == int(rest[0])]}
        found = self.rows.get(kind, [])
        return {"data": found} if self.wraps_lists and kind == "database" else found

    def _wrong(self, request: str, body: Any) -> dict[str, str]:
        needed = NEEDED[request]
        wrong = dict.fromkeys(body.keys() - needed.keys(), "unknown")
        wrong |= {name: "missing or of a wrong type" for name in needed if not isinstance(body.get(name), needed[name])}
        if "dataset_query" in needed and not wrong:
            query = body["dataset_query"]
            known = query.get("database") in [row["id"] for row in self.rows.get("database", [])]
            native = query.get("type") == "native" and set(query["native"]) == {"query", "template-tags"}
            wrong = {} if known and native else {"dataset_query": "no native query of a known database"}
        return wrong | self._overlaps(body.get("dashcards", []))

    def _overlaps(self, placed: list[dict[str, Any]]) -> dict[str, str]:
        taken: set[tuple[int, int]] = set()
        for one in placed:
            cells = {(one["row"] + y, one["col"] + x) for y in range(one["size_y"]) for x in range(one["size_x"])}
            if cells & taken or max(col for _, col in cells) >= 24:
                return {"dashcards": "overlap, or leave the grid"}
            if one["id"] >= 0 or one["card_id"] not in [row["id"] for row in self.rows["card"]]:
                return {"dashcards": "unknown"}
            taken |= cells
        return {}

    def _kept(self, kind: str, rest: list[str], body: dict[str, Any]) -> dict[str, Any]:
        rows = self.rows.setdefault(kind, [])
        if not rest:
            rows.append({"id": sum(map(len, self.rows.values())) + 1, "archived": False})
            rest = [str(rows[-1]["id"])]
        row = next(row for row in rows if row["id"] == int(rest[0]))
        row.update(body)
        return row


@pytest.fixture
def metabase() -> Iterator[tuple[FakeMetabase, dict[str, str]]]:
    """With the environment that leads to it."""
    fake = FakeMetabase()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, told = fake.answer(self.command, self.path.removeprefix("/api/"), self.headers, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PUT = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield fake, {"METABASE_URL": f"http://127.0.0.1:{server.server_port}/", "METABASE_API_KEY": KEY}
    server.shutdown()
    thread.join()
    server.server_close()


def run(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(SCRIPT), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.own_database
def test_it_makes_the_connection_the_questions_and_their_dashboard(
    metabase: tuple[FakeMetabase, dict[str, str]],
) -> None:
    fake, env = metabase
    done = run({**env, "METABASE_DATABASE_FILE": "/there/analytics.db"})
    assert done.returncode == 0, done.stderr
    (database,), (folder,), (dashboard,) = (fake.rows[kind] for kind in ("database", "collection", "dashboard"))
    assert (database["engine"], database["details"]) == ("sqlite", {"db": "/there/analytics.db"})
    assert {card["collection_id"] for card in fake.rows["card"]} == {folder["id"]}
    assert [placed["card_id"] for placed in dashboard["dashcards"]] == [card["id"] for card in fake.rows["card"]]
    assert done.stdout == f"12 questions on {env['METABASE_URL']}dashboard/{dashboard['id']}\n"


@pytest.mark.own_database
@pytest.mark.parametrize("wraps_lists", [True, False])
def test_a_second_run_changes_what_is_there_and_adds_nothing(
    metabase: tuple[FakeMetabase, dict[str, str]], wraps_lists: bool
) -> None:
    fake, env = metabase
    fake.wraps_lists = wraps_lists
    by_password = {"METABASE_URL": env["METABASE_URL"], "METABASE_USER": USER, "METABASE_PASSWORD": PASSWORD}
    assert run(by_password).returncode == 0
    ids = {kind: [row["id"] for row in rows] for kind, rows in fake.rows.items()}
    fake.rows["card"][3]["dataset_query"] = {"changed": "by hand"}
    fake.rows["card"].append({"id": 99, "name": "Somebody's", "collection_id": ids["collection"][0]})

    assert run(by_password).returncode == 0

    assert fake.rows["card"].pop()["name"] == "Somebody's"
    assert {kind: [row["id"] for row in rows] for kind, rows in fake.rows.items()} == ids
    assert fake.rows["card"][3]["dataset_query"]["native"]["query"].startswith("SELECT round(")


@pytest.mark.own_database
def test_reconnecting_gives_the_same_file_another_spelling_each_time(
    metabase: tuple[FakeMetabase, dict[str, str]],
) -> None:
    fake, env = metabase
    assert run(env).returncode == 0
    spelled = []
    for _ in range(3):
        fake.asked.clear()
        assert run(env, "--reconnect").returncode == 0
        assert [method for method, _ in fake.asked] == ["GET", "PUT", "POST"]
        spelled.append(fake.rows["database"][0]["details"]["db"])
    assert spelled == ["/analytics/./analytics.db", "/analytics/analytics.db", "/analytics/./analytics.db"]


@pytest.mark.own_database
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"METABASE_API_KEY": ""}, "Set METABASE_API_KEY, or METABASE_USER and METABASE_PASSWORD."),
        ({"METABASE_API_KEY": "wrong"}, "GET /api/database: 401"),
        ({"METABASE_API_KEY": "", "METABASE_USER": USER, "METABASE_PASSWORD": "no"}, "POST /api/session: 401"),
        ({"METABASE_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 doesn't answer"),
        ({"METABASE_URL": "metabase"}, "METABASE_URL must be Metabase's address"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    metabase: tuple[FakeMetabase, dict[str, str]], changed: dict[str, str], sentence: str
) -> None:
    failed = run({**metabase[1], **changed})
    assert failed.returncode == 1
    assert sentence in failed.stderr
    assert "Traceback" not in failed.stderr
    assert KEY not in failed.stderr


@pytest.mark.django_db(transaction=True)
def test_each_question_is_answered_by_a_real_export(
    alice: Api, coach: Influencer, tmp_path: Path, settings: Any
) -> None:
    settings.ANALYTICS_KEPT_KEY = tmp_path / "analytics-key"
    assert alice.send(alice.open(coach)["id"]).status_code == 200
    call_command("export_analytics", to=tmp_path / "analytics.db", stdout=io.StringIO())
    with closing(sqlite3.connect(f"{(tmp_path / 'analytics.db').as_uri()}?mode=ro", uri=True)) as file:
        for card in script().CARDS:
            cursor = file.execute(card.sql)
            columns = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
            assert rows, card.name
            assert None not in rows[0][:2], card.name
            charted = [*card.settings.get("graph.dimensions", []), *card.settings.get("graph.metrics", [])]
            assert sorted(charted or columns) == sorted(columns), card.name
            assert set(re.findall(r"FROM (\w+)", card.sql)) <= {name for (name,) in file.execute(TABLES)}
    assert len({card.name for card in script().CARDS}) == len(script().CARDS)


@pytest.mark.own_database
def test_the_commands_of_the_handbook_do_what_it_says(
    metabase: tuple[FakeMetabase, dict[str, str]], tmp_path: Path
) -> None:
    fake, address = metabase
    env = environment(tmp_path, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    handbook = (configured.BASE_DIR / "docs/operations/analytics.md").read_text()
    commands = re.findall(r"```sh\n(.*?)\n```", handbook, re.DOTALL)
    assert len(commands) == 4
    for command in commands:
        line = command.replace("/var/tmp", str(tmp_path)).replace("http://127.0.0.1:3000", address["METABASE_URL"])
        words = line.replace("…", KEY).replace("uv run --no-sync manage.py", f"{sys.executable} manage.py")
        done = subprocess.run(
            words, shell=True, env=env, cwd=configured.BASE_DIR, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for name in ("chat.db", "analytics-key", "analytics.db"):
        assert (tmp_path / name).exists(), name
    assert fake.rows["database"][0]["details"] == {"db": "/analytics/./analytics.db"}


TABLES = "SELECT name FROM sqlite_master WHERE name LIKE 'bi!_%' ESCAPE '!'"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("dashboard", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboard"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
