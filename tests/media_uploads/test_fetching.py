"""threats.md A4: what a stranger's address, name server, network and web server may try on the fetcher, all in vain."""

import ast
import gzip
import socket
import ssl
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured

from media_uploads import fetching
from media_uploads.fetching import CannotFetch, Internet, fetch_external, is_public
from tests.hostile_server import (
    NAME,
    PUBLIC,
    Authority,
    Call,
    Does,
    FakeInternet,
    Stranger,
    hangs,
    head,
    ok,
    repeats,
    running,
    sends,
    trickles,
)

pytestmark = pytest.mark.own_database

URL = f"https://{NAME}/a.png"
MOST = 100_000
PICTURE = bytes(range(256)) * 20
CHUNKED = "Transfer-Encoding: chunked"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> ssl.SSLContext:
    return authority.issue(NAME, "*.cdn.test")


@pytest.fixture
def stranger(certificate: ssl.SSLContext) -> Iterator[Stranger]:
    with running(Stranger(certificate)) as stranger:
        yield stranger


@pytest.fixture
def internet(stranger: Stranger, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeInternet]:
    """The world is replaced: its names, its ways, and by OpenSSL's own variable the authorities that are trusted."""
    fake = FakeInternet(stranger)
    monkeypatch.setattr(fetching, "internet", fake)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.path))
    fetching.tls.cache_clear()
    yield fake
    fetching.tls.cache_clear()


def fetch(url: str = URL, *, max_bytes: int = MOST, timeout: float = 5.0) -> bytes:
    return fetch_external(url, max_bytes=max_bytes, timeout=timeout)


def refused(url: str = URL, *, max_bytes: int = MOST, timeout: float = 5.0) -> str:
    """Why. Never later than the timeout and a little."""
    started = time.monotonic()
    with pytest.raises(CannotFetch) as failure:
        fetch(url, max_bytes=max_bytes, timeout=timeout)
    took = time.monotonic() - started
    assert took < max(timeout, 0) + 0.4, f"it took {took:.2f} s"
    assert str(failure.value) == failure.value.reason
    return failure.value.reason


def is_refused_for(reason: str, does: Does, stranger: Stranger, **limits: Any) -> None:
    stranger.does = does
    assert reason in refused(**limits)
    assert stranger.connections == 1


# What a good address gives


def test_it_fetches_a_picture(stranger: Stranger, internet: FakeInternet) -> None:
    stranger.does = sends(ok(PICTURE))

    assert fetch(f"https://{NAME}/a/b.png?size=2&sig=x%2Fy") == PICTURE
    assert internet.asked == [NAME]
    assert internet.dialled == [(PUBLIC, 443)]
    assert stranger.asked_for == [NAME], "the name in the TLS handshake"
    assert stranger.requests == [
        b"GET /a/b.png?size=2&sig=x%2Fy HTTP/1.1\r\n"
        b"Host: pictures.test\r\n"
        b"User-Agent: YralAIChat\r\n"
        b"Accept: */*\r\n"
        b"Accept-Encoding: identity\r\n"
        b"Connection: close\r\n\r\n"
    ]


@pytest.mark.parametrize(
    ("url", "target"),
    [
        (f"https://{NAME}", "/"),
        (f"https://{NAME}?a=b", "/?a=b"),
        (f"HTTPS://{NAME.upper()}:443/A", "/A"),
        (f"https://{NAME}/a#https://127.0.0.1/", "/a"),
        (f"https://{NAME}//127.0.0.1/@b:80/../c;d=(e)", "//127.0.0.1/@b:80/../c;d=(e)"),
        (f"https://{NAME}/?u=https://[::1]/|x", "/?u=https://[::1]/|x"),
        ("https://a-b.c_d.cdn.test/", None),
        ("https://xn--bcher-kva.cdn.test/%D1%84.png", "/%D1%84.png"),
    ],
)
def test_good_addresses(url: str, target: str | None, stranger: Stranger, internet: FakeInternet) -> None:
    internet.knows("xn--bcher-kva.cdn.test", [PUBLIC])
    if target is None:
        assert "certificate" in refused_after_the_name(url, internet)
        return
    assert fetch(url) == b"a picture"
    assert stranger.requests[0].startswith(f"GET {target} HTTP/1.1\r\nHost: {internet.asked[0]}\r\n".encode())


def refused_after_the_name(url: str, internet: FakeInternet) -> str:
    """The address is a good one, though its certificate (a wildcard covers one label) isn't."""
    internet.knows(url.removeprefix("https://").removesuffix("/"), [PUBLIC])
    return refused(url)


