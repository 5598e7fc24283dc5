"""POST /api/v1/media/upload: what is kept and answered, what is refused, and that it costs no memory."""

import datetime as dt
import hashlib
import http.client
import json
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from media_uploads.models import MediaUpload
from tests.conftest import Api, token
from tests.media_uploads.conftest import UPLOAD, files_below, form, kept, multipart, part, png, upload, wav
from tests.servers import (
    COMMANDS,
    Got,
    Server,
    environment,
    free_port,
    manage,
    running,
)

MEGABYTE = 1024 * 1024
FRONTIER = "multipart/form-data; boundary=frontier"
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

pytestmark = pytest.mark.django_db


def send(api: Api, body: bytes, content_type: str = FRONTIER) -> Any:
    return api.client.generic("POST", UPLOAD, body, content_type=content_type, headers=api.headers())


def refused(response: Any, status: int, code: str) -> dict[str, Any]:
    """The one shape, and nothing was kept."""
    assert response.status_code == status, response.content
    body = dict(response.json())
    assert set(body) == {"error", "message", "details"}
    assert body["error"] == code
    assert not MediaUpload.objects.exists()
    return body


# What is answered and kept


def test_a_picture_is_answered_as_the_contract_says(alice: Api) -> None:
    before = dt.datetime.now(dt.UTC)
    response = upload(alice, png(), "image")

    assert response.status_code == 200, response.content
    body = response.json()
    assert set(body) == {"url", "storage_key", "type", "size", "mime_type", "duration_seconds", "uploaded_at"}
    assert re.fullmatch(rf"alice/{UUID}\.png", body["storage_key"])
    assert body["url"].startswith(f"http://testserver/media/{body['storage_key']}?expires=")
    assert (body["type"], body["mime_type"], body["duration_seconds"]) == ("image", "image/png", None)
    assert type(body["size"]) is int
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", body["uploaded_at"])
    assert before <= dt.datetime.fromisoformat(body["uploaded_at"]) <= dt.datetime.now(dt.UTC)


def test_a_sound_s_duration_is_measured(alice: Api) -> None:
    body = kept(alice, wav(2.25), "audio")

    assert body["storage_key"].endswith(".wav")
    assert (body["type"], body["mime_type"]) == ("audio", "audio/wav")
    assert body["duration_seconds"] == pytest.approx(2.25, abs=0.01)
    assert body["size"] == len(wav(2.25))


@pytest.mark.parametrize(("kind", "content"), [("image", png(7, 5)), ("audio", wav(1.5))], ids=["image", "audio"])
def test_the_row_says_what_is_stored(alice: Api, folder: Path, kind: str, content: bytes) -> None:
    body = kept(alice, content, kind)

    row = MediaUpload.objects.get()
    stored = (folder / row.storage_key).read_bytes()
    assert (row.storage_key, row.owner_id, row.kind) == (body["storage_key"], "alice", kind)
    assert (row.size, row.sha256) == (len(stored), hashlib.sha256(stored).hexdigest())
    assert (row.first_used_at, row.use_count) == (None, 0)
    assert (row.width, row.height) == ((7, 5) if kind == "image" else (None, None))
    assert row.duration_seconds == (None if kind == "image" else pytest.approx(1.5, abs=0.01))
    assert row.mime_type == body["mime_type"]
    assert dt.datetime.fromisoformat(body["uploaded_at"]) == row.created_at
    assert files_below(folder) == [row.storage_key]


def test_the_link_in_the_answer_opens_the_file(alice: Api, nobody: Api, folder: Path) -> None:
    body = kept(alice, png())

    opened = nobody.client.get(body["url"])
    assert opened.status_code == 200
    assert opened.getvalue() == (folder / body["storage_key"]).read_bytes()


ODD_OWNERS = {
    "climbs": "../../etc",
    "spaces": "al ice",
    "a script": "<script>alert(1)</script>",
    "another script": "देवी",
    "dash first": "-alice",
    "dots": "alice.b",
    "tilde": "~" + "0" * 32,
    "slash": "a/b",
    "backslash": "..\\..\\x",
    "encoded": "%2e%2e",
    "long": "u" * 129,
    "longest": "ü" * 255,
}


