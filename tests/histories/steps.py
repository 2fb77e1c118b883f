"""What can happen to an order, step by step, and the strategy that makes histories of it.

A step names what it is about by a number that wraps around what there is at that moment, so that every step
means something in every history, and a shrunk history still runs. A step that has nothing to act on does
nothing.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hypothesis import strategies as st

from orchestrator.devkit.sandbox.documents import callback_body
from orchestrator.devkit.sandbox.faults import Burst
from orchestrator.devkit.sandbox.rules import Outcome
from orchestrator.store import inbox
from orchestrator.store.inbox import OrderTaken
from tests.histories.world import CONFIG, Mail
from tests.support.scene import take

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from tests.histories.world import World

CARD, BANK, WALLET = "Sandbox Card Terminal", "Sandbox Bank Terminal", "Sandbox Mobile Wallet Terminal"
GOOD, BAD = "4111000011110000", "4180000000000566"
FORM = "application/x-www-form-urlencoded"
MOST_CHECKOUTS = 3
GRADES = ("signed", "checksum", "unchecked", "wrong", "missing", "stale")
KINDS = ("success", "failure", "notification", "redirect")


@dataclass(frozen=True)
class Step:
    """One thing that happens, to one checkout of the history."""

    which: int = 0
    written: ClassVar[bool] = True
    """Whether anything of ours may have changed by it."""

    async def happen(self, world: World) -> None:
        raise NotImplementedError

    def checkout(self, world: World) -> UUID:
        return world.checkouts[self.which % len(world.checkouts)]


def _post(
    world: World, payment: Payment, transaction: Transaction | None, *, kind: str, status: str, to: UUID
) -> None:
    """Queue a callback as the gateway writes it; the history decides when it arrives, if ever."""
    body, _ = callback_body(payment, transaction, status, terminal_secret=CONFIG.terminal_secret)
    world.mail.append(Mail(to, kind, body))


# ── The shopper ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Pay(Step):
    """The shopper pays in a tab of their own; `odd`: the payment has another amount or currency than was
    ordered.
    """

    written: ClassVar[bool] = False
    how: str = "card"
    odd: str = ""

    _WAYS: ClassVar[dict[str, tuple[str, dict[str, str]]]] = {
        "card": (CARD, {"action": "pay", "card_number": GOOD, "expiry": "12/39", "cvc": "123"}),
        "declined card": (CARD, {"action": "pay", "card_number": BAD, "expiry": "12/39", "cvc": "123"}),
        "cancelled": (CARD, {"action": "cancel"}),
        "bank": (BANK, {"action": "accept"}),
        "bank declined": (BANK, {"action": "decline"}),
        "bank open": (BANK, {"action": "open"}),
        "wallet": (WALLET, {"action": "accept"}),
        "wallet open": (WALLET, {"action": "open"}),
    }

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        plan = world.plan(checkout)
        plan.amount_minor = 100 if self.odd == "amount" else None
        plan.currency = "EUR" if self.odd == "currency" else None
        plan.bindings = self.odd != "unbound"
        plan.require_capture = self.odd == "require capture"
        terminal, form = self._WAYS[self.how]
        number = await world.open_payment(checkout, terminal)
        if number is None:
            return
        payment = world.sandbox.books.payments[number]
        _post(world, payment, None, kind="notification", status="new", to=checkout)
        await world.submit(number, **form)
        transaction = payment.latest
        assert transaction is not None
        if transaction.outcome != Outcome.OPEN:
            kind = "success" if transaction.outcome == Outcome.SUCCEEDED else "failure"
            _post(world, payment, transaction, kind=kind, status=transaction.outcome, to=checkout)
        _post(world, payment, transaction, kind="notification", status=transaction.outcome, to=checkout)


@dataclass(frozen=True)
class TryAgain(Step):
    """The shopper goes back to the page of a payment that was declined and tries another card."""

    written: ClassVar[bool] = False

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        over = [
            payment
            for payment in world.payments(checkout)
            if payment.terminal == CARD
            and payment.paid is None
            and payment.latest is not None
            and payment.latest.outcome != Outcome.OPEN
        ]
        if over:
            await world.submit(over[-1].payment_id, action="pay", card_number=GOOD, expiry="12/39", cvc="123")
            for kind in ("success", "notification"):
                _post(world, over[-1], over[-1].latest, kind=kind, status="succeeded", to=checkout)


@dataclass(frozen=True)
class EmptyForm(Step):
    """The shopper of a paid order goes back and sends the empty form: a failure follows the success (D7)."""

    written: ClassVar[bool] = False

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        for payment in world.payments(checkout):
            if payment.paid is not None:
                _post(world, payment, payment.paid, kind="failure", status="failed", to=checkout)


@dataclass(frozen=True)
class Resolve(Step):
    """The bank decides on a payment that was left open."""

    written: ClassVar[bool] = False
    to: str = "succeeded"

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        for payment in world.payments(checkout):
            latest = payment.latest
            if latest is not None and latest.outcome == Outcome.OPEN:
                await world.sandbox.resolve(payment, latest, self.to)  # type: ignore[arg-type]
                _post(world, payment, latest, kind="notification", status=latest.outcome, to=checkout)
                return


# ── The post ──────────────────────────────────────────────────────────────────────────────────────────────


async def _arrive(world: World, mail: Mail, grade: str, times: int) -> None:
    callbacks = [
        inbox.Arrival(
            checkout_id=mail.checkout,
            kind=mail.kind,
            grade=grade,
            content_type=FORM,
            headers={},
            source=None,
            body=mail.body,  # type: ignore[arg-type]
        )
        for _ in range(times)
    ]
    await asyncio.gather(*(world.callbacks.store(callback) for callback in callbacks))


@dataclass(frozen=True)
class Deliver(Step):
    """A callback arrives, any of the queued callbacks, perhaps several times; `kept`: and once
    more later.
    """

    at: int = 0
    grade: str = "signed"
    times: int = 1
    kept: bool = False

    async def happen(self, world: World) -> None:
        if not world.mail:
            return
        at = self.at % len(world.mail)
        mail = world.mail[at] if self.kept else world.mail.pop(at)
        await _arrive(world, mail, self.grade, self.times)


@dataclass(frozen=True)
class Forge(Step):
    """A forged callback comes to our address."""

    kind: str = "success"
    body: bytes = b"status=succeeded"
    grade: str = "wrong"

    async def happen(self, world: World) -> None:
        await _arrive(world, Mail(self.checkout(world), self.kind, self.body), self.grade, 1)


# ── The merchant ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ask(Step):
    """The merchant sends a command; `of` names a transaction that the gateway has for the order, None the
    accepted payment.
    """

    kind: str = "reconcile"
    amount: int | None = None
    of: int | None = None
    decision: str = "keep"
    stale: bool = False

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        arguments: dict[str, object] = {}
        if self.kind in {"capture", "refund"}:
            arguments["amount"] = self.amount
        if self.kind in {"capture", "refund", "release"}:
            seen = world.transactions(checkout)
            known = seen[self.of % len(seen)][1].transaction_id if self.of is not None and seen else None
            arguments["transactionId"] = known
        if self.kind == "reopen":
            arguments["expiresIn"] = 900.0
        if self.kind == "resolve":
            arguments["decision"] = self.decision
        await world.ask(checkout, self.kind, version=1 if self.stale else None, **arguments)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Order(Step):
    """The merchant sends another order, under a number of its own or (`again`) under that of an
    earlier payment.
    """

    again: bool = False

    async def happen(self, world: World) -> None:
        if len(world.checkouts) >= MOST_CHECKOUTS:
            return
        order = world.orders[self.checkout(world)] if self.again else None
        try:
            checkout = await world.accept(order=order, expires_in=900.0, capture=False)
        except OrderTaken:
            return
        await world.hint(checkout)
        await take(world.processor, [checkout])


# ── The gateway, by itself ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ByHand(Step):
    """Money is moved at the gateway, and not by us: in its interface, by the shopper's bank, or by itself."""

    written: ClassVar[bool] = False
    what: str = "refund"
    amount: int = 100
    of: int = 0

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        paid = [(payment, payment.paid) for payment in world.payments(checkout) if payment.paid is not None]
        if not paid:
            return
        payment, transaction = paid[self.of % len(paid)]
        assert transaction is not None
        books = world.sandbox.books
        status = "succeeded"
        free = transaction.captured_minor - transaction.refunded_minor
        if self.what == "refund" and free > 0:
            books.refund(payment, transaction, min(self.amount, free), identifier="", by="gateway")
        elif self.what == "release" and not transaction.captured_minor and transaction.status != "released":
            books.release(payment, transaction, by="gateway")
        elif self.what == "capture":
            amount = f"{self.amount / 100:.2f}"
            name = f"by hand {len(transaction.movements)}"
            number = transaction.transaction_id
            await world.merchant_call(
                "captureReservation", transaction_id=number, amount=amount, reconciliation_identifier=name
            )
        elif self.what == "chargeback" and transaction.captured_minor - transaction.charged_back_minor > 0:
            most = transaction.captured_minor - transaction.charged_back_minor
            books.charge_back(payment, transaction, min(self.amount, most))
            status = "ChargebackEvent"
        elif self.what == "reversal" and transaction.charged_back_minor > 0:
            books.charge_back(payment, transaction, -min(self.amount, transaction.charged_back_minor))
            status = "ChargebackEvent"
        else:
            return
        world.by_hand.add(transaction.transaction_id)
        _post(world, payment, transaction, kind="notification", status=status, to=checkout)


