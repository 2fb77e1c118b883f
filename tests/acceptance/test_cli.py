"""Whatever is wrong with what a person typed or set is said in one sentence, with exit status 2 and no traceback."""

from __future__ import annotations

import fcntl
import re
import socket
from urllib.parse import urlsplit, urlunsplit

import psutil
import psycopg
import pytest

from orchestrator import access
from tests.acceptance.command import orchestrator
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings

JWT = {"JWT_SECRETS": f'["{JWT_SECRET}"]'}
NOBODY_THERE = "postgresql://u:p@127.0.0.1:1/x"

WRONG = [
    (("up",), {"LEASE_SECONDS": "soon"}, "ORCHESTRATOR_LEASE_SECONDS"),
    (("up",), {"LEASE_SECONDS": "5"}, "LEASE_SECONDS must be at least twice"),
    (("worker",), {"DATABASE_URI": "postgresql:///x"}, "did you mean ORCHESTRATOR_DATABASE_URL?"),
    (("api",), {"DATABASE_URL": "mysql://x"}, "ORCHESTRATOR_DATABASE_URL: must be a URL"),
    (("api",), {}, "ORCHESTRATOR_DATABASE_URL is not set"),
    (("worker",), {"DATABASE_URL": NOBODY_THERE}, "ORCHESTRATOR_BROKER_URL is not set"),
    (("up",), {"SECRET_KEYS": '["short"]'}, "ORCHESTRATOR_SECRET_KEYS: each key must be 32 bytes in base64"),
    (("up",), {"SECRET_KEYS": "not-a-list"}, "ORCHESTRATOR_SECRET_KEYS: must be a JSON array"),
    (("up", "--port", "99999"), {}, "--port"),
    (("up", "--prot", "1"), {}, "No such option"),
    (("fly",), {}, "No such command 'fly'"),
    (("demo", "--scenario", "pays_twice"), {}, "choose from pays_at_once"),
    (("demo", "--exit"), {"GATEWAY_URL": "http://127.0.0.1:9"}, "ORCHESTRATOR_GATEWAY_URL is set"),
    (("migrate",), {"DATABASE_URL": NOBODY_THERE}, "Postgres at 127.0.0.1:1/x cannot be used"),
    (("up", "--port", "0", "--data-dir", "/proc/x"), {}, "/proc/x cannot be used"),
    (("audit", "verify"), {"DATABASE_URL": NOBODY_THERE}, "Postgres at 127.0.0.1:1/x cannot be used"),
    (("audit", "verify", "--data-dir", "/nonexistent"), {}, "/nonexistent holds no installation"),
    (("checkouts", "list", "--state", "paid"), {}, "'paid' is not one of"),
    (("sandbox", "--data-dir", "/nonexistent"), {}, "ORCHESTRATOR_GATEWAY_USERNAME is not set"),
    (("token", "issue", "--merchant", "a", "--scope", "ops", "--data-dir", "/nonexistent"), {}, "JWT_SECRETS is not set"),
    (("token", "issue", "--merchant", "a", "--scope", "everything"), JWT, "not everything"),
    (("token", "issue", "--merchant", "a", "--scope", "ops", "--lifetime", "1y"), JWT, "'1y' is not a duration"),
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


def test_a_taken_port_is_said_before_anything_starts(tmp_path):
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
    parts = urlsplit(servers.database_url)
    url = {
        "refused": NOBODY_THERE,
        "missing": urlunsplit(parts._replace(path="/nothing_here")),
        "password": urlunsplit(parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":wrong@"))),
    }[trouble]
    command = "demo" if trouble == "refused" else "up"

    ended = orchestrator(command, "--port", "0", "--data-dir", tmp_path / "data", DATABASE_URL=url)

    assert ended.returncode == 2
    assert re.match(r"orchestrator: Postgres at .+ cannot be used \(.+\): start it, or correct", ended.stderr)
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "data" / "runtime.json").exists()
    # Whoever still used the directory would hold its lock.
    with (tmp_path / "data" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not [
        one
        for one in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(one.info["cmdline"] or ())
    ]


def test_an_unknown_revision_is_one_sentence(database_url):
    ended = orchestrator("migrate", "--to", "zzz", DATABASE_URL=database_url)

    assert ended.returncode == 2
    assert "cannot be brought to revision 'zzz'" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_keys_that_do_not_belong_to_the_database_are_noticed(database_url):
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(
            "INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac) "
            "VALUES (gen_random_uuid(), 1, now(), 'checkout:received', '{}', '0123abcd', '')"
        )
    known = {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]', **JWT}

    started = orchestrator("up", "--port", "0", "--ephemeral", **known)
    looked = orchestrator("doctor", **known)

    said = "written under secret key 0123abcd, which ORCHESTRATOR_SECRET_KEYS does not have"
    assert (started.returncode, said in started.stderr) == (2, True)
    assert len(started.stderr.strip().splitlines()) == 1
    assert looked.returncode == 1
    assert re.search(rf"^problem +keys +.*{said}", looked.stdout, re.MULTILINE)


def test_an_unknown_merchant_is_named(database_url):
    known = {"DATABASE_URL": database_url, **JWT}

    listed = orchestrator("checkouts", "list", "--merchant", "nobody", **known)
    warned = orchestrator("token", "issue", "--merchant", "nobody", "--scope", "ops", **known)
    silent = orchestrator("token", "issue", "--merchant", "default", "--scope", "ops", **known)

    assert (listed.returncode, "there is no merchant 'nobody'" in listed.stderr) == (2, True)
    assert (warned.returncode, "there is no merchant 'nobody'" in warned.stderr) == (0, True)
    assert access.verify(make_settings(), warned.stdout.removesuffix("\n")).merchant == "nobody"
    assert (silent.returncode, silent.stderr) == (0, "")


def test_token_issue_prints_the_token_and_nothing_else():
    ended = orchestrator(
        "token",
        "issue",
        "--merchant",
        "shop",
        "--scope",
        "checkouts:read checkouts:write",
        "--lifetime",
        "15m",
        **JWT,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    caller = access.verify(make_settings(), ended.stdout.removesuffix("\n"))
    assert caller.merchant == "shop"
    assert caller.scopes == {"checkouts:read", "checkouts:write"}


def test_every_command_has_help():
    listed = orchestrator("--help").stdout

    for command in ("up", "demo", "api", "worker", "scheduler", "sandbox", "migrate", "doctor", "token", "merchants",
                    "checkouts", "events", "audit"):  # fmt: skip
        assert f"  {command} " in listed
    for group in ((), ("token",), ("merchants",), ("checkouts",), ("events",), ("audit",)):
        commands = orchestrator(*group, "--help").stdout.partition("Commands:")[2]
        assert commands
        assert "..." not in commands


def test_a_database_without_schema_is_said_with_what_to_do(servers):
    ended = orchestrator("checkouts", "list", DATABASE_URL=servers.database_url)

    assert ended.returncode == 2
    assert "has no schema yet" in ended.stderr
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


def test_doctor_names_what_is_not_well_and_what_to_do(database_url):
    known = {
        "DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]', "BROKER_URL": "redis://127.0.0.1:1/0",
        "GATEWAY_URL": "http://127.0.0.1:1", **JWT,
    }  # fmt: skip

    ended = orchestrator("doctor", **known)
    heartbeat = orchestrator("doctor", "worker", **known)

    found = {line.split()[1]: line for line in ended.stdout.splitlines()}
    assert ended.returncode == 1
    assert all(found[name].startswith("ok") for name in ("settings", "database", "clock", "schema", "alarms"))
    assert all(found[name].startswith("problem") for name in ("workers", "schedulers", "gateway", "broker"))
    assert heartbeat.returncode == 1
    assert "no heartbeat of a worker" in heartbeat.stderr
