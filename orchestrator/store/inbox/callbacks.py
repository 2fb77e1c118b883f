"""Callbacks: stored raw before they are read; a repeat wakes again unless the first was handled."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
from sqlalchemy import text

from orchestrator.crypto import EncryptionError, Erased
from orchestrator.domain.ids import uuid7
from orchestrator.store import checkouts
from orchestrator.store.batch import AGAIN, Again, Batch, Batched
from orchestrator.store.columns import json_text
from orchestrator.store.database import Database, run
from orchestrator.store.tables import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from orchestrator.crypto import Encryptor

CallbackKind = Literal["success", "failure", "notification", "redirect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A callback as it came: raw body, white-listed headers, its sender and how well it proves that (the
    gateway's `Grade`); `network` is one of `inside`, `outside`, `unchecked`.
    """

    kind: CallbackKind = "notification"
    grade: str
    network: str = "unchecked"
    content_type: str
    headers: Mapping[str, str]
    source: str | None
    body: bytes
    id: UUID = field(default_factory=uuid7)

    @property
    def digest(self) -> bytes:
        """SHA-256 of kind and raw body: the same callback has the same."""
        return hashlib.sha256(self.kind.encode() + b"\0" + self.body).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival(Received):
    """A callback that names its checkout in its address."""

    checkout_id: UUID


@dataclass(frozen=True, slots=True)
class Stored:
    """The result. `wakes`: the gateway has to be asked, so publish a hint. `kept`: not beyond the cap."""

    wakes: bool
    kept: bool = True


class Caps(NamedTuple):
    """How many callbacks are kept for one checkout, of any kind and of those without proof."""

    any: int = 1000
    unproven: int = 100


_CAPS: Final = Caps()

UNPROVEN: Final = frozenset({"missing", "wrong", "stale"})
"""The grades of callbacks that any sender could have made, though the merchant has a secret."""
_BETTER: Final = ["unchecked", "checksum", "signed"]
"""Grades from weak to strong; those without proof are weaker."""


# The checkouts are locked before their callbacks, as by a mover, so that no deadlock occurs. A checkout that
# another transaction holds comes again, so that a held row delays no other callback.
_MINE = text("""
    WITH locked AS MATERIALIZED (
        SELECT id FROM checkouts WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
    )
    SELECT c.id, i.data_key, i.erased_at IS NOT NULL AS erased, l.id IS NOT NULL AS mine
      FROM checkouts c LEFT JOIN intents i ON i.checkout_id = c.id LEFT JOIN locked l ON l.id = c.id
     WHERE c.id = ANY(CAST(:ids AS uuid[]))
""")


def _worthless(row: str) -> str:
    return f"({row}.grade IN ({quoted(sorted(UNPROVEN))}) OR (:strict AND {row}.network = 'outside'))"


def _proof_of(row: str) -> str:
    rank = f"coalesce(array_position(ARRAY[{quoted(_BETTER)}], {row}.grade), 0)"
    return f"{rank} * 2 + CAST({row}.network <> 'outside' AS int)"


def bounded(by: str, *, kept: str, same: str) -> str:
    """Return the SQL of `room`, what is kept beside the new callbacks of the same `by`, and of `numbered`,
    the new ones (`a`) with their places.

    `kept` says which callbacks `b` are kept beside a new one `c`, `same` which is the same as a new one `a`.
    The count is limited by the caps themselves.
    """
    found = f"SELECT count(*) FROM (SELECT FROM callbacks b WHERE {kept}"  # noqa: S608 - our own names
    return f"""
    room AS MATERIALIZED (
        SELECT c.{by}, ({found} LIMIT :most) AS found) AS kept,
               CASE WHEN bool_or(c.unproven) THEN ({found} AND {_worthless("b")} LIMIT :most_unproven) AS found)
               ELSE 0 END AS kept_unproven
          FROM a AS c GROUP BY c.{by}
    ),
    numbered AS (
        SELECT a.*, b.id IS NOT NULL AS again,
               row_number() OVER (PARTITION BY a.{by}, b.id IS NULL ORDER BY a.unproven, a.id) AS place,
               row_number() OVER (PARTITION BY a.{by}, b.id IS NULL, a.unproven ORDER BY a.id) AS place_of_its_kind
          FROM a LEFT JOIN LATERAL (SELECT id FROM callbacks WHERE {same} LIMIT 1) b ON true
    )"""  # noqa: S608 - our own names


FITS: Final = """(n.again OR (r.kept + n.place <= :most
                   AND (NOT n.unproven OR r.kept_unproven + n.place_of_its_kind <= :most_unproven)))"""
