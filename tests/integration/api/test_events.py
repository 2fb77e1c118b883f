"""The feed over HTTP: cursors, filters, long polls for many with one query, and nothing of
another merchant.
"""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import httpx
import jsonschema
import pytest

from orchestrator import auth
from orchestrator.api import events as endpoint
from orchestrator.api import long_poll
from orchestrator.domain import events as told
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.events import EventType
from orchestrator.domain.states import State
from orchestrator.store import events
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, serving
from tests.support.cloud_events import check
from tests.support.factories import Core, core

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.settings import Settings

pytestmark = pytest.mark.anyio

READ = ("events:read",)
ROOT = Path(__file__).parents[3]


@pytest.fixture
async def inside(settings: Settings, encryptor) -> AsyncIterator[Core]:
    """What a worker of this installation has."""
    assert settings.database_url is not None
    async with core(settings.database_url, encryptor) as new_core:
        yield new_core


async def happen(inside: Core, *kinds: EventType, **changes: Any) -> UUID:
    """Have a checkout become ready and then have these events, all of them with their positions."""
    held = await inside.held(State.AWAITING_PAYMENT, **changes)
    for kind in kinds:
        held = await inside.advance(held, events=(told.Event(kind),))
    await inside.release(held)
    await events.place(inside.db)
    return held.id


async def second(api: Api) -> int:
    await api.services.merchants.add(
        "second",
        gateway_url="https://two.example",
        merchant_api_url=None,
        username="theirs",
        password="hidden",
        callback_secrets=(),
    )
    return (await api.sql("SELECT id FROM merchants WHERE name = 'second'"))[0].id


async def ask(api: Api, *, merchant: str = "default", path: str = "/v1/events", **params: object):
    return await api.client.get(path, params=params, headers=api.bearer(merchant, READ))


async def feed(api: Api, **params: object) -> dict[str, Any]:
    answer = await ask(api, **params)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert set(found) == {"events", "next"}
    for event in found["events"]:
        check(event)
    return found


def positions(found: dict[str, Any]) -> list[int]:
    return [int(event["position"]) for event in found["events"]]


# ── Reading ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_empty_feed_is_answered_with_the_cursor_to_go_on_with(api: Api):
    assert await feed(api) == {"events": [], "next": "0"}
    assert await feed(api, after="0", wait="0") == {"events": [], "next": "0"}


async def test_a_client_that_goes_on_with_next_sees_every_event_once_in_order(api: Api, inside: Core):
    checkouts = [await happen(inside, EventType.CHECKOUT_EXPIRED) for _ in range(3)]
    seen, after = [], "0"
    while (found := await feed(api, after=after, limit=2))["events"]:
        seen += found["events"]
        after = found["next"]
    assert [int(event["position"]) for event in seen] == [1, 2, 3, 4, 5, 6]
    assert found == {"events": [], "next": "6"}
    for checkout in checkouts:
        own = [event for event in seen if event["subject"] == str(checkout)]
        assert [(event["type"], event["sequence"]) for event in own] == [
            ("checkout.ready", "1"),
            ("checkout.expired", "2"),
        ]
        assert [event["id"] for event in own] == [f"{checkout}-1", f"{checkout}-2"]


async def test_an_event_is_the_same_document_whenever_it_is_read(api: Api, inside: Core):
    await happen(inside, EventType.CHECKOUT_CANCELLED)
    first = await feed(api)
    await inside.do(
        "UPDATE checkouts SET state = 'expired', amount = 1, attention = 'other', attention_details = '{}', attention_since = clock()"
    )
    assert await feed(api) == first


async def test_events_without_a_position_are_not_in_the_feed_yet(api: Api, inside: Core):
    held = await inside.held(State.AWAITING_PAYMENT)
    assert (await feed(api))["events"] == []
    await events.place(inside.db)
    assert [event["subject"] for event in (await feed(api))["events"]] == [str(held.id)]


