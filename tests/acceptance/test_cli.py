"""Whatever is wrong with what a person typed or set is said in one sentence, with exit status 2 and no
traceback.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import re
import socket
import stat
import threading
import time
from contextlib import contextmanager, nullcontext
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pytest

from orchestrator import auth, intents
from orchestrator.crypto import Encryptor
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings
from tests.support.command import orchestrator
from tests.support.factories import core
from tests.support.pooler import direct
from tests.support.scene import intent

JWT = {"JWT_SECRETS": f'["{JWT_SECRET}"]'}
NO_SERVER = "postgresql://u:p@127.0.0.1:1/x"

WRONG = [
    (("up",), {"LEASE_SECONDS": "soon"}, "ORCHESTRATOR_LEASE_SECONDS"),
    (("up",), {"LEASE_SECONDS": "0"}, "LEASE_SECONDS: must be greater than or equal to 1"),
    (("worker",), {"DATABASE_URI": "postgresql:///x"}, "did you mean ORCHESTRATOR_DATABASE_URL?"),
    (("api",), {"DATABASE_URL": "mysql://x"}, "ORCHESTRATOR_DATABASE_URL: must be a URL"),
    (("api",), {}, "ORCHESTRATOR_DATABASE_URL is not set"),
    (("worker",), {"DATABASE_URL": NO_SERVER}, "ORCHESTRATOR_BROKER_URL is not set"),
    (("up",), {"SECRET_KEYS": '["short"]'}, "ORCHESTRATOR_SECRET_KEYS: each key must be 32 bytes in base64"),
    (("up",), {"SECRET_KEYS": "not-a-list"}, "ORCHESTRATOR_SECRET_KEYS: must be a JSON array"),
    (("up", "--port", "99999"), {}, "--port"),
    (("up", "--prot", "1"), {}, "No such option"),
    (("fly",), {}, "No such command 'fly'"),
    (("demo", "--scenario", "pays_twice"), {}, "choose a group (checkout, money, all) or a script"),
    (("bench", "--report", "/nonexistent/run.html"), {}, "/nonexistent/run.html cannot be written: /nonexistent is no directory"),
    (("demo", "--exit"), {"GATEWAY_URL": "http://127.0.0.1:9"}, "ORCHESTRATOR_GATEWAY_URL is set"),
    (("migrate",), {"DATABASE_URL": NO_SERVER}, "Postgres at 127.0.0.1:1/x cannot be used"),
    (("up", "--port", "0", "--data-dir", "/proc/x"), {}, "/proc/x cannot be used"),
    (("audit", "verify"), {"DATABASE_URL": NO_SERVER}, "Postgres at 127.0.0.1:1/x cannot be used"),
    (("audit", "verify", "--data-dir", "/nonexistent"), {}, "/nonexistent holds no installation"),
    (("checkouts", "list", "--state", "paid"), {}, "'paid' is not one of"),
    (("sandbox", "--data-dir", "/nonexistent"), {}, "ORCHESTRATOR_GATEWAY_USERNAME is not set"),
    (("token", "issue", "--merchant", "a", "--scope", "ops", "--data-dir", "/nonexistent"), {}, "JWT_SECRETS is not set"),
    (("token", "issue", "--merchant", "a", "--scope", "everything"), JWT, "not everything"),
    (("token", "issue", "--merchant", "a", "--scope", "ops", "--lifetime", "1y"), JWT, "'1y' is not a duration"),
    (("token", "issue", "--merchant", "", "--scope", "ops"), JWT, "merchant and subject must be 1 to"),
    (("token", "issue", "--merchant", "*", "--scope", "ops"), JWT, "'*' is no merchant: for a token of the operator"),
    (("merchants", "add", "Shop!", "--gateway-url", "https://g.example", "--username", "u"), {}, "the name 'Shop!'"),
    (("merchants", "add", "shop", "--gateway-url", "ftp://g.example", "--username", "u"), {}, "--gateway-url must be a URL"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    WRONG,
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_input_is_one_sentence(arguments, settings, words):
    ended = orchestrator(*arguments, **settings)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert ended.stdout == ""


def test_a_taken_port_is_reported_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = orchestrator("up", "--port", str(port), "--data-dir", tmp_path / "data")

    assert ended.returncode == 2
    assert f"port {port} of 127.0.0.1 cannot be used" in ended.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("trouble", ["refused", "missing", "password"])
def test_up_refuses_a_database_that_cannot_be_used_and_leaves_nothing_running(servers, tmp_path, trouble):
    parts = urlsplit(servers.administrator_url)
    url = {
        "refused": NO_SERVER,
        "missing": urlunsplit(parts._replace(path="/nothing_here")),
        "password": urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":wrong@"))),
    }[trouble]
    command = "demo" if trouble == "refused" else "up"

    ended = orchestrator(command, "--port", "0", "--data-dir", tmp_path / "data", DATABASE_URL=url)

    assert ended.returncode == 2
    assert re.match(r"orchestrator: Postgres at .+ cannot be used \(.+\): start it, or correct", ended.stderr)
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "data" / "runtime.json").exists()
    # A process that still used the directory would hold its lock.
    with (tmp_path / "data" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or ())
    ]


def test_an_unknown_revision_is_one_sentence(database_url):
    ended = orchestrator("migrate", "--to", "zzz", DATABASE_URL=database_url)

    assert ended.returncode == 2
    assert "cannot be brought to revision 'zzz'" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_keys_that_do_not_belong_to_the_database_are_noticed(database_url):
    with psycopg.connect(direct(database_url), autocommit=True) as db:
        db.execute(
            "INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac) "
            "VALUES (gen_random_uuid(), 1, now(), 'checkout:received', '{}', '0123abcd', '')"
        )
    known = {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]', **JWT}

    started = orchestrator("up", "--port", "0", "--ephemeral", **known)
    checked = orchestrator("doctor", **known)

    said = "written under secret key 0123abcd, which ORCHESTRATOR_SECRET_KEYS does not have"
    assert (started.returncode, said in started.stderr) == (2, True)
    assert len(started.stderr.strip().splitlines()) == 1
    assert checked.returncode == 1
    assert re.search(rf"^problem +keys +.*{said}", checked.stdout, re.MULTILINE)
    document = orchestrator("doctor", "--json", **known)
    found = json.loads(document.stdout)
    assert (document.returncode, document.stderr) == (1, "")
    assert [said in check["found"] for check in found["checks"] if check["check"] == "keys"] == [True]
    assert found["problems"] == sum(not check["ok"] for check in found["checks"]) > 0
    assert {"check": "settings", "ok": True} in [
        {"check": check["check"], "ok": check["ok"]} for check in found["checks"]
    ]


def test_a_file_that_cannot_be_opened_is_one_sentence(database_url, tmp_path):
    known = {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]'}
    (tmp_path / "orders.ndjson").write_text("")
    for source, results, words in (
        (tmp_path / "missing.csv", "-", "missing.csv cannot be opened: No such file or directory"),
        (
            tmp_path / "orders.ndjson",
            tmp_path / "no" / "results",
            "no/results cannot be opened: No such file",
        ),
        (
            tmp_path / "orders.ndjson",
            tmp_path / "orders.ndjson" / "r",
            "orders.ndjson/r cannot be opened: Not a dir",
        ),
    ):
        ended = orchestrator("checkouts", "import", source, "--results", results, **known)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert words in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


def test_the_exported_trail_is_for_its_owner_alone_also_in_a_file_that_was_there(books, tmp_path):
    there = tmp_path / "trail.jsonl"
    there.write_text("before\n" * 100_000)
    there.chmod(0o644)
    ended = orchestrator("audit", "export", "--file", there, **books)
    assert ended.returncode == 0, ended.stderr
    assert stat.S_IMODE(there.stat().st_mode) == 0o600
    assert "before" not in there.read_text()
    assert len(there.read_text().splitlines()) == int(ended.stderr.split()[0])
    assert orchestrator("audit", "export", "--file", "/dev/null", **books).returncode == 0


def test_changes_are_told_as_json(database_url):
    known = {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]'}

    def told(*arguments, status=0, **more):
        ended = orchestrator(*arguments, "--json", **more, **known)
        assert ended.returncode == status, ended.stderr
        return json.loads(ended.stdout)

    known["WEBHOOK_ALLOWED_NETWORKS"] = '["127.0.0.1"]'
    made = told("webhooks", "add", "http://127.0.0.1:9999/hook", "--full")
    assert (made["status"], made["content"], made["secret"][:6]) == ("active", "full", "whsec_")
    task = told("webhooks", "add-task", "shop.events", "events:default")
    assert (task["kind"], task["task"]) == ("celery", "shop.events")
    rotated = told("webhooks", "rotate-secret", made["id"])
    assert (rotated["id"], rotated["secret"] != made["secret"]) == (made["id"], True)
    for command, result in (("pause", "paused"), ("resume", "resumed")):
        assert told("webhooks", command, made["id"]) == {"id": made["id"], "result": result}
    assert told("webhooks", "delete", made["id"], "--yes")["result"] == "deleted"

    assert told("merchants", "set", "default", "late=keep")["policies"]["late"] == "keep"
    assert told("merchants", "disable", "default")["status"] == "disabled"
    assert told("merchants", "enable", "default")["status"] == "enabled"
    assert told("merchants", "pause", "default")["paused_at"] is not None
    assert told("merchants", "resume", "default")["paused_at"] is None
    assert told("merchants", "password", "default", "--password-from", "-", given="x\n")["own_password"]
    secret = told("merchants", "rotate", "default", "--make")
    assert (secret["callback_secrets"], len(secret["secret"]) > 20) == (1, True)

    assert told("audit", "seal") == {"sealed": 0}
    beat = told("doctor", "worker", status=1)
    assert (beat["process"], beat["ok"], beat["secondsSinceHeartbeat"]) == ("worker", False, None)


def test_an_unknown_merchant_is_named(database_url):
    known = {"DATABASE_URL": database_url, **JWT}

    listed = orchestrator("checkouts", "list", "--merchant", "unknown", **known)
    warned = orchestrator("token", "issue", "--merchant", "unknown", "--scope", "ops", **known)
    silent = orchestrator("token", "issue", "--merchant", "default", "--scope", "ops", **known)

    assert (listed.returncode, "there is no merchant 'unknown'" in listed.stderr) == (2, True)
    assert (warned.returncode, "there is no merchant 'unknown'" in warned.stderr) == (0, True)
    assert auth.verify(make_settings(), warned.stdout.removesuffix("\n"))[0].merchant == "unknown"
    assert (silent.returncode, silent.stderr) == (0, "")


def test_token_issue_prints_the_token_and_nothing_else(tmp_path):
    ended = orchestrator(
        "token",
        "issue",
        "--merchant",
        "shop",
        "--scope",
        "checkouts:read checkouts:write",
        "--lifetime",
        "15m",
        "--data-dir",
        tmp_path,
        **JWT,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    caller = auth.verify(make_settings(), ended.stdout.removesuffix("\n"))[0]
    assert caller.merchant == "shop"
    assert caller.scopes == {"checkouts:read", "checkouts:write"}


def test_every_command_has_help():
    listed = orchestrator("--help").stdout

    for command in (
        "up",
        "demo",
        "api",
        "worker",
        "scheduler",
        "deliverer",
        "sandbox",
        "migrate",
        "doctor",
        "token",
        "merchants",
        "checkouts",
        "payments",
        "events",
        "webhooks",
        "audit",
        "archive",
    ):
        assert f"  {command} " in listed
    for group in (
        (),
        ("token",),
        ("merchants",),
        ("checkouts",),
        ("commands",),
        ("payments",),
        ("events",),
        ("webhooks",),
        ("audit",),
    ):
        commands = orchestrator(*group, "--help").stdout.partition("Commands:")[2]
        assert commands
        assert "..." not in commands


def test_a_database_without_schema_is_said_with_what_to_do(servers):
    ended = orchestrator("checkouts", "list", DATABASE_URL=servers.administrator_url)

    assert ended.returncode == 2
    assert "has no schema, and needs" in ended.stderr
    assert "orchestrator migrate" in ended.stderr


def test_merchants_are_added_and_disabled_without_a_password_on_the_command_line(database_url):
    known = {
        "DATABASE_URL": database_url,
        "SECRET_KEYS": f'["{SECRET_KEY}"]',
        "GATEWAY_URL": "https://gateway.example",
    }
    add = ("merchants", "add", "shop2", "--gateway-url", "https://two.example", "--username", "api")

    added = orchestrator(*add, given="a password\n\n", **known)
    again = orchestrator(*add, given="a password\n\n", **known)
    orchestrator("merchants", "disable", "shop2", **known)
    listed = orchestrator("merchants", "list", **known).stdout
    unknown = orchestrator("merchants", "enable", "shop3", **known)

    assert added.returncode == 0
    assert (again.returncode, "already" in again.stderr) == (2, True)
    [line] = [line for line in listed.splitlines() if "shop2" in line]
    assert "disabled" in line
    assert "https://two.example" in line
    assert "a password" not in added.stdout + added.stderr + listed
    assert (unknown.returncode, "no merchant shop3" in unknown.stderr) == (2, True)


def test_doctor_names_what_is_not_well_and_what_to_do(books):
    known = {
        **books,
        "BROKER_URL": "redis://127.0.0.1:1/0",
        "GATEWAY_URL": "http://127.0.0.1:1",
        **JWT,
    }

    ended = orchestrator("doctor", **known)
    heartbeat = orchestrator("doctor", "worker", **known)

    lines = [line.split(maxsplit=1)[1] for line in ended.stdout.splitlines()]
    found = {line.split()[1]: line for line in ended.stdout.splitlines()}
    assert ended.returncode == 1
    assert "down" in found["gateway"]
    assert "user name and password are not the cause" in found["gateway"]
    assert any(
        line.startswith("attention") and "with 139.00 DKK at risk: 1 surplus_payment" in line
        for line in lines
    )
    assert any(
        line.startswith("money") and "139.00 DKK are held by payments beside" in line for line in lines
    )
    assert all(
        found[name].startswith("ok")
        for name in ("settings", "database", "clock", "schema", "writes", "months", "backlog", "events")
    )
    assert all(found[name].startswith("problem") for name in ("workers", "schedulers", "gateway", "broker"))
    assert heartbeat.returncode == 1
    assert "no heartbeat of a worker" in heartbeat.stderr


# ── Checkouts ─────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def worker(database_url, *statements):
    """A stand-in for a worker that answers every command with these statements; `{id}` is the command,
    `{checkout}` its checkout.
    """
    ended = threading.Event()

    def answer():
        with psycopg.connect(direct(database_url), autocommit=True) as db:
            while not ended.wait(0.02):
                for command, checkout in db.execute(
                    "SELECT id, checkout_id FROM commands WHERE handled_at IS NULL ORDER BY requested_at"
                ).fetchall():
                    for statement in statements:
                        db.execute(statement, {"id": command, "checkout": checkout})

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def rows(database_url, statement):
    with psycopg.connect(direct(database_url), autocommit=True) as db:
        return db.execute(statement).fetchall()


DONE = "UPDATE commands SET handled_at = clock(), result = 'done_decided' WHERE id = %(id)s"
OPERATE = """
    INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state, command_id, cause,
                                  reconciliation_identifier, actor, last_error)
    SELECT gen_random_uuid(), k.merchant_id, k.checkout_id, '7', k.kind, (k.arguments ->> 'amount')::int, 'DKK', '{}', k.id, 'asked',
           k.id::text, k.actor, 'Card Declined' FROM commands k WHERE k.id = %(id)s
