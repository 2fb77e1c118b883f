"""Traces: one for each order, from the shop's request over steps, gateway calls and callbacks to deliveries.

The trace id follows from the correlation id (`trace_of`), so that every process finds the trace of an order
without a column and without a message that carries it, and all keep the same traces: the sample is decided by
the trace id. A shop's `traceparent` becomes the correlation id, and so its trace is ours. What happens more
than an hour after the intake is a trace of its own with a link to the order's first span, since few
collectors keep a trace open for days. Times are Postgres's.

Without `start` nothing is imported and nothing is measured: each place asks `on` and goes on. Spans are made
when they end, with their times; none holds the customer's data, an amount, a URL or a text of the gateway.
"""

from __future__ import annotations

import random
import re
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from orchestrator import log
from orchestrator.domain.events.documents import traceparent
from orchestrator.errors import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from uuid import UUID

    from opentelemetry.trace import SpanContext

_log = log.get(__name__)

LATE: Final = 3600.0
"""Seconds after the intake from which on work on an order is a trace of its own."""
ENDING: Final = 2.0
"""Seconds in which the last spans are sent at the end of a process."""
_QUEUE: Final = 4096
"""Spans that wait to be sent; more are dropped."""
_NANO: Final = 1_000_000_000
_PARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

on = False
"""Whether this process keeps traces."""
_sample = 0.0
_processor: Any = None
_resource: Any = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a span hangs: the trace, the parent span (0: none), for a late trace the span that it links to.

    `offset` is Postgres's clock minus ours, in nanoseconds.
    """

    trace: int
    span: int
    offset: int = 0
    link: tuple[int, int] | None = None


@dataclass(slots=True)
class Span:
    """A span that has begun; its own `place` is where its children hang."""

    name: str
    parent: Place
    start: int
    id: int = field(default_factory=lambda: random.getrandbits(64) or 1)

    @property
    def place(self) -> Place:
        return Place(self.parent.trace, self.id, self.parent.offset)

    def end(self, *, kind: str = "internal", error: bool = False, **attributes: str | float | bool) -> None:
        _emit(self, time.time_ns() + self.parent.offset, kind, error=error, attributes=attributes)


current: ContextVar[Place | None] = ContextVar("trace", default=None)
"""Where the spans of this task hang; None: its order is not in the sample."""


def trace_of(correlation_id: str) -> int:
    """Return the trace of a correlation id; events carry the same in `traceparent`."""
    return int(traceparent(correlation_id, "")[3:35], 16)


def trace_given(header: str) -> tuple[str, int] | None:
    """Read a `traceparent` header: the trace id in hexadecimal, the caller's span; None where it is none."""
    found = _PARENT.fullmatch(header.strip())
    if found is None or not int(found[1], 16) or not int(found[2], 16) or header.startswith("ff"):
        return None
    return found[1], int(found[2], 16)


def of_order(correlation_id: str, checkout: UUID, now: datetime) -> Place | None:
    """Return where work on a checkout hangs at this time by Postgres's clock; None where it is not kept."""
    trace = trace_of(correlation_id)
    if not _kept(trace):
        return None
    offset = int(now.timestamp() * _NANO) - time.time_ns()
    root = _root(trace)
    if now.timestamp() - created(checkout) < LATE:
        return Place(trace, root, offset)
    return Place(random.getrandbits(128) or 1, 0, offset, link=(trace, root))


def created(checkout: UUID) -> float:
    """Return when a checkout was created, in seconds since 1970: its id is a UUIDv7."""
    return (checkout.int >> 80) / 1000


def begin(name: str, parent: Place | None = None) -> Span | None:
    """Begin a span below `parent`, or below the current one; None where nothing is kept."""
    parent = parent or current.get()
    return None if parent is None else Span(name, parent, time.time_ns() + parent.offset)


def past(name: str, parent: Place, since: datetime, until: datetime, **attributes: str | int) -> None:
    """Make a span of something that is over; times by Postgres's clock."""
    span = Span(name, parent, int(since.timestamp() * _NANO))
    _emit(span, int(until.timestamp() * _NANO), "internal", error=False, attributes=attributes)


def request(
    name: str, correlation_id: str, header: str | None, *, seconds: float, status: int, intake: bool
) -> None:
    """Make the span of a request that was answered; the one that creates an order is the order's first."""
    trace = trace_of(correlation_id)
    if not _kept(trace):
        return
    given = trace_given(header) if header else None
    parent = given[1] if given is not None and int(given[0], 16) == trace else 0
    now = time.time_ns()
    span = Span(name, Place(trace, parent), now - int(seconds * _NANO))
    if intake:
        span.id = _root(trace)
    _emit(span, now, "server", error=status >= 500, attributes={"http.response.status_code": status})  # noqa: PLR2004 - server errors


def header_of(span: Span) -> str:
    """Return the `traceparent` for what is called within a span."""
    return f"00-{span.parent.trace:032x}-{span.id:016x}-01"


def start(process: str, url: str | None, sample: float) -> None:
    """Keep traces in this process, if a URL is set: a part of them, sent by OTLP over HTTP from a thread."""
    if url is None or sample <= 0:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        message = "ORCHESTRATOR_TRACES_URL is set, and the extra `traces` is not installed: pip install 'checkout-orchestrator[traces]'"
        raise OrchestratorError(message) from None
    use(
        process,
        BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=ENDING), max_queue_size=_QUEUE),
        sample=sample,
    )
    _log.info("traces_kept", sample=sample)


def use(process: str, processor: Any, *, sample: float) -> None:
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra

    global on, _sample, _processor, _resource
    _processor, _resource = processor, Resource.create({"service.name": f"orchestrator-{process}"})
    _sample, on = sample, True


def stop() -> None:
    """Send the last spans, within a moment."""
    global on, _processor
    processor, _processor, on = _processor, None, False
    if processor is not None:
        ending = threading.Thread(target=processor.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(ENDING)


def _kept(trace: int) -> bool:
    return on and (trace & 0xFFFF_FFFF_FFFF_FFFF) < _sample * 2**64


def _root(trace: int) -> int:
    """Return the id of an order's first span."""
    return (trace ^ (trace >> 64)) & 0xFFFF_FFFF_FFFF_FFFF or 1


def _emit(
    span: Span, end: int, kind: str, *, error: bool, attributes: Mapping[str, str | int | float | bool]
) -> None:
    # A tracer would decide on ids, sample and parent again; that takes six times as long.
    from opentelemetry import trace  # noqa: PLC0415 - only where traces are kept
    from opentelemetry.sdk.trace import ReadableSpan  # noqa: PLC0415
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415

    if _processor is None:
        return
    parent = span.parent
    made = ReadableSpan(
        span.name,
        context=_context(parent.trace, span.id),
        parent=_context(parent.trace, parent.span) if parent.span else None,
        resource=_resource,
        attributes=attributes,
        links=[trace.Link(_context(*parent.link))] if parent.link is not None else [],
        kind=trace.SpanKind[kind.upper()],
        status=trace.Status(trace.StatusCode.ERROR if error else trace.StatusCode.UNSET),
        start_time=span.start,
        end_time=max(end, span.start),
        instrumentation_scope=InstrumentationScope("orchestrator"),
    )
    _processor.on_end(made)


def _context(trace_id: int, span_id: int) -> SpanContext:
    from opentelemetry import trace  # noqa: PLC0415 - as above

    return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(1))
