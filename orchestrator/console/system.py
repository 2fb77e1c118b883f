"""The overview, and what runs: processes, merchants, seals; what users did, and who is signed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import RedirectResponse

from orchestrator.console import orders, pages
from orchestrator.console.access import ADMIN, need, not_found
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.last_error import WAITS_FOR_GATEWAY
from orchestrator.gateway.client import gateway_of
from orchestrator.monitoring.promises import BUDGET, FEW, GATEWAY_OBJECTIVE
from orchestrator.store import merchant_records
from orchestrator.store.console import actions as trail
from orchestrator.store.console import lists
from orchestrator.store.console import overview as store_overview
from orchestrator.store.console import sessions as store_sessions
from orchestrator.store.readiness import Process, troubles

if TYPE_CHECKING:
    from datetime import datetime

    from markupsafe import Markup
    from starlette.responses import Response

    from orchestrator.console.app import Visit
    from orchestrator.console.queues import Read
    from orchestrator.store.console.overview import Overview

MERCHANTS: Final = 50
SEALS: Final = 20
SWITCHES: Final = {"disable", "enable", "pause", "resume"}
CHART_WIDTH, CHART_HEIGHT = 600, 80
_QUESTIONS: Final = {
    AttentionCode.PAYMENT_MISMATCH: "Paid with another amount or currency than ordered",
    AttentionCode.SURPLUS_PAYMENT: "Paid more than once (surplus)",
    AttentionCode.LATE_PAYMENT: "Paid after the order had ended",
    AttentionCode.UNKNOWN_ORDER: "Paid for an order that no shop has handed over",
    AttentionCode.UNCLEAR_PAYMENT: "Payment without a clear meaning",
    AttentionCode.UNBOUND_PAYMENT: "Payment that may belong to another order",
    AttentionCode.CHARGED_BACK: "Charged back",
    AttentionCode.CHARGEBACK_UNCLEAR: "Chargeback or dispute that cannot be counted",
    AttentionCode.OVER_CAPTURE: "Captured more than was reserved",
    AttentionCode.OVER_REFUND: "Refunded more than was captured",
    AttentionCode.CREDITED: "Credited, not refunded",
    AttentionCode.PAYMENT_GONE: "Payment that the gateway shows no more",
    AttentionCode.PAYMENT_RELEASED: "Released at the gateway: not paid any more",
    AttentionCode.RESERVATION_LAPSES: "Reservation that lapses soon",
    AttentionCode.OPERATION_REJECTED: "Capture, refund or release that was rejected",
}
"""What is at stake with each question that is about money."""


async def overview(visit: Visit) -> Response:
    """Show money at risk first, then what waits and what runs; drawn once for all viewers of a reading."""
    visit.query()
    read = await visit.console.live.overview()
    health = await visit.console.health(visit.request)
    queues = await visit.console.queues.read()
    drawn = visit.console.drawn
    if drawn is None or drawn.read is not read or (drawn.health, drawn.queues) != (health, queues):
        drawn = visit.console.drawn = Drawn(read, health, queues, _content(read, health, queues))
    return pages.render(visit, "overview.html", live="overview", content=drawn.content)


FAILING: Final = BUDGET * (1 - GATEWAY_OBJECTIVE)
"""Above which share of calls that failed a gateway is called failing: one in seven, as for the alert
GatewayFails."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The content of an overview, and what it was drawn from."""

    read: Overview
    health: tuple[str | None, list[str]]
    queues: Read
    content: Markup


def _content(read: Overview, health: tuple[str | None, list[str]], queues: Read) -> Markup:
    found, processes = read.found, _processes(read)
    return pages.draw(
        "overview_content.html",
        read=read,
        queues=queues,
        found=found,
        risks=risks(read),
        chart=chart(found["rate"] or ()),
        gateways=gateways(processes, read.now),
        waiting=waiting(read),
        processes=processes,
        broken=health[0],
        troubles=dict.fromkeys([*health[1], *troubles(processes)]),
    )


def _processes(read: Overview) -> list[Process]:
    return [Process(**row) for row in read.found["processes"] or ()]


