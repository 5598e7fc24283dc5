"""The search for what must not be seen finds it: else it would prove nothing."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from django.test import Client

from conversations.models import Conversation
from tests.conftest import CANARY, Api, token, wait_until
from tests.fake_gemini import REPLY, FakeGemini, says, streams
from tests.scrubber import Scrubber, Watcher, scrubber
from tests.servers import SECRET, Server, free_port, listens


@pytest.fixture
def watched() -> logging.Logger:
    """A logger of its own, so that the run's scrubber sees nothing of it."""
    made = logging.getLogger("watched")
    made.propagate = False
    made.setLevel(logging.INFO)
    return made


@pytest.mark.parametrize(
    "text", [CANARY, "only-for-the-tests-jwt", REPLY, "A secret of mine, in a message"], ids=["prompt", "key", "a", "q"]
)
def test_it_finds_them_in_a_line(text: str, watched: logging.Logger) -> None:
    one = Scrubber()
    one.heard("A secret of mine, in a message")
    handler = Watcher(one)
    watched.addHandler(handler)
    try:
        watched.info("all is well")
        assert one.lines == 2
        assert not one.found
        structlog.get_logger("watched").info("request", route=f"/x {text}")
    finally:
        watched.removeHandler(handler)

    assert len(one.take()) >= 2, "as JSON and as text"
    assert not one.found


@pytest.mark.parametrize("text", [token("alice"), "https://x/y?expires=1&signature=abcdefgh12", "AIza-canary-key"])
def test_it_finds_what_the_formatter_would_hide(text: str) -> None:
    one = Scrubber()
    one.look_at(f"a line with {text}", "a test")

    assert one.take()


def test_it_finds_a_prompt_in_an_answer() -> None:
    one = Scrubber()
    one.look_at_answer(f'{{"x": "{CANARY}"}}'.encode(), "a test")

    assert one.take()


@pytest.mark.django_db(transaction=True)  # a turn that is streamed has a thread, thus a connection, of its own
@pytest.mark.parametrize("how", ["messages", "messages/stream"])
def test_it_watches_what_a_client_of_django_is_answered(
    how: str, alice: Api, conversation: Conversation, gemini: FakeGemini
) -> None:
    gemini.will(streams("It says: ", CANARY) if "stream" in how else says(CANARY))
    path = f"/api/v1/chat/conversations/{conversation.pk}/{how}"
    response: Any = Client().post(
        path, {"message_type": "text", "content": "Hello there"}, "application/json", headers=alice.headers()
    )

    assert CANARY.encode() in b"".join(response)
    assert [found.split(":")[0] for found in scrubber.take() if how in found]


def test_it_watches_this_run(alice: Api, conversation: Conversation) -> None:
    before = scrubber.lines
    alice.send(conversation, "Something that only I know.")

    assert scrubber.lines > before
    assert "Something that only I know." in scrubber.said
    assert any(isinstance(handler, Watcher) for handler in logging.getLogger().handlers)
    logging.getLogger("a.test").warning("leak: Something that only I know.")
    assert any("a message's text" in found for found in scrubber.take())


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Server]:
    """Something that answers, in the place of a server that tells what it shouldn't."""
    port, log = free_port(), tmp_path / "server.log"
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    server = Server(process, port, log, "")
    wait_until(lambda: listens(port), "it doesn't listen")
    yield server
    server.kill()
    scrubber.take()


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_looks_for_what_a_server_was_told_in_all_its_life(how: str, listener: Server) -> None:
    listener.call("POST", "/", {"content": "My cat is called Tiger"})
    listener.call("POST", "/", {"content": "alice-the-user"}, user="alice-the-user")
    scrubber.said.clear()  # as between two tests
    with listener.log_path.open("a") as log:
        log.write("request user=alice-the-user\nleak: My cat is called Tiger\n")
    assert not scrubber.take()

    getattr(listener, how)()

    (found,) = scrubber.take()
    assert found.startswith(f"a message's text in the log of the server at {listener.log_path.parent.name}")


def test_it_finds_a_key_in_the_log_of_a_server_that_is_killed(listener: Server) -> None:
    with listener.log_path.open("a") as log:
        log.write(f"leak: {SECRET}\n")
    listener.kill()

    assert scrubber.take()
