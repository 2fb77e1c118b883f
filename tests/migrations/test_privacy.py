"""Migration 0019: what stood in clear comes under the data keys, in lists, and comes back on the way down."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.script import ScriptDirectory

from orchestrator.crypto import EncryptionError
from orchestrator.domain.ids import uuid7
from orchestrator.domain.operations import ask
from orchestrator.domain.records import Cause, OperationKind
from orchestrator.domain.states import State
from orchestrator.store import checkouts, inbox, schema
from orchestrator.store.free_text import ERASED, Reasons
from tests.conftest import make_settings
from tests.support.factories import core, payment

if TYPE_CHECKING:
    from uuid import UUID

    from tests.support.factories import Core

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("url", ["embedded"], indirect=True)]

KEYS = make_settings().secret_keys
MARKER = "Zoe-Quist-marker-5093"
NUMBER = 2100
"""Callbacks, more than two lists."""
OLD = """
    INSERT INTO callbacks (id, checkout_id, merchant_id, kind, grade, content_type, headers, source, body, digest)
    SELECT gen_random_uuid(), CAST(:checkout AS uuid), 1, 'notification', 'signed', 'text/plain', CAST(:headers AS jsonb), '192.0.2.7', '',
           sha256(CAST(n AS text)::bytea) FROM generate_series(1, :number) n
"""


async def downgrade(url: str) -> None:
    """Go back to the schema before 0019."""
    older = schema._config(url)
    older.attributes["secret_keys"] = KEYS
    before = ScriptDirectory.from_config(older).get_revision("0019").down_revision
    assert isinstance(before, str)
    await asyncio.to_thread(command.downgrade, older, before)


async def asked(new_core: Core, checkout: UUID, kind: str) -> None:
    await inbox.request(
        new_core.db,
        new_core.encryptor,
        checkout,
        merchant_id=1,
        kind=kind,
        actor="client:shop",
        reason=MARKER,
        arguments={"amount": 100, "transactionId": None},
        grace=60.0,
    )


async def test_rows_of_the_version_before_come_under_their_keys_and_back(url, encryptor):
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        held = await new_core.held(State.AWAITING_PAYMENT)
        operation = ask(
            payment("t-1"),
            OperationKind.CAPTURE,
            amount=100,
            cause=Cause.ASKED,
            actor="client:shop",
            reason=MARKER,
        )
        held = await new_core.advance(held, payments=(payment("t-1"),), operations=(operation,))
        await new_core.release(held)
        await asked(new_core, held.id, "capture")
        erased = await new_core.checkout(State.COMPLETED)
        await asked(new_core, erased, "refund")
        await downgrade(url)
        (reasons,) = await new_core.all("SELECT array_agg(DISTINCT reason) FROM commands")
        assert reasons == [MARKER]
        headers = json.dumps({"user-agent": MARKER})
        for checkout, number in ((held.id, NUMBER), (erased, 3), (None, 2)):
            await new_core.do(OLD, checkout=checkout, headers=headers, number=number)
        await new_core.do("UPDATE intents SET data_key = NULL WHERE checkout_id = :id", id=erased)
        before = await new_core.all(
            "SELECT to_jsonb(b) FROM callbacks b WHERE checkout_id IS DISTINCT FROM :id ORDER BY id",
            id=erased,
        )
        with pytest.raises(schema.NoDatabase, match="ORCHESTRATOR_SECRET_KEYS is not set"):
            await asyncio.to_thread(schema.migrate, url)
        await asyncio.to_thread(schema.migrate, url, keys=KEYS)

        (wrapped,) = await new_core.all("SELECT data_key FROM intents WHERE checkout_id = :id", id=held.id)
        rows = await new_core.all("SELECT id, checkout_id, sender FROM callbacks ORDER BY id")
        assert len(rows) == NUMBER + 5
        for number, checkout, sealed in rows:
            if checkout == erased:
                assert sealed is None
                continue
            assert MARKER.encode() not in bytes(sealed)
            key = None if checkout is None else bytes(wrapped)
            sender = inbox.decrypt_sender(encryptor, checkout or number, key, bytes(sealed))
            assert sender == inbox.Sender("text/plain", {"user-agent": MARKER}, "192.0.2.7")
        with pytest.raises(EncryptionError):
            inbox.decrypt_sender(encryptor, uuid7(), bytes(wrapped), bytes(rows[0][2]))
        (claimed,) = await new_core.claim(held.id)
        (ordered,) = claimed.commands
        shown = await Reasons.of(new_core.db, encryptor, held.id)
        assert (shown.shown(ordered.reason), shown.shown(claimed.operation.reason)) == (MARKER, MARKER)
        assert MARKER not in f"{ordered.reason} {claimed.operation.reason}"
        assert checkouts.command_holds(encryptor, held.id, 1, ordered)
        assert checkouts.operation_holds(encryptor, held.id, 1, claimed.operation)
        (gone,) = await new_core.all("SELECT reason FROM commands WHERE checkout_id = :id", id=erased)
        assert gone is None
        await new_core.release(claimed)

        await downgrade(url)
        after = await new_core.all(
            "SELECT to_jsonb(b) FROM callbacks b WHERE checkout_id IS DISTINCT FROM :id ORDER BY id",
            id=erased,
        )
        assert after == before
        rows = await new_core.all("SELECT reason FROM commands WHERE checkout_id = :id", id=held.id)
        assert rows == [MARKER]


async def test_on_the_way_down_a_reason_of_an_erased_customer_is_gone(url, encryptor):
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        checkout = await new_core.checkout(State.AWAITING_PAYMENT)
        await asked(new_core, checkout, "cancel")
        await new_core.do("UPDATE intents SET data_key = NULL")
        (reason,) = await new_core.all("SELECT reason FROM commands")
        assert (await Reasons.of(new_core.db, encryptor, checkout)).shown(reason) == ERASED
        await downgrade(url)
        assert await new_core.all("SELECT reason FROM commands") == [None]
