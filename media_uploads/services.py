import contextlib
import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from django.conf import settings

from media_uploads import inspection, sounds, storage
from media_uploads.inspection import Inspected
from media_uploads.models import MediaUpload
from yral_chat import metrics
from yral_chat.errors import BadRequest, Forbidden, Invalid, StorageUnavailable, TooLarge

logger = logging.getLogger(__name__)
MEGABYTE = 1024 * 1024


def store_upload(*, owner_id: str, kind: str, file: BinaryIO, size: int) -> MediaUpload:
    """As _store, and counted."""
    outcome = "failed"
    try:
        upload = _store(owner_id=owner_id, kind=kind, file=file, size=size)
        outcome = "stored"
    except (BadRequest, TooLarge):
        outcome = "refused"
        raise
    finally:
        metrics.UPLOADS.labels(kind, outcome).inc()
    return upload


def _store(*, owner_id: str, kind: str, file: BinaryIO, size: int) -> MediaUpload:
    """Keep a picture or a sound: what the bytes are decides. Raises TooLarge, BadRequest or StorageUnavailable."""
    with looked_at(kind=kind, file=file, size=size) as inspected:
        return _keep(owner_id, inspected)


@contextlib.contextmanager
def looked_at(*, kind: str, file: BinaryIO, size: int) -> Iterator[Inspected]:
    """What can be taken, open meanwhile and kept nowhere. Raises TooLarge, BadRequest or StorageUnavailable."""
    most = settings.MAX_IMAGE_SIZE_MB if kind == MediaUpload.Kind.IMAGE else settings.MAX_AUDIO_SIZE_MB
    if size > most * MEGABYTE:
        raise TooLarge(f"The file is too large: at most {most} MB are allowed for this type.")
    try:
        inspected = _inspect(kind, file)
    except inspection.NotAcceptable as exc:
        raise BadRequest(str(exc)) from exc
    except OSError as exc:
        raise StorageUnavailable(f"no temporary file can be written ({exc.strerror})") from exc
    with contextlib.ExitStack() as closing:
        if inspected.content is not file:
            closing.enter_context(contextlib.closing(inspected.content))
        yield inspected


def _inspect(kind: str, file: BinaryIO) -> Inspected:
    if kind == MediaUpload.Kind.IMAGE:
        return inspection.inspect_image(file)
    return sounds.inspect_audio(file, max_seconds=settings.MAX_AUDIO_DURATION_SECONDS)


def _keep(owner_id: str, inspected: Inspected) -> MediaUpload:
    """The file first: a file without a row is found by purge_media, a row without a file would be a broken message."""
    key = storage.key_for(owner_id, inspected.extension)
    digest = hashlib.file_digest(inspected.content, "sha256").hexdigest()  # type: ignore[arg-type]
    inspected.content.seek(0)
    storage.save(key, inspected.content)
    return MediaUpload.objects.create(
        owner_id=owner_id,
        storage_key=key,
        kind=inspected.kind,
        size=inspected.size,
        mime_type=inspected.mime_type,
        width=inspected.width,
        height=inspected.height,
        duration_seconds=inspected.duration_seconds,
        sha256=digest,
    )


def use_uploads(*, owner_id: str, pictures: list[str], sounds: list[str]) -> dict[str, MediaUpload]:
    """The author's own uploads behind these keys. Raises Forbidden for any other, Invalid for the wrong kind.

    Call it in the transaction that stores the message: till its end nobody purges them.
    """
    keys = [*pictures, *sounds]
    if not keys:
        return {}
    mine = MediaUpload.objects.owned_by(owner_id).with_keys(keys).select_for_update().order_by("pk")
    found = {upload.storage_key: upload for upload in mine}
    if set(keys) - found.keys():
        raise Forbidden("A message can only use files that you uploaded yourself.")
    if any(found[key].kind != MediaUpload.Kind.IMAGE for key in pictures):
        raise Invalid("A picture is expected here, and this upload is a sound.", loc=["body", "media_urls"])
    if any(found[key].kind != MediaUpload.Kind.AUDIO for key in sounds):
        raise Invalid("A sound is expected here, and this upload is a picture.", loc=["body", "audio_url"])
    return found


def count_use(keys: list[str]) -> None:
    """A message now shows them. Call it in the transaction that stores the message."""
    if keys:
        MediaUpload.objects.with_keys(keys).count_use(+1)


def release(keys_by_message: list[list[str]]) -> list[str]:
    """These messages go. The keys of what no message shows any more: delete_files() them after the commit."""
    uses = Counter(key for keys in keys_by_message for key in set(keys))
    if not uses:
        return []
    for times in set(uses.values()):
        MediaUpload.objects.with_keys([key for key, count in uses.items() if count == times]).count_use(-times)
    gone = MediaUpload.objects.with_keys(list(uses)).filter(use_count=0)
    keys = list(gone.values_list("storage_key", flat=True))
    gone.delete()
    return keys


def delete_files(keys: list[str], *, until: float = math.inf) -> None:
    """What can't be deleted, or not until then (of time.monotonic), is found by purge_media."""
    for key in keys:
        if time.monotonic() > until:
            return
        try:
            storage.delete(key)
        except StorageUnavailable as exc:
            logger.warning("A file stays until the next purge_media: %s", exc)
            return
