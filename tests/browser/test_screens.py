"""Every screen of the desk opens in a browser, light and dark, on a laptop and a phone, and is open to everybody."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk
from tests.browser.look import give_reason, inaccessible, screenshot, too_wide

SCREENS = {
    "home": "/admin/",
    "personas": "/admin/personas/influencer/",
    "new-persona": "/admin/personas/influencer/add/",
    "conversations": "/admin/conversations/conversation/",
    "messages": "/admin/conversations/message/",
    "turns": "/admin/conversations/turn/",
    "uploads": "/admin/media_uploads/mediaupload/",
    "statistics": "/admin/statistics/",
    "staff": "/admin/auth/user/",
    "new-staff": "/admin/auth/user/add/",
    "groups": "/admin/auth/group/",
    "new-group": "/admin/auth/group/add/",
    "changes": "/admin/admin/logentry/",
    "readings": "/admin/conversations/reading/",
    "failed-logins": "/admin/axes/accessattempt/",
    "logins": "/admin/axes/accesslog/",
    "password": "/admin/password_change/",
}
DETAILS = ("personas", "conversations", "messages", "turns", "uploads", "staff", "groups", "readings", "logins")


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_every_screen_is_open_to_everybody(desk: Desk, look: str) -> None:
    page = desk("/admin/", dark=look == "dark", phone=look == "phone")
    faults = list[str]()
    for name, path in SCREENS.items():
        page.goto(path)
        faults += looked_at(page, f"{name}-{look}")
        if name in DETAILS:
            page.locator("#result_list a[href*='/change/']").first.click()
            page.wait_for_url(re.compile("/change/|/reason/"))
            if "/reason/" in page.url:
                faults += looked_at(page, f"reason-{look}")
                give_reason(page)
                page.wait_for_url(re.compile("/change/"))
            faults += looked_at(page, f"{name}-detail-{look}")
    assert not faults, "\n".join(faults)


def looked_at(page: Page, name: str) -> list[str]:
    expect(page.locator("h1").first).to_be_visible()
    screenshot(page, name)
    return [*too_wide(page), *inaccessible(page)]
