"""Who gets to the admin's pages at all: by address, and after how many wrong passwords not for a while."""

import math
import time
from collections.abc import Callable
from typing import Any, cast

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.csp import CSP

from yral_chat import counters, metrics
from yral_chat.proxies import address_of, is_in
from yral_chat.throttling import MINUTE, network_of, window


def is_admin_page(request: HttpRequest) -> bool:
    """Of an admin that this client may know of: for everybody else there is none."""
    return is_admin_address(request) and may_enter(request)


def is_admin_address(request: HttpRequest) -> bool:
    return f"{request.path_info}/".startswith(f"/{settings.ADMIN_PATH}")


def may_enter(request: HttpRequest) -> bool:
    address = address_of(request.META.get("REMOTE_ADDR") or "")
    networks = settings.ADMIN_ALLOWED_NETWORKS
    return not networks or (address is not None and is_in(address, networks))


def climbs(request: HttpRequest) -> bool:
    """A proxy that keeps strangers from the admin takes /admin/../x for /x, and may hand it on as it came."""
    return not {".", ".."}.isdisjoint(request.path_info.split("/"))


class AdminAccessMiddleware:
    """To clients outside of ADMIN_ALLOWED_NETWORKS the admin is an address like any that isn't there.

    Inside, the pages may show pictures and sounds of other hosts: staff look at personas' portraits and users' files.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        from yral_chat.operations import NotFoundView  # the apps' models are there by now

        self.get_response, self.nothing = get_response, NotFoundView.as_view()

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not is_admin_address(request):
            return self.get_response(request)
        if climbs(request) or not may_enter(request):
            return cast(HttpResponse, self.nothing(request).render())
        response = too_many_logins(request) or self.get_response(request)
        return in_its_frame(request, response)


def in_its_frame(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """The theme opens pop-ups in frames of its own page; all else of the admin stands in no frame."""
    popup = "_popup" in request.GET
    framed_by = [CSP.SELF if popup else CSP.NONE]
    cast(Any, response)._csp_config = {**settings.ADMIN_CSP, "frame-ancestors": framed_by}
    response["X-Frame-Options"] = "SAMEORIGIN" if popup else "DENY"
    return response


def too_many_logins(request: HttpRequest) -> HttpResponse | None:
    """Whatever the names: to look at a password costs a fifth of a second of CPU. Axes counts only afterwards, and by
    then many may be under way."""
    most = settings.ADMIN_LOGINS_PER_MINUTE
    if not most or request.method != "POST" or request.path_info != f"/{settings.ADMIN_PATH}login/":
        return None
    now = time.time()
    minute = window("login_minute", MINUTE, most, now)
    counted = counters.of_this_process().count(f"login {client_network(request)}", [minute])
    if counted is None or counted.passed:
        return None
    metrics.LIMITED.labels("login", minute.name).inc()
    return _wait(request, max(1, math.ceil(minute.ends - now)), locked=False)


def locked_out(request: HttpRequest, response: HttpResponse | None, credentials: Any) -> HttpResponse:
    """After AXES_FAILURE_LIMIT wrong passwords for one name from one network. Set as AXES_LOCKOUT_CALLABLE."""
    return _wait(request, int(settings.AXES_COOLOFF_TIME.total_seconds()), locked=True)


def _wait(request: HttpRequest, seconds: int, *, locked: bool) -> HttpResponse:
    known = {"title": "Too many attempts", "minutes": math.ceil(seconds / 60), "locked": locked}
    known |= admin.site.each_context(request)
    page = render(request, "admin/locked_out.html", known, status=429)
    page["Retry-After"] = str(seconds)
    return page


def client_network(request: HttpRequest) -> str | None:
    """The client's address; of IPv6 its network's first, for a customer has 2⁶⁴. Set as AXES_CLIENT_IP_CALLABLE."""
    return network_of(request.META.get("REMOTE_ADDR") or "").partition("/")[0] or None


def name_tried(request: HttpRequest, credentials: dict[str, Any] | None) -> str:
    """As much of it as the table of attempts holds. Set as AXES_USERNAME_CALLABLE."""
    return str((credentials or request.POST).get("username") or "")[:255]
