"""How one checkout is, for its shopper's browser: the document, and the stream of its server-sent events.

All streams of a process share one poller, which asks for the versions of their checkouts four times a second
and reads those that have changed. A stream holds its connection to the browser and no connection to Postgres.
It has the newest document only, so a browser that reads slowly skips documents. Each connection begins with
the document as it is, so nothing is replayed; a browser that names the document it has (`Last-Event-ID`) is
not sent the same again. A stream ends with the final state, after a limited lifetime, and when the process
ends; the number of streams is limited for a checkout, a merchant and the process.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from starlette.responses import Response

from orchestrator import callback_urls, intents, log
from orchestrator.api.contract.shopper import CheckoutStatus, Decline
from orchestrator.api.long_poll import Poller, TooManyWaiting, disconnected
from orchestrator.api.problems import encoded
from orchestrator.crypto import EncryptionError
from orchestrator.domain.payment_status import payment_status
from orchestrator.domain.shopper_state import ShopperState, shopper_state
from orchestrator.domain.states import ENDED, State
from orchestrator.store import shopper_view

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import Receive, Scope, Send

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

PAYABLE: Final = frozenset({ShopperState.READY, ShopperState.PROCESSING})
"""The states in which a shopper may pay."""

End = Literal["final", "lifetime", "shutdown"]


@dataclass(slots=True, eq=False)
class Stream:
    """One browser that follows a checkout."""

    checkout: UUID
    merchant_id: int
    version: int
    status: CheckoutStatus
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class StatusStreams(Poller[Stream]):
    """The streams of one process, at most `most` at a time."""

    name = "status-streams"
    interval = INTERVAL
    lifetime = LIFETIME
    heartbeat = HEARTBEAT

    def __init__(self, db: Database, encryptor: Encryptor, *, most: int) -> None:
        super().__init__(db, most=most)
        self._encryptor = encryptor

    def check(self, checkout: UUID, merchant_id: int) -> None:
        """Raise `TooManyWaiting` if no further stream may be opened."""
        of_checkout = sum(stream.checkout == checkout for stream in self._clients)
        if of_checkout >= OF_ONE_CHECKOUT:
            raise TooManyWaiting(of_checkout, own=True)
        of_merchant = Counter(stream.merchant_id for stream in self._clients)[merchant_id]
        if of_merchant >= max((self.most + 1) // 2, 1):
            raise TooManyWaiting(of_merchant, own=True)
        if len(self._clients) >= self.most:
            raise TooManyWaiting(len(self._clients), own=False)

    def _end(self, client: Stream) -> None:
        client.changed.set()

    def _note(self, error: Exception) -> None:
        _log.warning("status_streams_not_polled", **log.cause(error))

    async def _ask(self) -> bool:
        followed = {stream.checkout for stream in self._clients}
        versions = await shopper_view.versions(self._db, followed)
        behind = {
            stream.checkout
            for stream in self._clients
            if versions.get(stream.checkout, stream.version) != stream.version
        }
        if not behind:
            return False
        self.queries += 1
        found = await shopper_view.views(self._db, behind)
        made = {checkout: status_of(view, self._encryptor) for checkout, view in found.items()}
        for stream in self._clients:
            view = found.get(stream.checkout)
            if view is None or view.version <= stream.version:
                continue
            stream.version = view.version
            if stream.status != made[stream.checkout]:
                stream.status = made[stream.checkout]
                stream.changed.set()
        return False


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


def status_of(view: ShopperView, encryptor: Encryptor) -> CheckoutStatus:
    """Return what the shopper may see."""
    state = shopper_state(view.state, cancelling=view.cancelling)
    declined = None
    if view.declined_at is not None and state is not ShopperState.COMPLETED:
        declined = Decline(reason=view.decline_reason, at=view.declined_at)
    return CheckoutStatus(
        id=view.id,
        state=state,
        payment_status=payment_status(view.state, view),
        final=view.state in ENDED,
        deadline=view.deadline,
        payment_methods=(view.methods or []) if state in PAYABLE else [],
        declined=declined,
        next_url=_next_url(view, encryptor) if view.state in ENDED else None,
    )


def digest(status: CheckoutStatus) -> str:
    """Return what a document is recognised by: the same content, the same text of 16 characters."""
    return hashlib.sha256(encoded(status)).hexdigest()[:16]


def _next_url(view: ShopperView, encryptor: Encryptor) -> str | None:
    """Return the shop's page that callbacks of the gateway would lead to; None where it has none, as for the
    checkout of a payment without an order.
    """
    try:
        document = encryptor.data_key(view.id, view.data_key).decrypt(view.intent or b"", purpose="intent")
        pages = intents.shop_pages(document)
    except (EncryptionError, KeyError, TypeError) as error:
        _log.info("no_page_of_the_shop", checkout=str(view.id), reason=type(error).__name__)
        return None
    page = pages["success" if view.state is State.COMPLETED else "failure"]
    return callback_urls.with_query(page, checkoutId=str(view.id)) if page else None
