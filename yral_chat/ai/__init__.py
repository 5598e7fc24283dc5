"""The door to the models. Callers see these functions, dataclasses and errors, and no wire format.

    ModelError                 no answer; `retry_after` seconds until it's worth asking again
    ├── ModelUnavailable       down, overloaded, too slow, or out of quota
    │   ├── ModelRefused       it refuses us: the key, the model's name, the request. Asking again changes nothing
    │   └── BreakerOpen        it was down for many turns just now, and isn't asked at the moment
    ├── UnusableAnswer         it answered with nothing that could be shown: empty, cut, malformed
    └── Stopped                the caller cancelled it, which says nothing about the model

A question or answer that a safety filter stopped is no error but a Reply with `blocked`.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from django.conf import settings
from django.core.signals import setting_changed

from yral_chat import metrics

if TYPE_CHECKING:
    from yral_chat.ai.breaker import Breaker

logger = logging.getLogger(__name__)
MOST_BREAKERS = 100
FIRST_SHARE = 0.6  # of a turn's time for the first model, where there is a fallback


class ModelError(Exception):
    retry_after = 5


class ModelUnavailable(ModelError):
    pass


class ModelRefused(ModelUnavailable):
    """`ours` if it is the request that it refuses (400), which says nothing about other requests."""

    def __init__(self, message: str, *, ours: bool = False) -> None:
        super().__init__(message)
        self.ours = ours


class BreakerOpen(ModelUnavailable):
    def __init__(self, seconds_left: float) -> None:
        super().__init__(f"the circuit breaker is open; the next try is in {seconds_left:.1f} s")
        self.retry_after = max(1, math.ceil(seconds_left))


class UnusableAnswer(ModelError):
    pass


class Stopped(ModelError):
    pass


@dataclass(frozen=True, slots=True)
class Blob:
    """A picture or a sound that goes to the model."""

    mime_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Content:
    """One side's say in the conversation: `role` is user or model; a part is a text or a blob."""

    role: str
    parts: tuple[str | Blob, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is sent. The first content is the user's and the roles alternate. A blank `model`, and None, stand
    for what the settings say: with_defaults() puts that in."""

    system_instruction: str
    contents: tuple[Content, ...]
    persona_name: str = ""
    model: str = ""
    temperature: float | None = None
    max_output_tokens: int | None = None
    thinking_budget: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by the model's own count. `output` is the answer without the thinking."""

    prompt: int = 0
    output: int = 0
    thinking: int = 0
    total: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt + other.prompt,
            self.output + other.output,
            self.thinking + other.thinking,
            self.total + other.total,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """`text` is never blank unless `blocked`. `token_count` is of the answer alone, by the model's own count."""

    text: str
    model: str
    provider: str = "gemini"
    blocked: bool = False
    finish_reason: str = "STOP"
    token_count: int | None = None


@dataclass(slots=True)
class Tally:
    """What a turn's calls came to, whether or not one of them gave an answer. `first_token_at` is of time.monotonic;
    `earlier_attempts` were made before, when the turn failed."""

    attempts: int = 0
    earlier_attempts: int = 0
    usage: Usage = Usage()
    model: str = ""
    first_token_at: float | None = None

    def heard(self) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()


class Deadline:
    """Until when (of time.monotonic) an answer is waited for: for its first token till `first`, then `gap` seconds
    for each next one, and never longer than `last`. cancel(), from any thread, ends the wait at once."""

    def __init__(self, first: float, *, gap: float = math.inf, last: float = math.inf) -> None:
        self.at, self.gap, self.last = first, gap, last
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._interrupt: Callable[[], None] | None = None

    def heard(self) -> None:
        """A token came."""
        if self.gap < math.inf:
            self.at = min(self.last, time.monotonic() + self.gap)

    def seconds_left(self) -> float:
        return self.at - time.monotonic()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raises Stopped if it was cancelled."""
        if self.cancelled:
            raise Stopped("the turn was stopped")

    def pause(self, seconds: float) -> None:
        """Between two tries."""
        self._cancelled.wait(seconds)

    def cancel(self) -> None:
        with self._lock:
            self._cancelled.set()
            if self._interrupt:
                self._interrupt()

    @contextmanager
    def interruptible(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """While this waits, cancel() calls `interrupt`."""
        with self._lock:
            if self.cancelled:
                interrupt()
            self._interrupt = interrupt
        try:
            yield
        finally:
            with self._lock:
                self._interrupt = None


@dataclass(slots=True)
class Health:
    """How the last call went, as far as this process knows. Asking never costs a call."""

    up: bool = True
    latency_ms: float = 0.0
    error: str | None = None


class Engine(Protocol):
    provider: str

    def generate(self, prompt: Prompt, model: str, deadline: Deadline, tally: Tally) -> Reply: ...

    def stream(self, prompt: Prompt, model: str, deadline: Deadline, tally: Tally) -> Iterator[str | Reply]: ...


class Ears(Protocol):
    def transcribe(
        self, audio: BinaryIO, *, mime_type: str, extension: str, deadline: Deadline, tally: Tally | None = None
    ) -> str: ...


@dataclass(slots=True)
class _State:
    health: Health = field(default_factory=Health)
    breakers: dict[str, "Breaker"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_state = _State()
_scene: ContextVar[str] = ContextVar("scene", default="")
_kind: ContextVar[str] = ContextVar("kind", default="reply")


@contextmanager
def playing(scene: str) -> Iterator[None]:
    """One of offline.SCENES is played instead of asking a model; blank: none. Threads play it, too, if they run in a
    copy of the context."""
    before = _scene.set(scene)
    try:
        yield
    finally:
        _scene.reset(before)


@contextmanager
def counted_as(kind: str) -> Iterator[None]:
    """In the log and the metrics: what isn't a user's reply shall not be taken for one."""
    before = _kind.set(kind)
    try:
        yield
    finally:
        _kind.reset(before)


def scenes() -> dict[str, str]:
    """What the failure simulator can play, and how that looks."""
    from yral_chat.ai.offline import SCENES

    return {name: scene.says for name, scene in SCENES.items()}


@cache
def _engine() -> Engine:
    if settings.GEMINI_API_KEY:
        from yral_chat.ai.gemini import Gemini  # over a second of imports: not for every manage.py command

        return Gemini()
    from yral_chat.ai.offline import Offline

    return Offline()


@cache
def _ears() -> Ears:
    if settings.USE_WHISPER:
        from yral_chat.ai.whisper import Whisper

        return Whisper()
    return cast(Ears, _engine())


def warm_up() -> None:
    """Import the SDK and make the one client of this process now, not in the first request."""
    _engine()
    _ears()


def with_defaults(prompt: Prompt) -> Prompt:
    """Of what the prompt leaves open. None stays only where the model itself shall choose."""

    def first[T](value: T | None, default: T) -> T:
        return default if value is None else value

    return replace(
        prompt,
        model=prompt.model or settings.GEMINI_MODEL,
        temperature=first(prompt.temperature, settings.GEMINI_TEMPERATURE),
        max_output_tokens=first(prompt.max_output_tokens, settings.GEMINI_MAX_TOKENS),
        thinking_budget=first(prompt.thinking_budget, settings.GEMINI_THINKING_BUDGET),
    )


def generate_reply(prompt: Prompt, *, deadline: Deadline, tally: Tally) -> Reply:
    """Ask the model, with retries, then the fallback model if the first is down. Raises ModelError."""
    prompt = with_defaults(prompt)

    def ask(engine: Engine, model: str) -> Iterator[str | Reply]:
        yield engine.generate(prompt, model, deadline, tally)

    (reply,) = _answers(prompt, deadline, tally, ask)
    return cast(Reply, reply)


def stream_reply(prompt: Prompt, *, deadline: Deadline, tally: Tally) -> Iterator[str | Reply]:
    """The answer's text in pieces as they come, then the Reply with all of it. Nothing is tried again once a piece went
    out. Raises ModelError, also in between."""
    prompt = with_defaults(prompt)
    return _answers(prompt, deadline, tally, lambda engine, model: engine.stream(prompt, model, deadline, tally))


Ask = Callable[[Engine, str], Iterator[str | Reply]]


def _answers(prompt: Prompt, deadline: Deadline, tally: Tally, ask: Ask) -> Iterator[str | Reply]:
    if scene := _scene.get():
        return _played(scene, deadline, tally, ask)
    return _by_the_first_that_answers(prompt, deadline, tally, ask)


def _played(scene: str, deadline: Deadline, tally: Tally, ask: Ask) -> Iterator[str | Reply]:
    """Neither the breakers nor /health take it for a model's."""
    from yral_chat.ai.calls import Call
    from yral_chat.ai.offline import Simulator

    with Call(_kind.get(), "offline", tally) as call, _stops_at(deadline):
        for piece in ask(Simulator(scene), "offline"):
            call.was_blocked = isinstance(piece, Reply) and piece.blocked
            yield piece


def _by_the_first_that_answers(prompt: Prompt, deadline: Deadline, tally: Tally, ask: Ask) -> Iterator[str | Reply]:
    """The fallback model is asked where the first gave nothing at all."""
    models = list(dict.fromkeys(filter(None, (prompt.model, settings.GEMINI_FALLBACK_MODEL))))
    failure: ModelUnavailable | None = None
    until = deadline.at
    for model in models:
        is_last = model == models[-1]
        deadline.at = until if is_last else until - deadline.seconds_left() * (1 - FIRST_SHARE)
        tally.model = model
        came = False
        try:
            for piece in _guarded(model, deadline, tally, ask):
                came = True
                yield piece
        except ModelUnavailable as exc:
            failure = exc if failure is None or isinstance(failure, ModelRefused) else failure
            if came or is_last:
                raise failure from None
            logger.warning("%s is down (%s): asking %s.", model, exc, models[-1])
        else:
            return


def _guarded(model: str, deadline: Deadline, tally: Tally, ask: Ask) -> Iterator[str | Reply]:
    """By the model's circuit breaker; how it went is what /health, the log and the metrics say."""
    from yral_chat.ai.calls import Call

    started, breaker = time.monotonic(), breaker_of(model)
    try:
        with Call(_kind.get(), model, tally) as call, breaker.guarding() as answers, _stops_at(deadline):
            for piece in ask(_engine(), model):
                answers()
                call.was_blocked = isinstance(piece, Reply) and piece.blocked
                yield piece
    except BreakerOpen:
        raise
    except ModelUnavailable as exc:
        _state.health = Health(up=False, latency_ms=_ms_since(started), error=str(exc))
        raise
    finally:
        metrics.BREAKER.labels(metrics.model_label(model)).set(breaker.state != "closed")
    _state.health = Health(latency_ms=_ms_since(started))


@contextmanager
def _stops_at(deadline: Deadline) -> Iterator[None]:
    """Whatever a connection that was cut by cancel() raises."""
    try:
        yield
    except ModelError as exc:
        if deadline.cancelled:
            raise Stopped("the turn was stopped") from exc
        raise


def breaker_of(model: str) -> "Breaker":
    from yral_chat.ai.breaker import Breaker

    with _state.lock:
        if len(_state.breakers) > MOST_BREAKERS and model not in _state.breakers:
            _state.breakers.clear()  # staff tried many names; the real one is back with its next call
        return _state.breakers.setdefault(model, Breaker())


def provider() -> str:
    return _engine().provider


def transcribe(
    audio: BinaryIO, *, mime_type: str, extension: str, deadline: Deadline, tally: Tally | None = None
) -> str:
    """What is said in a sound, never blank. Raises ModelError."""
    from yral_chat.ai.calls import Call

    tally = tally or Tally()
    model = settings.WHISPER_MODEL if settings.USE_WHISPER else settings.GEMINI_TRANSCRIPTION_MODEL
    with Call("transcription", model, tally), _stops_at(deadline):
        return _ears_now().transcribe(audio, mime_type=mime_type, extension=extension, deadline=deadline, tally=tally)


def _ears_now() -> Ears:
    from yral_chat.ai.offline import Simulator

    return Simulator(_scene.get()) if _scene.get() else _ears()


def health() -> Health:
    """Down, too, while the breaker of the default model lets nothing through."""
    guard = breaker_of(settings.GEMINI_MODEL)
    if (state := guard.state) == "closed":
        return _state.health
    soon = "a probe is due" if state == "half_open" else f"the next try is in {guard.seconds_left():.1f} s"
    error = f"The circuit breaker of {settings.GEMINI_MODEL} is {state.replace('_', '-')}: {soon}."
    return Health(up=False, latency_ms=_state.health.latency_ms, error=error)


def forget_health() -> None:
    """And what the breakers counted."""
    _state.health = Health()
    _state.breakers.clear()


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 2)


def _forget_engine(*, setting: str, **kwargs: object) -> None:
    if setting in ("GEMINI_API_KEY", "GEMINI_BASE_URL", "WEB_THREADS"):
        _engine.cache_clear()
    if setting.startswith(("WHISPER_", "USE_WHISPER", "GEMINI_", "WEB_THREADS")):
        _ears.cache_clear()
    if setting in ("GEMINI_API_KEY", "GEMINI_BASE_URL", "WEB_THREADS"):
        forget_health()


setting_changed.connect(_forget_engine)
