"""What is wrong with PUBLIC_URL beside a real gateway, in sentences, without a request.

The gateway calls from the internet and on ports 80 and 443 only. A gateway on this machine or in this network
(the sandbox) reaches addresses that a real one cannot, and then nothing is reported.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PORTS: Final = frozenset({80, 443})
"""What the gateway connects to; its documentation of callbacks names no others."""
_INNER_NAMES: Final = (
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "lan",
    "home.arpa",
    "test",
    "invalid",
)
"""Top-level names that no public resolver answers (RFC 6761, 6762, 8375) or that are in use for private
networks."""
_DEFAULT: Final = {"http": 80, "https": 443}


def faults(public_url: str, gateways: Iterable[str | None]) -> list[str]:
    """Return what keeps a real gateway from our callbacks, each with the remedy; nothing where none of these
    gateways is a real one.
    """
    real = sorted({url for url in gateways if url and not _is_inner(_host(url))})
    return list(_faults(public_url)) if real else []


def is_local(url: str) -> bool:
    """Return whether a URL leads to this machine or to a private network: loopback, private addresses, names
    without a dot.
    """
    return _is_inner(_host(url))


def _faults(url: str) -> Iterator[str]:
    parts, host = urlsplit(url), _host(url)
    shown = f"ORCHESTRATOR_PUBLIC_URL is {url}"
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


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").rstrip(".")


def _is_inner(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return not address.is_global or address.is_multicast
    return "." not in host or any(host == top or host.endswith(f".{top}") for top in _INNER_NAMES)


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Read an address in any spelling that a resolver takes: 127.1 and 0x7f000001 are 127.0.0.1."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
