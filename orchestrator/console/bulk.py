"""One command for many orders: chosen by a filter, shown before (orders, money, merchants), then carried out
with a result for each.

The choice is frozen with the versions that the preview saw: an order that has moved since is refused. No kind
moves money.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from starlette.responses import RedirectResponse

from orchestrator.console import choices, orders, pages, reading
from orchestrator.console.access import not_found
from orchestrator.domain.ids import FIRST, LAST, first_id, uuid7
from orchestrator.domain.records import CommandKind
from orchestrator.store.console import lists, runs
from orchestrator.store.console.runs import KINDS

if TYPE_CHECKING:
    from starlette.responses import Response

    from orchestrator.console.app import Visit
    from orchestrator.console.reading import Fields
    from orchestrator.store.console.runs import Kind

MOST: Final = 100_000
FIELDS: Final = ("kind", "reason", "nonce", "before", "seen", *orders.FILTERS)
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
    "dismiss": "Each question is closed. No money moves, and each order stays as it is. Refused, one by one, are questions that have "
    "other answers only, such as a late or a surplus payment, and operations whose outcome is not clear.",
}
PAGE: Final = 100


async def show_all(visit: Visit) -> Response:
    """List bulk actions, and begin a new one."""
    before = visit.query("before").place("before") or LAST
    found = await runs.page(visit.db, visit.encryptor, before=before, limit=orders.PAGE + 1)
    return pages.listing(
        visit,
        "bulk.html",
        found,
        orders.PAGE,
        labels=LABELS,
        names=await lists.merchants(visit.db),
        given=dict.fromkeys(orders.FILTERS, ""),
        wrong={},
    )


async def preview(visit: Visit) -> Response:
    """Show what a bulk action would touch."""
    return await _preview(visit, visit.query("kind", *orders.FILTERS))


async def begin(visit: Visit) -> Response:
    """Freeze the choice and begin; refused where it is not what the preview showed."""
    form = visit.form
    kind, reason, nonce, before = _kind(form), form.reason(), form.nonce(), form.place("before")
    if before is None:
        raise reading.incomplete()
    wanted = _filter(form, await lists.merchants(visit.db))
    if wanted is None or form.wrong:
        return await _preview(visit, form)
    chosen: dict[str, object] = {name: form.values[name] for name in orders.FILTERS if form.values.get(name)}
    try:
        number = await runs.begin(
            visit.db,
            visit.encryptor,
            nonce,
            runs.NewRun(kind=kind, chosen=chosen, actor=visit.actor, reason=reason),
            wanted=wanted,
            before=before,
            most=MOST,
            seen=form.values.get("seen", ""),
        )
    except runs.ChoiceChanged:
        await visit.note("bulk:begun", "refused", facts={"kind": kind, "refused": "choice-changed"})
        form.wrong["choice"] = "orders have come, gone or moved since the preview"
        return await _preview(visit, form)
    if number is not None:
        facts: dict[str, object] = {"kind": kind, "orders": number, "filter": chosen}
        await visit.note("bulk:begun", "accepted", subject=str(nonce), facts=facts)
        visit.console.run_worker.wake()
    return RedirectResponse(f"/console/bulk/{nonce}", 303)


async def show(visit: Visit) -> Response:
    """Show how far a bulk action is, and what became of each order."""
    after = visit.query("after").place("after") or FIRST
    run = await runs.by_id(visit.db, visit.encryptor, visit.id)
    if run is None:
        raise not_found("There is no such bulk action.")
    found = await runs.items(visit.db, run.id, after=after, limit=PAGE + 1)
    label, live = LABELS.get(run.kind, run.kind), f"run:{run.id}"
    return pages.listing(visit, "run.html", found, PAGE, key="checkout_id", live=live, run=run, label=label)


async def switch(visit: Visit) -> Response:
    """Stop a bulk action, or go on with it."""
    wanted, what = visit.id, visit.request.path_params["what"]
    if what not in {"stop", "resume"}:
        raise not_found("There is no such action.")
    moved = await (runs.stop if what == "stop" else runs.resume)(visit.db, wanted)
    await visit.note(f"bulk:{what}", "accepted" if moved else "refused", subject=str(wanted))
    visit.console.run_worker.wake()
    return RedirectResponse(f"/console/bulk/{wanted}", 303)


async def _preview(visit: Visit, fields: Fields) -> Response:
    kind, names = _kind(fields), await lists.merchants(visit.db)
    wanted, found = _filter(fields, names), lists.Choice()
    # Orders that come after the preview are not chosen, and so do not change what it shows.
    before = first_id(datetime.now(UTC))
    if wanted is not None:
        found = await lists.chosen(visit.db.read, wanted, before=before, most=MOST)
    money: Counter[str] = Counter()
    merchants: Counter[str] = Counter()
    for (merchant, currency), (number, amount) in found.amounts.items():
        money[currency] += amount
        merchants[pages.merchant_name(names, merchant)] += number
    return pages.render(
        visit,
        "bulk_preview.html",
        status=409 if "choice" in fields.wrong else 200,
        fields=fields,
        kind=kind,
        label=LABELS[kind],
        follows=FOLLOWS[kind],
        found=found,
        most=MOST,
        money=sorted(money.items()),
        merchants=merchants.most_common(),
        read=lists.MOST_READ,
        before=before,
        once=uuid7(),
        given={name: fields.values.get(name, "") for name in orders.FILTERS},
        reason=fields.values.get("reason", ""),
    )


def _filter(fields: Fields, names: dict[int, str]) -> lists.Filter | None:
    """Return what is chosen by; None where that is wrong, which stands in `fields`."""
    wanted = orders.filter_of(fields, names)
    right = fields.wrong.keys().isdisjoint(orders.FILTERS)
    if right and wanted == lists.Filter():
        fields.wrong["state"] = "choose by something: a bulk action over everything is refused"
        return None
    return wanted if right else None


def _kind(fields: Fields) -> Kind:
    value = fields.values.get("kind", "")
    found = next((kind for kind in KINDS if kind == value), None)
    if found is None:
        raise not_found("There is no such bulk action.")
    return found