def test_names_and_addresses_of_ipv6(stranger: Stranger, internet: FakeInternet) -> None:
    internet.knows(NAME, ["2606:2800:21f:cb07:6820:80da:af6b:8b2c", PUBLIC])

    assert fetch() == b"a picture"
    assert internet.dialled == [("2606:2800:21f:cb07:6820:80da:af6b:8b2c", 443)]


@pytest.mark.parametrize(
    "does",
    [
        sends(ok(PICTURE)),
        sends(ok(PICTURE, "Content-Encoding: identity")),
        sends(head(CHUNKED), b"100\r\n", PICTURE[:256], b"\r\n1300\r\n", PICTURE[256:], b"\r\n0\r\n\r\n"),
        sends(head(), PICTURE),
        sends(b"HTTP/1.0 200 OK\r\n\r\n", PICTURE),
        sends(head(status="103 Early Hints"), head(status="100 Continue"), ok(PICTURE)),
        sends(ok(PICTURE) + b"and more that nobody asked for"),
        sends(ok(PICTURE, "Set-Cookie: a=b", "Location: https://127.0.0.1/", "Refresh: 0")),
    ],
    ids=["length", "identity", "chunked", "to the end", "HTTP/1.0", "early hints", "too much", "useless headers"],
)
def test_honest_answers_of_every_form(does: Does, stranger: Stranger, internet: FakeInternet) -> None:
    stranger.does = does

    assert fetch() == PICTURE
    assert stranger.connections == 1


def test_an_answer_that_is_complete_needs_no_farewell(stranger: Stranger, internet: FakeInternet) -> None:
    """Many servers end a connection without TLS's closing alert."""

    def breaks_off(call: Call) -> None:
        call.send(ok(PICTURE))
        raise ConnectionAbortedError

    stranger.does = breaks_off

    assert fetch() == PICTURE


def test_nothing_is_remembered_between_two_fetches(stranger: Stranger, internet: FakeInternet) -> None:
    stranger.does = sends(ok(PICTURE, "Set-Cookie: track=me; Path=/"))

    assert fetch() == fetch() == PICTURE
    assert stranger.requests[0] == stranger.requests[1]
    assert stranger.connections == len(internet.asked) == 2


