"""A persona goes out as a file, and comes in as a draft, in the browser; and a page asks why before a chat opens."""

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import Desk
from tests.browser.look import inaccessible, screenshot, too_wide

LIST = "/admin/personas/influencer/"


def looked_at(page: Page, name: str) -> None:
    screenshot(page, name)
    assert not (faults := [*too_wide(page), *inaccessible(page)]), "\n".join(faults)


def test_an_export_comes_back_as_the_draft_of_a_chosen_persona(desk: Desk, tmp_path: Path) -> None:
    page = desk(LIST, user="editor", phone=True)
    page.get_by_role("link", name="Lucía Habla", exact=True).click()
    page.wait_for_url(re.compile("/change/"))
    with page.expect_download() as download:
        page.get_by_role("link", name="Export", exact=True).click()
    document = json.loads(Path(download.value.path()).read_text())
    document["personas"][0]["content"]["deflection"] = "Let's speak of Spanish."
    file = tmp_path / "lucia.json"
    file.write_text(json.dumps(document))

    page.goto(LIST)
    page.get_by_role("link", name="Import …").click()
    looked_at(page, "import-file-phone")
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Look into the file").click()
    page.get_by_label("Where to").select_option(label="The draft of Lucía Habla (lucia-habla)")
    page.get_by_role("button", name="Show what would change").click()
    expect(page.locator(".words ins").first).to_be_visible()
    looked_at(page, "import-preview-phone")
    page.get_by_role("button", name="Take it into the draft").click()

    expect(page.get_by_text("In the draft: Lucía Habla.")).to_be_visible()
    expect(page.get_by_label("Deflection")).to_have_value("Let's speak of Spanish.")


def test_a_file_that_is_none_is_told_beside_its_field(desk: Desk, tmp_path: Path) -> None:
    page = desk(f"{LIST}import/", user="editor", dark=True)
    file = tmp_path / "no.json"
    file.write_text("<script>")
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_role("button", name="Look into the file").click()

    expect(page.get_by_text("The file is no JSON in UTF-8.")).to_be_visible()
    looked_at(page, "import-refused-dark")


def test_a_chat_opens_when_it_is_said_why(desk: Desk) -> None:
    page = desk("/admin/conversations/conversation/?q=alice", user="support", phone=True)
    page.get_by_role("link", name="Read", exact=True).click()
    page.get_by_role("button", name="Read", exact=True).click()
    expect(page.get_by_text("This field is required.").first).to_be_visible()
    looked_at(page, "reason-phone")
    page.get_by_label("What for").select_option("The user asked us for help")
    page.get_by_label("Why, in your words").fill("Ticket 4711: no answer came")
    page.get_by_role("button", name="Read", exact=True).click()

    expect(page.get_by_text("How do I begin again after a long pause?")).to_be_visible()
    looked_at(page, "reading-phone")
