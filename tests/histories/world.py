"""One small installation for thousands of histories: real Postgres, a real sandbox on a socket, one event
loop for all of it.

Nothing is emptied between two histories. Each has order numbers of its own and begins with the clock at now;
time passes by `clock()` alone, and the clock that leases are counted by goes along with it, as on a machine
that slept.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import UUID, uuid4

import aiohttp
import uvicorn
from sqlalchemy import text

from orchestrator import intents
from orchestrator.crypto import Encryptor
from orchestrator.devkit.sandbox import SandboxConfig, create_app
from orchestrator.devkit.sandbox.faults import GlobalFaults, Plan
from orchestrator.domain import claimed_checkout
from orchestrator.gateway.client import Gateway
from orchestrator.processing import CheckoutProcessor, StepContext
from orchestrator.processing.context import CREDENTIALS_PAUSE, CredentialsCircuit
from orchestrator.store import inbox
from orchestrator.store.checkouts import Transitions
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants
from tests.conftest import make_settings
from tests.support.scene import intent, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from orchestrator.devkit.sandbox.core import Sandbox
    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.gateway.http import Failure, Request, Wire
    from orchestrator.store.checkouts import Move

AMOUNT = 13900
"""Minor units of every order, in DKK."""
CONFIG = SandboxConfig(
    username="shop",
    password="sandbox password",
    hang_seconds=2.0,
    token_seconds=1800,
    token_reuse_seconds=900.0,
)
_ROWS = text("""
    SELECT c.id, c.state, c.version, c.reserved, c.captured, c.refunded, c.charged_back, c.late, c.attention, c.auto_capture,
           c.audit_sequence, c.event_sequence, c.session_count, c.lease, c.cancel_requested_at, c.due_at IS NOT NULL AS has_due_time,
           extract(epoch FROM c.due_at - clock())::float8 AS due_in,
           (SELECT count(*) FROM callbacks b WHERE b.checkout_id = c.id AND b.handled_at IS NULL) AS callbacks,
           (SELECT count(*) FROM commands k WHERE k.checkout_id = c.id AND k.handled_at IS NULL) AS commands,
           (SELECT json_object_agg(p.transaction_id, json_build_array(p.captured, p.refunded))
              FROM payments p WHERE p.checkout_id = c.id) AS payments
      FROM checkouts c WHERE c.id = ANY(CAST(:ids AS uuid[])) ORDER BY c.id
""")


class Trap:
    """Where a worker stops: at the n-th of the points before and after each call to the gateway and each
    write.

    It is killed there, or stopped until a step resumes it, perhaps long after its lease.
    """

    def __init__(self, nth: int, *, sleeps: bool) -> None:
        self._left, self._sleeps = nth, sleeps
        self.reached = asyncio.Event()
        self.waking = asyncio.Event()
        self.task: asyncio.Task[Any] | None = None
        self.where = ""

    async def passing(self, where: str) -> None:
        self._left -= 1
        if self._left != 0:
            return
        self.where = where
        self.reached.set()
        if not self._sleeps:
            assert self.task is not None
            self.task.cancel()
        await self.waking.wait()


class _MortalWire:
    def __init__(self, wire: Wire, trap: Trap) -> None:
        self._wire, self._trap = wire, trap

    async def exchange(self, request: Request, **options: Any) -> bytes | Failure:
        await self._trap.passing(f"before {request.url.path}")
        answer = await self._wire.exchange(request, **options)
        await self._trap.passing(f"after {request.url.path}")
        return answer


class _MortalGateway(Gateway):
    """The real client over the real connections, of a worker that may stop beside each exchange."""

    def __init__(self, gateway: Gateway, trap: Trap) -> None:
        self.limits = gateway.limits
        self._wire = _MortalWire(gateway._wire, trap)  # type: ignore[assignment]


class _MortalLifecycle(Transitions):
    """The real mover, of a worker that may stop beside each write."""

    def __init__(self, moves: Transitions, trap: Trap) -> None:
        self._moves, self._trap = moves, trap

    async def advance(self, move: Move) -> ClaimedCheckout:
        await self._trap.passing(f"before {move.action}")
        held = await self._moves.advance(move)
        await self._trap.passing(f"after {move.action}")
        return held


class _Server(uvicorn.Server):
    """A server in the event loop of a test: it handles no signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True)