@dataclass(frozen=True)
class Fail(Step):
    """The next calls fail, before they take effect or (`after`) only their answers."""

    written: ClassVar[bool] = False
    endpoint: str = "payments"
    status: int | str = 503
    after: bool = False
    count: int = 1

    async def happen(self, world: World) -> None:
        if self.endpoint == "authenticate":
            burst = Burst(count=self.count, status=self.status, after=self.after)  # type: ignore[arg-type]
            world.sandbox.faults.everywhere.authenticate = burst
            return
        plan = world.plan(self.checkout(world))
        plan.fail = {self.endpoint: self.count}  # type: ignore[dict-item]
        plan.fail_status, plan.fail_after = self.status, self.after  # type: ignore[assignment]


@dataclass(frozen=True)
class Refuse(Step):
    """The acquirer refuses the next call that moves money."""

    written: ClassVar[bool] = False
    endpoint: str = "capture"
    word: str = "Error"

    async def happen(self, world: World) -> None:
        plan = world.plan(self.checkout(world))
        plan.refuse = {self.endpoint: 1}  # type: ignore[dict-item]
        plan.refuse_result = self.word  # type: ignore[assignment]


@dataclass(frozen=True)
class Silence(Step):
    """Movements show (or no longer show) our reconciliation identifier."""

    written: ClassVar[bool] = False
    echo: bool = False

    async def happen(self, world: World) -> None:
        world.plan(self.checkout(world)).echo = self.echo


