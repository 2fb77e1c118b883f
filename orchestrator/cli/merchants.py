"""Merchants, their gateway accounts, callback secrets and policies.

Secrets come from a prompt, a file, an environment variable or standard input, never from the command line,
where others can read them; none is printed but a callback secret that was made here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import Installation, database_command, on_database
from orchestrator.cli.lookup import moment, span_to, table
from orchestrator.cli.merchant_changes import (
    NAME,
    change,
    changing,
    facts,
    find,
    lines_about,
    merchants_of,
    policies_of,
    unknown,
    url_of,
)
from orchestrator.cli.output import at_most, flag, plain_json_option, printer, say, say_document
from orchestrator.cli.questions import asked, confirmed, lines_of, secret_of, yes_option

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.store.database import Database

_MOST_LISTED: Final = 100_000
_password_from = click.option(
    "--password-from",
    metavar="SOURCE",
    help="Where the password is read from: a file, env:NAME, or - for standard input (without it: asked for).",
)


@click.group(short_help="Merchants with gateway accounts of their own.")
def merchants() -> None:
    """Merchants with gateway accounts of their own; `default` is the account in the settings."""


@merchants.command("list")
@database_command
@plain_json_option
async def list_merchants(here: Installation, *, as_json: bool) -> None:
    """List all merchants."""
    from rich.text import Text

    from orchestrator.store import merchant_records

    found = await merchant_records.page(here.db, here.encryptor, here.settings, limit=_MOST_LISTED)
    if as_json:
        say_document([facts(record) for record in found])
        return
    shown = table("id", "name", "state", "gateway", "user name", "secrets", "policies")
    colours = {"enabled": "green", "disabled": "red", "unusable": "red"}
    for record in sorted(found, key=lambda record: record.id):
        account = record.account
        shown.add_row(
            str(record.id),
            record.name,
            Text(record.status + (", paused" if record.paused_at else ""), colours[record.status]),
            (account.url if account else record.gateway_url) or "not set",
            (account.username if account else record.username) or "not set",
            str(record.callback_secrets + len(record.retired_until)),
            " ".join(f"{name}={value}" for name, value in record.policies.items()),
        )
    printer().print(shown)


@merchants.command()
@database_command
@NAME
@plain_json_option
async def show(here: Installation, *, name: str, as_json: bool) -> None:
    """Show a merchant, without its secrets."""
    record = await find(here, name)
    if as_json:
        say_document(facts(record))
        return
    for label, said in lines_about(record):
        say(f"{label:<20}{said}")


@merchants.command()
@changing
@click.option("--gateway-url", required=True, help="Base of both gateway APIs.")
@click.option("--merchant-api-url", help="Base of the Merchant API, where it lives elsewhere.")
@click.option("--username", required=True, help="The gateway's API user.")
@_password_from
@click.option(
    "--secret-from",
    metavar="SOURCE",
    help="Where the callback secrets are read from, one a line, newest first; as --password-from.",
)
def add(  # noqa: PLR0913 - the options of the command
    *,
    data_dir: Path,
    name: str,
    gateway_url: str,
    merchant_api_url: str | None,
    username: str,
    password_from: str | None,
    secret_from: str | None,
    as_json: bool,
    actor: str,
) -> int:
    """Add a merchant.

    The password, then the callback secret, are asked for, or read as two lines from standard input.
    """
    from orchestrator.settings.secret_source import STANDARD_INPUT
    from orchestrator.store.merchant_fields import NAME

    if not NAME.fullmatch(name):
        raise click.UsageError(
            f"the name {name!r} must be 1 to 63 small letters, digits, dots, hyphens or underscores"
        )
    # A wrong URL is reported before the password is entered.
    gateway = url_of("--gateway-url", gateway_url)
    merchant_api = None if merchant_api_url is None else url_of("--merchant-api-url", merchant_api_url)
    password = secret_of("Password of the API user", "--password-from", password_from)
    if secret_from is not None:
        secrets = lines_of("--secret-from", secret_from)
    elif password_from == STANDARD_INPUT:
        secrets = ()
    else:
        secret = asked("Callback secret (empty: none)", empty=True)
        secrets = (secret,) if secret else ()

    async def write(here: Installation) -> None:
        added = await merchants_of(here).add(
            name,
            gateway_url=gateway,
            merchant_api_url=merchant_api,
            username=username,
            password=password,
            callback_secrets=secrets,
            actor=actor,
        )
        if not added:
            raise click.UsageError(f"there is a merchant {name!r} already: choose another name")
        if as_json:
            say_document(facts(await find(here, name)))
        else:
            say(f"Merchant {name} was added.")

    return on_database(data_dir, write)


@merchants.command("set", short_help="Change the gateway account, or what is done without asking.")
@changing
@click.argument("policies", nargs=-1, metavar="[POLICY=VALUE]...")
@click.option("--gateway-url", help="Base of both gateway APIs; needs the password again.")
@click.option(
    "--merchant-api-url",
    help="Base of the Merchant API; empty: below the gateway URL. Needs the password again.",
)
@click.option("--username", help="The gateway's API user; needs the password again.")
@_password_from
def set_fields(
    *,
    name: str,
    actor: str,
    policies: tuple[str, ...],
    gateway_url: str | None,
    merchant_api_url: str | None,
    username: str | None,
    password_from: str | None,
    **given: Any,
) -> int:
    """Change the gateway account, or policies: late, surplus and unknown_order (ask, keep, return), capture
    (manual, automatic), surcharge (ask, keep), lookups_per_minute.

    The stored password is for the URLs and the user name that it was given with: it is asked for where one
    of these changes.
    """
    from msgspec import UNSET

    from orchestrator.processing import lookup_budget
    from orchestrator.store.merchant_writes import MerchantUpdate

    changes = policies_of(policies)
    moved = any(value is not None for value in (gateway_url, merchant_api_url, username))
    with_password = moved or password_from is not None
    if not changes and not with_password:
        raise click.UsageError("name what is to be changed: a policy as in late=keep, or an option")
    merchant_api = UNSET if merchant_api_url is None else merchant_api_url or None
    update = MerchantUpdate(
        gateway_url=UNSET if gateway_url is None else url_of("--gateway-url", gateway_url),
        merchant_api_url=url_of("--merchant-api-url", merchant_api)
        if isinstance(merchant_api, str)
        else merchant_api,
        username=UNSET if username is None else username,
        password=secret_of("Password of the API user", "--password-from", password_from)
        if with_password
        else UNSET,
        policies=changes or UNSET,
    )

    async def respace(db: Database) -> None:
        if (lookups := changes.get("lookups_per_minute")) is not None:
            await lookup_budget.respace(db, name, lookups_per_minute=int(lookups))

    what = "fields" if with_password else "policies"
    return change(
        name,
        lambda known: known.change(name, update, actor=actor),
        f"The {what} of merchant {name} were changed",
        then=respace,
        **given,
    )


@merchants.command(short_help="Change the password at the gateway.")
@changing
@_password_from
def password(*, name: str, actor: str, password_from: str | None, **given: Any) -> int:
    """Change the password of a merchant's API user at the gateway; it is typed, or read from a file, the
    environment or standard input.
    """
    typed = secret_of("Password of the API user", "--password-from", password_from)
    return change(
        name,
        lambda known: known.set_password(name, typed, actor=actor),
        f"The password of merchant {name} was changed",
        **given,
    )


@merchants.command(short_help="Rotate the callback secret, with an overlap.")
@changing
@click.option(
    "--secret-from",
    metavar="SOURCE",
    help="Where the new secret is read from: a file, env:NAME, or - for standard input (without it: asked for).",
)
@flag("--make", told="Make a new secret, and print it once.")
@click.option(
    "--overlap",
    type=span_to(30),
    default="24h",
    help="How long the secrets before it are valid; at most 30d.",
)
@flag("--at-once", told="End the secret before it at once: it is known to others.")
def rotate(
    *,
    data_dir: Path,
    name: str,
    actor: str,
    secret_from: str | None,
    make: bool,
    overlap: float,
    at_once: bool,
    as_json: bool,
) -> int:
    """Give a merchant a new callback secret.

    Callbacks under the secrets before it are accepted until the overlap ends, so that nothing is refused
    while the gateway changes over.
    """
    if make and secret_from is not None:
        raise click.UsageError("name either --make or --secret-from")
    given = None if make else secret_of("New callback secret", "--secret-from", secret_from)

    async def write(here: Installation) -> None:
        rotated = await merchants_of(here).rotate_secret(
            name, given, overlap=0.0 if at_once else overlap, actor=actor
        )
        if rotated is None:
            raise unknown(name)
        if as_json:
            say_document({**facts(await find(here, name)), "secret": rotated.made})
            return
        if rotated.made is not None:
            say(rotated.made)
        ends = rotated.retired_until
        rest = "those before it have ended" if ends is None else f"those before it end at {moment(ends)} UTC"
        say(f"Merchant {name} has a new callback secret; {rest}; within ten seconds everywhere.", err=make)

    return on_database(data_dir, write)


@merchants.command(short_help="Set all callback secrets.")
@changing
@flag("--secrets-stdin", told="Read them from standard input, one a line, newest first.")
@flag("--none", told="Have none: no callback is proven any more; it asks first.")
@yes_option
def secrets(*, name: str, actor: str, secrets_stdin: bool, none: bool, yes: bool, **given: Any) -> int:
    """Set all callback secrets, newest first, without an overlap; each of them works, and all others end at
    once. `rotate` is the way to change one.
    """
    ends = f"End all callback secrets of merchant {name}, so that the signature of no callback proves it"
    if none and not confirmed(ends, yes=yes):
        return 1
    typed: list[str] = []
    while not none:
        what = "Next secret, older (empty: no more)" if typed else "Newest callback secret"
        secret = asked(what, empty=bool(typed), prompt=not secrets_stdin)
        if not secret:
            break
        typed.append(secret)
    return change(
        name,
        lambda known: known.set_secrets(name, tuple(typed), actor=actor),
        f"Merchant {name} has {len(typed)} callback secret{'' if len(typed) == 1 else 's'}",
        **given,
    )


@merchants.command(short_help="Ask the gateway whether it accepts the credentials.")
@database_command
@NAME
@plain_json_option
async def check(here: Installation, *, name: str, as_json: bool) -> int:
    """Ask the gateway whether it accepts a merchant's credentials, by its call for a token; exit 1 if not.

    No payment is begun.
    """
    from dataclasses import asdict

    from orchestrator.gateway import credentials

    record = await find(here, name)
    if record.account is None:
        raise click.UsageError(f"merchant {name} is unusable: {record.problem}")
    found = await credentials.check(here.settings, record.account)
    place = record.account.url or "no gateway"
    if as_json:
        say_document(asdict(found))
    elif found.result == "accepted":
        say(f"The credentials of merchant {name} are accepted by {place} in {found.milliseconds} ms.")
    elif found.result == "refused":
        say(
            f"The credentials of merchant {name} are refused by {place} ({found.reason}): check the user name and the password."
        )
    else:
        say(
            f"The gateway of merchant {name} is unavailable at {place} ({found.reason}): check the URL, and the way to it."
        )
    return int(found.result != "accepted")


@merchants.command(short_help="List who changed what of a merchant.")
@database_command
@NAME
@click.option("--limit", type=click.IntRange(1, 10_000), default=50)
@plain_json_option
async def history(here: Installation, *, name: str, limit: int, as_json: bool) -> None:
    """List who changed what of a merchant, the youngest first; `audit verify` proves it."""
    from msgspec import to_builtins
    from msgspec.json import encode

    from orchestrator.audit import merchant_changes

    record = await find(here, name)
    rows = await merchant_changes.changes(here.db, record.id, before=2**31 - 1, limit=limit + 1)
    found = at_most(rows, limit, "ask for more with --limit")
    if as_json:
        say_document([to_builtins(entry) for entry in found])
        return
    shown = table("at", "#", "action", "actor", "details")
    for entry in found:
        at = moment(merchant_changes.time_of(entry))
        details = encode(entry.details).decode()
        shown.add_row(at, str(entry.sequence), str(entry.action), entry.actor, details)
    printer().print(shown)


@merchants.command(short_help="Print the address for default notifications.")
@database_command
@NAME
async def url(here: Installation, *, name: str) -> None:
    """Print the address to which a merchant's terminals may send what names no checkout.

    Anyone who has this address can call it.
    """
    from orchestrator import callback_urls

    if await merchants_of(here).named(name) is None:
        raise unknown(name)
    say(callback_urls.merchant_url(here.encryptor, here.settings.public_url, name))


@merchants.command(short_help="Refuse a merchant's requests from now on.")
@changing
def disable(*, name: str, actor: str, **given: Any) -> int:
    """Refuse a merchant's requests and orders.

    What is under way is processed to its end, callbacks are taken, and events wait.
    """
    return change(
        name, lambda m: m.disable(name, disabled=True, actor=actor), f"Merchant {name} is disabled", **given
    )


@merchants.command()
@changing
def enable(*, name: str, actor: str, **given: Any) -> int:
    """Let a disabled merchant in again."""
    return change(
        name, lambda m: m.disable(name, disabled=False, actor=actor), f"Merchant {name} is enabled", **given
    )


@merchants.command(short_help="Make no calls to a merchant's gateway.")
@changing
def pause(*, name: str, actor: str, **given: Any) -> int:
    """Pause a merchant's gateway calls: orders are taken, and wait where they are."""
    return change(
        name, lambda m: m.pause(name, paused=True, actor=actor), f"Merchant {name} is paused", **given
    )


@merchants.command()
@changing
def resume(*, name: str, actor: str, **given: Any) -> int:
    """Resume a merchant's gateway calls."""
    return change(
        name, lambda m: m.pause(name, paused=False, actor=actor), f"Merchant {name} is resumed", **given
    )
