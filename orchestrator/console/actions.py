"""Acting on one order: what would happen, why it is done, and then a command of the person.

A form carries the version that the page showed. Where the order has moved since, nothing is done, and the
page says so. Above the limit (APPROVAL_LIMITS) what moves money waits for a second person. What was
refused is noted too. A form that is sent twice is one command, or one approval, and the second answer is
that of the first, also where the order has moved by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from starlette.responses import RedirectResponse

from orchestrator import explain
from orchestrator.console import choices, pages, reading
from orchestrator.console.access import Refused, not_found
from orchestrator.domain import command_rules, money
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.ids import uuid7
from orchestrator.domain.records import CommandKind, Decision
from orchestrator.store import inbox
from orchestrator.store.console import approvals
from orchestrator.store.inbox import KeyReused, ReasonNotKept
from orchestrator.text import sentence

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from starlette.responses import Response

    from orchestrator.api.dependencies import Services
    from orchestrator.console.app import Visit
    from orchestrator.console.choices import Choice
    from orchestrator.domain.command_rules import CheckoutView
    from orchestrator.settings import Settings
    from orchestrator.store.console.actions import Outcome

NO_CHECKOUT: Final = "There is no checkout of this id."
CALLS: Final = frozenset({CommandKind.RETRY, CommandKind.RECONCILE})
"""What is asked for so that the gateway is called now."""
FIELDS: Final = ("version", "nonce", "reason", "amount", "transaction", "decision", "step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a form asks for."""

    view: CheckoutView
    choice: Choice
    amount: int | None
    version: int

    @property
    def request(self) -> CommandRequest:
        """The command, as the rules read it."""
        return CommandRequest(
            kind=self.choice.kind,
            amount=self.amount,
            transaction_id=self.choice.transaction_id,
            decision=self.choice.decision,
            version=self.version,
        )

    @property
    def said(self) -> str:
        """What would be done, as a sentence."""
        return choices.sentence(self.view, self.choice, self.amount)

    @property
    def at_stake(self) -> dict[str, int]:
        """How much money it moves: minor units by currency."""
        return choices.at_stake(self.view, self.choice, self.amount)


async def show(visit: Visit) -> Response:
    """Show what would be done, and ask for the reason and, where one is taken, the amount."""
    fields = visit.query("transaction", "decision")
    view = await view_of(visit, visit.id)
    choice = _choice(visit, view, fields)
    asked = Asked(view=view, choice=choice, amount=None, version=view.version)
    return await _form(visit, asked, nonce=uuid7(), refused=choice.refused)


async def act(visit: Visit) -> Response:
    """Show the form again with what is wrong or with what would be done, or do it."""
    form = visit.form
    version, nonce = form.number("version"), form.nonce()
    view = await view_of(visit, visit.id, key=_key(nonce))
    choice = _choice(visit, view, form)
    reason = form.reason()
    amount = None
    if choice.kind in choices.TAKES_AMOUNT:
        amount = form.amount("amount", choice.currency or view.currency)
    asked = Asked(view=view, choice=choice, amount=amount, version=version)
    if form.wrong:
        return await _form(visit, asked, nonce=nonce)
    if (done := await _sent_before(visit, asked, reason=reason, nonce=nonce)) is not None:
        return RedirectResponse(f"/console/orders/{view.id}?done={done}", 303)
    refused = _refused(asked)
    if refused is not None:
        await note(visit, asked, "refused", reason=reason, facts={"refused": refused[0]})
        return await _form(visit, asked, nonce=nonce, refused=refused[1], status=409)
    if form.values.get("step") != "run":
        return await _form(visit, asked, nonce=nonce, confirm=True)
    return await _run(visit, asked, reason=reason, nonce=nonce)


async def view_of(visit: Visit, checkout: UUID, *, key: str | None = None) -> CheckoutView:
    """Return how a checkout stands, and the command that has this idempotency key; a page that says so where
    there is no such checkout.
    """
    view = await inbox.checkout_view(visit.db, checkout, key=key)
    if view is None:
        raise not_found(NO_CHECKOUT)
    return view


async def store(visit: Visit, asked: Asked, *, reason: str | None, key: str, actor: str) -> UUID:
    """Store what is asked for, as `store_command`; a page that says so where that is not possible."""
    try:
        stored = await store_command(
            visit.services, asked.view, asked.request, reason=reason, key=key, actor=actor
        )
    except KeyReused:
        raise _reused() from None
    if stored is None:
        raise not_found(NO_CHECKOUT)
    return stored


async def store_command(
    services: Services,
    view: CheckoutView,
    request: CommandRequest,
    *,
    reason: str | None,
    key: str,
    actor: str,
) -> UUID | None:
    """Store a command and hint at its checkout; None where there is no such checkout. Raises `KeyReused`.

    The reason is left out where the customer was erased, since no free text is kept of such an order.
    """
    try:
        stored = await inbox.request(
            services.db,
            services.encryptor,
            view.id,
            merchant_id=view.merchant_id,
            kind=request.kind,
            actor=actor,
            reason=reason,
            expected_version=request.version,
            arguments=request.arguments,
            idempotency_key=key,
            grace=services.settings.hint_grace,
        )
    except ReasonNotKept:
        return await store_command(services, view, request, reason=None, key=key, actor=actor)
    if stored is None:
        return None
    services.hint_publisher.publish([view.id], merchant_id=view.merchant_id)
    return stored.id


