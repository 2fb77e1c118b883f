"""The deliverer: takes due streams of each endpoint, as many as it can handle, sends them, and writes the
results.

A round takes lists of streams for all endpoints that may be sent something, in one statement, and does not
wait for what is under way. A slow or failing endpoint delays its own deliveries only: each has an allowance
of its own, may take half of what is left of the process's, and always at least one. A circuit opens after ten
failures that concern the endpoint and not a single event, for all deliverers at once; then one probe at a
time is sent. A deliverer keeps no data of its own: when it ends, its leases run out.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from orchestrator import counters, log, traces
from orchestrator.crypto import EncryptionError
from orchestrator.delivery import retries, signature, trial_event
from orchestrator.delivery.endpoint_state import EndpointState
from orchestrator.delivery.pace import Pace
from orchestrator.delivery.sender import Answer, Outcome
from orchestrator.domain import events
from orchestrator.domain.ids import uuid7
from orchestrator.store import deliveries, webhooks
from orchestrator.store.batch import Batch
from orchestrator.store.deliveries import Attempt, Written

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.delivery.sender import Sender
    from orchestrator.delivery.task_sender import TaskSender
    from orchestrator.delivery.trial_event import TrialEvent
    from orchestrator.domain.events import CloudEvent
    from orchestrator.settings import Settings
    from orchestrator.store.batch import Writes
    from orchestrator.store.database import Database, Kept
    from orchestrator.store.deliveries import Due
    from orchestrator.store.webhooks import Webhook

_log = log.get(__name__)

CHECK_EVERY: Final = 1.0
"""Seconds after which all endpoints are checked, with or without notifications."""
CHECK_EVERY_WITHOUT_NOTIFICATIONS: Final = 0.05
"""The same where no notifications arrive."""
GATHER: Final = 0.02
"""Seconds from one round to the next, in which the next list gathers while there is much to do."""
BUSY: Final = 5.0
"""How many times as long as a round took it is to the next, where the machine is busy, up to `LONGEST`."""
LONGEST: Final = 0.1
GATHER_RESULTS: Final = 0.025
"""Seconds for which a result waits for others to be written with, if its checkout's next event waits."""
GATHER_LAST: Final = 0.2
"""The same if no other event of its checkout was there when it was taken."""
AWAY: Final = 1.0
"""Seconds after a round that failed."""
LEASE_MARGIN: Final = 15.0
"""Seconds by which a lease is longer than a delivery."""
TESTS_AT_ONCE: Final = 50
"""Test events that are under way in one process."""
UNSERVED: Final = 5.0
"""Seconds after which a test event is checked again whose endpoint is not served."""
LATE: Final = LEASE_MARGIN / 2
"""Seconds after which what was taken is not sent any more: its lease might end before the answer comes."""
CLEAN_EVERY: Final = 60.0
CLOSING: Final = 5.0
"""Seconds of the shutdown's that are kept for writing results."""
AGENT: Final = "checkout-orchestrator/1"
_HARMLESS: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENCODER: Final = msgspec.json.Encoder(decimal_format="number")


