"""Hints: a burst of hints is gathered, and a hint of another merchant does not wait.

Delays never end here, so that waiting is visible.
"""

from __future__ import annotations

import threading
import time
from uuid import uuid4

import pytest

from orchestrator.messaging import hints as hints_module
from tests.conftest import make_settings

BUSY, QUIET, THIRD = 1, 2, 3


class PublisherThatWaits(hints_module.HintPublisher):
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
        """Publish a burst of the busy merchant, whose hints are delayed from now on."""
        self.publishing.clear()
        self.publish([uuid4()], merchant_id=BUSY)
        assert self.publishing.wait(20)
        self.let(BUSY, BUSY)
        self.wait(1)


class Broker:
    """A publisher to a broker that accepts or refuses as it is set."""

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
    publisher, broker = (
        hints_module.HintPublisher(make_settings(broker_url="redis://127.0.0.1:1/0")),
        Broker(OSError("refused")),
    )
    publisher._publisher = broker
    yield publisher, broker
    broker.answers.set()
    publisher.close()


def test_a_broker_is_tried_before_the_first_hint_and_while_there_are_no_hints(woken):
    publisher, broker = woken
    assert publisher.trouble is None
    publisher.start()
    until(lambda: publisher.trouble == "refused", "it is reported")
    broker.error = None
    until(lambda: publisher.trouble is None, "it is back")
    tries = broker.tries
    until(lambda: broker.tries > tries + 3, "it is tried again")
    broker.error = OSError("gone again")
    until(lambda: publisher.trouble == "gone again", "it is reported again")


def test_a_broker_that_does_not_answer_is_reported_while_it_is_awaited(woken, monkeypatch):
    publisher, broker = woken
    monkeypatch.setattr(hints_module, "STUCK_AFTER", 0.05)
    monkeypatch.setattr(hints_module, "PROBE_EVERY", 600.0)
    broker.error = None
    broker.answers.clear()
    publisher.start()
    publisher.publish([uuid4()])
    until(lambda: publisher.trouble == "it does not answer", "it is reported")
    broker.answers.set()
    until(lambda: publisher.trouble is None, "it is well")


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setattr(hints_module, "LONGEST_DELAY", 3600.0)
    monkeypatch.setattr(hints_module, "SHARE", 1e-9)
    started = PublisherThatWaits()
    started.start()
    yield started
    started.may.release(100)
    started.close()


def test_hints_in_sequence_do_not_wait(publisher):
    for number in range(1, 5):
        publisher.let(BUSY)
        publisher.wait(number)
    assert publisher.published == [[BUSY]] * 4


def test_a_burst_gathers_until_another_merchants_hint_comes_or_it_ends(publisher):
    publisher.burst()
    publisher.let(BUSY)
    publisher.let(QUIET)
    publisher.wait(2)
    assert publisher.published == [[BUSY], [BUSY, BUSY, BUSY, QUIET]]
    # Once in each delay: where every hint is another merchant's, a message for each would be too
    # many.
    publisher.let(THIRD)
    publisher.let(BUSY)
    publisher.close()
    assert publisher.published[2:] == [[THIRD, BUSY]]


def test_the_hints_of_a_burst_do_not_wake_the_thread_one_by_one(publisher):
    publisher.burst()
    publisher.publish([uuid4()], merchant_id=BUSY)
    until(lambda: publisher._gathering == {BUSY}, "the burst gathers")
    publisher.publish([uuid4()], merchant_id=BUSY)
    assert not publisher._arrived.is_set()
    publisher.publish([uuid4()], merchant_id=QUIET)
    publisher.let()
    publisher.wait(2)
    assert publisher.published[1] == [BUSY, BUSY, BUSY, BUSY, QUIET]
