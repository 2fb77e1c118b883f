"""One checkout under one lease: what every step needs to write, to fail and to decrypt its secrets."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Unpack, assert_never

import msgspec

from orchestrator import counters, log, traces
from orchestrator.audit import Action
from orchestrator.domain import command_rules, events, last_error, schedule, sentences
from orchestrator.domain.attention import ABOUT_FAILURES, Attention, AttentionCode
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.states import UNOFFERED, State, Trigger
from orchestrator.gateway.outcomes import Busy, NotSent, Refused, Throttled, Unauthorized, Unknown
from orchestrator.processing.context import CREDENTIALS_PAUSE
from orchestrator.store.checkouts import CALLBACKS_PER_CLAIM, KEEP, Move, intent_of
from orchestrator.store.checkouts.change import Keep

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from orchestrator.crypto import DataKey
    from orchestrator.domain.claimed_checkout import ClaimedCheckout
    from orchestrator.domain.events import Event
    from orchestrator.domain.last_error import LastError
    from orchestrator.domain.records import Command, PaymentRecord
    from orchestrator.gateway.callbacks import CallbackFacts
    from orchestrator.gateway.client import Account, Token
    from orchestrator.processing.context import StepContext
    from orchestrator.store.checkouts.change import Kept, MoveFields
    from orchestrator.store.merchants import Merchant


RENEW_BEFORE: Final = 120.0
"""Seconds before its end at which the token of an offered checkout is renewed."""
FRESH_ENOUGH: Final = 30.0
"""Seconds that a token must still live to be worth a call."""
RENEW_APART: Final = 15.0
"""Seconds between two renewals at least, however short the gateway's tokens live."""
MANY_FAILURES: Final = 8
"""Failures in a row after which a stuck checkout raises attention."""
UNREADABLE_FAILURES: Final = 3
"""The same where an answer cannot be read: the next one will most likely be alike, and may report money."""
QUARANTINE: Final = 3600.0
"""Seconds until a checkout is claimed again after its holders ended repeatedly."""

CREDENTIALS: Final = Attention(code=AttentionCode.GATEWAY_CREDENTIALS)
POISONED: Final = Attention(code=AttentionCode.POISONED)


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without a usable result: the reason, and the seconds until it may be tried again.

    `credentials`: the credentials are the cause and not the order. `blocks`: every order of the merchant
    would fail the same way, so its circuit is opened. `congested`: no call was made, and no attempt is
    counted. `unreadable`: an answer came that no parser of this system can read.
    """

    error: LastError
    at_least: float = 0.0
    credentials: bool = False
    blocks: bool = False
    congested: bool = False
    unreadable: bool = False


class Asked(msgspec.Struct, rename="camel"):
    """What an intent has beside the order and the shop's pages."""

    user_agent: Any = None
    expires_in: Any = None


_ASKED: Final = msgspec.json.Decoder(Asked)


