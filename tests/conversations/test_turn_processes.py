"""Turns under the real servers: when events arrive, phones that hang up, kill -9, and two servers on one database."""

import json
import random
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, partial
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import pytest

from conversations.turns import LEASE
from tests.conftest import token, wait_until
from tests.conversations.test_races import slowly
from tests.fake_gemini import REPLY, Answer, Asked, FakeGemini, blocks, fails, says, streams
from tests.scrubber import scrubber
from tests.servers import (
    CHATS,
    COMMANDS,
    POSTGRESQL,
    Got,
    Server,
    copied,
    environment,
    free_port,
    manage,
    on_postgresql,
    running_redis,
    start,
    wait_until_it_answers,
)

pytestmark = pytest.mark.drill

AS_THE_SUITE = "postgresql" if POSTGRESQL else "sqlite"
SOON = 15.0  # seconds after a restart
numbers = count(1)


# The cast: alice's phone, her conversations, and a model that writes when the test lets it


class Gate:
    """Before each chunk the model waits for the test to let it write that many."""

    def __init__(self) -> None:
        self.allowed, self.overrun = 0, False
        self._changed = threading.Condition()

    def let(self, chunks: int) -> None:
        with self._changed:
            self.allowed = chunks
            self._changed.notify_all()

    def __call__(self, number: int = 0) -> None:
        with self._changed:
            self.overrun |= not self._changed.wait_for(lambda: self.allowed > number, 30)

    def after_the_first(self, number: int) -> None:
        if number:
            self(number)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.let(1000)
    assert not gate.overrun, "somebody waited for what came too late"


@dataclass(frozen=True)
class Event:
    id: str
    name: str
    data: dict[str, Any]
    at: float = field(compare=False)  # when it arrived, of time.monotonic()

    @property
    def number(self) -> int:
        return int(self.id.rpartition("/")[2])


class Phone:
    """It reads a stream of events as they come, and hangs up at the end of `with`.

    When it is made, the head and the opening comment have arrived.
    """

    def __init__(self, server: Server, method: str, path: str, body: Any, user: str, **headers: str) -> None:
        self.connection, self.response = server.request(method, path, body, user, **headers)
        self.headers = self.response.headers
        self.question = self.headers["X-Message-ID"] or ""
        self._blocks = self._read()
        self.events = self._events()
        if self.response.status != 200 or not next(self._blocks)[0].startswith(":"):
            self.hang_up()
            pytest.fail(f"{path} is no stream: {self.response.status}")

    def _read(self) -> Iterator[list[str]]:
        block: list[str] = []
        while line := self.response.readline().decode():
            if line == "\n":
                scrubber.look_at_answer("\n".join(block).encode(), "a server's stream")
                yield block
                block = []
            else:
                block.append(line.removesuffix("\n"))

    def _events(self) -> Iterator[Event]:
        for block in self._blocks:
            if not block[0].startswith(":"):
                fields = dict(line.split(": ", 1) for line in block)
                yield Event(fields["id"], fields["event"], json.loads(fields["data"]), time.monotonic())

    def hang_up(self) -> None:
        self.response.close()
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()


@dataclass
class Chat:
    """A conversation, at any server of its database."""

    id: str
    user: str

    @property
    def path(self) -> str:
        return f"{CHATS}/{self.id}/messages"

    def send(self, server: Server, content: str, **headers: str) -> Got:
        return server.send(self.id, content, self.user, **headers)

    def stream(self, server: Server, content: str, **headers: str) -> Phone:
        body = {"message_type": "text", "content": content}
        return Phone(server, "POST", f"{self.path}/stream", body, self.user, **headers)

    def follow(self, server: Server, question: str, last: str = "") -> Phone:
        headers = {"Last-Event-ID": last} if last else {}
        return Phone(server, "GET", f"{self.path}/{question}/stream", None, self.user, **headers)

    def stop(self, server: Server, question: str) -> Got:
        return server.call("POST", f"{self.path}/{question}/stop", None, self.user)

    def regenerate(self, server: Server, question: str) -> Got:
        return server.call("POST", f"{self.path}/{question}/regenerate", None, self.user)

    def said(self, server: Server) -> list[dict[str, Any]]:
        """In order, without the greeting."""
        got = server.call("GET", f"{self.path}?order=asc", None, self.user).json()
        assert got["total"] == len(got["messages"])
        return [one for one in got["messages"] if one["role"] == "user" or one != got["messages"][0]]