def test_proxies_and_passwords_of_the_environment_are_not_used(
    stranger: Stranger, internet: FakeInternet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text(f"machine {NAME} login us password secret")
    monkeypatch.setenv("HOME", str(tmp_path))
    with running(Stranger(None)) as proxy:
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert fetch() == b"a picture"
        assert proxy.connections == 0
    assert b"Authorization" not in stranger.requests[0]


# Addresses


def words(text: str) -> list[str]:
    return text.split()


# form → what stands at its {}
BAD: dict[str, list[str]] = {
    # another scheme, or none
    "{}pictures.test/a.png": words(r"""
        http:// ftp:// file:// gopher:// ws:// // / https: https:/ https:/// https://// https:https:// https://https://
        view-source:https:// url:https:// https:\\ https:/\ https:\/ https:\ https//: https;// https::// https%3a//
        hxxps:// h%74tps:// httpſ:// https:／／ https：// <https:// (https:// 'https:// https://\ https://%20 https://;
    """)
    + ["", "https:// ", "https:// /", "https:/\t/", "https\n://", "ht\ttps://", "h\x00ttps://", "https\u200b://"]
    + [" https://", "\nhttps://", "\x00https://", "\ufeffhttps://", "\u200bhttps://", "\xa0https://"],
    "{}": words("""
        file:///etc/passwd file://pictures.test/a data:image/png;base64,AAAA javascript:alert(1) https https: https://
        https:/// https://? https://?a https://# https://#a https:///etc/passwd https://:443/ https://@/ //[::1]/ [::1]
        127.0.0.1 /a.png
    """)
    + ["", " ", "\x00", "\n"],
    # no host, or one that isn't a name with a dot
    "https://{}/": words("""
        . .. ... - _ * % ~ localhost metadata intranet test a .a a. localhost. pictures.test. .pictures.test
        pictures.test.. pictures..test pictures.t pictures.-test pictures.test- -a.pictures.test a-.pictures.test
        pictures.te_st pic%74ures.test pictures%2etest %00 *.pictures.test pictures,test pictures.test,a.test
    """)
    + [f"{'a' * 64}.test", f"{'a.' * 126}test", f"pictures.{'t' * 64}", f"{'a.' * 900}test", "a-" * 900, "[" * 1900],
    # IPv4 in every notation
    "https://{}/a": words("""
        127.0.0.1 93.184.215.14 169.254.169.254 0.0.0.0 127.0.0.1. 127.1 127.0.1 0 1 127.0.0.1.1 2130706433 1572395042
        0177.0.0.1 0177.1 017700000001 127.0.0.01 0000127.0.0.1 0x7f000001 0X7F000001 0x7f.1 0X7f.1 0x7f.0.0.1
        127.0.0.0x1 127.0.0.0x a.0x7f000001 pictures.1 pictures.test.4 pictures.0 256.256.256.256 99999999999 1e3 a.1e3
        -1 +127.0.0.1
    """),
    # IPv6
    "https://{}/b": words("""
        [::1] [::] [::ffff:a9fe:a9fe] [::ffff:169.254.169.254] [::127.0.0.1] [fe80::1%25eth0] [fe80::1%eth0]
        [64:ff9b::a9fe:a9fe] [2002:7f00:1::] [fd00:ec2::254] [2606:4700::1111] [v1.a] [pictures.test] [127.0.0.1] []
        [::1 ::1] ::1 [[::1]] [::1].test pictures.test[::1] 2606:4700::1111 [::1]:443 [::1%2f.pictures.test]
    """)
    + ["[ ]", "[::1 ]"],
    # a user
    "https://{}/c": words("""
        @pictures.test u@pictures.test u:p@pictures.test :@pictures.test a@b@pictures.test 127.0.0.1@pictures.test
        %40@pictures.test pictures.test@127.0.0.1 pictures.test:443@127.0.0.1 pictures.test%40127.0.0.1
    """),
    # a port
    "https://{}/d": words("""
        pictures.test: pictures.test:80 pictures.test:22 pictures.test:8443 pictures.test:0 pictures.test:0443
        pictures.test:443. pictures.test:+443 pictures.test:-443 pictures.test:65979 pictures.test:443:443
        pictures.test:0x1bb pictures.test:a pictures.test:443a pictures.test:%34%34%33 pictures.test:４４３
        pictures.test：443
    """),
    # what looks like ASCII, or becomes it when it's normalised
    "https://{}/e": words("""
        pictureſ.test pictures.teſt Kctures.cdn.test pictures。test pictures．test pictures｡test ⓛocal.cdn.test
        ①②⑦.⓪.⓪.① １２７.0.0.1 ١٢٧.0.0.1 127․0․0․1 bücher.cdn.test фото.рф straße.cdn.test xn--фото.test a℀.cdn.test
    """)
    + [
        "pictures\u200b.test",
        "pictures\u00ad.test",
        "pictures\u2060.test",
        "e\u0301.test",
        "a\ud800.test",
        "\u0131.test",
    ],
    # between host and path
    "https://pictures.test{}a": words(
        r"""\ ; & = %2f %3f %23 %5c ! ' " $ ( ) , ~ + | * ^ ` { } < > [ ] @ %00 ？ ／ ＃"""
    )
    + ["\t", "\n", " ", "\x00", "\x7f", "\xa0"],
    "https://pictures.test{}@127.0.0.1/": words(r"\ /\ #\ ?\ \\ %5c %2f %00 ; &")
    + ["\t", "\n", " ", "\x00", "# ", "/ "],
    "https://127.0.0.1{}pictures.test/": words(r"\ \. %2f. %23. #. ?. /. %00. ;. &. #@ ?@ /@ \@ :443#@ :@")
    + ["\t.", "\0."],
    # in path, query and fragment
    "https://pictures.test/a{}b": words(r"""\ < > " ` { } ^ | [ ] ф ｆ""")
    + [" ", "\t", "\n", "\r", "\r\n", "\x00", "\x1f", "\x7f", "\x85", "\xa0", "\u2028", "\u3000", "\u200b", "\ud800"]
    + [" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", "%0d%0a\r\nX: y"],
    "https://pictures.test/?a{}b": words(r"""\ < > " ` { } ^ ф""")
    + [" ", "\t", "\r\nX: y", "\n", "\x00", "\x7f", "\u2028", "\ud800"],
    "https://pictures.test/#a{}b": ["ф", " ", "\n", "\x00", "\u2028"],
    "https://pictures.test/{}": [" ", "\n", "\r\n", "\x00", "\u2028", "a" * 2048],
}
BAD_URLS = [form.replace("{}", word) for form, found in BAD.items() for word in found]
BAD_URLS += ["https://" + "a" * 100_000, "https://" + "a-" * 50_000, "https://" + "a." * 50_000, "https://" * 20_000]


def verdict(url: str) -> str | bytes:
    try:
        return fetch(url, timeout=1)
    except CannotFetch as exc:
        return exc.reason


def test_bad_addresses_are_refused_at_once_without_a_question_or_a_connection(
    stranger: Stranger, internet: FakeInternet
) -> None:
    started = time.monotonic()

    assert [url for url in BAD_URLS if verdict(url) != "it is no https address of a public host"] == []
    assert (internet.asked, internet.dialled) == ([], [])
    assert stranger.connections == 0
    assert time.monotonic() - started < 1
    assert len(BAD_URLS) > 250


# Names

NOT_PUBLIC = words("""
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
    169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.192 192.0.2.1 192.31.196.1
    192.52.193.1 192.88.99.1 192.168.0.1 192.168.255.255 192.175.48.1 198.18.0.1 198.19.255.255 198.51.100.1
    203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255 168.63.129.16
    :: ::1 ::2 ::7f00:1 ::ffff:127.0.0.1 ::ffff:a9fe:a9fe ::ffff:93.184.215.14 ::ffff:0:127.0.0.1 ::93.184.215.14
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b::168.63.129.16 64:ff9b:1::1 64:ff9b:1::93.184.215.14
    100::1 100:0:0:1::1 1::1 2001::1 2001:0:5ef5:79fb:0:0:a247:28f1 2001:1::1 2001:2::1 2001:3::1 2001:4:112::1
    2001:10::1 2001:20::1 2001:30::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe::1 2002:5db8:d70e::1 2620:4f:8000::1
    3fff::1 4000::1 5f00::1 8000::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 fe80::1%eth0 fe80::1%1 febf::1 fec0::1 ff02::1
    ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
""")
PUBLIC_ONES = words("""
    1.1.1.1 8.8.8.8 93.184.215.14 100.63.255.255 100.128.0.1 126.255.255.255 128.0.0.1 169.253.255.255 172.15.255.255
    172.32.0.1 192.0.1.1 192.167.255.255 192.169.0.1 198.17.255.255 198.20.0.1 223.255.255.255 11.0.0.1 9.255.255.255
    2606:4700:4700::1111 2001:4860:4860::8888 2a00:1450:4001:81b::200e 2001:200::1 2003::1 3ffe::1 64:ff9b::8.8.8.8
""")


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_that_leads_inside_is_refused_without_a_connection(
    address: str, stranger: Stranger, internet: FakeInternet
) -> None:
    for answer in ([address], [PUBLIC, address], [address, PUBLIC], ["2606:4700:4700::1111", PUBLIC, address]):
        internet.knows(NAME, answer)
        assert "isn't public" in refused()
    assert internet.dialled == []
    assert stranger.connections == 0


@pytest.mark.parametrize("address", PUBLIC_ONES)
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["", " 8.8.8.8", *words("localhost 127.1 2130706433 0x7f.1 010.0.0.1 8.8.8.8:443 8.8.8.8/32 [::1] ８.8.8.8")],
)
def test_what_is_no_address_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_a_rebinding_name_is_asked_for_once_and_the_checked_address_is_used(
    stranger: Stranger, internet: FakeInternet
) -> None:
    internet.knows(NAME, [PUBLIC], ["127.0.0.1"])

    assert fetch() == b"a picture"
    assert internet.asked == [NAME]
    assert internet.dialled == [(PUBLIC, 443)]

    assert "isn't public" in refused(), "the name leads inside by now"
    assert internet.dialled == [(PUBLIC, 443)]
    assert stranger.connections == 1


