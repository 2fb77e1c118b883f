"""What ledger, books and trail show of an order at its end, whether they agree, and what a script expects of
them.

Amounts are minor units. The ledger is the sandbox's: every movement of a shopper's money, by whom and under
which identifier. The books are what our API answers; for the money of a whole run, what the table of payments
holds. A function of evidence returns what is missing, as the end of the sentence "expected …", or None.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import text

from orchestrator.devkit.demo.shop import Unscripted, need
from orchestrator.domain import money
from orchestrator.domain.states import State, Trigger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import httpx

    from orchestrator.api.contract import answers
    from orchestrator.store.database import Database

Sums: TypeAlias = tuple[int, int, int]
"""Reserved, captured, refunded."""

Evidence: TypeAlias = "Callable[[Observations], str | None]"
_SENTENCE = re.compile(r"[A-Z0-9].+ .+\.")


@dataclass(frozen=True, slots=True)
class Observations:
    """One order at its end; `explained` where that was asked for."""

    checkout: answers.Checkout
    ledger: list[dict[str, Any]]
    trail: list[answers.AuditEntry]
    explained: answers.Explanation | None = None

    @property
    def held_by_us(self) -> Sums:
        """What our books say of the payment that pays the order."""
        return _sums(self.checkout.money, self.checkout.amount.currency)

    @property
    def at_gateway(self) -> dict[str, Sums]:
        """What the ledger says of each transaction that ever held money. A released reservation is none."""
        return {
            row["transactionId"]: (
                0 if row["status"] == "released" else row["reservedMinor"],
                row["capturedMinor"],
                row["refundedMinor"],
            )
            for row in self.ledger
            if row["outcome"] == "succeeded"
        }

    @property
    def in_books(self) -> dict[str, Sums]:
        """What our books say of each transaction that is more than an attempt, or holds money."""
        seen = {
            payment.transaction_id: _sums(payment, payment.currency) for payment in self.checkout.payments
        }
        return {number: sums for number, sums in seen.items() if any(sums) or number in self.at_gateway}

    @property
    def attempts_without_money(self) -> int:
        return sum(row["transactionId"] is not None and row["outcome"] != "succeeded" for row in self.ledger)

    def delivered(self, kind: str, *, but: str = "") -> int:
        """Count the callbacks of a kind that we answered."""
        return sum(
            each["kind"] == kind and each["status"] != but and each["answerStatus"] is not None
            for each in self.callbacks()
        )

    def callbacks(self) -> Iterator[dict[str, Any]]:
        """Yield every callback that the gateway sent, or would have."""
        return (callback for row in self.ledger for callback in row["callbacks"])

    def actions(self, action: str) -> int:
        """Count the entries of a kind in the trail."""
        return sum(entry.action == action for entry in self.trail)

    def moves(self, to: str) -> int:
        """Count how often the checkout came to a state from another."""
        return sum(entry.to == to and entry.before != to for entry in self.trail)

    def callbacks_read(self) -> Iterator[dict[str, Any]]:
        return callbacks_of(self.trail)

    def check_money(self) -> None:
        """Raise `Unscripted` unless ledger and books agree to the minor unit in each transaction."""
        theirs, ours = self.at_gateway, self.in_books
        for number in sorted(theirs.keys() | ours.keys()):
            at, here = theirs.get(number), ours.get(number)
            if at != here:
                raise Unscripted(
                    expected=f"the ledger's (reserved, captured, refunded) {at or 'nothing'} of transaction {number} in our books",
                    seen=str(here or "nothing"),
                )

    def check_movements(self, wanted: tuple[str, ...]) -> None:
        """Check that the gateway did what was requested: these movements, each once, and no others."""
        made = [
            movement for row in self.ledger for movement in row["movements"] if movement["by"] == "merchant"
        ]
        if Counter(movement["type"] for movement in made) != Counter(wanted):
            seen = ", ".join(movement["type"] for movement in made)
            raise Unscripted(
                expected=f"{', '.join(wanted) or 'no movement'} in the ledger", seen=seen or "none"
            )
        named = [movement["identifier"] for movement in made if movement["identifier"]]
        ours = {operation.reconciliation_identifier for operation in self.checkout.operations}
        if len(set(named)) != len(named) or not ours.issuperset(named):
            raise Unscripted(expected="each identifier of ours once in the ledger", seen=", ".join(named))
        for row in self.ledger:
            if row["capturedMinor"] > row["reservedMinor"] or row["refundedMinor"] > row["capturedMinor"]:
                raise Unscripted(
                    expected="no more captured than reserved, and no more refunded than captured",
                    seen=f"{row['reservedMinor']}, {row['capturedMinor']}, {row['refundedMinor']}",
                )

    def check_explanation(self) -> None:
        """Check that the explanation has a summary, reasons and evidence, each a whole sentence."""
        said, why = self.sentences, self.explained
        whole = why is not None and why.because and why.evidence
        if not whole or not all(_SENTENCE.fullmatch(sentence) for sentence in said):
            raise Unscripted(expected="an explanation in whole sentences", seen=str(said))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the explanation says."""
        why = self.explained
        return () if why is None else (why.summary, *why.because, *why.evidence)


