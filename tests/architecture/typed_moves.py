"""Calls that mypy must refuse.

`warn_unused_ignores` fails the type check as soon as it would accept one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.audit import Action
from orchestrator.domain import events
from orchestrator.domain.states import Trigger
from orchestrator.processing import money_operations
from orchestrator.store.checkouts import Move

if TYPE_CHECKING:
    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.records import Operation
    from orchestrator.processing.step import Step


async def names(step: Step, held: ClaimedCheckout, operation: Operation) -> None:
    Move(held=held, trigger=None, action=None, attempt=1)  # type: ignore[call-arg]
    await step.write(None, None, attempt=1)  # type: ignore[call-arg]
    await step.write(None, None, held=held)  # type: ignore[call-arg]
    await step.end(Trigger.REFUSED, events.failed(None), {}, lookups=0)  # type: ignore[call-arg]
    await money_operations._write(step, Action.MONEY_UNKNOWN, operation, {}, actor="x")  # type: ignore[call-arg]


async def types(step: Step, held: ClaimedCheckout, operation: Operation) -> None:
    Move(held=held, trigger=None, action=None, attempts="1")  # type: ignore[arg-type]
    await step.write(None, None, attempts="1")  # type: ignore[arg-type]
    await step.write(None, None, money=(1, 2))  # type: ignore[arg-type]
    await step.write(None, None, payments=[operation])  # type: ignore[arg-type]
    await step.end(Trigger.REFUSED, events.failed(None), {}, read="1")  # type: ignore[arg-type]
    await money_operations._write(step, Action.MONEY_UNKNOWN, operation, {}, due_in="1")  # type: ignore[arg-type]
