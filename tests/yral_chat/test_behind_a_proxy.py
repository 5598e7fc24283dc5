"""The real servers behind a proxy: under a path, and with forwarding headers of friends and of strangers."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.servers import (
    COMMANDS,
    Got,
    Server,
    copied,
    environment,
    free_port,
    manage,
    running,
)

pytestmark = [pytest.mark.own_database, pytest.mark.drill]

PREFIX = "/staging"
APP = "https://app.example"
OFFICE = "198.51.100.7"
FORWARDED = {"X-Forwarded-For": OFFICE, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "chat.example"}
BASE = f"https://chat.example{PREFIX}"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxied")
    env = environment(folder, "http://127.0.0.1:9", 9)
    manage(env, "migrate", "--verbosity", "0")
    manage(env, "seed_personas")
    manage(env, "collectstatic", "--noinput", "--verbosity", "0")
    return folder


def serving(kind: str, database: Path, trusted: str) -> Iterator[Server]:
    folder = database / f"{kind}-{bool(trusted)}"
    copied(database, folder)
    env = environment(
        folder,
        "http://127.0.0.1:9",
        free_port(),
        SCRIPT_NAME=PREFIX,
        TRUSTED_PROXIES=trusted,
        ADMIN_ALLOWED_NETWORKS="198.51.100.0/24",
        ALLOWED_HOSTS="127.0.0.1,chat.example",
        MEDIA_UPLOAD_DIR=str(folder / "uploads"),
        WEB_CONCURRENCY="1",
        CORS_ORIGINS=APP,
        FORWARDED_ALLOW_IPS="*",  # both servers read it, and neither may obey
    )
    with running(kind, env, folder) as server:
        yield server
    assert "Traceback" not in server.log


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, database: Path) -> Iterator[Server]:
    """Its proxy is this machine."""
    yield from serving(request.param, database, "127.0.0.1")


@pytest.fixture(scope="module", params=COMMANDS)
def alone(request: pytest.FixtureRequest, database: Path) -> Iterator[Server]:
    """It knows no proxy."""
    yield from serving(request.param, database, "")


@pytest.fixture(params=[PREFIX, ""], ids=["the proxy leaves the path", "the proxy takes it off"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def get(server: Server, path: str, user: str | None = None, **headers: Any) -> Got:
    return server.call("GET", path, None, user, **FORWARDED, **headers)


def test_every_address_is_found(server: Server, prefix: str) -> None:
    for path in ("/", "/health", "/status", "/docs", "/redoc", "/openapi.json", "/admin/login/", "/api/v1/influencers"):
        assert get(server, prefix + path).status == 200, path
    assert get(server, f"{prefix}/api/v1/chat/conversations", "alice").status == 200
    assert get(server, f"{prefix}/nothing").json()["error"] == "not_found"
    assert get(server, f"{PREFIX}x/health").status == 404
    assert get(server, PREFIX).status == 200


def test_what_the_service_says_of_itself_carries_the_path(server: Server, prefix: str) -> None:
    said = get(server, f"{prefix}/").json()

    assert (said["docs"], said["health"], said["openapi"]) == (
        f"{PREFIX}/docs",
        f"{PREFIX}/health",
        f"{PREFIX}/openapi.json",
    )
    schema = get(server, f"{prefix}/openapi.json").json()
    assert schema["servers"] == [{"url": PREFIX}]
    assert "/api/v1/influencers" in schema["paths"]


def test_the_pages_load_what_is_there(server: Server, prefix: str) -> None:
    for path in ("/docs", "/redoc", "/admin/login/"):
        html = get(server, prefix + path).content.decode()
        loaded = set(re.findall(r"""(?:src|href)=["'](/[^"'#?]+\.(?:js|css|png))["']""", html))
        assert loaded, path
        for address in loaded:
            assert address.startswith(f"{PREFIX}/static/")
            assert get(server, prefix + address.removeprefix(PREFIX)).status == 200, address
    assert f"{PREFIX}/openapi.json" in get(server, f"{prefix}/docs").content.decode().replace("\\u002D", "-")


def test_redirects_and_cookies_stay_below_the_path(server: Server, prefix: str) -> None:
    assert get(server, f"{prefix}/admin").headers["location"] == f"{PREFIX}/admin/"
    assert get(server, f"{prefix}/admin/").headers["location"] == f"{PREFIX}/admin/login/?next={PREFIX}/admin/"
    cookie = get(server, f"{prefix}/admin/login/").headers["set-cookie"]
    assert f"Path={PREFIX}/" in cookie
    assert "Secure" in cookie


def test_links_to_pictures_hold(server: Server, prefix: str) -> None:
    listed = get(server, f"{prefix}/api/v1/influencers").json()["influencers"]
    ours = [one["avatar_url"] for one in listed if "chat.example" in one["avatar_url"]]
    assert ours
    for url in ours:
        assert url.startswith(f"{BASE}/static/")
        assert get(server, prefix + url.removeprefix(BASE)).headers["content-type"].startswith("image/")

    url = upload(server, prefix)["url"]
    assert url.startswith(f"{BASE}/media/alice/")
    picture = get(server, prefix + url.removeprefix(BASE))
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")


def upload(server: Server, prefix: str) -> Any:
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    parts = (
        b'--b\r\nContent-Disposition: form-data; name="type"\r\n\r\nimage\r\n--b\r\nContent-Disposition: form-data; '
    )
    body = parts + b'name="file"; filename="x.png"\r\n\r\n' + png.getvalue() + b"\r\n--b--\r\n"
    headers = {**FORWARDED, "Content-Type": "multipart/form-data; boundary=b"}
    got = server.call("POST", f"{prefix}/api/v1/media/upload", body, "alice", **headers)
    assert got.status == 200, got.content
    return got.json()


def test_a_friend_is_believed(server: Server) -> None:
    answer = get(server, "/health")

    assert "max-age=31536000" in answer.headers["strict-transport-security"]
    assert get(server, "/admin/login/").status == 200
    assert server.call("GET", "/admin/login/", user=None).status == 404, "the proxy itself is no member of staff"


@pytest.mark.parametrize(
    "forged",
    [
        FORWARDED,
        {"X-Forwarded-Proto": "https", "X-Forwarded-Ssl": "on", "X-Forwarded-Protocol": "ssl", "X-Real-IP": OFFICE},
        {"Forwarded": f"for={OFFICE};proto=https;host=chat.example", "X-Forwarded-For": OFFICE},
        {"X-Forwarded-Prefix": "/evil", "Script-Name": "/evil", "SCRIPT_NAME": "/evil", "PATH_INFO": "/evil"},
    ],
)
def test_a_stranger_changes_nothing(alone: Server, forged: dict[str, str]) -> None:
    def call(path: str) -> Got:
        return alone.call("GET", path, None, None, **forged)

    assert call("/admin/login/").status == 404
    health = call("/health")
    assert health.status == 200
    assert "strict-transport-security" not in health.headers
    own = f"http://127.0.0.1:{alone.port}{PREFIX}/static/"
    pictures = [one["avatar_url"] for one in json.loads(call("/api/v1/influencers").content)["influencers"]]
    assert [url for url in pictures if url.startswith(own)]
    assert not [url for url in pictures if "chat.example" in url or "/evil" in url]


def test_a_page_of_another_site_can_read_every_refusal(server: Server, prefix: str) -> None:
    """That of a body which is cut off before Django has seen it, too."""
    chats = f"{prefix}/api/v1/chat/conversations"
    for status, body, user in ((401, b"{}", None), (422, b"{}", "alice"), (413, b"x" * 3_000_000, "alice")):
        got = server.call("POST", chats, body, user, **FORWARDED, Origin=APP)
        assert (got.status, got.headers.get("access-control-allow-origin")) == (status, APP)
    asked = {"Origin": APP, "Access-Control-Request-Method": "POST"}
    assert server.call("OPTIONS", chats, None, None, **FORWARDED, **asked).status == 200
    stranger = server.call("POST", chats, b"x" * 3_000_000, "alice", **FORWARDED, Origin="https://evil.example")
    assert "access-control-allow-origin" not in stranger.headers
