"""What the API takes: which fields a body has.

Bodies are read field by field, with a sentence for each problem (`intents`, `api.commands`); a test compares
both.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from orchestrator import intents
from orchestrator.api.contract.values import Currency, Money, Shape, Version, about
from orchestrator.domain.records import Decision
from orchestrator.intents.fields import LONGEST_URL
from orchestrator.intents.reading import LONGEST_EXPIRY, LONGEST_INFO, MOST_INFOS, MOST_LINES, MOST_PIECES

LONGEST_REASON: Final = 500
LONGEST_TRANSACTION: Final = 100

Name = Annotated[str, about(maxLength=255)]
Country = Annotated[str, about("ISO 3166-1 alpha-2, or XK", "DK", pattern="^[A-Za-z]{2}$", maxLength=2)]
Url = Annotated[
    str, about("http(s) URL with a host and without credentials", format="uri", maxLength=LONGEST_URL)
]
AppUrl = Annotated[
    str,
    about(
        "http(s) URL, or a URL with the scheme of an app such as `myshop://checkout/done`",
        format="uri",
        maxLength=LONGEST_URL,
    ),
]
BodyFormat = Literal["XML", "JSON"]


class Amount(Shape, kw_only=True):
    """An amount of money."""

    value: Annotated[Money, about(None, 139.0)]
    currency: Currency


class Address(Shape, kw_only=True):
    """A postal address."""

    street: Name | UnsetType = UNSET
    city: Name | UnsetType = UNSET
    country: Country | UnsetType = UNSET
    zip_code: Annotated[str, about(None, "8000", maxLength=32)] | UnsetType = UNSET


class OrderLine(Shape, kw_only=True):
    """What is bought."""

    item_id: Annotated[str, about(None, "mug-1", maxLength=100)]
    description: Annotated[
        str,
        about(
            "Cut after 50 characters, as the gateway's own cartridge does",
            "Mug",
            maxLength=intents.BODY_LIMIT,
        ),
    ]
    quantity: Annotated[int, about(None, 2, minimum=1, maximum=MOST_PIECES)]
    unit_price: Annotated[Money, about(None, 40.0)]
    tax_amount: Annotated[Money, about("Tax of the whole line", 20.0, default=0)] | UnsetType = UNSET
    goods_type: Annotated[Literal["item", "shipment", "handling"], about(default="item")] | UnsetType = UNSET


class Customer(Shape, kw_only=True):
    """The shopper; with one field at least."""

    first_name: Name | UnsetType = UNSET
    last_name: Name | UnsetType = UNSET
    email: Annotated[str, about(None, "ada@example.com", format="email", maxLength=254)] | UnsetType = UNSET
    billing_address: Address | UnsetType = UNSET
    shipping_address: Address | UnsetType = UNSET


class Order(Shape, kw_only=True):
    """What is bought, by whom, and for how much."""

    order_id: Annotated[
        str,
        about("One live checkout each", "A-1001", pattern=f"^{intents.ORDER_NUMBER.pattern}$", maxLength=50),
    ]
    amount: Amount
    order_lines: Annotated[
        list[OrderLine],
        about(
            "Sum of unitPrice * quantity + taxAmount is the amount; up to one minor unit for each piece that has a price is "
            "completed by a rounding line",
            minItems=1,
            maxItems=MOST_LINES,
        ),
    ]
    customer: Customer
    transaction_info: Annotated[
        dict[str, Annotated[str, about(maxLength=LONGEST_INFO)]] | UnsetType,
        about("At most 49 entries; `checkout` is reserved", {"channel": "web"}, maxProperties=MOST_INFOS),
    ] = UNSET


class Page(Shape, kw_only=True):
    """A page of the shop."""

    kind: Annotated[Literal["URL"], about(default="URL")] | UnsetType = msgspec.field(
        name="type", default=UNSET
    )
    value: Annotated[Url, about(None, "https://shop.example/paid")]


class Callbacks(Shape, kw_only=True):
    """Where the shopper is sent afterwards."""

    success: Page
    failure: Page
    redirect: Annotated[AppUrl, about(None, "https://shop.example/done")] | UnsetType = UNSET
    notification: (
        Annotated[Url, about("Kept with the intent; the gateway notifies the orchestrator")] | UnsetType
    ) = UNSET
    form_styling: Url | UnsetType = UNSET
    body_format: BodyFormat | UnsetType = UNSET


class Configuration(Shape, kw_only=True):
    """How it is paid."""

    payment_type: Literal["PAYMENT"]
    auto_capture: Annotated[bool, about("The gateway captures by itself")] | UnsetType = UNSET
    payment_display_type: (
        Annotated[str, about("Empty: as if absent", "REDIRECT", pattern="^[A-Z_]*$", maxLength=50)]
        | UnsetType
    ) = UNSET
    country: Country | UnsetType = UNSET
    language: (
        Annotated[str, about("ISO 639-1; empty: as if absent", "da", pattern="^([A-Za-z]{2})?$", maxLength=2)]
        | UnsetType
    ) = UNSET
    body_format: Annotated[BodyFormat, about("The same as callbacks.bodyFormat")] | UnsetType = UNSET


class Intent(Shape, kw_only=True):
    """A shop's checkout request, in the shape of the gateway's own `POST /session`."""

    order: Order
    callbacks: Callbacks
    configuration: Configuration
    is_native_flow: (
        Annotated[
            bool,
            about(
                "Passed on to the gateway: app-based methods open the app of the method without a payment page"
            ),
        ]
        | UnsetType
    ) = UNSET
    expires_in: Annotated[float, about("Seconds", 1800, minimum=1, maximum=LONGEST_EXPIRY)] | UnsetType = (
        UNSET
    )
    user_agent: (
        Annotated[
            str,
            about(
                "The shopper's browser, for the choice of payment methods; not part of the content",
                maxLength=intents.BODY_LIMIT,
            ),
        ]
        | UnsetType
    ) = UNSET


class _Asked(Shape, kw_only=True):
    reason: Annotated[str, about("Stands in the audit trail", maxLength=LONGEST_REASON)] | UnsetType = UNSET
    version: Annotated[Version, about("Refused if the checkout has another by now")] | UnsetType = UNSET


ALL: Final = "all"
"""As an amount: all that is left. It is said, and never meant by what is left out."""
Part = Annotated[
    Money | Amount, about('In the payment\'s currency; `"all"`: all that is left of it', 10.0, ALL)
]
"""The schema has `ALL` beside it: msgspec has no unions of a text with a decimal."""
PaidBy = (
    Annotated[
        str, about("Absent: the transaction that pays the checkout", "539101", maxLength=LONGEST_TRANSACTION)
    ]
    | UnsetType
)


class Cancel(_Asked, kw_only=True):
    """Cancel a checkout."""


class Reopen(_Asked, kw_only=True):
    """Offer a closed checkout again."""

    expires_in: (
        Annotated[float, about("Seconds, from the new offer on", 1800, minimum=1, maximum=LONGEST_EXPIRY)]
        | UnsetType
    ) = UNSET


class Capture(_Asked, kw_only=True):
    """Capture reserved money."""

    amount: Part
    transaction_id: PaidBy = UNSET


class Refund(_Asked, kw_only=True):
    """Refund captured money."""

    amount: Part
    transaction_id: PaidBy = UNSET


class Release(_Asked, kw_only=True):
    """Give a reservation back."""

    transaction_id: PaidBy = UNSET


class Retry(_Asked, kw_only=True):
    """Try again at once; while calls to the gateway are paused, soon after they are made again."""


class Reconcile(_Asked, kw_only=True):
    """Ask the gateway at once."""


class Resolve(_Asked, kw_only=True):
    """Decide what waits for a person."""

    decision: Annotated[Decision, about("keep the money, return it, or dismiss it: no action needed")]


class ChangedAmount(Shape, kw_only=True):
    """An amount of money in the currency of the order."""

    value: Annotated[Money, about(None, 99.0)] | UnsetType = UNSET
    currency: Annotated[Currency, about("That of the order")] | UnsetType = UNSET


class ChangedOrder(Shape, kw_only=True):
    """What changes of the order: objects are merged, lists are replaced, null removes."""

    amount: ChangedAmount | UnsetType = UNSET
    order_lines: (
        Annotated[
            list[OrderLine],
            about("All of them: they sum up to the amount, as in an intent", minItems=1, maxItems=MOST_LINES),
        ]
        | UnsetType
    ) = UNSET
    customer: Annotated[dict[str, Any], about("Merged into the customer")] | UnsetType = UNSET
    transaction_info: (
        Annotated[dict[str, Any] | None, about("Merged into the entries; null removes all")] | UnsetType
    ) = UNSET


class Change(_Asked, kw_only=True):
    """Change the order before its payment: a JSON Merge Patch (RFC 7396) of what was handed over, with
    `reason` and `version` beside it.
    """

    order: Annotated[ChangedOrder, about("Not its number, nor its currency")] | UnsetType = UNSET
    callbacks: Annotated[dict[str, Any], about("Merged into the callbacks")] | UnsetType = UNSET
