"""What a worker writes where its log is JSON: JSON, from its start to the end of its warm shutdown."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.conftest import JWT_SECRET, SECRET_KEY
from tests.support.command import ROOT, environment
from tests.support.pooler import direct


def takes_sigterm(pid: int) -> bool:
    """Say whether a process has a handler for SIGTERM; before, the signal would just kill it."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("command", ["worker", "scheduler"])
def test_every_line_of_a_process_is_json_also_while_it_shuts_down(database_url, servers, command):
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", command],
        cwd=ROOT,
        env=environment(
            DATABASE_URL=database_url,
            BROKER_URL=servers.redis_url,
            SECRET_KEYS=f'["{SECRET_KEY}"]',
            JWT_SECRETS=f'["{JWT_SECRET}"]',
            LOG_LEVEL="info",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with psycopg.connect(direct(database_url), autocommit=True) as db:
            deadline = time.monotonic() + 60
            while not (db.execute("SELECT 1 FROM workers").fetchall() and takes_sigterm(process.pid)):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    if command == "worker":
        assert any("Warm shutdown" in line.get("line", "") for line in lines)
    else:
        told = [line for line in lines if line["event"] == "scheduler_ran"]
        assert told
        assert told[-1]["sweeps"] >= 1
        assert told[-1].keys() >= {"seconds", "seals", "queue_full", "failed"}
        with psycopg.connect(direct(database_url)) as db:
            # What it has counted outlives its heartbeat.
            counted = db.execute("SELECT series FROM counter_totals WHERE value > 0").fetchall()
            assert counted == [("process_cpu_seconds|scheduler",)]
