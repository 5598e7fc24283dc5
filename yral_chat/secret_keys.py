"""Secrets that others could guess are refused, and one that nobody set is made and kept."""

import os
import re
import secrets
from pathlib import Path

LEAST_BYTES = 32
WELL_KNOWN = (
    *("development", "production", "changeit", "changeme", "replace", "password", "passwd", "insecure", "example"),
    *("default", "sample", "secret", "change", "django", "signing", "private", "please", "random", "string"),
    *("super", "admin", "token", "value", "never", "test", "your", "yral", "chat", "this", "with", "here", "only"),
    *("used", "very", "long", "safe", "must", "key", "jwt", "not", "the", "for", "hs256", "todo", "foo", "bar", "xxx"),
    *("0123456789", "1234567890", "123456789", "12345678", "123456", "1234", "abcdefghijklmnopqrstuvwxyz", "abcdef"),
    *("characters", "minimum", "least", "bytes", "bits", "256", "32", "64", "or", "more", "and", "by", "on", "it"),
    *(
        "qwertyuiop",
        "asdfghjkl",
        "zxcvbnm",
        "qwerty",
        "deadbeef",
        "letmein",
        "in",
        "is",
        "at",
        "my",
        "to",
        "be",
        "an",
        "of",
        "me",
        "do",
        "a",
    ),
)


def is_weak(value: str) -> bool:
    """Well-known words and little else, few different characters, or the same again and again."""
    left = value.lower()
    for word in WELL_KNOWN:
        if len(word) > 3:
            left = left.replace(word, " ")
    left = "".join(word for word in re.split(r"[\s._-]+", left) if word not in WELL_KNOWN)
    return len(left) < 16 or len(set(left)) < 8 or value in (value + value)[1:-1]


def kept(path: Path) -> str:
    """The secret in this file; made at the first call, and the same for processes that call at once.

    Raises OSError, or ValueError for a file that holds none.
    """
    if not path.exists():
        _make(path)
    value = path.read_text(encoding="utf-8").strip()
    if len(value.encode()) < LEAST_BYTES:
        raise ValueError(path)
    return value


def _make(path: Path) -> None:
    """Whole or not at all: it is written elsewhere, and whoever links it to its name first has made it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was first
    finally:
        draft.unlink(missing_ok=True)
