"""A customer is erased on a running installation: no process has logged a text of theirs, no key of Redis has
it, and no table has it afterwards.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import httpx
import psycopg
import redis

from orchestrator.store.tables import metadata
from tests.support.pooler import direct
from tests.support.scene import intent
from tests.support.world import World, world

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded

MARKER = "Zoe-Quist-marker-5093"
FORMS = (MARKER, MARKER.encode().hex(), MARKER.replace("-", "%2D"))


def handed_over(shop: World) -> str:
    """Hand an order over with the marker in its texts; return its checkout's id."""
    body = json.loads(intent("P-1001"))
    address = {"street": MARKER, "city": MARKER, "country": "DK", "zipCode": "1000"}
    body["order"]["customer"] = {
        "firstName": MARKER,
        "lastName": MARKER,
        "email": f"{MARKER}@shop.example",
        "billingAddress": address,
    }
    body["order"]["orderLines"][0]["description"] = MARKER
    body["userAgent"] = MARKER
    answer = shop.http.post(f"{shop.api_url}/v1/checkouts", json=body)
    assert answer.status_code == 202, answer.text
    # Refused, with the marker in a field that is not known and in one that is wrong.
    body["order"]["orderId"] = "P-1002"
    wrong = {**body, MARKER: MARKER, "expiresIn": MARKER}
    assert shop.http.post(f"{shop.api_url}/v1/checkouts", json=wrong).status_code == 422
    return str(answer.json()["id"])


def everything_in_redis(url: str) -> str:
    with redis.Redis.from_url(url) as broker:
        return " ".join(
            f"{key.decode('latin-1')} {(broker.dump(key) or b'').decode('latin-1')}"
            for key in broker.scan_iter("*")
        )


def everything_in_postgres(shop: World) -> str:
    with psycopg.connect(direct(shop.database_url)) as db:
        return " ".join(
            row
            for table in metadata.tables
            for (row,) in db.execute(f"SELECT t::text FROM {table} t").fetchall()
        )


def test_no_log_line_no_key_of_redis_and_no_table_has_a_text_of_an_erased_customer(
    servers: Embedded, database_url: str, tmp_path: Path
):
    with world(servers, database_url, tmp_path, access_log=True, log_level="debug") as shop:
        shop.start_all()
        checkout = handed_over(shop)
        shop.until_state(checkout, "awaiting_payment")
        shop.pay(checkout)
        shop.until_state(checkout, "completed")
        strange = httpx.post(
            f"{shop.api_url}/callbacks/notification/{checkout}/{MARKER}",
            content=f"cardholder={MARKER}",
            headers={"User-Agent": MARKER},
        )
        assert strange.status_code == 404
        key = {"Idempotency-Key": "capture-1"}
        asked = {"amount": "all", "reason": MARKER}
        captured = shop.http.post(f"{shop.api_url}/v1/checkouts/{checkout}/capture", json=asked, headers=key)
        assert captured.status_code == 202, captured.text
        shop.until_operation(checkout, "succeeded")
        shop.until(lambda: not shop.sql("SELECT id FROM callbacks WHERE handled_at IS NULL"), "all are read")
        money = shop.sql("SELECT reserved, captured, refunded FROM checkouts")

        def erased() -> bool:
            return shop.command("checkouts", "erase", checkout, "--yes").returncode == 0

        shop.until(erased, "no worker holds it")
        told = shop.checkout(checkout)
        assert (told["paymentStatus"], told["erasedAt"] is not None) == ("captured", True)
        trail = shop.api().get(f"/v1/checkouts/{checkout}/audit")
        assert "(erased)" in json.dumps(trail)
        assert shop.sql("SELECT reserved, captured, refunded FROM checkouts") == money
        shop.agree()
        for name in list(shop.running):
            shop.stop(name)
        places = {
            **{path.name: path.read_text() for path in tmp_path.glob("*.log")},
            "redis": everything_in_redis(shop.redis_url),
            "postgres": everything_in_postgres(shop),
        }
        found = {
            (place, form) for place, said in places.items() for form in FORMS if form.lower() in said.lower()
        }
        # The sandbox stands in for the gateway: what it holds is not ours.
        assert {(place, form) for place, form in found if "sandbox" not in place} == set()
