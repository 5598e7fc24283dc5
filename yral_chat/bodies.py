"""How large a request's body may be. Too large is 413, after reading as much again: who is cut off in the middle of
writing never sees the answer."""

from typing import IO, Any, Protocol

from django.conf import settings
from django.core.exceptions import RequestDataTooBig

PIECE = 64 * 1024
PATIENCE = 30.0  # seconds in which a client takes or gives nothing


WITH_FILES = ("/media/upload", "/playground/say/", "/playground/picture/", "/playground/listen/")


def most_bytes(path: str) -> int:
    """Of a body sent to this path."""
    return settings.UPLOAD_MAX_BODY_SIZE if path.endswith(WITH_FILES) else settings.DATA_UPLOAD_MAX_MEMORY_SIZE


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def copy(source: Readable, most: int, *, to: IO[bytes] | None = None) -> int:
    """How many bytes it read, and threw away without `to`; it stops when they are more than `most`."""
    size = 0
    while size <= most and (chunk := source.read(PIECE)):
        size += len(chunk)
        if to:
            to.write(chunk)
    return size


def check_length(request: Any) -> None:
    """Of a body whose length was told. Raises RequestDataTooBig."""
    most = most_bytes(request.path)
    if int(request.META.get("CONTENT_LENGTH") or 0) > most:
        copy(request, 2 * most)
        raise RequestDataTooBig
