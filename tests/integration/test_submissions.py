"""Messages of the queue `intents`: each intent becomes a checkout or is refused with its reasons, once, and
none is lost while Postgres is away.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import jwt
import pytest
from sqlalchemy import text

from orchestrator import auth
from orchestrator.crypto import Encryptor
from orchestrator.intents import submissions as submissions_format
from orchestrator.store import events as feeds
from orchestrator.store.database import Database
from orchestrator.store.inbox import rejected
from orchestrator.store.readiness import Process
from orchestrator.worker import submissions
from orchestrator.worker.submissions import Message, Submissions
from tests.support.api_scene import RecordingPublisher, serving
from tests.support.cloud_events import documents
from tests.support.factories import Breaking
from tests.support.scene import intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.settings import Settings

pytestmark = pytest.mark.anyio


class Scene:
    """One worker's intake of the queue on a real database."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings, self.db = settings, db
        self.encryptor = Encryptor(settings.secret_keys)
        self.hint_publisher = RecordingPublisher()
        self.woken = 0
        self.submissions = Submissions(
            settings, db, self.encryptor, self.hint_publisher, on_events=self._wake
        )  # type: ignore[arg-type]

    def _wake(self) -> None:
        self.woken += 1

    def token(self, merchant: str = "default", *scopes: str) -> str:
        wanted = scopes or ("checkouts:write",)
        return auth.issue(self.settings, merchant=merchant, scopes=wanted, lifetime=60, subject="shop")

    def expired(self, merchant: str = "default", **claims: object) -> str:
        """Return a token that was valid an hour ago."""
        key = self.settings.jwt_secrets[0].get_secret_value()
        known = jwt.decode(self.token(merchant), options={"verify_signature": False})
        past = {"iat": known["iat"] - 3660, "exp": known["exp"] - 3600}
        return jwt.encode({**known, **past, **claims}, key, algorithm=auth.ALGORITHM)

    async def accept(self, message: Message) -> None:
        async with asyncio.timeout(60):
            await self.submissions.accept(message)

    async def orders(self) -> list[str]:
        rows = await self.db.read(text("SELECT order_ref FROM checkouts ORDER BY order_ref"))
        return [row.order_ref for row in rows]

    async def refused(self) -> list[Any]:
        return list(await self.db.read(text("SELECT * FROM rejected_intents ORDER BY id")))


def message(
    intents: list[bytes] | bytes,
    token: object,
    *,
    identity: str | None = None,
    body: bytes | None = None,
    **headers: object,
) -> Message:
    """Return a message in Celery's format."""
    listed = intents if isinstance(intents, bytes) else b"[" + b",".join(intents) + b"]"
    framed = b"[[" + listed + b"," + json.dumps(token).encode() + b"],{},{}]"
    given = {"task": "orchestrator.submit", "id": identity or str(uuid4()), "lang": "py", **headers}
    return Message(given, {}, "application/json", framed if body is None else body)


@asynccontextmanager
async def scene_on(settings: Settings, db: Database) -> AsyncIterator[Scene]:
    async with db:
        scene = Scene(settings, db)
        yield scene
        await scene.submissions.close()


@pytest.fixture
async def scene(settings: Settings) -> AsyncIterator[Scene]:
    async with scene_on(settings, Database(str(settings.database_url), pool_size=3)) as scene:
        yield scene


async def test_each_intent_of_a_message_becomes_a_checkout_and_has_a_hint(scene: Scene):
    await scene.accept(message([intent("Q-1"), intent("Q-2")], scene.token()))
    assert await scene.orders() == ["Q-1", "Q-2"]
    assert len(scene.hint_publisher.published) == 2
    assert await scene.refused() == []
    (row,) = await scene.db.read(text("SELECT entry FROM audit_entries ORDER BY checkout_id LIMIT 1"))
    assert json.loads(row.entry)["actor"] == "client:default/shop"


async def test_the_same_message_again_is_the_same_checkouts(scene: Scene):
    repeated = message([intent("Q-1")], scene.token())
    for _ in range(3):
        await scene.accept(repeated)
    await scene.accept(message([intent("Q-1")], scene.token()))
    assert await scene.orders() == ["Q-1"]
    assert await scene.refused() == []
    assert len(scene.hint_publisher.published) == 1


