"""Commands of the bench: the measurement, and the processes that it starts beside the product."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from orchestrator.cli.output import flag, json_flag, say_json
from orchestrator.cli.processes import need_devkit, open_terminal


def _latency(value: str) -> str:
    from orchestrator.devkit.bench import latency

    try:
        latency.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


SHARE = click.FloatRange(0.0, 1.0)


@click.command("bench-gateway", hidden=True)
@click.option("--host", default="127.0.0.1")
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--latency", type=_latency, metavar="TEXT", default="0", help="How late it answers.")
@click.option("--faults", type=SHARE, default=0.0, help="Share of calls that break.")
@click.option("--seed", type=int, default=1)
@click.option("--shoppers/--no-shoppers", default=True, help="Whether shoppers pay.")
@click.option("--think", type=click.FloatRange(0.0, 3600.0), default=1.0, help="Seconds.")
@click.option("--jitter", type=SHARE, default=0.5, help="More or less, as a share of that.")
def gateway(
    *,
    host: str,
    port: int,
    latency: str,
    faults: float,
    seed: int,
    shoppers: bool,
    think: float,
    jitter: float,
) -> None:
    """Serve the light gateway of the bench; callbacks are signed with the first of
    ORCHESTRATOR_GATEWAY_SECRETS.
    """
    from orchestrator.devkit.bench.gateway import GatewayProfile, run
    from orchestrator.devkit.bench.latency import parse
    from orchestrator.devkit.bench.shoppers import ShopperProfile
    from orchestrator.settings import load

    secrets = [secret.get_secret_value() for secret in load().gateway_secrets]
    profile = ShopperProfile(think=think, jitter=jitter, secret=secrets[0] if secrets else "")
    run(
        GatewayProfile(
            latency=parse(latency), faults=faults, shoppers=profile if shoppers else None, seed=seed
        ),
        host,
        port,
    )


@click.command("bench-load", hidden=True)
def load() -> None:
    """Hand intents over as the job on stdin says (the load of the bench)."""
    from orchestrator.devkit.bench.load import run

    run()


@click.command(short_help="Measure how much this machine can process.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 100_000),
    help="Orders a second; with --ramp where it starts.  [default: 40]",
)
@click.option("--seconds", type=click.FloatRange(1.0, 86_400.0), default=30.0, help="How long orders arrive.")
@flag("--ramp", told="First find the highest rate that is held, then measure at it.")
@click.option(
    "--gateway-latency",
    "latency",
    default="lognormal:120,380",
    type=_latency,
    metavar="MS",
    help="How late the gateway answers: 0, milliseconds, or lognormal:P50,P99.",
)
@click.option("--faults", type=SHARE, default=0.0, help="Share of the calls to the gateway that break.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, help="Worker processes.")
@click.option(
    "--think",
    type=click.FloatRange(0.0, 600.0),
    default=1.0,
    help="Seconds that a shopper thinks before paying, more or less the half of it.",
)
@flag("--evenly", told="Orders arrive at even distances, instead of by chance (Poisson).")
@click.option(
    "--stage",
    type=click.Choice(["whole", "ready"]),
    default="whole",
    help="`ready`: a batch of --orders is handed over as fast as it is taken and processed until it can be paid; no shopper pays.",
)
@click.option("--orders", type=click.IntRange(2, 1_000_000), default=1000, help="The batch of --stage ready.")
@click.option(
    "--sequential",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="One order at a time, N of them, until it can be paid.",
)
@flag("--webhook", told="Also have every event delivered to an endpoint of the merchant's.")
@click.option("--seed", type=int, default=1, help="Makes arrivals, latencies and faults repeatable.")
@json_flag("Print one JSON object on stdout, and all other output on stderr.")
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    help="Write a page with plots to this file.",
)
def bench(*, as_json: bool, sequential: int | None, **given: Any) -> int:
    """Measure how much this machine can process, and check that nothing was lost or doubled.

    Orders arrive on a schedule whether or not those before are done, and every time counts from the scheduled
    moment. Shoppers pay, the gateway calls back twice at once, and at the end its books and ours are compared
    to the minor unit: the exit status is 0 only if they agree. The gateway is a light one of its own, in its
    own process; GATEWAY_URL is not used.

    Everything runs in a directory that is removed at the end (TMPDIR says on which disk), with a Postgres
    that waits for the disk. Where ORCHESTRATOR_DATABASE_URL or ORCHESTRATOR_BROKER_URL are set, those servers
    are measured instead, and what was written stays there: take a database of its own, and name its
    ORCHESTRATOR_SECRET_KEYS. Other settings hold as for any process.
    """
    need_devkit()
    from orchestrator.devkit.bench.run import Plan, run

    if given["ramp"] and (sequential or given["stage"] != "whole"):
        raise click.UsageError(
            "--ramp is about the whole way of orders that keep arriving: leave --stage and --sequential out"
        )
    report = given["report"]
    if report is not None and not report.parent.is_dir():
        raise click.UsageError(f"--report {report} cannot be written: {report.parent} is no directory")
    status, document = run(
        Plan(sequential=sequential or 0, **given), open_terminal(least="error", aside=as_json)
    )
    if as_json and document is not None:
        say_json(json.dumps(document))
    return status
