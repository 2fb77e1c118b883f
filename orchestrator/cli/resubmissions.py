"""Refused intents that an operator submits once more: they take the same way in as those of an import, with
the operator in the audit trail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

import click
import msgspec

from orchestrator import intents
from orchestrator.cli.imports import result_of
from orchestrator.cli.output import say_json
from orchestrator.crypto import Encryptor
from orchestrator.intents import submissions
from orchestrator.intents.submissions import SubmissionRejected
from orchestrator.store.database import DatabaseAway
from orchestrator.store.inbox import Accepted, Intake, Intents, rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.errors import OrchestratorError
    from orchestrator.intents import Problem
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox.rejected import Code, RejectedIntent

AT_ONCE: Final = 100
"""Refused intents that are read at once."""
_FIRST: Final = UUID(int=0)


class Resubmission:
    """One run of the command; `merchant` is the one that the operator names, if any, and `actor` stands in
    the trail.
    """

    def __init__(self, settings: Settings, db: Database, *, merchant: int | None, actor: str) -> None:
        self._settings, self._db, self._merchant, self._actor = settings, db, merchant, actor
        self._encryptor = Encryptor(settings.secret_keys)
        self._intents = Intents(db, self._encryptor, grace=settings.hint_grace)
        self._refused = 0

    async def close(self) -> None:
        """Write what is queued."""
        await self._intents.close()

    async def all_with(self, code: Code) -> int:
        """Submit everything that was refused with this code; return the exit status."""
        after = _FIRST
        while rows := await rejected.with_code(
            self._db, code, merchant_id=self._merchant, after=after, limit=AT_ONCE
        ):
            for row in rows:
                await self._submit(row)
            after = rows[-1].id
        return 1 if self._refused else 0

    async def these(self, chosen: Sequence[UUID]) -> int:
        """Submit refused intents by their ids; return the exit status."""
        for intent_id in chosen:
            found = await rejected.by_id(self._db, self._encryptor, intent_id)
            if found is None:
                raise click.UsageError(
                    f"there is no refused intent {intent_id}: see `orchestrator rejected-intents list`"
                )
            await self._submit(found[0])
        return 1 if self._refused else 0

    async def _submit(self, row: RejectedIntent) -> None:
        try:
            raws, merchant = await self._content(row), self._owner(row)
        except SubmissionRejected as error:
            self._write(row, None, (error.problem,))
            return
        valid: list[tuple[bytes, Intake]] = []
        for raw in raws:
            try:
                intent = intents.parse(raw)
            except intents.IntentRejected as error:
                self._write(row, raw, error.problems)
            else:
                intake = Intake.of(
                    intent,
                    merchant_id=merchant,
                    actor=self._actor,
                    correlation_id=row.message_id,
                    default_expires_in=self._settings.checkout_expires_in,
                )
                valid.append((raw, intake))
        if valid:
            await rejected.belongs_to(self._db, row.id, merchant)
        results = await self._intents.accept_all([intake for _, intake in valid])
        for (raw, _), result in zip(valid, results, strict=True):
            if isinstance(result, DatabaseAway):
                raise result
            self._write(row, raw, result)

    async def _content(self, row: RejectedIntent) -> tuple[bytes, ...]:
        found = await rejected.by_id(self._db, self._encryptor, row.id)
        if found is None or found[1] is None:
            raise SubmissionRejected("body", "was erased, or no key of this installation decrypts it")
        return submissions.intents_in(found[1])

    def _owner(self, row: RejectedIntent) -> int:
        if row.merchant_id is None and self._merchant is None:
            raise SubmissionRejected("token", "proves no merchant: name it with --merchant")
        if None not in (row.merchant_id, self._merchant) and row.merchant_id != self._merchant:
            raise SubmissionRejected("token", "proves another merchant than --merchant names")
        owner = row.merchant_id if self._merchant is None else self._merchant
        assert owner is not None  # noqa: S101 - just checked
        return owner

    def _write(
        self, row: RejectedIntent, raw: bytes | None, result: Accepted | OrchestratorError | Sequence[Problem]
    ) -> None:
        self._refused += not isinstance(result, Accepted)
        say_json(msgspec.json.encode({"rejectedIntent": row.id, **result_of(raw, result)}).decode())
