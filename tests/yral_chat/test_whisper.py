"""Speech to text: what is sent, what is made of the answers, and that nothing lasts longer than it may."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_whisper import PATH, TRANSCRIPT, Answer, FakeWhisper, fails, hangs, hears
from yral_chat.ai import Deadline, ModelError, ModelUnavailable, UnusableAnswer
from yral_chat.ai.retrying import ATTEMPTS
from yral_chat.ai.whisper import Whisper

pytestmark = pytest.mark.own_database

KEY = "whisper-key-that-must-never-be-logged"
VOICE = bytes(range(256)) * 40 + b"\r\n--\r\n\x00\xff"


class Watched(io.FileIO):
    """A file on the disk that remembers how much was read of it at once."""

    largest = 0
    read_in_all = 0

    def read(self, size: int | None = -1, /) -> Any:
        piece = super().read(size) or b""
        self.largest, self.read_in_all = max(self.largest, len(piece)), self.read_in_all + len(piece)
        return piece


@pytest.fixture(scope="module")
def server() -> Iterator[FakeWhisper]:
    fake = FakeWhisper()
    yield fake
    fake.stop()


@pytest.fixture
def whisper(server: FakeWhisper, settings: Any) -> FakeWhisper:
    server.reset()
    settings.WHISPER_API_KEY = KEY
    settings.WHISPER_BASE_URL = server.url
    settings.WHISPER_MODEL = "whisper-1"
    return server


@pytest.fixture
def client(whisper: FakeWhisper) -> Whisper:
    return Whisper()


@pytest.fixture
def voice_note(tmp_path: Path) -> Iterator[Watched]:
    path = tmp_path / "note"
    path.write_bytes(VOICE)
    with Watched(path) as file:
        yield file


def transcribe(client: Whisper, file: Any, *, seconds: float = 10.0) -> str:
    return client.transcribe(
        file, mime_type="audio/mp4", extension="m4a", deadline=Deadline(time.monotonic() + seconds)
    )


def within(seconds: float, call: Callable[[], Any]) -> None:
    started = time.monotonic()
    with pytest.raises(ModelUnavailable):
        call()
    took = time.monotonic() - started
    assert took < seconds, f"it took {took:.1f} s"


# What is sent


def test_it_sends_the_file_and_returns_what_was_heard(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper
) -> None:
    assert transcribe(client, voice_note) == TRANSCRIPT

    [asked] = whisper.requests
    assert asked.path == PATH
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert int(asked.headers["content-length"]) > len(VOICE)
    assert asked.fields == {"model": "whisper-1", "response_format": "json"}
    assert (asked.file.name, asked.file.filename, asked.file.content_type) == ("file", "audio.m4a", "audio/mp4")
    assert asked.file.content == VOICE


@pytest.mark.parametrize("slash", ["", "/"])
def test_model_and_server_are_settings(slash: str, voice_note: Watched, whisper: FakeWhisper, settings: Any) -> None:
    settings.WHISPER_MODEL = "large-v3-turbo"
    settings.WHISPER_BASE_URL = whisper.url + slash

    transcribe(Whisper(), voice_note)

    assert whisper.last.path == PATH
    assert whisper.last.fields["model"] == "large-v3-turbo"


def test_a_server_of_one_s_own_needs_no_key(voice_note: Watched, whisper: FakeWhisper, settings: Any) -> None:
    settings.WHISPER_API_KEY = ""

    assert transcribe(Whisper(), voice_note) == TRANSCRIPT
    assert "authorization" not in whisper.last.headers


def test_a_file_is_sent_from_its_start_wherever_it_was_read_to(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper
) -> None:
    voice_note.seek(1000)

    transcribe(client, voice_note)

    assert whisper.last.file.content == VOICE


def test_a_large_file_is_never_in_memory_as_a_whole(client: Whisper, tmp_path: Path, whisper: FakeWhisper) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"\x5a" * 20_000_000)
    with Watched(path) as file:
        assert transcribe(client, file) == TRANSCRIPT
        assert file.largest <= 64 * 1024
    assert len(whisper.last.file.content) == 20_000_000
    assert "transfer-encoding" not in whisper.last.headers


def test_connections_are_kept(client: Whisper, voice_note: Watched, whisper: FakeWhisper) -> None:
    for _ in range(3):
        transcribe(client, voice_note)

    assert whisper.connections == 1


def test_a_client_that_is_dropped_closes_its_connections(voice_note: Watched, whisper: FakeWhisper) -> None:
    client = Whisper()
    transcribe(client, voice_note)
    connections = client.client

    del client

    assert connections.is_closed


def test_many_at_once_share_the_client(client: Whisper, tmp_path: Path, whisper: FakeWhisper, settings: Any) -> None:
    heard = []

    def one(number: int) -> None:
        with io.BytesIO(b"%d" % number * 50_000) as file:
            heard.append(transcribe(client, file))

    threads = [threading.Thread(target=one, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert heard == [TRANSCRIPT] * 20
    expected = {b"%d" % number * 50_000 for number in range(20)}
    assert {asked.file.content for asked in whisper.requests} == expected


def test_no_proxy_of_the_environment_hears_it(
    whisper: FakeWhisper, voice_note: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert transcribe(Whisper(), voice_note) == TRANSCRIPT


# What is made of an answer


def test_the_transcript_is_stripped(client: Whisper, voice_note: Watched, whisper: FakeWhisper) -> None:
    whisper.will(hears("  Hé, où\x00 va-t-on? 🏃\n"))

    assert transcribe(client, voice_note) == "Hé, où va-t-on? 🏃"


@pytest.mark.parametrize(
    "body",
    [
        {"text": ""},
        {"text": "  \n\t "},
        {"text": "\x00"},
        {"text": None},
        {"text": 7},
        {"text": ["a"]},
        {"text": {"a": "b"}},
        {"task": "transcribe"},
        {},
        [],
        ["text"],
        None,
        "text",
        7,
        b"",
        b"Just the words.",
        b'{"text": "cut',
        b'{"text": "\\ud800"}',
        b"\xff\xfe",
        b"<html>",
    ],
    ids=repr,
)
def test_an_answer_without_words_is_unusable_and_not_asked_for_again(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper, body: Any
) -> None:
    whisper.default = Answer(body)

    with pytest.raises(UnusableAnswer):
        transcribe(client, voice_note)
    assert len(whisper.requests) == 1


# Down


@pytest.mark.parametrize("failure", [fails(408), fails(429), fails(500), fails(503), Answer(drop=True)], ids=repr)
def test_after_one_failure_the_whole_file_is_sent_again(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper, failure: Answer
) -> None:
    whisper.will(failure)

    assert transcribe(client, voice_note) == TRANSCRIPT
    assert [asked.file.content for asked in whisper.requests] == [VOICE, VOICE]


def test_a_connection_that_is_reset_in_mid_upload_is_tried_again(
    client: Whisper, tmp_path: Path, whisper: FakeWhisper
) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"\x5a" * 8_000_000)
    whisper.will(Answer(drop=True, unread=True))
    with path.open("rb") as file:
        assert transcribe(client, file) == TRANSCRIPT
    assert [len(asked.file.content) for asked in whisper.requests] == [8_000_000]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_it_gives_up_after_a_few_attempts(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper, status: int
) -> None:
    whisper.default = fails(status)

    with pytest.raises(ModelUnavailable, match=str(status)):
        transcribe(client, voice_note, seconds=2.5)
    assert 1 < len(whisper.requests) <= ATTEMPTS


@pytest.mark.parametrize("status", [401, 403, 404, 201, 204, 301, 302, 307])
def test_a_refusal_of_our_request_is_not_tried_again(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper, status: int
) -> None:
    whisper.default = Answer(b"" if status == 204 else {"text": TRANSCRIPT}, status=status)

    with pytest.raises(ModelUnavailable, match=str(status)):
        transcribe(client, voice_note)
    assert len(whisper.requests) == 1


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_file_that_the_server_cannot_read_is_no_outage(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper, status: int
) -> None:
    whisper.default = fails(status)

    with pytest.raises(UnusableAnswer):
        transcribe(client, voice_note)
    assert len(whisper.requests) == 1


def test_a_refusal_before_the_file_was_read_is_heard(client: Whisper, tmp_path: Path, whisper: FakeWhisper) -> None:
    """Or at least the connection's end: never a crash, never a hang."""
    path = tmp_path / "large"
    path.write_bytes(b"\x5a" * 8_000_000)
    whisper.default = fails(413)
    whisper.default.unread = True

    with path.open("rb") as file, pytest.raises((UnusableAnswer, ModelUnavailable)):
        transcribe(client, file, seconds=2)


