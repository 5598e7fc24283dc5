"""Settings that are fine alone and can't work together (the rest is refused by settings.py itself)."""

from collections.abc import Sequence
from typing import Any

import jwt
from django.conf import settings
from django.core.checks import Error, Warning, register


@register("deploy_settings")
def check_settings(app_configs: Sequence[Any] | None, **kwargs: Any) -> list[Error | Warning]:
    found: list[Error | Warning] = []
    if settings.PRODUCTION and settings.DEBUG:
        found.append(
            Error("DEBUG is on in production.", hint="Unset DEBUG: it shows internals to users.", id="yral.E001")
        )
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
