"""Faults come as configured, the ledger adds up, and a kill loses nothing that was acknowledged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import httpx
import pytest
from defusedxml import ElementTree

from orchestrator.devkit.sandbox import create_app
from tests.support.machine import free_port
from tests.support.parties import CONFIG, Gateway, serving, until

API = "/checkout/v1/api"


def post_session(gateway, order):
    return gateway.http.post(f"{API}/session", json=gateway.intent(order), headers=gateway.bearer)


def test_a_plan_fails_the_first_calls_of_an_endpoint_and_then_serves(gateway, order):
    gateway.plan(order, fail={"session": 2, "payment-methods": 1, "payments": 1}, failStatus=503)
    assert [post_session(gateway, order).status_code for _ in range(3)] == [503, 503, 200]
    session = post_session(gateway, order).json()["sessionId"]
    path = f"{API}/session/{session}/payment-methods"
    assert [gateway.http.get(path, headers=gateway.bearer).status_code for _ in range(2)] == [503, 200]
    lookup = f"/merchant/API/payments?shop_orderid={order}"
    assert [gateway.http.get(lookup, auth=gateway.basic).status_code for _ in range(2)] == [503, 200]
    assert gateway.control("GET", f"orders/{order}").json()["fail"] == {
        "session": 0,
        "payment-methods": 0,
        "payments": 0,
    }


def test_a_plan_touches_no_other_order(gateway, order):
    gateway.plan(order, fail={"all": 5})
    assert post_session(gateway, f"other-{order}").status_code == 200


def test_a_dropped_plan_no_longer_applies(gateway, order):
    gateway.plan(order, fail={"all": 5})
    gateway.control("DELETE", f"orders/{order}")
    assert post_session(gateway, order).status_code == 200


def test_429_carries_retry_after(gateway, order):
    gateway.plan(order, fail={"session": 1}, failStatus=429, retryAfter=7)
    answer = post_session(gateway, order)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")


def test_a_reset_ends_the_connection(gateway, order):
    gateway.plan(order, fail={"session": 1}, failStatus="reset")
    token = gateway.bearer
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        gateway.http.post(f"{API}/session", json=gateway.intent(order), headers=token)


def test_a_hanging_call_gives_no_answer(gateway, order):
    gateway.plan(order, fail={"session": 1}, failStatus="timeout")
    token = gateway.bearer
    with pytest.raises(httpx.ReadTimeout):
        gateway.http.post(f"{API}/session", json=gateway.intent(order), headers=token, timeout=0.1)


@pytest.mark.parametrize("how", ["malformed", "empty", "html"])
def test_bad_bodies_come_with_status_200(gateway, order, how):
    gateway.plan(order, fail={"session": 1, "payments": 1}, failStatus=how)
    answer = post_session(gateway, order)
    assert answer.status_code == 200
    with pytest.raises(ValueError, match=r"."):
        answer.json()
    xml = gateway.http.get(f"/merchant/API/payments?shop_orderid={order}", auth=gateway.basic)
    assert xml.status_code == 200
    with pytest.raises(ElementTree.ParseError):
        ElementTree.fromstring(xml.text.removeprefix("<!doctype html>").replace("<html>", "<html><br>"))


def test_a_huge_body_goes_on_and_on(gateway, order):
    gateway.plan(order, fail={"session": 1}, failStatus="huge")
    read = 0
    with gateway.http.stream(
        "POST", f"{API}/session", json=gateway.intent(order), headers=gateway.bearer
    ) as answer:
        for chunk in answer.iter_bytes():
            read += len(chunk)
            if read > 3_000_000:
                break
    assert read > 3_000_000


def test_a_call_can_take_effect_while_its_answer_is_lost(gateway, order):
    gateway.pay(gateway.checkout(order))
    number = gateway.ledger(order)[0]["transactionId"]
    gateway.plan(order, fail={"capture": 1}, failStatus=502, failAfter=True)
    fields = {"transaction_id": number}
    answer = gateway.http.post("/merchant/API/captureReservation", data=fields, auth=gateway.basic)
    assert answer.status_code == 502
    assert gateway.ledger(order)[0]["capturedMinor"] == 13900


def test_calls_are_held_back_as_planned(gateway, order):
    gateway.plan(order, delayMs={"session": 120})
    gateway.control("PUT", "faults", {"latencyMs": {"all": 30, "payments": 0}})
    token = gateway.bearer
    before = time.monotonic()
    gateway.http.post(f"{API}/session", json=gateway.intent(order), headers=token)
    assert time.monotonic() - before >= 0.15


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("succeeded", "preauth"),
        ("declined", "preauth_failed"),
        ("error", "preauth_error"),
        ("open", "pending"),
    ],
)
def test_a_planned_outcome_beats_card_and_amount(gateway, order, outcome, status):
    gateway.plan(order, outcome=outcome)
    gateway.pay(gateway.checkout(order, 5.66), "4170000000000568")
    assert gateway.ledger(order)[0]["status"] == status


def test_bursts_fail_all_calls_and_end(gateway, order):
    assert gateway.bearer
    gateway.control("PUT", "faults", {"authenticate": {"count": 2, "status": 500}, "all": {"count": 1}})
    codes = [gateway.http.post(f"{API}/authenticate", auth=gateway.basic).status_code for _ in range(4)]
    assert codes == [500, 500, 503, 200]


def test_a_share_of_failing_calls_is_the_same_for_the_same_seed(merchant):
    seen = []
    for _ in range(2):
        with serving(create_app(CONFIG)) as url:
            gateway = Gateway(url, merchant)
            assert gateway.bearer
            gateway.control("PUT", "faults", {"share": 0.3})
            seen.append([post_session(gateway, f"share-{number}").status_code for number in range(40)])
            gateway.http.close()
    assert seen[0] == seen[1]
    assert 2 <= seen[0].count(503) <= 25


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("orders/x", {"fial": {}}),
        ("orders/x", {"fail": {"sesion": 1}}),
        ("orders/x", {"failStatus": "slow"}),
        ("faults", {"callbacks": "gone"}),
        ("faults", []),
    ],
)
def test_a_plan_with_a_mistake_is_refused_with_its_place(gateway, path, content):
    answer = gateway.http.put(f"/sandbox/{path}", json=content)
    assert answer.status_code == 400
    assert answer.json()["message"]


def test_a_plan_that_is_no_text_is_refused(gateway):
    assert gateway.http.put("/sandbox/orders/x", content=b'{"currency": "\xff"}').status_code == 400


def test_an_order_number_may_contain_a_slash(gateway):
    gateway.plan("Order-1234/2023", fail={"session": 1})
    assert post_session(gateway, "Order-1234/2023").status_code == 503


def test_an_open_payment_is_resolved_by_the_control_api(gateway, merchant, order):
    url = gateway.checkout(order, method="BANK_PAYMENT")
    payment = url.rsplit("/", 1)[1]
    wrong = gateway.http.post(f"/sandbox/payments/{payment}/resolve", json={"outcome": "succeeded"})
    assert wrong.status_code == 409
    gateway.act(url, "open")
    gateway.control("POST", f"payments/{payment}/resolve", {"outcome": "succeeded"})
    assert merchant.wait(order, "notification", status="succeeded")
    assert gateway.ledger(order)[0]["heldMinor"] == 13900


def test_refunds_and_chargebacks_start_at_the_gateway_too(gateway, merchant, order):
    url = gateway.checkout(order, configuration__autoCapture=True)
    gateway.pay(url)
    payment = url.rsplit("/", 1)[1]
    gateway.control("POST", f"payments/{payment}/refund", {"amountMinor": 900})
    assert gateway.ledger(order)[0]["refundedMinor"] == 900
    gateway.control("POST", f"payments/{payment}/chargeback")
    (call,) = merchant.wait(order, "notification", status="ChargebackEvent")
    assert call.xml.findtext("Header/Path") == "settings/createReconciliationData"
    assert call.xml.findtext(".//ChargebackEvent/Amount") == "139.00"
    too_much = gateway.http.post(f"/sandbox/payments/{payment}/refund", json={"amountMinor": 13901})
    assert too_much.status_code == 409


def test_a_lost_session_is_unknown_afterwards(gateway, order):
    session = gateway.session(order)
    gateway.control("DELETE", f"sessions/{session}")
    assert gateway.http.put(f"{API}/session/{session}", headers=gateway.bearer).status_code == 404
    assert gateway.http.delete(f"/sandbox/sessions/{session}").status_code == 404


def test_a_number_of_thousands_of_digits_is_refused_like_any_other_that_is_wrong(gateway):
    for name in ("limit", "after"):
        answer = gateway.http.get("/sandbox/ledger", params={name: "9" * 5000})
        assert (answer.status_code, "is not a number" in answer.json()["message"]) == (400, True)


def test_the_ledger_pages_through_all_orders_and_adds_up(merchant):
    with serving(create_app(CONFIG)) as url:
        gateway = Gateway(url, merchant)
        for number in range(5):
            gateway.pay(gateway.checkout(f"page-{number}", configuration__autoCapture=number % 2 == 0))
        first = gateway.control("GET", "ledger?limit=2").json()
        seen, after = [each["orderId"] for each in first["orders"]], first["next"]
        while after is not None:
            page = gateway.control("GET", f"ledger?limit=2&after={after}").json()
            assert page["totals"] is None
            seen += [each["orderId"] for each in page["orders"]]
            after = page["next"]
        gateway.http.close()
    assert seen == [f"page-{number}" for number in range(5)]
    assert first["totals"]["currencies"] == {
        "DKK": {
            "transactions": 5,
            "reservedMinor": 69500,
            "capturedMinor": 41700,
            "refundedMinor": 0,
            "chargedBackMinor": 0,
            "heldMinor": 69500,
        }
    }


def test_the_ledger_of_an_unknown_order_is_empty(gateway):
    answer = gateway.control("GET", "ledger?orderId=unknown").json()
    assert answer == {"orders": [], "next": None, "totals": {"payments": 0, "callbacks": 0, "currencies": {}}}
    assert gateway.http.get("/sandbox/ledger?after=x").status_code == 400


def test_health(gateway):
    assert gateway.http.get("/healthz").json()["status"] == "ok"


PROGRAM = """
import sys
from pathlib import Path
from orchestrator.devkit.sandbox import SandboxConfig, run
run(SandboxConfig(username="shop", password="correct horse", state_file=Path(sys.argv[1])), port=int(sys.argv[2]))
"""


def start(state, port):
    command = [sys.executable, "-c", PROGRAM, str(state), str(port)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)

    def up():
        assert process.poll() is None, process.stderr.read().decode()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=1, trust_env=False).is_success
        except httpx.TransportError:
            return False

    until(up, seconds=20)
    return process


def stop(process):
    process.stderr.close()
    process.wait(timeout=10)


def test_kill_9_loses_nothing_that_was_acknowledged(merchant, tmp_path, order):
    state, port = tmp_path / "sandbox" / "state.db", free_port()
    process = start(state, port)
    gateway = Gateway(f"http://127.0.0.1:{port}", merchant)
    token = gateway.bearer
    session = gateway.session(f"open-{order}")
    gateway.plan(order, fail={"payments": 2})
    url = gateway.checkout(order)
    assert (
        gateway.http.get(f"/merchant/API/payments?shop_orderid={order}", auth=gateway.basic).status_code
        == 503
    )
    gateway.pay(url)
    number = gateway.ledger(order)[0]["transactionId"]
    gateway.merchant_api("POST", "captureReservation", {"transaction_id": number, "amount": "1.00"})
    until(lambda: all(each["answerStatus"] for each in gateway.ledger(order)[0]["callbacks"]))
    before = gateway.ledger(order)
    os.kill(process.pid, signal.SIGKILL)
    stop(process)

    process = start(state, port)
    try:
        assert gateway.ledger(order) == before
        assert gateway.bearer == token  # issued before the kill, and still good in the next call
        # Tokens, sessions, what is left of plans and the numbering of transactions are kept.
        assert gateway.payment(session)["shopOrderId"] == f"open-{order}"
        assert (
            gateway.http.get(f"/merchant/API/payments?shop_orderid={order}", auth=gateway.basic).status_code
            == 503
        )
        assert gateway.lookup(shop_orderid=order).findtext(".//CapturedAmount") == "1.00"
        gateway.pay(gateway.checkout(f"next-{order}"))
        assert int(gateway.ledger(f"next-{order}")[0]["transactionId"]) == int(number) + 1
    finally:
        gateway.http.close()
        process.send_signal(signal.SIGTERM)
        stop(process)
