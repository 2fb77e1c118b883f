"""The demo ends with status 0, its trail verifies, and a trail that was changed with every right says
where.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest

from orchestrator.devkit.local.servers import Embedded
from tests.support.command import ROOT, UNPRIVILEGED_USER, orchestrator, running
from tests.support.pooler import administrator_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SCRIPTS = (
    "pays_at_once", "declined_then_pays", "declined_and_leaves", "only_notification", "only_success_page",
    "success_and_notification_race", "gateway_fails_twice", "merchant_cancels", "leaves_without_paying",
)  # fmt: skip

MONEY_SCRIPTS = (
    "captured_in_parts", "refunded_in_parts", "released", "captured_with_one_key", "capture_answer_lost", "capture_call_lost",
    "refund_answer_lost", "captured_by_hand", "capture_refused", "gateway_captures", "capture_required", "policy_captures",
    "callbacks_lost", "callbacks_forged", "callbacks_replayed", "callbacks_garbled", "failure_after_success", "unbound",
    "late_kept_by_person", "late_returned_by_person", "late_kept_by_policy", "late_returned_by_policy",
    "late_bank_money_refunded", "cancelled_then_paid", "reopened_then_paid", "surplus_released_by_hand",
    "surplus_returned_by_policy", "unknown_order_kept", "unknown_order_returned", "wrong_amount", "wrong_currency",
    "charged_back", "refunded_at_gateway", "released_at_gateway", "open_beyond_deadline",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "data"


@pytest.fixture(scope="module")
def played(place):
    """The demo with one order for each script."""
    return orchestrator("demo", "--orders", "9", "--exit", "--port", "0", "--data-dir", place, seconds=100)


def test_every_order_ends_as_scripted(played):
    assert played.returncode == 0, played.stdout + played.stderr
    assert "All 9 orders ended as scripted" in played.stdout
    for script in SCRIPTS:
        assert re.search(rf"^{script} .* 1 of 1 ✓", played.stdout, re.MULTILINE), script
    assert "The slowest order: " in played.stdout
    assert "deadline_passed" in played.stdout


def test_all_money_is_moved_as_scripted_and_never_twice(tmp_path):
    count, place = len(MONEY_SCRIPTS), tmp_path / "data"
    played = orchestrator(
        "demo",
        "--scenario",
        "money",
        "--orders",
        str(count),
        "--exit",
        "--port",
        "0",
        "--data-dir",
        place,
        seconds=150,
    )

    assert played.returncode == 0, played.stdout + played.stderr
    assert (
        f"All {count} orders ended as scripted; the sandbox's ledger and our books agree to the minor unit. "
        "No order was captured or refunded twice." in played.stdout
    )
    for script in MONEY_SCRIPTS:
        assert re.search(rf"^{script} .* 1 of 1 ✓", played.stdout, re.MULTILINE), script
    sums = re.findall(r"^  [A-Z]{3}  ledger (.+?)   books (.+?)  ✓$", played.stdout, re.MULTILINE)
    assert sums
    assert all(ledger == books for ledger, books in sums)
    verified = orchestrator("audit", "verify", "--data-dir", place)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert verified.stdout.startswith(f"The audit trail holds: {count} checkouts, ")


@pytest.mark.slow
def test_a_demo_that_does_not_go_by_its_script_ends_with_1(tmp_path):
    ended = orchestrator(
        "demo",
        "--scenario",
        "gateway_captures",
        "--orders",
        "1",
        "--exit",
        "--port",
        "0",
        "--data-dir",
        tmp_path / "data",
        seconds=100,
        GATEWAY_NETWORKS='["192.0.2.0/24"]',
    )

    assert ended.returncode == 1
    assert re.search(r"^gateway_captures .* 0 of 1 ✗", ended.stdout, re.MULTILINE)
    assert "expected signed callbacks from the gateway alone, and not [('signed', 'outside')]" in ended.stdout
    assert "1 of 1 orders did not end as scripted." in ended.stdout
    assert "ended as scripted;" not in ended.stdout


def test_an_unknown_scenario_is_refused_with_the_known_scenarios(tmp_path):
    ended = orchestrator("demo", "--scenario", "monney", "--exit", "--data-dir", tmp_path / "data")

    assert ended.returncode == 2
    assert (
        "--scenario monney does not exist: choose a group (checkout, money, all) or a script ("
        in ended.stderr
    )
    assert "leaves_without_paying" in ended.stderr
    assert "captured_in_parts" in ended.stderr
    assert not (tmp_path / "data").exists()


def test_what_is_shown_at_the_end_outlives_the_demo(played, place):
    _, _, end = played.stdout.partition("The slowest order: ")

    assert "http://" not in end
    shown = re.search(rf"orchestrator (checkouts show \S+ --data-dir {place})$", end, re.MULTILINE)
    assert shown is not None
    assert orchestrator(*shown[1].split()).returncode == 0


def test_people_are_shown_prices_and_no_minor_units(played, place):
    with as_superuser(place) as db:
        stored = db.execute(
            "SELECT id::text, amount FROM checkouts WHERE currency IN ('DKK', 'EUR') AND state = 'completed'"
            " ORDER BY amount DESC LIMIT 1"
        ).fetchone()
    assert stored is not None
    checkout, minor = stored
    assert minor > 1_000_00  # so that thousands are separated, too

    told = orchestrator("events", "list", "--checkout", checkout, "--data-dir", place).stdout
    story = orchestrator("checkouts", "show", checkout, "--data-dir", place).stdout

    assert re.search(rf"amount: {minor / 100:,.2f} (DKK|EUR);", told)
    assert re.search(rf"amount {minor / 100:,.2f} (DKK|EUR)\b", story.partition("checkout:received")[2])
    assert not re.search(rf"\b{minor}\b", told + story)


@pytest.mark.direct("an installation whose Postgres is elsewhere is not known to be stopped")
@pytest.mark.embedded_broker("an installation whose broker is elsewhere is not known to be stopped")
def test_doctor_says_of_a_stopped_installation_how_to_start_it(played, place):
    ended = orchestrator("doctor", "--data-dir", place)

    problems = [line for line in ended.stdout.splitlines() if line.startswith("problem")]
    assert ended.returncode == 1
    assert len(problems) == 1, ended.stdout
    assert f"it is not running: `orchestrator up --data-dir {place}` starts it" in problems[0]


def test_the_trail_verifies_after_the_demo(played, place):
    verified = orchestrator("audit", "verify", "--data-dir", place)

    assert (verified.returncode, verified.stderr) == (0, "")
    assert re.fullmatch(r"The audit trail holds: 9 checkouts, \d+ entries, \d+ seals\.\n", verified.stdout)


def test_a_changed_byte_names_its_entry(played, place):
    with as_superuser(place) as db:
        checkout, entry = db.execute(
            "SELECT checkout_id, entry FROM audit_entries WHERE sequence = 3 ORDER BY random() LIMIT 1"
        ).fetchone()
        changed = entry.replace('"session', '"Session', 1)
        assert changed != entry
        where = "WHERE checkout_id = %s AND sequence = 3"
        db.execute(f"UPDATE audit_entries SET entry = %s {where}", (changed, checkout))

    verified = orchestrator("audit", "verify", "--data-dir", place)

    with as_superuser(place) as db:
        db.execute(f"UPDATE audit_entries SET entry = %s {where}", (entry, checkout))
    assert verified.returncode == 1
    assert (
        verified.stdout == f"entry 3 of checkout {checkout} was changed: its text and its mac do not agree\n"
    )
    assert "does not hold: 1 problem" in verified.stderr


def test_a_removed_last_entry_names_its_checkout(played, place):
    with as_superuser(place) as db:
        [checkout, last] = db.execute(
            "SELECT checkout_id, max(sequence) FROM audit_entries GROUP BY 1 ORDER BY random() LIMIT 1"
        ).fetchone()
        db.execute(
            "CREATE TABLE kept AS SELECT * FROM audit_entries WHERE checkout_id = %s AND sequence = %s",
            (checkout, last),
        )
        db.execute("DELETE FROM audit_entries WHERE checkout_id = %s AND sequence = %s", (checkout, last))

    verified = orchestrator("audit", "verify", "--data-dir", place)

    with as_superuser(place) as db:
        db.execute("INSERT INTO audit_entries SELECT * FROM kept")
        db.execute("DROP TABLE kept")
    assert verified.returncode == 1
    assert (
        f"checkout {checkout} has {last - 1} entries and should have {last}: its tail was cut"
        in verified.stdout
    )


def test_the_trail_can_be_sealed_and_taken_away(played, place, tmp_path):
    sealed = orchestrator("audit", "seal", "--data-dir", place)
    copied = orchestrator("audit", "export", "--file", tmp_path / "trail.jsonl", "--data-dir", place)

    assert sealed.stdout.startswith("Sealed the heads of 9 checkouts")
    assert copied.returncode == 0
    lines = (tmp_path / "trail.jsonl").read_text().splitlines()
    assert len(lines) > 9 * 5
    # The scheduler seals in its interval as well: ours is the last seal, whatever its number.
    seals = [json.loads(line) for line in lines if line.startswith('{"seal":')]
    assert [seal["seal"] for seal in seals] == list(range(1, len(seals) + 1))
    assert json.loads(lines[-1]) == seals[-1]
    assert (tmp_path / "trail.jsonl").stat().st_mode & 0o777 == 0o600
    assert orchestrator("audit", "verify", "--data-dir", place).returncode == 0


def test_a_demo_that_is_interrupted_does_not_claim_success(tmp_path):
    with running("demo", "--orders", "9", "--port", "0", data_dir=tmp_path / "data") as demo:
        demo.until_up()
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.wait(30) == 1
        assert demo.left() == []
        demo.read_to_the_end()
    assert "ended as scripted" not in demo.said


@pytest.mark.direct("it is about the account of the servers that it starts")
@pytest.mark.embedded_broker("it is about the account of the servers that it starts")
@pytest.mark.skipif(
    os.geteuid() != 0,
    reason="only root can become another user; otherwise all tests run as an ordinary user",
)
def test_the_demo_needs_no_rights_of_root(tmp_path_factory):
    try:
        reached = subprocess.run(
            [sys.executable, "-c", "import orchestrator"],
            cwd=ROOT,
            user=UNPRIVILEGED_USER,
            group=UNPRIVILEGED_USER,
            check=False,
        )
    except PermissionError:
        pytest.skip(f"{sys.executable} lies where an ordinary account may not go")
    if reached.returncode != 0:
        pytest.skip(f"{ROOT} or its environment lies where an ordinary account may not go")
    home = tmp_path_factory.mktemp("ordinary")
    # pytest's own directories are closed to others.
    for closed in (home, *home.parents):
        if closed.stat().st_uid == 0 and not closed.stat().st_mode & 0o001:
            closed.chmod(closed.stat().st_mode | 0o011)
    os.chown(home, UNPRIVILEGED_USER, UNPRIVILEGED_USER)

    ended = orchestrator(
        "demo",
        "--orders",
        "9",
        "--exit",
        "--port",
        "0",
        "--data-dir",
        home / "data",
        seconds=100,
        user=UNPRIVILEGED_USER,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    owners = {path.stat().st_uid for path in (home / "data").rglob("*")}
    shutil.rmtree(home / "data")
    assert "All 9 orders ended as scripted" in ended.stdout
    assert owners == {UNPRIVILEGED_USER}


@contextmanager
def as_superuser(place: Path) -> Iterator[psycopg.Connection]:
    """A connection with every right, which the guard of the trail does not stop."""
    with ExitStack() as held:
        url = administrator_of(place)
        if url is None:
            url = held.enter_context(Embedded.start(place, redis=False)).administrator_url
        db = held.enter_context(psycopg.connect(url))
        db.execute("ALTER TABLE audit_entries DISABLE TRIGGER ALL")
        yield db
        db.execute("ALTER TABLE audit_entries ENABLE TRIGGER ALL")
