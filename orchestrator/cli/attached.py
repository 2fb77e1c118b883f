"""What the operator's commands share: settings, logs, a database that answers, and sentences when there is
none.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator import log
from orchestrator.cli.output import F, say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from orchestrator.crypto import Encryptor
    from orchestrator.settings import Settings
    from orchestrator.store.database import Database

DATA_DIR: Final = ".orchestrator"


def data_dir_for(what: str) -> Callable[[F], F]:
    """Return the option --data-dir, with what is taken from the directory."""
    place = click.Path(path_type=Path, file_okay=False)
    return click.option("--data-dir", type=place, default=DATA_DIR, help=what)


data_dir = data_dir_for(
    "The data directory of `orchestrator up`, where ORCHESTRATOR_DATABASE_URL is not set."
)


def options(*given: Callable[[Any], Any]) -> Callable[[F], F]:
    """Return several options and arguments as one decorator, in the order of the help."""

    def give(command: F) -> F:
        for option in reversed(given):
            command = option(command)
        return command

    return give


def nothing_runs(place: Path) -> bool:
    """Say whether commands find an installation neither in the settings nor running in a data directory."""
    from orchestrator.devkit.local.runtime_file import running
    from orchestrator.settings import load

    return load().database_url is None and running(place) is None


def data_dir_option(place: Path) -> str:
    """Return the option that leads another command to the same data directory; nothing for the usual one."""
    return "" if str(place) == DATA_DIR else f" --data-dir {shlex.quote(str(place))}"


def as_typed(sentence: str, place: Path) -> str:
    """Return a sentence with what its commands need to reach the same data directory."""
    return re.sub("`(orchestrator [^`]+)`", lambda found: f"`{found[1]}{data_dir_option(place)}`", sentence)


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


whisper: Final = partial(say, err=True)
"""Tells on stderr what takes a while; stdout is for the result."""


@dataclass(frozen=True)
class Installation:
    """What a command works on: settings, their keys, and a database of this version's schema."""

    settings: Settings
    db: Database

    @cached_property
    def encryptor(self) -> Encryptor:
        from orchestrator.crypto import Encryptor

        return Encryptor(self.settings.secret_keys)


def on_database(
    place: Path, work: Callable[[Installation], Awaitable[int | None]], *, owner: bool = False
) -> int:
    """Run `work` on the installation of a data directory or of the settings; return its exit status.

    `owner`: as the owner of its tables.
    """
    from orchestrator.devkit.local.runtime_file import attach
    from orchestrator.store import schema
    from orchestrator.store.database import Database

    async def connected(url: str, settings: Settings) -> int | None:
        prepared = settings.database_prepared_statements
        async with Database(url, pool_size=2, name="orchestrator-cli", prepared=prepared) as db:
            wrong = schema.difference(await schema.current(db))
            if wrong is not None:
                raise schema.NoDatabase(wrong)
            return await work(Installation(settings, db))

    with attach(place, say=whisper) as settings:
        logged(settings)
        url = settings.owner_url if owner else settings.need("database_url")
        with schema.reachable(url):
            return asyncio.run(connected(url, settings)) or 0


def database_command(work: Callable[..., Awaitable[int | None]]) -> Callable[..., int]:
    """Make a command of a coroutine function: it is called with the installation (--data-dir) and its own
    options, and returns the exit status, if not 0.
    """

    @wraps(work)
    def run(*, data_dir: Path, **given: Any) -> int:
        return on_database(data_dir, lambda here: work(here, **given))

    return data_dir(run)


async def query(db: Database, sql: str, **values: object) -> Sequence[Any]:
    """Return the rows of one reading statement."""
    from sqlalchemy import text

    return await db.read(text(sql), values)


def ask_once(
    url: str, sql: str, *, seconds: float, process: str = "orchestrator-cli", **values: object
) -> Sequence[Any] | None:
    """Return the rows of one reading statement for which nothing else is done with the database; None where
    it does not answer.
    """
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.store.database import Database

    async def ask() -> Sequence[Any]:
        async with asyncio.timeout(seconds), Database(url, pool_size=1, name=process) as db:
            return await query(db, sql, **values)

    try:
        return asyncio.run(ask())
    except (SQLAlchemyError, OSError):
        return None
