"""What happens to conversations. Nothing here knows HTTP; errors are those of yral_chat.errors and yral_chat.ai."""

import logging
import re
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cache

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Q
from django.utils import timezone

from conversations import prompts, sent, turns
from conversations.board import board
from conversations.graphemes import Cutter
from conversations.live import Interrupted, Live, Place, Running, here
from conversations.media import CannotOpen, opened
from conversations.models import Conversation, Message, Turn, get_owned, known_uuid
from conversations.switchboard import replayed, switchboard
from conversations.turns import Busy, Claim, Draft, Effort, Lost, Outcome
from media_uploads import storage
from media_uploads.models import MediaUpload
from media_uploads.services import delete_files, release, use_uploads
from personas.models import Influencer
from yral_chat import ai, metrics
from yral_chat.database import Statement, insert, instance, release_connection, write_transaction
from yral_chat.errors import Conflict, Forbidden, NotFound

logger = logging.getLogger(__name__)

DELETING_SECONDS = 5.0
TO_STORE = 0.25  # seconds of the turn that are left for storing the answer
TO_ANSWER = 1.0  # seconds that a turn needs at least: with less left it doesn't begin
POLL = 0.25  # seconds between two looks at a turn that another process runs
STOPPING_SECONDS = 15.0  # longer than a lock of a dead process lasts
TRANSCRIPTION_SHARE = 0.5  # of the time that is left, so that there is time for an answer
PICTURES_SHARE = 0.3
TRANSCRIPT_LIMIT = 8000  # characters; five minutes of fast speech hold some 6000
MOST_STREAMS = 10_000
EXTERNAL = re.compile(r"https://[^/\s]", re.IGNORECASE)


_MINE = Statement(
    lambda user_id, influencer_id: Conversation.objects.owned_by(user_id).filter(influencer=influencer_id).values(),
    "user",
    "influencer",
)


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
            persona_version=influencer.version_number,
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


# A turn: one at a time in a conversation, the others wait in line


def send_message(*, conversation_id: str, user_id: str, draft: Draft) -> Outcome:
    """Store the question, ask the model with no transaction open, store the answer.

    The question stays when the model is down (ai.ModelError): the same draft sent again continues it. Raises Conflict
    if another turn runs for too long, if this one is stopped, or if its key belongs to another message.
    """
    deadline = time.monotonic() + settings.GEMINI_TIMEOUT_SECONDS
    look = _looking_for(conversation_id, user_id, draft)
    return _with_answer(_in_turn(conversation_id, look, deadline))


def regenerate_answer(*, conversation_id: str, user_id: str, question_id: str) -> Outcome:
    """Another answer in the place of the last one, which is kept as an alternative; it stays if the model is down."""
    deadline = time.monotonic() + settings.GEMINI_TIMEOUT_SECONDS

    def look(waiting: Waiting) -> Claim | Outcome | Busy:
        conversation = _to_talk_in(conversation_id, user_id)
        return turns.claim_to_regenerate(conversation, question_id, is_next=waiting.place.is_first)

    return _with_answer(_in_turn(conversation_id, look, deadline))


def stream_message(*, conversation_id: str, user_id: str, draft: Draft) -> Live:
    """As send_message, but the answer comes in pieces, to whoever follows the turn that is returned; it goes on if
    nobody does. Raises what makes a turn impossible; what fails later is in the turn."""
    arrived = time.monotonic()
    deadline = arrived + settings.GEMINI_TIMEOUT_SECONDS
    look = _looking_for(conversation_id, user_id, draft)
    taken = _take_to_stream(conversation_id, look, deadline)
    if isinstance(taken, Outcome):
        return replayed(taken.turn, taken.question, taken.answer)
    if isinstance(taken, Live):
        return taken
    claim, live = taken
    until = ai.Deadline(
        deadline - TO_STORE, gap=settings.STREAM_GAP_SECONDS, last=arrived + settings.STREAM_TIMEOUT_SECONDS
    )
    _runners().submit(copy_context().run, _run_detached, claim, live, until)
    return live


def follow_turn(*, conversation_id: str, user_id: str, question_id: str) -> Live:
    """A turn that runs or has ended. Raises NotFound."""
    conversation = get_owned(conversation_id, user_id)
    question = turns.question_of(conversation, question_id)
    if live := here.get(question.pk):
        return live
    turn = Turn.objects.select_related("conversation").filter(pk=question.pk).first()  # both as of one moment
    if turn is None:
        raise NotFound("Conversation not found")
    if not turn.has_ended and turn.is_held:
        return switchboard.mirror(turn, wants_text=True)
    if not turn.has_ended:
        turn.state, turn.error_code = Turn.State.FAILED, turns.INTERRUPTED
    return replayed(turn, question, turns.answer_to(question.pk))


