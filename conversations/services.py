"""What happens to conversations. Nothing here knows HTTP; errors are those of yral_chat.errors and yral_chat.ai."""

import hashlib
import logging
import re
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from conversations import prompts
from conversations.media import CannotOpen, opened, picture_for_model
from conversations.models import Conversation, Message, get_owned
from media_uploads import storage
from media_uploads.models import MediaUpload
from media_uploads.services import count_use, delete_files, release, use_uploads
from personas.models import Influencer
from yral_chat import ai
from yral_chat.database import Statement, insert, instance, release_connection, write_transaction
from yral_chat.errors import Forbidden, NotFound

logger = logging.getLogger(__name__)

CONTEXT_MESSAGES = 10
DELETING_SECONDS = 5.0
TO_STORE = 0.25  # seconds of the turn that are left for storing the answer
TRANSCRIPTION_SHARE = 0.5  # of the time that is left, so that there is time for an answer
PICTURES_SHARE = 0.3
TRANSCRIPT_LIMIT = 8000  # characters; five minutes of fast speech hold some 6000
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
        .values("role", "content", "message_type", "media_urls")[:CONTEXT_MESSAGES]
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


def delete_conversation(*, conversation_id: str, user_id: str) -> tuple[uuid.UUID, int]:
    """Its id and how many messages went with it. Files that nothing shows any more go after the commit."""
    with write_transaction():
        conversation = get_owned(conversation_id, user_id, lock=True)
        deleted = conversation.pk, conversation.message_count
        files = release(Message.objects.of(conversation.pk).shown_media())
        conversation.delete()
    transaction.on_commit(lambda: delete_files(files, until=time.monotonic() + DELETING_SECONDS))
    return deleted


def send_message(*, conversation_id: str, user_id: str, draft: Draft) -> Turn:
    """Store the question, ask the model with no transaction open, store the answer.

    The question stays when the model is down (ai.ModelError): the same draft sent again continues it.
    """
    deadline = time.monotonic() + settings.GEMINI_TIMEOUT_SECONDS
    conversation, question = _keep_question(conversation_id, user_id, draft)
    _listen(question, _share(deadline, TRANSCRIPTION_SHARE))
    earlier = _CONTEXT(conversation.pk, question.sequence)
    release_connection()
    looking_until = _share(deadline, PICTURES_SHARE)
    prompt = prompts.compose(
        persona=conversation.influencer,
        memories=_memories(conversation),
        question=_parts(question.message_type, question.content, question.media_urls, looking_until),
        history=_history(earlier, looking_until),
        today=timezone.now().date(),
    )
    try:
        reply = ai.generate_reply(prompt, deadline=deadline - TO_STORE)
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
    uploads = _uploads_of(draft, user_id)
    question = _unanswered(conversation, draft)
    if question is None:
        question = conversation.add_message(
            role=Message.Role.USER,
            content=draft.content,
            message_type=draft.message_type,
            media_urls=draft.media_urls,
            audio_url=draft.audio_url,
            audio_duration_seconds=_seconds(draft, uploads),
            body_hash=draft.body_hash,
        )
        count_use(list(uploads))
    return conversation, question


def _unanswered(conversation: Conversation, draft: Draft) -> Message | None:
    """The newest question, if it is this draft and waits for its answer."""
    for question in _NEWEST_QUESTION(conversation.pk):
        if question["body_hash"] == draft.body_hash and question["answer__id"] is None:
            return Message.objects.get(pk=question["id"])
    return None


def _uploads_of(draft: Draft, user_id: str) -> dict[str, MediaUpload]:
    """The caller's own uploads in the draft. What is no key must be an address of another site. Raises Forbidden."""
    sounds = [draft.audio_url] if draft.audio_url else []
    for url in (*draft.media_urls, *sounds):
        if not storage.KEY.fullmatch(url) and not EXTERNAL.match(url):
            raise Forbidden("A message can only use files that you uploaded yourself.")
    return use_uploads(
        owner_id=user_id,
        pictures=[url for url in draft.media_urls if storage.KEY.fullmatch(url)],
        sounds=[url for url in sounds if storage.KEY.fullmatch(url)],
    )


def _seconds(draft: Draft, uploads: dict[str, MediaUpload]) -> int | None:
    """As the client says, else as measured."""
    upload = uploads.get(draft.audio_url or "")
    if draft.audio_duration_seconds is not None or upload is None:
        return draft.audio_duration_seconds
    return min(300, round(upload.duration_seconds or 0))


def _share(deadline: float, share: float) -> float:
    """Until when something may last that isn't the answer."""
    now = time.monotonic()
    return now + max(0.0, deadline - now) * share


def _listen(question: Message, deadline: float) -> None:
    """Put what a voice note says into its content. A note that was understood isn't listened to again."""
    if question.message_type != Message.Type.AUDIO or question.metadata.get("transcription") == "done":
        return
    caption = question.metadata.setdefault("caption", question.content)
    release_connection()
    try:
        text = _transcript(question.audio_url or "", deadline)
    except (ai.ModelError, CannotOpen) as exc:
        logger.warning("A voice note couldn't be transcribed: %s", exc)
        text = None
    question.metadata["transcription"] = "done" if text else "failed"
    question.content = prompts.transcribed(text, caption)
    _keep_transcript(question)


def _keep_transcript(question: Message) -> None:
    """Of two copies of a message that were listened to at once, what was understood first stands."""
    unheard = Q(metadata__transcription__isnull=True) | Q(metadata__transcription="failed")
    with write_transaction():
        this = Message.objects.filter(unheard, pk=question.pk)
        kept = this.update(content=question.content, metadata=question.metadata)
    if kept:
        return
    first = Message.objects.filter(pk=question.pk).first()
    if first is None:  # deleted meanwhile
        raise NotFound("Conversation not found")
    question.content, question.metadata = first.content, first.metadata


def _transcript(url: str, deadline: float) -> str:
    with opened(url, deadline) as (sound, extension):
        text = ai.transcribe(sound, mime_type=storage.MIME_TYPES[extension], extension=extension, deadline=deadline)
    return text.replace("\x00", "")[:TRANSCRIPT_LIMIT]


def _history(newest_first: Iterable[dict[str, Any]], deadline: float) -> list[tuple[str, prompts.Parts]]:
    """The messages before the question, oldest first; of their pictures the last CONTEXT_IMAGES stay in view."""
    left = settings.CONTEXT_IMAGES
    history = []
    for row in newest_first:
        pictures = row["media_urls"] if row["message_type"] in prompts.WITH_PICTURES else []
        shown = pictures[max(0, len(pictures) - left) :] if left else []
        left -= len(shown)
        content = row["content"] or (f"(sent {len(pictures)} picture(s))" if pictures and not shown else "")
        history.append((row["role"], _parts(row["message_type"], content, shown, deadline)))
    return history[::-1]


def _parts(message_type: str, content: str, media_urls: list[str], deadline: float) -> prompts.Parts:
    """Media of another type of message are not even opened."""
    pictures = media_urls if message_type in prompts.WITH_PICTURES else []
    return prompts.parts_of(content, [picture_for_model(url, deadline) for url in pictures])


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
