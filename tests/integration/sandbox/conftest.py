"""One sandbox and one merchant for all of these tests; each test uses order numbers of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from orchestrator.devkit.sandbox import create_app
from tests.support.parties import CONFIG, Gateway, Merchant, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def merchant() -> Iterator[Merchant]:
    shop = Merchant()
    with serving(shop.app) as url:
        shop.url = url
        yield shop


@pytest.fixture(scope="session")
def _shared(merchant: Merchant) -> Iterator[Gateway]:
    with serving(create_app(CONFIG)) as url:
        gateway = Gateway(url, merchant)
        yield gateway
        gateway.http.close()


@pytest.fixture
def gateway(_shared: Gateway) -> Iterator[Gateway]:
    """One sandbox for all tests: each uses its own order numbers; faults for all calls are reset."""
    yield _shared
    _shared.control("DELETE", "faults")


@pytest.fixture
def order(request: pytest.FixtureRequest) -> str:
    """An order number of the test's own."""
    name = "".join(callback if callback.isalnum() else "-" for callback in request.node.name)
    return name.removeprefix("test-")[-90:].strip("-")
