"""Reading payments: the Merchant API's XML into transactions and movements, and a transaction into what it means for money.

`parse` and `parse_movement` never raise: entities, DTDs, half documents and nonsense are `Malformed`. `read` is one literal table over
TransactionStatus and amounts, because neither tells the truth alone: fixtures (C12) show `released` with ReservedAmount 1.00,
and `refunded` with Reserved 1.00, Captured 1.00, Refunded 0.12. Whatever the table does not know is `UNKNOWN`, for a person;
it is never guessed to be money, nor its absence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from orchestrator import money

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_ROWS: Final = 100
"""The most rows that `limit` may ask for (D8)."""
DEFAULT_ROWS: Final = 10
"""The rows that the gateway returns at most when it is not told, or does not know, a `limit` (D8)."""
LARGEST: Final = 2_000_000
"""Bytes. A hundred transactions take about 400,000."""
QUIET_RESULTS: Final = frozenset({"", "success", "ok"})
"""Body/Result of a lookup that worked: empty for an unknown id (C12)."""

_AMOUNT = re.compile(r"[0-9]{1,15}(\.[0-9]{1,6})?")
_ERROR_CODE = re.compile(r"-?[0-9]{1,18}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_CHARGEBACK = re.compile(r"(first|second|partial|arbitration)?chargebacks?(event)?")
_REVERSAL = re.compile(r"revers|representment")
_AMOUNT_MOVED = ("CaptureAmount", "RefundedAmount", "RefundAmount")
_CURRENCY_MOVED = ("CaptureCurrency", "RefundCurrency")
_RESULTS_MOVED = ("Result", "CaptureResult", "RefundResult", "CancelResult")
_LONGEST_TEXT = 255


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction as the gateway tells it. Amounts are minor units of `currency`; texts are as given, "" when absent.

    `reserved`, `captured` and `refunded` are the raw totals: `read` and `held` say what they mean. `raw_flags` name what was
    odd: `amount_unreadable`, `amount_missing`, `currency_unknown`, `currency_conflict`, `status_unknown`, `over_refund`,
    `over_capture`, `credited`, `info_repeated`, `chargeback_unclear`, `expiry_unreadable`.

    `charged_back` is what shoppers' banks took back less what they returned, never below 0; an event of an unknown type, in
    another currency or without an exact amount is not in it, and says so by a flag. `scheme` is the card's, in lower case.
    `reserved_until` is until when the acquirer holds the reservation. The gateway prints it without an offset (C10) and in a
    zone that is not documented; it is read as UTC, so it may be half a day off.
    """

    transaction_id: str
    payment_id: str
    order_ref: str
    shop: str
    terminal: str
    status: str
    auth_type: str
    currency: str
    reserved: int
    captured: int
    refunded: int
    credited: int
    created_at: str
    payment_infos: Mapping[str, str] = field(default_factory=dict)
    nature: str = ""
    expires_at: str = ""
    reason_code: str = ""
    chargebacks: bool = False
    reconciliations: tuple[str, ...] = ()
    raw_flags: tuple[str, ...] = ()
    charged_back: int = 0
    scheme: str = ""
    reserved_until: datetime | None = None
    surcharge: int = 0


@dataclass(frozen=True, slots=True)
class Movement:
    """What the gateway answered to a capture, a refund or a release that it understood.

    `result` is Body/Result in lower case ("success", "error", "failed", ...): "error" is also the answer to a capture of what
    was captured already, so `transaction` decides (None where the answer holds none). `amount` is what this call moved, in
    minor units; None where it is not told, as for a release.
    """

    result: str
    transaction: Transaction | None
    amount: int | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What an answer of the Merchant API (or the `xml` of a callback) holds.

    `at_limit` says that there may be more than was returned: such an answer proves no absence. `result` is Body/Result.
    """

    transactions: tuple[Transaction, ...]
    at_limit: bool = False
    result: str = ""


@dataclass(frozen=True, slots=True)
class RequestError:
    """The gateway understood the request and refused it: Header/ErrorCode is not 0."""

    code: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a document that can be read; `reason` says how, without quoting it."""

    reason: str


def parse(body: bytes, *, limit: int = MOST_ROWS) -> Found | RequestError | Malformed:
    """Read an APIResponse document; `limit` is what the lookup asked for."""
    answer = _body(body)
    if not isinstance(answer, Element):
        return answer
    rows = answer.findall("Transactions/Transaction")
    # One that cannot be named cannot be booked, and leaving it out would claim that it is not there.
    if any(not _text(row, "TransactionId") for row in rows):
        return Malformed("The gateway's XML holds a transaction without an id.")
    return Found(
        transactions=tuple(_transaction(row) for row in rows),
        # Exactly the default may mean that the gateway did not know the parameter `limit`.
        at_limit=len(rows) >= limit or len(rows) == DEFAULT_ROWS,
        result=_text(answer, "Result"),
    )


