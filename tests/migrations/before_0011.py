"""A database as the last version before migration 0011 left it, in the middle of its work.

In `tests/migrations/data`, `before_0011.sql.gz` holds its rows, `before_0011.json.gz` what the gateway holds
and the names of the checkouts, and `before_0011_ends.json` the ends that the earlier version itself brought
them to. They were made by this file, run with the sources of that version:

    git archive 4b2eb60 | tar x -C OLD
    cp tests/migrations/before_0011.py OLD/tests/migrations/
    cd OLD && PYTHONPATH=. python -m tests.migrations.before_0011 .../tests/migrations/data

So `fill` uses the words of that version, and `finish` and `ends` use nothing that has been renamed since. The
keys are those of the tests. A last statement sets the database's clock back to the moment at which it was
saved.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import msgspec
import psycopg
from psycopg import sql

from orchestrator import audit, log
from orchestrator.devkit.local.servers import Embedded
from orchestrator.devkit.sandbox import SandboxConfig, create_app
from orchestrator.devkit.sandbox.books import Payment, Session
from orchestrator.devkit.sandbox.faults import Plan
from orchestrator.domain.states import Trigger
from orchestrator.store import checkouts, inbox, schema
from orchestrator.store.merchants import Merchants
from orchestrator.store.tables import metadata
from tests.support.parties import serving
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIG = SandboxConfig(username="shop", password="sandbox password", hang_seconds=1.0)
SETTINGS: dict[str, object] = {"public_url": "http://127.0.0.1:9", "operation_quiet": 0.2}
DECLINED_CARD = "4180000000000566"
SLOW = "slow"
"""A merchant whose budget is one lookup a minute."""


class Saved(msgspec.Struct):
    """What belongs to the rows: the gateway's books, the checkouts by name, and their order numbers."""

    sessions: list[Session]
    payments: list[Payment]
    plans: dict[str, Plan]
    names: dict[str, UUID]
    orders: dict[UUID, str]


# ── Carrying on, in either version ────────────────────────────────────────────────────────────────────────

_DUE = """
    SELECT id FROM checkouts WHERE (hinted OR due_at <= clock()) AND (lease IS NULL OR leased_until <= clock()) ORDER BY id
"""


async def finish(world: Scene) -> None:
    """Process as a worker does whenever something is due, for some hours of the database's clock."""
    for seconds in (0, 60, 400, 3600, 7200, 600, 600, 600):
        await world.later(seconds=seconds)
        for _ in range(6):
            due = [row.id for row in await world.sql(_DUE)]
            if not due:
                break
            await world.take(*due)
            await asyncio.sleep(0.05)


_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def as_stored(row: Any) -> str:
    """Return what a command's result says, as the earlier version stored it."""
    return row.result or ""


async def ends(
    world: Scene, names: dict[str, UUID], result_of: Callable[[Any], str] = as_stored
) -> dict[str, Any]:
    """Return the result of each checkout, by name: without random values."""
    found = {}
    for name, checkout in sorted(names.items()):
        row = await world.row(checkout)
        payments = await world.sql("SELECT * FROM payments WHERE checkout_id = :id", id=checkout)
        commands = await world.sql("SELECT * FROM commands WHERE checkout_id = :id ORDER BY id", id=checkout)
        unread = await world.sql(
            "SELECT 1 FROM callbacks WHERE checkout_id = :id AND handled_at IS NULL", id=checkout
        )
        found[name] = {
            "state": row.state,
            "late": row.late,
            "money": [row.reserved, row.captured, row.refunded, row.charged_back],
            "attention": (row.attention or "").partition(":")[0],
            "events": sorted({*await world.events(checkout)}),
            "payments": sorted(
                [payment.role, payment.status, payment.captured, payment.refunded] for payment in payments
            ),
            "operations": sorted(
                [operation.kind, operation.amount, operation.state]
                for operation in await world.operations(checkout)
            ),
            "commands": [[command.kind, _ID.sub("…", result_of(command))] for command in commands],
            "unread": len(unread),
            "movements": [list(movement) for movement in await world.movements(checkout)],
        }
    return found


# ── Filling, in the earlier version ───────────────────────────────────────────────────────────────────────


