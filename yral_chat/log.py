"""Log lines: how each is written, where to, and what ties it to its request.

Nothing that users say, and no token, key or signed address, is in any line. Our own lines carry chosen fields. Of what
others log the texts are searched for secrets, and of foreign exceptions only those texts are told that hold no values.
"""

import datetime as dt
import json
import logging
import os
import re
import select
import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from functools import cache
from itertools import accumulate, groupby
from types import TracebackType
from typing import Any

import orjson
import structlog
from django.conf import settings

from yral_chat.logfile import LogFile

NOBODY_S = "-"
correlation_id: ContextVar[str] = ContextVar("correlation_id", default=NOBODY_S)

STDOUT = 1
OURS = frozenset({"yral_chat", "personas", "media_uploads", "conversations"})
# Foreign exceptions whose first line names things and never values.
PLAIN = frozenset({"OperationalError", "ProgrammingError", "InterfaceError", "IntegrityError", "PoolTimeout"})
PLAIN_BUILT_IN = frozenset({"AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError"})
HIDDEN = "[hidden]"
LONGEST, LEFT_OUT = 3000, "  ...\n"  # characters of a traceback's frames, and what stands for those that don't fit
SECRETS = re.compile(
    r"""eyJ[\w-]{5,}(?:\.[\w-]*){0,2}                # a token
    |AIza[\w-]{10,}                                  # a key of Google's
    |(?i:bearer)\s+[\w.~+/=-]+
    |(?<=[?&])(?i:signature|sig|key|token|access_token|x-amz-[\w-]+)=[^\s&'">]+
    |(?<=://)[^/\s:@]*:[^@\s/]+(?=@)                 # a password in an address
    """,
    re.VERBOSE,
)
SECRET_SETTINGS = (
    *("SECRET_KEY", "JWT_SECRET_KEY", "GEMINI_API_KEY", "WHISPER_API_KEY", "METRICS_TOKEN"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "SENTRY_DSN"),
    *("LITESTREAM_ACCESS_KEY_ID", "LITESTREAM_SECRET_ACCESS_KEY"),
)


def fields_apart(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """structlog's last step: an ordinary record whose fields LineFormatter finds again."""
    exc_info = event.pop("exc_info", None)
    return (event.pop("event"),), {"extra": {"fields": event}, "exc_info": exc_info}


# What no line shows needn't be looked up for each.
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False

structlog.configure(
    processors=[fields_apart],
    wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),  # each logger's own level decides
    logger_factory=structlog.stdlib.LoggerFactory(),
    cache_logger_on_first_use=True,
)


