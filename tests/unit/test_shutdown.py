"""Background tasks end, or are given up, at the end of a process."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from orchestrator.shutdown import MOST_CANCELS, cancelled

pytestmark = pytest.mark.anyio


async def stubborn(times: int) -> None:
    """Answer so many cancellations with another error, as some clients do, and go on after errors."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            times -= 1
            if times < 0:
                raise


async def begun(*work) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(job) for job in work]
    await asyncio.sleep(0)
    return tasks


async def test_a_task_that_goes_on_after_a_cancellation_is_cancelled_again():
    tasks = await begun(stubborn(0), stubborn(1), stubborn(MOST_CANCELS - 1))
    with capture_logs() as logs:
        await cancelled(tasks, again_after=0.01)
    assert all(task.cancelled() for task in tasks)
    assert logs == []


async def test_a_task_that_never_ends_is_given_up_and_named():
    (task,) = await begun(stubborn(MOST_CANCELS))
    task.set_name("watch")
    with capture_logs() as logs:
        await cancelled([task], again_after=0.01)
    assert not task.done()
    assert [(line["event"], line["task"]) for line in logs] == [("background_task_not_ended", "watch")]
    await cancelled([task])
    assert task.cancelled()


async def test_the_error_of_a_task_that_has_ended_is_dropped():
    async def broken() -> None:
        raise RuntimeError

    tasks = await begun(broken())
    await cancelled(tasks)
    await cancelled([])
    assert isinstance(tasks[0].exception(), RuntimeError)
