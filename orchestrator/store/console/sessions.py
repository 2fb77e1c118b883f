"""Sessions of persons in the console, and links that begin one.

A browser has a random value, the table its digest. A row opens nothing without its MAC, so write access to
the database makes no session. A link is used once.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sqlalchemy import text

from orchestrator.store.database import run

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

LONGEST_SESSION: Final = 12 * 3600.0
"""Seconds; a session ends with the token that it was opened with, where that is earlier."""
LONGEST_LINK: Final = 3600.0
PURPOSE: Final = "console-session"
MOST_LISTED: Final = 100

_ADD = text("""
    INSERT INTO console_sessions (id, kind, actor, scopes, mac, expires_at)
    VALUES (:id, :kind, :actor, :scopes, :mac, :expires_at)
""")
_UNTIL = text("SELECT date_trunc('seconds', clock() + make_interval(secs => :seconds)) AS expires_at")
_FORGET = text("""
    DELETE FROM console_sessions WHERE id = ANY(ARRAY(
        SELECT id FROM console_sessions WHERE expires_at < clock() ORDER BY expires_at LIMIT 1000))
""")
_FIND = text("""
    SELECT id, kind, actor, scopes, mac, created_at, expires_at FROM console_sessions
     WHERE id = :id AND kind = 'session' AND expires_at > clock()
""")
_USE = text("""
    DELETE FROM console_sessions WHERE id = :id AND kind = 'link' AND expires_at > clock()
    RETURNING id, kind, actor, scopes, mac, created_at, expires_at
""")
_END = text("DELETE FROM console_sessions WHERE id = :id")
_LIST = text("""
    SELECT id, kind, actor, scopes, mac, created_at, expires_at FROM console_sessions
     WHERE expires_at > clock() ORDER BY expires_at DESC LIMIT :most
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One person at one browser. `key` identifies the row and opens nothing."""

    key: bytes
    actor: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime

    def may(self, scope: str) -> bool:
        """Whether the person may do what needs this scope."""
        return scope in self.scopes


def digest(value: str) -> bytes:
    """Return the key of the row of a value that a browser has."""
    return hashlib.sha256(value.encode()).digest()


async def begin(
    db: Database,
    encryptor: Encryptor,
    *,
    actor: str,
    scopes: Iterable[str],
    seconds: float,
    link: bool = False,
) -> str:
    """Store a session (or a link) that ends in so many seconds at the latest; return what the browser
    gets.
    """
    value, kind = secrets.token_urlsafe(32), "link" if link else "session"
    key, told = digest(value), " ".join(sorted(scopes))
    most = LONGEST_LINK if link else LONGEST_SESSION
    (until,) = await db.read(_UNTIL, {"seconds": max(min(seconds, most), 1.0)})
    row = {
        "id": key,
        "kind": kind,
        "actor": actor,
        "scopes": told,
        "mac": encryptor.sign(PURPOSE, _signed(key, kind, actor, told, until.expires_at.timestamp())),
        "expires_at": until.expires_at,
    }
    async with db.transaction() as tx:
        await run(tx, _FORGET, {})
        await run(tx, _ADD, row)
    return value


async def find(db: Database, encryptor: Encryptor, value: str) -> Session | None:
    """Return the session of a browser; None where it has ended, or is none of ours."""
    rows = await db.read(_FIND, {"id": digest(value)})
    return _read(rows[0], encryptor) if rows else None


async def use_link(db: Database, encryptor: Encryptor, value: str) -> Session | None:
    """Take a link, which is used with that; None where it was used before or has ended."""
    rows = await db.write(_USE, {"id": digest(value)})
    return _read(rows[0], encryptor) if rows else None


async def end(db: Database, key: bytes) -> None:
    """End a session."""
    await db.write(_END, {"id": key})


async def listed(db: Database, encryptor: Encryptor) -> list[Session]:
    """Return sessions that have not ended, those that end last first."""
    found = [
        _read(row, encryptor) for row in await db.read(_LIST, {"most": MOST_LISTED}) if row.kind == "session"
    ]
    return [session for session in found if session is not None]


def _read(row: Row[Any], encryptor: Encryptor) -> Session | None:
    key = bytes(row.id)
    if not encryptor.signed(
        PURPOSE, _signed(key, row.kind, row.actor, row.scopes, row.expires_at.timestamp()), bytes(row.mac)
    ):
        return None
    return Session(
        key=key,
        actor=row.actor,
        scopes=frozenset(row.scopes.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _signed(*told: object) -> bytes:
    return msgspec.json.encode([value.hex() if isinstance(value, bytes) else value for value in told])
