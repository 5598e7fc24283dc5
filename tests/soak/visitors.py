"""Phones on an ordinary day: nothing fails, so each failure counts. They send pictures and voice notes as well."""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from PIL import Image

from tests.conversations.media import is_transcription, sound
from tests.fake_gemini import Answer, Asked, says
from tests.media_uploads.conftest import UPLOAD, form
from tests.servers import Got
from tests.soak.fleet import Servers
from tests.soak.ledger import STREAMS, Chat, Ledger, Note
from tests.soak.phones import Phone
from tests.soak.stream import Event
from tests.soak.times import Times
from tests.soak.weather import Weather, is_stream

HEARD = "Can you plan my week?"
SECONDS = 3  # of a voice note
MULTIPART = {"Content-Type": "multipart/form-data; boundary=frontier"}
HABITS = {(None, None): 85, (3, None): 10, (None, 2): 5}  # (hang up, stop) after so many events


class Thinking:
    """As FakeGemini.chooses: a model that is well, and takes its time."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.words, self.seconds = Weather(seed), seconds
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Answer:
        with self._lock:
            if is_transcription(asked):
                self.seen["transcription"] += 1
                heard = says(HEARD)
                heard.delay = self.seconds
                return heard
            self.seen["stream" if is_stream(asked) else "answer"] += 1
            return self.words.answer(asked, delay=self.seconds, pause=0.05)


class Visitor(Phone):
    def __init__(self, name: str, seed: int, chats: list[Chat], fleet: Servers, ledger: Ledger, times: Times) -> None:
        super().__init__(name, seed, chats, fleet, ledger)
        self.times = times

    def live(self) -> None:
        """First as many pictures to each conversation as the model is shown at once: then turns cost the same."""
        for chat in [chat for chat in self.chats for _ in range(settings.CONTEXT_IMAGES)]:
            if not self.off.is_set():
                self.show_a_picture(chat)
        super().live()

    def _act(self) -> Callable[[Chat], Any]:
        acts: dict[Callable[[Chat], Any], float] = {
            self.write: 50,
            self.show_a_picture: 6,
            self.speak: 4,
            self.page: 8,
            self.look_around: 8,
            self.browse: 5,
            self.start_afresh: 5,
            self.regenerate: 4,
            self.repeat: 3,
        }
        return self.rng.choices(list(acts), list(acts.values()))[0]

    def show_a_picture(self, chat: Chat) -> None:
        if key := self.upload(photo(self.rng.randrange(4)), "image"):
            note = self._note(chat)
            note.client_message_id = note.client_message_id or f"cid-{note.content[:17]}"
            note.extra |= {"message_type": "multimodal", "media_urls": [key]}
            self.deliver(note)

    def speak(self, chat: Chat) -> None:
        """What is stored is what was heard, and the caption. Its writer can't look for that, and so has a key."""
        if key := self.upload(sound(SECONDS), "audio"):
            note = self._note(chat)
            note.client_message_id = note.client_message_id or f"cid-{note.content[:17]}"
            said = {"content": note.content, "audio_url": key, "audio_duration_seconds": SECONDS}
            note.extra |= {"message_type": "audio", **said}
            note.content = f"[Transcribed: {HEARD}]\n{note.content}"
            self.deliver(note)

    def upload(self, data: bytes, kind: str) -> str | None:
        """Its key. It's looked at at once, as the apps do."""
        got = self.call("POST", UPLOAD, form(data, kind), headers=MULTIPART)
        self.ledger.count("upload", self._status(self.chats[0], got))
        if got is None or got.status != 200:
            return None
        address = urlsplit(got.json()["url"])
        seen = self.call("GET", f"{address.path}?{address.query}")
        self.ledger.count("look at it", self._status(self.chats[0], seen))
        return str(got.json()["storage_key"])

    def browse(self, chat: Chat) -> None:
        self.ledger.count("personas", self._status(chat, self.call("GET", "/api/v1/influencers")))

    # What is measured, and what mustn't happen on such a day

    def call(
        self, method: str, path: str, body: Any = None, patience: float = 60.0, headers: dict[str, str] | None = None
    ) -> Got | None:
        began = time.monotonic()
        got = super().call(method, path, body, patience, headers)
        seconds = time.monotonic() - began
        if got is None and seconds < patience - 0.1:
            self.ledger.complain(f"{method} {path} was cut off after {seconds:.2f} s")
        if got is not None and got.status < 300:
            self.times.add(kind_of(method, path, body), seconds)
        return got

    def _send_somehow(self, note: Note) -> str:
        if note.question in self.tapes and self.rng.random() < 0.5:
            return self.follow(note)
        if self.rng.random() < 0.5:
            return self.send(note)
        return self.stream(note, *self.rng.choices(list(HABITS), list(HABITS.values()))[0])

    def stream(self, note: Note, leave_after: int | None = None, stop_after: int | None = None) -> str:
        self.began = time.monotonic()
        outcome = super().stream(note, leave_after, stop_after)
        if outcome == "answered" and not note.extra:
            self.times.add("stream, to its end", time.monotonic() - self.began)
        return outcome

    def _with_breaks(self, note: Note, stream: Any, leave_after: int | None, stop_after: int | None) -> Any:
        for place, event in enumerate(super()._with_breaks(note, stream, leave_after, stop_after)):
            if place == 0 and event and event.kind == "token" and len(note.sent_at) == 1 and not note.extra:
                self.times.add("stream, to its first word", time.monotonic() - self.began)
            yield event

    def _failed(self, note: Note, event: Event) -> str:
        if not note.chat.may_vanish:
            self.ledger.complain(f"a stream failed: {event}", STREAMS)
        return super()._failed(note, event)

    def _status(self, chat: Chat, got: Got | None, fine: int = 200) -> str:
        outcome = super()._status(chat, got, fine)
        if outcome == "down":
            assert got is not None
            if got.status == 503:  # of the others it has complained
                self.ledger.complain(f"a call in {chat.id} was answered 503: {got.content[:300]!r}")
        return outcome


@cache
def photo(number: int) -> bytes:
    """Some 150 kB, as a phone's pictures are after the app made them smaller."""
    written = io.BytesIO()
    Image.effect_noise((800, 600), 40 + 10 * number).convert("RGB").save(written, "JPEG", quality=40)
    return written.getvalue()


def kind_of(method: str, path: str, body: Any) -> str:
    """As a reader of the report would call it."""
    parts = urlsplit(path).path.removeprefix("/api/v1/").split("/")
    match method, parts:
        case "POST", ["media", "upload"]:
            return "upload a voice note" if b"WAVE" in body[:300] else "upload a picture"
        case "GET", ["", "media", *_]:
            return "fetch a file"
        case "GET", ["influencers"]:
            return "list personas"
        case "GET", ["chat", "conversations"]:
            return "list conversations"
        case "POST", ["chat", "conversations"]:
            return "open a conversation"
        case "DELETE", _:
            return "delete a conversation"
        case "GET", [*_, "messages"]:
            return "page of messages"
        case "POST", [*_, "messages"]:
            return {"audio": "send a voice note", "multimodal": "send a picture"}.get(body["message_type"], "send")
    return parts[-1]  # regenerate, stop
