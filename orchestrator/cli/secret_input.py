"""Secrets as commands take them: typed, or from a file, the environment or standard input."""

from __future__ import annotations

import sys

import click


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
