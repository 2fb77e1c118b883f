"""The hosted payment pages, for browsers without JavaScript and for scripts over plain HTTP.

Form fields, stable (URL-encoded POST):

- `POST /sandbox/pay/{paymentId}` with `action`: `pay` (the default; card: `card_number`, `expiry` as MM/YY,
  `cvc`), `accept`, `decline`, `cancel`, `open` (mock bank, wallets, invoice), `sign_in` (bank page only, not
  needed by scripts), `notify_success` and `notify_declined` (while a payment is open).
- `GET /sandbox/pay/{paymentId}?card=N`: the card form with the N-th test card filled in.
- `POST /sandbox/pay/{paymentId}/3ds` with `result`: `pass` or `fail`, after `pay` answered 303 to that page.

An attempt that ended answers with what the merchant's callback said: 303 to the merchant's Location, or 200
with the merchant's page; where the merchant could not be reached, 200 with a page of our own that says so.
Posting an empty card form after a success makes the gateway call the failure URL although the money is held
(D7).
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.devkit.sandbox import html
from orchestrator.devkit.sandbox.control import is_open
from orchestrator.devkit.sandbox.core import form_of, sandbox_of
from orchestrator.devkit.sandbox.methods import MethodKind
from orchestrator.devkit.sandbox.rules import (
    CANCELLED,
    DECLINED,
    LEFT_OPEN,
    SUCCESS,
    THREE_D_SECURE_FAILED,
    AuthorizationResult,
    Outcome,
    forced,
    judge,
    judge_amount,
)

if TYPE_CHECKING:
    from starlette.requests import Request

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from orchestrator.devkit.sandbox.callbacks import Answer
    from orchestrator.devkit.sandbox.core import Sandbox

_SCRIPT = re.compile(rb"<script\b.*?(?:</script\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_EXPIRY = re.compile(r"(0[1-9]|1[0-2])\s*/\s*(?:20)?(\d\d)")
_CVC = re.compile(r"\d{3,4}")
_SHORTEST_PAN, _LONGEST_PAN = 12, 19
_LOGO_COLOURS = {"card": "#1f4b99", "bank": "#1b6e53", "wallet": "#5a3fc0", "invoice": "#8a4b12"}
_ACCEPTED = {"expiry": "12/39", "cvc": "123"}
"""What the card form has at first, so that only the card is chosen."""
TEST_CARDS = (
    ("4111 0000 1111 0000", "approved"),
    ("4180 0000 0000 0566", "declined"),
    ("4170 0000 0000 0568", "3-D Secure page"),
    ("4180 0000 0000 0567", "error at the acquirer"),
    ("4180 0000 0000 0466", "3-D Secure failed"),
    ("4170 0000 0000 0105", "approved, fraud check says Deny"),
)


async def show(request: Request) -> Response:
    payment = _payment(request)
    if payment is None:
        return _unknown()
    if payment.paid is not None:
        return _state(payment, note="This order has been paid. You can close this page.")
    latest = payment.latest
    filled = _filled(request.query_params.get("card"))
    if filled is None:  # the form that is filled in is the page of before
        sandbox_of(request).messages.note(payment.order_id, ("gateway", "browser"), "page", payment.kind)
    if latest is not None and latest.outcome == Outcome.OPEN:
        return _page("open.html", payment, back=payment.callbacks.get("redirect"))
    return _form_page(payment, signed_in="signed-in" in request.query_params, values=filled)


async def submit(request: Request) -> Response:
    payment = _payment(request)
    if payment is None:
        return _unknown()
    sandbox = sandbox_of(request)
    form = await form_of(request)
    action = form.get("action") or "pay"
    latest = payment.latest
    is_open = latest is not None and latest.outcome == Outcome.OPEN
    if action in {"notify_success", "notify_declined"} and latest is not None and is_open:
        await sandbox.resolve(payment, latest, "succeeded" if action == "notify_success" else "declined")
        word = "succeeded" if action == "notify_success" else "was declined"
        return _state(payment, note=f"The payment {word} and the shop was notified.")
    if payment.paid is not None:
        if action == "pay" and not form.get("card_number"):
            # Browser back and an empty form: the fail callback follows the success (D7).
            answer = await sandbox.courier.call(payment, payment.paid, "failure", "failed")
            return _relayed(sandbox, payment, payment.paid, answer)
        return _state(payment, note="This order has already been paid.", status=HTTPStatus.CONFLICT)
    if is_open:
        return _state(payment, note="This payment is still open at the bank.", status=HTTPStatus.CONFLICT)
    sandbox.messages.note(payment.order_id, ("browser", "gateway"), "submit", action)
    if payment.kind == MethodKind.CARD and action == "pay":
        return await _pay_by_card(sandbox, payment, form)
    if action == "sign_in" and payment.kind == MethodKind.BANK:
        return RedirectResponse(f"/sandbox/pay/{payment.payment_id}?signed-in=1", HTTPStatus.SEE_OTHER)
    verdict = _chosen(sandbox, payment, action)
    if verdict is None:
        problem = {"action": f"'{action}' is not something this page can do"}
        return _form_page(payment, problems=problem, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    transaction = sandbox.books.start_attempt(payment)
    return await _conclude(sandbox, payment, transaction, verdict)


async def show_challenge(request: Request) -> Response:
    payment = _payment(request)
    if payment is None or payment.latest is None:
        return _unknown()
    if payment.latest.outcome != Outcome.CHALLENGED:
        return RedirectResponse(f"/sandbox/pay/{payment.payment_id}", HTTPStatus.SEE_OTHER)
    return _page("three_d_secure.html", payment, pan=payment.latest.masked_pan)


async def submit_challenge(request: Request) -> Response:
    payment = _payment(request)
    if payment is None or payment.latest is None:
        return _unknown()
    sandbox = sandbox_of(request)
    result = (await form_of(request)).get("result")
    transaction = payment.latest
    if transaction.outcome != Outcome.CHALLENGED or payment.paid is not None:
        return _state(payment, note="There is nothing to confirm any more.", status=HTTPStatus.CONFLICT)
    if result not in {"pass", "fail"}:
        return _page(
            "three_d_secure.html", payment, pan=transaction.masked_pan, status=HTTPStatus.UNPROCESSABLE_ENTITY
        )
    passed = result == "pass"
    transaction.three_d_secure = "Successful" if passed else "Declined"
    return await _conclude(sandbox, payment, transaction, SUCCESS if passed else THREE_D_SECURE_FAILED)


async def index(request: Request) -> Response:
    """Describe the sandbox, with links to its pages."""
    books = sandbox_of(request).books
    counts = {"orders": len(books.orders), "sessions": len(books.sessions), "payments": len(books.payments)}
    return html.page("index.html", counts=counts, cards=TEST_CARDS, open=is_open(request))


async def logo(request: Request) -> Response:
    sandbox = sandbox_of(request)
    method = next(
        (each for each in sandbox.config.methods if each.id == request.path_params["method_id"]), None
    )
    if method is None:
        return Response(status_code=HTTPStatus.NOT_FOUND)
    initials = "".join(word[0] for word in method.name.split())[:2].upper()
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="40" viewBox="0 0 64 40">'
        f'<rect width="64" height="40" rx="6" fill="{_LOGO_COLOURS[method.kind]}"/>'
        '<text x="32" y="26" font-family="sans-serif" font-size="17" font-weight="bold" text-anchor="middle" '
        f'fill="#fff">{initials}</text></svg>'
    )
    return Response(svg, media_type="image/svg+xml", headers={"cache-control": "max-age=86400"})


ROUTES = [
    Route("/sandbox/pay/{payment_id}", show, methods=["GET"]),
    Route("/sandbox/pay/{payment_id}", submit, methods=["POST"]),
    Route("/sandbox/pay/{payment_id}/3ds", show_challenge, methods=["GET"]),
    Route("/sandbox/pay/{payment_id}/3ds", submit_challenge, methods=["POST"]),
    Route("/sandbox/logos/{method_id}.svg", logo, methods=["GET"]),
    Route("/", index, methods=["GET"]),
]


async def _pay_by_card(sandbox: Sandbox, payment: Payment, form: dict[str, str]) -> Response:
    pan = re.sub(r"[\s-]", "", form.get("card_number", ""))
    expiry = _EXPIRY.fullmatch(form.get("expiry", "").strip())
    problems = {}
    if not (pan.isascii() and pan.isdigit() and _SHORTEST_PAN <= len(pan) <= _LONGEST_PAN):
        problems["card_number"] = f"Enter the {_SHORTEST_PAN} to {_LONGEST_PAN} digits of the card number."
    if expiry is None:
        problems["expiry"] = "Enter the expiry date as MM/YY."
    if not _CVC.fullmatch(form.get("cvc", "").strip()):
        problems["cvc"] = "Enter the 3 or 4 digits of the security code."
    if problems or expiry is None:
        values = {"card_number": form.get("card_number", ""), "expiry": form.get("expiry", "")}
        return _form_page(payment, problems=problems, values=values, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    masked = pan[:6] + "*" * (len(pan) - 10) + pan[-4:]
    ordered = sandbox.faults.plan(payment.order_id).outcome
    verdict = forced(ordered) if ordered is not None else judge(pan, payment.amount)
    transaction = sandbox.books.start_attempt(payment, masked_pan=masked, expiry=f"{expiry[1]}/20{expiry[2]}")
    return await _conclude(sandbox, payment, transaction, verdict)


def _chosen(sandbox: Sandbox, payment: Payment, action: str) -> AuthorizationResult | None:
    """Return what an action of the bank, wallet and invoice pages means, None if it means nothing there."""
    card = payment.kind == MethodKind.CARD
    match action:
        case "cancel":
            return CANCELLED
        case "pay" | "accept" if not card:
            ordered = sandbox.faults.plan(payment.order_id).outcome
            if ordered is not None:
                return forced(ordered)
            return judge_amount(payment.amount) if payment.kind == MethodKind.WALLET else SUCCESS
        case "decline" if not card:
            return DECLINED
        case "open" if not card:
            return LEFT_OPEN
        case _:
            return None


async def _conclude(
    sandbox: Sandbox, payment: Payment, transaction: Transaction, verdict: AuthorizationResult
) -> Response:
    """Book the result, send the callbacks, and give the shopper the merchant's answer."""
    sandbox.messages.note(
        payment.order_id, ("gateway", "bank"), "process", html.amount(payment.amount_minor, payment.currency)
    )
    sandbox.messages.note(payment.order_id, ("bank", "gateway"), "result", verdict.message or verdict.outcome)
    if verdict.outcome is Outcome.CHALLENGED:
        await sandbox.store.flushed()
        return RedirectResponse(f"/sandbox/pay/{payment.payment_id}/3ds", HTTPStatus.SEE_OTHER)
    sandbox.books.conclude(payment, transaction, verdict)
    await sandbox.store.flushed()
    answer = await sandbox.courier.tell(payment, transaction)
    if verdict.outcome is Outcome.OPEN:
        sandbox.leave_open(payment, transaction)
        return RedirectResponse(f"/sandbox/pay/{payment.payment_id}", HTTPStatus.SEE_OTHER)
    return _relayed(sandbox, payment, transaction, answer)


