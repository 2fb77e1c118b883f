"""The audit trail: what is written of a checkout, how it is chained, sealed and verified. The only maker of entries.

An entry is canonical JSON text with a number in its checkout's sequence. Its mac is HMAC-SHA256 over the mac before it and the
text, under a key derived from the secret keys; the head of the chain stands on the checkout. So a changed byte breaks its entry, a
missing entry breaks the sequence, and a cut tail disagrees with the head. Seals record the heads of all chains that grew, in a
chain of their own that can be exported, so that even a tail cut together with its head, or a whole missing checkout, shows.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import text

from orchestrator.states import TRANSITIONS, State, Trigger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.db import Database
    from orchestrator.vault import Key, Vault

PURPOSE: Final = "audit"
START: Final = b"\0" * 32
"""The mac before the first entry of every chain."""


class Action(StrEnum):
    """What an entry says, as subject:fact. Exhaustive: the trail has no other words."""

    CHECKOUT_RECEIVED = "checkout:received"
    CHECKOUT_MOVED = "checkout:moved"
    CHECKOUT_REOPENED = "checkout:reopened"
    GATEWAY_ASKED = "gateway:asked"
    GATEWAY_FAILED = "gateway:failed"
    FACT_REFUSED = "fact:refused"
    CALLBACK_READ = "callback:read"
    PAYMENT_SEEN = "payment:seen"
    TOKEN_RENEWED = "token:renewed"  # noqa: S105 - a word of the trail
    CANCEL_REQUESTED = "cancel:requested"
    COMMAND_REFUSED = "command:refused"
    COMMAND_TAKEN = "command:taken"
    MONEY_REQUESTED = "money:requested"
    MONEY_SUBMITTED = "money:submitted"
    MONEY_SUCCEEDED = "money:succeeded"
    MONEY_REJECTED = "money:rejected"
    MONEY_UNKNOWN = "money:unknown"
    MONEY_WITHDRAWN = "money:withdrawn"
    ATTENTION_RAISED = "attention:raised"
    ATTENTION_CLEARED = "attention:cleared"
    WATCH_ENDED = "watch:ended"


SYSTEM: Final = "system:orchestrator"
"""The actor when no person or client asked for it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, ready to be written: its number, text and mac."""

    sequence: int
    at: str
    action: Action
    text: str
    key_id: str
    mac: bytes


def chain_mac(key: Key, before: bytes, entry: str) -> bytes:
    """Return the mac of an entry that follows `before`."""
    return hmac.digest(key.derived(PURPOSE), before + entry.encode(), "sha256")


def make(  # noqa: PLR0913 - the words of an entry
    vault: Vault,
    *,
    checkout: UUID,
    sequence: int,
    before: bytes,
    at: datetime,
    action: Action,
    actor: str,
    correlation_id: str,
    state: State | None,
    to: State,
    trigger: Trigger | None = None,
    evidence: Mapping[str, object] | None = None,
) -> Entry:
    """Make the entry that follows mac `before` as number `sequence`.

    `state` is where the checkout was (None for its first entry), `to` where it is now. `evidence` holds ids, amounts in
    minor units and outcomes, never personal data: the trail outlives the erasure of a customer.
    """
    moment = at.isoformat(timespec="microseconds")
    body = {
        "checkout": str(checkout),
        "sequence": sequence,
        "at": moment,
        "actor": actor,
        "action": action.value,
        "from": state.value if state is not None else None,
        "to": to.value,
        "trigger": trigger.value if trigger is not None else None,
        "evidence": dict(evidence or {}),
        "correlation": correlation_id,
    }
    entry = msgspec.json.encode(body, order="sorted").decode()
    key = vault.newest
    return Entry(sequence, moment, action, entry, key.id, chain_mac(key, before, entry))


@dataclass(slots=True)
class Findings:
    """What a verification found; `problems` is empty when everything holds."""

    checkouts: int = 0
    entries: int = 0
    seals: int = 0
    problems: list[str] = field(default_factory=list)


_HEADS = text("""
    SELECT id, audit_sequence, audit_head, state FROM checkouts WHERE id > :after ORDER BY id LIMIT :most
""")
_ENTRIES = text("""
    SELECT checkout_id, sequence, at, action, entry, key_id, mac FROM audit_entries
     WHERE checkout_id > :after AND checkout_id <= :until ORDER BY checkout_id, sequence
""")
_STRAYS = text("""
    SELECT DISTINCT a.checkout_id FROM audit_entries a
     WHERE NOT EXISTS (SELECT FROM checkouts c WHERE c.id = a.checkout_id) ORDER BY 1 LIMIT 100