def stop_turn(*, conversation_id: str, user_id: str, question_id: str) -> Outcome:
    """End a turn now: of one that streams the text so far is kept. One that has ended stays as it is."""
    deadline = time.monotonic() + STOPPING_SECONDS
    while True:
        turn = _stopped_in_rows(conversation_id, user_id, question_id)
        board.ask_to_stop(turn)
        running = here.get(turn.pk)
        if running and running.events_before != turn.events_before:  # another attempt by now
            running = None
        if running:
            running.stop()
        if turn.has_ended:
            outcome = Outcome(turn, turn.question, turns.answer_to(turn.pk))
            if running:
                running.finish(outcome)
            here.call(turn.conversation_id)
            return outcome
        if time.monotonic() > deadline:
            raise ai.ModelUnavailable("a turn couldn't be stopped in time")
        live = running or switchboard.mirror(turn, wants_text=False)
        release_connection()
        live.wait_for_end(time.monotonic() + 2)


@write_transaction()
def _stopped_in_rows(conversation_id: str, user_id: str, question_id: str) -> Turn:
    """It has ended now, but for a turn that streams: who runs that is asked to end it, and knows the text."""
    conversation = get_owned(conversation_id, user_id, lock=True)
    turn = turns.question_of(conversation, question_id).turn
    turn.conversation = conversation
    if turn.state == Turn.State.STREAMING and turn.is_held:
        Turn.objects.filter(pk=turn.pk).update(stop_requested=True)
    elif not turn.has_ended:
        answer = turns.answer_to(turn.pk)
        turns.release_turn(conversation, turn, turns.settled(answer) if answer else Turn.State.STOPPED)
    return turn


@dataclass(slots=True)
class Waiting:
    """What a request knows of its turn while it waits: its place, how many messages there were when it came, and the
    question that somebody else was running for it."""

    place: Place
    since: int | None = None
    joined: uuid.UUID | None = None


Look = Callable[[Waiting], Claim | Outcome | Busy]


def _looking_for(conversation_id: str, user_id: str, draft: Draft) -> Look:
    arrived = timezone.now()

    def look(waiting: Waiting) -> Claim | Outcome | Busy:
        conversation = _to_talk_in(conversation_id, user_id)
        uploads = _uploads_of(draft, user_id)
        measured = replace(draft, audio_duration_seconds=_seconds(draft, uploads))
        since = conversation.message_count if waiting.since is None else waiting.since
        return turns.claim_for_draft(
            conversation,
            measured,
            list(uploads),
            since,
            arrived=arrived,
            joined=waiting.joined,
            is_next=waiting.place.is_first,
        )

    return look


def _to_talk_in(conversation_id: str, user_id: str) -> Conversation:
    """Locked, with an influencer who is active. Raises NotFound and Forbidden."""
    conversation = get_owned(conversation_id, user_id, lock=True)
    conversation.influencer = Influencer.objects.get_active(conversation.influencer_id)
    return conversation


def _take(
    conversation_id: str, look: Look, deadline: float, *, streams: bool, joined: uuid.UUID | None
) -> tuple[Claim, Running] | Live | Outcome:
    """Wait in line till the turn is ours to run, or runs elsewhere, or has ended. Raises Conflict if that lasts too
    long: then nothing is stored."""
    with here.in_line(known_uuid(conversation_id)) as place:
        waiting = Waiting(place, joined=joined)
        while True:
            found = _look(look, waiting, streams)
            if not isinstance(found, Busy):
                return found
            waiting.since = found.message_count if waiting.since is None else waiting.since
            running = here.get(found.question_id)
            if found.ours and found.question_id:
                if running:
                    return running
                turn = Turn.objects.select_related("conversation").filter(pk=found.question_id).first()
                if turn and not turn.has_ended:
                    return switchboard.mirror(turn, wants_text=streams)
            elif time.monotonic() > deadline - TO_ANSWER:
                raise Conflict("The persona is still answering another message.", reason="turn_in_progress")
            else:
                release_connection()
                place.wait(min(2.0 if running or not place.is_first else POLL, deadline - TO_ANSWER - time.monotonic()))


