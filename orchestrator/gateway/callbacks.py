"""Callbacks of the gateway: proof of the sender, and content.

Pure functions over raw bytes; nothing in here raises on what a stranger may post. A callback stays a hint
whatever its grade is: neither proof covers all of it (the checksum leaves status and transaction out), so the
payment itself is looked up. Raw bodies and personal data are not kept in the facts, apart from the message
that is meant for the shopper.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

from orchestrator.domain import money
from orchestrator.gateway import callback_body
from orchestrator.gateway.callback_body import BodyError
from orchestrator.gateway.transactions import code_of
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LONGEST: Final = 255
"""Characters kept of any fact. The longest that the gateway documents is an entry of transactionInfo (D8)."""

MAX_AGE: Final = 86_400.0
"""Seconds. Neither the age that the gateway itself allows nor its delay in delivery is documented: a day is
generous to both."""

STATUSES: Final = frozenset({
    "succeeded", "failed", "error", "cancelled", "declined", "incomplete", "open", "new", "chargebackevent", "pending",
})  # fmt: skip
"""What a callback is documented to say of a payment, by form (2.2) and by JSON (2.3), in lower case."""

_BREAKS: Final = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
_SIGNATURE_LIMIT = 4096
_SIGNED = re.compile(r"s[0-9]{1,3}")
_STAMP: Final = re.compile(
    r"[0-9]{1,19}|[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
"""A moment as digits (the unit is not documented) or as an ISO date. None of them ends with a dot and ten
digits, as a moved timestamp would."""
_CHECKSUM_FIELDS = ("amount", "currency", "shop_orderid")


class Grade(StrEnum):
    """How well a callback proves that the gateway sent it."""

    SIGNED = "signed"
    """The AltaPay-Signature header matches the whole body (facts 2.4 B)."""
    CHECKSUM = "checksum"
    """The terminal's MD5 checksum matches: order, amount and currency come from the gateway, all other fields
    are unproven (2.4 A)."""
    MISSING = "missing"
    """We have a secret, and the callback brings no proof."""
    WRONG = "wrong"
    """It brings a proof that does not match."""
    STALE = "stale"
    """Its signature matches and is too old: probably a replay."""
    UNCHECKED = "unchecked"
    """We have no secret to check it with."""

    @property
    def is_evidence(self) -> bool:
        """Whether nothing contradicts the gateway as its sender; even then its status is only a hint."""
        return self in {Grade.SIGNED, Grade.CHECKSUM, Grade.UNCHECKED}


@dataclass(frozen=True, slots=True)
class CallbackFacts:
    """The content of a callback, of any kind and format.

    None is "not given"; an empty text counts as not given.

    `status` is lower case; `amount` is in minor units of `currency` (letters);
    `checkout` is the checkout id from transactionInfo. `checked` holds the texts that the checksum covers,
    exactly as posted. `flags` name what was odd: `empty`, `not_form`, `not_json`, `not_an_object`,
    `not_utf8`, `not_gzip`, `too_large`, `too_many_fields`, `field_repeated`, `text_cut`,
    `character_replaced`, `wrong_type`, `amount_unreadable`, `currency_unknown`, `content_type_unexpected` and
    `status_unknown`. Fields beyond the documented ones are no oddity: the gateway adds some without notice.
    """

    order_ref: str | None = None
    transaction_id: str | None = None
    status: str | None = None
    amount: int | None = None
    currency: str | None = None
    error_message: str | None = field(default=None, repr=False)
    checkout: str | None = None
    require_capture: bool | None = None
    checked: Mapping[str, str] = field(default_factory=dict, repr=False)
    flags: tuple[str, ...] = ()


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────


def read_body(content_type: str, raw: bytes) -> CallbackFacts:
    """Read a form body (facts 2.2) or a JSON body (2.3); the content type decides, the first byte where it
    says neither.

    A form may be urlencoded or multipart. A gzip body is inflated, and a byte order mark is dropped.
    """
    try:
        return _read_plain(content_type, callback_body.plain(raw))
    except BodyError as error:
        return CallbackFacts(flags=(error.flag,))


def _read_plain(content_type: str, body: bytes) -> CallbackFacts:
    if not body.strip():
        return CallbackFacts(flags=("empty",))
    flags: list[str] = []
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        return _read_json(body, flags)
    if kind == "multipart/form-data" and (boundary := callback_body.boundary_of(content_type, body)):
        return _read_form(callback_body.multipart_pairs(boundary, body), flags)
    if kind != "application/x-www-form-urlencoded":
        flags.append("content_type_unexpected")
        if body.lstrip()[:1] in {b"{", b"["}:
            return _read_json(body, flags)
    return _read_form(callback_body.form_pairs(body), flags)


def _read_form(pairs: Sequence[tuple[str, str]], flags: list[str]) -> CallbackFacts:
    if not pairs:
        flags.append("not_form")
    fields: dict[str, str] = {}
    for name, value in pairs:
        if name in fields:  # the first one counts: a repeated field may be appended by another sender
            flags.append("field_repeated")
        else:
            fields[name] = value
    if any("\ufffd" in value for value in fields.values()):
        flags.append("not_utf8")
    checked = {name: fields[name] for name in (*_CHECKSUM_FIELDS, "checksum") if name in fields}
    return _facts(fields, flags, checked)


def _read_json(raw: bytes, flags: list[str]) -> CallbackFacts:
    try:
        body = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return CallbackFacts(flags=(*flags, "not_json"))
    if not isinstance(body, dict):
        return CallbackFacts(flags=(*flags, "not_an_object"))
    order = _object(body.get("order"), flags)
    infos = _object(body.get("transactionInfo"), flags) or _object(order.get("transactionInfo"), flags)
    fields = {name: body.get(key) for name, key in _JSON_NAMES.items()} | {
        "shop_orderid": order.get("orderId"),
        "amount": order.get("amount"),
        "currency": order.get("currency"),
        "transaction_info[checkout]": infos.get("checkout"),
    }
    return _facts(fields, flags, {})


_JSON_NAMES: Final = {
    "transaction_id": "transactionId",
    "status": "status",
    "error_message": "customerErrorMessage",
    "require_capture": "requiresCapture",
}
"""What a JSON body calls the fields of a form."""


def _facts(fields: Mapping[str, object], flags: list[str], checked: Mapping[str, str]) -> CallbackFacts:
    """Read the fields of a form, or those of a JSON body under the same names."""

    def text(name: str) -> str | None:
        return _text(fields.get(name), flags)

    currency, message = _currency(text("currency"), flags), fields.get("error_message")
    if isinstance(message, str):  # a sentence for the shopper, as one line
        message = _BREAKS.sub(" ", message)
    return CallbackFacts(
        order_ref=text("shop_orderid"),
        transaction_id=text("transaction_id"),
        status=_status(text("status"), flags),
        amount=_amount(fields.get("amount"), currency, flags),
        currency=currency,
        error_message=_text(message, flags),
        checkout=text("transaction_info[checkout]"),
        require_capture=_flag(fields.get("require_capture"), flags),
        checked=checked,
        flags=tuple(dict.fromkeys(flags)),
    )


def _object(value: object, flags: list[str]) -> dict[str, object]:
    if isinstance(value, dict):
        return value
    if value is not None:
        flags.append("wrong_type")
    return {}


def _text(value: object, flags: list[str]) -> str | None:
    """Return a text that can be shown: bounded, without control characters; a number becomes text."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        value = str(value)
    if not isinstance(value, str):
        if value is not None:
            flags.append("wrong_type")
        return None
    value = value.strip()
    if len(value) > LONGEST:
        flags.append("text_cut")
        value = value[:LONGEST]
    readable = neutralised(value)
    if readable != value:
        flags.append("character_replaced")
    return readable or None


