"""The client of our own API: typed answers and errors, repeated only where that harms nothing, everything
bounded.
"""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace

import httpx
import msgspec
import pytest

from orchestrator.api.contract.examples import EXAMPLES, INTENT
from orchestrator.devkit import client as module
from orchestrator.devkit.client import (
    BadAnswer,
    Client,
    Conflict,
    Denied,
    Invalid,
    NoAnswer,
    NotFound,
    Refused,
    Unavailable,
)

pytestmark = pytest.mark.anyio

CHECKOUT_ID = "019aa000-0000-7000-8000-00000000000a"


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """No pause lasts; return what each would have been."""
    taken = []

    async def sleep(seconds):
        taken.append(seconds)

    # Of the client alone: whatever else runs in this process sleeps as ever.
    monkeypatch.setattr(module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": sleep}))
    return taken


def problem(status, kind="", **headers):
    body = EXAMPLES["Problem"] | {"status": status, "type": f"urn:checkout-orchestrator:problem:{kind}"}
    return httpx.Response(status, json=body, headers=headers)


class Api:
    """An API that answers in turn; the last answer stays."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    async def __call__(self, request):
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options):
        http = httpx.AsyncClient(transport=httpx.MockTransport(self))
        return Client("http://api.example", "the token", http=http, **options)


async def test_an_intent_is_handed_over_with_the_token_and_read_as_the_contract_says():
    api = Api(httpx.Response(202, json=EXAMPLES["Accepted"]))
    checkout, new = await api.client().create(INTENT)
    assert (str(checkout.id), checkout.order_id, new) == (CHECKOUT_ID, "A-1001", True)
    (asked,) = api.asked
    assert (asked.method, asked.url.path) == ("POST", "/v1/checkouts")
    assert asked.headers["authorization"] == "Bearer the token"
    assert msgspec.json.decode(asked.content) == INTENT


async def test_the_same_intent_again_is_answered_as_not_new():
    assert not (await Api(httpx.Response(200, json=EXAMPLES["Accepted"])).client().create(INTENT)).new


async def test_amounts_are_exact():
    found = (
        await Api(httpx.Response(200, content=msgspec.json.encode(EXAMPLES["Checkout"])))
        .client()
        .checkout(CHECKOUT_ID)
    )
    assert str(found.money.reserved) == "139.0"
    assert found.payments[0].transaction_id == "539101"


async def test_a_trail_is_read_to_its_end():
    entry = {
        "action": "checkout:received",
        "actor": "client:a",
        "at": "2026-01-05T10:00:03+00:00",
        "checkout": CHECKOUT_ID,
        "correlation": "c",
        "evidence": {},
        "from": None,
        "to": "received",
        "trigger": None,
        "keyId": "k",
        "mac": "0",
    }
    pages = [
        {
            "checkoutId": CHECKOUT_ID,
            "entries": [entry | {"sequence": number}],
            "nextAfter": after,
            "archived": [],
        }
        for number, after in ((1, 1), (2, None))
    ]
    api = Api(*(httpx.Response(200, json=page) for page in pages))
    assert [entry.sequence for entry in await api.client().trail(CHECKOUT_ID)] == [1, 2]
    assert [asked.url.params["after"] for asked in api.asked] == ["0", "1"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Denied), (403, Denied), (404, NotFound), (409, Conflict), (422, Invalid), (400, Refused), (500, Unavailable)],
)  # fmt: skip
async def test_a_problem_is_an_error_with_its_facts_and_is_not_asked_again(status, error):
    api = Api(problem(status, "too-much"))
    with pytest.raises(error) as caught:
        await api.client().command(CHECKOUT_ID, "capture")
    refusal = caught.value
    assert (refusal.status, refusal.kind, refusal.problem.errors[0].field) == (
        status,
        "too-much",
        "order.amount.value",
    )
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    "first",
    [problem(503), problem(429), problem(502), httpx.ReadTimeout("slow"), httpx.ConnectError("refused")],
    ids=["503", "429", "502", "no answer", "no connection"],
)
async def test_what_passes_is_asked_again_under_the_same_key(first, pauses):
    api = Api(first, httpx.Response(202, json=EXAMPLES["CommandAccepted"]))
    accepted = await api.client().command(CHECKOUT_ID, "capture", {"amount": 1})
    assert accepted.command.kind == "capture"
    keys = [asked.headers["idempotency-key"] for asked in api.asked]
    assert keys == [keys[0]] * 2
    assert len(pauses) == 1


async def test_a_command_is_waited_for_under_one_key_until_it_is_finished(pauses):
    told = EXAMPLES["CommandProgress"]
    open_one = httpx.Response(202, json={**told, "state": "under_way", "finishedAt": None})
    api = Api(open_one, problem(503), httpx.Response(200, json=told))
    done = await api.client().finished(CHECKOUT_ID, "capture", {"amount": 39})
    assert (done.state, done.operations[0].state) == ("done", "succeeded")
    assert len({asked.headers["idempotency-key"] for asked in api.asked}) == 1
    assert all(re.fullmatch(r"wait=[1-9]\d*", asked.headers["prefer"]) for asked in api.asked)
    # An answer that came at once has not waited, so the next request does.
    assert pauses[0] == module.NOT_WAITED
    assert len(pauses) == 2


async def test_a_command_that_takes_too_long_is_returned_as_it_stands():
    told = {**EXAMPLES["CommandProgress"], "state": "pending", "finishedAt": None, "result": None}
    api = Api(httpx.Response(202, json=told))
    assert (await api.client().finished(CHECKOUT_ID, "capture", {"amount": 39}, within=0)).state == "pending"
    api = Api(httpx.Response(200, json=told))
    assert (await api.client().progress(told["id"])).id.hex == told["id"].replace("-", "")


async def test_attempts_and_pauses_are_bounded(pauses):
    api = Api(problem(503, **{"Retry-After": "3600"}))
    with pytest.raises(Unavailable):
        await api.client(attempts=3).checkout(CHECKOUT_ID)
    assert len(api.asked) == 3
    assert pauses == [module.LONGEST_PAUSE] * 2


async def test_no_pause_is_shorter_than_the_server_asks_for_and_none_is_the_same(pauses):
    api = Api(
        problem(429, **{"Retry-After": "2"}),
        httpx.ConnectError("a"),
        httpx.ConnectError("b"),
        httpx.ConnectError("c"),
    )
    with pytest.raises(NoAnswer):
        await api.client().checkout(CHECKOUT_ID)
    assert pauses[0] == 2
    assert 0 <= pauses[1] <= 2 * module.FIRST_PAUSE
    assert pauses[1] != pauses[2]


@pytest.mark.parametrize(
    ("error", "sent"),
    [(httpx.ConnectTimeout("x"), False), (httpx.PoolTimeout("x"), False), (httpx.ReadError("x"), True)],
)
async def test_it_is_known_whether_a_request_can_have_reached_the_api(error, sent):
    with pytest.raises(NoAnswer) as caught:
        await Api(error).client(attempts=1).get("/v1/events")
    assert caught.value.sent is sent


async def test_an_answer_that_does_not_end_is_given_up():
    async def for_ever(_request):
        await asyncio.get_running_loop().create_future()

    http = httpx.AsyncClient(transport=httpx.MockTransport(for_ever))
    with pytest.raises(NoAnswer):
        await Client("http://api.example", "t", http=http, timeout=0.01, attempts=1).checkout(CHECKOUT_ID)


async def test_no_more_is_read_than_the_largest_answer(monkeypatch):
    monkeypatch.setattr(module, "LARGEST_ANSWER", 1000)
    read = []

    async def parts():
        for number in range(1000):
            read.append(number)
            yield b"x" * 100

    with pytest.raises(BadAnswer, match="more than 1000 bytes"):
        await Api(httpx.Response(200, content=parts())).client().checkout(CHECKOUT_ID)
    assert len(read) < 20


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id": 1}', b"[]", b"\xff"])
async def test_an_answer_that_the_contract_does_not_know_is_an_error_and_not_asked_for_again(body):
    api = Api(httpx.Response(200, content=body))
    with pytest.raises(BadAnswer):
        await api.client().checkout(CHECKOUT_ID)
    assert len(api.asked) == 1


@pytest.mark.parametrize("body", [b"", b"<html>Bad gateway</html>", b"\xff", b'{"status": "x"}'])
async def test_the_page_of_a_proxy_is_an_error_by_its_status(body):
    with pytest.raises(Unavailable) as caught:
        await Api(httpx.Response(502, content=body)).client(attempts=1).checkout(CHECKOUT_ID)
    assert (caught.value.status, caught.value.kind) == (502, "")


async def test_a_redirect_is_not_followed():
    api = Api(httpx.Response(302, headers={"location": "http://elsewhere.example/"}))
    with pytest.raises(Refused):
        await api.client().checkout(CHECKOUT_ID)
    assert len(api.asked) == 1


async def test_connections_of_its_own_are_closed_and_those_it_was_given_are_not():
    given = httpx.AsyncClient()
    async with Client("http://api.example", "t", http=given), Client("http://api.example", "t") as own:
        pass
    assert not given.is_closed
    assert own._http.is_closed
    await given.aclose()
