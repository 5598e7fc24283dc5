import datetime as dt
import uuid
from itertools import batched
from typing import Any, Self

import orjson
from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from personas.models import Influencer, PersonaVersion
from yral_chat.database import Statement, insert, instance, update
from yral_chat.errors import Forbidden, NotFound

STEP = dt.timedelta(milliseconds=1)
RUNNING = ("running_question", "running_token", "running_until")


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
    # The one turn that runs, and until when its holder has it if nobody renews that. The token is new each time.
    running_question = models.UUIDField(null=True, blank=True, editable=False)
    running_token = models.UUIDField(null=True, blank=True, editable=False)
    running_until = models.DateTimeField(null=True, blank=True, editable=False)

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
        """Append one message: next sequence, later by at least 1 ms, counted. Whose turn it is is written too.

        Call it on a conversation that was fetched with `lock` in the same transaction.
        """
        self.message_count += 1
        self.updated_at = self._next_moment()
        update(self, "message_count", "updated_at", *RUNNING)
        return insert(
            Message(conversation_id=self.pk, sequence=self.message_count, created_at=self.updated_at, **fields)
        )

    def replace_last_message(self, last: "Message", **fields: Any) -> "Message":
        """In its place and sequence, with an id and a time of its own; otherwise as add_message."""
        self.updated_at = self._next_moment()
        update(self, "updated_at", *RUNNING)
        Message.objects.filter(pk=last.pk).delete()
        return insert(Message(conversation_id=self.pk, sequence=last.sequence, created_at=self.updated_at, **fields))

    def _next_moment(self) -> dt.datetime:
        return max(timezone.now(), self.updated_at + STEP if self.message_count > 1 else self.updated_at)

    def give_turn_to(self, question_id: uuid.UUID, lease: dt.timedelta) -> uuid.UUID:
        """The token of whoever runs the turn of this question now. Written by the next add_message or save_turn."""
        self.running_question, self.running_token = question_id, uuid.uuid4()
        self.running_until = timezone.now() + lease
        return self.running_token

    def end_turn(self) -> None:
        self.running_question = self.running_token = self.running_until = None

    def save_turn(self) -> None:
        update(self, *RUNNING)

    @property
    def runs_a_turn(self) -> bool:
        return self.running_until is not None and self.running_until > timezone.now()


class MessageQuerySet(models.QuerySet["Message"]):
    def of(self, conversation_id: uuid.UUID) -> Self:
        return self.filter(conversation=conversation_id)

    def newest_first(self) -> Self:
        return self.order_by("-sequence")

    def in_ranges(self, *ranges: Any) -> Self:
        """Of conversation, sequence before the first, and last sequence, in turn. Newest first in each of them.

        Written out, because PostgreSQL would read all messages of a conversation that it joins.
        """
        found = Q()
        for conversation, after, last in batched(ranges, 3):
            found |= Q(conversation=conversation, sequence__gt=after, sequence__lte=last)
        return self.filter(found).order_by("conversation_id", "-sequence")

    def shown_media(self) -> list[list[str]]:
        """The media of each message that shows any."""
        rows = self.exclude(media_urls=[], audio_url=None).values_list("media_urls", "audio_url")
        return [[*urls, sound] if sound else urls for urls, sound in rows]

    def seen_by_the_model(self) -> Self:
        """Without blocked answers, away messages, and the questions that they answer."""
        unheard = Q(answer__blocked=True) | Q(answer__away=True)
        return self.filter(blocked=False, away=False).exclude(unheard)


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
    stopped = models.BooleanField(default=False, db_default=False, help_text="An answer that the user cut short.")
    away = models.BooleanField(
        default=False, db_default=False, help_text="The persona's away message: no model was asked."
    )
    persona_version = models.PositiveIntegerField(
        null=True,
        blank=True,
        editable=False,
        help_text="The number of the persona's version that said it. None: the persona was as other hands than the "
        "desk's had just left it, or versions weren't kept yet.",
    )
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
        permissions = (("explain_message", "Can see why a persona said something, and replay it"),)
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
            models.CheckConstraint(condition=Q(stopped=False) | Q(role="assistant"), name="messages_only_answers_stop"),
            models.CheckConstraint(
                condition=Q(away=False) | Q(role="assistant"), name="messages_only_answers_are_away"
            ),
            models.CheckConstraint(
                condition=Q(audio_duration_seconds__isnull=True) | Q(audio_duration_seconds__lte=300),
                name="messages_audio_up_to_300_s",
            ),
        )

    def __str__(self) -> str:
        return f"{self.role} {self.sequence}"


class PromptText(models.Model):
    """A text that prompts were made of, once, under the hash of what it says. Turns refer to it."""

    id = models.CharField(primary_key=True, max_length=64, editable=False)
    text = models.TextField()
    layers = models.JSONField(
        null=True,
        blank=True,
        help_text="What a system instruction is made of, in order: names, and lengths of the texts.",
    )
    conversation = models.ForeignKey(
        Conversation, on_delete=models.CASCADE, null=True, blank=True, related_name="prompt_texts"
    )  # of what is remembered of a user, which goes with the conversation
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        db_table = "prompt_texts"

    def __str__(self) -> str:
        return self.id[:12]

    def by_layer(self) -> dict[str, str]:
        """Empty where nobody wrote down how it divides."""
        found, at = dict[str, str](), 0
        for name, length in self.layers or ():
            found[name] = self.text[at : at + length]
            at += length + len("\n\n")
        return found if "\n\n".join(found.values()) == self.text else {}


