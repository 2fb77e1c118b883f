"""Calls to a gateway are counted over the last minute or two."""

from __future__ import annotations

from orchestrator.gateway.limits import call_counts
from orchestrator.gateway.limits.call_counts import CallCounts, Counted


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
