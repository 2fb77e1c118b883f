"""The example of a consumer of events (docs/examples/events.py): what the feed does not keep any more, and
what happens beside it.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/examples/events.py"


def event(position: int, subject: str, sequence: int) -> dict[str, Any]:
    return {
        "id": f"{subject}-{sequence}",
        "type": "payment.chargeback",
        "subject": subject,
        "sequence": str(sequence),
        "position": str(position),
    }


class Feed:
    """A feed of which what is up to `kept_after` is gone."""

    def __init__(self, *events: dict[str, Any], kept_after: int = 0) -> None:
        self.events, self.kept_after = events, kept_after
        self.asked: list[int] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def __call__(self, url: str, *, params: dict[str, Any], **_: Any) -> httpx.Response:
        self.asked.append(int(params["after"]))
        self.meanwhile()
        after = self.asked[-1] or self.kept_after
        request = httpx.Request("GET", url)
        if after < self.kept_after:
            return httpx.Response(410, json={"oldest": str(self.kept_after)}, request=request)
        found = [each for each in self.events if int(each["position"]) > after][:2]
        reached = found[-1]["position"] if found else str(after)
        return httpx.Response(200, json={"events": found, "next": reached}, request=request)


@pytest.fixture(name="example")
def _example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    known = {"QUEUE": "q", "BROKER_URL": "memory://", "FEED_URL": "http://feed.example", "TOKEN": "t"}
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("events_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="handled")
def _handled(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    said: list[str] = []

    def handled() -> list[str]:
        said.extend(capsys.readouterr().out.splitlines())
        return [line.removeprefix("handled ") for line in said if line.startswith("handled ")]

    return handled


def test_a_consumer_that_comes_after_the_first_events_are_gone_handles_the_rest_once(
    example, handled, monkeypatch
):
    kept = [event(7, "a", 7), event(8, "b", 3), event(9, "a", 8), event(10, "b", 4)]
    monkeypatch.setattr(example.httpx, "get", Feed(*kept, kept_after=6))
    example.take(kept[2])
    assert sorted(handled()) == ["a-7", "a-8", "b-3", "b-4"]
    assert [each for each in handled() if each.startswith("a")] == ["a-7", "a-8"]
    for again in kept:
        example.take(again)
    example.read_feed()
    assert len(handled()) == 4


def test_a_cursor_that_is_older_than_the_feed_goes_on_and_nothing_waits_for_ever(
    example, handled, monkeypatch
):
    feed = Feed(event(1, "a", 1))
    monkeypatch.setattr(example.httpx, "get", feed)
    example.read_feed()
    # Of what came meanwhile the queue lost a-2, and the feed has only the last of another checkout.
    feed.events, feed.kept_after = (event(9, "b", 1),), 5
    example.take(event(4, "a", 3))
    assert handled() == ["a-1", "a-3", "b-1"]
    asked = len(feed.asked)
    example.take(event(9, "b", 1))
    assert (len(feed.asked), handled()[3:]) == (asked, [])


def test_an_event_before_one_that_the_feed_has_is_waited_for(example, handled, monkeypatch):
    """The feed that a process reads may end before the events that the queue brings at the same time."""
    feed = Feed(event(1, "a", 1))
    monkeypatch.setattr(example.httpx, "get", feed)
    example.read_feed()
    with example.books() as db:
        assert example.keep(db, [event(3, "a", 3)])
    assert handled() == ["a-1"]
    feed.events = (event(1, "a", 1), event(2, "a", 2), event(3, "a", 3))
    example.read_feed()
    assert handled() == ["a-1", "a-2", "a-3"]


def test_the_books_are_open_to_others_while_the_feed_is_asked_and_no_cursor_goes_back(
    example, handled, monkeypatch
):
    feed = Feed(*(event(number, "a", number) for number in range(1, 7)))
    monkeypatch.setattr(example.httpx, "get", feed)

    def meanwhile() -> None:
        # Another process, which waits for nothing, reads all of it.
        feed.meanwhile = lambda: None
        with sqlite3.connect("events.db", timeout=0) as other:
            other.execute("BEGIN IMMEDIATE")
        other.close()
        example.read_feed()

    feed.meanwhile = meanwhile
    example.read_feed()
    assert handled() == [f"a-{number}" for number in range(1, 7)]
    # The answer to the first question is not used: the cursor has moved on.
    assert feed.asked == [0, 0, 2, 4, 6, 6]
