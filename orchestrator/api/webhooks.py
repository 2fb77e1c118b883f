"""Webhooks of a merchant: added, changed, tested, and the result of each delivery.

A secret is shown once, by the call that makes it. Another merchant's webhook is answered as one that does not
exist. Nothing is sent from here: deliverers do that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID  # noqa: TC003 - FastAPI reads annotations at run time

from fastapi import Query, Request
from starlette.responses import Response

from orchestrator import log
from orchestrator.api.contract import webhooks as shapes
from orchestrator.api.contract.values import like
from orchestrator.api.dependencies import DATABASE_TIMEOUT, admit, in_time
from orchestrator.api.idempotency import once
from orchestrator.api.problems import Refusal, answer, id_of, unknown
from orchestrator.api.reads import Cursor  # noqa: TC001 - FastAPI reads annotations at run time
from orchestrator.api.webhook_body import WebhookBody
from orchestrator.delivery import signature
from orchestrator.delivery.sender import Outcome
from orchestrator.domain import events
from orchestrator.store import deliveries, replays
from orchestrator.store import webhooks as stored
from orchestrator.store.deliveries import TooManyTests
from orchestrator.store.replays import PeriodTooLong
from orchestrator.store.webhooks import TooManyWebhooks, Webhook

if TYPE_CHECKING:
    from orchestrator.api.dependencies import Services
    from orchestrator.auth import Caller
    from orchestrator.store.deliveries import AttemptRow
    from orchestrator.store.merchants import Merchant

_log = log.get(__name__)

PATH: Final = "/v1/webhooks"
WRITE: Final = "webhooks:write"
READ: Final = ("webhooks:read", WRITE)
"""One of them is enough."""


@once(WRITE)
async def add(request: Request) -> Response:
    """A webhook gets the events that come from now on. Its secret is in this answer and nowhere else.

    With the kind `celery` events are published as a Celery task, to a queue of your own broker or of the
    orchestrator's; there is no secret, because who publishes is shown by access to the broker.
    """
    services, caller, merchant = await admit(request, WRITE)
    body = await WebhookBody.of(request, shapes.AddWebhook)
    target = body.target(services, merchant)
    given = body.settings()
    body.judge()
    secret = signature.new_secret() if target.secret is None else target.secret
    new: dict[str, Any] = {"description": "", "kinds": None, "content": "thin", **given, **target.fields}
    try:
        made = await in_time(
            stored.add(services.db, services.encryptor, merchant_id=merchant.id, secret=secret, **new)
        )
    except TooManyWebhooks as error:
        raise Refusal(409, str(error), kind="too-many-webhooks") from None
    _log.info("webhook_added", webhook=str(made.id), merchant=merchant.name, actor=caller.actor)
    return answer(_told(made, secret), 201, {"Location": f"{PATH}/{made.id}"})


async def show_all(
    request: Request,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=shapes.WEBHOOK_PAGE)] = 50,
) -> Response:
    """A merchant's webhooks in the order in which they were made."""
    services, _, merchant = await admit(request, *READ)
    found = await in_time(stored.page(services.db, merchant_id=merchant.id, after=cursor, limit=limit + 1))
    more = found[limit - 1].id if len(found) > limit else None
    shown = [_told(webhook) for webhook in found[:limit]]
    return answer(shapes.WebhookPage(webhooks=shown, next_cursor=more))


async def show(request: Request, webhook_id: str) -> Response:
    """One webhook, and what waits for it."""
    services, _, merchant = await admit(request, *READ)
    return answer(_told(await _find(services, merchant, webhook_id)))


