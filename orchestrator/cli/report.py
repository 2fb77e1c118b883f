"""The lines of `orchestrator doctor`."""

from __future__ import annotations

import click

from orchestrator.cli.output import say, say_document


class Report:
    """Tells each finding as it comes, or all in one JSON document at the end, and counts what is not well."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.problems = 0
        self._found: list[dict[str, object]] | None = [] if as_json else None

    def well(self, what: str, found: str) -> None:
        if self._found is None:
            say(f"       {what:<11} {found}", lead=click.style("ok", fg="green"))
        else:
            self._found.append({"check": what, "ok": True, "found": found})

    def ill(self, what: str, found: str) -> None:
        self.problems += 1
        if self._found is None:
            say(f"  {what:<11} {found}", lead=click.style("problem", fg="red", bold=True))
        else:
            self._found.append({"check": what, "ok": False, "found": found})

    def end(self) -> None:
        """Say how many problems there are; with JSON, everything."""
        if self._found is not None:
            say_document({"problems": self.problems, "checks": self._found})
        elif self.problems:
            say(f"{self.problems} problem{'s' if self.problems > 1 else ''} found.", err=True)
