"""Commands that run something: everything at once, the demo, or one process of an installation."""

from __future__ import annotations

import errno
import secrets
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import click

from orchestrator import log
from orchestrator.cli.attached import DATA_DIR, logged
from orchestrator.cli.extra import need_devkit
from orchestrator.cli.output import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.devkit.local.terminal import Terminal
    from orchestrator.devkit.local.up import Options, Up

_TIMEOUT: Final = 5.0
"""Seconds that a start waits for Postgres, for facts that it can do without."""

F = TypeVar("F", bound="Callable[..., Any]")

PORT = click.IntRange(0, 65535)


def _up_options(command: F) -> F:
    for option in reversed(
        (
            click.option(
                "--port",
                type=PORT,
                default=8000,
                show_default=True,
                help="Port of the API; 0 takes a free one.",
            ),
            click.option(
                "--data-dir",
                type=click.Path(path_type=Path, file_okay=False),
                default=DATA_DIR,
                show_default=True,
                help="Where servers, keys and logs live.",
            ),
            click.option(
                "--ephemeral", is_flag=True, help="Use a data directory that is removed at the end."
            ),
            click.option(
                "--workers",
                type=click.IntRange(1, 64),
                default=1,
                show_default=True,
                help="Worker processes.",
            ),
            click.option(
                "--seed",
                type=int,
                default=1,
                show_default=True,
                help="Makes a run of the sandbox repeatable.",
            ),
        )
    ):
        command = option(command)
    return command


def _options(given: dict[str, Any]) -> Options:
    from orchestrator.devkit.local.up import Options

    names = ("port", "data_dir", "ephemeral", "workers", "seed", "shop")
    return Options(**{name: given[name] for name in names if name in given})


def open_terminal(*, least: str = "warning", aside: bool = False) -> Terminal:
    """Return the terminal of a command that starts processes; `aside`: it writes to stderr."""
    from orchestrator.devkit.local.terminal import Terminal
    from orchestrator.settings import load

    settings = load()
    # The terminal belongs to what we say ourselves; the children's lines stand in their logs.
    log.configure(style=settings.log_format, level="warning")
    return Terminal(least=least, raw=settings.log_format == "json", aside=aside)


@click.command()
@_up_options
def up(**given: Any) -> int:
    """Start everything on this machine and keep it running.

    Postgres and Redis are embedded where ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL are not set,
    and the sandbox stands in for the gateway where ORCHESTRATOR_GATEWAY_URL is not set. Ctrl-C ends it; the
    next start continues what is open.
    """
    need_devkit()
    from orchestrator.devkit.local.up import run

    return run(_options(given), open_terminal(), greet=_greet)


@click.command(short_help="Start everything and play orders through every outcome.")
@_up_options
@click.option(
    "--orders", type=click.IntRange(1, 10_000), default=45, show_default=True, help="How many shoppers come."
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help="A group (checkout, money, all) or one script; may be repeated (default: checkout).",
)
@click.option(
    "--exit", "leave", is_flag=True, help="End when the last order has ended, instead of staying up."
)
def demo(*, orders: int, scenarios: tuple[str, ...], leave: bool, **given: Any) -> int:
    """Start everything, send shoppers through every outcome, and say whether each order ended as its script
    says.

    The exit status is 0 only if every order did, and the sandbox's ledger and our books agree to the minor
    unit.
    """
    need_devkit()
    from orchestrator.devkit import demo as shop

    return shop.run(
        _options({**given, "shop": not leave}),
        open_terminal(least="error"),
        orders=orders,
        scenarios=scenarios,
        stay=not leave,
        greet=_greet,
    )


