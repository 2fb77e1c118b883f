"""All output of the commands, so that no text from outside can control a terminal or fake a line.

A line is one line: control characters, escape sequences and bidirectional controls in it become U+FFFD.
Tables come from `printer`, to which a `str` is text and never markup. A document of JSON keeps its content,
with escapes instead of such characters. What a command lists is a table, a sentence where there is nothing
to list, or JSON (`--json`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from orchestrator.text import escaped_json, neutralised, neutralised_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import IO

    from rich.console import Console
    from rich.table import Table

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_FILE_WIDTH: Final = 250


def flag(*names: str, told: str) -> Callable[[F], F]:
    """Return an option without a value."""
    return click.option(*names, is_flag=True, help=told)


def json_flag(told: str) -> Callable[[F], F]:
    """Return the option --json with what it prints."""
    return flag("--json", "as_json", told=told)


json_option = json_flag("Print JSON; amounts in minor units.")
plain_json_option = json_flag("Print JSON.")


def say(line: object = "", *, err: bool = False, lead: str = "") -> None:
    """Print one line; `lead` is a fixed word with a style in front of it."""
    click.echo(lead + neutralised(str(line)), err=err)


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, such as a page of help or a sentence with the end of a log."""
    click.echo(neutralised_lines(text), err=err)


def say_json(document: str, file: IO[str] | None = None) -> None:
    """Print a document of JSON in one line, on stdout or into an open file."""
    if file is None:
        click.echo(escaped_json(document))
    else:
        file.write(escaped_json(document) + "\n")


def say_document(document: object) -> None:
    """Print a value as JSON; decimals are written as numbers."""
    import msgspec

    say_json(msgspec.json.Encoder(decimal_format="number").encode(document).decode())


def say_either(document: object, sentence: str, *, as_json: bool) -> None:
    """Print a result as JSON, or in a sentence."""
    if as_json:
        say_document(document)
    else:
        say(sentence)


def say_table(shown: Table, *, empty: str) -> None:
    """Print a table, or one sentence where it has no row."""
    if shown.row_count:
        printer().print(shown)
    else:
        say(empty)


def say_more(limit: int, how: str) -> None:
    """Say on stderr, also beside JSON, that a list goes on beyond so many rows, and how to see the others."""
    say(f"There are more than {limit}: {how}.", err=True)


def at_most(rows: Sequence[T], limit: int, how: str) -> Sequence[T]:
    """Return the rows of a list, of which one more than `limit` was read, as `say_more` tells."""
    if len(rows) > limit:
        say_more(limit, how)
    return rows[:limit]


def standard_output() -> IO[str]:
    """Return standard output as a file for `say_json`, which then buffers what it writes."""
    return sys.stdout


def printer(*, err: bool = False) -> Console:
    """Return where tables go: as wide as the terminal, or, into files and pipes, as wide as a line of a table
    may get.
    """
    from orchestrator.devkit.local.terminal import PlainConsole

    console = PlainConsole(stderr=err)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console
