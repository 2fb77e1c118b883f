"""What a browser sends: query parameters and forms, bounded in size and number, each read as what it must be.

A wrong value is an error with the name of its field; an unknown field is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from orchestrator.api import request_body
from orchestrator.console.access import Refused, not_found
from orchestrator.domain import money
from orchestrator.domain.money import MoneyError
from orchestrator.intents import may_be_order

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from starlette.requests import Request

Word = TypeVar("Word", bound=StrEnum)
FORM_BYTES: Final = 16_384
MOST_FIELDS: Final = 40
LONGEST_REASON: Final = 500
SHORTEST_REASON: Final = 3
LONGEST_NAME: Final = 100


@dataclass(slots=True)
class Fields:
    """Fields by name, and what is wrong with them."""

    values: Mapping[str, str]
    wrong: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, *, most: int = LONGEST_NAME) -> str | None:
        """Return a text without blanks around it; None where it is empty."""
        value = self.values.get(name, "").strip()
        if len(value) > most:
            self.wrong[name] = f"has {len(value)} characters, and at most {most} are taken"
            return None
        return value or None

    def reason(self) -> str:
        """Return why a person does something; it is wrong to give none."""
        value = self.text("reason", most=LONGEST_REASON)
        if value is None or len(value) < SHORTEST_REASON:
            self.wrong.setdefault("reason", "say why, in a few words: it stands in the audit trail")
            return ""
        return value

    def reason_or_refuse(self) -> str:
        """Return why a person does something; `Refused` where it is wrong."""
        reason = self.reason()
        if self.wrong:
            raise Refused(422, "Not done", f"Reason: {self.wrong['reason']}.")
        return reason

    def number(self, name: str) -> int:
        """Return a whole number from 0 on; `Refused` for anything else, since no person typed it."""
        value = self.values.get(name, "")
        if not value.isascii() or not value.isdigit() or len(value) > 10:  # noqa: PLR2004 - a version
            raise incomplete()
        return int(value)

    def nonce(self) -> UUID:
        """Return the id that the page gave its form, and that what comes of the form has: sent twice, it is
        done once.
        """
        try:
            return UUID(self.values.get("nonce", ""))
        except ValueError:
            raise incomplete() from None

    def amount(self, name: str, currency: str) -> int | None:
        """Return an amount in minor units, more than nothing."""
        value = self.text(name, most=30)
        if value is None:
            self.wrong[name] = "name an amount"
            return None
        try:
            minor = money.to_minor(value.replace("\N{NO-BREAK SPACE}", "").replace(" ", ""), currency)
        except MoneyError as error:
            self.wrong[name] = str(error)
            return None
        if minor <= 0:
            self.wrong[name] = "must be more than 0"
            return None
        return minor

    def among(self, name: str, words: type[Word]) -> Word | None:
        """Return one of a set of words, or None where it is empty."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return words(value)
        except ValueError:
            self.wrong[name] = "is not a known word"
            return None

    def words(self, name: str, words: type[Word]) -> list[Word]:
        """Return `among` as a list, which is empty where it is None."""
        word = self.among(name, words)
        return [] if word is None else [word]

    def merchant(self, named: str, names: Mapping[int, str]) -> int | None:
        """Return the number of a merchant; it is wrong to name one that there is not."""
        found = next((number for number, name in names.items() if name == named), None)
        if found is None:
            self.wrong["merchant"] = "there is no such merchant"
        return found

    def day(self, name: str, *, end: bool = False) -> datetime | None:
        """Return the beginning of a day in UTC, or of the day after it (`end`)."""
        value = self.text(name)
        if value is None:
            return None
        try:
            found = date.fromisoformat(value)
            return datetime.combine(found + timedelta(days=end), time(), UTC)
        except (ValueError, OverflowError):
            self.wrong[name] = "must be a day such as 2026-01-31"
            return None

    def order(self, name: str) -> str | None:
        """Return what may be an order number, an id or a transaction."""
        value = self.text(name)
        if value is not None and not may_be_order(value):
            self.wrong[name] = "has characters that no order number has"
            return None
        return value

    def place(self, name: str) -> UUID | None:
        """Return where a page begins; None where it is the first."""
        value = self.text(name)
        return None if value is None else uuid(value)


def incomplete() -> Refused:
    """Return the refusal of a form that is not as a page of ours sends it."""
    return Refused(400, "The form is incomplete", "Open the page again. Nothing was done.")


def uuid(text: str) -> UUID:
    """Return an id; `Refused` with 404 for what is none."""
    try:
        return UUID(text)
    except ValueError:
        raise not_found("There is nothing at this address.") from None


def query(request: Request, known: Collection[str]) -> Fields:
    """Return the query parameters; `Refused` for unknown ones, which would otherwise be ignored."""
    return _fields(request.scope["query_string"], known)


async def form(request: Request, known: Collection[str]) -> Fields:
    """Return the fields of a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        said = (
            "This is no form of the console: its Content-Type is not application/x-www-form-urlencoded. Nothing was done. "
            "Open the address in a browser, and send the form of its page."
        )
        raise Refused(415, "Not a form", said)
    return _fields(await request_body.read(request, limit=FORM_BYTES), {*known, "token"})


def _fields(raw: bytes, known: Collection[str]) -> Fields:
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            encoding="utf-8",
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError:
        raise Refused(400, "The request cannot be read", "Open the page again. Nothing was done.") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in known or name in values:
            raise Refused(
                400,
                "The request cannot be read",
                "It has a field that this page does not have. Nothing was done.",
            )
        values[name] = value
    return Fields(values)
