"""The Merchant API looks up and moves money with the XML of part 1.7."""

from __future__ import annotations

import re

import pytest

XSD_ORDER = """TransactionId PaymentId AuthType CardStatus CreditCardExpiry CreditCardToken CreditCardMaskedPan IsTokenized
CardInformation ThreeDSecureResult LiableForChargeback CVVCheckResult BlacklistToken ShopOrderId Shop Terminal
TransactionStatus ReasonCode MerchantCurrency MerchantCurrencyAlpha CardHolderCurrency CardHolderCurrencyAlpha
ReservedAmount CapturedAmount RefundedAmount CreditedAmount RecurringDefaultAmount SurchargeAmount CreatedDate UpdatedDate
PaymentNature PaymentSource AuthorisationExpiryDate PaymentSchemeName PaymentNatureService ChargebackEvents PaymentInfos
CustomerInfo ReconciliationIdentifiers""".split()


@pytest.fixture
def paid(gateway, order):
    gateway.pay(gateway.checkout(order))
    return gateway.ledger(order)[0]["transactionId"]


def amounts(gateway, order):
    (row,) = gateway.ledger(order)
    return row["status"], row["reservedMinor"], row["capturedMinor"], row["refundedMinor"], row["heldMinor"]


def test_a_transaction_has_its_elements_in_the_order_of_the_xsd(gateway, order, paid):
    xml = gateway.lookup(transaction_id=paid)
    assert xml.attrib["version"].isdigit()
    assert [each.tag for each in xml.find("Header")] == ["Date", "Path", "ErrorCode", "ErrorMessage"]
    (transaction,) = xml.findall("Body/Transactions/Transaction")
    assert [each.tag for each in transaction] == XSD_ORDER
    assert transaction.findtext("ShopOrderId") == order
    assert transaction.findtext("TransactionStatus") == "preauth"
    assert transaction.findtext("MerchantCurrency") == "208"
    assert transaction.findtext("MerchantCurrencyAlpha") == "DKK"
    assert transaction.findtext("ReservedAmount") == "139.00"
    assert transaction.findtext("CapturedAmount") == "0.00"
    assert transaction.find("PaymentInfos/PaymentInfo[@name='checkout']").text == f"checkout-of-{order}"
    assert transaction.findtext("CustomerInfo/BillingAddress/LastName") == "Sø & Co"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", transaction.findtext("CreatedDate"))


def test_every_filter_finds_the_transaction(gateway, order, paid):
    (row,) = gateway.ledger(order)
    for filters in (
        {"transaction_id": paid},
        {"payment_id": row["paymentId"]},
        {"shop_orderid": order},
        {"shop_orderid": order, "terminal": "Sandbox Card Terminal", "shop": "Sandbox Shop"},
        {"terminal": "Sandbox Card Terminal", "sort": "desc", "limit": "100"},
    ):
        xml = gateway.lookup(**filters)
        assert paid in [each.text for each in xml.iter("TransactionId")]
        assert {each.tag: each.text for each in xml.find("Body/ResultFilter")} == {
            name: value for name, value in filters.items() if name not in {"sort", "limit"}
        }
    assert gateway.lookup(shop_orderid=order, terminal="Another").find(".//Transaction") is None


def test_an_unknown_order_is_an_empty_result_without_transactions(gateway):
    xml = gateway.lookup(shop_orderid="unknown-order")
    assert xml.findtext("Header/ErrorCode") == "0"
    assert xml.find("Body/Result").text is None
    assert xml.findtext("Body/ResultFilter/shop_orderid") == "unknown-order"
    assert xml.find("Body/Transactions") is None


def test_an_abandoned_page_leaves_no_transaction(gateway, order):
    gateway.checkout(order)
    assert gateway.lookup(shop_orderid=order).find("Body/Transactions") is None


def test_at_most_ten_transactions_come_unless_asked_for_and_in_no_order(gateway, order):
    url = gateway.checkout(order)
    for _ in range(12):
        gateway.pay(url, "4180000000000566")

    def numbers(**more):
        return [int(each.text) for each in gateway.lookup(shop_orderid=order, **more).iter("TransactionId")]

    assert len(numbers()) == 10
    ascending = numbers(sort="asc", limit="100")
    assert len(ascending) == 12
    assert ascending == sorted(ascending)
    assert numbers(sort="desc", limit="100") == ascending[::-1]
    assert numbers(limit="100") != ascending
    assert len(numbers(limit="3")) == 3


@pytest.mark.parametrize(
    "fields", [{"limit": "0"}, {"limit": "101"}, {"limit": "00500"}, {"limit": "ten"}, {"sort": "up"}]
)
def test_senseless_lookups_are_request_level_errors(gateway, fields):
    xml = gateway.lookup(shop_orderid="x", **fields)
    assert xml.findtext("Header/ErrorCode") != "0"
    assert len(xml.find("Body")) == 0


@pytest.mark.parametrize(
    "name", ["payments", "captureReservation", "refundCapturedReservation", "releaseReservation"]
)
def test_wrong_credentials_get_401(gateway, name):
    method = "GET" if name == "payments" else "POST"
    assert gateway.http.request(method, f"/merchant/API/{name}", auth=("shop", "wrong")).status_code == 401


