"""Events reach endpoints: each at least once, with one id, signed, in the order of their checkout, whatever
fails.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from standardwebhooks.webhooks import Webhook

from orchestrator.delivery import retries, signature
from orchestrator.domain import events as facts
from orchestrator.store import deliveries, replays, webhooks
from orchestrator.store.merchants import Merchants
from tests.conftest import make_settings
from tests.support.receivers import receiving

pytestmark = pytest.mark.anyio


async def test_an_event_arrives_as_the_signed_cloud_event_of_the_feed(shop):
    endpoint = await shop.endpoint(url=shop.receiver.url("/hook?token=a"))
    checkout = await shop.checkout()
    async with shop.delivering():
        await shop.receiver.until(lambda: shop.receiver.taken)
        await shop.drained()
    (delivery,) = shop.receiver.received
    assert delivery.id == f"{checkout}-1" == delivery.event["id"]
    assert delivery.headers["content-type"] == "application/cloudevents+json"
    assert delivery.path == "/hook?token=a"
    assert delivery.event["position"] == "1"
    assert shop.receiver.unverified == 0
    with pytest.raises(Exception, match="No matching signature"):
        Webhook(signature.written(b"x" * 32)).verify(delivery.body, delivery.headers)
    (attempt,) = await deliveries.attempts(
        shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9
    )
    assert (attempt.outcome, attempt.status, attempt.number, attempt.result) == (
        "delivered",
        200,
        1,
        "delivered",
    )


async def test_events_of_a_checkout_come_in_order_and_the_others_do_not_wait_for_a_refused_event(shop):
    await shop.endpoint()
    poisoned, *others = await shop.checkouts(8, events_of_each=4)
    shop.receiver.answer = lambda event: (
        500 if event["subject"] == str(poisoned) and event["sequence"] == "2" else 200
    )
    async with shop.delivering():
        await shop.receiver.until(lambda: len(shop.receiver.taken) == 1 + 4 * len(others))
    by_checkout = shop.receiver.by_checkout()
    assert by_checkout.pop(str(poisoned)) == [1]
    assert by_checkout == {str(checkout): [1, 2, 3, 4] for checkout in others}
    assert await shop.streams() == 1, "what is delivered leaves no row"


async def test_a_refused_event_is_tried_again_on_schedule_and_given_up_after_thirty_days(shop):
    endpoint = await shop.endpoint()
    refused = await shop.checkout(2)
    healthy = await shop.checkouts(1)
    shop.receiver.answer = lambda event: 422 if event["id"] == f"{refused}-1" else 200
    day = 86_400

    async def due_in() -> float:
        (seconds,) = await shop.core.all(
            "SELECT extract(epoch FROM due_at - clock())::float8 FROM delivery_streams WHERE checkout_id = :id AND lease IS NULL",
            id=refused,
        )
        return seconds

    seen = []
    async with shop.delivering() as deliverer:
        for number in range(1, 80):
            await shop.receiver.until(
                lambda number=number: (
                    sum(delivery.status == 422 for delivery in shop.receiver.received) == number
                )
            )
            await shop.receiver.until(lambda: deliverer.in_flight == 0)
            if any(delivery.id == f"{refused}-2" for delivery in shop.receiver.received):
                break
            if number % 4 == 0:  # it takes others meanwhile, or it would be paused
                healthy += await shop.checkouts(1)
                count = len(healthy)
                await shop.receiver.until(
                    lambda count=count: len({delivery.id for delivery in shop.receiver.taken}) == count
                )
            seen.append(await due_in())
            await shop.later(seen[-1] + 1)
            deliverer.wake()
            if sum(seen) > 30 * day:
                break
        await shop.receiver.until(
            lambda: any(delivery.id == f"{refused}-2" for delivery in shop.receiver.taken)
        )
        await shop.drained()
    for wait, planned in zip(seen, (*retries.DELAYS, *(retries.DELAYS[-1],) * 99), strict=False):
        assert planned - 2 <= wait <= planned * (1 + retries.JITTER)
    assert sum(seen) > 30 * day
    rows = await deliveries.attempts(
        shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=99, checkout=refused
    )
    assert [attempt.result for attempt in rows if attempt.sequence == 1] == [
        "given_up",
        *[None] * (len(rows) - 2),
    ]
    assert {delivery.id for delivery in shop.receiver.received if delivery.status == 422} == {f"{refused}-1"}

    shop.receiver.answer = lambda _: 200
    assert await replays.given_up(shop.core.db, endpoint.id) == 1
    async with shop.delivering():
        await shop.drained()
    assert shop.receiver.received[-1].id == f"{refused}-1"


async def test_what_a_killed_deliverer_held_is_sent_again_with_the_same_id(shop):
    await shop.endpoint()
    checkout = await shop.checkout()
    taken = await deliveries.take(
        shop.core.db, {endpoint.id: 5 for endpoint in await webhooks.served(shop.core.db)}, seconds=30
    )
    assert [event.sequence for event in taken] == [1], "another deliverer has it, and is killed"
    async with shop.delivering() as deliverer:
        await asyncio.sleep(0.3)
        assert not shop.receiver.received
        await shop.later(31)
        deliverer.wake()
        await shop.drained()
    assert [delivery.id for delivery in shop.receiver.received] == [f"{checkout}-1"]
    late = deliveries.Written(
        endpoint_id=taken[0].endpoint_id,
        checkout_id=checkout,
        purpose="event",
        lease=taken[0].lease,
        sequence=1,
        step="failed",
        due_in=1.0,
    )
    await deliveries.write(shop.core.db, [late])
    assert await shop.streams() == 0, "a lease that is over writes nothing"


async def test_an_event_that_comes_while_its_checkout_is_being_delivered_follows_at_once(shop, monkeypatch):
    """The deliverer reads the database only after a notification."""
    monkeypatch.setattr("orchestrator.delivery.deliverer.CHECK_EVERY", 600.0)
    endpoint = await shop.endpoint()
    held = await shop.core.held()
    shop.receiver.delay = 0.05
    async with shop.delivering(told=True) as deliverer:
        await asyncio.sleep(0.2)
        for number in range(1, 13):
            held = await shop.core.advance(held, events=(facts.ready(methods=number),))
            await shop.place()
            deliverer.wake(str(endpoint.id))
            await asyncio.sleep(0.02)
        await shop.receiver.until(lambda: len(shop.receiver.taken) == 12)
        await shop.drained()
    assert shop.receiver.by_checkout() == {str(held.id): list(range(1, 13))}


async def test_two_deliverers_at_once_deliver_each_event_once_and_in_order(shop):
    await shop.endpoint()
    async with shop.delivering(), shop.delivering():
        made = await shop.checkouts(60, events_of_each=3)
        await shop.drained()
    assert shop.receiver.by_checkout() == {str(checkout): [1, 2, 3] for checkout in made}


async def test_only_wanted_types_are_sent_and_full_documents_where_they_are_asked_for(shop):
    other = await shop.core.held()
    async with receiving() as second:
        await shop.endpoint(kinds=("checkout.completed",))
        await shop.endpoint(second, content="full")
        await shop.core.release(other)
        checkout = await shop.checkout(2)
        async with shop.delivering():
            await second.until(lambda: len(second.taken) == 2)
            await shop.drained()
        assert not shop.receiver.received
        assert [delivery.id for delivery in second.received] == [f"{checkout}-1", f"{checkout}-2"]
        assert all("details" in delivery.event["data"] for delivery in second.received)


async def test_410_switches_an_endpoint_off_and_resuming_continues(shop):
    endpoint = await shop.endpoint()
    checkout = await shop.checkout(2)
    shop.receiver.answer = lambda _: 410
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.failed == 1)
        await shop.receiver.until(lambda: deliverer.in_flight == 0)
        assert (await shop.webhook(endpoint)).status == "off"
        unsent = await shop.checkout()
        shop.receiver.answer = lambda _: 200
        await asyncio.sleep(0.2)
        assert len(shop.receiver.received) == 1
        await webhooks.resume(shop.core.db, endpoint.id, merchant_id=1)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained()
    assert shop.receiver.by_checkout() == {str(checkout): [1, 2]}, f"{unsent} came while it was off"


async def test_a_circuit_opens_one_probe_at_a_time_is_sent_and_what_failed_is_tried_again_when_it_is_back(
    shop,
):
    endpoint = await shop.endpoint()
    shop.receiver.answer = lambda _: 503
    made = await shop.checkouts(40)
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.in_flight == 0 and deliverer.failed >= 10)
        assert (await shop.webhook(endpoint)).opened == 1
        failed = deliverer.failed
        await asyncio.sleep(0.3)
        assert deliverer.failed == failed < 30, "most were never tried"
        for number in range(1, 4):
            await shop.later(400)
            deliverer.wake(webhooks.CHANGED)
            await shop.receiver.until(lambda number=number: deliverer.failed == failed + number)
            await shop.receiver.until(lambda: deliverer.in_flight == 0)
            await asyncio.sleep(0.2)
            assert deliverer.failed == failed + number, "one probe, and no more"
        assert (await shop.webhook(endpoint)).opened == 4
        shop.receiver.answer = lambda _: 200
        await shop.later(400)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained()
    assert {delivery.event["subject"] for delivery in shop.receiver.taken} == {
        str(checkout) for checkout in made
    }
    assert (await shop.webhook(endpoint)).opened == 0


async def test_an_endpoint_that_only_fails_for_five_days_is_paused_and_nothing_is_lost(shop):
    endpoint = await shop.endpoint()
    made = await shop.checkouts(12)
    shop.receiver.answer = lambda _: 503
    async with shop.delivering() as deliverer:
        for _ in range(200):
            await shop.receiver.until(lambda: deliverer.in_flight == 0)
            if (await shop.webhook(endpoint)).status == "paused":
                break
            before = deliverer.failed
            await shop.later(7200)
            deliverer.wake(webhooks.CHANGED)
            await shop.receiver.until(lambda before=before: deliverer.failed > before)
        paused = await shop.webhook(endpoint)
        assert (paused.status, paused.pause_reason) == ("paused", "failing")
        assert paused.failing_for >= webhooks.PAUSE_AFTER
        (sentence,) = [
            trouble for trouble in await webhooks.troubles(shop.core.db, []) if str(endpoint.id) in trouble
        ]
        assert "paused" in sentence
        made += await shop.checkouts(3)
        shop.receiver.answer = lambda _: 200
        await webhooks.resume(shop.core.db, endpoint.id, merchant_id=1)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained()
    assert {delivery.event["subject"] for delivery in shop.receiver.taken} == {
        str(checkout) for checkout in made
    }


async def test_retry_after_is_the_least_that_a_throttled_endpoint_waits(shop):
    endpoint = await shop.endpoint()
    (checkout,) = await shop.checkouts(1)
    shop.receiver.answer = lambda _: (429, {"Retry-After": "900"}, "slow down")
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.failed == 1)
        await shop.receiver.until(lambda: deliverer.in_flight == 0)
        (seconds,) = await shop.core.all(
            "SELECT extract(epoch FROM due_at - clock())::float8 FROM delivery_streams WHERE checkout_id = :id",
            id=checkout,
        )
        assert 890 <= seconds <= 900 * (1 + retries.JITTER)
        assert (await shop.webhook(endpoint)).open_for > 890
        await shop.checkouts(2)
        await asyncio.sleep(0.2)
        assert deliverer.failed == 1, "nothing else is sent there meanwhile"
    (attempt,) = await deliveries.attempts(
        shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9
    )
    assert (attempt.outcome, attempt.answer) == ("throttled", b"slow down")


async def test_a_slow_endpoint_delays_no_other(shop):
    async with receiving() as slow:
        slow.delay = 30.0
        await shop.endpoint(slow)
        await shop.endpoint()
        async with shop.delivering(webhook_in_flight=8, webhook_total_timeout=20.0, shutdown_timeout=5.6):
            made = await shop.checkouts(50)
            await shop.receiver.until(lambda: len(shop.receiver.taken) == 50, seconds=15)
        assert slow.in_flight >= 1
        assert not slow.received
    assert set(shop.receiver.by_checkout()) == {str(checkout) for checkout in made}


async def test_the_next_delivery_begins_with_an_answer_and_not_when_its_result_is_written(shop, monkeypatch):
    """An endpoint that takes few at a time was served at the pace at which results are written."""
    monkeypatch.setattr("orchestrator.delivery.deliverer.CHECK_EVERY", 600.0)
    may_write, write = asyncio.Event(), deliveries.write

    async def held_back(db, results):
        await may_write.wait()
        return await write(db, results)

    monkeypatch.setattr("orchestrator.delivery.deliverer.deliveries.write", held_back)
    await shop.endpoint()
    made = await shop.checkouts(20)
    async with shop.delivering(told=True, webhook_endpoint_in_flight=2):
        await shop.receiver.until(lambda: len(shop.receiver.taken) == 20, seconds=15)
        may_write.set()
        await shop.drained()
    assert shop.receiver.most_in_flight <= 2
    assert shop.receiver.by_checkout() == {str(checkout): [1] for checkout in made}


async def test_a_list_of_a_backlog_delays_no_other_endpoint(shop, monkeypatch):
    """The database answers for the backlog only after the other endpoint's events have arrived."""
    take, lists = deliveries.take, []

    async def slowly(db, wanted, **named):
        lists.append(set(wanted))
        if len(lists) > 1 and behind.id in wanted:
            await other.until(lambda: len(other.taken) == 3, seconds=15)
        return await take(db, wanted, **named)

    monkeypatch.setattr("orchestrator.delivery.deliverer.deliveries.take", slowly)
    behind = await shop.endpoint()
    made = await shop.checkouts(30)
    async with receiving() as other, shop.delivering(webhook_endpoint_in_flight=2):
        await shop.receiver.until(lambda: len(lists) > 1, seconds=15)
        await shop.endpoint(other)
        made += await shop.checkouts(3)
        await other.until(lambda: len(other.taken) == 3, seconds=15)
        await shop.drained()
    assert set(shop.receiver.by_checkout()) == {str(checkout) for checkout in made}


