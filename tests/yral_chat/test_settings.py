"""A service that can't work doesn't start: it says why, in one sentence, and shows no secret."""

import json
import os
import re
import secrets
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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

from tests import servers
from yral_chat.checks import check_settings
from yral_chat.secret_keys import is_weak, kept

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

# Recognisable, so that a message that shows one is found out.
SECRET = "Qx7-canary-secret-canary-secret-canary-42"
JWT_SECRET = "Zk9-canary-jwt-secret-canary-jwt-secret-7"
API_KEY = "AIza-canary-api-key"
METRICS = "b4f7d1c9-canary-metrics"


@pytest.fixture
def good(tmp_path: Path) -> dict[str, str]:
    """A production that works."""
    return {
        "METRICS_TOKEN": METRICS,
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
    return servers.python({**clean, **env}, *arguments, timeout=60)


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
    assert "ERROR" not in run.stderr
    for secret in (SECRET, JWT_SECRET, API_KEY):
        assert secret not in run.stdout + run.stderr


def test_development_starts_with_nothing_at_all(tmp_path: Path) -> None:
    run = manage("check", env={"ENV_FILE": "", "DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"})

    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["JWT_SECRET_KEY", "GEMINI_API_KEY"])
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
    good |= {"JWT_SECRET_KEY": "k3v9x2m7q4w8z1p6r5t0n3j7h2g9d4f8"}

    assert_stops({**good, "SECRET_KEY": "éàüîñçøåœæßðþħŋ"}, "SECRET_KEY", "32 bytes")
    assert shown("SECRET_KEY", {**good, "SECRET_KEY": "éàüîñçøåœæßðþħŋł"}) == repr("éàüîñçøåœæßðþħŋł")


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
        ("METRICS_TOKEN", "schlüssel-für-die-zahlen"),
        ("JWT_SECRET_KEY", "9f8e7d6c5b4a39281706f5e4d3c2b1a0" + "\udcff"),
        ("APP_NAME", "\udcff"),
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
        ("DATABASE_URL", "sqlite:////tmp"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_POOL_SIZE", "0"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "nginx"),
        ("TRUSTED_PROXIES", "*"),
        ("SCRIPT_NAME", "staging"),
        ("SCRIPT_NAME", "/sta ging"),
        ("SCRIPT_NAME", "//evil.example"),
        ("SCRIPT_NAME", "/../x"),
        ("SCRIPT_NAME", "/api"),
        ("ADMIN_PATH", "api/staff"),
        ("ADMIN_PATH", "/"),
        ("ADMIN_PATH", "staff?x"),
        ("ADMIN_PATH", "<str:x>/"),
        ("ADMIN_PATH", "../admin"),
        ("ADMIN_ALLOWED_NETWORKS", "unix"),
        ("ADMIN_ALLOWED_NETWORKS", "office"),
        ("HSTS_SECONDS", "-1"),
        ("CORS_ORIGINS", "app.example"),
        ("CORS_ORIGINS", "https://app.example/path"),
        ("CORS_ORIGINS", "https://*.example"),
        ("CORS_ORIGINS", "null"),
        ("CORS_ORIGINS", "https://user@app.example"),
        ("CORS_ALLOW_CREDENTIALS", "perhaps"),
        ("CORS_ORIGINS", "https://[::::]"),
        ("CORS_ORIGINS", "https://a:99999"),
        ("MEDIA_BASE_URL", "chat.example/media"),
        ("MEDIA_BASE_URL", "https://[::1/media"),
        ("MEDIA_BASE_URL", "https://h:port/media"),
        ("MEDIA_BASE_URL", "https://h/media?x=1"),
        ("MEDIA_BASE_URL", "http://h; script-src */m"),
        ("MEDIA_BASE_URL", "http://h/m;script-src"),
        ("MEDIA_BASE_URL", "http://h/m,http://evil.example"),
        ("GEMINI_BASE_URL", "https://[::1"),
        ("GEMINI_BASE_URL", "https://"),
        ("GEMINI_BASE_URL", "http://h:port"),
        ("GEMINI_BASE_URL", "http://999.1.1.1"),
        ("WHISPER_BASE_URL", "http://[::1"),
        ("LITESTREAM_ENDPOINT", "https://h:port"),
        ("LITESTREAM_PATH", "chat//production"),
        ("LITESTREAM_PATH", "../chat"),
        ("LITESTREAM_PATH", "chat/./production"),
        ("LITESTREAM_BUCKET", "Bad Bucket!"),
        ("S3_ENDPOINT_URL", "https://h:0"),
        ("S3_ENDPOINT", "https://h:port"),
        ("S3_PUBLIC_URL_BASE", "cdn.example"),
        ("JWT_JWKS_URL", "https://"),
        ("ALLOWED_HOSTS", "https://chat.example"),
        ("ALLOWED_HOSTS", "chat.example:443"),
        ("ALLOWED_HOSTS", "a b"),
        ("ALLOWED_HOSTS", "good.example,*.example"),
        ("ALLOWED_HOSTS", "[::1"),
        ("SCRIPT_NAME", "/admin"),
        ("SCRIPT_NAME", "/admin/x"),
        ("SENTRY_DSN", "https://nokey"),
        ("SENTRY_DSN", "https://Pw-canary-1@h/abc"),
        ("SENTRY_DSN", "https://Pw-canary-1@h:99999/1"),
        ("SENTRY_DSN", "https://"),
        ("SENTRY_DSN", "http://nonsense"),
        ("SENTRY_DSN", "ftp://Pw-canary-1@h/1"),
        ("AWS_REGION", "nope nope"),
        ("AWS_S3_BUCKET", "Bad Bucket!"),
        ("LOG_FILE_FILE", "/nonexistent"),
        ("ENV_FILE", "/nonexistent"),
        ("ENV_FILE", "/tmp"),
        ("HOST", "not a host"),
        ("HOST", "999.1.1.1"),
        ("CACHE_URL", "memcached://h"),
        ("CACHE_URL", "redis://"),
        ("CACHE_URL", "redis://h:port/0"),
        ("CACHE_URL", "redis://[::1/0"),
        ("CACHE_URL", "redis://h:99999/0"),
        ("CACHE_URL", "redis://h/first"),
        ("CACHE_URL", "redis://h/0?bogus=1"),
        ("CACHE_URL", "redis://h/0?socket_timeout=abc"),
        ("CACHE_URL", "rediss://h/0?ssl_cert_reqs=perhaps"),
        ("CACHE_URL", "valkey://:Pw-canary-1/x@h:6379/0"),
        ("CACHE_URL", "redis://:12/Pw-canary-1@h:6379/0"),
        ("CACHE_URL", "unix://"),
        ("RATE_LIMIT_PER_MINUTE", "9" * 23),
        ("RATE_LIMIT_PER_MINUTE", "9" * 5000),
        ("RATE_LIMIT_UPLOAD_PER_MINUTE", "1000000001"),
        ("HSTS_SECONDS", "9" * 20),
        ("USE_WHISPER", "true"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("RATE_LIMIT_PER_HOUR", "many"),
        ("RATE_LIMIT_MODEL_PER_MINUTE", "1.5"),
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


@pytest.mark.parametrize("application", ["yral_chat.wsgi", "yral_chat.asgi"])
def test_the_application_itself_refuses_it_whatever_server_loads_it(application: str, good: dict[str, str]) -> None:
    run = python("-c", f"import {application}", env={**good, "JWT_SECRET_KEY": SECRET})

    assert run.returncode != 0
    assert run.stderr.startswith("Yral AI Chat can't start: SECRET_KEY and JWT_SECRET_KEY are the same.")
    assert len(run.stderr.splitlines()) == 1


def test_any_host_in_production_is_warned_of(good: dict[str, str]) -> None:
    run = manage("check", env={**good, "ALLOWED_HOSTS": "*"})

    assert run.returncode == 0
    assert "yral.W001" in run.stderr


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        ({"METRICS_TOKEN": ""}, "yral.W004"),
        ({"TRUSTED_PROXIES": "10.0.0.1,0.0.0.0/0"}, "yral.W005"),
        ({"TRUSTED_PROXIES": "unix,::/0"}, "yral.W005"),
    ],
)
def test_what_gives_too_much_is_warned_of(given: dict[str, str], warning: str, good: dict[str, str]) -> None:
    run = manage("check", env={**good, **given})

    assert run.returncode == 0
    assert warning in run.stderr
    assert warning not in manage("check", env={**good, "METRICS_ENABLED": "false"}).stderr


