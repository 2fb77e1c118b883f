"""The services of the endpoints: one object, made once on the event loop that serves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from orchestrator import log
from orchestrator.api.limits import Limits
from orchestrator.api.long_poll import CommandWaits, EventFeed
from orchestrator.api.problems import Refusal
from orchestrator.api.request_log import caller_of
from orchestrator.api.status_streams import StatusStreams
from orchestrator.auth import OPERATOR, AccessDenied, Authenticator
from orchestrator.intents import Problem
from orchestrator.intents.fields import MOST_PROBLEMS, hint, shown
from orchestrator.store.inbox import UnmatchedCallbacks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Request

    from orchestrator.auth import Caller
    from orchestrator.crypto import Encryptor
    from orchestrator.messaging.hints import HintPublisher
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox import Callbacks, Intents
    from orchestrator.store.merchants import Merchant, Merchants

DATABASE_TIMEOUT = 15.0
"""Seconds that a request waits for Postgres in all, before it answers 503."""
CLOSING_TIMEOUT = 5.0
"""Seconds for the waiting writes when the process ends, or a fifth of SHUTDOWN_TIMEOUT where that is less."""

_ADMITTED = "orchestrator.admitted"
"""Where a request's scope has the scopes that it was admitted with, its caller and its merchant: it is
counted once."""
_log = log.get(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that an endpoint needs.

    `db` serves reads and commands. Intents, callbacks, merchants and health use connections of their own
    (`inlet`), so none of them waits for a long listing.
    """

    settings: Settings
    db: Database
    inlet: Database
    encryptor: Encryptor
    intents: Intents
    callbacks: Callbacks
    merchants: Merchants
    hint_publisher: HintPublisher
    authenticator: Authenticator = field(init=False)
    unmatched: UnmatchedCallbacks = field(init=False)
    event_feed: EventFeed = field(init=False)
    command_waits: CommandWaits = field(init=False)
    limits: Limits = field(init=False)
    status_streams: StatusStreams = field(init=False)
    ending: list[Callable[[], None]] = field(init=False, default_factory=list)
    """Called when all that waits is to be answered: the process ends."""

    def __post_init__(self) -> None:
        settings, db, encryptor = self.settings, self.db, self.encryptor
        # A quarter of the connections each: waiting clients must not block other requests.
        most = settings.api_connections // 4
        streams = min(settings.status_streams, most)
        for name, service in {
            "authenticator": Authenticator(settings),
            "limits": Limits(settings, encryptor),
            "unmatched": UnmatchedCallbacks(self.inlet, encryptor, self.callbacks, grace=settings.hint_grace),
            "event_feed": EventFeed(db, most=most),
            "command_waits": CommandWaits(db, most=most),
            "status_streams": StatusStreams(db, encryptor, most=streams),
        }.items():
            object.__setattr__(self, name, service)
        self.ending.extend(waits.stop for waits in (self.event_feed, self.command_waits, self.status_streams))

    def end_waits(self) -> None:
        """Answer all clients that wait, and let none wait any more: the process ends."""
        for stop in self.ending:
            stop()

    async def close(self) -> None:
        """Write what has gathered, then close the connections; a write that Postgres does not accept in time
        was never acknowledged.
        """
        self.end_waits()
        timeout = min(CLOSING_TIMEOUT, self.settings.shutdown_timeout / 5)
        try:
            async with asyncio.timeout(timeout):
                waits = (self.event_feed, self.command_waits, self.status_streams)
                for part in (*waits, self.limits, self.unmatched):
                    await part.close()
                await asyncio.gather(self.intents.close(), self.callbacks.close())
        except TimeoutError:
            _log.warning("closing_cut_short", seconds=timeout)
        finally:
            await asyncio.gather(self.db.close(), self.inlet.close(), self.authenticator.close())


def of(request: Request) -> Services:
    """Return the services of the app that serves this request."""
    services: Services = request.app.state.services
    return services


