"""Google Gemini through the google-genai SDK: our dataclasses in, its REST bodies out, and back.

The request is handed to the SDK as a ready body (`HttpOptions.extra_body`) and the answer taken as bytes
(`should_return_http_response`): validating both again in pydantic is most of what a call costs in CPU.
Wire format: https://ai.google.dev/api/generate-content
"""

import logging
import threading
import time
from typing import Any

import httpcore2
import httpx2
import orjson
from django.conf import settings
from google import genai
from google.genai import errors, types
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from yral_chat.ai import ModelError, ModelUnavailable, Prompt, Reply, UnusableAnswer

logger = logging.getLogger(__name__)

ATTEMPTS = 4
SHORTEST_ATTEMPT = 0.5  # seconds; with less left, another try can't succeed
BLOCKED = frozenset({"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY"})


class TryAgain(ModelUnavailable):
    """Down for the moment: 408, 429, 5xx, a timeout, a reset or stale connection."""


IN_THE_BODY = types.Content(role="user", parts=[])


class ReadyConfig(types.GenerateContentConfig):
    """The SDK asks `key in config` for each of some forty keys, which walks through all fields each time; this makes it
    go on at once to the attribute. With the empty contents it halves what the SDK adds to a call."""

    def __contains__(self, key: str) -> bool:
        return False


class DeadlineTransport(httpx2.HTTPTransport):
    """httpx times each read of an answer; this ends the whole of it, so that a trickle can't outlast its attempt."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        self._pool = httpcore2.ConnectionPool(
            ssl_context=httpx2.create_ssl_context(),
            max_connections=connections,
            max_keepalive_connections=connections,
            keepalive_expiry=30,
            network_backend=_DeadlineBackend(),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """`timeout` is for everything; connecting, writing and waiting for a place in the pool may take 3 s of it."""
        timeout = request.extensions["timeout"]
        _running.deadline = time.monotonic() + (timeout["read"] or 60)
        timeout.update({phase: min(timeout[phase] or 3, 3) for phase in ("connect", "write", "pool")})
        return super().handle_request(request)


_running = threading.local()  # the deadline of the attempt that this thread is in


class _DeadlineBackend(httpcore2.SyncBackend):
    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        return _DeadlineStream(super().connect_tcp(*args, **kwargs))


class _DeadlineStream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self.stream = stream
        self.write, self.close = stream.write, stream.close  # type: ignore[method-assign]
        self.get_extra_info = stream.get_extra_info  # type: ignore[method-assign]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = _running.deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the answer trickled in for too long")
        return self.stream.read(max_bytes, left)

    def start_tls(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        return _DeadlineStream(self.stream.start_tls(*args, **kwargs))


class Gemini:
    """One per process. Its connection pool has a place for every thread."""

    def __init__(self) -> None:
        transport = DeadlineTransport(settings.WEB_THREADS)
        self.client = genai.Client(
            vertexai=False,
            api_key=settings.GEMINI_API_KEY,
            http_options=types.HttpOptions(
                api_version="v1beta",  # where system instructions and thinking budgets are documented
                base_url=settings.GEMINI_BASE_URL or None,
                client_args={"transport": transport, "follow_redirects": False},
            ),
        )

    def generate(self, prompt: Prompt, deadline: float) -> Reply:
        body = request_body(prompt)
        model = prompt.model or settings.GEMINI_MODEL

        def seconds_left() -> float:
            return deadline - time.monotonic()

        def too_late(state: RetryCallState) -> bool:
            return seconds_left() < state.upcoming_sleep + SHORTEST_ATTEMPT

        retrying = Retrying(
            retry=retry_if_exception(lambda exc: isinstance(exc, TryAgain)),
            wait=wait_exponential_jitter(initial=0.3, max=3, jitter=0.3),
            stop=lambda state: state.attempt_number >= ATTEMPTS or too_late(state),
            before_sleep=_log_retry,
            reraise=True,
        )
        if seconds_left() <= 0:
            raise ModelUnavailable("no time was left to ask the model")
        return retrying(lambda: read_answer(self._ask(model, body, seconds_left()), model))

    def _ask(self, model: str, body: dict[str, Any], timeout: float) -> bytes:
        """One attempt; the SDK's own retries are off. Translates everything foreign that can be raised."""
        config = ReadyConfig(
            http_options=types.HttpOptions(timeout=max(1, int(timeout * 1000)), extra_body=body),
            should_return_http_response=True,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )
        try:
            response = self.client.models.generate_content(model=model, contents=IN_THE_BODY, config=config)
        except errors.APIError as exc:
            raise _unavailable(exc) from exc
        except httpx2.TimeoutException as exc:
            raise TryAgain("the model took too long") from exc
        except httpx2.HTTPError as exc:
            raise TryAgain(f"the connection to the model failed ({type(exc).__name__})") from exc
        except (ValueError, UnicodeError) as exc:  # an answer that the SDK can't read
            raise UnusableAnswer("the model's answer is malformed") from exc
        return (response.sdk_http_response.body or "").encode() if response.sdk_http_response else b""


