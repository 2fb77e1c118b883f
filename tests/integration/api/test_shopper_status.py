"""What a shopper's browser is told of its checkout: once, and as a stream."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from orchestrator.api import long_poll
from orchestrator.domain.shopper_state import ShopperState, shopper_state
from orchestrator.domain.states import ENDED, State
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio

FIELDS = {"id", "state", "paymentStatus", "final", "deadline", "paymentMethods", "declined", "nextUrl"}


@dataclass
class Browser:
    """A page that follows a stream, over ASGI."""

    api: Api
    path: str
    headers: dict[str, str]
    status: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    _parts: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    _text: str = ""

    async def follow(self) -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in self.headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("pay.example", 80),
        }
        await self.api.client._transport.app(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if message.get("body"):
            self._parts.put_nowait(message["body"])
        if not message.get("more_body"):
            self._parts.put_nowait(None)

    async def block(self) -> dict[str, str] | None:
        """Return the next block of the stream by its fields; None: it has ended."""
        async with asyncio.timeout(20):
            while "\n\n" not in self._text:
                part = await self._parts.get()
                if part is None:
                    return None
                self._text += part.decode()
        block, _, self._text = self._text.partition("\n\n")
        return dict(line.split(": ", 1) for line in block.split("\n"))

    async def shown(self) -> dict[str, Any]:
        """Return the next document, past comments."""
        while (block := await self.block()) is not None:
            if block.get("event") == "status":
                return json.loads(block["data"]) | {"eventId": block["id"]}
        raise AssertionError("the stream has ended")


@asynccontextmanager
async def following(api: Api, taken: dict[str, Any], **headers: str) -> AsyncIterator[Browser]:
    token = {"Authorization": f"Bearer {taken['clientToken']}"}
    browser = Browser(api, f"/v1/checkouts/{taken['id']}/stream", token | headers)
    task = asyncio.create_task(browser.follow())
    try:
        yield browser
    finally:
        browser.gone.set()
        async with asyncio.timeout(20):
            await task


async def status(api: Api, taken: dict[str, Any]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {taken['clientToken']}"}
    answer = await api.client.get(f"/v1/checkouts/{taken['id']}/status", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def move(api: Api, taken: dict[str, Any], state: str, **more: object) -> None:
    """Write what a worker's move would write."""
    ended = State(state) in ENDED
    changes = ", ".join(f"{name} = :{name}" for name in more)
    await api.sql(
        f"UPDATE checkouts SET state = :state, version = version + 1, ended_at = CASE WHEN :ended THEN clock() END"
        f"{', ' if changes else ''}{changes} WHERE id = :id",
        id=UUID(taken["id"]),
        state=state,
        ended=ended,
        **more,
    )


async def decline(api: Api, taken: dict[str, Any], reason: str | None, *, sequence: int = 1) -> None:
    await api.sql(
        "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id) "
        "VALUES (:id, :sequence, 1, 'checkout.attempt_declined', CAST(:payload AS jsonb), 'c')",
        id=UUID(taken["id"]),
        sequence=sequence,
        payload=json.dumps({"facts": {"transactionIds": ["t-1"], "reason": reason}}),
    )


# ── Once ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_state_has_a_word_for_the_shopper():
    assert {shopper_state(state, cancelling=False) for state in State} == set(ShopperState) - {
        ShopperState.CLOSING
    }
    for state in State:
        assert (shopper_state(state, cancelling=True) is ShopperState.CLOSING) is (state not in ENDED)


async def test_the_status_tells_what_the_shopper_may_know_and_nothing_else(api):
    taken = (await api.post(intent("A-7"))).json()
    first = await status(api, taken)
    assert first.keys() == FIELDS
    assert (first["id"], first["state"], first["paymentStatus"], first["final"]) == (
        taken["id"],
        "preparing",
        "unpaid",
        False,
    )
    assert (first["paymentMethods"], first["declined"], first["nextUrl"]) == ([], None, None)
    await api.offer(taken["id"])
    ready = await status(api, taken)
    assert (ready["state"], ready["paymentMethods"]) == ("ready", [{"id": "m-1"}])
    await api.sql(
        "UPDATE checkouts SET attention = 'late_payment', attention_since = clock(), last_error = 'throttled'"
    )
    everything = json.dumps(await status(api, taken))
    for word in (
        "t-0",
        "session-1",
        "A-7",
        "attention",
        "throttled",
        "version",
        "merchant",
        "lease",
        "dueAt",
    ):
        assert word not in everything, word
    for personal in ("Smith", "@", "Street", "firstName"):
        assert personal not in everything, personal


