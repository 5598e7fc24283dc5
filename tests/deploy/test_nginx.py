"""The shipped nginx configuration: a real nginx in front of the real service, as it stands at / and at /staging/."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from tests.conftest import token, wait_until
from tests.fake_gemini import FakeGemini, streams
from tests.media_uploads.conftest import UPLOAD, form, png
from tests.nginx import DESK, HERE, HOST, NGINX, PROGRAM, Nginx, needs_nginx, render, running_nginx
from tests.servers import CHATS, Got, Server, copied, environment, free_port, manage, python, running
from yral_chat import proxies

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

APP = "https://app.example"
STRANGER = "127.0.0.66"
MULTIPART = {"Content-Type": "multipart/form-data; boundary=frontier"}
PREFIXES = ("", "/staging")
MEGABYTE = 1024 * 1024


class Echo(ThreadingHTTPServer):
    """Stands where Metabase does: it tells what it was asked, and counts its connections."""

    daemon_threads = True

    def __init__(self) -> None:
        self.connections = 0
        super().__init__(("127.0.0.1", 0), EchoHandler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)


class EchoHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        told = json.dumps({"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def metabase() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.shutdown()
    echo.server_close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_nginx()
    folder = tmp_path_factory.mktemp("behind_nginx")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    manage(env, "collectstatic", "--noinput", "--verbosity", "0")
    return folder


def serving(database: Path, model: FakeGemini, name: str, **changed: str) -> contextlib.AbstractContextManager[Server]:
    folder = database / name
    copied(database, folder)
    env = environment(
        folder,
        model.url,
        free_port(),
        TRUSTED_PROXIES="127.0.0.1",
        ALLOWED_HOSTS=f"127.0.0.1,{HOST}",
        MEDIA_UPLOAD_DIR=str(folder / "uploads"),
        WEB_CONCURRENCY="1",
        CORS_ORIGINS=APP,
        **changed,
    )
    return running("gunicorn", env, folder)


@pytest.fixture(scope="module")
def service(database: Path, gemini_server: FakeGemini) -> Iterator[Server]:
    with serving(database, gemini_server, "production", MEDIA_X_ACCEL_PREFIX="/_media") as server:
        yield server


@pytest.fixture(scope="module")
def staging(database: Path, gemini_server: FakeGemini) -> Iterator[Server]:
    changed = {"SCRIPT_NAME": "/staging", "ENVIRONMENT": "staging", "MEDIA_X_ACCEL_PREFIX": "/_media_staging"}
    with serving(database, gemini_server, "staging", RATE_LIMIT_PER_MINUTE="40", **changed) as server:
        yield server


@pytest.fixture(scope="module")
def nginx(database: Path, service: Server, staging: Server, metabase: Echo) -> Iterator[Nginx]:
    (folder := database / "nginx").mkdir()
    with running_nginx(
        folder,
        CHAT_UPSTREAM=f"127.0.0.1:{service.port}",
        STAGING_UPSTREAM=f"127.0.0.1:{staging.port}",
        METABASE_UPSTREAM=metabase.address,
        METABASE_STAGING_UPSTREAM=metabase.address,
        MEDIA_FOLDER=str(service.log_path.parent / "uploads"),
        STAGING_MEDIA_FOLDER=str(staging.log_path.parent / "uploads"),
        CORS_ORIGINS=APP,
        REQUESTS_PER_SECOND="1000",
        UPLOADS_PER_SECOND="1000",
    ) as started:
        yield started


@pytest.fixture(scope="module")
def strict(metabase: Echo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """In front of a service that is down, of a staging that never answers, and with the smallest limits."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=100) as silent,
        running_nginx(
            tmp_path_factory.mktemp("strict"),
            CHAT_UPSTREAM=f"127.0.0.1:{free_port()}",
            STAGING_UPSTREAM=f"127.0.0.1:{silent.getsockname()[1]}",
            METABASE_UPSTREAM=metabase.address,
            UPSTREAM_TIMEOUT_SECONDS="1",
            REQUESTS_PER_SECOND="2",
            UPLOADS_PER_SECOND="1",
            CONNECTIONS_PER_ADDRESS="4",
            CORS_ORIGINS=APP,
            STAFF_NETWORKS="127.0.0.0/8,2001:db8::/32",
        ) as started,
    ):
        yield started


