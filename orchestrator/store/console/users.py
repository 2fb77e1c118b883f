"""Users of the console: name, role, password, and who made the link that began each.

A row counts only with its MAC, so write access to the database adds no user and gives no role. A user without
a password signs in by a link and chooses one. What changes a user ends the user's sessions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator.domain.console_roles import ROLES
from orchestrator.store.columns import record
from orchestrator.store.database import run

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

PURPOSE: Final = "console-user"
ACTOR: Final = "operator:"
"""What the name of a user begins with in the audit trail."""
MOST: Final = 1000

_ADD = text("""
    INSERT INTO console_users (name, role, password, mac, created_by, linked_by) VALUES (:name, :role, NULL, :mac, :created_by, :linked_by)
    ON CONFLICT (name) DO NOTHING RETURNING name
""")
_ONE = text("SELECT * FROM console_users WHERE name = :name")
_LOCK = text("SELECT * FROM console_users WHERE name = :name FOR UPDATE")
_ALL = text("SELECT * FROM console_users ORDER BY name LIMIT :most")
_SET = text("""
    UPDATE console_users SET role = :role, password = :password, linked_by = :linked_by, mac = :mac,
           disabled_at = CASE WHEN :disabled THEN coalesce(disabled_at, clock()) END WHERE name = :name
""")
_END = text("DELETE FROM console_sessions WHERE actor = :name AND id <> :but")
_SIGNED_IN = text("UPDATE console_users SET signed_in_at = clock() WHERE name = :name")
_COUNT = text("SELECT count(*) AS number FROM (SELECT FROM console_users LIMIT :most) u")


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One user. `password` is what is stored of it; `authentic`: our own processes wrote the row; `linked_by`
    made the last link, and so could have chosen the password (None in rows from before schema 0024).
    """

    name: str
    role: str
    password: str | None
    created_by: str
    linked_by: str | None
    created_at: datetime
    signed_in_at: datetime | None
    disabled_at: datetime | None
    authentic: bool

    @property
    def usable(self) -> bool:
        """Whether the user may sign in."""
        return self.authentic and self.disabled_at is None


async def add(db: Database, encryptor: Encryptor, *, name: str, role: str, by: str) -> bool:
    """Add a user; False if the name is taken, or there are too many users."""
    (found,) = await db.read(_COUNT, {"most": MOST})
    if found.number >= MOST:
        return False
    row = {"name": name, "role": role, "password": None, "disabled": False, "created_by": by, "linked_by": by}
    return bool(await db.write(_ADD, {**row, "mac": encryptor.sign(PURPOSE, _signed(row))}))


async def by_name(db: Database, encryptor: Encryptor, name: str) -> User | None:
    rows = await db.read(_ONE, {"name": name})
    return _read(rows[0], encryptor) if rows else None


async def listed(db: Database, encryptor: Encryptor) -> list[User]:
    return [_read(row, encryptor) for row in await db.read(_ALL, {"most": MOST})]


async def signed_in(db: Database, name: str) -> None:
    """Note that a user has signed in."""
    await db.write(_SIGNED_IN, {"name": name})


async def change(
    db: Database,
    encryptor: Encryptor,
    name: str,
    *,
    role: str | None = None,
    password: str | None = None,
    linked_by: str | None = None,
    disabled: bool | None = None,
    keep: bytes = b"",
) -> bool:
    """Change a user, and end its sessions and links, but for the one with the key `keep`. `linked_by` makes a
    new link, which takes the password away. False: there is no such user, or the row is not ours.
    """
    async with db.transaction() as tx:
        rows = await run(tx, _LOCK, {"name": name})
        before = _read(rows[0], encryptor) if rows else None
        if before is None or not before.authentic:
            return False
        row = {
            "name": name,
            "role": role or before.role,
            "password": None if linked_by is not None else password or before.password,
            "created_by": before.created_by,
            "linked_by": linked_by or before.linked_by,
            "disabled": before.disabled_at is not None if disabled is None else disabled,
        }
        await run(tx, _SET, {**row, "mac": encryptor.sign(PURPOSE, _signed(row))})
        await run(tx, _END, {"name": name, "but": keep})
    return True


UNKNOWN: Final = ""
"""Stands among `makers` for one who is not known: the link was made before schema 0024."""


async def makers(db: Database, encryptor: Encryptor, name: str) -> set[str]:
    """Return the actors who could have chosen the password of a user: who made its last link, who made the
    last link of that one, and so on; `UNKNOWN` where a link does not say.
    """
    found: set[str] = set()
    while (user := await by_name(db, encryptor, name)) is not None:
        maker = UNKNOWN if user.linked_by is None else user.linked_by
        if maker in found:
            break
        found.add(maker)
        name = maker.removeprefix(ACTOR)
    return found


def _signed(row: Mapping[str, object]) -> bytes:
    # Rows from before schema 0024 do not say who made the last link.
    made = () if row["linked_by"] is None else (row["created_by"], row["linked_by"])
    return msgspec.json.encode((row["name"], row["role"], row["password"], row["disabled"], *made))


def _read(row: Row[Any], encryptor: Encryptor) -> User:
    said = _signed({**row._asdict(), "disabled": row.disabled_at is not None})
    return record(User, row, authentic=row.role in ROLES and encryptor.signed(PURPOSE, said, row.mac))
