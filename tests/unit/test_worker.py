"""Small parts of a worker: what is dropped is logged in summary, an outage in two lines, and a process has a
name of its own.
"""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from uuid import uuid4

import pytest
import structlog

from orchestrator import worker
from orchestrator.gateway.limits.shared_state import SharedGatewayState
from orchestrator.messaging import dropped_messages
from orchestrator.messaging.publisher import FIRST_PAUSE, LONGEST_PAUSE, BackOff
from orchestrator.store.heartbeats import unique_name
from orchestrator.worker.consumer import MOST_IDS, flaw


def test_dropped_messages_are_logged_in_summary(monkeypatch):
    counted = dropped_messages.Dropped()
    with structlog.testing.capture_logs() as logs:
        for number in range(1000):
            counted.add("not_a_task" if number % 2 else "JSONDecodeError")
        assert [line["count"] for line in logs] == [1], "the first at once"
        monkeypatch.setattr(dropped_messages, "SUMMARY_EVERY", 0.0)
        counted.tell()
        counted.tell()
    assert [line["count"] for line in logs] == [1, 999]
    assert logs[1]["reasons"] == {"not_a_task": 500, "JSONDecodeError": 499}
    assert counted.total == 1000


def test_an_outage_is_logged_in_two_lines_and_its_pauses_are_bounded():
    link = BackOff("scheduler")
    with structlog.testing.capture_logs() as logs:
        pauses = [link.failed(OSError("gone")) for _ in range(20)]
        assert link.away
        link.worked()
        link.worked()
    assert [line["event"] for line in logs] == ["broker_away", "broker_back"]
    assert FIRST_PAUSE / 2 <= pauses[0] <= FIRST_PAUSE
    assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in pauses[8:])
    assert not link.away


def test_an_outage_shows_no_password():
    link = BackOff("scheduler")
    with structlog.testing.capture_logs() as logs:
        link.failed(OSError("cannot reach redis://me:secret@broker:6379/0"))
    assert "secret" not in str(logs)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "it does not answer"),
        (TimeoutError("timed out"), "it does not answer"),
        (OSError(22, "Invalid argument"), "it closed the connection"),
        (ConnectionRefusedError(111, "Connection refused"), "[Errno 111] Connection refused"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_outage_says_in_words_what_was_met(error, said):
    link = BackOff("scheduler")
    link.failed(error)
    assert link.reason == said


def test_processes_of_two_containers_have_names_of_their_own():
    assert unique_name() != unique_name()
    assert SharedGatewayState(None)._name != SharedGatewayState(None)._name


def message(body: object, **headers: object) -> SimpleNamespace:
    return SimpleNamespace(
        headers={"task": "orchestrator.process", "eta": None, "expires": None, **headers},
        payload=json.loads(json.dumps(body)),
    )


@pytest.mark.parametrize(
    ("body", "name", "reason"),
    [
        ([[[str(uuid4())]], {}, {"callbacks": None, "chain": None}], "orchestrator.process", None),
        ([[[]], {}, {}], "orchestrator.process", None),
        ([[], {}, {}], "orchestrator.sweep", None),
        ([[], {}, None], "orchestrator.seal", None),
        ([[1], {}, {}], "orchestrator.sweep", "wrong_arguments"),
        ([[[str(uuid4())] * (MOST_IDS + 1)], {}, {}], "orchestrator.process", "wrong_arguments"),
        ([[["x"]], {}, {}], "orchestrator.process", "wrong_arguments"),
        ([[[7]], {}, {}], "orchestrator.process", "wrong_arguments"),
        ([[[f"{{{uuid4()}}}"]], {}, {}], "orchestrator.process", "wrong_arguments"),
        ([[[f"{uuid4()}\n"]], {}, {}], "orchestrator.process", "wrong_arguments"),
        ([[[]], {"ids": []}, {}], "orchestrator.process", "wrong_arguments"),
        ([[[]], {}, {"chain": ["x"]}], "orchestrator.process", "wrong_arguments"),
        ({"args": []}, "orchestrator.process", "no_arguments"),
        ("text", "orchestrator.process", "no_arguments"),
        ([[], {}, {}], "orchestrator.other", "unknown_task"),
        ([[], {}, {}], None, "not_a_task"),
        ([[], {}, {}], ["orchestrator.process"], "not_a_task"),
    ],
)
def test_only_our_own_messages_are_processed(body, name, reason):
    assert flaw(message(body, task=name)) == reason


def test_no_message_waits_for_a_time_or_is_too_old():
    late = message([[], {}, {}], task="orchestrator.sweep", eta="2099-01-01", expires="1999-01-01")
    assert flaw(late) is None
    assert (late.headers["eta"], late.headers["expires"]) == (None, None)


def test_a_connection_that_fails_leaves_no_traceback_of_celerys_loop_in_the_log(caplog):
    worker._own_logging()
    logger = logging.getLogger("celery.worker.loops")
    try:
        logger.error("Error cleaning up after event loop", exc_info=ConnectionError())
    finally:
        logger.removeFilter(worker._without_traceback)
    (record,) = caplog.records
    assert (record.getMessage(), record.exc_info) == (
        "Error cleaning up after event loop",
        None,
    )