async def test_an_intent_by_the_queue_and_by_the_api_is_one_checkout(scene: Scene):
    await scene.accept(message([intent("Q-1")], scene.token()))
    async with serving(scene.settings) as api:
        answer = await api.post(json.loads(intent("Q-1")))
        assert answer.status_code == 200, answer.text


async def test_a_wrong_intent_is_refused_with_its_reasons_and_the_others_are_accepted(scene: Scene):
    wrong = intent("Q-2", amount="-1.00")
    await scene.accept(message([intent("Q-1"), wrong, b"5", intent("Q-3")], scene.token()))
    assert await scene.orders() == ["Q-1", "Q-3"]
    first, second = sorted(await scene.refused(), key=lambda row: row.order_ref is None)
    assert (first.order_ref, first.code, first.merchant_id) == ("Q-2", "invalid_intent", 1)
    assert "order.amount.value" in {error["field"] for error in first.errors}
    assert (second.order_ref, second.code) == (None, "invalid_intent")
    found = await rejected.by_id(scene.db, scene.encryptor, first.id)
    assert found is not None
    assert found[1] == wrong
    assert b"shopper@shop.example" not in bytes(first.body)


async def test_an_order_number_with_other_content_is_refused(scene: Scene):
    await scene.accept(message([intent("Q-1")], scene.token()))
    await scene.accept(message([intent("Q-1", amount="5.00")], scene.token()))
    (row,) = await scene.refused()
    assert (row.order_ref, row.code) == ("Q-1", "order_taken")
    assert "already has checkout" in row.errors[0]["message"]


async def test_a_refused_intent_is_an_event_of_the_feed_once_for_each_message(scene: Scene):
    repeated = message([b"{}"], scene.token(), identity="task-1")
    await scene.accept(repeated)
    await scene.accept(repeated)
    assert scene.woken == 1
    await scene.accept(message([b"{}"], scene.token(), identity="task-2"))
    assert len(await scene.refused()) == 2
    await feeds.place(scene.db)
    rows = await scene.db.read(text("SELECT * FROM events ORDER BY position"))
    assert [(row.position, row.sequence, row.merchant_id) for row in rows] == [(1, 1, 1), (2, 1, 1)]
    event = documents(rows[0])
    assert event["thin"]["type"] == "intent.rejected"
    assert event["thin"]["data"] == {
        "rejectedIntentId": str(rows[0].checkout_id),
        "orderId": None,
        "code": "invalid_intent",
    }
    assert "order" in event["full"]["data"]["details"]["reason"]
    assert "task-1" in event["thin"]["traceparent"] or rows[0].correlation_id == "task-1"


