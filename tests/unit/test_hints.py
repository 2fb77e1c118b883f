"""Hints: a burst of hints is gathered, and a hint of another merchant does not wait.

Delays never end here, so that waiting shows.
"""

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
        self._publisher = Broker(None)
        self.published = []
        self.may = threading.Semaphore(0)
        self.publishing = threading.Event()

    def _publish(self, hints):
        self.publishing.set()
        assert self.may.acquire(timeout=20)
        self.published.append([hint.merchant_id for hint in hints])

    def let(self, *merchants):
        """Publish a hint for each, and let one more message go."""
        for merchant in merchants:
            self.publish([uuid4()], merchant_id=merchant)
        self.may.release()

    def wait(self, messages):
        until = time.monotonic() + 20
        while len(self.published) < messages:
            assert time.monotonic() < until, self.published
            time.sleep(0.001)

    def burst(self):
        """Have a crowd of the busy merchant, which rests from now on."""
        self.publishing.clear()
        self.publish([uuid4()], merchant_id=BUSY)
        assert self.publishing.wait(20)
        self.let(BUSY, BUSY)
        self.wait(1)


class Broker:
    """A publisher to a broker that takes what it is told to take."""

    def __init__(self, error):
        self.error, self.tries = error, 0
        self.answers = threading.Event()
        self.answers.set()

    def prove(self, _queue):
        self.tries += 1
        if self.error is not None:
            raise self.error

    def publish(self, _messages):
        assert self.answers.wait(20)

    def close(self):
        pass


def until(condition, what):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.001)


@pytest.fixture
def woken(monkeypatch):
    """A hint publisher that has not started yet, and its broker, which refuses."""
    monkeypatch.setattr(hints_module, "PROBE_EVERY", 0.01)
    one, broker = (
        hints_module.HintPublisher(make_settings(broker_url="redis://127.0.0.1:1/0")),
        Broker(OSError("refused")),
    )
    one._publisher = broker
    yield one, broker
    broker.answers.set()
    one.close()


def test_a_broker_is_tried_before_anybody_rings_and_while_nobody_does(woken):
    bell, broker = woken
    assert bell.trouble is None
    bell.start()
    until(lambda: bell.trouble == "refused", "it is told of")
    broker.error = None
    until(lambda: bell.trouble is None, "it is back")
    tries = broker.tries
    until(lambda: broker.tries > tries + 3, "it is tried again")
    broker.error = OSError("gone again")
    until(lambda: bell.trouble == "gone again", "it is told of again")


def test_a_broker_that_does_not_answer_is_told_of_while_it_is_waited_for(woken, monkeypatch):
    bell, broker = woken
    monkeypatch.setattr(hints_module, "STUCK_AFTER", 0.05)
    monkeypatch.setattr(hints_module, "PROBE_EVERY", 600.0)
    broker.error = None
    broker.answers.clear()
    bell.start()
    bell.publish([uuid4()])
    until(lambda: bell.trouble == "it does not answer", "it is told of")
    broker.answers.set()
    until(lambda: bell.trouble is None, "it is well")


@pytest.fixture
def bell(monkeypatch):
    monkeypatch.setattr(hints_module, "LONGEST_DELAY", 3600.0)
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
    bell.burst()
    bell.let(BUSY)
    bell.let(QUIET)
    bell.wait(2)
    assert bell.published == [[BUSY], [BUSY, BUSY, BUSY, QUIET]]
    # Once in the time of a rest: where everybody is somebody else, a message for each would be too many.
    bell.let(THIRD)
    bell.let(BUSY)
    bell.close()
    assert bell.published[2:] == [[THIRD, BUSY]]
