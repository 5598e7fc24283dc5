"""The real servers, as processes of their own, and what an app and an operator do with them."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from django.conf import settings as configured

from tests.conftest import token
from tests.scrubber import scrubber

CHATS = "/api/v1/chat/conversations"
API_KEY = "AIza-canary-api-key-of-the-servers"
SECRET = "the-secret-key-of-the-servers-Bq5wHj2Zr8Nc4Xv"
JWT_SECRET = configured.JWT_SECRET_KEY
GUNICORN = ("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py")
UVICORN = ("-m", "uvicorn", "yral_chat.asgi:application", "--log-level", "info", "--host", "127.0.0.1")
TROUBLE = re.compile("Traceback|Warning:|was never awaited|database is locked")
POSTGRESQL = "" if configured.DATABASE_URL.startswith("sqlite") else configured.DATABASE_URL  # the suite's
COMMANDS = {"gunicorn": GUNICORN, "uvicorn": UVICORN}
ENTRYPOINT = {"entrypoint": ("-m", "yral_chat.entrypoint")}  # which starts gunicorn


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    database_url: str
    influencers: list[str] = field(default_factory=list)
    patience: float = 60  # seconds that a caller waits for the next byte
    begins: int = 0  # its part of the log, which may be that of others before it, too
    said: set[str] = field(default_factory=set)  # to it, in all its life

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def trouble(self) -> str:
        """The log around the first thing in it that no log should have; empty if there is none."""
        found = TROUBLE.search(self.log)
        return self.log[max(0, found.start() - 600) : found.end() + 2000] if found else ""

    def call(self, method: str, path: str, body: Any = None, user: str | None = "alice", **headers: str) -> Got:
        """On a connection of its own."""
        connection, response = self.request(method, path, body, user, **headers)
        try:
            got = Got(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
            scrubber.look_at_answer(got.content, f"a server's answer to {path}")
            return got
        finally:
            connection.close()

    def request(
        self, method: str, path: str, body: Any = None, user: str | None = "alice", **headers: str
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """With the body still to be read; who gets the connection closes it."""
        if isinstance(body, dict) and body.get("content") != user:  # ids are logged
            self.said |= scrubber.heard(body.get("content"))
        sent = {"Authorization": f"Bearer {token(user)}"} if user else {}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.patience)
        try:
            connection.request(method, path, data, {**sent, **headers})
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def open(self, influencer: str, user: str) -> str:
        opened = self.call("POST", CHATS, {"influencer_id": influencer}, user)
        assert opened.status == 201, opened.content
        return str(opened.json()["id"])

    def send(self, conversation: str, content: str, user: str, **headers: str) -> Got:
        body = {"message_type": "text", "content": content}
        return self.call("POST", f"{CHATS}/{conversation}/messages", body, user, **headers)

    def rows(self, sql: str, *values: object) -> list[Any]:
        return rows(self.database_url, sql, *values)

    def stop(self) -> None:
        """With everything that it started; it has a process group of its own."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(15)
        self.kill()

    def kill(self) -> None:
        """All of its processes, at once, without a last word. Its log is looked at."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)
        log = self.log_path.read_bytes()[self.begins :].decode(errors="replace")
        scrubber.look_at(log, f"the log of the server at {self.log_path.parent.name}", self.said)


def rows(database_url: str, sql: str, *values: object) -> list[Any]:
    """What the database itself holds, past the service; `?` stands for a value. Ids come as they are stored."""
    if database_url.startswith("sqlite"):
        connection = sqlite3.connect(database_url.removeprefix("sqlite:///"))
        try:
            return connection.execute(sql, [_for_sqlite(value) for value in values]).fetchall()
        finally:
            connection.close()
    with psycopg.connect(database_url) as postgresql:
        return postgresql.execute(sql.replace("?", "%s").encode(), values).fetchall()


def _for_sqlite(value: object) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ")
    return value.hex if isinstance(value, uuid.UUID) else value


def environment(folder: Path, gemini_url: str, port: int, **changed: str) -> dict[str, str]:
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {
        **clean,
        "ENV_FILE": "",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
        "ENVIRONMENT": "production",
        "SECRET_KEY": SECRET,
        "JWT_SECRET_KEY": JWT_SECRET,
        "GEMINI_API_KEY": API_KEY,
        "GEMINI_BASE_URL": gemini_url,
        "ALLOWED_HOSTS": "127.0.0.1",
        "DATABASE_URL": f"sqlite:///{folder}/chat.db",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "WEB_CONCURRENCY": "2",
        "WEB_THREADS": "32",
        "RATE_LIMIT_PER_MINUTE": "1000000",
        "RATE_LIMIT_PER_HOUR": "1000000",
        "RATE_LIMIT_DATABASE": f"{folder}/rate_limits.db",
        "LOG_FILE": "",
        **changed,
    }


def python(env: dict[str, str], *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """In the project's folder, with nothing in the environment but `env`: what it said, and how it ended."""
    return subprocess.run(
        [sys.executable, *arguments],
        env=env,
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def manage(env: dict[str, str], *arguments: str) -> None:
    run = python(env, "manage.py", *arguments)
    assert run.returncode == 0, run.stderr


def start(kind: str, env: dict[str, str], folder: Path, code: Path = configured.BASE_DIR) -> Server:
    """gunicorn, uvicorn or the entrypoint; it doesn't answer yet."""
    extra = ("--port", env["PORT"]) if kind == "uvicorn" else ()
    log_path = folder / "server.log"
    with log_path.open("ab") as log:
        begins = log.tell()
        process = subprocess.Popen(
            [sys.executable, *(COMMANDS | ENTRYPOINT)[kind], *extra],
            env=env,
            cwd=code,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(process, int(env["PORT"]), log_path, env["DATABASE_URL"], begins=begins)


def wait_until_it_answers(server: Server, seconds: float = 30) -> None:
    """And knows who there is to talk to."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            listed = server.call("GET", "/api/v1/influencers", user=None)
        except OSError:
            time.sleep(0.05)
        else:
            server.influencers = [one["id"] for one in listed.json()["influencers"] if one["is_active"] == "active"]
            return
    pytest.fail(f"The server didn't start:\n{server.log}")


@contextmanager
def running(kind: str, env: dict[str, str], folder: Path, code: Path = configured.BASE_DIR) -> Iterator[Server]:
    """It answers, and is stopped at the end."""
    server = start(kind, env, folder, code)
    try:
        wait_until_it_answers(server)
        yield server
    finally:
        server.stop()


def children(server: Server, *which: str) -> set[int]:
    """The ids of its processes; `which` are options of pgrep."""
    command = ["pgrep", "-P", str(server.process.pid), *which]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return {int(pid) for pid in found.stdout.split()}


@contextmanager
def on_postgresql(how: str = "", *, at: str = POSTGRESQL) -> Iterator[str]:
    """A database of its own on the suite's PostgreSQL, or another one."""
    name = f"server_{uuid.uuid4().hex}"
    with psycopg.connect(at, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} {how}".encode())
        try:
            yield urlsplit(at)._replace(path=f"/{name}").geturl()
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def running_redis(folder: Path) -> Iterator[str]:
    """The address of a Redis server of the test's own."""
    program = shutil.which("redis-server")
    if program is None:
        assert "CI" not in os.environ, "CI must test with Redis: redis-server isn't installed."
        pytest.skip("redis-server isn't installed: processes weren't tested with a shared cache.")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not listens(port):
            assert time.monotonic() < deadline, "redis-server didn't start"
            time.sleep(0.02)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(10)


def listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def copied(source_folder: Path, folder: Path) -> None:
    """The SQLite database of the one to the other, which is made."""
    folder.mkdir()
    with sqlite3.connect(source_folder / "chat.db") as source, sqlite3.connect(folder / "chat.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