class LineFormatter(logging.Formatter):
    """`style` json: an object a line. text: for people. A record of any sort becomes a line; none is an error."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.render = _as_json if style == "json" else _as_text

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self.render(_line_of(record))
        except Exception as exc:
            trouble = f"a line of {record.pathname}:{record.lineno} can't be shown ({type(exc).__name__})"
            return self.render(_head(record) | {"event": trouble})


def _head(record: logging.LogRecord) -> dict[str, Any]:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return {
        "timestamp": moment.isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        "correlation_id": correlation_id.get(),
    }


def _line_of(record: logging.LogRecord) -> dict[str, Any]:
    line = _head(record)
    fields = getattr(record, "fields", None)
    if isinstance(fields, Mapping):
        line["event"] = record.msg
        line.update(fields)
    else:
        line["event"] = without_secrets(_message(record))
    if record.exc_info and record.exc_info[1]:
        line["exception"] = traceback_of(record.exc_info[1])
    return line


def _message(record: logging.LogRecord) -> str:
    """As record.getMessage(), with exceptions told as told() tells them."""
    args: Any = record.args
    if isinstance(args, tuple):
        args = tuple(told(arg) if isinstance(arg, BaseException) else arg for arg in args)
    message = told(record.msg) if isinstance(record.msg, BaseException) else str(record.msg)
    return message % args if args else message


def _as_json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, str, orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # a lone surrogate, a number of more than 64 bits, an object that can't be shown
        return json.dumps({str(key): value for key, value in line.items()}, default=_anything)


def _anything(value: object) -> str:
    try:
        return str(value)
    except Exception as exc:
        return f"<{type(value).__name__}: {type(exc).__name__}>"


def _as_text(line: dict[str, Any]) -> str:
    head = [line.pop(name) for name in ("timestamp", "level", "logger", "correlation_id", "event")]
    exception = line.pop("exception", "")
    shown = f"{head[0]} {head[1].upper()} {head[2]} [{head[3]}] {_on_one_line(head[4])}"
    shown += "".join(f" {name}={_on_one_line(value)}" for name, value in line.items() if value is not None)
    return f"{shown}\n{exception}" if exception else shown


def _on_one_line(value: object) -> str:
    text = _anything(value)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


# Exceptions


def told(exc: BaseException) -> str:
    """What a line may say of an exception."""
    kind = type(exc)
    if isinstance(exc, OSError) and kind.__module__ == "builtins":
        return f"{kind.__name__}: {exc.strerror or ''}".rstrip(": ")
    text = told_text(kind.__module__, kind.__name__, _anything(exc))
    return f"{kind.__name__}: {text}" if text and not _is_ours(kind.__module__) else text or kind.__name__


def told_text(module: str, kind: str, text: str) -> str:
    """The part of an exception's text that holds no values: ours are written so; most others may quote what was
    sent."""
    if _is_ours(module) or kind in PLAIN or (kind in PLAIN_BUILT_IN and module == "builtins"):
        return without_secrets(text.partition("\n")[0])
    return ""


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in OURS


def traceback_of(exc: BaseException) -> str:
    """Where it came from, its causes first; no variables. A line with it stays below 4 KB: see write_all."""
    parts, chain = [], list(causes(exc))
    for each in reversed(chain):
        frames = _frames_of(each.__traceback__, LONGEST // len(chain))
        name = f"{type(each).__module__}.{type(each).__qualname__}"
        text = told(each).removeprefix(type(each).__name__).removeprefix(": ")
        parts.append(f"Traceback (most recent call last):\n{frames}{name}{': ' + text if text else ''}")
    return "\n\nwhich led to:\n\n".join(parts)


def _frames_of(where: TracebackType | None, most: int) -> str:
    """As many as fit into so many characters: the last one, then those of our code, then the others, from the last."""
    stack = traceback.extract_tb(where)
    texts = [stack.format_frame_summary(frame) for frame in stack]
    ours = [_is_ours(frame.f_globals.get("__name__") or "") for frame, _ in traceback.walk_tb(where)]
    order = sorted(range(len(texts)), key=lambda n: (n + 1 != len(texts), not ours[n], -n))
    sums = accumulate(len(texts[n]) for n in order)
    kept = {n for n, size in zip(order, sums, strict=True) if size <= most or n + 1 == len(texts)}
    shown = [texts[n] if n in kept else LEFT_OUT for n in range(len(texts))]
    return "".join(text for text, _ in groupby(shown))  # gaps, and the frames of a recursion, once


def causes(exc: BaseException | None) -> Iterator[BaseException]:
    """It, and what it came from: of a group, the first in it."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        if isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        else:
            exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)


def without_secrets(text: str) -> str:
    text = SECRETS.sub(HIDDEN, text)
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


@cache
def _secrets() -> tuple[str, ...]:
    values = [getattr(settings, name, "") for name in SECRET_SETTINGS]
    values.append(settings.DATABASES["default"].get("PASSWORD") or "")
    return tuple(value for value in values if len(value) >= 8)


# Where lines go


class CrashFilter(logging.Filter):
    """Of what Django says of bad answers only the crashes: our own handler and the request's line tell the rest."""

    def filter(self, record: logging.LogRecord) -> bool:
        return bool(record.exc_info)


class WebSocketFilter(logging.Filter):
    """uvicorn tells of each WebSocket that it refuses with its address, whole."""

    def filter(self, record: logging.LogRecord) -> bool:
        return '"WebSocket %s"' not in str(record.msg)


class Output(logging.Handler):
    """Standard output and, if there is a name, a file: a line is made once for both. Never raises."""

    def __init__(self, file: str, most_bytes: int, backups: int) -> None:
        super().__init__()
        self.file = LogFile(file, most_bytes, backups) if file else None

    def emit(self, record: logging.LogRecord) -> None:
        line = (self.format(record) + "\n").encode(errors="backslashreplace")
        write_all(STDOUT, line)
        if self.file and (trouble := self.file.write(line)):
            said = logging.LogRecord(__name__, logging.ERROR, __file__, 0, trouble, None, None)
            write_all(STDOUT, (self.format(said) + "\n").encode(errors="backslashreplace"))


def write_all(descriptor: int, line: bytes) -> None:
    """Lines of up to 4 KB aren't mixed with those of other processes, by POSIX's promise for pipes."""
    try:
        while line:
            try:
                line = line[os.write(descriptor, line) :]
            except BlockingIOError:  # somebody made it so; a reader that is stuck for a second loses the line
                if not select.select([], [descriptor], [], 1)[1]:
                    return
    except OSError:
        pass  # nobody listens any more
