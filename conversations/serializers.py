"""Requests: DRF serializers. Answers: serializers for the schema, plain dicts for the wire; a test compares them."""

import uuid
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import chain
from typing import Any

from rest_framework import serializers

from conversations import prompts
from conversations.models import Conversation, ConversationQuerySet, Message, MessageQuerySet
from conversations.turns import Draft, Outcome
from media_uploads import storage
from personas.models import texts
from personas.serializers import absolute
from yral_chat import ai
from yral_chat.database import Statement
from yral_chat.pagination import Page
from yral_chat.schema import Object

RECENT_MESSAGES = 10
MOST_MEDIA = 10
MESSAGE = (
    "id",
    "conversation_id",
    "role",
    "content",
    "message_type",
    "media_urls",
    "audio_url",
    "audio_duration_seconds",
    "token_count",
    "created_at",
    "blocked",
    "stopped",
    "away",
)
CONVERSATION = ("id", "user_id", "influencer_id", "created_at", "updated_at", "message_count")
PERSONA = ("id", "name", "display_name", "avatar_url", "category", "suggested_messages")


class OpenConversationSerializer(serializers.Serializer[Any]):
    influencer_id = serializers.CharField()


class MessageTypeField(serializers.ChoiceField):
    """In any case; says what is allowed and not what was sent."""

    default_error_messages = {"invalid_choice": "Must be one of: text, image, multimodal, audio."}

    def to_internal_value(self, data: Any) -> str:
        return str(super().to_internal_value(data.lower() if isinstance(data, str) else ""))


