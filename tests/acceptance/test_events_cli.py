"""`orchestrator events`: the feed on the command line, listed and followed."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.states import State
from orchestrator.store import events
from tests.conftest import SECRET_KEY
from tests.support.cloud_events import check
from tests.support.command import orchestrator, running
from tests.support.factories import core

pytestmark = pytest.mark.anyio


@pytest.fixture
def known(database_url):
    return {"DATABASE_URL": database_url, "SECRET_KEYS": f'["{SECRET_KEY}"]'}


@pytest.fixture
async def inside(database_url, encryptor):
    async with core(database_url, encryptor) as new_core:
        yield new_core


async def happen(inside, order: str, **changes):
    held = await inside.held(State.AWAITING_PAYMENT, order_ref=order, **changes)
    asked = Attention(code=AttentionCode.OTHER, facts={"text": "a sentence for people"})
    await inside.advance(held, attention=asked, events=(Event(EventType.CHECKOUT_EXPIRED),))
    await events.place(inside.db)
    return held.id


async def test_the_feed_is_listed_from_a_position_on_and_by_checkout(inside, known):
    first, second = [await happen(inside, order) for order in ("A-1", "A-2")]
    shown = orchestrator("events", "list", "--after", "3", **known).stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == ["4", "5", "6"]
    assert "reason: a sentence for people" in shown
    listed = orchestrator("events", "list", "--json", "--type", "checkout.attention", **known).stdout
    told = [check(json.loads(line)) for line in listed.splitlines()]
    assert [(event["subject"], event["position"]) for event in told] == [
        (str(first), "3"),
        (str(second), "6"),
    ]
    await inside.do("UPDATE events SET position = NULL WHERE position = 6")
    own = orchestrator("events", "list", "--checkout", "A-2", "--json", "--full", **known).stdout
    told = [check(json.loads(line)) for line in own.splitlines()]
    assert [event.get("position") for event in told] == ["4", "5", None]
    assert told[-1]["data"]["details"] == {"reason": "a sentence for people"}


async def test_the_newest_are_listed_and_what_is_left_out_is_said(inside, known):
    first, *_ = [await happen(inside, f"A-{number}") for number in range(1, 36)]
    await inside.do("UPDATE events SET position = position + 20000 WHERE position > 12")
    await inside.do("UPDATE event_feeds SET last_position = 20105")

    def listed(*chosen):
        ended = orchestrator("events", "list", "--json", *chosen, **known)
        assert ended.returncode == 0, ended.stderr
        return [int(json.loads(line)["position"]) for line in ended.stdout.splitlines()], ended.stderr

    assert listed() == (
        [*range(6, 13), *range(20013, 20106)],
        "There are more than 100: these are the newest; --after 0 begins with the oldest, --limit shows more.\n",
    )
    assert listed("--limit", "105") == ([*range(1, 13), *range(20013, 20106)], "")
    forwards = "There are more than 3: go on with --after {}, or ask for more with --limit.\n"
    assert listed("--after", "0", "--limit", "3") == ([1, 2, 3], forwards.format(3))
    assert listed("--after", "11", "--limit", "3") == ([12, 20013, 20014], forwards.format(20014))
    assert listed("--after", "20102") == ([20103, 20104, 20105], "")
    # Of a type, over positions that are free.
    rare = ("--type", "checkout.expired")
    found, said = listed(*rare, "--limit", "33")
    assert (found[:3], len(found), "the newest" in said) == ([8, 11, 20014], 33, True)
    assert listed(*rare, "--limit", "35")[1] == ""

    # A checkout's own: the newest of it, and the first after a position however many came before.
    await inside.do(
        "INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, created_at, position)"
        "  SELECT checkout_id, 3 + n, merchant_id, kind, payload, correlation_id, created_at, 30000 + n"
        "    FROM events CROSS JOIN generate_series(1, 9) n WHERE checkout_id = :id AND sequence = 3",
        id=first,
    )
    own = ("--checkout", "A-1", "--limit", "4")
    assert listed(*own)[0] == [30006, 30007, 30008, 30009]
    assert listed(*own, "--after", "30004")[0] == [30005, 30006, 30007, 30008]
    assert listed(*own, "--after", "3") == (
        [30001, 30002, 30003, 30004],
        forwards.format(30004).replace("3:", "4:"),
    )


async def test_events_are_followed_as_they_come_from_whichever_merchant(inside, known, tmp_path):
    await happen(inside, "A-1")
    await inside.do("INSERT INTO merchants (name) VALUES ('second')")
    (second,) = await inside.all("SELECT id FROM merchants WHERE name = 'second'")
    with running("events", "follow", "--limit", "4", "--json", data_dir=tmp_path, **known) as follower:
        # It begins with the events after its start; until then an event comes now and then.
        for number in range(1, 200):
            await happen(inside, f"B-{number}", **({"merchant_id": second} if number % 2 else {}))
            await asyncio.sleep(0.25)
            if follower.process.poll() is not None:
                break
        assert await asyncio.to_thread(follower.process.wait, 30) == 0
        follower.read_to_the_end()
    told = [check(json.loads(line)) for line in follower.said.splitlines() if line.startswith("{")]
    assert len(told) == 4
    assert len({event["id"] for event in told}) == 4
    assert not {"A-1"} & {event["data"]["orderId"] for event in told}


async def test_a_time_span_to_replay_counts_by_the_clock_that_events_have(inside, known):
    await inside.do("UPDATE clock_skew SET seconds = 10 * 86400")
    await happen(inside, "A-1")
    known["WEBHOOK_ALLOWED_NETWORKS"] = '["127.0.0.1"]'
    added = orchestrator("webhooks", "add", "http://127.0.0.1:9999/hook", "--json", **known)
    webhook = json.loads(added.stdout)["id"]
    replayed = orchestrator("webhooks", "replay", webhook, "--last", "2h", "--json", **known)
    assert json.loads(replayed.stdout) == {"id": webhook, "replayed": 3}, replayed.stderr


def test_a_position_belongs_to_one_merchants_feed(known):
    ended = orchestrator("events", "follow", "--after", "3", **known)
    assert ended.returncode == 2
    assert "name it with --merchant" in ended.stderr
