"""Write access to the database is not money: what no process of ours wrote as it stands is refused, told in
the trail, and logged.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from orchestrator.crypto import Encryptor
from orchestrator.domain.records import Command
from orchestrator.store import checkouts
from orchestrator.store.merchants import Merchants
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings
from tests.support.said import answer

if TYPE_CHECKING:
    from tests.support.scene import Scene

pytestmark = pytest.mark.anyio

WHOLE = 13900

INSERT_COMMAND = """
    INSERT INTO commands (id, merchant_id, checkout_id, kind, actor, reason, arguments, mac)
    VALUES (:id, 1, :checkout, :kind, 'client:shop', 'a thief', CAST(:arguments AS jsonb), :mac)
"""
INSERT_OPERATION = """
    INSERT INTO money_operations (id, merchant_id, checkout_id, transaction_id, kind, amount, currency, state,
                                  reconciliation_identifier, cause, actor, total_before, mac)
    SELECT :id, 1, :checkout, transaction_id, :kind, :amount, 'DKK', :state, CAST(:id AS text), :cause, 'client:shop', 0, :mac
      FROM payments WHERE checkout_id = :checkout
"""
WAKE = "UPDATE checkouts SET wake = wake + 1, due_at = clock() WHERE id = :id"


async def processed(world: Scene, checkout) -> list[dict]:
    """Wake a checkout and process it; return what was logged as a matter of security."""
    await world.sql(WAKE, id=checkout)
    with capture_logs() as lines:
        await world.process(checkout)
        await world.process(checkout)
    return [line for line in lines if line.get("security")]


async def moved(world: Scene, checkout) -> list[tuple[str, int]]:
    return [
        movement
        for movement in await world.movements(checkout)
        if movement[0] in {"captured", "refunded", "released"}
    ]


@pytest.mark.parametrize("mac", [None, b"", b"0" * 16, b"0" * 64])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("capture", {"amount": None, "transactionId": None}),
        ("capture", [1]),
        ("release", {"transactionId": None}),
    ],
)
async def test_an_inserted_command_moves_nothing(world: Scene, kind, arguments, mac):
    checkout = await world.paid()
    command = uuid4()
    await world.sql(
        INSERT_COMMAND, id=command, checkout=checkout, kind=kind, arguments=json.dumps(arguments), mac=mac
    )
    (line,) = await processed(world, checkout)
    assert (line["event"], line["command"], line["log_level"]) == (
        "command_not_authentic",
        str(command),
        "error",
    )
    (row,) = await world.sql(
        "SELECT result, result_details, handled_at FROM commands WHERE id = :id", id=command
    )
    assert row.handled_at is not None
    assert answer(row).matches(
        "refused_not_authentic", "its row was not written by the API or the command line"
    )
    assert await world.operations(checkout) == []
    assert await moved(world, checkout) == []
    entry = next(entry for entry in await world.trail(checkout) if entry["action"] == "command:refused")
    assert (entry["actor"], entry["evidence"]["authentic"]) == ("system:orchestrator", False)
    await world.agree(checkout)


CHANGES = {
    "kind": "UPDATE commands SET kind = 'release', arguments = '{\"transactionId\": null}' WHERE id = :id",
    "amount": "UPDATE commands SET arguments = jsonb_set(arguments, '{amount}', '13900') WHERE id = :id",
    "actor": "UPDATE commands SET actor = 'client:another' WHERE id = :id",
    "reason": "UPDATE commands SET reason = 'as agreed' WHERE id = :id",
    "version": "UPDATE commands SET expected_version = NULL WHERE id = :id",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_changed_command_moves_nothing(world: Scene, change):
    checkout = await world.paid()
    version = (await world.row(checkout)).version
    command = await world.command(checkout, "capture", version=version, amount=100, transactionId=None)
    await world.sql(CHANGES[change], id=command)
    assert [line["event"] for line in await processed(world, checkout)] == ["command_not_authentic"]
    assert await moved(world, checkout) == []


async def test_a_command_moved_to_another_checkout_moves_nothing(world: Scene):
    checkout, other = await world.paid(), await world.paid()
    command = await world.command(checkout, "capture", amount=100, transactionId=None)
    await world.sql("UPDATE commands SET checkout_id = :other WHERE id = :id", id=command, other=other)
    assert [line["event"] for line in await processed(world, other)] == ["command_not_authentic"]
    assert await moved(world, other) == []


async def test_a_command_that_was_taken_is_not_taken_again_when_its_row_says_so(world: Scene):
    checkout = await world.paid()
    await world.asked(checkout, "capture", amount=100, transactionId=None)
    await world.sql("UPDATE commands SET handled_at = NULL, result = NULL")
    (line,) = await processed(world, checkout)
    assert "taken before" in line["reason"]
    # Not even with the operation out of the way.
    await world.sql("UPDATE money_operations SET command_id = NULL")
    await world.sql("UPDATE commands SET handled_at = NULL, result = NULL")
    await processed(world, checkout)
    assert await moved(world, checkout) == [("captured", 100)]
    await world.agree(checkout)


@pytest.mark.parametrize("state", ["requested", "submitted", "unknown"])
@pytest.mark.parametrize(
    ("kind", "amount", "cause"), [("capture", WHOLE, "asked"), ("release", WHOLE, "returned")]
)
async def test_an_inserted_operation_is_never_sent(world: Scene, *, state, kind, amount, cause):
    checkout = await world.paid()
    operation = uuid4()
    await world.sql(
        INSERT_OPERATION,
        id=operation,
        checkout=checkout,
        kind=kind,
        amount=amount,
        cause=cause,
        state=state,
        mac=b"0" * 16,
    )
    (line,) = await processed(world, checkout)
    assert (line["event"], line["operation"]) == ("operation_not_authentic", str(operation))
    assert [row.state for row in await world.operations(checkout)] == ["rejected"]
    assert await moved(world, checkout) == []
    assert (await world.row(checkout)).attention == "operation_rejected"
    assert (await world.trail(checkout))[-1]["evidence"] is not None
    await world.agree(checkout)


@pytest.mark.parametrize(
    "change",
    [
        "state = 'requested', total_before = 100, settled_at = NULL",
        "state = 'requested', amount = 200",
        "state = 'unknown', attempts = 0",
        "state = 'submitted', kind = 'refund'",
    ],
)
async def test_a_settled_operation_is_not_sent_again_when_its_row_says_so(world: Scene, change):
    checkout = await world.paid()
    await world.asked(checkout, "capture", amount=100, transactionId=None)
    await world.sql(f"UPDATE money_operations SET {change}")
    assert [line["event"] for line in await processed(world, checkout)] == ["operation_not_authentic"]
    assert await moved(world, checkout) == [("captured", 100)]
    await world.agree(checkout)


async def test_commands_and_operations_signed_before_a_rotation_of_keys_are_ours(core):
    older = Encryptor(make_settings(secret_keys=(OLDER_KEY,)).secret_keys)
    rotated = Encryptor(make_settings(secret_keys=(SECRET_KEY, OLDER_KEY)).secret_keys)
    alone = Encryptor(make_settings(secret_keys=(SECRET_KEY,)).secret_keys)
    checkout = uuid4()
    arguments = {"amount": 100, "expiresIn": 90.0, "ratio": 0.1, "transactionId": "é"}
    command = Command(uuid4(), "capture", "client:shop", None, 3, arguments)
    (stored,) = await core.all("SELECT CAST(:it AS jsonb)", it=json.dumps(arguments))
    signed = Command(
        command.id,
        "capture",
        "client:shop",
        None,
        3,
        stored,
        checkouts.sign_command(older, checkout, 1, command),
    )
    assert checkouts.command_holds(rotated, checkout, 1, signed)
    assert not checkouts.command_holds(alone, checkout, 1, signed)
    assert not checkouts.command_holds(rotated, checkout, 2, signed)


@pytest.mark.parametrize(
    "policies", [{"surplus": "return"}, {"capture": "automatic"}, {"late": "keep", "lookups_per_minute": 60}]
)
async def test_policies_that_move_money_are_not_followed_from_a_row_that_is_not_ours(world: Scene, policies):
    await world.policy(lookups_per_minute=77)
    await world.sql(
        "UPDATE merchants SET policies = policies || CAST(:new AS jsonb)", new=json.dumps(policies)
    )
    with capture_logs() as lines:
        read = await Merchants(world.db, world.encryptor, world.settings).get(1)
    assert (read.policies.surplus, read.policies.capture, read.policies.late) == ("ask", "manual", "ask")
    assert read.policies.lookups_per_minute == policies.get("lookups_per_minute", 77)
    assert [line["event"] for line in lines if line.get("security")] == ["policies_not_authentic"]
    # A change of another policy does not sign these.
    await world.policy(unknown_order="keep")
    read = await world.merchants.get(1)
    assert (read.policies.surplus, read.policies.unknown_order) == ("ask", "keep")