class Filling(Scene):
    """A scene whose checkouts have names."""

    names: dict[str, UUID]
    books: Any

    async def of(self, name: str, checkout: UUID) -> UUID:
        self.names[name] = checkout
        return checkout

    async def offered(self, **intent: Any) -> UUID:
        """Process until it is offered: a call may meet a connection that an order before it had reset."""
        checkout = await self.accept(**intent)
        await self.process(checkout)
        await self.processed_until(checkout, "awaiting_payment")
        return checkout

    async def paid(self, **intent: Any) -> UUID:
        checkout = await self.offered(**intent)
        await self.pay(checkout)
        await self.called(checkout)
        await self.processed_until(checkout, "completed")
        return checkout

    async def called(self, checkout: UUID) -> None:
        await self.call_back(checkout)
        await self.process(checkout)

    async def expired(self) -> UUID:
        checkout = await self.offered(expiresIn=1)
        await self.processed_until(checkout, "expired")
        return checkout

    def transaction(self, checkout: UUID) -> Any:
        """Return the gateway's only transaction of an order."""
        ((payment),) = (
            payment for payment in self.books.payments.values() if payment.order_id == self.orders[checkout]
        )
        return payment.transactions[-1]


async def fill(world: Filling, database_url: str, gateway_url: str) -> None:
    await _merchants(world)
    await _on_the_way(world)
    await _closed(world)
    await _completed(world)
    await _money(world)
    await _for_a_person(world)
    await _slots(world)
    async with scene(database_url, gateway_url, **SETTINGS, gateway_password="wrong") as other:
        await other.process(await world.of("credentials-refused", await world.accept()))
    await _circuit_open(world, database_url, gateway_url)
    await audit.seal(world.db, world.encryptor)


async def _merchants(world: Filling) -> None:
    await world.merchants.add(
        SLOW,
        gateway_url="",
        merchant_api_url=None,
        username="",
        password=CONFIG.password,
        callback_secrets=(),
    )
    # The name of the policy in that version.
    await world.merchants.set_policies(SLOW, {"late": "keep", "looks_per_minute": 1})
    await world.policy(surplus="ask", surcharge="keep", looks_per_minute=60_000)


async def _on_the_way(world: Filling) -> None:
    await world.of("received", await world.accept())
    for name, call in (("authenticated", "session"), ("session-created", "payment-methods")):
        checkout = await world.of(name, await world.accept())
        await world.plan(checkout, fail={call: 1})
        await world.process(checkout)
    await world.of("unpaid", await world.offered(expiresIn=60))
    listed = await world.of("methods-fetched", await world.accept())
    await world.plan(listed, fail={"payment-methods": 1})
    await world.process(listed)
    # Between the two states no call is made, so that only a process that was killed leaves a checkout there.
    await world.sql("UPDATE checkouts SET hinted = true WHERE id = :id", id=listed)
    (held,) = await checkouts.claim(world.db, [listed], lease_seconds=60.0)
    (session,) = await world.sql("SELECT methods FROM sessions WHERE methods IS NOT NULL LIMIT 1")
    held = await world.moves.advance(
        checkouts.Move(
            held=held,
            trigger=Trigger.METHODS_LISTED,
            action=audit.Action.CHECKOUT_MOVED,
            evidence={"methods": len(session.methods)},
            methods=session.methods,
        )
    )
    await world.moves.advance(checkouts.Move(held=held, trigger=None, action=None, due_in=1.0))
    paid = await world.of("paid-callback-lost", await world.offered())
    await world.pay(paid)
    unread = await world.of("paid-callback-unread", await world.offered())
    await world.pay(unread)
    await world.call_back(unread)
    forged = await world.of("forged-callback-unread", await world.offered(expiresIn=60))
    await world.call_back(forged)
    declined = await world.of("declined", await world.offered(expiresIn=60))
    await world.pay(declined, card=DECLINED_CARD)
    await world.called(declined)
    again = await world.of("declined-then-paid", await world.offered())
    await world.pay(again, card=DECLINED_CARD)
    await world.called(again)
    await world.pay(again)
    for name in ("bank-payment-open", "bank-payment-done-since"):
        pending = await world.of(name, await world.offered())
        payment = await world.pay(pending, method="BANK_PAYMENT", action="open")
        await world.called(pending)
    await world.control("POST", f"payments/{payment}/resolve", {"outcome": "succeeded"})
    received = await world.of("callback-received", await world.offered())
    await world.pay(received)
    await world.plan(received, fail={"payments": 1})
    await world.called(received)
    await world.call_back(received, kind="notification")
    cancelling = await world.of("cancel-requested", await world.offered())
    await world.command(cancelling)
    await world.process(cancelling)
    asked = await world.of("cancel-unread", await world.offered())
    await world.command(asked)
    late = await world.of("cancel-unread-but-paid", await world.offered())
    await world.pay(late)
    await world.command(late)