def new_chat(server: Server, user: str = "") -> Chat:
    user = user or f"alice-{next(numbers)}"
    return Chat(server.open(server.influencers[0], user), user)


def text_of(events: list[Event]) -> str:
    return "".join(event.data["text"] for event in events if event.name == "token")


def contents(said: list[dict[str, Any]]) -> list[str]:
    return [one["content"] for one in said]


# Servers and their databases


@pytest.fixture(scope="module")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Makes a database with the personas in it; its kind is sqlite or postgresql. All are gone at the end."""
    folder, made = tmp_path_factory.mktemp("databases"), ExitStack()

    @cache
    def filled(kind: str) -> str:
        url = f"sqlite:///{folder}/chat.db" if kind == "sqlite" else made.enter_context(on_postgresql())
        env = environment(folder, "http://127.0.0.1:9", 9, DATABASE_URL=url)
        manage(env, "migrate", "--verbosity", "0")
        manage(env, "seed_personas")
        return url

    def make(kind: str) -> str:
        source = filled(kind)
        if kind == "postgresql":
            return made.enter_context(on_postgresql(f"TEMPLATE {urlsplit(source).path[1:]}"))
        copy = folder / f"copy-{next(numbers)}"
        copied(folder, copy)
        return f"sqlite:///{copy}/chat.db"

    with made:
        yield make


@contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """Till the end, and none of them complained meanwhile."""
    try:
        for server in servers:
            wait_until_it_answers(server)
        yield
        for server in servers:
            assert not server.trouble
    finally:
        for server in servers:
            server.stop()


@pytest.fixture(scope="module", params=COMMANDS)
def server(
    request: pytest.FixtureRequest,
    new_database: Callable[[str], str],
    gemini_server: FakeGemini,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    env = environment(folder, gemini_server.url, free_port(), DATABASE_URL=new_database(AS_THE_SUITE))
    server = start(request.param, env, folder)
    with serving(server):
        yield server


# When events arrive


def test_the_first_token_arrives_while_the_model_still_writes(server: Server, gemini: FakeGemini, gate: Gate) -> None:
    gemini.will(streams("Start small. ", "Keep it regular. ", "Tell me.", gate=gate, pause=0.5))

    chat, asked = new_chat(server), time.monotonic()

    with chat.stream(server, "Hello!") as phone:
        assert gate.allowed == 0, "head and opening comment are there before the model says anything"
        assert time.monotonic() - asked < 3, "and long before the first comment that keeps it alive"
        gate.let(1)
        first = next(phone.events)
        assert gate.allowed == 1, "the first token is there before the second is written"
        gate.let(3)
        others = list(phone.events)

    assert first.name == "token"
    assert others[-1].name == "done"
    assert others[-1].at - first.at > 0.9
    assert others[0].at - first.at < others[-1].at - first.at - 0.4, "each comes when it is written"
    assert text_of([first, *others]) == "Start small. Keep it regular. Tell me."


def test_nothing_on_the_way_is_told_to_hold_it_back(server: Server) -> None:
    with new_chat(server).stream(server, "Hello!", **{"Accept-Encoding": "gzip, br, zstd"}) as phone:
        assert list(phone.events)[-1].name == "done"

    assert phone.headers["Content-Type"] == "text/event-stream"
    assert phone.headers["X-Accel-Buffering"] == "no"
    assert phone.headers["Cache-Control"] == "no-cache, no-transform"
    assert "Content-Encoding" not in phone.headers
    assert "Content-Length" not in phone.headers


# Phones that hang up


@pytest.mark.parametrize("seen", range(7))
def test_a_phone_that_hangs_up_gets_exactly_the_rest(seen: int, server: Server, gemini: FakeGemini, gate: Gate) -> None:
    """Of five tokens and `done`, after none, one … all of them; joining the answer, and replaying it."""
    gemini.will(streams("One ", "two ", "three ", "four.", gate=gate))
    chat = new_chat(server)

    with chat.stream(server, "Count!") as phone:
        gate.let(min(seen, 4))
        got = list(islice(phone.events, seen))
    last = got[-1].id if got else ""
    with chat.follow(server, phone.question, last) as again:
        gate.let(4)
        joined = list(again.events)
    with chat.follow(server, phone.question, last) as again:
        replayed = list(again.events)

    assert len(got) == seen
    whole = got + joined
    assert [event.id for event in whole] == [f"{phone.question}/{number}" for number in range(1, 7)]
    assert [event.name for event in whole] == ["token"] * 5 + ["done"]
    assert text_of(whole) == "One two three four."
    assert replayed == joined
    assert chat.said(server) == [whole[-1].data["user_message"], whole[-1].data["assistant_message"]]
    assert len(gemini.requests) == 1


def test_phones_that_hang_up_at_any_moment_leave_no_connection_to_the_database_behind(
    server: Server, gemini: FakeGemini
) -> None:
    gemini.chooses = lambda asked: streams(*"abcdef", pause=0.02) if "stream" in asked.path else says("abcdef")
    chance = random.Random(7)  # noqa: S311

    def hang_up_often(chat: Chat) -> None:
        for number in range(25):
            how = chance.choice(["messages", "messages/stream", "messages/stream"])
            body = {"message_type": "text", "content": f"Question {number}"}
            with socket.create_connection(("127.0.0.1", server.port)) as phone, suppress(TimeoutError):
                phone.sendall(raw_post(f"{CHATS}/{chat.id}/{how}", body, chat.user))
                phone.settimeout(chance.choice([0.001, 0.01, 0.05, 0.1, 0.3]))
                while phone.recv(4096):
                    pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hang_up_often, [new_chat(server) for _ in range(8)]))

    wait_until(lambda: is_quiet(server), "a turn goes on", 2 * SOON)
    wait_until(lambda: counted(server, "yral_chat_database_pool_connections", 'state="in_use"') == 0, "kept", SOON)
    assert new_chat(server).send(server, "Is anybody there?").status == 200


def is_quiet(server: Server) -> bool:
    """No turn runs or waits to run for a while: also those that nobody listens to any more have had theirs."""
    for _ in range(10):
        time.sleep(0.1)
        if counted(server, "yral_chat_turns_running") or counted(server, "yral_chat_turns_waiting"):
            return False
    return True


def raw_post(path: str, body: dict[str, Any], user: str) -> bytes:
    content = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token(user)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n{content}"
    ).encode()


def counted(server: Server, name: str, labels: str = "") -> float:
    """The sum of a metric's values; 0 where there is none."""
    lines = server.call("GET", "/metrics", user=None).content.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and labels in line)


