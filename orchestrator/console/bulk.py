"""One command for many orders: chosen by a filter, shown before (orders, money, merchants), then carried out
with a result for each.

The choice is frozen with the versions that the preview saw: an order that has moved since is refused. No kind
moves money.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import RedirectResponse

from orchestrator.console import choices, orders, pages, reading
from orchestrator.console.access import Refused
from orchestrator.domain.records import CommandKind
from orchestrator.store.console import lists, runs
from orchestrator.store.console.runs import KINDS, Item

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.responses import Response

    from orchestrator.console.app import Visit
    from orchestrator.console.reading import Fields
    from orchestrator.store.console.runs import Kind

MOST: Final = 100_000
FIELDS: Final = ("kind", "reason", "number", "seen", *orders.FILTERS)
LABELS: Final[dict[Kind, str]] = {
    "retry": "Retry now",
    "reconcile": "Look up at the gateway",
    "cancel": "Cancel",
    "dismiss": "Dismiss what waits for a decision",
}
FOLLOWS: Final[dict[Kind, str]] = {
    "retry": choices.FOLLOWS[CommandKind.RETRY],
    "reconcile": choices.FOLLOWS[CommandKind.RECONCILE],
    "cancel": choices.FOLLOWS[CommandKind.CANCEL],
    "dismiss": "Each question is closed. No money moves, and each order stays as it is. Orders whose question cannot be dismissed are "
    "refused, one by one.",
}
PAGE: Final = 100


async def show_all(visit: Visit) -> Response:
    """List bulk actions, and begin a new one."""
    services = visit.services
    fields = reading.query(visit.request, ("before",))
    found = await runs.page(
        services.db, services.encryptor, before=fields.place("before") or lists.LAST, limit=orders.PAGE + 1
    )
    return pages.render(
        visit,
        "bulk.html",
        runs=found[: orders.PAGE],
        more=found[orders.PAGE - 1].id if len(found) > orders.PAGE else None,
        labels=LABELS,
        names=await lists.merchants(services.db),
        given=dict.fromkeys(orders.FILTERS, ""),
        wrong={},
        **orders.words(),
    )


async def preview(visit: Visit) -> Response:
    """Show what a bulk action would touch."""
    fields = reading.query(visit.request, ("kind", *orders.FILTERS))
    return await _preview(visit, fields, reason="", wrong={})


async def begin(visit: Visit) -> Response:
    """Freeze the choice and begin; refused where it is not what the preview showed."""
    form = visit.form
    kind, reason = _kind(form), form.reason()
    if form.wrong:
        return await _preview(visit, form, reason=reason, wrong=dict(form.wrong))
    items, _ = await _chosen(visit, form)
    if _digest(items) != form.values.get("seen"):
        await visit.note("bulk:begun", "refused", facts={"kind": kind, "refused": "choice-changed"})
        return await _preview(
            visit, form, reason=reason, wrong={"choice": "orders have come, gone or moved since the preview"}
        )
    if not items:
        raise Refused(409, "Nothing chosen", "No order matches the filter. Nothing was done.")
    chosen: dict[str, object] = {name: form.values[name] for name in orders.FILTERS if form.values.get(name)}
    run = await runs.add(
        visit.services.db,
        visit.services.encryptor,
        kind=kind,
        chosen=chosen,
        items=items,
        actor=visit.actor,
        reason=reason,
    )
    await visit.note(
        "bulk:begun",
        "accepted",
        subject=str(run),
        facts={"kind": kind, "orders": len(items), "filter": chosen},
    )
    visit.console.run_worker.wake()
    return RedirectResponse(f"/console/bulk/{run}", 303)


async def show(visit: Visit) -> Response:
    """Show how far a bulk action is, and what became of each order."""
    services, wanted = visit.services, reading.uuid(visit.request.path_params["id"])
    after = reading.query(visit.request, ("after",)).place("after") or lists.FIRST
    run = await runs.by_id(services.db, services.encryptor, wanted)
    if run is None:
        raise Refused(404, "Not found", "There is no such bulk action.")
    items = await runs.items(services.db, wanted, after=after, limit=PAGE + 1)
    return pages.render(
        visit,
        "run.html",
        live=f"run:{wanted}",
        run=run,
        label=LABELS.get(run.kind, run.kind),
        items=items[:PAGE],
        more=items[PAGE - 1].checkout_id if len(items) > PAGE else None,
    )


async def switch(visit: Visit) -> Response:
    """Stop a bulk action, or go on with it."""
    wanted, what = reading.uuid(visit.request.path_params["id"]), visit.request.path_params["what"]
    if what not in {"stop", "resume"}:
        raise Refused(404, "Not found", "There is no such action.")
    moved = await (runs.stop if what == "stop" else runs.resume)(visit.services.db, wanted)
    await visit.note(f"bulk:{what}", "accepted" if moved else "refused", subject=str(wanted))
    visit.console.run_worker.wake()
    return RedirectResponse(f"/console/bulk/{wanted}", 303)


async def _preview(visit: Visit, fields: Fields, *, reason: str, wrong: dict[str, str]) -> Response:
    kind, names = _kind(fields), await lists.merchants(visit.services.db)
    items, rows = await _chosen(visit, fields)
    money: Counter[str] = Counter()
    merchants: Counter[int] = Counter()
    for row in rows:
        money[row.currency] += row.amount
        merchants[row.merchant_id] += 1
    return pages.render(
        visit,
        "bulk_preview.html",
        status=409 if "choice" in wrong else 422 if wrong or fields.wrong else 200,
        kind=kind,
        label=LABELS[kind],
        follows=FOLLOWS[kind],
        number=len(items),
        full=len(items) == MOST,
        most=MOST,
        money=sorted(money.items()),
        merchants=sorted(
            ((pages.merchant_name(names, number), count) for number, count in merchants.items()),
            key=lambda pair: -pair[1],
        ),
        seen=_digest(items),
        given={name: fields.values.get(name, "") for name in orders.FILTERS},
        reason=reason,
        wrong=wrong | fields.wrong,
    )


async def _chosen(visit: Visit, fields: Fields) -> tuple[list[Item], list[Any]]:
    """Return the orders of a filter, in windows of a bounded number of rows."""
    chosen = orders.filter_of(fields, await lists.merchants(visit.services.db))
    if fields.wrong:
        return [], []
    if chosen == lists.Filter():
        fields.wrong["state"] = "choose by something: a bulk action over everything is refused"
        return [], []
    found: list[Any] = []
    before: UUID | None = None
    while len(found) < MOST:
        rows, before = await lists.chosen(visit.services.db, chosen, before=before)
        found += rows
        if before is None:
            break
    del found[MOST:]
    return [Item(row.id, row.merchant_id, row.version) for row in found], found


def _digest(items: list[Item]) -> str:
    """Return what is the same while the choice is the same, version by version."""
    made = hashlib.sha256()
    for item in items:
        made.update(item.checkout.bytes + item.version.to_bytes(4, "big"))
    return made.hexdigest()


def _kind(fields: Fields) -> Kind:
    value = fields.values.get("kind", "")
    found = next((kind for kind in KINDS if kind == value), None)
    if found is None:
        raise Refused(404, "Not found", "There is no such bulk action.")
    return found
