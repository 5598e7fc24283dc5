"""First aid for operators: what is configured, what answers, and what to do about what doesn't.

Each check returns what it found, or raises Wrong with a sentence that says what to do.
"""

import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from django.conf import settings
from django.contrib.sessions.models import Session
from django.core.checks import ERROR, WARNING, run_checks
from django.core.files.base import ContentFile
from django.core.files.storage import storages
from django.db import DatabaseError, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from redis.exceptions import RedisError

from yral_chat import ai, counters, dependencies
from yral_chat.authentication import RemoteKeys
from yral_chat.log import without_secrets
from yral_chat.throttling import windows_of

GOOGLE = "https://generativelanguage.googleapis.com"
SECRET = re.compile(r"(KEY|KEY_ID|SECRET|PASSWORD|TOKEN|DSN)$")
PROBE = b"written by manage.py doctor"


class Wrong(Exception):
    """What is wrong, and what to do about it, in a sentence each."""


def configuration() -> list[tuple[str, str]]:
    """Every variable with its value as it is in force; secrets only by their length."""
    return [(name, shown(name, getattr(settings, name))) for name in settings.VARIABLES]


def shown(name: str, value: Any) -> str:
    if value is None or value in ("", []):
        return "not set"
    if SECRET.search(name):
        return f"set ({len(str(value))} characters)"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return without_password(text)


def without_password(text: str) -> str:
    """An address without what stands before its @ and behind its ?, where passwords are."""
    return re.sub(r"\?.*", "?***", re.sub(r"(?<=://).*@", "***@", text)) if "://" in text else text


def wait_no_longer_for_connections() -> None:
    """A pool would wait as long for a server that is down as requests do."""
    if pool := getattr(connection, "pool", None):
        pool.timeout = 3


def check_settings() -> str:
    try:
        found = [one for one in run_checks() if one.level >= WARNING]
    except DatabaseError as exc:
        raise Wrong("Some can't be checked without the database. Mend that first.") from exc
    said = " ".join(f"{one.msg} {one.hint or ''}".strip() for one in found)
    if any(one.level >= ERROR for one in found):
        raise Wrong(said)
    if settings.PRODUCTION and not settings.TRUSTED_PROXIES:
        said += " TRUSTED_PROXIES is empty: behind a proxy, all its clients count as one, and links are http."
    return said.strip() or "they fit together"


def check_database() -> str:
    """Writes a row, reads it and takes it back."""
    began = time.perf_counter()
    try:
        with transaction.atomic():
            key = f"doctor-{uuid.uuid4().hex[:20]}"
            Session.objects.create(session_key=key, session_data="", expire_date=timezone.now())
            Session.objects.get(pk=key)
            transaction.set_rollback(True)
    except DatabaseError as exc:
        raise Wrong(f"{_first_line(exc)}. {_what_to_do_about_the_database(exc)}") from exc
    took = f"written and read in {(time.perf_counter() - began) * 1000:.0f} ms"
    return f"{connection.vendor}, {took}{_sqlite_file() if connection.vendor == 'sqlite' else ''}"


def _what_to_do_about_the_database(exc: DatabaseError) -> str:
    said = str(exc)
    if "no such table" in said or "does not exist" in said:
        return "Run: manage.py migrate"
    if "readonly" in said or "unable to open" in said:
        return "Let the service's user write to the file of DATABASE_URL and to its folder."
    if "malformed" in said or "not a database" in said:
        return "The file of DATABASE_URL is damaged, or another one: restore a backup."
    return "Look whether the server of DATABASE_URL runs and lets this user in."


def _sqlite_file() -> str:
    path = Path(connection.settings_dict["NAME"])
    with connection.cursor() as cursor:
        (mode,) = cursor.execute("PRAGMA journal_mode").fetchone()
    if mode != "wal":
        raise Wrong(f"Its journal mode is {mode}, not WAL. Keep it on a local disk: network folders can't do WAL.")
    return f", WAL, {enough_space(path.parent)}"


def check_replica() -> str:
    health = dependencies.replica_health()
    if health["status"] == "unknown":
        return "none is looked at (no ENABLE_LITESTREAM, no REPLICA_PATH)"
    if health["error"] is not None:
        raise Wrong(f"{health['error']} Check REPLICA_PATH or LITESTREAM_*, and that the copying runs.")
    return "it keeps up"


def enough_space(folder: Path) -> str:
    disk = shutil.disk_usage(folder)
    if dependencies.is_nearly_full(disk):
        raise Wrong(f"Only {disk.free // 1024**2} MB are free in {folder}. Make room before writes fail.")
    return f"{disk.free / 1024**3:.1f} GB free"


