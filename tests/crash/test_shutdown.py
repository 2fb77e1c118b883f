"""Every process ends in time after SIGTERM, whatever hangs, and its status says whether it left
work undone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import termios
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from struct import unpack
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from orchestrator.devkit.client import NoAnswer, Refused
from orchestrator.devkit.local.servers import Embedded
from orchestrator.store.schema import migrate
from tests.support.api import Api
from tests.support.brokers import rabbitmq_server, redis_server
from tests.support.command import Shop, running
from tests.support.machine import until
from tests.support.scene import intent
from tests.support.world import World, frozen, token, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.command import Running

pytestmark = pytest.mark.timeout(400)

BOUND = 30.0
"""Seconds from SIGTERM to the end with the settings that ship: SHUTDOWN_TIMEOUT is 25."""
BRIEF = 5
"""SHUTDOWN_TIMEOUT of the brief processes, whose time-outs of the gateway are a second, too."""
BROKER = 25
"""The same where the broker hangs: a worker in the middle of a read waits ten seconds for it, and then two
seconds at each of its three queues."""
HANGING_FOR = 2.0
"""Seconds in which claims, sweeps and heartbeats come to wait for what hangs."""
PROCESSES = ("api", "worker-1", "scheduler")

brief_and_shipped = pytest.mark.parametrize(
    "brief", [pytest.param(True, id="brief"), pytest.param(False, id="shipped", marks=pytest.mark.slow)]
)


class Request(threading.Thread):
    """An intent that is handed over beside the test; `status` is that of its answer, None where there was
    none.
    """

    def __init__(self, installation: World) -> None:
        super().__init__(daemon=True)
        self._url = installation.api_url
        self.status: int | None = None
        self.start()

    def run(self) -> None:
        api = Api(self._url, token("default"), timeout=60)
        try:
            self.status = 202 if api.create(intent("R-1")).new else 200
        except Refused as refusal:
            self.status = refusal.status
        except NoAnswer:
            pass
        finally:
            api.close()


def ends(processes: dict[str, subprocess.Popen[Any]], *, within: float) -> dict[str, int]:
    """Send SIGTERM to all of them at once; return their statuses, or fail where a process does not end in
    time.
    """
    began = time.monotonic()
    for process in processes.values():
        process.send_signal(signal.SIGTERM)
    statuses = {}
    for name, process in processes.items():
        try:
            statuses[name] = process.wait(max(began + within - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} still runs {within:g} s after SIGTERM")
    return statuses


def stop_all(installation: World, *names: str) -> dict[str, int]:
    """End these processes of an installation, within its SHUTDOWN_TIMEOUT and five seconds."""
    processes = {name: installation.running.pop(name) for name in names}
    within = (
        5.0 + installation.settings["shutdown_timeout"]
        if "shutdown_timeout" in installation.settings
        else BOUND
    )
    try:
        return ends(processes, within=within)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def started(installation: World) -> None:
    """Start every process.

    Until the scheduler runs it holds nothing, and SIGTERM ends it with the status of any program.
    """
    for name in ("sandbox", *PROCESSES):
        installation.start(name)
    published = "SELECT name FROM workers WHERE kind = 'scheduler'"
    installation.until(lambda: installation.sql(published), "the scheduler publishes", seconds=60)


def limits(*, brief: bool, most: int = BRIEF) -> dict[str, Any]:
    return {"short_times": brief, **({"shutdown_timeout": most} if brief else {})}


def in_a_call(installation: World, state: str = "authenticated", **plan: object) -> str:
    """Hand over an order; return its checkout once a worker calls the gateway for it."""
    checkout = installation.order(plan={"delayMs": {"session": 700}, **plan})
    installation.until(
        lambda: installation.sql(
            "SELECT 1 FROM checkouts WHERE id = %s AND state = %s AND lease IS NOT NULL", checkout, state
        ),
        "the call is under way",
    )
    return checkout


def free(installation: World, checkout: str) -> bool:
    """Say whether the worker gave the lease on a checkout back."""
    return bool(installation.sql("SELECT 1 FROM checkouts WHERE id = %s AND lease IS NULL", checkout))


# ── Servers ───────────────────────────────────────────────────────────────────────────────────────────────


@brief_and_shipped
def test_while_postgres_hangs_every_process_ends_in_time(servers: Embedded, tmp_path: Path, brief: bool):
    with Embedded.start(tmp_path / "servers", redis=False, durable=False) as own:
        migrate(own.owner_url)
        with world(servers, own.database_url, tmp_path, **limits(brief=brief)) as installation:
            started(installation)
            installation.until_state(installation.order(), "awaiting_payment", seconds=60)
            checkout = in_a_call(installation)
            with frozen(own.pids["postgres"]):
                request = Request(installation)
                time.sleep(HANGING_FOR)
                statuses = stop_all(installation, *PROCESSES)
                request.join(10)
            # The answer of the gateway could not be written. An intent that was answered 503 is not
            # work that was cut off.
            assert statuses == {"api": 0 if request.status == 503 else 1, "worker-1": 1, "scheduler": 0}
            assert not free(installation, checkout)


@contextmanager
def broker_of(kind: str, place: Path) -> Iterator[tuple[str, int]]:
    """Start a broker; give its URL and process."""
    if kind == "redis":
        with redis_server(place) as redis:
            assert redis.process is not None
            yield f"redis://127.0.0.1:{redis.port}/0", redis.process.pid
    else:
        with rabbitmq_server() as rabbitmq:
            assert rabbitmq.process is not None
            yield rabbitmq.url, rabbitmq.process.pid


@pytest.mark.parametrize(
    ("kind", "brief"),
    [
        pytest.param("redis", True, id="redis-brief"),
        *(pytest.param(kind, False, id=f"{kind}-shipped", marks=pytest.mark.slow) for kind in ("redis", "rabbitmq")),
    ],
)  # fmt: skip
def test_while_the_broker_hangs_every_process_ends_in_order(
    servers: Embedded, database_url: str, tmp_path: Path, *, kind: str, brief: bool
):
    settings = limits(brief=brief, most=BROKER) | (
        {"redis_url": servers.redis_url} if kind == "rabbitmq" else {}
    )
    with (
        broker_of(kind, tmp_path / "broker") as (url, pid),
        world(servers, database_url, tmp_path, broker_url=url, **settings) as installation,
    ):
        started(installation)
        installation.until_state(installation.order(), "awaiting_payment", seconds=60)
        checkout = in_a_call(installation)
        with frozen(pid):
            request = Request(installation)
            time.sleep(HANGING_FOR)
            statuses = stop_all(installation, *PROCESSES)
            request.join(10)
        assert request.status == 202
        assert free(installation, checkout)
        # A hint that cannot be published is not work: its checkout has its due time.
        assert statuses == {"api": 0, "worker-1": 0, "scheduler": 0}


# ── Who calls, and who is called ──────────────────────────────────────────────────────────────────────────


@brief_and_shipped
def test_a_gateway_that_never_answers_and_callers_who_never_read_keep_no_process(
    servers: Embedded, database_url: str, tmp_path: Path, brief: bool
):
    with world(servers, database_url, tmp_path, **limits(brief=brief)) as installation, ExitStack() as held:
        started(installation)
        paid = installation.order(plan={"delayMs": {"capture": 60_000}})
        installation.until_state(paid, "awaiting_payment", seconds=60)
        installation.pay(paid)
        installation.until_state(paid, "completed", seconds=60)
        installation.ask(paid, "capture", amount="all")
        installation.until_operation(paid, "submitted")
        with frozen(installation.running["sandbox"].pid):
            checkout = installation.order()
            installation.until(
                lambda: installation.sql(
                    "SELECT 1 FROM checkouts WHERE id = %s AND lease IS NOT NULL", checkout
                ),
                "its call is under way",
            )
            for caller in (never_reads, never_ends_its_request, says_nothing):
                held.enter_context(
                    caller(("127.0.0.1", installation.api_port), installation.http.headers["Authorization"])
                )
            statuses = stop_all(installation, *PROCESSES)
        assert statuses == {"api": 0, "worker-1": 0, "scheduler": 0}
        assert free(installation, checkout)
        assert free(installation, paid)
        (operation,) = installation.sql("SELECT state FROM money_operations")
        assert operation["state"] == "unknown", "what may have been sent is looked up by the next worker"


@contextmanager
def never_reads(address: tuple[str, int], authorization: str) -> Iterator[None]:
    """Ask for more than the kernel keeps for a caller, and leave it unread."""
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect(address)
        asked = f"GET /openapi.json HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\n\r\n"
        caller.sendall(asked.encode() * 16)
        until(lambda: waiting(caller), "its answer has begun")
        yield


def waiting(caller: socket.socket) -> int:
    """Return how many bytes wait to be read."""
    return int(unpack("i", fcntl.ioctl(caller, termios.FIONREAD, b"\0" * 4))[0])


@contextmanager
def never_ends_its_request(address: tuple[str, int], authorization: str) -> Iterator[None]:
    with socket.create_connection(address) as caller:
        head = f"POST /v1/checkouts HTTP/1.1\r\nHost: x\r\nAuthorization: {authorization}\r\nContent-Type: application/json\r\n"
        caller.sendall(head.encode() + b"Content-Length: 1000\r\n\r\n{")
        yield


@contextmanager
def says_nothing(address: tuple[str, int], _: str) -> Iterator[None]:
    with socket.create_connection(address):
        yield


# ── The log ───────────────────────────────────────────────────────────────────────────────────────────────


class Unread:
    """A pipe that a process writes to, and that is read until it is filled."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        os.set_blocking(self._reading, False)
        while not self._stopped.wait(0.02):
            with suppress(BlockingIOError):
                os.read(self._reading, 65536)

    def fill(self) -> None:
        """Read no more, and fill the pipe to the last byte."""
        self._stopped.set()
        self._reader.join()
        # A description of our own: the process's writes go on to block.
        ours = os.open(f"/proc/self/fd/{self.writing}", os.O_WRONLY | os.O_NONBLOCK)
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(ours, b"x" * size)
        os.close(ours)

    def close(self) -> None:
        self._stopped.set()
        self._reader.join()
        os.close(self._reading)
        os.close(self.writing)


