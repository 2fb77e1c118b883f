"""The script and control API (JSON): plans, faults, ledger, resolutions.

Who may call it: the holder of the sandbox's own token, and no web page. The token comes in the header
X-Sandbox-Token (in a GET also as `?token=`, for a person's browser, which keeps it in a cookie). A link that
the holder made with `ledger_proof` opens the ledger of one order. A request that names another host than this
machine (DNS rebinding), or that comes from a page of another origin, is refused with the token as well.

The ledger is what really happened to every shopper's money, in minor units; tests end by comparing it with
the orchestrator's books. The whole control API is listed in `HELP`, shown at GET /sandbox/help.
"""

from __future__ import annotations

import hmac
from functools import wraps
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import msgspec
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from orchestrator.devkit.sandbox import html
from orchestrator.devkit.sandbox.config import is_loopback, ledger_proof
from orchestrator.devkit.sandbox.core import Refused, as_json, bad_request, body_of, sandbox_of
from orchestrator.devkit.sandbox.faults import GlobalFaults, Plan, Resolution
from orchestrator.devkit.sandbox.ledger import entry, rows_of
from orchestrator.devkit.sandbox.ledger import totals as totals_of
from orchestrator.devkit.sandbox.methods import MethodKind
from orchestrator.devkit.sandbox.rules import RESULTS, Outcome, forced
from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from orchestrator.devkit.sandbox.books import Order, Payment, Transaction
    from orchestrator.devkit.sandbox.core import Sandbox

T = TypeVar("T")
TOKEN_HEADER: Final = "X-Sandbox-Token"  # noqa: S105 - its name
_COOKIE: Final = "sandbox-token"
_LEDGER: Final = "/sandbox/ledger"
_DEFAULT_PAGE = 1000
_LARGEST_PAGE = 10_000
_ROWS_OF_A_PAGE = 100
_DIGITS = 18

HELP = """\
Control API of the sandbox (JSON; nothing here exists at the real gateway)
Each request needs the header X-Sandbox-Token with the token that the sandbox was started with; a GET also takes ?token=

PUT    /sandbox/orders/{orderId}   plan for one order number (DELETE forgets it, GET shows what is left of it)
       {"fail": {"session": 2, "payment-methods": 1, "payments": 1},   calls that fail, counted down per endpoint
        "failStatus": 503,          or any status, "timeout", "reset", "malformed", "empty", "huge", "html"
        "failAfter": false,         true: the call takes effect, only its answer is lost
        "retryAfter": 1,            Retry-After of a 429, in seconds
        "delayMs": {"session": 500},
        "callbacks": {"success": true, "failure": true, "notification": true, "redirect": true,
                      "times": 3, "simultaneous": true, "order": "race", "delayMs": 0,
                      "tamper": null},
        "outcome": "succeeded",     or "declined", "error", "open": whatever the card and the amount say
        "resolveAfterMs": 800, "resolveTo": "succeeded",   an open payment ends by itself (or "declined") and notifies
        "amountMinor": 100, "currency": "EUR",    payments are made with these instead of the order's
        "requireCapture": true,     with autoCapture: nothing is captured, callbacks say require_capture=true
        "bindings": false,          transactionInfo is not echoed, neither in XML nor in callbacks
        "echo": false,              movements do not show the merchant's reconciliation_identifier (true: they do)
        "expiresInSeconds": 3600,   AuthorisationExpiryDate, from the payment on; else as the card has it (Visa 7 days)
        "refuse": {"capture": 1, "refund": 1, "release": 1},   answered with "refuseResult", without effect, counted down
        "refuseResult": "Error",    or "Failed"
        "loseSession": 1,           the first N sessions are lost when their methods are asked for
        "tokenLifetime": 5,         calls about this order refuse tokens older than this (seconds), whatever their exp says
        "noiseRows": 100}           a lookup by order number finds N older failed attempts of other checkouts as well
       endpoints: authenticate session payment-methods payment payments capture refund release all
       order:     race notificationFirst successFirst
       tamper:    badSignature staleTimestamp noSignature noChecksum badChecksum noTransactions invalidXml emptyXml
       amountMinor, currency, requireCapture, bindings and expiresInSeconds count for payments opened after the plan was made

PUT    /sandbox/faults             for all calls (GET shows, DELETE resets)
       {"share": 0.007, "shareStatus": 503, "authenticate": {"count": 3, "status": 503}, "all": {"count": 1},
        "callbacks": "lost", "latencyMs": {"all": 20, "session": 200}, "tokenLifetime": 60}

GET    /sandbox/ledger?orderId=&after=&limit=     every shopper's money; follow "next" with after= (a browser gets a page)
GET    /sandbox/messages/{orderId}               calls, pages, bank and callbacks of one order, in memory
POST   /sandbox/payments/unmatched                    a payment for an order number that no session has to know; notifies
       {"orderId": "X-1", "amountMinor": 13900, "currency": "DKK", "notification": "http://...", "checkout": "...",
        "outcome": "succeeded" | "declined" | "error" | "open", "autoCapture": false}    the last four may be left out
POST   /sandbox/payments/{paymentId}/resolve      {"outcome": "succeeded" | "declined"} ends an open payment and notifies
POST   /sandbox/payments/{paymentId}/send         {"kind": "failure", "status": "failed"} sends one more callback as it is
POST   /sandbox/payments/{paymentId}/refund       {"amountMinor": 100} refund made at the gateway; notifies
POST   /sandbox/payments/{paymentId}/release      {} reservation let go at the gateway; notifies
POST   /sandbox/payments/{paymentId}/chargeback   {"amountMinor": 100} chargeback; notifies ("reversed": true takes one back)
DELETE /sandbox/sessions/{sessionId}              the session is lost
POST   /sandbox/tokens/expire                     all tokens issued so far are stale
GET    /healthz
"""


