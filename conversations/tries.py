"""Staff try a persona out: the model answers as it would in a turn, and nothing of it becomes a row.

What was said stays with whoever says it, and comes again with each question. In the log and the metrics these calls are
of a kind of their own, so that neither the statistics nor the alerts take them for users' replies.
"""

import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.contrib.auth.models import User
from django.utils import timezone

from conversations import prompts
from conversations.services import TO_STORE
from conversations.turns import deflection_of
from personas.models import Influencer
from yral_chat import ai, counters, metrics
from yral_chat.ai import prices
from yral_chat.json import dumps
from yral_chat.throttling import MINUTE, window

logger = logging.getLogger(__name__)
KIND = "try"
KEEP_ALIVE = 5.0  # seconds
ALIVE = b": alive\n\n"


class TooMany(Exception):
    """Of a member of staff, in this minute; the model costs money."""

    def __init__(self, seconds: int) -> None:
        super().__init__(
            f"You may ask the model {settings.DESK_CALLS_PER_MINUTE} times a minute. Try again in {seconds} s."
        )
        self.retry_after = seconds


def count_call(user: User) -> None:
    """Before each call of the model. Raises TooMany."""
    if not settings.DESK_CALLS_PER_MINUTE:
        return
    now = time.time()
    minute = window("desk_minute", MINUTE, settings.DESK_CALLS_PER_MINUTE, now)
    counted = counters.of_this_process().count(f"staff {user.pk}", [minute])
    if counted is not None and not counted.passed:
        metrics.LIMITED.labels("desk", minute.name).inc()
        raise TooMany(max(1, math.ceil(minute.ends - now)))


def prompt_of(persona: Influencer, said: Sequence[tuple[str, prompts.Parts]], *, user_name: str = "") -> ai.Prompt:
    """`said` as prompts.compose takes it, the question last."""
    known: dict[str, object] = {"name": user_name} if user_name else {}
    name = prompts.name_in(known) if prompts.names_the_user(persona) else ""
    memories, today = prompts.remembered(known), timezone.now().date()
    return ai.with_defaults(prompts.compose(persona=persona, memories=memories, said=said, today=today, user_name=name))


@dataclass(slots=True)
class Outcome:
    """How one call went, whether or not there is an answer."""

    text: str = ""
    error: str = ""
    blocked: bool = False
    finish_reason: str = ""
    tally: ai.Tally = field(default_factory=ai.Tally)
    seconds: float = 0.0

    @property
    def cost(self) -> Decimal | None:
        return prices.cost(self.tally.model, self.tally.usage, timezone.now().date())

    @property
    def as_json(self) -> dict[str, Any]:
        usage = self.tally.usage
        return {
            "text": self.text,
            "error": self.error,
            "blocked": self.blocked,
            "finish_reason": self.finish_reason,
            "model": self.tally.model,
            "tokens": {"prompt": usage.prompt, "output": usage.output, "thinking": usage.thinking},
            "seconds": round(self.seconds, 2),
            "cost_usd": None if self.cost is None else f"{self.cost:.6f}",
        }


def ask(persona: Influencer, prompt: ai.Prompt) -> Outcome:
    """One answer, as a user would get it. Raises nothing: what goes wrong is in the outcome, as a sentence."""
    outcome, started = Outcome(), time.monotonic()
    deadline = ai.Deadline(started + settings.GEMINI_TIMEOUT_SECONDS - TO_STORE)
    try:
        with ai.counted_as(KIND):
            _take(outcome, persona, ai.generate_reply(prompt, deadline=deadline, tally=outcome.tally))
    except ai.ModelError as exc:
        outcome.error = sentence(exc)
    outcome.seconds = time.monotonic() - started
    return outcome


def _take(outcome: Outcome, persona: Influencer, reply: ai.Reply) -> None:
    outcome.text = deflection_of(persona) if reply.blocked else reply.text
    outcome.blocked, outcome.finish_reason = reply.blocked, reply.finish_reason


def sentence(exc: ai.ModelError) -> str:
    """More than users are told: who writes a persona may have named a model that isn't there."""
    if isinstance(exc, ai.Stopped):
        return "Stopped."
    return f"There is no answer: {exc}."


class Stream:
    """An answer as server-sent events: `token` {"text"} for each piece, then `done` with how it went. A thread of its
    own listens to the model: whoever goes away ends that by close(), at once and from any thread."""

    def __init__(self, persona: Influencer, prompt: ai.Prompt) -> None:
        self.persona, self.prompt = persona, prompt
        self.frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        now = time.monotonic()
        self.deadline = ai.Deadline(
            now + settings.GEMINI_TIMEOUT_SECONDS - TO_STORE,
            gap=settings.STREAM_GAP_SECONDS,
            last=now + settings.STREAM_TIMEOUT_SECONDS,
        )
        run = copy_context().run
        threading.Thread(target=run, args=(self._listen,), name="try", daemon=True).start()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> bytes:
        try:
            frame = self.frames.get(timeout=KEEP_ALIVE)
        except queue.Empty:
            return ALIVE
        if frame is None:
            raise StopIteration
        return frame

    def close(self) -> None:
        self.deadline.cancel()

    def _listen(self) -> None:
        outcome, started = Outcome(), time.monotonic()
        try:
            self._pass_on(outcome)
        except ai.ModelError as exc:
            outcome.error = sentence(exc)
        except Exception:
            logger.exception("A try crashed")
            outcome.error = "There is no answer: something went wrong on our side."
        outcome.seconds = time.monotonic() - started
        self.frames.put(event("done", outcome.as_json))
        self.frames.put(None)

    def _pass_on(self, outcome: Outcome) -> None:
        with ai.counted_as(KIND):
            for piece in ai.stream_reply(self.prompt, deadline=self.deadline, tally=outcome.tally):
                if isinstance(piece, ai.Reply):
                    _take(outcome, self.persona, piece)
                else:
                    self.frames.put(event("token", {"text": piece}))


def event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), dumps(data))
