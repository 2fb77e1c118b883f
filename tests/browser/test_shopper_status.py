"""A shop's page in a real browser follows its checkout with the client token, from an origin of its own."""

from __future__ import annotations

import base64
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from playwright.sync_api import expect
from pydantic import SecretStr

from orchestrator import callback_urls
from orchestrator.crypto import Encryptor
from tests.browser.test_payment_pages import fill_card, payment_page
from tests.conftest import SECRET_KEY
from tests.support.world import world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

    from tests.support.world import World

EXAMPLE = re.search(r"```js\n(.*?)```", (Path(__file__).parents[2] / "docs/access.md").read_text(), re.DOTALL)
"""The loop that the documentation gives to shops."""


@contextmanager
def shop() -> Iterator[str]:
    """Serve an empty page, from an origin of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>shop</title><p>The shop")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(name="origin")
def _origin() -> Iterator[str]:
    with shop() as origin:
        yield origin


@pytest.fixture
def installation(servers, database_url, tmp_path_factory, origin) -> Iterator[World]:
    place = tmp_path_factory.mktemp("world")
    with world(
        servers,
        database_url,
        place,
        gateway_secrets=["0123456789abcdef"],
        browser_origins=[origin],
        hsts_max_age=0,
    ) as started:
        started.start_all()
        yield started


def client_token(checkout: str) -> str:
    assert base64.b64decode(SECRET_KEY)
    return callback_urls.client_token(Encryptor([SecretStr(SECRET_KEY)]), UUID(checkout))


def test_a_page_of_the_shop_follows_its_checkout_from_the_offer_to_the_money(
    installation, page: Page, origin
):
    checkout = installation.order()
    installation.until_state(checkout, "awaiting_payment")
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(origin)
    assert EXAMPLE is not None
    page.evaluate(
        f"""([api, id, token]) => {{
            globalThis.API = api;
            globalThis.seen = [];
            {EXAMPLE[1]}
            globalThis.ended = false;
            follow(id, token, (status) => seen.push(status)).then(() => (globalThis.ended = true));
        }}""",
        [installation.api_url, checkout, client_token(checkout)],
    )
    page.wait_for_function("seen.length > 0")
    first = page.evaluate("seen[0]")
    assert (first["state"], first["final"]) == ("ready", False)
    assert first["paymentMethods"]
    assert page.context.browser is not None
    other = page.context.browser.new_page()
    url = payment_page(installation, checkout, "CARD")
    other.route(
        re.compile("^https://shop.example/"), lambda route: route.fulfill(body="<h1>The shop's own page</h1>")
    )
    other.goto(url)
    fill_card(other, "4180000000000566")
    page.wait_for_function("seen.some((status) => status.declined)")
    expect(other).to_have_url(re.compile(r"^https://shop\.example/sorry"))
    other.goto(url)
    fill_card(other, "4111000011110000")
    page.wait_for_function("ended")
    last = page.evaluate("seen[seen.length - 1]")
    assert (last["state"], last["paymentStatus"], last["final"]) == ("completed", "authorized", True)
    assert last["nextUrl"].startswith("https://shop.example/thanks")
    assert errors == []


READ = """async ([url, token]) => {
    try {
        const answer = await fetch(url, {headers: {Authorization: `Bearer ${token}`}});
        return [answer.status, answer.headers.get("RateLimit")];
    } catch (error) { return String(error); }
}"""


def test_no_other_origin_and_no_other_address_is_open_to_a_page(installation, page: Page, origin):
    checkout = installation.order()
    token, own = client_token(checkout), f"{installation.api_url}/v1/checkouts/{checkout}"
    page.goto(origin)
    status, left = page.evaluate(READ, [f"{own}/status", token])
    assert status == 200
    assert left.startswith('"client-token"')
    assert page.evaluate(READ, [f"{own}/status", "A" * 43])[0] == 401  # an error can be read, too
    for closed in (
        own,
        f"{own}/explain",
        f"{installation.api_url}/v1/checkouts",
        f"{installation.api_url}/healthz",
    ):
        assert "Failed to fetch" in page.evaluate(READ, [closed, token]), closed
    with shop() as stranger:
        page.goto(stranger)
        for end in ("status", "stream"):
            assert "Failed to fetch" in page.evaluate(READ, [f"{own}/{end}", token])


def test_no_page_frames_the_documentation_and_it_needs_no_other_source(installation, page: Page, origin):
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(origin)
    page.evaluate(
        """(url) => new Promise((resolve) => {
            const frame = document.createElement("iframe");
            frame.src = url;
            frame.onload = resolve;
            document.body.append(frame);
        })""",
        f"{installation.api_url}/docs",
    )
    page.wait_for_timeout(500)
    assert any("frame-ancestors" in text for text in refused), refused
    refused.clear()
    page.goto(f"{installation.api_url}/docs")
    expect(page.get_by_role("link", name="/v1/checkouts/{checkout_id}/stream")).to_be_visible()
    assert not [text for text in refused if "Content Security Policy" in text], refused
