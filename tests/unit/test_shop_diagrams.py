"""The diagrams of the demo shop: which message lights up which of their steps."""

from __future__ import annotations

import pytest

from orchestrator.devkit.shop import diagrams

STEPS = {step.name for diagram in (diagrams.BEFORE, diagrams.DURING) for step in diagram.steps}
CALLS = ("authenticate", "session", "payment-methods", "payment", "payments")


def test_each_step_of_the_diagrams_is_lit_by_a_message():
    names = {*STEPS, *(f"{call}:answer" for call in CALLS)}
    names |= {
        f"callback:{kind}{end}" for kind in ("success", "failure", "notification") for end in ("", ":answer")
    }
    lit = {step for name in names for step in diagrams.steps_of(name, "200")[0]}
    assert lit == STEPS


@pytest.mark.parametrize(
    ("name", "detail", "said", "label"),
    [
        # A notification of a payment that was opened is no result.
        ("callback:notification", "new", ((), False), "callback notification"),
        ("callback:notification", "succeeded", (("callback",), False), "callback notification"),
        ("callback:lost", "success, succeeded", (("callback",), True), "callback is lost"),
        ("session:fault", "503", (("session",), True), "fails: init session"),
        ("result", "succeeded", (("result",), False), "result"),
        ("result", "Payment declined", (("result",), True), "result"),
        ("result-page", "failed", (("result-page",), True), "success or failure page"),
        ("callback:failure", "failed", (("callback",), True), "callback failure"),
        ("callback:notification", "declined", (("callback",), True), "callback notification"),
        ("event", "checkout.attempt_declined, paymentStatus unpaid", (("event",), True), "event with result"),
        ("event", "checkout.completed, paymentStatus authorized", (("event",), False), "event with result"),
        ("second-tab", "the second tab pays", (("second-tab",), False), "second tab pays"),
        ("second-tab:fault", "TimeoutError", (("second-tab",), True), "fails: second tab pays"),
    ],
)  # fmt: skip
def test_what_is_lost_is_marked_as_lost_and_has_a_name(name, detail, said, label):
    assert diagrams.steps_of(name, detail) == said
    assert diagrams.label_of(name) == label


LOOKUP = [("payments", "GET payments"), ("payments:answer", "200")]
PAID = [("submit", "pay"), ("callback:success", "succeeded"), *LOOKUP]


def lit(messages):
    return [steps for steps, _ in diagrams.steps_in_order(messages) if steps]


def test_a_lookup_is_a_step_once_there_is_a_payment():
    assert lit([("methods", "5"), *LOOKUP]) == [("methods",)]
    assert lit(PAID) == [("submit",), ("callback",), ("payments",)]


def test_a_payment_in_a_second_tab_lights_a_diagram_of_its_own():
    second = [("second-tab", "it pays"), *PAID, ("surplus", ""), ("surplus-returned", "")]
    found = {step for steps in lit(PAID + second) for step in steps}
    assert {step.name for step in diagrams.SECOND.steps} <= found
    assert not {step.name for step in diagrams.SECOND.steps} & {step for steps in lit(PAID) for step in steps}


def test_a_drawing_has_its_marks_and_says_in_words_what_it_shows():
    drawn = diagrams.draw(diagrams.DURING, {"page"}, {"callback"})
    assert drawn.count('class="step seen"') == drawn.count('class="step lost"') == 1
    assert 'class="step seen" data-step="page"' in drawn
    assert "Gateway to Browser: secure payment page; Browser to Gateway: submit credentials" in drawn
