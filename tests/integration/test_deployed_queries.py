"""The query by which KEDA chooses the number of workers, and the configuration of PgBouncer, on real
servers.
"""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import psycopg
import pytest
import yaml

from orchestrator.settings import Settings
from orchestrator.store import due_work
from tests.support.command import orchestrator
from tests.support.pooler import direct
from tests.support.postgres import LOGIN, Cluster, needs_pgbouncer, pooling

ROOT = Path(__file__).parents[2]

FILL = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, due_at, deadline, currency, amount, audit_sequence, audit_head, correlation_id)
    SELECT gen_random_uuid(), 1, 'o-' || n, 'awaiting_payment', clock() + make_interval(secs => %s), clock(), 'DKK', 1, 1, '', ''
      FROM generate_series(CAST(%s AS int), CAST(%s AS int)) n
"""


def test_the_number_of_workers_follows_from_what_is_overdue_and_from_its_age(database_url):
    (scaled,) = yaml.safe_load_all((ROOT / "deploy/kubernetes/keda/scaled-object.yaml").read_text())
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    grace = Settings.model_fields["hint_grace"].default
    assert query.split() == f"SELECT workers FROM ({due_work.scale(f'{grace:.0f}').strip()}) AS found".split()
    with psycopg.connect(direct(database_url), autocommit=True) as db:

        def workers() -> float:
            (value,) = db.execute(query).fetchone()
            assert isinstance(value, float)
            return value

        assert workers() == 0
        db.execute(FILL, (60, 1, 5000))  # due later
        db.execute(FILL, (-1, 5001, 8000))  # due just now
        assert workers() == 0
        db.execute(FILL, (-6, 8001, 10_000))
        assert workers() == pytest.approx(4, abs=0.01)
        db.execute(FILL, (-90, 10_001, 10_001))
        assert workers() == pytest.approx(6, abs=0.2)
        # A sweep moves the due time, and not the age.
        db.execute(
            "UPDATE checkouts SET updated_at = clock() - interval '1 hour' WHERE due_at < clock() - interval '60 s'"
        )
        db.execute(
            "UPDATE checkouts SET hinted = true, due_since = due_at, due_at = clock() + interval '5 s'"
            " WHERE due_at < clock() - interval '60 s'"
        )
        assert workers() == pytest.approx(6, abs=0.4)
        db.execute(FILL, (86_400, 10_002, 20_000))
        plan = "\n".join(line for (line,) in db.execute(f"EXPLAIN {query}").fetchall())
        assert "ix_checkouts_due" in plan
        assert not re.search(r"Seq Scan on checkouts", plan)
        # The calls of a paused merchant wait on purpose.
        db.execute("UPDATE merchants SET paused_at = clock()")
        assert workers() == 0


@needs_pgbouncer
@pytest.mark.direct("it is about a pooler of its own")
def test_the_configuration_of_pgbouncer_serves_the_product():
    written = configparser.ConfigParser(interpolation=None)
    written.read(ROOT / "deploy/pgbouncer/pgbouncer.ini")
    settings = dict(written["pgbouncer"])
    assert settings["pool_mode"] == "transaction"
    for own in ("listen_addr", "listen_port", "auth_file"):
        settings.pop(own)
    user, _, word = LOGIN.partition(":")
    with Cluster.started() as server, pooling(server.port, {user: word}, **settings) as port:
        migrated = orchestrator("migrate", DATABASE_URL=server.url)
        assert migrated.returncode == 0, migrated.stderr
        pooled = server.url.replace(f":{server.port}/", f":{port}/")
        listed = orchestrator("checkouts", "list", "--json", DATABASE_URL=pooled)
    assert (listed.returncode, listed.stderr) == (0, "")
