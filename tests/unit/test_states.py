"""The table of transitions, against a second table written from the design and not from the code."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.states import (
    CLOSED,
    ENDED,
    TRANSITIONS,
    UNOFFERED,
    State,
    Trigger,
    UnknownTransition,
    diagram,
)

# An initial: moves to that state. "=": nothing new. "!": a contradiction. Neither of these moves it.
CALLBACKS = {
    "R": "received", "A": "authenticated", "S": "session_created", "M": "methods_fetched", "W": "awaiting_payment",
    "C": "callback_received", "P": "completed", "F": "failed", "E": "expired", "X": "cancelled",
}  # fmt: skip
GOLDEN = """
                    R A S M W C P F E X
authenticated       A = = = = = = = = =
session_opened      ! S = = = = = = = =
methods_listed      ! ! M = = = = = = =
offered             ! ! ! W = = = = = =
callback_arrived    = = = = C = = = = =
payment_found       P P P P P P = P P P
payment_declined    = = = = = W ! = = =
payment_open        = = = = = W ! = = =
nothing_found       = = = = = W ! = = =
session_lost        = = A A A ! ! ! ! !
order_changed       = = = S S ! ! ! ! !
deadline_passed     ! ! ! ! E ! ! ! = !
cancelled           X X X X X ! ! ! ! =
refused             F F F F ! ! ! = ! !
attempts_exhausted  F F F F ! ! ! = ! !
reopened            = = = = = = ! R R R
"""


def cells():
    head, *rows = (line.split() for line in GOLDEN.strip().splitlines())
    for trigger, *fates in rows:
        for callback, fate in zip(head, fates, strict=True):
            yield CALLBACKS[callback], trigger, fate


def test_the_golden_table_knows_every_state_and_every_trigger():
    assert {(state, trigger) for state, trigger, _ in cells()} == set(itertools.product(State, Trigger))


@pytest.mark.parametrize(
    ("state", "trigger", "fate"), tuple(cells()), ids=lambda value: "" if len(value) == 1 else value
)
def test_every_fact_does_to_every_state_what_the_design_says(state, trigger, fate):
    expected = None if fate in {"=", "!"} else State(CALLBACKS[fate])
    assert TRANSITIONS.get((State(state), Trigger(trigger))) is expected


def test_money_completes_every_state_but_completed():
    found = {state: to for (state, trigger), to in TRANSITIONS.items() if trigger is Trigger.PAYMENT_FOUND}
    assert found == dict.fromkeys({*State} - {State.COMPLETED}, State.COMPLETED)


def test_nothing_leaves_completed():
    assert not [trigger for state, trigger in TRANSITIONS if state is State.COMPLETED]


def test_exactly_the_closed_states_reopen():
    reopened = {state: to for (state, trigger), to in TRANSITIONS.items() if trigger is Trigger.REOPENED}
    assert reopened == dict.fromkeys(CLOSED, State.RECEIVED)


def test_every_state_is_reachable_and_can_still_complete():
    reached = {State.RECEIVED}
    while grown := {to for (state, _), to in TRANSITIONS.items() if state in reached} - reached:
        reached |= grown
    assert reached == {*State}


def test_no_fact_moves_a_checkout_to_where_it_is():
    assert not [pair for pair, to in TRANSITIONS.items() if pair[0] is to]


def test_every_trigger_moves_something():
    assert {trigger for _, trigger in TRANSITIONS} == {*Trigger}


def test_processed_closed_and_ended_name_the_states_of_the_design():
    assert UNOFFERED == (State.RECEIVED, State.AUTHENTICATED, State.SESSION_CREATED, State.METHODS_FETCHED)
    assert {state.value for state in CLOSED} == {"failed", "expired", "cancelled"}
    assert {*CLOSED, State.COMPLETED} == ENDED


@given(st.lists(st.sampled_from(Trigger), max_size=60))
def test_facts_in_any_order_never_leave_the_table_and_never_undo_a_payment(facts):
    state, paid = State.RECEIVED, False
    for fact in facts:
        state = TRANSITIONS.get((state, fact), state)
        paid = paid or fact is Trigger.PAYMENT_FOUND
        assert (state is State.COMPLETED) == paid


@given(st.lists(st.sampled_from(Trigger), max_size=30))
def test_the_same_fact_twice_is_never_two_moves_except_back_and_forth(facts):
    """A repeat moves nothing: no fact moves a checkout twice in a row."""
    state = State.RECEIVED
    for fact in facts:
        if (moved := TRANSITIONS.get((state, fact))) is not None:
            state = moved
            assert (state, fact) not in TRANSITIONS


def test_a_missing_path_names_state_and_fact():
    error = UnknownTransition(State.EXPIRED, Trigger.OFFERED)
    assert (error.state, error.trigger) == (State.EXPIRED, Trigger.OFFERED)
    assert "offered does not move a checkout that is expired" in str(error)


def test_the_diagram_draws_every_transition_and_no_other():
    drawn = {
        (before, trigger): after
        for before, after, triggers in re.findall(r"^    (\w+) --> (\w+): (.+)$", diagram(), re.MULTILINE)
        for trigger in triggers.split(", ")
    }
    assert drawn == TRANSITIONS
    assert diagram().startswith("stateDiagram-v2\n    [*] --> received\n")
    assert diagram().endswith("\n    completed --> [*]\n")
