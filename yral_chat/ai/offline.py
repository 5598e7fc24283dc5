"""The embedded engine for development without a key, where the same question always gets the same answer; and the
failure simulator, which answers in a model's place in development and staging."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import BinaryIO

from django.conf import settings

from yral_chat.ai import Blob, Deadline, ModelRefused, ModelUnavailable, Prompt, Reply, Tally, UnusableAnswer, Usage

ANSWERS = (
    "I heard you say “{said}”. With a model key I would answer that in my own words.",
    "“{said}” is a good start. Set GEMINI_API_KEY and I will tell you what I really think.",
    "Let us talk about “{said}” as soon as a real model stands behind me.",
)
WORDS = re.compile(r"\S+\s*")
PACE = 0.02  # seconds between the words of a stream


class Offline:
    provider = "offline"

    def generate(self, prompt: Prompt, model: str, deadline: Deadline, tally: Tally) -> Reply:
        tally.attempts += 1
        return counted(answer_to(prompt), prompt, deadline, tally)

    def stream(self, prompt: Prompt, model: str, deadline: Deadline, tally: Tally) -> Iterator[str | Reply]:
        reply = self.generate(prompt, model, deadline, tally)
        for word in WORDS.findall(reply.text):
            yield word
            wait(PACE, deadline)
        yield reply

    def transcribe(
        self, audio: BinaryIO, *, mime_type: str, extension: str, deadline: Deadline, tally: Tally | None = None
    ) -> str:
        if tally:
            tally.model = "offline"
        return f"[offline] a voice note ({mime_type})"


def answer_to(prompt: Prompt) -> str:
    parts = prompt.contents[-1].parts if prompt.contents else ()
    pictures = sum(isinstance(part, Blob) for part in parts)
    said = next((part for part in reversed(parts) if isinstance(part, str)), f"{pictures} picture(s)")
    short = said if len(said) <= 80 else said[:79] + "…"
    answer = ANSWERS[sha256(said.encode()).digest()[0] % len(ANSWERS)].format(said=short)
    return f"[offline] {prompt.persona_name or 'The persona'} here. {answer}"


def counted(text: str, prompt: Prompt, deadline: Deadline, tally: Tally) -> Reply:
    """With tokens that are about as many as a model would count."""
    output, asked = len(text) // 4, len(prompt.system_instruction) // 4
    tally.model = "offline"
    tally.usage += Usage(prompt=asked, output=output, total=asked + output)
    tally.heard()
    deadline.heard()
    return Reply(text=text, model="offline", provider=Offline.provider, token_count=output)


def wait(seconds: float, deadline: Deadline) -> None:
    """Raises Stopped if the turn is, and ModelUnavailable if its time is over before."""
    left = deadline.seconds_left()
    deadline.pause(max(0.0, min(seconds, left)))
    deadline.check()
    if seconds >= left:
        raise ModelUnavailable("the model took too long")


# The failure simulator

EMOJI = (
    "Sure 👍🏽 – the whole family 👨‍👩‍👧‍👦 is here, from 🇮🇳 to 🇧🇷, with a rainbow flag 🏳️‍🌈 and keycaps 1️⃣2️⃣3️⃣. "
    "नमस्ते, आप कैसे हैं? क्षत्रिय, श्री, हिन्दी। 👩🏿‍🚀🧑🏻‍🤝‍🧑🏾 Zalgo: e̸̡̛͓̔. The end ❤️‍🔥"
)
MARKDOWN = """# Your plan

