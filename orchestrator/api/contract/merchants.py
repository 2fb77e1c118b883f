"""Merchants as the API takes and shows them to the operator; a secret is taken, and shown only where it was
made here.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import UNSET, UnsetType

from orchestrator.api.contract.values import MOST_ITEMS, Count, Ordinal, Shape, Text, Time, about
from orchestrator.audit.merchant_changes import MerchantAction
from orchestrator.gateway.credentials import Result
from orchestrator.settings.values import LEAST_CALLBACK_SECRET, LONGEST_CALLBACK_SECRET
from orchestrator.store.merchant_fields import (
    LONGEST_CREDENTIAL,
    MAX_LOOKUPS_PER_MINUTE,
    MOST_SECRETS,
    NAME,
    Capture,
    Surcharge,
    UnexpectedPaymentPolicy,
)
from orchestrator.store.merchant_records import Status
from orchestrator.store.merchant_writes import LONGEST_OVERLAP, OVERLAP

MERCHANT_PAGE: Final = 100
CHANGE_PAGE: Final = 200
LONGEST_URL: Final = 2048

Name = Annotated[str, about("Stands in its tokens", "shop2", pattern=f"^{NAME.pattern}$", maxLength=63)]
Url = Annotated[
    str, about("https:// and a public host", "https://shop.altapaysecure.com", maxLength=LONGEST_URL)
]
Username = Annotated[str, about("The gateway's API user", minLength=1, maxLength=LONGEST_CREDENTIAL)]
Password = Annotated[str, about("Its password; never shown", minLength=1, maxLength=LONGEST_CREDENTIAL)]
Secret = Annotated[str, about(minLength=LEAST_CALLBACK_SECRET, maxLength=LONGEST_CALLBACK_SECRET)]
Lookups = Annotated[int, about(minimum=1, maximum=MAX_LOOKUPS_PER_MINUTE)]


class ChangePolicies(Shape, kw_only=True, rename=None):
    """What is done without a request (`docs/money.md`); what is absent stays as it is."""

    late: UnexpectedPaymentPolicy | UnsetType = UNSET
    surplus: UnexpectedPaymentPolicy | UnsetType = UNSET
    unknown_order: UnexpectedPaymentPolicy | UnsetType = UNSET
    capture: Capture | UnsetType = UNSET
    surcharge: Surcharge | UnsetType = UNSET
    lookups_per_minute: Lookups | UnsetType = UNSET


class AddMerchant(Shape, kw_only=True):
    """Add a merchant with a gateway account of its own."""

    name: Name
    gateway_url: Url
    merchant_api_url: Annotated[Url | None, about("Where it lives elsewhere")] | UnsetType = UNSET
    username: Username
    password: Password
    callback_secrets: (
        Annotated[list[Secret], about("Newest first; none: callbacks are not checked", maxItems=MOST_SECRETS)]
        | UnsetType
    ) = UNSET
    policies: ChangePolicies | UnsetType = UNSET


class ChangeMerchant(Shape, kw_only=True):
    """Change a merchant; what is absent stays as it is. Another URL or user name needs the password again."""

    gateway_url: Url | UnsetType = UNSET
    merchant_api_url: Annotated[Url | None, about("Null: below the gateway URL")] | UnsetType = UNSET
    username: Username | UnsetType = UNSET
    password: Password | UnsetType = UNSET
    policies: ChangePolicies | UnsetType = UNSET


class RotateCallbackSecret(Shape, kw_only=True):
    """Give a merchant a new callback secret."""

    secret: Annotated[Secret, about("The gateway's; absent: one is made, and shown once")] | UnsetType = UNSET
    overlap: (
        Annotated[
            int,
            about(
                "Seconds for which those before it are valid",
                minimum=0,
                maximum=LONGEST_OVERLAP,
                default=OVERLAP,
            ),
        ]
        | UnsetType
    ) = UNSET


class Policies(Shape, kw_only=True, rename=None):
    """What is done without a request."""

    late: UnexpectedPaymentPolicy
    surplus: UnexpectedPaymentPolicy
    unknown_order: UnexpectedPaymentPolicy
    capture: Capture
    surcharge: Surcharge
    lookups_per_minute: Lookups


class Merchant(Shape, kw_only=True):
    """A merchant, without its secrets."""

    name: Name
    status: Annotated[Status, about("`unusable`: no call is made for it, and `problem` says why")]
    problem: Text | None
    gateway_url: Annotated[Url | None, about("Null: that of the settings")]
    merchant_api_url: Annotated[Url | None, about("Null: below the gateway URL")]
    username: Annotated[Username | None, about("Null: that of the settings")]
    own_password: Annotated[bool, about("False: the password of the settings")]
    callback_secrets: Annotated[Count, about("Secrets that are valid without an end")]
    retired_until: Annotated[
        list[Time], about("The ends of those that were rotated out", maxItems=MOST_SECRETS)
    ]
    policies: Annotated[Policies | None, about("Null where it is unusable")]
    webhooks: Annotated[Count, about("Endpoints that events are sent to")]
    changes: Annotated[Count, about("How often it was changed; see its changes")]
    created_at: Time
    disabled_at: Time | None


class MerchantPage(Shape, kw_only=True):
    """Merchants by name."""

    merchants: Annotated[list[Merchant], about(maxItems=MERCHANT_PAGE)]
    next_cursor: Annotated[Name | None, about("`cursor` of the next page; null on the last")]


class CallbackSecret(Shape, kw_only=True):
    """A callback secret that is valid from now on."""

    secret: Annotated[Text | None, about("Shown this once; null where it was given")]
    retired_until: Annotated[Time | None, about("The end of those before it; null: they have ended")]


class CheckedCredentials(Shape, kw_only=True):
    """What the gateway said of a merchant's credentials."""

    result: Annotated[Result, about("`unavailable`: nothing was said of the credentials")]
    reason: Annotated[Text, about("Empty where they were accepted")]
    milliseconds: Count


class ChangeOfMerchant(Shape, kw_only=True):
    """What was changed of a merchant, and who asked for it."""

    sequence: Ordinal
    at: Time
    actor: Text
    action: MerchantAction
    details: Annotated[
        dict[str, Any], about("From and to of each field, and never a secret", maxProperties=MOST_ITEMS)
    ]


class MerchantChangePage(Shape, kw_only=True):
    """Changes of a merchant, the youngest first."""

    changes: Annotated[list[ChangeOfMerchant], about(maxItems=CHANGE_PAGE)]
    next_before: Annotated[Count | None, about("`before` of the next page; null on the last")]
