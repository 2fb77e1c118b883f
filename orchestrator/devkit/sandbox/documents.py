"""The gateway's documents: XML answers of the Merchant API and the bodies of callbacks, both from the same books.

Elements of a Transaction stand in the order of the XSD (C10); elements without a value are left out where the fixtures
leave them out. Everything put into XML is escaped and freed of characters that XML 1.0 forbids. Dates carry no offset.
"""

from __future__ import annotations

import datetime as dt
import html
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.devkit.sandbox.methods import MethodKind
from orchestrator.devkit.sandbox.rules import JSON_STATUSES, RESULTS
from orchestrator.devkit.sandbox.signing import checksum, form_encode
from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from orchestrator.devkit.sandbox.config import SandboxConfig
    from orchestrator.devkit.sandbox.faults import Tampering

API_VERSION = "20260311"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CUSTOMER = (
    ("FirstName", "firstName"),
    ("LastName", "lastName"),
    ("Email", "email"),
)
_ADDRESS = (("Address", "street"), ("City", "city"), ("Country", "country"), ("PostalCode", "zipCode"))
# The first that fits counts.
_SCHEMES = {
    "5019": "Dankort",
    **dict.fromkeys(("50", "56", "57", "58", "63", "67"), "Maestro"),
    **dict.fromkeys(("2", "5"), "Mastercard"),
    **dict.fromkeys(("34", "37"), "Amex"),
    "35": "JCB",
    **dict.fromkeys(("30", "36", "38", "39"), "Diners"),
    "62": "UnionPay",
    "4": "Visa",
    "6": "Discover",
}
# Visa 7 days; Mastercard at least 3 bank days, in practice often 28 (D9). The others are not documented.
_RESERVED_DAYS = {"Visa": 7, "Mastercard": 28}
_DEFAULT_DAYS = 7


@dataclass(frozen=True, slots=True)
class Body:
    """A callback body ready for the wire."""

    content: bytes
    content_type: str


def plain(minor: int, currency: str) -> str:
    """Return an amount as the gateway prints it: a dot and at least two decimals."""
    amount = money.to_decimal(minor, currency)
    return f"{amount:.2f}" if money.exponent(currency) < 2 else str(amount)  # noqa: PLR2004 - two decimals


def element(name: str, value: object) -> str:
    """Return one element with escaped text."""
    return f"<{name}>{_escaped(value)}</{name}>"


def envelope(config: SandboxConfig, *, path: str, body: str, code: int = 0, message: str = "") -> bytes:
    """Return an APIResponse; a code other than 0 is a request-level error and comes with an empty Body."""
    now = dt.datetime.now(config.zone).isoformat(timespec="seconds")
    header = (
        element("Date", now)
        + element("Path", path)
        + element("ErrorCode", code)
        + element("ErrorMessage", message)
    )
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<APIResponse version="{API_VERSION}"><Header>{header}</Header>'
    return f"{text}<Body>{body}</Body></APIResponse>\n".encode()


def transactions(config: SandboxConfig, rows: Iterable[tuple[Payment, Transaction]]) -> str:
    """Return the Transactions element, or nothing where there are none."""
    listed = "".join(_transaction(config, payment, transaction) for payment, transaction in rows)
    return f"<Transactions>{listed}</Transactions>" if listed else ""


def callback_xml(
    config: SandboxConfig, payment: Payment, transaction: Transaction | None, status: str
) -> str:
    """Return the APIResponse that a callback carries; it ends with a newline (C1)."""
    body = element("Result", RESULTS[status])
    if transaction is not None:
        if transaction.message and status != "succeeded":
            body += element("CardHolderErrorMessage", transaction.message)
            body += element("CardHolderMessageMustBeShown", _flag(transaction.must_show))
            body += element("MerchantErrorMessage", transaction.merchant_message)
        body += transactions(config, [(payment, transaction)])
    path = "API/reservation" if payment.kind == MethodKind.CARD else "API/ePaymentVerify"
    if status == "ChargebackEvent":
        path = "settings/createReconciliationData"
    return envelope(config, path=path, body=body).decode()


