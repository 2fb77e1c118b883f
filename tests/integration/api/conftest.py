from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.api.scene import Api, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.settings import Settings


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with serving(settings) as one:
        yield one
