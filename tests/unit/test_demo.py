"""The demo fails on what is not as scripted, or not in both books."""

from __future__ import annotations

import msgspec
import pytest

from orchestrator.api.contract import answers
from orchestrator.api.contract.examples import EXAMPLES
from orchestrator.devkit.demo.evidence import Balance, Observations
from orchestrator.devkit.demo.scripts import GROUPS, MERCHANTS, choose
from orchestrator.devkit.demo.shop import Unscripted
from orchestrator.devkit.local import terminal
from orchestrator.store.merchant_fields import policy

GOOD = {
    "summary": "Order 1 is paid.",
    "because": ["Transaction 1 pays it."],
    "evidence": ["At noon we asked the gateway."],
    "next": {"what": "Nothing.", "at": None},
    "youMay": [],
}
OPERATION = {
    "id": "019aa000-0000-7000-8000-00000000000d", "kind": "capture", "transactionId": "1", "amount": 5.0, "currency": "EUR",
    "state": "succeeded", "cause": "asked", "commandId": None, "requestedAt": "2026-01-05T10:00:00Z", "submittedAt": None,
    "settledAt": None, "error": None, "errorCode": None,
}  # fmt: skip


def observed(
    *movements,
    captured=500,
    refunded=0,
    books_captured=None,
    status="captured",
    known=("a", "b"),
    explained=GOOD,
):
    """One order over 5.00 EUR with one transaction; each movement is its type and the identifier under which
    it was made.
    """
    ledger = {
        "transactionId": "1",
        "outcome": "succeeded",
        "status": status,
        "reservedMinor": 500,
        "capturedMinor": captured,
        "refundedMinor": refunded,
        "movements": [{"type": kind, "identifier": name, "by": "merchant"} for kind, name in movements],
    }
    booked = captured if books_captured is None else books_captured
    payment = EXAMPLES["Payment"] | {
        "transactionId": "1",
        "currency": "EUR",
        "reserved": 0.0 if status == "released" else 5.0,
        "captured": booked / 100,
        "refunded": refunded / 100,
    }
    operations = [OPERATION | {"reconciliationIdentifier": name} for name in known]
    checkout = EXAMPLES["Checkout"] | {"payments": [payment], "operations": operations}
    return Observations(
        msgspec.json.decode(msgspec.json.encode(checkout), type=answers.Checkout),
        [ledger],
        [],
        explained and msgspec.convert(explained, answers.Explanation),
    )


def test_books_that_agree_with_the_ledger_pass():
    order = observed(("captured", "a"), ("refunded", "b"), refunded=500)

    order.check_money()
    order.check_movements(("captured", "refunded"))
    order.check_explanation()


def test_one_minor_unit_between_ledger_and_books_is_found():
    with pytest.raises(
        Unscripted, match=r"\(500, 500, 0\) of transaction 1 in our books, saw \(500, 499, 0\)"
    ):
        observed(("captured", "a"), books_captured=499).check_money()


def test_a_transaction_that_only_the_ledger_has_is_found():
    order = observed(("captured", "a"))
    order.checkout.payments.clear()

    with pytest.raises(Unscripted, match="saw nothing"):
        order.check_money()


def test_a_released_reservation_is_none():
    observed(("released", ""), captured=0, status="released").check_money()


@pytest.mark.parametrize(
    ("movements", "wanted"),
    [
        ((("captured", "a"), ("captured", "b")), ("captured",)),
        ((("captured", "a"), ("captured", "a")), ("captured", "captured")),
        ((("captured", "stranger"),), ("captured",)),
        ((), ("captured",)),
        ((("captured", "a"),), ()),
    ],
    ids=["twice", "twice under one name", "under a name that is not ours", "never", "unasked"],
)
def test_a_capture_that_is_not_in_the_script_is_found(movements, wanted):
    with pytest.raises(Unscripted):
        observed(*movements).check_movements(wanted)


@pytest.mark.parametrize(("captured", "refunded"), [(501, 0), (500, 501)])
def test_more_than_there_was_is_found(captured, refunded):
    with pytest.raises(Unscripted, match="no more captured than reserved"):
        observed(("captured", "a"), captured=captured, refunded=refunded).check_movements(("captured",))


@pytest.mark.parametrize(
    "wrong", [None, GOOD | {"because": []}, GOOD | {"evidence": ["look"]}, GOOD | {"summary": ""}]
)
def test_an_explanation_that_says_nothing_is_found(wrong):
    with pytest.raises(Unscripted, match="whole sentences"):
        observed(explained=wrong).check_explanation()


def test_sums_agree_only_to_the_minor_unit():
    assert Balance("EUR", (500, 500, 0), (500, 500, 0)).agrees
    assert not Balance("EUR", (500, 500, 0), (500, 500, 1)).agrees


def test_a_scenario_is_a_group_or_a_script_each_played_once():
    assert choose(()) == list(GROUPS["checkout"])
    assert choose(("money", "released")) == list(GROUPS["money"])
    assert [script.name for script in choose(("released", "pays_at_once", "released"))] == [
        "released",
        "pays_at_once",
    ]
    with pytest.raises(ValueError, match=r"^monney does not exist: choose a group \(checkout, money, all\)"):
        choose(("monney",))


def test_every_script_has_a_name_of_its_own_and_a_merchant_that_exists():
    names = [script.name for script in GROUPS["all"]]

    assert len(set(names)) == len(names)
    assert not set(names) & GROUPS.keys()
    assert {script.merchant for script in GROUPS["all"]} == {"default", *MERCHANTS}


def test_the_policies_of_the_merchants_are_policies():
    for policies in MERCHANTS.values():
        for name, value in policies.items():
            assert policy(name, value) == value


@pytest.mark.parametrize(
    ("started", "found", "shown"),
    [
        ("{here}/.venv/bin/orchestrator", None, ".venv/bin/orchestrator"),
        ("{here}/.venv/bin/orchestrator", "{here}/.venv/bin/orchestrator", "orchestrator"),
        ("{here}/.venv/bin/orchestrator", "{here}/elsewhere/orchestrator", ".venv/bin/orchestrator"),
        ("{here}/../of us/orchestrator", None, "'{here}/../of us/orchestrator'"),
        ("/usr/lib/python3/orchestrator/__main__.py", None, "orchestrator"),
    ],
)
def test_commands_are_shown_as_they_can_be_started_here(monkeypatch, tmp_path, *, started, found, shown):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.sys, "argv", [started.format(here=tmp_path)])
    monkeypatch.setattr(terminal.shutil, "which", lambda _: found and found.format(here=tmp_path))
    assert terminal.program() == shown.format(here=tmp_path)
