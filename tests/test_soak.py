"""The soak of an ordinary day can fail: what it judges by, with something wrong in it."""

import sqlite3
import uuid
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Got
from tests.soak import checks, day
from tests.soak.fleet import Servers
from tests.soak.ledger import CALLS, STREAMS, Chat, Ledger
from tests.soak.stream import Event
from tests.soak.times import MB, Gauge, Sample, Times, growth, percentiles
from tests.soak.visitors import Visitor, kind_of

pytestmark = [pytest.mark.own_database, pytest.mark.drill]
FINE = '{"level":"info","event":"request","status":200,"ms":500.1}\n'


def memory(megabytes: list[float]) -> list[Sample]:
    """One sample in three seconds."""
    return [Sample(3.0 * place, round(value * MB), 20 * MB) for place, value in enumerate(megabytes)]


def visitor(ledger: Ledger, times: Times | None = None) -> Visitor:
    fleet: Any = Servers
    return Visitor("alone-1", 1, [Chat("a-chat", "alone-1", "a-persona")], fleet, ledger, times or Times())


def test_percentiles_are_those_of_the_values() -> None:
    assert percentiles([float(n) for n in range(101)]) == (50.0, 95.0, 99.0)
    assert percentiles([0.5]) == (0.5, 0.5, 0.5)
    times = Times()
    times.add("send", 2.0)
    assert list(times.table())[1].split() == ["send", "1", "2,000", "2,000", "2,000", "2,000"]


def test_memory_that_grows_is_told_and_what_grew_while_it_warmed_up_is_not() -> None:
    warm = [100.0 + min(2 * n, 80) for n in range(200)]
    assert not list(day.grown(memory(warm), 10))
    leaking = memory([value + 0.15 * n for n, value in enumerate(warm)])  # 3 MB a minute
    assert growth(leaking[100:]) / MB == pytest.approx(3.0, abs=0.01)
    steadily, in_all = day.grown(leaking, 10)
    assert "it grew by 3.00 MB a minute" in steadily
    assert "it grew from 188 to 209 MB" in in_all
    with_peaks = memory([value + (80 if n % 40 == 39 else 0) for n, value in enumerate(warm)])
    assert not list(day.grown(with_peaks, 10))
    assert not list(day.grown(memory([value + (15 if n > 120 else 0) for n, value in enumerate(warm)]), 10))
    (in_all,) = day.grown(memory([value + (20 if n > 120 else 0) for n, value in enumerate(warm)]), 10)
    assert "10% are the limit" in in_all


def test_memory_of_a_short_run_is_not_judged_and_missing_samples_are_told() -> None:
    assert not list(day.grown(memory([float(n) for n in range(60)]), 3))
    assert "too few samples" in next(day.grown(memory([100.0] * 10), 10))


def test_a_log_of_sqlite_that_grows_is_told() -> None:
    assert not list(day.too_large(day.WAL_MB * MB))
    assert "65.0 MB" in next(day.too_large(65 * MB))


@pytest.mark.parametrize(
    "line",
    [
        '{"level":"warning","event":"request","status":503,"ms":1.0}',
        '{"level":"error","event":"Litestream ended","code":1}',
        '{"level": "critical", "event": "SQLite\'s log is above"}',
        '{"level":"info","event":"note-0123456789ab How are you?"}',
    ],
)
def test_a_failure_or_a_message_in_the_log_is_told(line: str) -> None:
    assert not list(day.failures(FINE * 3))
    assert line in next(day.failures(f"{FINE}{line}\n{FINE}"))


def test_a_lock_error_in_the_log_is_told(tmp_path: Path) -> None:
    class Logs:
        text = FINE

        def logs(self) -> list[tuple[Path, str]]:
            return [(tmp_path / "server.log", self.text)]

    fleet: Any = Logs()
    assert not list(checks.trouble_in_the_logs(fleet))
    fleet.text += "sqlite3.OperationalError: database is locked\n"
    assert "logged 'database is locked' 1 times" in next(checks.trouble_in_the_logs(fleet))


