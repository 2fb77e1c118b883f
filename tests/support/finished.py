"""Finished checkouts by the thousand, with the rows of a whole lifecycle: for tests and benchmarks of what
they cost.

They are written by SQL in one go; their chains are no chains, so nothing that verifies or archives belongs
near them.
"""

from __future__ import annotations

import psycopg

STEP = 100_000
FILL = (
    "DROP TABLE IF EXISTS finished",
    """
    CREATE TEMP TABLE finished AS
    SELECT n, CAST(lpad(to_hex(CAST(extract(epoch FROM now()) * 1000 AS int8) - 30000000000 + n * CAST(%(apart)s AS int8)), 12, '0') || '7'
                   || substr(md5(CAST(n AS text)), 1, 3) || '8' || substr(md5(CAST(n AS text)), 4, 15) AS uuid) AS id
      FROM generate_series(CAST(%(first)s AS int8), %(last)s) n
    """,
    """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, audit_sequence, audit_head,
                           event_sequence, correlation_id, wake)
    SELECT id, 1, 'F-' || n, (ARRAY['completed', 'expired', 'cancelled', 'failed'])[n %% 4 + 1], now(), now(), 'DKK', 13900, 6, '',
           2, 'c', 1 FROM finished
    """,
    "INSERT INTO intents SELECT id, 'f', repeat('b', 500)::bytea, 'k' FROM finished",
    "INSERT INTO sessions SELECT id, 't', now(), 's', '[]' FROM finished",
    """
    INSERT INTO audit_entries
    SELECT id, s, now() - interval '100 days', 'checkout:moved', repeat('e', 300), 'k', 'm' FROM finished, generate_series(1, 6) s
    """,
    "INSERT INTO events SELECT id, s, 1, 'checkout.ready', '{}', 'c', now(), (n - 1) * 2 + s FROM finished, generate_series(1, 2) s",
    """
    INSERT INTO callbacks (id, checkout_id, kind, grade, body, digest, handled_at)
    SELECT gen_random_uuid(), id, 'notification', 'signed', repeat('b', 300)::bytea, 'd', now() FROM finished
    """,
    """
    INSERT INTO commands (id, merchant_id, checkout_id, kind, actor, handled_at)
    SELECT gen_random_uuid(), 1, id, 'reconcile', 'x', now() FROM finished
    """,
    """
    INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, reserved,
                          captured, refunded)
    SELECT 1, 'F-' || n, id, 'F-' || n, 'accepted', 'bound', 'captured', 'captured', 'DKK', 13900, 13900, 0 FROM finished
    """,
    """
    INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state,
                                  reconciliation_identifier, cause, actor)
    SELECT gen_random_uuid(), 1, id, 'F-' || n, 'capture', 13900, 'DKK', 'succeeded', 'F-' || n, 'asked', 'x' FROM finished
    """,
    "INSERT INTO idempotency_keys SELECT 1, 'F-' || n, 'f', id FROM finished",
)
TABLES = "checkouts, intents, sessions, audit_entries, events, event_feeds, callbacks, commands, payments, money_operations, idempotency_keys"


def fill(url: str, number: int) -> None:
    """Write so many finished checkouts, their ids spread over the three hundred days before the
    last sixty.
    """
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("SET synchronous_commit = off")
        for first in range(1, number + 1, STEP):
            span = {"first": first, "last": min(first + STEP - 1, number), "apart": 25_000_000_000 // number}
            for statement in FILL:
                admin.execute(statement, span)
        admin.execute("INSERT INTO event_feeds SELECT 1, coalesce(max(position), 0) FROM events")
        admin.execute(f"VACUUM ANALYZE {TABLES}")