@pytest.fixture(params=PREFIXES, ids=["production", "staging"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def is_nginx_s_own(got: Got, status: int, code: str) -> None:
    """In the service's shape, and not from the service."""
    assert got.status == status, got.content
    assert set(got.json()) == {"error", "message", "details"}
    assert got.json()["error"] == code
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-correlation-id"]
    assert "x-api-version" not in got.headers
    assert "nginx/" not in str(got.headers)


# What is where


def test_every_address_of_the_service_is_found(nginx: Nginx, prefix: str) -> None:
    for path in (
        "/",
        "/health",
        "/status",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/api/v1/influencers",
        "/static/admin/css/base.css",
    ):
        assert nginx.call("GET", prefix + path).status == 200, path
    assert nginx.call("GET", f"{prefix}{CHATS}", user="alice").status == 200
    said = nginx.call("GET", f"{prefix}/").json()
    assert (said["environment"], said["docs"]) == (prefix[1:] or "production", f"{prefix}/docs")


def test_an_address_that_is_not_there_is_the_service_s_404(nginx: Nginx, prefix: str) -> None:
    for path in ("/nothing", "/api/v1/nothing", "/api/v1/influencers/nobody", "/health/", "/.env", "/.git/config"):
        got = nginx.call("GET", prefix + path)
        assert (got.status, got.json()["error"]) == (404, "not_found"), path
        assert got.headers["x-api-version"] == "v1"
    assert nginx.call("GET", "/stagingx/health").status == 404
    assert nginx.call("GET", "/staging/staging/health").status == 404
    assert nginx.call("POST", f"{prefix}/health").status == 405


def test_production_and_staging_are_two_services(nginx: Nginx, service: Server, staging: Server) -> None:
    opened = nginx.call("POST", CHATS, json.dumps({"influencer_id": service.influencers[0]}), "two-worlds", **JSON)
    assert opened.status == 201

    assert nginx.call("GET", CHATS, user="two-worlds").json()["total"] == 1
    assert nginx.call("GET", f"/staging{CHATS}", user="two-worlds").json()["total"] == 0
    assert staging.rows("SELECT count(*) FROM conversations WHERE user_id = 'two-worlds'") == [(0,)]


JSON = {"Content-Type": "application/json"}


def test_links_to_pictures_lead_back_through_it(nginx: Nginx, prefix: str) -> None:
    listed = nginx.call("GET", f"{prefix}/api/v1/influencers").json()["influencers"]
    ours = [one["avatar_url"] for one in listed if HOST in one["avatar_url"]]
    assert ours
    base = f"https://{HOST}:{nginx.https_port}"
    for url in ours:
        assert url.startswith(f"{base}{prefix}/static/")
        assert nginx.call("GET", url.removeprefix(base)).headers["content-type"].startswith("image/")


# http, and other names


def test_http_is_sent_to_https_and_a_post_never(nginx: Nginx) -> None:
    for path in ("/", "/staging/docs?a=b%20c", "/api/v1/influencers?limit=1"):
        got = nginx.plainly("GET", path)
        assert (got.status, got.headers["location"]) == (301, f"https://{HOST}:{nginx.https_port}{path}")
    for method in ("POST", "DELETE", "PUT"):
        got = nginx.plainly(method, CHATS, body=b"{}")
        is_nginx_s_own(got, 403, "forbidden")
        assert "https" in got.json()["message"]
        assert "location" not in got.headers


def test_certificates_can_be_proved_over_http(nginx: Nginx) -> None:
    challenge = nginx.folder / "acme/.well-known/acme-challenge/a-Token_1"
    challenge.parent.mkdir(parents=True, exist_ok=True)
    challenge.write_text("proof")

    assert nginx.plainly("GET", "/.well-known/acme-challenge/a-Token_1").content == b"proof"
    is_nginx_s_own(nginx.plainly("GET", "/.well-known/acme-challenge/nothing"), 404, "not_found")
    assert nginx.plainly("GET", "/.well-known/acme-challenge/../../nginx.conf").status in (301, 400)


def test_other_names_get_no_answer(nginx: Nginx) -> None:
    with pytest.raises(RemoteDisconnected):
        nginx.plainly("GET", "/", host="evil.example")
    context = ssl._create_unverified_context()
    with socket.create_connection(("127.0.0.1", nginx.https_port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="evil.example")
    is_nginx_s_own(nginx.call("GET", "/", Host="evil.example"), 421, "bad_request")
    assert nginx.plainly("GET", "/nginx-health", host="127.0.0.1").content == b"nginx runs\n"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="This machine has no IPv6.")
def test_it_listens_on_ipv6_too(nginx: Nginx) -> None:
    for port, host in ((nginx.http_port, HOST), (nginx.http_port, "any")):
        with contextlib.closing(HTTPConnection("::1", port, timeout=10)) as connection:
            connection.request("GET", "/nginx-health", headers={"Host": host})
            assert connection.getresponse().status == (301 if host == HOST else 200)
    with (
        socket.create_connection(("::1", nginx.https_port), timeout=10) as plain,
        nginx.tls.wrap_socket(plain, server_hostname=HOST) as secure,
    ):
        assert secure.version() == "TLSv1.3"


def test_tls_is_modern_and_http_2_is_spoken(nginx: Nginx) -> None:
    context = ssl.create_default_context(cafile=nginx.folder / "tls/fullchain.pem")
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", nginx.https_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as secure,
    ):
        assert (secure.selected_alpn_protocol(), secure.version()) == ("h2", "TLSv1.3")
    old = ssl._create_unverified_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.options &= ~ssl.OP_NO_TLSv1_1
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES128-SHA:@SECLEVEL=0")  # no forward secrecy
    with socket.create_connection(("127.0.0.1", nginx.https_port), timeout=10) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain, server_hostname=HOST)


def curl(nginx: Nginx, *options: str) -> bytes:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl isn't installed: HTTP/2 was shaken hands with, and no more.")
    where = f"{HOST}:{nginx.https_port}"
    resolved = ("--resolve", f"{where}:127.0.0.1", "--cacert", str(nginx.folder / "tls/fullchain.pem"))
    command = [program, "-sS", "--http2", *resolved, *options]
    return subprocess.run(command, capture_output=True, timeout=60, check=True).stdout


def test_a_conversation_over_http_2(nginx: Nginx, service: Server, gemini: FakeGemini) -> None:
    base = f"https://{HOST}:{nginx.https_port}"
    bearer = ("-H", f"Authorization: Bearer {token('phone')}", "-H", "Content-Type: application/json")
    body = json.dumps({"influencer_id": service.influencers[0]})
    opened = curl(nginx, *bearer, "-w", "\n%{http_version} %{http_code}", "-d", body, base + CHATS).decode()
    answer, _, told = opened.rpartition("\n")
    assert told == "2 201"

    asked = json.dumps({"message_type": "text", "content": "Over two?"})
    sent = json.loads(curl(nginx, *bearer, "-d", asked, f"{base}{CHATS}/{json.loads(answer)['id']}/messages"))
    assert sent["user_message"]["content"] == "Over two?"


# How large


