"""A merchant's own callback address: which checkout it belongs to, and a checkout for a payment of an unknown
order.
"""

from __future__ import annotations

import asyncio
import gzip
from urllib.parse import urlencode
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from orchestrator import audit, callback_urls
from orchestrator.domain.ids import uuid7
from orchestrator.store import inbox
from orchestrator.store.checkouts import MOST_UNCONFIRMED
from tests.conftest import make_settings
from tests.integration.api.test_callbacks import FORM
from tests.integration.api.test_evidence import SECRET, SHOP, callback_intake, checking, signed
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent, path_of, serving, without_database

pytestmark = pytest.mark.anyio


def posted(order_ref: str = "OLD-1", **changes: str | None) -> bytes:
    fields = {
        "shop_orderid": order_ref,
        "transaction_id": "539101",
        "status": "succeeded",
        "amount": "139.00",
        "currency": "208",
        **changes,
    }
    return urlencode({name: value for name, value in fields.items() if value is not None}).encode()


async def send(api: Api, body: bytes, *, merchant: str = "default", headers: dict[str, str] | None = None):
    url = path_of(callback_urls.merchant_url(api.services.encryptor, "", merchant))
    return await api.client.post(
        url, content=body, headers=FORM | (signed(body) if headers is None else headers)
    )


# ── Whose it is ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("by", ["our id", "order number"])
async def test_what_names_a_checkout_is_stored_as_its_callback_and_wakes_it(database_url, by):
    async with checking(database_url) as api:
        checkout = await api.taken("A-77")
        api.hint_publisher.published.clear()
        changes = (
            {"order_ref": "other", "transaction_info[checkout]": checkout}
            if by == "our id"
            else {"order_ref": "A-77"}
        )
        answer = await send(api, posted(**changes))
        assert (answer.status_code, answer.text) == (200, "Acknowledged")
        (row,) = await api.sql("SELECT checkout_id, kind, grade, handled_at FROM callbacks")
        assert tuple(row) == (UUID(checkout), "notification", "signed", None)
        assert api.hint_publisher.published == [("callbacks", UUID(checkout))]
        assert (await api.sql("SELECT wake FROM checkouts"))[0].wake == 1
        assert await api.count("checkouts") == 1


async def test_an_ended_checkout_of_the_order_number_is_found_and_a_live_checkout_before_it(database_url):
    async with checking(database_url) as api:
        ended = await api.taken("A-77")
        await api.sql(
            "UPDATE checkouts SET state = 'expired', ended_at = clock() WHERE id = :id", id=UUID(ended)
        )
        await send(api, posted("A-77"))
        living = (await api.post(intent("A-77", expiresIn=60))).json()["id"]
        await send(api, posted("A-77", transaction_id="2"))
        rows = await api.sql("SELECT checkout_id FROM callbacks ORDER BY received_at, id")
        assert [str(row.checkout_id) for row in rows] == [ended, living]


async def test_nothing_of_another_merchant_is_touched(database_url):
    async with checking(database_url) as api:
        await api.services.merchants.add("second", **SHOP, callback_secrets=("theirs",))
        theirs = (await api.post(intent("A-77"), merchant="second")).json()["id"]
        body = posted("A-77", **{"transaction_info[checkout]": theirs})
        assert (await send(api, body)).status_code == 200
        rows = await api.sql("SELECT id, merchant_id, state FROM checkouts ORDER BY created_at")
        assert [(row.merchant_id, row.state) for row in rows] == [(2, "received"), (1, "failed")]
        assert (await api.sql("SELECT checkout_id FROM callbacks"))[0].checkout_id == rows[1].id


def multipart(order_ref: str) -> bytes:
    fields = {"shop_orderid": order_ref, "status": "succeeded"}
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    return "".join((*parts, "--b--\r\n")).encode()


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=b", multipart("A-77")),
        ("multipart/form-data; boundary=b", gzip.compress(multipart("A-77"), mtime=0)),
        (FORM["Content-Type"], b"\xef\xbb\xbf" + posted("A-77")),
        (FORM["Content-Type"], gzip.compress(posted("A-77"), mtime=0)),
        ("application/json", b'\xef\xbb\xbf{"order": {"orderId": "A-77"}, "status": "SUCCEEDED"}'),
    ],
    ids=["multipart", "multipart and gzip", "mark", "gzip", "json with a mark"],
)
async def test_in_whichever_form_it_comes_it_finds_its_order(database_url, content_type, body):
    async with checking(database_url) as api:
        checkout = await api.taken("A-77")
        capitals = {
            name: value.upper().replace("T=", "t=").replace("S0=", "s0=")
            for name, value in signed(body).items()
        }
        answer = await send(api, body, headers=capitals | {"Content-Type": content_type})
        assert (answer.status_code, answer.text) == (200, "Acknowledged")
        (row,) = await api.sql("SELECT checkout_id, grade FROM callbacks")
        assert tuple(row) == (UUID(checkout), "signed")


