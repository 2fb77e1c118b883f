"""The feed of a merchant's events, as its own systems read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from orchestrator.console import facts, orders, pages, reading
from orchestrator.domain.events import EventType
from orchestrator.store.console import lists

if TYPE_CHECKING:
    from starlette.responses import Response

    from orchestrator.console.app import Visit

MOST_DIGITS: Final = 18


async def show(visit: Visit) -> Response:
    """Show events of one merchant, the youngest first."""
    fields = reading.query(visit.request, ("merchant", "kind", "before"))
    names = await lists.merchants(visit.services.db)
    name = fields.text("merchant") or next(iter(names.values()), "")
    merchant = next((number for number, known in names.items() if known == name), None)
    if merchant is None:
        fields.wrong["merchant"] = "there is no such merchant"
    kind, before = fields.among("kind", EventType), fields.text("before")
    if before is not None and not (before.isascii() and before.isdigit() and len(before) <= MOST_DIGITS):
        fields.wrong["before"] = "is not a position"
    rows: Any = ()
    after = None
    if merchant is not None and not fields.wrong:
        rows, after = await lists.feed(
            visit.services.db,
            merchant,
            kind=kind,
            before=None if before is None else int(before),
            limit=orders.PAGE,
        )
    return pages.render(
        visit,
        "events.html",
        status=422 if fields.wrong else 200,
        rows=[(row, _facts(row.payload)) for row in rows],
        after=after,
        first=before is None,
        given={"merchant": name, "kind": kind or ""},
        names=names,
        kinds=sorted(EventType),
        wrong=fields.wrong,
        window=lists.WINDOW,
    )


def _facts(payload: Any) -> list[tuple[str, str]]:
    """Return what an event says beside the state of its checkout, as names and short texts."""
    currency = payload.get("currency", "") if isinstance(payload, dict) else ""
    told = payload.get("facts") if isinstance(payload, dict) else None
    return facts.of(told, currency, words=pages.words)
