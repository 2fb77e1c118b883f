from __future__ import annotations

import json
from decimal import Decimal
from uuid import UUID

import pytest

from orchestrator.audit import Action, archive
from orchestrator.domain.states import Trigger
from orchestrator.store import checkouts
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent

pytestmark = pytest.mark.anyio


async def shown(api: Api, checkout: str) -> dict:
    answer = await api.get(f"/v1/checkouts/{checkout}")
    assert answer.status_code == 200, answer.text
    return json.loads(answer.content, parse_float=Decimal)


async def test_a_fresh_checkout_is_shown_without_a_session(api: Api):
    found = await shown(api, await api.taken("A-1"))
    assert (found["orderId"], found["state"], found["outcome"], found["version"]) == (
        "A-1",
        "received",
        None,
        1,
    )
    assert found["amount"] == {"value": Decimal("139.00"), "currency": "DKK"}
    assert found["money"] == {"reserved": 0, "captured": 0, "refunded": 0, "chargedBack": 0}
    assert (found["autoCapture"], found["reservedUntil"], found["operations"], found["commands"]) == (
        False,
        None,
        [],
        [],
    )
    assert (found["session"], found["paymentMethods"], found["payments"], found["attention"]) == (
        None,
        [],
        [],
        None,
    )
    assert found["deadline"] > found["createdAt"]
    assert found["dueAt"]


async def test_an_offered_checkout_shows_its_session_and_methods(api: Api):
    checkout = await api.taken()
    await api.offer(checkout, token="t-1")
    found = await shown(api, checkout)
    assert (found["session"]["id"], found["session"]["token"]) == ("session-1", "t-1")
    assert found["session"]["expiresAt"]
    assert found["paymentMethods"] == [{"id": "m-1"}]


@pytest.mark.parametrize(
    "change",
    ["UPDATE checkouts SET cancel_requested_at = clock()", "UPDATE checkouts SET deadline = clock() - interval '1 second'",
     "UPDATE checkouts SET state = 'completed'", "UPDATE checkouts SET state = 'session_created'",
     "UPDATE sessions SET token_expires_at = clock()", "UPDATE intents SET data_key = NULL"],
)  # fmt: skip
async def test_a_session_that_must_not_be_used_is_not_shown(api: Api, change):
    checkout = await api.taken()
    await api.offer(checkout)
    await api.sql(change)
    found = await shown(api, checkout)
    assert found["session"] is None
    assert found["paymentMethods"] == []


async def test_money_and_payments_are_exact_decimal_numbers(api: Api):
    checkout = await api.taken()
    await api.sql(
        "UPDATE checkouts SET reserved = 1010, captured = 90071992547409913, late = true, state = 'completed'"
    )
    await api.sql(
        "INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, "
        "reserved, captured, refunded) VALUES (1, '7', :id, 'A-1', 'accepted', 'bound', 'preauth', 'reserved', 'DKK', 13900, 0, 12)",
        id=UUID(checkout),
    )
    found = await shown(api, checkout)
    assert found["money"] == {
        "reserved": Decimal("10.10"),
        "captured": Decimal("900719925474099.13"),
        "refunded": Decimal(0),
        "chargedBack": Decimal(0),
    }
    assert (found["outcome"], found["paymentStatus"], found["late"]) == ("paid", "captured", True)
    (payment,) = found["payments"]
    assert (payment["transactionId"], payment["reserved"], payment["refunded"]) == (
        "7",
        Decimal("139.00"),
        Decimal("0.12"),
    )


async def test_a_currency_without_decimals_is_shown_without(api: Api):
    checkout = await api.taken()
    await api.sql("UPDATE checkouts SET currency = 'JPY'")
    assert b'"value":13900,' in (await api.get(f"/v1/checkouts/{checkout}")).content


@pytest.mark.parametrize("currency", ["BGN", "HRK", "ANG"])
async def test_money_of_a_withdrawn_currency_is_shown_as_before(api: Api, currency):
    checkout = await api.taken()
    await api.sql("UPDATE checkouts SET currency = :currency", currency=currency)
    found = await shown(api, checkout)
    assert found["amount"] == {"value": Decimal("139.00"), "currency": currency}
    assert found["raw"] is None


