"""Commands that run something: everything at once, the demo, or one process of an installation."""

from __future__ import annotations

import errno
import importlib.util
import secrets
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from orchestrator import log
from orchestrator.cli.attached import DATA_DIR, ask_once, data_dir_for, logged, options
from orchestrator.cli.output import F, flag, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from orchestrator.devkit.local.terminal import Terminal
    from orchestrator.devkit.local.up import Up
    from orchestrator.settings import Settings

_TIMEOUT: Final = 5.0
"""Seconds that a start waits for Postgres, for facts that it can do without."""

_SHOP_TOKEN: Final = 30 * 86_400.0
"""Seconds that the token of the demo shop is valid."""
_SHOP_SCOPES: Final = ("checkouts:write", "checkouts:read", "webhooks:write")
_PACKAGES: Final = ("httpx_aiohttp", "psutil")
"""What the modules of `orchestrator.devkit` import. The wheels of the embedded servers are checked where a
server is started."""

_up_options = options(
    click.option(
        "--port", type=click.IntRange(0, 65535), default=8000, help="Port of the API; 0 takes a free one."
    ),
    data_dir_for("Where servers, keys and logs live."),
    flag("--ephemeral", told="Use a data directory that is removed at the end."),
    click.option("--workers", type=click.IntRange(1, 64), default=1, help="Worker processes."),
    click.option("--seed", type=int, default=1, help="Makes a run of the sandbox repeatable."),
)


def listening(port: int) -> Callable[[F], F]:
    """Return the options of a process that serves, by default on this port of this machine."""
    return options(
        click.option("--host", default="127.0.0.1"),
        click.option("--port", type=click.IntRange(1, 65535), default=port),
    )


def need_devkit() -> None:
    """Refuse the present command in one sentence unless the packages of the extra `devkit` are installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        command = click.get_current_context().info_name
        raise click.UsageError(
            f"`orchestrator {command}` is for development and needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'checkout-orchestrator[devkit]'"
        )


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

    Postgres and a broker (`valkey-server`, which speaks the protocol of Redis) are embedded where
    ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL are not set, and the sandbox stands in for the
    gateway where ORCHESTRATOR_GATEWAY_URL is not set. Ctrl-C ends it; the next start continues what is open.
    """
    need_devkit()
    from orchestrator.devkit.local.up import Options, run

    return run(Options(**given), open_terminal(), greet=_greet)


