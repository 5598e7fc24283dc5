"""A tap on "retry": the same body again, without an idempotency key, continues a turn that has no answer."""

from typing import Any

import pytest

from conversations.models import Conversation, Message
from tests.conftest import Api
from tests.fake_gemini import REPLY, Answer, FakeGemini, blocks, fails

IMAGE = "https://example.com/a.jpg"


def stored(conversation: Conversation) -> list[tuple[str, str]]:
    """Without the greeting."""
    return list(Message.objects.of(conversation.pk).order_by("sequence").values_list("role", "content"))[1:]


@pytest.fixture
def failed(alice: Api, conversation: Conversation, gemini: FakeGemini) -> Message:
    """alice's question "Hello!", kept without an answer."""
    gemini.will(fails(400))
    assert alice.send(conversation).status_code == 503
    return Message.objects.get(role="user")


def test_the_same_body_after_a_failure_continues_the_turn(
    alice: Api, conversation: Conversation, failed: Message, gemini: FakeGemini
) -> None:
    response = alice.send(conversation)

    assert response.status_code == 200
    turn = response.json()
    assert turn["user_message"]["id"] == str(failed.pk)
    assert turn["user_message"] == alice.messages(conversation).json()["messages"][1]
    assert stored(conversation) == [("user", "Hello!"), ("assistant", REPLY)]
    assert Message.objects.get(content=REPLY).in_reply_to == failed
    conversation.refresh_from_db()
    assert conversation.message_count == 3
    assert gemini.requests[0].body == gemini.requests[1].body


def test_it_may_fail_several_times(alice: Api, conversation: Conversation, failed: Message, gemini: FakeGemini) -> None:
    gemini.will(fails(400), fails(403))
    assert alice.send(conversation).status_code == 503
    assert alice.send(conversation).status_code == 503
    assert stored(conversation) == [("user", "Hello!")]

    assert alice.send(conversation).json()["user_message"]["id"] == str(failed.pk)
    assert stored(conversation) == [("user", "Hello!"), ("assistant", REPLY)]


def test_a_continued_turn_may_be_blocked(
    alice: Api, conversation: Conversation, failed: Message, gemini: FakeGemini
) -> None:
    gemini.will(blocks())

    turn = alice.send(conversation).json()

    assert turn["blocked"] is True
    assert turn["user_message"]["id"] == str(failed.pk)
    assert len(stored(conversation)) == 2