@pytest.mark.parametrize("elsewhere", ["127.0.0.1", "169.254.169.254", "::1", "8.8.8.8"])
def test_a_connection_that_leads_elsewhere_is_closed_before_the_first_byte(
    elsewhere: str, stranger: Stranger, internet: FakeInternet
) -> None:
    """The peer that the socket itself names counts."""
    internet.leads_to = elsewhere

    assert "another address" in refused()
    assert stranger.connections == 1
    stranger.stop()
    assert (stranger.asked_for, stranger.requests) == ([], [])


def test_our_own_public_address_is_refused(stranger: Stranger, internet: FakeInternet) -> None:
    internet.our_address = PUBLIC

    assert "our own" in refused()
    stranger.stop()
    assert (stranger.asked_for, stranger.requests) == ([], [])


def test_the_next_address_is_tried_if_the_first_is_closed(stranger: Stranger, internet: FakeInternet) -> None:
    internet.knows(NAME, ["2606:4700:4700::1111", "1.1.1.1", PUBLIC])
    internet.closed = {"2606:4700:4700::1111", "1.1.1.1"}

    assert fetch() == b"a picture"
    assert [address for address, _ in internet.dialled] == ["2606:4700:4700::1111", "1.1.1.1", PUBLIC]


def test_an_address_that_is_silent_leaves_time_for_the_next(stranger: Stranger, internet: FakeInternet) -> None:
    internet.knows(NAME, ["1.1.1.1", PUBLIC])
    internet.silent = {"1.1.1.1"}

    assert fetch(timeout=1) == b"a picture"


