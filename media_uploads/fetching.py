"""Media from elsewhere: one GET of a stranger's https address, believing nothing that a stranger controls (SSRF).

Safety doesn't hang on how an address is spelled, but on where the connection really goes:

1. One pattern says what an address may look like. No IP in any notation, no user, no port, no second way to read it.
2. The name is looked up once, by us, and every address found must be public.
3. The connection is made to such an address, not to the name, and its peer is looked at again: what the name means a
   moment later (DNS rebinding) is nobody's concern. The certificate must still be the name's.
4. One answer counts: a 200, not encoded, no larger than allowed, complete before a deadline that holds for all of it.
   A redirect is a failure. Nothing of the environment (proxies, .netrc) and no cookie takes part.
"""

import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from contextlib import closing
from functools import cache
from typing import Any

import h11

PORT = 443
LONGEST_URL = 2048
LONGEST_HEAD = 32 * 1024
ADDRESSES_TRIED = 4
PIECE = 64 * 1024
SMALLEST_PIECES = 512  # bytes, on average; an answer in more pieces is made to keep us busy
FEW_PIECES = 1000

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_LAST_LABEL = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])"  # begins with a letter: a number here makes the whole an IPv4 address
_IN_PATH = r"!$%&'()*+,./0-9:;=@A-Z_a-z~-"
_IN_QUERY = rf"?|\[\]{_IN_PATH}"
URL = re.compile(
    rf"(?i:https://(?P<host>(?:{_LABEL}\.)+{_LAST_LABEL}))(?::{PORT})?"
    rf"(?P<path>/[{_IN_PATH}]*)?(?P<query>\?[{_IN_QUERY}]*)?(?:#[{_IN_QUERY}]*)?",
    re.ASCII,  # else (?i:k) would also be the Kelvin sign
)
HEADERS = (
    ("User-Agent", "YralAIChat"),
    ("Accept", "*/*"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)

# Besides what `is_global` knows, which differs between releases of Python.
# https://www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry
_SPECIAL = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24
    203.0.113.0/24 224.0.0.0/4 240.0.0.0/4
    2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20
"""  # 2001::/23 holds Teredo, 2002::/16 is 6to4
_AZURE_HOST = "168.63.129.16"  # looks public, and gives out a virtual machine's secrets
NOT_PUBLIC = tuple(ipaddress.ip_network(network) for network in [*_SPECIAL.split(), _AZURE_HOST])
UNICAST = ipaddress.IPv6Network("2000::/3")  # all that is given out; what embeds IPv4 (::, ::ffff:) lies outside
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class CannotFetch(Exception):
    """`reason` is for the log. Told to a caller, it would let them map our network."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def fetch_external(url: str, *, max_bytes: int, timeout: float) -> bytes:
    """The body behind a public https address, which holds at most `max_bytes`, within `timeout` seconds in all.

    Blocks. Raises CannotFetch, whatever it is that went wrong. What the bytes are, nobody has looked at.
    """
    deadline = time.monotonic() + timeout
    host, target = parse(url)
    try:
        addresses = _public_addresses(host, deadline)
        with closing(_connect(addresses, host, deadline)) as connection:
            return _get(connection, host, target, max_bytes, deadline)
    except TimeoutError as exc:
        raise CannotFetch("it took too long") from exc
    except ssl.SSLCertVerificationError as exc:
        raise CannotFetch(f"its certificate is not valid ({exc.verify_message})") from exc
    except OSError as exc:
        raise CannotFetch(f"the connection failed ({type(exc).__name__})") from exc
    except h11.RemoteProtocolError as exc:
        raise CannotFetch("its answer is not proper HTTP") from exc


def parse(url: str) -> tuple[str, str]:
    """(host, request target). Only ASCII: an international name or path has to come as clients send it, encoded."""
    match = URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if not match or len(match["host"]) > 253:
        raise CannotFetch("it is no https address of a public host")
    return match["host"].lower(), (match["path"] or "/") + (match["query"] or "")


def is_public(address: str) -> bool:
    """May we connect to this IP address? Not if it's private, ours, reserved, or a wrapping of such a one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip in NAT64:
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)  # where it leads to
    if ip.version == 6 and ip not in UNICAST:
        return False
    return ip.is_global and not any(ip in network for network in NOT_PUBLIC)


class Internet:
    """Names to addresses, addresses to sockets. This much of the world, and none of the rules, is replaced in tests:
    no setting, variable or argument leads to another `internet`."""

    def addresses(self, host: str) -> list[str]:
        """Asks once. The dot at the end keeps the search domains and the hosts file out of it."""
        return [str(found[4][0]) for found in socket.getaddrinfo(f"{host}.", PORT, type=socket.SOCK_STREAM)]

    def connect(self, address: str, port: int, timeout: float) -> socket.socket:
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect((address, port))
        except BaseException:
            connection.close()
            raise
        return connection


internet = Internet()


@cache
def tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


# The connection

_lookups = threading.BoundedSemaphore(16)


def _look_up(host: str, deadline: float) -> list[str]:
    """In a thread of its own that may be left behind: the system's resolver knows no timeout. A name server that
    never answers holds one of 16 places until the resolver gives up (by default, some 10 to 30 s)."""
    if not _lookups.acquire(timeout=_left(deadline)):
        raise TimeoutError
    answer: queue.SimpleQueue[list[str] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(internet.addresses(host))
        except OSError as exc:
            answer.put(exc)
        finally:
            _lookups.release()

    try:
        threading.Thread(target=ask, name="lookup", daemon=True).start()
    except RuntimeError as exc:
        _lookups.release()
        raise CannotFetch("no thread is left to look its name up") from exc
    try:
        found = answer.get(timeout=_left(deadline))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, OSError):
        raise CannotFetch("its name can't be found") from found
    return found


def _public_addresses(host: str, deadline: float) -> list[str]:
    """One that isn't public spoils them all: an honest name has no such address."""
    found = list(dict.fromkeys(_look_up(host, deadline)))
    if not found or not all(is_public(address) for address in found):
        raise CannotFetch("its name leads to an address that isn't public")
    return found[:ADDRESSES_TRIED]


def _connect(addresses: list[str], host: str, deadline: float) -> ssl.SSLSocket:
    """To the first address that answers; each gets its share of the time."""
    address, *others = addresses
    try:
        connection = internet.connect(address, PORT, _left(deadline) / len(addresses))
    except OSError:
        if not others:
            raise
        return _connect(others, host, deadline)
    return _secured(connection, address, host, deadline)


def _secured(connection: socket.socket, address: str, host: str, deadline: float) -> ssl.SSLSocket:
    try:
        _check_peer(connection, address)
        connection.settimeout(_left(deadline))
        connection = tls().wrap_socket(
            connection, server_hostname=host, suppress_ragged_eofs=False, do_handshake_on_connect=False
        )
        connection.do_handshake()  # wrap_socket would silently leave it out if the peer is already gone
        return connection
    except BaseException:
        connection.close()
        raise


def _check_peer(connection: socket.socket, address: str) -> None:
    """Before the first byte: it's the address that was checked, and not our own machine under a public address."""
    peer, port = connection.getpeername()[:2]
    if port != PORT or ipaddress.ip_address(peer) != ipaddress.ip_address(address) or not is_public(peer):
        raise CannotFetch("the connection leads to another address than the one that was checked")
    if peer == connection.getsockname()[0]:
        raise CannotFetch("the address is our own")


# The answer


def _get(connection: ssl.SSLSocket, host: str, target: str, max_bytes: int, deadline: float) -> bytes:
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=LONGEST_HEAD)
    request = h11.Request(method="GET", target=target, headers=[("Host", host), *HEADERS])
    connection.settimeout(_left(deadline))
    connection.sendall(http.send(request) or b"")
    http.send(h11.EndOfMessage())
    body, pieces = io.BytesIO(), 0
    while not isinstance(event := _next_event(http, connection, deadline), h11.EndOfMessage):
        pieces += 1
        if isinstance(event, h11.Response):
            _check_head(event, max_bytes)
        elif isinstance(event, h11.Data):
            _check_size(body.tell() + len(event.data), max_bytes)
            body.write(event.data)
        if pieces > FEW_PIECES + body.tell() / SMALLEST_PIECES:
            raise CannotFetch("it sends too many small pieces")
    return body.getvalue()


def _next_event(http: h11.Connection, connection: ssl.SSLSocket, deadline: float) -> Any:
    while (event := http.next_event()) is h11.NEED_DATA:
        connection.settimeout(_left(deadline))
        http.receive_data(connection.recv(PIECE))
    return event


def _check_head(response: h11.Response, max_bytes: int) -> None:
    if 300 <= response.status_code < 400:
        raise CannotFetch("it redirects")
    if response.status_code != 200:
        raise CannotFetch(f"it answers {response.status_code}")
    for name, value in response.headers:
        if name == b"content-encoding" and value.lower() != b"identity":
            raise CannotFetch("it is compressed")
        if name == b"content-length":
            _check_size(int(value), max_bytes)


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise CannotFetch("it is too large")
