"""A person buys in the demo shop of `orchestrator up`: with JavaScript and without, by keyboard, and with
trouble on the way.

Every page on the way has nothing for axe-core, nothing wider than a phone, and no complaint of the browser,
such as a violation of its policy.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_payment_pages import fill_card
from tests.support.accessibility import AXE, Complaints, check
from tests.support.command import Running, _authorized, orchestrator, running
from tests.support.parties import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import CompletedProcess

expect.set_options(timeout=20_000)
BRISK = {
    "FIRST_CHECK_AFTER": "2", "RECHECK_AFTER_CALLBACK": "0.3", "SWEEP_INTERVAL": "0.3", "HINT_GRACE": "0.5", "RETRY_BASE": "0.3",
}  # fmt: skip
GOOD, DECLINED, CHALLENGED = "4111000011110000", "4180000000000566", "4170000000000568"


class Installation:
    """What `orchestrator up` started."""

    def __init__(self, up: Running) -> None:
        self.up = up
        settings = up.until_up()
        self.url: str = settings["public_url"]
        self.sandbox: str = settings["gateway_url"]
        self.shop: str = settings["demo_shop_url"]
        self.control = settings["sandbox_token"]
        self.http = httpx.Client(headers={"Authorization": _authorized(up.data_dir)}, timeout=20)

    def order(self, number: str) -> dict[str, Any]:
        (found,) = self.http.get(f"{self.url}/v1/checkouts", params={"orderId": number}).json()["checkouts"]
        shown: dict[str, Any] = self.http.get(f"{self.url}/v1/checkouts/{found['id']}").json()
        return shown


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    place = tmp_path_factory.mktemp("up") / "data"
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        started = Installation(up)
        yield started
        started.http.close()
        assert up.end() == 0, up.said


@pytest.fixture(name="complaints")
def _complaints(page: Page) -> Complaints:
    complaints = Complaints()
    complaints.watch(page)
    return complaints


def proceed(page: Page, installation: Installation, trouble: str = "None") -> str:
    """Go from the cart to the payment methods; return the order number."""
    page.goto(f"{installation.url}/shop")
    page.get_by_role("radio", name=trouble).check()
    page.get_by_role("button", name="Proceed to checkout").click()
    expect(page.get_by_role("radio", name="Card")).to_be_visible()
    return str(re.search(r"S-[0-9a-f]{12}", page.locator(".sum").inner_text())[0])  # type: ignore[index]


def choose_card(page: Page) -> None:
    page.get_by_role("radio", name="Card").check()
    page.get_by_role("button", name="Continue to payment").click()
    expect(page.locator("[name=card_number]")).to_be_visible()


def until_paid(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="Your payment is confirmed")).to_be_visible()


def lit(page: Page) -> set[str | None]:
    """Return the messages that have lit up in the diagrams."""
    return {each.get_attribute("data-step") for each in page.locator(".step.seen").all()}


def test_the_front_door_leads_to_everything(installation: Installation, page: Page, complaints: Complaints):
    # What the command prints first is the shop.
    printed = installation.up.said.partition("The orchestrator is up.")[2]
    assert (
        0
        < printed.index("Demo shop")
        < printed.index("Console")
        < printed.index("Front door")
        < printed.index("API")
    )
    page.goto(f"{installation.url}/")
    check(page, complaints)
    links = [str(link.get_attribute("href")) for link in page.get_by_role("link").all()]
    assert links[:2] == ["/shop", "/console"]
    for link in links:
        assert httpx.get(
            httpx.URL(installation.url).join(link), follow_redirects=True, timeout=20
        ).is_success, link
    page.goto(f"{installation.url}/misspelt")
    assert [text for text in complaints.said if "404" not in text] == []
    complaints.said.clear()
    expect(page.get_by_role("heading")).to_have_text("There is nothing at this address")
    check(page, complaints)
    problem = httpx.get(f"{installation.url}/misspelt", timeout=20)
    assert (problem.status_code, problem.headers["content-type"]) == (404, "application/problem+json")


def test_a_declined_card_then_three_d_secure_on_pages_that_are_sound(
    installation: Installation, page: Page, complaints: Complaints
):
    """The shopper reads the gateway's words, and focus is on the first error."""
    page.goto(f"{installation.url}/shop")
    check(page, complaints)
    number = proceed(page, installation)
    assert page.url.startswith(f"{installation.shop}/shop/orders/")
    check(page, complaints)
    page.get_by_role("button", name="Continue to payment").click()
    expect(page.get_by_role("alert")).to_have_text("Choose a payment method to continue.")
    expect(page.get_by_role("radio").first).to_be_focused()
    check(page, complaints)
    page.get_by_role("radio", name="Invoice").check()
    page.reload()
    expect(page.get_by_role("radio", name="Invoice")).to_be_checked()
    # What is seen so far, the whole offer: none of it names a secret.
    expect(page.locator('.step.seen[data-step="methods"]')).to_be_visible()
    offer = {"order", "intent", "authenticate", "token", "session", "payment-methods", "available", "methods"}
    assert offer <= lit(page)
    assert not lit(page) & {"payment", "page", "submit", "process", "result", "callback", "event"}
    said = page.locator(".messages").inner_text()
    order = installation.order(number)
    for secret in (order["session"]["token"], order["session"]["id"], "shopper@shop.example", "Bearer"):
        assert secret not in said
    choose_card(page)
    check(page, complaints)
    fill_card(page, DECLINED)
    # With the gateway's words where its signed callback came before the lookup (docs/events.md).
    alert = page.get_by_role("alert").filter(has_text="The payment was not completed")
    expect(alert).to_be_visible()
    expect(alert).to_be_focused()
    expect(page.locator('.step.lost[data-step="result"]')).to_be_visible()
    check(page, complaints)
    choose_card(page)
    fill_card(page, CHALLENGED)
    check(page, complaints)
    page.locator("button[value=pass]").click()
    until_paid(page)
    assert "/success" in page.url
    expect(page.locator('.step.seen[data-step="event"]')).to_be_visible()
    check(page, complaints)
    assert lit(page) >= {
        "order",
        "intent",
        "authenticate",
        "session",
        "methods",
        "payment",
        "page",
        "submit",
        "process",
    }
    page.goto(page.url.rpartition("/")[0] + "/watch")
    expect(page.locator("[data-payment-status]")).to_have_text("authorized")
    check(page, complaints)
    assert installation.order(number)["money"]["reserved"] == 139


