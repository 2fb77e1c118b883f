"""The console in a real browser: keyboard, live changes, no finding of axe on any page, no error and no
violation of the policy in the log of the browser.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from playwright.sync_api import expect

from orchestrator.crypto import Encryptor
from orchestrator.store.console import sessions
from orchestrator.store.database import Database
from tests.conftest import make_settings
from tests.support.accessibility import violations
from tests.support.console_data import ConsoleData
from tests.support.world import world

if TYPE_CHECKING:
    from uuid import UUID

ROOT = Path(__file__).resolve().parents[2]
VENDORED = ROOT / "orchestrator/console/static"
SCOPES = ("console:view", "console:operate", "console:approve", "console:admin")
# Two cores may be busy beside the browser.
expect.set_options(timeout=20_000)


def test_vendored_scripts_are_what_their_list_says():
    listed = dict(
        re.findall(
            r"^\| `([^`]+)` .* `([0-9a-f]{64})` \|$", (VENDORED / "VENDORED.md").read_text(), re.MULTILINE
        )
    )
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in VENDORED.glob("*.min.js")}
    assert found == listed


async def _filled(url: str) -> tuple[dict[str, UUID], str, str]:
    settings = make_settings(database_url=url)
    encryptor = Encryptor(settings.secret_keys)
    async with Database(url, pool_size=2) as db:
        data = ConsoleData(db, encryptor)
        named = await data.everything()
        await data.close()
        codes = [
            await sessions.begin(db, encryptor, actor=name, scopes=SCOPES, seconds=600, link=True)
            for name in ("first", "second")
        ]
    return named, codes[0], codes[1]


@pytest.fixture
def console(servers, database_url, tmp_path):
    with world(servers, database_url, tmp_path, approval_limits={"DKK": 100}) as made:
        made.start("api")
        # Playwright has an event loop in this thread.
        with ThreadPoolExecutor(1) as apart:
            named, first, second = apart.submit(asyncio.run, _filled(database_url)).result()
        made.named, made.links = named, [f"{made.api_url}/console/link/{code}" for code in (first, second)]
        yield made


def watched(page) -> list[str]:
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    return wrong


def test_the_console_in_a_browser(console, page):
    wrong = watched(page)
    page.goto(console.links[0])
    page.keyboard.press("Tab")  # past "skip to the content"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    every_page_is_accessible(console, page)
    a_change_shows_by_itself(console, page)
    an_action_on_a_moved_order_is_refused_and_the_next_one_is_stored(console, page)
    approval = a_refund_above_the_limit_waits(console, page)
    # Refused requests are answered with their status, which the browser logs.
    assert [said for said in wrong if "status of 409" not in said] == []
    another_person_approves(console, page, approval)


def every_page_is_accessible(console, page):
    named = console.named
    addresses = [
        "", "/decisions", "/orders", "/approvals", "/bulk", "/bulk/new?kind=retry&attention=any", "/deliveries", "/rejected", "/merchants",
        "/system", "/actions", "/sessions", f"/orders/{named['surplus_payment']}", f"/orders/{named['captured']}",
        f"/orders/{named['operation_unclear']}", f"/deliveries/{named['endpoint']}",
        f"/orders/{named['surplus_payment']}/do/resolve?decision=return",
    ]  # fmt: skip
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for address in addresses:
            page.goto(f"{console.api_url}/console{address}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (address, width)
            findings = violations(page)
            assert not findings, (address, width, findings)
    page.emulate_media(color_scheme="dark")
    for address in ("", f"/orders/{named['surplus_payment']}", f"/orders/{named['captured']}"):
        page.goto(f"{console.api_url}/console{address}")
        assert not violations(page), address
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def a_change_shows_by_itself(console, page):
    named = console.named
    page.goto(f"{console.api_url}/console/orders/{named['open']}")
    page.wait_for_timeout(2500)
    with psycopg.connect(console.database_url, autocommit=True) as admin:
        admin.execute(
            "UPDATE checkouts SET state = 'awaiting_payment', version = version + 1 WHERE id = %s",
            [named["open"]],
        )
    expect(page.locator("h1 ~ p .state").first).to_have_text("awaiting payment", timeout=5_000)


def an_action_on_a_moved_order_is_refused_and_the_next_one_is_stored(console, page):
    named = console.named
    page.get_by_role("link", name="Cancel the order").click()
    with psycopg.connect(console.database_url, autocommit=True) as admin:
        admin.execute("UPDATE checkouts SET version = version + 1 WHERE id = %s", [named["open"]])
    page.get_by_label("Reason").fill("the shopper called")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("has moved since this page was drawn")
    page.get_by_role("link", name="Back to the order").click()
    page.get_by_role("link", name="Cancel the order").click()
    page.get_by_label("Reason").fill("the shopper called")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("A worker carries it out")


def a_refund_above_the_limit_waits(console, page) -> str:
    named = console.named
    page.goto(f"{console.api_url}/console/orders/{named['captured']}")
    page.get_by_role("link", name="Refund up to").click()
    page.get_by_label("Amount").fill("120.00")
    page.get_by_label("Reason").fill("returned by the shopper")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Refund 120.00 of 129.00 DKK")).to_be_visible()
    page.get_by_role("button", name="Refund 120.00").click()
    expect(page.get_by_role("status")).to_contain_text("waits for a second person")
    page.goto(f"{console.api_url}/console/approvals")
    page.get_by_role("link", name="Refund 120.00 DKK").click()
    expect(page.get_by_text("another person has to approve it")).to_be_visible()
    return page.url


def another_person_approves(console, page, approval):
    other = page.context.browser.new_context()
    second = other.new_page()
    more = watched(second)
    second.goto(console.links[1])
    second.get_by_role("button", name="Sign in").click()
    second.goto(approval)
    second.get_by_role("button", name="Approve").click()
    expect(second.get_by_role("status")).to_contain_text("Approved and stored")
    with psycopg.connect(console.database_url) as admin:
        rows = admin.execute("SELECT actor FROM commands WHERE kind = 'refund'").fetchall()
    assert rows == [("operator:first approved by operator:second",)]
    assert more == []
    other.close()
