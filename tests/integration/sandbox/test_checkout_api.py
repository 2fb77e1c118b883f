"""The Checkout API answers as part 1 of the gateway facts has it."""

from __future__ import annotations

import dataclasses
import time
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import jwt
import pytest

from orchestrator.devkit.sandbox import create_app
from tests.support.parties import CONFIG, Gateway, Merchant, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

API = "/checkout/v1/api"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15 Version/18.0 Mobile/15E148 Safari/604.1"
MAC_SAFARI = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/18.0 Safari/605.1.15"
)
MAC_CHROME = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 Chrome/131.0.0.0 Safari/537.36"
)
ANDROID = "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/131.0.0.0 Mobile Safari/537.36"


def test_a_token_is_an_rs256_jwt_with_the_seven_documented_claims(gateway):
    token = gateway.token()
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "typ": "JWT"}
    claims = jwt.decode(token, options={"verify_signature": False})
    assert set(claims) == {"iss", "upn", "groups", "authId", "iat", "exp", "jti"}
    assert claims["iss"] == "AltaPay Issuer"
    assert claims["upn"] == "checkout_api"
    assert claims["groups"] == ["SessionUpdate", "ExecutePayment", "ListPaymentMethods"]
    assert claims["exp"] - claims["iat"] == 1800
    assert uuid.UUID(claims["authId"])
    assert uuid.UUID(claims["jti"])


def test_every_authentication_gives_another_token(gateway):
    assert gateway.token() != gateway.token()


@pytest.mark.parametrize(
    "body",
    [{}, {"json": {}}, {"data": {"userName": "shop", "password": "x"}}],
    ids=["none", "json", "form"],
)
def test_authenticate_takes_every_body_that_clients_send(gateway, body):
    assert gateway.http.post(f"{API}/authenticate", auth=gateway.basic, **body).json()["token"]


@pytest.mark.parametrize("header", [None, "Basic !!!", "Basic c2hvcDp3cm9uZw==", "Bearer x"])
def test_wrong_credentials_get_401(gateway, header):
    answer = gateway.http.post(f"{API}/authenticate", headers={"authorization": header} if header else {})
    assert answer.status_code == 401
    assert answer.json()["status"] == 401


def test_a_session_echoes_what_it_was_given(gateway, order):
    content = gateway.intent(order)
    answer = gateway.http.post(f"{API}/session", json=content, headers=gateway.bearer).json()
    assert uuid.UUID(answer.pop("sessionId"))
    assert answer == {"context": {"browser": {}}, **content}


def test_an_empty_post_gives_an_empty_session_that_a_put_fills(gateway, order):
    session = gateway.http.post(f"{API}/session", headers=gateway.bearer).json()["sessionId"]
    assert gateway.methods(session) == {}
    filled = gateway.http.put(f"{API}/session/{session}", json=gateway.intent(order), headers=gateway.bearer)
    assert filled.json()["sessionId"] == session
    assert "CARD" in gateway.methods(session)


def test_a_put_changes_order_number_and_amount_and_keeps_the_rest(gateway, order):
    session = gateway.session(f"basket-{order}")
    change = {"order": {"orderId": order, "amount": {"value": 200.5}}}
    answer = gateway.http.put(f"{API}/session/{session}", json=change, headers=gateway.bearer).json()
    assert answer["order"]["amount"] == {"value": 200.5, "currency": "DKK"}
    assert answer["order"]["customer"]["firstName"] == "Kim"
    assert gateway.payment(session)["shopOrderId"] == order
    assert gateway.ledger(order)[0]["amountMinor"] == 20050


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("order__orderId", "", "orderId"),
        ("order__orderId", "x" * 101, "orderId"),
        ("order__amount", 139, "order.amount"),
        ("order__amount__value", "139.00", "value"),
        ("order__amount__value", 10.005, "decimals"),
        ("order__amount__value", 0, "value"),
        ("order__amount__value", True, "value"),
        ("order__amount__currency", "KRONER", "currency"),
        ("order__amount__currency", "XQQ", "XQQ"),
        ("order__orderLines", None, "orderLines"),
        ("order__orderLines", [{"description": "Cap", "quantity": 1}], "orderLines[0].unitPrice"),
        ("order__customer", None, "customer"),
        ("order__transactionInfo", {"a": 1}, "transactionInfo"),
        ("order__transactionInfo", {"a": "x" * 256}, "transactionInfo"),
        ("configuration", {}, "paymentType"),
        ("callbacks__bodyFormat", "YAML", "bodyFormat"),
        ("callbacks__bodyFormat", {"a": 1}, "bodyFormat"),
        ("callbacks__notification", 7, "notification"),
        ("callbacks", [], "callbacks"),
    ],
)
def test_a_wrong_session_is_refused_with_its_field(gateway, path, value, named):
    content = gateway.intent("wrong", **{path: value})
    answer = gateway.http.post(f"{API}/session", json=content, headers=gateway.bearer)
    assert answer.status_code == 400
    assert named in answer.json()["message"]


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_a_body_that_is_no_json_object_is_refused(gateway, raw):
    assert gateway.http.post(f"{API}/session", content=raw, headers=gateway.bearer).status_code == 400


