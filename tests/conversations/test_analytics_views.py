"""The views for those who ask the database: what they show, alike on SQLite and PostgreSQL, and later migrations."""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.db import connection
from django.utils import timezone

from conversations.analytics import VIEWS
from conversations.models import Conversation, Message, Turn
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks, says
from tests.servers import POSTGRESQL, environment, manage, on_postgresql, python, rows

NOON = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
_MESSAGES = "total_messages user_messages assistant_messages"
_SPENT = "time_spent_seconds time_spent_minutes time_spent_hours"
PINNED = {
    "v_user_conversation_summary": "user_id bot_id bot_name conversation_id first_message_at last_message_at"
    f" last_seen_at {_SPENT} {_MESSAGES} active_days",
    "v_conversation_threads": "conversation_id user_id bot_id bot_name sequence message_id role message_type content"
    " characters pictures audio_seconds token_count blocked stopped created_at",
    "v_bot_performance": f"bot_id bot_name status category conversations users {_MESSAGES} messages_per_conversation"
    " answered failed blocked stopped total_tokens cost_usd seconds_to_reply first_message_at last_message_at",
    "v_user_engagement": f"user_id conversations {_MESSAGES} first_message_at last_message_at last_seen_at active_days"
    f" {_SPENT}",
    "v_daily_activity": "activity_date active_users new_users active_conversations new_conversations"
    f" {_MESSAGES} failed blocked total_tokens cost_usd",
    "v_recent_activity": f"activity_date bot_id bot_name active_users active_conversations {_MESSAGES} last_message_at",
}
SQLITE_KINDS = {"text": "text", "integer": "integer", "real": "real", "boolean": "integer", "date": "text"}
POSTGRESQL_KINDS = {
    "text": ("text", "character varying"),
    "integer": ("bigint",),
    "real": ("double precision",),
    "boolean": ("boolean",),
    "date": ("date",),
    "timestamp": ("timestamp with time zone",),
}

# The cast


def shown(view: str, **where: Any) -> list[dict[str, Any]]:
    """The rows, with days and times as text of UTC to the second, whatever the database."""
    condition = " AND ".join(f"{name} = %s" for name in where) or "1 = 1"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {view} WHERE {condition}", list(where.values()))
        names = [column[0] for column in cursor.description]
        return [{name: plain(value) for name, value in zip(names, row, strict=True)} for row in cursor.fetchall()]


def plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    if isinstance(value, dt.date):
        return value.isoformat()
    return value[:19] if isinstance(value, str) and value[:2] == "20" else value


@pytest.fixture
def talk(coach: Influencer) -> Callable[..., Conversation]:
    """A conversation in which something was said so many minutes after noon of May 1st: by the user, and where the
    minutes are negative by the persona."""

    def made(*minutes: float, user: str = "alice", influencer: Influencer = coach) -> Conversation:
        found = Conversation.objects.create(user_id=user, influencer=influencer, created_at=NOON)
        for sequence, minute in enumerate(minutes, 1):
            Message.objects.create(
                conversation=found,
                sequence=sequence,
                role="assistant" if minute < 0 else "user",
                content="Hé!" if minute >= 0 else "Namaste",
                created_at=NOON + dt.timedelta(minutes=abs(minute)),
            )
        return found

    return made


asks = pytest.mark.django_db(transaction=True)  # what looks after turns must see them while the model thinks


# What they show


@pytest.mark.django_db
def test_the_views_have_the_columns_that_people_built_on() -> None:
    assert {name: " ".join(view.columns) for name, view in VIEWS.items()} == PINNED
    for name, columns in PINNED.items():
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {name}")
            assert " ".join(column[0] for column in cursor.description) == columns


