"""Chargeback events of a transaction: what shoppers' banks took back and returned, and events that no rule
can count.

Seen (C12, a notification of 2016): Type `Chargeback`, Currency by letters, Amount with a dot. The schema
(C10) leaves Type, Amount and Currency free, and the vendor's example says that an event may also be a
dispute. So an event counts only where its type is surely a chargeback or its reversal, and its amount is
exact and in the payment's currency. Every other event stays in the list with the gateway's text, uncounted,
for a person.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from orchestrator.domain.transaction import ChargebackEvent
from orchestrator.gateway.xml import text_of
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from xml.etree.ElementTree import Element

# The letters of a type without separators. A number beside the word is its order in a series.
_WHICH = r"(?:first|second|third|1st|2nd|3rd|[123]|final|partial|full|new|initial|arbitration|round|cycle|stage|event|notification|received)*"
_CHARGEBACK = re.compile(rf"{_WHICH}chargebacks?{_WHICH}")
_REVERSAL = re.compile(
    rf"{_WHICH}(?:(?:chargebacks?)?(?:revers(?:al|ed)|representment|represented)|revers(?:al|ed)(?:of)?chargebacks?){_WHICH}"
)


def events_of(
    elements: Iterable[Element], exact: Callable[[str], int | None], is_currency: Callable[[str], bool]
) -> tuple[ChargebackEvent, ...]:
    """Read events.

    `exact` reads an amount of the payment's currency; `is_currency` says whether a text names that currency.
    """
    return tuple(_event(element, exact, is_currency) for element in elements)


def total_of(events: Iterable[ChargebackEvent]) -> int:
    """Return what was taken back less what was returned, in minor units, of the events that count; it may be
    below 0.
    """
    return sum(event.counted or 0 for event in events)


def _event(
    element: Element, exact: Callable[[str], int | None], is_currency: Callable[[str], bool]
) -> ChargebackEvent:
    kind, amount, currency, date = (
        neutralised(text_of(element, name)) for name in ("Type", "Amount", "Currency", "Date")
    )
    word = re.sub("[^a-z0-9]", "", kind.lower())
    value = exact(amount.removeprefix("-")) if amount else None
    back = _REVERSAL.fullmatch(word) is not None
    sure = element.tag == "ChargebackEvent" and (back or _CHARGEBACK.fullmatch(word) is not None)
    if not sure or value is None or (currency and not is_currency(currency)):
        return ChargebackEvent(kind, amount, currency, date, None)
    return ChargebackEvent(kind, amount, currency, date, -value if back or amount.startswith("-") else value)