class Mail:
    """A callback that the gateway made and that is still on its way."""

    checkout: UUID
    kind: str
    body: bytes


@dataclass(slots=True)
class Tally:
    """Counts over all histories."""

    histories: int = 0
    steps: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    def told(self) -> str:
        lines = [
            f"{self.histories} histories, {self.steps} steps, {sum(self.stops.values())} workers stopped in the middle"
        ]
        for name in ("states", "attention", "operations", "stops"):
            counted = ", ".join(f"{word} {count}" for word, count in getattr(self, name).most_common(14))
            lines.append(f"  {name}: {counted}")
        return "\n".join(lines)


class World:
    """The installation, and the history that runs on it."""

    def __init__(
        self, *, database_url: str, gateway_url: str, sandbox: Sandbox, db: Database, gateway: Gateway
    ) -> None:
        self.settings = make_settings(
            database_url=database_url,
            gateway_url=gateway_url,
            deadline_grace=30.0,
            cancel_grace=30.0,
            first_check_after=120.0,
            recheck_after_callback=2.0,
            check_interval_cap=1800.0,
            retry_base=1.0,
            retry_cap=300.0,
            hint_grace=5.0,
            **HASTE,
        )
        self.url, self.sandbox, self.db, self.gateway = gateway_url, sandbox, db, gateway
        self.encryptor = Encryptor(self.settings.secret_keys)
        self.moves = Transitions(db, self.encryptor)
        self.merchants = Merchants(db, self.encryptor, self.settings)
        self.intents = inbox.Intents(db, self.encryptor, grace=5.0)
        self.callbacks = inbox.Callbacks(db, self.encryptor, grace=5.0)
        self.browser = aiohttp.ClientSession()
        self.tally = Tally()
        self.offset = 0.0
        self.checkouts: list[UUID] = []
        self.orders: dict[UUID, str] = {}
        self.mail: list[Mail] = []
        self.sleepers: list[Trap] = []
        self.by_hand: set[str] = set()
        self.decided: set[str] = set()
        self._deciding: set[UUID] = set()
        self.processor = self.worker()

    async def close(self) -> None:
        await self.browser.close()
        for batch in (self.moves, self.intents, self.callbacks):
            await batch.close()

    async def begin(self, policies: Mapping[str, object]) -> None:
        """Begin a history: the clock at now, no orders, the merchant's policies."""
        self.offset = 0.0
        self.checkouts, self.orders, self.mail, self.sleepers = [], {}, [], []
        self.by_hand, self.decided, self._deciding = set(), set(), set()
        await self.sql("UPDATE clock_skew SET seconds = 0")
        await self.sql("DELETE FROM lookup_budgets")
        await self.merchants.set_policies("default", policies)
        await self.merchants.everyone()
        self.sandbox.faults.set_everywhere(GlobalFaults(callbacks="lost"))
        self.processor = self.worker()

    # The orchestrator's side.

    def worker(self, trap: Trap | None = None) -> CheckoutProcessor:
        gateway = self.gateway if trap is None else _MortalGateway(self.gateway, trap)
        moves = self.moves if trap is None else _MortalLifecycle(self.moves, trap)
        return CheckoutProcessor(
            StepContext(
                settings=self.settings,
                db=self.db,
                encryptor=self.encryptor,
                gateway=gateway,
                transitions=moves,
                merchants=self.merchants,
            )
        )

    async def sql(self, statement: str, **parameters: object) -> Sequence[Any]:
        return await self.db.write(text(statement), parameters)

    async def rows(self) -> dict[UUID, Any]:
        return {row.id: row for row in await self.db.read(_ROWS, {"ids": self.checkouts})}

    async def accept(self, *, order: str | None = None, expires_in: float, capture: bool) -> UUID:
        """Take an order in; under a number that is taken, other content is refused."""
        note = f"lamp {len(self.checkouts)}"
        parsed = intents.parse(
            intent(order or f"H-{uuid4().hex[:12]}", capture=capture, expiresIn=expires_in, userAgent=note)
        )
        accepted = await self.intents.accept(
            inbox.Intake(
                merchant_id=1,
                order_ref=parsed.order_ref,
                currency=parsed.currency,
                amount=parsed.amount,
                expires_in=expires_in,
                document=parsed.document,
                fingerprint=parsed.fingerprint,
                actor="test",
                correlation_id="corr",
                auto_capture=parsed.auto_capture,
            )
        )
        if accepted.id not in self.orders:
            self.checkouts.append(accepted.id)
            self.orders[accepted.id] = accepted.order_ref
        return accepted.id

    async def ask(
        self, checkout: UUID, kind: str, *, version: int | None = None, **arguments: object
    ) -> None:
        asked = await inbox.request(
            self.db,
            self.encryptor,
            checkout,
            merchant_id=1,
            kind=kind,
            actor="client:shop",
            expected_version=version,
            arguments=arguments,
            grace=5.0,
        )
        assert asked is not None
        if kind == "resolve":
            self._deciding.add(checkout)

    def decide(self, rows: Mapping[UUID, Any]) -> None:
        """Record what a decision is about: the transactions that hold money until the decision is taken, and
        no later orders.
        """
        for checkout in list(self._deciding):
            self.decided |= {
                transaction.transaction_id
                for _, transaction in self.transactions(checkout)
                if transaction.held_minor > 0
            }
            if not rows[checkout].commands:
                self._deciding.discard(checkout)

    async def hint(self, *ids: UUID) -> None:
        await self.sql("UPDATE checkouts SET hinted = true WHERE id = ANY(:ids)", ids=list(ids))

    async def later(self, seconds: float) -> None:
        """Let time pass, for Postgres and for workers, which count a lease by a clock of their own."""
        whole = math.ceil(seconds)
        self.offset += whole
        if whole >= CREDENTIALS_PAUSE:
            self.processor.context.circuit = CredentialsCircuit()
        for limits_of_gateway in self.gateway.limits._limits.values():
            limits_of_gateway._throttled = {
                whose: until - whole for whose, until in limits_of_gateway._throttled.items()
            }
        await self.sql("UPDATE clock_skew SET seconds = seconds + :seconds", seconds=whole)

    async def stop(self, ids: Sequence[UUID], nth: int, *, sleeps: bool) -> None:
        """Have checkouts processed by a worker that stops at its n-th point, if it gets so far."""
        trap = Trap(nth, sleeps=sleeps)
        trap.task = asyncio.create_task(take(self.worker(trap), ids))
        reached = asyncio.create_task(trap.reached.wait())
        await asyncio.wait({trap.task, reached}, return_when=asyncio.FIRST_COMPLETED)
        reached.cancel()
        if trap.reached.is_set():
            self.tally.stops[f"{'asleep' if sleeps else 'dead'} {trap.where}"] += 1
        if sleeps and not trap.task.done():
            self.sleepers.append(trap)
            return
        with contextlib.suppress(asyncio.CancelledError):
            await trap.task

    async def wake(self) -> None:
        """Let stopped workers go on where they stopped."""
        sleepers, self.sleepers = self.sleepers, []
        for trap in sleepers:
            trap.waking.set()
            assert trap.task is not None
            await trap.task

    # The gateway's side.

    def plan(self, checkout: UUID) -> Plan:
        """Return the plan of a checkout's order number, to be changed in place."""
        order = self.orders[checkout]
        if order not in self.sandbox.faults.plans:
            self.sandbox.faults.set_plan(order, Plan())
        return self.sandbox.faults.plans[order]

    def payments(self, checkout: UUID) -> list[Payment]:
        books = self.sandbox.books
        order = books.orders.get(self.orders[checkout])
        return [books.payments[payment] for payment in order.payments] if order is not None else []

    def transactions(self, checkout: UUID) -> list[tuple[Payment, Transaction]]:
        return [
            (payment, transaction)
            for payment in self.payments(checkout)
            for transaction in payment.transactions
        ]

    async def open_payment(self, checkout: UUID, terminal: str) -> str | None:
        """Begin a payment as the shopper's browser does; None where there is no session to pay in."""
        order = self.sandbox.books.orders.get(self.orders[checkout])
        sessions = (
            [session for session in order.sessions if session in self.sandbox.books.sessions]
            if order is not None
            else []
        )
        if not sessions:
            return None
        method = next(method for method in CONFIG.methods if method.terminal == terminal)
        async with self.browser.post(
            f"{self.url}/checkout/v1/api/payment/initiate/{method.id}",
            json={"paymentMethodId": method.id, "sessionId": sessions[-1]},
            headers={"Authorization": f"Bearer {self.sandbox.tokens.issue()}"},
        ) as answer:
            told = await answer.json()
            assert answer.ok, told
            return str(told["paymentId"])

    async def submit(self, payment_id: str, **form: str) -> int:
        url = f"{self.url}/sandbox/pay/{payment_id}"
        async with self.browser.post(url, data=form, allow_redirects=False) as answer:
            return answer.status

    async def merchant_call(self, name: str, **fields: str) -> None:
        """Call the Merchant API as a person of the merchant does in its interface, past the orchestrator."""
        headers = {"Authorization": aiohttp.encode_basic_auth(CONFIG.username, CONFIG.password)}
        # A fault that waited for us may meet this call.
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with self.browser.post(
                f"{self.url}/merchant/API/{name}", data=fields, headers=headers
            ) as answer:
                await answer.read()

    def cleared_attention(self) -> None:
        """Let every call work from now on. What the gateway shows of its movements stays as it is."""
        self.sandbox.faults.set_everywhere(GlobalFaults(callbacks="lost"))
        for checkout in self.checkouts:
            plan = self.plan(checkout)
            plan.fail, plan.refuse, plan.lose_session = {}, {}, 0