@asks
def test_a_column_has_the_same_kind_on_both_databases(alice: Api, coach: Influencer) -> None:
    alice.send(alice.open(coach)["id"])
    for name, view in VIEWS.items():
        for column, kind in view.columns.items():
            with connection.cursor() as cursor:
                if connection.vendor == "sqlite":
                    cursor.execute(f"SELECT DISTINCT typeof({column}) FROM {name} WHERE {column} IS NOT NULL")
                    expected = {SQLITE_KINDS.get(kind, "text")}
                    assert {found for (found,) in cursor.fetchall()} <= expected, (name, column)
                else:
                    where = "table_name = %s AND column_name = %s AND table_schema = current_schema()"
                    cursor.execute(f"SELECT data_type FROM information_schema.columns WHERE {where}", [name, column])
                    assert cursor.fetchone()[0] in POSTGRESQL_KINDS[kind], (name, column)


@pytest.mark.django_db
def test_a_conversation_without_a_message_is_summed_up_to_nothing(talk: Callable[..., Conversation]) -> None:
    silent = talk()
    (row,) = shown("v_user_conversation_summary")
    assert (row["user_id"], row["bot_name"], row["conversation_id"]) == ("alice", "Coach Asha", str(silent.pk))
    assert (row["first_message_at"], row["last_message_at"], row["last_seen_at"]) == (None, None, None)
    assert (row["time_spent_seconds"], row["time_spent_minutes"], row["time_spent_hours"]) == (0, 0, 0)
    assert (row["total_messages"], row["user_messages"], row["active_days"]) == (0, 0, 0)
    assert shown("v_conversation_threads") == []
    (user,) = shown("v_user_engagement")
    assert (user["conversations"], user["total_messages"], user["active_days"]) == (1, 0, 0)
    (day,) = shown("v_daily_activity")
    assert (day["activity_date"], day["new_users"], day["new_conversations"]) == ("2026-05-01", 1, 1)
    assert (day["active_users"], day["active_conversations"], day["total_messages"]) == (0, 0, 0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("minutes", "seconds", "by_user", "days", "last_seen"),
    [
        ((0,), 0, 1, 1, "2026-05-01 12:00:00"),
        ((-1,), 0, 0, 1, None),
        ((0, -1.5), 90, 1, 1, "2026-05-01 12:00:00"),
        ((0, -1, 61), 3660, 2, 1, "2026-05-01 13:01:00"),
        ((11 * 60 + 59, -12 * 60), 60, 1, 2, "2026-05-01 23:59:00"),  # over midnight
        ((0, -1, 3 * 1440, -3 * 1440 - 1), 3 * 86400 + 60, 2, 2, "2026-05-04 12:00:00"),
    ],
)
def test_time_spent_is_that_from_the_first_message_to_the_last(
    talk: Callable[..., Conversation], minutes: Any, seconds: int, by_user: int, days: int, last_seen: str | None
) -> None:
    talk(*minutes)
    (row,) = shown("v_user_conversation_summary")
    assert (row["total_messages"], row["user_messages"]) == (len(minutes), by_user)
    assert row["assistant_messages"] == len(minutes) - by_user
    assert row["time_spent_seconds"] == seconds
    assert row["time_spent_minutes"] == round(seconds / 60, 2)
    assert row["time_spent_hours"] == round(seconds / 3600, 2)
    assert (row["active_days"], row["last_seen_at"]) == (days, last_seen)
    (user,) = shown("v_user_engagement")
    assert {name: user[name] for name in user.keys() & row.keys()} == {name: row[name] for name in user.keys() & row}


