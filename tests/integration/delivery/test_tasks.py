"""Events reach queues as Celery tasks: with the ids, the order and the retries of webhooks, and confirmed
where the broker can confirm.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
import redis
from celery import Celery

from orchestrator.delivery.addresses import AddressPolicy, WebhookUrlRejected
from orchestrator.delivery.broker_links import RedisLink
from orchestrator.delivery.sender import Answer, Outcome
from orchestrator.delivery.task_sender import OwnBroker, TaskSender
from orchestrator.delivery.task_target import NameRejected, broker_of, checked_name, checked_queue
from orchestrator.messaging.task_message import message
from orchestrator.settings.broker_url import read as read_broker_url
from orchestrator.store import deliveries, webhooks
from tests.integration.delivery.conftest import LOCAL
from tests.integration.delivery.test_addresses import HOSTS, leading_to, of_this_machine
from tests.support.brokers import RabbitMQServer, rabbitmq_server
from tests.support.machine import free_port
from tests.support.task_consumers import declare, read_rabbitmq, read_redis

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

TASK, QUEUE = "shop.events", "shop-events"


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitMQServer]:
    with rabbitmq_server() as server:
        yield server


def tasks(url: str | None = None, *, limit: int = 100, **given) -> TaskSender:
    own = None if url is None else OwnBroker(read_broker_url(url), limit)
    return TaskSender(
        given.pop("policy", LOCAL), **{"own": own, "connect_timeout": 2.0, "total_timeout": 3.0, **given}
    )


async def outcomes(shop, endpoint) -> list[tuple[str, int, str | None]]:
    found = await deliveries.attempts(shop.core.db, shop.core.encryptor, endpoint.id, before=None, limit=99)
    return [(row.outcome, row.sequence, row.result) for row in reversed(found)]


async def test_events_come_as_celery_messages_in_the_order_of_their_checkout_on_both_brokers(
    shop, rabbitmq, servers
):
    declare(rabbitmq.url, QUEUE, queue_type="quorum")
    cache = f"{servers.redis_url.rpartition('/')[0]}/9"
    amqp = await shop.task(rabbitmq.url, queue=QUEUE)
    lists = await shop.task(cache, queue="shop-list", content="full")
    made = await shop.checkouts(12, events_of_each=4)
    own = tasks()
    async with shop.delivering(tasks=own):
        await shop.drained()
        test = await deliveries.test(shop.core.db, amqp.id)
        await shop.drained()
    for sent in (read_rabbitmq(rabbitmq.url, QUEUE), read_redis(cache, "shop-list")):
        events = [each.event for each in sent if each.event["type"] != "webhook.test"]
        for checkout in made:
            assert [event["sequence"] for event in events if event["subject"] == str(checkout)] == [
                "1",
                "2",
                "3",
                "4",
            ]
        assert len(events) == 48
        whole = Celery().amqp.as_task_v2(sent[0].id, TASK, args=(sent[0].event,), argsrepr="", kwargsrepr="")
        # RabbitMQ adds a header of its own to messages of quorum queues.
        assert sent[0].headers.keys() - {"x-delivery-count"} == whole.headers.keys()
        assert (sent[0].headers["task"], sent[0].headers["id"]) == (TASK, sent[0].event["id"])
        assert sent[0].headers["argsrepr"] == ""
        assert {each.properties["delivery_mode"] for each in sent} == {2}
        assert ("details" in events[0]["data"]) is ("delivery_info" in sent[0].properties), (
            "full, where it is wanted"
        )
        if sent[-1].event["type"] == "webhook.test":
            assert sent[-1].id == f"{test}-1"
    assert {outcome for outcome, *_ in await outcomes(shop, amqp)} == {"delivered"}
    assert len(await outcomes(shop, lists)) == 48
    assert (await shop.webhook(amqp)).url == f"amqp://127.0.0.1:{rabbitmq.port}//"
    assert b"guest" not in (await shop.webhook(amqp)).encrypted


async def test_a_message_that_leads_to_no_queue_has_failed_and_comes_once_the_queue_is_there(shop, rabbitmq):
    endpoint = await shop.task(rabbitmq.url, queue="later")
    checkout = await shop.checkout(2)
    async with shop.delivering(tasks=tasks()) as deliverer:
        await shop.receiver.until(lambda: deliverer.failed == 1)
        await shop.receiver.until(lambda: deliverer.in_flight == 0)
        ((outcome, sequence, result),) = await outcomes(shop, endpoint)
        assert (outcome, sequence, result) == ("unroutable", 1, None)
        declare(rabbitmq.url, "later")
        assert await webhooks.resume(shop.core.db, endpoint.id, merchant_id=1)
        deliverer.wake("*")
        await shop.drained()
    assert [sent.id for sent in read_rabbitmq(rabbitmq.url, "later")] == [f"{checkout}-1", f"{checkout}-2"]


async def test_a_queue_that_is_full_refuses_and_a_task_that_moves_goes_on_from_there(shop, rabbitmq):
    declare(rabbitmq.url, "short", max_length=1, overflow="reject-publish")
    declare(rabbitmq.url, "long")
    endpoint = await shop.task(rabbitmq.url, queue="short")
    made = await shop.checkouts(3)
    async with shop.delivering(tasks=tasks()) as deliverer:
        await shop.receiver.until(lambda: deliverer.delivered >= 1 and deliverer.failed >= 1)
        await webhooks.change(
            shop.core.db, shop.core.encryptor, endpoint.id, merchant_id=1, changes={"queue": "long"}
        )
        deliverer.wake("*")
        await shop.drained()
    assert "throttled" in {outcome for outcome, *_ in await outcomes(shop, endpoint)}
    first, rest = read_rabbitmq(rabbitmq.url, "short"), read_rabbitmq(rabbitmq.url, "long")
    assert {sent.event["subject"] for sent in (*first, *rest)} == {str(checkout) for checkout in made}
    assert len(first) + len(rest) == 3


@pytest.mark.parametrize("kind", ["redis", "rabbitmq"])
async def test_on_our_own_broker_a_queue_holds_so_many_and_no_more(shop, rabbitmq, servers, kind):
    url = rabbitmq.url if kind == "rabbitmq" else servers.redis_url
    queue = "events:default"
    if kind == "rabbitmq":
        declare(rabbitmq.url, queue)
    else:
        with redis.Redis.from_url(url) as client:
            client.delete(f"{queue}:{queue}")
    endpoint = await shop.task("", queue=queue)
    await shop.checkouts(5)
    async with shop.delivering(tasks=tasks(url, limit=3)) as deliverer:
        await shop.receiver.until(lambda: deliverer.delivered == 3 and deliverer.failed >= 2)
        read = (
            read_rabbitmq(rabbitmq.url, queue) if kind == "rabbitmq" else read_redis(url, f"{queue}:{queue}")
        )
        assert len(read) == 3
        await shop.later(7)
        deliverer.wake("*")
        await shop.drained()
    assert [outcome for outcome, *_ in await outcomes(shop, endpoint)].count("delivered") == 5
    disabled = tasks(url, limit=0)
    answer = await disabled.send(await shop.webhook(endpoint), b"", "a-1", b"{}")
    await disabled.close()
    assert answer.outcome is Outcome.NOT_CONNECTED


async def test_a_broker_that_refuses_is_a_failed_attempt_and_says_why(shop, rabbitmq, servers):
    sender = tasks()
    port = servers.redis_url.partition("@")[2] or servers.redis_url.partition("//")[2]
    cases = {
        rabbitmq.url.replace("guest:guest", "guest:wrong"): Outcome.ACCESS_REFUSED,
        f"{rabbitmq.url[:-1]}nowhere": Outcome.ACCESS_REFUSED,
        f"redis://user:wrong@{port}": Outcome.ACCESS_REFUSED,
        f"redis://127.0.0.1:{rabbitmq.port}/0": Outcome.CONNECTION_LOST,
        # Redis waits for the end of a line.
        f"amqp://{port.rpartition('/')[0]}//": Outcome.TIMED_OUT,
        f"amqp://127.0.0.1:{free_port()}//": Outcome.NOT_CONNECTED,
        f"amqps://127.0.0.1:{rabbitmq.tls_port}//": Outcome.NOT_SECURE,
        "amqps://shop.example:22//": Outcome.WRONG_URL,
    }
    for url, outcome in cases.items():
        endpoint = await shop.task(url, queue=QUEUE)
        answer = await sender.send(endpoint, url.encode(), "a-1", b"{}")
        assert answer.outcome is outcome, (url, answer)
    await sender.close()
    trusting = tasks(tls=_trusting(rabbitmq))
    declare(rabbitmq.url, QUEUE, queue_type="quorum")
    url = f"amqps://guest:guest@127.0.0.1:{rabbitmq.tls_port}//"
    endpoint = await shop.task(url, queue=QUEUE)
    answer = await trusting.send(endpoint, url.encode(), "a-1", b'{"a": 1}')
    await trusting.close()
    assert answer.delivered, answer
    assert [sent.event for sent in read_rabbitmq(rabbitmq.url, QUEUE)] == [{"a": 1}]


def _trusting(rabbitmq: RabbitMQServer):
    import ssl

    return ssl.create_default_context(cafile=str(rabbitmq.certificate))


async def test_a_connection_that_was_closed_while_it_was_idle_costs_no_attempt(shop, rabbitmq):
    declare(rabbitmq.url, "idle")
    endpoint = await shop.task(rabbitmq.url, queue="idle")
    sender = tasks()
    secret = rabbitmq.url.encode()
    assert (await sender.send(endpoint, secret, "a-1", b"{}")).delivered
    await asyncio.to_thread(rabbitmq.ctl, "close_all_connections", "test")
    assert (await sender.send(endpoint, secret, "a-2", b"{}")).delivered
    await sender.close()
    assert [sent.id for sent in read_rabbitmq(rabbitmq.url, "idle")] == ["a-1", "a-2"]


# ── Addresses ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_no_spelling_of_a_brokers_url_leads_to_what_is_not_public(shop):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    endpoint = await shop.task("", queue=QUEUE)
    for allowed in ((), ("10.99.0.0/16",)):
        sender = tasks(policy=AddressPolicy([ip_network(each) for each in allowed]), lookup=of_this_machine)
        for host in HOSTS:
            for scheme in ("amqp", "amqps", "redis", "rediss"):
                url = f"{scheme}://{host}:{port}/0"
                answer = await sender.send(endpoint, url.encode(), "a-1", b"{}")
                assert answer.outcome in {
                    Outcome.WRONG_URL,
                    Outcome.FORBIDDEN_ADDRESS,
                    Outcome.NAME_NOT_FOUND,
                }, (url, answer)
        await sender.close()
    lookup, asked = leading_to("93.184.215.14,127.0.0.1")
    sender = tasks(policy=AddressPolicy(), lookup=lookup)
    url = f"amqps://broker.example:{port}//"
    assert (await sender.send(endpoint, url.encode(), "a-1", b"{}")).outcome is Outcome.FORBIDDEN_ADDRESS
    assert asked == ["broker.example"]
    await sender.close()
    with pytest.raises(BlockingIOError):
        listener.accept()
    listener.close()


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
@pytest.mark.parametrize(
    "talk", [b"", b"\x01\x00\x00\x7f\xff\xff\xff" + b"x" * 65536, b"$2000000000\r\n" + b"x" * 65536]
)
async def test_what_a_broker_sends_costs_no_more_than_its_bounds(shop, scheme, talk):
    """It accepts, and is silent, or sends without end."""
    received = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal received
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                try:
                    connection.recv(4096)
                    if not talk:
                        connection.recv(4096)
                    while talk:
                        received += connection.send(talk)
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/0"
        endpoint = await shop.task(url, queue=QUEUE)
        sender = tasks(total_timeout=1.0)
        began = time.monotonic()
        answer = await sender.send(endpoint, url.encode(), "a-1", b"{}")
        assert not answer.delivered
        assert time.monotonic() - began < 3
        await sender.close()
        await asyncio.to_thread(thread.join, 15)
    assert received < 16 * 1024 * 1024


@pytest.mark.parametrize(
    "url",
    ["", "amqp", "amqps://", "http://shop.example/", "AMQPS://shop.example", "amqps://shop.example?ssl_ca_certs=/etc/passwd", "amqps://shop.example#a",
     "amqps://shop.example:80/", "amqps://shop.example:99999/", "rediss://shop.example/x", "amqps://a b@shop.example/", "amqps://a@b@shop.example/",
     "amqps://shop.example/%zz", "amqps://shop.example/%ff", "amqps://%0a@shop.example/", "sentinel://shop.example/0?master_name=a", "valkey://shop.example/",
     "amqp://shop.example/", "redis://shop.example/0", "amqps://shop.example;shop.example/", f"amqps://{'a' * 201}@shop.example/", f"amqps://shop.example/{'a' * 2048}"],
)  # fmt: skip
def test_a_brokers_url_that_is_not_accepted(url):
    with pytest.raises(WebhookUrlRejected, match=r"^must"):
        broker_of(url, AddressPolicy())


def test_a_brokers_url_is_read_as_celery_reads_it():
    broker = broker_of("amqps://us%40er:p%2Fw@broker.shop.example/a%2Fb", AddressPolicy())
    assert (broker.username, broker.password, broker.vhost, broker.port) == ("us@er", "p/w", "a/b", 5671)
    assert broker.shown == "amqps://broker.shop.example:5671/a%2Fb"
    for url in ("amqps://h.example", "amqps://h.example/", "amqps://h.example//"):
        assert broker_of(url, AddressPolicy()).vhost == "/"
    broker = broker_of("rediss://:secret@[2606:4700::1]:6380/3", AddressPolicy())
    assert (broker.host, broker.port, broker.db, broker.username, broker.password) == (
        "2606:4700::1",
        6380,
        3,
        None,
        "secret",
    )
    assert "secret" not in repr(broker) + broker.shown


def test_names_of_tasks_and_queues():
    for name in ("", ".a", "a b", "a/b", "a\n", "ä", "a" * 201, "-"):
        with pytest.raises(NameRejected):
            checked_name(name)
    assert checked_queue("events:shop:fast", merchant="shop", own=True) == "events:shop:fast"
    for name in ("checkouts", "intents", "events:shop2", "events:sho", "events:other:shop"):
        with pytest.raises(NameRejected):
            checked_queue(name, merchant="shop", own=True)
        assert checked_queue(name, merchant="shop", own=False) == name
    with pytest.raises(NameRejected):
        checked_queue("amq.gen-a", merchant="shop", own=False)


def test_the_message_holds_nothing_of_the_event_beside_its_body():
    made = message(TASK, "a-1", b'{"secret": 1}')
    assert "secret" not in str(made.headers)
    assert made.body == b'[[{"secret": 1}],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'


async def test_a_message_that_waited_too_long_does_not_take_the_time_of_the_others(
    shop, servers, monkeypatch
):
    endpoint = await shop.task("", queue=QUEUE)
    lists, went, go_on = [], threading.Event(), threading.Event()

    def publish(_, messages, __, *, until):
        assert until - time.monotonic() >= 0.5, "a list has time"
        lists.append(len(messages))
        went.set()
        go_on.wait(10)
        return [Answer(Outcome.DELIVERED, 0.0)] * len(messages)

    monkeypatch.setattr(RedisLink, "usable", lambda _: True)
    monkeypatch.setattr(RedisLink, "publish", publish)
    sender = tasks(servers.redis_url, connect_timeout=1.0, total_timeout=6.0)

    def send(name: str) -> asyncio.Task[Answer]:
        return asyncio.create_task(sender.send(endpoint, b"", name, b"{}"))

    first = send("first")
    while not went.is_set():  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(0.01)
    early = [send(f"early-{number}") for number in range(3)]
    await asyncio.sleep(5.3)
    late = [send(f"late-{number}") for number in range(2)]
    await asyncio.sleep(0.05)
    go_on.set()
    assert [answer.outcome for answer in await asyncio.gather(*early)] == [Outcome.TIMED_OUT] * 3
    assert [answer.outcome for answer in await asyncio.gather(first, *late)] == [Outcome.DELIVERED] * 3
    assert lists == [1, 2]
    await sender.close()
