"""One Transaction element of the gateway's XML, read: amounts exact or kept as written, and what is odd named
by flags.

Chargeback events are what shoppers' banks took back and returned. Seen (C12, a notification of 2016): Type
`Chargeback`, Currency by letters, Amount with a dot. The schema (C10) leaves Type, Amount and Currency free,
and the vendor's example says that an event may also be a dispute. So an event counts only where its type is
surely a chargeback or its reversal, and its amount is exact and in the payment's currency. Every other event
stays in the list with the gateway's text, uncounted, for a person.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from orchestrator.domain import money
from orchestrator.domain.payment_meaning import TABLE
from orchestrator.domain.transaction import ChargebackEvent, Transaction
from orchestrator.gateway.xml import DAMAGED, LONGEST_TEXT, text_of
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

_AMOUNT = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
# The letters of a type without separators. A number beside the word is its order in a series.
_WHICH = r"(?:first|second|third|1st|2nd|3rd|[123]|final|partial|full|new|initial|arbitration|round|cycle|stage|event|notification|received)*"
_CHARGEBACK = re.compile(rf"{_WHICH}chargebacks?{_WHICH}")
_REVERSAL = re.compile(
    rf"{_WHICH}(?:(?:chargebacks?)?(?:revers(?:al|ed)|representment|represented)|revers(?:al|ed)(?:of)?chargebacks?){_WHICH}"
)
_TAKEN_BACK = re.compile("chargeback|dispute|arbitration|retrieval", re.IGNORECASE)
_AMOUNTS: Final = {
    "reserved": "ReservedAmount",
    "captured": "CapturedAmount",
    "refunded": "RefundedAmount",
    "credited": "CreditedAmount",
    "surcharge": "SurchargeAmount",
}
_OPTIONAL_AMOUNTS: Final = frozenset({"credited", "surcharge"})


class _Row:
    """The elements of a Transaction by name, the first of each, and what was odd about them."""

    __slots__ = ("element", "fields", "flags", "raw", "repeated")

    def __init__(self, element: Element) -> None:
        self.element = element
        self.fields: dict[str, Element] = {field.tag: field for field in element[::-1]}
        self.repeated = len(self.fields) != len(element)
        self.flags: list[str] = []
        self.raw: dict[str, str] = {}

    def text(self, name: str) -> str:
        field = self.fields.get(name)
        return "" if field is None or field.text is None else field.text.strip()[:LONGEST_TEXT]

    def all(self, name: str) -> Sequence[Element]:
        if self.repeated:
            return self.element.findall(name)
        field = self.fields.get(name)
        return () if field is None else (field,)

    def single(self, name: str) -> str:
        """Return a text on which money depends; several texts or inner elements are joined and flagged."""
        field = self.fields.get(name)
        if field is None or not (self.repeated or len(field)):
            return self.text(name)
        texts = dict.fromkeys(_whole(node) for node in self.all(name))
        if len(texts) > 1:
            self.flags.append("field_repeated")
        return " / ".join(texts)[:LONGEST_TEXT]


def _whole(element: Element) -> str:
    """Return an element's text, with that of inner elements and their names, so that it is no value."""
    inner = "".join(f" {child.tag}: {''.join(child.itertext()).strip()}" for child in element)
    return f"{(element.text or '').strip()}{inner}"[:LONGEST_TEXT]