async def test_no_more_are_under_way_than_the_setting_says(shop):
    await shop.endpoint()
    shop.receiver.delay = 0.05
    async with shop.delivering(webhook_endpoint_in_flight=3):
        await shop.checkouts(40)
        await shop.drained()
    assert 1 < shop.receiver.most_in_flight <= 3


async def test_a_new_secret_and_the_old_secret_both_sign_until_the_overlap_ends(shop):
    endpoint = await shop.endpoint()
    new = signature.new_secret()
    await webhooks.rotate(
        shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, secret=new, overlap=3600
    )
    await shop.checkout()
    async with shop.delivering() as deliverer:
        await shop.drained()
        await shop.later(3601)
        deliverer.wake(webhooks.CHANGED)
        await shop.checkout()
        await shop.drained()
    first, second = shop.receiver.received
    assert first.headers["webhook-signature"].count("v1,") == 2
    assert second.headers["webhook-signature"].count("v1,") == 1
    for delivery, secrets in ((first, (new, shop.secrets[endpoint.id])), (second, (new,))):
        for secret in secrets:
            assert Webhook(signature.written(secret)).verify(delivery.body, delivery.headers) == json.loads(
                delivery.body
            )


async def test_a_row_that_leads_elsewhere_is_not_served(shop):
    endpoint = await shop.endpoint()
    async with receiving() as thief:
        await shop.core.do(
            "UPDATE webhook_endpoints SET url = :url WHERE id = :id", url=thief.url(), id=endpoint.id
        )
        await shop.checkout()
        async with shop.delivering():
            await asyncio.sleep(0.5)
        assert not thief.received
    assert await shop.streams() == 1


