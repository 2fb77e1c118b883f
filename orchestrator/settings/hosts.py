"""The reach of a URL's host: public, private, or an address that this system may not call.

The text alone decides; names are not looked up. The code that opens a connection has to check the address
that a name leads to.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final, Literal

_METADATA_NAMES: Final = frozenset(
    {
        "metadata",
        "metadata.google.internal",
        "metadata.goog",
        "instance-data",
        "instance-data.ec2.internal",
    }
)
# AWS over IPv6, and Alibaba Cloud: the addresses of metadata services that are not link-local.
_METADATA_ADDRESSES: Final = frozenset({ip_address("fd00:ec2::254"), ip_address("100.100.100.200")})
_LOCAL_DOMAINS: Final = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def reach_of(host: str) -> Literal["public", "private", "forbidden"]:
    """Return the reach of a URL's host, by its text alone; names are not looked up.

    `forbidden` is an address that serves a machine its own credentials (link-local and metadata addresses),
    or is not the address of one host. `private` is loopback, a private network, or a name without a domain.
    IPv4 is read in all spellings that a resolver takes.
    """
    name = host.rstrip(".").lower()
    address = address_of(name)
    if address is None:
        if name in _METADATA_NAMES:
            return "forbidden"
        return "private" if "." not in name or name.endswith(_LOCAL_DOMAINS) else "public"
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address.sixtofour or address
    if (
        address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or address in _METADATA_ADDRESSES
    ):
        return "forbidden"
    return "public" if address.is_global else "private"


def is_loopback(host: str) -> bool:
    """Say whether the host of a URL is this machine itself."""
    name = host.rstrip(".").lower()
    address = address_of(name)
    return address.is_loopback if address is not None else name == "localhost" or name.endswith(".localhost")


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    """Read an address in any spelling that a resolver takes, in small letters; None for a name."""
    try:
        return ip_address(name.partition("%")[0])
    except ValueError:
        pass
    if not re.fullmatch(r"[0-9a-fx.]+", name):
        return None
    try:
        return IPv4Address(socket.inet_aton(name))  # 0xA9FEA9FE, 2852039166, 0251.0376.0251.0376, 127.1
    except OSError:
        return None
