"""A customer who is erased: of every text that was handed over nothing is left, and money and trail stay."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.rows import dict_row
from structlog.testing import capture_logs

from orchestrator import audit, intents
from orchestrator.api import reads
from orchestrator.audit import archive
from orchestrator.crypto import DataKey, EncryptionError
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.ids import uuid7
from orchestrator.explain import explain
from orchestrator.explain.record import gather
from orchestrator.intents import Problem, submissions
from orchestrator.store import checkouts, deliveries, events, inbox, read_model
from orchestrator.store.free_text import ERASED
from orchestrator.store.inbox import KeyReused, OrderTaken, ReasonNotKept, rejected
from orchestrator.store.tables import metadata
from orchestrator.worker.retention import Retention
from tests.support.pooler import direct
from tests.support.scene import intent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from uuid import UUID

    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio

MARKER = "Zoe-Quist-marker-5093"
ADDRESS = "198.51.100.77"
PURPOSES = ("intent", "token", "callback", "callback-sender", "reason", "webhook-answer", "rejected-intent")
CASES = re.compile(f"{MARKER}|{ADDRESS}", re.IGNORECASE)
DECLINED = "4180000000000566"


def marked(order: str) -> dict[str, Any]:
    """Return an intent with the marker in each text that may have it."""
    body = json.loads(intent(order))
    address = {"street": MARKER, "city": MARKER, "country": "DK", "zipCode": MARKER}
    body["order"]["customer"] = {
        "firstName": MARKER,
        "lastName": MARKER,
        "email": f"{MARKER}@shop.example",
        "billingAddress": address,
        "shippingAddress": address,
    }
    body["order"]["orderLines"][0] |= {"itemId": MARKER, "description": MARKER}
    body["order"]["transactionInfo"] = {f"note {MARKER}": MARKER}
    for page in ("success", "failure"):
        body["callbacks"][page]["value"] = f"https://shop.example/{MARKER}"
    return {**body, "userAgent": MARKER}


def rows(world: Scene) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, as a superuser reads it."""
    with psycopg.connect(direct(world.settings.need("database_url")), row_factory=dict_row) as db:
        return {
            table: db.execute(f"SELECT * FROM {table}").fetchall()
            for table in (*metadata.tables, "alembic_version")
        }


def values(value: Any) -> Iterator[Any]:
    """Yield the texts and bytes in a value, however deep."""
    match value:
        case dict():
            for inner in value.items():
                yield from values(inner)
        case list() | tuple():
            for inner in value:
                yield from values(inner)
        case str():
            yield value
            for sealed in re.findall(r"sealed:([A-Za-z0-9+/=]+)", value):
                yield b64decode(sealed)
        case bytes() | memoryview():
            yield bytes(value)


def forms() -> list[str]:
    """Return the marker as it may be written: plain, in hexadecimal, in base64, and as a digest."""
    plain = MARKER.encode()
    return [
        MARKER,
        plain.hex(),
        b64encode(plain).decode().rstrip("="),
        hashlib.sha256(plain).hexdigest(),
        ADDRESS,
    ]


def in_clear(found: dict[str, list[dict[str, Any]]]) -> set[str]:
    """Return the columns in which the marker stands."""
    columns = set()
    for table, table_rows in found.items():
        for row in table_rows:
            for name, value in row.items():
                for part in values(value):
                    said = part if isinstance(part, str) else f"{part.hex()} {part.decode('latin-1')}"
                    if any(form.lower() in said.lower() for form in forms()):
                        columns.add(f"{table}.{name}")
    return columns


def decrypted(world: Scene, found: dict[str, list[dict[str, Any]]]) -> set[str]:
    """Return the columns that decrypt to the marker, under any key that can be got from these rows."""
    keys: list[DataKey] = []
    owners: set[object] = set()
    for table, owner in (("intents", "checkout_id"), ("rejected_intents", "id")):
        for row in found[table]:
            owners.add(row[owner])
            if row["data_key"] is not None:
                keys.append(world.encryptor.data_key(row[owner], bytes(row["data_key"])))
    owners |= {row["id"] for row in found["callbacks"]}
    columns = set()
    for table, table_rows in found.items():
        for row in table_rows:
            for name, value in row.items():
                for part in values(value):
                    if isinstance(part, bytes) and any(
                        CASES.search(plain.decode("latin-1")) for plain in opened(world, part, keys, owners)
                    ):
                        columns.add(f"{table}.{name}")
    return columns