def transaction_of(element: Element, *, failed: bool, repaired: bool) -> Transaction:
    row = _Row(element)
    flags, text = row.flags, row.text
    currency = _currency(row)
    amounts = {name: _amount(row, name, tag, currency) for name, tag in _AMOUNTS.items()}
    reserved, captured, refunded = amounts["reserved"], amounts["captured"], amounts["refunded"]
    status = neutralised(row.single("TransactionStatus").lower())
    if status not in TABLE:
        flags.append("status_unknown")
    if refunded > captured:  # possible: allow_over_refund (C11)
        flags.append("over_refund")
    if captured > reserved:
        flags.append("over_capture")
    if amounts["credited"]:
        flags.append("credited")
    if failed and not row.raw and "amount_missing" not in flags and not (reserved or captured or refunded):
        flags.append("ended_in_error")
    events = _chargeback_events(row, currency)
    taken_back = sum(event.counted or 0 for event in events)
    # More came back than was taken, or more was taken than there was: an event is missing, or counted twice.
    if taken_back < 0 or (events and taken_back > max(captured, reserved) and not row.raw):
        flags.append("chargeback_unclear")
    expires_at = text("AuthorisationExpiryDate")
    reserved_until = _moment(expires_at)
    if expires_at and reserved_until is None:
        flags.append("expiry_unreadable")
    infos = _payment_infos(row)
    within = element.iter("Transaction")
    next(within)  # itself
    if next(within, None) is not None:
        flags.append("transaction_nested")
    if repaired:
        flags.append("answer_repaired")
    return Transaction(
        transaction_id=text("TransactionId"),
        payment_id=text("PaymentId"),
        order_ref=text("ShopOrderId"),
        status=status,
        currency=currency,
        **amounts,
        created_at=text("CreatedDate"),
        payment_infos=infos,
        reconciliations=tuple(
            text_of(entry, "Id")
            for entries in row.all("ReconciliationIdentifiers")
            for entry in entries.findall("ReconciliationIdentifier")
        ),
        raw_flags=tuple(dict.fromkeys(flags)),
        charged_back=max(taken_back, 0),
        scheme=_scheme(row),
        reserved_until=reserved_until,
        raw_amounts=row.raw,
        chargeback_events=events,
    )


def _currency(row: _Row) -> str:
    """Return the merchant's currency by letters; its two elements must not contradict each other."""
    alpha, numeric = row.single("MerchantCurrencyAlpha").upper(), row.single("MerchantCurrency")
    currency, flag = _currency_of(alpha, numeric)
    if flag:
        row.flags.append(flag)
        row.raw["currency"] = _printable(" / ".join(part for part in (alpha, numeric) if part))
    return currency


def _printable(text: str) -> str:
    """Return a text for people: what is not printable (controls, marks of direction) is replaced."""
    return text if text.isprintable() else "".join(each if each.isprintable() else DAMAGED for each in text)


@lru_cache(maxsize=256)
def _currency_of(alpha: str, numeric: str) -> tuple[str, str]:
    """Return a currency and no flag, or none and the flag that says why."""
    try:
        if numeric and not (alpha and money.is_same_currency(alpha, numeric)):
            by_number = money.alpha_code(numeric)
        else:
            by_number = alpha
        money.exponent(alpha or by_number)
    except money.MoneyError:
        return "", "currency_unknown"
    return ("", "currency_conflict") if alpha and alpha != by_number else (by_number, "")


def _amount(row: _Row, name: str, tag: str, currency: str) -> int:
    """Return minor units.

    What is not an exact amount is 0 with a flag, on which `read` refuses to conclude anything.
    """
    text = row.single(tag)
    if not text:
        if name not in _OPTIONAL_AMOUNTS:
            row.flags.append("amount_missing")
        return 0
    amount = exact(text, currency) if currency else None
    if amount is None:
        row.raw[name] = _printable(text)
        if currency:
            row.flags.append("surcharge_unreadable" if name == "surcharge" else "amount_unreadable")
        return 0
    return amount


@lru_cache(maxsize=4096)
def exact(text: str, currency: str) -> int | None:
    """Return an amount in minor units; None for a negative one and for no exact amount of the currency."""
    try:
        amount = money.to_minor(text, currency) if _AMOUNT.fullmatch(text) else None
    except money.MoneyError:
        return None  # more decimals than the currency has, or more digits than an amount has
    return None if amount is None or amount < 0 else amount


@lru_cache(maxsize=256)
def code_of(text: str) -> str:
    """Return the letters of a currency that is named by letters or by number, "" for what names none."""
    try:
        code = money.alpha_code(text) if text.isdigit() else text.upper()
        money.exponent(code)
    except money.MoneyError:
        return ""
    return code


