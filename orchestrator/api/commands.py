"""Commands on a checkout after its creation: cancel, reopen, capture, refund, release, retry, reconcile,
resolve (a change of its order is in `basket`).

Each is a command that is checked against the books, stored and answered with 202, and executed by the worker
that holds the checkout; its result is shown at the address in the answer. With an `Idempotency-Key` the same
request is the same command, however often and wherever it is sent; calls that move money are refused without
a key. With `Prefer: wait=10` the answer waits for the result of the command.
"""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import msgspec
from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations of what it calls
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator.api import checkouts, dependencies, reads, request_body
from orchestrator.api.body_fields import BodyFields
from orchestrator.api.command_waits import CommandWait, wait_of
from orchestrator.api.contract import answers, bodies
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.long_poll import TooManyWaiting, while_connected
from orchestrator.api.problems import Refusal, answer, key_reused
from orchestrator.domain import command_rules, money
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.records import CommandKind, Decision
from orchestrator.intents import Problem
from orchestrator.intents.fields import kind_of, shown
from orchestrator.intents.reading import LONGEST_EXPIRY
from orchestrator.store import inbox, read_model
from orchestrator.store.inbox import KeyReused, ReasonNotKept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from orchestrator.domain.command_rules import CheckoutView, Rejection

COMMAND_BYTES: Final = 16 * 1024

SCOPES: Final[dict[CommandKind, str]] = {
    CommandKind.CANCEL: "checkouts:write",
    CommandKind.REOPEN: "checkouts:write",
    CommandKind.CAPTURE: "money:write",
    CommandKind.REFUND: "money:write",
    CommandKind.RELEASE: "money:write",
    CommandKind.RETRY: "ops",
    CommandKind.RECONCILE: "checkouts:write",
    CommandKind.RESOLVE: "money:write",
}
ABOUT: Final[dict[CommandKind, str]] = {
    CommandKind.CANCEL: "Cancel a checkout",
    CommandKind.REOPEN: "Reopen a closed checkout for a shopper who tries again",
    CommandKind.CAPTURE: "Capture reserved money: an amount, or all that is left",
    CommandKind.REFUND: "Refund captured money: an amount, or all that is left",
    CommandKind.RELEASE: "Release a reservation",
    CommandKind.RETRY: "Try again at once what is waiting for its next try",
    CommandKind.RECONCILE: "Ask the gateway at once what it holds",
    CommandKind.RESOLVE: "Decide what waits for a person",
}
KEYED: Final[frozenset[CommandKind]] = frozenset({CommandKind.CAPTURE, CommandKind.REFUND})
"""Two requests to move a part of the money may both be intended, so each must be identified by its key."""

_FIELDS: Final = {kind: frozenset(body.__struct_encode_fields__) for kind, body in bodies.COMMANDS.items()}


def taking(kind: CommandKind) -> Callable[[Request, str], Awaitable[Response]]:
    """Return the endpoint that accepts one kind of command."""

    async def take(request: Request, checkout_id: str) -> Response:
        return await _take(request, checkout_id, kind)

    take.__name__ = take.__qualname__ = kind.value
    return take


async def _take(request: Request, checkout_id: str, kind: CommandKind) -> Response:
    services = dependencies.of(request)
    caller, merchant = await dependencies.admit(request, SCOPES[kind])
    checkout = checkouts.id_of(checkout_id)
    key = checkouts.idempotency_key(request)
    if key is None and kind in KEYED:
        message = f"is missing: each {kind} needs a key of its own, such as a UUID, so that sending it again moves nothing twice"
        wrong = [Problem("Idempotency-Key", message)]
        raise Refusal(422, f"Idempotency-Key {message}", kind="idempotency-key-missing", errors=wrong)
    body = Body(kind, await request_body.read_json(request, limit=COMMAND_BYTES, optional=True))
    async with asyncio.timeout(DATABASE_TIMEOUT):
        view = await inbox.checkout_view(services.db, checkout, merchant_id=merchant.id, key=key)
        if view is None:
            raise checkouts.unknown(checkout_id)
        command_request = body.command_request(view)
        print_ = inbox.fingerprint_of(
            checkout,
            kind,
            command_request.arguments,
            reason=body.reason,
            expected_version=command_request.version,
        )
        command = met(view, key, print_)
        if command is None:
            refuse(command_rules.rejection(view, command_request))
            # A cancel under way is the same cancel for every caller.
            command = view.cancelling if kind is CommandKind.CANCEL else None
        if command is None:
            command = await store(
                request, view, command_request, actor=caller.actor, reason=body.reason, key=key, print_=print_
            )
    return await accepted(request, view, command, kind)


async def accepted(request: Request, view: CheckoutView, command: UUID, kind: CommandKind) -> Response:
    """Publish a hint for a stored command; answer where it is followed, or with its result if the request
    prefers to wait for it.
    """
    dependencies.of(request).hint_publisher.publish([view.id], merchant_id=view.merchant_id)
    seconds = wait_of(request.headers.getlist("prefer"))
    if seconds is not None:
        return await _finished(request, CommandWait(view.merchant_id, command), seconds=seconds)
    told = answers.CommandAccepted(
        id=view.id,
        order_id=view.order_ref,
        state=view.state,
        version=view.version,
        command=answers.StoredCommand(id=command, kind=kind),
        links=reads.command_links_of(view.id, command),
    )
    return answer(told, 202, {"Location": reads.path_of(command)})


