"""What is measured while phones are at work: how long requests take, SQLite's log, and the memory of the service."""

import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MB = 1024 * 1024


class Times:
    """Seconds that requests took, by their kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._lock = threading.Lock()

    def add(self, kind: str, seconds: float) -> None:
        with self._lock:
            self.seconds[kind].append(seconds)

    def table(self) -> Iterator[str]:
        yield f"{'milliseconds':28}{'number':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}"
        for kind, took in sorted(self.seconds.items()):
            cells = "".join(f"{1000 * value:>8,.0f}" for value in (*percentiles(took), max(took)))
            yield f"{kind:28}{len(took):>8,}{cells}"


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """The 50th, 95th and 99th."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[94], cuts[98]


@dataclass(frozen=True, slots=True)
class Sample:
    at: float  # seconds since the beginning
    service: int  # bytes: PSS of the entrypoint, gunicorn and its workers
    litestream: int


@dataclass
class Gauge:
    """Of a service that runs; its thread looks twice a second at the log, and every few seconds at the memory."""

    pid: int  # of the entrypoint
    wal: Path
    every: float = 3.0
    largest_wal: int = 0
    memory: list[Sample] = field(default_factory=list)

    def __enter__(self) -> "Gauge":
        self._over, self._began = threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        due = 0.0
        while not self._over.wait(0.5):
            now = time.monotonic() - self._began
            self.largest_wal = max(self.largest_wal, self.wal.stat().st_size if self.wal.exists() else 0)
            if now >= due:
                due = now + self.every
                self.memory.append(Sample(now, *memory_of(self.pid)))


def memory_of(pid: int) -> tuple[int, int]:
    """PSS in bytes of the process and all below it, but for Litestream; and of Litestream."""
    service = litestream = 0
    for one in family(pid):
        try:
            size = pss(one)
            if "litestream" in Path(f"/proc/{one}/comm").read_text():
                litestream += size
            else:
                service += size
        except OSError:  # it ended meanwhile
            continue
    return service, litestream


def family(pid: int) -> list[int]:
    """The process, its children, and theirs."""
    found = [pid]
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [one for child in listed.read_text().split() for one in family(int(child))]
        except OSError:
            continue
    return found


def pss(pid: int) -> int:
    """Its share of the memory: what processes have in common is divided among them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def growth(memory: list[Sample]) -> float:
    """Bytes a minute by which the service grew: the median slope between two samples (Theil and Sen)."""
    pairs = ((one, other) for place, one in enumerate(memory) for other in memory[place + 1 :])
    return statistics.median((b.service - a.service) / (b.at - a.at) for a, b in pairs) * 60


def steady_growth(memory: list[Sample]) -> float:
    """The same of each quarter, and of these the median. A leak grows in all of them; what a moment with more at once
    took, and the heap keeps, is a step in one. Raises ValueError if there are too few samples."""
    if len(memory) < 40:
        raise ValueError("too few samples")
    quarter = len(memory) // 4
    return statistics.median(growth(memory[place * quarter : (place + 1) * quarter]) for place in range(4))