def test_static_files_that_are_not_collected_are_warned_of(settings: Any, tmp_path: Path) -> None:
    settings.STATIC_ROOT = tmp_path
    assert not [found for found in check_settings(None) if found.id == "yral.W006"], "development needs none"

    settings.DEVELOPMENT = False
    assert [found for found in check_settings(None) if found.id == "yral.W006"]
    (tmp_path / "admin").mkdir()
    assert not [found for found in check_settings(None) if found.id == "yral.W006"]


def test_a_public_key_beside_a_key_server_is_warned_of(good: dict[str, str]) -> None:
    key = pem(rsa.generate_private_key(65537, 2048))
    env = {**good, "JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY": key, "JWT_JWKS_URL": "https://auth.example/jwks.json"}
    run = manage("check", env=env)

    assert run.returncode == 0
    assert "yral.W002" in run.stderr


# Secrets that can be guessed


@pytest.mark.parametrize(
    "value",
    [
        "development-only-jwt-secret-never-used-in-production",
        "development-only-secret-key-never-used-in-production",
        "x" * 32,
        "ab" * 32,
        "0123456789abcdef0123456789abcdef",
        "your-secret-key-here-at-least-32-characters",
        "your-super-secret-jwt-key-change-in-production",
        "change_me_change_me_change_me_please_1",
        "Password123Password123Password123!",
        "django-insecure-secret-key-change-me-please",
        "qwertyuiopasdfghjklzxcvbnm1234567890",
        "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbcccc",
    ],
)
def test_a_secret_that_can_be_guessed_is_refused_and_not_shown(value: str, good: dict[str, str]) -> None:
    assert_stops({**good, "JWT_SECRET_KEY": value}, "JWT_SECRET_KEY", "guessed", secrets=(value,))


