"""Which scripts are played: one by its name, or a group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from orchestrator.devkit.demo import failure_scenarios, scripts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from orchestrator.devkit.demo.scripts import Script

USUAL: Final = "checkout"

GROUPS: Final[dict[str, tuple[Script, ...]]] = {
    USUAL: scripts.SCRIPTS,
    "money": failure_scenarios.SCRIPTS,
    "all": (*scripts.SCRIPTS, *failure_scenarios.SCRIPTS),
}


def scripts_of(name: str) -> tuple[Script, ...]:
    """Return the scripts of a group, or the one of this name; `KeyError` if there is neither."""
    named = {script.name: (script,) for script in GROUPS["all"]}
    return (GROUPS | named)[name]


def choose(names: Iterable[str]) -> list[Script]:
    """Return the scripts of some names, each once, the usual group without any; `ValueError` says what there is instead."""
    chosen: dict[str, Script] = {}
    for name in list(names) or [USUAL]:
        try:
            chosen |= {script.name: script for script in scripts_of(name)}
        except KeyError:
            groups, single = ", ".join(GROUPS), ", ".join(script.name for script in GROUPS["all"])
            message = f"{name} does not exist: choose a group ({groups}) or a script ({single})"
            raise ValueError(message) from None
    return list(chosen.values())