A week of **strong** mornings, and *one* rest day. See [the table](https://example.com/plan).

1. Warm up for 5 minutes
2. Squats, `3 × 12`
   - keep your back straight
   - breathe out on the way up

| Day | What | Minutes |
|-----|------|--------:|
| Mon | Legs | 30 |
| Tue | Rest | 0 |

> Slow is smooth, smooth is fast.

```python
def reps(week: int) -> int:
    return 10 + 2 * week  # <b>not HTML</b>
```"""
LONG = "\n\n".join(
    f"{number}. This is a long answer, and paragraph {number} of it: it wraps over many lines of a phone, scrolls out "
    "of sight, and shows whether your screen stays at its end while text still comes in."
    for number in range(1, 41)
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What the model does: `says` is of the documentation. `first` and `whole` are shares of the time that a model has,
    before the first word and for all of them; after `words` words it fails with `error`, or turns out `blocked`."""

    says: str
    text: str = ""
    first: float = 0.0
    whole: float = 0.0
    words: int | None = None
    error: type[Exception] | None = None
    retry_after: int = 5
    blocked: bool = False
    piece: int = 0  # characters that come at once; 0: a word


SCENES = {
    "slow": Scene("the answer takes a third of the model's time, its words come one by one", whole=0.33),
    "slow_first_token": Scene("nothing comes for 40 % of the model's time, then all", first=0.4),
    "blocked": Scene(
        "a safety filter stops the answer: the persona changes the subject, `blocked`", blocked=True, words=0
    ),
    "blocked_mid_stream": Scene("it stops it after five words: BLOCKED_CONTENT in a stream", blocked=True, words=5),
    "empty": Scene("the answer holds no text: 503, TRANSIENT in a stream", error=UnusableAnswer, words=0),
    "quota": Scene(
        "the model answers 429: 503 with Retry-After: 30, TRANSIENT in a stream",
        error=ModelUnavailable,
        words=0,
        retry_after=30,
    ),
    "down_then_ok": Scene(
        "the first try of a message is 503, TRANSIENT in a stream; the same message sent again is answered",
        error=ModelUnavailable,
        words=0,
    ),
    "down": Scene("no model answers: 503, TRANSIENT in a stream", error=ModelUnavailable, words=0),
    "refused": Scene("the model refuses the service's key: 503, NO_PROVIDER in a stream", error=ModelRefused, words=0),
    "cut_mid_stream": Scene(
        "the connection breaks after five words: TRANSIENT in a stream, else 503", error=ModelUnavailable, words=5
    ),
    "timeout": Scene("nothing comes until the time is over: 503, TRANSIENT in a stream", first=2.0),
    "crash": Scene("a fault of the service itself: 500, UNKNOWN in a stream", error=RuntimeError, words=0),
    "emoji": Scene("emoji, flags and Devanagari that must not be cut in the middle", text=EMOJI, piece=3),
    "long": Scene("a long answer of 40 paragraphs", text=LONG, piece=40),
    "markdown": Scene("headings, lists, a table, a quotation and code", text=MARKDOWN),
}


class Simulator(Offline):
    """Plays one of SCENES."""

    def __init__(self, name: str) -> None:
        self.name, self.scene = name, SCENES[name]

    def generate(self, prompt: Prompt, model: str, deadline: Deadline, tally: Tally) -> Reply:
        *_, reply = self._played(prompt, deadline, tally, pace=0.0)
        assert isinstance(reply, Reply)
        return reply

    def stream(self, prompt: Prompt, model: str, deadline: Deadline, tally: Tally) -> Iterator[str | Reply]:
        return self._played(prompt, deadline, tally, pace=PACE)

    def transcribe(
        self, audio: BinaryIO, *, mime_type: str, extension: str, deadline: Deadline, tally: Tally | None = None
    ) -> str:
        """A model that is down doesn't hear either."""
        if self.scene.error and self.scene.words == 0 and self.name != "down_then_ok":
            raise self._failure()
        return super().transcribe(audio, mime_type=mime_type, extension=extension, deadline=deadline, tally=tally)

    def _played(self, prompt: Prompt, deadline: Deadline, tally: Tally, pace: float) -> Iterator[str | Reply]:
        scene, time = self.scene, settings.GEMINI_TIMEOUT_SECONDS
        was_down = self.name == "down_then_ok" and tally.earlier_attempts > 0
        tally.attempts, tally.model = tally.attempts + 1, "offline"
        wait(scene.first * time, deadline)
        text = scene.text or answer_to(prompt)
        pieces = [text[at : at + scene.piece] for at in range(0, len(text), scene.piece)] if scene.piece else []
        pieces = pieces or WORDS.findall(text)
        last = None if was_down else scene.words
        for piece in pieces[:last]:
            tally.heard()
            yield piece
            wait(max(pace, scene.whole * time / len(pieces)), deadline)
            deadline.heard()
        if scene.error and not was_down:
            raise self._failure()
        reply = counted(text, prompt, deadline, tally)
        yield Reply("", "offline", self.provider, blocked=True, finish_reason="SAFETY") if scene.blocked else reply

    def _failure(self) -> Exception:
        error = (self.scene.error or RuntimeError)(f"the failure simulator plays {self.name}")
        if isinstance(error, ModelUnavailable | UnusableAnswer):
            error.retry_after = self.scene.retry_after
        return error
