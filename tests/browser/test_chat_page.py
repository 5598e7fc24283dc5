"""The chat page, as a front-end developer uses it: /try in development, under a path, with the offline engine."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, Route, expect

from tests.browser.conftest import LAPTOP, PATIENCE, PHONE
from tests.browser.look import Watched, inaccessible, screenshot, too_wide
from tests.fake_gemini import FakeGemini
from tests.media_uploads.conftest import png
from tests.servers import CHATS, Server, environment, free_port, manage, running
from yral_chat.ai.offline import LONG, SCENES

PREFIX = "/team"
PERSONA = "Coach Veer"
SECONDS = 1  # that the model has
Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory, gemini_server: FakeGemini) -> Iterator[Server]:
    """Without a key, so that the offline engine answers, and quick to give up."""
    folder = tmp_path_factory.mktemp("try")
    changed = {
        "ENVIRONMENT": "development",
        "SCRIPT_NAME": PREFIX,
        "GEMINI_API_KEY": "",
        "GEMINI_TIMEOUT_SECONDS": str(SECONDS),
        "RATE_LIMIT_MODEL_PER_MINUTE": "40",
        "WEB_CONCURRENCY": "1",
        "MEDIA_UPLOAD_DIR": f"{folder}/uploads",
    }
    env = environment(folder, gemini_server.url, free_port(), **changed)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    with running("gunicorn", env, folder) as server:
        yield server


@pytest.fixture
def visit(chromium: Browser, chats: Server) -> Iterator[Visit]:
    """The page in a browser of its own, logged in as `user` ("": nobody). `but`: faults that the test wants."""
    watched: list[Watched] = []

    def opened(user: str, *, phone: bool = False, dark: bool = False, but: str = "") -> Page:
        context = chromium.new_context(
            base_url=f"http://127.0.0.1:{chats.port}",
            viewport=PHONE if phone else LAPTOP,  # type: ignore[arg-type]
            has_touch=phone,
            is_mobile=phone,
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        context.set_default_timeout(PATIENCE)
        watched.append(Watched(context, chats.port, but))
        page = context.new_page()
        page.goto(f"{PREFIX}/try")
        if user:
            page.get_by_label("User name").fill(user)
            page.get_by_role("button", name="Get a token").click()
            expect(page.get_by_role("button", name=PERSONA)).to_be_visible()
        return page

    yield opened
    faults = [fault for one in watched for fault in one.faults]
    for one in watched:
        one.context.close()
    assert not faults, "\n".join(faults)


def pick(page: Page, persona: str = PERSONA) -> None:
    page.get_by_role("button", name=persona).click()
    expect(field(page)).to_be_visible()
    expect(messages(page).first).to_be_visible()


def field(page: Page) -> Locator:
    return page.get_by_label("Message", exact=True)


def messages(page: Page) -> Locator:
    return page.locator("#messages > li")


def say(page: Page, text: str, scene: str = "") -> None:
    page.get_by_label("The model").select_option(scene)
    field(page).fill(text)
    field(page).press("Enter")


def answered(page: Page) -> None:
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def said(page: Page) -> list[str]:
    return page.locator("#messages .said").all_inner_texts()


def exchanges(page: Page, words: str) -> Locator:
    return page.locator("#exchanges > li").filter(has_text=words)


def stored(chats: Server, user: str) -> list[dict[str, Any]]:
    """The messages of the user's only conversation, oldest first."""
    [talk] = chats.call("GET", CHATS, user=user).json()["conversations"]
    page = chats.call("GET", f"{CHATS}/{talk['id']}/messages?order=asc&limit=200", user=user)
    return list(page.json()["messages"])


def talk_of(chats: Server, user: str) -> str:
    [persona] = [
        one["id"]
        for one in chats.call("GET", "/api/v1/influencers").json()["influencers"]
        if one["display_name"] == PERSONA
    ]
    return chats.open(persona, user)


# A chat