async def in_time(asked: Awaitable[T]) -> T:
    """Return what is asked of Postgres; `TimeoutError`, which is answered 503, after `DATABASE_TIMEOUT`."""
    async with asyncio.timeout(DATABASE_TIMEOUT):
        return await asked


async def admit(request: Request, *scopes: str) -> tuple[Services, Caller, Merchant]:
    """Check the token of a request and read its merchant; return both, and the services.

    The token must have one of `scopes`. Raises a problem otherwise: 401, 403 or 503 with the reason, 422 for
    an unknown query parameter.
    """
    services = of(request)
    if request.scope.get(_ADMITTED, (None,))[0] == scopes:
        caller, merchant = request.scope[_ADMITTED][1:]
        return services, caller, merchant
    caller = await _authenticate(request)
    caller.need(*scopes)
    if request.scope["query_string"]:
        refuse_unknown_parameters(request)
    merchant = services.merchants.at_hand(caller.merchant)
    if merchant is None:
        merchant = await in_time(services.merchants.named(caller.merchant))
    if merchant is None:
        raise Refusal(
            403, f"the token's merchant {caller.merchant!r} does not exist here", kind="unknown-merchant"
        )
    if merchant.disabled:
        raise Refusal(
            403,
            f"merchant {merchant.name!r} is disabled: ask the operator to enable it",
            kind="merchant-disabled",
        )
    services.limits.take(request.scope, services.limits.merchant, str(merchant.id))
    request.scope[_ADMITTED] = scopes, caller, merchant
    return services, caller, merchant


async def admit_operator(request: Request, *scopes: str) -> tuple[Services, Caller]:
    """Check the token of a request that only the operator may make; otherwise as `admit`.

    A token of a merchant is refused with 403 before anything is read, whatever the request names.
    """
    services = of(request)
    caller = await _authenticate(request)
    caller.need(*scopes)
    if caller.merchant != OPERATOR:
        raise AccessDenied(
            403,
            "this call is the operator's, and the token is a merchant's: `orchestrator token issue --operator` makes the other kind",
        )
    if request.scope["query_string"]:
        refuse_unknown_parameters(request)
    services.limits.take(request.scope, services.limits.merchant, OPERATOR)
    return services, caller


async def admit_any(request: Request, *scopes: str) -> tuple[Services, Merchant | None]:
    """Check the token of a request that operator and merchants may make; the merchant is None for the
    operator.
    """
    if (await _authenticate(request)).merchant == OPERATOR:
        return (await admit_operator(request, *scopes))[0], None
    services, _, merchant = await admit(request, *scopes)
    return services, merchant


async def _authenticate(request: Request) -> Caller:
    """Verify the token of a request; one that this process has not seen before is refused where its address
    has failed too often.

    A token that was verified before is not refused for what others send from the same address.
    """
    services, authorization = of(request), request.headers.get("authorization")
    if services.authenticator.knows(authorization):
        return await services.authenticator.admit(authorization)
    source = caller_of(request.scope, depth=services.settings.trusted_proxies)
    services.limits.refuse_failing(source)
    try:
        return await services.authenticator.admit(authorization)
    except AccessDenied as error:
        if error.status == HTTPStatus.UNAUTHORIZED:
            services.limits.count_failure(source)
        raise


def refuse_unknown_parameters(request: Request) -> None:
    """Refuse query parameters that the address does not have: a misspelt filter would otherwise list
    everything.
    """
    route = request.scope.get("route")  # the routes below FastAPI take no parameters
    known = frozenset(
        () if route is None else (parameter.alias for parameter in route.dependant.query_params)
    )
    errors = [
        Problem(
            shown(name),
            f"is not a known parameter: {hint(name, known) if known else 'this address takes none'}",
        )
        for name in islice((name for name in request.query_params if name not in known), MOST_PROBLEMS)
    ]
    if errors:
        said = f"{errors[0].field}: {errors[0].message}"
        raise Refusal(422, said, kind="invalid-request", errors=errors)
