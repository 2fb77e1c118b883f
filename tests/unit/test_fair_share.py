"""Room: nobody gets more than a fair share when there is not enough, and who is alone gets all but the
reserve.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.processing.fair_share import FairShare, FlowKey, SlotDemand

A, B, C = (FlowKey(number, "checkouts") for number in (1, 2, 3))
GATEWAY = "https://gateway.example:443"


def shares(places: int = 100, each: int = 100, **held: int) -> FairShare:
    one = FairShare(places=places, each=each)
    for name, number in held.items():
        for _ in range(number):
            one.enter({"a": A, "b": B, "c": C}[name], GATEWAY)
    return one


def share(one: FairShare, *, most: int = 1000, busy: bool = False, **wanted: int) -> dict[str, int]:
    names = {A: "a", B: "b", C: "c"}
    flows = {flow: SlotDemand(GATEWAY, wanted[name]) for flow, name in names.items() if name in wanted}
    return {names[flow]: number for flow, number in one.share(flows, most=most, busy=busy).items()}


def test_who_is_alone_gets_all_but_the_reserve():
    assert share(shares(), a=1000) == {"a": 90}
    assert share(shares(places=1, each=1), a=5) == {"a": 1}, "one place is no place to keep a reserve in"


def test_who_wants_little_gets_it_and_the_others_share_the_rest():
    assert share(shares(), a=1000, b=10, c=1000) == {"a": 40, "b": 10, "c": 40}


def test_the_next_place_goes_to_who_has_the_fewest():
    assert share(shares(a=60), a=100, b=100) == {"b": 30}
    assert share(shares(a=40, b=20), a=100, b=100) == {"a": 5, "b": 25}


def test_the_reserve_is_for_who_has_next_to_nothing():
    full = shares(places=1000, each=1000, a=900)
    assert share(full, a=50) == {}
    assert share(full, b=500) == {"b": 10}
    assert share(shares(places=1000, each=1000, a=900, b=10), b=5) == {}


def test_nobody_gets_what_is_not_there():
    one = shares(places=10, each=10, a=9, b=1)
    assert one.full
    assert share(one, a=1, b=1, c=1) == {}


def test_a_busy_process_gives_places_to_those_alone_who_have_next_to_nothing():
    assert share(shares(places=1000, each=1000, a=50), busy=True, a=50, b=50) == {"b": 10}


def test_no_more_is_given_at_once_than_is_asked_for():
    assert share(shares(), most=7, a=50, b=50) == {"a": 4, "b": 3}


def test_one_gateway_has_no_more_than_its_places():
    one = FairShare(places=100, each=20)
    shares = one.share(
        {A: SlotDemand("slow", 50), B: SlotDemand("slow", 50), C: SlotDemand("quick", 5)}, most=100
    )
    assert shares == {A: 9, B: 9, C: 5}


def test_there_is_room_for_all_only_if_it_is_there_wherever_they_go():
    one = shares(places=100, each=20, a=10)
    assert one.fits(8)
    assert not one.fits(9)


def test_a_merchants_callbacks_have_a_share_of_their_own():
    one = shares(a=90)
    callbacks = FlowKey(A.merchant_id, "callbacks")
    assert one.share({A: SlotDemand(GATEWAY, 5), callbacks: SlotDemand(GATEWAY, 5)}, most=100) == {
        callbacks: 1
    }


def test_what_is_given_back_is_free_again():
    one = shares(a=2, b=1)
    assert (one.taken, one.held(A)) == (3, 2)
    for flow in (A, A, B):
        one.leave(flow, GATEWAY)
    assert (one.taken, one.held(A), share(one, a=1000)) == (0, 0, {"a": 90})


@given(
    places=st.integers(1, 60),
    each=st.integers(1, 60),
    flows=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40), st.sampled_from("xy")), max_size=8),
    most=st.integers(0, 100),
)
def test_shares_are_fair_and_leave_nothing_lying_about(places, each, flows, most):
    one = FairShare(places=places, each=each)
    demands = {}
    for number, (held, wanted, gateway) in enumerate(flows):
        flow = FlowKey(number, "checkouts")
        demands[flow] = SlotDemand(gateway, wanted)
        for _ in range(held):
            if not one.full:
                one.enter(flow, gateway)
    before = one.taken
    shares = one.share(demands, most=most)
    assert all(1 <= number <= demands[flow].number for flow, number in shares.items())
    assert sum(shares.values()) <= min(most, max(places - before, 0))
    has = {flow: one.held(flow) + shares.get(flow, 0) for flow in demands}
    for flow, number in shares.items():
        # Nobody at the same gateway who wanted more was left with less than somebody was raised to.
        for other, demand in demands.items():
            unmet = shares.get(other, 0) < demand.number
            if unmet and demand.gateway == demands[flow].gateway:
                assert has[other] >= has[flow] - 1, (flow, number, other)


@pytest.mark.parametrize("places", [1, 2, 5, 2000])
def test_there_is_always_a_place_for_somebody(places):
    assert sum(share(FairShare(places=places, each=places), a=1).values()) == 1
