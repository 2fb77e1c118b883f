"""The Merchant API as far as checkouts need it: payments, captureReservation, refundCapturedReservation,
releaseReservation.

Requests are query or form fields under HTTP Basic, answers are XML with HTTP 200 (401 for credentials; part
1.7). A refusal by the acquirer is ErrorCode 0 with Result Error (or Failed, where a plan says so); a request
that makes no sense is an ErrorCode with an empty Body, whose numbers are the sandbox's own (only 10000001 is
documented, for another call). Without `sort` the order of `payments` is undefined, and really is so here.
"""

from __future__ import annotations

import itertools
import random
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from orchestrator.devkit.sandbox.books import FIRST_TRANSACTION, Payment, Transaction
from orchestrator.devkit.sandbox.core import form_of, sandbox_of
from orchestrator.devkit.sandbox.documents import SHOP, element, elements, envelope, plain, transactions
from orchestrator.devkit.sandbox.methods import MethodKind
from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.requests import Request

    from orchestrator.devkit.sandbox.books import Books
    from orchestrator.devkit.sandbox.core import Sandbox
    from orchestrator.devkit.sandbox.faults import Endpoint, MoneyEndpoint

_FILTERS = ("transaction_id", "payment_id", "shop_orderid", "shop", "terminal")
_DEFAULT_LIMIT = 10
_HIGHEST_LIMIT = 100
_CAPTURABLE = frozenset({"preauth", "invoice_initialized", "recurring_confirmed", "captured"})
_RELEASABLE = frozenset({"preauth", "invoice_initialized", "recurring_confirmed"})
_NOISE = uuid.UUID("9d0e3e5a-3a3c-4c39-8f0e-5c2f3b1b7a44")
_PLANNED = "Refused by the script"
XML = "text/xml"


