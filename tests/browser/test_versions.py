"""A persona's versions in the browser: written, looked at word by word, published, taken back."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk
from tests.browser.look import inaccessible, screenshot, too_wide
from tests.servers import Server

LIST = "/admin/personas/influencer/"


def opened(page: Page, name: str) -> None:
    page.goto(LIST)
    page.get_by_role("link", name=name, exact=True).click()
    page.wait_for_url(re.compile("/change/"))


def looked_at(page: Page, name: str) -> None:
    expect(page.locator("h1").first).to_be_visible()
    screenshot(page, name)
    assert not (faults := [*too_wide(page), *inaccessible(page)]), "\n".join(faults)


def test_a_change_is_written_compared_published_and_taken_back(desk: Desk, service: Server) -> None:
    page = desk(LIST, user="root")
    opened(page, "तारा ज्योतिषी")
    greeting = page.get_by_label("Initial greeting")
    before = greeting.input_value()
    greeting.fill("Namaste {{user_name}}, what do the stars say today?")
    page.get_by_role("button", name="Save", exact=True).click()

    expect(page.get_by_text("You are writing the draft.")).to_be_visible()
    expect(page.locator(".findings")).to_contain_text("{{user_name}} isn't replaced here")
    looked_at(page, "draft-light")
    page.get_by_label("Initial greeting").fill("Namaste, what do the stars say today?")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("link", name="Publish …").click()
    expect(page.locator(".words ins").first).to_contain_text("Namaste")
    looked_at(page, "publish-light")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("Say in a sentence what changed.")).to_be_visible()
    page.get_by_label("What changed, and why").fill("A question begins a talk better.")
    page.get_by_role("button", name="Publish", exact=True).click()

    expect(page.get_by_text("Version 2 is live: the next answer obeys it.")).to_be_visible()
    persona = page.url.split("/")[-3]
    talk = service.open(persona, "the-first-after-publishing")
    assert (
        service.call("GET", f"/api/v1/chat/conversations/{talk}/messages", user="the-first-after-publishing")
        .json()["messages"][0]["content"]
        .startswith("Namaste, what do")
    )

    page.get_by_role("link", name="Versions").click()
    looked_at(page, "versions-light")
    page.get_by_role("link", name="Version 2").click()
    expect(page.locator(".words ins").first).to_be_visible()
    looked_at(page, "version-light")
    page.go_back()
    page.get_by_role("button", name="Roll back to version 1").click()
    expect(page.get_by_text("Version 3 is live.")).to_be_visible()
    expect(page.get_by_label("Initial greeting")).to_have_value(before)
    page.get_by_role("link", name="History").click()
    page.get_by_text("Before and after").first.click()
    expect(page.locator(".words ins:visible").first).to_be_visible()
    looked_at(page, "log-light")


def test_the_second_of_two_editors_sees_what_the_first_wrote_and_loses_nothing(desk: Desk, service: Server) -> None:
    first, second = desk(LIST, user="root"), desk(LIST, user="editor", dark=True, phone=True)
    for page in (first, second):
        opened(page, "Noor Styles")
    first.get_by_label("Initial greeting").fill("First wrote this greeting.")
    first.get_by_label("Deflection").fill("First wrote this too.")
    second.get_by_label("Initial greeting").fill("Second wrote another greeting.")
    first.get_by_role("button", name="Save", exact=True).click()
    expect(first.get_by_text("You are writing the draft.")).to_be_visible()
    second.get_by_role("button", name="Save", exact=True).click()

    conflict = second.locator(".conflict")
    expect(conflict).to_contain_text("root saved this persona while you were writing")
    expect(conflict).to_contain_text(["First", "wrote", "this", "greeting."][0])
    expect(second.get_by_label("Initial greeting")).to_have_value("Second wrote another greeting.")
    expect(second.get_by_label("Deflection")).to_have_value("First wrote this too.")
    looked_at(second, "conflict-phone-dark")
    second.get_by_role("button", name="Save", exact=True).click()
    expect(second.get_by_text("You are writing the draft.")).to_be_visible()
    expect(second.get_by_label("Initial greeting")).to_have_value("Second wrote another greeting.")
    expect(second.get_by_role("link", name="Publish …")).to_have_count(0)
    second.get_by_role("link", name="Versions").click()
    looked_at(second, "versions-phone-dark")
