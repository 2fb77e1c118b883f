"""Messages of the queue `intents`: each intent becomes a checkout, or is stored as refused.

Intents go through the same intake as those of the API, with the same token and scope, so an order is created
once however it is sent and however often. `accept` returns once everything of the message is stored, and only
then may the message be acknowledged. While Postgres is away, it waits and tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from orchestrator import intents, log
from orchestrator.auth import AccessDenied, Authenticator
from orchestrator.intents import IntentRejected, Problem, submissions
from orchestrator.intents.submissions import SubmissionRejected
from orchestrator.store.batch import Unwritten
from orchestrator.store.database import is_away
from orchestrator.store.inbox import Accepted, Intake, Intents, rejected
from orchestrator.store.inbox.errors import IntakeError
from orchestrator.store.inbox.rejected import Rejection
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from orchestrator.auth import Caller
    from orchestrator.crypto import Encryptor
    from orchestrator.intents.submissions import Submission
    from orchestrator.messaging.hints import HintPublisher
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox.rejected import Code
    from orchestrator.store.merchants import Merchant

_log = log.get(__name__)

SCOPE: Final = "checkouts:write"
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
MOST_ERRORS: Final = 5
"""Unexpected errors of a message after which it is refused; Postgres being away does not count."""
FORGET_EVERY: Final = 600.0
UNAVAILABLE: Final = 503


@dataclass(frozen=True, slots=True)
class Message:
    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    content_type: object
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Counts:
    """How much this process has consumed from the queue: messages, and intents by their result."""

    messages: int = 0
    accepted: int = 0
    rejected: int = 0


class Submissions:
    """Stores messages on one event loop, any number at once; their intents are written together.

    `on_events` is called after events were written.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        encryptor: Encryptor,
        hint_publisher: HintPublisher,
        *,
        on_events: Callable[[], None],
    ) -> None:
        self._settings, self._db, self._encryptor = settings, db, encryptor
        self._hint_publisher, self._on_events = hint_publisher, on_events
        self._authenticator = Authenticator(settings)
        self._merchants = Merchants(db, encryptor, settings)
        self._intents = Intents(db, encryptor, grace=settings.hint_grace, batch_limit=settings.batch_limit)
        self.counts = Counts()
        self._under_way = 0
        self._since = 0.0

    @property
    def stalled(self) -> tuple[float, str]:
        """Seconds since a message was last stored while some are under way (0 if none is), and the SQLSTATE
        of the last failure to write.
        """
        if not self._under_way:
            return 0.0, ""
        return time.monotonic() - self._since, self._intents.writes.error

    async def close(self) -> None:
        """Write what is queued."""
        await self._intents.close()
        await self._authenticator.close()

    async def accept(self, message: Message) -> None:
        """Store everything of a message, however long Postgres is away; it may be cancelled at any moment and
        called again with the same message.
        """
        if not self._under_way:
            self._since = time.monotonic()
        self._under_way += 1
        try:
            await self._store_at_last(message)
            self._since = time.monotonic()
        finally:
            self._under_way -= 1
        self.counts.messages += 1

    async def _store_at_last(self, message: Message) -> None:
        pause, errors = FIRST_PAUSE, 0
        while True:
            try:
                await self._store(message)
            except Exception as error:  # noqa: BLE001 - nothing in a message ends its consumer
                if is_away(error):
                    _log.warning("intents_postponed", **log.cause(error))
                elif isinstance(error, AccessDenied):
                    _log.warning("intents_postponed", reason=error.sentence)
                elif (errors := errors + 1) < MOST_ERRORS:
                    _log.error("intents_not_stored", exc_info=error)
                else:
                    await self._reject_after_errors(message, error)
                    break
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                break

    async def forget(self) -> None:
        """Delete rejected intents whose retention has ended, every few minutes, until it is cancelled."""
        while True:
            await asyncio.sleep(FORGET_EVERY * random.uniform(0.5, 1.0))  # noqa: S311 - not all workers at once
            try:
                await self.forget_now()
            except Exception as error:  # noqa: BLE001 - the next round tries again after any error
                _log.warning("rejected_intents_not_forgotten", **log.cause(error))

    async def forget_now(self) -> int:
        """Delete rejected intents whose retention has ended; return how many."""
        deleted = 0
        seconds = self._settings.rejected_intent_retention_days * 86_400
        while rows := await rejected.forget(self._db, older_than=seconds):
            deleted += rows
        return deleted

    async def _store(self, message: Message) -> None:
        rejections = _rejections_of(message)
        try:
            submission = submissions.read(message.headers, message.content_type, message.body)
        except SubmissionRejected as error:
            await self._reject([rejections.of_message("malformed", error.problem, message.body)])
            return
        rejections.token = submission.token
        try:
            caller = await self._authenticator.admit(f"Bearer {submission.token}")
            caller.need(SCOPE)
        except AccessDenied as error:
            if error.status == UNAVAILABLE:
                raise
            await self._refuse_access(submission, rejections, error)
            return
        merchant = await self._merchants.named(caller.merchant)
        if merchant is None or merchant.disabled:
            reason = "is disabled: ask the operator to enable it" if merchant else "does not exist here"
            problem = Problem("token", f"the token's merchant {caller.merchant!r} {reason}")
            rejections.merchant_id = merchant.id if merchant else None
            body = _json_list(submission.intents)
            await self._reject([rejections.of_message("merchant_refused", problem, body)])
            return
        rejections.merchant_id = merchant.id
        await self._store_intents(submission.intents, caller, merchant, rejections)

    async def _refuse_access(
        self, submission: Submission, rejections: _Rejections, error: AccessDenied
    ) -> None:
        """Store a message whose token is refused; one that has only expired still says whose it is."""
        code: Code = "access_denied"
        caller = await self._authenticator.expired(submission.token)
        if caller is not None and SCOPE in caller.scopes:
            code = "token_expired"
            merchant = await self._merchants.named(caller.merchant)
            rejections.merchant_id = merchant.id if merchant else None
        problem = Problem("token", error.sentence)
        await self._reject([rejections.of_message(code, problem, _json_list(submission.intents))])

    async def _store_intents(
        self, raws: Sequence[bytes], caller: Caller, merchant: Merchant, rejections: _Rejections
    ) -> None:
        valid: list[tuple[int, Intake]] = []
        rejected_intents: list[Rejection] = []
        for number, raw in enumerate(raws):
            try:
                intent = intents.parse(raw)
            except IntentRejected as error:
                rejected_intents.append(rejections.of_intent(number, raw, "invalid_intent", *error.problems))
            else:
                intake = Intake.of(
                    intent,
                    merchant_id=merchant.id,
                    actor=caller.actor,
                    correlation_id=rejections.correlation_id,
                    default_expires_in=self._settings.checkout_expires_in,
                )
                valid.append((number, intake))
            await asyncio.sleep(0)  # a long list must not delay checkouts that are in flight
        results = await self._intents.accept_all([intake for _, intake in valid])
        fresh = [result.id for result in results if isinstance(result, Accepted) and result.fresh]
        if fresh:
            self._hint_publisher.publish(fresh, merchant_id=merchant.id)
        self.counts.accepted += len(fresh)
        for (number, _), result in zip(valid, results, strict=True):
            if isinstance(result, IntakeError):
                problem = Problem("order.orderId", str(result))
                rejected_intents.append(rejections.of_intent(number, raws[number], "order_taken", problem))
            elif isinstance(result, Unwritten):
                problem = Problem("body", "the database refuses it, also when it is sent again")
                rejected_intents.append(rejections.of_intent(number, raws[number], "not_storable", problem))
            elif not isinstance(result, Accepted):
                # The message is tried again; intents of it that are stored are then found, and not doubled.
                raise result
        await self._reject(rejected_intents)

    async def _reject_after_errors(self, message: Message, error: Exception) -> None:
        """Store a message as refused that fails each time, instead of trying it for ever."""
        _log.error("intents_refused", exc_info=error)
        reason = "could not be processed because of an error of the orchestrator, which its log shows; intents of it may be stored"
        rejection = _rejections_of(message).of_message("internal", Problem("message", reason), message.body)
        while True:
            try:
                await self._reject([rejection])
            except Exception as failure:  # noqa: BLE001 - the next try follows after any error
                _log.warning("intents_postponed", **log.cause(failure))
                await asyncio.sleep(LONGEST_PAUSE)
            else:
                return

    async def _reject(self, rejections: Sequence[Rejection]) -> None:
        if not rejections:
            return
        stored = await rejected.store(self._db, self._encryptor, rejections)
        self.counts.rejected += stored
        if stored:
            self._on_events()
            _log.warning("intents_rejected", intents=stored, code=rejections[0].code)


