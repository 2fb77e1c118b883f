"""A shopper in a real browser: from the gateway's page back to the shop's, with the order completed behind
it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from playwright.sync_api import expect

# Two cores may be busy with a whole installation beside the browser.
expect.set_options(timeout=20_000)

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.support.world import World


def payment_page(world: World, checkout: str, kind: str) -> str:
    """Begin a payment as the shop's page would, and return where the gateway sends the shopper."""
    offer = world.checkout(checkout)
    method = next(option for option in offer["paymentMethods"] if option["type"] == kind)
    started = world.http.post(
        method["onInitiatePayment"]["value"],
        json={"paymentMethodId": method["id"], "sessionId": offer["session"]["id"]},
        headers={"Authorization": f"Bearer {offer['session']['token']}"},
    )
    assert started.is_success, started.text
    return str(started.json()["url"])


def fill_card(page: Page, number: str) -> None:
    page.locator("[name=card_number]").fill(number)
    page.locator("[name=expiry]").fill("12/39")
    page.locator("[name=cvc]").fill("444")
    page.locator("button[value=pay]").click()


def test_a_card_is_declined_and_another_card_pays(installation: World, page: Page):
    checkout = installation.order()
    installation.until_state(checkout, "awaiting_payment")
    url = payment_page(installation, checkout, "CARD")
    page.goto(url)
    fill_card(page, "4180000000000566")
    expect(page).to_have_url(re.compile(r"^https://shop\.example/sorry\?.*orderId=W-.*checkoutId="))
    page.goto(url)
    fill_card(page, "4111000011110000")
    expect(page).to_have_url(re.compile(r"^https://shop\.example/thanks\?.*orderId=W-.*checkoutId="))
    installation.until_state(checkout, "completed")
    installation.agree()


def test_three_d_secure_is_passed_on_the_issuers_page(installation: World, page: Page):
    checkout = installation.order()
    installation.until_state(checkout, "awaiting_payment")
    page.goto(payment_page(installation, checkout, "CARD"))
    fill_card(page, "4170000000000568")
    expect(page).to_have_url(re.compile("/3ds$"))
    page.locator("button[value=pass]").click()
    expect(page).to_have_url(re.compile(r"^https://shop\.example/thanks"))
    installation.until_state(checkout, "completed")
    installation.agree()


def test_the_bank_leaves_it_open_and_settles_it_later(installation: World, page: Page):
    checkout = installation.order()
    installation.until_state(checkout, "awaiting_payment")
    url = payment_page(installation, checkout, "BANK_PAYMENT")
    page.goto(url)
    sign_in = page.locator("button[value=sign_in]")
    if sign_in.count():
        sign_in.click()
    page.locator("button[value=open]").click()
    installation.until(
        lambda: installation.sql("SELECT 1 FROM payments WHERE meaning = 'open'"), "the open payment is seen"
    )
    installation.until_state(checkout, "awaiting_payment")
    page.goto(url)
    page.locator("button[value=notify_success]").click()
    installation.until_state(checkout, "completed")
    installation.agree()


def test_the_documentation_is_served_by_us_alone(installation: World, page: Page):
    elsewhere: list[str] = []
    page.on("requestfailed", lambda request: elsewhere.append(request.url))
    page.goto(f"{installation.api_url}/docs")
    expect(page.get_by_role("link", name="/v1/checkouts/{checkout_id}/cancel")).to_be_visible()
    assert elsewhere == []
