"""`Prefer: wait=10`: the answer waits for what a command came to, and holds nothing else while it waits."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from orchestrator.api import long_poll
from orchestrator.api.commands import LONGEST_WAIT, wait_of
from orchestrator.store import read_model
from tests.integration.api.test_command_progress import handled
from tests.integration.api.test_commands import EVERY, another_merchant, in_state, operation, paid
from tests.support.api_scene import Api, serving

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.settings import Settings

pytestmark = pytest.mark.anyio

SETTLE = "UPDATE money_operations SET state = 'succeeded', settled_at = clock()"


async def ask(api: Api, checkout: str, kind: str = "capture", *, prefer: str, key: str = "k-1", **more: str):
    headers = api.bearer(more.get("merchant", "default"), scopes=EVERY)
    headers |= {"Idempotency-Key": key, "Prefer": prefer}
    body = {"amount": 10} if kind in {"capture", "refund"} else {}
    return await api.client.post(f"/v1/checkouts/{checkout}/{kind}", json=body, headers=headers)


@asynccontextmanager
async def waiting(api: Api, *checkouts: str, prefer: str = "wait=20", **more: str):
    """Have a client wait for a command of each checkout, until each of them is known to the poller."""
    asked = [
        asyncio.create_task(ask(api, one, prefer=prefer, key=f"k-{number}", **more))
        for number, one in enumerate(checkouts)
    ]
    async with asyncio.timeout(15):
        while len(api.services.command_waits) < len(checkouts):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    try:
        yield asked
    finally:
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def commands(api: Api) -> list[UUID]:
    return [row.id for row in await api.sql("SELECT id FROM commands ORDER BY id")]


async def test_the_answer_comes_with_the_end_of_the_operation(api: Api):
    checkout = await paid(api)
    async with waiting(api, checkout) as (asked,):
        (command,) = await commands(api)
        await operation(api, checkout, "capture", 1000, command_id=command)
        await handled(api, str(command))
        await asyncio.sleep(4 * long_poll.INTERVAL)
        assert not asked.done(), "it is under way"
        await api.sql(SETTLE)
        answer = await asyncio.wait_for(asked, 15)
    told = answer.json()
    assert (answer.status_code, told["id"], told["state"]) == (200, str(command), "done")
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert answer.headers["Location"] == f"/v1/commands/{command}"
    assert told["operations"][0]["state"] == "succeeded"
    assert len(api.services.command_waits) == 0


async def test_a_refusal_ends_the_wait_too(api: Api):
    async with waiting(api, await paid(api)) as (asked,):
        (command,) = await commands(api)
        await handled(api, str(command), "refused_nothing_left", kind="capture")
        answer = await asyncio.wait_for(asked, 15)
    assert (answer.status_code, answer.json()["state"]) == (200, "refused")
    assert answer.json()["result"]["code"] == "refused_nothing_left"


async def test_what_is_not_finished_in_time_is_answered_as_it_stands(api: Api):
    answer = await ask(api, await paid(api), prefer="wait=1")
    assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert answer.json()["requestedAt"]


async def test_a_cancel_may_be_waited_for(api: Api):
    checkout = await in_state(api, "awaiting_payment")
    asked = asyncio.create_task(ask(api, checkout, "cancel", prefer="wait=20"))
    async with asyncio.timeout(15):
        while not (found := await commands(api)):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        await handled(api, str(found[0]))
        await api.sql(
            "UPDATE checkouts SET state = 'cancelled', cancel_requested_at = clock(), ended_at = clock()"
        )
        answer = await asked
    assert (answer.status_code, answer.json()["state"]) == (200, "done")


async def test_a_repeat_waits_for_the_command_that_is_there_already(api: Api):
    checkout = await paid(api)
    first = await ask(api, checkout, prefer="respond-async")
    (command,) = await commands(api)
    await handled(api, str(command))
    again = await ask(api, checkout, prefer="wait=10")
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["command"]["id"] == str(command)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=0", 0),
        ("wait=10", 10),
        ("WAIT = 10", 10),
        ('wait="10"', 10),
        ("respond-async, wait=7; foo=bar", 7),
        ("wait=3, wait=9", 3),
        ("wait=999999999", LONGEST_WAIT),
        ("wait", None),
        ("wait=", None),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=x", None),
        ("wait=٣", None),
        ("wait=9999999999", None),
        ("await=10", None),
        ("respond-async", None),
        ("", None),
    ],
)
def test_a_preference_is_read_as_the_standard_says_and_ignored_where_it_is_not_known(prefer, seconds):
    assert wait_of([prefer]) == seconds
    assert wait_of(["handling=lenient", prefer]) == seconds


async def test_without_the_preference_no_client_waits(api: Api):
    answer = await ask(api, await paid(api), prefer="respond-async")
    assert (answer.status_code, "Preference-Applied" in answer.headers) == (202, False)
    assert set(answer.json()) == {"id", "orderId", "state", "version", "command", "links"}


async def test_many_that_wait_cost_one_query_at_a_time_and_no_connection(settings: Settings):
    async with serving(settings.model_copy(update={"api_connections": 4000})) as api:
        checkouts = [await paid(api, transaction=str(number)) for number in range(40)]
        async with waiting(api, *checkouts) as asked:
            before = api.services.command_waits.queries
            await asyncio.sleep(10 * long_poll.INTERVAL)
            assert api.services.command_waits.queries - before <= 15
            # The pool has four connections, and other requests are answered.
            assert (await api.get(f"/v1/checkouts/{checkouts[0]}")).status_code == 200
            await api.sql("UPDATE commands SET handled_at = clock(), result = 'accepted'")
            answers = await asyncio.wait_for(asyncio.gather(*asked), 15)
        assert {answer.status_code for answer in answers} == {200}


async def test_where_no_slot_is_free_the_command_is_stored_and_no_client_waits(settings: Settings):
    async with serving(settings.model_copy(update={"api_connections": 20})) as api:
        assert api.services.command_waits.most == 5
        first, second = await paid(api), await paid(api, transaction="2")
        async with waiting(api, first):
            # One merchant takes a fifth of the slots.
            answer = await ask(api, second, prefer="wait=20", key="other")
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
        assert "Preference-Applied" not in answer.headers
        assert len(await commands(api)) == 2


async def test_whoever_waits_is_answered_when_the_process_ends(api: Api):
    async with waiting(api, await paid(api)) as (asked,):
        api.services.end_waits()
        answer = await asyncio.wait_for(asked, 15)
        assert (answer.status_code, answer.json()["state"]) == (202, "pending")
    late = await ask(api, await paid(api, transaction="2"), prefer="wait=20", key="late")
    assert late.status_code == 202


async def test_a_database_that_is_away_for_a_moment_ends_no_wait(api: Api, monkeypatch):
    read, failures = read_model.commands, []

    async def failing(*args, **options):
        if not failures:
            failures.append(1)
            raise OSError
        return await read(*args, **options)

    monkeypatch.setattr(read_model, "commands", failing)
    async with waiting(api, await paid(api)) as (asked,):
        (command,) = await commands(api)
        await handled(api, str(command))
        assert (await asyncio.wait_for(asked, 15)).status_code == 200
    assert failures


async def test_a_place_is_free_again_when_its_client_has_gone(api: Api):
    async with waiting(api, await paid(api)) as (asked,):
        asked.cancel()
        async with asyncio.timeout(15):
            while len(api.services.command_waits):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)


async def test_a_wait_tells_nothing_of_another_merchant(api: Api):
    checkout = await paid(api)
    await another_merchant(api)
    answer = await ask(api, checkout, prefer="wait=20", merchant="other")
    assert answer.status_code == 404
