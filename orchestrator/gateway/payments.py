"""Reading payments: the Merchant API's XML into transactions and movements.

`parse` and `parse_movement` never raise: entities, DTDs, half documents and nonsense are `Malformed`, and so is every answer without
a transaction that is not the documented answer to an unknown order. What a transaction means for money is said in `readings`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator import money
from orchestrator.gateway import chargebacks, xml
from orchestrator.gateway.readings import TABLE, Reading, Shape, held, read, shape
from orchestrator.gateway.xml import DAMAGED, LARGEST, Malformed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from xml.etree.ElementTree import Element

    from orchestrator.gateway.chargebacks import ChargebackEvent

__all__ = [
    "DEFAULT_ROWS", "LARGEST", "MOST_ROWS", "QUIET_RESULTS", "TABLE", "Found", "Malformed", "Movement", "Reading", "RequestError",
    "Shape", "Transaction", "held", "parse", "parse_movement", "read", "shape",
]  # fmt: skip

MOST_ROWS: Final = 100
"""The most rows that `limit` may ask for (D8)."""
DEFAULT_ROWS: Final = 10
"""The rows that the gateway returns at most when it is not told, or does not know, a `limit` (D8)."""
ROWS_READ: Final = 2 * MOST_ROWS
"""The most rows that an answer is read with: a gateway that returns more than it was asked for is not read to the end of its list."""
DEEPEST: Final = 32
"""Levels above the rows of an answer. The documented ones stand on the fourth."""
QUIET_RESULTS: Final = frozenset({"", "success", "ok"})
"""Body/Result of a lookup that worked: empty for an unknown id (C12)."""
FAILED_RESULTS: Final = frozenset({"error", "failed", "systemerror"})
"""Body/Result that says that an attempt came to nothing (part 3)."""

_AMOUNT = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,2})?")
_ERROR_CODE = re.compile(r"-?[0-9]{1,18}")
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
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
_AMOUNT_MOVED = ("CaptureAmount", "RefundedAmount", "RefundAmount")
_CURRENCY_MOVED = ("CaptureCurrency", "RefundCurrency")
_RESULTS_MOVED = ("Result", "CaptureResult", "RefundResult", "CancelResult")
_LONGEST_TEXT = 255


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction as the gateway tells it. Amounts are minor units of `currency`; texts are as given, "" when absent.

    `reserved`, `captured` and `refunded` are the raw totals: `read` and `held` say what they mean. An amount that cannot be read is 0
    here, and stands in `raw_amounts` as the gateway wrote it, under its field's name; with an unknown or contradicting currency all
    of them do, and so does the currency's own text. No such 0 may be shown. `raw_flags` name what was odd: `amount_unreadable`,
    `amount_missing`, `surcharge_unreadable`, `currency_unknown`, `currency_conflict`, `status_unknown`, `over_refund`,
    `over_capture`, `credited`, `info_repeated`, `field_repeated`, `chargeback_unclear`, `expiry_unreadable`, `ended_in_error`,
    `transaction_nested`, `answer_repaired`.

    `charged_back` is what shoppers' banks took back less what they returned, never below 0. `chargeback_events` holds every event;
    one whose type, currency or amount is not sure is not counted, and flagged. `surcharge` is the part of the amounts that the
    shopper paid on top of the order (SurchargeAmount, C10). `scheme` is the card's, in lower case.
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
    raw_amounts: Mapping[str, str] = field(default_factory=dict)
    chargeback_events: tuple[ChargebackEvent, ...] = ()


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

    `at_limit` says that there may be more than was returned: such an answer proves no absence. `result` is Body/Result. `repaired`
    says that the document was not well formed and was read all the same. Without a transaction it is the documented answer to an
    unknown order, and nothing else.
    """

    transactions: tuple[Transaction, ...]
    at_limit: bool = False
    result: str = ""
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class RequestError:
    """The gateway understood the request and refused it: Header/ErrorCode is not 0."""

    code: str


def parse(body: bytes, *, limit: int = MOST_ROWS) -> Found | RequestError | Malformed:
    """Read an APIResponse document; `limit` is what the lookup asked for."""
    answer = _answer(body)
    if not isinstance(answer, _Answer):
        return answer
    rows, result = answer.rows, _text(answer.body, "Result")
    if not rows:
        if result.lower() not in QUIET_RESULTS:
            # A lookup that went wrong inside the gateway must not pass for "there is no payment".
            return Malformed("The gateway's lookup ended neither in payments nor in success.")
        if not _is_documented_absence(answer):
            return Malformed(
                "The gateway's answer holds no transaction and is not the one to an unknown order."
            )
    failed = result.lower() in FAILED_RESULTS
    return Found(
        transactions=tuple(_transaction(row, failed=failed, repaired=answer.repaired) for row in rows),
        # Exactly the default may mean that the gateway did not know the parameter `limit`.
        at_limit=len(rows) >= limit or len(rows) == DEFAULT_ROWS,
        result=result,
        repaired=answer.repaired,
    )