class _Resolution(msgspec.Struct, forbid_unknown_fields=True):
    outcome: Resolution


class _UnexpectedPayment(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    order_id: str
    amount_minor: int
    currency: str
    notification: str | None = None
    checkout: str | None = None
    outcome: Literal["succeeded", "declined", "error", "open"] = "succeeded"
    auto_capture: bool = False


class _Sending(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["success", "failure", "notification"]
    status: str


class _Movement(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    amount_minor: int | None = None


class _Chargeback(_Movement):
    reversed: bool = False


# ── Who may call ──


def permit(request: Request) -> None:
    """Refuse what is not sent by the holder of the token to this machine's own name."""
    host = request.url.hostname or ""
    config = sandbox_of(request).config
    # A name with a domain may belong to another party, and lead here since a moment ago (DNS rebinding).
    if not (is_loopback(host) or _is_address(host) or "." not in host or host in config.callback_hosts):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            f"the control API is not served for the host {host[:100]!r}: call it by its address",
        )
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Refused(HTTPStatus.FORBIDDEN, "the control API is not for pages of another origin")
    if not (is_open(request) or _is_proved(request)):
        raise Refused(
            HTTPStatus.UNAUTHORIZED,
            f"the control API needs the header {TOKEN_HEADER}: its value is ORCHESTRATOR_SANDBOX_TOKEN, or was printed at the start",
        )


def is_open(request: Request) -> bool:
    """Say whether a request has the token: in the header, in a GET also as `?token=` or in the cookie."""
    expected = sandbox_of(request).config.control_token
    if not expected:
        return True
    given = [request.headers.get(TOKEN_HEADER, "")]
    if request.method in {"GET", "HEAD"}:
        given += [request.query_params.get("token", ""), request.cookies.get(_COOKIE, "")]
    return any(hmac.compare_digest(each.encode(), expected.encode()) for each in given)


def _is_proved(request: Request) -> bool:
    """Say whether a request reads the ledger of one order with the proof of that order."""
    order_id, proof = (request.query_params.get(name, "") for name in ("orderId", "proof"))
    if not order_id or request.method != "GET" or request.url.path != _LEDGER:
        return False
    expected = ledger_proof(sandbox_of(request).config.control_token, order_id)
    return hmac.compare_digest(proof.encode(), expected.encode())


def _for_a_person(request: Request, page: Response) -> Response:
    """Return a page; a browser that came with the token in the address needs it there once."""
    if token := request.query_params.get("token"):
        page.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
    return page


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return an endpoint that refuses who may not call it; a person reads where the token is."""

    @wraps(endpoint)
    async def serve(request: Request) -> Response:
        try:
            permit(request)
        except Refused as refusal:
            if refusal.status == HTTPStatus.UNAUTHORIZED and html.wants_page(request):
                return html.page("locked.html", HTTPStatus.UNAUTHORIZED)
            raise
        return await endpoint(request)

    return serve


# ── The calls ──


async def put_plan(request: Request) -> Response:
    sandbox = sandbox_of(request)
    plan = await _read(request, Plan)
    if plan.currency is not None:
        _known(plan.currency)
    if plan.amount_minor is not None and plan.amount_minor <= 0:
        raise bad_request("amountMinor must be more than 0")
    sandbox.faults.set_plan(request.path_params["order_id"], plan)
    await sandbox.store.flushed()
    return as_json(plan)


async def show_plan(request: Request) -> Response:
    return as_json(sandbox_of(request).faults.plan(request.path_params["order_id"]))


async def drop_plan(request: Request) -> Response:
    sandbox = sandbox_of(request)
    sandbox.faults.drop_plan(request.path_params["order_id"])
    return await _done(sandbox)


async def faults(request: Request) -> Response:
    sandbox = sandbox_of(request)
    if request.method == "PUT":
        sandbox.faults.set_everywhere(await _read(request, GlobalFaults))
    elif request.method == "DELETE":
        sandbox.faults.set_everywhere(GlobalFaults())
    await sandbox.store.flushed()
    if html.wants_page(request):
        return _for_a_person(request, html.faults_page(sandbox.faults))
    return as_json(sandbox.faults.everywhere)


async def ledger(request: Request) -> Response:
    """Return what happened, by order number; the first page has the totals of all that was asked for."""
    books = sandbox_of(request).books
    query = request.query_params
    following: int | None = None
    limit = min(_number(query.get("limit", str(_DEFAULT_PAGE))), _LARGEST_PAGE)
    if html.wants_page(request):
        limit = min(limit, _ROWS_OF_A_PAGE)
    counted: list[Order] | None
    if order_id := query.get("orderId"):
        found = books.orders.get(order_id)
        orders = counted = [found] if found else []
    else:
        after = _number(query.get("after", "0"))
        orders = books.orders_after(after, max(limit, 1))
        if orders and books.orders_after(orders[-1].number, 1):
            following = orders[-1].number
        counted = list(books.orders.values()) if after == 0 else None
    listed = [entry(order, books.payments_of(order)) for order in orders]
    counted_payments = [payment for order in counted or () for payment in books.payments_of(order)]
    totals = None if counted is None else totals_of(counted_payments)
    document = {"orders": listed, "next": following, "totals": totals}
    if html.wants_page(request):
        return _for_a_person(request, html.ledger_page(document, only=order_id, limit=limit))
    return as_json(document)


async def messages(request: Request) -> Response:
    """Return what was said about an order, by time; kept in memory for the newest orders."""
    return as_json({"messages": sandbox_of(request).messages.of(request.path_params["order_id"])})


async def resolve(request: Request) -> Response:
    """End an open payment; the merchant gets a notification only."""
    sandbox, payment = _payment(request)
    wanted = await _read(request, _Resolution)
    transaction = payment.latest
    if transaction is None or transaction.outcome != Outcome.OPEN:
        raise Refused(HTTPStatus.CONFLICT, "the payment is not open")
    await sandbox.resolve(payment, transaction, wanted.outcome)
    return as_json(rows_of(payment))


async def unexpected_payment(request: Request) -> Response:
    """Make a card payment as another system of the merchant would: no session of ours, any order number."""
    sandbox = sandbox_of(request)
    wanted = await _read(request, _UnexpectedPayment)
    _known(wanted.currency)
    if wanted.amount_minor <= 0 or not wanted.order_id:
        raise bad_request("orderId and an amountMinor of more than 0 are needed")
    if wanted.notification is not None and not sandbox.config.may_call(wanted.notification):
        raise bad_request(
            "notification must be at loopback, or at a host that the sandbox was started with (--callback-host)"
        )
    method = next(each for each in sandbox.config.methods if each.kind == MethodKind.CARD)
    payment = sandbox.books.open_payment(
        "",
        method,
        order_id=wanted.order_id,
        currency=wanted.currency,
        amount_minor=wanted.amount_minor,
        auto_capture=wanted.auto_capture,
        transaction_info={"checkout": wanted.checkout} if wanted.checkout is not None else {},
        callbacks={"notification": wanted.notification} if wanted.notification is not None else {},
    )
    transaction = sandbox.books.start_attempt(payment, masked_pan="411111******1111", expiry="12/2030")
    sandbox.books.conclude(payment, transaction, forced(wanted.outcome))
    return await _notified(sandbox, payment, transaction, transaction.outcome)


async def send(request: Request) -> Response:
    """Send one more callback, whatever really happened: repeats, late failures."""
    sandbox, payment = _payment(request)
    wanted = await _read(request, _Sending)
    if wanted.status not in RESULTS:
        raise bad_request(f"status must be one of {', '.join(RESULTS)}")
    answer = await sandbox.courier.call(payment, payment.paid or payment.latest, wanted.kind, wanted.status)
    return as_json({"answerStatus": answer.status, "location": answer.location, "note": answer.note})


async def refund(request: Request) -> Response:
    """Refund at the gateway, without the merchant asking."""
    sandbox, payment = _payment(request)
    paid = _captured(payment)
    rest = paid.captured_minor - paid.refunded_minor
    minor = _part(await _read(request, _Movement), rest, "to refund")
    sandbox.books.refund(payment, paid, minor, identifier="", by="gateway")
    return await _notified(sandbox, payment, paid, "succeeded")


async def release(request: Request) -> Response:
    """Let a reservation go at the gateway, without the merchant asking."""
    sandbox, payment = _payment(request)
    paid = payment.paid
    if paid is None or paid.captured_minor or paid.status == "released":
        raise Refused(HTTPStatus.CONFLICT, "there is no reservation to release")
    sandbox.books.release(payment, paid, by="gateway")
    return await _notified(sandbox, payment, paid, "succeeded")


async def charge_back(request: Request) -> Response:
    """Let the shopper's bank take a payment back, or return what it took."""
    sandbox, payment = _payment(request)
    paid = _captured(payment)
    wanted = await _read(request, _Chargeback)
    taken = paid.charged_back_minor
    minor = _part(wanted, taken if wanted.reversed else paid.captured_minor - taken, "for that")
    sandbox.books.charge_back(payment, paid, -minor if wanted.reversed else minor)
    return await _notified(sandbox, payment, paid, "ChargebackEvent")


async def lose_session(request: Request) -> Response:
    sandbox = sandbox_of(request)
    if not sandbox.books.lose_session(request.path_params["session_id"]):
        raise Refused(HTTPStatus.NOT_FOUND, "no such session")
    return await _done(sandbox)


async def expire_tokens(request: Request) -> Response:
    sandbox = sandbox_of(request)
    sandbox.tokens.expire_all()
    return await _done(sandbox)


async def health(request: Request) -> Response:
    return as_json({"status": "ok", "orders": len(sandbox_of(request).books.orders)})


async def show_help(_: Request) -> Response:
    return PlainTextResponse(HELP)


_PAYMENT: Final = "/sandbox/payments/{payment_id}"
ROUTES = [
    *(
        Route(path, guarded(endpoint), methods=methods.split())
        for methods, path, endpoint in (
            ("PUT", "/sandbox/orders/{order_id:path}", put_plan),
            ("GET", "/sandbox/orders/{order_id:path}", show_plan),
            ("DELETE", "/sandbox/orders/{order_id:path}", drop_plan),
            ("GET PUT DELETE", "/sandbox/faults", faults),
            ("GET", _LEDGER, ledger),
            ("GET", "/sandbox/messages/{order_id:path}", messages),
            ("POST", "/sandbox/payments/unmatched", unexpected_payment),
            ("POST", f"{_PAYMENT}/resolve", resolve),
            ("POST", f"{_PAYMENT}/send", send),
            ("POST", f"{_PAYMENT}/refund", refund),
            ("POST", f"{_PAYMENT}/release", release),
            ("POST", f"{_PAYMENT}/chargeback", charge_back),
            ("DELETE", "/sandbox/sessions/{session_id}", lose_session),
            ("POST", "/sandbox/tokens/expire", expire_tokens),
        )
    ),
    Route("/sandbox/help", show_help, methods=["GET"]),
    Route("/healthz", health, methods=["GET"]),
]


async def _done(sandbox: Sandbox) -> Response:
    await sandbox.store.flushed()
    return Response(status_code=HTTPStatus.NO_CONTENT)


async def _notified(sandbox: Sandbox, payment: Payment, transaction: Transaction, status: str) -> Response:
    """Have the merchant notified of what was done, and return the payment's rows of the ledger."""
    await sandbox.store.flushed()
    await sandbox.courier.call(payment, transaction, "notification", status)
    return as_json(rows_of(payment))


async def _read(request: Request, wanted: type[T]) -> T:
    raw = await body_of(request)
    try:
        return msgspec.json.decode(raw or b"{}", type=wanted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(str(error)) from error


def _known(currency: str) -> None:
    try:
        money.exponent(currency)
    except money.MoneyError as error:
        raise bad_request(str(error)) from error


def _number(given: str) -> int:
    if not given.isascii() or not given.isdigit() or len(given) > _DIGITS:
        raise bad_request(f"'{given[:40]}' is not a number")
    return int(given)


def _payment(request: Request) -> tuple[Sandbox, Payment]:
    sandbox = sandbox_of(request)
    payment = sandbox.books.payments.get(request.path_params["payment_id"])
    if payment is None:
        raise Refused(HTTPStatus.NOT_FOUND, "no such payment")
    return sandbox, payment


def _part(wanted: _Movement, rest: int, what: str) -> int:
    """Return the amount that is asked for, without a word on it all that is left."""
    minor = rest if wanted.amount_minor is None else wanted.amount_minor
    if not 0 < minor <= rest:
        raise Refused(HTTPStatus.CONFLICT, f"only {rest} minor units are left {what}")
    return minor


def _captured(payment: Payment) -> Transaction:
    paid = payment.paid
    if paid is None or not paid.captured_minor:
        raise Refused(HTTPStatus.CONFLICT, "nothing was captured on this payment")
    return paid
