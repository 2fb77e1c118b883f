"""Commands on a checkout after its creation: cancel, reopen, capture, refund, release, retry, reconcile,
resolve, and a change of its order.

Each is a command that is checked against the books, stored and answered with 202, and executed by the worker
that holds the checkout; its result is shown at the address in the answer. With an `Idempotency-Key` the same
request is the same command, however often and wherever it is sent; calls that move money are refused without
a key. With `Prefer: wait=10` the answer waits for the result of the command.
"""

from __future__ import annotations

import asyncio
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from fastapi import Request  # noqa: TC002 - FastAPI reads the annotations of what it calls
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import intents
from orchestrator.api import checkouts, dependencies, reads, request_body
from orchestrator.api.contract import answers, bodies
from orchestrator.api.contract.values import like
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.long_poll import CommandWait, TooManyWaiting, while_connected
from orchestrator.api.problems import Refusal, answer, id_of, key_reused, rejected, unknown, wrong
from orchestrator.crypto import EncryptionError
from orchestrator.domain import command_rules, money
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.records import CommandKind, Decision
from orchestrator.intents import IntentRejected, Problem, changes
from orchestrator.intents.fields import kind_of, shown
from orchestrator.intents.reading import LONGEST_EXPIRY
from orchestrator.store import inbox, read_model
from orchestrator.store.inbox import KeyReused, ReasonNotKept

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from uuid import UUID

    from orchestrator.auth import Caller
    from orchestrator.domain.command_rules import CheckoutView, Rejection

COMMAND_BYTES: Final = 16 * 1024
LONGEST_WAIT: Final = 20
"""Seconds."""
_WAIT: Final = re.compile(r"""wait\s*=\s*("?)([0-9]{1,9})\1\s*(;.*)?""", re.IGNORECASE)


class Call(NamedTuple):
    """A command with an address of its own: the scope that it needs, its body, and what it does."""

    scope: str
    body: type[msgspec.Struct]
    about: str


CALLS: Final = {
    CommandKind.CANCEL: Call("checkouts:write", bodies.Cancel, "Cancel a checkout"),
    CommandKind.REOPEN: Call(
        "checkouts:write", bodies.Reopen, "Reopen a closed checkout for a shopper who tries again"
    ),
    CommandKind.CAPTURE: Call(
        "money:write", bodies.Capture, "Capture reserved money: an amount, or all that is left"
    ),
    CommandKind.REFUND: Call(
        "money:write", bodies.Refund, "Refund captured money: an amount, or all that is left"
    ),
    CommandKind.RELEASE: Call("money:write", bodies.Release, "Release a reservation"),
    CommandKind.RETRY: Call("ops", bodies.Retry, "Try again at once what is waiting for its next try"),
    CommandKind.RECONCILE: Call("checkouts:write", bodies.Reconcile, "Ask the gateway at once what it holds"),
    CommandKind.RESOLVE: Call("money:write", bodies.Resolve, "Decide what waits for a person"),
}
CHANGE_SCOPE: Final = "checkouts:write"
KEYED: Final = frozenset({CommandKind.CAPTURE, CommandKind.REFUND})
"""Two requests to move a part of the money may both be intended, so each must be identified by its key."""
NEEDED: Final = KEYED | {CommandKind.RESOLVE}
"""Commands whose body must say something."""


def taking(kind: CommandKind) -> Callable[[Request, str], Awaitable[Response]]:
    """Return the endpoint that accepts one kind of command."""

    async def take(request: Request, checkout_id: str) -> Response:
        return await _take(request, checkout_id, kind)

    take.__name__ = take.__qualname__ = kind.value
    return take


async def _take(request: Request, checkout_id: str, kind: CommandKind) -> Response:
    services, caller, merchant = await dependencies.admit(request, CALLS[kind].scope)
    checkout = id_of("checkout", checkout_id)
    key = checkouts.idempotency_key(request)
    if key is None and kind in KEYED:
        message = f"is missing: each {kind} needs a key of its own, such as a UUID, so that sending it again moves nothing twice"
        said = f"Idempotency-Key {message}"
        raise wrong("Idempotency-Key", message, kind="idempotency-key-missing", said=said)
    body = Body(kind, await request_body.read_json(request, limit=COMMAND_BYTES, optional=True))
    async with asyncio.timeout(DATABASE_TIMEOUT):
        view = await inbox.checkout_view(services.db, checkout, merchant_id=merchant.id, key=key)
        if view is None:
            raise unknown("checkout", checkout_id)
        command_request = body.command_request(view)
        print_ = _fingerprint(checkout, body, command_request.arguments)
        command = _met(view, key, print_)
        if command is None:
            _refuse(command_rules.rejection(view, command_request))
            # A cancel under way is the same cancel for every caller.
            command = view.cancelling if kind is CommandKind.CANCEL else None
        if command is None:
            command = await _store(
                request, view, command_request, caller=caller, reason=body.reason, key=key, print_=print_
            )
    return await _accepted(request, view, command, kind)


async def change(request: Request, checkout_id: str) -> Response:
    """Store a change of an order, if the checkout as stored allows it."""
    # A JSON Merge Patch (RFC 7396) of what was handed over. The order that it makes is checked by the rules
    # of an intent; the worker that holds the checkout applies it to the order as it is then, so two changes
    # of different fields both count.
    kind = CommandKind.CHANGE
    services, caller, merchant = await dependencies.admit(request, CHANGE_SCOPE)
    checkout = id_of("checkout", checkout_id)
    key = checkouts.idempotency_key(request)
    body = Body(kind, await request_body.read_json(request, limit=intents.BODY_LIMIT))
    wanted = {name: value for name, value in body.given.items() if name not in {"reason", "version"}}
    body.problems += changes.problems_of(wanted)
    body.judge()
    async with asyncio.timeout(DATABASE_TIMEOUT):
        view = await inbox.checkout_view(services.db, checkout, merchant_id=merchant.id, key=key)
        if view is None:
            raise unknown("checkout", checkout_id)
        if view.met is None:
            _refuse(command_rules.rejection(view, CommandRequest(kind=kind, version=body.version)))
        try:
            order = await inbox.stored_order(services.db, services.encryptor, checkout)
        except EncryptionError:
            said = f"the order of checkout {checkout} cannot be read any more: hand it over as a new checkout"
            raise Refusal(409, said, kind="order-unreadable") from None
        # A plain hash would allow a guess at the customer's data to be confirmed.
        print_ = _fingerprint(checkout, body, {"change": order.key.mac(changes.fingerprint(wanted)).hex()})
        command = _met(view, key, print_)
        if command is None:
            try:
                sealed = order.sealed(wanted)
            except IntentRejected as error:
                raise rejected(error) from None
            asked = CommandRequest(kind=kind, change=sealed, version=body.version)
            command = await _store(
                request, view, asked, caller=caller, reason=body.reason, key=key, print_=print_
            )
    return await _accepted(request, view, command, kind)


async def _accepted(request: Request, view: CheckoutView, command: UUID, kind: CommandKind) -> Response:
    """Publish a hint for a stored command; answer where it is followed, or with its result if the request
    prefers to wait for it.
    """
    dependencies.of(request).hint_publisher.publish([view.id], merchant_id=view.merchant_id)
    seconds = wait_of(request.headers.getlist("prefer"))
    if seconds is not None:
        return await _finished(request, CommandWait(view.merchant_id, command), seconds=seconds)
    told = like(
        answers.CommandAccepted,
        view,
        order_id=view.order_ref,
        command=answers.StoredCommand(id=command, kind=kind),
        links=like(answers.CommandAcceptedLinks, reads.links_of(view.id), command=reads.path_of(command)),
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
        read = read_model.commands(services.db, (wanted.command,), merchant_id=wanted.merchant_id)
        record = (await dependencies.in_time(read))[wanted.command]
    headers = {"Location": reads.path_of(wanted.command), **applied}
    return answer(reads.told_of(record), 200 if record.finished else 202, headers)


def wait_of(preferences: Iterable[str]) -> int | None:
    """Return the seconds of `wait` in headers `Prefer` (RFC 7240), at most `LONGEST_WAIT`; None where there
    is none that could be honoured. The first counts; what is not known is ignored.
    """
    for preference in ",".join(preferences).split(","):
        if (found := _WAIT.fullmatch(preference.strip())) is not None:
            return min(int(found[2]), LONGEST_WAIT)
    return None


async def show(request: Request, command_id: str) -> Response:
    """One command: how far it is, and what it came to."""
    services, _, merchant = await dependencies.admit(request, reads.SCOPE)
    number = id_of("command", command_id)
    found = await dependencies.in_time(read_model.commands(services.db, (number,), merchant_id=merchant.id))
    if number not in found:
        raise unknown("command", command_id)
    return answer(reads.told_of(found[number]))


def _fingerprint(checkout: UUID, body: Body, arguments: Mapping[str, object]) -> bytes:
    return inbox.fingerprint_of(
        checkout, body.command, arguments, reason=body.reason, expected_version=body.version
    )


def _met(view: CheckoutView, key: str | None, print_: bytes) -> UUID | None:
    """Return the command that the key was used for, if its content was the same."""
    if view.met is None:
        return None
    command, before = view.met
    if before != print_:
        raise key_reused(KeyReused(key or ""))
    return command


async def _store(
    request: Request,
    view: CheckoutView,
    command_request: CommandRequest,
    *,
    caller: Caller,
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
            actor=caller.actor,
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
        raise unknown("checkout", str(view.id))
    return stored.id


def _refuse(rejection: Rejection | None) -> None:
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


class Body(request_body.BodyFields):
    """The body of a command, read as far as it can be without the checkout, whose currency an
    amount needs.
    """

    __slots__ = ("_known", "command", "reason", "version")
    kind = "invalid-command"
    must_be = "a JSON object, or empty"
    decoder = msgspec.json.Decoder(float_hook=Decimal)

    def __init__(self, command: CommandKind, raw: bytes) -> None:
        # What a change may name is known to `intents.changes`.
        shape = None if command is CommandKind.CHANGE else CALLS[command].body
        super().__init__(raw, shape)
        self.command, self._known = command, () if shape is None else shape.__struct_encode_fields__
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
            case int(version) if not isinstance(version, bool) and 1 <= version < 2**31:
                return version
        self.wrong("version", "must be the version of the checkout that you saw, a whole number")
        return None

    def _transaction(self) -> str | None:
        if "transactionId" not in self._known:
            return None
        return self.text(self.given, "", "transactionId", required=False, most=bodies.LONGEST_TRANSACTION)

    def _amount(self, currency: str) -> int | None:
        """Read an amount in minor units, given as a number or as value and currency; None: all that is left,
        which must be said.
        """
        if "amount" not in self._known:
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
