"""Streams of server-sent events: how one checkout is, for its shopper's browser.

All streams of a process share one poller, which asks for the versions of their checkouts four times a second
and reads those that have changed. A stream holds its connection to the browser and no connection to Postgres.
It has the newest document only, so a browser that reads slowly skips documents. Each connection begins with
the document as it is, so nothing is replayed; a browser that names the document it has (`Last-Event-ID`) is
not sent the same again. A stream ends with the final state, after a limited lifetime, and when the process
ends; the number of streams is limited for a checkout, a merchant and the process.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from starlette.responses import Response

from orchestrator import log
from orchestrator.api.long_poll import AFTER_A_FAILURE, TooManyWaiting, disconnected
from orchestrator.api.problems import encoded
from orchestrator.api.shopper_status import digest, status_of
from orchestrator.store import shopper_view

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import Receive, Scope, Send

    from orchestrator.api.contract.shopper import CheckoutStatus
    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database
    from orchestrator.store.shopper_view import ShopperView

_log = log.get(__name__)

INTERVAL: Final = 0.25
"""Seconds between two queries while there are streams."""
HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent: less than what proxies wait for."""
LIFETIME: Final = 300.0
"""Seconds after which a stream ends and its browser connects again, give or take a fifth."""
RETRY: Final = 2000
"""Milliseconds after which a browser connects again."""
OF_ONE_CHECKOUT: Final = 5
MEDIA_TYPE: Final = "text/event-stream"

End = Literal["final", "lifetime", "shutdown"]


@dataclass(slots=True, eq=False)
class Stream:
    """One browser that follows a checkout."""

    checkout: UUID
    merchant_id: int
    version: int
    status: CheckoutStatus
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class StatusStreams:
    """The streams of one process, at most `most` at a time; on one event loop."""

    def __init__(self, db: Database, encryptor: Encryptor, *, most: int) -> None:
        self._db, self._encryptor, self.most = db, encryptor, most
        self._streams: dict[Stream, None] = {}
        self._poller: asyncio.Task[None] | None = None
        self.stopping = False
        """Whether the process ends, and every stream with it."""
        self.queries = 0
        """How many queries the poller has made."""
        self.lifetime = LIFETIME
        self.heartbeat = HEARTBEAT

    def __len__(self) -> int:
        """Return how many streams are open."""
        return len(self._streams)

    def check(self, checkout: UUID, merchant_id: int) -> None:
        """Raise `TooManyWaiting` if no further stream may be opened."""
        of_checkout = sum(stream.checkout == checkout for stream in self._streams)
        if of_checkout >= OF_ONE_CHECKOUT:
            raise TooManyWaiting(of_checkout, own=True)
        of_merchant = Counter(stream.merchant_id for stream in self._streams)[merchant_id]
        if of_merchant >= max((self.most + 1) // 2, 1):
            raise TooManyWaiting(of_merchant, own=True)
        if len(self._streams) >= self.most:
            raise TooManyWaiting(len(self._streams), own=False)

    def add(self, stream: Stream) -> None:
        """Follow a checkout for a stream, until `discard`."""
        self._streams[stream] = None
        if self._poller is None or self._poller.done():
            # It works for all streams, so its log lines carry the correlation id of no request.
            self._poller = asyncio.create_task(self._poll(), name="status-streams", context=Context())

    def discard(self, stream: Stream) -> None:
        """Stop following for a stream."""
        self._streams.pop(stream, None)

    def stop(self) -> None:
        """End all streams: the process ends."""
        self.stopping = True
        for stream in self._streams:
            stream.changed.set()

    async def close(self) -> None:
        """End all streams, and the poller."""
        self.stop()
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        while self._streams and not self.stopping:
            try:
                await self._ask()
            except Exception as error:  # noqa: BLE001 - streams stay open, whatever it was
                _log.warning("status_streams_not_polled", **log.cause(error))
                await asyncio.sleep(AFTER_A_FAILURE)
            else:
                await asyncio.sleep(INTERVAL)

    async def _ask(self) -> None:
        followed = {stream.checkout for stream in self._streams}
        self.queries += 1
        versions = await shopper_view.versions(self._db, followed)
        behind = {
            stream.checkout
            for stream in self._streams
            if versions.get(stream.checkout, stream.version) != stream.version
        }
        if not behind:
            return
        self.queries += 1
        found = await shopper_view.views(self._db, behind)
        made = {checkout: status_of(view, self._encryptor) for checkout, view in found.items()}
        for stream in self._streams:
            view = found.get(stream.checkout)
            if view is None or view.version <= stream.version:
                continue
            stream.version = view.version
            if stream.status != made[stream.checkout]:
                stream.status = made[stream.checkout]
                stream.changed.set()


class StreamResponse(Response):
    """The answer that lasts: the document as it is, then each change, until the end."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        streams: StatusStreams,
        view: ShopperView,
        status: CheckoutStatus,
        *,
        known: str | None,
        alone: bool,
    ) -> None:
        """`known`: the digest of the document that the browser has; `alone`: headers without a body."""
        super().__init__(headers={"X-Accel-Buffering": "no"}, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._streams, self._known, self._alone = streams, known, alone
        self._stream = Stream(view.id, view.merchant_id, view.version, status)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI calls it
        """Send until the end, or until the browser has gone."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if self._alone:
            await send({"type": "http.response.body", "body": b""})
            return
        gone = asyncio.create_task(disconnected(receive))
        self._streams.add(self._stream)
        try:
            await self._send(send, gone)
        finally:
            self._streams.discard(self._stream)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)

    async def _send(self, send: Send, gone: asyncio.Task[None]) -> None:
        loop, streams, stream = asyncio.get_running_loop(), self._streams, self._stream
        until = loop.time() + streams.lifetime * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        await _write(send, f"retry: {RETRY}\n\n")
        while not gone.done():
            stream.changed.clear()
            if (sent := digest(stream.status)) != self._known:
                await _write(send, _event(sent, stream.status))
                self._known = sent
            end = self._end(expired=loop.time() >= until)
            if end is not None:
                await _write(send, f'event: end\ndata: {{"reason":"{end}"}}\n\n')
                await send({"type": "http.response.body", "body": b""})
                return
            pause = min(streams.heartbeat, max(until - loop.time(), 0))
            if not await _changes(stream.changed, gone, seconds=pause):
                await _write(send, ": \n\n")

    def _end(self, *, expired: bool) -> End | None:
        if self._stream.status.final:
            return "final"
        if self._streams.stopping:
            return "shutdown"
        return "lifetime" if expired else None


def _event(identity: str, status: CheckoutStatus) -> str:
    return f"id: {identity}\nevent: status\ndata: {encoded(status).decode()}\n\n"


async def _write(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _changes(changed: asyncio.Event, gone: asyncio.Task[None], *, seconds: float) -> bool:
    """Wait for a change or for the browser's end; say whether one of them came in time."""
    waiting: asyncio.Task[Any] = asyncio.create_task(changed.wait())
    try:
        done, _ = await asyncio.wait({waiting, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        waiting.cancel()