async def test_an_answer_is_kept_to_its_first_kilobyte_under_the_key_of_its_checkout(shop):
    endpoint = await shop.endpoint()
    checkout = await shop.checkout()
    shop.receiver.answer = lambda _: (200, {}, "x" * 5000)
    async with shop.delivering():
        await shop.drained()
    (attempt,) = await deliveries.attempts(
        shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9
    )
    assert attempt.answer == b"x" * 1024
    (stored,) = await shop.core.all("SELECT answer FROM delivery_attempts")
    assert b"xxx" not in bytes(stored)
    await shop.core.do("UPDATE intents SET data_key = NULL WHERE checkout_id = :id", id=checkout)
    (attempt,) = await deliveries.attempts(
        shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9
    )
    assert attempt.answer is None


async def test_a_test_event_is_sent_once_also_to_a_paused_endpoint(shop):
    endpoint = await shop.endpoint()
    await webhooks.pause(shop.core.db, endpoint.id, "asked")
    test = await deliveries.test(shop.core.db, endpoint.id)
    shop.receiver.answer = lambda _: 500
    async with shop.delivering():
        await shop.drained()
    (delivery,) = shop.receiver.received
    assert (delivery.event["type"], delivery.id) == ("webhook.test", f"{test}-1")
    assert shop.receiver.unverified == 0
    assert (await shop.webhook(endpoint)).failing_since is None
    (attempt,) = await deliveries.attempts(
        shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9
    )
    assert (attempt.purpose, attempt.outcome) == ("test", "server_error")


