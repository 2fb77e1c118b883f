"""Keys of what is encrypted at rest: all of it comes under the newest, beside everything else, cut anywhere
and run again.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from orchestrator.crypto import EncryptionError, Encryptor
from orchestrator.delivery import signature
from orchestrator.domain.ids import uuid7
from orchestrator.store import idempotent_answers, inbox, key_rotation, webhooks
from orchestrator.store.console import lists, runs
from orchestrator.store.database import Database
from orchestrator.store.inbox.callbacks import (
    Sender,
    decrypt_body,
    decrypt_sender,
    encrypt_body,
    encrypt_sender,
)
from orchestrator.store.merchants import Merchants
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.factories import intake

pytestmark = pytest.mark.anyio

SHOP = {
    "gateway_url": "https://gateway.example.com", "merchant_api_url": None, "username": "their user",
    "password": "their hidden password", "callback_secrets": ("their hidden secret",), "policies": {"late": "keep"},
}  # fmt: skip
URL = "https://shop.example/webhooks"
BROKER = b"amqps://user:hidden@broker.example/"
SENDER = Sender("text/plain", {"user-agent": "A gateway"}, "192.0.2.1")


def keys(*given: str) -> Encryptor:
    return Encryptor(make_settings(secret_keys=given).secret_keys)


OLD, BOTH, NEW = keys(OLDER_KEY), keys(SECRET_KEY, OLDER_KEY), keys(SECRET_KEY)


class Killed(BaseException):
    """The process ends here."""


class Cut(Database):
    """A database whose process is killed after some writes: before one, or after it."""

    writes = 0
    until = 10**9

    async def write(self, statement, parameters):
        self.writes += 1
        if self.writes == self.until:
            raise Killed
        found = await super().write(statement, parameters)
        if self.writes + 0.5 == self.until:
            raise Killed
        return found


@pytest.fixture(name="db")
async def _db(database_url):
    async with Cut(database_url, pool_size=4) as db:
        yield db


async def accept(db: Database, encryptor: Encryptor, number: int) -> list:
    intents = inbox.Intents(db, encryptor, grace=5)
    made = await asyncio.gather(*(intents.accept(intake()) for _ in range(number)))
    await intents.close()
    return [accepted.id for accepted in made]


async def everything(db: Database, encryptor: Encryptor) -> dict:
    """Store something of every kind; return what is expected to open."""
    merchants = Merchants(db, encryptor, make_settings())
    assert await merchants.add("second", **SHOP)
    await merchants.rotate_secret("second", "a newer hidden secret", overlap=3600)
    checkouts = await accept(db, encryptor, 7)
    secret = signature.new_secret()
    webhook = await webhooks.add(
        db, encryptor, merchant_id=1, url=URL, description="", kinds=None, content="thin", secret=secret
    )
    newer = signature.new_secret()
    await webhooks.rotate(db, encryptor, webhook.id, merchant_id=1, secret=newer, overlap=3600)
    task = await webhooks.add(
        db,
        encryptor,
        merchant_id=1,
        url="amqps://broker.example:5671/",
        task="shop.events",
        queue="shop-events",
        description="",
        kinds=None,
        content="thin",
        secret=BROKER,
    )
    refused = uuid7()
    key, wrapped = encryptor.new_data_key(refused)
    await run(
        db,
        "INSERT INTO rejected_intents (id, merchant_id, digest, message_id, code, errors, body, data_key) "
        "VALUES (:id, 1, :digest, 'm', 'invalid_intent', '[]', :body, :wrapped)",
        id=refused,
        digest=refused.bytes,
        body=key.encrypt(b"what was refused", purpose="rejected-intent"),
        wrapped=wrapped,
    )
    orphan, kept = uuid7(), checkouts[0]
    (row,) = await run(db, "SELECT data_key FROM intents WHERE checkout_id = :id", id=kept)
    for callback, checkout, data_key in ((orphan, None, None), (uuid7(), kept, row.data_key)):
        owner = checkout or callback
        await run(
            db,
            "INSERT INTO callbacks (id, checkout_id, kind, grade, sender, body, digest) "
            "VALUES (:id, :checkout, 'success', 'signed', :sender, :body, :digest)",
            id=callback,
            checkout=checkout,
            sender=encrypt_sender(encryptor, owner, data_key, SENDER),
            body=encrypt_body(encryptor, owner, data_key, b"a callback"),
            digest=uuid4().bytes,
        )
    await run(
        db,
        "INSERT INTO delivery_attempts (id, endpoint_id, checkout_id, sequence, kind, purpose, number, outcome, milliseconds, answer) "
        "VALUES (:id, :webhook, :checkout, 1, 'test', 'test', 1, 'delivered', 7, :answer)",
        id=uuid7(),
        webhook=webhook.id,
        checkout=orphan,
        answer=encryptor.encrypt(b"an answer", purpose=f"webhook-answer/{orphan}"),
    )
    for merchant_id, key in ((1, "a"), (1, "b/1"), (2, "b")):
        named = {"merchant_id": merchant_id, "key": key}
        mine = await idempotent_answers.claim(db, encryptor, fingerprint=b"f", **named)
        await idempotent_answers.keep(db, encryptor, mine, b"an answer of ours", **named)
    asked = runs.NewRun(kind="cancel", chosen={}, actor="operator:1", reason="a reason of many")
    every, before = lists.Filter(), uuid7()
    seen = await lists.chosen(db.read, every, before=before, most=5)
    await runs.begin(db, encryptor, uuid7(), asked, wanted=every, before=before, most=5, seen=seen.digest)
    return {
        "checkouts": checkouts,
        "webhook": webhook.id,
        "task": task.id,
        "secrets": [newer, secret],
        "refused": refused,
    }


async def run(db: Database, statement: str, **parameters: object):
    from sqlalchemy import text

    async with db.transaction() as tx:
        result = await tx.execute(text(statement), parameters)
        return result.all() if result.returns_rows else ()


async def opens(db: Database, encryptor: Encryptor, stored: dict) -> None:
    """Check that these keys open everything."""
    merchant = await Merchants(db, encryptor, make_settings()).named("second")
    assert merchant is not None
    assert merchant.account.password == "their hidden password"
    assert merchant.callback_secrets == ("a newer hidden secret", "their hidden secret")
    assert merchant.policies.late == "keep"
    for checkout in stored["checkouts"]:
        (row,) = await run(db, "SELECT data_key, body FROM intents WHERE checkout_id = :id", id=checkout)
        key = encryptor.data_key(checkout, row.data_key)
        assert key.decrypt(row.body, purpose="intent")
    found = await webhooks.by_id(db, stored["webhook"], merchant_id=1)
    assert found is not None
    assert list(found.secrets(encryptor)) == stored["secrets"]
    found = await webhooks.by_id(db, stored["task"], merchant_id=1)
    assert found is not None
    assert found.secrets(encryptor) == (BROKER,)
    (row,) = await run(db, "SELECT data_key, body FROM rejected_intents")
    key = encryptor.data_key(stored["refused"], row.data_key)
    assert key.decrypt(row.body, purpose="rejected-intent") == b"what was refused"
    for row in await run(
        db,
        "SELECT coalesce(c.checkout_id, c.id) AS owner, c.sender, c.body, i.data_key "
        "FROM callbacks c LEFT JOIN intents i USING (checkout_id)",
    ):
        assert decrypt_body(encryptor, row.owner, row.data_key, bytes(row.body)) == b"a callback"
        assert decrypt_sender(encryptor, row.owner, row.data_key, bytes(row.sender)) == SENDER
    (row,) = await run(db, "SELECT checkout_id, answer FROM delivery_attempts")
    assert encryptor.decrypt(row.answer, purpose=f"webhook-answer/{row.checkout_id}") == b"an answer"
    for merchant_id, key in ((1, "a"), (1, "b/1"), (2, "b")):
        answer = await idempotent_answers.claim(
            db, encryptor, merchant_id=merchant_id, key=key, fingerprint=b"f"
        )
        assert answer == b"an answer of ours"
    (stopped,) = await runs.page(db, encryptor, before=UUID(int=2**128 - 1), limit=9)
    assert stopped.reason == "a reason of many"


def test_every_column_under_the_secret_keys_is_rotated():
    """As docs/privacy.md has them, which another test compares with the schema; a tag is no encryption."""
    page = (Path(__file__).resolve().parents[2] / "docs/privacy.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    under = {
        column
        for cells in rows
        if "SECRET_KEYS" in cells[2]
        for column in re.findall(r"`([a-z_]+\.[a-z_]+)`", cells[0])
    }
    assert under - {"intents.email_tag"} == key_rotation.COLUMNS


async def test_everything_that_is_stored_opens_with_the_new_key_alone_afterwards(db):
    stored = await everything(db, OLD)
    (row,) = await run(db, "SELECT data_key FROM rejected_intents")
    with pytest.raises(EncryptionError):
        NEW.data_key(stored["refused"], row.data_key)
    before = await key_rotation.counts(db)
    assert {count.key_id for count in before} == {OLD.newest.id}
    assert {count.kind for count in before} == set(key_rotation.KINDS)
    await opens(db, BOTH, stored)
    done = await key_rotation.rotate(db, BOTH, list_size=3)
    number = sum(count.number for count in before)
    assert (done.read, done.encrypted, done.failed) == (number, number, 0)
    await opens(db, NEW, stored)
    assert {count.key_id for count in await key_rotation.counts(db)} == {NEW.newest.id}
    again = await key_rotation.rotate(db, BOTH)
    assert (again.read, again.encrypted) == (number, 0)


async def test_cut_anywhere_and_run_again_it_is_as_if_it_had_run_once(db):
    stored = await everything(db, OLD)
    db.writes = 0
    total, cuts = 1, 0
    while True:
        db.writes, db.until = 0, total
        try:
            await key_rotation.rotate(db, BOTH, list_size=2)
        except Killed:
            cuts += 1
            db.until = 10**9
            await opens(db, BOTH, stored)
            # The next run is cut after the write that this one did not come to, and so on.
            total = 1.5 if total == 1 else 1
            continue
        break
    assert cuts > 10
    db.until = 10**9
    await opens(db, NEW, stored)


async def test_orders_that_come_while_it_runs_are_read_by_old_and_new_processes(db):
    """A process that has the newest key second still writes under the other, and reads what was rotated."""
    behind = keys(OLDER_KEY, SECRET_KEY)
    stored = await everything(db, OLD)

    async def orders(encryptor: Encryptor) -> list:
        return [one for _ in range(10) for one in await accept(db, encryptor, 5)]

    taken, also, _ = await asyncio.gather(
        orders(behind), orders(BOTH), key_rotation.rotate(db, BOTH, list_size=2)
    )
    stored["checkouts"] += taken + also
    await opens(db, behind, stored)
    await key_rotation.rotate(db, BOTH, list_size=2)
    await opens(db, NEW, stored)


async def test_what_was_changed_meanwhile_is_not_taken_back_and_an_erased_customer_stays_erased(db):
    stored = await everything(db, OLD)
    merchants = Merchants(db, BOTH, make_settings())
    first, *_ = stored["checkouts"]
    read = db.read

    async def read_then_change(statement, parameters=None):
        rows = await read(statement, parameters)
        if "FROM merchants t" in str(statement) and rows and "t.password" in str(statement):
            await merchants.set_password("second", "changed meanwhile")
        if "FROM intents t" in str(statement) and rows:
            await run(db, "UPDATE intents SET data_key = NULL WHERE checkout_id = :id", id=first)
        return rows

    db.read = read_then_change
    await key_rotation.rotate(db, BOTH)
    db.read = read
    merchant = await Merchants(db, NEW, make_settings()).named("second")
    assert merchant is not None
    assert merchant.account.password == "changed meanwhile"
    (row,) = await run(db, "SELECT data_key FROM intents WHERE checkout_id = :id", id=first)
    assert row.data_key is None


async def test_what_no_key_opens_is_counted_and_left_as_it_is(db):
    stored = await everything(db, OLD)
    await run(db, "UPDATE rejected_intents SET data_key = data_key || '\\x00'")
    (before,) = await run(db, "SELECT data_key FROM rejected_intents")
    done = await key_rotation.rotate(db, BOTH)
    assert done.failed == 1
    (after,) = await run(db, "SELECT data_key FROM rejected_intents")
    assert bytes(after.data_key) == bytes(before.data_key)
    missing = await key_rotation.rotate(db, keys(SECRET_KEY))
    assert (missing.failed, missing.encrypted) == (1, 0)
    assert stored
