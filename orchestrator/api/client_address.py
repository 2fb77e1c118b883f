"""The address of a request's client, behind the configured number of proxies, and whether it is one of the
gateway's.

X-Forwarded-For is a list that each proxy appends its own caller to, so only its right end is reliable. With n
trusted proxies the n-th entry from the right is what the outermost of them saw; entries to the left of it
were there before, and may be made up.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST: Final = 100
"""Characters of an address with its zone and port: what is longer is none, and is not kept in memory."""
Address = IPv4Address | IPv6Address
Network = Literal["inside", "outside", "unchecked"]


def caller(peer: str | None, forwarded: Sequence[str], *, depth: int) -> tuple[Address | None, bool]:
    """Return the client's address, and whether that is sure: (address, sure).

    `forwarded` holds the X-Forwarded-For headers in their order, `depth` is how many proxies are trusted.
    Where the list is shorter than that, or the entry is no address, the client is unknown: the peer is
    returned, and it is not sure.
    """
    neighbour = address_of(peer or "")
    if depth == 0:
        return neighbour, neighbour is not None
    entries = [entry for header in forwarded for entry in header.split(",")]
    found = address_of(entries[-depth]) if len(entries) >= depth else None
    return (neighbour, False) if found is None else (found, True)


def address_of(text: str) -> Address | None:
    """Read an address as proxies write it: with a port, in brackets, in quotes, or IPv4 inside IPv6; None if
    it is none.
    """
    bare = text.strip().strip('"')
    return _read(bare) if len(bare) <= _LONGEST else None


@lru_cache(maxsize=4096)
def _read(bare: str) -> Address | None:
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        read = ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    if isinstance(read, IPv6Address) and read.ipv4_mapped is not None:
        return read.ipv4_mapped
    return read


def network_of(
    address: Address | None, *, sure: bool, networks: Sequence[IPv4Network | IPv6Network]
) -> Network:
    """Return whether an address is one of the gateway's; `unchecked` where there is no list, or the address
    is unknown.
    """
    if address is None or not sure or not networks:
        return "unchecked"
    return "inside" if any(address in network for network in networks) else "outside"
