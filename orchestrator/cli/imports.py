"""`checkouts import`: a file of orders straight into the intake, in lists, with a result for each row.

A result is written once its row is committed. The same file again is safe at any time: an order that is there
with the same content is reported as such, so an import that was cut is simply run again.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from uuid import uuid4

import click
import msgspec

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.lookup import ACTOR, merchant_id
from orchestrator.cli.output import say, say_json, standard_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from orchestrator.intents.rows import Row
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.inbox import Intents

AT_ONCE: Final = 1000
"""Rows that are written together."""
TRIES: Final = 5
"""For a list of which it is not known whether it was stored."""
PAUSE: Final = 1.0
_EVERY: Final = {True: 0.5, False: 5.0}
"""Seconds between two lines of progress, on a terminal and elsewhere."""
_CREATED, _EXISTING, _REJECTED = "created", "existing", "rejected"


@click.command("import", short_help="Take a file of orders (NDJSON or CSV).")
@data_dir
@click.argument("source", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@click.option(
    "--merchant", metavar="NAME", default="default", show_default=True, help="Whose orders they are."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["ndjson", "csv"]),
    help="Of the file; without it, CSV where its name ends in .csv, else NDJSON.",
)
@click.option(
    "--results",
    type=click.Path(dir_okay=False, allow_dash=True),
    default="-",
    help="Where a result for each row goes, as NDJSON (default: standard output).",
)
def import_orders(*, data_dir: Path, source: str, merchant: str, form: str | None, results: str) -> int:
    """Take the orders of FILE (- for standard input): an intent in each line, or CSV, an order in each row.

    Rows that are there already are reported as such, so a run that was cut is simply repeated. A wrong row
    is named with its line and does not stop the others; then the exit status is 1.
    """
    files = Path(source), Path(results)
    if all(file.is_file() for file in files) and files[0].samefile(files[1]):
        raise click.UsageError("--results is FILE itself, which would be overwritten: name another file")
    csv = form == "csv" or (form is None and source.endswith(".csv"))

    async def work(settings: Settings, db: Database) -> int:
        from orchestrator.intents import rows  # noqa: PLC0415 - each command imports what it needs
        from orchestrator.store.database import DatabaseAway  # noqa: PLC0415

        number = await merchant_id(db, merchant)
        with ExitStack() as stack:
            file = stack.enter_context(click.open_file(source, "rb"))
            told = standard_output()
            if results != "-":
                told = stack.enter_context(click.open_file(results, "w", "utf-8"))
            listed = rows.delimited(file) if csv else rows.ndjson(file)
            try:
                return await _Import(settings, db, number, told).run(listed)
            except rows.HeaderRejected as error:
                raise click.UsageError(str(error)) from None
            except DatabaseAway:
                say("Postgres is out of reach: run the same import again later, which is safe", err=True)
                return 1

    return on_database(data_dir, work)


class _Import:
    """One run."""

    def __init__(self, settings: Settings, db: Database, merchant: int, told: IO[str]) -> None:
        from orchestrator.crypto import Encryptor  # noqa: PLC0415
        from orchestrator.store.inbox import Intents  # noqa: PLC0415

        self._settings, self._merchant, self._told = settings, merchant, told
        self._intents: Intents = Intents(
            db, Encryptor(settings.secret_keys), grace=settings.hint_grace, batch_limit=AT_ONCE
        )
        self._run = f"import-{uuid4().hex}"
        self._counts: Counter[str] = Counter()
        self._began = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    async def run(self, listed: Iterator[Row]) -> int:
        """Take every row; return the exit status."""
        try:
            while chunk := self._read(listed):
                await self._store(chunk)
        finally:
            self._told.flush()
            self._progress(last=True)
        await self._intents.close()
        return 1 if self._counts[_REJECTED] else 0

    def _read(self, listed: Iterator[Row]) -> list[tuple[Row, Any]]:
        """Return the next rows, each with its intake, or with what is wrong with it."""
        from orchestrator import intents  # noqa: PLC0415
        from orchestrator.store.inbox import Intake  # noqa: PLC0415

        chunk: list[tuple[Row, Any]] = []
        for row in listed:
            try:
                intent = None if row.problems else intents.parse(row.raw)
            except intents.IntentRejected as error:
                chunk.append((row, error.problems))
            else:
                taken = intent and Intake.of(
                    intent,
                    merchant_id=self._merchant,
                    actor=ACTOR,
                    correlation_id=self._run,
                    usual_life=self._settings.checkout_expires_in,
                )
                chunk.append((row, taken or row.problems))
            if len(chunk) >= AT_ONCE:
                break
        return chunk

    async def _store(self, chunk: Sequence[tuple[Row, Any]]) -> None:
        from orchestrator.store.inbox import Intake  # noqa: PLC0415

        asked = [one for _, one in chunk if isinstance(one, Intake)]
        results = iter(await self._accepted(asked))
        for row, one in chunk:
            self._tell(row, one, next(results) if isinstance(one, Intake) else None)
        self._told.flush()
        self._progress()

    async def _accepted(self, asked: Sequence[Any]) -> list[Any]:
        """Store a list; what is not known to be stored is sent again, and is then met."""
        from orchestrator.store.database import DatabaseAway  # noqa: PLC0415

        away: DatabaseAway | None = None
        for attempt in range(1, TRIES + 1):
            results = await asyncio.gather(
                *(self._intents.accept(one) for one in asked), return_exceptions=True
            )
            away = next((one for one in results if isinstance(one, DatabaseAway)), None)
            if away is None:
                return results
            say(f"Postgres does not answer; try {attempt} of {TRIES}", err=True)
            await asyncio.sleep(PAUSE)
        assert away is not None  # noqa: S101 - the last try has met it
        raise away

    def _tell(self, row: Row, one: Any, result: Any) -> None:
        from orchestrator.errors import OrchestratorError  # noqa: PLC0415
        from orchestrator.intents import Problem, submissions  # noqa: PLC0415
        from orchestrator.intents.rows import column_of  # noqa: PLC0415
        from orchestrator.store.inbox import Accepted  # noqa: PLC0415
        from orchestrator.store.inbox.errors import IntakeError  # noqa: PLC0415

        told: dict[str, object] = {"line": row.line}
        if isinstance(result, Accepted):
            told |= {
                "status": _CREATED if result.fresh else _EXISTING,
                "orderId": result.order_ref,
                "id": result.id,
                "state": result.state,
            }
        elif result is None or isinstance(result, OrchestratorError):
            field = "order.orderId" if isinstance(result, IntakeError) else "body"
            problems = one if result is None else (Problem(field, str(result)),)
            errors = [
                {"field": each.field, "message": each.message}
                | ({"column": column} if (column := column_of(each.field)) else {})
                for each in problems
            ]
            number = submissions.order_number(row.raw) if row.raw else None
            told |= {"status": _REJECTED, "orderId": number, "errors": errors}
        else:
            raise result
        self._counts[str(told["status"])] += 1
        say_json(msgspec.json.encode(told).decode(), self._told)

    def _progress(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self._shown < _EVERY[self._terminal]:
            return
        self._shown = now
        counts, number = self._counts, self._counts.total()
        rate = number / max(now - self._began, 0.001)
        say(
            f"{number} rows: {counts[_CREATED]} created, {counts[_EXISTING]} there already, "
            f"{counts[_REJECTED]} refused; {rate:.0f}/s",
            err=True,
        )
