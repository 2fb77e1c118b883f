"""Commands that read one checkout, and the group that all commands about checkouts are in: straight from the
database, for operators.

Nothing here shows a session token or a customer. Lists are in `listings`; commands that change a checkout are
in `commands` and `reconcile`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli import commands, imports
from orchestrator.cli.attached import Installation, as_typed, data_dir, database_command, on_database
from orchestrator.cli.documents import command_facts, facts_of, operation_facts
from orchestrator.cli.erasure import erase
from orchestrator.cli.listings import HELD, amounts_of, list_checkouts
from orchestrator.cli.lookup import find_checkout, find_correlated, price, table
from orchestrator.cli.output import flag, json_option, printer, say, say_document
from orchestrator.cli.reconcile import reconcile
from orchestrator.domain import sentences
from orchestrator.domain.states import ENDED
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from rich.table import Table

    from orchestrator.store.read_model import CheckoutRecord, CheckoutSummary

INTERVAL: Final = 0.25
"""Seconds between two reads of the row that is watched."""


@click.group(short_help="List, show, explain, watch; change, cancel, capture, refund, reconcile …")
def checkouts() -> None:
    """List, show, explain and watch checkouts, and ask for what is to be done with them."""


@checkouts.command(short_help="Show one checkout: state, money, and what happened.")
@data_dir
@click.argument("checkout", required=False)
@click.option(
    "--correlation",
    metavar="ID",
    help="The checkout of the request with this X-Correlation-Id; of several, a list.",
)
@json_option
def show(*, data_dir: Path, checkout: str | None, correlation: str | None, as_json: bool) -> int:
    """Show one checkout (its id, or its order number): state, money, and what happened when."""
    if (checkout is None) == (correlation is None):
        raise click.UsageError("give the id or the order number of a checkout, or --correlation")

    async def tell(here: Installation) -> None:
        import msgspec

        from orchestrator.explain.timeline import timeline
        from orchestrator.store import read_model
        from orchestrator.store.free_text import Reasons

        row = (
            await find_correlated(here.db, str(correlation))
            if checkout is None
            else await find_checkout(here.db, checkout)
        )
        if row is None:
            return
        reasons = await Reasons.of(here.db, here.encryptor, row.id)
        if as_json:
            say_document(
                {
                    **facts_of(row, row.merchant),
                    "erasedAt": row.erased_at,
                    "operations": [operation_facts(operation) for operation in row.operations],
                    "commands": [command_facts(command, reasons) for command in row.commands],
                }
            )
            return
        console = printer()
        console.print(_described(row))
        for shown in _tables(row):
            if shown.row_count:
                console.print()
                console.print(shown)
        entries, _archived = await read_model.trail(here.db, row.id) or ([], ())
        console.print()
        for archived in row.archived:
            console.print(
                f"entries up to {archived.until} were archived at {archived.at:%Y-%m-%d %H:%M} UTC in {archived.file}"
            )
        told = [msgspec.json.decode(entry.entry) for entry in entries]
        console.print(
            timeline([{**entry, "evidence": reasons.in_evidence(entry["evidence"])} for entry in told])
        )

    return on_database(data_dir, tell)


@checkouts.command(short_help="Explain one checkout: why it is where it is, and what comes next.")
@data_dir
@click.argument("checkout")
@json_option
def explain(*, data_dir: Path, checkout: str, as_json: bool) -> int:
    """Explain one checkout (its id, or its order number): the reason for its state, what comes next, and what
    you may do.
    """

    async def tell(here: Installation) -> None:
        from orchestrator import explain as explanation

        row = await find_checkout(here.db, checkout)
        record = await explanation.gather(here.db, here.settings, row.id)
        assert record is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
        said = explanation.explain(record)
        you_may = [as_typed(line, data_dir) for line in said.you_may]
        if as_json:
            say_document(
                {
                    "summary": said.summary,
                    "because": said.because,
                    "evidence": said.evidence,
                    "next": {"what": said.next.what, "at": said.next.at},
                    "youMay": you_may,
                }
            )
            return
        say(said.summary)
        for title, lines in (
            ("Because", said.because),
            ("Evidence", said.evidence),
            ("Next", (said.next.what,)),
            ("You may", you_may),
        ):
            if lines:
                say()
                say(title)
            for line in lines:
                say(f"  - {line}")
        say()
        say(
            "For the audit trail add `--as NAME` and, except to `reconcile`, `--reason TEXT`: who decides, and why."
        )

    return on_database(data_dir, tell)


@checkouts.command(short_help="Print each change of one checkout, until it has ended.")
@database_command
@click.argument("checkout")
@flag("--keep", told="Go on when it has ended: late money, refunds, chargebacks.")
@json_option
async def watch(here: Installation, *, checkout: str, keep: bool, as_json: bool) -> None:
    """Print how one checkout (its id, or its order number) stands, and a line for each change of state, money
    or attention, until it has ended.
    """
    from orchestrator.store import read_model

    found = await find_checkout(here.db, checkout)
    if not as_json:
        say(f"Checkout {found.id}, order {found.order_ref} of {found.merchant}")
    seen: tuple[object, ...] | None = None
    version = 0
    while True:
        (row,) = await read_model.checkouts(here.db, among=read_model.Among(ids=(found.id,)), limit=1)
        shown = _shown(row)
        if row.version != version and shown != seen:
            if as_json:
                say_document({**facts_of(row, found.merchant), "updatedAt": row.updated_at})
            else:
                say(_line(row))
        seen, version = shown, row.version
        if row.state in ENDED and not keep:
            return
        await asyncio.sleep(INTERVAL)


for _command in (list_checkouts, *commands.COMMANDS, reconcile, imports.import_orders, erase):
    checkouts.add_command(_command)


def _tables(row: CheckoutRecord) -> tuple[Table, ...]:
    """Return its payments, operations and commands."""
    payments = table("payment", "role", "status", "meaning", *HELD.values())
    for payment in row.payments:
        payments.add_row(
            payment.transaction_id, payment.role, payment.status, payment.meaning, *amounts_of(payment)
        )
    operations = table(
        "operation", "kind", "payment", "amount", "state", "cause", "requested", "settled", "error"
    )
    for operation in row.operations:
        operations.add_row(
            str(operation.id),
            operation.kind,
            operation.transaction_id,
            price(operation.amount, operation.currency),
            operation.state,
            operation.cause,
            _clock(operation.requested_at),
            _clock(operation.settled_at),
            sentences.or_none(operation.last_error),
        )
    asked = table("command", "kind", "by", "requested", "handled", "result")
    for command in row.commands:
        asked.add_row(
            str(command.id),
            command.kind,
            command.actor,
            _clock(command.requested_at),
            _clock(command.handled_at),
            None if command.result is None else command.result.code,
        )
    return payments, operations, asked


def _clock(at: datetime | None) -> str:
    return "" if at is None else f"{at:%H:%M:%S}"


def _described(row: CheckoutRecord) -> Table:
    from rich.table import Table
    from rich.text import Text

    from orchestrator.explain.timeline import STYLES

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("checkout", str(row.id))
    table.add_row("order", f"{row.order_ref} of {row.merchant}")
    table.add_row("state", Text(f"{row.state}{' (late)' if row.late else ''}", style=STYLES[row.state]))
    table.add_row("amount", price(row.amount, row.currency))
    held = ", ".join(
        f"{words} {price(getattr(row, name), row.currency)}"
        for name, words in HELD.items()
        if name != "charged_back" or row.charged_back
    )
    table.add_row("payment", f"{row.payment_status} ({held})")
    for name, moment in (
        ("created", row.created_at),
        ("deadline", row.deadline),
        ("ended", row.ended_at),
        ("next lookup", row.due_at),
        ("erased", row.erased_at),
    ):
        if moment is not None:
            table.add_row(name, f"{moment:%Y-%m-%d %H:%M:%S} UTC")
    asked = row.attention
    since = "" if row.attention_since is None else f", since {row.attention_since:%Y-%m-%d %H:%M:%S} UTC"
    for name, said in (
        ("attention", None if asked is None else f"{sentences.of(asked)} ({asked.code}{since})"),
        ("last error", sentences.or_none(row.last_error)),
    ):
        if said:
            table.add_row(name, Text(neutralised(said), style="yellow"))
    return table


def _shown(row: CheckoutSummary) -> tuple[object, ...]:
    """Return what a line says, so that nothing is printed twice."""
    attention, error = row.attention, row.last_error
    return (
        row.state,
        row.late,
        row.amount,
        *(getattr(row, name) for name in HELD),
        None if attention is None else (attention.code, attention.payments),
        None if error is None else error.code,
    )


def _line(row: CheckoutSummary) -> str:
    said = [
        f"{row.updated_at or row.created_at:%Y-%m-%d %H:%M:%S}",
        f"{row.state}{' (late)' if row.late else ''}",
        str(row.payment_status),
        ", ".join(
            f"{words} {price(getattr(row, name), row.currency)}"
            for name, words in HELD.items()
            if getattr(row, name)
        ),
    ]
    if row.attention is not None:
        said.append(f"needs a decision: {sentences.of(row.attention)} ({row.attention.code})")
    if row.last_error is not None:
        said.append(f"last error: {sentences.of(row.last_error)}")
    return "  ".join(filter(None, said))
