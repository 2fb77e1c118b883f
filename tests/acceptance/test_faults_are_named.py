"""Health reports every fault of the infrastructure correctly, with real servers and real processes.

While a fault lasts, `/readyz` and `orchestrator doctor` name its cause; `SOON` after its end both say that
all is well, and an order is paid and completed. `FAULTS` is the table of all of them: what causes a fault
and ends it, and what has to be said.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import psycopg
import pytest
import redis

from orchestrator.settings import Settings
from orchestrator.store import readiness, schema
from tests.integration.gateway.tls import certified
from tests.support.brokers import Server, Way, answers, rabbitmq_server, redis_server, until
from tests.support.postgres import PGBOUNCER, Cluster, Proxy, free_port, pgbouncer, through
from tests.support.world import SHORT_TIMES, World, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

SOON = readiness.OVER_WITHIN
"""Seconds from the end of a fault to the moment at which readiness and `doctor` say that all is well."""
NAMED = 90.0
"""Seconds in which a fault has to be named."""
AS_SHIPPED = {name: Settings.model_fields[name].default for name in SHORT_TIMES}

pytestmark = pytest.mark.timeout(400)


# ── Installations ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Stand:
    """An installation of all processes, on servers that a test may break; `servers` are those that this
    installation has.
    """

    world: World
    cluster: Cluster
    database: Proxy
    servers: SimpleNamespace

    def health(self) -> tuple[int, str]:
        """Return the status of readiness, and what it says is wrong."""
        try:
            answer = self.world.http.get(f"{self.world.api_url}/readyz")
        except httpx.HTTPError as error:
            return 0, repr(error)
        told = answer.json()
        assert (told["status"] == "ready") == (not told["problems"])
        return answer.status_code, "; ".join(told["problems"])

    def doctor(self) -> tuple[int, str]:
        """Return the exit status of `doctor`, and what it says is wrong."""
        ended = self.world.command("doctor")
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended.returncode, "\n".join(line for line in ended.stdout.splitlines() if "problem" in line)

    def until_well(self, *, since: float, within: float) -> tuple[float, float]:
        """Wait until readiness and `doctor` say that all is well; return how many seconds after `since` each
        said so.
        """
        found: list[float] = []
        for ask, well in ((self.health, (200, "")), (self.doctor, (0, ""))):
            while True:
                asked = time.monotonic() - since
                said = ask()
                if said == well:
                    break
                assert asked < within, f"{asked:.1f} s after the end it says {said}"
                time.sleep(0.1)
            # A busy machine may take its time to start `doctor`: what it finds is from after the moment at
            # which it was asked.
            found.append(asked)
        return found[0], found[1]

    def until_named(self, fault: Fault) -> tuple[float, str, str]:
        """Wait until readiness and `doctor` name a fault; return the seconds until readiness did, and what
        both said.
        """
        began = time.monotonic()
        while not _all(fault.readiness, (said := self.health())[1]) or said[0] != fault.status:
            assert time.monotonic() - began < NAMED, f"readiness says {said}, and not {fault.readiness}"
            time.sleep(0.2)
        after = time.monotonic() - began
        while not _all(fault.doctor, (told := self.doctor())[1]):
            assert time.monotonic() - began < NAMED, f"doctor says {told}, and not {fault.doctor}"
        assert told[0] == 1
        return after, said[1], told[1]

    def goes_through(self) -> None:
        """Have an order handed over, paid and completed."""
        checkout = self.world.order()
        self.world.until_state(checkout, "awaiting_payment", seconds=60)
        self.world.pay(checkout)
        self.world.until_state(checkout, "completed", seconds=60)

    def started(self, name: str) -> None:
        """Start a process and wait until it has reached the database."""
        self.world.start(name)
        kind = name.partition("-")[0]
        connected = f"SELECT 1 FROM pg_stat_activity WHERE application_name = 'orchestrator-{kind}'"
        self.world.until(lambda: self.world.sql(connected), f"{name} runs", seconds=60)


def _all(patterns: Sequence[str], said: str) -> bool:
    return all(re.search(pattern, said) for pattern in patterns)


@contextmanager
def installed(
    cluster: Cluster, url: str, database: Proxy, servers: SimpleNamespace, **settings: object
) -> Iterator[Stand]:
    """Start every process; they reach the database by `url`, under a role that owns nothing."""
    place = Path(tempfile.mkdtemp(prefix="orchestrator-test-"))
    embedded: Any = SimpleNamespace(redis_url=servers.redis_url)
    try:
        with world(embedded, cluster.url, place, **AS_SHIPPED, **settings) as installation:
            installation.settings["database_url"] = url
            installation.start_all()
            stand = Stand(installation, cluster, database, servers)
            stand.until_well(since=time.monotonic(), within=90)
            yield stand
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def migrated(**options: Path) -> Iterator[Cluster]:
    """Start a Postgres with the schema, and a role that may do what the processes do."""
    with Cluster.started(**options) as cluster:
        cluster.admin("CREATE ROLE restricted LOGIN PASSWORD 'restricted'")
        schema.migrate(cluster.url, grant_to="restricted")
        yield cluster


def as_restricted(url: str) -> str:
    return f"postgresql://restricted:restricted@{url.rpartition('@')[2]}"


@contextmanager
def own_redis(*options: str) -> Iterator[SimpleNamespace]:
    """Start a Redis, and a proxy to it."""
    place = Path(tempfile.mkdtemp(prefix="orchestrator-test-"))
    try:
        with redis_server(place, *options) as server, redis.Redis(port=server.port) as client:
            way = Way(server.port)
            url = f"redis://127.0.0.1:{way.port}/0"
            yield SimpleNamespace(redis=server, client=client, way=way, redis_url=url)
            way.close()
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def plain() -> Iterator[Stand]:
    with migrated() as cluster, own_redis() as servers, Proxy(("127.0.0.1", cluster.port)) as database:
        url = as_restricted(through(cluster.url, database))
        with installed(cluster, url, database, servers, broker_url=servers.redis_url) as stand:
            yield stand


@contextmanager
def on_a_small_disk() -> Iterator[Stand]:
    """A cluster whose tables are on a disk of their own, which root alone can make; its log of writes is
    elsewhere.
    """
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    disk = Path(tempfile.mkdtemp(prefix="orchestrator-test-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128m,mode=755", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        disk.rmdir()
        pytest.skip("this machine does not allow to mount a small disk")
    try:
        with (
            migrated(disk=disk) as cluster,
            own_redis() as servers,
            Proxy(("127.0.0.1", cluster.port)) as database,
        ):
            servers.disk = disk
            url = as_restricted(through(cluster.url, database))
            with installed(cluster, url, database, servers, broker_url=servers.redis_url) as stand:
                yield stand
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
        disk.rmdir()


@contextmanager
def pooled() -> Iterator[Stand]:
    if not Path(PGBOUNCER).exists():
        pytest.skip("PgBouncer is not installed: apt-get install pgbouncer")
    with (
        migrated() as cluster,
        own_redis() as servers,
        Proxy(("127.0.0.1", cluster.port)) as database,
        pgbouncer(as_restricted(cluster.url), size=8, admin_users="restricted") as url,
    ):
        servers.pooler = url
        with installed(cluster, url, database, servers, broker_url=servers.redis_url) as stand:
            yield stand


@contextmanager
def over_tls() -> Iterator[Stand]:
    place = Path(tempfile.mkdtemp(prefix="orchestrator-test-"))
    port = free_port()
    try:
        for name in ("trusted", "other"):
            (place / name).mkdir()
            certified(place / name)
        pem = str(place / "trusted" / "server.pem")
        tls = (
            "--tls-port",
            str(port),
            "--tls-cert-file",
            pem,
            "--tls-key-file",
            pem,
            "--tls-ca-cert-file",
            pem,
        )
        with (
            migrated() as cluster,
            own_redis(*tls, "--tls-auth-clients", "no") as servers,
            Proxy(("127.0.0.1", cluster.port)) as database,
        ):
            servers.certificates = {name: str(place / name / "server.pem") for name in ("trusted", "other")}
            url = as_restricted(through(cluster.url, database))
            broker = {
                "broker_url": f"rediss://127.0.0.1:{port}/0",
                "broker_ca_file": pem,
                "redis_url": servers.redis_url,
            }
            with installed(cluster, url, database, servers, **broker) as stand:
                yield stand
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def on_rabbitmq() -> Iterator[Stand]:
    with (
        migrated() as cluster,
        own_redis() as servers,
        rabbitmq_server() as broker,
        Proxy(("127.0.0.1", cluster.port)) as database,
    ):
        servers.rabbitmq, servers.way = broker, Way(broker.port)
        url = as_restricted(through(cluster.url, database))
        amqp = f"amqp://guest:guest@127.0.0.1:{servers.way.port}//"
        with installed(
            cluster, url, database, servers, broker_url=amqp, redis_url=servers.redis_url
        ) as stand:
            yield stand
        servers.way.close()


class Stands:
    """The installation that runs now: one for all faults that it can meet, in sequence."""

    def __init__(self) -> None:
        self._running = ExitStack()
        self._stand: tuple[Callable[[], AbstractContextManager[Stand]], Stand] | None = None

    def at(self, which: Callable[[], AbstractContextManager[Stand]]) -> Stand:
        """Return the installation of this kind; if another runs, end it and start this."""
        if self._stand is None or self._stand[0] is not which:
            self.close()
            self._stand = which, self._running.enter_context(which())
        return self._stand[1]

    def close(self) -> None:
        self._stand = None
        self._running.close()


@pytest.fixture(scope="module")
def view() -> Iterator[Stands]:
    stands = Stands()
    try:
        yield stands
    finally:
        stands.close()


# ── Faults: each begins with its block and ends with it ───────────────────────────────────────────────────


def fault(steps: Callable[[Stand], Iterator[None]]) -> Callable[[Stand], AbstractContextManager[None]]:
    """Make a context manager of a function that causes a fault and, after its `yield`, ends it, however the
    block ends.
    """

    @contextmanager
    def lasts(stand: Stand) -> Iterator[None]:
        running = steps(stand)
        next(running)
        try:
            yield
        finally:
            for _ in running:
                pass

    return lasts


@fault
def a_right_is_revoked(stand: Stand) -> Iterator[None]:
    stand.cluster.admin("REVOKE UPDATE ON checkouts FROM restricted")
    stand.world.order()
    yield
    stand.cluster.admin("GRANT UPDATE ON checkouts TO restricted")


@fault
def postgres_is_read_only(stand: Stand) -> Iterator[None]:
    stand.cluster.read_only()
    yield
    stand.cluster.read_only(on=False)


@fault
def postgres_is_frozen(stand: Stand) -> Iterator[None]:
    server = psutil.Process(stand.cluster.pid)
    server.suspend()
    backends = server.children()
    for backend in backends:
        with suppress(psutil.NoSuchProcess):
            backend.suspend()
    yield
    for process in (*backends, server):
        with suppress(psutil.NoSuchProcess):
            process.resume()


@fault
def postgres_is_frozen_for_long(stand: Stand) -> Iterator[None]:
    """Longer than a process may give no heartbeat."""
    with postgres_is_frozen(stand):
        yield
        time.sleep(40)


@fault
def postgres_is_stopped(stand: Stand) -> Iterator[None]:
    stand.cluster.stop()
    yield
    stand.cluster.start()


@fault
def connections_are_silent(stand: Stand) -> Iterator[None]:
    stand.database.silence(new_connections_too=True)
    yield
    stand.database.thaw()


@fault
def no_connection_is_left(stand: Stand) -> Iterator[None]:
    with ExitStack() as held:
        with suppress(psycopg.OperationalError):
            while True:
                held.enter_context(psycopg.connect(as_restricted(stand.cluster.url)))
        yield
    left = "SELECT 1 FROM pg_stat_activity WHERE usename = 'restricted' AND application_name = ''"
    until(lambda: not stand.cluster.admin(left), "Postgres has closed them")


@fault
def the_disk_is_full(stand: Stand) -> Iterator[None]:
    ballast = stand.servers.disk / "ballast"
    with suppress(OSError), ballast.open("wb") as out:
        while True:
            out.write(b"x" * 65536)
            out.flush()
    yield
    ballast.unlink()


@fault
def the_schema_is_newer(stand: Stand) -> Iterator[None]:
    ((known,),) = stand.cluster.admin("SELECT version_num FROM alembic_version")
    stand.cluster.admin("UPDATE alembic_version SET version_num = '9999'")
    yield
    stand.cluster.admin(f"UPDATE alembic_version SET version_num = '{known}'")


@fault
def the_schema_is_missing(stand: Stand) -> Iterator[None]:
    stand.cluster.admin("ALTER SCHEMA public RENAME TO elsewhere")
    stand.cluster.admin("CREATE SCHEMA public")
    yield
    stand.cluster.admin("DROP SCHEMA public")
    stand.cluster.admin("ALTER SCHEMA elsewhere RENAME TO public")


@fault
def the_pooler_refuses(stand: Stand) -> Iterator[None]:
    console = f"{stand.servers.pooler.rpartition('/')[0]}/pgbouncer"

    def tell(*statements: str) -> None:
        # Its console takes simple statements only.
        for statement in statements:
            with psycopg.connect(console, autocommit=True) as connection:
                connection.pgconn.exec_(statement.encode())

    tell("DISABLE shop", "KILL shop")
    yield
    tell("ENABLE shop", "RESUME shop")


@fault
def redis_is_away(stand: Stand) -> Iterator[None]:
    stand.servers.redis.kill()
    yield
    stand.servers.redis.start()
    until(lambda: answers(stand.servers.client), "Redis answers")


@fault
def redis_is_frozen(stand: Stand) -> Iterator[None]:
    server: Server = stand.servers.redis
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    yield
    server.process.send_signal(signal.SIGCONT)


@fault
def redis_is_a_replica(stand: Stand) -> Iterator[None]:
    stand.servers.client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    yield
    stand.servers.client.execute_command("REPLICAOF", "NO", "ONE")


@fault
def redis_is_out_of_memory(stand: Stand) -> Iterator[None]:
    stand.servers.client.config_set("maxmemory", "1")
    yield
    stand.servers.client.config_set("maxmemory", "0")


@fault
def the_certificate_is_wrong(stand: Stand) -> Iterator[None]:
    def show(name: str) -> None:
        pem = stand.servers.certificates[name]
        stand.servers.client.execute_command("CONFIG", "SET", "tls-cert-file", pem, "tls-key-file", pem)

    show("other")
    stand.servers.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    yield
    show("trusted")


@fault
def rabbitmq_is_cut_off(stand: Stand) -> Iterator[None]:
    way: Way = stand.servers.way
    there, way.target = way.target, free_port()
    way.cut()
    yield
    way.target = there


@fault
def rabbitmq_is_out_of_memory(stand: Stand) -> Iterator[None]:
    stand.servers.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1")
    yield
    stand.servers.rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")


@fault
def the_scheduler_is_dead(stand: Stand) -> Iterator[None]:
    stand.world.kill("scheduler")
    yield
    stand.started("scheduler")


@fault
def the_worker_is_dead(stand: Stand) -> Iterator[None]:
    stand.world.kill("worker-1")
    yield
    stand.started("worker-1")


STUCK = """
import asyncio, sys
from orchestrator import log
from orchestrator.processing.dispatcher import Dispatcher
from orchestrator.settings import load
from orchestrator.worker import run_worker

