"""GET /api/v1/chat/conversations: mine, the most recently updated first."""

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

from conversations.models import Conversation, Message
from personas.models import Influencer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, fails

PATH = "/api/v1/chat/conversations"
NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def make_conversations(make_influencer: Callable[..., Influencer]) -> Callable[..., list[Conversation]]:
    """`count` of a user's, each with `messages` messages, the later made the later updated."""

    def make(count: int, *, messages: int = 1, user_id: str = "alice", **fields: Any) -> list[Conversation]:
        made = []
        for number in range(count):
            at = NOON + dt.timedelta(hours=number)
            values = {"created_at": at, "updated_at": at, "message_count": messages, **fields}
            made.append(Conversation.objects.create(user_id=user_id, influencer=make_influencer(), **values))
        Message.objects.bulk_create(
            Message(
                conversation=conversation,
                sequence=sequence,
                role="assistant" if sequence % 2 else "user",
                content=f"{number}/{sequence}",
                created_at=NOON + dt.timedelta(hours=number, milliseconds=sequence),
            )
            for number, conversation in enumerate(made)
            for sequence in range(1, messages + 1)
        )
        return made

    return make


def ids(response: Any) -> list[str]:
    assert response.status_code == 200, response.content
    return [item["id"] for item in response.json()["conversations"]]


def test_who_has_none_gets_an_empty_list(alice: Api, db: None) -> None:
    assert alice.get(PATH).json() == {"conversations": [], "total": 0, "limit": 20, "offset": 0}


def test_it_lists_only_mine(alice: Api, bob: Api, coach: Influencer) -> None:
    mine, theirs = alice.open(coach), bob.open(coach)

    assert ids(alice.get(PATH)) == [mine["id"]]
    assert ids(bob.get(PATH)) == [theirs["id"]]
    assert alice.get(PATH).json()["total"] == 1


def test_an_item_is_the_object_that_opening_answers(alice: Api, coach: Influencer) -> None:
    opened = alice.open(coach)

    assert alice.get(PATH).json() == {"conversations": [opened], "total": 1, "limit": 20, "offset": 0}


def test_the_most_recently_updated_comes_first(alice: Api, make_conversations: Any) -> None:
    made = make_conversations(3)

    assert ids(alice.get(PATH)) == [str(conversation.pk) for conversation in reversed(made)]


def test_a_message_moves_its_conversation_up(alice: Api, make_conversations: Any) -> None:
    oldest = make_conversations(3)[0]

    turn = alice.send(oldest).json()

    listed = alice.get(PATH).json()["conversations"]
    assert listed[0]["id"] == str(oldest.pk)
    assert listed[0]["updated_at"] == turn["assistant_message"]["created_at"]


def test_a_first_question_that_got_no_answer_moves_its_conversation_up_too(
    alice: Api, make_conversations: Any, gemini: FakeGemini
) -> None:
    oldest = make_conversations(3, messages=0)[0]
    gemini.will(fails(400))

    assert alice.send(oldest).status_code == 503

    assert ids(alice.get(PATH))[0] == str(oldest.pk)


def test_opening_it_again_does_not_move_it(alice: Api, make_conversations: Any) -> None:
    made = make_conversations(2)
    alice.open(made[0].influencer)

    assert ids(alice.get(PATH))[0] == str(made[1].pk)


def test_it_can_be_asked_for_one_influencer(alice: Api, make_conversations: Any) -> None:
    made = make_conversations(3)
    response = alice.get(PATH, influencer_id=made[1].influencer_id)

    assert ids(response) == [str(made[1].pk)]
    assert response.json()["total"] == 1


@pytest.mark.parametrize("unknown", ["nobody", "x" * 5000, "' OR 1=1", "💪"])
def test_an_influencer_that_i_have_no_conversation_with_gives_an_empty_list(
    alice: Api, make_conversations: Any, unknown: str
) -> None:
    make_conversations(2)

    assert alice.get(PATH, influencer_id=unknown).json()["conversations"] == []
    assert alice.get(PATH, influencer_id=unknown).json()["total"] == 0


