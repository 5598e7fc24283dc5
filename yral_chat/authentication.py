"""Bearer token → caller. Tokens are another service's: verified here, statelessly, with one pinned algorithm."""

import logging
import math
import re
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jwt
from django.conf import settings
from django.core.signals import setting_changed
from django.http import HttpRequest
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import AuthenticationFailed, NotAuthenticated
from rest_framework.request import Request
from rest_framework_simplejwt.backends import TokenBackend
from rest_framework_simplejwt.exceptions import TokenBackendError

logger = logging.getLogger(__name__)

WRONG_FORMAT = "Invalid authorization header format. Expected: Bearer <token>"
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who the token speaks for. Users live in another service; there is no row of them here."""

    user_id: str
    is_authenticated: bool = True

    def __str__(self) -> str:
        return self.user_id


def caller_id(request: Request) -> str:
    """The user that the token of an authenticated request speaks for."""
    return cast(Caller, request.user).user_id


class BearerAuthentication(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[Caller, None]:
        return getattr(request._request, "caller", None) or judged(token_of(request)), None

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def token_of(request: Request | HttpRequest) -> str:
    """Raises NotAuthenticated or AuthenticationFailed."""
    header: str = request.META.get("HTTP_AUTHORIZATION", "")
    if not header.strip():
        raise NotAuthenticated("Missing authorization header")
    scheme, _, token = header.strip().partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or " " in token:
        raise AuthenticationFailed(WRONG_FORMAT)
    return token


def judged(token: str) -> Caller:
    return Caller(user_of(claims_of(token)))


def known_caller(request: HttpRequest) -> Caller:
    """Judged before the view, which needn't judge again. Raises what the view will, or PyJWKClientError for a token
    whose key would have to be fetched: that is left to views that need to know."""
    token = token_of(request)
    keys = cast(RemoteKeys | None, backend().jwks_client)
    if keys and not keys.has_key_of(token):
        raise jwt.PyJWKClientError("its key isn't known yet")
    caller: Caller = judged(token)
    request.caller = caller  # type: ignore[attr-defined]
    return caller


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token that holds: signature, exp, iss, and aud if configured. Raises AuthenticationFailed."""
    try:
        claims = backend().decode(token)
    except jwt.PyJWKClientConnectionError:
        raise  # nobody's token can be judged: 503, not "log in again"
    except (jwt.PyJWTError, TokenBackendError) as exc:
        raise AuthenticationFailed(_what_is_wrong(exc)) from exc
    except (ValueError, TypeError, RecursionError) as exc:  # what PyJWT lets through on absurd headers and claims
        raise AuthenticationFailed("Invalid token") from exc
    if claims.get("exp") is None:
        raise AuthenticationFailed("Token has expired")
    return claims


def _what_is_wrong(exc: BaseException | None) -> str:
    if isinstance(exc, jwt.ExpiredSignatureError):
        return "Token has expired"
    if isinstance(exc, jwt.InvalidIssuerError) or (
        isinstance(exc, jwt.MissingRequiredClaimError) and exc.claim == "iss"
    ):
        return "Invalid token issuer"
    return "Invalid token"


def user_of(claims: dict[str, Any]) -> str:
    """`user_id` if the claim is present, else `sub`; what is there must be right, there's no falling through."""
    if "user_id" not in claims and "sub" not in claims:
        raise AuthenticationFailed("Invalid token: missing sub")
    user_id = claims["user_id"] if "user_id" in claims else claims["sub"]
    if not isinstance(user_id, str) or not user_id.strip() or len(user_id) > 255 or CONTROL_CHARACTERS.search(user_id):
        raise AuthenticationFailed("Invalid token")
    return user_id


class RemoteKeys(jwt.PyJWKClient):
    """The keys published at a JWKS address, kept as long as the address can't be reached.

    They are refetched every 5 minutes, by a thread that nobody waits for, and for an unknown `kid`, at most every 10 s.
    """

    fresh_for, pause = 300.0, 10.0

    def __init__(self, url: str) -> None:
        super().__init__(url, timeout=5, cache_jwk_set=False)
        self.keys: dict[str | None, jwt.PyJWK] = {}
        self.fetching = threading.Lock()
        self.fetched_at = self.not_before = -math.inf
        self.attempts = 0

    def get_signing_key(self, kid: str) -> jwt.PyJWK:
        """Raises PyJWKClientError for an unknown one, PyJWKClientConnectionError where no key is known at all."""
        if kid not in self.keys:
            self._fetch_for_unknown(kid)
        elif time.monotonic() - self.fetched_at > self.fresh_for:
            self.fetched_at = time.monotonic()
            threading.Thread(target=self._refresh, daemon=True).start()
        if kid in self.keys:
            return self.keys[kid]
        if not self.keys:
            raise jwt.PyJWKClientConnectionError("no keys could be fetched")
        raise jwt.PyJWKClientError("unknown kid")

    def has_key_of(self, token: str) -> bool:
        """Without asking anybody."""
        try:
            return jwt.get_unverified_header(token).get("kid") in self.keys
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            return False

    def _fetch_for_unknown(self, kid: str) -> None:
        attempts = self.attempts
        with self.fetching:
            if kid in self.keys or attempts != self.attempts or time.monotonic() < self.not_before:
                return  # somebody else has just asked, or it is too early
            if self.keys:  # no pause after the first fetch of all: a key may rotate right after it
                self.not_before = time.monotonic() + self.pause
            self._refresh()

    def _refresh(self) -> None:
        self.attempts += 1
        try:
            self.keys = {key.key_id: key for key in self.get_signing_keys()}
        except (jwt.PyJWTError, ValueError) as exc:
            logger.error("The keys at JWT_JWKS_URL can't be read: %s", exc)
        else:
            self.fetched_at = time.monotonic()


class StatelessBackend(TokenBackend):
    """simplejwt's backend without its demands on `sub` and `jti`, which are the issuer's business."""

    def get_verifying_key(self, token: Any) -> Any:
        if self.jwks_client:
            return self.jwks_client.get_signing_key_from_jwt(token).key
        return super().get_verifying_key(token)

    def decode(self, token: Any, verify: bool = True) -> dict[str, Any]:
        """Raises jwt.PyJWTError."""
        checks = {
            "verify_signature": verify,
            "verify_aud": bool(self.audience),
            "verify_sub": False,
            "verify_jti": False,
        }
        return jwt.decode(
            token,
            self.get_verifying_key(token),
            algorithms=[self.algorithm],
            audience=self.audience,
            issuer=self.issuer,
            leeway=self.get_leeway(),
            options=checks,  # type: ignore[arg-type]
        )


@cache
def backend() -> StatelessBackend:
    """One per process: it holds the prepared key, and with a JWKS address the fetched keys."""
    made = StatelessBackend(
        settings.JWT_ALGORITHM,
        signing_key=settings.JWT_SECRET_KEY,
        verifying_key=settings.JWT_PUBLIC_KEY,
        audience=settings.JWT_AUDIENCE or None,
        issuer=settings.JWT_ISSUER,  # type: ignore[arg-type]
        leeway=settings.JWT_LEEWAY,
    )
    if settings.JWT_JWKS_URL:
        made.jwks_client = RemoteKeys(settings.JWT_JWKS_URL)
    return made


def _forget_backend(*, setting: str, **kwargs: object) -> None:
    if setting.startswith("JWT_"):
        backend.cache_clear()


setting_changed.connect(_forget_backend)


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "yral_chat.authentication.BearerAuthentication"
    match_subclasses = True
    name = "bearer"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
