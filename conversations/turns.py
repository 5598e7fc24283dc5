"""Turns in the database: who may run one, and how it ends. Nothing here waits for anybody.

A turn runs under its conversation's lock: `running_token` says whose it is, and `running_until` till when it is that,
if its holder doesn't renew it. Who lost the token drops what it has.
"""

import datetime as dt
import hashlib
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from conversations.board import event_ends
from conversations.models import AlternativeAnswer, Conversation, Message, Turn, get_owned
from media_uploads.services import count_use
from personas.models import Influencer
from personas.operating import away_text, count_tokens
from yral_chat import ai, metrics
from yral_chat.ai.prices import cost
from yral_chat.database import Statement, insert, update, write_transaction
from yral_chat.errors import Conflict, NotFound

LEASE = dt.timedelta(seconds=10)
KEYS_KEPT = dt.timedelta(days=7)
NUMBERS = 100_000  # event numbers that each attempt of a turn has for its own
DEFLECTION = "I'd rather not go into that. Let's talk about something else!"
INTERRUPTED = "interrupted"
_KEYS = ("idempotency_key", "client_message_id", "keyed_at")
_MEASURES = (
    *("stop_requested", "watched_until", "text_so_far"),
    *("state", "finished_at", "attempts", "model", "finish_reason", "error_code", "cost_usd", "sent", "event_ends"),
    *("prompt_tokens", "output_tokens", "thinking_tokens", "total_tokens", "ms_to_first_token", "ms_to_end"),
)
_OF_THE_ANSWER = ("finish_reason", "error_code", "model", "sent", "event_ends", "ms_to_first_token", "ms_to_end")
_BEGINNING = ("state", "events_before", "event_ends", "error_code", "stop_requested", "watched_until", "text_so_far")

