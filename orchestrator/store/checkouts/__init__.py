"""The life of a checkout in Postgres: birth, claim, move, postpone, release, ring. The only writer of state.

A lease is a random token with an end. Only its holder moves a checkout, and every write of the holder names the lease and the
version that it saw; `Lifecycle.advance` writes state, version, alarm, audit entry, events and everything else of a move in one
statement for many checkouts at once, and says which landed. Only a move that landed buys the right to a side effect.

No ring is lost: the claim notes `wake`, and a release sets the next alarm only if `wake` is still what the holder saw; else the
alarm is now. Nobody holds a transaction while a socket to anybody else is open: claim, call, move.
"""

from orchestrator.store.checkouts.due import Ring, due, ring, sweep
from orchestrator.store.checkouts.create import MOST_UNCONFIRMED, UNKNOWN_ORDER, Birth, Born, Home, Stray, adopt, create
from orchestrator.store.checkouts.claim import LETTERS_AT_ONCE, Held, LeaseLost, claim, claim_waiting, intent_of, merchants_of, order_is_shared, paying_others, rival_of, tick
from orchestrator.store.checkouts.leases import renew
from orchestrator.store.checkouts.matching import NO_INTENT_PRINT, Matched, NoMoney, Ordered, Unsettled, Unsuited, match
from orchestrator.store.checkouts.change import KEEP, Event, Fact, Move, PaymentSeen
from orchestrator.store.checkouts.transition import Lifecycle
from orchestrator.store.checkouts.records import Command, Known, Letter, Operation, money_left
from orchestrator.store.checkouts.row_macs import command_holds, operation_holds, sign_command, sign_operation

__all__ = [
    "KEEP",
    "LETTERS_AT_ONCE",
    "MOST_UNCONFIRMED",
    "NO_INTENT_PRINT",
    "UNKNOWN_ORDER",
    "Birth",
    "Born",
    "Command",
    "Event",
    "Fact",
    "Held",
    "Home",
    "Known",
    "LeaseLost",
    "Letter",
    "Lifecycle",
    "Matched",
    "Move",
    "NoMoney",
    "Operation",
    "Ordered",
    "PaymentSeen",
    "Ring",
    "Stray",
    "Unsettled",
    "Unsuited",
    "adopt",
    "claim",
    "claim_waiting",
    "command_holds",
    "create",
    "due",
    "intent_of",
    "match",
    "merchants_of",
    "money_left",
    "operation_holds",
    "order_is_shared",
    "paying_others",
    "renew",
    "ring",
    "rival_of",
    "sign_command",
    "sign_operation",
    "sweep",
    "tick",
]
