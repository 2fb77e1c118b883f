"""Money is converted between decimals and minor units exactly, or refused."""

from __future__ import annotations

from decimal import Decimal

import pycountry
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.money import (
    MoneyError,
    alpha_code,
    as_stored,
    decimal_or_none,
    exponent,
    for_gateway,
    is_country,
    is_same_currency,
    numeric_code,
    spelled,
    to_decimal,
    to_minor,
)
from orchestrator.errors import OrchestratorError

NOT_MONEY = {"XAG", "XAU", "XBA", "XBB", "XBC", "XBD", "XDR", "XPD", "XPT", "XSU", "XTS", "XUA", "XXX"}
CURRENCIES = sorted({entry.alpha_3 for entry in pycountry.currencies} - NOT_MONEY)

currencies = st.sampled_from(CURRENCIES)
minors = st.integers(min_value=-(10**17), max_value=10**17)


@pytest.mark.parametrize(
    ("currency", "decimals"),
    [
        ("DKK", 2),
        ("EUR", 2),
        ("JPY", 0),
        ("ISK", 0),
        ("XOF", 0),
        ("KWD", 3),
        ("TND", 3),
        ("CLF", 4),
        ("MGA", 2),
    ],
)
def test_a_currency_has_the_decimals_of_iso_4217(currency: str, decimals: int) -> None:
    assert exponent(currency) == decimals


@pytest.mark.parametrize("currency", ["", "DK", "dkk", "QQQ", "XXX", "XAU", "DKK ", "208", "D\u212aK"])
def test_an_unknown_currency_is_refused_by_name(currency: str) -> None:
    for ask in (exponent, numeric_code, lambda code: to_minor(1, code), lambda code: to_decimal(1, code)):
        with pytest.raises(MoneyError, match="ISO 4217") as caught:
            ask(currency)
        assert caught.value.currency == currency


@pytest.mark.parametrize(
    ("value", "currency", "minor"),
    [
        (Decimal("139.50"), "DKK", 13950),
        (139.5, "DKK", 13950),
        (0.1 + 0.2 - 0.3 + 19.99, "DKK", 1999),
        (4.35, "DKK", 435),
        (1.1, "KWD", 1100),
        ("10.000", "DKK", 1000),
        ("1e2", "JPY", 100),
        ("1.5E+3", "DKK", 150000),
        (12, "DKK", 1200),
        (100, "JPY", 100),
        ("100.00", "JPY", 100),
        ("0.0001", "CLF", 1),
        (-3, "EUR", -300),
        ("0e999999999", "EUR", 0),
        (0, "EUR", 0),
        ("9999999999999999.99", "DKK", 10**18 - 1),
    ],
)
def test_an_amount_becomes_minor_units(value: Decimal | float | str, currency: str, minor: int) -> None:
    assert to_minor(value, currency) == minor


@pytest.mark.parametrize(
    ("value", "currency"),
    [
        (10.005, "DKK"),
        ("10.005", "DKK"),
        ("0.001", "DKK"),
        (0.5, "JPY"),
        ("1.0001", "KWD"),
        ("1e-400", "EUR"),
        (1e-300, "EUR"),
        (Decimal("1e-999999999"), "EUR"),
        (Decimal("-7e-999999999999999999"), "JPY"),
    ],
)
def test_a_decimal_too_many_is_refused_not_rounded(value: float | str, currency: str) -> None:
    with pytest.raises(MoneyError, match="more decimals than") as caught:
        to_minor(value, currency)
    assert (caught.value.value, caught.value.currency) == (value, currency)


@pytest.mark.parametrize(
    "value",
    ["", "abc", "1,00", "NaN", "sNaN", "inf", float("nan"), float("-inf"), True, None, [1], (0, (1,), 0)],
)
def test_what_is_no_number_is_refused(value: object) -> None:
    with pytest.raises(MoneyError, match="is not an amount"):
        to_minor(value, "DKK")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    ["1e999999999", "-1e999999", Decimal("-1e999999999999999999"), "1e17", 10**16, "9" * 10_000, 1e300],
)
def test_an_amount_beyond_the_column_is_refused_before_it_is_multiplied_out(value: float | str) -> None:
    with pytest.raises(MoneyError, match="more than fits") as caught:
        to_minor(value, "DKK")
    assert len(str(caught.value)) < 140


def test_an_integer_of_more_digits_than_python_prints_is_refused() -> None:
    with pytest.raises(MoneyError, match="more than fits"):
        to_minor(-(10**5000), "DKK")


@given(minors, currencies)
def test_minor_units_survive_the_way_out_and_back(minor: int, currency: str) -> None:
    decimal = to_decimal(minor, currency)
    assert to_minor(decimal, currency) == minor
    assert to_minor(str(decimal), currency) == minor
    assert -decimal.as_tuple().exponent == exponent(currency)