def test_the_pages_of_the_sandbox_are_for_people(
    installation: Installation, page: Page, complaints: Complaints
):
    """The link that the command prints opens them; the addresses of the others have no token."""
    number = proceed(page, installation, "The gateway is down")
    page.goto(f"{installation.sandbox}/sandbox/ledger?token={installation.control}")
    expect(page.get_by_role("heading", name=number)).to_be_visible()
    check(page, complaints)
    page.context.clear_cookies()
    page.goto(f"{installation.url}/shop")
    number = proceed(page, installation)
    page.get_by_role("link", name="This order in the ledger of the gateway").click()
    expect(page.get_by_role("heading", name=f"Order {number}")).to_be_visible()
    check(page, complaints)
    page.goto(f"{installation.sandbox}/sandbox/ledger?orderId={number}")
    expect(page.get_by_role("heading")).to_have_text("Open the ledger by its link first")
    assert ["401" in text for text in complaints.said] == [True]
    complaints.said.clear()
    check(page, complaints)
    page.goto(f"{installation.sandbox}/sandbox/ledger?token={installation.control}")
    for path in ("/", "/sandbox/faults", f"/sandbox/ledger?orderId={number}"):
        assert page.goto(installation.sandbox + path).status == 200  # type: ignore[union-attr]
        check(page, complaints)


