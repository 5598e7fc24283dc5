"""A phone's end of an event stream."""

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from conversations.turns import NUMBERS
from tests.servers import Server

LOST = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Event:
    question: str
    number: int
    kind: str
    data: dict[str, Any]


@dataclass
class Tape:
    """The events of one question as one phone got them, over all its connections."""

    question: str = ""
    texts: dict[int, str] = field(default_factory=dict)
    last: int = 0
    wrong: list[str] = field(default_factory=list)

    def begin(self, question: str, after: int) -> None:
        self.question, self.last = question, after

    def add(self, event: Event) -> None:
        if event.question != self.question or event.number <= self.last:
            self.wrong.append(f"event {event.question}/{event.number} after {self.question}/{self.last}")
        if event.kind == "token":
            if event.number != self.last + 1 and event.number % NUMBERS != 1:
                self.wrong.append(f"token {event.number} came after {self.last}")
            known = self.texts.setdefault(event.number, event.data["text"])
            if known != event.data["text"]:
                self.wrong.append(f"token {event.number} was {known!r} and then {event.data['text']!r}")
        self.last = event.number

    def text_before(self, number: int) -> str:
        """Of the attempt that the event of this number ended."""
        start = (number - 1) // NUMBERS * NUMBERS
        return "".join(self.texts.get(place, f"<{place} is missing>") for place in range(start + 1, number))


@contextmanager
def opened(
    server: Server, method: str, path: str, body: Any, user: str, patience: float, headers: dict[str, str]
) -> Iterator[http.client.HTTPResponse]:
    connection, response = replace(server, patience=patience).request(method, path, body, user, **headers)
    try:
        with response:
            yield response
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Till the stream's clean end; one that is cut raises one of LOST, which readline() would take for an end."""
    unread = b""
    while data := response.read1():
        *frames, unread = (unread + data).split(b"\n\n")
        yield from (_event(frame.decode()) for frame in frames if not frame.startswith(b":"))


def _event(frame: str) -> Event:
    fields = dict(line.split(": ", maxsplit=1) for line in frame.splitlines())
    question, _, number = fields["id"].partition("/")
    return Event(question, int(number), fields["event"], json.loads(fields["data"]))
