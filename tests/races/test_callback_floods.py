"""Floods of callbacks: what is kept of them, what still wakes the checkout, and how little of it Postgres has
to read.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from sqlalchemy import text

from orchestrator.domain.states import State
from orchestrator.store.columns import json_text
from orchestrator.store.inbox import Callbacks, Caps, callbacks, unmatched
from tests.races.test_unmatched import unexpected_callback
from tests.support.factories import arrival

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def taking(core, **options):
    writer = Callbacks(core.db, core.encryptor, grace=60.0, **options)
    try:
        yield writer
    finally:
        await writer.close()


def bodies(number: int, prefix: bytes = b""):
    return [prefix + b"%d" % index for index in range(number)]


async def kept(core, checkout):
    rows = await core.all(
        "SELECT grade, count(*) FROM callbacks WHERE checkout_id = :id GROUP BY 1 ORDER BY 1", id=checkout
    )
    return dict(rows)


async def read(core, checkout):
    (held,) = await core.claim(checkout)
    await core.release(held, 1000.0, read=tuple(callback.id for callback in held.callbacks))


@pytest.mark.parametrize("one_batch", [True, False])
async def test_of_a_flood_without_proof_so_many_are_kept_and_proven_callbacks_are_kept_too(core, one_batch):
    first, other = [await core.checkout(State.AWAITING_PAYMENT) for _ in range(2)]
    async with taking(core, caps=Caps(8, 3)) as writer:
        for checkout in (first, other):
            wrong = [arrival(checkout, grade="wrong", body=body) for body in bodies(20)]
            if one_batch:
                await asyncio.gather(*map(writer.store, wrong))
            else:
                for each in wrong:
                    await writer.store(each)
        fates = await asyncio.gather(
            *(writer.store(arrival(first, body=body)) for body in bodies(20, b"real-"))
        )
        assert sum(fate.kept for fate in fates) == 5
        assert all(fate.wakes for fate in fates), "what the gateway signed always wakes the checkout"
    assert await kept(core, first) == {"signed": 5, "wrong": 3}
    assert await kept(core, other) == {"wrong": 3}


async def test_in_one_batch_proven_callbacks_are_kept_first(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    arrivals = [
        arrival(checkout, grade=grade, body=body)
        for body in bodies(10)
        for grade in ("missing", "signed")
        for body in (body + grade.encode(),)
    ]
    async with taking(core, caps=Caps(12, 12)) as writer:
        await asyncio.gather(*map(writer.store, arrivals))
    assert await kept(core, checkout) == {"missing": 2, "signed": 10}


async def test_a_repeat_counts_however_many_there_are(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with taking(core, caps=Caps(2, 1)) as writer:
        for body in bodies(4):
            await writer.store(arrival(checkout, body=body))
        fate = await writer.store(arrival(checkout, body=b"0"))
    assert (fate.kept, fate.wakes) == (True, True)
    assert sorted(await core.all("SELECT times FROM callbacks")) == [1, 2]


@pytest.mark.parametrize(
    ("grade", "wakes_while_open", "wakes_when_read"),
    [("signed", True, True), ("checksum", True, False), ("unchecked", True, False), ("wrong", False, False)],
)
async def test_beyond_the_cap_a_wake_up_is_kept_and_only_a_signed_callback_makes_a_new_wake_up(
    core, grade, wakes_while_open, wakes_when_read
):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with taking(core, caps=Caps(1, 1)) as writer:
        await writer.store(arrival(checkout, body=b"first"))
        fate = await writer.store(arrival(checkout, grade=grade, body=b"second"))
        assert (fate.kept, fate.wakes) == (False, wakes_while_open)
        await read(core, checkout)
        before = (await core.row(checkout)).wake
        fate = await writer.store(arrival(checkout, grade=grade, body=b"third"))
        assert (fate.kept, fate.wakes) == (False, wakes_when_read)
        assert (await core.row(checkout)).wake == before + wakes_when_read


async def test_where_the_network_counts_what_comes_from_elsewhere_is_capped_as_unproven(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    async with taking(core, caps=Caps(9, 2), strict_network=True) as writer:
        for body in bodies(5):
            await writer.store(arrival(checkout, network="outside", body=body))
        await writer.store(arrival(checkout, network="inside", body=b"real"))
    assert await core.all("SELECT network, count(*) FROM callbacks GROUP BY 1 ORDER BY 1") == [
        ("inside", 1),
        ("outside", 2),
    ]


async def test_of_the_same_callback_at_once_the_best_proof_is_kept(core):
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    grades = ["missing", "wrong", "unchecked", "signed", "stale", "checksum"]
    fates = await asyncio.gather(*(core.callbacks.store(arrival(checkout, grade=grade)) for grade in grades))
    assert all(fate.kept and fate.wakes for fate in fates)
    assert await core.all("SELECT grade, times FROM callbacks") == [("signed", 6)]


async def test_a_flood_for_a_checkout_that_does_not_exist_is_capped_too(core):
    foreign = uuid4()
    async with taking(core, caps=Caps(4, 2)) as writer:
        await asyncio.gather(*(writer.store(arrival(foreign, body=body)) for body in bodies(9)))
        await asyncio.gather(
            *(writer.store(arrival(foreign, grade="wrong", body=body)) for body in bodies(9, b"w"))
        )
    assert await kept(core, foreign) == {"signed": 4}


def scans(plan):
    """Yield how a plan reads the table of callbacks."""
    if plan.get("Relation Name") == "callbacks" and "Scan" in plan["Node Type"]:
        yield plan["Node Type"]
    for inner in plan.get("Plans", ()):
        yield from scans(inner)


@pytest.mark.parametrize("what", ["callback", "unmatched"])
async def test_what_one_callback_costs_does_not_grow_with_those_of_others(core, what):
    """How Postgres would read the table for one callback, with a hundred thousand of other checkouts beside
    it.
    """
    checkout = await core.checkout(State.AWAITING_PAYMENT)
    await core.do("""
        INSERT INTO callbacks (id, checkout_id, merchant_id, kind, grade, body, digest)
        SELECT gen_random_uuid(), CASE WHEN n % 1000 > 0 THEN gen_random_uuid() END, 1, 'notification', 'wrong', '',
               sha256(n::text::bytea)
          FROM generate_series(1, 100000) AS n
    """)
    await core.do("ANALYZE callbacks")
    if what == "callback":
        row = {
            **core.callbacks.row(arrival(checkout, grade="wrong"), checkout, None, 1),
            "checkout_id": checkout,
        }
        parameters = {
            "arrivals": json_text([row]),
            "empty": callbacks._EMPTY,
            **core.callbacks.bounds,
        }
        statement = callbacks._STORE
    else:
        writer = unmatched.UnmatchedCallbacks(core.db, core.encryptor, core.callbacks, grace=60.0)
        parameters, statement = writer._parameters([unexpected_callback(grade="wrong")]), unmatched._KEEP
    async with core.db.transaction() as tx:
        told = (await tx.execute(text(f"EXPLAIN (FORMAT JSON) {statement.text}"), parameters)).scalar_one()
    read = set(scans(told[0]["Plan"]))
    assert read
    assert "Seq Scan" not in read
