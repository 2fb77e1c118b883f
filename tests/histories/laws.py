"""What holds of every history: after each step, and when nothing is under way any more.

Read from Postgres and the gateway's own books.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from orchestrator import audit
from orchestrator.devkit.sandbox.rules import Outcome
from orchestrator.domain import decisions
from orchestrator.domain.records import MOVES_MONEY
from orchestrator.domain.states import ENDED, TRANSITIONS, State, Trigger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from tests.histories.world import World

_ENTRIES = text("SELECT * FROM audit_entries WHERE checkout_id = :id ORDER BY sequence")
_HEAD = text("SELECT id, audit_sequence, audit_head, state FROM checkouts WHERE id = :id")
_OPERATIONS = text("SELECT * FROM money_operations WHERE checkout_id = :id ORDER BY requested_at, id")
_WAITING = text("SELECT kind FROM commands WHERE checkout_id = :id AND handled_at IS NULL")
_PAYMENTS = text("SELECT * FROM payments WHERE checkout_id = :id")
_EVENTS = text("SELECT sequence, kind FROM events WHERE checkout_id = :id ORDER BY sequence")

PAYMENTS_ALONE = {
    "late_payment",
    "unknown_order",
    "surplus_payment",
    "payment_mismatch",
    "unbound_payment",
    "unclear_payment",
    # It names what holds money beside the payment that was released.
    "payment_released",
}


def after_a_step(before: Mapping[UUID, Any], now: Mapping[UUID, Any]) -> None:
    """Nothing that has been written shrinks or is taken back, and no checkout is without a due time before
    the end.
    """
    for checkout, row in now.items():
        assert row.has_due_time or row.state in ENDED, (checkout, row.state, "has no due time")
        old = before.get(checkout)
        if old is None:
            continue
        for name in ("version", "audit_sequence", "event_sequence", "captured", "refunded", "session_count"):
            assert getattr(row, name) >= getattr(old, name), (
                checkout,
                name,
                getattr(old, name),
                getattr(row, name),
            )
        assert row.late or not old.late, (checkout, "is no longer late")
        if old.state == State.COMPLETED:
            assert row.state == State.COMPLETED, (checkout, "was paid and became", row.state)
        for number, totals in (old.payments or {}).items():
            kept = (row.payments or {}).get(number)
            assert kept is not None, (checkout, number, "was forgotten")
            assert kept[0] >= totals[0], (checkout, number, "captured", totals, kept)
            assert kept[1] >= totals[1], (checkout, number, "refunded", totals, kept)


async def in_the_end(world: World, policies: Mapping[str, object]) -> None:
    """Check what holds when nothing happens any more: the trail, the due times, every operation, and the
    money.
    """
    rows = await world.rows()
    for checkout, row in rows.items():
        await _the_trail(world, checkout)
        await _settled_or_due(world, row)
        await _the_money(world, row, policies)
        world.tally.states[row.state + (" late" if row.late else "")] += 1
        world.tally.attention[row.attention or "none"] += 1
    _held_money_has_an_owner(world, rows, await _dismissed(world))


async def _the_trail(world: World, checkout: UUID) -> None:
    """The chain verifies, and its moves are a path in the table."""
    (head,) = await world.db.read(_HEAD, {"id": checkout})
    entries = list(await world.db.read(_ENTRIES, {"id": checkout}))
    found = audit.Findings()
    audit.verify_chain(world.encryptor, head, entries, found, after=audit.Head())
    assert not found.problems, found.problems
    state: str | None = None
    completions = 0
    for entry in entries:
        said = json.loads(entry.entry)
        assert said["from"] == state, (checkout, said)
        if said["trigger"] is not None and state is not None:
            assert TRANSITIONS[State(state), Trigger(said["trigger"])] == said["to"], (checkout, said)
        completions += said["to"] == State.COMPLETED != state
        state = said["to"]
    assert state == head.state
    events = await world.db.read(_EVENTS, {"id": checkout})
    assert [event.sequence for event in events] == list(range(1, len(events) + 1)), (
        checkout,
        "events are not contiguous",
    )
    assert sum(event.kind == "checkout.completed" for event in events) == completions <= 1, (checkout, events)


async def _settled_or_due(world: World, row: Any) -> None:
    assert row.lease is None, (row.id, "is still held")
    assert row.callbacks == 0, (row.id, "has an inbox that is not read")
    if row.commands:
        # A second movement of a transaction waits until the outcome of the first is known or decided.
        waiting = {command.kind for command in await world.db.read(_WAITING, {"id": row.id})}
        unclear = any(
            operation.state == "unknown" for operation in await world.db.read(_OPERATIONS, {"id": row.id})
        )
        assert waiting <= MOVES_MONEY, (row.id, "has an inbox that is not read", waiting)
        assert unclear, (row.id, "has a command that waits for nothing", waiting)
        assert row.attention, (
            row.id,
            "has a command that waits for an unclear operation, and no attention is raised",
        )
    if not row.has_due_time:
        assert row.state in ENDED, (row.id, row.state)
        assert row.attention is None, (row.id, "waits for a person and has no due time", row.attention)


async def _the_money(world: World, row: Any, policies: Mapping[str, object]) -> None:
    checkout = row.id
    theirs = {
        transaction.transaction_id: (payment, transaction)
        for payment, transaction in world.transactions(checkout)
    }
    ours = {payment.transaction_id: payment for payment in await world.db.read(_PAYMENTS, {"id": checkout})}
    operations = list(await world.db.read(_OPERATIONS, {"id": checkout}))
    for operation in operations:
        world.tally.operations[f"{operation.kind} {operation.state}"] += 1
        _one_effect(world, operation, *theirs[operation.transaction_id])
        assert operation.state in {"succeeded", "rejected"} or row.has_due_time, (
            checkout,
            operation.id,
            operation.state,
            "has no due time",
        )
        if operation.state not in {"succeeded", "rejected"}:
            assert row.attention, (
                checkout,
                operation.id,
                operation.state,
                "is open, all is quiet, and no attention is raised",
            )
    for number, (payment, transaction) in theirs.items():
        assert transaction.refunded_minor <= transaction.captured_minor, number
        assert transaction.captured_minor <= transaction.reserved_minor, number
        if transaction.transaction_id in ours:
            _books_agree(ours[number], transaction)
        elif payment.echoes_infos and payment.transaction_info.get("checkout") == str(checkout):
            assert max(transaction.held_minor, transaction.captured_minor) <= 0, (
                checkout,
                number,
                "was never seen",
            )
    accepted = [payment for payment in ours.values() if payment.role == "accepted"]
    # Several pay an order only where a person decided to keep them as a whole.
    assert bool(accepted) == (row.state == State.COMPLETED), (checkout, row.state, accepted)
    assert len(accepted) <= 1 or all(decisions.kept(payment) for payment in accepted), (checkout, accepted)
    books = (row.captured, row.refunded, row.charged_back)
    names = ("captured", "refunded", "charged_back")
    sums = tuple(sum(getattr(payment, name) for payment in accepted) for name in names)
    assert books == sums or not accepted, (checkout, books, accepted)
    for paying in accepted:
        _nothing_by_itself(row, paying, operations, policies)
    if row.attention in {None, "reservation_lapses"}:
        for number, record in ours.items():
            transaction = theirs[number][1]
            words = {mark.partition("=")[0] for mark in (record.decided or "").split()}
            decided = PAYMENTS_ALONE.intersection(words) and number in world.decided
            if _returnable(transaction) > 0 and not decided:
                _told(row, record, operations, policies)


def _one_effect(world: World, operation: Any, payment: Payment, transaction: Transaction) -> None:
    """An operation has one effect if it succeeded and none if it was rejected; more than one never."""
    about = (
        operation.checkout_id,
        operation.kind,
        operation.state,
        operation.amount,
        operation.last_error,
        transaction.movements,
    )
    if operation.kind == "release":
        released = sum(movement.type == "released" for movement in transaction.movements)
        returned = transaction.captured_minor > 0 and transaction.refunded_minor == transaction.captured_minor
        assert released <= 1, about
        assert operation.state != "succeeded" or released == 1 or returned, about
        return
    named = [
        movement
        for movement in transaction.movements
        if movement.identifier == operation.reconciliation_identifier
    ]
    assert len(named) <= 1, about
    assert all(movement.amount_minor == operation.amount for movement in named), about
    if operation.state == "rejected":
        assert not named, about
    if operation.state == "succeeded" and transaction.transaction_id not in world.by_hand:
        already = payment.auto_capture and not payment.leaves_capture
        assert named or already, about


def _books_agree(ours: Any, theirs: Transaction) -> None:
    books = (ours.captured, ours.refunded, ours.charged_back)
    ledger = (theirs.captured_minor, theirs.refunded_minor, theirs.charged_back_minor)
    assert books == ledger, (ours.checkout_id, ours.transaction_id, "books", books, "ledger", ledger)
    assert (ours.meaning == "nothing") == (
        theirs.held_minor <= 0 and not theirs.captured_minor
    ) or ours.meaning == "open", (
        ours.checkout_id,
        ours.meaning,
        theirs.status,
    )


def _nothing_by_itself(
    row: Any, accepted: Any, operations: list[Any], policies: Mapping[str, object]
) -> None:
    """What completed the checkout is captured at most once without being asked, and returned only as policy
    says.
    """
    own = [operation for operation in operations if operation.transaction_id == accepted.transaction_id]
    automatic = [operation for operation in own if operation.cause == "automatic"]
    assert len(automatic) <= 1, (row.id, automatic)
    returned = [
        operation for operation in own if operation.cause == "returned" and operation.command_id is None
    ]
    assert len(returned) <= 1, (row.id, returned)
    assert not returned or (row.late and policies["late"] == "return"), (row.id, returned)


def _returnable(transaction: Transaction) -> int:
    """Return what could go back to the shopper: a part that was captured leaves the rest of its reservation
    to lapse.
    """
    if transaction.outcome != Outcome.SUCCEEDED or transaction.status == "released":
        return 0
    taken = transaction.captured_minor
    return (
        taken - transaction.refunded_minor - transaction.charged_back_minor
        if taken
        else transaction.reserved_minor
    )


def _told(row: Any, payment: Any, operations: list[Any], policies: Mapping[str, object]) -> None:
    """Late and surplus money without a decision is kept by policy, or a decision is asked for: for that there
    is attention.
    """
    about = (
        row.id,
        payment.transaction_id,
        payment.role,
        "and no attention was raised",
        payment.decided,
        policies,
    )
    if payment.role == "surplus":
        assert policies["surplus"] == "keep", about
    if payment.role == "accepted" and row.late:
        asked = any(
            each.transaction_id == payment.transaction_id and each.cause == "asked" for each in operations
        )
        assert policies["late"] == "keep" or asked, about


async def _dismissed(world: World) -> set[str]:
    """Return the transactions that were dismissed as no money of the order."""
    found: set[str] = set()
    for checkout in world.checkouts:
        rows = await world.db.read(_PAYMENTS, {"id": checkout})
        found |= {row.transaction_id for row in rows if "=dismiss@" in (row.decided or "")}
    return found


def _held_money_has_an_owner(world: World, rows: Mapping[UUID, Any], dismissed: set[str]) -> None:
    """If the gateway holds money for an order, a checkout of the order is completed, or a decision is asked
    for, or the payment was dismissed.
    """
    seen: Counter[str] = Counter()
    for checkout in world.checkouts:
        for payment, transaction in world.transactions(checkout):
            number = transaction.transaction_id
            if (
                transaction.held_minor <= 0
                or transaction.outcome != "succeeded"
                or seen[number]
                or number in dismissed
            ):
                continue
            seen[number] += 1
            named = payment.transaction_info.get("checkout") if payment.echoes_infos else None
            owners = [
                row
                for checkout, row in rows.items()
                if world.orders[checkout] == payment.order_id and named in {None, str(checkout)}
            ]
            assert any(row.state == State.COMPLETED or row.attention for row in owners), (
                number,
                transaction.status,
                "is held, and its checkouts are",
                [(row.id, row.state) for row in owners],
            )
