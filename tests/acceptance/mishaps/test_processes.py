"""The same between processes: API, two workers and the scheduler, and shoppers who all pay at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.support.world import world

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

ORDERS = 6


@pytest.mark.mishap("ok and notification at the same moment")
@pytest.mark.mishap("confirmation sent twice")
def test_oks_and_notifications_of_many_shoppers_at_once_pay_one_order_each_without_an_error_page(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with world(servers, database_url, tmp_path) as installation:
        installation.start_all(workers=2)
        plan = {"callbacks": {"simultaneous": True, "times": 2}}
        checkouts = [installation.order(plan=plan) for _ in range(ORDERS)]
        installation.until_all("awaiting_payment")
        with ThreadPoolExecutor(ORDERS) as shoppers:
            pages = list(shoppers.map(installation.pay, checkouts))
        assert [page.status_code for page in pages] == [303] * ORDERS
        for checkout, page in zip(checkouts, pages, strict=True):
            assert page.headers["location"].startswith("https://shop.example/thanks?")
            assert page.headers["location"].endswith(f"checkoutId={checkout}")
        installation.until_all("completed")
        installation.until(
            lambda: not installation.sql("SELECT 1 FROM callbacks WHERE handled_at IS NULL"),
            "every callback is read",
        )
        told = installation.sql(
            "SELECT checkout_id, count(*) AS times FROM events WHERE kind = 'checkout.completed' GROUP BY 1"
        )
        assert sorted((str(row["checkout_id"]), row["times"]) for row in told) == sorted(
            (checkout, 1) for checkout in checkouts
        )
        assert {row["role"] for row in installation.sql("SELECT role FROM payments")} == {"accepted"}
        assert installation.sql("SELECT count(*) AS orders FROM checkouts")[0]["orders"] == ORDERS
        assert not [
            row
            for order in installation.ledger().values()
            for payment in order["payments"]
            for row in payment["movements"]
        ]
        installation.agree()