def test_many_silent_addresses_are_given_up_in_time(stranger: Stranger, internet: FakeInternet) -> None:
    internet.knows(NAME, [f"1.1.1.{number}" for number in range(200)])
    internet.silent = {f"1.1.1.{number}" for number in range(200)}

    assert "too long" in refused(timeout=0.5)
    assert len(internet.dialled) <= 4


def test_closed_addresses_are_a_failure(internet: FakeInternet) -> None:
    internet.closed = {PUBLIC}

    assert "ConnectionRefusedError" in refused()


@pytest.mark.parametrize("name", ["unknown.test", "without-addresses.test"])
def test_a_name_without_an_address_is_a_failure(name: str, internet: FakeInternet) -> None:
    internet.knows("without-addresses.test", [])

    assert "its name" in refused(f"https://{name}/")


def test_a_name_server_that_never_answers_is_given_up_in_time(internet: FakeInternet) -> None:
    answered = threading.Event()
    internet.knows("slow.test", lambda: [PUBLIC] if answered.wait(5) else [])

    assert "too long" in refused("https://slow.test/", timeout=0.3)
    answered.set()


def test_many_lookups_that_hang_hold_a_few_threads_and_delay_the_others_no_longer_than_their_time(
    stranger: Stranger, internet: FakeInternet
) -> None:
    answered = threading.Event()
    internet.knows("slow.test", lambda: [PUBLIC] if answered.wait(5) else [])
    attacks = [
        threading.Thread(target=refused, args=["https://slow.test/"], kwargs={"timeout": 0.5}) for _ in range(40)
    ]
    for attack in attacks:
        attack.start()

    assert "too long" in refused(timeout=0.5)
    assert sum(thread.name == "lookup" for thread in threading.enumerate()) <= 16

    for attack in attacks:
        attack.join()
    answered.set()
    assert fetch() == b"a picture", "and then it works again"


# TLS


@pytest.fixture
def other_certificate(stranger: Stranger) -> Callable[[ssl.SSLContext], None]:
    def use(context: ssl.SSLContext) -> None:
        context.sni_callback = lambda _socket, name, _context: stranger.asked_for.append(name)
        stranger.tls = context

    return use


def assert_nothing_is_said(stranger: Stranger) -> None:
    assert stranger.connections == 1
    stranger.stop()
    assert stranger.requests == []


@pytest.mark.parametrize(
    "names", [["other.test"], [PUBLIC], ["test"], ["*.test.pictures.test"], ["*.pictures.test"]], ids=str
)
def test_a_certificate_for_another_name_is_refused(
    names: list[str], stranger: Stranger, internet: FakeInternet, authority: Authority, other_certificate: Any
) -> None:
    other_certificate(authority.issue(*names))

    assert "certificate" in refused()
    assert_nothing_is_said(stranger)


def test_a_certificate_that_has_ended_is_refused(
    stranger: Stranger, internet: FakeInternet, authority: Authority, other_certificate: Any
) -> None:
    other_certificate(authority.issue(NAME, days=-1))

    assert "certificate has expired" in refused()
    assert_nothing_is_said(stranger)


def test_a_certificate_of_an_unknown_authority_is_refused(
    stranger: Stranger, internet: FakeInternet, tmp_path: Path, other_certificate: Any
) -> None:
    other_certificate(Authority(tmp_path, "An authority of one's own").issue(NAME))

    assert "certificate" in refused()
    assert_nothing_is_said(stranger)


def test_a_certificate_that_only_claims_our_authority_is_refused(
    stranger: Stranger, internet: FakeInternet, tmp_path: Path, other_certificate: Any
) -> None:
    other_certificate(Authority(tmp_path).issue(NAME))

    assert "certificate" in refused()
    assert_nothing_is_said(stranger)


def test_without_tls_nothing_is_said(stranger: Stranger, internet: FakeInternet) -> None:
    stranger.tls = None
    stranger.greets = lambda _, connection: connection.sendall(ok(PICTURE))

    assert refused() == "the connection failed (SSLError)"
    stranger.stop()
    assert not any(b"GET" in request for request in stranger.requests)


def test_an_old_tls_is_refused(
    stranger: Stranger, internet: FakeInternet, authority: Authority, other_certificate: Any
) -> None:
    context = authority.issue(NAME)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    other_certificate(context)

    assert "connection failed" in refused()
    assert_nothing_is_said(stranger)


def test_the_rules_of_tls_in_production() -> None:
    context = fetching.tls()

    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


