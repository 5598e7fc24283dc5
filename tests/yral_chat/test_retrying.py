"""The connections to models: a name with many addresses, addresses that never answer, and time that is over."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx2
import pytest

from tests.fake_whisper import FakeWhisper, hears
from yral_chat.ai import Deadline, ModelUnavailable
from yral_chat.ai.retrying import ATTEMPTS, DeadlineTransport, TryAgain, failures_translated, until

pytestmark = pytest.mark.own_database


@pytest.fixture
def server() -> Iterator[FakeWhisper]:
    fake = FakeWhisper()
    yield fake
    fake.stop()


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(transport=DeadlineTransport(), trust_env=False) as client:
        yield client


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What the system's resolver says of names."""
    names: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        found = names.get(host, [host])
        return [answer for address in found for answer in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


@contextmanager
def black_hole(host: str, port: int = 0) -> Iterator[int]:
    """A port whose queue is full: the kernel drops what comes, and a connection attempt hears nothing."""
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            waiting = opened.enter_context(socket.socket(listener.family))
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname()[:2])
        yield listener.getsockname()[1]


def ask(client: httpx2.Client, url: str, timeout: float) -> Any:
    with failures_translated():
        return client.post(f"{url}/audio/transcriptions", files={"file": ("a.wav", b"sound")}, timeout=timeout).json()


def test_every_address_of_a_name_is_tried(client: httpx2.Client, server: FakeWhisper, name: Any) -> None:
    name["model.test"] = ["::1", "127.0.0.1"]

    assert ask(client, server.url.replace("127.0.0.1", "model.test"), timeout=5) == hears().body


def test_addresses_that_never_answer_cost_no_more_than_the_attempt_has(client: httpx2.Client, name: Any) -> None:
    name["model.test"] = ["::1", "127.0.0.1"]
    started = time.monotonic()

    with black_hole("127.0.0.1") as port, black_hole("::1", port), pytest.raises(TryAgain, match="too long"):
        ask(client, f"http://model.test:{port}", timeout=0.5)
    assert 0.4 < time.monotonic() - started < 0.9


@pytest.mark.parametrize("url", ["http://no-such-host.invalid", "http://127.0.0.1:9", "gopher://127.0.0.1", "nonsense"])
def test_what_is_not_there_may_be_there_later(client: httpx2.Client, url: str) -> None:
    with pytest.raises(TryAgain, match="connection to the model failed"):
        ask(client, url, timeout=1)


def test_what_is_no_address_never_will_be(client: httpx2.Client) -> None:
    with pytest.raises(ModelUnavailable, match="address") as failure:
        ask(client, "http://[::1", timeout=1)
    assert not isinstance(failure.value, TryAgain)


def test_the_tries_end_with_the_time_and_each_is_told_what_is_left() -> None:
    told = []

    def attempt(seconds_left: float) -> None:
        told.append(seconds_left)
        time.sleep(0.2)
        raise TryAgain("busy")

    started = time.monotonic()
    with pytest.raises(TryAgain, match="busy"):
        until(Deadline(started + 1.5), attempt)

    assert time.monotonic() - started < 1.5
    assert 1 < len(told) < ATTEMPTS
    assert told == sorted(told, reverse=True)
    assert 1.4 < told[0] <= 1.5


def test_an_answer_ends_the_tries() -> None:
    answers: Any = iter([TryAgain("busy"), "here"])

    def attempt(seconds_left: float) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert until(Deadline(time.monotonic() + 5), attempt) == "here"


@pytest.mark.parametrize("error", [ModelUnavailable("refused"), ValueError("a bug")], ids=repr)
def test_any_other_error_ends_the_tries(error: Exception) -> None:
    asked = []

    def attempt(seconds_left: float) -> None:
        asked.append(seconds_left)
        raise error

    with pytest.raises(type(error), match=str(error)):
        until(Deadline(time.monotonic() + 5), attempt)
    assert len(asked) == 1
