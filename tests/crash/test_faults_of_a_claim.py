"""What goes wrong in a claim stops no worker; a worker that cannot go on says so, and ends."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.support.forked import run

if TYPE_CHECKING:
    from tests.support.world import World


def as_another_role(world: World) -> None:
    """Have processes that start from now on use a role whose rights can be taken away."""
    if not world.sql("SELECT 1 FROM pg_roles WHERE rolname = 'restricted'"):
        world.sql("CREATE ROLE restricted LOGIN PASSWORD 'restricted'")
    world.sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO restricted")
    world.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO restricted")
    parts = conninfo_to_dict(world.database_url)
    scheme, _, rest = world.database_url.partition("://")
    after = rest.partition("@")[2] if "@" in rest.partition("?")[0] else rest
    assert parts["dbname"]
    world.settings["database_url"] = f"{scheme}://restricted:restricted@{after}"


def test_rights_that_are_taken_away_and_given_back_stop_no_worker(installation: World):
    world = installation
    as_another_role(world)
    for name in ("worker-1", "worker-2"):
        world.start(name)
    first = [world.order() for _ in range(10)]
    world.until_all("awaiting_payment")
    world.sql("REVOKE UPDATE ON checkouts FROM restricted")
    later = [world.order() for _ in range(30)]
    world.until(
        lambda: all("claim_failed" in world.log(name) for name in ("worker-1", "worker-2")), "claims fail"
    )
    time.sleep(3)
    world.sql("GRANT UPDATE ON checkouts TO restricted")
    later += [world.order() for _ in range(10)]
    world.until_all("awaiting_payment", seconds=40)
    assert len(first) + len(later) == len(world.sql("SELECT 1 FROM checkouts"))
    assert [world.stop(name) for name in ("worker-1", "worker-2")] == [0, 0]
    world.agree()


FAULTS = {
    # The dispatcher's task is closed beneath it, as clearing the frames of its exception does.
    "the dispatcher claims nothing while hints wait": """
async def run(self):
    await asyncio.Event().wait()
Dispatcher._run = run
watchdog.CHECK_INTERVAL = event_loop.CHECK_INTERVAL = 0.02
""",
    "the dispatcher ended": """
async def run(self):
    await self._wake.wait()
    raise RuntimeError("an unforeseen end")
Dispatcher._run = run
""",
    "the event loop stands still": """
async def stands(*_):
    threading.Event().wait()
Dispatcher.admit = stands
watchdog.CHECK_INTERVAL = event_loop.CHECK_INTERVAL = 0.02
""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_cannot_go_on_says_so_and_ends_with_a_status_that_is_not_0(
    installation: World, fault: str
):
    world = installation
    world.settings |= {"shutdown_timeout": 3, "self_sweep_after": 600}
    world.order()
    program = "import asyncio, sys, threading\nfrom orchestrator import log\nfrom orchestrator.processing.dispatcher import Dispatcher\n"
    program += "from orchestrator.settings import load\nfrom orchestrator.worker import event_loop, run_worker, watchdog\nlog.configure(style='json')\n"
    program += FAULTS[fault] + "\nsys.exit(run_worker(load()))\n"
    done = run([sys.executable, "-c", program], env=world.environment(), cwd=world.place)
    assert done.returncode == 1, done.stderr
    assert f'"fault": "{fault}"' in done.stderr
    assert '"level": "error"' in done.stderr