"""SQL: whether a callback `n` of `numbered` is kept in its `room` (`r`)."""
_ROOM: Final = bounded(
    "checkout_id",
    kept="b.checkout_id = c.checkout_id",
    same="checkout_id = a.checkout_id AND kind = a.kind AND digest = a.digest",
)

# A repeat counts, and wakes the checkout until the first was handled; and again where it proves more than the
# first, which may have been a guess. An empty body cannot be told from an earlier one, so it always wakes the
# checkout, unless it proves nothing. Beyond its caps a checkout keeps nothing new.
_STORE = text(f"""
    WITH a AS MATERIALIZED (
        SELECT * FROM json_to_recordset(CAST(:arrivals AS json)) AS a(
            id uuid, checkout_id uuid, kind text, grade text, network text, sender text, body text, digest bytea, times int,
            unproven boolean)
    ), {_ROOM},
    stored AS (
        INSERT INTO callbacks AS b (id, checkout_id, kind, grade, network, sender, body, digest, times)
        SELECT n.id, n.checkout_id, n.kind, n.grade, n.network, decode(n.sender, 'base64'), decode(n.body, 'base64'), n.digest,
               n.times
          FROM numbered n JOIN room r USING (checkout_id)
         WHERE {FITS}
         ORDER BY n.checkout_id, n.kind, n.digest
        ON CONFLICT (checkout_id, kind, digest) DO UPDATE
           SET times = b.times + excluded.times, repeated_at = clock(),
               (grade, network, sender, handled_at) = (
                   SELECT CASE WHEN p.new > p.old THEN excluded.grade ELSE b.grade END,
                          CASE WHEN p.new > p.old THEN excluded.network ELSE b.network END,
                          CASE WHEN p.new > p.old THEN excluded.sender ELSE b.sender END,
                          CASE WHEN p.worthless OR NOT (p.was_worthless OR b.digest = ANY(CAST(:empty AS bytea[])))
                               THEN b.handled_at END
                     FROM (SELECT {_proof_of("excluded")} AS new, {_proof_of("b")} AS old,
                                  {_worthless("excluded")} AS worthless,
                                  {_worthless("b")} AS was_worthless) AS p)
        RETURNING checkout_id, kind, digest, handled_at IS NULL AS open
    )
    SELECT a.checkout_id, a.kind, a.digest, s.digest IS NOT NULL AS kept,
           CASE WHEN s.digest IS NOT NULL THEN s.open
                WHEN a.unproven THEN false
                ELSE a.grade = 'signed'
                     OR EXISTS (SELECT FROM callbacks b WHERE b.checkout_id = a.checkout_id AND b.handled_at IS NULL)
                END AS wakes
      FROM a LEFT JOIN stored s USING (checkout_id, kind, digest)
""")  # noqa: S608 - our own names
_EMPTY: Final = [
    hashlib.sha256(kind + b"\0").digest() for kind in (b"success", b"failure", b"notification", b"redirect")
]


