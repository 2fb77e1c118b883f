"""The trail of an installation that is at work becomes partitions in place: nothing is rewritten, lost, or
unproven afterwards.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import psycopg
import pytest
from alembic import command
from psycopg import errors

from orchestrator import audit
from orchestrator.audit import archive
from orchestrator.domain.ids import first_id
from orchestrator.domain.states import State, Trigger
from orchestrator.store import schema
from tests.support.factories import COMPLETED, core, payment

pytestmark = pytest.mark.anyio

ENTRIES = "SELECT * FROM audit_entries ORDER BY checkout_id, sequence"
PARTS = """
    SELECT tableoid::regclass::text AS part, count(*) FROM audit_entries GROUP BY 1 ORDER BY 1
"""
# The entries once more, of other checkouts.
ANOTHER = """
    INSERT INTO audit_entries
    SELECT (jsonb_populate_record(past, jsonb_build_object('checkout_id', gen_random_uuid()))).*
    FROM audit_entries AS past
"""
FILE = "SELECT pg_relation_filenode('{}')"


async def downgrade(url, to):
    await asyncio.to_thread(command.downgrade, schema._config(url), to)


async def orders(core, number=3):
    ids = []
    for _ in range(number):
        held = await core.held(State.AWAITING_PAYMENT)
        held = await core.advance(
            held,
            Trigger.PAYMENT_FOUND,
            payments=(payment(f"t-{held.id}"),),
            money=(13900, 0, 0),
            events=(COMPLETED,),
        )
        ids.append((await core.release(held, None)).id)
    return ids


async def test_a_trail_becomes_a_partition_as_it_is_and_comes_back_as_it_was(url, encryptor, tmp_path):
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        await orders(new_core)
        # What the schema of that time held: workers of today do not work on it.
        await downgrade(url, "0003")
        before, (file,) = await new_core.all(ENTRIES), await new_core.all(FILE.format("audit_entries"))
        await asyncio.to_thread(schema.migrate, url)
        assert await new_core.all(ENTRIES) == before
        assert await new_core.all(FILE.format("audit_entries_before")) == [file]
        assert await new_core.all(PARTS) == [("audit_entries_before", 18)]
        await audit.seal(new_core.db, encryptor)
        (young,) = await orders(new_core, 1)
        found = await audit.verify(new_core.db, encryptor)
        assert (found.checkouts, found.entries, found.problems) == (4, 24, [])
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
            for change in (
                "DELETE FROM audit_entries",
                "TRUNCATE audit_entries_before",
                "UPDATE audit_entries SET action = ''",
            ):
                with pytest.raises(errors.RestrictViolation):
                    await owner.execute(change)
        whole = await new_core.all(ENTRIES)
        await downgrade(url, "0003")
        assert await new_core.all(ENTRIES) == whole
        assert await new_core.all(FILE.format("audit_entries")) == [file]
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as owner:
            with pytest.raises(errors.RestrictViolation, match="audit_entries is append-only"):
                await owner.execute("DELETE FROM audit_entries")
        await asyncio.to_thread(schema.migrate, url)
        assert (await audit.verify(new_core.db, encryptor)).problems == []
        # What is archived stands in files that the older schema does not know of.
        result = await archive.run(new_core.db, encryptor, tmp_path, older_than=0.0, most=10)
        assert result.checkouts == 4
        assert (await audit.verify(new_core.db, encryptor)).problems == []
        with pytest.raises(Exception, match="there are archives"):
            await downgrade(url, "0003")
        # Younger steps were taken back; the schema stands where it was refused, and goes forward again from
        # there.
        assert await schema.current(new_core.db) == "0005"
        await asyncio.to_thread(schema.migrate, url)
        assert await schema.current(new_core.db) == schema.wanted()
        assert young in await new_core.all("SELECT checkout_id FROM archived_heads")


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
@pytest.mark.parametrize("year", [2031, 9500])
async def test_an_id_of_the_future_stays_where_it_is_and_so_does_all_before_it(url, encryptor, year):
    """A payment may name an id that we did not make, and its checkout keeps it."""
    await asyncio.to_thread(schema.migrate, url)
    at = first_id(datetime(year, 5, 5, tzinfo=UTC))
    async with core(url, encryptor) as new_core:
        far = await new_core.accept(id=UUID(int=at.int | 0x7 << 76 | 0x2 << 62))
        near = await new_core.accept()
        await downgrade(url, "0003")
        await asyncio.to_thread(schema.migrate, url)
        assert await new_core.all(PARTS) == [("audit_entries_before", 2)]
        assert (await audit.verify(new_core.db, encryptor)).problems == []
        months = await archive.months_of(new_core.db)
        assert len(months) == (26 if year == 2031 else 2)
        assert months[0].until > far > near
        await downgrade(url, "0003")
        assert len(await new_core.all(ENTRIES)) == 2


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
async def test_entries_of_all_partitions_come_back(url, encryptor):
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        months = await archive.months_of(new_core.db)
        for month in months[:-1:8]:
            await new_core.accept(id=UUID(int=month.until.int - (1 << 80) | 0x7 << 76 | 0x2 << 62))
        await new_core.accept(id=UUID(int=months[-2].until.int | 0x7 << 76 | 0x2 << 62))
        assert len(await new_core.all(PARTS)) == 5
        whole = await new_core.all(ENTRIES)
        await downgrade(url, "0003")
        assert await new_core.all(ENTRIES) == whole
        await asyncio.to_thread(schema.migrate, url)
        assert await new_core.all(ENTRIES) == whole
        assert (await audit.verify(new_core.db, encryptor)).problems == []


@pytest.mark.parametrize("url", ["embedded"], indirect=True)
async def test_an_upgrade_that_meets_a_busy_trail_gives_up_and_can_be_run_again(url, encryptor):
    await asyncio.to_thread(schema.migrate, url)
    async with core(url, encryptor) as new_core:
        await orders(new_core, 1)
        await downgrade(url, "0003")
        async with await psycopg.AsyncConnection.connect(url) as busy:
            await busy.execute("SELECT 1 FROM audit_entries")
            with pytest.raises(Exception, match="lock timeout") as error:
                await asyncio.to_thread(schema.migrate, url)
            assert isinstance(error.value.__cause__, errors.LockNotAvailable)
            # The trail of that time is written to as before.
            async with await psycopg.AsyncConnection.connect(url) as writer:
                await writer.execute("SET LOCAL lock_timeout = '2s'")
                assert (await writer.execute(ANOTHER)).rowcount == 6
                await writer.rollback()
        assert await schema.current(new_core.db) == "0003"
        await asyncio.to_thread(schema.migrate, url)
        assert (await audit.verify(new_core.db, encryptor)).problems == []
