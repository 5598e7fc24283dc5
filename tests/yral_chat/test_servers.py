"""The real servers, as processes of their own: gunicorn with the shipped configuration, and an ASGI server."""

import http.client
import json
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import token
from tests.fake_gemini import REPLY, Answer, FakeGemini, says
from tests.servers import (
    API_KEY,
    CHATS,
    COMMANDS,
    GUNICORN,
    JWT_SECRET,
    SECRET,
    Server,
    copied,
    environment,
    free_port,
    manage,
    python,
    running,
    start,
    wait_until_it_answers,
)

pytestmark = [pytest.mark.own_database, pytest.mark.drill]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated and seeded SQLite file; the static files are collected too."""
    folder = tmp_path_factory.mktemp("servers")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    manage(env, "collectstatic", "--noinput", "--verbosity", "0")
    return folder


@pytest.fixture(scope="module")
def model() -> Iterator[FakeGemini]:
    fake = FakeGemini()
    yield fake
    fake.stop()


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, database: Path, model: FakeGemini) -> Iterator[Server]:
    folder = database / request.param
    copied(database, folder)
    with running(request.param, environment(folder, model.url, free_port()), folder) as started:
        yield started


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
    assert "x-ratelimit-remaining-minute" in got.headers
    assert any(
        line["status"] == 413 and line["user"] == "walker" and line["correlation_id"] == got.headers["x-correlation-id"]
        for line in map(json.loads, re.findall(r'{"timestamp".*"event":"request".*}', server.log))
    )


def test_a_body_that_is_too_large_is_nobody_s_without_a_token(server: Server) -> None:
    got = server.call("POST", CHATS, {"extra": "x" * 1_200_000}, user=None)

    assert got.status == 401


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


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}my-secret is this\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Goog-Api-Key my-secret\r\n\r\n", 400),
        (b"my-secret\r\n\r\n", 400),
        (b"GET /?" + b"my-secret" * 1000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"my-secret" * 2000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: my-secret\r\n\r\n", 501),
    ],
    ids=["a body that goes on", "header", "request line", "long request line", "long header", "coding"],
)
def test_what_can_t_be_read_is_quoted_nowhere(sent: bytes, status: int, server: Server) -> None:
    """And its line isn't that of who was served before, by each of the threads."""
    for _ in range(40):
        server.call("GET", "/", user=None, **{"X-Correlation-ID": "somebody-else"})
    before = len(server.log)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as caller:
        caller.sendall(sent)
        caller.shutdown(socket.SHUT_WR)
        answered = b"".join(iter(lambda: caller.recv(65536), b""))

    *_, last = re.findall(rb"HTTP/1.1 (\d+)", answered) or [b"0"]
    said = server.log[before:]
    if "gunicorn" in server.log:
        assert int(last) == status, answered
        assert json.loads(answered.rpartition(b"\r\n\r\n")[2])["error"] == "bad_request"
        assert "A request that can't be read was refused" in said
    assert "my-secret" not in said
    assert b"my-secret" not in answered
    assert "somebody-else" not in said


def test_a_websocket_is_no_crash_and_its_address_is_not_logged(server: Server) -> None:
    before = len(server.log)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    got = server.call("GET", "/media/my-secret.png?page=my-secret", user=None, **upgrade, **key)

    assert got.status == (404 if "gunicorn" in server.log else 403)
    assert '"level":"error"' not in server.log[before:]
    assert "my-secret" not in server.log[before:]


def test_a_body_that_nobody_reads_cuts_no_file_short(server: Server) -> None:
    path = "/static/admin/css/base.css"
    whole, before = server.call("GET", path, user=None).content, len(server.log)
    most = configured.DATA_UPLOAD_MAX_MEMORY_SIZE

    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as connection:
        connection.putrequest("GET", path)
        connection.putheader("Content-Length", str(5 * most))
        connection.endheaders(b"x" * (2 * most + 32 * 1024))  # what it reads, and what fits into its buffers
        assert connection.getresponse().read() == whole
    assert '"level":"error"' not in server.log[before:]