@pytest.fixture(name="unread")
def _unread() -> Iterator[Unread]:
    unread = Unread()
    yield unread
    unread.close()


@pytest.mark.slow
def test_processes_whose_log_is_not_read_end_in_time(
    servers: Embedded, database_url: str, tmp_path: Path, unread: Unread
):
    with world(servers, database_url, tmp_path, short_times=False) as installation:
        installation.start("sandbox")
        for name in PROCESSES:
            installation.start(name, output=unread.writing)
        checkout = installation.order()
        installation.until_state(checkout, "awaiting_payment", seconds=60)
        unread.fill()
        Request(installation)  # whose line in the access log waits, and the moves that follow from it
        time.sleep(HANGING_FOR)
        statuses = stop_all(installation, *PROCESSES)
        # Each has a line to write at its end, and is ended with 1 where it cannot.
        assert statuses == dict.fromkeys(PROCESSES, 1)


# ── All of them ───────────────────────────────────────────────────────────────────────────────────────────


def end(up: Running, *, brief: bool) -> int:
    return ends({"up": up.process}, within=BRIEF + 5 if brief else BOUND)["up"]


def settled_for(*, brief: bool) -> dict[str, str]:
    return {"SHUTDOWN_TIMEOUT": str(BRIEF)} if brief else {}


