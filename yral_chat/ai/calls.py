"""What operators see of a model's call: one line in the log, and the metrics. Nothing of what was said."""

import time
from types import TracebackType
from typing import Self

import structlog

from yral_chat import metrics
from yral_chat.ai import BreakerOpen, ModelRefused, ModelUnavailable, Stopped, Tally, UnusableAnswer

logger = structlog.get_logger("yral_chat.ai.calls")
OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (Stopped, "stopped"),
    (GeneratorExit, "stopped"),
    (BreakerOpen, "not_asked"),
    (ModelRefused, "refused"),
    (ModelUnavailable, "unavailable"),
    (UnusableAnswer, "unusable"),
    (BaseException, "crashed"),
)


class Call:
    """Of one model, its retries included: `with` it, and with the turn's `tally`, which others may have added to."""

    def __init__(self, kind: str, model: str, tally: Tally) -> None:
        self.kind, self.model, self.tally = kind, model, tally
        self.attempts, self.usage = tally.attempts, tally.usage
        self.was_blocked = False
        self.started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        answered = "blocked" if self.was_blocked else "answered"
        outcome = next(said for error, said in OUTCOMES if issubclass(kind, error)) if kind else answered
        before, after, attempts = self.usage, self.tally.usage, self.tally.attempts - self.attempts
        tokens = {
            "prompt": after.prompt - before.prompt,
            "output": after.output - before.output,
            "thinking": after.thinking - before.thinking,
        }
        model = self.tally.model or self.model  # "offline" knows better than the settings
        label = metrics.model_label(model)
        metrics.MODEL_CALLS.labels(self.kind, label, outcome).inc()
        metrics.MODEL_ATTEMPTS.labels(label).inc(attempts)
        metrics.count_tokens(model, **tokens)
        logger.info(
            "model call",
            kind=self.kind,
            model=model,
            outcome=outcome,
            attempts=attempts,
            ms=round((time.monotonic() - self.started) * 1000),
            **{f"{name}_tokens": count for name, count in tokens.items()},
        )