def test_a_developer_logs_in_picks_a_persona_and_reads_the_answer_as_it_comes(visit: Visit, chats: Server) -> None:
    page = visit("ana")
    pick(page)
    greeting = said(page)
    suggestion = page.locator("#suggestions button").first
    asked = suggestion.inner_text()
    screenshot(page, "try-begun", whole=False)

    suggestion.click()

    answered(page)
    expect(page.locator("#suggestions")).to_be_hidden()
    assert said(page) == [*greeting, asked, said(page)[-1]] == [one["content"] for one in stored(chats, "ana")]
    assert page.locator("#limits").inner_text().startswith("Requests left: ")
    heard = page.locator("#speaker").inner_text()
    assert " ".join(said(page)[-1].split()) in " ".join(heard.split()), "what is read out, is the answer"
    assert len(page.locator("#speaker p").all()) < 8, "by sentences, not by words"


def test_requests_and_answers_are_shown_raw_but_for_the_token(visit: Visit) -> None:
    page = visit("raw")
    pick(page)
    say(page, "Hello!")
    answered(page)
    stream = exchanges(page, "/messages/stream")
    stream.locator("summary").click()

    shown = stream.inner_text()

    assert f"POST {PREFIX}/api/v1/chat/conversations/" in shown
    assert '"content": "Hello!"' in shown
    for words in ("200 OK", "x-message-id: ", "event: token", "event: done", '"assistant_message"', "ms · "):
        assert words in shown
    token = page.evaluate("sessionStorage.getItem('token')")
    assert f"Authorization: Bearer {token[:6]}…{token[-4:]}" in shown
    assert token not in page.locator("body").inner_html()
    screenshot(page, "try-requests", whole=False)


def test_a_whole_answer_comes_without_a_stream_too_and_another_in_its_place(visit: Visit, chats: Server) -> None:
    page = visit("whole")
    pick(page)
    page.get_by_label("Stream the answer").uncheck()
    say(page, "Give me a plan", "slow")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_hidden()
    shown = page.locator("#composer button:visible").all_inner_texts()
    assert {"Stop", "Drop the line"}.isdisjoint(shown), "they could do nothing"
    answered(page)
    say(page, "Give me another", "markdown")
    answered(page)
    assert said(page)[-1].startswith("# Your plan")
    page.get_by_label("The model").select_option("emoji")

    page.get_by_role("button", name="Another answer").click()

    expect(messages(page).last).to_contain_text("the whole family 👨‍👩‍👧‍👦")
    answered(page)
    assert said(page) == [one["content"] for one in stored(chats, "whole")]


def test_a_stopped_answer_keeps_its_text(visit: Visit, chats: Server) -> None:
    page = visit("stopper")
    pick(page)
    say(page, "Go on and on", "long")
    expect(messages(page).last).to_contain_text("1. This is a long answer")

    page.get_by_role("button", name="Stop", exact=True).click()

    expect(messages(page).last).to_contain_text("stopped")
    answered(page)
    expect(field(page)).to_be_focused()
    last = stored(chats, "stopper")[-1]
    assert last["stopped"]
    assert said(page)[-1] == last["content"]
    assert LONG.startswith(last["content"])


def test_a_conversation_that_is_deleted_begins_anew(visit: Visit, chats: Server) -> None:
    page = visit("cleaner")
    pick(page)
    say(page, "Remember this")
    answered(page)
    delete, sure = page.get_by_role("button", name="Delete", exact=True), page.get_by_role("dialog")
    delete.click()
    assert not inaccessible(page)
    sure.get_by_role("button", name="Keep it").click()
    assert len(said(page)) == 3

    delete.click()
    sure.get_by_role("button", name="Delete it").click()

    expect(messages(page)).to_have_count(1)
    expect(page.locator("#suggestions button").first).to_be_visible()
    assert len(stored(chats, "cleaner")) == 1


# Lost connections


def stopped_after(page: Page, words: str) -> None:
    """Once they are there: the whole of it would take seconds."""
    expect(messages(page).last).to_contain_text(words)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(messages(page).last).to_contain_text("stopped")


def test_an_answer_goes_on_where_the_line_broke(visit: Visit, chats: Server) -> None:
    page = visit("tunnel")
    pick(page)
    say(page, "Tell me", "long")
    expect(messages(page).last).to_contain_text("1. This is")

    page.get_by_role("button", name="Drop the line").click()

    stopped_after(page, "9. This is")
    assert said(page)[-1] == stored(chats, "tunnel")[-1]["content"]
    joined = exchanges(page, "GET").filter(has_text="/stream")
    joined.locator("summary").click()
    assert re.search(r"Last-Event-ID: [0-9a-f-]{36}/\d+", joined.inner_text())
    first = int(re.search(r"\nid: \S+/(\d+)", joined.inner_text())[1])  # type: ignore[index]
    assert first > 1, "only what hadn't come yet"


def test_an_answer_comes_whole_though_the_network_was_gone(visit: Visit, chats: Server) -> None:
    page = visit("basement", but="ERR_INTERNET_DISCONNECTED")
    pick(page)
    say(page, "Tell me", "long")
    expect(messages(page).last).to_contain_text("1. This is")

    page.context.set_offline(True)
    page.get_by_role("button", name="Drop the line").click()
    expect(messages(page).last).to_contain_text("The connection was lost. Joining again (2)")
    page.context.set_offline(False)

    stopped_after(page, "9. This is")
    assert said(page)[-1] == stored(chats, "basement")[-1]["content"]


def test_a_service_that_does_not_answer_is_given_up_and_the_message_sent_again(visit: Visit, chats: Server) -> None:
    page, held = visit("patient"), list[Route]()
    pick(page)
    page.clock.install()
    page.route("**/messages/stream", lambda route: held.append(route), times=1)
    say(page, "Hello?")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_hidden()

    page.clock.fast_forward("00:31")

    expect(page.locator("#problem code")).to_have_text("unreachable")
    expect(exchanges(page, "/messages/stream").locator("b")).to_have_text("lost")
    page.get_by_role("button", name="Send again").click()
    expect(messages(page).last).to_contain_text("tokens")
    assert said(page) == [one["content"] for one in stored(chats, "patient")]


SILENT = """(path) => {
  const begun = new TextEncoder().encode("event: token\\ndata: {}\\n\\n");
  const answer = new Response(new ReadableStream({start: (one) => one.enqueue(begun)}));
  window.found = [];
  window.ended = (async () => {
    for await (const { event } of (await import(path)).eventsOf(answer)) window.found.push(event);
  })().catch((error) => window.found.push(error.message));
}"""


def test_a_line_on_which_nothing_comes_is_given_up(visit: Visit) -> None:
    page = visit("")
    page.clock.install()
    page.evaluate(SILENT, f"{PREFIX}/static/yral_chat/try/events.js")
    page.wait_for_function("window.found.length")

    page.clock.fast_forward("00:31")

    page.evaluate("window.ended")
    assert page.evaluate("window.found") == ["token", "Nothing came for too long."]


def test_a_page_that_is_loaded_again_joins_the_answer_under_way(visit: Visit, chats: Server) -> None:
    page = visit("reloader")
    pick(page)
    say(page, "Tell me", "markdown")
    expect(page.get_by_role("button", name="Drop the line")).to_be_visible()
    expect(messages(page).last.locator(".said")).not_to_be_empty()

    page.reload()
    pick(page)

    expect(messages(page).last).to_contain_text("tokens")
    assert said(page) == [one["content"] for one in stored(chats, "reloader")]


def test_who_picks_another_persona_meanwhile_sees_that_one(visit: Visit) -> None:
    page = visit("fickle")
    held = list[Route]()
    page.route("**/chat/conversations", lambda route: route.fallback() if held else held.append(route))
    page.get_by_role("button", name=PERSONA).click()
    page.get_by_role("button", name="Ira Bytes").click()
    expect(messages(page)).to_have_count(1)
    greeting = said(page)

    held[0].continue_()

    expect(exchanges(page, "/chat/conversations").filter(has_text="201")).to_have_count(2)
    assert said(page) == greeting
    expect(page.get_by_role("heading", name="Ira Bytes")).to_be_visible()


def test_who_leaves_while_another_answer_is_written_sees_nothing_of_it(visit: Visit) -> None:
    page = visit("hurried")
    pick(page)
    say(page, "Tell me")
    answered(page)
    page.get_by_label("The model").select_option("timeout")
    page.get_by_role("button", name="Another answer").click()
    expect(messages(page).last).to_contain_text("Another answer is being written")

    page.get_by_role("button", name="Ira Bytes").click()

    expect(exchanges(page, "/regenerate").locator("b")).to_have_text("left")
    expect(page.get_by_role("heading", name="Ira Bytes")).to_be_visible()
    answered(page)
    expect(messages(page)).to_have_count(1)
    expect(page.locator("#problem")).to_be_empty()


