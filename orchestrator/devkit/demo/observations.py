"""What ledger, books and trail tell about one order when it has ended, and whether they tell the same.

Amounts are minor units. The ledger is the sandbox's: every movement of a shopper's money, by whom and under which identifier. The
books are what our API answers.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from orchestrator.devkit.demo.shop import Unscripted
from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Iterator

Sums: TypeAlias = tuple[int, int, int]
"""Reserved, captured, refunded."""

_SENTENCE = re.compile(r"[A-Z0-9].+ .+\.")


@dataclass(frozen=True, slots=True)
class Told:
    """One order at its end. `explained` is empty where nobody asked for it."""

    checkout: dict[str, Any]
    ledger: list[dict[str, Any]]
    trail: list[dict[str, Any]]
    explained: dict[str, Any] = field(default_factory=dict)

    @property
    def held_by_us(self) -> Sums:
        """What our books say of the payment that pays the order."""
        return _sums(self.checkout["money"], self.checkout["amount"]["currency"])

    @property
    def at_gateway(self) -> dict[str, Sums]:
        """What the ledger says of each transaction that ever held money. A released reservation is none."""
        return {
            row["transactionId"]: (
                0 if row["status"] == "released" else row["reservedMinor"], row["capturedMinor"], row["refundedMinor"],
            )
            for row in self.ledger
            if row["outcome"] == "succeeded"
        }  # fmt: skip

    @property
    def in_books(self) -> dict[str, Sums]:
        """What our books say of each transaction of the order that is more than an attempt, or holds money."""
        seen = {one["transactionId"]: _sums(one, one["currency"]) for one in self.checkout["payments"]}
        return {number: sums for number, sums in seen.items() if any(sums) or number in self.at_gateway}

    @property
    def attempts_without_money(self) -> int:
        return sum(row["transactionId"] is not None and row["outcome"] != "succeeded" for row in self.ledger)

    @property
    def operations(self) -> list[dict[str, Any]]:
        """Our captures, refunds and releases, whatever became of them."""
        found: list[dict[str, Any]] = self.checkout["operations"]
        return found

    def movements(self, by: str) -> Iterator[dict[str, Any]]:
        """Yield what happened to the order's money at the gateway because of us (`merchant`) or of itself (`gateway`)."""
        return (one for row in self.ledger for one in row["movements"] if one["by"] == by)

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
        return Counter(entry["action"] for entry in self.trail)[action]

    def moves(self, to: str) -> int:
        """Count how often the checkout came to a state from another."""
        return sum(entry["to"] == to and entry["from"] != to for entry in self.trail)

    def callbacks_read(self) -> Iterator[dict[str, Any]]:
        """Yield the callbacks that the trail says were read, with how well each was proven."""
        return (callback for entry in self.trail for callback in entry["evidence"].get("callbacks", ()))

    def check_money(self) -> None:
        """Compare ledger and books, transaction by transaction; `Unscripted` unless they agree to the minor unit."""
        theirs, ours = self.at_gateway, self.in_books
        for number in sorted(theirs.keys() | ours.keys()):
            at, here = theirs.get(number), ours.get(number)
            if at != here:
                raise Unscripted(
                    expected=f"the ledger's (reserved, captured, refunded) {at or 'nothing'} of transaction {number} in our books",
                    seen=str(here or "nothing"),
                )

    def check_movements(self, wanted: tuple[str, ...]) -> None:
        """See that the gateway did what we asked of it: these movements, each once, and none that we know nothing of."""
        made = list(self.movements("merchant"))
        if Counter(one["type"] for one in made) != Counter(wanted):
            seen = ", ".join(one["type"] for one in made)
            raise Unscripted(
                expected=f"{', '.join(wanted) or 'no movement'} in the ledger", seen=seen or "none"
            )
        named = [one["identifier"] for one in made if one["identifier"]]
        ours = {one["reconciliationIdentifier"] for one in self.operations}
        if len(set(named)) != len(named) or not ours.issuperset(named):
            raise Unscripted(expected="each identifier of ours once in the ledger", seen=", ".join(named))
        for row in self.ledger:
            if row["capturedMinor"] > row["reservedMinor"] or row["refundedMinor"] > row["capturedMinor"]:
                raise Unscripted(
                    expected="no more captured than reserved, and no more refunded than captured",
                    seen=f"{row['reservedMinor']}, {row['capturedMinor']}, {row['refundedMinor']}",
                )

    def check_explanation(self) -> None:
        """See that somebody who asks why is told why: in a summary, reasons and evidence, each a whole sentence."""
        why, by = self.explained.get("because", ()), self.explained.get("evidence", ())
        said = [self.explained.get("summary"), *why, *by]
        if not why or not by or not all(isinstance(one, str) and _SENTENCE.fullmatch(one) for one in said):
            raise Unscripted(expected="an explanation in whole sentences", seen=str(said))


def _sums(amounts: dict[str, Any], currency: str) -> Sums:
    reserved, captured, refunded = (
        money.to_minor(str(amounts[name]), currency) for name in ("reserved", "captured", "refunded")
    )
    return reserved, captured, refunded