@pytest.mark.parametrize(
    ("path", "begin"),
    [
        (CHATS, b'{"influencer_id": '),
        ("/api/v1/media/upload", b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'),
    ],
)
def test_a_connection_that_breaks_in_the_middle_of_a_body_is_no_crash(path: str, begin: bytes, server: Server) -> None:
    kind = "multipart/form-data; boundary=x" if "upload" in path else "application/json"
    head = (
        f"Host: 127.0.0.1\r\nAuthorization: Bearer {token('broken')}\r\nContent-Type: {kind}\r\nContent-Length: 90000"
    )
    before = len(server.log)
    with socket.create_connection(("127.0.0.1", server.port)) as caller:
        caller.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n\r\n".encode() + begin)
        time.sleep(0.3)
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
    time.sleep(0.3)

    assert '"level":"error"' not in server.log[before:]
    assert '"status":500' not in server.log[before:]


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

    assert "csrftoken_production=" in cookie
    assert "Secure" in cookie


def test_staff_log_in_and_see_the_admin(server: Server) -> None:
    folder = server.log_path.parent
    env = environment(folder, "http://127.0.0.1:9", server.port, DJANGO_SUPERUSER_PASSWORD="a-password-for-tests")
    manage(env, "createsuperuser", "--noinput", "--username", "root", "--email", "root@example.com")
    cookie = server.call("GET", "/admin/login/", user=None).headers["set-cookie"].split(";")[0]
    form = f"username=root&password=a-password-for-tests&csrfmiddlewaretoken={cookie.partition('=')[2]}"
    as_form: Any = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookie}

    entered = server.call("POST", "/admin/login/?next=/admin/", form.encode(), None, **as_form)
    session = re.search(r"sessionid_production=[^;]+", entered.headers.get("set-cookie", ""))
    connection, page = server.request(
        "GET", "/admin/personas/influencer/", None, None, Cookie=session[0] if session else ""
    )
    content = page.read()
    connection.close()

    assert entered.status == 302, entered.content
    assert page.status == 200
    assert b"sessionid" not in content
    assert b"/admin/personas/influencer/" in content


def test_a_whole_address_in_the_request_line_is_understood(server: Server) -> None:
    """RFC 9112, 3.2.2: every server must accept it."""
    for path in ("/health", "/api/v1/influencers?limit=1", "/"):
        assert server.call("GET", f"http://127.0.0.1:{server.port}{path}", user=None).status == 200, path


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


def test_the_write_lock_of_another_program_is_waited_for_by_writers_only(server: Server, model: FakeGemini) -> None:
    """Such as a copy that an operator makes."""
    model.reset()
    chats = {user: server.open(server.influencers[0], user) for user in (f"patient-{n}" for n in range(8))}
    with closing(sqlite3.connect(server.database_url.removeprefix("sqlite:///"))) as other:
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(8) as pool:
            turns = [pool.submit(server.send, chat, "I can wait.", user) for user, chat in chats.items()]
            for user in chats:
                assert server.call("GET", CHATS, user=user).status == 200
            time.sleep(0.5)
            assert not any(turn.done() for turn in turns)
            other.execute("ROLLBACK")
            assert [turn.result().status for turn in turns] == [200] * 8
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
    # A foreign host is logged with its traceback.
    assert log.count("Traceback") == log.count("ERROR django.security.DisallowedHost"), log[-6000:]
    for trouble in ("database is locked", "Warning:", "was never awaited"):
        assert trouble not in log, log[max(0, log.find(trouble) - 1500) :][:4000]


# Starting and stopping


