"""A merchant is added and changed while everything runs: no process is started again."""

from __future__ import annotations

import time

from orchestrator.store.merchants import FRESH
from tests.support.world import World, world


def merchants(installation: World, *arguments: str, given: str = "") -> None:
    ended = installation.command("merchants", *arguments, given=given)
    assert ended.returncode == 0, ended.stderr


def test_a_running_worker_takes_a_new_merchant_and_its_changed_credentials(servers, database_url, tmp_path):
    with world(servers, database_url, tmp_path) as installation:
        installation.start_all()
        added = ("add", "second", "--gateway-url", installation.sandbox_url, "--username", "shop")
        merchants(installation, *added, given="wrong\n\n")
        # An unknown name is looked up once a second at most.
        time.sleep(2)
        refused = installation.order(merchant="second")
        installation.until(
            lambda: installation.sql("SELECT attention FROM checkouts WHERE id = %s", refused)[0][
                "attention"
            ],
            "the credentials are refused",
        )
        merchants(installation, "password", "second", "--password-from", "-", given="sandbox password\n")
        # What the product promises: every process knows of it by then.
        time.sleep(FRESH + 1)
        installation.until_state(installation.order(merchant="second"), "awaiting_payment")
        (row,) = installation.sql("SELECT state, attention FROM checkouts WHERE id = %s", refused)
        assert (row["state"], row["attention"]) == ("received", "gateway_credentials")
        retried = installation.command(
            "checkouts", "retry", refused, "--reason", "the password was corrected"
        )
        assert retried.returncode == 0, retried.stderr
        installation.until_state(refused, "awaiting_payment")

        merchants(installation, "disable", "second")
        time.sleep(FRESH + 1)
        answer = installation.http.post(f"{installation.api_url}/v1/checkouts", json={}, headers=_bearer())
        assert answer.json()["type"].endswith("merchant-disabled"), answer.text


def _bearer() -> dict[str, str]:
    from tests.support.world import bearer

    return {"Authorization": bearer("second")}
