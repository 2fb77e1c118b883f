"""What a script is, and the nine of group `checkout`: what a shopper does, what goes wrong on the way, how the order must end.

A script is data and one function over what a shopper can do. `plan` is what the sandbox is told about the order beforehand, and
`evidence` looks at ledger and trail afterwards, so that an order which ended well for another reason than its script's is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from orchestrator.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.devkit.demo.observations import Sums, Told
    from orchestrator.devkit.demo.shopper import Shopper

Method = Literal["CARD", "BANK_PAYMENT", "MOBILE_WALLET"]

SHORT: Final = 6
"""Seconds that a shopper gets who will not pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One way in which an order can go. `evidence` returns what is missing, or None."""

    name: str
    says: str
    act: Callable[[Shopper], Awaitable[None]]
    ends: State
    evidence: Callable[[Told], str | None]
    plan: dict[str, Any] = field(default_factory=dict)
    expires_in: int | None = None
    method: Method | None = None
    """None: any that the shopper is offered. Only a card can be declined by its number, only a bank leaves a payment open."""
    merchant: str = "default"
    auto_capture: bool | None = None
    """None: as the seed has it."""
    handed_over: bool = True
    """Whether the shop hands the order over; otherwise it is paid elsewhere, and nobody here has heard of it."""
    holds: Callable[[int], Sums] | None = None
    """What the books say of the payment that pays, in the end, by the order's amount; None: it is reserved, if paid."""
    moves: tuple[str, ...] = ()
    """What we ask the gateway to do to the money, all in all; it may do nothing else for us."""

    @property
    def paid(self) -> bool:
        """Whether the shopper's money is held at the end."""
        return self.ends is State.COMPLETED


# ── What shoppers do ────────────────────────────────────────────────────────────────────────────────────────────────────


async def _pay(shopper: Shopper) -> None:
    await shopper.pay()
    shopper.expect_page("thanks")


async def _pay_seeing_no_shop(shopper: Shopper) -> None:
    await shopper.pay()
    shopper.expect_page(None)


async def _be_declined_then_pay(shopper: Shopper) -> None:
    await shopper.be_declined()
    shopper.expect_page("sorry")
    await shopper.pay()
    shopper.expect_page("thanks")


async def _be_declined(shopper: Shopper) -> None:
    await shopper.be_declined()
    shopper.expect_page("sorry")


async def _look_and_leave(shopper: Shopper) -> None:
    await shopper.open_page()


async def _merchant_cancels(shopper: Shopper) -> None:
    await shopper.merchant_cancels()


# ── What must be found afterwards ───────────────────────────────────────────────────────────────────────────────────────


def _nothing_more(_: Told) -> str | None:
    return None


def _one_declined(told: Told) -> str | None:
    return None if told.attempts_without_money == 1 else "a declined attempt in the ledger"


def _only(kind: str, lost: str) -> Callable[[Told], str | None]:
    def evidence(told: Told) -> str | None:
        if told.delivered(kind) and not told.delivered(lost):
            return None
        return f"a {kind} callback that was delivered and no {lost} callback that was"

    return evidence


def _three_of_each(told: Told) -> str | None:
    # Besides, the gateway announces each new payment with a notification of its own.
    counts = told.delivered("success"), told.delivered("notification", but="new")
    return None if counts == (3, 3) else f"three success callbacks and three notifications, and not {counts}"


def _two_failures(told: Told) -> str | None:
    count = told.actions("gateway:failed")
    return None if count == 2 else f"two failed calls in the trail, and not {count}"  # noqa: PLR2004 - the script's


def _never_tried(told: Told) -> str | None:
    return None if not told.attempts_without_money else "no attempt to pay in the ledger"


_RACE: Final = {"callbacks": {"times": 3, "simultaneous": True, "order": "race"}}

SCRIPTS: Final = (
    Script(name="pays_at_once", says="pays at once", act=_pay, ends=State.COMPLETED, evidence=_nothing_more),
    Script(
        name="declined_then_pays", says="is declined, tries again and pays", act=_be_declined_then_pay,
        ends=State.COMPLETED, evidence=_one_declined, method="CARD",
    ),
    Script(
        name="declined_and_leaves", says="is declined and leaves", act=_be_declined, ends=State.EXPIRED,
        evidence=_one_declined, method="CARD", expires_in=SHORT,
    ),
    Script(
        name="only_notification", says="pays; only the notification arrives", act=_pay_seeing_no_shop,
        ends=State.COMPLETED, evidence=_only("notification", "success"),
        plan={"callbacks": {"success": False, "failure": False}},
    ),
    Script(
        name="only_success_page", says="pays; only the success page is called", act=_pay, ends=State.COMPLETED,
        evidence=_only("success", "notification"), plan={"callbacks": {"notification": False}},
    ),
    Script(
        name="success_and_notification_race", says="pays; both callbacks at once, three times each", act=_pay,
        ends=State.COMPLETED, evidence=_three_of_each, plan=_RACE,
    ),
    Script(
        name="gateway_fails_twice", says="pays after the gateway failed twice", act=_pay, ends=State.COMPLETED,
        evidence=_two_failures, plan={"fail": {"session": 1, "payment-methods": 1}},
    ),
    Script(
        name="merchant_cancels", says="waits too long: the merchant cancels", act=_merchant_cancels,
        ends=State.CANCELLED, evidence=_never_tried,
    ),
    Script(
        name="leaves_without_paying", says="opens the page and leaves", act=_look_and_leave, ends=State.EXPIRED,
        evidence=_never_tried, expires_in=SHORT,
    ),
)  # fmt: skip
