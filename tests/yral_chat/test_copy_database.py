"""manage.py copy_database, between real databases of the test's own."""

import datetime as dt
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from axes.models import AccessAttempt, AccessAttemptExpiration, AccessFailureLog, AccessLog
from django.apps import apps
from django.conf import settings as configured
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.models import Session
from django.db import connections

from conversations.models import (
    AlternativeAnswer,
    Conversation,
    Message,
    PromptText,
    Reading,
    SampleMessage,
    SampleResult,
    SampleRun,
    Turn,
)
from media_uploads.models import MediaUpload
from personas.models import Influencer, PersonaDay, PersonaVersion
from tests.servers import POSTGRESQL, environment, manage, on_postgresql, rows
from yral_chat import replication
from yral_chat.settings import database

pytestmark = pytest.mark.drill

ODD = "नमस्ते 👩🏽‍🚀 “quoted” 100% %s \\ \t\r\n 'it''s' שלום \u200d end "
ODD_JSON = {
    "देवी": ["👍", None, True, False, "", {}, []],
    "numbers": [0, -1, 2**53, 0.1, -2.5e-7, 1e22, 1.0, 12345678901234567890],
    "escapes": 'a "b" \\u0041 \\ / \u2028 \x7f',
}
LONG_AGO = dt.datetime(2021, 3, 4, 5, 6, 7, 123457, tzinfo=dt.UTC)
ROUND = dt.datetime(2026, 10, 25, 2, 30, tzinfo=dt.UTC)  # without microseconds, in an hour that clocks repeat

# The cast: databases with a row of everything


@contextmanager
def opened(url: str) -> Iterator[str]:
    """The alias under which the ORM knows it for a while."""
    alias = f"copied_{uuid.uuid4().hex}"
    config = database(url, "the test's")
    config["OPTIONS"].pop("pool", None)
    connections.settings[alias] = connections.configure_settings({"default": config})["default"]
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


def fill(alias: str) -> None:
    def make(model: Any, **fields: Any) -> Any:
        return model.objects.using(alias).create(**fields)

    user = make(User, id=1007, username="रूट", password="pbkdf2$…", email="", last_login=LONG_AGO, is_staff=True)
    user.groups.set(Group.objects.using(alias).all())
    user.user_permissions.set(Permission.objects.using(alias).all()[:3])
    kind = ContentType.objects.using(alias).get(app_label="personas", model="influencer")
    make(LogEntry, user=user, content_type=kind, object_id="x", object_repr=ODD, action_flag=2, change_message="[]")
    make(Session, session_key="B-key", session_data="abc:def", expire_date=LONG_AGO)
    make(Session, session_key="a-key", session_data="", expire_date=ROUND)
    tried = {"user_agent": "curl", "username": "रूट", "path_info": "/admin/", "http_accept": "*/*"}
    make(AccessLog, ip_address="2001:db8::7", **tried)
    make(AccessFailureLog, ip_address="203.0.113.9", **tried)
    attempt = make(AccessAttempt, ip_address=None, get_data="", post_data="", failures_since_start=3, **tried)
    make(AccessAttemptExpiration, access_attempt=attempt, expires_at=ROUND)
    persona = make(
        Influencer,
        id="देवी-1",
        name="devi",
        display_name="देवी 🌸",
        system_instructions=ODD,
        personality_traits=ODD_JSON,
        suggested_messages=[ODD, "B"],
        temperature=0.1 + 0.2,
        created_at=ROUND,
        metadata={},
    )
    Influencer.objects.using(alias).update(updated_at=LONG_AGO)
    published = {"number": 1, "change_note": ODD, "published_at": LONG_AGO, "published_by": user, "author": user}
    for state in (published, {"based_on": 1, "created_at": ROUND}):
        PersonaVersion(influencer=persona, saved_at=ROUND, **state).take(persona.content).save(using=alias)
    make(MediaUpload, owner_id="alice", storage_key="a/Б.jpg", kind="image", size=3, mime_type="image/jpeg", sha256="0")
    talk = make(
        Conversation,
        user_id="ålice",
        influencer=persona,
        created_at=LONG_AGO,
        updated_at=ROUND,
        message_count=3,
        metadata=ODD_JSON,
        running_question=uuid.uuid4(),
        running_token=uuid.uuid4(),
        running_until=LONG_AGO,
    )
    said: list[Message] = []
    for number, text in enumerate((ODD, "", "Z" * 70_000), 1):
        answers = number == 2
        said.append(
            make(
                Message,
                conversation=talk,
                sequence=number,
                role="assistant" if answers else "user",
                content=text,
                created_at=LONG_AGO + dt.timedelta(microseconds=number),
                in_reply_to=said[0] if answers else None,
                media_urls=["/media/a/Б.jpg"] if answers else [],
                audio_url="" if answers else None,
                audio_duration_seconds=300 if answers else None,
                blocked=answers,
                metadata=ODD_JSON,
            )
        )
    make(PromptText, id="f" * 64, text=ODD, conversation=talk, created_at=LONG_AGO)
    make(PromptText, id="A" * 64, text=ODD, created_at=ROUND)
    spent = {"cost_usd": Decimal("123456.00000001"), "events_before": 2**62, "event_ends": [1, 2, 3], "sent": ODD_JSON}
    make(Turn, question=said[0], conversation=talk, state="done", idempotency_key=ODD, created_at=LONG_AGO, **spent)
    make(Turn, question=said[2], conversation=talk, state="pending", cost_usd=None, watched_until=ROUND)
    make(PersonaDay, influencer=persona, day=LONG_AGO.date(), tokens=2**40)
    why = {"purpose": "other", "reason": ODD, "address": "2001:db8::1", "created_at": LONG_AGO, "valid_until": ROUND}
    make(Reading, reader=user, user_id="ålice", conversation_id=talk.pk, persona=ODD[:50], **why)
    sample = make(SampleMessage, influencer=persona, message=ODD, expectations=[ODD_JSON], created_at=LONG_AGO)
    version = PersonaVersion.objects.using(alias).first()
    tests = make(SampleRun, version=version, content=ODD_JSON, started_by=user, started_at=ROUND)
    judged = {"state": "red", "asked_at": LONG_AGO, "seconds": 0.1, "cost_usd": Decimal("0.000001"), "tokens": 7}
    make(SampleResult, run=tests, sample=sample, place=1, message=ODD, answer=ODD, judgements=[ODD_JSON], **judged)
    make(AlternativeAnswer, id=uuid.uuid4(), conversation=talk, question=said[0], content=ODD, created_at=LONG_AGO)


