from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.world import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.devkit.local.servers import Embedded


@pytest.fixture
def installation(servers: Embedded, database_url: str, tmp_path: Path) -> Iterator[World]:
    """All processes but the workers: each test starts its own."""
    with world(servers, database_url, tmp_path) as installation:
        for name in ("sandbox", "api", "scheduler"):
            installation.start(name)
        yield installation