async def test_types_and_checkouts_are_filters_and_the_cursor_passes_what_they_leave_out(
    api: Api, inside: Core
):
    first = await happen(inside, EventType.CHECKOUT_EXPIRED)
    other = await happen(inside, EventType.CHECKOUT_CANCELLED)
    found = await feed(api, type="checkout.cancelled")
    assert (positions(found), found["next"]) == ([4], "4")
    several = await feed(api, type=["checkout.cancelled", "checkout.expired"])
    assert positions(several) == [2, 4]
    assert (await feed(api, type="payment.refunded")) == {"events": [], "next": "4"}
    own = await feed(api, checkout=str(first))
    assert (positions(own), own["next"]) == ([1, 2], "4")
    assert positions(await feed(api, checkout=str(other), type="checkout.ready")) == [3]
    assert (await feed(api, checkout=str(uuid4()))) == {"events": [], "next": "4"}
    cut = await feed(api, checkout=str(other), limit=1)
    assert (positions(cut), cut["next"]) == ([3], "3")


async def test_a_rare_type_is_found_however_much_lies_before_it(api: Api, inside: Core, monkeypatch):
    monkeypatch.setattr(events, "SCANNED_AT_ONCE", 2)
    monkeypatch.setattr(endpoint, "STRETCHES", 3)
    for _ in range(30):
        await happen(inside)
    await happen(inside, EventType.CHECKOUT_CANCELLED)
    after, asked = "0", 0
    while not (found := await feed(api, after=after, type="checkout.cancelled", limit=5))["events"]:
        assert int(found["next"]) > int(after), "an answer without events brings the cursor on"
        after, asked = found["next"], asked + 1
    assert positions(found) == [32]
    assert asked == 5


async def test_positions_that_a_restored_database_skips_are_passed_in_one_answer(
    api: Api, inside: Core, monkeypatch
):
    monkeypatch.setattr(events, "SCANNED_AT_ONCE", 2)
    monkeypatch.setattr(endpoint, "STRETCHES", 3)
    number = await second(api)
    await happen(inside)
    # The second merchant has had no event: its feed has no row.
    assert await events.skip(inside.db, 1_000_000) == 2
    await happen(inside, EventType.CHECKOUT_CANCELLED)
    await happen(inside, merchant_id=number)
    assert positions(await feed(api, after="40", merchant="second")) == [1_000_001]
    for after in ("1", "40", "1000001"):  # as before the restore, and as of events that were lost with it
        found = await feed(api, after=after)
        assert (positions(found), found["next"]) == ([1_000_002, 1_000_003], "1000003")
        assert positions(await feed(api, after=after, type="checkout.cancelled")) == [1_000_003]


async def test_sentences_come_in_full_documents_alone(api: Api, inside: Core):
    held = await inside.held(State.AWAITING_PAYMENT)
    await inside.advance(
        held, attention=Attention(code=AttentionCode.OTHER, facts={"text": "a sentence for people"})
    )
    await events.place(inside.db)
    thin, full = [(await feed(api, content=content))["events"][1]["data"] for content in ("thin", "full")]
    assert thin["attention"] == "other"
    assert "details" not in thin
    assert full["details"] == {"reason": "a sentence for people"}


async def test_an_event_that_no_version_of_ours_wrote_leaves_a_gap_that_shows(api: Api, inside: Core):
    checkout = await happen(inside, EventType.CHECKOUT_EXPIRED, EventType.CHECKOUT_REOPENED)
    await inside.do("UPDATE events SET kind = 'checkout.unheard_of' WHERE sequence = 2")
    found = await feed(api)
    assert [event["sequence"] for event in found["events"]] == ["1", "3"]
    assert found["next"] == "3"
    assert checkout


# ── What is not the caller's, and what is refused ─────────────────────────────────────────────────────────


async def test_a_merchant_sees_its_own_events_and_no_trace_of_others(api: Api, inside: Core):
    number = await second(api)
    ours = await happen(inside, EventType.CHECKOUT_EXPIRED)
    for _ in range(3):
        await happen(inside, merchant_id=number)
    last = await happen(inside)
    found = await feed(api)
    assert positions(found) == [1, 2, 3], (
        "positions are the merchant's own: they show nothing of others' traffic"
    )
    assert {event["subject"] for event in found["events"]} == {str(ours), str(last)}
    assert {event["source"] for event in found["events"]} == {"urn:checkout-orchestrator:default"}
    theirs = await feed(api, merchant="second")
    assert positions(theirs) == [1, 2, 3]
    assert {event["source"] for event in theirs["events"]} == {"urn:checkout-orchestrator:second"}
    assert await feed(api, merchant="second", checkout=str(ours)) == {"events": [], "next": "3"}


