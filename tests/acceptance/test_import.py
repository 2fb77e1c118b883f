"""`orchestrator checkouts import`: the orders of a file are created once, however often the import is
interrupted, with a result for each row.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tests.support.scene import intent
from tests.support.world import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(name="installation")
def _installation(servers: Embedded, database_url: str, tmp_path: Path) -> Iterator[World]:
    """An installation without processes: an import needs only Postgres."""
    with world(servers, database_url, tmp_path) as made:
        yield made


def results(text: str) -> list[dict[str, object]]:
    found = []
    for line in text.splitlines():
        with suppress(ValueError):  # the line that was being written when the import was killed
            found.append(json.loads(line))
    return found


def test_a_file_is_imported_once_and_wrong_rows_are_named(installation: World):
    rows = [intent(f"I-{number}") for number in range(2500)]
    rows[7] = intent("I-7", amount="-1.00")
    rows[8] = b"no JSON"
    rows[9] = intent("I-1")
    rows[10] = intent("I-2", amount="5.00")
    (installation.place / "orders.ndjson").write_bytes(b"\n".join(rows))
    first = installation.command("checkouts", "import", "orders.ndjson")
    assert first.returncode == 1, first.stderr
    written = results(first.stdout)
    assert [row["line"] for row in written] == list(range(1, 2501))
    wrong = {row["line"]: row for row in written if row["status"] == "rejected"}
    assert sorted(wrong) == [8, 9, 11]
    assert wrong[8]["orderId"] == "I-7"
    assert wrong[8]["errors"][0]["column"] == "amount"  # type: ignore[index]
    assert wrong[9]["errors"][0]["field"] == "body"  # type: ignore[index]
    assert "already has checkout" in wrong[11]["errors"][0]["message"]  # type: ignore[index]
    assert written[9]["status"] == "existing"
    assert "2500 rows: 2496 created, 1 there already, 3 refused" in first.stderr
    again = installation.command(
        "checkouts", "import", "-", "--results", "results.ndjson", given=b"\n".join(rows).decode()
    )
    assert again.returncode == 1
    assert again.stdout == ""
    counted = results((installation.place / "results.ndjson").read_text())
    assert {row["status"] for row in counted} == {"existing", "rejected"}
    assert installation.sql("SELECT count(*) AS number FROM checkouts")[0]["number"] == 2496
    assert len(installation.sql("SELECT DISTINCT entry::json->>'actor' AS actor FROM audit_entries")) == 1


def test_a_csv_file_is_imported_and_the_exit_status_is_0(installation: World):
    head = "orderId,amount,currency,email,success,failure,redirect,country\n"
    pages = "https://shop.example/ok,https://shop.example/no,https://shop.example/wait"
    body = "".join(f"C-{number},{number}.50,DKK,a@b.example,{pages},DK\n" for number in range(1, 20))
    (installation.place / "orders.csv").write_text(head + body)
    done = installation.command("checkouts", "import", "orders.csv")
    assert done.returncode == 0, done.stderr + done.stdout
    assert installation.sql("SELECT sum(amount) AS sum FROM checkouts")[0]["sum"] == 190 * 100 + 19 * 50
    wrong = installation.command("checkouts", "import", "--format", "csv", "-", given="order,amount\n1,2\n")
    assert wrong.returncode == 2
    assert "did you mean" in wrong.stderr
    unknown = installation.command("checkouts", "import", "--merchant", "unknown", "orders.csv")
    assert unknown.returncode == 2
    assert "no merchant 'unknown'" in unknown.stderr


def import_with_kills(installation: World, file: Path, kills: int, rows: int) -> None:
    """Import a file, killed `kills` times at any moment; then to its end."""
    for number in range(kills):
        wanted = rows * (number + random.random()) / (kills + 1)
        with (installation.place / f"killed-{number}.ndjson").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "checkouts", "import", str(file)],
                env=installation.environment(),
                cwd=installation.place,
                stdout=out,
                stderr=subprocess.DEVNULL,
            )
        try:
            installation.until(
                lambda wanted=wanted, process=process: (
                    process.poll() is not None or created(installation) >= wanted
                ),
                "enough rows are created",
                seconds=300,
            )
        finally:
            process.kill()
            process.wait()
        before = {row["id"] for row in results((installation.place / f"killed-{number}.ndjson").read_text())}
        assert len(before) <= created(installation), "a result is written after its commit"
    whole = installation.command("checkouts", "import", str(file), seconds=600)
    assert whole.returncode == 0, whole.stderr
    written = results(whole.stdout)
    assert len({row["id"] for row in written}) == len(written) == created(installation) == rows
    assert installation.sql("SELECT count(DISTINCT order_ref) AS number FROM checkouts")[0]["number"] == rows
    print(whole.stderr.splitlines()[-1])


def created(installation: World) -> int:
    return int(installation.sql("SELECT count(*) AS number FROM checkouts")[0]["number"])


def test_an_import_that_is_killed_at_any_moment_and_repeated_creates_each_order_once(installation: World):
    file = installation.place / "orders.ndjson"
    file.write_bytes(b"\n".join(intent(f"I-{number}") for number in range(6000)))
    import_with_kills(installation, file, 3, 6000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_import_of_200_000_rows_that_is_killed_20_times_creates_each_order_once(installation: World):
    file = installation.place / "orders.ndjson"
    file.write_bytes(b"\n".join(intent(f"I-{number}") for number in range(200_000)))
    import_with_kills(installation, file, 20, 200_000)
