"""Events for merchants: their feed, and their way to endpoints, with attempts, pause and replay; and intents
that were rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.responses import RedirectResponse

from orchestrator.console import facts, orders, pages, reading
from orchestrator.console.access import not_found
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import FIRST
from orchestrator.store import deliveries, replays, webhooks
from orchestrator.store.console import lists

if TYPE_CHECKING:
    from starlette.responses import Response

    from orchestrator.console.app import Visit

ATTEMPTS: Final = 50
WHAT: Final = {"pause", "resume", "replay", "replay-failed"}
MOST_DIGITS: Final = 18


async def show_all(visit: Visit) -> Response:
    """List endpoints, page by page."""
    after = visit.query("after").place("after") or FIRST
    found = await lists.endpoints(visit.db, after=after, limit=orders.PAGE + 1)
    return pages.listing(visit, "deliveries.html", found, orders.PAGE, first=after == FIRST)


async def show(visit: Visit) -> Response:
    """Show one endpoint and its attempts, the youngest first."""
    fields = visit.query("before", "failed", "done")
    endpoint = await _endpoint(visit)
    failed = fields.values.get("failed") == "yes"
    before = fields.place("before")
    found = await deliveries.attempts(
        visit.db,
        visit.encryptor,
        endpoint.id,
        before=before,
        limit=ATTEMPTS + 1,
        failed=failed or None,
    )
    attempts, last = pages.paged(found, ATTEMPTS)
    more = last and last.id
    if more is None and failed:
        more = await deliveries.scanned_to(visit.db, endpoint.id, before=before)
    return pages.render(
        visit,
        "endpoint.html",
        endpoint=endpoint,
        attempts=[(each, _text(each.answer)) for each in attempts],
        orders=await lists.order_refs(visit.db, [each.checkout_id for each in attempts]),
        more=more,
        failed=failed,
        done=fields.text("done"),
    )


async def act(visit: Visit) -> Response:
    """Pause or resume an endpoint, or send again."""
    what, endpoint = visit.request.path_params["what"], await _endpoint(visit)
    if what not in WHAT:
        raise not_found("There is no such action.")
    told: dict[str, object] = {"reason": visit.form.reason_or_refuse()}
    done = True
    match what:
        case "pause":
            done = await webhooks.pause(visit.db, endpoint.id, "asked")
        case "resume":
            done = await webhooks.resume(visit.db, endpoint.id, merchant_id=endpoint.merchant_id)
        case "replay-failed":
            told["events"] = await replays.given_up(visit.db, endpoint.id)
        case _:
            attempt = reading.uuid(visit.form.values.get("attempt", ""))
            sent = await replays.of_attempt(visit.db, attempt, merchant_id=endpoint.merchant_id)
            if sent is None or sent.webhook != endpoint.id:
                raise not_found("The endpoint has no such attempt.")
            told["events"] = await replays.event(
                visit.db,
                endpoint.id,
                merchant_id=endpoint.merchant_id,
                checkout=sent.checkout,
                sequence=sent.sequence,
            )
    await visit.note(
        f"endpoint:{what}",
        "accepted" if done else "refused",
        merchant_id=endpoint.merchant_id,
        subject=str(endpoint.id),
        facts=told,
    )
    return RedirectResponse(f"/console/deliveries/{endpoint.id}?done={what if done else 'nothing'}", 303)


async def rejected(visit: Visit) -> Response:
    """List rejected intents, the youngest first."""
    before = visit.query("before").place("before")
    found = await lists.rejected(visit.db, before=before, limit=orders.PAGE + 1)
    return pages.listing(visit, "rejected.html", found, orders.PAGE, first=before is None)


async def feed(visit: Visit) -> Response:
    """Show events of one merchant, as its own systems read them, the youngest first."""
    fields = visit.query("merchant", "kind", "before")
    names = await lists.merchants(visit.db)
    name = fields.text("merchant") or next(iter(names.values()), "")
    merchant = fields.merchant(name, names)
    kind, before = fields.among("kind", EventType), fields.text("before")
    if before is not None and not (before.isascii() and before.isdigit() and len(before) <= MOST_DIGITS):
        fields.wrong["before"] = "is not a position"
    rows: Any = ()
    after = None
    if merchant is not None and not fields.wrong:
        place = None if before is None else int(before)
        rows, after = await lists.feed(visit.db, merchant, kind=kind, before=place, limit=orders.PAGE)
    return pages.render(
        visit,
        "events.html",
        fields=fields,
        rows=[(row, _facts(row.payload)) for row in rows],
        after=after,
        first=before is None,
        given={"merchant": name, "kind": kind or ""},
        names=names,
        kinds=sorted(EventType),
        window=lists.WINDOW,
    )


def _facts(payload: Any) -> list[tuple[str, str]]:
    """Return what an event says beside the state of its checkout, as names and short texts."""
    said = payload if isinstance(payload, dict) else {}
    return facts.of(said.get("facts"), said.get("currency", ""))


async def _endpoint(visit: Visit) -> Any:
    rows = await lists.endpoints(visit.db, endpoint=visit.id, limit=1)
    if not rows:
        raise not_found("There is no such endpoint.")
    return rows[0]


def _text(answer: bytes | None) -> str:
    return "" if answer is None else answer[:300].decode(errors="replace")
