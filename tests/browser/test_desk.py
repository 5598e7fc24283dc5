"""What people do at the desk, with mouse, keyboard and phone, in a real browser."""

import re

from playwright.sync_api import Dialog, Page, expect

from tests.browser.conftest import PASSWORD, Desk
from tests.browser.look import give_reason, inaccessible, screenshot, too_wide
from tests.servers import Server

PERSONAS = "/admin/personas/influencer/"


def log_in(page: Page, user: str, password: str) -> None:
    page.get_by_label("Username").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def on_its_page(page: Page, persona: str) -> None:
    page.get_by_role("link", name=persona).first.click()
    page.wait_for_url(re.compile("/change/"))


# Coming in


def test_a_wrong_password_is_told_and_five_close_the_door(desk: Desk) -> None:
    for dark, phone in ((False, False), (True, True)):
        page = desk("/admin/", user="", dark=dark, phone=phone, but="429", address=f"198.51.100.{7 + dark}")
        screenshot(page, f"login-{dark}")
        assert not inaccessible(page)
        for _ in range(4):
            log_in(page, "stranger", "wrong")
            expect(page.get_by_text("Please enter the correct username and password")).to_be_visible()
        screenshot(page, f"login-wrong-{dark}")
        assert not inaccessible(page)

        log_in(page, "stranger", "wrong")

        expect(page.get_by_text("try again in 15 minutes")).to_be_visible()
        screenshot(page, f"locked-out-{dark}")
        assert not [*inaccessible(page), *too_wide(page)]


def test_the_navigation_shows_what_a_person_may_see(desk: Desk) -> None:
    seen = {}
    for user in ("root", "editor", "publisher", "support", "analyst", "newcomer"):
        page = desk("/admin/", user=user)
        seen[user] = page.locator("#nav-sidebar-apps a").all_inner_texts()
        assert page.locator(".job a b").all_inner_texts() == [words.split("\n")[-1] for words in seen[user]]
        screenshot(page, f"home-of-{user}")

    titles = {user: [words.split("\n")[-1] for words in found] for user, found in seen.items()}
    assert titles["editor"] == titles["publisher"] == ["Personas"]
    assert titles["support"] == ["Conversations", "Messages", "Turns", "Uploads"]
    assert titles["analyst"] == ["Statistics"]
    assert titles["newcomer"] == []
    assert {"Personas", "Conversations", "Uploads", "Statistics", "Staff"} <= set(titles["root"])


def test_who_may_do_nothing_is_told_whom_to_ask(desk: Desk) -> None:
    page = desk("/admin/", user="newcomer")

    expect(page.get_by_text("Ask a superuser to put you into a group")).to_be_visible()


# Writing


def test_a_publisher_changes_a_persona_and_users_see_it(desk: Desk, service: Server) -> None:
    page = desk(PERSONAS, user="publisher")
    on_its_page(page, "Ira Bytes")
    before = page.locator(".instructions-size").inner_text()
    page.locator("#id_system_instructions").press("Control+End")
    page.keyboard.type(" Never say never.")
    assert page.locator(".instructions-size").inner_text() != before
    page.locator("#id_description").fill("Explains code to anybody.")
    screenshot(page, "persona-changed")

    page.get_by_role("button", name="Save", exact=True).click()

    expect(page.get_by_text("Ira Bytes is saved.")).to_be_visible()
    screenshot(page, "persona-saved")
    assert "Explains code to anybody." in service.call("GET", "/api/v1/influencers").content.decode()


def test_text_that_is_not_saved_is_not_lost_by_a_click(desk: Desk) -> None:
    page = desk(PERSONAS, user="editor")
    on_its_page(page, "Ira Bytes")
    asked = list[str]()

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    page.locator("#id_initial_greeting").fill("Half a gree")

    page.locator("#nav-sidebar-apps").get_by_role("link", name="Personas").click(no_wait_after=True)

    page.wait_for_function("true")
    assert asked == ["beforeunload"]
    assert page.locator("#id_initial_greeting").input_value() == "Half a gree"


def test_a_mistake_is_shown_where_it_was_made(desk: Desk) -> None:
    page = desk(f"{PERSONAS}add/", user="editor", phone=True)
    page.locator("#id_suggested_messages").fill("not a list")
    page.get_by_role("button", name="Save", exact=True).click()

    expect(page.get_by_text("Please correct the errors below")).to_be_visible()
    screenshot(page, "persona-mistakes")
    assert not [*inaccessible(page), *too_wide(page)]


def test_several_personas_are_retired_and_come_back(desk: Desk) -> None:
    page = desk(PERSONAS)
    for action, told in (("Retire the selected personas", "retired"), ("Activate the selected personas", "activated")):
        row = page.get_by_role("row").filter(has_text="Coach Veer")
        row.get_by_role("checkbox").check()
        page.get_by_label("Select action to run").select_option(action)
        screenshot(page, f"personas-{told}", whole=False)
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_text(f"1 persona {told}.")).to_be_visible()


# Finding