def test_a_filter_of_somebody_elses_conversation_shows_nothing(
    alice: Api, bob: Api, coach: Influencer, make_conversations: Any
) -> None:
    bob.open(coach)

    assert alice.get(PATH, influencer_id=coach.pk).json()["conversations"] == []


def test_a_retired_influencers_conversation_is_still_listed(alice: Api, coach: Influencer) -> None:
    alice.open(coach)
    Influencer.objects.update(is_active="discontinued")

    assert len(ids(alice.get(PATH))) == 1


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "-1"},
        {"limit": "ten"},
        {"limit": "1.0"},
        {"limit": ""},
        {"limit": "1e1"},
        {"limit": "٣"},
        {"offset": "-1"},
        {"offset": "x"},
        {"offset": "99999999999999999999"},
        {"influencer_id": "a\x00b"},
    ],
    ids=str,
)
def test_a_query_out_of_range_is_422_never_clamped(alice: Api, db: None, query: dict[str, str]) -> None:
    response = alice.get(PATH, **query)

    assert response.status_code == 422
    assert response.json()["error"] == "validation_error"
    assert response.json()["details"]["errors"][0]["loc"] == ["query", *query]


def test_the_bounds_themselves_are_fine(alice: Api, make_conversations: Any) -> None:
    make_conversations(2)

    assert len(ids(alice.get(PATH, limit=1))) == 1
    assert len(ids(alice.get(PATH, limit=100))) == 2
    assert ids(alice.get(PATH, offset=2)) == []
    assert alice.get(PATH, limit=100, offset=1).json() | {"conversations": []} == {
        "conversations": [],
        "total": 2,
        "limit": 100,
        "offset": 1,
    }


@pytest.mark.parametrize("size", [1, 4, 7])
def test_pages_neither_repeat_nor_lose_one_even_when_all_were_updated_at_once(
    alice: Api, make_conversations: Any, size: int
) -> None:
    made = make_conversations(10, updated_at=timezone.now())

    paged = [id for offset in range(0, 10, size) for id in ids(alice.get(PATH, limit=size, offset=offset))]

    assert len(paged) == 10
    assert sorted(paged) == sorted(str(conversation.pk) for conversation in made)
    assert paged == ids(alice.get(PATH, limit=100))


@pytest.mark.parametrize("messages", [1, 2, 9, 10, 11, 25])
def test_recent_messages_are_the_first_ten_of_the_history(alice: Api, make_conversations: Any, messages: int) -> None:
    make_conversations(3, messages=messages)

    for item in alice.get(PATH).json()["conversations"]:
        history = alice.messages(item["id"]).json()
        assert item["recent_messages"] == history["messages"][:10]
        assert len(item["recent_messages"]) == min(messages, 10)
        assert item["message_count"] == history["total"] == messages
        newest = history["messages"][0]
        assert item["last_message"] == {name: newest[name] for name in ("content", "role", "created_at")}


def test_without_messages_there_is_no_last_one(alice: Api, make_conversations: Any) -> None:
    make_conversations(1, messages=0)

    item = alice.get(PATH).json()["conversations"][0]
    assert item["last_message"] is None
    assert item["recent_messages"] == []
    assert item["influencer"]["suggested_messages"] == ["Plan my week", "Stretching?", "What to eat?"]


def test_a_hundred_conversations_fit_on_a_page_each_with_its_own_messages(alice: Api, make_conversations: Any) -> None:
    made = make_conversations(105, messages=3)

    listed = alice.get(PATH, limit=100).json()

    assert listed["total"] == 105
    assert len(listed["conversations"]) == 100
    for item, number in zip(listed["conversations"], range(104, 4, -1), strict=True):
        assert item["id"] == str(made[number].pk)
        assert [message["content"] for message in item["recent_messages"]] == [f"{number}/{n}" for n in (3, 2, 1)]
        assert {message["conversation_id"] for message in item["recent_messages"]} == {item["id"]}


def test_without_a_token_nothing_is_listed(nobody: Api, conversation: Conversation) -> None:
    assert nobody.get(PATH).status_code == 401


def test_the_personas_instructions_are_not_in_it(alice: Api, conversation: Conversation) -> None:
    assert "CANARY" not in alice.get(PATH).content.decode()