def test_an_answer_that_nobody_listens_to_is_stored_whole(server: Server, gemini: FakeGemini, gate: Gate) -> None:
    """Also when the server has long noticed that the phone is gone."""
    gemini.will(streams("One ", "two ", "three ", "four ", "five.", gate=gate))
    chat = new_chat(server)

    with chat.stream(server, "Count!") as phone:
        gate.let(1)
        next(phone.events)
    for chunks in range(2, 6):
        time.sleep(0.1)
        gate.let(chunks)

    wait_until(lambda: len(chat.said(server)) == 2, "the answer isn't stored")
    assert contents(chat.said(server)) == ["Count!", "One two three four five."]


def test_a_phone_that_hangs_up_before_the_first_byte_can_send_again(
    server: Server, gemini: FakeGemini, gate: Gate
) -> None:
    """Whether or not the server took what came before for requests."""
    gemini.default = Answer(says(REPLY).body, before=gate)
    chat = new_chat(server)
    body = json.dumps({"message_type": "text", "content": "Hello?"}).encode()
    head = (
        f"POST {chat.path}/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token(chat.user)}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", server.port)) as phone:
            phone.sendall(head.encode() + body)

    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(chat.send, server, "Hello?")
        time.sleep(0.3)
        gate.let(1)

    assert again.result().status == 200, again.result().content
    assert contents(chat.said(server)) == ["Hello?", REPLY]
    assert len(gemini.requests) == 1