# Redirects and other answers that aren't one


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 305, 307, 308, 399])
@pytest.mark.parametrize(
    "location",
    words("https://127.0.0.1/ http://pictures.test/ /b.png https://pictures.test/b.png file:///etc/passwd //[::1]/ :"),
)
def test_no_redirect_is_followed(status: int, location: str, stranger: Stranger, internet: FakeInternet) -> None:
    stranger.does = sends(head(f"Location: {location}", "Content-Length: 9", status=f"{status} Moved") + b"a picture")

    assert refused() == "it redirects"
    assert stranger.connections == 1
    assert internet.asked == [NAME]


@pytest.mark.parametrize(
    "status", [201, 202, 203, 204, 205, 206, 226, 400, 401, 403, 404, 407, 421, 429, 500, 503, 599]
)
def test_only_a_200_counts(status: int, stranger: Stranger, internet: FakeInternet) -> None:
    is_refused_for(f"answers {status}", sends(head("Content-Length: 9", status=f"{status} X") + b"a picture"), stranger)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"a picture",
        b"\x00" * 5000,
        b"HTTP/1.1",
        b"HTTP/1.1 200",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 99999 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"220 ready\r\n",
        head("Content-Length : 9") + b"a picture",
        head(" Content-Length: 9") + b"a picture",
        head("no colon") + b"a picture",
        head("Na me: x") + b"a picture",
        head("X: \x00") + b"a picture",
        head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: gzip") + b"a picture",
        head(CHUNKED, CHUNKED) + b"0\r\n\r\n",
        head(CHUNKED) + b"zz\r\n",
        head(CHUNKED) + b"-5\r\n",
        head(CHUNKED) + b"5\r\nhello\r\n",
        head(CHUNKED) + b"5\r\nhelloXX0\r\n\r\n",
        head(CHUNKED) + b"f" * 30 + b"\r\n",
        head(status="101 Switching Protocols"),
    ],
    ids=lambda answer: repr(answer)[:40],
)
def test_what_is_not_http_is_refused(answer: bytes, stranger: Stranger, internet: FakeInternet) -> None:
    is_refused_for("", sends(answer), stranger)


# Sizes


def test_a_body_of_just_the_limit_is_taken_and_one_more_byte_is_not(stranger: Stranger, internet: FakeInternet) -> None:
    forms: list[Callable[[bytes], bytes]] = [
        ok,
        lambda body: head() + body,
        lambda body: head(CHUNKED) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    ]
    for form in forms:
        stranger.does = sends(form(b"x" * 5000))
        assert fetch(max_bytes=5000) == b"x" * 5000
        assert refused(max_bytes=4999) == "it is too large"


def test_a_declared_size_is_refused_before_the_body(stranger: Stranger, internet: FakeInternet) -> None:
    is_refused_for("too large", hangs(head(f"Content-Length: {MOST + 1}")), stranger)


@pytest.mark.parametrize(
    "after",
    [
        head(),
        head("Content-Length: 9", CHUNKED) + b"fffffffff\r\n",
        head(CHUNKED) + b"fffffffff\r\n",
    ],
    ids=["to the end", "two lengths", "one huge chunk"],
)
def test_an_endless_body_is_left_at_the_limit(after: bytes, stranger: Stranger, internet: FakeInternet) -> None:
    tracemalloc.start()
    try:
        is_refused_for("too large", repeats(b"x" * 60_000, after=after), stranger, max_bytes=5_000_000)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert stranger.sent < 15_000_000


@pytest.mark.parametrize(
    "lengths",
    ["100", "-9", "+9", "0x9", "nine", "", "9.0", "9, 8", "9\r\nContent-Length: 100000000", "9\r\nContent-Length: 8"]
    + ["9" * 20, "9" * 5000, "0" * 5000 + "9"],
    ids=lambda lengths: repr(lengths)[:40],
)
def test_a_length_that_lies_is_refused(lengths: str, stranger: Stranger, internet: FakeInternet) -> None:
    is_refused_for("", sends(head(f"Content-Length: {lengths}") + b"a picture"), stranger)


def test_a_body_that_is_cut_is_refused(stranger: Stranger, internet: FakeInternet) -> None:
    """Without a length, its end is that of TLS. A connection that merely breaks off hides what is missing."""

    def breaks_off(call: Call) -> None:
        call.send(head() + b"half a pic")
        raise ConnectionAbortedError

    is_refused_for("connection failed", breaks_off, stranger)


