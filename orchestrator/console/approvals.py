"""A second person: what waits above the limit, and its decision.

The person who asked cannot approve. What is approved is checked again, against the version that the first
person saw; where the order has moved since, nothing is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.responses import RedirectResponse

from orchestrator.console import actions, choices, pages, reading
from orchestrator.console.access import APPROVE, Refused
from orchestrator.console.actions import Asked
from orchestrator.domain import command_rules
from orchestrator.domain.records import Decision
from orchestrator.store.console import approvals, lists

if TYPE_CHECKING:
    from starlette.responses import Response

    from orchestrator.console.app import Visit
    from orchestrator.store.console.approvals import Approval

FIELDS: Final = ("decision",)


async def show_all(visit: Visit) -> Response:
    """List what waits, and what was decided."""
    services = visit.services
    waiting = await approvals.waiting(services.db, services.encryptor)
    latest = await approvals.latest(services.db, services.encryptor)
    return pages.render(
        visit,
        "approvals.html",
        live="approvals",
        waiting=waiting,
        decided=[each for each in latest if each.state != "waiting" or each.ended],
        limits=sorted(services.settings.approval_limits.items()),
        names=await lists.merchants(services.db),
    )


async def show(visit: Visit) -> Response:
    """Show one, with what would be done."""
    approval = await _approval(visit)
    asked = await _asked(visit, approval)
    return pages.render(
        visit,
        "approval.html",
        approval=approval,
        view=asked.view,
        said=choices.sentence(asked.view, asked.choice, asked.amount),
        follows=asked.choice.follows,
        why_not=_why_not(visit, approval, asked),
    )


async def decide(visit: Visit) -> Response:
    """Approve, which stores the command; or reject."""
    services, approval = visit.services, await _approval(visit)
    asked = await _asked(visit, approval)
    decision = visit.form.values.get("decision")
    if decision == "reject":
        if not await approvals.decide(services.db, approval.id, "rejected", actor=visit.actor):
            raise Refused(409, "Decided before", "Another person has decided it. Nothing was done.")
        await _note(visit, approval, asked, "accepted", decided="rejected")
        return RedirectResponse("/console/approvals", 303)
    if decision != "approve":
        raise Refused(400, "The form is incomplete", "Open the page again. Nothing was done.")
    why_not = _why_not(visit, approval, asked)
    if why_not is not None:
        await _note(visit, approval, asked, "refused", decided="approved")
        moved = approval.waits and visit.actor != approval.requested_by
        if moved:
            await approvals.decide(services.db, approval.id, "outdated", actor=visit.actor)
        raise Refused(409, "Not approved", why_not)
    # Approved before, and not stored: the process ended in between. The key makes a repeat the same command.
    if not _unfinished(approval) and not await approvals.decide(
        services.db, approval.id, "approved", actor=visit.actor
    ):
        raise Refused(409, "Decided before", "Another person has decided it. Nothing was done.")
    # Both persons stand in the trail: the command carries both names.
    actor = f"{approval.requested_by} approved by {visit.actor}"
    command = await actions.store(
        visit, asked, reason=approval.reason, key=f"console-approval:{approval.id}", actor=actor
    )
    await approvals.executed(services.db, approval.id, command)
    await _note(visit, approval, asked, "accepted", decided="approved")
    return RedirectResponse(f"/console/orders/{approval.checkout_id}?done=approved", 303)


def _unfinished(approval: Approval) -> bool:
    return approval.state == "approved" and approval.command_id is None


async def _note(visit: Visit, approval: Approval, asked: Asked, outcome: str, *, decided: str) -> None:
    await visit.note(
        f"approval:{decided}",
        outcome,  # type: ignore[arg-type]  # one of the words
        checkout=approval.checkout_id,
        merchant_id=approval.merchant_id,
        facts={
            "approval": str(approval.id),
            "kind": approval.kind.value,
            "amount": approval.amount,
            "currency": approval.currency,
            "requestedBy": approval.requested_by,
            "version": asked.version,
        },
    )


async def _approval(visit: Visit) -> Approval:
    wanted = reading.uuid(visit.request.path_params["id"])
    found = await approvals.by_id(visit.services.db, visit.services.encryptor, wanted)
    if found is None or not found.authentic:
        raise Refused(404, "Not found", "There is no such approval.")
    return found


async def _asked(visit: Visit, approval: Approval) -> Asked:
    view = await actions.view_of(visit, approval.checkout_id)
    given = approval.arguments
    decision = given.get("decision")
    choice = choices.one(
        view,
        approval.kind,
        transaction_id=given.get("transactionId"),
        decision=None if decision is None else Decision(decision),
    )
    return Asked(view=view, choice=choice, amount=given.get("amount"), version=approval.version)


def _why_not(visit: Visit, approval: Approval, asked: Asked) -> str | None:
    if approval.state != "waiting" and not _unfinished(approval):
        return f"It was {approval.state} by {approval.decided_by}."
    if approval.ended:
        return "No person decided it within a day, so it is over. Ask for it again."
    if visit.actor == approval.requested_by:
        return "You asked for it yourself: another person has to approve it."
    if not visit.session.may(APPROVE):
        return f"To approve it a session needs the scope {APPROVE}."
    if asked.view.version != approval.version:
        return (
            f"The order has moved since it was asked for (version {approval.version}, now {asked.view.version}). "
            "Nothing was done. Look at the order again, and ask for it again."
        )
    found = command_rules.rejection(asked.view, actions.command_request(asked))
    return None if found is None else f"{found.sentence[:1].upper()}{found.sentence[1:]}."
