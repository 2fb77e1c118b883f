"""What a plan orders of sessions, tokens, payments and lookups happens to its order number and to
no other.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import time

import httpx
import pytest

from orchestrator.devkit.sandbox import create_app
from tests.support.parties import CONFIG, Gateway, serving, until

API = "/checkout/v1/api"


def only(gateway, order):
    (row,) = gateway.ledger(order)
    return row


def transaction(gateway, order):
    (found,) = gateway.lookup(shop_orderid=order).iter("Transaction")
    return found


# ── Sessions and tokens ───────────────────────────────────────────────────────────────────────────────────


def test_the_first_sessions_are_lost_when_their_methods_are_asked_for(gateway, order):
    gateway.plan(order, loseSession=2)

    def asked(session):
        path = f"{API}/session/{session}/payment-methods"
        return [gateway.http.get(path, headers=gateway.bearer).status_code for _ in range(2)]

    assert [asked(gateway.session(order)) for _ in range(3)] == [[404, 404], [404, 404], [200, 200]]
    assert asked(gateway.session(f"other-{order}")) == [200, 200]


@pytest.mark.parametrize("where", ["plan", "all calls"])
def test_a_token_can_end_earlier_than_it_says(gateway, order, where):
    token = gateway.token()
    if where == "plan":
        gateway.plan(order, tokenLifetime=1.5)
    else:
        gateway.control("PUT", "faults", {"tokenLifetime": 1.5})

    def status(number):
        headers = {"authorization": f"Bearer {token}"}
        return gateway.http.post(f"{API}/session", json=gateway.intent(number), headers=headers).status_code

    assert status(order) == 200
    until(lambda: status(order) == 401)
    assert status(f"other-{order}") == (200 if where == "plan" else 401)
    fresh = {"authorization": f"Bearer {gateway.token()}"}
    assert gateway.http.post(f"{API}/session", json=gateway.intent(order), headers=fresh).status_code == 200


def test_an_early_end_reaches_every_call_about_the_order(gateway, order):
    session = gateway.session(order)
    method = gateway.methods(session)["CARD"]["id"]
    gateway.plan(order, tokenLifetime=0)
    content = {"sessionId": session, "paymentMethodId": method}
    answers = [
        gateway.http.put(f"{API}/session/{session}", json=gateway.intent(order), headers=gateway.bearer),
        gateway.http.get(f"{API}/session/{session}/payment-methods", headers=gateway.bearer),
        gateway.http.post(f"{API}/payment", json=content, headers=gateway.bearer),
    ]
    assert [answer.status_code for answer in answers] == [401, 401, 401]


# ── Payments ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("wrong", "amount", "currency"),
    [
        ({"amountMinor": 100}, "1.00", "DKK"),
        ({"currency": "EUR"}, "139.00", "EUR"),
        ({"amountMinor": 15000, "currency": "SEK"}, "150.00", "SEK"),
    ],
)
def test_a_payment_can_be_made_with_a_wrong_amount_or_currency(
    *, gateway, merchant, order, wrong, amount, currency
):
    gateway.plan(order, **wrong)
    gateway.pay(gateway.checkout(order))
    found = transaction(gateway, order)
    assert (found.findtext("ReservedAmount"), found.findtext("MerchantCurrencyAlpha")) == (amount, currency)
    (call,) = merchant.heard(order, "success")
    assert call.fields["amount"] == amount
    assert only(gateway, order)["currency"] == currency


@pytest.mark.parametrize(
    "wrong", [{"currency": "ZZZ"}, {"currency": "dkk"}, {"amountMinor": 0}, {"refuse": {"session": 1}}]
)
def test_a_plan_that_cannot_be_is_refused(gateway, order, wrong):
    assert gateway.http.put(f"/sandbox/orders/{order}", json=wrong).status_code == 400


def test_the_gateway_can_leave_an_automatic_capture_to_the_merchant(gateway, merchant, order):
    gateway.plan(order, requireCapture=True)
    gateway.pay(gateway.checkout(order, configuration__autoCapture=True))
    (call,) = merchant.heard(order, "success")
    assert (call.fields["require_capture"], call.fields["type"]) == ("true", "paymentAndCapture")
    assert call.fields["payment_status"] == "preauth"
    row = only(gateway, order)
    assert (row["reservedMinor"], row["capturedMinor"], row["movements"]) == (13900, 0, [])
    gateway.merchant_api("POST", "captureReservation", {"transaction_id": row["transactionId"]})
    assert only(gateway, order)["capturedMinor"] == 13900


def test_a_payment_that_failed_requires_no_capture(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, configuration__autoCapture=True), "4180000000000566")
    (call,) = merchant.heard(order, "failure")
    assert call.fields["require_capture"] == "false"


def test_an_automatic_capture_is_a_movement_of_the_gateway(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, configuration__autoCapture=True))
    (call,) = merchant.heard(order, "success")
    assert call.fields["require_capture"] == "false"
    (moved,) = only(gateway, order)["movements"]
    assert {key: moved[key] for key in ("type", "amountMinor", "identifier", "by")} == {
        "type": "captured",
        "amountMinor": 13900,
        "identifier": "",
        "by": "gateway",
    }


def test_bindings_can_be_withheld_and_the_ledger_still_has_them(gateway, merchant, order):
    gateway.plan(order, bindings=False)
    gateway.pay(gateway.checkout(order))
    assert len(transaction(gateway, order).find("PaymentInfos")) == 0
    (call,) = merchant.heard(order, "success")
    assert not [name for name in call.fields if name.startswith("transaction_info")]
    assert len(call.xml.find(".//PaymentInfos")) == 0
    assert only(gateway, order)["checkout"] == f"checkout-of-{order}"


@pytest.mark.parametrize(
    ("pan", "scheme", "days"),
    [
        ("4111111111111111", "Visa", 7),
        ("5555555555554444", "Mastercard", 28),
        ("2223003122003222", "Mastercard", 28),
        ("5019717010103742", "Dankort", 7),
        ("6759649826438453", "Maestro", 7),
        ("378282246310005", "Amex", 7),
        ("3566002020360505", "JCB", 7),
        ("36227206271667", "Diners", 7),
        ("6250946000000016", "UnionPay", 7),
        ("6011000990139424", "Discover", 7),
        ("9999999999999995", "Unknown", 7),
    ],
)
def test_the_card_number_tells_the_scheme_and_that_how_long_it_is_held(*, gateway, order, pan, scheme, days):
    gateway.pay(gateway.checkout(order), pan)
    found = transaction(gateway, order)
    assert found.findtext("CardInformation/Scheme") == found.findtext("PaymentSchemeName") == scheme
    created, until_ = (
        dt.datetime.fromisoformat(found.findtext(name)) for name in ("CreatedDate", "AuthorisationExpiryDate")
    )
    assert until_ - created == dt.timedelta(days=days)


def test_the_end_of_a_reservation_can_be_planned(gateway, order):
    gateway.plan(order, expiresInSeconds=90)
    gateway.pay(gateway.checkout(order))
    found = transaction(gateway, order)
    created, until_ = (
        dt.datetime.fromisoformat(found.findtext(name)) for name in ("CreatedDate", "AuthorisationExpiryDate")
    )
    assert until_ - created == dt.timedelta(seconds=90)


def test_two_tabs_can_both_pay_one_session(gateway, merchant, order):
    session = gateway.session(order)
    first, second = (gateway.payment(session)["url"] for _ in range(2))
    assert first != second
    assert [gateway.pay(url).status_code for url in (first, second)] == [303, 303]
    rows = gateway.ledger(order)
    assert [(row["heldMinor"], row["sessionId"]) for row in rows] == [(13900, session)] * 2
    assert len({row["transactionId"] for row in rows}) == 2
    assert len(gateway.lookup(shop_orderid=order).findall(".//Transaction")) == 2
    assert len({call.fields["transaction_id"] for call in merchant.heard(order, "success")}) == 2


# ── Open payments ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("to", "status", "held"),
    [("succeeded", "bank_payment_finalized", 13900), ("declined", "epayment_declined", 0)],
)
def test_an_open_payment_can_resolve_by_itself(*, gateway, merchant, order, to, status, held):
    gateway.plan(order, resolveAfterMs=150, resolveTo=to)
    gateway.act(gateway.checkout(order, method="BANK_PAYMENT"), "open")
    merchant.wait(order, "notification", status="open")
    merchant.wait(order, "notification", status=to)
    row = only(gateway, order)
    assert (row["status"], row["heldMinor"]) == (status, held)
    assert not merchant.heard(order, "success"), "only a notification reaches the merchant"


def test_a_card_that_is_left_open_resolves_too(gateway, merchant, order):
    gateway.plan(order, outcome="open", resolveAfterMs=50)
    gateway.pay(gateway.checkout(order))
    merchant.wait(order, "notification", status="succeeded")
    assert only(gateway, order)["status"] == "preauth"


def test_an_open_payment_that_a_person_resolved_first_is_not_resolved_again(gateway, merchant, order):
    gateway.plan(order, resolveAfterMs=1500, resolveTo="succeeded")
    url = gateway.checkout(order, method="BANK_PAYMENT")
    gateway.act(url, "open")
    gateway.act(url, "notify_declined")
    merchant.wait(order, "notification", status="declined")
    time.sleep(1.7)
    assert only(gateway, order)["heldMinor"] == 0
    assert not merchant.heard(order, "notification", status="succeeded")


def test_the_clock_of_an_open_payment_survives_a_restart(merchant, order, tmp_path):
    config = dataclasses.replace(CONFIG, state_file=tmp_path / "state.db")
    with serving(create_app(config)) as url:
        gateway = Gateway(url, merchant)
        gateway.plan(order, resolveAfterMs=300)
        gateway.act(gateway.checkout(order, method="BANK_PAYMENT"), "open")
        gateway.http.close()
    with serving(create_app(config)) as url:
        merchant.wait(order, "notification", status="succeeded")
        gateway = Gateway(url, merchant)
        assert only(gateway, order)["heldMinor"] == 13900
        gateway.http.close()


# ── Lookups and other systems ──────────────────────────────────────────────────────────────────────────────


def test_an_order_number_can_have_a_history_as_long_as_answers_get(gateway, order):
    gateway.plan(order, noiseRows=100)
    gateway.pay(gateway.checkout(order))
    mine = only(gateway, order)["transactionId"]
    rows = gateway.lookup(shop_orderid=order, sort="desc", limit="100").findall(".//Transaction")
    assert len(rows) == 100
    assert [row.findtext("TransactionId") for row in rows].index(mine) == 0
    old = rows[1:]
    assert {row.findtext("TransactionStatus") for row in old} == {"preauth_failed"}
    assert {row.findtext("ReservedAmount") for row in old} == {"0.00"}
    assert len({row.findtext("PaymentInfos/PaymentInfo") for row in old}) == 99
    assert len({row.findtext("TransactionId") for row in rows}) == 100
    assert len(gateway.lookup(transaction_id=mine).findall(".//Transaction")) == 1
    assert len(gateway.ledger(order)) == 1, "the ledger has what really happened"


def test_a_history_exists_before_the_first_payment(gateway, order):
    gateway.plan(order, noiseRows=3)
    rows = gateway.lookup(shop_orderid=order).findall(".//Transaction")
    assert {row.findtext("ShopOrderId") for row in rows} == {order}
    assert len(rows) == 3


def test_a_payment_for_an_unknown_order_notifies_the_given_address(gateway, merchant, order):
    content = {
        "orderId": order,
        "amountMinor": 4200,
        "currency": "EUR",
        "notification": f"{merchant.url}/notification/{order}",
    }
    (row,) = gateway.control("POST", "payments/unmatched", content).json()
    assert (row["sessionId"], row["checkout"], row["heldMinor"]) == (None, None, 4200)
    (call,) = merchant.heard(order, "notification", status="succeeded")
    assert (call.fields["amount"], call.fields["transaction_id"]) == ("42.00", row["transactionId"])
    assert "altapay-signature" in call.headers
    found = transaction(gateway, order)
    assert (found.findtext("TransactionStatus"), len(found.find("PaymentInfos"))) == ("preauth", 0)
    assert gateway.ledger(order) == [row]


def test_an_unmatched_payment_can_collide_with_an_order_that_is_known(gateway, order):
    gateway.pay(gateway.checkout(order))
    content = {
        "orderId": order,
        "amountMinor": 13900,
        "currency": "DKK",
        "checkout": "another-systems",
        "autoCapture": True,
    }
    row = gateway.control("POST", "payments/unmatched", content).json()[0]
    assert (row["capturedMinor"], row["checkout"]) == (13900, "another-systems")
    assert len(gateway.lookup(shop_orderid=order).findall(".//Transaction")) == 2


@pytest.mark.parametrize(
    "changed", [{"currency": "ZZZ"}, {"amountMinor": 0}, {"orderId": ""}, {"colour": "red"}]
)
def test_an_unmatched_payment_that_cannot_be_is_refused(gateway, order, changed):
    content = {"orderId": order, "amountMinor": 100, "currency": "DKK", **changed}
    assert gateway.http.post("/sandbox/payments/unmatched", json=content).status_code == 400
    assert gateway.ledger(order) == []


def test_an_unmatched_payment_may_fail_as_any_other(gateway, order):
    content = {"orderId": order, "amountMinor": 100, "currency": "DKK", "outcome": "declined"}
    (row,) = gateway.control("POST", "payments/unmatched", content).json()
    assert (row["status"], row["heldMinor"]) == ("preauth_failed", 0)


def test_the_help_names_everything_that_a_plan_takes(gateway):
    from orchestrator.devkit.sandbox.faults import CallbackPlan, GlobalFaults, Plan

    text = httpx.get(f"{gateway.url}/sandbox/help", trust_env=False).text
    for struct in (Plan, CallbackPlan):
        assert [name for name in struct.__struct_encode_fields__ if f'"{name}"' not in text] == []
    endpoints = {"session", "payment-methods", "payment", "payments", "capture", "refund", "release"}
    named = [name for name in GlobalFaults.__struct_encode_fields__ if name not in endpoints]
    assert [name for name in named if f'"{name}"' not in text and name != "retryAfter"] == []
