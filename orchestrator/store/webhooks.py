"""Merchants' endpoints of events, webhooks and Celery tasks: configuration, status, and circuit.

A secret decrypts only together with its endpoint's id, merchant and target, so that write access to the
database sends nothing signed, and no login, elsewhere. Whether an endpoint is served is decided here and by
Postgres's clock; a circuit is open for all deliverers at once. A deletion does not disturb a deliverer: a
deleted endpoint is gone for its merchant at once, and its rows are removed in lists.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import text

from orchestrator.domain.ids import FIRST, uuid7
from orchestrator.errors import OrchestratorError
from orchestrator.store import deliveries
from orchestrator.store.columns import record
from orchestrator.store.database import run
from orchestrator.store.notifications import notify
from orchestrator.text import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor
    from orchestrator.domain.events import Content
    from orchestrator.store.database import Database
    from orchestrator.store.readiness import Process

MOST_WEBHOOKS: Final = 50
"""Of one merchant."""
PAUSE_AFTER: Final = 5 * 86_400.0
"""Seconds for which an endpoint may only fail before it is paused."""
OVERDUE: Final = 600.0
"""Seconds for which an event may wait for its delivery before readiness and `doctor` say so."""
COUNTED: Final = 10_000
"""Unsent streams of an endpoint that are counted at the most."""
CHANGED: Final = "*"
"""The payload that deliverers receive when an endpoint has changed."""

PauseReason = Literal["asked", "failing", "gone"]
Status = Literal["active", "paused", "off"]
Kind = Literal["webhook", "celery"]

_COLUMNS: Final = """e.id, e.merchant_id, e.kind, e.url, e.task, e.queue, e.description, e.kinds, e.content, e.secret AS encrypted,
    CASE WHEN e.previous_until > clock() THEN e.previous_secret END AS previous,
    CASE WHEN e.previous_until > clock() THEN e.previous_until END AS previous_until, e.paused_at, e.pause_reason, e.failing_since,
    e.delivered_at, e.open_until, e.opened, e.created_at,
    coalesce(extract(epoch FROM clock() - e.failing_since), 0)::float8 AS failing_for,
    coalesce(extract(epoch FROM e.open_until - clock()), 0)::float8 AS open_for"""
_WAITING: Final = f"""
    (SELECT count(*) FROM (SELECT FROM delivery_streams s WHERE s.endpoint_id = e.id LIMIT {COUNTED}) s) AS waiting,
    (SELECT min(s.due_at) FROM delivery_streams s WHERE s.endpoint_id = e.id AND s.lease IS NULL AND s.due_at <= clock()) AS waiting_since"""  # noqa: S608 - made of our own constants
_NOT_COUNTED: Final = "0 AS waiting, NULL::timestamptz AS waiting_since"
_COUNT = text("""
    SELECT count(*) AS number FROM webhook_endpoints WHERE merchant_id = :merchant_id AND deleted_at IS NULL
""")
_MERCHANT = text("SELECT id FROM merchants WHERE id = :merchant_id FOR NO KEY UPDATE")
_ADD = text(f"""
    INSERT INTO webhook_endpoints AS e (id, merchant_id, kind, url, task, queue, description, kinds, content, secret)
    VALUES (:id, :merchant_id, :kind, :url, :task, :queue, :description, CAST(:kinds AS text[]), :content, :secret)
    RETURNING {_COLUMNS}, {_NOT_COUNTED}
""")  # noqa: S608 - made of our own constants, as below
_ONE = text(f"""
    SELECT {_COLUMNS}, {_WAITING} FROM webhook_endpoints e
     WHERE e.id = :id AND e.merchant_id = :merchant_id AND e.deleted_at IS NULL
""")  # noqa: S608 - made of our own constants
_LOCK = text(f"""
    SELECT {_COLUMNS}, {_NOT_COUNTED} FROM webhook_endpoints e
     WHERE e.id = :id AND e.merchant_id = :merchant_id AND e.deleted_at IS NULL FOR NO KEY UPDATE
""")  # noqa: S608 - made of our own constants
_PAGE = text(f"""
    SELECT {_COLUMNS}, {_WAITING} FROM webhook_endpoints e
     WHERE e.merchant_id = :merchant_id AND e.deleted_at IS NULL AND e.id > :after
     ORDER BY e.id LIMIT :most
