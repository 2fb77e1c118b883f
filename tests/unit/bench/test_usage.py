"""The meters count the resources of processes, also of processes that end in between."""

from __future__ import annotations

import subprocess
import sys

from orchestrator.devkit.bench.usage import Usage, flush_time

# A little more than is asked for: the kernel's figures come in hundredths of a second, user's and system's
# rounded down each.
BUSY = "import time\nend = time.process_time() + 0.25\nwhile time.process_time() < end: pass\nprint('done', flush=True)\ninput()"


def test_a_process_that_has_ended_keeps_what_it_used():
    running: dict[str, int] = {}
    usage = Usage(lambda: running)
    usage.begin()
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        running["worker-1"] = process.pid
        process.stdout.readline()
        usage.sample()
        process.communicate(b"\n")
    usage.sample()
    used = usage.used()
    assert used["worker"] >= 0.2
    ((peak, last),) = usage.memory("worker")
    assert peak >= last > 1
    assert usage.memory("api") == []
    assert len(usage.samples) == 3
    assert usage.samples[-1].used == used


def test_what_a_process_had_used_before_the_beginning_does_not_count():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        usage = Usage(lambda: {"api": process.pid})
        usage.begin()
        usage.sample()
        assert usage.used()["api"] < 0.2
        process.communicate(b"\n")


def test_the_machine_is_never_less_than_idle():
    usage = Usage(dict)
    usage.begin()
    assert 0 <= usage.others() <= 1


def test_measuring_the_disk_leaves_nothing_behind(tmp_path):
    assert flush_time(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []
