"""Kinds of fields, and what can be wrong with each: texts, amounts, page URLs, unknown names.

A control character is refused everywhere. A sentence names a field's kind and limit, and repeats the value
only where that is an amount or a name of a field.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_URL: Final = 2048
MOST_PROBLEMS: Final = 50
LAST_PORT: Final = 65_535
# Control characters, and half a surrogate pair, which is no valid text.
UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Line breaks, tabs and their kin: blanks where a text has one line.
_BREAKS: Final = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]")
_BLANKS: Final = re.compile(" {2,}")
_HINTS: Final = {"UK": "GB", "EL": "GR", "XI": "GB"}
"""Codes of the European Union and of everyday use, and the ISO 3166 codes of the same countries."""
KOSOVO: Final = "XK"
"""Not in ISO 3166, and used by the European Union, card schemes and banks."""
_APP_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://[!#$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~-]*")
_NO_APP: Final = frozenset(
    (
        "about blob chrome chrome-extension content data file filesystem ftp ftps http https jar javascript livescript "
        "mailto mocha moz-extension ms-appx resource sms ssh tel telnet vbscript view-source ws wss"
    ).split()
)
"""Schemes that a browser runs, reads from a device or opens with a program of its own: no app of a shop."""
_URL: Final = re.compile(
    r"https?://(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?|\[[0-9A-Fa-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?(?:[/?#][!#$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~-]*)?"
)
# Each name of a member ends so, and a text may hold it as well: never fewer than there are members.
_NAME_END: Final = re.compile(rb'"[ \t\r\n]*:')
NAMES: Final = {
    shape: frozenset(names.split())
    for shape, names in {
        "": "order callbacks configuration isNativeFlow expiresIn userAgent",
        "order": "orderId amount orderLines customer transactionInfo",
        "amount": "value currency",
        "line": "itemId description quantity unitPrice taxAmount goodsType",
        "customer": "firstName lastName email billingAddress shippingAddress",
        "address": "street city country zipCode",
        "callbacks": "success failure redirect notification formStyling bodyFormat",
        "page": "type value",
        "cancel": "reason version",
        "configuration": "paymentType autoCapture paymentDisplayType country language bodyFormat",
    }.items()
}
"""The members of each object."""


class Problem(NamedTuple):
    """One thing that is wrong: a path such as `order.orderLines[2].unitPrice`, and what to do."""

    field: str
    message: str


class Fields:
    """Reads fields of one body and records every problem. `at` is the path of the object that a field is in,
    with the dot: paths are put together only when they are needed.
    """

    __slots__ = ("members", "problems")

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        # Members of the objects that were read.
        self.members = 0

    def wrong(self, path: str, message: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(path, message))

    def money(
        self, source: dict[str, Any], at: str, name: str, currency: str | None, *, required: bool = True
    ) -> int | None:
        """Read an amount as minor units, of whatever sign; None if it is missing or wrong."""
        value = source.get(name)
        if value is None:
            if required:
                self.missing(source, at, name, "a decimal number such as 139.00")
            return None if required else 0
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            self.wrong(
                at + name, f"must be a JSON number such as 139.00, without quotes, not {kind_of(value)}"
            )
            return None
        if currency is None:  # which was said already
            return None
        most = "what the currency has"
        try:
            minor = money.to_minor(value, currency)
            if money.exponent(currency) > money.GATEWAY_DECIMALS:
                most = f"{money.GATEWAY_DECIMALS} decimals"
                money.for_gateway(minor, currency)
        except money.MoneyError as error:
            self.wrong(at + name, f"{error}: round it to {most} before sending it")
            return None
        return minor

    def names(self, given: dict[str, Any], at: str, shape: str) -> None:
        """Refuse names that the shape does not have: a misspelt optional field would be lost silently."""
        self.members += len(given)
        known = NAMES[shape]
        if known.issuperset(given):
            return
        for name in given:
            if name in known:
                continue
            self.wrong(at + shown(name), f"is not a known field: {hint(name, known)}")
            if len(self.problems) >= MOST_PROBLEMS:
                return

    def member(self, given: dict[str, Any], at: str, name: str) -> dict[str, Any] | None:
        value = given.get(name)
        if isinstance(value, dict):
            return value
        if value is None:
            self.missing(given, at, name, "an object")
        else:
            self.wrong(at + name, f"must be an object, not {kind_of(value)}")
        return None

    def text(
        self,
        given: dict[str, Any],
        at: str,
        name: str,
        *,
        most: int,
        required: bool = True,
        lines: bool = False,
    ) -> str | None:
        """Read a text without control characters; an empty text counts as not given. `lines`: people type
        line breaks and tabs into it, and each run of them becomes one blank.
        """
        value = given.get(name)
        if isinstance(value, str):
            if len(value) <= most and value.isprintable() and (stripped := value.strip()):
                return stripped  # most texts
        else:
            if value is not None:
                self.wrong(at + name, f"must be a text, not {kind_of(value)}")
            elif required:
                self.missing(given, at, name, "a text")
            return None
        if lines and not value.isprintable() and _BREAKS.search(value):
            value = _BLANKS.sub(" ", _BREAKS.sub(" ", value))
        if len(value) > most:
            self.wrong(at + name, f"has {len(value)} characters, and the most is {most}")
            return None
        if not value.isprintable() and UNPRINTABLE.search(value):
            self.wrong(at + name, "holds a control character (NUL, a line break, ...): send plain text")
            return None
        value = value.strip()
        if not value and required:
            self.wrong(at + name, "is empty")
        return value or None

    def texts(self, given: dict[str, Any], at: str, longest: Mapping[str, int]) -> dict[str, str]:
        """Read optional texts with their most characters; all but an e-mail address are typed with lines."""
        read = {}
        for name, most in longest.items():
            value = self.text(given, at, name, required=False, most=most, lines=name != "email")
            if value is not None:
                read[name] = value
        return read

    def country(self, given: dict[str, Any], at: str) -> str | None:
        code = self.text(given, at, "country", required=False, most=255)
        if code is None:
            return None
        code = code.upper() if code.isascii() else code
        if code in _HINTS:
            self.wrong(
                at + "country",
                f"must be an ISO 3166 country, and there {code} is {_HINTS[code]}: send {_HINTS[code]}",
            )
        elif code != KOSOVO and not money.is_country(code):
            self.wrong(at + "country", "must be the two letters of an ISO 3166 country, such as DK")
        return code

    def url(self, given: dict[str, Any], at: str, name: str, *, app: bool = False) -> str | None:
        """Read the address of a page; with `app` it may have the scheme of an app instead of http(s)."""
        url = self.text(given, at, name, most=LONGEST_URL)
        if url is not None:
            problem = _url_problem(url, app=app)
            if problem is not None and not (app and _opens_app(url)):
                self.wrong(at + name, problem)
        return url

    def missing(self, given: dict[str, Any], at: str, name: str, wanted: str) -> None:
        said = "is null" if name in given else "is missing"
        self.wrong(at + name, f"{said}: it must be {wanted}")


def _opens_app(url: str) -> bool:
    fits = _APP_URL.fullmatch(url)
    return fits is not None and fits["scheme"].lower() not in _NO_APP


class _RepeatedName(Exception):  # noqa: N818 - never leaves this module
    """An object has two members of the same name."""


def repeated_name(raw: bytes, *, members: int = -1) -> str | None:
    """Return a name that one object of a valid JSON text has twice; None where there is none.

    `members` is how many members the decoded objects have: where the text has no more colons after a
    quotation mark, no member was lost, and the text is not read again. Our decoder keeps the last of
    them, other readers the first (RFC 8259, 4). Numbers stay text, so that their size costs nothing.
    """
    if _name_ends(raw) == members:
        return None
    try:
        json.loads(raw, object_pairs_hook=_distinct, parse_int=str, parse_float=str)
    except _RepeatedName as error:
        return str(error)
    except RecursionError:
        return None  # nested deeper than any field that is known, so it is refused for that
    return None


def _name_ends(raw: bytes) -> int:
    """Count the colons after a quotation mark, with or without blanks between."""
    if b" :" in raw or b"\t:" in raw or b"\r:" in raw or b"\n:" in raw:
        return len(_NAME_END.findall(raw))
    return raw.count(b'":')


def _distinct(members: list[tuple[str, object]]) -> None:
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        counts = Counter(names)
        raise _RepeatedName(next(name for name in names if counts[name] > 1))


def repeated(name: str) -> Problem:
    """Return what is said of a name that an object has twice."""
    return Problem(shown(name), "is given more than once in one object: send each name once")


def _url_problem(url: str, *, app: bool) -> str | None:
    fits = _URL.fullmatch(url)
    if fits is not None and 0 < int(fits["port"] or 443) <= LAST_PORT:
        return None
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in {"http", "https"}:
        kinds = "https:// (or http://)" + (", or with the scheme of an app, such as myshop://" if app else "")
        return f"must be a URL that starts with {kinds}"
    if scheme not in {"http", "https"}:
        return "must spell its scheme in small letters: https://"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return "must not carry a user name or password"
    if not authority or authority.startswith(":"):
        return "must name a host, as in https://shop.example/paid"
    if fits is not None:
        return f"has port {fits['port']}, and ports go from 1 to 65535"
    return "holds a character that no URL has: percent-encode spaces, quotes and letters beyond a-z (hosts in punycode)"


def hint(name: str, known: frozenset[str]) -> str:
    """Say which name was meant, or which there are."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here are {', '.join(sorted(known))}"


def kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | Decimal():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "an object"


def shown(name: str) -> str:
    """Return a name that a client chose, made safe to show."""
    return UNPRINTABLE.sub("?", name[:60]) + ("…" if len(name) > 60 else "")  # noqa: PLR2004 - long enough to recognise
