"""Which callers may use the control API, and which hosts the sandbox calls."""

from __future__ import annotations

import dataclasses
import stat
from typing import TYPE_CHECKING

import httpx
import pytest

from orchestrator.devkit.sandbox import create_app
from orchestrator.devkit.sandbox.config import ledger_proof
from tests.support.parties import CONFIG, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = {"X-Sandbox-Token": "a token of its own"}
CALLS = [
    ("PUT", "orders/A-1"), ("GET", "orders/A-1"), ("DELETE", "orders/A-1"), ("GET", "faults"), ("PUT", "faults"),
    ("DELETE", "faults"), ("GET", "ledger"), ("POST", "payments/unmatched"), ("POST", "payments/x/resolve"),
    ("POST", "payments/x/send"), ("POST", "payments/x/refund"), ("POST", "payments/x/release"),
    ("POST", "payments/x/chargeback"), ("DELETE", "sessions/x"), ("POST", "tokens/expire"),
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    config = dataclasses.replace(
        CONFIG, control_token=TOKEN["X-Sandbox-Token"], callback_hosts=frozenset({"api"})
    )
    with serving(create_app(config)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_each_call_of_the_control_api_needs_the_token(guarded, method, path):
    for headers in (
        {},
        {"X-Sandbox-Token": "another"},
        {"X-Sandbox-Token": ""},
        {"Authorization": "Bearer x"},
    ):
        answer = guarded.request(method, f"/sandbox/{path}", headers=headers)
        assert answer.status_code == 401
        assert "X-Sandbox-Token" in answer.text
    assert guarded.request(method, f"/sandbox/{path}", headers=TOKEN, content=b"{}").status_code not in {
        401,
        403,
    }


def test_a_person_reads_the_ledger_with_the_token_in_the_address_and_changes_nothing_so(guarded):
    token = {"token": TOKEN["X-Sandbox-Token"]}
    assert guarded.get("/sandbox/ledger", params=token).status_code == 200
    assert guarded.put("/sandbox/faults", params=token, json={}).status_code == 401


def test_a_browser_without_the_token_reads_where_it_is_and_a_program_gets_json(guarded):
    for path in ("/sandbox/ledger?orderId=A-1", "/sandbox/faults"):
        page = guarded.get(path, headers={"Accept": "text/html,*/*;q=0.8"})
        assert (page.status_code, page.headers["content-type"]) == (401, "text/html; charset=utf-8")
        assert "The installation printed a link that has it when it started" in page.text
        assert TOKEN["X-Sandbox-Token"] not in page.text
        assert guarded.get(path).headers["content-type"] == "application/json"
    elsewhere = guarded.get("/sandbox/ledger", headers={"Accept": "text/html", "Host": "attacker.example"})
    assert (elsewhere.status_code, elsewhere.headers["content-type"]) == (403, "application/json")


def test_the_proof_of_an_order_opens_the_ledger_of_that_order_and_nothing_else(guarded):
    proof = ledger_proof(TOKEN["X-Sandbox-Token"], "A-1")
    given = {"orderId": "A-1", "proof": proof}
    assert guarded.get("/sandbox/ledger", params=given).json()["orders"] == []
    page = guarded.get("/sandbox/ledger", params=given, headers={"Accept": "text/html"})
    assert "set-cookie" not in page.headers
    for path, query in (
        ("ledger", {"orderId": "A-2", "proof": proof}),
        ("ledger", {"orderId": "A-1", "proof": ledger_proof("another", "A-1")}),
        ("ledger", {"orderId": "A-1", "proof": "\u00e9"}),
        ("ledger", {"proof": ledger_proof(TOKEN["X-Sandbox-Token"], "")}),
        ("orders/A-1", given),
        ("faults", given),
    ):
        assert guarded.get(f"/sandbox/{path}", params=query).status_code == 401, (path, query)
    assert guarded.put("/sandbox/orders/A-1", params=given, json={}).status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/sandbox/help"])
def test_what_shows_nothing_needs_no_token(guarded, path):
    assert guarded.get(path).status_code == 200


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:8001", "127.0.0.1.attacker.example", "localhost.example"]
)
def test_a_name_that_was_led_here_is_refused(guarded, host):
    assert guarded.get("/sandbox/ledger", headers=TOKEN | {"Host": host}).status_code == 403


@pytest.mark.parametrize(
    "host", ["localhost:8001", "127.0.0.1", "[::1]:8001", "10.0.0.7", "sandbox:8001", "api"]
)
def test_this_machines_own_names_are_served(guarded, host):
    assert guarded.get("/sandbox/ledger", headers=TOKEN | {"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://attacker.example", "http://localhost:3000", "null", "", "http://["]
)
def test_a_page_of_another_origin_is_refused_and_gets_no_cors_headers(guarded, origin):
    answer = guarded.get("/sandbox/ledger", headers=TOKEN | {"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "x-sandbox-token",
    }
    preflight = guarded.options("/sandbox/faults", headers=asked)
    assert "access-control-allow-origin" not in preflight.headers
    # The Checkout API is for shoppers' browsers.
    checkout = guarded.options("/checkout/v1/api/session/x", headers=asked)
    assert checkout.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest",
        "https://shop.example/x",
        "http://10.0.0.1/",
        "ftp://localhost/",
        "http://127.0.0.1.shop.example/",
    ],
)
def test_an_unmatched_payment_makes_it_call_no_foreign_address(guarded, url):
    unmatched_payment = {"orderId": "A-1", "amountMinor": 100, "currency": "DKK", "notification": url}
    answer = guarded.post("/sandbox/payments/unmatched", json=unmatched_payment, headers=TOKEN)
    assert answer.status_code == 400
    assert "notification must be at loopback" in answer.text


@pytest.mark.parametrize(
    ("url", "called"),
    [
        ("http://127.0.0.1:9/", True), ("http://localhost/", True), ("http://[::1]:8000/", True), ("http://127.1.2.3/", True),
        ("http://api:8000/callbacks", True), ("http://api.example/", False), ("http://0.0.0.0/", False), ("http://[::ffff:10.0.0.1]/", False),
        ("http://[", False), ("", False), ("http://user@127.0.0.1@shop.example/", False),
    ],
)  # fmt: skip
def test_callbacks_go_to_loopback_and_known_hosts(url, called):
    assert dataclasses.replace(CONFIG, callback_hosts=frozenset({"api"})).may_call(url) == called


def test_a_session_with_a_foreign_callback_is_served_and_the_callback_is_noted_as_not_sent(gateway, order):
    """As the gateway itself would take it; only the sandbox stays on this machine."""
    pages = {"type": "URL", "value": "https://shop.example/paid"}
    callbacks = {"success": pages, "failure": pages, "notification": "https://shop.example/n"}
    gateway.pay(gateway.checkout(order, callbacks=callbacks))
    (row,) = gateway.ledger(order)
    assert {callback["note"] for callback in row["callbacks"]} == {
        "not sent: the sandbox calls only loopback and the hosts that it was started with"
    }


@pytest.mark.parametrize("mode", [None, 0o644])
def test_a_kept_token_is_used_for_its_own_account_only(tmp_path, mode):
    path = tmp_path / "state" / "sandbox.db"
    if mode is not None:
        path.parent.mkdir()
        path.touch(mode)
    with serving(create_app(dataclasses.replace(CONFIG, state_file=path))) as url:
        httpx.put(f"{url}/sandbox/orders/A-1", json={"failStatus": 503})
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
