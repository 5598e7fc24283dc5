"""What the model does: mostly its work, and every fault that it is known for."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.fake_gemini import Answer, Asked, blocks, fails, says, streams

WORDS = (
    "small",
    "steps",
    "नमस्ते",
    "क्या",
    "👩‍👩‍👧‍👦",
    "🇮🇳🇫🇷",
    "e\u0301tude",
    "keep",
    "going,",
    "every\nday",
    "👍🏽",
    "ठीक",
    "हाँ।",
)
STORM_EVERY, STORM_LASTS = 40.0, 6.0  # seconds: then the circuit breakers open


class Weather:
    """As FakeGemini.chooses. An answer begins with the first word of its question, so that a mix-up shows."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"weather-{seed}")
        self.seen: Counter[str] = Counter()
        self.calm = False
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def __call__(self, asked: Asked) -> Answer:
        with self._lock:
            kind = self._kind()
            self.seen[kind] += 1
            return KINDS[kind](self, asked)

    def _kind(self) -> str:
        if self.calm:
            return "fine"
        if (time.monotonic() - self._began) % STORM_EVERY > STORM_EVERY - STORM_LASTS and self.rng.random() < 0.9:
            return "503"
        return self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]

    def fine(self, asked: Asked) -> Answer:
        return self.answer(asked, delay=self.rng.uniform(0.05, 0.5), pause=self.rng.uniform(0.0, 0.12))

    def slow(self, asked: Asked) -> Answer:
        return self.answer(asked, delay=self.rng.uniform(1, 4), pause=self.rng.uniform(0.1, 0.5))

    def stalled(self, asked: Asked) -> Answer:
        """Between two chunks, for longer than the service waits."""
        return self.answer(asked, delay=0.1, pause=5.0)

    def cut(self, asked: Asked) -> Answer:
        if not is_stream(asked):
            return Answer(drop=True, delay=0.1)
        return self.answer(asked, delay=0.1, pause=0.05, cut_after=self.rng.randint(0, 6))

    def withdrawn(self, asked: Asked) -> Answer:
        return self.answer(asked, delay=0.1, pause=0.05, finish="SAFETY")

    def answer(
        self,
        asked: Asked,
        *,
        delay: float,
        pause: float = 0.0,
        cut_after: int | None = None,
        finish: str = "STOP",
    ) -> Answer:
        words = [asked.question.split(maxsplit=1)[0], *self.rng.choices(WORDS, k=self.rng.randint(3, 30))]
        text = " ".join(words)
        if not is_stream(asked):
            answer = says(text, finish=finish)
            answer.delay = delay
            return answer
        return streams(*self._pieces(text), finish=finish, delay=delay, pause=pause, cut_after=cut_after)

    def _pieces(self, text: str) -> list[str]:
        """Cut anywhere, as tokens are: also inside what a reader sees as one character."""
        cuts = sorted({0, len(text), *(self.rng.randrange(1, len(text)) for _ in range(self.rng.randint(2, 10)))})
        return [text[start:end] for start, end in zip(cuts, cuts[1:], strict=False)]


def is_stream(asked: Asked) -> bool:
    return ":streamGenerateContent" in asked.path


KINDS: dict[str, Callable[[Weather, Asked], Answer]] = {
    "fine": Weather.fine,
    "slow": Weather.slow,
    "503": lambda *_: fails(503),
    "429": lambda *_: fails(429),
    "400": lambda *_: fails(400),
    "empty": lambda *_: says("", finish="MAX_TOKENS"),
    "malformed": lambda *_: Answer(b"<html>"),
    "cut": Weather.cut,
    "stalled": Weather.stalled,
    "dropped": lambda *_: Answer(drop=True),
    "hanging": lambda *_: Answer(drop=True, delay=9.0),
    "blocked": lambda *_: blocks(),
    "withdrawn": Weather.withdrawn,
}
WEIGHTS = {
    "fine": 60,
    "slow": 10,
    "503": 7,
    "429": 4,
    "400": 1.5,
    "empty": 4,
    "malformed": 1,
    "cut": 5,
    "stalled": 1,
    "dropped": 4,
    "hanging": 2,
    "blocked": 3,
    "withdrawn": 2,
}
