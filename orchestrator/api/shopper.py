"""How a checkout is, for the browser of its shopper: once, or as a stream; and the session that it pays with.

The client token opens these three addresses of one checkout, reads only, and ends some time after its
checkout has ended. It is taken from the Authorization header alone, never from the URL, which logs and
referrers contain. A token of the API with the scope `checkouts:read` opens them, too.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations of what it calls
from starlette.responses import Response

from orchestrator import callback_urls
from orchestrator.api import dependencies
from orchestrator.api.long_poll import TooManyWaiting
from orchestrator.api.middleware import HEAD
from orchestrator.api.problems import Refusal, answer, id_of, unknown
from orchestrator.api.reads import SCOPE, session_of
from orchestrator.api.request_log import caller_of
from orchestrator.api.status_streams import PAYABLE, StreamResponse, digest, status_of
from orchestrator.auth import AccessDenied, bearer_of
from orchestrator.domain.shopper_state import shopper_state
from orchestrator.store import shopper_view

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.store.shopper_view import ShopperView

_CLIENT_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")


async def show(request: Request, checkout_id: str) -> Response:
    """A checkout as its shopper may see it; with the client token, or with the scope `checkouts:read`."""
    view = await _admitted(request, checkout_id)
    return answer(status_of(view, dependencies.of(request).encryptor))


async def stream(request: Request, checkout_id: str) -> Response:
    """The same as server-sent events: as it is, and at each change until it has ended.

    Events `status` have the document as data and its digest as id; `end` says why the stream ends. A browser
    that names the final document in `Last-Event-ID` is answered 204, which ends its tries.
    """
    services = dependencies.of(request)
    view = await _admitted(request, checkout_id)
    status = status_of(view, services.encryptor)
    known = request.headers.get("last-event-id")
    if status.final and known == digest(status):
        return Response(status_code=204)
    alone = bool(request.scope.get(HEAD))
    try:
        services.status_streams.check(view.id, view.merchant_id)
    except TooManyWaiting as error:
        whose = "of this checkout or merchant " if error.own else ""
        said = (
            f"{error.number} streams {whose}are open already: ask /status, or open the stream in some seconds"
        )
        raise error.refusal(said, kind="too-many-streams") from None
    return StreamResponse(services.status_streams, view, status, known=known, alone=alone)


async def show_session(request: Request, checkout_id: str) -> Response:
    """The gateway's session and its token, with which the shopper's browser starts a payment.

    409 while the checkout cannot be paid: it is not offered yet, it is being cancelled, it has ended, or its
    token at the gateway has expired and a worker opens the next session.
    """
    services = dependencies.of(request)
    view = await _admitted(request, checkout_id)
    state = shopper_state(view.state, cancelling=view.cancelling)
    found = None
    if state in PAYABLE and view.methods is not None:
        found = await dependencies.in_time(shopper_view.session(services.db, view.id))
    if found is None:
        raise Refusal(409, f"the checkout cannot be paid now: it is {state.value}", kind="not-payable")
    session = session_of(services.encryptor, view.id, found, expires_at=found.expires_at)
    if session is None:
        raise Refusal(409, "the session of the checkout cannot be read", kind="not-payable")
    return answer(session)


async def _admitted(request: Request, checkout_id: str) -> ShopperView:
    """Return the checkout that the request may read; a problem otherwise."""
    services = dependencies.of(request)
    token = bearer_of(request.headers.get("authorization", ""))
    client = token is not None and _CLIENT_TOKEN.fullmatch(token) is not None
    if client:
        checkout, merchant_id = _checkout_of(request, token or "", checkout_id), None
        dependencies.refuse_unknown_parameters(request)
    else:
        _, _, merchant = await dependencies.admit(request, SCOPE)
        checkout, merchant_id = id_of("checkout", checkout_id), merchant.id
    views = await dependencies.in_time(shopper_view.views(services.db, (checkout,)))
    view = views.get(checkout)
    if view is None or merchant_id not in {None, view.merchant_id}:
        raise unknown("checkout", checkout_id)
    if client:
        _alive(view, services.settings.client_token_after_end)
    return view


def _checkout_of(request: Request, token: str, checkout_id: str) -> UUID:
    """Return the checkout of a client token, which must be the one that is asked for."""
    services = dependencies.of(request)
    checkout = callback_urls.client_of(services.encryptor, token)
    if checkout is None:
        source = caller_of(request.scope, depth=services.settings.trusted_proxies)
        services.limits.refuse_failing(source)
        services.limits.count_failure(source)
        raise AccessDenied(401, "the client token is none of this installation: take the checkout's own")
    services.limits.take(request.scope, services.limits.client, checkout.hex)
    if id_of("checkout", checkout_id) != checkout:
        raise AccessDenied(403, "the client token is for another checkout: take the checkout's own")
    return checkout


def _alive(view: ShopperView, after_end: float) -> None:
    """Refuse a client token whose checkout ended too long ago, or whose merchant is disabled."""
    if view.disabled:
        raise Refusal(403, "the merchant of this checkout is disabled", kind="merchant-disabled")
    if view.ended_at is not None and view.now > view.ended_at + timedelta(seconds=after_end):
        said = f"the client token has ended: its checkout ended more than {after_end:g} s ago"
        raise AccessDenied(401, said)