class Step:
    """A checkout while it is processed: its state, and whether its lease is still held."""

    merchant: Merchant
    """Set once it has been read."""

    def __init__(self, context: StepContext, held: ClaimedCheckout) -> None:
        self.context, self.held = context, held
        self.settings = context.settings
        self.released = False
        self.renewed = False
        # A command that the next lookup answers, and what the lookup showed (a `LookupOutcome`).
        self.answering: Command | None = None
        self.shown = ""
        # Operations that were worked on under this lease, and the seconds until their next step.
        self.waits: dict[UUID, float] = {}
        # Operations whose rows are verified: checked, or written by this step.
        self.proven: set[UUID] = set()
        # The facts of the callbacks, each read once.
        self.facts: dict[UUID, CallbackFacts] = {}
        self._more = len(held.callbacks) >= CALLBACKS_PER_CLAIM
        self._moved = False
        self._key: DataKey | None = None
        self._intent: bytes | None = None

    async def write(
        self,
        trigger: Trigger | None,
        action: Action | None = Action.CHECKOUT_MOVED,
        **changes: Unpack[MoveFields],
    ) -> None:
        """Write one move and adopt the result; `LeaseLost` if the lease is no longer held."""
        if self._more and changes.get("read"):
            changes["due_in"] = 0.0
        due_in = changes.get("due_in", KEEP)
        if self.waits and not isinstance(due_in, Keep):
            changes["due_in"] = min([*self.waits.values(), *(() if due_in is None else (due_in,))])
        if self.answering is not None and self.shown:
            # Whatever the lookup led to, the command that required it gets its result.
            command, self.answering = self.answering, None
            answer = result(ResultCode.DONE_LOOKED_UP, finding=self.shown)
            changes["done"] = (*changes.get("done", ()), (command.id, answer))
            if action is None:
                action, changes["actor"] = Action.GATEWAY_ASKED, command.actor
                changes["evidence"] = {
                    "command": str(command.id),
                    "finding": self.shown,
                    **changes.get("evidence", {}),
                }
            answered = {done for done, _ in changes["done"]}
            left = tuple(command for command in self.held.commands if command.id not in answered)
            waiting = msgspec.structs.replace(self.held, commands=left)
            if not isinstance(due_in, Keep) and command_rules.ready(waiting) is not None:
                # Those that came with it have waited for its answer, and are executed at once.
                changes["due_in"] = 0.0
        move = Move(held=self.held, trigger=trigger, action=action, **changes)
        before = self.held
        self.held = await self.context.transitions.advance(move)
        if move.read or move.offered:
            _measure(before, move)
        if move.order is not None:
            self._intent = None
        self.released = move.releases
        self.proven.update(operation.id for operation in move.operations)
        self._moved |= trigger is not None
        if self._moved and self.released:
            # The trail has each move; this line has the state at the end of the lease.
            self._log_state()

    def _log_state(self) -> None:
        # By far the most lines of a worker; nothing in one is to be searched for secrets but the caller's id.
        line = {
            "event": "checkout_moved",
            "checkout": str(self.held.id),
            "correlation_id": log.scrub(self.held.correlation_id),
            "state": self.held.state,
            "version": self.held.version,
        }
        log.write_plain(__name__, [line])

    async def postpone(self, due_in: float, *, slot_reserved: bool = False) -> None:
        """Give the lease back with a due time and change nothing else."""
        await self.write(None, None, due_in=due_in, attempts=self.held.attempts, slot_reserved=slot_reserved)

    @property
    def account(self) -> Account:
        """The merchant's gateway URLs and credentials."""
        return self.merchant.account

    async def fail(self, failure: Failure, call: str) -> None:
        """Record a failed call: a due time with back-off, the reason, and attention where a person is
        needed.
        """
        held, settings = self.held, self.settings
        if failure.blocks:
            self.context.circuit.open(held.merchant_id, self.account)
        attempts = held.attempts + 1
        left = (held.deadline - held.now()).total_seconds()
        evidence: dict[str, object] = {"call": call, **sentences.coded(failure.error), "attempt": attempts}
        # Where a shopper could once pay, a lookup comes before the end (`open_session.give_up`).
        if held.state in UNOFFERED and held.offered_at is None and left <= 0 and not failure.credentials:
            await self.end(
                Trigger.ATTEMPTS_EXHAUSTED,
                events.failed(failure.error),
                evidence,
                last_error=failure.error,
            )
            return
        if failure.congested:
            await self._wait(failure, left)
            return
        due_in = schedule.back_off(settings, attempts - 1, at_least=failure.at_least)
        if held.state in UNOFFERED and left > 0:
            due_in = min(due_in, left + 0.05)
        attention = held.attention
        if failure.credentials:
            # An earlier question to a person is kept.
            due_in, attention = max(due_in, CREDENTIALS_PAUSE), self.cleared_attention() or CREDENTIALS
        elif failure.unreadable and attempts >= UNREADABLE_FAILURES and attention is None:
            attention = stuck(attempts, failure.error, call=call, order=held.order_ref)
        elif attempts > MANY_FAILURES and attention is None:
            attention = stuck(attempts, failure.error)
        await self.write(
            None,
            Action.GATEWAY_FAILED,
            evidence=evidence,
            due_in=due_in,
            attempts=attempts,
            last_error=failure.error,
            attention=attention,
        )

    async def _wait(self, failure: Failure, left: float) -> None:
        """Wait until a connection may be free, or the circuit of the gateway is closed; no attempt was
        made.
        """
        held = self.held
        due_in = failure.at_least + max(
            # Checkouts that wait for a gateway must not all return at the same moment.
            random.uniform(0.0, failure.at_least),  # noqa: S311 - jitter
            schedule.back_off(self.settings, 2),
        )
        if held.state in UNOFFERED:
            due_in = min(due_in, left + 0.05)
        why = failure.error if failure.at_least else held.last_error
        await self.write(None, None, due_in=due_in, attempts=held.attempts, last_error=why)

    async def end(
        self,
        trigger: Trigger,
        event: Event,
        evidence: Mapping[str, object],
        *,
        last_error: LastError | Kept | None = KEEP,
        attention: Attention | Kept | None = KEEP,
        payments: tuple[PaymentRecord, ...] = (),
        read: tuple[UUID, ...] = (),
    ) -> None:
        """Close a checkout without money, and begin the watch for late money."""
        await self.write(
            trigger,
            evidence=evidence,
            # What arrived meanwhile, and was not read by this lookup, is read at once.
            due_in=0.0 if self.held.callbacks and not read else self.first_watch(),
            lookups=0,
            last_error=last_error,
            attention=attention,
            payments=payments,
            read=read,
            events=(event,),
        )

    def first_watch(self, reserved_until: datetime | None = None) -> float | None:
        """Return the seconds until the first lookup of an ended checkout, before its reservation
        can lapse.
        """
        first = next(iter(self.settings.post_settlement_checks), None)
        if reserved_until is None or first is None:
            return first
        warned = (reserved_until - self.held.now()).total_seconds() - self.settings.lapse_warning
        return max(min(first, warned + 1), 1.0)

    def cleared_attention(self, *, poisoned: bool = False) -> Attention | None:
        """Return the attention that remains once the gateway has answered: none about its failures.

        `poisoned`: nor the one for a checkout set aside, because a retry was requested.
        """
        attention = self.held.attention
        if attention is None or attention.code in ABOUT_FAILURES:
            return None
        return None if poisoned and attention.code is AttentionCode.POISONED else attention

    def next_due_in(self, lookups: int, *, deadline_in: float | None = None) -> float:
        """Return the seconds until the next status check of an offered checkout.

        That is the lookup for a lost callback, the end of a grace period, or the renewal of the token,
        whichever comes first. A moment that has passed had its check.
        """
        held, settings, now = self.held, self.settings, self.held.now()
        if deadline_in is None:
            deadline_in = (held.deadline - now).total_seconds()
        moments = [deadline_in + settings.deadline_grace]
        if held.cancel_requested_at is not None:
            moments.append((held.cancel_requested_at - now).total_seconds() + settings.cancel_grace)
        elif held.token_expires_at is not None and deadline_in > 0:
            left = (held.token_expires_at - now).total_seconds()
            moments.append(max(left - RENEW_BEFORE, RENEW_APART))
        # Long after the deadline only an open payment keeps it here, and the gateway never ends one by itself
        # (D9).
        due_in = schedule.thinned(schedule.next_lookup(settings, lookups), -deadline_in)
        return min([due_in, *(moment + 0.02 for moment in moments if moment > 0)])

    def token_ends_within(self, seconds: float) -> bool:
        """Return whether a shopper who may still pay would have a token that has expired."""
        held, now = self.held, self.held.now()
        offered = (
            held.state is State.AWAITING_PAYMENT and held.cancel_requested_at is None and now < held.deadline
        )
        return (
            offered
            and held.token_expires_at is not None
            and (held.token_expires_at - now).total_seconds() < seconds
        )

    def data_key(self) -> DataKey:
        if self._key is None:
            self._key = self.context.encryptor.data_key(self.held.id, self.held.data_key)
        return self._key

    def document(self) -> bytes:
        if self._intent is None:
            self._intent = self.data_key().decrypt(self.held.intent or b"", purpose="intent")
        return self._intent

    async def read_intent(self) -> bytes:
        """Return the stored intent, which a claim reads only where a session is to be opened."""
        self.held = msgspec.structs.replace(self.held, intent=await intent_of(self.context.db, self.held))
        return self.document()

    async def has_intent(self) -> bool:
        """Return whether the checkout has an intent: it may come from a payment for an unknown order number
        instead. An erased checkout counts as one that has.
        """
        if self.held.data_key is None:
            return True
        return bool(msgspec.json.decode(await self.read_intent()))

    def asked(self) -> Asked:
        return _ASKED.decode(self.document())

    def user_agent(self) -> str | None:
        agent = self.asked().user_agent
        return agent if isinstance(agent, str) else None

    def token(self) -> str | None:
        """Return the session's token if it will outlive a call."""
        held = self.held
        if held.token is None or held.token_expires_at is None:
            return None
        if (held.token_expires_at - held.now()).total_seconds() < min(
            FRESH_ENOUGH, self.settings.gateway_total_timeout
        ):
            return None
        return self.data_key().decrypt(held.token, purpose="token").decode()

    def sealed(self, token: Token) -> bytes:
        return self.data_key().encrypt(token.value.encode(), purpose="token")


