"""Key → stored, key → URL. Files lie in a folder, or in any S3-compatible bucket (USE_S3); callers can't tell.

A key is `<owner>/<uuid>.<ext>`, made here and nowhere else. A URL is signed anew at each reading and never stored; it
stays the same for a third of its life, so that clients can cache what it shows.
"""

import functools
import hashlib
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import FileSystemStorage, storages
from django.core.signing import Signer
from django.utils.crypto import constant_time_compare
from s3transfer.exceptions import RetriesExceededError
from storages.backends.s3 import S3Storage

from yral_chat.errors import StorageUnavailable

MIME_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "mp3": "audio/mpeg",
    "m4a": "audio/mp4",
    "wav": "audio/wav",
    "ogg": "audio/ogg",
    "webm": "audio/webm",
}
PLAIN_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
KEY = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9_-]{0,127}|~[0-9a-f]{32})/"
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(?:" + "|".join(MIME_TYPES) + ")"
)


class MissingFile(Exception):
    """There is no such file (any more)."""


class LocalMedia(FileSystemStorage):
    """Files below MEDIA_UPLOAD_DIR; links to them are signed by SECRET_KEY and served at /media."""

    def __init__(self) -> None:
        super().__init__(location=settings.MEDIA_UPLOAD_DIR, file_permissions_mode=0o640)


class S3Media(S3Storage):  # type: ignore[misc]
    """One client per process; django-storages would make one per thread, 12 MB each."""

    def __init__(self) -> None:
        super().__init__(
            access_key=settings.AWS_ACCESS_KEY_ID,
            secret_key=settings.AWS_SECRET_ACCESS_KEY,
            bucket_name=settings.AWS_S3_BUCKET,
            region_name=settings.AWS_REGION,
            endpoint_url=settings.S3_ENDPOINT_URL or None,
            client_config=Config(
                s3={"addressing_style": cast(Any, settings.S3_ADDRESSING_STYLE)},
                signature_version="s3v4",
                connect_timeout=3,
                read_timeout=10,  # callers wait 30 s, and it is tried twice
                retries={"total_max_attempts": 2, "mode": "standard"},
                max_pool_connections=64,
                request_checksum_calculation="when_required",  # stores that aren't Amazon's don't know the newer ones
                response_checksum_validation="when_required",
            ),
            transfer_config=TransferConfig(multipart_threshold=128 * 1024 * 1024, use_threads=False),  # streamed
            querystring_expire=settings.S3_URL_EXPIRES_SECONDS,
            file_overwrite=True,  # every key is a new UUID: nobody has to look first
            default_acl=None,
            object_parameters={"ContentDisposition": "inline", "CacheControl": "private, max-age=31536000, immutable"},
        )
        self._connections = SimpleNamespace()
        self._first = threading.Lock()

    @property
    def connection(self) -> Any:
        with self._first:
            return super().connection


def key_for(owner_id: str, extension: str) -> str:
    plain = PLAIN_OWNER.fullmatch(owner_id)
    owner = owner_id if plain else "~" + hashlib.sha256(owner_id.encode()).hexdigest()[:32]
    return f"{owner}/{uuid.uuid4()}.{extension}"


def mime_type_of(key: str) -> str:
    return MIME_TYPES[key.rpartition(".")[2]]


def warm_up() -> None:
    """Makes the one S3 client of the process, which takes half a second, and no connection."""
    storage = media()
    if isinstance(storage, S3Media):
        storage.url("warm/up.jpg")


def media() -> Any:
    return storages["media"]


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise MissingFile from exc
    except ClientError as exc:
        code = exc.response.get("Error", {}).get("Code")
        if code in ("NoSuchKey", "404"):  # and not NoSuchBucket; a HEAD's answer has no body to name a code in
            raise MissingFile from exc
        raise StorageUnavailable(f"the bucket refused: {code}") from exc
    except (BotoCoreError, RetriesExceededError, OSError) as exc:
        raise StorageUnavailable(f"the storage doesn't answer ({type(exc).__name__})") from exc


def check() -> None:
    """That files can be kept and found. Raises StorageUnavailable. No file is left behind."""
    if settings.USE_S3:
        with _translated():
            media().connection.meta.client.head_bucket(Bucket=settings.AWS_S3_BUCKET)
        return
    try:
        settings.MEDIA_UPLOAD_DIR.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.MEDIA_UPLOAD_DIR) as file:
            file.write(b"?")
    except OSError as exc:
        raise StorageUnavailable(f"MEDIA_UPLOAD_DIR can't be written ({exc.strerror})") from exc