def parse_movement(body: bytes, *, transaction_id: str = "") -> Movement | RequestError | Malformed:
    """Read the answer to a call that moves money of one transaction; with its id, only an answer about it is accepted."""
    answer = _answer(body)
    if not isinstance(answer, _Answer):
        return answer
    result = next((word for name in _RESULTS_MOVED if (word := _text(answer.body, name))), "")
    if not result:
        return Malformed("The gateway's XML does not say what came of the call.")
    rows = answer.rows
    if transaction_id and rows:
        rows = [row for row in rows if _text(row, "TransactionId") == transaction_id]
    elif len({_text(row, "TransactionId") for row in rows}) > 1:
        rows = []  # nothing says which one was meant
    if not rows and answer.rows:
        return Malformed("The gateway's XML is about another transaction.")
    transaction = _transaction(rows[0], failed=False, repaired=answer.repaired) if rows else None
    return Movement(result.lower(), transaction, _moved(answer.body, transaction))


def _moved(body: Element, transaction: Transaction | None) -> int | None:
    """Return what a call moved, in minor units of the currency that it names, or else of its transaction's."""
    text = next((text for name in _AMOUNT_MOVED if (text := _text(body, name))), "")
    named = next((code for name in _CURRENCY_MOVED if (code := _text(body, name))), "")
    currency = _code(named) if named else transaction.currency if transaction is not None else ""
    return _exact(text, currency) if currency else None


# ── The document ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Answer(NamedTuple):
    """An APIResponse that the gateway did not refuse: its parts, and the Transaction elements wherever they stand."""

    root: Element
    header: Element
    body: Element
    rows: list[Element]
    repaired: bool


def _answer(document: bytes) -> _Answer | RequestError | Malformed:
    parsed = xml.tree(document)
    if isinstance(parsed, Malformed):
        return parsed
    root = parsed.root
    header = root.find("Header")
    code = "" if header is None else _text(header, "ErrorCode")
    if header is None or root.tag != "APIResponse" or not _ERROR_CODE.fullmatch(code):
        return Malformed("The gateway's XML is not an APIResponse.")
    if int(code) != 0:
        return RequestError(code)
    body = root.find("Body")
    if body is None:
        return Malformed("The gateway's XML has no Body.")
    rows = _rows(root)
    if isinstance(rows, Malformed):
        return rows
    for row in rows:
        identifier, order_ref = _text(row, "TransactionId"), _text(row, "ShopOrderId")
        # A row that cannot be named cannot be booked, and leaving it out would claim that it is not there.
        if not identifier or DAMAGED in identifier:
            return Malformed("The gateway's XML holds a transaction without an id.")
        if DAMAGED in order_ref:
            return Malformed("The gateway's XML holds a transaction whose order number is damaged.")
    return _Answer(root, header, body, rows, parsed.repaired)


def _rows(root: Element) -> list[Element] | Malformed:
    """Return the Transaction elements wherever they stand, level by level; what stands inside one is a part of it."""
    rows: list[Element] = []
    level = [root]
    for _ in range(DEEPEST):
        below = []
        for parent in level:
            for element in parent:
                if element.tag == "Transaction":
                    rows.append(element)
                elif len(element):
                    below.append(element)
                elif element.tag == "TransactionId" and parent.tag != "ResultFilter":
                    return Malformed("The gateway's XML holds a transaction under a name that is not known.")
        if len(rows) > ROWS_READ:
            return Malformed(f"The gateway's XML holds more than {ROWS_READ} transactions.")
        if not below:
            return rows
        level = below
    return Malformed("The gateway's XML is nested too deeply.")


def _is_documented_absence(answer: _Answer) -> bool:
    """Say whether an answer without rows has the documented shape of "there is none", and nothing beside it (part 1.7, C12).

    A Header with one error code; a Body with Result, which may hold ResultFilter and an empty Transactions; no other element or text.
    """
    root, header, body = answer.root, answer.header, answer.body
    if len(root) != 2 or root[1] is not body or _has_text(root) or _has_text(body):  # noqa: PLR2004 - Header and Body
        return False
    if any(map(len, header)) or len(header.findall("ErrorCode")) != 1:
        return False
    names = set()
    for element in body:
        name = element.tag
        if name not in _ABSENCE or name in names or (name != "Result" and _has_text(element)):
            return False
        if len(element) and (name != "ResultFilter" or any(map(len, element))):
            return False
        names.add(name)
    return "Result" in names


_ABSENCE: Final = frozenset({"Result", "ResultFilter", "Transactions"})


def _has_text(element: Element) -> bool:
    """Say whether anything but white space stands in an element beside its children."""
    if element.text and not element.text.isspace():
        return True
    for child in element:  # noqa: SIM110 - every lookup that finds nothing comes by here, and a generator costs twice as much
        if child.tail and not child.tail.isspace():
            return True
    return False


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()[:_LONGEST_TEXT]