class TextField(serializers.CharField):
    """Text that can't be meant as a number."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class MediaListField(serializers.ListField):
    """A bare string counts as a list of one."""

    child = serializers.CharField(max_length=2048)
    default_error_messages = {
        "not_a_list": "Expected a list of strings.",
        "max_length": "At most {max_length} are allowed.",
    }

    def to_internal_value(self, data: Any) -> Any:
        items = [data] if isinstance(data, str) else data
        if isinstance(items, list) and not all(isinstance(item, str) for item in items):
            self.fail("not_a_list")
        if isinstance(items, list) and len(items) > MOST_MEDIA:  # before each of thousands is judged
            self.fail("max_length", max_length=MOST_MEDIA)
        return super().to_internal_value(items)


class SendMessageSerializer(serializers.Serializer[Any]):
    message_type = MessageTypeField(choices=Message.Type.choices)
    content = serializers.CharField(required=False, allow_null=True, allow_blank=True, max_length=4000)
    media_urls = MediaListField(required=False, allow_null=True, max_length=MOST_MEDIA)
    audio_url = TextField(required=False, allow_null=True, allow_blank=True, max_length=2048)
    audio_duration_seconds = serializers.IntegerField(required=False, allow_null=True, min_value=0, max_value=300)
    client_message_id = serializers.CharField(
        required=False,
        allow_null=True,
        allow_blank=True,
        max_length=255,
        help_text="The app's own id of this message: sent again with it, within 7 days, it is the same message.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        kind = attrs["message_type"]
        if kind == Message.Type.TEXT and not attrs.get("content"):
            raise serializers.ValidationError({"content": "A text message needs content."}, code="required")
        if kind in prompts.WITH_PICTURES and not attrs.get("media_urls"):
            raise serializers.ValidationError(
                {"media_urls": f"A message of type {kind} needs media_urls."}, code="required"
            )
        if kind == Message.Type.AUDIO and not attrs.get("audio_url"):
            raise serializers.ValidationError({"audio_url": "An audio message needs an audio_url."}, code="required")
        return attrs

    def draft(self, base_url: str, idempotency_key: str | None) -> Draft:
        """With links of ours turned back into the keys that they lead to."""
        sent = self.validated_data
        sound = sent.get("audio_url") or None
        return Draft(
            message_type=sent["message_type"],
            content=sent.get("content") or "",
            media_urls=[storage.key_of(url, base_url) or url for url in sent.get("media_urls") or []],
            audio_url=sound and (storage.key_of(sound, base_url) or sound),
            audio_duration_seconds=sent.get("audio_duration_seconds"),
            idempotency_key=idempotency_key,
            client_message_id=sent.get("client_message_id") or None,
        )


class MessageSerializer(serializers.ModelSerializer[Message]):
    conversation_id = serializers.UUIDField()
    media_urls = serializers.ListField(child=serializers.CharField())

    class Meta:
        model = Message
        fields = MESSAGE
        read_only_fields = MESSAGE


class PersonaOfConversationSerializer(Object):
    id = serializers.CharField()
    name = serializers.CharField()
    display_name = serializers.CharField()
    avatar_url = serializers.CharField()
    category = serializers.CharField()
    suggested_messages = serializers.ListField(
        child=serializers.CharField(),
        allow_null=True,
        help_text="Null once the conversation has more than one message.",
    )


class LastMessageSerializer(Object):
    content = serializers.CharField()
    role = serializers.ChoiceField(choices=Message.Role.choices)
    created_at = serializers.DateTimeField()


class ConversationSerializer(serializers.ModelSerializer[Conversation]):
    influencer = PersonaOfConversationSerializer()
    influencer_id = serializers.CharField()
    unread_count = serializers.IntegerField()
    last_message = LastMessageSerializer(allow_null=True)
    recent_messages = MessageSerializer(many=True, help_text="The newest ten, newest first.")

    class Meta:
        model = Conversation
        fields = (*CONVERSATION, "influencer", "unread_count", "last_message", "recent_messages")
        read_only_fields = CONVERSATION


class ConversationPageSerializer(Object):
    conversations = ConversationSerializer(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class MessagePageSerializer(Object):
    conversation_id = serializers.UUIDField()
    messages = MessageSerializer(many=True)
    total = serializers.IntegerField()
    limit = serializers.IntegerField()
    offset = serializers.IntegerField()


class TurnSerializer(Object):
    user_message = MessageSerializer()
    assistant_message = MessageSerializer()
    blocked = serializers.BooleanField()
    away = serializers.BooleanField(help_text="The answer is the persona's away message: no model was asked.")


class StoppedTurnSerializer(Object):
    user_message = MessageSerializer()
    assistant_message = MessageSerializer(allow_null=True, help_text="Null where there was no text yet.")
    blocked = serializers.BooleanField()
    away = serializers.BooleanField()
    stopped = serializers.BooleanField(help_text="False for a turn that had ended by itself.")


class DeletedSerializer(Object):
    success = serializers.BooleanField()
    message = serializers.CharField()
    deleted_conversation_id = serializers.UUIDField()
    deleted_messages_count = serializers.IntegerField()


def message_json(message: Message, base_url: str) -> dict[str, Any]:
    """The same keys as a row of .values(*MESSAGE)."""
    return with_links({name: getattr(message, name) for name in MESSAGE}, base_url)


def with_links(row: dict[str, Any], base_url: str) -> dict[str, Any]:
    """Keys become links, signed anew; addresses of other sites stay as they are."""
    if row["media_urls"]:
        row["media_urls"] = [readable(url, base_url) for url in row["media_urls"]]
    if row["audio_url"]:
        row["audio_url"] = readable(row["audio_url"], base_url)
    return row


def readable(url: str, base_url: str) -> str:
    return storage.url_for(url, base_url) if storage.KEY.fullmatch(url) else url


def _page(conversation_id: uuid.UUID, after: int, last: int) -> MessageQuerySet:
    return Message.objects.of(conversation_id).filter(sequence__gt=after, sequence__lte=last)


# The conversation's id needn't be read and made anew for each row.
_IN_CONVERSATION = tuple(name for name in MESSAGE if name != "conversation_id")
_EXAMPLE = uuid.UUID(int=1), 2, 3
_PAGES = {
    "asc": Statement(lambda *of: _page(*of).order_by("sequence").values(*_IN_CONVERSATION), *_EXAMPLE, for_json=True),
    "desc": Statement(lambda *of: _page(*of).newest_first().values(*_IN_CONVERSATION), *_EXAMPLE, for_json=True),
}


def messages_page(
    conversation: Conversation, *, offset: int, limit: int, order: str, base_url: str
) -> list[dict[str, Any]]:
    """As a range of sequences: page 800 costs what page 1 does."""
    count = conversation.message_count  # what is said from here on is in none of its pages
    first, last = (offset, offset + limit) if order == "asc" else (count - offset - limit, count - offset)
    rows = _PAGES[order](conversation.pk, first, min(last, count))
    for row in rows:
        row["conversation_id"] = conversation.pk
        with_links(row, base_url)
    return rows


@cache
def _recent(count: int) -> Statement:
    """The recent messages of `count` conversations."""
    examples = [value for n in range(count) for value in (uuid.UUID(int=n + 1), 2 * n, 2 * n + 1)]
    return Statement(lambda *ranges: Message.objects.in_ranges(*ranges).values(*MESSAGE), *examples, for_json=True)


def conversation_rows(conversations: ConversationQuerySet) -> Any:
    """The flat rows that conversations_json takes; the persona's instructions aren't read."""
    persona = (f"influencer__{name}" for name in PERSONA if name != "id")
    return conversations.values(*CONVERSATION, *persona)


@lru_cache(maxsize=64)
def listed(page: Page) -> Statement:
    """A page of the conversations of the user that it's called with."""
    return Statement(
        lambda user_id: conversation_rows(Conversation.objects.owned_by(user_id).latest_first())[
            page.offset : page.end
        ],
        "user",
    )