async def test_a_replay_of_one_event_and_of_a_period_sends_the_same_ids(shop):
    endpoint = await shop.endpoint()
    checkout, other = await shop.checkouts(2, events_of_each=3)
    async with shop.delivering():
        await shop.drained()
        before = len(shop.receiver.received)
        assert (
            await replays.event(shop.core.db, endpoint.id, merchant_id=1, checkout=checkout, sequence=2) == 1
        )
        assert (
            await replays.event(shop.core.db, endpoint.id, merchant_id=1, checkout=checkout, sequence=9) == 0
        )
        await shop.drained()
        assert [delivery.id for delivery in shop.receiver.received[before:]] == [f"{checkout}-2"]
        ((since, until),) = await shop.core.all(
            "SELECT clock() - interval '1 hour' AS since, clock() + interval '1 hour' AS before"
        )
        assert await replays.period(shop.core.db, endpoint.id, merchant_id=1, since=since, before=until) == 6
        await shop.drained()
    again = [delivery.id for delivery in shop.receiver.received[before + 1 :]]
    assert sorted(again) == sorted(
        f"{subject}-{number}" for subject in (checkout, other) for number in (1, 2, 3)
    )


async def test_a_deleted_endpoint_is_sent_nothing_and_its_rows_leave(shop):
    endpoint = await shop.endpoint()
    await shop.checkouts(3)
    await webhooks.delete(shop.core.db, endpoint.id, merchant_id=1)
    async with shop.delivering() as deliverer:
        await asyncio.sleep(0.2)
        await shop.later(120)
        deliverer._clean_at = float("-inf")
        deliverer.wake()
        await shop.drained()
    assert not shop.receiver.received
    await deliveries.clear(shop.core.db)
    assert await shop.core.all("SELECT count(*) FROM webhook_endpoints") == [0]


