"""Lists of checkouts and payments, straight from the database, for operators.

Filters are those of the API's search, and what an operator is asked about: a transaction, a period, an
amount. Each is answered by an index; an amount has none, and is looked for within a period, an order or a
transaction.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.documents import facts_of, payment_facts
from orchestrator.cli.lookup import (
    ID_SLACK,
    SpanOrMoment,
    first_id,
    merchant_id,
    merchant_names,
    price,
    table,
)
from orchestrator.cli.output import json_option, say_document, say_more, say_table
from orchestrator.domain import money, sentences
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.records import Role, still_held
from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from rich.table import Table
    from rich.text import Text

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.read_model import Among, CheckoutSummary

NOTHING_WAITS: Final = "Nothing waits for a decision."
HELD: Final = ("reserved", "captured", "refunded", "charged back")
_ANY: Final = "any"

_order = click.option("--order", metavar="NUMBER", help="Only this order number.")
_merchant = click.option("--merchant", metavar="NAME", help="Only this merchant's.")
_limit = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The youngest so many."
)


class _Amount(click.ParamType[tuple[int, str]]):
    """An amount with its currency, such as "139.00 DKK"."""

    name = "amount"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, str]:
        if isinstance(value, tuple):
            return value
        amount, _, currency = str(value).strip().rpartition(" ")
        try:
            return money.to_minor(amount.strip(), currency.upper()), currency.upper()
        except money.MoneyError as error:
            self.fail(f'{error}: give an amount with its currency, such as "139.00 DKK"', param, ctx)


@click.command("list")
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
@_order
@click.option("--transaction", metavar="NUMBER", help="Only those with this transaction of the gateway.")
@_merchant
@click.option(
    "--attention",
    is_flag=False,
    flag_value=_ANY,
    type=click.Choice([_ANY, *(code.value for code in AttentionCode)]),
    metavar="[CODE]",
    help="Only those that need a decision, or that need one for this reason.",
)
@click.option(
    "--since", type=SpanOrMoment(), metavar="TIME", help="Created within 24h, 7d …, or since 2026-01-31."
)
@click.option("--until", type=SpanOrMoment(), metavar="TIME", help="Created before that; as --since.")
@click.option(
    "--amount",
    type=_Amount(),
    metavar="AMOUNT",
    help='Only orders of exactly this amount, such as "139.00 DKK"; with --since, --order or --transaction.',
)
@click.option("--before", type=click.UUID, metavar="ID", help="Go on after the last id of the list before.")
@_limit
@json_option
def list_checkouts(*, data_dir: Path, limit: int, as_json: bool, **given: Any) -> int:
    """List checkouts, the youngest first."""
    bounded = any(given[name] is not None for name in ("since", "order", "transaction"))
    if given["amount"] is not None and not bounded:
        raise click.UsageError("--amount goes with --since, --order or --transaction: no index has amounts")

    async def show(_: Settings, db: Database) -> int:
        names = await merchant_names(db)
        rows = await _found(db, limit=limit + 1, **given)
        if len(rows) > limit:
            say_more(
                limit,
                f"ask for more with --limit, for the next with --before {rows[limit - 1].id}, "
                "or for some with --state, "
                "--payment-status or --order",
            )
        if as_json:
            say_document([facts_of(row, names[row.merchant_id]) for row in rows[:limit]])
            return 0
        decisions = given["attention"] == _ANY and not any(
            given[name] for name in given.keys() - {"attention"}
        )
        empty = NOTHING_WAITS if decisions else "No checkout matches."
        say_table(_drawn(rows[:limit], names), empty=empty)
        return 0

    return on_database(data_dir, show)


async def _found(
    db: Database,
    *,
    states: Sequence[str],
    statuses: Sequence[str],
    order: str | None,
    merchant: str | None,
    attention: str | None,
    before: UUID | None,
    limit: int,
    **among: Any,
) -> list[CheckoutSummary]:
    from orchestrator.store import read_model

    number = None if merchant is None else await merchant_id(db, merchant)
    chosen, latest = await _among(db, **among)
    return await read_model.checkouts(
        db,
        merchant_id=number,
        order_ref=order,
        states=[State(state) for state in states],
        statuses=[PaymentStatus(status) for status in statuses],
        waiting=AttentionCode(attention)
        if attention not in {None, _ANY}
        else (attention is not None or None),
        before=min((one for one in (before, latest) if one is not None), default=None),
        among=chosen,
        limit=limit,
    )


async def _among(
    db: Database,
    *,
    transaction: str | None,
    since: float | datetime | None,
    until: float | datetime | None,
    amount: tuple[int, str] | None,
) -> tuple[Among, UUID | None]:
    """Return what else is chosen by, and an id above those of the period."""
    from sqlalchemy import text

    from orchestrator.store import read_model

    (row,) = await db.read(text("SELECT clock() AS clock, now() AS now"))

    def moment(given: float | datetime | None) -> datetime | None:
        return row.clock - timedelta(seconds=given) if isinstance(given, float) else given

    def id_at(at: datetime, slack: float) -> UUID:
        return first_id(row.now, (row.clock - at).total_seconds() + slack)

    first, end = moment(since), moment(until)
    among = read_model.Among(
        ids=None if transaction is None else await read_model.of_transaction(db, transaction),
        after=None if first is None else id_at(first, ID_SLACK),
        since=first,
        until=end,
        amount=amount,
    )
    return among, None if end is None else id_at(end, -ID_SLACK)


def _drawn(rows: Sequence[CheckoutSummary], names: dict[int, str]) -> Table:
    from rich.text import Text

    from orchestrator.explain.timeline import STYLES

    shown = table("id", "order", "merchant", "state", "amount", "payment", "held", "created", "attention")
    for row in rows:
        shown.add_row(
            str(row.id),
            row.order_ref,
            names[row.merchant_id],
            Text(row.state, style=STYLES[row.state]),
            price(row.amount, row.currency),
            row.payment_status,
            price(still_held(row), row.currency),
            f"{row.created_at:%Y-%m-%d %H:%M:%S}",
            sentences.or_none(row.attention) or "",
        )
    return shown


@click.group()
def payments() -> None:
    """What the gateway showed of payments."""


@payments.command("list")
@data_dir
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    help="surplus and unknown: money that belongs to no order.",
)
@_order
@_merchant
@_limit
@json_option
def list_payments(
    *, data_dir: Path, role: str | None, order: str | None, merchant: str | None, limit: int, as_json: bool
) -> int:
    """List payments, the youngest first."""

    async def show(_: Settings, db: Database) -> int:
        from orchestrator.store import read_model

        number = None if merchant is None else await merchant_id(db, merchant)
        names = await merchant_names(db)
        rows = await read_model.payments(
            db,
            merchant_id=number,
            role=None if role is None else Role(role),
            order_ref=order,
            limit=limit + 1,
        )
        if len(rows) > limit:
            say_more(limit, "ask for more with --limit, or for some with --role or --order")
        if as_json:
            say_document([payment_facts(row, names[row.merchant_id]) for row in rows[:limit]])
            return 0
        shown = table("payment", "merchant", "order", "checkout", "role", "status", *HELD, "first seen")
        for row in rows[:limit]:
            shown.add_row(
                row.transaction_id,
                names[row.merchant_id],
                row.order_ref,
                str(row.checkout_id or ""),
                row.role,
                row.status,
                *amounts_of(row),
                f"{row.first_seen_at:%Y-%m-%d %H:%M:%S}",
            )
        say_table(shown, empty="No payment matches.")
        return 0

    return on_database(data_dir, show)


def amounts_of(payment: Any) -> list[Text]:
    """Return a payment's amounts as cells; an unreadable amount is the gateway's text."""
    from rich.text import Text

    def cell(name: str) -> Text:
        minor, raw = getattr(payment, name), payment.raw_amounts
        unread = raw is not None and name in raw
        return Text(
            money.as_stored(minor, payment.currency, name, raw) if unread else price(minor, payment.currency)
        )

    return [cell(name) for name in ("reserved", "captured", "refunded", "charged_back")]