@pytest.mark.parametrize("owner", ODD_OWNERS.values(), ids=ODD_OWNERS.keys())
def test_an_odd_user_id_stands_in_the_key_as_a_hash(folder: Path, owner: str) -> None:
    body = kept(Api(owner))

    prefix, _, name = body["storage_key"].partition("/")
    assert prefix == "~" + hashlib.sha256(owner.encode()).hexdigest()[:32]
    assert re.fullmatch(rf"{UUID}\.png", name)
    assert MediaUpload.objects.get().owner_id == owner
    assert files_below(folder) == [body["storage_key"]]


@pytest.mark.parametrize(
    "owner",
    ["a", "0", "u" * 128, "A_b-9", "qg2pi-g3xl4-uprdd-macwr-64q7r-plotv-xm3bg-iayu3-rnpux-7ikkz-hqe"],
    ids=["letter", "digit", "128", "signs", "principal"],
)
def test_a_plain_user_id_stands_in_the_key(owner: str) -> None:
    assert kept(Api(owner))["storage_key"].startswith(f"{owner}/")


def test_the_same_bytes_twice_are_two_uploads(alice: Api, bob: Api) -> None:
    keys = {kept(api)["storage_key"] for api in (alice, alice, bob)}

    assert len(keys) == 3
    assert Counter(MediaUpload.objects.values_list("owner_id", flat=True)) == {"alice": 2, "bob": 1}


NAMES = {
    "climbing svg": "../../x.svg",
    "html": "x.html",
    "NUL": "a\x00b.png",
    "long": "n" * 900 + ".exe",
    "quotes": 'a"; name="type.png',
    "backslash": "..\\..\\x.php",
    "unicode": "फोटो\u202egnp.exe",
    "absolute": "/etc/passwd",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_the_name_of_a_file_never_matters(alice: Api, folder: Path, tmp_path: Path, name: str) -> None:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    body = multipart(
        part(f'form-data; name="file"; filename="{quoted}"', png(), "Content-Type: image/svg+xml"),
        part('form-data; name="type"', b"image"),
    )
    response = send(alice, body)

    assert response.status_code == 200, response.content
    assert re.fullmatch(rf"alice/{UUID}\.png", response.json()["storage_key"])
    assert response.json()["mime_type"] == "image/png"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / response.json()["storage_key"]]


def test_a_name_longer_than_any_file_system_allows_is_refused(alice: Api) -> None:
    """Django reads no part's headers beyond 1,024 bytes."""
    body = multipart(TYPE, part(f'form-data; name="file"; filename="{"n" * 1000}"', png()))

    refused(send(alice, body), 400, "bad_request")


def test_unquoted_part_names_are_read(alice: Api) -> None:
    """As the released apps send them."""
    body = multipart(
        part("form-data; name=file; filename=photo.png", png(), "Content-Type: image/png"),
        part("form-data; name=type", b"image"),
    )

    assert send(alice, body).status_code == 200


def test_unknown_fields_and_nulls_are_no_matter(alice: Api) -> None:
    assert (
        upload(alice, png(), caption="null", duration_seconds="", owner_id="bob", storage_key="bob/x").status_code
        == 200
    )
    assert MediaUpload.objects.get().owner_id == "alice"


def test_an_upload_needs_no_particular_accept_header(alice: Api) -> None:
    headers = {**alice.headers(), "Accept": "image/*"}
    file = SimpleUploadedFile("f", png())

    assert alice.client.post(UPLOAD, {"file": file, "type": "image"}, headers=headers).status_code == 200


# What is refused


def test_without_a_token_nothing_is_kept(nobody: Api) -> None:
    assert refused(upload(nobody, png()), 401, "unauthorized")["message"] == "Missing authorization header"


def test_the_token_is_looked_at_before_the_body(nobody: Api) -> None:
    for body, content_type in ((b"{}", "application/json"), (b"broken", FRONTIER), (b"", FRONTIER)):
        refused(send(nobody, body, content_type), 401, "unauthorized")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"type": "image"}', "application/json"),
        (b"type=image&file=x", "application/x-www-form-urlencoded"),
        (png(), "image/png"),
        (b"x", "text/plain"),
        (b"x", "multipart/mixed; boundary=frontier"),
    ],
    ids=["json", "form", "the bytes alone", "text", "mixed"],
)
def test_another_kind_of_body_is_415(alice: Api, body: bytes, content_type: str) -> None:
    refused(send(alice, body, content_type), 415, "unsupported_media_type")


