"""The work that every design is measured on: N orders from `received` to `awaiting_payment`, and the peers'
tables for it.

Three calls to the gateway (authenticate, session, payment methods) and four moves, each move with its row in
the audit trail, all of it durable. Here are the order as a shop sends it, the tables, and the statements of
those peers that write SQL themselves; the product has its own tables and writes more (events, due times,
leases, a chained audit, everything personal encrypted).
"""

from __future__ import annotations

import base64
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

ROOT: Final = Path(__file__).resolve().parents[2]
WAY: Final = ("received", "authenticated", "session_created", "methods_fetched", "awaiting_payment")
MOVES: Final = len(WAY) - 1
USERNAME: Final = "bench"
PASSWORD: Final = "bench"
BASIC: Final = "Basic " + base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
API: Final = "/checkout/v1/api"
CHUNK: Final = 100
"""Orders that a peer's intake stores in one transaction: more than any shop sends, and in its favour."""

TABLES: Final = """
    CREATE TABLE orders (
        id uuid PRIMARY KEY, order_ref text NOT NULL UNIQUE, state text NOT NULL, version int NOT NULL, document jsonb NOT NULL,
        token text, session_id text, methods jsonb,
        created_at timestamptz NOT NULL DEFAULT clock_timestamp(), updated_at timestamptz NOT NULL DEFAULT clock_timestamp());
    CREATE TABLE audit (
        order_id uuid, sequence int, at timestamptz NOT NULL DEFAULT clock_timestamp(), action text NOT NULL,
        from_state text, to_state text NOT NULL, evidence jsonb NOT NULL, PRIMARY KEY (order_id, sequence));
"""

# A step's whole transaction in one statement, and so in one round trip: the guard on the state, the move, its
# audit row.
MOVE: Final = """
    WITH moved AS (
        UPDATE orders SET state = %(to)s, version = version + 1, token = coalesce(%(token)s, token),
               session_id = coalesce(%(session_id)s, session_id), methods = coalesce(%(methods)s::jsonb, methods),
               updated_at = clock_timestamp()
         WHERE id = %(id)s AND state = %(from)s RETURNING id, version)
    INSERT INTO audit (order_id, sequence, action, from_state, to_state, evidence)
    SELECT id, version, 'order:moved', %(from)s, %(to)s, %(evidence)s::jsonb FROM moved
"""
TAKE: Final = """
    WITH taken AS (
        INSERT INTO orders (id, order_ref, state, version, document)
        SELECT id, ref, 'received', 1, document FROM unnest(%(ids)s::uuid[], %(refs)s::text[], %(documents)s::jsonb[]) AS i(id, ref, document)
        RETURNING id)
    INSERT INTO audit (order_id, sequence, action, to_state, evidence) SELECT id, 1, 'order:received', 'received', '{}' FROM taken
"""
FETCH: Final = "SELECT state, document, token, session_id FROM orders WHERE id = %s"

UNOFFERED: Final = """
    SELECT count(*) AS orders, count(*) FILTER (WHERE state = 'awaiting_payment') AS carried,
           extract(epoch FROM max(updated_at)) AS ended
      FROM orders WHERE order_ref LIKE %s
"""
# Every order has the row of its intake and one for each move, and the moves follow each other.
WRONG: Final = """
    SELECT count(*) FROM orders o LEFT JOIN LATERAL (
        SELECT array_agg(to_state ORDER BY sequence) AS way FROM audit a WHERE a.order_id = o.id) AS trail ON true
     WHERE order_ref LIKE %(refs)s AND (state <> 'awaiting_payment' OR way IS DISTINCT FROM %(way)s
           OR token IS NULL OR session_id IS NULL OR methods IS NULL)
"""

_INTENT: Final[dict[str, Any]] = json.loads((ROOT / "docs" / "intent.json").read_text())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a peer's processes find what they need; handed over in their environment."""

    database_url: str
    broker_url: str
    gateway_url: str

    def environment(self) -> dict[str, str]:
        names = {
            "BENCH_DATABASE_URL": self.database_url,
            "BENCH_BROKER_URL": self.broker_url,
            "BENCH_GATEWAY_URL": self.gateway_url,
        }
        return {**os.environ, **names}

    @classmethod
    def here(cls) -> Surroundings:
        return cls(*(os.environ[f"BENCH_{name}_URL"] for name in ("DATABASE", "BROKER", "GATEWAY")))


@dataclass(frozen=True, slots=True)
class Taken:
    """A chunk of new orders, as columns."""

    ids: list[UUID]
    refs: list[str]
    documents: list[str]

    def parameters(self) -> dict[str, object]:
        return {"ids": self.ids, "refs": self.refs, "documents": self.documents}


def intent(ref: str) -> dict[str, Any]:
    """Return the order as a shop sends it."""
    return {**_INTENT, "order": {**_INTENT["order"], "orderId": ref}}


def refs(mark: str, orders: int) -> list[str]:
    """Return the order numbers of one run; `mark` tells runs apart."""
    return [f"{mark}-{number}" for number in range(orders)]


def chunks(mark: str, orders: int) -> Iterator[Taken]:
    """Yield the new orders of one run."""
    names = refs(mark, orders)
    for start in range(0, orders, CHUNK):
        part = names[start : start + CHUNK]
        yield Taken([uuid4() for _ in part], part, [json.dumps(intent(ref)) for ref in part])


def session_body(order_id: object, document: dict[str, Any]) -> dict[str, Any]:
    """Return what is posted to the gateway's /session: the order, our id in it, and where it calls back."""
    here = f"http://127.0.0.1:1/callbacks/{order_id}"
    pages = {kind: {"type": "URL", "value": f"{here}/{kind}"} for kind in ("success", "failure")}
    order = {**document["order"], "transactionInfo": {"checkout": str(order_id)}}
    return {
        "order": order,
        "callbacks": {**pages, "notification": f"{here}/notification", "redirect": f"{here}/redirect"},
        "configuration": document["configuration"],
    }


def moved(order_id: object, step: int, *, evidence: str, **gained: object) -> dict[str, object]:
    """Return the parameters of `MOVE` for the move number `step`, counted from 0."""
    nothing = {"token": None, "session_id": None, "methods": None}
    return {"id": order_id, "from": WAY[step], "to": WAY[step + 1], "evidence": evidence, **nothing, **gained}


def tell_began(connection: psycopg.Connection[Any]) -> float:
    """Send the runner Postgres's clock, which a run's last moment is read from too; return this process's CPU
    seconds so far.
    """
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
    assert row is not None
    print(json.dumps({"began": float(row[0])}), flush=True)
    return time.process_time()


def tell_spent(since: float) -> None:
    """Send the runner how many CPU seconds taking the orders in has cost."""
    print(json.dumps({"spent": time.process_time() - since}), flush=True)