def test_a_reservation_is_captured_in_parts_and_never_beyond(gateway, order, paid):
    first = gateway.merchant_api(
        "POST",
        "captureReservation",
        {"transaction_id": paid, "amount": "39.00", "reconciliation_identifier": "part-1"},
    )
    assert first.findtext("Body/CaptureAmount") == "39.00"
    assert first.findtext("Body/CaptureCurrency") == "208"
    assert first.findtext("Body/Result") == first.findtext("Body/CaptureResult") == "Success"
    assert amounts(gateway, order) == ("captured", 13900, 3900, 0, 13900)
    beyond = gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid, "amount": "100.01"})
    assert beyond.findtext("Body/Result") == "Error"
    gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid, "amount": "100.00"})
    assert amounts(gateway, order) == ("captured", 13900, 13900, 0, 13900)
    (found,) = [
        each
        for each in gateway.lookup(transaction_id=paid).iter("ReconciliationIdentifier")
        if each.findtext("Id") == "part-1"
    ]
    assert found.findtext("Amount") == "39.00"
    assert found.find("Amount").attrib == {"currency": "208"}
    assert found.findtext("Type") == "captured"


def test_capturing_a_captured_payment_is_an_error_that_says_so(gateway, order, paid):
    gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid})
    again = gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid, "amount": "139.00"})
    assert again.findtext("Header/ErrorCode") == "0"
    assert again.findtext("Body/Result") == again.findtext("Body/CaptureResult") == "Error"
    assert "cannot capture an amount <= 0" in again.findtext("Body/MerchantErrorMessage")
    assert amounts(gateway, order) == ("captured", 13900, 13900, 0, 13900)


def test_refunds_never_exceed_what_was_captured_unless_allowed(gateway, order, paid):
    early = gateway.merchant_api(
        "POST", "refundCapturedReservation", {"transaction_id": paid, "amount": "1.00"}
    )
    assert early.findtext("Body/Result") == "Error"
    gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid})
    part = gateway.merchant_api(
        "POST", "refundCapturedReservation", {"transaction_id": paid, "amount": "0.12"}
    )
    assert part.findtext("Body/RefundedAmount") == "0.12"
    assert part.findtext("Body/RefundCurrency") == "208"
    assert part.findtext("Body/Result") == part.findtext("Body/RefundResult") == "Success"
    assert amounts(gateway, order) == ("refunded", 13900, 13900, 12, 13888)
    beyond = {"transaction_id": paid, "amount": "139.00"}
    assert (
        gateway.merchant_api("POST", "refundCapturedReservation", beyond).findtext("Body/Result") == "Error"
    )
    assert amounts(gateway, order)[3] == 12
    allowed = gateway.merchant_api("POST", "refundCapturedReservation", {**beyond, "allow_over_refund": "1"})
    assert allowed.findtext("Body/Result") == "Success"


def test_a_release_is_whole_and_leaves_the_reserved_amount_as_it_was(gateway, order, paid):
    released = gateway.merchant_api("POST", "releaseReservation", {"transaction_id": paid})
    assert released.findtext("Body/Result") == released.findtext("Body/CancelResult") == "Success"
    assert released.findtext(".//TransactionStatus") == "released"
    assert released.findtext(".//ReservedAmount") == "139.00"
    assert amounts(gateway, order) == ("released", 13900, 0, 0, 0)
    again = gateway.merchant_api("POST", "releaseReservation", {"transaction_id": paid})
    assert again.findtext("Body/Result") == "Error"
    after = gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid})
    assert after.findtext("Body/Result") == "Error"


def test_a_method_may_not_echo_the_reconciliation_identifier(gateway, order):
    gateway.act(gateway.checkout(order, method="BANK_PAYMENT"), "accept")
    number = gateway.ledger(order)[0]["transactionId"]
    fields = {"transaction_id": number, "amount": "1.00", "reconciliation_identifier": "mine"}
    gateway.merchant_api("POST", "refundCapturedReservation", fields)
    (found,) = gateway.lookup(transaction_id=number).iter("ReconciliationIdentifier")
    assert found.findtext("Id") != "mine"
    assert gateway.ledger(order)[0]["status"] == "bank_payment_refunded"


@pytest.mark.parametrize("fields", [{"transaction_id": "1"}, {}])
def test_an_unknown_transaction_is_a_request_level_error(gateway, fields):
    for name in ("captureReservation", "refundCapturedReservation", "releaseReservation"):
        xml = gateway.merchant_api("POST", name, fields)
        assert xml.findtext("Header/ErrorCode") != "0"
        assert "transaction_id" in xml.findtext("Header/ErrorMessage")


@pytest.mark.parametrize("amount", ["x", "1.001", "NaN"])
def test_a_senseless_amount_is_a_request_level_error(gateway, order, paid, amount):
    xml = gateway.merchant_api("POST", "captureReservation", {"transaction_id": paid, "amount": amount})
    assert "amount" in xml.findtext("Header/ErrorMessage")
    assert amounts(gateway, order)[2] == 0


def test_text_that_xml_cannot_hold_does_not_break_it(gateway, order):
    gateway.pay(gateway.checkout(order, order__transactionInfo={"checkout": "<&\"'>\u0001\ufffe"}))
    xml = gateway.lookup(shop_orderid=order)
    assert xml.find(".//PaymentInfo").text == "<&\"'>"
