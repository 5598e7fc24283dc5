"""manage.py export_analytics: the file that dashboards read, which holds no text and no user."""

import datetime as dt
import fcntl
import hashlib
import hmac
import io
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings as configured
from django.core.management import CommandError, call_command
from django.db import connection

from conversations.models import Conversation, Message
from media_uploads.models import MediaUpload
from personas.models import Influencer
from tests.conftest import CANARY, Api
from tests.fake_gemini import FakeGemini, says
from tests.servers import POSTGRESQL, environment, manage, on_postgresql, python

_SEEN = "first_message_at TIMESTAMP, last_message_at TIMESTAMP, last_seen_at TIMESTAMP"
_SPENT = "time_spent_seconds INTEGER, time_spent_minutes REAL, time_spent_hours REAL"
_MESSAGES = "total_messages INTEGER, user_messages INTEGER, assistant_messages INTEGER"
PINNED = {
    "bi_export": "exported_at TIMESTAMP",
    "bi_user_conversation_summary": "user_hash TEXT, bot_id TEXT, bot_name TEXT, conversation_hash TEXT, "
    f"{_SEEN}, {_SPENT}, {_MESSAGES}, active_days INTEGER",
    "bi_conversation_threads": "conversation_hash TEXT, user_hash TEXT, bot_id TEXT, bot_name TEXT, sequence INTEGER, "
    "role TEXT, message_type TEXT, characters INTEGER, pictures INTEGER, audio_seconds INTEGER, token_count INTEGER, "
    "blocked BOOLEAN, stopped BOOLEAN, created_at TIMESTAMP",
    "bi_bot_performance": "bot_id TEXT, bot_name TEXT, status TEXT, category TEXT, conversations INTEGER, "
    f"users INTEGER, {_MESSAGES}, messages_per_conversation REAL, answered INTEGER, failed INTEGER, blocked INTEGER, "
    "stopped INTEGER, total_tokens INTEGER, cost_usd REAL, seconds_to_reply REAL, "
    "first_message_at TIMESTAMP, last_message_at TIMESTAMP",
    "bi_user_engagement": f"user_hash TEXT, conversations INTEGER, {_MESSAGES}, {_SEEN}, active_days INTEGER, {_SPENT}",
    "bi_daily_activity": "activity_date DATE, active_users INTEGER, new_users INTEGER, active_conversations INTEGER, "
    f"new_conversations INTEGER, {_MESSAGES}, failed INTEGER, blocked INTEGER, total_tokens INTEGER, cost_usd REAL",
    "bi_recent_activity": "activity_date DATE, bot_id TEXT, bot_name TEXT, active_users INTEGER, "
    f"active_conversations INTEGER, {_MESSAGES}, last_message_at TIMESTAMP",
}
KEY = "a-key-for-hashes-in-tests-Zk3vWq8Lm5Rt"
committed = pytest.mark.django_db(transaction=True)  # the export reads through a connection of its own


@pytest.fixture(autouse=True)
def kept_key(settings: Any, tmp_path: Path) -> Path:
    settings.ANALYTICS_KEPT_KEY = tmp_path / "analytics-key"
    return tmp_path / "analytics-key"


@pytest.fixture
def export(tmp_path: Path) -> Callable[[], Path]:
    def exported() -> Path:
        call_command("export_analytics", to=tmp_path / "analytics.db", stdout=io.StringIO())
        return tmp_path / "analytics.db"

    return exported


