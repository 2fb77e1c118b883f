from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.devkit.sandbox import SandboxConfig, create_app
from tests.support.parties import serving
from tests.support.scene import Scene, scene

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

CONFIG = SandboxConfig(
    username="shop",
    password="sandbox password",
    browser_timeout=1.0,
    notification_timeout=0.5,
    hang_seconds=1.0,
)


@pytest.fixture(scope="session")
def gateway_url() -> Iterator[str]:
    with serving(create_app(CONFIG)) as url:
        yield url


@pytest.fixture
async def world(database_url: str, gateway_url: str) -> AsyncIterator[Scene]:
    """A processor with short pauses, in front of a sandbox whose callbacks are not received."""
    async with scene(database_url, gateway_url) as started:
        yield started
        await started.control("DELETE", "faults")