async def test_a_merchant_without_endpoints_has_no_streams(shop):
    await shop.checkouts(3)
    assert await shop.streams() == 0


async def opened(shop, deliverer) -> None:
    """Wait until the circuit of the only endpoint is open, and nothing is under way."""
    await shop.receiver.until(lambda: deliverer.in_flight == 0 and deliverer.failed >= 10)


async def test_a_probe_that_could_not_be_taken_is_followed_by_another(shop, monkeypatch):
    endpoint = await shop.endpoint()
    made = await shop.checkouts(20)
    shop.receiver.answer = lambda _: 503
    take, lost = deliveries.take, []

    async def breaks_once(db, wanted, *, probes=(), seconds):
        if probes and not lost:
            lost.append(probes)
            raise OSError
        return await take(db, wanted, probes=probes, seconds=seconds)

    monkeypatch.setattr(deliveries, "take", breaks_once)
    async with shop.delivering() as deliverer:
        await opened(shop, deliverer)
        shop.receiver.answer = lambda _: 200
        for _ in range(2):  # the second time the lease of the lost delivery is over
            await shop.later(400)
            deliverer.wake(webhooks.CHANGED)
            await shop.receiver.until(lambda: bool(lost))
        await shop.drained()
    assert lost == [{endpoint.id}]
    assert {delivery.event["subject"] for delivery in shop.receiver.taken} == {
        str(checkout) for checkout in made
    }


async def test_a_test_event_is_no_probe(shop, monkeypatch):
    monkeypatch.setattr("orchestrator.delivery.deliverer.TESTS_AT_ONCE", 0)
    endpoint = await shop.endpoint()
    await deliveries.test(shop.core.db, endpoint.id)
    made = await shop.checkouts(20)
    shop.receiver.answer = lambda _: 503
    async with shop.delivering() as deliverer:
        await opened(shop, deliverer)
        shop.receiver.answer = lambda _: 200
        await shop.later(400)
        deliverer.wake(webhooks.CHANGED)
        await shop.receiver.until(lambda: len(shop.receiver.taken) == len(made))
        await shop.receiver.until(lambda: deliverer.in_flight == 0)
    assert await shop.core.all("SELECT purpose FROM delivery_streams") == ["test"]
    assert {delivery.event["type"] for delivery in shop.receiver.received} == {"checkout.ready"}


async def test_a_probe_that_finds_nothing_to_send_is_followed_by_another_at_once(shop):
    endpoint = await shop.endpoint()
    await shop.checkouts(12)
    shop.receiver.answer = lambda _: 503
    async with shop.delivering() as deliverer:
        await opened(shop, deliverer)
        failed = deliverer.failed
        await webhooks.change(
            shop.core.db,
            shop.core.encryptor,
            endpoint.id,
            merchant_id=1,
            changes={"kinds": ("checkout.completed",)},
        )
        await shop.later(400)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained()
        assert deliverer.failed == failed


async def test_only_so_many_test_events_of_an_endpoint_wait(shop):
    first, other = await shop.endpoint(), await shop.endpoint()
    for _ in range(deliveries.TESTS_WAITING):
        await deliveries.test(shop.core.db, first.id)
    with pytest.raises(deliveries.TooManyTests):
        await deliveries.test(shop.core.db, first.id)
    await deliveries.test(shop.core.db, other.id)
    async with shop.delivering():
        await shop.drained()
    await deliveries.test(shop.core.db, first.id)


async def test_no_more_test_events_are_under_way_than_may_be(shop, monkeypatch):
    monkeypatch.setattr("orchestrator.delivery.deliverer.TESTS_AT_ONCE", 2)
    for endpoint in [await shop.endpoint() for _ in range(3)]:
        for _ in range(deliveries.TESTS_WAITING):
            await deliveries.test(shop.core.db, endpoint.id)
    shop.receiver.delay = 0.05
    async with shop.delivering():
        await shop.drained()
    assert shop.receiver.most_in_flight <= 2


