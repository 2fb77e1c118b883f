"""Slots: no flow gets more than a fair share when there are not enough, and a flow that is alone gets all but
the reserve.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.processing.fair_share import FairShare, FlowKey, SlotDemand

A, B, C = (FlowKey(number, "checkouts") for number in (1, 2, 3))
GATEWAY = "https://gateway.example:443"


def shares(places: int = 100, each: int = 100, **held: int) -> FairShare:
    fair_share = FairShare(places=places, each=each)
    for name, number in held.items():
        for _ in range(number):
            fair_share.enter({"a": A, "b": B, "c": C}[name], GATEWAY)
    return fair_share


def share(fair_share: FairShare, *, most: int = 1000, busy: bool = False, **wanted: int) -> dict[str, int]:
    names = {A: "a", B: "b", C: "c"}
    flows = {flow: SlotDemand(GATEWAY, wanted[name]) for flow, name in names.items() if name in wanted}
    return {names[flow]: number for flow, number in fair_share.share(flows, most=most, busy=busy).items()}


def test_who_is_alone_gets_all_but_the_reserve():
    assert share(shares(), a=1000) == {"a": 90}
    assert share(shares(places=1, each=1), a=5) == {"a": 1}, "one slot is too few to keep a reserve"


def test_a_flow_that_wants_little_gets_it_and_the_others_share_the_rest():
    assert share(shares(), a=1000, b=10, c=1000) == {"a": 40, "b": 10, "c": 40}


def test_the_next_slot_goes_to_the_flow_with_the_fewest():
    assert share(shares(a=60), a=100, b=100) == {"b": 30}
    assert share(shares(a=40, b=20), a=100, b=100) == {"a": 5, "b": 25}


def test_the_reserve_is_for_who_has_next_to_nothing():
    full = shares(places=1000, each=1000, a=900)
    assert share(full, a=50) == {}
    assert share(full, b=500) == {"b": 10}
    assert share(shares(places=1000, each=1000, a=900, b=10), b=5) == {}


def test_no_flow_gets_more_than_is_available():
    fair_share = shares(places=10, each=10, a=9, b=1)
    assert fair_share.full
    assert share(fair_share, a=1, b=1, c=1) == {}


def test_a_busy_process_gives_slots_only_to_flows_that_have_almost_none():
    assert share(shares(places=1000, each=1000, a=50), busy=True, a=50, b=50) == {"b": 10}


def test_no_more_is_given_at_once_than_is_asked_for():
    assert share(shares(), most=7, a=50, b=50) == {"a": 4, "b": 3}


def test_one_gateway_has_no_more_than_its_slots():
    fair_share = FairShare(places=100, each=20)
    shares = fair_share.share(
        {A: SlotDemand("slow", 50), B: SlotDemand("slow", 50), C: SlotDemand("quick", 5)}, most=100
    )
    assert shares == {A: 9, B: 9, C: 5}


def test_there_are_slots_for_all_only_if_every_gateway_has_slots():
    fair_share = shares(places=100, each=20, a=10)
    assert fair_share.fits(8)
    assert not fair_share.fits(9)


def test_a_merchants_callbacks_have_a_share_of_their_own():
    fair_share = shares(a=90)
    callbacks = FlowKey(A.merchant_id, "callbacks")
    assert fair_share.share({A: SlotDemand(GATEWAY, 5), callbacks: SlotDemand(GATEWAY, 5)}, most=100) == {
        callbacks: 1
    }


def test_what_is_given_back_is_free_again():
    fair_share = shares(a=2, b=1)
    assert (fair_share.taken, fair_share.held(A)) == (3, 2)
    for flow in (A, A, B):
        fair_share.leave(flow, GATEWAY)
    assert (fair_share.taken, fair_share.held(A), share(fair_share, a=1000)) == (0, 0, {"a": 90})


@given(
    places=st.integers(1, 60),
    each=st.integers(1, 60),
    flows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40), st.sampled_from("xy")), max_size=8),
    most=st.integers(0, 100),
)
def test_shares_are_fair_and_leave_nothing_lying_about(places, each, flows, most):
    fair_share = FairShare(places=places, each=each)
    demands = {}
    for number, (held, wanted, gateway) in enumerate(flows):
        flow = FlowKey(number, "checkouts")
        demands[flow] = SlotDemand(gateway, wanted)
        for _ in range(held):
            if not fair_share.full:
                fair_share.enter(flow, gateway)
    before = fair_share.taken
    shares = fair_share.share(demands, most=most)
    assert all(1 <= number <= demands[flow].number for flow, number in shares.items())
    assert sum(shares.values()) <= min(most, max(places - before, 0))
    has = {flow: fair_share.held(flow) + shares.get(flow, 0) for flow in demands}
    for flow, number in shares.items():
        # No flow of the same gateway that asked for more has less than another was raised to.
        for other, demand in demands.items():
            unmet = shares.get(other, 0) < demand.number
            if unmet and demand.gateway == demands[flow].gateway:
                assert has[other] >= has[flow] - 1, (flow, number, other)


@pytest.mark.parametrize("places", [1, 2, 5, 2000])
def test_there_is_always_a_slot_for_a_newcomer(places):
    assert sum(share(FairShare(places=places, each=places), a=1).values()) == 1