""")  # noqa: S608 - made of our own constants
_SERVED = text(f"""
    SELECT {_COLUMNS}, {_NOT_COUNTED} FROM webhook_endpoints e
      JOIN merchants m ON m.id = e.merchant_id AND m.disabled_at IS NULL
     WHERE e.deleted_at IS NULL
""")  # noqa: S608 - made of our own constants
_SET = text("""
    UPDATE webhook_endpoints SET url = :url, task = :task, queue = :queue, description = :description, kinds = CAST(:kinds AS text[]), content = :content,
           secret = :encrypted, previous_secret = :previous,
           opened = CASE WHEN :moved THEN 0 ELSE opened END, open_until = CASE WHEN :moved THEN NULL ELSE open_until END,
           failing_since = CASE WHEN :moved THEN NULL ELSE failing_since END,
           resumed_at = CASE WHEN :moved THEN clock() ELSE resumed_at END
     WHERE id = :id
""")
_ROTATE = text("""
    UPDATE webhook_endpoints SET previous_secret = secret, previous_until = clock() + make_interval(secs => :seconds), secret = :secret
     WHERE id = :id
""")
_PAUSE = text("""
    UPDATE webhook_endpoints SET paused_at = coalesce(paused_at, clock()), pause_reason = :reason
     WHERE id = :id AND deleted_at IS NULL AND (pause_reason IS NULL OR pause_reason = 'asked' AND :reason = 'gone')
       AND (CAST(:url AS text) IS NULL OR url = :url)
       AND (:reason <> 'failing' OR failing_since <= clock() - make_interval(secs => :after))
    RETURNING merchant_id
""")
_RESUME = text("""
    UPDATE webhook_endpoints SET paused_at = NULL, pause_reason = NULL, failing_since = NULL, open_until = NULL, opened = 0, resumed_at = clock()
     WHERE id = :id AND merchant_id = :merchant_id AND deleted_at IS NULL RETURNING id
""")
_DELETE = text("""
    UPDATE webhook_endpoints SET deleted_at = clock() WHERE id = :id AND merchant_id = :merchant_id AND deleted_at IS NULL RETURNING id
""")
_FAILED = text("""
    UPDATE webhook_endpoints SET failing_since = clock() WHERE id = :id AND failing_since IS NULL
""")
_DELIVERED = text("""
    UPDATE webhook_endpoints SET failing_since = NULL, delivered_at = clock(),
           opened = CASE WHEN :back THEN 0 ELSE opened END, open_until = CASE WHEN :back THEN NULL ELSE open_until END WHERE id = :id
""")
_OPEN = text("""
    UPDATE webhook_endpoints
       SET opened = :opened, open_until = clock() + make_interval(secs => :seconds), failing_since = coalesce(failing_since, clock())
     WHERE id = :id AND url = :url AND opened <= :opened
""")
_HOLD = text("""
    UPDATE webhook_endpoints SET open_until = greatest(open_until, clock() + make_interval(secs => :seconds))
     WHERE id = :id AND url = :url
