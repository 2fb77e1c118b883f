"""Finding an installation from another terminal: the settings of a running `up`, and how the operator's
commands reach it.

While `up` runs, `runtime.json` in its data directory (mode 0600) holds its settings. A command attaches to
that; where nothing runs, it starts the embedded Postgres itself for as long as it takes. Settings of the
command's own environment take precedence, and with ORCHESTRATOR_DATABASE_URL set the data directory is read
for keys only.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.devkit.local.keys import keys_of
from orchestrator.devkit.local.servers import Embedded
from orchestrator.devkit.local.servers.children import command_of
from orchestrator.devkit.local.servers.files import kept, private
from orchestrator.settings import PREFIX, SettingsError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from orchestrator.settings import Settings

NAME: Final = "runtime.json"


class Runtime(msgspec.Struct, frozen=True):
    """What runs in a data directory: the process of `up`, and the settings that it gave its children."""

    pid: int
    settings: dict[str, Any]

    def __repr__(self) -> str:
        """Hide the settings, which hold secrets."""
        return f"Runtime(pid={self.pid})"


def announce(data_dir: Path, settings: Settings) -> None:
    """Write down what runs here; `withdraw` takes it back."""
    told = settings.model_dump(mode="python", include=settings.model_fields_set)
    plain = {name: _plain(value) for name, value in told.items() if value is not None}
    private(data_dir / NAME, msgspec.json.encode(Runtime(os.getpid(), plain)))


def withdraw(data_dir: Path) -> None:
    (data_dir / NAME).unlink(missing_ok=True)


def running(data_dir: Path) -> Runtime | None:
    """Return what runs in a data directory, or None; a file of a killed `up` counts for nothing."""
    raw = kept(data_dir / NAME)
    if raw is None:
        return None
    try:
        found = msgspec.json.decode(raw, type=Runtime)
    except msgspec.DecodeError:
        return None
    try:
        os.kill(found.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it lives, and is another account's
    # A number may have been given to another process since.
    return found if "orchestrator" in command_of(found.pid) else None


def configured(data_dir: Path, overrides: Mapping[str, object] | None = None) -> Settings:
    """Return settings for a command without servers: the environment's, what runs, then kept keys."""
    given = load(overrides)
    supplied = dict(overrides or {})
    runs = running(data_dir) if given.database_url is None else None
    if runs is not None:
        supplied |= {
            name: value for name, value in runs.settings.items() if name not in given.model_fields_set
        }
    elif (keys := keys_of(data_dir)) is not None:
        supplied |= keys.missing_from(given, sandbox=given.gateway_url is None)
    return load(supplied)


@contextmanager
def attach(data_dir: Path, *, say: Callable[[str], None]) -> Iterator[Settings]:
    """Give a command settings with a database that answers, for as long as the block lasts."""
    settings = configured(data_dir)
    with ExitStack() as held:
        if settings.database_url is None:
            if not (data_dir / "postgres").exists():
                raise SettingsError(
                    f"{PREFIX}DATABASE_URL is not set, and {data_dir} holds no installation: set it, name another "
                    "--data-dir, or start `orchestrator up` first"
                )
            servers = held.enter_context(Embedded.start(data_dir, redis=False, announce=say))
            urls = {"database_url": servers.database_url, "migration_url": servers.owner_url}
            settings = configured(data_dir, urls)
        yield settings


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    reveal = getattr(value, "get_secret_value", None)
    return reveal() if reveal is not None else value
