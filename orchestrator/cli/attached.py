"""What the operator's commands share: settings, logs, a database that answers, and sentences when there is none."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from orchestrator import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from rich.console import Console

    from orchestrator.db import Database
    from orchestrator.settings import Settings

DATA_DIR: Final = ".orchestrator"
_FILE_WIDTH: Final = 250


data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DATA_DIR,
    show_default=True,
    help="The data directory of `orchestrator up`, where ORCHESTRATOR_DATABASE_URL is not set.",
)


def logged(settings: Settings) -> Settings:
    """Set up this process's logging as the settings say."""
    log.configure(style=settings.log_format, level=settings.log_level)
    return settings


def whisper(line: str) -> None:
    """Tell on stderr what takes a while; stdout is for the result."""
    click.echo(line, err=True)


def printer() -> Console:
    """Return where tables go: as wide as the terminal, or, into files and pipes, as wide as a line of a table may get."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


def on_database(place: Path, work: Callable[[Settings, Database], Awaitable[int | None]]) -> int:
    """Run `work` with the settings and database of an installation; return its exit status."""
    from orchestrator.schema import reachable  # noqa: PLC0415 - most commands end before they need it
    from orchestrator.supervise.place import attach  # noqa: PLC0415

    with attach(place, say=whisper) as settings:
        logged(settings)
        url = settings.need("database_url")
        with reachable(url):
            return asyncio.run(_connected(url, settings, work)) or 0


async def _connected(
    url: str, settings: Settings, work: Callable[[Settings, Database], Awaitable[int | None]]
) -> int | None:
    from orchestrator import schema  # noqa: PLC0415
    from orchestrator.db import Database  # noqa: PLC0415

    prepared = settings.database_prepared_statements
    async with Database(url, pool_size=2, name="orchestrator-cli", prepared=prepared) as db:
        wrong = schema.difference(await schema.current(db))
        if wrong is not None:
            raise schema.NoDatabase(wrong)
        return await work(settings, db)
