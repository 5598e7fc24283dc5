"""Whose word is taken for the client's address, host and scheme (A16: addresses can't be forged)."""

from typing import Any

import pytest
from django.test import Client

pytestmark = pytest.mark.own_database

PROXY = "10.0.0.5"
STRANGER = "203.0.113.7"
FORGED = {
    "X-Forwarded-For": "198.51.100.1",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Port": "444",
    "X-Forwarded-Prefix": "/evil",
    "X-Real-IP": "198.51.100.1",
    "Forwarded": "for=198.51.100.1;proto=https;host=evil.example",
}


@pytest.fixture(autouse=True)
def echoing(settings: Any) -> None:
    settings.ROOT_URLCONF = "tests.yral_chat.echoing_urls"
    settings.TRUSTED_PROXIES = ["10.0.0.0/8", "2001:db8::/32"]


def seen(peer: str | None, **headers: str) -> dict[str, Any]:
    response = Client(REMOTE_ADDR=peer).get("/echo", headers={k.replace("_", "-"): v for k, v in headers.items()})
    assert response.status_code == 200, response.content
    return dict(response.json())


def test_without_a_proxy_nothing_changes() -> None:
    said = seen(STRANGER)

    assert (said["address"], said["is_direct"], said["secure"], said["host"]) == (STRANGER, True, False, "testserver")


def test_of_a_stranger_no_forwarding_header_is_believed_and_none_is_passed_on() -> None:
    said = seen(STRANGER, **FORGED)

    assert (said["address"], said["secure"], said["host"]) == (STRANGER, False, "testserver")
    assert said["forwarding"] == []
    assert not said["is_direct"], "somebody says that there was a proxy: it isn't treated as a call of this machine"


def test_no_proxy_is_trusted_unless_it_is_named(settings: Any) -> None:
    settings.TRUSTED_PROXIES = []

    for peer in ("127.0.0.1", "::1", PROXY, ""):
        assert seen(peer, **FORGED)["address"] == peer


@pytest.mark.parametrize("name", FORGED)
def test_each_header_alone_makes_a_request_indirect(name: str) -> None:
    assert not seen(STRANGER, **{name: FORGED[name]})["is_direct"]
    assert not seen(PROXY, **{name: FORGED[name]})["is_direct"]


def test_a_via_header_tells_of_a_proxy_as_well() -> None:
    assert not seen("127.0.0.1", Via="1.1 somewhere")["is_direct"]


def test_a_trusted_proxy_is_believed() -> None:
    said = seen(PROXY, X_Forwarded_For=STRANGER, X_Forwarded_Proto="https", X_Forwarded_Host="chat.example")

    assert (said["address"], said["secure"], said["host"]) == (STRANGER, True, "chat.example")
    assert said["url"] == "https://chat.example/echo"


def test_http_is_believed_too() -> None:
    assert not seen(PROXY, X_Forwarded_For=STRANGER, X_Forwarded_Proto="http")["secure"]


