"""The shapes of the contract, and their OpenAPI schemas: `answers` is what the API returns, `bodies` what it
takes, `webhooks` both of webhooks, `merchants` both of merchants, `shopper` what a shopper's browser gets,
`autoscale` what chooses the number of workers gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.api.contract import answers, autoscale, bodies, examples, merchants, shopper, webhooks
from orchestrator.audit import Action
from orchestrator.audit.merchant_changes import MerchantAction
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.command_progress import CommandState
from orchestrator.domain.command_result import ResultCode
from orchestrator.domain.events import EventType
from orchestrator.domain.last_error import ErrorCode
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.shopper_state import ShopperState
from orchestrator.domain.states import State, Trigger

if TYPE_CHECKING:
    from enum import Enum
    from types import ModuleType

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{name}"
_ENUMS: Final[tuple[type[Enum], ...]] = (
    State, PaymentStatus, Trigger, Action, AttentionCode, ErrorCode, ResultCode, CommandState,
    EventType, MerchantAction, ShopperState,
)  # fmt: skip


def ref(shape: type) -> Schema:
    """Point at a shape."""
    return {"$ref": _REF.format(name=shape.__name__)}


def schemas() -> dict[str, Schema]:
    """Return the schema of each shape by its name, bodies first."""
    modules = (bodies, answers, webhooks, merchants, shopper, autoscale)
    shapes = [shape for module in modules for shape in _shapes(module)]
    _, generated = msgspec.json.schema_components(shapes, ref_template=_REF)
    made = {name: _as_sent(schema) for name, schema in generated.items()}
    for enum in _ENUMS:  # in the order of events, not alphabetical
        made[enum.__name__]["enum"] = [member.value for member in enum]
    made["Customer"]["minProperties"] = 1
    for shape in _shapes(bodies):
        _allow_null(made[shape.__name__])
    for shape in (bodies.Capture, bodies.Refund):
        made[shape.__name__]["properties"]["amount"]["anyOf"].append({"type": "string", "enum": [bodies.ALL]})
    for name, example in examples.EXAMPLES.items():
        made[name]["example"] = example
    return made


def _shapes(module: ModuleType) -> list[type[msgspec.Struct]]:
    return [
        shape
        for name, shape in vars(module).items()
        if isinstance(shape, type)
        and issubclass(shape, msgspec.Struct)
        and shape.__module__ == module.__name__
        and not name.startswith("_")
    ]


def _allow_null(schema: Schema) -> None:
    """Say that null counts as absent in the optional fields of a body."""
    fields = schema.get("properties", {})
    for name in fields.keys() - frozenset(schema.get("required", ())):
        said = fields[name]
        if "anyOf" in said:
            said["anyOf"].append({"type": "null"})
            continue
        beside = {key: said.pop(key) for key in ("description", "default", "examples") if key in said}
        fields[name] = {**beside, "anyOf": [said, {"type": "null"}]}


def _as_sent(value: Any) -> Any:
    """Say that decimals are sent as numbers, and that names are texts."""
    if isinstance(value, list):
        return [_as_sent(item) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {name: _as_sent(item) for name, item in value.items()}
    if schema.get("format") == "decimal":
        schema |= {"type": "number"}
        del schema["format"]
    elif isinstance(schema.get("enum"), list):
        schema = {"type": "string", **schema}
    elif schema.get("required") == []:
        del schema["required"]
    return schema