async def _closed(world: Filling) -> None:
    await world.of("expired", await world.expired())
    paid = await world.of("expired-then-paid", await world.expired())
    await world.pay(paid)
    cancelled = await world.of("cancelled", await world.accept())
    await world.command(cancelled)
    await world.process(cancelled)
    failed = await world.of("failed", await world.accept())
    await world.plan(failed, fail={"session": 1}, failStatus=422)
    await world.process(failed)
    reopening = await world.of("reopen-unread", await world.expired())
    await world.command(reopening, "reopen", expiresIn=900)
    reopened = await world.of("reopened", await world.expired())
    await world.asked(reopened, "reopen", expiresIn=900)


async def _completed(world: Filling) -> None:
    await world.of("completed", await world.paid())
    await world.of("completed-captured", await world.paid(capture=True))
    moved = await world.of("captured-and-refunded", await world.paid())
    await world.asked(moved, "capture")
    await world.asked(moved, "refund", amount=4000)
    capturing = await world.of("capture-unread", await world.paid())
    await world.command(capturing, "capture", amount=4000)
    refunding = await world.of("refund-unread", await world.paid(capture=True))
    await world.command(refunding, "refund", amount=1000)
    releasing = await world.of("release-unread", await world.paid())
    await world.command(releasing, "release")


async def _money(world: Filling) -> None:
    requested = await world.of("operation-requested", await world.paid())
    await world.plan(requested, fail={"capture": 1}, failStatus=429, retryAfter=1)
    await world.command(requested, "capture", amount=4000)
    await world.process(requested)
    # How the error of an operation begins that waits until a circuit is closed.
    await world.sql(
        "UPDATE money_operations SET last_error = 'left_alone: The circuit of the gateway is open.' WHERE checkout_id = :id",
        id=requested,
    )
    for name, fault in (
        ("operation-unknown-and-done", {"fail": {"capture": 1}, "failStatus": "reset", "failAfter": True}),
        ("operation-unknown-and-not-done", {"fail": {"capture": 1}, "failStatus": "reset"}),
    ):
        unknown = await world.of(name, await world.paid())
        await world.plan(unknown, **fault)
        await world.command(unknown, "capture", amount=4000)
        await world.process(unknown)
    for name, kind in (("operation-submitted", "capture"), ("release-submitted", "release")):
        submitted = await world.of(name, await world.paid())
        await world.command(submitted, kind)
        await world.plan(submitted, delayMs={kind: 3000})
        dying = asyncio.create_task(world.process(submitted))
        while [operation.state for operation in await world.operations(submitted)] != ["submitted"]:  # noqa: ASYNC110 - in Postgres
            await asyncio.sleep(0.02)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)


async def _for_a_person(world: Filling) -> None:
    late = await world.of("late-payment", await world.expired())
    await world.pay(late)
    await world.called(late)
    kept = await world.of("late-payment-resolve-unread", await world.expired())
    await world.pay(kept)
    await world.called(kept)
    await world.command(kept, "resolve", decision="keep")
    surplus = await world.of("surplus-payment", await world.paid())
    await world.pay(surplus)
    await world.called(surplus)
    for name, plan in (
        ("payment-mismatch", {"amountMinor": 5000}),
        ("reservation-lapses", {"expiresInSeconds": 3600}),
    ):
        checkout = await world.of(name, await world.offered())
        await world.plan(checkout, **plan)
        await world.pay(checkout)
        await world.called(checkout)
    await _odd_books(world)
    await _failing(world)
    await _unmatched(world)


async def _odd_books(world: Filling) -> None:
    """What the gateway holds cannot be taken for the order, or has changed since."""
    noisy = await world.of("lookup-at-limit", await world.offered())
    await world.plan(noisy, noiseRows=250)
    await world.called(noisy)
    for name, change in (
        ("unclear-payment", {"status": "teleported"}),
        ("over-capture", {"captured_minor": 20000}),
        ("over-refund", {"status": "refunded", "refunded_minor": 15000}),
    ):
        checkout = (
            await world.offered(capture=True) if name == "unclear-payment" else await world.paid(capture=True)
        )
        await world.of(name, checkout)
        if name == "unclear-payment":
            await world.pay(checkout)
        transaction = world.transaction(checkout)
        for field, value in change.items():
            setattr(transaction, field, value)
        await world.called(checkout)
    for name, path, body in (
        ("payment-released", "release", {}),
        ("charged-back", "chargeback", {"amountMinor": 5000}),
    ):
        checkout = await world.of(name, await world.paid(capture=path == "chargeback"))
        payment = await world.ledger(checkout)
        await world.control("POST", f"payments/{payment[0]['paymentId']}/{path}", body)
        await world.call_back(checkout, kind="notification", body=b"status=changed")
        await world.process(checkout)
    gone = await world.of("payment-gone", await world.paid())
    ((lost),) = (
        payment for payment in world.books.payments.values() if payment.order_id == world.orders[gone]
    )
    del world.books.payments[lost.payment_id]
    world.books.orders[lost.order_id].payments.clear()
    await world.called(gone)
    first = await world.of("unbound-payment", await world.expired())
    await world.plan(first, bindings=False)
    second = await world.of("unbound-payment-of-another", await world.offered())
    await world.sql(
        "UPDATE checkouts c SET order_ref = o.order_ref FROM checkouts o WHERE c.id = :id AND o.id = :other",
        id=second,
        other=first,
    )
    await world.pay(first)
    await world.process(first, second)
    unclear = await world.of("operation-unclear", await world.offered())
    await world.plan(unclear, echo=False, fail={"capture": 1}, failStatus="reset")
    await world.pay(unclear)
    await world.called(unclear)
    await world.command(unclear, "capture", amount=4000)
    await world.process(unclear)
    transaction = world.transaction(unclear)
    transaction.captured_minor = 1000
    await asyncio.sleep(0.4)
    await world.process(unclear)


