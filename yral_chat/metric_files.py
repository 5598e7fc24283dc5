"""Where the processes of a service count: each in its memory, and those that serve also in files of one folder, so that
any of them can tell for all, and what ended processes counted stays.

The files are those of prometheus_client's multi-process mode. But nothing that counts ever fails: who can't have files,
because a disk is full or may not be written, counts on in memory and tries again now and then; so does who finds that
somebody removed them. The folder is beside the file of the rate limits, else in the temporary folder. A process that
uses it holds a lock on it: without one, it was left behind by a service that was killed.
"""

import atexit
import fcntl
import logging
import mmap
import multiprocessing
import os
import shutil
import stat
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from prometheus_client import values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

logger = logging.getLogger(__name__)
PREFIX = "yral-chat-metrics-"
KINDS = ("counter", "histogram", "gauge_livesum")
DEAD = "0"  # in the place of a process's name: all that have ended
SIZE = 1 << 16
AROUND_A_KEY = 28  # bytes of an entry besides its key, at most
PATIENCE = 1.0  # seconds that who is asked waits for others who are
IN_USE, READING = "in-use", "reading"  # what processes lock
UNREADABLE = (ValueError, RuntimeError, struct.error)


class File(MmapedDict):
    """Has its room on the disk before it is written to: through a map, a disk that turns out to be full is no error but
    the end of the process (SIGBUS). Making it and making room raise OSError; the rest doesn't."""

    def __init__(self, path: Path) -> None:
        with path.open("ab") as file:
            _allocate(file.fileno(), max(SIZE, path.stat().st_size))
        super().__init__(str(path))  # type: ignore[no-untyped-call]

    def make_room(self, keys: Iterable[str]) -> None:
        """For those that aren't there yet."""
        needed = self._used + sum(len(key.encode()) + AROUND_A_KEY for key in keys if key not in self._positions)
        if needed > self._capacity:
            capacity = max(2 * self._capacity, needed)
            _allocate(self._f.fileno(), capacity)
            self._m, self._capacity = mmap.mmap(self._f.fileno(), capacity), capacity

    def put(self, key: str, value: float) -> None:
        self.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]

    def get(self, key: str) -> float:
        return float(self.read_value(key)[0])  # type: ignore[no-untyped-call]

    def is_at(self, path: Path) -> bool:
        return _is_at(self._f.fileno(), path)


def _allocate(descriptor: int, size: int) -> None:
    if sys.platform == "darwin":
        os.truncate(descriptor, size)
    else:
        os.posix_fallocate(descriptor, 0, size)


_lock = threading.RLock()  # a number may be counted by the garbage collection, anywhere
_numbers: list["Number"] = []
_files: dict[str, File] = {}  # of this process, by their kinds


class Number:
    """A value of prometheus_client's metrics. `file` is None while it has no place in one."""

    def __init__(
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Any,
        labelvalues: Any,
        help_text: str,
        multiprocess_mode: str = "",
        **_: Any,
    ) -> None:
        self.kind = f"gauge_{multiprocess_mode}" if typ == "gauge" else typ
        self.key = mmap_key(metric_name, name, labelnames, labelvalues, help_text)
        self.value = 0.0
        self.file: File | None = None
        with _lock:
            _numbers.append(self)
            with suppress(OSError):  # share() tries again
                self.move_to(_files.get(self.kind))

    def move_to(self, file: File | None) -> None:
        if file is not None:
            file.make_room([self.key])
            file.put(self.key, self.value)
        self.file = file

    def inc(self, amount: float) -> None:
        with _lock:
            self.set(self.value + amount)

    def set(self, value: float, timestamp: float | None = None) -> None:
        with _lock:
            self.value = value
            if self.file is not None:
                self.file.put(self.key, value)

    def get(self) -> float:
        return self.value

    def get_exemplar(self) -> None:
        return None


values.ValueClass = Number  # prometheus_client looks there whenever it makes a value


def _after_fork() -> None:
    """What the parent counted is told by the parent."""
    global _lock, _sharing
    _lock, _sharing = threading.RLock(), threading.Lock()
    for number in _numbers:
        number.value, number.file = 0.0, None
    while _files:
        _files.popitem()[1].close()  # type: ignore[no-untyped-call]


os.register_at_fork(after_in_child=_after_fork)


# The folder


