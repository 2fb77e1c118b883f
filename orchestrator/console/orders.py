"""Finding orders, one order with all that belongs to it, and what waits for a decision."""

from __future__ import annotations

import csv as table
import io
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import RedirectResponse, Response

from orchestrator import audit, explain
from orchestrator.audit import Findings, Head
from orchestrator.console import choices, facts, pages, results
from orchestrator.console.access import Refused, not_found
from orchestrator.console.actions import NO_CHECKOUT
from orchestrator.domain import money
from orchestrator.domain.attention import WAYS_OUT, AttentionCode
from orchestrator.domain.ids import FIRST, first_id
from orchestrator.domain.last_error import WAITS_FOR_GATEWAY, ErrorCode
from orchestrator.domain.money import MoneyError
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.states import ENDED, State
from orchestrator.explain.advice import MEANING
from orchestrator.store import inbox, read_model
from orchestrator.store.console import actions, approvals, lists
from orchestrator.store.console.lists import Filter, Found
from orchestrator.store.free_text import Reasons

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from orchestrator.console.app import Visit
    from orchestrator.console.reading import Fields
    from orchestrator.explain import Record
    from orchestrator.store.read_model import CheckoutSummary

PAGE: Final = 50
MOST_EXPORTED: Final = 10_000
MOST_SHOWN: Final = 100
"""Rows of one kind on the page of an order."""
FILTERS: Final = (
    "state",
    "status",
    "attention",
    "error",
    "merchant",
    "since",
    "until",
    "currency",
    "least",
    "most",
)
DONE: Final = {
    "waiting": "It is above the limit and waits for a second person. Nothing was sent yet.",
    "verified": "The audit trail of this order holds: no entry was changed, cut or removed.",
}
STORED: Final = {
    "accepted": "Stored. A worker carries it out; the result is shown here as soon as it is known.",
    "approved": "Approved and stored. A worker carries it out; the result is shown here as soon as it is known.",
}
"""What is said of a command while it is open."""
ANY_ATTENTION: Final = "any"
ANY_ERROR: Final = "any"
ANY_OPEN: Final = "open"
OPEN: Final = frozenset(State) - ENDED


async def search(visit: Visit) -> Response:
    """Find orders by a name (order number, id, transaction) or by a filter."""
    fields = visit.query("name", "before", *FILTERS)
    names = await lists.merchants(visit.db)
    name, chosen = fields.order("name"), filter_of(fields, names)
    before = fields.place("before")
    found = Found((), None, scanned=False)
    if not fields.wrong:
        if name is None:
            found = await lists.checkouts(visit.db, chosen, before=before, limit=PAGE)
        else:
            found = Found(await lists.named(visit.db, name), None, scanned=False)
    return _found(visit, fields, found, names, first=before is None, only=name is not None)


async def search_email(visit: Visit) -> Response:
    """Find orders by the customer's e-mail address, which is in no URL; the search is noted, without it."""
    form = visit.form
    email = form.text("email", most=254)
    if email is None or "@" not in email:
        form.wrong["email"] = "must be an e-mail address"
    rows: Sequence[CheckoutSummary] = ()
    if email is not None and not form.wrong:
        rows = await lists.of_email(visit.db, visit.encryptor, email, limit=MOST_SHOWN)
        await visit.note("orders:searched-by-email", "accepted", facts={"found": len(rows)})
    names = await lists.merchants(visit.db)
    return _found(visit, form, Found(rows, None, scanned=False), names, first=True, only=True)


def _found(
    visit: Visit, fields: Fields, found: Found, names: dict[int, str], *, first: bool, only: bool
) -> Response:
    """Show orders that were found; a single one (`only`) by its own page."""
    if only and len(found.rows) == 1:
        return RedirectResponse(f"/console/orders/{found.rows[0].id}", 303)
    given = {key: fields.values.get(key, "") for key in ("name", "email", *FILTERS)}
    return pages.render(
        visit,
        "orders.html",
        fields=fields,
        found=found,
        names=names,
        given=given,
        first=first,
        window=lists.WINDOW,
    )


