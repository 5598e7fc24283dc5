"""Servers that stop, reload and recycle their processes under load: what was accepted is answered to its end."""

import http.client
import json
import os
import resource
import select
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import token
from tests.fake_gemini import Answer, Asked, FakeGemini, says, streams
from tests.servers import (
    CHATS,
    COMMANDS,
    Server,
    children,
    copied,
    environment,
    free_port,
    manage,
    running,
    start,
    wait_until_it_answers,
)
from yral_chat import gunicorn as servers_gunicorn

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

PIECES = [f"piece {number} " for number in range(1, 11)]
STREAMED = "".join(PIECES).strip()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a migrated and seeded SQLite file."""
    folder = tmp_path_factory.mktemp("graceful")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    manage(env, "collectstatic", "--noinput", "--verbosity", "0")
    return folder


def thinks(asked: Asked) -> Answer:
    """A second for a whole answer, and a tenth for each piece of one that streams."""
    if ":streamGenerateContent" in asked.path:
        return streams(*PIECES, pause=0.1)
    return Answer(says("Well thought.").body, delay=1)


@pytest.fixture
def model() -> Iterator[FakeGemini]:
    fake = FakeGemini(chooses=thinks)
    yield fake
    fake.stop()


@contextmanager
def serving(
    kind: str, database: Path, model: FakeGemini, folder: Path, code: Path = configured.BASE_DIR, **changed: str
) -> Iterator[Server]:
    copied(database, folder)
    with running(kind, environment(folder, model.url, free_port(), **changed), folder, code) as server:
        yield server
        assert "Traceback" not in server.log, server.log


def exits(server: Server, seconds: float = 20) -> int:
    return server.process.wait(seconds)


# Load


class Refused(Exception):
    """There was no connection: the server was told to stop."""


class Wrong(Exception):
    pass


@dataclass
class Load:
    """Clients that go on till they are told to stop, or are refused a connection."""

    server: Server
    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def add(self, name: str, clients: int, make: "Callable[[int], Caller]", pause: float = 0) -> None:
        """`make` returns what the client of this number does over and over. Raises OSError, HTTPException or Wrong."""
        for number in range(clients):
            thread = threading.Thread(target=self._go_on, args=(name, *make(number), pause))
            self._threads.append(thread)
            thread.start()

    def _go_on(self, name: str, client: "Client", call: Callable[[], None], pause: float) -> None:
        try:
            self._call(name, call, pause)
        finally:
            client.close()

    def _call(self, name: str, call: Callable[[], None], pause: float) -> None:
        while not self._over.is_set():
            try:
                call()
            except Refused:
                with self._lock:
                    self.refused[name] += 1
                return
            except (OSError, http.client.HTTPException, Wrong) as exc:
                with self._lock:
                    self.failed[f"{name}: {exc!r}"] += 1
            else:
                with self._lock:
                    self.answered[name] += 1
            self._over.wait(pause)

    def end(self) -> None:
        """After the answers that are still to come."""
        self._over.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "somebody waits for an answer that never comes"


class Client:
    """An app with a connection of its own, which it keeps, or makes anew for each call."""

    def __init__(self, server: Server, user: str, *, keeps: bool) -> None:
        self.server, self.user, self.keeps = server, user, keeps
        self.headers = {"Authorization": f"Bearer {token(user)}", "Content-Type": "application/json"}
        self.connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        if self.connection is None or self.connection.sock is None or closed(self.connection.sock):
            self.connection = self._connected()
        try:
            self.connection.request(method, path, json.dumps(body) if body else None, self.headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except BaseException:
            self.connection.close()
            raise
        if not self.keeps:
            self.connection.close()
        if answer.status != 200:
            raise Wrong(f"{answer.status} {content[:200]!r}")
        return content

    def _connected(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=30)
        try:
            connection.connect()
        except ConnectionRefusedError as exc:
            raise Refused from exc
        return connection

    def close(self) -> None:
        if self.connection:
            self.connection.close()


Caller = tuple[Client, Callable[[], None]]


def closed(connection: socket.socket) -> bool:
    """By the server, in the meantime: every pool of connections looks before it uses one again."""
    return bool(select.select([connection], [], [], 0)[0])


def lists(server: Server, *, keeps: bool) -> Callable[[int], Caller]:
    def make(number: int) -> Caller:
        client = Client(server, f"reader-{number}", keeps=keeps)
        return client, lambda: none(client.call("GET", "/api/v1/influencers"))

    return make


def sends(server: Server, chats: list[str], *, keeps: bool) -> Callable[[int], Caller]:
    def make(number: int) -> Caller:
        client, count = Client(server, f"sender-{number}", keeps=keeps), iter(range(1000))

        def call() -> None:
            body = {"message_type": "text", "content": f"Thought {next(count)}"}
            turn = json.loads(client.call("POST", f"{CHATS}/{chats[number]}/messages", body))
            if turn["assistant_message"]["content"] != "Well thought.":
                raise Wrong(str(turn))

        return client, call

    return make


def listens(server: Server, chats: list[str]) -> Callable[[int], Caller]:
    def make(number: int) -> Caller:
        client, count = Client(server, f"listener-{number}", keeps=False), iter(range(1000))

        def call() -> None:
            body = {"message_type": "text", "content": f"Story {next(count)}"}
            said = client.call("POST", f"{CHATS}/{chats[number]}/messages/stream", body).decode()
            if "event: done" not in said:
                raise Wrong(said[-300:])

        return client, call

    return make


def none(_: object) -> None:
    pass


def loaded(server: Server) -> Load:
    """Readers and senders with and without a connection that they keep, and streams. All run when it returns."""
    senders = [server.open(server.influencers[0], f"sender-{n}") for n in range(8)]
    listeners = [server.open(server.influencers[0], f"listener-{n}") for n in range(6)]
    load = Load(server)
    load.add("list, anew", 4, lists(server, keeps=False))
    load.add("list, kept", 4, lists(server, keeps=True), pause=0.002)
    load.add("list, kept, thoughtful", 4, lists(server, keeps=True), pause=0.3)
    load.add("send, anew", 8, sends(server, senders, keeps=False))
    load.add("stream", 6, listens(server, listeners))
    time.sleep(2)
    return load


# Stopping


def test_a_stop_under_load_answers_everything_that_was_accepted(
    database: Path, model: FakeGemini, tmp_path: Path
) -> None:
    with serving("gunicorn", database, model, tmp_path / "folder") as server:
        load = loaded(server)
        server.process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert exits(server) == 0
        took = time.monotonic() - asked
        load.end()

    assert load.failed == Counter()
    assert sum(load.refused.values()) == 26, "everybody went on till there was no server"
    assert took < 8, "a second for turns and streams, two for connections that are kept"


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_stop_lets_turns_and_streams_finish(kind: str, database: Path, model: FakeGemini, tmp_path: Path) -> None:
    """Also a stream whose listener has gone."""
    with serving(kind, database, model, tmp_path / "folder") as server:
        senders = [server.open(server.influencers[0], f"sender-{n}") for n in range(4)]
        listeners = [server.open(server.influencers[0], f"listener-{n}") for n in range(4)]
        load = Load(server)
        load.add("send", 4, sends(server, senders, keeps=False), pause=60)
        load.add("stream", 4, listens(server, listeners), pause=60)
        leaves(server, server.open(server.influencers[0], "gone"), "gone")
        server.process.send_signal(signal.SIGTERM)
        assert exits(server) == 0
        load.end()

        assert load.failed == Counter()
        assert load.answered == {"send": 4, "stream": 4}
        assert stored(server, "gone") == STREAMED


def leaves(server: Server, chat: str, user: str) -> None:
    """An app that is closed at the first piece of its stream."""
    body = {"message_type": "text", "content": "Tell me!"}
    connection, answer = server.request("POST", f"{CHATS}/{chat}/messages/stream", body, user)
    while b"token" not in answer.readline():
        pass
    answer.close()
    connection.close()


def stored(server: Server, user: str) -> str:
    """The last answer."""
    sql = "SELECT content FROM messages m JOIN conversations c ON c.id = m.conversation_id WHERE c.user_id = ?"
    return str(server.rows(f"{sql} ORDER BY sequence DESC LIMIT 1", user)[0][0])


def test_an_idle_connection_and_one_that_never_asked_do_not_put_off_a_stop(
    database: Path, model: FakeGemini, tmp_path: Path
) -> None:
    with serving("gunicorn", database, model, tmp_path / "folder", WEB_CONCURRENCY="1") as server:
        idle = Client(server, "idle", keeps=True)
        idle.call("GET", "/api/v1/influencers")
        with socket.create_connection(("127.0.0.1", server.port)):
            time.sleep(6)  # till it isn't waited for in a thread any more
            server.process.send_signal(signal.SIGTERM)
            assert exits(server, 8) == 0
        idle.close()


def test_when_the_time_is_over_a_turn_ends_as_interrupted(database: Path, model: FakeGemini, tmp_path: Path) -> None:
    model.chooses = lambda asked: streams(*PIECES, pause=30)
    with serving("gunicorn", database, model, tmp_path / "folder", GRACEFUL_TIMEOUT="2") as server:
        leaves(server, server.open(server.influencers[0], "gone"), "gone")
        server.process.send_signal(signal.SIGTERM)
        exits(server, 5)
        again = start("gunicorn", environment(server.log_path.parent, model.url, server.port), server.log_path.parent)
        try:
            deadline = time.monotonic() + 20
            while (states := again.rows("SELECT state, error_code FROM turns")) != [("failed", "interrupted")]:
                assert time.monotonic() < deadline, states
                time.sleep(0.2)
        finally:
            again.stop()


# Reloading


def replaced(server: Server, before: set[int]) -> bool:
    return not before & children(server)


def until(holds: Callable[[], Any], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def version(server: Server) -> str:
    return str(server.call("GET", "/", user=None).json()["version"])


@pytest.fixture
def configured_by_a_file(tmp_path: Path) -> Path:
    path = tmp_path / "service.env"
    path.write_text("APP_VERSION=before\n")
    return path


def test_a_reload_under_load_fails_no_request_and_loads_new_settings(
    database: Path, model: FakeGemini, tmp_path: Path, configured_by_a_file: Path
) -> None:
    with serving("gunicorn", database, model, tmp_path / "folder", ENV_FILE=str(configured_by_a_file)) as server:
        first, said = children(server), version(server)
        load = loaded(server)
        for number in (1, 2):
            before = children(server)
            configured_by_a_file.write_text(f"APP_VERSION=after-{number}\n")
            server.process.send_signal(signal.SIGHUP)
            until(partial(replaced, server, before), "the workers are still those of before", 60)
        load.end()

        assert said == "before"
        assert version(server) == "after-2"
        assert len(children(server)) == 2
        assert not children(server) & first
    assert load.failed == load.refused == Counter()
    assert min(load.answered[name] for name in ("list, anew", "list, kept", "send, anew", "stream")) > 0


def test_a_reload_loads_new_code(database: Path, model: FakeGemini, tmp_path: Path) -> None:
    """It runs a copy of the service, in which a line changes."""
    code = tmp_path / "code"
    for name in ("conversations", "deploy", "fixtures", "media_uploads", "personas", "templates", "yral_chat"):
        shutil.copytree(configured.BASE_DIR / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(configured.BASE_DIR / "CHANGELOG.md", code)
    with serving("gunicorn", database, model, tmp_path / "folder", code=code) as server:
        operations = code / "yral_chat" / "operations.py"
        operations.write_text(operations.read_text().replace('"running"', '"renewed"'))
        server.process.send_signal(signal.SIGHUP)

        until(lambda: server.call("GET", "/", user=None).json()["status"] == "renewed", "the old code answers")


@pytest.mark.parametrize("bad", ["GRACEFUL_TIMEOUT=long", "DEBUG=true"])
def test_a_reload_with_a_bad_setting_changes_nothing(
    bad: str, database: Path, model: FakeGemini, tmp_path: Path, configured_by_a_file: Path
) -> None:
    with serving("gunicorn", database, model, tmp_path / "folder", ENV_FILE=str(configured_by_a_file)) as server:
        until(lambda: len(children(server)) == 2, "they haven't started")
        before = children(server)
        configured_by_a_file.write_text(f"APP_VERSION=after\n{bad}\n")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "Not reloaded" in server.log, server.log)

        assert version(server) == "before"
        assert children(server) == before
        assert bad.partition("=")[0] in server.log


def test_signals_that_come_during_a_reload_are_obeyed_after_it(
    database: Path, model: FakeGemini, tmp_path: Path
) -> None:
    with serving("gunicorn", database, model, tmp_path / "folder") as server:
        server.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGHUP)
        server.process.send_signal(signal.SIGTERM)

        assert exits(server, 60) == 0


def test_a_stop_after_a_reload_waits_for_the_streams_of_before(
    database: Path, model: FakeGemini, tmp_path: Path
) -> None:
    model.chooses = lambda asked: streams(*PIECES, pause=1)
    with serving("gunicorn", database, model, tmp_path / "folder") as server:
        before = children(server)
        leaves(server, server.open(server.influencers[0], "gone"), "gone")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(children(server)) > 2, "there are no new workers")
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        exits(server, 20)

        assert stored(server, "gone") == STREAMED
        assert not any(Path(f"/proc/{pid}").exists() for pid in before)


@pytest.fixture
def reloaded_with_a_hung_worker(database: Path, model: FakeGemini, tmp_path: Path) -> Iterator[tuple[Server, int]]:
    """And the number of the worker, which takes no signal but one."""
    with serving("gunicorn", database, model, tmp_path / "folder", WEB_CONCURRENCY="1", GRACEFUL_TIMEOUT="2") as server:
        (hung,) = children(server)
        os.kill(hung, signal.SIGSTOP)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: len(children(server)) > 1, "there are no new workers", 40)
        yield server, hung


def test_a_worker_that_hangs_does_not_outlive_a_stop_after_a_reload(
    reloaded_with_a_hung_worker: tuple[Server, int],
) -> None:
    server, hung = reloaded_with_a_hung_worker
    server.process.send_signal(signal.SIGTERM)

    assert exits(server, 25) == 0
    until(lambda: not Path(f"/proc/{hung}").exists(), "it is still there", 5)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", server.port)):
        pass


def test_a_worker_that_hangs_does_not_outlive_a_reload_for_ever(
    reloaded_with_a_hung_worker: tuple[Server, int],
) -> None:
    server, hung = reloaded_with_a_hung_worker

    until(lambda: hung not in children(server), "it is still there", 45)
    assert server.call("GET", "/health", user=None).status == 200


# Recycling


def test_processes_are_replaced_under_load_and_no_request_fails(
    database: Path, model: FakeGemini, tmp_path: Path
) -> None:
    with serving("gunicorn", database, model, tmp_path / "folder", WEB_MAX_REQUESTS="150") as server:
        seen = children(server)
        load = loaded(server)
        deadline = time.monotonic() + 8
        while time.monotonic() < deadline:
            seen |= children(server)
            time.sleep(0.1)
        load.end()
        until(lambda: len(children(server)) == 2, "there should be two again")

    assert load.failed == load.refused == Counter()
    assert len(seen) >= 5, "nobody was replaced"


def test_a_stream_does_not_leave_the_service_without_a_process(
    database: Path, model: FakeGemini, tmp_path: Path
) -> None:
    """The only process has served enough and has a stream to finish: its replacement answers meanwhile."""
    model.chooses = lambda asked: streams(*PIECES, pause=1)
    folder = tmp_path / "folder"
    with serving("gunicorn", database, model, folder, WEB_CONCURRENCY="1", WEB_MAX_REQUESTS="20") as server:
        (first,) = children(server)
        leaves(server, server.open(server.influencers[0], "gone"), "gone")
        for _ in range(30):
            version(server)
        until(lambda: len(children(server)) == 2, "there is no replacement")
        time.sleep(3)
        for _ in range(10):
            asked = time.monotonic()
            version(server)
            assert time.monotonic() - asked < 2
        assert first in children(server), "it still has its stream"
        until(lambda: first not in children(server), "it never ends", 40)

        assert stored(server, "gone") == STREAMED
        assert len(children(server)) == 1


# Processes that were forked from one


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux")
def test_processes_share_no_connection(database: Path, model: FakeGemini, tmp_path: Path) -> None:
    """What the first process prepares, it prepares without a connection or a thread."""
    with serving("gunicorn", database, model, tmp_path / "folder") as server:
        load = loaded(server)
        master, workers = server.process.pid, sorted(children(server))
        first, second = sockets(workers[0]), sockets(workers[1])
        shared = (first & second) | (first & sockets(master)) | (second & sockets(master))
        threads = len(list(Path(f"/proc/{master}/task").iterdir()))
        files = open_files(master)
        load.end()

    assert len(first) > 3, "it had no connections"
    assert len(second) > 3, "it had no connections"
    assert len(shared) == 1, "the one on which they listen"
    assert threads == 1
    assert not [name for name in files if "chat.db" in name]


def open_files(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(path.readlink()))
    return found


def sockets(pid: int) -> set[str]:
    return {name for name in open_files(pid) if name.startswith("socket:")}


# Slow clients


@pytest.mark.parametrize("kind", COMMANDS)
def test_slow_clients_keep_nobody_waiting(kind: str, database: Path, model: FakeGemini, tmp_path: Path) -> None:
    """Six of each kind, of 32 threads of one process."""
    with serving(kind, database, model, tmp_path / "folder", WEB_CONCURRENCY="1") as server:
        chat = server.open(server.influencers[0], "slow")
        head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token('slow')}\r\n"
        post = f"POST {CHATS}/{chat}/messages HTTP/1.1\r\n{head}Content-Type: application/json\r\n"
        with ExitStack() as stack:
            over = threading.Event()
            stack.callback(over.set)
            for begins, trickles in (
                ("GET /health HTTP/1.1\r\nX-Slow: ", b"x"),  # a head without an end
                (f"{post}Content-Length: 1000\r\n\r\n", b" "),  # a body without an end
                (f"{post}Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
                (f"GET /openapi.json HTTP/1.1\r\n{head}Connection: close\r\n\r\n", b""),  # it never reads the answer
            ):
                for _ in range(6):
                    trickle(stack, server, begins.encode(), trickles, over)
            time.sleep(1)
            slowest = 0.0
            for _ in range(30):
                asked = time.monotonic()
                assert server.call("GET", "/api/v1/influencers", user=None).status == 200
                slowest = max(slowest, time.monotonic() - asked)
                time.sleep(0.05)

    assert slowest < 1


def trickle(stack: ExitStack, server: Server, begins: bytes, trickles: bytes, over: threading.Event) -> None:
    slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
    slow.sendall(begins)

    def go_on() -> None:
        while trickles and not over.wait(0.2):
            with suppress(OSError):
                slow.sendall(trickles)

    threading.Thread(target=go_on, daemon=True).start()


HASTY = """
import runpy, sys, yral_chat.bodies
yral_chat.bodies.PATIENCE = 1
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("kind", COMMANDS)
def test_who_stalls_in_the_middle_of_a_body_is_cut_off(
    kind: str, database: Path, model: FakeGemini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second instead of thirty."""
    monkeypatch.setitem(COMMANDS, kind, ("-c", HASTY, *COMMANDS[kind]))
    head = f"Host: 127.0.0.1\r\nAuthorization: Bearer {token('slow')}\r\nContent-Type: application/json\r\n"
    with (
        serving(kind, database, model, tmp_path / "folder", WEB_CONCURRENCY="1") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow,
    ):
        slow.sendall(f"POST {CHATS} HTTP/1.1\r\n{head}Content-Length: 1000\r\n\r\n{{".encode())
        answer = b"".join(iter(lambda: slow.recv(65536), b""))
        said = server.log

    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert '"level":"error"' not in said


def test_who_reads_slowly_gets_all_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes: only who reads nothing at all for a while is cut off."""
    monkeypatch.setattr(servers_gunicorn, "PATIENCE", 0.3)
    ours, theirs = socket.socketpair()
    received = bytearray()

    def read() -> None:
        while len(received) < 200_000 and (piece := theirs.recv(8192)):
            received.extend(piece)
            time.sleep(0.03)

    reader = threading.Thread(target=read)
    with theirs, servers_gunicorn.PatientSocket(fileno=ours.detach()) as patient:
        patient.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        patient.setblocking(True)
        reader.start()
        patient.sendall(bytes(200_000))
        reader.join()
        with pytest.raises(ConnectionResetError):
            patient.sendall(bytes(1_000_000))

    assert len(received) >= 200_000


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_more_callers_than_files_may_be_open_end_no_process(database: Path, model: FakeGemini, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    copied(database, folder)
    env = environment(folder, model.url, free_port(), WEB_CONCURRENCY="1", WEB_THREADS="8")
    server = start("gunicorn", env, folder)
    try:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        wait_until_it_answers(server)
        worker = children(server)
        with ExitStack() as stack:
            for _ in range(150):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            time.sleep(1)
        assert server.call("GET", "/api/v1/influencers", user=None).status == 200
        assert children(server) == worker
        assert server.log.count("Raise ulimit -n") == 1
        assert "Traceback" not in server.log
    finally:
        server.stop()
