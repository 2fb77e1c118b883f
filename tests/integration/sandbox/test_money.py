"""Money calls that fail, refuse or lose their answer, and what moves at the gateway itself: the ledger has
each effect once.
"""

from __future__ import annotations

import httpx
import pytest

CALLS = {
    "capture": ("captureReservation", {"amount": "39.00", "reconciliation_identifier": "op-1"}),
    "refund": ("refundCapturedReservation", {"amount": "39.00", "reconciliation_identifier": "op-1"}),
    "release": ("releaseReservation", {}),
}
MOVED = {"capture": "captured", "refund": "refunded", "release": "released"}


@pytest.fixture(params=list(CALLS))
def call(request, gateway, order):
    """A payment that the call in question may be made for; returns its name and how to make it."""
    gateway.pay(gateway.checkout(order, configuration__autoCapture=request.param == "refund"))
    number = gateway.ledger(order)[0]["transactionId"]
    method, fields = CALLS[request.param]

    def make(**options):
        data = {"transaction_id": number, **fields}
        return gateway.http.post(f"/merchant/API/{method}", data=data, auth=gateway.basic, **options)

    return request.param, make


def movements(gateway, order, *, by="merchant"):
    (row,) = gateway.ledger(order)
    return [
        (each["type"], each["amountMinor"], each["identifier"])
        for each in row["movements"]
        if each["by"] == by
    ]


def expected(name):
    return (MOVED[name], 13900, "") if name == "release" else (MOVED[name], 3900, "op-1")


def test_a_money_call_fails_as_often_as_planned_and_has_no_effect(gateway, order, call):
    name, make = call
    gateway.plan(order, fail={name: 2}, failStatus=500)
    assert [make().status_code for _ in range(2)] == [500, 500]
    assert movements(gateway, order) == []
    assert make().status_code == 200
    assert movements(gateway, order) == [expected(name)]


@pytest.mark.parametrize("how", [502, "reset", "timeout", "empty", "malformed"])
def test_a_money_call_can_take_effect_and_lose_its_answer(*, gateway, order, call, how):
    name, make = call
    gateway.plan(order, fail={name: 1}, failStatus=how, failAfter=True)
    try:
        answer = make(timeout=0.3)
    except httpx.TransportError:
        answer = None
    assert answer is None or b"<Result>" not in answer.content
    assert movements(gateway, order) == [expected(name)]
    (row,) = gateway.ledger(order)
    totals = (row["capturedMinor"], row["refundedMinor"], row["heldMinor"])
    assert totals == {"capture": (3900, 0, 13900), "refund": (13900, 3900, 10000), "release": (0, 0, 0)}[name]


@pytest.mark.parametrize("word", ["Error", "Failed"])
def test_a_money_call_can_be_refused_by_the_acquirer(*, gateway, order, call, word):
    name, make = call
    gateway.plan(order, refuse={name: 1}, refuseResult=word)
    text = make().text
    assert text.count(f"Result>{word}</") == 2  # Result and its deprecated twin
    assert "<ErrorCode>0</ErrorCode>" in text
    assert "<TransactionId>" in text
    assert movements(gateway, order) == []
    assert "<Result>Success</Result>" in make().text
    assert movements(gateway, order) == [expected(name)]


def test_every_movement_stands_in_the_ledger_with_its_name(gateway, order):
    gateway.pay(gateway.checkout(order))
    number = gateway.ledger(order)[0]["transactionId"]
    for amount, name in (("39.00", "c-1"), ("100.00", "c-2")):
        fields = {"transaction_id": number, "amount": amount, "reconciliation_identifier": name}
        gateway.merchant_api("POST", "captureReservation", fields)
    fields = {"transaction_id": number, "amount": "0.12", "reconciliation_identifier": "r-1"}
    gateway.merchant_api("POST", "refundCapturedReservation", fields)
    assert movements(gateway, order) == [
        ("captured", 3900, "c-1"),
        ("captured", 10000, "c-2"),
        ("refunded", 12, "r-1"),
    ]
    assert movements(gateway, order, by="gateway") == []
    echoed = [
        each.findtext("Id") for each in gateway.lookup(shop_orderid=order).iter("ReconciliationIdentifier")
    ]
    assert echoed == ["c-1", "c-2", "r-1"]


@pytest.mark.parametrize(("method", "echo"), [("CARD", False), ("BANK_PAYMENT", True)])
def test_whether_a_method_echoes_the_identifier_can_be_planned(*, gateway, order, method, echo):
    url = gateway.checkout(order, method=method, configuration__autoCapture=True)
    gateway.pay(url) if method == "CARD" else gateway.act(url, "accept")
    gateway.plan(order, echo=echo)
    number = gateway.ledger(order)[0]["transactionId"]
    fields = {"transaction_id": number, "amount": "1.00", "reconciliation_identifier": "mine"}
    gateway.merchant_api("POST", "refundCapturedReservation", fields)
    (found,) = gateway.lookup(transaction_id=number).iter("ReconciliationIdentifier")
    assert (found.findtext("Id") == "mine") is echo
    assert movements(gateway, order) == [("refunded", 100, "mine")]


