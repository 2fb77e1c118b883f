"""The same deliveries by different HTTP clients: the sender of the product, aiohttp alone, httpx, and httpx
over aiohttp.

One after the other in one process on one event loop (uvloop), as many at a time, to an endpoint in a process
of its own; what counts is the CPU time of this process for a delivery, signature included. httpx is not made
to check addresses, which is in its favour.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import httpx
import httpx_aiohttp
import uvloop

from orchestrator.delivery import signature
from orchestrator.delivery.addresses import AddressPolicy
from orchestrator.delivery.sender import KEPT, Sender
from orchestrator.domain.ids import uuid7
from tests.benchmarks.ground import BenchmarkFailed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.benchmarks.deliveries import Length
    from tests.benchmarks.ground import Ground
    from tests.benchmarks.receiver import Receiver

AT_ONCE: Final = 16
BODY: Final = b'{"specversion":"1.0",' + b'"data":"%b"}' % (b"x" * 700)
AGENT: Final = "checkout-orchestrator/1"
WARM_UP: Final = 100


async def compare(_: Ground, receiver: Receiver, length: Length) -> dict[str, Any]:
    """Return the CPU milliseconds for a delivery of each client: the median of the rounds."""
    receiver.reset(0)
    url = receiver.url(0)
    # The loop of the product.
    found = await asyncio.to_thread(uvloop.run, _measured(url, length))
    medians = {name: round(statistics.median(values), 3) for name, values in found.items()}
    return {"deliveries": length.clients, "at_once": AT_ONCE, "cpu_ms": medians, "rounds": found}


async def _measured(url: str, length: Length) -> dict[str, list[float]]:
    from ipaddress import ip_network

    sender = Sender(AddressPolicy([ip_network("127.0.0.0/8")]), connect_timeout=5.0, total_timeout=15.0)
    options = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    # Where this is not installed httpcore looks for it at each call, which takes longer than all else.
    sys.modules.setdefault("sniffio", SimpleNamespace(current_async_library=lambda: "asyncio"))  # type: ignore[arg-type]
    found: dict[str, list[float]] = {"sender": [], "aiohttp": [], "httpx": [], "httpx_aiohttp": []}
    async with (
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
        httpx.AsyncClient(trust_env=False, limits=options, timeout=15.0) as client,
        httpx_aiohttp.HttpxAiohttpClient(trust_env=False, limits=options, timeout=15.0) as over_aiohttp,
    ):

        async def by_sender(headers: Mapping[str, str]) -> int | None:
            return (await sender.send(url, headers, BODY)).status

        async def by_aiohttp(headers: Mapping[str, str]) -> int:
            async with session.post(url, headers=headers, data=BODY, allow_redirects=False) as answer:
                await answer.content.read(KEPT)
                return answer.status

        async def by_httpx(headers: Mapping[str, str]) -> int:
            return await streamed(client, headers)

        async def by_httpx_aiohttp(headers: Mapping[str, str]) -> int:
            return await streamed(over_aiohttp, headers)

        async def streamed(with_: httpx.AsyncClient, headers: Mapping[str, str]) -> int:
            async with with_.stream("POST", url, headers=headers, content=BODY) as answer:
                async for _ in answer.aiter_raw(KEPT):
                    break
                return answer.status_code

        ways = {
            "sender": by_sender,
            "aiohttp": by_aiohttp,
            "httpx": by_httpx,
            "httpx_aiohttp": by_httpx_aiohttp,
        }
        for send in ways.values():
            await _sent(send, WARM_UP)
        for turn in range(length.rounds):
            for name, send in list(ways.items())[:: 1 if turn % 2 else -1]:
                began = time.thread_time()
                await _sent(send, length.clients)
                found[name].append(round((time.thread_time() - began) * 1000 / length.clients, 4))
    await sender.close()
    return found


async def _sent(send: Any, number: int) -> None:
    left = iter(range(number))

    async def one_by_one() -> None:
        for _ in left:
            event = f"{uuid7()}-1"
            signed = signature.headers(event, BODY, [b"s" * 32], at=int(time.time()))
            headers = {"content-type": "application/cloudevents+json", "user-agent": AGENT, **signed}
            if await send(headers) != 204:
                raise BenchmarkFailed("a delivery was not taken")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(one_by_one())
