"""The table of all settings, as docs/settings.md has it."""

from __future__ import annotations

from pydantic import SecretStr

from orchestrator.settings import PREFIX, Settings
from orchestrator.settings.access import AccessSettings


def reference() -> str:
    """Return the table of all settings; docs/settings.md is exactly this (a test compares)."""
    rows = []
    # Settings of access stand in a module of their own, and would come first.
    fields = sorted(Settings.model_fields.items(), key=lambda item: item[0] in AccessSettings.model_fields)
    for name, field in fields:
        default = field.get_default()
        shown = (
            "" if default in (None, "", ()) or isinstance(default, SecretStr) else f"`{_as_typed(default)}`"
        )
        # One line: a row of a table holds no line break.
        said = " ".join((field.description or "").split())
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {said} |")
    head = (
        "# Settings\n\nEnvironment variables, read once at the start. Lists are JSON arrays; durations are seconds. An empty default "
        "means: not set; an empty variable counts as not set. White space "
        "at either end of a text or secret stops the start, since a secret that was read from a file often ends in a line break. Variables that "
        "Kubernetes makes for its services (`ORCHESTRATOR_SERVICE_HOST`, `ORCHESTRATOR_PORT=tcp://…` and the like) are no settings and "
        "are left out; any other unknown name with the prefix stops the start.\n\n| variable | default | what it is |\n|---|---|---|\n"
    )
    return head + "\n".join(rows) + "\n"


def _as_typed(value: object) -> str:
    if isinstance(value, tuple):
        return (
            "[" + ", ".join(f'"{item}"' if isinstance(item, str) else _as_typed(item) for item in value) + "]"
        )
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