@asks
def test_a_thread_is_the_whole_conversation_in_its_sequence(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(says("Namaste 👋", tokens=7), blocks())
    assert [alice.send(conversation, text).status_code for text in ("Hi", "Hm")] == [200, 200]
    found = sorted(shown("v_conversation_threads", user_id="alice"), key=lambda row: row["sequence"])
    assert [(row["sequence"], row["role"], row["content"]) for row in found[:4]] == [
        (1, "assistant", "Hi, I'm your coach!"),
        (2, "user", "Hi"),
        (3, "assistant", "Namaste 👋"),
        (4, "user", "Hm"),
    ]
    assert [(row["characters"], row["pictures"], bool(row["blocked"])) for row in found[2:]] == [
        (9, 0, False),
        (2, 0, False),
        (len(found[4]["content"]), 0, True),
    ]
    stored = Message.objects.order_by("sequence")
    assert [uuid.UUID(row["message_id"]) for row in found] == [message.pk for message in stored]
    assert {row["conversation_id"] for row in found} == {str(conversation.pk)}
    assert shown("v_conversation_threads", conversation_id=str(conversation.pk), sequence=3) == [found[2]]


@pytest.mark.django_db
def test_a_persona_s_performance_is_counted_also_where_it_is_retired_or_idle(
    talk: Callable[..., Conversation], make_influencer: Callable[..., Influencer], coach: Influencer
) -> None:
    retired, idle = make_influencer(is_active="discontinued"), make_influencer(is_active="coming_soon")
    talk(0, -1, 2, user="alice")
    talk(user="bob")
    late = talk(1441, influencer=retired)
    question = Message.objects.get(conversation=late)
    Turn.objects.create(question=question, conversation=late, state="failed", total_tokens=40, ms_to_end=9000)
    first = Message.objects.get(conversation__user_id="alice", conversation__influencer=coach, sequence=1)
    Turn.objects.create(
        question=first, conversation=first.conversation, state="done", total_tokens=60, cost_usd="0.25", ms_to_end=1500
    )

    waiting = make_influencer(goes_live_at=timezone.now() + dt.timedelta(hours=1))
    live = make_influencer(goes_live_at=timezone.now() - dt.timedelta(hours=1))
    found = {row["bot_id"]: row for row in shown("v_bot_performance")}

    assert len(found) == 5
    assert (found[waiting.pk]["status"], found[live.pk]["status"]) == ("coming_soon", "active")
    mine = found[coach.pk]
    assert (mine["conversations"], mine["users"], mine["total_messages"], mine["user_messages"]) == (2, 1, 3, 2)
    assert (mine["messages_per_conversation"], mine["answered"], mine["failed"]) == (1.5, 1, 0)
    assert (mine["total_tokens"], mine["cost_usd"], mine["seconds_to_reply"]) == (60, 0.25, 1.5)
    gone = found[retired.pk]
    assert (gone["status"], gone["failed"], gone["seconds_to_reply"], gone["cost_usd"]) == ("discontinued", 1, None, 0)
    assert gone["last_message_at"] == "2026-05-02 12:01:00"
    unasked = found[idle.pk]
    assert (unasked["status"], unasked["conversations"], unasked["total_messages"]) == ("coming_soon", 0, 0)
    assert (unasked["messages_per_conversation"], unasked["last_message_at"]) == (0, None)


@pytest.mark.django_db
def test_engagement_counts_a_day_once_however_many_conversations_it_had(
    talk: Callable[..., Conversation], make_influencer: Callable[..., Influencer]
) -> None:
    talk(0, -10)
    talk(5, -1445, influencer=make_influencer())
    (row,) = shown("v_user_engagement")
    assert (row["conversations"], row["total_messages"], row["user_messages"]) == (2, 4, 2)
    assert (row["active_days"], row["time_spent_seconds"]) == (2, 600 + 1440 * 60)
    assert (row["first_message_at"], row["last_seen_at"]) == ("2026-05-01 12:00:00", "2026-05-01 12:05:00")


@pytest.mark.django_db
def test_days_are_those_of_utc(talk: Callable[..., Conversation], make_influencer: Callable[..., Influencer]) -> None:
    talk(0, -1, 719.99, -720, 721)  # of which two after midnight
    talk(2, influencer=make_influencer())
    talk(-3, user="bob")  # who said nothing
    days = {row["activity_date"]: row for row in shown("v_daily_activity")}
    first, second = days["2026-05-01"], days["2026-05-02"]
    assert (first["total_messages"], first["user_messages"], first["assistant_messages"]) == (5, 3, 2)
    assert (first["active_users"], first["active_conversations"]) == (1, 3)
    assert (first["new_users"], first["new_conversations"]) == (2, 3)
    assert (second["total_messages"], second["active_users"], second["new_users"]) == (2, 1, 0)
    assert len(days) == 2


@pytest.mark.django_db
def test_recent_activity_is_that_of_today_and_the_29_days_before(coach: Influencer) -> None:
    midnight = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0)
    conversation = Conversation.objects.create(user_id="alice", influencer=coach)
    moments = [midnight - dt.timedelta(days=29, microseconds=1), midnight - dt.timedelta(days=29), midnight]
    for sequence, at in enumerate(moments, 1):
        Message.objects.create(conversation=conversation, sequence=sequence, role="user", created_at=at)
    found = sorted(shown("v_recent_activity"), key=lambda row: row["activity_date"])
    assert [row["activity_date"] for row in found] == [moments[1].date().isoformat(), moments[2].date().isoformat()]
    assert {(row["bot_id"], row["active_users"], row["total_messages"]) for row in found} == {(coach.pk, 1, 1)}