# All that can be done with a turn


def test_it_serves_every_way_through_a_turn(server: Server, gemini: FakeGemini, gate: Gate) -> None:
    chat = new_chat(server)

    gemini.will(says("Plainly."))
    sent = chat.send(server, "First")
    assert (sent.status, sent.json()["assistant_message"]["content"]) == (200, "Plainly.")

    gemini.will(streams("In ", "pieces."))
    with chat.stream(server, "Second") as phone:
        assert text_of(list(phone.events)) == "In pieces."

    gemini.will(streams("Cut ", "short.", gate=gate.after_the_first))
    with chat.stream(server, "Third") as phone:
        assert next(phone.events).data == {"text": "Cut"}
        stopped = chat.stop(server, phone.question)
        done = list(phone.events)[-1].data
    assert (stopped.status, stopped.json()["stopped"], done["stopped"]) == (200, True, True)
    assert stopped.json()["assistant_message"] == done["assistant_message"]

    gemini.will(says("Whole."))
    again = chat.regenerate(server, phone.question)
    assert (again.status, again.json()["assistant_message"]["content"]) == (200, "Whole.")

    assert contents(chat.said(server)) == ["First", "Plainly.", "Second", "In pieces.", "Third", "Whole."]
    assert [one["stopped"] for one in chat.said(server)] == [False] * 6
    alternatives = server.rows(
        "SELECT content, stopped FROM alternative_answers WHERE question_id = ?", uuid.UUID(phone.question)
    )
    assert [(text, bool(cut)) for text, cut in alternatives] == [("Cut", True)]


# kill -9


def states(server: Server) -> dict[str, str]:
    """Of the only turn of each user."""
    sql = "SELECT c.user_id, t.state FROM conversations c JOIN turns t ON t.conversation_id = c.id"
    return dict(server.rows(sql))


def questions(server: Server) -> list[tuple[str, str]]:
    """(user, id) of each."""
    sql = "SELECT c.user_id, m.id FROM conversations c JOIN messages m ON m.conversation_id = c.id WHERE role = 'user'"
    return sorted((user, str(uuid.UUID(str(key)))) for user, key in server.rows(sql))


def record(server: Server, user: str) -> list[Any]:
    """Everything about a user's messages and turns that a restart could change."""
    of_user = "WHERE conversation_id IN (SELECT id FROM conversations WHERE user_id = ?)"
    return [
        server.rows("SELECT message_count, updated_at, running_until FROM conversations WHERE user_id = ?", user),
        server.rows(f"SELECT id, content, blocked, stopped FROM messages {of_user} ORDER BY sequence", user),
        server.rows(f"SELECT state, error_code, finished_at, attempts, total_tokens FROM turns {of_user}", user),
    ]


def assert_one_of_each(server: Server, chat: Chat) -> None:
    """Greeting, question, answer; counted; nobody holds the conversation."""
    sql = "SELECT sequence, role, id, in_reply_to_id FROM messages WHERE conversation_id = ? ORDER BY sequence"
    rows = server.rows(sql, uuid.UUID(chat.id))
    assert [row[:2] for row in rows] == [(1, "assistant"), (2, "user"), (3, "assistant")]
    assert rows[2][3] == rows[1][2]
    sql = "SELECT message_count, running_question, running_token, running_until FROM conversations WHERE id = ?"
    assert server.rows(sql, uuid.UUID(chat.id)) == [(3, None, None, None)]


