"""What a turn's model is sent: made of rows, recorded as references to them, and made again of that record."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from django.conf import settings
from django.utils import timezone

from conversations import prompts
from conversations.media import picture_for_model
from conversations.models import Conversation, Message, PromptText, Turn
from personas.models import Influencer
from yral_chat import ai
from yral_chat.database import Statement, release_connection, write_transaction

CONTEXT_MESSAGES = 10
MOST_KNOWN = 10_000
TO_REBUILD = 30.0  # seconds for opening the pictures again
_COLUMNS = ("sequence", "role", "content", "message_type", "media_urls")
See = Callable[[str], ai.Blob | None]  # a picture's key or address → what the model sees of it
_known: OrderedDict[str, None] = OrderedDict()

_CONTEXT = Statement(
    lambda conversation_id, sequence: (
        Message.objects.of(conversation_id)
        .filter(sequence__lt=sequence)
        .seen_by_the_model()
        .newest_first()
        .values(*_COLUMNS)[:CONTEXT_MESSAGES]
    ),
    Conversation().pk,
    2,
)


def prompt_for(conversation: Conversation, question: Message, deadline: float) -> tuple[ai.Prompt, dict[str, Any]]:
    """And the record of it. Pictures are opened until `deadline`; on PostgreSQL no connection is held meanwhile."""
    persona, today = conversation.influencer, timezone.now().date()
    rows = _CONTEXT(conversation.pk, question.sequence)[::-1]
    rows.append({name: getattr(question, name) for name in _COLUMNS})
    release_connection()
    messages = _with_pictures_in_view(rows)
    see = partial(picture_for_model, deadline=deadline)
    said = [(row["role"], _parts(row, message, see)) for row, message in zip(rows, messages, strict=True)]
    known = _memories(conversation)
    memories = prompts.remembered(known)
    name = prompts.name_in(known) if prompts.names_the_user(persona) else ""
    prompt = ai.with_defaults(
        prompts.compose(persona=persona, memories=memories, said=said, today=today, user_name=name)
    )
    record = {
        "system": prompt.system_instruction,
        "memories": memories,
        "messages": [_short(message) for message in messages],
        "model": prompt.model,
        "temperature": prompt.temperature,
        "max_output_tokens": prompt.max_output_tokens,
        "thinking_budget": prompt.thinking_budget,
    }
    media = any(prompts.from_media(part) for _, parts in said for part in parts)
    record["system"] = _kept(
        prompt.system_instruction,
        conversation if name else None,
        lambda: prompts.layers(persona, today, media=media, user_name=name),
    )
    record["memories"] = _kept(memories, conversation) if memories else ""
    return prompt, record


def rebuilt(turn: Turn, see: See | None = None) -> ai.Prompt:
    """What the turn's last attempt sent, byte for byte, as long as its pictures are still stored. `see` may put
    something else in their places."""
    record = turn.sent
    texts = PromptText.objects.in_bulk([record[name] for name in ("system", "memories") if record[name]])
    memories = texts[record["memories"]].text if record["memories"] else ""
    return ai.Prompt(
        system_instruction=texts[record["system"]].text,
        contents=prompts.contents(memories, _said_in(turn, see)),
        **{name: record[name] for name in ("model", "temperature", "max_output_tokens", "thinking_budget")},
    )


def again_with(persona: Influencer, turn: Turn) -> ai.Prompt:
    """What the turn's last attempt would have sent if that had been the persona: the same history, memories and day."""
    digest = turn.sent["memories"]
    name = prompts.name_in(_memories(turn.conversation)) if prompts.names_the_user(persona) else ""
    return ai.with_defaults(
        prompts.compose(
            persona=persona,
            memories=PromptText.objects.get(pk=digest).text if digest else "",
            said=_said_in(turn),
            today=(turn.finished_at or turn.created_at).date(),
            user_name=name,
        )
    )


def _said_in(turn: Turn, see: See | None = None) -> list[tuple[str, prompts.Parts]]:
    record = turn.sent
    messages = [one if isinstance(one, dict) else {"sequence": one} for one in record["messages"]]
    sequences = [message["sequence"] for message in messages]
    rows = Message.objects.of(turn.conversation_id).filter(sequence__in=sequences)
    by_sequence = {row["sequence"]: row for row in rows.values(*_COLUMNS, "metadata")}
    see = see or partial(picture_for_model, deadline=time.monotonic() + TO_REBUILD)
    said = []
    for message in messages:
        row = by_sequence[message["sequence"]]
        if message.get("unheard"):
            row["content"] = prompts.transcribed(None, row["metadata"].get("caption", ""))
        said.append((row["role"], _parts(row, message, see)))
    return said


def _with_pictures_in_view(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How many of each message's pictures are shown: all of the question's, and the last CONTEXT_IMAGES before it."""
    *earlier, question = rows
    messages = [_reference(question, len(_pictures(question)))]
    left = settings.CONTEXT_IMAGES
    for row in reversed(earlier):
        shown = min(left, len(_pictures(row)))
        left -= shown
        messages.append(_reference(row, shown))
    return messages[::-1]


def _reference(row: Mapping[str, Any], shown: int) -> dict[str, Any]:
    unheard = row["message_type"] == Message.Type.AUDIO and row["content"].startswith(prompts.TRANSCRIPTION_FAILED)
    return {"sequence": row["sequence"], "shown": shown, "unopened": [], "unheard": unheard}


def _short(message: dict[str, Any]) -> int | dict[str, Any]:
    """Of most messages the sequence says all."""
    kept = {name: value for name, value in message.items() if value}
    return message["sequence"] if len(kept) == 1 else kept


def _pictures(row: Mapping[str, Any]) -> list[str]:
    return row["media_urls"] if row["message_type"] in prompts.WITH_PICTURES else []


def _parts(row: Mapping[str, Any], message: dict[str, Any], see: See) -> prompts.Parts:
    """Media of another type of message are not even opened. What can't be is noted in `message`."""
    pictures, shown = _pictures(row), message.get("shown", 0)
    unopened = message.setdefault("unopened", [])
    blobs: list[ai.Blob | None] = []
    for place, url in enumerate(pictures[len(pictures) - shown :]):
        blob = None if place in unopened else see(url)
        if blob is None and place not in unopened:
            unopened.append(place)
        blobs.append(blob)
    content = row["content"] or (f"(sent {len(pictures)} picture(s))" if pictures and not shown else "")
    return prompts.parts_of(content, blobs)


def _memories(conversation: Conversation) -> dict[str, object]:
    stored = conversation.metadata.get("memories") if isinstance(conversation.metadata, dict) else None
    return stored if isinstance(stored, dict) else {}


def _kept(text: str, owner: Conversation | None = None, layers: Callable[[], Mapping[str, str]] | None = None) -> str:
    """The hash of a text, which is stored if it is new. With an owner it's that conversation's, and goes with it."""
    digest = hashlib.sha256(f"{owner.pk if owner else ''}\n{text}".encode()).hexdigest()
    if digest not in _known:
        lengths = [[name, len(layer)] for name, layer in layers().items()] if layers else None
        with write_transaction():
            PromptText.objects.bulk_create(
                [PromptText(id=digest, text=text, layers=lengths, conversation=owner)], ignore_conflicts=True
            )
        release_connection()
        _known[digest] = None
        while len(_known) > MOST_KNOWN:
            _known.popitem(last=False)
    return digest
