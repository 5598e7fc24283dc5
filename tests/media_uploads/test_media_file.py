"""GET /media/<key>: the bytes of the folder, to whoever holds a good link, and inert in a browser."""

import datetime as dt
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
import time_machine

from media_uploads import storage
from tests.conftest import Api
from tests.media_uploads.conftest import a_key, forget_storage, kept, wav

CONTENT = bytes(range(256)) * 1000
pytestmark = pytest.mark.django_db  # the end of a request looks after the database's connections
START = dt.datetime(2026, 5, 1, 12, 0, 0, tzinfo=dt.UTC)


@pytest.fixture
def key(folder: Path) -> str:
    """Of a sound of alice's, 256,000 bytes that are all different from their neighbours."""
    key = a_key(extension="mp3")
    (folder / "alice").mkdir(parents=True)
    (folder / key).write_bytes(CONTENT)
    return key


def link(key: str) -> str:
    return storage.url_for(key, "http://testserver")


def get(nobody: Api, url: str, method: str = "get", **headers: str) -> Any:
    return getattr(nobody.client, method)(url, headers=headers)


def refused(response: Any, status: int, code: str) -> None:
    assert response.status_code == status
    assert response["Content-Type"] == "application/json"
    assert response.json()["error"] == code
    assert set(response.json()) == {"error", "message", "details"}


# What is sent


def test_a_good_link_opens_the_file_and_needs_no_token(nobody: Api, key: str) -> None:
    response = get(nobody, link(key))

    assert response.status_code == 200
    assert response.getvalue() == CONTENT
    assert response["Content-Length"] == str(len(CONTENT))
    assert response["Accept-Ranges"] == "bytes"


def test_a_bad_token_is_no_matter(nobody: Api, key: str) -> None:
    response = get(nobody, link(key), Authorization="Bearer expired")

    assert response.status_code == 200
    response.close()


@pytest.mark.parametrize(
    ("extension", "mime_type"),
    [
        ("jpg", "image/jpeg"),
        ("png", "image/png"),
        ("gif", "image/gif"),
        ("webp", "image/webp"),
        ("mp3", "audio/mpeg"),
        ("m4a", "audio/mp4"),
        ("wav", "audio/wav"),
        ("ogg", "audio/ogg"),
        ("webm", "audio/webm"),
    ],
)
def test_whatever_it_holds_a_browser_runs_nothing_of_it(
    nobody: Api, folder: Path, extension: str, mime_type: str
) -> None:
    key = a_key(extension=extension)
    (folder / "alice").mkdir(parents=True)
    (folder / key).write_bytes(b"<!doctype html><script>alert(1)</script>")

    response = get(nobody, link(key))

    assert response.status_code == 200
    assert response["Content-Type"] == mime_type
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Content-Disposition"] == f'inline; filename="{key.split("/")[1]}"'
    policy = [rule.strip() for rule in response["Content-Security-Policy"].split(";")]
    assert {"default-src 'none'", "sandbox"} <= set(policy)
    assert "Set-Cookie" not in response.headers
    assert "private" in response["Cache-Control"]
    response.close()


LAST = len(CONTENT) - 1
RANGES = {
    "first two": ("bytes=0-1", 0, 1),
    "one byte": ("bytes=5-5", 5, 5),
    "middle": ("bytes=70000-199999", 70_000, 199_999),
    "open end": ("bytes=255990-", 255_990, LAST),
    "all, open": ("bytes=0-", 0, LAST),
    "all, closed": (f"bytes=0-{LAST}", 0, LAST),
    "beyond the end": ("bytes=255990-999999999", 255_990, LAST),
    "suffix": ("bytes=-10", LAST - 9, LAST),
    "longer suffix than there is": ("bytes=-999999999", 0, LAST),
    "last byte": (f"bytes={LAST}-{LAST}", LAST, LAST),
}


