"""checkout.js in a page with the printed policy, against answers that no installation would give at once."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from orchestrator.api import static_files
from tests.support.accessibility import Complaints, violations

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route

API, GATEWAY, SHOP = "https://pay.example", "https://gateway.example", "https://shop.example/checkout"
OPEN = {"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*"}
SCRIPT = static_files.newest()
EVIL = '<img src=x onerror="document.title=1">'
CHECKOUT = {
    "id": "c-1", "state": "ready", "paymentStatus": "unpaid", "final": False, "deadline": "2030-01-01T00:00:00Z",
    "declined": None, "nextUrl": None,
}  # fmt: skip


def method(name: str, kind: str = "CARD") -> dict[str, Any]:
    start = {"type": "URL", "value": f"{GATEWAY}/initiate/{name}"}
    return {"id": name, "type": kind, "name": name, "description": EVIL, "logoUrl": "javascript:alert(1)", "onInitiatePayment": start}  # fmt: skip


class Answers:
    """What API and gateway answer, and what they were asked."""

    def __init__(self, page: Page, *, mounted: bool = True, api: str = API, **status: Any) -> None:
        self.status: dict[str, Any] = CHECKOUT | status
        self.api = api
        self.code, self.stream, self.session = 200, 200, 200
        self.lang = "en"
        self.asked: list[str] = []
        self.complaints = Complaints()
        self._data = f'data-checkout="c-1" data-client-token="t" data-api="{API}"' if mounted else ""
        self.complaints.watch(page)
        # The last route that matches answers.
        for origin in {API, api}:
            page.route(f"{origin}/**", self._api)
        page.route(f"{GATEWAY}/**", self._gateway)
        page.route(f"{SHOP}*", self._page)

    def _page(self, route: Route) -> None:
        address = f"{API}{static_files.PREFIX}{SCRIPT.name}"
        body = (
            f'<!doctype html><html lang="{self.lang}"><meta charset="utf-8"><title>Checkout</title><main><h1>Checkout</h1>'
            f"<div {self._data}></div></main>"
            f'<script src="{address}" integrity="{SCRIPT.integrity}" crossorigin="anonymous" defer></script>'
        )
        policy = static_files.policy(SCRIPT, api=self.api, gateways=[GATEWAY])
        route.fulfill(content_type="text/html", body=body, headers={"Content-Security-Policy": policy})

    def _api(self, route: Route) -> None:
        end = route.request.url.rpartition("/")[2]
        if end == SCRIPT.name:
            route.fulfill(body=SCRIPT.body, content_type="text/javascript", headers=OPEN)
            return
        self.asked.append(end)
        if self.code == 0:
            route.abort()
        elif end == "session":
            body = {"id": "s-1", "token": "gateway-token", "expiresAt": "2030-01-01T00:00:00Z"}
            route.fulfill(status=self.session, json=body, headers=OPEN)
        elif end == "status":
            route.fulfill(status=self.code, json=self.status, headers=OPEN)
        elif self.code == self.stream == 200:
            text = f"id: {len(self.asked)}\nevent: status\ndata: {json.dumps(self.status)}\n\n"
            route.fulfill(content_type="text/event-stream", body=text, headers=OPEN)
        else:
            route.fulfill(status=max(self.code, self.stream), headers=OPEN)

    def _gateway(self, route: Route) -> None:
        if route.request.method == "GET":
            route.fulfill(content_type="text/html", body="<h1>The payment page</h1>")
            return
        self.asked.append("initiate")
        assert route.request.headers.get("authorization") in {None, "Bearer gateway-token"}
        route.fulfill(json={"paymentId": "p-1", "url": f"{GATEWAY}/page"}, headers=OPEN)


def test_each_wallet_is_probed_by_itself_and_text_is_never_markup(page: Page):
    listed = [
        method("Card"),
        method("Apple Pay", "APPLE_PAY"),
        method("Broken", "GOOGLE_PAY"),
        method(EVIL),
    ]
    answers = Answers(page, paymentMethods=listed)
    # A probe that never answers, and one that throws: each hides its own row.
    page.add_init_script(
        "window.ApplePaySession = {canMakePayments() { throw new Error('no') }}; delete window.PaymentRequest;"
    )
    page.goto(SHOP)
    expect(page.get_by_role("radio")).to_have_count(2)
    assert violations(page) == []
    assert page.title() == "Checkout"
    assert page.locator(".checkout img").count() == 0
    expect(page.locator(".checkout-name").last).to_have_text(EVIL)
    # Without any other way the payment page takes the wallets too.
    answers.status = answers.status | {"paymentMethods": [method("Apple Pay", "APPLE_PAY")]}
    expect(page.get_by_role("radio", name="Apple Pay")).to_be_checked()
    # That there is no method is said while there is none.
    answers.status = answers.status | {"paymentMethods": []}
    expect(page.get_by_role("alert")).to_have_text("No payment method is available for this order.")
    answers.status = answers.status | {"paymentMethods": listed}
    expect(page.get_by_role("radio")).to_have_count(2)
    expect(page.get_by_role("alert")).to_have_count(0)
    assert answers.complaints.said == []


def test_a_payment_page_that_was_opened_is_opened_again_and_no_second_payment_made(page: Page):
    answers = Answers(page, paymentMethods=[method("Card"), method("Bank")])
    for _ in range(2):
        page.goto(SHOP)
        page.get_by_role("radio", name="Card").check()
        page.get_by_role("button").click()
        expect(page.get_by_role("heading")).to_have_text("The payment page")
    assert answers.asked.count("initiate") == 1
    page.goto(SHOP)
    expect(page.get_by_role("radio", name="Card")).to_be_checked()
    page.get_by_role("radio", name="Bank").check()
    page.get_by_role("button").click()
    expect(page.get_by_role("heading")).to_have_text("The payment page")
    assert answers.asked.count("initiate") == 2
    # After a declined attempt the page of before is of no use.
    answers.status = answers.status | {"declined": {"reason": "Card Declined", "at": "2029-01-01T00:00:00Z"}}
    page.goto(SHOP)
    expect(page.get_by_role("alert")).to_contain_text("Card Declined. You can try again")
    page.get_by_role("button").click()
    expect(page.get_by_role("heading")).to_have_text("The payment page")
    assert answers.asked.count("initiate") == 3


CHANGED = [{"deadline": "2030-01-01T00:09:00Z"}, {"deadline": "2029-12-31T23:00:00Z"}]


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "not shown yet"])
def test_a_changed_order_is_paid_on_a_new_page_although_its_session_is_the_same(page: Page, shown):
    """An order whose amount is changed keeps its session, and is offered again with another deadline."""
    answers = Answers(page, paymentMethods=[method("Card")])
    for number, change in enumerate([{}, *CHANGED], start=1):
        if shown:
            answers.status = answers.status | change
        page.goto(SHOP)
        expect(page.get_by_role("radio", name="Card")).to_be_checked()
        # The page may show the state of before, where a stream is slow.
        answers.status = answers.status | change
        for _ in range(2):
            page.get_by_role("button").click()
            expect(page.get_by_role("heading")).to_have_text("The payment page")
            assert answers.asked.count("initiate") == number
            page.goto(SHOP)
            expect(page.get_by_role("radio", name="Card")).to_be_checked()


HELD = """(() => {
    const real = fetch;
    // The stream stays open, and has said no more than how long to wait before the next.
    const body = () => new ReadableStream({start: (to) => to.enqueue(new TextEncoder().encode("retry: 2000\\n\\n"))});
    globalThis.fetch = (address, asked) =>
        globalThis.held && address.endsWith("/stream") ? Promise.resolve(new Response(body())) : real(address, asked);
})()"""


def test_a_lost_connection_is_said_until_the_stream_runs_and_takes_no_alert_away(page: Page):
    declined = {"reason": "Card Declined", "at": "2029-01-01T00:00:00Z"}
    answers = Answers(page, paymentMethods=[method("Card")], declined=declined)
    page.add_init_script(HELD)
    page.clock.install()
    page.goto(SHOP)
    state, alert = page.get_by_role("status"), page.get_by_role("alert")
    expect(alert).to_contain_text("Card Declined")
    expect(state).to_have_text("Ready for payment.")
    answers.code = 0
    asked = len(answers.asked)

    def until_said(text: str) -> None:
        for _ in range(200):
            if state.text_content() == text:
                return
            page.clock.run_for(2000)
        expect(state).to_have_text(text)

    until_said("The connection was lost. We keep trying.")
    expect(alert).to_contain_text("Card Declined")
    page.evaluate("globalThis.held = true")
    until_said("Ready for payment.")
    expect(alert).to_contain_text("Card Declined")
    # Two streams and four times /status, then the stream that stays.
    assert answers.asked[asked:] == ["stream"] * 2 + ["status"] * 4


CLOSED = """addEventListener("DOMContentLoaded", () => {
    const root = document.querySelector("main div");
    const view = OrchestratorCheckout.mount(root, {id: "c-1", clientToken: "t"});
    root.addEventListener("checkout:initiate", () => view.close());
    root.addEventListener("checkout:redirect", () => { document.title = "led away"; });
});"""


def test_a_view_that_is_closed_leads_nowhere_and_asks_the_pages_own_origin_without_another(page: Page):
    answers = Answers(page, mounted=False, api="https://shop.example", paymentMethods=[method("Card")])
    page.add_init_script(CLOSED)
    page.goto(f"{SHOP}?step=2")
    page.get_by_role("button").click()
    expect(page.get_by_role("button")).to_have_count(0)
    page.wait_for_timeout(500)
    assert answers.asked.count("initiate") == 1
    assert (page.title(), page.url) == ("Checkout", f"{SHOP}?step=2")
    assert answers.complaints.said == []


WALLET = """addEventListener("DOMContentLoaded", () => {
    let times = 0;
    const pay = async ({payment}) => {
        times += 1;
        document.querySelector("h1").textContent = `${payment.paymentId} ${times}`;
        if (times > 1) throw new Error("no money in this wallet");
    };
    OrchestratorCheckout.mount(document.querySelector("main div"), {
        id: "c-1", clientToken: "t", api: "https://pay.example", texts: {pay: "Pay now"},
        wallets: {SHOP_WALLET: {probe: async () => true, pay}},
    });
});"""


def test_the_wallet_of_a_shop_pays_in_the_page_and_the_payment_page_is_the_way_when_it_fails(page: Page):
    answers = Answers(page, mounted=False, paymentMethods=[method("Wallet", "SHOP_WALLET"), method("Card")])
    page.add_init_script(f"if (location.href === '{SHOP}') {{ {WALLET} }}")
    page.goto(SHOP)
    page.get_by_role("radio", name="Wallet").check()
    page.get_by_role("button", name="Pay now").click()
    expect(page.get_by_role("heading")).to_have_text("p-1 1")
    page.get_by_role("button", name="Pay now").click()
    expect(page.get_by_role("heading")).to_have_text("The payment page")
    assert answers.asked.count("initiate") == 1
    assert answers.complaints.said == []


def test_a_start_that_fails_is_said_and_the_shopper_may_try_again(page: Page):
    answers = Answers(page, paymentMethods=[method("Card")])
    answers.session = 409
    page.goto(SHOP)
    page.get_by_role("button").click()
    expect(page.get_by_role("alert")).to_contain_text("could not be started")
    expect(page.get_by_role("alert")).to_be_focused()
    expect(page.get_by_role("button")).to_be_enabled()
    answers.session = 200
    page.get_by_role("button").click()
    expect(page.get_by_role("heading")).to_have_text("The payment page")


def test_without_a_stream_the_status_is_asked_for_and_the_end_is_shown(page: Page):
    answers = Answers(page, paymentMethods=[method("Card")])
    answers.stream = 503
    page.goto(SHOP)
    expect(page.get_by_role("radio", name="Card")).to_be_visible(timeout=30_000)
    assert answers.asked.index("status") == 2
    # The connection is there: nothing about it was said.
    expect(page.locator(".checkout-alert")).to_have_text("")
    answers.status = answers.status | {
        "state": "completed",
        "final": True,
        "nextUrl": "https://shop.example/thanks",
    }
    expect(page.get_by_role("status")).to_have_text("Your payment is confirmed. Thank you.", timeout=30_000)
    expect(page.get_by_role("link", name="Continue")).to_have_attribute("href", "https://shop.example/thanks")
    expect(page.get_by_role("radio")).to_have_count(0)
    asked = len(answers.asked)
    page.wait_for_timeout(1500)
    assert len(answers.asked) == asked  # nothing is asked once it has ended


SAID = {
    "da-DK": "Fortsæt til betaling", "sv": "Fortsätt till betalning", "no": "Fortsett til betaling",
    "de": "Weiter zur Zahlung", "xx": "Continue to payment",
}  # fmt: skip


def test_the_language_is_the_pages_own_and_a_token_that_opens_nothing_ends_it(page: Page):
    answers = Answers(page, paymentMethods=[method("Card")])
    for answers.lang, said in SAID.items():
        page.goto(SHOP)
        expect(page.get_by_role("button")).to_have_text(said)
    answers.code = 401
    expect(page.get_by_role("alert")).to_have_text("This checkout is not available any more.")
    expect(page.get_by_role("button")).to_have_count(0)
