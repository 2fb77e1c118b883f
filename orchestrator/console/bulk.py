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
from orchestrator.console.access import Refused
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
    services = visit.services
    fields = reading.query(visit.request, ("before",))
    before = fields.place("before") or LAST
    found = await runs.page(services.db, services.encryptor, before=before, limit=orders.PAGE + 1)
    rows, last = pages.paged(found, orders.PAGE)
    return pages.render(
        visit,
        "bulk.html",
        runs=rows,
        more=last and last.id,
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
    kind, reason, nonce, before = _kind(form), form.reason(), form.nonce(), form.place("before")
    if before is None:
        raise Refused(400, "The form is incomplete", "Open the page again. Nothing was done.")
    if form.wrong:
        return await _preview(visit, form, reason=reason, wrong=dict(form.wrong))
    wanted = await _filter(visit, form)
    if wanted is None:
        return await _preview(visit, form, reason=reason, wrong={})
    chosen: dict[str, object] = {name: form.values[name] for name in orders.FILTERS if form.values.get(name)}
    try:
        number = await runs.begin(
            visit.services.db,
            visit.services.encryptor,
            nonce,
            runs.NewRun(kind=kind, chosen=chosen, actor=visit.actor, reason=reason),
            wanted=wanted,
            before=before,
            most=MOST,
            seen=form.values.get("seen", ""),
        )
    except runs.ChoiceChanged:
        await visit.note("bulk:begun", "refused", facts={"kind": kind, "refused": "choice-changed"})
        return await _preview(
            visit, form, reason=reason, wrong={"choice": "orders have come, gone or moved since the preview"}
        )
    if number is not None:
        facts: dict[str, object] = {"kind": kind, "orders": number, "filter": chosen}
        await visit.note("bulk:begun", "accepted", subject=str(nonce), facts=facts)
        visit.console.run_worker.wake()
    return RedirectResponse(f"/console/bulk/{nonce}", 303)


async def show(visit: Visit) -> Response:
    """Show how far a bulk action is, and what became of each order."""
    services, wanted = visit.services, reading.uuid(visit.request.path_params["id"])
    after = reading.query(visit.request, ("after",)).place("after") or FIRST
    run = await runs.by_id(services.db, services.encryptor, wanted)
    if run is None:
        raise Refused(404, "Not found", "There is no such bulk action.")
    items, last = pages.paged(await runs.items(services.db, wanted, after=after, limit=PAGE + 1), PAGE)
    return pages.render(
        visit,
        "run.html",
        live=f"run:{wanted}",
        run=run,
        label=LABELS.get(run.kind, run.kind),
        items=items,
        more=last and last.checkout_id,
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
    wanted, found = await _filter(visit, fields), lists.Choice()
    # Orders that come after the preview are not chosen, and so do not change what it shows.
    before = first_id(datetime.now(UTC))
    if wanted is not None:
        found = await lists.chosen(visit.services.db.read, wanted, before=before, most=MOST)
    money: Counter[str] = Counter()
    merchants: Counter[int] = Counter()
    for (merchant, currency), (number, amount) in found.amounts.items():
        money[currency] += amount
        merchants[merchant] += number
    return pages.render(
        visit,
        "bulk_preview.html",
        status=409 if "choice" in wrong else 422 if wrong or fields.wrong else 200,
        kind=kind,
        label=LABELS[kind],
        follows=FOLLOWS[kind],
        number=found.number,
        full=found.number == MOST,
        most=MOST,
        money=sorted(money.items()),
        merchants=sorted(
            ((pages.merchant_name(names, merchant), number) for merchant, number in merchants.items()),
            key=lambda pair: -pair[1],
        ),
        cut=found.cut,
        read=lists.MOST_READ,
        seen=found.digest,
        before=before,
        once=uuid7(),
        given={name: fields.values.get(name, "") for name in orders.FILTERS},
        reason=reason,
        wrong=wrong | fields.wrong,
    )


async def _filter(visit: Visit, fields: Fields) -> lists.Filter | None:
    """Return what is chosen by; None where that is wrong, which stands in `fields`."""
    wanted = orders.filter_of(fields, await lists.merchants(visit.services.db))
    if not fields.wrong and wanted == lists.Filter():
        fields.wrong["state"] = "choose by something: a bulk action over everything is refused"
    return None if fields.wrong else wanted


def _kind(fields: Fields) -> Kind:
    value = fields.values.get("kind", "")
    found = next((kind for kind in KINDS if kind == value), None)
    if found is None:
        raise Refused(404, "Not found", "There is no such bulk action.")
    return found