def requires_capture(payment: Payment, transaction: Transaction | None) -> bool:
    """Say whether the merchant still has to capture although autoCapture was asked for (`require_capture`)."""
    reserved = transaction is not None and transaction.reserved_minor > 0
    return payment.auto_capture and reserved and transaction is not None and not transaction.captured_minor


def callback_body(
    config: SandboxConfig,
    payment: Payment,
    transaction: Transaction | None,
    status: str,
    *,
    tamper: Tampering | None = None,
) -> Body:
    """Return the body of a callback in the format that the session asked for, damaged as a script ordered."""
    if payment.body_format == "JSON":
        return Body(msgspec.json.encode(_json_fields(payment, transaction, status)), "application/json")
    fields = form_fields(config, payment, transaction, status)
    match tamper:
        case "noChecksum":
            fields = [(name, value) for name, value in fields if name != "checksum"]
        case "badChecksum":
            fields = [(name, value[::-1] if name == "checksum" else value) for name, value in fields]
        case "noTransactions":
            fields = _with_xml(fields, callback_xml(config, payment, None, status))
        case "invalidXml":
            fields = _with_xml(fields, "<APIResponse><Header></Body>\n")
        case "emptyXml":
            fields = _with_xml(fields, "")
        case _:
            pass  # the others are about the signature
    return Body(form_encode(fields), "application/x-www-form-urlencoded")


def _with_xml(fields: list[tuple[str, str]], xml: str) -> list[tuple[str, str]]:
    return [(name, xml if name == "xml" else value) for name, value in fields]


def form_fields(
    config: SandboxConfig, payment: Payment, transaction: Transaction | None, status: str
) -> list[tuple[str, str]]:
    """Return the fields of part 2.2 in a fixed order; the checksum only where a terminal secret is set."""
    amount = plain(payment.amount_minor, payment.currency)
    currency = money.numeric_code(payment.currency)
    fields = [
        ("shop_orderid", payment.order_id),
        ("currency", currency),
        ("type", payment.type),
        ("embedded_window", "0"),
        ("amount", amount),
    ]
    if transaction is not None:
        fields.append(("transaction_id", transaction.transaction_id))
    fields += [("payment_id", payment.payment_id), ("nature", payment.nature)]
    fields.append(("require_capture", _flag(requires_capture(payment, transaction))))
    if transaction is not None:
        fields.append(("payment_status", transaction.status))
        if transaction.masked_pan:
            fields += [
                ("masked_credit_card", transaction.masked_pan),
                ("credit_card_masked_pan", transaction.masked_pan),
                ("credit_card_token", transaction.token),
                ("blacklist_token", transaction.token),
            ]
        if transaction.fraud_recommendation:
            fields += [
                ("fraud_risk_score", str(transaction.fraud_score)),
                ("fraud_explanation", transaction.fraud_explanation),
                ("fraud_recommendation", transaction.fraud_recommendation),
            ]
    fields.append(("status", status))
    infos = payment.transaction_info if payment.echoes_infos else {}
    fields += [(f"transaction_info[{name}]", value) for name, value in infos.items()]
    if transaction is not None and status != "succeeded" and transaction.message:
        fields += [
            ("error_message", transaction.message),
            ("merchant_error_message", transaction.merchant_message),
            ("cardholder_message_must_be_shown", _flag(transaction.must_show)),
        ]
    fields.append(("xml", callback_xml(config, payment, transaction, status)))
    if config.terminal_secret:
        digest = checksum(
            amount=amount, currency=currency, shop_orderid=payment.order_id, secret=config.terminal_secret
        )
        fields.append(("checksum", digest))
    return fields