def test_so_it_is_in_staging_and_for_the_other_secret(good: dict[str, str]) -> None:
    weak = "development-only-secret-key-never-used-in-production"

    assert_stops({**good, "ENVIRONMENT": "staging", "SECRET_KEY": weak}, "SECRET_KEY", "guessed", secrets=(weak,))


@pytest.mark.parametrize(
    "make", [lambda: secrets.token_hex(16), lambda: secrets.token_urlsafe(32), lambda: secrets.token_hex(64)]
)
def test_a_random_secret_is_never_taken_for_a_weak_one(make: Callable[[], str]) -> None:
    assert not any(is_weak(make()) for _ in range(2000))


# Two variables are enough


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """A production with two variables; the others only put its files elsewhere."""
    return {
        "ENV_FILE": "",
        "ENVIRONMENT": "production",
        "JWT_SECRET_KEY": JWT_SECRET,
        "GEMINI_API_KEY": API_KEY,
        "DATABASE_PATH": f"{tmp_path}/data/chat.db",
    }


def test_two_variables_start_production(bare: dict[str, str], tmp_path: Path) -> None:
    run = manage("check", env=bare)

    assert run.returncode == 0, run.stderr
    kept = tmp_path / "data" / "secret-key"
    assert kept.stat().st_mode & 0o777 == 0o600
    secret = kept.read_text().strip()
    assert len(secret) >= 64
    assert secret not in run.stdout + run.stderr
    assert shown("SECRET_KEY", bare) == repr(secret), "it is made once"
    assert [path.name for path in kept.parent.glob("*secret*")] == ["secret-key"]
    assert shown("ALLOWED_HOSTS", bare) == "['localhost', '127.0.0.1', '[::1]']"


