"""Checkouts in Postgres: create, claim, move, postpone, release, wake, erase. The only writer of state.

A lease is a random token with an end. Only its holder moves a checkout, and every write of the holder names
the lease and the version that it read; `Transitions.advance` writes state, version, due time, audit entry,
events and everything else of a move in one statement for many checkouts at once, and returns which landed. A
side effect is allowed only after a move that landed.

No wake-up is lost: the claim records `wake`, and a release sets the next due time only if `wake` is
unchanged; else the due time is now. No transaction is open while a socket to another system is: claim, call,
move.
"""

from orchestrator.store.checkouts.change import KEEP, Fact, Move
from orchestrator.store.checkouts.claims import (
    CALLBACKS_PER_CLAIM,
    LeaseLost,
    claim,
    claim_waiting,
    intent_of,
    merchants_of,
    order_is_shared,
    paying_others,
    renew,
    rival_of,
)
from orchestrator.store.checkouts.creation import (
    MOST_UNCONFIRMED,
    Intake,
    PaymentMatch,
    UnmatchedPayment,
    create,
    create_from_payment,
)
from orchestrator.store.checkouts.due_times import due, sweep, wake
from orchestrator.store.checkouts.erasure import (
    Fate,
    Hindrance,
    ended_before,
    erase,
    erasure_lists,
    of_order,
)
from orchestrator.store.checkouts.matching import (
    NO_INTENT_PRINT,
    Matched,
    Undecided,
    Unsuited,
    match,
)
from orchestrator.store.checkouts.row_macs import command_holds, operation_holds, sign_command, sign_operation
from orchestrator.store.checkouts.transition import Transitions
