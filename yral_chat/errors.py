"""What can go wrong, and how it's said: exception class → (status, code) in one table, and one handler.

Services raise the plain exceptions below (or the model door's); they know nothing of HTTP.
Every non-2xx answer is {"error": code, "message": sentence, "details": {…}}; contract.md lists the codes.
"""

import logging
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import jwt
from django.conf import settings
from django.contrib import admin
from django.core import exceptions as django
from django.db import OperationalError, connection
from django.http import Http404, HttpRequest, HttpResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.shortcuts import render
from django.views import csrf, defaults
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from rest_framework import exceptions as rest
from rest_framework.renderers import BrowsableAPIRenderer
from rest_framework.response import Response
from rest_framework.views import set_rollback

from yral_chat import ai
from yral_chat.admin_access import is_admin_page
from yral_chat.json import FastJSONRenderer, dumps

logger = logging.getLogger(__name__)


class NotFound(Exception):
    """It doesn't exist, or not any more. The text is for the caller."""


class Forbidden(Exception):
    """It exists and belongs to somebody else."""


class BadRequest(Exception):
    """What was sent can't be used as what it claims to be: a file that is no picture, say."""


class Conflict(Exception):
    """It can't be done as things stand; `reason` says why, for programs."""

    def __init__(self, message: str, *, reason: str, **details: str) -> None:
        super().__init__(message)
        self.details = {"reason": reason, **details}


class TooLarge(Exception):
    pass


class StorageUnavailable(Exception):
    """Files can't be stored or read at the moment."""

    retry_after = 5


class Invalid(Exception):
    """A value that no serializer could judge. `loc` points to it in the request, as in details.errors."""

    def __init__(self, message: str, *, loc: list[str | int], kind: str = "invalid") -> None:
        super().__init__(message)
        self.loc, self.kind = loc, kind


STATUS: dict[type[Exception], tuple[int, str]] = {
    BadRequest: (400, "bad_request"),
    rest.ParseError: (400, "bad_request"),
    django.BadRequest: (400, "bad_request"),
    django.SuspiciousOperation: (400, "bad_request"),
    MultiPartParserError: (400, "bad_request"),
    UnreadablePostError: (400, "bad_request"),  # the client hung up in the middle of it
    rest.AuthenticationFailed: (401, "unauthorized"),
    rest.NotAuthenticated: (401, "unauthorized"),
    Forbidden: (403, "forbidden"),
    django.PermissionDenied: (403, "forbidden"),
    rest.PermissionDenied: (403, "forbidden"),
    NotFound: (404, "not_found"),
    Http404: (404, "not_found"),
    rest.NotFound: (404, "not_found"),
    rest.MethodNotAllowed: (405, "method_not_allowed"),
    Conflict: (409, "conflict"),
    TooLarge: (413, "payload_too_large"),
    django.RequestDataTooBig: (413, "payload_too_large"),
    rest.UnsupportedMediaType: (415, "unsupported_media_type"),
    Invalid: (422, "validation_error"),
    rest.ValidationError: (422, "validation_error"),
    StorageUnavailable: (503, "storage_unavailable"),
    ai.ModelError: (503, "ai_service_unavailable"),
    jwt.PyJWKClientConnectionError: (503, "authentication_unavailable"),
    Exception: (500, "internal_server_error"),
}

MESSAGES = {
    "bad_request": "The request could not be understood.",
    "forbidden": "You are not allowed to do this.",
    "not_found": "There is nothing at this address.",
    "method_not_allowed": "This address doesn't answer that method.",
    "range_not_satisfiable": "The file has no such part.",
    "payload_too_large": "The request body is too large.",
    "unsupported_media_type": "This address doesn't take a body of that type.",
    "validation_error": "The request is not valid.",
    "internal_server_error": "Something went wrong on our side. Please try again later.",
    "authentication_unavailable": "Tokens can't be checked right now. Please try again in a moment.",
    "storage_unavailable": "Files can't be stored or read right now. Please try again in a moment.",
    "ai_service_unavailable": "The persona can't answer right now. Please try again in a moment.",
}
TITLES = {400: "Not understood", 403: "Not allowed", 404: "Nothing here"}  # of the admin's pages
OF_NGINX = "service_unavailable"  # in front of the service, where it can't be reached (deploy/nginx)
CODES = sorted((*MESSAGES, "unauthorized", "conflict", "rate_limit_exceeded", OF_NGINX))
OWN_WORDS = (
    BadRequest,
    Conflict,
    NotFound,
    TooLarge,
    Forbidden,
    Invalid,
    rest.ParseError,
    rest.AuthenticationFailed,
    rest.NotAuthenticated,
)


def status_and_code(exc: Exception) -> tuple[int, str]:
    """Of the nearest class in the table."""
    return next(STATUS[kind] for kind in type(exc).__mro__ if kind in STATUS)


