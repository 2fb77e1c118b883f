"""Following a command: how far it is, what it came to, and whose it is."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest

from orchestrator.domain.command_result import ResultCode
from tests.integration.api.test_commands import (
    another_merchant,
    ask,
    in_state,
    operation,
    paid,
    payment,
)
from tests.integration.api.test_intake import problem

if TYPE_CHECKING:
    from tests.support.api_scene import Api

pytestmark = pytest.mark.anyio

HANDLED = "UPDATE commands SET handled_at = clock(), result = :result, result_details = CAST(:facts AS jsonb) WHERE id = :id"


async def followed(api: Api, command: str) -> dict:
    answer = await api.get(f"/v1/commands/{command}")
    assert answer.status_code == 200, answer.text
    return json.loads(answer.content, parse_float=Decimal)


async def asked(api: Api, checkout: str, kind: str, body: object = None, *, key: str | None = None) -> str:
    """Ask for something, and return the command's id."""
    answer = await ask(api, checkout, kind, body, key=key)
    assert answer.status_code == 202, answer.text
    told = answer.json()
    assert answer.headers["Location"] == told["links"]["command"]
    assert told["links"]["command"] == f"/v1/commands/{told['command']['id']}"
    return told["command"]["id"]


async def handled(api: Api, command: str, result: str = "accepted", **facts: object) -> None:
    await api.sql(HANDLED, id=UUID(command), result=result, facts=json.dumps(facts))


async def capture(api: Api, amount: float = 10.10) -> tuple[str, str]:
    """Return a paid checkout, and a command that captures a part of its money."""
    checkout = await paid(api)
    return checkout, await asked(api, checkout, "capture", {"amount": amount}, key="k-1")


async def test_a_command_that_waits_is_pending_with_all_that_was_asked(api: Api):
    checkout, command = await capture(api)
    told = await followed(api, command)
    moment = told.pop("requestedAt")
    assert moment
    assert told == {
        "id": command,
        "checkoutId": checkout,
        "orderId": (await api.get(f"/v1/checkouts/{checkout}")).json()["orderId"],
        "kind": "capture",
        "state": "pending",
        "amount": {"value": Decimal("10.10"), "currency": "DKK"},
        "transactionId": None,
        "result": None,
        "operations": [],
        "finishedAt": None,
        "requestedBy": "client:default/shop-1",
        "links": {"self": f"/v1/commands/{command}", "checkout": f"/v1/checkouts/{checkout}"},
    }


@pytest.mark.parametrize(
    ("state", "ends", "said"),
    [
        ("requested", "under_way", "it is under way"),
        ("submitted", "under_way", "it is under way"),
        ("unknown", "under_way", "it is under way"),
        ("succeeded", "done", "the capture of 10.10 DKK on transaction 1 is done"),
        ("rejected", "failed", "the capture of 10.10 DKK on transaction 1 was rejected (Card Declined)"),
    ],
)
async def test_money_is_under_way_until_its_operation_ends_and_failed_where_the_gateway_rejects_it(
    api: Api, state, ends, said
):
    checkout, command = await capture(api)
    error = {"last_error": "Card Declined"} if state == "rejected" else {}
    await operation(api, checkout, "capture", 1010, state=state, command_id=UUID(command), **error)
    await api.sql("UPDATE money_operations SET settled_at = clock() WHERE state IN ('succeeded', 'rejected')")
    await operation(api, checkout, "capture", 500, state="succeeded")  # another command's
    await handled(api, command)
    told = await followed(api, command)
    assert (told["state"], told["result"]) == (ends, {"code": "accepted", "message": said})
    (one,) = told["operations"]
    assert (one["amount"], one["state"], one["commandId"]) == (Decimal("10.10"), state, command)
    assert told["finishedAt"] == one["settledAt"]


async def test_every_result_has_a_state_and_a_message(api: Api):
    checkout = await paid(api)
    command = await asked(api, checkout, "reconcile")
    for code in ResultCode:
        await handled(api, command, code)
        told = await followed(api, command)
        refused = code.startswith("refused_")
        assert told["state"] == ("refused" if refused else "done"), code
        assert told["result"]["code"] == code
        assert told["result"]["message"]
        assert told["finishedAt"]


