"""Turns that run in this process, or that somebody here follows: who adds to one, who waits for it, who comes next."""

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from conversations.turns import Outcome
from yral_chat import ai, metrics


class Interrupted(ai.ModelUnavailable):
    """Whoever ran the turn is gone: it may be taken up again."""


class Live:
    """A turn under way: pieces of text in order, then an outcome or an error. Any thread may add, wait and stop."""

    def __init__(self, question_id: uuid.UUID, events_before: int = 0) -> None:
        self.question_id, self.events_before = question_id, events_before
        self.pieces: list[str] = []
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.withdrawn = 0  # pieces that went out and aren't there any more
        self.ended = self.stopping = False
        self._changed = threading.Condition()
        self._listeners: set[Callable[[], None]] = set()

    def add(self, piece: str) -> None:
        self.pieces.append(piece)
        self._tell()

    def finish(self, outcome: Outcome) -> None:
        """An answer that didn't come in pieces is one. Of two ends the first one stands."""
        if outcome.answer and not outcome.answer.blocked and not self.pieces and not self.ended:
            self.pieces.append(outcome.answer.content)
        self._end(outcome, None)

    def fail(self, error: Exception) -> None:
        self._end(None, error)

    @property
    def last_event(self) -> int:
        """The number of the one that ends it."""
        return self.events_before + len(self.pieces) + self.withdrawn + 1

    def result(self) -> Outcome:
        """Of a turn that has ended. Raises what it failed with."""
        if self.error:
            raise self.error
        assert self.outcome
        return self.outcome

    def wait(self, seen: int, until: float) -> bool:
        """Till there are more than `seen` pieces, or the end, or it's `until` (of time.monotonic): then False."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self.ended or len(self.pieces) > seen, max(0.0, until - time.monotonic())
            )

    def wait_for_end(self, until: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, max(0.0, until - time.monotonic()))

    @contextmanager
    def listening(self, listener: Callable[[], None]) -> Iterator[None]:
        """`listener` is called, from any thread, at each piece and at the end. It must return at once and not raise."""
        with self._changed:
            self._listeners.add(listener)
        try:
            yield
        finally:
            with self._changed:
                self._listeners.discard(listener)

    def _end(self, outcome: Outcome | None, error: Exception | None) -> None:
        with self._changed:
            if self.ended:  # whoever stopped it was first
                return
            self.outcome, self.error, self.ended = outcome, error, True
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


class Running(Live):
    """One that runs here."""

    def __init__(
        self, question_id: uuid.UUID, conversation_id: uuid.UUID, token: uuid.UUID, events_before: int, streams: bool
    ) -> None:
        super().__init__(question_id, events_before)
        self.conversation_id, self.token, self.streams = conversation_id, token, streams
        self.deadline: ai.Deadline | None = None
        self.began = time.monotonic()

    def stop(self) -> None:
        """The model's connection is cut; what came so far is up to whoever runs it."""
        self.stopping = True
        if self.deadline:
            self.deadline.cancel()


class Place:
    """In the line before a conversation."""

    def __init__(self, line: deque["Place"]) -> None:
        self._line = line
        self._called = threading.Event()

    @property
    def is_first(self) -> bool:
        return self._line[0] is self

    def call(self) -> None:
        self._called.set()

    def wait(self, seconds: float) -> None:
        """Till it's worth looking again."""
        self._called.wait(max(0.0, seconds))
        self._called.clear()


class Here:
    """All turns and lines of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[uuid.UUID, Running] = {}
        self._lines: dict[uuid.UUID, deque[Place]] = {}

    def begin(self, turn: Running) -> None:
        with self._lock:
            self._running[turn.question_id] = turn
        metrics.RUNNING.inc()

    def end(self, turn: Running) -> None:
        """Whoever waits for the conversation looks again."""
        with self._lock:
            if self._running.get(turn.question_id) is turn:
                del self._running[turn.question_id]
        metrics.RUNNING.dec()
        self.call(turn.conversation_id)

    def get(self, question_id: uuid.UUID | None) -> Running | None:
        with self._lock:
            return self._running.get(question_id) if question_id else None

    def all(self) -> list[Running]:
        with self._lock:
            return list(self._running.values())

    @contextmanager
    def in_line(self, conversation_id: uuid.UUID) -> Iterator[Place]:
        """First come, first served, as far as this process knows."""
        with self._lock:
            line = self._lines.setdefault(conversation_id, deque())
            place = Place(line)
            line.append(place)
        metrics.WAITING.inc()
        try:
            yield place
        finally:
            with self._lock:
                line.remove(place)
                if not line:
                    del self._lines[conversation_id]
            metrics.WAITING.dec()
            self.call(conversation_id)

    def call(self, conversation_id: uuid.UUID) -> None:
        with self._lock:
            waiting = list(self._lines.get(conversation_id, ()))
        for place in waiting:
            place.call()


here = Here()