def _take_to_stream(conversation_id: str, look: Look, deadline: float) -> tuple[Claim, Running] | Live | Outcome:
    """As _take. A turn that another process runs is looked at till its first piece, or till its lock was renewed: if
    that process is dead, the turn becomes ours before anything of it went out."""
    joined: uuid.UUID | None = None
    while True:
        taken = _take(conversation_id, look, deadline, streams=True, joined=joined)
        if isinstance(taken, Running) or not isinstance(taken, Live):
            return taken
        release_connection()
        joined = taken.question_id
        taken.wait(0, time.monotonic() + turns.LEASE.total_seconds() + 1)
        if not isinstance(taken.error, Interrupted):
            return taken


def _look(look: Look, waiting: Waiting, streams: bool) -> tuple[Claim, Running] | Outcome | Busy:
    """Who finds the turn taken finds who runs it, too: it's entered before the transaction ends."""
    live: Running | None = None
    try:
        with write_transaction():
            found = look(waiting)
            if not isinstance(found, Claim):
                return found
            live = Running(found.turn.pk, found.conversation.pk, found.token, found.turn.events_before, streams=streams)
            here.begin(live)
    except BaseException:
        if live:
            live.fail(Interrupted("the turn couldn't begin"))
            here.end(live)
        raise
    switchboard.attend()
    return found, live


def _in_turn(conversation_id: str, look: Look, deadline: float) -> Outcome:
    """Run the turn, or wait for whoever runs it."""
    joined: uuid.UUID | None = None
    while True:
        taken = _take(conversation_id, look, deadline, streams=False, joined=joined)
        if isinstance(taken, Outcome):
            return taken
        if not isinstance(taken, Live):
            claim, live = taken
            _run(claim, live, ai.Deadline(deadline - TO_STORE))
            return live.result()
        release_connection()
        joined = taken.question_id
        if not taken.wait_for_end(deadline):
            raise Conflict("The persona is still answering this message.", reason="turn_in_progress")
        with suppress(Interrupted):  # then look again
            return taken.result()


def _with_answer(outcome: Outcome) -> Outcome:
    if outcome.answer is None:
        raise Conflict("The turn was stopped before there was an answer.", reason="stopped")
    return outcome


@cache
def _runners() -> ThreadPoolExecutor:
    """Streams don't end with their requests, so they have threads of their own, as many as there are streams: who
    waited here would hold a turn that nobody runs."""
    return ThreadPoolExecutor(MOST_STREAMS, thread_name_prefix="turn")


def _run_detached(claim: Claim, live: Running, deadline: ai.Deadline) -> None:
    try:
        _run(claim, live, deadline)
    except Exception:
        logger.exception("A streamed turn crashed")
    finally:
        connection.close()


def _run(claim: Claim, live: Running, deadline: ai.Deadline) -> None:
    """The claimed turn to its end, whatever that is: it's in `live` and in the rows."""
    live.deadline = deadline
    if live.stopping:
        deadline.cancel()
    effort = Effort(ai.Tally(earlier_attempts=claim.turn.attempts), pieces=live.pieces)
    try:
        live.finish(_answered(claim, live, deadline, effort))
    except Lost:
        _finish_lost(claim, live, effort)
    except Exception as exc:
        live.fail(_kept_failure(claim, effort, exc))
        if not isinstance(exc, ai.ModelError | NotFound):
            raise
    finally:
        if not live.ended:  # the database failed us at the end
            live.fail(Interrupted("the turn's end couldn't be stored"))
        try:
            _count(claim, live, effort)
        finally:
            here.end(live)


def _count(claim: Claim, live: Running, effort: Effort) -> None:
    model = metrics.model_label(effort.tally.model)
    if not isinstance(live.error, Interrupted):  # then whoever settles its row counts it, as abandoned
        metrics.TURNS.labels(_how_it_ended(live), model).inc()
    if effort.tally.first_token_at is not None:
        metrics.FIRST_TOKEN.labels(model).observe(max(0.0, effort.tally.first_token_at - claim.began))
    if live.outcome and effort.tally.attempts:
        metrics.REPLY.labels(model).observe(time.monotonic() - claim.began)


def _how_it_ended(live: Running) -> str:
    if live.outcome:
        answer = live.outcome.answer
        if answer and answer.away:
            return "away"
        return "stopped" if live.outcome.was_stopped else "blocked" if answer and answer.blocked else "done"
    return "deleted" if isinstance(live.error, NotFound) else "failed"


