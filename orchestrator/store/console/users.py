"""Persons who may use the console: name, role, password.

A row counts only with its MAC, so write access to the database adds no person and gives no role. A person
without a password signs in by a link and chooses one. What changes a person ends the person's sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator.domain.console_roles import ROLES
from orchestrator.store.database import run

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

PURPOSE: Final = "console-user"
MOST: Final = 1000

_ADD = text("""
    INSERT INTO console_users (name, role, password, mac, created_by) VALUES (:name, :role, NULL, :mac, :by)
    ON CONFLICT (name) DO NOTHING RETURNING name
""")
_ONE = text("SELECT * FROM console_users WHERE name = :name")
_LOCK = text("SELECT * FROM console_users WHERE name = :name FOR UPDATE")
_ALL = text("SELECT * FROM console_users ORDER BY name LIMIT :most")
_SET = text("""
    UPDATE console_users SET role = :role, password = :password, mac = :mac,
           disabled_at = CASE WHEN :disabled THEN coalesce(disabled_at, clock()) END WHERE name = :name
""")
_END = text("DELETE FROM console_sessions WHERE actor = :name AND id <> :but")
_SIGNED_IN = text("UPDATE console_users SET signed_in_at = clock() WHERE name = :name")
_COUNT = text("SELECT count(*) AS number FROM (SELECT FROM console_users LIMIT :most) u")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One person. `password` is what is stored of it; `authentic`: our own processes wrote the row."""

    name: str
    role: str
    password: str | None
    created_by: str
    created_at: datetime
    signed_in_at: datetime | None
    disabled_at: datetime | None
    authentic: bool

    @property
    def usable(self) -> bool:
        """Whether the person may sign in."""
        return self.authentic and self.disabled_at is None


async def add(db: Database, encryptor: Encryptor, *, name: str, role: str, by: str) -> bool:
    """Add a person; False if the name is taken, or there are too many persons."""
    (found,) = await db.read(_COUNT, {"most": MOST})
    if found.number >= MOST:
        return False
    mac = _mac(encryptor, name, role, None, disabled=False)
    return bool(await db.write(_ADD, {"name": name, "role": role, "mac": mac, "by": by}))


async def by_name(db: Database, encryptor: Encryptor, name: str) -> User | None:
    """Return a person, or None."""
    rows = await db.read(_ONE, {"name": name})
    return _read(rows[0], encryptor) if rows else None


async def listed(db: Database, encryptor: Encryptor) -> list[User]:
    """Return all persons, by name."""
    return [_read(row, encryptor) for row in await db.read(_ALL, {"most": MOST})]


async def signed_in(db: Database, name: str) -> None:
    """Note that a person has signed in."""
    await db.write(_SIGNED_IN, {"name": name})


async def change(
    db: Database,
    encryptor: Encryptor,
    name: str,
    *,
    role: str | None = None,
    password: str | None = None,
    forget_password: bool = False,
    disabled: bool | None = None,
    keep: bytes = b"",
) -> bool:
    """Change a person, and end the person's sessions and links, but for the one with the key `keep`.

    False if there is no such person, or the row is not ours: a change must not make it count.
    """
    async with db.transaction() as tx:
        rows = await run(tx, _LOCK, {"name": name})
        before = _read(rows[0], encryptor) if rows else None
        if before is None or not before.authentic:
            return False
        off = before.disabled_at is not None if disabled is None else disabled
        after = role or before.role
        known = None if forget_password else password or before.password
        mac = _mac(encryptor, name, after, known, disabled=off)
        await run(tx, _SET, {"name": name, "role": after, "password": known, "mac": mac, "disabled": off})
        await run(tx, _END, {"name": name, "but": keep})
    return True


def _mac(encryptor: Encryptor, name: str, role: str, password: str | None, *, disabled: bool) -> bytes:
    return encryptor.sign(PURPOSE, _signed(name, role, password, disabled))


def _signed(*said: object) -> bytes:
    return msgspec.json.encode(said)


def _read(row: Row[Any], encryptor: Encryptor) -> User:
    said = _signed(row.name, row.role, row.password, row.disabled_at is not None)
    return User(
        name=row.name,
        role=row.role,
        password=row.password,
        created_by=row.created_by,
        created_at=row.created_at,
        signed_in_at=row.signed_in_at,
        disabled_at=row.disabled_at,
        authentic=row.role in ROLES and encryptor.signed(PURPOSE, said, bytes(row.mac)),
    )
