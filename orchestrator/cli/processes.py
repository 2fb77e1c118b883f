"""Commands that run something: everything at once, the demo, or one process of an installation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from orchestrator import log
from orchestrator.cli.attached import DATA_DIR, logged

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.supervise.terminal import Terminal
    from orchestrator.supervise.up import Options, Up

F = TypeVar("F", bound="Callable[..., Any]")

PORT = click.IntRange(0, 65535)


def _up_options(command: F) -> F:
    for option in reversed((
        click.option("--port", type=PORT, default=8000, show_default=True, help="Port of the API; 0 takes a free one."),
        click.option(
            "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=DATA_DIR, show_default=True,
            help="Where servers, keys and logs live.",
        ),
        click.option("--ephemeral", is_flag=True, help="Use a data directory that is removed at the end."),
        click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes."),
        click.option("--seed", type=int, default=1, show_default=True, help="Makes a run of the sandbox repeatable."),
    )):  # fmt: skip
        command = option(command)
    return command


def _options(given: dict[str, Any]) -> Options:
    from orchestrator.supervise.up import Options  # noqa: PLC0415 - each command imports what it needs

    return Options(**{name: given[name] for name in ("port", "data_dir", "ephemeral", "workers", "seed")})


def open_terminal(*, least: str = "warning", aside: bool = False) -> Terminal:
    """Return the terminal of a command that starts processes; `aside`: it speaks on stderr."""
    from orchestrator.settings import load  # noqa: PLC0415
    from orchestrator.supervise.terminal import Terminal  # noqa: PLC0415

    settings = load()
    # The terminal belongs to what we say ourselves; the children's lines stand in their logs.
    log.configure(style=settings.log_format, level="warning")
    return Terminal(least=least, raw=settings.log_format == "json", aside=aside)


@click.command()
@_up_options
def up(**given: Any) -> int:
    """Start everything on this machine and keep it running.

    Postgres and Redis are embedded where ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL are not set, and the sandbox
    stands in for the gateway where ORCHESTRATOR_GATEWAY_URL is not set. Ctrl-C ends it; the next start continues what is open.
    """
    from orchestrator.supervise.up import run  # noqa: PLC0415

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
    """Start everything, send shoppers through every outcome, and say whether each order ended as its script says.

    The exit status is 0 only if every order did, and the sandbox's ledger and our books agree to the minor unit.
    """
    from orchestrator import demo as shop  # noqa: PLC0415

    return shop.run(
        _options(given),
        open_terminal(least="error"),
        orders=orders,
        scenarios=scenarios,
        stay=not leave,
        greet=_greet,
    )


def _greet(up: Up) -> None:
    rows = [("API", f"{up.url}/docs")]
    if up.sandbox_url is not None:
        rows.append(
            ("Sandbox", f"{up.sandbox_url}   what became of the money: {up.sandbox_url}/sandbox/ledger")
        )
    else:
        rows.append(("Gateway", str(up.settings.gateway_url)))
    kept = "removed at the end" if up.options.ephemeral else "keys.json is worth a backup"
    rows.append(("Data", f"{up.data_dir}   logs: log/; {kept}"))
    option = up.data_dir_option(DATA_DIR)
    rows.append(
        (
            "A token",
            f'orchestrator token issue --merchant default --scope "checkouts:write checkouts:read"{option}',
        )
    )
    terminal = up.terminal
    terminal.say()
    terminal.say(
        "[bold green]The orchestrator is up.[/] Ctrl-C ends it; what is open goes on with the next start."
    )
    terminal.facts(*rows)
    if not (up.settings.gateway_username and up.settings.gateway_password):
        terminal.trouble(
            "ORCHESTRATOR_GATEWAY_USERNAME and ORCHESTRATOR_GATEWAY_PASSWORD are not set: merchant default cannot pay there"
        )
    terminal.say()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8000, show_default=True)
def api(*, host: str, port: int) -> None:
    """Serve the HTTP API."""
    from orchestrator.api import server  # noqa: PLC0415
    from orchestrator.settings import load  # noqa: PLC0415

    server.run(_needing(logged(load()), "database_url", "broker_url", "secret_keys"), host, port)


@click.command(short_help="Carry checkouts (a Celery worker).")
def worker() -> int:
    """Carry checkouts: a Celery worker that ends warmly on SIGTERM and SIGINT."""
    from orchestrator.settings import load  # noqa: PLC0415
    from orchestrator.worker import run_worker  # noqa: PLC0415

    return run_worker(_needing(logged(load()), "database_url", "broker_url", "secret_keys"))


@click.command()
def scheduler() -> int:
    """Publish the sweep of what is due, and the seal of the audit trail, in their intervals. Several are harmless."""
    from orchestrator.settings import load  # noqa: PLC0415
    from orchestrator.worker import run_scheduler  # noqa: PLC0415

    return run_scheduler(_needing(logged(load()), "database_url", "broker_url"))


@click.command(short_help="Serve a faithful gateway on this machine.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8001, show_default=True)
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=DATA_DIR, show_default=True,
    help="Whose keys.json to use where the settings name no credentials.",
)  # fmt: skip
@click.option(
    "--state-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where it remembers; without one it forgets at its end.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Makes a run repeatable.")
def sandbox(*, host: str, port: int, data_dir: Path, state_file: Path | None, seed: int) -> None:
    """Serve a faithful gateway on this machine, with a script API for its faults (GET /sandbox/help)."""
    from orchestrator.sandbox import SandboxConfig, run  # noqa: PLC0415
    from orchestrator.settings import load  # noqa: PLC0415
    from orchestrator.supervise.keys import keys_of  # noqa: PLC0415

    settings = logged(load())
    if not settings.gateway_password and (keys := keys_of(data_dir)) is not None:
        settings = load(keys.missing_from(settings, sandbox=True))
    settings = _needing(settings, "gateway_username", "gateway_password")
    secrets = [secret.get_secret_value() for secret in settings.gateway_secrets]
    config = SandboxConfig(
        username=settings.gateway_username,
        password=settings.gateway_password.get_secret_value(),
        # The first signs callbacks, the last is the terminal's, for checksums.
        callback_secrets=tuple(secrets[:1]),
        terminal_secret=secrets[-1] if secrets else "",
        seed=seed,
        state_file=state_file,
    )
    run(config, host, port)


@click.command(short_help="Bring the database to this version's schema.")
@click.option("--to", default="head", show_default=True, help="The revision to bring the database to.")
def migrate(*, to: str) -> None:
    """Bring the database to the schema that this version needs; two at once wait for each other."""
    from orchestrator import schema  # noqa: PLC0415
    from orchestrator.settings import load  # noqa: PLC0415

    url = logged(load()).need("database_url")
    with schema.reachable(url):
        schema.migrate(url, to=to)


def _needing(settings: Any, *names: str) -> Any:
    for name in names:
        settings.need(name)
    return settings