def _relayed(sandbox: Sandbox, payment: Payment, transaction: Transaction, answer: Answer) -> Response:
    sandbox.messages.note(payment.order_id, ("gateway", "browser"), "result-page", str(transaction.outcome))
    if answer.location is not None:
        return RedirectResponse(answer.location, HTTPStatus.SEE_OTHER)
    if answer.page is not None:
        return HTMLResponse(_SCRIPT.sub(b"", answer.page))  # scripts are stripped (part 2.1)
    plan = sandbox.faults.plan(payment.order_id).callbacks
    back = payment.callbacks.get("redirect") if plan.redirect else None
    if answer.note == "no URL" and back is not None:
        return RedirectResponse(back, HTTPStatus.SEE_OTHER)  # callbacks of type FUNCTION run in the browser
    unreachable = answer.note != "no URL"
    return _page("result.html", payment, outcome=transaction.outcome, unreachable=unreachable, back=back)


def _payment(request: Request) -> Payment | None:
    return sandbox_of(request).books.payments.get(request.path_params["payment_id"])


def _filled(number: str | None) -> dict[str, str] | None:
    """Return what the form has once a test card is chosen by its place in the list."""
    if number is None or number not in map(str, range(len(TEST_CARDS))):
        return None
    return {"card_number": TEST_CARDS[int(number)][0], **_ACCEPTED}


def _form_page(
    payment: Payment,
    *,
    signed_in: bool = False,
    problems: dict[str, str] | None = None,
    values: dict[str, str] | None = None,
    status: int = HTTPStatus.OK,
) -> Response:
    latest = payment.latest
    again = (
        latest.message or "The payment was not completed."
        if latest and latest.outcome != Outcome.CHALLENGED
        else ""
    )
    context: dict[str, Any] = {
        "problems": problems or {},
        "values": values or _ACCEPTED,
        "again": again,
        "cards": TEST_CARDS,
    }
    if payment.kind == MethodKind.CARD:
        return _page("card.html", payment, status=status, **context)
    return _page("approve.html", payment, status=status, signed_in=signed_in, **context)


def _state(payment: Payment, *, note: str, status: int = HTTPStatus.OK) -> Response:
    return _page("state.html", payment, status=status, note=note, back=payment.callbacks.get("redirect"))


def _unknown() -> Response:
    return html.page("unknown.html", HTTPStatus.NOT_FOUND)


def _page(template: str, payment: Payment, *, status: int = HTTPStatus.OK, **context: Any) -> Response:
    amount = html.amount(payment.amount_minor, payment.currency)
    return html.page(template, status, payment=payment, amount=amount, **context)