@asks
def test_what_was_deleted_is_in_no_view(alice: Api, bob: Api, coach: Influencer) -> None:
    conversation = alice.open(coach)["id"]
    alice.send(conversation)
    alice.delete(f"/api/v1/chat/conversations/{conversation}")
    assert [shown(view) for view in ("v_user_conversation_summary", "v_conversation_threads")] == [[], []]
    assert [shown(view) for view in ("v_user_engagement", "v_daily_activity", "v_recent_activity")] == [[], [], []]
    (row,) = shown("v_bot_performance")
    assert (row["conversations"], row["total_messages"], row["answered"]) == (0, 0, 0)


@pytest.mark.django_db
def test_one_user_s_rows_are_found_without_reading_everybody_s(talk: Callable[..., Conversation]) -> None:
    talk(0, -1)
    for view in ("v_user_conversation_summary", "v_conversation_threads"):
        query = f"SELECT * FROM {view} WHERE user_id = 'alice'"
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute(f"EXPLAIN QUERY PLAN {query}")
                plan = [row[3] for row in cursor.fetchall()]
                assert not [step for step in plan if step.startswith("SCAN") and step != "SCAN summed"], plan
            else:
                cursor.execute("SET LOCAL enable_seqscan = off")
                cursor.execute(f"EXPLAIN {query}")
                plan = [row[0] for row in cursor.fetchall()]
                assert not [step for step in plan if "Seq Scan on messages" in step], plan


# Migrations

LATER = """
from django.db import migrations, models

class Migration(migrations.Migration):
    dependencies = [("{app}", "{last}")]
    operations = [{operations}]
"""
OF_MESSAGES = """
    migrations.AlterField("message", "role", models.CharField(max_length=20)),
    migrations.AlterField("message", "token_count", models.PositiveBigIntegerField(null=True)),
    migrations.AddField("message", "mood", models.CharField(max_length=20, default="calm")),
    migrations.AlterField("turn", "total_tokens", models.PositiveBigIntegerField(default=0)),
    migrations.RemoveField("turn", "watched_until"),
"""
OF_PERSONAS = """migrations.AlterField("influencer", "display_name", models.CharField(max_length=120)),"""
# Its check constraint and index name the removed column; a real migration takes them off first.
WITHOUT = """migrations.RemoveIndex("turn", "turns_signalled"),"""


