"""A service that can't work doesn't start: it says why, in one sentence, and shows no secret."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.conf import settings as configured

# Recognisable, so that a message that shows one is found out.
SECRET = "Qx7-canary-secret-canary-secret-canary-42"
JWT_SECRET = "Zk9-canary-jwt-secret-canary-jwt-secret-7"
API_KEY = "AIza-canary-api-key"


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    """A production that works."""
    return {
        "ENV_FILE": "",
        "ENVIRONMENT": "production",
        "SECRET_KEY": SECRET,
        "JWT_SECRET_KEY": JWT_SECRET,
        "GEMINI_API_KEY": API_KEY,
        "ALLOWED_HOSTS": "chat.example",
        "DATABASE_URL": f"sqlite:///{tmp_path}/chat.db",
    }


def python(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """With nothing in the environment but `env`."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**clean, **env},
        cwd=configured.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def manage(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return python("manage.py", *arguments, env=env)


def shown(name: str, env: dict[str, str]) -> str:
    """The repr of a setting as a service with this environment has it."""
    run = python("-c", f"from yral_chat import settings; print(repr(settings.{name}))", env=env)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def assert_stops(env: dict[str, str], *words: str, secrets: tuple[str, ...] = ()) -> None:
    """Non-zero, one sentence with these words in it, and neither a traceback nor a secret anywhere."""
    run = manage("check", env=env)
    assert run.returncode != 0, run.stdout
    said = run.stdout + run.stderr
    assert "Traceback" not in said
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    for word in words:
        assert word in run.stderr, run.stderr
    for secret in (SECRET, JWT_SECRET, API_KEY, *secrets):
        assert secret not in said


def test_a_good_production_starts(good: dict[str, str]) -> None:
    run = manage("check", env=good)

    assert run.returncode == 0, run.stderr
    assert "no issues" in run.stdout
    for secret in (SECRET, JWT_SECRET, API_KEY):
        assert secret not in run.stdout + run.stderr


def test_development_starts_with_nothing_at_all(tmp_path: Path) -> None:
    run = manage("check", env={"ENV_FILE": "", "DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"})

    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["SECRET_KEY", "JWT_SECRET_KEY", "GEMINI_API_KEY", "ALLOWED_HOSTS"])
@pytest.mark.parametrize("value", [None, "  "], ids=["missing", "blank"])
def test_production_needs_it(name: str, value: str | None, good: dict[str, str]) -> None:
    del good[name]

    assert_stops({**good, **({} if value is None else {name: value})}, name)


@pytest.mark.parametrize("name", ["SECRET_KEY", "JWT_SECRET_KEY"])
@pytest.mark.parametrize("around", ["", "  "])
def test_a_short_secret_is_refused_in_production_and_not_shown(name: str, around: str, good: dict[str, str]) -> None:
    short = "short-canary-of-31-bytes-aaaaaa"
    assert len(short) == 31

    assert_stops({**good, name: around + short + around}, name, secrets=(short,))


def test_32_bytes_are_enough_and_counted_as_bytes(good: dict[str, str]) -> None:
    good |= {"SECRET_KEY": "é" * 16, "JWT_SECRET_KEY": "x" * 32}

    assert shown("SECRET_KEY", good) == repr("é" * 16)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", "prod"),
        ("DEBUG", "perhaps"),
        ("PORT", "http"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_THREADS", "0"),
        ("LOG_LEVEL", "loud"),
        ("JWT_ALGORITHM", "none"),
        ("JWT_ALGORITHM", "hs256"),
        ("JWT_LEEWAY", "-1"),
        ("JWT_ISSUER", " , "),
        ("JWT_JWKS_URL", "file:///etc/passwd"),
        ("JWT_JWKS_URL", "auth.example/jwks"),
        ("GEMINI_MAX_TOKENS", "0"),
        ("GEMINI_TEMPERATURE", "3"),
        ("GEMINI_TEMPERATURE", "nan"),
        ("GEMINI_TIMEOUT_SECONDS", "0"),
        ("GEMINI_TIMEOUT_SECONDS", "inf"),
        ("GEMINI_THINKING_BUDGET", "-2"),
        ("GEMINI_BASE_URL", "generativelanguage.example"),
        ("DATABASE_URL", "nonsense"),
        ("DATABASE_URL", "mysql://user:Pw-canary-1@db/chat"),
        ("DATABASE_URL", "postgres://user:Pw-canary-1@db:port/chat"),
        ("DATABASE_URL", "postgres://user:Pw-canary-1@db:5432/"),
        ("DATABASE_URL", "postgres://user:Pw-canary-1@[::1/chat"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_POOL_SIZE", "0"),
    ],
)
def test_a_bad_value_stops_the_start_with_its_name(name: str, value: str, good: dict[str, str]) -> None:
    assert_stops({**good, name: value}, name, secrets=("Pw-canary-1",))


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_a_public_key_algorithm_needs_a_key(algorithm: str, good: dict[str, str]) -> None:
    assert_stops({**good, "JWT_ALGORITHM": algorithm}, "JWT_PUBLIC_KEY", "JWT_JWKS_URL")