class Killed:
    """A server with a turn in each state, then killed. What is under way is there twice: who sends again at once, and
    who does so later."""

    UNDER_WAY = ("pending", "opening", "streaming", "regenerating")

    def __init__(self, server: Server, gemini: FakeGemini, gate: Gate) -> None:
        self.server, self.gemini, self.gate = server, gemini, gate
        self.chats: dict[str, Chat] = {}
        self.answers: dict[str, Answer] = {}
        self.seen: dict[str, Event] = {}
        gemini.chooses = self._chosen

    def _chosen(self, asked: Asked) -> Answer:
        return self.answers[asked.question]

    def _chat(self, name: str, answer: Answer) -> Chat:
        """Whose user and question are called as its state is."""
        self.answers[name] = answer
        self.chats[name] = new_chat(self.server, name)
        return self.chats[name]

    def end_some(self) -> dict[str, str]:
        """One in each state that lasts."""
        server, shut, first = self.server, self.gate, self.gate.after_the_first
        assert self._chat("done", says("Done.")).send(server, "done").status == 200
        assert self._chat("failed", fails(400)).send(server, "failed").status == 503
        assert self._chat("blocked", blocks()).send(server, "blocked").json()["blocked"] is True
        with self._chat("stopped", streams("Cut ", "short", gate=first)).stream(server, "stopped") as phone:
            next(phone.events)
            self.chats["stopped"].stop(server, phone.question)
        with self._chat("stopped early", streams("Never", gate=shut)).stream(server, "stopped early") as phone:
            self.chats["stopped early"].stop(server, phone.question)
        lasting = ("done", "failed", "blocked", "stopped")
        return {state: state for state in lasting} | {"stopped early": "stopped"}

    def begin_others(self, when: str, pool: ThreadPoolExecutor, phones: ExitStack) -> dict[str, str]:
        server, held = self.server, Answer(says("Too late.").body, before=self.gate)
        pool.submit(self._chat(f"pending {when}", held).send, server, f"pending {when}")

        name = f"opening {when}"
        phones.enter_context(self._chat(name, streams("Too ", "late.", gate=self.gate)).stream(server, name))

        name = f"streaming {when}"
        cut = streams("Half of ", "it.", gate=self.gate.after_the_first)
        self.seen[name] = next(phones.enter_context(self._chat(name, cut).stream(server, name)).events)

        name = f"regenerating {when}"
        question = self._chat(name, says("Old.")).send(server, name).json()["user_message"]["id"]
        self.answers[name] = held
        pool.submit(self.chats[name].regenerate, server, question)

        expected = dict(zip(self.UNDER_WAY, ("pending", "pending", "streaming", "pending"), strict=True))
        return {f"{name} {when}": state for name, state in expected.items()}

    def send_again(self, name: str, server: Server, question: str) -> tuple[str, str]:
        """As it was sent before: the answer's content and the question's id."""
        chat = self.chats[name]
        if name.startswith(("opening", "streaming")):
            with chat.stream(server, name) as phone:
                events = list(phone.events)
            assert events[-1].name == "done", events
            if name in self.seen:
                assert events[0].number > self.seen[name].number, "numbers rise from one attempt to the next"
            return text_of(events), events[-1].data["user_message"]["id"]
        got = chat.regenerate(server, question) if name.startswith("regen") else chat.send(server, name)
        assert got.status == 200, got.content
        return got.json()["assistant_message"]["content"], got.json()["user_message"]["id"]


def resent(killed: Killed, server: Server, ids: dict[str, str], name: str) -> None:
    assert killed.send_again(name, server, ids[name]) == (REPLY, ids[name])


