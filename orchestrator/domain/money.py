"""Money, currencies and countries: exact, or refused.

Outside, money is a decimal number; inside, it is an integer count of a currency's minor unit. The two
functions that cross that border never round: an amount with more non-zero decimals than its currency has is
refused, and so is one that would not fit into the column that holds it. The currencies are literals here, and
none is ever taken out: what was accepted once must stay readable, also after ISO 4217 withdrew the currency.
Countries come from `pycountry` (ISO 3166-1). Codes are upper case; code that takes them from outside changes
the case.
"""

from __future__ import annotations

from decimal import MAX_PREC, Context, Decimal, Inexact, InvalidOperation, Overflow
from functools import cache
from typing import TYPE_CHECKING, Final

import pycountry

from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Mapping

# ISO 4217, table A.1: code and number, by minor units. Codes whose minor unit is "N.A." are left out, because
# no payment is made in them: metals, units of account, the test code, "no currency".
_LISTED: Final = {
    2: """
        AED784 AFN971 ALL008 AMD051 AOA973 ARS032 AUD036 AWG533 AZN944 BAM977 BBD052 BDT050 BMD060
        BND096 BOB068 BOV984 BRL986 BSD044 BTN064 BWP072 BYN933 BZD084 CAD124 CDF976 CHE947 CHF756
        CHW948 CNY156 COP170 COU970 CRC188 CUP192 CVE132 CZK203 DKK208 DOP214 DZD012 EGP818 ERN232
        ETB230 EUR978 FJD242 FKP238 GBP826 GEL981 GHS936 GIP292 GMD270 GTQ320 GYD328 HKD344 HNL340
        HTG332 HUF348 IDR360 ILS376 INR356 IRR364 JMD388 KES404 KGS417 KHR116 KPW408 KYD136 KZT398
        LAK418 LBP422 LKR144 LRD430 LSL426 MAD504 MDL498 MGA969 MKD807 MMK104 MNT496 MOP446 MRU929
        MUR480 MVR462 MWK454 MXN484 MXV979 MYR458 MZN943 NAD516 NGN566 NIO558 NOK578 NPR524 NZD554
        PAB590 PEN604 PGK598 PHP608 PKR586 PLN985 QAR634 RON946 RSD941 RUB643 SAR682 SBD090 SCR690
        SDG938 SEK752 SGD702 SHP654 SLE925 SOS706 SRD968 SSP728 STN930 SVC222 SYP760 SZL748 THB764
        TJS972 TMT934 TOP776 TRY949 TTD780 TWD901 TZS834 UAH980 USD840 USN997 UYU858 UZS860 VED926
        VES928 WST882 XAD396 XCD951 XCG532 YER886 ZAR710 ZMW967 ZWG924
    """,
    0: """
        BIF108 CLP152 DJF262 GNF324 ISK352 JPY392 KMF174 KRW410 PYG600 RWF646 UGX800 UYI940 VND704
        VUV548 XAF950 XOF952 XPF953
    """,
    3: """
        BHD048 IQD368 JOD400 KWD414 LYD434 OMR512 TND788
    """,
    4: """
        CLF990 UYW927
    """,
}
# ISO 4217, table A.3, as far as a payment can have been made in them: withdrawn, and still readable. A number
# may have passed on to a listed currency (532 is XCG now, and was ANG).
_RETIRED: Final = {
    2: """
        AFA004 ANG532 AON024 AOR982 ATS040 AYM945 AZM031 BGL100 BGN975 CHC948 CSD891 CUC931 CYP196
        DEM276 ECS218 ECV983 EEK233 FIM246 FRF250 GEK268 GHC288 GWP624 HRD191 HRK191 IEP372 LTL440
        LTT440 LVL428 LVR428 MRO478 MTL470 MZM508 NLG528 PLZ616 ROL642 RUR810 SDD736 SIT705 SKK703
        SLL694 SRG740 STD678 TJR762 TMM795 UAK804 USS998 VEB862 VEF937 YUM891 ZMK894 ZRN180 ZWD716
        ZWL932 ZWN942 ZWR935
    """,
    0: """
        ADP020 BEF056 BYB112 BYR974 ESP724 GRD300 ITL380 LUF442 MGF450 PTE620 TPE626 TRL792
    """,
}

