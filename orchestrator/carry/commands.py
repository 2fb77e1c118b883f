"""What people and clients ask for: cancelling. A command is taken under the lease, like every other reason to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.audit import Action
from orchestrator.states import CARRIED, Moved, State, Trigger, decide

if TYPE_CHECKING:
    from orchestrator.carry.step import Step
    from orchestrator.lifecycle import Held


def wait(held: Held) -> bool:
    """Say whether there is something to do that asks nothing of the gateway."""
    return bool(held.commands) or (held.withdrawn_at is not None and held.state in CARRIED)


async def obey(step: Step) -> None:
    """Take the oldest command: withdraw the checkout if it can still be cancelled, else refuse with the reason."""
    command = step.held.commands[0]
    held = step.held
    evidence = {"command": str(command.id), "kind": command.kind, "reason": command.reason}
    refusal = _refusal(step, command.expected_version)
    if refusal is not None:
        await step.write(
            None, Action.COMMAND_REFUSED, actor=command.actor, evidence={**evidence, "refusal": refusal},
            attempts=held.attempts, done=((command.id, f"refused: {refusal}"),),
        )  # fmt: skip
        return
    # From now on the token is not handed out; a checkout that was never offered is cancelled at once, any other
    # after its grace and a look that shows nothing paid, pending or open.
    await step.write(
        None, Action.CANCEL_REQUESTED, actor=command.actor, evidence=evidence, withdrawn=True, looks=0,
        attempts=held.attempts, done=((command.id, "accepted"),),
    )  # fmt: skip


def _refusal(step: Step, expected_version: int | None) -> str | None:
    held = step.held
    if expected_version is not None and expected_version != held.version:
        return (
            f"it was asked for version {expected_version}, and the checkout is at version {held.version} now"
        )
    if held.withdrawn_at is not None:
        return "it is being cancelled already"
    cancellable = (
        isinstance(decide(held.state, Trigger.CANCELLED), Moved) or held.state is State.CALLBACK_RECEIVED
    )
    return None if cancellable else f"a checkout that is {held.state} cannot be cancelled"


async def cancel(step: Step) -> None:
    """Cancel a withdrawn checkout that was never offered: nobody could pay it, so there is nothing to wait for."""
    await step.end(Trigger.CANCELLED, "checkout.cancelled", {"by": "command"})