def assert_it_left_nothing_undefined(server: Server, expected: dict[str, str], before: list[tuple[str, str]]) -> None:
    """Just killed: what is stored is as it was, each question has its turn, and no lock outlasts the lease."""
    now = datetime.now(UTC)
    assert states(server) == expected
    assert questions(server) == before
    assert len(before) == len(expected)
    assert server.rows("SELECT COUNT(*) FROM conversations WHERE running_until > ?", now + LEASE) == [(0,)]


@pytest.mark.parametrize("kind", COMMANDS)
def test_kill_nine_loses_nothing_doubles_nothing_and_holds_nothing(
    kind: str, new_database: Callable[[str], str], tmp_path: Path, gemini: FakeGemini, gate: Gate
) -> None:
    env = environment(tmp_path, gemini.url, free_port(), DATABASE_URL=new_database(AS_THE_SUITE))
    server = start(kind, env, tmp_path)
    with ExitStack() as phones, ThreadPoolExecutor(4) as pool, serving(server):
        killed = Killed(server, gemini, gate)
        expected = killed.end_some()
        wait_until(lambda: record(server, "stopped early")[2][0][3] == 1, "what it took isn't recorded")
        ended = {name: record(server, name) for name in expected}
        for when in ("now", "later"):
            expected |= killed.begin_others(when, pool, phones)
        wait_until(lambda: states(server) == expected, "a turn isn't where it should be")
        before = questions(server)
        server.kill()
    assert_it_left_nothing_undefined(server, expected, before)
    gemini.chooses = None
    gate.let(1000)

    restarted = start(kind, env, tmp_path)
    with serving(restarted):
        back = time.monotonic()
        send_again = partial(resent, killed, restarted, dict(before))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(send_again, [f"{name} now" for name in killed.UNDER_WAY]))
        assert time.monotonic() - back < LEASE.total_seconds() + 3

        wait_until(lambda: not {"pending", "streaming"} & set(states(restarted).values()), "still under way", SOON)
        assert time.monotonic() - back < SOON
        abandoned = counted(restarted, "yral_chat_turns_total", 'outcome="abandoned"')
        assert abandoned == 2 * len(killed.UNDER_WAY), "each once, whoever settled it"
        left = {name: states(restarted)[f"{name} later"] for name in killed.UNDER_WAY}
        assert left == {"pending": "failed", "opening": "failed", "streaming": "failed", "regenerating": "done"}
        assert restarted.rows("SELECT COUNT(*) FROM conversations WHERE running_until IS NOT NULL") == [(0,)]
        assert {name: record(restarted, name) for name in ended} == ended

        began = time.monotonic()
        for name in killed.UNDER_WAY:
            send_again(f"{name} later")
        assert counted(restarted, "yral_chat_turns_total", 'outcome="abandoned"') == abandoned
        assert time.monotonic() - began < 4, "nobody waits for the dead any more"
        assert questions(restarted) == before
        for name in expected.keys() - ended.keys():
            assert_one_of_each(restarted, killed.chats[name])


# Two servers on one database


class Pair(NamedTuple):
    one: Server
    other: Server
    through: str

    def at(self, number: int) -> Server:
        return self.other if number % 2 else self.one

    @property
    def both_ways(self) -> tuple[tuple[Server, Server], ...]:
        return (self.one, self.other), (self.other, self.one)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of its own."""
    with running_redis(tmp_path_factory.mktemp("redis")) as address:
        yield address


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest,
    new_database: Callable[[str], str],
    gemini_server: FakeGemini,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Two servers of one process each, that know of each other through this."""
    through = request.param
    if through == "postgresql" and not POSTGRESQL:
        pytest.skip("TEST_DATABASE_URL names no PostgreSQL: two servers weren't tested on one.")
    url = new_database(through if through in ("sqlite", "postgresql") else AS_THE_SUITE)
    changed = {"DATABASE_URL": url, "WEB_CONCURRENCY": "1"}
    if through == "redis":
        changed["CACHE_URL"] = request.getfixturevalue("redis")
    if through == "a cache that is down":
        changed["CACHE_URL"] = f"redis://127.0.0.1:{free_port()}/0"
    made = []
    for kind in ("gunicorn", "gunicorn" if through == "sqlite" else "uvicorn"):
        folder = tmp_path_factory.mktemp(kind)
        made.append(start(kind, environment(folder, gemini_server.url, free_port(), **changed), folder))
    with serving(*made):
        yield Pair(made[0], made[1], through)