# Eighteen digits fit into a signed 64-bit column with room for sums of a few amounts.
MOST_DIGITS: Final = 18
GATEWAY_DECIMALS: Final = 2
"""Decimals that the gateway holds at most, whatever the currency has (D4)."""
_MOST_BITS: Final = 1024


_EXACT: Final = Context(
    prec=MOST_DIGITS,
    Emax=MOST_DIGITS - 1,
    Emin=1 - MOST_DIGITS,
    traps=[Inexact, InvalidOperation, Overflow],
)
"""Refuses what is larger, has more digits, or has a fraction."""
_WIDE: Final = Context(prec=MAX_PREC, traps=[InvalidOperation])


class MoneyError(OrchestratorError, ValueError):
    """An amount or a currency that cannot be represented exactly; `value` and `currency` keep
    what was given.
    """

    def __init__(self, reason: str, *, value: object = None, currency: object = None) -> None:
        super().__init__(reason)
        self.value = value
        self.currency = currency


def _entries(*tables: dict[int, str]) -> dict[str, tuple[str, int]]:
    return {
        entry[:3]: (entry[3:], decimals)
        for table in tables
        for decimals, entries in table.items()
        for entry in entries.split()
    }


_CURRENCIES: Final = _entries(_RETIRED, _LISTED)
# Later entries win: a number belongs to the listed currency and not to a withdrawn one.
_ALPHA_BY_NUMERIC: Final = {number: alpha for alpha, (number, _) in _CURRENCIES.items()}


@cache
def _countries() -> frozenset[str]:
    return frozenset(entry.alpha_2 for entry in pycountry.countries)


def exponent(currency: str) -> int:
    """Return how many decimals a currency has: 2 for DKK, 0 for JPY, 3 for KWD; `MoneyError` for an unknown
    code.
    """
    return _known(currency)[1]


def to_minor(value: Decimal | float | str, currency: str) -> int:
    """Return an amount in minor units, exactly: 139.5 DKK is 13950.

    A float counts as the shortest decimal that denotes it (its `repr`), which is what the sender of a JSON
    number wrote. `MoneyError` if it is no finite number, has more non-zero decimals than the currency, or
    more than 18 digits.
    """
    decimals = exponent(currency)
    amount = _finite(value)
    if amount is None:
        reason = f"{_shown(value)} is not an amount: expected a decimal number such as 139.00"
        raise MoneyError(reason, value=value, currency=currency)
    try:
        return int(_EXACT.to_integral_exact(_EXACT.scaleb(amount, decimals)))
    except ArithmeticError as error:
        if amount.adjusted() + 1 + decimals > MOST_DIGITS:
            reason = f"{_shown(value)} {currency} is more than fits: at most {MOST_DIGITS - decimals} digits before the point"
        else:
            reason = f"{_shown(value)} {currency} has more decimals than {currency} has ({decimals})"
        raise MoneyError(reason, value=value, currency=currency) from error


def to_decimal(minor: int, currency: str) -> Decimal:
    """Return minor units as the decimal amount with all of its currency's decimals: 13950 DKK is
    Decimal('139.50').
    """
    return Decimal(minor).scaleb(-exponent(currency), _WIDE)


def decimal_or_none(minor: int, currency: str) -> Decimal | None:
    """Return minor units as `to_decimal` does; None for an unknown currency, whose decimals are
    unknown too.
    """
    known = _CURRENCIES.get(currency)
    return None if known is None else Decimal(minor).scaleb(-known[1], _WIDE)


