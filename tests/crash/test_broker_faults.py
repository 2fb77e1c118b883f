"""Whatever happens to the broker, workers and scheduler go on, and reconnect to it; no message and no command
of another program ends them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import amqp
import pytest
import redis
from celery import Celery

from tests.support.brokers import RabbitMQServer, Way, rabbitmq_server, redis_server
from tests.support.world import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

# Processes are started, and brokers restarted, while other tests run beside these.
pytestmark = pytest.mark.timeout(400)

PROCESSES = ("sandbox", "api", "scheduler", "worker-1")


@contextmanager
def carried_by(
    servers: Embedded, database_url: str, place: Path, broker_url: str, **settings: object
) -> Iterator[World]:
    """Start every process on a broker of our own."""
    with world(servers, database_url, place, broker_url=broker_url, **settings) as installation:
        for name in PROCESSES:
            installation.start(name)
        carries(installation, seconds=90)
        # It gives a heartbeat once it has published: then all links to the broker are there.
        installation.until(
            lambda: installation.sql("SELECT 1 FROM workers WHERE kind = 'scheduler'"),
            "the scheduler publishes",
            seconds=60,
        )
        yield installation


def carries(installation: World, *, seconds: float = 60) -> None:
    installation.until_state(installation.order(), "awaiting_payment", seconds=seconds)


def lines(installation: World, name: str, event: str, **fields: str) -> list[dict[str, Any]]:
    found = []
    for line in installation.log(name).splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            if record["event"] == event and fields.items() <= record.items():
                found.append(record)
    return found


def heard_of_once(installation: World) -> None:
    """Each link to the broker was logged once when it broke and once when it came back, and no trace was
    printed.
    """
    for name, link in (("worker-1", "consumer"), ("scheduler", "scheduler")):
        installation.until(
            lambda name=name, link=link: lines(installation, name, "broker_back", link=link),
            f"{name} is back",
            seconds=60,
        )
        assert len(lines(installation, name, "broker_away", link=link)) == 1, installation.log(name)
        assert len(lines(installation, name, "broker_back", link=link)) == 1, installation.log(name)
        assert "Traceback" not in installation.log(name), installation.log(name)
        assert installation.running[name].poll() is None


def hints_flow(installation: World) -> None:
    """Sweeps reach the worker by the broker again."""
    before = installation.sql("SELECT (progress->>'hints')::int AS hints FROM workers WHERE kind = 'worker'")

    def more() -> bool:
        installation.order()
        rows = installation.sql(
            "SELECT (progress->>'hints')::int AS hints FROM workers WHERE kind = 'worker'"
        )
        return bool(rows) and rows[0]["hints"] > (before[0]["hints"] if before else 0)

    installation.until(more, "hints reach the worker", seconds=90)


# ── Redis ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_redis_that_became_a_replica_is_left_for_its_successor(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with redis_server(tmp_path / "old") as old, redis_server(tmp_path / "new") as new:
        way = Way(old.port)
        url = f"redis://127.0.0.1:{way.port}/0"
        with carried_by(servers, database_url, tmp_path, url, redis_url=servers.redis_url) as installation:
            with redis.Redis(port=old.port) as client:
                # It goes on, read-only, and its connections stay open.
                client.execute_command("REPLICAOF", "127.0.0.1", str(new.port))
            installation.until(
                lambda: lines(installation, "worker-1", "broker_away", link="consumer"),
                "the worker reports it",
            )
            installation.until(
                lambda: lines(installation, "scheduler", "broker_away"), "the scheduler reports it"
            )
            carries(installation)
            way.target = new.port
            with redis.Redis(port=new.port) as client:
                client.execute_command("REPLICAOF", "NO", "ONE")
            heard_of_once(installation)
            hints_flow(installation)
            assert installation.stop("worker-1", seconds=30) == 0
            assert installation.stop("scheduler") == 0
        way.close()


GARBAGE = [
    b"\x00\xff\xfe not JSON",
    b"",
    b"[1, 2]",
    b'"text"',
    b"null",
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"9" * 10_000,
    b"{}",
    b'{"body": "x", "properties": {}}',
]


def envelope(body: object, **changes: object) -> bytes:
    """Return a message as kombu's Redis transport frames it."""
    return json.dumps(
        {
            "body": body if isinstance(body, str) else json.dumps(body),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"task": "orchestrator.process", "id": uuid4().hex, "lang": "py"},
            "properties": {
                "delivery_tag": uuid4().hex,
                "delivery_info": {"exchange": "", "routing_key": "checkouts"},
            },
            **changes,
        }
    ).encode()