@click.command(short_help="Start everything and play orders through every outcome.")
@_up_options
@click.option("--orders", type=click.IntRange(1, 10_000), default=45, help="How many shoppers come.")
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    metavar="NAME",
    help="A group (checkout, money, all) or one script; may be repeated (default: checkout).",
)
@flag("--exit", "leave", told="End when the last order has ended, instead of staying up.")
def demo(*, orders: int, scenarios: tuple[str, ...], leave: bool, **given: Any) -> int:
    """Start everything, send shoppers through every outcome, and say whether each order ended as its script
    says.

    The exit status is 0 only if every order did, and the sandbox's ledger and our books agree to the minor
    unit.
    """
    need_devkit()
    from orchestrator.devkit import demo as shop
    from orchestrator.devkit.local.up import Options

    return shop.run(
        Options(**given, shop=not leave),
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

    option = up.data_dir_option(DATA_DIR)
    kept = "removed at the end" if up.options.ephemeral else "keys.json is worth a backup"
    gateway = ("Gateway", str(up.settings.gateway_url))
    if (sandbox := up.sandbox_url) is not None:
        gateway = ("Sandbox", f"{sandbox}   what became of the money: {up.ledger_url(sandbox)}")
    rows = [
        ("Console", f"{link_for(up.settings)}   (opens one session, within an hour)"),
        ("Front door", f"{up.url}/"),
        ("API", f"{up.url}/docs"),
        gateway,
        ("Data", f"{up.data_dir}   logs: log/; {kept}"),
        (
            "A token",
            f'{program()} token issue --merchant default --scope "checkouts:write checkouts:read"{option}',
        ),
    ]
    if up.shop_url is not None:
        shop = ("Demo shop", f"{up.url}/shop   buy something in a browser, and follow each message")
        rows.insert(0, shop)
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
@listening(8000)
def api(*, host: str, port: int) -> int:
    """Serve the HTTP API and the console."""
    from orchestrator.api import server
    from orchestrator.console import Console

    with _process("api", "database_url", "broker_url", "secret_keys", address=(host, port)) as settings:
        return server.run(settings, host, port, pages=Console)


@click.command(short_help="Process checkouts (a Celery worker).")
def worker() -> int:
    """Process checkouts: a Celery worker that ends warmly on SIGTERM and SIGINT."""
    from orchestrator.worker import run_worker

    with _process("worker", "database_url", "broker_url", "secret_keys") as settings:
        return run_worker(settings)


@click.command(short_help="Publish sweeps and seals in their intervals.")
def scheduler() -> int:
    """Publish the sweep of what is due, and the seal of the audit trail, in their intervals.

    Several are harmless.
    """
    from orchestrator.worker import run_scheduler

    with _process("scheduler", "database_url", "broker_url", traced=False) as settings:
        return run_scheduler(settings)


@click.command(short_help="Send events to merchants' webhook endpoints.")
def deliverer() -> int:
    """Send events to merchants' webhook endpoints. Several are harmless; SIGTERM ends what is under way."""
    from orchestrator.worker.deliverer import run_deliverer

    with _process("deliverer", "database_url", "secret_keys") as settings:
        return run_deliverer(settings)


@click.command(short_help="Serve a simulated gateway on this machine.")
@listening(8001)
@data_dir_for("Whose keys.json to use where the settings name no credentials.")
@click.option(
    "--state-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where it stores its data; without it the data is lost at its end.",
)
@click.option(
    "--callback-host",
    "callback_hosts",
    multiple=True,
    metavar="HOST",
    help="A host, beside loopback and that of PUBLIC_URL, that callbacks are sent to; may be repeated.",
)
@click.option("--seed", type=int, default=1, help="Makes a run repeatable.")
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
    settings.need("gateway_username")
    settings.need("gateway_password")
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


@click.command(short_help="Serve the demo shop.")
@listening(8002)
@click.option("--api", metavar="URL", help="Where the API is (default: PUBLIC_URL).")
@click.option("--merchant", default="default", help="Whose shop it is.")
@data_dir_for("The data directory of `orchestrator up`, where no setting says otherwise.")
def shop(*, host: str, port: int, api: str | None, merchant: str, data_dir: Path) -> None:
    """Serve the demo shop, beside a sandbox (GATEWAY_URL) and the API; `orchestrator up` starts it.

    Its webhooks come to this machine: WEBHOOK_ALLOWED_NETWORKS of API and deliverer must have its address,
    and BROWSER_ORIGINS of the API its origin.
    """
    need_devkit()
    from orchestrator import auth
    from orchestrator.devkit.local.runtime_file import configured
    from orchestrator.devkit.shop import app

    settings = logged(configured(data_dir))
    sandbox = settings.need("gateway_url")
    settings.need("jwt_secrets")
    check_listening(host, port)
    token = auth.issue_own(
        settings, merchant=merchant, scopes=_SHOP_SCOPES, lifetime=_SHOP_TOKEN, subject="demo-shop"
    )
    made = app.create_app(
        settings.demo_shop_url or f"http://{host}:{port}",
        (api or settings.public_url).rstrip("/"),
        token,
        sandbox=sandbox,
        control=settings.sandbox_token.get_secret_value(),
    )
    app.run(made, host, port)


@click.command(short_help="Bring the database to this version's schema.")
@click.option("--to", default="head", help="The revision to bring the database to.")
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


def _check_clock(settings: Settings) -> None:
    """Refuse a clock that tests have moved, unless every gateway is on this machine or in a private network.

    While Postgres is out of reach the clock is unknown, and the process starts; `doctor` reports it, too.
    """
    from orchestrator.cli.public_address import is_local
    from orchestrator.settings import SettingsError

    asked = "SELECT (SELECT seconds FROM clock_skew) AS seconds, array(SELECT gateway_url FROM merchants) AS gateways"
    url = settings.need("database_url")
    for found in ask_once(url, asked, seconds=_TIMEOUT, process="orchestrator-start") or ():
        gateways = (settings.gateway_url, *found.gateways)
        if found.seconds and not all(is_local(gateway) for gateway in gateways if gateway):
            raise SettingsError(
                f"the clock of the database is moved forward by {found.seconds} s, which is for tests with a gateway on this machine "
                "alone: set clock_skew.seconds to 0"
            )


@contextmanager
def _process(
    kind: str, *needed: str, address: tuple[str, int] | None = None, traced: bool = True
) -> Iterator[Settings]:
    """Give one process of an installation its settings once all is there that it cannot do without; keep its
    traces where the settings say so, and send the last ones at the end.
    """
    from orchestrator import traces
    from orchestrator.settings import load

    settings = logged(load())
    for name in needed:
        settings.need(name)
    if address is not None:
        check_listening(*address)
    _check_clock(settings)
    log.own_output()
    if traced:
        traces.start(kind, settings.traces_url, settings.traces_sample)
    try:
        yield settings
    finally:
        traces.stop()
