"""Money, currencies and countries: exact, or refused.

Outside, money is a decimal number; inside, it is an integer count of a currency's minor unit. The two functions that cross
that border never round: an amount with more non-zero decimals than its currency has is refused, and so is one that would
not fit into the column that holds it. Codes come from `pycountry` (ISO 4217 and 3166-1), the number of decimals from our own
literal, because `pycountry` does not carry it. Codes are upper case; whoever takes them from outside changes the case.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Final

import pycountry

from orchestrator.errors import OrchestratorError

# ISO 4217, table A.1, column "minor unit": every code whose entry is not 2.
_DECIMALS_OTHER_THAN_TWO: Final = {
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
    **dict.fromkeys("CLF UYW".split(), 4),
}
# Codes whose minor unit is "N.A.", so nobody pays in them: metals, units of account, the test code, "no currency".
_NOT_MONEY: Final = frozenset("XAG XAU XBA XBB XBC XBD XDR XPD XPT XSU XTS XUA XXX".split())

# Eighteen digits fit into a signed 64-bit column with room for sums of a few amounts.
MOST_DIGITS: Final = 18
_MOST_BITS: Final = 1024


class MoneyError(OrchestratorError, ValueError):
    """An amount or a currency that cannot be represented exactly; `value` and `currency` keep what was given."""

    def __init__(self, reason: str, *, value: object = None, currency: object = None) -> None:
        super().__init__(reason)
        self.value = value
        self.currency = currency


@cache
def _numeric_by_alpha() -> dict[str, str]:
    return {entry.alpha_3: entry.numeric for entry in pycountry.currencies if entry.alpha_3 not in _NOT_MONEY}


@cache
def _alpha_by_numeric() -> dict[str, str]:
    return {numeric: alpha for alpha, numeric in _numeric_by_alpha().items()}


@cache
def _countries() -> frozenset[str]:
    return frozenset(entry.alpha_2 for entry in pycountry.countries)


def exponent(currency: str) -> int:
    """Return how many decimals a currency has: 2 for DKK, 0 for JPY, 3 for KWD; `MoneyError` for an unknown code."""
    _known(currency)
    return _DECIMALS_OTHER_THAN_TWO.get(currency, 2)


def to_minor(value: Decimal | float | str, currency: str) -> int:
    """Return an amount in minor units, exactly: 139.5 DKK is 13950.

    A float counts as the shortest decimal that denotes it (its `repr`), which is what the sender of a JSON number wrote.
    `MoneyError` if it is no finite number, has more non-zero decimals than the currency, or more than 18 digits.
    """
    decimals = exponent(currency)
    amount = _finite(value)
    if amount is None:
        reason = f"{_shown(value)} is not an amount: expected a decimal number such as 139.00"
        raise MoneyError(reason, value=value, currency=currency)
    if amount.is_zero():
        return 0
    # The size is judged before anything is multiplied out: 1e999999999 is nine characters of input.
    if amount.adjusted() + 1 + decimals > MOST_DIGITS:
        reason = f"{_shown(value)} {currency} is more than fits: at most {MOST_DIGITS - decimals} digits before the point"
        raise MoneyError(reason, value=value, currency=currency)
    sign, digits, power = amount.as_tuple()
    shift = int(power) + decimals  # a finite number's exponent is an integer
    significant = "".join(map(str, digits))
    if shift < 0:
        significant, dropped = significant[:shift] or "0", significant[shift:]
        if dropped.strip("0") or -shift > len(digits):
            reason = f"{_shown(value)} {currency} has more decimals than {currency} has ({decimals})"
            raise MoneyError(reason, value=value, currency=currency)
        shift = 0
    minor = int(significant + "0" * shift)
    return -minor if sign else minor


def to_decimal(minor: int, currency: str) -> Decimal:
    """Return minor units as the decimal amount with all of its currency's decimals: 13950 DKK is Decimal('139.50')."""
    digits = tuple(map(int, str(abs(minor))))
    return Decimal((int(minor < 0), digits, -exponent(currency)))


def spelled(minor: int, currency: str) -> str:
    """Return minor units as people read them: 13950 DKK is "139.50 DKK"; of a currency that nobody knows, the bare number."""
    try:
        return f"{to_decimal(minor, currency)} {currency}"
    except MoneyError:
        return f"{minor} of an unknown currency"


def numeric_code(currency: str) -> str:
    """Return the three digits of a currency, as the gateway's callbacks and checksums name it: "208" for DKK."""
    return _known(currency)


def alpha_code(numeric: str | int) -> str:
    """Return the letters of a currency given by number: "DKK" for 208 or "208", "ALL" for 8 or "008"."""
    text = str(numeric)
    alpha = _alpha_by_numeric().get(text.zfill(3)) if text.isascii() and text.isdigit() else None
    if alpha is None:
        reason = f"{_shown(numeric)} is not the number of an ISO 4217 currency, such as 208"
        raise MoneyError(reason, currency=numeric)
    return alpha


def is_country(code: str) -> bool:
    """Tell whether this is an ISO 3166-1 alpha-2 code in upper case."""
    return code in _countries()


def _finite(value: object) -> Decimal | None:
    """Read what should be a number; nothing if it is none, or an infinite one."""
    match value:
        case bool():  # an int to Python, but nobody's amount
            return None
        case float():
            amount = Decimal(repr(value))
        case Decimal() | int():
            amount = Decimal(value)
        case str():
            try:
                amount = Decimal(value)
            except InvalidOperation:
                return None
        case _:
            return None
    return amount if amount.is_finite() else None


def _known(currency: str) -> str:
    numeric = _numeric_by_alpha().get(currency)
    if numeric is None:
        reason = f"{_shown(currency)} is not the code of an ISO 4217 currency, such as DKK"
        raise MoneyError(reason, currency=currency)
    return numeric


def _shown(value: object) -> str:
    """Quote what was given, cut to a length that is safe to print."""
    longest = 40
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return (
            "an integer of hundreds of digits or more"  # Python itself refuses to write out more than 4,300
        )
    text = str(value) if isinstance(value, int | float | Decimal) else repr(value)
    return text if len(text) <= longest else text[:longest] + "…"
