"""What is stored under the secret keys: how much under each, and encrypting it again under the newest.

Values are read by key in lists; each list is one statement that replaces a value only where it is still what
was read. So it may be cut at any moment and run again, runs beside everything else, and takes back no change
that was made meanwhile. A value that does not open is left as it is and counted. Checkouts keep their data
keys: these are wrapped again, and the personal data under them is not touched.

Signatures are no part of it, but for those of policies: audit entries, seals, archives and links were signed
under the key of their time, which stays among SECRET_KEYS to verify them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from orchestrator import log
from orchestrator.crypto import EncryptionError
from orchestrator.domain.ids import FIRST
from orchestrator.store import idempotent_answers
from orchestrator.store import merchant_accounts as accounts
from orchestrator.store.columns import json_text
from orchestrator.store.console import runs
from orchestrator.store.database import run
from orchestrator.store.deliveries import ANSWER
from orchestrator.store.sqlstates import state_of
from orchestrator.store.webhooks import secret_purpose, target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    from sqlalchemy import Row, TextClause

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

_log = log.get(__name__)

LIST_SIZE: Final = 500
_TRIES: Final = 5
_COLLISIONS: Final = frozenset({"40P01", "40001"})
"""States of Postgres: a deadlock with other writers, which ends one of the two."""
_ID: Final = 4
"""Bytes at the beginning of a value that name its key."""


_FIRST: Final[dict[str, UUID | int | str]] = {"uuid": FIRST, "int4": -1, "text": ""}
"""By the type of a key, what is before all others."""


@dataclass(frozen=True, slots=True)
class _Sealed:
    """One kind of value: its column, what it is bound to, and how many bytes before it are not encrypted.
    `only`: SQL that says which rows hold it. `key`: SQL of what names a row. `beside`: columns that the
    purpose needs.
    """

    kind: str
    table: str
    column: str
    purpose: Callable[[Row[Any]], str]
    key: str = "t.id"
    type: str = "uuid"
    beside: str = "NULL"
    only: str = "true"
    skip: int = 0

    def page(self) -> TextClause:
        """Return the statement that reads a list; a row without such a value is read without it."""
        return text(f"""
            SELECT {self.key} AS key, CASE WHEN {self.only} THEN t.{self.column} END AS value, {self.beside}
              FROM {self.table} t WHERE {self.key} > :after ORDER BY {self.key} LIMIT :most
        """)  # noqa: S608 - made of our own constants

    def replace(self) -> TextClause:
        """Return the statement that replaces values of a list that are still what was read."""
        return text(f"""
            UPDATE {self.table} t SET {self.column} = n.after
              FROM unnest(CAST(:keys AS {self.type}[]), CAST(:before AS bytea[]), CAST(:afterwards AS bytea[]))
                   AS n(key, before, after)
             WHERE {self.key} = n.key AND t.{self.column} = n.before RETURNING 1
        """)  # noqa: S608 - as above

    def count(self) -> TextClause:
        """Return the statement that counts values by the id of their key."""
        return text(f"""
            SELECT encode(substring(t.{self.column} FROM {self.skip + 1} FOR {_ID}), 'hex') AS key_id, count(*)::int8 AS number
              FROM {self.table} t WHERE t.{self.column} IS NOT NULL AND {self.only} GROUP BY 1 ORDER BY 1
        """)  # noqa: S608 - as above


def _of_webhook(row: Row[Any]) -> str:
    return secret_purpose(row.key, row.merchant_id, target(row.url, row.task, row.queue))


def _of_data_key(row: Row[Any]) -> str:
    return f"data-key/{row.key}"


_MERCHANT: Final = "t.name, t.gateway_url, t.merchant_api_url, t.username"
_WEBHOOK: Final = "t.merchant_id, t.url, t.task, t.queue"
_SEALED: Final = (
    _Sealed(
        "merchant passwords", "merchants", "password", accounts.purpose_of, type="int4", beside=_MERCHANT
    ),
    _Sealed(
        "callback secrets",
        "merchants",
        "callback_secrets",
        lambda row: accounts.secrets_purpose(row.name),
        type="int4",
        beside=_MERCHANT,
    ),
    _Sealed(
        "retired callback secrets",
        "retired_callback_secrets",
        "secrets",
        lambda row: accounts.retired_purpose(row.name),
        key="t.merchant_id",
        type="int4",
        beside="(SELECT name FROM merchants m WHERE m.id = t.merchant_id) AS name",
    ),
    # Of a Celery task the broker's URL.
    _Sealed("webhook secrets", "webhook_endpoints", "secret", _of_webhook, beside=_WEBHOOK),
    _Sealed("previous webhook secrets", "webhook_endpoints", "previous_secret", _of_webhook, beside=_WEBHOOK),
    _Sealed("data keys of checkouts", "intents", "data_key", _of_data_key, key="t.checkout_id"),
    _Sealed("data keys of refused intents", "rejected_intents", "data_key", _of_data_key),
    *(
        # Of no checkout, or of one whose data key no key of this installation unwraps.
        _Sealed(
            kind,
            "callbacks",
            column,
            lambda row, what=what: f"{what}/{row.owner}",  # type: ignore[misc]  # a default beside the row
            beside="coalesce(t.checkout_id, t.id) AS owner",
            only=f"substring(t.{column} FROM 1 FOR 1) = '\\x01'",
            skip=1,
        )
        for kind, column, what in (
            ("callbacks without a data key", "body", "callback"),
            ("senders of callbacks without a data key", "sender", "callback-sender"),
        )
    ),
    _Sealed(
        "answers to test events",
        "delivery_attempts",
        "answer",
        lambda row: f"{ANSWER}/{row.checkout_id}",
        beside="t.checkout_id",
        only="t.purpose = 'test'",
    ),
    _Sealed(
        "answers to repeated requests",
        "idempotent_answers",
        "answer",
        lambda row: idempotent_answers.purpose(row.merchant_id, row.name),
        key="(t.merchant_id || '/' || t.key)",
        type="text",
        beside="t.merchant_id, t.key AS name",
    ),
    _Sealed("reasons of bulk actions", "console_runs", "reason", lambda row: f"{runs.PURPOSE}/{row.key}"),
)
KINDS: Final = tuple(sealed.kind for sealed in _SEALED)
COLUMNS: Final = frozenset(f"{sealed.table}.{sealed.column}" for sealed in _SEALED)

_POLICIES = text(
    "SELECT id, name, policies, policies_mac FROM merchants WHERE policies_mac IS NOT NULL ORDER BY id"
)
_SIGN = text(
    "UPDATE merchants SET policies_mac = :mac WHERE id = :id AND policies_mac = :before AND policies = CAST(:policies AS jsonb)"
)
_NO_LIMIT = text("SET LOCAL statement_timeout = 0")
_COUNT_TIMEOUT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Count:
    """How many values of a kind are under a key (its public id)."""

    kind: str
    key_id: str
    number: int


@dataclass(slots=True)
class Rotation:
    """How far a rotation is: values read, values encrypted again, and values that do not open."""

    read: int = 0
    encrypted: int = 0
    failed: int = 0


async def counts(db: Database) -> list[Count]:
    """Count what is stored under each key; reads every table that holds such values."""
    found: list[Count] = []
    async with db.transaction(timeout=_COUNT_TIMEOUT) as tx:
        await run(tx, _NO_LIMIT, {})
        for sealed in _SEALED:
            found += [Count(sealed.kind, row.key_id, row.number) for row in await run(tx, sealed.count(), {})]
    return found


async def rotate(
    db: Database,
    encryptor: Encryptor,
    *,
    list_size: int = LIST_SIZE,
    progress: Callable[[Rotation], None] | None = None,
) -> Rotation:
    """Encrypt everything again that is not under the newest key; return what was done."""
    done = Rotation()
    for sealed in _SEALED:
        after, page, replace = _FIRST[sealed.type], sealed.page(), sealed.replace()
        while rows := await db.read(page, {"after": after, "most": list_size}):
            outdated = _encrypted_again(encryptor, sealed, rows, done)
            if outdated:
                done.encrypted += await _replaced(db, replace, outdated)
            after = rows[-1].key
            if progress is not None:
                progress(done)
    await _sign_policies(db, encryptor)
    return done


def _encrypted_again(
    encryptor: Encryptor, sealed: _Sealed, rows: Sequence[Row[Any]], done: Rotation
) -> list[tuple[object, bytes, bytes]]:
    """Return key, value and new value of what is not under the newest key."""
    newest = bytes.fromhex(encryptor.newest.id)
    outdated = []
    for row in rows:
        if row.value is None:
            continue
        done.read += 1
        value, skip = row.value, sealed.skip
        if value[skip : skip + _ID] == newest:
            continue
        purpose = sealed.purpose(row)
        try:
            plain = encryptor.decrypt(value[skip:], purpose=purpose)
        except EncryptionError as error:
            done.failed += 1
            _log.error("not_encrypted_again", kind=sealed.kind, row=str(row.key), reason=str(error))
            continue
        outdated.append((row.key, value, value[:skip] + encryptor.encrypt(plain, purpose=purpose)))
    return outdated


async def _replaced(
    db: Database, statement: TextClause, outdated: Sequence[tuple[object, bytes, bytes]]
) -> int:
    keys, before, afterwards = (list(part) for part in zip(*outdated, strict=True))
    for left in reversed(range(_TRIES)):
        try:
            rows = await db.write(statement, {"keys": keys, "before": before, "afterwards": afterwards})
        except DBAPIError as error:
            if state_of(error) not in _COLLISIONS or not left:
                raise
        else:
            return len(rows)
    return 0


async def _sign_policies(db: Database, encryptor: Encryptor) -> None:
    """Sign policies under the newest key that are signed under an older one."""
    for row in await db.read(_POLICIES):
        said = accounts.policies_text(row.name, row.policies)
        mac = encryptor.sign(accounts.POLICIES_PURPOSE, said)
        before = row.policies_mac
        if mac != before and encryptor.signed(accounts.POLICIES_PURPOSE, said, before):
            same = {"id": row.id, "mac": mac, "before": before, "policies": json_text(row.policies)}
            await db.write(_SIGN, same)
