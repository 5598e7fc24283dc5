"""The fully composed prompt on the desk: the same as the model gets, inert, and for staff alone."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from conversations.models import Conversation
from personas.models import Influencer
from tests.conftest import Api, token
from tests.fake_gemini import FakeGemini
from tests.personas.page import Page
from tests.test_admin_personas import PAYLOAD, assert_inert, change, page, published, saved, submit

Desk = Callable[[User], Client]


def preview(persona: Influencer) -> str:
    return f"/admin/personas/influencer/{persona.pk}/preview/"


def shown(client: Client, persona: Influencer, **typed: str) -> Page:
    form = page(client, preview(persona)).form("preview_form")
    response = client.post(preview(persona), {**form, **typed})
    assert response.status_code == 200
    return Page(response)


@pytest.fixture
def viewer(db: None) -> User:
    """Staff who may look at personas and change nothing."""
    user = User.objects.create_user("viewer", "", "a-password-for-tests", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_influencer"))
    return user


def test_the_page_shows_every_part_of_what_the_model_then_gets(
    desk: Desk, publisher: User, alice: Api, coach: Influencer, gemini: FakeGemini
) -> None:
    client = desk(publisher)
    saved(
        submit(
            client,
            change(coach),
            system_instructions="You are {{persona_name}}. Today is {{today}}. You talk with {{user_name}}.",
            personality_traits='{"tone": "warm"}',
            language_note="Hinglish",
        )
    )
    published(client, coach)
    talk = alice.open(coach)["id"]
    Conversation.objects.filter(pk=talk).update(metadata={"memories": {"name": "Priya", "hobby": "running"}})
    assert alice.send(talk, "What should I do today?").status_code == 200

    text = shown(
        client, coach, said="", user_name="Priya", memories="hobby: running", question="What should I do today?"
    ).text

    for layer in gemini.last.system.split("\n\n"):
        assert " ".join(layer.split()) in text
    for _, parts in gemini.last.texts:
        for part in parts:
            assert " ".join(part.split()) in text
    assert "“Priya”" in text


def test_the_draft_is_shown_and_beside_it_what_is_live(desk: Desk, editor: User, coach: Influencer) -> None:
    client = desk(editor)
    saved(submit(client, change(coach), system_instructions="Drafted instructions."))

    drafted = page(client, preview(coach))
    live = shown(client, coach, which="live")

    assert "Drafted instructions." in drafted.text
    assert "Drafted instructions." not in live.text
    assert "You are Persona 1." in live.text
    assert preview(coach) in [href for words, href in page(client, change(coach)).links if "Preview" in words]


def test_each_layer_says_about_how_many_tokens_it_has(desk: Desk, editor: User, coach: Influencer) -> None:
    client = desk(editor)
    saved(submit(client, change(coach), system_instructions="x" * 4000))

    assert "Instructions, as written about 1000 tokens" in page(client, preview(coach)).text


def test_a_picture_and_a_name_bring_their_own_layers(desk: Desk, editor: User, coach: Influencer) -> None:
    client = desk(editor)
    saved(submit(client, change(coach), system_instructions="You talk with {{user_name}}."))

    plain = shown(client, coach, user_name="").text
    full = shown(client, coach, user_name="Priya", picture="on").text

    assert "What pictures and voice notes are to the model" not in plain
    assert "You talk with the user." in plain
    assert "What pictures and voice notes are to the model" in full
    assert "(a picture)" in full
    assert "What the user's name is to the model" in full


def test_a_name_that_a_turn_would_not_fill_in_is_not_filled_in_here(
    desk: Desk, editor: User, coach: Influencer
) -> None:
    client = desk(editor)
    saved(submit(client, change(coach), system_instructions="You talk with {{user_name}}."))

    text = shown(client, coach, user_name="Obey<me>").text

    assert "The name isn't filled in" in text
    assert "You talk with the user." in text


def test_nothing_that_is_written_or_typed_becomes_a_part_of_the_page(
    desk: Desk, editor: User, make_influencer: Callable[..., Influencer]
) -> None:
    texts: dict[str, Any] = dict.fromkeys(("system_instructions", "language_note", "initial_greeting"), PAYLOAD)
    persona = make_influencer(display_name=PAYLOAD[:100], personality_traits={PAYLOAD: PAYLOAD}, **texts)
    client = desk(editor)

    assert_inert(page(client, preview(persona)))
    assert_inert(
        shown(client, persona, user_name=PAYLOAD[:99], memories=PAYLOAD, said=f"User: {PAYLOAD}", question=PAYLOAD)
    )


def test_who_may_look_at_personas_may_look_at_their_prompts_and_nobody_else(
    desk: Desk, viewer: User, coach: Influencer
) -> None:
    stranger = User.objects.create_user("stranger", "", "a-password-for-tests", is_staff=True)

    assert desk(viewer).get(preview(coach)).status_code == 200
    assert desk(stranger).get(preview(coach)).status_code == 403
    assert desk(viewer).get("/admin/personas/influencer/nobody/preview/").status_code == 404
    for headers in ({}, {"Authorization": f"Bearer {token('alice')}"}):
        refused = Client().get(preview(coach), headers=headers)
        assert (refused.status_code, "/admin/login/" in refused["Location"]) == (302, True)


def test_a_sample_that_is_too_long_gets_a_sentence(desk: Desk, editor: User, coach: Influencer) -> None:
    assert "at most 4000 characters" in shown(desk(editor), coach, question="x" * 4001).text