def request_body(prompt: Prompt) -> dict[str, Any]:
    config: dict[str, Any] = {
        "temperature": _first(prompt.temperature, settings.GEMINI_TEMPERATURE),
        "maxOutputTokens": _first(prompt.max_output_tokens, settings.GEMINI_MAX_TOKENS),
    }
    if settings.GEMINI_THINKING_BUDGET is not None:
        config["thinkingConfig"] = {"thinkingBudget": settings.GEMINI_THINKING_BUDGET}
    return {
        "systemInstruction": {"parts": [{"text": prompt.system_instruction}]},
        "contents": [{"role": c.role, "parts": [{"text": part} for part in c.parts]} for c in prompt.contents],
        "generationConfig": config,
    }


def read_answer(raw: bytes, model: str) -> Reply:
    """The bytes of a 200. Raises UnusableAnswer where there is nothing to show."""
    try:
        answer = orjson.loads(raw)
        candidate = (answer.get("candidates") or [{}])[0]
        reason = str(candidate.get("finishReason") or "")
        parts = (candidate.get("content") or {}).get("parts") or []
        text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
        text = text.replace("\x00", "").strip()
        tokens = (answer.get("usageMetadata") or {}).get("candidatesTokenCount")
        stopped = (answer.get("promptFeedback") or {}).get("blockReason") or (reason if reason in BLOCKED else "")
    except (orjson.JSONDecodeError, AttributeError, TypeError, IndexError, KeyError) as exc:
        raise UnusableAnswer("the model's answer is malformed") from exc
    if stopped:
        return Reply(text="", model=model, blocked=True, finish_reason=str(stopped))
    if not text:
        raise UnusableAnswer(f"the model's answer is empty (finish reason {reason or 'missing'})")
    return Reply(text=text, model=model, finish_reason=reason or "STOP", token_count=_count(tokens))


def _count(tokens: object) -> int | None:
    return tokens if type(tokens) is int and 0 <= tokens < 2**31 else None


def _first[T](value: T | None, default: T) -> T:
    return default if value is None else value


def _unavailable(exc: errors.APIError) -> ModelError:
    """Google's message stays out of the text: it can quote the request."""
    if exc.code in (408, 429) or exc.code >= 500:
        return TryAgain(f"the model answered {exc.code} {exc.status or ''}".strip())
    logger.error(
        "Gemini refuses our requests: %s %s. Check GEMINI_API_KEY, GEMINI_MODEL and the persona's model settings.",
        exc.code,
        exc.status,
    )
    return ModelUnavailable(f"the model refused the request with {exc.code} {exc.status or ''}".strip())


def _log_retry(state: RetryCallState) -> None:
    exc = state.outcome.exception() if state.outcome else None
    logger.info("Model call, attempt %d failed (%s), next in %.1f s", state.attempt_number, exc, state.upcoming_sleep)
