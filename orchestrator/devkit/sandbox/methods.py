"""The payment methods of the merchant, and those offered to a shopper.

The list for a session depends on the merchant's configuration (this table), the customer's country, the
order's size and currency, and the device (D1, D5). Names are generic; each method is one terminal, named in
`metadata.terminalName` (C1). Values of `type` other than CARD and all values of `display` are not documented:
those here are the sandbox's own.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache

import msgspec

_NAMESPACE = uuid.UUID("5f2e7d0c-6c43-4f0a-9a55-3d1c1f0b7e11")
_NORDIC = frozenset({"DK", "FI", "NO", "SE", "IS"})
_EURO_BANKS = frozenset({"DK", "FI", "NO", "SE", "DE", "NL", "FR", "IE", "AT", "BE", "ES", "IT"})


class MethodKind(StrEnum):
    """What the hosted page does for a method."""

    CARD = "card"
    BANK = "bank"
    WALLET = "wallet"
    INVOICE = "invoice"


class Device(StrEnum):
    """What the User-Agent says about the shopper's device, as far as methods depend on it."""

    APPLE = "apple"
    ANDROID = "android"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One terminal.

    `None` in a filter means that the filter is open; sizes are decimal amounts, both ends included.
    """

    terminal: str
    kind: MethodKind
    type: str
    name: str
    description: str
    nature: str
    currencies: frozenset[str] | None = None
    countries: frozenset[str] | None = None
    minimum: Decimal | None = None
    maximum: Decimal | None = None
    devices: frozenset[Device] | None = None
    echoes_reconciliation: bool = True

    @property
    def id(self) -> str:
        """The `paymentMethodId`: stable for a terminal, so that it survives restarts without being stored."""
        return method_id(self.terminal)

    def offered(self, *, amount: Decimal, currency: str, country: str | None, device: Device) -> bool:
        """Say whether this method is shown for such an order to such a shopper."""
        return (
            (self.currencies is None or currency in self.currencies)
            and (self.countries is None or country in self.countries)
            and (self.minimum is None or amount >= self.minimum)
            and (self.maximum is None or amount <= self.maximum)
            and (self.devices is None or device in self.devices)
        )


@lru_cache(maxsize=256)
def method_id(terminal: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, terminal))


METHODS: tuple[Method, ...] = (
    Method(
        terminal="Sandbox Card Terminal", kind=MethodKind.CARD, type="CARD", name="Card",
        description="Pay with a debit or credit card", nature="CreditCard",
    ),
    Method(
        terminal="Sandbox Bank Terminal", kind=MethodKind.BANK, type="BANK_PAYMENT", name="Mock bank",
        description="Pay straight from your bank account", nature="BankPayment",
        currencies=frozenset({"EUR", "DKK", "SEK", "NOK"}), countries=_EURO_BANKS, echoes_reconciliation=False,
    ),
    Method(
        terminal="Sandbox Mobile Wallet Terminal", kind=MethodKind.WALLET, type="MOBILE_WALLET", name="Mobile wallet",
        description="Confirm in the app on your phone", nature="Mobile",
        currencies=frozenset({"DKK", "EUR"}), countries=frozenset({"DK", "FI"}),
    ),
    Method(
        terminal="Sandbox Apple Pay Terminal", kind=MethodKind.WALLET, type="APPLE_PAY", name="Apple Pay",
        description="Pay with the cards in your Apple device", nature="CreditCardWallet", devices=frozenset({Device.APPLE}),
    ),
    Method(
        terminal="Sandbox Android Wallet Terminal", kind=MethodKind.WALLET, type="ANDROID_WALLET", name="Android wallet",
        description="Pay with the cards in your Android phone", nature="CreditCardWallet", devices=frozenset({Device.ANDROID}),
    ),
    Method(
        terminal="Sandbox Invoice Terminal", kind=MethodKind.INVOICE, type="INVOICE", name="Invoice",
        description="Get the goods first, pay within 14 days", nature="Invoice",
        currencies=frozenset({"DKK", "SEK", "NOK", "EUR"}), countries=_NORDIC, minimum=Decimal(100), maximum=Decimal(10000),
    ),
)  # fmt: skip

_HANDHELD_APPLE = re.compile(r"iPhone|iPad|iPod")
_OTHER_ENGINES = re.compile(r"Chrome|Chromium|CriOS|Edg|Firefox|FxiOS|OPR/")


@lru_cache(maxsize=4096)
def device_of(user_agent: str) -> Device:
    """Tell the device: any browser on iOS, but only Safari on a Mac, can show Apple Pay."""
    if _HANDHELD_APPLE.search(user_agent):
        return Device.APPLE
    if "Macintosh" in user_agent and "Safari/" in user_agent and not _OTHER_ENGINES.search(user_agent):
        return Device.APPLE
    if "Android" in user_agent:
        return Device.ANDROID
    return Device.OTHER


@lru_cache(maxsize=256)
def _described(method: Method, base: str) -> bytes:
    described = {
        "id": method.id,
        "type": method.type,
        "name": method.name,
        "description": method.description,
        "logoUrl": f"{base}/sandbox/logos/{method.id}.svg",
        "display": "BUTTON",
        "onInitiatePayment": {"type": "URL", "value": f"{base}/checkout/v1/api/payment/initiate/{method.id}"},
        "onRenderCheck": None,
        "metadata": {"terminalName": method.terminal},
    }
    return msgspec.json.encode(described)


def listed(methods: list[Method], base: str) -> bytes:
    """Return the JSON answer of `GET …/payment-methods` (part 1.3) for these methods."""
    return b'{"methods":[' + b",".join(_described(method, base) for method in methods) + b"]}"
