"""`/autoscale` counts what waits for a worker, for the operator and for a merchant's own checkouts."""

from __future__ import annotations

import pytest

from orchestrator import auth
from tests.conftest import make_settings
from tests.support.api_scene import Api, intent, serving

pytestmark = pytest.mark.anyio


async def asked(api: Api, merchant: str) -> dict[str, float]:
    token = auth.issue(api.services.settings, merchant=merchant, scopes=("ops",), lifetime=60, subject="keda")
    answer = await api.client.get("/autoscale", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_number_of_workers_follows_from_what_waits(database_url):
    async with serving(make_settings(database_url=database_url)) as api:
        assert await api.services.merchants.add(
            "other",
            gateway_url="http://127.0.0.1:9",
            merchant_api_url=None,
            username="u",
            password="p",
            callback_secrets=(),
        )
        for merchant in (auth.OPERATOR, "default", "other"):
            assert await asked(api, merchant) == {"workers": 0, "waiting": 0, "oldestDueSeconds": 0.0}
        for number in range(3):
            assert (await api.post(intent(f"A-{number}"))).status_code == 202
        # Just handed over is nothing that waits.
        assert (await asked(api, auth.OPERATOR))["workers"] == 0
        await api.sql(
            "UPDATE checkouts SET due_at = clock() - interval '40 s', hinted = false, updated_at = created_at"
        )
        for merchant in (auth.OPERATOR, "default"):
            found = await asked(api, merchant)
            assert (found["workers"], found["waiting"]) == (3, 3)
            assert found["oldestDueSeconds"] == pytest.approx(40, abs=4)
        assert (await asked(api, "other"))["waiting"] == 0
        await api.sql("UPDATE merchants SET paused_at = clock() WHERE name = 'default'")
        assert (await asked(api, auth.OPERATOR))["waiting"] == 0
