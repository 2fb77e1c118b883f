"""`orchestrator checkouts erase`: what it asks, what it refuses, and what it leaves."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import psycopg
import pytest

from orchestrator.crypto import Encryptor
from orchestrator.domain.states import State, Trigger
from orchestrator.intents import Problem
from orchestrator.store.inbox import rejected
from orchestrator.store.inbox.rejected import Rejection
from tests.conftest import SECRET_KEY, make_settings
from tests.support.command import orchestrator
from tests.support.factories import core, payment
from tests.support.pooler import direct


@pytest.fixture
def books(database_url: str) -> SimpleNamespace:
    """A database with an open, a cancelled, a captured and an authorized checkout."""
    known = {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]'}
    ids = {}

    async def write() -> None:
        async with core(database_url, Encryptor(make_settings().secret_keys)) as new_core:
            ids["open-1"] = await new_core.checkout(State.AWAITING_PAYMENT, order_ref="open-1")
            refused = Rejection(
                merchant_id=1,
                message_id="m",
                number=0,
                order_ref="never-1",
                code="invalid_intent",
                problems=(Problem("order", "is wrong"),),
                body=b"{}",
                correlation_id="c",
            )
            assert await rejected.store(new_core.db, new_core.encryptor, [refused]) == 1
            ids["gone-1"] = await new_core.checkout(State.CANCELLED, order_ref="gone-1")
            for order, captured in (("paid-1", 13900), ("held-1", 0)):
                held = await new_core.held(State.AWAITING_PAYMENT, order_ref=order)
                seen = (payment(order, order_ref=order, captured=captured),)
                held = await new_core.advance(
                    held, Trigger.PAYMENT_FOUND, payments=seen, money=(13900, captured, 0)
                )
                ids[order] = (await new_core.release(held)).id

    asyncio.run(write())
    return SimpleNamespace(settings=known, ids=ids, url=direct(database_url))


def erased(books: SimpleNamespace) -> set[str]:
    """Return the order numbers of the checkouts that have no data key any more."""
    with psycopg.connect(books.url) as db:
        rows = db.execute(
            "SELECT c.order_ref FROM checkouts c JOIN intents i ON i.checkout_id = c.id "
            "WHERE i.data_key IS NULL AND i.erased_at IS NOT NULL AND i.body = ''"
        ).fetchall()
    return {order for (order,) in rows}


def test_a_dry_run_says_what_would_go_and_changes_nothing(books):
    ended = orchestrator("checkouts", "erase", "gone-1", "paid-1", "open-1", "--dry-run", **books.settings)

    assert ended.returncode == 1
    assert ended.stdout == "The personal data of 2 checkouts would be erased; 1 was refused.\n"
    assert (
        f"Checkout {books.ids['open-1']} (order open-1) is not erased: the shopper may still pay it"
        in ended.stderr
    )
    assert "cancel it, and erase it once it is cancelled" in ended.stderr
    document = orchestrator("checkouts", "erase", "gone-1", "open-1", "--dry-run", "--json", **books.settings)
    assert (document.returncode, "is not erased" in document.stderr) == (1, True)
    assert json.loads(document.stdout) == {"dryRun": True, "checkouts": 1, "rejectedIntents": 0, "refused": 1}
    assert erased(books) == set()


def test_without_a_confirmation_nothing_is_erased(books):
    asked = ("checkouts", "erase")
    for chosen, described in (
        (("gone-1",), "1 checkout: order gone-1 of merchant default"),
        (("--order", "gone-1", "--merchant", "default"), "1 checkout: order gone-1 of merchant default"),
        (
            ("--ended-before", "2199-01-01"),
            "2 checkouts: those of all merchants that ended before 2199-01-01 00:00:00 UTC",
        ),
    ):
        ended = orchestrator(*asked, *chosen, **books.settings)
        assert f"Erase the personal data of {described}, for good? No terminal is there" in ended.stderr
        assert ended.returncode == 2
    assert erased(books) == set()


def test_what_may_go_goes_and_the_rest_is_refused_with_its_reason(books):
    ended = orchestrator(
        "checkouts", "erase", str(books.ids["paid-1"]), "gone-1", "held-1", "--yes", **books.settings
    )

    assert ended.returncode == 1
    assert ended.stdout == "The personal data of 2 checkouts was erased; 1 was refused.\n"
    assert "its payment is authorized and not captured: capture or release it first" in ended.stderr
    assert erased(books) == {"paid-1", "gone-1"}
    assert orchestrator("audit", "verify", **books.settings).returncode == 0
    again = orchestrator("checkouts", "erase", "gone-1", "--yes", **books.settings)
    assert (again.returncode, "was erased at" in again.stdout) == (0, True)
    assert "There is nothing to erase." in again.stdout
    document = orchestrator("checkouts", "erase", "gone-1", "--yes", "--json", **books.settings)
    assert json.loads(document.stdout)["checkouts"] == 0
    assert "was erased at" in document.stderr
    shown = orchestrator("checkouts", "show", "gone-1", **books.settings)
    assert (shown.returncode, "erased" in shown.stdout) == (0, True)
    explained = orchestrator("checkouts", "explain", "paid-1", **books.settings)
    assert "Its personal data was erased at" in explained.stdout
    assert "an operator (command line) erased the personal data" in explained.stdout
    facts = json.loads(orchestrator("checkouts", "show", "paid-1", "--json", **books.settings).stdout)
    assert (facts["captured"], facts["erasedAt"] is not None) == (13900, True)
    refused = orchestrator("checkouts", "reopen", "gone-1", "--wait", "0", **books.settings)
    assert (refused.returncode, "hand the order over as a new checkout" in refused.stderr) == (2, True)
    reason = orchestrator(
        "checkouts", "refund", "paid-1", "--all", "--yes", "--reason", "x", "--wait", "0", **books.settings
    )
    assert (reason.returncode, "leave it out" in reason.stderr) == (2, True)


def test_an_order_and_a_period_are_erased_of_one_merchant(books):
    assert (
        orchestrator(
            "checkouts", "erase", "--order", "gone-1", "--merchant", "default", "--yes", **books.settings
        ).returncode
        == 0
    )
    assert erased(books) == {"gone-1"}
    early = orchestrator("checkouts", "erase", "--ended-before", "2020-01-01", "--yes", **books.settings)
    assert (early.returncode, early.stdout) == (0, "There is nothing to erase.\n")
    late = orchestrator(
        "checkouts",
        "erase",
        "--ended-before",
        "2199-01-01T00:00:00Z",
        "--merchant",
        "default",
        "--yes",
        **books.settings,
    )
    assert late.returncode == 1
    assert late.stdout == "The personal data of 1 checkout was erased; 1 was refused.\n"
    assert erased(books) == {"gone-1", "paid-1"}


def test_what_was_refused_of_an_order_that_became_no_checkout_is_erased_too(books):
    named = ("checkouts", "erase", "--order", "never-1", "--merchant", "default")
    told = orchestrator(*named, "--dry-run", **books.settings)
    assert (told.returncode, told.stdout) == (
        0,
        "The personal data of 0 checkouts and 1 refused intent would be erased.\n",
    )
    assert orchestrator(*named, "--yes", **books.settings).returncode == 0
    with psycopg.connect(books.url) as db:
        rows = db.execute("SELECT data_key, body, errors FROM rejected_intents").fetchall()
    assert rows == [(None, b"", [])]
    assert orchestrator(*named, "--yes", **books.settings).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name checkouts, or an order with --order, or a period with --ended-before"),
        (("gone-1", "--order", "gone-1"), "name checkouts, or an order"),
        (("--order", "gone-1"), "--merchant goes with --order, which needs it"),
        (("gone-1", "--merchant", "default"), "--merchant goes with --order"),
        (("--ended-before", "yesterday"), "'yesterday' is not a time such as 2026-01-31"),
        (("--order", "none", "--merchant", "default", "--yes"), "this merchant has nothing of order 'none'"),
        (("--order", "gone-1", "--merchant", "absent"), "there is no merchant 'absent'"),
        (("none",), "there is no checkout with the id or order number 'none'"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_one_sentence(books, arguments, words):
    ended = orchestrator("checkouts", "erase", *arguments, **books.settings)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert words in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert erased(books) == set()