async def test_the_session_is_given_to_the_browser_while_the_shopper_may_pay_and_never_else(api):
    taken = (await api.post(intent())).json()
    headers = {"Authorization": f"Bearer {taken['clientToken']}"}
    path = f"/v1/checkouts/{taken['id']}/session"
    problem(await api.client.get(path, headers=headers), 409, "not-payable")
    await api.offer(taken["id"])
    found = await api.client.get(path, headers=headers)
    assert found.status_code == 200
    assert found.headers["cache-control"] == "no-store"
    assert (found.json()["id"], found.json()["token"]) == ("session-1", "t-0")
    assert found.json().keys() == {"id", "token", "expiresAt"}
    await api.sql("UPDATE sessions SET token_expires_at = clock()")
    problem(await api.client.get(path, headers=headers), 409, "not-payable")
    await api.sql("UPDATE sessions SET token_expires_at = clock() + interval '1 minute'")
    for state in ("completed", "cancelled", "expired", "failed"):
        await move(api, taken, state)
        problem(await api.client.get(path, headers=headers), 409, "not-payable")


async def test_a_cancellation_under_way_takes_the_methods_away(api):
    taken = (await api.post(intent())).json()
    await api.offer(taken["id"])
    answer = await api.client.post(f"/v1/checkouts/{taken['id']}/cancel", headers=api.bearer())
    assert answer.status_code == 202
    found = await status(api, taken)
    assert (found["state"], found["paymentMethods"], found["final"]) == ("closing", [], False)


async def test_methods_are_shown_while_the_session_and_the_deadline_last(api):
    taken = (await api.post(intent())).json()
    await api.offer(taken["id"])
    await api.sql("UPDATE sessions SET token_expires_at = clock() - interval '1 second'")
    assert (await status(api, taken))["paymentMethods"] == []
    await api.sql("UPDATE sessions SET token_expires_at = clock() + interval '1 hour'")
    await api.sql("UPDATE checkouts SET deadline = clock() - interval '1 second'")
    assert (await status(api, taken))["paymentMethods"] == []


async def test_a_declined_attempt_is_told_with_its_reason_until_the_order_is_paid(api):
    taken = (await api.post(intent())).json()
    await decline(api, taken, "of the offer before")
    await api.offer(taken["id"])
    assert (await status(api, taken))["declined"] is None
    await decline(api, taken, "Card Declined", sequence=2)
    assert (await status(api, taken))["declined"]["reason"] == "Card Declined"
    await decline(api, taken, None, sequence=3)
    declined = (await status(api, taken))["declined"]
    assert declined.keys() == {"reason", "at"}
    assert declined["reason"] is None
    await move(api, taken, "completed", reserved=13900)
    paid = await status(api, taken)
    assert (paid["declined"], paid["paymentStatus"], paid["final"]) == (None, "authorized", True)


@pytest.mark.parametrize(
    ("state", "page"),
    [("completed", "success"), ("failed", "failure"), ("expired", "failure"), ("cancelled", "failure")],
)
async def test_an_ended_checkout_leads_to_the_shops_own_page(api, state, page):
    body = intent("A-9")
    taken = (await api.post(body)).json()
    await move(api, taken, state)
    url = (await status(api, taken))["nextUrl"]
    assert url.startswith(body["callbacks"][page]["value"])
    assert f"checkoutId={taken['id']}" in url
    assert "orderId=A-9" in url
    await api.sql("UPDATE intents SET data_key = NULL")  # the customer was erased
    assert (await status(api, taken))["nextUrl"] is None


# ── As a stream ───────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_tells_each_change_and_ends_with_the_final_state(api):
    taken = (await api.post(intent())).json()
    async with following(api, taken) as browser:
        assert (await browser.block()) == {"retry": "2000"}
        assert (await browser.shown())["state"] == "preparing"
        assert browser.status == 200
        await api.offer(taken["id"])
        await move(api, taken, "awaiting_payment")
        ready = await browser.shown()
        assert (ready["state"], ready["paymentMethods"]) == ("ready", [{"id": "m-1"}])
        await api.sql("UPDATE checkouts SET version = version + 1")  # a change that no shopper sees
        await move(api, taken, "completed", reserved=13900)
        paid = await browser.shown()
        assert (paid["state"], paid["paymentStatus"], paid["final"]) == ("completed", "authorized", True)
        assert await browser.block() == {"event": "end", "data": '{"reason":"final"}'}
        assert await browser.block() is None
    assert len(api.services.status_streams) == 0
    # The browser that has the final document is told to stop.
    async with following(api, taken, **{"Last-Event-ID": paid["eventId"]}) as browser:
        assert await browser.block() is None
        assert browser.status == 204


async def test_a_browser_that_comes_back_is_sent_what_it_does_not_have(api):
    taken = (await api.post(intent())).json()
    async with following(api, taken) as browser:
        first = await browser.shown()
    async with following(api, taken, **{"Last-Event-ID": first["eventId"]}) as browser:
        assert (await browser.block()) == {"retry": "2000"}
        await move(api, taken, "awaiting_payment")
        assert (await browser.shown())["state"] == "ready"
    async with following(api, taken, **{"Last-Event-ID": first["eventId"]}) as browser:
        assert (await browser.shown())["state"] == "ready"


