"""Opening the console: a link that begins one session."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import Installation, database_command
from orchestrator.cli.output import say
from orchestrator.cli.questions import checked_name
from orchestrator.domain.console_roles import ROLES

if TYPE_CHECKING:
    from orchestrator.settings import Settings


@click.group()
def console() -> None:
    """Open the operations console."""


@console.command(short_help="Print a link that begins one session.")
@database_command
@click.option(
    "--as",
    "name",
    default="operator",
    type=checked_name,
    metavar="TEXT",
    help="Who uses it; stands in the audit trail.",
)
@click.option(
    "--role",
    type=click.Choice(list(ROLES)),
    default="operator",
    help="What the session may do.",
)
async def link(here: Installation, *, name: str, role: str) -> None:
    """Print a link that begins one session of the console, and nothing else; it is valid once, for an
    hour.
    """
    say(await link_of(here, name=name, role=role))


async def link_of(here: Installation, *, name: str, role: str) -> str:
    """Return the address of a new link."""
    from orchestrator.store.console import sessions

    code = await sessions.begin(
        here.db,
        here.encryptor,
        actor=name,
        scopes=ROLES[role],
        seconds=sessions.LONGEST_LINK,
        link=True,
    )
    return f"{here.settings.public_url}/console/link/{code}"


def link_for(settings: Settings) -> str:
    """Return a link for the person who has just started an installation; also where a loop runs already."""
    from orchestrator.store.database import Database

    async def made() -> str:
        url = settings.need("database_url")
        async with Database(url, pool_size=1, name="orchestrator-console-link") as db:
            return await link_of(Installation(settings, db), name="operator", role="admin")

    with ThreadPoolExecutor(1) as apart:
        return apart.submit(asyncio.run, made()).result()
