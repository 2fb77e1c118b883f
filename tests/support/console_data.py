"""Orders of every kind that a person at the console meets: open, paid, in need of each decision, with money
operations whose outcome is unknown, failing endpoints, refused intents.

Each order is taken in by the API's own intake, so that its audit trail begins as it should; what a worker and
the gateway would have added is written by SQL.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from orchestrator.domain.attention import PROBLEMS, AttentionCode
from orchestrator.domain.ids import uuid7
from orchestrator.intents import Problem
from orchestrator.store import inbox
from orchestrator.store.inbox import rejected
from tests.support.factories import intake

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

HOSTILE = "<script>alert(1)</script>\u202e"
"""A text from outside that must never become markup, nor change its line."""
_PAY = """
    INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, reserved,
                          captured, refunded)
    SELECT 1, :transaction, id, order_ref, :role, 'bound', :status, :meaning, :currency, :reserved, :captured, :refunded
      FROM checkouts WHERE id = :id
"""
_END = """
    UPDATE checkouts SET state = :state, reserved = :reserved, captured = :captured, refunded = :refunded, ended_at = clock(),
           version = version + 1, attention = CAST(:attention AS text), attention_details = CAST(:details AS jsonb),
           attention_since = CASE WHEN CAST(:attention AS text) IS NULL THEN NULL ELSE clock() - make_interval(mins => :age) END
     WHERE id = :id
