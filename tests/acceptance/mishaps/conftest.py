from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.factories import empty
from tests.support.shop import Shop, shop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(scope="module")
async def installation(shared_database_url: str) -> AsyncIterator[Shop]:
    """One installation for the tests of a module in sequence; making it takes longer than most of
    them.
    """
    empty(shared_database_url)
    async with shop(shared_database_url) as opened:
        yield opened
        # The database is shared: the policies and the clock are reset afterwards.
        await opened.begin(shared_database_url)


@pytest.fixture
async def world(installation: Shop, shared_database_url: str) -> Shop:
    """A shop without orders; its gateway has other orders, as every gateway does."""
    await installation.begin(shared_database_url)
    return installation