def opened(world: Scene, sealed: bytes, keys: list[DataKey], owners: set[object]) -> Iterator[bytes]:
    for sealed_part in (sealed, sealed[1:]):
        for purpose in PURPOSES:
            for key in keys:
                try:
                    yield key.decrypt(sealed_part, purpose=purpose)
                except EncryptionError:
                    continue
            for owner in owners:
                try:
                    yield world.encryptor.decrypt(sealed_part, purpose=f"{purpose}/{owner}")
                except EncryptionError:
                    continue


async def call_back(world: Scene, checkout: UUID, body: str, *, kind: str = "notification") -> None:
    await world.callbacks.store(
        inbox.Arrival(
            checkout_id=checkout,
            kind=kind,  # type: ignore[arg-type]  # one of the words
            grade="signed",
            network="inside",
            content_type=f"application/x-www-form-urlencoded; x={MARKER}",
            headers={"user-agent": MARKER, "altapay-signature": MARKER},
            source=ADDRESS,
            body=body.encode(),
        )
    )


async def ask(
    world: Scene, checkout: UUID, kind: str, *, reason: str | None = MARKER, **arguments: Any
) -> UUID:
    asked = await inbox.request(
        world.db,
        world.encryptor,
        checkout,
        merchant_id=1,
        kind=kind,
        actor="operator:test",
        reason=reason,
        arguments=arguments,
        idempotency_key=str(uuid7()),
        grace=0.2,
    )
    assert asked is not None
    for _ in range(20):
        await world.process(checkout)
        (row,) = await world.sql("SELECT handled_at FROM commands WHERE id = :id", id=asked.id)
        if row.handled_at is not None and not await world.operating(checkout):
            break
    return asked.id


async def answered(world: Scene, checkout: UUID) -> UUID:
    """Store an attempt at a webhook whose receiver answered with the marker; return the endpoint's id."""
    (row,) = await world.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
    key = world.encryptor.data_key(checkout, bytes(row.data_key))
    attempt = deliveries.Attempt(
        id=uuid7(),
        kind="checkout.ready",
        number=1,
        outcome="server_error",
        status=500,
        milliseconds=7,
        answer=key.encrypt(f"cannot ship to {MARKER}".encode(), purpose=deliveries.ANSWER).hex(),
    )
    written = deliveries.Written(
        endpoint_id=uuid7(),
        checkout_id=checkout,
        purpose="event",
        lease=uuid7(),
        sequence=1,
        step="failed",
        attempt=attempt,
    )
    await deliveries.write(world.db, [written])
    return written.endpoint_id


async def lived(world: Scene) -> tuple[UUID, UUID]:
    """Return a checkout with the marker in every text, whose payment is captured and in part refunded, and a
    webhook's endpoint.
    """
    checkout = await accepted(world)
    await world.process(checkout)
    await world.pay(checkout, card=DECLINED)
    (attempt,) = await world.ledger(checkout)
    declined = (
        f"status=failed&transaction_id={attempt['transactionId']}&error_message={MARKER}&cardholder={MARKER}"
    )
    await call_back(world, checkout, declined, kind="failure")
    await world.process(checkout)
    await world.pay(checkout)
    xml = f"<APIResponse><Customer><Firstname>{MARKER}</Firstname></Customer></APIResponse>"
    await call_back(world, checkout, f"status=succeeded&xml={xml}")
    await world.processed_until(checkout, "completed")
    await ask(world, checkout, "cancel")
    await ask(world, checkout, "capture", amount=10_000, transactionId=None)
    await ask(world, checkout, "refund", amount=2_500, transactionId=None)
    await refuse(world, world.orders[checkout])
    await events.place(world.db)
    return checkout, await answered(world, checkout)


