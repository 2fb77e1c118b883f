"""What the API answers. The endpoints return these structs, which are encoded once."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from orchestrator.api.contract.values import (
    MOST_ITEMS,
    Count,
    Currency,
    Id,
    Money,
    NextCursor,
    PaymentMethods,
    Shape,
    Text,
    Time,
    Version,
    about,
)
from orchestrator.audit import Action
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.command_progress import CommandState
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.events import CloudEvent, EventType
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.records import Cause, CommandKind, OperationKind, OperationState, Role
from orchestrator.domain.states import State, Trigger
from orchestrator.store.inbox.rejected import Code
from orchestrator.store.read_model import COMMANDS_SHOWN

MOST_CHECKOUTS: Final = 500
"""Of one batch."""
PAGE: Final = 200
"""Checkouts or payments of one page, at most."""
AUDIT_PAGE: Final = 1000
"""Entries of one page of a trail, at most."""
EVENT_PAGE: Final = 1000
"""Events of one answer of the feed, at most."""

Held = Annotated[
    Money | None, about("Null where it cannot be read: `raw` has the gateway's text instead", 139.0)
]
Raw = Annotated[
    dict[str, Annotated[str, about(maxLength=1000)]] | None,
    about(
        "What cannot be read, as the gateway wrote it: amounts, and a currency that is not known",
        {"reserved": "1.990,50"},
        maxProperties=10,
    ),
]
OrderNumber = Annotated[Text, about("The shop's order number", "A-1001")]
Transaction = Annotated[Text, about("The gateway's number of the payment", "539101")]
ChargedBack = Annotated[Held, about("What the shopper's bank took back")]
GivenCurrency = Annotated[Text, about("ISO 4217; empty where the gateway named none that is known", "DKK")]
Outcome = Literal["paid", "refunded", "released", "charged_back", "failed", "expired", "cancelled"]


class Links(Shape, kw_only=True):
    """Paths to continue from a checkout; paths, because a merchant may use another host name than the gateway
    does.
    """

    own: Annotated[Text, about("The checkout itself")] = msgspec.field(name="self")
    cancel: Annotated[Text, about("POST there cancels it")]
    audit: Annotated[Text, about("Its audit trail")]
    explain: Annotated[Text, about("Why it is where it is")]


class Accepted(Shape, kw_only=True):
    """A checkout that was taken."""

    id: Id
    order_id: OrderNumber
    state: State
    deadline: Annotated[Time, about("Until when the shopper may pay")]
    client_token: Annotated[Text, about("Lets the shopper's browser follow this one checkout")]
    links: Links


class FieldProblem(Shape, kw_only=True):
    """One thing that is wrong."""

    field: Annotated[Text, about("Its path", "order.amount.value")]
    message: Annotated[
        Text,
        about(
            "What is wrong with it and what to do", "must be more than 0: there is nothing to pay otherwise"
        ),
    ]


class Problem(Struct, kw_only=True, rename="camel"):
    """What went wrong (RFC 9457)."""

    kind: Annotated[
        Text, about("Which kind of problem", "urn:checkout-orchestrator:problem:invalid-intent")
    ] = msgspec.field(name="type")
    title: Annotated[Text, about("The status in words", "Unprocessable Entity")]
    status: Annotated[int, about("HTTP status", 422, minimum=400, maximum=599)]
    detail: Annotated[Text, about("One sentence: what was wrong and what to do")]
    errors: Annotated[
        tuple[FieldProblem, ...], about("Each field that is wrong, the first fifty", maxItems=MOST_ITEMS)
    ]
    correlation_id: Annotated[
        str | UnsetType,
        about("Absent where the request could not be read", pattern="^[A-Za-z0-9._-]+$", maxLength=64),
    ] = UNSET
    checkout_id: Annotated[Id | UnsetType, about("The checkout that has the order number")] = UNSET
    state: Annotated[State | UnsetType, about("The state in which the checkout is")] = UNSET
    version: Annotated[Version | UnsetType, about("The version that the checkout has by now")] = UNSET
    left: Annotated[Held | UnsetType, about("What is left of the payment, to ask for at most")] = UNSET
    oldest: Annotated[
        str | UnsetType,
        about("The cursor to go on with where older events are not kept any more", "12", maxLength=19),
    ] = UNSET
    limit: Annotated[Text | UnsetType, about("The limit that was reached", "merchant")] = UNSET


class BatchResult(Shape, kw_only=True):
    """The result of one checkout of a batch: `checkout`, or `problem`."""

    status: Annotated[int, about("HTTP status", 202, minimum=100, maximum=599)]
    checkout: Accepted | UnsetType = UNSET
    problem: Problem | UnsetType = UNSET


class BatchResults(Shape, kw_only=True):
    """A result for each checkout, in order."""

    results: Annotated[list[BatchResult], about(maxItems=MOST_CHECKOUTS)]


class OrderAmount(Shape, kw_only=True):
    """What the order costs."""

    value: Held
    currency: Currency


class HeldMoney(Shape, kw_only=True):
    """What the gateway holds, and held, of what pays the checkout; in the currency of `amount`."""

    reserved: Held
    captured: Held
    refunded: Held
    charged_back: ChargedBack


class AttentionPayment(Shape, kw_only=True):
    """A payment that an attention is about."""

    transaction_id: Transaction
    amount: Annotated[Held, about("What it held when the attention was raised")]
    currency: GivenCurrency


class Attention(Shape, kw_only=True):
    """Why a checkout needs a decision."""

    code: Annotated[AttentionCode, about("For programs; the runbook has a chapter for each")]
    message: Annotated[
        Text,
        about(
            "For people", "the money came after the checkout had ended; keep the order, or return the money"
        ),
    ]
    since: Annotated[Time | None, about("When this code was raised; null for one of an earlier version")]
    payments: Annotated[list[AttentionPayment], about(maxItems=MOST_ITEMS)]


class _Checkout(Shape, kw_only=True):
    id: Id
    order_id: OrderNumber
    state: State
    outcome: Annotated[Outcome | None, about("Null until it has ended")]
    payment_status: Annotated[PaymentStatus, about("What is held of the shopper's money")]
    late: Annotated[bool, about("The money was found after it had been closed")]
    amount: OrderAmount
    money: HeldMoney
    raw: Raw
    auto_capture: Annotated[bool, about("The gateway was requested to capture by itself")]
    reserved_until: Annotated[Time | None, about("Until when a capture is sure to work")]
    deadline: Annotated[Time, about("Until when the shopper may pay")]
    due_at: Annotated[Time | None, about("When it is processed next; null when it is settled")]
    offered_at: Annotated[Time | None, about("When the shopper could pay first")]
    cancel_requested_at: Annotated[
        Time | None, about("When its cancellation was requested, which takes effect after a grace")
    ]
    ended_at: Annotated[Time | None, about("When it ended")]
    attention: Annotated[Attention | None, about("Why it needs a decision; null if it needs none")]
    last_error: Annotated[Text | None, about("Why the last step failed, if it did")]
    last_error_code: Annotated[ErrorCode | None, about("The same, for programs")]
    version: Annotated[
        Version, about("Incremented at each change; a command may name the version it is based on")
    ]
    created_at: Time
    updated_at: Time


class CheckoutSummary(_Checkout, kw_only=True):
    """A checkout, as a list shows it."""

    links: Links


class Session(Shape, kw_only=True):
    """The payment session at the gateway."""

    id: Annotated[Text, about("The gateway's id of it")]
    token: Annotated[Text, about("With which the shopper's browser pays")]
    expires_at: Annotated[Time, about("When the token expires")]


class Payment(Shape, kw_only=True):
    """A payment of a checkout, as the gateway showed it."""

    transaction_id: Transaction
    payment_id: Annotated[Text | None, about("The gateway's own id of it")]
    role: Annotated[
        Role,
        about("surplus: too much; unknown: money that is not read as this order's; attempt: no money"),
    ]
    binding: Annotated[
        Text,
        about(
            "How it is known to be the checkout's: bound (our own id), order_ref (its number only)", "bound"
        ),
    ]
    status: Annotated[Text, about("The gateway's own word", "preauth")]
    meaning: Annotated[Text, about("What status and amounts mean together", "reserved")]
    currency: GivenCurrency
    reserved: Held
    captured: Held
    refunded: Held
    charged_back: ChargedBack
    surcharge: Annotated[Held, about("What the gateway added for the way of payment")]
    flags: Annotated[list[Text], about("What was noteworthy in the gateway's answer", maxItems=MOST_ITEMS)]
    raw: Raw
    first_seen_at: Time
    updated_at: Time


class PlacedPayment(Payment, kw_only=True):
    """A payment, with the checkout that it belongs to, if it does to any."""

    order_id: Annotated[Text, about("The order number that the gateway has", "A-1001")]
    checkout_id: Annotated[Id | None, about("Null for a payment that belongs to no checkout")]


class PaymentPage(Shape, kw_only=True):
    """Payments, the youngest first."""

    payments: Annotated[list[PlacedPayment], about(maxItems=PAGE)]
    next_cursor: Annotated[Text | None, about("`cursor` of the next page; null on the last")]


class RejectedIntent(Shape, kw_only=True):
    """An intent of the queue `intents` that was refused; no checkout was created."""

    id: Id
    message_id: Annotated[Text, about("Id of the message that contained it: the id of the Celery task")]
    order_id: Annotated[OrderNumber | None, about("Null where the intent has no valid order number")]
    code: Annotated[Code, about("Why it was refused")]
    errors: Annotated[tuple[FieldProblem, ...], about("Each wrong field and what to do", maxItems=MOST_ITEMS)]
    rejected_at: Time


class RejectedIntentPage(Shape, kw_only=True):
    """Refused intents, the youngest first."""

    rejected_intents: Annotated[list[RejectedIntent], about(maxItems=PAGE)]
    next_cursor: NextCursor


class Operation(Shape, kw_only=True):
    """A call that moves money, and what came of it."""

    id: Id
    kind: OperationKind
    transaction_id: Transaction
    amount: Held
    currency: Currency
    state: Annotated[
        OperationState,
        about("submitted: it may have left; unknown: it has, and what came of it is not known yet"),
    ]
    cause: Annotated[Cause, about("Who began it: a command, the order itself, a policy")]
    reconciliation_identifier: Annotated[Text, about("By which the gateway's books name it")]
    command_id: Annotated[Id | None, about("The command that requested it")]
    requested_at: Time
    submitted_at: Time | None
    settled_at: Time | None
    error: Annotated[Text | None, about("What the gateway answered, or why it did not")]
    error_code: Annotated[ErrorCode | None, about("The same, for programs")]


class Command(Shape, kw_only=True):
    """What was asked of a checkout, and what became of it."""

    id: Id
    kind: CommandKind
    requested_at: Time
    handled_at: Annotated[Time | None, about("Null while no worker has taken it up")]
    result: Annotated[Text | None, about("What became of it", "it is being cancelled already")]
    result_code: Annotated[
        ResultCode | None,
        about("The same, for programs: accepted, done_… or refused_…", "refused_cancelling"),
    ]


class Checkout(_Checkout, kw_only=True):
    """Everything about a checkout."""

    session: Annotated[Session | None, about("Only while the shopper may pay with it")]
    payment_methods: PaymentMethods
    payments: Annotated[list[Payment], about(maxItems=MOST_ITEMS)]
    operations: Annotated[list[Operation], about(maxItems=MOST_ITEMS)]
    commands: Annotated[list[Command], about("The last twenty", maxItems=COMMANDS_SHOWN)]
    archived_at: Annotated[Time | None, about("When its history was archived, if it was")]
    erased_at: Annotated[Time | None, about("When its personal data was erased, if it was")]
    correlation_id: Annotated[Text, about("Of the request that brought it")]
    links: Links


class CheckoutPage(Shape, kw_only=True):
    """Checkouts, the youngest first."""

    checkouts: Annotated[list[CheckoutSummary], about(maxItems=PAGE)]
    next_cursor: NextCursor


class StoredCommand(Shape, kw_only=True):
    """A command that was stored."""

    id: Id
    kind: CommandKind


class CommandAcceptedLinks(Links, kw_only=True):
    """Where to go on from a checkout of which something was asked."""

    command: Annotated[Text, about("How far the command is")]


class CommandAccepted(Shape, kw_only=True):
    """A command was stored, and how the checkout stood then."""

    id: Annotated[Id, about("The checkout")]
    order_id: OrderNumber
    state: State
    version: Version
    command: StoredCommand
    links: CommandAcceptedLinks


class CommandOutcome(Shape, kw_only=True):
    """What a command came to."""

    code: Annotated[ResultCode, about("For programs: accepted, done_… or refused_…", "refused_cancelling")]
    message: Annotated[Text, about("For people", "it is being cancelled already")]


class CommandLinks(Shape, kw_only=True):
    """Where to go on from a command."""

    own: Annotated[Text, about("The command itself")] = msgspec.field(name="self")
    checkout: Annotated[Text, about("Its checkout")]


class CommandProgress(Shape, kw_only=True):
    """A command, how far it is, and what it came to."""

    id: Id
    checkout_id: Annotated[Id, about("What it was asked of")]
    order_id: OrderNumber
    kind: CommandKind
    state: Annotated[CommandState, about("done, refused and failed are final")]
    amount: Annotated[
        OrderAmount | None, about("What was asked for; null for all that was left, and where there is none")
    ]
    transaction_id: Annotated[Transaction | None, about("The transaction that it named, if it named one")]
    result: Annotated[CommandOutcome | None, about("Null while it is pending")]
    operations: Annotated[list[Operation], about("The money operations that it began", maxItems=MOST_ITEMS)]
    requested_at: Annotated[Time, about("When it was stored")]
    finished_at: Annotated[Time | None, about("Null until its state is final")]
    requested_by: Annotated[
        Text | None, about("As in the audit trail; null where nothing proves who", "client:default/shop-1")
    ]
    links: CommandLinks


class Next(Shape, kw_only=True):
    """What happens next, and when."""

    what: Text
    at: Annotated[Time | None, about("Null where nothing more happens by itself")]


class Explanation(Shape, kw_only=True):
    """Why a checkout is where it is, in sentences, each complete by itself."""

    summary: Annotated[Text, about("Where it is")]
    because: Annotated[tuple[Text, ...], about("Why it is there", maxItems=MOST_ITEMS)]
    evidence: Annotated[
        tuple[Text, ...], about("What that rests on, from the audit trail", maxItems=MOST_ITEMS)
    ]
    next: Next
    you_may: Annotated[tuple[Text, ...], about("What a person may do", maxItems=MOST_ITEMS)]


class AuditEntry(Shape, kw_only=True):
    """One entry of the trail, with its words as they are under the mac."""

    action: Annotated[Action, about("What it says, as subject:fact", "checkout:moved")]
    actor: Annotated[Text, about("The actor that requested it", "client:default/shop-1")]
    at: Annotated[
        str, about("When it was made", "2026-01-05T10:00:03.000000+00:00", format="date-time", maxLength=40)
    ]
    checkout: Id
    correlation: Annotated[Text, about("Correlation id of the request that it goes back to")]
    evidence: Annotated[dict[str, Any], about("Ids, outcomes, and amounts in minor units")]
    before: Annotated[State | None, about("The state before; null for the first entry")] = msgspec.field(
        name="from"
    )
    sequence: Annotated[Count, about("Its number in the trail, from 1")]
    to: Annotated[State, about("The state after")]
    trigger: Annotated[Trigger | None, about("The fact that moved it, if one did")]
    key_id: Annotated[Text, about("The key that the mac was made under")]
    mac: Annotated[str, about("Over the mac before and this entry, in hex", maxLength=64)]


class ArchivedTrail(Shape, kw_only=True):
    """Entries up to a number that stand in the file of an archive instead."""

    until: Count
    file: Annotated[Text, about(None, "archive-000001.jsonl.gz")]
    at: Time


class AuditTrail(Shape, kw_only=True):
    """The audit trail of a checkout, the oldest entry first."""

    checkout_id: Id
    entries: Annotated[list[AuditEntry], about(maxItems=AUDIT_PAGE)]
    next_after: Annotated[Count | None, about("`after` of the next page; null on the last")]
    archived: Annotated[
        list[ArchivedTrail],
        about("Entries up to a number that stand in the file of an archive instead", maxItems=MOST_ITEMS),
    ]


class EventPage(Shape, kw_only=True):
    """Events of a merchant's feed, the oldest first."""

    events: Annotated[list[CloudEvent], about(maxItems=EVENT_PAGE)]
    next: Annotated[str, about("`after` of the next request", "12", pattern="^[0-9]+$", maxLength=19)]


class DescribedType(Shape, kw_only=True):
    """A type of event, and the JSON Schemas (2020-12) of its whole documents."""

    kind: Annotated[EventType, about("The type")] = msgspec.field(name="type")
    description: Annotated[Text, about("What it means")]
    thin: Annotated[dict[str, Any], about("With `content=thin`")]
    full: Annotated[dict[str, Any], about("With `content=full`, which adds sentences")]


class EventTypes(Shape, kw_only=True):
    """Every type of event."""

    types: Annotated[list[DescribedType], about(maxItems=MOST_ITEMS)]


class Health(Shape, kw_only=True):
    """How the process is."""

    status: Literal["alive", "ready", "degraded", "unavailable"]
    problems: Annotated[
        list[Text] | UnsetType, about("A sentence for each; absent from /healthz", maxItems=MOST_ITEMS)
    ] = UNSET
