"""A persona's tests on the desk: what staff expect, how a run goes, and what red means for publishing."""

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from conversations.models import Conversation, Message, SampleMessage, SampleResult, SampleRun, Turn
from personas.models import Influencer, PersonaVersion
from tests.conftest import token
from tests.fake_gemini import FakeGemini, fails, says
from tests.personas.page import Page
from tests.test_admin_personas import PAYLOAD, assert_inert, change, page, saved, submit
from tests.test_admin_versions import press

Desk = Callable[[User], Client]


def at(persona: Influencer, place: str = "") -> str:
    return f"/admin/personas/influencer/{persona.pk}/tests/{place}"


def write(client: Client, persona: Influencer, message: str, *expected: tuple[str, str], on: str = "add/") -> Any:
    """By the form, as it is."""
    form: dict[str, Any] = page(client, at(persona, on)).form("sample_form")
    form["message"] = message
    for place, (kind, value) in enumerate(expected):
        form |= {f"form-{place}-kind": kind, f"form-{place}-value": value}
    return client.post(at(persona, on), form)


def written(client: Client, persona: Influencer, message: str = "Hello!", *expected: tuple[str, str]) -> SampleMessage:
    response = write(client, persona, message, *expected)
    assert (response.status_code, response.get("Location")) == (302, at(persona)), Page(response).text
    return SampleMessage.objects.latest("pk")


def started(client: Client, persona: Influencer) -> str:
    response = client.post(at(persona, "run/"))
    assert response.status_code == 302
    return str(response["Location"])


def run(client: Client, persona: Influencer) -> dict[str, Any]:
    """To its end, as the page does it."""
    address = started(client, persona)
    for _ in range(60):
        step = client.post(f"{address}next/")
        assert step.status_code == 200, step.content
        if step.json()["done"] == step.json()["total"]:
            return dict(step.json())
    pytest.fail("the run has no end")


def publish(client: Client, persona: Influencer, **typed: str) -> Any:
    url = f"/admin/personas/influencer/{persona.pk}/publish/"
    form = page(client, url).form("publish_form")
    return client.post(url, {**form, "change_note": "Because.", **typed})


@pytest.fixture
def client(desk: Desk, publisher: User) -> Client:
    return desk(publisher)


@pytest.fixture
def drafted(client: Client, coach: Influencer) -> Influencer:
    saved(submit(client, change(coach), system_instructions="Drafted.", initial_greeting="Drafted hi"))
    return coach


# What is expected


