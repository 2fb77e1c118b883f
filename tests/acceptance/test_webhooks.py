"""Webhooks between processes: orders of a shop whose receiver is that of the documentation, killed
deliverers, and an end within its time.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.scene import intent
from tests.support.world import World, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).resolve().parent.parent.parent / "docs/webhooks.md"


@pytest.fixture
def installation(servers, database_url, tmp_path) -> Iterator[World]:
    started = World(
        servers,
        database_url,
        tmp_path,
        webhook_allowed_networks=["127.0.0.0/8"],
        webhook_total_timeout=2,
        shutdown_timeout=10,
    )
    try:
        started.start_all()
        yield started
    finally:
        started.close()


class Receiver:
    """A receiver in threads; it verifies, and can be set to fail, to be slow, or to fall silent in the
    middle of an answer.
    """

    def __init__(self) -> None:
        self.secret = ""
        self.taken: dict[str, list[int]] = defaultdict(list)
        self.correlations: set[str | None] = set()
        self.repeats = self.unverified = 0
        self.delay, self.refused_share = 0.0, 0.0
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.take(body, {name.lower(): value for name, value in self.headers.items()})
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        if self.delay:
            time.sleep(self.delay)
        with self._lock:
            if random.random() < self.refused_share:
                return random.choice((500, 503))
            try:
                event = Webhook(self.secret).verify(body, headers)
            except Exception:  # noqa: BLE001 - whatever is wrong with it
                self.unverified += 1
                return 401
            if event["id"] in self._seen:
                self.repeats += 1
            else:
                self._seen.add(event["id"])
                self.correlations.add(headers.get("x-correlation-id"))
                self.taken[event["subject"]].append(int(event["sequence"]))
            return 204


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(
        target=receiver.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()


def add(world: World, url: str) -> tuple[str, str]:
    """Add an endpoint by the command line; return its id and its secret."""
    done = world.command("webhooks", "add", url)
    assert done.returncode == 0, done.stderr
    said, secret = done.stdout.split("\n")[:2]
    return said.removeprefix("added "), secret


def everything(world: World) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for row in world.sql("SELECT checkout_id, sequence FROM events ORDER BY checkout_id, sequence"):
        found[str(row["checkout_id"])].append(row["sequence"])
    return found


def test_the_receiver_of_the_documentation_gets_the_events_of_an_order(installation: World):
    world, port = installation, free_port()
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    endpoint, secret = add(world, f"http://127.0.0.1:{port}/webhooks")
    world.start("deliverer")
    environment = {**os.environ, "WEBHOOK_SECRET": secret, "PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as receiver:
        try:
            assert receiver.stdout is not None
            world.until(
                lambda: world.command("webhooks", "test", endpoint).returncode == 0, "a test event is taken"
            )
            assert receiver.stdout.readline().startswith("webhook.test ")
            checkout = world.order()
            world.until_state(checkout, "awaiting_payment")
            world.pay(checkout)
            world.until_state(checkout, "completed")
            world.until(lambda: not world.sql("SELECT 1 FROM delivery_streams"), "everything is delivered")
            told = [receiver.stdout.readline().split() for _ in everything(world)[checkout]]
        finally:
            receiver.kill()
    assert [(line[1], int(line[2])) for line in told] == [
        (checkout, number) for number in range(1, len(told) + 1)
    ]
    assert [told[0][0], told[1][0]] == ["checkout.ready", "checkout.completed"]
    listed = world.command("webhooks", "deliveries", endpoint)
    assert "delivered" in listed.stdout
    assert world.command("doctor", "deliverer").returncode == 0
    world.agree()


@pytest.mark.parametrize(
    ("number", "kills"), [(10, 2), pytest.param(30, 6, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_killed_deliverers_and_a_failing_receiver_lose_nothing_and_keep_the_order(
    installation: World, number, kills
):
    """A deliverer is killed in the middle of sends, again and again; two run at a time."""
    world = installation
    with receiving() as receiver:
        _, receiver.secret = add(world, receiver.url)
        receiver.delay, receiver.refused_share = 0.02, 0.1
        for name in ("deliverer-1", "deliverer-2"):
            world.start(name)
        orders = [world.order() for _ in range(number)]
        for kill in range(kills):
            time.sleep(random.uniform(0.4, 1.2))
            name = f"deliverer-{1 + kill % 2}"
            world.kill(name)
            world.start(name)
        for order in orders:
            world.until_state(order, "awaiting_payment")
            world.pay(order)
        world.until_all("completed")
        receiver.refused_share = 0.0
        # A killed deliverer's leases last for seconds, a refused event's delay too.
        world.until(
            lambda: (
                not world.sql("SELECT 1 FROM events WHERE position IS NULL")
                and not world.sql("SELECT 1 FROM delivery_streams")
                and receiver.taken == everything(world)
            ),
            "every event has come",
            seconds=100,
        )
        assert receiver.unverified == 0
    world.agree()


def test_one_id_leads_from_the_request_of_an_order_to_its_deliveries(installation: World):
    world, number = installation, "cart.7_a-B"
    said = {"X-Correlation-Id": number, "Content-Type": "application/json"}
    with receiving() as receiver:
        _, receiver.secret = add(world, receiver.url)
        world.start("deliverer")
        url = f"{world.api_url}/v1/checkouts"
        refused = world.http.post(url, json={}, headers=said)
        assert (refused.status_code, refused.json()["correlationId"]) == (422, number)
        accepted = world.http.post(url, content=intent("C-1"), headers=said)
        assert (accepted.status_code, accepted.headers["x-correlation-id"]) == (202, number)
        checkout = accepted.json()["id"]
        world.until_state(checkout, "awaiting_payment")
        world.pay(checkout)
        world.until_state(checkout, "completed")
        world.until(lambda: receiver.taken[checkout] == everything(world)[checkout] != [], "all is delivered")
    assert receiver.correlations == {number}
    shown = world.command("checkouts", "show", "--correlation", number, "--json")
    assert json.loads(shown.stdout)["id"] == checkout
    trail = world.sql("SELECT entry FROM audit_entries WHERE checkout_id = %s", checkout)
    assert {json.loads(row["entry"])["correlation"] for row in trail} == {number}
    for name in ("api", "worker-1"):
        lines = [json.loads(line) for line in world.log(name).splitlines()]
        about = [line for line in lines if line.get("correlation_id") == number]
        assert about, name
        # No line about the order has another id.
        assert [line for line in lines if line.get("checkout") == checkout and line not in about] == []
    world.agree()


def test_a_deliverer_that_is_asked_to_end_finishes_what_is_under_way(installation: World):
    world = installation
    with receiving() as receiver:
        _, receiver.secret = add(world, receiver.url)
        receiver.delay = 1.0
        world.settings["webhook_total_timeout"] = 8
        world.start("deliverer")
        orders = [world.order() for _ in range(3)]
        world.until(
            lambda: world.sql("SELECT 1 FROM delivery_streams WHERE lease IS NOT NULL"),
            "deliveries are under way",
        )
        pid = world.running["deliverer"].pid
        assert psutil.pid_exists(pid)
        assert world.stop("deliverer", seconds=15) == 0
        assert not world.sql("SELECT 1 FROM delivery_streams WHERE lease IS NOT NULL"), (
            "no lease is left behind"
        )
        for order in orders:
            world.until_state(order, "awaiting_payment")
        world.start("deliverer")
        world.until(
            lambda: not world.sql("SELECT 1 FROM events WHERE position IS NULL"), "all have positions"
        )
        world.until(lambda: not world.sql("SELECT 1 FROM delivery_streams"), "the rest is delivered")
        assert receiver.repeats == 0
        assert dict(receiver.taken) == everything(world)
    world.agree()
