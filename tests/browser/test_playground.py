"""A persona is looked at and tried in the browser before it is published."""

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk
from tests.browser.test_versions import LIST, looked_at, opened
from tests.fake_gemini import FakeGemini, fails, says, streams
from tests.media_uploads.conftest import png, wav


def persona_page(desk: Desk, name: str, **look: bool) -> Page:
    page = desk(LIST, user="root", **look)
    opened(page, name)
    return page


def test_the_prompt_is_shown_layer_by_layer_for_another_user_and_chat(desk: Desk) -> None:
    page = persona_page(desk, "Malar Amma", phone=True)
    page.get_by_role("link", name="Preview").click()
    page.wait_for_url(re.compile("/preview/"))
    page.get_by_label("The user's message").fill("Which rice for a biryani?")
    page.get_by_role("button", name="Show the prompt").click()

    expect(page.locator(".layer").first).to_contain_text("Instructions, as written")
    expect(page.locator(".layer").last).to_contain_text("Which rice for a biryani?")
    looked_at(page, "preview-phone")


def test_a_draft_is_talked_with_beside_what_is_live_with_a_picture_and_a_voice_note(
    desk: Desk, gemini: FakeGemini
) -> None:
    page = persona_page(desk, "Malar Amma")
    page.get_by_label("Initial greeting").fill("Vanakkam! This greeting is drafted.")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("link", name="Try it").click()
    draft, live = (page.get_by_role("region", name=re.compile(name)) for name in ("^Draft", "^Live"))
    expect(draft).to_contain_text("This greeting is drafted.")
    expect(live).to_be_hidden()

    page.get_by_label("Beside what is live").check()
    page.locator("#picture").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": png(600, 400)})
    expect(page.get_by_role("img", name="Picture")).to_be_visible()
    gemini.default = streams("Wash the rice, ", "then soak it.")
    page.get_by_label("Your message").fill("What goes first?")
    page.get_by_label("Your message").press("Enter")
    for side in (draft, live):
        expect(side.locator("li").last).to_contain_text("Wash the rice, then soak it.")
        expect(side.locator("li").last).to_contain_text("40 tokens in, 8 out")
        expect(side.locator("li").last).to_contain_text("$0.000032")
    assert sum("inlineData" in str(asked.body) for asked in gemini.requests) == 2

    gemini.will(says("How long?"))
    page.locator("#voice").set_input_files({"name": "v.wav", "mimeType": "audio/wav", "buffer": wav()})
    page.get_by_role("button", name="Send").click()
    expect(live.locator("li").nth(-1)).to_contain_text("Wash the rice, then soak it.")
    expect(draft.locator("li").nth(-2)).to_contain_text("[Transcribed: How long?]")
    expect(page.locator(".sum")).to_contain_text("200 tokens in")
    looked_at(page, "playground-light")

    gemini.default = fails(404)
    page.get_by_label("Beside what is live").uncheck()
    page.get_by_label("Your message").fill("Still there?")
    page.get_by_role("button", name="Send").click()
    expect(draft.locator("li").last).to_contain_text("the model refused the request with 404")


def test_the_playground_fits_a_phone_at_night_and_can_be_stopped(desk: Desk, gemini: FakeGemini) -> None:
    page = persona_page(desk, "Rafa Wanders", dark=True, phone=True)
    page.get_by_role("link", name="Try it").click()
    gemini.default = streams("Once ", *(f"{n} " for n in range(400)), pause=0.05)
    page.get_by_label("Your message").fill("Tell me a long story.")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".talk li").last).to_contain_text("Once")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".talk li").last).to_contain_text("Stopped.")
    looked_at(page, "playground-phone-dark")


def test_tests_are_written_run_and_red_asks_for_a_reason(desk: Desk, gemini: FakeGemini) -> None:
    page = persona_page(desk, "Coach Veer")
    page.get_by_label("Initial greeting").fill("Ready? This greeting is drafted.")
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_role("link", name="Tests").click()
    for message, value in (("How do I begin?", "small"), ("And my knee?", "doctor")):
        page.get_by_role("link", name="Add a message").click()
        page.get_by_label("A user's message").fill(message)
        page.get_by_label("The answer").first.select_option(label="contains")
        page.get_by_label("What", exact=True).first.fill(value)
        if value == "small":
            looked_at(page, "test-message-light")
        page.get_by_role("button", name="Save", exact=True).click()
    gemini.default = says("Start small.")
    page.get_by_role("button", name="Run the tests").click()
    expect(page.get_by_text("2 of 2, 1 red")).to_be_visible()
    expect(page.locator(".layer").nth(1)).to_contain_text("red Contains “doctor”")
    looked_at(page, "run-light")
    page.get_by_role("link", name="Back to the tests").click()
    expect(page.locator("td .red")).to_have_count(1)
    looked_at(page, "tests-light")
    page.get_by_role("link", name="Back to the persona").click()
    page.get_by_role("link", name="Publish …").click()
    page.get_by_label("What changed, and why").fill("A shorter greeting.")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("Say why you publish it all the same.")).to_be_visible()
    looked_at(page, "publish-red-light")
    page.get_by_label("Why you publish it all the same").fill("The knee is for the next version.")
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("Version 2 is live: the next answer obeys it.")).to_be_visible()


def test_the_tests_fit_a_phone_at_night(desk: Desk) -> None:
    page = persona_page(desk, "Coach Veer", dark=True, phone=True)
    page.get_by_role("link", name="Tests").click()
    looked_at(page, "tests-phone-dark")
