"""Webhook endpoints of a merchant: added, changed, tried out, and what became of each delivery.

A secret is shown once, by the call that makes it. Another merchant's endpoint is one that does not exist. Nothing is sent from here:
deliverers do that.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args
from uuid import UUID

import msgspec
from fastapi import Query, Request
from starlette.responses import Response

from orchestrator import log
from orchestrator.api import dependencies, request_body
from orchestrator.api.contract import webhooks
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.problems import Refusal, answer
from orchestrator.delivery import signature
from orchestrator.delivery.addresses import LONGEST_URL, AddressPolicy, WebhookUrlRejected, checked_url
from orchestrator.delivery.sender import Outcome
from orchestrator.domain import events
from orchestrator.domain.events import Content, EventType
from orchestrator.intents.fields import Fields, hint, kind_of, repeated, repeated_name, shown
from orchestrator.store import deliveries, endpoints
from orchestrator.store.endpoints import Endpoint, TooManyEndpoints

if TYPE_CHECKING:
    from orchestrator.api.dependencies import Services
    from orchestrator.auth import Caller
    from orchestrator.store.deliveries import AttemptRow
    from orchestrator.store.merchants import Merchant

_log = log.get(__name__)

PATH: Final = "/v1/endpoints"
READ: Final = "endpoints:read"
WRITE: Final = "endpoints:write"
BODY_BYTES: Final = 16 * 1024
_KINDS: Final = frozenset(map(str, EventType))
_EVENT_ID: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([1-9][0-9]{0,9})")
_LAST_SEQUENCE: Final = 2**31 - 1


async def add(request: Request) -> Response:
    """An endpoint gets the events that come from now on. Its secret is in this answer and nowhere else."""
    services, caller, merchant = await _admitted(request, WRITE)
    body = await _Body.of(request, webhooks.AddEndpoint)
    url = body.target(services, required=True)
    given = body.settings()
    body.judge()
    secret = signature.new_secret()
    new: dict[str, Any] = {"description": "", "kinds": None, "content": "thin", **given}
    async with asyncio.timeout(DATABASE_TIMEOUT):
        try:
            made = await endpoints.add(
                services.db, services.encryptor, merchant_id=merchant.id, url=str(url), secret=secret, **new
            )
        except TooManyEndpoints as error:
            raise Refusal(409, str(error), kind="too-many-endpoints") from None
    _log.info("endpoint_added", endpoint=str(made.id), merchant=merchant.name, actor=caller.actor)
    return answer(_with_secret(made, secret), 201, {"Location": f"{PATH}/{made.id}"})


async def show_all(
    request: Request,
    cursor: Annotated[UUID | None, Query(description="`nextCursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=webhooks.ENDPOINT_PAGE)] = 50,
) -> Response:
    """A merchant's endpoints in the order in which they were made."""
    services, _, merchant = await _admitted(request, READ)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await endpoints.page(services.db, merchant_id=merchant.id, after=cursor, limit=limit + 1)
    more = found[limit - 1].id if len(found) > limit else None
    shapes = [webhooks.Endpoint(**_facts(one)) for one in found[:limit]]
    return answer(webhooks.EndpointPage(endpoints=shapes, next_cursor=more))


async def show(request: Request, endpoint_id: str) -> Response:
    """One endpoint, and what waits for it."""
    services, _, merchant = await _admitted(request, READ)
    return answer(webhooks.Endpoint(**_facts(await _one(services, merchant, endpoint_id))))


async def change(request: Request, endpoint_id: str) -> Response:
    """Change an endpoint, pause it or resume it; what waits is sent as it is then."""
    services, caller, merchant = await _admitted(request, WRITE)
    body = await _Body.of(request, webhooks.ChangeEndpoint)
    one = await _one(services, merchant, endpoint_id)
    url, given, paused = body.target(services, required=False), body.settings(), body.paused()
    body.judge()
    changes = {**given, **({} if url is None else {"url": url})}
    async with asyncio.timeout(DATABASE_TIMEOUT):
        if changes:
            await endpoints.change(
                services.db, services.encryptor, one.id, merchant_id=merchant.id, changes=changes
            )
        if paused is True:
            await endpoints.pause(services.db, one.id, "asked")
        elif paused is False:
            await endpoints.resume(services.db, one.id, merchant_id=merchant.id)
    _log.info(
        "endpoint_changed", endpoint=str(one.id), merchant=merchant.name, actor=caller.actor, fields=sorted(body.given)
    )  # fmt: skip
    return answer(webhooks.Endpoint(**_facts(await _one(services, merchant, endpoint_id))))


async def delete(request: Request, endpoint_id: str) -> Response:
    """Delete an endpoint, with what waits for it. Events stay in the feed."""
    services, caller, merchant = await _admitted(request, WRITE)
    one = _id_of(endpoint_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        if not await endpoints.delete(services.db, one, merchant_id=merchant.id):
            raise _unknown(endpoint_id)
    _log.info("endpoint_deleted", endpoint=str(one), merchant=merchant.name, actor=caller.actor)
    return Response(status_code=204)


async def rotate_secret(request: Request, endpoint_id: str) -> Response:
    """A new secret, in this answer and nowhere else. The one before signs too for a day, or for as long as `overlap` says."""
    services, caller, merchant = await _admitted(request, WRITE)
    body = await _Body.of(request, webhooks.RotateSecret)
    overlap = body.overlap()
    body.judge()
    secret = signature.new_secret()
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await endpoints.rotate(
            services.db, services.encryptor, _id_of(endpoint_id), merchant_id=merchant.id, secret=secret, overlap=overlap
        )  # fmt: skip
    if found is None:
        raise _unknown(endpoint_id)
    _log.info("endpoint_secret_rotated", endpoint=str(found.id), merchant=merchant.name, actor=caller.actor)
    return answer(_with_secret(found, secret))


async def send_test(request: Request, endpoint_id: str) -> Response:
    """Send a test event, once, also to an endpoint that is paused; what came of it stands among the attempts."""
    services, _, merchant = await _admitted(request, WRITE)
    one = await _one(services, merchant, endpoint_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        test = await deliveries.test(services.db, one.id)
    return answer(webhooks.TestSent(event_id=events.event_id(test, 1)), 202)


async def resume(request: Request, endpoint_id: str) -> Response:
    """Serve an endpoint again that was paused or is off; what waits is sent, and what failed is tried at once."""
    services, caller, merchant = await _admitted(request, WRITE)
    one = await _one(services, merchant, endpoint_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        await endpoints.resume(services.db, one.id, merchant_id=merchant.id)
    _log.info("endpoint_resumed", endpoint=str(one.id), merchant=merchant.name, actor=caller.actor)
    return answer(webhooks.Endpoint(**_facts(await _one(services, merchant, endpoint_id))))


async def replay(request: Request, endpoint_id: str) -> Response:
    """Send events again that the feed still has, with the same ids: one, those of a period, or all that was given up."""
    services, caller, merchant = await _admitted(request, WRITE)
    body = await _Body.of(request, webhooks.Replay)
    one = await _one(services, merchant, endpoint_id)
    wanted = body.replay()
    body.judge()
    async with asyncio.timeout(DATABASE_TIMEOUT):
        number = await _replay(services, merchant, one, wanted)
    _log.info(
        "events_replayed", endpoint=str(one.id), merchant=merchant.name, actor=caller.actor, events=number
    )
    return answer(webhooks.Replayed(events=number), 202)


async def show_attempts(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    endpoint_id: str,
    checkout: Annotated[UUID | None, Query(description="Only events of this checkout")] = None,
    failed: Annotated[bool | None, Query(description="Only attempts that failed, or only the others")] = None,
    cursor: Annotated[UUID | None, Query(description="`nextCursor` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=webhooks.ATTEMPT_PAGE)] = 50,
) -> Response:
    """Attempts to reach an endpoint, the youngest first, page by page."""
    services, _, merchant = await _admitted(request, READ)
    one = await _one(services, merchant, endpoint_id)
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await deliveries.attempts(
            services.db, services.encryptor, one.id, before=cursor, limit=limit + 1, checkout=checkout, failed=failed
        )  # fmt: skip
    more = found[limit - 1].id if len(found) > limit else None
    return answer(webhooks.AttemptPage(attempts=[_attempt(row) for row in found[:limit]], next_cursor=more))


async def _admitted(request: Request, scope: str) -> tuple[Services, Caller, Merchant]:
    caller, merchant = await dependencies.admit(request, scope)
    return dependencies.of(request), caller, merchant


async def _one(services: Services, merchant: Merchant, endpoint_id: str) -> Endpoint:
    async with asyncio.timeout(DATABASE_TIMEOUT):
        found = await endpoints.one(services.db, _id_of(endpoint_id), merchant_id=merchant.id)
    if found is None:
        raise _unknown(endpoint_id)
    return found


async def _replay(services: Services, merchant: Merchant, one: Endpoint, wanted: tuple[str, Any]) -> int:
    match wanted:
        case "event", (checkout, sequence):
            return await deliveries.replay_event(
                services.db, one.id, merchant_id=merchant.id, checkout=checkout, sequence=sequence
            )
        case "period", (since, before):
            return await deliveries.replay_period(
                services.db, one.id, merchant_id=merchant.id, since=since, before=before
            )
        case _:
            return await deliveries.replay_failed(services.db, one.id)


def _id_of(endpoint_id: str) -> UUID:
    try:
        return UUID(endpoint_id)
    except ValueError:
        raise _unknown(endpoint_id) from None


def _unknown(endpoint_id: str) -> Refusal:
    said = endpoint_id if len(endpoint_id) <= 40 else endpoint_id[:40] + "…"  # noqa: PLR2004 - an id has 36
    return Refusal(
        404, f"there is no endpoint {said!r} here: check the id and the merchant", kind="unknown-endpoint"
    )


def _facts(one: Endpoint) -> dict[str, Any]:
    return {
        "id": one.id,
        "url": one.url,
        "description": one.description,
        "types": None if one.kinds is None else list(one.kinds),
        "content": one.content,
        "status": one.status,
        "pause_reason": one.pause_reason,
        "paused_at": one.paused_at,
        "created_at": one.created_at,
        "delivered_at": one.delivered_at,
        "failing_since": one.failing_since,
        "held_until": one.open_until if one.open_for > 0 else None,
        "waiting": one.waiting,
        "waiting_since": one.waiting_since,
        "previous_secret_until": one.previous_until,
    }


def _with_secret(one: Endpoint, secret: bytes) -> webhooks.NewEndpoint:
    return webhooks.NewEndpoint(**_facts(one), secret=signature.written(secret))


def _attempt(row: AttemptRow) -> webhooks.DeliveryAttempt:
    body = row.answer
    return webhooks.DeliveryAttempt(
        id=row.id,
        event_id=events.event_id(row.checkout_id, row.sequence),
        kind=row.kind,
        checkout_id=row.checkout_id,
        sequence=row.sequence,
        purpose=row.purpose,
        number=row.number,
        at=row.at,
        outcome=Outcome(row.outcome),
        status=row.status,
        milliseconds=row.milliseconds,
        answer=None if body is None else body.decode(errors="replace"),
        result=row.result,
    )


class _Body(Fields):
    """The body of a request, of which every problem is said at once."""

    __slots__ = ("given",)

    def __init__(self, raw: bytes, shape: type[msgspec.Struct]) -> None:
        super().__init__()
        self.given = self._object(raw)
        known = frozenset(shape.__struct_encode_fields__)
        for name in sorted(self.given.keys() - known):
            self.wrong(shown(name), f"is not a known field: {hint(name, known)}")

    @classmethod
    async def of(cls, request: Request, shape: type[msgspec.Struct]) -> _Body:
        """Read the body of a request."""
        optional = shape is webhooks.RotateSecret
        return cls(await request_body.read_json(request, limit=BODY_BYTES, optional=optional), shape)

    def judge(self) -> None:
        """Refuse the request if anything is wrong with it."""
        if self.problems:
            first = self.problems[0]
            raise Refusal(
                422, f"{first.field}: {first.message}", kind="invalid-endpoint", errors=self.problems
            )

    def target(self, services: Services, *, required: bool) -> str | None:
        """Read the URL, which deliveries must be allowed to go to."""
        if not required and "url" not in self.given:
            return None
        url = self.text(self.given, "", "url", most=LONGEST_URL)
        if url is not None:
            try:
                return checked_url(url, AddressPolicy(services.settings.webhook_ranges))
            except WebhookUrlRejected as error:
                self.wrong("url", str(error))
        return None

    def settings(self) -> dict[str, Any]:
        """Read what an endpoint is besides its URL; what is absent is left out."""
        found: dict[str, Any] = {}
        if "description" in self.given:
            found["description"] = (
                self.text(self.given, "", "description", most=webhooks.LONGEST_DESCRIPTION, required=False)
                or ""
            )
        if "types" in self.given:
            found["kinds"] = self._kinds(self.given["types"])
        if "content" in self.given:
            found["content"] = self.given["content"]
            if found["content"] not in get_args(Content):
                self.wrong("content", "must be thin or full")
        return found

    def paused(self) -> bool | None:
        """Read whether it is to be paused or resumed."""
        match self.given.get("paused"):
            case None if "paused" not in self.given:
                return None
            case bool(paused):
                return paused
            case other:
                self.wrong("paused", f"must be true or false, not {kind_of(other)}")
                return None

    def overlap(self) -> int:
        """Read for how many seconds the secret before signs too."""
        match self.given.get("overlap", webhooks.OVERLAP):
            case bool():
                pass
            case int(seconds) if 0 <= seconds <= webhooks.LONGEST_OVERLAP:
                return seconds
            case _:
                pass
        self.wrong(
            "overlap", f"must be a whole number of seconds from 0 to {webhooks.LONGEST_OVERLAP} (7 days)"
        )
        return 0

    def replay(self) -> tuple[str, Any]:
        """Read what is to be sent again."""
        given = self.given
        ways = [name for name in ("eventId", "since", "failed") if name in given]
        if len(ways) != 1 or ("before" in given and ways != ["since"]):
            self.wrong("body", "must have one of eventId, since (with before, or until now) and failed")
        elif ways == ["eventId"]:
            found = _EVENT_ID.fullmatch(given["eventId"]) if isinstance(given["eventId"], str) else None
            if found is not None and int(found[2]) <= _LAST_SEQUENCE:
                return "event", (UUID(found[1]), int(found[2]))
            self.wrong("eventId", "must be the id of an event, such as the webhook-id of a delivery")
        elif ways == ["since"]:
            return "period", (self._time("since"), self._time("before") if "before" in given else _END)
        elif given["failed"] is not True:
            self.wrong("failed", "must be true")
        return "failed", ()

    def _time(self, name: str) -> datetime:
        try:
            found = datetime.fromisoformat(self.given[name])
        except (ValueError, TypeError):
            found = None
        if found is not None and found.tzinfo is not None:
            return found
        self.wrong(name, "must be a time with its offset, such as 2026-01-05T10:00:00+00:00")
        return _END

    def _kinds(self, given: object) -> list[str] | None:
        if given is None:
            return None
        if not isinstance(given, list) or not given or len(given) > len(EventType):
            self.wrong("types", f"must be a list of types of events, or null for all, not {kind_of(given)}")
            return None
        for number, kind in enumerate(given):
            if not isinstance(kind, str) or kind not in _KINDS:
                near = hint(kind, _KINDS) if isinstance(kind, str) else "GET /v1/event-types lists them"
                self.wrong(f"types[{number}]", f"is not a type of event: {near}")
                return None
        return sorted(set(given))

    def _object(self, raw: bytes) -> dict[str, Any]:
        if not raw:
            return {}
        try:
            body = msgspec.json.decode(raw)
        except (ValueError, RecursionError):
            raise Refusal(422, "the body is not JSON", kind="invalid-endpoint") from None
        if (name := repeated_name(raw)) is not None:
            self.problems.append(repeated(name))
        if isinstance(body, dict):
            return body
        self.wrong("body", "must be a JSON object")
        self.judge()
        return {}


_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
