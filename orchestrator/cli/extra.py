"""The extra `devkit`: which packages its commands need, and the sentence for an installation without them."""

from __future__ import annotations

import importlib.util
from typing import Final

import click

NAME: Final = "checkout-orchestrator[devkit]"
_PACKAGES: Final = ("httpx_aiohttp", "psutil")
"""What the modules of `orchestrator.devkit` import. The wheels of the embedded servers are checked where a
server is started."""


def need_devkit() -> None:
    """Refuse the present command in one sentence unless the packages of the extra are installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        command = click.get_current_context().info_name
        raise click.UsageError(
            f"`orchestrator {command}` is for development and needs packages that are not installed ({', '.join(missing)}): "
            f"pip install '{NAME}'"
        )
