"""The Checkout API: authenticate, session, payment-methods, payment (part 1.1 to 1.5).

Error bodies are not documented for any of these calls. This sandbox answers `{"status": 400, "error": "Bad
Request", "message": "..."}` with 400 for a body that is wrong, 401 for credentials or a token, 404 for an
unknown session, 413 for a body over 1 MB. A PUT is merged into the session object by object; lists are
replaced. Whether lines must sum to the amount is not documented either: they need not.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.devkit.sandbox.core import Refused, as_json, bad_request, base_url, body_of, sandbox_of
from orchestrator.devkit.sandbox.methods import device_of, listed
from orchestrator.devkit.sandbox.rules import SUCCESS
from orchestrator.domain import money

if TYPE_CHECKING:
    from starlette.requests import Request

    from orchestrator.devkit.sandbox.books import Payment, Session
    from orchestrator.devkit.sandbox.core import Sandbox
    from orchestrator.devkit.sandbox.faults import Plan
    from orchestrator.devkit.sandbox.methods import Method

_CURRENCY = re.compile(r"[A-Za-z]{3}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LONGEST_ORDER_ID = 100
_MOST_INFO = 50
_LONGEST_INFO = 255
_OBJECTS = ("order", "callbacks", "configuration")
_URLS = ("success", "failure", "notification", "redirect", "formStyling")


async def authenticate(request: Request) -> Response:
    """Exchange Basic credentials for a token; a body of any kind is accepted and ignored."""
    sandbox = sandbox_of(request)
    await body_of(request)

    def serve() -> Response:
        if not sandbox.knows(request):
            raise Refused(HTTPStatus.UNAUTHORIZED, "the credentials are not those of an API user")
        token = sandbox.tokens.issue()
        sandbox.messages.issued(token)
        return as_json({"token": token})

    return await sandbox.attend(request, "authenticate", None, serve)


async def open_session(request: Request) -> Response:
    """Create a session, empty if the body is."""
    sandbox = sandbox_of(request)
    raw = await body_of(request)
    content, problem = _decoded(raw)

    def serve() -> Response:
        _need_token(sandbox, request, _order_id(content))
        if problem:
            raise bad_request(problem)
        facts = _facts(content)
        used = request.headers["authorization"].partition(" ")[2].strip()
        sandbox.messages.used(facts["order_id"], used)
        session = sandbox.books.open_session(msgspec.json.encode(content), **facts)
        return as_json(_described(session, content))

    return await sandbox.attend(request, "session", _order_id(content), serve)


async def change_session(request: Request) -> Response:
    """Merge new content into a session: amount, lines, even the order number (C1)."""
    sandbox = sandbox_of(request)
    raw = await body_of(request)
    content, problem = _decoded(raw)
    session = sandbox.books.sessions.get(request.path_params["session_id"])
    order_id = _order_id(content) or _order_of(session)

    def serve() -> Response:
        _need_token(sandbox, request, order_id)
        found = _need_session(session)
        if problem:
            raise bad_request(problem)
        merged = _merged(msgspec.json.decode(found.body), content)
        sandbox.books.change_session(found, msgspec.json.encode(merged), **_facts(merged))
        return as_json(_described(found, merged))

    return await sandbox.attend(request, "session", order_id, serve)


async def list_methods(request: Request) -> Response:
    """List what this shopper can pay with; the device is read from the User-Agent."""
    sandbox = sandbox_of(request)
    session = sandbox.books.sessions.get(request.path_params["session_id"])

    def serve() -> Response:
        _need_token(sandbox, request, _order_of(session))
        if session is not None and sandbox.faults.loses_session(session.order_id):
            sandbox.books.lose_session(session.session_id)
            raise Refused(HTTPStatus.NOT_FOUND, "no such session")
        offered = _offered(sandbox, _need_session(session), request)
        return Response(listed(offered, base_url(request)), media_type="application/json")

    return await sandbox.attend(request, "payment-methods", _order_of(session), serve)


async def open_payment(request: Request) -> Response:
    """Start a payment with a method; every call makes a new payment, there is no idempotency (C3)."""
    sandbox = sandbox_of(request)
    content, problem = _decoded(await body_of(request))
    session = sandbox.books.sessions.get(str(content.get("sessionId")))
    method_id = content.get("paymentMethodId", request.path_params.get("method_id"))
    base = base_url(request)
    opened: list[Payment] = []

    def serve() -> Response:
        _need_token(sandbox, request, _order_of(session))
        if problem:
            raise bad_request(problem)
        found = _need_session(session)
        method = next((each for each in _offered(sandbox, found, request) if each.id == method_id), None)
        if method is None:
            raise bad_request(f"paymentMethodId {method_id!r} is not offered for this session")
        payment = sandbox.books.open_payment(
            found.session_id, method, **_payment_facts(found, sandbox.faults.plan(str(found.order_id)))
        )
        opened.append(payment)
        number = payment.payment_id
        shown = {"paymentId": number, "shopOrderId": payment.order_id, "externalPaymentId": number}
        return as_json({**shown, "status": "NEW", "type": "REDIRECT", "url": f"{base}/sandbox/pay/{number}"})

    response = await sandbox.attend(request, "payment", _order_of(session), serve)
    for payment in opened:
        sandbox.courier.announce(payment)
    return response


async def authorise_payment(request: Request) -> Response:
    """Finish a native wallet payment: the documented path, with a body that is not (any JSON is taken)."""
    sandbox = sandbox_of(request)
    await body_of(request)
    _need_token(sandbox, request)
    payment = sandbox.books.payments.get(request.path_params["payment_id"])
    if payment is None:
        raise Refused(HTTPStatus.NOT_FOUND, "no such payment")
    if payment.paid is not None:
        raise Refused(HTTPStatus.CONFLICT, "the payment is already paid")
    transaction = sandbox.books.start_attempt(payment)
    sandbox.books.conclude(payment, transaction, SUCCESS)
    await sandbox.store.flushed()
    await sandbox.courier.tell(payment, transaction)
    return as_json({"paymentId": payment.payment_id, "shopOrderId": payment.order_id, "status": "SUCCEEDED"})


ROUTES = [
    Route("/checkout/v1/api/session", open_session, methods=["POST"]),
    Route("/checkout/v1/api/session/{session_id}/payment-methods", list_methods, methods=["GET"]),
    Route("/checkout/v1/api/authenticate", authenticate, methods=["POST"]),
    Route("/checkout/v1/api/session/{session_id}", change_session, methods=["PUT"]),
    Route("/checkout/v1/api/payment", open_payment, methods=["POST"]),
    Route("/checkout/v1/api/payment/initiate/{method_id}", open_payment, methods=["POST"]),
    Route("/checkout/v1/api/payment/{payment_id}/authorization", authorise_payment, methods=["POST"]),
]


def _need_token(sandbox: Sandbox, request: Request, order_id: str | None = None) -> None:
    if not sandbox.bears_token(request, order_id):
        raise Refused(HTTPStatus.UNAUTHORIZED, "the token is missing, unknown or expired")


def _need_session(session: Session | None) -> Session:
    if session is None:
        raise Refused(HTTPStatus.NOT_FOUND, "no such session")
    return session


def _decoded(raw: bytes) -> tuple[dict[str, Any], str | None]:
    """Return the JSON object of a body (an empty body is an empty object) and what is wrong with it."""
    if not raw.strip():
        return {}, None
    try:
        content = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return {}, f"the body is not JSON: {error}"
    if not isinstance(content, dict):
        return {}, "the body must be a JSON object"
    return content, None


def _order_id(content: dict[str, Any]) -> str | None:
    order = content.get("order")
    found = order.get("orderId") if isinstance(order, dict) else None
    return found if isinstance(found, str) else None


def _order_of(session: Session | None) -> str | None:
    return None if session is None else session.order_id


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = (
            _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
        )
    return merged


def _described(session: Session, content: dict[str, Any]) -> dict[str, Any]:
    return {"sessionId": session.session_id, "context": {"browser": {}}, **content}


def _need(good: object, message: str) -> None:
    if not good:
        raise bad_request(message)


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    """Check a session's content and return what the books keep beside it."""
    for name in _OBJECTS:
        _need(content.get(name) is None or isinstance(content[name], dict), f"{name} must be an object")
    _check_callbacks(content.get("callbacks") or {})
    order = content.get("order")
    if not order:
        return dict.fromkeys(("order_id", "currency", "amount_minor", "country"))
    order_id = order.get("orderId")
    fits = isinstance(order_id, str) and 1 <= len(order_id) <= _LONGEST_ORDER_ID
    _need(
        fits and not _CONTROL.search(order_id),
        f"order.orderId must be text of 1 to {_LONGEST_ORDER_ID} characters",
    )
    currency, minor = _amount(order.get("amount"))
    _check_lines(order.get("orderLines"))
    customer = order.get("customer")
    _need(isinstance(customer, dict), "order.customer must be an object")
    _check_info(order.get("transactionInfo") or {})
    configuration = content.get("configuration")
    kind = configuration.get("paymentType") if isinstance(configuration, dict) else None
    _need(isinstance(kind, str), "configuration.paymentType must be text, such as PAYMENT")
    country = _country(customer, configuration)
    return {"order_id": order_id, "currency": currency, "amount_minor": minor, "country": country}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _amount(amount: Any) -> tuple[str, int]:
    _need(isinstance(amount, dict), "order.amount must be an object with value and currency")
    value, currency = amount.get("value"), amount.get("currency")
    _need(
        isinstance(currency, str) and _CURRENCY.fullmatch(currency),
        "order.amount.currency must be three letters",
    )
    _need(_is_number(value), "order.amount.value must be a number")
    try:
        minor = money.to_minor(value, currency.upper())
    except money.MoneyError as error:
        raise bad_request(f"order.amount: {error}") from error
    _need(minor > 0, "order.amount.value must be more than 0")
    return currency.upper(), minor