class TurnQuerySet(models.QuerySet["Turn"]):
    def under_way(self) -> Self:
        return self.filter(state__in=Turn.UNDER_WAY)

    def signalled(self) -> Self:
        """What a process that runs turns has to look at: stop it, tell how far it is, or know that it was taken."""
        return self.filter(Q(stop_requested=True) | Q(watched_until__isnull=False) | ~Q(state__in=Turn.UNDER_WAY))

    def abandoned(self) -> Self:
        """Whoever ran them is gone, and nobody else has them now."""
        held = Q(conversation__running_question=F("question_id"), conversation__running_until__gt=timezone.now())
        return self.under_way().exclude(held)


class Turn(models.Model):
    """A question and its answer: how far it is, what it took, and of what its prompt was made."""

    class State(models.TextChoices):
        PENDING = "pending"
        STREAMING = "streaming"
        DONE = "done"
        FAILED = "failed"
        STOPPED = "stopped"
        BLOCKED = "blocked"
        AWAY = "away"

    UNDER_WAY = (State.PENDING, State.STREAMING)

    # As with in_reply_to: a turn goes only with its conversation.
    question = models.OneToOneField(Message, on_delete=models.DO_NOTHING, primary_key=True, related_name="turn")
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="turns")
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001  unique where not null
    client_message_id = models.CharField(max_length=255, null=True, blank=True)  # noqa: DJ001
    keyed_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    finished_at = models.DateTimeField(null=True, blank=True)
    # What it took
    attempts = models.PositiveIntegerField(default=0, help_text="Calls of the model, all tries and resends together.")
    model = models.CharField(max_length=100, blank=True)
    finish_reason = models.CharField(max_length=50, blank=True)
    error_code = models.CharField(max_length=50, blank=True)
    prompt_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    thinking_tokens = models.PositiveIntegerField(default=0)
    total_tokens = models.PositiveIntegerField(default=0)
    cost_usd = models.DecimalField("cost", max_digits=14, decimal_places=8, null=True, blank=True)
    ms_to_first_token = models.PositiveIntegerField(null=True, blank=True)
    ms_to_end = models.PositiveIntegerField(null=True, blank=True)
    sent = models.JSONField(default=dict, blank=True, help_text="References to what the model was sent.")
    # Its stream: where each event's text ends in the answer, and the number of the event before the first of them
    event_ends = models.JSONField(default=list, blank=True)
    events_before = models.PositiveBigIntegerField(default=0)
    # Between processes, while it runs
    stop_requested = models.BooleanField(default=False)
    watched_until = models.DateTimeField(null=True, blank=True)
    text_so_far = models.TextField(blank=True)

    objects = TurnQuerySet.as_manager()

    class Meta:
        db_table = "turns"
        permissions = (("view_statistics", "Can see the statistics"),)
        constraints = (
            models.UniqueConstraint(
                fields=("conversation", "idempotency_key"),
                condition=Q(idempotency_key__isnull=False),
                name="turns_one_per_idempotency_key",
            ),
            models.UniqueConstraint(
                fields=("conversation", "client_message_id"),
                condition=Q(client_message_id__isnull=False),
                name="turns_one_per_client_message_id",
            ),
            models.CheckConstraint(
                condition=Q(state__in=["pending", "streaming", "done", "failed", "stopped", "blocked", "away"]),
                name="turns_state_known",
            ),
        )
        indexes = (
            models.Index(fields=["question"], condition=Q(state__in=["pending", "streaming"]), name="turns_under_way"),
            models.Index(
                fields=["question"],
                condition=Q(stop_requested=True) | Q(watched_until__isnull=False),
                name="turns_signalled",
            ),
            models.Index(F("created_at").desc(), name="turns_latest"),
        )

    def __str__(self) -> str:
        return f"{self.state} turn"

    @property
    def has_ended(self) -> bool:
        return self.state not in self.UNDER_WAY

    @property
    def is_held(self) -> bool:
        """Somebody runs it now."""
        return self.conversation.running_question == self.pk and self.conversation.runs_a_turn


class AlternativeAnswer(models.Model):
    """An answer that was replaced by a newer one: under the id that it had, outside of history and counts."""

    id = models.UUIDField(primary_key=True, editable=False)
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="alternatives")
    question = models.ForeignKey(Message, on_delete=models.DO_NOTHING, related_name="alternatives")
    content = models.TextField(blank=True)
    token_count = models.PositiveIntegerField(null=True, blank=True)
    blocked = models.BooleanField(default=False)
    stopped = models.BooleanField(default=False)
    away = models.BooleanField(default=False, db_default=False)
    persona_version = models.PositiveIntegerField(null=True, blank=True, editable=False)
    metadata = models.JSONField(default=dict, blank=True)
    created_at = models.DateTimeField(editable=False)
    replaced_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        db_table = "alternative_answers"

    def __str__(self) -> str:
        return f"replaced {self.replaced_at:%Y-%m-%d %H:%M}"


