"""Erased checkouts, as a merchant sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from orchestrator.store import checkouts

if TYPE_CHECKING:
    from tests.support.api_scene import Api

pytestmark = pytest.mark.anyio


async def ask(api: Api, checkout: str, kind: str, body: dict[str, object]):
    return await api.post(body, path=f"/v1/checkouts/{checkout}/{kind}")


async def ended(api: Api) -> str:
    """Return a cancelled checkout, with a command whose reason is text of an operator."""
    checkout = await api.taken()
    assert (await ask(api, checkout, "reconcile", {"reason": "Anna called"})).status_code == 202
    await api.sql("UPDATE commands SET handled_at = clock(), result = 'done_retried'")
    await api.sql("UPDATE checkouts SET state = 'cancelled', ended_at = clock()")
    return checkout


async def erase(api: Api, checkout: str) -> None:
    (fate,) = await checkouts.erase(
        api.services.db, api.services.encryptor, [UUID(checkout)], actor="operator:test", cause="asked"
    )
    assert fate.erased


async def test_an_erased_checkout_says_so_in_every_answer(api: Api):
    checkout = await ended(api)
    assert (await api.get(f"/v1/checkouts/{checkout}")).json()["erasedAt"] is None
    await erase(api, checkout)
    shown = (await api.get(f"/v1/checkouts/{checkout}")).json()
    assert (shown["state"], shown["session"], shown["erasedAt"] > shown["createdAt"]) == (
        "cancelled",
        None,
        True,
    )
    assert "Its personal data was erased" in (await api.get(f"/v1/checkouts/{checkout}/explain")).text
    entries = (await api.get(f"/v1/checkouts/{checkout}/audit")).json()["entries"]
    assert (entries[-1]["action"], entries[-1]["evidence"]) == ("checkout:erased", {"cause": "asked"})


async def test_a_reason_and_a_reopening_of_an_erased_checkout_are_refused(api: Api):
    checkout = await ended(api)
    await erase(api, checkout)
    refused = await ask(api, checkout, "reconcile", {"reason": "Anna called again"})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:checkout-orchestrator:problem:erased")
    assert [error["field"] for error in refused.json()["errors"]] == ["reason"]
    refused = await ask(api, checkout, "reopen", {})
    assert (refused.status_code, refused.json()["type"]) == (409, "urn:checkout-orchestrator:problem:erased")
    assert (await ask(api, checkout, "reconcile", {})).status_code == 202
