"""For each attention of a checkout, the ways out that are named clear it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.domain import command_result
from orchestrator.domain.attention import SHOWN_BY_LOOKUPS, WAYS_OUT, AttentionCode, Way

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio

# An operation whose effect is not known has tests of its own: it is the operation that is decided on.
DECIDED = [code for code in AttentionCode if code is not AttentionCode.OPERATION_UNCLEAR]


async def needing(world: Scene, code: AttentionCode) -> UUID:
    """Return a paid checkout that needs a decision."""
    checkout = await world.paid()
    await world.sql(
        "UPDATE checkouts SET attention = :code, attention_details = '{}', attention_since = clock() WHERE id = :id",
        code=code.value,
        id=checkout,
    )
    return checkout


@pytest.mark.parametrize("code", DECIDED)
async def test_a_decision_or_another_try_makes_every_attention_go(world: Scene, code: AttentionCode):
    for way in WAYS_OUT[code]:
        if way in {Way.RETURN, Way.RECONCILE}:
            continue
        checkout = await needing(world, code)
        kind, arguments = ("retry", {}) if way is Way.RETRY else ("resolve", {"decision": way.value})
        answer = await world.asked(checkout, kind, **arguments)
        row = await world.row(checkout)
        assert answer.code in command_result.DONE, answer
        assert (row.attention, row.attention_details, row.attention_since) == (None, None, None), way
        assert (row.state, await world.movements(checkout)) == ("completed", []), "it moves no money"


@pytest.mark.parametrize("code", sorted(SHOWN_BY_LOOKUPS))
async def test_a_lookup_that_no_longer_shows_it_takes_back_what_lookups_raise(
    world: Scene, code: AttentionCode
):
    checkout = await needing(world, code)
    assert (await world.asked(checkout, "reconcile")).code == "done_looked_up"
    row = await world.row(checkout)
    assert (row.state, row.attention) == ("completed", None)


@pytest.mark.parametrize("code", sorted({*DECIDED} - SHOWN_BY_LOOKUPS))
async def test_what_lookups_do_not_raise_stays_until_it_is_decided_or_the_gateway_answers(
    world: Scene, code: AttentionCode
):
    checkout = await needing(world, code)
    before = await world.row(checkout)
    assert (await world.asked(checkout, "reconcile")).code == "done_looked_up"
    row = await world.row(checkout)
    # An answer of the gateway ends what is about its failures, and a reservation that has no end cannot
    # lapse.
    goes = {Way.RETRY} == {*WAYS_OUT[code]} and code is not AttentionCode.POISONED
    if goes:
        assert row.attention is None
    elif code is not AttentionCode.RESERVATION_LAPSES:
        assert (row.attention, row.attention_since) == (code, before.attention_since)