def test_processes_that_start_at_once_agree_on_the_secret(bare: dict[str, str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: shown("SECRET_KEY", bare), range(8)))) == 1


def test_threads_that_ask_at_the_same_moment_get_one_secret(tmp_path: Path) -> None:
    for n in range(50):
        gate = threading.Barrier(8)

        def ask(n: int = n, gate: threading.Barrier = gate) -> str:
            gate.wait()
            return kept(tmp_path / str(n) / "secret-key")

        with ThreadPoolExecutor(8) as pool:
            assert len({future.result() for future in [pool.submit(ask) for _ in range(8)]}) == 1


def test_with_postgresql_the_secret_is_kept_in_the_data_folder(bare: dict[str, str], tmp_path: Path) -> None:
    env = {**bare, "DATABASE_URL": "postgres://user:password@db.example:5432/chat"}
    run = manage("check", env=env)

    assert run.returncode == 0, run.stderr
    assert "yral.W003" in run.stderr, "it says that several machines need one secret"
    assert shown("SECRET_KEY", env) == repr((tmp_path / "data" / "secret-key").read_text().strip())


@pytest.mark.parametrize("trouble", ["empty", "short", "a folder", "not text"])
def test_a_kept_secret_that_cannot_be_used_stops_the_start(trouble: str, bare: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "data" / "secret-key"
    path.parent.mkdir()
    if trouble == "a folder":
        path.mkdir()
    else:
        path.write_bytes({"empty": b"", "short": b"short-canary\n", "not text": b"\xff" * 50}[trouble])

    assert_stops(bare, "SECRET_KEY", secrets=("short-canary",))


def test_development_keeps_no_secret(tmp_path: Path) -> None:
    run = manage("check", env={"ENV_FILE": "", "DATABASE_PATH": f"{tmp_path}/chat.db"})

    assert run.returncode == 0
    assert not (tmp_path / "secret-key").exists()


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({"MEDIA_BASE_URL": "https://Chat.example:8443/media"}, "chat.example"),
        ({"CORS_ORIGINS": "https://app.example, https://b.example:444/"}, "app.example b.example"),
        ({"CORS_ORIGINS": "*", "MEDIA_BASE_URL": "https://chat.example/media"}, "chat.example"),
        ({"CORS_ORIGINS": "http://[2001:db8::1]:3000"}, "[2001:db8::1]"),
        ({"CORS_ORIGINS": "http://localhost:3000"}, ""),
    ],
)
def test_the_hosts_come_from_the_other_addresses(given: dict[str, str], hosts: str, bare: dict[str, str]) -> None:
    local = ["localhost", "127.0.0.1", "[::1]"]

    assert shown("ALLOWED_HOSTS", {**bare, **given}) == repr([*hosts.split(), *local])
    assert shown("ALLOWED_HOSTS", {**bare, **given, "ALLOWED_HOSTS": "only.example"}) == "['only.example']"


@pytest.mark.parametrize("environment", ["production", "staging", "development"])
def test_any_origin_with_credentials_is_refused(environment: str, good: dict[str, str]) -> None:
    env = {**good, "ENVIRONMENT": environment, "CORS_ORIGINS": "https://a.example,*"}

    assert_stops({**env, "CORS_ALLOW_CREDENTIALS": "true"}, "CORS_ORIGINS", "CORS_ALLOW_CREDENTIALS")
    assert shown("CORS_ALLOW_ALL_ORIGINS", env) == "True"


# Secrets in files