def test_a_body_beyond_the_limit_is_refused(gateway):
    answer = gateway.http.post(f"{API}/session", content=b" " * 1_000_001, headers=gateway.bearer)
    assert answer.status_code == 413


def test_an_unknown_session_is_404_everywhere(gateway):
    unknown = str(uuid.uuid4())
    headers = gateway.bearer
    assert gateway.http.put(f"{API}/session/{unknown}", json={}, headers=headers).status_code == 404
    assert gateway.http.get(f"{API}/session/{unknown}/payment-methods", headers=headers).status_code == 404
    assert (
        gateway.http.post(f"{API}/payment", json={"sessionId": unknown}, headers=headers).status_code == 404
    )


def test_calls_without_a_good_token_are_401(gateway, order):
    session = gateway.session(order)
    foreign = jwt.encode(
        {"iss": "AltaPay Issuer", "exp": time.time() + 99, "iat": time.time()}, "x" * 32, "HS256"
    )
    for headers in ({}, {"authorization": "Bearer nonsense"}, {"authorization": f"Bearer {foreign}"}):
        assert gateway.http.post(f"{API}/session", headers=headers).status_code == 401
        assert gateway.http.put(f"{API}/session/{session}", headers=headers).status_code == 401
        assert (
            gateway.http.get(f"{API}/session/{session}/payment-methods", headers=headers).status_code == 401
        )
        assert (
            gateway.http.post(f"{API}/payment", json={"sessionId": session}, headers=headers).status_code
            == 401
        )


@contextmanager
def of_its_own(merchant: Merchant, token_seconds: int) -> Iterator[Gateway]:
    """A sandbox whose tokens no other test holds."""
    with serving(create_app(dataclasses.replace(CONFIG, token_seconds=token_seconds))) as url:
        gateway = Gateway(url, merchant)
        yield gateway
        gateway.http.close()


@pytest.fixture
def short_lived(merchant: Merchant) -> Iterator[Gateway]:
    with of_its_own(merchant, token_seconds=3) as gateway:
        yield gateway


def test_a_token_dies_when_its_time_is_over(short_lived):
    headers = {"authorization": f"Bearer {short_lived.token()}"}
    assert short_lived.http.post(f"{API}/session", headers=headers).status_code == 200
    time.sleep(3.1)
    assert short_lived.http.post(f"{API}/session", headers=headers).status_code == 401


def test_all_tokens_can_be_made_stale_at_once(merchant):
    with of_its_own(merchant, token_seconds=600) as gateway:
        old = {"authorization": f"Bearer {gateway.token()}"}
        gateway.control("POST", "tokens/expire")
        assert gateway.http.post(f"{API}/session", headers=old).status_code == 401
        new = {"authorization": f"Bearer {gateway.token()}"}
        assert gateway.http.post(f"{API}/session", headers=new).status_code == 200


def test_methods_carry_the_documented_fields(gateway, order):
    method = gateway.methods(gateway.session(order))["CARD"]
    fields = "id type name description logoUrl display onInitiatePayment onRenderCheck metadata"
    assert set(method) == set(fields.split())
    assert method["onInitiatePayment"]["value"].startswith(f"{gateway.url}/checkout/v1/api/payment")
    assert method["metadata"] == {"terminalName": "Sandbox Card Terminal"}
    assert gateway.http.get(method["logoUrl"]).headers["content-type"].startswith("image/svg+xml")


