"""Headers that every answer carries, and the correlation id that ties an answer to its log lines."""

import re
import time
import uuid
from collections.abc import Callable
from tempfile import SpooledTemporaryFile
from typing import IO, Any, cast

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, resolve

from yral_chat import errors, metrics
from yral_chat.authentication import Caller
from yral_chat.bodies import copy, most_bytes
from yral_chat.database import statements_so_far
from yral_chat.log import correlation_id

logger = structlog.get_logger("yral_chat.requests")
SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def sane_id(given: str) -> str:
    """What the caller sent, if it is short and plain; else a new one."""
    return given if SANE.fullmatch(given) else str(uuid.uuid4())


class CorrelationMiddleware:
    """X-Correlation-ID in (kept if it is short and plain) and out; X-API-Version out. One line a request, and its
    metrics: of the address only the route's template."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.META.get("HTTP_X_CORRELATION_ID", "")
        correlation_id.set(sane_id(given))  # till the next: Django logs later
        started, statements = time.perf_counter(), statements_so_far()
        response = self.get_response(request)
        seconds, route = time.perf_counter() - started, route_of(request)
        if settings.METRICS_ENABLED:
            metrics.observe_request(request.method or "", route, response.status_code, seconds)
        logger.info(
            "request",
            method=request.method if request.method in metrics.METHODS else "OTHER",
            route=route,
            status=response.status_code,
            ms=round(seconds * 1000, 1),
            sql=statements_so_far() - statements,
            user=user_of(request),
        )
        response["X-Correlation-ID"] = correlation_id.get()
        response["X-API-Version"] = "v1"
        if request.method == "HEAD" and not response.streaming:
            response.content = b""  # its length stands in the header
        return response


def route_of(request: HttpRequest) -> str:
    """The template of its address in urls.py; found out here where a middleware answered."""
    match = request.resolver_match
    if match is None and request.path_info.startswith(settings.STATIC_URL):
        return "static"
    try:
        match = match or resolve(request.path_info)
    except Resolver404:
        return metrics.UNMATCHED
    return metrics.UNMATCHED if match.url_name == metrics.UNMATCHED else f"/{match.route}"


def user_of(request: HttpRequest) -> str | None:
    """The caller, or staff whose session was looked at anyway."""
    for caller in (request.__dict__.get("caller"), request.__dict__.get("user")):
        if type(caller) is Caller:
            return caller.user_id
    staff = request.__dict__.get("_cached_user")
    return f"staff:{staff.pk}" if staff is not None and staff.pk else None


class MalformedChunks(Exception):
    pass


class Chunks:
    """A body in chunks, whose servers each have errors of their own for broken ones."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def read(self, size: int) -> bytes:
        try:
            return self.stream.read(size)
        except Exception as exc:
            raise MalformedChunks from exc


class BodyLimitMiddleware:
    """A body sent in chunks, without a length, is measured here; Django and DRF would take it for an empty one.

    Bodies with a length are the parsers' business, after the token was looked at.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if "chunked" not in request.META.get("HTTP_TRANSFER_ENCODING", "").lower():
            return self.get_response(request)
        most, stream = most_bytes(request.path_info), Chunks(_stream_of(request))
        with SpooledTemporaryFile(max_size=settings.FILE_UPLOAD_MAX_MEMORY_SIZE) as body:
            try:
                if copy(stream, most, to=body) > most:
                    copy(stream, most)
                    return errors.too_large()
            except MalformedChunks:
                return errors.plain("bad_request", 400)
            request.META["CONTENT_LENGTH"] = str(body.tell())
            body.seek(0)
            cast(Any, request)._stream = body
            return self.get_response(request)


def _stream_of(request: HttpRequest) -> IO[bytes]:
    environ = getattr(request, "environ", None)
    return cast(IO[bytes], environ["wsgi.input"] if environ else cast(Any, request)._stream)
