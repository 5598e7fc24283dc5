"""POST /api/v1/chat/conversations: one conversation a user and influencer, 201 always."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from conversations.models import Conversation, Message
from personas.models import Influencer
from tests.conftest import Api

PATH = "/api/v1/chat/conversations"
UNKNOWN = "7c0d2b1e-0000-4000-8000-000000000000"
FIELDS = {
    "id",
    "user_id",
    "influencer",
    "influencer_id",
    "created_at",
    "updated_at",
    "message_count",
    "unread_count",
    "last_message",
    "recent_messages",
}
PERSONA_FIELDS = {"id", "name", "display_name", "avatar_url", "category", "suggested_messages"}


def test_a_new_conversation_has_every_field_of_the_contract(alice: Api, coach: Influencer) -> None:
    response = alice.post(PATH, {"influencer_id": coach.pk})

    assert response.status_code == 201
    opened: dict[str, Any] = response.json()
    assert set(opened) >= FIELDS
    row = Conversation.objects.get()
    assert opened["id"] == str(uuid.UUID(opened["id"])) == str(row.pk)
    assert opened["user_id"] == row.user_id == "alice"
    assert opened["influencer_id"] == row.influencer_id == coach.pk
    assert opened["message_count"] == row.message_count == 1
    assert opened["unread_count"] == 0
    assert set(opened["influencer"]) >= PERSONA_FIELDS
    assert opened["influencer"] == {
        "id": coach.pk,
        "name": "coach",
        "display_name": "Coach Asha",
        "avatar_url": "",
        "category": "fitness",
        "suggested_messages": ["Plan my week", "Stretching?", "What to eat?"],
    }
    assert "system_instructions" not in response.content.decode()


def test_it_starts_with_the_greeting_as_an_ordinary_counted_message(alice: Api, coach: Influencer) -> None:
    opened = alice.open(coach)

    greeting = Message.objects.get()
    assert (greeting.role, greeting.content, greeting.sequence) == ("assistant", "Hi, I'm your coach!", 1)
    assert greeting.message_type == "text"
    assert greeting.in_reply_to is None
    assert not greeting.blocked
    assert opened["last_message"]["content"] == "Hi, I'm your coach!"
    assert opened["last_message"]["role"] == "assistant"
    assert opened["last_message"]["created_at"] == opened["recent_messages"][0]["created_at"]
    assert [message["id"] for message in opened["recent_messages"]] == [str(greeting.pk)]
    assert opened["recent_messages"] == alice.messages(opened["id"]).json()["messages"]


def test_the_second_time_it_is_the_same_one_and_still_201(alice: Api, coach: Influencer) -> None:
    first = alice.open(coach)
    response = alice.post(PATH, {"influencer_id": coach.pk})

    assert response.status_code == 201
    assert response.json() == first
    assert Conversation.objects.count() == 1
    assert Message.objects.count() == 1


def test_opened_again_after_a_turn_it_shows_the_turn(alice: Api, coach: Influencer) -> None:
    opened = alice.open(coach)
    turn = alice.send(opened["id"]).json()

    again = alice.open(coach)
    assert again["id"] == opened["id"]
    assert again["message_count"] == 3
    assert again["recent_messages"][:2] == [turn["assistant_message"], turn["user_message"]]
    assert again["last_message"]["content"] == turn["assistant_message"]["content"]


@pytest.mark.parametrize("greeting", ["", "  \n "])
def test_without_a_greeting_it_starts_empty(
    alice: Api, make_influencer: Callable[..., Influencer], greeting: str
) -> None:
    opened = alice.open(make_influencer(initial_greeting=greeting))

    assert opened["message_count"] == 0
    assert opened["last_message"] is None
    assert opened["recent_messages"] == []
    assert opened["influencer"]["suggested_messages"] == ["Plan my week", "Stretching?", "What to eat?"]
    assert not Message.objects.exists()


def test_suggestions_stand_while_there_is_at_most_one_message(
    alice: Api, make_influencer: Callable[..., Influencer]
) -> None:
    quiet = make_influencer(initial_greeting="")
    opened = alice.open(quiet)
    assert isinstance(opened["influencer"]["suggested_messages"], list)

    alice.send(opened["id"])

    assert alice.open(quiet)["message_count"] == 2
    assert alice.open(quiet)["influencer"]["suggested_messages"] is None
    listed = alice.get(PATH).json()["conversations"][0]
    assert listed["influencer"]["suggested_messages"] is None


@pytest.mark.parametrize("stored", ["Plan my week", {"a": "b"}, 7, ["Plan my week", 7, None]], ids=str)
def test_suggestions_that_a_fixture_got_wrong_are_still_a_list_of_texts(
    alice: Api, make_influencer: Callable[..., Influencer], stored: Any
) -> None:
    """loaddata and SQL skip validators; the apps decode a list of strings or fail."""
    influencer = make_influencer()
    Influencer.objects.filter(pk=influencer.pk).update(suggested_messages=stored)

    for answer in (alice.open(influencer), alice.get(PATH).json()["conversations"][0]):
        shown = answer["influencer"]["suggested_messages"]
        assert isinstance(shown, list)
        assert all(isinstance(text, str) for text in shown)


def test_each_user_has_an_own_conversation_with_the_same_influencer(alice: Api, bob: Api, coach: Influencer) -> None:
    assert alice.open(coach)["id"] != bob.open(coach)["id"]
    assert Conversation.objects.count() == 2


def test_principal_strings_are_ids_too(alice: Api, make_influencer: Callable[..., Influencer]) -> None:
    principal = "qg2pi-g3xl4-uprdd-macwr-64q7r-plotv-xm3bg-iayu3-rnpux-7ikkz-hqe"

    assert alice.open(make_influencer(id=principal))["influencer_id"] == principal


@pytest.mark.parametrize("status", ["coming_soon", "discontinued"])
def test_an_influencer_who_is_not_active_is_not_found(
    alice: Api, make_influencer: Callable[..., Influencer], status: str
) -> None:
    response = alice.post(PATH, {"influencer_id": make_influencer(is_active=status).pk})

    assert response.status_code == 404
    assert response.json() == {"error": "not_found", "message": "Influencer not found", "details": {}}
    assert not Conversation.objects.exists()


def test_a_retired_influencer_is_not_found_even_where_a_conversation_exists(alice: Api, coach: Influencer) -> None:
    alice.open(coach)
    Influencer.objects.update(is_active="discontinued")

    assert alice.post(PATH, {"influencer_id": coach.pk}).status_code == 404


@pytest.mark.parametrize("unknown", ["nobody", UNKNOWN, "x" * 255, "x" * 5000, "💪", "' OR 1=1 --"])
def test_an_unknown_influencer_is_not_found(alice: Api, coach: Influencer, unknown: str) -> None:
    response = alice.post(PATH, {"influencer_id": unknown})

    assert response.status_code == 404
    assert response.json()["message"] == "Influencer not found"
    assert not Conversation.objects.exists()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"influencer_id": None},
        {"influencer_id": []},
        {"influencer_id": ["a"]},
        {"influencer_id": {"id": "a"}},
        {"influencer_id": True},
        {"influencer_id": False},
        {"influencer_id": ""},
        {"influencer_id": "   "},
        {"influencer_id": "a\x00b"},
        [],
        ["influencer_id"],
        None,
        "influencer_id",
        7,
    ],
    ids=str,
)
def test_a_bad_body_is_422_and_says_where(alice: Api, db: None, body: Any) -> None:
    response = alice.client.post(PATH, json.dumps(body), content_type="application/json", headers=alice.headers())

    assert response.status_code == 422, response.content
    answer = response.json()
    assert answer["error"] == "validation_error"
    error = answer["details"]["errors"][0]
    assert set(error) == {"loc", "msg", "type"}
    assert error["loc"] == (["body", "influencer_id"] if isinstance(body, dict) else ["body"])


@pytest.mark.parametrize("body", ["{", '{"influencer_id": NaN}', '{"influencer_id": "\\ud800"}', b"\xff", "{'a': 1}"])
def test_malformed_json_is_400(alice: Api, db: None, body: Any) -> None:
    response = alice.client.post(PATH, body, content_type="application/json", headers=alice.headers())

    assert response.status_code == 400
    assert response.json()["error"] == "bad_request"


def test_fields_it_does_not_know_are_ignored(alice: Api, coach: Influencer) -> None:
    mischief = {"user_id": "bob", "message_count": 99, "created_at": "2001-01-01T00:00:00Z", "metadata": {"a": 1}}
    response = alice.post(PATH, {"influencer_id": coach.pk, "title": None, **mischief})

    assert response.status_code == 201
    row = Conversation.objects.get()
    assert (row.user_id, row.message_count, row.metadata) == ("alice", 1, {})
    assert row.created_at.year > 2001


def test_a_relative_avatar_becomes_an_address_of_this_host(
    alice: Api, make_influencer: Callable[..., Influencer]
) -> None:
    own = alice.open(make_influencer(avatar_url="/static/avatars/a.webp"))
    other = alice.open(make_influencer(avatar_url="https://cdn.example.com/a.webp"))

    assert own["influencer"]["avatar_url"] == "http://testserver/static/avatars/a.webp"
    assert other["influencer"]["avatar_url"] == "https://cdn.example.com/a.webp"
    listed = [item["influencer"]["avatar_url"] for item in alice.get(PATH).json()["conversations"]]
    assert sorted(listed) == ["http://testserver/static/avatars/a.webp", "https://cdn.example.com/a.webp"]


def test_without_a_token_nothing_is_opened(nobody: Api, coach: Influencer) -> None:
    response = nobody.post(PATH, {"influencer_id": coach.pk})

    assert response.status_code == 401
    assert response.json()["message"] == "Missing authorization header"
    assert not Conversation.objects.exists()


def test_the_token_is_looked_at_before_the_body(nobody: Api, db: None) -> None:
    assert nobody.post(PATH, {}).status_code == 401


def test_a_post_with_a_trailing_slash_is_not_redirected(alice: Api, coach: Influencer) -> None:
    response = alice.post(PATH + "/", {"influencer_id": coach.pk})

    assert response.status_code == 404
    assert response.json()["error"] == "not_found"
