"""Why a persona said something, and how it is operated, in the browser."""

from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk
from tests.browser.look import give_reason, inaccessible, screenshot, too_wide
from tests.fake_gemini import FakeGemini, says
from tests.servers import Server


def looked_at(page: Page, name: str) -> None:
    expect(page.locator("h2.heading")).to_be_visible()
    screenshot(page, name)
    assert not (faults := [*too_wide(page), *inaccessible(page)]), "\n".join(faults)


def test_an_answer_is_explained_and_replayed(desk: Desk, service: Server, gemini: FakeGemini) -> None:
    talk = service.open(service.influencers[1], "who-asks-why")
    turn = service.send(talk, "Is it too late to begin?", "who-asks-why").json()
    page = desk(f"/admin/conversations/message/{turn['assistant_message']['id']}/change/")
    give_reason(page)
    page.get_by_role("link", name="Prompt, history, cost, and what the draft says").click()

    expect(page.get_by_role("heading", name="Instructions")).to_be_visible()
    expect(page.locator("#history ~ section").last).to_contain_text("Is it too late to begin?")
    looked_at(page, "why-light")
    gemini.will(says("It never is, says the live persona."))
    page.get_by_role("button", name="Replay").click()
    expect(page.get_by_text("It never is, says the live persona.")).to_be_visible()
    looked_at(page, "why-replayed-light")
    phone = desk(page.url.removesuffix("replay/"), phone=True, dark=True)
    looked_at(phone, "why-phone-dark")


def test_a_persona_is_paused_and_back(desk: Desk, service: Server) -> None:
    persona = service.influencers[2]
    talk = service.open(persona, "who-waits")
    page = desk(f"/admin/personas/influencer/{persona}/change/")
    page.get_by_role("link", name="Operate").click()
    page.get_by_label("Pause the persona").check(force=True)
    page.get_by_label("Away message").fill("Back at six!")
    page.get_by_label("Tokens a day").fill("100000")
    page.get_by_role("button", name="Save").click()

    expect(page.get_by_text("Saved: the next answer obeys it.")).to_be_visible()
    looked_at(page, "operate-light")
    assert service.send(talk, "Hello?", "who-waits").json()["assistant_message"]["content"] == "Back at six!"
    phone = desk(page.url, phone=True, dark=True)
    looked_at(phone, "operate-phone-dark")
    phone.get_by_label("Pause the persona").uncheck(force=True)
    phone.get_by_role("button", name="Save").click()
    expect(phone.get_by_text("Saved: the next answer obeys it.")).to_be_visible()
    assert service.send(talk, "Hello?", "who-waits").json()["away"] is False