@pytest.mark.parametrize(("asked", "first", "last"), RANGES.values(), ids=RANGES.keys())
def test_a_player_gets_the_part_that_it_asks_for(nobody: Api, key: str, asked: str, first: int, last: int) -> None:
    response = get(nobody, link(key), Range=asked)

    assert response.status_code == 206
    assert response["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert response["Content-Length"] == str(last - first + 1)
    assert response.getvalue() == CONTENT[first : last + 1]
    assert response["Content-Type"] == "audio/mpeg"
    assert "sandbox" in response["Content-Security-Policy"]


@pytest.mark.parametrize("asked", [f"bytes={LAST + 1}-", "bytes=999999999-", "bytes=-0", "bytes=300000-400000"])
def test_a_part_that_is_not_there_is_416(nobody: Api, key: str, asked: str) -> None:
    response = get(nobody, link(key), Range=asked)

    refused(response, 416, "range_not_satisfiable")
    assert response["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    "asked",
    [
        "bytes=0-1,5-6",
        "bytes=5-1",
        "bytes=-",
        "bytes=",
        "bytes=a-b",
        "lines=0-1",
        "0-1",
        "bytes=0-" + "9" * 5000,
        "bytes=٣-٤",
    ],
    ids=["several", "backwards", "neither end", "nothing", "letters", "lines", "no unit", "endless", "other digits"],
)
def test_any_other_range_gets_the_whole(nobody: Api, key: str, asked: str) -> None:
    response = get(nobody, link(key), Range=asked)

    assert response.status_code == 200
    assert "Content-Range" not in response.headers
    assert response.getvalue() == CONTENT


def test_head_tells_the_length_and_sends_nothing(nobody: Api, key: str) -> None:
    whole = get(nobody, link(key), "head")
    part = get(nobody, link(key), "head", Range="bytes=0-9")

    assert (whole.status_code, whole["Content-Length"], whole.getvalue()) == (200, str(len(CONTENT)), b"")
    assert (part.status_code, part["Content-Length"], part.getvalue()) == (206, "10", b"")
    assert whole["Content-Type"] == "audio/mpeg"


def test_a_file_that_nobody_reads_to_the_end_is_closed(nobody: Api, key: str) -> None:
    """A warning about an open file fails this test."""
    get(nobody, link(key)).close()
    begun = get(nobody, link(key))
    next(iter(begun))
    begun.close()


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
def test_it_is_only_for_reading(nobody: Api, key: str, folder: Path, method: str) -> None:
    response = get(nobody, link(key), method)

    refused(response, 405, "method_not_allowed")
    assert (folder / key).read_bytes() == CONTENT


# Who may read


def altered(url: str, **changed: str | None) -> str:
    address = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(address.query).items()} | changed
    return f"{address.path}?{urlencode({name: value for name, value in query.items() if value is not None})}"


FORGED: dict[str, dict[str, str | None]] = {
    "no signature": {"signature": None},
    "empty": {"signature": ""},
    "another": {"signature": "A" * 43},
    "not ASCII": {"signature": "é"},
    "no time": {"expires": None},
    "a later time": {"expires": "99999999999"},
    "a word": {"expires": "never"},
    "other digits": {"expires": "٣٣٣٣٣٣٣٣٣٣"},
    "a fraction": {"expires": "9e9"},
    "endless": {"expires": "9" * 5000},
    "negative": {"expires": "-1"},
}


@pytest.mark.parametrize("changed", FORGED.values(), ids=FORGED.keys())
def test_a_forged_link_is_refused(nobody: Api, key: str, changed: dict[str, str | None]) -> None:
    refused(get(nobody, altered(link(key), **changed)), 403, "forbidden")


def test_a_link_opens_only_the_file_it_was_made_for(nobody: Api, folder: Path, key: str) -> None:
    other = a_key(extension="mp3")
    (folder / other).write_bytes(b"bob's")

    refused(get(nobody, link(key).replace(key, other)), 403, "forbidden")


def test_a_link_of_another_secret_key_is_refused(nobody: Api, key: str, settings: Any) -> None:
    made = link(key)
    settings.SECRET_KEY = "another-secret-key-another-secret-key-another"
    forget_storage(settings, "LocalMedia")

    refused(get(nobody, made), 403, "forbidden")


def test_a_link_to_what_is_not_there_is_404(nobody: Api) -> None:
    refused(get(nobody, link(a_key())), 404, "not_found")


CLIMBING = {
    "parent": "../secret.png",
    "parents": "alice/../../secret.png",
    "encoded dots": "%2e%2e/secret.png",
    "encoded twice": "%252e%252e/secret.png",
    "encoded slash": "..%2fsecret.png",
    "absolute": "/etc/passwd",
    "encoded absolute": "%2fetc%2fpasswd",
    "backslash": "..\\secret.png",
    "encoded backslash": "..%5csecret.png",
    "NUL": "alice/x.png%00.mp3",
    "overlong": "%c0%ae%c0%ae/secret.png",
    "newline": "alice/x.png%0a",
    "nothing": "",
    "a folder": "alice/",
    "another name": "alice/secret.png",
}