async def test_a_refused_command_says_why_and_one_that_nothing_proves_names_no_one(api: Api):
    _, command = await capture(api)
    await handled(api, command, "refused_nothing_left", kind="capture")
    told = await followed(api, command)
    assert told["result"] == {"code": "refused_nothing_left", "message": "nothing is left to capture"}
    assert told["requestedBy"]
    await handled(api, command, "refused_not_authentic")
    assert (await followed(api, command))["requestedBy"] is None


async def test_a_cancel_is_under_way_until_the_checkout_has_ended(api: Api):
    checkout = await in_state(api, "awaiting_payment")
    command, one = await asked(api, checkout, "cancel"), UUID(checkout)
    await handled(api, command)
    await api.sql(
        "UPDATE checkouts SET cancel_requested_at = (SELECT handled_at FROM commands) WHERE id = :id", id=one
    )
    told = await followed(api, command)
    assert (told["state"], told["amount"], told["finishedAt"]) == ("under_way", None, None)

    end = "UPDATE checkouts SET state = :state, late = :late, ended_at = clock() WHERE id = :id"
    for state, late, ends in (
        ("cancelled", False, "done"),
        ("expired", False, "done"),
        ("completed", False, "failed"),
        ("completed", True, "done"),  # the money came after the cancellation
    ):
        await api.sql(end, id=one, state=state, late=late)
        told = await followed(api, command)
        assert (told["state"], told["finishedAt"] is not None) == (ends, True), (state, late)
        assert ("a payment was found" in told["result"]["message"]) == (ends == "failed")

    await api.sql(
        "UPDATE checkouts SET state = 'received', cancel_requested_at = NULL, ended_at = NULL WHERE id = :id",
        id=one,
    )
    assert (await followed(api, command))["state"] == "done", "it was reopened afterwards"
    await api.sql("UPDATE checkouts SET cancel_requested_at = clock() WHERE id = :id", id=one)
    assert (await followed(api, command))["state"] == "done", "and is being cancelled again"


async def test_an_amount_is_told_in_the_currency_of_its_payment(api: Api):
    checkout = await in_state(api, "completed")
    await payment(api, checkout, "2", role="surplus", currency="JPY", captured=100)
    body = {"transactionId": "2", "amount": 40}
    command = await asked(api, checkout, "refund", body, key="k")
    told = await followed(api, command)
    assert (told["amount"], told["transactionId"]) == ({"value": 40, "currency": "JPY"}, "2")


@pytest.mark.parametrize("arguments", ["[1]", '"x"', "7", '{"amount": "7"}', '{"amount": true}', "null"])
async def test_a_row_that_somebody_else_wrote_is_shown_all_the_same(api: Api, arguments):
    _, command = await capture(api)
    await api.sql("UPDATE commands SET arguments = CAST(:it AS jsonb)", it=arguments)
    assert (await followed(api, command))["amount"] is None


async def test_a_command_is_its_merchants_alone(api: Api):
    _, command = await capture(api)
    await another_merchant(api)
    problem(await api.get(f"/v1/commands/{command}", merchant="other"), 404, "unknown-command")
    for wrong in (str(uuid4()), "A-1", "x" * 100):
        problem(await api.get(f"/v1/commands/{wrong}"), 404, "unknown-command")
    headers = api.bearer(scopes=("money:write", "checkouts:write", "ops", "events:read"))
    answer = await api.client.get(f"/v1/commands/{command}", headers=headers)
    assert "checkouts:read" in problem(answer, 403, "insufficient-scope")["detail"]


async def test_the_same_request_leads_to_the_same_command(api: Api):
    checkout, command = await capture(api)
    again = await ask(api, checkout, "capture", {"amount": 10.10}, key="k-1")
    assert again.headers["Location"] == f"/v1/commands/{command}"
