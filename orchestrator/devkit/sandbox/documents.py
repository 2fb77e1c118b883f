"""The gateway's documents: XML answers of the Merchant API and the bodies of callbacks, both from the same
books.

Elements of a Transaction stand in the order of the XSD (C10); elements without a value are left out where the
fixtures leave them out. Everything put into XML is escaped and freed of characters that XML 1.0 forbids.
Dates carry no offset; here they are in UTC.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import html
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import msgspec

from orchestrator.devkit.sandbox.methods import MethodKind
from orchestrator.devkit.sandbox.rules import JSON_STATUSES, RESULTS
from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from orchestrator.devkit.sandbox.books import Payment, Transaction
    from orchestrator.devkit.sandbox.faults import Tampering

API_VERSION = "20260311"
SHOP = "Sandbox Shop"
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CUSTOMER = (("FirstName", "firstName"), ("LastName", "lastName"), ("Email", "email"))
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


def plain(minor: int, currency: str) -> str:
    """Return an amount as the gateway prints it: a dot and at least two decimals."""
    amount = money.to_decimal(minor, currency)
    return f"{amount:.2f}" if money.exponent(currency) < 2 else str(amount)  # noqa: PLR2004 - two decimals


def element(name: str, value: object) -> str:
    return f"<{name}>{_escaped(value)}</{name}>"


def elements(**values: object) -> str:
    """Return elements in this order; those without a value (None) are left out."""
    return "".join(element(name, value) for name, value in values.items() if value is not None)


def envelope(*, path: str, body: str, code: int = 0, message: str = "") -> bytes:
    """Return an APIResponse; a code other than 0 is a request-level error and comes with an empty Body."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    header = elements(Date=now, Path=path, ErrorCode=code, ErrorMessage=message)
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<APIResponse version="{API_VERSION}"><Header>{header}</Header>'
    return f"{text}<Body>{body}</Body></APIResponse>\n".encode()


def transactions(rows: Iterable[tuple[Payment, Transaction]]) -> str:
    """Return the Transactions element, or nothing where there are none."""
    listed = "".join(_transaction(payment, transaction) for payment, transaction in rows)
    return f"<Transactions>{listed}</Transactions>" if listed else ""


def callback_xml(payment: Payment, transaction: Transaction | None, status: str) -> str:
    """Return the APIResponse of a callback; it ends with a newline (C1)."""
    body = element("Result", RESULTS[status])
    if transaction is not None:
        if transaction.message and status != "succeeded":
            body += elements(
                CardHolderErrorMessage=transaction.message,
                CardHolderMessageMustBeShown=_flag(transaction.must_show),
                MerchantErrorMessage=transaction.merchant_message,
            )
        body += transactions([(payment, transaction)])
    path = "API/reservation" if payment.kind == MethodKind.CARD else "API/ePaymentVerify"
    if status == "ChargebackEvent":
        path = "settings/createReconciliationData"
    return envelope(path=path, body=body).decode()


def requires_capture(payment: Payment, transaction: Transaction | None) -> bool:
    """Say whether the merchant has yet to capture in spite of autoCapture (`require_capture`)."""
    if transaction is None:
        return False
    return payment.auto_capture and transaction.reserved_minor > 0 and not transaction.captured_minor


def callback_body(
    payment: Payment,
    transaction: Transaction | None,
    status: str,
    *,
    terminal_secret: str,
    tamper: Tampering | None = None,
) -> tuple[bytes, str]:
    """Return a callback's body and content type as the session asked, damaged as a script ordered."""
    if payment.body_format == "JSON":
        return msgspec.json.encode(_json_fields(payment, transaction, status)), "application/json"
    fields = form_fields(payment, transaction, status, terminal_secret=terminal_secret)
    match tamper:
        case "noChecksum":
            fields.pop("checksum", None)
        case "badChecksum" if "checksum" in fields:
            fields["checksum"] = fields["checksum"][::-1]
        case "noTransactions":
            fields["xml"] = callback_xml(payment, None, status)
        case "invalidXml":
            fields["xml"] = "<APIResponse><Header></Body>\n"
        case "emptyXml":
            fields["xml"] = ""
        case _:
            pass  # the others are about the signature
    return form_encode(fields.items()), "application/x-www-form-urlencoded"


