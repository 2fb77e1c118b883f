"""Refused intents as they are stored and read; how they are refused is in `test_submissions`."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from orchestrator.crypto import Encryptor
from orchestrator.intents import Problem
from orchestrator.store.inbox import rejected
from tests.conftest import OLDER_KEY, make_settings

pytestmark = pytest.mark.anyio


def rejection(message_id: str = "m-1", **changes: object) -> rejected.Rejection:
    given: dict[str, object] = {
        "merchant_id": 1,
        "message_id": message_id,
        "number": 0,
        "order_ref": "A-1",
        "code": "invalid_intent",
        "problems": (Problem("order", "is missing"),),
        "body": b"{}",
        "correlation_id": "c-1",
    }
    return rejected.Rejection(**given | changes)  # type: ignore[arg-type]


async def test_of_no_rejections_nothing_is_stored(core):
    assert await rejected.store(core.db, core.encryptor, []) == 0


async def test_the_same_message_is_stored_once(core):
    assert await rejected.store(core.db, core.encryptor, [rejection()]) == 1
    assert await rejected.store(core.db, core.encryptor, [rejection(), rejection("m-2")]) == 1


async def test_a_merchant_reads_its_own_page_by_page_and_by_order(core):
    kept = [rejection("m-1"), rejection("m-2", order_ref="A-2"), rejection("m-3", merchant_id=None)]
    assert await rejected.store(core.db, core.encryptor, kept) == 3
    ids = sorted((kept[0].id, kept[1].id), reverse=True)
    page = await rejected.page(core.db, 1, order_ref=None, before=None, limit=1)
    assert [row.id for row in page] == ids[:1]
    page = await rejected.page(core.db, 1, order_ref=None, before=ids[0], limit=5)
    assert [row.id for row in page] == ids[1:]
    page = await rejected.page(core.db, 1, order_ref="A-2", before=None, limit=5)
    assert [(row.id, row.problems) for row in page] == [(kept[1].id, kept[1].problems)]
    every = await rejected.latest(core.db, limit=5)
    assert {row.id for row in every} == {each.id for each in kept}


async def test_those_of_one_code_are_read_from_the_oldest_on(core):
    kept = [
        rejection("m-1", code="token_expired"),
        rejection("m-2"),
        rejection("m-3", code="token_expired", merchant_id=None),
        rejection("m-4", code="token_expired"),
    ]
    await rejected.store(core.db, core.encryptor, kept)
    expired = sorted(each.id for each in kept if each.code == "token_expired")

    async def found(merchant_id: int | None, after: UUID, limit: int) -> list[UUID]:
        rows = await rejected.with_code(
            core.db, "token_expired", merchant_id=merchant_id, after=after, limit=limit
        )
        return [row.id for row in rows]

    assert await found(None, UUID(int=0), 2) == expired[:2]
    assert await found(None, expired[1], 5) == expired[2:]
    assert await found(1, UUID(int=0), 5) == sorted((kept[0].id, kept[3].id))


async def test_what_was_sent_is_shown_only_where_a_key_decrypts_it(core):
    sent = rejection(body=b'{"order": 1}')
    await rejected.store(core.db, core.encryptor, [sent])
    assert await rejected.by_id(core.db, core.encryptor, uuid4()) is None
    row, body = await rejected.by_id(core.db, core.encryptor, sent.id)
    assert (row.order_ref, body) == ("A-1", sent.body)
    other = Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys)
    row, body = await rejected.by_id(core.db, other, sent.id)
    assert (row.order_ref, body) == ("A-1", None)


async def test_what_was_refused_long_ago_is_forgotten(core):
    await rejected.store(core.db, core.encryptor, [rejection("m-1"), rejection("m-2")])
    await core.db.write(
        text("UPDATE rejected_intents SET created_at = clock() - interval '1 day' WHERE message_id = 'm-1'"),
        {},
    )
    assert await rejected.forget(core.db, older_than=3600) == 1
    left = await rejected.latest(core.db, limit=5)
    assert [row.message_id for row in left] == ["m-2"]


async def test_a_message_of_no_proven_merchant_belongs_to_the_merchant_that_an_operator_names(core):
    """An erasure of an order reaches it then, and it stays whose it is."""
    unproven = rejection("m-1", merchant_id=None, number=-1, order_ref=None, order_refs=("A-1", "A-2"))
    await rejected.store(core.db, core.encryptor, [unproven, rejection("m-2", merchant_id=2)])
    assert await rejected.readable(core.db, 1, "A-2") == 0
    for merchant_id in (1, 2):
        await rejected.belongs_to(core.db, unproven.id, merchant_id)
    (row,) = await rejected.page(core.db, 1, order_ref=None, before=None, limit=5)
    assert row.id == unproven.id
    assert await rejected.readable(core.db, 1, "A-2") == 1
    assert await rejected.erase(core.db, 1, "A-2") == 1
    _, body = await rejected.by_id(core.db, core.encryptor, unproven.id)
    assert body is None
    assert await rejected.store(core.db, core.encryptor, [unproven]) == 0, "delivered again, it is the same"
