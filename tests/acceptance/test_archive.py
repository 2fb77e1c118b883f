"""`orchestrator archive` and `orchestrator audit verify --archive`, as operations run them."""

from __future__ import annotations

import asyncio
import gzip
import json

import psycopg
import pytest

from orchestrator.crypto import Encryptor
from orchestrator.domain.states import Trigger
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.command import orchestrator
from tests.support.factories import core, payment
from tests.support.pooler import direct

KEYS = {"SECRET_KEYS": f'["{SECRET_KEY}"]', "LOG_LEVEL": "error"}


@pytest.fixture(name="books")
def _books(database_url):
    """Three paid orders that are settled for good; return the settings that reach them."""

    async def write():
        async with core(database_url, Encryptor(make_settings().secret_keys)) as new_core:
            for number in range(3):
                held = await new_core.held(order_ref=f"paid-{number}")
                held = await new_core.advance(
                    held, Trigger.PAYMENT_FOUND, payments=(payment(f"t-{number}"),), money=(13900, 0, 0)
                )
                await new_core.release(held, None)
            await new_core.do("UPDATE clock_skew SET seconds = 86400")

    asyncio.run(write())
    return {"DATABASE_URL": database_url, **KEYS}


def test_archives_are_made_verified_and_shown(books, tmp_path):
    place = tmp_path / "archives"

    dry = orchestrator("archive", "--older-than", "1h", "--dry-run", "--to", place, **books)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout == "The history of 3 checkouts would go, with 6 entries of the trail.\n"
    document = orchestrator("archive", "--older-than", "1h", "--dry-run", "--json", **books)
    assert json.loads(document.stdout) == {"dryRun": True, "checkouts": 3, "entries": 6}
    assert not place.exists()

    early = orchestrator("archive", "--older-than", "400d", "--to", place, **books)
    assert (early.returncode, early.stdout) == (0, "")

    ended = orchestrator("archive", "--older-than", "1h", "--to", place, "--size", "2", **books)
    assert ended.returncode == 0, ended.stderr
    first, second = place / "archive-000001.jsonl.gz", place / "archive-000002.jsonl.gz"
    assert ended.stdout == f"{first}: 2 checkouts, 4 entries\n{second}: 1 checkouts, 2 entries\n"
    assert f"Archived the history of 3 checkouts (6 entries) in 2 files in {place}." in ended.stderr
    assert place.stat().st_mode & 0o77 == first.stat().st_mode & 0o77 == 0

    whole = orchestrator("audit", "verify", **books)
    assert (whole.returncode, whole.stdout) == (
        0,
        "The audit trail holds: 3 checkouts, 0 entries, 2 seals, 2 archives.\n",
    )
    shown = orchestrator("checkouts", "show", "paid-0", **books)
    assert "entries up to 2 were archived at" in shown.stdout
    assert first.name in shown.stdout
    explained = orchestrator("checkouts", "explain", "paid-0", **books)
    assert f"in the file “{first.name}”" in explained.stdout
    exported = orchestrator("audit", "export", **books)
    assert [line.count('"archive":') for line in exported.stdout.splitlines()] == [0, 0, 1, 1]


def test_a_file_is_verified_without_a_database(books, tmp_path):
    assert orchestrator("archive", "--older-than", "1h", "--to", tmp_path, **books).returncode == 0
    path = tmp_path / "archive-000001.jsonl.gz"

    holds = orchestrator("audit", "verify", "--archive", path, **KEYS)
    assert holds.returncode == 0, holds.stderr
    assert "The archive holds: number 1 of " in holds.stdout
    assert "3 checkouts, 6 entries." in holds.stdout

    strange = orchestrator("audit", "verify", "--archive", path, SECRET_KEYS=f'["{OLDER_KEY}"]')
    assert (strange.returncode, "SECRET_KEYS does not have" in strange.stdout) == (1, True)

    keyless = orchestrator("audit", "verify", "--archive", path, "--data-dir", tmp_path / "nowhere")
    assert (keyless.returncode, "ORCHESTRATOR_SECRET_KEYS is not set" in keyless.stderr) == (2, True)

    path.write_bytes(
        gzip.compress(gzip.decompress(path.read_bytes()).replace(b"test:factory", b"test:another", 1))
    )
    changed = orchestrator("audit", "verify", "--archive", path, **KEYS)
    assert changed.returncode == 1
    assert f"{path.name}: entry 1 of checkout " in changed.stdout
    assert changed.stderr == "The archive does not hold.\n"


def test_a_trail_that_does_not_hold_stays_and_fails_the_command(books, tmp_path):
    with psycopg.connect(direct(books["DATABASE_URL"]), autocommit=True) as superuser:
        superuser.execute("SET session_replication_role = replica")
        superuser.execute(
            "UPDATE audit_entries SET entry = 'x' WHERE sequence = 2 AND checkout_id = "
            "(SELECT id FROM checkouts WHERE order_ref = 'paid-1')"
        )
    (tmp_path / "archive-000001.jsonl.gz").write_bytes(b"of a run that was killed")

    ended = orchestrator("archive", "--older-than", "1h", "--to", tmp_path, **books)

    assert ended.returncode == 1
    assert "left as it is: entry 2 of checkout " in ended.stderr
    assert "archive-000001.jsonl.gz is no archive of this database" in ended.stderr
    assert "2 checkouts, 4 entries" in ended.stdout

    again = orchestrator("archive", "--older-than", "1h", "--to", tmp_path, "--json", **books)
    document = json.loads(again.stdout)
    assert (again.returncode, document["checkouts"], document["entries"], document["archives"]) == (
        1,
        0,
        0,
        0,
    )
    assert [problem.startswith("entry 2 of checkout ") for problem in document["leftAsTheyAre"]] == [True]
    assert document["unknownFiles"] == [str(tmp_path / "archive-000001.jsonl.gz")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing option '--older-than'"),
        (("--older-than", "soon"), "'soon' is not a time span such as 90m, 24h or 7d, of at most 36600 days"),
        (("--older-than", "1d", "--size", "0"), "--size"),
        (("--older-than", "1d", "--to", "/proc/x"), "/proc/x cannot be made"),
    ],
)
def test_a_wrong_input_is_one_sentence(books, arguments, words):
    ended = orchestrator("archive", *arguments, **books)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_doctor_shows_how_far_ahead_the_trail_has_months(database_url):
    def months(**changes):
        said = orchestrator("doctor", DATABASE_URL=database_url, **KEYS, **changes).stdout
        return next(line for line in said.splitlines() if " months " in line)

    assert months().startswith("ok")
    with psycopg.connect(direct(database_url), autocommit=True) as admin:
        admin.execute("UPDATE clock_skew SET seconds = 3000 * 86400")
    assert months().startswith("problem")
    assert "run `orchestrator archive`" in months()