class ReadingQuerySet(models.QuerySet["Reading"]):
    def valid_of(self, reader_id: int | None) -> Self:
        """What this person gave a reason for, as long as it holds."""
        return self.filter(reader=reader_id, valid_until__gt=timezone.now())

    def delete(self) -> Any:
        raise NotChanged

    def update(self, **kwargs: Any) -> Any:
        raise NotChanged


class NotChanged(TypeError):
    def __init__(self) -> None:
        super().__init__("The log of readings is only added to.")


class Reading(models.Model):
    """A reason that a member of staff gave for reading what a user said or sent. Kept when the conversation is gone,
    and for as long as there is staff: who has read can't be deleted, only switched off."""

    class Purpose(models.TextChoices):
        ASKED = "asked", "The user asked us for help"
        REPORT = "report", "Somebody reported a message"
        SAFETY = "safety", "Somebody may be in danger, or breaks the rules"
        FAULT = "fault", "Something doesn't work"
        QUALITY = "quality", "How good the persona's answers are"
        LEGAL = "legal", "An authority or the law asks for it"
        OTHER = "other", "Something else"

    reader = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+", verbose_name="who")
    user_id = models.CharField("whose", max_length=255)
    conversation_id = models.UUIDField("conversation", null=True, blank=True, help_text="None: the user's files.")
    persona = models.CharField("with", max_length=100, blank=True, help_text="Its name at that time.")
    purpose = models.CharField(max_length=10, choices=Purpose)
    reason = models.TextField(max_length=500)
    address = models.GenericIPAddressField("from", null=True, blank=True)
    created_at = models.DateTimeField("when", default=timezone.now, editable=False)
    valid_until = models.DateTimeField()

    objects = ReadingQuerySet.as_manager()

    class Meta:
        db_table = "readings"
        default_permissions = ()  # superusers alone look at it
        constraints = (models.CheckConstraint(condition=~Q(reason=""), name="readings_with_a_reason"),)
        indexes = (
            models.Index(fields=["reader", "valid_until"], name="readings_valid"),
            models.Index(fields=["user_id"], name="readings_by_user"),
            models.Index(F("created_at").desc(), name="readings_latest"),
        )

    def __str__(self) -> str:
        return f"{self.user_id}, read by {self.reader}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise NotChanged
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise NotChanged


class SampleMessage(models.Model):
    """What a persona's draft is tested with: a message as users send it, and what staff expect of the answer."""

    influencer = models.ForeignKey(Influencer, on_delete=models.CASCADE, related_name="samples")
    message = models.TextField(max_length=4000)
    expectations = models.JSONField(default=list, help_text='A list of {"kind", "value"}; see expectations.py.')
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        db_table = "persona_samples"
        ordering = ("pk",)

    def __str__(self) -> str:
        return self.message[:80]


class SampleRun(models.Model):
    """All samples of a persona, asked of one version as it was then: a draft may change meanwhile."""

    version = models.ForeignKey(PersonaVersion, on_delete=models.CASCADE, related_name="runs")
    content = models.JSONField(help_text="Of the version, when the run began.")
    started_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.SET_NULL, null=True, related_name="+")
    started_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        db_table = "persona_sample_runs"
        ordering = ("-pk",)

    def __str__(self) -> str:
        return f"run of {self.started_at:%Y-%m-%d %H:%M}"


class SampleResult(models.Model):
    """One sample of a run, as it was when that began, and what came of it. Outside of all conversations and counts."""

    class State(models.TextChoices):
        WAITING = "waiting"
        ASKING = "asking"
        GREEN = "green"
        RED = "red"

    run = models.ForeignKey(SampleRun, on_delete=models.CASCADE, related_name="results")
    sample = models.ForeignKey(SampleMessage, on_delete=models.SET_NULL, null=True, related_name="+")
    place = models.PositiveIntegerField()
    message = models.TextField()
    expectations = models.JSONField(default=list)
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    asked_at = models.DateTimeField(null=True)
    answer = models.TextField(blank=True, default="")
    error = models.TextField(blank=True, default="")
    judgements = models.JSONField(default=list, help_text='A list of {"holds", "sentence"}.')
    model = models.CharField(max_length=100, blank=True, default="")
    tokens = models.PositiveIntegerField(null=True)
    seconds = models.FloatField(null=True)
    cost_usd = models.DecimalField(max_digits=12, decimal_places=6, null=True)

    class Meta:
        db_table = "persona_sample_results"
        ordering = ("place",)
        constraints = (
            models.UniqueConstraint(fields=("run", "place"), name="persona_sample_results_one_per_place"),
            models.CheckConstraint(
                condition=Q(state__in=["waiting", "asking", "green", "red"]), name="persona_sample_results_state_known"
            ),
        )

    def __str__(self) -> str:
        return f"{self.state}: {self.message[:80]}"

    @property
    def has_ended(self) -> bool:
        return self.state in (self.State.GREEN, self.State.RED)
