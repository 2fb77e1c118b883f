"""Checkouts in every state, made by the real intake and the real mover on a real database; and databases that
break.

`Core` is the internal objects of a process of the orchestrator: database, encryptor, batch writers. Every
checkout that comes from here has its intent, its audit chain and its events, as if a worker had processed it.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from orchestrator.audit import Action
from orchestrator.domain import events
from orchestrator.domain.records import PaymentRecord
from orchestrator.domain.states import State, Trigger
from orchestrator.store import checkouts as lifecycle
from orchestrator.store import inbox
from orchestrator.store.database import Database
from orchestrator.store.tables import metadata
from tests.support.pooler import direct

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Executable, Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.store.checkouts import Move
    from orchestrator.store.connection import Connection

T = Trigger
JOURNEY: dict[State, tuple[Trigger, ...]] = {
    State.RECEIVED: (),
    State.AUTHENTICATED: (T.AUTHENTICATED,),
    State.SESSION_CREATED: (T.AUTHENTICATED, T.SESSION_OPENED),
    State.METHODS_FETCHED: (T.AUTHENTICATED, T.SESSION_OPENED, T.METHODS_LISTED),
    State.AWAITING_PAYMENT: (T.AUTHENTICATED, T.SESSION_OPENED, T.METHODS_LISTED, T.OFFERED),
    State.CALLBACK_RECEIVED: (
        T.AUTHENTICATED,
        T.SESSION_OPENED,
        T.METHODS_LISTED,
        T.OFFERED,
        T.CALLBACK_ARRIVED,
    ),
    State.COMPLETED: (T.AUTHENTICATED, T.SESSION_OPENED, T.METHODS_LISTED, T.OFFERED, T.PAYMENT_FOUND),
    State.FAILED: (T.REFUSED,),
    State.EXPIRED: (T.AUTHENTICATED, T.SESSION_OPENED, T.METHODS_LISTED, T.OFFERED, T.DEADLINE_PASSED),
    State.CANCELLED: (T.CANCELLED,),
}
"""The shortest way of a checkout into each state."""

_WRITES: dict[Trigger, dict[str, Any]] = {
    T.AUTHENTICATED: {"token": b"a sealed token", "token_lifetime": 3600.0},
    T.SESSION_OPENED: {"session_id": "session-1", "session_count": 1},
    T.METHODS_LISTED: {"methods": [{"id": "card"}]},
    T.OFFERED: {"offered": True, "events": (events.ready(methods=1),)},
}

COMPLETED = events.completed(["t-1"], late=False, policy=None, surcharge=0)
"""An event of a completion, for moves that tests make themselves."""

_orders = itertools.count(1)


def lost_connection() -> OperationalError:
    """Return the error that a connection lost at COMMIT is reported with."""
    gone = psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly")
    return OperationalError("COMMIT", {}, gone, connection_invalidated=True)


class Breaking(Database):
    """A database whose connection can be made to break at COMMIT, before it or after it."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._url = url
        self.lost_answers = 0
        """Transactions still to be committed without their client hearing of it."""
        self.cut_before_commit = 0
        """Transactions still to be ended by the server in their last moment."""
        self.committed = 0

    @asynccontextmanager
    async def transaction(self, **options: Any) -> AsyncIterator[AsyncConnection]:
        async with super().transaction(**options) as tx:
            yield tx
            if self.cut_before_commit:
                self.cut_before_commit -= 1
                pid = (await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                with psycopg.connect(direct(self._url), autocommit=True) as admin:
                    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        self.committed += 1
        if self.lost_answers:
            self.lost_answers -= 1
            raise lost_connection()

    async def _commit(self, driver: Connection) -> None:
        if self.cut_before_commit:
            self.cut_before_commit -= 1
            with psycopg.connect(direct(self._url), autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s, 5000)", [driver.info.backend_pid])
        await super()._commit(driver)
        self.committed += 1
        if self.lost_answers:
            self.lost_answers -= 1
            raise lost_connection()

    async def write(self, statement: Executable, parameters: Mapping[str, object]) -> Sequence[Row[Any]]:
        async with self.transaction() as tx:
            result = await tx.execute(statement, parameters)
            return result.all() if result.returns_rows else ()


def intake(**changes: Any) -> inbox.Intake:
    """Return a valid intent for an unused order number."""
    values: dict[str, Any] = {
        "merchant_id": 1,
        "order_ref": f"T-{next(_orders)}",
        "currency": "DKK",
        "amount": 13900,
        "expires_in": 3600.0,
        "document": b'{"order": "of a lamp"}',
        "fingerprint": b"f" * 32,
        "actor": "test:factory",
        "correlation_id": "c-1",
        **changes,
    }
    return inbox.Intake(**values)


def arrival(checkout: UUID, **changes: Any) -> inbox.Arrival:
    """Return a callback as the gateway sends it."""
    values: dict[str, Any] = {
        "checkout_id": checkout,
        "kind": "notification",
        "grade": "signed",
        "content_type": "application/x-www-form-urlencoded",
        "headers": {},
        "source": None,
        "body": b"status=succeeded",
        **changes,
    }
    return inbox.Arrival(**values)


def payment(transaction_id: str, **changes: Any) -> PaymentRecord:
    """Return a transaction that pays the factory's order."""
    values: dict[str, Any] = {
        "transaction_id": transaction_id,
        "payment_id": None,
        "order_ref": "T",
        "role": "accepted",
        "binding": "bound",
        "status": "preauth",
        "meaning": "reserved",
        "currency": "DKK",
        "reserved": 13900,
        "captured": 0,
        "refunded": 0,
        **changes,
    }
    return PaymentRecord(**values)


def move(held: ClaimedCheckout, trigger: Trigger | None = None, **changes: Any) -> Move:
    """Return one write of the holder, audited by default."""
    values: dict[str, Any] = {"action": Action.CHECKOUT_MOVED, **changes}
    return lifecycle.Move(held=held, trigger=trigger, **values)


@dataclass(frozen=True, slots=True)
class Core:
    """What one process has: its database and its batch writers."""

    url: str
    db: Database
    encryptor: Encryptor
    intents: inbox.Intents
    callbacks: inbox.Callbacks
    lifecycle: lifecycle.Transitions

    async def claim(self, *ids: UUID, lease: float = 60.0) -> list[ClaimedCheckout]:
        return await lifecycle.claim(self.db, ids, lease_seconds=lease)

    async def advance(
        self, held: ClaimedCheckout, trigger: Trigger | None = None, **changes: Any
    ) -> ClaimedCheckout:
        return await self.lifecycle.advance(move(held, trigger, **changes))

    async def release(
        self, held: ClaimedCheckout, due_in: float | None = 60.0, **changes: Any
    ) -> ClaimedCheckout:
        """Give the lease back and change nothing else."""
        return await self.advance(held, action=None, due_in=due_in, **changes)

    async def accept(self, **changes: Any) -> UUID:
        return (await self.intents.accept(intake(**changes))).id

    async def held(
        self, state: State = State.RECEIVED, *, lease: float = 60.0, **changes: Any
    ) -> ClaimedCheckout:
        """Return a checkout in `state` under a lease of ours; `changes` are of its intake."""
        (held,) = await self.claim(await self.accept(**changes), lease=lease)
        for trigger in JOURNEY[state]:
            held = await self.advance(held, trigger, **_WRITES.get(trigger, {}))
        return held

    async def checkout(
        self, state: State = State.RECEIVED, *, due_in: float | None = 60.0, **changes: Any
    ) -> UUID:
        """Return a checkout in `state` without a lease, with its due time `due_in` seconds away."""
        return (await self.release(await self.held(state, **changes), due_in)).id

    async def checkouts(self, number: int) -> list[UUID]:
        """Return new checkouts that have been hinted at."""
        return list(await asyncio.gather(*(self.accept() for _ in range(number))))

    async def wake(self, *ids: UUID, grace: float = 60.0) -> None:
        async with self.db.transaction() as tx:
            await lifecycle.wake(tx, ids, grace=grace)

    async def row(self, checkout: UUID) -> Row[Any]:
        """Return the row of a checkout, with `is_due`: whether it is due now."""
        (row,) = await self.db.read(
            text("SELECT *, coalesce(due_at <= clock(), false) AS is_due FROM checkouts WHERE id = :id"),
            {"id": checkout},
        )
        return row

    async def all(self, query: str, **parameters: object) -> list[Any]:
        """Return the rows of a query; of a query for one column, its values."""
        rows = await self.db.read(text(query), parameters)
        return [row[0] if len(row) == 1 else tuple(row) for row in rows]

    async def do(self, statement: str, **parameters: object) -> None:
        await self.db.write(text(statement), parameters)

    async def tamper(self, *statements: str, **parameters: object) -> None:
        """Go round the triggers as only a superuser can."""
        async with self.db.transaction() as tx:
            await tx.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                await tx.execute(text(statement), parameters)


@asynccontextmanager
async def core(
    url: str,
    encryptor: Encryptor,
    *,
    database: type[Database] = Database,
    pool: int = 6,
    timeout: float = 20.0,
    grace: float = 60.0,
) -> AsyncIterator[Core]:
    """Open the inside of one process.

    The grace is long: nothing becomes due by itself unless a test asks for it.
    """
    async with AsyncExitStack() as closing:
        db = await closing.enter_async_context(database(url, pool_size=pool))
        intents = inbox.Intents(db, encryptor, grace=grace, timeout=timeout)
        callbacks = inbox.Callbacks(db, encryptor, grace=grace, timeout=timeout)
        mover = lifecycle.Transitions(db, encryptor, timeout=timeout)
        for batch in (intents, callbacks, mover):
            closing.push_async_callback(batch.close)
        yield Core(url, db, encryptor, intents, callbacks, mover)


@asynccontextmanager
async def row_held(url: str, checkout: UUID) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Hold the row of a checkout in a transaction of a connection of our own."""
    async with await psycopg.AsyncConnection.connect(direct(url)) as other:
        await other.execute("SELECT 1 FROM checkouts WHERE id = %s FOR UPDATE", [checkout])
        yield other
        await other.rollback()


def empty(url: str) -> None:
    """Delete everything but the first merchant, past the guard of the audit trail."""
    with psycopg.connect(direct(url), autocommit=True) as admin:
        admin.execute("SET session_replication_role = replica")
        for table in metadata.sorted_tables:
            if table.name not in {"merchants", "clock_skew"}:
                admin.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
        admin.execute("DELETE FROM merchants WHERE name <> 'default'")
        admin.execute("UPDATE clock_skew SET seconds = 0")
