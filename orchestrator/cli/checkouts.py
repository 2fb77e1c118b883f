"""Looking at checkouts and events, and cancelling: straight from the database, for whoever operates the installation.

Nothing here shows a session token or a customer; a cancel is a command that a worker obeys, as from the API.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import click

from orchestrator.cli.attached import data_dir, on_database, printer
from orchestrator.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table

    from orchestrator.db import Database
    from orchestrator.settings import Settings

ACTOR: Final = "operator:command-line"
_SAID: Final = frozenset({"checkoutId", "currency"})
"""Of an event's payload, what its line says already."""


@click.group()
def checkouts() -> None:
    """List, show and cancel checkouts."""


@checkouts.command("list")
@data_dir
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    help="Only these; may be repeated.",
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
    order: str | None,
    merchant: str | None,
    attention: bool,
    limit: int,
) -> int:
    """List checkouts, the youngest first."""

    async def show(_: Settings, db: Database) -> int:
        from rich.text import Text  # noqa: PLC0415 - each command imports what it needs

        from orchestrator.demo.timeline import STYLES  # noqa: PLC0415

        if merchant is not None:
            await _known_merchant(db, merchant)
        wanted = _matching(states=states, order=order, merchant=merchant, attention=attention)
        rows = await db.read(wanted.limit(limit + 1))
        table = _table("id", "order", "merchant", "state", "amount", "held", "created", "attention")
        for row in rows[:limit]:
            table.add_row(
                str(row.id), row.order_ref, row.merchant, Text(row.state, style=STYLES[row.state]),
                _money(row.amount, row.currency), _money(max(row.reserved, row.captured) - row.refunded, row.currency),
                f"{row.created_at:%Y-%m-%d %H:%M:%S}", row.attention or "",
            )  # fmt: skip
        printer().print(table)
        if len(rows) > limit:
            click.echo(
                f"There are more than {limit}: ask for more with --limit, or for some with --state or --order.",
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

        from orchestrator.demo.timeline import timeline  # noqa: PLC0415

        row = await _one(db, checkout)
        console = printer()
        console.print(_described(row))
        payments = await db.read(_payments(), {"id": row.id})
        if payments:
            table = _table("payment", "role", "status", "reading", "reserved", "captured", "refunded")
            for one in payments:
                amounts = (
                    _money(minor, one.currency) for minor in (one.reserved, one.captured, one.refunded)
                )
                table.add_row(one.transaction_id, one.role, one.status, one.reading, *amounts)
            console.print()
            console.print(table)
        entries = await db.read(_entries(), {"id": row.id})
        console.print()
        console.print(timeline([msgspec.json.decode(entry.entry) for entry in entries]))
        return 0

    return on_database(data_dir, tell)


@checkouts.command(short_help="Cancel one checkout, unless its money is there already.")
@data_dir
@click.argument("checkout")
@click.option("--reason", help="Why; stands in the audit trail.")
def cancel(*, data_dir: Path, checkout: str, reason: str | None) -> int:
    """Cancel one checkout (its id, or its order number), unless its money is there already."""

    async def ask(settings: Settings, db: Database) -> int:
        from orchestrator import inbox  # noqa: PLC0415
        from orchestrator.states import ENDED  # noqa: PLC0415

        row = await _one(db, checkout)
        if State(row.state) in ENDED:
            raise click.UsageError(f"checkout {row.id} is {row.state} already: there is nothing to cancel")
        await inbox.request(
            db, row.id, merchant_id=row.merchant_id, kind="cancel", actor=ACTOR, reason=reason, grace=0.0
        )
        click.echo(
            f"Asked for: checkout {row.id} is cancelled after a grace of {settings.cancel_grace:g} s, if no payment is found by then."
        )
        return 0

    return on_database(data_dir, ask)


@click.group()
def events() -> None:
    """What merchants are told."""


@events.command("list")
@data_dir
@click.option("--after", metavar="ID", help="Only events of checkouts younger than this one.")
@click.option("--checkout", metavar="ID", help="Only this checkout's (id or order number).")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
def list_events(*, data_dir: Path, after: str | None, checkout: str | None, limit: int) -> int:
    """List events by checkout, in the order in which they happened to it."""
    since = None if after is None else _uuid(after)
    if after is not None and since is None:
        raise click.UsageError(f"--after must be the id of a checkout, not {after!r}")

    async def show(_: Settings, db: Database) -> int:
        from orchestrator.demo.timeline import told  # noqa: PLC0415

        only = None if checkout is None else (await _one(db, checkout)).id
        rows = await db.read(_events(), {"after": since or UUID(int=0), "only": only, "most": limit})
        table = _table("at", "checkout", "#", "event", "payload")
        for row in rows:
            facts = " ".join(
                f"{name}={told(name, value, row.currency)}"
                for name, value in row.payload.items()
                if value is not None and name not in _SAID
            )
            table.add_row(
                f"{row.created_at:%H:%M:%S.%f}"[:-3], str(row.checkout_id), str(row.sequence), row.kind, facts
            )
        printer().print(table)
        return 0

    return on_database(data_dir, show)


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _matching(*, states: Sequence[State], order: str | None, merchant: str | None, attention: bool) -> Any:
    from sqlalchemy import select  # noqa: PLC0415

    from orchestrator.models import checkouts as c  # noqa: PLC0415
    from orchestrator.models import merchants as m  # noqa: PLC0415

    wanted = select(c, m.c.name.label("merchant")).join(m, m.c.id == c.c.merchant_id).order_by(c.c.id.desc())
    if states:
        wanted = wanted.where(c.c.state.in_([State(state).value for state in states]))
    if order is not None:
        wanted = wanted.where(c.c.order_ref == order)
    if merchant is not None:
        wanted = wanted.where(m.c.name == merchant)
    return wanted.where(c.c.attention.is_not(None)) if attention else wanted


async def _known_merchant(db: Database, name: str) -> None:
    from sqlalchemy import text  # noqa: PLC0415

    if not await db.read(text("SELECT 1 FROM merchants WHERE name = :name"), {"name": name}):
        raise click.UsageError(f"there is no merchant {name!r}: `orchestrator merchants list` shows them all")


async def _one(db: Database, wanted: str) -> Any:
    """Return the checkout with this id, or the youngest with this order number."""
    from orchestrator.models import checkouts as c  # noqa: PLC0415

    found = _matching(states=(), order=None, merchant=None, attention=False)
    number = _uuid(wanted)
    rows = await db.read(
        found.where(c.c.id == number) if number else found.where(c.c.order_ref == wanted).limit(1)
    )
    if not rows:
        raise click.UsageError(f"there is no checkout with the id or order number {wanted!r}")
    return rows[0]


def _payments() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("SELECT * FROM payments WHERE checkout_id = :id ORDER BY first_seen_at, transaction_id")


def _entries() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("SELECT entry FROM audit_entries WHERE checkout_id = :id ORDER BY sequence")


def _events() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("""
        SELECT e.checkout_id, e.sequence, e.kind, e.payload, e.created_at, c.currency
          FROM events e JOIN checkouts c ON c.id = e.checkout_id
         WHERE e.checkout_id > :after AND (CAST(:only AS uuid) IS NULL OR e.checkout_id = :only)
         ORDER BY e.checkout_id, e.sequence LIMIT :most
    """)


def _described(row: Any) -> Table:
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from orchestrator.demo.timeline import STYLES  # noqa: PLC0415

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("checkout", str(row.id))
    table.add_row("order", f"{row.order_ref} of {row.merchant}")
    table.add_row("state", Text(f"{row.state}{' (late)' if row.late else ''}", style=STYLES[row.state]))
    table.add_row("amount", _money(row.amount, row.currency))
    held = ", ".join(
        f"{name} {_money(getattr(row, name), row.currency)}" for name in ("reserved", "captured", "refunded")
    )
    table.add_row("money", held)
    for name, moment in (
        ("created", row.created_at),
        ("deadline", row.deadline),
        ("ended", row.ended_at),
        ("next look", row.due_at),
    ):
        if moment is not None:
            table.add_row(name, f"{moment:%Y-%m-%d %H:%M:%S} UTC")
    for name, sentence in (("attention", row.attention), ("last error", row.last_error)):
        if sentence:
            table.add_row(name, Text(sentence, style="yellow"))
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for column in columns:
        amounts = column in {"amount", "held", "reserved", "captured", "refunded"}
        # An id that is folded cannot be copied.
        table.add_column(
            column,
            justify="right" if amounts else "left",
            no_wrap=column in {"id", "checkout", "at", "event", "#"},
            overflow="fold",
        )
    return table


def _money(minor: int, currency: str) -> str:
    from orchestrator import money  # noqa: PLC0415

    return f"{money.to_decimal(minor, currency):,} {currency}"


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
