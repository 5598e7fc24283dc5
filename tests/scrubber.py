"""Looks for what must never be seen, in everything that the suite logs, counts and answers.

conftest.py hangs it into the root logger for the whole run. A test in which something was found fails.
"""

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.test import Client

from tests.fake_gemini import REPLY
from yral_chat.log import LineFormatter

CANARY = "CANARY-7f3a-never-shown-to-users"
PATTERNS = {
    "a persona's prompt": re.compile(rf"{re.escape(CANARY)}|on Yral\. Your character:"),  # the latter: fixtures/
    "the model's key": re.compile("test-key-that-must-never-be-logged|AIza-canary"),
    "a token": re.compile(r"eyJ[\w-]{8,}\.[\w-]{8,}"),
    "a signed address": re.compile(r"(?i)[?&](x-amz-)?signature=[\w%-]{8,}"),
    "a secret of the settings": re.compile("only-for-the-tests|the-secret-key-of-the-servers"),
    "an answer's text": re.compile(re.escape(REPLY)),
}
SHORTEST = 10  # characters; shorter messages ("one", "Hello!") are words that a line may hold by chance


@dataclass
class Scrubber:
    """`said` holds what users wrote in the test that runs."""

    found: list[str] = field(default_factory=list)
    said: set[str] = field(default_factory=set)
    lines: int = 0

    def heard(self, content: object) -> set[str]:
        """A user's message. It's returned if it is one to look for."""
        text = content.strip() if isinstance(content, str) else ""
        heard = {text} if len(text) >= SHORTEST and text.isprintable() else set()
        self.said |= heard
        return heard

    def look_at(self, text: str, where: str, also: Iterable[str] = ()) -> None:
        """Logs and metrics: none of it may be there, nor what else was said."""
        self._look(text, where, PATTERNS)
        for message in {*self.said, *also}:  # others may still be talking
            self._note("a message's text", where, text, text.find(message))

    def look_at_answer(self, content: bytes, where: str) -> None:
        """What anybody but staff is answered: it may hold messages and signed links, but no prompt and no key."""
        self._look(content.decode(errors="replace"), where, ("a persona's prompt", "the model's key"))

    def _look(self, text: str, where: str, kinds: Iterable[str]) -> None:
        self.lines += 1
        for kind in kinds:
            if match := PATTERNS[kind].search(text):
                self._note(kind, where, text, match.start())

    def _note(self, kind: str, where: str, text: str, at: int) -> None:
        if at >= 0:
            self.found.append(f"{kind} in {where}: {text[max(0, at - 100) : at + 200]}")

    def take(self) -> list[str]:
        """What was found since the last time."""
        found, self.found = self.found, []
        self.said.clear()
        return found


@contextmanager
def answers_looked_at() -> Iterator[None]:
    """Each answer and stream that Django's test client gets; but for the admin's, where staff read prompts."""
    request = Client.request

    def looked_at(client: Client, **environ: Any) -> Any:
        response: Any = request(client, **environ)
        path = environ["PATH_INFO"]
        if path.startswith(f"/{settings.ADMIN_PATH}"):
            return response
        if not response.streaming:
            scrubber.look_at_answer(response.content, f"the answer to {path}")
        elif response.get("Content-Type", "").startswith("text/event-stream"):
            response.streaming_content = heard_out(response.streaming_content, path)
        return response

    def heard_out(pieces: Iterable[bytes], path: str) -> Iterator[bytes]:
        seen = b""
        for piece in pieces:
            seen += piece
            yield piece
        scrubber.look_at_answer(seen, f"the stream of {path}")

    Client.request = looked_at  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        Client.request = request  # type: ignore[method-assign]


class Watcher(logging.Handler):
    """Each record, as both formats would have it."""

    def __init__(self, scrubber: Scrubber) -> None:
        super().__init__()
        self.scrubber = scrubber
        self.formatters = [LineFormatter("json"), LineFormatter("text")]

    def emit(self, record: logging.LogRecord) -> None:
        for formatter in self.formatters:
            self.scrubber.look_at(formatter.format(record), f"a line of {record.name}")


scrubber = Scrubber()