async def test_the_scope_is_asked_for(api: Api):
    for path in ("/v1/events", "/v1/event-types"):
        answer = await api.client.get(path, headers=api.bearer("default", ("checkouts:read",)))
        assert "events:read" in problem(answer, 403)["detail"]
        assert (await api.client.get(path)).status_code == 401


@pytest.mark.parametrize(
    "params",
    [
        {"after": "-1"},
        {"after": "x"},
        {"after": "01"},
        {"after": "1" * 30},
        {"wait": "31"},
        {"wait": "-1"},
        {"wait": "soon"},
        {"limit": "0"},
        {"limit": "1001"},
        {"type": "checkout.unheard_of"},
        {"checkout": "A-1001"},
        {"content": "thick"},
        {"cursor": "1"},
        {"types": "checkout.ready"},
    ],
    ids=str,
)
async def test_an_unknown_parameter_or_a_wrong_value_is_refused_by_its_name(api: Api, params):
    answer = await ask(api, **params)
    (name,) = params
    assert [error["field"].partition("[")[0] for error in problem(answer, 422)["errors"]] == [name]


async def test_a_cursor_beyond_the_end_is_refused_and_not_waited_for(api: Api, inside: Core):
    await happen(inside)
    answer = await ask(api, after="2", wait=30)
    assert "the feed ends at 1" in problem(answer, 422)["detail"]


async def test_a_cursor_that_is_older_than_what_is_kept_is_refused(api: Api, inside: Core):
    for _ in range(4):
        await happen(inside)
    await inside.do("UPDATE events SET created_at = clock() - interval '91 days' WHERE position <= 2")
    assert await events.forget(inside.db, older_than=90 * 86_400) == 2
    answer = await ask(api, after="1")
    said = problem(answer, 410, "cursor-expired")
    assert said["oldest"] == "2"
    assert positions(await feed(api, after=said["oldest"])) == [3, 4]
    assert positions(await feed(api, after="0")) == [3, 4], (
        "from the beginning is from the first that is kept"
    )


async def test_what_is_deleted_while_it_is_read_is_not_taken_for_nothing(api: Api, inside: Core, monkeypatch):
    for _ in range(3):
        await happen(inside)
    page = events.page

    async def slowly(*args: Any, **options: Any):
        await inside.do("UPDATE events SET created_at = clock() - interval '91 days' WHERE position <= 2")
        await events.forget(inside.db, older_than=90 * 86_400)
        return await page(*args, **options)

    monkeypatch.setattr(events, "page", slowly)
    assert (await ask(api, after="1")).status_code == 410


# ── Waiting ───────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def waiting(api: Api, number: int, **params: object):
    """Have so many clients wait, until each of them is known to the poller."""
    # Merchants and a connection first: so many clients at once, in the loop of the server, would starve it.
    await feed(api, **params)
    asked = [asyncio.create_task(feed(api, wait=30, **params)) for _ in range(number)]
    async with asyncio.timeout(20):
        while len(api.services.event_feed) < number:
            for early in (request for request in asked if request.done()):
                pytest.fail(f"a client was answered and does not wait: {early.result()}")
            await asyncio.sleep(0.01)
    try:
        yield asked
    finally:
        for request in asked:
            request.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_client_that_waits_is_answered_by_the_event(api: Api, inside: Core):
    async with waiting(api, 1) as (asked,):
        checkout = await happen(inside)
        found = await asyncio.wait_for(asked, 20)
    assert [event["subject"] for event in found["events"]] == [str(checkout)]
    assert found["next"] == "1"
    assert len(api.services.event_feed) == 0


async def test_a_wait_that_brings_nothing_ends_in_its_time_with_the_cursor(api: Api, inside: Core):
    await happen(inside)
    assert await feed(api, after="1", wait=1) == {"events": [], "next": "1"}