async def refuse(world: Scene, order: str) -> None:
    """Store a refused intent of an order, with the marker in its content and in the name of a field."""
    refused = rejected.Rejection(
        merchant_id=1,
        message_id="m-1",
        number=0,
        order_ref=order,
        code="invalid_intent",
        problems=(Problem(f"order.{MARKER}", "is not a known field"),),
        body=json.dumps({"order": {"customer": {"firstName": MARKER}}}).encode(),
        correlation_id="corr",
    )
    assert await rejected.store(world.db, world.encryptor, [refused]) == 1


async def accepted(world: Scene) -> UUID:
    order = f"E-{uuid7().hex[:12]}"
    parsed = intents.parse(json.dumps(marked(order)).encode())
    asked = inbox.Intake.of(
        parsed,
        merchant_id=1,
        actor="client:default/shop",
        correlation_id="corr",
        default_expires_in=3600.0,
        idempotency_key=f"key-{order}",
    )
    found = await world.intents.accept(asked)
    world.orders[found.id] = order
    return found.id


async def erase(world: Scene, *ids: UUID, **options: Any) -> list[checkouts.Fate]:
    options = {"actor": "operator:test", "cause": "asked", **options}
    return await checkouts.erase(world.db, world.encryptor, ids, **options)


async def reasons(world: Scene, checkout: UUID) -> set[str]:
    """Return the reasons that the API shows in the trail."""
    trail = await reads.audit(world.db, world.encryptor, 1, checkout, after=0, limit=500)
    assert trail is not None
    return {entry.evidence["reason"] for entry in trail.entries if entry.evidence.get("reason")}


def money(found: dict[str, list[dict[str, Any]]]) -> list[Any]:
    """Return what the books say of money, in every table that has any."""
    return [
        [
            (row["id"], row["state"], *(row[name] for name in ("amount", "reserved", "captured", "refunded")))
            for row in found["checkouts"]
        ],
        found["payments"],
        [
            {name: value for name, value in row.items() if name != "reason"}
            for row in found["money_operations"]
        ],
    ]


async def test_nothing_of_a_customer_is_left_after_the_erasure_and_money_and_trail_stay(world: Scene):
    with capture_logs() as lines:
        checkout, endpoint = await lived(world)
        before = rows(world)
        # In clear stand, until then: the gateway's text for the shopper, and the names of unknown fields.
        assert in_clear(before) == {"events.payload", "rejected_intents.errors"}
        assert decrypted(world, before) == {
            "intents.body",
            "callbacks.body",
            "callbacks.sender",
            "commands.reason",
            "money_operations.reason",
            "audit_entries.entry",
            "delivery_attempts.answer",
            "rejected_intents.body",
        }
        assert await reasons(world, checkout) == {MARKER}
        (fate,) = await erase(world, checkout, dry_run=True)
        assert (fate.erased, rows(world)) == (True, before)
        assert await checkouts.of_order(world.db, 1, world.orders[checkout]) == [checkout]
        (fate,) = await erase(world, checkout)
        assert fate.erased
        assert await reasons(world, checkout) == {ERASED}
        after = rows(world)
        assert in_clear(after) == set()
        assert decrypted(world, after) == set()
        fingerprints = {bytes(row["fingerprint"]) for row in after["intents"]} | {
            bytes(row["fingerprint"]) for row in after["idempotency_keys"]
        }
        assert fingerprints == {b""}, "no plain hash is left that could confirm a guess"
        assert money(after) == money(before)
        await world.agree(checkout)
        verified = await audit.verify(world.db, world.encryptor)
        assert (verified.checkouts, verified.problems) == (1, [])
        # Everything that reads it says so instead of failing.
        record = await read_model.checkout(world.db, checkout)
        assert record is not None
        assert record.erased_at is not None
        told = await gather(world.db, world.settings, checkout)
        assert told is not None
        said = explain(told)
        assert "Its personal data was erased at" in " ".join(said.because)
        assert "erased the personal data" in " ".join(said.evidence)
        attempts = await deliveries.attempts(world.db, world.encryptor, endpoint, before=None, limit=10)
        assert [attempt.answer for attempt in attempts] == [None]
        (refused,) = await rejected.latest(world.db, limit=5)
        assert (refused.code, refused.problems) == ("invalid_intent", ())
        found = await rejected.by_id(world.db, world.encryptor, refused.id)
        assert found is not None
        assert found[1] is None
        page = await events.page(world.db, 1, after=0, until=99, limit=99)
        declined = [row for row in page.events if row.kind == "checkout.attempt_declined"]
        assert [row.payload["facts"]["reason"] for row in declined] == [None]
        entry = (await world.trail(checkout))[-1]
        assert (entry["action"], entry["actor"], entry["evidence"]) == (
            "checkout:erased",
            "operator:test",
            {"cause": "asked"},
        )
    assert CASES.search(json.dumps(lines, default=str)) is None
    (again,) = await erase(world, checkout)
    assert (again.erased, again.hindrance, again.before is not None) == (False, None, True)


