"""One line a request, a stream and a model call, in either format, whatever comes; and a file for several processes."""

import contextvars
import json
import logging
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
import structlog
from django.conf import settings as configured
from django.db import DataError, IntegrityError, OperationalError
from django.test import Client

from conversations.models import Conversation
from tests.conftest import Api, token
from tests.fake_gemini import FakeGemini, fails, says, streams
from tests.servers import python
from tests.yral_chat import crashing_urls
from yral_chat import ai, bodies, counters, log
from yral_chat.log import LineFormatter, Output, correlation_id
from yral_chat.logfile import LogFile

CHATS = "/api/v1/chat/conversations"


class Kept(logging.Handler):
    """What the service would have written as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.formatter = LineFormatter("json")
        self.raw: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.raw.append(self.format(record))

    def __call__(self, event: str) -> list[dict[str, Any]]:
        return [line for raw in self.raw if (line := json.loads(raw))["event"] == event]


@pytest.fixture
def lines() -> Iterator[Kept]:
    kept = Kept()
    logging.getLogger().addHandler(kept)
    yield kept
    logging.getLogger().removeHandler(kept)


# What is said of a request, a stream, a model call


def test_a_request_is_one_line(alice: Api, conversation: Conversation, lines: Kept) -> None:
    response = alice.client.get(
        f"{CHATS}/{conversation.pk}/messages?limit=5", headers={**alice.headers(), "X-Correlation-ID": "find-me-7"}
    )

    assert response.status_code == 200
    assert len(lines.raw) == 1
    line = json.loads(lines.raw[0])
    assert line.pop("ms") > 0
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("timestamp"))
    assert line == {
        "level": "info",
        "logger": "yral_chat.requests",
        "correlation_id": "find-me-7",
        "event": "request",
        "method": "GET",
        "route": "/api/v1/chat/conversations/<str:conversation_id>/messages",
        "status": 200,
        "sql": 2,
        "user": "alice",
    }


@pytest.mark.django_db
def test_the_route_stands_for_the_address(nobody: Api, lines: Kept) -> None:
    for path in ("/", "/health", "/nothing/q4711z?signature=abc", "/api/v1/influencers/q4711z", "/static/q4711z.css"):
        nobody.get(path)
    nobody.client.generic("BREW", "/health")

    assert [(line["method"], line["route"], line["status"], line["user"]) for line in lines("request")] == [
        ("GET", "/", 200, None),
        ("GET", "/health", 200, None),
        ("GET", "unmatched", 404, None),
        ("GET", "/api/v1/influencers/<str:influencer_id>", 404, None),
        ("GET", "unmatched", 404, None),  # a static file that there is none of
        ("OTHER", "/health", 405, None),
    ]
    assert "q4711z" not in "".join(lines.raw)


def test_a_request_that_is_refused_before_its_view_has_a_route_and_a_user(
    alice: Api, conversation: Conversation, lines: Kept, settings: Any, tmp_path: Path
) -> None:
    settings.RATE_LIMIT_DATABASE, settings.RATE_LIMIT_PER_HOUR = tmp_path / "rate_limits.db", 1
    for _ in range(2):
        alice.messages(conversation)
    preflight = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "GET"}
    alice.client.options(f"{CHATS}/{conversation.pk}/messages", headers=preflight)

    route = "/api/v1/chat/conversations/<str:conversation_id>/messages"
    assert [(line["route"], line["status"], line["user"]) for line in lines("request")[1:]] == [
        (route, 429, "alice"),
        (route, 200, None),
    ]
    counters.close()


def test_staff_is_named_by_number(desk: Any, editor: Any, lines: Kept) -> None:
    desk(editor).get("/admin/")

    assert lines("request")[-1]["user"] == f"staff:{editor.pk}"


def test_a_model_call_is_a_line_with_the_request_s_id(
    alice: Api, conversation: Conversation, gemini: FakeGemini, lines: Kept
) -> None:
    gemini.will(fails(503), says("After all."))
    response = alice.send(conversation, "Are you there, coach?")

    (call,) = lines("model call")
    assert call["correlation_id"] == response["X-Correlation-ID"]
    assert (call["model"], call["outcome"], call["attempts"]) == ("gemini-2.5-flash", "answered", 2)
    assert (call["prompt_tokens"], call["output_tokens"], call["thinking_tokens"]) == (40, 12, 0)
    assert call["ms"] >= 300
    assert "coach" not in "".join(lines.raw)


def test_the_offline_engine_is_called_by_its_name(
    alice: Api, conversation: Conversation, settings: Any, lines: Kept
) -> None:
    settings.GEMINI_API_KEY = ""
    alice.send(conversation, "Are you there, coach?")

    assert [call["model"] for call in lines("model call")] == ["offline"]


@pytest.mark.django_db(transaction=True)
def test_a_stream_has_a_line_at_its_end_and_its_call_the_same_id(
    alice: Api, conversation: Conversation, gemini: FakeGemini, lines: Kept
) -> None:
    gemini.will(streams("Once upon ", "a time ", "in Pune."))
    response = alice.client.post(
        f"{CHATS}/{conversation.pk}/messages/stream",
        {"message_type": "text", "content": "Tell me a story, please."},
        content_type="application/json",
        headers={**alice.headers(), "X-Correlation-ID": "a-stream"},
    )
    assert not lines("stream")
    assert b"event: done" in response.getvalue()

    (stream,), (call,), (request,) = lines("stream"), lines("model call"), lines("request")
    assert {line["correlation_id"] for line in (stream, call, request)} == {"a-stream"}
    assert stream["outcome"] == "complete"
    assert stream["pieces"] >= 3
    assert call["outcome"] == "answered"


@pytest.mark.django_db(transaction=True)
def test_a_client_that_leaves_its_stream_is_seen(
    alice: Api, conversation: Conversation, gemini: FakeGemini, lines: Kept
) -> None:
    gemini.will(streams("Once upon ", "a time"))
    response = alice.client.post(
        f"{CHATS}/{conversation.pk}/messages/stream",
        {"message_type": "text", "content": "Tell me a story, please."},
        content_type="application/json",
        headers=alice.headers(),
    )
    next(iter(cast(Any, response).streaming_content))
    response.close()

    assert lines("stream")[0]["outcome"] == "left"
    deadline = time.monotonic() + 5
    while not lines("model call") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert lines("model call")[0]["outcome"] == "answered"


# What no line says


def crash(path: str, lines: Kept, settings: Any) -> str:
    settings.ROOT_URLCONF = "tests.yral_chat.crashing_urls"
    assert Client(raise_request_exception=False).get(path).status_code == 500
    return "".join(lines.raw)


@pytest.mark.parametrize("path", ["/crash", "/crash/plain"])
def test_a_traceback_shows_the_place_and_no_values(path: str, lines: Kept, settings: Any) -> None:
    said = crash(path, lines, settings)

    assert "Traceback (most recent call last):" in said
    assert "crashing_urls.py" in said
    assert crashing_urls.SECRET not in said


def line_of(*args: Any, exc: BaseException | None = None, style: str = "json") -> str:
    record = logging.LogRecord("some.library", 40, __file__, 7, args[0], args[1:], None)
    if exc is not None:
        try:
            raise exc
        except BaseException:
            record.exc_info = sys.exc_info()
    return LineFormatter(style).format(record)


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize(
    "exc",
    [
        ValueError("invalid literal for int(): 'my secret'"),
        KeyError("my secret"),
        DataError('invalid input syntax for type uuid: "my secret"'),
        IntegrityError("duplicate key value violates unique constraint\nDETAIL: Key (x)=(my secret) exists."),
        FileNotFoundError(2, "No such file", "/uploads/my secret.jpg"),
        ExceptionGroup("my secret", [ValueError("my secret")]),
    ],
)
def test_a_foreign_exception_s_values_are_hidden(exc: Exception, style: str) -> None:
    for line in (line_of("It broke", exc=exc, style=style), line_of("It broke: %s", exc, style=style)):
        assert "my secret" not in line
        assert type(exc).__name__ in line


def falls(levels: int) -> None:
    if levels:
        falls(levels - 1)
    raise ValueError("deep down")


@pytest.mark.parametrize("levels", [0, 500])
def test_a_line_with_a_traceback_is_short_enough_to_be_written_at_once(levels: int) -> None:
    error = OperationalError("no such table: messages")
    try:
        falls(levels)
    except ValueError as cause:
        error.__cause__ = cause

    line = line_of("x", exc=error)
    assert len(line.encode()) <= select.PIPE_BUF
    assert ", in falls" in line
    assert "no such table" in line


class Deep:
    """To read it, the standard library goes down thirty levels."""

    def read(self, size: int = -1) -> bytes:
        nested: Any = self
        for _ in range(30):
            nested = [nested]
        return bytes(deepcopy(nested))

    def __deepcopy__(self, memo: Any) -> Any:
        raise OperationalError("deep down")


def test_of_a_long_traceback_our_own_frames_and_the_last_one_stay() -> None:
    with pytest.raises(OperationalError) as caught:
        bodies.copy(Deep(), 10)
    line = line_of("x", exc=caught.value)

    assert len(line.encode()) <= select.PIPE_BUF
    assert log.LEFT_OUT in json.loads(line)["exception"]
    for kept in ("yral_chat/bodies.py", ", in __deepcopy__", "deep down"):
        assert kept in line


def test_what_went_wrong_in_a_group_of_tasks_is_told() -> None:
    """As where a stream crashes under an ASGI server."""
    try:
        falls(2)
    except ValueError as crash:
        line = line_of("x", exc=BaseExceptionGroup("unhandled errors", [crash]))

    assert ", in falls" in line
    assert line.index("ValueError") < line.index("ExceptionGroup")


def test_what_helps_is_told() -> None:
    assert "no such table: messages" in line_of("x", exc=OperationalError("no such table: messages"))
    assert "has no attribute 'y'" in line_of("x", exc=AttributeError("'X' object has no attribute 'y'"))
    assert "the model answered 503" in line_of("x: %s", ai.ModelUnavailable("the model answered 503"))
    both = OperationalError("database is locked")
    both.__cause__ = ValueError("my secret")
    line = line_of("x", exc=both)
    assert line.index("ValueError") < line.index("database is locked")


@pytest.mark.parametrize(
    "secret",
    [
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl",
        "AIzaSyA-1234567890",
        configured.GEMINI_API_KEY,
        configured.JWT_SECRET_KEY,
    ],
)
def test_secrets_in_other_people_s_lines_are_hidden(secret: str) -> None:
    for style in ("json", "text"):
        line = line_of("calling %s with Authorization: Bearer %s", f"https://x/?key={secret}&a=1", secret, style=style)
        assert secret not in line
        assert "[hidden]" in line


@pytest.mark.parametrize(
    ("address", "hidden"),
    [
        ("https://b/k.jpg?X-Amz-Credential=AKIA1&X-Amz-Signature=0a1b2c3d4e", "0a1b2c3d4e"),
        ("/media/alice/k.jpg?expires=99&signature=abcdef123456", "abcdef123456"),
        ("postgres://user:hunter2hunter2@db:5432/chat", "hunter2hunter2"),
    ],
)
def test_signatures_and_passwords_in_addresses_are_hidden(address: str, hidden: str) -> None:
    assert hidden not in line_of("GET %s", address)


# Odd values


class Odd:
    def __str__(self) -> str:
        raise RuntimeError("my secret")

    __repr__ = __str__


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize(
    "value",
    ["\ud800 lone", b"\xff\x00", 2**70, float("nan"), Odd(), object(), {"a": {1, 2}}, {2: "\udfff"}, None, "ü🌱"],
    ids=lambda value: type(value).__name__,
)
def test_any_value_makes_one_line(value: Any, style: str, capfd: pytest.CaptureFixture[str]) -> None:
    output = Output("", 1, 1)
    output.setFormatter(LineFormatter(style))
    logger = logging.getLogger("odd")
    logger.propagate = False
    logger.handlers = [output]
    try:
        structlog.get_logger("odd").warning("odd", value=value)
        logger.warning("odd %r", value)
        logger.warning(value)
        logger.warning("too few %s %s", value)
    finally:
        logger.handlers = []

    written = capfd.readouterr().out.splitlines()
    assert len(written) == 4
    if style == "json":
        assert [json.loads(line)["logger"] for line in written] == ["odd"] * 4
    assert "my secret" not in "".join(written)


def test_a_line_can_t_be_forged_by_a_line_break() -> None:
    line = line_of("said %s", "x\n2026-01-01T00:00:00 ERROR root [-] all is lost\r\u2028", style="text")

    assert len(line.splitlines()) == 1


# The file


WRITER = """
import sys
from yral_chat.logfile import LogFile
import yral_chat.logfile, time
yral_chat.logfile.LOOK = 0.002
file = LogFile(sys.argv[1], 20_000, 50)
for number in range(2000):
    assert not file.write(f"{sys.argv[2]} {number} {'x' * 60}\\n".encode())
    if not number % 50:
        time.sleep(0.003)