HEAD = {"task": "orchestrator.process", "id": "1", "lang": "py"}
FORGED = [
    envelope([[["no uuid"]], {}, {}]),
    envelope([[[1, 2, None]], {}, {}]),
    envelope([["text"], {}, {}]),
    envelope([[{}], {}, {}]),
    envelope([[], {"ids": []}, {}]),
    envelope([[[], []], {}, {}]),
    envelope([[[str(uuid4())] * 5000], {}, {}]),
    envelope("not JSON"),
    envelope("[" * 100_000),
    envelope({"args": [[]], "kwargs": {}}),
    envelope([[[]], {}, {"chain": [{"task": "orchestrator.seal"}], "chord": {}}]),
    envelope([[[]], {}, {}], headers={**HEAD, "task": "orchestrator.unknown"}),
    envelope([[[]], {}, {}], headers={**HEAD, "task": ["orchestrator.process"]}),
    envelope([[[]], {}, {}], headers=None),
    envelope([[[]], {}, {}], headers={**HEAD, "timelimit": "soon", "retries": "many"}),
    envelope([[[]], {}, {}], headers={**HEAD, "expires": "1999-01-01T00:00:00+00:00", "eta": "not a time"}),
    envelope([[[]], {}, {}], **{"content-type": "application/x-python-serialize"}),
    envelope([[[]], {}, {}], **{"content-encoding": "no-such-encoding"}),
    envelope([["x"], {}, {}], headers={**HEAD, "task": "orchestrator.sweep"}),
]


def test_no_message_on_redis_stops_a_worker(servers: Embedded, database_url: str, tmp_path: Path):
    with redis_server(tmp_path / "redis") as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        with carried_by(servers, database_url, tmp_path, url, redis_url=servers.redis_url) as installation:
            with redis.Redis(port=server.port) as client:
                for queue in ("checkouts", "callbacks", "maintenance"):
                    client.lpush(f"orchestrator:{queue}", *GARBAGE, *FORGED)
                installation.until(lambda: not client.llen("orchestrator:checkouts"), "they are read")
            carries(installation)
            hints_flow(installation)
            (told,) = lines(installation, "worker-1", "messages_dropped")
            assert told["count"] >= 1
            assert not lines(installation, "worker-1", "broker_away"), "no message is a fault of the broker"
            assert "Traceback" not in installation.log("worker-1")
            installation.until(
                lambda: installation.sql(
                    "SELECT 1 FROM workers WHERE (progress->>'messagesDropped')::int >= %s",
                    3 * (len(GARBAGE) + len(FORGED)) - 9,
                ),
                "the heartbeat counts them",
            )
            # Remote control: access to the broker alone shuts no worker down.
            foreign = Celery(broker=url)
            foreign.conf.broker_transport_options = {"global_keyprefix": "orchestrator:"}
            foreign.control.broadcast("shutdown")
            Celery(broker=url).control.broadcast("shutdown")
            time.sleep(2)
            carries(installation)
            assert installation.stop("worker-1", seconds=30) == 0


# ── RabbitMQ ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQServer]:
    with rabbitmq_server() as server:
        yield server


@pytest.mark.slow
def test_connections_that_are_cut_and_a_broker_that_is_restarted_end_neither_worker_nor_scheduler(
    rabbitmq: RabbitMQServer, servers: Embedded, database_url: str, tmp_path: Path
):
    way = Way(rabbitmq.port)
    url = f"amqp://guest:guest@127.0.0.1:{way.port}//"
    with carried_by(servers, database_url, tmp_path, url, redis_url=servers.redis_url) as installation:
        # The broker keeps the messages of these connections: it has not detected that they are closed.
        way.cut()
        heard_of_once(installation)
        hints_flow(installation)
        rabbitmq.ctl("stop_app")
        installation.until(
            lambda: len(lines(installation, "scheduler", "broker_away")) == 2, "the scheduler reports it"
        )
        carries(installation)
        time.sleep(3)
        rabbitmq.ctl("start_app")
        for name, link in (("worker-1", "consumer"), ("scheduler", "scheduler")):
            installation.until(
                lambda name=name, link=link: len(lines(installation, name, "broker_back", link=link)) == 2,
                f"{name} is back",
                seconds=90,
            )
            assert "Traceback" not in installation.log(name), installation.log(name)
        hints_flow(installation)
        assert Counter(installation.stop(name, seconds=30) for name in ("worker-1", "scheduler")) == {0: 2}
    way.close()