""")
_SEALS = text(
    "SELECT sequence, at, heads, key_id, mac FROM audit_seals WHERE sequence > :after ORDER BY sequence LIMIT 50"
)
_NEXT_SEAL = text("""
    SELECT coalesce(max(sequence), 0) + 1 AS sequence,
           coalesce((SELECT mac FROM audit_seals ORDER BY sequence DESC LIMIT 1), decode(repeat('00', 32), 'hex')) AS before,
           coalesce(max(at), 'epoch') AS since, clock() AS now
      FROM audit_seals
""")
# Entries are written with a time that can lag their commit, so a seal looks back further than the seal before it.
_GROWN = text("""
    SELECT DISTINCT ON (checkout_id) checkout_id, sequence, mac FROM audit_entries
     WHERE at > CAST(:since AS timestamptz) - interval '10 minutes'
     ORDER BY checkout_id, sequence DESC
""")
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('orchestrator.audit_seals'))")
_WRITE_SEAL = text("""
    INSERT INTO audit_seals (sequence, at, heads, key_id, mac) VALUES (:sequence, :at, :heads, :key_id, :mac)
""")


def _seal_mac(key: Key, before: bytes, *, sequence: int, at: datetime, heads: str) -> bytes:
    body = f"{sequence}\n{at.isoformat(timespec='microseconds')}\n{heads}"
    return hmac.digest(key.derived("audit-seal"), before + body.encode(), "sha256")


async def seal(db: Database, vault: Vault) -> int:
    """Seal the heads of all chains that grew since the last seal; return how many. One sealer at a time."""
    async with db.transaction() as tx:
        await tx.execute(_LOCK)
        place = (await tx.execute(_NEXT_SEAL)).one()
        grown = (await tx.execute(_GROWN, {"since": place.since})).all()
        if not grown:
            return 0
        heads = "\n".join(f"{row.checkout_id} {row.sequence} {row.mac.hex()}" for row in grown)
        key = vault.newest
        mac = _seal_mac(key, bytes(place.before), sequence=place.sequence, at=place.now, heads=heads)
        await tx.execute(
            _WRITE_SEAL,
            {"sequence": place.sequence, "at": place.now, "heads": heads, "key_id": key.id, "mac": mac},
        )
        return len(grown)


async def verify(
    db: Database, vault: Vault, *, progress: Callable[[Findings], None] | None = None
) -> Findings:
    """Walk every chain and every seal and name what does not hold: the entry, the checkout, or the seal."""
    found = Findings()
    after = UUID(int=0)
    while True:
        async with db.snapshot() as moment:
            heads = (await moment.execute(_HEADS, {"after": after, "most": 500})).all()
            if not heads:
                break
            until = heads[-1].id
            entries = (await moment.execute(_ENTRIES, {"after": after, "until": until})).all()
        chains: dict[UUID, list[Row[Any]]] = {head.id: [] for head in heads}
        for row in entries:
            chains.setdefault(row.checkout_id, []).append(row)
        for head in heads:
            found.checkouts += 1
            _verify_chain(vault, head, chains[head.id], found)
        after = until
        if progress:
            progress(found)
    for stray in await db.read(_STRAYS):
        found.problems.append(f"checkout {stray.checkout_id} is missing, though its entries exist")
    await _verify_seals(db, vault, found)
    return found


def _verify_chain(vault: Vault, head: Row[Any], entries: list[Row[Any]], found: Findings) -> None:
    checkout, mac, state, expected = head.id, START, None, 1
    for row in entries:
        found.entries += 1
        where = f"entry {row.sequence} of checkout {checkout}"
        if row.sequence != expected:
            found.problems.append(f"entry {expected} of checkout {checkout} is missing")
            return
        key = vault.known(row.key_id)
        if key is None:
            found.problems.append(f"{where} was made under key {row.key_id}, which SECRET_KEYS does not have")
            return
        mac = chain_mac(key, mac, row.entry)
        if not hmac.compare_digest(mac, bytes(row.mac)):
            found.problems.append(f"{where} was changed: its text and its mac do not agree")
            return
        problem, state = _read_entry(row, checkout, state)
        if problem:
            found.problems.append(f"{where} {problem}")
            return
        expected += 1
    if expected - 1 != head.audit_sequence:
        found.problems.append(
            f"checkout {checkout} has {expected - 1} entries and should have {head.audit_sequence}: its tail was cut"
        )
    elif not hmac.compare_digest(mac, bytes(head.audit_head)):
        found.problems.append(f"checkout {checkout} does not carry the head of its chain")
    elif state is not None and state != head.state:
        found.problems.append(f"checkout {checkout} is {head.state}, but its trail ends in {state}")


class _Told(msgspec.Struct, rename={"before": "from"}):
    """What verification reads of an entry's text."""

    checkout: UUID
    sequence: int
    at: str
    action: Action
    to: State
    before: State | None
    trigger: Trigger | None
    evidence: dict[str, Any]


