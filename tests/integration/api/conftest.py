from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.api.process import Server, api_process
from tests.support.api_scene import Api, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from orchestrator.settings import Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with serving(settings) as started:
        yield started


@pytest.fixture
def server(database_url: str, servers, tmp_path: Path) -> Iterator[Server]:
    with api_process(database_url, servers.redis_url, tmp_path) as process:
        yield process