@pytest.mark.parametrize(
    ("kind", "value", "answer", "holds"),
    [
        ("contains", "small  STEPS", "Take Small\nsteps.", True),
        ("contains", "doctor", "Take small steps.", False),
        ("lacks", "doctor", "Take small steps.", True),
        ("lacks", "Doctor", "See a doctor.", False),
        ("at_most", "3", "Take small steps.", True),
        ("at_most", "2", "Take small steps.", False),
        ("matches", r"(?i)see (a|your) doctor", "Please See your doctor", True),
        ("matches", r"^\d+$", "Take 5", False),
        ("matches", r"(a|aa)+$", "a" * 80 + "b", False),
        ("matches", r"^On \d{4}-(\d{2}[-: ]?)+.{0,200}$", "On 2026-11-25 20:15", True),
        ("language", "english", "Start small, keep it regular, and tell me how it went.", True),
        ("language", "English", "Aap kaise ho? Aaj hum thoda yoga karenge.", False),
        ("language", "English", "Great job!", True),
        ("language", "English", "", False),
        ("language", "English", "Hola, ¿cómo estás hoy? Vamos a caminar juntos", False),
        ("language", "Hinglish", "Kya baat hai yaar, bahut accha! Aaj kya plan hai?", True),
        ("language", "Hinglish", "आज आप कैसे हैं?", False),
        ("language", "Hindi", "आज आप कैसे हैं? Yoga करेंगे?", True),
        ("language", "Tamil", "வணக்கம், எப்படி இருக்கீங்க?", True),
        ("language", "Tanglish", "Vanakkam kanna! Epdi irukka? Innaikku enna samayal?", True),
        ("language", "Tanglish", "Kya baat hai yaar, bahut accha!", False),
        ("language", "Japanese", "今日は元気ですか", True),
        ("language", "English", "Wash rice, soak it, cook slowly.", True),
        ("language", "Spanish", "Hola, ¿cómo estás hoy? Vamos a caminar juntos", True),
        ("language", "Portuguese", "Olá, como você está hoje? Vamos caminhar juntos", True),
        ("language", "French", "Bonjour, comment vas-tu ? Nous allons marcher ensemble", True),
        ("language", "French", "Hola, ¿cómo estás hoy? Vamos a caminar juntos", False),
        ("language", "Urdu", "آپ کیسے ہیں", True),
    ],
)
def test_an_answer_is_green_if_it_is_as_expected(
    client: Client, drafted: Influencer, gemini: FakeGemini, kind: str, value: str, answer: str, holds: bool
) -> None:
    written(client, drafted, "How do I begin?", (kind, value))
    gemini.default = says(answer) if answer else fails(400)

    assert run(client, drafted)["red"] == (0 if holds else 1)

    result = SampleResult.objects.get()
    assert result.state == ("green" if holds else "red")
    assert [one["holds"] for one in result.judgements] == ([holds] if answer else [])


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        ("at_most", "few", "Give a number of words"),
        ("at_most", "0", "Give a number of words"),
        ("at_most", "²", "Give a number of words"),
        ("language", "Klingon", "One of: English, Hinglish"),
        ("matches", "(", "This is no pattern"),
        ("matches", "a" * 301, "at most 300 characters"),
        ("matches", "(?:(?:(?:a{1000}){1000}){1000})", "repeats too much"),
        ("matches", "(?:" * 28 + "a" + ")+" * 28, "repeats too much"),
        ("matches", "(?#[)(?:(?:(?:a{1000}){1000}){1000})]", "holds no comments"),
        ("matches", "(?ix)#[\n(?:(?:(?:a{1000}){1000}){1000})]", "holds no comments"),
        ("matches", "(?R)?", "can't call itself"),
        ("matches", "(?<n>a(?&n))", "can't call itself"),
        ("contains", "", "Say what is expected."),
        ("", "doctor", "Choose what is expected of it."),
    ],
)
def test_what_cannot_be_expected_gets_a_sentence(
    client: Client, drafted: Influencer, kind: str, value: str, sentence: str
) -> None:
    response = write(client, drafted, "Hello!", (kind, value))

    assert sentence in Page(response).text
    assert not SampleMessage.objects.exists()