@dataclass(frozen=True)
class Lose(Step):
    """Sessions or tokens are lost at the gateway."""

    written: ClassVar[bool] = False
    what: str = "session"

    async def happen(self, world: World) -> None:
        if self.what == "tokens":
            world.sandbox.tokens.expire_all()
        else:
            world.plan(self.checkout(world)).lose_session = 1


# ── Time and workers ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Wait(Step):
    """Time passes."""

    written: ClassVar[bool] = False
    seconds: int = 1

    async def happen(self, world: World) -> None:
        await world.later(self.seconds)


@dataclass(frozen=True)
class Process(Step):
    """A worker takes all checkouts: those that are due, or (`hinted`) as if each had been woken."""

    hinted: bool = True

    async def happen(self, world: World) -> None:
        if self.hinted:
            await world.hint(*world.checkouts)
        again = await take(world.processor, world.checkouts)
        if again:
            await take(world.processor, again)


@dataclass(frozen=True)
class Stop(Step):
    """A worker takes a checkout and stops in the middle: it is killed there, or stopped (a suspended machine,
    a starved process).
    """

    nth: int = 1
    sleeps: bool = False

    async def happen(self, world: World) -> None:
        checkout = self.checkout(world)
        await world.hint(checkout)
        await world.stop([checkout], self.nth, sleeps=self.sleeps)