def _json_fields(payment: Payment, transaction: Transaction | None, status: str) -> dict[str, Any]:
    """Return the JSON body of part 2.3: it names no transaction, so the merchant has to look that up."""
    failed = transaction if status != "succeeded" else None
    pan = transaction.masked_pan if transaction is not None else ""
    return {
        "requiresCapture": requires_capture(payment, transaction),
        "status": JSON_STATUSES[status],
        "customerErrorMessage": (failed.message or None) if failed else None,
        "merchantErrorMessage": (failed.merchant_message or None) if failed else None,
        "merchantErrorCode": None,
        "customerMessageMustBeShown": failed.must_show if failed else False,
        "paymentId": payment.payment_id,
        "sessionId": payment.session_id,
        "order": {
            "orderId": payment.order_id,
            "amount": float(payment.amount),
            "currency": payment.currency,
        },
        "cardInformation": {"lastFourDigits": pan[-4:]} if pan else None,
    }


def _transaction(config: SandboxConfig, payment: Payment, transaction: Transaction) -> str:
    currency = payment.currency
    numeric = money.numeric_code(currency)
    card = transaction.masked_pan
    parts = [
        element("TransactionId", transaction.transaction_id),
        element("PaymentId", payment.payment_id),
        element("AuthType", payment.type),
        element("CardStatus", "Valid" if card else "NoCreditCard"),
    ]
    if card:
        parts.append(_card(transaction))
    parts += [
        element("ThreeDSecureResult", transaction.three_d_secure),
        element(
            "LiableForChargeback", "Issuer" if transaction.three_d_secure == "Successful" else "Merchant"
        ),
        element("CVVCheckResult", "Matched" if card else "Not_Applicable"),
        element("BlacklistToken", transaction.token) if card else "",
        element("ShopOrderId", payment.order_id),
        element("Shop", config.shop),
        element("Terminal", payment.terminal),
        element("TransactionStatus", transaction.status),
        element("ReasonCode", "NONE"),
        element("MerchantCurrency", numeric),
        element("MerchantCurrencyAlpha", currency),
        element("CardHolderCurrency", numeric),
        element("CardHolderCurrencyAlpha", currency),
        element("ReservedAmount", plain(transaction.reserved_minor, currency)),
        element("CapturedAmount", plain(transaction.captured_minor, currency)),
        element("RefundedAmount", plain(transaction.refunded_minor, currency)),
        element("CreditedAmount", plain(0, currency)),
        element("RecurringDefaultAmount", plain(0, currency)),
        element("SurchargeAmount", plain(0, currency)),
        element("CreatedDate", _date(config, transaction.created_at)),
        element("UpdatedDate", _date(config, transaction.updated_at)),
        element("PaymentNature", payment.nature),
        element("PaymentSource", "eCommerce"),
        element("AuthorisationExpiryDate", _date(config, _reserved_until(payment, transaction)))
        if transaction.reserved_minor
        else "",
        element("PaymentSchemeName", _scheme(card)) if card else "",
        _service(payment),
    ]
    if transaction.fraud_recommendation:
        parts += [
            element("FraudRiskScore", transaction.fraud_score),
            element("FraudExplanation", transaction.fraud_explanation),
            element("FraudRecommendation", transaction.fraud_recommendation),
        ]
    parts += [_chargebacks(config, payment, transaction), _infos(payment), _customer(payment)]
    parts.append(_reconciliations(config, payment, transaction))
    return "<Transaction>" + "".join(parts) + "</Transaction>"


def _card(transaction: Transaction) -> str:
    month, _, year = transaction.expiry.partition("/")
    expiry = (
        f"<CreditCardExpiry>{element('Year', year)}{element('Month', month)}</CreditCardExpiry>"
        if year
        else ""
    )
    pan = transaction.masked_pan
    information = "".join(
        [
            element("IsTokenized", "false"),
            element("Token", transaction.token),
            element("MaskedPan", pan),
            element("Expiry", transaction.expiry),
            element("IssuingCountry", "DK"),
            element("LastFourDigits", pan[-4:]),
            element("Scheme", _scheme(pan)),
        ]
    )
    return (
        expiry
        + element("CreditCardToken", transaction.token)
        + element("CreditCardMaskedPan", pan)
        + element("IsTokenized", "false")
        + f"<CardInformation>{information}</CardInformation>"
    )


