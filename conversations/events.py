"""A turn as a stream of server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html

`token {"text"}` for each piece, then one `done` or `error`. An event's id is `<question id>/<n>`; n rises, also from
one attempt of a turn to the next.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from conversations.live import Live
from conversations.services import error_code
from conversations.turns import Outcome
from yral_chat import errors, metrics
from yral_chat.errors import NotFound
from yral_chat.json import dumps
from yral_chat.log import correlation_id

logger = structlog.get_logger(__name__)
KEEP_ALIVE = 10.0  # seconds
OPENED = b": the persona thinks\n\n"  # the headers go out with it, long before the first token
ALIVE = b": alive\n\n"
Done = Callable[[Outcome], dict[str, Any]]


class Follower:
    """One client's way through a turn's events, after the event number `after`. `done` makes the last one's data."""

    def __init__(self, live: Live, done: Done, after: int = 0) -> None:
        self.live, self.done, self.after = live, done, after
        self.seen = max(0, after - live.events_before)
        self.correlation_id = correlation_id.get()

    @property
    def is_behind(self) -> bool:
        return self.live.ended or len(self.live.pieces) > self.seen

    def frames(self) -> tuple[bytes, bool]:
        """What is new, and whether it is all."""
        ended = self.live.ended  # first: what is added after this look is found by the next
        pieces = self.live.pieces[self.seen :]
        new = [self._token(self.seen + place, piece) for place, piece in enumerate(pieces, start=1)]
        self.seen += len(pieces)
        if ended and self._end_is_news:
            new.append(self._last())
        return b"".join(new), ended

    @property
    def _end_is_news(self) -> bool:
        """An attempt without an answer may have had more events than are known here. How it ended is always told."""
        outcome = self.live.outcome
        return outcome is None or outcome.answer is None or self.live.last_event > self.after

    def _token(self, place: int, piece: str) -> bytes:
        return frame("token", {"text": piece}, self.live.question_id, self.live.events_before + place)

    def _last(self) -> bytes:
        live = self.live
        number = max(live.last_event, self.after + 1)
        if live.error:
            return frame("error", error_json(live.error), live.question_id, number)
        assert live.outcome
        answer = live.outcome.answer
        if answer and answer.blocked and (live.pieces or live.withdrawn):
            return frame("error", WITHDRAWN, live.question_id, number)
        return frame("done", self.done(live.outcome), live.question_id, number)

    def __iter__(self) -> Iterator[bytes]:
        with self._seen_by_operators():
            yield OPENED
            ended = False
            while not ended:
                self.live.wait(self.seen, time.monotonic() + KEEP_ALIVE)
                new, ended = self.frames()
                yield new or (b"" if ended else ALIVE)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        news, loop, ended = asyncio.Event(), asyncio.get_running_loop(), False
        with self._seen_by_operators(), self.live.listening(lambda: _call(loop, news.set)):
            yield OPENED
            while not ended:
                if not self.is_behind:
                    await _at_most(KEEP_ALIVE, news)
                news.clear()
                new, ended = self.frames()
                if new or not ended:
                    yield new or ALIVE

    @contextmanager
    def _seen_by_operators(self) -> Iterator[None]:
        """A stream in the metrics, and its line at the end. GeneratorExit, or cancellation, is a client that went."""
        started, outcome = time.monotonic(), "left"
        metrics.STREAMS.inc()
        try:
            yield
            outcome = "failed" if self.live.error else "complete"
        finally:
            metrics.STREAMS.dec()
            logger.info(
                "stream",
                correlation_id=self.correlation_id,
                outcome=outcome,
                pieces=self.seen,
                ms=round((time.monotonic() - started) * 1000),
            )


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop is closed: the server stops, and nobody listens there any more
        loop.call_soon_threadsafe(function)


async def _at_most(seconds: float, event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass


def frame(event: str, data: dict[str, Any], question_id: uuid.UUID, number: int) -> bytes:
    return b"id: %s/%d\nevent: %s\ndata: %s\n\n" % (str(question_id).encode(), number, event.encode(), dumps(data))


WITHDRAWN = {
    "code": "BLOCKED_CONTENT",
    "message": "The persona's answer was withdrawn by a safety filter.",
    "retryable": False,
}


def error_json(exc: Exception) -> dict[str, Any]:
    if isinstance(exc, NotFound):
        return {"code": "UNKNOWN", "message": str(exc), "retryable": False}
    code = error_code(exc)
    known = "internal_server_error" if code == "UNKNOWN" else "ai_service_unavailable"
    return {"code": code, "message": errors.MESSAGES[known], "retryable": code != "NO_PROVIDER"}
