import datetime as dt
import uuid
from collections.abc import Iterable
from typing import Any, Self

import orjson
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from personas.models import Influencer
from yral_chat.database import Statement, insert, instance, update
from yral_chat.errors import Forbidden, NotFound

STEP = dt.timedelta(milliseconds=1)


class ConversationQuerySet(models.QuerySet["Conversation"]):
    def owned_by(self, user_id: str) -> Self:
        return self.filter(user_id=user_id)

    def latest_first(self) -> Self:
        return self.order_by("-updated_at", "-id")


def get_owned(conversation_id: str, user_id: str, *, lock: bool = False) -> "Conversation":
    """The caller's own. Raises NotFound (also for what is no UUID), then Forbidden.

    With `lock`, in a transaction, nobody else adds to it until the transaction's end. `metadata` is deferred.
    """
    row = (_LOCKED if lock else _FOUND).first(known_uuid(conversation_id))
    if row is None:
        raise NotFound("Conversation not found")
    if row["user_id"] != user_id:
        raise Forbidden("This conversation belongs to somebody else.")
    return instance(Conversation, row)


def known_uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError as exc:
        raise NotFound("Conversation not found") from exc


class Conversation(models.Model):
    """The one talk of a user with an influencer.

    `message_count` is also the `sequence` of the last message, and `updated_at` that one's `created_at`:
    whoever holds the row's lock knows the next of both.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user_id = models.CharField(max_length=255)
    influencer = models.ForeignKey(Influencer, on_delete=models.PROTECT, related_name="conversations")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)
    message_count = models.PositiveIntegerField(default=0, editable=False)
    metadata = models.JSONField(default=dict, blank=True)

    objects = ConversationQuerySet.as_manager()

    class Meta:
        db_table = "conversations"
        constraints = (
            models.UniqueConstraint(fields=("user_id", "influencer"), name="conversations_one_per_user_and_influencer"),
            models.CheckConstraint(condition=~Q(user_id=""), name="conversations_user_id_not_empty"),
        )
        indexes = (
            models.Index(F("user_id"), F("updated_at").desc(), F("id").desc(), name="conversations_by_user"),
            models.Index(F("updated_at").desc(), name="conversations_latest"),
        )

    def __str__(self) -> str:
        return f"{self.user_id} with {self.influencer.display_name}"

    def add_message(self, **fields: Any) -> "Message":
        """Append one message: next sequence, later by at least 1 ms, counted.

        Call it on a conversation that was fetched with `lock` in the same transaction.
        """
        self.updated_at = max(timezone.now(), self.updated_at + STEP if self.message_count else self.updated_at)
        self.message_count += 1
        update(self, "message_count", "updated_at")
        return insert(
            Message(conversation_id=self.pk, sequence=self.message_count, created_at=self.updated_at, **fields)
        )


class MessageQuerySet(models.QuerySet["Message"]):
    def of(self, conversation_id: uuid.UUID) -> Self:
        return self.filter(conversation=conversation_id)

    def newest_first(self) -> Self:
        return self.order_by("-sequence")

    def recent(self, conversations: Iterable[uuid.UUID], each: int) -> Self:
        """The last `each` messages of each of these conversations, newest first: one index range a conversation."""
        return self.filter(
            conversation__in=conversations, sequence__gt=F("conversation__message_count") - each
        ).order_by("conversation_id", "-sequence")

    def shown_media(self) -> list[list[str]]:
        """The media of each message that shows any."""
        rows = self.exclude(media_urls=[], audio_url=None).values_list("media_urls", "audio_url")
        return [[*urls, sound] if sound else urls for urls, sound in rows]

    def seen_by_the_model(self) -> Self:
        """Without blocked answers and the questions that they answer."""
        return self.filter(blocked=False).exclude(answer__blocked=True)


_COLUMNS = [field.attname for field in Conversation._meta.concrete_fields if field.attname != "metadata"]
_FOUND = Statement(lambda pk: Conversation.objects.filter(pk=pk).values(*_COLUMNS), uuid.UUID(int=1))
_LOCKED = Statement(
    lambda pk: Conversation.objects.filter(pk=pk).select_for_update().values(*_COLUMNS, "metadata"), uuid.UUID(int=1)
)


class TextListField(models.JSONField):
    """A JSON list, read without the standard parser: it is in every row of every page and almost always empty."""

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
        return [] if value == "[]" else orjson.loads(value)


class Message(models.Model):
    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    class Type(models.TextChoices):
        TEXT = "text"
        IMAGE = "image"
        MULTIMODAL = "multimodal"
        AUDIO = "audio"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, related_name="messages", db_index=False
    )  # the constraint on (conversation, sequence) is its index
    sequence = models.PositiveIntegerField(editable=False)
    role = models.CharField(max_length=10, choices=Role)
    content = models.TextField(blank=True)
    message_type = models.CharField(max_length=10, choices=Type, default=Type.TEXT)
    media_urls = TextListField(default=list, blank=True)
    audio_url = models.TextField(null=True, blank=True)  # noqa: DJ001  the contract tells null from an address
    audio_duration_seconds = models.PositiveIntegerField(null=True, blank=True)
    token_count = models.PositiveIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(editable=False)
    # Messages go only with their conversation, all in one statement; CASCADE here would load each of them first.
    in_reply_to = models.OneToOneField(
        "self", on_delete=models.DO_NOTHING, null=True, blank=True, related_name="answer", editable=False
    )
    blocked = models.BooleanField(default=False)
    body_hash = models.CharField(
        max_length=64,
        blank=True,
        editable=False,
        help_text="Of a question as it was sent: the same again continues it.",
    )
    metadata = models.JSONField(default=dict, blank=True)

    objects = MessageQuerySet.as_manager()

    class Meta:
        db_table = "messages"
        indexes = (models.Index(F("created_at").desc(), name="messages_latest"),)
        constraints = (
            models.UniqueConstraint(fields=("conversation", "sequence"), name="messages_one_per_sequence"),
            models.CheckConstraint(condition=Q(sequence__gte=1), name="messages_sequence_from_1"),
            models.CheckConstraint(condition=Q(role__in=["user", "assistant"]), name="messages_role_known"),
            models.CheckConstraint(
                condition=Q(message_type__in=["text", "image", "multimodal", "audio"]), name="messages_type_known"
            ),
            models.CheckConstraint(
                condition=Q(in_reply_to__isnull=True) | Q(role="assistant"), name="messages_only_answers_reply"
            ),
            models.CheckConstraint(
                condition=Q(blocked=False) | Q(role="assistant"), name="messages_only_answers_block"
            ),
            models.CheckConstraint(
                condition=Q(audio_duration_seconds__isnull=True) | Q(audio_duration_seconds__lte=300),
                name="messages_audio_up_to_300_s",
            ),
        )

    def __str__(self) -> str:
        return f"{self.role} {self.sequence}"
