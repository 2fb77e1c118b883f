"""Commands on a checkout: change, cancel, reopen, capture, refund, release, retry, resolve.

Each is a command that a worker executes, as from the API, checked by the same rules before it is stored. Exit
status 1 means that it was refused, or not answered within the time to wait; it stays stored all the same.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.command_results import exit_status, say_result, until_finished, wait_option
from orchestrator.cli.lookup import ACTOR, Span, find_checkout, price
from orchestrator.cli.output import say
from orchestrator.domain.command_progress import CommandState
from orchestrator.domain.records import CommandKind, Decision

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from orchestrator.domain.command_rules import CheckoutView, CommandRequest
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox import StoredOrder

WAIT: Final = 30.0
"""Seconds that a command waits for its answer unless an option sets it."""
_KEYED: Final = frozenset({CommandKind.CAPTURE, CommandKind.REFUND})

_checkout = click.argument("checkout")
_reason = click.option("--reason", help="Why; stands in the audit trail.")
_amount = click.option("--amount", metavar="AMOUNT", help="As in 10.00, in the payment's currency.")
_everything = click.option(
    "--all", "everything", is_flag=True, help="All that is left, instead of an amount."
)
_transaction = click.option(
    "--transaction", metavar="ID", help="Another transaction than the one that pays the checkout."
)


@click.command(short_help="Cancel one checkout, unless its money is there already.")
@data_dir
@_checkout
@_reason
@wait_option(0.0)
def cancel(*, data_dir: Path, checkout: str, reason: str | None, wait: float) -> int:
    """Cancel one checkout (its id, or its order number), unless its money is there already."""
    return _ask(data_dir, checkout, CommandKind.CANCEL, reason=reason, wait=wait)


@click.command(short_help="Change the order of one checkout before its payment.")
@data_dir
@_checkout
@click.argument("change", metavar="FILE", type=click.File("rb"))
@_reason
@wait_option(WAIT)
def change(*, data_dir: Path, checkout: str, change: BinaryIO, reason: str | None, wait: float) -> int:
    """Change the order of one checkout before its payment, by the JSON Merge Patch (RFC 7396) in FILE (- is
    standard input), as `PATCH /v1/checkouts/{id}` takes it: amount, order lines, customer, transactionInfo,
    callbacks.
    """
    return _ask(
        data_dir, checkout, CommandKind.CHANGE, reason=reason, wait=wait, change=_patch(change.read())
    )


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
@wait_option(WAIT)
def reopen(
    *, data_dir: Path, checkout: str, expires_in: float | None, reason: str | None, wait: float
) -> int:
    """Reopen a checkout that failed, expired or was cancelled, for a shopper who tries again."""
    return _ask(data_dir, checkout, CommandKind.REOPEN, reason=reason, wait=wait, expires_in=expires_in)


@click.command(short_help="Capture reserved money: --amount, or --all.")
@data_dir
@_checkout
@_amount
@_everything
@_transaction
@_reason
@wait_option(WAIT)
def capture(
    *,
    data_dir: Path,
    checkout: str,
    amount: str | None,
    everything: bool,
    transaction: str | None,
    reason: str | None,
    wait: float,
) -> int:
    """Capture reserved money of a paid checkout: an amount, or all that is left (--all)."""
    return _ask(
        data_dir,
        checkout,
        CommandKind.CAPTURE,
        reason=reason,
        wait=wait,
        amount=_stated(amount, everything=everything),
        transaction=transaction,
    )


@click.command(short_help="Refund captured money: --amount, or --all.")
@data_dir
@_checkout
@_amount
@_everything
@_transaction
@_reason
@wait_option(WAIT)
def refund(
    *,
    data_dir: Path,
    checkout: str,
    amount: str | None,
    everything: bool,
    transaction: str | None,
    reason: str | None,
    wait: float,
) -> int:
    """Refund captured money of a paid checkout: an amount, or all that is left (--all)."""
    return _ask(
        data_dir,
        checkout,
        CommandKind.REFUND,
        reason=reason,
        wait=wait,
        amount=_stated(amount, everything=everything),
        transaction=transaction,
    )


@click.command(short_help="Release a reservation.")
@data_dir
@_checkout
@_transaction
@_reason
@wait_option(WAIT)
def release(
    *, data_dir: Path, checkout: str, transaction: str | None, reason: str | None, wait: float
) -> int:
    """Release a reservation of which nothing is captured."""
    return _ask(data_dir, checkout, CommandKind.RELEASE, reason=reason, wait=wait, transaction=transaction)


@click.command(short_help="Try at once what waits for its next try.")
@data_dir
@_checkout
@_reason
@wait_option(WAIT)
def retry(*, data_dir: Path, checkout: str, reason: str | None, wait: float) -> int:
    """Try at once what waits for its next try, however often it has failed."""
    return _ask(data_dir, checkout, CommandKind.RETRY, reason=reason, wait=wait)


@click.command(short_help="Decide what waits for a person: keep, return or dismiss.")
@data_dir
@_checkout
@click.argument("decision", type=click.Choice([choice.value for choice in Decision]))
@_reason
@wait_option(WAIT)
def resolve(*, data_dir: Path, checkout: str, decision: str, reason: str | None, wait: float) -> int:
    """Decide what waits for a person: keep the money, return it, or dismiss it: no action needed."""
    return _ask(data_dir, checkout, CommandKind.RESOLVE, reason=reason, wait=wait, decision=decision)


def _stated(amount: str | None, *, everything: bool) -> str | None:
    """Return the amount that was named; None for all that is left, which must be said."""
    if everything == (amount is not None):
        raise click.UsageError("say how much: --amount 10.00, or --all for all that is left, and not both")
    return amount


def _patch(raw: bytes) -> dict[str, Any]:
    from decimal import InvalidOperation  # noqa: PLC0415 - each command imports what it needs

    from orchestrator.intents import changes  # noqa: PLC0415
    from orchestrator.intents.reading import BODY_LIMIT, DECODER  # noqa: PLC0415

    try:
        patch = DECODER.decode(raw) if len(raw) <= BODY_LIMIT else None
    except (ValueError, RecursionError, InvalidOperation):
        patch = None
    if not isinstance(patch, dict):
        raise click.UsageError(f"FILE must hold one JSON object of at most {BODY_LIMIT} bytes")
    if problems := changes.problems_of(patch):
        raise click.UsageError("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
    return patch


COMMANDS: Final = (change, cancel, reopen, capture, refund, release, retry, resolve)


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
        if kind is CommandKind.CHANGE:
            order = await inbox.stored_order(db, Encryptor(settings.secret_keys), row.id)
            command_request = replace(command_request, change=_sealed(order, wanted["change"]))
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


def _sealed(order: StoredOrder, change: dict[str, Any]) -> str:
    from orchestrator.intents import IntentRejected  # noqa: PLC0415 - each command imports what it needs

    try:
        return order.sealed(change)
    except IntentRejected as error:
        said = "; ".join(f"{problem.field}: {problem.message}" for problem in error.problems)
        raise click.UsageError(said) from None


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
    found = await until_finished(db, command, wait)
    assert found is not None  # noqa: S101 - it was stored a moment ago
    if found.finished:
        say_result(found)
    else:
        pending = found.state is CommandState.PENDING
        taken = "was not executed by a worker yet" if pending else "is still being executed"
        say(
            f"The command {taken} after {wait:g} s. It stands: `orchestrator commands show {command} --wait 60` waits for it, "
            f"and `orchestrator checkouts explain {checkout}` says how far the checkout is.",
            err=True,
        )
    return exit_status(found)