def risks(read: Overview) -> list[dict[str, Any]]:
    """Return money at risk: what it is, currency, number, amount, and since when; the worst first."""
    found, full = read.found, read.found["full"]
    rows = [
        _risk(row, f"Outcome of a {row['kind']} is not known yet", "decisions", full=full["moving"])
        for row in found["moving"] or ()
        if row["state"] in {"submitted", "unknown"}
    ]
    rows += [
        _risk(row, _QUESTIONS[row["code"]], f"orders?attention={row['code']}", full=full["attention"])
        for row in found["attention"] or ()
        if row["code"] in _QUESTIONS
    ]
    rows += [
        _risk(row, "Paid, and the shop is not told yet", "deliveries", full=full["unsent"])
        for row in found["untold"] or ()
    ]
    for (currency, age), (number, amount) in sorted(read.held.items()):
        row = {"currency": currency, "number": number, "amount": amount, "oldest": None}
        link = f"orders?state=completed&status=authorized&currency={currency}"
        usual = "may lapse soon" if age == store_overview.OLDEST else "usual before shipment"
        rows.append(_risk(row, f"Reserved and not captured, {age}: {usual}", link))
    return rows


def _risk(row: dict[str, Any], what: str, page: str, *, full: bool = False) -> dict[str, Any]:
    return {**row, "what": what, "link": f"/console/{page}", "full": full}


def gateways(processes: list[Process], now: datetime) -> list[dict[str, Any]]:
    """Return calls of the last minutes by gateway, over all workers that are alive; the worst first.

    They have the `share` of failed calls, the time `until` which calls are paused, and since when calls fail.
    """
    found: dict[str, dict[str, Any]] = {}
    for process in processes:
        for row in process.progress.get("gateways") or () if process.alive else ():
            new = {"name": row["gateway"], "calls": 0, "failed": 0, "seconds": 0.0, "left": 0.0}
            new |= {"open": False, "ago": 0.0, "reason": ""}
            sums = found.setdefault(row["gateway"], new)
            for name in ("calls", "failed", "seconds"):
                sums[name] += row[name]
            sums["open"] |= row.get("open", row["openFor"] > 0)
            sums["left"] = max(sums["left"], row["openFor"] - process.age)
            if (ago := row.get("failingFor", -process.age) + process.age) > sums["ago"]:
                sums["ago"], sums["reason"] = ago, row["reason"].rstrip(".")
    for sums in found.values():
        sums["share"] = sums["failed"] / sums["calls"] if sums["calls"] else 0.0
        few = sums["failed"] <= FEW and sums["failed"] < sums["calls"]
        sums["failing"] = sums["open"] or (sums["share"] > FAILING and not few)
        sums["until"] = now + timedelta(seconds=sums["left"]) if sums["left"] > 0 else None
        sums["since"] = now - timedelta(seconds=sums["ago"]) if sums["ago"] else None
    return sorted(found.values(), key=lambda row: (-row["left"], -row["failed"], row["name"]))


def waiting(read: Overview) -> int:
    """Return how many open checkouts wait because a call to their gateway failed or was not made."""
    return sum(row["number"] for row in read.found["errors"] or () if row["code"] in WAITS_FOR_GATEWAY)


def chart(rate: list[dict[str, Any]] | tuple[()]) -> list[dict[str, Any]]:
    """Return the bars of orders a minute, with what each says; at most `CHART_HEIGHT` high."""
    bars: list[dict[str, Any]] = []
    for row in rate:
        whole = row["number"] >= store_overview.SAMPLED and row["seconds"]
        minute = 60 * (row["number"] / row["seconds"] if whole else row["number"] / store_overview.BUCKET)
        bars.append({**row, "minute": minute})
    most = max((bar["minute"] for bar in bars), default=0) or 1
    width = CHART_WIDTH / max(len(bars), 1)
    for place, bar in enumerate(bars):
        bar["height"] = round(CHART_HEIGHT * bar["minute"] / most, 1)
        bar["x"], bar["width"] = round(place * width, 1), round(width - 4, 1)
    return bars


async def merchants(visit: Visit) -> Response:
    """List merchants by name."""
    fields = visit.query("after", "done")
    services = visit.services
    found = await merchant_records.page(
        visit.db, visit.encryptor, services.settings, after=fields.text("after"), limit=MERCHANTS + 1
    )
    by_gateway: dict[str, list[bool]] = {}
    for merchant in await services.merchants.everyone():
        by_gateway.setdefault(gateway_of(merchant.account.url), []).append(merchant.paused)
    read = await visit.console.live.overview()
    seen = {row["name"]: row for row in gateways(_processes(read), read.now)}
    shown = sorted((name, len(each), sum(each)) for name, each in by_gateway.items())[:MERCHANTS]
    done = fields.text("done")
    return pages.listing(
        visit, "merchants.html", found, MERCHANTS, key="name", gateways=shown, seen=seen, done=done
    )