def sound(size: int) -> bytes:
    """A WAV file of exactly that many bytes."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(44100)
        written.writeframes(bytes(size - 44))
    assert len(file.getvalue()) == size
    return file.getvalue()


def test_the_largest_file_passes_and_the_next_larger_is_refused(nginx: Nginx, prefix: str) -> None:
    most = configured.MAX_AUDIO_SIZE_MB * MEGABYTE
    passed = nginx.call("POST", prefix + UPLOAD, form(sound(most), "audio"), "large", **MULTIPART)
    assert (passed.status, passed.json().get("size")) == (200, most), passed.content

    refused = nginx.call("POST", prefix + UPLOAD, form(sound(most + 2), "audio"), "large", **MULTIPART)
    assert (refused.status, refused.json()["error"]) == (413, "payload_too_large")
    assert "20 MB" in refused.json()["message"]
    assert refused.headers["x-api-version"] == "v1", "the service says how much is allowed"


@pytest.mark.parametrize(
    ("path", "most"), [(UPLOAD, configured.UPLOAD_MAX_BODY_SIZE), (CHATS, configured.DATA_UPLOAD_MAX_MEMORY_SIZE)]
)
def test_nginx_takes_as_large_a_body_as_the_service(nginx: Nginx, prefix: str, path: str, most: int) -> None:
    passed = nginx.call("POST", prefix + path, b" " * most, "large", **JSON)
    assert passed.status in (400, 415, 422)
    assert passed.headers["x-api-version"] == "v1"
    is_nginx_s_own(nginx.call("POST", prefix + path, b" " * (most + 1), "large", **JSON), 413, "payload_too_large")


def test_a_large_upload_that_is_refused_unread_gets_the_refusal(nginx: Nginx, service: Server, prefix: str) -> None:
    """Whoever is cut off in the middle of sending it, as nginx would be, tells of a broken service instead."""
    body = form(bytes(15 * MEGABYTE), "image")
    got = nginx.call("POST", prefix + UPLOAD, body, **MULTIPART)
    assert (got.status, got.json()["error"]) == (401, "unauthorized")

    head = f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sender:
        sender.sendall(head.encode())
        assert sender.recv(12) == b"HTTP/1.1 401"
        for start in range(0, len(body), MEGABYTE):
            sender.sendall(body[start : start + MEGABYTE])


def test_a_body_in_chunks_is_measured_too(nginx: Nginx, prefix: str) -> None:
    def pieces(size: int) -> Iterator[bytes]:
        for _ in range(size // 65536):
            yield b" " * 65536

    passed = nginx.call("POST", prefix + CHATS, pieces(MEGABYTE), "large", **JSON)
    assert (passed.status, passed.headers["x-api-version"]) == (400, "v1")
    refused = nginx.call("POST", prefix + CHATS, pieces(MEGABYTE + 65536), "large", **JSON)
    is_nginx_s_own(refused, 413, "payload_too_large")


@pytest.mark.parametrize(("pictures", "sounds"), [("", ""), ("10", "20"), ("30", "5"), ("1", "100")])
def test_its_limits_follow_the_service_s_settings(tmp_path: Path, pictures: str, sounds: str) -> None:
    needs_nginx()
    sizes = {"MAX_IMAGE_SIZE_MB": pictures, "MAX_AUDIO_SIZE_MB": sounds}
    assert render(tmp_path, **sizes).returncode == 0
    written = (tmp_path / "conf.d/yral_chat.conf").read_text()

    ask = "from django.conf import settings as s; print(s.UPLOAD_MAX_BODY_SIZE, s.DATA_UPLOAD_MAX_MEMORY_SIZE)"
    env = environment(tmp_path, "http://127.0.0.1:9", 9, DJANGO_SETTINGS_MODULE="yral_chat.settings", **sizes)
    upload, body = python(env, "-c", ask).stdout.split()
    found = re.findall(r"client_max_body_size (\d+);", written)
    assert (found.count(upload), found.count(body)) == (3, 1)


# Streams


def test_the_first_byte_of_a_stream_arrives_before_its_end(nginx: Nginx, service: Server, gemini: FakeGemini) -> None:
    written = threading.Event()
    gemini.will(streams("First. ", "Second. ", "Third.", gate=lambda number: number and not written.wait(20)))
    conversation = service.open(service.influencers[0], "streamer")
    body = json.dumps({"message_type": "text", "content": "Slowly, please"})

    path = f"{CHATS}/{conversation}/messages/stream"
    connection, response = nginx.request("POST", path, body, "streamer", **JSON, **{"Accept-Encoding": "gzip"})
    with contextlib.closing(connection):
        assert response.headers["Content-Type"] == "text/event-stream"
        assert "Content-Encoding" not in response.headers
        early = b""
        while b"First." not in early:
            early += response.read1()
        assert b"Second." not in early
        assert not written.is_set(), "the model hasn't written the rest"
        written.set()
        rest = response.read()
    assert b"event: done" in rest


def test_a_stream_that_is_joined_isn_t_held_back_either(nginx: Nginx, staging: Server, gemini: FakeGemini) -> None:
    """Below /staging too. Whoever joins sees what is there while the model still writes."""
    written = threading.Event()
    gemini.will(streams("Early. ", "Late.", gate=lambda number: number and not written.wait(20)))
    conversation = staging.open(staging.influencers[0], "joiner")
    body = json.dumps({"message_type": "text", "content": "Join me"})
    first, response = nginx.request("POST", f"/staging{CHATS}/{conversation}/messages/stream", body, "joiner", **JSON)
    question = response.headers["X-Message-ID"]
    second, joined = nginx.request("GET", f"/staging{CHATS}/{conversation}/messages/{question}/stream", None, "joiner")
    with contextlib.closing(first), contextlib.closing(second):
        early = b""
        while b"Early." not in early:
            early += joined.read1()
        assert b"Late." not in early
        written.set()
        assert b"event: done" in joined.read()


# Who is asking

SPOOFED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "evil.example",
    "X-Real-IP": "203.0.113.9",
    "Forwarded": "for=203.0.113.9;host=evil.example;proto=http",
    "Proxy": "http://evil.example",
    **{
        f"X-Forwarded-{name}": "evil" for name in ("Port", "Prefix", "Server", "By", "Protocol", "Ssl", "Scheme", "Uri")
    },
}


def test_what_a_client_writes_into_forwarding_headers_goes_no_further(nginx: Nginx) -> None:
    told = nginx.call("GET", "/metabase/x", source=DESK, **SPOOFED).json()["headers"]

    assert told["x-forwarded-for"] == DESK
    assert told["x-forwarded-proto"] == "https"
    assert told["x-forwarded-host"] == f"{HOST}:{nginx.https_port}"
    assert told["host"] == HOST
    assert not [value for value in told.values() if "evil" in value or "203.0.113.9" in value]
    believed = {name.removeprefix("HTTP_").replace("_", "-").lower() for name in proxies.FORWARDING}
    assert believed & told.keys() == {"x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"}


def test_every_forwarding_header_that_the_service_knows_is_set_or_taken_away() -> None:
    written = (NGINX / "yral_chat/forward.inc").read_text().lower()
    for name in proxies.FORWARDING:
        assert f"proxy_set_header {name.removeprefix('HTTP_').replace('_', '-').lower()} " in written


def test_the_service_counts_each_client_by_its_own_address_whatever_it_writes(nginx: Nginx) -> None:
    """Forty a minute. A clock's minute may end in between, so that at most eighty pass."""
    for number in range(81):
        forged = {"X-Forwarded-For": f"198.51.100.{number}", "X-Real-IP": f"198.51.100.{number}"}
        got = nginx.call("GET", "/staging/api/v1/influencers?limit=1", source=STRANGER, **forged)
        if got.status == 429:
            break
    assert (got.status, got.json()["error"]) == (429, "rate_limit_exceeded")
    assert got.headers["x-api-version"] == "v1"
    assert nginx.call("GET", "/staging/api/v1/influencers?limit=1", source="127.0.0.67").status == 200


def test_one_correlation_id_stands_in_the_answer_and_in_both_logs(nginx: Nginx, service: Server) -> None:
    given = f"phone-{uuid.uuid4()}"
    assert nginx.call("GET", "/health", **{"X-Correlation-ID": given}).headers["x-correlation-id"] == given
    made = nginx.call("GET", "/health", **{"X-Correlation-ID": "in sane"}).headers["x-correlation-id"]
    assert re.fullmatch("[0-9a-f]{32}", made)
    wait_until(lambda: made in nginx.log and made in service.log, "the id isn't in both logs")
    line = json.loads(next(line for line in nginx.log.splitlines() if given in line))
    assert (line["path"], line["status"], line["client"]) == ("/health", 200, "127.0.0.1")


def test_connections_to_the_service_are_kept(nginx: Nginx, metabase: Echo) -> None:
    nginx.call("GET", "/metabase/warm", source=DESK)
    before = metabase.connections
    for _ in range(10):
        assert nginx.call("GET", "/metabase/again", source=DESK).status == 200
    assert metabase.connections - before <= 1


