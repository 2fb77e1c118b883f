"""What is wrong with PUBLIC_URL beside a real gateway, in sentences, without a request to it.

The gateway calls from the internet and on ports 80 and 443 only. A gateway on this machine or in this network
(the sandbox) reaches addresses that a real one cannot, and then nothing is reported.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from orchestrator.settings.hosts import address_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PORTS: Final = frozenset({80, 443})
"""What the gateway connects to; its documentation of callbacks names no others."""
_INNER_DOMAINS: Final = tuple(
    ".localhost .local .localdomain .internal .intranet .lan .home.arpa .test .invalid".split()
)
"""Domains that no public resolver answers (RFC 6761, 6762, 8375) or that are in use for private networks."""
RESOLVING: Final = 3.0
"""Seconds for the resolver of this host."""
_DEFAULT: Final = {"http": 80, "https": 443}


def faults(public_url: str, gateways: Iterable[str | None]) -> Iterator[str]:
    """Yield what keeps a real gateway from our callbacks, each with the remedy; nothing where none of these
    gateways is a real one.
    """
    if not _any_real(gateways):
        return
    parts, host = urlsplit(public_url), _host(public_url)
    shown = f"ORCHESTRATOR_PUBLIC_URL is {public_url}"
    if _is_inner(host):
        where = "this machine" if _is_loopback(host) else "a network of its own"
        yield (
            f"{shown}, which only {where} reaches, and the gateway calls from the internet: set it to the https:// address "
            "under which the internet reaches this API"
        )
    port = parts.port or _DEFAULT[parts.scheme]
    if port not in PORTS:
        yield (
            f"{shown}, and the gateway calls ports 80 and 443 only: put a proxy on port 443 in front of the API, and set "
            "ORCHESTRATOR_PUBLIC_URL to its address without a port"
        )
    if parts.scheme != "https":
        yield (
            f"{shown}, which is not encrypted: callbacks hold personal data, so serve it with a certificate, and set "
            "ORCHESTRATOR_PUBLIC_URL to https://"
        )


async def resolved(public_url: str, gateways: Iterable[str | None]) -> tuple[bool, str] | None:
    """Return what the resolver of this host says of the name in PUBLIC_URL: whether it is a fault, and a
    sentence; None where there is nothing to say.

    A name that leads to a private address here is no fault by itself: the internet may get another answer.
    """
    host = _host(public_url)
    if not _any_real(gateways) or _is_inner(host) or _address(host) is not None:
        return None
    shown = f"ORCHESTRATOR_PUBLIC_URL is {public_url}"
    try:
        async with asyncio.timeout(RESOLVING):
            found = await _resolve(host)
    except (OSError, UnicodeError):
        return True, f"{shown}, and {host} does not resolve: correct the name, or make its DNS entry"
    inner = sorted(address for address in found if _is_inner(address))
    if not inner:
        return None
    return False, (
        f"{shown}; {host} is {', '.join(inner)} here, which only this network reaches: the internet must get another address"
    )


async def _resolve(host: str) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[4][0]) for address in found]


def _any_real(gateways: Iterable[str | None]) -> bool:
    return any(url and not is_local(url) for url in gateways)


def is_local(url: str) -> bool:
    """Return whether a URL leads to this machine or to a private network: loopback, private addresses, names
    without a dot.
    """
    return _is_inner(_host(url))


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


def _is_inner(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return not address.is_global or address.is_multicast
    return "." not in host or f".{host}".endswith(_INNER_DOMAINS)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _address(host: str) -> IPv4Address | IPv6Address | None:
    address = address_of(host)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
