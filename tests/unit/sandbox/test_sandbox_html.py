"""Amounts on the pages of the sandbox."""

from __future__ import annotations

import pytest

from orchestrator.devkit.sandbox import html


@pytest.mark.parametrize(
    ("minor", "currency", "shown"),
    [(13900, "DKK", "139.00"), (387357, "JPY", "387357"), (1500, "KWD", "1.500"), (0, "JPY", "0")],
)
def test_amounts_have_the_decimals_of_their_currency(minor, currency, shown):
    assert html.amount(minor, currency) == shown
