"""DELETE /api/v1/chat/conversations/{id}: 200, and everything of it is gone."""

import pytest

from conversations.models import Conversation, Message
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks, fails

PATH = "/api/v1/chat/conversations"


def test_it_answers_200_and_says_what_is_gone(alice: Api, conversation: Conversation) -> None:
    alice.send(conversation)

    response = alice.delete(f"{PATH}/{conversation.pk}")

    assert response.status_code == 200
    assert response.json() == {
        "success": True,
        "message": "Conversation deleted successfully",
        "deleted_conversation_id": str(conversation.pk),
        "deleted_messages_count": 3,
    }
    assert not Conversation.objects.exists()
    assert not Message.objects.exists()


def test_the_count_is_of_all_messages_whatever_became_of_them(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(fails(400), blocks())
    alice.send(conversation, "one")
    alice.send(conversation, "two")
    alice.send(conversation, "three")
    count = Message.objects.count()

    assert alice.delete(f"{PATH}/{conversation.pk}").json()["deleted_messages_count"] == count == 6


def test_an_empty_conversation_can_be_deleted(alice: Api, make_influencer) -> None:
    opened = alice.open(make_influencer(initial_greeting=""))

    assert alice.delete(f"{PATH}/{opened['id']}").json()["deleted_messages_count"] == 0


def test_only_this_one_goes(alice: Api, bob: Api, coach: Influencer, make_influencer) -> None:
    gone, kept, theirs = alice.open(coach), alice.open(make_influencer()), bob.open(coach)
    for api, opened in ((alice, gone), (alice, kept), (bob, theirs)):
        api.send(opened["id"])

    alice.delete(f"{PATH}/{gone['id']}")

    assert {str(id) for id in Conversation.objects.values_list("id", flat=True)} == {kept["id"], theirs["id"]}
    assert Message.objects.count() == 6
    assert alice.messages(kept["id"]).json()["total"] == 3
    assert bob.messages(theirs["id"]).json()["total"] == 3
    assert Influencer.objects.count() == 2


def test_made_again_it_starts_afresh(alice: Api, coach: Influencer) -> None:
    first = alice.open(coach)
    alice.send(first["id"])
    alice.delete(f"{PATH}/{first['id']}")

    again = alice.open(coach)

    assert again["id"] != first["id"]
    assert again["message_count"] == 1
    assert [message["content"] for message in again["recent_messages"]] == ["Hi, I'm your coach!"]
    assert again["influencer"]["suggested_messages"] == ["Plan my week", "Stretching?", "What to eat?"]
    assert alice.messages(again["id"]).json()["total"] == 1


def test_the_model_hears_nothing_of_what_was_deleted(alice: Api, coach: Influencer, gemini: FakeGemini) -> None:
    first = alice.open(coach)
    alice.send(first["id"], "Forget this")
    alice.delete(f"{PATH}/{first['id']}")
    alice.send(alice.open(coach)["id"], "Hello")

    assert "Forget this" not in str(gemini.last.body)


def test_it_is_gone_for_every_call(alice: Api, conversation: Conversation) -> None:
    alice.delete(f"{PATH}/{conversation.pk}")

    assert alice.delete(f"{PATH}/{conversation.pk}").status_code == 404
    assert alice.delete(f"{PATH}/{conversation.pk}").json()["error"] == "not_found"
    assert alice.messages(conversation.pk).status_code == 404
    assert alice.send(conversation.pk).status_code == 404
    assert alice.get(PATH).json()["conversations"] == []


@pytest.mark.parametrize("unknown", ["7c0d2b1e-0000-4000-8000-000000000000", "7", "no-uuid", "💪"])
def test_an_unknown_one_is_404(alice: Api, conversation: Conversation, unknown: str) -> None:
    assert alice.delete(f"{PATH}/{unknown}").status_code == 404
    assert Conversation.objects.exists()


def test_a_strangers_one_is_403_and_stays(bob: Api, conversation: Conversation) -> None:
    response = bob.delete(f"{PATH}/{conversation.pk}")

    assert response.status_code == 403
    assert "alice" not in response.content.decode()
    assert Message.objects.count() == 1


def test_without_a_token_it_is_401_and_stays(nobody: Api, conversation: Conversation) -> None:
    assert nobody.delete(f"{PATH}/{conversation.pk}").status_code == 401
    assert Conversation.objects.exists()


def test_a_retired_influencers_conversation_can_be_deleted(alice: Api, conversation: Conversation) -> None:
    Influencer.objects.update(is_active="discontinued")

    assert alice.delete(f"{PATH}/{conversation.pk}").status_code == 200