TYPE = part('form-data; name="type"', b"image")
FILE = part('form-data; name="file"; filename="f.png"', png())
INCOMPLETE = {
    "no file": (multipart(TYPE), {"file"}),
    "no type": (multipart(FILE), {"type"}),
    "nothing": (multipart(), {"file", "type"}),
    "a file that is text": (multipart(TYPE, part('form-data; name="file"', b"null")), {"file"}),
    "a file without a name": (multipart(TYPE, part('form-data; name="file"; filename=""', png())), {"file"}),
    "another name": (multipart(TYPE, part('form-data; name="picture"; filename="f.png"', png())), {"file"}),
    "another type": (multipart(FILE, part('form-data; name="type"', b"video")), {"type"}),
    "an empty type": (multipart(FILE, part('form-data; name="type"', b"")), {"type"}),
    "a null type": (multipart(FILE, part('form-data; name="type"', b"null")), {"type"}),
    "a type with NUL": (multipart(FILE, part('form-data; name="type"', b"image\0")), {"type"}),
    "a type that is no UTF-8": (multipart(FILE, part('form-data; name="type"', b"\xff\xfe")), {"type"}),
    "a type that is a file": (multipart(FILE, part('form-data; name="type"; filename="t"', b"image")), {"type"}),
}


@pytest.mark.parametrize(("body", "missing"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_a_missing_file_or_type_is_422(alice: Api, folder: Path, body: bytes, missing: set[str]) -> None:
    errors = refused(send(alice, body), 422, "validation_error")["details"]["errors"]

    assert {error["loc"][-1] for error in errors} == missing
    assert all(error["loc"][0] == "body" and set(error) == {"loc", "msg", "type"} for error in errors)
    assert not folder.exists()


MALFORMED = {
    "no boundary": (multipart(TYPE, FILE), "multipart/form-data"),
    "an empty boundary": (multipart(TYPE, FILE), "multipart/form-data; boundary="),
    "a boundary of odd bytes": (multipart(TYPE, FILE), "multipart/form-data; boundary=é"),
    "a boundary of 1,000": (multipart(TYPE, FILE), "multipart/form-data; boundary=" + "b" * 1000),
    "bad base64": (
        multipart(part('form-data; name="type"', b"*", "Content-Transfer-Encoding: base64"), FILE),
        FRONTIER,
    ),
}


@pytest.mark.parametrize(("body", "content_type"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_is_refused_and_never_crashes(alice: Api, body: bytes, content_type: str) -> None:
    response = send(alice, body, content_type)

    assert response.status_code in (400, 415, 422), response.content
    refused(response, response.status_code, response.json()["error"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 1000,
        b"--frontier",
        b"--frontier\r\n\r\n",
        b"--frontier--" * 1000,
        b"--frontier\r\nContent-Disposition: form-data; name=\r\n\r\nx\r\n--frontier--",
        b"--frontier\r\n" + b"X: y\r\n" * 5000 + b"\r\nx\r\n--frontier--",
        b"--frontier\r\nContent-Disposition: form-data; name*=utf-8''%ff%fe\r\n\r\nx\r\n--frontier--",
        b"--frontier\r\nContent-Disposition: form-data; name=" + b"n" * 100_000 + b"\r\n\r\nx\r\n--frontier--",
        multipart(TYPE, part('form-data; name="file"; filename="x"', b"y", "Content-Length: -5")),
    ],
    ids=["empty", "NULs", "begun", "bare", "ends", "no name", "many headers", "bad encoding", "long name", "length"],
)
def test_a_body_of_rubbish_is_refused_and_never_crashes(alice: Api, body: bytes) -> None:
    response = send(alice, body)

    assert response.status_code in (400, 415, 422), response.content
    refused(response, response.status_code, response.json()["error"])


@pytest.mark.parametrize("how", ["form-data; name=f{}", "form-data; name=f{}; filename=x"], ids=["fields", "files"])
def test_thousands_of_parts_are_refused_at_once(alice: Api, how: str) -> None:
    started = time.monotonic()
    body = multipart(TYPE, *(part(how.format(number), b"x") for number in range(5000)), FILE)

    refused(send(alice, body), 400, "bad_request")
    assert time.monotonic() - started < 2


WRONG = {
    "an svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "a page": b"<!doctype html><script>alert(1)</script>",
    "nothing": b"",
    "text": b"hello",
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize(("kind", "formats"), [("image", "JPEG PNG GIF WebP"), ("audio", "MP3 M4A WAV OGG")])
def test_a_wrong_format_is_400_and_names_the_right_ones(
    alice: Api, folder: Path, content: bytes, kind: str, formats: str
) -> None:
    said = refused(upload(alice, content, kind, "photo.png"), 400, "bad_request")["message"]

    assert all(name in said for name in formats.split())
    assert not folder.exists()


def test_a_picture_is_no_sound_and_a_sound_no_picture(alice: Api) -> None:
    refused(upload(alice, png(), "audio"), 400, "bad_request")
    refused(upload(alice, wav(), "image"), 400, "bad_request")


def test_a_sound_that_is_too_long_is_400(alice: Api) -> None:
    said = refused(upload(alice, wav(301), "audio"), 400, "bad_request")["message"]

    assert "300" in said or "5 min" in said


def test_a_picture_that_is_too_wide_is_400(alice: Api) -> None:
    refused(upload(alice, png(4097, 1)), 400, "bad_request")


@pytest.mark.parametrize(("kind", "most"), [("image", 10), ("audio", 20)])
def test_too_large_a_file_is_413_and_says_the_limit(alice: Api, folder: Path, kind: str, most: int) -> None:
    content = (png() if kind == "image" else wav()) + bytes(most * MEGABYTE)

    assert f"{most} MB" in refused(upload(alice, content, kind), 413, "payload_too_large")["message"]
    assert not folder.exists()


def test_the_limits_are_settings(alice: Api, settings: Any) -> None:
    settings.MAX_IMAGE_SIZE_MB = 1

    assert "1 MB" in refused(upload(alice, bytes(MEGABYTE + 1)), 413, "payload_too_large")["message"]


def test_a_field_of_megabytes_is_413(alice: Api) -> None:
    refused(send(alice, multipart(FILE, part('form-data; name="type"', b"i" * 2 * MEGABYTE))), 413, "payload_too_large")


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete"])
def test_other_methods_are_405(alice: Api, method: str) -> None:
    response = getattr(alice.client, method)(UPLOAD, headers=alice.headers())

    refused(response, 405, "method_not_allowed")


# The real servers, with limits of 1 MB

LIMIT = MEGABYTE + 64 * 1024
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="The peak of a process's memory is read from /proc: needs Linux."
)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An SQLite file with the tables in it."""
    folder = tmp_path_factory.mktemp("migrated")
    manage(environment(folder, "http://127.0.0.1:9", 9), "migrate", "--verbosity", "0")
    manage(environment(folder, "http://127.0.0.1:9", 9), "collectstatic", "--noinput", "--verbosity", "0")
    return (folder / "chat.db").read_bytes()


@contextmanager
def serving(kind: str, folder: Path, database: bytes, **changed: str) -> Iterator[Server]:
    (folder / "chat.db").write_bytes(database)
    changed = {"MEDIA_UPLOAD_DIR": str(folder / "media"), "TMPDIR": str(folder), **changed}
    with running(kind, environment(folder, "http://127.0.0.1:9", free_port(), **changed), folder) as server:
        yield server


@pytest.fixture(scope="module", params=COMMANDS)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, migrated: bytes
) -> Iterator[Server]:
    small = {"MAX_IMAGE_SIZE_MB": "1", "MAX_AUDIO_SIZE_MB": "1", "WEB_CONCURRENCY": "1"}
    with serving(request.param, tmp_path_factory.mktemp(request.param), migrated, **small) as server:
        yield server


def post(server: Server, body: bytes, user: str | None = "alice", **headers: str) -> Got:
    return server.call("POST", UPLOAD, body, user, **{"Content-Type": FRONTIER, **headers})


def plainly(server: Server, body: bytes, *headers: str, path: str = UPLOAD) -> tuple[int, bytes]:
    """A simple client: it writes everything, and only then reads the answer to its end."""
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Type: {FRONTIER}", *headers]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as phone:
        phone.sendall("\r\n".join(head).encode() + b"\r\n\r\n")
        phone.sendall(body)
        answer = http.client.HTTPResponse(phone)
        answer.begin()
        return answer.status, answer.read()


def in_chunks(body: bytes) -> bytes:
    pieces = [body[at : at + 50_000] for at in range(0, len(body), 50_000)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def bearer(user: str = "alice") -> str:
    return f"Authorization: Bearer {token(user)}"


def uploads(server: Server) -> int:
    return int(server.rows("SELECT COUNT(*) FROM media_uploads")[0][0])


@pytest.mark.drill
def test_a_real_server_keeps_an_upload_and_serves_it(server: Server) -> None:
    content = wav(2)
    got = post(server, form(content, "audio"))

    assert got.status == 200, got.content
    base = f"http://127.0.0.1:{server.port}"
    link = got.json()["url"]
    assert link.startswith(f"{base}/media/{got.json()['storage_key']}?")
    whole = server.call("GET", link.removeprefix(base), user=None)
    assert (whole.status, whole.content) == (200, content)
    middle = server.call("GET", link.removeprefix(base), user=None, Range="bytes=100-199")
    assert (middle.status, middle.content) == (206, content[100:200])
    assert middle.headers["content-range"] == f"bytes 100-199/{len(content)}"
    head = server.call("HEAD", link.removeprefix(base), user=None)
    assert (head.status, head.content, head.headers["content-length"]) == (200, b"", str(len(content)))


def test_a_chunked_upload_is_kept(server: Server) -> None:
    body = in_chunks(form(png(), "image"))

    status, answer = plainly(server, body, bearer(), "Transfer-Encoding: chunked")
    assert (status, json.loads(answer)["type"]) == (200, "image")


@pytest.mark.parametrize("size", [LIMIT + 1, 2 * LIMIT - 1000], ids=["a byte", "nearly twice"])
@pytest.mark.parametrize("how", ["length", "chunks"])
def test_who_writes_everything_first_receives_the_413(server: Server, size: int, how: str) -> None:
    before = uploads(server)
    body = form(bytes(size), "audio")
    told = f"Content-Length: {len(body)}" if how == "length" else "Transfer-Encoding: chunked"

    status, answer = plainly(server, in_chunks(body) if how == "chunks" else body, bearer(), told)

    assert status == 413
    assert json.loads(answer)["error"] == "payload_too_large"
    assert uploads(server) == before


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_a_file_over_the_limit_in_a_body_under_it_is_413(server: Server, kind: str) -> None:
    body = form(bytes(MEGABYTE + 1), kind)

    status, answer = plainly(server, body, bearer(), f"Content-Length: {len(body)}")
    assert (status, json.loads(answer)["error"]) == (413, "payload_too_large")
    assert "1 MB" in json.loads(answer)["message"]


@pytest.mark.parametrize("how", ["length", "chunks"])
def test_a_body_without_end_is_cut_off(server: Server, how: str) -> None:
    told = f"Content-Length: {10**12}" if how == "length" else "Transfer-Encoding: chunked"
    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FRONTIER}\r\n{bearer()}\r\n{told}\r\n\r\n"
    piece = bytes(65536)
    sent = 0
    deadline = time.monotonic() + 10
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as phone:
        phone.sendall(head.encode())
        try:
            while sent < 100 * MEGABYTE and time.monotonic() < deadline:
                phone.sendall(piece if how == "length" else b"10000\r\n%s\r\n" % piece)
                sent += len(piece)
        except OSError:
            pass
    assert sent < 30 * MEGABYTE
    assert server.call("GET", "/health", user=None).status == 200


def test_a_real_server_looks_at_the_token_first(server: Server) -> None:
    for body in (form(png(), "image"), form(bytes(MEGABYTE // 2), "image"), b"broken"):
        told = f"Content-Length: {len(body)}"
        assert plainly(server, body, told)[0] == 401
        assert plainly(server, body, told, "Authorization: Bearer forged")[0] == 401


def test_a_stranger_s_body_that_is_too_large_is_refused_too(server: Server) -> None:
    """401 where the server reads the token first, 413 where it has to take the body before (ASGI)."""
    body = form(bytes(LIMIT + 1), "image")

    assert plainly(server, body, f"Content-Length: {len(body)}")[0] in (401, 413)


def test_the_limit_of_uploads_is_for_uploads_alone(server: Server) -> None:
    body = b'{"influencer_id": "' + b"x" * (MEGABYTE + 1000) + b'"}'
    length = f"Content-Length: {len(body)}"

    assert plainly(server, body, bearer(), length, path="/api/v1/chat/conversations")[0] in (413, 415)


def test_who_hangs_up_in_the_middle_leaves_nothing(server: Server) -> None:
    before, body = uploads(server), form(png(300, 300), "image")
    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FRONTIER}\r\n{bearer()}\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as phone:
        phone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
        time.sleep(0.1)
    time.sleep(0.3)

    assert uploads(server) == before
    assert post(server, form(png(), "image")).status == 200


def test_uploads_at_once_are_all_kept(server: Server) -> None:
    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(lambda n: post(server, form(png(n + 1), "image"), f"user-{n % 4}"), range(40)))

    assert Counter(one.status for one in got) == {200: 40}
    assert len({one.json()["storage_key"] for one in got}) == 40


def test_z_a_real_server_s_log_holds_no_crash_and_no_body_stays_behind(server: Server) -> None:
    """Last with each server: what all of the above left."""
    assert "Traceback" not in server.log, server.log
    assert "Warning" not in server.log, server.log
    left = [path.name for path in server.log_path.parent.iterdir() if path.is_file()]
    assert not [name for name in left if name.startswith("tmp") or name.endswith(".upload")], left


# Memory


def peak(server: Server) -> int:
    """Of the largest process of the server, in bytes."""
    listed = subprocess.run(["pgrep", "-g", str(server.process.pid)], capture_output=True, text=True, check=False)
    said = [Path(f"/proc/{pid}/status").read_text() for pid in listed.stdout.split()]
    return max(int(found[1]) for text in said if (found := re.search(r"VmHWM:\s+(\d+) kB", text))) * 1024


@pytest.fixture
def roomy(tmp_path: Path, migrated: bytes) -> Iterator[Server]:
    """gunicorn with the usual limits, as one process that has seen an upload before."""
    with serving("gunicorn", tmp_path, migrated, WEB_CONCURRENCY="1", WEB_THREADS="64") as server:
        for kind, content in (("image", png()), ("audio", wav(10))):
            assert post(server, form(content, kind)).status == 200
        yield server


@needs_proc
@pytest.mark.drill
def test_an_upload_of_20_mb_costs_less_than_8_mb_of_memory(roomy: Server) -> None:
    body = form(wav(20 * MEGABYTE / 176_400 - 0.01, rate=44_100, channels=2), "audio")
    assert len(body) > 19.9 * MEGABYTE
    before = peak(roomy)

    got = post(roomy, body)

    assert got.status == 200, got.content
    assert peak(roomy) - before < 8 * MEGABYTE
    link = got.json()["url"].removeprefix(f"http://127.0.0.1:{roomy.port}")
    assert len(roomy.call("GET", link, user=None).content) == got.json()["size"]
    assert peak(roomy) - before < 8 * MEGABYTE, "reading it cost memory"


@needs_proc
@pytest.mark.drill
def test_fifty_uploads_at_once_do_not_multiply_it(roomy: Server) -> None:
    """Were they held in memory, they would take 250 MB; what grows are 50 threads with their buffers."""
    body = form(wav(5 * MEGABYTE / 176_400, rate=44_100, channels=2), "audio")
    before = peak(roomy)

    with ThreadPoolExecutor(50) as pool:
        got = list(pool.map(lambda n: post(roomy, body, f"user-{n}"), range(50)))

    assert Counter(one.status for one in got) == {200: 50}
    assert peak(roomy) - before < 60 * MEGABYTE
