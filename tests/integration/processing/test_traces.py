"""One trace for each order, in every process the same, with links where it goes on much later."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator import traces
from orchestrator.delivery import signature
from orchestrator.delivery.addresses import AddressPolicy
from orchestrator.delivery.deliverer import Deliverer
from orchestrator.delivery.sender import Sender
from orchestrator.delivery.task_sender import TaskSender
from orchestrator.domain.events.documents import traceparent
from orchestrator.errors import OrchestratorError
from orchestrator.store import events, webhooks
from tests.conftest import make_settings
from tests.support.api_scene import intent, serving
from tests.support.receivers import receiving
from tests.support.trace_picture import draw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
LOCAL = AddressPolicy([ip_network("127.0.0.0/8")])
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    traces.use("test", SimpleSpanProcessor(kept), sample=1.0)
    yield kept
    traces.stop()


async def test_the_shops_trace_has_the_request_as_its_span(
    database_url: str, spans: InMemorySpanExporter
) -> None:
    async with serving(make_settings(database_url=database_url)) as api:
        answer = await api.post(intent(), traceparent=PARENT)
        assert answer.headers["x-correlation-id"] == TRACE
        row = await api.sql("SELECT id, correlation_id FROM checkouts")
        assert row[0].correlation_id == TRACE
        own = await api.post(intent(), **{"traceparent": PARENT, "X-Correlation-Id": "my-own"})
        assert own.headers["x-correlation-id"] == "my-own"
        for wrong in ("", "00-0-0-0", f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff{PARENT[2:]}", "x" * 5000):
            assert (await api.post(intent(), traceparent=wrong)).headers["x-correlation-id"] != TRACE
    root = next(span for span in spans.get_finished_spans() if span.context.trace_id == int(TRACE, 16))
    assert (root.name, root.parent.span_id) == ("POST /v1/checkouts", 0xB7AD6B7169203331)
    assert root.context.span_id == traces.of_order(TRACE, row[0].id, _created(row[0].id)).span


async def test_steps_and_calls_of_an_order_are_in_its_trace_and_late_ones_link_to_it(
    world: Scene, spans: InMemorySpanExporter
) -> None:
    checkout = await world.accept()
    await world.process(checkout)
    made = spans.get_finished_spans()
    correlation = (await world.row(checkout)).correlation_id
    assert {span.context.trace_id for span in made} == {int(traceparent(correlation, "")[3:35], 16)}
    names = Counter(span.name for span in made)
    assert names["process"] == names["wait for a worker"] == 1
    assert (
        names["gateway authenticate"] == names["gateway open_session"] == names["gateway list_methods"] == 1
    )
    by_id = {span.context.span_id: span for span in made}
    call = next(span for span in made if span.name == "gateway authenticate")
    step = by_id[call.parent.span_id]
    assert step.name == "step received"
    assert by_id[step.parent.span_id].name == "process"
    assert call.attributes == {"outcome": "done", "gateway": call.attributes["gateway"]}
    # A day later the work is a trace of its own, with a link to the first span of the order.
    spans.clear()
    await world.later(days=1)
    await world.process(checkout)
    late = [span for span in spans.get_finished_spans() if span.name == "process"]
    assert late
    (link,) = late[0].links
    assert late[0].context.trace_id != link.context.trace_id
    assert link.context.trace_id == int(traceparent(correlation, "")[3:35], 16)
    # An order that is not in the sample leaves nothing.
    spans.clear()
    traces._sample = 0.0
    other = await world.accept()
    await world.process(other)
    assert (await world.row(other)).state == "awaiting_payment"
    assert spans.get_finished_spans() == ()


async def test_a_whole_order_is_one_picture_with_its_callback_a_day_later(
    world: Scene, spans: InMemorySpanExporter, database_url: str, tmp_path: Path
) -> None:
    async with serving(make_settings(database_url=database_url)) as api, receiving() as receiver:
        secret = signature.new_secret()
        await webhooks.add(
            world.db, world.encryptor, merchant_id=1, url=receiver.url(), description="", kinds=None,
            content="thin", secret=secret,
        )  # fmt: skip
        receiver.secrets.append(signature.written(secret))
        body = intent(expiresIn=7 * 86_400)
        accepted = await api.post(body, traceparent=PARENT)
        checkout = UUID(accepted.json()["id"])
        world.orders[checkout] = body["order"]["orderId"]
        await world.process(checkout)
        await _deliver(world)
        await world.pay(checkout)
        await world.later(days=1)
        await world.call_back(checkout)
        await world.process(checkout)
        assert await world.state(checkout) == "completed"
        await _deliver(world)
    made = [span for span in spans.get_finished_spans() if span.name.partition(" ")[0] != "GET"]
    first = [span for span in made if span.context.trace_id == int(TRACE, 16)]
    names = {span.name for span in first}
    assert {"POST /v1/checkouts", "wait for a worker", "process", "gateway open_session", "deliver"} <= names
    late = [span for span in made if span.links]
    assert {"process", "deliver"} <= {span.name for span in late}
    assert all(span.links[0].context.trace_id == int(TRACE, 16) for span in late)
    assert "callback" in {span.name for span in made if span.context.trace_id != int(TRACE, 16)}
    sent = [delivery.headers for delivery in receiver.received]
    assert {headers["x-correlation-id"] for headers in sent} == {TRACE}
    own = {f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01" for span in made}
    assert {headers["traceparent"] for headers in sent} <= own
    said = " ".join(str(value) for span in made for value in (span.attributes or {}).values())
    assert not any(
        word in said for word in ("139.", "shopper", "http://127.0.0.1:8000", body["order"]["orderId"])
    )
    # docs/trace.svg is the picture of such a run, with other times and ids.
    picture = draw(made)
    (tmp_path / "trace.svg").write_text(picture)
    documented = Path(__file__).parents[3].joinpath("docs/trace.svg").read_text()
    assert _spans_of(picture) == _spans_of(documented)
    assert "1.0 days later" in picture


async def test_an_attempt_to_deliver_a_day_later_is_a_trace_of_its_own_with_a_link(
    world: Scene, spans: InMemorySpanExporter
) -> None:
    async with receiving() as receiver:
        secret = signature.new_secret()
        await webhooks.add(
            world.db, world.encryptor, merchant_id=1, url=receiver.url(), description="", kinds=None,
            content="thin", secret=secret,
        )  # fmt: skip
        checkout = await world.accept()
        await world.process(checkout)
        receiver.answer = lambda _: 503
        await _deliver(world, until="SELECT 1 FROM delivery_streams WHERE attempts > 0")
        await world.later(days=2)
        receiver.answer = lambda _: 200
        await _deliver(world)
    first, *_, last = [span for span in spans.get_finished_spans() if span.name == "deliver"]
    order = int(traceparent((await world.row(checkout)).correlation_id, "")[3:35], 16)
    assert (first.context.trace_id, len(first.links)) == (order, 0)
    assert last.context.trace_id != order
    assert [link.context.trace_id for link in last.links] == [order]
    assert 86_400 < (last.start_time - first.start_time) / 1e9 < 3 * 86_400


def _spans_of(picture: str) -> Counter[str]:
    shown = re.findall(r">([^<]+)</text>", picture)
    return Counter(text for text in shown if not re.match(r"trace |[0-9.]+ ms$", text))


async def _deliver(
    world: Scene, *, until: str = "SELECT 1 WHERE NOT EXISTS (SELECT FROM delivery_streams)"
) -> None:
    while await events.place(world.db):
        pass
    settings = make_settings(webhook_total_timeout=3.0, shutdown_timeout=6.0)
    sender = Sender(LOCAL, connect_timeout=2.0, total_timeout=3.0)
    tasks = TaskSender(LOCAL, own=None, connect_timeout=2.0, total_timeout=3.0)
    deliverer = Deliverer(settings, world.db, world.encryptor, sender, tasks=tasks)
    ending = asyncio.Event()
    running = asyncio.create_task(deliverer.run(ending))
    async with asyncio.timeout(20):
        while not await world.sql(until):  # noqa: ASYNC110 - rows
            await asyncio.sleep(0.02)
    ending.set()
    await running
    await sender.close()
    await tasks.close()


def test_a_sample_is_the_same_in_every_process_and_off_keeps_nothing(spans: InMemorySpanExporter) -> None:
    checkout = UUID(int=0x0190_0000_0000 << 80)
    now = _created(checkout)
    names = [f"{number:032x}" for number in range(1, 2**64, 2**64 // 200)]
    traces._sample = 0.1
    kept = {name for name in names if traces.of_order(name, checkout, now) is not None}
    assert 0 < len(kept) < 60
    assert kept == {name for name in names if traces.of_order(name, checkout, now) is not None}
    traces.stop()
    assert traces.of_order(names[0], checkout, now) is None
    assert traces.begin("nothing") is None


def test_a_missing_extra_stops_the_start_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(OrchestratorError, match="extra `traces`"):
        traces.start("worker", "http://127.0.0.1:9/v1/traces", 1.0)
    traces.start("worker", None, 1.0)
    assert not traces.on


def _created(checkout: UUID):
    from datetime import UTC, datetime

    return datetime.fromtimestamp(traces.created(checkout) + 1, UTC)