# What isn't public

CLOSED = (
    *("/metrics", "/metrics/", "//metrics", "/%6detrics", "/docs/../metrics", "/./metrics"),
    *(
        "/admin",
        "/admin/",
        "/admin/login/",
        "//admin/",
        "/%61dmin/",
        "/docs/..%2fadmin/",
        "/admin/personas/influencer/",
    ),
    *("/metabase/", "/metabase/api/setup", "/%6detabase/"),
)


def test_metrics_admin_and_metabase_are_closed_to_strangers(nginx: Nginx, prefix: str) -> None:
    for path in CLOSED:
        got = nginx.call("GET", prefix + path, **{"X-Forwarded-For": DESK})
        is_nginx_s_own(got, 404, "not_found")
    assert nginx.call("POST", f"{prefix}/admin/login/", b"username=a").status == 404
    for path in ("/ADMIN/", "/admin;/", "/%2561dmin/", "/Metrics", "/admin%00/", "/metrics%0a"):
        assert nginx.call("GET", prefix + path).status in (400, 404), path
    for path in ("/admin/../x", "/admin/%2e%2e/x", "/admin/..", "/admin/login/./../../docs", "/metrics/../x"):
        assert nginx.call("GET", prefix + path).status == 404, f"{path}, which nginx takes for another"


def test_they_are_open_to_staff(nginx: Nginx, prefix: str) -> None:
    page = nginx.call("GET", f"{prefix}/admin/login/", source=DESK)
    assert (page.status, "csrfmiddlewaretoken" in page.content.decode()) == (200, True)
    assert nginx.call("GET", f"{prefix}/metrics", source=DESK).headers["x-api-version"], (
        "the service asks for its token"
    )
    told = nginx.call("GET", f"{prefix}/metabase/api/health?a=b", source=DESK).json()
    assert told["path"] == "/api/health?a=b"
    moved = nginx.call("GET", f"{prefix}/metabase", source=DESK)
    assert moved.headers["location"] == f"https://{HOST}:{nginx.https_port}{prefix}/metabase/"


def test_staff_can_log_in_through_it(nginx: Nginx, service: Server, tmp_path: Path) -> None:
    """Cookies, and the check of where a form comes from, need the right host and scheme."""
    env = environment(tmp_path, "http://127.0.0.1:9", 9, DATABASE_URL=service.database_url)
    env |= {"DJANGO_SUPERUSER_USERNAME": "root", "DJANGO_SUPERUSER_PASSWORD": "a-password-for-tests"}
    manage(env, "createsuperuser", "--noinput", "--email", "root@example.com")
    page = nginx.call("GET", "/admin/login/", source=DESK)
    cookie = page.headers["set-cookie"].partition(";")[0]
    field = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', page.content.decode())[0]

    body = f"csrfmiddlewaretoken={field}&username=root&password=a-password-for-tests&next=/admin/"
    origin = f"https://{HOST}:{nginx.https_port}"
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Cookie": cookie, "Origin": origin}
    logged_in = nginx.call("POST", "/admin/login/", body, source=DESK, **headers)

    assert (logged_in.status, logged_in.headers["location"]) == (302, "/admin/")


def test_a_moved_admin_is_closed_where_it_is(tmp_path: Path, service: Server) -> None:
    with running_nginx(tmp_path, CHAT_UPSTREAM=f"127.0.0.1:{service.port}", ADMIN_PATH="staff-7f3a/desk/") as nginx:
        told_of_by_one_alone = ("/admin/login/", "/staging/admin/login/")
        for path in ("/staff-7f3a/desk", "/staff-7f3a/desk/login/", *told_of_by_one_alone):
            is_nginx_s_own(nginx.call("GET", path), 404, "not_found")
        assert nginx.call("GET", "/staff-7f3a/desk/", source=DESK).headers["x-api-version"]
        assert nginx.call("GET", "/staff-7f3a/desktop").headers["x-api-version"]


def test_by_default_nobody_is_staff(tmp_path: Path) -> None:
    needs_nginx()
    assert render(tmp_path).returncode == 0
    written = (tmp_path / "conf.d/yral_chat.conf").read_text()
    assert re.search(r"geo \$is_staff \{\s*default 0;\s*\}", written)


# Files


def uploaded(nginx: Nginx, prefix: str) -> tuple[bytes, str, str]:
    """A picture's bytes as they are kept, the path of its link, and its key."""
    got = nginx.call("POST", prefix + UPLOAD, form(png(40, 30), "image"), "alice", **MULTIPART)
    assert got.status == 200, got.content
    url = got.json()["url"]
    assert url.startswith(f"https://{HOST}:{nginx.https_port}{prefix}/media/alice/")
    path = url.removeprefix(f"https://{HOST}:{nginx.https_port}")
    kept = nginx.call("GET", path)
    assert kept.status == 200, kept.content
    assert len(kept.content) == got.json()["size"]
    return kept.content, path, got.json()["storage_key"]


