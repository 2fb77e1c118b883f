"""Connections to Postgres recover by themselves: after a failover, from silence, behind a pooler; and every
wait has a bound.
"""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from orchestrator.settings.postgres_url import parameters, place
from orchestrator.store import schema
from orchestrator.store.batch import Batch
from orchestrator.store.database import Database, DatabaseAway, _driver, is_away, run
from tests.support.postgres import (
    LOGIN,
    Cluster,
    Proxy,
    address,
    needs_pgbouncer,
    pgbouncer,
    pooling,
    through,
)

pytestmark = pytest.mark.anyio

BOUND = 0.5
"""Seconds for a statement in these tests."""
SOON = 10.0
"""Seconds; far more than anything here takes, and far less than what it took before there was a bound."""
ONE = text("SELECT 1 AS one")


@pytest.fixture(name="proxy")
def _proxy(database_url):
    with Proxy(address(database_url)) as started:
        yield started


@pytest.fixture(name="db")
async def _db(database_url, proxy):
    async with Database(through(database_url, proxy), pool_size=3, timeout=BOUND) as opened:
        # Every connection of the pool is open, and idle.
        await asyncio.gather(*(opened.read(text("SELECT pg_sleep(0.1)")) for _ in range(3)))
        yield opened


def writer(db, **options):
    """A batch that stores numbers, each once."""
    table = f"numbers_{uuid4().hex}"

    async def write(items):
        async with db.transaction() as tx:
            for item in items:
                await tx.execute(
                    text(f"INSERT INTO {table} VALUES (:item) ON CONFLICT DO NOTHING"), {"item": item}
                )
        return items

    return table, Batch(write, keys=lambda item: (item,), **options)


async def create(url, table):
    async with Database(url, pool_size=1) as straight:
        await straight.write(text(f"CREATE TABLE {table} (item int PRIMARY KEY)"), {})


# ── Silence ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["text", "compiled"])
async def test_a_read_on_a_silent_connection_is_answered_on_a_new_connection(db, proxy, kind):
    proxy.silence()
    began = time.monotonic()
    statement = ONE if kind == "text" else ONE.columns()
    assert [row.one for row in await db.read(statement)] == [1]
    assert BOUND * 0.8 < time.monotonic() - began < SOON


async def test_a_batch_on_a_silent_connection_is_written_on_a_new_connection(db, proxy, database_url):
    table, batch = writer(db)
    await create(database_url, table)
    assert await batch.put(1) == 1
    proxy.silence()
    async with asyncio.timeout(SOON):
        assert await asyncio.gather(*map(batch.put, range(2, 50))) == [*range(2, 50)]
    assert (await db.read(text(f"SELECT count(*) AS number FROM {table}")))[0].number == 49
    await batch.close()


async def test_a_write_whose_transaction_fell_silent_is_repeated_without_waiting_for_its_locks(
    database_url, proxy
):
    table = f"numbers_{uuid4().hex}"
    await create(database_url, table)
    insert = text(f"INSERT INTO {table} VALUES (1) ON CONFLICT DO NOTHING RETURNING item")
    async with Database(through(database_url, proxy), pool_size=2, timeout=1.0) as db:

        async def fall_silent():
            async with db.transaction() as tx:
                await tx.execute(insert)
                proxy.silence()
                await tx.execute(ONE)

        with pytest.raises(DBAPIError, match="no answer within 1 s"):
            await fall_silent()
        # The server still has the transaction with its lock. The one bound of a statement is enough for it to
        # end, for the new connection and for the write.
        assert [row.item for row in await db.write(insert, {})] == [1]


async def test_one_silent_connection_closes_all_that_are_as_old(db, proxy):
    proxy.silence()
    await asyncio.gather(*(db.read(ONE) for _ in range(3)))
    began = time.monotonic()
    for _ in range(20):
        await db.read(ONE)
    assert time.monotonic() - began < SOON, "no further connection was found silent, each after its own bound"


async def test_a_slow_statement_does_not_close_a_connection_on_which_postgres_answers(database_url):
    async with Database(database_url, pool_size=3, timeout=3.0) as db:
        slow = asyncio.create_task(db.write(text("SELECT pg_sleep(30)"), {}))
        await asyncio.sleep(2.7)
        await db.read(ONE)
        busy = asyncio.create_task(db.write(text("SELECT 2 AS two FROM pg_sleep(2)"), {}))
        with pytest.raises(DBAPIError, match="no answer within 3 s"):
            await slow
        assert [row.two for row in await busy] == [2]