@pytest.fixture
def own_database(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a migrated database of the suite's kind, in which something was said."""
    with ExitStack() as until_the_end:
        url = until_the_end.enter_context(on_postgresql()) if POSTGRESQL else f"sqlite:///{tmp_path}/chat.db"
        env = environment(tmp_path, "http://127.0.0.1:9", 9, DATABASE_URL=url)
        manage(env, "migrate", "--verbosity", "0")
        said = (
            "from conversations.models import *; from personas.models import Influencer; "
            "i = Influencer.objects.create(name='asha', display_name='Asha', system_instructions='Be kind.'); "
            "c = Conversation.objects.create(user_id='alice', influencer=i); "
            "m = c.add_message(role='user', content='Hi'); "
            "Turn.objects.create(question=m, conversation=c, state='failed', total_tokens=7)"
        )
        manage(env, "shell", "-c", said)
        yield env


@pytest.fixture
def next_release(own_database: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same database, to a release that has one more migration of the messages' app and one of the personas'."""
    later = {"conversations": WITHOUT + OF_MESSAGES, "personas": OF_PERSONAS}
    for app, operations in later.items():
        folder = tmp_path / "later" / app
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        for file in (configured.BASE_DIR / app / "migrations").glob("0*.py"):
            (folder / file.name).write_text(file.read_text())
        last = max(file.stem for file in folder.glob("0*.py"))
        (folder / "9999_later.py").write_text(LATER.format(app=app, last=last, operations=operations))
    modules = {app: f"later.{app}" for app in later}
    (tmp_path / "later_settings.py").write_text(f"from yral_chat.settings import *\nMIGRATION_MODULES = {modules!r}\n")
    return {**own_database, "DJANGO_SETTINGS_MODULE": "later_settings", "PYTHONPATH": str(tmp_path)}


def all_views(env: dict[str, str]) -> dict[str, list[Any]]:
    return {name: rows(env["DATABASE_URL"], f"SELECT * FROM {name}") for name in VIEWS}


def views_there(env: dict[str, str]) -> set[str]:
    sql = (
        "SELECT name FROM sqlite_master WHERE type = 'view'"
        if env["DATABASE_URL"].startswith("sqlite")
        else "SELECT viewname FROM pg_views WHERE schemaname = 'public'"
    )
    return {name for (name,) in rows(env["DATABASE_URL"], sql)}


@pytest.mark.drill
def test_a_later_migration_may_change_what_the_views_read(
    own_database: dict[str, str], next_release: dict[str, str]
) -> None:
    before = all_views(own_database)
    assert len(before["v_conversation_threads"]) == 1

    manage(next_release, "migrate", "--verbosity", "0")
    assert rows(own_database["DATABASE_URL"], "SELECT mood FROM messages") == [("calm",)]
    assert all_views(own_database) == before

    manage(next_release, "migrate", "personas", "0002", "--verbosity", "0")  # half of the way back
    assert views_there(own_database) == set()
    manage(next_release, "migrate", "--verbosity", "0")
    assert all_views(own_database) == before


@pytest.mark.drill
def test_the_views_go_with_their_migration_and_the_next_migrate_makes_what_is_missing_or_was_changed(
    own_database: dict[str, str],
) -> None:
    before = all_views(own_database)
    manage(own_database, "migrate", "conversations", "0003", "--verbosity", "0")
    assert views_there(own_database) == set()
    manage(own_database, "migrate", "--verbosity", "0")
    assert all_views(own_database) == before

    change = (
        "from django.db import connection; c = connection.cursor(); c.execute('DROP VIEW v_daily_activity'); "
        "c.execute('DROP VIEW v_user_engagement'); c.execute('CREATE VIEW v_user_engagement AS SELECT 1 AS one')"
    )
    manage(own_database, "shell", "-c", change)
    manage(own_database, "migrate", "--verbosity", "0")
    assert all_views(own_database) == before


@pytest.mark.drill
def test_a_migration_that_fails_leaves_its_reason_and_the_next_migrate_makes_the_views(
    own_database: dict[str, str], next_release: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "later/conversations/9999_later.py"
    good = file.read_text()
    file.write_text(good.replace("operations = [", 'operations = [migrations.RunSQL("SELECT nothing"),'))
    failed = python(next_release, "manage.py", "migrate", "conversations")
    assert failed.returncode != 0
    assert "nothing" in failed.stderr
    file.write_text(good)
    manage(next_release, "migrate", "--verbosity", "0")
    assert views_there(own_database) == set(VIEWS)


def test_the_service_itself_reads_no_view() -> None:
    """They are missing while `migrate` runs, and the version before still answers then."""
    apps = ("yral_chat", "personas", "media_uploads", "conversations")
    files = [file for app in apps for file in (configured.BASE_DIR / app).rglob("*.py")]
    naming = {file.name for file in files if any(view in file.read_text(encoding="utf-8") for view in VIEWS)}
    assert naming == {"analytics.py", "deidentified.py"}, "the definitions, and the export by a timer"