async def test_an_erased_checkout_goes_on_and_keeps_nothing_new(world: Scene):
    """Money is moved, late callbacks are taken without their content, and a reason is refused."""
    checkout, _ = await lived(world)
    await erase(world, checkout)
    await call_back(world, checkout, f"status=succeeded&cardholder={MARKER}")
    await call_back(world, checkout, f"status=succeeded&cardholder={MARKER}&again=1")
    await world.process(checkout)
    assert (in_clear(rows(world)), decrypted(world, rows(world))) == (set(), set())
    with pytest.raises(ReasonNotKept, match="leave it out"):
        await ask(world, checkout, "refund", amount=100, transactionId=None)
    await ask(world, checkout, "refund", reason=None, amount=500, transactionId=None)
    row = await world.row(checkout)
    assert (row.state, row.captured, row.refunded) == ("completed", 10_000, 3_000)
    await world.agree(checkout)
    assert (await audit.verify(world.db, world.encryptor)).problems == []


async def test_a_payment_of_the_next_order_of_its_number_does_not_break_an_erased_checkout(world: Scene):
    first = await accepted(world)
    await world.sql("UPDATE checkouts SET state = 'failed', ended_at = clock() WHERE id = :id", id=first)
    await erase(world, first)
    newer = await world.offered()
    world.orders[first] = world.orders[newer]
    await world.sql("UPDATE checkouts SET order_ref = :ref WHERE id = :id", ref=world.orders[newer], id=first)
    await world.plan(newer, bindings=False)
    await world.pay(newer)
    await call_back(world, first, "status=succeeded")
    await world.process(first)
    row = await world.row(first)
    assert (row.lookups > 0, row.last_error == "step_broke", row.attention == "step_broke") == (
        True,
        False,
        False,
    )
    (callback,) = await world.sql("SELECT handled_at FROM callbacks WHERE checkout_id = :id", id=first)
    assert callback.handled_at is not None


async def test_an_erased_checkout_is_not_reopened(world: Scene):
    checkout = await accepted(world)
    await ask(world, checkout, "cancel", reason=None)
    await world.processed_until(checkout, "cancelled")
    await erase(world, checkout)
    command = await ask(world, checkout, "reopen", reason=None, expiresIn=None)
    (row,) = await world.sql("SELECT result FROM commands WHERE id = :id", id=command)
    assert (row.result, await world.state(checkout)) == (ResultCode.REFUSED_ERASED, "cancelled")
    view = await inbox.checkout_view(world.db, checkout)
    assert view is not None
    assert view.erased


def texts_of(place: Path) -> list[str]:
    return [gzip.decompress(file.read_bytes()).decode() for file in place.glob("*.gz")]