class Callbacks(Batched):
    """Stores the callbacks of everything in flight in this process together and wakes their checkouts.
    `strict_network`: what comes from outside the gateway's addresses counts as unproven.
    """

    def __init__(
        self,
        db: Database,
        encryptor: Encryptor,
        *,
        grace: float,
        batch_limit: int = 500,
        timeout: float = 30.0,
        caps: Caps = _CAPS,
        strict_network: bool = False,
    ) -> None:
        self._db, self._encryptor, self._grace = db, encryptor, grace
        self._caps, self._strict = caps, strict_network
        self._batch: Batch[Arrival, Stored] = Batch(
            self._write,
            keys=lambda arrival: (arrival.id,),
            limit=batch_limit,
            timeout=timeout,
            name="callbacks",
        )

    async def store(self, arrival: Arrival) -> Stored:
        """Store a callback and wake its checkout; `DatabaseAway` after the timeout."""
        return await self._batch.put(arrival)

    def unproven(self, grade: str, network: str) -> bool:
        """Return whether any sender could have made it, though it can be checked: it only causes a lookup."""
        return grade in UNPROVEN or (self._strict and network == "outside")

    @property
    def bounds(self) -> dict[str, object]:
        """The caps, and what counts as unproven, as parameters of a statement."""
        return {"most": self._caps.any, "most_unproven": self._caps.unproven, "strict": self._strict}

    async def _write(self, batch: list[Arrival]) -> list[Stored | Again]:
        async with self._db.transaction() as tx:
            ids = sorted({arrival.checkout_id for arrival in batch})
            known = await run(tx, _MINE, {"ids": ids})
            held = {row.id for row in known if not row.mine}
            keys = {row.id: row.data_key for row in known}
            erased = {row.id for row in known if row.erased}
            # Of an erased customer only that it came is kept, and what it proved.
            batch = [
                replace(arrival, content_type="", headers={}, source=None, body=b"")
                if arrival.checkout_id in erased
                else arrival
                for arrival in batch
            ]
            same = {arrival.id: (arrival.checkout_id, arrival.kind, arrival.digest) for arrival in batch}
            times = Counter(same.values())
            # Of equal callbacks the first among those that prove most is stored.
            first: dict[tuple[UUID, CallbackKind, bytes], Arrival] = {}
            for arrival in sorted(batch, key=_proof, reverse=True):
                first.setdefault(same[arrival.id], arrival)
            rows = [
                {
                    **self.row(arrival, arrival.checkout_id, keys.get(arrival.checkout_id), times[what]),
                    "checkout_id": arrival.checkout_id,
                }
                for what, arrival in first.items()
                if arrival.checkout_id not in held
            ]
            parameters = {"arrivals": json_text(rows), "empty": _EMPTY, **self.bounds}
            fates = {
                (row.checkout_id, row.kind, bytes(row.digest)): Stored(row.wakes, row.kept)
                for row in await run(tx, _STORE, parameters)
            }
            woken = sorted({checkout for (checkout, _, _), fate in fates.items() if fate.wakes})
            if woken:
                await checkouts.wake(tx, woken, grace=self._grace)
        return [AGAIN if arrival.checkout_id in held else fates[same[arrival.id]] for arrival in batch]

    def row(self, callback: Received, owner: UUID, wrapped: bytes | None, times: int) -> dict[str, object]:
        """Return the columns of a callback, with its content encrypted for `owner` (see `encrypt_body`)."""
        return {
            "id": callback.id,
            "kind": callback.kind,
            "grade": callback.grade,
            "network": callback.network,
            "sender": encrypt_sender(self._encryptor, owner, wrapped, callback),
            "body": encrypt_body(self._encryptor, owner, wrapped, callback.body),
            "digest": "\\x" + callback.digest.hex(),  # as text of a bytea
            "times": times,
            "unproven": self.unproven(callback.grade, callback.network),
        }


def _proof(arrival: Arrival) -> tuple[int, bool]:
    rank = _BETTER.index(arrival.grade) + 1 if arrival.grade in _BETTER else 0
    return rank, arrival.network != "outside"


class Sender(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of a sender: content type, white-listed headers, and its address."""

    content_type: str = ""
    headers: dict[str, str] = {}
    source: str | None = None


_NO_SENDER: Final = Sender()
_SENDERS: Final = msgspec.json.Decoder(Sender)
_SENDER: Final = "callback-sender"


def encrypt_sender(
    encryptor: Encryptor, checkout: UUID, wrapped: bytes | None, callback: Received
) -> bytes | None:
    """Encrypt what is kept of a sender, as `encrypt_body` does; None where there is nothing to keep."""
    sender = Sender(callback.content_type, dict(callback.headers), callback.source)
    if sender == _NO_SENDER:
        return None
    return encrypt_body(encryptor, checkout, wrapped, msgspec.json.encode(sender), purpose=_SENDER)


def decrypt_sender(
    encryptor: Encryptor, checkout: UUID, wrapped: bytes | None, sealed: bytes | None
) -> Sender:
    """Open what `encrypt_sender` made; raises what `decrypt_body` raises."""
    if not sealed:
        return _NO_SENDER
    return _SENDERS.decode(decrypt_body(encryptor, checkout, wrapped, sealed, purpose=_SENDER))


def encrypt_body(
    encryptor: Encryptor, checkout: UUID, wrapped: bytes | None, body: bytes, *, purpose: str = "callback"
) -> bytes:
    """Encrypt a raw callback under its checkout's data key, or under the installation's where no key of this
    installation unwraps that, or where it belongs to no checkout (its own id, and no key, are given then).
    """
    try:
        return b"\0" + encryptor.data_key(checkout, wrapped).encrypt(body, purpose=purpose)
    except EncryptionError:
        return b"\1" + encryptor.encrypt(body, purpose=f"{purpose}/{checkout}")


def decrypt_body(
    encryptor: Encryptor, checkout: UUID, wrapped: bytes | None, sealed: bytes, *, purpose: str = "callback"
) -> bytes:
    """Open what `encrypt_body` made; `Erased` if it was erased, `EncryptionError` if no key opens it."""
    if not sealed:
        raise Erased(checkout)
    if sealed[:1] == b"\1":
        return encryptor.decrypt(sealed[1:], purpose=f"{purpose}/{checkout}")
    return encryptor.data_key(checkout, wrapped).decrypt(sealed[1:], purpose=purpose)
