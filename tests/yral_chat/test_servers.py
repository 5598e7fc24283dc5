"""The real servers, as processes of their own: gunicorn with the shipped configuration, and an ASGI server."""

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import token
from tests.fake_gemini import REPLY, Answer, FakeGemini, says

CHATS = "/api/v1/chat/conversations"
API_KEY = "AIza-canary-api-key-of-the-servers"
SECRET = "the-secret-key-of-the-servers-0123456789-abc"
JWT_SECRET = configured.JWT_SECRET_KEY
GUNICORN = ("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py")
UVICORN = ("-m", "uvicorn", "yral_chat.asgi:application", "--log-level", "info", "--host", "127.0.0.1")


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
    database: Path
    influencers: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def call(self, method: str, path: str, body: Any = None, user: str | None = "alice", **headers: str) -> Got:
        """On a connection of its own."""
        sent = {"Authorization": f"Bearer {token(user)}"} if user else {}
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if data is not None:
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, {**sent, **headers})
            response = connection.getresponse()
            return Got(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def open(self, influencer: str, user: str) -> str:
        opened = self.call("POST", CHATS, {"influencer_id": influencer}, user)
        assert opened.status == 201, opened.content
        return str(opened.json()["id"])

    def send(self, conversation: str, content: str, user: str) -> Got:
        return self.call("POST", f"{CHATS}/{conversation}/messages", {"message_type": "text", "content": content}, user)

    def rows(self, sql: str, *values: object) -> list[Any]:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()

    def stop(self) -> None:
        """With everything that it started; it has a process group of its own."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait(5)


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
        **changed,
    }


def manage(env: dict[str, str], *arguments: str) -> None:
    run = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        env=env,
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def start(command: tuple[str, ...], env: dict[str, str], folder: Path) -> Server:
    port = int(env["PORT"])
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=env,
            cwd=configured.BASE_DIR,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(process, port, log_path, folder / "chat.db")


def wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            server.call("GET", "/", user=None)
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"The server didn't start:\n{server.log}")


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated and seeded SQLite file; the static files are collected too."""
    folder = tmp_path_factory.mktemp("servers")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    manage(env, "collectstatic", "--noinput", "--verbosity", "0")
    return folder


COMMANDS = {"gunicorn": GUNICORN, "uvicorn": UVICORN}


@pytest.fixture(scope="module")
def model() -> Iterator[FakeGemini]:
    fake = FakeGemini()
    yield fake
    fake.stop()


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, database: Path, model: FakeGemini) -> Iterator[Server]:
    folder = database / request.param
    folder.mkdir()
    with sqlite3.connect(database / "chat.db") as source, sqlite3.connect(folder / "chat.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    port = free_port()
    extra = ("--port", str(port)) if request.param == "uvicorn" else ()
    started = start((*COMMANDS[request.param], *extra), environment(folder, model.url, port), folder)
    try:
        wait_until_it_answers(started)
        listed = started.call("GET", "/api/v1/influencers", user=None).json()["influencers"]
        started.influencers = [one["id"] for one in listed if one["is_active"] == "active"]
        yield started
    finally:
        started.stop()


def test_it_is_healthy_and_says_who_it_is(server: Server) -> None:
    health = server.call("GET", "/health", user=None)

    assert health.status == 200, health.content
    assert health.json()["status"] == "healthy"
    assert server.call("GET", "/", user=None).json()["environment"] == "production"
    assert server.call("GET", "/status", user=None).json()["statistics"]["active_influencers"] == len(
        server.influencers
    )


def test_it_serves_a_conversation_from_the_list_to_the_reply(server: Server, model: FakeGemini) -> None:
    model.reset()
    conversation = server.open(server.influencers[0], "walker")
    turn = server.send(conversation, "Hello from a real server! 🌱", "walker")

    assert turn.status == 200, turn.content
    assert turn.json()["assistant_message"]["content"] == REPLY
    assert len(model.requests) == 1
    messages = server.call("GET", f"{CHATS}/{conversation}/messages?order=asc", user="walker").json()
    assert [one["role"] for one in messages["messages"]][-2:] == ["user", "assistant"]
    assert messages["messages"][-2]["content"] == "Hello from a real server! 🌱"
    assert server.rows("SELECT message_count FROM conversations WHERE user_id = 'walker'") == [(messages["total"],)]
    assert server.call("GET", f"{CHATS}/{conversation}/messages", user="stranger").status == 403
    deleted = server.call("DELETE", f"{CHATS}/{conversation}", user="walker")
    assert (deleted.status, deleted.json()["deleted_messages_count"]) == (200, messages["total"])


def test_the_key_travels_in_a_header_and_not_in_the_address(server: Server, model: FakeGemini) -> None:
    model.reset()
    server.send(server.open(server.influencers[0], "walker"), "Which key?", "walker")

    assert model.last.headers["x-goog-api-key"] == API_KEY
    assert API_KEY not in model.last.path


def test_it_refuses_as_the_contract_says(server: Server) -> None:
    for method, path, user, body, status in (
        ("GET", CHATS, None, None, 401),
        ("POST", CHATS, "walker", {}, 422),
        ("POST", CHATS, "walker", b"{broken", 400),
        ("POST", CHATS, "walker", b'{"a": "\xff"}', 400),
        ("POST", CHATS, "walker", {"influencer_id": "nobody"}, 404),
        ("GET", "/nothing", None, None, 404),
        ("GET", "/nothing/%ff%00", None, None, 404),
        ("POST", f"{CHATS}/", "walker", {}, 404),
        ("PUT", "/api/v1/influencers", None, {}, 405),
        ("BREW", "/health", None, None, 405),
    ):
        got = server.call(method, path, body, user)
        assert got.status == status, (path, got.content)
        assert set(got.json()) == {"error", "message", "details"}
        assert got.headers["content-type"] == "application/json"


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    got = server.call("POST", CHATS, {"influencer_id": "x", "extra": "x" * (2 * 1024 * 1024)}, "walker")

    assert got.status == 413
    assert got.json()["error"] == "payload_too_large"


def chunked(server: Server, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    headers = {"Authorization": f"Bearer {token('chunks')}", "Content-Type": "application/json"}
    pieces = (body[n : n + 65536] for n in range(0, len(body), 65536))
    try:
        connection.request("POST", CHATS, pieces, headers, encode_chunked=True)
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        return 413  # it hung up while we were still sending
    finally:
        connection.close()


def test_a_chunked_body_is_read(server: Server) -> None:
    """A phone's HTTP library that streams its JSON sends no Content-Length."""
    assert chunked(server, json.dumps({"influencer_id": server.influencers[0]}).encode()) == 201


def test_a_chunked_body_has_the_same_limit(server: Server) -> None:
    big = {"influencer_id": server.influencers[0], "extra": "x" * (2 * 1024 * 1024)}

    assert chunked(server, json.dumps(big).encode()) == 413


def test_a_foreign_host_is_refused(server: Server) -> None:
    got = server.call("GET", "/health", user=None, Host="evil.example")

    assert got.status == 400
    assert got.json()["error"] == "bad_request"


def test_the_correlation_id_comes_back_and_bad_ones_do_not(server: Server) -> None:
    given = {"X-Correlation-ID": "from-the-phone-1"}
    for path in ("/", "/health", "/nothing", "/docs", CHATS, "/api/v1/influencers"):
        got = server.call("GET", path, **given)
        assert got.headers["x-correlation-id"] == "from-the-phone-1"
        assert got.headers["x-api-version"] == "v1"
    replaced = server.call("GET", "/", **{"X-Correlation-ID": "<script>"}).headers["x-correlation-id"]
    assert re.fullmatch(r"[0-9a-f-]{36}", replaced)


def test_a_browser_gets_json_from_the_api(server: Server) -> None:
    for path in ("/", "/status", "/health", "/api/v1/influencers", CHATS, "/nothing", "/openapi.json"):
        got = server.call("GET", path, Accept="text/html,application/xhtml+xml")
        assert "json" in got.headers["content-type"], path
        assert got.status == (404 if path == "/nothing" else 200), path
        got.json()


def test_the_pages_and_what_they_load_are_served(server: Server) -> None:
    for path in ("/docs", "/redoc", "/admin/login/"):
        page = server.call("GET", path, user=None)
        assert page.status == 200, path
        assert page.headers["content-type"].startswith("text/html")
        loaded = set(re.findall(r"""(?:src|href)=["'](/static/[^"']+)["']""", page.content.decode()))
        assert loaded, path
        for address in loaded:
            got = server.call("GET", address, user=None)
            assert got.status == 200, address
            assert len(got.content) > 100
    assert b"csrfmiddlewaretoken" in server.call("GET", "/admin/login/", user=None).content


def test_a_persona_s_picture_is_served_if_it_is_ours(server: Server) -> None:
    for one in server.call("GET", "/api/v1/influencers", user=None).json()["influencers"]:
        base = f"http://127.0.0.1:{server.port}"
        if one["avatar_url"].startswith(base):
            got = server.call("GET", one["avatar_url"].removeprefix(base), user=None)
            assert got.status == 200, one["avatar_url"]
            assert got.headers["content-type"].startswith("image/")


def test_the_admin_s_cookies_are_for_https_only(server: Server) -> None:
    cookie = server.call("GET", "/admin/login/", user=None).headers["set-cookie"]

    assert "csrftoken=" in cookie
    assert "Secure" in cookie


def test_head_and_keep_alive_work(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(3):
        for method in ("GET", "HEAD"):
            connection.request(method, "/health")
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200
            assert bool(body) == (method == "GET")
    connection.close()


def test_turns_run_side_by_side_while_the_model_thinks(server: Server, model: FakeGemini) -> None:
    """Twenty waits of half a second each take far less than ten seconds."""
    model.reset()
    slow = says("Slowly.")
    slow.delay = 0.5
    model.default = slow
    chats = [server.open(server.influencers[0], f"slow-{n}") for n in range(20)]
    started = time.monotonic()

    with ThreadPoolExecutor(20) as pool:
        turns = list(pool.map(lambda n: server.send(chats[n], "Think!", f"slow-{n}"), range(20)))

    assert Counter(turn.status for turn in turns) == {200: 20}
    assert time.monotonic() - started < 5


def test_two_hundred_sends_at_once_all_succeed_and_count_right(server: Server, model: FakeGemini) -> None:
    """In ten conversations, of which one gets half of all: every message once, no gap, counters equal to rows."""
    model.reset()
    quick = says("Yes.")
    quick.delay = 0.02
    model.default = quick
    users = [f"crowd-{n}" for n in range(10)]
    chats = {user: server.open(server.influencers[1], user) for user in users}
    work = [(users[0] if n % 2 else users[1 + n // 2 % 9], f"Message {n}") for n in range(200)]

    with ThreadPoolExecutor(40) as pool:
        turns = list(pool.map(lambda job: server.send(chats[job[0]], job[1], job[0]), work))

    assert Counter(turn.status for turn in turns) == {200: 200}, next(t.content for t in turns if t.status != 200)
    for user, chat in chats.items():
        key = chat.replace("-", "")
        sequences = [
            n for (n,) in server.rows("SELECT sequence FROM messages WHERE conversation_id = ? ORDER BY 1", key)
        ]
        assert sequences == list(range(1, len(sequences) + 1))
        assert server.rows("SELECT message_count FROM conversations WHERE id = ?", key) == [(len(sequences),)]
        mine = sorted(text for owner, text in work if owner == user)
        asked = server.rows("SELECT content FROM messages WHERE conversation_id = ? AND role = 'user'", key)
        assert sorted(text for (text,) in asked) == mine
        answered = server.rows("SELECT COUNT(DISTINCT in_reply_to_id) FROM messages WHERE conversation_id = ?", key)
        assert answered == [(len(mine),)]
        moments = server.rows("SELECT created_at FROM messages WHERE conversation_id = ? ORDER BY sequence", key)
        assert moments == sorted(set(moments))
    assert "database is locked" not in server.log


def test_opening_and_deleting_at_once_never_fails(server: Server) -> None:
    """One row and one greeting, or none; nobody sees a 500."""

    def both(number: int) -> list[int]:
        opened = server.call("POST", CHATS, {"influencer_id": server.influencers[0]}, "restless")
        statuses = [opened.status]
        if number % 2 == 0 and opened.status == 201:
            statuses.append(server.call("DELETE", f"{CHATS}/{opened.json()['id']}", user="restless").status)
        if opened.status != 201:
            refused.append(opened.content)
        return statuses

    refused: list[bytes] = []
    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(status for pair in pool.map(both, range(160)) for status in pair)

    assert statuses[201] == 160, f"opening answers 201, always: {refused}"
    assert set(statuses) <= {200, 201, 404}  # 404: somebody else's DELETE was faster
    left = server.rows("SELECT id, message_count FROM conversations WHERE user_id = 'restless'")
    assert len(left) <= 1
    for key, count in left:
        assert server.rows("SELECT COUNT(*) FROM messages WHERE conversation_id = ?", key) == [(count,)]


def open_files(server: Server) -> int:
    listed = subprocess.run(["pgrep", "-g", str(server.process.pid)], capture_output=True, text=True, check=False)
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in listed.stdout.split())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_open_files_do_not_grow_with_requests(server: Server) -> None:
    def burst() -> None:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: server.call("GET", CHATS).status, range(150))) == {200}

    burst()
    before = open_files(server)
    burst()
    burst()
    assert open_files(server) - before < 100, "a file for every third request or more"


def test_a_caller_who_hangs_up_leaves_the_turn_whole(server: Server, model: FakeGemini) -> None:
    """The app is closed while the model thinks: the answer is stored all the same, and the server goes on."""
    model.reset()
    conversation = server.open(server.influencers[2], "gone")
    model.will(Answer(says("Still here.").body, delay=0.5))
    body = json.dumps({"message_type": "text", "content": "Bye"}).encode()
    head = (
        f"POST {CHATS}/{conversation}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token('gone')}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as phone:
        phone.sendall(head.encode() + body)
        time.sleep(0.2)
    time.sleep(1.2)

    said = server.call("GET", f"{CHATS}/{conversation}/messages", user="gone").json()["messages"]
    assert said[0]["content"] in ("Still here.", "Bye")
    assert server.send(conversation, "Bye" if said[0]["role"] == "user" else "Back", "gone").status == 200


def test_z_its_log_holds_no_secret_no_warning_and_no_crash(server: Server) -> None:
    """Last in the file: the log of everything above."""
    log = server.log
    for secret in (API_KEY, SECRET, JWT_SECRET, token("alice").split(".")[0]):
        assert secret not in log
    assert "Message 17" not in log, "what users say stays out of the log"
    # A static file under ASGI is read whole, as Django warns of; a foreign host is logged with its traceback.
    log = "\n".join(line for line in log.splitlines() if "StreamingHttpResponse must consume" not in line)
    assert log.count("Traceback") == log.count("ERROR django.security.DisallowedHost"), log[-6000:]
    for trouble in ("database is locked", "Warning:", "was never awaited"):
        assert trouble not in log, log[max(0, log.find(trouble) - 1500) :][:4000]


# Starting and stopping


def run_gunicorn(folder: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *GUNICORN],
        env=environment(folder, "http://127.0.0.1:9", free_port(), **changed),
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_a_database_that_is_not_migrated_stops_the_start(server: str, tmp_path: Path) -> None:
    """An empty file in the place of the expected one must not look like a service that is well."""
    env = environment(
        tmp_path, "http://127.0.0.1:9", free_port(), DATABASE_URL=f"sqlite:///{tmp_path}/empty.db", WEB_CONCURRENCY="1"
    )
    command = GUNICORN if server == "gunicorn" else ["-m", "uvicorn", "yral_chat.asgi:application"]
    run = subprocess.run(
        [sys.executable, *command],
        env=env,
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert run.returncode != 0
    assert "manage.py migrate" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "eighty"), ("SECRET_KEY", "short"), ("GEMINI_API_KEY", ""), ("ALLOWED_HOSTS", ""), ("WEB_THREADS", "0")],
)
def test_a_bad_setting_stops_gunicorn_with_one_sentence(name: str, value: str, tmp_path: Path) -> None:
    run = run_gunicorn(tmp_path, **{name: value})

    assert run.returncode != 0
    said = [line for line in (run.stdout + run.stderr).splitlines() if line.strip()]
    assert len(said) == 1, said
    assert name in said[0]
    assert "Traceback" not in said[0]
    assert API_KEY not in said[0]


@pytest.mark.parametrize(
    "changed", [{"DEBUG": "true"}, {"SECRET_KEY": JWT_SECRET}], ids=["debug", "one secret for both"]
)
def test_a_combination_that_cannot_stand_stops_gunicorn(changed: dict[str, str], tmp_path: Path) -> None:
    port = free_port()
    env = environment(tmp_path, "http://127.0.0.1:9", port, **changed)
    server = start(GUNICORN, env, tmp_path)
    try:
        assert server.process.wait(60) != 0
    except subprocess.TimeoutExpired:
        pytest.fail("It serves.")
    finally:
        server.stop()


def test_a_stop_lets_the_turn_in_flight_finish(database: Path, model: FakeGemini) -> None:
    folder = database / "stopping"
    folder.mkdir()
    with sqlite3.connect(database / "chat.db") as source, sqlite3.connect(folder / "chat.db") as copy:
        source.backup(copy)
    source.close()
    copy.close()
    model.reset()
    server = start(GUNICORN, environment(folder, model.url, free_port(), WEB_CONCURRENCY="1"), folder)
    try:
        wait_until_it_answers(server)
        influencer = server.call("GET", "/api/v1/influencers", user=None).json()["influencers"][0]["id"]
        conversation = server.open(influencer, "alice")
        model.will(Answer(says("In time.").body, delay=1))
        with ThreadPoolExecutor(1) as pool:
            turn = pool.submit(server.send, conversation, "Wait for me", "alice")
            time.sleep(0.4)
            server.process.send_signal(signal.SIGTERM)
            assert turn.result().status == 200
        assert server.process.wait(10) == 0
    finally:
        server.stop()