@given(st.integers(min_value=-(10**9), max_value=10**9), currencies)
def test_a_json_number_means_what_its_sender_wrote(minor: int, currency: str) -> None:
    assert to_minor(float(str(to_decimal(minor, currency))), currency) == minor


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9), currencies)
def test_what_is_accepted_is_exact(value: Decimal, currency: str) -> None:
    try:
        minor = to_minor(value, currency)
    except MoneyError:
        assert value != round(value, exponent(currency))
    else:
        assert to_decimal(minor, currency) == value


@given(currencies)
def test_letters_and_number_name_the_same_currency(currency: str) -> None:
    number = numeric_code(currency)
    assert len(number) == 3
    assert alpha_code(number) == alpha_code(int(number)) == currency


@pytest.mark.parametrize("numeric", ["", "0", "999", 1000, -208, "DKK", "٢٠٨", "20.8"])
def test_an_unknown_number_is_refused(numeric: str | int) -> None:
    with pytest.raises(MoneyError, match="number of an ISO 4217 currency"):
        alpha_code(numeric)


def test_the_gateways_number_for_kroner() -> None:
    assert numeric_code("DKK") == "208"
    assert alpha_code("008") == alpha_code(8) == "ALL"


@pytest.mark.parametrize(
    ("code", "known"), [("DK", True), ("US", True), ("dk", False), ("XX", False), ("DNK", False), ("", False)]
)
def test_a_country_is_two_capitals_of_iso_3166(code: str, known: bool) -> None:
    assert is_country(code) is known


def test_a_money_error_is_our_error_and_a_value_error() -> None:
    assert issubclass(MoneyError, OrchestratorError)
    assert issubclass(MoneyError, ValueError)


# ── Currencies that were withdrawn or are unknown ───────────────────────────────────────────────────────


def test_every_currency_of_the_installed_list_is_known_with_its_number() -> None:
    theirs = {
        entry.alpha_3: entry.numeric for entry in pycountry.currencies if entry.alpha_3 not in NOT_MONEY
    }
    assert {code: numeric_code(code) for code in theirs} == theirs


@pytest.mark.parametrize(
    ("currency", "number", "minor", "amount"),
    [
        ("BGN", "975", 13900, "139.00"),
        ("HRK", "191", 1, "0.01"),
        ("ANG", "532", 100, "1.00"),
        ("SLL", "694", 100, "1.00"),
        ("BYR", "974", 100, "100"),
        ("TRL", "792", 100, "100"),
        ("DEM", "276", 199, "1.99"),
    ],
)
def test_a_withdrawn_currency_stays_readable(currency: str, number: str, minor: int, amount: str) -> None:
    assert numeric_code(currency) == number
    assert str(to_decimal(minor, currency)) == amount
    assert to_minor(amount, currency) == minor
    assert is_same_currency(currency, number)


def test_a_number_that_passed_on_belongs_to_both_of_its_currencies() -> None:
    assert alpha_code("532") == "XCG"
    assert is_same_currency("XCG", "532")
    assert is_same_currency("ANG", "532")
    assert is_same_currency("ALL", "8")
    assert not is_same_currency("EUR", "208")
    assert not is_same_currency("QQQ", "208")
    assert not is_same_currency("DKK", "")


@pytest.mark.parametrize("currency", ["QQQ", "", "dkk", "XAU", "Ⅷ"])
def test_what_is_stored_in_an_unknown_currency_is_still_shown(currency: str) -> None:
    assert decimal_or_none(13900, currency) is None
    assert spelled(13900, currency).startswith("13900 minor units of ")
    assert spelled(13900, currency).endswith(currency or "an unknown currency")
    assert (decimal_or_none(13900, "DKK"), spelled(13900, "DKK")) == (Decimal("139.00"), "139.00 DKK")


@pytest.mark.parametrize(
    ("minor", "currency", "sent"),
    [
        (1230, "KWD", "1.23"),
        (-10, "TND", "-0.01"),
        (12300, "CLF", "1.23"),
        (139, "JPY", "139"),
        (13950, "DKK", "139.50"),
    ],
)
def test_the_gateway_is_sent_two_decimals_at_most(minor: int, currency: str, sent: str) -> None:
    assert str(for_gateway(minor, currency)) == sent


@pytest.mark.parametrize(("minor", "currency"), [(1234, "KWD"), (1, "BHD"), (12345, "UYW")])
def test_a_decimal_that_the_gateway_does_not_hold_is_refused(minor: int, currency: str) -> None:
    with pytest.raises(MoneyError, match="more decimals than the gateway holds"):
        for_gateway(minor, currency)


def test_an_amount_that_could_not_be_read_stands_as_it_was_written() -> None:
    raw = {"reserved": "1.990,50"}
    assert as_stored(0, "ISK", "reserved", raw) == "“1.990,50” ISK"
    assert as_stored(0, "", "reserved", {**raw, "currency": "QQQ"}) == "“1.990,50” QQQ"
    assert as_stored(0, "", "reserved", raw) == "“1.990,50”"
    assert as_stored(1990, "ISK", "captured", raw) == "1990 ISK"
    assert as_stored(1990, "ISK", "captured", None) == "1990 ISK"
    assert spelled(123456789, "DKK", grouped=True) == "1,234,567.89 DKK"