async def test_stored_money_of_an_unknown_currency_is_shown_in_minor_units(api: Api):
    checkout = await api.taken("A-1")
    await api.sql("UPDATE checkouts SET currency = 'QQQ', reserved = 13900")
    await api.sql(
        "INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, "
        "reserved, captured, refunded) VALUES (1, '7', :id, 'A-1', 'accepted', 'bound', 'preauth', 'reserved', 'QQQ', 13900, 0, 0)",
        id=UUID(checkout),
    )
    await api.sql(
        "INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state, "
        "reconciliation_identifier, cause, actor) VALUES (:id, 1, :id, '7', 'capture', 5, 'QQQ', 'succeeded', 'r', 'asked', 'a')",
        id=UUID(checkout),
    )
    listed = (await api.get("/v1/checkouts")).json()["checkouts"]
    for found in (await shown(api, checkout), listed[0]):
        assert found["amount"] == {"value": None, "currency": "QQQ"}
        assert found["money"] == dict.fromkeys(("reserved", "captured", "refunded", "chargedBack"))
        assert found["raw"] == {
            "amount": "13900 minor units of QQQ",
            "reserved": "13900 minor units of QQQ",
        }
    whole = await shown(api, checkout)
    assert whole["operations"][0]["amount"] is None
    for payment in (whole["payments"][0], (await api.get("/v1/payments")).json()["payments"][0]):
        assert (payment["reserved"], payment["captured"]) == (None, None)
        assert payment["raw"] == {"reserved": "13900 minor units of QQQ"}
    explained = await api.get(f"/v1/checkouts/{checkout}/explain")
    assert explained.status_code == 200
    assert "13900 minor units of QQQ" in explained.text
    headers = {**api.bearer(scopes=("money:write",)), "Idempotency-Key": "k-1"}
    refund = await api.client.post(f"/v1/checkouts/{checkout}/refund", json={"amount": 1}, headers=headers)
    assert refund.status_code in {409, 422}, refund.text


async def test_an_amount_that_cannot_be_read_is_null_and_stands_beside_as_written(api: Api):
    checkout = await api.taken("A-1")
    await api.sql(
        "INSERT INTO payments (merchant_id, transaction_id, checkout_id, order_ref, role, binding, status, meaning, currency, "
        "reserved, captured, refunded, raw_amounts) VALUES (1, '7', :id, 'A-1', 'unknown', 'bound', 'preauth', 'unknown', 'ISK', "
        """0, 12, 0, '{"reserved": "1990.50"}')""",
        id=UUID(checkout),
    )
    (payment,) = (await shown(api, checkout))["payments"]
    assert (payment["reserved"], payment["captured"], payment["raw"]) == (
        None,
        Decimal(12),
        {"reserved": "1990.50"},
    )
    (listed,) = (await api.get("/v1/payments?role=unknown")).json()["payments"]
    assert (listed["reserved"], listed["captured"], listed["raw"]) == (None, 12, {"reserved": "1990.50"})


@pytest.mark.parametrize("path", ["", "/audit"])
@pytest.mark.parametrize("checkout", ["019aa000-0000-7000-8000-000000000001", "A-1", "batches"])
async def test_an_unknown_checkout_is_404(api: Api, checkout, path):
    assert (
        checkout
        in problem(await api.get(f"/v1/checkouts/{checkout}{path}"), 404, "unknown-checkout")["detail"]
    )


async def test_a_merchant_sees_its_own_checkouts_only(api: Api):
    checkout = await api.taken("A-1")
    await api.services.merchants.add(
        "other",
        gateway_url="http://127.0.0.1:9",
        merchant_api_url=None,
        username="u",
        password="p",
        callback_secrets=(),
    )
    for path in ("", "/audit"):
        problem(await api.get(f"/v1/checkouts/{checkout}{path}", merchant="other"), 404, "unknown-checkout")
    cancelled = await api.client.post(f"/v1/checkouts/{checkout}/cancel", headers=api.bearer("other"))
    problem(cancelled, 404, "unknown-checkout")
    assert (await api.get("/v1/checkouts", merchant="other")).json()["checkouts"] == []
    assert (await api.get("/v1/checkouts", merchant="other", orderId="A-1")).json()["checkouts"] == []
    assert await api.count("commands") == 0
    assert (await api.post(intent("A-1"), merchant="other")).status_code == 202


