"""Acting on one order: what would happen, why it is done, and then a command of the person.

A form carries the version that the page showed. Where the order has moved since, nothing is done, and the
page says so. Above the limit (APPROVAL_LIMITS) what moves money waits for a second person. What was
refused is noted too. A form that is sent twice is one command.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from starlette.responses import RedirectResponse

from orchestrator.console import choices, pages, reading
from orchestrator.console.access import Refused
from orchestrator.domain import command_rules, money
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.records import CommandKind, Decision
from orchestrator.store import inbox
from orchestrator.store.console import approvals
from orchestrator.store.inbox import KeyReused, ReasonNotKept

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.responses import Response

    from orchestrator.console.app import Visit
    from orchestrator.console.choices import Choice
    from orchestrator.domain.command_rules import CheckoutView
    from orchestrator.settings import Settings

FIELDS: Final = ("version", "nonce", "reason", "amount", "transaction", "decision", "step")
_NONCE: Final = re.compile(r"[0-9a-f-]{36}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a form asks for."""

    view: CheckoutView
    choice: Choice
    amount: int | None
    version: int


async def show(visit: Visit) -> Response:
    """Show what would be done, and ask for the reason and, where one is taken, the amount."""
    fields = reading.query(visit.request, ("transaction", "decision"))
    view = await view_of(visit, reading.uuid(visit.request.path_params["id"]))
    choice = _choice(visit, view, fields)
    return _form(visit, view, choice)


async def act(visit: Visit) -> Response:
    """Show the form again with what is wrong or with what would be done, or do it."""
    view = await view_of(visit, reading.uuid(visit.request.path_params["id"]))
    form = visit.form
    choice = _choice(visit, view, form)
    version, nonce = form.number("version"), form.values.get("nonce", "")
    if _NONCE.fullmatch(nonce) is None:
        raise Refused(400, "The form is incomplete", "Open the page again. Nothing was done.")
    reason = form.reason()
    amount = None
    if choice.kind in choices.TAKES_AMOUNT:
        amount = form.amount("amount", choice.currency or view.currency)
    asked = Asked(view=view, choice=choice, amount=amount, version=version)
    if form.wrong:
        return _form(visit, view, choice, asked=asked, nonce=nonce)
    refused = _refused(asked)
    if refused is not None:
        await note(visit, asked, "refused", reason=reason, facts={"refused": refused[0]})
        return _form(visit, view, choice, asked=asked, nonce=nonce, refused=refused[1], status=409)
    if form.values.get("step") != "run":
        return _form(visit, view, choice, asked=asked, nonce=nonce, confirm=True)
    return await _run(visit, asked, reason=reason, nonce=nonce)


async def view_of(visit: Visit, checkout: UUID) -> CheckoutView:
    """Return how a checkout stands; a page that says so where there is none."""
    view = await inbox.checkout_view(visit.services.db, checkout)
    if view is None:
        raise Refused(404, "Not found", "There is no checkout of this id.")
    return view


async def store(visit: Visit, asked: Asked, *, reason: str | None, key: str, actor: str) -> UUID:
    """Store a command and hint at its checkout; without the reason where the customer was erased, since no
    free text is kept of such an order.
    """
    services, view = visit.services, asked.view
    try:
        stored = await inbox.request(
            services.db,
            services.encryptor,
            view.id,
            merchant_id=view.merchant_id,
            kind=asked.choice.kind,
            actor=actor,
            reason=reason,
            expected_version=asked.version,
            arguments=command_request(asked).arguments,
            idempotency_key=key,
            grace=services.settings.hint_grace,
        )
    except KeyReused:
        raise Refused(
            409, "Sent before", "This form was sent before with other values. Nothing was done."
        ) from None
    except ReasonNotKept:
        return await store(visit, asked, reason=None, key=key, actor=actor)
    if stored is None:
        raise Refused(404, "Not found", "There is no checkout of this id.")
    services.hint_publisher.publish([view.id], merchant_id=view.merchant_id)
    return stored.id


def command_request(asked: Asked) -> CommandRequest:
    """Return what is asked for, as the rules read it."""
    choice = asked.choice
    return CommandRequest(
        kind=choice.kind,
        amount=asked.amount,
        transaction_id=choice.transaction_id,
        decision=choice.decision,
        version=asked.version,
    )


def needs_approval(settings: Settings, minor: int, currency: str) -> bool:
    """Say whether an amount is above the limit of its currency."""
    limits = settings.approval_limits
    limit = limits.get(currency, limits.get("*"))
    if limit is None or minor <= 0:
        return False
    amount = money.decimal_or_none(minor, currency)
    return amount is None or amount > limit


