"""`checkouts import`: a file of orders is written straight to the database, in lists, with a result for each
row.

A result is written once its row is committed. The same file may be imported again at any time: an order that
is there with the same content is reported as existing, so an import that was interrupted is simply repeated.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final
from uuid import uuid4

import click
import msgspec

from orchestrator import gc_tuning
from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.confirmation import as_option
from orchestrator.cli.lookup import merchant_id
from orchestrator.cli.output import say, say_json, standard_output
from orchestrator.shutdown import cancelled

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from orchestrator.errors import OrchestratorError
    from orchestrator.intents import Problem
    from orchestrator.intents.rows import Row
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox import Accepted, Intake, Intents

AT_ONCE: Final = 1000
"""Rows that are written together."""
READ_AT_ONCE: Final = 20
"""Rows that are read before a list that is being written goes on."""
TRIES: Final = 5
"""Attempts to write a list while Postgres does not answer."""
PAUSE: Final = 1.0
"""Seconds between two of them."""
_PROGRESS_EVERY: Final = {True: 0.5, False: 5.0}
"""Seconds between two lines of progress, on a terminal (True) and elsewhere."""
_ENCODER: Final = msgspec.json.Encoder()
_CREATED, _EXISTING, _REJECTED = "created", "existing", "rejected"


@click.command("import", short_help="Import a file of orders (NDJSON or CSV).")
@data_dir
@click.argument("source", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--merchant", metavar="NAME", default="default", show_default=True, help="The merchant of the orders."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["ndjson", "csv"]),
    help="Format of FILE (default: csv if its name ends in .csv, else ndjson).",
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="File for the results, one for each row, as NDJSON (default: standard output).",
)
@as_option
def import_orders(
    *, data_dir: Path, source: str, merchant: str, form: str | None, results: str, actor: str
) -> int:
    """Import the orders of FILE (- for standard input): an intent in each line, or CSV, an order in each row.

    Orders that are there already are reported as existing, so an import that was interrupted is simply
    repeated. A wrong row is reported with its line and does not stop the others; then the exit status is 1.
    """
    files = Path(source), Path(results)
    if all(file.is_file() for file in files) and files[0].samefile(files[1]):
        raise click.UsageError("--results is FILE itself, which would be overwritten: name another file")
    csv = form == "csv" or (form is None and source.endswith(".csv"))

    async def work(settings: Settings, db: Database) -> int:
        from orchestrator.intents import rows
        from orchestrator.store.database import DatabaseAway

        number = await merchant_id(db, merchant, enabled=True)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(click.open_file(source, "rb"))
                output = standard_output()
                if results != "-":
                    output = stack.enter_context(click.open_file(results, "w", "utf-8"))
            except OSError as error:
                raise click.UsageError(f"{error.filename} cannot be opened: {error.strerror}") from None
            try:
                return await _Import(settings, db, number, output, actor=actor).run(
                    rows.delimited(file) if csv else rows.ndjson(file),
                    ahead=stat.S_ISREG(os.fstat(file.fileno()).st_mode),
                )
            except rows.HeaderRejected as error:
                raise click.UsageError(str(error)) from None
            except DatabaseAway:
                say("Postgres does not answer: run the same import again later, which is safe", err=True)
                return 1

    return on_database(data_dir, work)


class _Import:
    """One run of an import."""

    def __init__(
        self, settings: Settings, db: Database, merchant: int, output: IO[str], *, actor: str
    ) -> None:
        from orchestrator.crypto import Encryptor
        from orchestrator.store.inbox import Intents

        self._settings, self._merchant, self._output, self._actor = settings, merchant, output, actor
        self._intents: Intents = Intents(
            db, Encryptor(settings.secret_keys), grace=settings.hint_grace, batch_limit=AT_ONCE
        )
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
        return 1 if self._counts[_REJECTED] else 0

    async def _read(self, rows: Iterator[Row]) -> list[tuple[Row, Intake | Sequence[Problem]]]:
        """Return the next rows, each with its intake or its problems."""
        from orchestrator import intents
        from orchestrator.store.inbox import Intake

        chunk: list[tuple[Row, Intake | Sequence[Problem]]] = []
        for row in rows:
            try:
                intent = None if row.problems else intents.parse(row.raw)
            except intents.IntentRejected as error:
                chunk.append((row, error.problems))
            else:
                intake = intent and Intake.of(
                    intent,
                    merchant_id=self._merchant,
                    actor=self._actor,
                    correlation_id=self._correlation_id,
                    default_expires_in=self._settings.checkout_expires_in,
                )
                chunk.append((row, intake or row.problems))
            if len(chunk) >= AT_ONCE:
                break
            if not len(chunk) % READ_AT_ONCE:
                await asyncio.sleep(0)  # the list that is being written goes on
        return chunk

    async def _store(self, chunk: Sequence[tuple[Row, Intake | Sequence[Problem]]]) -> None:
        from orchestrator.store.inbox import Intake

        results = iter(await self._accept([item for _, item in chunk if isinstance(item, Intake)]))
        self._write((row, next(results) if isinstance(item, Intake) else item) for row, item in chunk)
        self._output.flush()
        self._progress()

    async def _accept(self, intakes: Sequence[Intake]) -> list[Accepted | OrchestratorError]:
        """Store a list; where Postgres does not answer it is sent again, and what is stored is then found."""
        from orchestrator.store.database import DatabaseAway

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

    def _write(self, results: Iterable[tuple[Row, Accepted | OrchestratorError | Sequence[Problem]]]) -> None:
        """Write the result of each row."""
        for row, result in results:
            line = {"line": row.line, **result_of(row.raw, result)}
            self._counts[str(line["status"])] += 1
            say_json(_ENCODER.encode(line).decode(), self._output)

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


def result_of(
    raw: bytes | None, result: Accepted | OrchestratorError | Sequence[Problem]
) -> dict[str, object]:
    """Return what came of an intent: the checkout that it is, or the reasons for which it is refused."""
    from orchestrator.errors import OrchestratorError
    from orchestrator.intents import Problem, submissions
    from orchestrator.intents.rows import column_of
    from orchestrator.store.inbox import Accepted
    from orchestrator.store.inbox.errors import IntakeError

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