class Deliverer:
    """The deliveries of one process."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        encryptor: Encryptor,
        sender: Sender,
        *,
        tasks: TaskSender,
    ) -> None:
        self._settings, self._db, self._encryptor = settings, db, encryptor
        self._sender, self._task_sender = sender, tasks
        self._endpoints: dict[UUID, EndpointState] = {}
        self._by_text: dict[str, EndpointState] = {}
        self._woken = asyncio.Event()
        self._refresh_at = self._check_at = self._tests_at = self._clean_at = float("-inf")
        self._lease = settings.webhook_total_timeout + LEASE_MARGIN
        self._tasks: set[asyncio.Task[None]] = set()
        self._tests: set[asyncio.Task[None]] = set()
        self._round = 0
        self._more_may_be_due = False
        """Whether more may be due than could begin in the last round."""
        self._lists: set[asyncio.Task[None]] = set()
        self._listed: dict[UUID, int] = {}
        """Of which endpoints a list of their backlog is being taken, and of how many streams."""
        self._refused: set[UUID] = set()
        self._results: Batch[Written, bool] = Batch(
            lambda results: deliveries.write(db, results),
            keys=lambda result: (deliveries.stream_of(result),),
            limit=settings.batch_limit,
            name="deliveries",
        )
        self.notified = False
        """Whether notifications arrive, so that checks may be rare."""
        self.delivered = self.failed = 0

    @property
    def in_flight(self) -> int:
        """How many deliveries are under way."""
        return len(self._tasks)

    @property
    def writes(self) -> Writes:
        """How writing results fares."""
        return self._results.writes

    def wake(self, payload: str = "") -> None:
        """Look at once: at these endpoints (ids with a blank between), or at all. What is no known id,
        such as `*`, says that something is new about endpoints.
        """
        endpoints = [self._by_text.get(text) for text in payload.split()]
        if None in endpoints:
            self._refresh_at = float("-inf")
        if not endpoints or None in endpoints:
            self._check_at = self._tests_at = float("-inf")
        for endpoint in endpoints:
            if endpoint is not None:
                endpoint.may_be_due = True
        self._woken.set()

    async def run(self, ending: asyncio.Event) -> bool:
        """Deliver until `ending` is set, then end what is under way; return whether nothing was cut off."""
        end = asyncio.create_task(ending.wait())
        end.add_done_callback(lambda _: self._woken.set())
        kept = self._db.kept()
        try:
            while not ending.is_set():
                began = time.monotonic()
                self._woken.clear()
                try:
                    taken = await self.round(kept)
                except Exception as error:  # noqa: BLE001 - the next round tries again, whatever it was
                    _log.warning("deliveries_not_taken", **log.cause(error))
                    await asyncio.wait((end,), timeout=AWAY)
                    continue
                gather = max(GATHER, min((time.monotonic() - began) * BUSY, LONGEST))
                if not (taken and self._more_may_be_due):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._idle_for()):
                            await self._woken.wait()
                if taken:
                    await asyncio.sleep(max(began + gather - time.monotonic(), 0))
        finally:
            end.cancel()
            await kept.close()
        return await self._finish()

    def _idle_for(self) -> float:
        """Return the seconds until something may be due without a word."""
        now = time.monotonic()
        held = [
            max(endpoint.pace.begins_at, endpoint.open_at)
            for endpoint in self._endpoints.values()
            if endpoint.may_be_due
        ]
        return max(min([self._check_at, *(until for until in held if until > now)]) - now, 0.001)

    async def _finish(self) -> bool:
        """Let what is under way come to its end, within the shutdown's time; give back what does not."""
        until = time.monotonic() + max(self._settings.shutdown_timeout - CLOSING, 0.5)
        if self._lists:
            for late in (await asyncio.wait(self._lists, timeout=LATE))[1]:
                late.cancel()
        tasks = tuple(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=max(until - time.monotonic(), 0.5))
        cut_off = [task for task in tasks if not task.done()]
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._results.close()
        return not cut_off

    # ── Rounds ─────────────────────────────────────────────────────────────────────────────────────────────

    async def round(self, kept: Kept) -> bool:
        """Take what is due and may be sent, and begin to send it; return whether there was anything."""
        now = time.monotonic()
        if now >= self._refresh_at:
            await self._refresh()
        if self._refresh_at < now:  # a change was notified during the read
            await self._refresh()
        everywhere = now >= self._check_at
        if everywhere:
            self._check_at = now + (CHECK_EVERY if self.notified else CHECK_EVERY_WITHOUT_NOTIFICATIONS)
        if now >= self._clean_at:
            self._clean_at = now + CLEAN_EVERY
            await self._clean()
        taken = await self._take_tests(now)
        wanted, probes = await self._wanted(everywhere=everywhere)
        behind = {of: wanted.pop(of) for of in set(wanted) - probes if self._endpoints[of].behind}
        if behind:
            self._listed |= behind
            task = asyncio.create_task(self._take_backlog(behind), name="backlog")
            self._lists.add(task)
            task.add_done_callback(self._lists.discard)
        if wanted:
            taken += await self._take(kept, wanted, probes)
        self._more_may_be_due = any(endpoint.waits for endpoint in self._endpoints.values())
        return bool(taken)

    async def _take_tests(self, now: float) -> int:
        """Take test events, as many as may be under way; return how many."""
        most = TESTS_AT_ONCE - len(self._tests)
        if now < self._tests_at or most <= 0:
            return 0
        self._tests_at = now + CHECK_EVERY
        return self._begin(await deliveries.take_tests(self._db, most=most, seconds=self._lease))

    async def _take_backlog(self, wanted: dict[UUID, int]) -> None:
        """Take of backlogs, beside the rounds: events of other endpoints do not wait for these lists."""
        began = time.monotonic()
        try:
            await self._take(self._db, wanted, set())
            await asyncio.sleep(max(GATHER - (time.monotonic() - began), 0))
        except Exception as error:  # noqa: BLE001 - the next list tries again, whatever it was
            _log.warning("deliveries_not_taken", **log.cause(error))
            await asyncio.sleep(AWAY)
        finally:
            for endpoint_id in wanted:
                del self._listed[endpoint_id]
            self._woken.set()

    async def _take(self, db: Database | Kept, wanted: dict[UUID, int], probes: set[UUID]) -> int:
        """Take what is due, and begin to send it; return how many."""
        endpoints = {endpoint_id: self._endpoints[endpoint_id] for endpoint_id in wanted}
        for endpoint in endpoints.values():
            endpoint.may_be_due = False
        asked = time.monotonic()
        try:
            found = await deliveries.take(db, wanted, probes=probes, seconds=self._lease)
        except Exception:
            for endpoint in endpoints.values():
                endpoint.may_be_due = True
            raise
        if time.monotonic() - asked > LATE:
            _log.warning("deliveries_taken_late", number=len(found))
            return 0
        counts = Counter(due.endpoint_id for due in found)
        for endpoint_id, most in wanted.items():
            # Where less was found than could be sent, there is no more, unless a notification came meanwhile.
            endpoints[endpoint_id].behind = behind = counts[endpoint_id] >= most
            endpoints[endpoint_id].may_be_due |= behind
        begun = self._begin(found, probes)
        for endpoint_id in probes - counts.keys():
            await endpoints[endpoint_id].give_back_probe(self._db)
        return begun

    async def _wanted(self, *, everywhere: bool) -> tuple[dict[UUID, int], set[UUID]]:
        """Return how many may begin at each endpoint, and which of them are probed; who comes first changes
        with each round.
        """
        now = time.monotonic()
        endpoints = [
            endpoint
            for endpoint in self._endpoints.values()
            if (everywhere or endpoint.may_be_due)
            and endpoint.webhook.paused_at is None
            and now >= endpoint.open_at
            and not endpoint.probing
            and endpoint.webhook.id not in self._listed
            and not (endpoint.webhook.opened and endpoint.pace.in_flight)
        ]
        probes: set[UUID] = set()
        if opened := [endpoint.webhook.id for endpoint in endpoints if endpoint.webhook.opened]:
            probes = await webhooks.claim_probes(self._db, opened, seconds=self._lease)
        self._round += 1
        first = self._round % max(len(endpoints), 1)
        room = self._settings.webhook_in_flight - len(self._tasks) - sum(self._listed.values())
        wanted: dict[UUID, int] = {}
        for endpoint in (*endpoints[first:], *endpoints[:first]):
            webhook = endpoint.webhook
            if webhook.id in probes:
                most = 1
            elif webhook.opened:
                # Another deliverer probes it, or nothing is due.
                endpoint.open_at = now + CHECK_EVERY
                continue
            else:
                # Half of what is left, so that something is left for others; always one, so that no other
                # endpoint's deliveries block it.
                most = min(endpoint.pace.free(now), max(room // 2, 0 if endpoint.pace.in_flight else 1))
            if most > 0:
                wanted[webhook.id] = most
                room -= most
        return wanted, probes

    async def _refresh(self) -> None:
        """Read all endpoints anew."""
        self._refresh_at = time.monotonic() + CHECK_EVERY  # a notification during the read causes another
        found = await webhooks.served(self._db)
        endpoints: dict[UUID, EndpointState] = {}
        for webhook in found:
            endpoint = self._endpoints.get(webhook.id)
            kept = None if endpoint is None else (endpoint.webhook.encrypted, endpoint.webhook.previous)
            if endpoint is None or kept != (webhook.encrypted, webhook.previous):
                try:
                    secrets = webhook.secrets(self._encryptor)
                except EncryptionError as error:
                    self._refuse(webhook, str(error))
                    continue
                if endpoint is None:
                    pace = Pace(self._settings.webhook_endpoint_in_flight)
                    endpoint = EndpointState(webhook, secrets, pace, open_at=time.monotonic())
                endpoint.secrets = secrets
            if endpoint.webhook.target != webhook.target and endpoint.webhook.encrypted == webhook.encrypted:
                self._refuse(webhook, "its secret was made for another target")
                continue
            endpoint.refresh(webhook)
            endpoints[webhook.id] = endpoint
        self._endpoints = endpoints
        self._by_text = {str(endpoint_id): endpoint for endpoint_id, endpoint in endpoints.items()}

    def _refuse(self, webhook: Webhook, reason: str) -> None:
        if webhook.id not in self._refused:
            self._refused.add(webhook.id)
            _log.error("webhook_unreadable", webhook=str(webhook.id), reason=reason, security=True)

    async def _clean(self) -> None:
        """Delete what is not kept any more: attempts, and what deleted endpoints have left."""
        kept = self._settings.webhook_attempt_retention_days * 86_400
        if await deliveries.forget(self._db, older_than=kept) or await deliveries.clear(self._db):
            self._clean_at = time.monotonic() + CHECK_EVERY

    def _begin(self, found: Sequence[Due], probes: Collection[UUID] = ()) -> int:
        loop = asyncio.get_running_loop()
        for due in found:
            endpoint = self._endpoints.get(due.endpoint_id)
            began = time.monotonic()
            if endpoint is not None and due.purpose != "test":  # which does not count for its pace
                endpoint.pace.begin(began)
                endpoint.probing |= due.endpoint_id in probes
            task = loop.create_task(self._deliver(due, endpoint, began), name="delivery")
            self._tasks.add(task)
            if due.purpose == "test":
                self._tests.add(task)
            task.add_done_callback(self._ended)
        return len(found)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._tests.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("delivery_failed", exc_info=error)  # its lease ends, and the event is sent again
        if self._more_may_be_due:
            self._woken.set()

    # ── One delivery ───────────────────────────────────────────────────────────────────────────────────────

    async def _deliver(self, due: Due, endpoint: EndpointState | None, began: float) -> None:
        if endpoint is None:
            self.wake("*")  # not served any more, not known yet, or unreadable
            await self._put(due, due.written("released", due_in=UNSERVED))
            return
        if due.purpose == "test":
            answer = await self._sent(due, endpoint)
            tested = self._attempt(due, answer, result="delivered" if answer.delivered else None)
            await self._keep(due, due.written("done", attempt=tested))
            return
        answered: Answer | None = None
        target = endpoint.webhook.target
        try:
            if due.event is not None:
                answered = await self._sent(due, endpoint)
        finally:
            probed, endpoint.probing = endpoint.probing, False
            here = answered if endpoint.webhook.target == target else None
            endpoint.answered(here, began, first=due.attempts == 0, probed=probed)
        if endpoint.may_be_due and endpoint.webhook.id not in self._listed:
            # What is due takes its place now, and does not wait for the result to be written.
            self._woken.set()
        endpoint.noting += 1
        try:
            written = due.written("done") if answered is None else self._result(due, answered)
            if await self._keep(due, written) and written.step == "done":
                endpoint.may_be_due = True  # notifications that came meanwhile could not be handled then
                self._woken.set()
            changed = False
            if answered is not None and endpoint.webhook.target == target:
                changed = await endpoint.note(self._db, answered, probed=probed)
            elif probed:
                await endpoint.give_back_probe(self._db)
                self._woken.set()
        finally:
            endpoint.noting -= 1
        if changed:
            self.wake("*")

    async def _sent(self, due: Due, endpoint: EndpointState) -> Answer:
        """Send an event; one that is interrupted is given back."""
        try:
            return await self._send(due, endpoint)
        except asyncio.CancelledError:
            await asyncio.shield(self._put(due, due.written("released")))
            raise

    async def _send(self, due: Due, endpoint: EndpointState) -> Answer:
        try:
            document: CloudEvent | TrialEvent
            if due.event is None:
                document = trial_event.document(due.checkout_id, due.merchant)
            else:
                document = events.document(due.event, content=endpoint.webhook.content)
            body = _ENCODER.encode(document)
        except (KeyError, ValueError):
            _log.exception("event_unreadable", checkout=str(due.checkout_id), sequence=due.sequence)
            return Answer(Outcome.UNREADABLE, 0.0)
        span = _traced(due) if traces.on else None
        if endpoint.webhook.kind == "celery":
            answer = await self._task_sender.send(endpoint.webhook, endpoint.secrets[0], document.id, body)
        else:
            signed = signature.headers(document.id, body, endpoint.secrets, at=int(time.time()))
            headers = {"content-type": "application/cloudevents+json", "user-agent": AGENT, **signed}
            headers["traceparent"] = document.traceparent if span is None else traces.header_of(span)
            if due.event is not None and _HARMLESS.fullmatch(due.event.correlation_id):
                headers["x-correlation-id"] = due.event.correlation_id
            answer = await self._sender.send(endpoint.webhook.url, headers, body)
        if span is not None:
            facts = {"webhook": str(due.endpoint_id), "type": document.type, "outcome": answer.outcome}
            span.end(kind="producer", error=not answer.delivered, **facts)
        return answer

    def _result(self, due: Due, answer: Answer) -> Written:
        counters.deliveries.add(answer.outcome)
        counters.delivery_seconds.observe(answer.seconds)
        if answer.delivered:
            self.delivered += 1
            return due.written("done", attempt=self._attempt(due, answer, result="delivered"))
        self.failed += 1
        if due.failing_for >= retries.GIVE_UP_AFTER:
            _log.warning(
                "event_given_up",
                webhook=str(due.endpoint_id),
                checkout=str(due.checkout_id),
                sequence=due.sequence,
                outcome=answer.outcome,
            )
            return due.written("done", attempt=self._attempt(due, answer, result="given_up"))
        wait = retries.delay(due.attempts + 1, at_least=answer.wait or 0.0)
        return due.written("failed", due_in=wait, attempt=self._attempt(due, answer))

    def _attempt(self, due: Due, answer: Answer, *, result: deliveries.Result | None = None) -> Attempt:
        return Attempt(
            id=uuid7(),
            kind=trial_event.TYPE if due.event is None else due.event.kind,
            number=due.attempts + 1,
            outcome=answer.outcome,
            status=answer.status,
            milliseconds=round(answer.seconds * 1000),
            answer=deliveries.sealed(self._encryptor, due, answer.body),
            result=result,
        )

    async def _keep(self, due: Due, written: Written) -> bool:
        """Write a result, also if this task is cancelled meanwhile; the same result may be written twice."""
        try:
            return await self._put(due, written)
        except asyncio.CancelledError:
            await asyncio.shield(self._put(due, written))
            raise

    async def _put(self, due: Due, written: Written) -> bool:
        """Write a result with whatever else gathers; return whether something of its stream is left."""
        within = GATHER_RESULTS if written.sequence < due.last_sequence else GATHER_LAST
        try:
            return await self._results.put(written, within=within)
        except Exception as error:  # noqa: BLE001 - its lease ends, and it is due again
            _log.warning("delivery_not_written", webhook=str(written.endpoint_id), **log.cause(error))
            return False


def _traced(due: Due) -> traces.Span | None:
    if due.event is None:
        return None
    place = traces.of_order(due.event.correlation_id, due.checkout_id, due.now)
    return None if place is None else traces.begin("deliver", place)