def parse_movement(body: bytes, *, transaction_id: str = "") -> Movement | RequestError | Malformed:
    """Read the answer to a call that moves money of one transaction; with its id, only an answer about it is accepted."""
    answer = _body(body)
    if not isinstance(answer, Element):
        return answer
    result = next((word for name in _RESULTS_MOVED if (word := _text(answer, name))), "")
    if not result:
        return Malformed("The gateway's XML does not say what came of the call.")
    rows = answer.findall("Transactions/Transaction")
    if transaction_id and rows:
        rows = [row for row in rows if _text(row, "TransactionId") == transaction_id]
    elif len({_text(row, "TransactionId") for row in rows}) > 1:
        rows = []  # nobody said which one was meant
    if not rows and answer.find("Transactions/Transaction") is not None:
        return Malformed("The gateway's XML is about another transaction.")
    transaction = _transaction(rows[0]) if rows else None
    return Movement(result.lower(), transaction, _moved(answer, transaction))


def _moved(answer: Element, transaction: Transaction | None) -> int | None:
    """Return what a call moved, in minor units of the currency that it names, or else of its transaction's."""
    text = next((text for name in _AMOUNT_MOVED if (text := _text(answer, name))), "")
    named = next((code for name in _CURRENCY_MOVED if (code := _text(answer, name))), "")
    currency = _code(named) if named else transaction.currency if transaction is not None else ""
    return _exact(text, currency) if currency else None


def _body(document: bytes) -> Element | RequestError | Malformed:
    """Return the Body of an APIResponse that the gateway did not refuse."""
    if len(document) > LARGEST:
        return Malformed("The gateway's XML goes beyond the size limit.")
    try:
        root = _parsed(document)
    except _DeclaresTypeError:
        return Malformed("The gateway's XML declares a DTD or an entity.")
    except (expat.ExpatError, ValueError, LookupError):  # LookupError: an encoding that does not exist
        return Malformed("The gateway's answer is not XML.")
    code = _text(root, "Header/ErrorCode")
    if root.tag != "APIResponse" or not _ERROR_CODE.fullmatch(code):
        return Malformed("The gateway's XML is not an APIResponse.")
    if int(code) != 0:
        return RequestError(code)
    body = root.find("Body")
    return Malformed("The gateway's XML has no Body.") if body is None else body


class _DeclaresTypeError(Exception):
    pass


def _refuse(*_: object) -> None:
    raise _DeclaresTypeError


def _parsed(document: bytes) -> Element:
    """Return the root of a document without a document type: entities can be declared nowhere else, so there is nothing to expand.

    The parser calls the tree's builder without a line of Python between them.
    """
    parser, builder = expat.ParserCreate(namespace_separator="}"), TreeBuilder()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.Parse(document, True)  # noqa: FBT003 - that this is all of it
    return builder.close()


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()[:_LONGEST_TEXT]


def _transaction(row: Element) -> Transaction:
    flags: list[str] = []
    currency = _currency(row, flags)
    reserved, captured, refunded = (
        _amount(row, name, currency, flags) for name in ("ReservedAmount", "CapturedAmount", "RefundedAmount")
    )
    credited = _amount(row, "CreditedAmount", currency, flags) if _text(row, "CreditedAmount") else 0
    status = _text(row, "TransactionStatus").lower()
    if status not in TABLE:
        flags.append("status_unknown")
    if refunded > captured:  # possible: allow_over_refund (C11)
        flags.append("over_refund")
    if captured > reserved:
        flags.append("over_capture")
    if credited:
        flags.append("credited")
    events = row.find("ChargebackEvents")
    charged_back = _charged_back(row, currency, flags)
    expires_at = _text(row, "AuthorisationExpiryDate")
    reserved_until = _moment(expires_at)
    if expires_at and reserved_until is None:
        flags.append("expiry_unreadable")
    return Transaction(
        transaction_id=_text(row, "TransactionId"),
        payment_id=_text(row, "PaymentId"),
        order_ref=_text(row, "ShopOrderId"),
        shop=_text(row, "Shop"),
        terminal=_text(row, "Terminal"),
        status=status,
        auth_type=_text(row, "AuthType"),
        currency=currency,
        reserved=reserved,
        captured=captured,
        refunded=refunded,
        credited=credited,
        created_at=_text(row, "CreatedDate"),
        payment_infos=_payment_infos(row, flags),
        nature=_text(row, "PaymentNature"),
        expires_at=expires_at,
        reason_code=_text(row, "ReasonCode"),
        chargebacks=events is not None and len(events) > 0,
        reconciliations=tuple(
            _text(entry, "Id") for entry in row.findall("ReconciliationIdentifiers/ReconciliationIdentifier")
        ),
        raw_flags=tuple(dict.fromkeys(flags)),
        charged_back=charged_back,
        scheme=(_text(row, "CardInformation/Scheme") or _text(row, "PaymentSchemeName")).lower(),
        reserved_until=reserved_until,
        surcharge=_amount(row, "SurchargeAmount", currency, flags) if _text(row, "SurchargeAmount") else 0,
    )


