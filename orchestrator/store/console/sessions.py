"""Sessions of people in the console, and links that begin one.

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

from orchestrator.store.columns import record
from orchestrator.store.database import run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

LONGEST_SESSION: Final = 12 * 3600.0
"""Seconds; a session ends with the token that it was opened with, where that is earlier."""
LONGEST_LINK: Final = 3600.0
PURPOSE: Final = "console-session"

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
    SELECT * FROM console_sessions WHERE id = :id AND kind = 'session' AND expires_at > clock()
""")
_USER = text("""
    SELECT u.name FROM console_sessions s JOIN console_users u ON u.name = s.actor
     WHERE s.id = :id AND s.kind = 'link' FOR SHARE OF u
""")
_USE = text("""
    DELETE FROM console_sessions WHERE id = :id AND kind = 'link' AND expires_at > clock()
    RETURNING *
""")
_END = text("DELETE FROM console_sessions WHERE id = :id")
_END_ALL = text("DELETE FROM console_sessions WHERE actor = :actor RETURNING id")
# Links and sessions that have ended are left out afterwards: by the order of the index alone no more rows are
# read than a page has.
_LIST: Final = """
    SELECT *, expires_at > clock() AS lasts FROM console_sessions
     WHERE {} ORDER BY actor, id LIMIT :most
"""
_ALL = text(_LIST.format("(actor, id) > (:actor, :after)"))
_OWN = text(_LIST.format("actor = :actor AND id > :after"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One person at one browser. `key` identifies the row and opens nothing."""

    key: bytes
    actor: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime

    def may(self, scope: str) -> bool:
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
    """Store a session (or a link) that ends in so many seconds at most; return what the browser gets."""
    kind, most = ("link", LONGEST_LINK) if link else ("session", LONGEST_SESSION)
    lasts = max(min(seconds, most), 1.0)
    async with db.transaction() as tx:
        await run(tx, _FORGET, {})
        return await _add(tx, encryptor, kind, actor=actor, scopes=scopes, seconds=lasts)


async def find(db: Database, encryptor: Encryptor, value: str) -> Session | None:
    """Return the session of a browser; None where it has ended, or is none of ours."""
    return await by_key(db, encryptor, digest(value))


async def use_link(db: Database, encryptor: Encryptor, value: str, scopes: Iterable[str]) -> str | None:
    """Use a link up, and return what the browser gets of its session, with these scopes beside those of the
    link; None where it was used before or has ended. A change of the user waits for the session, and ends it.
    """
    key = digest(value)
    async with db.transaction() as tx:
        await run(tx, _USER, {"id": key})
        used = await run(tx, _USE, {"id": key})
        link = _read(used[0], encryptor) if used else None
        if link is None:
            return None
        both = link.scopes | set(scopes)
        return await _add(tx, encryptor, "session", actor=link.actor, scopes=both, seconds=LONGEST_SESSION)


async def end(db: Database, key: bytes) -> None:
    await db.write(_END, {"id": key})


async def end_all(db: Database, actor: str) -> int:
    """End all sessions and links of a name; return how many there were."""
    return len(await db.write(_END_ALL, {"actor": actor}))


async def by_key(db: Database, encryptor: Encryptor, key: bytes) -> Session | None:
    """Return a session that has not ended."""
    rows = await db.read(_FIND, {"id": key})
    return _read(rows[0], encryptor) if rows else None


async def listed(
    db: Database, encryptor: Encryptor, *, actor: str, after: bytes, everyone: bool, limit: int
) -> tuple[list[Session], tuple[str, bytes] | None]:
    """Return sessions that have not ended, of a name or of everyone, after a name and a key; and the name and
    the key from which the next page goes on, None where this is the last.
    """
    rows = await db.read(_ALL if everyone else _OWN, {"actor": actor, "after": after, "most": limit})
    found = [_read(row, encryptor) for row in rows if row.kind == "session" and row.lasts]
    edge = (rows[-1].actor, rows[-1].id) if len(rows) == limit else None
    return [session for session in found if session is not None], edge


async def _add(
    tx: AsyncConnection, encryptor: Encryptor, kind: str, *, actor: str, scopes: Iterable[str], seconds: float
) -> str:
    value = secrets.token_urlsafe(32)
    (until,) = await run(tx, _UNTIL, {"seconds": seconds})
    row = {
        "id": digest(value),
        "kind": kind,
        "actor": actor,
        "scopes": " ".join(sorted(scopes)),
        "expires_at": until.expires_at,
    }
    await run(tx, _ADD, {**row, "mac": encryptor.sign(PURPOSE, _signed(row))})
    return value


def _read(row: Row[Any], encryptor: Encryptor) -> Session | None:
    if not encryptor.signed(PURPOSE, _signed(row._asdict()), row.mac):
        return None
    return record(Session, row, key=row.id, scopes=frozenset(row.scopes.split()))


def _signed(row: Mapping[str, Any]) -> bytes:
    told = row["id"].hex(), row["kind"], row["actor"], row["scopes"], row["expires_at"].timestamp()
    return msgspec.json.encode(told)