async def switch_merchant(visit: Visit) -> Response:
    """Disable or enable a merchant, or pause or resume its gateway calls."""
    name, what = visit.request.path_params["name"], visit.form.values.get("what")
    if what not in SWITCHES:
        raise not_found("There is no such action.")
    reason = visit.form.reason_or_refuse()
    merchants = visit.services.merchants
    if what in {"pause", "resume"}:
        found = await merchants.pause(name, paused=what == "pause", actor=visit.actor)
    else:
        found = await merchants.disable(name, disabled=what == "disable", actor=visit.actor)
    if not found:
        raise not_found("There is no such merchant.")
    await visit.note(f"merchant:{what}", "accepted", subject=name, facts={"reason": reason})
    return RedirectResponse(f"/console/merchants?done={what}", 303)


async def switch_gateway(visit: Visit) -> Response:
    """Pause all merchants of a gateway, or resume all that are paused, one by one too; each is noted
    by itself.
    """
    gateway, what = visit.form.values.get("gateway"), visit.form.values.get("what")
    if what not in {"pause", "resume"}:
        raise not_found("There is no such action.")
    reason = visit.form.reason_or_refuse()
    merchants = visit.services.merchants
    of_it = [each for each in await merchants.everyone() if gateway_of(each.account.url) == gateway]
    if not gateway or not of_it:
        raise not_found("No merchant has this gateway.")
    pause = what == "pause"
    facts: dict[str, object] = {"reason": reason, "gateway": gateway}
    for merchant in of_it:
        if merchant.paused is not pause and await merchants.pause(
            merchant.name, paused=pause, actor=visit.actor
        ):
            await visit.note(f"merchant:{what}", "accepted", subject=merchant.name, facts=facts)
    return RedirectResponse(f"/console/merchants?done={what}", 303)


async def show(visit: Visit) -> Response:
    """Show processes, what is wrong with the installation, and seals of the trail."""
    visit.query()
    read = await visit.console.live.overview()
    broken, degraded = await visit.console.health(visit.request)
    return pages.render(
        visit,
        "system.html",
        read=read,
        processes=_processes(read),
        broken=broken,
        troubles=degraded,
        gateways=gateways(_processes(read), read.now),
        waiting=waiting(read),
        seals=await lists.seals(visit.db, limit=SEALS),
        streams=len(visit.console.live),
    )


async def actions(visit: Visit) -> Response:
    """List what users did, the youngest first."""
    before = visit.query("before").place("before")
    found = await trail.page(visit.db, visit.encryptor, before=before, limit=orders.PAGE + 1)
    return pages.listing(visit, "actions.html", found, orders.PAGE, first=before is None)


async def sessions(visit: Visit) -> Response:
    """List who is signed in: oneself, and everyone for a person who may end sessions; by name."""
    fields = visit.query("name", "after")
    everyone = visit.session.may(ADMIN)
    rows, edge = await store_sessions.listed(
        visit.db,
        visit.encryptor,
        actor=(fields.text("name") or "") if everyone else visit.session.actor,
        after=_session_key(fields.values.get("after", "")),
        everyone=everyone,
        limit=orders.PAGE,
    )
    return pages.render(visit, "sessions.html", rows=rows, edge=edge, everyone=everyone)


async def end_session(visit: Visit) -> Response:
    """End a session, or all sessions and links of a name: one's own, or anyone's for a person who may."""
    name = visit.form.text("name")
    key = _session_key(visit.form.values.get("session", ""))
    wanted = None if name is not None else await store_sessions.by_key(visit.db, visit.encryptor, key)
    actor = wanted.actor if wanted is not None else name
    if actor is None:
        raise not_found("There is no such session.")
    if actor != visit.session.actor:
        need(visit.session, ADMIN)
    number = 1
    if wanted is not None:
        await store_sessions.end(visit.db, key)
    else:
        number = await store_sessions.end_all(visit.db, actor)
    visit.console.sessions.forget()
    await visit.note("session:ended", "accepted", subject=actor, facts={"sessions": number})
    return RedirectResponse("/console/sessions", 303)


def _session_key(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise not_found("There is no such session.") from None
