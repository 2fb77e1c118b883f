"""Nothing that we declare on RabbitMQ is refused by RabbitMQ 4.3: every queue is durable or exclusive, and no
limit is one of a whole channel (global QoS). Read on the wire from every client of the broker, with a server
that names itself 4.3.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.test_job_examples import EXAMPLES, orders_in
from tests.acceptance.test_task_examples import QUEUE, consuming
from tests.support.amqp_recorder import CONSUME, PUBLISH, Declared, recording
from tests.support.brokers import rabbitmq_server
from tests.support.world import token, world

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def refused(declared: list[Declared]) -> set[str]:
    return {each.queue for each in declared if not (each.passive or each.durable or each.exclusive)}


def test_rabbitmq_4_3_refuses_none_of_our_declarations(servers: Embedded, database_url: str, tmp_path: Path):
    with rabbitmq_server() as server, recording(server.port, version=b"4.3") as recorded:
        url = f"amqp://guest:guest@127.0.0.1:{recorded.port}//"
        with world(
            servers, database_url, tmp_path, broker_url=url, redis_url=servers.redis_url
        ) as installation:
            added = installation.command("webhooks", "add-task", "shop.events", QUEUE)
            assert added.returncode == 0, added.stderr
            for name in ("sandbox", "api", "worker-1", "scheduler", "deliverer"):
                installation.start(name)
            order = installation.order()
            with consuming(installation, url) as log:
                installation.until(
                    lambda: QUEUE in named(recorded.declared), "the example declares its queue"
                )
                installation.until_state(order, "awaiting_payment")
                installation.pay(order)
                installation.until_state(order, "completed")
                installation.command("webhooks", "resume", added.stdout.split()[1])
                installation.until(
                    lambda: f"handled {order}-2" in log.read_text(), "the example handles the order"
                )
            installation.until(
                lambda: "intents" in named(recorded.declared), "the queue of intents is declared"
            )
            submitted = subprocess.run(
                [sys.executable, EXAMPLES / "submit.py", orders_in(tmp_path, "D-1")],
                env={**os.environ, "BROKER_URL": url, "TOKEN": token("default")},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert submitted.returncode == 0, submitted.stderr
            assert "broker" in installation.command("doctor").stdout
            for name in ("worker-1", "scheduler", "deliverer"):
                assert installation.stop(name, seconds=30) == 0
        assert {"checkouts", "callbacks", "maintenance", "intents", QUEUE} <= named(recorded.declared)
        assert recorded.methods.count(CONSUME) >= 3
        assert recorded.methods.count(PUBLISH) >= 4
        assert all(not version.startswith(b"4.3") for version in recorded.versions), (
            "no such server was at hand"
        )
        assert refused(recorded.declared) == set()
        assert recorded.limits
        assert [limit for limit in recorded.limits if limit[1]] == []


def named(declared: list[Declared]) -> set[str]:
    return {each.queue for each in declared}


def test_the_record_shows_what_is_refused():
    """A client that declares what RabbitMQ 4.3 refuses."""
    with rabbitmq_server() as server, recording(server.port, version=b"4.3") as recorded:
        import amqp

        with amqp.Connection(f"127.0.0.1:{recorded.port}", "guest", "guest") as connection:
            assert connection.server_properties["version"].startswith("4.3")
            channel = connection.channel()
            channel.basic_qos(0, 7, a_global=True)
            channel.queue_declare("transient", durable=False, auto_delete=False)
            channel.queue_declare("own", durable=False, exclusive=True)
            channel.queue_declare("durable", durable=True, auto_delete=False)
        assert refused(recorded.declared) == {"transient"}
        assert recorded.limits == [(7, True)]