def test_no_message_on_rabbitmq_stops_a_worker(
    rabbitmq: RabbitMQServer, servers: Embedded, database_url: str, tmp_path: Path
):
    with carried_by(
        servers, database_url, tmp_path, rabbitmq.url, redis_url=servers.redis_url
    ) as installation:
        with rabbitmq.connection() as connection:
            channel = connection.channel()
            sent = 0
            for queue in ("checkouts", "callbacks", "maintenance"):
                for body in GARBAGE:
                    for options in ({}, {"content_type": "application/json"}, {"content_type": "image/png"}):
                        channel.basic_publish(amqp.Message(body, **options), routing_key=queue)
                        headers = {"application_headers": dict(HEAD), "content_encoding": "utf-8"}
                        channel.basic_publish(amqp.Message(body, **options, **headers), routing_key=queue)
                        sent += 2
                for framed in FORGED:
                    message = json.loads(framed)
                    body = message["body"].encode()
                    channel.basic_publish(
                        amqp.Message(
                            body,
                            content_type=message["content-type"],
                            content_encoding=message["content-encoding"],
                            application_headers=message["headers"] or {},
                        ),
                        routing_key=queue,
                    )
                    sent += 1
        carries(installation)
        hints_flow(installation)
        assert lines(installation, "worker-1", "messages_dropped")
        assert not lines(installation, "worker-1", "broker_away"), installation.log("worker-1")
        assert "Traceback" not in installation.log("worker-1")
        assert installation.stop("worker-1", seconds=30) == 0


# ── The scheduler's clock ─────────────────────────────────────────────────────────────────────────────────

STEPS = """
import datetime, sys, threading, time
import orchestrator.store.database
from orchestrator import log
from orchestrator.settings import load

step = 0.0
real_time, real_datetime = time.time, datetime.datetime

class Stepped(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.now(tz) + datetime.timedelta(seconds=step)

    @classmethod
    def utcnow(cls):
        return real_datetime.utcnow() + datetime.timedelta(seconds=step)

time.time = lambda: real_time() + step
datetime.datetime = Stepped

def clock():
    global step
    sys.stdin.readline()
    step = HOURS * 3600.0

threading.Thread(target=clock, daemon=True).start()
from orchestrator.worker import run_scheduler

log.configure(style="json")
sys.exit(run_scheduler(load()))
"""


@pytest.mark.parametrize("hours", [pytest.param(-3, marks=pytest.mark.slow), 5])
def test_a_step_of_the_clock_neither_stops_the_ticks_nor_hurries_them(
    servers: Embedded, database_url: str, tmp_path: Path, hours: int
):
    with (
        redis_server(tmp_path / "redis") as server,
        world(
            servers, database_url, tmp_path, broker_url=f"redis://127.0.0.1:{server.port}/0"
        ) as installation,
        redis.Redis(port=server.port) as client,
    ):
        process = subprocess.Popen(
            [sys.executable, "-c", STEPS.replace("HOURS", str(hours))],
            env=installation.environment(),
            cwd=installation.place,
            stdin=subprocess.PIPE,
        )
        try:
            installation.until(lambda: client.delete("orchestrator:maintenance"), "it ticks", seconds=60)
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
            time.sleep(1)
            # At least one of three messages for each check; a tick is a fifth of a second.
            ticks, until = 0, time.monotonic() + 5
            while time.monotonic() < until:
                time.sleep(0.05)
                with client.pipeline() as pipe:
                    found, _ = (
                        pipe.llen("orchestrator:maintenance").delete("orchestrator:maintenance").execute()
                    )
                ticks += found
            assert 3 <= ticks <= 40
            assert process.poll() is None
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            process.stdin.close()


def test_while_no_worker_runs_sweeps_do_not_pile_up(servers: Embedded, database_url: str, tmp_path: Path):
    with (
        redis_server(tmp_path / "redis") as server,
        world(
            servers, database_url, tmp_path, broker_url=f"redis://127.0.0.1:{server.port}/0"
        ) as installation,
        redis.Redis(port=server.port) as client,
    ):
        installation.start("scheduler")
        installation.until(lambda: client.llen("orchestrator:maintenance") >= 5, "some wait")
        time.sleep(3)
        assert client.llen("orchestrator:maintenance") <= 6
        assert installation.stop("scheduler") == 0
