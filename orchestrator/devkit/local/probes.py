"""Whether a port is free, whether a process answers, and what a process said last."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from orchestrator.devkit.errors import UpFailed
from orchestrator.devkit.local.terminal import said

if TYPE_CHECKING:
    from orchestrator.devkit.local.child import Child

HOST: Final = "127.0.0.1"
_TIMEOUT: Final = 5.0


def probe(port: int) -> None:
    """Say now, and not in a child's log, that the port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UpFailed(
                f"port {port} of {HOST} cannot be used ({error.strerror}): choose another with --port"
            ) from error


async def is_well(url: str) -> bool:
    """Query the health of a process; only the first line of its answer matters."""
    parts = urlsplit(url)
    asked = f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_TIMEOUT):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                writer.write(asked.encode())
                words = (await reader.readline()).split()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
    return words[1:2] == [b"200"]


def last_words(child: Child) -> str:
    with suppress(OSError):
        lines = [line for line in child.log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            return said(lines[-1])
    return f"see {child.log}"
