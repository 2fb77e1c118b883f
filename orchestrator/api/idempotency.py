"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header) for calls whose effect has no key of its own.

The same key with the same request is answered as before and does nothing again; with another request 422;
while the first is being processed 409. Intents and commands store their keys themselves, in the transaction
of their effect, and a request that comes meanwhile waits for the answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from fastapi import Request
from starlette.responses import Response

from orchestrator.api import checkouts, request_body
from orchestrator.api.dependencies import admit, in_time
from orchestrator.api.problems import Refusal, key_reused
from orchestrator.auth import AccessDenied
from orchestrator.store import idempotent_answers
from orchestrator.store.inbox import AnswerUnreadable, KeyReused

if TYPE_CHECKING:
    from starlette.types import Message, Receive

BODY_BYTES: Final = 16 * 1024
RETRY_AFTER: Final = "1"

Call = Callable[..., Awaitable[Response]]


class _Kept(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes


def once(*scopes: str) -> Callable[[Call], Call]:
    """Make an endpoint do the same request with the same key once; `scopes` as the endpoint needs them."""

    def made(call: Call) -> Call:
        @wraps(call)
        async def keyed(request: Request, **path: Any) -> Response:
            key = checkouts.idempotency_key(request)
            return await (
                call(request, **path) if key is None else _keyed(call, request, path, key=key, scopes=scopes)
            )

        return keyed

    return made


async def _keyed(
    call: Call, request: Request, path: dict[str, Any], *, key: str, scopes: tuple[str, ...]
) -> Response:
    services, _, merchant = await admit(request, *scopes)
    raw = await request_body.read(request, limit=BODY_BYTES)
    named: Any = {"merchant_id": merchant.id, "key": key}
    print_ = _fingerprint(request, raw)
    try:
        claimed = await in_time(
            idempotent_answers.claim(services.db, services.encryptor, fingerprint=print_, **named)
        )
    except KeyReused as error:
        raise key_reused(error) from None
    except AnswerUnreadable as error:
        raise Refusal(409, str(error), kind="answer-unreadable") from None
    if claimed is None:
        raise Refusal(
            409,
            "a request with this Idempotency-Key is being processed: send it again in a moment for its answer",
            kind="request-in-progress",
            headers={"Retry-After": RETRY_AFTER},
        )
    if not isinstance(claimed, UUID):
        kept = msgspec.json.decode(claimed, type=_Kept)
        return Response(kept.body, kept.status, kept.headers)
    try:
        response = await call(Request(request.scope, _again(raw)), **path)
    except (Refusal, AccessDenied):
        await idempotent_answers.free(services.db, claimed, **named)
        raise
    headers = {
        name: response.headers[name] for name in ("content-type", "location") if name in response.headers
    }
    answer = msgspec.json.encode(_Kept(response.status_code, headers, bytes(response.body)))
    await in_time(idempotent_answers.keep(services.db, services.encryptor, claimed, answer, **named))
    return response


def _fingerprint(request: Request, raw: bytes) -> bytes:
    """Return what makes a request the same again: method, path, and the body's content."""
    try:
        body = msgspec.json.encode(msgspec.json.decode(raw), order="sorted")
    except (ValueError, RecursionError):
        body = raw
    asked = (request.method.encode(), request.scope["path"].encode(), body)
    return hashlib.sha256(b"\0".join(asked)).digest()


def _again(raw: bytes) -> Receive:
    """Return what hands over a body that was read."""
    messages: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive
