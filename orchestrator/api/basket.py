"""A changed basket: `PATCH /v1/checkouts/{id}`, a JSON Merge Patch (RFC 7396) of what was handed over.

The order that it makes is checked by the rules of an intent. The change is stored as a command, encrypted
under the checkout's own data key, and applied by the worker that holds the checkout to the order as it is
then: two changes of different fields both count.
"""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations of what it calls
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import intents
from orchestrator.api import checkouts, commands, dependencies, problems, request_body
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.problems import Refusal
from orchestrator.crypto import EncryptionError
from orchestrator.domain import command_rules
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.records import CommandKind
from orchestrator.intents import IntentRejected, changes
from orchestrator.store import inbox

SCOPE: Final = "checkouts:write"
_BESIDE: Final = frozenset({"reason", "version"})
"""Fields of the command, beside the change itself."""


async def change(request: Request, checkout_id: str) -> Response:
    """Store a change of an order, if the checkout as stored allows it."""
    services = dependencies.of(request)
    caller, merchant = await dependencies.admit(request, SCOPE)
    checkout = checkouts.id_of(checkout_id)
    key = checkouts.idempotency_key(request)
    body = commands.Body(CommandKind.CHANGE, await request_body.read_json(request, limit=intents.BODY_LIMIT))
    wanted = {name: value for name, value in body.given.items() if name not in _BESIDE}
    body.problems += changes.problems_of(wanted)
    body.judge()
    async with asyncio.timeout(DATABASE_TIMEOUT):
        view = await inbox.checkout_view(services.db, checkout, merchant_id=merchant.id, key=key)
        if view is None:
            raise checkouts.unknown(checkout_id)
        if view.met is None:
            commands.refuse(
                command_rules.rejection(view, CommandRequest(kind=CommandKind.CHANGE, version=body.version))
            )
        try:
            order = await inbox.stored_order(services.db, services.encryptor, checkout)
        except EncryptionError:
            said = f"the order of checkout {checkout} cannot be read any more: hand it over as a new checkout"
            raise Refusal(409, said, kind="order-unreadable") from None
        print_ = inbox.fingerprint_of(
            checkout,
            CommandKind.CHANGE,
            # A plain hash would allow a guess at the customer's data to be confirmed.
            {"change": order.key.mac(changes.fingerprint(wanted)).hex()},
            reason=body.reason,
            expected_version=body.version,
        )
        command = commands.met(view, key, print_)
        if command is None:
            try:
                sealed = order.sealed(wanted)
            except IntentRejected as error:
                raise problems.rejected(error) from None
            command_request = CommandRequest(kind=CommandKind.CHANGE, change=sealed, version=body.version)
            command = await commands.store(
                request, view, command_request, actor=caller.actor, reason=body.reason, key=key, print_=print_
            )
    return await commands.accepted(request, view, command, CommandKind.CHANGE)
