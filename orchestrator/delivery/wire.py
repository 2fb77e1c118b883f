"""A connection to a broker that is not trusted: opened to a checked address, ended by a time, and with a
bound on what is received.

The clients of RabbitMQ and Redis read as much, and wait as long, as the other side makes them. They are given
this in place of a socket.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from functools import cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

import certifi

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.delivery.addresses import Address, Found
    from orchestrator.settings.broker_url import Tls

RECEIVED: Final = 1024 * 1024
"""Bytes that are received in one exchange at the most, beside what may come back of what is sent."""
_AT_ONCE: Final = 65_536


class TooMuch(OSError):  # noqa: N818 - named for the fact
    """The other side sends more than an exchange can need."""


class NotConnected(OSError):  # noqa: N818 - named for the fact
    """No address of a broker takes a connection."""


class Wire:
    """A connected socket; one thread at a time uses it."""

    def __init__(self, sock: socket.socket, *, until: float) -> None:
        self._sock = sock
        self._timeout: float | None = None
        self._until, self._left = until, RECEIVED

    def allow(self, *, until: float, echoed: int = 0) -> None:
        """Begin an exchange that ends at `until` (of the monotonic clock); `echoed`: bytes that may come
        back.
        """
        self._until, self._left = until, RECEIVED + echoed

    def settimeout(self, timeout: float | None) -> None:
        """Set the seconds of one call, within the exchange."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return the seconds of one call."""
        return self._timeout

    def recv(self, size: int) -> bytes:
        """Receive some bytes."""
        self._limit()
        data = self._sock.recv(min(size, _AT_ONCE))
        self._count(len(data))
        return data

    def recv_into(self, buffer: Any, size: int = 0) -> int:
        """Receive some bytes into a buffer."""
        self._limit()
        number = self._sock.recv_into(buffer, size)
        self._count(number)
        return number

    def sendall(self, data: Any) -> None:
        """Send all of it."""
        self._limit()
        self._sock.sendall(data)

    def idle(self) -> bool:
        """Return whether nothing has come that was not read; a closed connection is not idle."""
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return False
        readable = select.poll()
        readable.register(self._sock, select.POLLIN)
        return not readable.poll(0)

    def end(self) -> None:
        """Close it, whatever state it is in."""
        self._sock.close()

    def _limit(self) -> None:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left if self._timeout is None else min(self._timeout, left))

    def _count(self, number: int) -> None:
        self._left -= number
        if self._left < 0:
            raise TooMuch("it sends more than an exchange can need")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def dial(
    addresses: Sequence[Found],
    port: int,
    *,
    host: str,
    tls: ssl.SSLContext | None,
    check: Callable[[Address], None],
    until: float,
) -> Wire:
    """Connect to the first of these addresses that answers; certificates are verified against the host's
    name. Raises `NotConnected`, or an `ssl.SSLError`.

    `check` raises for an address that must not be connected to.
    """
    failed = NotConnected("it has no address")
    for family, address in addresses:
        check(ip_address(str(address)))
        left = until - time.monotonic()
        if left <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(left)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect((str(address), port))
            if tls is not None:
                # Its time-out is that of the whole handshake.
                sock = tls.wrap_socket(sock, server_hostname=host)
        except ssl.SSLError:
            sock.close()
            raise
        except OSError as error:
            sock.close()
            failed = NotConnected(error.strerror or str(error))
        else:
            return Wire(sock, until=until)
    raise failed


@cache
def public_tls() -> ssl.SSLContext:
    """Return how what merchants run is verified: by the public authorities, and by its name."""
    return ssl.create_default_context(cafile=certifi.where())


def tls_of(tls: Tls | None) -> ssl.SSLContext | None:
    """Return how our own broker is verified, as its URL and settings say."""
    if tls is None:
        return None
    context = ssl.create_default_context(cafile=tls.ca_file)
    context.check_hostname = tls.verify and tls.check_hostname
    if not tls.verify:
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        context.load_cert_chain(tls.certificate, tls.key)
    return context