def above_limit(settings: Settings, sums: Mapping[str, int]) -> tuple[int, str] | None:
    """Return the first amount that is above the limit of its currency; None where none is."""
    limits = settings.approval_limits
    for currency, minor in sums.items():
        limit = limits.get(currency, limits.get("*"))
        amount = money.decimal_or_none(minor, currency)
        if limit is not None and minor > 0 and (amount is None or amount > limit):
            return minor, currency
    return None


async def note(
    visit: Visit,
    asked: Asked,
    outcome: Outcome,
    *,
    reason: str,
    command: UUID | None = None,
    facts: dict[str, object] | None = None,
) -> None:
    """Store what the person did with an order."""
    sums = asked.at_stake
    told: dict[str, object] = {"version": asked.version}
    for currency, minor in list(sums.items())[:1]:
        told |= {"amount": minor, "currency": currency}
    if len(sums) > 1:
        told["amounts"] = [money.spelled(minor, currency) for currency, minor in sums.items()]
    if asked.choice.transaction_id:
        told["transaction"] = asked.choice.transaction_id
    if asked.choice.decision:
        told["decision"] = asked.choice.decision.value
    await visit.note(
        f"order:{asked.choice.kind.value}",
        outcome,
        checkout=asked.view.id,
        merchant_id=asked.view.merchant_id,
        command=command,
        facts=told | (facts or {}),
        reason=reason,
    )


def _key(nonce: UUID) -> str:
    return f"console:{nonce}"


def _reused() -> Refused:
    return Refused(409, "Sent before", "This form was sent before with other values. Nothing was done.")


async def _sent_before(visit: Visit, asked: Asked, *, reason: str, nonce: UUID) -> str | None:
    """Return what came of the form before, "accepted" or "waiting"; None where it was not sent before."""
    view, arguments = asked.view, asked.request.arguments
    if view.met is not None:
        # The reason of a customer who was erased is not kept.
        prints = [
            inbox.fingerprint_of(
                view.id, asked.choice.kind, arguments, reason=said, expected_version=asked.version
            )
            for said in (reason, None)
        ]
        if view.met[1] not in prints:
            raise _reused()
        return "accepted"
    known = await approvals.by_id(visit.db, visit.encryptor, nonce)
    if known is None:
        return None
    same = (known.checkout_id, known.kind, known.arguments, known.version, known.requested_by)
    if same != (view.id, asked.choice.kind, arguments, asked.version, visit.actor):
        raise _reused()
    return "waiting"


async def _run(visit: Visit, asked: Asked, *, reason: str, nonce: UUID) -> Response:
    view, there = asked.view, f"/console/orders/{asked.view.id}"
    above = above_limit(visit.services.settings, asked.at_stake)
    if above is not None:
        amount, currency = above
        fresh = await approvals.ask(
            visit.db,
            visit.encryptor,
            nonce,
            checkout=view.id,
            merchant_id=view.merchant_id,
            kind=asked.choice.kind,
            arguments=asked.request.arguments,
            version=asked.version,
            amount=amount,
            currency=currency,
            actor=visit.actor,
            reason=reason,
        )
        if fresh:
            await note(visit, asked, "waiting", reason=reason, facts={"approval": str(nonce)})
        return RedirectResponse(f"{there}?done=waiting", 303)
    command = await store(visit, asked, reason=reason, key=_key(nonce), actor=visit.actor)
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
    found = command_rules.rejection(view, asked.request)
    return None if found is None else (found.kind, sentence(found.sentence))


def _choice(visit: Visit, view: CheckoutView, fields: reading.Fields) -> Choice:
    kind = next((kind for kind in choices.KINDS if kind == visit.request.path_params["kind"]), None)
    decision = fields.among("decision", Decision)
    transaction = fields.text("transaction")
    if kind is None or fields.wrong or (kind is CommandKind.RESOLVE and decision is None):
        raise not_found("There is no such action.")
    if transaction is not None and view.payment(transaction) is None:
        raise not_found("The order has no such transaction.")
    return choices.one(view, kind, transaction_id=transaction, decision=decision)


async def _form(
    visit: Visit,
    asked: Asked,
    *,
    nonce: UUID,
    confirm: bool = False,
    refused: str | None = None,
    status: int = 200,
) -> Response:
    choice, values = asked.choice, visit.form.values
    paused = None
    if choice.kind in CALLS and refused is None:
        circuit = await explain.circuit_of(visit.db, visit.services.settings, asked.view.id)
        paused = circuit and (circuit if circuit.until > datetime.now(UTC) else None)
    everything = money.decimal_or_none(choice.amount, choice.currency) if choice.amount else None
    return pages.render(
        visit,
        "action.html",
        status=status,
        fields=visit.form,
        view=asked.view,
        choice=choice,
        said=asked.said,
        takes_amount=choice.kind in choices.TAKES_AMOUNT,
        second_person=above_limit(visit.services.settings, asked.at_stake) is not None,
        version=asked.version if refused is None else asked.view.version,
        once=nonce,
        given={
            "reason": values.get("reason", ""),
            "amount": values.get("amount", everything if everything is not None else ""),
        },
        confirm=confirm,
        refused=refused,
        paused=paused,
    )
