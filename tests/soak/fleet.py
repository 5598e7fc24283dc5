"""Two servers on one database, and who kills them."""

import os
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

from tests.servers import Server, children, environment, free_port, manage, start, wait_until_it_answers
from tests.soak.ledger import Ledger

LONGER_THAN_A_LOCK = 15.0  # seconds
SHORT = {"GEMINI_TIMEOUT_SECONDS": "6", "STREAM_GAP_SECONDS": "3", "STREAM_TIMEOUT_SECONDS": "20"}


class Servers(Protocol):
    """What answers the phones."""

    servers: list[Server]

    def any(self, rng: random.Random) -> Server: ...

    def logs(self) -> list[tuple[Path, str]]: ...


class Fleet:
    def __init__(self, folder: Path, database_url: str, model_url: str, *, uvicorn: bool) -> None:
        self.folder = folder
        self.kinds = ["gunicorn", "uvicorn" if uvicorn else "gunicorn"]
        base = {"DATABASE_URL": database_url, "WEB_CONCURRENCY": "2", "WEB_THREADS": "64", **SHORT}
        self.environments = [
            environment(folder, model_url, free_port(), **base),
            environment(folder, model_url, free_port(), **base, GEMINI_FALLBACK_MODEL="gemini-2.5-flash-lite"),
        ]
        manage(self.environments[0], "migrate", "--verbosity", "0")
        manage(self.environments[0], "seed_personas")
        self.servers: list[Server] = []

    def start(self) -> None:
        self.servers = [self._launch(place) for place in range(len(self.environments))]

    def _launch(self, place: int) -> Server:
        folder = self.folder / f"server-{place}"
        folder.mkdir(exist_ok=True)
        server = start(self.kinds[place], self.environments[place], folder)
        wait_until_it_answers(server)
        return server

    def any(self, rng: random.Random) -> Server:
        return rng.choice(self.servers)

    def workers(self, server: Server) -> list[int]:
        return sorted(children(server))

    def kill(self, place: int) -> None:
        """With its workers, at once; then start it again on the same port."""
        self.servers[place].kill()
        self.servers[place] = self._launch(place)

    def last_blow(self) -> None:
        """Nobody comes back to what is lost now: the service itself has to end it."""
        for worker in self.workers(self.servers[1]):
            os.kill(worker, signal.SIGKILL)
        self.kill(0)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def logs(self) -> list[tuple[Path, str]]:
        return [(path, path.read_text(errors="replace")) for path in sorted(self.folder.glob("server-*/server.log"))]


class Killer:
    def __init__(self, fleet: Fleet, ledger: Ledger, seed: int) -> None:
        self.fleet, self.ledger, self.rng = fleet, ledger, random.Random(f"killer-{seed}")
        self.done: Counter[str] = Counter()
        self.off = threading.Event()

    def rage(self) -> None:
        """Till it's switched off; then all that it killed is up again."""
        while not self.off.wait(self.rng.uniform(2, 6)):
            way = self.rng.choices([self.kill_worker, self.kill_server, self.freeze_worker], [60, 25, 15])[0]
            way()
            self.done[way.__name__.replace("_", " ")] += 1

    def kill_worker(self) -> None:
        self._signal(self._worker(), signal.SIGKILL)

    def kill_server(self) -> None:
        self.fleet.kill(self.rng.randrange(len(self.fleet.servers)))

    def freeze_worker(self) -> None:
        """As a machine does that is moved: what it held may be another's when it wakes up."""
        pid, began = self._worker(), time.time()
        self._signal(pid, signal.SIGSTOP)
        self.off.wait(LONGER_THAN_A_LOCK)
        self._signal(pid, signal.SIGCONT)
        self.ledger.freezes.append((began, time.time()))

    def _worker(self) -> int | None:
        pids = self.fleet.workers(self.fleet.any(self.rng))
        return self.rng.choice(pids) if pids else None

    def _signal(self, pid: int | None, number: int) -> None:
        try:
            if pid:
                os.kill(pid, number)
        except ProcessLookupError:
            pass
