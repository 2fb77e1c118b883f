"""What an operator does at a terminal: money is asked about first, the trail names the person, lists say when
there is nothing, and one screen says how the installation stands.
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import psycopg
import pytest

from orchestrator.crypto import Encryptor
from orchestrator.domain.states import State
from tests.conftest import make_settings
from tests.support.command import ROOT, environment, orchestrator, running
from tests.support.factories import core
from tests.support.forked import Popen
from tests.support.pooler import direct


def rows(books, statement):
    with psycopg.connect(direct(books["DATABASE_URL"]), autocommit=True) as db:
        return db.execute(statement).fetchall()


class Asked:
    """A command with a terminal as its standard input."""

    def __init__(self, *arguments, **settings):
        self._terminal, theirs = pty.openpty()
        self._process = Popen(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=ROOT,
            env=environment(*arguments, **settings),
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(theirs)
        self.question = ""
        while not self.question.endswith("[y/N] "):
            said = self._process.stderr.read(1)
            assert said, self.question
            self.question += said

    def answer(self, word):
        """Answer; return the exit status, what it said, and what it said on stderr since the question."""
        os.write(self._terminal, f"{word}\n".encode())
        out, err = self._process.communicate(timeout=60)
        os.close(self._terminal)
        return self._process.returncode, out, err


PAID = "order paid-1 of merchant default"


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (("capture", "paid-1", "--amount", "10"), f"Capture 10.00 of 89.00 DKK of {PAID} (transaction 7)?"),
        (("refund", "paid-1", "--all"), f"Refund 50.00 of 50.00 DKK of {PAID} (transaction 7)?"),
        (("release", "paid-1", "--transaction", "8"), f"Release 139.00 DKK of {PAID} (transaction 8)?"),
        (("resolve", "paid-1", "return"), f"Return 139.00 DKK on transaction 8 of {PAID} (surplus_payment)?"),
        (("resolve", "paid-1", "keep"), f"Keep 139.00 DKK on transaction 8 of {PAID} (surplus_payment)?"),
    ],
)  # fmt: skip
def test_without_a_terminal_and_without_yes_no_money_is_moved(books, arguments, question):
    ended = orchestrator("checkouts", *arguments, given="y\n", **books)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{question} No terminal is there to ask on, so say --yes" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert rows(books, "SELECT 1 FROM commands") == []


def test_money_is_moved_after_a_yes_alone_and_only_as_the_person_saw_it(books):
    asked = ("checkouts", "capture", "paid-1", "--amount", "10", "--wait", "0", "--as", "Ada Example")

    refused = Asked(*asked, **books)
    assert refused.question.endswith(f"Capture 10.00 of 89.00 DKK of {PAID} (transaction 7)? [y/N] ")
    status, out, err = refused.answer("n")
    assert (status, out, "Nothing was done." in err) == (1, "", True)

    moved = Asked(*asked, **books)
    rows(books, "UPDATE checkouts SET version = version + 1 WHERE order_ref = 'paid-1' RETURNING 1")
    status, out, err = moved.answer("y")
    assert (status, out) == (2, "")
    assert re.search(r"has version \d+ by now, and the capture was based on \d+: read it again", err)
    assert rows(books, "SELECT 1 FROM commands") == []

    status, out, err = Asked(*asked, **books).answer("y")
    assert (status, "Asked for: capture of 10.00 DKK" in out) == (0, True), err
    [(actor, expected, version)] = rows(
        books,
        "SELECT k.actor, k.expected_version, c.version FROM commands k JOIN checkouts c ON c.id = k.checkout_id",
    )
    assert (actor, expected) == ("operator:command-line/Ada Example", version)


def test_a_return_names_what_is_left_and_not_what_was_asked_about(books):
    rows(
        books,
        "UPDATE payments SET meaning = 'captured', captured = 13900, refunded = 10000 WHERE transaction_id = '8' RETURNING 1",
    )
    ended = orchestrator("checkouts", "resolve", "paid-1", "return", given="y\n", **books)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"Return 39.00 DKK on transaction 8 of {PAID} (surplus_payment)?" in ended.stderr


def test_a_surplus_that_is_held_is_not_dismissed(books):
    ended = orchestrator("checkouts", "resolve", "paid-1", "dismiss", "--yes", **books)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert "under 8 (139.00 DKK): say keep or return" in ended.stderr
    assert rows(books, "SELECT count(*) FROM commands WHERE kind = 'resolve'") == [(0,)]


@pytest.mark.parametrize("decision", ["keep", "return"])
def test_a_decision_is_bound_to_the_attention_that_was_shown(books, decision):
    asked = Asked("checkouts", "resolve", "paid-1", decision, "--wait", "0", **books)
    rows(
        books,
        "UPDATE checkouts SET version = version + 1, attention = 'late_payment' WHERE order_ref = 'paid-1' RETURNING 1",
    )
    status, out, err = asked.answer("y")
    assert (status, out) == (2, "")
    assert re.search(r"has version \d+ by now, and the resolve was based on \d+: read it again", err)
    assert rows(books, "SELECT 1 FROM commands") == []


@pytest.mark.parametrize(
    "wanted",
    [
        ("refund", "paid-1", "--amount", "50"),
        ("capture", "paid-1", "--all", "--reason", "shipped"),
        ("release", "paid-1", "--transaction", "8"),
    ],
)
def test_the_same_command_with_the_same_key_is_stored_once(books, wanted):
    def ask(*more):
        return orchestrator("checkouts", *wanted, *more, "--key", "k-1", "--yes", "--wait", "0", **books)

    first = ask()
    # As if a worker had executed it: what is left has changed, and so has the version.
    rows(books, "UPDATE checkouts SET version = version + 1 WHERE order_ref = 'paid-1' RETURNING 1")
    again, other = ask("--json"), ask("--reason", "another")

    [(command,)] = rows(books, "SELECT id FROM commands")
    assert (first.returncode, str(command) in first.stdout) == (0, True), first.stderr
    assert (again.returncode, json.loads(again.stdout)["id"]) == (0, str(command))
    assert again.stderr == ""
    told = ask()
    assert f"The key was used before for the same command, {command}" in told.stdout
    assert (other.returncode, "'k-1' was used before with other content" in other.stderr) == (2, True)
    wrong = orchestrator("checkouts", *wanted, "--yes", "--key", "a b", **books)
    assert (wrong.returncode, "visible ASCII" in wrong.stderr) == (2, True)


def test_a_command_whose_storing_is_interrupted_names_its_key(books):
    with psycopg.connect(direct(books["DATABASE_URL"])) as held:
        held.execute("LOCK TABLE commands IN SHARE ROW EXCLUSIVE MODE")
        ended = Popen(
            [sys.executable, "-m", "orchestrator", "checkouts", "refund", "paid-1", "--all", "--yes"],
            cwd=ROOT,
            env=environment(**books),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(300):
            blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INTO commands%'"
            if rows(books, blocked):
                break
            time.sleep(0.1)
        ended.send_signal(signal.SIGINT)
        out, err = ended.communicate(timeout=30)
    assert (ended.returncode, out) == (130, "")
    [key] = re.findall(r"not known whether the refund is stored: repeat the command with --key (\S+),", err)
    stored = orchestrator(
        "checkouts", "refund", "paid-1", "--all", "--yes", "--key", key, "--wait", "0", **books
    )
    assert (stored.returncode, len(rows(books, "SELECT 1 FROM commands"))) == (0, 1)


@pytest.fixture
def shared(books):
    """`books`, where another merchant has the order numbers, too."""
    with psycopg.connect(direct(books["DATABASE_URL"]), autocommit=True) as db:
        db.execute("INSERT INTO merchants (name) VALUES ('second')")

    async def write():
        async with core(books["DATABASE_URL"], Encryptor(make_settings().secret_keys)) as new_core:
            (second,) = await new_core.all("SELECT id FROM merchants WHERE name = 'second'")
            await new_core.checkout(State.AWAITING_PAYMENT, order_ref="paid-1", merchant_id=second)
            await new_core.checkout(State.EXPIRED, order_ref="open-1", merchant_id=second)

    asyncio.run(write())
    return books


def test_an_order_number_of_two_merchants_means_no_checkout(shared):
    for order, asked in (
        ("paid-1", ("refund", "paid-1", "--all", "--yes")),
        ("paid-1", ("resolve", "paid-1", "return", "--yes")),
        ("open-1", ("cancel", "open-1")),
        ("open-1", ("show", "open-1")),
        ("open-1", ("reconcile", "open-1", "--no-wait")),
        ("paid-1", ("erase", "paid-1", "--yes")),
    ):
        ended = orchestrator("checkouts", *asked, **shared)
        assert (ended.returncode, ended.stdout) == (2, ""), asked
        assert f"order number '{order}' belongs to several merchants (" in ended.stderr
        assert "default" in ended.stderr
        assert "second" in ended.stderr
        assert f"`orchestrator checkouts list --order {order}`" in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
    assert rows(shared, "SELECT 1 FROM commands") == []
    assert rows(shared, "SELECT 1 FROM intents WHERE data_key IS NULL") == []

    found = json.loads(orchestrator("checkouts", "list", "--order", "open-1", "--json", **shared).stdout)
    assert [(one["merchant"], one["state"]) for one in found] == [
        ("second", "expired"),
        ("default", "awaiting_payment"),
    ]
    paid = json.loads(orchestrator("payments", "list", "--order", "paid-1", "--json", **shared).stdout)
    assert {(one["merchant"], one["transactionId"]) for one in paid} == {("default", "7"), ("default", "8")}
    by_id = orchestrator("checkouts", "cancel", found[1]["id"], **shared)
    assert by_id.returncode == 0, by_id.stderr


def test_a_script_says_yes_and_reads_json(books):
    asked = ("checkouts", "refund", "paid-1", "--amount", "1.50", "--yes", "--wait", "0", "--json")
    ended = orchestrator(*asked, "--as", "ada", "--reason", "broken", **books)

    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    assert (told["kind"], told["state"], told["amount"], told["reason"]) == (
        "refund",
        "pending",
        150,
        "broken",
    )
    assert told["requestedBy"] == "operator:command-line/ada"
    assert rows(books, "SELECT expected_version FROM commands") == [(None,)]


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\nb", "a\u202eb"])
def test_a_name_for_the_trail_is_short_and_printable(books, name):
    ended = orchestrator("checkouts", "retry", "open-1", "--as", name, **books)
    assert (ended.returncode, "1 to 100 printable characters" in ended.stderr) == (2, True)
    link = orchestrator("console", "link", "--as", name, **books)
    assert (link.returncode, link.stdout, "1 to 100 printable" in link.stderr) == (2, "", True)
    assert rows(books, "SELECT 1 FROM commands") == []


def test_the_trail_names_who_changed_a_merchant(books):
    orchestrator("merchants", "set", "default", "late=keep", "--as", "ada", **books)
    history = json.loads(orchestrator("merchants", "history", "default", "--json", **books).stdout)
    assert history[0]["actor"] == "operator:command-line/ada"


def test_a_list_of_nothing_is_a_sentence_and_as_json_an_empty_list(books):
    rows(books, "UPDATE checkouts SET attention = NULL, attention_details = NULL RETURNING 1")
    for arguments, sentence in (
        (("checkouts", "list", "--attention"), "Nothing waits for a decision."),
        (("checkouts", "list", "--order", "nowhere"), "No checkout matches."),
        (("payments", "list", "--role", "unknown"), "No payment matches."),
        (("rejected-intents", "list"), "No intent of the queue was refused."),
        (("webhooks", "list"), "Merchant default has no webhook."),
    ):
        said = orchestrator(*arguments, **books)
        assert (said.returncode, said.stdout) == (0, f"{sentence}\n"), arguments
        assert json.loads(orchestrator(*arguments, "--json", **books).stdout) == []
    assert orchestrator("events", "list", "--after", "99", **books).stdout == "No event matches.\n"


def test_lists_are_filtered_by_transaction_period_amount_and_cursor(books):
    def listed(*chosen):
        ended = orchestrator("checkouts", "list", "--json", *chosen, **books)
        assert ended.returncode == 0, ended.stderr
        return [one["orderId"] for one in json.loads(ended.stdout)]

    assert listed("--transaction", "8") == ["paid-1"]
    assert listed("--transaction", "no-such") == []
    assert listed("--since", "1h", "--until", "2999-01-01") == ["paid-1", "open-1"]
    assert listed("--until", "1h") == listed("--since", "2999-01-01") == []
    assert listed("--since", "1d", "--amount", "139.00 dkk", "--state", "completed") == ["paid-1"]
    assert listed("--order", "paid-1", "--amount", "139.01 DKK") == []
    [(first,)] = rows(books, "SELECT id FROM checkouts WHERE order_ref = 'paid-1'")
    assert listed("--before", str(first)) == ["open-1"]
    assert (
        f"the next with --before {first}" in orchestrator("checkouts", "list", "--limit", "1", **books).stderr
    )
    for wrong, words in (
        (("--amount", "139.00 DKK"), "--amount goes with --since"),
        (("--since", "1h", "--amount", "139.00"), 'such as "139.00 DKK"'),
        (("--since", "yesterday"), "is not a time such as 2026-01-31"),
    ):
        ended = orchestrator("checkouts", "list", *wrong, **books)
        assert (ended.returncode, words in ended.stderr) == (2, True), ended.stderr


def test_every_list_says_what_it_leaves_out_also_as_json(books):
    for late in ("keep", "return"):
        orchestrator("merchants", "set", "default", f"late={late}", **books)
    for listed in (
        ("checkouts", "list"),
        ("payments", "list"),
        ("merchants", "history", "default"),
    ):
        for form in ((), ("--json",)):
            cut = orchestrator(*listed, "--limit", "1", *form, **books)
            assert cut.stderr.startswith("There are more than 1: "), (listed, cut.stderr)
            whole = orchestrator(*listed, "--limit", "2", *form, **books)
            assert (whole.returncode, whole.stderr) == (0, ""), listed
            assert len(whole.stdout) > len(cut.stdout)


def test_payments_and_explanations_are_data_for_programs(books):
    [surplus] = json.loads(orchestrator("payments", "list", "--role", "surplus", "--json", **books).stdout)
    assert (surplus["transactionId"], surplus["merchant"], surplus["reserved"]) == ("8", "default", 13900)
    told = json.loads(orchestrator("checkouts", "explain", "paid-1", "--json", **books).stdout)
    assert "needs a decision" in told["summary"]
    assert told["youMay"]
    elsewhere = orchestrator("checkouts", "explain", "paid-1", "--data-dir", "/srv/our shop", **books).stdout
    assert "keep --data-dir '/srv/our shop'`" in elsewhere
    assert "add `--as NAME`" in elsewhere
    trail = json.loads(orchestrator("audit", "verify", "--json", **books).stdout)
    assert (trail["holds"], trail["checkouts"], trail["problems"]) == (True, 2, [])


def test_one_screen_says_how_the_installation_stands(books):
    said = orchestrator("status", **books)
    told = json.loads(orchestrator("status", "--json", **books).stdout)

    assert (said.returncode, said.stderr) == (0, "")
    assert re.search(r"^surplus_payment +1 +139\.00 DKK +\d+ s", said.stdout, re.MULTILINE)
    assert re.search(r"^awaiting_payment +1 +\d+ s", said.stdout, re.MULTILINE)
    assert "no worker is alive" in said.stdout
    assert len(said.stdout.splitlines()) <= 40
    [decision] = told["decisions"]
    assert (decision["code"], decision["number"], decision["amount"], decision["currency"]) == (
        "surplus_payment",
        1,
        13900,
        "DKK",
    )
    assert told["open"]["awaiting_payment"]["number"] == 1
    assert (told["createdInLastMinute"], told["processes"]) == (2, {})
    assert set(told["queues"]) == {"checkouts", "callbacks", "commands", "deliveries", "events"}
    rows(books, "UPDATE checkouts SET attention = NULL, attention_details = NULL RETURNING 1")
    assert "Nothing waits for a decision." in orchestrator("status", **books).stdout


@contextmanager
def following(*arguments, tmp_path, books):
    with running(*arguments, data_dir=tmp_path, **books) as command:
        yield command


def test_a_checkout_is_watched_until_it_has_ended(books, tmp_path):
    with following("checkouts", "watch", "open-1", tmp_path=tmp_path, books=books) as watched:
        watched.until_said("awaiting_payment  unpaid")
        threading.Timer(0.1, rows, (books, EXPIRE)).start()
        assert watched.process.wait(30) == 0
        watched.read_to_the_end()
    assert re.search(r"^[\d-]+ [\d:]+  expired  unpaid$", watched.said, re.MULTILINE), watched.said
    ended = json.loads(orchestrator("checkouts", "watch", "paid-1", "--json", **books).stdout)
    assert (ended["state"], ended["captured"]) == ("completed", 5000)


EXPIRE = (
    "UPDATE checkouts SET state = 'expired', version = version + 1 WHERE order_ref = 'open-1' RETURNING 1"
)


def test_status_is_shown_again_and_again(books, tmp_path):
    with following(
        "status", "--watch", "--json", "--interval", "0.5", tmp_path=tmp_path, books=books
    ) as shown:
        shown.until(lambda: shown.said.count('"decisions"') >= 3, "three readings")
        assert shown.end() == 130
    assert [json.loads(line)["createdInLastMinute"] for line in shown.said.splitlines()[:3]] == [2, 2, 2]
