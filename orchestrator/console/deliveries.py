"""Events on their way to merchants: endpoints, attempts, pause and replay; and intents that were rejected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.responses import RedirectResponse

from orchestrator.console import orders, pages, reading
from orchestrator.console.access import Refused
from orchestrator.domain.ids import FIRST
from orchestrator.store import deliveries, replays, webhooks
from orchestrator.store.console import lists

if TYPE_CHECKING:
    from starlette.responses import Response

    from orchestrator.console.app import Visit

FIELDS: Final = ("reason", "attempt")
ATTEMPTS: Final = 50
WHAT: Final = {"pause", "resume", "replay", "replay-failed"}


async def show_all(visit: Visit) -> Response:
    """List endpoints, page by page."""
    after = reading.query(visit.request, ("after",)).place("after") or FIRST
    found = await lists.endpoints(visit.services.db, after=after, limit=orders.PAGE + 1)
    rows, last = pages.paged(found, orders.PAGE)
    return pages.render(
        visit,
        "deliveries.html",
        rows=rows,
        more=last and last.id,
        first=after == FIRST,
    )


async def show(visit: Visit) -> Response:
    """Show one endpoint and its attempts, the youngest first."""
    fields = reading.query(visit.request, ("before", "failed", "done"))
    endpoint = await _endpoint(visit)
    failed = True if fields.values.get("failed") == "yes" else None
    before = fields.place("before")
    found = await deliveries.attempts(
        visit.services.db,
        visit.services.encryptor,
        endpoint.id,
        before=before,
        limit=ATTEMPTS + 1,
        failed=failed,
    )
    attempts, last = pages.paged(found, ATTEMPTS)
    more = last and last.id
    if more is None and failed is not None:
        more = await deliveries.scanned_to(visit.services.db, endpoint.id, before=before)
    return pages.render(
        visit,
        "endpoint.html",
        endpoint=endpoint,
        attempts=[(each, _text(each.answer)) for each in attempts],
        orders=await lists.order_refs(visit.services.db, [each.checkout_id for each in attempts]),
        more=more,
        failed=failed is not None,
        done=fields.text("done"),
    )


async def act(visit: Visit) -> Response:
    """Pause or resume an endpoint, or send again."""
    services, what, endpoint = visit.services, visit.request.path_params["what"], await _endpoint(visit)
    if what not in WHAT:
        raise Refused(404, "Not found", "There is no such action.")
    reason = visit.form.reason()
    if visit.form.wrong:
        raise Refused(422, "Not done", f"Reason: {visit.form.wrong['reason']}.")
    facts: dict[str, object] = {"reason": reason}
    done = True
    match what:
        case "pause":
            done = await webhooks.pause(services.db, endpoint.id, "asked")
        case "resume":
            done = await webhooks.resume(services.db, endpoint.id, merchant_id=endpoint.merchant_id)
        case "replay-failed":
            facts["events"] = await replays.given_up(services.db, endpoint.id)
        case _:
            attempt = reading.uuid(visit.form.values.get("attempt", ""))
            sent = await replays.of_attempt(services.db, attempt, merchant_id=endpoint.merchant_id)
            if sent is None or sent.webhook != endpoint.id:
                raise Refused(404, "Not found", "The endpoint has no such attempt.")
            facts["events"] = await replays.event(
                services.db,
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
        facts=facts,
    )
    return RedirectResponse(f"/console/deliveries/{endpoint.id}?done={what if done else 'nothing'}", 303)


async def rejected(visit: Visit) -> Response:
    """List rejected intents, the youngest first."""
    before = reading.query(visit.request, ("before",)).place("before")
    found = await lists.rejected(visit.services.db, before=before, limit=orders.PAGE + 1)
    rows, last = pages.paged(found, orders.PAGE)
    return pages.render(
        visit,
        "rejected.html",
        rows=rows,
        more=last and last.id,
        first=before is None,
    )


async def _endpoint(visit: Visit) -> Any:
    wanted = reading.uuid(visit.request.path_params["id"])
    rows = await lists.endpoints(visit.services.db, endpoint=wanted, limit=1)
    if not rows:
        raise Refused(404, "Not found", "There is no such endpoint.")
    return rows[0]


def _text(answer: bytes | None) -> str:
    return "" if answer is None else answer[:300].decode(errors="replace")