# What goes wrong

OUTCOMES = {
    "slow": "",
    "slow_first_token": "",
    "blocked": "",
    "blocked_mid_stream": "BLOCKED_CONTENT",
    "empty": "TRANSIENT",
    "quota": "TRANSIENT",
    "down_then_ok": "TRANSIENT",
    "down": "TRANSIENT",
    "refused": "NO_PROVIDER",
    "cut_mid_stream": "TRANSIENT",
    "timeout": "TRANSIENT",
    "crash": "UNKNOWN",
}
IN_OTHER_TESTS = {"emoji", "long", "markdown"}


def test_every_scene_of_the_simulator_is_played_and_its_end_is_told(visit: Visit, chats: Server) -> None:
    assert set(OUTCOMES) == set(SCENES) - IN_OTHER_TESTS
    page = visit("director")
    pick(page)
    offered = page.get_by_label("The model").locator("option").all_inner_texts()
    assert offered == ["answers", *SCENES]
    for scene, code in OUTCOMES.items():
        say(page, f"Play {scene}", scene)
        expect(page.locator("#scene-says")).to_have_text(SCENES[scene].says)
        answered(page)
        problem = page.locator("#problem")
        if code:
            expect(problem.locator("code")).to_have_text(code)
            expect(page.locator(".another")).to_have_count(int(code == "BLOCKED_CONTENT"))
        else:
            expect(problem).to_be_empty()
            expect(messages(page).last.locator(".another")).to_be_visible()
        if code == "TRANSIENT" and scene in ("down_then_ok", "quota"):
            screenshot(page, f"try-{scene}", whole=False)
            page.get_by_label("The model").select_option("")
            problem.get_by_role("button", name="Send again").click()
            expect(problem).to_be_empty()
            answered(page)
            expect(messages(page).last.locator(".another")).to_be_visible()
    shown = [text for text in said(page) if text]
    assert shown == [one["content"] for one in stored(chats, "director")], "each question once, and no lost answer"

    say(page, "Play blocked_mid_stream once more", "blocked_mid_stream")
    expect(page.locator("#problem code")).to_have_text("BLOCKED_CONTENT")
    expect(messages(page).last).to_contain_text("blocked by a filter")
    assert [text for text in said(page) if text] == [one["content"] for one in stored(chats, "director")]


def test_too_many_messages_are_told_with_a_countdown(visit: Visit, chats: Server) -> None:
    page = visit("hasty", but="429")
    pick(page)
    talk, problem = talk_of(chats, "hasty"), page.locator("#problem code")
    for _ in range(2):  # the limit is of the clock's minute, which may end meanwhile
        while chats.send(talk, "Quick!", "hasty").status == 200:
            pass
        say(page, "And another")
        answered(page)
        if problem.count():
            break

    expect(problem).to_have_text("429 · rate_limit_exceeded · model_minute")
    again = page.get_by_role("button", name="Send again")
    expect(again).to_be_disabled()
    expect(page.locator("#problem")).to_contain_text(re.compile(r"in \d+ s"))
    screenshot(page, "try-limited", whole=False)


def test_a_refused_message_goes_back_to_where_it_was_written(visit: Visit, chats: Server) -> None:
    page = visit("writer", but="422|404")
    pick(page)
    field(page).evaluate("(field) => { field.value = 'x'.repeat(4001) }")
    field(page).press("Enter")
    expect(page.locator("#problem code")).to_have_text("422 · validation_error")
    expect(page.locator("#problem")).to_contain_text("body › content")
    assert len(field(page).input_value()) == 4001

    assert chats.call("DELETE", f"{CHATS}/{talk_of(chats, 'writer')}", user="writer").status == 200
    say(page, "Is anybody there?")

    expect(page.locator("#problem code")).to_have_text("404 · not_found")
    assert field(page).input_value() == "Is anybody there?"
    assert len(said(page)) == 1


