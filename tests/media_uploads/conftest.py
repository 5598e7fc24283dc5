"""Files that users send, a folder of its own for every test, and a bucket that is a real HTTP server."""

import io
import uuid
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from moto.server import ThreadedMotoServer
from PIL import Image

from media_uploads import storage
from tests.conftest import Api

UPLOAD = "/api/v1/media/upload"
BUCKET = "yral-media"


def png(width: int = 3, height: int = 2, colour: str = "teal") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


def wav(seconds: float = 1.5, *, rate: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(bytes(round(seconds * rate) * channels * 2))
    return file.getvalue()


def upload(api: Api, content: bytes, kind: str = "image", name: str = "photo.png", **fields: Any) -> Any:
    """As an app does it, through the real address."""
    body = {"file": SimpleUploadedFile(name, content), "type": kind, **fields}
    return api.client.post(UPLOAD, body, headers=api.headers())


def kept(api: Api, content: bytes = b"", kind: str = "image") -> dict[str, Any]:
    response = upload(api, content or (png() if kind == "image" else wav()), kind)
    assert response.status_code == 200, response.content
    return dict(response.json())


def part(disposition: str, content: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: {disposition}", *headers])
    return b"--frontier\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def multipart(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--frontier--\r\n"


def form(content: bytes, kind: str) -> bytes:
    """The whole body, as a browser would write it."""
    return multipart(
        part('form-data; name="type"', kind.encode()),
        part('form-data; name="file"; filename="f"', content, "Content-Type: application/octet-stream"),
    )


def a_key(owner: str = "alice", extension: str = "png") -> str:
    return f"{owner}/{uuid.uuid4()}.{extension}"


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def forget_storage(settings: Any, backend: str) -> None:
    """Django and the links keep what they made from the settings; so would the next test."""
    settings.STORAGES = {**settings.STORAGES, "media": {"BACKEND": f"media_uploads.storage.{backend}"}}
    storage._presigned.cache_clear()
    storage._signer.cache_clear()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """MEDIA_UPLOAD_DIR of this test."""
    settings.MEDIA_UPLOAD_DIR = tmp_path / "media"
    forget_storage(settings, "LocalMedia")
    yield tmp_path / "media"
    storage._presigned.cache_clear()
    storage._signer.cache_clear()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def use_s3(settings: Any) -> Callable[..., None]:
    """USE_S3=true with these settings; whether anybody answers there is another matter."""

    def use(endpoint: str = "", **changed: Any) -> None:
        settings.USE_S3 = True
        settings.AWS_ACCESS_KEY_ID, settings.AWS_SECRET_ACCESS_KEY = "the-key-id", "the-secret-access-key"
        settings.AWS_S3_BUCKET, settings.AWS_REGION = BUCKET, "us-east-1"
        settings.S3_ENDPOINT_URL = endpoint
        settings.S3_ADDRESSING_STYLE, settings.S3_PUBLIC_URL_BASE = "auto", ""
        for name, value in changed.items():
            setattr(settings, name, value)
        forget_storage(settings, "S3Media")

    return use


@pytest.fixture
def bucket(s3_server: str, use_s3: Callable[..., None]) -> Iterator[Any]:
    """The service's bucket on the server, empty; as its operator sees it."""
    use_s3(s3_server)
    store = boto3.resource(
        "s3",
        endpoint_url=s3_server,
        aws_access_key_id="operator",
        aws_secret_access_key="operator",
        region_name="us-east-1",
    )
    made = store.Bucket(BUCKET)
    made.create()
    yield made
    made.objects.all().delete()
    made.delete()
    store.meta.client.close()
