"""The doorbell: a crowd of hints gathers, and whoever is none of it waits for nothing. Rests last for ever here, so waiting shows."""

from __future__ import annotations

import threading
import time
from uuid import uuid4

import pytest

from orchestrator.messaging import hints as hints_module
from tests.conftest import make_settings

BUSY, QUIET, THIRD = 1, 2, 3


class Bell(hints_module.HintPublisher):
    """Publishes into a list, when it may."""

    def __init__(self):
        super().__init__(make_settings(broker_url="redis://127.0.0.1:1/0"))
        self.published = []
        self.may = threading.Semaphore(0)
        self.publishing = threading.Event()

    def _publish(self, hints):
        self.publishing.set()
        assert self.may.acquire(timeout=20)
        self.published.append([hint.whose for hint in hints])

    def let(self, *merchants):
        """Ring for each, and let one more message go."""
        for merchant in merchants:
            self.ring([uuid4()], whose=merchant)
        self.may.release()

    def wait(self, messages):
        until = time.monotonic() + 20
        while len(self.published) < messages:
            assert time.monotonic() < until, self.published
            time.sleep(0.001)

    def crowd(self):
        """Have a crowd of the busy merchant, which rests from now on."""
        self.publishing.clear()
        self.ring([uuid4()], whose=BUSY)
        assert self.publishing.wait(20)
        self.let(BUSY, BUSY)
        self.wait(1)


@pytest.fixture
def bell(monkeypatch):
    monkeypatch.setattr(hints_module, "LONGEST_REST", 3600.0)
    monkeypatch.setattr(hints_module, "SHARE", 1e-9)
    one = Bell()
    one.start()
    yield one
    one.may.release(100)
    one.close()


def test_one_after_the_other_nobody_waits(bell):
    for number in range(1, 5):
        bell.let(BUSY)
        bell.wait(number)
    assert bell.published == [[BUSY]] * 4


def test_a_crowd_gathers_until_somebody_else_comes_or_it_ends(bell):
    bell.crowd()
    bell.let(BUSY)
    bell.let(QUIET)
    bell.wait(2)
    assert bell.published == [[BUSY], [BUSY, BUSY, BUSY, QUIET]]
    # Once in the time of a rest: where everybody is somebody else, a message for each would be too many.
    bell.let(THIRD)
    bell.let(BUSY)
    bell.close()
    assert bell.published[2:] == [[THIRD, BUSY]]
