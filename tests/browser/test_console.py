"""The console in a real browser: keyboard, live changes, no finding of axe on any page, no error and no
violation of the policy in the log of the browser.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
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
COPIES = """
    WITH c AS (
        INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, reserved, audit_sequence,
                               audit_head, event_sequence, correlation_id)
        SELECT CAST('00' || substr(md5(CAST(n AS text)), 1, 30) AS uuid), 1, 'K-' || n, 'completed', clock(), clock(), 'SEK', 100, 100, 1, '', 0, 'c'
          FROM generate_series(1, %(number)s) n
        RETURNING id
    )
    INSERT INTO intents (checkout_id, fingerprint, body) SELECT c.id, fingerprint, body FROM c, intents WHERE checkout_id = %(id)s
"""
# Tables that show a part of their columns alone.
HIDDEN = """[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth)
    .map(each => each.getAttribute('aria-label'))"""
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


@pytest.mark.timeout(400)
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
    a_person_chooses_a_password(console, page)
    an_order_is_cancelled_by_keyboard_alone(console, page)
    a_bulk_action_goes_on_after_its_process_was_killed(console, page)


def every_page_is_accessible(console, page):
    named = console.named
    addresses = [
        "", "/decisions", "/orders", "/approvals", "/bulk", "/bulk/new?kind=retry&attention=any", "/deliveries", "/rejected", "/merchants",
        "/system", "/actions", "/sessions", "/users", "/password", "/events", f"/orders/{named['surplus_payment']}", f"/orders/{named['captured']}",
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
            if width == 390:
                assert page.evaluate(HIDDEN) == [], address
    the_menu_is_closed_on_a_narrow_page(page)
    page.emulate_media(color_scheme="dark")
    for address in ("", f"/orders/{named['surplus_payment']}", f"/orders/{named['captured']}"):
        page.goto(f"{console.api_url}/console{address}")
        assert not violations(page), address
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def the_menu_is_closed_on_a_narrow_page(page):
    there = page.get_by_role("navigation").get_by_role("link", name="Decisions")
    expect(there).to_be_hidden()
    tab_to(page, "Menu")
    page.keyboard.press("Enter")
    expect(there).to_be_visible()


def a_change_shows_by_itself(console, page):
    named = console.named

    def slowly(route):
        time.sleep(1)
        route.continue_()

    # htmx begins with its extensions, however slowly they come.
    page.route("**/hx-*.js", slowly)
    page.goto(f"{console.api_url}/console/orders/{named['open']}")
    page.unroute("**/hx-*.js")
    page.wait_for_timeout(2500)
    with psycopg.connect(console.database_url, autocommit=True) as admin:
        admin.execute(
            "UPDATE checkouts SET state = 'awaiting_payment', version = version + 1 WHERE id = %s",
            [named["open"]],
        )
    expect(page.locator("h1 ~ p .state").first).to_have_text("awaiting payment")


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


def a_person_chooses_a_password(console, page):
    page.goto(f"{console.api_url}/console/users")
    page.get_by_label("Name", exact=True).fill("dora")
    page.get_by_label("Role", exact=True).select_option("operator")
    page.get_by_label("Reason", exact=True).fill("new in the team")
    page.get_by_role("button", name="Add").click()
    link = page.locator("pre").inner_text()
    profile = page.context.browser.new_context()
    dora = profile.new_page()
    wrong = watched(dora)
    dora.goto(link)
    dora.get_by_role("button", name="Sign in").click()
    dora.goto(f"{console.api_url}/console/password")
    dora.get_by_label("New password", exact=True).fill("a sentence of some words")
    dora.get_by_label("New password again").fill("a sentence of some words")
    dora.get_by_role("button", name="Store").click()
    expect(dora.get_by_role("status")).to_contain_text("Stored")
    assert violations(dora) == []
    dora.get_by_role("button", name="Sign out").click()
    assert violations(dora) == []
    dora.get_by_label("Name").fill("dora")
    dora.get_by_label("Password").fill("a sentence of some words")
    dora.keyboard.press("Enter")
    expect(dora.get_by_role("heading", name="Overview")).to_be_visible()
    expect(dora.get_by_role("link", name="Users")).to_have_count(0)
    assert wrong == []
    profile.close()


def an_order_is_cancelled_by_keyboard_alone(console, page):
    page.goto(f"{console.api_url}/console/decisions")
    tab_to(page, "Order number, id or transaction")
    page.keyboard.type("A-DEAD-END-1")
    press_enter(page, "Order A-DEAD-END-1")
    tab_to(page, "Cancel the order")
    press_enter(page, "Cancel")
    tab_to(page, "Reason")
    page.keyboard.type("asked by the shop")
    press_enter(page, "Order A-DEAD-END-1")
    expect(page.get_by_role("status")).to_contain_text("A worker carries it out")
    tab_to(page, "Bulk")
    press_enter(page, "Bulk actions")


def press_enter(page, heading: str) -> None:
    """Press the enter key, and wait for the page with this heading."""
    with page.expect_navigation():
        page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text(heading)


def tab_to(page, name: str) -> None:
    """Press the tab key until the control of this name has the focus, and see that it is marked."""
    told = """(() => { const at = document.activeElement; const label = at.labels && at.labels[0];
        return [(label || at).textContent.trim(), getComputedStyle(at).outlineStyle] })()"""
    for _ in range(250):
        page.keyboard.press("Tab")
        text, outline = page.evaluate(told)
        if text == name:
            assert outline != "none", name
            return
    raise AssertionError(name)


def a_bulk_action_goes_on_after_its_process_was_killed(console, page):
    number = 1500
    with psycopg.connect(console.database_url, autocommit=True) as admin:
        admin.execute(COPIES, {"number": number, "id": console.named["paid"]})
        page.goto(f"{console.api_url}/console/bulk/new?kind=reconcile&currency=SEK")
        expect(page.get_by_role("heading", name=f"Look up at the gateway: {number} orders")).to_be_visible()
        page.get_by_label("Reason").fill("the gateway was down")
        page.get_by_role("button", name="Look up at the gateway").click()
        expect(page.get_by_role("progressbar")).to_be_visible()
        done = "SELECT accepted + refused FROM console_runs"
        console.until(lambda: admin.execute(done).fetchone()[0], "a part of the run is done")
        console.kill("api")
        part = admin.execute(done).fetchone()[0]
        assert 0 < part < number
        admin.execute("UPDATE console_runs SET leased_until = clock()")  # its process does not renew it
        console.start("api")
        page.reload()
        expect(page.get_by_text(f"{number} accepted, 0 refused, 0 left")).to_be_visible(timeout=60_000)
        asked = admin.execute(
            "SELECT count(*), count(DISTINCT checkout_id) FROM commands WHERE kind = 'reconcile'"
        )
        assert asked.fetchone() == (number, number)
