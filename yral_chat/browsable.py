"""The API as pages, in development: Django REST framework's, with a login by a pasted token.

The token is kept in a cookie of its own. It speaks for nobody but who opens these pages: it counts in development only,
where a page is asked for, where the browser says that the request is of this site, and on a write with a CSRF token.
The API itself knows the Authorization header and nothing else; a login to the admin opens none of this.
"""

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import APIException
from rest_framework.renderers import BrowsableAPIRenderer
from rest_framework.request import Request

from yral_chat import errors
from yral_chat.authentication import BearerAuthentication, Caller, judged

COOKIE = "pasted_token"


class BrowsableRenderer(BrowsableAPIRenderer):
    def get_context(self, data: Any, media_type: str | None, context: Mapping[str, Any]) -> dict[str, Any]:
        request = context["request"]
        known: dict[str, Any] = super().get_context(data, media_type, context)
        ours = {"pasted_for": whose(request), "try_page": settings.ENABLE_TRY_PAGE}
        return {**known, **ours, "options_form": None}  # no address answers OPTIONS

    def get_breadcrumbs(self, request: Request) -> list[tuple[str, str]]:
        """Without the parts of the path that are no address."""
        return [(name, path) for name, path in super().get_breadcrumbs(request) if name != "Not Found"]


class BrowsableAuthentication(BearerAuthentication):
    """Without an Authorization header the pasted token counts, for the pages alone."""

    def authenticate(self, request: Request) -> tuple[Caller, None]:
        if "HTTP_AUTHORIZATION" in request.META or not is_for_a_page(request):
            return super().authenticate(request)
        token = request.COOKIES[COOKIE]
        SessionAuthentication().enforce_csrf(request)
        return judged(token), None


def is_for_a_page(request: Request) -> bool:
    """Pages of other ports of this machine are of the same site to a browser, and send its cookies."""
    return bool(
        settings.DEVELOPMENT
        and request.COOKIES.get(COOKIE)
        and isinstance(getattr(request, "accepted_renderer", None), BrowsableAPIRenderer)
        and request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
    )


def whose(request: Request) -> str:
    """The user of the pasted token; empty if there is none that holds."""
    try:
        return judged(request.COOKIES[COOKIE]).user_id
    except (KeyError, APIException):
        return ""


def log_in(request: HttpRequest) -> HttpResponse:
    """A form for the token, and what it sends."""
    back, problem = _back(request), ""
    if request.method == "POST":
        token = "".join(request.POST.get("token", "").split()).removeprefix("Bearer")
        try:
            judged(token)
        except APIException as exc:
            problem = str(exc.detail)
        else:
            return _keeping(HttpResponseRedirect(back), token)
    return render(request, "rest_framework/paste_token.html", {"next": back, "problem": problem})


def log_out(request: HttpRequest) -> HttpResponse:
    if request.method != "POST":
        return errors.plain("method_not_allowed", 405, headers={"Allow": "POST"})
    response = HttpResponseRedirect(_back(request))
    response.delete_cookie(COOKIE, path=settings.SESSION_COOKIE_PATH, samesite="Strict")
    return response


def _keeping(response: HttpResponse, token: str) -> HttpResponse:
    """Until the browser is closed."""
    path = settings.SESSION_COOKIE_PATH
    response.set_cookie(COOKIE, token, path=path, httponly=True, samesite="Strict")
    return response


def _back(request: HttpRequest) -> str:
    """Where the person came from, if that is here."""
    asked = request.POST.get("next") or request.GET.get("next") or ""
    is_ours = url_has_allowed_host_and_scheme(asked, allowed_hosts={request.get_host()})
    return asked if is_ours else reverse("root")