def run_gunicorn(folder: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    return python(environment(folder, "http://127.0.0.1:9", free_port(), **changed), *GUNICORN, timeout=30)


@pytest.mark.parametrize("server", ["gunicorn", "uvicorn"])
def test_a_database_that_is_not_migrated_stops_the_start(server: str, tmp_path: Path) -> None:
    """An empty file in the place of the expected one must not look like a service that is well."""
    env = environment(
        tmp_path, "http://127.0.0.1:9", free_port(), DATABASE_URL=f"sqlite:///{tmp_path}/empty.db", WEB_CONCURRENCY="1"
    )
    command = GUNICORN if server == "gunicorn" else ["-m", "uvicorn", "yral_chat.asgi:application"]
    run = python(env, *command, timeout=60)

    assert run.returncode != 0
    assert "manage.py migrate" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "eighty"), ("SECRET_KEY", "short"), ("GEMINI_API_KEY", ""), ("WEB_THREADS", "0")],
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
    server = start("gunicorn", env, tmp_path)
    try:
        assert server.process.wait(60) != 0
    except subprocess.TimeoutExpired:
        pytest.fail("It serves.")
    finally:
        server.stop()


def test_two_variables_are_enough_to_serve(database: Path, model: FakeGemini) -> None:
    """The rest only says where: this test's files and port."""
    folder = database / "bare"
    copied(database, folder)
    given = environment(folder, model.url, free_port())
    env: dict[str, str] = {
        name: given[name] for name in ("PATH", "HOME", "ENV_FILE", "ENVIRONMENT", "PORT") if name in given
    }
    env |= {"JWT_SECRET_KEY": JWT_SECRET, "GEMINI_API_KEY": API_KEY, "DATABASE_PATH": str(folder / "chat.db")}
    with running("gunicorn", {**env, "DATABASE_URL": ""}, folder) as server:
        assert server.call("GET", "/health", user=None).status == 200
        assert server.open(server.influencers[0], "alice")
        assert server.call("GET", "/", user=None, Host="evil.example").status == 400
        assert (folder / "secret-key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_copy_of_the_example_can_be_the_environment(kind: str, database: Path, model: FakeGemini) -> None:
    """As systemd's EnvironmentFile and docker's --env-file read it: an empty line is a variable that is blank."""
    folder = database / f"example-{kind}"
    copied(database, folder)
    lines = (configured.BASE_DIR / ".env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    given = environment(folder, model.url, free_port())
    del given["WEB_CONCURRENCY"]
    with running(kind, {**example, **given}, folder) as server:
        assert server.call("GET", "/health", user=None).status == 200


def make_serve(env: dict[str, str], folder: Path) -> Server:
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["make", "serve", f"PYTHON={sys.executable}"],
            env=env,
            cwd=configured.BASE_DIR,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(process, int(env["PORT"]), log_path, env["DATABASE_URL"])


def test_make_serve_takes_a_blank_number_of_processes_for_none(database: Path, model: FakeGemini) -> None:
    folder = database / "blank"
    copied(database, folder)
    server = make_serve(environment(folder, model.url, free_port(), WEB_CONCURRENCY=""), folder)
    try:
        wait_until_it_answers(server)
    finally:
        server.kill()


def test_make_serve_says_which_number_is_none(database: Path) -> None:
    folder = database / "auto"
    folder.mkdir()
    server = make_serve(environment(folder, "http://127.0.0.1:9", free_port(), WEB_CONCURRENCY="auto"), folder)

    assert server.process.wait(60) != 0
    assert "WEB_CONCURRENCY must be a number." in server.log
    assert "Traceback" not in server.log


def test_a_stop_lets_the_turn_in_flight_finish(database: Path, model: FakeGemini) -> None:
    folder = database / "stopping"
    copied(database, folder)
    model.reset()
    server = start("gunicorn", environment(folder, model.url, free_port(), WEB_CONCURRENCY="1"), folder)
    try:
        wait_until_it_answers(server)
        conversation = server.open(server.influencers[0], "alice")
        model.will(Answer(says("In time.").body, delay=1))
        with ThreadPoolExecutor(1) as pool:
            turn = pool.submit(server.send, conversation, "Wait for me", "alice")
            time.sleep(0.4)
            server.process.send_signal(signal.SIGTERM)
            assert turn.result().status == 200
        assert server.process.wait(10) == 0
    finally:
        server.stop()
