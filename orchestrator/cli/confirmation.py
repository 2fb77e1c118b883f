"""Who asks, and whether it is meant: the options `--as` and `--yes`, and the question before money is moved
or something is deleted.

Without a terminal there is no person to answer: then `--yes` is required, and nothing is done without it.
"""

from __future__ import annotations

import sys
from typing import Final

import click

from orchestrator.cli.output import say
from orchestrator.text import neutralised

ACTOR: Final = "operator:command-line"
"""Who acts where no name is given. A name stands behind it, so that the trail shows that it was stated on the
command line and not proven by a token."""
_LONGEST: Final = 100


def _named(_: click.Context, __: click.Parameter, name: str | None) -> str:
    if name is None:
        return ACTOR
    return f"{ACTOR}/{checked_name(name)}"


def checked_name(name: str) -> str:
    """Return the name of a person for the trail; a sentence for what is none."""
    if not 0 < len(name.strip()) <= len(name) <= _LONGEST or not name.isprintable():
        raise click.BadParameter(f"a name has 1 to {_LONGEST} printable characters")
    return name


as_option = click.option(
    "--as", "actor", metavar="NAME", callback=_named, help="Who asks; stands in the audit trail."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask for confirmation.")


def has_terminal() -> bool:
    """Say whether a person can answer a question."""
    return sys.stdin.isatty()


def confirmed(question: str, *, yes: bool) -> bool:
    """Ask, and return the answer; with `yes` it is True without a question. Without a terminal it is
    refused.
    """
    if yes:
        return True
    question = neutralised(question)
    if not has_terminal():
        raise click.UsageError(f"{question}? No terminal is there to ask on, so say --yes")
    if click.confirm(f"{question}?", prompt_suffix=" ", err=True):
        return True
    say("Nothing was done.", err=True)
    return False
