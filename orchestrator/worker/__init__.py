"""The only room of Celery: the app, tasks of one line each, the bridge to the event loop, and the doorbell.

A message is a doorbell and nothing more: it holds ids and says "look at these". Postgres holds the work, so a lost, repeated or
reordered message costs delay only; hence no ETA, no result backend and no reliance on redelivery. A task hands its list to the one
event loop of its process and returns when it is claimed or left behind. A worker that hears nothing for a while sweeps by itself.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any
from uuid import UUID

from celery import signals
from celery.exceptions import SecurityWarning

from orchestrator.worker.app import QUEUES, app, configure
from orchestrator.worker.bridge import Bridge
from orchestrator.worker.doorbell import Doorbell
from orchestrator.worker.heartbeat import Pulse

if TYPE_CHECKING:
    from celery import Task

    from orchestrator.settings import Settings

__all__ = ["Doorbell", "app", "bridge", "carry", "configure", "run_scheduler", "run_worker", "seal", "sweep"]

_bridge: Bridge | None = None


def bridge() -> Bridge:
    """Return the bridge of this worker process."""
    if _bridge is None:
        message = "tasks of the orchestrator run in `orchestrator worker`, which starts the event loop that they need"
        raise RuntimeError(message)
    return _bridge


@app.task(name="orchestrator.carry", bind=True, Request="orchestrator.worker.hint:Hint")
def carry(task: Task[Any, Any], ids: list[str]) -> None:
    """Look at these checkouts."""
    came_by = (task.request.delivery_info or {}).get("routing_key")
    bridge().carry([UUID(one) for one in ids], "callbacks" if came_by == "callbacks" else "checkouts")


@app.task(name="orchestrator.sweep")
def sweep() -> None:
    """Turn the alarms that ring into hints."""
    bridge().sweep()


@app.task(name="orchestrator.seal")
def seal() -> None:
    """Seal the audit trail."""
    bridge().seal()


def run_worker(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT: a warm shutdown, in which steps in flight end or give their lease back."""
    global _bridge  # noqa: PLW0603 - Celery finds its tasks' world in the process
    configure(settings)
    signals.setup_logging.connect(_own_logging)
    signals.worker_shutting_down.connect(_shutting_down)
    # About pickle as root: only JSON is accepted here.
    warnings.simplefilter("ignore", SecurityWarning)
    _bridge = Bridge(settings)
    _bridge.start()
    try:
        app.worker_main([
            "--quiet", "worker", "--pool=threads", f"--concurrency={settings.worker_threads}", f"--queues={','.join(QUEUES)}",
            f"--hostname=orchestrator-{os.getpid()}@%h", "--without-gossip", "--without-mingle", "--loglevel=WARNING",
        ])  # fmt: skip
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else 0
    finally:
        _bridge.close()


def run_scheduler(settings: Settings) -> None:
    """Run Celery beat, which drives the sweeper; several are harmless."""
    configure(settings)
    signals.setup_logging.connect(_own_logging)
    pulse = Pulse(settings)
    signals.after_task_publish.connect(pulse.published)
    pulse.start()
    try:
        app.Beat(loglevel="WARNING", quiet=True).run()
    finally:
        pulse.stop()


def _own_logging(**_: object) -> None:
    """Keep Celery from setting up logging: ours stands."""


def _shutting_down(**_: object) -> None:
    if _bridge is not None:
        _bridge.stop()