async def note(
    visit: Visit,
    asked: Asked,
    outcome: str,
    *,
    reason: str,
    command: UUID | None = None,
    facts: dict[str, object] | None = None,
) -> None:
    """Store what the person did with an order."""
    minor, currency = choices.at_stake(asked.view, asked.choice, asked.amount)
    told: dict[str, object] = {"version": asked.version}
    if minor:
        told |= {"amount": minor, "currency": currency}
    if asked.choice.transaction_id:
        told["transaction"] = asked.choice.transaction_id
    if asked.choice.decision:
        told["decision"] = asked.choice.decision.value
    await visit.note(
        f"order:{asked.choice.kind.value}",
        outcome,  # type: ignore[arg-type]  # one of the three words
        checkout=asked.view.id,
        merchant_id=asked.view.merchant_id,
        command=command,
        facts=told | (facts or {}),
        reason=reason,
    )


async def _run(visit: Visit, asked: Asked, *, reason: str, nonce: str) -> Response:
    services, view, choice = visit.services, asked.view, asked.choice
    minor, currency = choices.at_stake(view, choice, asked.amount)
    there = f"/console/orders/{view.id}"
    if choice.moves_money and needs_approval(services.settings, minor, currency):
        approval = await approvals.ask(
            services.db,
            services.encryptor,
            checkout=view.id,
            merchant_id=view.merchant_id,
            kind=choice.kind,
            arguments=command_request(asked).arguments,
            version=asked.version,
            amount=minor,
            currency=currency,
            actor=visit.actor,
            reason=reason,
        )
        await note(visit, asked, "waiting", reason=reason, facts={"approval": str(approval)})
        return RedirectResponse(f"{there}?done=waiting", 303)
    command = await store(visit, asked, reason=reason, key=f"console:{nonce}", actor=visit.actor)
    await note(visit, asked, "accepted", reason=reason, command=command)
    return RedirectResponse(f"{there}?done=accepted", 303)


def _refused(asked: Asked) -> tuple[str, str] | None:
    """Return why it is refused, as a code and a sentence."""
    view = asked.view
    if asked.version != view.version:
        said = (
            f"The order has moved since this page was drawn (version {asked.version}, now {view.version}): it is "
            f"{view.state.value.replace('_', ' ')}. Nothing was done. Look at the order again, and decide again."
        )
        return "version-changed", said
    found = command_rules.rejection(view, command_request(asked))
    return None if found is None else (found.kind, f"{found.sentence[:1].upper()}{found.sentence[1:]}.")


def _choice(visit: Visit, view: CheckoutView, fields: reading.Fields) -> Choice:
    try:
        kind = CommandKind(visit.request.path_params["kind"])
    except ValueError:
        raise Refused(404, "Not found", "There is no such action.") from None
    if kind not in choices.KINDS:
        raise Refused(404, "Not found", "There is no such action.")
    decision = fields.among("decision", Decision)
    transaction = fields.text("transaction")
    if fields.wrong or (kind is CommandKind.RESOLVE and decision is None):
        raise Refused(404, "Not found", "There is no such action.")
    if transaction is not None and view.payment(transaction) is None:
        raise Refused(404, "Not found", "The order has no such transaction.")
    return choices.one(
        view, kind, transaction_id=transaction, decision=None if decision is None else Decision(decision)
    )


def _form(
    visit: Visit,
    view: CheckoutView,
    choice: Choice,
    *,
    asked: Asked | None = None,
    nonce: str = "",
    confirm: bool = False,
    refused: str | None = None,
    status: int = 200,
) -> Response:
    amount = None if asked is None else asked.amount
    minor, currency = choices.at_stake(view, choice, amount)
    values = visit.form.values
    everything = money.decimal_or_none(choice.amount, choice.currency) if choice.amount else None
    return pages.render(
        visit,
        "action.html",
        status=status if not visit.form.wrong else 422,
        view=view,
        choice=choice,
        said=choices.sentence(view, choice, amount),
        takes_amount=choice.kind in choices.TAKES_AMOUNT,
        second_person=choice.moves_money and needs_approval(visit.services.settings, minor, currency),
        version=view.version if asked is None or refused is not None else asked.version,
        once=nonce or str(uuid4()),
        wrong=visit.form.wrong,
        given={
            "reason": values.get("reason", ""),
            "amount": values.get("amount", everything if everything is not None else ""),
        },
        confirm=confirm,
        refused=refused or (choice.refused if asked is None else None),
    )
