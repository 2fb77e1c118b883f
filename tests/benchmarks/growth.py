"""Finished checkouts by the million, made in Postgres itself, so that what history costs the orders under way
can be measured.

Each is completed and settled: no due time, nothing open. It has what a real checkout has in the tables that
processing another checkout writes to or reads: the checkout, its intent, its session, eight audit entries,
three events, its payment; as many bytes, though nothing in them opens under any key. Callbacks are left out:
nothing of the measured way touches them.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable

PART: Final = 25_000
AT_ONCE: Final = 2

_TRAIL: Final = [
    f'"{before}","to":"{after}","trigger":"{fact}"'
    for before, after, fact in (
        ("", "received", "accepted"),
        ("received", "authenticated", "authenticated"),
        ("authenticated", "session_created", "session_opened"),
        ("session_created", "methods_fetched", "methods_listed"),
        ("methods_fetched", "awaiting_payment", "offered"),
        ("awaiting_payment", "callback_received", "callback_arrived"),
        ("callback_received", "completed", "payment_found"),
        ("completed", "completed", "watch_ended"),
    )
]

# UUIDv7: one order each 40 ms, the last of them some weeks ago; random bits that the number decides. Each is
# made once for all its rows.
_MADE: Final = """WITH f AS MATERIALIZED (
        SELECT n, m, (lpad(to_hex(%(from)s::bigint + n * 40), 12, '0') || '7' || substr(m, 1, 3) || '8' || substr(m, 4, 15))::uuid AS id,
               to_timestamp((%(from)s::bigint + n * 40) / 1000.0) AS at, decode(m || m, 'hex') AS bytes
          FROM (SELECT n, md5(n::text) AS m FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n) AS i)
"""
_STATEMENTS: Final = tuple(
    statement.replace("SELECT", f"{_MADE} SELECT", 1)
    for statement in (
        """INSERT INTO checkouts (id, merchant_id, order_ref, state, version, deadline, offered_at, ended_at, currency, amount, reserved,
                  session_count, audit_sequence, audit_head, event_sequence, correlation_id, created_at, updated_at)
           SELECT id, %(merchant)s, 'finished-' || n, 'completed', 9, at + interval '1 hour', at, at, 'DKK', 13900, 13900, 1, 8, bytes, 3,
                  m, at, at FROM f""",
        """INSERT INTO intents (checkout_id, fingerprint, body, data_key)
           SELECT id, bytes, decode(repeat(m, 44), 'hex'), decode(repeat(m, 4), 'hex') FROM f""",
        """INSERT INTO sessions (checkout_id, token, token_expires_at, session_id, methods)
           SELECT id, decode(repeat(m, 40), 'hex'), at + interval '1 hour', m,
                  jsonb_build_array(jsonb_build_object('id', m, 'type', 'CARD', 'name', 'Card', 'description', repeat('pay ', 60))) FROM f""",
        """INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
           SELECT id, sequence, at, 'checkout:moved',
                  '{"action":"checkout:moved","actor":"system:orchestrator","at":"2026-01-01T00:00:00.000000+00:00","checkout":"' || id
                  || '","correlation":"' || m || '","evidence":{"lifetime":3600},"from":' || words || ',"sequence":' || sequence || '}',
                  'finished', bytes FROM f, unnest(%(trail)s::text[]) WITH ORDINALITY AS t(words, sequence)""",
        """INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, created_at, position)
           SELECT id, i, %(merchant)s, 'checkout.completed', jsonb_build_object(
                  'orderId', 'finished-' || n, 'state', 'completed', 'currency', 'DKK', 'amount', 13900, 'reserved', 13900, 'captured', 0,
                  'refunded', 0, 'chargedBack', 0, 'facts', jsonb_build_object(
                      'transactionIds', jsonb_build_array((1000000000 + n)::text), 'late', false, 'policy', NULL, 'surcharge', 0)), m, at,
                  n * 3 + i FROM f, generate_series(1, 3) AS i""",
        """INSERT INTO payments (merchant_id, transaction_id, checkout_id, payment_id, order_ref, role, binding, status, meaning, currency,
                  reserved, captured, refunded, first_seen_at, updated_at)
           SELECT %(merchant)s, (1000000000 + n)::text, id, m, 'finished-' || n, 'accepted', 'bound', 'preauth', 'reserved', 'DKK',
                  13900, 0, 0, at, at FROM f""",
    )
)
# The trail of history is sealed: the next seal reads what is new.
_SEAL: Final = """
    INSERT INTO audit_seals (sequence, at, heads, key_id, mac) VALUES (1, clock(), '', 'finished', decode(md5(''), 'hex'))
"""
_FEED: Final = (
    "INSERT INTO event_feeds (merchant_id, last_position) SELECT 1, coalesce(max(position), 0) FROM events"
)
_WEEKS: Final = 6 * 7 * 86_400


def grow(url: str, *, finished: int, show: Callable[[str], None]) -> float:
    """Fill a migrated database with finished checkouts; return the seconds that it took."""
    began = time.monotonic()
    epoch = int((time.time() - _WEEKS) * 1000) - finished * 40
    parts = [(first, min(first + PART, finished) - 1) for first in range(0, finished, PART)]
    done = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for written in pool.map(lambda part: _write(url, *part, epoch=epoch), parts):
            done += written
            show(f"{done:,} of {finished:,} finished checkouts written")
    show("vacuuming what was written")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SEAL)
        connection.execute(_FEED)
        # What a database has that grew over years: no page left that a vacuum of the measured time would have
        # to read.
        connection.execute("VACUUM (FREEZE, ANALYZE)")
        connection.execute("CHECKPOINT")
    return time.monotonic() - began


def _write(url: str, first: int, last: int, *, epoch: int) -> int:
    parameters = {"first": first, "last": last, "from": epoch, "merchant": 1, "trail": _TRAIL}
    with psycopg.connect(url) as connection:
        # No statement waits for the disk, and foreign keys are not checked row by row.
        connection.execute("SET synchronous_commit = off; SET session_replication_role = replica")
        for statement in _STATEMENTS:
            connection.execute(statement, parameters)
    return last - first + 1
