"""A second person: what waits above the limit, and its decision.

The person who asked cannot approve, nor can a user whose link that person made, since both may be the same
person. What is approved is checked again, against the version and the amount that the first person
saw; where the order has moved since, nothing is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import RedirectResponse

from orchestrator.console import actions, choices, pages, reading
from orchestrator.console.access import APPROVE, Refused, not_found
from orchestrator.console.actions import Asked
from orchestrator.domain import command_rules
from orchestrator.domain.records import Decision
from orchestrator.store.console import approvals, users
from orchestrator.text import sentence

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.responses import Response

    from orchestrator.console.app import Visit
    from orchestrator.store.console.actions import Outcome
    from orchestrator.store.console.approvals import Approval


async def show_all(visit: Visit) -> Response:
    """List what waits, and what was decided."""
    services = visit.services
    waiting = await approvals.waiting(visit.db, visit.encryptor)
    latest = await approvals.latest(visit.db, visit.encryptor)
    return pages.render(
        visit,
        "approvals.html",
        live="approvals",
        waiting=waiting,
        decided=[each for each in latest if each.ended or not (each.state == "waiting" or each.unfinished)],
        limits=sorted(services.settings.approval_limits.items()),
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
        said=asked.said,
        follows=asked.choice.follows,
        why_not=await _why_not(visit, approval, asked),
    )


async def decide(visit: Visit) -> Response:
    """Approve, which stores the command; or reject."""
    approval = await _approval(visit)
    asked = await _asked(visit, approval)
    decision = visit.form.values.get("decision")
    if decision == "reject":
        if not await approvals.decide(visit.db, approval.id, "rejected", actor=visit.actor):
            raise _decided()
        await _note(visit, approval, asked, "accepted", decided="rejected")
        return RedirectResponse("/console/approvals", 303)
    if decision != "approve":
        raise reading.incomplete()
    why_not = await _why_not(visit, approval, asked)
    if why_not is not None:
        await _note(visit, approval, asked, "refused", decided="approved")
        if _outdated(approval, asked):
            await approvals.outdate(visit.db, approval.id, actor=visit.actor)
        settled = approval.state != "waiting" and not approval.unfinished
        raise Refused(409, "Decided already" if settled else "Not approved", why_not)
    if (command := _stored(approval, asked)) is not None:
        await approvals.executed(visit.db, approval.id, command)
        return _approved(approval)
    # Approved before, and not stored: the process ended in between. The key makes a repeat the same command.
    if not approval.unfinished and not await approvals.decide(
        visit.db, approval.id, "approved", actor=visit.actor
    ):
        raise _decided()
    # Both persons stand in the trail: the command carries both names.
    actor = f"{approval.requested_by} approved by {approval.decided_by or visit.actor}"
    command = await actions.store(visit, asked, reason=approval.reason, key=_key(approval), actor=actor)
    await approvals.executed(visit.db, approval.id, command)
    await _note(visit, approval, asked, "accepted", decided="approved")
    return _approved(approval)


def _key(approval: Approval) -> str:
    return f"console-approval:{approval.id}"


def _stored(approval: Approval, asked: Asked) -> UUID | None:
    """Return the command of an approval whose process ended after it had stored it, and before it noted that;
    the order may have moved by it.
    """
    return asked.view.met[0] if approval.unfinished and asked.view.met is not None else None


def _approved(approval: Approval) -> Response:
    return RedirectResponse(f"/console/orders/{approval.checkout_id}?done=approved", 303)


def _decided() -> Refused:
    return Refused(409, "Decided already", "Another person has decided it. Nothing was done.")


def _outdated(approval: Approval, asked: Asked) -> bool:
    """Whether the order, or the amount at stake, is not what the first person saw."""
    moved = asked.view.version != approval.version
    return moved or asked.at_stake.get(approval.currency) != approval.amount


async def _note(visit: Visit, approval: Approval, asked: Asked, outcome: Outcome, *, decided: str) -> None:
    await visit.note(
        f"approval:{decided}",
        outcome,
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
    found = await approvals.by_id(visit.db, visit.encryptor, visit.id)
    if found is None or not found.authentic:
        raise not_found("There is no such approval.")
    return found


async def _asked(visit: Visit, approval: Approval) -> Asked:
    view = await actions.view_of(visit, approval.checkout_id, key=_key(approval))
    given = approval.arguments
    decision = given.get("decision")
    choice = choices.one(
        view,
        approval.kind,
        transaction_id=given.get("transactionId"),
        decision=None if decision is None else Decision(decision),
    )
    return Asked(view=view, choice=choice, amount=given.get("amount"), version=approval.version)


async def _why_not(visit: Visit, approval: Approval, asked: Asked) -> str | None:
    if approval.state == "outdated":
        return "The order had moved before it was carried out. Ask for it again."
    if approval.state != "waiting" and not approval.unfinished:
        return f"It was {approval.state} by {approval.decided_by}."
    if not visit.session.may(APPROVE):
        return f"To approve it a session needs the scope {APPROVE}."
    if _stored(approval, asked) is not None:
        return None
    if approval.ended:
        return "It was not carried out within a day, so it has expired. Ask for it again."
    if (same := await _one_person(visit, approval)) is not None:
        return same
    if _outdated(approval, asked):
        return (
            f"The order has moved since it was asked for (version {approval.version}, now {asked.view.version}), "
            "or its amount has changed. Nothing was done. Look at the order again, and ask for it again."
        )
    found = command_rules.rejection(asked.view, asked.request)
    return None if found is None else sentence(found.sentence)


async def _one_person(visit: Visit, approval: Approval) -> str | None:
    """Return why the person who approves may be the one who asked; None where that cannot be."""
    if visit.actor == approval.requested_by:
        return "You asked for it yourself: another person has to approve it."
    makers = await users.makers(visit.db, visit.encryptor, visit.session.actor)
    if users.UNKNOWN in makers:
        return (
            "Who made the link of your user, or of the admin who made it, is not known: it is from before schema 0024. "
            "Have an admin make a new one, or `orchestrator console link --as NAME --role admin`."
        )
    if approval.requested_by in makers:
        return (
            f"{approval.requested_by} asked for it and made the link of your user, or of the admin who made it, so you may be the "
            "same person: a person whose link was made by another one has to approve it."
        )
    asker = approval.requested_by.removeprefix(users.ACTOR)
    if visit.actor in await users.makers(visit.db, visit.encryptor, asker):
        return (
            f"You made the link of {approval.requested_by}, or of the admin who made it, so you may be the same person: "
            "a person who did not make it has to approve it."
        )
    return None