async def test_a_body_that_inflates_beyond_the_limit_is_refused(database_url):
    async with checking(database_url) as api:
        bomb = gzip.compress(posted("A-77") + b"&xml=" + b"x" * 5_000_000, mtime=0)
        problem(await send(api, bomb), 413, "too-large")
        assert await api.count("callbacks") == 0


@pytest.mark.parametrize("order_ref", ["4711\x1b[2J", "4711\u202e", "a\tb", "a\0b", "x" * 101])
async def test_an_order_number_that_cannot_be_looked_up_becomes_no_order(database_url, order_ref):
    async with checking(database_url) as api:
        assert (await send(api, posted(order_ref))).status_code == 200
        assert await api.count("checkouts") == 0
        assert await api.count("callbacks") == 1, "it is kept for the record"


# ── Unproven, unknown, away ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("known_order", [True, False])
async def test_what_proves_nothing_is_kept_for_the_record_and_nothing_comes_of_it(database_url, known_order):
    async with checking(database_url) as api:
        await api.taken("A-77")
        api.hint_publisher.published.clear()
        body = posted("A-77" if known_order else "OLD-1")
        for _ in range(2):
            problem(await send(api, body, headers={}), 401, "unproven-callback")
        (row,) = await api.sql(
            "SELECT id, checkout_id, merchant_id, grade, times, body, handled_at FROM callbacks"
        )
        assert (row.checkout_id, row.merchant_id, row.grade, row.times) == (None, 1, "missing", 2)
        assert row.handled_at is not None, "no further callback is awaited"
        assert inbox.decrypt_body(api.services.encryptor, row.id, None, bytes(row.body)) == body
        assert api.hint_publisher.published == []
        assert await api.count("checkouts") == 1
        assert callback_intake(api).unproven == {("merchant", "missing", "outside"): 2}


async def test_a_flood_without_proof_fills_no_disk_and_shuts_out_nothing_real(database_url):
    async with checking(database_url, callbacks_unproven_limit=3, callbacks_limit=5) as api:
        answers = await asyncio.gather(
            *(send(api, posted(f"X-{number}"), headers={}) for number in range(20))
        )
        assert {answer.status_code for answer in answers} == {401}
        assert await api.count("callbacks") == 3
        assert callback_intake(api).over_limit == {("merchant", "missing"): 17}
        for number in range(4):
            assert (await send(api, posted(f"R-{number}", amount=None))).status_code == 200
        assert await api.count("callbacks") == 5
        assert (await send(api, posted("OLD-1"))).status_code == 200
        assert await api.count("checkouts") == 1, "a payment is matched all the same"


@pytest.mark.parametrize(
    "path", ["/callbacks/merchant/default/AAAAAAAAAAAAAAAAAAAAAA", "/callbacks/merchant/second/{}"]
)
async def test_an_address_that_we_did_not_make_stores_nothing(database_url, path):
    async with checking(database_url) as api:
        signed_part = callback_urls.merchant_url(api.services.encryptor, "", "default").rsplit("/", 1)[1]
        answer = await api.client.post(path.format(signed_part), content=posted(), headers=FORM)
        problem(answer, 404, "unknown-callback")
        assert await api.count("callbacks") == 0


async def test_only_a_post_is_taken(database_url):
    async with checking(database_url) as api:
        url = path_of(callback_urls.merchant_url(api.services.encryptor, "", "default"))
        assert (await api.client.get(url)).status_code == 405
        assert (await api.client.post(url, content=b"x" * 262_145, headers=FORM)).status_code == 413
        assert await api.count("callbacks") == 0


async def test_a_merchant_that_cannot_be_read_is_asked_to_send_it_again(database_url):
    async with checking(database_url) as api:
        problem(await send(api, posted(), merchant="unknown-yet"), 503, "merchant-unreadable")
    async with serving(without_database()) as api:
        problem(await send(api, posted()), 503, "merchant-unreadable")


