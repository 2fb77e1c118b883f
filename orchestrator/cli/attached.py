"""What the operator's commands share: settings, logs, a database that answers, and sentences when there is
none.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from orchestrator import log
from orchestrator.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

T = TypeVar("T")

DATA_DIR: Final = ".orchestrator"


data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=DATA_DIR,
    show_default=True,
    help="The data directory of `orchestrator up`, where ORCHESTRATOR_DATABASE_URL is not set.",
)


def logged(settings: Settings) -> Settings:
    """Set up this process's logging as the settings say."""
    from orchestrator.settings import PREFIX, SettingsError

    try:
        log.configure(style=settings.log_format, level=settings.log_level, file=settings.log_file)
    except OSError as error:
        raise SettingsError(
            f"{PREFIX}LOG_FILE: {settings.log_file} cannot be written ({error.strerror}): name a file in a directory that this "
            "account may write to"
        ) from None
    return settings


def whisper(line: str) -> None:
    """Tell on stderr what takes a while; stdout is for the result."""
    say(line, err=True)


def on_database(
    place: Path, work: Callable[[Settings, Database], Awaitable[int | None]], *, owner: bool = False
) -> int:
    """Run `work` with the settings and database of an installation; return its exit status.

    `owner`: as the owner of its tables.
    """
    from orchestrator.devkit.local.runtime_file import attach
    from orchestrator.store.schema import reachable

    with attach(place, say=whisper) as settings:
        logged(settings)
        url = settings.owner_url if owner else settings.need("database_url")
        with reachable(url):
            return asyncio.run(_connected(url, settings, work)) or 0


async def _connected(
    url: str, settings: Settings, work: Callable[[Settings, Database], Awaitable[int | None]]
) -> int | None:
    from orchestrator.store import schema
    from orchestrator.store.database import Database

    prepared = settings.database_prepared_statements
    async with Database(url, pool_size=2, name="orchestrator-cli", prepared=prepared) as db:
        wrong = schema.difference(await schema.current(db))
        if wrong is not None:
            raise schema.NoDatabase(wrong)
        return await work(settings, db)


async def in_thread(ask: Callable[[], T], seconds: float) -> T:
    """Return the result of a call in a thread of its own, which is abandoned if it takes longer; raises its
    error.
    """
    answer: concurrent.futures.Future[T] = concurrent.futures.Future()

    answer.set_running_or_notify_cancel()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.wait_for(asyncio.wrap_future(answer), seconds)
    except TimeoutError:
        if answer.done():
            raise
        raise TimeoutError(f"it does not answer within {seconds:.0f} s") from None
