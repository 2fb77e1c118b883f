"""What commands ask a person: who it is (`--as`), whether it is meant (`--yes`, and the question before money
is moved or something is deleted), and secrets, which may come from a file, the environment or standard input.

Without a terminal there is no person to answer: then `--yes` is required, and nothing is done without it.
"""

from __future__ import annotations

import sys
from typing import Final

import click

from orchestrator.cli.output import flag, say
from orchestrator.text import neutralised

ACTOR: Final = "operator:command-line"
"""Who acts where no name is given. A name stands behind it, so that the trail shows that it was stated on the
command line and not proven by a token."""
_LONGEST: Final = 100


def _named(_: click.Context, __: click.Parameter, name: str | None) -> str:
    return ACTOR if name is None else f"{ACTOR}/{checked_name(name)}"


def checked_name(name: str) -> str:
    """Return the name of a person for the trail; a sentence for what is none."""
    if not 0 < len(name.strip()) <= len(name) <= _LONGEST or not name.isprintable():
        raise click.BadParameter(f"a name has 1 to {_LONGEST} printable characters")
    return name


as_option = click.option(
    "--as", "actor", metavar="NAME", callback=_named, help="Who asks; stands in the audit trail."
)
yes_option = flag("--yes", told="Do not ask for confirmation.")


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask, and return the answer; with `yes` it is True without a question. Without a terminal it is
    refused.
    """
    if yes:
        return True
    question = neutralised(question)
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question}? No terminal is there to ask on, so say --yes")
    if click.confirm(f"{question}?", prompt_suffix=" ", err=True):
        return True
    say("Nothing was done.", err=True)
    return False


def secret_of(what: str, option: str, source: str | None) -> str:
    """Return a secret of one line: asked for, or from its source."""
    if source is None:
        return asked(what)
    lines = lines_of(option, source)
    if len(lines) != 1:
        raise click.UsageError(f"{option}: {what.lower()} must be one line, and {len(lines)} came")
    return lines[0]


def lines_of(option: str, source: str) -> tuple[str, ...]:
    """Return the lines of a source that are not empty."""
    from orchestrator.settings import secret_source

    try:
        given = secret_source.read(source)
    except ValueError as error:
        raise click.UsageError(f"{option}: {error}") from None
    return tuple(line for line in given.splitlines() if line)


def asked(what: str, *, empty: bool = False, prompt: bool = True) -> str:
    """Return a secret that is typed unseen, or a line of standard input where that is no terminal."""
    if prompt and sys.stdin.isatty():
        return str(
            click.prompt(what, hide_input=True, err=True, default="" if empty else None, show_default=False)
        )
    given = sys.stdin.readline().rstrip("\r\n")
    if not given and not empty:
        raise click.UsageError(f"{what.lower()}: nothing came on standard input")
    return given
