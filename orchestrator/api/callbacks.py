"""Callbacks of the gateway: signature checked, stored raw, answered fast; their meaning is decided elsewhere.

A link that this system did not sign is 404 and stores nothing. While Postgres is away the shopper is still
redirected within three seconds, because the page is in the link; a notification answers 503, and lookups
close the gap. Neither URL nor body reaches a log.

A callback is graded on arrival, without a query: its link names the merchant, whose secrets are kept in
memory. Where they are not in memory it is `unchecked`: a callback that may be right is never called wrong. A
callback without proof though its merchant has a secret, or from another network than the gateway's where that
counts, is stored and wakes its checkout like any other, since a lookup at the gateway is harmless; and it is
answered 401.

The shopper's own browser comes to redirect, and by GET to success and failure, for instance when a page is
loaded again. No proof is required of it, its content is not kept, and it is always sent on to the shop.
"""

from __future__ import annotations

import asyncio
import html
import re
import time
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypedDict, cast
from uuid import UUID

from starlette.responses import HTMLResponse, PlainTextResponse, Response

from orchestrator import callback_urls
from orchestrator.api import client_address, correlation, dependencies, request_body
from orchestrator.api.callback_intake import TIMEOUT, CallbackIntake
from orchestrator.api.problems import RETRY_AFTER, Refusal
from orchestrator.gateway import callback_body
from orchestrator.gateway import callbacks as gateway_callbacks
from orchestrator.gateway.callbacks import Grade
from orchestrator.store.checkouts import UnmatchedPayment
from orchestrator.store.database import is_away
from orchestrator.store.inbox import Arrival, CallbackKind, MerchantCallback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import Request

    from orchestrator.api.dependencies import Services
    from orchestrator.callback_urls import OpenedLink
    from orchestrator.gateway.callbacks import CallbackFacts
    from orchestrator.store.merchants import Merchant

BODY_LIMIT: Final = callback_body.LARGEST
VISIT_LIMIT: Final = 16_384
"""Bytes that a shopper's browser may post: nothing of them is kept."""
UNPROVEN_LIMIT: Final = 16_384
"""Bytes that are kept of a body that proves nothing: enough to find out what sent it."""

_SIGNATURE: Final = "altapay-signature"
_KEPT: Final = (_SIGNATURE, "user-agent")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_LONGEST_HEADER: Final = 2048
_SLASHES: Final = re.compile("/{2,}")
_LONGEST_ORDER: Final = 100
"""Characters of an order number at the gateway (D7); a longer text was cut or is no order number."""
_ILLEGIBLE: Final = "\ufffd"
"""Replaces an unreadable character: an order number with it cannot be looked up."""
_CHALLENGE: Final = {"WWW-Authenticate": "AltaPay-Signature"}