def test_a_message_is_changed_and_deleted_and_earlier_runs_keep_it(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    sample = written(client, drafted, "Hello!", ("contains", "a"), ("lacks", "b"))
    run(client, drafted)

    write(client, drafted, "Good day!", ("contains", "c"), ("", ""), on=f"{sample.pk}/")
    sample.refresh_from_db()
    assert (sample.message, sample.expectations) == ("Good day!", [{"kind": "contains", "value": "c"}])

    client.post(at(drafted, f"{sample.pk}/"), {"_delete": "1"})
    log = page(client, f"/admin/personas/influencer/{drafted.pk}/history/").text
    for entry in ("Wrote a test.", "“Good day!” – contains c", "Before: “Hello!” – contains a; doesn't contain b"):
        assert entry in log
    assert not SampleMessage.objects.exists()
    assert SampleResult.objects.get().message == "Hello!"
    assert "Hello!" in page(client, at(drafted, f"runs/{SampleRun.objects.get().pk}/")).text


def test_who_changes_a_test_after_somebody_else_sees_theirs_first(client: Client, drafted: Influencer) -> None:
    sample = written(client, drafted, "Hello!", ("contains", "a"))
    place = f"{sample.pk}/"
    form = page(client, at(drafted, place)).form("sample_form")
    write(client, drafted, "First wrote this.", ("contains", "first"), on=place)

    mine = {**form, "message": ["Second wrote that."]}
    told = Page(client.post(at(drafted, place), mine))

    assert "It says now: “First wrote this.” – contains first." in told.text
    assert told.form("sample_form")["message"] == ["Second wrote that."]
    assert SampleMessage.objects.get().message == "First wrote this."
    client.post(at(drafted, place), told.form("sample_form"))
    assert SampleMessage.objects.get().message == "Second wrote that."


# A run


def test_a_run_asks_the_draft_each_message_after_its_greeting(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    written(client, drafted, "How do I begin?", ("contains", "small"))
    written(client, drafted, "And then?", ("contains", "never said"))

    address = started(client, drafted)
    first = client.post(f"{address}next/").json()
    assert (first["done"], first["total"], first["step"]["state"]) == (1, 2, "green")
    assert 'value="1"' in page(client, address).html
    second = client.post(f"{address}next/").json()
    assert (second["done"], second["red"], second["step"]["state"]) == (2, 1, "red")
    assert client.post(f"{address}next/").json()["step"] is None

    assert gemini.requests[0].system.startswith("Drafted.")
    assert gemini.requests[0].texts == [
        ("user", ["(chat opened)"]),
        ("model", ["Drafted hi"]),
        ("user", ["How do I begin?"]),
    ]
    assert len(gemini.requests) == 2
    shown = page(client, at(drafted)).text
    assert "Draft : 2 of 2, 1 red" in shown
    assert "Contains “never said”" in shown
    for model in (Conversation, Message, Turn):
        assert not model.objects.exists()


def test_a_run_that_was_left_goes_on_where_it_was_for_another_one(
    desk: Desk, client: Client, editor: User, drafted: Influencer, gemini: FakeGemini
) -> None:
    for _ in range(3):
        written(client, drafted)
    address = started(client, drafted)
    client.post(f"{address}next/")
    SampleResult.objects.filter(place=2).update(state="asking", asked_at=timezone.now())  # and its process died

    assert started(desk(editor), drafted) == address, "it is the same run"
    assert desk(editor).post(f"{address}next/").json()["step"]["place"] == 3
    assert client.post(f"{address}next/").json()["step"] is None
    with time_machine.travel(timezone.now() + dt.timedelta(seconds=61)):
        again = Client()
        again.force_login(editor)
        assert again.post(f"{address}next/").json() == {
            "total": 3,
            "done": 3,
            "red": 0,
            "step": {"place": 2, "state": "green", "answer": SampleResult.objects.get(place=2).answer},
        }


def test_a_run_is_of_the_draft_as_it_was_when_it_began(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    written(client, drafted)
    address = started(client, drafted)
    saved(submit(client, change(drafted), system_instructions="Changed meanwhile."))
    client.post(f"{address}next/")

    assert gemini.last.system.startswith("Drafted.")
    assert "The draft was changed since these tests ran." in page(client, at(drafted)).text
    assert started(client, drafted) != address


def test_no_answer_is_red_and_says_why(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    written(client, drafted)
    gemini.default = fails(404)

    assert run(client, drafted)["red"] == 1
    assert "There is no answer: the model refused the request with 404" in page(client, at(drafted)).text


def test_a_run_waits_for_the_next_minute_when_this_one_s_calls_are_spent(
    client: Client, drafted: Influencer, settings: Any, tmp_path: Any, gemini: FakeGemini
) -> None:
    settings.RATE_LIMIT_DATABASE, settings.DESK_CALLS_PER_MINUTE = tmp_path / "limits.db", 1
    for _ in range(3):
        written(client, drafted)
    address = started(client, drafted)

    steps = [client.post(f"{address}next/") for _ in range(3)]

    late = next(one for one in steps if one.status_code == 429)
    assert 1 <= late.json()["retry_after"] <= 60
    assert SampleResult.objects.filter(state="waiting").count() == 3 - len(gemini.requests) > 0


def test_without_a_message_nothing_runs(client: Client, drafted: Influencer) -> None:
    assert started(client, drafted) == at(drafted)
    assert "There is no test yet: add a message first." in page(client, at(drafted)).text
    assert not SampleRun.objects.exists()


# Publishing


def test_publishing_with_red_needs_a_reason_which_stands_in_the_note(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    written(client, drafted, "Hello!", ("contains", "never said"))
    run(client, drafted)

    shown = Page(refused := publish(client, drafted))
    assert refused.status_code == 200
    assert "1 test is red, of 1." in shown.text
    assert "Say why you publish it all the same." in shown.text
    assert not PersonaVersion.objects.filter(number=2).exists()

    assert publish(client, drafted, despite="The test is wrong.").status_code == 302
    version = PersonaVersion.objects.get(number=2)
    assert version.change_note == "Because.\n\nPublished although: 1 test is red, of 1. The test is wrong."


def test_what_was_red_stays_red_until_a_run_to_its_end_says_otherwise(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    """Neither a run that is broken off takes it back, nor a draft set aside and restored, nor a test that goes."""
    sample = written(client, drafted, "Hello!", ("contains", "never said"))
    written(client, drafted, "How are you?")
    run(client, drafted)
    url = f"/admin/personas/influencer/{drafted.pk}/"

    def is_refused() -> None:
        assert "1 test is red, of 2." in page(client, f"{url}publish/").text
        assert "Say why you publish it all the same." in Page(publish(client, drafted)).text

    address = started(client, drafted)
    is_refused()
    draft = PersonaVersion.objects.drafts().get()
    press(client, drafted, "draft/set-aside/", on="change/")
    press(client, drafted, f"versions/{draft.pk}/restore/", on=f"versions/{draft.pk}/")
    assert PersonaVersion.objects.drafts().get().pk != draft.pk
    is_refused()
    client.post(at(drafted, f"{sample.pk}/"), {"_delete": "1"})
    is_refused()

    gemini.default = says("Hello!")
    while client.post(f"{address}next/").json()["step"]:
        pass
    assert "1 test is red, of 2." in page(client, f"{url}publish/").text, "it was asked all the same"
    assert run(client, drafted)["red"] == 0
    assert publish(client, drafted).status_code == 302


def test_green_or_unrun_tests_need_no_reason(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    written(client, drafted)
    url = f"/admin/personas/influencer/{drafted.pk}/publish/"
    assert "The tests haven't run with this draft." in page(client, url).text

    run(client, drafted)
    assert "despite" not in page(client, url).form("publish_form")
    assert publish(client, drafted).status_code == 302
    assert PersonaVersion.objects.get(number=2).change_note == "Because."


def test_results_stay_with_their_version_beside_the_next_draft_s(
    client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    written(client, drafted, "Hello!", ("contains", "small"))
    run(client, drafted)
    assert publish(client, drafted).status_code == 302
    saved(submit(client, change(drafted), system_instructions="The next draft."))
    gemini.default = says("Big.")
    run(client, drafted)

    text = page(client, at(drafted)).text
    assert re.search(r"Draft : 1 of 1, 1 red Version 2 : 0 red", text), text
    assert [run.version.number for run in SampleRun.objects.order_by("pk")] == [2, None]


# Who may


def test_who_may_only_look_sees_results_and_starts_nothing(
    desk: Desk, client: Client, drafted: Influencer, gemini: FakeGemini
) -> None:
    sample = written(client, drafted)
    address = started(client, drafted)
    viewer = User.objects.create_user("viewer", "", "a-password-for-tests", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_influencer"))
    browser = desk(viewer)

    shown = page(browser, at(drafted))
    assert "Run the tests" not in shown.text
    assert "Add a message" not in shown.text
    assert browser.get(address).status_code == 200
    assert browser.get(at(drafted, f"{sample.pk}/")).status_code == 403
    for place in ("add/", f"{sample.pk}/", "run/", f"runs/{SampleRun.objects.get().pk}/next/"):
        assert browser.post(at(drafted, place), {"message": "x", "_delete": "1"}).status_code == 403
    assert SampleMessage.objects.exists()
    assert not gemini.requests


def test_a_user_s_token_and_another_persona_s_id_open_nothing(
    client: Client, drafted: Influencer, make_influencer: Callable[..., Influencer], gemini: FakeGemini
) -> None:
    sample = written(client, drafted)
    address = started(client, drafted)
    other = make_influencer()
    user = Client(headers={"Authorization": f"Bearer {token('alice')}"})

    for place in ("", "add/", f"{sample.pk}/", "run/"):
        assert "/admin/login/" in user.post(at(drafted, place))["Location"]
    of_drafted = address.removeprefix(at(drafted))
    for unknown in (f"{sample.pk}/", of_drafted, f"{2**64}/", f"runs/{2**64}/"):
        assert client.get(at(other, unknown)).status_code == 404
    assert client.post(at(other, f"{of_drafted}next/")).status_code == 404
    assert not gemini.requests


def test_nothing_that_is_written_or_answered_is_markup(client: Client, drafted: Influencer, gemini: FakeGemini) -> None:
    sample = written(client, drafted, PAYLOAD, ("contains", PAYLOAD), ("lacks", PAYLOAD))
    gemini.default = says(PAYLOAD)
    run(client, drafted)

    for place in ("", f"{sample.pk}/", f"runs/{SampleRun.objects.get().pk}/"):
        assert_inert(page(client, at(drafted, place)))