STRONG = "b4f7d1c9-e3a8-4602-9d5b-7c1f0e2a6b83-k9"
SECRETS = (
    *("SECRET_KEY", "JWT_SECRET_KEY", "JWT_PUBLIC_KEY", "GEMINI_API_KEY", "WHISPER_API_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_can_come_from_a_file(name: str, good: dict[str, str], tmp_path: Path) -> None:
    kept = tmp_path / "secret"
    kept.write_text(f"{STRONG}\n")
    good.pop(name, None)

    assert shown(name, {**good, f"{name}_FILE": str(kept)}) == repr(STRONG)


def test_the_address_of_the_cache_can_come_from_a_file(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:Pw-canary-1@cache.example:6379/0\n")

    address = shown("CACHES['default']['LOCATION']", {**good, "CACHE_URL_FILE": str(tmp_path / "url")})

    assert address == "'redis://:Pw-canary-1@cache.example:6379/0'"


def test_the_database_url_can_come_from_a_file(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgres://user:Pw-canary-1@db.example:5432/chat\n")
    good |= {"DATABASE_URL_FILE": str(tmp_path / "url")}
    del good["DATABASE_URL"]

    assert shown("DATABASES['default']['HOST']", good) == "'db.example'"


@pytest.mark.parametrize("trouble", ["missing", "a folder", "not text", "empty"])
def test_a_secret_file_that_cannot_be_used_stops_the_start(trouble: str, good: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secret"
    if trouble == "a folder":
        file.mkdir()
    elif trouble == "not text":
        file.write_bytes(b"\xff\xfe\x80" * 20)
    elif trouble == "empty":
        file.write_text("\n")
    del good["SECRET_KEY"]

    assert_stops({**good, "SECRET_KEY_FILE": str(file)}, "SECRET_KEY")


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
        ({}, "RATE_LIMIT_PER_MINUTE", "300"),
        ({}, "RATE_LIMIT_PER_HOUR", "5000"),
        ({}, "RATE_LIMIT_MODEL_PER_MINUTE", "60"),
        ({"RATE_LIMIT_PER_MINUTE": "7"}, "RATE_LIMIT_UPLOAD_PER_MINUTE", "2"),
        ({"RATE_LIMIT_PER_MINUTE": "0"}, "RATE_LIMIT_MODEL_PER_MINUTE", "0"),
        ({"PORT": " 9000 "}, "PORT", "9000"),
        ({}, "SECURE_HSTS_SECONDS", "31536000"),
        ({"ENVIRONMENT": "staging"}, "SECURE_HSTS_SECONDS", "0"),
        ({"ENVIRONMENT": "staging"}, "SESSION_COOKIE_SECURE", "True"),
        ({"ENVIRONMENT": "staging"}, "CSRF_COOKIE_SECURE", "True"),
        ({"ENVIRONMENT": "development"}, "SESSION_COOKIE_SECURE", "False"),
        ({"ALLOWED_HOSTS": ".Chat.example,[2001:db8::1]"}, "ALLOWED_HOSTS", "['.Chat.example', '[2001:db8::1]']"),
        ({"USE_WHISPER": "true", "WHISPER_BASE_URL": "http://asr_1:9000/v1/"}, "WHISPER_BASE_URL", "'http://asr_1:9000/v1'"),
        ({"S3_ENDPOINT": "http://[2001:db8::1]:9000/"}, "S3_ENDPOINT_URL", "'http://[2001:db8::1]:9000'"),
        ({"JWT_ALGORITHM": "RS256", "JWT_JWKS_URL": "https://login.example/keys?p=policy"}, "JWT_JWKS_URL", "'https://login.example/keys?p=policy'"),
        ({"CACHE_URL": "valkey://:Pw%2F1@cache_1:6379"}, "CACHES['default']['LOCATION']", "'redis://:Pw%2F1@cache_1:6379'"),
        ({"CACHE_URL": "unix:///run/redis.sock?db=1"}, "CACHES['default']['LOCATION']", "'unix:///run/redis.sock?db=1'"),
        ({"LOG_FILE": " "}, "LOG_FILE", "''"),
        ({}, "LOG_FILE", "'logs/yral_ai_chat.log'"),
        ({}, "TRUSTED_PROXIES", "[]"),
        ({"TRUSTED_PROXIES": "10.0.0.0/8, unix,::1"}, "TRUSTED_PROXIES", "['10.0.0.0/8', 'unix', '::1']"),
        ({"SCRIPT_NAME": "/staging/"}, "FORCE_SCRIPT_NAME", "'/staging'"),
        ({}, "FORCE_SCRIPT_NAME", "None"),
        ({"ADMIN_PATH": "/staff-7f3a"}, "ADMIN_PATH", "'staff-7f3a/'"),
        ({}, "CORS_ALLOWED_ORIGINS", "[]"),
        ({}, "CORS_ALLOWED_ORIGIN_REGEXES", "[]"),
        ({}, "CORS_ALLOW_ALL_ORIGINS", "False"),
        ({"PORT": ""}, "PORT", "8000"),
    ],
)  # fmt: skip
def test_a_setting_becomes(given: dict[str, str], name: str, expected: str, good: dict[str, str]) -> None:
    assert shown(name, {**good, **given}) == expected


def test_requests_are_counted_in_a_file_of_their_own(good: dict[str, str], tmp_path: Path) -> None:
    assert f"{tmp_path}/rate_limits.db" in shown("RATE_LIMIT_DATABASE", good)
    elsewhere = {**good, "DATABASE_URL": "postgres://user@db.example/chat"}
    assert f"{configured.BASE_DIR}/data/rate_limits.db" in shown("RATE_LIMIT_DATABASE", elsewhere)

    assert_stops({**good, "RATE_LIMIT_DATABASE": f"{tmp_path}/chat.db"}, "RATE_LIMIT_DATABASE", "of its own")


@pytest.mark.parametrize("other", ["{tmp_path}/x/../chat.db", "{tmp_path}/link.db"])
def test_by_whatever_name_that_file_is_not_the_database(other: str, good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "chat.db")

    assert_stops({**good, "RATE_LIMIT_DATABASE": other.format(tmp_path=tmp_path)}, "RATE_LIMIT_DATABASE", "of its own")


def test_whisper_s_own_address_needs_a_key_also_where_it_is_blank_or_spelled_out(good: dict[str, str]) -> None:
    for address in ("", "https://api.openai.com/v1/"):
        assert_stops({**good, "USE_WHISPER": "true", "WHISPER_BASE_URL": address}, "WHISPER_API_KEY")


def test_no_two_services_on_one_host_have_cookies_of_one_name(good: dict[str, str]) -> None:
    """A browser sends the cookies of / to /staging as well, and those of one port to another."""
    services = [
        {**good, "ENVIRONMENT": environment, "SCRIPT_NAME": path}
        for environment in ("production", "staging")
        for path in ("", "/staging", "/a/b")
    ]
    for name in ("SESSION_COOKIE_NAME", "CSRF_COOKIE_NAME"):
        names = {shown(name, service) for service in services}
        assert len(names) == len(services)
        assert all(re.fullmatch(r"'[\w.~-]+'", one) for one in names)


def test_staging_has_no_secrets_that_everybody_knows(good: dict[str, str]) -> None:
    """Development's defaults stand in the repository: whoever reads it could sign tokens for a staging service."""
    staging = {**good, "ENVIRONMENT": "staging"}
    del staging["JWT_SECRET_KEY"]
    assert_stops(staging, "JWT_SECRET_KEY")
    del staging["SECRET_KEY"]
    assert "development" not in shown("SECRET_KEY", {**staging, "JWT_SECRET_KEY": JWT_SECRET})


def test_a_file_of_variables_is_read_and_the_environment_comes_first(good: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "env").write_text("APP_NAME=From the file\nAPP_VERSION=1.1.1\n")
    env = {**good, "ENV_FILE": str(tmp_path / "env"), "APP_VERSION": "2.2.2"}

    assert shown("APP_NAME", env) == "'From the file'"
    assert shown("APP_VERSION", env) == "'2.2.2'"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("ADMIN_ALLOWED_NETWORKS = 198.51.100.0/24", "ADMIN_ALLOWED_NETWORKS", ["198.51.100.0/24"]),
        (f'METRICS_TOKEN="{STRONG}" # a comment', "METRICS_TOKEN", STRONG),
        (f"METRICS_TOKEN='{STRONG}'# a comment", "METRICS_TOKEN", STRONG),
        ("METRICS_TOKEN=abc#def-ghijklmnop # a comment", "METRICS_TOKEN", "abc#def-ghijklmnop"),
        ("export APP_NAME=My App", "APP_NAME", "My App"),
        ("APP_NAME='$HOME ${PORT}'", "APP_NAME", "$HOME ${PORT}"),
        ("\ufeffAPP_NAME=x\r\n\r\n# y\r", "APP_NAME", "x"),
        ("APP_NAME=", "APP_NAME", "Yral AI Chat API"),
        (f"METRICS_TOKEN_FILE={__file__}.token", "METRICS_TOKEN", None),
    ],
)
def test_a_line_of_that_file_is_read_as_people_write_them(
    line: str, name: str, value: Any, good: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "env").write_bytes(f"{line}\n".encode())
    good.pop(name, None)
    env = {**good, "ENV_FILE": str(tmp_path / "env")}
    if value is None:
        assert_stops(env, f"{name}_FILE")
    else:
        assert shown(name, env) == repr(value)


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b"APP_NAME=x\n\n# y\n  \nADMIN_ALLOWED_NETWORKS: 198.51.100.0/24\nPORT=1\n", 5),
        (b"METRICS_TOKEN\n", 1),
        (b"\n\r\nexport METRICS_TOKEN\n", 3),
        (b"JWT_SECRET_KEY='Pw-canary-1\nPORT=1\n", 1),
        (b'JWT_SECRET_KEY="Pw-canary-1" and more\n', 1),
    ],
)
def test_a_line_that_cannot_be_read_stops_the_start_with_its_number(
    content: bytes, number: int, good: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "env").write_bytes(content)

    assert_stops({**good, "ENV_FILE": str(tmp_path / "env")}, f"line {number} of", secrets=("Pw-canary-1",))


