"""A real HTTP server that takes what the Sentry SDK sends: https://develop.sentry.dev/sdk/data-model/envelopes/"""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeSentry:
    def __init__(self) -> None:
        self.raw: list[str] = []  # envelopes as they came, unpacked
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                fake.raw.append(body.decode())
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://public-key@127.0.0.1:{self.server.server_address[1]}/42"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def event(self, correlation_id: str) -> dict[str, Any]:
        """The one of a request; up to 10 s are waited for it."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for event in self.events():
                if event["tags"]["correlation_id"] == correlation_id:
                    return event
            time.sleep(0.05)
        raise AssertionError(f"nothing came of {correlation_id}: {[event['tags'] for event in self.events()]}")

    def events(self) -> list[dict[str, Any]]:
        return list(self._events())

    def _events(self) -> Iterator[dict[str, Any]]:
        for envelope in list(self.raw):
            _, *rest = envelope.split("\n")
            for header, payload in zip(rest[::2], rest[1::2], strict=False):
                if header and json.loads(header)["type"] == "event":
                    yield json.loads(payload)

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
