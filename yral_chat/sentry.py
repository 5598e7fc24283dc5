"""Crashes, and nothing personal, to Sentry. Imported only where SENTRY_DSN is set.

Only what is logged with a traceback at ERROR is sent: our handler logs a 500 so, and no 4xx or 503; the threads of
streams log their crashes so, too. Of an event only what `scrubbed` takes over goes out.
"""

import logging
import time
from collections import deque
from typing import Any

import sentry_sdk
from django.conf import settings
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.excepthook import ExcepthookIntegration
from sentry_sdk.integrations.logging import LoggingIntegration, ignore_logger
from sentry_sdk.integrations.threading import ThreadingIntegration

from yral_chat.log import OURS, correlation_id, told_text, without_secrets

KEPT = (
    "event_id",
    "timestamp",
    "level",
    "logger",
    "platform",
    "environment",
    "release",
    "server_name",
    "sdk",
    "modules",
)
IGNORED = ("django.security.DisallowedHost", "sentry_sdk.errors")  # anybody can cause these

MOST, PERIOD = 5, 60.0  # reports of one place and kind, in so many seconds


def start() -> None:
    for logger in IGNORED:
        ignore_logger(logger)
    sentry_sdk.init(
        dsn=settings.SENTRY_DSN,
        environment=settings.ENVIRONMENT,
        release=settings.APP_VERSION,
        send_default_pii=False,
        max_request_body_size="never",
        include_local_variables=False,
        max_breadcrumbs=0,
        auto_session_tracking=False,
        send_client_reports=False,
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(level=None, event_level=logging.ERROR),
            AtexitIntegration(callback=lambda pending, timeout: None),
            DedupeIntegration(),
            ExcepthookIntegration(),
            ThreadingIntegration(propagate_scope=False),
        ],
        before_send=scrubbed,  # type: ignore[arg-type]
    )


def scrubbed(event: dict[str, Any], hint: dict[str, Any]) -> dict[str, Any] | None:
    """None: it isn't sent."""
    exceptions = (event.get("exception") or {}).get("values")
    if not exceptions or _is_repeated(exceptions[-1]):
        return None
    kept = {name: event[name] for name in KEPT if name in event}
    kept["tags"] = {"correlation_id": correlation_id.get()}
    kept["exception"] = {"values": [_without_values(exception) for exception in exceptions]}
    if message := (event.get("logentry") or {}).get("message"):
        kept["logentry"] = {"message": without_secrets(str(message))}  # the template, without its arguments
    return kept


_sent: dict[tuple[Any, ...], deque[float]] = {}


def _is_repeated(exception: dict[str, Any]) -> bool:
    """What is tried again and again, while the database is down, say, isn't reported each time. A place is the way
    through our own code, and the last frame: all statements end in the same lines, whoever sends them."""
    frames = (exception.get("stacktrace") or {}).get("frames") or []  # the outermost first
    ours = [frame for frame in frames if str(frame.get("module")).partition(".")[0] in OURS]
    place = [(frame.get("filename"), frame.get("lineno")) for frame in (*ours, *frames[-1:])]
    times = _sent.setdefault((exception.get("type"), *place), deque(maxlen=MOST))
    now = time.monotonic()
    if len(times) == MOST and now - times[0] < PERIOD:
        return True
    times.append(now)
    return False


def _without_values(exception: dict[str, Any]) -> dict[str, Any]:
    kind, module = str(exception.get("type") or ""), str(exception.get("module") or "builtins")
    frames = (exception.get("stacktrace") or {}).get("frames") or []
    return {
        "type": kind,
        "module": module,
        "value": told_text(module, kind, str(exception.get("value") or "")),
        "mechanism": {"type": (exception.get("mechanism") or {}).get("type") or "logging", "handled": True},
        "stacktrace": {"frames": [{name: frame[name] for name in frame if name != "vars"} for frame in frames]},
    }