def test_nginx_sends_the_files_itself(nginx: Nginx, service: Server, staging: Server, prefix: str) -> None:
    content, path, key = uploaded(nginx, prefix)
    there = (staging if prefix else service).log_path.parent / "uploads" / key

    assert content == there.read_bytes()
    whole, part = nginx.call("GET", path), nginx.call("GET", path, Range="bytes=5-14")
    assert whole.headers["accept-ranges"] == "bytes"
    assert (part.status, part.content) == (206, content[5:15])
    assert part.headers["content-range"] == f"bytes 5-14/{len(content)}"
    assert part.headers["content-type"] == "image/png"
    assert nginx.call("GET", path, Range="bytes=-4").content == content[-4:]
    assert nginx.call("HEAD", path).headers["content-length"] == str(len(content))
    assert nginx.call("GET", path, **{"If-None-Match": whole.headers["etag"]}).status == 304
    beyond = nginx.call("GET", path, Range=f"bytes={len(content)}-")
    assert (beyond.status, beyond.json()["error"]) == (416, "range_not_satisfiable")


def test_a_file_says_no_less_than_from_the_service_and_nothing_twice(
    nginx: Nginx, service: Server, staging: Server, prefix: str
) -> None:
    _, path, _ = uploaded(nginx, prefix)
    direct = (staging if prefix else service).call("GET", path, user=None).headers
    connection, response = nginx.request("GET", path)
    with contextlib.closing(connection):
        response.read()
        names = [name.lower() for name, _ in response.getheaders()]
        assert len(names) == len(set(names)), names
        for name in direct.keys() - {
            "x-accel-redirect",
            "content-length",
            "date",
            "server",
            "connection",
            "x-correlation-id",
        }:
            assert response.headers[name] == direct[name], name
        assert "X-Accel-Redirect" not in response.headers
        assert "sandbox" in response.headers["Content-Security-Policy"]


def test_a_file_is_had_by_its_link_alone(nginx: Nginx, prefix: str) -> None:
    _, path, key = uploaded(nginx, prefix)
    refused = nginx.call("GET", path.partition("?")[0])
    assert (refused.status, refused.json()["error"]) == (403, "forbidden")
    inner = "/_media_staging" if prefix else "/_media"
    for address in (f"{inner}/{key}", f"/media/..{inner}/{key}", f"{inner}//{key}", f"/%5fmedia/{key}"):
        assert nginx.call("GET", address).status == 404, address


def test_a_file_that_is_gone_is_a_404_and_a_link_on_the_disk_is_not_followed(
    nginx: Nginx, service: Server, staging: Server, prefix: str
) -> None:
    _, path, key = uploaded(nginx, prefix)
    there = (staging if prefix else service).log_path.parent / "uploads" / key
    there.unlink()
    is_nginx_s_own(nginx.call("GET", path), 404, "not_found")
    there.symlink_to("/etc/passwd")
    is_nginx_s_own(nginx.call("GET", path), 403, "forbidden")


# When nobody answers


def test_a_service_that_is_down_is_a_502_in_the_one_shape(strict: Nginx) -> None:
    got = strict.call("GET", "/health", source="127.0.0.30", Origin=APP, **{"X-Correlation-ID": "from-the-phone"})

    is_nginx_s_own(got, 502, "service_unavailable")
    assert got.headers["retry-after"] == "5"
    assert got.headers["x-correlation-id"] == "from-the-phone"
    assert got.headers["access-control-allow-origin"] == APP
    evil = strict.call("GET", "/health", source="127.0.0.30", Origin="https://evil.example")
    assert "access-control-allow-origin" not in evil.headers
    assert "strict-transport-security" in got.headers


def test_a_service_that_never_answers_is_a_504_in_the_one_shape(strict: Nginx) -> None:
    asked = time.monotonic()
    got = strict.call("POST", f"/staging{CHATS}/x/messages", b"{}", source="127.0.0.31", **JSON)

    is_nginx_s_own(got, 504, "service_unavailable")
    assert got.headers["retry-after"] == "5"
    assert time.monotonic() - asked < 5


def test_the_shipped_patience_is_300_seconds(tmp_path: Path) -> None:
    needs_nginx()
    assert render(tmp_path).returncode == 0
    written = (tmp_path / "conf.d/yral_chat.conf").read_text()
    assert "proxy_read_timeout 300s;" in written
    assert "proxy_send_timeout 300s;" in written


def test_what_no_server_understands_is_refused_in_the_one_shape(nginx: Nginx) -> None:
    is_nginx_s_own(nginx.call("GET", "/" + "x" * 9_000), 414, "bad_request")
    is_nginx_s_own(nginx.call("GET", "/", **{"X-Long": "x" * 9_000}), 400, "bad_request")
    is_nginx_s_own(nginx.call("GET", "/%00"), 400, "bad_request")
    with contextlib.closing(HTTPConnection("127.0.0.1", nginx.https_port, timeout=10)) as connection:
        connection.request("GET", "/", headers={"Host": HOST})  # http where https is spoken
        assert (response := connection.getresponse()).status == 400
        assert json.loads(response.read())["error"] == "bad_request"


