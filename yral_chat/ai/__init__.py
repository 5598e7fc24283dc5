"""The door to the models. Callers see these functions, dataclasses and errors, and no wire format.

    ModelError                 no answer; `retry_after` seconds until it's worth asking again
    ├── ModelUnavailable       down, overloaded, too slow, out of quota, or the key is refused
    └── UnusableAnswer         it answered with nothing that could be shown: empty, cut, malformed

A question or answer that a safety filter stopped is no error but a Reply with `blocked`.
"""

import threading
import time
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO, Protocol, cast

from django.conf import settings
from django.core.signals import setting_changed


class ModelError(Exception):
    retry_after = 5


class ModelUnavailable(ModelError):
    pass


class UnusableAnswer(ModelError):
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
    """What a model is sent. The first content is the user's and the roles alternate."""

    system_instruction: str
    contents: tuple[Content, ...]
    persona_name: str = ""
    model: str = ""
    temperature: float | None = None
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """`text` is never blank unless `blocked`. `token_count` is of the answer alone, by the model's own count."""

    text: str
    model: str
    blocked: bool = False
    finish_reason: str = "STOP"
    token_count: int | None = None


@dataclass(slots=True)
class Health:
    """How the last call went, as far as this process knows. Asking never costs a call."""

    up: bool = True
    latency_ms: float = 0.0
    error: str | None = None


class Engine(Protocol):
    def generate(self, prompt: Prompt, deadline: float) -> Reply: ...


class Ears(Protocol):
    def transcribe(self, audio: BinaryIO, *, mime_type: str, extension: str, deadline: float) -> str: ...


@dataclass(slots=True)
class _State:
    health: Health = field(default_factory=Health)
    lock: threading.Lock = field(default_factory=threading.Lock)


_state = _State()


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
    with _state.lock:
        _engine()
        _ears()


def generate_reply(prompt: Prompt, *, deadline: float) -> Reply:
    """Ask the model, with retries, until `deadline` (of time.monotonic). Raises ModelError."""
    started = time.monotonic()
    try:
        reply = _engine().generate(prompt, deadline)
    except ModelUnavailable as exc:
        _state.health = Health(up=False, latency_ms=_ms_since(started), error=str(exc))
        raise
    _state.health = Health(latency_ms=_ms_since(started))
    return reply


def transcribe(audio: BinaryIO, *, mime_type: str, extension: str, deadline: float) -> str:
    """What is said in a sound, never blank. Raises ModelError."""
    return _ears().transcribe(audio, mime_type=mime_type, extension=extension, deadline=deadline)


def health() -> Health:
    return _state.health


def forget_health() -> None:
    _state.health = Health()


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
