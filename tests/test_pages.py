"""What browsers are told of every page: run nothing of strangers, be shown in no frame, insist on https (A24)."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api

ADMIN = (
    *("/admin/", "/admin/login/", "/admin/password_change/", "/admin/auth/user/", "/admin/auth/user/add/"),
    *("/admin/auth/group/add/", "/admin/personas/influencer/", "/admin/personas/influencer/add/"),
    *("/admin/conversations/conversation/", "/admin/conversations/message/", "/admin/conversations/turn/"),
    *("/admin/media_uploads/mediaupload/", "/admin/axes/accessattempt/"),
)
PAGES = ("/docs", "/redoc", "/try", *ADMIN)


def policy(response: Any) -> dict[str, list[str]]:
    rules = [rule.split() for rule in response["Content-Security-Policy"].split(";")]
    return {rule[0]: rule[1:] for rule in rules}


class Inline(HTMLParser):
    """What the policy would stop: scripts and styles without the nonce, attributes that run or paint, other hosts."""

    def __init__(self, nonces: list[str]) -> None:
        super().__init__()
        self.nonces, self.stopped = nonces, list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        inert = tag == "script" and given.get("type") == "application/json"
        allowed = "src" in given or f"'nonce-{given.get('nonce')}'" in self.nonces
        if tag in ("script", "style") and not inert and not allowed:
            self.stopped.append(self.get_starttag_text() or tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style" or (value or "").startswith(("javascript:", "//")):
                self.stopped.append(f"{tag} {name}={value}")


@pytest.fixture
def browser(desk: Callable[[User], Client], superuser: User) -> Client:
    return desk(superuser)


@pytest.mark.parametrize("path", PAGES)
def test_a_page_works_under_its_own_policy(
    path: str, browser: Client, alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    alice.send(conversation, "Hello!")
    client = Client() if path == "/admin/login/" else browser
    response = client.get(path)
    assert response.status_code == 200
    rules = policy(response)

    page = Inline(rules["script-src"] + ([] if path == "/redoc" else rules["style-src"]))
    page.feed(response.content.decode())

    allowed = {"<style>"} if path == "/redoc" else set()
    assert set(page.stopped) <= allowed


@pytest.mark.parametrize("path", [*PAGES, "/", "/health", "/api/v1/influencers", "/nothing", "/admin/nothing/"])
def test_the_policy_is_strict(path: str, browser: Client) -> None:
    rules = policy(browser.get(path))

    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == ["'none'"]
    assert rules["form-action"] == rules["connect-src"] == ["'self'"]
    at_desk = path.startswith("/admin/")
    scripts = {"'self'", "'unsafe-eval'"} if at_desk else {"'self'"}  # the theme's pages hold expressions
    assert {word for word in rules["script-src"] if not word.startswith("'nonce-")} == scripts
    assert "'unsafe-inline'" not in rules["style-src"] or path == "/redoc"
    assert "'unsafe-inline'" not in str(rules["script-src"])
    assert ("https:" in rules["img-src"]) == at_desk


def test_a_pop_up_stands_in_a_frame_of_the_desk_itself_and_nothing_else_does(browser: Client) -> None:
    popup, page = (browser.get("/admin/auth/group/add/", query) for query in ({"_popup": "1"}, {}))

    assert (popup["X-Frame-Options"], policy(popup)["frame-ancestors"]) == ("SAMEORIGIN", ["'self'"])
    assert (page["X-Frame-Options"], policy(page)["frame-ancestors"]) == ("DENY", ["'none'"])
    assert policy(page)["frame-src"] == ["'self'"]


def test_the_search_of_pages_takes_any_words(browser: Client) -> None:
    for query in ({"s": "turns"}, {"s": "\x00"}, {"s": "%' OR"}):
        assert browser.get("/admin/search/", query).status_code == 200
    for page in ("x", "99", "-1", "1.5"):
        assert browser.get("/admin/search/", {"s": "turns", "page": page}).status_code == 404


def test_each_page_has_a_nonce_of_its_own(browser: Client) -> None:
    for path in ("/docs", "/redoc"):
        first, second = (policy(browser.get(path))["script-src"] for _ in range(2))
        assert [word for word in first if word.startswith("'nonce-")]
        assert first != second


@pytest.mark.parametrize("path", [*PAGES, "/", "/api/v1/influencers", "/nothing"])
def test_nothing_is_shown_in_a_frame_or_guessed_at(path: str, browser: Client) -> None:
    response = browser.get(path)

    assert response["X-Frame-Options"] == "DENY"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/api/v1/influencers", "/admin/login/", "/nothing"])
def test_browsers_are_told_to_insist_on_https_and_never_redirected(path: str, settings: Any, db: None) -> None:
    settings.SECURE_HSTS_SECONDS = 31_536_000

    assert Client().get(path, secure=True)["Strict-Transport-Security"] == "max-age=31536000"
    plain = Client().get(path)
    assert "Strict-Transport-Security" not in plain
    assert plain.status_code in (200, 404)


def test_a_form_from_another_site_does_not_log_in(editor: User) -> None:
    """Somebody else's login in a colleague's browser would show what that colleague writes."""
    client = Client(enforce_csrf_checks=True)
    body = {"username": "editor", "password": "a-password-for-tests"}

    assert client.post("/admin/login/", body).status_code == 403
    form = client.get("/admin/login/")
    body["csrfmiddlewaretoken"] = form.context["csrf_token"]
    assert client.post("/admin/login/", body, headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.post("/admin/login/", body, headers={"Origin": "null"}).status_code == 403
    assert client.post("/admin/login/", body).status_code == 302


def test_behind_a_proxy_with_https_the_login_works(editor: User, settings: Any) -> None:
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    proxied = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example", "X-Forwarded-For": "198.51.100.7"}
    client = Client(enforce_csrf_checks=True, REMOTE_ADDR="10.0.0.5", headers=proxied)
    body = {"username": "editor", "password": "a-password-for-tests"}
    body["csrfmiddlewaretoken"] = client.get("/admin/login/").context["csrf_token"]

    foreign = client.post("/admin/login/", body, headers={"Referer": "https://evil.example/"})
    assert foreign.status_code == 403
    assert client.post("/admin/login/", body, headers={"Origin": "https://chat.example"}).status_code == 302


def test_scripts_are_asked_for_anew_after_a_release_and_pictures_are_kept(settings: Any, tmp_path: Path) -> None:
    """As outside of development, where the files are collected."""
    settings.WHITENOISE_AUTOREFRESH = settings.WHITENOISE_USE_FINDERS = False
    settings.WHITENOISE_MAX_AGE, settings.STATIC_ROOT = 3600, tmp_path
    for name in ("try/main.js", "try/try.css", "avatar.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    served = Client()

    script = served.head("/static/try/main.js")

    assert script["Cache-Control"] == served.head("/static/try/try.css")["Cache-Control"] == "no-cache"
    assert served.head("/static/avatar.png")["Cache-Control"] == "max-age=3600, public"
    assert served.head("/static/try/main.js", headers={"If-None-Match": script["ETag"]}).status_code == 304