@pytest.mark.parametrize(
    "encoding",
    ["gzip", "GZIP", "deflate", "br", "zstd", "x-gzip", "aes128gcm", "", "identity, gzip", "gzip, identity"]
    + ["gzip\r\nContent-Encoding: identity", "identity\r\nContent-Encoding: gzip"],
)
def test_a_compressed_answer_is_refused_unread(encoding: str, stranger: Stranger, internet: FakeInternet) -> None:
    bomb = gzip.compress(b"\x00" * 20_000_000)
    stranger.does = sends(ok(bomb, f"Content-Encoding: {encoding}"))

    assert refused() == "it is compressed"


def test_a_bomb_that_nobody_calls_one_stays_small(stranger: Stranger, internet: FakeInternet) -> None:
    bomb = gzip.compress(b"\x00" * 20_000_000)
    stranger.does = sends(ok(bomb, "Content-Type: application/gzip"))

    assert fetch() == bomb


@pytest.mark.parametrize(
    "does",
    [
        repeats(b"x" * 1000, after=b"HTTP/1.1 200 OK\r\nX: "),
        repeats(b"X: y\r\n" * 100, after=b"HTTP/1.1 200 OK\r\n"),
        repeats(b"x" * 1000, after=b"HTTP/1.1 200 "),
        repeats(b"\r\n" * 500),
        repeats(b"x" * 1000, after=head(CHUNKED) + b"5;"),
        repeats(b"X: y\r\n" * 100, after=head(CHUNKED) + b"0\r\n"),
        repeats(head(status="100 Continue")),
        repeats(head("Link: <a>", status="103 Early Hints") * 20),
    ],
    ids=["a header", "headers", "a reason", "empty lines", "a chunk's extension", "trailers", "1xx", "1xx in bulk"],
)
def test_a_head_without_an_end_is_refused(does: Does, stranger: Stranger, internet: FakeInternet) -> None:
    stranger.does = does

    assert refused(timeout=3) in ("its answer is not proper HTTP", "it sends too many small pieces")
    assert stranger.connections == 1


@pytest.mark.parametrize("piece", [b"1\r\nx\r\n", b"1\r\nx\r\n" * 2000], ids=["records", "chunks"])
def test_an_answer_in_the_smallest_pieces_does_not_keep_us_busy(
    piece: bytes, stranger: Stranger, internet: FakeInternet
) -> None:
    started = time.thread_time()
    is_refused_for("small pieces", repeats(piece, after=head(CHUNKED)), stranger, max_bytes=10**7)
    assert time.thread_time() - started < 1


def test_a_body_in_reasonable_pieces_is_taken(stranger: Stranger, internet: FakeInternet) -> None:
    chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
    stranger.does = sends(head(CHUNKED), *[chunk] * 4000, b"0\r\n\r\n")

    assert len(fetch(max_bytes=10**7)) == 4000 * 1024


# Time


def silent(stranger: Stranger, connection: Any) -> None:
    stranger.stopping.wait(30)


def half_a_handshake(stranger: Stranger, connection: Any) -> None:
    connection.sendall(b"\x16\x03\x03\x00\x7a")
    stranger.stopping.wait(30)


def slow_handshake(stranger: Stranger, connection: Any) -> None:
    """One byte of a ServerHello now and then."""
    for byte in b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(100):
        connection.sendall(bytes([byte]))
        if stranger.stopping.wait(0.05):
            return


@pytest.mark.parametrize("greets", [silent, half_a_handshake, slow_handshake])
def test_a_tls_handshake_that_does_not_end_is_given_up_in_time(
    greets: Any, stranger: Stranger, internet: FakeInternet
) -> None:
    stranger.greets = greets

    assert "too long" in refused(timeout=0.5)
    assert_nothing_is_said(stranger)


def test_a_tls_handshake_has_only_the_time_that_the_connection_left(stranger: Stranger, internet: FakeInternet) -> None:
    internet.slow = 0.8
    stranger.greets = silent

    assert "too long" in refused(timeout=1)