# ── Lists ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_pages_follow_each_other_without_gap_or_repeat(api: Api):
    batch = [intent(f"A-{number}") for number in range(7)]
    results = (await api.post(batch, path="/v1/checkouts/batch")).json()["results"]
    expected = sorted((result["checkout"]["id"] for result in results), reverse=True)
    seen, cursor = [], None
    for expected_size in (3, 3, 1):
        answer = (await api.get("/v1/checkouts", limit=3, **({"cursor": cursor} if cursor else {}))).json()
        assert len(answer["checkouts"]) == expected_size
        seen += [checkout["id"] for checkout in answer["checkouts"]]
        cursor = answer["nextCursor"]
    assert cursor is None
    assert seen == expected


FILL = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, currency, amount, audit_sequence, audit_head, correlation_id)
    SELECT (lpad(to_hex(1700000000000 + n), 12, '0') || '70008000000000000000')::uuid,
           CASE WHEN n % 5000 = 1 THEN :small ELSE 1 END, 'o-' || n,
           CASE WHEN n % 400 = 0 THEN 'failed' ELSE 'completed' END, clock(), 'DKK', 1, 1, '', '' FROM generate_series(1, 20000) n
"""


async def test_what_is_rare_is_listed_without_reading_what_is_not(api: Api):
    """Without their indexes these read twenty thousand rows; statistics of the table are those of a busy
    installation.
    """
    (merchant,) = await api.sql("INSERT INTO merchants (name) VALUES ('small') RETURNING id")
    await api.sql(FILL, small=merchant.id)
    young = await api.taken()
    await api.sql("ANALYZE checkouts")
    before = await _scans(api)
    for words, wanted, number in (
        ({"merchant": "small"}, None, 4),
        ({}, ["received"], 1),
        ({}, ["received", "awaiting_payment", "failed"], 50),
        ({}, ["failed"], 50),
        ({"merchant": "small"}, ["failed", "expired"], 0),
    ):
        found = await api.get("/v1/checkouts", **words, **({} if wanted is None else {"state": wanted}))
        assert len(found.json()["checkouts"]) == number, (words, wanted)
    assert found.status_code == 200
    assert young in {
        checkout["id"] for checkout in (await api.get("/v1/checkouts", state="received")).json()["checkouts"]
    }
    assert await _scans(api) == before
    used = await api.sql("SELECT indexrelname FROM pg_stat_user_indexes WHERE idx_scan > 0")
    assert {"ix_checkouts_listing", "ix_checkouts_open"} <= {row.indexrelname for row in used}


async def _scans(api: Api) -> int:
    """Return how many times the whole table was read, as Postgres counts."""
    await api.sql("SELECT pg_stat_force_next_flush()")
    (row,) = await api.sql("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'checkouts'")
    return row.seq_scan


async def test_a_list_is_filtered_by_order_state_and_attention(api: Api):
    first, second = await api.taken("A-1"), await api.taken("A-2")
    await api.sql(
        "UPDATE checkouts SET state = 'cancelled', attention = 'late_payment' WHERE id = :id", id=UUID(first)
    )
    third = (await api.post(intent("A-1", expiresIn=60))).json()["id"]

    async def ids(**params: object) -> list[str]:
        return [checkout["id"] for checkout in (await api.get("/v1/checkouts", **params)).json()["checkouts"]]

    assert await ids(orderId="A-1") == [third, first]
    assert await ids(orderId="A-1", state="received") == [third]
    assert await ids(orderId="A-1", cursor=third) == [first]
    assert await ids(orderId="A/1") == []
    assert await ids(state="cancelled") == [first]
    assert await ids(state=["cancelled", "received"]) == [third, second, first]
    assert await ids(attention="true") == [first]
    assert await ids(attention="false") == [third, second]
    assert await ids(attention="late_payment") == [first]
    assert await ids(attention="open_payment") == []


async def test_what_needs_a_decision_and_what_failed_is_shown_as_data_and_as_a_sentence(api: Api):
    checkout = await api.taken("A-1")
    payments = [
        {"transaction_id": "8", "amount": 13900, "currency": "DKK"},
        {"transaction_id": "9", "amount": None, "currency": ""},
    ]
    await api.sql(
        "UPDATE checkouts SET attention = 'surplus_payment', attention_details = CAST(:details AS jsonb), "
        "attention_since = '2026-01-05 10:00:00+00', last_error = 'unknown', last_error_details = CAST(:facts AS jsonb) WHERE id = :id",
        id=UUID(checkout),
        details=json.dumps({"payments": payments}),
        facts=json.dumps({"reason": "The gateway answered HTTP 503."}),
    )
    wanted = {
        "code": "surplus_payment",
        "message": "transactions 8, 9 also hold money for this order",
        "since": "2026-01-05T10:00:00Z",
        "payments": [
            {"transactionId": "8", "amount": Decimal("139.00"), "currency": "DKK"},
            {"transactionId": "9", "amount": None, "currency": ""},
        ],
    }
    listed = json.loads((await api.get("/v1/checkouts")).content, parse_float=Decimal)["checkouts"]
    for found in (await shown(api, checkout), *listed):
        assert found["attention"] == wanted
        assert (found["lastErrorCode"], found["lastError"]) == ("unknown", "The gateway answered HTTP 503.")


@pytest.mark.parametrize(
    ("name", "value"),
    [("state", "paid"), ("limit", "0"), ("limit", "201"), ("cursor", "x"), ("attention", "x")],
)
async def test_a_parameter_that_is_wrong_is_named(api: Api, name, value):
    document = problem(await api.get("/v1/checkouts", **{name: value}), 422, "invalid-request")
    assert [error["field"].partition("[")[0] for error in document["errors"]] == [name]
    assert name in document["detail"]


async def test_the_trail_is_shown_page_by_page(api: Api):
    checkout = await api.taken("A-1")
    trail = (await api.get(f"/v1/checkouts/{checkout}/audit")).json()
    (entry,) = trail["entries"]
    assert (entry["sequence"], entry["action"], entry["to"]) == (1, "checkout:received", "received")
    assert entry["actor"] == "client:default/shop-1"
    assert entry["evidence"]["orderId"] == "A-1"
    assert trail["nextAfter"] is None
    assert (await api.get(f"/v1/checkouts/{checkout}/audit", after=1)).json()["entries"] == []


async def test_an_archived_checkout_is_shown_with_its_books_and_its_trail_with_where_it_is(
    api: Api, tmp_path
):
    checkout = await api.taken("A-1")
    assert (await shown(api, checkout))["archivedAt"] is None
    assert (await api.get(f"/v1/checkouts/{checkout}/audit")).json()["archived"] == []
    services = api.services
    (held,) = await checkouts.claim(services.db, [UUID(checkout)], lease_seconds=60)
    moves = checkouts.Transitions(services.db, services.encryptor)
    refused = checkouts.Move(held=held, trigger=Trigger.REFUSED, action=Action.CHECKOUT_MOVED, due_in=None)
    await moves.advance(refused)
    await moves.close()
    await archive.run(services.db, services.encryptor, tmp_path, older_than=0.0, most=10)
    found = await shown(api, checkout)
    assert (found["state"], found["orderId"], found["dueAt"]) == ("failed", "A-1", None)
    assert found["archivedAt"] > found["createdAt"]
    trail = (await api.get(f"/v1/checkouts/{checkout}/audit")).json()
    assert (trail["entries"], trail["nextAfter"]) == ([], None)
    (where,) = trail["archived"]
    assert (where["until"], where["file"], where["at"]) == (2, "archive-000001.jsonl.gz", found["archivedAt"])
    explained = (await api.get(f"/v1/checkouts/{checkout}/explain")).json()
    assert "archive-000001.jsonl.gz" in explained["evidence"][0]
    # The same request again gets it, and other content gets a new checkout, as before.
    same = await api.post(intent("A-1"))
    assert (same.status_code, same.json()["id"]) == (200, checkout)
    other = await api.post(intent("A-1", expiresIn=60))
    assert other.status_code == 202
    assert other.json()["id"] != checkout


@pytest.mark.parametrize("order", ["A-1001", "1001", "0" * 32, "a" * 50])
@pytest.mark.parametrize("path", ["", "/explain", "/audit"])
async def test_an_order_number_where_an_id_belongs_says_how_to_find_the_order(api: Api, order, path):
    await api.taken(order)
    document = problem(await api.get(f"/v1/checkouts/{order}{path}"), 404, "unknown-checkout")
    address = f"/v1/checkouts?orderId={order}"
    assert document["detail"].endswith(f"GET {address}")
    (found,) = (await api.client.get(address, headers=api.bearer())).json()["checkouts"]
    assert found["orderId"] == order


@pytest.mark.parametrize("wrong", ["019aa000-0000-7000-8000-000000000001", "A_1", "x" * 51])
async def test_what_is_no_order_number_is_not_taken_for_one(api: Api, wrong):
    assert (
        "orderId" not in problem(await api.get(f"/v1/checkouts/{wrong}"), 404, "unknown-checkout")["detail"]
    )
