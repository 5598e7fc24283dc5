"""A circuit breaker: who is down isn't asked, but for one probe every few seconds.

Not pybreaker: it counts failures in a row, not the share of a time window, and holds a lock around each call, so that
only one turn at a time could wait for the model.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from yral_chat.ai import BreakerOpen, ModelRefused, ModelUnavailable, UnusableAnswer

State = Literal["closed", "open", "half_open"]


class Breaker:
    """Of one model in this process. Opens at FAILURES failed turns that are SHARE of all within WINDOW seconds; after
    PAUSE seconds it lets one probe through, which closes it or opens it again."""

    WINDOW, FAILURES, SHARE, PAUSE = 30.0, 20, 0.5, 5.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=10_000)
        self._failed = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> State:
        with self._lock:
            if self._opened_at is None:
                return "closed"
            return "half_open" if self._probing or self._seconds_left() <= 0 else "open"

    def seconds_left(self) -> float:
        """Until a probe is let through."""
        with self._lock:
            return max(0.0, self._seconds_left())

    def _seconds_left(self) -> float:
        return 0.0 if self._opened_at is None else self._opened_at + self.PAUSE - self._clock()

    @contextmanager
    def guarding(self) -> Iterator[Callable[[], None]]:
        """Around one turn's calls. Raises BreakerOpen. ModelUnavailable is a failure, a return (also of an answer that
        can't be used) a success; anything else, such as a turn that was stopped, says nothing. What it gives is to be
        called when the answer begins: a probe that streams for minutes has shown at once what it's for."""
        probe = self._admit()
        succeeded: bool | None = None
        try:
            yield lambda: self._answers(probe)
            succeeded = True
        except ModelUnavailable as exc:
            succeeded = None if isinstance(exc, ModelRefused) and exc.ours else False
            raise
        except UnusableAnswer:
            succeeded = True
            raise
        finally:
            self._leave(probe, succeeded)

    def _admit(self) -> bool:
        """Is it the probe?"""
        with self._lock:
            if self._opened_at is None:
                return False
            if self._probing or self._seconds_left() > 0:
                raise BreakerOpen(self._seconds_left())
            self._probing = True
            return True

    def _answers(self, probe: bool) -> None:
        with self._lock:
            if probe and self._probing:
                self._probing, self._opened_at = False, None
                self._reset()

    def _leave(self, probe: bool, succeeded: bool | None) -> None:
        with self._lock:
            if probe and self._probing:
                self._probing = False
                if succeeded is not None:
                    self._reset()
                    self._opened_at = None if succeeded else self._clock()
            elif self._opened_at is None and succeeded is not None:
                self._count(succeeded)

    def _count(self, succeeded: bool) -> None:
        now = self._clock()
        if len(self._outcomes) == self._outcomes.maxlen:
            self._forget_oldest()
        self._outcomes.append((now, succeeded))
        self._failed += not succeeded
        while self._outcomes[0][0] < now - self.WINDOW:
            self._forget_oldest()
        if self._failed >= self.FAILURES and self._failed >= self.SHARE * len(self._outcomes):
            self._reset()
            self._opened_at = now

    def _forget_oldest(self) -> None:
        self._failed -= not self._outcomes.popleft()[1]

    def _reset(self) -> None:
        self._outcomes.clear()
        self._failed = 0
