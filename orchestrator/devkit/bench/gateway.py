"""The light gateway: the calls of our client, each answered for a few microseconds of CPU, so that load does
not starve what it measures.

One process, one event loop, httptools on bare connections. Tokens are signed once in ten minutes; documents
are templates; books are kept in memory. Its latency and its share of failing calls are options; a failing
call has no effect. It may have shoppers who pay, with callbacks to the shop. For load only: the sandbox
simulates the whole gateway.

    POST /checkout/v1/api/authenticate, …/session
    GET …/session/{id}/payment-methods; GET /merchant/API/payments?shop_orderid=
    GET /healthz, /bench/state (a few numbers), /bench/books (everything); POST /bench/reset
    POST /bench/webhook: the endpoint of a merchant, for `--webhook`
"""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import cycle
from random import Random
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import unquote_to_bytes
from uuid import UUID

import httptools
import msgspec
import uvloop

from orchestrator.devkit.bench import documents
from orchestrator.devkit.bench.latency import Latency
from orchestrator.devkit.bench.ledger import GatewayLedger, Order
from orchestrator.devkit.bench.shoppers import ShopperProfile, Shoppers
from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

RENEW_TOKEN: Final = 600.0
FAULTS: Final = ("500", "503", "closed")
"""Kinds of faults, in turn; `closed` is a connection that ends without an answer."""

