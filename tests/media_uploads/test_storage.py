"""Keys, links and bytes in a folder and in a bucket. The bucket is a real HTTP server (moto)."""

import http.client
import io
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import ExifTags, Image

from media_uploads import storage
from media_uploads.models import MediaUpload
from tests.conftest import Api
from tests.media_uploads.conftest import BUCKET, a_key, files_below, kept, png, upload, wav
from yral_chat.errors import StorageUnavailable

pytestmark = pytest.mark.django_db
BASE = "http://testserver"
KEY = "alice/01234567-89ab-cdef-0123-456789abcdef.png"
UseS3 = Callable[..., None]


def opened(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """By anybody, over HTTP. Names below localhost lead here."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
    try:
        target = f"{address.path}?{address.query}" if address.query else address.path
        connection.request(method, target, headers={"Host": address.netloc, **headers})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def refused(response: Any) -> None:
    assert response.status_code == 503, response.content
    assert response.json()["error"] == "storage_unavailable"
    assert set(response.json()) == {"error", "message", "details"}
    assert int(response["Retry-After"]) > 0
    assert not MediaUpload.objects.exists()


# The folder


def test_files_lie_below_the_folder_and_are_not_for_everybody(alice: Api, folder: Path) -> None:
    key = kept(alice)["storage_key"]

    assert files_below(folder) == [key]
    assert (folder / key).stat().st_mode & 0o007 == 0


def test_a_folder_that_is_missing_is_made(alice: Api, folder: Path) -> None:
    assert not folder.exists()
    kept(alice)
    assert folder.is_dir()


@pytest.mark.parametrize("place", ["a file", "below a file", "below /proc", "read-only"])
def test_where_nothing_can_be_written_an_upload_is_503(alice: Api, tmp_path: Path, settings: Any, place: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    paths = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "media",
        "below /proc": Path("/proc/no-such-folder/media"),  # not even root can write there
        "read-only": Path("/sys/media"),
    }
    settings.MEDIA_UPLOAD_DIR = paths[place]
    settings.STORAGES = {**settings.STORAGES}

    refused(upload(alice, png()))


def test_what_is_saved_can_be_read_deleted_and_is_gone(folder: Path) -> None:
    storage.save(KEY, io.BytesIO(b"bytes"))

    assert storage.read(KEY) == b"bytes"
    assert list(storage.all_keys()) == [KEY]
    storage.delete(KEY)
    storage.delete(KEY)
    assert list(storage.all_keys()) == []
    with pytest.raises(storage.MissingFile):
        storage.read(KEY)


# The bucket


def test_a_picture_in_a_bucket_is_read_by_its_link_alone(alice: Api, bucket: Any, folder: Path) -> None:
    body = kept(alice)

    (found,) = bucket.objects.all()
    assert found.key == body["storage_key"]
    status, headers, content = opened(body["url"])
    assert (status, content) == (200, found.get()["Body"].read())
    assert headers["content-type"] == "image/png"
    assert "X-Amz-Signature=" in body["url"]
    assert "X-Amz-Expires=900" in body["url"]
    assert "the-secret-access-key" not in body["url"]
    assert not folder.exists()


def test_objects_are_private(alice: Api, bucket: Any) -> None:
    key = kept(alice)["storage_key"]

    grantees = [grant["Grantee"] for grant in bucket.Object(key).Acl().grants]
    assert not [grantee for grantee in grantees if grantee["Type"] == "Group"], "everybody may read it"
    assert opened(f"{urlsplit(bucket.meta.client.meta.endpoint_url).geturl()}/{BUCKET}/{key}")[0] == 403


@pytest.mark.parametrize(("extension", "mime_type"), storage.MIME_TYPES.items(), ids=storage.MIME_TYPES.keys())
def test_the_content_type_in_a_bucket_is_ours_too(bucket: Any, extension: str, mime_type: str) -> None:
    key = a_key(extension=extension)
    storage.save(key, io.BytesIO(b"<script>"))

    status, headers, _ = opened(storage.url_for(key, BASE))
    assert (status, headers["content-type"]) == (200, mime_type)
    assert headers["content-disposition"] == "inline"


def test_a_player_can_seek_in_a_bucket(alice: Api, bucket: Any) -> None:
    body = kept(alice, wav(2), "audio")

    status, _, content = opened(body["url"], Range="bytes=10-19")
    assert (status, content) == (206, wav(2)[10:20])


def test_a_large_sound_arrives_whole(bucket: Any) -> None:
    content = bytes(range(256)) * 4 * 1024 * 18
    storage.save(KEY, io.BytesIO(content))

    assert storage.read(KEY) == content


def test_a_bucket_s_files_are_listed_read_and_deleted(bucket: Any) -> None:
    keys = {KEY, a_key("bob"), a_key("~" + "a" * 32, "webm")}
    for key in keys:
        storage.save(key, io.BytesIO(key.encode()))

    assert set(storage.all_keys()) == keys
    assert storage.read(KEY) == KEY.encode()
    storage.delete(KEY)
    storage.delete(KEY)
    assert set(storage.all_keys()) == keys - {KEY}
    with pytest.raises(storage.MissingFile):
        storage.read(KEY)
    assert storage.written_at(KEY).year == 9999


def test_a_bucket_addressed_by_its_name_works(
    alice: Api, bucket: Any, s3_server: str, use_s3: UseS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def at_home(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return look_up("127.0.0.1" if str(name).endswith(".localhost") else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", at_home)
    port = urlsplit(s3_server).port
    use_s3(f"http://localhost:{port}", S3_ADDRESSING_STYLE="virtual")

    body = kept(alice)

    assert body["url"].startswith(f"http://{BUCKET}.localhost:{port}/{body['storage_key']}?")
    assert [found.key for found in bucket.objects.all()] == [body["storage_key"]]
    assert opened(body["url"])[0] == 200
    assert storage.key_of(body["url"], BASE) == body["storage_key"]


# A bucket that is down


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_bucket_that_is_down_is_503_before_the_caller_gives_up(alice: Api, use_s3: UseS3) -> None:
    use_s3(f"http://127.0.0.1:{closed_port()}")
    started = time.monotonic()

    refused(upload(alice, png()))
    assert time.monotonic() - started < 8


def test_a_bucket_that_does_not_exist_is_503(alice: Api, s3_server: str, use_s3: UseS3) -> None:
    use_s3(s3_server, AWS_S3_BUCKET="no-such-bucket")

    refused(upload(alice, png()))
    with pytest.raises(StorageUnavailable):
        list(storage.all_keys())


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"rubbish\r\n\r\n"]
)
def test_a_bucket_that_talks_nonsense_is_503(alice: Api, use_s3: UseS3, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        use_s3(f"http://127.0.0.1:{server.getsockname()[1]}")
        try:
            refused(upload(alice, png()))
        finally:
            server.shutdown(socket.SHUT_RDWR)


# One client, and links that are used again


def test_all_threads_share_one_client(bucket: Any) -> None:
    barrier = threading.Barrier(16)

    def mine(_: int) -> int:
        barrier.wait(10)
        return id(storage.media().connection.meta.client)

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(mine, range(16)))) == 1


def test_a_link_to_a_bucket_is_used_again_for_a_third_of_its_life(use_s3: UseS3, time_machine: Any) -> None:
    use_s3("http://127.0.0.1:9", S3_URL_EXPIRES_SECONDS=900)
    time_machine.move_to(1_800_000_000 // 300 * 300, tick=False)
    first = storage.url_for(KEY, BASE)

    time_machine.shift(299)
    assert storage.url_for(KEY, BASE) == first
    assert storage.url_for(a_key(), BASE) != first
    time_machine.shift(2)
    assert storage.url_for(KEY, BASE) != first


# Links that come back


@pytest.mark.parametrize(
    ("endpoint", "region", "style"),
    [
        ("", "us-east-1", "auto"),
        ("", "ap-south-1", "virtual"),
        ("", "eu-central-1", "path"),
        ("https://s3.example.com", "us-east-1", "auto"),
        ("https://eu2.store.example:9000", "eu-central-1", "virtual"),
        ("https://eu2.store.example:9000", "eu-central-1", "path"),
        ("http://127.0.0.1:9", "ap-south-1", "auto"),
    ],
    ids=["amazon", "amazon's virtual", "amazon's path", "a store", "a store's virtual", "a store's path", "an IP"],
)
def test_a_link_to_a_bucket_is_turned_back_into_its_key(use_s3: UseS3, endpoint: str, region: str, style: str) -> None:
    use_s3(endpoint, AWS_REGION=region, S3_ADDRESSING_STYLE=style)
    link = storage.url_for(KEY, BASE)

    assert urlsplit(link).netloc.startswith(f"{BUCKET}.") or urlsplit(link).path.startswith(f"/{BUCKET}/")
    assert storage.key_of(link, BASE) == KEY
    assert storage.key_of(link.partition("?")[0], BASE) == KEY


OURS = {
    "the key": KEY,
    "a key of a hash": f"~{'0' * 32}/01234567-89ab-cdef-0123-456789abcdef.webm",
    "of the folder": f"{BASE}/media/{KEY}",
    "signed": f"{BASE}/media/{KEY}?expires=1&signature=x",
    "with a fragment": f"{BASE}/media/{KEY}#t=10",
    "MEDIA_BASE_URL": f"https://media.example/files/{KEY}?expires=1",
    "the old public base": f"https://cdn.example/old/{KEY}",
    "the old base, with a query": f"https://cdn.example/old/{KEY}?v=2",
}
THEIRS = {
    "another host": f"https://evil.example/media/{KEY}",
    "userinfo": f"http://testserver@evil.example/media/{KEY}",
    "userinfo with a path": f"https://cdn.example%2fold@evil.example/{KEY}",
    "a longer host": f"http://testserver.evil.example/media/{KEY}",
    "another port": f"http://testserver:81/media/{KEY}",
    "a longer base": f"https://cdn.example/older/{KEY}",
    "the base's host alone": f"https://cdn.example/{KEY}",
    "in a query": f"https://evil.example/?{BASE}/media/{KEY}",
    "in a fragment": f"https://evil.example/#{BASE}/media/{KEY}",
    "in a path": f"https://evil.example/{BASE}/media/{KEY}",
    "a step up": f"{BASE}/media/../{KEY}",
    "a step up in it": f"{BASE}/media/alice/../{KEY}",
    "an encoded step up": f"{BASE}/media/%2e%2e/{KEY}",
    "twice a slash": f"{BASE}/media//{KEY}",
    "a backslash": f"{BASE}/media\\{KEY}",
    "no scheme": f"//testserver/media/{KEY}",
    "another scheme": f"ftp://testserver/media/{KEY}",
    "a script": f"javascript:{BASE}/media/{KEY}",
    "a file": f"file:///media/{KEY}",
    "a path": f"/media/{KEY}",
    "a name behind": f"{BASE}/media/{KEY}.html",
    "a line behind": f"{BASE}/media/{KEY}\n",
    "a line behind the key": f"{KEY}\n",
    "a space before": f" {KEY}",
    "an upper-case key": KEY.upper(),
    "an unknown ending": KEY.replace("png", "svg"),
    "NUL": KEY.replace("alice", "ali\0ce"),
    "the bucket of others": f"http://127.0.0.1:9/other-bucket/{KEY}",
    "the bucket's name in a path": f"https://evil.example/{BUCKET}/{KEY}",
    "the bucket's name in a host": f"https://{BUCKET}.evil.example/{KEY}",
    "nothing": "",
}


@pytest.mark.parametrize("url", OURS.values(), ids=OURS.keys())
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_link_of_ours_is_its_key(use_s3: UseS3, settings: Any, where: str, url: str) -> None:
    if where == "bucket":
        use_s3("http://127.0.0.1:9")
    settings.MEDIA_BASE_URL, settings.S3_PUBLIC_URL_BASE = "https://media.example/files", "https://cdn.example/old"

    found = storage.key_of(url, BASE)
    assert found
    assert found in url


@pytest.mark.parametrize("url", THEIRS.values(), ids=THEIRS.keys())
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_link_that_only_looks_like_ours_is_none(use_s3: UseS3, settings: Any, where: str, url: str) -> None:
    if where == "bucket":
        use_s3("http://127.0.0.1:9")
    settings.MEDIA_BASE_URL, settings.S3_PUBLIC_URL_BASE = "https://media.example/files", "https://cdn.example/old"

    assert storage.key_of(url, BASE) is None


@pytest.mark.parametrize(
    "owner",
    ["alice", "../x", "a/b", "", "~", "a\0b", "é" * 200, "u" * 255, "x\n"],
    ids=["plain", "climbs", "slash", "nothing", "tilde", "NUL", "accents", "long", "line"],
)
@pytest.mark.parametrize("extension", ["jpg", "webm"])
def test_every_key_has_the_one_form_whoever_owns_it(owner: str, extension: str) -> None:
    key = storage.key_for(owner, extension)

    assert storage.KEY.fullmatch(key)
    assert key.count("/") == 1
    assert len(key) <= 255


def test_at_debug_too_no_line_of_an_upload_holds_a_signature_a_key_or_what_a_photo_says(
    alice: Api, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    photo, content = Image.new("RGB", (3, 2)), io.BytesIO()
    exif = photo.getexif()
    exif[ExifTags.Base.ImageDescription] = "my garden at home"
    photo.save(content, "JPEG", exif=exif)
    caplog.set_level(logging.DEBUG)

    key = kept(alice, content.getvalue())["storage_key"]
    assert storage.read(key)

    ours = [record for record in caplog.records if record.name != "werkzeug"]  # that's the bucket's server
    assert [record for record in ours if record.name == "yral_chat.requests"]
    said = "\n".join(map(logging.Formatter().format, ours))
    for secret in ("the-key-id", "the-secret-access-key", "Signature", "AWS4", key, "my garden"):
        assert secret not in said
