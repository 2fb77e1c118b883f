"""What the gateway's own answer means for a checkout: binding, reading, and the money it proves.

A look is one call to the Merchant API's `payments`; judging its answer is a pure function. A transaction counts for a checkout
when our own id comes back in its PaymentInfo (bound), or, weaker, when it names no checkout at all and order number, amount and
currency match. Nothing is concluded from a callback, and no absence from an answer that is as long as answers get.

Also here, because they follow from what a look showed: when to look next, and how long a settled checkout is watched.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from orchestrator import money
from orchestrator.gateway.payments import Found, Reading, Transaction, held, read
from orchestrator.lifecycle import PaymentSeen, money_left

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.lifecycle import Held, Known
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

# Attention that a look raises, and the next look that does not show it takes back. Everything else stays until somebody decides.
_SHOWN: Final = frozenset({
    "surplus_payment", "unclear_payment", "payment_mismatch", "unbound_payment", "lookup_at_limit", "open_payment", "payment_gone",
})  # fmt: skip

PROBLEMS: Final = frozenset({"payment_mismatch", "unclear_payment", "unbound_payment"})
"""Words of attention about transactions that hold money, or may, and that we do not take for the order's payment."""

_VALID_DAYS: Final = {"visa": 7, "mastercard": 3}
"""Days for which an authorisation is sure to be worth a capture (D9): Visa 7, Mastercard at least 3; others as Visa."""
_OTHERS_DAYS: Final = 7


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one look. `money` is (reserved, captured, refunded) of the accepted transaction, minor units.

    `surplus` are the transactions that hold money beside the accepted one and that nobody has decided on. `reserved_until` is
    until when the accepted reservation is sure to be worth a capture; None where nothing is left to capture.
    """

    finding: Finding
    payments: tuple[PaymentSeen, ...]
    money: tuple[int, int, int]
    evidence: dict[str, object]
    attention: str | None = None
    surplus: tuple[PaymentSeen, ...] = ()
    charged_back: int = 0
    reserved_until: datetime | None = None

    @property
    def accepted(self) -> PaymentSeen | None:
        """The transaction that pays the checkout."""
        return next((one for one in self.payments if one.role == Role.ACCEPTED), None)


def word_of(attention: str | None) -> str:
    """Return the word that an attention begins with."""
    return (attention or "").partition(":")[0]


def concerned(checkout: Held) -> tuple[Known, ...]:
    """Return the transactions that the checkout's attention is about, and on which a person so decides."""
    word = word_of(checkout.attention)
    if word == "surplus_payment":
        return tuple(one for one in checkout.known if one.role == Role.SURPLUS and one.left > 0)
    if word in PROBLEMS:
        return tuple(one for one in checkout.known if one.role == Role.UNKNOWN)
    if word == "open_payment":
        return tuple(one for one in checkout.known if one.reading == Reading.OPEN)
    return tuple(one for one in checkout.known if one.transaction_id == checkout.accepted)


def still(attention: str | None) -> str | None:
    """Return what remains of an attention after a look that does not raise it again."""
    return None if word_of(attention) in _SHOWN else attention