def test_a_resend_after_the_answer_is_a_new_turn(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    first, second = alice.send(conversation, "yes").json(), alice.send(conversation, "yes").json()

    assert first["user_message"]["id"] != second["user_message"]["id"]
    assert first["assistant_message"]["id"] != second["assistant_message"]["id"]
    assert stored(conversation) == [("user", "yes"), ("assistant", REPLY)] * 2
    assert len(gemini.requests) == 2


def test_a_resend_after_a_blocked_answer_is_a_new_turn(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(blocks())
    alice.send(conversation)
    alice.send(conversation)

    assert [content for role, content in stored(conversation) if role == "user"] == ["Hello!", "Hello!"]


def test_another_question_after_a_failure_is_a_new_one(alice: Api, conversation: Conversation, failed: Message) -> None:
    turn = alice.send(conversation, "Something else").json()

    assert turn["user_message"]["id"] != str(failed.pk)
    assert stored(conversation) == [("user", "Hello!"), ("user", "Something else"), ("assistant", REPLY)]


def test_an_old_failure_is_not_taken_up_again_behind_a_later_turn(
    alice: Api, conversation: Conversation, failed: Message
) -> None:
    alice.send(conversation, "Something else")
    turn = alice.send(conversation).json()

    assert turn["user_message"]["id"] != str(failed.pk)
    assert [content for role, content in stored(conversation) if role == "user"] == [
        "Hello!",
        "Something else",
        "Hello!",
    ]


def test_a_question_of_a_process_that_was_killed_is_continued(
    alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    """It was committed before the model was asked; whoever asks again gets the answer to it."""
    gemini.will(*[Answer({"candidates": "the process dies here"})] * 2)
    assert alice.send(conversation).status_code == 503
    question = Message.objects.get(role="user")

    assert alice.send(conversation).json()["user_message"]["id"] == str(question.pk)


# What makes two bodies the same: type, stripped content, media and audio


@pytest.mark.parametrize(
    "again",
    [
        {"content": "  Hello!\n"},
        {"content": "Hello!", "message_type": "TEXT"},
        {"content": "Hello!", "media_urls": None, "audio_url": None, "audio_duration_seconds": None},
        {"content": "Hello!", "media_urls": []},
        {"content": "Hello!", "unknown": "field"},
    ],
    ids=repr,
)
def test_the_same_said_in_another_way_is_the_same(
    alice: Api, conversation: Conversation, failed: Message, again: dict[str, Any]
) -> None:
    response = alice.post(f"/api/v1/chat/conversations/{conversation.pk}/messages", {"message_type": "text"} | again)

    assert response.status_code == 200
    assert response.json()["user_message"]["id"] == str(failed.pk)
    assert len(stored(conversation)) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"content": "hello!"},
        {"content": "Hello"},
        {"content": "Hel lo!"},
        {"content": "Hello!", "media_urls": [IMAGE]},
        {"content": "Hello!", "media_urls": IMAGE},
        {"content": "Hello!", "audio_url": "https://example.com/a.mp3"},
    ],
    ids=repr,
)
def test_another_text_or_file_is_another_question(
    alice: Api, conversation: Conversation, failed: Message, other: dict[str, Any]
) -> None:
    turn = alice.send(conversation, **other).json()

    assert turn["user_message"]["id"] != str(failed.pk)
    assert [role for role, _ in stored(conversation)] == ["user", "user", "assistant"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"media_urls": [IMAGE]}, {"media_urls": IMAGE}, True),
        ({"media_urls": [IMAGE]}, {"media_urls": [IMAGE, IMAGE]}, False),
        ({"media_urls": [IMAGE, IMAGE + "2"]}, {"media_urls": [IMAGE + "2", IMAGE]}, False),
        ({"media_urls": [IMAGE]}, {"audio_url": IMAGE}, False),
        ({"media_urls": [IMAGE]}, {}, False),
        ({"audio_url": IMAGE}, {"audio_url": IMAGE}, True),
        ({"audio_url": IMAGE, "audio_duration_seconds": 3}, {"audio_url": IMAGE, "audio_duration_seconds": 4}, True),
    ],
    ids=repr,
)
def test_media_count(
    alice: Api, conversation: Conversation, gemini: FakeGemini, first: Any, second: Any, *, same: bool
) -> None:
    gemini.will(fails(400))
    alice.send(conversation, **first)
    question = Message.objects.get(role="user")

    turn = alice.send(conversation, **second).json()

    assert (turn["user_message"]["id"] == str(question.pk)) is same


def test_a_number_and_its_text_are_the_same(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    gemini.will(fails(400))
    alice.send(conversation, 80)
    alice.send(conversation, "80")

    assert stored(conversation) == [("user", "80"), ("assistant", REPLY)]


def test_the_hash_is_stored_and_not_shown(alice: Api, conversation: Conversation, failed: Message) -> None:
    assert len(failed.body_hash) == 64
    assert failed.body_hash not in alice.messages(conversation).content.decode()


def test_the_same_words_in_another_conversation_are_another_turn(
    alice: Api, bob: Api, conversation: Conversation, failed: Message
) -> None:
    other = bob.open(conversation.influencer)

    turn = bob.send(other["id"]).json()

    assert turn["user_message"]["id"] != str(failed.pk)
    assert stored(conversation) == [("user", "Hello!")]


# Two questions under way (test_races.py has the parallel ones)


def test_the_history_of_a_continued_question_is_still_what_stood_before_it(
    alice: Api, conversation: Conversation, failed: Message, gemini: FakeGemini
) -> None:
    """An answer that came in behind it meanwhile is no history of it."""
    Message.objects.create(
        conversation=conversation,
        sequence=3,
        role="assistant",
        content="a late answer to something before",
        created_at=failed.created_at,
    )
    Conversation.objects.update(message_count=3)

    assert alice.send(conversation).json()["user_message"]["id"] == str(failed.pk)
    assert gemini.last.texts[-1] == ("user", ["Hello!"])
    assert "a late answer" not in str(gemini.last.texts)