def pem(key: Any) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()  # type: ignore[no-any-return]


def refused(env: dict[str, str], *words: str) -> None:
    """By settings.py or by a system check, which has a hint and takes more than a line."""
    run = manage("check", env=env)
    assert run.returncode != 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in run.stderr


def test_a_public_key_that_is_none_is_refused(good: dict[str, str]) -> None:
    refused({**good, "JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": "not a PEM at all"}, "JWT_PUBLIC_KEY")


def test_a_public_key_of_another_kind_is_refused(good: dict[str, str]) -> None:
    elliptic = pem(ec.generate_private_key(ec.SECP256R1()))

    refused({**good, "JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": elliptic}, "JWT_PUBLIC_KEY")


def test_a_private_key_for_a_public_one_is_refused_and_not_shown(good: dict[str, str]) -> None:
    private = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    ).decode()  # fmt: skip
    run = manage("check", env={**good, "JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": private})

    assert run.returncode != 0
    assert "JWT_PUBLIC_KEY" in run.stderr
    assert private.splitlines()[1] not in run.stdout + run.stderr


def test_key_server_with_a_shared_secret_algorithm_is_refused(good: dict[str, str]) -> None:
    """Every token would be refused: the keys of a key server are public ones."""
    refused({**good, "JWT_JWKS_URL": "https://auth.example/jwks.json"}, "JWT_JWKS_URL")


@pytest.mark.parametrize("escaped", [True, False])
def test_a_pem_may_stand_on_one_line(escaped: bool, good: dict[str, str]) -> None:
    key = pem(rsa.generate_private_key(65537, 2048))
    good |= {"JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": key.replace("\n", "\\n") if escaped else key}
    del good["JWT_SECRET_KEY"]

    assert shown("JWT_PUBLIC_KEY.strip()", good) == repr(key.strip())


# Combinations, by system checks


def test_debug_in_production_is_refused(good: dict[str, str]) -> None:
    assert_stops({**good, "DEBUG": "true"}, "DEBUG")


def test_one_secret_for_both_is_refused_in_production(good: dict[str, str]) -> None:
    refused({**good, "JWT_SECRET_KEY": SECRET}, "yral.E002", "HINT")


def test_any_host_in_production_is_warned_of(good: dict[str, str]) -> None:
    run = manage("check", env={**good, "ALLOWED_HOSTS": "*"})

    assert run.returncode == 0
    assert "yral.W001" in run.stderr


def test_a_public_key_beside_a_key_server_is_warned_of(good: dict[str, str]) -> None:
    key = pem(rsa.generate_private_key(65537, 2048))
    env = {**good, "JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": key, "JWT_JWKS_URL": "https://auth.example/jwks.json"}
    run = manage("check", env=env)

    assert run.returncode == 0
    assert "yral.W002" in run.stderr


# Secrets in files