def test_a_foreign_host_is_refused_even_from_a_trusted_proxy(settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["chat.example"]
    client = Client(REMOTE_ADDR=PROXY, headers={"Host": "chat.example"})

    assert client.get("/echo", headers={"X-Forwarded-Host": "evil.example"}).status_code == 400
    assert client.get("/echo", headers={"X-Forwarded-Host": "chat.example"}).status_code == 200


@pytest.mark.parametrize(
    ("forwarded_for", "client"),
    [
        (STRANGER, STRANGER),
        (f"198.51.100.1, {STRANGER}", STRANGER),  # what a client writes itself stands to the left
        (f"198.51.100.1,{STRANGER}, 10.9.9.9 ,10.0.0.6", STRANGER),
        (f"10.1.1.1, {STRANGER}", STRANGER),  # a forged trusted one as well
        ("10.1.1.1, 10.2.2.2", "10.1.1.1"),  # all of them ours
        (f"unknown, {STRANGER}", STRANGER),
        (f"{STRANGER}, unknown", PROXY),
        (f"{STRANGER}, garbage, 10.2.2.2", "10.2.2.2"),
        ("unknown", PROXY),
        ("", PROXY),
        (" , ,", PROXY),
        (",", PROXY),
        (f"{STRANGER}:51234", STRANGER),
        ("[2001:4860::1]:443", "2001:4860::1"),
        ("[2001:4860::1]", "2001:4860::1"),
        ("2001:4860:0:0:0:0:0:1", "2001:4860::1"),
        (f"{STRANGER}, 2001:db8::7", STRANGER),
        (f"::ffff:{STRANGER}", STRANGER),
        (f"{STRANGER}, ::ffff:10.3.3.3", STRANGER),
        ("fe80::1%eth0", PROXY),
        ("fe80::1%" + "x" * 200, PROXY),
        ("203.0.113.07", PROXY),
        ("0x7f.1", PROXY),
        ("127.1", PROXY),
        ("203.0.113.7.", PROXY),
        ("'; DROP TABLE--", PROXY),
        ("\u0661.\u0661.\u0661.\u0661", PROXY),
        ("9" * 5000, PROXY),
    ],
)
def test_the_client_is_the_right_most_that_is_no_proxy_of_ours(forwarded_for: str, client: str) -> None:
    assert seen(PROXY, X_Forwarded_For=forwarded_for)["address"] == client


@pytest.mark.parametrize(
    ("sent", "secure"),
    [("https", True), ("HTTPS", True), (" https ", True), ("https, http", False), ("http, https", True), ("on", False)],
)
def test_of_several_schemes_the_last_is_the_proxy_s_own(sent: str, secure: bool) -> None:
    assert seen(PROXY, X_Forwarded_Proto=sent)["secure"] is secure


def test_of_several_hosts_the_last_is_the_proxy_s_own() -> None:
    assert seen(PROXY, X_Forwarded_Host="evil.example, chat.example")["host"] == "chat.example"


def test_a_proxy_that_connects_over_ipv6_is_recognised_by_its_ipv4_address() -> None:
    assert seen(f"::ffff:{PROXY}", X_Forwarded_For=STRANGER)["address"] == STRANGER
    assert seen(f"::ffff:{STRANGER}")["address"] == STRANGER


@pytest.mark.parametrize("peer", ["", None])
def test_a_unix_socket_has_no_address_and_is_trusted_by_its_word(peer: str | None, settings: Any) -> None:
    assert seen(peer, X_Forwarded_For=STRANGER)["address"] == ""

    settings.TRUSTED_PROXIES = ["unix"]

    assert seen(peer, X_Forwarded_For=STRANGER)["address"] == STRANGER
    assert seen(peer)["address"] == ""
    assert seen("127.0.0.1", X_Forwarded_For=STRANGER)["address"] == "127.0.0.1"


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_proxy_that_was_forgotten_is_told_of_once(settings: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings.TRUSTED_PROXIES = []
    client = Client(REMOTE_ADDR="127.0.0.1")
    for _ in range(3):
        client.get("/echo", headers={"X-Forwarded-For": STRANGER})

    (said,) = warned(caplog)
    assert said.startswith("127.0.0.1 ")
    assert "TRUSTED_PROXIES" in said


@pytest.mark.parametrize(
    ("peer", "header"), [("8.8.8.8", "X-Forwarded-For"), (PROXY, "X-Forwarded-For"), ("192.168.0.1", "X-Real-IP")]
)
def test_strangers_and_friends_are_not_told_of(peer: str, header: str, caplog: pytest.LogCaptureFixture) -> None:
    seen(peer, **{header: STRANGER})

    assert warned(caplog) == []


GARBAGE = ["\x00", "a b", "[::", "x" * 5000, "%s", "é", "'", ",,,", "http://x", "\u2028", "::ffff:", "1" * 400]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda text: repr(text)[:20])
@pytest.mark.parametrize("peer", [PROXY, STRANGER, "garbage"])
def test_garbage_is_never_a_crash(peer: str, garbage: str, db: None) -> None:
    for path in ("/echo", "/api/v1/influencers", "/admin/login/", "/docs", "/nothing"):
        response = Client(REMOTE_ADDR=peer).get(path, headers=dict.fromkeys(FORGED, garbage))
        assert response.status_code in (200, 400, 404), path