def judge(  # noqa: C901 - one branch for each finding
    checkout: Held, found: Found, *, shared: bool = False
) -> Verdict:
    """Say what the gateway's answer to a look by order number proves for this checkout.

    `shared`: other checkouts have the same order number, so that a transaction which names no checkout may be theirs.
    """
    ours = [(one, binding) for one in found.transactions if (binding := bind(checkout, one)) is not None]
    ours.sort(key=lambda pair: (pair[0].created_at, len(pair[0].transaction_id), pair[0].transaction_id))
    readings = [(one, binding, _reading(checkout, one, binding, shared=shared)) for one, binding in ours]
    accepted = _accepted(checkout, readings)
    released = None if accepted is not None else _released(checkout, readings)
    seen = tuple(_seen(one, binding, reading, accepted) for one, binding, reading in readings)
    # A decision on one word silences that word for that transaction, and nothing else.
    settled = {one.transaction_id for one in checkout.known if one.is_decided(*PROBLEMS)}
    kept = {one.transaction_id for one in checkout.known if one.is_decided("surplus_payment")}
    problems = [
        one.transaction_id
        for one, _, reading in readings
        if (reading is Reading.UNKNOWN or (reading is Reading.AGREEMENT and accepted is None))
        and one.transaction_id not in settled
    ]
    surplus = tuple(
        one for one in seen if one.role == Role.SURPLUS and left(one) > 0 and one.transaction_id not in kept
    )
    evidence: dict[str, object] = {
        "by": "lookup",
        "transactions": [
            {
                "id": one.transaction_id, "status": one.status, "reading": one.reading, "binding": one.binding,
                "role": one.role, "reserved": one.reserved, "captured": one.captured, "refunded": one.refunded,
                **({"chargedBack": one.charged_back} if one.charged_back else {}),
                **({"flags": list(one.flags)} if one.flags else {}),
                **({"raw": dict(one.raw_amounts)} if one.raw_amounts else {}),
            }
            for one in seen
        ],
    }  # fmt: skip
    if len(ours) < len(found.transactions):
        evidence["foreign"] = len(found.transactions) - len(ours)
    names = ", ".join(one.transaction_id for one in surplus)
    attention = None
    if accepted is not None:
        finding = Finding.PAID
        if surplus:
            attention = f"surplus_payment: transactions {names} also hold money for this order"
        elif problems:
            attention = _why_unsure(checkout, readings, problems)
    elif released is not None:
        finding = Finding.RELEASED
        by_us = any(
            one.kind == "release"
            and one.state == "succeeded"
            and one.transaction_id == released.transaction_id
            for one in checkout.operations
        )
        if not by_us:
            attention = f"payment_released: transaction {released.transaction_id}, which paid this order, was released at the gateway"
        if surplus:
            beside = f"transactions {names} hold money for it"
            attention = f"{attention}; {beside}" if attention else f"surplus_payment: {beside}"
    elif problems:
        finding = Finding.UNSURE
        attention = _why_unsure(checkout, readings, problems)
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
    return Verdict(
        finding=finding,
        payments=seen,
        money=held(paying)
        if paying is not None
        else (checkout.reserved, checkout.captured, checkout.refunded),
        evidence=evidence,
        attention=attention,
        surplus=surplus,
        charged_back=paying.charged_back if paying is not None else checkout.charged_back,
        reserved_until=_valid_until(accepted) if accepted is not None else None,
    )


def bind(checkout: Held, transaction: Transaction) -> Binding | None:
    """Say how a transaction is tied to this checkout, or None if it is another's."""
    if transaction.order_ref != checkout.order_ref:
        return None
    ours = transaction.payment_infos.get("checkout")
    if ours is None:
        return Binding.ORDER_REF
    return Binding.BOUND if ours == str(checkout.id) else None


def unbound_money(checkout: Held, found: Found) -> bool:
    """Say whether money in this answer is tied to the checkout by the order number alone, so that sharing it matters."""
    return any(
        bind(checkout, one) is Binding.ORDER_REF
        and read(one) in _MONEY
        and one.transaction_id != checkout.accepted
        for one in found.transactions
    )


def left(payment: PaymentSeen) -> int:
    """Return what a transaction still holds of the shopper's money, in minor units."""
    return money_left(
        payment.reading, payment.reserved, payment.captured, payment.refunded + payment.charged_back
    )


def seen_alone(checkout: Held, transaction: Transaction) -> PaymentSeen:
    """Return how one transaction of the checkout stands by a look at it alone; its role is as it was known."""
    before = next((one for one in checkout.known if one.transaction_id == transaction.transaction_id), None)
    binding = bind(checkout, transaction) or Binding.ORDER_REF
    seen = _seen(transaction, binding, read(transaction), None)
    return replace(seen, role=before.role) if before is not None else seen