@pytest.mark.parametrize("name", ["SECRET_KEY", "JWT_SECRET_KEY", "GEMINI_API_KEY"])
def test_a_secret_can_come_from_a_file(name: str, good: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "secret"
    kept.write_text(f"{'f' * 40}\n")
    del good[name]

    assert shown(name, {**good, f"{name}_FILE": str(kept)}) == repr("f" * 40)


def test_the_database_url_can_come_from_a_file(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgres://user:Pw-canary-1@db.example:5432/chat\n")
    good |= {"DATABASE_URL_FILE": str(tmp_path / "url")}
    del good["DATABASE_URL"]

    assert shown("DATABASES['default']['HOST']", good) == "'db.example'"


@pytest.mark.parametrize("trouble", ["missing", "a folder", "not text", "empty"])
def test_a_secret_file_that_cannot_be_used_stops_the_start(trouble: str, good: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "secret"
    if trouble == "a folder":
        kept.mkdir()
    elif trouble == "not text":
        kept.write_bytes(b"\xff\xfe\x80" * 20)
    elif trouble == "empty":
        kept.write_text("\n")
    del good["SECRET_KEY"]

    assert_stops({**good, "SECRET_KEY_FILE": str(kept)}, "SECRET_KEY")


# What the rest turns into


@pytest.mark.parametrize(
    ("given", "name", "expected"),
    [
        ({"JWT_ISSUER": "https://a.example, https://b.example ,"}, "JWT_ISSUER", "['https://a.example', 'https://b.example']"),
        ({}, "JWT_ISSUER", "['https://auth.yral.com']"),
        ({"JWT_AUDIENCE": "one,two"}, "JWT_AUDIENCE", "['one', 'two']"),
        ({}, "JWT_LEEWAY", "30"),
        ({}, "JWT_ALGORITHM", "'HS256'"),
        ({"ALLOWED_HOSTS": " a.example ,b.example"}, "ALLOWED_HOSTS", "['a.example', 'b.example']"),
        ({}, "DEBUG", "False"),
        ({}, "GEMINI_MODEL", "'gemini-2.5-flash'"),
        ({}, "GEMINI_TIMEOUT_SECONDS", "25.0"),
        ({}, "SESSION_COOKIE_SECURE", "True"),
        ({}, "CSRF_COOKIE_SECURE", "True"),
        ({}, "REST_FRAMEWORK['DEFAULT_RENDERER_CLASSES']", "['yral_chat.json.FastJSONRenderer']"),
        ({"PORT": " 9000 "}, "PORT", "9000"),
        ({"PORT": ""}, "PORT", "8000"),
    ],
)  # fmt: skip
def test_a_setting_becomes(given: dict[str, str], name: str, expected: str, good: dict[str, str]) -> None:
    assert shown(name, {**good, **given}) == expected


def test_staging_has_no_secrets_that_everybody_knows(good: dict[str, str]) -> None:
    """Development's defaults stand in the repository: whoever reads it could sign tokens for a staging service."""
    for name in ("SECRET_KEY", "JWT_SECRET_KEY"):
        staging = {**good, "ENVIRONMENT": "staging"}
        del staging[name]
        assert_stops(staging, name)


def test_a_file_of_variables_is_read_and_the_environment_comes_first(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "env").write_text("APP_NAME=From the file\nAPP_VERSION=1.1.1\n")
    env = {**good, "ENV_FILE": str(tmp_path / "env"), "APP_VERSION": "2.2.2"}

    assert shown("APP_NAME", env) == "'From the file'"
    assert shown("APP_VERSION", env) == "'2.2.2'"


def test_the_default_database_can_be_moved_by_path(good: dict[str, str], tmp_path: Path) -> None:
    del good["DATABASE_URL"]
    good["DATABASE_PATH"] = f"{tmp_path}/elsewhere/chat.db"

    assert f"{tmp_path}/elsewhere/chat.db" in shown("DATABASES['default']['NAME']", good)


def test_the_example_file_changes_nothing() -> None:
    """Every line of it shows the default: a copy of it is a service with nothing set."""
    every = (
        "import json; from yral_chat import settings as s; "
        "print(json.dumps({n: repr(getattr(s, n)) for n in dir(s) if n.isupper()}))"
    )
    bare = python("-c", every, env={"ENV_FILE": ""})
    copied = python("-c", every, env={"ENV_FILE": str(configured.BASE_DIR / ".env.example")})

    assert bare.returncode == copied.returncode == 0, copied.stderr
    assert json.loads(bare.stdout) == json.loads(copied.stdout)
