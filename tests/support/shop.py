"""A shop's installation in one process: the gateway calls our real API over HTTP, and the test is the worker.

Beside what a `Scene` has there is the API at an address of its own (a firewall may be before it), with signed
callbacks, and a second worker with database connections of its own. Graces and lookups are those of
production: time passes by `later`, and nothing becomes due by itself.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from uuid import UUID, uuid4

import uvicorn

from orchestrator import audit, auth, callback_urls, intents
from orchestrator.api import create_app
from orchestrator.api.server import build
from orchestrator.devkit.sandbox import SandboxConfig
from orchestrator.devkit.sandbox import create_app as create_gateway
from orchestrator.gateway.client import Gateway
from orchestrator.processing import CheckoutProcessor, StepContext
from orchestrator.processing.context import CredentialsCircuit
from orchestrator.store import inbox
from orchestrator.store.checkouts import Transitions
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants
from tests.conftest import make_settings
from tests.support.factories import empty
from tests.support.parties import serving
from tests.support.scene import GOOD_CARD, Scene, intent, take

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from orchestrator.api import Services

SECRET = "0123456789abcdef-callbacks"
FORM = "application/x-www-form-urlencoded"
WHOLE = 13900
DECLINED_CARD = "4180000000000566"
CALM = {
    "gateway_secrets": (SECRET,), "gateway_networks": ("127.0.0.1",), "hint_grace": 5.0, "deadline_grace": 30.0,
    "cancel_grace": 30.0, "first_check_after": 120.0, "recheck_after_callback": 2.0, "check_interval_cap": 1800.0,
}  # fmt: skip
GATEWAY = SandboxConfig(
    username="shop", password="sandbox password", callback_secrets=(SECRET,), hang_seconds=1.0
)

_BLOCKED = b"<html><head><title>403 Forbidden</title></head><body>Request blocked.</body></html>"


class Wire:
    """The connection to the gateway: counts lookups by order number, and bends answers to them as a
    test says.
    """

    def __init__(self) -> None:
        self.app = create_gateway(GATEWAY)
        self.lookups: Counter[str] = Counter()
        self.bent: dict[str, Callable[[str], str]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/merchant/API/payments":
            await self.app(scope, receive, send)
            return
        (order, *_) = parse_qs(scope["query_string"].decode()).get("shop_orderid", [""])
        self.lookups[order] += 1
        bend = self.bent.get(order)
        if bend is None:
            await self.app(scope, receive, send)
            return
        said: list[Any] = []

        async def keep(message: Any) -> None:
            said.append(message)

        await self.app(scope, receive, keep)
        body = b"".join(message.get("body", b"") for message in said[1:])
        bent = bend(body.decode()).encode()
        headers = [(name, value) for name, value in said[0]["headers"] if name.lower() != b"content-length"]
        await send({**said[0], "headers": [*headers, (b"content-length", b"%d" % len(bent))]})
        await send({"type": "http.response.body", "body": bent})


class GatewayLimits:
    """What is in front of our API: nothing, or a firewall that does not let callbacks
    through.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.blocks = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not self.blocks or scope["type"] != "http" or not scope["path"].startswith("/callbacks/"):
            await self.app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/html"), (b"content-length", b"%d" % len(_BLOCKED))]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": _BLOCKED})


class RecordedHints:
    """A hint publisher that publishes nothing: the test is the worker."""

    trouble = None

    def publish(
        self, ids: Sequence[UUID], *, queue: str = "checkouts", merchant_id: int | None = None
    ) -> None:
        """No server answers."""