"""
ACCEPT = "UPDATE commands SET handled_at = clock(), result = 'accepted' WHERE id = %(id)s"


@pytest.mark.parametrize(
    ("arguments", "kind", "told"),
    [
        (("capture", "--amount", "10.00", "--yes"), "capture", {"amount": 1000, "transactionId": None}),
        (("capture", "--all", "--yes"), "capture", {"amount": None, "transactionId": None}),
        (
            ("refund", "--amount", "50", "--reason", "broken", "--yes"),
            "refund",
            {"amount": 5000, "transactionId": None},
        ),
        (("release", "--transaction", "8", "--yes"), "release", {"transactionId": "8"}),
        (("retry",), "retry", {}),
        (("resolve", "return", "--yes"), "resolve", {"decision": "return"}),
    ],
)
def test_what_is_asked_for_is_stored_as_a_command_and_named(books, arguments, kind, told):
    name, *rest = arguments
    ended = orchestrator("checkouts", name, "paid-1", *rest, "--wait", "0", **books)

    [(command, stored, given, key, actor)] = rows(
        books["DATABASE_URL"], "SELECT id, kind, arguments, idempotency_key, actor FROM commands"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert str(command) in ended.stdout
    assert (stored, given, actor) == (kind, told, "operator:command-line")
    assert (key is not None) == (kind in {"capture", "refund", "release"})


def test_a_cancel_takes_the_same_path_and_is_asked_for_once(books):
    first = orchestrator("checkouts", "cancel", "open-1", "--reason", "a test", **books)
    second = orchestrator("checkouts", "cancel", "open-1", **books)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "is being cancelled already" in second.stdout
    [(kind, reason)] = rows(books["DATABASE_URL"], "SELECT kind, reason FROM commands")
    assert (kind, reason.partition(":")[0], "a test" in reason) == ("cancel", "sealed", False)
    shown = orchestrator("checkouts", "show", "open-1", "--json", **books)
    assert [command["reason"] for command in json.loads(shown.stdout)["commands"]] == ["a test"]


def test_reopening_takes_a_new_deadline(books, database_url):
    rows(database_url, "UPDATE checkouts SET state = 'expired' WHERE order_ref = 'open-1' RETURNING 1")
    ended = orchestrator("checkouts", "reopen", "open-1", "--expires-in", "90m", "--wait", "0", **books)

    assert ended.returncode == 0
    assert rows(database_url, "SELECT kind, arguments FROM commands") == [("reopen", {"expiresIn": 5400.0})]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("capture", "paid-1", "--amount", "89.01"),
            "89.01 DKK is more than the 89.00 DKK that is left to capture",
        ),
        (("capture", "paid-1", "--amount", "10.005"), "has more decimals than DKK has"),
        (("capture", "paid-1", "--amount", "0"), "--amount must be more than 0"),
        (("capture", "paid-1"), "say how much: --amount 10.00, or --all"),
        (("refund", "paid-1", "--reason", "x"), "say how much: --amount 10.00, or --all"),
        (("refund", "paid-1", "--amount", "1", "--all"), "and not both"),
        (("capture", "paid-1", "--all", "--transaction", "9"), "has no transaction '9'"),
        (("capture", "open-1", "--all"), "is awaiting payment and not paid"),
        (("refund", "paid-1", "--amount", "50.01"), "ask for 50.00 DKK at most"),
        (("release", "paid-1"), "refund what is captured"),
        (("reopen", "open-1"), "only what failed, expired or was cancelled is reopened"),
        (("reopen", "open-1", "--expires-in", "soon"), "'soon' is not a time span such as 90m, 24h or 7d"),
        (("resolve", "open-1", "keep"), "nothing about checkout"),
        (("resolve", "paid-1", "refund"), "'refund' is not one of"),
        (("cancel", "paid-1"), "release or refund it instead"),
        (("retry", "nowhere"), "there is no checkout with the id or order number 'nowhere'"),
        (("reconcile",), "name checkouts, or a period with --since"),
        (("reconcile", "paid-1", "--since", "1h"), "and not both"),
        (("reconcile", "paid-1", "--merchant", "default"), "--merchant goes with --since"),
        (("reconcile", "--since", "24"), "'24' is not a time span"),
        (("reconcile", "--restored-to", "2026-11-27 08:00"), "is not a moment with its offset"),
        (("reconcile", "--restored-to", "2999-01-01T00:00:00Z"), "lies in the future"),
        (
            ("reconcile", "--since", "1h", "--orders", "LICENSE"),
            "--orders goes with --restored-to and --merchant",
        ),
        (("reconcile", "--since", "1h", "--reach", "30d"), "--reach goes with --restored-to"),
        (("reconcile", "--since", "400d"), "of at most a year"),
        (("reconcile", "--since", "1h", "--merchant", "unknown"), "there is no merchant 'unknown'"),
        (("explain", "nowhere"), "there is no checkout"),
        (("show", ""), "there is no checkout with the id or order number ''"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_asked_for_is_one_sentence_and_stores_nothing(books, arguments, words):
    ended = orchestrator("checkouts", *arguments, **books)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert rows(books["DATABASE_URL"], "SELECT 1 FROM commands") == []


@pytest.mark.parametrize(
    ("statements", "ends"),
    [
        ((OPERATE.format("succeeded"), ACCEPT), (0, "Done: the capture of 10.00 DKK on transaction 7.")),
        ((OPERATE.format("rejected"), ACCEPT), (1, "Refused by the gateway: the capture of 10.00 DKK on transaction 7 (Card Declined).")),
        ((OPERATE.format("submitted"), ACCEPT), (1, "is still being executed")),
        ((ACCEPT,), (0, "Accepted.")),
        ((DONE,), (0, "Done: it is not asked again")),
        (("UPDATE commands SET handled_at = clock(), result = 'refused_cancelling' WHERE id = %(id)s",), (1, "Refused: it is being cancelled already")),
        (("SELECT 1",), (1, "was not executed by a worker yet")),
    ],
    ids=["done", "rejected", "slow", "accepted", "nothing", "refused", "unknown merchant"],
)  # fmt: skip
def test_the_outcome_of_money_operations_is_awaited_and_reported(books, database_url, statements, ends):
    status, words = ends
    unanswered = words.endswith(("yet", "executed"))
    with worker(database_url, *statements):
        ended = orchestrator(
            "checkouts",
            "capture",
            "paid-1",
            "--amount",
            "10",
            "--yes",
            "--wait",
            "3" if unanswered else "30",
            **books,
        )

    assert ended.returncode == status
    assert words in ended.stdout + ended.stderr
    assert "Asked for: capture of 10.00 DKK" in ended.stdout


@pytest.mark.parametrize(
    ("statements", "ends"),
    [
        ((), (1, "pending", ())),
        ((OPERATE.format("submitted"), ACCEPT), (1, "under_way", ())),
        ((OPERATE.format("succeeded"), ACCEPT), (0, "done", ("Done: the capture of 10.00 DKK on transaction 7.",))),
        ((OPERATE.format("rejected"), ACCEPT), (1, "failed", ("Refused by the gateway", "(Card Declined)"))),
        (("UPDATE commands SET handled_at = clock(), result = 'refused_cancelling' WHERE id = %(id)s",), (1, "refused", ("Refused: it is being",))),
    ],
    ids=["pending", "slow", "done", "rejected", "refused"],
)  # fmt: skip
def test_a_command_is_followed_by_its_id(books, database_url, statements, ends):
    status, state, words = ends
    orchestrator("checkouts", "capture", "paid-1", "--amount", "10", "--yes", "--wait", "0", **books)
    [(command,)] = rows(database_url, "SELECT id FROM commands")
    with worker(database_url, *statements) if statements else nullcontext():
        told = orchestrator("commands", "show", str(command), "--wait", "30" if words else "1", **books)
        printed = orchestrator("commands", "show", str(command), "--json", **books)

    assert (told.returncode, printed.returncode) == (status, status)
    assert f"Command {command}: capture of 10.00 DKK of checkout " in told.stdout
    assert f"State: {state}." in told.stdout
    assert all(one in told.stdout + told.stderr for one in words)
    document = json.loads(printed.stdout)
    assert (document["id"], document["state"], document["amount"]) == (str(command), state, 1000)
    assert str(command) in orchestrator("checkouts", "show", "paid-1", **books).stdout


def test_a_command_that_is_not_there_is_one_sentence(books):
    for wrong in ("019aa000-0000-7000-8000-000000000001", "paid-1"):
        ended = orchestrator("commands", "show", wrong, **books)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert f"there is no command '{wrong}'" in ended.stderr


def test_show_and_explain_show_operations_and_ways_out(books, database_url):
    with worker(database_url, OPERATE.format("rejected"), ACCEPT):
        orchestrator("checkouts", "capture", "paid-1", "--amount", "10", "--yes", **books)
    shown = orchestrator("checkouts", "show", "paid-1", **books)
    explained = orchestrator("checkouts", "explain", "paid-1", **books)

    assert re.search(r"capture +7 +10\.00 DKK +rejected +asked", shown.stdout)
    assert explained.returncode == 0
    assert (
        "Order paid-1 for 139.00 DKK is completed: its payment is captured in part. It needs a decision."
        in explained.stdout
    )
    assert "A capture of 10.00 DKK on transaction 7" in explained.stdout
    assert "Transaction 8 holds 139.00 DKK" in explained.stdout
    for title in ("Because", "Evidence", "Next", "You may"):
        assert f"\n{title}\n  - " in explained.stdout

    # Both orders of the fixture came with one correlation id.
    several = orchestrator("checkouts", "show", "--correlation", "c-1", **books)
    assert (several.returncode, len(several.stdout.splitlines())) == (0, 2)
    with psycopg.connect(direct(database_url), autocommit=True) as db:
        db.execute("UPDATE checkouts SET correlation_id = 'c-2' WHERE order_ref = 'paid-1'")
    single = orchestrator("checkouts", "show", "--correlation", "c-2", "--json", **books)
    assert json.loads(single.stdout)["orderId"] == "paid-1"
    for arguments in (("--correlation", "c-3"), (), ("paid-1", "--correlation", "c-2")):
        wrong = orchestrator("checkouts", "show", *arguments, **books)
        assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1), wrong.stderr


def test_checkouts_are_listed_by_what_is_held(books):
    def listed(*statuses: str) -> list[str]:
        chosen = [word for status in statuses for word in ("--payment-status", status)]
        ended = orchestrator("checkouts", "list", *chosen, **books)
        assert ended.returncode == 0, ended.stderr
        return [line.split()[1] for line in ended.stdout.splitlines()[1:]]

    assert listed("partially_captured") == ["paid-1"]
    assert listed("unpaid") == ["open-1"]
    assert listed("unpaid", "partially_captured") == ["paid-1", "open-1"]
    assert listed("refunded", "charged_back") == []
    wrong = orchestrator("checkouts", "list", "--payment-status", "paid", **books)
    assert (wrong.returncode, "'paid' is not one of" in wrong.stderr) == (2, True)


def test_what_needs_a_decision_is_listed_by_code_as_a_sentence_or_as_data(books):
    def listed(*chosen: str) -> str:
        ended = orchestrator("checkouts", "list", *chosen, **books)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    assert [line.split()[1] for line in listed("--attention").splitlines()[1:]] == ["paid-1"]
    assert "transactions 8 also hold money for this order" in listed("--attention", "surplus_payment")
    assert len(listed("--attention", "late_payment").splitlines()) == 1
    assert len(listed("--attention", "--state", "awaiting_payment").splitlines()) == 1
    [found] = json.loads(listed("--attention", "surplus_payment", "--json"))
    asked = found["attention"]
    assert (found["orderId"], asked["code"]) == ("paid-1", "surplus_payment")
    assert asked["message"] == "transactions 8 also hold money for this order"
    assert asked["payments"] == [{"transactionId": "8", "amount": 13900, "currency": "DKK"}]
    assert asked["since"]
    shown = json.loads(orchestrator("checkouts", "show", "open-1", "--json", **books).stdout)
    assert [shown[name] for name in ("attention", "lastError", "operations", "commands")] == [
        None,
        None,
        [],
        [],
    ]
    wrong = orchestrator("checkouts", "list", "--attention", "look", **books)
    assert (wrong.returncode, "'look' is not one of" in wrong.stderr) == (2, True)


def test_unmatched_money_is_listed(books):
    listed = orchestrator("payments", "list", "--role", "surplus", "--merchant", "default", **books)
    named = orchestrator("payments", "list", "--order", "paid-1", "--limit", "1", **books)

    assert re.search(r"^8 +default +paid-1 .* surplus +preauth +139\.00 DKK", listed.stdout, re.MULTILINE)
    assert len(listed.stdout.splitlines()) == 2
    assert (len(named.stdout.splitlines()), "There are more than 1" in named.stderr) == (2, True)


def test_money_that_cannot_be_read_is_printed_as_it_is_stored(books):
    with psycopg.connect(direct(books["DATABASE_URL"]), autocommit=True) as connection:
        connection.execute(
            "UPDATE payments SET currency = 'ISK', reserved = 0, raw_amounts = '{\"reserved\": \"1.990,50\"}' WHERE transaction_id = '8'"
        )
        connection.execute("UPDATE payments SET currency = 'QQQ' WHERE transaction_id = '7'")
        connection.execute("UPDATE checkouts SET currency = 'QQQ' WHERE order_ref = 'paid-1'")
    for arguments in (
        ("checkouts", "show", "paid-1"),
        ("payments", "list"),
        ("checkouts", "explain", "paid-1"),
    ):
        told = orchestrator(*arguments, **books)
        assert told.returncode == 0, told.stderr
        assert "1.990,50" in told.stdout
        assert "minor units of QQQ" in " ".join(told.stdout.split())
    assert orchestrator("checkouts", "list", **books).returncode == 0
    assert orchestrator("events", "list", **books).returncode == 0


# ── Reconciling many ──────────────────────────────────────────────────────────────────────────────────────


def counted(stdout):
    return {
        name: int(number.replace(",", ""))
        for name, number in re.findall(r"^([a-z ]+?) +([\d,]+)\s*$", stdout, re.MULTILINE)
    }


def test_reconciling_by_name_reports_what_changed(books, database_url):
    """As if the first were found paid, and half of the money of the second were charged back."""
    found = (
        """UPDATE checkouts SET state = 'completed', reserved = 13900, attention = 'late_payment'
            WHERE id = %(checkout)s AND order_ref = 'open-1'""",
        "UPDATE checkouts SET charged_back = 7000 WHERE id = %(checkout)s AND order_ref = 'paid-1'",
        DONE,
    )
    with worker(database_url, *found):
        ended = orchestrator("checkouts", "reconcile", "open-1", "paid-1", "open-1", **books)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert counted(ended.stdout) == {
        "asked": 2,
        "looked at": 2,
        "completed": 1,
        "money changed": 2,
        "attention raised": 1,
        "still waiting": 0,
    }


FILL = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, due_at, deadline, currency, amount, audit_sequence, audit_head,
                           correlation_id, created_at)
    SELECT (lpad(to_hex((extract(epoch FROM now() - make_interval(mins => n)) * 1000)::bigint), 12, '0')
            || '7000' || '8000' || lpad(to_hex(n), 12, '0'))::uuid, 1, 'o-' || n, 'awaiting_payment', clock(), clock(), 'DKK', 1, 1,
           '', '', clock() - make_interval(mins => n) FROM generate_series(1, 1000) n RETURNING 1
"""