_TOLD: Final = msgspec.json.Decoder(_Told)


def _read_entry(row: Row[Any], checkout: UUID, state: str | None) -> tuple[str | None, str | None]:
    """Check what an entry says against its row and against the table of transitions; return (problem, state after)."""
    try:
        told = _TOLD.decode(row.entry)
    except msgspec.DecodeError:
        return "is not in the words of the trail", state
    moment = row.at.isoformat(timespec="microseconds")
    if (told.checkout, told.sequence, told.action, told.at) != (checkout, row.sequence, row.action, moment):
        return "disagrees with its own columns", state
    if told.before != state:
        return f"starts from {told.before}, but the one before ended in {state}", state
    if told.before is None:
        # A payment for an order number that nobody asked for begins where its order would have ended.
        stray = told.to is State.FAILED and told.evidence.get("stray") is True
        born = told.to is State.RECEIVED or stray
        return (None if born else f"begins in {told.to}, and every checkout begins as received"), told.to
    moves = told.trigger is not None and TRANSITIONS.get((told.before, told.trigger)) is told.to
    if told.to is not told.before and not moves:
        return (
            f"moves from {told.before} to {told.to} by {told.trigger}, which the table does not have",
            state,
        )
    return None, told.to


async def _verify_seals(db: Database, vault: Vault, found: Findings) -> None:
    mac, expected = START, 1
    while rows := await db.read(_SEALS, {"after": expected - 1}):
        for row in rows:
            found.seals += 1
            if row.sequence != expected:
                found.problems.append(f"seal {expected} is missing")
                return
            key = vault.known(row.key_id)
            if key is None:
                found.problems.append(
                    f"seal {row.sequence} was made under key {row.key_id}, which SECRET_KEYS does not have"
                )
                return
            mac = _seal_mac(key, mac, sequence=row.sequence, at=row.at, heads=row.heads)
            if not hmac.compare_digest(mac, bytes(row.mac)):
                found.problems.append(f"seal {row.sequence} was changed")
                return
            await _verify_sealed_heads(db, row, found)
            expected += 1


_SEALED = text("""
    SELECT h.id, h.sequence FROM unnest(CAST(:ids AS uuid[]), CAST(:sequences AS int[]), CAST(:macs AS bytea[]))
        AS h(id, sequence, mac)
     WHERE NOT EXISTS (SELECT FROM audit_entries a
                        WHERE a.checkout_id = h.id AND a.sequence = h.sequence AND a.mac = h.mac)
""")


async def _verify_sealed_heads(db: Database, row: Row[Any], found: Findings) -> None:
    heads = [line.split(" ") for line in row.heads.splitlines()]
    for start in range(0, len(heads), 1000):
        part = heads[start : start + 1000]
        gone = await db.read(
            _SEALED,
            {
                "ids": [UUID(head[0]) for head in part],
                "sequences": [int(head[1]) for head in part],
                "macs": [bytes.fromhex(head[2]) for head in part],
            },
        )
        found.problems.extend(
            f"checkout {lost.id} had {lost.sequence} entries when seal {row.sequence} was made, and no longer has"
            for lost in gone
        )


_EXPORT = text("""
    SELECT checkout_id, sequence, entry, key_id, mac FROM audit_entries
     WHERE (checkout_id, sequence) > (:checkout, :sequence) ORDER BY checkout_id, sequence LIMIT 1000
""")


async def export(db: Database) -> AsyncIterator[str]:
    """Yield every entry and every seal as a line of JSON, for a copy kept elsewhere."""
    checkout, sequence = UUID(int=0), 0
    while rows := await db.read(_EXPORT, {"checkout": checkout, "sequence": sequence}):
        for row in rows:
            yield msgspec.json.encode(
                {"entry": row.entry, "keyId": row.key_id, "mac": row.mac.hex()}
            ).decode()
        checkout, sequence = rows[-1].checkout_id, rows[-1].sequence
    number = 0
    while rows := await db.read(_SEALS, {"after": number}):
        for row in rows:
            seal_line = {
                "seal": row.sequence, "at": row.at.isoformat(timespec="microseconds"), "heads": row.heads,
                "keyId": row.key_id, "mac": row.mac.hex(),
            }  # fmt: skip
            yield msgspec.json.encode(seal_line).decode()
        number = rows[-1].sequence
