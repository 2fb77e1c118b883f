"""The answers of calls with an Idempotency-Key, for a day: the same request gets the same answer.

A request claims its key before it does anything. A claim ends with the answer, with a refusal, which frees
the key, or after a minute, when its process has died; then the next request with this key does it again.
Answers are encrypted. What is a day old is deleted by the requests that come after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import uuid4

from sqlalchemy import text

from orchestrator.crypto import EncryptionError
from orchestrator.store.inbox.errors import AnswerUnreadable, KeyReused

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.store.database import Database

KEPT: Final = 86_400
"""Seconds for which an answer is kept."""
CLAIM: Final = 60
"""Seconds after which a request without an answer counts as dead: longer than any request takes."""

_FORGET: Final = text(f"""
    DELETE FROM idempotent_answers WHERE (merchant_id, key) IN (
        SELECT merchant_id, key FROM idempotent_answers WHERE created_at < clock() - interval '{KEPT} seconds'
         ORDER BY created_at LIMIT 100 FOR UPDATE SKIP LOCKED)
""")  # noqa: S608 - a number of ours
_CLAIM: Final = text(f"""
    INSERT INTO idempotent_answers AS k (merchant_id, key, fingerprint, claim, claimed_until)
    VALUES (:merchant_id, :key, :fingerprint, :claim, clock() + interval '{CLAIM} seconds')
    ON CONFLICT (merchant_id, key) DO UPDATE
       SET claim = excluded.claim, claimed_until = excluded.claimed_until
     WHERE k.answer IS NULL AND k.claimed_until < clock() AND k.fingerprint = excluded.fingerprint
    RETURNING claim
""")  # noqa: S608 - as above
_READ: Final = text("""
    SELECT fingerprint, answer FROM idempotent_answers WHERE merchant_id = :merchant_id AND key = :key
""")
_KEEP: Final = text("""
    UPDATE idempotent_answers SET answer = :answer, claim = NULL, claimed_until = NULL
     WHERE merchant_id = :merchant_id AND key = :key AND claim = :claim
""")
_FREE: Final = text("""
    DELETE FROM idempotent_answers WHERE merchant_id = :merchant_id AND key = :key AND claim = :claim
""")


async def claim(
    db: Database, encryptor: Encryptor, *, merchant_id: int, key: str, fingerprint: bytes
) -> UUID | bytes | None:
    """Claim a key: return the claim, or the answer that was given under it; None: another request works on
    it. Raises `KeyReused` and `AnswerUnreadable`.
    """
    await db.write(_FORGET, {})
    mine = uuid4()
    named = {"merchant_id": merchant_id, "key": key}
    if await db.write(_CLAIM, {**named, "fingerprint": fingerprint, "claim": mine}):
        return mine
    rows = await db.read(_READ, named)
    if not rows:
        return None  # it was freed a moment ago: the next try claims it
    if bytes(rows[0].fingerprint) != fingerprint:
        raise KeyReused(key)
    answer = rows[0].answer
    if answer is None:
        return None
    try:
        return encryptor.decrypt(bytes(answer), purpose=purpose(merchant_id, key))
    except EncryptionError as error:
        raise AnswerUnreadable(key) from error


async def keep(
    db: Database, encryptor: Encryptor, mine: UUID, answer: bytes, *, merchant_id: int, key: str
) -> None:
    encrypted = encryptor.encrypt(answer, purpose=purpose(merchant_id, key))
    await db.write(_KEEP, {"merchant_id": merchant_id, "key": key, "claim": mine, "answer": encrypted})


async def free(db: Database, mine: UUID, *, merchant_id: int, key: str) -> None:
    """Give a key back: nothing was done under it."""
    await db.write(_FREE, {"merchant_id": merchant_id, "key": key, "claim": mine})


def purpose(merchant_id: int, key: str) -> str:
    """Return what an answer is bound to."""
    return f"idempotent-answer/{merchant_id}/{key}"
