from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from orchestrator.crypto import Encryptor
from orchestrator.domain.attention import Attention, AttentionCode, PaymentAmount
from orchestrator.domain.states import State, Trigger
from tests.conftest import SECRET_KEY, make_settings
from tests.support.brokers import rabbitmq_server
from tests.support.factories import core, payment
from tests.support.jobs import FAR, Producer
from tests.support.world import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded


@pytest.fixture(params=["redis", "rabbitmq"])
def shop(
    request: pytest.FixtureRequest, servers: Embedded, database_url: str, tmp_path: Path
) -> Iterator[tuple[World, Producer]]:
    """A worker on a broker of each kind, and a merchant that publishes to it."""
    with ExitStack() as stack:
        url = servers.redis_url
        if request.param == "rabbitmq":
            url = stack.enter_context(rabbitmq_server()).url
        settings = {"broker_url": url, "redis_url": servers.redis_url, **FAR}
        installation = stack.enter_context(world(servers, database_url, tmp_path, **settings))
        producer = Producer(url)
        installation.start("worker-1")
        installation.until(producer.declared, "the queue is declared", seconds=90)
        yield installation, producer


SURPLUS = (PaymentAmount(transaction_id="8", amount=13900, currency="DKK"),)


@pytest.fixture
def books(database_url):
    """A database with a paid, a surplus and an open checkout, and the settings that reach it."""
    known = {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]'}

    async def write():
        async with core(database_url, Encryptor(make_settings().secret_keys)) as new_core:
            await new_core.checkout(State.AWAITING_PAYMENT, order_ref="open-1")
            held = await new_core.held(State.AWAITING_PAYMENT, order_ref="paid-1")
            paid = {
                "money": (13900, 5000, 0),
                "attention": Attention(code=AttentionCode.SURPLUS_PAYMENT, payments=SURPLUS),
            }
            seen = (
                payment("7", order_ref="paid-1", captured=5000),
                payment("8", order_ref="paid-1", role="surplus"),
            )
            held = await new_core.advance(held, Trigger.PAYMENT_FOUND, payments=seen, **paid)
            await new_core.release(held)

    asyncio.run(write())
    return known