async def test_a_replay_keeps_the_order_of_what_is_still_to_be_sent(shop):
    endpoint = await shop.endpoint()
    checkout = await shop.checkout(3)
    shop.receiver.answer = lambda event: 500 if event["sequence"] == "2" else 200
    ((since, before),) = await shop.core.all(
        "SELECT clock() - interval '1 hour' AS since, clock() + interval '1 hour' AS before"
    )
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.failed == 1 and deliverer.in_flight == 0)
        assert (
            await replays.period(shop.core.db, endpoint.id, merchant_id=1, since=since, before=before) == 1
        ), "two are still to be sent"
        await shop.receiver.until(lambda: len(shop.receiver.taken) == 2)
        shop.receiver.answer = lambda _: 200
        assert (
            await replays.event(shop.core.db, endpoint.id, merchant_id=1, checkout=checkout, sequence=3) == 1
        )
        await shop.drained(seconds=4)  # the second event would wait for longer
    assert shop.receiver.by_checkout() == {str(checkout): [1, 1, 2, 3]}


async def test_a_replay_sends_no_types_that_are_not_wanted_and_counts_none(shop):
    endpoint = await shop.endpoint(kinds=("checkout.completed",))
    checkout = await shop.checkout(2)
    ((since, before),) = await shop.core.all(
        "SELECT clock() - interval '1 hour' AS since, clock() + interval '1 hour' AS before"
    )
    given = {"merchant_id": 1}
    assert await replays.event(shop.core.db, endpoint.id, checkout=checkout, sequence=1, **given) == 0
    assert await replays.period(shop.core.db, endpoint.id, since=since, before=before, **given) == 0
    assert await shop.streams() == 0


async def test_a_replay_of_a_period_reads_only_that_part_of_the_feed_up_to_a_bound(shop, monkeypatch):
    monkeypatch.setattr(replays, "MOST_REPLAYED", 2)
    endpoint = await shop.endpoint()
    for _ in range(4):
        await shop.checkout()
        await shop.later(86_400)
    async with shop.delivering():
        await shop.drained()
    ((start, since, before),) = await shop.core.all(
        "SELECT clock() - interval '9 days' AS start, clock() - interval '60 hours' AS since, clock() AS before"
    )
    given = {"merchant_id": 1, "before": before}
    assert await replays.period(shop.core.db, endpoint.id, since=since, **given) == 2
    with pytest.raises(replays.PeriodTooLong):
        await replays.period(shop.core.db, endpoint.id, since=start, **given)
    given["before"] = start
    assert await replays.period(shop.core.db, endpoint.id, since=start, **given) == 0


async def test_an_answer_from_the_old_url_does_not_count_for_the_new_url(shop):
    endpoint = await shop.endpoint()
    async with receiving() as second:
        await shop.checkout()
        shop.receiver.delay, shop.receiver.answer = 0.5, lambda _: 410
        async with shop.delivering() as deliverer:
            await shop.receiver.until(lambda: shop.receiver.in_flight == 1)
            await webhooks.change(
                shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, changes={"url": second.url()}
            )
            second.secrets += shop.receiver.secrets
            await shop.receiver.until(lambda: deliverer.failed == 1 and deliverer.in_flight == 0)
            assert (await shop.webhook(endpoint)).status == "active"
            await shop.later(10)
            deliverer.wake(webhooks.CHANGED)
            await shop.drained()
        assert (len(second.taken), second.unverified) == (1, 0)


async def test_a_new_url_is_tried_at_once_whatever_failed_at_the_old_url(shop):
    endpoint = await shop.endpoint()
    made = await shop.checkouts(12)
    shop.receiver.answer = lambda _: 503
    async with receiving() as second, shop.delivering() as deliverer:
        await opened(shop, deliverer)
        second.secrets += shop.receiver.secrets
        changed = await webhooks.change(
            shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, changes={"url": second.url()}
        )
        assert (changed.opened, changed.open_until, changed.failing_since) == (0, None, None)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained(seconds=4)  # the circuit alone would be open for longer
        assert set(second.by_checkout()) == {str(checkout) for checkout in made}


