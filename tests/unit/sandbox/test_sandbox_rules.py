"""Signing, test rules, devices and the store of the sandbox, without a server."""

from __future__ import annotations

import asyncio
import sqlite3
from decimal import Decimal

import pytest

from orchestrator.devkit.sandbox.documents import checksum, signature_header
from orchestrator.devkit.sandbox.methods import Device, device_of
from orchestrator.devkit.sandbox.rules import RESULTS, Outcome, forced, fraud_score, judge
from orchestrator.devkit.sandbox.store import Store


def test_the_checksum_vector():
    given = checksum(amount="139.00", currency="208", shop_orderid="000000081", secret="s3cret")
    assert given == "3b007b8c3869741109e016985e5289fd"


def test_the_signature_vector():
    header = signature_header(b"shop_orderid=ORD-1&status=succeeded", ["0123456789abcdef"], 1767600000)
    given = header.removeprefix("t=1767600000;s0=")
    assert given == "60ad0850aa657543c9b94d10022e9be8b1b884c8b341de3fee9935be1f07aa31"


def test_the_signature_header_numbers_its_secrets():
    header = signature_header(b"x", ["first secret", "second secret"], 5)
    alone = [
        signature_header(b"x", [secret], 5).removeprefix("t=5;s0=")
        for secret in ("first secret", "second secret")
    ]
    assert header == f"t=5;s0={alone[0]};s1={alone[1]}"


@pytest.mark.parametrize(
    ("pan", "amount", "outcome"),
    [
        ("4111111111111111", "1.23", Outcome.SUCCEEDED),
        ("4111111111111111", "5.66", Outcome.FAILED),
        ("4111111111111111", "5.660", Outcome.FAILED),
        ("4111111111111111", "5.661", Outcome.SUCCEEDED),
        ("4111111111111111", "566", Outcome.SUCCEEDED),
        ("4111111111111111", "56.60", Outcome.SUCCEEDED),
        ("4111111111111111", "5.67", Outcome.ERROR),
        ("4111111111111111", "5.68", Outcome.CHALLENGED),
        ("4180000000000567", "5.66", Outcome.ERROR),
        ("4180000000001566", "1.00", Outcome.SUCCEEDED),
        ("4170000000000568", "1.00", Outcome.CHALLENGED),
    ],
)
def test_the_last_digits_and_the_amount_mean_the_same(pan, amount, outcome):
    assert judge(pan, Decimal(amount)).outcome is outcome


def test_the_fraud_score_is_the_amount_modulo_101():
    assert fraud_score(Decimal("139.00")) == 38


def test_every_outcome_that_is_sent_has_a_result_word():
    assert {each.value for each in Outcome} - {"challenged"} <= set(RESULTS)
    assert forced("open").outcome is Outcome.OPEN


def test_an_unknown_device_gets_no_device_wallet():
    assert device_of("") is Device.OTHER


def test_the_store_keeps_the_last_version_in_the_order_of_the_first(tmp_path):
    async def write() -> None:
        store = Store(tmp_path / "state.db")
        store.put("session", "b", {"v": 1})
        store.put("session", "a", {"v": 1})
        await store.flushed()
        store.put("session", "b", {"v": 2})
        store.put("session", "c", {"v": 1})
        await asyncio.gather(store.flushed(), store.flushed())
        store.remove("session", "c")
        await store.flushed()
        store.close()

    asyncio.run(write())
    store = Store(tmp_path / "state.db")
    assert [key for key, _ in store.load("session")] == ["b", "a"]
    assert dict(store.load("session"))["b"] == b"\x81\xa1v\x02"
    store.close()


def test_two_sandboxes_cannot_share_a_state_file(tmp_path, monkeypatch):
    first = Store(tmp_path / "state.db")
    real = sqlite3.connect
    monkeypatch.setattr("sqlite3.connect", lambda path, **options: real(path, **{**options, "timeout": 0.05}))
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Store(tmp_path / "state.db")
    first.close()


def test_a_store_that_cannot_write_fails_its_waiters(tmp_path):
    async def write() -> None:
        store = Store(tmp_path / "state.db")
        store.put("session", "a", {"v": 1})
        store._connection.execute("DROP TABLE documents")
        with pytest.raises(sqlite3.OperationalError):
            await store.flushed()
        store._connection.close()

    asyncio.run(write())
