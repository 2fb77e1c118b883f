"""Carries bulk actions out, one order at a time, under the lease of the run.

Each order passes the same rule as by hand. A process that is killed leaves items without an outcome; the
process that takes the run up next goes on with them, and the idempotency key of each item stores its command
once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Final

from orchestrator import log
from orchestrator.console.actions import store_command
from orchestrator.crypto import EncryptionError
from orchestrator.domain import command_rules
from orchestrator.domain.attention import WAYS_OUT, AttentionCode, Way
from orchestrator.domain.command_rules import CommandRequest
from orchestrator.domain.records import CommandKind, Decision
from orchestrator.shutdown import cancelled
from orchestrator.store import inbox
from orchestrator.store.console import runs
from orchestrator.store.inbox import KeyReused

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.api.dependencies import Services
    from orchestrator.domain.command_rules import CheckoutView
    from orchestrator.store.console.runs import Item, Result, Run

_log = log.get(__name__)

EVERY: Final = 10.0
"""Seconds between two looks for a run that no process carries out."""


class RunWorker:
    """The bulk actions that this process carries out; on one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look for runs."""
        self._task = asyncio.create_task(self._watch(), name="console-runs", context=Context())

    def wake(self) -> None:
        """Look at once."""
        self._woken.set()

    async def close(self) -> None:
        """End; what is left of a run is taken up by another process."""
        if self._task is not None:
            await cancelled([self._task])

    async def _watch(self) -> None:
        while True:
            try:
                claimed = await runs.claim(self._services.db, self._services.encryptor)
                if claimed is not None:
                    await self._carry_out(*claimed)
                    continue
            except Exception as error:  # noqa: BLE001 - the run stays, and is taken up again
                _log.warning("bulk_action_interrupted", **log.cause(error))
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._woken.wait()
            self._woken.clear()

    async def _carry_out(self, run: Run, lease: UUID) -> None:
        db = self._services.db
        if not run.authentic or run.reason is None or not await runs.intact(db, run):
            _log.error("bulk_action_not_authentic", run=str(run.id))
            await runs.stop(db, run.id)
            return
        while await runs.renew(db, run.id, lease):
            items = await runs.next_items(db, run.id)
            if not items:
                await runs.finish(db, run.id, lease)
                _log.info("bulk_action_done", run=str(run.id))
                return
            results: list[Result] = []
            try:
                for item in items:
                    # One by one: what is done is noted, also when the next one fails.
                    results.append(await self._carry_out_item(run, item))  # noqa: PERF401
            finally:
                if results:
                    await runs.note(db, run.id, results)

    async def _carry_out_item(self, run: Run, item: Item) -> Result:
        done = await self._command(run, item)
        if isinstance(done, str):
            return runs.Result(checkout=item.checkout, outcome="refused", sentence=done)
        return runs.Result(checkout=item.checkout, outcome="accepted", command=done)

    async def _command(self, run: Run, item: Item) -> UUID | str:
        """Store the command of an item; return it, or why it is refused."""
        services = self._services
        dismiss = run.kind == "dismiss"
        request = CommandRequest(
            kind=CommandKind.RESOLVE if dismiss else CommandKind(run.kind),
            decision=Decision.DISMISS if dismiss else None,
            version=item.version,
        )
        key = f"console-run:{run.id}:{item.checkout}"
        view = await inbox.checkout_view(services.db, item.checkout, merchant_id=item.merchant_id, key=key)
        if view is None:
            return "it does not exist any more"
        if view.met is not None:
            return view.met[0]
        if dismiss and not _dismissed_at_once(view):
            return "this question is decided order by order, on the page of the order"
        refused = command_rules.rejection(view, request)
        if refused is not None:
            return refused.sentence
        try:
            stored = await store_command(services, view, request, reason=run.reason, key=key, actor=run.actor)
        except KeyReused as error:
            return str(error)
        except EncryptionError:
            # The others of the run go on: this order can only be read under a key that was lost.
            return "no key of this installation decrypts it"
        return stored or "it does not exist any more"


def _dismissed_at_once(view: CheckoutView) -> bool:
    """Whether a question may be dismissed for many orders: not where it has other ways out only, nor where to
    dismiss says that a money operation was not done.
    """
    asked = view.attention
    return asked is None or (
        asked.code is not AttentionCode.OPERATION_UNCLEAR and Way.DISMISS in WAYS_OUT[asked.code]
    )