@pytest.mark.parametrize(
    ("hangs", "brief"),
    [
        pytest.param("postgres", True, id="postgres-brief", marks=pytest.mark.slow),
        *(pytest.param(server, False, id=f"{server}-shipped", marks=pytest.mark.slow) for server in ("postgres", "valkey-server")),
    ],
)  # fmt: skip
def test_up_ends_in_time_though_one_of_its_servers_hangs_and_reports_unfinished_work(
    tmp_path: Path, hangs: str, brief: bool
):
    with running("up", "--port", "0", data_dir=tmp_path / "data", **settled_for(brief=brief)) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            shop.until(shop.create(), "awaiting_payment")
        with frozen(up.servers(hangs)[0].pid):
            time.sleep(HANGING_FOR)
            status = end(up, brief=brief)
        up.read_to_the_end()
        assert status == 1, up.said
        assert {"postgres": "Postgres", "valkey-server": "Redis"}[
            hangs
        ] + " did not shut down in time" in up.said
        assert up.left() == []


@pytest.mark.slow
def test_up_ends_in_order_though_its_gateway_never_answers_and_callers_never_read(tmp_path: Path):
    # Connections to it are made, and never accepted.
    with (
        socket.create_server(("127.0.0.1", 0)) as gateway,
        ExitStack() as held,
        running(
            "up",
            "--port",
            "0",
            data_dir=tmp_path / "data",
            GATEWAY_USERNAME="shop",
            GATEWAY_PASSWORD="secret",
            GATEWAY_URL=f"http://127.0.0.1:{gateway.getsockname()[1]}",
        ) as up,
    ):
        url = httpx.URL(up.until_up()["public_url"])
        with Shop(up, str(url)) as shop:
            shop.create()
            for caller in (never_reads, never_ends_its_request, says_nothing):
                held.enter_context(caller((url.host, url.port), shop.authorization))
            time.sleep(HANGING_FOR)
            status = end(up, brief=False)
        assert status == 0, up.said
        assert up.left() == []


@pytest.mark.slow
def test_up_whose_output_is_not_read_ends_in_time(tmp_path: Path, unread: Unread):
    with running("up", "--port", "0", data_dir=tmp_path / "data", output=unread.writing) as up:
        up.until_ready()
        unread.fill()
        # The process writes a log line about this.
        up.child("scheduler").kill()
        time.sleep(HANGING_FOR)
        assert end(up, brief=False) == 1
        assert up.left() == []