Failed: TypeAlias = Refused | Unauthorized | NotSent | Busy | Unknown | Throttled
"""Every outcome of a gateway call except success."""


def retry(outcome: Failed) -> Failure:
    """Turn a call that brought nothing into a failure to retry."""
    match outcome:
        case Throttled():
            return Failure(_error(ErrorCode.THROTTLED, outcome), at_least=outcome.retry_after or 0.0)
        case NotSent():
            return Failure(_error(ErrorCode.NOT_SENT, outcome))
        case Busy():
            code = ErrorCode.CIRCUIT_OPEN if outcome.retry_after else ErrorCode.BUSY
            return Failure(_error(code, outcome), at_least=outcome.retry_after, congested=True)
        case Unknown():
            return Failure(_error(ErrorCode.UNKNOWN_OUTCOME, outcome), unreadable=outcome.unreadable)
        case Unauthorized():
            return Failure(_error(ErrorCode.UNAUTHORIZED, outcome), credentials=True, blocks=True)
        case Refused():
            return Failure(_error(ErrorCode.REFUSED, outcome))
        case _:
            assert_never(outcome)


def _error(code: ErrorCode, outcome: Failed) -> LastError:
    return last_error.error(code, reason=outcome.reason)


def credentials(outcome: Failed) -> Failure:
    """Turn a failed call with the merchant's own credentials into a failure: a refusal is about the merchant,
    not the order.
    """
    failure = retry(outcome)
    if isinstance(outcome, Refused):
        return Failure(failure.error, credentials=True, blocks=True)
    return failure


def stuck(attempts: int, error: LastError, *, call: str | None = None, order: str | None = None) -> Attention:
    """Return the attention of a checkout whose calls fail; `call` and `order` where each answer to that call
    could not be read.
    """
    facts: dict[str, object] = {"attempts": attempts, "error": sentences.error_fact(error)}
    if call is not None:
        facts |= {"call": call, "orderId": order}
    return Attention(code=AttentionCode.GATEWAY_FAILING, facts=facts)


def _measure(held: ClaimedCheckout, move: Move) -> None:
    """Count how long callbacks waited that a move has handled, and how long an order waited for its first
    offer.
    """
    now = held.now()
    for callback in (callback for callback in held.callbacks if callback.id in move.read):
        counters.callback_lag_seconds.observe(max((now - callback.received_at).total_seconds(), 0.0))
        if traces.on and (place := traces.current.get()) is not None:
            facts = {"kind": callback.kind, "grade": callback.grade}
            traces.past("callback", place, callback.received_at, now, **facts)
    if move.offered and held.offered_at is None and held.created_at is not None:
        counters.offer_seconds.observe(max((now - held.created_at).total_seconds(), 0.0))
