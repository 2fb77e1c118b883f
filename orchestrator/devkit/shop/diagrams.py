"""The sequence diagrams of the payment flow as SVG, and which message belongs to which of their steps.

Two are those of the gateway's own documentation (D1), with the merchant's server as shop and orchestrator;
the third is of a second payment for the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_WIDTH: Final = 400
_TOP: Final = 34
_APART: Final = 30
_SIDE: Final = 46
_HEAD: Final = 5


@dataclass(frozen=True, slots=True)
class Step:
    """One arrow; its name is the name of the message that it stands for."""

    name: str
    sender: str
    receiver: str
    label: str


@dataclass(frozen=True, slots=True)
class Diagram:
    """Parties by their names in messages, and the arrows between them from top to bottom."""

    title: str
    parties: dict[str, str]
    steps: tuple[Step, ...]


BEFORE: Final = Diagram(
    "From the cart to the choice of a payment method",
    {"browser": "Browser", "shop": "Shop", "orchestrator": "Orchestrator", "gateway": "Checkout API"},
    (
        Step("order", "browser", "shop", "order completed"),
        Step("intent", "shop", "orchestrator", "checkout intent"),
        Step("authenticate", "orchestrator", "gateway", "authenticate"),
        Step("token", "gateway", "orchestrator", "authentication token"),
        Step("session", "orchestrator", "gateway", "init session"),
        Step("payment-methods", "orchestrator", "gateway", "get payment methods"),
        Step("available", "gateway", "orchestrator", "available payment methods"),
        Step("methods", "orchestrator", "browser", "payment methods, live state"),
        Step("payment", "browser", "gateway", "proceed with payment"),
    ),
)
DURING: Final = Diagram(
    "From the payment page to the event for the shop",
    {
        "browser": "Browser",
        "shop": "Shop",
        "orchestrator": "Orchestrator",
        "gateway": "Gateway",
        "bank": "Bank",
    },
    (
        Step("page", "gateway", "browser", "secure payment page"),
        Step("submit", "browser", "gateway", "submit credentials"),
        Step("process", "gateway", "bank", "process payment"),
        Step("result", "bank", "gateway", "result"),
        Step("callback", "gateway", "orchestrator", "callback with result"),
        Step("answer", "orchestrator", "gateway", "page of the shop"),
        Step("result-page", "gateway", "browser", "success or failure page"),
        Step("payments", "orchestrator", "gateway", "look the payment up"),
        Step("event", "orchestrator", "shop", "event with result"),
    ),
)
SECOND: Final = Diagram(
    "From the payment in a second tab to the decision about its money",
    {"browser": "Browser", "shop": "Shop", "orchestrator": "Orchestrator", "gateway": "Gateway"},
    (
        Step("second-tab", "browser", "gateway", "second tab pays"),
        Step("second-callback", "gateway", "orchestrator", "callback with result"),
        Step("second-payments", "orchestrator", "gateway", "look the payments up"),
        Step("surplus", "orchestrator", "shop", "event: surplus payment found"),
        Step("surplus-returned", "orchestrator", "shop", "event: surplus payment returned"),
    ),
)
LABELS: Final = {
    **{step.name: step.label for diagram in (BEFORE, DURING, SECOND) for step in diagram.steps},
    "notice": "event",
}
PARTIES: Final = BEFORE.parties | DURING.parties

_SEEN: Final = {
    "order": ("order",), "intent": ("intent",), "authenticate": ("authenticate",), "token": ("token",),
    "session:answer": ("session",), "payment-methods:answer": ("payment-methods", "available"),
    "methods": ("methods",), "payment": ("payment",), "page": ("page",), "submit": ("submit",),
    "process": ("process",), "result": ("result",), "callback:success": ("callback",), "callback:failure": ("callback",),
    "callback:notification": ("callback",), "callback:success:answer": ("answer",), "callback:failure:answer": ("answer",),
    "result-page": ("result-page",), "payments:answer": ("payments",), "event": ("event",),
    "second-tab": ("second-tab",), "surplus": ("surplus",), "surplus-returned": ("surplus-returned",),
}  # fmt: skip
_LOST: Final = {
    "session:fault": ("session",), "payment-methods:fault": ("payment-methods",), "payment:fault": ("payment",),
    "payments:fault": ("payments",), "callback:lost": ("callback",), "second-tab:fault": ("second-tab",),
}  # fmt: skip

_NOT_FAILED: Final = {
    "result": ("succeeded", "open", "challenged"), "result-page": ("succeeded",),
    "callback:notification": ("new", "open", "succeeded"),
}  # fmt: skip
_FAILED_EVENTS: Final = (
    "checkout.attempt_declined",
    "checkout.failed",
    "checkout.cancelled",
    "checkout.expired",
)


def steps_of(name: str, detail: str) -> tuple[tuple[str, ...], bool]:
    """Return the steps that a message stands for, and whether it was lost or says that the payment failed."""
    if name in _LOST:
        return _LOST[name], True
    if name == "callback:failure" or (name == "event" and detail.startswith(_FAILED_EVENTS)):
        return _SEEN[name], True
    if name in _NOT_FAILED and not detail.startswith(_NOT_FAILED[name]):
        return _SEEN[name], True
    if name == "callback:notification" and detail == "new":
        return (), False  # the gateway says that a payment was opened: no result yet
    return _SEEN.get(name, ()), False


def steps_in_order(messages: Iterable[tuple[str, str]]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield `steps_of` each name and detail, by what came before: a lookup before any payment is no step, and
    one after the second tab has paid is a step of both payments.
    """
    paid = second = False
    for name, detail in messages:
        steps, lost = steps_of(name, detail)
        paid, second = paid or name == "submit", second or name == "second-tab"
        if not paid:
            steps = tuple(step for step in steps if step != "payments")
        if second:
            steps += tuple(f"second-{step}" for step in steps if step in {"callback", "payments"})
        yield steps, lost


