"""Reading payments: the Merchant API's XML into transactions and movements.

`parse` and `parse_movement` raise `RequestError` and `Malformed` alone: entities, DTDs, half documents and
nonsense are `Malformed`, and so is every answer without a transaction that is not the documented answer to an
unknown order. What a transaction means for money is said in `domain.payment_meaning`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestrator.domain.transaction import Found, Transaction
from orchestrator.gateway import xml
from orchestrator.gateway.transactions import code_of, exact, transaction_of
from orchestrator.gateway.xml import DAMAGED, Malformed, text_of
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

MOST_ROWS: Final = 100
"""The most rows that `limit` may ask for (D8)."""
DEFAULT_ROWS: Final = 10
"""The rows that the gateway returns at most when there is no `limit`, or it does not support it (D8)."""
ROWS_READ: Final = 2 * MOST_ROWS
"""The most rows that are read: a list that is longer than was asked for is not read to its end."""
MOST_DETAILS: Final = 2_000
"""The most details (what was passed with the session, chargebacks, movements) of an answer's rows."""
DEEPEST: Final = 32
"""Levels above the rows of an answer. The documented ones stand on the fourth."""
QUIET_RESULTS: Final = frozenset({"", "success", "ok"})
"""Body/Result of a lookup that worked: empty for an unknown id (C12)."""
FAILED_RESULTS: Final = frozenset({"error", "failed", "systemerror"})
"""Body/Result that says that an attempt came to nothing (part 3)."""

_ERROR_CODE = re.compile(r"-?[0-9]{1,18}")
_CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}")
_AMOUNT_MOVED = ("CaptureAmount", "RefundedAmount", "RefundAmount")
_CURRENCY_MOVED = ("CaptureCurrency", "RefundCurrency")
_RESULTS_MOVED = ("Result", "CaptureResult", "RefundResult", "CancelResult")


@dataclass(frozen=True, slots=True)
class Movement:
    """The gateway's answer to a capture, a refund or a release that it understood.

    `result` is Body/Result in lower case ("success", "error", "failed", ...): "error" is also the answer to a
    capture of what was captured already, so `transaction` decides (None where the answer holds none).
    `amount` is what this call moved, in minor units; None where it is missing, as for a release.
    """

    result: str
    transaction: Transaction | None
    amount: int | None = None


class RequestError(Exception):
    """The gateway understood the request and refused it: Header/ErrorCode, its text, is not 0."""


def parse(body: bytes, *, limit: int = MOST_ROWS) -> Found:
    """Read an APIResponse document; `limit` is what the lookup asked for."""
    answer = _answer(body)
    rows, result = answer.rows, text_of(answer.body, "Result")
    if not rows:
        if result.lower() not in QUIET_RESULTS:
            # A lookup that went wrong inside the gateway must not pass for "there is no payment".
            raise Malformed("The gateway's lookup ended neither in payments nor in success.")
        if not _is_documented_absence(answer):
            raise Malformed(
                "The gateway's answer holds no transaction and is not the one to an unknown order."
            )
    failed = result.lower() in FAILED_RESULTS
    transactions = tuple(transaction_of(row, failed=failed, repaired=answer.repaired) for row in rows)
    details = (
        len(each.payment_infos) + len(each.chargeback_events) + len(each.reconciliations)
        for each in transactions
    )
    if sum(details) > MOST_DETAILS:
        raise Malformed(f"The gateway's transactions have more than {MOST_DETAILS} details.")
    return Found(
        transactions=transactions,
        # Exactly the default may mean that the gateway does not support the parameter `limit`.
        at_limit=len(rows) >= limit or len(rows) == DEFAULT_ROWS,
    )


def is_cut_short(found: Found, fewer: Found) -> bool:
    """Return whether a list requested with one row less has one row less: then the gateway supports `limit`,
    and `found` is complete.
    """
    ids = {transaction.transaction_id for transaction in found.transactions}
    less = {transaction.transaction_id for transaction in fewer.transactions}
    return less < ids and len(fewer.transactions) == len(found.transactions) - 1


