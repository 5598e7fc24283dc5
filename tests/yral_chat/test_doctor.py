"""manage.py doctor, as an operator runs it: a process of its own, against whatever is broken."""

import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from media_uploads.models import MediaUpload
from tests.fake_gemini import FakeGemini, fails
from tests.servers import API_KEY, JWT_SECRET, SECRET, environment, free_port, manage, python, running_redis
from tests.yral_chat.test_commands import printed
from tests.yral_chat.test_house import read_from_the_environment
from yral_chat import dependencies, diagnosis

pytestmark = [pytest.mark.own_database, pytest.mark.drill]


def doctor(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Its exit status and all that it said."""
    run = python(env, "manage.py", "doctor", *arguments)
    said = run.stdout + run.stderr
    assert "Traceback" not in said
    for secret in (SECRET, JWT_SECRET, API_KEY, "Pw-canary-1"):
        assert secret not in said
    return run.returncode, said


def with_bucket(env: dict[str, str], address: str, key: str = "a-key") -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": key, "AWS_S3_BUCKET": "media"}
    return {**env, "USE_S3": "true", **keys, "S3_ENDPOINT_URL": address}


def wrong(said: str) -> dict[str, str]:
    """What each of the checks that failed says."""
    lines = [line.removeprefix("WRONG  ").partition(": ") for line in said.splitlines() if line.startswith("WRONG")]
    return {name: sentence for name, _, sentence in lines}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    manage(environment(folder, "http://127.0.0.1:9", 9), "migrate", "--verbosity", "0")
    return folder / "chat.db"


@pytest.fixture
def env(migrated: Path, tmp_path: Path, gemini: FakeGemini) -> dict[str, str]:
    """A production that works."""
    with closing(sqlite3.connect(migrated)) as source, closing(sqlite3.connect(tmp_path / "chat.db")) as copy:
        source.backup(copy)
    return environment(tmp_path, gemini.url, 9, MEDIA_UPLOAD_DIR=f"{tmp_path}/uploads")


def test_all_is_well_and_nothing_is_left_behind(env: dict[str, str], tmp_path: Path, gemini: FakeGemini) -> None:
    status, said = doctor(env)

    assert (status, wrong(said)) == (0, {}), said
    assert "All 9 are well." in said
    assert gemini.requests == [], "the model wasn't asked"
    assert list((tmp_path / "uploads").rglob("*")) == []
    with closing(sqlite3.connect(tmp_path / "chat.db")) as database:
        assert database.execute("SELECT COUNT(*) FROM django_session").fetchone() == (0,)


def test_the_configuration_is_shown_without_its_secrets(env: dict[str, str]) -> None:
    changed = {
        "DATABASE_URL": env["DATABASE_URL"],
        "CACHE_URL": "rediss://user:Pw-canary-1@127.0.0.1:1/0?password=Pw-canary-1",
        "WHISPER_BASE_URL": "https://user:Pw-canary-1@whisper.example/v1",
    }
    _, said = doctor({**env, **changed})
    shown = dict(line.split(maxsplit=1) for line in said.partition("\n\n")[0].splitlines())

    assert shown["SECRET_KEY"] == f"set ({len(SECRET)} characters)"
    assert shown["GEMINI_API_KEY"] == f"set ({len(API_KEY)} characters)"
    assert shown["WHISPER_API_KEY"] == "not set"
    assert shown["CACHE_URL"] == "rediss://***@127.0.0.1:1/0?***"
    assert shown["WHISPER_BASE_URL"] == "https://***@whisper.example/v1"
    assert shown["GEMINI_MAX_TOKENS"] == "2048"
    assert shown["ALLOWED_HOSTS"] == "127.0.0.1"
    assert shown["ENVIRONMENT"] == "production"
    assert shown["HSTS_SECONDS"] == "31536000"
    assert shown["DATABASE_PATH"] == "data/yral_chat.db"
    assert shown["LOG_FILE"] == "not set"
    assert set(shown) == read_from_the_environment(), "each variable, and nothing else"


def test_a_password_of_a_bucket_s_address_is_not_shown(env: dict[str, str]) -> None:
    status, said = doctor(with_bucket(env, f"http://user:Pw-canary-1@127.0.0.1:{free_port()}"))

    assert status == 1
    assert set(wrong(said)) == {"Media"}


def test_a_replica_that_is_not_there_is_wrong(env: dict[str, str], tmp_path: Path) -> None:
    status, said = doctor({**env, "REPLICA_PATH": str(tmp_path / "replica")})

    assert status == 1
    assert set(wrong(said)) == {"Replica"}
    assert "Check REPLICA_PATH" in wrong(said)["Replica"]

    (tmp_path / "replica").mkdir()
    (tmp_path / "replica" / "0001.ltx").touch()
    assert doctor({**env, "REPLICA_PATH": str(tmp_path / "replica")})[0] == 0


def test_a_check_that_crashes_is_wrong_and_the_others_go_on(
    db: None, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.CACHE_URL = "redis://h:port/0"
    settings.CACHES = {"default": {"BACKEND": "no.such.Cache:Pw-canary-1"}}
    settings.MEDIA_UPLOAD_DIR = tmp_path
    settings.STORAGES = dict(settings.STORAGES)

    with pytest.raises(CommandError, match="wrong: .*Cache, .*Rate limits"):
        call_command("doctor")
    said = capsys.readouterr().out
    assert "WRONG  Cache: it can't be tried" in said
    assert "ok     Token keys" in said
    assert "Pw-canary-1" not in said


def test_no_proxy_in_production_is_mentioned(env: dict[str, str]) -> None:
    assert "TRUSTED_PROXIES is empty" in doctor(env)[1]
    assert "TRUSTED_PROXIES is empty" not in doctor({**env, "TRUSTED_PROXIES": "10.0.0.1"})[1]


def test_a_password_of_the_database_is_not_shown(env: dict[str, str]) -> None:
    url = f"postgres://user:Pw-canary-1@127.0.0.1:{free_port()}/chat"
    status, said = doctor({**env, "DATABASE_URL": url})

    assert status == 1
    assert set(wrong(said)) == {"Database", "Migrations"}
    assert "Look whether the server" in wrong(said)["Database"]


def test_pending_migrations_are_wrong(env: dict[str, str], tmp_path: Path) -> None:
    status, said = doctor({**env, "DATABASE_URL": f"sqlite:///{tmp_path}/new.db"})

    assert status == 1
    assert set(wrong(said)) == {"Database", "Migrations"}
    assert "Run: manage.py migrate" in wrong(said)["Migrations"]
    assert "Run: manage.py migrate" in wrong(said)["Database"]
    assert "CommandError: 2 of 9 are wrong: Database, Migrations." in said


def test_a_damaged_database_is_wrong(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "chat.db").write_text("This is no database. " * 500)

    status, said = doctor(env)
    assert status == 1
    assert "restore a backup" in wrong(said)["Database"]


def test_a_database_in_no_place_to_write_is_wrong(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "chat.db").unlink()
    (tmp_path / "chat.db").symlink_to(tmp_path / "nowhere" / "chat.db")

    status, said = doctor(env)
    assert status == 1
    assert "to its folder" in wrong(said)["Database"]


def test_a_full_disk_is_wrong(migrated: Path, db: None, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    monkeypatch.setattr(dependencies, "LEAST_FREE_BYTES", 2**62)
    monkeypatch.setattr(dependencies, "LEAST_FREE", 2.0)
    settings.MEDIA_UPLOAD_DIR = migrated.parent / "uploads"
    settings.STORAGES = dict(settings.STORAGES)

    with pytest.raises(CommandError, match="wrong:.* Media"):
        call_command("doctor")
    settings.USE_S3 = False
    assert not MediaUpload.objects.exists()


def test_a_small_disk_is_as_full_as_health_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "LEAST_FREE_BYTES", 2**62)  # more than it has
    monkeypatch.setattr(dependencies, "LEAST_FREE", 0.0)

    assert diagnosis.enough_space(tmp_path).endswith("GB free")
    assert dependencies.disk_health()["status"] == "up"


def test_settings_that_cannot_work_together_are_wrong(env: dict[str, str]) -> None:
    status, said = doctor({**env, "JWT_SECRET_KEY": SECRET})

    assert status == 1
    assert "Make two secrets" in wrong(said)["Settings"]


def test_a_value_that_cannot_be_used_is_told_as_at_a_start(env: dict[str, str]) -> None:
    status, said = doctor({**env, "RATE_LIMIT_PER_HOUR": "many"})

    assert (status, said) == (1, "Yral AI Chat can't start: RATE_LIMIT_PER_HOUR must be a number.\n")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    with running_redis(tmp_path) as address:
        yield address


def test_a_cache_is_written_and_read(env: dict[str, str], redis: str) -> None:
    status, said = doctor({**env, "CACHE_URL": redis})

    assert status == 0, said
    assert "ok     Cache: written and read" in said
    assert "ok     Rate limits: counted in CACHE_URL" in said


def test_a_cache_that_is_down_is_wrong_and_so_is_what_counts_there(env: dict[str, str]) -> None:
    status, said = doctor({**env, "CACHE_URL": f"redis://:Pw-canary-1@127.0.0.1:{free_port()}/0"})

    assert status == 1
    assert set(wrong(said)) == {"Cache", "Rate limits"}
    assert "Check that CACHE_URL's server runs" in wrong(said)["Cache"]


def test_a_folder_of_uploads_that_is_none_is_wrong(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "uploads").write_text("a file")

    status, said = doctor(env)
    assert status == 1
    assert set(wrong(said)) == {"Media"}
    assert "may write to MEDIA_UPLOAD_DIR" in wrong(said)["Media"]


def test_a_bucket_that_does_not_answer_is_wrong(env: dict[str, str]) -> None:
    status, said = doctor(with_bucket(env, f"http://127.0.0.1:{free_port()}", "Pw-canary-1"))

    assert status == 1
    assert set(wrong(said)) == {"Media"}
    assert "Check the AWS_… and S3_… variables" in wrong(said)["Media"]


def test_a_model_that_cannot_be_reached_is_wrong(env: dict[str, str]) -> None:
    status, said = doctor({**env, "GEMINI_BASE_URL": f"http://user:Pw-canary-1@127.0.0.1:{free_port()}"})

    assert status == 1
    assert set(wrong(said)) == {"Model"}
    assert "Check GEMINI_BASE_URL" in wrong(said)["Model"]


def test_the_model_is_asked_once_if_that_is_wanted(env: dict[str, str], gemini: FakeGemini) -> None:
    status, said = doctor(env, "--model")

    assert status == 0, said
    assert "ok     Model's answer: gemini-2.5-flash answered in" in said
    assert len(gemini.requests) == 1


def test_a_model_that_refuses_the_key_is_wrong(env: dict[str, str], gemini: FakeGemini) -> None:
    gemini.will(fails(403, "API key not valid."))
    status, said = doctor(env, "--model")

    assert status == 1
    assert set(wrong(said)) == {"Model's answer"}
    assert "Check GEMINI_API_KEY" in wrong(said)["Model's answer"]


def test_counters_that_cannot_be_written_are_wrong(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "rate_limits.db").mkdir()

    status, said = doctor(env)
    assert status == 1
    assert set(wrong(said)) == {"Rate limits"}
    assert "Nobody is limited" in wrong(said)["Rate limits"]


def test_a_key_server_that_does_not_answer_is_wrong(env: dict[str, str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://user:Pw-canary-1@127.0.0.1:{closed.getsockname()[1]}/jwks.json"
        status, said = doctor({**env, "JWT_ALGORITHM": "RS256", "JWT_SECRET_KEY": "", "JWT_JWKS_URL": url})

    assert status == 1
    assert set(wrong(said)) == {"Token keys"}
    assert "Check it" in wrong(said)["Token keys"]


@pytest.mark.django_db
def test_limits_that_are_off_are_said_to_be(settings: Any, tmp_path: Path) -> None:
    settings.MEDIA_UPLOAD_DIR = tmp_path
    settings.STORAGES = dict(settings.STORAGES)
    settings.RATE_LIMIT_PER_MINUTE = settings.RATE_LIMIT_PER_HOUR = settings.RATE_LIMIT_MODEL_PER_MINUTE = 0

    assert "ok     Rate limits: all limits are off" in printed("doctor")
