"""Who is really asking. Anybody can write forwarding headers; only those that TRUSTED_PROXIES send are believed.

After ProxyMiddleware, REMOTE_ADDR is the client's address, the host and https are what the client used, and a request
of anybody else carries no forwarding header any more.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse

logger = structlog.get_logger(__name__)

UNIX = "unix"  # in TRUSTED_PROXIES: who connects through a unix socket, and so has no address
FORWARDING = (
    "HTTP_FORWARDED",
    "HTTP_X_REAL_IP",
    *(f"HTTP_X_FORWARDED_{name}" for name in ("FOR", "PROTO", "HOST", "PORT", "PREFIX", "SERVER", "BY")),
    *(f"HTTP_X_FORWARDED_{name}" for name in ("PROTOCOL", "SSL", "SCHEME", "URI")),
)


class ProxyMiddleware:
    """First of all: whatever comes after it may believe META. Sets `request.is_direct`: no proxy was in between."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.has_told = False

    def __call__(self, request: HttpRequest) -> HttpResponse:
        meta: dict[str, Any] = request.META
        peer = address_of((meta.get("REMOTE_ADDR") or "").partition("%")[0])  # behind it: a network card of ours
        meta["REMOTE_ADDR"] = str(peer or "")
        sent = [name for name in FORWARDING if name in meta]
        request.is_direct = not sent and "HTTP_VIA" not in meta  # type: ignore[attr-defined]
        if sent and is_trusted(peer):
            believe(meta)
        else:
            if {"HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED"} & set(sent) and not (peer and peer.is_global):
                self.tell_of(str(peer or UNIX))
            for name in sent:
                del meta[name]
        return self.get_response(request)

    def tell_of(self, peer: str) -> None:
        """Once: somebody in the same network is more likely a proxy that was forgotten than a stranger."""
        if not self.has_told:
            self.has_told = True
            logger.warning(
                f"{peer} forwards requests and isn't believed: its clients count as one. "
                "If it's your proxy, name it in TRUSTED_PROXIES."
            )


def believe(meta: dict[str, Any]) -> None:
    """Of several values the last: the one that the proxy in front of us wrote, and not what its client sent."""
    if client := client_of(meta.get("HTTP_X_FORWARDED_FOR", "")):
        meta["REMOTE_ADDR"] = meta["REMOTE_HOST"] = client
        meta.pop("REMOTE_PORT", None)
    if host := _last(meta, "HTTP_X_FORWARDED_HOST"):
        meta["HTTP_HOST"] = host
    scheme = _last(meta, "HTTP_X_FORWARDED_PROTO").lower()
    meta.pop("HTTP_X_FORWARDED_PROTO", None)
    if scheme in ("http", "https"):
        meta["HTTP_X_FORWARDED_PROTO"] = scheme  # SECURE_PROXY_SSL_HEADER


def _last(meta: dict[str, Any], name: str) -> str:
    return str(meta.get(name, "")).rpartition(",")[2].strip()


def client_of(forwarded_for: str) -> str:
    """The right-most address that is no trusted proxy; behind garbage nothing is looked at. Empty if there is none."""
    known = ""
    for entry in reversed(forwarded_for.split(",")):
        address = address_of(entry.strip())
        if address is None:
            break
        known = str(address)
        if not is_trusted(address):
            break
    return known


@lru_cache(maxsize=4096)
def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """With or without a port. An IPv4 address in IPv6's clothes is the IPv4 address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return None if address.scope_id else address.ipv4_mapped or address
    return address


def is_trusted(address: IPv4Address | IPv6Address | None) -> bool:
    """None: there is no address, as on a unix socket."""
    if address is None:
        return UNIX in settings.TRUSTED_PROXIES
    return is_in(address, settings.TRUSTED_PROXIES)


def is_in(address: IPv4Address | IPv6Address, networks: Sequence[str]) -> bool:
    return any(address in network for network in _parsed(tuple(networks)))


@lru_cache
def _parsed(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(network, strict=False) for network in networks if network != UNIX)