# ── Checkouts created from payments ───────────────────────────────────────────────────────────────────────


async def test_a_payment_for_an_unknown_order_becomes_a_checkout_with_a_due_time(database_url):
    async with checking(database_url) as api:
        with capture_logs() as lines:
            assert (await send(api, posted())).status_code == 200
        (row,) = await api.sql(
            "SELECT c.*, c.due_at - c.created_at AS due_in, extract(epoch FROM clock() - c.ended_at)::float8 AS since, i.body, "
            "i.data_key FROM checkouts c JOIN intents i ON i.checkout_id = c.id"
        )
        assert (row.merchant_id, row.order_ref, row.state, row.currency, row.amount) == (
            1,
            "OLD-1",
            "failed",
            "DKK",
            13900,
        )
        assert row.last_error == "unknown_order"
        assert row.deadline == row.ended_at == row.created_at
        assert (row.hinted, row.wake, row.auto_capture, row.offered_at) == (True, 1, False, None)
        assert 0 < row.due_in.total_seconds() <= 5.1
        key = api.services.encryptor.data_key(row.id, row.data_key)
        assert key.decrypt(bytes(row.body), purpose="intent") == b"{}"
        (callback,) = await api.sql("SELECT checkout_id, grade, body, handled_at FROM callbacks")
        assert (callback.checkout_id, callback.grade, callback.handled_at) == (row.id, "signed", None)
        assert (
            inbox.decrypt_body(api.services.encryptor, row.id, row.data_key, bytes(callback.body)) == posted()
        )
        assert api.hint_publisher.published == [("callbacks", row.id)]
        assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
            "checkout_created_from_payment"
        ]
        (entry,) = await api.sql("SELECT action, entry FROM audit_entries")
        assert entry.action == "checkout:received"
        for said in (
            '"to":"failed"',
            '"from":null',
            '"unmatched_payment":true',
            '"orderId":"OLD-1"',
            '"transaction":"539101"',
        ):
            assert said in entry.entry
        assert (await audit.verify(api.services.db, api.services.encryptor)).problems == []


async def test_a_checkout_created_from_a_payment_can_be_read_like_any_other(database_url):
    async with checking(database_url) as api:
        await send(api, posted())
        (row,) = await api.sql("SELECT id FROM checkouts")
        for path in ("", "/audit", "/explain"):
            answer = await api.get(f"/v1/checkouts/{row.id}{path}")
            assert answer.status_code == 200, answer.text
        listed = (await api.get("/v1/checkouts", orderId="OLD-1")).json()
        assert str(row.id) in str(listed)


async def test_the_same_unmatched_payment_again_meets_the_checkout_that_was_created_from_it(database_url):
    async with checking(database_url) as api:
        for body in (posted(), posted(), posted(transaction_id="2"), posted(status="ChargebackEvent")):
            assert (await send(api, body)).status_code == 200
        assert await api.count("checkouts") == 1
        rows = await api.sql("SELECT times FROM callbacks ORDER BY received_at, id")
        assert [row.times for row in rows] == [2, 1, 1]


async def test_callbacks_that_prove_nothing_create_a_bounded_number_of_checkouts(database_url):
    settings = make_settings(database_url=database_url)
    async with serving(settings) as api:
        await api.services.merchants.everyone()
        numbers = range(MOST_UNCONFIRMED + 40)
        answers = []
        # Twenty at a time: a callback that waits longer than 2.5 s is answered 503 as well.
        for first in range(0, len(numbers), 20):
            answers += await asyncio.gather(
                *(send(api, posted(f"OLD-{number}"), headers={}) for number in numbers[first : first + 20])
            )
        refused = [answer for answer in answers if answer.status_code != 200]
        assert await api.count("checkouts") == MOST_UNCONFIRMED
        assert len(refused) == 40
        problem(refused[0], 503, "unconfirmed-payments")
        assert await api.count("callbacks") == len(numbers), "each is kept for the record"
        # What a lookup confirmed counts no more, and neither does what another merchant has or is a day old.
        await api.sql(
            "UPDATE checkouts SET state = 'completed', late = true WHERE id IN (SELECT id FROM checkouts LIMIT 1)"
        )
        assert (await send(api, posted("NEW-1"), headers={})).status_code == 200
        assert (await send(api, posted("NEW-2"), headers={})).status_code == 503
        assert (await send(api, posted("NEW-1", transaction_id="2"), headers={})).status_code == 200
        await api.services.merchants.add("second", **SHOP, callback_secrets=())
        assert (await send(api, posted("NEW-2"), merchant="second", headers={})).status_code == 200
        await api.sql(
            "UPDATE checkouts SET created_at = created_at - interval '25 hours', deadline = created_at - interval '25 hours'"
        )
        assert (await send(api, posted("NEW-2"), headers={})).status_code == 200


