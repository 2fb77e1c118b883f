"""What a gateway's answers cost the shared event loop: counted for that gateway, and bounded for each answer.

An ordinary answer costs a few hundred microseconds, and nothing is counted up to `FREE`. An answer that costs
more (a flood of tiny chunks, of interim answers, a byte at a time) is dropped at `MOST`, and no call is made
to its gateway until its cost is no more than `SHARE` of the time. The processor time of this thread is what
counts beyond that: how busy the machine is makes no difference.
"""

from __future__ import annotations

import functools
from time import monotonic, thread_time
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

FREE: Final = 0.001
"""Seconds that an answer may cost."""
MOST: Final = 0.01
"""Seconds after which it is given up, and so many more as its size is worth."""
BEYOND: Final = 0.02
"""Seconds that an answer is charged with beyond that at most: the garbage collector may have run meanwhile,
or the machine was paused."""
EACH_BYTE: Final = 0.00000005
"""Seconds that a byte is worth: networks cut what is large into pieces of a kilobyte or more."""
EACH: Final = 0.00002
"""Seconds that each piece costs beside its parsing: a round of the event loop."""
PIECE: Final = 4_096
"""Bytes that are parsed at once, before it is known what they cost."""
SHARE: Final = 0.0025
"""Of the loop's time, what the answers of one gateway may cost beyond that."""
BURST: Final = 0.05
"""Seconds that they may cost at once after costing nothing for long: one answer stops no calls."""
LONGEST: Final = 30.0
"""Seconds for which no call is made to a gateway because of it, at most."""


class CostLimit:
    """What one gateway's answers may cost, by this process's own clock."""

    def __init__(self) -> None:
        self._paid_at = float("-inf")

    def spend(self, seconds: float) -> None:
        """Note what an answer cost beyond what is free."""
        now = monotonic()
        self._paid_at = min(max(self._paid_at, now - BURST / SHARE) + seconds / SHARE, now + LONGEST)

    def wait(self) -> float:
        """Return the seconds for which no call is to be made."""
        return max(self._paid_at - monotonic(), 0.0)


class TooCostlyError(aiohttp.ClientPayloadError):
    """Receiving an answer took more of the processor than any answer is worth."""


class Metered(ResponseHandler):
    """The protocol of a connection; it passes to `spend` what an answer costs beyond `FREE`."""

    def __init__(self, spend: Callable[[float], None], *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._spend = spend
        self._cost, self._most = 0.0, MOST

    def set_response_params(self, **params: Any) -> None:
        self._cost, self._most = 0.0, MOST
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take what arrived, or was kept while reading paused; nothing of an answer that was given up."""
        if self.exception() is not None:
            return
        before, size = self._cost, len(data)
        if not before and size <= PIECE:
            # An ordinary answer, whole: it hardly costs more than is free, and reading the clock costs, too.
            self._cost, self._most = EACH, self._most + size * EACH_BYTE
            super().data_received(data)
            return
        # By the wall clock, which is read ten times as fast, until more than is free may have been spent.
        clock = monotonic if before < FREE else thread_time
        began = clock()
        start, piece = 0, PIECE
        while True:
            # As much at once as the pieces before were worth it.
            part = data[start : start + piece]
            self._most += len(part) * EACH_BYTE
            super().data_received(part)
            start, piece = start + len(part), piece * 2
            spent = before + clock() - began
            if clock is monotonic and spent > FREE:
                before = spent = FREE
                clock = thread_time
                began = clock()
            if start >= size or spent > self._most or self.exception() is not None:
                break
        self._cost = spent + EACH
        if self._cost > FREE:
            self._spend(min(self._cost, self._most + BEYOND) - max(before, FREE))
        if start < size or self._cost > self._most:
            self._end_early()

    def _end_early(self) -> None:
        """Take no more of it. A call whose answer is not whole closes the connection."""
        payload, transport = self._payload, self.transport
        body = None if payload is aiohttp.EMPTY_PAYLOAD else payload
        if body is not None and body.is_eof():
            if transport is not None:
                transport.close()  # it is whole; what came behind it belongs to no request
            return
        if self.exception() is not None:
            return
        error = TooCostlyError()
        self._buffer.clear()
        if transport is not None:
            transport.pause_reading()
        self.set_exception(error)
        if body is not None:
            body.set_exception(error)


class Connector(aiohttp.TCPConnector):
    """The connections to one gateway, each of which passes the cost of its answers to `spend`."""

    def __init__(self, spend: Callable[[float], None], **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(Metered, spend, loop=self._loop)  # type: ignore[assignment]  # a subclass
