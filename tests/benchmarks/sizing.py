"""What an order costs at several rates: `python -m tests.benchmarks.sizing`; the table of docs/operate.md.

Runs `orchestrator bench` at each rate, and reads Postgres's WAL position beside it. A rate that the machine
does not hold is measured as well, and says so.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading

import psutil
import psycopg

from tests.benchmarks.beside import api_of

WAL = "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, (SELECT count(*) FROM checkouts)"


def watch(bench: psutil.Process, read: list[tuple[int, int]], ended: threading.Event) -> None:
    """Append the bytes of WAL so far and the number of checkouts, twice a second."""
    while (found := api_of(bench)) is None:
        if ended.wait(0.2):
            return
    try:
        with psycopg.connect(found[0].need("database_url"), autocommit=True) as db:
            while not ended.wait(0.5):
                row = db.execute(WAL).fetchone()
                assert row is not None
                read.append((int(row[0]), int(row[1])))
    except psycopg.OperationalError:
        return  # the bench has ended its Postgres


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=float, nargs="+", default=[50, 100, 150, 200, 300])
    parser.add_argument("--seconds", type=float, default=40.0)
    given = parser.parse_args()
    for rate in given.rates:
        command = [sys.executable, "-m", "orchestrator", "bench", "--json", "--rate", str(rate)]
        command += ["--seconds", str(given.seconds), "--faults", "0.007"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        read: list[tuple[int, int]] = []
        ended = threading.Event()
        watching = threading.Thread(target=watch, args=(psutil.Process(process.pid), read, ended))
        watching.start()
        try:
            said, _ = process.communicate(timeout=given.seconds + 300)
        finally:
            ended.set()
            watching.join()
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        if process.returncode:
            raise SystemExit(f"the bench ended with {process.returncode}: {said.decode()[-2000:]}")
        found = json.loads(said)
        first = max((row for row in read if row[1] == 0), default=read[0])
        wal, orders = read[-1][0] - first[0], read[-1][1] - first[1]
        shown = {
            "rate": rate,
            "carried_per_s": found["orders_per_s"],
            "held": found["held"],
            "product_cpu_ms": found["product_cpu_ms_per_order"],
            "postgres_cpu_ms": found["cpu_ms_per_order"]["postgres"],
            "wal_bytes": round(wal / max(orders, 1)),
            "others_cpu_percent": found["others_cpu_percent"],
        }
        print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
