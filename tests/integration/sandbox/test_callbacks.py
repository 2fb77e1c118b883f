"""Callbacks have the form, signatures, order, repeats and losses of part 2 of the gateway facts."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import re
import time

import pytest
from starlette.responses import HTMLResponse, Response

from orchestrator.devkit.sandbox import create_app
from orchestrator.devkit.sandbox.documents import form_encode
from tests.support.parties import CONFIG, SECRET, TERMINAL_SECRET, Gateway, serving, until


def deliveries(gateway, order):
    (only,) = gateway.ledger(order)
    return [each for each in only["callbacks"] if each["status"] != "new"]


def test_the_form_body_has_the_documented_fields(gateway, merchant, order):
    gateway.pay(gateway.checkout(order))
    (call,) = merchant.heard(order, "success")
    assert call.headers["content-type"] == "application/x-www-form-urlencoded"
    fields = call.fields
    (row,) = gateway.ledger(order)
    assert fields["shop_orderid"] == order
    assert fields["transaction_id"] == row["transactionId"]
    assert fields["payment_id"] == row["paymentId"]
    assert fields["amount"] == "139.00"
    assert fields["currency"] == "208"
    assert fields["type"] == "payment"
    assert fields["status"] == "succeeded"
    assert fields["payment_status"] == "preauth"
    assert fields["nature"] == "CreditCard"
    assert fields["require_capture"] == "false"
    assert fields["embedded_window"] == "0"
    assert fields["masked_credit_card"] == "411111******1111"
    assert fields["transaction_info[checkout]"] == f"checkout-of-{order}"
    assert "error_message" not in fields


def test_the_xml_field_is_a_whole_api_response_and_ends_with_a_newline(gateway, merchant, order):
    gateway.pay(gateway.checkout(order))
    (call,) = merchant.heard(order, "success")
    assert call.fields["xml"].endswith("\n")
    xml = call.xml
    assert xml.tag == "APIResponse"
    assert xml.findtext("Header/ErrorCode") == "0"
    assert xml.findtext("Body/Result") == "Success"
    transaction = xml.find("Body/Transactions/Transaction")
    assert transaction.findtext("ShopOrderId") == order
    assert transaction.findtext("ReservedAmount") == "139.00"
    assert transaction.find("PaymentInfos/PaymentInfo[@name='checkout']").text == f"checkout-of-{order}"


def test_amounts_follow_the_currency(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, 1500, order__amount__currency="ISK"))
    (call,) = merchant.heard(order, "success")
    assert (call.fields["amount"], call.fields["currency"]) == ("1500.00", "352")
    assert gateway.ledger(order)[0]["amountMinor"] == 1500


def test_the_raw_body_is_encoded_like_javas_url_encoder(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, order__transactionInfo={"note": "a b!('~*-._)"}))
    (call,) = merchant.heard(order, "success")
    assert b"transaction_info%5Bnote%5D=a+b%21%28%27%7E*-._%29" in call.raw


def test_the_checksum_covers_amount_currency_order_and_secret(gateway, merchant, order):
    gateway.pay(gateway.checkout(order))
    (call,) = merchant.heard(order, "success")
    text = f"amount=139.00,currency=208,secret={TERMINAL_SECRET},shop_orderid={order}"
    assert call.fields["checksum"] == hashlib.md5(text.encode()).hexdigest()  # noqa: S324 - the vendor's algorithm


def test_the_signature_header_signs_the_raw_body_with_every_active_secret(gateway, merchant, order):
    gateway.pay(gateway.checkout(order))
    (call,) = merchant.heard(order, "success")
    header = call.headers["altapay-signature"]
    found = re.fullmatch(r"t=(\d+);s0=([0-9a-f]{64});s1=([0-9a-f]{64})", header)
    for secret, given in zip(CONFIG.callback_secrets, found.groups()[1:], strict=True):
        message = call.raw + b"." + found[1].encode()
        assert given == hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
    assert CONFIG.callback_secrets[0] == SECRET


def test_without_secrets_callbacks_carry_neither_checksum_nor_signature(merchant, order):
    with serving(create_app(dataclasses.replace(CONFIG, callback_secrets=(), terminal_secret=""))) as url:
        gateway = Gateway(url, merchant)
        gateway.pay(gateway.checkout(order))
        gateway.http.close()
    (call,) = merchant.heard(order, "success")
    assert "altapay-signature" not in call.headers
    assert "checksum" not in call.fields


@pytest.mark.parametrize("place", ["callbacks__bodyFormat", "configuration__bodyFormat"])
def test_json_bodies_have_the_documented_fields_and_name_no_transaction(gateway, merchant, order, place):
    url = gateway.checkout(order, **{place: "JSON"})
    gateway.pay(url)
    (call,) = merchant.heard(order, "success")
    assert call.headers["content-type"] == "application/json"
    body = json.loads(call.raw)
    (row,) = gateway.ledger(order)
    assert body == {
        "requiresCapture": False,
        "status": "SUCCEEDED",
        "customerErrorMessage": None,
        "merchantErrorMessage": None,
        "merchantErrorCode": None,
        "customerMessageMustBeShown": False,
        "paymentId": row["paymentId"],
        "sessionId": row["sessionId"],
        "order": {"orderId": order, "amount": 139.0, "currency": "DKK"},
        "cardInformation": {"lastFourDigits": "1111"},
    }
    assert "altapay-signature" in call.headers


def test_a_json_failure_carries_the_messages(gateway, merchant, order):
    gateway.pay(gateway.checkout(order, 5.66, callbacks__bodyFormat="JSON"))
    (call,) = merchant.heard(order, "failure")
    body = json.loads(call.raw)
    assert (body["status"], body["customerErrorMessage"]) == ("FAILED", "Card Declined")


def test_success_and_notification_are_both_sent(gateway, merchant, order):
    gateway.pay(gateway.checkout(order))
    (notification,) = merchant.wait(order, "notification", status="succeeded")
    (success,) = merchant.heard(order, "success")
    assert notification.fields["transaction_id"] == success.fields["transaction_id"]
    until(lambda: [each["answerStatus"] for each in deliveries(gateway, order)].count(None) == 0)
    assert sorted((each["kind"], each["answerStatus"]) for each in deliveries(gateway, order)) == [
        ("notification", 200),
        ("success", 303),
    ]


@pytest.mark.parametrize(
    ("planned", "kinds"),
    [("notificationFirst", ["notification", "success"]), ("successFirst", ["success", "notification"])],
)
def test_a_plan_puts_success_and_notification_in_order(*, gateway, merchant, order, planned, kinds):
    gateway.plan(order, callbacks={"order": planned})
    gateway.pay(gateway.checkout(order))
    until(lambda: len(deliveries(gateway, order)) == 2)
    assert [each["kind"] for each in deliveries(gateway, order)] == kinds


def test_success_and_notification_at_the_same_moment_each_three_times(gateway, merchant, order):
    merchant.delays[order] = 0.4
    gateway.plan(order, callbacks={"times": 3, "simultaneous": True, "order": "race"})
    assert gateway.pay(gateway.checkout(order)).status_code == 303
    calls = merchant.wait(order, "success", count=3) + merchant.wait(
        order, "notification", count=3, status="succeeded"
    )
    moments = [call.at for call in calls]
    assert len(moments) == 6
    assert max(moments) - min(moments) < 0.4  # all were sent before the first was answered


def test_repeats_otherwise_follow_in_sequence(gateway, merchant, order):
    gateway.plan(order, callbacks={"times": 3, "notification": False})
    gateway.pay(gateway.checkout(order))
    assert len(merchant.wait(order, "success", count=3)) == 3
    assert not merchant.heard(order, "notification")


@pytest.mark.parametrize("kind", ["success", "notification"])
def test_a_planned_loss_keeps_one_kind_back_and_the_ledger_says_so(*, gateway, merchant, order, kind):
    gateway.plan(order, callbacks={kind: False, "redirect": False})
    answer = gateway.pay(gateway.checkout(order))
    other = "notification" if kind == "success" else "success"
    assert merchant.wait(order, other, status="succeeded")
    assert not merchant.heard(order, kind)
    until(lambda: len(deliveries(gateway, order)) == 2)
    assert [each["note"] for each in deliveries(gateway, order) if each["kind"] == kind] == ["lost"]
    if kind == "success":
        assert "Payment accepted" in answer.text
        assert "could not be reached" in answer.text
        assert "Continue to the shop" not in answer.text


def test_all_callbacks_are_lost_in_an_outage(gateway, merchant, order):
    url = gateway.checkout(order)
    merchant.wait(order, "notification", status="new")
    gateway.control("PUT", "faults", {"callbacks": "lost"})
    assert "could not be reached" in gateway.pay(url).text
    until(lambda: len(deliveries(gateway, order)) == 2)
    assert {each["note"] for each in deliveries(gateway, order)} == {"lost"}
    assert not merchant.heard(order, "success")
    assert gateway.ledger(order)[0]["heldMinor"] == 13900


def test_callbacks_can_be_delayed(gateway, merchant, order):
    gateway.plan(order, callbacks={"delayMs": 150})
    url = gateway.checkout(order)
    before = time.monotonic()
    gateway.pay(url)
    (call,) = merchant.heard(order, "success")
    assert call.at - before >= 0.15


def test_a_page_of_the_merchant_is_shown_without_its_scripts(gateway, merchant, order):
    merchant.answers[order] = HTMLResponse("<h1>Thanks</h1><script>steal()</script><p>Bye</p><SCRIPT>x")
    answer = gateway.pay(gateway.checkout(order))
    assert answer.status_code == 200
    assert answer.text == "<h1>Thanks</h1><p>Bye</p>"


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_every_documented_redirect_moves_the_shopper_on(gateway, merchant, order, status):
    merchant.answers[order] = Response(status_code=status, headers={"location": "/thanks"})
    answer = gateway.pay(gateway.checkout(order))
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{merchant.url}/thanks"


@pytest.mark.parametrize(("amount", "title"), [(139.0, "Payment accepted"), (5.66, "Payment declined")])
def test_a_shopper_whose_shop_is_down_learns_the_outcome(gateway, order, amount, title):
    nowhere = {"type": "URL", "value": "http://127.0.0.1:9/success"}
    answer = gateway.pay(
        gateway.checkout(order, amount, callbacks__success=nowhere, callbacks__failure=nowhere)
    )
    assert answer.status_code == 200
    assert title in answer.text
    assert "The shop could not be reached" in answer.text
    assert "/redirect/" in answer.text  # the link back to the shop


@pytest.mark.parametrize("status", [400, 500, 503])
def test_an_error_of_the_shop_counts_as_not_reached(gateway, merchant, order, status):
    merchant.answers[order] = Response(status_code=status)
    assert "could not be reached" in gateway.pay(gateway.checkout(order)).text


def test_a_slow_merchant_runs_into_the_notification_timeout(gateway, merchant, order):
    merchant.delays[order] = 0.8
    gateway.plan(order, callbacks={"success": False})
    gateway.pay(gateway.checkout(order))
    until(lambda: [each for each in deliveries(gateway, order) if each["note"] == "timeout"])


def test_a_callback_of_type_function_is_left_to_the_browser(gateway, merchant, order):
    answer = gateway.pay(gateway.checkout(order, callbacks__success={"type": "FUNCTION", "value": "onPaid"}))
    assert answer.headers["location"] == f"{merchant.url}/redirect/{order}"
    assert not merchant.heard(order, "success")


@pytest.mark.parametrize(
    "tamper",
    [
        "badSignature",
        "staleTimestamp",
        "noSignature",
        "noChecksum",
        "badChecksum",
        "noTransactions",
        "invalidXml",
        "emptyXml",
    ],
)
def test_a_script_can_tamper_with_callbacks(gateway, merchant, order, tamper):
    gateway.plan(order, callbacks={"tamper": tamper})
    gateway.pay(gateway.checkout(order))
    (call,) = merchant.heard(order, "success")
    header = call.headers.get("altapay-signature", "")
    stamp = header.partition(";")[0].removeprefix("t=")
    good = hmac.new(SECRET.encode(), call.raw + b"." + stamp.encode(), hashlib.sha256).hexdigest()
    text = f"amount=139.00,currency=208,secret={TERMINAL_SECRET},shop_orderid={order}"
    checksum = hashlib.md5(text.encode()).hexdigest()  # noqa: S324 - the vendor's algorithm
    seen = {
        "badSignature": bool(header) and good not in header,
        "staleTimestamp": good in header and time.time() - int(stamp or 0) > 86400,
        "noSignature": not header,
        "noChecksum": "checksum" not in call.fields,
        "badChecksum": call.fields.get("checksum", checksum) != checksum,
        "noTransactions": "</APIResponse>" in call.fields["xml"]
        and "<Transaction>" not in call.fields["xml"],
        "invalidXml": call.fields["xml"].startswith("<APIResponse><Header></Body>"),
        "emptyXml": call.fields["xml"] == "",
    }
    assert [name for name, found in seen.items() if found] == [tamper]


def test_any_callback_can_be_sent_once_more(gateway, merchant, order):
    url = gateway.checkout(order)
    gateway.pay(url)
    payment = url.rsplit("/", 1)[1]
    answer = gateway.control("POST", f"payments/{payment}/send", {"kind": "failure", "status": "failed"})
    assert answer.json()["answerStatus"] == 303
    assert merchant.heard(order, "failure", status="failed")


def test_the_encoder_keeps_the_order_of_fields(merchant):
    assert form_encode([("b", "1"), ("a", "x y"), ("æ", "é")]) == b"b=1&a=x+y&%C3%A6=%C3%A9"
