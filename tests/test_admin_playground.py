"""Staff talk with a persona's draft: as the model answers a user, and without a trace among the users' talks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from conversations.models import Conversation, Message, Turn
from media_uploads.models import MediaUpload
from personas.models import Influencer
from tests.conftest import token, wait_until
from tests.fake_gemini import FakeGemini, blocks, fails, says, streams
from tests.media_uploads.conftest import png, wav
from tests.test_admin_personas import PAYLOAD, assert_inert, change, page, saved, submit
from yral_chat import counters, metrics

Desk = Callable[[User], Client]


def at(persona: Influencer, place: str = "") -> str:
    return f"/admin/personas/influencer/{persona.pk}/playground/{place}"


def row(content: str, role: str = "user", pictures: int = 0, sent: int = 0) -> dict[str, Any]:
    return {"role": role, "content": content, "pictures": pictures, "sent": sent or pictures}


def ask(client: Client, persona: Influencer, *said: dict[str, Any], which: str = "draft", **fields: Any) -> Any:
    rows = said or (row("Hello!"),)
    return client.post(at(persona, "say/"), {"which": which, "said": json.dumps(rows), **fields})


def events(response: Any) -> list[tuple[str, dict[str, Any]]]:
    assert response.status_code == 200, response.content
    frames = b"".join(response.streaming_content).decode().split("\n\n")
    found = [frame.split("\n") for frame in frames if frame.startswith("event: ")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in found]


def heard_out(response: Any) -> int:
    """Its status. A stream that nobody reads to its end would still ask the model in the next test."""
    if response.streaming:
        events(response)
    return int(response.status_code)


def file(content: bytes, name: str = "f") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


@pytest.fixture
def client(desk: Desk, editor: User) -> Client:
    return desk(editor)


@pytest.fixture
def drafted(client: Client, coach: Influencer) -> Influencer:
    """coach, with a draft that differs from what is live."""
    saved(
        submit(client, change(coach), system_instructions="Drafted.", temperature="0.3", initial_greeting="Drafted hi")
    )
    return coach


def test_the_draft_answers_piece_by_piece_with_tokens_seconds_and_cost(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    gemini.will(streams("Start ", "small."))

    *pieces, (last, done) = events(ask(client, drafted, row("Hi", "assistant"), row("How do I begin?")))

    assert [(name, data["text"]) for name, data in pieces] == [("token", "Start "), ("token", "small.")]
    assert (last, done["text"], done["error"], done["model"]) == ("done", "Start small.", "", "gemini-2.5-flash")
    assert done["tokens"] == {"prompt": 40, "output": 8, "thinking": 0}
    assert done["cost_usd"] == "0.000032"
    assert 0 <= done["seconds"] < 25
    assert gemini.last.system.startswith("Drafted.")
    assert gemini.last.body["generationConfig"]["temperature"] == 0.3
    assert gemini.last.texts == [("user", ["(chat opened)"]), ("model", ["Hi"]), ("user", ["How do I begin?"])]


def test_what_is_live_answers_the_same_message_beside_it(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    events(ask(client, drafted, which="live"))

    assert gemini.last.system.startswith("You are Persona 1.")


def test_nothing_of_a_try_is_among_the_users_talks_files_or_figures(
    client: Client, drafted: Influencer, gemini: FakeGemini, media_folder: Path
) -> None:
    before = metrics.exposition(list).decode()
    events(ask(client, drafted, row("Look", pictures=1), pictures=[file(png())]))
    client.post(at(drafted, "listen/"), {"file": file(wav())})

    for model in (Conversation, Message, Turn, MediaUpload):
        assert not model.objects.exists()
    assert not [path for path in media_folder.rglob("*") if path.is_file()]
    after = metrics.exposition(list).decode()
    assert counts(after, 'model_calls_total{kind="try"') > counts(before, 'model_calls_total{kind="try"')
    for what in ('model_calls_total{kind="reply"', "turns_total{"):
        assert counts(after, what) == counts(before, what)


def counts(exposition: str, what: str) -> float:
    return sum(float(line.rpartition(" ")[2]) for line in exposition.splitlines() if f"yral_chat_{what}" in line)


def test_the_model_sees_the_pictures_and_of_earlier_ones_that_they_were_sent(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    shown = client.post(at(drafted, "picture/"), {"file": file(png(3000, 100))})
    assert (shown.status_code, shown["Content-Type"]) == (200, "image/jpeg")

    said = (row("", sent=2), row("Nice", "assistant"), row("And this?", pictures=1))
    events(ask(client, drafted, *said, pictures=[file(shown.content)]))

    (_, first), _, (_, last) = gemini.last.texts
    assert first == ["(sent 2 picture(s))"]
    assert last == ["", "And this?"]
    assert gemini.last.body["contents"][-1]["parts"][0]["inlineData"]["mimeType"] == "image/jpeg"
    assert "What stands in pictures" in gemini.last.system


def test_a_voice_note_becomes_what_it_says(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    gemini.will(says("My knee hurts."))

    heard = client.post(at(drafted, "listen/"), {"file": file(wav()), "caption": "What now?"}).json()

    assert (heard["text"], heard["error"]) == ("[Transcribed: My knee hurts.]\nWhat now?", "")
    assert heard["tokens"]["prompt"] == 40


def test_a_voice_note_that_cannot_be_understood_says_so_as_a_user_s_would(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    gemini.will(fails(400))

    heard = client.post(at(drafted, "listen/"), {"file": file(wav())}).json()

    assert heard["text"] == "[Audio message - transcription failed]"
    assert heard["error"].startswith("The voice note couldn't be understood: the model refused")


@pytest.mark.parametrize(("place", "content"), [("picture/", b"<svg/>"), ("picture/", wav()), ("listen/", png())])
def test_what_a_user_could_not_upload_staff_cannot_try(
    client: Client, drafted: Influencer, gemini: FakeGemini, place: str, content: bytes
) -> None:
    refused = client.post(at(drafted, place), {"file": file(content)})

    assert refused.status_code == 400
    assert "Allowed formats" in refused.json()["message"]
    assert not gemini.requests


def test_a_file_that_is_too_large_gets_a_sentence(client: Client, drafted: Influencer, settings: Any) -> None:
    settings.MAX_IMAGE_SIZE_MB = 0

    refused = client.post(at(drafted, "picture/"), {"file": file(png())})

    assert refused.status_code == 413
    assert "too large" in refused.json()["message"]


def test_a_blocked_question_gets_the_draft_s_deflection(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    saved(submit(client, change(drafted), deflection="Not on my mat."))
    gemini.will(blocks())

    ((_, done),) = events(ask(client, drafted))

    assert (done["text"], done["blocked"], done["error"]) == ("Not on my mat.", True, "")


def test_why_there_is_no_answer_is_said_in_a_sentence(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    gemini.will(fails(404))

    ((_, done),) = events(ask(client, drafted))

    assert done["text"] == ""
    assert done["error"].startswith("There is no answer: the model refused the request with 404")


def test_a_stream_that_breaks_keeps_what_came_and_says_so(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    gemini.will(streams("Half an ", "answer", finish="", cut_after=1))

    *pieces, (_, done) = events(ask(client, drafted))

    assert [data["text"] for _, data in pieces] == ["Half an "]
    assert done["error"].startswith("There is no answer: ")


def test_who_goes_away_ends_the_model_s_call(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    gemini.will(streams("One ", *(f"{n} " for n in range(200)), pause=0.05))

    response = ask(client, drafted)
    assert b"One" in next(iter(response.streaming_content))
    response.close()

    wait_until(lambda: gemini.hung_up == 1, "the model goes on for nobody", seconds=5)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[",
        "{}",
        "[1]",
        "[]",
        json.dumps([row("")]),
        json.dumps([row("x", role="system")]),
        json.dumps([row("Hi", role="assistant")]),
        json.dumps([row("x", pictures=1)]),
        json.dumps([row("x", pictures=-1)]),
        json.dumps([{"role": "user"}]),
        json.dumps([{**row("x"), "content": 5}]),
        json.dumps([row("x" * 20_000)]),
        "[" * 5000,
    ],
)
def test_what_cannot_be_read_gets_a_sentence_and_costs_nothing(
    client: Client, drafted: Influencer, gemini: FakeGemini, said: str
) -> None:
    refused = client.post(at(drafted, "say/"), {"which": "draft", "said": said})

    assert refused.status_code == 400
    assert refused.json()["message"].endswith((".", "again."))
    assert not gemini.requests


def test_only_so_many_calls_a_minute_whoever_makes_them_where(
    desk: Desk, client: Client, publisher: User, drafted: Influencer, settings: Any, tmp_path: Path, gemini: FakeGemini
) -> None:
    settings.RATE_LIMIT_DATABASE, settings.DESK_CALLS_PER_MINUTE = tmp_path / "limits.db", 3
    statuses = [heard_out(ask(client, drafted)) for _ in range(3)]
    heard = client.post(at(drafted, "listen/"), {"file": file(wav())})
    refused = ask(client, drafted)
    heard_out(refused)
    another = heard_out(ask(desk(publisher), drafted))
    counters.close()

    if 200 not in (heard.status_code, refused.status_code):  # else a minute ended in between
        assert "You may ask the model 3 times a minute." in refused.json()["message"]
        assert int(refused["Retry-After"]) <= 60
        assert len(gemini.requests) <= 4
    assert statuses == [200] * 3
    assert another == 200


def test_who_may_only_look_cannot_spend_money(desk: Desk, coach: Influencer, gemini: FakeGemini) -> None:
    viewer = User.objects.create_user("viewer", "", "a-password-for-tests", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_influencer"))
    browser = desk(viewer)

    assert "Try it" not in page(browser, change(coach)).text
    assert browser.get(at(coach)).status_code == 403
    assert ask(browser, coach).status_code == 403
    for place in ("picture/", "listen/"):
        assert browser.post(at(coach, place), {"file": file(png())}).status_code == 403
    assert not gemini.requests


def test_a_user_s_token_opens_nothing_of_it(coach: Influencer, gemini: FakeGemini) -> None:
    user = Client(headers={"Authorization": f"Bearer {token('alice')}"})

    for place in ("", "say/", "picture/", "listen/"):
        refused = user.post(at(coach, place), {"which": "draft", "said": json.dumps([row("Hi")])})
        assert (refused.status_code, "/admin/login/" in refused["Location"]) == (302, True)
    assert not gemini.requests


def test_another_site_cannot_make_staff_ask(editor: User, coach: Influencer, gemini: FakeGemini) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(editor)

    assert ask(browser, coach).status_code == 403
    assert not gemini.requests


def test_the_page_begins_with_each_version_s_greeting_and_nothing_in_it_is_markup(
    client: Client, make_influencer: Callable[..., Influencer]
) -> None:
    persona = make_influencer(initial_greeting=PAYLOAD, display_name=PAYLOAD[:100])
    saved(submit(client, change(persona), initial_greeting=f"Drafted {PAYLOAD}"))

    html = page(client, at(persona))

    assert_inert(html)
    assert f"Drafted {PAYLOAD}" in html.text
    assert html.text.count(PAYLOAD) >= 2


def test_the_persona_s_page_leads_to_it(client: Client, drafted: Influencer) -> None:
    links = page(client, change(drafted)).links

    assert at(drafted) in [href for words, href in links if "Try it" in words]
