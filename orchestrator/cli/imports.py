"""`checkouts import`: a file of orders is written straight to the database, in lists, with a result for each
row.

A result is written once its row is committed. The same file may be imported again at any time: an order that
is there with the same content is reported as existing, so an import that was interrupted is simply repeated.
"""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from pathlib import Path

import click

from orchestrator.cli.attached import Installation, data_dir, on_database
from orchestrator.cli.lookup import merchant_id, merchant_option
from orchestrator.cli.output import say, standard_output
from orchestrator.cli.questions import as_option


@click.command("import", short_help="Import a file of orders (NDJSON or CSV).")
@data_dir
@click.argument("source", metavar="FILE", type=click.Path(dir_okay=False, allow_dash=True))
@merchant_option("The merchant of the orders.")
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
    show_default=False,
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

    async def work(here: Installation) -> int:
        from orchestrator.cli.intakes import Import
        from orchestrator.intents import rows
        from orchestrator.store.database import DatabaseAway

        number = await merchant_id(here.db, merchant, enabled=True)
        with ExitStack() as stack:
            try:
                file = stack.enter_context(click.open_file(source, "rb"))
                output = standard_output()
                if results != "-":
                    output = stack.enter_context(click.open_file(results, "w", "utf-8"))
            except OSError as error:
                raise click.UsageError(f"{error.filename} cannot be opened: {error.strerror}") from None
            try:
                return await Import(here, number, output, actor=actor).run(
                    rows.delimited(file) if csv else rows.ndjson(file),
                    ahead=stat.S_ISREG(os.fstat(file.fileno()).st_mode),
                )
            except DatabaseAway:
                say("Postgres does not answer: run the same import again later, which is safe", err=True)
                return 1

    return on_database(data_dir, work)
