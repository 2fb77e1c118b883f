"""The trail in the database: a break is named, and a whole trail is left as it is."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from orchestrator import audit
from orchestrator.audit import Action, chain_mac
from orchestrator.crypto import Encryptor
from orchestrator.domain.states import State, Trigger
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.factories import core as another

pytestmark = pytest.mark.anyio


async def problems(core, encryptor=None):
    return (await audit.verify(core.db, encryptor or core.encryptor)).problems


@pytest.fixture(name="trail")
async def _trail(core):
    """Three checkouts with entries; return the id of the second."""
    ids = [await core.checkout(State.AWAITING_PAYMENT) for _ in range(3)]
    assert await problems(core) == []
    return ids[1]


async def test_a_whole_trail_verifies_and_is_counted(core, trail):
    assert await audit.seal(core.db, core.encryptor) == 3
    seen = []
    found = await audit.verify(core.db, core.encryptor, progress=lambda so_far: seen.append(so_far.checkouts))
    assert (found.checkouts, found.entries, found.seals, found.problems) == (3, 15, 1, [])
    assert seen == [3]


async def test_an_empty_trail_verifies_and_needs_no_seal(core):
    assert await audit.seal(core.db, core.encryptor) == 0
    assert await audit.verify(core.db, core.encryptor) == audit.Findings()


# ── What ordinary means cannot do ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("table", ["audit_entries", "audit_seals"])
@pytest.mark.parametrize(
    "change", ["UPDATE {} SET key_id = 'x'", "DELETE FROM {}", "TRUNCATE {}", "TRUNCATE {} CASCADE"]
)
async def test_the_trail_is_append_only_also_for_its_owner(core, trail, table, change):
    await audit.seal(core.db, core.encryptor)
    async with await psycopg.AsyncConnection.connect(core.url, autocommit=True) as owner:
        with pytest.raises(errors.RestrictViolation, match=f"{table} is append-only"):
            await owner.execute(change.format(table))
    assert await problems(core) == []


# ── What a superuser can do, and who notices ──────────────────────────────────────────────────────────────


async def test_one_changed_byte_of_one_entry_is_named(core, trail):
    for sequence in range(1, 6):
        (entry,) = await core.all(
            "SELECT entry FROM audit_entries WHERE checkout_id = :id AND sequence = :n", id=trail, n=sequence
        )
        changed = entry.replace('"actor":"', '"actor":"X', 1) if sequence % 2 else entry.replace("c-1", "c-2")
        change = "UPDATE audit_entries SET entry = :entry WHERE checkout_id = :id AND sequence = :n"
        await core.tamper(change, entry=changed, id=trail, n=sequence)
        assert await problems(core) == [
            f"entry {sequence} of checkout {trail} was changed: its text and its mac do not agree"
        ]
        await core.tamper(change, entry=entry, id=trail, n=sequence)
    assert await problems(core) == []


@pytest.mark.parametrize(
    "change", ["action = 'checkout:received'", "at = at + interval '1 microsecond'", "checkout_id = :other"]
)
async def test_a_column_that_disagrees_with_its_entry_is_named(core, trail, change):
    other = UUID(int=trail.int + 1)
    await core.tamper(
        f"UPDATE audit_entries SET {change} WHERE checkout_id = :id AND (sequence = 3 OR :other = checkout_id)",
        id=trail,
        other=other,
    )
    found = await problems(core)
    expected = (
        [f"entry 3 of checkout {trail} is missing", f"checkout {other} is missing, though its entries exist"]
        if "checkout_id" in change
        else [f"entry 3 of checkout {trail} disagrees with its own columns"]
    )
    assert found == expected


async def test_a_deleted_last_entry_names_its_checkout(core, trail):
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id AND sequence = 5", id=trail)
    assert await problems(core) == [f"checkout {trail} has 4 entries and should have 5: its tail was cut"]


async def test_a_deleted_first_or_middle_entry_is_named(core, trail):
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id AND sequence = 3", id=trail)
    assert await problems(core) == [f"entry 3 of checkout {trail} is missing"]
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id AND sequence = 1", id=trail)
    assert await problems(core) == [f"entry 1 of checkout {trail} is missing"]


async def test_all_entries_of_a_checkout_deleted_names_it(core, trail):
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id", id=trail)
    assert await problems(core) == [f"checkout {trail} has 0 entries and should have 5: its tail was cut"]


async def test_a_tail_cut_together_with_its_head_is_named_by_the_seal(core, trail):
    await audit.seal(core.db, core.encryptor)
    await core.tamper(
        "DELETE FROM audit_entries WHERE checkout_id = :id AND sequence = 5",
        """UPDATE checkouts SET audit_sequence = 4, state = 'methods_fetched', audit_head =
           (SELECT mac FROM audit_entries WHERE checkout_id = :id AND sequence = 4) WHERE id = :id""",
        id=trail,
    )
    assert await problems(core) == [f"checkout {trail} had 5 entries when seal 1 was made, and no longer has"]


async def test_a_missing_checkout_is_named_by_its_entries_and_with_them_by_the_seal(core, trail):
    await audit.seal(core.db, core.encryptor)
    await core.tamper("DELETE FROM checkouts WHERE id = :id", id=trail)
    assert await problems(core) == [f"checkout {trail} is missing, though its entries exist"]
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id", id=trail)
    assert await problems(core) == [f"checkout {trail} had 5 entries when seal 1 was made, and no longer has"]


@pytest.mark.parametrize("column", ["audit_head = '\\x00'::bytea", "audit_head = sha256('x')"])
async def test_a_head_that_is_not_that_of_the_chain_is_named(core, trail, column):
    await core.do(f"UPDATE checkouts SET {column} WHERE id = :id", id=trail)
    assert await problems(core) == [f"checkout {trail} does not carry the head of its chain"]


async def test_a_state_changed_past_the_trail_is_named(core, trail):
    await core.do("UPDATE checkouts SET state = 'completed' WHERE id = :id", id=trail)
    assert await problems(core) == [f"checkout {trail} is completed, but its trail ends in awaiting_payment"]


# ── Entries made with the right key, which say what cannot be ─────────────────────────────────────────────


async def forge(core, checkout, **changes):
    """Append an entry as with the key and write access to the database, its head included."""
    row = await core.row(checkout)
    (at,) = await core.all("SELECT clock()")
    values = {
        "checkout": checkout,
        "sequence": row.audit_sequence + 1,
        "before": bytes(row.audit_head),
        "at": at,
        "action": Action.CHECKOUT_MOVED,
        "actor": "x",
        "correlation_id": "c",
        "state": State.AWAITING_PAYMENT,
        "to": State.AWAITING_PAYMENT,
    }
    rewrite = changes.pop("rewrite", None)
    entry = audit.make(core.encryptor, **{**values, **changes})
    if rewrite:
        text = rewrite(entry.text)
        entry = replace(entry, text=text, mac=chain_mac(core.encryptor.newest, bytes(row.audit_head), text))
    await core.do(
        "INSERT INTO audit_entries VALUES (:id, :n, CAST(:at AS timestamptz), :action, :entry, :key, :mac)",
        id=checkout,
        n=entry.sequence,
        at=at,
        action=entry.action,
        entry=entry.text,
        key=entry.key_id,
        mac=entry.mac,
    )
    await core.do(
        "UPDATE checkouts SET audit_sequence = :n, audit_head = :mac WHERE id = :id",
        n=entry.sequence,
        mac=entry.mac,
        id=checkout,
    )


FORGED = {
    "a move that the table does not have": (
        {"to": State.FAILED, "trigger": Trigger.REFUSED},
        "moves from awaiting_payment to failed by refused, which the table does not have",
    ),
    "a move to another place than the table says": (
        {"to": State.FAILED, "trigger": Trigger.DEADLINE_PASSED},
        "moves from awaiting_payment to failed by deadline_passed, which the table does not have",
    ),
    "a move without a fact": (
        {"to": State.COMPLETED},
        "moves from awaiting_payment to completed by None, which the table does not have",
    ),
    "a start from elsewhere": (
        {"state": State.CALLBACK_RECEIVED},
        "starts from callback_received, but the one before ended in awaiting_payment",
    ),
    "a second creation": (
        {"state": None, "to": State.RECEIVED},
        "starts from None, but the one before ended in awaiting_payment",
    ),
    "another checkout": ({"checkout_text": True}, "disagrees with its own columns"),
    "a state that does not exist": (
        {"rewrite": lambda text: text.replace('"to":"awaiting_payment"', '"to":"paid_twice"')},
        "is not in the words of the trail",
    ),
    "a fact that does not exist": (
        {"rewrite": lambda text: text.replace('"trigger":null', '"trigger":"magic"')},
        "is not in the words of the trail",
    ),
    "no JSON at all": ({"rewrite": lambda _: "paid, honestly"}, "is not in the words of the trail"),
    "nothing of what it should say": ({"rewrite": lambda _: "{}"}, "is not in the words of the trail"),
}


@pytest.mark.parametrize(("changes", "sentence"), tuple(FORGED.values()), ids=tuple(FORGED))
async def test_what_cannot_have_happened_is_named_even_when_chained_with_the_right_key(
    core, trail, changes, sentence
):
    if changes == {"checkout_text": True}:
        changes = {"rewrite": lambda text: text.replace(str(trail), str(UUID(int=trail.int + 1)))}
    await forge(core, trail, **changes)
    assert await problems(core) == [f"entry 6 of checkout {trail} {sentence}"]


async def test_a_checkout_that_was_created_paid_is_named(core, trail):
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id", id=trail)
    await core.do(
        "UPDATE checkouts SET audit_sequence = 0, audit_head = :start, state = 'completed' WHERE id = :id",
        start=audit.START,
        id=trail,
    )
    await forge(core, trail, state=None, to=State.COMPLETED)
    assert await problems(core) == [
        f"entry 1 of checkout {trail} begins in completed, and every checkout begins as received"
    ]


async def test_an_entry_that_moves_nothing_is_no_problem(core, trail):
    await forge(core, trail, action=Action.GATEWAY_ASKED)
    assert await problems(core) == []


# ── Seals ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_seals_chain_and_a_changed_or_missing_seal_is_named(core, trail):
    for _ in range(3):
        assert await audit.seal(core.db, core.encryptor) == 3
    assert (await audit.verify(core.db, core.encryptor)).seals == 3
    (heads,) = await core.all("SELECT heads FROM audit_seals WHERE sequence = 2")
    await core.tamper("UPDATE audit_seals SET heads = replace(heads, ' 5 ', ' 4 ') WHERE sequence = 2")
    assert await problems(core) == ["seal 2 was changed"]
    await core.tamper(
        "UPDATE audit_seals SET heads = :heads, at = at + interval '1 s' WHERE sequence = 2", heads=heads
    )
    assert await problems(core) == ["seal 2 was changed"]
    await core.tamper("DELETE FROM audit_seals WHERE sequence = 2")
    assert await problems(core) == ["seal 2 is missing"]


async def test_sealers_at_once_make_one_chain(core, trail):
    async with another(core.url, core.encryptor) as other:
        await asyncio.gather(
            *(audit.seal(process.db, process.encryptor) for process in (core, other) for _ in range(4))
        )
    found = await audit.verify(core.db, core.encryptor)
    assert (found.seals, found.problems) == (8, [])


async def test_a_seal_holds_the_chains_that_grew_since_the_last_seal_and_no_others(core, trail):
    await audit.seal(core.db, core.encryptor)
    await core.do("UPDATE clock_skew SET seconds = 86400")
    assert await audit.seal(core.db, core.encryptor) == 3  # entries may be committed later than their time
    await core.do("UPDATE clock_skew SET seconds = 2 * 86400")
    assert await audit.seal(core.db, core.encryptor) == 0
    await core.checkout()
    assert await audit.seal(core.db, core.encryptor) == 1
    assert await problems(core) == []


# ── Keys ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_chained_under_an_older_key_still_verifies_after_rotation(core, trail):
    await audit.seal(core.db, core.encryptor)
    rotated = Encryptor(make_settings(secret_keys=(OLDER_KEY, SECRET_KEY)).secret_keys)
    async with another(core.url, rotated) as process:
        await process.wake(trail)
        (held,) = await process.claim(trail)
        await process.advance(held, Trigger.PAYMENT_FOUND)
        await audit.seal(process.db, rotated)
        assert await core.all(
            "SELECT DISTINCT key_id FROM audit_entries WHERE checkout_id = :id", id=trail
        ) != [core.encryptor.newest.id]
        assert await problems(process, rotated) == []


async def test_a_missing_key_is_named_and_never_taken_for_proof(core, trail):
    await audit.seal(core.db, core.encryptor)
    without = Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys)
    found = await problems(core, without)
    key = core.encryptor.newest.id
    assert f"entry 1 of checkout {trail} was made under key {key}, which SECRET_KEYS does not have" in found
    assert f"seal 1 was made under key {key}, which SECRET_KEYS does not have" in found
    assert len(found) == 4


# ── Life goes on ──────────────────────────────────────────────────────────────────────────────────────────


async def test_verifying_while_movers_are_running_reports_no_false_problem(core):
    running = True
    moved = 0

    async def mover():
        nonlocal moved
        while running:
            await core.checkout(State.CALLBACK_RECEIVED)
            moved += 1

    tasks = [asyncio.create_task(mover()) for _ in range(6)]
    async with another(core.url, core.encryptor) as auditor:
        for _ in range(15):
            assert await problems(auditor) == []
            await audit.seal(auditor.db, auditor.encryptor)
    running = False
    await asyncio.gather(*tasks)
    assert moved > 10
    assert await problems(core) == []


async def test_more_checkouts_than_one_page_are_all_verified(core):
    ids = await core.checkouts(620)
    await audit.seal(core.db, core.encryptor)
    found = await audit.verify(core.db, core.encryptor)
    assert (found.checkouts, found.entries, found.problems) == (620, 620, [])
    await core.tamper("DELETE FROM audit_entries WHERE checkout_id = :id", id=ids[-1])
    assert await problems(core) == [
        f"checkout {ids[-1]} has 0 entries and should have 1: its tail was cut",
        f"checkout {ids[-1]} had 1 entries when seal 1 was made, and no longer has",
    ]


async def test_an_export_proves_the_trail_without_the_database(core, trail):
    await audit.seal(core.db, core.encryptor)
    lines = [json.loads(line) async for line in audit.export(core.db)]
    entries, seals = [line for line in lines if "entry" in line], [line for line in lines if "seal" in line]
    assert (len(entries), len(seals)) == (15, 1)
    heads, macs = {}, {}
    for line in entries:
        body = json.loads(line["entry"])
        before = macs.get(body["checkout"], audit.START)
        key = core.encryptor.known(line["keyId"])
        assert chain_mac(key, before, line["entry"]).hex() == line["mac"]
        macs[body["checkout"]] = bytes.fromhex(line["mac"])
        heads[body["checkout"]] = f"{body['checkout']} {body['sequence']} {line['mac']}"
    assert seals[0]["heads"].splitlines() == [heads[each] for each in sorted(heads)]


async def test_an_export_longer_than_one_page_leaves_nothing_out(core):
    await core.checkouts(1003)
    lines = [line async for line in audit.export(core.db)]
    assert len(lines) == len(set(lines)) == 1003
