"""Tokens for the API."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import data_dir
from orchestrator.cli.output import say

if TYPE_CHECKING:
    from pathlib import Path

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_LIFETIME: Final = 366 * 86400
_TIMEOUT: Final = 3.0
"""Seconds for what is only a courtesy."""


class _Lifetime(click.ParamType[float]):
    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d{1,9})([smhd]?)", str(value).strip())
        seconds = int(found[1]) * _UNITS[found[2]] if found else 0
        if not 1 <= seconds <= _LONGEST_LIFETIME:
            self.fail(f"{value!r} is not a duration such as 15m, 12h or 30d, of at most a year", param, ctx)
        return float(seconds)


@click.group()
def token() -> None:
    """Tokens for the API."""


@token.command()
@data_dir
@click.option("--merchant", metavar="NAME", help="Whose checkouts the token is for.")
@click.option(
    "--operator",
    is_flag=True,
    help="A token of the operator, for /v1/merchants, /autoscale and the console, instead.",
)
@click.option("--scope", required=True, help='What it allows, as in "checkouts:write checkouts:read".')
@click.option(
    "--lifetime",
    type=_Lifetime(),
    default="12h",
    show_default=True,
    help="How long it is valid: 15m, 12h, 30d.",
)
@click.option(
    "--subject", default="operator", show_default=True, help="Who uses it; stands in the audit trail."
)
def issue(
    *, data_dir: Path, merchant: str | None, operator: bool, scope: str, lifetime: float, subject: str
) -> None:
    """Print a token, and nothing else."""
    if (merchant is None) is not operator:
        raise click.UsageError("name either --merchant NAME or --operator")
    from orchestrator import auth
    from orchestrator.devkit.local.runtime_file import configured
    from orchestrator.settings import PREFIX, SettingsError

    settings = configured(data_dir)
    if not settings.jwt_secrets:
        raise SettingsError(
            f"{PREFIX}JWT_SECRETS is not set, and {data_dir} has no keys: set it, name another --data-dir, or start "
            "`orchestrator up` first"
        )
    try:
        made = auth.issue(
            settings,
            merchant=merchant or auth.OPERATOR,
            scopes=scope.replace(",", " ").split(),
            lifetime=lifetime,
            subject=subject,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    say(made)
    if merchant is None:
        return
    if settings.database_url is not None and asyncio.run(_is_unknown(settings.database_url, merchant)):
        say(
            f"orchestrator: there is no merchant {merchant!r} yet, and until it is added (`orchestrator merchants add`) the API "
            "refuses this token",
            err=True,
        )


async def _is_unknown(url: str, merchant: str) -> bool:
    """Say whether a database answers and has no such merchant; the token itself needs none."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.store.database import Database

    try:
        async with asyncio.timeout(_TIMEOUT), Database(url, pool_size=1, name="orchestrator-cli") as db:
            return not await db.read(text("SELECT 1 FROM merchants WHERE name = :name"), {"name": merchant})
    except (SQLAlchemyError, OSError, TimeoutError):
        return False