async def test_all_streams_share_one_poller_and_hold_no_connection(api, monkeypatch):
    streams = api.services.status_streams
    monkeypatch.setattr(streams, "interval", 0.02)
    checkouts = [(await api.post(intent())).json() for _ in range(8)]
    browsers, pages = [], []
    for taken in checkouts * 3:
        page = following(api, taken)
        pages.append(page)
        browsers.append(await page.__aenter__())
    for browser in browsers:
        await browser.shown()
    assert len(streams) == 24
    assert api.services.db._engine.pool.checkedout() <= 1
    before = streams.queries
    async with asyncio.timeout(20):
        while streams.queries < before + 5:  # noqa: ASYNC110 - counted, whatever the time
            await asyncio.sleep(0.01)
    assert api.services.db._engine.pool.checkedout() <= 1
    await move(api, checkouts[0], "awaiting_payment")
    for browser in browsers[::8]:
        assert (await browser.shown())["state"] == "ready"
    for page in pages:
        await page.__aexit__(None, None, None)
    async with asyncio.timeout(20):
        while not streams._poller.done():  # noqa: ASYNC110 - it ends by itself
            await asyncio.sleep(0.01)


async def test_silence_is_broken_by_comments_and_the_lifetime_ends_a_stream(api):
    streams = api.services.status_streams
    streams.heartbeat = 0.01
    taken = (await api.post(intent())).json()
    async with following(api, taken) as browser:
        await browser.shown()
        assert await browser.block() == {"": ""}
    streams.lifetime = 0.0
    async with following(api, taken) as browser:
        await browser.shown()
        assert await browser.block() == {"event": "end", "data": '{"reason":"lifetime"}'}
        assert await browser.block() is None


async def test_streams_are_limited_for_a_checkout_a_merchant_and_the_process(api):
    streams = api.services.status_streams
    first, second = (await api.post(intent())).json(), (await api.post(intent())).json()
    token = {"Authorization": f"Bearer {second['clientToken']}"}
    pages = [following(api, first) for _ in range(5)]
    browsers = [await page.__aenter__() for page in pages]
    for browser in browsers:
        await browser.shown()
    path = f"/v1/checkouts/{first['id']}/stream"
    own = {"Authorization": f"Bearer {first['clientToken']}"}
    assert problem(await api.client.get(path, headers=own), 429, "too-many-streams")["detail"].startswith(
        "5 streams"
    )
    path = f"/v1/checkouts/{second['id']}/stream"
    streams.most = 10
    problem(await api.client.get(path, headers=token), 429, "too-many-streams")
    await api.sql("INSERT INTO merchants (name) VALUES ('other')")
    await api.sql("UPDATE checkouts SET merchant_id = 2 WHERE id = :id", id=UUID(second["id"]))
    streams.most = 5
    answer = await api.client.get(path, headers=token)
    problem(answer, 503, "too-many-streams")
    assert answer.headers["retry-after"] == "5"
    assert (await api.client.get(path.replace("stream", "status"), headers=token)).status_code == 200
    streams.most = 250
    async with following(api, second) as browser:
        assert (await browser.shown())["state"] == "preparing"
    for page in pages:
        await page.__aexit__(None, None, None)
    assert len(streams) == 0


async def test_streams_end_when_the_process_does(api):
    taken = (await api.post(intent())).json()
    async with following(api, taken) as browser:
        await browser.shown()
        api.services.end_waits()
        assert await browser.block() == {"event": "end", "data": '{"reason":"shutdown"}'}
        assert await browser.block() is None


async def test_a_head_of_a_stream_ends_at_once(api):
    taken = (await api.post(intent())).json()
    headers = {"Authorization": f"Bearer {taken['clientToken']}"}
    answer = await api.client.head(f"/v1/checkouts/{taken['id']}/stream", headers=headers)
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["content-type"].startswith("text/event-stream")


async def test_a_poll_that_fails_ends_no_stream(api, monkeypatch):
    monkeypatch.setattr(long_poll, "AFTER_A_FAILURE", 0.01)
    taken = (await api.post(intent())).json()
    asked = api.services.status_streams._ask
    failures = []

    async def fail_first() -> bool:
        if len(failures) < 3:
            failures.append(1)
            raise OSError("Postgres is away")
        return await asked()

    monkeypatch.setattr(api.services.status_streams, "_ask", fail_first)
    async with following(api, taken) as browser:
        await browser.shown()
        await move(api, taken, "awaiting_payment")
        assert (await browser.shown())["state"] == "ready"
    assert len(failures) == 3