def _currency(row: Element, flags: list[str]) -> str:
    """Return the merchant's currency by letters, from either of its two elements; they must not contradict each other."""
    alpha, numeric = _text(row, "MerchantCurrencyAlpha").upper(), _text(row, "MerchantCurrency")
    try:
        by_number = money.alpha_code(numeric) if numeric else alpha
        money.exponent(alpha or by_number)
    except money.MoneyError:
        flags.append("currency_unknown")
        return ""
    if alpha and alpha != by_number:
        flags.append("currency_conflict")
        return ""
    return by_number


def _amount(row: Element, name: str, currency: str, flags: list[str]) -> int:
    """Return minor units. What is not an exact amount is 0 with a flag, on which `read` refuses to conclude anything."""
    text = _text(row, name)
    if not text:
        flags.append("amount_missing")
        return 0
    if not currency:
        return 0
    amount = _exact(text, currency)
    if amount is None:
        flags.append("amount_unreadable")
        return 0
    return amount


def _exact(text: str, currency: str) -> int | None:
    """Return an amount that is not negative in minor units, or None for what is no exact amount of this currency."""
    try:
        return money.to_minor(text, currency) if _AMOUNT.fullmatch(text) else None
    except money.MoneyError:
        return None  # more decimals than the currency has, or more digits than anybody pays


def _code(text: str) -> str:
    """Return the letters of a currency that is named by letters or by number, "" for what names none."""
    try:
        code = money.alpha_code(text) if text.isdigit() else text.upper()
        money.exponent(code)
    except money.MoneyError:
        return ""
    return code


def _charged_back(row: Element, currency: str, flags: list[str]) -> int:
    """Add chargebacks up and take their reversals off; what cannot be told apart or counted is left out and flagged.

    Seen (C12, a notification of 2016): Type `Chargeback`, Currency by letters, Amount with a dot. The schema (C10) leaves Type,
    Amount and Currency free, and the vendor's example says that an event may also be a dispute.
    """
    total = 0
    for event in row.findall("ChargebackEvents/ChargebackEvent"):
        kind = re.sub("[^a-z]", "", _text(event, "Type").lower())
        named, text = _text(event, "Currency"), _text(event, "Amount")
        amount = _exact(text.removeprefix("-"), currency) if currency else None
        back = _REVERSAL.search(kind) is not None or text.startswith("-")
        counts = back or _CHARGEBACK.fullmatch(kind) is not None
        if amount is None or not counts or (named and _code(named) != currency):
            flags.append("chargeback_unclear")
        else:
            total += -amount if back else amount
    if total < 0:
        flags.append("chargeback_unclear")
    return max(total, 0)


