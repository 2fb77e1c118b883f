"""Creating checkouts and reading them: a checkout, a list, its trail, its explanation, and the payments of a
merchant.

A checkout is created once however often it is sent; the answer comes after the commit, and the hint to the
workers after that.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID

import msgspec
from fastapi import Query, Request
from pydantic import BeforeValidator
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import callback_urls, explain, intents
from orchestrator.api import correlation, dependencies, problems, reads, request_body
from orchestrator.api.contract import answers
from orchestrator.api.dependencies import DATABASE_TIMEOUT, Services
from orchestrator.api.problems import Refusal, answer
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.records import Role  # noqa: TC001 - FastAPI reads the annotations of what it calls
from orchestrator.domain.states import State
from orchestrator.intents import Intent, IntentRejected, Problem
from orchestrator.store.batch import Unwritten
from orchestrator.store.database import DatabaseAway
from orchestrator.store.inbox import Accepted, Intake, KeyReused, OrderTaken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.auth import Caller
    from orchestrator.errors import OrchestratorError
    from orchestrator.store.merchants import Merchant

BATCH_BYTES: Final = 4 * 1024 * 1024

LONGEST_SHOWN: Final = 40
"""Characters of an id in a sentence; an id has 36."""
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])


# ── Intake ────────────────────────────────────────────────────────────────────────────────────────────────


async def accept(request: Request) -> Response:
    """Accept a checkout: 202 if it is new, 200 if it exists with the same content."""
    services = dependencies.of(request)
    caller, merchant = await dependencies.admit(request, "checkouts:write")
    key = idempotency_key(request)
    raw = await request_body.read_json(request, limit=intents.BODY_LIMIT)
    try:
        intent = intents.parse(raw)
    except IntentRejected as error:
        raise problems.rejected(error) from None
    accepted = await _take(services, _intake(services, caller, merchant, intent, key=key))
    if accepted.fresh:
        services.hint_publisher.publish([accepted.id], merchant_id=merchant.id)
    status = 202 if accepted.fresh else 200
    return answer(_accepted(services, accepted), status, {"Location": f"/v1/checkouts/{accepted.id}"})


async def accept_batch(request: Request) -> Response:
    """Accept many checkouts, each with a result of its own.

    Safe to repeat: existing order numbers are recognised.
    """
    services = dependencies.of(request)
    caller, merchant = await dependencies.admit(request, "checkouts:write")
    if "idempotency-key" in request.headers:
        raise Refusal(422, "a batch takes no Idempotency-Key: its order numbers make it safe to send again")
    raw = await request_body.read_json(request, limit=BATCH_BYTES)
    try:
        rows = _ROWS.decode(raw)
    except (ValueError, RecursionError):
        raise Refusal(422, "the body must be a JSON list of checkouts", kind="invalid-batch") from None
    if not 1 <= len(rows) <= answers.MOST_CHECKOUTS:
        said = (
            f"the list has {len(rows)} checkouts, and takes 1 to {answers.MOST_CHECKOUTS}: send several lists"
        )
        raise Refusal(422, said, kind="invalid-batch")
    read: list[Intake | Refusal] = []
    for row in rows:
        read.append(_read_row(services, caller, merchant, bytes(row)))
        await asyncio.sleep(0)  # a long list must not keep other requests waiting
    results = await _take_rows(services, read)
    fresh = [result.id for result in results if isinstance(result, Accepted) and result.fresh]
    if fresh:
        services.hint_publisher.publish(fresh, merchant_id=merchant.id)
    return answer(answers.BatchResults(results=[_result(services, result) for result in results]))


def _intake(
    services: Services, caller: Caller, merchant: Merchant, intent: Intent, *, key: str | None = None
) -> Intake:
    return Intake.of(
        intent,
        merchant_id=merchant.id,
        actor=caller.actor,
        correlation_id=correlation.current(),
        default_expires_in=services.settings.checkout_expires_in,
        idempotency_key=key,
    )


async def _take(services: Services, intake: Intake) -> Accepted:
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            return await services.intents.accept(intake)
    except OrderTaken as error:
        raise _order_taken(error) from None
    except KeyReused as error:
        raise problems.key_reused(error) from None


def _read_row(services: Services, caller: Caller, merchant: Merchant, raw: bytes) -> Intake | Refusal:
    try:
        return _intake(services, caller, merchant, intents.parse(raw))
    except IntentRejected as error:
        return problems.rejected(error)


async def _take_rows(services: Services, rows: Sequence[Intake | Refusal]) -> list[Accepted | Refusal]:
    """Store the valid rows as one list; return a result for each row."""
    valid = [row for row in rows if isinstance(row, Intake)]
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            stored = iter(await services.intents.accept_all(valid))
    except TimeoutError:
        return [row if isinstance(row, Refusal) else problems.away() for row in rows]
    return [row if isinstance(row, Refusal) else _taken(next(stored)) for row in rows]


def _taken(result: Accepted | OrchestratorError) -> Accepted | Refusal:
    match result:
        case Accepted():
            return result
        case OrderTaken():
            return _order_taken(result)
        case DatabaseAway():
            return problems.away()
        case Unwritten():
            said = "the database refuses this checkout, also when it is sent again: ask the operator"
            return Refusal(500, said, kind="not-storable")
        case _:
            raise result


def _order_taken(error: OrderTaken) -> Refusal:
    return Refusal(409, str(error), kind="order-taken", facts={"checkoutId": str(error.checkout)})


def _result(services: Services, result: Accepted | Refusal) -> answers.BatchResult:
    if isinstance(result, Refusal):
        return answers.BatchResult(status=result.status, problem=problems.body_of(result))
    return answers.BatchResult(status=202 if result.fresh else 200, checkout=_accepted(services, result))


def _accepted(services: Services, accepted: Accepted) -> answers.Accepted:
    return answers.Accepted(
        id=accepted.id,
        order_id=accepted.order_ref,
        state=State(accepted.state),
        deadline=accepted.deadline,
        client_token=callback_urls.client_token(services.encryptor, accepted.id),
        links=reads.links_of(accepted.id),
    )


def idempotency_key(request: Request) -> str | None:
    """Return the request's Idempotency-Key, or None; 422 for a key that cannot be stored."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        message = "must be 1 to 255 visible ASCII characters, such as a UUID"
        wrong = [Problem("Idempotency-Key", message)]
        raise Refusal(422, f"Idempotency-Key: {message}", kind="invalid-idempotency-key", errors=wrong)
    return key


