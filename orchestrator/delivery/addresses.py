"""Where a delivery may go: which URLs are accepted, and which addresses a connection may be opened to.

A URL is checked by its text when it is stored, and again before a process first sends to it; spellings that
programs read differently are refused. A name is resolved once for each connection, every address that it has
is checked, and the connection goes to one of those very addresses. An address is public only if it is known
to be: special ranges and those that contain another address are refused. The networks of
`ORCHESTRATOR_WEBHOOK_ALLOWED_NETWORKS` are always allowed.
"""

from __future__ import annotations

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from orchestrator.errors import OrchestratorError
from orchestrator.settings.hosts import reach_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Network, IPv6Network

LONGEST_URL: Final = 2048
LONGEST_HOST: Final = 253
LAST_PORT: Final = 65_535
_WEB_PORTS: Final = frozenset({80, 443})
FIRST_FREE_PORT: Final = 1024
RESOLVING: Final = 64
"""Names that a process resolves at a time."""

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<rest>[/?][!$%&'()*+,./0-9:;=?@A-Z_a-z~-]*)?"
)
_EXAMPLE: Final = "must be a URL with a host name, such as https://shop.example/webhooks"
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A host whose last label is a number is an IPv4 address in some spelling (WHATWG URL, "ends in a number").
_NUMBER: Final = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")

# What `ipaddress` calls global, and a service of a merchant cannot be at: relays, protocol assignments,
# Azure's machine service.
_SPECIAL_V4: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "192.0.0.0/24",
            "192.31.196.0/24",
            "192.52.193.0/24",
            "192.88.99.0/24",
            "192.175.48.0/24",
            "224.0.0.0/3",
            "168.63.129.16/32",
        ),
    )
)
_GLOBAL_V6: Final = ip_network("2000::/3")
_SPECIAL_V6: Final = tuple(
    map(
        ip_network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",
            "3ffe::/16",
            "3fff::/20",
        ),
    )
)
_ISATAP: Final = frozenset({0x00005EFE, 0x02005EFE})

Address = IPv4Address | IPv6Address
Found = tuple[int, Address]
"""The family of a socket, and an address."""


class WebhookUrlRejected(OrchestratorError, ValueError):  # noqa: N818 - named for the fact
    """A URL that no delivery is sent to; the sentence follows "url" and says what it must be."""


class AddressForbidden(OrchestratorError, OSError):  # noqa: N818 - named for the fact
    """A name leads to an address that no delivery may be sent to.

    The address is not shown: a merchant must not explore with it.
    """

    def __init__(self) -> None:
        super().__init__("the host leads to an address that is not public, and that no setting allows")


class NameUnknown(OrchestratorError, OSError):  # noqa: N818 - named for the fact
    """A name has no address, or no name server answers for it."""

    def __init__(self) -> None:
        super().__init__("the host's name was not found")