def body(code: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"error": code, "message": message, "details": details or {}}


def handle(exc: Exception, context: Mapping[str, Any]) -> Response:
    """Every exception of a view, as an answer. Set as DRF's EXCEPTION_HANDLER."""
    set_rollback()
    status, code = status_and_code(exc)
    if status == 500:
        logger.exception("Unhandled %s", type(exc).__name__)
        if isinstance(exc, OperationalError):
            connection.close()
    elif status == 503:
        logger.warning("%s: %s", code, exc)
    request: Any = context["request"]
    if not isinstance(getattr(request, "accepted_renderer", None), BrowsableAPIRenderer):
        request.accepted_renderer = FastJSONRenderer()
        request.accepted_media_type = FastJSONRenderer.media_type
    return Response(body(code, _message(exc, code), _details(exc)), status=status, headers=_headers(exc))


def _message(exc: Exception, code: str) -> str:
    if code == "internal_server_error" and settings.DEBUG:
        return f"{type(exc).__name__}: {exc}"
    if code == "method_not_allowed":
        return f"This address doesn't answer {getattr(exc, 'method', 'that method')}."
    if isinstance(exc, OWN_WORDS) and str(exc):
        return str(exc)
    return MESSAGES.get(code, "The request failed.")


def _details(exc: Exception) -> dict[str, Any]:
    if isinstance(exc, Conflict):
        return exc.details
    if isinstance(exc, Invalid):
        return {"errors": [{"loc": exc.loc, "msg": str(exc), "type": exc.kind}]}
    if isinstance(exc, rest.ValidationError):
        return {"errors": list(_flat(exc.detail, ["body"]))}
    return {}


def _flat(detail: Any, loc: list[str | int]) -> Any:
    """DRF's nested error details as a flat list; `loc` is the way to the value, as clients of the original know it."""
    if isinstance(detail, Mapping):
        for key, value in detail.items():
            yield from _flat(value, loc if key == "non_field_errors" else [*loc, key])
    elif isinstance(detail, list):
        for index, value in enumerate(detail):
            yield from _flat(value, loc if isinstance(value, str) else [*loc, index])
    else:
        yield {"loc": loc, "msg": str(detail), "type": getattr(detail, "code", "invalid")}


def _headers(exc: Exception) -> dict[str, str]:
    headers = {}
    if auth := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = auth
    if status_and_code(exc)[0] == 503:
        headers["Retry-After"] = str(getattr(exc, "retry_after", 5))
    return headers


def invalid_query(name: str, message: str, kind: str = "invalid") -> Invalid:
    return Invalid(message, loc=["query", name], kind=kind)


def too_large() -> HttpResponse:
    return plain("payload_too_large", 413)


def rate_limited(seconds: int, limit_type: str) -> HttpResponse:
    """For so many seconds."""
    message = f"Too many requests. Please try again in {seconds} second{'' if seconds == 1 else 's'}."
    details = {"retry_after": seconds, "limit_type": limit_type}
    content = dumps(body("rate_limit_exceeded", message, details))
    headers = {"Retry-After": str(seconds), "Content-Length": str(len(content))}
    return HttpResponse(content, "application/json", status=429, headers=headers)


def plain(code: str, status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    """The one shape, outside of DRF's views."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return HttpResponse(dumps(body(code, MESSAGES[code])), status=status, headers=headers)


View = Callable[[HttpRequest], HttpResponse]


def absent_unless(is_there: Callable[[], bool]) -> Callable[[View], View]:
    """For pages that some environments don't have: there whatever is sent to them is a 404, before anybody asks for a
    CSRF token."""

    def hidden(view: View) -> View:
        protected = csrf_protect(view)

        @csrf_exempt
        @wraps(view)
        def found(request: HttpRequest) -> HttpResponse:
            return protected(request) if is_there() else plain("not_found", 404)

        return found

    return hidden


# What Django itself answers outside of any view of ours (urls.py names these). Of the admin staff see a page of it.
def _outside(request: HttpRequest, code: str, status: int) -> HttpResponse:
    user = getattr(request, "user", None)  # none of a request that got no further than the first middleware
    if user and user.is_authenticated and is_admin_page(request):
        known = {**admin.site.each_context(request), "title": TITLES[status], "status": status, "said": MESSAGES[code]}
        return render(request, "admin/refused.html", known, status=status)
    return plain(code, status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _outside(request, "bad_request", 400)


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _outside(request, "forbidden", 403)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """Of the admin Django's own page, which says what to do."""
    return csrf.csrf_failure(request, reason) if is_admin_page(request) else plain("forbidden", 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _outside(request, "not_found", 404)


def server_error(request: HttpRequest) -> HttpResponse:
    """Of the admin Django's own page: ours would ask the database, which may be what failed."""
    return defaults.server_error(request) if is_admin_page(request) else plain("internal_server_error", 500)
