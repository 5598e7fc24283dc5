"""Why a persona said something, on the admin's real page; and the same turn replayed against the draft."""

import datetime as dt
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from conversations import why
from conversations.models import Conversation, Message, PromptText
from personas.models import Influencer
from personas.versions import catch_up, publish, save_draft
from tests.conftest import Api, member
from tests.conversations.media import take
from tests.fake_gemini import REPLY, FakeGemini, blocks, fails, says
from tests.personas.page import Page
from tests.reasons import give_reason
from tests.test_admin_conversations import MESSAGES, detail, page
from tests.test_admin_personas import PAYLOAD, assert_inert
from tests.test_admin_playground import counts
from yral_chat import ai, metrics

Desk = Callable[[User], Client]


@pytest.fixture(autouse=True)
def warm() -> None:
    """The first turn of a process would take seconds otherwise."""
    ai.warm_up()


@pytest.fixture
def reader(db: None) -> User:
    """Who may read messages and ask why."""
    return member("reader", "Support")


@pytest.fixture
def client(reader: User, desk: Desk, conversation: Conversation) -> Client:
    """Who said why."""
    at_desk = desk(reader)
    give_reason(at_desk, conversation)
    return at_desk


def at(message: Any, place: str = "why/") -> str:
    return f"{MESSAGES}{getattr(message, 'pk', message)}/{place}"


def answer() -> Message:
    return Message.objects.filter(role="assistant").latest("sequence")


def replay(client: Client, message: Any, status: int = 200) -> Page:
    response = client.post(at(message, "why/replay/"))
    assert response.status_code == status
    return Page(response)


def everything() -> dict[str, Any]:
    """All rows of users' talks and of personas."""
    models = [*apps.get_app_config("conversations").get_models(), *apps.get_app_config("personas").get_models()]
    return {model.__name__: list(model._default_manager.order_by("pk").values()) for model in models}


def test_it_tells_version_prompt_history_and_what_it_took(
    client: Client, alice: Api, conversation: Conversation, coach: Influencer
) -> None:
    content = {
        "personality_traits": {"tone": "warm"},
        "language_note": "Hinglish.",
        "system_instructions": "Be a coach.",
    }
    save_draft(influencer_id=coach.pk, content=content)
    publish(influencer_id=coach.pk, change_note="Warmer.")
    assert alice.send(conversation, "Is it too late to begin?").status_code == 200

    shown = page(client, at(answer()))

    assert "By version 2." in shown.text
    layers = ["Be a coach.", "Your personality: tone: warm.", "The languages that you speak: Hinglish.", "Today is"]
    titles = ["Instructions", "Personality", "Languages", "The day, and the language to answer in"]
    where = [shown.text.index(text) for pair in zip(titles, layers, strict=True) for text in pair]
    assert where == sorted(where), "each under its name, in order"
    history = shown.text[shown.text.index("What it was sent of the conversation") :]
    assert "User (chat opened) Persona Hi, I'm your coach! User Is it too late to begin?" in history
    assert REPLY in shown.text
    for fact in ("gemini-2.5-flash", "STOP", "40 read, 0 thought, 12 written", "Attempts 1", "Cost $0.0", "Done"):
        assert fact in shown.text, fact
    assert re.search(r"Whole answer after \d+\.\d s", shown.text)


def test_a_message_leads_to_it(client: Client, alice: Api, conversation: Conversation) -> None:
    turn = alice.send(conversation).json()
    given, asked = (Message.objects.get(pk=turn[f"{who}_message"]["id"]) for who in ("assistant", "user"))

    assert at(given) in page(client, detail(given)).attributes("href")
    assert at(asked) not in page(client, detail(asked)).attributes("href")
    assert client.get(at(asked)).status_code == 404
    assert client.get(at(uuid.uuid4())).status_code == 404