async def test_an_archive_holds_nothing_that_an_erasure_does_not_reach(world: Scene, tmp_path: Path):
    checkout, _ = await lived(world)
    await world.sql("UPDATE checkouts SET due_at = NULL, lease = NULL, leased_until = NULL, attention = NULL")
    (row,) = await world.sql("SELECT data_key FROM intents WHERE checkout_id = :id", id=checkout)
    made = await archive.run(world.db, world.encryptor, tmp_path, older_than=0.0, most=10)
    assert made.checkouts == 1
    (page,) = texts_of(tmp_path)
    assert '"checkout.attempt_declined"' in page
    assert not [form for form in forms() if form.lower() in page.lower()]
    sealed = [bytes.fromhex(said) for said in re.findall(r'"\\\\x((?:[0-9a-f]{2})+)"', page)]
    sealed += [b64decode(said) for said in re.findall(r"sealed:([A-Za-z0-9+/=]+)", page)]
    key = world.encryptor.data_key(checkout, bytes(row.data_key))
    readable = [
        part
        for part in sealed
        if any(CASES.search(plain.decode("latin-1")) for plain in opened(world, part, [key], {checkout}))
    ]
    assert len(readable) >= 4, "callbacks, and reasons of commands, operations and entries"
    await erase(world, checkout)
    assert not [part for part in readable if list(opened(world, part, [], {checkout}))]
    assert (await audit.verify(world.db, world.encryptor)).problems == []
    assert (in_clear(rows(world)), decrypted(world, rows(world))) == (set(), set())


async def test_the_same_order_again_meets_what_it_met_before_and_creates_nothing_twice(world: Scene):
    """A live order number stays taken, and a used key stays used: no plain hash tells whether it is the
    same.
    """
    checkout, _ = await lived(world)
    order = world.orders[checkout]
    parsed = intents.parse(json.dumps(marked(order)).encode())
    asked = {
        "merchant_id": 1,
        "actor": "client:default/shop",
        "correlation_id": "corr",
        "default_expires_in": 3600.0,
    }
    assert (await world.intents.accept(inbox.Intake.of(parsed, **asked))).id == checkout
    await erase(world, checkout)
    with pytest.raises(OrderTaken, match=str(checkout)):
        await world.intents.accept(inbox.Intake.of(parsed, **asked))
    with pytest.raises(KeyReused):
        await world.intents.accept(inbox.Intake.of(parsed, **asked, idempotency_key=f"key-{order}"))
    assert len(await world.sql("SELECT id FROM checkouts")) == 1


async def unmatched_callback(world: Scene) -> None:
    """Store a callback that belongs to no checkout, with the marker in its content."""
    unmatched = inbox.UnmatchedCallbacks(world.db, world.encryptor, world.callbacks, grace=60.0)
    payment = checkouts.UnmatchedPayment(
        merchant_id=1,
        order_ref=None,
        transaction_id=None,
        currency=None,
        amount=None,
        named=None,
        correlation_id="c",
    )
    callback = inbox.MerchantCallback(
        payment=payment, grade="signed", network="inside", content_type=MARKER, headers={}, source=ADDRESS, body=MARKER.encode()
    )  # fmt: skip
    await unmatched.store(callback)
    await unmatched.close()