@pytest.mark.parametrize("path", CLIMBING.values(), ids=CLIMBING.keys())
@pytest.mark.parametrize("prefix", ["", "signed"])
def test_nothing_else_of_the_disk_can_be_reached(nobody: Api, folder: Path, key: str, path: str, prefix: str) -> None:
    for place in (folder.parent / "secret.png", folder / "alice" / "secret.png"):
        place.write_bytes(b"secret")
    query = "?" + (urlsplit(storage.url_for(path, "http://testserver")).query if prefix else "")

    refused(get(nobody, f"/media/{path}{query}"), 404, "not_found")


def test_a_key_with_anything_behind_it_is_404(nobody: Api, key: str) -> None:
    for behind in ("%0a", "%00", "/", "/x", ".html", "%20"):
        refused(get(nobody, link(key).replace(key, key + behind)), 404, "not_found")


def test_a_file_that_cannot_be_read_is_503(nobody: Api, folder: Path) -> None:
    """A folder in its place fails at reading, for root too."""
    key = a_key()
    (folder / key).mkdir(parents=True)

    response = get(nobody, link(key))
    refused(response, 503, "storage_unavailable")
    assert int(response["Retry-After"]) > 0


def test_with_a_bucket_the_folder_is_closed(nobody: Api, key: str, settings: Any) -> None:
    made = link(key)
    settings.USE_S3 = True

    refused(get(nobody, made), 404, "not_found")


# How long


def test_a_link_stays_the_same_for_a_third_of_its_life(key: str, settings: Any) -> None:
    settings.S3_URL_EXPIRES_SECONDS = 900
    with time_machine.travel(START, tick=False) as clock:
        first = link(key)
        clock.shift(299)
        assert link(key) == first
        clock.shift(2)
        assert link(key) != first


@pytest.mark.parametrize("life", [3, 10, 900, 604_800])
@pytest.mark.parametrize("late", [0.0, 0.5, 0.99], ids=["early", "in the middle", "late"])
def test_a_link_can_be_read_for_two_thirds_of_its_life_whenever_it_was_given(
    nobody: Api, key: str, settings: Any, life: int, late: float
) -> None:
    settings.S3_URL_EXPIRES_SECONDS = life
    given = START.timestamp() // (life // 3) * (life // 3) + late * (life // 3)
    with time_machine.travel(given, tick=False) as clock:
        made = link(key)
        clock.shift(2 * (life // 3) - 0.001)
        assert get(nobody, made, "head").status_code == 200
        clock.shift(life // 3 + 1)
        refused(get(nobody, made), 403, "forbidden")


def test_a_browser_keeps_a_file_no_longer_than_its_link_lives(nobody: Api, key: str, settings: Any) -> None:
    settings.S3_URL_EXPIRES_SECONDS = 90
    response = get(nobody, link(key), "head")

    assert int(re.findall(r"max-age=(\d+)", response["Cache-Control"])[0]) <= 60


# Where


def test_media_base_url_stands_before_the_key(alice: Api, nobody: Api, settings: Any) -> None:
    settings.MEDIA_BASE_URL = "https://media.example/files"

    body = kept(alice, wav(), "audio")

    start = f"https://media.example/files/{body['storage_key']}?expires="
    assert body["url"].startswith(start)
    query = body["url"].partition("?")[2]
    assert get(nobody, f"/media/{body['storage_key']}?{query}", "head").status_code == 200


def test_behind_nginx_the_bytes_are_nginx_s_to_send(nobody: Api, key: str, settings: Any) -> None:
    settings.MEDIA_X_ACCEL_PREFIX = "/_media"

    response = get(nobody, link(key))

    assert response.status_code == 200
    assert response["X-Accel-Redirect"] == f"/_media/{key}"
    assert response.content == b""
    assert response["Content-Type"] == "audio/mpeg"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response["Content-Security-Policy"]
    for url in (altered(link(key), signature="x"), f"/media/{key}"):
        refused(get(nobody, url), 403, "forbidden")
        assert "X-Accel-Redirect" not in get(nobody, url).headers