async def change(request: Request, webhook_id: str) -> Response:
    """Change a webhook, pause it or resume it; what waits is sent as it is then."""
    services, caller, merchant = await admit(request, WRITE)
    body = await WebhookBody.of(request, shapes.ChangeWebhook)
    webhook = await _find(services, merchant, webhook_id)
    target, given, paused = body.target(services, merchant, webhook), body.settings(), body.paused()
    body.judge()
    changes = {**given, **target.fields}
    async with asyncio.timeout(DATABASE_TIMEOUT):
        if changes:
            await stored.change(
                services.db,
                services.encryptor,
                webhook.id,
                merchant_id=merchant.id,
                changes=changes,
                secret=target.secret,
                check=lambda after: body.judge_target(merchant, after),
            )
        if paused is True:
            await stored.pause(services.db, webhook.id, "asked")
        elif paused is False:
            await stored.resume(services.db, webhook.id, merchant_id=merchant.id)
    _log.info(
        "webhook_changed",
        webhook=str(webhook.id),
        merchant=merchant.name,
        actor=caller.actor,
        fields=sorted(body.given),
    )
    return answer(_told(await _find(services, merchant, webhook_id)))


async def delete(request: Request, webhook_id: str) -> Response:
    """Delete a webhook, with what waits for it. Events stay in the feed."""
    services, caller, merchant = await admit(request, WRITE)
    number = id_of("webhook", webhook_id)
    if not await in_time(stored.delete(services.db, number, merchant_id=merchant.id)):
        raise unknown("webhook", webhook_id)
    _log.info("webhook_deleted", webhook=str(number), merchant=merchant.name, actor=caller.actor)
    return Response(status_code=204)


@once(WRITE)
async def rotate_secret(request: Request, webhook_id: str) -> Response:
    """Make a new secret, shown in this answer and nowhere else.

    The previous secret signs too for a day, or for as long as `overlap` says.
    """
    services, caller, merchant = await admit(request, WRITE)
    body = await WebhookBody.of(request, shapes.RotateSecret, optional=True)
    overlap = body.overlap(shapes.OVERLAP, most=shapes.LONGEST_OVERLAP)
    body.judge()
    webhook = await _find(services, merchant, webhook_id)
    if webhook.kind == "celery":
        raise Refusal(409, "a Celery task has no secret: change its broker instead", kind="no-secret")
    secret = signature.new_secret()
    rotating = stored.rotate(
        services.db, services.encryptor, webhook.id, merchant_id=merchant.id, secret=secret, overlap=overlap
    )
    found = await in_time(rotating)
    if found is None:
        raise unknown("webhook", webhook_id)
    _log.info("webhook_secret_rotated", webhook=str(found.id), merchant=merchant.name, actor=caller.actor)
    return answer(_told(found, secret))


@once(WRITE)
async def send_test(request: Request, webhook_id: str) -> Response:
    """Send a test event, once, also to a webhook that is paused; what came of it stands among the
    attempts.
    """
    services, _, merchant = await admit(request, WRITE)
    webhook = await _find(services, merchant, webhook_id)
    try:
        test = await in_time(deliveries.test(services.db, webhook.id))
    except TooManyTests as error:
        raise Refusal(429, str(error), kind="too-many-tests") from None
    return answer(shapes.TestSent(event_id=events.event_id(test, 1)), 202)


@once(WRITE)
async def resume(request: Request, webhook_id: str) -> Response:
    """Serve a webhook again that was paused or is off; what waits is sent, and what failed is
    tried at once.
    """
    services, caller, merchant = await admit(request, WRITE)
    webhook = await _find(services, merchant, webhook_id)
    await in_time(stored.resume(services.db, webhook.id, merchant_id=merchant.id))
    _log.info("webhook_resumed", webhook=str(webhook.id), merchant=merchant.name, actor=caller.actor)
    return answer(_told(await _find(services, merchant, webhook_id)))


@once(WRITE)
async def replay(request: Request, webhook_id: str) -> Response:
    """Send events again that the feed still has, with the same ids: a single event, those of a period, or all
    that was given up.
    """
    services, caller, merchant = await admit(request, WRITE)
    body = await WebhookBody.of(request, shapes.Replay)
    webhook = await _find(services, merchant, webhook_id)
    wanted = body.replay()
    body.judge()
    number = await in_time(_replay(services, merchant, webhook, wanted))
    return _replayed(number, webhook.id, merchant, caller)


