"""The lines of `orchestrator doctor`."""

from __future__ import annotations

import click

from orchestrator.cli.output import say


class Report:
    """Prints each finding as it comes, and counts what is not well."""

    def __init__(self) -> None:
        self.problems = 0

    def well(self, what: str, found: str) -> None:
        say(f"       {what:<11} {found}", lead=click.style("ok", fg="green"))

    def ill(self, what: str, found: str) -> None:
        self.problems += 1
        say(f"  {what:<11} {found}", lead=click.style("problem", fg="red", bold=True))