def test_nothing_is_said_twice(nginx: Nginx, prefix: str) -> None:
    for path, source in (
        ("/docs", HERE),
        ("/openapi.json", HERE),
        ("/api/v1/influencers", HERE),
        ("/admin/login/", DESK),
    ):
        connection, response = nginx.request("GET", prefix + path, source=source, **{"Accept-Encoding": "gzip"})
        with contextlib.closing(connection):
            response.read()
        names = [name.lower() for name, _ in response.getheaders() if name.lower() not in ("set-cookie", "vary")]
        assert len(names) == len(set(names)), names
        assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Encoding"] == "gzip", path


def test_scripts_that_a_browser_has_are_not_sent_again(nginx: Nginx, prefix: str) -> None:
    script, packed = f"{prefix}/static/yral_chat/theme.js", {"Accept-Encoding": "gzip"}
    first = nginx.call("GET", script, **packed)

    again = nginx.call("GET", script, **packed, **{"If-None-Match": first.headers["etag"]})

    assert (first.status, first.headers["cache-control"]) == (200, "no-cache")
    assert (again.status, again.content) == (304, b"")


# Too often


def flood(nginx: Nginx, times: int, method: str, path: str, source: str, **headers: str) -> list[Got]:
    with ThreadPoolExecutor(4) as phones:
        return list(phones.map(lambda _: nginx.call(method, path, source=source, **headers), range(times)))


def test_an_address_that_asks_too_often_is_told_when_to_come_back(strict: Nginx) -> None:
    """Two a second, and eight at once more."""
    got = flood(strict, 30, "GET", "/metabase/", "127.0.0.40", **{"X-Forwarded-For": "127.0.0.99"})

    refused = [one for one in got if one.status == 429]
    assert len([one for one in got if one.status == 200]) >= 9
    assert len(refused) >= 10
    is_nginx_s_own(refused[0], 429, "rate_limit_exceeded")
    assert refused[0].json()["details"] == {"retry_after": 1, "limit_type": "address_second"}
    assert refused[0].headers["retry-after"] == "1"
    assert strict.call("GET", "/metabase/", source="127.0.0.41").status == 200, "others are free"
    time.sleep(1.0)
    assert strict.call("GET", "/metabase/", source="127.0.0.40").status == 200, "and so is it, when it said"


def test_uploads_have_a_limit_of_their_own(strict: Nginx) -> None:
    got = [strict.call("POST", UPLOAD, b"x", source="127.0.0.42").status for _ in range(8)]
    assert got[:5] == [502] * 5
    assert got[-1] == 429
    assert strict.call("GET", "/metabase/", source="127.0.0.42").status == 200


def test_an_ipv6_customer_is_one_client_whatever_the_lower_half(strict: Nginx) -> None:
    def ask(address: str) -> int:
        return strict.call("GET", "/metabase/", source="127.0.0.9", **{"X-Test-Address": address}).status

    assert 429 in [ask(f"2001:db8:0:1:{number:x}::{number}") for number in range(1, 30)]
    assert ask("2001:db8:0:2::1") == 200


def test_an_address_has_so_many_requests_under_way_and_no_more(strict: Nginx) -> None:
    with ThreadPoolExecutor(6) as phones:
        waiting = [phones.submit(strict.call, "GET", "/staging/health", source="127.0.0.43") for _ in range(6)]
        statuses = sorted(one.result().status for one in waiting)
    assert statuses == [429, 429, 504, 504, 504, 504]


def test_a_client_that_dawdles_is_cut_off_without_the_service(nginx: Nginx) -> None:
    """It holds no thread of the service: nginx hands on what is whole."""
    connection = nginx.connection()
    with contextlib.closing(connection):
        head = (
            f"POST {CHATS} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100\r\nContent-Type: application/json\r\n\r\n{{"
        )
        connection.sock.sendall(head.encode())
        assert nginx.call("GET", "/health").status == 200
    wait_until(lambda: '"status":400' in nginx.log or '"status":499' in nginx.log, "the half request isn't in the log")


# The files themselves


SKIPPED = {
    "missing_resolver": "the names that proxy_pass takes from $service are upstream groups of the same file",
    "proxy_pass_normalized": "Metabase must see its paths without /metabase, and decides nothing by encoded slashes",
}


