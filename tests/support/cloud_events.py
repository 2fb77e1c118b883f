"""What every event must be: a CloudEvent by the public package, and by the schema of its type, thin and full.

`tests/conftest.py` has each event checked that a test writes in its own process, and `World.agree` those of
other processes.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import jsonschema
import msgspec
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from orchestrator.domain import events
from orchestrator.domain.events import EventType, StoredEvent, facts

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from orchestrator.domain.events import Event

_ENCODER = msgspec.json.Encoder(decimal_format="number")


@cache
def validator(kind: str, content: str) -> jsonschema.Draft202012Validator:
    schema = events.schema(EventType(kind), content)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def check(document: dict[str, Any]) -> dict[str, Any]:
    """Raise unless this is an event as it is promised; return it."""
    kind, content = document["type"], document["dataschema"].split(":")[-2]
    validator(kind, content).validate(document)
    read = JSONFormat().read(CloudEvent, json.dumps(document))
    assert (read.get_id(), read.get_type(), read.get_subject()) == (
        document["id"],
        kind,
        document["data"]["rejectedIntentId" if kind == "intent.rejected" else "checkoutId"],
    )
    assert document["id"] == f"{document['subject']}-{document['sequence']}"
    allowed = set(validator(kind, content).schema["properties"])
    assert set(document) <= allowed, set(document) - allowed
    # CloudEvents: names of attributes are lower-case letters and digits.
    assert all(name.isalnum() and name.islower() for name in document)
    return document


def watch(patch: pytest.MonkeyPatch) -> list[str]:
    """Have every event that is stored from now on checked; return what is wrong, a line for each, as it is
    found.
    """
    wrong: list[str] = []
    checkout, now = UUID(int=0), datetime.now(UTC)

    def stored(event: Event, **snapshot: Any) -> dict[str, object]:
        payload = facts.stored(event, **snapshot)
        if (same := _shape(event.type, payload)) in _right:
            return payload
        row = SimpleNamespace(
            checkout_id=checkout,
            sequence=1,
            kind=str(event.type),
            payload=json.loads(msgspec.json.encode(payload)),
            correlation_id="c",
            created_at=now,
            position=1,
        )
        try:
            documents(row)
        except Exception as error:  # noqa: BLE001 - the writer may catch it, and the test must fail
            wrong.append(f"{event.type}: {type(error).__name__}: {str(error)[:500]}")
        else:
            _right.add(same)
        return payload

    patch.setattr(events, "stored", stored)
    return wrong


_right: set[str] = set()
"""Shapes of events that were found right: a document is made of nothing else, and its ids are texts that it
only repeats."""
_IDS = frozenset({"orderId", "transactionId", "transactionIds", "operationId", "commandId"})


def _shape(kind: str, payload: dict[str, Any]) -> str:
    """Return a payload with each id replaced by what its schema asks of it."""

    def asked(name: str, value: object) -> object:
        if name not in _IDS or value is None:
            return value
        several = value if isinstance(value, list) else [value]
        return [(type(value).__name__, len(str(value)) > 1000, str(value).isprintable()) for value in several]

    parts = {
        **payload,
        "facts": {name: asked(name, value) for name, value in payload.get("facts", {}).items()},
    }
    return f"{kind} { ({name: asked(name, value) for name, value in parts.items()})!r}"


def documents(row: Any, *, merchant: str = "default") -> dict[str, dict[str, Any]]:
    """Return the documents of a row of `events`, thin and full, each of them checked."""
    stored = StoredEvent(
        merchant=merchant,
        checkout_id=row.checkout_id,
        sequence=row.sequence,
        kind=row.kind,
        payload=row.payload,
        correlation_id=row.correlation_id,
        created_at=row.created_at,
        position=row.position,
    )
    return {
        content: check(json.loads(_ENCODER.encode(events.document(stored, content=content))))
        for content in ("thin", "full")
    }


def check_all(rows: Iterable[Any]) -> list[str]:
    """Check the rows of a checkout's events, in the order of their sequence, and return their types."""
    told = [documents(row)["thin"] for row in rows]
    assert [int(event["sequence"]) for event in told] == list(range(1, len(told) + 1))
    assert len({UUID(event["subject"]) for event in told}) <= 1
    return [event["type"] for event in told]
