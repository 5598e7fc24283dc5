"""A stranger's web server, with its names and certificates, and an internet in which it has a public address.

`Stranger.does` is what it does with a connection after TLS and the request's head; ready-made behaviours are below.
What is replaced is the world (name server, routing, authorities), by `fetching.internet` and OpenSSL's SSL_CERT_FILE.
"""

import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from media_uploads.fetching import Internet

PUBLIC = "93.184.215.14"
NAME = "pictures.test"

Does = Callable[["Call"], None]
Answer = list[str] | Callable[[], list[str]]


class Call:
    """One connection: what was asked, and a way to answer that stops when the test is over."""

    def __init__(self, connection: socket.socket, stranger: "Stranger") -> None:
        self.connection, self.stranger = connection, stranger
        self.head = self._head()

    def _head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n") and (piece := self.connection.recv(65536)):
            head += piece
        return head

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.stranger.sent += len(data)

    def pause(self, seconds: float) -> bool:
        """False when the test is over."""
        return not self.stranger.stopping.wait(seconds)


def ok(body: bytes, *headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "Content-Type: image/png", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def head(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def sends(*pieces: bytes, pause: float = 0.0) -> Does:
    def does(call: Call) -> None:
        for piece in pieces:
            call.send(piece)
            if pause and not call.pause(pause):
                return

    return does


def trickles(data: bytes, pause: float, *, after: bytes = b"") -> Does:
    return sends(after, *(data[n : n + 1] for n in range(len(data))), pause=pause)


def repeats(piece: bytes, *, after: bytes = b"") -> Does:
    """For ever."""

    def does(call: Call) -> None:
        call.send(after)
        for _ in repeat(None):
            if call.stranger.stopping.is_set():
                return
            call.send(piece)

    return does


def hangs(after: bytes = b"") -> Does:
    def does(call: Call) -> None:
        call.send(after)
        call.stranger.stopping.wait(30)

    return does


class Authority:
    """Issues certificates. Its own is a file at `path`."""

    def __init__(self, folder: Path, name: str = "Authority of the tests") -> None:
        self.folder = folder
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.path = folder / f"{name}.pem"
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            self._builder(self.name, self.key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, *names: str, days: int = 1) -> ssl.SSLContext:
        """A server's TLS with a certificate for `names` that ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        known = x509.SubjectAlternativeName([_general_name(name) for name in names])
        certificate = (
            self._builder(subject, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(known, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / f"{key.public_key().public_numbers().x}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + _pem(key))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(issuer, critical=False)
        )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass
class Stranger:
    """Speaks TLS with `tls`, plain HTTP without; `greets` gets the bare connection, before TLS."""

    tls: ssl.SSLContext | None
    does: Does = field(default_factory=lambda: sends(ok(b"a picture")))
    greets: Callable[["Stranger", socket.socket], object] | None = None
    accepted: list[Any] = field(default_factory=list)
    probes: int = 0
    asked_for: list[str | None] = field(default_factory=list)  # the names in the TLS handshakes
    requests: list[bytes] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        if self.tls:
            self.tls.sni_callback = lambda _socket, name, _context: self.asked_for.append(name)
        self.stopping = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self.listener.getsockname()[1])
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    @property
    def connections(self) -> int:
        """How many there were, with none overlooked: they are accepted in order, and the last is made here."""
        self.probes += 1
        with socket.create_connection(("127.0.0.1", self.port)) as probe:
            while probe.getsockname() not in self.accepted:
                time.sleep(0.001)
        return len(self.accepted) - self.probes

    def stop(self) -> None:
        """Everything that was sent to it has been read then."""
        if not self.stopping.is_set():
            self.stopping.set()
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        for thread in self.threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                connection, address = self.listener.accept()
            except OSError:
                return
            self.accepted.append(address)
            self.threads.append(threading.Thread(target=self._serve, args=[connection]))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):  # the caller has gone, before TLS (ValueError) or later
            connection.settimeout(10)
            if self.greets:
                self.greets(self, connection)
            if self.tls:
                with self.tls.wrap_socket(connection, server_side=True) as secured:
                    self._answer(secured)
                    secured.unwrap()
            else:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        call = Call(connection, self)
        if call.head:
            self.requests.append(call.head)
            self.does(call)


class Wire(socket.socket):
    """A connection to loopback that says of itself what one to a public address would say."""

    said_peer: tuple[str, int]
    said_own: tuple[str, int]

    @classmethod
    def to_stranger(cls, port: int, timeout: float, *, said_peer: tuple[str, int], said_own: tuple[str, int]) -> "Wire":
        wire = cls(socket.AF_INET, socket.SOCK_STREAM)
        wire.said_peer, wire.said_own = said_peer, said_own
        wire.settimeout(timeout)
        try:
            wire.connect(("127.0.0.1", port))
        except OSError:
            wire.close()
            raise
        return wire

    def getpeername(self) -> Any:
        return self.said_peer

    def getsockname(self) -> Any:
        return self.said_own


class FakeInternet(Internet):
    """One name server, and one machine behind all addresses but the `closed` and the `silent` ones: the stranger's."""

    def __init__(self, stranger: Stranger) -> None:
        self.port = stranger.port
        self.names: dict[str, deque[Answer]] = {NAME: deque([[PUBLIC]])}
        self.asked: list[str] = []
        self.dialled: list[tuple[str, int]] = []
        self.closed: set[str] = set()
        self.silent: set[str] = set()
        self.slow = 0.0  # seconds until a connection stands
        self.leads_to = ""  # another address than the one that was dialled
        self.our_address = "10.0.0.5"

    def knows(self, name: str, *answers: Answer) -> None:
        """What is said of the name, one after the other, the last again and again; a function is called for it."""
        self.names[name] = deque(answers)

    def addresses(self, host: str) -> list[str]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        answers = self.names[host]
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        return answer() if callable(answer) else answer

    def connect(self, address: str, port: int, timeout: float) -> socket.socket:
        self.dialled.append((address, port))
        if address in self.closed:
            raise ConnectionRefusedError
        if address in self.silent:
            time.sleep(timeout)
            raise TimeoutError
        peer = (self.leads_to or address, port)
        wire = Wire.to_stranger(self.port, timeout, said_peer=peer, said_own=(self.our_address, 50000))
        time.sleep(self.slow)
        return wire


@contextmanager
def running(stranger: Stranger) -> Iterator[Stranger]:
    try:
        yield stranger
    finally:
        stranger.stop()
