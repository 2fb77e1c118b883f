"""Erasures beside each other, and beside callbacks and workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from orchestrator import audit
from orchestrator.domain.states import State
from orchestrator.store import checkouts
from orchestrator.store.checkouts import Hindrance
from tests.support.factories import arrival, row_held
from tests.support.factories import core as another

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.factories import Core

pytestmark = pytest.mark.anyio


async def erase(core: Core, *ids: UUID) -> list[checkouts.Fate]:
    return await checkouts.erase(core.db, core.encryptor, ids, actor="operator:test", cause="asked")


async def test_erasures_at_once_are_one_entry_for_each_checkout_and_no_callback_keeps_its_content(core):
    ids = [await core.checkout(State.CANCELLED) for _ in range(20)]
    async with another(core.url, core.encryptor) as other:
        work = []
        for number, checkout in enumerate(ids):
            work += [erase((core, other)[number % 2], *ids[number:], checkout)]
            work += [(core, other)[number % 2].callbacks.store(arrival(checkout, body=b"%d" % number))]
        await asyncio.gather(*work)
    for _ in range(2):
        await core.do("UPDATE callbacks SET handled_at = clock()")
        await erase(core, *ids)
    entries = await core.all("SELECT checkout_id FROM audit_entries WHERE action = 'checkout:erased'")
    assert sorted(entries) == sorted(ids)
    assert await core.all("SELECT count(*) FROM intents WHERE data_key IS NOT NULL OR body <> ''") == [0]
    (keys,) = await core.all("SELECT count(*) FROM callbacks WHERE substring(body FROM 1 FOR 1) = '\\x00'")
    assert keys == 0, "what came before is overwritten, and of what came after nothing is kept"
    assert (await audit.verify(core.db, core.encryptor)).problems == []


async def test_a_checkout_that_is_being_written_is_left_and_the_others_go(core):
    first, second = [await core.checkout(State.CANCELLED) for _ in range(2)]
    async with row_held(core.url, first):
        fates = {fate.id: fate for fate in await erase(core, first, second)}
    assert (fates[first].hindrance, fates[second].erased) == (Hindrance.HELD, True)


async def test_a_worker_that_lost_its_lease_to_an_erasure_writes_nothing(core):
    held = await core.held(State.CANCELLED)
    assert [fate.hindrance for fate in await erase(core, held.id)] == [Hindrance.HELD]
    await core.do("UPDATE checkouts SET leased_until = clock() - interval '1 second'")
    assert [fate.erased for fate in await erase(core, held.id)] == [True]
    with pytest.raises(checkouts.LeaseLost):
        await core.release(held)
    assert (await audit.verify(core.db, core.encryptor)).problems == []