def test_reconciling_a_period_goes_over_all_of_it_in_lists_and_over_nothing_else(books, database_url):
    rows(database_url, FILL)
    with worker(database_url, DONE):
        ended = orchestrator("checkouts", "reconcile", "--since", "10h", "--merchant", "default", **books)

    # Those of the last 599 minutes (the six hundredth passes while the command starts), and the two of the
    # fixture.
    assert ended.returncode == 0, ended.stderr
    assert counted(ended.stdout)["asked"] == 601
    assert counted(ended.stdout)["looked at"] == 601
    assert re.search(r"^asked 200 of 601, answered \d+$", ended.stderr, re.MULTILINE)
    assert rows(
        database_url,
        "SELECT count(*), count(DISTINCT checkout_id), max(substr(c.order_ref, 3)::int) FILTER (WHERE c.order_ref LIKE 'o-%') "
        "FROM commands k JOIN checkouts c ON c.id = k.checkout_id WHERE k.kind = 'reconcile'",
    ) == [(601, 601, 599)]


def test_an_unanswered_command_is_reported_and_is_a_failure(books, database_url):
    answered = "AND checkout_id = (SELECT id FROM checkouts WHERE order_ref = 'open-1')"
    refused = (
        "UPDATE commands SET handled_at = clock(), result = 'refused_nothing_to_decide' WHERE id = %(id)s "
    )
    with worker(database_url, refused + answered):
        ended = orchestrator("checkouts", "reconcile", "--since", "1h", "--timeout", "3", **books)

    assert ended.returncode == 1
    assert counted(ended.stdout) == {
        "asked": 2,
        "looked at": 0,
        "completed": 0,
        "money changed": 0,
        "attention raised": 0,
        "refused": 1,
        "still waiting": 1,
    }
    assert "Not all were answered" in ended.stderr


