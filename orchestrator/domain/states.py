"""The states of a checkout, the facts that move it, and the table of moves.

This is the whole state machine, in the standard library only. A state is a participle, a trigger is a fact
that has been established; nothing else moves a checkout. The basis of a trigger (a callback, a lookup, a
person) is evidence in the audit trail and never another trigger.

A duplicate, a fact that comes too early and a contradiction have no move in the table, and a step that
requests one all the same raises `UnknownTransition`. No fact makes a completed checkout anything else.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from orchestrator.errors import OrchestratorError


class State(StrEnum):
    """Where a checkout is. Stored as text; the order is the order of the journey."""

    RECEIVED = "received"
    """Accepted by intake with its first due time; a worker that claims it authenticates at the gateway."""
    AUTHENTICATED = "authenticated"
    """Holds a gateway token of its own; next a session is opened. A lost session comes back here."""
    SESSION_CREATED = "session_created"
    """The gateway has the order under a session; next the payment methods are listed. A changed basket comes
    back here: the session is changed first."""
    METHODS_FETCHED = "methods_fetched"
    """Everything the browser needs is stored; next it is offered to the merchant, and the deadline starts."""
    AWAITING_PAYMENT = "awaiting_payment"
    """The shopper may pay. Callbacks wake it; each due time brings a lookup, a renewal of the token or the
    check of the deadline."""
    CALLBACK_RECEIVED = "callback_received"
    """A callback reported a change; a lookup comes next. Left only by its answer."""
    COMPLETED = "completed"
    """Money was found at the gateway. Never left; the watch for refunds and chargebacks settles it."""
    FAILED = "failed"
    """The gateway refused, or every attempt until the deadline failed; nothing was ever offered to
    a shopper.
    """
    EXPIRED = "expired"
    """The deadline passed and a last lookup showed nothing paid, pending or open."""
    CANCELLED = "cancelled"
    """The merchant withdrew it and a lookup after the grace showed nothing paid, pending or open."""


class Trigger(StrEnum):
    """A fact that can move a checkout."""

    AUTHENTICATED = "authenticated"
    SESSION_OPENED = "session_opened"
    METHODS_LISTED = "methods_listed"
    OFFERED = "offered"
    CALLBACK_ARRIVED = "callback_arrived"
    PAYMENT_FOUND = "payment_found"
    PAYMENT_DECLINED = "payment_declined"
    PAYMENT_OPEN = "payment_open"
    NOTHING_FOUND = "nothing_found"
    SESSION_LOST = "session_lost"
    ORDER_CHANGED = "order_changed"
    DEADLINE_PASSED = "deadline_passed"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    REOPENED = "reopened"


_S, _T = State, Trigger

UNOFFERED: Final = (_S.RECEIVED, _S.AUTHENTICATED, _S.SESSION_CREATED, _S.METHODS_FETCHED)
"""The worker's own way, before anything has been offered to a shopper."""
CLOSED: Final = frozenset({_S.FAILED, _S.EXPIRED, _S.CANCELLED})
"""Ended without money, as far as is known: the order number may be used for a new checkout, or this one
reopened."""
ENDED: Final = CLOSED | {_S.COMPLETED}
"""No action of the shopper is expected; lookups for late money, refunds and chargebacks continue
for a while."""

_MOVES: Final[tuple[tuple[Trigger, tuple[State, ...], State], ...]] = (
    # A fact, the states that it moves, and where to.
    (_T.AUTHENTICATED, (_S.RECEIVED,), _S.AUTHENTICATED),
    (_T.SESSION_OPENED, (_S.AUTHENTICATED,), _S.SESSION_CREATED),
    (_T.METHODS_LISTED, (_S.SESSION_CREATED,), _S.METHODS_FETCHED),
    (_T.OFFERED, (_S.METHODS_FETCHED,), _S.AWAITING_PAYMENT),
    (_T.CALLBACK_ARRIVED, (_S.AWAITING_PAYMENT,), _S.CALLBACK_RECEIVED),
    (_T.PAYMENT_DECLINED, (_S.CALLBACK_RECEIVED,), _S.AWAITING_PAYMENT),
    (_T.PAYMENT_OPEN, (_S.CALLBACK_RECEIVED,), _S.AWAITING_PAYMENT),
    (_T.NOTHING_FOUND, (_S.CALLBACK_RECEIVED,), _S.AWAITING_PAYMENT),
    (_T.PAYMENT_FOUND, tuple(state for state in _S if state is not _S.COMPLETED), _S.COMPLETED),
    (_T.SESSION_LOST, (_S.SESSION_CREATED, _S.METHODS_FETCHED, _S.AWAITING_PAYMENT), _S.AUTHENTICATED),
    (_T.ORDER_CHANGED, (_S.METHODS_FETCHED, _S.AWAITING_PAYMENT), _S.SESSION_CREATED),
    (_T.DEADLINE_PASSED, (_S.AWAITING_PAYMENT,), _S.EXPIRED),
    (_T.CANCELLED, (*UNOFFERED, _S.AWAITING_PAYMENT), _S.CANCELLED),
    (_T.REFUSED, UNOFFERED, _S.FAILED),
    (_T.ATTEMPTS_EXHAUSTED, UNOFFERED, _S.FAILED),
    (_T.REOPENED, (_S.FAILED, _S.EXPIRED, _S.CANCELLED), _S.RECEIVED),
)
TRANSITIONS: Final = {(state, trigger): to for trigger, states, to in _MOVES for state in states}
"""(state, fact) → state. Whatever is not here does not move a checkout: a duplicate, a fact that comes too
early, or one that contradicts the state.
"""


class UnknownTransition(OrchestratorError):  # noqa: N818 - named for the fact
    """Code asked to move a checkout along a path that the table does not have."""

    def __init__(self, state: State, trigger: Trigger) -> None:
        super().__init__(f"{trigger} does not move a checkout that is {state}: see states.TRANSITIONS")
        self.state, self.trigger = state, trigger


def diagram() -> str:
    """Draw the table as a Mermaid state diagram; docs/concepts.md shows exactly this (a test compares)."""
    arrows: dict[tuple[State, State], list[Trigger]] = {}
    for (before, trigger), after in TRANSITIONS.items():
        arrows.setdefault((before, after), []).append(trigger)
    lines = ["stateDiagram-v2", f"    [*] --> {State.RECEIVED}"]
    lines += [f"    {a} --> {b}: {', '.join(triggers)}" for (a, b), triggers in arrows.items()]
    return "\n".join([*lines, f"    {State.COMPLETED} --> [*]", ""])