"""


def test_several_processes_write_and_rotate_it_and_no_line_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat.log"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(number)], cwd=configured.BASE_DIR)
        for number in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]

    files = [file for file in path.parent.iterdir() if not file.name.endswith(".lock")]
    assert len(files) > 5, "it was rotated"
    written = [line for file in files for line in file.read_text().splitlines()]
    assert len(written) == 6000
    assert {tuple(line.split()[:2]) for line in written} == {(str(w), str(n)) for w in range(3) for n in range(2000)}
    assert all(len(line.split()[2]) == 60 for line in written)


def test_it_keeps_so_many_backups_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yral_chat.logfile.LOOK", 0.0)
    file = LogFile(str(tmp_path / "chat.log"), 100, 2)
    for number in range(100):
        file.write(f"{number:020}\n".encode())
    file._close()

    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.log", "chat.log.1", "chat.log.2", "chat.log.lock"]
    assert (tmp_path / "chat.log").read_text().endswith(f"{99:020}\n")


def test_it_follows_when_somebody_else_renames_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yral_chat.logfile.LOOK", 0.0)
    file = LogFile(str(tmp_path / "chat.log"), 10**6, 2)
    file.write(b"first\n")
    (tmp_path / "chat.log").rename(tmp_path / "chat.log-20260101")
    file.write(b"second\n")
    file._close()

    assert (tmp_path / "chat.log").read_text() == "second\n"


def test_a_file_that_can_t_be_written_is_said_once_and_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = LogFile(str(tmp_path / "file" / "chat.log"), 100, 2)

    assert "LOG_FILE" in file.write(b"a line\n")
    assert file.write(b"another\n") == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_is_said_once_and_stops_nobody() -> None:
    file = LogFile("/dev/full", 100, 2)

    said = [file.write(b"a line\n") for _ in range(3)]
    assert "LOG_FILE can't be written (No space left on device)" in said[0]
    assert said[1:] == ["", ""]


# By the environment


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    usual = {"PATH": "/usr/bin:/bin", "ENV_FILE": "", "DJANGO_SETTINGS_MODULE": "yral_chat.settings"}
    done = python({**usual, **env}, "-c", f"import django; django.setup(); import logging; {code}", timeout=60)
    done.check_returncode()
    return done


@pytest.mark.drill
def test_format_level_and_file_are_settings(tmp_path: Path) -> None:
    code = "logging.getLogger('a').info('one'); logging.getLogger('a').error('two ü')"
    path = tmp_path / "logs" / "chat.log"
    text = run(code, LOG_FILE=str(path)).stdout
    assert [line.split(" ", 1)[1] for line in text.splitlines()] == ["INFO a [-] one", "ERROR a [-] two ü"]
    assert path.read_text() == text

    quiet = run(code, LOG_FILE="", LOG_FORMAT="json", LOG_LEVEL="ERROR").stdout
    assert [json.loads(line)["event"] for line in quiet.splitlines()] == ["two ü"]
    assert path.read_text() == text


def test_threads_don_t_mix_their_lines(tmp_path: Path) -> None:
    output = Output(str(tmp_path / "chat.log"), 10**9, 1)
    output.setFormatter(LineFormatter("json"))

    def write(number: int) -> None:
        correlation_id.set(f"thread-{number}")
        for _ in range(50):
            record = logging.LogRecord("t", 20, "", 0, "x" * 500, (), None)
            output.handle(record)

    work: Callable[[int], Any] = lambda number: contextvars.copy_context().run(write, number)  # noqa: E731
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))

    written = [json.loads(line) for line in (tmp_path / "chat.log").read_text().splitlines()]
    assert len(written) == 400
    assert {line["correlation_id"] for line in written} == {f"thread-{number}" for number in range(8)}


def test_a_token_is_in_no_line(alice: Api, lines: Kept) -> None:
    made = token("alice")
    alice.client.get(CHATS, headers={"Authorization": f"Bearer {made}x"})
    alice.client.get(f"{CHATS}?token={made}")

    assert made.split(".")[1] not in "".join(lines.raw)