def test_a_connection_that_is_reset_before_tls_is_a_failure(stranger: Stranger, internet: FakeInternet) -> None:
    def resets(_: Stranger, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    internet.slow = 0.1
    stranger.greets = resets

    assert "connection failed" in refused()


BODY = b"x" * 5000


@pytest.mark.parametrize(
    "does",
    [
        hangs(),
        hangs(b"HTTP/1.1 200 OK\r\nConte"),
        hangs(head("Content-Length: 5000")),
        hangs(head("Content-Length: 5000") + BODY[:-1]),
        hangs(head() + BODY),
        hangs(head(CHUNKED) + b"1388\r\n" + BODY + b"\r\n0\r\n"),
        trickles(ok(BODY), 0.02),
        trickles(BODY, 0.02, after=head("Content-Length: 5000")),
        trickles(BODY, 0.02, after=head()),
        trickles(b"1\r\nx\r\n" * 500, 0.02, after=head(CHUNKED)),
        sends(*[head(status="102 Processing")] * 100, pause=0.05),
        sends(head("Content-Length: 100000"), *[b"x" * 1000] * 99, pause=0.1),
    ],
    ids=[
        "silence", "half a head", "no body", "a byte missing", "no end", "no trailer's end", "a trickled head",
        "a trickled body", "without a length", "trickled chunks", "processing", "a slow body",
    ],
)  # fmt: skip
def test_an_answer_that_takes_its_time_is_given_up_in_time(
    does: Does, stranger: Stranger, internet: FakeInternet
) -> None:
    is_refused_for("too long", does, stranger, timeout=0.5)


def test_the_time_counts_from_the_name_to_the_last_byte(stranger: Stranger, internet: FakeInternet) -> None:
    """Each phase alone would be in time."""

    def slow_lookup() -> list[str]:
        time.sleep(0.3)
        return ["1.1.1.1", PUBLIC]

    internet.knows(NAME, slow_lookup)
    internet.silent = {"1.1.1.1"}
    stranger.greets = lambda stranger, _: stranger.stopping.wait(0.3)
    stranger.does = sends(*[ok(PICTURE)[n : n + 2600] for n in range(0, 5200, 2600)], pause=0.3)

    assert "too long" in refused(timeout=1)
    assert fetch(timeout=4) == PICTURE


@pytest.mark.parametrize("timeout", [0, -1])
def test_with_no_time_nothing_is_done(timeout: float, stranger: Stranger, internet: FakeInternet) -> None:
    assert "too long" in refused(timeout=timeout)
    assert internet.asked == []
    assert stranger.connections == 0


def test_a_slow_answer_in_time_is_an_answer(stranger: Stranger, internet: FakeInternet) -> None:
    stranger.does = sends(*[ok(PICTURE)[n : n + 1000] for n in range(0, 6000, 1000)], pause=0.1)

    assert fetch(timeout=3) == PICTURE


# What is left behind


def test_a_reason_tells_nothing_of_the_address_s_secrets(stranger: Stranger, internet: FakeInternet) -> None:
    for does in (hangs(), sends(b"nonsense"), sends(head(status="404 secret-words")), sends(ok(BODY * 30))):
        stranger.does = does
        reason = refused(f"https://{NAME}/a?token=secret-token", timeout=0.3)
        assert "secret" not in reason
        assert PUBLIC not in reason
    assert "secret" not in refused("https://u:secret@pictures.test/")


def test_every_connection_is_closed(
    stranger: Stranger, internet: FakeInternet, recwarn: pytest.WarningsRecorder
) -> None:
    """An unclosed socket warns when it's collected, and warnings are errors here."""
    for does in (sends(ok(BODY)), sends(b"nonsense"), hangs(), sends(head(status="302 Found"))):
        stranger.does = does
        with pytest.raises(CannotFetch):
            fetch(timeout=0.2, max_bytes=10)
    stranger.greets = silent
    refused(timeout=0.2)
    internet.leads_to = "127.0.0.1"
    refused()
    assert not list(recwarn)


# The real internet, and nobody can put another in its place


def test_the_real_internet_connects_to_addresses(stranger: Stranger) -> None:
    with Internet().connect("127.0.0.1", stranger.port, 1) as connection:
        assert connection.getpeername() == ("127.0.0.1", stranger.port)
    with pytest.raises(OSError, match="refused"):
        Internet().connect("127.0.0.1", 9, 1)


@pytest.mark.parametrize("name", ["localhost.localdomain", "no-such-name.invalid", "a.localhost"])
def test_names_of_this_machine_are_refused_by_the_real_internet(name: str) -> None:
    assert type(fetching.internet) is Internet
    assert "its name" in refused(f"https://{name}/")


def test_no_code_puts_another_internet_in_place() -> None:
    """Only a test's monkeypatch can: there is one assignment, no subclass, no setting and no argument."""
    assigned, subclassed = [], []
    for app in ("yral_chat", "personas", "media_uploads", "conversations"):
        for path in (configured.BASE_DIR / app).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names = [ast.unparse(target).rpartition(".")[2] for target in targets if target]
                assigned += [f"{path.name}: {ast.unparse(node)}" for name in names if name == "internet"]
                bases = node.bases if isinstance(node, ast.ClassDef) else []
                subclassed += [path.name for base in bases if ast.unparse(base).rpartition(".")[2] == "Internet"]
    assert assigned == ["fetching.py: internet = Internet()"]
    assert subclassed == []
