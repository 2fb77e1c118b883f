"""Archiving: settled history moves to a file, whole and once; open history stays; and a change of either is
detected.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import OperationalError

from orchestrator import audit
from orchestrator.audit import Action, archive
from orchestrator.audit.archive import batch, files
from orchestrator.audit.archive.lock_timeout import patiently
from orchestrator.audit.archive.months import _drop
from orchestrator.crypto import Encryptor
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.ids import first_id, uuid7
from orchestrator.domain.records import Operation
from orchestrator.domain.states import State, Trigger
from orchestrator.store import inbox
from orchestrator.store.checkouts import KEEP
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.factories import COMPLETED, Breaking, arrival, intake, payment, row_held
from tests.support.factories import core as another

pytestmark = pytest.mark.anyio

HISTORY = ("audit_entries", "callbacks", "sessions", "commands")
BOOKS = ("checkouts", "intents", "payments", "money_operations", "idempotency_keys")


async def settled(core, state=State.COMPLETED, **changes):
    """Return a checkout with everything that a history can have, settled for good."""
    held = await core.held(State.AWAITING_PAYMENT, **changes)
    await core.callbacks.store(arrival(held.id))
    await inbox.request(
        core.db, core.encryptor, held.id, merchant_id=1, kind="reconcile", actor="x", grace=60.0
    )
    await inbox.request(
        core.db,
        core.encryptor,
        held.id,
        merchant_id=1,
        kind="capture",
        actor="x",
        idempotency_key=f"k-{held.id}",
        grace=60.0,
    )
    held = await core.release(held, 0.0)
    (held,) = await core.claim(held.id)
    read = {
        "read": tuple(callback.id for callback in held.callbacks),
        "done": tuple((command.id, result(ResultCode.DONE_DECIDED)) for command in held.commands),
    }
    if state is State.COMPLETED:
        held = await core.advance(
            held,
            Trigger.PAYMENT_FOUND,
            payments=(payment(f"t-{held.id}"),),
            money=(13900, 0, 0),
            events=(COMPLETED,),
            **read,
        )
        operation = Operation(
            id=uuid7(),
            transaction_id=f"t-{held.id}",
            kind="capture",
            amount=13900,
            currency="DKK",
            state="succeeded",
            cause="asked",
            actor="x",
        )
        held = await core.advance(held, action=Action.MONEY_SUCCEEDED, operations=(operation,))
    else:
        held = await core.advance(held, Trigger.DEADLINE_PASSED, **read)
    return (await core.release(held, None)).id


async def run(core, place, **changes):
    return await archive.run(core.db, core.encryptor, place, **{"older_than": 0.0, "most": 100, **changes})


async def told(core, place, **changes):
    """Run, and return the archives that were reported."""
    heard = []
    await run(core, place, tell=heard.append, **changes)
    return heard


async def problems(core, encryptor=None):
    return (await audit.verify(core.db, encryptor or core.encryptor)).problems


async def counts(core, tables=HISTORY):
    return {table: (await core.all(f"SELECT count(*) FROM {table}"))[0] for table in tables}


def pages(place):
    """Return the pages of all files by checkout, in the order of their archives."""
    found = {}
    for path in sorted(place.glob("archive-*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).splitlines()[:-1]:
            page = json.loads(line)
            found.setdefault(UUID(page["id"]), []).append(page)
    return found


def rewritten(path, change):
    """Write a file again with its lines changed by a function from list to list."""
    lines = change(gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True))
    path.write_bytes(gzip.compress("".join(lines).encode()))


@pytest.fixture(name="two")
async def _two(core):
    return [await settled(core), await settled(core, State.EXPIRED)]


@pytest.fixture(name="archived")
async def _archived(core, two, tmp_path):
    """Two archives of a checkout each; return the checkouts."""
    await audit.seal(core.db, core.encryptor)
    assert (await run(core, tmp_path, most=1)).archives == 2
    return two


# ── What goes, what stays ─────────────────────────────────────────────────────────────────────────────────


async def test_the_whole_history_goes_into_one_file_and_the_books_stay(core, two, tmp_path):
    books, before = await counts(core, BOOKS), await counts(core)
    assert all(before.values())
    told = []
    result = await run(core, tmp_path, tell=told.append)
    assert (result.archives, result.checkouts, result.entries) == (1, 2, before["audit_entries"])
    assert [(progress.number, progress.checkouts) for progress in told] == [(1, 2)]
    assert (result.problems, result.orphans) == ([], [])
    # A command with a key stays, for a request that is sent again.
    assert await counts(core) == dict.fromkeys(HISTORY, 0) | {"commands": 2}
    assert await counts(core, BOOKS) == books
    (paid,), (expired,) = (pages(tmp_path)[checkout] for checkout in two)
    assert [len(paid[kind]) for kind in ("entries", "events", "callbacks", "sessions", "commands")] == [
        7,
        2,
        1,
        1,
        2,
    ]
    assert (paid["payments"][0]["transaction_id"], paid["operations"][0]["state"]) == (
        f"t-{two[0]}",
        "succeeded",
    )
    assert paid["checkout"][0]["order_ref"] != expired["checkout"][0]["order_ref"]
    assert expired["head"]["state"] == "expired"
    assert await problems(core) == []


async def test_nothing_of_the_customer_is_readable_in_a_file_once_its_key_is_destroyed(core, two, tmp_path):
    await run(core, tmp_path)
    page = pages(tmp_path)[two[0]][0]
    body = bytes.fromhex(page["callbacks"][0]["body"].removeprefix("\\x"))
    assert b"succeeded" not in body
    (wrapped,) = await core.all("SELECT data_key FROM intents WHERE checkout_id = :id", id=two[0])
    assert inbox.decrypt_body(core.encryptor, two[0], bytes(wrapped), body) == b"status=succeeded"
    assert wrapped.hex() not in json.dumps(page)


WAITS = {
    "not ended": None,
    "with a due time": "UPDATE checkouts SET due_at = clock() + interval '30 days'",
    "with a person": "UPDATE checkouts SET attention = 'open_payment'",
    "held": "UPDATE checkouts SET lease = gen_random_uuid(), leased_until = clock()",
    "with an unread callback": "UPDATE callbacks SET handled_at = NULL",
    "with an open command": "UPDATE commands SET handled_at = NULL WHERE kind = 'reconcile'",
    "with an operation under way": "UPDATE money_operations SET state = 'unknown'",
    "with an event that is still to be placed": (
        "UPDATE events SET position = CASE WHEN kind = 'checkout.ready' THEN 1 END"
    ),
}


@pytest.mark.parametrize("change", tuple(WAITS.values()), ids=tuple(WAITS))
async def test_what_is_not_settled_stays(core, tmp_path, change):
    checkout = await core.checkout(State.AWAITING_PAYMENT) if change is None else await settled(core)
    if change is not None:
        await core.do(change)
    before = await counts(core)
    assert await archive.candidates(core.db, await archive.choose(core.db, older_than=0.0)) == (0, 0)
    assert (await run(core, tmp_path)).archives == 0
    assert await counts(core) == before
    assert checkout
    assert list(tmp_path.iterdir()) == []


async def test_what_is_still_to_be_delivered_stays_and_what_is_delivered_goes(core, tmp_path):
    checkout = await settled(core)
    await core.do(
        "INSERT INTO webhook_endpoints (id, merchant_id, url, secret) VALUES (gen_random_uuid(), 1, 'https://shop.example', '')"
    )
    await core.do(
        "INSERT INTO delivery_streams (endpoint_id, checkout_id, next_sequence, last_sequence, due_at) "
        "SELECT id, :id, 1, 1, clock() FROM webhook_endpoints",
        id=checkout,
    )
    assert (await run(core, tmp_path)).archives == 0
    await core.do("DELETE FROM delivery_streams")
    assert (await run(core, tmp_path)).archives == 1
    assert checkout in pages(tmp_path)


async def test_what_is_younger_or_was_touched_since_stays(core, two, tmp_path):
    day = 86400.0
    assert (await run(core, tmp_path, older_than=day)).archives == 0
    await core.do("UPDATE clock_skew SET seconds = 2 * 86400")
    # The first was written of a moment ago; the ids are of today, and so are not older than two days.
    await core.do("UPDATE checkouts SET updated_at = clock() WHERE id = :id", id=two[1])
    assert (await run(core, tmp_path, older_than=3 * day)).archives == 0
    assert (await run(core, tmp_path, older_than=day)).checkouts == 1
    assert list(pages(tmp_path)) == [two[0]]


async def test_each_goes_once_in_batches_of_the_size_asked_for(core, tmp_path):
    ids = [await settled(core) for _ in range(5)]
    choice = await archive.choose(core.db, older_than=0.0)
    assert (await archive.candidates(core.db, choice))[0] == 5
    assert [(progress.number, progress.checkouts) for progress in await told(core, tmp_path, most=2)] == [
        (1, 2),
        (2, 2),
        (3, 1),
    ]
    assert list(pages(tmp_path)) == ids
    assert (await run(core, tmp_path)).archives == 0
    assert await problems(core) == []


async def test_stretches_of_ids_leave_nothing_out_and_take_nothing_twice(core):
    ids = await core.checkouts(7)
    choice = await archive.choose(core.db, older_than=-60.0)
    for most in (1, 2, 3, 7, 8):
        found = [
            await core.all(
                "SELECT id FROM checkouts WHERE id > :after AND id < :before ORDER BY id",
                after=stretch.after,
                before=stretch.before,
            )
            async for stretch in batch.stretches(core.db, choice, most=most)
        ]
        assert [checkout for part in found for checkout in part] == sorted(ids)
        assert max(map(len, found)) <= max(most, 1)


async def test_a_batch_is_not_larger_than_its_callbacks_allow(core, two, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_BYTES", 1)
    assert [progress.checkouts for progress in await told(core, tmp_path)] == [1, 1]


# ── What still works afterwards ───────────────────────────────────────────────────────────────────────────


async def test_an_archived_order_number_is_still_taken_and_its_request_met(core, tmp_path):
    asked = intake(idempotency_key="k-1")
    (held,) = await core.claim((await core.intents.accept(asked)).id)
    held = await core.advance(held, Trigger.PAYMENT_FOUND, payments=(payment("t"),), money=(13900, 0, 0))
    await core.release(held, None)
    assert (await run(core, tmp_path)).checkouts == 1
    met = await core.intents.accept(intake(order_ref=asked.order_ref))
    assert (met.id, met.fresh, met.state) == (held.id, False, "completed")
    with pytest.raises(inbox.OrderTaken):
        await core.intents.accept(intake(order_ref=asked.order_ref, fingerprint=b"g" * 32))
    with pytest.raises(inbox.KeyReused):
        await core.intents.accept(intake(idempotency_key="k-1", fingerprint=b"g" * 32))


async def test_a_money_command_is_not_obeyed_again_after_its_history_is_archived(core, archived):
    again = await inbox.request(
        core.db,
        core.encryptor,
        archived[0],
        merchant_id=1,
        kind="capture",
        actor="x",
        idempotency_key=f"k-{archived[0]}",
        grace=60.0,
    )
    assert not again.fresh


async def test_an_archived_checkout_wakes_up_goes_on_with_its_chain_and_is_archived_again(
    core, archived, tmp_path
):
    (checkout, expired) = archived
    assert (await core.callbacks.store(arrival(expired, body=b"late"))).wakes
    (held,) = await core.claim(expired)
    assert (held.state, held.known, held.callbacks[0].kind) == (State.EXPIRED, (), "notification")
    held = await core.advance(
        held,
        Trigger.PAYMENT_FOUND,
        late=True,
        payments=(payment("t-late"),),
        read=(held.callbacks[0].id,),
        events=(COMPLETED,),
        due_in=KEEP,
    )
    assert await problems(core) == []
    assert await core.all("SELECT sequence FROM audit_entries") == [7]
    await audit.seal(core.db, core.encryptor)
    await core.release(held, None)
    assert [(progress.number, progress.entries) for progress in await told(core, tmp_path)] == [(3, 1)]
    first, second = pages(tmp_path)[expired]
    assert (second["after"], second["head"]["state"]) == (first["head"], "completed")
    assert await problems(core) == []
    assert await counts(core, ("audit_entries", "callbacks")) == dict.fromkeys(
        ("audit_entries", "callbacks"), 0
    )
    for path in tmp_path.glob("*.gz"):
        assert audit.open_archive(path, core.encryptor).problems == []
    assert checkout in pages(tmp_path)


async def test_an_archived_checkout_can_be_reopened(core, archived):
    (_, expired) = archived
    await core.wake(expired)
    (held,) = await core.claim(expired)
    held = await core.advance(held, Trigger.REOPENED, expires_in=60.0)
    held = await core.advance(held, Trigger.AUTHENTICATED, token=b"t", token_lifetime=60.0)
    assert await problems(core) == []


# ── What cannot be done, and what is found when it is ─────────────────────────────────────────────────────


async def test_an_entry_leaves_only_below_an_archived_head(core, two, tmp_path):
    async with await psycopg.AsyncConnection.connect(core.url, autocommit=True) as owner:
        for table in ("audit_entries", "audit_entries_before"):
            with pytest.raises(errors.RestrictViolation, match="audit_entries is append-only: DELETE"):
                await owner.execute(f"DELETE FROM {table}")
            with pytest.raises(errors.RestrictViolation, match=f"{table} is append-only: TRUNCATE"):
                await owner.execute(f"TRUNCATE {table}")
            with pytest.raises(errors.RestrictViolation, match="is append-only: UPDATE"):
                await owner.execute(f"UPDATE {table} SET action = 'x'")
        with pytest.raises(errors.ForeignKeyViolation):
            await owner.execute("INSERT INTO archived_heads VALUES (%s, 3, 1, 'x', '')", [two[0]])
        # An archive of another maker that is listed gets that far, and is found.
        await owner.execute(
            "INSERT INTO archives VALUES (1, clock(), 'x', '{}', %s, '')", [core.encryptor.newest.id]
        )
        await owner.execute("INSERT INTO archived_heads VALUES (%s, 3, 1, 'session_created', '')", [two[0]])
        with pytest.raises(errors.RestrictViolation):
            await owner.execute("DELETE FROM audit_entries WHERE checkout_id = %s", [two[0]])
        await owner.execute("DELETE FROM audit_entries WHERE checkout_id = %s AND sequence <= 3", [two[0]])
    assert await problems(core) == [
        f"entry 4 of checkout {two[0]} was changed: its text and its mac do not agree",
        "archive 1 was changed",
    ]


@pytest.mark.parametrize("table", ["archives", "archived_heads"])
@pytest.mark.parametrize("change", ["UPDATE {} SET archive = 1", "DELETE FROM {}", "TRUNCATE {} CASCADE"])
async def test_what_is_noted_of_archives_is_append_only(core, archived, table, change):
    change = change.format(table).replace("archives SET archive", "archives SET sequence")
    async with await psycopg.AsyncConnection.connect(core.url, autocommit=True) as owner:
        with pytest.raises(errors.RestrictViolation, match="is append-only"):
            await owner.execute(change)
    assert await problems(core) == []


async def test_a_checkout_that_is_gone_with_all_that_is_noted_of_it_is_named(core, archived):
    checkout = archived[0]
    await core.tamper("DELETE FROM checkouts WHERE id = :id", id=checkout)
    assert await problems(core) == [f"checkout {checkout} is missing, though archive 1 has it"]
    await core.tamper("DELETE FROM archived_heads WHERE checkout_id = :id", id=checkout)
    assert await problems(core) == [
        "archive 1 does not have the heads that are noted for it",
        f"checkout {checkout} had 7 entries when seal 1 was made, and no longer has",
    ]


async def test_an_archive_that_is_gone_is_named_by_its_checkouts_and_its_seal(core, archived):
    await core.tamper(
        "DELETE FROM archived_heads WHERE archive = 2", "DELETE FROM archives WHERE sequence = 2"
    )
    found = await problems(core)
    assert found == [
        f"checkout {archived[1]} has 0 entries and should have 6: its tail was cut",
        f"checkout {archived[1]} had 6 entries when seal 1 was made, and no longer has",
        "archive 2 stood when seal 3 was made, and no longer does",
    ]
    await core.tamper("DELETE FROM archives WHERE sequence = 1")
    assert await problems(core) == [
        found[0],
        f"checkout {archived[0]} is noted as archived in archive 1, which does not exist",
        found[1],
        "archive 1 stood when seal 2 was made, and no longer does",
        found[2],
    ]


NOTES = {
    "another head": (
        "UPDATE archived_heads SET mac = sha256('x') WHERE archive = 1",
        "does not have the heads",
    ),
    "another state": (
        "UPDATE archived_heads SET state = 'failed' WHERE archive = 1",
        "does not have the heads",
    ),
    "one head more": (
        "INSERT INTO archived_heads SELECT gen_random_uuid(), 1, 1, 'failed', '' FROM generate_series(1, 1)",
        "does not have the heads",
    ),
    "other counts": (
        "UPDATE archives SET manifest = replace(manifest, 'entries', 'pages') WHERE sequence = 1",
        "was changed",
    ),
    "the manifest of another": (
        "UPDATE archives a SET (manifest, mac) = (SELECT manifest, mac FROM archives WHERE sequence = 2) WHERE sequence = 1",
        "was changed",
    ),
    "an unknown key": (
        "UPDATE archives SET key_id = 'ffffffff' WHERE sequence = 1",
        "was made under key ffffffff, which SECRET_KEYS does not have",
    ),
}


@pytest.mark.parametrize(("change", "words"), tuple(NOTES.values()), ids=tuple(NOTES))
async def test_what_is_noted_wrongly_is_named(core, archived, change, words):
    await core.tamper(change)
    assert any(problem.startswith("archive 1 ") and words in problem for problem in await problems(core))


async def test_an_archive_that_is_missing_between_others_is_named(core, archived):
    await core.tamper("UPDATE archives SET sequence = 3 WHERE sequence = 2")
    assert "archive 2 is missing" in await problems(core)


async def test_a_manifest_under_our_key_with_another_number_is_named(core, archived):
    """With the keys and write access to the database an archive is moved to another place in the chain."""
    (manifest,) = await core.all("SELECT manifest FROM archives WHERE sequence = 1")
    forged = manifest.replace('"archive":1', '"archive":9')
    key = core.encryptor.newest
    mac = audit.chain_mac(key, audit.START, forged, audit.archives.PURPOSE)
    await core.tamper(
        "UPDATE archives SET manifest = :text, mac = :mac WHERE sequence = 1", text=forged, mac=mac
    )
    assert "archive 1 has the manifest of archive 9" in await problems(core)


async def test_an_entry_that_stands_here_though_it_is_archived_is_named(core, archived, tmp_path):
    page = pages(tmp_path)[archived[0]][0]
    entry = page["entries"][-1]
    await core.do(
        "INSERT INTO audit_entries VALUES (:id, 7, clock(), 'money:succeeded', :entry, :key, :mac)",
        id=archived[0],
        entry=entry["entry"],
        key=entry["keyId"],
        mac=bytes.fromhex(entry["mac"]),
    )
    assert await problems(core) == [f"entry 7 of checkout {archived[0]} stands here, though it was archived"]


async def test_a_state_changed_past_the_archived_trail_is_named(core, archived):
    await core.do("UPDATE checkouts SET state = 'completed' WHERE id = :id", id=archived[1])
    assert await problems(core) == [f"checkout {archived[1]} is completed, but its trail ends in expired"]


async def test_a_trail_that_does_not_hold_is_not_buried_in_an_archive(core, tmp_path):
    ids = [await settled(core) for _ in range(3)]
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id AND sequence = 4", id=ids[1])
    result = await run(core, tmp_path)
    assert (result.checkouts, result.problems) == (2, [f"entry 4 of checkout {ids[1]} is missing"])
    assert set(pages(tmp_path)) == {ids[0], ids[2]}
    assert await counts(core, ("audit_entries", "events")) == {"audit_entries": 6, "events": 6}
    assert await problems(core) == [f"entry 4 of checkout {ids[1]} is missing"]


async def test_keys_of_another_installation_archive_nothing(core, two, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.audit.archive.runs.MOST_PROBLEMS", 2)
    before = await counts(core)
    without = Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys)
    with pytest.raises(
        archive.ArchiveError,
        match=r"the trails of 2 checkouts and more do not hold .* SECRET_KEYS does not have",
    ):
        await archive.run(core.db, without, tmp_path, older_than=0.0, most=100)
    assert await counts(core) == before
    assert list(tmp_path.iterdir()) == []


# ── A file by itself ──────────────────────────────────────────────────────────────────────────────────────


async def test_a_file_proves_itself_with_the_keys_alone(core, archived, tmp_path):
    first, second = (audit.open_archive(path, core.encryptor) for path in sorted(tmp_path.glob("*.gz")))
    assert (first.problems, second.problems) == ([], [])
    assert (first.manifest.archive, first.manifest.checkouts, first.manifest.entries) == (1, 1, 7)
    assert first.manifest.before == audit.START.hex()
    assert second.manifest.before == first.mac.hex()
    assert (first.manifest.rows["callbacks"], first.manifest.rows["commands"]) == (1, 2)
    rotated = Encryptor(make_settings(secret_keys=(OLDER_KEY, SECRET_KEY)).secret_keys)
    assert audit.open_archive(tmp_path / "archive-000001.jsonl.gz", rotated).problems == []
    without = Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys)
    assert f"its manifest was made under key {core.encryptor.newest.id}, which SECRET_KEYS does not have" in (
        audit.open_archive(tmp_path / "archive-000001.jsonl.gz", without).problems
    )


@pytest.fixture(name="both")
async def _both(core, two, tmp_path):
    """One archive with both checkouts; return its file."""
    await run(core, tmp_path)
    return tmp_path / "archive-000001.jsonl.gz"


def swapped(old, new):
    return lambda lines: [line.replace(old, new, 1) for line in lines]


TAMPERED = {
    "a page left out": (lambda lines: lines[1:], "it has 1 checkouts and should have 2"),
    "a page twice": (lambda lines: [lines[0], *lines], "it has 3 checkouts and should have 2"),
    "pages in another order": (lambda lines: [lines[1], lines[0], lines[2]], "its pages are not those"),
    "no manifest": (lambda lines: lines[:-1], "it has no manifest: its end was cut off"),
    "nothing at all": (lambda _: [], "it has no manifest: its end was cut off"),
    "something behind the manifest": (lambda lines: [*lines, lines[0]], "line 4 stands behind the manifest"),
    "something that is no page": (lambda lines: ["{}\n", *lines], "line 1 is not in the words of an archive"),
    "a row that is not the trail's": (swapped('"order_ref":"', '"order_ref":"X'), "its pages are not those"),
    "an entry with another text": (swapped("test:factory", "test:another"), "was changed: its text and its mac"),
    "an entry less": (
        lambda lines: [_without_last_entry(lines[0]), *lines[1:]],
        "has 6 entries and should have 7: its tail was cut",
    ),
    "another end": (swapped('"state":"completed"},"entries"', '"state":"failed"},"entries"'), "but its trail ends in completed"),
    "a mac that is none": (swapped('"mac":"', '"mac":"zz'), "line 1 is not in the words of an archive"),
    "a manifest with other counts": (swapped('\\"entries\\":13', '\\"entries\\":12'), "its manifest was changed"),
    "a manifest that says nothing": (
        lambda lines: [*lines[:-1], '{"line":"manifest","manifest":"{}","keyId":"x","mac":""}\n'],
        "line 3 is not in the words of an archive",
    ),
}  # fmt: skip


def _without_last_entry(line):
    page = json.loads(line)
    page["entries"].pop()
    return json.dumps(page) + "\n"


@pytest.mark.parametrize(("change", "words"), tuple(TAMPERED.values()), ids=tuple(TAMPERED))
async def test_a_file_that_was_tampered_with_is_found_by_itself(core, both, change, words):
    path = both
    rewritten(path, change)
    found = audit.open_archive(path, core.encryptor).problems
    assert any(words in problem for problem in found), found


async def test_a_file_that_is_cut_or_is_no_archive_is_found(core, two, tmp_path):
    await run(core, tmp_path)
    (path,) = tmp_path.glob("*.gz")
    whole = path.read_bytes()
    for content in (
        whole[:-20],
        whole[: len(whole) // 2],
        b"no archive",
        whole[:400] + b"\0" * 200 + whole[600:],
    ):
        path.write_bytes(content)
        opened = audit.open_archive(path, core.encryptor)
        assert opened.manifest is None or "damaged" in opened.problems[-1]
        assert any(
            "it is damaged or cut off" in problem or "words of an archive" in problem
            for problem in opened.problems
        )
    with pytest.raises(OSError, match="No such file"):
        audit.open_archive(tmp_path / "nowhere", core.encryptor)


def written(path, piece, times):
    with gzip.open(path, "wb") as file:
        for _ in range(times):
            file.write(piece)


@pytest.fixture
def core_encryptor():
    return Encryptor(make_settings().secret_keys)


@pytest.mark.parametrize("piece", [b"\0", b" ", b"[", b'{"line":"page","x":[', b"\n", b'"'])
def test_a_file_that_inflates_without_end_is_a_finding_and_costs_no_memory(core_encryptor, tmp_path, piece):
    path = tmp_path / "archive-000001.jsonl.gz"
    written(path, piece * (1024 * 1024 // len(piece)), 100)
    assert path.stat().st_size < 2_000_000
    tracemalloc.start()
    try:
        found = audit.open_archive(path, core_encryptor).problems
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == 1
    assert found[0].startswith(("it inflates to more than", "it has a line of more than", "line 1 is not in"))
    assert most < 130_000_000


def test_a_line_longer_than_any_page_is_a_finding(core_encryptor, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.audit.archives.LINE_LIMIT", 1000)
    path = tmp_path / "archive-000001.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * 5000))
    assert audit.open_archive(path, core_encryptor).problems == [
        "it has a line of more than 1000 bytes, which no archive has"
    ]


@pytest.mark.parametrize("depth", [2_000, 200_000])
@pytest.mark.parametrize("where", ["page", "entry", "manifest"])
def test_deep_nesting_is_a_finding(core_encryptor, tmp_path, depth, where):
    deep = "[" * depth + "]" * depth
    line = {
        "page": f'{{"line":"page","x":{deep}}}',
        "entry": json.dumps(
            {
                "line": "page",
                "id": str(UUID(int=1)),
                "after": {"sequence": 0, "mac": "", "state": None},
                "head": {"sequence": 1, "mac": "", "state": None},
                "entries": [{"entry": deep, "keyId": "x", "mac": ""}],
            }
        ),
        "manifest": json.dumps({"line": "manifest", "manifest": deep, "keyId": "x", "mac": ""}),
    }[where]
    path = tmp_path / "archive-000001.jsonl.gz"
    path.write_bytes(gzip.compress(line.encode()))
    found = audit.open_archive(path, core_encryptor).problems
    assert found == ["line 1 is not in the words of an archive"]


# ── Killed, full, busy ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("landed", [True, False])
async def test_a_run_cut_off_at_its_commit_loses_nothing_and_leaves_nothing_twice(
    core, two, tmp_path, *, landed
):
    before = await counts(core)
    async with another(core.url, core.encryptor, database=Breaking) as breaking:
        breaking.db.lost_answers, breaking.db.cut_before_commit = int(landed), int(not landed)
        choice = await archive.choose(breaking.db, older_than=0.0)
        with pytest.raises(OperationalError):
            await archive.take(breaking.db, core.encryptor, tmp_path, choice, most=100)
    (path,) = tmp_path.iterdir()
    assert await problems(core) == []
    if not landed:
        assert await counts(core) == before
    result = await run(core, tmp_path)
    assert await counts(core) == dict.fromkeys(HISTORY, 0) | {"commands": 2}
    assert await problems(core) == []
    if landed:
        assert (result.archives, result.orphans) == (0, [])
    else:
        # What the killed run had written is reported, and is not overwritten.
        assert (result.archives, result.orphans) == (1, [path])
        assert await core.all("SELECT file FROM archives") == ["archive-000001-2.jsonl.gz"]
        assert audit.open_archive(tmp_path / "archive-000001-2.jsonl.gz", core.encryptor).problems == []


async def test_a_half_written_draft_of_a_killed_run_is_replaced(core, two, tmp_path):
    (tmp_path / ".archive-000001.part").write_bytes(b"half")
    assert (await run(core, tmp_path)).checkouts == 2
    assert [path.name for path in tmp_path.iterdir()] == ["archive-000001.jsonl.gz"]


async def test_nothing_is_removed_for_a_file_that_cannot_be_written_or_named(
    core, two, tmp_path, monkeypatch
):
    before = await counts(core)
    with pytest.raises(archive.ArchiveError, match="cannot be written"):
        await run(core, tmp_path / "nowhere")
    for number in range(1, 1000):
        more = "" if number == 1 else f"-{number}"
        (tmp_path / f"archive-000001{more}.jsonl.gz").touch()
    with pytest.raises(archive.ArchiveError, match="too many files"):
        await run(core, tmp_path)

    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", refused)
    with pytest.raises(archive.ArchiveError, match="cannot be made"):
        await run(core, tmp_path)
    with pytest.raises(archive.ArchiveError, match="cannot be made"):
        archive.prepare(tmp_path / "archive-000001.jsonl.gz" / "below")
    assert await counts(core) == before
    assert await problems(core) == []


async def test_nothing_is_removed_for_a_file_that_does_not_read_back(core, two, tmp_path, monkeypatch):
    before = await counts(core)
    for opened, words in (
        (audit.Opened(mac=b"x", problems=["it is damaged or cut off (x)"]), "damaged"),
        (audit.Opened(mac=b"x"), "another file"),
    ):
        monkeypatch.setattr(audit, "open_archive", lambda *_, opened=opened: opened)
        with pytest.raises(archive.ArchiveUnread, match=words):
            await run(core, tmp_path)
    monkeypatch.undo()
    assert await counts(core) == before
    assert await problems(core) == []


async def test_a_checkout_with_a_locked_row_is_left_for_a_later_run(core, two, tmp_path):
    async with row_held(core.url, two[0]):
        assert (await run(core, tmp_path)).checkouts == 1
    assert (await run(core, tmp_path)).checkouts == 1
    assert await problems(core) == []


async def test_one_run_at_a_time(core, two, tmp_path):
    async with await psycopg.AsyncConnection.connect(core.url) as other:
        await other.execute("SELECT pg_advisory_lock(hashtext('orchestrator.archives'))")
        with pytest.raises(archive.ArchiveBusy, match="another archive run is under way"):
            await run(core, tmp_path)
    assert (await run(core, tmp_path)).checkouts == 2


async def test_a_lock_that_is_not_to_be_had_is_given_up_and_tried_again(core, two, tmp_path):
    """The sealer holds its lock: the batch waits for a moment, rolls back, and is tried again."""
    async with await psycopg.AsyncConnection.connect(core.url) as sealer:
        await sealer.execute("SELECT pg_advisory_xact_lock(hashtext('orchestrator.audit_seals'))")
        choice = await archive.choose(core.db, older_than=0.0)
        with pytest.raises(archive.ArchiveBusy, match="in 2 tries"):
            await patiently(
                lambda: archive.take(core.db, core.encryptor, tmp_path, choice, most=100),
                tries=2,
                pause=0.001,
            )
        assert not list(tmp_path.glob("*.gz"))
        running = asyncio.create_task(run(core, tmp_path))
        await asyncio.sleep(0.5)
        assert not running.done()
        await sealer.rollback()
    assert (await running).checkouts == 2
    assert await problems(core) == []


async def test_an_error_that_is_no_lock_is_not_tried_again(core):
    tries = []

    async def attempt():
        tries.append(1)
        await core.do("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(OperationalError):
        await patiently(attempt)
    assert tries == [1]


# ── Months ────────────────────────────────────────────────────────────────────────────────────────────────


async def later_than_all(core):
    """Set the clock behind every month that there is; return the months before."""
    known = await archive.months_of(core.db)
    last = max(month.until for month in known if month.until is not None)
    seconds = (last.int >> 80) // 1000 - int((await core.all("SELECT extract(epoch FROM clock())"))[0])
    await core.do("UPDATE clock_skew SET seconds = :seconds", seconds=seconds + 3600)
    return known


async def test_an_insert_never_fails_for_want_of_a_month(core):
    await later_than_all(core)
    (now,) = await core.all("SELECT clock()")
    id_ = UUID(int=first_id(now).int | 0x7 << 76 | 0x2 << 62)
    checkout = await core.accept(id=id_)
    assert await core.all("SELECT checkout_id FROM audit_entries_rest") == [checkout]
    assert await problems(core) == []


@pytest.fixture(name="own")
async def _own(database_url, encryptor):
    """A database of its own, whose months may come and go."""
    async with another(database_url, encryptor) as new_core:
        yield new_core


async def test_months_are_made_ahead_and_only_where_they_are_missing(own):
    before = await later_than_all(own)
    assert await archive.make_ahead(own.db, ahead=2) != []
    made = [month.name for month in await archive.months_of(own.db)][len(before) - 1 : -1]
    assert len(made) == 3
    assert await archive.make_ahead(own.db, ahead=2) == []
    assert (await archive.months_of(own.db))[-1].name == "audit_entries_rest"
    (now,) = await own.all("SELECT clock()")
    checkout = await own.accept(id=UUID(int=first_id(now).int | 0x7 << 76 | 0x2 << 62))
    assert await own.all(f"SELECT checkout_id FROM {made[0]}") == [checkout]
    for change in ("DELETE FROM {}", "TRUNCATE {}", "UPDATE {} SET action = 'x'"):
        async with await psycopg.AsyncConnection.connect(own.url, autocommit=True) as owner:
            with pytest.raises(errors.RestrictViolation, match="is append-only"):
                await owner.execute(change.format(made[0]))


async def test_a_month_whose_entries_are_in_the_rest_already_is_left_out(own):
    await later_than_all(own)
    (now,) = await own.all("SELECT clock()")
    await own.accept(id=UUID(int=first_id(now).int | 0x7 << 76 | 0x2 << 62))
    made = await archive.make_ahead(own.db, ahead=1)
    assert len(made) == 1
    assert f"{now + timedelta(days=31):%Y_%m}" in made[0] or f"{now:%Y_%m}" not in made[0]
    assert await problems(own) == []


async def test_months_that_are_empty_and_past_are_dropped_and_no_others(own, tmp_path):
    months = [month for month in await archive.months_of(own.db) if month.until is not None][1:]
    ids = []
    for month in months[:3]:
        at = UUID(int=month.until.int - (1 << 80) | 0x7 << 76 | 0x2 << 62)
        (held,) = await own.claim(await own.accept(id=at))
        held = await own.advance(held, Trigger.REFUSED)
        await own.release(held, None if month is not months[1] else 1e9)
        ids.append(held.id)
    await own.do("UPDATE clock_skew SET seconds = 1000 * 86400")
    result = await run(own, tmp_path, older_than=0.0)
    assert result.checkouts == 2
    left = [month.name for month in await archive.months_of(own.db)]
    assert months[1].name in left
    assert months[0].name in result.dropped
    assert months[2].name in result.dropped
    assert not {months[0].name, months[2].name} & set(left)
    assert {"audit_entries_before", "audit_entries_rest"} <= set(left)
    assert await problems(own) == []
    # A worker that wakes up with a checkout of a dropped month writes into the rest.
    await own.wake(ids[0])
    (held,) = await own.claim(ids[0])
    await own.advance(held, action=Action.GATEWAY_ASKED)
    assert await own.all("SELECT checkout_id FROM audit_entries_rest") == [ids[0]]
    assert await problems(own) == []


async def test_a_month_that_was_written_to_meanwhile_is_not_dropped(own):
    month = [month for month in await archive.months_of(own.db) if month.until is not None][1]
    await own.accept(id=UUID(int=month.until.int - (1 << 80) | 0x7 << 76 | 0x2 << 62))
    assert not await _drop(own.db, month.name)
    assert await problems(own) == []


def test_an_id_has_its_time_also_a_time_that_no_calendar_has():
    now = datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=UTC)
    assert archive.moment_of(first_id(now)) == now
    assert archive.moment_of(UUID(int=2**128 - 1)).year == 9999
