"""Commands of the bench: the measurement, and the processes that it starts beside the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from orchestrator.bench.latency import Latency


def _latency(_context: click.Context, _parameter: click.Parameter, value: str) -> Latency:
    from orchestrator.bench import latency  # noqa: PLC0415 - each command imports what it needs

    try:
        return latency.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


SHARE = click.FloatRange(0.0, 1.0)


@click.command("bench-gateway", hidden=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), required=True)
@click.option("--latency", callback=_latency, default="0", show_default=True, help="How late it answers.")
@click.option("--faults", type=SHARE, default=0.0, show_default=True, help="Share of calls that break.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--shoppers/--no-shoppers", default=True, show_default=True, help="Whether anybody pays.")
@click.option("--think", type=click.FloatRange(0.0, 3600.0), default=1.0, show_default=True, help="Seconds.")
@click.option(
    "--jitter", type=SHARE, default=0.5, show_default=True, help="More or less, as a share of that."
)
def gateway(
    *,
    host: str,
    port: int,
    latency: Latency,
    faults: float,
    seed: int,
    shoppers: bool,
    think: float,
    jitter: float,
) -> None:
    """Serve the light gateway of the bench; callbacks are signed with the first of ORCHESTRATOR_GATEWAY_SECRETS."""
    from orchestrator.bench.gateway import Conduct, run  # noqa: PLC0415
    from orchestrator.bench.shoppers import Habits  # noqa: PLC0415
    from orchestrator.settings import load  # noqa: PLC0415

    secrets = [secret.get_secret_value() for secret in load().gateway_secrets]
    habits = Habits(think=think, jitter=jitter, secret=secrets[0] if secrets else "")
    run(Conduct(latency=latency, faults=faults, shoppers=habits if shoppers else None, seed=seed), host, port)
