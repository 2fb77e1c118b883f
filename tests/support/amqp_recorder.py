"""A connection to RabbitMQ that records what clients declare, and shows them another version of the server.

Clients behave by the version that a server names: so what they would send to a newer RabbitMQ is seen on the
wire, and an older one answers.
"""

from __future__ import annotations

import re
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from struct import unpack_from
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = 8
"""Bytes of the protocol's name that a client begins with."""
_FRAME = 7
_VERSION = re.compile(rb"(\x07versionS\x00\x00\x00.)([0-9.]+)", re.DOTALL)
DECLARE, QOS, CONSUME, PUBLISH = (50, 10), (60, 10), (60, 20), (60, 40)


@dataclass(frozen=True, slots=True)
class Declared:
    """A queue as a client declares it."""

    queue: str
    passive: bool
    durable: bool
    exclusive: bool
    auto_delete: bool


@dataclass(slots=True)
class Recorded:
    """What clients have sent: queues, limits (count, global), and how often each method (class, number)."""

    port: int = 0
    declared: list[Declared] = field(default_factory=list)
    limits: list[tuple[int, bool]] = field(default_factory=list)
    methods: list[tuple[int, int]] = field(default_factory=list)
    versions: set[bytes] = field(default_factory=set)
    """That servers have named."""

    def read_frames(self, data: bytes) -> bytes:
        """Read whole frames; return what is left of the data."""
        while len(data) >= _FRAME:
            kind, _, size = unpack_from(">BHI", data)
            if len(data) < _FRAME + size + 1:
                break
            if kind == 1:
                self._read(data[_FRAME : _FRAME + size])
            data = data[_FRAME + size + 1 :]
        return data

    def _read(self, payload: bytes) -> None:
        """Read a method's frame."""
        method = unpack_from(">HH", payload)
        self.methods.append(method)
        if method == DECLARE:
            length = payload[6]
            bits = payload[7 + length]
            flags = [bool(bits >> place & 1) for place in range(4)]
            self.declared.append(Declared(payload[7 : 7 + length].decode(), *flags))
        elif method == QOS:
            _, count, bits = unpack_from(">IHB", payload, 4)
            self.limits.append((count, bool(bits & 1)))


class _Way:
    """Connections to a server, each with a thread for each direction."""

    def __init__(self, target: int, recorded: Recorded, version: bytes) -> None:
        self._target, self._recorded, self._version = target, recorded, version
        self._listener = socket.create_server(("127.0.0.1", 0))
        recorded.port = self._listener.getsockname()[1]
        self._opened = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._opened:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
                server.settimeout(None)
                self._opened += [client, server]
                threading.Thread(target=self._up, args=(client, server), daemon=True).start()
                threading.Thread(target=self._down, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        rest, begun = b"", False
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
                rest += data
                if not begun and len(rest) >= _HEADER:
                    rest, begun = rest[_HEADER:], True
                if begun:
                    rest = self._recorded.read_frames(rest)
            server.shutdown(socket.SHUT_WR)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            # The first frame names the version.
            first = b""
            while len(first) < _FRAME or len(first) < _FRAME + unpack_from(">I", first, 3)[0] + 1:
                if not (data := server.recv(65536)):
                    break
                first += data
            self._recorded.versions |= {found[1] for found in _VERSION.findall(first)}
            client.sendall(_VERSION.sub(self._other, first, count=1))
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def _other(self, found: re.Match[bytes]) -> bytes:
        return found[1] + self._version.ljust(len(found[2]), b"0")


@contextmanager
def recording(target: int, *, version: bytes) -> Iterator[Recorded]:
    """Listen before the RabbitMQ at a port; `version`: the one that clients are told."""
    recorded = Recorded()
    way = _Way(target, recorded, version)
    try:
        yield recorded
    finally:
        way.close()