def joined(newest: Found, oldest: Found) -> Found | None:
    """Join a list's two ends, newest first and oldest first, where their dates prove that no row is missing
    between them.

    Every row younger than the last of `newest` is in it, and every row older than the last of `oldest` is in
    that: if the second date is the later one, these are all. None where the dates do not show it, or not that
    the gateway sorted at all.
    """
    young, old = _dates(newest), _dates(oldest)
    if (
        not young
        or not old
        or young != sorted(young, reverse=True)
        or old != sorted(old)
        or old[-1] <= young[-1]
    ):
        return None
    known = {transaction.transaction_id for transaction in newest.transactions}
    more = tuple(
        transaction for transaction in oldest.transactions if transaction.transaction_id not in known
    )
    return Found((*newest.transactions, *more))


def _dates(found: Found) -> list[str]:
    """Return the dates of creation in the order of the answer; none where a date is not in the gateway's own
    form (1.7).
    """
    dates = [transaction.created_at for transaction in found.transactions]
    return dates if all(_CREATED.fullmatch(date) for date in dates) else []


def parse_movement(body: bytes, *, transaction_id: str) -> Movement:
    """Read the answer to a call that moves money of this transaction."""
    answer = _answer(body)
    result = next((word for name in _RESULTS_MOVED if (word := text_of(answer.body, name))), "")
    if not result:
        raise Malformed("The gateway's XML does not say what came of the call.")
    rows = [row for row in answer.rows if text_of(row, "TransactionId") == transaction_id]
    if answer.rows and not rows:
        raise Malformed("The gateway's XML is about another transaction.")
    transaction = transaction_of(rows[0], failed=False, repaired=answer.repaired) if rows else None
    return Movement(neutralised(result.lower()), transaction, _moved(answer.body, transaction))


def _moved(body: Element, transaction: Transaction | None) -> int | None:
    """Return what a call moved, in minor units of the currency that it names, or of its transaction's."""
    text = next((text for name in _AMOUNT_MOVED if (text := text_of(body, name))), "")
    named = next((code for name in _CURRENCY_MOVED if (code := text_of(body, name))), "")
    currency = code_of(named) if named else transaction.currency if transaction is not None else ""
    return exact(text, currency) if currency else None


# ── The document ──────────────────────────────────────────────────────────────────────────────────────────


class _Answer(NamedTuple):
    """An APIResponse that is no refusal: its parts, and the Transaction elements wherever they stand."""

    root: Element
    header: Element
    body: Element
    rows: list[Element]
    repaired: bool


def _answer(document: bytes) -> _Answer:
    root, repaired = xml.tree(document)
    header = root.find("Header")
    code = "" if header is None else text_of(header, "ErrorCode")
    if header is None or root.tag != "APIResponse" or not _ERROR_CODE.fullmatch(code):
        raise Malformed("The gateway's XML is not an APIResponse.")
    if int(code) != 0:
        raise RequestError(code)
    body = root.find("Body")
    if body is None:
        raise Malformed("The gateway's XML has no Body.")
    rows = _rows(root)
    for row in rows:
        identifier, order_ref = text_of(row, "TransactionId"), text_of(row, "ShopOrderId")
        # A row that cannot be named cannot be booked, and leaving it out would claim that it is not there.
        if not identifier or DAMAGED in identifier:
            raise Malformed("The gateway's XML holds a transaction without an id.")
        if DAMAGED in order_ref:
            raise Malformed("The gateway's XML holds a transaction whose order number is damaged.")
    return _Answer(root, header, body, rows, repaired)


def _rows(root: Element) -> list[Element]:
    """Return the Transaction elements level by level; one inside another is a part of its parent."""
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
                    raise Malformed("The gateway's XML holds a transaction under a name that is not known.")
        if len(rows) > ROWS_READ:
            raise Malformed(f"The gateway's XML holds more than {ROWS_READ} transactions.")
        if not below:
            return rows
        level = below
    raise Malformed("The gateway's XML is nested too deeply.")


def _is_documented_absence(answer: _Answer) -> bool:
    """Say whether an answer without rows has the documented shape of "there is none", and nothing beside it
    (part 1.7, C12).

    A Header with one error code; a Body with Result, which may hold ResultFilter and an empty Transactions;
    no other element or text.
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