def _reading(checkout: Held, transaction: Transaction, binding: Binding, *, shared: bool) -> Reading:
    """Read a transaction against our order: money of another amount or currency is not what was asked for.

    Nor is money that names no checkout where several have the order number: it would pay each of them.
    """
    reading = read(transaction)
    if reading not in _MONEY:
        return reading
    if transaction.transaction_id == checkout.accepted:
        # What it was taken for was decided then; what is left of it may have become less since.
        return reading if transaction.currency == checkout.currency else Reading.UNKNOWN
    whole = max(transaction.reserved, transaction.captured)
    matches = transaction.currency == checkout.currency and whole == checkout.amount
    certain = binding is Binding.BOUND or not (shared or _not_ours(checkout, transaction))
    return reading if matches and certain else Reading.UNKNOWN


def _not_ours(checkout: Held, transaction: Transaction) -> bool:
    """Say of a transaction that names no checkout whether it speaks against ours: made long before it, or naming several."""
    if "info_repeated" in transaction.raw_flags:
        return True
    made = _made_at(transaction)
    # An id of ours begins with the milliseconds of its making; the gateway's dates have no offset, hence the day.
    born = datetime.fromtimestamp((checkout.id.int >> 80) / 1000, UTC)
    return checkout.openings > 0 and made is not None and made < born - timedelta(days=1)


def _made_at(transaction: Transaction) -> datetime | None:
    try:
        return datetime.strptime(transaction.created_at, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _accepted(checkout: Held, readings: Sequence[tuple[Transaction, Binding, Reading]]) -> Transaction | None:
    """Return the transaction that pays the checkout: the one accepted before, else the first that holds money."""
    paying = [(one, binding) for one, binding, reading in readings if reading in _MONEY]
    before = [one for one, _ in paying if one.transaction_id == checkout.accepted]
    if before or checkout.accepted is not None:
        return before[0] if before else None

    def rank(pair: tuple[Transaction, Binding]) -> tuple[bool, bool]:
        # One that went back already pays nothing while another still holds; and what is bound to this very checkout goes
        # before what merely has its order number.
        one, binding = pair
        holds = money_left(read(one), one.reserved, one.captured, one.refunded + one.charged_back) > 0
        return not holds, binding is not Binding.BOUND

    return min(paying, key=rank)[0] if paying else None


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
        charged_back=one.charged_back,
        flags=one.raw_flags,
        raw_amounts=one.raw_amounts or None,
    )


def _valid_until(transaction: Transaction) -> datetime | None:
    """Return until when a reservation is sure to be worth a capture; None where nothing is left to capture, or no date is known."""
    if (
        read(transaction) not in {Reading.RESERVED, Reading.CAPTURED}
        or transaction.captured >= transaction.reserved
    ):
        return None
    if transaction.reserved_until is not None:
        return transaction.reserved_until
    made = _made_at(transaction)
    if made is None:
        return None
    days = next((days for name, days in _VALID_DAYS.items() if name in transaction.scheme), _OTHERS_DAYS)
    return made + timedelta(days=days)


def _why_unsure(
    checkout: Held, readings: Sequence[tuple[Transaction, Binding, Reading]], problems: Sequence[str]
) -> str:
    one = next(one for one, _, _ in readings if one.transaction_id in problems)
    whole = max(one.reserved, one.captured)
    if read(one) in _MONEY and (whole, one.currency) == (checkout.amount, checkout.currency):
        return (
            f"unbound_payment: transaction {one.transaction_id} names no checkout, and several checkouts have order number "
            f"{checkout.order_ref}"
        )
    if read(one) in _MONEY:
        return (
            f"payment_mismatch: transaction {one.transaction_id} holds {money.spelled(whole, one.currency)}, "
            f"the order is {money.spelled(checkout.amount, checkout.currency)}"
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
