"""Commands on a checkout: change, cancel, reopen, capture, refund, release, retry, resolve.

Each is a command that a worker executes, as from the API, checked by the same rules before it is stored. What
moves money is asked about first. Exit status 1 means that it was refused, or not answered within the time to
wait (it stays stored all the same), or that the question was answered by no.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from orchestrator.cli.attached import Installation, data_dir, on_database, options
from orchestrator.cli.command_results import exit_status, say_record, say_result, until_finished, wait_option
from orchestrator.cli.lookup import find_checkout, one_of, price, span
from orchestrator.cli.output import flag, json_option, say
from orchestrator.cli.questions import as_option, confirmed, yes_option
from orchestrator.domain.command_progress import CommandState
from orchestrator.domain.records import MOVES_MONEY, CommandKind, Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from uuid import UUID

    from orchestrator.domain.command_rules import CheckoutView, CommandRequest
    from orchestrator.intents import Problem
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox import Requested, StoredOrder
    from orchestrator.store.read_model import CheckoutRecord


WAIT: Final = 30.0
"""Seconds that a command waits for its answer unless an option sets it."""
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

_transaction = click.option(
    "--transaction", metavar="ID", help="Another transaction than the one that pays the checkout."
)


def _read_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise click.BadParameter("must be 1 to 255 visible ASCII characters, such as a UUID")
    return key


_key = click.option(
    "--key",
    metavar="KEY",
    type=_read_key,
    help="Idempotency key: the same command with the same key is stored once. Without it, a new one.",
)

_MONEY = (
    click.option("--amount", metavar="AMOUNT", help="As in 10.00, in the payment's currency."),
    flag("--all", "everything", told="All that is left, instead of an amount."),
    _transaction,
    _key,
    yes_option,
)


def _command(
    short: str, *own: Callable[[Any], Any], wait: float = WAIT
) -> Callable[[Callable[..., int]], click.Command]:
    """Return what makes a command with the options that all have, and its own between them."""
    reason = click.option("--reason", help="Why; stands in the audit trail.")
    shared = options(
        data_dir, click.argument("checkout"), *own, reason, as_option, wait_option(wait), json_option
    )
    return lambda run: click.command(short_help=short)(shared(run))


@_command("Cancel one checkout, unless its money is there already.", wait=0.0)
def cancel(**given: Any) -> int:
    """Cancel one checkout (its id, or its order number), unless its money is there already."""
    return _ask(CommandKind.CANCEL, **given)


@_command(
    "Change the order of one checkout before its payment.",
    click.argument("change", metavar="FILE", type=click.File("rb")),
)
def change(*, change: BinaryIO, **given: Any) -> int:
    """Change the order of one checkout before its payment, by the JSON Merge Patch (RFC 7396) in FILE (- is
    standard input), as `PATCH /v1/checkouts/{id}` takes it: amount, order lines, customer, transactionInfo,
    callbacks.
    """
    return _ask(CommandKind.CHANGE, change=_patch(change.read()), **given)


@_command(
    "Reopen a checkout that failed, expired or was cancelled.",
    click.option(
        "--expires-in",
        type=span,
        metavar="SPAN",
        help="The new deadline: 30m, 2h; without it that of the order.",
    ),
)
def reopen(**given: Any) -> int:
    """Reopen a checkout that failed, expired or was cancelled, for a shopper who tries again."""
    return _ask(CommandKind.REOPEN, **given)


@_command("Capture reserved money: --amount, or --all.", *_MONEY)
def capture(*, amount: str | None, everything: bool, **given: Any) -> int:
    """Capture reserved money of a paid checkout: an amount, or all that is left (--all)."""
    return _ask(CommandKind.CAPTURE, amount=_stated(amount, everything=everything), **given)


@_command("Refund captured money: --amount, or --all.", *_MONEY)
def refund(*, amount: str | None, everything: bool, **given: Any) -> int:
    """Refund captured money of a paid checkout: an amount, or all that is left (--all)."""
    return _ask(CommandKind.REFUND, amount=_stated(amount, everything=everything), **given)


@_command("Release a reservation.", _transaction, _key, yes_option)
def release(**given: Any) -> int:
    """Release a reservation of which nothing is captured."""
    return _ask(CommandKind.RELEASE, **given)


@_command("Try at once what waits for its next try.")
def retry(**given: Any) -> int:
    """Try at once what waits for its next try, however often it has failed; while calls to its gateway are
    paused, soon after they are made again.
    """
    return _ask(CommandKind.RETRY, **given)


@_command(
    "Decide what waits for a person: keep, return or dismiss.",
    click.argument("decision", type=one_of(Decision)),
    yes_option,
)
def resolve(**given: Any) -> int:
    """Decide what waits for a person: keep the money, return it, or dismiss it: no action needed."""
    return _ask(CommandKind.RESOLVE, **given)


def _stated(amount: str | None, *, everything: bool) -> str | None:
    """Return the amount that was named; None for all that is left, which must be said."""
    if everything == (amount is not None):
        raise click.UsageError("say how much: --amount 10.00, or --all for all that is left, and not both")
    return amount


def _patch(raw: bytes) -> dict[str, Any]:
    from decimal import InvalidOperation

    from orchestrator.intents import changes
    from orchestrator.intents.reading import BODY_LIMIT, DECODER

    try:
        patch = DECODER.decode(raw) if len(raw) <= BODY_LIMIT else None
    except (ValueError, RecursionError, InvalidOperation):
        patch = None
    if not isinstance(patch, dict):
        raise click.UsageError(f"FILE must hold one JSON object of at most {BODY_LIMIT} bytes")
    if problems := changes.problems_of(patch):
        raise _refused(problems)
    return patch


def _refused(problems: Sequence[Problem]) -> click.UsageError:
    return click.UsageError("; ".join(f"{problem.field}: {problem.message}" for problem in problems))


COMMANDS: Final = (change, cancel, reopen, capture, refund, release, retry, resolve)


def _ask(kind: CommandKind, *, data_dir: Path, **given: Any) -> int:
    """Store a command, after a question where it moves money or decides about it, and wait for its result."""
    own = {name: given.pop(name) for name in _Asking.__slots__ if name in given}
    return on_database(data_dir, _Asking(kind=kind, wanted=given, **own).run)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """A command as it was typed; `wanted` are the options of its kind.

    A person who was asked has decided on what was shown: with the version of that moment the command is
    refused if the checkout is changed before it is executed. With a key that was used for the same command,
    that command is followed, and nothing is asked or stored.
    """

    kind: CommandKind
    checkout: str
    actor: str
    reason: str | None
    wait: float
    as_json: bool
    yes: bool = True
    key: str | None = None
    wanted: dict[str, Any]

    async def run(self, here: Installation) -> int:
        """Ask, store and wait; return the exit status."""
        from orchestrator.store import inbox

        row = await find_checkout(here.db, self.checkout)
        view = await _view(here.db, row.id, self.key)
        request = _command_request(view, self.kind, self.wanted)
        # As of a request without a version: a repeat is the same command, though the checkout has moved.
        content = inbox.fingerprint_of(row.id, self.kind, request.arguments, reason=self.reason)
        if view.met is not None:
            command, before = view.met
            if before != content:
                raise inbox.KeyReused(self.key or "")
            return await self._follow(here, command, _repeated(command), wait=self.wait)
        _refuse(view, request)
        question = money_question(view, request, row.merchant)
        if question is not None and not self.yes:
            if not confirmed(question, yes=False):
                return 1
            request = replace(request, version=view.version)
            _refuse(await _view(here.db, row.id, self.key), request)
        if self.kind is CommandKind.CANCEL and view.cancelling is not None:
            said = f"Checkout {row.id} is being cancelled already, by command {view.cancelling}."
            return await self._follow(here, view.cancelling, said, wait=0.0)
        stored = await self._store(here, row, request, content=content)
        said = _asked(view, request, stored.id, here.settings) if stored.fresh else _repeated(stored.id)
        return await self._follow(here, stored.id, said, wait=self.wait)

    async def _store(
        self,
        here: Installation,
        row: CheckoutRecord,
        request: CommandRequest,
        *,
        content: bytes,
    ) -> Requested:
        from uuid import uuid4

        from orchestrator.store import inbox
        from orchestrator.store.database import is_away

        if self.kind is CommandKind.CHANGE:
            order = await inbox.stored_order(here.db, here.encryptor, row.id)
            request = replace(request, change=_sealed(order, self.wanted["change"]))
        key = self.key or (str(uuid4()) if self.kind in MOVES_MONEY else None)
        try:
            stored = await inbox.request(
                here.db,
                here.encryptor,
                row.id,
                merchant_id=row.merchant_id,
                kind=self.kind,
                actor=self.actor,
                reason=self.reason,
                expected_version=request.version,
                arguments=request.arguments,
                idempotency_key=key,
                fingerprint=content,
                grace=0.0,
            )
        except (Exception, asyncio.CancelledError) as error:
            if key is not None and (isinstance(error, asyncio.CancelledError) or is_away(error)):
                say(
                    f"It is not known whether the {self.kind} is stored: "
                    f"repeat the command with --key {key}, which stores it once.",
                    err=True,
                )
            raise
        assert stored is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
        return stored

    async def _follow(self, here: Installation, command: UUID, said: str, *, wait: float) -> int:
        """Say which command it is, and wait for its result; return 1 if that differs from the request, or is
        unknown, where it is waited for.
        """
        if wait or not self.as_json:
            say(said, err=self.as_json)
        if not wait and not self.as_json:
            return 0
        found = await until_finished(here.db, command, wait)
        assert found is not None  # noqa: S101 - it was stored or found a moment ago
        if self.as_json:
            await say_record(here, found)
        elif found.finished:
            say_result(found)
        else:
            pending = found.state is CommandState.PENDING
            taken = "was not executed by a worker yet" if pending else "is still being executed"
            say(
                f"The command {taken} after {wait:g} s. It stands: `orchestrator commands show {command} --wait 60` waits for it, "
                f"and `orchestrator checkouts explain {found.checkout_id}` says how far the checkout is.",
                err=True,
            )
        return exit_status(found) if wait else 0


def _repeated(command: UUID) -> str:
    return f"The key was used before for the same command, {command}: nothing new is stored."


async def _view(db: Database, checkout: UUID, key: str | None) -> CheckoutView:
    """Return the checkout as it stands, with the command that has the key, if one has."""
    from orchestrator.store import inbox

    view = await inbox.checkout_view(db, checkout, key=key)
    assert view is not None  # noqa: S101 - it was found a moment ago, and checkouts are never deleted
    return view


def _refuse(view: CheckoutView, request: CommandRequest) -> None:
    """Say in a sentence why the command may not be stored, if it may not."""
    from orchestrator.domain import command_rules

    if (found := command_rules.rejection(view, request)) is not None:
        raise click.UsageError(found.sentence)


def money_question(view: CheckoutView, request: CommandRequest, merchant: str) -> str | None:
    """Return what a command that moves money or decides about it is asked with, without a question mark; None
    for any other.
    """
    from orchestrator.domain import reconciliation

    order = f"order {view.order_ref} of merchant {merchant}"
    if request.kind is CommandKind.RESOLVE:
        assert view.attention is not None  # noqa: S101 - the rules have refused it else
        assert request.decision is not None  # noqa: S101 - the argument is required
        amounts = [(p.amount, p.currency, p.transaction_id) for p in view.attention.payments]
        if request.decision is Decision.RETURN:
            # What goes out is what the books hold by now.
            amounts = [
                (p.left, p.currency, p.transaction_id) for p in reconciliation.returned(view)
            ] or amounts
        named = [
            (f"{price(amount, currency)} on " if amount is not None else "") + f"transaction {transaction}"
            for amount, currency, transaction in amounts
        ]
        what = " and ".join(named) or "what waits for a decision"
        return f"{request.decision.capitalize()} {what} of {order} ({view.attention.code})"
    if request.kind not in MOVES_MONEY:
        return None
    payment = view.payment(request.transaction_id)
    assert payment is not None  # noqa: S101 - the rules have refused it else
    left = view.left(payment, request.kind)
    amount, whole = price(left if request.amount is None else request.amount, payment.currency), ""
    if request.kind is not CommandKind.RELEASE:
        amount, whole = amount.removesuffix(f" {payment.currency}"), f" of {price(left, payment.currency)}"
    return f"{request.kind.capitalize()} {amount}{whole} of {order} (transaction {payment.transaction_id})"


def _command_request(view: CheckoutView, kind: CommandKind, wanted: dict[str, Any]) -> CommandRequest:
    from orchestrator.domain import command_rules, money

    amount, transaction = wanted.get("amount"), wanted.get("transaction")
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
    from orchestrator.intents import IntentRejected

    try:
        return order.sealed(change)
    except IntentRejected as error:
        raise _refused(error.problems) from None


def _asked(view: CheckoutView, request: CommandRequest, command: UUID, settings: Settings) -> str:
    match request.kind:
        case CommandKind.CANCEL:
            grace = f"a grace of {settings.cancel_grace:g} s, if no payment is found by then"
            what = f"checkout {view.id} is cancelled after {grace}"
        case CommandKind.CAPTURE | CommandKind.REFUND:
            much = "all that is left"
            if request.amount is not None:
                much = price(request.amount, view.currency_of(request.transaction_id))
            what = f"{request.kind} of {much} for checkout {view.id}"
        case CommandKind.RESOLVE:
            what = f"resolve checkout {view.id} by {request.decision}"
        case _:
            what = f"{request.kind} of checkout {view.id}"
    return f"Asked for: {what}. Command {command}."
