"""Opening the console: a link that begins one session."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.confirmation import checked_name
from orchestrator.cli.output import say
from orchestrator.domain.console_roles import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database


@click.group()
def console() -> None:
    """Open the operations console."""


@console.command(short_help="Print a link that begins one session.")
@data_dir
@click.option(
    "--as",
    "name",
    default="operator",
    show_default=True,
    callback=lambda _, __, name: checked_name(name),
    help="Who uses it; stands in the audit trail.",
)
@click.option(
    "--role",
    type=click.Choice(list(ROLES)),
    default="operator",
    show_default=True,
    help="What the session may do.",
)
def link(*, data_dir: Path, name: str, role: str) -> int:
    """Print a link that begins one session of the console, and nothing else; it is valid once, for an
    hour.
    """

    async def made(settings: Settings, db: Database) -> int:
        say(await link_of(settings, db, name=name, role=role))
        return 0

    return on_database(data_dir, made)


async def link_of(settings: Settings, db: Database, *, name: str, role: str) -> str:
    """Return the address of a new link."""
    from orchestrator.crypto import Encryptor
    from orchestrator.store.console import sessions

    code = await sessions.begin(
        db,
        Encryptor(settings.secret_keys),
        actor=name,
        scopes=ROLES[role],
        seconds=sessions.LONGEST_LINK,
        link=True,
    )
    return f"{settings.public_url}/console/link/{code}"


def link_for(settings: Settings) -> str:
    """Return a link for the person who has just started an installation; also where a loop runs already."""
    from orchestrator.store.database import Database

    async def made() -> str:
        url = settings.need("database_url")
        async with Database(url, pool_size=1, name="orchestrator-console-link") as db:
            return await link_of(settings, db, name="operator", role="admin")

    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, made()).result()