_NEWEST_QUESTION = Statement(
    lambda conversation_id: (
        Message.objects.of(conversation_id)
        .filter(role=Message.Role.USER)
        .newest_first()
        .values(
            *("id", "sequence", "body_hash", "answer__id", "answer__created_at"),
            *("turn__idempotency_key", "turn__client_message_id"),
        )[:1]
    ),
    uuid.UUID(int=1),
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A message as sent, checked for its form."""

    message_type: str
    content: str
    media_urls: list[str]
    audio_url: str | None
    audio_duration_seconds: int | None
    idempotency_key: str | None = None
    client_message_id: str | None = None

    @property
    def body_hash(self) -> str:
        """Of what makes two sends the same: type, stripped content, media and audio."""
        parts = [self.message_type, self.content, self.media_urls, self.audio_url]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()

    @property
    def keys(self) -> dict[str, str]:
        keys = {"idempotency_key": self.idempotency_key, "client_message_id": self.client_message_id}
        return {name: key for name, key in keys.items() if key}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A turn that ended well, or was stopped before there was any text: then `answer` is None."""

    turn: Turn
    question: Message
    answer: Message | None

    @property
    def was_stopped(self) -> bool:
        return self.answer.stopped if self.answer else self.turn.state == Turn.State.STOPPED


@dataclass(frozen=True, slots=True)
class Busy:
    """Somebody runs a turn of the conversation. `ours` if it is the one that was asked for; `question_id` is None where
    it's only that others were here first."""

    question_id: uuid.UUID | None
    ours: bool
    message_count: int


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run a turn, as long as `token` is the conversation's. `replaces` is the answer that the new one
    takes the place of, with the record of it that stays if there is none."""

    conversation: Conversation
    turn: Turn
    question: Message
    token: uuid.UUID
    replaces: Message | None = None
    kept: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Effort:
    """What running a turn came to so far, for its record."""

    tally: ai.Tally = field(default_factory=ai.Tally)
    sent: dict[str, Any] = field(default_factory=dict)
    pieces: list[str] = field(default_factory=list)  # of text that went out
    heard: ai.Tally = field(default_factory=ai.Tally)  # what it took to transcribe the question
    is_counted: bool = False  # among the persona's tokens of the day


class Lost(Exception):
    """The turn isn't ours any more: it was stopped, or was taken for dead and somebody else has it."""


# Whose turn is it?


def claim_for_draft(
    conversation: Conversation,
    draft: Draft,
    uploads: list[str],
    since: int,
    *,
    arrived: dt.datetime,
    joined: uuid.UUID | None = None,
    is_next: bool,
) -> Claim | Outcome | Busy:
    """In a transaction that holds the conversation's lock. What was stored after `since` messages, or answered after
    the draft `arrived`, is the draft's if it is the same, and so is the question that it `joined` when somebody else
    ran it. Only who `is_next` begins a turn. Raises Conflict where a key belongs to another body."""
    question = (
        (joined and _question(conversation, joined))
        or _with_the_same_key(conversation, draft)
        or _the_same_again(conversation, draft, since, arrived)
    )
    if question:
        _adopt_keys(question.turn, draft)
    if question and (answer := answer_to(question.pk)):
        return Outcome(question.turn, question, answer)
    if conversation.runs_a_turn:
        ours = question is not None and question.pk == conversation.running_question
        return Busy(conversation.running_question, ours, conversation.message_count)
    if not is_next:
        return Busy(None, False, conversation.message_count)
    return continued(conversation, question) if question else _begun(conversation, draft, uploads)


def _with_the_same_key(conversation: Conversation, draft: Draft) -> Message | None:
    """Raises Conflict also where two keys belong to two messages."""
    if not draft.keys:
        return None
    matches = Q()
    for name, key in draft.keys.items():
        matches |= Q(**{name: key})
    found: Message | None = None
    turns = Turn.objects.filter(matches, conversation=conversation.pk).select_related("question")
    for turn in turns.order_by("question__sequence"):
        if turn.keyed_at is None or turn.keyed_at < timezone.now() - KEYS_KEPT:
            turn.idempotency_key = turn.client_message_id = turn.keyed_at = None
            update(turn, *_KEYS)
        elif found or turn.question.body_hash != draft.body_hash:
            raise Conflict(
                "This key was sent before, with another message.",
                reason="idempotency_mismatch",
                message_id=str(turn.pk),
            )
        else:
            found = turn.question
    return found


def _adopt_keys(turn: Turn, draft: Draft) -> None:
    """That came for a turn which has none of that kind yet."""
    new = {name: key for name, key in draft.keys.items() if getattr(turn, name) is None}
    if new:
        for name, key in new.items():
            setattr(turn, name, key)
        turn.keyed_at = timezone.now()
        update(turn, *_KEYS)


def _question(conversation: Conversation, question_id: uuid.UUID) -> Message | None:
    """With its turn, which is made where it's missing: an older version of the service, which may still run beside this
    one, asks without."""
    asked = Message.objects.of(conversation.pk).filter(role=Message.Role.USER, pk=question_id)
    found = asked.select_related("turn").first()
    if found and not hasattr(found, "turn"):
        answer = answer_to(found.pk)
        state, code = (settled(answer), "") if answer else (Turn.State.FAILED, INTERRUPTED)
        found.turn, _ = Turn.objects.get_or_create(
            question=found, defaults={"conversation_id": conversation.pk, "state": state, "error_code": code}
        )
    return found


def _the_same_again(conversation: Conversation, draft: Draft, since: int, arrived: dt.datetime) -> Message | None:
    """The newest question, if it is this draft and waits for its answer, or did when the draft came (a busy service may
    look only after that), or came while the draft waited for its turn. One that has another key is another message,
    even if it says the same."""
    newest = _NEWEST_QUESTION.first(conversation.pk)
    if newest is None or newest["body_hash"] != draft.body_hash:
        return None
    if newest["answer__id"] and newest["sequence"] <= since and newest["answer__created_at"] <= arrived:
        return None
    if any((newest[f"turn__{name}"] or key) != key for name, key in draft.keys.items()):
        return None
    return _question(conversation, newest["id"])


def _begun(conversation: Conversation, draft: Draft, uploads: list[str]) -> Claim:
    question_id = uuid.uuid4()
    token = conversation.give_turn_to(question_id, LEASE)
    question = conversation.add_message(
        id=question_id,
        role=Message.Role.USER,
        content=draft.content,
        message_type=draft.message_type,
        media_urls=draft.media_urls,
        audio_url=draft.audio_url,
        audio_duration_seconds=draft.audio_duration_seconds,
        body_hash=draft.body_hash,
    )
    keyed_at = timezone.now() if draft.keys else None
    turn = insert(Turn(question_id=question_id, conversation_id=conversation.pk, keyed_at=keyed_at, **draft.keys))
    count_use(uploads)
    return Claim(conversation, turn, question, token)


def continued(conversation: Conversation, question: Message, *, replaces: Message | None = None) -> Claim:
    """Another attempt. Its events have numbers above all that went out before, also of an attempt that was killed."""
    turn = question.turn
    if not turn.has_ended:
        count_abandoned(turn)
    kept = {name: getattr(turn, name) for name in _OF_THE_ANSWER}
    turn.state = Turn.State.PENDING
    turn.events_before += NUMBERS
    turn.event_ends, turn.error_code, turn.text_so_far = [], "", ""
    turn.stop_requested, turn.watched_until = False, None
    token = conversation.give_turn_to(question.pk, LEASE)
    conversation.save_turn()
    update(turn, *_BEGINNING)
    return Claim(conversation, turn, question, token, replaces, kept if replaces else {})


def claim_to_regenerate(conversation: Conversation, question_id: str, *, is_next: bool) -> Claim | Outcome | Busy:
    """In a transaction that holds the conversation's lock. Raises NotFound, or Conflict if anything was said since, or
    if the persona is away: its away message takes no answer's place, and stays what it is."""
    question = question_of(conversation, question_id)
    if conversation.runs_a_turn or not is_next:
        return Busy(conversation.running_question, False, conversation.message_count)
    answer = answer_to(question.pk)
    if conversation.message_count != (answer or question).sequence:
        raise Conflict("Only the last answer can be replaced.", reason="not_the_last_message")
    if answer and conversation.influencer.is_away:
        if answer.away:
            return Outcome(question.turn, question, answer)
        raise Conflict(away_text(conversation.influencer), reason="away")
    return continued(conversation, question, replaces=answer)


def question_of(conversation: Conversation, question_id: str) -> Message:
    """With its turn. Raises NotFound, also for an answer's id and for what is no UUID."""
    try:
        known = uuid.UUID(question_id)
    except ValueError as exc:
        raise NotFound("Message not found") from exc
    question = _question(conversation, known)
    if question is None:
        raise NotFound("Message not found")
    return question


def answer_to(question_id: uuid.UUID) -> Message | None:
    return Message.objects.filter(in_reply_to=question_id).first()


# While it runs


def renew(tokens: Mapping[uuid.UUID, uuid.UUID]) -> set[uuid.UUID]:
    """Of the turns of these conversations, by their tokens. Gives the tokens that are lost: their turns were taken
    over, or their conversations deleted."""
    conversations, held = list(tokens), list(tokens.values())
    with write_transaction():
        ours = Conversation.objects.filter(pk__in=conversations, running_token__in=held)
        renewed = ours.update(running_until=timezone.now() + LEASE)
        if renewed == len(held):
            return set()
        return set(held) - set(ours.values_list("running_token", flat=True))


def begin_streaming(claim: Claim, effort: Effort) -> None:
    """Before the first event goes out: from here on a stop keeps the text. Raises Lost."""
    with write_transaction():
        _held(claim)
        claim.turn.state, claim.turn.sent = Turn.State.STREAMING, effort.sent
        update(claim.turn, "state", "sent")


# How it ends


def keep_answer(claim: Claim, reply: ai.Reply, effort: Effort, *, stopped: bool = False) -> Outcome:
    """Store the answer and end the turn. Raises Lost, or NotFound if the conversation is gone."""
    with write_transaction():
        conversation = _held(claim)
        conversation.end_turn()
        answer = _in_its_place(
            claim,
            conversation,
            content=deflection_of(claim.conversation.influencer) if reply.blocked else reply.text,
            token_count=reply.token_count,
            blocked=reply.blocked,
            stopped=stopped,
            metadata={"model": reply.model, "provider": reply.provider, "finish_reason": reply.finish_reason},
        )
        _record(claim, effort, model=reply.model, finish_reason="STOPPED" if stopped else reply.finish_reason)
    return Outcome(claim.turn, claim.question, answer)


def keep_away(claim: Claim, effort: Effort) -> Outcome:
    """The persona's away message as the answer. Raises Lost, or NotFound if the conversation is gone."""
    with write_transaction():
        conversation = _held(claim)
        conversation.end_turn()
        persona = claim.conversation.influencer
        why = "PAUSED" if persona.paused_at else "TOKEN_CAP"
        answer = _in_its_place(
            claim, conversation, content=away_text(persona), away=True, metadata={"finish_reason": why}
        )
        _record(claim, effort, model="", finish_reason=why)
    return Outcome(claim.turn, claim.question, answer)


def _in_its_place(claim: Claim, conversation: Conversation, **fields: Any) -> Message:
    fields |= {
        "role": Message.Role.ASSISTANT,
        "in_reply_to_id": claim.question.pk,
        "persona_version": claim.conversation.influencer.version_number,
    }
    if claim.replaces:
        _keep_alternative(claim.question, claim.replaces)
        answer = conversation.replace_last_message(claim.replaces, **fields)
    else:
        answer = conversation.add_message(**fields)
    claim.turn.state, claim.turn.error_code = settled(answer), ""
    return answer


def keep_failure(claim: Claim, effort: Effort, error_code: str) -> None:
    """End a turn that has no (new) answer. Raises NotFound if the conversation is gone."""
    with suppress(Lost):
        _keep_end(claim, effort, Turn.State.FAILED, error_code=error_code)


def keep_stop(claim: Claim, effort: Effort) -> Outcome:
    """End a turn that was stopped before there was any text. Raises Lost, or NotFound if the conversation is gone."""
    _keep_end(claim, effort, Turn.State.STOPPED, finish_reason="STOPPED")
    return Outcome(claim.turn, claim.question, claim.replaces)


def _keep_end(claim: Claim, effort: Effort, state: str, *, error_code: str = "", finish_reason: str = "") -> None:
    """Of a turn without a new answer: an earlier one stays, and then the state is that one's."""
    with write_transaction():
        conversation = _held(claim)
        conversation.end_turn()
        conversation.save_turn()
        claim.turn.state = settled(claim.replaces) if claim.replaces else state
        claim.turn.error_code = error_code
        _record(claim, effort, model=effort.tally.model, finish_reason=finish_reason, answered=False)


def record_stopped(claim: Claim, effort: Effort) -> None:
    """What a turn took that was stopped by its rows, before anything of it went out."""
    with write_transaction(), suppress(NotFound):
        get_owned(str(claim.conversation.pk), claim.conversation.user_id, lock=True)
        now = Turn.objects.filter(pk=claim.turn.pk).values("state", "events_before").first()
        if now and now["events_before"] == claim.turn.events_before and now["state"] not in Turn.UNDER_WAY:
            claim.turn.state = now["state"]
            _record(claim, effort, model=effort.tally.model, finish_reason="STOPPED", answered=False)


def release_turn(conversation: Conversation, turn: Turn, state: str) -> None:
    """Take the turn from whoever runs it, in a transaction that holds the conversation's lock."""
    if not turn.is_held:
        count_abandoned(turn)
    if conversation.running_question == turn.pk:
        conversation.end_turn()
        conversation.save_turn()
    turn.state, turn.finished_at = state, timezone.now()
    update(turn, "state", "finished_at", "error_code")


def count_abandoned(turn: Turn) -> None:
    """Who ran it can't any more: whoever settles its row does, or takes the turn up again. Once that is committed."""
    model = metrics.model_label(turn.model)
    transaction.on_commit(lambda: metrics.TURNS.labels("abandoned", model).inc())


def settled(answer: Message) -> str:
    """The state of a turn with this answer."""
    if answer.blocked:
        return Turn.State.BLOCKED
    if answer.away:
        return Turn.State.AWAY
    return Turn.State.STOPPED if answer.stopped else Turn.State.DONE


def end_abandoned(most: int = 1000) -> int:
    """Give the turns whose process died the state that they have now. How many there were."""
    ended = 0
    for turn in Turn.objects.abandoned().select_related("conversation")[:most]:
        ended += _end_if_abandoned(turn.conversation_id, turn.conversation.user_id, turn.pk)
    return ended


def _end_if_abandoned(conversation_id: uuid.UUID, user_id: str, question_id: uuid.UUID) -> bool:
    with write_transaction():
        try:
            conversation = get_owned(str(conversation_id), user_id, lock=True)
        except NotFound:
            return False
        turn = Turn.objects.under_way().filter(pk=question_id).first()
        if turn is None:
            return False
        turn.conversation = conversation
        if turn.is_held:
            return False
        answer = answer_to(question_id)
        turn.error_code = INTERRUPTED
        release_turn(conversation, turn, settled(answer) if answer else Turn.State.FAILED)
        return True


def _held(claim: Claim) -> Conversation:
    conversation = get_owned(str(claim.conversation.pk), claim.conversation.user_id, lock=True)
    if conversation.running_token != claim.token:
        raise Lost
    return conversation


def _record(claim: Claim, effort: Effort, *, model: str, finish_reason: str, answered: bool = True) -> None:
    """What it took, added to what earlier attempts took. Of an answer that stays, what is said of it stays too."""
    turn, tally, now = claim.turn, effort.tally, time.monotonic()
    usage = tally.usage
    turn.finished_at = timezone.now()
    turn.attempts += tally.attempts
    turn.model, turn.finish_reason = (model or turn.model)[:100], finish_reason[:50]
    turn.prompt_tokens += usage.prompt
    turn.output_tokens += usage.output
    turn.thinking_tokens += usage.thinking
    turn.total_tokens += usage.total
    price = cost(tally.model or model, usage, timezone.now().date())
    if price is not None:
        turn.cost_usd = (turn.cost_usd or 0) + price
    heard = tally.first_token_at
    turn.ms_to_first_token = None if heard is None else max(0, round((heard - claim.began) * 1000))
    turn.ms_to_end = round((now - claim.began) * 1000)
    turn.sent, turn.event_ends = effort.sent or turn.sent, event_ends(effort.pieces)
    turn.stop_requested, turn.watched_until, turn.text_so_far = False, None, ""
    if not answered:
        for name, value in claim.kept.items():
            setattr(turn, name, value)
    update(turn, *_MEASURES)
    _count_tokens(claim, effort)


def count_uncounted(claim: Claim, effort: Effort) -> None:
    """Of a turn that has no record of it: somebody took it over, or deleted the conversation meanwhile."""
    if not effort.is_counted:
        with write_transaction():
            _count_tokens(claim, effort)


def _count_tokens(claim: Claim, effort: Effort) -> None:
    count_tokens(claim.conversation.influencer_id, effort.tally.usage.total + effort.heard.usage.total)
    effort.is_counted = True


def _keep_alternative(question: Message, answer: Message) -> None:
    copied = (
        *("id", "conversation_id", "content", "token_count", "blocked", "stopped", "away", "persona_version"),
        *("metadata", "created_at"),
    )
    insert(AlternativeAnswer(question_id=question.pk, **{name: getattr(answer, name) for name in copied}))


def deflection_of(influencer: Influencer) -> str:
    return influencer.deflection.strip() or DEFLECTION
