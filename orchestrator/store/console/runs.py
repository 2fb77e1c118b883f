"""Bulk actions: one command for many checkouts, chosen by a filter and frozen with their versions.

A run is carried out by one process under a lease; when that process is killed, another goes on with the items
that have no outcome. The command of an item has an idempotency key of its run and checkout, so an item that
was stored and not noted is stored once. The items are under the run's MAC, by a digest that is compared
whenever a process takes the run up. No kind of a run moves money.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import text

from orchestrator.crypto import EncryptionError
from orchestrator.errors import OrchestratorError
from orchestrator.store.columns import json_text, record
from orchestrator.store.console import lists
from orchestrator.store.database import run as execute

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.console.lists import Filter
    from orchestrator.store.database import Database

Kind = Literal["retry", "reconcile", "cancel", "dismiss"]
KINDS: Final[tuple[Kind, ...]] = ("retry", "reconcile", "cancel", "dismiss")
LEASE: Final = 15.0
AT_ONCE: Final = 100
PURPOSE: Final = "console-run"

_ADD = text("""
    INSERT INTO console_runs (id, kind, filter, actor, reason, number, mac)
    VALUES (:id, :kind, CAST(:filter AS jsonb), :actor, :reason, 0, '') ON CONFLICT (id) DO NOTHING RETURNING id
""")
_DIGEST = text("""
    SELECT sha256(string_agg(uuid_send(checkout_id) || int4send(merchant_id) || int4send(version), '' ORDER BY checkout_id)) AS digest
      FROM console_run_items WHERE run_id = :id
