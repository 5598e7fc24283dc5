"""Settings that are fine alone and can't work together (the rest is refused by settings.py itself)."""

from collections.abc import Sequence
from typing import Any

import jwt
from django.conf import settings
from django.core.checks import ERROR, Error, Warning, register, run_checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor


@register()
def check_settings(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[Error | Warning]:
    found: list[Error | Warning] = []
    if settings.PRODUCTION and settings.SECRET_KEY == settings.JWT_SECRET_KEY:
        found.append(
            Error(
                "SECRET_KEY and JWT_SECRET_KEY are the same.",
                hint="Who signs tokens could then forge staff sessions. Make two secrets.",
                id="yral.E002",
            )
        )
    if "*" in settings.ALLOWED_HOSTS and settings.PRODUCTION:
        found.append(Warning("ALLOWED_HOSTS allows any host.", hint="Name the hosts of this service.", id="yral.W001"))
    if settings.JWT_PUBLIC_KEY and "PRIVATE KEY" in settings.JWT_PUBLIC_KEY:
        found.append(
            Error("JWT_PUBLIC_KEY holds a private key.", hint="Only the public half belongs here.", id="yral.E003")
        )
    elif settings.JWT_PUBLIC_KEY and not _fits(settings.JWT_PUBLIC_KEY, settings.JWT_ALGORITHM):
        found.append(
            Error(
                f"JWT_PUBLIC_KEY is no public key for {settings.JWT_ALGORITHM}.",
                hint="Give the whole PEM, from -----BEGIN PUBLIC KEY----- on; line ends may be written \\n.",
                id="yral.E004",
            )
        )
    if settings.JWT_PUBLIC_KEY and settings.JWT_JWKS_URL:
        found.append(Warning("JWT_PUBLIC_KEY is not used.", hint="JWT_JWKS_URL comes first.", id="yral.W002"))
    return found


def _fits(pem: str, algorithm: str) -> bool:
    try:
        return bool(jwt.get_algorithm_by_name(algorithm).prepare_key(pem))
    except (jwt.PyJWTError, ValueError, TypeError):
        return False


def refuse_to_start() -> None:
    """What a server calls first. Stops it with one sentence."""
    if problems := [f"{found.msg} {found.hint or ''}" for found in run_checks() if found.level >= ERROR]:
        raise SystemExit(f"Yral AI Chat can't start: {' '.join(problems)}")
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
