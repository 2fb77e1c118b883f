"""What must be found of an order of group `money` beside its sums: in the trail, among our operations, in the gateway's ledger.

A proof returns what is missing, as the end of the sentence "expected …", or None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.devkit.demo.observations import Told


def every(*parts: Callable[[Told], str | None]) -> Callable[[Told], str | None]:
    return lambda told: next((missing for part in parts if (missing := part(told)) is not None), None)


def proven(told: Told) -> str | None:
    """Every callback that was read was signed, and none came from elsewhere than the gateway."""
    read = {(callback["grade"], callback["network"]) for callback in told.callbacks_read()}
    good = read in ({("signed", "inside")}, {("signed", "unchecked")})
    return None if good else f"signed callbacks from the gateway alone, and not {sorted(read)}"


def settled_by(**wanted: int) -> Callable[[Told], str | None]:
    """So many operations succeeded for each cause (asked, automatic, returned), and no others."""

    def evidence(told: Told) -> str | None:
        seen = [one["cause"] for one in told.operations if one["state"] == "succeeded"]
        counted = {cause: seen.count(cause) for cause in seen}
        return None if counted == wanted else f"operations that succeeded {wanted}, and not {counted}"

    return evidence


def entries(**wanted: int) -> Callable[[Told], str | None]:
    """So many entries in the trail of these actions of an operation (`unknown`, `submitted` and so on)."""

    def evidence(told: Told) -> str | None:
        for action, count in wanted.items():
            seen = told.actions(f"money:{action}")
            if seen != count:
                return f"{count} entries money:{action} in the trail, and not {seen}"
        return None

    return evidence


def late(told: Told) -> str | None:
    return None if told.checkout["late"] else "a checkout that is marked late"


def in_time(told: Told) -> str | None:
    return "a checkout that is not marked late" if told.checkout["late"] else None


def unasked(told: Told) -> str | None:
    return "no operation of ours" if told.operations else None


def found_by_lookup(told: Told) -> str | None:
    if any(True for _ in told.callbacks_read()):
        return "no callback in the trail"
    lost = [one for one in told.callbacks() if one["answerStatus"] is not None]
    return "no callback that was delivered" if lost else None


def disbelieved(grade: str, *, never: bool) -> Callable[[Told], str | None]:
    """Callbacks were read that proved nothing; `never`: no callback moved the checkout at all."""

    def evidence(told: Told) -> str | None:
        if grade not in {callback["grade"] for callback in told.callbacks_read()}:
            return f"a callback with grade {grade} in the trail"
        arrived = [entry for entry in told.trail if entry["trigger"] == "callback_arrived"]
        if never:
            return "no callback that moved the checkout" if arrived else None
        proven = all(
            any(callback["grade"] == "signed" for callback in entry["evidence"]["callbacks"])
            for entry in arrived
        )
        return None if proven else "none but signed callbacks to move the checkout"

    return evidence


def refused_401(told: Told) -> str | None:
    answers = {one["answerStatus"] for one in told.callbacks()}
    return None if answers == {401} else f"401 as the answer to every callback, and not {sorted(answers)}"


def charged_back(told: Told) -> str | None:
    ours = told.checkout["money"]["chargedBack"]
    return (
        None
        if ours == told.checkout["amount"]["value"]
        else f"all of it charged back in our books, and not {ours}"
    )


def never_completed(told: Told) -> str | None:
    return "an order that was never completed" if told.moves(State.COMPLETED) else None


def bound_by(binding: str) -> Callable[[Told], str | None]:
    """The payment was known as the order's by this, and by nothing better."""

    def evidence(told: Told) -> str | None:
        seen = {one["binding"] for one in told.checkout["payments"]}
        return None if seen == {binding} else f"payments bound by {binding}, and not {sorted(seen)}"

    return evidence


def reopened(told: Told) -> str | None:
    once = told.actions("checkout:reopened") == 1
    return None if once else "one entry checkout:reopened in the trail"
