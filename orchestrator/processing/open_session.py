"""From intake to offer: a token, a session, the methods, the offer.

Each may be repeated; a shopper sees none before the offer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import callback_urls, intents
from orchestrator.audit import Action
from orchestrator.domain import events, schedule, sentences
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.last_error import ErrorCode, error
from orchestrator.domain.states import UNOFFERED, Trigger
from orchestrator.gateway.outcomes import FINAL_STATUSES, Done, Refused, Unauthorized
from orchestrator.processing import complete
from orchestrator.processing.commands import ORDER_USES
from orchestrator.processing.step import Failure, Step, credentials, retry
from orchestrator.store.checkouts import KEEP, Fact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.last_error import LastError
    from orchestrator.domain.records import PaymentRecord
    from orchestrator.processing.step import Failed
    from orchestrator.store.checkouts.change import Kept


async def authenticate(step: Step) -> None:
    outcome = await step.context.gateway.authenticate(step.account)
    if isinstance(outcome, Done):
        step.context.circuit.close(step.held.merchant_id)
        await step.write(
            Trigger.AUTHENTICATED,
            evidence={"lifetime": int(outcome.value.lifetime)},
            token=step.sealed(outcome.value),
            token_lifetime=outcome.value.lifetime,
            attention=step.cleared_attention(),
            last_error=None,
        )
    else:
        await step.fail(credentials(outcome), "authenticate")


async def renew(step: Step) -> None:
    """Fetch a new token for the session; once in a lease."""
    if step.renewed:
        # The fault may concern this session only: the merchant's other orders continue.
        await step.fail(Failure(error(ErrorCode.TOKEN_REFUSED), credentials=True), "token")
        return
    outcome = await step.context.gateway.authenticate(step.account)
    if not isinstance(outcome, Done):
        await step.fail(credentials(outcome), "authenticate")
        return
    step.renewed = True
    await step.write(
        None,
        Action.TOKEN_RENEWED,
        evidence={"lifetime": int(outcome.value.lifetime)},
        token=step.sealed(outcome.value),
        token_lifetime=outcome.value.lifetime,
        attempts=step.held.attempts,
    )


async def open_session(step: Step) -> None:
    held = step.held
    if held.session_count >= ORDER_USES:
        used = {"sessions": held.session_count, "most": ORDER_USES}
        await fail(
            step,
            Trigger.ATTEMPTS_EXHAUSTED,
            {"sessionCount": held.session_count},
            error=error(ErrorCode.ORDER_NUMBER_USED_UP, **used),
            attention=Attention(code=AttentionCode.ORDER_NUMBER_USED_UP, facts=used),
        )
        return
    token = step.token()
    if token is None:
        await renew(step)
        return
    outcome = await step.context.gateway.open_session(
        step.account, token, body_of(step), user_agent=step.user_agent()
    )
    match outcome:
        case Done(session):
            await step.write(
                Trigger.SESSION_OPENED,
                evidence={"session": session.session_id},
                session_id=session.session_id,
                session_count=held.session_count + 1,
                attention=step.cleared_attention(),
                last_error=None,
            )
        case _:
            await not_done(step, outcome, "session")


def body_of(step: Step) -> dict[str, object]:
    """Return what the session holds of the order, as the gateway takes it."""
    held, document = step.held, step.document()
    pages = intents.shop_pages(document)
    urls = callback_urls.callback_urls(
        step.context.encryptor, step.settings.public_url, held.id, pages, merchant_id=held.merchant_id
    )
    return intents.session_body(document, checkout_id=held.id, urls=urls)


async def list_methods(step: Step) -> None:
    held = step.held
    token = step.token()
    if token is None:
        await renew(step)
        return
    outcome = await step.context.gateway.list_methods(
        step.account, token, held.session_id or "", user_agent=step.user_agent()
    )
    match outcome:
        case Done(()):
            await fail(
                step,
                Trigger.REFUSED,
                {"call": "payment-methods", "methods": 0},
                error=error(ErrorCode.NO_PAYMENT_METHODS),
                attention=Attention(code=AttentionCode.NO_PAYMENT_METHODS),
            )
        case Done(methods):
            # No gateway call is made between the list and the offer: both are one write.
            await _offer(step, methods, listed=True)
        case Refused(status=404 | 410):
            await step.write(
                Trigger.SESSION_LOST,
                evidence={"session": held.session_id, "status": outcome.status},
                session_id=None,
            )
        case _:
            await not_done(step, outcome, "payment-methods")


async def not_done(step: Step, outcome: Failed, call: str) -> None:
    """Renew a token that is refused, end a checkout whose order is, and repeat any other call later."""
    match outcome:
        case Unauthorized():
            await renew(step)
        case Refused(status, reason) if status in FINAL_STATUSES:
            about = {"call": call, "status": status, "reason": reason}
            await fail(step, Trigger.REFUSED, about, error=error(ErrorCode.GATEWAY_REFUSED, reason=reason))
        case _:
            await step.fail(retry(outcome), call)


def is_given_up(held: ClaimedCheckout) -> bool:
    """Say whether the deadline passed while a checkout that a shopper could once pay was to be
    offered again.
    """
    return held.state in UNOFFERED and held.offered_at is not None and held.now() >= held.deadline


async def give_up(step: Step) -> None:
    """End a checkout that could not be offered again before its deadline."""
    why = step.held.last_error or error(ErrorCode.DEADLINE_PASSED)
    await fail(step, Trigger.ATTEMPTS_EXHAUSTED, {**sentences.coded(why), "call": "session"}, error=why)


async def fail(
    step: Step,
    trigger: Trigger,
    evidence: dict[str, object],
    *,
    error: LastError,
    attention: Attention | Kept | None = KEEP,
) -> None:
    """End a checkout that cannot be offered.

    Where a shopper could once pay it, a lookup comes first.
    """
    payments: tuple[PaymentRecord, ...] = ()
    if step.held.offered_at is not None:
        verdict = await complete.lookup_unpaid(step, payable=complete.UNPAID)
        if verdict is None:
            return
        evidence, payments = {**verdict.evidence, **evidence}, verdict.payments
    await step.end(
        trigger,
        events.failed(error),
        evidence,
        last_error=error,
        attention=attention,
        payments=payments,
    )


async def offer(step: Step) -> None:
    """Offer a checkout whose methods were listed before."""
    await _offer(step, step.held.methods or (), listed=False)


async def _offer(step: Step, methods: Sequence[Mapping[str, object]], *, listed: bool) -> None:
    """Write that it is offered with these methods; `listed`: they were fetched a moment ago, and are part of
    this write.
    """
    held = step.held
    asked = held.expires_in or step.asked().expires_in
    deadline_in = float(asked or step.settings.checkout_expires_in)
    lookups = schedule.quiet_lookups(step.settings)
    fact = Fact(Trigger.OFFERED, {"expiresIn": deadline_in})
    first = Fact(Trigger.METHODS_LISTED, {"methods": len(methods)}) if listed else fact
    await step.write(
        first.trigger,
        evidence=first.evidence,
        further=(fact,) if listed else (),
        methods=methods if listed else KEEP,
        attention=step.cleared_attention() if listed else KEEP,
        last_error=None if listed else KEEP,
        offered=True,
        deadline_in=deadline_in,
        lookups=lookups,
        # Callbacks that came before the offer are read at once, under the same lease.
        due_in=KEEP if held.callbacks else step.next_due_in(lookups, deadline_in=deadline_in),
        events=(events.ready(methods=len(methods)),),
    )