async def run(self):
    await asyncio.Event().wait()

Dispatcher._run = run
log.configure(style="json")
sys.exit(run_worker(load()))
"""


@fault
def the_dispatcher_has_stopped(stand: Stand) -> Iterator[None]:
    stand.world.stop("worker-1", seconds=40)
    stuck = subprocess.Popen(
        [sys.executable, "-c", STUCK],
        env=stand.world.environment(),
        cwd=stand.world.place,
        stdin=subprocess.DEVNULL,
    )
    stand.world.order()
    yield
    stuck.terminate()
    stuck.wait(60)
    stand.started("worker-1")


@fault
def lookups_wait_for_their_budget(stand: Stand) -> Iterator[None]:
    orders = [stand.world.order() for _ in range(30)]
    for order in orders:
        stand.world.until_state(order, "awaiting_payment", seconds=60)
    assert stand.world.command("merchants", "set", "default", "lookups_per_minute=20").returncode == 0
    # A worker reads the merchants when it starts, and then once in a while.
    stand.world.stop("worker-1", seconds=40)
    stand.started("worker-1")
    stand.world.sql(
        "UPDATE checkouts SET due_at = clock() WHERE id = ANY(%s::uuid[]) AND lease IS NULL", orders
    )
    waiting = "slot_reserved AND due_at > clock() + interval '30 seconds'"
    stand.world.until(
        lambda: stand.world.sql(f"SELECT 1 FROM checkouts WHERE {waiting}"), "lookups wait for their slot"
    )
    stand.world.sql(f"UPDATE checkouts SET updated_at = updated_at - interval '3 minutes' WHERE {waiting}")
    yield
    assert stand.world.command("merchants", "set", "default", "lookups_per_minute=6000").returncode == 0


# ── The table ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Fault:
    """One fault: where it is tried, and what must be said while it lasts (every pattern), with which status
    of readiness.
    """

    stand: Callable[[], AbstractContextManager[Stand]]
    lasts: Callable[[Stand], AbstractContextManager[None]]
    status: int
    readiness: tuple[str, ...]
    doctor: tuple[str, ...]
    slow: bool = True


DEAD_WORKER = ("no worker is alive",)
NO_SCHEDULER = ("no scheduler publishes sweeps",)
FAULTS = {
    "an UPDATE is revoked": Fault(
        plain, a_right_is_revoked, 200,
        ("refuses its role UPDATE on checkouts", r"worker .* claims nothing.*permission denied for table checkouts"),
        ("refuses its role UPDATE on checkouts", r"worker .* claims nothing.*permission denied for table checkouts"), slow=False,
    ),
    "Postgres is read-only": Fault(
        plain, postgres_is_read_only, 503, ("the database is read-only",),
        (r"the database is read-only.*default_transaction_read_only is on there \(set by: configuration file\): set it to off",),
        slow=False,
    ),
    "Postgres is frozen": Fault(
        plain, postgres_is_frozen, 503, ("the database does not answer",), ("does not answer: .*may be stopped",), slow=False
    ),
    "the broker is a replica": Fault(
        plain, redis_is_a_replica, 200, ("broker takes no hints .*read only replica",), ("broker .*read only replica",), slow=False
    ),
    "the scheduler is dead": Fault(plain, the_scheduler_is_dead, 200, NO_SCHEDULER, NO_SCHEDULER, slow=False),
    "Postgres is frozen for long": Fault(
        plain, postgres_is_frozen_for_long, 503, ("the database does not answer",), ("does not answer",)
    ),
    "Postgres is stopped": Fault(
        plain, postgres_is_stopped, 503, ("out of reach .*(refused|closed)",), ("database .*(refused|closed)",)
    ),
    "connections are silent": Fault(
        plain, connections_are_silent, 503, ("the database does not answer",), ("does not answer|timeout",)
    ),
    "no connection is left": Fault(
        plain, no_connection_is_left, 200, ("no new connection .*(too many clients|slots are reserved)",),
        ("(too many clients|slots are reserved)",),
    ),
    "the schema is newer": Fault(
        plain, the_schema_is_newer, 503, ("schema 9999.*deploy the newer version",), ("schema 9999.*deploy the newer version",)
    ),
    "the schema is missing": Fault(
        plain, the_schema_is_missing, 503, ("has no schema.*run `orchestrator migrate`",), ("has no schema.*run `orchestrator migrate`",)
    ),
    "the worker is dead": Fault(plain, the_worker_is_dead, 200, DEAD_WORKER, DEAD_WORKER),
    "a dispatcher has stopped": Fault(
        plain, the_dispatcher_has_stopped, 200, (r"worker .* has claimed nothing for \d+ s, and \d+ hints wait",),
        (r"worker .* has claimed nothing for \d+ s, and \d+ hints wait",),
    ),
    "lookups wait for their budget": Fault(
        plain, lookups_wait_for_their_budget, 200, (r"\d+ lookups of merchant default wait for their slot",),
        (r"\d+ lookups of merchant default wait for their slot",),
    ),
    "Redis is away": Fault(
        plain, redis_is_away, 200, ("broker takes no hints .*(refused|closed)", *NO_SCHEDULER), ("broker .*(refused|closed)",)
    ),
    "Redis is frozen": Fault(
        plain, redis_is_frozen, 200, ("broker takes no hints .*(does not answer|[Tt]imeout)",), ("broker .*accepts connections and does not answer",)
    ),
    "Redis is out of memory": Fault(
        plain, redis_is_out_of_memory, 200, ("broker takes no hints .*maxmemory",), ("broker .*maxmemory",)
    ),
    "the disk is full": Fault(
        on_a_small_disk, the_disk_is_full, 503, ("the disk of the database is full",), ("the disk of the database is full",)
    ),
    "PgBouncer refuses": Fault(
        pooled, the_pooler_refuses, 503, ("database is out of reach .*is disabled",), ("is disabled",)
    ),
    "the broker's certificate is wrong": Fault(
        over_tls, the_certificate_is_wrong, 200, ("broker takes no hints .*certificate verify failed",), ("broker .*certificate verify failed",)
    ),
    "RabbitMQ is cut off": Fault(
        on_rabbitmq, rabbitmq_is_cut_off, 200, ("broker takes no hints .*(closed|refused)",), ("broker .*(closed|refused)",)
    ),
    "RabbitMQ is out of memory": Fault(
        on_rabbitmq, rabbitmq_is_out_of_memory, 200, ("broker takes no hints .*(does not answer|short of memory)",), ("broker .*short of memory",)
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if fault.slow else []) for name, fault in FAULTS.items()],
)
def test_health_names_a_fault_while_it_lasts_and_says_soon_that_it_is_over(view: Stands, name: str):
    fault = FAULTS[name]
    stand = view.at(fault.stand)
    stand.until_well(since=time.monotonic(), within=60)
    with fault.lasts(stand):
        named, said, told = stand.until_named(fault)
    ready, well = stand.until_well(since=time.monotonic(), within=SOON)
    stand.goes_through()
    print(f"{name} | {said} | {told} | named {named:.1f} s | ready {ready:.1f} s | doctor {well:.1f} s")
