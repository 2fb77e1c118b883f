"""A whole installation of processes, in the words of the domain: API, workers, scheduler and sandbox, as
operations run them.

Processes are killed, stopped and started again by the tests. At the end of each test, `agree` compares the
sandbox's ledger of what really happened to every shopper's money with our books, to the minor unit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import psutil
import psycopg
import redis
from psycopg.rows import dict_row

from orchestrator import auth
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings
from tests.support.api import Api
from tests.support.broker_option import settings_beside
from tests.support.cloud_events import check_all
from tests.support.forked import Popen, run
from tests.support.machine import free_port, until
from tests.support.pooler import direct
from tests.support.scene import intent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

SHORT_TIMES = {
    "lease_seconds": 3.3,
    "gateway_connect_timeout": 0.9,
    "gateway_read_timeout": 0.9,
    "gateway_total_timeout": 1,
    "operation_quiet": 2,
    "hint_grace": 0.5,
    "sweep_interval": 0.2,
    "self_sweep_after": 2,
    "retry_base": 0.1,
    "retry_cap": 0.5,
    "deadline_grace": 0.5,
    "cancel_grace": 0.5,
    "first_check_after": 0.8,
    "recheck_after_callback": 0.2,
    "check_interval_cap": 1,
    "breaker_failures": 0,
}
SANDBOX_TOKEN = "the sandbox's own"
GOOD_CARD, DECLINED_CARD = "4111000011110000", "4180000000000566"


class World:
    """One installation. Started processes are in `running` by name: api, sandbox, scheduler, worker-1 …

    Without `short_times` its leases, graces and time-outs are those that ship.
    """

    def __init__(
        self,
        servers: Embedded,
        database_url: str,
        place: Path,
        *,
        short_times: bool = True,
        **settings: object,
    ) -> None:
        self.database_url, self.redis_url, self.place = database_url, servers.redis_url, place
        self.api_port, self.sandbox_port = free_port(), free_port()
        self.api_url = f"http://127.0.0.1:{self.api_port}"
        self.sandbox_url = f"http://127.0.0.1:{self.sandbox_port}"
        self.settings: dict[str, object] = {
            "database_url": database_url,
            **({} if "broker_url" in settings else settings_beside(servers)),
            "gateway_url": self.sandbox_url,
            "public_url": self.api_url,
            "gateway_username": "shop",
            "gateway_password": "sandbox password",
            "sandbox_token": SANDBOX_TOKEN,
            "secret_keys": [SECRET_KEY],
            "jwt_secrets": [JWT_SECRET],
            "log_format": "json",
            "log_level": "info",
            **(SHORT_TIMES if short_times else {}),
            **settings,
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._apis: dict[str, Api] = {}
        self._opening = threading.Lock()
        self.http = httpx.Client(timeout=10)
        self.http.headers["Authorization"] = bearer("default")
        self.http.headers["X-Sandbox-Token"] = SANDBOX_TOKEN
        with redis.Redis.from_url(servers.redis_url) as broker:
            broker.flushall()
        # All times are short here, and lookups are frequent.
        self.sql("""UPDATE merchants SET policies = '{"lookups_per_minute": 100000}'""")

    # ── Processes ──────────────────────────────────────────────────────────────────────────────────────────

    def start(self, name: str, *, port: int | None = None, output: int | None = None) -> None:
        """Start a process and wait until it answers, if it is a server.

        A second sandbox needs a port of its own.

        `output`: a descriptor that it writes to, instead of to its log.
        """
        kind = name.partition("-")[0]
        sandbox_port = port or self.sandbox_port
        command = {
            "api": ["api", "--port", str(self.api_port)],
            "sandbox": [
                "sandbox",
                "--port",
                str(sandbox_port),
                "--state-file",
                str(self.place / f"{name}.db"),
            ],
            "worker": ["worker"],
            "scheduler": ["scheduler"],
            "deliverer": ["deliverer"],
        }[kind]
        with (self.place / f"{name}.log").open("ab") as log:
            out = log if output is None else output
            self.running[name] = Popen(
                [sys.executable, "-m", "orchestrator", *command],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.place,
            )
        url = {
            "api": f"{self.api_url}/healthz",
            "sandbox": f"http://127.0.0.1:{sandbox_port}/healthz",
        }.get(kind)
        if url:
            self.until(lambda: self._answers(name, url), f"{name} answers", seconds=90)

    def environment(self) -> dict[str, str]:
        """Return the environment of a process of this installation."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
        settings = self.settings
        url = str(settings["database_url"])
        if (behind := direct(url)) != url:
            settings = {"migration_url": behind, **settings}
        for key, value in settings.items():
            environment[f"ORCHESTRATOR_{key.upper()}"] = (
                value if isinstance(value, str) else json.dumps(value)
            )
        return environment

    def start_all(self, *, workers: int = 1) -> None:
        for name in (
            "sandbox",
            "api",
            *(f"worker-{number}" for number in range(1, workers + 1)),
            "scheduler",
        ):
            self.start(name)

    def signal(self, name: str, number: signal.Signals) -> None:
        self.running[name].send_signal(number)

    def kill(self, name: str) -> None:
        """Kill a process as a crash would, without a shutdown."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def stop(self, name: str, *, seconds: float = 20) -> int:
        """Stop a process as operations would; return its exit status."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGCONT)
        process.terminate()
        return process.wait(seconds)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()
        self.http.close()
        for api in self._apis.values():
            api.close()

    def log(self, name: str) -> str:
        return (self.place / f"{name}.log").read_text()

    def _answers(self, name: str, url: str) -> bool:
        assert self.running[name].poll() is None, f"{name} ended: {self.log(name)[-2000:]}"
        try:
            return self.http.get(url, timeout=1).is_success
        except httpx.HTTPError:
            return False

    # ── The merchant ───────────────────────────────────────────────────────────────────────────────────────

    def api(self, merchant: str = "default") -> Api:
        """Return the API for a client of a merchant."""
        with self._opening:
            if merchant not in self._apis:
                self._apis[merchant] = Api(self.api_url, token(merchant))
            return self._apis[merchant]

    def order(
        self, *, plan: dict[str, object] | None = None, merchant: str | None = None, **changes: Any
    ) -> str:
        """Hand over a checkout intent; return its checkout's id.

        `plan` is what the gateway is to do with it.
        """
        number = f"W-{uuid4().hex[:12]}"
        if plan:
            self.control("PUT", f"orders/{number}", plan)
        created = self.api(merchant or "default").create(intent(number, **changes))
        assert created.new
        return str(created.checkout.id)

    def plan(self, checkout: str, **plan: object) -> None:
        """Say what the gateway is to do from now on with the order of a checkout."""
        (row,) = self.sql("SELECT order_ref FROM checkouts WHERE id = %s", checkout)
        self.control("PUT", f"orders/{row['order_ref']}", plan)

    def checkout(self, checkout: str) -> dict[str, Any]:
        """Return the checkout as the API shows it."""
        return self.api().get(f"/v1/checkouts/{checkout}")

    def cancel(self, checkout: str) -> None:
        self.api().command(checkout, "cancel", {"reason": "sold out"})

    def ask(self, checkout: str, kind: str, **asked: object) -> str:
        """Ask for something (capture, refund, …) over HTTP; return the command's id."""
        return str(self.api().command(checkout, kind, asked).command.id)

    def movements(self, checkout: str) -> list[tuple[str, int]]:
        """Return what the gateway's ledger says was moved for the order: captures, refunds, releases, in
        order.
        """
        (row,) = self.sql("SELECT order_ref FROM checkouts WHERE id = %s", checkout)
        payments = self.ledger()[row["order_ref"]]["payments"]
        return [
            (movement["type"], movement["amountMinor"])
            for payment in payments
            for movement in payment["movements"]
        ]

    def until_operation(self, checkout: str, *states: str, seconds: float = 30) -> None:
        def there() -> bool:
            rows = self.sql("SELECT state FROM money_operations WHERE checkout_id = %s", checkout)
            return [row["state"] for row in rows[-1:]] in [[state] for state in states]

        self.until(there, f"the operation of {checkout} is {' or '.join(states)}", seconds=seconds)

    def until_state(self, checkout: str, *states: str, seconds: float = 30) -> None:
        def there() -> bool:
            return self.sql("SELECT state FROM checkouts WHERE id = %s", checkout)[0]["state"] in states

        self.until(there, f"{checkout} is {' or '.join(states)}", seconds=seconds)

    def until_all(self, *states: str, seconds: float = 60) -> None:
        def there() -> bool:
            left = self.sql("SELECT count(*) AS left FROM checkouts WHERE NOT state = ANY(%s)", list(states))
            return left[0]["left"] == 0

        self.until(there, f"every checkout is {' or '.join(states)}", seconds=seconds)

    # ── The shopper ────────────────────────────────────────────────────────────────────────────────────────

    def pay(self, checkout: str, *, card: str = GOOD_CARD) -> httpx.Response:
        """Pay by card at the gateway's page; return the gateway's last answer to the browser."""
        return self.submit(self.begin_payment(checkout), card=card)

    def begin_payment(self, checkout: str) -> str:
        """Choose the card among the methods that are offered; return the URL of the gateway's page."""
        offer = self.checkout(checkout)
        assert offer["session"], offer
        method = next(option for option in offer["paymentMethods"] if option["type"] == "CARD")
        started = httpx.post(
            method["onInitiatePayment"]["value"],
            json={"paymentMethodId": method["id"], "sessionId": offer["session"]["id"]},
            headers={"Authorization": f"Bearer {offer['session']['token']}"},
            timeout=20,
        )
        assert started.is_success, started.text
        return str(started.json()["url"])

    def submit(self, url: str, *, card: str = GOOD_CARD) -> httpx.Response:
        """Send the card from the gateway's page; return its answer."""
        form = {"action": "pay", "card_number": card, "expiry": "12/39", "cvc": "123"}
        return httpx.post(url, data=form, timeout=20)

    # ── What is true ───────────────────────────────────────────────────────────────────────────────────────

    def control(self, method: str, path: str, body: object = None) -> Any:
        answer = self.http.request(method, f"{self.sandbox_url}/sandbox/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def sql(self, statement: str, *values: object) -> list[dict[str, Any]]:
        with psycopg.connect(direct(self.database_url), autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def ledger(self) -> dict[str, dict[str, Any]]:
        """Return what the gateway has of each order number."""
        return ledger(lambda path: self.control("GET", path))

    def agree(self) -> None:
        """Check that the ledger and our books agree to the minor unit, that events are as promised, and that
        the audit trail holds.
        """
        agree(self.ledger(), self.sql("SELECT * FROM checkouts"))
        told = self.sql("SELECT * FROM events ORDER BY checkout_id, sequence")
        for _, events in groupby(told, key=itemgetter("checkout_id")):
            check_all(SimpleNamespace(**event) for event in events)
        verified = self.command("audit", "verify")
        assert verified.returncode == 0, verified.stderr + verified.stdout

    def command(
        self, *arguments: str, given: str = "", seconds: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return run(
            [sys.executable, "-m", "orchestrator", *arguments],
            given=given,
            seconds=seconds,
            env=self.environment(),
            cwd=self.place,
        )

    def until(self, condition: Callable[[], object], what: str, *, seconds: float = 30) -> None:
        until(condition, what, seconds=seconds)


def ledger(ask: Callable[[str], Any]) -> dict[str, dict[str, Any]]:
    """Return what the gateway has of each order number; `ask` fetches a path of its control API."""
    orders: dict[str, dict[str, Any]] = {}
    after = ""
    while True:
        page = ask(f"ledger?limit=1000{after}")
        orders |= {order["orderId"]: order for order in page["orders"]}
        if page.get("next") is None:
            return orders
        after = f"&after={page['next']}"


def agree(ledger: dict[str, dict[str, Any]], checkouts: list[dict[str, Any]]) -> None:
    """Check that the ledger and the rows of our books agree to the minor unit, and that each row has a due
    time or has ended.
    """
    for row in checkouts:
        payments = ledger.get(row["order_ref"], {}).get("payments", [])
        held = sum(payment["heldMinor"] for payment in payments)
        captured = sum(payment["capturedMinor"] for payment in payments)
        refunded = sum(payment["refundedMinor"] for payment in payments)
        ours = (row["reserved"] if row["state"] == "completed" else 0, row["captured"], row["refunded"])
        paid = held or captured
        assert (row["state"] == "completed") == bool(paid), (row["order_ref"], row["state"], payments)
        assert ours[1:] == (captured, refunded), (row["order_ref"], ours, payments)
        if paid:
            assert ours[0] == row["amount"], (row["order_ref"], ours, payments)
        assert row["due_at"] is not None or row["ended_at"] is not None, row


def token(merchant: str) -> str:
    """Return a token with every scope for a merchant's client."""
    return auth.issue(
        make_settings(),
        merchant=merchant,
        scopes=("checkouts:write", "checkouts:read", "money:write", "ops"),
        lifetime=3600,
        subject="test",
    )


def bearer(merchant: str) -> str:
    """Return what a merchant's client sends as Authorization."""
    return f"Bearer {token(merchant)}"


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes with all their children: connections stay open, and nothing answers."""
    family = [
        process
        for pid in pids
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    ]
    for process in family:
        with suppress(psutil.NoSuchProcess):  # a connection of Postgres that ended meanwhile
            process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


@contextmanager
def world(
    servers: Embedded, database_url: str, place: Path, *, short_times: bool = True, **settings: object
) -> Iterator[World]:
    started = World(servers, database_url, place, short_times=short_times, **settings)
    try:
        yield started
    except BaseException:
        for name in sorted(path.stem for path in place.glob("*.log")):
            print(f"── {name} ──\n{started.log(name)[-3000:]}")
        raise
    finally:
        started.close()