@dataclass(frozen=True)
class Wake(Step):
    """A stopped worker goes on with what it was about to do."""

    async def happen(self, world: World) -> None:
        await world.wake()


# ── Histories ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class History:
    """A merchant's policies, how far the first order has come, and what happens then.

    `delivered`: queued callbacks arrive in the end. `decided`: the banks decide on every payment in the end.
    """

    policies: tuple[tuple[str, object], ...]
    capture: bool
    expires_in: float
    begun: str
    steps: tuple[Step, ...]
    delivered: bool
    decided: bool

    def __repr__(self) -> str:
        lines = [
            f"policies={self.policies}",
            f"capture={self.capture}, expires_in={self.expires_in}, begun={self.begun!r}",
            f"delivered={self.delivered}, decided={self.decided}",
            "steps=(",
            *(f"    {step!r}," for step in self.steps),
            ")",
        ]
        return "History(\n    " + "\n    ".join(lines) + "\n)"


_which = st.sampled_from((0, 0, 0, 1))
_grade = st.sampled_from(GRADES)
_amount = st.sampled_from((None, 4000, 9900, 13900, 1, 20000))
_money = st.sampled_from(("capture", "refund", "release"))
_BODIES = (
    b"status=succeeded", b"status=failed", b"status=new", b"status=ChargebackEvent", b"", b"status=no_such_word&new=1",
    b"status=succeeded&require_capture=true", b"status=succeeded&xml=%3CAPIResponse", b"\xff\xfe{",
)  # fmt: skip

pay = st.builds(
    Pay, which=_which, how=st.sampled_from(("card", "card", *Pay._WAYS)),
    odd=st.sampled_from(("", "", "", "", "amount", "currency", "unbound", "require capture")),
)  # fmt: skip
deliver = st.builds(
    Deliver, at=st.integers(0, 9), grade=_grade, times=st.sampled_from((1, 1, 3)), kept=st.booleans()
)
forge = st.builds(
    Forge, which=_which, kind=st.sampled_from(KINDS), body=st.sampled_from(_BODIES), grade=_grade
)
moving = st.builds(
    Ask, which=_which, kind=_money, amount=_amount, of=st.sampled_from((None, None, None, 0, 1)),
    stale=st.sampled_from((False, False, False, False, True)),
)  # fmt: skip
asking = st.builds(
    Ask, which=_which, kind=st.sampled_from(("cancel", "reopen", "retry", "reconcile")),
    stale=st.sampled_from((False, False, False, False, True)),
)  # fmt: skip
deciding = st.builds(
    Ask, which=_which, kind=st.just("resolve"), decision=st.sampled_from(("keep", "return", "dismiss"))
)
by_hand = st.builds(
    ByHand, which=_which, what=st.sampled_from(("refund", "release", "capture", "chargeback", "reversal")),
    amount=st.sampled_from((100, 4000, 13900)), of=st.integers(0, 2),
)  # fmt: skip
failing = st.builds(
    Fail, which=_which,
    endpoint=st.sampled_from(("payments", "capture", "refund", "release", "session", "payment-methods", "authenticate")),
    status=st.sampled_from((503, "reset", 400, 401, 403, 404, 429, 500, "malformed", "empty", "html", "timeout")),
    count=st.sampled_from((1, 1, 2, 9)),
)  # fmt: skip
losing_answers = st.builds(
    Fail, which=_which, endpoint=_money,
    status=st.sampled_from((503, "reset", 400, 403, 500, "malformed", "empty", "html", "timeout")), after=st.just(value=True),
)  # fmt: skip
refusing = st.builds(Refuse, which=_which, endpoint=_money, word=st.sampled_from(("Error", "Failed")))
waiting = st.builds(
    Wait, seconds=st.sampled_from((1, 5, 61, 700, 1000, 4000, 90_000, 6 * 86_400, 35 * 86_400))
)
carrying = st.builds(Process, hinted=st.booleans())
stopping = st.builds(Stop, which=_which, nth=st.integers(1, 12), sleeps=st.booleans())
single = st.one_of(
    pay, deliver, deliver, forge, moving, moving, asking, deciding, by_hand, failing, losing_answers, refusing,
    waiting, waiting, carrying, carrying, carrying, stopping, stopping,
    st.builds(TryAgain, which=_which), st.builds(EmptyForm, which=_which), st.builds(Wake), st.builds(Wait, seconds=st.just(61)),
    st.builds(Resolve, which=_which, to=st.sampled_from(("succeeded", "declined"))),
    st.builds(Silence, which=_which, echo=st.booleans()), st.builds(Lose, which=_which, what=st.sampled_from(("session", "tokens"))),
    st.builds(Order, which=_which, again=st.booleans()),
)  # fmt: skip


