"""A log file that several processes append to and rotate, without a lock a line."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

LOOK = 1.0  # seconds between two looks at the file


class LogFile:
    """Lines are appended by one write each, which the kernel keeps apart. Once a second a process looks whether the
    file is too large, or was renamed by another process or by logrotate; only for renaming it takes a lock.

    In between, lines go to the renamed file: none is lost. At most a second's lines are above `most_bytes`.
    """

    def __init__(self, path: str, most_bytes: int, backups: int) -> None:
        self.path, self.most_bytes, self.backups = Path(path), most_bytes, backups
        self._descriptor: int | None = None
        self._look_at = self._tell_at = 0.0

    def write(self, line: bytes) -> str:
        """What is wrong with the file, said at most once a minute; the line is then lost here."""
        trouble = None
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK
            trouble = self._look()
        if self._descriptor is not None:
            try:
                os.write(self._descriptor, line)
            except OSError as exc:
                trouble = exc
        return self._told(trouble) if trouble else ""

    def _look(self) -> OSError | None:
        try:
            if self._descriptor is None or self._was_renamed():
                self._open()
            if self._size() >= self.most_bytes:
                self._rotate()
        except OSError as exc:
            self._look_at = time.monotonic() + 60 * LOOK
            return exc
        return None

    def _told(self, exc: OSError) -> str:
        if time.monotonic() < self._tell_at:
            return ""
        self._tell_at = time.monotonic() + 60 * LOOK
        return f"LOG_FILE can't be written ({exc.strerror}): lines are missing there. Empty turns it off."

    def _open(self) -> None:
        self._close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _was_renamed(self) -> bool:
        assert self._descriptor is not None
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except FileNotFoundError:
            return True

    def _size(self) -> int:
        assert self._descriptor is not None
        return os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        """Under the lock of all processes, unless another one has just done it."""
        lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self._was_renamed() and self._size() >= self.most_bytes:
                for number in range(self.backups, 0, -1):
                    with suppress(FileNotFoundError):
                        self._backup(number - 1).replace(self._backup(number))
            self._open()
        finally:
            os.close(lock)

    def _backup(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}") if number else self.path
