"""Calls to a gateway are counted over the last minute or two."""

from __future__ import annotations

import re

from orchestrator.gateway.limits import LimitsRegistry, call_counts
from orchestrator.gateway.limits.call_counts import CallCounts, Counted
from orchestrator.gateway.limits.shared_state import SharedGatewayState
from orchestrator.gateway.outcomes import Done, NotSent, Throttled, Unknown
from orchestrator.monitoring.promises import PROMISES
from orchestrator.settings import Settings

GATEWAY_FAILS = [promise for promise in PROMISES if promise.name == "GatewayFails"]


def test_counts_leave_after_two_minutes_at_the_latest(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(call_counts.time, "monotonic", lambda: now)
    counts = CallCounts()
    counts.add(0.5, failed=False)
    counts.add(1.5, failed=True)
    assert counts.read() == Counted(2, 1, 2.0)
    now = 1070.0
    counts.add(1.0, failed=False)
    assert counts.read() == Counted(3, 1, 3.0)
    now = 1121.0
    assert counts.read() == Counted(1, 0, 1.0)
    now = 1500.0
    assert counts.read() == Counted(0, 0, 0.0)


def test_a_throttled_call_is_no_failed_one_as_for_the_alert():
    limits = LimitsRegistry(Settings(), SharedGatewayState(None))
    gateway = limits.of("https://pay.example")
    for outcome in (
        Done(None),
        Throttled(3.0, "fewer"),
        Throttled(None, "fewer"),
        NotSent("no way"),
        Unknown("HTTP 503"),
    ):
        gateway.note("shop", outcome)
    (shown,) = limits.counts()
    assert (shown["calls"], shown["failed"], shown["reason"]) == (5, 2, "HTTP 503")
    assert gateway.open_for() == 0
    (failing,) = GATEWAY_FAILS
    assert {"unknown", "not_sent"} == set(re.findall(r'outcome=~"([^"]*)"', failing.expression)[0].split("|"))