def _interrupted(
    *, kind: str, amount: int, echo: bool, lost: int | str | None, stop: tuple[int, bool] | None
) -> tuple[Step, ...]:
    """Money is moved, the answer is lost or the worker stops on the way, and the next worker finds out what
    came of it.
    """
    trouble: list[Step] = []
    if lost is not None:
        trouble.append(Fail(endpoint=kind, status=lost, after=True))
    trouble.append(Process() if stop is None else Stop(nth=stop[0], sleeps=stop[1]))
    return (
        Silence(echo=echo),
        Ask(kind=kind, amount=amount),
        *trouble,
        Wait(seconds=61),
        Process(),
        Wait(seconds=61),
        Process(),
        Wake(),
    )


interrupted = st.builds(
    _interrupted,
    kind=st.sampled_from(("capture", "refund", "capture", "refund", "release")),
    amount=st.sampled_from((1, 1000, 4000)),
    echo=st.booleans(),
    lost=st.sampled_from((503, "reset", 400, 403, "malformed", "empty", None)),
    # Its lookup, what it writes before it sends, the call, and what it writes then: a point before and after
    # each.
    stop=st.one_of(st.none(), st.tuples(st.integers(3, 10), st.booleans())),
)
# What makes sense together, so that histories get far: each is a few steps, and any step may come between two
# of them.
episode = st.one_of(
    single.map(lambda step: (step,)),
    interrupted,
    interrupted,
    st.tuples(pay, deliver, carrying),
    st.tuples(moving, carrying),
    st.tuples(moving, st.one_of(losing_answers, refusing, failing), st.one_of(carrying, stopping), st.builds(Wait, seconds=st.just(61)), carrying),
    st.tuples(moving, stopping, st.builds(Wait, seconds=st.just(61)), carrying, st.builds(Wake)),
    st.tuples(deciding, carrying),
    st.tuples(asking, carrying, st.builds(Wait, seconds=st.just(61)), carrying),
    st.tuples(by_hand, deliver, carrying),
)  # fmt: skip
_episodes = st.lists(episode, max_size=8)
# A list alone is mostly short; two of them still shrink to nothing.


def _flat(*parts: list[tuple[Step, ...]]) -> tuple[Step, ...]:
    return tuple(step for part in parts for some in part for step in some)


def histories() -> st.SearchStrategy[History]:
    unmatched = st.sampled_from(("ask", "ask", "keep", "return"))
    policies = st.fixed_dictionaries(
        {
            "late": unmatched,
            "surplus": unmatched,
            "unknown_order": st.just("ask"),
            "capture": st.sampled_from(("manual", "manual", "automatic")),
            "lookups_per_minute": st.sampled_from((600, 600, 2)),
        }
    ).map(lambda chosen: tuple(chosen.items()))
    return st.builds(
        History,
        policies=policies,
        capture=st.sampled_from((False, False, True)),
        expires_in=st.sampled_from((900.0, 86_400.0, 1.0)),
        begun=st.sampled_from(("paid", "paid", "offered", "captured", "received")),
        steps=st.builds(_flat, _episodes, _episodes),
        delivered=st.booleans(),
        decided=st.sampled_from((False, False, True)),
    )