def save(key: str, content: BinaryIO) -> None:
    """Raises StorageUnavailable."""
    file: Any = File(content, name=key)
    file.content_type = mime_type_of(key)  # else a bucket's is guessed from the name: video/webm
    try:
        with _translated():
            media().save(key, file)
    except MissingFile as exc:  # the folder vanished, or can't be made
        raise StorageUnavailable("there is no place to write to") from exc


def read(key: str) -> bytes:
    """Raises MissingFile or StorageUnavailable."""
    with _translated(), media().open(key, "rb") as file:
        return bytes(file.read())


def open_local(key: str) -> BinaryIO:
    """A file of the folder; raises MissingFile."""
    with _translated():
        return media().open(key, "rb")  # type: ignore[no-any-return]


def delete(key: str) -> None:
    with _translated():
        media().delete(key)


def all_keys() -> Iterator[str]:
    """Of every file of ours that is there; who shares the folder or the bucket with us keeps theirs."""
    for folder in _listed("")[0]:
        for name in _listed(folder)[1]:
            if KEY.fullmatch(f"{folder}/{name}"):
                yield f"{folder}/{name}"


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Folders and files; none in a folder that isn't there, as before the first upload."""
    try:
        with _translated():
            return media().listdir(folder)  # type: ignore[no-any-return]
    except MissingFile:
        return [], []


def written_at(key: str) -> datetime:
    """Aware; in the far future for a file that is gone by now."""
    try:
        with _translated():
            return media().get_modified_time(key)  # type: ignore[no-any-return]
    except MissingFile:
        return datetime.max.replace(tzinfo=UTC)


# Links
def url_for(key: str, base_url: str) -> str:
    """A link that anybody can read for a while. `base_url`: of the request, see pagination.py."""
    life = settings.S3_URL_EXPIRES_SECONDS
    period = int(time.time() // max(1, life // 3))
    if settings.USE_S3:
        return _presigned(key, period)
    expires = (period + 3) * max(1, life // 3)
    return (
        f"{settings.MEDIA_BASE_URL or base_url + '/media'}/{key}?expires={expires}&signature={_signature(key, expires)}"
    )


@functools.lru_cache(maxsize=10_000)
def _presigned(key: str, period: int) -> str:
    """Signing takes 0.5 ms; what was signed in a period is used again."""
    return str(media().url(key))


def holds(key: str, expires: str, signature: str) -> bool:
    """Was this link made here, and is it still good?"""
    if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
        return False
    return constant_time_compare(_signature(key, int(expires)), signature) and time.time() < int(expires)


def _signature(key: str, expires: int) -> str:
    return _signer().signature(f"{key}?{expires}")


@functools.cache
def _signer() -> Signer:
    return Signer(salt="media_uploads.links")


def key_of(url: str, base_url: str) -> str | None:
    """The key in a key, or in a link of ours, expired or not; None for what isn't ours."""
    if KEY.fullmatch(url):
        return url
    if not url.lower().startswith(("https://", "http://")):
        return None
    address = url.partition("?")[0].partition("#")[0]
    for prefix in _prefixes(base_url):
        if address.startswith(prefix + "/") and KEY.fullmatch(address[len(prefix) + 1 :]):
            return address[len(prefix) + 1 :]
    return None


def _prefixes(base_url: str) -> list[str]:
    bucket, endpoint = settings.AWS_S3_BUCKET, settings.S3_ENDPOINT_URL or "https://s3.amazonaws.com"
    found = [settings.MEDIA_BASE_URL or f"{base_url}/media", f"{base_url}/media", settings.S3_PUBLIC_URL_BASE]
    if settings.USE_S3:
        scheme, host = urlsplit(endpoint)[:2]
        regional = f"s3.{settings.AWS_REGION}.amazonaws.com"
        hosts = [host] if settings.S3_ENDPOINT_URL else [host, regional]
        found += [f"{scheme}://{one}/{bucket}" for one in hosts] + [f"{scheme}://{bucket}.{one}" for one in hosts]
    return [prefix for prefix in found if prefix]
