"""An endpoint that was down for a day is caught up with by itself, at the pace that it bears."""

from __future__ import annotations

import asyncio
import time

import pytest

from orchestrator.store import webhooks

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(600)]

HOURS, AN_HOUR = 24, 160
"""Events of an hour, each of a checkout of its own."""
RATE, BURST = 150.0, 30.0
AT_ONCE, WORKS = 6, 0.03


def bears_a_rate():
    """Return what answers beyond a rate with 429."""
    tokens, at = BURST, time.monotonic()

    def answer(_: object) -> int:
        nonlocal tokens, at
        now = time.monotonic()
        tokens, at = min(tokens + (now - at) * RATE, BURST), now
        if tokens < 1:
            return 429
        tokens -= 1
        return 204

    return answer


def bears_so_many_at_a_time():
    """Return what takes its time for each, and answers with 503 beyond a number of them."""
    working = 0

    async def answer(_: object) -> int:
        nonlocal working
        if working >= AT_ONCE:
            return 503
        working += 1
        try:
            await asyncio.sleep(WORKS)
        finally:
            working -= 1
        return 204

    return answer


@pytest.mark.parametrize("bearing", [bears_a_rate, bears_so_many_at_a_time])
async def test_an_endpoint_that_was_down_for_a_day_gets_everything_and_refuses_hardly_any_of_it(
    shop, bearing
):
    endpoint = await shop.endpoint()
    receiver = shop.receiver
    receiver.answer = lambda _: 503
    made = []
    async with shop.delivering() as deliverer:
        for _ in range(HOURS):
            failed = deliverer.failed
            made += await shop.checkouts(AN_HOUR)
            await shop.later(3600)
            deliverer.wake(webhooks.CHANGED)
            await receiver.until(lambda failed=failed: deliverer.failed > failed)
            await receiver.until(lambda: deliverer.in_flight == 0)
        assert (await shop.webhook(endpoint)).opened >= HOURS - 1
        tried = len(receiver.received)
        assert tried < 4 * HOURS, "one probe at a time, once its circuit is open"
        receiver.answer = bearing()
        await shop.later(400)
        await shop.drained(seconds=300)
    since = receiver.received[tried:]
    refused = [delivery for delivery in since if delivery.status in {429, 503}]
    print(f"{len(refused)} of {len(since)} requests were refused")
    assert len(refused) < len(since) / 100
    assert receiver.by_checkout() == {str(checkout): [1] for checkout in made}
    assert (await shop.webhook(endpoint)).status == "active"
