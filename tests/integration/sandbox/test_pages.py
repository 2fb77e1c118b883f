"""The hosted pages and the documented test rules (part 3), driven by plain HTTP as a shopper's
browser would.
"""

from __future__ import annotations

import pytest

THANKS = "https://shop.example/thanks?order={}&kind={}"


def relayed(order, kind):
    return THANKS.format(order, kind)


def row(gateway, order):
    (only,) = gateway.ledger(order)
    return only


def test_any_card_number_is_approved_and_the_shopper_goes_where_the_merchant_says(gateway, merchant, order):
    url = gateway.checkout(order, 1.23)
    page = gateway.http.get(url)
    assert page.status_code == 200
    assert "1.23 DKK" in page.text
    answer = gateway.pay(url)
    assert answer.status_code == 303
    assert answer.headers["location"] == relayed(order, "success")
    assert row(gateway, order)["status"] == "preauth"
    assert row(gateway, order)["reservedMinor"] == 123
    assert row(gateway, order)["capturedMinor"] == 0
    assert len(merchant.heard(order, "success")) == 1


def test_auto_capture_takes_the_money_at_once(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, configuration__autoCapture=True))
    assert row(gateway, order)["status"] == "captured"
    assert row(gateway, order)["capturedMinor"] == 13900
    (call,) = merchant.heard(order, "success")
    assert call.fields["type"] == "paymentAndCapture"
    assert call.fields["require_capture"] == "false"


@pytest.mark.parametrize(
    ("amount", "pan", "outcome", "status", "merchant_message"),
    [
        (5.66, "4111111111111111", "failed", "preauth_failed", "TestAcquirer[pan=0566 or amount=5660]"),
        (5.67, "4111111111111111", "error", "preauth_error", "TestAcquirer[pan=0567 or amount=5670]"),
        (4.66, "4111111111111111", "failed", "3dsecure_failed", "TestAcquirer[pan=0466 or amount=4660]"),
        (139.0, "4180000000000566", "failed", "preauth_failed", "TestAcquirer[pan=0566 or amount=5660]"),
        (139.0, "4180000000000567", "error", "preauth_error", "TestAcquirer[pan=0567 or amount=5670]"),
        (139.0, "4180 0000 0000 0466", "failed", "3dsecure_failed", "TestAcquirer[pan=0466 or amount=4660]"),
    ],
)
def test_the_documented_amounts_and_numbers_fail(
    *, gateway, merchant, order, amount, pan, outcome, status, merchant_message
):
    answer = gateway.pay(gateway.checkout(order, amount), pan)
    assert answer.headers["location"] == relayed(order, "failure")
    assert row(gateway, order)["outcome"] == outcome
    assert row(gateway, order)["status"] == status
    assert row(gateway, order)["heldMinor"] == 0
    (call,) = merchant.heard(order, "failure")
    assert call.fields["status"] == outcome
    assert call.fields["merchant_error_message"] == merchant_message
    assert call.fields["cardholder_message_must_be_shown"] == (
        "true" if status == "3dsecure_failed" else "false"
    )


def test_a_declined_card_says_card_declined(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, 5.66))
    (call,) = merchant.heard(order, "failure")
    assert call.fields["error_message"] == "Card Declined"
    assert call.xml.findtext("Body/Result") == "Failed"


@pytest.mark.parametrize(
    ("pan", "word"),
    [
        ("4170000000000006", "Accept"),
        ("4170000000000105", "Deny"),
        ("5250000000000121", "Challenge"),
        ("5110000000000113", "Unknown"),
    ],
)
def test_the_fraud_numbers_pay_and_carry_their_recommendation(*, gateway, merchant, order, pan, word):
    gateway.pay(gateway.checkout(order, 139.0), pan)
    (call,) = merchant.heard(order, "success")
    assert call.fields["fraud_recommendation"] == word
    assert call.fields["fraud_risk_score"] == "38"  # 139 modulo 101
    assert call.xml.findtext(".//FraudRecommendation") == word


