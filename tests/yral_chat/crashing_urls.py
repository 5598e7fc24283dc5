"""The service's addresses and a few that crash, for test_errors.py: what a bug answers."""

from typing import Any, NoReturn

from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import DatabaseError, connection
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response

from yral_chat.operations import PublicView
from yral_chat.urls import handler400, handler403, handler404, handler500  # noqa: F401
from yral_chat.urls import urlpatterns as real

SECRET = "s3cret-of-the-exception"  # noqa: S105


class Crash(PublicView):
    schema = None

    def get(self, request: Request) -> Response:
        raise RuntimeError(SECRET)

    def post(self, request: Request) -> Response:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT '{SECRET}' FROM no_such_table")
        raise AssertionError

    def put(self, request: Request) -> Response:
        return Response({"not JSON": object()})

    def delete(self, request: Request) -> Response:
        raise DatabaseError(SECRET)


def plain(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(SECRET)


def raises(kind: type[Exception]) -> Any:
    def view(request: HttpRequest) -> NoReturn:
        raise kind(SECRET)

    return view


urlpatterns = [
    path("crash", Crash.as_view()),
    path("crash/plain", plain),
    path("crash/400", raises(SuspiciousOperation)),
    path("crash/403", raises(PermissionDenied)),
    path("crash/404", raises(Http404)),
    *real,
]
