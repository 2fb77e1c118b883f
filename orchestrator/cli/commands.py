"""Commands on a checkout: cancel, reopen, capture, refund, release, retry, resolve.

Each is a command that a worker executes, as from the API, checked by the same rules before it is stored. Exit
status 1 means that it was refused, or not answered within the time to wait; it stays stored all the same.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.lookup import ACTOR, Span, find_checkout, price
from orchestrator.cli.output import say
from orchestrator.domain.records import OPEN_OPERATIONS, CommandKind, Decision, OperationState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from uuid import UUID

    from orchestrator.domain.command_rules import CheckoutView, CommandRequest
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

WAIT: Final = 30.0
"""Seconds that a command waits for its answer unless an option sets it."""
_PAUSE: Final = 0.25
_KEYED: Final = frozenset({CommandKind.CAPTURE, CommandKind.REFUND})

_checkout = click.argument("checkout")
_reason = click.option("--reason", help="Why; stands in the audit trail.")
_amount = click.option(
    "--amount", metavar="AMOUNT", help="As in 10.00, in the payment's currency; without it all that is left."
)
_transaction = click.option(
    "--transaction", metavar="ID", help="Another transaction than the one that pays the checkout."
)


def _wait(default: float = WAIT) -> Callable[[Any], Any]:
    return click.option(
        "--wait",
        type=click.FloatRange(0, 86_400),
        default=default,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the result.",
    )


@click.command(short_help="Cancel one checkout, unless its money is there already.")
@data_dir
@_checkout
@_reason
@_wait(0.0)
def cancel(*, data_dir: Path, checkout: str, reason: str | None, wait: float) -> int:
    """Cancel one checkout (its id, or its order number), unless its money is there already."""
    return _ask(data_dir, checkout, CommandKind.CANCEL, reason=reason, wait=wait)


@click.command(short_help="Reopen a checkout that failed, expired or was cancelled.")
@data_dir
@_checkout
@click.option(
    "--expires-in",
    type=Span(),
    metavar="SPAN",
    help="The new deadline: 30m, 2h; without it that of the order.",
)
@_reason
@_wait()
def reopen(
    *, data_dir: Path, checkout: str, expires_in: float | None, reason: str | None, wait: float
) -> int:
    """Reopen a checkout that failed, expired or was cancelled, for a shopper who tries again."""
    return _ask(data_dir, checkout, CommandKind.REOPEN, reason=reason, wait=wait, expires_in=expires_in)


@click.command(short_help="Capture reserved money, all or a part.")
@data_dir
@_checkout
@_amount
@_transaction
@_reason
@_wait()
def capture(
    *,
    data_dir: Path,
    checkout: str,
    amount: str | None,
    transaction: str | None,
    reason: str | None,
    wait: float,
) -> int:
    """Capture reserved money of a paid checkout: all that is left, or an amount."""
    return _ask(
        data_dir,
        checkout,
        CommandKind.CAPTURE,
        reason=reason,
        wait=wait,
        amount=amount,
        transaction=transaction,
    )


@click.command(short_help="Refund captured money, all or a part.")
@data_dir
@_checkout
@_amount
@_transaction
@_reason
@_wait()
def refund(
    *,
    data_dir: Path,
    checkout: str,
    amount: str | None,
    transaction: str | None,
    reason: str | None,
    wait: float,
) -> int:
    """Refund captured money of a paid checkout: all that is left, or an amount."""
    return _ask(
        data_dir,
        checkout,
        CommandKind.REFUND,
        reason=reason,
        wait=wait,
        amount=amount,
        transaction=transaction,
    )


@click.command(short_help="Release a reservation.")
@data_dir
@_checkout
@_transaction
@_reason
@_wait()
def release(
    *, data_dir: Path, checkout: str, transaction: str | None, reason: str | None, wait: float
) -> int:
    """Release a reservation of which nothing is captured."""
    return _ask(data_dir, checkout, CommandKind.RELEASE, reason=reason, wait=wait, transaction=transaction)


@click.command(short_help="Try at once what waits for its next try.")
@data_dir
@_checkout
@_reason
@_wait()
def retry(*, data_dir: Path, checkout: str, reason: str | None, wait: float) -> int:
    """Try at once what waits for its next try, however often it has failed."""
    return _ask(data_dir, checkout, CommandKind.RETRY, reason=reason, wait=wait)


@click.command(short_help="Decide what waits for a person: keep, return or dismiss.")
@data_dir
@_checkout
@click.argument("decision", type=click.Choice([choice.value for choice in Decision]))
@_reason
@_wait()
def resolve(*, data_dir: Path, checkout: str, decision: str, reason: str | None, wait: float) -> int:
    """Decide what waits for a person: keep the money, return it, or dismiss it: no action needed."""
    return _ask(data_dir, checkout, CommandKind.RESOLVE, reason=reason, wait=wait, decision=decision)


COMMANDS: Final = (cancel, reopen, capture, refund, release, retry, resolve)


def _ask(
    place: Path,
    checkout: str,
    kind: CommandKind,
    *,
    reason: str | None,
    wait: float,
    amount: str | None = None,
    **wanted: Any,
) -> int:
    async def ask(settings: Settings, db: Database) -> int:
        from uuid import uuid4  # noqa: PLC0415 - each command imports what it needs

        from orchestrator.crypto import Encryptor  # noqa: PLC0415
        from orchestrator.domain import command_rules  # noqa: PLC0415
        from orchestrator.store import inbox  # noqa: PLC0415

        row = await find_checkout(db, checkout)
        view = await inbox.checkout_view(db, row.id)
        assert view is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
        command_request = _command_request(view, kind, amount, wanted)
        if (found := command_rules.rejection(view, command_request)) is not None:
            raise click.UsageError(found.sentence)
        if kind is CommandKind.CANCEL and view.cancelling is not None:
            say(f"Checkout {row.id} is being cancelled already, by command {view.cancelling}.")
            return 0
        key = str(uuid4()) if kind in _KEYED else None
        stored = await inbox.request(
            db,
            Encryptor(settings.secret_keys),
            row.id,
            merchant_id=row.merchant_id,
            kind=kind,
            actor=ACTOR,
            reason=reason,
            arguments=command_request.arguments,
            idempotency_key=key,
            grace=0.0,
        )
        assert stored is not None  # noqa: S101 - as above
        say(_asked(view, command_request, stored.id, settings))
        return await _answered(db, row.id, stored.id, wait) if wait else 0

    return on_database(place, ask)


def _command_request(
    view: CheckoutView, kind: CommandKind, amount: str | None, wanted: dict[str, Any]
) -> CommandRequest:
    from orchestrator.domain import command_rules, money  # noqa: PLC0415

    transaction = wanted.get("transaction")
    minor = None if amount is None else money.to_minor(amount, view.currency_of(transaction))
    if minor is not None and minor <= 0:
        raise click.UsageError(f"--amount must be more than 0, not {amount}")
    return command_rules.CommandRequest(
        kind=kind,
        amount=minor,
        transaction_id=transaction,
        expires_in=wanted.get("expires_in"),
        decision=wanted.get("decision") and Decision(wanted["decision"]),
    )


def _asked(view: CheckoutView, command_request: CommandRequest, command: UUID, settings: Settings) -> str:
    checkout = view.id
    match command_request.kind:
        case CommandKind.CANCEL:
            grace = f"after a grace of {settings.cancel_grace:g} s, if no payment is found by then"
            return f"Asked for: checkout {checkout} is cancelled {grace}. Command {command}."
        case CommandKind.CAPTURE | CommandKind.REFUND:
            much = (
                "all that is left"
                if command_request.amount is None
                else price(command_request.amount, view.currency_of(command_request.transaction_id))
            )
            return f"Asked for: {command_request.kind} of {much} for checkout {checkout}. Command {command}."
        case CommandKind.RESOLVE:
            return f"Asked for: resolve checkout {checkout} by {command_request.decision}. Command {command}."
        case _:
            return f"Asked for: {command_request.kind} of checkout {checkout}. Command {command}."


async def _answered(db: Database, checkout: UUID, command: UUID, wait: float) -> int:
    """Wait until a worker has executed it, and print the result; 1 if that differs from the request, or is
    unknown.
    """
    until = time.monotonic() + wait
    while True:
        rows = await db.read(_result(), {"id": command})
        status = _told(rows)
        if status is not None:
            return status
        if time.monotonic() >= until:
            taken = (
                "is still being executed"
                if rows[0].handled_at is not None
                else "was not executed by a worker yet"
            )
            say(
                f"The command {taken} after {wait:g} s. It stands: `orchestrator checkouts explain {checkout}` says how far it is.",
                err=True,
            )
            return 1
        await asyncio.sleep(_PAUSE)


def _told(rows: Sequence[Any]) -> int | None:
    """Say what came of a command, once that is known; return the exit status."""
    from orchestrator.domain import command_result, sentences  # noqa: PLC0415 - each command imports what it needs
    from orchestrator.store.columns import coded  # noqa: PLC0415

    result = coded(rows[0], "result")["result"]
    if rows[0].handled_at is None or result is None:
        return None
    if result.refused:
        say(f"Refused: {sentences.of(result)}", err=True)
        return 1
    begun = [row for row in rows if row.state is not None]
    if not begun:
        say(f"Done: {sentences.of(result)}" if result.code in command_result.DONE else "Accepted.")
        return 0
    if any(row.state in OPEN_OPERATIONS for row in begun):
        return None
    for row in begun:
        what = f"the {row.kind} of {price(row.amount, row.currency)} on transaction {row.transaction_id}"
        if row.state == OperationState.SUCCEEDED:
            say(f"Done: {what}.")
        else:
            why = sentences.or_none(coded(row, "last_error")["last_error"])
            say(f"Refused by the gateway: {what} ({why or 'no reason was given'}).", err=True)
    return int(any(row.state == OperationState.REJECTED for row in begun))


def _result() -> Any:
    from sqlalchemy import text  # noqa: PLC0415

    return text("""
        SELECT k.handled_at, k.result, k.result_details, o.state, o.kind, o.amount, o.currency, o.transaction_id,
               o.last_error, o.last_error_details
          FROM commands k LEFT JOIN money_operations o ON o.checkout_id = k.checkout_id AND o.command_id = k.id
         WHERE k.id = :id ORDER BY o.requested_at, o.id
    """)