@pytest.mark.parametrize(
    ("result", "kind", "status", "secure"),
    [
        ("pass", "success", "preauth", "Successful"),
        ("fail", "failure", "3dsecure_failed", "Declined"),
    ],
)
def test_3d_secure_is_passed_or_failed_on_its_own_page(
    *, gateway, merchant, order, result, kind, status, secure
):
    url = gateway.checkout(order)
    challenge = gateway.pay(url, "4170000000000568", expiry="05/2019")
    assert challenge.status_code == 303
    assert not merchant.heard(order, "success")
    page = gateway.http.get(challenge.headers["location"])
    assert "417000******0568" in page.text
    assert row(gateway, order)["status"] == "created"
    answer = gateway.http.post(challenge.headers["location"], data={"result": result})
    assert answer.headers["location"] == relayed(order, kind)
    assert row(gateway, order)["status"] == status
    (call,) = merchant.heard(order, kind)
    assert call.xml.findtext(".//ThreeDSecureResult") == secure
    assert gateway.http.post(challenge.headers["location"], data={"result": "pass"}).status_code == 409


def test_3d_secure_wants_an_answer(gateway, order):
    challenge = gateway.pay(gateway.checkout(order), "4170000000000568").headers["location"]
    assert gateway.http.post(challenge, data={"result": "perhaps"}).status_code == 422
    assert row(gateway, order)["status"] == "created"


def test_a_page_without_pending_3d_secure_leads_back_to_the_form(gateway, order):
    url = gateway.checkout(order)
    assert gateway.http.get(f"{url}/3ds").status_code == 404
    gateway.pay(url, "4180000000000566")
    assert gateway.http.get(f"{url}/3ds").status_code == 303


def test_the_mock_bank_signs_in_and_accepts(gateway, order):
    url = gateway.checkout(order, method="BANK_PAYMENT")
    assert "Sign in" in gateway.http.get(url).text
    signed_in = gateway.act(url, "sign_in")
    assert signed_in.status_code == 303
    page = gateway.http.get(signed_in.headers["location"])
    for action in ("accept", "cancel", "decline", "open"):
        assert f'value="{action}"' in page.text
    assert gateway.act(url, "accept").headers["location"] == relayed(order, "success")
    assert row(gateway, order)["status"] == "bank_payment_finalized"
    assert row(gateway, order)["capturedMinor"] == 13900


@pytest.mark.parametrize(
    ("method", "action", "outcome", "status"),
    [
        ("BANK_PAYMENT", "cancel", "cancelled", "epayment_cancelled"),
        ("BANK_PAYMENT", "decline", "declined", "epayment_declined"),
        ("MOBILE_WALLET", "cancel", "cancelled", "epayment_cancelled"),
        ("CARD", "cancel", "cancelled", "preauth_failed"),
    ],
)
def test_cancelled_and_declined_payments_call_failure(
    *, gateway, merchant, order, method, action, outcome, status
):
    answer = gateway.act(gateway.checkout(order, method=method), action)
    assert answer.headers["location"] == relayed(order, "failure")
    assert row(gateway, order)["status"] == status
    (call,) = merchant.heard(order, "failure")
    assert call.fields["status"] == outcome


def test_an_invoice_is_reserved_and_never_captured_by_itself(gateway, merchant, order):
    gateway.act(gateway.checkout(order, method="INVOICE", configuration__autoCapture=True), "accept")
    assert row(gateway, order)["status"] == "invoice_initialized"
    assert row(gateway, order)["capturedMinor"] == 0
    (call,) = merchant.heard(order, "success")
    assert call.fields["require_capture"] == "true"


def test_the_amount_rules_hold_for_wallets_too(gateway, order):
    gateway.act(gateway.checkout(order, 5.66, method="MOBILE_WALLET"), "accept")
    assert row(gateway, order)["status"] == "preauth_failed"


