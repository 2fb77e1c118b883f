"""Lists of checkouts and payments, straight from the database, for operators.

Filters are those of the API's search, and what an operator is asked about: a transaction, a period, an
amount. Each is answered by an index; an amount has none, and is looked for within a period, an order or a
transaction.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import Installation, data_dir, database_command, on_database, query
from orchestrator.cli.documents import facts_of, payment_facts
from orchestrator.cli.lookup import (
    ID_SLACK,
    first_id,
    merchant_id,
    merchant_names,
    one_of,
    price,
    span_or_moment,
    table,
)
from orchestrator.cli.output import at_most, json_option, say_document, say_more, say_table
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

    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CheckoutSummary

NOTHING_WAITS: Final = "Nothing waits for a decision."
HELD: Final = {
    "reserved": "reserved",
    "captured": "captured",
    "refunded": "refunded",
    "charged_back": "charged back",
}
"""What a checkout or a payment has of its money: the name of the amount, and its words."""
_ANY: Final = "any"

order_option = click.option("--order", metavar="NUMBER", help="Only this order number.")
merchants_option = click.option("--merchant", metavar="NAME", help="Only this merchant's.")
_limit = click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="The youngest so many.")


def _read_amount(value: str) -> tuple[int, str]:
    """Read an amount with its currency, such as "139.00 DKK"."""
    amount, _, currency = value.strip().upper().rpartition(" ")
    try:
        return money.to_minor(amount.strip(), currency), currency
    except money.MoneyError as error:
        raise click.BadParameter(f'{error}: give an amount with its currency, such as "139.00 DKK"') from None


@click.command("list")
@data_dir
@click.option(
    "--state",
    "states",
    multiple=True,
    type=one_of(State),
    help="Only these; may be repeated.",
)
@click.option(
    "--payment-status",
    "statuses",
    multiple=True,
    type=one_of(PaymentStatus),
    help="Only those of whose money this is held; may be repeated.",
)
@order_option
@click.option("--transaction", metavar="NUMBER", help="Only those with this transaction of the gateway.")
@merchants_option
@click.option(
    "--attention",
    is_flag=False,
    flag_value=_ANY,
    type=click.Choice([_ANY, *(code.value for code in AttentionCode)]),
    metavar="[CODE]",
    help="Only those that need a decision, or that need one for this reason.",
)
@click.option(
    "--since", type=span_or_moment, metavar="TIME", help="Created within 24h, 7d …, or since 2026-01-31."
)
@click.option("--until", type=span_or_moment, metavar="TIME", help="Created before that; as --since.")
@click.option(
    "--amount",
    type=_read_amount,
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

    async def show(here: Installation) -> None:
        names = await merchant_names(here.db)
        rows = await _found(here.db, limit=limit + 1, **given)
        if len(rows) > limit:
            say_more(
                limit,
                f"ask for more with --limit, for the next with --before {rows[limit - 1].id}, "
                "or for some with --state, --payment-status or --order",
            )
        if as_json:
            say_document([facts_of(row, names[row.merchant_id]) for row in rows[:limit]])
            return
        decisions = given["attention"] == _ANY and not any(
            given[name] for name in given.keys() - {"attention"}
        )
        empty = NOTHING_WAITS if decisions else "No checkout matches."
        say_table(_drawn(rows[:limit], names), empty=empty)

    return on_database(data_dir, show)


async def _found(  # noqa: PLR0913 - one for each option
    db: Database,
    *,
    states: Sequence[str],
    statuses: Sequence[str],
    order: str | None,
    transaction: str | None,
    merchant: str | None,
    attention: str | None,
    since: float | datetime | None,
    until: float | datetime | None,
    amount: tuple[int, str] | None,
    before: UUID | None,
    limit: int,
) -> list[CheckoutSummary]:
    from orchestrator.store import read_model

    (row,) = await query(db, "SELECT clock() AS clock, now() AS now")

    def moment(given: float | datetime | None) -> datetime | None:
        return row.clock - timedelta(seconds=given) if isinstance(given, float) else given

    def id_at(at: datetime, slack: float) -> UUID:
        return first_id(row.now, (row.clock - at).total_seconds() + slack)

    first, end = moment(since), moment(until)
    bounds = [before, None if end is None else id_at(end, -ID_SLACK)]
    waiting = None if attention is None else attention == _ANY or AttentionCode(attention)
    return await read_model.checkouts(
        db,
        merchant_id=None if merchant is None else await merchant_id(db, merchant),
        order_ref=order,
        states=list(map(State, states)),
        statuses=list(map(PaymentStatus, statuses)),
        waiting=waiting,
        before=min((bound for bound in bounds if bound is not None), default=None),
        among=read_model.Among(
            ids=None if transaction is None else await read_model.of_transaction(db, transaction),
            after=None if first is None else id_at(first, ID_SLACK),
            since=first,
            until=end,
            amount=amount,
        ),
        limit=limit,
    )


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
@database_command
@click.option(
    "--role",
    type=one_of(Role),
    help="surplus and unknown: money that belongs to no order.",
)
@order_option
@merchants_option
@_limit
@json_option
async def list_payments(
    here: Installation,
    *,
    role: str | None,
    order: str | None,
    merchant: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List payments, the youngest first."""
    from orchestrator.store import read_model

    number = None if merchant is None else await merchant_id(here.db, merchant)
    names = await merchant_names(here.db)
    rows = await read_model.payments(
        here.db,
        merchant_id=number,
        role=None if role is None else Role(role),
        order_ref=order,
        limit=limit + 1,
    )
    rows = at_most(rows, limit, "ask for more with --limit, or for some with --role or --order")
    if as_json:
        say_document([payment_facts(row, names[row.merchant_id]) for row in rows])
        return
    shown = table("payment", "merchant", "order", "checkout", "role", "status", *HELD.values(), "first seen")
    for row in rows:
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


def amounts_of(payment: Any) -> list[Text]:
    """Return a payment's amounts as cells; an unreadable amount is the gateway's text."""
    from rich.text import Text

    def cell(name: str) -> Text:
        minor, raw = getattr(payment, name), payment.raw_amounts
        unread = raw is not None and name in raw
        return Text(
            money.as_stored(minor, payment.currency, name, raw) if unread else price(minor, payment.currency)
        )

    return [cell(name) for name in HELD]
