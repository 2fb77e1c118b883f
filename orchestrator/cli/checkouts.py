"""Looking at checkouts and payments: straight from the database, for whoever operates the installation.

Nothing here shows a session token or a customer. What can be asked of a checkout stands in `commands` and `reconcile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli import commands
from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.lookup import matching, merchant_id, one, price, table
from orchestrator.cli.output import printer, say
from orchestrator.cli.reconcile import reconcile
from orchestrator.domain.payment_status import PaymentStatus, payment_status
from orchestrator.domain.states import State
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table
    from rich.text import Text

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

_HELD: Final = ("reserved", "captured", "refunded", "charged back")


@click.group(short_help="List, show, explain; cancel, capture, refund, reconcile …")
def checkouts() -> None:
    """List, show and explain checkouts, and ask for what is to be done with them."""


@checkouts.command("list")
@data_dir
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Only these; may be repeated.",
)
@click.option(
    "--payment-status",
    "statuses",
    multiple=True,
    type=click.Choice([status.value for status in PaymentStatus]),
    help="Only those of whose money this is held; may be repeated.",
)
@click.option("--order", metavar="NUMBER", help="Only this order number.")
@click.option("--merchant", metavar="NAME", help="Only this merchant's.")
@click.option("--attention", is_flag=True, help="Only those that a person must look at.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The youngest so many."
)
def list_checkouts(
    *,
    data_dir: Path,
    states: Sequence[State],
    statuses: Sequence[PaymentStatus],
    order: str | None,
    merchant: str | None,
    attention: bool,
    limit: int,
) -> int:
    """List checkouts, the youngest first."""

    async def show(_: Settings, db: Database) -> int:
        from rich.text import Text  # noqa: PLC0415 - each command imports what it needs

        from orchestrator.explain.timeline import STYLES  # noqa: PLC0415

        if merchant is not None:
            await merchant_id(db, merchant)
        wanted = matching(
            states=states, statuses=statuses, order=order, merchant=merchant, attention=attention
        )
        rows = await db.read(wanted.limit(limit + 1))
        shown = table("id", "order", "merchant", "state", "amount", "payment", "held", "created", "attention")
        for row in rows[:limit]:
            shown.add_row(
                str(row.id), row.order_ref, row.merchant, Text(row.state, style=STYLES[row.state]),
                price(row.amount, row.currency), _status(row), price(_held(row), row.currency),
                f"{row.created_at:%Y-%m-%d %H:%M:%S}", row.attention or "",
            )  # fmt: skip
        printer().print(shown)
        if len(rows) > limit:
            say(
                f"There are more than {limit}: ask for more with --limit, or for some with --state, --payment-status or --order.",
                err=True,
            )
        return 0

    return on_database(data_dir, show)


@checkouts.command(short_help="Show one checkout: state, money, and what happened.")
@data_dir
@click.argument("checkout")
def show(*, data_dir: Path, checkout: str) -> int:
    """Show one checkout (its id, or its order number): state, money, and what happened when."""

    async def tell(_: Settings, db: Database) -> int:
        import msgspec  # noqa: PLC0415

        from orchestrator.explain.timeline import timeline  # noqa: PLC0415

        row = await one(db, checkout)
        console = printer()
        console.print(_described(row))
        found = await db.read(_payments(), {"id": row.id})
        if found:
            shown = table("payment", "role", "status", "meaning", *_HELD)
            for payment in found:
                shown.add_row(
                    payment.transaction_id, payment.role, payment.status, payment.meaning, *_amounts(payment)
                )
            console.print()
            console.print(shown)
        operations = await db.read(_operations(), {"id": row.id})
        if operations:
            shown = table(
                "operation", "kind", "payment", "amount", "state", "cause", "requested", "settled", "error"
            )
            for operation in operations:
                shown.add_row(
                    str(operation.id), operation.kind, operation.transaction_id, price(operation.amount, operation.currency),
                    operation.state, operation.cause, f"{operation.requested_at:%H:%M:%S}",
                    f"{operation.settled_at:%H:%M:%S}" if operation.settled_at else "", operation.last_error or "",
                )  # fmt: skip
            console.print()
            console.print(shown)
        entries = await db.read(_entries(), {"id": row.id})
        console.print()
        for archived in await db.read(_archived(), {"id": row.id}):
            console.print(
                f"entries up to {archived.sequence} were archived at {archived.at:%Y-%m-%d %H:%M} UTC in {archived.file}"
            )
        console.print(timeline([msgspec.json.decode(entry.entry) for entry in entries]))
        return 0

    return on_database(data_dir, tell)


@checkouts.command(short_help="Explain one checkout: why it is where it is, and what comes next.")
@data_dir
@click.argument("checkout")
def explain(*, data_dir: Path, checkout: str) -> int:
    """Explain one checkout (its id, or its order number): why it is where it is, what comes next, and what you may do."""

    async def tell(settings: Settings, db: Database) -> int:
        from orchestrator import explain as explanation  # noqa: PLC0415

        row = await one(db, checkout)
        record = await explanation.gather(db, settings, row.id)
        assert record is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
        said = explanation.explain(record)
        say(said.summary)
        for title, sentences in (
            ("Because", said.because),
            ("Evidence", said.evidence),
            ("Next", (said.next.what,)),
            ("You may", said.you_may),
        ):
            if sentences:
                say()
                say(title)
            for sentence in sentences:
                say(f"  - {sentence}")
        return 0

    return on_database(data_dir, tell)


for _command in (*commands.COMMANDS, reconcile):
    checkouts.add_command(_command)


@click.group()
def payments() -> None:
    """What the gateway showed of payments."""


@payments.command("list")
@data_dir
@click.option(
    "--role",
    type=click.Choice(["accepted", "surplus", "attempt", "unknown"]),
    help="surplus and unknown: money that belongs to no order.",
)
@click.option("--order", metavar="NUMBER", help="Only this order number.")
@click.option("--merchant", metavar="NAME", help="Only this merchant's.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The youngest so many."
)
def list_payments(
    *, data_dir: Path, role: str | None, order: str | None, merchant: str | None, limit: int
) -> int:
    """List payments, the youngest first."""

    async def show(_: Settings, db: Database) -> int:
        number = None if merchant is None else await merchant_id(db, merchant)
        rows = await db.read(_payments_listed(role=role, order=order, merchant=number).limit(limit + 1))
        shown = table("payment", "merchant", "order", "checkout", "role", "status", *_HELD, "first seen")
        for row in rows[:limit]:
            shown.add_row(
                row.transaction_id, row.merchant, row.order_ref, str(row.checkout_id or ""), row.role, row.status,
                *_amounts(row), f"{row.first_seen_at:%Y-%m-%d %H:%M:%S}",
            )  # fmt: skip
        printer().print(shown)
        if len(rows) > limit:
            say(
                f"There are more than {limit}: ask for more with --limit, or for some with --role or --order.",
                err=True,
            )
        return 0

    return on_database(data_dir, show)


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _payments_listed(*, role: str | None, order: str | None, merchant: int | None) -> Any:
    from sqlalchemy import bindparam, select  # noqa: PLC0415

    from orchestrator.store.tables import merchants as m  # noqa: PLC0415
    from orchestrator.store.tables import payments as p  # noqa: PLC0415

    wanted = select(p, m.c.name.label("merchant")).join(m, m.c.id == p.c.merchant_id)
    if role is not None:
        # As a literal, in which the planner recognises the partial index.
        wanted = wanted.where(p.c.role == bindparam("role", role, literal_execute=True))
    if order is not None:
        wanted = wanted.where(p.c.order_ref == order)
    if merchant is not None:
        wanted = wanted.where(p.c.merchant_id == merchant)
    return wanted.order_by(p.c.first_seen_at.desc(), p.c.transaction_id.desc())


def _payments() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("SELECT * FROM payments WHERE checkout_id = :id ORDER BY first_seen_at, transaction_id")


def _operations() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("SELECT * FROM money_operations WHERE checkout_id = :id ORDER BY requested_at, id")


def _amounts(payment: Any) -> list[Text]:
    """Return a payment's amounts as cells; one that cannot be read stands as the gateway wrote it."""
    from rich.text import Text  # noqa: PLC0415

    from orchestrator.domain import money  # noqa: PLC0415

    def cell(name: str) -> Text:
        minor, raw = getattr(payment, name), payment.raw_amounts
        unread = raw is not None and name in raw
        return Text(
            money.as_stored(minor, payment.currency, name, raw) if unread else price(minor, payment.currency)
        )

    return [cell(name) for name in ("reserved", "captured", "refunded", "charged_back")]


