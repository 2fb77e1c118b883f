"""Secrets that a person gives to a command: from a file, an environment variable or standard input.

Never an argument of the command line, which others on the machine can read.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = "env:"
STANDARD_INPUT: Final = "-"
_MOST: Final = 64 * 1024


def read(source: str) -> str:
    """Return the text of a source: a file's path, `env:NAME`, or `-` for standard input.

    `ValueError` with a sentence if there is none; it repeats the name of the source and nothing of its
    content.
    """
    if source == STANDARD_INPUT:
        return sys.stdin.read(_MOST)
    if source.startswith(ENVIRONMENT):
        name = source.removeprefix(ENVIRONMENT)
        value = os.environ.get(name)
        if not value:
            raise ValueError(f"the environment variable {name} is not set: set it, or name another source")
        return value
    try:
        with Path(source).open(encoding="utf-8") as file:
            return file.read(_MOST)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        message = f"{source} cannot be read ({reason}): name a file, env:NAME, or - for standard input"
        raise ValueError(message) from None