def callbacks_of(trail: Iterable[answers.AuditEntry]) -> Iterator[dict[str, Any]]:
    """Yield the callbacks that a trail says were read, with how well each was proven."""
    return (callback for entry in trail for callback in entry.evidence.get("callbacks", ()))


def _sums(amounts: answers.HeldMoney | answers.Payment, currency: str) -> Sums:
    """Return the amounts in minor units; an unreadable amount fails."""
    each = (amounts.reserved, amounts.captured, amounts.refunded)
    reserved, captured, refunded = (money.to_minor(str(amount), currency) for amount in each)
    return reserved, captured, refunded


# ── What a script wants to find ──


def _that(missing: str, holds: Callable[[Observations], object]) -> Evidence:
    """Return what is missing where something does not hold."""
    return lambda observed: None if holds(observed) else missing


def every(*parts: Evidence) -> Evidence:
    return lambda observed: next((missing for part in parts if (missing := part(observed)) is not None), None)


one_declined = _that(
    "a declined attempt in the ledger", lambda observed: observed.attempts_without_money == 1
)
never_tried = _that("no attempt to pay in the ledger", lambda observed: not observed.attempts_without_money)
late = _that("a checkout that is marked late", lambda observed: observed.checkout.late)
in_time = _that("a checkout that is not marked late", lambda observed: not observed.checkout.late)
unasked = _that("no operation of ours", lambda observed: not observed.checkout.operations)
never_completed = _that(
    "an order that was never completed", lambda observed: not observed.moves(State.COMPLETED)
)
reopened = _that(
    "one entry checkout:reopened in the trail", lambda observed: observed.actions("checkout:reopened") == 1
)


def only(kind: str, lost: str) -> Evidence:
    return _that(
        f"a {kind} callback that was delivered and no {lost} callback that was",
        lambda observed: observed.delivered(kind) and not observed.delivered(lost),
    )


def three_of_each(observed: Observations) -> str | None:
    # Besides, the gateway announces each new payment with a notification of its own.
    counts = observed.delivered("success"), observed.delivered("notification", but="new")
    return None if counts == (3, 3) else f"three success callbacks and three notifications, and not {counts}"


def two_failures(observed: Observations) -> str | None:
    count = observed.actions("gateway:failed")
    return None if count == 2 else f"two failed calls in the trail, and not {count}"  # noqa: PLR2004 - the script's


def proven(observed: Observations) -> str | None:
    """Every callback that was read was signed, and none came from elsewhere than the gateway."""
    read = {(callback["grade"], callback["network"]) for callback in observed.callbacks_read()}
    good = read in ({("signed", "inside")}, {("signed", "unchecked")})
    return None if good else f"signed callbacks from the gateway alone, and not {sorted(read)}"


def settled_by(**wanted: int) -> Evidence:
    """So many operations succeeded for each cause (asked, automatic, returned), and no others."""

    def evidence(observed: Observations) -> str | None:
        counted = Counter(
            operation.cause for operation in observed.checkout.operations if operation.state == "succeeded"
        )
        return (
            None
            if counted == Counter(wanted)
            else f"operations that succeeded {wanted}, and not {dict(counted)}"
        )

    return evidence