def _answered(claim: Claim, live: Running, deadline: ai.Deadline, effort: Effort) -> Outcome:
    """Raises ModelError, NotFound and Lost."""
    question = claim.question
    if claim.conversation.influencer.is_away:
        return turns.keep_away(claim, effort)
    try:
        _listen(question, deadline, effort.heard)
    except ai.Stopped:
        return turns.keep_stop(claim, effort)
    prompt, effort.sent = sent.prompt_for(claim.conversation, question, _share(deadline.at, PICTURES_SHARE))
    try:
        if live.streams:
            connection.close()  # also SQLite's: this thread has few statements left
            reply = _streamed(prompt, claim, live, deadline, effort)
        else:
            reply = ai.generate_reply(prompt, deadline=deadline, tally=effort.tally)
    except ai.Stopped:
        if not live.pieces:
            return turns.keep_stop(claim, effort)
        usage = effort.tally.usage
        text = "".join(live.pieces)
        reply = ai.Reply(text, effort.tally.model, ai.provider(), token_count=usage.output or None)
        return turns.keep_answer(claim, reply, effort, stopped=True)
    return turns.keep_answer(claim, reply, effort)


def _streamed(prompt: ai.Prompt, claim: Claim, live: Running, deadline: ai.Deadline, effort: Effort) -> ai.Reply:
    """What went out, piece by piece, is the reply's text."""
    cutter = Cutter()

    def send(piece: str) -> None:
        if not live.pieces:
            turns.begin_streaming(claim, effort)
            connection.close()
        live.add(piece)

    reply: ai.Reply | None = None
    for piece in ai.stream_reply(prompt, deadline=deadline, tally=effort.tally):  # to its end, where it's judged
        if isinstance(piece, ai.Reply):
            reply = piece
        elif ready := cutter.add(piece):
            send(ready)
    if reply is None:
        raise ai.UnusableAnswer("the model's answer has no end")
    if not reply.blocked and (rest := cutter.rest(reply.text)):
        send(rest)
    return reply


def _finish_lost(claim: Claim, live: Running, effort: Effort) -> None:
    """Somebody stopped the turn, or took it for dead."""
    turns.record_stopped(claim, effort)
    turns.count_uncounted(claim, effort)
    turn = Turn.objects.select_related("question").filter(pk=claim.turn.pk).first()
    answer = turns.answer_to(claim.turn.pk)
    if turn is None:
        live.fail(NotFound("Conversation not found"))
    elif answer or turn.state == Turn.State.STOPPED:
        live.finish(Outcome(turn, turn.question, answer))
    else:
        live.fail(Interrupted("this process lost the turn to another one"))


def _kept_failure(claim: Claim, effort: Effort, exc: Exception) -> Exception:
    """The error that callers get: that of the turn, or that the conversation is gone."""
    try:
        turns.keep_failure(claim, effort, error_code(exc))
    except NotFound as gone:
        exc = gone
    turns.count_uncounted(claim, effort)
    return exc


def error_code(exc: Exception) -> str:
    """As streams and the turns' records have it."""
    if isinstance(exc, ai.ModelRefused):
        return "NO_PROVIDER"
    return "TRANSIENT" if isinstance(exc, ai.ModelError) else "UNKNOWN"


# What is in a message


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


def _listen(question: Message, deadline: ai.Deadline, tally: ai.Tally) -> None:
    """Put what a voice note says into its content. A note that was understood isn't listened to again."""
    if question.message_type != Message.Type.AUDIO or question.metadata.get("transcription") == "done":
        return
    caption = question.metadata.setdefault("caption", question.content)
    release_connection()
    try:
        text = _transcript(question.audio_url or "", deadline, tally)
        deadline.check()
    except ai.Stopped:
        raise
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


def _transcript(url: str, deadline: ai.Deadline, tally: ai.Tally) -> str:
    """Within a share of the turn's time. Raises ModelError, Stopped if the turn is, and CannotOpen."""
    share = ai.Deadline(_share(deadline.at, TRANSCRIPTION_SHARE))
    with opened(url, share.at) as (sound, extension), deadline.interruptible(share.cancel):
        text = ai.transcribe(
            sound, mime_type=storage.MIME_TYPES[extension], extension=extension, deadline=share, tally=tally
        )
    return text.replace("\x00", "")[:TRANSCRIPT_LIMIT]