def _status(value: str | None, flags: list[str]) -> str | None:
    status = _lower(value)
    if status is not None and status not in STATUSES:
        flags.append("status_unknown")
    return status


def _lower(value: str | None) -> str | None:
    return value.lower() if value else None


def _flag(value: object, flags: list[str]) -> bool | None:
    match _lower(_text(value, flags)) if isinstance(value, str) else value:
        case bool() | None as given:
            return given
        case "true" | "1":
            return True
        case "false" | "0":
            return False
        case _:
            flags.append("wrong_type")
            return None


def _currency(code: str | None, flags: list[str]) -> str | None:
    """Read a currency by number (form) or by letters (JSON)."""
    known = code_of(code) if code else None
    if known == "":
        flags.append("currency_unknown")
    return known or None


def _amount(value: object, currency: str | None, flags: list[str]) -> int | None:
    given = _text(value, flags) if isinstance(value, str) else value
    if given is None or currency is None:
        return None
    try:
        value = Decimal(given) if isinstance(given, str) else given
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and value >= 0:
            return money.to_minor(value, currency)
    except (money.MoneyError, InvalidOperation):
        pass  # flagged below, like everything else that is no exact amount of this currency
    flags.append("amount_unreadable")
    return None


# ── Authenticity ──────────────────────────────────────────────────────────────────────────────────────────