def test_a_server_that_nobody_answers_for_is_down(whisper: FakeWhisper, voice_note: Watched, settings: Any) -> None:
    settings.WHISPER_BASE_URL = "http://127.0.0.1:9/v1"

    within(2, lambda: transcribe(Whisper(), voice_note, seconds=1))


@pytest.mark.parametrize("url", ["http://no-such-host.invalid/v1", "http://[::1/v1", "nonsense", "ftp://127.0.0.1"])
def test_an_address_that_leads_nowhere_is_down(
    url: str, whisper: FakeWhisper, voice_note: Watched, settings: Any
) -> None:
    settings.WHISPER_BASE_URL = url

    with pytest.raises(ModelUnavailable):
        transcribe(Whisper(), voice_note, seconds=1)


# Slow


def test_a_server_that_hangs_is_given_up_in_time(client: Whisper, voice_note: Watched, whisper: FakeWhisper) -> None:
    whisper.default = hangs()

    within(1.2, lambda: transcribe(client, voice_note, seconds=0.7))


def test_a_retry_gets_only_the_time_that_is_left(client: Whisper, voice_note: Watched, whisper: FakeWhisper) -> None:
    whisper.will(fails(503), hangs())

    within(2, lambda: transcribe(client, voice_note, seconds=1.5))
    assert len(whisper.requests) == 2


