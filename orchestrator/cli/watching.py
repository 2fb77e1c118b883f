"""`checkouts watch`: a line for each change of one checkout, until it has ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.documents import facts_of
from orchestrator.cli.lookup import find_checkout, price
from orchestrator.cli.output import json_option, say, say_document
from orchestrator.domain import sentences
from orchestrator.domain.states import ENDED

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CheckoutSummary

INTERVAL: Final = 0.25
"""Seconds between two reads of the row."""
_HELD: Final = (
    ("reserved", "reserved"),
    ("captured", "captured"),
    ("refunded", "refunded"),
    ("charged_back", "charged back"),
)


@click.command(short_help="Print each change of one checkout, until it has ended.")
@data_dir
@click.argument("checkout")
@click.option("--keep", is_flag=True, help="Go on when it has ended: late money, refunds, chargebacks.")
@json_option
def watch(*, data_dir: Path, checkout: str, keep: bool, as_json: bool) -> int:
    """Print how one checkout (its id, or its order number) stands, and a line for each change of state, money
    or attention, until it has ended.
    """

    async def follow(_: Settings, db: Database) -> int:
        from orchestrator.store import read_model

        found = await find_checkout(db, checkout)
        if not as_json:
            say(f"Checkout {found.id}, order {found.order_ref} of {found.merchant}")
        seen: tuple[object, ...] | None = None
        version = 0
        while True:
            (row,) = await read_model.checkouts(db, among=read_model.Among(ids=(found.id,)), limit=1)
            shown = _shown(row)
            if row.version != version and shown != seen:
                if as_json:
                    say_document({**facts_of(row, found.merchant), "updatedAt": row.updated_at})
                else:
                    say(_line(row))
            seen, version = shown, row.version
            if row.state in ENDED and not keep:
                return 0
            await asyncio.sleep(INTERVAL)

    return on_database(data_dir, follow)


def _shown(row: CheckoutSummary) -> tuple[object, ...]:
    """Return what a line says, so that nothing is printed twice."""
    attention, error = row.attention, row.last_error
    return (
        row.state,
        row.late,
        row.amount,
        *(getattr(row, name) for name, _ in _HELD),
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
            for name, words in _HELD
            if getattr(row, name)
        ),
    ]
    if row.attention is not None:
        said.append(f"needs a decision: {sentences.of(row.attention)} ({row.attention.code})")
    if row.last_error is not None:
        said.append(f"last error: {sentences.of(row.last_error)}")
    return "  ".join(filter(None, said))