async def _finished(request: Request, wanted: CommandWait, *, seconds: int) -> Response:
    """Answer with a command as soon as it is finished (200), or as it stands when the time is over (202).

    Where no slot is free the answer does not wait: the command is stored in any case.
    """
    services, applied = dependencies.of(request), {"Preference-Applied": f"wait={seconds}"}
    record = None
    try:
        record = await while_connected(request, services.command_waits, wanted, seconds=seconds)
    except TooManyWaiting:
        applied = {}
    if record is None:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            found = await read_model.commands(services.db, (wanted.command,), merchant_id=wanted.merchant_id)
        record = found[wanted.command]
    headers = {"Location": reads.path_of(wanted.command), **applied}
    return answer(reads.told_of(record), 200 if record.finished else 202, headers)


def met(view: CheckoutView, key: str | None, print_: bytes) -> UUID | None:
    """Return the command that the key was used for, if its content was the same."""
    if view.met is None:
        return None
    command, before = view.met
    if before != print_:
        raise key_reused(KeyReused(key or ""))
    return command


async def store(
    request: Request,
    view: CheckoutView,
    command_request: CommandRequest,
    *,
    actor: str,
    reason: str | None,
    key: str | None,
    print_: bytes,
) -> UUID:
    """Store a command and return its id, or that of the command that has the key."""
    services = dependencies.of(request)
    try:
        stored = await inbox.request(
            services.db,
            services.encryptor,
            view.id,
            merchant_id=view.merchant_id,
            kind=command_request.kind,
            actor=actor,
            reason=reason,
            expected_version=command_request.version,
            arguments=command_request.arguments,
            idempotency_key=key,
            fingerprint=print_,
            grace=services.settings.hint_grace,
        )
    except KeyReused as error:
        raise key_reused(error) from None
    except ReasonNotKept as error:
        raise Refusal(409, str(error), kind="erased", errors=[Problem("reason", str(error))]) from None
    if stored is None:  # it was there a moment ago, and checkouts are never deleted
        raise checkouts.unknown(str(view.id))
    return stored.id


def refuse(rejection: Rejection | None) -> None:
    """Raise the problem of a rejection: 409 for the checkout's state, 422 for a field."""
    if rejection is None:
        return
    said, field = rejection.sentence, rejection.field
    raise Refusal(
        409 if field is None else 422,
        said,
        kind=rejection.kind,
        errors=() if field is None else [Problem(field, said)],
        facts=rejection.facts,
    )


class Body(BodyFields):
    """The body of a command, read as far as it can be without the checkout, whose currency an
    amount needs.
    """

    __slots__ = ("command", "reason", "version")
    kind = "invalid-command"
    must_be = "a JSON object, or empty"
    decoder = msgspec.json.Decoder(float_hook=Decimal)

    def __init__(self, command: CommandKind, raw: bytes) -> None:
        # What a change may name is known to `intents.changes`.
        super().__init__(raw, bodies.COMMANDS.get(command))
        self.command = command
        self.reason = self.text(self.given, "", "reason", required=False, most=bodies.LONGEST_REASON)
        self.version = self._version()
        self.judge()

    def command_request(self, view: CheckoutView) -> CommandRequest:
        """Return the requested command."""
        transaction_id = self._transaction()
        command_request = CommandRequest(
            kind=self.command,
            amount=self._amount(view.currency_of(transaction_id)),
            transaction_id=transaction_id,
            expires_in=self._expires_in(),
            decision=self._decision(),
            version=self.version,
        )
        self.judge()
        return command_request

    def _version(self) -> int | None:
        match self.given.get("version"):
            case None:
                return None
            case bool():
                pass
            case int(version) if 1 <= version < 2**31:
                return version
            case _:
                pass
        self.wrong("version", "must be the version of the checkout that you saw, a whole number")
        return None

    def _transaction(self) -> str | None:
        if "transactionId" not in _FIELDS[self.command]:
            return None
        return self.text(self.given, "", "transactionId", required=False, most=bodies.LONGEST_TRANSACTION)

    def _amount(self, currency: str) -> int | None:
        """Read an amount in minor units, given as a number or as value and currency; None: all that is left,
        which must be said.
        """
        if "amount" not in _FIELDS[self.command]:
            return None
        given = self.given.get("amount")
        if given is None:
            self.missing(
                self.given, "", "amount", f'how much to {self.command}, or "all" for all that is left'
            )
            return None
        if given == bodies.ALL:
            return None
        if isinstance(given, str):
            self.wrong("amount", 'must be a JSON number such as 139.00, without quotes, or "all"')
            return None
        source, at, name = self.given, "", "amount"
        if isinstance(given, dict):
            if strange := sorted(given.keys() - {"value", "currency"}):
                self.wrong(
                    f"amount.{shown(strange[0])}", "is not a known field: an amount has value and currency"
                )
            if str(given.get("currency", currency)).upper() != currency:
                self.wrong("amount.currency", f"must be {currency}, in which this money is held")
                return None
            source, at, name = given, "amount.", "value"
        minor = self.money(source, at, name, currency)
        if minor is not None and minor <= 0:
            self.wrong(at + name, f"must be more than 0, and {money.to_decimal(minor, currency)} is not")
            return None
        return minor

    def _expires_in(self) -> float | None:
        seconds = self.given.get("expiresIn")
        if seconds is None or self.command is not CommandKind.REOPEN:
            return None
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | Decimal)
            or not 1 <= seconds <= LONGEST_EXPIRY
        ):
            self.wrong("expiresIn", f"must be a number of seconds from 1 to {LONGEST_EXPIRY} (30 days)")
            return None
        return float(seconds)

    def _decision(self) -> Decision | None:
        if self.command is not CommandKind.RESOLVE:
            return None
        decision = self.given.get("decision")
        if decision in tuple(Decision):
            return Decision(decision)
        said = (
            f"not {kind_of(decision)}" if not isinstance(decision, str) else "and this text is none of them"
        )
        self.wrong("decision", f"must be keep, return or dismiss, {said}")
        return None