async def csv(visit: Visit) -> Response:
    """Return the orders of a filter as CSV, the youngest first, at most `MOST_EXPORTED`; where there are more
    the last line says so.
    """
    fields = visit.query(*FILTERS)
    names = await lists.merchants(visit.db)
    chosen = filter_of(fields, names)
    if fields.wrong:
        raise Refused(422, "The filter cannot be read", "Correct it on the page of orders.")
    out = io.StringIO()
    writer = table.writer(out)
    writer.writerow(
        "id order merchant state paymentStatus currency amount reserved captured refunded chargedBack attention createdAt".split()
    )
    before: UUID | None = None
    number = read = 0
    while True:
        found = await lists.checkouts(visit.db, chosen, before=before, limit=1000)
        for row in found.rows[: MOST_EXPORTED - number]:
            writer.writerow([_cell(value) for value in _columns(row, names)])
        number, read, before = number + len(found.rows), read + lists.WINDOW, found.after
        if before is None and number <= MOST_EXPORTED:
            break
        if number >= MOST_EXPORTED or read >= lists.MOST_READ:
            writer.writerow(
                [f"The file ends here: older orders are not in it ({min(number, MOST_EXPORTED)} orders)"]
            )
            break
    return Response(
        out.getvalue(),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": 'attachment; filename="orders.csv"'},
    )


async def show(visit: Visit) -> Response:
    """Show one order: what is held, what may be done, and everything that happened."""
    checkout = visit.id
    done = visit.query("done").text("done") or ""
    record = await explain.gather(visit.db, visit.services.settings, checkout)
    view = await inbox.checkout_view(visit.db, checkout)
    if record is None or view is None:
        raise not_found(NO_CHECKOUT)
    trail = await read_model.trail(visit.db, checkout, after=-MOST_SHOWN, most=MOST_SHOWN)
    entries, archived = trail or ([], ())
    reasons = await Reasons.of(visit.db, visit.encryptor, checkout)
    commands = results.of(record)
    return pages.render(
        visit,
        "order.html",
        live=f"order:{checkout}",
        done=DONE.get(done),
        stored=STORED.get(done) if commands else None,
        beside=results.beside(record),
        meaning=MEANING,
        roles=facts.ROLES,
        record=record,
        explanation=explain.explain(record),
        bar=bar(record),
        choices=choices.of(view),
        timeline=_timeline(entries, reasons, record.currency),
        archived=archived,
        older=bool(entries) and entries[0].sequence > 1 and not archived,
        callbacks=await lists.callbacks(visit.db, checkout, limit=MOST_SHOWN),
        events=await lists.events(visit.db, checkout, limit=MOST_SHOWN),
        streams=await lists.streams(visit.db, checkout, merchant_id=view.merchant_id, limit=MOST_SHOWN),
        commands=[(row, reasons.shown(row.command.reason)) for row in commands],
        waiting=await approvals.waiting(visit.db, visit.encryptor, checkout=checkout),
        actions=await actions.page(visit.db, visit.encryptor, checkout=checkout, limit=20),
    )


async def verify(visit: Visit) -> Response:
    """Verify the chain of one order."""
    head, entries, archived = await lists.chain(visit.db, visit.id, limit=lists.WINDOW + 1)
    if head is None:
        raise not_found(NO_CHECKOUT)
    if len(entries) > lists.WINDOW:
        said = "The trail is too long for this page: `orchestrator audit verify` verifies it."
        raise Refused(409, "Not verified", said)
    found = Findings()
    after = Head() if archived is None else Head(archived.sequence, bytes(archived.mac), archived.state)
    audit.verify_chain(visit.encryptor, head, entries, found, after=after)
    if found.problems:
        raise Refused(409, "The audit trail does not hold", "; ".join(found.problems[:5]))
    return RedirectResponse(f"/console/orders/{visit.id}?done=verified", 303)


async def decisions(visit: Visit) -> Response:
    """List what waits for a decision, by kind, the oldest first."""
    after = visit.query("after").place("after") or FIRST
    rows, last = pages.paged(await lists.decisions(visit.db, after=after, limit=PAGE + 1), PAGE)
    groups: dict[AttentionCode, list[dict[str, Any]]] = {}
    for row in rows:
        found = read_model.summary(row)
        if found.attention is not None:
            groups.setdefault(found.attention.code, []).append(
                {"order": found, "merchant": row.merchant, "age": row.age}
            )
    oldest = sorted(groups.items(), key=lambda group: -max(each["age"] for each in group[1]))
    return pages.render(
        visit,
        "decisions.html",
        live="decisions",
        groups=oldest,
        more=last and last.id,
        meaning=MEANING,
        ways=WAYS_OUT,
        first=after == FIRST,
    )