def test_a_bad_token_is_refused_with_its_reason(visit: Visit) -> None:
    page = visit("", but="401")
    page.get_by_label("Token of your login service").fill("Bearer not.a.token")
    page.get_by_role("button", name="Use this token").click()
    page.get_by_role("button", name=PERSONA).click()

    expect(page.locator("#login-problem code")).to_have_text("401 · unauthorized")
    expect(page.locator("#login-problem")).to_contain_text("Invalid token")
    assert page.evaluate("sessionStorage.length") == 0
    screenshot(page, "try-401", whole=False)


def test_a_service_that_is_away_is_told_and_the_message_sent_again(visit: Visit, chats: Server) -> None:
    page = visit("offline", but="ERR_INTERNET_DISCONNECTED")
    pick(page)
    page.context.set_offline(True)
    say(page, "Hello?")
    expect(page.locator("#problem code")).to_have_text("unreachable")
    page.context.set_offline(False)

    page.get_by_role("button", name="Send again").click()

    expect(messages(page).last).to_contain_text("tokens")
    assert [one["content"] for one in stored(chats, "offline")] == said(page)


# Pictures and voice

GIVE = """([bytes, kind]) => {
  const given = new DataTransfer();
  given.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: "image/png"}));
  const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: given, bubbles: true, cancelable: true})
                                 : new DragEvent("drop", {dataTransfer: given, bubbles: true, cancelable: true});
  document.getElementById("message").dispatchEvent(event);
}"""