def form_fields(
    payment: Payment, transaction: Transaction | None, status: str, *, terminal_secret: str
) -> dict[str, str]:
    """Return the fields of part 2.2 in a fixed order; the checksum only where a terminal secret is set."""
    amount = plain(payment.amount_minor, payment.currency)
    currency = money.numeric_code(payment.currency)
    fields = {
        "shop_orderid": payment.order_id,
        "currency": currency,
        "type": payment.type,
        "embedded_window": "0",
        "amount": amount,
    }
    if transaction is not None:
        fields["transaction_id"] = transaction.transaction_id
    fields |= {
        "payment_id": payment.payment_id,
        "nature": payment.nature,
        "require_capture": _flag(requires_capture(payment, transaction)),
    }
    if transaction is not None:
        fields["payment_status"] = transaction.status
        if transaction.masked_pan:
            fields |= {
                "masked_credit_card": transaction.masked_pan,
                "credit_card_masked_pan": transaction.masked_pan,
                "credit_card_token": transaction.token,
                "blacklist_token": transaction.token,
            }
        if transaction.fraud_recommendation:
            fields |= {
                "fraud_risk_score": str(transaction.fraud_score),
                "fraud_explanation": transaction.fraud_explanation,
                "fraud_recommendation": transaction.fraud_recommendation,
            }
    fields["status"] = status
    fields |= {f"transaction_info[{name}]": value for name, value in payment.echoed_infos.items()}
    if transaction is not None and status != "succeeded" and transaction.message:
        fields |= {
            "error_message": transaction.message,
            "merchant_error_message": transaction.merchant_message,
            "cardholder_message_must_be_shown": _flag(transaction.must_show),
        }
    fields["xml"] = callback_xml(payment, transaction, status)
    if terminal_secret:
        covered = {"amount": amount, "currency": currency, "shop_orderid": payment.order_id}
        fields["checksum"] = checksum(**covered, secret=terminal_secret)
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
        "order": {"orderId": payment.order_id, "amount": float(payment.amount), "currency": payment.currency},
        "cardInformation": {"lastFourDigits": pan[-4:]} if pan else None,
    }


def _transaction(payment: Payment, transaction: Transaction) -> str:
    currency, card, fraud = payment.currency, transaction.masked_pan, transaction.fraud_recommendation
    numeric, none = money.numeric_code(currency), plain(0, currency)
    reserved = transaction.reserved_minor
    parts = [
        elements(
            TransactionId=transaction.transaction_id,
            PaymentId=payment.payment_id,
            AuthType=payment.type,
            CardStatus="Valid" if card else "NoCreditCard",
        ),
        _card(transaction) if card else "",
        elements(
            ThreeDSecureResult=transaction.three_d_secure,
            LiableForChargeback="Issuer" if transaction.three_d_secure == "Successful" else "Merchant",
            CVVCheckResult="Matched" if card else "Not_Applicable",
            BlacklistToken=transaction.token if card else None,
            ShopOrderId=payment.order_id,
            Shop=SHOP,
            Terminal=payment.terminal,
            TransactionStatus=transaction.status,
            ReasonCode="NONE",
            MerchantCurrency=numeric,
            MerchantCurrencyAlpha=currency,
            CardHolderCurrency=numeric,
            CardHolderCurrencyAlpha=currency,
            ReservedAmount=plain(reserved, currency),
            CapturedAmount=plain(transaction.captured_minor, currency),
            RefundedAmount=plain(transaction.refunded_minor, currency),
            CreditedAmount=none,
            RecurringDefaultAmount=none,
            SurchargeAmount=none,
            CreatedDate=_date(transaction.created_at),
            UpdatedDate=_date(transaction.updated_at),
            PaymentNature=payment.nature,
            PaymentSource="eCommerce",
            AuthorisationExpiryDate=_date(_reserved_until(payment, transaction)) if reserved else None,
            PaymentSchemeName=_scheme(card) if card else None,
        ),
        _service(payment),
        elements(
            FraudRiskScore=transaction.fraud_score,
            FraudExplanation=transaction.fraud_explanation,
            FraudRecommendation=fraud,
        )
        if fraud
        else "",
        _chargebacks(payment, transaction),
        _infos(payment),
        _customer(payment),
        _reconciliations(payment, transaction),
    ]
    return "<Transaction>" + "".join(parts) + "</Transaction>"


