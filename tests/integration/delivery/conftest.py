from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.delivery import signature
from orchestrator.delivery.addresses import AddressPolicy, WebhookUrlRejected
from orchestrator.delivery.deliverer import Deliverer
from orchestrator.delivery.sender import Sender
from orchestrator.delivery.task_sender import TaskSender
from orchestrator.delivery.task_target import broker_of
from orchestrator.domain import events as facts
from orchestrator.store import events, webhooks
from tests.conftest import make_settings
from tests.support.receivers import Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from orchestrator.store.webhooks import Webhook
    from tests.support.factories import Core

LOCAL = AddressPolicy([ip_network("127.0.0.0/8")])


@dataclass
class Shop:
    """A merchant's endpoints and our deliverers: events that are written and placed, endpoints, and
    deliverers.
    """

    core: Core
    receiver: Receiver
    secrets: dict[UUID, bytes] = field(default_factory=dict)

    async def endpoint(self, receiver: Receiver | None = None, **changes: Any) -> Webhook:
        receiver, secret = receiver or self.receiver, signature.new_secret()
        given = {
            "merchant_id": 1,
            "url": receiver.url(),
            "description": "",
            "kinds": None,
            "content": "thin",
            "secret": secret,
            **changes,
        }
        endpoint = await webhooks.add(self.core.db, self.core.encryptor, **given)
        receiver.secrets.append(signature.written(secret))
        self.secrets[endpoint.id] = secret
        return endpoint

    async def task(self, broker: str, *, queue: str, **changes: Any) -> Webhook:
        """Add an endpoint that is a Celery task; `broker`: empty for our own."""
        given = {
            "merchant_id": 1,
            "url": broker and self._shown(broker),
            "task": "shop.events",
            "queue": queue,
            "description": "",
            "kinds": None,
            "content": "thin",
            "secret": broker.encode(),
            **changes,
        }
        return await webhooks.add(self.core.db, self.core.encryptor, **given)

    @staticmethod
    def _shown(broker: str) -> str:
        try:
            return broker_of(broker, LOCAL).shown
        except WebhookUrlRejected:
            return broker  # a row that was written past the checks

    async def checkout(self, events_of_it: int = 1) -> UUID:
        """Write a checkout with so many events, and give them their positions."""
        held = await self.core.held()
        for number in range(events_of_it):
            fact = facts.ready(methods=number + 1)
            held = await self.core.advance(held, events=(fact,))
        await self.core.release(held)
        await self.place()
        return held.id

    async def checkouts(self, number: int, events_of_each: int = 1) -> list[UUID]:
        return list(await asyncio.gather(*(self.checkout(events_of_each) for _ in range(number))))

    async def place(self) -> None:
        while (placed := await events.place(self.core.db)) is None or placed:  # noqa: ASYNC110 - another may be at it
            await asyncio.sleep(0.002)

    async def later(self, seconds: float) -> None:
        """Move Postgres's clock on by so many seconds."""
        await self.core.do("UPDATE clock_skew SET seconds = seconds + :seconds", seconds=round(seconds))

    async def webhook(self, endpoint: Webhook) -> Webhook:
        found = await webhooks.by_id(self.core.db, endpoint.id, merchant_id=1)
        assert found is not None
        return found

    async def streams(self) -> int:
        (number,) = await self.core.all("SELECT count(*) FROM delivery_streams")
        return number

    @asynccontextmanager
    async def delivering(
        self,
        *,
        sender: Sender | None = None,
        tasks: TaskSender | None = None,
        told: bool = False,
        **changes: Any,
    ) -> AsyncIterator[Deliverer]:
        """Run a deliverer."""
        settings = make_settings(**{"webhook_total_timeout": 3.0, "shutdown_timeout": 6.0, **changes})
        own = sender or Sender(LOCAL, connect_timeout=2.0, total_timeout=settings.webhook_total_timeout)
        brokers = tasks or TaskSender(LOCAL, own=None, connect_timeout=2.0, total_timeout=3.0)
        deliverer = Deliverer(settings, self.core.db, self.core.encryptor, own, tasks=brokers)
        deliverer.notified = told
        ending = asyncio.Event()
        running = asyncio.create_task(deliverer.run(ending))
        try:
            yield deliverer
        finally:
            ending.set()
            await running
            await own.close()
            await brokers.close()

    async def drained(self, *, seconds: float = 60.0) -> None:
        async with asyncio.timeout(seconds):
            while await self.streams():  # noqa: ASYNC110 - the database is asked
                await asyncio.sleep(0.01)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as started:
        yield started


@pytest.fixture
async def shop(core: Core, receiver: Receiver) -> Shop:
    return Shop(core, receiver)
