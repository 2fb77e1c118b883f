"""Intents that an operator hands over: the rows of a file, and refused intents of the queue once more. Both
take the way in of those of the API, with the operator in the audit trail.

It is imported when there is something to store, and so imports what it needs.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from typing import IO, TYPE_CHECKING, Final
from uuid import UUID, uuid4

import click
import msgspec

from orchestrator import gc_tuning, intents
from orchestrator.cli.output import say, say_json
from orchestrator.errors import OrchestratorError
from orchestrator.intents import Problem, submissions
from orchestrator.intents.rows import column_of
from orchestrator.intents.submissions import SubmissionRejected
from orchestrator.shutdown import cancelled
from orchestrator.store.database import DatabaseAway
from orchestrator.store.inbox import Accepted, Intake, Intents, rejected
from orchestrator.store.inbox.errors import IntakeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from orchestrator.cli.attached import Installation
    from orchestrator.intents.rows import Row
    from orchestrator.settings import Settings
    from orchestrator.store.inbox.rejected import Code, RejectedIntent

    Read = tuple[Row, Intake | Sequence[Problem]]
    """A row of a file, and its intake or what is wrong with it."""
    Result = Accepted | OrchestratorError | Sequence[Problem]

AT_ONCE: Final = 1000
"""Rows that are written together."""
READ_AT_ONCE: Final = 20
"""Rows that are read before a list that is being written goes on."""
TRIES: Final = 5
"""Attempts to write a list while Postgres does not answer."""
PAUSE: Final = 1.0
"""Seconds between two of them."""
REFUSED_AT_ONCE: Final = 100
"""Refused intents that are read at once."""
_PROGRESS_EVERY: Final = {True: 0.5, False: 5.0}
"""Seconds between two lines of progress, on a terminal (True) and elsewhere."""
_CREATED, _EXISTING, _REJECTED = "created", "existing", "rejected"


class Import:
    """One run of an import."""

    def __init__(self, here: Installation, merchant: int, output: IO[str], *, actor: str) -> None:
        self._settings, self._merchant, self._output, self._actor = here.settings, merchant, output, actor
        self._intents = Intents(here.db, here.encryptor, grace=here.settings.hint_grace, batch_limit=AT_ONCE)
        self._correlation_id = f"import-{uuid4().hex}"
        self._counts: Counter[str] = Counter()
        self._started = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    async def run(self, rows: Iterator[Row], *, ahead: bool) -> int:
        """Import every row; return the exit status.

        `ahead`: read the next list while one is written. Only for a file whose reading never waits: of a pipe
        a whole list would wait for the first row of the next.
        """
        writing: asyncio.Task[None] | None = None
        gc_tuning.settle()
        try:
            while chunk := await self._read(rows):
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._store(chunk))
                if not ahead:
                    await writing
            if writing is not None:
                await writing
        except Exception:
            if writing is not None:
                await writing  # its rows are stored and reported, whatever is wrong with those after them
            raise
        finally:
            if writing is not None:
                await cancelled([writing])
            self._output.flush()
            self._progress(last=True)
        await self._intents.close()
        return int(self._counts[_REJECTED] > 0)

    async def _read(self, rows: Iterator[Row]) -> list[Read]:
        """Return the next rows, each with its intake or its problems."""
        chunk: list[Read] = []
        for row in rows:
            intake = row.problems or _intake_of(
                row.raw,
                self._settings,
                merchant=self._merchant,
                actor=self._actor,
                correlation_id=self._correlation_id,
            )
            chunk.append((row, intake))
            if len(chunk) >= AT_ONCE:
                break
            if not len(chunk) % READ_AT_ONCE:
                await asyncio.sleep(0)  # the list that is being written goes on
        return chunk

    async def _store(self, chunk: Sequence[Read]) -> None:
        results = iter(await self._accept([item for _, item in chunk if isinstance(item, Intake)]))
        self._write((row, next(results) if isinstance(item, Intake) else item) for row, item in chunk)
        self._output.flush()
        self._progress()

    async def _accept(self, intakes: Sequence[Intake]) -> list[Accepted | OrchestratorError]:
        """Store a list; where Postgres does not answer it is sent again, and what is stored is then found."""
        away: DatabaseAway | None = None
        for attempt in range(1, TRIES + 1):
            results = await self._intents.accept_all(intakes)
            away = next((result for result in results if isinstance(result, DatabaseAway)), None)
            if away is None:
                return results
            say(f"Postgres does not answer; try {attempt} of {TRIES}", err=True)
            await asyncio.sleep(PAUSE)
        assert away is not None  # noqa: S101 - the last attempt has set it
        raise away

    def _write(self, results: Iterable[tuple[Row, Result]]) -> None:
        """Write the result of each row."""
        for row, result in results:
            line = {"line": row.line, **_result_of(row.raw, result)}
            self._counts[str(line["status"])] += 1
            say_json(msgspec.json.encode(line).decode(), self._output)

    def _progress(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown < _PROGRESS_EVERY[self._terminal]:
            return
        self._shown = now
        counts, number = self._counts, self._counts.total()
        rate = number / max(now - self._started, 0.001)
        say(
            f"{number} rows: {counts[_CREATED]} created, {counts[_EXISTING]} there already, "
            f"{counts[_REJECTED]} refused; {rate:.0f}/s",
            err=True,
        )


class Resubmission:
    """One run of the command; `merchant` is the one that the operator names, if any, and `actor` stands in
    the trail.
    """

    def __init__(self, here: Installation, *, merchant: int | None, actor: str) -> None:
        self._here, self._merchant, self._actor = here, merchant, actor
        self._intents = Intents(here.db, here.encryptor, grace=here.settings.hint_grace)
        self._refused = 0

    async def run(self, code: Code | None, chosen: Sequence[UUID]) -> int:
        """Submit everything that was refused with a code, and refused intents by their ids; return the exit
        status.
        """
        try:
            if code is not None:
                await self._submit_all(code)
            for intent_id in chosen:
                found = await rejected.by_id(self._here.db, self._here.encryptor, intent_id)
                if found is None:
                    raise click.UsageError(
                        f"there is no refused intent {intent_id}: see `orchestrator rejected-intents list`"
                    )
                await self._submit(found[0])
        finally:
            await self._intents.close()
        return int(self._refused > 0)

    async def _submit_all(self, code: Code) -> None:
        after = UUID(int=0)
        while rows := await rejected.with_code(
            self._here.db, code, merchant_id=self._merchant, after=after, limit=REFUSED_AT_ONCE
        ):
            for row in rows:
                await self._submit(row)
            after = rows[-1].id

    async def _submit(self, row: RejectedIntent) -> None:
        try:
            raws, merchant = await self._content(row), self._owner(row)
        except SubmissionRejected as error:
            self._write(row, None, (error.problem,))
            return
        valid: list[tuple[bytes, Intake]] = []
        for raw in raws:
            intake = _intake_of(
                raw, self._here.settings, merchant=merchant, actor=self._actor, correlation_id=row.message_id
            )
            if isinstance(intake, Intake):
                valid.append((raw, intake))
            else:
                self._write(row, raw, intake)
        if valid:
            await rejected.belongs_to(self._here.db, row.id, merchant)
        results = await self._intents.accept_all([intake for _, intake in valid])
        for (raw, _), result in zip(valid, results, strict=True):
            if isinstance(result, DatabaseAway):
                raise result
            self._write(row, raw, result)

    async def _content(self, row: RejectedIntent) -> tuple[bytes, ...]:
        found = await rejected.by_id(self._here.db, self._here.encryptor, row.id)
        if found is None or found[1] is None:
            raise SubmissionRejected("body", "was erased, or no key of this installation decrypts it")
        return submissions.intents_in(found[1])

    def _owner(self, row: RejectedIntent) -> int:
        owners = {owner for owner in (row.merchant_id, self._merchant) if owner is not None}
        if not owners:
            raise SubmissionRejected("token", "proves no merchant: name it with --merchant")
        if len(owners) > 1:
            raise SubmissionRejected("token", "proves another merchant than --merchant names")
        return owners.pop()

    def _write(self, row: RejectedIntent, raw: bytes | None, result: Result) -> None:
        self._refused += not isinstance(result, Accepted)
        say_json(msgspec.json.encode({"rejectedIntent": row.id, **_result_of(raw, result)}).decode())


def _intake_of(
    raw: bytes, settings: Settings, *, merchant: int, actor: str, correlation_id: str
) -> Intake | Sequence[Problem]:
    """Read an intent that is to be stored; return the reasons for which it is refused, if it is."""
    try:
        intent = intents.parse(raw)
    except intents.IntentRejected as error:
        return error.problems
    return Intake.of(
        intent,
        merchant_id=merchant,
        actor=actor,
        correlation_id=correlation_id,
        default_expires_in=settings.checkout_expires_in,
    )


def _result_of(raw: bytes | None, result: Result) -> dict[str, object]:
    """Return what came of an intent: the checkout that it is, or the reasons for which it is refused."""
    if isinstance(result, Accepted):
        return {
            "status": _CREATED if result.fresh else _EXISTING,
            "orderId": result.order_ref,
            "id": result.id,
            "state": result.state,
        }
    if isinstance(result, OrchestratorError):
        field = "order.orderId" if isinstance(result, IntakeError) else "body"
        result = (Problem(field, str(result)),)
    errors = [
        {"field": problem.field, "message": problem.message}
        | ({"column": column} if (column := column_of(problem.field)) else {})
        for problem in result
    ]
    number = submissions.order_number(raw) if raw else None
    return {"status": _REJECTED, "orderId": number, "errors": errors}
