"""/try and its tokens: where they are, and where they aren't. tests/browser/test_chat_page.py uses the page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.test import Client

from conversations.management.commands.prepare_development import Command
from personas.models import Influencer
from tests.servers import environment, python
from yral_chat.authentication import judged

NOT_THERE = {"error": "not_found", "message": "There is nothing at this address.", "details": {}}


def known(client: Client) -> dict[str, Any]:
    """What the page's scripts read."""
    page = client.get("/try").content.decode()
    found = re.search(r'<script id="known" type="application/json">(.*?)</script>', page)
    assert found
    return dict(json.loads(found[1]))


@pytest.fixture
def production(settings: Any) -> None:
    settings.ENVIRONMENT, settings.PRODUCTION, settings.DEVELOPMENT = "production", True, False
    settings.ENABLE_TRY_PAGE = False


@pytest.fixture
def staging(settings: Any) -> None:
    settings.ENVIRONMENT, settings.DEVELOPMENT = "staging", False


@pytest.mark.django_db
def test_make_run_prints_its_link_first(settings: Any, tmp_path: Path, coach: Influencer) -> None:
    settings.BASE_DIR = tmp_path  # where it keeps the password that it says

    links = re.findall(r"http://127\.0\.0\.1:8000/\S*", Command().guide())

    assert links[0] == "http://127.0.0.1:8000/try"


def test_production_has_no_such_page(production: None) -> None:
    for method in ("GET", "POST"):
        for path in ("/try", "/try/token"):
            answer = Client(enforce_csrf_checks=True).generic(method, path)
            assert (answer.status_code, answer.json()) == (404, NOT_THERE)


def test_production_shows_it_where_it_is_enabled_without_tokens_and_scenes(production: None, settings: Any) -> None:
    settings.ENABLE_TRY_PAGE = True

    page = Client().get("/try")

    assert page.status_code == 200
    assert (known(Client())["tokens"], known(Client())["scenes"]) == (None, {})
    assert b"Get a token" not in page.content
    assert b'id="scene"' not in page.content
    assert "Set-Cookie" not in page
    assert Client(enforce_csrf_checks=True).post("/try/token", {"user": "alice"}).status_code == 404


def test_staging_has_scenes_and_no_tokens(staging: None) -> None:
    assert known(Client())["tokens"] is None
    assert "slow" in known(Client())["scenes"]
    assert b"Get a token" not in Client().get("/try").content
    assert Client().post("/try/token", {"user": "alice"}).status_code == 404


def test_development_gives_a_token_for_any_name() -> None:
    answer = Client().post("/try/token", {"user": " Zoë "})

    assert judged(answer.json()["token"]).user_id == "Zoë"
    assert answer["Cache-Control"] == "no-store"


@pytest.mark.parametrize("user", ["", "  ", "a" * 256, "a\x00b"])
def test_a_name_that_can_not_be_one_gets_a_sentence(user: str) -> None:
    answer = Client().post("/try/token", {"user": user})

    assert (answer.status_code, answer.json()["error"]) == (422, "validation_error")
    assert answer.json()["message"] == "A user name has 1 to 255 characters."


def test_another_site_s_page_gets_no_token() -> None:
    client = Client(enforce_csrf_checks=True)
    refused = client.post("/try/token", {"user": "alice"})
    assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")

    csrf = known(client)["tokens"]["csrf"]

    assert client.post("/try/token", {"user": "alice"}, headers={"X-CSRFToken": csrf}).status_code == 200
    foreign = {"X-CSRFToken": csrf, "Origin": "https://evil.example"}
    assert client.post("/try/token", {"user": "alice"}, headers=foreign).status_code == 403


def test_where_tokens_are_somebody_else_s_none_is_given(settings: Any) -> None:
    settings.JWT_ALGORITHM = "RS256"

    assert known(Client())["tokens"] is None
    assert Client().post("/try/token", {"user": "alice"}).status_code == 404


def test_it_is_read_and_nothing_else() -> None:
    answer = Client(enforce_csrf_checks=True).post("/try")

    assert (answer.status_code, answer["Allow"], answer.json()["error"]) == (405, "GET, HEAD", "method_not_allowed")
    assert Client().head("/try").status_code == 200


def test_nothing_of_it_is_kept_by_browsers_and_nothing_comes_from_elsewhere() -> None:
    page = Client().get("/try")

    assert page["Cache-Control"] == "no-store"
    assert not re.findall(r'(?:src|href)="(?!/static/)[^"]*"', page.content.decode())
    for file in (configured.BASE_DIR / "yral_chat/static/yral_chat/try").iterdir():
        assert "://" not in file.read_text(encoding="utf-8").replace("https://html.spec.whatwg.org", ""), file
        assert "innerHTML" not in file.read_text(encoding="utf-8"), file


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"AWS_REGION": "ap-south-1"},
        {"S3_ENDPOINT_URL": "http://minio.example:9000", "S3_ADDRESSING_STYLE": "virtual"},
    ],
)
def test_pictures_in_a_bucket_are_shown_by_the_page_and_the_desk(given: dict[str, str], tmp_path: Path) -> None:
    bucket = {
        "USE_S3": "true",
        "AWS_S3_BUCKET": "chats",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        **given,
    }
    env = environment(tmp_path, "http://127.0.0.1:1", 8000, ENVIRONMENT="staging", **bucket)
    says = (
        "import django; django.setup()\n"
        "from django.conf import settings; from media_uploads import storage\n"
        "link = storage.url_for('alice/3f6c2a9e-8b1d-4e7f-a2c5-9d0e1f2a3b4c.jpg', '')\n"
        "print(link.partition('/alice/')[0], *settings.TRY_CSP['img-src'], 'and', *settings.ADMIN_CSP['img-src'])"
    )

    run = python({**env, "DJANGO_SETTINGS_MODULE": "yral_chat.settings"}, "-c", says)

    link, page, desk = re.fullmatch(r"(\S+?)(?:/chats)? (.*) and (.*)\n", run.stdout).groups()  # type: ignore[union-attr]
    assert link in page.split()
    assert link in desk.split() or (link.startswith("https:") and "https:" in desk.split())