"""


class ConsoleData:
    """Writes orders; amounts in minor units of DKK."""

    def __init__(self, db: Database, encryptor: Encryptor) -> None:
        self.db, self.encryptor = db, encryptor
        self.intents = inbox.Intents(db, encryptor, grace=60.0)

    async def sql(self, statement: str, **values: object):
        from sqlalchemy import text

        return await self.db.write(text(statement), values)

    async def order(self, order: str, *, amount: int = 13900) -> UUID:
        taken = await self.intents.accept(intake(order_ref=order, amount=amount))
        return taken.id

    async def paid(
        self,
        order: str,
        *,
        captured: int = 0,
        refunded: int = 0,
        attention: AttentionCode | None = None,
        payments: tuple[dict[str, object], ...] = (),
        state: str = "completed",
        age: int = 30,
    ) -> UUID:
        """Return an order that is paid, and asks a person something."""
        checkout = await self.order(order)
        await self.pay(checkout, "accepted", captured=captured, refunded=refunded)
        details = {"payments": list(payments)} if payments else {}
        await self.sql(
            _END,
            id=checkout,
            state=state,
            reserved=13900,
            captured=captured,
            refunded=refunded,
            attention=attention,
            details=json.dumps(details),
            age=age,
        )
        return checkout

    async def pay(
        self,
        checkout: UUID,
        role: str,
        *,
        captured: int = 0,
        refunded: int = 0,
        reserved: int = 13900,
        currency: str = "DKK",
    ) -> str:
        transaction = f"T-{uuid4().hex[:10]}"
        meaning = "captured" if captured else "authorised"
        await self.sql(
            _PAY,
            id=checkout,
            transaction=transaction,
            role=role,
            status="captured" if captured else "preauth",
            meaning=meaning,
            currency=currency,
            reserved=reserved,
            captured=captured,
            refunded=refunded,
        )
        return transaction

    async def asking(self, code: AttentionCode, number: int) -> UUID:
        """Return an order that needs this decision, with a payment that it is about where one is."""
        about = code in PROBLEMS or code in {AttentionCode.SURPLUS_PAYMENT, AttentionCode.UNKNOWN_ORDER}
        checkout = await self.paid(
            f"Q-{number:02}-{code[:20]}".replace("_", "-"), attention=code, age=20 * number + 1
        )
        if about:
            role = "surplus" if code is AttentionCode.SURPLUS_PAYMENT else "unknown"
            transaction = await self.pay(checkout, role, reserved=12900)
            payment = {"transaction_id": transaction, "amount": 12900, "currency": "DKK"}
            if code in PROBLEMS:
                payment["problem"] = code
            await self.sql(
                "UPDATE checkouts SET attention_details = CAST(:details AS jsonb) WHERE id = :id",
                id=checkout,
                details=json.dumps({"payments": [payment]}),
            )
        return checkout

    async def returned(self, checkout: UUID, *, amount: int) -> str:
        """Write a decision to return surplus money, with its release on the way; return the transaction."""
        command, operation = uuid7(), uuid7()
        await self.sql(
            """INSERT INTO commands (id, merchant_id, checkout_id, kind, actor, arguments, handled_at, result, result_details)
               SELECT :id, 1, :checkout, 'resolve', 'operator:a', '{"decision": "return"}', clock(), 'accepted', CAST(:details AS jsonb)""",
            id=command,
            checkout=checkout,
            details=json.dumps({"operations": [str(operation)]}),
        )
        (row,) = await self.sql(
            """INSERT INTO money_operations (id, merchant_id, checkout_id, command_id, transaction_id, kind, amount, currency, state,
                                             reconciliation_identifier, cause, actor, submitted_at)
               SELECT :id, 1, checkout_id, :command, transaction_id, 'release', :amount, 'DKK', 'submitted', CAST(:id AS text), 'returned',
                      'operator:a', clock() FROM payments WHERE checkout_id = :checkout AND role = 'surplus'
               RETURNING transaction_id""",
            id=operation,
            command=command,
            amount=amount,
            checkout=checkout,
        )
        return str(row.transaction_id)

    async def endpoint(self, *, failing: bool = False, paused: str | None = None) -> UUID:
        """Return an endpoint; one that fails has attempts and unsent events."""
        new = uuid7()
        await self.sql(
            """INSERT INTO webhook_endpoints (id, merchant_id, url, description, secret, failing_since, paused_at, pause_reason,
                      open_until, opened)
               VALUES (:id, 1, :url, :about, 's', CASE WHEN :failing THEN clock() - interval '3 hours' END,
                       CASE WHEN CAST(:paused AS text) IS NOT NULL THEN clock() END, CAST(:paused AS text),
                       CASE WHEN :failing THEN clock() + interval '2 minutes' END, CASE WHEN :failing THEN 3 ELSE 0 END)""",
            id=new,
            url=f"https://shop.example/events/{new.hex[-6:]}?{'x' * 40}",
            about=HOSTILE if failing else "the shop's own",
            failing=failing,
            paused=paused,
        )
        return new

    async def task(self) -> UUID:
        """Return an endpoint that is a Celery task on our own broker."""
        new = uuid7()
        await self.sql(
            """INSERT INTO webhook_endpoints (id, merchant_id, kind, url, task, queue, description, secret)
               VALUES (:id, 1, 'celery', '', 'shop.events', 'shop', 'bookkeeping', '')""",
            id=new,
        )
        return new

    async def attempt(
        self, endpoint: UUID, checkout: UUID, *, number: int, result: str | None = None
    ) -> None:
        await self.sql(
            """INSERT INTO delivery_attempts (id, endpoint_id, checkout_id, sequence, kind, purpose, number, outcome, status,
                                              milliseconds, result)
               VALUES (:id, :endpoint, :checkout, 1, 'checkout.completed', 'event', :number, 'refused', 503, 212, :result)""",
            id=uuid7(),
            endpoint=endpoint,
            checkout=checkout,
            number=number,
            result=result,
        )

    async def everything(self) -> dict[str, UUID]:
        """Write orders of every kind; return some of them by what they are."""
        named = {
            "open": await self.order("A-OPEN-1"),
            "paid": await self.paid("A-PAID-1"),
            "captured": await self.paid("A-CAPTURED-1", captured=13900, refunded=1000),
            "dead": await self.order("A-DEAD-END-1"),
        }
        for number, code in enumerate(AttentionCode):
            named[code.value] = await self.asking(code, number)
        await self.sql(
            """UPDATE checkouts SET last_error = 'circuit_open', attempts = 4, state = 'authenticated', version = version + 1
                WHERE id = :id""",
            id=named["dead"],
        )
        await self.sql(
            """INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state,
                                             reconciliation_identifier, cause, actor, submitted_at)
               SELECT gen_random_uuid(), 1, checkout_id, transaction_id, 'capture', 13900, 'DKK', 'unknown', 'r-1', 'asked',
                      'client:default/shop-1', clock() - interval '7 minutes' FROM payments WHERE checkout_id = :id""",
            id=named["operation_unclear"],
        )
        failing = await self.endpoint(failing=True)
        named["endpoint"] = failing
        await self.endpoint()
        await self.endpoint(paused="failing")
        await self.task()
        for number in range(1, 4):
            await self.attempt(
                failing, named["paid"], number=number, result="given_up" if number == 3 else None
            )
        await self.sql(
            """INSERT INTO delivery_streams (endpoint_id, checkout_id, next_sequence, last_sequence, due_at, attempts, failing_since)
               VALUES (:endpoint, :checkout, 1, 2, clock() - interval '1 hour', 3, clock() - interval '3 hours')""",
            endpoint=failing,
            checkout=named["captured"],
        )
        await self.sql(
            "UPDATE checkouts SET ended_at = clock() - interval '1 hour' WHERE id = :id", id=named["captured"]
        )
        refused = [
            rejected.Rejection(
                merchant_id=merchant,
                message_id=f"m-{number}",
                number=0,
                order_ref=HOSTILE if number else "R-1",
                code=code,  # type: ignore[arg-type]  # a word of the set
                problems=(Problem("order.amount.value", f"must be more than 0 {HOSTILE}"),),
                body=b"{}",
                correlation_id="c",
            )
            for number, (merchant, code) in enumerate(((1, "invalid_intent"), (None, "access_denied")))
        ]
        await rejected.store(self.db, self.encryptor, refused)
        await self.sql(
            """INSERT INTO workers (name, kind, progress) VALUES
               ('host:1:a', 'worker', '{"inFlight": 3, "counters": {"moves/completed": 7}, "queued": {"intents": 4}, "gateways": [{"gateway": "https://pay.example", "calls": 50, "failed": 5, "seconds": 2.5, "openFor": 12}]}'), ('host:2:b', 'scheduler', '{}')"""
        )
        return named

    async def close(self) -> None:
        await self.intents.close()
