"""A TCP proxy before a server, that can stop to forward: what is sent to it is acknowledged, and never answered."""

import re
import socket
import threading
from contextlib import suppress


class StallingProxy:
    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self._forwards = threading.Event()
        self._forwards.set()
        self.withheld = b""  # a pattern: a request that has it is never answered
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._made: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        self._forwards.clear()

    def go_on(self) -> None:
        self._forwards.set()

    def stop(self) -> None:
        self._listener.close()
        self._forwards.set()
        for made in self._made:
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
            made.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.target)
                self._made += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._forwards.wait()
                if self.withheld and re.search(self.withheld, data):
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