async def _failing(world: Filling) -> None:
    rejected = await world.of("operation-rejected", await world.paid())
    await world.plan(rejected, refuse={"capture": 1})
    await world.command(rejected, "capture", amount=4000)
    await world.process(rejected)
    failing = await world.of("gateway-failing", await world.accept())
    await world.plan(failing, fail={"session": 10})
    for _ in range(10):
        await world.process(failing)
    broken = await world.of("step-broke", await world.accept())
    await world.sql("UPDATE intents SET data_key = NULL WHERE checkout_id = :id", id=broken)
    await world.process(broken)
    poisoned = await world.of("poisoned", await world.accept())
    await world.sql("UPDATE checkouts SET claims = 50 WHERE id = :id", id=poisoned)
    await world.process(poisoned)
    used = await world.of("order-number-used-up", await world.accept())
    await world.plan(used, fail={"payment-methods": 10}, failStatus=410)
    await world.process(used)


async def _unmatched(world: Filling) -> None:
    """Payments for order numbers that no shop has handed over: the first was looked up, of the second only a
    callback came.
    """
    unmatched = inbox.UnmatchedCallbacks(world.db, world.encryptor, world.callbacks, grace=0.2)
    try:
        for name in ("unknown-order", "unknown-order-unread"):
            order = f"U-{uuid4().hex[:12]}"
            made = {"orderId": order, "amountMinor": 13900, "currency": "DKK"}
            # The path in that version.
            (row,) = await world.control("POST", "payments/stray", made)
            payment = checkouts.UnmatchedPayment(
                merchant_id=1,
                order_ref=order,
                transaction_id=row["transactionId"],
                currency="DKK",
                amount=13900,
                named=None,
                correlation_id="corr",
            )
            stored = await unmatched.store(
                inbox.MerchantCallback(
                    payment=payment,
                    grade="signed",
                    network="inside",
                    content_type="",
                    headers={},
                    source=None,
                    body=b"status=succeeded",
                )
            )
            assert stored.checkout_id is not None
            world.orders[stored.checkout_id] = order
            await world.of(name, stored.checkout_id)
        await world.process(world.names["unknown-order"])
    finally:
        await unmatched.close()


async def _slots(world: Filling) -> None:
    """Checkouts that wait for their places in the queue of lookups."""
    merchant = await world.merchants.named(SLOW)
    assert merchant is not None
    made = [await world.offered(merchant=merchant.id) for _ in range(4)]
    for number, checkout in enumerate(made):
        await world.of(f"slot-{number}", checkout)
    await world.pay(made[-1])
    await asyncio.sleep(1.0)
    await world.take(*made)
    waiting = await world.sql("SELECT 1 FROM checkouts WHERE booked")
    assert len(waiting) >= 2


async def _circuit_open(world: Filling, database_url: str, gateway_url: str) -> None:
    """Checkouts that wait until the circuit of the gateway is closed: before their offer, and after it."""
    paid = await world.of("circuit-open-paid", await world.offered())
    await world.pay(paid)
    await world.control(
        "PUT", "faults", {call: {"count": 1000, "status": 503} for call in ("authenticate", "payments")}
    )
    async with scene(database_url, gateway_url, **SETTINGS, breaker_failures=2) as other:
        for number in range(4):
            await other.process(await world.of(f"circuit-open-{number}", await world.accept()))
        await world.call_back(paid)
        await other.process(paid)
    await world.control("DELETE", "faults")
    waiting = await world.sql("SELECT 1 FROM checkouts WHERE last_error LIKE 'left_alone%'")
    assert len(waiting) >= 3


