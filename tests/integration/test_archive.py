"""Archiving: what is settled leaves for a file, whole and once; what is not stays; and nothing of it can be taken back unseen."""

from __future__ import annotations

import gzip
import json

import pytest

from orchestrator import archive, audit
from orchestrator.states import State, Trigger
from tests.factories import arrival, payment

pytestmark = pytest.mark.anyio


async def settled(core, state=State.COMPLETED, **changes):
    held = await core.held(State.AWAITING_PAYMENT, **changes)
    await core.callbacks.take(arrival(held.id))
    held = await core.release(held, 0.0)
    (held,) = await core.claim(held.id)
    if state is State.COMPLETED:
        held = await core.advance(
            held, Trigger.PAYMENT_FOUND, payments=(payment(f"t-{held.id}"),), money=(13900, 0, 0), read=(held.letters[0].id,)
        )
    else:
        held = await core.advance(held, Trigger.DEADLINE_PASSED, read=(held.letters[0].id,))
    return (await core.release(held, None)).id


async def run(core, place, **changes):
    return await archive.run(core.db, core.vault, place, **{"older_than": 0.0, "most": 100, **changes})


async def problems(core):
    return (await audit.verify(core.db, core.vault)).problems


async def test_smoke(core, tmp_path):
    ids = [await settled(core) for _ in range(3)]
    open_one = await core.checkout(State.AWAITING_PAYMENT)
    await audit.seal(core.db, core.vault)
    result = await run(core, tmp_path)
    print(result)
    assert (result.archives, result.checkouts) == (1, 3)
    (path,) = tmp_path.glob("*.gz")
    print(gzip.open(path).read().decode()[:3000])
    assert await problems(core) == []
    found = audit.open_archive(path, core.vault)
    print(found)
    assert not found.problems
    assert (await run(core, tmp_path)).archives == 0