def conversation_row(conversation: Conversation) -> dict[str, Any]:
    """The same row of a conversation at hand."""
    row = {name: getattr(conversation, name) for name in CONVERSATION}
    return row | {f"influencer__{name}": getattr(conversation.influencer, name) for name in PERSONA if name != "id"}


def conversations_json(rows: Iterable[dict[str, Any]], base_url: str) -> list[dict[str, Any]]:
    """Two queries whatever the number: the rows, and the recent messages of all of them."""
    rows = list(rows)
    recent: dict[str, list[dict[str, Any]]] = {str(row["id"]): [] for row in rows}
    ranges = ((row["id"], row["message_count"] - RECENT_MESSAGES, row["message_count"]) for row in rows)
    for message in _recent(len(rows))(*chain.from_iterable(ranges)) if rows else ():
        recent[str(message["conversation_id"])].append(with_links(message, base_url))
    return [_conversation_json(row, recent[str(row["id"])], base_url) for row in rows]


def opened_json(conversation: Conversation, greeting: Message | None, base_url: str) -> dict[str, Any]:
    """A conversation at hand; of a new one the recent messages are known: its greeting, if it has one."""
    row = conversation_row(conversation)
    if greeting:
        return _conversation_json(row, [message_json(greeting, base_url)], base_url)
    return conversations_json([row], base_url)[0]


def _conversation_json(row: dict[str, Any], recent: list[dict[str, Any]], base_url: str) -> dict[str, Any]:
    persona = {name: row.pop(f"influencer__{name}") for name in PERSONA if name != "id"}
    persona["id"] = row["influencer_id"]
    persona["avatar_url"] = absolute(persona["avatar_url"], base_url)
    persona["suggested_messages"] = texts(persona["suggested_messages"]) if row["message_count"] <= 1 else None
    return {
        **row,
        "influencer": persona,
        "unread_count": 0,
        "last_message": {name: recent[0][name] for name in ("content", "role", "created_at")} if recent else None,
        "recent_messages": recent,
    }


def turn_json(turn: Outcome, base_url: str) -> dict[str, Any]:
    return {
        "user_message": message_json(turn.question, base_url),
        "assistant_message": turn.answer and message_json(turn.answer, base_url),
        "blocked": bool(turn.answer and turn.answer.blocked),
        "away": bool(turn.answer and turn.answer.away),
    }


def stopped_json(turn: Outcome, base_url: str) -> dict[str, Any]:
    return {**turn_json(turn, base_url), "stopped": turn.was_stopped}


def done_json(turn: Outcome, base_url: str) -> dict[str, Any]:
    """Of the last event of a stream. `tokens` is 0 where the model didn't count."""
    answer = turn.answer
    made = answer.metadata if answer else {}
    event = {
        **turn_json(turn, base_url),
        "provider": made.get("provider") or ai.provider(),
        "model": made.get("model", ""),
        "tokens": (answer and answer.token_count) or 0,
    }
    return {**event, "stopped": True} if turn.was_stopped else event