def _greet(up: Up) -> None:
    from rich.text import Text

    from orchestrator.cli.console import link_for
    from orchestrator.cli.public_address import faults
    from orchestrator.devkit.local.terminal import program

    rows = []
    if up.shop_url is not None:
        rows.append(("Demo shop", f"{up.url}/shop   buy something in a browser, and follow each message"))
    rows += [
        ("Console", f"{link_for(up.settings)}   (opens one session, within an hour)"),
        ("Front door", f"{up.url}/"),
        ("API", f"{up.url}/docs"),
    ]
    if up.sandbox_url is not None:
        rows.append(
            ("Sandbox", f"{up.sandbox_url}   what became of the money: {up.ledger_url(up.sandbox_url)}")
        )
    else:
        rows.append(("Gateway", str(up.settings.gateway_url)))
    kept = "removed at the end" if up.options.ephemeral else "keys.json is worth a backup"
    rows.append(("Data", f"{up.data_dir}   logs: log/; {kept}"))
    option = up.data_dir_option(DATA_DIR)
    rows.append(
        (
            "A token",
            f'{program()} token issue --merchant default --scope "checkouts:write checkouts:read"{option}',
        )
    )
    terminal = up.terminal
    terminal.say()
    terminal.say(
        Text.assemble(
            ("The orchestrator is up.", "bold green"),
            " Ctrl-C ends it; open work continues with the next start.",
        )
    )
    terminal.facts(*rows)
    for fault in faults(up.settings.public_url, [up.settings.gateway_url]):
        terminal.trouble(fault)
    if not (up.settings.gateway_username and up.settings.gateway_password):
        terminal.trouble(
            "ORCHESTRATOR_GATEWAY_USERNAME and ORCHESTRATOR_GATEWAY_PASSWORD are not set: merchant default cannot pay there"
        )
    terminal.say()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
def api(*, host: str, port: int) -> int:
    """Serve the HTTP API and the console."""
    from orchestrator.api import server
    from orchestrator.console import Console
    from orchestrator.settings import load

    settings = _needing(logged(load()), "database_url", "broker_url", "secret_keys")
    check_listening(host, port)
    _check_clock(settings)
    log.own_output()
    with _traced(settings, "api"):
        return server.run(settings, host, port, pages=Console)


@click.command(short_help="Process checkouts (a Celery worker).")
def worker() -> int:
    """Process checkouts: a Celery worker that ends warmly on SIGTERM and SIGINT."""
    from orchestrator.settings import load
    from orchestrator.worker import run_worker

    settings = _needing(logged(load()), "database_url", "broker_url", "secret_keys")
    _check_clock(settings)
    log.own_output()
    with _traced(settings, "worker"):
        return run_worker(settings)


@click.command(short_help="Publish sweeps and seals in their intervals.")
def scheduler() -> int:
    """Publish the sweep of what is due, and the seal of the audit trail, in their intervals.

    Several are harmless.
    """
    from orchestrator.settings import load
    from orchestrator.worker import run_scheduler

    settings = _needing(logged(load()), "database_url", "broker_url")
    _check_clock(settings)
    log.own_output()
    return run_scheduler(settings)


@click.command(short_help="Send events to merchants' webhook endpoints.")
def deliverer() -> int:
    """Send events to merchants' webhook endpoints. Several are harmless; SIGTERM ends what is under way."""
    from orchestrator.settings import load
    from orchestrator.worker.deliverer import run_deliverer

    settings = _needing(logged(load()), "database_url", "secret_keys")
    _check_clock(settings)
    log.own_output()
    with _traced(settings, "deliverer"):
        return run_deliverer(settings)


@click.command(short_help="Serve a simulated gateway on this machine.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8001, show_default=True)
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=DATA_DIR, show_default=True,
    help="Whose keys.json to use where the settings name no credentials.",
)  # fmt: skip
@click.option(
    "--state-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where it stores its data; without it the data is lost at its end.",
)
@click.option(
    "--callback-host", "callback_hosts", multiple=True, metavar="HOST",
    help="A host, beside loopback and that of PUBLIC_URL, that callbacks are sent to; may be repeated.",
)  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True, help="Makes a run repeatable.")
def sandbox(
    *,
    host: str,
    port: int,
    data_dir: Path,
    state_file: Path | None,
    callback_hosts: tuple[str, ...],
    seed: int,
) -> None:
    """Serve a simulated gateway on this machine, with a script API for its faults (GET /sandbox/help).

    No money moves here: an installation that takes real orders must not have it as its gateway.
    """
    need_devkit()
    from orchestrator.devkit.local.keys import keys_of
    from orchestrator.devkit.sandbox import SandboxConfig, run
    from orchestrator.devkit.sandbox.config import is_loopback
    from orchestrator.settings import load

    settings = logged(load())
    if not settings.gateway_password and (keys := keys_of(data_dir)) is not None:
        settings = load(keys.missing_from(settings, sandbox=True))
    settings = _needing(settings, "gateway_username", "gateway_password")
    check_listening(host, port)
    callback_secrets = [secret.get_secret_value() for secret in settings.gateway_secrets]
    control_token = settings.sandbox_token.get_secret_value()
    if not control_token:
        control_token = secrets.token_urlsafe(24)
        say(f"The control API of the sandbox takes the token {control_token} (header X-Sandbox-Token).")
    if not is_loopback(host):
        # On standard error, where every log of a deployment has it.
        say(
            f"This is a sandbox: http://{host}:{port} moves no money, and is no gateway for real orders.",
            err=True,
        )
    config = SandboxConfig(
        username=settings.gateway_username,
        password=settings.gateway_password.get_secret_value(),
        # The first signs callbacks, the last is the terminal's, for checksums.
        callback_secrets=tuple(callback_secrets[:1]),
        terminal_secret=callback_secrets[-1] if callback_secrets else "",
        control_token=control_token,
        callback_hosts=frozenset({*callback_hosts, urlsplit(settings.public_url).hostname or ""}),
        seed=seed,
        state_file=state_file,
    )
    run(config, host, port)