_UNPROVEN_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Back to the shop</title>
<style>body {{ font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto; padding: 0 1.5rem }}</style>
</head>
<body>
<h1>Back to the shop</h1>
<p>This message about your payment could not be checked. Nothing is lost: how the payment ended is looked up, and the shop knows
it in a moment.</p>
<p><a href="{page}" rel="noreferrer">Go on to the shop</a></p>
</body>
</html>
"""
_PAGE_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class _Read(TypedDict):
    """A request as it is stored: what it brought, and how well it proves its sender."""

    body: bytes
    content_type: str
    headers: Mapping[str, str]
    source: str | None
    network: client_address.Network
    grade: Grade


async def accept(request: Request) -> Response:
    """Accept a callback.

    Success, failure and redirect lead to the shop's own page; a notification is acknowledged.
    """
    services = dependencies.of(request)
    path = request.path_params
    checkout_id, link = _opened(services, path["kind"], path["checkout_id"], path["signed"])
    kind = cast("CallbackKind", path["kind"])
    if kind == "notification":
        if request.method != "POST":
            raise _only_posted(kind)
    elif request.method == "HEAD":
        return _onward(link.page)
    elif request.method == "GET" or kind == "redirect":
        return await _visited(request, checkout_id, link)
    merchant = None if link.merchant_id is None else services.merchants.known(link.merchant_id)
    try:
        read = await _read(services, request, merchant)
    except Refusal as refusal:
        if kind == "notification":
            raise
        # Neither the length of a body nor the time it takes is the shopper's affair.
        return _onward(link.page, await _skipped(request, refusal))
    arrival = Arrival(checkout_id=checkout_id, kind=kind, **read)
    stored = await _callback_intake(request).accept(arrival, merchant_id=link.merchant_id)
    unproven = services.callbacks.unproven(read["grade"], read["network"])
    if kind != "notification":
        return _unproven_page(link.page) if unproven else _onward(link.page)
    return _told(stored=stored, unproven=unproven)


async def _visited(request: Request, checkout_id: UUID, link: OpenedLink) -> Response:
    """Note a visit of the shopper's browser, which wakes the checkout for a lookup unless that was done a
    moment ago, and send it on.

    Nothing of what it brings is kept: where a shopper is belongs to a person.
    """
    closing: Mapping[str, str] = {}
    try:
        await request_body.read(request, limit=VISIT_LIMIT)
    except Refusal as refusal:
        closing = await _skipped(request, refusal)
    visit = Arrival(
        checkout_id=checkout_id,
        kind="redirect",
        grade=Grade.UNCHECKED,
        content_type="",
        headers={},
        source=None,
        body=b"",
    )
    await _callback_intake(request).accept(visit, merchant_id=link.merchant_id)
    return _onward(link.page, closing)


async def _skipped(request: Request, refusal: Refusal) -> Mapping[str, str]:
    """Read what is left of a refused body; return the headers of the answer, which may end the connection."""
    if not refusal.headers:
        return {}
    await request_body.skip(request)
    return refusal.headers


async def accept_for_merchant(request: Request) -> Response:
    """Take a notification that names no checkout in its address: the default of a merchant's terminals."""
    services = dependencies.of(request)
    name = request.path_params["merchant"]
    if not callback_urls.open_merchant_link(services.encryptor, name, request.path_params["signed"]):
        raise _unknown()
    if request.method != "POST":
        raise _only_posted("notification")
    merchant = await _named(services, name)
    read = await _read(services, request, merchant)
    facts = gateway_callbacks.read_body(read["content_type"], read["body"])
    callback = MerchantCallback(payment=_unexpected(merchant, facts, read["grade"]), **read)
    placed = await _callback_intake(request).accept_unmatched(callback, merchant=merchant.name)
    if placed is not None and placed.over_limit:
        said = (
            f"merchant {merchant.name} has too many payments of unknown orders that no lookup has confirmed: send it again later, "
            "or sign callbacks with a secret"
        )
        raise Refusal(503, said, kind="unconfirmed-payments", headers={"Retry-After": "60"})
    unproven = services.callbacks.unproven(read["grade"], read["network"])
    return _told(stored=placed is not None, unproven=unproven)


def _opened(services: Services, kind: str, checkout_id: str, signed: str) -> tuple[UUID, OpenedLink]:
    """Return the content of the link, or refuse it; one sentence for every cause, so that it does not reveal
    which part was wrong.
    """
    try:
        number = UUID(checkout_id)
    except ValueError:
        raise _unknown() from None
    link = callback_urls.open_link(services.encryptor, kind, number, signed)
    if link is None:
        raise _unknown()
    return number, link


def _unknown() -> Refusal:
    return Refusal(404, "this is no callback address of ours", kind="unknown-callback")


def _only_posted(kind: str) -> Refusal:
    return Refusal(405, f"a {kind} callback is a POST", headers={"Allow": "OPTIONS, POST"})