class Shop(Scene):
    """One installation with its API; `second` is another worker."""

    services: Services
    limits_of_gateway: GatewayLimits
    wire: Wire
    second: CheckoutProcessor

    async def begin(self, url: str) -> None:
        """Remove what the last test left."""
        empty(url)
        self.orders.clear()
        self.limits_of_gateway.blocks = False
        self.wire.bent.clear()
        self.processor.context.circuit = CredentialsCircuit()
        await self.control("DELETE", "faults")
        await self.sql("UPDATE merchants SET policies = '{}'")
        self.merchants = self.processor.context.merchants = Merchants(self.db, self.encryptor, self.settings)
        await self.services.merchants.everyone()

    # ── The merchant ───────────────────────────────────────────────────────────────────────────────────────

    async def accept(
        self,
        *,
        amount: str = "139.00",
        capture: bool = False,
        order: str | None = None,
        merchant_id: int = 1,
        **more: object,
    ) -> UUID:
        order = order or f"M-{uuid4().hex[:12]}"
        parsed = intents.parse(intent(order, amount=amount, capture=capture, **more))
        accepted = await self.intents.accept(
            inbox.Intake(
                merchant_id=merchant_id,
                order_ref=parsed.order_ref,
                currency=parsed.currency,
                amount=parsed.amount,
                expires_in=parsed.expires_in or self.settings.checkout_expires_in,
                document=parsed.document,
                fingerprint=parsed.fingerprint,
                actor="test",
                correlation_id="corr",
                auto_capture=parsed.auto_capture,
            )
        )
        self.orders[accepted.id] = order
        return accepted.id

    async def post(self, order: str, **changes: Any) -> Any:
        """Hand an intent over by HTTP, as a shop does; return the answer."""
        token = auth.issue(
            self.settings, merchant="default", scopes=("checkouts:write",), lifetime=60, subject="shop-1"
        )
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = f"{self.settings.public_url}/v1/checkouts"
        return await self.http.post(url, content=intent(order, **changes), headers=headers)

    async def paid(self, **intent: Any) -> UUID:
        """Return a checkout that was paid and completed by the gateway's own callbacks."""
        checkout = await self.offered(**intent)
        await self.pay(checkout)
        await self.told(checkout)
        await self.follow(checkout)
        assert await self.state(checkout) == "completed"
        return checkout

    async def expired(self, **intent: Any) -> UUID:
        checkout = await self.offered(**{"expiresIn": 600, **intent})
        await self.later(seconds=640)
        await self.follow(checkout)
        assert await self.state(checkout) == "expired"
        return checkout

    async def policy(self, **policies: object) -> None:
        await super().policy(**policies)
        second = self.second.context
        second.merchants = Merchants(second.db, self.encryptor, self.settings)

    # ── The worker ─────────────────────────────────────────────────────────────────────────────────────────

    async def follow(self, *checkouts: UUID, workers: int = 1) -> None:
        """Process as workers do until nothing is due: callbacks, commands, operations, due times."""
        processors = (self.processor, self.second)[:workers]
        async with asyncio.timeout(20):
            while due_now := await self.due_now(*checkouts):
                await asyncio.gather(*(take(processor, due_now) for processor in processors))

    async def due_now(self, *checkouts: UUID) -> list[UUID]:
        rows = await self.sql(
            "SELECT id FROM checkouts WHERE id = ANY(:ids) AND coalesce(hinted OR due_at <= clock(), false)"
            " AND (lease IS NULL OR leased_until <= clock())",
            ids=list(checkouts),
        )
        return [row.id for row in rows]

    async def until_due(self, checkout: UUID) -> None:
        """Let time pass until the checkout is due, and process it."""
        row = await self.row(checkout)
        await self.later(seconds=row.due_in.total_seconds() + 1)
        await self.follow(checkout)

    def lookups(self, checkout: UUID) -> int:
        """Return how often the gateway was asked about the order so far."""
        return self.wire.lookups[self.orders[checkout]]

    # ── The shopper, and the gateway's callbacks ───────────────────────────────────────────────────────────

    async def started(self, checkout: UUID, *, method: str = "CARD") -> str:
        """Choose a method; return the URL of the gateway's page."""
        (session,) = await self.sql("SELECT * FROM sessions WHERE checkout_id = :id", id=checkout)
        (row,) = await self.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
        token = (
            self.encryptor.data_key(checkout, row.data_key).decrypt(session.token, purpose="token").decode()
        )
        chosen = next(option for option in session.methods if option["type"] == method)
        answer = await self.http.post(
            chosen["onInitiatePayment"]["value"],
            json={"paymentMethodId": chosen["id"], "sessionId": session.session_id},
            headers={"Authorization": f"Bearer {token}"},
        )
        assert answer.is_success, answer.text
        return str(answer.json()["url"])

    async def submit(self, page: str, *, card: str = GOOD_CARD, action: str = "pay") -> Any:
        """Press a button of the gateway's page; return what the shopper's browser gets."""
        form = {"action": action, "card_number": card, "expiry": "12/39", "cvc": "123"}
        return await self.http.post(page, data=form)

    async def told(self, checkout: UUID, **expected: int) -> list[dict[str, Any]]:
        """Wait until so many callbacks of each kind were answered (or lost); return all of them as the
        gateway recorded them.
        """
        expected = expected or {"notification": 2, "success": 1}
        async with asyncio.timeout(10):
            while True:
                sent = [callback for row in await self.ledger(checkout) for callback in row["callbacks"]]
                over = Counter(
                    callback["kind"] for callback in sent if callback["answerStatus"] or callback["note"]
                )
                if len(sent) == over.total() and all(over[kind] >= count for kind, count in expected.items()):
                    return sent
                await asyncio.sleep(0.01)

    async def resent(self, payment: str, kind: str = "notification", status: str = "succeeded") -> int:
        """Have the gateway send one more callback, whatever happened; return what it was answered."""
        answer = await self.control("POST", f"payments/{payment}/send", {"kind": kind, "status": status})
        return int(answer["answerStatus"])

    async def called(
        self,
        checkout: UUID,
        body: bytes,
        *,
        kind: str = "notification",
        secret: str | None = SECRET,
        content_type: str = FORM,
    ) -> int:
        """Call back with any body, signed with a secret or not at all; return what it was answered."""
        pages = {"success": "https://shop.example/thanks", "failure": "https://shop.example/sorry"}
        urls = callback_urls.callback_urls(
            self.encryptor, self.settings.public_url, checkout, pages, merchant_id=1
        )
        headers = {"Content-Type": content_type}
        if secret is not None:
            stamp = str(int(time.time()))
            digest = hmac.digest(secret.encode(), body + b"." + stamp.encode(), "sha256").hex()
            headers["AltaPay-Signature"] = f"t={stamp};s0={digest}"
        answer = await self.http.post(str(getattr(urls, kind)), content=body, headers=headers)
        return answer.status_code

    async def unexpected_payment(self, order: str, **changes: object) -> None:
        """Have a payment made without a session of ours, and with a callback to the merchant's
        own address.
        """
        notification = callback_urls.merchant_url(self.encryptor, self.settings.public_url, "default")
        body = {
            "orderId": order,
            "amountMinor": WHOLE,
            "currency": "DKK",
            "notification": notification,
            **changes,
        }
        await self.control("POST", "payments/unmatched", body)

    async def payment_of(self, checkout: UUID) -> str:
        """Return the gateway's id of the only payment."""
        (row,) = await self.ledger(checkout)
        return str(row["paymentId"])

    # ── What is true ───────────────────────────────────────────────────────────────────────────────────────

    async def ledger(self, checkout: UUID) -> list[dict[str, Any]]:
        """Return the gateway's payments of the order, without those of another checkout that has the same
        number.
        """
        rows = await super().ledger(checkout)
        return [row for row in rows if row["checkout"] in {None, str(checkout)}]

    async def held(self, checkout: UUID) -> int:
        """Return what the gateway holds of the shoppers' money for an order, in minor units."""
        return sum(row["heldMinor"] for row in await self.ledger(checkout))

    async def roles(self, checkout: UUID) -> list[str]:
        rows = await self.sql("SELECT role FROM payments WHERE checkout_id = :id", id=checkout)
        return sorted(row.role for row in rows)

    async def moved(self, checkout: UUID) -> list[str]:
        """Return the facts that moved the checkout from the offer on, in turn."""
        trail = await self.trail(checkout)
        triggers = [entry["trigger"] for entry in trail if entry["action"] == "checkout:moved"]
        return triggers[triggers.index("offered") + 1 :]

    async def confirmed(self, checkout: UUID) -> int:
        """Return how many completed events the shop got for the order: each sends a confirmation."""
        return (await self.events(checkout)).count("checkout.completed")

    async def agree(self, *checkouts: UUID) -> None:
        """Check also what is held, payment by payment, that everything unsettled has a due time, and the
        audit trail.
        """
        await super().agree(*checkouts)
        for checkout in checkouts or tuple(self.orders):
            theirs = {
                row["transactionId"]: row["heldMinor"]
                for row in await self.ledger(checkout)
                if row["heldMinor"]
            }
            rows = await self.sql(
                "SELECT transaction_id, greatest(reserved, captured) - refunded - charged_back AS held FROM payments"
                " WHERE checkout_id = :id AND meaning <> 'nothing'",
                id=checkout,
            )
            ours = {row.transaction_id: row.held for row in rows if row.held}
            assert ours == theirs, (checkout, ours, theirs)
            row = await self.row(checkout)
            assert row.due_at is not None or (row.ended_at is not None and row.attention is None), row
            assert row.lease is None
        assert (await audit.verify(self.db, self.encryptor)).problems == []


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the test run."""
        yield


@asynccontextmanager
async def shop(database_url: str, **changes: object) -> AsyncIterator[Shop]:
    """Open an installation on an empty database, with a gateway of its own."""
    wire, listening = Wire(), socket.create_server(("127.0.0.1", 0))
    with serving(wire) as gateway_url:
        settings = make_settings(
            database_url=database_url,
            gateway_url=gateway_url,
            public_url=f"http://127.0.0.1:{listening.getsockname()[1]}",
            **{**CALM, **changes},
        )
        async with (
            Database(database_url, pool_size=4) as db,
            Database(database_url, pool_size=2) as other,
            Gateway(settings) as gateway,
        ):
            opened = Shop(settings, db, gateway)
            opened.wire = wire
            opened.services = build(settings, RecordedHints())
            opened.limits_of_gateway = GatewayLimits(create_app(opened.services))
            theirs = Transitions(other, opened.encryptor)
            opened.second = CheckoutProcessor(
                StepContext(
                    settings=settings,
                    db=other,
                    encryptor=opened.encryptor,
                    gateway=gateway,
                    transitions=theirs,
                    merchants=Merchants(other, opened.encryptor, settings),
                )
            )
            config = uvicorn.Config(
                opened.limits_of_gateway,
                http="httptools",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                timeout_graceful_shutdown=1,
            )
            server = _Server(config)
            serve = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                async with asyncio.timeout(10):
                    while not server.started:  # noqa: ASYNC110 - uvicorn has nothing to wait for
                        await asyncio.sleep(0.005)
                yield opened
            finally:
                server.should_exit = True
                await serve
                await opened.http.aclose()
                for batch in (opened.moves, theirs, opened.intents, opened.callbacks):
                    await batch.close()
                listening.close()


# ── Answers that the sandbox has no order for ─────────────────────────────────────────────────────────────


def with_agreement(answer: str) -> str:
    """Put the agreement of a subscription beside each transaction of an answer: another id, and the same
    amounts (C12).
    """

    def beside(found: re.Match[str]) -> str:
        row = found[0]
        row = re.sub(r"<TransactionId>(\d+)<", r"<TransactionId>9\1<", row)
        row = re.sub(r"<AuthType>[^<]*<", "<AuthType>subscription<", row)
        return re.sub(r"<TransactionStatus>[^<]*<", "<TransactionStatus>recurring_confirmed<", row) + found[0]

    return re.sub(r"<Transaction>.*?</Transaction>", beside, answer)


def with_status(status: str) -> Callable[[str], str]:
    """Give every transaction of an answer another status."""
    return partial(re.sub, r"<TransactionStatus>[^<]*<", f"<TransactionStatus>{status}<")