""")
_PROBE = text("""
    WITH free AS MATERIALIZED (
        SELECT e.id FROM webhook_endpoints e
         WHERE e.id = ANY(CAST(:ids AS uuid[])) AND e.opened > 0 AND e.open_until <= clock() AND e.paused_at IS NULL AND e.deleted_at IS NULL
           AND EXISTS (SELECT FROM delivery_streams s WHERE s.endpoint_id = e.id AND s.due_at <= clock() AND s.purpose <> 'test')
         ORDER BY e.id FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE webhook_endpoints SET open_until = clock() + make_interval(secs => :seconds) WHERE id = ANY(ARRAY(SELECT id FROM free))
    RETURNING id
""")
_RELEASE_PROBE = text("""
    UPDATE webhook_endpoints SET open_until = clock() WHERE id = :id AND opened > 0
""")
_TROUBLES = text(f"""
    SELECT e.id, e.pause_reason, m.name AS merchant,
           coalesce(extract(epoch FROM clock() - d.due_at), 0)::float8 AS overdue
      FROM webhook_endpoints e JOIN merchants m ON m.id = e.merchant_id AND m.disabled_at IS NULL
      LEFT JOIN LATERAL (SELECT s.due_at FROM delivery_streams s WHERE s.endpoint_id = e.id AND s.purpose <> 'test'
                          ORDER BY s.due_at LIMIT 1) d ON true
     WHERE e.deleted_at IS NULL AND (e.pause_reason IN ('failing', 'gone')
           OR e.paused_at IS NULL AND d.due_at < clock() - make_interval(secs => {OVERDUE}))
     ORDER BY e.id LIMIT 20
""")  # noqa: S608 - made of our own constants
_FAILING = text("""
    SELECT e.id, m.name AS merchant, extract(epoch FROM clock() - e.failing_since)::float8 AS seconds
      FROM webhook_endpoints e JOIN merchants m ON m.id = e.merchant_id AND m.disabled_at IS NULL
     WHERE e.deleted_at IS NULL AND e.paused_at IS NULL AND e.failing_since < clock() - interval '1 minute'
     ORDER BY e.failing_since LIMIT 20
""")
_ANY = text("SELECT id FROM webhook_endpoints WHERE deleted_at IS NULL LIMIT 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An endpoint as it is stored; durations are in seconds by Postgres's clock when it was read."""

    id: UUID
    merchant_id: int
    kind: Kind
    url: str = field(repr=False)
    """Of a Celery task the broker's, without a login; empty: our own broker."""
    task: str | None
    queue: str | None
    description: str
    kinds: tuple[str, ...] | None
    content: Content
    encrypted: bytes = field(repr=False)
    previous: bytes | None = field(repr=False)
    """The secret before, while it signs too."""
    previous_until: datetime | None
    paused_at: datetime | None
    pause_reason: PauseReason | None
    failing_since: datetime | None
    failing_for: float
    delivered_at: datetime | None
    open_until: datetime | None
    open_for: float
    opened: int
    created_at: datetime
    waiting: int
    """Checkouts of which something is unsent, `COUNTED` at the most; 0 where it was not asked for."""
    waiting_since: datetime | None

    @property
    def status(self) -> Status:
        if self.pause_reason is None:
            return "active"
        return "off" if self.pause_reason == "gone" else "paused"

    @property
    def target(self) -> str:
        """Where its events go: what its secret is bound to."""
        return target(self.url, self.task, self.queue)

    def secrets(self, encryptor: Encryptor) -> tuple[bytes, ...]:
        """Decrypt what signs, the newest first (of a task the broker's URL). Raises `EncryptionError`."""
        purpose = secret_purpose(self.id, self.merchant_id, self.target)
        return tuple(
            encryptor.decrypt(encrypted, purpose=purpose)
            for encrypted in (self.encrypted, self.previous)
            if encrypted is not None
        )


def target(url: str, task: str | None, queue: str | None) -> str:
    """Return where the events of an endpoint go, as one text; names of tasks and queues have no slash."""
    return url if task is None else f"celery/{task}/{queue}/{url}"


def secret_purpose(webhook: UUID, merchant_id: int, where: str) -> str:
    """Return what the secret of an endpoint is bound to; `where`: its target."""
    return f"webhook-secret/{webhook}/{merchant_id}/{where}"


class TooManyWebhooks(OrchestratorError):  # noqa: N818 - named for the fact
    """A merchant has as many endpoints as it may."""

    def __init__(self) -> None:
        super().__init__(f"a merchant has at most {MOST_WEBHOOKS} webhooks: delete one that is not used")


def _read(row: Row[Any]) -> Webhook:
    return record(Webhook, row, kinds=None if row.kinds is None else tuple(row.kinds))


# ── What merchants ask for ────────────────────────────────────────────────────────────────────────────────


async def add(  # noqa: PLR0913 - what an endpoint is made of
    db: Database,
    encryptor: Encryptor,
    *,
    merchant_id: int,
    url: str,
    description: str,
    kinds: Collection[str] | None,
    content: Content,
    secret: bytes,
    task: str | None = None,
    queue: str | None = None,
) -> Webhook:
    """Add an endpoint, which is served from the next event on. Raises `TooManyWebhooks`. With `task` and
    `queue` a Celery task: `secret` is the broker's URL with its login, `url` the same without it; empty for
    our own broker.
    """
    new = uuid7()
    purpose = secret_purpose(new, merchant_id, target(url, task, queue))
    row = {
        "id": new,
        "merchant_id": merchant_id,
        "kind": "webhook" if task is None else "celery",
        "url": url,
        "task": task,
        "queue": queue,
        "description": description,
        "kinds": None if kinds is None else sorted(kinds),
        "content": content,
        "secret": encryptor.encrypt(secret, purpose=purpose),
    }
    async with db.transaction() as tx:
        await run(tx, _MERCHANT, row)
        (count,) = await run(tx, _COUNT, row)
        if count.number >= MOST_WEBHOOKS:
            raise TooManyWebhooks
        (made,) = await run(tx, _ADD, row)
        await notify(tx, CHANGED)
    return _read(made)


async def by_id(db: Database, webhook: UUID, *, merchant_id: int) -> Webhook | None:
    """Return an endpoint of a merchant, with what waits for it."""
    rows = await db.read(_ONE, {"id": webhook, "merchant_id": merchant_id})
    return _read(rows[0]) if rows else None


async def page(db: Database, *, merchant_id: int, after: UUID | None, limit: int) -> list[Webhook]:
    """Return a merchant's endpoints in the order in which they were made."""
    rows = await db.read(_PAGE, {"merchant_id": merchant_id, "after": after or FIRST, "most": limit})
    return [_read(row) for row in rows]


async def change(
    db: Database,
    encryptor: Encryptor,
    webhook: UUID,
    *,
    merchant_id: int,
    changes: Mapping[str, Any],
    secret: bytes | None = None,
    check: Callable[[Webhook], None] | None = None,
) -> Webhook | None:
    """Change some fields of an endpoint; None if the merchant has none of this id. `secret`: another one,
    which comes with another broker. `check` is called with the endpoint as it would be, under its lock, and
    raises where that must not be: two changes at once may each be right, and wrong together.
    """
    async with db.transaction() as tx:
        rows = await run(tx, _LOCK, {"id": webhook, "merchant_id": merchant_id})
        if not rows:
            return None
        before = _read(rows[0])
        after = replace(before, **changes)
        if check is not None:
            check(after)
        moved = after.target != before.target or secret is not None
        if moved:
            # The same secrets, bound to the new target.
            purpose = secret_purpose(webhook, merchant_id, after.target)
            held = before.secrets(encryptor) if secret is None else (secret,)
            encrypted = [encryptor.encrypt(each, purpose=purpose) for each in held]
            after = replace(after, encrypted=encrypted[0], previous=encrypted[1] if encrypted[1:] else None)
        kinds = None if after.kinds is None else sorted(after.kinds)
        await run(tx, _SET, {**asdict(after), "kinds": kinds, "moved": moved})
        if moved:
            # Failures at the previous target say nothing about the new one.
            await deliveries.retry_now(tx, webhook)
        await notify(tx, CHANGED)
    return await by_id(db, webhook, merchant_id=merchant_id)


async def rotate(
    db: Database, encryptor: Encryptor, webhook: UUID, *, merchant_id: int, secret: bytes, overlap: float
) -> Webhook | None:
    """Give an endpoint a new secret; the previous secret signs beside it for `overlap` seconds."""
    async with db.transaction() as tx:
        rows = await run(tx, _LOCK, {"id": webhook, "merchant_id": merchant_id})
        if not rows:
            return None
        purpose = secret_purpose(webhook, merchant_id, _read(rows[0]).target)
        encrypted = encryptor.encrypt(secret, purpose=purpose)
        await run(tx, _ROTATE, {"id": webhook, "secret": encrypted, "seconds": overlap})
        await notify(tx, CHANGED)
    return await by_id(db, webhook, merchant_id=merchant_id)


async def pause(db: Database, webhook: UUID, reason: PauseReason, *, url: str | None = None) -> bool:
    """Send nothing to an endpoint any more; what comes for it waits, unless it is gone. Return whether it was
    not paused before. `failing`: only if it has failed for as long as that takes; `url`: only if it is its.
    """
    async with db.transaction() as tx:
        rows = await run(tx, _PAUSE, {"id": webhook, "reason": reason, "after": PAUSE_AFTER, "url": url})
        await notify(tx, CHANGED)
    return bool(rows)


async def resume(db: Database, webhook: UUID, *, merchant_id: int) -> bool:
    """Serve an endpoint again, from the first event on that it did not get."""
    async with db.transaction() as tx:
        if not await run(tx, _RESUME, {"id": webhook, "merchant_id": merchant_id}):
            return False
        await deliveries.retry_now(tx, webhook)
        await notify(tx, CHANGED)
    return True


async def delete(db: Database, webhook: UUID, *, merchant_id: int) -> bool:
    """Delete an endpoint; what was to be sent to it is not."""
    async with db.transaction() as tx:
        rows = await run(tx, _DELETE, {"id": webhook, "merchant_id": merchant_id})
        await notify(tx, CHANGED)
    return bool(rows)


# ── How they fare ─────────────────────────────────────────────────────────────────────────────────────────


async def served(db: Database) -> list[Webhook]:
    """Return every endpoint of enabled merchants, paused ones too."""
    return [_read(row) for row in await db.read(_SERVED)]


async def exist(db: Database) -> bool:
    """Say whether there is any endpoint, paused ones too."""
    return bool(await db.read(_ANY))


async def failed(db: Database, webhook: UUID) -> None:
    """Note the first failure since the last delivery."""
    await db.write(_FAILED, {"id": webhook})


async def delivered(db: Database, webhook: UUID, *, back: bool) -> None:
    """Note a delivery; `back`: it was the probe of an open circuit, which closes, and what failed meanwhile
    is tried again at once. No other delivery ends what the endpoint asked for with Retry-After.
    """
    async with db.transaction() as tx:
        await run(tx, _DELIVERED, {"id": webhook, "back": back})
        if back:
            await deliveries.retry_now(tx, webhook)


async def open_circuit(db: Database, webhook: Webhook, *, opened: int, seconds: float) -> None:
    """Send nothing to an endpoint for so long, and then one probe; `opened`: how often this has happened in a
    row. Nothing is written once the endpoint has another URL.
    """
    await db.write(_OPEN, {"id": webhook.id, "url": webhook.url, "opened": opened, "seconds": seconds})


async def hold(db: Database, webhook: Webhook, *, seconds: float) -> None:
    """Send nothing to an endpoint for so long, which is what it asked for at this URL."""
    await db.write(_HOLD, {"id": webhook.id, "url": webhook.url, "seconds": seconds})


async def claim_probes(db: Database, endpoints: Collection[UUID], *, seconds: float) -> set[UUID]:
    """Take the right to send one probe to each of these endpoints whose circuit was open and for which an
    event is due; no other deliverer gets it for so long. Return which.
    """
    return {row.id for row in await db.write(_PROBE, {"ids": list(endpoints), "seconds": seconds})}


async def release_probe(db: Database, webhook: UUID) -> None:
    """Give back an unused right to send a probe: another probe may be sent at once."""
    await db.write(_RELEASE_PROBE, {"id": webhook})


async def troubles(db: Database, processes: Sequence[Process], *, merchants: bool = False) -> list[str]:
    """Return what is wrong with deliveries, a sentence each; `merchants`: with the names of merchants."""
    found = []
    if await exist(db) and not any(process.kind == "deliverer" and process.alive for process in processes):
        found.append("no deliverer is alive: events for webhooks are stored, and wait")
    for row in await db.read(_TROUBLES):
        name = f"webhook {row.id}{f' of merchant {row.merchant}' if merchants else ''}"
        match row.pause_reason:
            case "failing":
                found.append(f"{name} has failed for days and is paused: its events wait until it is resumed")
            case "gone":
                found.append(f"{name} has answered 410 and is off: resume or delete it")
            case _:
                found.append(f"{name} has waited for {duration(row.overdue)} for an event that is due")
    return found


async def failing(db: Database) -> list[str]:
    """Return which endpoints have failed for a minute, a sentence each; the installation may be well."""
    return [
        f"webhook {row.id} of merchant {row.merchant} has failed for {duration(row.seconds)}, and its events wait"
        for row in await db.read(_FAILING)
    ]