async def _named(services: Services, name: str) -> Merchant:
    """Return the merchant of a valid link; 503 while it cannot be read, since the link proves that
    it exists.
    """
    merchant = None
    try:
        async with asyncio.timeout(TIMEOUT):
            merchant = await services.merchants.named(name)
    except Exception as error:
        if not is_away(error):
            raise
    if merchant is None:
        said = "this merchant cannot be read at the moment: send it again"
        raise Refusal(503, said, kind="merchant-unreadable", headers={"Retry-After": RETRY_AFTER})
    return merchant


async def _read(services: Services, request: Request, merchant: Merchant | None) -> _Read:
    settings = services.settings
    body = await request_body.read(request, limit=BODY_LIMIT)
    if callback_body.inflates_beyond(body):
        raise request_body.too_large(BODY_LIMIT, read=True)
    content_type = _printable(request.headers.get("content-type", ""))[:200]
    headers = {name: _printable(value) for name in _KEPT if (value := request.headers.get(name)) is not None}
    address, sure = client_address.caller(
        request.client.host if request.client is not None else None,
        request.headers.getlist("x-forwarded-for"),
        depth=settings.trusted_proxies,
    )
    grade = gateway_callbacks.grade(
        request.headers.get(_SIGNATURE),
        body,
        partial(gateway_callbacks.read_body, content_type, body),
        () if merchant is None else merchant.callback_secrets,
        now=time.time(),
        max_age=settings.callback_max_age,
    )
    network = client_address.network_of(address, sure=sure, networks=settings.gateway_ranges)
    return {
        "body": body[:UNPROVEN_LIMIT] if services.callbacks.unproven(grade, network) else body,
        "content_type": content_type,
        "headers": headers,
        "source": None if address is None else str(address),
        "network": network,
        "grade": grade,
    }


def _unexpected(merchant: Merchant, facts: CallbackFacts, grade: Grade) -> UnmatchedPayment:
    order_ref = facts.order_ref
    if order_ref is not None and (len(order_ref) > _LONGEST_ORDER or _ILLEGIBLE in order_ref):
        order_ref = None
    try:
        named = None if facts.checkout is None else UUID(facts.checkout)
    except ValueError:
        named = None
    return UnmatchedPayment(
        merchant_id=merchant.id,
        order_ref=order_ref,
        transaction_id=facts.transaction_id,
        currency=facts.currency,
        amount=facts.amount,
        named=named,
        correlation_id=correlation.current(),
        may_create=facts.status != "new",
        proven=grade in {Grade.SIGNED, Grade.CHECKSUM},
    )


def _callback_intake(request: Request) -> CallbackIntake:
    callback_intake: CallbackIntake = request.app.state.callback_intake
    return callback_intake


def _told(*, stored: bool, unproven: bool) -> Response:
    """Answer a notification."""
    if not stored:
        said = "the callback could not be stored in time: send it again"
        raise Refusal(503, said, kind="database-away", headers={"Retry-After": RETRY_AFTER})
    if unproven:
        said = "nothing in this callback proves that the gateway sent it"
        raise Refusal(401, said, kind="unproven-callback", headers=_CHALLENGE)
    return PlainTextResponse("Acknowledged")


def _onward(page: str, more: Mapping[str, str] = MappingProxyType({})) -> Response:
    # 303 turns the POST into a GET of the shop's page.
    return Response(status_code=303, headers={**more, "Location": page})


def tidy(path: str) -> str:
    """Return the path of a callback link as it was made: proxies and shops double slashes, or append one.

    Nothing in a link has a slash of its own, so none is lost.
    """
    tidied = _SLASHES.sub("/", path).rstrip("/")
    return tidied if tidied.startswith("/callbacks/") else path


def _unproven_page(page: str) -> Response:
    """Refuse with a page that leads on: the gateway may relay this to a shopper who has just paid."""
    content = _UNPROVEN_PAGE.format(page=html.escape(page))
    return HTMLResponse(content, 401, {"Content-Security-Policy": _PAGE_POLICY, **_CHALLENGE})


def _printable(value: str) -> str:
    return _UNPRINTABLE.sub("?", value[:_LONGEST_HEADER])
