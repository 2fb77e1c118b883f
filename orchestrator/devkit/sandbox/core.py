"""The sandbox as one object: books, store, tokens, faults and courier, built once per app and found from each
request.

`attend` is the path of every gateway endpoint: delay, fail as ordered, serve, commit, answer. No endpoint
answers before its changes are in the store.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec
from starlette.responses import Response

from orchestrator.devkit.sandbox.books import Books
from orchestrator.devkit.sandbox.callbacks import Courier
from orchestrator.devkit.sandbox.faults import Faults, misbehave
from orchestrator.devkit.sandbox.messages import Messages
from orchestrator.devkit.sandbox.rules import DECLINED, SUCCESS, Outcome
from orchestrator.devkit.sandbox.store import Store
from orchestrator.devkit.sandbox.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from orchestrator.devkit.sandbox.config import SandboxConfig
    from orchestrator.devkit.sandbox.faults import Endpoint, Resolution
    from orchestrator.devkit.sandbox.messages import Party

BODY_LIMIT = 1_000_000
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class Refused(Exception):  # noqa: N818 - it is an answer, not an error of ours
    """A call that the gateway does not serve, with the status and the sentence for the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def answer(self) -> Response:
        """Return it as the JSON that this sandbox chose."""
        phrase = HTTPStatus(self.status).phrase
        headers = {"www-authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else None
        described = {"status": self.status, "error": phrase, "message": self.message}
        return as_json(described, self.status, headers)


def bad_request(message: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, message)


class Sandbox:
    """Everything behind the endpoints of one sandbox."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self.store = Store(config.state_file)
        self.books = Books(self.store, seed=config.seed)
        self.tokens = Tokens(
            self.store, seconds=config.token_seconds, reuse_seconds=config.token_reuse_seconds
        )
        self.faults = Faults(self.store, seed=config.seed)
        self.messages = Messages()
        self.courier = Courier(config, self.books, self.store, self.faults, messages=self.messages)
        self.store.flush()  # a new signing key, stored before a token is given out

    def knows(self, request: Request) -> bool:
        """Check HTTP Basic credentials; both APIs take the same user (D2)."""
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded, validate=True)
        except ValueError:
            return False
        return hmac.compare_digest(given, f"{self.config.username}:{self.config.password}".encode())

    def bears_token(self, request: Request, order_id: str | None = None) -> bool:
        """Check the bearer token, in a call about an order as its plan has it."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        lifetime = self.faults.token_lifetime(order_id)
        return scheme.lower() == "bearer" and self.tokens.accepts(token.strip(), lifetime=lifetime)

    async def resolve(self, payment: Payment, transaction: Transaction, to: Resolution) -> None:
        """End an open payment as the bank decided; the merchant gets a notification only (D7)."""
        self.books.conclude(payment, transaction, SUCCESS if to == "succeeded" else DECLINED)
        await self.store.flushed()
        await self.courier.call(payment, transaction, "notification", transaction.outcome)

    def leave_open(self, payment: Payment, transaction: Transaction) -> None:
        """Let an open payment be, or resolve it by itself when its plan says so."""
        plan = self.faults.plan(payment.order_id)
        if plan.resolve_after_ms is not None:
            due = transaction.updated_at + plan.resolve_after_ms / 1000
            self.courier.start_beside(self._resolve_at(due, payment, transaction, to=plan.resolve_to))

    def resume(self) -> None:
        """Start the clocks of open payments again that the last process did not see end."""
        for order_id, plan in self.faults.plans.items():
            order = self.books.orders.get(order_id) if plan.resolve_after_ms is not None else None
            for payment in self.books.payments_of(order) if order else ():
                if payment.latest is not None and payment.latest.outcome == Outcome.OPEN:
                    self.leave_open(payment, payment.latest)

    async def _resolve_at(
        self, due: float, payment: Payment, transaction: Transaction, *, to: Resolution
    ) -> None:
        await asyncio.sleep(max(due - time.time(), 0))
        if transaction.outcome == Outcome.OPEN:  # no other request was faster
            await self.resolve(payment, transaction, to)

    async def attend(
        self,
        request: Request,
        endpoint: Endpoint,
        order_id: str | None,
        serve: Callable[[], Response],
        *,
        media_type: str = "application/json",
    ) -> Response:
        """Serve a call, or do what scripts ordered for it instead or afterwards."""
        fault = self.faults.next(endpoint, order_id)
        caller = _caller(request, endpoint)
        path = request.url.path.rpartition("/API/" if "/API/" in request.url.path else "/api/")[2]
        asked = f"{request.method} {_ID.sub('{id}', path)}"
        self.messages.note(order_id, (caller, "gateway"), endpoint, asked)
        if delay := self.faults.delay(endpoint, order_id):
            await asyncio.sleep(delay)
        if fault is None:
            response = _served(serve)
            await self.store.flushed()
            self.messages.note(order_id, ("gateway", caller), f"{endpoint}:answer", str(response.status_code))
            return response
        if fault.after:
            _served(serve)  # it took place, but the caller gets no answer
        await self.store.flushed()
        self.messages.note(order_id, ("gateway", caller), f"{endpoint}:fault", str(fault.status))
        return await misbehave(request, fault, media_type=media_type, hang_seconds=self.config.hang_seconds)


def _served(serve: Callable[[], Response]) -> Response:
    try:
        return serve()
    except Refused as refusal:
        return refusal.answer()


def _caller(request: Request, endpoint: Endpoint) -> Party:
    """Return who calls: a page names its origin; a payment is started by the shop."""
    if "origin" in request.headers:
        return "browser"
    return "shop" if endpoint == "payment" else "orchestrator"


def sandbox_of(request: Request) -> Sandbox:
    sandbox: Sandbox = request.app.state.sandbox
    return sandbox


def base_url(request: Request) -> str:
    """Return the public base of this sandbox as the caller sees it: its own Host header."""
    return f"{request.url.scheme}://{request.headers.get('host', '127.0.0.1')}"


def as_json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


async def body_of(request: Request) -> bytes:
    """Read a body of bounded size."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > BODY_LIMIT:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {BODY_LIMIT} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


async def form_of(request: Request) -> dict[str, str]:
    """Read a URL-encoded form; of a repeated field the last value counts."""
    return dict(parse_qsl((await body_of(request)).decode("utf-8", "replace"), keep_blank_values=True))
