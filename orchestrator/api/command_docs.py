"""What the OpenAPI document says of commands."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from orchestrator.api.basket import SCOPE as CHANGE_SCOPE
from orchestrator.api.command_waits import LONGEST_WAIT
from orchestrator.api.commands import KEYED, SCOPES
from orchestrator.api.contract import Schema, answers, bodies, ref
from orchestrator.api.docs import (
    KEY_BOUNDS,
    LONGEST_HEADER,
    described,
    described_problems,
    json_answer,
    json_body,
    parameter,
)

if TYPE_CHECKING:
    from orchestrator.domain.records import CommandKind

_LOCATION: Final[Schema] = {
    "Location": {
        "description": "Where the command is followed",
        "schema": {"type": "string", "maxLength": 100},
    }
}
_APPLIED: Final[Schema] = {
    "Preference-Applied": {
        "description": "The seconds that were waited for at most; absent where nothing was waited for",
        "schema": {"type": "string", "maxLength": 100},
    }
}


def commanded(kind: CommandKind, about: str) -> dict[str, Any]:
    """Return what FastAPI is told about the route of a command."""
    body = json_body(ref(bodies.COMMANDS[kind]), required=kind in bodies.NEEDED)
    told = _told(about, body, scope=SCOPES[kind], keyed=kind in KEYED)
    told["responses"] |= described_problems(
        version_changed=(HTTPStatus.CONFLICT, "Not as the checkout stands now, or not at this version"),
        invalid_command=(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "A field or the Idempotency-Key is wrong, or the amount is more than is left",
        ),
    )
    return told


def changed_order() -> dict[str, Any]:
    """Return what FastAPI is told about the route that changes an order."""
    schema = {"schema": ref(bodies.Change)}
    body = {"required": True, "content": {"application/merge-patch+json": schema, "application/json": schema}}
    told = _told("Change the order before its payment", body, scope=CHANGE_SCOPE)
    told["responses"] |= described_problems(
        payment_seen=(
            HTTPStatus.CONFLICT,
            "A payment is seen or under way, the checkout has ended or is being cancelled, or it has another version",
        ),
        invalid_intent=(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "With the change it is no valid order, or the Idempotency-Key is wrong",
        ),
    )
    told["description"] += (
        " The body is a JSON Merge Patch (RFC 7396) of what was handed over: amount, order lines, customer, transactionInfo and "
        "callbacks may change. Done means that the order of the checkout is changed; the shopper can pay it from the next "
        "`checkout.ready` on, when the gateway has it as well. A payment of the order as it was raises attention, and is "
        "neither captured nor taken for the order."
    )
    return told


def _told(about: str, body: Schema, *, scope: str, keyed: bool = False) -> dict[str, Any]:
    """Describe what all commands have in common."""
    told = described(
        answers.CommandAccepted,
        "Stored; what becomes of it is shown at the `Location`",
        202,
        body,
        scopes=(scope,),
    )
    stored = told["responses"][202]
    stored["headers"] = {**_LOCATION, **_APPLIED}
    stored["content"]["application/json"]["schema"] = {
        "anyOf": [ref(answers.CommandAccepted), ref(answers.CommandProgress)]
    }
    stored["description"] += "; with `Prefer: wait`, as it stands when the time is over"
    finished = json_answer("With `Prefer: wait`: it is finished", answers.CommandProgress)
    told["responses"][200] = {**finished, "headers": {**_LOCATION, **_APPLIED}}
    key = parameter(
        "Idempotency-Key",
        "header",
        "The same key with the same content is the same command; with other content it is refused",
        **KEY_BOUNDS,
    )
    prefer = parameter(
        "Prefer",
        "header",
        f"`wait=10` (RFC 7240): seconds to wait until the command is finished, at most {LONGEST_WAIT}; what else is preferred is ignored",
        maxLength=LONGEST_HEADER,
    )
    told["openapi_extra"]["parameters"] = [{**key, "required": keyed}, prefer]
    told["responses"] |= described_problems(
        unknown_checkout=(HTTPStatus.NOT_FOUND, "The merchant has no such checkout"),
    )
    # Its function is made for all kinds, and has no description.
    return {**told, "summary": about, "description": ""}


def followed_command() -> dict[str, Any]:
    """Return what FastAPI is told about the route that shows a command."""
    told = described(answers.CommandProgress)
    told["responses"] |= described_problems(
        unknown_command=(
            HTTPStatus.NOT_FOUND,
            "The merchant has no such command, or its checkout was archived, and the command had no Idempotency-Key",
        ),
    )
    return told
