"""Tokens for the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import ask_once, data_dir
from orchestrator.cli.lookup import span
from orchestrator.cli.output import flag, say

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT: Final = 3.0
"""Seconds for what is only a courtesy: the token itself needs no database."""
_KNOWN: Final = "SELECT 1 FROM merchants WHERE name = :merchant"


def _lifetime(value: str) -> float:
    try:
        return span(f"{value.strip()}s" if value.strip().isdecimal() else value)
    except click.BadParameter:
        raise click.BadParameter(
            f"{value!r} is not a duration such as 15m, 12h or 30d, of at most a year"
        ) from None


@click.group()
def token() -> None:
    """Tokens for the API."""


@token.command()
@data_dir
@click.option("--merchant", metavar="NAME", help="Whose checkouts the token is for.")
@flag("--operator", told="A token of the operator, for /v1/merchants, /autoscale and the console, instead.")
@click.option("--scope", required=True, help='What it allows, as in "checkouts:write checkouts:read".')
@click.option(
    "--lifetime",
    type=_lifetime,
    metavar="DURATION",
    default="12h",
    help="How long it is valid: 15m, 12h, 30d.",
)
@click.option("--subject", default="operator", help="Who uses it; stands in the audit trail.")
def issue(
    *, data_dir: Path, merchant: str | None, operator: bool, scope: str, lifetime: float, subject: str
) -> None:
    """Print a token, and nothing else."""
    if (merchant is None) is not operator:
        raise click.UsageError("name either --merchant NAME or --operator")
    from orchestrator import auth

    if merchant == auth.OPERATOR:
        raise click.UsageError(f"{merchant!r} is no merchant: for a token of the operator, name --operator")
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
            merchant=auth.OPERATOR if merchant is None else merchant,
            scopes=scope.replace(",", " ").split(),
            lifetime=lifetime,
            subject=subject,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    say(made)
    if merchant is None or settings.database_url is None:
        return
    known = ask_once(settings.database_url, _KNOWN, seconds=_TIMEOUT, merchant=merchant)
    if known is not None and not known:
        say(
            f"orchestrator: there is no merchant {merchant!r} yet, and until it is added (`orchestrator merchants add`) the API "
            "refuses this token",
            err=True,
        )
