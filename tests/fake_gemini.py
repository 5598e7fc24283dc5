"""A real HTTP server that speaks as much of Google's Gemini REST API as the service uses.

`answers` are used up one a request; then comes the default, or what `chooses` picks by the question. What was asked is
in `requests`.
"""

import json
import socket
import struct
import sys
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
    # Of a stream: what comes, a gate before each chunk, seconds between two, and after how many the line is cut
    chunks: list[Any] | None = None
    gate: Callable[[int], None] | None = None
    pause: float = 0.0
    cut_after: int | None = None


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


def streams(*texts: str, finish: str = "STOP", **fields: Any) -> Answer:
    """Chunk by chunk; each tells the usage so far, as Google's do."""
    chunks = []
    for number, text in enumerate(texts, start=1):
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        if number == len(texts) and finish:
            candidate["finishReason"] = finish
        usage = {"promptTokenCount": 40, "candidatesTokenCount": 4 * number, "totalTokenCount": 40 + 4 * number}
        chunks.append({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-2.5-flash"})
    return Answer(chunks=chunks, **fields)


def fails(status: int, message: str = "Simulated failure.") -> Answer:
    return Answer({"error": {"code": status, "message": message, "status": "FAILED"}}, status=status)


def blocks() -> Answer:
    return Answer({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {"promptTokenCount": 40}})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """That a caller is gone is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@dataclass
class FakeGemini:
    answers: deque[Answer] = field(default_factory=deque)
    default: Answer = field(default_factory=lambda: says(REPLY))
    requests: list[Asked] = field(default_factory=list)
    chooses: Callable[[Asked], Answer] | None = None
    hung_up: int = 0  # streams whose reader went away

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
            self.hung_up = 0

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
                raw = self.rfile.read(length := int(self.headers["Content-Length"]))
                if len(raw) < length:  # the caller is gone
                    self.close_connection = True
                    return
                answer = fake._take(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(raw)))
                if answer.before:
                    answer.before()
                time.sleep(answer.delay)
                if answer.drop:
                    self._reset()
                else:
                    self._send(answer)

            def _send(self, answer: Answer) -> None:
                if answer.status == 200 and ":streamGenerateContent" in self.path:
                    self._stream(answer)
                    return
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                headers = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                head = f"HTTP/1.1 {answer.status} Simulated\r\n{headers}"
                try:
                    self._write(head.encode(), answer.trickle_head)
                    self._write(data, answer.trickle)
                except (BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
                    self.close_connection = True

            def _stream(self, answer: Answer) -> None:
                """An answer that is whole comes as one chunk."""
                chunks = [answer.body] if answer.chunks is None else answer.chunks
                head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                self.close_connection = True
                try:
                    self._write(head.encode(), 0)
                    for number, chunk in enumerate(chunks):
                        if answer.gate:
                            answer.gate(number)
                        if number == answer.cut_after:
                            self._reset()
                            return
                        time.sleep(answer.pause if number else 0)
                        data = chunk if isinstance(chunk, bytes) else b"data: %s\r\n\r\n" % json.dumps(chunk).encode()
                        self._write(b"%x\r\n%s\r\n" % (len(data), data), 0)
                    if answer.cut_after is not None and answer.cut_after >= len(chunks):
                        self._reset()
                    else:
                        self._write(b"0\r\n\r\n", 0)
                except OSError:  # nobody listens any more
                    fake.hung_up += 1

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