def everything(url: str) -> dict[str, list[Any]]:
    """All rows, as Python has them."""
    with opened(url) as alias:
        return {
            model._meta.db_table: sorted(
                model._base_manager.using(alias).order_by().values_list("pk", *names_of(model)),
                key=lambda row: str(row[0]),
            )
            for model in apps.get_models(include_auto_created=True)
        }


def names_of(model: Any) -> list[str]:
    return [field.attname for field in model._meta.concrete_fields]


@pytest.fixture(autouse=True)
def _databases_may_be_used(django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, django_db_blocker: Any) -> str:
    """A SQLite database with a row of everything; nobody changes it."""
    folder = tmp_path_factory.mktemp("source")
    url = f"sqlite:///{folder}/chat.db"
    migrated(url, folder)
    with django_db_blocker.unblock(), opened(url) as alias:
        fill(alias)
    return url


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """An empty database of a kind."""
    with ExitStack() as made:

        def make(kind: str) -> str:
            if kind == "sqlite":
                return f"sqlite:///{tmp_path}/new.db"
            if not POSTGRESQL:
                pytest.skip("TEST_DATABASE_URL names no PostgreSQL: nothing was copied from or to one.")
            return made.enter_context(on_postgresql())

        yield make


def migrated(url: str, folder: Path) -> str:
    manage(environment(folder, "http://127.0.0.1:9", 9, DATABASE_URL=url), "migrate", "--verbosity", "0")
    return url


