"""The Celery worker: tasks of one line each, and the event loop that processes their checkouts.

A message is a hint and nothing more: it holds ids of checkouts to process. Postgres holds the work, so a
lost, repeated or reordered message costs delay only; hence no ETA, no result backend and no reliance on
redelivery. A task passes its list to the one event loop of its process and returns when it is claimed or
deferred. A worker that receives no message for a while sweeps by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import warnings
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from celery import signals
from celery.exceptions import SecurityWarning

from orchestrator.messaging.app import PROCESS, QUEUES, SEAL, SWEEP, app, configure
from orchestrator.shutdown import FAILED, end_within
from orchestrator.worker.event_loop import Bridge
from orchestrator.worker.scheduler import run_scheduler

if TYPE_CHECKING:
    from celery import Task

    from orchestrator.settings import Settings

_bridge: Bridge | None = None


def bridge() -> Bridge:
    if _bridge is None:
        message = "tasks of the orchestrator run in `orchestrator worker`, which starts the event loop that they need"
        raise RuntimeError(message)
    return _bridge


@app.task(name=PROCESS, bind=True, Request="orchestrator.worker.hint_request:Hint")
def process(task: Task[Any, Any], ids: list[str]) -> None:
    came_by = (task.request.delivery_info or {}).get("routing_key")
    bridge().process(
        [UUID(checkout_id) for checkout_id in ids], "callbacks" if came_by == "callbacks" else "checkouts"
    )


@app.task(name=SWEEP)
def sweep() -> None:
    """Turn due checkouts into hints."""
    bridge().sweep()


@app.task(name=SEAL)
def seal() -> None:
    bridge().seal()


def run_worker(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT: a warm shutdown, in which steps in flight end or give their lease
    back.

    Returns the exit status: 0 after such a shutdown, another after a fault.
    """
    from celery.worker import state  # noqa: PLC0415 - only a worker needs that side of Celery

    global _bridge  # noqa: PLW0603 - Celery finds its tasks' world in the process
    configure(settings)
    signals.setup_logging.connect(_own_logging)
    # About pickle as root: only JSON is accepted here.
    warnings.simplefilter("ignore", SecurityWarning)
    faults: list[str] = []
    asked: list[object] = []

    def shutting_down(how: object = None, **_: object) -> None:
        asked.append(how)
        end_within(settings.shutdown_timeout, "worker")
        if _bridge is not None:
            _bridge.stop()

    def failed(fault: str) -> None:
        faults.append(fault)
        shutting_down()
        vars(state)["should_stop"] = FAILED  # as Celery's own handler of signals does

    signals.worker_shutting_down.connect(shutting_down, weak=False)
    _bridge = Bridge(settings, fault=failed)
    _bridge.start()
    try:
        # Until Celery has a handler of its own; work may be in hand by now.
        signal.signal(signal.SIGTERM, _end_while_starting)
        worker = app.Worker(
            hostname=f"orchestrator-{os.getpid()}@{socket.gethostname()}",
            pool_cls="threads",
            concurrency=settings.worker_threads,
            queues=list(QUEUES),
            loglevel="WARNING",
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )
        worker.start()
    finally:
        _bridge.close()
    if faults:
        return FAILED
    # Celery gives SIGINT a status of its own; a warm shutdown that was asked for is no failure, by whichever
    # signal.
    return 0 if asked == ["Warm"] else int(worker.exitcode or 0)


def _end_while_starting(*_: object) -> NoReturn:
    raise SystemExit(0)


def _own_logging(**_: object) -> None:
    """Keep Celery from setting up logging: ours stands, and its event loop logs no tracebacks.

    It logs one where it lets go of a connection that failed before; `link` logs that failure in one line.
    """
    logging.getLogger("celery.worker.loops").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True
