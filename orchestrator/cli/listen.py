"""`orchestrator listen`: events of a merchant on a developer's own machine, signed as webhooks are."""

from __future__ import annotations

import asyncio
import base64
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from orchestrator.cli.attached import data_dir
from orchestrator.cli.lookup import merchant_option, types_option
from orchestrator.cli.output import flag, json_flag, say, say_document
from orchestrator.cli.questions import secret_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from orchestrator.devkit.listener import Sent

_LIFETIME: Final = 3600.0
_SCOPES: Final = ("events:read",)


@click.command(short_help="Send each event of a merchant to an address of this machine, signed.")
@data_dir
@click.option(
    "--forward-to", "target", required=True, metavar="URL", help="Where each event is sent by POST."
)
@merchant_option("Whose events they are.")
@click.option("--api", metavar="URL", help="Where the API is (default: that of the installation).")
@click.option(
    "--token-from",
    metavar="SOURCE",
    help="The token of another installation's API, with the scope events:read: a file, env:NAME, or - for standard input.",
)
@click.option(
    "--secret-from",
    metavar="SOURCE",
    help="The secret that signs (whsec_…), as --token-from (without it: a new one, which is printed).",
)
@click.option(
    "--after",
    type=click.IntRange(0),
    metavar="POSITION",
    help="Begin after this position of the feed; 0: with the first event that is kept (without it: from now on).",
)
@types_option()
@flag("--full", told="Full documents, with sentences.")
@click.option("--limit", type=click.IntRange(1), metavar="NUMBER", help="End after so many events.")
@json_flag("A line of JSON for each attempt.")
def listen(  # noqa: PLR0913 - the options of the command
    *,
    data_dir: Path,
    target: str,
    merchant: str,
    api: str | None,
    token_from: str | None,
    secret_from: str | None,
    after: int | None,
    kinds: Sequence[str],
    full: bool,
    limit: int | None,
    as_json: bool,
) -> int:
    """Send each event of a merchant to URL as it comes, signed as Standard Webhooks, and print the status and
    the time of each, until it is interrupted.

    Events come one after the other. What is not accepted (2xx) is sent up to five times in all, each time
    after a longer pause. While nothing listens at URL, events wait.
    """
    _checked(target)
    url, token = _access(data_dir, merchant, api, token_from)
    from orchestrator.delivery import signature
    from orchestrator.devkit.listener import Listener

    secret = signature.new_secret() if secret_from is None else _secret(secret_from)
    listener = Listener(
        api=url,
        token=token,
        target=target,
        secret=secret,
        kinds=kinds,
        content="full" if full else "thin",
        say=lambda line: say(line, err=True),
        show=_say_json if as_json else _say_line,
    )

    async def work() -> None:
        listener.position = await listener.end_of_feed() if after is None else after
        say(f"Secret   {signature.written(secret)}", err=True)
        say(f"Sending  events of {merchant} after position {listener.position} to {target}", err=True)
        try:
            await listener.run(limit=limit)
        finally:
            say(f"Go on with --after {listener.position}.", err=True)

    asyncio.run(work())
    return 0


def _access(
    place: Path, merchant: str, api: str | None, token_from: str | None
) -> tuple[str, Callable[[], str]]:
    """Return where the API is, and what gives a token: the one that is given, or one under our own key."""
    from orchestrator import auth
    from orchestrator.devkit.local.runtime_file import configured

    if token_from is not None:
        if api is None:
            raise click.UsageError("--token-from goes with --api: it is the token of that API")
        given = secret_of("Token", "--token-from", token_from)
        return _checked(api, "--api").rstrip("/"), lambda: given
    settings = configured(place)
    settings.need("jwt_secrets")

    def issued() -> str:
        return auth.issue_own(
            settings, merchant=merchant, scopes=_SCOPES, lifetime=_LIFETIME, subject="listen"
        )

    return (settings.public_url if api is None else _checked(api, "--api")).rstrip("/"), issued


def _checked(url: str, option: str = "--forward-to") -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise click.UsageError(f"{option} {url!r} is no URL such as http://127.0.0.1:3000/webhooks")
    return url


def _secret(source: str) -> bytes:
    from orchestrator.delivery import signature

    given = secret_of("Secret", "--secret-from", source)
    try:
        secret = base64.b64decode(given.removeprefix(signature.PREFIX), validate=True)
    except ValueError:
        secret = b""
    if not given.startswith(signature.PREFIX) or len(secret) < signature.SIZE // 2:
        raise click.UsageError("--secret-from: a secret is whsec_ and at least 16 bytes in base64")
    return secret


def _say_line(sent: Sent) -> None:
    came = sent.why if sent.status is None else str(sent.status)
    then = "" if sent.then == "accepted" else f"  {sent.then}"
    again = "" if sent.attempt == 1 else f" (attempt {sent.attempt})"
    event = sent.event
    say(
        f"{datetime.now():%H:%M:%S}  {event.type:<24} {event.data.order_id:<16} "  # noqa: DTZ005 - the person's own time
        f"{came} in {sent.seconds * 1000:.0f} ms{again}{then}"
    )


def _say_json(sent: Sent) -> None:
    say_document(
        {
            "eventId": sent.event.id,
            "type": sent.event.type,
            "position": sent.event.position,
            "orderId": sent.event.data.order_id,
            "attempt": sent.attempt,
            "status": sent.status,
            "error": sent.why or None,
            "milliseconds": round(sent.seconds * 1000, 1),
            "result": sent.then,
        }
    )
