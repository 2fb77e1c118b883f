"""The event loops that the client is tested on."""

from __future__ import annotations

import asyncio

import pytest
import uvloop


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine on a fresh loop of either kind: workers use uvloop, whose transports fail in their own
    way.
    """
    factory = asyncio.new_event_loop if request.param == "asyncio" else uvloop.new_event_loop

    def runs(coroutine):
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(coroutine)

    return runs
