"""A real HTTP server that speaks as much of Google's Gemini REST API as the service uses.

`answers` are used up one a request; then comes the default, or what `chooses` picks by the question. What was asked is
in `requests`.
"""

import json
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPLY = "Start small, keep it regular, and tell me how it went."


@dataclass
class Answer:
    """One answer: a JSON body (or raw bytes) with a status, after `delay` seconds, or a dropped connection.

    `trickle` and `trickle_head` are the seconds between two bytes of the body and of the headers.
    """

    body: Any = None
    status: int = 200
    delay: float = 0.0
    drop: bool = False
    trickle: float = 0.0
    trickle_head: float = 0.0
    before: Callable[[], None] | None = None


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def texts(self) -> list[tuple[str, list[str]]]:
        """(role, texts) of the contents."""
        return [(c["role"], [p.get("text", "") for p in c["parts"]]) for c in self.body["contents"]]

    @property
    def system(self) -> str:
        return str(self.body["systemInstruction"]["parts"][0]["text"])

    @property
    def question(self) -> str:
        return self.texts[-1][1][-1]


def says(text: str, *, finish: str = "STOP", tokens: int | None = 12, thought: str = "") -> Answer:
    parts = [{"text": thought, "thought": True}] if thought else []
    parts += [{"text": text}] if text else []
    usage: dict[str, Any] = {"promptTokenCount": 40, "totalTokenCount": 52}
    if tokens is not None:
        usage["candidatesTokenCount"] = tokens
    candidate = {"content": {"role": "model", "parts": parts}, "finishReason": finish, "index": 0}
    return Answer({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"})


def fails(status: int, message: str = "Simulated failure.") -> Answer:
    return Answer({"error": {"code": status, "message": message, "status": "FAILED"}}, status=status)


def blocks() -> Answer:
    return Answer({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 40}})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@dataclass
class FakeGemini:
    answers: deque[Answer] = field(default_factory=deque)
    default: Answer = field(default_factory=lambda: says(REPLY))
    requests: list[Asked] = field(default_factory=list)
    chooses: Callable[[Asked], Answer] | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def will(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    def reset(self) -> None:
        with self.lock:
            self.answers.clear()
            self.requests.clear()
            self.default = says(REPLY)
            self.chooses = None

    @property
    def last(self) -> Asked:
        return self.requests[-1]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _take(self, asked: Asked) -> Answer:
        with self.lock:
            self.requests.append(asked)
            if self.answers:
                return self.answers.popleft()
            return self.chooses(asked) if self.chooses else self.default

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                answer = fake._take(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(raw)))
                if answer.before:
                    answer.before()
                time.sleep(answer.delay)
                if answer.drop:
                    self._reset()
                else:
                    self._send(answer)

            def _send(self, answer: Answer) -> None:
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                headers = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                head = f"HTTP/1.1 {answer.status} Simulated\r\n{headers}"
                try:
                    self._write(head.encode(), answer.trickle_head)
                    self._write(data, answer.trickle)
                except (BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
                    self.close_connection = True

            def _write(self, data: bytes, pause: float) -> None:
                for piece in [data[n : n + 1] for n in range(len(data))] if pause else [data]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(pause)

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