def _started(pid: int) -> str:
    """Tells a process from a later one of the same number, also where each container's first one has the number 1."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except OSError:
        return "0"


def _name(pid: int) -> str:
    return f"{pid}-{_started(pid)}"


def _lives(name: str) -> bool:
    pid = int(name.partition("-")[0])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _name(pid) == name


# The process that started the service: forks inherit this, and those that uvicorn spawns find it.
_parent = multiprocessing.parent_process()
OWNER = (_parent.pid if _parent else None) or os.getpid()
FOLDER = f"{PREFIX}{os.getuid()}-{_name(OWNER)}"
_taken: tuple[Path, int] | None = None  # the folder, and the descriptor that holds the lock


def home() -> Path:
    """Where the folder is. It must be the same for all processes of the service."""
    folder: Path = settings.RATE_LIMIT_DATABASE.parent
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def take_folder() -> Path:
    """Make it where it's missing. Raises OSError. Processes that are forked from this one hold its lock as well."""
    global _taken
    if _taken and _is_at(_taken[1], _taken[0] / IN_USE):
        return _taken[0]
    folder = home() / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not (stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()):  # somebody waits for what we write here
        raise PermissionError(0, "the folder is somebody else's", str(folder))
    descriptor = _open(folder / IN_USE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    if _taken:
        os.close(_taken[1])
    elif os.getpid() == OWNER:  # else the next start does it
        atexit.register(_remove_folder)
    _taken = folder, descriptor
    _remove_left_behind(folder)
    return folder


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _remove_folder() -> None:
    if _taken and os.getpid() == OWNER:  # not in what was forked from it
        shutil.rmtree(_taken[0], ignore_errors=True)


def _remove_left_behind(ours: Path) -> None:
    for folder in ours.parent.glob(f"{PREFIX}{os.getuid()}-*"):
        if folder != ours:
            with suppress(OSError), _locked(folder / IN_USE):
                shutil.rmtree(folder)


@contextmanager
def _locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """By nobody else. Raises OSError, also if that isn't so within `patience` seconds."""
    until = time.monotonic() + patience
    descriptor = _open(path)
    try:
        while not _lock_now(descriptor, last_try=time.monotonic() >= until):
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _lock_now(descriptor: int, *, last_try: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if last_try:
            raise
        return False
    return True


def claim_folder() -> None:
    """For the process that starts the others, and counts nothing itself."""
    if settings.METRICS_ENABLED:
        with suppress(OSError):  # those who count say so
            take_folder()


# What is in the folder

_sharing = threading.Lock()
_in_trouble = False


def share() -> None:
    """Count into files from now on. To be called now and then: they may be gone, or there was no room for them."""
    if not settings.METRICS_ENABLED:
        return
    with _sharing:
        try:
            folder = take_folder()
            paths = {kind: folder / f"{kind}_{_name(os.getpid())}.db" for kind in KINDS}
            if not all(kind in _files and _files[kind].is_at(path) for kind, path in paths.items()):
                _make_files(paths)
            for number in list(_numbers):
                if number.file is None:
                    with _lock:
                        number.move_to(_files.get(number.kind))
        except OSError as exc:
            _tell(exc)
        else:
            _tell(None)


def _make_files(paths: dict[str, Path]) -> None:
    """With all that was counted so far; nobody sees them before that is in them. Raises OSError."""
    new = {kind: path.with_suffix(".new") for kind, path in paths.items()}
    unused: list[File] = []
    try:
        for path in new.values():
            unused.append(File(path))
        with _lock:
            made = dict(zip(new, unused, strict=True))
            for kind, file in made.items():
                file.make_room(number.key for number in _numbers if number.kind == kind)
            for number in _numbers:
                number.move_to(made.get(number.kind))
            unused = list(_files.values())
            _files.update(made)
        for kind, path in new.items():
            path.rename(paths[kind])
    finally:
        for file in unused:
            file.close()  # type: ignore[no-untyped-call]
        for path in new.values():
            path.unlink(missing_ok=True)


def _tell(trouble: Exception | None) -> None:
    global _in_trouble
    if trouble and not _in_trouble:
        logger.error("Metrics are kept in each process's memory alone: their files can't be used (%s).", trouble)
    if _in_trouble and not trouble:
        logger.warning("Metrics are in their files again.")
    _in_trouble = trouble is not None


def collected(own: Callable[[], Iterable[Metric]]) -> Iterable[Metric]:
    """What all processes count. What this one does, where there are no files; nothing where they can't be read: to
    Prometheus, counters that become less have begun anew."""
    if _files:
        share()
    if not _taken:
        return own()
    folder = _taken[0]
    try:
        with suppress(OSError), _locked(folder / READING, PATIENCE):
            _fold_ended(folder)
            return _read(folder) or own()
        return _read(folder) or own()  # who has the lock was stopped, or waits for the disk: nothing changes now
    except (OSError, *UNREADABLE) as exc:
        _tell(exc)
        return ()


def _read(folder: Path) -> list[Metric]:
    files = [str(file) for file in folder.glob("*.db") if file.stat().st_size]
    return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]


def process_ended() -> None:
    """For the process that starts the others: sooner than the next who asks. It must not wait, nor raise anything."""
    if _taken:
        with suppress(OSError), _locked(_taken[0] / READING):
            _fold_ended(_taken[0])


def _fold_ended(folder: Path) -> None:
    """An ended process's gauges end. What it counted stays, in the one file of all the dead: there would be ever more
    files. One that there's no room for waits. Raises nothing but OSError."""
    for file in folder.glob("*_[0-9]*-*.*"):
        kind, _, name = file.stem.rpartition("_")
        if not _lives(name):
            with suppress(OSError):
                if kind in ("counter", "histogram") and file.suffix == ".db":
                    with suppress(*UNREADABLE):
                        _add(file, to=folder / f"{kind}_{DEAD}.db")
                file.unlink(missing_ok=True)


def _add(file: Path, *, to: Path) -> None:
    counted = list(MmapedDict.read_all_values_from_file(str(file)))  # type: ignore[no-untyped-call]
    kept = File(to)
    try:
        kept.make_room(key for key, *_ in counted)  # all of it or nothing
        for key, value, *_ in counted:
            kept.put(key, kept.get(key) + value)
    finally:
        kept.close()  # type: ignore[no-untyped-call]
