"""What the gateway's own answer means for a checkout: binding, reading, and the money it proves.

A look is one call to the Merchant API's `payments`; judging its answer is a pure function. A transaction counts for a checkout
when our own id comes back in its PaymentInfo (bound), or, weaker, when it names no checkout at all and order number, amount and
currency match. Nothing is concluded from a callback, and no absence from an answer that is as long as answers get.

Also here, because they follow from what a look showed: when to look next, and how long a settled checkout is watched.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from orchestrator.gateway.payments import Found, Reading, Transaction, held, read
from orchestrator.lifecycle import PaymentSeen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from orchestrator.lifecycle import Held
    from orchestrator.settings import Settings


class Finding(StrEnum):
    """What a look shows of a checkout as a whole."""

    PAID = "paid"
    """Money is or was held for it: the checkout is worth completing."""
    OPEN = "open"
    """Something is under way that may still become money."""
    DECLINED = "declined"
    """There were attempts, and all are over without money."""
    NOTHING = "nothing"
    """The gateway knows no attempt."""
    RELEASED = "released"
    """The payment that completed it was given back before its capture. What else may hold money for it is a person's business."""
    UNSURE = "unsure"
    """The answer contradicts itself or our order: a person must look, and nothing is concluded."""


class Binding(StrEnum):
    """How we know that a transaction belongs to the checkout."""

    BOUND = "bound"
    ORDER_REF = "order_ref"


class Role(StrEnum):
    """What a transaction is to its checkout."""

    ACCEPTED = "accepted"
    SURPLUS = "surplus"
    ATTEMPT = "attempt"
    UNKNOWN = "unknown"


_MONEY: Final = frozenset({Reading.RESERVED, Reading.CAPTURED, Reading.REFUNDED})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one look. `money` is (reserved, captured, refunded) of the accepted transaction, minor units."""

    finding: Finding
    payments: tuple[PaymentSeen, ...]
    money: tuple[int, int, int]
    evidence: dict[str, object]
    attention: str | None = None


def judge(checkout: Held, found: Found) -> Verdict:
    """Say what the gateway's answer to a look by order number proves for this checkout."""
    ours = [(one, binding) for one in found.transactions if (binding := bind(checkout, one)) is not None]
    ours.sort(key=lambda pair: (pair[0].created_at, len(pair[0].transaction_id), pair[0].transaction_id))
    readings = [(one, binding, _reading(checkout, one, binding)) for one, binding in ours]
    accepted = _accepted(checkout, readings)
    seen = tuple(_seen(one, binding, reading, accepted) for one, binding, reading in readings)
    problems = [one.transaction_id for one, _, reading in readings if reading is Reading.UNKNOWN]
    surplus = [one.transaction_id for one in seen if one.role == Role.SURPLUS]
    evidence: dict[str, object] = {
        "by": "lookup",
        "transactions": [
            {
                "id": one.transaction_id, "status": one.status, "reading": one.reading, "binding": one.binding,
                "role": one.role, "reserved": one.reserved, "captured": one.captured, "refunded": one.refunded,
                **({"flags": list(one.flags)} if one.flags else {}),
            }
            for one in seen
        ],
    }  # fmt: skip
    if len(ours) < len(found.transactions):
        evidence["foreign"] = len(found.transactions) - len(ours)
    attention = released = None
    if accepted is not None:
        finding = Finding.PAID
        if surplus:
            attention = f"surplus_payment: transactions {', '.join(surplus)} also hold money for this order"
        elif problems:
            attention = (
                f"unclear_payment: transactions {', '.join(problems)} beside the accepted one cannot be read"
            )
    elif (released := _released(checkout, readings)) is not None:
        finding = Finding.RELEASED
        attention = f"payment_released: transaction {released.transaction_id}, which paid this order, was released at the gateway"
        if surplus:
            attention += f"; transactions {', '.join(surplus)} hold money for it"
    elif problems:
        finding = Finding.UNSURE
        attention = _why_unsure(checkout, readings)
    elif any(reading is Reading.OPEN for _, _, reading in readings):
        finding = Finding.OPEN
    elif found.at_limit:
        finding = Finding.UNSURE
        evidence["atLimit"] = True
        attention = (
            "lookup_at_limit: the gateway's answer has as many rows as it may have, so it proves no absence"
        )
    else:
        finding = Finding.DECLINED if readings else Finding.NOTHING
    paying = accepted or released
    money = held(paying) if paying is not None else (checkout.reserved, checkout.captured, checkout.refunded)
    return Verdict(finding, seen, money, evidence, attention)


def bind(checkout: Held, transaction: Transaction) -> Binding | None:
    """Say how a transaction is tied to this checkout, or None if it is another's."""
    if transaction.order_ref != checkout.order_ref:
        return None
    ours = transaction.payment_infos.get("checkout")
    if ours is None:
        return Binding.ORDER_REF
    return Binding.BOUND if ours == str(checkout.id) else None


