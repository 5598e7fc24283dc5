import re
import time
from typing import Any

import jwt
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from rest_framework.exceptions import AuthenticationFailed

from yral_chat.authentication import user_of

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d{1,9})([smhd])", duration)
    if not match or not int(match[1]):
        raise CommandError("--expires takes a number and s, m, h or d, for example 30m, 1h or 7d.")
    return int(match[1]) * UNITS[match[2]]


def token_for(user_id: str, lifetime: int) -> str:
    """A token as the login service would issue it; `lifetime` in seconds."""
    now = int(time.time())
    claims: dict[str, Any] = {"sub": user_id, "iss": settings.JWT_ISSUER[0], "iat": now, "exp": now + lifetime}
    if settings.JWT_AUDIENCE:
        claims["aud"] = settings.JWT_AUDIENCE[0]
    return jwt.encode(claims, settings.JWT_SECRET_KEY, algorithm=settings.JWT_ALGORITHM)


class Command(BaseCommand):
    help = "Print a bearer token for a user (development; HS algorithms only)."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("user", help="the user id that the token speaks for")
        parser.add_argument("--expires", default="1h", metavar="1h", help="lifetime: a number and s, m, h or d")

    def handle(self, *args: Any, user: str, expires: str, **options: Any) -> None:
        if not settings.JWT_ALGORITHM.startswith("HS"):
            raise CommandError(f"Tokens are signed by somebody else here (JWT_ALGORITHM={settings.JWT_ALGORITHM}).")
        if settings.PRODUCTION:
            raise CommandError("Not in production: tokens come from the login service.")
        try:
            user_of({"sub": user})
        except AuthenticationFailed as exc:
            raise CommandError("The user id must have 1 to 255 characters, without control characters.") from exc
        self.stdout.write(token_for(user, seconds(expires)))