in_any_way = pytest.mark.parametrize(
    "pair", ["sqlite", "postgresql", "redis", "a cache that is down"], indirect=True, scope="module"
)
on_any_database = pytest.mark.parametrize("pair", ["sqlite", "postgresql"], indirect=True, scope="module")


@on_any_database
def test_fifty_identical_sends_at_two_servers_are_one_turn(pair: Pair, gemini: FakeGemini) -> None:
    gemini.default = Answer(says("Once.").body, delay=2)
    chat = new_chat(pair.one)

    with ThreadPoolExecutor(50) as pool:
        got = list(pool.map(lambda number: chat.send(pair.at(number), "The same!"), range(50)))

    assert Counter(one.status for one in got) == {200: 50}, got[-1].content
    assert len({one.content for one in got}) == 1
    assert contents(chat.said(pair.other)) == ["The same!", "Once."]
    assert len(gemini.requests) == 1
    assert_one_of_each(pair.one, chat)


@on_any_database
def test_a_key_is_one_turn_at_two_servers_also_when_it_is_over(pair: Pair, gemini: FakeGemini) -> None:
    gemini.default = Answer(says("Once.").body, delay=0.1)
    chat = new_chat(pair.one)

    def send(number: int) -> Got:
        return chat.send(pair.at(number), "The same!", **{"Idempotency-Key": "from-the-phone"})

    with ThreadPoolExecutor(25) as pool:
        got = [*pool.map(send, range(50)), send(0), send(1)]

    assert Counter(one.status for one in got) == {200: 52}, got[-1].content
    assert len({one.content for one in got}) == 1
    assert len(gemini.requests) == 1
    assert_one_of_each(pair.one, chat)


@on_any_database
def test_two_messages_at_two_servers_are_answered_one_after_the_other(pair: Pair, gemini: FakeGemini) -> None:
    gemini.chooses = lambda asked: Answer(says(f"{asked.question} it is.").body, delay=0.4)
    chat = new_chat(pair.one)

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(chat.send, (pair.one, pair.other), ("Tea", "Coffee")))

    assert [one.status for one in got] == [200, 200]
    first, answer, second, last = contents(chat.said(pair.one))
    assert {first, second} == {"Tea", "Coffee"}
    assert (answer, last) == (f"{first} it is.", f"{second} it is.")
    assert [role for role, _ in gemini.last.texts[-3:]] == ["user", "model", "user"]
    assert [texts[-1] for _, texts in gemini.last.texts[-3:]] == [first, answer, second]


@in_any_way
def test_a_stream_is_followed_live_at_the_other_server(pair: Pair, gemini: FakeGemini, gate: Gate) -> None:
    for here, there in pair.both_ways:
        gate.let(1)
        gemini.will(streams("One ", "two ", "three.", gate=gate))
        chat = new_chat(here)
        with chat.stream(here, "Count!") as phone:
            first = next(phone.events)
            with chat.follow(there, phone.question) as follower:
                assert next(follower.events) == first
                assert gate.allowed == 1, "it came before the second was written"
                gate.let(2)
                assert next(follower.events) == (second := next(phone.events))
                watched = here.rows("SELECT watched_until FROM turns WHERE question_id = ?", uuid.UUID(phone.question))
                assert (watched == [(None,)]) == (pair.through == "redis"), "which way the word went"
                gate.let(3)
                others = list(follower.events)
            assert others == list(phone.events)
        assert text_of([first, second, *others]) == "One two three."
        assert others[-1].name == "done"


