"""What comes from outside is shown as it is, steers no terminal, and stops no command; a wrong environment is
one sentence.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import sys
from typing import NamedTuple
from urllib.parse import urlsplit

import psycopg
import pytest
import structlog

from orchestrator import cli
from orchestrator.crypto import Encryptor
from orchestrator.domain.states import State, Trigger
from orchestrator.settings import PREFIX
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings
from tests.support.factories import core, payment
from tests.support.pooler import direct

_RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = (
    "[/b]held", "[link=file:///etc/passwd]x[/link]", "[bold red]Paid[/]", "\x1b[2JPaid: yes", "\x9b2J", "A-\u202e1002",
    "A-1\nPaid: yes", "\x1b]8;;https://evil.example\x1b\\x", "[",
)  # fmt: skip


@pytest.fixture
def known(database_url):
    return {
        "DATABASE_URL": database_url,
        "SECRET_KEYS": f'["{SECRET_KEY}"]',
        "JWT_SECRETS": f'["{JWT_SECRET}"]',
        "BROKER_URL": "redis://127.0.0.1:1/0",
    }


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def orchestrator(monkeypatch, capsys):
    """Run a command in this process: a process of its own for each would take most of the time."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def run(*arguments: str, **settings: str) -> Ended:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith(PREFIX)]:
                patch.delenv(name)
            for name, value in settings.items():
                patch.setenv(PREFIX + name, value)
            patch.setattr(sys, "argv", ["orchestrator", *arguments])
            capsys.readouterr()
            with pytest.raises(SystemExit) as ended:
                cli.main()
            told = capsys.readouterr()
        return Ended(int(ended.value.code or 0), told.out, told.err)

    yield run
    structlog.reset_defaults()
    root.handlers[:] = before
    root.setLevel(level)


def write(database_url: str, text: str, *, currency: str = "DKK") -> str:
    """Store a paid checkout in which every text that can come from outside is this text; return its id."""

    async def paid() -> str:
        async with core(database_url, Encryptor(make_settings().secret_keys)) as new_core:
            held = await new_core.held(State.AWAITING_PAYMENT, order_ref="paid-1")
            seen = (payment("7", order_ref="paid-1"), payment("8", order_ref="paid-1", role="unknown"))
            held = await new_core.advance(
                held, Trigger.PAYMENT_FOUND, payments=seen, money=(13900, 0, 0), evidence={"status": text}
            )
            await new_core.release(held)
            return str(held.id)

    made = asyncio.run(paid())
    with psycopg.connect(direct(database_url), autocommit=True) as db:
        db.execute(
            "UPDATE checkouts SET order_ref = %(t)s, attention = 'unknown_payment: ' || %(t)s, last_error = %(t)s, currency = %(c)s",
            {"t": text, "c": currency},
        )
        db.execute(
            "UPDATE payments SET order_ref = %(t)s, status = %(t)s, currency = %(c)s",
            {"t": text, "c": currency},
        )
        db.execute(
            "UPDATE events SET payload = payload || jsonb_build_object('orderId', %(t)s::text)", {"t": text}
        )
    return made


def test_no_text_from_outside_is_markup_or_steers_the_terminal_in_any_command(
    orchestrator, database_url, known
):
    text = " ".join(HOSTILE)
    checkout = write(database_url, text)
    shown = (
        "[/b]held",
        "[link=file:///etc/passwd]x[/link]",
        "\ufffd[2JPaid:",
        "\ufffd2J",
        "A-\ufffd1002",
        "A-1\ufffdPaid:",
    )

    for arguments in (
        ("checkouts", "list"),
        ("checkouts", "show", checkout),
        ("checkouts", "explain", checkout),
        ("payments", "list"),
        ("events", "list", "--checkout", checkout),
        ("payments", "list", "--order", text),
    ):
        ended = orchestrator(*arguments, **known)
        assert (ended.returncode, ended.stderr) == (0, ""), arguments
        assert not _RAW.search(ended.stdout), arguments
        # A table folds a long cell over lines of its column.
        assert all(part in ended.stdout for part in shown), arguments
        assert not any(line.strip() == "Paid: yes" for line in ended.stdout.splitlines())


def test_the_exported_trail_is_json_without_raw_controls_and_with_its_content(
    orchestrator, database_url, known
):
    write(database_url, "A-\u202e1002 \x9b2J \x1b[2J")

    ended = orchestrator("audit", "export", **known)

    assert ended.returncode == 0
    assert not _RAW.search(ended.stdout)
    entries = [json.loads(line)["entry"] for line in ended.stdout.splitlines()]
    assert any("A-\u202e1002 \x9b2J" in entry for entry in entries)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_typed_text_is_printed_neutralised(orchestrator, known, text):
    for arguments in (
        ("checkouts", "show", text),
        ("checkouts", "list", "--merchant", text),
        (text,),
        ("checkouts", text),
    ):
        ended = orchestrator(*arguments, **known)
        assert ended.returncode == 2
        assert not _RAW.search(ended.stderr.replace("\t", ""))


@pytest.mark.parametrize("currency", ["BGN", "HRK", "ANG", "XYZ"])
def test_money_of_a_currency_that_is_gone_is_still_shown(orchestrator, database_url, known, currency):
    checkout = write(database_url, "A-1", currency=currency)

    for arguments in (
        ("checkouts", "list"),
        ("checkouts", "show", checkout),
        ("payments", "list"),
    ):
        ended = orchestrator(*arguments, **known)
        assert ended.returncode == 0, ended.stderr
        assert "139" in ended.stdout


# ── The environment ───────────────────────────────────────────────────────────────────────────────────────


def test_a_pod_beside_a_service_of_our_name_starts_every_command(orchestrator, known):
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
        "API_SERVICE_HOST": "10.0.0.2",
        "API_PORT_8000_TCP": "tcp://10.0.0.2:8000",
    }

    assert orchestrator("merchants", "list", **known, **links).returncode == 0
    misspelt = orchestrator("merchants", "list", **known, **links, DATABASE_PORT="5432")
    assert (misspelt.returncode, "ORCHESTRATOR_DATABASE_PORT is not a setting" in misspelt.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize("password", ["api-pass\n", "api-pass\r\n", " api-pass"])
def test_a_password_with_white_space_around_it_is_named(orchestrator, known, password):
    ended = orchestrator("doctor", **known, GATEWAY_PASSWORD=password)

    assert ended.returncode == 2
    assert "ORCHESTRATOR_GATEWAY_PASSWORD: " in ended.stderr
    assert "api-pass" not in ended.stderr


@pytest.mark.parametrize(
    ("public", "words"),
    [
        ("http://127.0.0.1:8000", "which only this machine reaches"),
        ("https://10.1.2.3", "which only a network of its own reaches"),
        ("https://pay.example:8443", "ports 80 and 443 only"),
        ("http://pay.example", "not encrypted"),
    ],
)
def test_doctor_says_what_keeps_a_real_gateway_from_our_callbacks(orchestrator, known, public, words):
    found = orchestrator("doctor", **known, PUBLIC_URL=public, GATEWAY_URL="https://shop.gateway.example")

    assert found.returncode == 1
    assert re.search(
        rf"^problem +address +ORCHESTRATOR_PUBLIC_URL is {re.escape(public)}.*{words}",
        found.stdout,
        re.MULTILINE,
    )


def test_doctor_says_so_of_another_merchants_gateway_and_without_a_database(
    orchestrator, database_url, known
):
    with psycopg.connect(direct(database_url), autocommit=True) as db:
        db.execute(
            "INSERT INTO merchants (name, gateway_url, username, password) VALUES ('shop2', 'https://two.gateway.example', 'u', 'x')"
        )
    beside = orchestrator("doctor", **known, GATEWAY_URL="http://127.0.0.1:1")
    without = orchestrator(
        "doctor",
        **known | {"DATABASE_URL": "postgresql://u:p@127.0.0.1:1/x"},
        GATEWAY_URL="https://shop.gateway.example",
    )

    assert "ORCHESTRATOR_PUBLIC_URL is http://127.0.0.1:8000" in beside.stdout
    assert "ORCHESTRATOR_PUBLIC_URL is http://127.0.0.1:8000" in without.stdout


def test_doctor_reports_no_address_with_a_gateway_on_this_machine(orchestrator, known):
    assert "PUBLIC_URL" not in orchestrator("doctor", **known, GATEWAY_URL="http://127.0.0.1:1").stdout


@pytest.mark.parametrize("command", ["api", "worker", "scheduler"])
def test_a_clock_that_tests_have_moved_stops_the_start_beside_a_real_gateway(
    orchestrator, database_url, known, command
):
    with psycopg.connect(direct(database_url), autocommit=True) as db:
        db.execute("UPDATE clock_skew SET seconds = 3600")

    ended = orchestrator(command, **known, GATEWAY_URL="https://shop.gateway.example")

    assert ended.returncode == 2
    assert ended.stderr == (
        "orchestrator: the clock of the database is moved forward by 3600 s, which is for tests with a gateway on this machine "
        "alone: set clock_skew.seconds to 0\n"
    )


@pytest.mark.parametrize("command", ["api", "sandbox"])
def test_a_host_name_that_does_not_exist_is_one_sentence(orchestrator, known, command):
    given = {**known, "GATEWAY_USERNAME": "u", "GATEWAY_PASSWORD": "p"}

    ended = orchestrator(command, "--host", "no-such-host.invalid", "--port", "8123", **given)

    assert ended.returncode == 2
    assert ended.stderr.startswith("orchestrator: --host 'no-such-host.invalid' is no address and no name")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["api", "sandbox"])
def test_a_port_that_is_taken_is_one_sentence_and_no_server_is_announced(orchestrator, known, command):
    given = {**known, "GATEWAY_USERNAME": "u", "GATEWAY_PASSWORD": "p"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = orchestrator(command, "--port", str(port), **given)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"orchestrator: port {port} of 127.0.0.1 cannot be used")
    assert len(ended.stderr.splitlines()) == 1


def test_a_database_on_a_host_that_does_not_exist_is_one_sentence(orchestrator, known):
    parts = urlsplit(known["DATABASE_URL"])
    url = f"postgresql://u:p@no-such-host.invalid:5432{parts.path}"

    ended = orchestrator("migrate", **known | {"DATABASE_URL": url})

    assert ended.returncode == 2
    assert "Postgres at no-such-host.invalid:5432" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
