"""Settings that are fine alone and can't work together (the rest is refused by settings.py itself)."""

from collections.abc import Iterator, Sequence
from functools import cache
from ipaddress import ip_network
from typing import Any

import jwt
import structlog
from django.conf import settings
from django.core.checks import ERROR, WARNING, Error, Warning, register, run_checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from yral_chat import replication
from yral_chat.proxies import UNIX

logger = structlog.get_logger(__name__)


@register()
def check_settings(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[Error | Warning]:
    return [*_of_the_own_secret(), *_of_token_keys(), *_of_what_strangers_may(), *_of_files()]


def _of_the_own_secret() -> Iterator[Error | Warning]:
    if settings.PRODUCTION and settings.SECRET_KEY == settings.JWT_SECRET_KEY:
        yield Error(
            "SECRET_KEY and JWT_SECRET_KEY are the same.",
            hint="Who signs tokens could then forge staff sessions. Make two secrets.",
            id="yral.E002",
        )
    if settings.SECRET_KEY_IS_KEPT and settings.DATABASES["default"]["ENGINE"].endswith("postgresql"):
        yield Warning(
            "SECRET_KEY is this machine's own.",
            hint="Where several machines serve, set one for all: each must know the others' sessions and links.",
            id="yral.W003",
        )


def _of_token_keys() -> Iterator[Error | Warning]:
    if settings.JWT_PUBLIC_KEY and "PRIVATE KEY" in settings.JWT_PUBLIC_KEY:
        yield Error("JWT_PUBLIC_KEY holds a private key.", hint="Only the public half belongs here.", id="yral.E003")
    elif settings.JWT_PUBLIC_KEY and not _fits(settings.JWT_PUBLIC_KEY, settings.JWT_ALGORITHM):
        yield Error(
            f"JWT_PUBLIC_KEY is no public key for {settings.JWT_ALGORITHM}.",
            hint="Give the whole PEM, from -----BEGIN PUBLIC KEY----- on; line ends may be written \\n.",
            id="yral.E004",
        )
    if settings.JWT_PUBLIC_KEY and settings.JWT_JWKS_URL:
        yield Warning("JWT_PUBLIC_KEY is not used.", hint="JWT_JWKS_URL comes first.", id="yral.W002")


def _of_what_strangers_may() -> Iterator[Error | Warning]:
    if "*" in settings.ALLOWED_HOSTS and settings.PRODUCTION:
        yield Warning("ALLOWED_HOSTS allows any host.", hint="Name the hosts of this service.", id="yral.W001")
    if settings.PRODUCTION and settings.METRICS_ENABLED and not settings.METRICS_TOKEN:
        yield Warning(
            "METRICS_TOKEN isn't set.",
            hint="Whoever comes through a proxy of this machine that says nothing of it may read /metrics.",
            id="yral.W004",
        )
    if any(ip_network(network, strict=False).prefixlen == 0 for network in set(settings.TRUSTED_PROXIES) - {UNIX}):
        yield Warning(
            "TRUSTED_PROXIES trusts everybody.",
            hint="Anybody can pass for any address, at the limits and the admin. Name the proxies.",
            id="yral.W005",
        )


def _of_files() -> Iterator[Error | Warning]:
    if not settings.DEVELOPMENT and not (settings.STATIC_ROOT / "admin").is_dir():
        yield Warning(
            "The static files aren't collected.",
            hint="The admin and /docs look like nothing without. Run: manage.py collectstatic --noinput",
            id="yral.W006",
        )


def _fits(pem: str, algorithm: str) -> bool:
    try:
        return bool(jwt.get_algorithm_by_name(algorithm).prepare_key(pem))
    except (jwt.PyJWTError, ValueError, TypeError):
        return False


@cache
def refuse_to_start() -> None:
    """What a server calls first, and what the application calls in case that it didn't. Stops it with one sentence."""
    found = run_checks()
    if problems := [f"{one.msg} {one.hint or ''}" for one in found if one.level >= ERROR]:
        raise SystemExit(f"Yral AI Chat can't start: {' '.join(problems)}")
    for one in found:
        if one.level >= WARNING:
            logger.warning(f"{one.msg} {one.hint or ''}".strip())
    if settings.ENABLE_LITESTREAM and not replication.is_supervised(replication.database()):
        needed = "ENABLE_LITESTREAM=true needs Litestream beside the server. Run: deploy/entrypoint.sh"
        raise SystemExit(f"Yral AI Chat can't start: {needed}")
    if not settings.DEVELOPMENT and unapplied_migrations():
        raise SystemExit("Yral AI Chat can't start: the database isn't migrated. Run: manage.py migrate")


def unapplied_migrations() -> bool:
    """False also for a database that doesn't answer: it may come back, and /health tells of it."""
    try:
        executor = MigrationExecutor(connection)
        return bool(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except DatabaseError:
        return False
    finally:
        connection.close()
        if hasattr(connection, "close_pool"):
            connection.close_pool()
