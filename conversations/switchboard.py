"""The one thread of a process that connects its turns with other processes. It rests while no turn is under way.

Every TICK it looks whether a turn that runs here shall stop or is followed elsewhere, and how far those are that
are followed here and run elsewhere. It renews the locks of turns that take long, and ends turns that were abandoned.
"""

import logging
import os
import threading
import time
import uuid
from dataclasses import dataclass, field

from django.db import connection

from conversations import turns
from conversations.board import board, cut
from conversations.live import Interrupted, Live, Running, here
from conversations.models import Message, Turn
from conversations.turns import INTERRUPTED, Outcome
from yral_chat import ai
from yral_chat.database import release_connection
from yral_chat.errors import NotFound

logger = logging.getLogger(__name__)
TICK = 0.2  # seconds
PAUSE = 1.0  # after a failure
RENEW = 3.0
SWEEP = 10.0
WATCH = 1.0
QUICK = 0.5  # seconds: a turn that isn't streamed and takes no longer needs nobody's attention
AWAKE = 15.0  # after a start: a process that was killed before it may hold locks for a while


def replayed(turn: Turn, question: Message, answer: Message | None) -> Live:
    """A turn that has ended, with the events that it had."""
    live = Live(question.pk, turn.events_before)
    finish(live, turn, question, answer)
    return live


def finish(live: Live, turn: Turn, question: Message, answer: Message | None) -> None:
    """End it as its rows say."""
    if answer is None and turn.state == Turn.State.FAILED:
        live.fail(failure(turn.error_code))
        return
    if answer is not None and answer.blocked:
        live.withdrawn = len(turn.event_ends) - len(live.pieces)
    elif answer is not None:
        for piece in cut(answer.content, turn.event_ends)[len(live.pieces) :]:
            live.add(piece)
    live.finish(Outcome(turn, question, answer))


def failure(error_code: str) -> Exception:
    """As which a turn failed, when it was another process, or another day."""
    if error_code == "NO_PROVIDER":
        return ai.ModelRefused("the model refused this turn's request")
    if error_code == INTERRUPTED:
        return Interrupted("the turn's process ended before the turn did")
    if error_code == "UNKNOWN":
        return RuntimeError("the turn failed on our side")
    return ai.ModelUnavailable("the model was down for this turn")


@dataclass
class Mirror:
    """A turn of another process, as its followers here see it."""

    live: Live
    wants_text: bool = False
    watched_at: float = 0.0


@dataclass
class Switchboard:
    mirrors: dict[uuid.UUID, Mirror] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._needed = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = 0
        self._told: dict[uuid.UUID, int] = {}
        self._awake_until = self._renewed_at = 0.0
        self._swept_at = float("-inf")

    def start(self) -> None:
        """With a server: what an earlier one left behind gets its end."""
        self._awake_until = time.monotonic() + AWAKE
        self.attend()

    def attend(self) -> None:
        """Something is under way. Cheap; threads don't survive a fork, so it looks whether its own is there."""
        if self._thread is None or self._process != os.getpid():
            with self._lock:
                if self._thread is None or self._process != os.getpid():
                    self._process = os.getpid()
                    self._thread = threading.Thread(target=self._attend, name="switchboard", daemon=True)
                    self._thread.start()
        self._needed.set()

    def mirror(self, turn: Turn, *, wants_text: bool) -> Live:
        """Follow a turn that runs elsewhere."""
        with self._lock:
            mirror = self.mirrors.get(turn.pk)
            if mirror is None or mirror.live.events_before != turn.events_before:
                mirror = self.mirrors[turn.pk] = Mirror(Live(turn.pk, turn.events_before))
            mirror.wants_text |= wants_text
        self.attend()
        return mirror.live

    def _attend(self) -> None:
        while True:
            self._needed.wait()
            self._needed.clear()
            while self._is_needed():
                try:
                    self._tick()
                except Exception:
                    logger.exception("Turns couldn't be looked after; trying again")
                    connection.close()
                    time.sleep(PAUSE)
                time.sleep(TICK)
            self._told.clear()
            connection.close()

    def _is_needed(self) -> bool:
        return bool(self.mirrors or here.all() or time.monotonic() < self._awake_until)

    def _tick(self) -> None:
        now, running = time.monotonic(), here.all()
        if now - self._renewed_at >= RENEW and (long := [turn for turn in running if now - turn.began >= RENEW]):
            self._renew(long)
            self._renewed_at = now
        if attended := [turn for turn in running if turn.streams or now - turn.began >= QUICK]:
            self._signals(attended)
        if self.mirrors:
            self._follow(now)
        if (attended or now < self._awake_until) and now - self._swept_at >= SWEEP:
            self._swept_at = now
            if count := turns.end_abandoned():
                logger.warning("%d turns had been abandoned by a process that ended", count)
        release_connection()

    def _renew(self, long: list[Running]) -> None:
        lost = turns.renew({turn.conversation_id: turn.token for turn in long})
        for turn in long:
            if turn.token in lost:
                turn.stop()  # nobody would keep what the model goes on to say

    def _signals(self, attended: list[Running]) -> None:
        signals = board.signals({turn.question_id: turn.events_before for turn in attended})
        for turn in attended:
            pk = turn.question_id
            if pk in signals.stop and not turn.stopping:
                turn.stop()
            if pk in signals.watched and len(turn.pieces) > self._told.get(turn.token, 0):
                pieces = list(turn.pieces)
                board.tell(pk, turn.events_before, pieces)
                self._told[turn.token] = len(pieces)
        self._told = {turn.token: self._told.get(turn.token, 0) for turn in attended}

    def _follow(self, now: float) -> None:
        with self._lock:
            mirrors = dict(self.mirrors)
        rows = Turn.objects.select_related("conversation", "question").in_bulk(list(mirrors))
        for pk, mirror in mirrors.items():
            self._look_at(mirror, rows.get(pk), now)
            if mirror.live.ended:
                with self._lock:
                    if self.mirrors.get(pk) is mirror:
                        del self.mirrors[pk]

    def _look_at(self, mirror: Mirror, turn: Turn | None, now: float) -> None:
        live = mirror.live
        if turn is None:
            live.fail(NotFound("Conversation not found"))
        elif turn.events_before != live.events_before or not (turn.has_ended or turn.is_held):
            live.fail(Interrupted("the turn's process ended before the turn did"))
        elif turn.has_ended:
            finish(live, turn, turn.question, turns.answer_to(turn.pk))
        elif mirror.wants_text:
            for piece in board.pieces(turn)[len(live.pieces) :]:
                live.add(piece)
            if now - mirror.watched_at >= WATCH:
                board.watch(turn)
                mirror.watched_at = now


switchboard = Switchboard()
