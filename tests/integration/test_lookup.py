"""The command line finds a checkout by its id or by any order number that the gateway may hold."""

from __future__ import annotations

import click
import pytest

from orchestrator.cli import lookup
from orchestrator.domain.ids import uuid7

pytestmark = pytest.mark.anyio


async def checkout(core, order_ref: str):
    checkout_id = uuid7()
    await core.all(
        "INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, currency, amount, audit_sequence, audit_head, correlation_id) "
        "VALUES (:id, 1, :order_ref, 'failed', clock(), 'DKK', 100, 1, '', '') RETURNING 1",
        id=checkout_id,
        order_ref=order_ref,
    )
    return checkout_id


@pytest.mark.parametrize(
    "order_ref",
    [
        "A-1",
        "4711 special invoice",
        "usd_plan::1#a",
        "x" * 255,
        "[bold]1[/bold]",
        "0123456789abcdef" * 2,
        "019aa000-0000-7000-8000-00000000000a",
    ],
)
async def test_a_checkout_is_found_by_its_order_number_and_by_its_id(core, order_ref):
    await checkout(core, "B-1")
    checkout_id = await checkout(core, order_ref)
    assert (await lookup.find_checkout(core.db, order_ref)).id == checkout_id
    assert (await lookup.find_checkout(core.db, str(checkout_id))).order_ref == order_ref


@pytest.mark.parametrize(
    "wanted", ["C-1", "", "x" * 256, "a\x1bb", "\udcff", "019aa000-0000-7000-8000-00000000000a"]
)
async def test_what_is_not_there_is_reported_in_a_sentence(core, wanted):
    await checkout(core, "B-1")
    with pytest.raises(click.UsageError, match="there is no checkout"):
        await lookup.find_checkout(core.db, wanted)
