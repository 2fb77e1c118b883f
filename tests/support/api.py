"""The client of our own API for tests that are no coroutines: its event loop runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from orchestrator.devkit.client import Client


class Api:
    """`Client` with methods that block, for any thread.

    One attempt for each request: what a test is answered, it sees.
    """

    def __init__(self, url: str, token: str, *, timeout: float = 10) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api-client", daemon=True)
        self._thread.start()
        self._client = self._wait(self._made(url, token, timeout))

    async def _made(self, url: str, token: str, timeout: float) -> Client:
        return Client(url, token, timeout=timeout, attempts=1)

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *arguments, **named: self._wait(method(*arguments, **named))

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