def test_a_chat_is_found_by_its_user_and_read(desk: Desk) -> None:
    page = desk("/admin/")
    page.locator(".job").get_by_role("link", name="Conversations").click()
    page.get_by_role("searchbox").or_(page.locator("#searchbar")).first.fill("alice")
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Read", exact=True).click()
    give_reason(page)

    expect(page.get_by_text("How do I begin again after a long pause?")).to_be_visible()
    page.get_by_role("link", name="How do I begin again").click()
    expect(page.get_by_text("alice with").first).to_be_visible()


def test_a_filter_opens_closes_and_narrows(desk: Desk) -> None:
    for phone in (False, True):
        page = desk("/admin/conversations/message/", phone=phone)
        page.get_by_role("button", name="Filters").click()
        screenshot(page, f"filters-{phone}", whole=False)
        assert not inaccessible(page)
        page.get_by_role("link", name="Assistant", exact=True).click()
        page.wait_for_url(re.compile("role__exact=assistant"))
        assert page.locator("#result_list .field-role", has_text="User").count() == 0


def test_a_page_is_found_by_its_name(desk: Desk) -> None:
    page = desk("/admin/")
    page.keyboard.press("Control+k")
    page.get_by_placeholder("Type to search").press_sequentially("turns")
    expect(page.locator("#command-results").get_by_text("Turns").first).to_be_visible()
    screenshot(page, "search", whole=False)
    assert not inaccessible(page)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/turn/"))


# By keyboard, at night, on a phone


def test_everything_that_is_clicked_is_reached_with_tab(desk: Desk) -> None:
    page = desk("/admin/conversations/message/")
    page.evaluate("document.activeElement.blur()")
    reached = list[str]()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText || ''")
        )
    for name in ("Show or hide the navigation", "Filters", "Search", "Personas", "root"):
        assert any(name in words for words in reached), f"{name} isn't among {reached}"

    page.get_by_role("button", name="Filters").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Assistant", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Assistant", exact=True)).to_be_hidden()


def test_the_colours_are_chosen_and_kept(desk: Desk) -> None:
    page = desk("/admin/")
    menu = page.locator("#nav-sidebar").get_by_role("button", name="root")
    menu.press("Enter")
    screenshot(page, "menu", whole=False)
    assert not inaccessible(page)
    page.get_by_role("button", name="Dark").press("Enter")
    expect(page.locator("html")).to_have_class(re.compile("dark"))

    page.reload()

    expect(page.locator("html")).to_have_class(re.compile("dark"))


def test_on_a_phone_the_navigation_comes_and_goes(desk: Desk) -> None:
    page = desk("/admin/", phone=True)
    expect(page.locator("#nav-sidebar")).to_be_hidden()
    page.get_by_role("button", name="Show or hide the navigation").click()
    screenshot(page, "navigation-phone", whole=False)
    assert not inaccessible(page)
    page.locator("#nav-sidebar-apps").get_by_role("link", name="Messages").click()
    page.wait_for_url(re.compile("/message/"))
    expect(page.locator("#nav-sidebar")).to_be_hidden()


# Staff


def test_a_colleague_is_let_in_by_a_group(desk: Desk) -> None:
    page = desk("/admin/auth/user/add/")
    page.locator("#id_username").fill("colleague")
    page.locator("#id_password1").fill(PASSWORD)
    page.locator("#id_password2").fill(PASSWORD)
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was added successfully")).to_be_visible()
    page.get_by_label("Content editors").check()
    page.locator("label", has_text="Staff status").first.click()
    screenshot(page, "colleague")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()

    theirs = desk("/admin/", user="")
    log_in(theirs, "colleague", PASSWORD)

    expect(theirs.locator(".job a b")).to_have_text(["Personas"])


# Statistics


def test_statistics_lead_from_a_figure_to_its_rows(desk: Desk) -> None:
    page = desk("/admin/")
    page.locator("#nav-sidebar-apps").get_by_role("link", name="Statistics").click()
    page.get_by_role("link", name="7 days").click()
    page.wait_for_url(re.compile("days=7"))
    expect(page.locator("figure svg").first).to_be_visible()
    replies = page.get_by_role("link", name=re.compile(r"^Replies \d"))
    (figure,) = re.findall(r"Replies\s+(\d+)", replies.inner_text())  # other tests of this folder chat, too
    replies.click()
    page.wait_for_url(re.compile("state__exact=done"))
    expect(page.locator("#result_list tbody tr")).to_have_count(int(figure))
    page.go_back()
    messages = page.locator("figure", has_text="Messages").locator("a").last
    (figure,) = re.findall(r": (\d+)$", messages.locator("title").text_content() or "")
    messages.click()
    page.wait_for_url(re.compile("/message/"))
    expect(page.locator("#result_list tbody tr")).to_have_count(int(figure))


def test_an_analyst_chooses_dates_and_reads_figures_alone(desk: Desk) -> None:
    page = desk("/admin/statistics/", user="analyst", phone=True)
    page.get_by_label("From").fill("2026-03-09")
    page.get_by_label("to", exact=True).fill("2026-03-02")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("the earlier one first")
    screenshot(page, "statistics-wrong-dates")
    assert not [*inaccessible(page), *too_wide(page)]
    assert page.locator("main a[href*='/conversations/'], .statistics a[href*='/conversations/']").count() == 0