def filter_of(fields: Fields, names: dict[int, str]) -> Filter:
    """Return the filter of a request; what is wrong stands in `fields`."""
    states = OPEN if fields.text("state") == ANY_OPEN else frozenset(fields.words("state", State))
    status = fields.among("status", PaymentStatus)
    attention: AttentionCode | bool | None = fields.text("attention") == ANY_ATTENTION or fields.among(
        "attention", AttentionCode
    )
    waits = fields.text("error") == ANY_ERROR
    errors = WAITS_FOR_GATEWAY if waits else frozenset(fields.words("error", ErrorCode))
    named = fields.text("merchant")
    merchant = None if named is None else fields.merchant(named, names)
    currency = (fields.text("currency", most=3) or "").upper() or None
    bounds: dict[str, int] = {}
    for bound in ("least", "most"):
        if (value := fields.text(bound, most=30)) is None:
            continue
        if currency is None:
            fields.wrong["currency"] = "name the currency of the amounts"
            continue
        try:
            bounds[bound] = money.to_minor(value, currency)
        except MoneyError as error:
            fields.wrong[bound] = str(error)
    since, until = fields.day("since"), fields.day("until", end=True)
    return Filter(
        merchant_id=merchant,
        states=states,
        status=status,
        attention=attention,
        errors=errors,
        currency=currency,
        least=bounds.get("least"),
        most=bounds.get("most"),
        since=None if since is None else first_id(since),
        until=None if until is None else first_id(until),
    )


def bar(record: Record) -> list[dict[str, Any]]:
    """Return the parts of the bar that shows what is held, in percent of the largest sum.

    Drawn as SVG; the same amounts stand beside it as text.
    """
    whole = max(record.amount, record.reserved, record.captured, 1)
    kept = max(record.captured - record.refunded - record.charged_back, 0)
    parts = [
        ("captured", kept),
        ("refunded", record.refunded),
        ("charged-back", record.charged_back),
        ("reserved", max(record.reserved - record.captured, 0)),
    ]
    drawn, at = [], 0.0
    for name, minor in parts:
        if minor > 0:
            width = min(100 * minor / whole, 100 - at)
            drawn.append({"name": name, "at": round(at, 2), "width": round(width, 2)})
            at += width
    return drawn


def _timeline(rows: Sequence[Any], reasons: Reasons, currency: str) -> list[dict[str, Any]]:
    """Return the entries of the trail for the page, the oldest first."""
    shown: list[dict[str, Any]] = []
    returned: str | None = None
    for row in rows:
        entry = read_model.entry(row)
        returned = facts.returned(entry) or returned
        shown.append(_entry(entry, reasons, currency, returned=returned))
        if shown[-1]["moved"]:
            returned = None
    return shown


def _entry(entry: dict[str, Any], reasons: Reasons, currency: str, *, returned: str | None) -> dict[str, Any]:
    evidence = entry.get("evidence")
    if isinstance(evidence, dict):
        evidence = reasons.in_evidence(evidence)
    # The first entry has no state before.
    moved = entry["from"] is not None and entry["to"] != entry["from"]
    return {
        **entry,
        "evidence": facts.of(evidence, currency),
        "moved": moved,
        "title": facts.title(entry, returned=returned),
    }


def _columns(row: CheckoutSummary, names: dict[int, str]) -> Sequence[object]:
    amounts = (row.amount, row.reserved, row.captured, row.refunded, row.charged_back)
    return (
        row.id,
        row.order_ref,
        pages.merchant_name(names, row.merchant_id),
        row.state,
        row.payment_status,
        row.currency,
        *(money.decimal_or_none(minor, row.currency) for minor in amounts),
        "" if row.attention is None else row.attention.code,
        row.created_at.isoformat(),
    )


def _cell(value: object) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    text = "" if value is None else str(value)
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
