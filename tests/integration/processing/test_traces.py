"""One trace for each order, in every process the same, with links where it goes on much later."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from orchestrator import traces
from orchestrator.domain.events.documents import traceparent
from orchestrator.errors import OrchestratorError
from tests.conftest import make_settings
from tests.support.api_scene import intent, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
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
    scene: Scene, spans: InMemorySpanExporter
) -> None:
    checkout = await scene.accept()
    await scene.process(checkout)
    made = spans.get_finished_spans()
    correlation = (await scene.row(checkout)).correlation_id
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
    await scene.later(days=1)
    await scene.process(checkout)
    late = [span for span in spans.get_finished_spans() if span.name == "process"]
    assert late
    (link,) = late[0].links
    assert late[0].context.trace_id != link.context.trace_id
    assert link.context.trace_id == int(traceparent(correlation, "")[3:35], 16)


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