@pytest.mark.parametrize(
    ("amount", "currency", "country", "offered"),
    [
        (139.0, "DKK", "DK", {"CARD", "BANK_PAYMENT", "MOBILE_WALLET", "INVOICE"}),
        (99.99, "DKK", "DK", {"CARD", "BANK_PAYMENT", "MOBILE_WALLET"}),
        (10000.0, "DKK", "DK", {"CARD", "BANK_PAYMENT", "MOBILE_WALLET", "INVOICE"}),
        (10000.01, "DKK", "DK", {"CARD", "BANK_PAYMENT", "MOBILE_WALLET"}),
        (139.0, "EUR", "DE", {"CARD", "BANK_PAYMENT"}),
        (139.0, "USD", "DK", {"CARD"}),
        (139.0, "EUR", "US", {"CARD"}),
    ],
)
def test_methods_depend_on_country_currency_and_order_size(*, gateway, amount, currency, country, offered):
    session = gateway.session(
        f"filter-{country}-{currency}-{amount}",
        amount,
        currency,
        order__customer__billingAddress={"country": country},
    )
    assert set(gateway.methods(session)) == offered


@pytest.mark.parametrize(
    ("user_agent", "offered"),
    [
        (IPHONE, {"APPLE_PAY"}),
        (MAC_SAFARI, {"APPLE_PAY"}),
        (MAC_CHROME, set()),
        (ANDROID, {"ANDROID_WALLET"}),
    ],
    ids=["iphone", "mac-safari", "mac-chrome", "android"],
)
def test_wallets_of_a_device_are_shown_on_that_device_only(gateway, order, user_agent, offered):
    methods = gateway.methods(gateway.session(order), user_agent=user_agent)
    assert set(methods) & {"APPLE_PAY", "ANDROID_WALLET"} == offered


def test_a_payment_answers_with_the_documented_fields_and_an_absolute_url(gateway, order):
    payment = gateway.payment(gateway.session(order))
    assert set(payment) == {"paymentId", "shopOrderId", "externalPaymentId", "status", "type", "url"}
    assert payment["shopOrderId"] == order
    assert payment["url"] == f"{gateway.url}/sandbox/pay/{payment['paymentId']}"


def test_absolute_urls_follow_the_host_header(gateway, order):
    headers = {**gateway.bearer, "host": "pay.example.com"}
    session = gateway.session(order)
    methods = gateway.http.get(f"{API}/session/{session}/payment-methods", headers=headers).json()["methods"]
    assert methods[0]["onInitiatePayment"]["value"].startswith("http://pay.example.com/checkout/")


def test_the_fixed_payment_path_works_as_well(gateway, order):
    session = gateway.session(order)
    content = {"sessionId": session, "paymentMethodId": gateway.methods(session)["CARD"]["id"]}
    assert gateway.http.post(f"{API}/payment", json=content, headers=gateway.bearer).status_code == 200


def test_a_method_that_is_not_offered_cannot_be_used(gateway, order):
    session = gateway.session(order, 50.0)
    content = {"sessionId": session, "paymentMethodId": str(uuid.uuid4())}
    assert gateway.http.post(f"{API}/payment", json=content, headers=gateway.bearer).status_code == 400


def test_two_payment_calls_are_two_payments(gateway, order):
    session = gateway.session(order)
    assert gateway.payment(session)["paymentId"] != gateway.payment(session)["paymentId"]
    assert [row["status"] for row in gateway.ledger(order)] == ["initiated", "initiated"]


def test_a_created_payment_is_announced_by_a_new_notification(gateway, merchant, order):
    payment = gateway.payment(gateway.session(order))
    (call,) = merchant.wait(order, "notification")
    assert call.fields["status"] == "new"
    assert call.fields["payment_id"] == payment["paymentId"]
    assert call.xml.findtext("Body/Result") == "Created"
    assert call.xml.find("Body/Transactions") is None


def test_a_native_wallet_payment_is_finished_by_its_authorization(gateway, merchant, order):
    payment = gateway.payment(gateway.session(order), "MOBILE_WALLET")
    path = f"{API}/payment/{payment['paymentId']}/authorization"
    assert (
        gateway.http.post(path, json={"token": "x"}, headers=gateway.bearer).json()["status"] == "SUCCEEDED"
    )
    assert merchant.wait(order, "success")
    assert gateway.http.post(path, json={}, headers=gateway.bearer).status_code == 409


def test_browsers_of_any_shop_may_call_with_the_token(gateway):
    preflight = {
        "origin": "https://shop.example",
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization",
    }
    answer = gateway.http.options(f"{API}/session/x/payment-methods", headers=preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"


def test_one_seed_gives_the_same_ids_again(merchant):
    ids = []
    for _ in range(2):
        with serving(create_app(CONFIG)) as url:
            gateway = Gateway(url, merchant)
            session = gateway.session("seeded")
            ids.append((session, gateway.payment(session)["paymentId"]))
            gateway.http.close()
    assert ids[0] == ids[1]