def test_a_copy_that_lacks_something_is_told(tmp_path: Path) -> None:
    for name in ("one.db", "other.db"):
        with closing(sqlite3.connect(tmp_path / name)) as made:
            made.execute("CREATE TABLE messages (id, content)")
            made.executemany("INSERT INTO messages VALUES (?, ?)", [(1, "a"), (2, "b")])
            made.commit()
    assert not list(day.differences(tmp_path / "one.db", tmp_path / "other.db"))
    with closing(sqlite3.connect(tmp_path / "other.db")) as changed:
        changed.execute("DELETE FROM messages WHERE id = 1")
        changed.execute("UPDATE messages SET content = 'c' WHERE id = 2")
        changed.execute("CREATE TABLE strange (id)")
        changed.commit()
    assert list(day.differences(tmp_path / "one.db", tmp_path / "other.db")) == [
        "messages: the copy lacks 2 rows and has 1 others",
        "only one of both has the table strange",
    ]


def test_an_acknowledged_message_that_is_gone_is_told() -> None:
    ledger = Ledger()
    note = ledger.note(Chat("a-chat", "alice", "a-persona"), "How are you?")
    empty = checks.Facts({}, {}, {}, {}, set())
    assert not list(checks.no_acknowledged_question_is_missing(empty, ledger))
    ledger.asked(note, str(uuid.uuid4()))
    assert "is None" in next(checks.no_acknowledged_question_is_missing(empty, ledger))
    assert "is stored 0 times" in next(checks.every_message_is_stored_once(empty, ledger))


@pytest.mark.parametrize("status", [500, 503, 404, 429])
def test_an_answer_that_should_not_be_is_told(status: int) -> None:
    ledger = Ledger()
    phone = visitor(ledger)
    assert phone._status(phone.chats[0], Got(200, {}, b"{}")) == "answered"
    assert not ledger.wrong[CALLS]
    assert phone._status(phone.chats[0], Got(status, {}, b"{}")) == "down"
    (sentence,) = ledger.wrong[CALLS]
    assert f"was answered {status}" in sentence


def test_a_stream_that_fails_is_told() -> None:
    ledger = Ledger()
    phone = visitor(ledger)
    note = ledger.note(phone.chats[0], "How are you?")
    phone._failed(note, Event("a-question", 1, "error", {"code": "AI_UNAVAILABLE"}))
    assert len(ledger.wrong[STREAMS]) == 1


def test_kinds_of_requests_are_told_apart() -> None:
    chat = "/api/v1/chat/conversations/some-id"
    assert kind_of("POST", f"{chat}/messages", {"message_type": "audio"}) == "send a voice note"
    assert kind_of("POST", f"{chat}/messages", {"message_type": "text"}) == "send"
    assert kind_of("GET", f"{chat}/messages?limit=7", None) == "page of messages"
    assert kind_of("GET", "/media/alice/1.png?signature=x", None) == "fetch a file"
    assert kind_of("DELETE", chat, None) == "delete a conversation"
    assert kind_of("POST", f"{chat}/messages/some-id/regenerate", None) == "regenerate"


@pytest.mark.parametrize("wrong", [[], ["something is missing"]])
def test_the_report_ends_with_what_is_wrong(wrong: list[str], capsys: Any) -> None:
    gauge = Gauge(0, Path("chat.db-wal"), memory=memory([100.0] * 60))
    findings = {"all_is_well": wrong}
    assert day.report(Ledger(), Times(), gauge, Counter(), Counter(), 3, findings) == bool(wrong)
    said = capsys.readouterr().out
    assert ("WRONG  all is well (1)\n       - something is missing" in said) == bool(wrong)
    assert said.endswith("\n1 things are wrong.\n" if wrong else "\nEverything is as it should be.\n")