async def show_deliveries(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    webhook_id: str,
    checkout: Annotated[UUID | None, Query(description="Only events of this checkout")] = None,
    failed: Annotated[bool | None, Query(description="Only attempts that failed, or only the others")] = None,
    cursor: Cursor = None,
    limit: Annotated[int, Query(ge=1, le=shapes.DELIVERY_PAGE)] = 50,
) -> Response:
    """Attempts to reach an endpoint, the youngest first, page by page.

    With `checkout` or `failed` a page may hold fewer, and others follow.
    """
    services, _, merchant = await admit(request, *READ)
    webhook = await _find(services, merchant, webhook_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await deliveries.attempts(
            services.db,
            services.encryptor,
            webhook.id,
            before=cursor,
            limit=limit + 1,
            checkout=checkout,
            failed=failed,
        )
        more = found[limit - 1].id if len(found) > limit else None
        if more is None and (checkout is not None or failed is not None):
            # This read had a limit: the next page continues.
            more = await deliveries.scanned_to(services.db, webhook.id, before=cursor)
    return answer(shapes.DeliveryPage(deliveries=[_delivery(row) for row in found[:limit]], next_cursor=more))


@once(WRITE)
async def replay_delivery(request: Request, delivery_id: str) -> Response:
    """Send the event of one attempt again, to the webhook that it went to, with the same id."""
    services, caller, merchant = await admit(request, WRITE)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        attempt = id_of("delivery", delivery_id)
        found = await replays.of_attempt(services.db, attempt, merchant_id=merchant.id)
        if found is None:
            raise unknown("delivery", delivery_id)
        number = await replays.event(
            services.db,
            found.webhook,
            merchant_id=merchant.id,
            checkout=found.checkout,
            sequence=found.sequence,
        )
    if not number:
        raise Refusal(
            410,
            "it cannot be sent again: it was a test, or the feed keeps the event no more, or the webhook does not want its type any more",
            kind="event-gone",
        )
    return _replayed(number, found.webhook, merchant, caller)


def _replayed(number: int, webhook: UUID, merchant: Merchant, caller: Caller) -> Response:
    _log.info(
        "events_replayed", webhook=str(webhook), merchant=merchant.name, actor=caller.actor, events=number
    )
    return answer(shapes.Replayed(events=number), 202)


async def _find(services: Services, merchant: Merchant, webhook_id: str) -> Webhook:
    wanted = id_of("webhook", webhook_id)
    found = await in_time(stored.by_id(services.db, wanted, merchant_id=merchant.id))
    if found is None:
        raise unknown("webhook", webhook_id)
    return found


async def _replay(services: Services, merchant: Merchant, webhook: Webhook, wanted: tuple[str, Any]) -> int:
    match wanted:
        case "event", (checkout, sequence):
            return await replays.event(
                services.db, webhook.id, merchant_id=merchant.id, checkout=checkout, sequence=sequence
            )
        case "period", (since, before):
            try:
                return await replays.period(
                    services.db, webhook.id, merchant_id=merchant.id, since=since, before=before
                )
            except PeriodTooLong as error:
                raise Refusal(422, f"since: {error}", kind="invalid-webhook") from None
        case _:
            return await replays.given_up(services.db, webhook.id)


def _told(webhook: Webhook, secret: bytes | None = None) -> shapes.Webhook:
    """Return a webhook in the words of the contract, with the secret that was made for it."""
    is_task = webhook.kind == "celery"
    values: dict[str, Any] = {
        "url": None if is_task else webhook.url,
        "broker": (webhook.url or None) if is_task else None,
        "types": [shapes.ALL_TYPES] if webhook.kinds is None else list(webhook.kinds),
        "held_until": webhook.open_until if webhook.open_for > 0 else None,
        "previous_secret_until": webhook.previous_until,
    }
    if secret is None:
        return like(shapes.Webhook, webhook, **values)
    shown = None if is_task else signature.written(secret)
    return like(shapes.NewWebhook, webhook, secret=shown, **values)


def _delivery(row: AttemptRow) -> shapes.Delivery:
    return like(
        shapes.Delivery,
        row,
        event_id=events.event_id(row.checkout_id, row.sequence),
        outcome=Outcome(row.outcome),
        answer=None if row.answer is None else row.answer.decode(errors="replace"),
    )