def checksum_ok(fields: Mapping[str, str], secret: str) -> bool:
    """Check the terminal's checksum (facts 2.4 A) over amount, currency and shop_orderid exactly as posted.

    An empty secret or a missing field proves nothing and is False: vendor plugins that skip the check then
    can be fooled by leaving the field out.
    """
    posted = fields.get("checksum", "")
    if not secret or not posted or any(name not in fields for name in _CHECKSUM_FIELDS):
        return False
    pairs = sorted([*((name, fields[name]) for name in _CHECKSUM_FIELDS), ("secret", secret)])
    text = ",".join(f"{name}={value}" for name, value in pairs)
    expected = hashlib.md5(_bytes(text), usedforsecurity=False).hexdigest()  # the gateway's choice
    return hmac.compare_digest(expected.encode(), _bytes(posted.lower()))


def signature_ok(
    header: str | None,
    raw: bytes,
    secrets: Sequence[str],
    now: float,
    *,
    max_age: float = MAX_AGE,
) -> Grade:
    """Grade the AltaPay-Signature header (facts 2.4 B; C1, C2, D6) over the raw body: SIGNED, STALE, WRONG,
    MISSING or UNCHECKED.

    Several signatures and several secrets overlap while secrets change: any pair that matches will do, in
    small letters or capitals. The timestamp is digits or an ISO date and nothing else: body and timestamp are
    joined by a dot that both may hold, so with any other text a part of a signed body could be passed off as
    its timestamp, and the rest as a signed body.

    The age at `now` (seconds since 1970) is at most `max_age` seconds; a timestamp without a definite age is
    STALE. A timestamp of the future counts as fresh: only a clock can be wrong there, since only the
    gateway could have signed it.
    """
    keys = [secret for secret in secrets if secret]
    if not keys:
        return Grade.UNCHECKED
    if not header:
        return Grade.MISSING
    stamp, signatures = _signatures_of(header)
    if not _STAMP.fullmatch(stamp) or not signatures:
        return Grade.WRONG
    message = raw + b"." + _bytes(stamp)
    matched = False
    for key in keys:
        expected = hmac.new(_bytes(key), message, hashlib.sha256).hexdigest().encode()
        for signature in signatures:
            # Every pair is compared, so the time taken does not reveal which secret came close.
            matched |= hmac.compare_digest(expected, signature)
    if not matched:
        return Grade.WRONG
    made = signed_at(stamp)
    return Grade.SIGNED if made is not None and now - made <= max_age else Grade.STALE


def _signatures_of(header: str) -> tuple[str, list[bytes]]:
    """Return the timestamp of a signature header and its signatures in small letters."""
    stamp, signatures = "", []
    for part in header[:_SIGNATURE_LIMIT].split(";"):
        name, _, value = part.strip().partition("=")
        if name == "t":
            stamp = value
        elif _SIGNED.fullmatch(name):
            signatures.append(_bytes(value.lower()))
    return stamp, signatures


def grade(
    header: str | None,
    raw: bytes,
    read: Callable[[], CallbackFacts],
    secrets: Sequence[str],
    *,
    now: float,
    max_age: float = MAX_AGE,
) -> Grade:
    """Return the best proof of a callback, by signature first and by checksum after it; `read` only for the
    latter.

    A wrong signature beside a right checksum counts as CHECKSUM: a forger of the checksum could as well leave
    the header out. A signature that is too old stays STALE: a checksum has no age, and does not make it
    fresh.
    """
    by_signature = signature_ok(header, raw, secrets, now, max_age=max_age)
    if by_signature in {Grade.SIGNED, Grade.STALE, Grade.UNCHECKED}:
        return by_signature
    facts = read()
    if any(checksum_ok(facts.checked, secret) for secret in secrets):
        return Grade.CHECKSUM
    return Grade.WRONG if header or facts.checked.get("checksum") else Grade.MISSING


_UNITS: Final = {10: 1, 13: 10**3, 16: 10**6, 19: 10**9}
"""Digits of a moment between 2001 and 2286, in seconds, milli-, micro- and nanoseconds."""
_LATEST_ZONE: Final = timezone(timedelta(hours=-12))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_DATE_ALONE: Final = re.compile(r"[0-9W-]+")


def signed_at(stamp: str) -> float | None:
    """Return the moment of a signature's timestamp in seconds since 1970; None where its unit is unknown.

    Where a date leaves it open (no time zone, no time of day) it is the latest possible moment: a timestamp
    that may be fresh is never called too old.
    """
    if stamp.isascii() and stamp.isdigit():
        unit = _UNITS.get(len(stamp.lstrip("0")))
        return None if unit is None else int(stamp) / unit
    try:
        moment = datetime.fromisoformat(stamp.strip())
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=_LATEST_ZONE)
    try:
        return (moment - _EPOCH).total_seconds() + (86_400.0 if _DATE_ALONE.fullmatch(stamp.strip()) else 0.0)
    except OverflowError:
        return None


def _bytes(text: str) -> bytes:
    """Encode what may hold lone surrogates (a header decoded by the server); they then match nothing."""
    return text.encode("utf-8", "surrogatepass")