@pytest.mark.parametrize("way", ["resumed", "enabled", "moved"])
async def test_time_in_which_an_endpoint_was_not_served_gives_no_event_up(shop, way):
    endpoint, merchants = await shop.endpoint(), Merchants(shop.core.db, shop.core.encryptor, make_settings())
    checkout = await shop.checkout(2)
    shop.receiver.answer = lambda _: 503
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.failed == 1 and deliverer.in_flight == 0)
        if way == "enabled":
            await merchants.disable("default", disabled=True)
        else:
            await webhooks.pause(shop.core.db, endpoint.id, "asked")
        deliverer.wake(webhooks.CHANGED)
        await shop.later(31 * 86_400)
        if way == "enabled":
            await merchants.disable("default", disabled=False)
        elif way == "moved":
            changes = {"url": shop.receiver.url("/moved")}
            await webhooks.change(
                shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, changes=changes
            )
            await shop.core.do("UPDATE webhook_endpoints SET paused_at = NULL, pause_reason = NULL")
        else:
            await webhooks.resume(shop.core.db, endpoint.id, merchant_id=1)
        deliverer.wake(webhooks.CHANGED)
        await shop.receiver.until(lambda: deliverer.failed == 2 and deliverer.in_flight == 0)
        assert (await shop.webhook(endpoint)).status == "active"
        shop.receiver.answer = lambda _: 204
        await shop.later(3600)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained()
    assert shop.receiver.by_checkout() == {str(checkout): [1, 2]}
    rows = await deliveries.attempts(shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9)
    assert {attempt.result for attempt in rows} == {None, "delivered"}


async def test_an_event_of_a_resumed_endpoint_is_given_up_thirty_days_after_the_resumption(shop):
    endpoint = await shop.endpoint()
    await webhooks.resume(shop.core.db, endpoint.id, merchant_id=1)
    # It takes other events meanwhile, or it would be paused.
    taken_meanwhile = "UPDATE webhook_endpoints SET failing_since = NULL"
    await shop.later(31 * 86_400)
    await shop.checkout()
    shop.receiver.answer = lambda _: 422
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.failed == 1 and deliverer.in_flight == 0)
        assert await shop.streams() == 1, "it has not failed before"
        await shop.later(29 * 86_400)
        await shop.core.do(taken_meanwhile)
        deliverer.wake(webhooks.CHANGED)
        await shop.receiver.until(lambda: deliverer.failed == 2 and deliverer.in_flight == 0)
        assert await shop.streams() == 1
        await shop.later(2 * 86_400)
        await shop.core.do(taken_meanwhile)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained()
    rows = await deliveries.attempts(shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=9)
    assert [attempt.result for attempt in rows] == ["given_up", None, None]


async def test_a_delivery_of_another_deliverer_does_not_end_what_an_endpoint_asked_for(shop):
    endpoint = await shop.endpoint()
    first, second = await shop.checkouts(2)
    shop.receiver.delay = 0.3
    shop.receiver.answer = lambda event: (
        (429, {"Retry-After": "3600"}, "") if event["subject"] == str(first) else 204
    )
    lone = {"webhook_in_flight": 1, "webhook_endpoint_in_flight": 1}
    async with shop.delivering(**lone) as one, shop.delivering(**lone) as other:
        await shop.receiver.until(lambda: one.failed + other.failed == 1)
        await shop.receiver.until(lambda: one.delivered + other.delivered == 1)
        await shop.receiver.until(lambda: one.in_flight == other.in_flight == 0)
        assert (await shop.webhook(endpoint)).open_for > 3500
        late = await shop.checkout()
        one.wake(webhooks.CHANGED)
        other.wake(webhooks.CHANGED)
        await asyncio.sleep(0.5)
        assert {delivery.event["subject"] for delivery in shop.receiver.received} == {str(first), str(second)}
        await shop.later(4400)  # with the jitter of its own next try
        shop.receiver.answer = lambda _: 204
        one.wake(webhooks.CHANGED)
        await shop.drained()
    assert {delivery.event["subject"] for delivery in shop.receiver.taken} == {
        str(checkout) for checkout in (first, second, late)
    }


@pytest.mark.parametrize("way", ["moved", "resumed"])
async def test_retry_after_ends_with_a_new_url_and_with_a_resumption(shop, way):
    endpoint = await shop.endpoint()
    made = await shop.checkouts(3)
    shop.receiver.answer = lambda _: (429, {"Retry-After": "900"}, "slow down")
    async with receiving() as other, shop.delivering() as deliverer:
        await shop.receiver.until(lambda: deliverer.failed >= 1 and deliverer.in_flight == 0)
        assert (await shop.webhook(endpoint)).open_for > 800
        shop.receiver.answer = lambda _: 204
        other.secrets += shop.receiver.secrets
        if way == "moved":
            await webhooks.change(
                shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, changes={"url": other.url()}
            )
        else:
            await webhooks.resume(shop.core.db, endpoint.id, merchant_id=1)
        deliverer.wake(webhooks.CHANGED)
        await shop.drained(seconds=10)
        taken = other.taken if way == "moved" else shop.receiver.taken
        assert {delivery.event["subject"] for delivery in taken} == {str(checkout) for checkout in made}


