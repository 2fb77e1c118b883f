"""The JSON Schemas of the documents, made of the classes that the documents are made of."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrator.domain.events.documents import CloudEvent, Content, data_of, schema_id

if TYPE_CHECKING:
    from orchestrator.domain.events.facts import EventType


@cache
def schema(kind: EventType, content: Content) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the whole document of a type.

    Fields that it does not name may come with later versions.
    """
    data = ("data", data_of(kind, content))
    whole = msgspec.defstruct(
        f"CloudEvent{content.title()}", [data], bases=(CloudEvent,), kw_only=True, frozen=True
    )
    made = msgspec.json.schema(whole)
    definitions = made.pop("$defs")
    envelope = definitions.pop(made.pop("$ref").rpartition("/")[2])
    envelope["properties"]["type"] = {"const": str(kind)}
    envelope["properties"]["dataschema"] = {"const": schema_id(kind, content)}
    described = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": schema_id(kind, content),
        **envelope,
        "title": str(kind),
        "description": kind.about,
        "$defs": {
            name: definition for name, definition in sorted(definitions.items()) if name != "EventType"
        },
    }
    opened: dict[str, Any] = _open(described)
    return opened


def _open(value: Any) -> Any:
    """Return a schema with amounts as the numbers that they are in JSON, and open to fields of later
    versions.
    """
    if isinstance(value, list):
        return [_open(item) for item in value]
    if not isinstance(value, dict):
        return value
    opened = {
        name: _open(schema)
        for name, schema in value.items()
        if (name, schema) != ("additionalProperties", False)
    }
    if opened.get("format") == "decimal":
        opened["type"] = "number"
        del opened["format"]
    return opened