def entries(**wanted: int) -> Evidence:
    """So many entries in the trail of these actions of an operation (`unknown`, `submitted` and so on)."""

    def evidence(observed: Observations) -> str | None:
        for action, count in wanted.items():
            seen = observed.actions(f"money:{action}")
            if seen != count:
                return f"{count} entries money:{action} in the trail, and not {seen}"
        return None

    return evidence


def found_by_lookup(observed: Observations) -> str | None:
    if any(True for _ in observed.callbacks_read()):
        return "no callback in the trail"
    lost = [callback for callback in observed.callbacks() if callback["answerStatus"] is not None]
    return "no callback that was delivered" if lost else None


def disbelieved(grade: str, *, never: bool) -> Evidence:
    """Callbacks were read that proved nothing; `never`: no callback moved the checkout at all."""

    def evidence(observed: Observations) -> str | None:
        if grade not in {callback["grade"] for callback in observed.callbacks_read()}:
            return f"a callback with grade {grade} in the trail"
        arrived = [entry for entry in observed.trail if entry.trigger == Trigger.CALLBACK_ARRIVED]
        if never:
            return "no callback that moved the checkout" if arrived else None
        proven = all(
            any(callback["grade"] == "signed" for callback in entry.evidence["callbacks"])
            for entry in arrived
        )
        return None if proven else "none but signed callbacks to move the checkout"

    return evidence


def refused_401(observed: Observations) -> str | None:
    statuses = {callback["answerStatus"] for callback in observed.callbacks()}
    return None if statuses == {401} else f"401 as the answer to every callback, and not {sorted(statuses)}"


def charged_back(observed: Observations) -> str | None:
    ours, whole = observed.checkout.money.charged_back, observed.checkout.amount.value
    return None if ours == whole else f"all of it charged back in our books, and not {ours}"


def bound_by_number(observed: Observations) -> str | None:
    """The payment was known as the order's by its number, and by nothing better."""
    seen = {payment.binding for payment in observed.checkout.payments}
    return None if seen == {"order_ref"} else f"payments bound by order_ref, and not {sorted(seen)}"


# ── The money of a whole run ──

_BOOKS = text("""
    SELECT currency, sum(reserved) AS reserved, sum(captured) AS captured, sum(refunded) AS refunded
      FROM payments WHERE order_ref LIKE :prefix GROUP BY currency
""")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Balance:
    """Reserved, captured and refunded of one currency in minor units, by both sides.

    A released reservation counts as none.
    """

    currency: str
    ledger: Sums
    books: Sums

    @property
    def agrees(self) -> bool:
        return self.ledger == self.books


async def balances_of(http: httpx.AsyncClient, gateway: str, db: Database, *, prefix: str) -> list[Balance]:
    """Return the money of all orders whose numbers begin with `prefix`."""
    ledger = await _ledger(http, gateway, prefix)
    rows = await db.read(_BOOKS, {"prefix": f"{prefix}%"})
    books = {row.currency: (int(row.reserved), int(row.captured), int(row.refunded)) for row in rows}
    nothing = (0, 0, 0)
    sides = [
        (name, ledger.get(name, nothing), books.get(name, nothing)) for name in sorted({*ledger, *books})
    ]
    return [Balance(*side) for side in sides if any(side[1]) or any(side[2])]


async def _ledger(http: httpx.AsyncClient, gateway: str, prefix: str) -> dict[str, Sums]:
    sums: defaultdict[str, Sums] = defaultdict(lambda: (0, 0, 0))
    after: int | None = 0
    while after is not None:
        answer = await http.get(f"{gateway}/sandbox/ledger", params={"after": after, "limit": _PAGE})
        need(answer, (200,), "the sandbox's ledger")
        page = answer.json()
        for order in page["orders"]:
            for row in order["payments"] if order["orderId"].startswith(prefix) else ():
                reserved, captured, refunded = sums[row["currency"]]
                held = 0 if row["status"] == "released" else row["reservedMinor"]
                sums[row["currency"]] = (
                    reserved + held,
                    captured + row["capturedMinor"],
                    refunded + row["refundedMinor"],
                )
        after = page["next"]
    return dict(sums)