async def test_the_callers_own_timeout_holds_on_a_silent_connection(db, proxy):
    proxy.silence(new_connections_too=True)
    db._server.timeout = 60.0
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await db.read(ONE)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), db.transaction() as tx:
            await tx.execute(ONE)
    assert time.monotonic() - began < SOON


async def test_a_cancelled_statement_costs_its_connection_and_no_more(db):
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await db.write(text("SELECT pg_sleep(30)"), {})
    assert [row.one for row in await db.read(ONE)] == [1]


async def test_a_server_notices_that_the_client_of_a_statement_is_gone(db, database_url):
    mark = uuid4().hex
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await db.write(text(f"SELECT pg_sleep(30) /* {mark} */"), {})
    sleeping = text(
        "SELECT count(*) AS number FROM pg_stat_activity WHERE query LIKE :mark AND pid <> pg_backend_pid()"
    )
    async with Database(database_url, pool_size=1) as straight, asyncio.timeout(SOON):
        while (await straight.read(sleeping, {"mark": f"%{mark}%"}))[0].number:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)


async def test_a_slow_batch_is_repeated_with_a_longer_bound_until_it_is_written(database_url):
    async with Database(database_url, pool_size=2, timeout=0.4) as db:
        tries = 0

        async def write(items):
            nonlocal tries
            tries += 1
            await db.write(text("SELECT pg_sleep(1.2)"), {})
            return items

        batch = Batch(write, keys=lambda item: (item,))
        assert await batch.put(1) == 1
        assert 2 <= tries <= 4
        await batch.close()


async def test_closing_waits_for_no_silent_connection(database_url):
    with Proxy(address(database_url)) as proxy:
        db = Database(through(database_url, proxy), pool_size=2, timeout=60)
        batch = Batch(lambda _: db.write(ONE, {}), keys=lambda item: (item,))
        await db.read(ONE)
        proxy.silence(new_connections_too=True)
        hanging = asyncio.create_task(batch.put(1))
        other = asyncio.create_task(db.write(ONE, {}))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await batch.close(within=0.3)
        await db.close()
        fates = await asyncio.gather(hanging, other, return_exceptions=True)
        assert type(fates[0]) is DatabaseAway
        assert is_away(fates[1])
        assert time.monotonic() - began < SOON


async def test_closing_leaves_no_connection_open_that_a_transaction_still_has(database_url):
    db = Database(database_url, pool_size=2, name="test")
    with pytest.raises(DBAPIError):  # noqa: PT012 - the connection is lost inside the transaction
        async with db.transaction() as tx:
            await run(tx, text("SELECT 1"), {})
            driver = _driver(tx)
            await db.close()
            assert driver.closed
            await run(tx, text("SELECT 1"), {})


async def test_a_closed_batch_answers_the_waiters_whose_rows_were_being_bisected(database_url):
    hang = asyncio.Event()  # never set

    async def write(items):
        if len(items) > 1:
            raise ValueError
        await hang.wait()

    batch = Batch(write, keys=lambda item: (item,))
    waiting = [asyncio.create_task(batch.put(number)) for number in range(8)]
    await asyncio.sleep(0.1)
    await batch.close(within=0.1)
    async with asyncio.timeout(SOON):
        fates = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(fate) for fate in fates} == {DatabaseAway}


async def test_a_kept_connection_is_taken_anew_after_an_error_and_where_it_takes_no_writes(db):
    whose = text("SELECT pg_backend_pid() AS pid")
    kept = db.kept()
    (first,), (again,) = await kept.write(whose, {}), await kept.write(whose, {})
    await db.write(text("SELECT pg_terminate_backend(:pid)"), {"pid": first.pid})
    with pytest.raises(DBAPIError) as lost:
        await kept.write(whose, {})
    (second,) = await kept.write(whose, {})
    await kept.write(text("SET default_transaction_read_only = on"), {})  # as after a failover
    (third,) = await kept.write(whose, {})
    await kept.close()
    assert is_away(lost.value)
    assert again.pid == first.pid
    assert len({first.pid, second.pid, third.pid}) == 3
    assert db._engine.pool.checkedout() == 0


