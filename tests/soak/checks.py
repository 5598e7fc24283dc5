"""What must be true at the end, in the database and through the API."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

from conversations.models import STEP, AlternativeAnswer, Conversation, Message, PromptText, Turn
from tests.servers import CHATS, Server
from tests.soak.fleet import Servers
from tests.soak.ledger import Ledger, Note

IN_TIME = 2.0  # seconds that a request may take to reach the service's code, on a machine that has much to do


@dataclass
class Facts:
    """All rows, read once."""

    conversations: dict[UUID, Conversation]
    messages: dict[UUID, Message]
    turns: dict[UUID, Turn]
    alternatives: dict[UUID, AlternativeAnswer]
    texts: set[str]
    chats: dict[UUID, list[Message]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[UUID, list[Message]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls) -> "Facts":
        facts = cls(
            Conversation.objects.in_bulk(),
            {row.pk: row for row in Message.objects.order_by("conversation_id", "sequence")},
            Turn.objects.in_bulk(),
            AlternativeAnswer.objects.in_bulk(),
            set(PromptText.objects.values_list("pk", flat=True)),
        )
        for message in facts.messages.values():
            facts.chats[message.conversation_id].append(message)
            if message.in_reply_to_id:
                facts.answers[message.in_reply_to_id].append(message)
        return facts

    @property
    def questions(self) -> list[Message]:
        return [message for message in self.messages.values() if message.role == "user"]

    def asked(self, chat_id: str) -> list[Message]:
        return [message for message in self.chats[UUID(chat_id)] if message.role == "user"]


Check = Callable[[Facts, Ledger], Iterator[str]]


def no_acknowledged_question_is_missing(facts: Facts, ledger: Ledger) -> Iterator[str]:
    for pk, promise in ledger.questions.items():
        row = facts.messages.get(UUID(pk))
        if not promise.chat.may_vanish and (row is None or row.content != promise.content):
            yield f"question {pk} of {promise.chat.id}: {promise.content!r} is {row and row.content!r}"


def no_acknowledged_answer_is_missing(facts: Facts, ledger: Ledger) -> Iterator[str]:
    """One that was replaced is an alternative, with all it said."""
    for pk, promise in ledger.answers.items():
        if promise.chat.may_vanish:
            continue
        row, old = facts.messages.get(UUID(pk)), facts.alternatives.get(UUID(pk))
        kept = (row and (row.content, str(row.in_reply_to_id))) or (old and (old.content, str(old.question_id)))
        if kept != (promise.content, promise.question):
            yield f"answer {pk} of {promise.chat.id} to {promise.question}: {promise.content!r} is {kept!r}"


def every_message_is_stored_once(facts: Facts, ledger: Ledger) -> Iterator[str]:
    stored = Counter((str(row.conversation_id), row.content) for row in facts.questions)
    for note in ledger.notes:
        times = stored.pop((note.chat.id, note.content), 0)
        if not note.chat.may_vanish and (times == 0 or (times > 1 and note.is_stored_once)):
            yield f"{note.content!r} is stored {times} times in {note.chat.id} ({_kind(note)})"
    vanishing = {note.chat.id for note in ledger.notes if note.chat.may_vanish}
    yield from (f"nobody sent {content!r} to {chat}" for chat, content in stored if chat not in vanishing)


def a_message_without_a_key_continues_the_unanswered_one(facts: Facts, ledger: Ledger) -> Iterator[str]:
    """It is stored again only after something else was said, or if a copy came when it was answered."""
    notes = {(note.chat.id, note.content): note for note in ledger.notes if not note.is_stored_once}
    for chat_id in {note.chat.id for note in notes.values() if not note.chat.may_vanish}:
        for first, second in pairwise(facts.asked(chat_id)):
            note = notes.get((chat_id, first.content))
            if first.content != second.content or note is None:
                continue
            answers = facts.answers[first.pk]
            if not answers or answers[0].sequence > second.sequence:
                yield f"{first.content!r} was stored again before it was answered ({chat_id})"
            elif max(note.sent_at) < first_answer_at(facts, first) - IN_TIME and not _froze(ledger, note, second):
                yield f"{first.content!r} was stored again, and nobody sent it after its answer ({chat_id})"


def first_answer_at(facts: Facts, question: Message) -> float:
    replaced = [row.created_at for row in facts.alternatives.values() if row.question_id == question.pk]
    return min([*replaced, *(row.created_at for row in facts.answers[question.pk])]).timestamp()


def _froze(ledger: Ledger, note: Note, stored: Message) -> bool:
    """A worker that stood still may have had a copy all the time."""
    return any(start < stored.created_at.timestamp() and end > min(note.sent_at) for start, end in ledger.freezes)


def answers_have_their_question(facts: Facts, _: Ledger) -> Iterator[str]:
    """The one that they belong to, earlier in the same conversation. Only the greeting answers nobody."""
    for row in facts.messages.values():
        if row.role != "assistant" or (row.in_reply_to_id is None and row.sequence == 1):
            continue
        question = facts.messages.get(row.in_reply_to_id) if row.in_reply_to_id else None
        if question is None or question.conversation_id != row.conversation_id or question.sequence >= row.sequence:
            yield f"answer {row.pk} ({row.sequence} in {row.conversation_id}) has the question {question!r}"
        elif not row.blocked and not _is_of(row, question):
            yield f"answer {row.pk} says {row.content!r} to {question.content!r}"


def _is_of(answer: Message, question: Message) -> bool:
    """By its first word, which a stop may have cut."""
    word, _, more = answer.content.partition(" ")
    asked = question.content.split()[0]
    return word == asked or (answer.stopped and not more and asked.startswith(word))


def no_question_has_two_answers(facts: Facts, _: Ledger) -> Iterator[str]:
    yield from (f"question {pk} has {len(rows)} answers" for pk, rows in facts.answers.items() if len(rows) > 1)


def every_question_has_a_turn_that_ended(facts: Facts, _: Ledger) -> Iterator[str]:
    for question in facts.questions:
        turn = facts.turns.get(question.pk)
        answers = facts.answers[question.pk]
        if turn is None or turn.conversation_id != question.conversation_id:
            yield f"question {question.pk} has the turn {turn!r}"
        elif turn.state not in _states_with(answers[0] if answers else None) or turn.finished_at is None:
            yield f"the turn of {question.pk} is {turn.state} since {turn.finished_at}, its answer {answers}"
    yield from (f"turn {pk} has no question" for pk in facts.turns.keys() - {row.pk for row in facts.questions})


def _states_with(answer: Message | None) -> tuple[str, ...]:
    if answer is None:
        return Turn.State.FAILED, Turn.State.STOPPED
    if answer.blocked:
        return (Turn.State.BLOCKED,)
    return (Turn.State.STOPPED if answer.stopped else Turn.State.DONE,)


def turns_say_what_was_sent(facts: Facts, _: Ledger) -> Iterator[str]:
    for turn in facts.turns.values():
        answered = facts.answers[turn.pk]
        if answered and (turn.sent.get("system") not in facts.texts or turn.attempts < 1):
            yield f"the answered turn {turn.pk} has {turn.attempts} attempts and sent {turn.sent}"


def counters_equal_the_rows(facts: Facts, _: Ledger) -> Iterator[str]:
    for pk, conversation in facts.conversations.items():
        rows = facts.chats[pk]
        if [row.sequence for row in rows] != list(range(1, conversation.message_count + 1)):
            yield f"{pk} counts {conversation.message_count}, and has {[row.sequence for row in rows]}"
        if rows and rows[-1].created_at != conversation.updated_at:
            yield f"{pk} was updated at {conversation.updated_at}, its last message came at {rows[-1].created_at}"
    yield from (f"messages of {pk} have no conversation" for pk in facts.chats.keys() - facts.conversations.keys())


def time_rises_with_the_order(facts: Facts, _: Ledger) -> Iterator[str]:
    for pk, rows in facts.chats.items():
        for one, other in pairwise(rows):
            if other.created_at - one.created_at < STEP:
                yield f"{pk}: {one.sequence} at {one.created_at}, {other.sequence} at {other.created_at}"


def no_lock_is_left(facts: Facts, _: Ledger) -> Iterator[str]:
    for pk, one in facts.conversations.items():
        if one.running_question or one.running_token or one.running_until:
            yield f"{pk} is locked by {one.running_question} until {one.running_until}"


CHECKS: tuple[Check, ...] = (
    no_acknowledged_question_is_missing,
    no_acknowledged_answer_is_missing,
    every_message_is_stored_once,
    a_message_without_a_key_continues_the_unanswered_one,
    answers_have_their_question,
    no_question_has_two_answers,
    every_question_has_a_turn_that_ended,
    turns_say_what_was_sent,
    counters_equal_the_rows,
    time_rises_with_the_order,
    no_lock_is_left,
)


def what_the_api_says_differently(facts: Facts, server: Server) -> Iterator[str]:
    """Each conversation, paged from its beginning, and each user's list."""
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for pk, conversation in facts.conversations.items():
        rows = [_shown(row) for row in facts.chats[pk]]
        shown, total = _paged(server, conversation)
        counts[conversation.user_id][str(pk)] = conversation.message_count
        if (shown, total) != (rows, len(rows)):
            yield f"{pk} has {len(rows)} messages, the API says {total} and shows {len(shown)}, or others"
    for user, expected in counts.items():
        listed = server.call("GET", f"{CHATS}?limit=100", user=user).json()["conversations"]
        if {one["id"]: one["message_count"] for one in listed} != expected:
            yield f"{user} has the conversations {expected}, the API says {listed}"


def _shown(row: Message) -> tuple[Any, ...]:
    moment = row.created_at.isoformat(timespec="microseconds")
    return str(row.pk), row.role, row.content, row.blocked, row.stopped, moment


def _paged(server: Server, conversation: Conversation) -> tuple[list[tuple[Any, ...]], int]:
    names = ("id", "role", "content", "blocked", "stopped", "created_at")
    shown: list[tuple[Any, ...]] = []
    while True:
        address = f"{CHATS}/{conversation.pk}/messages?order=asc&limit=200&offset={len(shown)}"
        page = server.call("GET", address, user=conversation.user_id).json()
        shown += [tuple(one[name] for name in names) for one in page["messages"]]
        if len(page["messages"]) < 200:
            return shown, page["total"]


def trouble_in_the_logs(fleet: Servers) -> Iterator[str]:
    for path, log in fleet.logs():
        for trouble in ("Traceback", "database is locked"):
            if (at := log.find(trouble)) >= 0:
                excerpt = log[max(0, at - 300) :][:3000]
                yield f"{path.parent.name} logged {trouble!r} {log.count(trouble)} times: {excerpt}"


def _kind(note: Note) -> str:
    return "with a key" if note.has_key else "without a key, careful" if note.careful else "without a key"
