"""The pages that are made of the code: `python -m tests.support.references` writes docs/cli.md and
docs/api.md.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from fastapi import FastAPI

from orchestrator import cli
from orchestrator.api import docs, routes

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


def commands(
    group: click.Group = cli.cli, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command of the command line that does something, with the words that call it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def command_line() -> str:
    """Return docs/cli.md."""
    parts = [
        (
            "# The command line\n\nMade from the code (`python -m tests.support.references`); a test compares. `orchestrator COMMAND --help` says the "
            "same. A wrong argument or setting is one sentence and exit status 2; 1 means that something is not well or not done. Commands reach the "
            "installation of `ORCHESTRATOR_DATABASE_URL`, or of `orchestrator up` by `--data-dir`.\n"
        )
    ]
    group = ""
    for path, command in commands():
        if path[0] != group:
            group = path[0]
            parts.append(f"\n## {group}\n")
        parts.append(f"\n### orchestrator {' '.join(path)}\n\n{_prose(command.help or '')}\n")
        rows = [row for parameter in command.params if (row := _row(parameter))]
        if rows:
            parts.append("\n| argument or option | what it is |\n|---|---|\n" + "".join(rows))
    return "".join(parts)


def _prose(text: str) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)\s*", " ", inspect.cleandoc(text)).replace("\b", "").strip()


def _row(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return f"| `{parameter.make_metavar(click.Context(click.Command('x')))}` | |\n"
    assert isinstance(parameter, click.Option)
    if parameter.hidden:
        return ""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    said = _prose(parameter.help or "").replace("|", "\\|")
    context = click.Context(click.Command("x"), show_default=True)
    if default := parameter.get_help_extra(context).get("default"):
        said = f"{said} (default: {default})".strip()
    return f"| {names} | {said} |\n"


def document() -> dict[str, Any]:
    """Return the OpenAPI document of an app of its own."""
    served = FastAPI(title="Checkout orchestrator", version="0")
    docs.install(served)
    served.router.routes.extend(routes.routes())
    return served.openapi()


def calls() -> Iterator[tuple[str, str, str]]:
    """Yield method, path and summary of each call of the API, callbacks and health too."""
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            said = _prose((operation.get("description") or "").split("\n\n")[0])
            summary = operation.get("summary") or ""
            yield method.upper(), path, summary if not said or said.startswith("Needs the scope") else said


def api() -> str:
    """Return docs/api.md."""
    rows = "".join(
        f"| `{method} {path}` | {said.replace('|', chr(92) + '|')} |\n" for method, path, said in calls()
    )
    return (
        "# The API\n\nMade from the code (`python -m tests.support.references`); a test compares. Every call with its fields and answers is in the OpenAPI "
        "document that each API process serves (`/openapi.json`, and as pages `/docs`). Which call needs which scope: [access.md](access.md). Errors are "
        "`application/problem+json`: [integrate.md](integrate.md#6-errors).\n\n| call | what it does |\n|---|---|\n"
        + rows
        + "\nBeside these calls the API serves `/metrics` for Prometheus ([metrics.md](metrics.md)), and pages: `/` and `/shop`, which leads to the demo shop "
        "([browser.md](browser.md#the-demo-shop)), `/console` ([console.md](console.md)), `/docs`, and `/static/checkout-<version>.js` "
        "([browser.md](browser.md#what-the-page-needs)).\n"
    )


if __name__ == "__main__":
    (ROOT / "docs/cli.md").write_text(command_line())
    (ROOT / "docs/api.md").write_text(api())