def _scheme(pan: str) -> str:
    """Return the scheme of a masked card number, whose first six digits are shown."""
    return next((name for first, name in _SCHEMES.items() if pan.startswith(first)), "Unknown")


def _reserved_until(payment: Payment, transaction: Transaction) -> float:
    seconds = payment.reserved_seconds
    if seconds is None:
        seconds = _RESERVED_DAYS.get(_scheme(transaction.masked_pan), _DEFAULT_DAYS) * 86400
    return transaction.created_at + seconds


def _service(payment: Payment) -> str:
    bank = payment.kind == MethodKind.BANK
    supported = "".join(
        [
            element("SupportsRefunds", "true"),
            element("SupportsRelease", _flag(not bank)),
            element("SupportsMultipleCaptures", _flag(not bank)),
            element("SupportsMultipleRefunds", "true"),
        ]
    )
    name = "BankAcquirer" if bank else "TestAcquirer"
    return f'<PaymentNatureService name="{name}">{supported}</PaymentNatureService>'


def _chargebacks(config: SandboxConfig, payment: Payment, transaction: Transaction) -> str:
    """Return the events as a notification of 2016 had them (C12); what a reversal is called was not seen."""
    events = "".join(
        "<ChargebackEvent>"
        + element("Date", dt.datetime.fromtimestamp(at, config.zone).isoformat(timespec="seconds"))
        + element("Type", "Chargeback" if minor > 0 else "ChargebackReversed")
        + element("ReasonCode", "4837")
        + element("Reason", "No Cardholder Authorization")
        + element("Amount", plain(abs(minor), payment.currency))
        + element("Currency", payment.currency)
        + element("AcquirerTransactionId", transaction.transaction_id)
        + element("AdditionalInfo", "")
        + "</ChargebackEvent>"
        for at, minor in transaction.chargebacks
    )
    return f"<ChargebackEvents>{events}</ChargebackEvents>" if events else "<ChargebackEvents/>"


def _infos(payment: Payment) -> str:
    if not payment.echoes_infos:
        return "<PaymentInfos/>"
    infos = "".join(
        f'<PaymentInfo name="{_escaped(name)}">{_escaped(value)}</PaymentInfo>'
        for name, value in payment.transaction_info.items()
    )
    return f"<PaymentInfos>{infos}</PaymentInfos>" if infos else "<PaymentInfos/>"


def _customer(payment: Payment) -> str:
    billing = payment.customer.get("billingAddress")
    address = billing if isinstance(billing, dict) else {}
    inner = [element(name, payment.customer[key]) for name, key in _CUSTOMER if payment.customer.get(key)]
    inner += [element(name, address[key]) for name, key in _ADDRESS if address.get(key)]
    return (
        f"<CustomerInfo><BillingAddress>{''.join(inner)}</BillingAddress></CustomerInfo>"
        if inner
        else "<CustomerInfo/>"
    )


def _reconciliations(config: SandboxConfig, payment: Payment, transaction: Transaction) -> str:
    entries = "".join(
        "<ReconciliationIdentifier>"
        + element("Id", each.identifier if each.echoed else each.unique_id)
        + f'<Amount currency="{money.numeric_code(payment.currency)}">{plain(each.amount_minor, payment.currency)}</Amount>'
        + element("Type", each.type)
        + element("Date", dt.datetime.fromtimestamp(each.at, config.zone).isoformat(timespec="seconds"))
        + element("UniqueId", each.unique_id)
        + "</ReconciliationIdentifier>"
        for each in transaction.reconciliation
    )
    return (
        f"<ReconciliationIdentifiers>{entries}</ReconciliationIdentifiers>"
        if entries
        else "<ReconciliationIdentifiers/>"
    )


def _date(config: SandboxConfig, at: float | None = None) -> str:
    moment = dt.datetime.fromtimestamp(time.time() if at is None else at, config.zone)
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _escaped(value: object) -> str:
    return html.escape(_FORBIDDEN.sub("", str(value)))


def _flag(value: bool) -> str:  # noqa: FBT001 - it is the value to print
    return "true" if value else "false"
