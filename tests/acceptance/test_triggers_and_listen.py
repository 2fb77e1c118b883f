"""Cases made on purpose in a running installation, and events that a shop's developer gets on this machine;
one `up` for all.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.cli import trigger
from orchestrator.devkit.demo import triggers
from tests.support.cloud_events import check
from tests.support.command import orchestrator, running
from tests.support.receivers import receiving

BRISK = {
    "HINT_GRACE": "0.5", "SWEEP_INTERVAL": "0.3", "FIRST_CHECK_AFTER": "4", "RECHECK_AFTER_CALLBACK": "0.3",
    "DEADLINE_GRACE": "0.5", "RETRY_BASE": "0.3",
}  # fmt: skip
MADE = {
    "late_payment": "late_payment",
    "surplus": "surplus_payment",
    "chargeback": "charged_back",
    "mismatch": "payment_mismatch",
}
"""Cases and the decision that each asks for."""
SECRET = "whsec_QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVowMTIzNDU="


@pytest.fixture(scope="module")
def up(tmp_path_factory):
    place = tmp_path_factory.mktemp("up") / "data"
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        up.until_up()
        yield up
        assert up.end() == 0


def made(up, case):
    ended = orchestrator("trigger", case, "--json", "--data-dir", up.data_dir, seconds=90)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def shown(up, *arguments):
    ended = orchestrator(*arguments, "--json", "--data-dir", up.data_dir)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_each_case_comes_about_and_says_what_to_look_at(up):
    with ThreadPoolExecutor(2) as people:
        cases = dict(zip(MADE, people.map(lambda case: made(up, case), MADE), strict=True))
    for case, code in MADE.items():
        told = cases[case]
        found = shown(up, "checkouts", "show", told["checkoutId"])
        assert (found["orderId"], found["attention"]["code"]) == (told["orderId"], code)
        assert all(told[name] for name in ("happened", "then", "stands", "youMay"))
        # What it says to look at is a command that works as it stands.
        words = told["lookAt"][0].split()
        assert words[0] == "orchestrator"
        assert orchestrator(*words[1:]).returncode == 0, told["lookAt"]
    decisions = {one["code"]: one for one in shown(up, "status")["decisions"]}
    assert set(MADE.values()) <= set(decisions)
    assert decisions["surplus_payment"]["amount"] == decisions["charged_back"]["amount"] == 13_900


def test_a_lost_callback_is_found_while_a_person_watches(up):
    told = made(up, "lost_callback")
    watched = orchestrator("checkouts", "watch", told["orderId"], "--data-dir", up.data_dir, seconds=60)
    assert watched.returncode == 0
    # It may be found before the person watches.
    assert watched.stdout.rstrip().endswith("completed  authorized  reserved 139.00 DKK")


def test_a_gateway_that_is_down_holds_its_orders_until_it_is_up(up):
    try:
        told = made(up, "gateway_down")
        assert shown(up, "checkouts", "show", told["checkoutId"])["lastError"]
        assert shown(up, "status")["open"]["received"]["failing"] == 1
        assert (
            "received"
            in orchestrator("checkouts", "list", "--order", told["orderId"], "--data-dir", up.data_dir).stdout
        )
    finally:
        assert made(up, "gateway_up")["orderId"] is None

    def offered():
        return shown(up, "checkouts", "show", told["checkoutId"])["state"] == "awaiting_payment"

    up.until(offered, "the order goes on", seconds=90)


@pytest.mark.anyio
async def test_events_reach_a_developers_address_signed_and_in_order_and_wait_while_it_is_away(up, tmp_path):
    async with receiving() as receiver:
        port = receiver.port
    kept = tmp_path / "secret"
    kept.write_text(SECRET)
    arguments = (
        "--forward-to",
        f"http://127.0.0.1:{port}/events",
        "--secret-from",
        kept,
        "--json",
        "--limit",
        "3",
    )
    with running("listen", *arguments, data_dir=up.data_dir) as listener:
        await asyncio.to_thread(listener.until_said, "Sending  events of default after position")
        told = await asyncio.to_thread(made, up, "chargeback")
        await asyncio.to_thread(listener.until_said, "nothing listens there")
        async with receiving(port) as receiver:
            receiver.secrets = [SECRET]
            refusals = iter([503, 500])
            receiver.answer = lambda _: next(refusals, 204)
            await receiver.until(lambda: len(receiver.taken) == 3, seconds=60)
            assert await asyncio.to_thread(listener.process.wait, 30) == 0
        listener.read_to_the_end()
    assert receiver.unverified == 0
    mine = [one for one in receiver.taken if one.event["subject"] == told["checkoutId"]]
    assert [one.event["sequence"] for one in mine] == [str(number + 1) for number in range(len(mine))]
    assert len(receiver.taken) == 3
    assert [one.status for one in receiver.received[:3]] == [503, 500, 204]
    assert len({one.id for one in receiver.received[:3]}) == 1
    for one in receiver.taken:
        assert "position" not in one.event
        check(one.event)
    attempts = [json.loads(line) for line in listener.said.splitlines() if line.startswith("{")]
    assert [one["status"] for one in attempts if one["status"]] == [503, 500, 204, 204, 204]
    assert f"Go on with --after {attempts[-1]['position']}." in listener.said


def test_the_cases_of_the_help_are_those_that_exist():
    assert tuple(triggers.CASES) == trigger.NAMES


def test_what_is_wrong_is_one_sentence(up, tmp_path):
    for arguments, words in (
        (("trigger", "surplus", "--data-dir", tmp_path), "nothing runs in"),
        (("trigger", "surplus", "--data-dir", up.data_dir, "--merchant", "no-such-shop"), "no merchant no-such-shop"),
        (("listen", "--forward-to", "ftp://x", "--data-dir", up.data_dir), "is no URL such as http"),
        (("listen", "--forward-to", "http://x", "--token-from", "-"), "--token-from goes with --api"),
        (("listen", "--forward-to", "http://x", "--merchant", "no-such-shop", "--data-dir", up.data_dir), "was answered 403"),
    ):  # fmt: skip
        ended = orchestrator(*arguments)
        assert (ended.returncode, ended.stdout, words in ended.stderr) == (2, "", True), ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
