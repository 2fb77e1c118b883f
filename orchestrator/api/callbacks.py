"""Callbacks of the gateway: signature checked, stored raw, answered fast; what they mean is decided elsewhere.

A wrong signature is 404 and stores nothing. While Postgres is away the shopper is still sent on within three seconds, because the
page is in the link; a notification answers 503, and looking at the gateway closes the gap. Neither URL nor body reaches a log.

A callback is graded on arrival, without asking Postgres whose checkout it is: by the secrets of the installation's only merchant.
Where there are several, or it is not known whether there are, it is `unchecked`: nothing is called wrong that may be right.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

from starlette.responses import PlainTextResponse, Response

from orchestrator import links, log
from orchestrator.api import bodies, wiring
from orchestrator.api.problems import RETRY_AFTER, Refusal
from orchestrator.db import DatabaseAway, Unwritten, is_away
from orchestrator.gateway import callbacks as gateway_callbacks
from orchestrator.inbox import Arrival, CallbackKind

if TYPE_CHECKING:
    from fastapi import Request

    from orchestrator.api.wiring import Services

_log = log.get(__name__)

BODY_LIMIT: Final = 262_144
PATIENCE: Final = 2.5
"""Seconds that a callback waits for Postgres: a shopper gets three, a notification five (D7)."""
MOST_WAITING: Final = 64 * 1024 * 1024
"""Bytes of callbacks that may wait for Postgres; beyond that they are answered as if it were away."""

_SIGNATURE: Final = "altapay-signature"
_KEPT: Final = (_SIGNATURE, "user-agent")
_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]")
_LONGEST_HEADER: Final = 2048
_FORM: Final = "application/x-www-form-urlencoded"


class Letterbox:
    """Takes callbacks in for one process: stores them, rings, and knows what still waits for Postgres."""

    def __init__(self, known: Services) -> None:
        self._known = known
        self._waiting = 0
        self._tasks: set[asyncio.Task[bool]] = set()

    async def take(self, arrival: Arrival) -> bool:
        """Store a callback and ring; False if it is not known within the patience that it is safe."""
        size = len(arrival.body)
        if self._waiting + size > MOST_WAITING:
            _log.warning(
                "callback_not_taken",
                checkout=str(arrival.checkout_id),
                kind=arrival.kind,
                waiting=self._waiting,
            )
            return False
        self._waiting += size
        task = asyncio.create_task(self._store(arrival, size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Whoever runs out of patience leaves the write going: it may still land, and then it rings.
        done, _ = await asyncio.wait({task}, timeout=PATIENCE)
        if not done:
            _log.warning("callback_waits", checkout=str(arrival.checkout_id), kind=arrival.kind)
            return False
        return task.result()

    async def _store(self, arrival: Arrival, size: int) -> bool:
        try:
            stored = await self._known.callbacks.take(arrival)
        except Exception as error:  # noqa: BLE001 - a shopper is sent on whatever happened; the log says what did
            expected = isinstance(error, DatabaseAway | Unwritten) or is_away(error)
            _log.warning(
                "callback_not_stored", checkout=str(arrival.checkout_id), kind=arrival.kind, error=type(error).__name__,
                exc_info=None if expected else error,
            )  # fmt: skip
            return False
        finally:
            self._waiting -= size
        if stored.rings:
            self._known.doorbell.ring([arrival.checkout_id], queue="callbacks")
        return True


async def take(request: Request) -> Response:
    """Take one callback. Success, failure and redirect go on to the shop's own page; a notification is acknowledged."""
    known = wiring.of(request)
    path = request.path_params
    checkout_id, page = _opened(known, path["kind"], path["checkout_id"], path["signed"])
    kind = cast("CallbackKind", path["kind"])
    if request.method != "POST" and kind != "redirect":
        raise Refusal(405, f"a {kind} callback is a POST", headers={"Allow": "OPTIONS, POST"})
    if request.method == "HEAD":
        return _onward(page)
    letterbox: Letterbox = request.app.state.letterbox
    stored = await letterbox.take(await _arrival(request, _secrets(known), checkout_id, kind))
    if kind != "notification":
        return _onward(page)
    if not stored:
        said = "the callback could not be stored in time: send it again"
        raise Refusal(503, said, kind="database-away", headers={"Retry-After": RETRY_AFTER})
    return PlainTextResponse("Acknowledged")


def _opened(known: Services, kind: str, checkout_id: str, signed: str) -> tuple[UUID, str]:
    """Return what the link says, or refuse it; one sentence for every cause, so that nobody can tell which part was wrong."""
    try:
        one = UUID(checkout_id)
    except ValueError:
        one = None
    page = None if one is None else links.open_link(known.vault, kind, one, signed)
    if one is None or page is None:
        raise Refusal(404, "this is no callback address of ours", kind="unknown-callback")
    return one, page


def _secrets(known: Services) -> tuple[str, ...]:
    """Return what a callback's proof is checked with; nothing where it might be another merchant's."""
    sole = known.merchants.sole()
    return () if sole is None else sole.callback_secrets


async def _arrival(
    request: Request, secrets: tuple[str, ...], checkout_id: UUID, kind: CallbackKind
) -> Arrival:
    if request.method == "GET":
        # The shopper's own browser: what it brings is in the query, and where it is belongs to a person.
        body, content_type, headers = request.scope["query_string"], _FORM, {}
    else:
        body = await bodies.read(request, limit=BODY_LIMIT)
        content_type = _printable(request.headers.get("content-type", ""))[:200]
        headers = {
            name: _printable(value) for name in _KEPT if (value := request.headers.get(name)) is not None
        }
    facts = gateway_callbacks.read_body(content_type, body)
    grade = gateway_callbacks.grade(request.headers.get(_SIGNATURE), body, facts, secrets)
    return Arrival(
        checkout_id=checkout_id,
        kind=kind,
        grade=grade,
        content_type=content_type,
        headers=headers,
        source=request.client.host if request.client is not None and kind != "redirect" else None,
        body=body,
    )


def _onward(page: str) -> Response:
    # 303 turns the POST into a GET of the shop's page.
    return Response(status_code=303, headers={"Location": page})


def _printable(value: str) -> str:
    return _UNPRINTABLE.sub("?", value[:_LONGEST_HEADER])
