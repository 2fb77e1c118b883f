"""Nothing from outside is markup, and nothing from outside steers the terminal, however it is printed."""

from __future__ import annotations

import io
import json
import re
import sys
from types import SimpleNamespace

import pytest
from rich.panel import Panel
from rich.text import Text

from orchestrator.cli import lookup, output
from orchestrator.devkit.local.terminal import PlainConsole, Terminal
from orchestrator.explain.timeline import timeline

MARKUP = [
    "[/b]held",
    "[link=file:///etc/passwd]x[/link]",
    "[bold red]Paid[/]",
    "[",
    "[]",
    "\\[x]",
    ":warning: ok",
    "[/]",
]
STEERING = [
    "\x1b[2JPaid: yes",
    "\x1b]8;;https://evil.example\x1b\\x",
    "\x9b31m",
    "A-\u202e1002",
    "A-1\nPaid: yes",
    "A\rB",
    "\x07\x08\x7f",
]
_RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def drawn(*things, terminal=False):
    stream = io.StringIO()
    console = PlainConsole(
        file=stream, width=200, force_terminal=terminal, color_system="standard" if terminal else None
    )
    for thing in things:
        console.print(thing)
    return stream.getvalue()


def tabled(*cells):
    table = lookup.table(*(f"c{number}" for number, _ in enumerate(cells)))
    table.title = cells[0]
    table.add_row(*cells)
    return table


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_value_is_printed_as_it_stands(text):
    for thing in (text, tabled(text), Panel(text), tabled(Text(text))):
        assert text in drawn(thing)


@pytest.mark.parametrize("text", STEERING, ids=ascii)
@pytest.mark.parametrize("terminal", [False, True])
def test_no_control_reaches_the_terminal_whatever_is_drawn(text, terminal):
    own = re.compile(r"\x1b\[[0-9;]*m")  # the styles of the drawing itself, on a terminal
    for thing in (
        text,
        tabled(text),
        tabled(Text(text)),
        Panel(text),
        Text(text, style="red"),
    ):
        printed = own.sub("", drawn(thing, terminal=terminal)) if terminal else drawn(thing)
        assert not _RAW.search(printed)


def test_a_line_break_in_a_value_begins_no_line():
    (line,) = [
        line for line in drawn(tabled("A-1\nPaid: yes")).splitlines() if "A-1" in line and "Paid" in line
    ][-1:]
    assert "A-1\ufffdPaid: yes" in line
    assert len(drawn("A-1\nPaid: yes").splitlines()) == 1


def test_columns_stay_in_line_beside_a_neutralised_value():
    table = lookup.table("a", "b")
    table.add_row("\x1b[31mx", "first")
    table.add_row("plain", "second")
    first, second = drawn(table).splitlines()[1:]
    assert first.index("first") == second.index("second")


@pytest.mark.parametrize("text", [*MARKUP, *STEERING], ids=ascii)
def test_a_line_of_a_command_is_one_plain_line(capsys, text):
    output.say(f"order {text} ends")
    output.say(text, err=True)
    told = capsys.readouterr()
    for printed in told:
        assert printed.count("\n") == 1
        assert not _RAW.search(printed)
    assert text not in MARKUP or text in told.out


@pytest.mark.parametrize("text", STEERING, ids=ascii)
def test_json_stays_json_with_its_content_and_without_a_raw_control(capsys, text):
    output.say_json(json.dumps({"orderId": text}, ensure_ascii=False))
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"orderId": text}
    assert not _RAW.search(printed)


@pytest.mark.parametrize("text", [*MARKUP, *STEERING], ids=ascii)
def test_the_story_of_a_checkout_shows_its_evidence_and_nothing_else(text):
    entry = {
        "at": "2026-01-01T00:00:00+00:00",
        "from": "received",
        "to": "received",
        "trigger": text,
        "action": "x",
        "actor": f"client:{text}",
        "evidence": {"status": text, "payments": [{"id": text, "status": text}]},
    }
    printed = drawn(timeline([entry]))
    assert not _RAW.search(printed)
    assert len(printed.splitlines()) == 2
    assert text not in MARKUP or text in printed


def test_what_a_child_process_logs_cannot_steer_the_terminal_of_up(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    lines = [
        json.dumps({"event": f"e{number}", "level": "warning", "reason": text, "exception": f"Trace\n{text}"})
        for number, text in enumerate([*MARKUP, *STEERING])
    ]
    child = SimpleNamespace(name="api", log="api.log", news=lambda: [*lines, *STEERING[:2]])
    Terminal().relay(child)
    printed = stream.getvalue()
    assert not _RAW.search(printed)
    assert not [line for line in printed.splitlines() if line.lstrip() == line]
    assert all(text in printed for text in MARKUP)


def test_a_child_that_writes_ever_other_lines_takes_no_more_and_more_memory(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    lines = [f"trouble number {number}" for number in range(2500)]
    terminal = Terminal(least="debug")
    terminal.relay(SimpleNamespace(name="api", log="api.log", news=lambda: lines))
    assert len(terminal._seen) <= 1000


@pytest.mark.parametrize("currency", ["BGN", "HRK", "XYZ", "", "dkk", "[/b]"])
def test_stored_money_of_any_currency_is_shown(currency):
    assert "139" in lookup.price(13900, currency)
