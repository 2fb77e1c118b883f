"""Tokens and merchants.

Passwords come from a prompt or from standard input, never from the command line, where others can read them.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.output import printer, say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database
    from orchestrator.store.merchants import Merchants

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
@click.option("--merchant", required=True, metavar="NAME", help="Whose checkouts the token is for.")
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
def issue(*, data_dir: Path, merchant: str, scope: str, lifetime: float, subject: str) -> None:
    """Print a token, and nothing else."""
    from orchestrator import auth  # noqa: PLC0415 - each command imports what it needs
    from orchestrator.devkit.local.runtime_file import configured  # noqa: PLC0415
    from orchestrator.settings import PREFIX, SettingsError  # noqa: PLC0415

    settings = configured(data_dir)
    if not settings.jwt_secrets:
        raise SettingsError(
            f"{PREFIX}JWT_SECRETS is not set, and {data_dir} has no keys: set it, name another --data-dir, or start "
            "`orchestrator up` first"
        )
    try:
        made = auth.issue(
            settings,
            merchant=merchant,
            scopes=scope.replace(",", " ").split(),
            lifetime=lifetime,
            subject=subject,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    say(made)
    if settings.database_url is not None and asyncio.run(_is_unknown(settings.database_url, merchant)):
        say(
            f"orchestrator: there is no merchant {merchant!r} yet, and until it is added (`orchestrator merchants add`) the API "
            "refuses this token",
            err=True,
        )


async def _is_unknown(url: str, merchant: str) -> bool:
    """Say whether a database answers and has no such merchant; the token itself needs none."""
    from sqlalchemy import text  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from orchestrator.store.database import Database  # noqa: PLC0415

    try:
        async with asyncio.timeout(_TIMEOUT), Database(url, pool_size=1, name="orchestrator-cli") as db:
            return not await db.read(text("SELECT 1 FROM merchants WHERE name = :name"), {"name": merchant})
    except (SQLAlchemyError, OSError, TimeoutError):
        return False


@click.group(short_help="Merchants with gateway accounts of their own.")
def merchants() -> None:
    """Merchants with gateway accounts of their own; `default` is the account in the settings."""


@merchants.command("list")
@data_dir
def list_merchants(*, data_dir: Path) -> int:
    """List all merchants."""

    async def show(settings: Settings, db: Database) -> int:
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        from orchestrator.store.merchant_fields import POLICIES  # noqa: PLC0415

        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for column in ("id", "name", "state", "gateway", "user name", "secrets", "policies"):
            table.add_column(column, overflow="fold")
        for merchant in await _merchants(settings, db).everyone():
            state = Text("disabled", "red") if merchant.disabled else Text("enabled", "green")
            table.add_row(
                str(merchant.id),
                merchant.name,
                state,
                merchant.account.url or "not set",
                merchant.account.username or "not set",
                str(len(merchant.callback_secrets)),
                " ".join(f"{name}={getattr(merchant.policies, name)}" for name in POLICIES),
            )
        printer().print(table)
        return 0

    return on_database(data_dir, show)


@merchants.command()
@data_dir
@click.argument("name")
@click.option("--gateway-url", required=True, help="Base of both gateway APIs.")
@click.option("--merchant-api-url", help="Base of the Merchant API, where it lives elsewhere.")
@click.option("--username", required=True, help="The gateway's API user.")
def add(*, data_dir: Path, name: str, gateway_url: str, merchant_api_url: str | None, username: str) -> int:
    """Add a merchant.

    The password, then the callback secret, are asked for, or read as two lines from standard input.
    """
    from orchestrator.store.merchant_fields import NAME  # noqa: PLC0415

    if not NAME.fullmatch(name):
        raise click.UsageError(
            f"the name {name!r} must be 1 to 63 small letters, digits, dots, hyphens or underscores"
        )
    # A wrong URL is reported before the password is entered.
    gateway = _url("--gateway-url", gateway_url)
    merchant_api = None if merchant_api_url is None else _url("--merchant-api-url", merchant_api_url)
    password, secret = _asked("Password of the API user"), _asked("Callback secret (empty: none)", empty=True)

    async def write(settings: Settings, db: Database) -> int:
        added = await _merchants(settings, db).add(
            name,
            gateway_url=gateway,
            merchant_api_url=merchant_api,
            username=username,
            password=password,
            callback_secrets=(secret,) if secret else (),
        )
        if not added:
            raise click.UsageError(f"there is a merchant {name!r} already: choose another name")
        say(f"Merchant {name} was added.")
        return 0

    return on_database(data_dir, write)


@merchants.command("set", short_help="Change what is done without asking.")
@data_dir
@click.argument("name")
@click.argument("policies", nargs=-1, required=True, metavar="POLICY=VALUE...")
def set_policies(*, data_dir: Path, name: str, policies: tuple[str, ...]) -> int:
    """Change policies: late, surplus and unknown_order (ask, keep, return), capture (manual, automatic),
    lookups_per_minute.
    """
    from orchestrator.processing import lookup_budget  # noqa: PLC0415
    from orchestrator.store.merchant_fields import policy  # noqa: PLC0415

    changes = {}
    for given in policies:
        key, equals, value = given.partition("=")
        if not equals:
            raise click.UsageError(f"{given!r} must be a policy and its value, as in late=keep")
        changes[key.strip().replace("-", "_")] = value.strip()
    for key, value in changes.items():
        policy(key, value)  # what is wrong is said before anything is opened

    async def respace(db: Database) -> None:
        if (lookups := changes.get("lookups_per_minute")) is not None:
            await lookup_budget.respace(db, name, lookups_per_minute=int(lookups))

    return _change(
        data_dir,
        name,
        lambda known: known.set_policies(name, changes),
        "The policies of merchant {} were changed",
        then=respace,
    )


@merchants.command(short_help="Change the password at the gateway.")
@data_dir
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read it as one line from standard input.")
def password(*, data_dir: Path, name: str, password_stdin: bool) -> int:
    """Change the password of a merchant's API user at the gateway; it is typed, or read from
    standard input.
    """
    given = _asked("Password of the API user", prompt=not password_stdin)
    return _change(
        data_dir,
        name,
        lambda known: known.set_password(name, given),
        "The password of merchant {} was changed",
    )


@merchants.command(short_help="Change the callback secrets.")
@data_dir
@click.argument("name")
@click.option(
    "--secrets-stdin", is_flag=True, help="Read them from standard input, one a line, newest first."
)
@click.option("--none", is_flag=True, help="Have none: callbacks are not checked.")
def secrets(*, data_dir: Path, name: str, secrets_stdin: bool, none: bool) -> int:
    """Set all callback secrets, newest first; each of them works, so that a new one can be there before the
    old one goes.
    """
    given: list[str] = []
    while not none:
        what = "Next secret, older (empty: no more)" if given else "Newest callback secret"
        secret = _asked(what, empty=bool(given), prompt=not secrets_stdin)
        if not secret:
            break
        given.append(secret)
    return _change(
        data_dir,
        name,
        lambda known: known.set_secrets(name, tuple(given)),
        f"Merchant {{}} has {len(given)} callback secret{'' if len(given) == 1 else 's'}",
    )


@merchants.command(short_help="Print the address for default notifications.")
@data_dir
@click.argument("name")
def url(*, data_dir: Path, name: str) -> int:
    """Print the address to which a merchant's terminals may send what names no checkout.

    Anyone who has this address can call it.
    """

    async def show(settings: Settings, db: Database) -> int:
        from orchestrator import callback_urls  # noqa: PLC0415
        from orchestrator.crypto import Encryptor  # noqa: PLC0415
        from orchestrator.store.merchant_fields import UnknownMerchant  # noqa: PLC0415

        if await _merchants(settings, db).named(name) is None:
            raise UnknownMerchant(name)
        say(callback_urls.merchant_url(Encryptor(settings.secret_keys), settings.public_url, name))
        return 0

    return on_database(data_dir, show)


@merchants.command(short_help="Refuse a merchant's requests from now on.")
@data_dir
@click.argument("name")
def disable(*, data_dir: Path, name: str) -> int:
    """Refuse a merchant's requests; what is under way is processed to its end."""
    return _switch(data_dir, name, disabled=True)


