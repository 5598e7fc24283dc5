"""The serializers are the schema's source, plain dicts go on the wire: both have one shape."""

import datetime as dt
import re
import uuid
from typing import Any

import pytest
from rest_framework import serializers

from conversations.models import Conversation, Message
from conversations.serializers import (
    ConversationPageSerializer,
    ConversationSerializer,
    DeletedSerializer,
    MessagePageSerializer,
    MessageSerializer,
    TurnSerializer,
)
from personas.serializers import InfluencerPageSerializer
from tests.conftest import Api
from tests.fake_gemini import FakeGemini, blocks

PATH = "/api/v1/chat/conversations"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00")


def assert_shape(value: Any, field: Any, where: str = "answer") -> None:
    """`value` is what a client may get where the schema, made of `field`, says so: nothing more and nothing less."""
    if value is None:
        assert field.allow_null, f"{where} is null, and the schema doesn't say so"
        return
    if isinstance(field, serializers.ListSerializer | serializers.ListField):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            assert_shape(item, field.child, f"{where}[{number}]")
    elif isinstance(field, serializers.Serializer):
        assert isinstance(value, dict), where
        assert set(value) == set(field.fields), where
        for name, inner in field.fields.items():
            assert_shape(value[name], inner, f"{where}.{name}")
    else:
        assert_plain(value, field, where)


def assert_plain(value: Any, field: Any, where: str) -> None:
    if isinstance(field, serializers.BooleanField):
        assert value is True or value is False, where
    elif isinstance(field, serializers.IntegerField):
        assert type(value) is int, where
    elif isinstance(field, serializers.UUIDField):
        assert str(uuid.UUID(value)) == value, where
    elif isinstance(field, serializers.DateTimeField):
        assert MOMENT.fullmatch(value), where
        assert dt.datetime.fromisoformat(value).utcoffset() == dt.timedelta(), where
    elif isinstance(field, serializers.ChoiceField):
        assert value in field.choices, where
    elif isinstance(field, serializers.CharField | serializers.PrimaryKeyRelatedField):
        assert isinstance(value, str), where
    else:
        pytest.fail(f"{where}: this test doesn't know {type(field).__name__}")


@pytest.fixture
def talked(alice: Api, conversation: Conversation, gemini: FakeGemini) -> Conversation:
    """With an ordinary turn, one with media, and a blocked one."""
    alice.send(conversation, "one")
    alice.send(
        conversation,
        "two",
        media_urls=["https://example.com/a.jpg"],
        audio_url="https://example.com/a.mp3",
        audio_duration_seconds=3,
    )
    gemini.will(blocks())
    alice.send(conversation, "three")
    return conversation


def test_an_opened_conversation(alice: Api, coach: Any, make_influencer: Any) -> None:
    assert_shape(alice.open(coach), ConversationSerializer())
    assert_shape(alice.open(coach), ConversationSerializer())
    assert_shape(alice.open(make_influencer(initial_greeting="")), ConversationSerializer())


def test_a_conversation_that_talked(alice: Api, talked: Conversation) -> None:
    assert_shape(alice.open(talked.influencer), ConversationSerializer())


def test_a_page_of_conversations(alice: Api, talked: Conversation, make_influencer: Any) -> None:
    alice.open(make_influencer(initial_greeting=""))
    alice.open(make_influencer())

    page = alice.get(PATH).json()
    assert len(page["conversations"]) == 3
    assert_shape(page, ConversationPageSerializer())


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_page_of_messages(alice: Api, talked: Conversation, order: str) -> None:
    page = alice.messages(talked, order=order).json()
    assert len(page["messages"]) == 7
    assert_shape(page, MessagePageSerializer())


def test_a_turn(alice: Api, conversation: Conversation, gemini: FakeGemini) -> None:
    assert_shape(alice.send(conversation).json(), TurnSerializer())
    gemini.will(blocks())
    assert_shape(alice.send(conversation, media_urls="https://example.com/a.jpg").json(), TurnSerializer())


def test_a_deletion(alice: Api, talked: Conversation) -> None:
    assert_shape(alice.delete(f"{PATH}/{talked.pk}").json(), DeletedSerializer())


def test_a_page_of_influencers(nobody: Api, coach: Any) -> None:
    assert_shape(nobody.get("/api/v1/influencers").json(), InfluencerPageSerializer())


def test_a_message_is_the_same_wherever_it_is_shown(alice: Api, conversation: Conversation) -> None:
    turn = alice.send(conversation, media_urls="https://example.com/a.jpg").json()

    opened = alice.open(conversation.influencer)["recent_messages"]
    listed = alice.get(PATH).json()["conversations"][0]["recent_messages"]
    paged = alice.messages(conversation).json()["messages"]
    ascending = alice.messages(conversation, order="asc").json()["messages"]
    assert opened == listed == paged == ascending[::-1]
    assert paged[:2] == [turn["assistant_message"], turn["user_message"]]


def test_what_the_serializer_says_of_a_row_is_what_goes_on_the_wire(alice: Api, talked: Conversation) -> None:
    wire = alice.messages(talked, order="asc").json()["messages"]
    for shown, row in zip(wire, Message.objects.of(talked.pk).order_by("sequence"), strict=True):
        said = dict(MessageSerializer(row).data)
        moments = shown.pop("created_at"), said.pop("created_at")
        assert shown == said
        assert dt.datetime.fromisoformat(moments[0]) == dt.datetime.fromisoformat(moments[1])


def test_roles_types_and_statuses_are_the_contracts_words() -> None:
    assert Message.Role.values == ["user", "assistant"]
    assert Message.Type.values == ["text", "image", "multimodal", "audio"]
