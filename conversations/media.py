"""What messages show, opened: uploads from the storage, external addresses only where that is switched on."""

import io
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

from django.conf import settings

from media_uploads import inspection, pictures, sounds, storage
from media_uploads.fetching import CannotFetch, fetch_external
from yral_chat.ai import Blob
from yral_chat.errors import StorageUnavailable

logger = logging.getLogger(__name__)
_readers = ThreadPoolExecutor(16, thread_name_prefix="media")
FETCH_SECONDS = 5.0
MEGABYTE = 1024 * 1024


class CannotOpen(Exception):
    pass


def picture_for_model(url: str, deadline: float) -> Blob | None:
    """None if it can't be opened, which never fails the turn."""
    try:
        if storage.KEY.fullmatch(url):
            return pictures.for_model(url, read=lambda key: _stored(key, deadline))
        return pictures.for_model(url, read=lambda url: _fetched_picture(url, deadline))
    except (storage.MissingFile, StorageUnavailable, CannotOpen, inspection.NotAcceptable, ValueError, OSError) as exc:
        logger.warning("A picture couldn't be opened for the model: %s", exc or type(exc).__name__)
        return None


@contextmanager
def opened(url: str, deadline: float) -> Iterator[tuple[BinaryIO, str]]:
    """A sound and its extension. Raises CannotOpen."""
    try:
        if storage.KEY.fullmatch(url):
            with io.BytesIO(_stored(url, deadline)) as sound:
                yield sound, url.rpartition(".")[2]
        else:
            fetched = io.BytesIO(_fetched(url, settings.MAX_AUDIO_SIZE_MB * MEGABYTE, deadline))
            yield fetched, sounds.inspect_audio(fetched, max_seconds=settings.MAX_AUDIO_DURATION_SECONDS).extension
    except (storage.MissingFile, StorageUnavailable, inspection.NotAcceptable) as exc:
        raise CannotOpen(str(exc) or type(exc).__name__) from exc


def _fetched_picture(url: str, deadline: float) -> bytes:
    data = _fetched(url, settings.MAX_IMAGE_SIZE_MB * MEGABYTE, deadline)
    with inspection.inspect_image(io.BytesIO(data)).content as picture:
        return picture.read()


def _stored(key: str, deadline: float) -> bytes:
    """The storage's own timeouts are longer than a turn has time for."""
    reading = _readers.submit(storage.read, key)
    try:
        return reading.result(timeout=max(0.0, deadline - time.monotonic()))
    except TimeoutError as exc:
        reading.cancel()
        raise CannotOpen("the storage took too long") from exc


def _fetched(url: str, most: int, deadline: float) -> bytes:
    if not settings.ALLOW_EXTERNAL_MEDIA:
        raise CannotOpen("external addresses are not opened (ALLOW_EXTERNAL_MEDIA)")
    try:
        return fetch_external(url, max_bytes=most, timeout=min(FETCH_SECONDS, deadline - time.monotonic()))
    except CannotFetch as exc:
        raise CannotOpen(str(exc)) from exc
