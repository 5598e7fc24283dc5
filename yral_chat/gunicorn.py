"""What the service adds to gunicorn, so that a stop, a reload and the replacement of a process lose no request.

gunicorn alone closes its sockets with the connections that wait in them, starts the replacement of a process only when
that has ended, which a stream puts off for minutes, and doesn't load anything anew when it is told to reload.
"""

import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from django.conf import settings
from gunicorn.arbiter import Arbiter
from gunicorn.http.errors import (
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.util import close_graceful
from gunicorn.workers.gthread import STOP_KEEPALIVE_LINGER, TConn, ThreadWorker

from yral_chat.bodies import PATIENCE
from yral_chat.log import NOBODY_S, correlation_id
from yral_chat.startup import at_rest

START_AT_MOST = 30.0  # seconds after a reload until the workers of before are told to go
START_SECONDS = 2.0  # that a replacement has to start: requests wait if it takes longer
HANDSHAKES = 0.2  # seconds that connections that are half made have left
SO_ATTACH_FILTER = 26
NO_SYN = (  # code, jump if true, jump if false, operand
    (0x30, 0, 0, 13),  # load the byte of a TCP packet that holds its flags
    (0x45, 0, 1, 0x02),  # is SYN among them?
    (0x06, 0, 0, 0),  # then drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
)
REFUSED = {  # all else that can't be read is a 400
    LimitRequestLine: (414, "URI Too Long"),
    ExpectationFailed: (417, "Expectation Failed"),
    LimitRequestHeaders: (431, "Request Header Fields Too Large"),
    UnsupportedTransferCoding: (501, "Not Implemented"),
}
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
EARLIER = "YRAL_CHAT_EARLIER_WORKERS"
HELD_BACK = {getattr(signal, f"SIG{name}") for name in ["HUP", "TERM", "INT", "QUIT", "USR1", "TTIN", "TTOU"]}


def error_answer(status: int, reason: str) -> bytes:
    """Of a request that reached nobody, in the one shape of errors."""
    from yral_chat.errors import MESSAGES, body  # Django is there by now
    from yral_chat.json import dumps

    code = "internal_server_error" if status == 500 else "bad_request"
    content = dumps(body(code, MESSAGES[code]))
    head = f"HTTP/1.1 {status} {reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class PatientSocket(socket.socket):
    """Whoever takes or gives nothing for PATIENCE has hung up: a thread doesn't wait for them for ever."""

    def setblocking(self, flag: bool) -> None:
        self.settimeout(PATIENCE if flag else 0)

    def recv(self, *args: Any) -> bytes:
        return self._patiently(super().recv, *args)

    def sendall(self, data: Any, *flags: int) -> None:
        """socket.sendall would give all of it PATIENCE: who reads slowly gets a long answer all the same."""
        left = memoryview(data)
        while left:
            left = left[self._patiently(super().send, left, *flags) :]

    def sendfile(self, *args: Any, **kwargs: Any) -> int:
        return self._patiently(super().sendfile, *args, **kwargs)

    @staticmethod
    def _patiently[T](call: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        try:
            return call(*args, **kwargs)
        except TimeoutError as exc:
            raise ConnectionResetError(errno.ECONNRESET, "the client stalled") from exc


class Connection(TConn):  # type: ignore[misc]
    def close(self, graceful: bool = False) -> None:
        """At most once: see Worker.handle.

        Gracefully is also with a large body under way, which was refused unread: a proxy that is cut off in the middle
        of sending it tells its client of a broken service, instead of the refusal. gunicorn would wait for 64 KiB."""
        if graceful and self.sock.fileno() != -1:
            self.sock.setblocking(True)
            close_graceful(self.sock, max_drain=2 * settings.UPLOAD_MAX_BODY_SIZE)
        elif self.sock.fileno() != -1:
            super().close()


class Worker(ThreadWorker):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_requests: int
        self.most = self.max_requests
        self.max_requests = sys.maxsize
        self.leaves_at = self.left_at = float("inf")
        self.is_full = False

    def run(self) -> None:
        """And then for turns that nobody listens to."""
        super().run()
        while not at_rest() and time.monotonic() < self.left_at + self.cfg.graceful_timeout:
            self.notify()
            time.sleep(0.1)

    def handle(self, conn: Connection) -> Any:
        """What is logged before a request is known is nobody's, least of all of whom this thread served before.

        Closing waits up to two seconds for the client to hang up, too: so not in the thread that accepts."""
        correlation_id.set(NOBODY_S)
        goes_on = super().handle(conn)
        if not goes_on:
            conn.close(graceful=True)
        return goes_on

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """gunicorn's line and its answer would quote what was sent: a header with a key, the end of a message."""
        status, reason = 500, "Internal Server Error"
        if isinstance(exc, ParseException) and not isinstance(exc, InvalidResponseHeader | InvalidResponseHeaderName):
            status, reason = REFUSED.get(type(exc), (400, "Bad Request"))
            self.log.warning("A request that can't be read was refused (%s)", type(exc).__name__)
        else:
            self.log.error("A request crashed the server (%s)", type(exc).__name__, exc_info=exc)
        with suppress(OSError):
            client.sendall(error_answer(status, reason))

    def notify(self) -> None:
        """Once a second at least. Who has served enough asks for a replacement first, and then goes."""
        super().notify()
        if self.nr >= self.most and self.leaves_at == float("inf"):
            self.log.info("Worker %s has answered %d requests and is replaced", self.pid, self.nr)
            self.leaves_at = time.monotonic() + START_SECONDS
            os.kill(self.ppid, signal.SIGTTIN)
        if time.monotonic() >= self.leaves_at:
            self.alive = False

    def is_parent_alive(self) -> bool:
        self.alive = self.alive and super().is_parent_alive()
        return bool(self.alive)

    def set_accept_enabled(self, enabled: bool) -> None:
        super().set_accept_enabled(enabled)
        if not self.alive and self.left_at == float("inf"):
            self.left_at = time.monotonic()
            self._leave()

    def _leave(self) -> None:
        """Answer those who wait in line, and close the door behind them. Who is in and says nothing must go soon."""
        for listener in self.sockets:
            while self.accept(listener):
                pass
            listener.close()
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, self.left_at + STOP_KEEPALIVE_LINGER)

    def accept(self, listener: Any) -> bool:
        """Whether anybody was there."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            self._wait_for_room(exc)
            return False
        self.nr_conns += 1
        patient = PatientSocket(fileno=client.detach())
        self.enqueue_req(Connection(self.cfg, patient, address, listener.getsockname()))
        return True

    def _wait_for_room(self, exc: OSError) -> None:
        """gunicorn would end this process, and with it the answers under way. Told of once."""
        if not self.is_full:
            self.is_full = True
            self.log.error("Callers wait: no connection can be opened (%s). Raise ulimit -n.", exc.strerror)
        time.sleep(0.1)


# In the master process


def when_ready(server: Arbiter) -> None:
    """The signals that came during a reload arrive now. One to reload waits for those that came with it, for a stop
    above all."""
    server.handle_hup = lambda: server.SIG_QUEUE.put(signal.SIGUSR2)
    server.handle_usr2 = lambda: reload(server)
    server.handle_term = lambda: stop(server)
    server.murder_workers = partial(end_hung_workers, server, server.murder_workers)
    server.earlier_end_at = time.monotonic() + server.cfg.graceful_timeout + START_AT_MOST
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)


def stop(server: Arbiter) -> NoReturn:
    """Nobody comes in while the doors are closed: who did would be thrown out with the request that they sent."""
    server.earlier_end_at = time.monotonic() + server.cfg.graceful_timeout
    if not server.systemd and sys.platform == "linux":  # systemd keeps its sockets and those who wait in them
        with suppress(OSError):  # a sandbox that has no such filters
            for listener in server.LISTENERS:
                take_no_new_connections(listener.sock)
        time.sleep(HANDSHAKES)
    raise StopIteration


def take_no_new_connections(listener: socket.socket) -> None:
    """A filter in the kernel drops the packets that ask for one, SYN, in all processes that have this socket. Who asks
    asks again after a second and is refused then. Those half made are completed."""
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in NO_SYN))
    program = struct.pack("HP", len(NO_SYN), ctypes.addressof(filters))
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def reload(server: Arbiter) -> None:
    """New code and new settings, in the same process and on the same sockets. First a process of its own tries them:
    if they are bad, nothing changes. HOST and PORT stay as they are."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
    os.chdir(server.START_CTX["cwd"])
    command, env = [sys.executable, *sys.orig_argv[1:]], dict(server.cfg.env_orig)
    if subprocess.run([*command, "--check-config"], env=env, check=False).returncode:  # noqa: S603
        server.log.error("Not reloaded: the new code or settings can't start. What runs goes on.")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        return
    env["GUNICORN_PID"] = str(os.getpid())
    env["GUNICORN_FD"] = ",".join(str(listener.fileno()) for listener in server.LISTENERS)
    env[EARLIER] = " ".join(str(pid) for pid in [*earlier_workers(), *server.WORKERS])
    server.log.info("Reloading")
    os.execve(command[0], command, env)  # noqa: S606


def end_hung_workers(server: Arbiter, of_this_start: Callable[[], None]) -> None:
    """Once a second. Workers of before a reload give the master no sign of life any more: they end in time or are
    killed."""
    of_this_start()
    if (left := earlier_workers()) and time.monotonic() > server.earlier_end_at:
        kill(left)


def earlier_workers() -> list[int]:
    """Those of before a reload that still run; some may still have a stream. The others' numbers are forgotten: in time
    they may be those of other processes."""
    left = [pid for pid in map(int, os.environ.get(EARLIER, "").split()) if _runs(pid)]
    os.environ[EARLIER] = " ".join(map(str, left))
    return left


def kill(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """A child of ours; that it has ended is noticed here, too."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    return False


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Its replacement, if there is one, now counts as one of the usual number."""
    if server.num_workers > server.cfg.workers:
        server.num_workers -= 1


def on_exit(server: Arbiter) -> None:
    """Nobody outlives it: who hangs would keep the port."""
    while (left := earlier_workers()) and time.monotonic() < server.earlier_end_at:
        time.sleep(0.1)
    kill(left)


# In a worker


def dismiss_earlier_workers() -> None:
    """Their replacements are here."""
    for pid in map(int, os.environ.get(EARLIER, "").split()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