async def test_a_payment_that_the_gateway_signed_is_not_counted(database_url):
    async with checking(database_url) as api:
        await api.sql(
            "INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, created_at, currency, amount, audit_sequence, "
            "audit_head, correlation_id) SELECT gen_random_uuid(), 1, 'X-' || n, 'failed', t.now, t.now, 'DKK', 1, 1, '', '' "
            "FROM generate_series(1, :most) AS n, (SELECT clock() AS now) AS t",
            most=MOST_UNCONFIRMED,
        )
        assert (await send(api, posted("A-1"))).status_code == 200
        (row,) = await api.sql("SELECT state FROM checkouts WHERE order_ref = 'A-1'")
        assert row.state == "failed"


async def test_an_intent_for_the_order_number_of_an_unmatched_payment_is_a_checkout_of_its_own(database_url):
    async with checking(database_url) as api:
        await send(api, posted("A-77"))
        answer = await api.post(intent("A-77"))
        assert answer.status_code == 202
        states = await api.sql("SELECT state FROM checkouts ORDER BY created_at")
        assert [row.state for row in states] == ["failed", "received"]


async def test_a_checkout_missing_in_a_restored_database_comes_back_under_its_id(database_url):
    async with checking(database_url) as api:
        forgotten = uuid7()
        await send(api, posted(**{"transaction_info[checkout]": str(forgotten)}))
        assert [row.id for row in await api.sql("SELECT id FROM checkouts")] == [forgotten]
        # Another order cannot claim the same id.
        await send(api, posted("OLD-2", **{"transaction_info[checkout]": str(forgotten)}))
        assert await api.count("checkouts") == 1, "the id counts before the order number"


@pytest.mark.parametrize("named", ["3b241101-e2bb-4255-8caf-4136c566a962", "019b", "nonsense"])
async def test_an_id_that_we_never_gave_is_not_taken_over(database_url, named):
    async with checking(database_url) as api:
        await send(api, posted(**{"transaction_info[checkout]": named}))
        (row,) = await api.sql("SELECT id FROM checkouts")
        assert str(row.id) != named
        assert row.id.version == 7


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "new"},
        {"transaction_id": None},
        {"amount": None},
        {"amount": "0"},
        {"amount": "139.005"},
        {"currency": None},
        {"currency": "999"},
        {"shop_orderid": None},
        {"shop_orderid": "x" * 101},
    ],
    ids=str,
)
async def test_what_is_no_payment_or_cannot_be_compared_is_kept_and_nothing_is_created(database_url, changes):
    async with checking(database_url) as api:
        with capture_logs() as lines:
            assert (await send(api, posted(**changes))).status_code == 200
        assert await api.count("checkouts") == 0
        rows = await api.sql("SELECT checkout_id, grade FROM callbacks")
        assert [tuple(row) for row in rows] == [(None, "signed")]
        assert [line["event"] for line in lines if line["log_level"] == "warning"] == [
            "unmatched_callback_stored"
        ]


async def test_unmatched_payments_of_a_merchant_without_a_secret_become_checkouts_too(database_url):
    async with serving(make_settings(database_url=database_url)) as api:
        assert (await send(api, posted(), headers={})).status_code == 200
        assert [row.state for row in await api.sql("SELECT state FROM checkouts")] == ["failed"]
        assert [row.grade for row in await api.sql("SELECT grade FROM callbacks")] == ["unchecked"]


async def test_each_merchants_address_is_graded_with_its_own_secrets(database_url):
    async with checking(database_url) as api:
        await api.services.merchants.add("second", **SHOP, callback_secrets=("theirs",))
        body = posted()
        assert (
            await send(api, body, merchant="second", headers=signed(body, secret=SECRET))
        ).status_code == 401
        assert (
            await send(api, body, merchant="second", headers=signed(body, secret="theirs"))
        ).status_code == 200
        assert [row.merchant_id for row in await api.sql("SELECT merchant_id FROM checkouts")] == [2]