async def test_what_the_old_url_asked_for_does_not_hold_the_new_url(shop):
    """The answer comes after the change, and is written before this process reads it, or after."""
    endpoint = await shop.endpoint()
    await webhooks.hold(shop.core.db, replace(endpoint, url="https://old.example/"), seconds=900)
    await webhooks.open_circuit(
        shop.core.db, replace(endpoint, url="https://old.example/"), opened=1, seconds=900
    )
    found = await shop.webhook(endpoint)
    assert (found.open_until, found.opened) == (None, 0)
    await shop.checkout()
    shop.receiver.delay, shop.receiver.answer = 0.5, lambda _: (503, {"Retry-After": "900"}, "")
    async with receiving() as second, shop.delivering() as deliverer:
        await shop.receiver.until(lambda: shop.receiver.in_flight == 1)
        second.secrets += shop.receiver.secrets
        await webhooks.change(
            shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, changes={"url": second.url()}
        )
        deliverer.wake(webhooks.CHANGED)
        await shop.receiver.until(lambda: deliverer.failed == 1 and deliverer.in_flight == 0)
        other = await shop.checkout()
        deliverer.wake()
        await second.until(
            lambda: {delivery.event["subject"] for delivery in second.taken} == {str(other)}, seconds=10
        )


async def test_probes_of_many_endpoints_are_claimed_in_one_statement_and_given_back_where_nothing_is_taken(
    shop, monkeypatch
):
    for _ in range(40):
        await shop.endpoint()
    await shop.checkout()
    await shop.core.do("UPDATE webhook_endpoints SET opened = 3, open_until = clock() - interval '1 second'")
    claim, take, claims, misses = webhooks.claim_probes, deliveries.take, [], []

    async def claimed(db, ids, *, seconds):
        claims.append(await claim(db, ids, seconds=seconds))
        return claims[-1]

    async def nothing_at_first(db, wanted, *, probes=(), seconds):
        if misses:
            return await take(db, wanted, probes=probes, seconds=seconds)
        misses.append(set(probes))
        return []

    monkeypatch.setattr(webhooks, "claim_probes", claimed)
    monkeypatch.setattr(deliveries, "take", nothing_at_first)
    async with shop.delivering():
        await shop.drained(seconds=10)  # a probe that is not given back is held for longer
    assert len(shop.receiver.taken) == 40
    assert [len(probed) for probed in (*claims, *misses) if probed] == [40, 40, 40]
    assert len(claims) < 20


async def test_a_result_that_is_known_is_written_although_its_process_ends(shop, monkeypatch):
    await shop.endpoint()
    await shop.checkout()
    write = deliveries.write

    async def slow(db, results):
        await asyncio.sleep(2.0)
        return await write(db, results)

    monkeypatch.setattr(deliveries, "write", slow)
    async with shop.delivering(shutdown_timeout=5.5):
        await shop.receiver.until(lambda: bool(shop.receiver.taken))
    assert await shop.streams() == 0
    assert len(shop.receiver.received) == 1


async def test_what_was_taken_too_late_is_left_until_its_lease_ends(shop, monkeypatch):
    monkeypatch.setattr("orchestrator.delivery.deliverer.LATE", 0.5)
    await shop.endpoint()
    await shop.checkout()
    take, late = deliveries.take, []

    async def slow_once(db, wanted, *, probes=(), seconds):
        found = await take(db, wanted, probes=probes, seconds=seconds)
        if found and not late:
            late.extend(found)
            await asyncio.sleep(1.0)
        return found

    monkeypatch.setattr(deliveries, "take", slow_once)
    async with shop.delivering() as deliverer:
        await shop.receiver.until(lambda: bool(late))
        await asyncio.sleep(1.5)
        assert not shop.receiver.received
        await shop.later(31)
        deliverer.wake()
        await shop.drained()
    assert len(shop.receiver.received) == 1


async def test_an_endpoint_that_is_added_while_all_are_read_is_served_when_its_notification_comes(
    shop, monkeypatch
):
    """The deliverer reads endpoints again only after a notification."""
    monkeypatch.setattr("orchestrator.delivery.deliverer.CHECK_EVERY", 600.0)
    served, read, going_on = webhooks.served, asyncio.Event(), asyncio.Event()

    async def slow(db):
        found = await served(db)
        read.set()
        await going_on.wait()
        return found

    monkeypatch.setattr(webhooks, "served", slow)
    async with shop.delivering(told=True) as deliverer:
        await read.wait()
        endpoint = await shop.endpoint()
        deliverer.wake(webhooks.CHANGED)
        await deliveries.test(shop.core.db, endpoint.id)
        deliverer.wake()
        going_on.set()
        await shop.drained(seconds=4)
    assert len(shop.receiver.taken) == 1
