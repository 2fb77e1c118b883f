"""What is printed goes through one place for lines and one for drawings, where no text from outside can steer
the terminal.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import orchestrator

PACKAGE = Path(orchestrator.__file__).parent
LINES = "cli/output.py"
DRAWINGS = "devkit/local/terminal.py"
DRAWN = ("cli/", "devkit/bench/", "devkit/demo/", "devkit/local/")
RAW = {"devkit/bench/load.py", "log.py"}
"""A child process whose stdout is read by its parent alone, and the log, which takes stdout over."""

_TAG = re.compile(r"\[/[^\]]*\]|\[(bold|dim|italic|red|green|yellow|blue|cyan|link)\b[^\]]*\]")


def faults(path: str, source: str) -> list[str]:
    """Return what a module does that only the two places may do, with its line."""
    found = []
    nodes = list(ast.walk(ast.parse(source)))
    typing_only = {
        id(inner)
        for node in nodes
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="click"), attr="echo" | "secho" | "echo_via_pager") if (
                path != LINES
            ):
                found.append((node.lineno, "prints past cli/output.py"))
            case ast.Attribute(value=ast.Name(id="sys"), attr="stdout") if path not in {
                LINES,
                *RAW,
                "cli/trail.py",
            }:
                found.append((node.lineno, "prints past cli/output.py"))
            case ast.Call(func=ast.Name(id="print")):
                found.append((node.lineno, "prints past cli/output.py"))
            case ast.ImportFrom(module=str(module), names=names) if (
                id(node) not in typing_only
                and any(f"{module}.{name.name}" in {"rich.console.Console", "rich.print"} for name in names)
                and path != DRAWINGS
            ):
                found.append((node.lineno, "draws past PlainConsole"))
            case (
                ast.ImportFrom(module="rich.markup" | "rich.panel")
                | ast.Attribute(attr="from_markup" | "from_ansi")
            ):
                found.append((node.lineno, "makes markup of text"))
            case ast.Call(
                func=ast.Attribute(attr="status" | "rule"), args=[ast.JoinedStr() | ast.Constant(), *_]
            ):
                found.append((node.lineno, "gives a str to what reads it as markup: give a Text"))
            case ast.keyword(arg="markup", value=ast.Constant(value=True)):
                found.append((node.value.lineno, "makes markup of text"))
            case ast.Constant(value=str(text)) if path.startswith(DRAWN) and _TAG.search(text):
                found.append((node.lineno, "holds markup, which is printed as it stands"))
    return [f"orchestrator/{path}:{line}: {what}" for line, what in found]


def test_everything_is_printed_in_the_two_places_that_neutralise():
    broken = [
        fault
        for path in sorted(PACKAGE.rglob("*.py"))
        for fault in faults(path.relative_to(PACKAGE).as_posix(), path.read_text())
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    "source",
    [
        'import click\nclick.echo("x")\n',
        'import sys\nsys.stdout.write("x")\n',
        'print("x")\n',
        "from rich.console import Console\n",
        "from rich import print\n",
        "from rich.markup import escape\n",
        "from rich.panel import Panel\n",
        'Text.from_markup("x")\n',
        'console.status(f"{x} …")\n',
        "console.print(x, markup=True)\n",
        'say("[bold red]no[/]")\n',
    ],
)
def test_the_rule_can_fail(source):
    assert faults("cli/checkouts.py", source)


def test_the_rule_allows_types_and_the_two_places():
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from rich.console import Console\n"
    assert not faults("cli/checkouts.py", typed)
    assert not faults(LINES, 'import click\nclick.echo("x")\n')
    assert not faults(DRAWINGS, "from rich.console import Console\n")