async def test_a_waiting_client_gets_what_it_asked_for_alone(api: Api, inside: Core):
    other = await second(api)
    wanted = await happen(inside)
    async with (
        waiting(api, 1, after="1", type="checkout.cancelled") as (by_type,),
    ):
        by_checkout = asyncio.create_task(feed(api, wait=30, after="1", checkout=str(wanted)))
        await happen(inside, merchant_id=other)
        await happen(inside, EventType.CHECKOUT_EXPIRED)
        async with asyncio.timeout(20):
            while len(api.services.event_feed) < 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        assert not by_type.done()
        assert not by_checkout.done()
        await inside.do("UPDATE checkouts SET hinted = true WHERE id = :id", id=wanted)
        (held,) = await inside.claim(wanted)
        await inside.advance(held, events=(told.Event(EventType.CHECKOUT_CANCELLED),))
        await events.place(inside.db)
        found, own = await asyncio.wait_for(asyncio.gather(by_type, by_checkout), 20)
    assert [event["type"] for event in found["events"]] == ["checkout.cancelled"]
    assert (positions(own), own["next"]) == ([4], "4")


async def test_a_hundred_waiting_clients_cost_one_query_at_a_time(settings: Settings, inside: Core):
    async with serving(settings.model_copy(update={"api_connections": 4000})) as api:
        async with waiting(api, 100) as asked:
            before = api.services.event_feed.queries
            await asyncio.sleep(10 * long_poll.INTERVAL)
            # With one query for each client there would be a thousand.
            assert api.services.event_feed.queries - before <= 15
            await happen(inside)
            found = await asyncio.wait_for(asyncio.gather(*asked), 20)
        assert all(positions(page) == [1] for page in found)


async def test_only_so_many_clients_may_wait_and_a_merchant_takes_not_all_places(settings: Settings):
    async with serving(settings.model_copy(update={"api_connections": 40})) as api:
        assert api.services.event_feed.most == 10
        await second(api)
        async with waiting(api, 2):
            answer = await ask(api, wait=30)
            assert problem(answer, 429, "too-many-waiting")
            assert answer.headers["Retry-After"] == "5"
            assert (await ask(api)).status_code == 200, "without a wait every client is answered"
            other = asyncio.create_task(feed(api, wait=1, merchant="second"))
            assert await asyncio.wait_for(other, 20) == {"events": [], "next": "0"}
            api.services.event_feed.most = 2
            full = await ask(api, wait=30, merchant="second")
            assert problem(full, 503, "too-many-waiting")
            assert full.headers["Retry-After"] == "5"


async def test_waiting_clients_are_answered_when_the_process_ends(api: Api):
    async with waiting(api, 3) as asked:
        api.services.event_feed.stop()
        assert await asyncio.wait_for(asyncio.gather(*asked), 20) == [{"events": [], "next": "0"}] * 3
        assert await feed(api, wait=30) == {"events": [], "next": "0"}


async def test_a_cursor_of_one_process_is_valid_at_every_other_and_clients_wait_at_each(
    settings: Settings, inside: Core
):
    async with serving(settings) as api, serving(settings) as other:
        await happen(inside, EventType.CHECKOUT_EXPIRED)
        found = await feed(api, limit=1)
        assert positions(found) == [1]
        found = await feed(other, after=found["next"])
        assert positions(found) == [2]
        async with (
            waiting(api, 1, after=found["next"]) as (first,),
            waiting(other, 1, after=found["next"]) as (second,),
        ):
            await happen(inside)
            both = await asyncio.wait_for(asyncio.gather(first, second), 20)
    assert both[0] == both[1]
    assert positions(both[0]) == [3]


async def test_the_poller_ends_with_its_process(settings: Settings):
    async with serving(settings) as api, waiting(api, 2) as asked:
        assert "event-feed" in {task.get_name() for task in asyncio.all_tasks()}
        await api.services.event_feed.close()
        assert "event-feed" not in {task.get_name() for task in asyncio.all_tasks()}
        assert await asyncio.wait_for(asyncio.gather(*asked), 20) == [{"events": [], "next": "0"}] * 2


async def test_a_place_is_free_again_when_its_client_has_disconnected(api: Api):
    async with waiting(api, 3) as asked:
        asked[0].cancel()
        async with asyncio.timeout(20):
            while len(api.services.event_feed) > 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)


async def test_a_database_that_is_away_for_a_moment_ends_no_wait(api: Api, inside: Core, monkeypatch):
    since, failures = events.since, []

    async def failing(*args: Any, **options: Any):
        if len(failures) < 1:
            failures.append(1)
            raise OSError
        return await since(*args, **options)

    monkeypatch.setattr(events, "since", failing)
    async with waiting(api, 1) as (asked,):
        await happen(inside)
        assert positions(await asyncio.wait_for(asked, 20)) == [1]
    assert failures