""")
_FREEZE = text("UPDATE console_runs SET number = :number, digest = :digest, mac = :mac WHERE id = :id")
_CLAIM = text("""
    UPDATE console_runs SET lease = :lease, leased_until = clock() + make_interval(secs => :seconds)
     WHERE id = (SELECT id FROM console_runs WHERE state = 'running' AND (leased_until IS NULL OR leased_until <= clock())
                  ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING *
""")
_RENEW = text("""
    UPDATE console_runs SET leased_until = clock() + make_interval(secs => :seconds)
     WHERE id = :id AND lease = :lease AND state = 'running' RETURNING id
""")
_NEXT = text("""
    SELECT checkout_id AS checkout, merchant_id, version FROM console_run_items
     WHERE run_id = :id AND outcome IS NULL ORDER BY checkout_id LIMIT :most
""")
_NOTE = text("""
    WITH noted AS (
        UPDATE console_run_items t SET outcome = n.outcome, command_id = n.command, sentence = n.sentence
          FROM json_to_recordset(CAST(:results AS json)) AS n(checkout uuid, outcome text, command uuid, sentence text)
         WHERE t.run_id = :id AND t.checkout_id = n.checkout AND t.outcome IS NULL
        RETURNING t.outcome
    )
    UPDATE console_runs SET accepted = accepted + (SELECT count(*) FROM noted WHERE outcome = 'accepted'),
                            refused = refused + (SELECT count(*) FROM noted WHERE outcome = 'refused')
     WHERE id = :id
""")
_END = text("""
    UPDATE console_runs SET state = 'done', ended_at = clock(), reason = NULL, lease = NULL, leased_until = NULL
     WHERE id = :id AND lease = :lease AND state = 'running'
""")
_STOP = text("""
    UPDATE console_runs SET state = 'stopped', ended_at = clock(), lease = NULL, leased_until = NULL
     WHERE id = :id AND state = 'running' RETURNING id
""")
_RESUME = text("""
    UPDATE console_runs SET state = 'running', ended_at = NULL WHERE id = :id AND state = 'stopped' RETURNING id
""")
_ONE = text("SELECT * FROM console_runs WHERE id = :id")
_PAGE = text("SELECT * FROM console_runs WHERE id < :before ORDER BY id DESC LIMIT :most")
_ITEMS = text("""
    SELECT i.checkout_id, i.outcome, i.sentence, i.command_id, c.order_ref, c.state
      FROM (SELECT * FROM console_run_items WHERE run_id = :id AND checkout_id > :after
             ORDER BY checkout_id LIMIT :most) i
      JOIN checkouts c ON c.id = i.checkout_id ORDER BY i.checkout_id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bulk action; `number` checkouts were chosen, and of so many the outcome is known."""

    id: UUID
    kind: Kind
    actor: str
    reason: str | None
    state: Literal["running", "stopped", "done"]
    number: int
    accepted: int
    refused: int
    created_at: datetime
    ended_at: datetime | None
    digest: bytes | None
    authentic: bool

    @property
    def left(self) -> int:
        """How many have no outcome yet."""
        return self.number - self.accepted - self.refused


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """What a person asks for; `chosen` is the filter as it was given."""

    kind: Kind
    chosen: Mapping[str, object]
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Item:
    """A checkout of a run that has no outcome yet."""

    checkout: UUID
    merchant_id: int
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    checkout: UUID
    outcome: Literal["accepted", "refused"]
    command: UUID | None = None
    sentence: str | None = None


class ChoiceChanged(OrchestratorError):  # noqa: N818 - named for the fact
    """What a filter chooses is not what the preview showed: nothing was stored."""


async def begin(
    db: Database,
    encryptor: Encryptor,
    new: UUID,
    asked: NewRun,
    *,
    wanted: Filter,
    before: UUID,
    most: int,
    seen: str,
) -> int | None:
    """Store a run of what a filter chooses now below the id `before`; return how many checkouts it has; None:
    it is stored already. Raises `ChoiceChanged`, also where nothing is chosen.
    """
    row: dict[str, object] = {
        "id": new,
        "kind": asked.kind,
        "filter": json_text(asked.chosen),
        "actor": asked.actor,
        "reason": encryptor.encrypt(asked.reason.encode(), purpose=f"{PURPOSE}/{new}"),
    }
    async with db.transaction() as tx:
        if not await execute(tx, _ADD, row):
            return None
        found = await lists.chosen(partial(execute, tx), wanted, before=before, most=most, run=new)
        if found.digest != seen or not found.number:
            raise ChoiceChanged
        (items,) = await execute(tx, _DIGEST, {"id": new})
        row |= {"number": found.number, "digest": items.digest}
        await execute(tx, _FREEZE, {**row, "mac": encryptor.sign(PURPOSE, _signed(row))})
    return found.number


async def claim(db: Database, encryptor: Encryptor) -> tuple[Run, UUID] | None:
    """Take up a run that no process carries out; return it with the lease."""
    lease = uuid4()
    rows = await db.write(_CLAIM, {"lease": lease, "seconds": LEASE})
    return (_read(rows[0], encryptor), lease) if rows else None


async def renew(db: Database, run: UUID, lease: UUID) -> bool:
    """Keep the lease; False where the run was stopped, or taken up by another process."""
    return bool(await db.write(_RENEW, {"id": run, "lease": lease, "seconds": LEASE}))


async def intact(db: Database, run: Run) -> bool:
    """Say whether a run has the items that it began with."""
    (items,) = await db.read(_DIGEST, {"id": run.id})
    return run.digest is not None and items.digest == run.digest


async def next_items(db: Database, run: UUID) -> list[Item]:
    rows = await db.read(_NEXT, {"id": run, "most": AT_ONCE})
    return [record(Item, row) for row in rows]


async def note(db: Database, run: UUID, results: Sequence[Result]) -> None:
    await db.write(_NOTE, {"id": run, "results": json_text(results)})


async def finish(db: Database, run: UUID, lease: UUID) -> None:
    """End a run whose items all have an outcome; its reason stands in the commands."""
    await db.write(_END, {"id": run, "lease": lease})


async def stop(db: Database, run: UUID) -> bool:
    """Stop a run after the items in hand."""
    return bool(await db.write(_STOP, {"id": run}))


async def resume(db: Database, run: UUID) -> bool:
    return bool(await db.write(_RESUME, {"id": run}))


async def by_id(db: Database, encryptor: Encryptor, run: UUID) -> Run | None:
    rows = await db.read(_ONE, {"id": run})
    return _read(rows[0], encryptor) if rows else None


async def page(db: Database, encryptor: Encryptor, *, before: UUID, limit: int) -> list[Run]:
    """Return runs, the youngest first."""
    return [_read(row, encryptor) for row in await db.read(_PAGE, {"before": before, "most": limit})]


async def items(db: Database, run: UUID, *, after: UUID, limit: int) -> Sequence[Row[Any]]:
    """Return items of a run with their orders."""
    return await db.read(_ITEMS, {"id": run, "after": after, "most": limit})


def _read(row: Row[Any], encryptor: Encryptor) -> Run:
    reason = None
    if row.reason is not None:
        with suppress(EncryptionError):
            reason = encryptor.decrypt(row.reason, purpose=f"{PURPOSE}/{row.id}").decode()
    authentic = (
        row.kind in KINDS
        and row.digest is not None
        and encryptor.signed(PURPOSE, _signed(row._asdict()), row.mac)
    )
    return record(Run, row, reason=reason, authentic=authentic)


def _signed(row: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode((row["id"], row["kind"], row["actor"], row["number"], row["digest"].hex()))