def test_reconciling_gives_up_once_when_nothing_is_answered(books, database_url):
    """With so many that it waits before it asks for all of them."""
    rows(database_url, FILL)
    began = time.monotonic()
    ended = orchestrator("checkouts", "reconcile", "--since", "20h", "--timeout", "10", **books)

    assert time.monotonic() - began < 20, "twice, it would take longer than that"
    assert (ended.returncode, "nothing came for 10 s" in ended.stderr) == (1, True)


def test_without_wait_a_command_is_only_stored(books, database_url):
    ended = orchestrator("checkouts", "reconcile", "--since", "1h", "--no-wait", **books)

    assert ended.returncode == 0
    assert counted(ended.stdout) == {"asked": 2}
    assert rows(database_url, "SELECT count(*) FROM commands WHERE kind = 'reconcile'") == [(2,)]


# ── A changed order ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ordered(database_url):
    """A database with a live checkout of order A-7, and the settings that reach it."""
    parsed = intents.parse(intent("A-7"))

    async def write():
        async with core(database_url, Encryptor(make_settings().secret_keys)) as new_core:
            await new_core.accept(order_ref="A-7", document=parsed.document, fingerprint=parsed.fingerprint)

    asyncio.run(write())
    return {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]'}


LAMP = {"itemId": "1", "description": "A lamp", "quantity": 1, "unitPrice": 99, "taxAmount": 0}
CHEAPER = {"order": {"amount": {"value": 99}, "orderLines": [LAMP]}}