def spelled(minor: int, currency: str, *, grouped: bool = False) -> str:
    """Return minor units as people read them: 13950 DKK is "139.50 DKK".

    It raises for nothing that is stored.

    `grouped` separates thousands.

    Of a currency that is not known, the minor units and the code as it stands: "13950 minor units of QQQ".
    """
    amount = decimal_or_none(minor, currency)
    if amount is None:
        return f"{minor} minor units of {currency or 'an unknown currency'}"
    return f"{amount:,} {currency}" if grouped else f"{amount} {currency}"


def as_stored(
    minor: int, currency: str, name: str, raw: Mapping[str, str] | None, *, grouped: bool = False
) -> str:
    """Return one amount of a payment for people; where `raw` has its `name`, it could not be read, and the
    gateway's text is returned.
    """
    if not raw or name not in raw:
        return spelled(minor, currency, grouped=grouped)
    return f"“{raw[name]}” {raw.get('currency') or currency}".rstrip()


def for_gateway(minor: int, currency: str) -> Decimal:
    """Return minor units as the gateway takes them: with at most two decimals (D4), so 1230 KWD is
    Decimal('1.23').

    `MoneyError` for an unknown currency, and for a third decimal that is not zero.
    """
    amount = to_decimal(minor, currency)
    if exponent(currency) <= GATEWAY_DECIMALS:
        return amount
    rounded = amount.quantize(Decimal((0, (1,), -GATEWAY_DECIMALS)))
    if rounded != amount:
        reason = f"{amount} {currency} has more decimals than the gateway holds ({GATEWAY_DECIMALS})"
        raise MoneyError(reason, value=amount, currency=currency)
    return rounded


def numeric_code(currency: str) -> str:
    """Return the three digits of a currency, as the gateway's callbacks and checksums name it:
    "208" for DKK.
    """
    return _known(currency)[0]


def alpha_code(numeric: str | int) -> str:
    """Return the letters of a currency given by number: "DKK" for 208 or "208", "ALL" for 8 or "008"."""
    text = str(numeric)
    alpha = _ALPHA_BY_NUMERIC.get(text.zfill(3)) if text.isascii() and text.isdigit() else None
    if alpha is None:
        reason = f"{_shown(numeric)} is not the number of an ISO 4217 currency, such as 208"
        raise MoneyError(reason, currency=numeric)
    return alpha


def is_same_currency(alpha: str, numeric: str) -> bool:
    """Say whether letters and number name one currency; a number that passed on belongs to both of its
    currencies.
    """
    entry = _CURRENCIES.get(alpha)
    return entry is not None and numeric.isascii() and numeric.isdigit() and entry[0] == numeric.zfill(3)


def is_country(code: str) -> bool:
    """Tell whether this is an ISO 3166-1 alpha-2 code in upper case."""
    return code in _countries()


def _finite(value: object) -> Decimal | None:
    """Read what should be a number; nothing if it is none, or an infinite one."""
    match value:
        case Decimal():
            amount = value
        case bool():  # an int to Python, but no amount
            return None
        case float():
            amount = Decimal(repr(value))
        case int():
            amount = Decimal(value)
        case str():
            try:
                amount = Decimal(value)
            except InvalidOperation:
                return None
        case _:
            return None
    return amount if amount.is_finite() else None


def _known(currency: str) -> tuple[str, int]:
    """Return number and decimals of a currency."""
    entry = _CURRENCIES.get(currency)
    if entry is None:
        reason = f"{_shown(currency)} is not the code of an ISO 4217 currency, such as DKK"
        raise MoneyError(reason, currency=currency)
    return entry


def _shown(value: object) -> str:
    """Quote what was given, cut to a length that is safe to print."""
    longest = 40
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return (
            "an integer of hundreds of digits or more"  # Python itself refuses to write out more than 4,300
        )
    text = str(value) if isinstance(value, int | float | Decimal) else repr(value)
    return text if len(text) <= longest else text[:longest] + "…"
