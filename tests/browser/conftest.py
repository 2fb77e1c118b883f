"""A whole installation and a real browser.

Without a Chromium on the machine these tests are skipped, and say so.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from tests.support.world import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.devkit.local.servers import Embedded

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture
def installation(
    servers: Embedded, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with world(
        servers, database_url, tmp_path_factory.mktemp("world"), gateway_secrets=["0123456789abcdef"]
    ) as page:
        page.start_all()
        yield page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: `make test` installs it where it may")
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *sandbox])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a fresh profile; the shop's own pages are answered here, and whatever else is not on this
    machine is refused.
    """
    profile = browser.new_context()
    tab = profile.new_page()

    def answer(route: Route) -> None:
        host = route.request.url.split("/")[2]
        if host == "shop.example":
            route.fulfill(content_type="text/html", body="<h1>The shop's own page</h1>")
        elif host.startswith("127.0.0.1"):
            route.continue_()
        else:
            route.abort()

    tab.route("**/*", answer)
    yield tab
    profile.close()