@pytest.mark.parametrize("content", [b"\xff\xfe\x80" * 20, b"APP_NAME=a\x00b\n"])
def test_a_file_of_variables_that_is_no_text_stops_the_start(
    content: bytes, good: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "env").write_bytes(content)

    assert_stops({**good, "ENV_FILE": str(tmp_path / "env")}, "ENV_FILE")


def test_the_default_database_can_be_moved_by_path(good: dict[str, str], tmp_path: Path) -> None:
    del good["DATABASE_URL"]
    good["DATABASE_PATH"] = f"{tmp_path}/elsewhere/chat.db"

    assert f"{tmp_path}/elsewhere/chat.db" in shown("DATABASES['default']['NAME']", good)


def test_that_path_may_hold_what_means_something_in_an_address(good: dict[str, str], tmp_path: Path) -> None:
    del good["DATABASE_URL"]
    good["DATABASE_PATH"] = f"{tmp_path}/a b/50%25 #1?+.db"

    assert f"{tmp_path}/a b/50%25 #1?+.db" in shown("DATABASES['default']['NAME']", good)


def test_the_example_file_changes_nothing() -> None:
    """Every line of it shows the default: a copy of it is a service with nothing set."""
    every = (
        "import json; from yral_chat import settings as s; "
        "all = {n: v for n, v in vars(s).items() if n.isupper() and n != 'ENV_FILE' and not callable(v)}; "
        "print(json.dumps({n: repr(v) for n, v in all.items()}))"
    )
    bare = python("-c", every, env={"ENV_FILE": ""})
    copied = python("-c", every, env={"ENV_FILE": str(configured.BASE_DIR / ".env.example")})

    assert bare.returncode == copied.returncode == 0, copied.stderr
    assert json.loads(bare.stdout) == json.loads(copied.stdout)