HASTE: dict[str, Any] = {
    "gateway_connect_timeout": 0.5, "gateway_read_timeout": 0.3, "gateway_total_timeout": 0.6, "lease_seconds": 60.0,
}  # fmt: skip
"""Seconds. A call that hangs costs a third of a second of real time, and is still longer than any call that
does not."""


@contextlib.asynccontextmanager
async def world(database_url: str) -> AsyncIterator[World]:
    """Serve the sandbox and open the installation in this loop; the clock of leases goes along with `clock()`
    meanwhile.
    """
    app = create_app(CONFIG)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = _Server(
        uvicorn.Config(
            app, http="httptools", log_level="critical", access_log=False, timeout_graceful_shutdown=1
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    settings = make_settings(database_url=database_url, gateway_url=url, **HASTE)
    async with Database(database_url, pool_size=4) as db, Gateway(settings) as gateway:
        started = World(
            database_url=database_url, gateway_url=url, sandbox=app.state.sandbox, db=db, gateway=gateway
        )
        # Below `tick`, so that it goes along in every module that imports it: the lease guard reads it, too.
        shifted = SimpleNamespace(clock_gettime=lambda clock: time.clock_gettime(clock) + started.offset)
        try:
            with patch.object(claimed_checkout, "time", shifted):
                yield started
        finally:
            await started.close()
    # Connections that a script reset may never count as closed, and there is no peer left to wait for.
    server.should_exit = server.force_exit = True
    _, pending = await asyncio.wait({serving}, timeout=5)
    for task in pending:
        task.cancel()
    listening.close()
