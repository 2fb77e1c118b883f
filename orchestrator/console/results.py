"""What became of the commands of an order, and what it holds beside its accepted payment, for its page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.domain import money, sentences
from orchestrator.domain.command_progress import CommandState, progress
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.records import Decision, OperationState, Role

if TYPE_CHECKING:
    from orchestrator.domain.records import Command, Operation
    from orchestrator.explain import Record

_DONE: Final = {"capture": "captured", "refund": "refunded", "release": "released"}
_OPEN: Final = frozenset({CommandState.PENDING, CommandState.UNDER_WAY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One command: what was asked for ("resolve (return)"), how far it is, and its result as text."""

    command: Command
    what: str
    state: CommandState
    said: str

    @property
    def open(self) -> bool:
        """Whether a worker is still to carry it out, or the gateway is."""
        return self.state in _OPEN

    @property
    def failed(self) -> bool:
        """Whether it was refused, or came to nothing."""
        return self.state in {CommandState.REFUSED, CommandState.FAILED}


def of(record: Record) -> list[Row]:
    """Return the commands of an order, the youngest first."""
    rows = []
    for command in reversed(record.commands):
        begun = [one for one in record.operations if one.command_id == command.id]
        state, _ = progress(
            command,
            begun,
            state=record.state,
            late=record.late,
            cancel_requested_at=record.cancel_requested_at,
            ended_at=record.ended_at,
        )
        decision = _decision(command)
        what = command.kind.value if decision is None else f"{command.kind.value} ({decision})"
        rows.append(Row(command=command, what=what, state=state, said=_said(command, state, begun)))
    return rows


def beside(record: Record) -> list[str]:
    """Return what payments that are not accepted hold: a price for each currency."""
    sums: dict[str, int] = {}
    for payment in record.payments:
        if payment.role == Role.ACCEPTED or payment.left <= 0 or payment.raw_amounts:
            continue
        held = max(payment.reserved, payment.captured) - payment.refunded - payment.charged_back
        sums[payment.currency] = sums.get(payment.currency, 0) + held
    return [money.spelled(held, currency, grouped=True) for currency, held in sums.items() if held > 0]


def _decision(command: Command) -> Decision | None:
    given = command.arguments.get("decision") if isinstance(command.arguments, dict) else None
    return next((one for one in Decision if one.value == given), None)


def _said(command: Command, state: CommandState, begun: list[Operation]) -> str:
    result = command.result
    if command.handled_at is not None and result is None:
        return "no result is stored"
    if state is CommandState.PENDING or result is None:
        return "waits for a worker"
    if result.code is ResultCode.ACCEPTED and begun:
        return "; ".join(_moved(one) for one in begun)
    said = sentences.of_command(state, result, begun)
    decision = _decision(command)
    if decision is None or result.refused:
        return said
    if result.code is ResultCode.DONE_DECIDED:
        return f"decided: {decision}"
    return f"decided: {decision}; {said}"


def _moved(one: Operation) -> str:
    """Say how far a money operation is, with its amount and transaction."""
    of_it = f"{money.spelled(one.amount, one.currency, grouped=True)} of transaction {one.transaction_id}"
    if one.state == OperationState.SUCCEEDED:
        return f"{of_it} was {_DONE[one.kind]}"
    if one.state == OperationState.REJECTED:
        why = sentences.or_none(one.last_error) or "no reason was given"
        return f"the {one.kind} of {of_it} was rejected ({why})"
    if one.state == OperationState.REQUESTED:
        return f"the {one.kind} of {of_it} has not left for the gateway yet"
    return f"the {one.kind} of {of_it} has left for the gateway, and its result is not known yet"