async def test_retention_erases_what_is_settled_and_old_enough_in_lists_and_nothing_without_the_setting(
    world: Scene, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("orchestrator.store.checkouts.erasure.ERASED_AT_ONCE", 2)
    ids = [await accepted(world) for _ in range(5)]
    open_one = await accepted(world)
    for checkout in ids:
        await ask(world, checkout, "cancel")
        await world.processed_until(checkout, "cancelled")
    await world.sql("UPDATE checkouts SET due_at = NULL WHERE state = 'cancelled'")
    watched, *settled = ids
    await world.sql("UPDATE checkouts SET due_at = clock() WHERE id = :id", id=watched)
    await unmatched_callback(world)
    assert in_clear(rows(world)) == set()
    unset = Retention(world.db, world.encryptor, days=None)
    assert await unset.erase() == 0
    retention = Retention(world.db, world.encryptor, days=30.0)
    assert await retention.erase() == 0, "they ended a moment ago"
    await world.later(days=29)
    assert await unset.erase() == 0
    assert len(await world.sql("SELECT id FROM callbacks WHERE checkout_id IS NULL")) == 1
    await world.later(days=2)
    assert await unset.erase() == 0, "callbacks without a checkout are deleted also without the setting"
    assert await world.sql("SELECT id FROM callbacks WHERE checkout_id IS NULL") == []
    assert await retention.erase() == len(settled)
    assert await retention.erase() == 0
    erased = await world.sql("SELECT checkout_id FROM intents WHERE erased_at IS NOT NULL ORDER BY 1")
    assert [row.checkout_id for row in erased] == sorted(settled)
    assert await world.state(open_one) == "received"
    await unmatched_callback(world)
    await world.later(days=2)
    assert await Retention(world.db, world.encryptor, days=1.0).erase() == 0
    assert await world.sql("SELECT id FROM callbacks WHERE checkout_id IS NULL") == []
    (entry,) = [entry for entry in await world.trail(settled[0]) if entry["action"] == "checkout:erased"]
    assert (entry["actor"], entry["evidence"]) == ("system:orchestrator", {"cause": "retention"})
    assert (await audit.verify(world.db, world.encryptor)).problems == []


async def test_refused_intents_of_an_order_are_erased_without_a_checkout(world: Scene):
    await refuse(world, "R-1")
    assert decrypted(world, rows(world)) == {"rejected_intents.body"}
    assert await rejected.readable(world.db, 1, "R-1") == 1
    assert [await rejected.erase(world.db, 1, order) for order in ("R-2", "R-1", "R-1")] == [0, 1, 0]
    assert (in_clear(rows(world)), decrypted(world, rows(world))) == (set(), set())
    assert await rejected.readable(world.db, 1, "R-1") == 0


async def test_a_refused_message_is_erased_with_each_order_that_is_in_it(world: Scene):
    """As the queue stores it: also with what was under way, and what one of its orders became."""
    checkout, _ = await lived(world)
    order = world.orders[checkout]
    for merchant, orders in ((1, ("R-1", order)), (1, ("R-3",)), (1, ("R-1", "R-4")), (2, ("R-1",))):
        body = json.dumps([marked(each) for each in orders]).encode()
        refused = rejected.Rejection(
            merchant_id=merchant,
            message_id="/".join(orders),
            number=-1,
            order_ref=None,
            order_refs=submissions.order_numbers(body),
            code="token_expired",
            problems=(Problem("token", "has expired"),),
            body=body,
            correlation_id="corr",
        )
        assert await rejected.store(world.db, world.encryptor, [refused]) == 1

    async def kept() -> set[str]:
        found = await rejected.latest(world.db, limit=9)
        bodies = {row.message_id: await rejected.by_id(world.db, world.encryptor, row.id) for row in found}
        return {name for name, read in bodies.items() if read is not None and read[1] is not None}

    many = json.dumps([marked(f"M-{number}") for number in range(submissions.MOST_INTENTS + 1)]).encode()
    assert submissions.order_numbers(many) == (), "no message of ours has so many"

    await erase(world, checkout)
    assert await kept() == {"R-3", "R-1/R-4", "R-1"}
    assert await rejected.readable(world.db, 1, "R-1") == 1
    assert await rejected.erase(world.db, 1, "R-1") == 1
    assert await kept() == {"R-3", "R-1"}
    assert [await rejected.readable(world.db, 1, each) for each in ("R-1", "R-4", "R-3")] == [0, 0, 1]


HINDRANCES = {
    "UNDER_WAY": "UPDATE checkouts SET state = 'awaiting_payment', due_at = clock()",
    "HELD": "UPDATE checkouts SET lease = gen_random_uuid(), leased_until = clock() + interval '1 minute'",
    "CALLBACK": "UPDATE callbacks SET handled_at = NULL",
    "COMMAND": "UPDATE commands SET handled_at = NULL WHERE kind = 'cancel'",
    "OPERATION": "UPDATE money_operations SET state = 'unknown' WHERE kind = 'capture'",
    "ATTENTION": "UPDATE checkouts SET attention = 'open_payment'",
    "RESERVATION": "UPDATE checkouts SET captured = 0, refunded = 0",
}


@pytest.mark.parametrize("name", HINDRANCES)
async def test_what_is_still_needed_is_not_erased_and_the_reason_says_what_to_do(world: Scene, name: str):
    checkout, _ = await lived(world)
    await world.sql(HINDRANCES[name])
    before = rows(world)
    (fate,) = await erase(world, checkout)
    assert (fate.hindrance, fate.erased) == (checkouts.Hindrance[name], False)
    assert fate.hindrance is not None
    assert fate.hindrance.way
    assert rows(world) == before