def _chargeback_events(row: _Row, currency: str) -> tuple[ChargebackEvent, ...]:
    """Return every event; what does not count, and what may be an event under another name, is flagged."""
    wrappers = row.all("ChargebackEvents")
    elements = [event for wrapper in wrappers for event in wrapper]
    elements += row.all("ChargebackEvent")
    if not _FIELDS.issuperset(row.fields):
        elements += [
            field
            for name, field in row.fields.items()
            if name not in _FIELDS and _TAKEN_BACK.search(name) and "".join(field.itertext()).strip()
        ]
    if any((wrapper.text or "").strip() for wrapper in wrappers):
        row.flags.append("chargeback_unclear")
    events = tuple(_chargeback_event(element, currency) for element in elements)
    if any(event.counted is None for event in events):
        row.flags.append("chargeback_unclear")
    return events


def _chargeback_event(element: Element, currency: str) -> ChargebackEvent:
    kind, amount, named, date = (
        neutralised(text_of(element, name)) for name in ("Type", "Amount", "Currency", "Date")
    )
    word = re.sub("[^a-z0-9]", "", kind.lower())
    back = _REVERSAL.fullmatch(word) is not None
    sure = element.tag == "ChargebackEvent" and (back or _CHARGEBACK.fullmatch(word) is not None)
    ours = not named or code_of(named) == currency or money.is_same_currency(currency, named)
    value = exact(amount.removeprefix("-"), currency) if sure and ours and amount and currency else None
    if value is not None and (back or amount.startswith("-")):
        value = -value
    return ChargebackEvent(kind, amount, named, date, value)


_FIELDS: Final = frozenset(
    "TransactionId PaymentId AuthType CardStatus CreditCardExpiry CreditCardToken CreditCardMaskedPan IsTokenized CardInformation "
    "ThreeDSecureResult LiableForChargeback CVVCheckResult BlacklistToken ShopOrderId Shop Terminal TransactionStatus ReasonCode "
    "MerchantCurrency MerchantCurrencyAlpha CardHolderCurrency CardHolderCurrencyAlpha ReservedAmount CapturedAmount "
    "RefundedAmount CreditedAmount RecurringDefaultAmount SurchargeAmount CreatedDate UpdatedDate PaymentNature PaymentSource "
    "AuthorisationExpiryDate AuthorisationCode PaymentSchemeName PaymentNatureService FraudRiskScore FraudExplanation "
    "FraudRecommendation AddressVerification AddressVerificationDescription ChargebackEvents ChargebackEvent PaymentInfos "
    "CustomerInfo ReconciliationIdentifiers Authentication".split()
)
"""The elements of a Transaction by the schema (C10)."""


def _scheme(row: _Row) -> str:
    card = row.fields.get("CardInformation")
    return ((text_of(card, "Scheme") if card is not None else "") or row.text("PaymentSchemeName")).lower()


def _moment(text: str) -> datetime | None:
    """Read a date or a date with a time; without an offset as UTC, which is what the result always is."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # 2026-02-30, or a zone that leads out of the calendar
        return None


def _payment_infos(row: _Row) -> dict[str, str]:
    """Read what `transactionInfo` became (C1); a name that comes twice binds nothing and is flagged."""
    infos: dict[str, str] = {}
    repeated: set[str] = set()
    for entries in row.all("PaymentInfos"):
        for entry in entries.findall("PaymentInfo"):
            name, value = entry.get("name", "")[:LONGEST_TEXT], (entry.text or "").strip()[:LONGEST_TEXT]
            # Two values, or a damaged one, name nothing; a repaired document does not change an undamaged
            # value.
            if infos.setdefault(name, value) != value or DAMAGED in value:
                repeated.add(name)
    if repeated:
        row.flags.append("info_repeated")
    return {name: value for name, value in infos.items() if name not in repeated}
