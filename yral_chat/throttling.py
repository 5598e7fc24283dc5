"""How often somebody may call: by the clock's minute and hour for all of the API, by the minute for what costs more.

A request counts before anything of it is read but its head: under its token's account, so that an account is one caller
from wherever it calls, else under its address. What is answered, an error too, doesn't matter. One that is refused
counts nowhere: who keeps knocking waits no longer for it.

`/health`, the pages, files and the admin are free; logins to the admin have a limit of their own (admin_access.py).
"""

import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jwt
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve
from rest_framework.exceptions import APIException

from yral_chat import counters, errors, metrics
from yral_chat.authentication import known_caller
from yral_chat.counters import Counted, Window

MINUTE, HOUR = 60, 3600


class RateLimitMiddleware:
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not f"{request.path_info}/".startswith("/api/"):
            return self.get_response(request)
        now = time.time()
        scope = scope_of(request)
        windows = windows_of(scope, now)
        counted = (windows and counters.of_this_process().count(caller_of(request), windows)) or Counted(True, {})
        response = self.get_response(request) if counted.passed else refusal(scope, counted, windows, now)
        for name, value in headers(counted, windows):
            response[name] = value
        return response


def caller_of(request: HttpRequest) -> str:
    """Who is counted: the account of a good token, else the client's address."""
    try:
        return f"account {known_caller(request).user_id}"
    except (APIException, jwt.PyJWKClientError):
        return f"address {network_of(request.META.get('REMOTE_ADDR', ''))}"


@lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """Of IPv6 the /64, which is what a provider gives to one customer."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))


def scope_of(request: HttpRequest) -> str | None:
    """What a view says of its action in `limited_as`: "model" or "upload"."""
    if request.method != "POST":
        return None
    try:
        view: Any = resolve(request.path_info).func
    except Resolver404:
        return None
    action = getattr(view, "actions", {}).get("post")
    scope: str | None = getattr(getattr(view, "cls", None), "limited_as", {}).get(action)
    return scope


def windows_of(scope: str | None, now: float) -> list[Window]:
    """Those that limit a request at that time; a limit of 0 is none."""
    limits = [("minute", MINUTE, settings.RATE_LIMIT_PER_MINUTE), ("hour", HOUR, settings.RATE_LIMIT_PER_HOUR)]
    if scope == "model":
        limits.append(("model_minute", MINUTE, settings.RATE_LIMIT_MODEL_PER_MINUTE))
    elif scope == "upload":
        limits.append(("upload_minute", MINUTE, settings.RATE_LIMIT_UPLOAD_PER_MINUTE))
    return [window(name, seconds, most, now) for name, seconds, most in limits if most]


def window(name: str, seconds: int, most: int, now: float) -> Window:
    """The one of the clock that `now` is in."""
    starts = int(now) - int(now) % seconds
    return Window(name, starts, starts + seconds, most)


def headers(counted: Counted, windows: Sequence[Window]) -> list[tuple[str, str]]:
    """Of the general limits, whichever refused it. Nothing is used up while nobody can count."""
    told = []
    for window in windows[:2]:
        if window.name in ("minute", "hour"):
            left = max(0, window.most - counted.counts.get(window.name, 0))
            told.append((f"X-RateLimit-Limit-{window.name.title()}", str(window.most)))
            told.append((f"X-RateLimit-Remaining-{window.name.title()}", str(left)))
    return told


def refusal(scope: str | None, counted: Counted, windows: Sequence[Window], now: float) -> HttpResponse:
    """By the limit that is over last."""
    full = [window for window in windows if counted.counts.get(window.name, 0) >= window.most]
    last = max(full or windows, key=lambda window: window.ends)
    seconds = max(1, math.ceil(last.ends - now))
    metrics.LIMITED.labels(scope or "general", last.name).inc()
    return errors.rate_limited(seconds, last.name)
