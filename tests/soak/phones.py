"""The clients: they send, listen, hang up, come back, stop, ask for another answer, and send again what got lost."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tests.servers import CHATS, Got
from tests.soak.fleet import Servers
from tests.soak.ledger import STREAMS, Chat, Ledger, Note
from tests.soak.stream import LOST, Event, Tape, events, opened

PATIENCE = 30.0  # seconds that an app waits for any answer
OVER = ("answered", "stopped", "withdrawn", "gone")
UNSURE = ("lost", "left", "busy")  # it may be stored, or answered by now
HABITS = {(None, None): 50, (3, None): 25, (None, 2): 12, (0, None): 8, (None, 0): 5}  # (hang up, stop) after events
SAYINGS = ("How are you?", "क्या हाल है? 👩‍👩‍👧‍👦", "Tell me more,\nplease.", "80", "🇮🇳 और बताओ")


class Phone:
    def __init__(self, name: str, seed: int, chats: list[Chat], fleet: Servers, ledger: Ledger) -> None:
        """`chats` is a list that all phones of the user have."""
        self.rng = random.Random(f"{name}-{seed}")
        self.user, self.chats, self.fleet, self.ledger = chats[0].user, chats, fleet, ledger
        self.tapes: dict[str, Tape] = {}
        self.finished: dict[str, Note] = {}  # the last of each conversation
        self.off = threading.Event()

    def live(self) -> None:
        """Till it's switched off."""
        while not self.off.is_set():
            chat = self.rng.choice(self.chats)
            self._act()(chat)
            self.off.wait(self.rng.uniform(0, 0.4))

    def _act(self) -> Callable[[Chat], Any]:
        acts: dict[Callable[[Chat], Any], float] = {
            self.write: 60,
            self.burst: 10,
            self.regenerate: 10,
            self.page: 6,
            self.repeat: 5,
            self.stop_something: 4,
            self.start_afresh: 4,
            self.repeat_wrongly: 3,
            self.look_around: 3,
        }
        return self.rng.choices(list(acts), list(acts.values()))[0]

    # What a phone does

    def write(self, chat: Chat) -> None:
        self.deliver(self._note(chat))

    def deliver(self, note: Note) -> None:
        """Send it in one way or another till it's over, or, if it is safe to come back to it later, a few times."""
        tries = 1000 if note.is_stored_once and not note.has_key else self.rng.randint(1, 8)
        sure = True
        for _ in range(tries):
            if self.off.is_set() or note.over:
                break
            outcome = self._send_somehow(note) if sure or note.has_key or not note.careful else self.come_back(note)
            wants_it_after_all = outcome == "stopped" and self.rng.random() < 0.5
            note.over = outcome in OVER and not wants_it_after_all
            sure = outcome not in UNSURE
            self.off.wait(self.rng.uniform(0, 0.6))
        self.finished[note.chat.id] = note

    def _send_somehow(self, note: Note) -> str:
        if note.question in self.tapes and self.rng.random() < 0.5 and (note.has_key or not note.careful):
            return self.follow(note)
        if self.rng.random() < 0.4:
            return self.send(note)
        leave_after, stop_after = self.rng.choices(list(HABITS), list(HABITS.values()))[0]
        return self.stream(note, leave_after, stop_after)

    def burst(self, chat: Chat) -> None:
        """The same several times at once. A copy without a key that comes after the answer is another message."""
        note = self._note(chat, careful=False)
        ways = self.rng.choices([self.send, self.stream], k=self.rng.randint(2, 5))
        with ThreadPoolExecutor(len(ways)) as pool:
            outcomes = list(pool.map(lambda way: way(note), ways))
        note.over = note.over or any(outcome in OVER for outcome in outcomes)
        self.finished[chat.id] = note

    def regenerate(self, chat: Chat) -> None:
        note = self.finished.get(chat.id)
        if note and note.question and note.over:
            got = self.call("POST", f"{chat.path}/{note.question}/regenerate")
            self.ledger.count("regenerate", self._outcome(note, got, known=("not_the_last_message",)))

    def stop_something(self, chat: Chat) -> None:
        """What another phone of the user has started, perhaps."""
        note = next((note for note in reversed(self.ledger.notes) if note.chat is chat and note.question), None)
        if note:
            self.stop(note)

    def repeat(self, chat: Chat) -> None:
        note = self.finished.get(chat.id)
        if note and note.has_key and note.over:
            got = self.call("POST", chat.path, note.body, headers=note.headers)
            self.ledger.count("repeat", self._outcome(note, got))

    def repeat_wrongly(self, chat: Chat) -> None:
        """The same key with other words is refused, and says which message has it."""
        note = self.finished.get(chat.id)
        if not (note and note.has_key and note.question):
            return
        got = self.call("POST", chat.path, {**note.body, "content": "Something else"}, headers=note.headers)
        outcome = self._outcome(note, got, known=("idempotency_mismatch",))
        if outcome != "idempotency_mismatch" and outcome not in ("lost", "gone"):
            self.ledger.complain(f"a key with other words was {outcome}")
        elif got and got.status == 409 and got.json()["details"]["message_id"] != note.question:
            self.ledger.complain(f"the key of {note.question} is said to be of {got.json()['details']['message_id']}")
        self.ledger.count("mismatch", outcome)

    def page(self, chat: Chat) -> None:
        """In order, whatever is added meanwhile."""
        seen: list[dict[str, Any]] = []
        while True:
            got = self.call("GET", f"{chat.path}?order=asc&limit=7&offset={len(seen)}")
            if got is None or got.status != 200:
                self.ledger.count("page", self._status(chat, got))
                return
            page = got.json()["messages"]
            seen += page
            if len(page) < 7 or len(seen) > 70:
                break
        moments = [one["created_at"] for one in seen]
        if moments != sorted(set(moments)) or len({one["id"] for one in seen}) < len(seen):
            self.ledger.complain(f"pages of {chat.id} are out of order or repeat a message")
        self.ledger.count("page", "answered")

    def look_around(self, chat: Chat) -> None:
        self.ledger.count("list", self._status(chat, self.call("GET", f"{CHATS}?limit=5")))
        opened_again = self.call("POST", CHATS, {"influencer_id": chat.influencer})
        self.ledger.count("open", self._status(chat, opened_again, 201))
        if opened_again and opened_again.status == 201 and opened_again.json()["id"] != chat.id and not chat.may_vanish:
            self.ledger.complain(f"{chat.id} was opened again as {opened_again.json()['id']}")

    def start_afresh(self, chat: Chat) -> None:
        """Delete it and open it again, as the apps do; several phones may be at it."""
        if not chat.may_vanish:
            return
        self.ledger.count("delete", self._status(chat, self.call("DELETE", f"{CHATS}/{chat.id}")))
        got = self.call("POST", CHATS, {"influencer_id": chat.influencer})
        self.ledger.count("open", self._status(chat, got, 201))
        if got and got.status == 201:
            place = next(place for place, one in enumerate(self.chats) if one.influencer == chat.influencer)
            self.chats[place] = replace(chat, id=got.json()["id"])

    # How it's done

    def send(self, note: Note) -> str:
        note.sent_at.append(time.time())
        got = self.call("POST", note.chat.path, note.body, self._patience(note), note.headers)
        return self.ledger.count("send", self._outcome(note, got))

    def stream(self, note: Note, leave_after: int | None = None, stop_after: int | None = None) -> str:
        note.sent_at.append(time.time())
        return self.ledger.count("stream", self._listen(note, Tape(), "POST", leave_after, stop_after))

    def follow(self, note: Note) -> str:
        tape = self.tapes.get(note.question or "", Tape())
        leave = self.rng.choice([None, None, None, 2])
        return self.ledger.count("follow", self._listen(note, tape, "GET", leave))

    def stop(self, note: Note) -> str:
        got = self.call("POST", f"{note.chat.path}/{note.question}/stop")
        if got and got.status == 200 and not got.json()["stopped"] and not got.json()["assistant_message"]:
            return self.ledger.count("stop", "was not answered")  # a turn that failed
        return self.ledger.count("stop", self._outcome(note, got))

    def come_back(self, note: Note) -> str:
        """A careful writer's look at what became of it: to its end if it is there."""
        if note.question is None:
            got = self.call("GET", f"{note.chat.path}?limit=50")
            if got is None or got.status != 200:
                return self.ledger.count("look", self._status(note.chat, got))
            found = [one["id"] for one in got.json()["messages"] if one["content"] == note.content]
            if not found:
                return self.ledger.count("look", "not there")
            self.ledger.asked(note, found[0])
        return self.follow(note)

    def _patience(self, note: Note) -> float:
        """Who has a key may hang up at any time and send it again."""
        return self.rng.uniform(0.3, 12) if note.has_key and self.rng.random() < 0.2 else 60.0

    def call(
        self, method: str, path: str, body: Any = None, patience: float = 60.0, headers: dict[str, str] | None = None
    ) -> Got | None:
        """None if the connection was lost."""
        began = time.monotonic()
        try:
            server = replace(self.fleet.any(self.rng), patience=patience)
            got = server.call(method, path, body, self.user, **(headers or {}))
        except LOST:
            got = None
        if time.monotonic() - began > PATIENCE:
            self.ledger.complain(f"{method} {path} took {time.monotonic() - began:.0f} s ({got and got.status})")
        return got

    def _listen(
        self, note: Note, tape: Tape, method: str, leave_after: int | None, stop_after: int | None = None
    ) -> str:
        chat, post = note.chat, method == "POST"
        path = f"{chat.path}/stream" if post else f"{chat.path}/{note.question}/stream"
        resumes = not post and tape.last > 0 and self.rng.random() < 0.8
        headers = note.headers if post else {"Last-Event-ID": f"{tape.question}/{tape.last}"} if resumes else {}
        request = method, path, note.body if post else None, self.user, self._patience(note)
        try:
            with opened(self.fleet.any(self.rng), *request, headers) as response:
                if response.status != 200:
                    return self._outcome(note, Got(response.status, dict(response.headers), response.read()))
                question = response.headers["X-Message-ID"]
                self.ledger.asked(note, question)
                self.tapes[question] = tape
                tape.begin(question, tape.last if resumes else 0)
                for event in self._with_breaks(note, events(response), leave_after, stop_after):
                    if event is None:
                        return "left"
                    tape.add(event)
                    if event.kind != "token":
                        return self._ended(note, tape, event)
                return self._ended_without_a_word(note, tape, headers)
        except LOST:
            return "lost"

    def _with_breaks(self, note: Note, stream: Any, leave_after: int | None, stop_after: int | None) -> Any:
        """The events, and None where the phone hangs up. The stop comes from another connection."""
        place = 0
        while True:
            if place == leave_after:
                yield None
            if place == stop_after:
                self.stop(note)
            event = next(stream, None)
            if event is None:
                return
            yield event
            place += 1

    def _ended(self, note: Note, tape: Tape, event: Event) -> str:
        for sentence in tape.wrong:
            self.ledger.complain(f"stream of {tape.question}: {sentence}", STREAMS)
        tape.wrong.clear()
        if event.kind == "error":
            return self._failed(note, event)
        self.ledger.answered(note, event.data)
        answer = event.data["assistant_message"]
        if answer and not answer["blocked"] and tape.text_before(event.number) != answer["content"]:
            text = tape.text_before(event.number)
            self.ledger.complain(f"stream of {tape.question}: its text {text!r} is not {answer['content']!r}", STREAMS)
        return "answered" if answer else "stopped"

    def _failed(self, note: Note, event: Event) -> str:
        code = event.data["code"]
        if code == "BLOCKED_CONTENT":
            note.over = True
            return "withdrawn"
        if code == "UNKNOWN" and not note.chat.may_vanish:
            self.ledger.complain(f"a stream failed on the service's side: {event}", STREAMS)
        return "failed"

    def _ended_without_a_word(self, note: Note, tape: Tape, headers: dict[str, str]) -> str:
        sentence = f"a stream of {tape.question} ended without done or error after {tape.last} ({headers})"
        self.ledger.complain(sentence, STREAMS)
        return "lost"

    def _outcome(self, note: Note, got: Got | None, known: tuple[str, ...] = ()) -> str:
        if got and got.status == 200:
            self.ledger.answered(note, got.json())
            return "answered" if got.json()["assistant_message"] else "stopped"
        if got and got.status == 409:
            reason = str(got.json()["details"]["reason"])
            if reason not in ("turn_in_progress", "stopped", *known):
                self.ledger.complain(f"{note.content!r} was refused: {got.content!r}")
            return {"turn_in_progress": "busy"}.get(reason, reason)
        return self._status(note.chat, got)

    def _status(self, chat: Chat, got: Got | None, fine: int = 200) -> str:
        if got is None:
            time.sleep(0.1)
            return "lost"
        if got.status == fine:
            return "answered"
        if got.status == 404 and chat.may_vanish:
            return "gone"
        if got.status != 503:
            self.ledger.complain(f"a call in {chat.id} was answered {got.status}: {got.content[:300]!r}")
        return "down"

    def _note(self, chat: Chat, careful: bool = True) -> Note:
        header, body = self.rng.choices([(0, 0), (1, 0), (0, 1), (1, 1)], [40, 25, 20, 15])[0]
        note = self.ledger.note(
            chat, self.rng.choice(SAYINGS), careful=careful and not (chat.shared or chat.may_vanish)
        )
        note.idempotency_key = f"key-{note.content[:17]}" if header else None
        note.client_message_id = f"cid-{note.content[:17]}" if body else None
        return note
