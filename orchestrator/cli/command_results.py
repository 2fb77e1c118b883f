"""Following commands: how far one is, and what came of it.

Exit status 1 means that it was refused or rejected, or is not finished yet; it stands all the same.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import Installation, database_command
from orchestrator.cli.documents import coded, operation_facts
from orchestrator.cli.lookup import price, uuid_of
from orchestrator.cli.output import json_option, say, say_document
from orchestrator.domain.command_progress import CommandState
from orchestrator.domain.records import CommandKind, OperationState

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from orchestrator.store.database import Database
    from orchestrator.store.read_model import CommandRecord

_PAUSE: Final = 0.25


def wait_option(default: float) -> Callable[[Any], Any]:
    """Return the option that says how long to wait for a result."""
    return click.option(
        "--wait",
        type=click.FloatRange(0, 86_400),
        default=default,
        metavar="SECONDS",
        help="How long to wait for the result.",
    )


@click.group(short_help="How far a command is: capture, refund, cancel …")
def commands() -> None:
    """Follow commands, which were asked of checkouts by the API or the command line."""


@commands.command(short_help="Show how far one command is.")
@database_command
@click.argument("command")
@wait_option(0.0)
@json_option
async def show(here: Installation, *, command: str, wait: float, as_json: bool) -> int:
    """Show how far one command is (its id), and what came of it."""
    wanted = uuid_of(command)
    found = None if wanted is None else await until_finished(here.db, wanted, wait)
    if found is None:
        raise click.UsageError(
            f"there is no command {command!r}: `orchestrator checkouts show` names those of a checkout"
        )
    if as_json:
        await say_record(here, found)
    else:
        asked = found.command
        say(f"Command {asked.id}: {asked.kind} of {_what(found)}, asked for by {asked.actor}")
        say(f"at {asked.requested_at:%Y-%m-%d %H:%M:%S} UTC. State: {found.state}.")
        if found.finished:
            say_result(found)
    return exit_status(found)


async def say_record(here: Installation, found: CommandRecord) -> None:
    """Print a command as JSON."""
    from orchestrator.store.free_text import Reasons

    reasons = await Reasons.of(here.db, here.encryptor, found.checkout_id)
    say_document(_document(found, reasons.shown(found.command.reason)))


async def until_finished(db: Database, command: UUID, wait: float) -> CommandRecord | None:
    """Return a command as soon as it is finished, or as it stands after so many seconds; None: there is none
    of this id.
    """
    from orchestrator.store import read_model

    until = time.monotonic() + wait
    while True:
        found = (await read_model.commands(db, (command,))).get(command)
        if found is None or found.finished or time.monotonic() >= until:
            return found
        await asyncio.sleep(_PAUSE)


def exit_status(found: CommandRecord) -> int:
    """Return 0 where what was asked for is done, and 1 otherwise."""
    return int(found.state is not CommandState.DONE)


def say_result(found: CommandRecord) -> None:
    """Say what came of a finished command."""
    from orchestrator.domain import command_result, sentences

    result = found.command.result
    assert result is not None  # noqa: S101 - it is finished
    if found.state is CommandState.REFUSED:
        say(f"Refused: {sentences.of(result)}", err=True)
    elif found.operations:
        for one in found.operations:
            what = f"the {one.kind} of {price(one.amount, one.currency)} on transaction {one.transaction_id}"
            if one.state == OperationState.SUCCEEDED:
                say(f"Done: {what}.")
            else:
                why = sentences.or_none(one.last_error) or "no reason was given"
                say(f"Refused by the gateway: {what} ({why}).", err=True)
    elif result.code in command_result.DONE:
        say(f"Done: {sentences.of(result)}")
    elif found.command.kind is CommandKind.CANCEL:
        said = sentences.of_command(found.state, result, ())
        say(
            f"{'Done' if found.state is CommandState.DONE else 'Not cancelled'}: {said}.",
            err=bool(exit_status(found)),
        )
    else:
        say("Accepted.")


def _what(found: CommandRecord) -> str:
    of = f"checkout {found.checkout_id} (order {found.order_ref})"
    if found.command.kind not in {CommandKind.CAPTURE, CommandKind.REFUND}:
        return of
    much = "all that is left" if found.amount is None else price(found.amount, found.currency)
    return f"{much} of {of}"


def _document(found: CommandRecord, reason: str | None) -> dict[str, object]:
    from orchestrator.domain import sentences

    asked, result = found.command, found.command.result
    told = coded(result)
    if result is not None and told is not None:
        told["message"] = sentences.of_command(found.state, result, found.operations)
    return {
        "id": asked.id,
        "checkoutId": found.checkout_id,
        "orderId": found.order_ref,
        "kind": asked.kind,
        "state": found.state,
        "amount": found.amount,
        "currency": found.currency,
        "transactionId": asked.transaction_id,
        "result": told,
        "operations": [operation_facts(operation) for operation in found.operations],
        "requestedAt": asked.requested_at,
        "finishedAt": found.finished_at,
        "requestedBy": asked.actor,
        "reason": reason,
    }