@dataclass(slots=True)
class _Rejections:
    """Makes the rejections of a message; `merchant_id` is None until a token proves the merchant."""

    message_id: str
    correlation_id: str
    merchant_id: int | None = None
    token: str | None = field(default=None, repr=False)
    """Of the message, once that is read: what is refused from then on are intents, without the message around
    them."""

    def of_message(self, code: Code, problem: Problem, body: bytes) -> Rejection:
        return self._rejection(body, code, (problem,), number=-1, order_ref=None)

    def of_intent(self, number: int, raw: bytes, code: Code, *problems: Problem) -> Rejection:
        order_ref = submissions.order_number(raw)
        return self._rejection(raw, code, problems, number=number, order_ref=order_ref)

    def _rejection(
        self, raw: bytes, code: Code, problems: tuple[Problem, ...], *, number: int, order_ref: str | None
    ) -> Rejection:
        return Rejection(
            merchant_id=self.merchant_id,
            message_id=self.message_id,
            number=number,
            order_ref=order_ref,
            code=code,
            problems=problems,
            order_refs=submissions.order_numbers(raw) if number < 0 else (),
            body=submissions.without_tokens(raw)
            if self.token is None
            else submissions.without_token(raw, self.token),
            correlation_id=self.correlation_id,
        )


def _rejections_of(message: Message) -> _Rejections:
    message_id = submissions.message_id(message.headers, message.properties)
    if message_id is None:
        return _Rejections(hashlib.sha256(message.body).hexdigest()[:32], uuid4().hex)
    return _Rejections(message_id, message_id)


def _json_list(raws: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(raws) + b"]"
