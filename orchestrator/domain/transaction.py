"""What the gateway's books say of an order: transactions, their chargeback events, and the answer that they
came in.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - what another process reads is decoded by these types
from dataclasses import dataclass, field
from datetime import datetime  # noqa: TC003 - as above


@dataclass(frozen=True, slots=True)
class ChargebackEvent:
    """A chargeback event as the gateway reports it: texts as given, "" when absent.

    `counted` is what it took back, in minor units of the payment's currency, negative for what came back to
    the merchant; None where type, amount or currency leave that open.
    """

    kind: str
    amount: str
    currency: str
    date: str
    counted: int | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction as the gateway reports it.

    Amounts are minor units of `currency`; texts are as given, "" when absent.

    `reserved`, `captured` and `refunded` are the raw totals: `read` and `held` give their meaning. An amount
    that cannot be read is 0 here, and `raw_amounts` has the gateway's text under its field's name; with an
    unknown or contradicting currency all amounts are there, and so is the currency's own text. No such 0 may
    be shown. `raw_flags` name what was odd: `amount_unreadable`, `amount_missing`, `surcharge_unreadable`,
    `currency_unknown`, `currency_conflict`, `status_unknown`, `over_refund`, `over_capture`, `credited`,
    `info_repeated`, `field_repeated`, `chargeback_unclear`, `expiry_unreadable`, `ended_in_error`,
    `transaction_nested`, `answer_repaired`.

    `charged_back` is what shoppers' banks took back less what they returned, never below 0.
    `chargeback_events` holds every event; an event whose type, currency or amount is not sure is not counted,
    and flagged. `surcharge` is the part of the amounts that the shopper paid on top of the order
    (SurchargeAmount, C10). `scheme` is the card's, in lower case. `reserved_until` is the end of the
    acquirer's reservation. The gateway prints it without an offset (C10) and in a zone that is not
    documented; it is read as UTC, so it may be half a day off.
    """

    transaction_id: str
    payment_id: str
    order_ref: str
    status: str
    currency: str
    reserved: int
    captured: int
    refunded: int
    credited: int
    created_at: str
    payment_infos: Mapping[str, str] = field(default_factory=dict)
    reconciliations: tuple[str, ...] = ()
    raw_flags: tuple[str, ...] = ()
    charged_back: int = 0
    scheme: str = ""
    reserved_until: datetime | None = None
    surcharge: int = 0
    raw_amounts: Mapping[str, str] = field(default_factory=dict)
    chargeback_events: tuple[ChargebackEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer of the Merchant API (or the `xml` of a callback) holds.

    `at_limit` says that there may be more than was returned: such an answer proves no absence. Without a
    transaction it is the documented answer to an unknown order, and nothing else.
    """

    transactions: tuple[Transaction, ...]
    at_limit: bool = False