@merchants.command()
@data_dir
@click.argument("name")
def enable(*, data_dir: Path, name: str) -> int:
    """Let a disabled merchant in again."""
    return _switch(data_dir, name, disabled=False)


def _switch(place: Path, name: str, *, disabled: bool) -> int:
    said = f"Merchant {{}} is {'disabled' if disabled else 'enabled'}"
    return _change(place, name, lambda known: known.disable(name, disabled=disabled), said)


def _change(
    place: Path,
    name: str,
    change: Callable[[Merchants], Awaitable[bool]],
    said: str,
    *,
    then: Callable[[Database], Awaitable[None]] | None = None,
) -> int:
    """Change one merchant, run what follows from it, and print the result."""

    async def write(settings: Settings, db: Database) -> int:
        from orchestrator.store.merchant_fields import UnknownMerchant  # noqa: PLC0415

        if not await change(_merchants(settings, db)):
            raise UnknownMerchant(name)
        if then is not None:
            await then(db)
        say(f"{said.format(name)}; within half a minute everywhere.")
        return 0

    return on_database(place, write)


def _url(option: str, value: str) -> str:
    from orchestrator.settings.values import http_url  # noqa: PLC0415

    try:
        return http_url(value)
    except ValueError as error:
        raise click.UsageError(f"{option} {error}") from None


def _merchants(settings: Settings, db: Database) -> Merchants:
    from orchestrator.crypto import Encryptor  # noqa: PLC0415
    from orchestrator.store.merchants import Merchants  # noqa: PLC0415

    return Merchants(db, Encryptor(settings.secret_keys), settings)


def _asked(what: str, *, empty: bool = False, prompt: bool = True) -> str:
    if prompt and sys.stdin.isatty():
        return str(
            click.prompt(what, hide_input=True, err=True, default="" if empty else None, show_default=False)
        )
    given = sys.stdin.readline().rstrip("\r\n")
    if not given and not empty:
        raise click.UsageError(f"{what.lower()}: nothing came on standard input")
    return given
