"""What every model behind HTTP needs: a connection pool, tries until a deadline, and the end of a try that won't end.

Foreign errors become ours here: TryAgain where the next attempt may succeed, ModelUnavailable where it can't.
"""

import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpcore2
import httpx2
from django.conf import settings
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from yral_chat.ai import Deadline, ModelError, ModelUnavailable, UnusableAnswer

logger = logging.getLogger(__name__)

ATTEMPTS = 4
SHORTEST_ATTEMPT = 0.5  # seconds; with less left, another try can't succeed
LONGEST_CONNECT = 3.0  # seconds, for each address of a name, and for the handshake
MOST_CONNECTIONS = 20_000
PIECE = 64 * 1024  # bytes that are written before the clock is looked at again


class TryAgain(ModelUnavailable):
    """Down for the moment: 408, 429, 5xx, a timeout, a reset or stale connection."""


def until[T](deadline: Deadline, attempt: Callable[[float], T], *, unusable: int = 0) -> T:
    """`attempt(seconds left)`, again while it raises TryAgain and `deadline` allows, and `unusable` times after an
    UnusableAnswer. The last error is raised."""

    def too_late(state: RetryCallState) -> bool:
        return deadline.cancelled or deadline.seconds_left() < state.upcoming_sleep + SHORTEST_ATTEMPT

    def is_worth_it(error: BaseException) -> bool:
        nonlocal unusable
        unusable -= isinstance(error, UnusableAnswer)
        return isinstance(error, TryAgain) or (isinstance(error, UnusableAnswer) and unusable >= 0)

    retrying = Retrying(
        retry=retry_if_exception(is_worth_it),
        wait=wait_exponential_jitter(initial=0.3, max=3, jitter=0.3),
        stop=lambda state: state.attempt_number >= ATTEMPTS or too_late(state),
        sleep=deadline.pause,
        before_sleep=_log_retry,
        reraise=True,
    )
    if deadline.seconds_left() <= 0:
        raise ModelError("no time was left to ask the model")
    return retrying(lambda: attempt(deadline.seconds_left()))


def _log_retry(state: RetryCallState) -> None:
    exc = state.outcome.exception() if state.outcome else None
    logger.info("Model call, attempt %d failed (%s), next in %.1f s", state.attempt_number, exc, state.upcoming_sleep)


@contextmanager
def failures_translated() -> Iterator[None]:
    """Around one attempt: what the HTTP client raises becomes ours."""
    try:
        yield
    except httpx2.InvalidURL as exc:
        raise ModelUnavailable("the model's address is not valid") from exc
    except httpx2.TimeoutException as exc:
        raise TryAgain("the model took too long") from exc
    except httpx2.HTTPError as exc:
        raise TryAgain(f"the connection to the model failed ({type(exc).__name__})") from exc


def is_passing(status: int) -> bool:
    """May the same request succeed later?"""
    return status in (408, 429) or status >= 500


class DeadlineTransport(httpx2.HTTPTransport):
    """An attempt's timeout, for the whole of it. httpx times each read and write alone, so a peer that trickles its
    head, its body, or its reading of ours could hold a thread for hours. One per process: the pool has a place for
    every turn and every stream."""

    def __init__(self) -> None:
        # Not super().__init__(), which makes such a pool and has no argument for the backend.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=MOST_CONNECTIONS,
            max_keepalive_connections=settings.WEB_THREADS,
            keepalive_expiry=30,
            network_backend=_Backend(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        timeout = request.extensions["timeout"]
        patience = _now.patience or Patience(Deadline(time.monotonic() + (timeout["read"] or 60)))
        for phase in ("connect", "pool"):
            timeout[phase] = min(timeout[phase] or LONGEST_CONNECT, LONGEST_CONNECT)
        with _ends_at(patience.deadline):
            response = super().handle_request(request)
        response.stream = patience.body = _Body(patience.deadline, response.stream)  # type: ignore[arg-type]
        return response


class _Body(httpx2.SyncByteStream):
    def __init__(self, deadline: Deadline, stream: httpx2.SyncByteStream) -> None:
        self.deadline, self.stream = deadline, stream

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self.stream)
        while True:
            with _ends_at(self.deadline):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        self.stream.close()


class _Now(threading.local):
    """When what this thread is waiting for has to end. A pooled connection serves one attempt after another, in any
    thread, so it can't know by itself."""

    deadline = Deadline(float("inf"))
    patience: "Patience | None" = None


_now = _Now()


class Patience:
    """A request made in `with` this, and its body whenever it is read, waits as long as `deadline` then says."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.body: _Body | None = None

    def __enter__(self) -> "Patience":
        _now.patience = self
        return self

    def __exit__(self, *_: object) -> None:
        _now.patience = None

    def close(self) -> None:
        """Of a body that wasn't read to its end the connection is closed."""
        if self.body:
            self.body.close()


@contextmanager
def _ends_at(deadline: Deadline) -> Iterator[None]:
    before, _now.deadline = _now.deadline, deadline
    try:
        yield
    finally:
        _now.deadline = before


def _at_most(timeout: float | None, too_late: type[httpcore2.TimeoutException]) -> float:
    left = min(_now.deadline.seconds_left(), math.inf if timeout is None else timeout)
    if left <= 0 or _now.deadline.cancelled:
        raise too_late("the attempt's time is over")
    return left


class _Backend(httpcore2.NetworkBackend):
    def __init__(self) -> None:
        self.sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """One address after the other, as long as there is time. The library would give each the full timeout, and
        Google's name has more than a dozen."""
        failed: Exception = httpcore2.ConnectError("the name has no address")
        for address in _addresses(host, port):
            left = _at_most(timeout, httpcore2.ConnectTimeout)
            try:
                return _Stream(self.sockets.connect_tcp(address, port, left, local_address, socket_options))
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as exc:
                failed = exc
        raise failed


def _addresses(host: str, port: int) -> Iterable[str]:
    """How long the system's resolver takes is up to its own configuration: it knows no timeout."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise httpcore2.ConnectError("the name has no address") from exc
    return dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self.stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _now.deadline.interruptible(self._hang_up):
            return self.stream.read(max_bytes, _at_most(timeout, httpcore2.ReadTimeout))

    def _hang_up(self) -> None:
        """Whoever reads it, in another thread, finds its end. Not by ssl's shutdown(), which takes TLS off first."""
        with suppress(OSError):
            socket.socket.shutdown(self.stream.get_extra_info("socket"), socket.SHUT_RDWR)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE):
            self.stream.write(buffer[start : start + PIECE], _at_most(timeout, httpcore2.WriteTimeout))

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        left = _at_most(timeout, httpcore2.ConnectTimeout)
        return _Stream(self.stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)