# ── Saving and loading ────────────────────────────────────────────────────────────────────────────────────


def rows(url: str) -> Iterator[str]:
    """Yield the statements that fill an empty database of the same schema with the rows of this database."""
    with psycopg.connect(url) as db:
        db.execute("SET timezone = 'UTC'")
        (now,) = db.execute("SELECT clock()").fetchone() or ()
        yield "SET session_replication_role = replica;"
        yield "DELETE FROM merchants;"
        for table in metadata.sorted_tables:
            if table.name == "clock_skew":
                continue
            columns = [column.name for column in table.columns]
            shown = sql.SQL(", ").join(
                sql.SQL("quote_nullable(CAST({} AS text))").format(sql.Identifier(name)) for name in columns
            )
            found = db.execute(
                sql.SQL("SELECT {} FROM {} ORDER BY 1").format(shown, sql.Identifier(table.name))
            )
            for row in found:
                yield (
                    f"INSERT INTO {table.name} ({', '.join(columns)}) OVERRIDING SYSTEM VALUE VALUES ({', '.join(row)});"
                )
        yield "SELECT setval(pg_get_serial_sequence('merchants', 'id'), (SELECT max(id) FROM merchants));"
        yield (
            "UPDATE clock_skew SET seconds = floor(extract(epoch FROM "
            f"CAST('{now.isoformat()}' AS timestamptz) - statement_timestamp()));"
        )


def load(url: str, data: Path) -> Saved:
    """Fill the database at `url`, which has the schema of revision 0010 and nothing else; return what belongs
    to its rows.
    """
    with psycopg.connect(url, autocommit=True) as db:
        db.execute(gzip.decompress((data / "before_0011.sql.gz").read_bytes()))  # type: ignore[arg-type]  # our own file
    return msgspec.json.decode(gzip.decompress((data / "before_0011.json.gz").read_bytes()), type=Saved)


@contextmanager
def gateway(saved: Saved | None = None) -> Iterator[tuple[str, Any]]:
    """Serve a sandbox that holds what was saved; yield its URL and the sandbox."""
    app = create_app(CONFIG)
    sandbox = app.state.sandbox
    if saved is not None:
        for session in saved.sessions:
            sandbox.books._index_session(session)
        for payment in saved.payments:
            sandbox.books._index_payment(payment)
        for order, plan in saved.plans.items():
            sandbox.faults.set_plan(order, plan)
    with serving(app) as url:
        yield url, sandbox


def saved_from(world: Filling, sandbox: Any) -> Saved:
    plans = {order: plan for order, plan in sandbox.faults.plans.items() if plan.noise_rows}
    sandbox.faults.plans = dict(plans)
    books = sandbox.books
    saved = Saved([*books.sessions.values()], [*books.payments.values()], plans, world.names, world.orders)
    return msgspec.json.decode(msgspec.json.encode(saved), type=Saved)


async def _make(url: str) -> tuple[str, Saved, dict[str, Any]]:
    """Return the statements of the rows, what belongs to them, and the ends."""
    with gateway() as (gateway_url, sandbox):
        async with scene(url, gateway_url, **SETTINGS) as world:
            world.__class__ = Filling
            assert isinstance(world, Filling)
            world.names, world.books = {}, sandbox.books
            await fill(world, url, gateway_url)
            saved = saved_from(world, sandbox)
            text = "\n".join(rows(url)) + "\n"
            world.merchants = world.processor.merchants = Merchants(world.db, world.encryptor, world.settings)
            await finish(world)
            found_ends = await ends(world, world.names)
            found = await audit.verify(world.db, world.encryptor)
            assert found.problems == []
            return text, saved, found_ends


def main() -> None:
    log.configure(style="json", level="error")
    with (
        tempfile.TemporaryDirectory() as home,
        Embedded.start(Path(home) / "servers", redis=False, durable=False) as servers,
    ):
        url = servers.administrator_url
        schema.migrate(url, to="0010")
        text, saved, found_ends = asyncio.run(_make(url))
    data = Path(sys.argv[1])
    data.mkdir(parents=True, exist_ok=True)
    (data / "before_0011.sql.gz").write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    (data / "before_0011.json.gz").write_bytes(gzip.compress(msgspec.json.encode(saved), 9, mtime=0))
    lines = [
        f"{json.dumps(name)}: {json.dumps(end, ensure_ascii=False)}"
        for name, end in sorted(found_ends.items())
    ]
    (data / "before_0011_ends.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
