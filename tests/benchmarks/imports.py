"""How fast a file of orders is imported: `python -m tests.benchmarks.imports`, with Postgres beside it on one
machine, fsync on.

Prints the checkouts created a second, from the start of the command to its end, and the CPU time that an
order costs in the command and in Postgres.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil
import psycopg

from orchestrator.devkit.local.servers import Embedded
from orchestrator.settings import environment
from orchestrator.store import schema
from tests.conftest import make_settings
from tests.support.scene import intent

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS: Final = "orderId,amount,currency,firstName,lastName,email,billingStreet,billingCity,billingZipCode,billingCountry,success,failure"


def ndjson(number: int) -> str:
    """Return one row: an intent with two order lines, a customer and addresses."""
    return intent(f"I-{number}").decode()


def delimited(number: int) -> str:
    """Return one row of CSV."""
    pages = "https://shop.example/paid,https://shop.example/failed"
    return (
        f"I-{number},139.50,DKK,Ane,Holm,ane{number}@shop.example,Vestergade {number},Aarhus,8000,DK,{pages}"
    )


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process, of its children, and of those children that have ended."""
    total = 0.0
    process = psutil.Process(pid)
    for each in [process, *process.children(recursive=True)]:
        times = each.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def measure(servers: Embedded, place: Path, *, form: str, number: int, command: Sequence[str]) -> None:
    """Import a file of so many orders into an empty database, and print what it took."""
    schema.migrate(servers.owner_url)
    settings = make_settings(database_url=servers.database_url, log_level="warning")
    file = place / f"orders.{form}"
    with file.open("w", encoding="utf-8") as out:
        if form == "csv":
            out.write(COLUMNS + "\n")
        out.writelines((delimited if form == "csv" else ndjson)(row) + "\n" for row in range(number))
    arguments = ["checkouts", "import", str(file), "--results", str(place / "results.ndjson")]
    before = cpu_of(servers.pids["postgres"])
    began = time.monotonic()
    with subprocess.Popen(
        [*command, *arguments],
        env={**os.environ, **environment(settings)},
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - began
    assert process.returncode == 0, said
    with psycopg.connect(servers.database_url) as db:
        found = db.execute(
            "SELECT (SELECT count(*) FROM checkouts), (SELECT count(*) FROM intents), (SELECT count(*) FROM audit_entries)"
        ).fetchone()
    assert found == (number, number, number), f"{found} checkouts, intents and audit entries"
    postgres = cpu_of(servers.pids["postgres"]) - before
    shown = {
        "form": form,
        "orders": number,
        "created_per_second": round(number / seconds),
        "seconds": round(seconds, 1),
        "command_cpu_ms_each": round((used.ru_utime + used.ru_stime) * 1000 / number, 3),
        "postgres_cpu_ms_each": round(postgres * 1000 / number, 3),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=200_000)
    parser.add_argument("--form", choices=("ndjson", "csv"), default="ndjson")
    parser.add_argument("--command", default=f"{sys.executable} -m orchestrator")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as place,
        Embedded.start(Path(place) / "servers", redis=False, durable=True) as servers,
    ):
        measure(servers, Path(place), form=given.form, number=given.number, command=given.command.split())


if __name__ == "__main__":
    main()
