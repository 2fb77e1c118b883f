"""One endpoint as one deliverer serves it: its pace, its circuit, and its health.

Health is stored in the endpoint's row, so that all deliverers share it; a write that fails is repeated at the
next answer. A failure that may concern a single event counts once for each event.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.delivery import retries
from orchestrator.delivery.sender import OVERLOAD, Answer, Outcome
from orchestrator.store import webhooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.delivery.pace import Pace
    from orchestrator.store.database import Database
    from orchestrator.store.webhooks import Webhook

_log = log.get(__name__)

OPEN_AFTER: Final = 10
"""Failures in a row after which a circuit opens."""
NOTED_EVERY: Final = 10.0
"""Seconds between two notes that an endpoint takes deliveries."""
_OF_THE_EVENT: Final = frozenset({Outcome.REFUSED, Outcome.SERVER_ERROR, Outcome.UNREADABLE})
"""Outcomes that may concern a single event only."""


@dataclass(slots=True, eq=False)
class EndpointState:
    """One endpoint as this process serves it."""

    webhook: Webhook
    secrets: Sequence[bytes]
    """As the endpoint's row has them: keys that sign, or the URL of a broker."""
    pace: Pace
    open_at: float
    """When its circuit may be probed, or the end of its Retry-After, by our own clock; in the past: nothing
    holds it."""
    may_be_due: bool = True
    """Something may be due."""
    behind: bool = False
    """The last list was as long as it might be, so more is due than may be sent at a time."""
    failures: int = 0
    """In a row, of those that concern the endpoint."""
    failing: bool = False
    probing: bool = False
    noted_at: float = float("-inf")
    noting: int = 0
    """Answers that are not in the endpoint's row yet."""

    @property
    def waits(self) -> bool:
        """Whether something may be due that may be sent."""
        return self.may_be_due and self.webhook.paused_at is None

    def refresh(self, webhook: Webhook) -> None:
        """Take over what the endpoint's row says now."""
        ended = (
            webhook.target != self.webhook.target
            or (webhook.paused_at is None and self.webhook.paused_at is not None)
            or webhook.opened < self.webhook.opened
        )
        if ended:
            self.pace.restart()
            self.failures = 0
        opens = time.monotonic() + max(webhook.open_for, 0.0)
        # An answer that is not in the row yet may hold the endpoint for longer.
        self.open_at = max(opens, self.open_at) if self.noting and not ended else opens
        self.webhook, self.failing = webhook, webhook.failing_since is not None

    def answered(self, answer: Answer | None, began: float, *, first: bool, probed: bool) -> None:
        """Count a delivery that has ended; None if nothing was sent, or it went to another target than the
        endpoint has now.

        `first`: the event had not been tried before. `probed`: it was the probe of an open circuit.
        """
        now = time.monotonic()
        if answer is None:
            self.pace.in_flight -= 1
            return
        if answer.delivered:
            self.pace.succeeded(began, now)
            return
        if answer.outcome in OVERLOAD and not probed:
            self.pace.overloaded(began, now, throttled=answer.outcome is Outcome.THROTTLED)
        else:
            self.pace.ended(began, now)
        # Deliveries that were under way when the circuit opened show nothing new.
        if now >= self.open_at and (answer.outcome not in _OF_THE_EVENT or first):
            self.failures += 1
        # The row of the endpoint says the same to all deliverers once it is written.
        self.open_at = max(self.open_at, now + (answer.wait or 0.0))

    async def give_back_probe(self, db: Database) -> None:
        """Allow another probe: the stream that was taken for this one had nothing to send."""
        try:
            await webhooks.release_probe(db, self.webhook.id)
        except Exception as error:  # noqa: BLE001 - it ends by itself
            self._not_noted(error)
        self.open_at, self.may_be_due = time.monotonic(), True

    async def note(self, db: Database, answer: Answer, *, probed: bool) -> bool:
        """Note what an answer says of the endpoint; return whether its row says something new.

        `probed`: it was the probe of an open circuit.
        """
        webhook = self.webhook
        try:
            if answer.delivered:
                return await self._delivered(db, probed=probed)
            if answer.outcome is not Outcome.GONE:
                return await self._failed(db, answer, probed=probed)
            if await webhooks.pause(db, webhook.id, "gone", url=webhook.url):
                _log.warning("webhook_off", webhook=str(webhook.id), merchant=webhook.merchant_id)
        except Exception as error:  # noqa: BLE001 - the next answer notes it
            self._not_noted(error)
            return False
        return True

    async def _delivered(self, db: Database, *, probed: bool) -> bool:
        now, webhook = time.monotonic(), self.webhook
        self.failures = 0
        back = probed and webhook.opened > 0
        if not self.failing and not back and now - self.noted_at < NOTED_EVERY:
            return False
        self.noted_at, self.failing = now, False
        self.webhook = replace(webhook, failing_since=None, failing_for=0.0)
        if back:
            self.webhook = replace(self.webhook, opened=0)
            self.pace.restart()
            _log.info("webhook_is_back", webhook=str(webhook.id))
        await webhooks.delivered(db, webhook.id, back=back)
        self.may_be_due |= back
        return back

    async def _failed(self, db: Database, answer: Answer, *, probed: bool) -> bool:
        webhook = self.webhook
        if not self.failing:
            self.failing = True
            await webhooks.failed(db, webhook.id)
        if webhook.failing_for >= webhooks.PAUSE_AFTER and await webhooks.pause(db, webhook.id, "failing"):
            _log.warning(
                "webhook_paused", webhook=str(webhook.id), merchant=webhook.merchant_id, reason="failing"
            )
            return True
        if probed or self.failures >= OPEN_AFTER:
            self.failures = 0
            opened = webhook.opened + 1
            seconds = retries.open_for(opened, at_least=answer.wait or 0.0)
            await webhooks.open_circuit(db, webhook, opened=opened, seconds=seconds)
            _log.warning(
                "webhook_circuit_open",
                webhook=str(webhook.id),
                seconds=round(seconds, 1),
                outcome=answer.outcome,
            )
            self.webhook = replace(webhook, opened=opened)
            self.open_at = time.monotonic() + seconds
            return True
        if answer.wait:
            await webhooks.hold(db, webhook, seconds=answer.wait)
            self.open_at = max(self.open_at, time.monotonic() + answer.wait)
        return False

    def _not_noted(self, error: Exception) -> None:
        _log.warning("webhook_not_noted", webhook=str(self.webhook.id), **log.cause(error))