def test_gixy_finds_nothing(nginx: Nginx) -> None:
    """With the usual ports: it takes any that has a 443 in it for one of TLS."""
    program = Path(sys.executable).with_name("gixy")
    written = (nginx.folder / "conf.d/yral_chat.conf").read_text()
    for port, usual in ((nginx.http_port, 80), (nginx.https_port, 443)):
        written = re.sub(rf"(listen |\]:){port}\b", rf"\g<1>{usual}", written)
    (nginx.folder / "usual.conf").write_text(written)
    (nginx.folder / "gixy.conf").write_text("events {}\nhttp { include usual.conf; }\n")
    found = subprocess.run(
        [program, "--skips", ",".join(SKIPPED), nginx.folder / "gixy.conf"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
    assert "No issues found" in found.stdout, found.stdout
    assert "WARNING" not in found.stderr, found.stderr


DEBIAN = Path("/etc/nginx/nginx.conf")
IMAGE = """
user  nginx;
worker_processes  auto;
error_log  /var/log/nginx/error.log notice;
pid        /run/nginx.pid;
events { worker_connections  1024; }
http {
    include       /etc/nginx/mime.types;
    default_type  application/octet-stream;
    log_format  main  '$remote_addr - $remote_user [$time_local] "$request" $status';
    access_log  /var/log/nginx/access.log  main;
    sendfile        on;
    keepalive_timeout  65;
    include /etc/nginx/conf.d/*.conf;
}
"""


# What the entrypoint of the nginx image does: source, then fill in the templates with all that is set.
IMAGE_ENTRYPOINT = r"""
set -e
echo "$ENVSH" | while read -r f; do [ -x "$f" ] && . "$f"
defined_envs=$(printf '${%s} ' $(awk 'END { for (name in ENVIRON) { print name } }' </dev/null))
envsubst "$defined_envs" <"$TEMPLATE"; done
"""


def test_the_nginx_image_makes_the_same_of_it_as_render_sh(tmp_path: Path) -> None:
    needs_nginx()
    variables = {
        "SERVER_NAME": HOST,
        "STAFF_NETWORKS": DESK,
        "CORS_ORIGINS": APP,
        "PLACEHOLDER_FOLDER": f"{tmp_path}/p",
    }
    assert render(tmp_path, **variables).returncode == 0
    env = {"PATH": os.environ["PATH"], "ENVSH": str(NGINX / "15-yral-chat.envsh"), **variables}
    env["TEMPLATE"] = str(NGINX / "templates/yral_chat.conf.template")

    def starts(**changed: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", IMAGE_ENTRYPOINT]
        return subprocess.run(command, env=env | changed, capture_output=True, text=True, check=False)

    assert starts().stdout == (tmp_path / "conf.d/yral_chat.conf").read_text()
    assert starts(SERVER_NAME="a;b").returncode == 1


@pytest.mark.parametrize("around", ["Debian's", "the image's"])
def test_it_fits_into_the_nginx_conf_that_it_meets(nginx: Nginx, tmp_path: Path, around: str) -> None:
    if around == "Debian's" and not DEBIAN.exists():
        pytest.skip("There is no /etc/nginx/nginx.conf of Debian's here.")
    text = DEBIAN.read_text() if around == "Debian's" else IMAGE
    text = re.sub(r"^user .*|^pid .*|^include .*modules-enabled.*|.*sites-enabled.*", "", text, flags=re.M)
    text = text.replace("/etc/nginx/conf.d", str(nginx.folder / "conf.d")).replace("/var/log/nginx", str(tmp_path))
    (nginx.folder / "around.conf").write_text(f"pid {tmp_path}/nginx.pid;\n{text}")
    files = ("-p", str(tmp_path), "-c", str(nginx.folder / "around.conf"), "-e", str(tmp_path / "error.log"))
    checked = subprocess.run([str(PROGRAM), "-t", *files], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVER_NAME", "chat.example; evil"),
        ("SERVER_NAME", "$host"),
        ("STAFF_NETWORKS", "0.0.0.0/0;x"),
        ("STAFF_NETWORKS", "*"),
        ("CHAT_UPSTREAM", "nowhere"),
        ("METABASE_UPSTREAM", "a b:1"),
        ("MAX_AUDIO_SIZE_MB", "many"),
        ("REQUESTS_PER_SECOND", "0"),
        ("ADMIN_PATH", "../x"),
        ("CORS_ORIGINS", 'https://a"b'),
        ("MEDIA_FOLDER", "uploads"),
    ],
)
def test_a_value_that_cannot_be_used_stops_the_start_with_a_sentence(tmp_path: Path, name: str, value: str) -> None:
    needs_nginx()
    said = render(tmp_path, **{name: value})

    assert said.returncode == 1
    assert said.stderr.startswith("nginx of Yral AI Chat can't start: ")
    assert not (tmp_path / "conf.d/yral_chat.conf").exists()


def test_any_page_may_read_its_refusals_if_any_may_call(tmp_path: Path) -> None:
    with running_nginx(tmp_path, CHAT_UPSTREAM=f"127.0.0.1:{free_port()}", CORS_ORIGINS="*") as nginx:
        got = nginx.call("GET", "/health", Origin="https://whoever.example")
        assert got.headers["access-control-allow-origin"] == "*"


def test_without_a_certificate_it_starts_with_one_of_its_own(tmp_path: Path) -> None:
    needs_nginx()
    said = render(tmp_path, SERVER_NAME="fresh.example")
    assert "no browser believes" in said.stderr
    written = (tmp_path / "conf.d/yral_chat.conf").read_text()
    made = tmp_path / "placeholder/fullchain.pem"
    assert f"ssl_certificate {made};" in written
    shown = subprocess.run(
        ["openssl", "x509", "-in", made, "-noout", "-text"], capture_output=True, text=True, check=True
    )
    assert "DNS:fresh.example" in shown.stdout
    before = made.read_bytes()
    assert render(tmp_path, SERVER_NAME="fresh.example").returncode == 0
    assert made.read_bytes() == before