def label_of(name: str) -> str:
    if name in LABELS:
        return LABELS[name]
    known, _, kind = name.rpartition(":")
    if name.startswith("callback:") and kind not in {"answer", "lost"}:
        return f"callback {kind}"
    said = {"answer": "answer", "fault": "fails", "lost": "callback is lost"}.get(kind, kind)
    about = LABELS.get(known, known.replace(":", " ")) if known and kind != "lost" else ""
    return f"{said}: {about}" if about else said.replace("-", " ")


def draw(diagram: Diagram, seen: Collection[str], lost: Collection[str]) -> Markup:
    """Return a diagram as SVG; steps in `seen` and `lost` are marked, and a script may mark others later."""
    apart = (_WIDTH - 2 * _SIDE) / (len(diagram.parties) - 1)
    at = {name: _SIDE + apart * number for number, name in enumerate(diagram.parties)}
    height = _TOP + _APART * len(diagram.steps) + 16
    parts = [f'<line class="lifeline" x1="{x:g}" x2="{x:g}" y1="26" y2="{height - 6}"/>' for x in at.values()]
    for name, said in diagram.parties.items():
        half = min(apart / 2 - 2, 42)
        width = min(len(said) * 6.6, 2 * half - 6)  # as it is, or squeezed into its box
        parts.append(
            f'<g class="party"><rect x="{at[name] - half:g}" y="5" width="{2 * half:g}" height="22" rx="5"/>'
            f'<text x="{at[name]:g}" y="20.5" textLength="{width:g}" lengthAdjust="spacingAndGlyphs">'
            f"{escape(said)}</text></g>"
        )
    for number, step in enumerate(diagram.steps, 1):
        y = _TOP + _APART * number
        start, end = at[step.sender], at[step.receiver]
        back = -_HEAD if end > start else _HEAD
        marks = "".join((" seen" if step.name in seen else "", " lost" if step.name in lost else ""))
        middle = min(max((start + end) / 2, 82), _WIDTH - 82)
        parts.append(
            f'<g class="step{marks}" data-step="{escape(step.name)}"><path d="M{start:g} {y}H{end:g}"/>'
            f'<path class="head" d="M{end:g} {y}l{back * 1.6:g} -{_HEAD * 0.8:g}v{_HEAD * 1.6:g}z"/>'
            f'<text x="{middle:g}" y="{y - 5}">{escape(step.label)}</text></g>'
        )
    said = "; ".join(
        f"{PARTIES[step.sender]} to {PARTIES[step.receiver]}: {step.label}" for step in diagram.steps
    )
    return Markup(  # noqa: S704 - every text in it is escaped
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(diagram.title)}. {escape(said)}">'
        f"{''.join(parts)}</svg>"
    )
