"""The first process of a deployment: make the database ready, then run Litestream and the server, till one is told to
stop. `python -m yral_chat.entrypoint`; deploy/entrypoint.sh does nothing else.

`manage.py prepare_database` verifies the database, restores it if it's missing or damaged, and migrates it; if that
fails, nothing starts. Signals go to the server. When that has ended, Litestream brings the last frames to the bucket.
Without ENABLE_LITESTREAM, or on PostgreSQL, there is the server alone.
"""

import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import structlog

BORN_WITH = dict(os.environ)  # before the settings add what .env says: who reloads must see what it says then
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "yral_chat.settings")

from django.conf import settings  # noqa: E402
from django.utils.log import configure_logging  # noqa: E402

from yral_chat import replication  # noqa: E402

log = structlog.get_logger(__name__)

PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1}
HEARD = {*PASSED_ON, signal.SIGCHLD}
DEADLY = {signal.SIGHUP, signal.SIGUSR1}  # for who doesn't know yet what they mean
TICK = 0.5  # seconds
LONGEST_PAUSE = 60.0  # before Litestream is started again
STEADY = 60.0  # who ran that long begins with a short pause again
IDLE = 60.0  # seconds that a running Litestream may leave the WAL above its limit
PREPARE = (sys.executable, "manage.py", "prepare_database")
SERVE = (sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py")


def spawn(arguments: list[str], env: dict[str, str]) -> int:
    """With no signal held back, as they are here."""
    return os.posix_spawn(arguments[0], arguments, env, setsigmask=())


def environment() -> dict[str, str]:
    """Of what is started. gunicorn crashes over a blank WEB_CONCURRENCY before it reads our settings."""
    blank = {"WEB_CONCURRENCY"} if not BORN_WITH.get("WEB_CONCURRENCY", "").strip() else set()
    return {"MALLOC_ARENA_MAX": "2"} | {name: value for name, value in BORN_WITH.items() if name not in blank}


class Replicator:
    """Litestream's process: started again when it dies, each time after a longer pause."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.config = path, folder / "litestream.yml"
        self.config.write_text(replication.configuration(path), encoding="utf-8")
        self.pid, self.began, self.due, self.pause = 0, 0.0, 0.0, 1.0
        self.small = time.monotonic()  # when the WAL was last below its limit

    def start(self, *arguments: str) -> None:
        """What can't be started counts as ended: the service goes on meanwhile."""
        self.began = time.monotonic()
        try:
            self.pid = spawn(replication.command("replicate", self.config, *arguments), replication.environment())
        except (replication.Unusable, OSError) as exc:
            self.ended(str(exc))

    def ended(self, code: int | str) -> None:
        now = time.monotonic()
        self.pid = 0
        self.pause = 1.0 if now - self.began > STEADY else min(2 * self.pause, LONGEST_PAUSE)
        self.due = now + self.pause
        log.error("Litestream ended", code=code, again_in_seconds=self.pause)

    def look_after(self) -> None:
        if not self.pid and time.monotonic() >= self.due:
            self.start()

    def is_lost(self) -> bool:
        """The WAL is above its limit, and nobody makes it smaller."""
        now = time.monotonic()
        if replication.log_bytes(self.path) <= settings.LITESTREAM_WAL_LIMIT_MB * 1024 * 1024:
            self.small = now
            return False
        return not self.pid or now - self.small > IDLE


class Supervisor:
    def __init__(self, replicator: Replicator | None) -> None:
        self.replicator = replicator
        self.front = 0  # the process that gets the signals
        self.code = 0  # with which it ended
        self.told_to_stop = False

    def run(self) -> int:
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        for number in DEADLY:  # also in those that are started; here they are heard nevertheless
            signal.signal(number, signal.SIG_IGN)
        self._until_it_ends(list(PREPARE))
        if self.code or self.told_to_stop:
            return self.code
        if self.replicator:
            self.replicator.start()
        self._until_it_ends(list(SERVE))
        if self.replicator:
            self._flush(self.replicator)
        return self.code

    def _until_it_ends(self, arguments: list[str]) -> None:
        self.front = spawn(arguments, environment())
        while self.front:
            self._hear(TICK)
            if self.replicator and self.front and arguments == list(SERVE):
                self.replicator.look_after()
                if self.replicator.is_lost() and not self.told_to_stop:
                    log.critical("SQLite's log is above LITESTREAM_WAL_LIMIT_MB and isn't copied: the service stops")
                    self._pass_on(signal.SIGTERM)
                    self.code = 1

    def _hear(self, seconds: float) -> None:
        got = signal.sigtimedwait(HEARD, seconds)
        if got and got.si_signo != signal.SIGCHLD:
            self._pass_on(signal.Signals(got.si_signo))
        self._reap()

    def _pass_on(self, number: signal.Signals) -> None:
        self.told_to_stop |= number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
        if self.front:
            os.kill(self.front, number)

    def _reap(self) -> None:
        """Also strangers' children, that come to the first process of a container."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, code = ended[0], os.waitstatus_to_exitcode(ended[1])
                if pid == self.front:
                    self.front, self.code = 0, self.code or (128 - code if code < 0 else code)
                elif self.replicator and pid == self.replicator.pid:
                    self.replicator.ended(code)

    def _flush(self, replicator: Replicator) -> None:
        """Litestream syncs when it's told to stop. A dead one is started for that once more."""
        if replicator.pid:
            os.kill(replicator.pid, signal.SIGTERM)
        else:
            replicator.start("-once")
        if not replicator.pid:
            return
        pid, deadline = replicator.pid, time.monotonic() + replication.SHUTDOWN_SYNC + 5
        while time.monotonic() < deadline:
            with suppress(ChildProcessError):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    if code := os.waitstatus_to_exitcode(status):
                        log.error("Litestream ended", code=code)
                    return
            time.sleep(0.05)
        log.error("Litestream didn't end in time: the last frames may be on this disk only")
        os.kill(pid, signal.SIGKILL)


def main() -> int:
    configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
    os.chdir(settings.BASE_DIR)
    path = replication.sqlite_file()
    if path is None:
        return Supervisor(None).run()
    try:
        replication.hold(path)
        if not settings.ENABLE_LITESTREAM:
            return Supervisor(None).run()
        with tempfile.TemporaryDirectory(prefix="yral-chat-") as folder:
            return Supervisor(Replicator(path, Path(folder))).run()
    except replication.Unusable as exc:
        raise SystemExit(f"Yral AI Chat can't start: {exc}") from exc


if __name__ == "__main__":
    sys.exit(main())