def _check_lines(lines: Any) -> None:
    _need(isinstance(lines, list), "order.orderLines must be a list")
    for number, line in enumerate(lines):
        where = f"order.orderLines[{number}]"
        _need(isinstance(line, dict), f"{where} must be an object")
        _need(isinstance(line.get("description"), str), f"{where}.description must be text")
        for name in ("quantity", "unitPrice"):
            _need(_is_number(line.get(name)), f"{where}.{name} must be a number")


def _check_info(info: Any) -> None:
    _need(
        isinstance(info, dict) and all(isinstance(value, str) for value in info.values()),
        "order.transactionInfo must map text to text",
    )
    _need(
        len(info) <= _MOST_INFO and all(len(value) <= _LONGEST_INFO for value in info.values()),
        f"order.transactionInfo takes at most {_MOST_INFO} entries of {_LONGEST_INFO} characters",
    )


def _check_callbacks(callbacks: dict[str, Any]) -> None:
    for name in _URLS:
        given = callbacks.get(name)
        value = given.get("value") if isinstance(given, dict) else given
        _need(
            given is None or isinstance(value, str),
            f"callbacks.{name} must be a URL or an object with type and value",
        )
    _need(callbacks.get("bodyFormat") in (None, "XML", "JSON"), "callbacks.bodyFormat must be XML or JSON")