@click.command(short_help="Bring the database to this version's schema.")
@click.option("--to", default="head", show_default=True, help="The revision to bring the database to.")
@click.option(
    "--grant-to", metavar="ROLE",
    help="The role of the processes, which is granted what they need; without it `orchestrator_app`, where it exists.",
)  # fmt: skip
def migrate(*, to: str, grant_to: str | None) -> None:
    """Bring the database to the schema that this version needs; two at once wait for each other.

    Runs as the owner of the tables: ORCHESTRATOR_MIGRATION_URL, or ORCHESTRATOR_DATABASE_URL where that is
    not set.
    """
    from orchestrator.settings import load
    from orchestrator.store import schema

    settings = logged(load())
    url = settings.owner_url
    with schema.reachable(url):
        schema.migrate(
            url,
            to=to,
            keys=settings.secret_keys,
            grant_to=grant_to,
            direct=settings.migration_url is not None,
        )


def check_listening(host: str, port: int) -> None:
    """Say in a sentence that a host name is wrong or a port is taken, before anything is started."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise click.UsageError(
            f"--host {host!r} is no address and no name that this machine can read up "
            f"({getattr(error, 'strerror', None) or error}): give an address such as 127.0.0.1 or 0.0.0.0"
        ) from None
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and len(found) > 1:
                    continue  # `localhost` on a machine without IPv6
                raise click.UsageError(
                    f"port {port} of {host} cannot be used ({error.strerror}): choose others with --host and --port"
                ) from None


def _check_clock(settings: Any) -> None:
    """Refuse a clock that tests have moved, unless every gateway is on this machine or in a private network.

    While Postgres is out of reach the clock is unknown, and the process starts; `doctor` reports it, too.
    """
    import asyncio

    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.cli.public_address import is_local
    from orchestrator.settings import SettingsError
    from orchestrator.store.database import Database

    asked = text(
        "SELECT (SELECT seconds FROM clock_skew) AS seconds, array(SELECT gateway_url FROM merchants) AS gateways"
    )

    async def read() -> Any:
        async with (
            asyncio.timeout(_TIMEOUT),
            Database(settings.need("database_url"), pool_size=1, name="orchestrator-start") as db,
        ):
            return (await db.read(asked))[0]

    try:
        found = asyncio.run(read())
    except (SQLAlchemyError, OSError, TimeoutError):
        return
    if found.seconds and not all(is_local(url) for url in (settings.gateway_url, *found.gateways) if url):
        raise SettingsError(
            f"the clock of the database is moved forward by {found.seconds} s, which is for tests with a gateway on this machine "
            "alone: set clock_skew.seconds to 0"
        )


@contextmanager
def _traced(settings: Any, process: str) -> Iterator[None]:
    """Keep traces where the settings say so, and send the last ones at the end."""
    from orchestrator import traces

    traces.start(process, settings.traces_url, settings.traces_sample)
    try:
        yield
    finally:
        traces.stop()


def _needing(settings: Any, *names: str) -> Any:
    for name in names:
        settings.need(name)
    return settings