class _Unusable(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request-level error: ErrorCode and ErrorMessage over an empty Body."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


async def list_payments(request: Request) -> Response:
    """Look transactions up by any of the five filters, at most 10 unless `limit` says otherwise."""
    sandbox = sandbox_of(request)
    fields = {**request.query_params, **(await form_of(request) if request.method == "POST" else {})}
    filters = {name: fields[name] for name in _FILTERS if fields.get(name)}

    def serve() -> str:
        limit = _limit(fields.get("limit", ""))
        sort = fields.get("sort", "")
        if sort not in {"", "asc", "desc"}:
            raise _Unusable(10000003, f"sort must be asc or desc, not {sort}")
        found = [*_matching(sandbox, filters), *_noise(sandbox, filters)]
        found.sort(key=lambda row: int(row[1].transaction_id), reverse=sort == "desc")
        if not sort:
            random.Random(f"{sandbox.config.seed}/payments/{sorted(filters.items())}").shuffle(found)  # noqa: S311
        rows = transactions(found[:limit])
        echo = f"<ResultFilter>{elements(**filters)}</ResultFilter>"
        return (element("Result", "Success") if rows else "<Result/>") + echo + rows

    return await _answer(request, "payments", _order_of(sandbox, filters), serve)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A call that moves money: what it is about, how much, and how much there is."""

    books: Books
    payment: Payment
    transaction: Transaction
    minor: int
    rest: int
    fields: dict[str, str]

    @property
    def identifier(self) -> str:
        return self.fields.get("reconciliation_identifier", "")

    @property
    def left(self) -> str:
        return plain(self.rest, self.payment.currency)


def _capture(asked: _Asked) -> str | None:
    """Capture all or part of a reservation."""
    if asked.transaction.status not in _CAPTURABLE:
        return f"You cannot capture a payment in status {asked.transaction.status}"
    if asked.rest <= 0 or asked.minor <= 0:
        return "You cannot capture an amount <= 0"  # what an already captured payment gets (C12)
    if asked.minor > asked.rest:
        return f"You cannot capture more than the reserved {asked.left}"
    asked.books.capture(asked.payment, asked.transaction, asked.minor, identifier=asked.identifier)
    return None


def _refund(asked: _Asked) -> str | None:
    """Refund all or part of what was captured; above it only with `allow_over_refund`."""
    over = asked.fields.get("allow_over_refund", "") in {"1", "true"}
    if asked.transaction.captured_minor <= 0:
        return f"You cannot refund a payment in status {asked.transaction.status}: nothing was captured"
    if asked.minor <= 0:
        return "You cannot refund an amount <= 0"
    if asked.minor > asked.rest and not over:
        return f"You cannot refund more than the captured {asked.left}"
    asked.books.refund(
        asked.payment, asked.transaction, asked.minor, identifier=asked.identifier, by="merchant"
    )
    return None


def _release(asked: _Asked) -> str | None:
    """Release a whole reservation; there is no partial release.

    A bank transfer has none, so it becomes a refund (D8).
    """
    if asked.payment.kind == MethodKind.BANK and asked.rest > 0:
        asked.books.refund(asked.payment, asked.transaction, asked.rest, identifier="", by="merchant")
        return None
    if asked.transaction.status not in _RELEASABLE:
        return f"You cannot release a payment in status {asked.transaction.status}"
    asked.books.release(asked.payment, asked.transaction, by="merchant")
    return None


def _moving(
    endpoint: MoneyEndpoint, act: Callable[[_Asked], str | None], *, kind: str, amount: str | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """Return the endpoint of a call that moves money; `act` does it, or returns why it is refused.

    `amount` is its element.
    """

    async def call(request: Request) -> Response:
        sandbox = sandbox_of(request)
        fields = await form_of(request)

        def serve() -> str:
            payment, transaction = _needed(sandbox, fields)
            rest = transaction.captured_minor - transaction.refunded_minor
            if endpoint == "capture":
                rest = transaction.reserved_minor - transaction.captured_minor
            minor = _minor(fields, payment, default=rest) if amount else 0
            planned = sandbox.faults.refuses(endpoint, payment.order_id)
            asked = _Asked(sandbox.books, payment, transaction, minor, rest, fields)
            refusal = _PLANNED if planned else act(asked)
            result = "Success" if refusal is None else planned or "Error"
            # Amounts as documented, Result and its deprecated twin, the transaction.
            told: dict[str, object] = {
                "Result": result,
                f"{kind}Result": result,
                "MerchantErrorMessage": refusal,
            }
            if amount:
                moved = plain(minor if refusal is None else 0, payment.currency)
                told = {amount: moved, f"{kind}Currency": money.numeric_code(payment.currency), **told}
            return elements(**told) + transactions([(payment, transaction)])

        return await _answer(request, endpoint, _order_of(sandbox, fields), serve)

    return call


ROUTES = [
    Route("/merchant/API/payments", list_payments, methods=["GET", "POST"]),
    Route(
        "/merchant/API/captureReservation",
        _moving("capture", _capture, kind="Capture", amount="CaptureAmount"),
        methods=["POST"],
    ),
    Route(
        "/merchant/API/refundCapturedReservation",
        _moving("refund", _refund, kind="Refund", amount="RefundedAmount"),
        methods=["POST"],
    ),
    Route("/merchant/API/releaseReservation", _moving("release", _release, kind="Cancel"), methods=["POST"]),
]


async def _answer(
    request: Request, endpoint: Endpoint, order_id: str | None, serve: Callable[[], str]
) -> Response:
    sandbox = sandbox_of(request)
    path = request.url.path.removeprefix("/merchant/")

    def attempt() -> Response:
        if not sandbox.knows(request):
            headers = {"www-authenticate": 'Basic realm="Merchant API"'}
            return Response("Unauthorized", HTTPStatus.UNAUTHORIZED, headers, media_type="text/plain")
        try:
            body, code, message = serve(), 0, ""
        except _Unusable as error:
            body, code, message = "", error.code, str(error)
        return Response(envelope(path=path, body=body, code=code, message=message), media_type=XML)

    return await sandbox.attend(request, endpoint, order_id, attempt, media_type=XML)


def _needed(sandbox: Sandbox, fields: dict[str, str]) -> tuple[Payment, Transaction]:
    number = fields.get("transaction_id", "")
    payment = sandbox.books.by_transaction.get(number)
    if payment is None:
        raise _Unusable(10000002, f"no transaction with transaction_id '{number}'")
    echo = sandbox.faults.plan(payment.order_id).echo
    if echo is not None:
        payment.echoes_reconciliation = echo
    return payment, next(each for each in payment.transactions if each.transaction_id == number)


def _minor(fields: dict[str, str], payment: Payment, *, default: int) -> int:
    given = fields.get("amount", "")
    if not given:
        return default
    try:
        return money.to_minor(given, payment.currency)
    except money.MoneyError as error:
        raise _Unusable(10000003, f"amount: {error}") from error


def _limit(given: str) -> int:
    if not given:
        return _DEFAULT_LIMIT
    wanted = int(given) if given.isascii() and given.isdigit() and len(given) <= len("100") else 0
    if not 1 <= wanted <= _HIGHEST_LIMIT:
        raise _Unusable(10000003, f"limit must be 1 to {_HIGHEST_LIMIT}")
    return wanted


def _order_of(sandbox: Sandbox, fields: dict[str, str]) -> str | None:
    """Return the order number that a call is about, for faults planned for it."""
    if fields.get("shop_orderid"):
        return fields["shop_orderid"]
    books = sandbox.books
    payment = books.by_transaction.get(fields.get("transaction_id", "")) or books.payments.get(
        fields.get("payment_id", "")
    )
    return payment.order_id if payment is not None else None


def _noise(sandbox: Sandbox, filters: dict[str, str]) -> Iterator[tuple[Payment, Transaction]]:
    """Yield other checkouts' failed attempts that a plan puts under an order; no ledger has them."""
    order_id = filters.get("shop_orderid", "")
    plan = sandbox.faults.plan(order_id)
    if set(filters) != {"shop_orderid"}:
        return
    for nth in range(plan.noise_rows):
        made = time.time() - (nth + 1) * 86400
        number = str(FIRST_TRANSACTION - 1 - nth)
        transaction = Transaction(
            transaction_id=number, status="preauth_failed", created_at=made, updated_at=made, outcome="failed"
        )
        payment = Payment(
            payment_id=str(uuid.uuid5(_NOISE, f"{order_id}/{nth}")),
            session_id="",
            order_id=order_id,
            terminal="Sandbox Card Terminal",
            kind=MethodKind.CARD,
            nature="CreditCard",
            currency="DKK",
            amount_minor=100,
            auto_capture=False,
            created_at=made,
            transaction_info={"checkout": f"another-{nth}"},
        )
        yield payment, transaction


def _matching(sandbox: Sandbox, filters: dict[str, str]) -> Iterator[tuple[Payment, Transaction]]:
    books = sandbox.books
    candidates: list[Payment]
    if number := filters.get("transaction_id"):
        candidates = [books.by_transaction[number]] if number in books.by_transaction else []
    elif payment_id := filters.get("payment_id"):
        candidates = [books.payments[payment_id]] if payment_id in books.payments else []
    elif order_id := filters.get("shop_orderid"):
        order = books.orders.get(order_id)
        candidates = books.payments_of(order) if order else []
    else:
        # No key: the newest payments only, not a walk over everything.
        candidates = list(itertools.islice(reversed(books.payments.values()), 10 * _HIGHEST_LIMIT))
    for payment in candidates:
        for transaction in payment.transactions:
            seen = {
                "transaction_id": transaction.transaction_id,
                "payment_id": payment.payment_id,
                "shop_orderid": payment.order_id,
                "shop": SHOP,
                "terminal": payment.terminal,
            }
            if all(seen[name] == value for name, value in filters.items()):
                yield payment, transaction
