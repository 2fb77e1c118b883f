"""Commands that read checkouts and payments: straight from the database, for operators.

Nothing here shows a session token or a customer. Commands that change a checkout are in `commands` and
`reconcile`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli import commands, imports
from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.erasure import erase
from orchestrator.cli.lookup import find_checkout, find_correlated, merchant_id, merchant_names, price, table
from orchestrator.cli.output import printer, say, say_json
from orchestrator.cli.reconcile import reconcile
from orchestrator.domain import sentences
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.records import Role, still_held
from orchestrator.domain.states import State
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table
    from rich.text import Text

    from orchestrator.domain.attention import Attention
    from orchestrator.domain.command_result import CommandResult
    from orchestrator.domain.last_error import LastError
    from orchestrator.domain.records import Command, Operation
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.free_text import Reasons
    from orchestrator.store.read_model import CheckoutRecord, CheckoutSummary

_HELD: Final = ("reserved", "captured", "refunded", "charged back")
_ANY: Final = "any"
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; amounts in minor units.")


@click.group(short_help="List, show, explain; change, cancel, capture, refund, reconcile …")
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
@click.option(
    "--attention",
    is_flag=False,
    flag_value=_ANY,
    type=click.Choice([_ANY, *(code.value for code in AttentionCode)]),
    metavar="[CODE]",
    help="Only those that need a decision, or that need one for this reason.",
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The youngest so many."
)
@_as_json
def list_checkouts(
    *,
    data_dir: Path,
    states: Sequence[State],
    statuses: Sequence[PaymentStatus],
    order: str | None,
    merchant: str | None,
    attention: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """List checkouts, the youngest first."""

    async def show(_: Settings, db: Database) -> int:
        from rich.text import Text  # noqa: PLC0415 - each command imports what it needs

        from orchestrator.explain.timeline import STYLES  # noqa: PLC0415
        from orchestrator.store import read_model  # noqa: PLC0415

        number = None if merchant is None else await merchant_id(db, merchant)
        names = await merchant_names(db)
        asked = AttentionCode(attention) if attention not in {None, _ANY} else (attention is not None or None)
        rows = await read_model.checkouts(
            db,
            merchant_id=number,
            order_ref=order,
            states=[State(state) for state in states],
            statuses=[PaymentStatus(status) for status in statuses],
            waiting=asked,
            limit=limit + 1,
        )
        if as_json:
            _say_json([_facts(row, names[row.merchant_id]) for row in rows[:limit]])
            return 0
        shown = table("id", "order", "merchant", "state", "amount", "payment", "held", "created", "attention")
        for row in rows[:limit]:
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
@click.argument("checkout", required=False)
@click.option(
    "--correlation",
    metavar="ID",
    help="The checkout of the request with this X-Correlation-Id; of several, a list.",
)
@_as_json
def show(  # noqa: C901 - a table for each kind of row
    *, data_dir: Path, checkout: str | None, correlation: str | None, as_json: bool
) -> int:
    """Show one checkout (its id, or its order number): state, money, and what happened when."""
    if (checkout is None) == (correlation is None):
        raise click.UsageError("give the id or the order number of a checkout, or --correlation")

    async def tell(settings: Settings, db: Database) -> int:
        import msgspec  # noqa: PLC0415

        from orchestrator.crypto import Encryptor  # noqa: PLC0415
        from orchestrator.explain.timeline import timeline  # noqa: PLC0415
        from orchestrator.store import read_model  # noqa: PLC0415
        from orchestrator.store.free_text import Reasons  # noqa: PLC0415

        row = await find_checkout(db, checkout) if checkout else await find_correlated(db, str(correlation))
        if row is None:
            return 0
        reasons = await Reasons.of(db, Encryptor(settings.secret_keys), row.id)
        if as_json:
            _say_json(
                {
                    **_facts(row, row.merchant),
                    "erasedAt": row.erased_at,
                    "operations": [_operation_facts(operation) for operation in row.operations],
                    "commands": [_command_facts(command, reasons) for command in row.commands],
                }
            )
            return 0
        console = printer()
        console.print(_described(row))
        if row.payments:
            shown = table("payment", "role", "status", "meaning", *_HELD)
            for payment in row.payments:
                shown.add_row(
                    payment.transaction_id, payment.role, payment.status, payment.meaning, *_amounts(payment)
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
def explain(*, data_dir: Path, checkout: str) -> int:
    """Explain one checkout (its id, or its order number): the reason for its state, what comes next, and what
    you may do.
    """

    async def tell(settings: Settings, db: Database) -> int:
        from orchestrator import explain as explanation  # noqa: PLC0415

        row = await find_checkout(db, checkout)
        record = await explanation.gather(db, settings, row.id)
        assert record is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
        said = explanation.explain(record)
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


for _command in (*commands.COMMANDS, reconcile, imports.import_orders, erase):
    checkouts.add_command(_command)


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
        from orchestrator.store import read_model  # noqa: PLC0415

        number = None if merchant is None else await merchant_id(db, merchant)
        names = await merchant_names(db)
        rows = await read_model.payments(
            db,
            merchant_id=number,
            role=None if role is None else Role(role),
            order_ref=order,
            limit=limit + 1,
        )
        shown = table("payment", "merchant", "order", "checkout", "role", "status", *_HELD, "first seen")
        for row in rows[:limit]:
            shown.add_row(
                row.transaction_id,
                names[row.merchant_id],
                row.order_ref,
                str(row.checkout_id or ""),
                row.role,
                row.status,
                *_amounts(row),
                f"{row.first_seen_at:%Y-%m-%d %H:%M:%S}",
            )
        printer().print(shown)
        if len(rows) > limit:
            say(
                f"There are more than {limit}: ask for more with --limit, or for some with --role or --order.",
                err=True,
            )
        return 0

    return on_database(data_dir, show)


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────


def _amounts(payment: Any) -> list[Text]:
    """Return a payment's amounts as cells; an unreadable amount is the gateway's text."""
    from rich.text import Text  # noqa: PLC0415

    from orchestrator.domain import money  # noqa: PLC0415

    def cell(name: str) -> Text:
        minor, raw = getattr(payment, name), payment.raw_amounts
        unread = raw is not None and name in raw
        return Text(
            money.as_stored(minor, payment.currency, name, raw) if unread else price(minor, payment.currency)
        )

    return [cell(name) for name in ("reserved", "captured", "refunded", "charged_back")]


def _described(row: CheckoutRecord) -> Table:
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


# ── As JSON ───────────────────────────────────────────────────────────────────────────────────────────────


def _say_json(document: object) -> None:
    import msgspec  # noqa: PLC0415

    say_json(msgspec.json.encode(document).decode())


def _coded(value: Attention | LastError | CommandResult | None, **more: object) -> dict[str, object] | None:
    if value is None:
        return None
    return {"code": value.code, "message": sentences.of(value), "facts": value.facts, **more}


def _facts(row: CheckoutSummary, merchant: str) -> dict[str, object]:
    """Return a checkout as data; amounts in minor units of the currency beside them."""
    asked = row.attention
    payments = [
        {"transactionId": payment.transaction_id, "amount": payment.amount, "currency": payment.currency}
        for payment in (() if asked is None else (*asked.payments, *asked.beside))
    ]
    return {
        "id": row.id,
        "orderId": row.order_ref,
        "merchant": merchant,
        "state": row.state,
        "paymentStatus": row.payment_status,
        "late": row.late,
        "amount": row.amount,
        "currency": row.currency,
        "reserved": row.reserved,
        "captured": row.captured,
        "refunded": row.refunded,
        "chargedBack": row.charged_back,
        "createdAt": row.created_at,
        "deadline": row.deadline,
        "endedAt": row.ended_at,
        "dueAt": row.due_at,
        "attention": _coded(asked, since=row.attention_since, payments=payments),
        "lastError": _coded(row.last_error),
    }


def _operation_facts(row: Operation) -> dict[str, object]:
    return {
        "id": row.id,
        "kind": row.kind,
        "transactionId": row.transaction_id,
        "amount": row.amount,
        "currency": row.currency,
        "state": row.state,
        "cause": row.cause,
        "commandId": row.command_id,
        "requestedAt": row.requested_at,
        "settledAt": row.settled_at,
        "error": _coded(row.last_error),
    }


def _command_facts(row: Command, reasons: Reasons) -> dict[str, object]:
    return {
        "id": row.id,
        "kind": row.kind,
        "actor": row.actor,
        "reason": reasons.shown(row.reason),
        "requestedAt": row.requested_at,
        "handledAt": row.handled_at,
        "result": _coded(row.result),
    }
