"""The demo's display: orders by state while they move, and at the end a summary, the slowest order, and where
to look further.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.devkit.demo.scripts import scripts_of
from orchestrator.devkit.local.terminal import bars, program
from orchestrator.domain import money
from orchestrator.domain.states import State
from orchestrator.explain.timeline import STYLES, timeline

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from orchestrator.devkit.demo.evidence import Balance
    from orchestrator.devkit.demo.runner import Outcome
    from orchestrator.devkit.local.up import Up

_WIDE: Final = 108


def shared_state(states: Mapping[str, int], outcomes: Sequence[Outcome], *, seconds: float) -> RenderableType:
    """Draw the orders by state, with how far the demo is."""
    count = len(outcomes)
    coming = ("still to come", count - sum(states.values()), "dim")
    table = bars([coming, *((s.value, states.get(s, 0), STYLES[s]) for s in State)], most=count)
    over = sum(outcome.over for outcome in outcomes)
    bad = sum(outcome.over and not outcome.scripted for outcome in outcomes)
    line = Text.assemble(
        ("\n  ", ""),
        (f"{over}", "bold"),
        (f" of {count} orders ended", ""),
        (f", {bad} not as scripted" if bad else "", "bold red"),
        (f"   {seconds:.0f} s", "dim"),
    )
    return Group(Text(), table, line, Text())


def line(states: Mapping[str, int], outcomes: Sequence[Outcome], *, seconds: float) -> str:
    """Return the same in one line, for a terminal that cannot be redrawn."""
    over = sum(outcome.over for outcome in outcomes)
    counts = ", ".join(f"{states[state]} {state}" for state in State if states.get(state))
    return f"{seconds:4.0f} s  {over} of {len(outcomes)} orders ended: {counts or 'none has arrived'}"


def summary(outcomes: Sequence[Outcome], *, width: int) -> Table:
    """Draw how each script's orders ended and how long they took; what it says where there is room."""
    wide = width >= _WIDE
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("script", no_wrap=True)
    if wide:
        table.add_column("the shopper …")
    table.add_column("ends", no_wrap=True)
    table.add_column("as scripted", justify="right", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    for script in scripts_of("all"):
        mine = [outcome for outcome in outcomes if outcome.order.script is script]
        if mine:
            good = sum(outcome.scripted for outcome in mine)
            mark, style = ("✓", "green") if good == len(mine) else ("✗", "bold red")
            times = [outcome.seconds for outcome in mine if outcome.seconds is not None]
            table.add_row(
                Text(script.name, style="bold"),
                *([script.says] if wide else []),
                Text(script.ends, style=STYLES[script.ends]),
                Text(f"{good} of {len(mine)} {mark}", style=style),
                f"{statistics.median(times):.1f} s" if times else "",
            )
    return table


def failures(outcomes: Sequence[Outcome]) -> list[Text]:
    """Return a line for each order that did not end as scripted."""
    return [
        Text(f"  ✗ {outcome.order.id} ({outcome.order.script.name}): {outcome.problem}", style="red")
        for outcome in outcomes
        if not outcome.scripted
    ]


def totals(outcomes: Sequence[Outcome]) -> Text:
    """Say what the gateway and we hold, currency by currency."""
    reserved: Counter[str] = Counter()
    captured: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome.observed is not None:
            ours = outcome.observed.held_by_us
            reserved[outcome.order.currency] += ours[0]
            captured[outcome.order.currency] += ours[1]
    sums = ", ".join(
        f"{money.to_decimal(minor, currency):,} {currency} ({money.to_decimal(captured[currency], currency):,} captured)"
        for currency, minor in sorted(reserved.items())
        if minor
    )
    return Text(f"Held at the gateway and in our books alike: {sums or 'nothing'}")


def balances(found: Sequence[Balance]) -> list[Text]:
    """Say currency by currency what the gateway's ledger and our books hold of this run."""
    lines = [Text("Money of all orders, reserved/captured/refunded:", style="bold")]
    for balance in found:
        ledger, books = (
            " / ".join(f"{money.to_decimal(minor, balance.currency):,}" for minor in side)
            for side in (balance.ledger, balance.books)
        )
        sign = ("✓", "green") if balance.agrees else ("✗", "bold red")
        lines.append(
            Text.assemble(
                f"  {balance.currency}  ", ("ledger ", "dim"), ledger, ("   books ", "dim"), books, "  ", sign
            )
        )
    return lines


def explained(outcomes: Sequence[Outcome]) -> RenderableType | None:
    """Explain one order in sentences: one that came late, and on which the orchestrator acted."""
    known = [outcome.observed for outcome in outcomes if outcome.observed and outcome.observed.explained]
    if not known:
        return None
    observed = max(
        known, key=lambda each: (each.checkout.late, len(each.checkout.operations), -len(each.trail))
    )
    title = Text.assemble(("One order explained: ", "bold"), observed.checkout.order_id)
    return Group(title, *(Padding(Text(sentence), (0, 0, 0, 2)) for sentence in observed.sentences))


def slowest(outcomes: Sequence[Outcome]) -> RenderableType | None:
    """Draw the story of the order that took longest, from its audit trail."""
    known = [outcome for outcome in outcomes if outcome.observed is not None and outcome.seconds is not None]
    if not known:
        return None
    slow = max(known, key=lambda outcome: outcome.seconds or 0.0)
    assert slow.observed is not None  # noqa: S101 - chosen above
    title = Text.assemble(
        ("The slowest order: ", "bold"), f"{slow.order.id} ({slow.order.script.says}), {slow.seconds:.1f} s"
    )
    return Group(title, timeline([msgspec.to_builtins(entry) for entry in slow.observed.trail]))


def places(up: Up, gateway: str, sample: Outcome | None, *, stay: bool) -> list[tuple[str, str]]:
    """Return where to look further: addresses only where a server still answers after the demo."""
    option = up.data_dir_option(".orchestrator")
    rows = [("API", f"{up.url}/docs")] if stay else []
    if sample is not None and stay:
        rows.append(("Money of one order", up.ledger_url(gateway, orderId=sample.order.id)))
    if not up.options.ephemeral:
        if sample is not None:
            rows.append(("Story of one order", f"{program()} checkouts show {sample.order.id}{option}"))
        rows.append(("All orders", f"{program()} checkouts list{option}"))
        rows.append(("The audit trail", f"{program()} audit verify{option}"))
    return rows
