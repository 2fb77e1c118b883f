from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.brokers import rabbitmq_server
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
