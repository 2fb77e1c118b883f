"""`doctor` tells a refused login from a gateway that is down, and names since when."""

from __future__ import annotations

import socket
import time
from types import SimpleNamespace

import pytest

from orchestrator.cli import checks, database_checks, gateways
from orchestrator.gateway.client import Account
from orchestrator.gateway.outcomes import NotSent, Refused, Throttled, Unauthorized, Unknown
from orchestrator.store import readiness
from orchestrator.store.readiness import Process
from orchestrator.text import duration
from tests.conftest import make_settings
from tests.support.machine import free_port

ACCOUNT = Account("shop", "https://gw.example", "https://gw.example", "user", "secret")


@pytest.mark.parametrize(
    ("outcome", "said", "never"),
    [
        (
            Unauthorized("The gateway refused the credentials."),
            "check the user name and the password",
            "down",
        ),
        (
            Refused(403, "The gateway refused with HTTP 403."),
            "is refused by https://gw.example",
            "it is down",
        ),
        (Refused(404, "The gateway refused with HTTP 404."), "check the URL", "password:"),
        (
            Unknown("The gateway answered HTTP 503."),
            "(The gateway answered HTTP 503, since ",
            "the way to it is broken",
        ),
        (
            NotSent("No connection to the gateway."),
            "it is down, or the way to it is broken",
            "check the user",
        ),
        (Throttled(5.0, "The gateway throttled the call."), "are not the cause", "check the user"),
    ],
)
def test_a_login_that_failed_is_told_for_what_it_is(outcome: object, said: str, never: str) -> None:
    process = Process(
        "w",
        "worker",
        3.0,
        {
            "circuits": [
                {"gateway": "https://gw.example:443", "since": 60.0, "seconds": 9.0, "reason": "HTTP 503."}
            ]
        },
    )
    told = gateways.failing([process, Process("dead", "worker", 99.0, process.progress)])
    sentence = gateways.sentence("shop", ACCOUNT, outcome, told)  # type: ignore[arg-type]
    assert said in sentence
    assert never not in sentence
    assert "secret" not in sentence
    known = told["https://gw.example:443"]
    assert (known.ago, known.left, known.reason) == (63.0, 6.0, "HTTP 503")


def test_a_host_with_another_clock_is_named() -> None:
    said: list[tuple[str, str]] = []
    report = SimpleNamespace(ill=lambda what, found: said.append((what, found)))
    clocks = {"well": 0.4, "ahead": -41.0, "gone": 900.0}
    found = [
        Process(name, "worker", 99.0 if name == "gone" else 3.0, {"clockSeconds": apart})
        for name, apart in clocks.items()
    ]
    database_checks.clocks([*found, Process("old", "api", 3.0, {})], report)  # type: ignore[arg-type]
    ((what, sentence),) = said
    assert (what, "-41 s from that of the host of worker ahead: set both by NTP" in sentence) == (
        "clock",
        True,
    )


def test_each_fault_of_postgres_has_a_remedy() -> None:
    assert set(database_checks.REMEDIES) == set(readiness._STATES)


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [
        *((-3, "0 s"), (5.9, "5 s"), (119, "119 s"), (120, "2 min"), (3599, "59 min"), (7200, "2 h")),
        *((7900, "2 h 11 min"), (172_800, "2 d"), (200_000, "2 d 7 h")),
    ],
)
def test_durations_are_written_in_one_or_two_units(seconds: float, spelled: str) -> None:
    assert duration(seconds) == spelled


@pytest.mark.anyio
async def test_servers_that_accept_and_never_answer_are_named_as_such_within_seconds() -> None:
    said: dict[str, str] = {}
    report = SimpleNamespace(ill=said.__setitem__, well=said.__setitem__)
    # The kernel takes connections to it, as it does for a process that is stopped.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = make_settings(
            database_url=f"postgresql://user@127.0.0.1:{port}/name",
            broker_url=f"redis://127.0.0.1:{port}/0",
            redis_url=f"redis://127.0.0.1:{port}/0",
        )
        began = time.monotonic()
        await checks.examine(settings, report, stopped=False)  # type: ignore[arg-type]
        took = time.monotonic() - began
    assert took < database_checks.TIMEOUT + 2
    stopped = "its process may be stopped (`ps -eo pid,stat,args` shows the state `T`"
    assert f"127.0.0.1:{port} accepts connections and does not answer: {stopped}" in said["broker"]
    assert "the chapter ProcessTrouble of docs/runbook-alerts.md" in said["broker"]
    assert stopped in said["database"]
    assert "the chapter DatabaseAway of docs/runbook-alerts.md" in said["database"]
    assert "does not answer" in said["redis"]


@pytest.mark.anyio
async def test_a_broker_to_which_nothing_connects_is_not_said_to_be_stopped() -> None:
    said = await checks._silent(f"amqp://127.0.0.1:{free_port()}/")
    assert "accepts no connection" in said
    assert "stopped" not in said
