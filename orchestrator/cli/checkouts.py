"""Commands that read one checkout, and the group that all commands about checkouts are in: straight from the
database, for operators.

Nothing here shows a session token or a customer. Lists are in `listings`; commands that change a checkout are
in `commands` and `reconcile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli import commands, imports
from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.documents import command_facts, facts_of, operation_facts
from orchestrator.cli.erasure import erase
from orchestrator.cli.listings import HELD, amounts_of, list_checkouts
from orchestrator.cli.lookup import find_checkout, find_correlated, price, table
from orchestrator.cli.output import json_option, printer, say, say_document
from orchestrator.cli.reconcile import reconcile
from orchestrator.cli.watching import watch
from orchestrator.domain import sentences
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CheckoutRecord


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
def show(  # noqa: C901 - a table for each kind of row
    *, data_dir: Path, checkout: str | None, correlation: str | None, as_json: bool
) -> int:
    """Show one checkout (its id, or its order number): state, money, and what happened when."""
    if (checkout is None) == (correlation is None):
        raise click.UsageError("give the id or the order number of a checkout, or --correlation")

    async def tell(settings: Settings, db: Database) -> int:
        import msgspec

        from orchestrator.crypto import Encryptor
        from orchestrator.explain.timeline import timeline
        from orchestrator.store import read_model
        from orchestrator.store.free_text import Reasons

        row = await find_checkout(db, checkout) if checkout else await find_correlated(db, str(correlation))
        if row is None:
            return 0
        reasons = await Reasons.of(db, Encryptor(settings.secret_keys), row.id)
        if as_json:
            say_document(
                {
                    **facts_of(row, row.merchant),
                    "erasedAt": row.erased_at,
                    "operations": [operation_facts(operation) for operation in row.operations],
                    "commands": [command_facts(command, reasons) for command in row.commands],
                }
            )
            return 0
        console = printer()
        console.print(_described(row))
        if row.payments:
            shown = table("payment", "role", "status", "meaning", *HELD)
            for payment in row.payments:
                shown.add_row(
                    payment.transaction_id,
                    payment.role,
                    payment.status,
                    payment.meaning,
                    *amounts_of(payment),
                )
            console.print()
            console.print(shown)
        if row.operations:
            shown = table(
                "operation", "kind", "payment", "amount", "state", "cause", "requested", "settled", "error"
            )
            for operation in row.operations:
                shown.add_row(
                    str(operation.id),
                    operation.kind,
                    operation.transaction_id,
                    price(operation.amount, operation.currency),
                    operation.state,
                    operation.cause,
                    f"{operation.requested_at:%H:%M:%S}",
                    f"{operation.settled_at:%H:%M:%S}" if operation.settled_at else "",
                    sentences.or_none(operation.last_error) or "",
                )
            console.print()
            console.print(shown)
        if row.commands:
            shown = table("command", "kind", "by", "requested", "handled", "result")
            for command in row.commands:
                shown.add_row(
                    str(command.id),
                    command.kind,
                    command.actor,
                    f"{command.requested_at:%H:%M:%S}",
                    f"{command.handled_at:%H:%M:%S}" if command.handled_at else "",
                    "" if command.result is None else command.result.code,
                )
            console.print()
            console.print(shown)
        entries, _archived = await read_model.trail(db, row.id) or ([], ())
        console.print()
        for archived in row.archived:
            console.print(
                f"entries up to {archived.until} were archived at {archived.at:%Y-%m-%d %H:%M} UTC in {archived.file}"
            )
        told = [msgspec.json.decode(entry.entry) for entry in entries]
        console.print(
            timeline([{**entry, "evidence": reasons.in_evidence(entry["evidence"])} for entry in told])
        )
        return 0

    return on_database(data_dir, tell)


@checkouts.command(short_help="Explain one checkout: why it is where it is, and what comes next.")
@data_dir
@click.argument("checkout")
@json_option
def explain(*, data_dir: Path, checkout: str, as_json: bool) -> int:
    """Explain one checkout (its id, or its order number): the reason for its state, what comes next, and what
    you may do.
    """

    async def tell(settings: Settings, db: Database) -> int:
        from orchestrator import explain as explanation

        row = await find_checkout(db, checkout)
        record = await explanation.gather(db, settings, row.id)
        assert record is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
        said = explanation.explain(record)
        if as_json:
            say_document(
                {
                    "summary": said.summary,
                    "because": said.because,
                    "evidence": said.evidence,
                    "next": {"what": said.next.what, "at": said.next.at},
                    "youMay": said.you_may,
                }
            )
            return 0
        say(said.summary)
        for title, lines in (
            ("Because", said.because),
            ("Evidence", said.evidence),
            ("Next", (said.next.what,)),
            ("You may", said.you_may),
        ):
            if lines:
                say()
                say(title)
            for line in lines:
                say(f"  - {line}")
        return 0

    return on_database(data_dir, tell)


for _command in (list_checkouts, watch, *commands.COMMANDS, reconcile, imports.import_orders, erase):
    checkouts.add_command(_command)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────


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
        f"{name.replace('_', ' ')} {price(getattr(row, name), row.currency)}"
        for name in ("reserved", "captured", "refunded", "charged_back")
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
