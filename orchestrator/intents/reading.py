"""Reading an intent field by field: every problem with its path and remedy, or the canonical form."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from orchestrator.domain import money
from orchestrator.errors import OrchestratorError
from orchestrator.intents.fields import UNPRINTABLE, Fields, Problem, kind_of, repeated, repeated_name, shown
from orchestrator.text import unmarked

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BODY_LIMIT: Final = 262_144
"""Bytes of one intent."""
ORDER_NUMBER: Final = re.compile(r"[a-zA-Z0-9-]{1,50}")
"""The gateway takes up to 100 characters, some payment methods only 50 (D7, D8)."""
LONGEST_ORDER: Final = 255
"""Characters of an order number that is searched for: other systems have numbers of their own."""
LONGEST_EXPIRY: Final = 30 * 86_400
MOST_LINES: Final = 500
MOST_PIECES: Final = 1_000_000
MOST_INFOS: Final = 49
"""The gateway takes 50 entries of transactionInfo (D8), and the checkout id is one of them."""
OWN_INFO: Final = "checkout"
DESCRIPTION: Final = 50
"""Characters of a line's description; the vendor's cartridge cuts there too (C1)."""
LONGEST_INFO: Final = 255
LONGEST_AGENT: Final = 512

DECODER: Final = msgspec.json.Decoder(float_hook=Decimal)
ENCODER: Final = msgspec.json.Encoder(decimal_format="number", order="sorted")
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+")
_GOODS: Final = ("item", "shipment", "handling")


class IntentRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """An intent that cannot be taken; `problems` holds everything that is wrong with it."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        first, others = problems[0], len(problems) - 1
        more = f" (and {others} more)" if others else ""
        super().__init__(f"{first.field}: {first.message}{more}")
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a valid intent says. `amount` is minor units; `auto_capture`: the gateway shall capture by itself.
    `document` is the canonical JSON to be stored encrypted; `fingerprint` is the SHA-256 of it without the
    shopper's User-Agent.
    """

    order_ref: str
    currency: str
    amount: int
    auto_capture: bool = False
    document: bytes = field(repr=False)
    fingerprint: bytes
    email: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent(Content):
    """A valid intent; `expires_in` is seconds (None: the installation's own default)."""

    expires_in: float | None


def parse(raw: bytes) -> Intent:
    """Read one intent; raise `IntentRejected` with everything that is wrong with it."""
    if len(raw) > BODY_LIMIT:
        too_long = f"has {len(raw)} bytes, and an intent may have {BODY_LIMIT}: send fewer order lines"
        raise IntentRejected((Problem("body", too_long),))
    try:
        body = DECODER.decode(unmarked(raw))
    except (ValueError, RecursionError, InvalidOperation) as error:
        # msgspec and Unicode errors are ValueErrors.
        raise IntentRejected((Problem("body", _malformed(error)),)) from None
    reader = _Reader()
    document, amount = reader.intent(body)
    if (name := repeated_name(raw, members=reader.members)) is not None:
        raise IntentRejected((repeated(name),))
    if reader.problems:
        raise IntentRejected(tuple(reader.problems))
    agent = document.pop("userAgent", None)
    bare = ENCODER.encode(document)
    expires_in = document.get("expiresIn")
    return Intent(
        order_ref=document["order"]["orderId"],
        currency=document["order"]["amount"]["currency"],
        amount=amount,
        expires_in=None if expires_in is None else float(expires_in),
        auto_capture=document["configuration"].get("autoCapture") is True,
        document=bare if agent is None else ENCODER.encode({**document, "userAgent": agent}),
        fingerprint=hashlib.sha256(bare).digest(),
        email=document["order"].get("customer", {}).get("email"),
    )


def may_be_order(text: str) -> bool:
    """Say whether a payment may have this order number: other systems are not held to `ORDER_NUMBER`."""
    return 1 <= len(text) <= LONGEST_ORDER and UNPRINTABLE.search(text) is None


def _malformed(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply: an intent has four levels"
    if isinstance(error, InvalidOperation):
        return "holds a number that is far too large"
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8: encode the JSON as UTF-8"
    return f"is not JSON: {error}"


# ── Reading, field by field ───────────────────────────────────────────────────────────────────────────────


class _Reader(Fields):
    """Reads one body, records every problem, and returns the canonical form of the valid fields."""

    __slots__ = ()

    def intent(self, body: object) -> tuple[dict[str, Any], int]:
        if not isinstance(body, dict):
            self.wrong(
                "body", f"must be a JSON object with order, callbacks and configuration, not {kind_of(body)}"
            )
            return {}, 0
        self.names(body, "", "")
        order, amount = self.inner(body, "", "order", self.order) or ({}, 0)
        callbacks = self.inner(body, "", "callbacks", self.callbacks) or {}
        configuration = self.inner(body, "", "configuration", self.configuration)
        self.body_format(body, callbacks)
        read = {
            "order": order,
            "callbacks": callbacks,
            "configuration": configuration,
            "isNativeFlow": self.flag(body, "", "isNativeFlow"),
            "expiresIn": self.seconds(body.get("expiresIn")),
            "userAgent": self.text(body, "", "userAgent", required=False, most=BODY_LIMIT),
        }
        document = _given(read)
        if "userAgent" in document:
            document["userAgent"] = document["userAgent"][:LONGEST_AGENT]
        return document, amount

    def inner(
        self,
        given: dict[str, Any],
        at: str,
        name: str,
        read: Callable[[dict[str, Any], str], T],
        *,
        shape: str | None = None,
    ) -> T | None:
        """Read a member that is an object, of the shape of its name by default; None if it is not there."""
        value = self.member(given, at, name)
        if value is None:
            return None
        self.names(value, f"{at}{name}.", shape or name)
        return read(value, f"{at}{name}.")

    def seconds(self, value: object) -> int | float | None:
        """Read `expiresIn`."""
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | Decimal)
            or not 1 <= value <= LONGEST_EXPIRY
        ):
            self.wrong("expiresIn", f"must be a number of seconds from 1 to {LONGEST_EXPIRY} (30 days)")
            return None
        return int(value) if value == int(value) else float(value)

    def order(self, order: dict[str, Any], at: str) -> tuple[dict[str, Any], int]:
        order_ref = self.text(order, at, "orderId", most=1000)
        if order_ref is not None and not ORDER_NUMBER.fullmatch(order_ref):
            self.wrong(
                "order.orderId", "must be 1 to 50 letters a-z, digits and hyphens, as the gateway takes them"
            )
        currency, amount = self.inner(order, at, "amount", self.amount) or (None, None)
        read = {
            "orderId": order_ref,
            "amount": {"value": _decimal(amount, currency), "currency": currency},
            "orderLines": self.lines(order.get("orderLines"), currency, amount),
            "customer": self.inner(order, at, "customer", self.customer),
            "transactionInfo": self.infos(order.get("transactionInfo")) or None,
        }
        return _given(read), amount or 0

    def amount(self, amount: dict[str, Any], at: str) -> tuple[str | None, int | None]:
        currency = self.text(amount, at, "currency", most=3)
        if currency is not None:
            currency = currency.upper() if currency.isascii() else currency
            try:
                money.exponent(currency)
            except money.MoneyError as error:
                self.wrong(at + "currency", str(error))
                currency = None
        value = self.money(amount, at, "value", currency)
        if value is not None and value <= 0:
            self.wrong(at + "value", "must be more than 0: there is nothing to pay otherwise")
            return currency, None
        return currency, value

    def lines(self, lines: object, currency: str | None, amount: int | None) -> list[dict[str, Any]]:
        if not isinstance(lines, list) or not lines:
            self.wrong(
                "order.orderLines", "must be a list with at least one order line, as the gateway wants it"
            )
            return []
        if len(lines) > MOST_LINES:
            self.wrong(
                "order.orderLines", f"has {len(lines)} lines, and the most is {MOST_LINES}: combine some"
            )
            return []
        known, total, pieces, read = len(self.problems), 0, 0, []
        for number, line in enumerate(lines):
            at = f"order.orderLines[{number}]."
            if not isinstance(line, dict):
                self.wrong(at[:-1], f"must be an order line, not {kind_of(line)}")
                continue
            quantity, unit_price, tax, canonical = self.line(line, at, currency)
            read.append(canonical)
            total += unit_price * quantity + tax
            # What costs nothing cannot be rounded; its tax can, once.
            pieces += quantity if unit_price else bool(tax)
        if amount is not None and currency is not None and len(self.problems) == known:
            missing = amount - total
            # A net price is rounded once for each piece; whatever is further off is not rounding.
            if abs(missing) > pieces:
                self.wrong("order.orderLines", _off(total, amount, pieces, currency))
        return read

    def line(
        self, line: dict[str, Any], at: str, currency: str | None
    ) -> tuple[int, int, int, dict[str, Any]]:
        self.names(line, at, "line")
        quantity = line.get("quantity")
        # Both bounds come before int(), which would write out a million digits of -1e1000000.
        if isinstance(quantity, Decimal) and 1 <= quantity <= MOST_PIECES and quantity == int(quantity):
            quantity = int(quantity)  # 2.0 pieces are two
        if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= MOST_PIECES:
            remedy = "send what is sold by measure as quantity 1 with the price of the whole line"
            self.wrong(at + "quantity", f"must be a whole number of pieces from 1 to {MOST_PIECES}: {remedy}")
            quantity = 1
        goods = self.text(line, at, "goodsType", required=False, most=50) or "item"
        if goods not in _GOODS:
            self.wrong(at + "goodsType", f"must be one of {', '.join(_GOODS)}")
        unit_price = self.money(line, at, "unitPrice", currency)
        tax = self.money(line, at, "taxAmount", currency, required=False)
        for name, value in (("unitPrice", unit_price), ("taxAmount", tax)):
            if value is not None and value < 0 and goods != "handling":
                self.wrong(
                    at + name, "must not be negative (only goodsType handling may): discount the prices"
                )
        description = self.text(line, at, "description", most=BODY_LIMIT, lines=True) or ""
        canonical = {
            "itemId": self.text(line, at, "itemId", most=100),
            "description": description[:DESCRIPTION].rstrip(),
            "quantity": quantity,
            "unitPrice": _decimal(unit_price, currency),
            "taxAmount": _decimal(tax, currency),
            "goodsType": goods,
        }
        return quantity, unit_price or 0, tax or 0, canonical

    def customer(self, customer: dict[str, Any], at: str) -> dict[str, Any]:
        longest = {"firstName": 255, "lastName": 255, "email": 254}
        read: dict[str, Any] = {**self.texts(customer, at, longest)}
        if "email" in read and not _EMAIL.fullmatch(read["email"]):
            self.wrong(at + "email", "is not an e-mail address: it needs one @ with something on both sides")
        for name in ("billingAddress", "shippingAddress"):
            if customer.get(name) is not None:
                read[name] = self.inner(customer, at, name, self.address, shape="address")
        if not any(value is not None for value in customer.values()):
            self.wrong("order.customer", "is empty: name at least the e-mail address, the name or an address")
        return read

    def address(self, address: dict[str, Any], at: str) -> dict[str, str]:
        read = self.texts(address, at, {"street": 255, "city": 255, "zipCode": 32})
        country = self.country(address, at)
        if country is not None:
            read["country"] = country
        return read

    def infos(self, infos: object) -> dict[str, str]:
        if infos is None:
            return {}
        at = "order.transactionInfo"
        if not isinstance(infos, dict):
            self.wrong(at, f"must be an object of texts, not {kind_of(infos)}")
            return {}
        self.members += len(infos)
        if len(infos) > MOST_INFOS:
            self.wrong(
                at, f"has {len(infos)} entries, and the most is {MOST_INFOS}: with ours the gateway takes 50"
            )
            return {}
        for name, value in infos.items():
            if (problem := _info_problem(name, value)) is not None:
                self.wrong(f"{at}.{shown(name)}", problem)
        return infos

    def callbacks(self, callbacks: dict[str, Any], at: str) -> dict[str, Any]:
        read: dict[str, Any] = {
            name: self.inner(callbacks, at, name, self.page, shape="page") for name in ("success", "failure")
        }
        for name in ("redirect", "notification", "formStyling"):
            if callbacks.get(name) is not None:
                read[name] = self.url(callbacks, at, name, app=name == "redirect")
        return read

    def page(self, page: dict[str, Any], at: str) -> dict[str, Any]:
        kind = self.text(page, at, "type", required=False, most=50) or "URL"
        if kind != "URL":
            said = "must be URL: functions are for a browser, and this callback comes to a server"
            self.wrong(at + "type", said)
        return {"type": "URL", "value": self.url(page, at, "value")}

    def body_format(self, body: dict[str, Any], callbacks: dict[str, Any]) -> None:
        """Read the format from `callbacks`, or from `configuration`, where older samples have it (1.2)."""
        said: dict[str, str] = {}
        for place in ("callbacks", "configuration"):
            given = body.get(place)
            if not isinstance(given, dict):
                continue
            value = self.text(given, f"{place}.", "bodyFormat", required=False, most=50)
            if value is None:
                continue
            said[place] = value.upper()
            if said[place] not in {"XML", "JSON"}:
                self.wrong(f"{place}.bodyFormat", "must be XML or JSON")
        if len(set(said.values())) > 1:
            self.wrong(
                "configuration.bodyFormat",
                "says something else than callbacks.bodyFormat: send callbacks.bodyFormat alone",
            )
        if said:
            callbacks["bodyFormat"] = next(iter(said.values()))

    def flag(self, given: dict[str, Any], at: str, name: str) -> bool | None:
        value = given.get(name)
        if value is not None and not isinstance(value, bool):
            self.wrong(at + name, f"must be true or false, not {kind_of(value)}")
            return None
        return value

    def configuration(self, configuration: dict[str, Any], at: str) -> dict[str, Any]:
        kind = self.text(configuration, at, "paymentType", most=50)
        if kind not in {None, "PAYMENT"}:
            self.wrong("configuration.paymentType", "must be PAYMENT: no other type is supported")
        capture = self.flag(configuration, at, "autoCapture")
        display = self.text(configuration, at, "paymentDisplayType", required=False, most=50)
        if display is not None and not re.fullmatch("[A-Z_]+", display):
            self.wrong("configuration.paymentDisplayType", "must be a word in capitals such as REDIRECT")
        country = self.country(configuration, at)
        language = self.text(configuration, at, "language", required=False, most=50)
        if language is not None and not re.fullmatch("[A-Za-z]{2}", language):
            self.wrong("configuration.language", "must be two letters such as da")
        read = {
            "paymentType": kind,
            "autoCapture": capture,
            "paymentDisplayType": display,
            "country": country,
            "language": None if language is None else language.lower(),
        }
        return _given(read)


def _info_problem(name: str, value: object) -> str | None:
    if name == OWN_INFO:
        return "is reserved for the checkout's own id: use another name"
    if not name or len(name) > LONGEST_INFO or UNPRINTABLE.search(name):
        return f"must have a name of 1 to {LONGEST_INFO} characters without control characters"
    if not isinstance(value, str):
        return f"must be a text, not {kind_of(value)}: put it in quotes"
    if len(value) > LONGEST_INFO or UNPRINTABLE.search(value):
        return f"must be a text of at most {LONGEST_INFO} characters without control characters"
    return None


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _off(total: int, amount: int, pieces: int, currency: str) -> str:
    def show(minor: int) -> str:
        return f"{money.to_decimal(minor, currency)} {currency}"

    difference = f"{show(abs(amount - total))} {'are missing' if amount > total else 'are too much'}"
    return (
        f"the lines sum to {show(total)}, and order.amount is {show(amount)}: {difference}. Only a difference "
        f"from rounding, here up to {show(pieces)} (one minor unit for each piece that has a price), is completed by a line of ours"
    )


def _decimal(minor: int | None, currency: str | None) -> Decimal | None:
    return None if minor is None or currency is None else money.to_decimal(minor, currency)
