"""The documents of the light gateway, made once and filled in: token, session, payment methods, the payments
XML, callbacks.

The shapes are those that the gateway was seen to send (as in the sandbox), with about as many bytes; making
them costs a few microseconds. Order numbers and ids are kept to letters that mean the same in JSON, XML and
forms, so nothing needs escaping.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_plus
from uuid import UUID, uuid4, uuid5

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import rsa

from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.devkit.bench.ledger import Payment

SAFE: Final = re.compile(r"[A-Za-z0-9._-]{1,100}")
"""What an order number or our id must be: it is put into documents as it stands."""
TOKEN_LIFETIME: Final = 3600
"""Seconds."""
SIGNATURE: Final = "AltaPay-Signature"

_DAY: Final = 86400
_RESERVED_DAYS: Final = 7
_NAMESPACE: Final = UUID("6f1a3a0e-6a1b-4a8e-9a58-0d6f3f0f7c51")


class Tokens:
    """Bearer tokens as the gateway's (RS256, seven claims), shared by sessions; all of them stay valid."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._accepted: set[bytes] = set()
        self.renew()

    answer: bytes
    """The JSON that `authenticate` answers with."""

    def renew(self) -> None:
        """Sign a new token; it takes about half a millisecond, so sessions share a token."""
        now = int(time.time())
        claims = {
            "iss": "AltaPay Issuer",
            "upn": "checkout_api",
            "groups": ["SessionUpdate", "ExecutePayment", "ListPaymentMethods"],
            "authId": str(uuid4()),
            "iat": now,
            "exp": now + TOKEN_LIFETIME,
            "jti": str(uuid4()),
        }
        token = jwt.encode(claims, self._key, algorithm="RS256")
        self._accepted.add(b"Bearer " + token.encode())
        self.answer = msgspec.json.encode({"token": token})

    def accepts(self, authorization: bytes) -> bool:
        return authorization in self._accepted


def session(session_id: str, asked: bytes) -> bytes:
    """Return the answer to a new session: its id, and what was asked echoed."""
    return b'{"sessionId":"%b","context":{"browser":{}},%b' % (session_id.encode(), asked.lstrip()[1:])


_METHODS: Final = (
    ("Bench Card Terminal", "CARD", "Card", "Pay with a debit or credit card"),
    ("Bench Mobile Wallet Terminal", "MOBILE_WALLET", "Mobile wallet", "Confirm in the app on your phone"),
)


def methods(base: str) -> bytes:
    """Return the answer of `payment-methods`: a card and a wallet."""
    ids = {terminal: str(uuid5(_NAMESPACE, terminal)) for terminal, *_ in _METHODS}
    described = [
        {
            "id": ids[terminal],
            "type": kind,
            "name": name,
            "description": description,
            "logoUrl": f"{base}/logos/{ids[terminal]}.svg",
            "display": "BUTTON",
            "onInitiatePayment": {
                "type": "URL",
                "value": f"{base}/checkout/v1/api/payment/initiate/{ids[terminal]}",
            },
            "onRenderCheck": None,
            "metadata": {"terminalName": terminal},
        }
        for terminal, kind, name, description in _METHODS
    ]
    return msgspec.json.encode({"methods": described})


# ── Payments ──────────────────────────────────────────────────────────────────────────────────────────────


