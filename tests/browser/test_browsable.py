"""The pages of the API in development, used with mouse and keyboard: a pasted token, reading and writing."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk
from tests.browser.look import inaccessible, screenshot, too_wide
from tests.conftest import token
from tests.media_uploads.conftest import png
from tests.servers import CHATS, Server
from tests.test_browsable_api import ROUTES


def log_in(page: Page, user: str) -> None:
    page.get_by_role("link", name="Log in with a token").click()
    page.get_by_label("Token").fill(token(user))
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text(user, exact=True).first).to_be_visible()
    page.wait_for_load_state()  # its script, which sends the forms, comes last


@pytest.mark.parametrize("phone", [False, True])
def test_one_logs_in_by_a_token_and_opens_a_conversation_by_a_form(desk: Desk, service: Server, phone: bool) -> None:
    user = f"browser-{phone}"
    page = desk(CHATS, user="", phone=phone, but="401")
    screenshot(page, f"browsable-refused-{phone}")
    log_in(page, user)
    expect(page.get_by_text("HTTP 200 OK")).to_be_visible()
    screenshot(page, f"browsable-{phone}")
    assert not too_wide(page)

    assert '"influencer_id"' in page.get_by_label("Content:").input_value()
    page.get_by_label("Content:").fill(f'{{"influencer_id": "{service.influencers[0]}"}}')
    page.get_by_role("button", name="POST").click()

    expect(page.get_by_text("HTTP 201 Created")).to_be_visible()
    assert service.call("GET", CHATS, user=user).json()["total"] == 1
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_text("HTTP 401 Unauthorized")).to_be_visible()


def test_a_token_that_does_not_hold_is_told(desk: Desk) -> None:
    page = desk("/browse/login", user="")
    page.get_by_label("Token").fill("nonsense")
    page.get_by_role("button", name="Log in").click()

    expect(page.get_by_role("alert")).to_have_text("Invalid token")
    screenshot(page, "browsable-login")
    assert not [*inaccessible(page), *too_wide(page)]


def test_every_route_opens_without_a_fault(desk: Desk, service: Server) -> None:
    """The stream of an answer is no page: the browser shows its text, and looks for an icon."""
    page = desk("/", user="", but="405|favicon.ico")
    log_in(page, "walker")
    talk = service.open(service.influencers[0], "walker")
    question = service.send(talk, "Hello!", "walker").json()["user_message"]["id"]
    for route in ROUTES:
        path = route.replace("<str:question_id>", question).replace("<str:conversation_id>", talk)
        page.goto("/" + path.replace("<str:influencer_id>", service.influencers[0]))
        expect(page.get_by_text(re.compile("HTTP (200|405)|event: done")).first).to_be_visible()
        screenshot(page, f"browsable-{route.rsplit('/', 1)[1].strip('<>').replace(':', '-')}")


def test_a_picture_is_uploaded_by_a_form(desk: Desk) -> None:
    page = desk("/api/v1/media/upload", user="", but="401|405")
    log_in(page, "painter")
    page.locator("input[type=file]").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": png(8, 8)})
    page.get_by_role("button", name="POST").first.click()

    expect(page.get_by_text("HTTP 200 OK")).to_be_visible()
    expect(page.get_by_text('"storage_key"')).to_be_visible()
