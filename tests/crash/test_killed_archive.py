"""The archive task, killed with SIGKILL again and again: nothing is lost, nothing is stored twice, and the
next run goes on.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator import audit
from orchestrator.domain.states import Trigger
from tests.conftest import SECRET_KEY
from tests.support.command import ROOT, environment, orchestrator
from tests.support.factories import arrival, core, payment
from tests.support.forked import Popen

pytestmark = pytest.mark.anyio

ORDERS, SIZE, KILLS = 80, 4, 9
ENTRIES = "SELECT checkout_id, sequence, encode(mac, 'hex') FROM audit_entries"


def start(url, place):
    return Popen(
        [
            sys.executable,
            "-m",
            "orchestrator",
            "archive",
            "--older-than",
            "1s",
            "--to",
            place,
            "--size",
            str(SIZE),
        ],
        cwd=ROOT,
        env=environment(DATABASE_URL=url, SECRET_KEYS=f'["{SECRET_KEY}"]', LOG_LEVEL="error"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def drafted(place, running):
    """Wait until a file is being written, in the middle of a transaction; or until there is nothing left to
    write.
    """
    while not list(place.glob(".*.part")) and running.poll() is None:
        pass


def archived(place, names):
    """Return the entries and events in the files that the database names."""
    entries, events = [], []
    for name in names:
        for line in gzip.decompress((place / name).read_bytes()).splitlines()[:-1]:
            page = json.loads(line)
            checkout = UUID(page["id"])
            entries += [
                (checkout, json.loads(link["entry"])["sequence"], link["mac"]) for link in page["entries"]
            ]
            events += [(UUID(event["checkout_id"]), event["sequence"]) for event in page["events"]]
    return entries, events


async def test_an_archive_run_killed_at_any_moment_loses_nothing_and_leaves_nothing_twice(
    database_url, encryptor, tmp_path
):
    place = tmp_path / "archives"
    async with core(database_url, encryptor) as new_core:
        for number in range(ORDERS):
            held = await new_core.held()
            await new_core.callbacks.store(arrival(held.id))
            held = await new_core.advance(
                held,
                Trigger.PAYMENT_FOUND,
                payments=(payment(f"t-{number}"),),
                money=(13900, 0, 0),
                read=(),
                events=(),
                due_in=0.0,
            )
            (held,) = await new_core.claim(held.id)
            await new_core.advance(
                held, action=None, due_in=None, read=tuple(callback.id for callback in held.callbacks)
            )
        await audit.seal(new_core.db, encryptor)
        everything = sorted(await new_core.all(ENTRIES))
        await new_core.do("UPDATE clock_skew SET seconds = 10")
        killed = 0
        for kill in range(KILLS):
            running = start(database_url, place)
            match kill % 3:
                case 0:
                    drafted(place, running)
                case 1:
                    running.stdout.readline()
                case _:
                    running.stdout.readline()
                    drafted(place, running)
            running.kill()
            running.communicate(timeout=30)
            killed += running.returncode == -9
            found = await audit.verify(new_core.db, encryptor)
            assert found.problems == []
            names = await new_core.all("SELECT file FROM archives ORDER BY sequence")
            entries, _ = archived(place, names) if names else ([], [])
            assert sorted(entries + await new_core.all(ENTRIES)) == everything
        assert killed > KILLS // 2
        last = orchestrator(
            "archive",
            "--older-than",
            "1s",
            "--to",
            place,
            "--size",
            str(SIZE),
            DATABASE_URL=database_url,
            SECRET_KEYS=f'["{SECRET_KEY}"]',
            LOG_LEVEL="error",
        )
        assert last.returncode == 0, last.stderr
        assert await new_core.all(ENTRIES) == []
        names = await new_core.all("SELECT file FROM archives ORDER BY sequence")
        entries, _ = archived(place, names)
        assert sorted(entries) == everything
        assert Counter(entries).most_common(1)[0][1] == 1
        assert all(audit.open_archive(place / name, encryptor).problems == [] for name in names)
        found = await audit.verify(new_core.db, encryptor)
        assert (found.problems, found.archives, found.checkouts) == ([], len(names), ORDERS)
        left = (await new_core.db.read(text("SELECT count(*) AS n FROM callbacks")))[0].n
        assert left == 0
        # What a killed run left behind is reported, and nothing else is left.
        orphans = {path.name for path in place.glob("*.gz")} - set(names)
        assert all(name in last.stderr for name in orphans)
        assert not list(place.glob(".*.part"))
