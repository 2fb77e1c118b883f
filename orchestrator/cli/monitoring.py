"""`orchestrator monitoring`: files for Prometheus and Grafana, made of the table of promises."""

from __future__ import annotations

from typing import Final

import click

from orchestrator.cli.output import say_lines

KINDS: Final = ("alerts", "alert-tests", "dashboard", "runbook", "metrics")


@click.command(
    short_help="Print alert rules, their tests, the dashboard, or the pages of alerts and metrics."
)
@click.argument("what", type=click.Choice(KINDS))
@click.option(
    "--docs-url",
    default="docs",
    metavar="URL",
    help="Where the documentation is, for the links of alerts.",
)
def monitoring(*, what: str, docs_url: str) -> None:
    """Print a file for Prometheus or Grafana: `alerts` (rules), `alert-tests` (for promtool), `dashboard`
    (JSON), and the pages `runbook` and `metrics` of the documentation.
    """
    from orchestrator.monitoring import catalogue, generated

    docs = docs_url.rstrip("/")
    match what:
        case "alerts":
            text = generated.alerts(docs)
        case "alert-tests":
            text = generated.alert_tests(docs)
        case "dashboard":
            text = generated.dashboard()
        case "runbook":
            text = generated.runbook()
        case _:
            text = catalogue.reference()
    say_lines(text.rstrip("\n"))
