"""A processor on real Postgres and a real sandbox: no API and no Celery, so that the test decides on each
claim.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
from sqlalchemy import text

from orchestrator import intents
from orchestrator.crypto import Encryptor
from orchestrator.domain.records import Operation
from orchestrator.gateway.client import Gateway
from orchestrator.processing import CheckoutProcessor, StepContext
from orchestrator.store import inbox
from orchestrator.store.checkouts import Transitions, claim, sign_operation
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants
from tests.conftest import make_settings
from tests.support.cloud_events import check_all
from tests.support.said import Answer, answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from orchestrator.settings import Settings

GOOD_CARD = "4111000011110000"
PAGE = "https://shop.example/thanks"


def intent(order: str, *, amount: str = "139.00", capture: bool = False, **more: object) -> bytes:
    """Return the JSON of a checkout intent with one order line."""
    body = {
        "order": {
            "orderId": order,
            "amount": {"value": json.loads(amount), "currency": "DKK"},
            "orderLines": [
                {
                    "itemId": "1",
                    "description": "A lamp",
                    "quantity": 1,
                    "unitPrice": json.loads(amount),
                    "taxAmount": 0,
                }
            ],
            "customer": {
                "firstName": "Test",
                "lastName": "Shopper",
                "email": "shopper@shop.example",
                "billingAddress": {"street": "Road 1", "city": "Town", "country": "DK", "zipCode": "1000"},
            },
        },
        "callbacks": {
            "success": {"type": "URL", "value": PAGE},
            "failure": {"type": "URL", "value": "https://shop.example/sorry"},
            "redirect": "https://shop.example/wait",
        },
        "configuration": {
            "paymentType": "PAYMENT",
            "autoCapture": capture,
            "country": "DK",
            "language": "da",
        },
        **more,
    }
    return json.dumps(body).encode()


async def take(processor: CheckoutProcessor, ids: Sequence[UUID]) -> list[UUID]:
    """Claim what a hint would find, and process it as far as it goes; return what was woken meanwhile."""
    return await processor.process(
        await claim(processor.context.db, ids, lease_seconds=processor.context.settings.lease_seconds)
    )


class Scene:
    """One test's installation. `process` claims and processes once, as after a hint."""

    def __init__(self, settings: Settings, db: Database, gateway: Gateway, *, timeout: float = 5.0) -> None:
        self.settings, self.db = settings, db
        self.encryptor = Encryptor(settings.secret_keys)
        self.moves = Transitions(db, self.encryptor, timeout=timeout)
        self.merchants = Merchants(db, self.encryptor, settings)
        self.processor = CheckoutProcessor(
            StepContext(
                settings=settings,
                db=db,
                encryptor=self.encryptor,
                gateway=gateway,
                transitions=self.moves,
                merchants=self.merchants,
            )
        )
        self.intents = inbox.Intents(db, self.encryptor, grace=settings.hint_grace)
        self.callbacks = inbox.Callbacks(db, self.encryptor, grace=settings.hint_grace)
        # A kept connection is given up before the servers give it up (5 s): a request that meets its end has
        # no answer.
        self.http = httpx.AsyncClient(timeout=5, limits=httpx.Limits(keepalive_expiry=2))
        self.orders: dict[UUID, str] = {}

    async def accept(
        self, *, amount: str = "139.00", capture: bool = False, merchant: int = 1, **more: object
    ) -> UUID:
        order = f"C-{uuid4().hex[:12]}"
        parsed = intents.parse(intent(order, amount=amount, capture=capture, **more))
        accepted = await self.intents.accept(
            inbox.Intake(
                merchant_id=merchant,
                order_ref=parsed.order_ref,
                currency=parsed.currency,
                amount=parsed.amount,
                expires_in=parsed.expires_in or self.settings.checkout_expires_in,
                document=parsed.document,
                fingerprint=parsed.fingerprint,
                actor="test",
                correlation_id="corr",
                auto_capture=parsed.auto_capture,
                email=parsed.email,
            )
        )
        self.orders[accepted.id] = order
        return accepted.id

    async def second_merchant(self, name: str = "quiet", *, gateway_url: str | None = None) -> int:
        """Add a merchant with the same account, at the same gateway by default; return its id."""
        url = gateway_url or self.settings.gateway_url
        assert url is not None
        password = self.settings.gateway_password.get_secret_value()
        await self.merchants.add(
            name,
            gateway_url=url,
            merchant_api_url=None,
            username=self.settings.gateway_username,
            password=password,
            callback_secrets=(),
        )
        merchant = await self.merchants.named(name)
        assert merchant is not None
        return merchant.id

    async def process(self, *ids: UUID) -> list[UUID]:
        """Process, whatever the due times say: as if they had just been hinted at."""
        await self.sql("UPDATE checkouts SET hinted = true WHERE id = ANY(:ids)", ids=list(ids))
        return await self.take(*ids)

    async def take(self, *ids: UUID) -> list[UUID]:
        return await take(self.processor, ids)

    async def offered(self, **intent: Any) -> UUID:
        """Return a checkout that is awaiting payment."""
        checkout = await self.accept(**intent)
        await self.process(checkout)
        assert await self.state(checkout) == "awaiting_payment"
        return checkout

    async def processed_until(self, checkout: UUID, *states: str, seconds: float = 10.0) -> Any:
        """Process whenever the checkout is due until the checkout is in one of these states."""
        async with asyncio.timeout(seconds):
            while (row := await self.row(checkout)).state not in states:
                await self.take(checkout)
                await asyncio.sleep(0.02)
        return row

    async def sql(self, statement: str, **parameters: object) -> Sequence[Any]:
        return await self.db.write(text(statement), parameters)

    async def row(self, checkout: UUID) -> Any:
        return (
            await self.sql(
                "SELECT c.*, due_at - clock() AS due_in, deadline - clock() AS left FROM checkouts c WHERE id = :id",
                id=checkout,
            )
        )[0]

    async def state(self, checkout: UUID) -> str:
        return str((await self.row(checkout)).state)

    async def until_state(self, checkout: UUID, state: str) -> None:
        async with asyncio.timeout(30):
            while await self.state(checkout) != state:  # noqa: ASYNC110 - the state is in Postgres
                await asyncio.sleep(0.02)

    async def trail(self, checkout: UUID) -> list[dict[str, Any]]:
        rows = await self.sql(
            "SELECT entry FROM audit_entries WHERE checkout_id = :id ORDER BY sequence", id=checkout
        )
        return [json.loads(row.entry) for row in rows]

    async def events(self, checkout: UUID) -> list[str]:
        rows = await self.sql("SELECT * FROM events WHERE checkout_id = :id ORDER BY sequence", id=checkout)
        return check_all(rows)

    # The gateway's side.

    async def control(self, method: str, path: str, body: object = None) -> Any:
        answer = await self.http.request(method, f"{self.settings.gateway_url}/sandbox/{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def plan(self, checkout: UUID, **plan: object) -> None:
        await self.control("PUT", f"orders/{self.orders[checkout]}", plan)

    async def pay(
        self, checkout: UUID, *, card: str = GOOD_CARD, action: str = "pay", method: str = "CARD"
    ) -> str:
        """Pay as a shopper at the gateway's page; return the gateway's payment id."""
        page = await self.open_page(checkout, method=method)
        await self.submit(page, card=card, action=action)
        return page.rsplit("/", 1)[-1]

    async def open_page(self, checkout: UUID, *, method: str = "CARD") -> str:
        """Begin a payment as a shopper, and return the URL of the gateway's page."""
        session = (await self.sql("SELECT * FROM sessions WHERE checkout_id = :id", id=checkout))[0]
        key = (await self.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout))[
            0
        ].data_key
        token = self.encryptor.data_key(checkout, key).decrypt(session.token, purpose="token").decode()
        chosen = next(option for option in session.methods if option["type"] == method)
        answer = await self.http.post(
            chosen["onInitiatePayment"]["value"],
            json={"paymentMethodId": chosen["id"], "sessionId": session.session_id},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.is_success, answer.text
        return str(answer.json()["url"])

    async def submit(self, page: str, *, card: str = GOOD_CARD, action: str = "pay") -> None:
        """Do something on a gateway's page that is open: pay by default."""
        form = {"action": action}
        if action == "pay":
            form |= {"card_number": card, "expiry": "12/39", "cvc": "123"}
        answer = await self.http.post(page, data=form)
        assert answer.status_code < 500

    async def call_back(
        self, checkout: UUID, *, kind: str = "success", body: bytes = b"status=succeeded"
    ) -> None:
        await self.callbacks.store(
            inbox.Arrival(
                checkout_id=checkout,
                kind=kind,
                grade="unchecked",
                content_type="application/x-www-form-urlencoded",
                headers={},
                source="127.0.0.1",
                body=body,
            )
        )

    async def command(
        self,
        checkout: UUID,
        kind: str = "cancel",
        *,
        version: int | None = None,
        **arguments: object,
    ) -> UUID:
        asked = await inbox.request(
            self.db,
            self.encryptor,
            checkout,
            merchant_id=1,
            kind=kind,
            actor="client:shop",
            reason="sold out",
            expected_version=version,
            arguments=arguments,
            grace=0.2,
        )
        assert asked is not None
        return asked.id

    async def asked(self, checkout: UUID, kind: str, **arguments: object) -> Answer:
        """Store a command, have it executed, and return its result."""
        command = await self.command(checkout, kind, **arguments)
        async with asyncio.timeout(15):
            while True:
                await self.process(checkout)
                (row,) = await self.sql(
                    "SELECT result, result_details FROM commands WHERE id = :id", id=command
                )
                if row.result is not None and not await self.operating(checkout):
                    return answer(row)
                await asyncio.sleep(0.02)

    async def operating(self, checkout: UUID) -> bool:
        """Say whether an operation on the checkout's money is not settled."""
        return any(row.state not in {"succeeded", "rejected"} for row in await self.operations(checkout))

    async def operations(self, checkout: UUID) -> Sequence[Any]:
        return await self.sql(
            "SELECT * FROM money_operations WHERE checkout_id = :id ORDER BY requested_at, id", id=checkout
        )

    async def sign_operations(self, checkout: UUID) -> None:
        """Sign the operations as they stand now, after the test has written into them."""
        names = [field.name for field in fields(Operation)]
        for row in await self.operations(checkout):
            operation = Operation(**{name: getattr(row, name) for name in names})
            mac = sign_operation(self.encryptor, checkout, row.merchant_id, operation)
            await self.sql("UPDATE money_operations SET mac = :mac WHERE id = :id", mac=mac, id=row.id)

    async def paid(self, **intent: Any) -> UUID:
        """Return a checkout that is completed."""
        checkout = await self.offered(**intent)
        await self.pay(checkout)
        await self.call_back(checkout)
        await self.process(checkout)
        assert await self.state(checkout) == "completed"
        return checkout

    async def policy(self, **policies: object) -> None:
        """Set policies of the merchant, for this scene."""
        assert await self.merchants.set_policies("default", policies)
        self.merchants = self.processor.context.merchants = Merchants(self.db, self.encryptor, self.settings)

    async def later(self, **span: float) -> None:
        """Let time pass for everything that goes by Postgres's clock."""
        seconds = int(timedelta(**span).total_seconds())
        await self.sql("UPDATE clock_skew SET seconds = seconds + :seconds", seconds=seconds)

    async def movements(self, checkout: UUID) -> list[tuple[str, int]]:
        """Return what the gateway's ledger says was moved for the order: captures, refunds, releases, in
        order.
        """
        rows = await self.ledger(checkout)
        return [(movement["type"], movement["amountMinor"]) for row in rows for movement in row["movements"]]

    async def ledger(self, checkout: UUID) -> list[dict[str, Any]]:
        page = await self.control("GET", f"ledger?orderId={self.orders[checkout]}")
        return [row for order in page["orders"] for row in order["payments"]]

    async def agree(self, *checkouts: UUID) -> None:
        """Check that the gateway's ledger and our books agree to the minor unit, over all payments of these
        checkouts.
        """
        for checkout in checkouts or tuple(self.orders):
            theirs = {
                row["transactionId"]: (row["capturedMinor"], row["refundedMinor"])
                for row in await self.ledger(checkout)
                if row["capturedMinor"] or row["refundedMinor"]
            }
            rows = await self.sql(
                "SELECT transaction_id, role, captured, refunded FROM payments WHERE checkout_id = :id",
                id=checkout,
            )
            ours = {
                row.transaction_id: (row.captured, row.refunded)
                for row in rows
                if row.captured or row.refunded
            }
            assert ours == theirs, (checkout, ours, theirs)
            accepted = [row for row in rows if row.role == "accepted"]
            books = await self.row(checkout)
            if accepted:
                paid = (sum(row.captured for row in accepted), sum(row.refunded for row in accepted))
                assert (books.captured, books.refunded) == paid


@asynccontextmanager
async def scene(
    database_url: str, gateway_url: str, *, timeout: float = 5.0, **changes: object
) -> AsyncIterator[Scene]:
    settings = make_settings(database_url=database_url, gateway_url=gateway_url, **changes)
    async with Database(database_url, pool_size=4) as db, Gateway(settings) as gateway:
        started = Scene(settings, db, gateway, timeout=timeout)
        try:
            yield started
        finally:
            await started.http.aclose()
            for batch in (started.moves, started.intents, started.callbacks):
                await batch.close()
