"""A real HTTP server that speaks as much of OpenAI's transcription API as the service uses.

`answers` are used up one a request; then comes `default`. What was asked is in `requests`.
"""

import json
import re
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TRANSCRIPT = "Can you plan my week?"
PATH = "/v1/audio/transcriptions"


@dataclass
class Answer:
    """A JSON body (or raw bytes) with a status, after `delay` seconds, or a connection that is reset (`drop`).

    `trickle` are the seconds between two bytes of the answer, `reads_slowly` those between two reads of the request;
    `unread` answers without reading it.
    """

    body: Any = None
    status: int = 200
    delay: float = 0.0
    trickle: float = 0.0
    drop: bool = False
    unread: bool = False
    reads_slowly: float = 0.0


@dataclass
class Part:
    name: str
    content: bytes
    filename: str = ""
    content_type: str = ""


@dataclass
class Asked:
    path: str
    headers: dict[str, str]
    parts: list[Part]

    @property
    def fields(self) -> dict[str, str]:
        return {part.name: part.content.decode() for part in self.parts if not part.filename}

    @property
    def file(self) -> Part:
        return next(part for part in self.parts if part.filename)


def hears(text: str = TRANSCRIPT) -> Answer:
    return Answer({"text": text})


def fails(status: int, message: str = "Simulated failure.") -> Answer:
    return Answer({"error": {"message": message, "type": "server_error", "code": None}}, status=status)


def hangs(seconds: float = 5.0) -> Answer:
    return Answer({"text": TRANSCRIPT}, delay=seconds)


def parse(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart body, byte for byte. Any deviation from the form that servers expect is an error."""
    boundary = b"--" + re.fullmatch(r'multipart/form-data; boundary="?([^"]+)"?', content_type)[1].encode()  # type: ignore[index]
    head, *pieces, tail = body.split(boundary)
    assert (head, tail) == (b"", b"--\r\n"), "not a complete multipart body"
    return [_part(piece) for piece in pieces]


def _part(piece: bytes) -> Part:
    assert piece.startswith(b"\r\n")
    assert piece.endswith(b"\r\n")
    head, _, content = piece[2:-2].partition(b"\r\n\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head.decode().split("\r\n"))}
    said = dict(re.findall(r'(\w+)="([^"]*)"', headers["content-disposition"]))
    return Part(said["name"], content, said.get("filename", ""), headers.get("content-type", ""))


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


@dataclass
class FakeWhisper:
    answers: deque[Answer] = field(default_factory=deque)
    default: Answer = field(default_factory=hears)
    requests: list[Asked] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.server = Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def will(self, *answers: Answer) -> None:
        self.answers.extend(answers)

    def reset(self) -> None:
        with self.lock:
            self.answers.clear()
            self.requests.clear()
            self.default = hears()
            self.connections = 0

    @property
    def last(self) -> Asked:
        return self.requests[-1]

    def stop(self) -> None:
        self.stopping.set()
        self.server.shutdown()
        self.server.server_close()

    def _next(self) -> Answer:
        with self.lock:
            return self.answers.popleft() if self.answers else self.default

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with fake.lock:
                    fake.connections += 1

            def do_POST(self) -> None:
                answer = fake._next()
                if not answer.unread:
                    parts = parse(self.headers["Content-Type"], self._body(answer.reads_slowly))
                    fake.requests.append(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, parts))
                fake.stopping.wait(answer.delay)
                try:
                    self._reset() if answer.drop else self._send(answer)
                except ConnectionError:  # nobody waits for it any more
                    self.close_connection = True

            def _body(self, pause: float) -> bytes:
                left, pieces = int(self.headers["Content-Length"]), []
                while left and (piece := self.rfile.read1(min(left, 64 * 1024))):
                    pieces.append(piece)
                    left -= len(piece)
                    time.sleep(pause)
                return b"".join(pieces)

            def _send(self, answer: Answer) -> None:
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                if answer.status in (301, 302, 307, 308):
                    self.send_header("Location", f"{fake.url}/elsewhere")
                if answer.unread:
                    self.send_header("Connection", "close")
                self.end_headers()
                for piece in [data[n : n + 1] for n in range(len(data))] if answer.trickle else [data]:
                    self.wfile.write(piece)
                    fake.stopping.wait(answer.trickle)

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