def a_file(name: str, content: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def test_pictures_are_picked_pasted_dropped_and_seen(visit: Visit, chats: Server) -> None:
    page = visit("painter")
    pick(page)
    attached, held = page.locator("#attachments li"), list[Route]()
    page.route("**/media/upload", lambda route: held.append(route), times=1)
    page.locator("#pictures").set_input_files(a_file("one.png", png(320, 200)))
    expect(page.locator("#attaching")).to_have_text("Uploading one.png …")
    field(page).fill("What do you see?")
    field(page).press("Enter")
    assert field(page).input_value() == "What do you see?", "it waits for the picture"
    held[0].continue_()
    expect(attached).to_have_count(1)
    for count, kind in ((2, "paste"), (3, "drop")):
        page.evaluate(GIVE, [list(png(64, 64)), kind])
        expect(attached).to_have_count(count)
    page.get_by_role("button", name="Remove drop.png").click()
    screenshot(page, "try-attached", whole=False)
    assert not inaccessible(page)

    say(page, "What do you see?")

    answered(page)
    mine = messages(page).nth(-2).locator("img")
    expect(mine).to_have_count(2)
    page.wait_for_function("[...document.querySelectorAll('.bubble img')].every((one) => one.naturalWidth > 1)")
    question = stored(chats, "painter")[-2]
    assert (question["message_type"], len(question["media_urls"])) == ("multimodal", 2)


def test_a_file_that_is_no_picture_is_refused_and_said_why(visit: Visit) -> None:
    page = visit("forger", but="400")
    pick(page)

    page.locator("#pictures").set_input_files(a_file("x.png", b"no picture"))

    expect(page.locator("#problem code")).to_have_text("400 · bad_request")
    expect(page.locator("#problem")).to_contain_text("Allowed formats: JPEG, PNG, GIF, WebP")


def test_a_voice_note_is_recorded_and_heard(visit: Visit, chats: Server) -> None:
    page = visit("speaker")
    pick(page)
    voice = page.get_by_role("button", name="Voice", exact=True)
    voice.click()
    expect(page.get_by_role("button", name="Stop recording (0 s)")).to_be_visible()
    pick(page)
    expect(voice).to_have_attribute("aria-pressed", "false")
    voice.click()
    expect(page.get_by_role("button", name="Stop recording (1 s)")).to_be_visible()
    page.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#attaching")).to_contain_text("A voice note of")
    expect(page.locator("#attachments li")).to_have_count(1)
    measured = float(page.locator("#attaching").inner_text().split()[4])
    screenshot(page, "try-voice", whole=False)

    page.get_by_role("button", name="Send", exact=True).click()

    expect(messages(page).nth(-2)).to_contain_text("[Transcribed: (offline) a voice note (audio/webm)]")
    answered(page)
    question = stored(chats, "speaker")[-2]
    assert question["message_type"] == "audio"
    assert abs(question["audio_duration_seconds"] - measured) < 0.6
    sound = messages(page).nth(-2).locator("audio")
    sound.evaluate("(one) => { one.muted = true; return one.play() }")
    page.wait_for_function("document.querySelector('.bubble audio').currentTime > 0")


# Reading back


def test_earlier_messages_come_page_by_page_and_nothing_jumps(visit: Visit, chats: Server) -> None:
    talk = talk_of(chats, "reader")
    for number in range(18):
        assert chats.send(talk, f"Message {number}", "reader").status == 200
    page = visit("reader")
    pick(page)
    expect(messages(page)).to_have_count(10)
    history, first = page.locator("#history"), messages(page).first
    mark = first.get_attribute("id")
    history.evaluate("(one) => { one.onscroll = null; one.scrollTop = 0 }")
    before = first.bounding_box()

    page.get_by_role("button", name="Older messages").click()

    expect(messages(page)).to_have_count(30)
    after = page.locator(f"[id='{mark}']").bounding_box()
    assert before
    assert after
    assert abs(before["y"] - after["y"]) < 2

    say(page, "And one more")
    answered(page)
    page.get_by_role("button", name="Older messages").click()
    expect(page.get_by_role("button", name="Older messages")).to_be_hidden()
    assert said(page) == [one["content"] for one in stored(chats, "reader")], "none twice, none lost, in order"


def test_scrolling_to_the_top_brings_them_as_well(visit: Visit, chats: Server) -> None:
    talk = talk_of(chats, "scroller")
    for number in range(8):
        assert chats.send(talk, f"Message {number}", "scroller").status == 200
    page = visit("scroller", phone=True)
    pick(page)

    page.locator("#history").evaluate("(one) => { one.scrollTop = 0 }")

    expect(messages(page)).to_have_count(17)
    expect(page.get_by_role("button", name="Older messages")).to_be_hidden()


# Everybody


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_it_is_open_to_everybody(visit: Visit, look: str) -> None:
    page = visit("", dark=look == "dark", phone=look == "phone", but="401")
    faults = list[str]()

    def looked_at(name: str) -> None:
        screenshot(page, f"try-{name}-{look}", whole=False)
        faults.extend([*too_wide(page), *inaccessible(page)])

    looked_at("login")
    page.get_by_role("button", name="Get a token").click()
    expect(page.get_by_role("button", name=PERSONA)).to_be_visible()
    looked_at("personas")
    pick(page)
    say(page, "How do I begin again after a long pause?")
    answered(page)
    say(page, "And then?", "down")
    answered(page)
    looked_at("chat")
    if look == "phone":
        page.get_by_role("button", name="Requests", exact=True).click()
    page.locator("#exchanges summary").first.click()
    looked_at("requests")
    assert not faults, "\n".join(faults)


def test_the_keyboard_is_enough(visit: Visit) -> None:
    page = visit("")
    expect(page.get_by_label("User name")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Personas", exact=True)).to_be_focused()
    expect(page.get_by_role("button", name=PERSONA)).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(field(page)).to_be_focused()
    page.keyboard.type("Hello!")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Are you there?")
    assert "\n" in field(page).input_value()
    page.keyboard.press("Enter")
    answered(page)
    assert said(page)[1] == "Hello!\nAre you there?"

    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.textContent") == "Another answer":
            break
    page.keyboard.press("Enter")

    expect(exchanges(page, "/regenerate")).to_have_count(1)
    answered(page)
    expect(exchanges(page, "/regenerate").locator("b")).to_have_text("200")
    expect(page.get_by_role("button", name="Another answer")).to_be_focused()


EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def test_what_people_write_runs_nothing(visit: Visit) -> None:
    page = visit(EVIL)
    assert page.locator("#user").inner_text() == EVIL
    pick(page)

    say(page, EVIL)

    answered(page)
    assert said(page)[1] == EVIL
    assert EVIL[:20] in said(page)[2], "the offline engine repeats it"
    assert page.title() != "owned"
    assert page.locator("#messages img, #messages script").count() == 0