# ── Reads ─────────────────────────────────────────────────────────────────────────────────────────────────


async def show(request: Request, checkout_id: str) -> Response:
    """Return everything about one checkout."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    checkout = id_of(checkout_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await reads.checkout(services.db, services.encryptor, merchant.id, checkout)
    if found is None:
        raise unknown(checkout_id)
    return answer(found)


def _known_attention(value: object) -> object:
    """Refuse a value that is neither true or false nor a code, as one error."""
    if value not in {None, "true", "false", *AttentionCode}:
        message = (
            f"must be true, false or a code, and {str(value)[:40]!r} is neither: the runbook has the codes"
        )
        raise ValueError(message)
    return value


async def search(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    order_id: Annotated[
        str | None,
        Query(alias="orderId", max_length=intents.LONGEST_ORDER, description="The shop's order number"),
    ] = None,
    state: Annotated[list[State] | None, Query(max_length=len(State), description="May be repeated")] = None,
    payment_status: Annotated[
        list[PaymentStatus] | None,
        Query(
            alias="paymentStatus",
            max_length=len(PaymentStatus),
            description="What is held of the shopper's money; may be repeated",
        ),
    ] = None,
    attention: Annotated[
        bool | AttentionCode | None,
        BeforeValidator(_known_attention),
        Query(
            description="Only those that wait for a decision (`true`), or for one of this code, or only the others (`false`)"
        ),
    ] = None,
    cursor: Annotated[UUID | None, Query(description="`nextCursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=answers.PAGE)] = 50,
) -> Response:
    """A merchant's checkouts, the youngest first, page by page."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    if order_id is not None and not intents.may_be_order(order_id):
        return answer(answers.CheckoutPage(checkouts=[], next_cursor=None))  # no order has such a number
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await reads.page(
            services.db,
            merchant.id,
            order_ref=order_id,
            states=state or (),
            statuses=payment_status or (),
            waiting=attention,
            before=cursor,
            limit=limit,
        )
    return answer(found)


async def show_explanation(request: Request, checkout_id: str) -> Response:
    """Why a checkout is where it is, what happens next and when, and what a person may do."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    checkout = id_of(checkout_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        record = await explain.gather(services.db, services.settings, checkout, merchant_id=merchant.id)
    if record is None:
        raise unknown(checkout_id)
    told = explain.explain(record)
    return answer(
        answers.Explanation(
            summary=told.summary,
            because=told.because,
            evidence=told.evidence,
            next=answers.Next(what=told.next.what, at=told.next.at),
            you_may=told.you_may,
        )
    )


async def show_payments(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    role: Annotated[
        Role | None, Query(description="`surplus` and `unknown` are money that belongs to no order")
    ] = None,
    order_id: Annotated[
        str | None,
        Query(alias="orderId", max_length=intents.LONGEST_ORDER, description="The shop's order number"),
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=400, description="`nextCursor` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=answers.PAGE)] = 50,
) -> Response:
    """A merchant's payments as the gateway showed them, the youngest first, page by page."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    if order_id is not None and not intents.may_be_order(order_id):
        return answer(answers.PaymentPage(payments=[], next_cursor=None))  # no order has such a number
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await reads.payments_page(
            services.db, merchant.id, role=role, order_ref=order_id, before=cursor, limit=limit
        )
    if found is None:
        message = "must be the nextCursor of an earlier page"
        raise Refusal(422, f"cursor {message}", kind="invalid-request", errors=[Problem("cursor", message)])
    return answer(found)


async def show_audit(
    request: Request,
    checkout_id: str,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="`nextAfter` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=answers.AUDIT_PAGE)] = 500,
) -> Response:
    """Return the audit trail of one checkout, the oldest entry first."""
    services = dependencies.of(request)
    _, merchant = await dependencies.admit(request, "checkouts:read")
    checkout = id_of(checkout_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await reads.audit(
            services.db, services.encryptor, merchant.id, checkout, after=after, limit=limit
        )
    if found is None:
        raise unknown(checkout_id)
    return answer(found)


def id_of(checkout_id: str) -> UUID:
    """Read the id in a path; 404 for a text that cannot be an id."""
    try:
        return UUID(checkout_id)
    except ValueError:
        raise unknown(checkout_id) from None


def unknown(checkout_id: str) -> Refusal:
    """Return the refusal of an id that this merchant does not have, with the way to find a checkout where it
    is an order number.
    """
    shown = checkout_id if len(checkout_id) <= LONGEST_SHOWN else checkout_id[:LONGEST_SHOWN] + "…"
    said = f"there is no checkout {shown!r} here: check the id and the merchant"
    if intents.ORDER_NUMBER.fullmatch(checkout_id) and not _is_spelled_as_an_id(checkout_id):
        said = (
            f"{shown!r} is not the id of a checkout here; if it is an order number, ask for "
            f"GET /v1/checkouts?orderId={checkout_id}"
        )
    return Refusal(404, said, kind="unknown-checkout")


def _is_spelled_as_an_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