_HEADER: Final = (
    '<?xml version="1.0" encoding="utf-8"?>\n<APIResponse version="20260311"><Header><Date>{now}</Date><Path>%s</Path>'
    "<ErrorCode>0</ErrorCode><ErrorMessage></ErrorMessage></Header><Body>"
)
_END: Final = "</Body></APIResponse>\n"
_PAID: Final = ("<Result>Success</Result><Transactions>", "</Transactions>")
_TRANSACTION: Final = (
    "<Transaction><TransactionId>{transaction}</TransactionId><PaymentId>{payment}</PaymentId><AuthType>{type}</AuthType>"
    "<CardStatus>Valid</CardStatus><CreditCardExpiry><Year>2030</Year><Month>05</Month></CreditCardExpiry>"
    "<CreditCardToken>{card}</CreditCardToken><CreditCardMaskedPan>411111******1111</CreditCardMaskedPan>"
    "<IsTokenized>false</IsTokenized><CardInformation><IsTokenized>false</IsTokenized><Token>{card}</Token>"
    "<MaskedPan>411111******1111</MaskedPan><Expiry>05/2030</Expiry><IssuingCountry>DK</IssuingCountry>"
    "<LastFourDigits>1111</LastFourDigits><Scheme>Visa</Scheme></CardInformation><ThreeDSecureResult>Successful</ThreeDSecureResult>"
    "<LiableForChargeback>Issuer</LiableForChargeback><CVVCheckResult>Matched</CVVCheckResult><BlacklistToken>{card}</BlacklistToken>"
    "<ShopOrderId>{order}</ShopOrderId><Shop>Bench Shop</Shop><Terminal>Bench Card Terminal</Terminal>"
    "<TransactionStatus>{status}</TransactionStatus><ReasonCode>NONE</ReasonCode><MerchantCurrency>{numeric}</MerchantCurrency>"
    "<MerchantCurrencyAlpha>{currency}</MerchantCurrencyAlpha><CardHolderCurrency>{numeric}</CardHolderCurrency>"
    "<CardHolderCurrencyAlpha>{currency}</CardHolderCurrencyAlpha><ReservedAmount>{amount}</ReservedAmount>"
    "<CapturedAmount>{captured}</CapturedAmount><RefundedAmount>0.00</RefundedAmount><CreditedAmount>0.00</CreditedAmount>"
    "<RecurringDefaultAmount>0.00</RecurringDefaultAmount><SurchargeAmount>0.00</SurchargeAmount><CreatedDate>{made}</CreatedDate>"
    "<UpdatedDate>{made}</UpdatedDate><PaymentNature>CreditCard</PaymentNature><PaymentSource>eCommerce</PaymentSource>"
    "<AuthorisationExpiryDate>{until}</AuthorisationExpiryDate><PaymentSchemeName>Visa</PaymentSchemeName>"
    '<PaymentNatureService name="TestAcquirer"><SupportsRefunds>true</SupportsRefunds><SupportsRelease>true</SupportsRelease>'
    "<SupportsMultipleCaptures>true</SupportsMultipleCaptures><SupportsMultipleRefunds>true</SupportsMultipleRefunds>"
    "</PaymentNatureService><ChargebackEvents/>%s<CustomerInfo/><ReconciliationIdentifiers/></Transaction>"
)
_UNBOUND: Final = _TRANSACTION % "<PaymentInfos/>"
_BOUND: Final = (
    _TRANSACTION % '<PaymentInfos><PaymentInfo name="checkout">{checkout}</PaymentInfo></PaymentInfos>'
)
_FOUND: Final = _HEADER % "API/payments"
_FORM: Final = (
    "shop_orderid={order}&currency={numeric}&type={type}&embedded_window=0&amount={amount}&transaction_id={transaction}"
    "&payment_id={payment}&nature=CreditCard&require_capture=false&payment_status={status}&masked_credit_card=411111******1111"
    "&credit_card_masked_pan=411111******1111&credit_card_token={card}&blacklist_token={card}&status=succeeded"
)
_DATE: Final = "%Y-%m-%d %H:%M:%S"
_NOW: Final = "%Y-%m-%dT%H:%M:%S+00:00"


def _encoded(text: str) -> str:
    """Encode as Java does for a form (C1): the signature is over these very bytes.

    Places to fill in stay as they are.
    """
    return quote_plus(text, safe="*{}")


_FORM_UNBOUND: Final = f"{_FORM}&xml={_encoded((_HEADER % 'API/reservation') + _UNBOUND.join(_PAID) + _END)}"
_FORM_BOUND: Final = (
    f"{_FORM}&{_encoded('transaction_info[checkout]')}={{checkout}}"
    f"&xml={_encoded((_HEADER % 'API/reservation') + _BOUND.join(_PAID) + _END)}"
)


def payments(paid: Sequence[Payment]) -> bytes:
    """Return the answer of the Merchant API's `payments` for an order: the transactions that paid it."""
    rows = "".join(
        (_UNBOUND if payment.checkout is None else _BOUND).format_map(_facts(payment, _DATE))
        for payment in paid
    )
    head = _FOUND.format(now=_stamp(time.time(), _NOW))
    return f"{head}{rows.join(_PAID) if paid else '<Result/>'}{_END}".encode()


def callback(paid: Payment) -> bytes:
    """Return the form of a callback (facts 2.2) about a success, of both kinds the same."""
    # What is filled in means the same when it is encoded, but for spaces, colons and the sign in dates.
    facts = _facts(paid, _DATE.replace(" ", "+").replace(":", "%%3A"))
    facts["now"] = _encoded(_stamp(time.time(), _NOW))
    return (_FORM_UNBOUND if paid.checkout is None else _FORM_BOUND).format_map(facts).encode()


def _facts(paid: Payment, date: str) -> dict[str, str | None]:
    amount = _plain(paid.amount, paid.currency)
    return {
        "order": paid.order_ref,
        "checkout": paid.checkout,
        "transaction": paid.transaction_id,
        "payment": paid.payment_id,
        "type": "paymentAndCapture" if paid.captured else "payment",
        "status": "captured" if paid.captured else "preauth",
        "card": paid.payment_id,
        "numeric": money.numeric_code(paid.currency),
        "currency": paid.currency,
        "amount": amount,
        "captured": _plain(paid.captured, paid.currency),
        "made": _stamp(paid.at, date),
        "until": _stamp(paid.at + _RESERVED_DAYS * _DAY, date),
    }


def signature(body: bytes, secret: str, at: float) -> str:
    """Return the AltaPay-Signature header of a body (facts 2.4 B)."""
    stamp = str(int(at))
    made = hmac.new(secret.encode(), body + b"." + stamp.encode(), hashlib.sha256).hexdigest()
    return f"t={stamp};s0={made}"


def _plain(minor: int, currency: str) -> str:
    """Return an amount as the gateway prints it: a dot and at least two decimals."""
    amount = money.to_decimal(minor, currency)
    return f"{amount:.2f}" if money.exponent(currency) < 2 else str(amount)  # noqa: PLR2004 - two decimals


def _stamp(at: float, form: str) -> str:
    return time.strftime(form, time.gmtime(at))