def check_migrations() -> str:
    try:
        executor = MigrationExecutor(connection)
        plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError as exc:
        raise Wrong("They can't be looked up. Mend the database first.") from exc
    if plan:
        names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in plan[:3])
        raise Wrong(f"{len(plan)} are pending ({names}{', …' if len(plan) > 3 else ''}). Run: manage.py migrate")
    return "none is pending"


def check_cache() -> str:
    if not settings.CACHE_URL:
        return "each process's memory (no CACHE_URL)"
    try:
        if not dependencies.cache_keeps():
            raise Wrong("It forgets at once what it is told. Give it memory (maxmemory).")
    except (OSError, ValueError, RedisError) as exc:
        raise Wrong(
            f"It doesn't answer ({type(exc).__name__}). Check that CACHE_URL's server runs and takes its password."
        ) from exc
    return "written and read"


def check_media() -> str:
    """Writes a file, reads it and deletes it."""
    where = "the bucket" if settings.USE_S3 else str(settings.MEDIA_UPLOAD_DIR)
    try:
        media = storages["media"]
        name = media.save(f"doctor-{uuid.uuid4()}.txt", ContentFile(PROBE))
        with media.open(name, "rb") as file:
            read = file.read()
        media.delete(name)
    except Exception as exc:  # whatever a store's library raises, the reader needs to know where to look
        hint = "the AWS_… and S3_… variables" if settings.USE_S3 else "that its user may write to MEDIA_UPLOAD_DIR"
        raise Wrong(f"{where} can't be used ({_first_line(exc)}). Check {hint}.") from exc
    if read != PROBE:
        raise Wrong(f"{where} gave back something else than was written. Nobody else may answer for it.")
    return f"{where}, written, read and deleted" + ("" if settings.USE_S3 else f", {enough_space(Path(where))}")


def check_model_address() -> str:
    """Makes a connection, and no call."""
    if not settings.GEMINI_API_KEY:
        return "the offline engine answers (no GEMINI_API_KEY)"
    address = settings.GEMINI_BASE_URL or GOOGLE
    parts = urlsplit(address)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as exc:
        raise Wrong(
            f"{without_password(address)} can't be reached ({exc}). Check GEMINI_BASE_URL, name server and firewall."
        ) from exc
    return f"{without_password(address)} can be reached (--model asks it)"


def ask_model() -> str:
    began = time.monotonic()
    prompt = ai.Prompt("Answer in one word.", (ai.Content("user", ("Are you there?",)),))
    try:
        reply = ai.generate_reply(prompt, deadline=ai.Deadline(began + 20), tally=ai.Tally())
    except ai.ModelError as exc:
        raise Wrong(f"It doesn't answer ({exc}). Check GEMINI_API_KEY, GEMINI_MODEL and the quota.") from exc
    return f"{reply.model} answered in {time.monotonic() - began:.1f} s"


def check_counters() -> str:
    windows = windows_of("model", time.time())
    if not windows:
        return "all limits are off"
    where = "CACHE_URL" if settings.CACHE_URL else "RATE_LIMIT_DATABASE"
    made = counters.make()
    try:
        made.count(counters.digest(f"doctor {uuid.uuid4()}"), windows)
    except counters.Unavailable as exc:
        hint = "Look at the server." if settings.CACHE_URL else "Make it writable, or delete it: it is made anew."
        raise Wrong(f"Nobody is limited, as {where} can't be used ({exc}). {hint}") from exc
    finally:
        made.close()
    return f"counted in {'CACHE_URL' if settings.CACHE_URL else settings.RATE_LIMIT_DATABASE}"


def check_token_keys() -> str:
    if not settings.JWT_JWKS_URL:
        return f"{settings.JWT_ALGORITHM}, by a key of the configuration"
    try:
        keys = RemoteKeys(settings.JWT_JWKS_URL).get_signing_keys()
    except (jwt.PyJWTError, ValueError) as exc:
        raise Wrong(f"JWT_JWKS_URL gives no keys ({_first_line(exc)}). Check it: no token is taken without.") from exc
    return f"{len(keys)} at {without_password(settings.JWT_JWKS_URL)}"


def _first_line(exc: BaseException) -> str:
    """Without the passwords and keys that libraries quote."""
    line = (str(exc).strip() or type(exc).__name__).splitlines()[0].rstrip(".")
    return without_secrets(without_password(line))


CHECKS: dict[str, Callable[[], str]] = {
    "Settings": check_settings,
    "Database": check_database,
    "Migrations": check_migrations,
    "Replica": check_replica,
    "Cache": check_cache,
    "Media": check_media,
    "Model": check_model_address,
    "Rate limits": check_counters,
    "Token keys": check_token_keys,
}