def test_what_was_no_model_s_is_said(
    client: Client, alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    assert "the greeting of a new conversation" in page(client, at(answer())).text
    assert "there is nothing to replay" in replay(client, answer()).text
    gemini.will(blocks())
    alice.send(conversation, "one")
    assert "A filter stopped" in page(client, at(answer())).text
    Influencer.objects.update(paused_at=timezone.now())
    alice.send(conversation, "two")
    shown = page(client, at(answer()))
    assert "the persona was away" in shown.text
    assert "PAUSED" in shown.text
    assert at(answer(), "why/replay/") not in shown.attributes("action")
    asked = len(gemini.requests)
    assert "there is nothing to replay" in replay(client, answer()).text
    assert len(gemini.requests) == asked


def test_the_layers_of_a_prompt_that_was_sent_before_they_were_kept_are_one(
    client: Client, alice: Api, conversation: Conversation
) -> None:
    alice.send(conversation)
    PromptText.objects.update(layers=None)

    shown = page(client, at(answer())).text

    assert "The system instruction, as it was sent" in shown
    assert "You are Persona 1." in shown


def test_a_replay_gives_the_draft_the_same_history_and_shows_both(
    client: Client, alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini, media_folder: Any
) -> None:
    Conversation.objects.update(metadata={"memories": {"name": "Alice", "goal": "a marathon"}})
    alice.send(conversation, "one")
    given = alice.send(conversation, "two", message_type="multimodal", media_urls=take(alice, "red")).json()
    original = gemini.last
    alice.send(conversation, "said since")
    Conversation.objects.update(metadata={"memories": {"name": "Alice", "goal": "another"}})
    drafted = {"system_instructions": "Rhyme, {{user_name}}.", "model": "gemini-2.5-pro", "temperature": 0.1}
    save_draft(influencer_id=coach.pk, content=drafted)
    before, calls = everything(), metrics.exposition(list).decode()
    gemini.will(says("Red is the bread."))

    shown = replay(client, given["assistant_message"]["id"])

    assert gemini.last.body["contents"] == original.body["contents"], "pictures included"
    assert gemini.last.system.startswith("Rhyme, “Alice”.")
    assert "gemini-2.5-pro" in gemini.last.path
    assert gemini.last.body["generationConfig"]["temperature"] == 0.1
    assert "What the draft says" in shown.text
    assert "Red is the bread." in shown.text
    assert REPLY in shown.text
    assert shown.text.count("40 read, 0 thought, 12 written") == 2
    assert everything() == before, "nothing is stored or counted"
    now = metrics.exposition(list).decode()
    assert counts(now, 'model_calls_total{kind="try"') == counts(calls, 'model_calls_total{kind="try"') + 1
    assert counts(now, 'model_calls_total{kind="reply"') == counts(calls, 'model_calls_total{kind="reply"')


def test_the_day_of_a_replay_is_that_of_the_turn(
    client: Client, alice: Api, conversation: Conversation, gemini: FakeGemini, time_machine: Any
) -> None:
    time_machine.move_to(dt.datetime(2026, 11, 25, 9, tzinfo=dt.UTC), tick=False)
    alice.send(conversation)
    time_machine.move_to(dt.datetime(2026, 12, 1, 9, tzinfo=dt.UTC), tick=False)
    give_reason(client, conversation)

    shown = replay(client, answer())

    assert "Wednesday, 25 November 2026" in gemini.last.system
    assert "What the live persona says" in shown.text


def test_a_replay_that_fails_or_is_blocked_says_so(
    client: Client, alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    alice.send(conversation)
    gemini.will(blocks())
    assert "(blocked by a filter" in replay(client, answer()).text
    gemini.will(fails(400))
    shown = replay(client, answer())
    assert "The model gave no answer:" in shown.text
    assert REPLY in shown.text


def test_replays_of_one_person_are_limited(
    reader: User, superuser: User, desk: Desk, alice: Api, conversation: Conversation, gemini: FakeGemini,
    time_machine: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    time_machine.move_to(dt.datetime(2031, 1, 1, 9, 30, tzinfo=dt.UTC), tick=False)
    client = desk(reader)
    give_reason(client, conversation)
    monkeypatch.setattr(why, "REPLAYS", 2)
    alice.send(conversation)
    for _ in range(2):
        replay(client, answer())
    asked = len(gemini.requests)

    assert "more than 2 replays in an hour" in replay(client, answer(), 429).text

    assert len(gemini.requests) == asked
    other = desk(superuser)
    give_reason(other, conversation)
    replay(other, answer())
    time_machine.move_to(dt.datetime(2031, 1, 1, 10, tzinfo=dt.UTC), tick=False)
    replay(client, answer())


@pytest.mark.parametrize("held", [(), ("view_message",), ("explain_message",), ("view_influencer", "view_message")])
def test_without_both_rights_nothing_is_shown_and_no_model_is_asked(
    desk: Desk, alice: Api, conversation: Conversation, gemini: FakeGemini, held: tuple[str, ...]
) -> None:
    alice.send(conversation)
    asked = len(gemini.requests)
    user = User.objects.create_user("other", "", "a-password-for-tests", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=held))
    client = desk(user)

    for message in (answer().pk, uuid.uuid4()):
        assert client.get(at(message)).status_code == 403
        assert client.post(at(message, "why/replay/")).status_code == 403
    if "view_message" in held:
        give_reason(client, conversation)
        assert at(answer()) not in page(client, detail(answer())).attributes("href")
    assert len(gemini.requests) == asked


def test_without_a_reason_nothing_is_shown_and_no_model_is_asked(
    reader: User, desk: Desk, alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    alice.send(conversation)
    client = desk(reader)

    for response in (client.get(at(answer())), client.post(at(answer(), "why/replay/"))):
        assert response.status_code == 302
        assert f"/{conversation.pk}/reason/" in response["Location"]
    assert len(gemini.requests) == 1


def test_strangers_are_asked_to_log_in(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    alice.send(conversation)
    for client in (Client(), alice.client):
        for response in (
            client.get(at(answer()), headers=alice.headers()),
            client.post(at(answer(), "why/replay/"), headers=alice.headers()),
        ):
            assert (response.status_code, response["Location"].split("?")[0]) == (302, "/admin/login/")
    assert len(gemini.requests) == 1


def test_a_replay_is_a_post_of_our_own_page(
    reader: User, client: Client, alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    alice.send(conversation)
    careful = Client(enforce_csrf_checks=True)
    careful.force_login(reader)

    assert careful.post(at(answer(), "why/replay/")).status_code == 403
    assert client.get(at(answer(), "why/replay/")).status_code == 405
    assert len(gemini.requests) == 1


def test_what_was_said_is_inert(
    client: Client, alice: Api, conversation: Conversation, coach: Influencer, gemini: FakeGemini
) -> None:
    catch_up(influencer_id=coach.pk)
    Influencer.objects.update(system_instructions=PAYLOAD, display_name=PAYLOAD[:100])
    gemini.will(says(PAYLOAD))
    alice.send(conversation, PAYLOAD)

    for shown in (page(client, at(answer())), replay(client, answer())):
        assert_inert(shown)
        assert shown.text.count("x_canary()") >= 4