def test_a_person_buys_with_the_keyboard_alone(
    installation: Installation, page: Page, complaints: Complaints
):
    def tab_to(name: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            said = page.evaluate(
                "document.activeElement.labels?.[0]?.textContent || document.activeElement.textContent"
            )
            if name in said:
                return
        raise AssertionError(f"no way to {name!r} by Tab")

    page.goto(f"{installation.url}/shop")
    tab_to("Proceed to checkout")
    page.keyboard.press("Enter")
    expect(page.get_by_role("radio", name="Card")).to_be_visible()
    tab_to("Card")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")  # one group: the next method
    expect(page.get_by_role("radio").nth(1)).to_be_checked()
    page.keyboard.press("ArrowUp")
    tab_to("Continue to payment")
    page.keyboard.press("Enter")
    expect(page.locator("[name=card_number]")).to_be_visible()
    tab_to("Card number")
    page.keyboard.type(GOOD)
    page.keyboard.press("Tab")
    page.keyboard.type("12/39")
    page.keyboard.press("Tab")
    page.keyboard.type("123")
    page.keyboard.press("Enter")
    until_paid(page)
    assert complaints.said == []


@pytest.mark.parametrize(
    ("trouble", "ways"),
    [
        ("Callbacks are lost", {"callback": "lost", "payments": "seen"}),
        ("Callbacks are doubled", {"callback": "seen"}),
        pytest.param("Callbacks are late", {"callback": "seen"}, marks=pytest.mark.slow),
        ("The gateway is down", {"session": "lost"}),
        ("A second tab pays too", {"payments": "seen"}),
    ],
)
def test_trouble_on_the_way_is_mended_and_shown(installation: Installation, page: Page, trouble, ways):
    complaints = Complaints()
    complaints.watch(page)
    number = proceed(page, installation, trouble)
    expect(page.locator(".note b")).to_have_text(f"{trouble}.")
    expect(page.get_by_role("link", name="watch it in another window")).to_be_visible()
    choose_card(page)
    expect(page.locator("[name=expiry]")).to_have_value("12/39")
    page.get_by_role("button", name="Fill in 4111 0000 1111 0000, approved").click()
    expect(page.locator("[name=card_number]")).to_have_value("4111 0000 1111 0000")
    page.locator("button[value=pay]").click()
    if trouble == "Callbacks are lost":
        page.get_by_role("link", name="Continue to the shop").click()
    until_paid(page)
    past = re.sub(" (are|is) ", lambda now: {"are": " were ", "is": " was "}[now[1]], trouble)
    expect(page.locator(".note b")).to_have_text(f"{past}.")
    expect(page.get_by_role("link", name="watch it in another window")).to_have_count(0)
    expect(page.get_by_role("link", name="Continue", exact=True)).not_to_be_visible()
    for step, mark in ways.items():
        expect(page.locator(f'.step.{mark}[data-step="{step}"]')).to_be_visible()
    if trouble == "A second tab pays too":
        expect(page.locator(".messages")).to_contain_text("the second tab pays")
        installation.up.until(
            lambda: any(payment["role"] == "surplus" for payment in installation.order(number)["payments"]),
            "the second payment is known as surplus",
        )
        assert installation.order(number)["attention"] is not None
        for step in ("second-tab", "second-callback", "second-payments", "surplus"):
            expect(page.locator(f'.step.seen[data-step="{step}"]')).to_be_visible()
        expect(page.locator('.step.seen[data-step="surplus-returned"]')).to_have_count(0)
        returned = orchestrator(
            "checkouts", "resolve", number, "return", "--yes", "--data-dir", installation.up.data_dir
        )
        assert returned.returncode == 0, returned.stderr
        expect(page.locator('.step.seen[data-step="surplus-returned"]')).to_be_visible()
        expect(page.locator(".messages")).to_contain_text("event: surplus payment returned")
        watch = page.context.new_page()
        watch.goto(re.sub("/success.*", "/watch", page.url))
        expect(watch.locator("[data-payment-status]")).to_have_text("authorized; surplus payment returned")
        watch.close()
        decide = page.get_by_role("link", name="Decide it in the console").get_attribute("href")
        assert decide == f"{installation.url}/console/orders?name={number}"
    assert installation.order(number)["money"]["reserved"] == 139
    assert complaints.said == []


def test_a_shopper_who_cancels_reads_so_and_may_pay_again(
    installation: Installation, page: Page, complaints: Complaints
):
    proceed(page, installation)
    choose_card(page)
    page.locator("button[value=cancel]").click()
    expect(page.get_by_role("heading", name="Your payment was not completed")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("Cancelled by the customer")
    choose_card(page)
    fill_card(page, GOOD)
    until_paid(page)
    assert complaints.said == []


def test_the_way_without_javascript(installation: Installation, page: Page):
    assert page.context.browser is not None
    context = page.context.browser.new_context(java_script_enabled=False)
    plain = context.new_page()
    plain.goto(f"{installation.url}/shop")
    plain.get_by_role("button", name="Proceed to checkout").click()
    for _ in range(50):
        plain.wait_for_load_state()  # what is counted does not wait for the document
        if plain.get_by_role("radio", name="Card").count():
            break
        plain.wait_for_timeout(100)
        plain.get_by_role("link", name="show it again").click()
    plain.get_by_role("radio", name="Card").check()
    plain.get_by_role("button", name="Continue to payment").click()
    fill_card(plain, GOOD)
    for _ in range(50):
        # Locators read no text in <noscript>.
        if "Your payment is confirmed" in plain.content():
            break
        plain.wait_for_timeout(100)
        plain.reload()
    assert "Your payment is confirmed" in plain.content()
    context.close()


def test_the_shop_takes_no_event_that_it_cannot_verify(installation: Installation):
    def forged() -> httpx.Response:
        return httpx.post(
            f"{installation.shop}/shop/webhooks",
            json={"subject": "x", "data": {"orderId": "S-1"}},
            headers={"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"},
            timeout=20,
        )

    # `up` waits for the shop's pages and not for its registration; until that is done the shop answers 503.
    answer = until(lambda: answer if (answer := forged()).status_code != 503 else None, seconds=30)
    assert answer.status_code == 401


@pytest.mark.slow
def test_after_a_restart_the_shop_takes_its_events_without_a_visit(tmp_path: Path):
    place = tmp_path / "data"
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        url = up.until_up()["demo_shop_url"]
        ordered = httpx.post(f"{url}/shop/orders", data={"cart": "x" * 22}, timeout=20)
        assert ordered.status_code == 303
        assert up.end() == 0, up.said
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        assert up.until_up()["demo_shop_url"] == url

        def webhooks(*words: str) -> CompletedProcess[str]:
            return orchestrator("webhooks", *words, "--merchant", "default", "--data-dir", place)

        (webhook,) = json.loads(webhooks("list", "--json").stdout)
        assert webhook["url"] == f"{url}/shop/webhooks"
        # The shop registers beside all else that starts; until then it answers 503, and deliveries wait.
        tested = until(
            lambda: done if "HTTP 503" not in (done := webhooks("test", webhook["id"])).stdout else None,
            seconds=30,
        )
        assert (tested.returncode, "HTTP 204" in tested.stdout) == (0, True), tested.stdout
        assert up.end() == 0, up.said


def test_the_vendored_axe_core_is_the_one_that_is_named():
    digest = b64encode(hashlib.sha384(AXE.read_bytes()).digest()).decode()
    assert f"`{digest}`" in (AXE.parent / "README.md").read_text()