def _country(customer: Any, configuration: Any) -> str | None:
    for address in (customer.get("billingAddress"), customer.get("shippingAddress"), configuration):
        if isinstance(address, dict) and isinstance(address.get("country"), str):
            return str(address["country"]).upper()
    return None


def _offered(sandbox: Sandbox, session: Session, request: Request) -> list[Method]:
    if session.amount_minor is None or session.currency is None:
        return []  # an empty session has nothing to pay for
    amount = money.to_decimal(session.amount_minor, session.currency)
    device = device_of(request.headers.get("user-agent", ""))
    return [
        method
        for method in sandbox.config.methods
        if method.offered(amount=amount, currency=session.currency, country=session.country, device=device)
    ]


def _payment_facts(session: Session, plan: Plan) -> dict[str, Any]:
    """Read from a session and its plan what its payment needs; later changes do not reach it."""
    content = msgspec.json.decode(session.body)
    order = content["order"]
    callbacks = content.get("callbacks") or {}
    configuration = content["configuration"]
    urls: dict[str, str] = {}
    for name in _URLS:
        given = callbacks.get(name)
        if isinstance(given, str):
            urls[name] = given
        elif isinstance(given, dict) and given.get("type", "URL") == "URL":
            urls[name] = given["value"]  # FUNCTION runs in the browser only
    return {
        "order_id": session.order_id,
        "currency": plan.currency or session.currency,
        "amount_minor": session.amount_minor if plan.amount_minor is None else plan.amount_minor,
        "leaves_capture": plan.require_capture,
        "echoes_infos": plan.bindings,
        "reserved_seconds": plan.expires_in_seconds,
        "auto_capture": configuration.get("autoCapture") is True,
        "body_format": callbacks.get("bodyFormat") or configuration.get("bodyFormat") or "XML",
        "customer": order["customer"],
        "transaction_info": order.get("transactionInfo") or {},
        "callbacks": urls,
    }