def _reading(checkout: Held, transaction: Transaction, binding: Binding) -> Reading:
    """Read a transaction against our order: money of another amount or currency is not what was asked for.

    Nor is money that names no checkout where several have the order number: it would pay each of them.
    """
    reading = read(transaction)
    if reading not in _MONEY:
        return reading
    whole = max(transaction.reserved, transaction.captured)
    matches = transaction.currency == checkout.currency and whole == checkout.amount
    certain = (
        binding is Binding.BOUND or not checkout.shared or transaction.transaction_id == checkout.accepted
    )
    return reading if matches and certain else Reading.UNKNOWN


def _accepted(checkout: Held, readings: Sequence[tuple[Transaction, Binding, Reading]]) -> Transaction | None:
    """Return the transaction that pays the checkout: the one accepted before, else the first that holds money."""
    paying = [(one, binding) for one, binding, reading in readings if reading in _MONEY]
    before = [one for one, _ in paying if one.transaction_id == checkout.accepted]
    if before or checkout.accepted is not None:
        return before[0] if before else None
    # What is bound to this very checkout goes before what merely has its order number.
    return min(paying, key=lambda pair: pair[1] is not Binding.BOUND)[0] if paying else None


def _released(checkout: Held, readings: Sequence[tuple[Transaction, Binding, Reading]]) -> Transaction | None:
    """Return the transaction that completed the checkout, if it holds nothing any more."""
    over = (one for one, _, reading in readings if reading is Reading.NOTHING)
    return next((one for one in over if one.transaction_id == checkout.accepted), None)


def _seen(one: Transaction, binding: Binding, reading: Reading, accepted: Transaction | None) -> PaymentSeen:
    role = Role.ATTEMPT
    if accepted is not None and one.transaction_id == accepted.transaction_id:
        role = Role.ACCEPTED
    elif reading in _MONEY:
        role = Role.SURPLUS
    elif reading is Reading.UNKNOWN:
        role = Role.UNKNOWN
    reserved, captured, refunded = held(one)
    return PaymentSeen(
        transaction_id=one.transaction_id,
        payment_id=one.payment_id or None,
        order_ref=one.order_ref,
        role=role,
        binding=binding,
        status=one.status,
        reading=reading,
        currency=one.currency,
        reserved=reserved,
        captured=captured,
        refunded=refunded,
        flags=one.raw_flags,
    )


def _why_unsure(checkout: Held, readings: Sequence[tuple[Transaction, Binding, Reading]]) -> str:
    one = next(one for one, _, reading in readings if reading is Reading.UNKNOWN)
    whole = max(one.reserved, one.captured)
    if read(one) in _MONEY and (whole, one.currency) == (checkout.amount, checkout.currency):
        return (
            f"unbound_payment: transaction {one.transaction_id} names no checkout, and several checkouts have order number "
            f"{checkout.order_ref}"
        )
    if read(one) in _MONEY:
        return (
            f"payment_mismatch: transaction {one.transaction_id} holds {whole} {one.currency} "
            f"(minor units), the order is {checkout.amount} {checkout.currency}"
        )
    return f"unclear_payment: transaction {one.transaction_id} is {one.status} with amounts that do not say what it means"


# ── When to look again ──────────────────────────────────────────────────────────────────────────────────────────────────


def next_look(settings: Settings, looks: int) -> float:
    """Return the seconds until the look after `looks` looks since the last sign of life: doubling, capped, spread by jitter."""
    delay = min(settings.recheck_after_callback * 2.0 ** min(looks, 40), settings.look_cap)
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter


def quiet_looks(settings: Settings) -> int:
    """Return the number of looks that a checkout starts with while its shopper has shown no sign of life."""
    looks = 0
    while settings.recheck_after_callback * 2.0**looks < settings.first_look and looks < 40:  # noqa: PLR2004 - a bound
        looks += 1
    return looks


def thinned(alarm: float, age: float) -> float:
    """Return an alarm that grows with the age (seconds) of what it is for: a tenth of it, at most a week."""
    return max(alarm, min(age / 10, 7 * 86_400.0))


def back_off(settings: Settings, attempts: int, *, at_least: float = 0.0) -> float:
    """Return the seconds until the next try after `attempts` failures: exponential with full jitter, never below `at_least`."""
    ceiling = min(settings.retry_base * 2.0 ** min(attempts, 40), settings.retry_cap)
    return at_least + random.uniform(0.05, 1.0) * ceiling  # noqa: S311 - jitter


def next_watch(settings: Settings, ended_at: datetime, now: datetime) -> float | None:
    """Return the seconds until the next look at an ended checkout, or None when the watch has run out."""
    since = (now - ended_at).total_seconds()
    later = [watch - since for watch in settings.settle_watch if watch > since]
    return later[0] if later else None
