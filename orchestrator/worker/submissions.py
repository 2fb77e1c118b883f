"""What becomes of a message of the queue `intents`: each of its intents a checkout, or stored as refused.

It goes through the same intake as the API, with the same token and scope, so that an order is taken once by
whichever way and however often it is sent. `take` returns once everything of the message is stored, and only
then may the message be acknowledged: while Postgres is away, it waits and tries again.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
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
    from orchestrator.messaging.hints import HintPublisher
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox.rejected import Code
    from orchestrator.store.merchants import Merchant

_log = log.get(__name__)

SCOPE: Final = "checkouts:write"
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
FAULTS: Final = 5
"""Tries after which a message is refused that meets an error which nobody foresaw; Postgres being away is
none."""
FORGET_EVERY: Final = 600.0
UNAVAILABLE: Final = 503


@dataclass(frozen=True, slots=True)
class Message:
    """A message as the broker delivered it."""

    headers: Mapping[str, Any]
    properties: Mapping[str, Any]
    content_type: object
    body: bytes = field(repr=False)


@dataclass(slots=True)
class Counts:
    """What this process has taken from the queue."""

    messages: int = 0
    accepted: int = 0
    rejected: int = 0


class Submissions:
    """Takes messages on one event loop, any number at once; their intents are written together.

    `told` is called after events were written.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        encryptor: Encryptor,
        hint_publisher: HintPublisher,
        *,
        told: Callable[[], None],
    ) -> None:
        self._settings, self._db, self._encryptor = settings, db, encryptor
        self._hint_publisher, self._told = hint_publisher, told
        self._authenticator = Authenticator(settings)
        self._merchants = Merchants(db, encryptor, settings)
        self._intents = Intents(db, encryptor, grace=settings.hint_grace, batch_limit=settings.batch_limit)
        self.counts = Counts()

    async def close(self) -> None:
        """Write what has gathered."""
        await self._intents.close()
        await self._authenticator.close()

    async def take(self, message: Message) -> None:
        """Store everything of a message, however long Postgres is away; it may be cancelled at any moment and
        taken again.
        """
        pause, faults = FIRST_PAUSE, 0
        while True:
            try:
                await self._take(message)
            except Exception as error:  # noqa: BLE001 - nothing in a message ends its consumer
                if is_away(error):
                    _log.warning("intents_postponed", **log.cause(error))
                elif isinstance(error, AccessDenied):
                    _log.warning("intents_postponed", reason=error.sentence)
                elif (faults := faults + 1) < FAULTS:
                    _log.error("intents_not_taken", exc_info=error)
                else:
                    await self._refuse_fault(message, error)
                    break
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                break
        self.counts.messages += 1

    async def forget(self) -> None:
        """Delete what was refused long ago, from time to time, until it is cancelled."""
        while True:
            await asyncio.sleep(FORGET_EVERY * random.uniform(0.5, 1.0))  # noqa: S311 - not all workers at once
            try:
                await self.forget_now()
            except Exception as error:  # noqa: BLE001 - the next round tries again, whatever it was
                _log.warning("rejected_intents_not_forgotten", **log.cause(error))

    async def forget_now(self) -> int:
        """Delete what was refused longer ago than it is kept; return how many."""
        number = 0
        seconds = self._settings.rejected_intent_retention_days * 86_400
        while gone := await rejected.forget(self._db, older_than=seconds):
            number += gone
        return number

    async def _take(self, message: Message) -> None:
        known = submissions.message_id(message.headers, message.properties)
        given = known or hashlib.sha256(message.body).hexdigest()[:32]
        refusal = _Refusals(given, known or uuid4().hex)
        try:
            submission = submissions.read(message.headers, message.content_type, message.body)
        except SubmissionRejected as error:
            await self._store([refusal.whole("malformed", error.problem, message.body)])
            return
        try:
            caller = await self._authenticator.admit(f"Bearer {submission.token}")
            caller.need(SCOPE)
        except AccessDenied as error:
            if error.status == UNAVAILABLE:
                raise
            wrong = Problem("token", error.sentence)
            await self._store([refusal.whole("access_denied", wrong, _listed(submission.intents))])
            return
        merchant = await self._merchants.named(caller.merchant)
        if merchant is None or merchant.disabled:
            said = "is disabled: ask the operator to enable it" if merchant else "does not exist here"
            wrong = Problem("token", f"the token's merchant {caller.merchant!r} {said}")
            refusal.merchant_id = merchant.id if merchant else None
            await self._store([refusal.whole("merchant_refused", wrong, _listed(submission.intents))])
            return
        refusal.merchant_id = merchant.id
        await self._take_intents(submission.intents, caller, merchant, refusal)

    async def _take_intents(
        self, raws: Sequence[bytes], caller: Caller, merchant: Merchant, refusal: _Refusals
    ) -> None:
        read: list[tuple[int, Intake]] = []
        refused: list[Rejection] = []
        for number, raw in enumerate(raws):
            try:
                intent = intents.parse(raw)
            except IntentRejected as error:
                refused.append(refusal.of(number, raw, "invalid_intent", *error.problems))
            else:
                intake = Intake.of(
                    intent,
                    merchant_id=merchant.id,
                    actor=caller.actor,
                    correlation_id=refusal.correlation_id,
                    usual_life=self._settings.checkout_expires_in,
                )
                read.append((number, intake))
            await asyncio.sleep(0)  # a long list must not keep checkouts under way waiting
        results = await asyncio.gather(
            *(self._intents.accept(intake) for _, intake in read), return_exceptions=True
        )
        fresh = [result.id for result in results if isinstance(result, Accepted) and result.fresh]
        if fresh:
            self._hint_publisher.publish(fresh, merchant_id=merchant.id)
        self.counts.accepted += len(fresh)
        for (number, _), result in zip(read, results, strict=True):
            if isinstance(result, IntakeError):
                wrong = Problem("order.orderId", str(result))
                refused.append(refusal.of(number, raws[number], "order_taken", wrong))
            elif isinstance(result, Unwritten):
                wrong = Problem("body", "the database refuses it, and always will")
                refused.append(refusal.of(number, raws[number], "not_storable", wrong))
            elif isinstance(result, BaseException):
                # The message is tried again; those of it that are stored are met then, and are the same.
                raise result
        await self._store(refused)

    async def _refuse_fault(self, message: Message, error: Exception) -> None:
        """Keep a message that always meets an error of ours, instead of trying it for ever."""
        _log.error("intents_refused", exc_info=error)
        known = submissions.message_id(message.headers, message.properties)
        refusal = _Refusals(known or hashlib.sha256(message.body).hexdigest()[:32], known or uuid4().hex)
        said = "met an error of the orchestrator's, which its log shows; intents of it may be stored"
        while True:
            try:
                await self._store([refusal.whole("internal", Problem("message", said), message.body)])
            except Exception as again:  # noqa: BLE001 - as above
                _log.warning("intents_postponed", **log.cause(again))
                await asyncio.sleep(LONGEST_PAUSE)
            else:
                return

    async def _store(self, refused: Sequence[Rejection]) -> None:
        if not refused:
            return
        stored = await rejected.store(self._db, self._encryptor, refused)
        self.counts.rejected += stored
        if stored:
            self._told()
            _log.warning("intents_rejected", intents=stored, code=refused[0].code)


@dataclass(slots=True)
class _Refusals:
    """Makes rejections of one message."""

    message_id: str
    correlation_id: str
    merchant_id: int | None = None

    def whole(self, code: Code, problem: Problem, body: bytes) -> Rejection:
        return self._made(body, code, (problem,), number=-1, order_ref=None)

    def of(self, number: int, raw: bytes, code: Code, *problems: Problem) -> Rejection:
        order_ref = submissions.order_number(raw)
        return self._made(raw, code, problems, number=number, order_ref=order_ref)

    def _made(
        self, raw: bytes, code: Code, problems: tuple[Problem, ...], *, number: int, order_ref: str | None
    ) -> Rejection:
        return Rejection(
            merchant_id=self.merchant_id,
            message_id=self.message_id,
            number=number,
            order_ref=order_ref,
            code=code,
            problems=problems,
            body=submissions.without_tokens(raw),
            correlation_id=self.correlation_id,
        )


def _listed(raws: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(raws) + b"]"