def _moment(text: str) -> datetime | None:
    """Read a date or a date with a time; without an offset as UTC, which is what the result always is."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # 2026-02-30, or a zone that leads out of the calendar
        return None


def _payment_infos(row: Element, flags: list[str]) -> dict[str, str]:
    """Read what `transactionInfo` became (C1). A name that comes twice binds nothing: it is left out and flagged."""
    infos: dict[str, str] = {}
    repeated: set[str] = set()
    for entry in row.findall("PaymentInfos/PaymentInfo"):
        name, value = entry.get("name", "")[:_LONGEST_TEXT], (entry.text or "").strip()[:_LONGEST_TEXT]
        if infos.setdefault(name, value) != value:
            repeated.add(name)
    if repeated:
        flags.append("info_repeated")
    return {name: value for name, value in infos.items() if name not in repeated}


# ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Reading(StrEnum):
    """What a transaction means for money."""

    RESERVED = "reserved"
    """Held for the merchant, nothing captured: paid, as far as a checkout goes."""
    CAPTURED = "captured"
    """At least a part was captured and nothing went back."""
    REFUNDED = "refunded"
    """It was captured, and at least a part went back: what the merchant has is captured - refunded."""
    NOTHING = "nothing"
    """Over, and no money is or will be held."""
    OPEN = "open"
    """Under way: nothing yet, and it may still become money. As long as one exists, its checkout must not expire."""
    AGREEMENT = "agreement"
    """An agreement that repeats the amount of a preauth beside it: never money itself."""
    UNKNOWN = "unknown"
    """Status and amounts do not fit together, or are not known: a person must look."""


class Shape(StrEnum):
    """The amounts of a transaction, by which of them are more than zero."""

    EMPTY = "empty"
    """None."""
    HELD = "held"
    """Reserved alone."""
    TAKEN = "taken"
    """Captured, not refunded; reserved or not."""
    RETURNED = "returned"
    """Captured and refunded; reserved or not."""
    ODD = "odd"
    """Refunded, never captured: no status explains this."""


_O, _A, _R, _C, _F, _N, _U = (
    Reading.OPEN,
    Reading.AGREEMENT,
    Reading.RESERVED,
    Reading.CAPTURED,
    Reading.REFUNDED,
    Reading.NOTHING,
    Reading.UNKNOWN,
)

# Every TransactionStatus that was seen (facts, part 3) and what it means for each shape of the amounts. ODD is always UNKNOWN.
_ROWS: Final[dict[str, tuple[Reading, Reading, Reading, Reading]]] = {
    #                          EMPTY HELD TAKEN RETURNED
    # Under way. `created` is OPEN too: the shopper may be at the bank this minute, and the gateway never times one out (D9).
    # A pending payment may already name its amount; money in one that was only just created contradicts itself.
    "created":                 (_O, _U, _U, _U),
    "pending":                 (_O, _O, _U, _U),
    # Authorised. An authorisation of nothing is no payment. Captured in part, the status may still be this one.
    "preauth":                 (_U, _R, _C, _F),
    "invoice_initialized":     (_U, _R, _C, _F),
    # An agreement: it repeats the amount of the preauth or the payment beside it (C12), which alone is money: counting both
    # would count twice.
    "recurring_confirmed":     (_A, _A, _A, _A),
    # Captured. A card that is captured without an amount is a contradiction; a bank transfer knows no reservation, so which of
    # the two amounts it fills is up to the bank's side, and either one says that the money came.
    "captured":                (_U, _U, _C, _F),
    "bank_payment_finalized":  (_U, _R, _C, _F),
    # Given back before a capture. ReservedAmount keeps what was once reserved (C12). Some banks return it as a refund (D8).
    "released":                (_N, _N, _U, _F),
    # Given back after a capture, in part or in full (C12): the amounts say which.
    "refunded":                (_U, _U, _U, _F),
    "bank_payment_refunded":   (_U, _U, _U, _F),
    # Declined, cancelled by the shopper, broken off. Plugins have seen fail callbacks over money that was held, so an amount
    # is never talked away by the word.
    "preauth_failed":          (_N, _U, _U, _U),
    "preauth_error":           (_N, _U, _U, _U),
    "3dsecure_failed":         (_N, _U, _U, _U),
    "recurring_failed":        (_N, _U, _U, _U),
    "epayment_cancelled":      (_N, _U, _U, _U),
    "epayment_declined":       (_N, _U, _U, _U),
    # A later step failed. What had been captured before stays captured; whether the reservation outlived the failure is not
    # told (a re-authorisation is tried when it had expired, D9), so neither shipping nor giving up would be right.
    "captured_failed":         (_N, _U, _C, _F),
    "reauth_failed":           (_N, _U, _C, _F),
}  # fmt: skip

TABLE: Final[dict[str, dict[Shape, Reading]]] = {
    status: {**dict(zip(Shape, row, strict=False)), Shape.ODD: Reading.UNKNOWN}
    for status, row in _ROWS.items()
}

_UNSURE = frozenset({"amount_unreadable", "currency_unknown", "currency_conflict"})
_COUNTED = frozenset({Reading.RESERVED, Reading.CAPTURED, Reading.REFUNDED})


def shape(transaction: Transaction) -> Shape:
    """Sort the amounts into one of five shapes."""
    if transaction.captured > 0:
        return Shape.RETURNED if transaction.refunded > 0 else Shape.TAKEN
    if transaction.refunded > 0:
        return Shape.ODD
    return Shape.HELD if transaction.reserved > 0 else Shape.EMPTY


def read(transaction: Transaction) -> Reading:
    """Return what a transaction means for money: the table, unless its amounts could not be read."""
    row = TABLE.get(transaction.status)
    if row is None or not _UNSURE.isdisjoint(transaction.raw_flags):
        return Reading.UNKNOWN
    return row[shape(transaction)]


def held(transaction: Transaction) -> tuple[int, int, int]:
    """Return (reserved, captured, refunded) in minor units as they count for the merchant's books.

    A reservation counts only where the reading says that there is (or was, before its capture) one: a released one keeps its
    ReservedAmount. Where the reading is not clear, the amounts are told as the gateway tells them. Captured and refunded count as
    the gateway tells them, but of an agreement nothing counts: its amounts are those of the transaction beside it.
    """
    reading = read(transaction)
    if reading is Reading.AGREEMENT:
        return 0, 0, 0
    reserved = transaction.reserved if reading in _COUNTED or reading is Reading.UNKNOWN else 0
    return reserved, transaction.captured, transaction.refunded
