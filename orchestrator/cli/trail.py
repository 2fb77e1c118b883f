"""The audit trail as a whole: verify it, seal it, take a copy of it."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click

from orchestrator.cli.attached import Installation, data_dir, database_command, on_database
from orchestrator.cli.output import plain_json_option, printer, say, say_document, say_either, say_json

if TYPE_CHECKING:
    from orchestrator.store.database import Database


@click.group()
def audit() -> None:
    """Verify, seal and export the audit trail."""


@audit.command(short_help="Walk every chain and every seal, or one archive.")
@data_dir
@click.option(
    "--archive",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Verify this file alone, with the secret keys and without a database.",
)
@plain_json_option
def verify(*, data_dir: Path, file: Path | None, as_json: bool) -> int:
    """Verify every chain, every seal and the chain of archives, or one archive's file; exit 1 and name each
    fault.
    """
    if file is not None:
        return _verify_file(data_dir, file, as_json=as_json)
    return on_database(data_dir, lambda here: _verify(here, as_json=as_json))


def _verify_file(place: Path, file: Path, *, as_json: bool) -> int:
    from orchestrator import audit as trail
    from orchestrator.crypto import Encryptor
    from orchestrator.devkit.local.runtime_file import configured

    try:
        opened = trail.open_archive(file, Encryptor(configured(place).secret_keys))
    except OSError as error:
        raise click.UsageError(f"{file} cannot be read ({error.strerror or error})") from error
    told = None if opened.problems else opened.manifest
    if as_json:
        say_document({"holds": told is not None, "problems": opened.problems})
        return int(told is None)
    for problem in opened.problems:
        say(f"{file.name}: {problem}")
    if told is None:
        say("The archive does not hold.", err=True)
        return 1
    say(
        f"The archive holds: number {told.archive} of {told.at:%Y-%m-%d %H:%M} UTC, {told.checkouts} checkouts, {told.entries} entries."
    )
    return 0


async def _verify(here: Installation, *, as_json: bool) -> int:
    from rich.text import Text

    from orchestrator import audit as trail

    with printer(err=True).status(Text("Verifying …")) as status:
        found = await trail.verify(
            here.db,
            here.encryptor,
            progress=lambda found: status.update(
                Text(f"Verifying … {found.checkouts} checkouts, {found.entries} entries")
            ),
        )
    broken = len(found.problems)
    if as_json:
        counted = {name: getattr(found, name) for name in ("checkouts", "entries", "seals", "archives")}
        say_document({"holds": not broken, **counted, "problems": found.problems})
        return int(broken > 0)
    for problem in found.problems:
        say(problem)
    walked = f"{found.checkouts} checkouts, {found.entries} entries, {found.seals} seals"
    if found.archives:
        walked += f", {found.archives} archives"
    if broken:
        number = f"{broken} problem{'s' if broken > 1 else ''}"
        say(f"The audit trail does not hold: {number} in {walked}.", err=True)
    else:
        say(f"The audit trail holds: {walked}.")
    return int(broken > 0)


@audit.command(short_help="Seal the heads of all chains that grew.")
@database_command
@plain_json_option
async def seal(here: Installation, *, as_json: bool) -> None:
    """Seal the heads of all chains that grew since the last seal; the workers do so every ten minutes by
    themselves.
    """
    from orchestrator import audit as trail

    sealed = await trail.seal(here.db, here.encryptor)
    said = f"Sealed the heads of {sealed} checkouts." if sealed else "Nothing has grown since the last seal."
    say_either({"sealed": sealed}, said, as_json=as_json)


@audit.command(short_help="Write the whole trail as lines of JSON.")
@database_command
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write here (mode 0600) instead of to stdout.",
)
async def export(here: Installation, *, file: Path | None) -> None:
    """Write every entry, every seal and every archive's manifest as a line of JSON, for a copy kept
    elsewhere.
    """
    if file is None:
        await _write(here.db, sys.stdout)
        return
    try:
        out = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w")
        if stat.S_ISREG(os.fstat(out.fileno()).st_mode):
            # A file that was there before keeps its mode, and what is in it until now.
            os.fchmod(out.fileno(), 0o600)
            out.truncate()
    except OSError as error:
        raise click.UsageError(f"{file} cannot be written ({error.strerror})") from error
    with out:
        lines = await _write(here.db, out)
    say(f"{lines} lines written to {file}.", err=True)


async def _write(db: Database, out: IO[str]) -> int:
    from orchestrator import audit as trail

    lines = 0
    async for line in trail.export(db):
        say_json(line, out)
        lines += 1
    return lines
