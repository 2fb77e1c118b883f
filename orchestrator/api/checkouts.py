"""Creating checkouts, one by one and in lists.

A checkout is created once however often it is sent; the answer comes after the commit, and the hint to the
workers after that.
"""

from __future__ import annotations

import asyncio
import re
from itertools import repeat
from typing import TYPE_CHECKING, Final

import msgspec

from orchestrator import callback_urls, intents
from orchestrator.api import correlation, dependencies, problems, reads, request_body
from orchestrator.api.contract import answers
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.problems import Refusal, answer
from orchestrator.domain.states import State
from orchestrator.intents import Intent, IntentRejected
from orchestrator.store.batch import Unwritten
from orchestrator.store.database import DatabaseAway
from orchestrator.store.inbox import Accepted, Intake, KeyReused, OrderTaken

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import Request
    from starlette.responses import Response

    from orchestrator.api.dependencies import Services
    from orchestrator.auth import Caller
    from orchestrator.errors import OrchestratorError
    from orchestrator.store.merchants import Merchant

SCOPE: Final = "checkouts:write"
BATCH_BYTES: Final = 4 * 1024 * 1024

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])


async def accept(request: Request) -> Response:
    """Accept a checkout: 202 if it is new, 200 if it exists with the same content."""
    services, caller, merchant = await dependencies.admit(request, SCOPE)
    key = idempotency_key(request)
    raw = await request_body.read_json(request, limit=intents.BODY_LIMIT)
    try:
        intake = _intake(services, caller, merchant, intents.parse(raw), key=key)
        async with asyncio.timeout(DATABASE_TIMEOUT):
            accepted = await services.intents.accept(intake)
    except IntentRejected as error:
        raise problems.rejected(error) from None
    except OrderTaken as error:
        raise _order_taken(error) from None
    except KeyReused as error:
        raise problems.key_reused(error) from None
    if accepted.fresh:
        services.hint_publisher.publish([accepted.id], merchant_id=merchant.id)
    status = 202 if accepted.fresh else 200
    return answer(_accepted(services, accepted), status, {"Location": f"/v1/checkouts/{accepted.id}"})


async def accept_batch(request: Request) -> Response:
    """Accept many checkouts, each with a result of its own.

    Safe to repeat: existing order numbers are recognised.
    """
    services, caller, merchant = await dependencies.admit(request, SCOPE)
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
        try:
            read.append(_intake(services, caller, merchant, intents.parse(bytes(row))))
        except IntentRejected as error:
            read.append(problems.rejected(error))
        await asyncio.sleep(0)  # a long list must not keep other requests waiting
    valid = [row for row in read if isinstance(row, Intake)]
    stored: Iterator[Accepted | OrchestratorError]
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            stored = iter(await services.intents.accept_all(valid))
    except TimeoutError:
        stored = repeat(problems.away())
    outcomes = [row if isinstance(row, Refusal) else next(stored) for row in read]
    results = [_result(services, outcome) for outcome in outcomes]
    fresh = [outcome.id for outcome in outcomes if isinstance(outcome, Accepted) and outcome.fresh]
    if fresh:
        services.hint_publisher.publish(fresh, merchant_id=merchant.id)
    return answer(answers.BatchResults(results=results))


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


def _order_taken(error: OrderTaken) -> Refusal:
    return Refusal(409, str(error), kind="order-taken", facts={"checkoutId": str(error.checkout)})


def _result(services: Services, outcome: Accepted | OrchestratorError) -> answers.BatchResult:
    match outcome:
        case Accepted():
            status = 202 if outcome.fresh else 200
            return answers.BatchResult(status=status, checkout=_accepted(services, outcome))
        case Refusal():
            refusal = outcome
        case OrderTaken():
            refusal = _order_taken(outcome)
        case DatabaseAway():
            refusal = problems.away()
        case Unwritten():
            said = "the database refuses this checkout, also when it is sent again: ask the operator"
            refusal = Refusal(500, said, kind="not-storable")
        case _:
            raise outcome
    return answers.BatchResult(status=refusal.status, problem=problems.body_of(refusal))


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
        raise problems.wrong("Idempotency-Key", message, kind="invalid-idempotency-key")
    return key