def test_an_answer_that_trickles_in_ends_with_the_limit(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper
) -> None:
    whisper.default.trickle = 0.1

    within(1.2, lambda: transcribe(client, voice_note, seconds=0.7))


def test_an_upload_that_is_read_too_slowly_ends_with_the_limit(
    client: Whisper, tmp_path: Path, whisper: FakeWhisper
) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"\x5a" * 20_000_000)
    whisper.default.reads_slowly = 0.1

    with Watched(path) as file:
        within(1.2, lambda: transcribe(client, file, seconds=0.7))
        assert file.read_in_all < 20_000_000


def test_a_slow_answer_within_the_limit_is_an_answer(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper
) -> None:
    whisper.will(hangs(0.3))

    assert transcribe(client, voice_note, seconds=2) == TRANSCRIPT
    assert len(whisper.requests) == 1


def test_with_no_time_left_nothing_is_sent(client: Whisper, voice_note: Watched, whisper: FakeWhisper) -> None:
    with pytest.raises(ModelError, match="no time"):
        transcribe(client, voice_note, seconds=-1)
    assert whisper.requests == []
    assert whisper.connections == 0


def test_after_an_attempt_that_ran_out_of_time_the_next_transcription_works(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper
) -> None:
    whisper.will(hangs(1))
    within(1.2, lambda: transcribe(client, voice_note, seconds=0.5))

    assert transcribe(client, voice_note) == TRANSCRIPT


# Secrets


@pytest.mark.parametrize("status", [200, 400, 401, 503])
def test_neither_key_nor_words_nor_the_server_s_message_are_in_errors_and_logs(
    client: Whisper, voice_note: Watched, whisper: FakeWhisper, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level("INFO")
    whisper.default = Answer({"error": {"message": f"Bad key {KEY}, bad words: SECRET"}}, status=status)

    with pytest.raises((ModelUnavailable, UnusableAnswer)) as failure:
        transcribe(client, voice_note, seconds=0.7)

    said = caplog.text + json.dumps([str(failure.value), repr(failure.value)])
    assert KEY not in said
    assert "SECRET" not in said