def _card(transaction: Transaction) -> str:
    month, _, year = transaction.expiry.partition("/")
    expiry = f"<CreditCardExpiry>{elements(Year=year, Month=month)}</CreditCardExpiry>" if year else ""
    pan = transaction.masked_pan
    token = elements(CreditCardToken=transaction.token, CreditCardMaskedPan=pan, IsTokenized="false")
    information = elements(
        IsTokenized="false",
        Token=transaction.token,
        MaskedPan=pan,
        Expiry=transaction.expiry,
        IssuingCountry="DK",
        LastFourDigits=pan[-4:],
        Scheme=_scheme(pan),
    )
    return f"{expiry}{token}<CardInformation>{information}</CardInformation>"


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
    supported = elements(
        SupportsRefunds="true",
        SupportsRelease=_flag(not bank),
        SupportsMultipleCaptures=_flag(not bank),
        SupportsMultipleRefunds="true",
    )
    name = "BankAcquirer" if bank else "TestAcquirer"
    return f'<PaymentNatureService name="{name}">{supported}</PaymentNatureService>'


def _chargebacks(payment: Payment, transaction: Transaction) -> str:
    """Return the events as a notification of 2016 had them (C12); what a reversal is called was not seen."""
    events = (
        elements(
            Date=_moment(at),
            Type="Chargeback" if minor > 0 else "ChargebackReversed",
            ReasonCode="4837",
            Reason="No Cardholder Authorization",
            Amount=plain(abs(minor), payment.currency),
            Currency=payment.currency,
            AcquirerTransactionId=transaction.transaction_id,
            AdditionalInfo="",
        )
        for at, minor in transaction.chargebacks
    )
    return _list("ChargebackEvents", (f"<ChargebackEvent>{event}</ChargebackEvent>" for event in events))


def _list(name: str, items: Iterable[str]) -> str:
    inner = "".join(items)
    return f"<{name}>{inner}</{name}>" if inner else f"<{name}/>"


def _infos(payment: Payment) -> str:
    infos = (
        f'<PaymentInfo name="{_escaped(name)}">{_escaped(value)}</PaymentInfo>'
        for name, value in payment.echoed_infos.items()
    )
    return _list("PaymentInfos", infos)


def _customer(payment: Payment) -> str:
    billing = payment.customer.get("billingAddress")
    address = billing if isinstance(billing, dict) else {}
    inner = [element(name, payment.customer[key]) for name, key in _CUSTOMER if payment.customer.get(key)]
    inner += [element(name, address[key]) for name, key in _ADDRESS if address.get(key)]
    return _list("CustomerInfo", [_list("BillingAddress", inner)] if inner else [])


def _reconciliations(payment: Payment, transaction: Transaction) -> str:
    numeric = money.numeric_code(payment.currency)
    entries = (
        element("Id", each.identifier if each.echoed else each.unique_id)
        + f'<Amount currency="{numeric}">{plain(each.amount_minor, payment.currency)}</Amount>'
        + elements(Type=each.type, Date=_moment(each.at), UniqueId=each.unique_id)
        for each in transaction.reconciliation
    )
    named = (f"<ReconciliationIdentifier>{entry}</ReconciliationIdentifier>" for entry in entries)
    return _list("ReconciliationIdentifiers", named)


def _date(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")


def _moment(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="seconds")


def _escaped(value: object) -> str:
    return html.escape(_FORBIDDEN.sub("", str(value)))


def _flag(value: bool) -> str:  # noqa: FBT001 - it is the value to print
    return "true" if value else "false"


# ── On the wire: Java's form encoding, the MD5 checksum, the AltaPay-Signature header ──
#
# Both mechanisms are in use at once and are independent (part 2.4). The checksum covers neither status nor
# transaction; the signature covers the raw body. The unit of `t` is not documented: seconds here.


def form_encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode like Java's URLEncoder: space to `+`, `.-*_` as they are, all else in upper-case hex."""
    return "&".join(f"{_java_encoded(name)}={_java_encoded(value)}" for name, value in fields).encode("ascii")


def _java_encoded(text: str) -> str:
    return quote_plus(text, safe="*", errors="replace").replace("~", "%7E")


def checksum(*, amount: str, currency: str, shop_orderid: str, secret: str) -> str:
    """Return the terminal checksum over the fields exactly as posted (part 2.4, A)."""
    text = f"amount={amount},currency={currency},secret={secret},shop_orderid={shop_orderid}"
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()  # the vendor's algorithm


def signature_header(body: bytes, secrets: Sequence[str], timestamp: int) -> str:
    """Return the AltaPay-Signature header with one signature for each active secret: a hexadecimal
    HMAC-SHA256 over the raw body, a dot and the timestamp (part 2.4, B).
    """
    signed = f"{timestamp}".encode()
    made = (hmac.digest(secret.encode(), body + b"." + signed, "sha256").hex() for secret in secrets)
    return ";".join([f"t={timestamp}", *(f"s{number}={each}" for number, each in enumerate(made))])