# ── Schemas ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_schemas_of_all_types_are_served_and_hold_for_what_is_served(api: Api, inside: Core):
    answer = await ask(api, path="/v1/event-types")
    types = {described["type"]: described for described in answer.json()["types"]}
    assert set(types) == {str(kind) for kind in EventType}
    await happen(inside, EventType.CHECKOUT_EXPIRED, EventType.CHECKOUT_REOPENED)
    for content in ("thin", "full"):
        for event in (await feed(api, content=content))["events"]:
            schema = types[event["type"]][content]
            jsonschema.Draft202012Validator(schema).validate(event)
            assert event["dataschema"] == schema["$id"]
    assert (await ask(api, path="/v1/event-types", all="1")).status_code == 422


async def test_the_feed_stands_in_the_documentation(api: Api):
    document = (await api.client.get("/openapi.json")).json()
    parameters = document["paths"]["/v1/events"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == {
        "after",
        "wait",
        "limit",
        "type",
        "checkout",
        "content",
    }
    schemas = document["components"]["schemas"]
    assert schemas["EventPage"]["properties"]["events"]["items"] == {
        "$ref": "#/components/schemas/CloudEvent"
    }
    # Each type adds to the data what it says, so the document may not close it.
    assert "additionalProperties" not in schemas["EventContent"]
    assert schemas["EventType"]["enum"] == [str(kind) for kind in EventType]


# ── A process, and the loop of the documentation ──────────────────────────────────────────────────────────


class Enough(Exception):  # noqa: N818 - ends a loop that has no end
    pass


class Shop:
    """A shop's database: what it has handled, and its cursor; both are kept together, or neither is."""

    def __init__(self, wanted: int):
        self.handled: list[tuple[str, str]] = []
        self._known: set[str] = set()
        self._cursor, self._wanted = "0", wanted

    @contextmanager
    def transaction(self):
        yield

    def cursor(self) -> str:
        if len(self.handled) >= self._wanted:
            raise Enough
        return self._cursor

    def remember(self, identity: str) -> bool:
        fresh = identity not in self._known
        self._known.add(identity)
        return fresh

    def handle(self, kind: str, data: dict[str, Any]) -> None:
        self.handled.append((kind, data["checkoutId"]))

    def save_cursor(self, cursor: str) -> None:
        self._cursor = cursor


async def test_the_loop_of_the_documentation_sees_every_event_as_it_happens(server, settings, encryptor):
    page = (ROOT / "docs" / "events.md").read_text()
    (loop,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    token = auth.issue(settings, merchant="default", scopes=READ, lifetime=600, subject="shop")
    shop = Shop(6)

    names: dict[str, Any] = {"URL": str(server.client.base_url), "TOKEN": token, "shop": shop}

    def consume() -> None:
        with suppress(Enough):
            exec(compile(loop, "docs/events.md", "exec"), names)  # noqa: S102 - it is our own
        names["client"].close()

    assert settings.database_url is not None
    async with core(settings.database_url, encryptor) as inside:
        consuming = asyncio.create_task(asyncio.to_thread(consume))
        checkouts = [await happen(inside, EventType.CHECKOUT_EXPIRED) for _ in range(3)]
        await asyncio.wait_for(consuming, 60)
    assert shop.handled == [
        (kind, str(checkout)) for checkout in checkouts for kind in ("checkout.ready", "checkout.expired")
    ]


async def test_a_process_that_is_asked_to_end_answers_who_waits_and_cuts_nothing_off(server, settings):
    token = auth.issue(settings, merchant="default", scopes=READ, lifetime=600, subject="shop")
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=server.client.base_url, headers=headers, timeout=60) as client:
        asked = asyncio.create_task(client.get("/v1/events", params={"wait": 30}))
        await asyncio.sleep(1)
        assert not asked.done()
        server.process.send_signal(signal.SIGTERM)
        answer = await asyncio.wait_for(asked, 20)
    assert (answer.status_code, answer.json()) == (200, {"events": [], "next": "0"})
    assert await asyncio.to_thread(server.process.wait, 60) == 0
    assert server.logged("api_ended")
    assert not server.logged("requests_cut_off")
