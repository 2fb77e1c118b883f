"""Pages that follow what happens: one poller of a process tells all open pages that their topic has changed.

A page has a stream of server-sent events; on `changed` it fetches itself again. All pages of a process cost
one query a second together. The overview is read by the poller and kept, so any number of viewers share it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import Response

from orchestrator import log
from orchestrator.api.long_poll import disconnected
from orchestrator.store.console import overview
from orchestrator.store.readiness import SEEN_WITHIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from orchestrator.store.console.overview import Overview
    from orchestrator.store.database import Database

_log = log.get(__name__)

INTERVAL: Final = 1.0
HEARTBEAT: Final = 15.0
AGAIN: Final = 3.0
"""Seconds after which a change is told a second time: the browser's first redraw may have failed, or been
under way when it came."""
LIFETIME: Final = 600.0
MOST: Final = 200
"""Streams of one process."""
KEPT: Final = 1.5
"""Seconds for which an overview is shown again without a query."""


@dataclass(slots=True, eq=False)
class Stream:
    """One open page."""

    topic: str
    # What changed between the page and its stream would be missed: it is told once in any case.
    new: bool = True
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Live:
    """The open pages of one process; on one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._streams: dict[Stream, None] = {}
        self._marks: Mapping[str, str] = {}
        self._poller: asyncio.Task[None] | None = None
        self._held = overview.Held()
        self._overview: Overview | None = None
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()
        self.stopping = False
        self.queries = 0
        """How many queries the poller has made."""

    def __len__(self) -> int:
        """Return how many pages are open."""
        return len(self._streams)

    def follow(self, topic: str) -> Stream | None:
        """Follow a topic until `leave`; None where too many pages are open."""
        if self.stopping or len(self._streams) >= MOST:
            return None
        stream = Stream(topic)
        self._streams[stream] = None
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="console-live", context=Context())
        return stream

    def leave(self, stream: Stream) -> None:
        """Stop following."""
        self._streams.pop(stream, None)

    async def overview(self) -> Overview:
        """Return the overview, at most a second old; one reader for all that ask."""
        async with self._reading:
            if self._overview is None or time.monotonic() - self._read_at >= KEPT:
                await self._read(overview.NOTHING_FOLLOWED)
            assert self._overview is not None  # noqa: S101 - it was read by the line above
            return self._overview

    async def _read(self, followed: Mapping[str, object]) -> Overview:
        self.queries += 1
        self._overview = read = await overview.read(self._db, self._held, followed)
        self._read_at = time.monotonic()
        return read

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
            await asyncio.sleep(INTERVAL)
            asked = {stream.topic for stream in self._streams}
            try:
                marks = await self._ask(asked)
            except Exception as error:  # noqa: BLE001 - pages stay open, whatever it was
                _log.warning("console_not_polled", **log.cause(error))
                continue
            for stream in self._streams:
                if stream.topic not in asked:
                    continue  # it came while the marks were read: it stays new until its own were
                moved = self._marks.get(stream.topic) not in {None, marks.get(stream.topic)}
                if moved or (stream.new and stream.topic != "overview"):
                    stream.changed.set()
                stream.new = False
            self._marks = marks

    async def _ask(self, topics: set[str]) -> Mapping[str, str]:
        """Return the marks of topics, by one statement."""
        followed = {
            "checkouts": sorted(topic[6:] for topic in topics if topic.startswith("order:")),
            "runs": sorted(topic[4:] for topic in topics if topic.startswith("run:")),
            "decisions": "decisions" in topics,
            "approvals": "approvals" in topics,
        }
        if "overview" not in topics:
            self.queries += 1
            return await overview.marks(self._db, followed)
        async with self._reading:
            read = await self._read(followed)
        return {**read.marks, "overview": str(_content(read))}


def _content(read: Overview) -> tuple[Any, ...]:
    """Return what a person would see change, without ages, which the page draws anew each ten seconds."""
    steady = {name: value for name, value in read.found.items() if name not in {"now", "processes"}}
    seen = [
        (each["name"], each["age"] < SEEN_WITHIN, "circuits" in each["progress"])
        for each in read.found["processes"] or ()
    ]
    return steady, seen, sorted(read.held.items()), int(read.now.timestamp()) // 10


class EventStream(Response):
    """Sends `changed` as often as its topic changes, and comments in between."""

    media_type = "text/event-stream"

    def __init__(self, live: Live, topic: str) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        self._live, self._topic = live, topic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - Starlette's signature
        """Send until the browser leaves, the time is over, or the process ends."""
        stream = self._live.follow(self._topic)
        headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        status = 200 if stream is not None else 503
        await send({"type": "http.response.start", "status": status, "headers": headers})

        async def tell(body: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": more})

        if stream is None:
            await tell(b"", more=False)
            return
        gone = asyncio.create_task(disconnected(receive))
        gone.add_done_callback(lambda _: stream.changed.set())
        try:
            await tell(b": following\n\n")
            again = False
            async with asyncio.timeout(LIFETIME):
                while not gone.done() and not self._live.stopping:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(AGAIN if again else HEARTBEAT):
                            await stream.changed.wait()
                    new = stream.changed.is_set()
                    body = b"event: changed\ndata: \n\n" if new or again else b": \n\n"
                    again = new and self._topic != "overview"  # which is drawn anew every ten seconds
                    stream.changed.clear()
                    if not gone.done() and not self._live.stopping:
                        await tell(body)
        except TimeoutError:
            pass  # the browser connects again
        finally:
            self._live.leave(stream)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
        await tell(b"", more=False)
