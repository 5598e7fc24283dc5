"""What a view sees of a request, as JSON."""

from typing import Any

from django.http import HttpRequest, JsonResponse
from django.urls import include, path, reverse

from yral_chat.pagination import base_url


def echo(request: Any) -> JsonResponse:
    return JsonResponse(
        {
            "address": request.META.get("REMOTE_ADDR"),
            "is_direct": request.is_direct,
            "secure": request.is_secure(),
            "host": request.get_host(),
            "path": request.path,
            "path_info": request.path_info,
            "url": request.build_absolute_uri(),
            "base_url": base_url(request),
            "reversed": reverse("echo"),
            "forwarding": [name for name in request.headers if "forward" in name.lower() or name == "X-Real-Ip"],
        }
    )


def missing(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"missing": request.path_info}, status=404)


urlpatterns = [
    path("echo", echo, name="echo"),
    path("api/v1/echo", echo),
    path("", include("yral_chat.urls")),
]
