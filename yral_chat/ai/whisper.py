"""Speech to text by any server that speaks OpenAI's transcription API: OpenAI, Groq, speaches, whisper.cpp, vLLM.

Wire format: https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

import logging
from typing import BinaryIO

import httpx2
import orjson
from django.conf import settings

from yral_chat.ai import Deadline, ModelError, ModelUnavailable, Tally, UnusableAnswer
from yral_chat.ai.retrying import DeadlineTransport, Patience, TryAgain, failures_translated, is_passing, until

logger = logging.getLogger(__name__)

ABOUT_THE_AUDIO = frozenset({400, 413, 415, 422})


class Whisper:
    """One per process, with its connections."""

    def __init__(self) -> None:
        key = settings.WHISPER_API_KEY  # a server of one's own may want none
        self.url = f"{settings.WHISPER_BASE_URL.rstrip('/')}/audio/transcriptions"
        self.client = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=DeadlineTransport(),
            follow_redirects=False,
            trust_env=False,
        )

    def __del__(self) -> None:
        """Whoever drops it (a setting has changed) leaves no open connection behind. The SDK's clients do the same."""
        self.client.close()

    def transcribe(
        self, audio: BinaryIO, *, mime_type: str, extension: str, deadline: Deadline, tally: Tally | None = None
    ) -> str:
        """What is said in the file, never blank, with retries until `deadline`.

        The file is read from its start in small pieces, anew for each attempt. Servers go by the extension, which has
        no dot. ModelUnavailable: it may work later. UnusableAnswer: nothing was understood in this file.
        """
        file = (f"audio.{extension}", audio, mime_type)
        tally = tally or Tally()

        def attempt(seconds_left: float) -> str:
            tally.attempts += 1
            return read_transcript(self._ask(file, seconds_left, deadline))

        return until(deadline, attempt)

    def _ask(self, file: tuple[str, BinaryIO, str], timeout: float, deadline: Deadline) -> bytes:
        """One attempt."""
        file[1].seek(0)
        form = {"model": settings.WHISPER_MODEL, "response_format": "json"}
        with failures_translated(), Patience(deadline):
            response = self.client.post(self.url, data=form, files={"file": file}, timeout=timeout)
        if response.status_code != 200:
            raise _failure(response.status_code)
        return response.content


def read_transcript(raw: bytes) -> str:
    """The bytes of a 200. Raises UnusableAnswer where nothing was understood."""
    try:
        text = orjson.loads(raw)["text"].replace("\x00", "").strip()
    except (orjson.JSONDecodeError, AttributeError, TypeError, KeyError) as exc:
        raise UnusableAnswer("the transcription is malformed") from exc
    if not text:
        raise UnusableAnswer("nothing is said in the audio")
    return str(text)


def _failure(status: int) -> ModelError:
    """The server's message stays out of the text: it can quote the key."""
    if is_passing(status):
        return TryAgain(f"the transcription server answered {status}")
    if status in ABOUT_THE_AUDIO:
        logger.warning("The transcription server can't use an audio file or WHISPER_MODEL (%d).", status)
        return UnusableAnswer(f"the transcription server refused the audio with {status}")
    logger.error("The transcription server refuses us: %d. Check WHISPER_API_KEY and WHISPER_BASE_URL.", status)
    return ModelUnavailable(f"the transcription server refused the request with {status}")