def _status(row: Any) -> str:
    return payment_status(
        State(row.state), reserved=row.reserved, captured=row.captured, refunded=row.refunded,
        charged_back=row.charged_back,
    )  # fmt: skip


def _held(row: Any) -> int:
    """Return what is held of what pays a checkout, in minor units."""
    if row.captured > 0:
        return max(int(row.captured - row.refunded - row.charged_back), 0)
    return int(row.reserved)


def _entries() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("SELECT entry FROM audit_entries WHERE checkout_id = :id ORDER BY sequence")


def _archived() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("""
        SELECT h.sequence, a.at, a.file FROM archived_heads h JOIN archives a ON a.sequence = h.archive
         WHERE h.checkout_id = :id ORDER BY h.sequence
    """)


def _described(row: Any) -> Table:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from orchestrator.explain.timeline import STYLES  # noqa: PLC0415

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
    table.add_row("payment", f"{_status(row)} ({held})")
    for name, moment in (
        ("created", row.created_at),
        ("deadline", row.deadline),
        ("ended", row.ended_at),
        ("next lookup", row.due_at),
    ):
        if moment is not None:
            table.add_row(name, f"{moment:%Y-%m-%d %H:%M:%S} UTC")
    for name, sentence in (("attention", row.attention), ("last error", row.last_error)):
        if sentence:
            table.add_row(name, Text(neutralised(sentence), style="yellow"))
    return table
