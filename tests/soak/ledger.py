"""What the phones meant to say, and what the service promised them."""

import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.servers import CHATS

CALLS = "calls_are_answered_as_they_should_be_and_never_500"
STREAMS = "streams_have_an_end_and_say_what_is_stored"
PEACE = "in_peace_every_turn_ends_and_every_message_is_answered"


@dataclass(frozen=True)
class Chat:
    """`shared`: several phones of its user write in it. `may_vanish`: it is deleted now and then."""

    id: str
    user: str
    influencer: str
    shared: bool = False
    may_vanish: bool = False

    @property
    def path(self) -> str:
        return f"{CHATS}/{self.id}/messages"


@dataclass(eq=False)
class Note:
    """One message as its writer means it, however often it is sent. Its first word is in no other one.

    A `careful` writer without a key looks into the conversation before sending again what may have arrived, and
    finishes one message before the next: so it is stored once. Others without a key rely on the service's guess.
    """

    chat: Chat
    content: str
    idempotency_key: str | None = None
    client_message_id: str | None = None
    careful: bool = True
    extra: dict[str, Any] = field(default_factory=dict)  # what is sent along, or instead
    question: str | None = None
    over: bool = False
    sent_at: list[float] = field(default_factory=list)  # of time.time()

    @property
    def has_key(self) -> bool:
        return bool(self.idempotency_key or self.client_message_id)

    @property
    def is_stored_once(self) -> bool:
        return self.has_key or self.careful

    @property
    def body(self) -> dict[str, Any]:
        text = {"message_type": "text", "content": self.content, "client_message_id": self.client_message_id}
        return text | self.extra

    @property
    def headers(self) -> dict[str, str]:
        return {"Idempotency-Key": self.idempotency_key} if self.idempotency_key else {}


@dataclass(frozen=True, slots=True)
class Promise:
    chat: Chat
    content: str
    question: str


class Ledger:
    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.questions: dict[str, Promise] = {}
        self.answers: dict[str, Promise] = {}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: dict[str, list[str]] = {CALLS: [], STREAMS: [], PEACE: []}
        self.freezes: list[tuple[float, float]] = []  # from when to when (of time.time()) a worker stood still
        self._lock = threading.Lock()

    def note(self, chat: Chat, words: str, **fields: Any) -> Note:
        note = Note(chat, f"note-{uuid.uuid4().hex[:12]} {words}", **fields)
        with self._lock:
            self.notes.append(note)
        return note

    def count(self, what: str, outcome: str) -> str:
        with self._lock:
            self.counts[what, outcome] += 1
        return outcome

    def complain(self, sentence: str, about: str = CALLS) -> None:
        with self._lock:
            self.wrong[about].append(sentence)

    def asked(self, note: Note, question: str) -> None:
        """The service says that the note is stored, under this id."""
        with self._lock:
            known, note.question = note.question, question
            self.questions[question] = Promise(note.chat, note.content, question)
        if known not in (None, question) and note.is_stored_once:
            self.complain(f"{note.content!r} was question {known} and then {question}")

    def answered(self, note: Note, turn: dict[str, Any]) -> None:
        """The service says that it is answered, or was stopped before there was any text."""
        question, answer = turn["user_message"], turn["assistant_message"]
        if question["content"] != note.content:
            self.complain(f"{note.content!r} was answered as {question['content']!r}")
        self.asked(note, question["id"])
        note.over = True
        if answer:
            with self._lock:
                self.answers[answer["id"]] = Promise(note.chat, answer["content"], question["id"])
