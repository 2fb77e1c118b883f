"""The process that sends events to merchants' endpoints: one loop, ended by SIGTERM within its time, with a
heartbeat.

It needs Postgres and the secret keys, and our broker only where endpoints have queues on it. Several are
harmless: each stream has one holder at a time.
"""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import uvloop

from orchestrator import gc_tuning, log
from orchestrator.crypto import Encryptor
from orchestrator.delivery.addresses import AddressPolicy
from orchestrator.delivery.deliverer import Deliverer
from orchestrator.delivery.sender import Sender
from orchestrator.delivery.task_sender import OwnBroker, TaskSender
from orchestrator.shutdown import FAILED, end_within
from orchestrator.store.database import Database
from orchestrator.store.heartbeats import BETWEEN, HEARTBEAT, Heart, written
from orchestrator.store.notifications import DELIVERIES, Listener

if TYPE_CHECKING:
    from orchestrator.settings import Settings

_log = log.get(__name__)


def run_deliverer(settings: Settings) -> int:
    """Deliver until SIGTERM or SIGINT; return the exit status: 0 where nothing was cut off."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return 0 if runner.run(_run(settings)) else FAILED


async def _run(settings: Settings) -> bool:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_end() -> None:
        if not ending.is_set():
            end_within(settings.shutdown_timeout, "deliverer")
            ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end)
    url, prepared = settings.need("database_url"), settings.database_prepared_statements
    policy = AddressPolicy(settings.webhook_ranges)
    sender = Sender(
        policy, connect_timeout=settings.webhook_connect_timeout, total_timeout=settings.webhook_total_timeout
    )
    tasks = TaskSender(
        policy,
        own=OwnBroker(settings.broker, settings.webhook_queue_limit) if settings.broker_url else None,
        connect_timeout=settings.webhook_connect_timeout,
        total_timeout=settings.webhook_total_timeout,
    )
    async with Database(
        url,
        pool_size=settings.database_pool + 1,  # one is kept for the lists
        name="orchestrator-deliverer",
        timeout=settings.database_timeout,
        prepared=prepared,
    ) as db:
        deliverer = Deliverer(settings, db, Encryptor(settings.secret_keys), sender, tasks=tasks)
        listener = Listener(url, DELIVERIES, deliverer.wake, prepared=prepared)
        beside = [
            asyncio.create_task(work)
            for work in (listener.run(), _watch(listener, deliverer), _beat(db, deliverer))
        ]
        gc_tuning.settle()
        _log.info("deliverer_started", networks=len(settings.webhook_ranges))
        try:
            return await deliverer.run(ending)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await sender.close()
            await tasks.close()


async def _watch(listener: Listener, deliverer: Deliverer) -> None:
    """Have the deliverer check often while no notifications arrive."""
    while True:
        deliverer.notified = listener.listening
        await asyncio.sleep(BETWEEN / 4)


async def _beat(db: Database, deliverer: Deliverer) -> None:
    heart = Heart(db, "deliverer")
    await heart.forget()
    try:
        while True:
            progress = {
                "delivered": deliverer.delivered,
                "failed": deliverer.failed,
                "inFlight": deliverer.in_flight,
                "listening": deliverer.notified,
                **written(deliverer.writes),
            }
            began = time.monotonic()
            well = await heart.beat(progress)
            await asyncio.sleep(max((HEARTBEAT if well else BETWEEN) - (time.monotonic() - began), 0.1))
    finally:
        await heart.end()