@in_any_way
def test_a_stop_at_the_other_server_ends_a_stream_at_once(pair: Pair, gemini: FakeGemini, gate: Gate) -> None:
    for here, there in pair.both_ways:
        gemini.will(streams("As I was saying, ", "never said", gate=gate.after_the_first))
        chat = new_chat(here)
        with chat.stream(here, "Talk!") as phone, ThreadPoolExecutor(1) as pool:
            next(phone.events)
            asked = time.monotonic()
            stop = pool.submit(chat.stop, there, phone.question)
            done = list(phone.events)[-1]
        assert done.at - asked < 1, "half a second, and some for a busy machine"
        assert (done.name, done.data["stopped"]) == ("done", True)
        assert stop.result().status == 200
        assert stop.result().json()["stopped"] is True
        assert stop.result().json()["assistant_message"] == done.data["assistant_message"]
        question, answer = chat.said(there)
        assert (answer["content"], answer["stopped"]) == ("As I was saying,", True)
        assert_one_of_each(here, chat)


@in_any_way
def test_a_stop_at_the_other_server_before_the_first_token_ends_a_stream_at_once(
    pair: Pair, gemini: FakeGemini, gate: Gate
) -> None:
    for here, there in pair.both_ways:
        gemini.will(streams("Never ", "said", gate=gate))
        chat = new_chat(here)
        with chat.stream(here, "Talk!") as phone, ThreadPoolExecutor(1) as pool:
            wait_until(lambda: gemini.requests, "the model isn't asked")
            asked = time.monotonic()
            stop = pool.submit(chat.stop, there, phone.question)
            done = list(phone.events)[-1]
        assert done.at - asked < 1, "half a second, and some for a busy machine"
        assert (done.name, done.data["stopped"], done.data["assistant_message"]) == ("done", True, None)
        assert (stop.result().status, stop.result().json()["assistant_message"]) == (200, None)
        assert contents(chat.said(there)) == ["Talk!"]
        gemini.requests.clear()


@in_any_way
def test_a_stop_at_the_other_server_ends_a_plain_send_at_once(pair: Pair, gemini: FakeGemini) -> None:
    for here, there in pair.both_ways:
        gemini.will(slowly("never said", 8))
        chat = new_chat(here)
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(chat.send, here, "Talk!")
            wait_until(lambda: gemini.requests, "the model isn't asked")
            (question,) = chat.said(there)
            asked = time.monotonic()
            assert chat.stop(there, question["id"]).status == 200
            sent = sending.result()
        assert time.monotonic() - asked < 2, "half a second, and some for a busy machine"
        assert (sent.status, sent.json()["details"]) == (409, {"reason": "stopped"})
        gemini.requests.clear()


@in_any_way
def test_a_second_attempt_is_followed_without_the_text_of_the_first(pair: Pair, gemini: FakeGemini, gate: Gate) -> None:
    gemini.will(streams("Half of ", "it.", gate=gate, cut_after=1))
    gate.let(1)
    chat = new_chat(pair.one)
    with chat.stream(pair.one, "Talk!") as phone, chat.follow(pair.other, phone.question) as follower:
        assert next(follower.events).data == {"text": "Half of"}
        gate.let(2)
        assert list(follower.events)[-1].name == list(phone.events)[-1].name == "error"

    gate.let(0)
    gemini.will(streams("All ", "of it.", gate=gate))
    with chat.stream(pair.one, "Talk!") as phone, chat.follow(pair.other, phone.question) as follower:
        time.sleep(0.5)  # the follower looks now and then
        gate.let(2)
        followed = list(follower.events)
        assert followed == list(phone.events)
    assert text_of(followed) == "All of it."
    assert_one_of_each(pair.one, chat)