@pytest.mark.parametrize(
    ("action", "outcome", "held"),
    [("notify_success", "succeeded", 13900), ("notify_declined", "declined", 0)],
)
def test_an_open_payment_is_resolved_by_a_notification_alone(
    *, gateway, merchant, order, action, outcome, held
):
    url = gateway.checkout(order, method="BANK_PAYMENT")
    answer = gateway.act(url, "open")
    assert answer.status_code == 303
    assert "open" in gateway.http.get(answer.headers["location"]).text
    merchant.wait(order, "notification", status="open")
    assert row(gateway, order)["status"] == "pending"
    assert gateway.act(url, "accept").status_code == 409
    assert gateway.act(url, action).status_code == 200
    assert merchant.wait(order, "notification", status=outcome)
    assert row(gateway, order)["heldMinor"] == held
    assert not merchant.heard(order, "success")
    assert not merchant.heard(order, "failure")


def test_a_declined_shopper_can_try_again_on_the_same_page(gateway, order):
    url = gateway.checkout(order)
    gateway.pay(url, "4180000000000566")
    assert "Card Declined. You can try again." in gateway.http.get(url).text
    gateway.pay(url)
    rows = gateway.ledger(order)
    assert [each["status"] for each in rows] == ["preauth_failed", "preauth"]
    assert rows[0]["paymentId"] == rows[1]["paymentId"]
    assert rows[0]["transactionId"] != rows[1]["transactionId"]


def test_a_paid_page_cannot_be_paid_again(gateway, order):
    url = gateway.checkout(order)
    gateway.pay(url)
    assert "has been paid" in gateway.http.get(url).text
    assert gateway.pay(url).status_code == 409
    assert len(gateway.ledger(order)) == 1


def test_an_empty_form_after_success_calls_failure_though_money_is_held(gateway, merchant, order):
    url = gateway.checkout(order)
    gateway.pay(url)
    assert gateway.http.post(url, data={}).headers["location"] == relayed(order, "failure")
    (call,) = merchant.heard(order, "failure")
    assert call.fields["status"] == "failed"
    assert call.xml.findtext(".//ReservedAmount") == "139.00"
    assert row(gateway, order)["heldMinor"] == 13900


def test_two_tabs_pay_twice(gateway, order):
    session = gateway.session(order)
    first, second = (gateway.payment(session)["url"] for _ in range(2))
    gateway.pay(first)
    gateway.pay(second)
    assert [each["heldMinor"] for each in gateway.ledger(order)] == [13900, 13900]


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ({"card_number": "4111", "expiry": "12/30", "cvc": "444"}, "card_number_problem"),
        ({"card_number": "4111111111111111", "expiry": "13/30", "cvc": "444"}, "expiry_problem"),
        ({"card_number": "4111111111111111", "expiry": "12/30", "cvc": "x"}, "cvc_problem"),
        ({"action": "dance"}, "dance"),
    ],
)
def test_a_wrong_form_is_shown_again_and_nothing_happens(gateway, order, form, problem):
    answer = gateway.http.post(gateway.checkout(order), data=form)
    assert answer.status_code == 422
    assert problem in answer.text
    assert row(gateway, order)["transactionId"] is None


def test_what_the_shopper_typed_is_escaped(gateway, order):
    url = gateway.checkout(order)
    answer = gateway.http.post(
        url, data={"card_number": '"><script>alert(1)</script>', "expiry": "", "cvc": ""}
    )
    assert "<script>" not in answer.text


def test_an_unknown_payment_has_a_page_that_says_so(gateway):
    for path in ("/sandbox/pay/none", "/sandbox/pay/none/3ds"):
        assert gateway.http.get(path).status_code == 404
        assert gateway.http.post(path, data={}).status_code == 404


def test_the_front_page_leads_to_ledger_and_control_api(gateway):
    page = gateway.http.get("/").text
    assert "/sandbox/ledger" in page
    assert "PUT    /sandbox/orders/" in gateway.http.get("/sandbox/help").text


def test_no_page_needs_a_script(gateway, order):
    urls = ["/", gateway.checkout(order), gateway.checkout(order, method="BANK_PAYMENT")]
    assert all("<script" not in gateway.http.get(url).text for url in urls)