WEBHOOK: Final = b"/bench/webhook"
_API: Final = b"/checkout/v1/api/"
_METHODS: Final = b"/payment-methods"
_PAYMENTS: Final = b"/merchant/API/payments?"
_REASONS: Final = {
    200: b"OK", 204: b"No Content", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 500: b"Internal Server Error",
    503: b"Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GatewayProfile:
    """The gateway's latency, the share of its calls that fail, and who pays there (None: no shopper)."""

    latency: Latency = field(default_factory=lambda: Latency(0.0))
    faults: float = 0.0
    shoppers: ShopperProfile | None = field(default_factory=ShopperProfile)
    seed: int = 1


class _Amount(msgspec.Struct, frozen=True):
    value: Decimal
    currency: str


class _Asked(msgspec.Struct, rename="camel", frozen=True):
    order_id: str
    amount: _Amount
    transaction_info: dict[str, str] = {}


class _Page(msgspec.Struct, frozen=True):
    value: str


class _Callbacks(msgspec.Struct, frozen=True):
    success: _Page | None = None
    notification: str | None = None


class _Configuration(msgspec.Struct, rename="camel", frozen=True):
    auto_capture: bool = False


class _NewSession(msgspec.Struct, frozen=True):
    """What the books need of a session's body; everything else in it is only echoed."""

    order: _Asked
    callbacks: _Callbacks = _Callbacks()
    configuration: _Configuration = _Configuration()


_SESSION: Final = msgspec.json.Decoder(_NewSession, strict=False)


class Gateway:
    """The gateway of one process; made on its event loop."""

    def __init__(self, profile: GatewayProfile, *, base: str) -> None:
        self.books = GatewayLedger()
        self._latency, self._faults = profile.latency, profile.faults
        self._random = Random(profile.seed)  # noqa: S311 - a run is to be repeatable
        self._broken = cycle(FAULTS)
        self._tokens = documents.Tokens()
        self._methods = documents.methods(base)
        self._shoppers = (
            None if profile.shoppers is None else Shoppers(self.books, profile.shoppers, self._random)
        )

    async def renew_tokens(self) -> None:
        """Sign a new token now and then, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_TOKEN)
            self._tokens.renew()

    def close(self) -> None:
        if self._shoppers is not None:
            self._shoppers.close()

    def take(self, connection: _Connection) -> None:
        """Answer the request on a connection, now or when its time has come."""
        kind, serve = self._route(connection)
        if not kind:  # ours, and not a gateway's: neither late nor broken
            connection.answer(*serve())
            return
        self.books.calls[kind] += 1
        fault = next(self._broken) if self._faults and self._random.random() < self._faults else None
        delay = self._latency.draw(self._random)
        if fault is not None:
            self.books.faults[fault] += 1
        loop = asyncio.get_running_loop()
        if delay > 0:
            loop.call_later(delay, self._serve, connection, fault, serve, loop.time())
        else:
            self._serve(connection, fault, serve, loop.time())

    def _serve(
        self, connection: _Connection, fault: str | None, serve: Callable[[], tuple[int, bytes]], began: float
    ) -> None:
        # A fault comes before any effect, so that a second session for one order is always made by the
        # product.
        if fault is None:
            connection.answer(*serve())
        elif fault == "closed":
            connection.close()
        else:
            connection.answer(int(fault), _refusal("broken on purpose"))
        self.books.waited += asyncio.get_running_loop().time() - began

    def _route(self, asked: _Connection) -> tuple[str, Callable[[], tuple[int, bytes]]]:
        method, url, authorization, body = asked.method, asked.url, asked.authorization, asked.body
        if url.startswith(_API):
            rest = url[len(_API) :]
            if rest == b"authenticate" and method == b"POST":
                return "authenticate", lambda: self._authenticate(authorization)
            if rest == b"session" and method == b"POST":
                return "session", lambda: self._open_session(authorization, body)
            if rest.startswith(b"session/") and rest.endswith(_METHODS) and method == b"GET":
                session_id = rest[len(b"session/") : -len(_METHODS)].decode("ascii", "replace")
                return "payment-methods", lambda: self._list_methods(authorization, session_id)
        elif url.startswith(_PAYMENTS) and method == b"GET":
            return "payments", lambda: self._find_payments(authorization, url[len(_PAYMENTS) :])
        elif url == WEBHOOK and method == b"POST":
            return "", lambda: self._take_event(asked.webhook_id)
        return "", lambda: self._control(method, url)

    def _authenticate(self, authorization: bytes) -> tuple[int, bytes]:
        if not authorization.startswith(b"Basic "):
            return 401, _refusal("credentials are wanted")
        return 200, self._tokens.answer

    def _open_session(self, authorization: bytes, body: bytes) -> tuple[int, bytes]:
        if not self._tokens.accepts(authorization):
            return 401, _refusal("the token is missing, unknown or expired")
        try:
            new = _SESSION.decode(body)
            currency = new.order.amount.currency.upper()
            amount = money.to_minor(new.order.amount.value, currency)
        except (msgspec.DecodeError, UnicodeDecodeError, money.MoneyError) as error:
            return 400, _refusal(str(error))
        order_ref, checkout = new.order.order_id, new.order.transaction_info.get("checkout")
        if not all(documents.SAFE.fullmatch(text) for text in (order_ref, checkout) if text is not None):
            return 400, _refusal(
                "orderId and transactionInfo.checkout take 1 to 100 letters, digits, dots, dashes"
            )
        order = self.books.orders.get(order_ref)
        if order is None:
            order = self.books.orders[order_ref] = Order(order_ref)
        order.sessions += 1
        order.amount, order.currency, order.checkout = amount, currency, checkout
        order.captures = new.configuration.auto_capture
        order.success = None if new.callbacks.success is None else new.callbacks.success.value
        order.notification = new.callbacks.notification
        session_id = str(UUID(int=self._random.getrandbits(128), version=4))
        self.books.sessions[session_id] = order
        return 200, documents.session(session_id, body)

    def _list_methods(self, authorization: bytes, session_id: str) -> tuple[int, bytes]:
        if not self._tokens.accepts(authorization):
            return 401, _refusal("the token is missing, unknown or expired")
        order = self.books.sessions.get(session_id)
        if order is None:
            return 404, _refusal("no such session")
        if self._shoppers is not None:
            self._shoppers.add(order)
        return 200, self._methods

    def _find_payments(self, authorization: bytes, query: bytes) -> tuple[int, bytes]:
        if not authorization.startswith(b"Basic "):
            return 401, _refusal("credentials are wanted")
        wanted = next((part[13:] for part in query.split(b"&") if part.startswith(b"shop_orderid=")), b"")
        order = self.books.orders.get(unquote_to_bytes(wanted).decode("utf-8", "replace"))
        return 200, documents.payments(() if order is None else order.paid)

    def _take_event(self, webhook_id: bytes) -> tuple[int, bytes]:
        self.books.events.add(webhook_id)
        return 204, b""

    def _control(self, method: bytes, url: bytes) -> tuple[int, bytes]:
        match method, url:
            case b"GET", b"/healthz":
                return 200, b'{"status":"ok"}'
            case b"GET", b"/bench/state":
                return 200, msgspec.json.encode(self.books.state())
            case b"GET", b"/bench/books":
                return 200, msgspec.json.encode(self.books.books())
            case b"POST", b"/bench/reset":
                self.books.reset()
                return 200, b"{}"
            case _:
                return 404, _refusal("the light gateway has no such call")


def _refusal(message: str) -> bytes:
    return msgspec.json.encode({"message": message})


class _Connection(asyncio.Protocol):
    """One kept connection; one request at a time, since no client sends the next before the answer."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._busy = False
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of asyncio's

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_begin(self) -> None:
        self.method = self.url = self.authorization = self.webhook_id = self.body = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"authorization":
                self.authorization = value
            case b"webhook-id":
                self.webhook_id = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self._busy:
            self.close()
            return
        self._busy = True
        self.method = self._parser.get_method()
        self._gateway.take(self)

    def answer(self, status: int, body: bytes) -> None:
        """Send an answer, if the client still waits for it."""
        self._busy = False
        if self._transport is None or self._transport.is_closing():
            return
        kind = b"application/xml" if body.startswith(b"<") else b"application/json"
        self._transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (status, _REASONS[status], kind, len(body), body)
        )
        if not self._parser.should_keep_alive():
            self._transport.close()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def run(profile: GatewayProfile, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    uvloop.run(serve(profile, host, port))


async def serve(profile: GatewayProfile, host: str, port: int) -> None:
    """Serve on this event loop until a signal comes."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with listening(profile, host, port):
        await stop.wait()


@asynccontextmanager
async def listening(profile: GatewayProfile, host: str, port: int = 0) -> AsyncIterator[tuple[Gateway, str]]:
    """Serve on this event loop while the block lasts; give the gateway and the URL that it is at."""
    loop = asyncio.get_running_loop()
    place = socket.create_server((host, port))
    url = f"http://{host}:{place.getsockname()[1]}"
    gateway = Gateway(profile, base=url)
    server = await loop.create_server(lambda: _Connection(gateway), sock=place, backlog=1024)
    renewing = loop.create_task(gateway.renew_tokens())
    try:
        yield gateway, url
    finally:
        renewing.cancel()
        gateway.close()
        server.close()