def test_a_bank_makes_a_refund_of_a_release(gateway, order):
    gateway.act(gateway.checkout(order, method="BANK_PAYMENT"), "accept")
    number = gateway.ledger(order)[0]["transactionId"]
    answer = gateway.merchant_api("POST", "releaseReservation", {"transaction_id": number})
    assert answer.findtext("Body/Result") == answer.findtext("Body/CancelResult") == "Success"
    assert answer.findtext(".//TransactionStatus") == "bank_payment_refunded"
    assert answer.findtext(".//RefundedAmount") == "139.00"
    (row,) = gateway.ledger(order)
    assert (row["refundedMinor"], row["heldMinor"]) == (13900, 0)
    again = gateway.merchant_api("POST", "releaseReservation", {"transaction_id": number})
    assert again.findtext("Body/Result") == "Error"
    assert movements(gateway, order) == [("refunded", 13900, "")]


# ── At the gateway itself ─────────────────────────────────────────────────────────────────────────────────


def paid(gateway, order, *, method="CARD"):
    url = gateway.checkout(order, method=method, configuration__autoCapture=True)
    gateway.pay(url) if method == "CARD" else gateway.act(url, "accept")
    return url.rsplit("/", 1)[1]


def test_a_chargeback_and_its_reversal_are_in_xml_ledger_and_notifications(gateway, merchant, order):
    payment = paid(gateway, order)
    gateway.control("POST", f"payments/{payment}/chargeback", {"amountMinor": 10000})
    (row,) = gateway.ledger(order)
    assert (row["chargedBackMinor"], row["heldMinor"], row["capturedMinor"]) == (10000, 3900, 13900)
    gateway.control("POST", f"payments/{payment}/chargeback", {"amountMinor": 2500, "reversed": True})
    (row,) = gateway.ledger(order)
    assert (row["chargedBackMinor"], row["heldMinor"]) == (7500, 6400)
    calls = merchant.wait(order, "notification", count=2, status="ChargebackEvent")
    events = calls[1].xml.findall(".//ChargebackEvent")
    assert [
        (each.findtext("Type"), each.findtext("Amount"), each.findtext("Currency")) for each in events
    ] == [("Chargeback", "100.00", "DKK"), ("ChargebackReversed", "25.00", "DKK")]
    assert movements(gateway, order, by="gateway") == [
        ("captured", 13900, ""),
        ("charged_back", 10000, ""),
        ("chargeback_reversed", 2500, ""),
    ]
    totals = gateway.control("GET", f"ledger?orderId={order}").json()["totals"]["currencies"]["DKK"]
    assert totals["chargedBackMinor"] == 7500


@pytest.mark.parametrize(("amount", "back"), [(13901, False), (0, False), (1, True), (-5, False)])
def test_no_more_is_charged_back_or_reversed_than_there_is(*, gateway, order, amount, back):
    payment = paid(gateway, order)
    content = {"amountMinor": amount, "reversed": back}
    assert gateway.http.post(f"/sandbox/payments/{payment}/chargeback", json=content).status_code == 409
    assert gateway.ledger(order)[0]["chargedBackMinor"] == 0


def test_a_bank_refunds_by_itself_under_its_own_status(gateway, merchant, order):
    payment = paid(gateway, order, method="BANK_PAYMENT")
    gateway.control("POST", f"payments/{payment}/refund", {"amountMinor": 3900})
    calls = merchant.wait(order, "notification", count=2, status="succeeded")
    assert "bank_payment_refunded" in [call.fields["payment_status"] for call in calls]
    assert movements(gateway, order, by="gateway") == [("captured", 13900, ""), ("refunded", 3900, "")]


def test_a_reservation_can_be_released_at_the_gateway(gateway, merchant, order):
    url = gateway.checkout(order)
    gateway.pay(url)
    payment = url.rsplit("/", 1)[1]
    gateway.control("POST", f"payments/{payment}/release")
    calls = merchant.wait(order, "notification", count=2, status="succeeded")
    assert "released" in [call.fields["payment_status"] for call in calls]
    assert gateway.ledger(order)[0]["heldMinor"] == 0
    assert movements(gateway, order, by="gateway") == [("released", 13900, "")]
    assert gateway.http.post(f"/sandbox/payments/{payment}/release").status_code == 409


def test_what_was_captured_cannot_be_released_at_the_gateway(gateway, order):
    payment = paid(gateway, order)
    assert gateway.http.post(f"/sandbox/payments/{payment}/release").status_code == 409
