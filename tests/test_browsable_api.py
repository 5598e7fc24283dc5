"""The API as pages in development, and the cookie that opens nothing but those (A11)."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api, token
from tests.servers import environment, python
from tests.test_pages import Inline, policy
from tests.test_try_page import NOT_THERE
from tests.yral_chat.test_house import API

CHATS = "/api/v1/chat/conversations"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
JSON = {"Accept": "application/json"}


def logged_in(user: str = "alice", **options: Any) -> Client:
    client = Client(**options)
    client.cookies["pasted_token"] = token(user)
    return client


@pytest.mark.django_db
def test_a_pasted_token_opens_the_pages_until_one_logs_out() -> None:
    client = Client()
    refused = client.get(CHATS, headers=HTML)
    assert refused.status_code == 401
    assert f"/browse/login?next={CHATS}" in refused.content.decode()

    answer = client.post("/browse/login", {"token": f" Bearer {token('alice')}\n", "next": CHATS})
    kept = client.cookies["pasted_token"]

    assert (answer.status_code, answer["Location"]) == (302, CHATS)
    assert (kept["httponly"], kept["samesite"], kept["path"], kept["max-age"]) == (True, "Strict", "/", "")
    page = client.get(CHATS, headers=HTML)
    assert page.status_code == 200
    assert page["Content-Type"].startswith("text/html")
    assert "alice" in page.content.decode()
    assert token("alice").rsplit(".", 1)[0][:40] not in page.content.decode()

    client.post("/browse/logout", {"next": CHATS})
    assert client.get(CHATS, headers=HTML).status_code == 401


@pytest.mark.parametrize(
    ("pasted", "problem"),
    [
        ("nonsense", "Invalid token"),
        ("", "Invalid token"),
        (token("alice", exp=1), "Token has expired"),
        (token("alice", iss="https://evil.example"), "Invalid token issuer"),
        ("<script>alert(1)</script>", "Invalid token"),
    ],
)
def test_a_token_that_does_not_hold_is_not_kept(pasted: str, problem: str) -> None:
    client = Client()

    page = client.post("/browse/login", {"token": pasted})

    assert page.status_code == 200
    assert problem in page.content.decode()
    assert pasted == "" or pasted not in page.content.decode()
    assert "pasted_token" not in client.cookies


@pytest.mark.django_db
def test_the_cookie_does_not_open_the_api_itself(conversation: Conversation) -> None:
    path = f"{CHATS}/{conversation.pk}/messages"
    for headers in (JSON, {"Accept": "*/*"}, {}):
        assert logged_in().get(path, headers=headers).status_code == 401
        assert logged_in().post(path, {}, "application/json", headers=headers).status_code == 401


@pytest.mark.django_db
def test_a_write_needs_the_page_s_csrf_token(coach: Influencer) -> None:
    client, body = logged_in(enforce_csrf_checks=True), {"influencer_id": coach.pk}

    forged = client.post(CHATS, body, "application/json", headers=HTML)

    assert forged.status_code == 403
    assert "HTTP 403" in forged.content.decode()
    assert not Conversation.objects.exists()

    page = client.get(CHATS, headers=HTML).content.decode()
    csrf = {"X-CSRFToken": re.search(r'"csrfToken": "(\w+)"', page)[1]}  # type: ignore[index]
    elsewhere = client.post(CHATS, body, "application/json", headers={**HTML, **csrf, "Origin": "http://evil.example"})
    assert elsewhere.status_code == 403
    assert client.post(CHATS, body, "application/json", headers={**HTML, **csrf}).status_code == 201
    assert Conversation.objects.get().user_id == "alice"


@pytest.mark.django_db
@pytest.mark.parametrize("site", ["same-site", "cross-site", "nonsense"])
def test_pages_of_other_sites_and_ports_get_nothing_by_it(site: str) -> None:
    assert logged_in().get(CHATS, headers={**HTML, "Sec-Fetch-Site": site}).status_code == 401
    assert logged_in().get(CHATS, headers={**HTML, "Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("environment", ["staging", "production"])
def test_elsewhere_nobody_looks_at_the_cookie(environment: str, settings: Any) -> None:
    settings.ENVIRONMENT, settings.DEVELOPMENT = environment, False

    assert logged_in().get(CHATS, headers=HTML).status_code == 401
    for path in ("/browse/login", "/browse/logout"):
        client = Client(enforce_csrf_checks=True)
        assert client.get(path).json() == client.post(path, {"token": token()}).json() == NOT_THERE


@pytest.mark.drill
@pytest.mark.parametrize("where", ["staging", "production"])
def test_elsewhere_the_api_has_no_pages_at_all(where: str, tmp_path: Any) -> None:
    env = environment(tmp_path, "http://127.0.0.1:1", 8000, ENVIRONMENT=where)
    says = (
        "from yral_chat.settings import REST_FRAMEWORK as rest; print(*rest['DEFAULT_RENDERER_CLASSES'], *rest['{}'])"
    )

    run = python(env, "-c", says.format("DEFAULT_AUTHENTICATION_CLASSES"))

    names = ["yral_chat.json.FastJSONRenderer", "yral_chat.authentication.BearerAuthentication"]
    assert run.stdout.split() == names, run.stderr


@pytest.mark.django_db
def test_a_header_comes_before_the_cookie_and_two_do_not_add_up(alice: Api, coach: Influencer) -> None:
    alice.open(coach)
    client = logged_in("alice")

    as_bob = client.get(CHATS, headers={**HTML, "Authorization": f"Bearer {token('bob')}"})
    refused = client.get(CHATS, headers={**HTML, "Authorization": "Bearer nonsense"})

    assert coach.display_name not in as_bob.content.decode()
    assert refused.status_code == 401


@pytest.mark.django_db
def test_a_login_to_the_admin_opens_no_page_of_the_api(superuser: User) -> None:
    client = Client()
    client.force_login(superuser)

    assert client.get(CHATS, headers=HTML).status_code == 401
    assert logged_in().get("/admin/", headers=HTML).status_code == 302


@pytest.mark.parametrize("asked", ["https://evil.example/", "//evil.example", "javascript:alert(1)", "\\\\evil", ""])
def test_one_comes_back_to_this_site_only(asked: str) -> None:
    answer = Client().post("/browse/login", {"token": token(), "next": asked})

    assert (answer.status_code, answer["Location"]) == (302, "/")


def test_a_login_from_another_site_is_refused() -> None:
    client = Client(enforce_csrf_checks=True)

    refused = client.post("/browse/login", {"token": token("mallory")})
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
    assert client.post("/browse/logout").status_code == 403


# Every route

ROUTES = sorted({route for route, _ in API})


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("route", [*ROUTES, "", "status"])
def test_every_route_is_a_page_that_its_policy_lets_work(
    route: str, alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    question = alice.send(conversation).json()["user_message"]["id"]
    path = "/" + re.sub(r"<str:question_id>", question, re.sub(r"<str:conversation_id>", str(conversation.pk), route))
    path = path.replace("<str:influencer_id>", coach.pk)

    page = logged_in().get(path, headers=HTML)

    if page.streaming:
        assert b"event: done" in page.getvalue()
        return
    text = page.content.decode()
    assert page["Content-Type"].startswith("text/html")
    assert page.status_code in (200, 405)
    assert f"HTTP {page.status_code}" in text
    assert "alice" in text
    rules = policy(page)
    found = Inline(rules["script-src"] + rules["style-src"])
    found.feed(text)
    assert not found.stopped