# ── A transaction ───────────────────────────────────────────────────────────────────────────────────────────────────────


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
        return "" if field is None or field.text is None else field.text.strip()[:_LONGEST_TEXT]

    def all(self, name: str) -> Sequence[Element]:
        if self.repeated:
            return self.element.findall(name)
        field = self.fields.get(name)
        return () if field is None else (field,)

    def single(self, name: str) -> str:
        """Return the text of an element on which money depends; several texts, or elements inside it, together with a flag."""
        field = self.fields.get(name)
        if field is None or not (self.repeated or len(field)):
            return self.text(name)
        texts = dict.fromkeys(_whole(one) for one in self.all(name))
        if len(texts) > 1:
            self.flags.append("field_repeated")
        return " / ".join(texts)[:_LONGEST_TEXT]


def _whole(element: Element) -> str:
    """Return the text of an element; that of elements inside it with their names, so that it never passes for a value."""
    inner = "".join(f" {child.tag}: {''.join(child.itertext()).strip()}" for child in element)
    return f"{(element.text or '').strip()}{inner}"[:_LONGEST_TEXT]


def _transaction(element: Element, *, failed: bool, repaired: bool) -> Transaction:
    row = _Row(element)
    flags, text = row.flags, row.text
    currency = _currency(row)
    amounts = {name: _amount(row, name, tag, currency) for name, tag in _AMOUNTS.items()}
    reserved, captured, refunded = amounts["reserved"], amounts["captured"], amounts["refunded"]
    status = row.single("TransactionStatus").lower()
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
    taken_back = chargebacks.total_of(events)
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
        shop=text("Shop"),
        terminal=text("Terminal"),
        status=status,
        auth_type=text("AuthType"),
        currency=currency,
        reserved=reserved,
        captured=captured,
        refunded=refunded,
        credited=amounts["credited"],
        created_at=text("CreatedDate"),
        payment_infos=infos,
        nature=text("PaymentNature"),
        expires_at=expires_at,
        reason_code=text("ReasonCode"),
        chargebacks=bool(events),
        reconciliations=tuple(
            _text(entry, "Id")
            for entries in row.all("ReconciliationIdentifiers")
            for entry in entries.findall("ReconciliationIdentifier")
        ),
        raw_flags=tuple(dict.fromkeys(flags)),
        charged_back=max(taken_back, 0),
        scheme=_scheme(row),
        reserved_until=reserved_until,
        surcharge=amounts["surcharge"],
        raw_amounts=row.raw,
        chargeback_events=events,
    )


def _currency(row: _Row) -> str:
    """Return the merchant's currency by letters, from either of its two elements; they must not contradict each other."""
    alpha, numeric = row.single("MerchantCurrencyAlpha").upper(), row.single("MerchantCurrency")
    currency, flag = _currency_of(alpha, numeric)
    if flag:
        row.flags.append(flag)
        row.raw["currency"] = " / ".join(part for part in (alpha, numeric) if part)
    return currency


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
    """Return minor units. What is not an exact amount is 0 with a flag, on which `read` refuses to conclude anything."""
    text = row.single(tag)
    if not text:
        if name not in _OPTIONAL_AMOUNTS:
            row.flags.append("amount_missing")
        return 0
    amount = _exact(text, currency) if currency else None
    if amount is None:
        row.raw[name] = text
        if currency:
            row.flags.append("surcharge_unreadable" if name == "surcharge" else "amount_unreadable")
        return 0
    return amount


@lru_cache(maxsize=4096)
def _exact(text: str, currency: str) -> int | None:
    """Return an amount that is not negative in minor units, or None for what is no exact amount of this currency."""
    try:
        amount = money.to_minor(text, currency) if _AMOUNT.fullmatch(text) else None
    except money.MoneyError:
        return None  # more decimals than the currency has, or more digits than an amount has
    return None if amount is None or amount < 0 else amount


@lru_cache(maxsize=256)
def _code(text: str) -> str:
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
    if not elements:
        return ()
    events = chargebacks.events_of(
        elements,
        lambda text: _exact(text, currency) if currency else None,
        lambda text: _code(text) == currency or money.is_same_currency(currency, text),
    )
    if any(event.counted is None for event in events):
        row.flags.append("chargeback_unclear")
    return events


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
    return ((_text(card, "Scheme") if card is not None else "") or row.text("PaymentSchemeName")).lower()


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
    """Read what `transactionInfo` became (C1). A name that comes twice binds nothing: it is left out and flagged."""
    infos: dict[str, str] = {}
    repeated: set[str] = set()
    for entries in row.all("PaymentInfos"):
        for entry in entries.findall("PaymentInfo"):
            name, value = entry.get("name", "")[:_LONGEST_TEXT], (entry.text or "").strip()[:_LONGEST_TEXT]
            # Two values, or a damaged one, name nothing; an undamaged value is not another checkout's for being repaired.
            if infos.setdefault(name, value) != value or DAMAGED in value:
                repeated.add(name)
    if repeated:
        row.flags.append("info_repeated")
    return {name: value for name, value in infos.items() if name not in repeated}