def copy(source: str, target: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", "copy_database", "--from", source, "--to", target],
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(source: str, target: str) -> str:
    """What it says."""
    run = copy(source, target)
    assert run.returncode == 1, run.stdout
    assert "Traceback" not in run.stderr
    assert "Copied" not in run.stdout
    return run.stderr


on_each = pytest.mark.parametrize(
    "kind", [pytest.param("sqlite", marks=pytest.mark.own_database), pytest.param("postgresql")]
)


@on_each
def test_every_row_arrives_as_it_was(kind: str, source: str, new: Callable[[str], str]) -> None:
    target = new(kind)
    there = everything(source)
    assert all(there.values()), "the test has a row of everything"

    run = copy(source, target)

    assert run.returncode == 0, run.stderr
    assert everything(target) == there
    for table, rows_of_it in there.items():
        assert any(line.split()[:3] == [table, str(len(rows_of_it)), "rows"] for line in run.stdout.splitlines()), table
    assert f"Copied {sum(map(len, there.values()))} rows" in run.stdout
    with opened(target) as alias:
        assert User.objects.using(alias).create(username="the next").pk > 1007, "new ids go on after the copied ones"


def test_it_goes_from_postgresql_back_to_sqlite(source: str, new: Callable[[str], str]) -> None:
    between, back = new("postgresql"), new("sqlite")

    assert copy(source, between).returncode == 0
    assert copy(between, back).returncode == 0

    assert everything(back) == everything(source)


SPOILED = {
    "sqlite": [
        "CREATE TRIGGER spoil AFTER INSERT ON messages WHEN NEW.sequence = 3 BEGIN"
        " UPDATE messages SET created_at = '2021-03-04 05:06:07.123461' WHERE id = NEW.id; END"
    ],
    "postgresql": [
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.content = rtrim(NEW.content); RETURN NEW; END $$",
        "CREATE TRIGGER spoil BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION spoil()",
    ],
}


@on_each
def test_a_copy_that_arrives_changed_is_noticed_and_leaves_nothing(
    kind: str, source: str, new: Callable[[str], str], tmp_path: Path
) -> None:
    target = migrated(new(kind), tmp_path)
    with opened(target) as alias, connections[alias].cursor() as cursor:
        for statement in SPOILED[kind]:
            cursor.execute(statement)

    assert "messages arrived changed: 3 rows" in refused(source, target)

    assert not any(everything(target)[table] for table in ("messages", "conversations", "auth_user", "ai_influencers"))


@pytest.mark.own_database
def test_a_row_that_gets_lost_is_noticed(source: str, new: Callable[[str], str], tmp_path: Path) -> None:
    target = migrated(new("sqlite"), tmp_path)
    with opened(target) as alias, connections[alias].cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER lose BEFORE INSERT ON django_session WHEN NEW.session_key = 'a-key'"
            " BEGIN SELECT RAISE(IGNORE); END"
        )

    assert "django_session arrived changed: 2 rows" in refused(source, target)


def test_what_postgresql_cannot_hold_stops_it_and_leaves_nothing(
    source: str, new: Callable[[str], str], tmp_path: Path
) -> None:
    target, odd = new("postgresql"), f"sqlite:///{tmp_path}/odd.db"
    assert copy(source, odd).returncode == 0
    with opened(odd) as alias:
        Message.objects.using(alias).filter(sequence=3).update(content="a secret\x00")

    said = refused(odd, target)

    assert "messages can't be copied" in said
    assert "NUL" in said
    assert "secret" not in said
    assert not everything(target)["ai_influencers"]


@pytest.mark.own_database
def test_it_copies_no_file_that_a_service_has_open(source: str, tmp_path: Path) -> None:
    """What is written meanwhile wouldn't be in the copy."""
    target, file = f"sqlite:///{tmp_path}/new.db", Path(source.removeprefix("sqlite:///"))
    with opened(source) as alias:
        assert User.objects.using(alias).exists()
        said = refused(source, target)
    assert f"Another process has {file} open. Stop it first." in said
    assert "isn't copied" in said
    held = replication.hold(file)
    assert f"Another service runs on {file}. Stop it first." in refused(source, target)
    os.close(held)
    assert copy(source, target).returncode == 0
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600
    assert "the same database" in refused(target, target)


@pytest.mark.own_database
def test_what_cannot_be_decoded_stops_it_and_is_not_shown(source: str, tmp_path: Path) -> None:
    odd = f"sqlite:///{tmp_path}/odd.db"
    assert copy(source, odd).returncode == 0
    with opened(odd) as alias, connections[alias].cursor() as cursor:
        cursor.execute("UPDATE messages SET content = CAST(x'6120736563726574ff' AS TEXT) WHERE sequence = 3")

    said = refused(odd, f"sqlite:///{tmp_path}/new.db")

    assert "messages can't be copied: Could not decode" in said
    assert "a secret" not in said


@pytest.mark.own_database
def test_it_mixes_nothing(source: str, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/target.db"
    strange = f"sqlite:///{tmp_path}/strange.db"
    assert copy(source, target).returncode == 0
    there = everything(target)
    with opened(strange) as alias, connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE accounts (id int)")

    assert "The target isn't empty: it has django_admin_log" in refused(source, target)
    assert "The target isn't empty: it has accounts." in refused(source, strange)
    assert "isn't migrated" in refused(strange, f"sqlite:///{tmp_path}/new.db")

    assert everything(target) == there
    assert rows(strange, "SELECT name FROM sqlite_master") == [("accounts",)]


@pytest.mark.own_database
def test_it_says_what_is_wrong_with_an_address(source: str, tmp_path: Path) -> None:
    nobody = f"sqlite:///{tmp_path}/nobody.db"

    assert "There is no file" in refused(nobody, f"sqlite:///{tmp_path}/new.db")
    assert "--to must look like" in refused(source, "mysql://somewhere/chat")
    assert "Nothing was copied: connection" in refused(source, "postgres://user:hidden@127.0.0.1:9/chat")
    assert not list(tmp_path.iterdir())