GARBAGE = {
    "not JSON": b"\x00\xff",
    "empty": b"",
    "a text": b'"text"',
    "two parts": b"[[], {}]",
    "too deep": b"[" * 100_000,
    "deep inside": b"[[" + b"[" * 100_000 + b',"t"],{},{}]',
    "no list": b'[[{"a": 1}, "t"], {}, {}]',
    "an empty list": b'[[[], "t"], {}, {}]',
    "no token": b"[[[{}]], {}, {}]",
    "a token that is no text": b"[[[{}], 5], {}, {}]",
    "three arguments": b'[[[{}], "t", 1], {}, {}]',
    "a name that is not known": b'[[[{}], "t"], {"x": 1}, {}]',
    "a name twice": b'[[[{}], "t"], {"token": "t"}, {}]',
    "too many": b"[[[" + b",".join([b"{}"] * 501) + b'],"t"],{},{}]',
    "too long": b'[[["' + b"a" * (4 * 1024 * 1024) + b'"],"t"],{},{}]',
    "a huge number": b"[[[" + b"9" * 10_000 + b'],"t"],{},[}]',
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_a_malformed_message_is_kept_as_refused_and_the_next_is_accepted(scene: Scene, name: str):
    await scene.accept(message([], "", body=GARBAGE[name]))
    (row,) = await scene.refused()
    assert (row.code, row.merchant_id) == ("malformed", None)
    assert row.errors[0]["message"]
    assert await scene.db.read(text("SELECT 1 FROM events")) == []
    await scene.accept(message([intent("Q-1")], scene.token()))
    assert await scene.orders() == ["Q-1"]


@pytest.mark.parametrize(
    "headers",
    [
        {"task": "orchestrator.process"},
        {"task": None},
        {"task": 5},
        {"compression": "application/x-gzip"},
        {"eta": "2030-01-01T00:00:00"},
    ],
)
async def test_a_message_with_other_headers_is_refused(scene: Scene, headers: dict[str, object]):
    await scene.accept(message([intent("Q-1")], scene.token(), **headers))
    (row,) = await scene.refused()
    assert row.code == "malformed"
    assert await scene.orders() == []
    found = await rejected.by_id(scene.db, scene.encryptor, row.id)
    assert found is not None
    assert found[1] is not None
    assert b"eyJ" not in found[1]
    assert b"Q-1" in found[1]


async def test_a_content_type_that_is_no_text_is_refused(scene: Scene):
    sent = message([intent("Q-1")], scene.token())
    await scene.accept(Message(sent.headers, {}, ["application/json"], sent.body))
    assert [row.code for row in await scene.refused()] == ["malformed"]


async def test_a_bad_token_is_refused_and_kept_without_the_token(scene: Scene):
    good = scene.token()
    for token in (good[:-3] + "AAA", "nonsense", scene.token("default", "checkouts:read"), ""):
        await scene.accept(message([intent("Q-1")], token))
    rows = await scene.refused()
    assert [(row.code, row.merchant_id) for row in rows] == [("access_denied", None)] * 4
    assert "checkouts:write" in rows[2].errors[0]["message"]
    for row in rows:
        found = await rejected.by_id(scene.db, scene.encryptor, row.id)
        assert found is not None
        assert found[1] == b"[" + intent("Q-1") + b"]"
    assert await scene.orders() == []
    assert await scene.db.read(text("SELECT 1 FROM events")) == []


async def test_a_token_that_has_only_expired_still_says_whose_the_message_is(scene: Scene):
    many = [intent(f"Q-{number}") for number in range(500)]
    await scene.accept(message(many, scene.expired(), identity="late"))
    (row,) = await scene.refused()
    assert (row.code, row.merchant_id, row.message_id) == ("token_expired", 1, "late")
    assert scene.woken == 1
    found = await rejected.by_id(scene.db, scene.encryptor, row.id)
    assert found is not None
    assert found[1] is not None
    assert len(found[1]) > rejected.KEPT_BYTES
    assert submissions_format.intents_in(found[1]) == tuple(many)
    async with serving(scene.settings) as api:
        (shown,) = (await api.get("/v1/rejected-intents")).json()["rejectedIntents"]
        assert (shown["code"], shown["messageId"]) == ("token_expired", "late")


async def test_what_looks_a_little_like_a_token_is_kept_and_the_token_of_the_message_is_not(scene: Scene):
    token = scene.expired()
    words = "https://money.shop.dk/paid?by=a@survey.company.com&session=eyJhbGciOiJub25lIn0.eyJzdWIiOjF9."
    raw = intent("Q-1").replace(b"shopper@shop.example", words.encode())
    assert raw != intent("Q-1")
    await scene.accept(message([raw, json.dumps({"token": token}).encode()], token))
    (row,) = await scene.refused()
    found = await rejected.by_id(scene.db, scene.encryptor, row.id)
    assert found is not None
    assert found[1] == b"[" + raw + b',{"token": "[token]"}]'


async def test_an_expired_token_that_proves_nothing_else_proves_no_merchant(scene: Scene):
    signed_by_others = scene.expired()[:-3] + "AAA"
    tokens = (
        scene.expired(iss="other"),
        scene.expired(aud="other"),
        scene.expired(scope="ops"),
        signed_by_others,
    )
    for token in tokens:
        await scene.accept(message([intent("Q-1")], token))
    assert [(row.code, row.merchant_id) for row in await scene.refused()] == [("access_denied", None)] * 4


async def test_a_merchant_that_does_not_exist_is_refused(scene: Scene):
    await scene.accept(message([intent("Q-1")], scene.token("stranger")))
    assert [(row.code, row.merchant_id) for row in await scene.refused()] == [("merchant_refused", None)]


async def test_arguments_may_be_named_and_amounts_stay_exact(scene: Scene):
    body = b'[[], {"token": ' + json.dumps(scene.token()).encode() + b', "intents": ['
    await scene.accept(message([], "", body=body + intent("Q-1", amount="0.10") + b"]}, null]"))
    rows = await scene.db.read(text("SELECT amount FROM checkouts"))
    assert [row.amount for row in rows] == [10]


async def test_while_postgres_cannot_commit_a_message_is_tried_until_it_is_stored(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(submissions, "FIRST_PAUSE", 0.01)
    db = Breaking(str(settings.database_url), pool_size=3)
    async with scene_on(settings, db) as scene:
        db.lost_answers, db.cut_before_commit = 2, 2
        await scene.accept(message([intent("Q-1"), b"{}"], scene.token()))
        assert await scene.orders() == ["Q-1"]
        assert len(await scene.refused()) == 1
        assert len(await db.read(text("SELECT 1 FROM events"))) == 1


async def test_messages_that_cannot_be_stored_show_in_the_heartbeat(scene: Scene):
    assert scene.submissions.stalled == (0.0, "")
    async with scene.db.transaction() as tx:
        await tx.execute(text("LOCK TABLE intents IN ACCESS EXCLUSIVE MODE"))
        waiting = asyncio.create_task(scene.accept(message([intent("Q-1")], scene.token())))
        async with asyncio.timeout(30):
            while scene.submissions.stalled[0] < 0.2:  # noqa: ASYNC110 - time has to pass
                await asyncio.sleep(0.02)
    await waiting
    assert scene.submissions.stalled == (0.0, "")
    told = {"intentsStalledSeconds": 60.0, "intentsStalledBy": "53100"}
    (trouble,) = Process("w", "worker", 1.0, told).troubles
    assert "no message of the queue intents for 60 s (the disk of the database is full)" in trouble


async def test_an_unexpected_error_is_not_tried_for_ever(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(submissions, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(submissions.intents, "parse", broken)
    await scene.accept(message([intent("Q-1")], scene.token()))
    (row,) = await scene.refused()
    assert row.code == "internal"


async def test_refused_intents_are_deleted_after_their_retention(scene: Scene):
    await scene.accept(message([b"{}"], scene.token()))
    assert await scene.submissions.forget_now() == 0
    await scene.db.write(text("UPDATE rejected_intents SET created_at = created_at - interval '31 days'"), {})
    assert await scene.submissions.forget_now() == 1
    assert await scene.refused() == []


async def test_a_merchant_reads_its_own_refused_intents_page_by_page(scene: Scene):
    for number in range(5):
        wrong = intent(f"Q-{number % 2}", amount="-1.00")
        await scene.accept(message([wrong], scene.token(), identity=f"task-{number}"))
    await scene.accept(message([b"{}"], "bad token"))
    await scene.db.write(text("UPDATE rejected_intents SET merchant_id = 2 WHERE message_id = 'task-4'"), {})
    async with serving(scene.settings) as api:
        found, cursor = [], None
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = (await api.get("/v1/rejected-intents", limit=3, **more)).json()
            found += page["rejectedIntents"]
            cursor = page["nextCursor"]
            if cursor is None:
                break
        assert [row["messageId"] for row in found] == ["task-3", "task-2", "task-1", "task-0"]
        assert {row["code"] for row in found} == {"invalid_intent"}
        assert found[0]["errors"][0]["field"] == "order.amount.value"
        of_order = (await api.get("/v1/rejected-intents", orderId="Q-1")).json()["rejectedIntents"]
        assert [row["messageId"] for row in of_order] == ["task-3", "task-1"]
        assert (await api.get("/v1/rejected-intents", orderId="\x00")).json()["rejectedIntents"] == []
        without = await api.client.get(
            "/v1/rejected-intents", headers=api.bearer(scopes=("checkouts:write",))
        )
        assert without.status_code == 403
