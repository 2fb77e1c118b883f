"""What tests need of this machine: a free port, and time until something has happened."""

from __future__ import annotations

import random
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PORTS: Final = range(10_000, 32_768)
"""Ports of servers: Linux gives connections those above, so none takes a port before its server starts; and
RabbitMQ's tools need the ports 10,000 above that of its distribution."""
_CHANCE: Final = random.SystemRandom()
"""Not the generator that a test seeds: processes with one seed would choose the same ports."""


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    for port in _CHANCE.sample(PORTS, k=100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    message = f"none of 100 ports between {PORTS.start} and {PORTS.stop - 1} is free"
    raise OSError(message)


def until(condition: Callable[[], object], what: str, *, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"within {seconds} s it did not happen that {what}"
        time.sleep(0.05)