class AddressPolicy:
    """Which addresses deliveries may go to."""

    def __init__(self, allowed: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._allowed = tuple(allowed)

    @property
    def allows_private(self) -> bool:
        """Whether any network is allowed beside the public ones."""
        return bool(self._allowed)

    def named(self, address: Address) -> bool:
        """Return whether the setting names a network with this address, also where IPv6 contains it
        as IPv4.
        """
        inner = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return any(
            candidate in network
            for candidate in (address, inner)
            if candidate is not None
            for network in self._allowed
        )

    def permits(self, address: Address) -> bool:
        """Say whether a connection to this address may be opened."""
        return self.named(address) or is_public(address)


def is_public(address: Address) -> bool:
    """Return whether an address is public, and contains no other one."""
    if isinstance(address, IPv4Address):
        return (
            address.is_global
            and not address.is_multicast
            and not any(address in network for network in _SPECIAL_V4)
        )
    if address.scope_id is not None or address not in _GLOBAL_V6 or not address.is_global:
        return False
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(address in network for network in _SPECIAL_V6)


def checked_url(url: str, policy: AddressPolicy) -> str:
    """Return a URL that deliveries may be sent to, unchanged; raise `WebhookUrlRejected` with the end of a
    sentence otherwise.

    https:// only, and a public host; with allowed networks also http:// and private names, whose addresses
    are then checked. Every program reads it in the same way.
    """
    _check_text(url)
    found = _URL.fullmatch(url)
    if found is None or _PERCENT.search(found["rest"] or ""):
        raise WebhookUrlRejected(_EXAMPLE)
    host = found["host"]
    try:
        read = urlsplit(url).hostname
    except ValueError:
        read = None
    if read != host.strip("[]").lower():
        raise WebhookUrlRejected("must be a URL with a host name that every program reads in the same way")
    port = int(found["port"] or 0)
    if port > LAST_PORT or (0 < port < FIRST_FREE_PORT and port not in _WEB_PORTS):
        raise WebhookUrlRejected(
            f"must have no port, or 80, 443, or one from {FIRST_FREE_PORT} to {LAST_PORT}"
        )
    if not host.startswith("["):
        check_name(host, example=_EXAMPLE)
    check_host(host, policy, secure=found["scheme"] == "https", wanted="https://")
    return url


def check_host(host: str, policy: AddressPolicy, *, secure: bool, wanted: str) -> None:
    """Raise `WebhookUrlRejected` unless deliveries may go to the host of a URL, by its text.

    `secure`: the connection is encrypted. `wanted`: how such a URL begins.
    """
    address = _literal(host)
    if address is not None:
        if not policy.permits(address):
            raise WebhookUrlRejected("must name a public host")
        if not secure and not policy.named(address):
            raise WebhookUrlRejected(f"must start with {wanted}")
        return
    if policy.allows_private:
        return
    if not secure:
        raise WebhookUrlRejected(f"must start with {wanted}")
    if reach_of(host) != "public":
        raise WebhookUrlRejected("must name a public host")


def _check_text(url: str) -> None:
    if not 1 <= len(url) <= LONGEST_URL:
        raise WebhookUrlRejected(f"must have 1 to {LONGEST_URL} characters")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise WebhookUrlRejected(
            "must hold visible ASCII characters only: write the host in its xn-- form and percent-encode the rest"
        )
    if not url.startswith(("https://", "http://")):
        raise WebhookUrlRejected("must start with https://")
    if "#" in url:
        raise WebhookUrlRejected("must have no fragment")
    if "@" in re.split(r"[/?]", url.partition("://")[2], maxsplit=1)[0]:
        raise WebhookUrlRejected("must have no user name or password: the signature proves who sends")


def check_name(host: str, *, example: str) -> None:
    """Raise `WebhookUrlRejected` unless every program reads a host as the same name or IPv4 address."""
    labels = host.split(".")
    if len(host) > LONGEST_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise WebhookUrlRejected(example)
    if _NUMBER.fullmatch(labels[-1]) and _literal(host) is None:
        raise WebhookUrlRejected("must write an IPv4 address as four decimal numbers, such as 203.0.113.7")


def _literal(host: str) -> Address | None:
    try:
        return IPv6Address(host[1:-1]) if host.startswith("[") else ip_address(host)
    except ValueError:
        if host.startswith("["):
            raise WebhookUrlRejected("must name a public host") from None
        return None


class Resolver:
    """Resolves names, each at most once at a time, on threads of its own; every answer is checked
    as a whole.
    """

    def __init__(self, policy: AddressPolicy, *, lookup: Callable[..., Any] = socket.getaddrinfo) -> None:
        self._policy, self._lookup = policy, lookup
        self._threads = ThreadPoolExecutor(RESOLVING, thread_name_prefix="names")
        self._under_way: dict[tuple[str, int], asyncio.Future[list[Found]]] = {}

    def close(self) -> None:
        """Wait for nothing: what is being resolved ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def addresses(self, host: str, port: int, *, named_only: bool) -> list[Found]:
        """Return the addresses of a host, all of which are permitted; `named_only`: all of which the setting
        names.

        `AddressForbidden` if any is not permitted; `NameUnknown` if there is none.
        """
        key = host.lower(), port
        under_way = self._under_way.get(key)
        if under_way is None:
            under_way = asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)
            self._under_way[key] = under_way
            under_way.add_done_callback(lambda _: self._under_way.pop(key, None))
        found = await asyncio.shield(under_way)
        for _, address in found:
            self.check(address, named_only=named_only)
        return found

    def check(self, address: Address, *, named_only: bool) -> None:
        """Raise `AddressForbidden` unless a connection to this address may be opened."""
        if not (self._policy.named(address) if named_only else self._policy.permits(address)):
            raise AddressForbidden

    def _resolve(self, host: str, port: int) -> list[Found]:
        try:
            rows = self._lookup(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise NameUnknown from None
        found = [(int(family), ip_address(str(address[0]))) for family, _, _, _, address in rows]
        if not found:
            raise NameUnknown
        return list(dict.fromkeys(found))