async def test_a_kept_connection_whose_caller_is_cancelled_is_not_used_again(db):
    kept = db.kept()
    (first,) = await kept.write(text("SELECT pg_backend_pid() AS pid"), {})
    waiting = asyncio.create_task(kept.write(text("SELECT pg_sleep(30)"), {}))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    (second,) = await kept.write(text("SELECT pg_backend_pid() AS pid"), {})
    await kept.close()
    assert second.pid != first.pid
    assert db._engine.pool.checkedout() == 0


# ── Failover ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(name="pair", scope="module")
def _pair():
    with Cluster.started() as old, Cluster.started() as new:
        yield old, new


@pytest.mark.parametrize(
    "spelling", ["127.0.0.1:{0},127.0.0.1:{1}", "?host=127.0.0.1:{0}&host=127.0.0.1:{1}"]
)
async def test_a_primary_that_becomes_read_only_is_left_for_the_primary_that_takes_writes(pair, spelling):
    old, new = pair
    hosts = spelling.format(old.port, new.port)
    login = old.url.partition("://")[2].partition("@")[0]
    url = f"postgresql://{login}@/shop{hosts}" if hosts[0] == "?" else f"postgresql://{login}@{hosts}/shop"
    old.read_only(on=False)
    new.read_only(on=False)
    try:
        async with Database(url, pool_size=3) as db:
            table, batch = writer(db)
            # The standby has what the primary has before it takes writes.
            await create(new.url, table)
            new.read_only()
            async with Database(old.url, writes=False) as straight:
                await straight.write(text(f"CREATE TABLE {table} (item int PRIMARY KEY)"), {})
            await asyncio.gather(*map(batch.put, range(20)))
            old.read_only()
            waiting = asyncio.create_task(batch.put(100))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            new.read_only(on=False)
            began = time.monotonic()
            assert await waiting == 100
            assert time.monotonic() - began < 5.0
            ports = {row.port for row in await asyncio.gather(*(port_of(db) for _ in range(3)))}
            assert ports == {new.port}, "reads have moved too"
            await batch.close()
    finally:
        new.read_only(on=False)
        old.read_only(on=False)


async def port_of(db):
    return (await db.read(text("SELECT current_setting('port')::int AS port, pg_sleep(0.05)")))[0]


async def test_reads_leave_a_server_that_became_read_only(pair):
    old, new = pair
    login = old.url.partition("://")[2].partition("@")[0]
    async with Database(
        f"postgresql://{login}@127.0.0.1:{old.port},127.0.0.1:{new.port}/shop", pool_size=1
    ) as db:
        assert (await port_of(db)).port == old.port
        old.read_only()
        try:
            async with asyncio.timeout(SOON):
                while (await port_of(db)).port != new.port:  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(0.05)
        finally:
            old.read_only(on=False)


async def test_a_read_only_server_is_not_taken_for_a_primary(pair):
    old, _ = pair
    old.read_only()
    try:
        async with Database(old.url) as db:
            with pytest.raises(DBAPIError, match="read-only") as error:
                await db.read(ONE)
            assert is_away(error.value)
        async with Database(old.url, writes=False) as db:
            assert await db.read(ONE)
    finally:
        old.read_only(on=False)


