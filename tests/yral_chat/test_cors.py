"""Which web pages may call the API (A24): those of CORS_ORIGINS, never the admin, never a stranger with cookies."""

from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings as configured
from django.contrib.auth.models import User
from django.test import Client

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api, token

pytestmark = pytest.mark.own_database

CHATS = "/api/v1/chat/conversations"
APP = "https://app.example"
ALLOW = "Access-Control-Allow-Origin"
OF_DEVELOPMENT = configured.CORS_ALLOWED_ORIGIN_REGEXES


@pytest.fixture(autouse=True)
def one_app(settings: Any) -> None:
    settings.CORS_ALLOWED_ORIGINS, settings.CORS_ALLOWED_ORIGIN_REGEXES = [APP], []


def preflight(path: str, origin: str = APP, method: str = "POST", headers: str = "authorization") -> Any:
    return Client().options(
        path,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": headers,
        },
    )


def words(response: Any, header: str) -> set[str]:
    return {word.strip().lower() for word in response[header].split(",")}


def test_a_preflight_needs_no_token_and_no_database() -> None:
    response = preflight(CHATS)

    assert response.status_code == 200
    assert response[ALLOW] == APP
    assert {"get", "post", "delete"} <= words(response, "Access-Control-Allow-Methods")
    assert words(response, "Access-Control-Allow-Headers") == {
        *("authorization", "content-type", "idempotency-key", "last-event-id", "x-correlation-id", "x-chat-scenario")
    }
    assert "Access-Control-Allow-Credentials" not in response
    assert "origin" in words(response, "Vary")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil.example",
        "https://evilapp.example",
        "https://app.example@evil.example",
        "null",
        "",
        "https://[",
        "http://localhost:3000",
    ],
)
def test_a_stranger_s_page_is_told_nothing(origin: str, coach: Influencer) -> None:
    assert ALLOW not in preflight(CHATS, origin)
    response = Client().get("/api/v1/influencers", headers={"Origin": origin})
    assert ALLOW not in response
    assert "Access-Control-Allow-Credentials" not in response
    assert "origin" in words(response, "Vary"), "a cache must not give one page the answer for another"


def test_the_app_s_page_may_read_the_headers_that_it_needs(alice: Api, coach: Influencer) -> None:
    response = Client().get("/api/v1/influencers", headers={"Origin": APP})

    assert response[ALLOW] == APP
    assert words(response, "Access-Control-Expose-Headers") >= {
        *("x-correlation-id", "x-message-id", "retry-after"),
        *("x-ratelimit-limit-minute", "x-ratelimit-limit-hour"),
        *("x-ratelimit-remaining-minute", "x-ratelimit-remaining-hour"),
    }


def test_errors_can_be_read_too(coach: Influencer, settings: Any) -> None:
    client = Client(raise_request_exception=False)
    good = {"Origin": APP, "Authorization": f"Bearer {token()}"}
    for status, response in (
        (401, client.get(CHATS, headers={"Origin": APP})),
        (404, client.get("/api/v1/nothing", headers={"Origin": APP})),
        (405, client.put(CHATS, headers=good)),
        (400, client.post(CHATS, "{", content_type="application/json", headers=good)),
        (413, client.post(CHATS, "x" * 1_100_000, content_type="application/json", headers=good)),
        (422, client.post(CHATS, {}, content_type="application/json", headers=good)),
    ):
        assert (response.status_code, response[ALLOW]) == (status, APP)
    settings.ROOT_URLCONF = "tests.yral_chat.crashing_urls"
    settings.CORS_URLS_REGEX = "/.*"
    for path in ("/crash", "/crash/plain"):
        crashed = client.get(path, headers={"Origin": APP})
        assert (crashed.status_code, crashed[ALLOW]) == (500, APP)


@pytest.mark.django_db(transaction=True)  # a stream is written by another thread
def test_a_stream_can_be_read_too(alice: Api, conversation: Conversation) -> None:
    response = alice.client.post(
        f"{CHATS}/{conversation.pk}/messages/stream",
        {"message_type": "text", "content": "Hello!"},
        content_type="application/json",
        headers={**alice.headers(), "Origin": APP},
    )

    assert response.streaming
    assert response[ALLOW] == APP
    assert b"event:" in response.getvalue()


@pytest.mark.parametrize("path", ["/", "/health", "/status", "/openapi.json", "/openapi.yaml"])
def test_what_is_public_can_be_read(path: str, db: None) -> None:
    assert Client().get(path, headers={"Origin": APP})[ALLOW] == APP


@pytest.mark.parametrize("path", ["/admin/", "/admin/login/", "/docs", "/redoc", "/apix"])
@pytest.mark.parametrize("everybody", [False, True])
def test_the_admin_and_the_pages_are_for_no_other_page(
    path: str, everybody: bool, settings: Any, desk: Callable[[User], Client], superuser: User
) -> None:
    settings.CORS_ALLOW_ALL_ORIGINS = everybody
    for response in (preflight(path), desk(superuser).get(path, headers={"Origin": APP})):
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_everybody_may_be_let_in_without_credentials(settings: Any, coach: Influencer) -> None:
    settings.CORS_ALLOW_ALL_ORIGINS = True

    response = Client().get("/api/v1/influencers", headers={"Origin": "https://anybody.example"})

    assert response[ALLOW] == "*"
    assert "Access-Control-Allow-Credentials" not in response


def test_credentials_are_for_named_origins(settings: Any, coach: Influencer) -> None:
    settings.CORS_ALLOW_CREDENTIALS = True

    allowed = Client().get("/api/v1/influencers", headers={"Origin": APP})
    stranger = Client().get("/api/v1/influencers", headers={"Origin": "https://evil.example"})

    assert (allowed[ALLOW], allowed["Access-Control-Allow-Credentials"]) == (APP, "true")
    assert "Access-Control-Allow-Credentials" not in stranger


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:3000", True),
        ("https://localhost", True),
        ("http://127.0.0.1:5173", True),
        ("http://[::1]:8080", True),
        ("http://localhost.evil.example", False),
        ("http://localhost:3000.evil.example", False),
        ("http://evil.example/http://localhost", False),
        ("http://127.0.0.1.evil.example", False),
        ("null", False),
    ],
)
def test_in_development_the_pages_of_this_machine_may_call(origin: str, allowed: bool, settings: Any) -> None:
    settings.CORS_ALLOWED_ORIGINS, settings.CORS_ALLOWED_ORIGIN_REGEXES = [], OF_DEVELOPMENT

    assert (ALLOW in preflight(CHATS, origin)) == allowed