def read(file: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as there:
        return there.execute(sql).fetchall()


# What is in it


@committed
def test_it_holds_these_tables_and_columns_and_nothing_else(export: Callable[[], Path]) -> None:
    file = export()
    tables = [name for (name,) in read(file, "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    found = {
        name: ", ".join(f"{column[1]} {column[2]}" for column in read(file, f"PRAGMA table_info({name})"))
        for name in tables
        if not name.startswith("sqlite_stat")
    }
    assert found == PINNED
    assert read(file, "PRAGMA integrity_check") == [("ok",)]
    assert stat.S_IMODE(file.stat().st_mode) == 0o444


@committed
def test_no_text_no_user_and_no_prompt_is_in_it(
    alice: Api, coach: Influencer, gemini: FakeGemini, export: Callable[[], Path]
) -> None:
    user_id = "alice-canary-user-id"
    user = Api(user_id)
    gemini.will(says("The canary answer."))
    conversation = user.open(coach)["id"]
    sent = user.send(conversation, "The canary question.", client_message_id="canary-client-id").json()
    upload = MediaUpload.objects.create(owner_id=user_id, storage_key="alice/canary-key.jpg", kind="image", size=1)
    Message.objects.filter(pk=sent["user_message"]["id"]).update(
        media_urls=[upload.storage_key], audio_url="canary-sound-key", metadata={"canary": "metadata"}
    )
    Conversation.objects.update(metadata={"canary": "of the conversation"})
    coach.initial_greeting, coach.personality_traits = "Canary greeting", {"canary": "trait"}
    coach.description, coach.metadata = "Canary description", {"canary": "meta"}
    coach.save()

    file = export().read_bytes().lower()

    assert b"coach asha" in file  # the persona's public name: the search would find what is there
    ids = [conversation, *(str(pk) for pk in Message.objects.values_list("pk", flat=True))]
    secret = [b"canary", CANARY.encode().lower(), coach.system_instructions.encode().lower(), b"hi, i'm your coach"]
    assert not [word for word in secret if word in file]
    assert not [one for one in ids if one.encode() in file or one.replace("-", "").encode() in file]


@committed
def test_it_says_what_the_views_say(alice: Api, bob: Api, coach: Influencer, export: Callable[[], Path]) -> None:
    for api in (alice, bob):
        api.send(api.open(coach)["id"], "Hello there")
    file = export()
    with connection.cursor() as cursor:
        for view in ("user_conversation_summary", "conversation_threads", "user_engagement", "bot_performance"):
            columns = (
                "total_messages, user_messages" if view != "conversation_threads" else "sequence, role, characters"
            )
            cursor.execute(f"SELECT {columns} FROM v_{view}")
            assert sorted(read(file, f"SELECT {columns} FROM bi_{view}")) == sorted(cursor.fetchall())
    ((at,),) = read(file, "SELECT max(created_at) FROM bi_conversation_threads")
    assert at == f"{Message.objects.latest('created_at').created_at:%Y-%m-%d %H:%M:%S}"
    ((today,),) = read(file, "SELECT activity_date FROM bi_daily_activity")
    assert read(file, "SELECT activity_date FROM bi_recent_activity") == [(today,)]
    assert dt.date.fromisoformat(today)
    assert read(file, "SELECT DISTINCT blocked, stopped FROM bi_conversation_threads") == [(0, 0)]
    assert read(file, "SELECT abs(julianday('now') - julianday(exported_at)) * 1440 < 1 FROM bi_export") == [(1,)]


@committed
def test_a_user_has_one_hash_in_all_tables_and_all_exports_that_nobody_finds_without_the_key(
    alice: Api, bob: Api, coach: Influencer, export: Callable[[], Path], settings: Any, kept_key: Path
) -> None:
    def hashes(table: str = "bi_user_engagement") -> set[str]:
        return {found for (found,) in read(export(), f"SELECT user_hash FROM {table}")}

    for api in (alice, bob):
        api.send(api.open(coach)["id"])
    first = hashes()
    assert len(first) == 2
    assert hashes("bi_conversation_threads") == hashes("bi_user_conversation_summary") == first
    assert stat.S_IMODE(kept_key.stat().st_mode) == 0o600
    for guess in (b"", b"user_id", settings.SECRET_KEY.encode()):
        tried = {hmac.new(guess or b"\0", b"user_id\0alice", hashlib.sha256).hexdigest()}
        tried |= {hashlib.sha256(guess + text).hexdigest() for text in (b"alice", b"user_id\0alice", b"\0alice")}
        assert not [one for one in tried if one[:24] in first]

    settings.ANALYTICS_HASH_KEY = KEY
    others = hashes()
    assert not first & others
    settings.ANALYTICS_HASH_KEY = ""
    assert hashes() == first


@committed
def test_a_name_that_a_spreadsheet_would_run_is_made_inert(
    make_influencer: Callable[..., Influencer], export: Callable[[], Path]
) -> None:
    names = ["=HYPERLINK(1)", "+1", "-1+2", "@SUM(A1)", "\tTab", " =1", "Plain - name"]
    for name in names:
        make_influencer(display_name=name, category="=1+1")
    file = export()
    found = {name for (name,) in read(file, "SELECT bot_name FROM bi_bot_performance")}
    assert found == {f"'{name}" for name in names[:-1]} | {"Plain - name"}
    assert {one for (one,) in read(file, "SELECT category FROM bi_bot_performance")} == {"'=1+1"}


# How it gets there


@committed
def test_it_says_what_it_wrote(alice: Api, coach: Influencer, tmp_path: Path, settings: Any) -> None:
    alice.send(alice.open(coach)["id"])
    settings.ANALYTICS_PATH = tmp_path / "new folder" / "analytics.db"
    said = io.StringIO()
    call_command("export_analytics", stdout=said)
    lines = said.getvalue().splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["bi_user_conversation_summary", "1"],
        ["bi_conversation_threads", "3"],
        ["bi_bot_performance", "1"],
        ["bi_user_engagement", "1"],
        ["bi_daily_activity", "1"],
        ["bi_recent_activity", "1"],
    ]
    assert lines[-1].startswith(f"Wrote {settings.ANALYTICS_PATH} (")


@committed
def test_who_reads_the_old_file_goes_on_reading_it(alice: Api, coach: Influencer, export: Callable[[], Path]) -> None:
    count = "SELECT count(*) FROM bi_conversation_threads"
    conversation = alice.open(coach)["id"]
    file = export()
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as reader:
        assert reader.execute(count).fetchall() == [(1,)]
        alice.send(conversation)
        export()
        assert reader.execute(count).fetchall() == [(1,)]
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert read(file, count) == [(3,)]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a database of the suite's kind, with a conversation of 3,000 messages, and of an export."""
    with ExitStack() as until_the_end:
        url = until_the_end.enter_context(on_postgresql()) if POSTGRESQL else f"sqlite:///{tmp_path}/chat.db"
        file = str(tmp_path / "exported" / "analytics.db")
        env = environment(
            tmp_path, "http://127.0.0.1:9", 9, DATABASE_URL=url, ANALYTICS_PATH=file, ANALYTICS_HASH_KEY=KEY
        )
        manage(env, "migrate", "--verbosity", "0")
        fill = (
            "from conversations.models import *; from personas.models import Influencer\n"
            "i = Influencer.objects.create(name='asha', display_name='Asha', system_instructions='Be kind.')\n"
            "c = Conversation.objects.create(user_id='alice', influencer=i, message_count=3000)\n"
            "Message.objects.bulk_create(Message(conversation=c, sequence=n, role='user', content='Hi', "
            "created_at=c.created_at) for n in range(1, 3001))"
        )
        manage(env, "shell", "-c", fill)
        manage(env, "export_analytics")
        yield env


def begin(env: dict[str, str]) -> "subprocess.Popen[str]":
    """An export that has written its first table."""
    command = [sys.executable, "manage.py", "export_analytics"]
    process = subprocess.Popen(command, env=env, cwd=configured.BASE_DIR, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("bi_user_conversation_summary")
    return process


def change(env: dict[str, str], sql: str) -> None:
    """Within two seconds, or it fails."""
    if POSTGRESQL:
        with psycopg.connect(env["DATABASE_URL"], options="-c lock_timeout=2s") as live:
            live.execute(sql.encode())
        return
    with closing(sqlite3.connect(env["DATABASE_URL"].removeprefix("sqlite:///"), timeout=2)) as live:
        live.execute(sql)
        live.commit()


@pytest.mark.drill
def test_an_export_that_is_killed_or_finds_the_disk_full_leaves_the_file_as_it_was(service: dict[str, str]) -> None:
    file = Path(service["ANALYTICS_PATH"])
    before = file.read_bytes()
    with begin(service) as killed:
        killed.kill()
    assert file.read_bytes() == before

    command = [sys.executable, "manage.py", "export_analytics"]
    small = (200_000, 200_000)  # bytes of a file
    full = subprocess.run(
        command,
        env=service,
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, small),
        check=False,
    )
    assert full.returncode == 1
    assert f"Nothing was exported, and {file} is as it was" in full.stderr
    assert "Traceback" not in full.stderr
    assert file.read_bytes() == before

    assert python(service, "manage.py", "export_analytics").returncode == 0
    assert sorted(path.name for path in file.parent.iterdir()) == [".analytics.db.lock", "analytics.db"]


@pytest.mark.drill
def test_it_shows_one_moment_and_holds_up_nobody_who_writes(service: dict[str, str]) -> None:
    with begin(service) as exporting:
        exporting.send_signal(signal.SIGSTOP)
        try:
            change(service, "UPDATE messages SET content = 'Changed' WHERE sequence = 3000")
            change(service, "UPDATE messages SET content = '' WHERE sequence = 1")
        finally:
            exporting.send_signal(signal.SIGCONT)
        assert exporting.wait(60) == 0
    characters = "SELECT sum(characters) FROM bi_conversation_threads"
    assert read(Path(service["ANALYTICS_PATH"]), characters) == [(6000,)]
    manage(service, "export_analytics")
    assert read(Path(service["ANALYTICS_PATH"]), characters) == [(6000 + 5 - 2,)]


# What it refuses


@committed
def test_it_takes_the_place_of_no_other_file(tmp_path: Path, kept_key: Path) -> None:
    other = tmp_path / "chat.db"
    with closing(sqlite3.connect(other)) as made:
        made.execute("CREATE TABLE messages (id TEXT)")
        made.execute("CREATE TABLE bi_export (exported_at TEXT)")
        made.commit()
    text = tmp_path / "notes.txt"
    text.write_text("Not a database, and dear to somebody. " * 40)
    for file in (other, text):
        before = file.read_bytes()
        with pytest.raises(CommandError, match="is no earlier export"):
            call_command("export_analytics", to=file)
        assert file.read_bytes() == before
    if connection.vendor == "sqlite":
        with pytest.raises(CommandError, match="is no earlier export"):
            call_command("export_analytics", to=Path(connection.settings_dict["NAME"]))


@committed
def test_two_exports_to_one_file_don_t_run_at_once(export: Callable[[], Path], tmp_path: Path) -> None:
    with (tmp_path / ".analytics.db.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CommandError, match="Another export to .* is under way"):
            export()
    assert export().exists()


@committed
def test_a_key_that_can_t_be_kept_and_a_database_without_views_are_told(
    export: Callable[[], Path], kept_key: Path
) -> None:
    kept_key.write_text("short")
    with pytest.raises(CommandError, match=r"ANALYTICS_HASH_KEY isn't set, and none can be kept in .*analytics-key"):
        export()
    kept_key.unlink()
    with connection.cursor() as cursor:
        cursor.execute("DROP VIEW v_daily_activity")
    try:
        with pytest.raises(CommandError, match="lacks the views that are exported. Run: manage.py migrate"):
            export()
    finally:
        call_command("migrate", verbosity=0)
    assert export().exists()


@pytest.mark.drill
def test_production_refuses_a_key_that_can_be_guessed_and_a_path_that_is_the_database_s(tmp_path: Path) -> None:
    env = environment(tmp_path, "http://127.0.0.1:9", 9)
    for name, value, sentence in (
        ("ANALYTICS_HASH_KEY", "short", "ANALYTICS_HASH_KEY is shorter than 32 bytes"),
        ("ANALYTICS_HASH_KEY", "changeme" * 5, "ANALYTICS_HASH_KEY can be guessed"),
        ("ANALYTICS_PATH", f"{tmp_path}/chat.db", "ANALYTICS_PATH must be a file of its own"),
    ):
        run = python({**env, name: value}, "manage.py", "check")
        assert run.returncode == 1, run.stdout
        assert sentence in run.stderr
