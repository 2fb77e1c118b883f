"""The archive task: the history of settled checkouts goes into files, whose proof stays in the database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import Installation, data_dir, on_database
from orchestrator.cli.lookup import span_to
from orchestrator.cli.output import flag, plain_json_option, say, say_document, say_either

if TYPE_CHECKING:
    from orchestrator.audit.archive import Result


@click.command(short_help="Move the history of settled checkouts into files.")
@data_dir
@click.option(
    "--older-than",
    type=span_to(100 * 366),
    required=True,
    help="Only checkouts that were received, and last changed, longer ago than this (90d).",
)
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go; `archives` in the data directory where it is left out.",
)
@click.option(
    "--size",
    type=click.IntRange(1, 10_000),
    default=1000,
    help="Checkouts in one file, and in one transaction.",
)
@flag("--dry-run", told="Only say how much would go.")
@plain_json_option
def archive(
    *, data_dir: Path, older_than: float, directory: Path | None, size: int, dry_run: bool, as_json: bool
) -> int:
    """Move the history of settled checkouts into files; exit 1 if the trail of some does not hold.

    Trail, callbacks, sessions and handled commands go, events are copied; checkouts, intents, payments and
    operations stay. Run it as often as you like, beside everything else; a run that was killed is gone on
    with by the next.
    """
    place = directory or data_dir / "archives"

    async def work(here: Installation) -> int:
        from orchestrator.audit import archive as task

        if dry_run:
            checkouts, entries = await task.candidates(
                here.db, await task.choose(here.db, older_than=older_than)
            )
            say_either(
                {"dryRun": True, "checkouts": checkouts, "entries": entries},
                f"The history of {checkouts} checkouts would go, with {entries} entries of the trail.",
                as_json=as_json,
            )
            return 0
        task.prepare(place)
        result = await task.run(
            here.db,
            here.encryptor,
            place,
            older_than=older_than,
            most=size,
            tell=lambda archived: say(
                f"{archived.file}: {archived.checkouts} checkouts, {archived.entries} entries", err=as_json
            ),
        )
        if as_json:
            say_document(
                {
                    "dryRun": False,
                    "checkouts": result.checkouts,
                    "entries": result.entries,
                    "archives": result.archives,
                    "directory": str(place),
                    "leftAsTheyAre": [str(problem) for problem in result.problems],
                    "unknownFiles": [str(path) for path in result.orphans],
                    "monthsMade": result.made,
                    "monthsDropped": result.dropped,
                }
            )
        else:
            _report(result, place)
        return int(bool(result.problems))

    # Months of the trail are made and dropped, and what is archived is deleted: that takes the owner's
    # rights.
    return on_database(data_dir, work, owner=True)


def _report(result: Result, place: Path) -> None:
    for problem in result.problems:
        say(f"left as it is: {problem}", err=True)
    for path in result.orphans:
        say(
            f"{path} is no archive of this database: a run was killed before it committed; what is in it is in the tables, or in "
            "another archive",
            err=True,
        )
    months = "".join(
        f"; months {what}: {len(names)}"
        for what, names in (("made ahead", result.made), ("dropped", result.dropped))
        if names
    )
    say(
        f"Archived the history of {result.checkouts} checkouts ({result.entries} entries) in {result.archives} files in {place}{months}.",
        err=True,
    )
