"""What happens to conversations. Nothing here knows HTTP; errors are those of yral_chat.errors and yral_chat.ai."""

import hashlib
import re
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass

import orjson
from django.conf import settings
from django.db import IntegrityError
from django.utils import timezone

from conversations import prompts
from conversations.models import Conversation, Message, get_owned
from personas.models import Influencer
from yral_chat import ai
from yral_chat.database import Statement, insert, instance, release_connection, write_transaction
from yral_chat.errors import Forbidden, NotFound

CONTEXT_MESSAGES = 10
EXTERNAL = re.compile(r"https://[^/\s]", re.IGNORECASE)
DEFLECTION = "I'd rather not go into that. Let's talk about something else!"


_MINE = Statement(
    lambda user_id, influencer_id: Conversation.objects.owned_by(user_id).filter(influencer=influencer_id).values(),
    "user",
    "influencer",
)
_NEWEST_QUESTION = Statement(
    lambda conversation_id: (
        Message.objects.of(conversation_id)
        .filter(role=Message.Role.USER)
        .newest_first()
        .values("id", "body_hash", "answer__id")[:1]
    ),
    uuid.UUID(int=1),
)
_CONTEXT = Statement(
    lambda conversation_id, sequence: (
        Message.objects.of(conversation_id)
        .filter(sequence__lt=sequence)
        .seen_by_the_model()
        .newest_first()
        .values("role", "content")[:CONTEXT_MESSAGES]
    ),
    uuid.UUID(int=1),
    2,
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A message as sent, checked for its form."""

    message_type: str
    content: str
    media_urls: list[str]
    audio_url: str | None
    audio_duration_seconds: int | None

    @property
    def body_hash(self) -> str:
        """Of what makes two sends the same: type, stripped content, media and audio."""
        parts = [self.message_type, self.content, self.media_urls, self.audio_url]
        return hashlib.sha256(orjson.dumps(parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Turn:
    question: Message
    answer: Message


def open_conversation(*, influencer_id: str, user_id: str) -> tuple[Conversation, Message | None]:
    """The caller's conversation with an active influencer, made if it isn't there yet, then with its greeting."""
    influencer = Influencer.objects.get_active(influencer_id)
    for _ in range(3):
        if row := _MINE.first(user_id, influencer.pk):
            conversation = instance(Conversation, row)
            conversation.influencer = influencer
            return conversation, None
        with suppress(IntegrityError):  # somebody was faster, and may delete it again; or the influencer is gone
            return _create(influencer, user_id)
    raise NotFound("Influencer not found")


@write_transaction()
def _create(influencer: Influencer, user_id: str) -> tuple[Conversation, Message | None]:
    now = timezone.now()
    greeting = influencer.initial_greeting.strip()
    conversation = insert(
        Conversation(
            user_id=user_id, influencer=influencer, created_at=now, updated_at=now, message_count=1 if greeting else 0
        )
    )
    if not greeting:
        return conversation, None
    return conversation, insert(
        Message(
            conversation_id=conversation.pk,
            sequence=1,
            role=Message.Role.ASSISTANT,
            content=greeting,
            created_at=now,
        )
    )


@write_transaction()
def delete_conversation(*, conversation_id: str, user_id: str) -> tuple[uuid.UUID, int]:
    """Its id and how many messages went with it."""
    conversation = get_owned(conversation_id, user_id, lock=True)
    deleted = conversation.pk, conversation.message_count
    conversation.delete()
    return deleted


def send_message(*, conversation_id: str, user_id: str, draft: Draft) -> Turn:
    """Store the question, ask the model with no transaction open, store the answer.

    The question stays when the model is down (ai.ModelError): the same draft sent again continues it.
    """
    deadline = time.monotonic() + settings.GEMINI_TIMEOUT_SECONDS
    conversation, question = _keep_question(conversation_id, user_id, draft)
    prompt = prompts.compose(
        persona=conversation.influencer,
        memories=_memories(conversation),
        history=[(row["role"], row["content"]) for row in reversed(_CONTEXT(conversation.pk, question.sequence))],
        question=question.content,
        today=timezone.now().date(),
    )
    release_connection()
    try:
        reply = ai.generate_reply(prompt, deadline=deadline)
    except ai.ModelError:
        if answer := _answer_to(question):  # another copy of this message was luckier
            return Turn(question, answer)
        get_owned(str(conversation.pk), user_id)  # or was it deleted meanwhile? then NotFound
        raise
    return Turn(question, _keep_answer(conversation, question, reply))


@write_transaction()
def _keep_question(conversation_id: str, user_id: str, draft: Draft) -> tuple[Conversation, Message]:
    conversation = get_owned(conversation_id, user_id, lock=True)
    conversation.influencer = Influencer.objects.get_active(conversation.influencer_id)
    _check_media(draft)
    question = _unanswered(conversation, draft) or conversation.add_message(
        role=Message.Role.USER,
        content=draft.content,
        message_type=draft.message_type,
        media_urls=draft.media_urls,
        audio_url=draft.audio_url,
        audio_duration_seconds=draft.audio_duration_seconds,
        body_hash=draft.body_hash,
    )
    return conversation, question


def _unanswered(conversation: Conversation, draft: Draft) -> Message | None:
    """The newest question, if it is this draft and waits for its answer."""
    for question in _NEWEST_QUESTION(conversation.pk):
        if question["body_hash"] == draft.body_hash and question["answer__id"] is None:
            return Message.objects.get(pk=question["id"])
    return None


def _check_media(draft: Draft) -> None:
    """Only addresses of other sites can stand in a message until uploads exist: any key is somebody else's."""
    for url in (*draft.media_urls, draft.audio_url or ""):
        if url and not EXTERNAL.match(url):
            raise Forbidden("A message can only use files that you uploaded yourself.")


def _memories(conversation: Conversation) -> dict[str, object]:
    stored = conversation.metadata.get("memories") if isinstance(conversation.metadata, dict) else None
    return stored if isinstance(stored, dict) else {}


def _keep_answer(conversation: Conversation, question: Message, reply: ai.Reply) -> Message:
    """One answer a question: of two that finish, the first one stands and both callers get it."""
    try:
        with write_transaction():
            current = get_owned(str(conversation.pk), conversation.user_id, lock=True)
            return current.add_message(
                role=Message.Role.ASSISTANT,
                content=_deflection(conversation.influencer) if reply.blocked else reply.text,
                token_count=reply.token_count,
                in_reply_to_id=question.pk,
                blocked=reply.blocked,
                metadata={"model": reply.model, "finish_reason": reply.finish_reason},
            )
    except IntegrityError:
        answer = _answer_to(question)
        if answer is None:
            get_owned(str(conversation.pk), conversation.user_id)  # or is it gone by now? then NotFound
            raise
        return answer


def _answer_to(question: Message) -> Message | None:
    return Message.objects.filter(in_reply_to=question).first()


def _deflection(influencer: Influencer) -> str:
    return influencer.deflection.strip() or DEFLECTION