@pytest.mark.parametrize("how", ["a file", "standard input"])
def test_an_order_is_changed_by_a_file_or_by_standard_input(ordered, tmp_path, how):
    file, given = "-", json.dumps(CHEAPER)
    if how == "a file":
        file, given = str(tmp_path / "change.json"), ""
        (tmp_path / "change.json").write_text(json.dumps(CHEAPER))
    asked = ("checkouts", "change", "A-7", file, "--reason", "a lamp less", "--wait", "0")
    ended = orchestrator(*asked, given=given, **ordered)

    assert (ended.returncode, ended.stderr) == (0, "")
    [(command, kind, reason, arguments)] = rows(
        ordered["DATABASE_URL"], "SELECT id, kind, reason, arguments FROM commands"
    )
    assert "Asked for: change of checkout" in ended.stdout
    assert str(command) in ended.stdout
    assert (kind, set(arguments)) == ("change", {"change"})
    assert "lamp" not in json.dumps([reason, arguments])
    with worker(
        ordered["DATABASE_URL"],
        "UPDATE commands SET handled_at = clock(), result = 'done_changed' WHERE id = %(id)s",
    ):
        shown = orchestrator("commands", "show", str(command), "--wait", "20", **ordered)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "Done: the order is changed" in shown.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "FILE must hold one JSON object"),
        ("[]", "FILE must hold one JSON object"),
        ('{"order": 1e', "FILE must hold one JSON object"),
        ('{"order": {"orderId": "B-1"}}', "order.orderId: cannot be changed"),
        ('{"order": {"amount": {"value": 1}}}', "order.orderLines: the lines sum to"),
    ],
)
def test_a_change_that_makes_no_order_is_one_sentence_and_stores_nothing(ordered, given, words):
    ended = orchestrator("checkouts", "change", "A-7", "-", given=given, **ordered)

    assert ended.returncode == 2
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert rows(ordered["DATABASE_URL"], "SELECT 1 FROM commands") == []


def test_a_checkout_that_has_ended_is_not_changed_by_the_command_line(ordered):
    with psycopg.connect(direct(ordered["DATABASE_URL"]), autocommit=True) as db:
        db.execute("UPDATE checkouts SET state = 'expired'")
    ended = orchestrator("checkouts", "change", "A-7", "-", given=json.dumps(CHEAPER), **ordered)

    assert ended.returncode == 2
    assert "reopen it before changing it" in ended.stderr