@pytest.mark.parametrize("state", ["25006", "57P01", "57P02", "57P03", "08006", "08P01", "26000", "42P05"])
async def test_what_the_server_says_of_itself_is_no_row_refused_and_costs_the_connections(
    database_url, state
):
    async with Database(database_url, pool_size=2) as db:

        async def pid():
            return (await db.read(text("SELECT pg_backend_pid() AS pid, pg_sleep(0.05)")))[0].pid

        before = {*await asyncio.gather(pid(), pid())}
        with pytest.raises(DBAPIError) as error:
            await db.write(text(f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{state}'; END $$"), {})
        assert is_away(error.value)
        assert error.value.connection_invalidated
        assert before.isdisjoint({*await asyncio.gather(pid(), pid())})


@pytest.mark.parametrize(
    "state",
    ["53100", "53300", "42501", "42P01", "42703", "42883", "3F000", "58030", "40001", "55P03", "57014"],
)
async def test_what_would_meet_any_row_is_no_row_refused(database_url, state):
    async with Database(database_url, pool_size=1) as db:
        with pytest.raises(DBAPIError) as error:
            await db.write(text(f"DO $$ BEGIN RAISE EXCEPTION 'so' USING ERRCODE = '{state}'; END $$"), {})
        assert is_away(error.value)
        assert not error.value.connection_invalidated


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────

URLS = {
    "postgresql://u:p@a,b/db": {"host": "a,b"},
    "postgres://u:p@a:5432,b:5433/db": {"host": "a,b", "port": "5432,5433"},
    "postgresql+psycopg://u:p@a,b:5433/db": {"host": "a,b", "port": ",5433"},
    "postgresql://u:p@/db?host=a,b&port=6000": {"host": "a,b", "port": "6000,6000"},
    "postgresql://u:p@/db?host=a:1&host=b:2": {"host": "a,b", "port": "1,2"},
    "postgresql://u:p@[::1]:5,[2001:db8::2]/db": {"host": "::1,2001:db8::2", "port": "5,"},
    "postgresql://u:p@/db?host=%2Fvar%2Frun%2Fpostgresql": {"host": "/var/run/postgresql"},
    "postgresql://u:p@h/db?sslmode=require&target_session_attrs=any": {
        "host": "h", "sslmode": "require", "target_session_attrs": "any",
    },
}  # fmt: skip


@pytest.mark.parametrize("url", tuple(URLS))
def test_every_spelling_of_the_hosts_is_understood(url):
    assert parameters(url) == {"user": "u", "password": "p", "dbname": "db", **URLS[url]}


def test_a_name_and_a_password_are_percent_decoded():
    known = parameters("postgresql://sam%40shop:p%2Fs%40s@h/db")
    assert (known["user"], known["password"]) == ("sam@shop", "p/s@s")


def test_the_host_of_a_url_is_shown_without_login():
    assert place("postgresql://u:secret@a:1,b/db?host=x") == "a:1,b/db"
    assert place("postgresql://u:secret@/db?host=/run/x") == "its socket/db"


@pytest.mark.parametrize(
    "url", ["postgresql://h:port/x", "postgresql://h:99999/x", "postgresql://[::1/x", "h"]
)
def test_a_url_that_cannot_be_read_says_so(url):
    with pytest.raises(ValueError, match="host and port can be read"):
        parameters(url)


@pytest.mark.parametrize("threshold", ["0", "none", "7"])
async def test_prepare_threshold_is_taken_from_the_url(database_url, threshold):
    async with Database(f"{database_url}&prepare_threshold={threshold}", pool_size=1) as db:
        async with db.transaction() as tx:
            driver = tx.sync_connection.connection.driver_connection
            assert driver.prepare_threshold == (None if threshold == "none" else int(threshold))
        assert await db.read(ONE)


# ── PgBouncer ─────────────────────────────────────────────────────────────────────────────────────────────

SHOWN = text("""
    SELECT current_setting('timezone') AS zone, current_setting('random_page_cost') AS cost,
           current_setting('statement_timeout') AS timeout, pg_backend_pid() AS pid
""")


async def shown(db):
    async with db.transaction() as tx:
        return (await tx.execute(SHOWN)).one()


async def test_a_session_of_its_own_has_its_settings_from_the_first_statement_on(database_url):
    async with Database(database_url, pool_size=1, statement_timeout=7000) as db:
        (row,) = await db.read(SHOWN)
        assert (row.zone, row.cost, row.timeout) == ("UTC", "1.1", "7s")


@needs_pgbouncer
@pytest.mark.parametrize("ignored", ["", "extra_float_digits,options"])
async def test_behind_pgbouncer_clients_share_servers_and_leave_nothing_in_their_sessions(
    database_url, ignored
):
    options = {"ignore_startup_parameters": ignored} if ignored else {}
    with pgbouncer(database_url, size=2, **options) as url:
        async with (
            Database(url, pool_size=6, statement_timeout=7000) as first,
            Database(url, pool_size=6) as other,
        ):
            table, batch = writer(first)
            await create(url, table)
            for round_ in range(30):
                items = range(round_ * 10, round_ * 10 + 10)
                written = asyncio.gather(*map(batch.put, items))
                read = asyncio.gather(*(db.read(SHOWN) for db in (first, other) for _ in range(5)))
                assert await written == [*items]
                await read
            assert {
                row.timeout for (row,) in await asyncio.gather(*(first.read(SHOWN) for _ in range(10)))
            } == {"0"}
            # What planning and times depend on holds in each transaction, though the database has no such
            # defaults here.
            inside = await shown(first)
            assert (inside.zone, inside.cost, inside.timeout) == ("UTC", "1.1", "7s")
            async with first.snapshot() as moment:
                assert (await moment.execute(SHOWN)).one().cost == "1.1"
            await batch.close()
    async with Database(database_url, pool_size=1) as straight:
        assert (await straight.read(text(f"SELECT count(*) AS number FROM {table}")))[0].number == 300


@needs_pgbouncer
async def test_prepared_statements_behind_a_pooler_are_used_where_the_setting_says_on_and_healed_from(
    database_url,
):
    with pgbouncer(database_url, size=1) as url:
        async with (
            Database(url, pool_size=2, prepared="on") as first,
            Database(url, pool_size=2, prepared="on") as other,
        ):
            table, batch = writer(first)
            await create(url, table)
            for round_ in range(20):
                # Both use the same prepared statements. A row is never called refused for it.
                await asyncio.gather(batch.put(round_), other.read(ONE), return_exceptions=True)
            await batch.close()
        async with Database(url, pool_size=2, prepared="off") as cleared_attention:
            for _ in range(20):
                assert await cleared_attention.read(ONE)


@needs_pgbouncer
async def test_behind_poolers_the_primary_is_found_whatever_they_announce(pair):
    old, new = pair
    user, _, password = LOGIN.partition(":")
    old.read_only(on=False)
    new.read_only(on=False)
    try:
        with pooling(old.port, {user: password}) as first, pooling(new.port, {user: password}) as other:
            url = f"postgresql://{LOGIN}@127.0.0.1:{first},127.0.0.1:{other}/shop"
            async with Database(url, pool_size=3) as db:
                table, batch = writer(db)
                await create(new.url, table)
                await create(old.url, table)
                new.read_only()
                # A pooler gives every client the parameters of its first connection.
                with pytest.raises(DBAPIError, match="read-only"):
                    async with Database(f"postgresql://{LOGIN}@127.0.0.1:{other}/shop") as alone:
                        await alone.read(ONE)
                await asyncio.gather(*map(batch.put, range(20)))
                old.read_only()
                waiting = asyncio.create_task(batch.put(100))
                await asyncio.sleep(0.3)
                assert not waiting.done()
                new.read_only(on=False)
                async with asyncio.timeout(SOON):
                    assert await waiting == 100
                assert {(await port_of(db)).port for _ in range(3)} == {new.port}
                await batch.close()
    finally:
        new.read_only(on=False)
        old.read_only(on=False)


@needs_pgbouncer
async def test_a_migration_behind_a_pooler_is_refused_with_a_sentence(database_url):
    with pgbouncer(database_url) as url:
        with pytest.raises(schema.NoDatabase, match="MIGRATION_URL"):
            await asyncio.to_thread(schema.migrate, url)
        await asyncio.to_thread(schema.migrate, url, direct=True)


@needs_pgbouncer
async def test_a_migrated_database_needs_nothing_to_be_set_by_transactions():
    with Cluster.started() as fresh:
        await asyncio.to_thread(schema.migrate, fresh.url)
        with pgbouncer(fresh.url) as url:
            async with Database(url, pool_size=1) as db:
                assert (await driver_of(db)).pooled
                assert b"timezone" not in (await driver_of(db)).local
                (row,) = await db.read(SHOWN)
                assert (row.zone, row.cost, row.timeout) == ("UTC", "1.1", "0")
            for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
                fresh.admin(f"ALTER ROLE shop SET {setting} = '20s'")
        with pgbouncer(fresh.url) as url:
            async with Database(url, pool_size=1) as db:
                assert (await driver_of(db)).local == b""
                assert (await shown(db)).timeout == "20s"


async def driver_of(db):
    async with db.transaction() as tx:
        return tx.sync_connection.connection.driver_connection


@needs_pgbouncer
async def test_behind_pgbouncer_a_transaction_whose_client_fell_silent_gives_back_what_it_holds(database_url):
    lock = text("SELECT pg_advisory_xact_lock(11)")
    with pgbouncer(database_url) as url, Proxy(address(url)) as proxy:
        async with Database(through(url, proxy), pool_size=1, timeout=BOUND) as db, Database(url) as other:

            async def fall_silent():
                async with db.transaction() as tx:
                    await tx.execute(lock)
                    proxy.silence()
                    await tx.execute(ONE)

            with pytest.raises(DBAPIError):
                await fall_silent()
            async with asyncio.timeout(SOON), other.transaction() as tx:
                await tx.execute(lock)
