"""The client and the sandbox, which share no code, agree on what happened to the money."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from orchestrator.devkit.sandbox import create_app
from orchestrator.domain.payment_meaning import PaymentMeaning, held, read
from orchestrator.gateway.client import Account
from orchestrator.gateway.client import Gateway as Client
from orchestrator.gateway.outcomes import Done, NotSent, Refused, Unauthorized, Unknown
from tests.integration.gateway.scene import settings
from tests.support.parties import CONFIG, Gateway, Merchant, serving

SETTINGS = settings(gateway_answer_limit=2_000_000)


@pytest.fixture(scope="module")
def gateway():
    shop = Merchant()
    with serving(shop.app) as shop_url, serving(create_app(CONFIG)) as url:
        shop.url = shop_url
        sandbox = Gateway(url, shop)
        yield sandbox
        sandbox.http.close()


@pytest.fixture
def order(request) -> str:
    return "".join(callback if callback.isalnum() else "-" for callback in request.node.name)[-90:].strip("-")


def paid(gateway, order, *, method="CARD", **changes):
    url = gateway.checkout(order, method=method, **changes)
    gateway.pay(url) if method == "CARD" else gateway.act(url, "accept")
    return gateway.ledger(order)[0]


def called(gateway, name, number, *, password=CONFIG.password, lease_guard=lambda: True, **fields):
    if name != "release":
        fields = {"amount": 3900, "currency": "DKK", "identifier": "op-1", **fields}
    account = Account("default", gateway.url, gateway.url, CONFIG.username, password)

    async def scene():
        async with Client(SETTINGS) as client:
            return await getattr(client, name)(
                account, transaction_id=number, lease_guard=lease_guard, **fields
            )

    return asyncio.run(scene())


def looked_up(gateway, order):
    account = Account("default", gateway.url, gateway.url, CONFIG.username, CONFIG.password)

    async def scene():
        async with Client(SETTINGS) as client:
            return await client.find_payments(account, order_ref=order)

    outcome = asyncio.run(scene())
    assert isinstance(outcome, Done)
    return outcome.value


def test_captures_and_refunds_move_what_they_say_under_their_names(gateway, order):
    number = paid(gateway, order)["transactionId"]
    first = called(gateway, "capture", number)
    second = called(gateway, "capture", number, amount=10000, identifier="op-2")
    back = called(gateway, "refund", number, amount=12, identifier="op-3")
    moved = [outcome.value for outcome in (first, second, back)]
    assert [(each.result, each.amount, held(each.transaction)) for each in moved] == [
        ("success", 3900, (13900, 3900, 0)),
        ("success", 10000, (13900, 13900, 0)),
        ("success", 12, (13900, 13900, 12)),
    ]
    assert moved[-1].transaction.reconciliations == ("op-1", "op-2", "op-3")
    (row,) = gateway.ledger(order)
    assert [(each["type"], each["amountMinor"], each["identifier"]) for each in row["movements"]] == [
        ("captured", 3900, "op-1"),
        ("captured", 10000, "op-2"),
        ("refunded", 12, "op-3"),
    ]


def test_already_captured_shows_by_its_totals(gateway, order):
    number = paid(gateway, order, configuration__autoCapture=True)["transactionId"]
    outcome = called(gateway, "capture", number, amount=13900)
    assert isinstance(outcome, Done)
    assert (outcome.value.result, outcome.value.amount, outcome.value.transaction.captured) == (
        "error",
        0,
        13900,
    )
    assert len(gateway.ledger(order)[0]["movements"]) == 1


@pytest.mark.parametrize(
    ("method", "status", "meaning"),
    [
        ("CARD", "released", PaymentMeaning.NOTHING),
        ("BANK_PAYMENT", "bank_payment_refunded", PaymentMeaning.REFUNDED),
    ],
)
def test_a_release_is_read_as_what_the_provider_made_of_it(*, gateway, order, method, status, meaning):
    number = paid(gateway, order, method=method)["transactionId"]
    outcome = called(gateway, "release", number)
    assert isinstance(outcome, Done)
    transaction = outcome.value.transaction
    assert (outcome.value.result, transaction.status, read(transaction)) == ("success", status, meaning)
    assert gateway.ledger(order)[0]["heldMinor"] == 0


def test_a_lost_answer_is_unknown_and_the_lookup_finds_the_movement(gateway, order):
    number = paid(gateway, order)["transactionId"]
    gateway.plan(order, fail={"capture": 1}, failStatus="reset", failAfter=True)
    assert isinstance(called(gateway, "capture", number), Unknown)
    (found,) = looked_up(gateway, order).transactions
    assert (found.captured, found.reconciliations) == (3900, ("op-1",))


def test_a_lease_guard_that_refuses_moves_nothing(gateway, order):
    number = paid(gateway, order)["transactionId"]
    for name in ("capture", "refund", "release"):
        assert isinstance(called(gateway, name, number, lease_guard=lambda: False), NotSent)
    row = gateway.ledger(order)[0]
    assert (row["movements"], row["heldMinor"]) == ([], 13900)


def test_an_unknown_transaction_is_refused_and_wrong_credentials_are_distinguished(gateway):
    assert called(gateway, "capture", "1") == Refused(200, "The gateway refused the request.", "10000002")
    assert isinstance(called(gateway, "release", "1", password="wrong"), Unauthorized)


def test_chargebacks_and_their_reversals_are_counted_alike(gateway, order):
    payment = paid(gateway, order, configuration__autoCapture=True)["paymentId"]
    gateway.control("POST", f"payments/{payment}/chargeback", {})
    gateway.control("POST", f"payments/{payment}/chargeback", {"amountMinor": 3900, "reversed": True})
    (found,) = looked_up(gateway, order).transactions
    assert (found.charged_back, found.raw_flags) == (10000, ())
    assert gateway.ledger(order)[0]["chargedBackMinor"] == 10000


def test_scheme_and_end_of_the_reservation_arrive(gateway, order):
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    gateway.plan(order, expiresInSeconds=7200)
    paid(gateway, order)
    (found,) = looked_up(gateway, order).transactions
    assert found.scheme == "visa"
    assert before <= found.reserved_until - dt.timedelta(seconds=7200) <= dt.datetime.now(dt.UTC)


@pytest.mark.parametrize(
    ("rows", "expected"), [(10, (10, False)), (100, (100, False)), (150, (150, False)), (250, (100, True))]
)
def test_a_long_history_proves_absence_only_where_its_two_ends_meet(gateway, order, rows, expected):
    gateway.plan(order, noiseRows=rows)
    found = looked_up(gateway, order)
    assert (len(found.transactions), found.at_limit) == expected
