"""The correlation id: taken from the caller if it is harmless (X-Correlation-Id, X-Request-Id, the trace id
of `traceparent`), made otherwise; on every log line, answer and checkout.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from orchestrator import log, traces

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER: Final = b"x-correlation-id"
TRACEPARENT: Final = b"traceparent"
_ACCEPTED: Final = frozenset({HEADER, b"x-request-id", TRACEPARENT})
_HARMLESS: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_current: ContextVar[str] = ContextVar("correlation_id", default="")


def begin(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Settle the id of a request and bind it into the log of this task."""
    given = {name: value for name, value in headers if name in _ACCEPTED}
    value = given.get(HEADER) or given.get(b"x-request-id") or _trace(given.get(TRACEPARENT))
    chosen = value.decode() if _HARMLESS.fullmatch(value) else uuid4().hex
    _current.set(chosen)
    log.bind(correlation_id=chosen)
    return chosen


def _trace(header: bytes | None) -> bytes:
    """Return the trace id of a `traceparent`; without one, nothing."""
    given = traces.trace_given(header.decode("latin-1")) if header else None
    return given[0].encode() if given is not None else b""


def current() -> str:
    """Return the id of the request that is being answered."""
    return _current.get()
