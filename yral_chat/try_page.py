"""/try: a page of ours to chat with the personas. It is the demo, and the front end to read before writing one's own.

The page is an app like any other: it knows the API's addresses and a token that somebody pastes. In development alone
the server gives it one, for any user.
"""

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.middleware.csrf import get_token
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import AuthenticationFailed

from yral_chat import ai, errors
from yral_chat.authentication import user_of
from yral_chat.management.commands.issue_token import token_for

DAY = 86400
NAME_RULE = "A user name has 1 to 255 characters."
NO_NAME = errors.body(
    "validation_error", NAME_RULE, {"errors": [{"loc": ["body", "user"], "msg": NAME_RULE, "type": "invalid"}]}
)


@csrf_exempt  # else it answers other methods before this does
def try_page(request: HttpRequest) -> HttpResponse:
    if not settings.ENABLE_TRY_PAGE:
        return errors.plain("not_found", 404)
    if request.method not in ("GET", "HEAD"):
        return errors.plain("method_not_allowed", 405, headers={"Allow": "GET, HEAD"})
    known = {"known": known_to_the_page(request), "environment": settings.ENVIRONMENT, "name": settings.APP_NAME}
    page = render(request, "try.html", known)
    page["Cache-Control"] = "no-store"
    return page


def known_to_the_page(request: HttpRequest) -> dict[str, Any]:
    """What its scripts read: `scenes` is empty in production, and `tokens` is null outside development."""
    return {
        "base": settings.SCRIPT_NAME,
        "scenes": {} if settings.PRODUCTION else ai.scenes(),
        "tokens": {"url": reverse("try_token"), "csrf": get_token(request)} if gives_tokens() else None,
        "mostImageMB": settings.MAX_IMAGE_SIZE_MB,
        "mostAudioMB": settings.MAX_AUDIO_SIZE_MB,
        "mostSeconds": settings.MAX_AUDIO_DURATION_SECONDS,
    }


def gives_tokens() -> bool:
    """Only where this service signs them itself, with a key that opens nothing else."""
    return bool(settings.DEVELOPMENT and settings.ENABLE_TRY_PAGE and settings.JWT_ALGORITHM.startswith("HS"))


def try_token(request: HttpRequest) -> HttpResponse:
    """For the page alone: who sends no CSRF token is refused before this is asked."""
    if request.method != "POST":
        return errors.plain("method_not_allowed", 405, headers={"Allow": "POST"})
    user = request.POST.get("user", "").strip()
    try:
        user_of({"sub": user})
    except AuthenticationFailed:
        return JsonResponse(NO_NAME, status=422)
    return JsonResponse({"token": token_for(user, 30 * DAY)}, headers={"Cache-Control": "no-store"})
