"""What is made of the table of promises: alert rules, their tests for promtool, the dashboard of Grafana, and
the chapters of the runbook. The files under docs/ are exactly this (a test compares).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from orchestrator import counters
from orchestrator.monitoring.catalogue import GAUGES, PREFIX
from orchestrator.monitoring.promises import PROMISES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from orchestrator.monitoring.promises import Promise

RUNBOOK: Final = "runbook-alerts.md"
_HEAD: Final = (
    "# Made by `orchestrator monitoring`; a change belongs into orchestrator/monitoring/promises.py.\n"
)
_TESTED_AT: Final = "2m"
"""When the rule of a broken promise must fire, from its cause."""
_AFTER_AN_HOUR: Final = "1h2m"
"""The same where the cause comes after a healthy hour."""


def alerts(docs: str = "docs") -> str:
    """Return the alert rules of Prometheus; `docs` is the address of the documentation, for links."""
    rules = [
        {
            "alert": promise.name,
            "expr": promise.expression,
            "for": promise.lasts,
            "labels": {"severity": promise.severity},
            "annotations": _annotations(promise, docs),
        }
        for promise in PROMISES
    ]
    return _HEAD + _yaml({"groups": [{"name": "orchestrator", "interval": "15s", "rules": rules}]})


def alert_tests(docs: str = "docs", *, rules: str = "alerts.yml") -> str:
    """Return the tests of these rules for promtool: each fires within two minutes of its cause, and not in an
    hour of healthy load.
    """
    tests: list[dict[str, Any]] = []
    for promise in PROMISES:
        fired = [
            {
                "exp_labels": {"severity": promise.severity, **labels},
                "exp_annotations": _annotations(promise, docs),
            }
            for labels in promise.fires
        ]
        at = _AFTER_AN_HOUR if promise.after_an_hour else _TESTED_AT
        tests.append(_test(f"{promise.name} fires", promise.broken, at=at, expected={promise.name: fired}))
    # An hour takes promtool a second, so one hour is the test of all promises whose series can be together.
    for number, (series, names) in enumerate(_healthy(), start=1):
        tests.append(
            _test(f"healthy {number}", _for_an_hour(series), at="1h", expected={name: [] for name in names})
        )
    return _HEAD + _yaml({"rule_files": [rules], "evaluation_interval": "15s", "tests": tests})


def _healthy() -> list[tuple[dict[str, str], list[str]]]:
    """Return installations in which all is well: their series, and the promises that these show."""
    found: list[tuple[dict[str, str], list[str]]] = []
    for promise in PROMISES:
        for installation in found:
            if all(installation[0].get(name, shown) == shown for name, shown in promise.kept.items()):
                break
        else:
            installation = ({}, [])
            found.append(installation)
        installation[0].update(promise.kept)
        installation[1].append(promise.name)
    return found


def _test(
    name: str, series: Mapping[str, str], *, at: str, expected: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    return {
        "name": name,
        "interval": "15s",
        "input_series": [
            {"series": _with_instance(name), "values": values} for name, values in series.items()
        ],
        "alert_rule_test": [
            {"eval_time": at, "alertname": alert, "exp_alerts": fired} for alert, fired in expected.items()
        ],
    }


def _with_instance(series: str) -> str:
    name, _, labels = series.partition("{")
    inside = labels.rstrip("}")
    return f'{PREFIX}{name}{{instance="api:8000"{f",{inside}" if inside else ""}}}'


def _for_an_hour(series: Mapping[str, str]) -> dict[str, str]:
    """Repeat the last step of each series to the end of the hour."""
    longer = {}
    for name, values in series.items():
        before, _, last = values.rpartition(" ")
        step, _, _ = last.rpartition("x")
        longer[name] = f"{before} {step}x260".strip()
    return longer


def _annotations(promise: Promise, docs: str) -> dict[str, str]:
    return {"summary": promise.summary, "runbook_url": f"{docs}/{RUNBOOK}#{promise.anchor}"}


def runbook() -> str:
    """Return the chapters of the runbook, one for each alert."""
    lines = [
        "# Runbook: alerts",
        "",
        "What each alert of [alerts.yml](monitoring/alerts.yml) means, what to look at, and what to do. Decisions on single checkouts are in",
        "[runbook.md](runbook.md); [metrics.md](metrics.md) has every metric. `page` wakes a person, `ticket` waits for the morning.",
        "",
        "Beside the alerts, `orchestrator doctor` names what is wrong with what to do about it, and `orchestrator checkouts explain ID` says",
        "why an order is where it is. Where to type a command: [operate.md](operate.md#where-to-type-a-command).",
    ]
    for promise in PROMISES:
        lines += [
            "",
            f"## {promise.name}",
            "",
            f"**{promise.summary}** ({promise.severity}, after {promise.lasts})",
            "",
            f"**Meaning.** {promise.meaning}",
            "",
            f"**Look at.** {promise.look_at}",
            "",
            f"**Do.** {promise.do}",
            "",
            f"**Rule.** `{promise.expression}`",
        ]
    return "\n".join(lines) + "\n"


# ── The dashboard ─────────────────────────────────────────────────────────────────────────────────────────

_ROWS: Final = (
    ("Is it well", ("ready", "problems", "processes", "process_troubles", "clock_difference_seconds", "reading_age_seconds")),
    ("Does work wait", ("oldest_due_seconds", "oldest_hint_seconds", "waiting", "merchant_oldest_due_seconds", "broker_messages")),
    ("Money", ("money_at_risk", "attention", "operations", "checkouts", "money")),
    ("Orders", ("moves", "offer_seconds", "http_requests", "http_request_seconds", "queued_intents")),
    ("Gateways", ("gateway_calls", "gateway_call_seconds", "gateway_calls_withheld", "circuit_open_seconds")),
    ("Callbacks and events", ("callbacks", "callback_lag_seconds", "deliveries", "delivery_seconds", "webhooks")),
    ("Inside", ("batch_rows", "batch_seconds", "lease_losses", "sweeps", "swept_checkouts", "hints", "process_cpu_seconds",
                "process_memory_bytes")),
)  # fmt: skip
_UNITS: Final = {"_seconds": "s", "_bytes": "bytes"}
_WIDTH: Final = 8
_HEIGHT: Final = 7


def dashboard() -> str:
    """Return the dashboard of Grafana, as JSON."""
    panels: list[dict[str, Any]] = [
        {
            "type": "alertlist",
            "title": "Broken promises",
            "gridPos": {"h": _HEIGHT, "w": 24, "x": 0, "y": 0},
            "options": {
                "alertInstanceLabelFilter": '{alertname=~"' + "|".join(p.name for p in PROMISES) + '"}'
            },
        }
    ]
    top = _HEIGHT
    for title, names in _ROWS:
        panels.append({"type": "row", "title": title, "gridPos": {"h": 1, "w": 24, "x": 0, "y": top}})
        top += 1
        for at, name in enumerate(names):
            line, column = divmod(at, 24 // _WIDTH)
            place = {"h": _HEIGHT, "w": _WIDTH, "x": column * _WIDTH, "y": top + line * _HEIGHT}
            panels.append({"gridPos": place, **_panel(name)})
        top += -(-len(names) // (24 // _WIDTH)) * _HEIGHT
    board = {
        "uid": "orchestrator",
        "title": "Checkout orchestrator",
        "tags": ["orchestrator"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Prometheus"}]
        },
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }
    return json.dumps(board, indent=1, ensure_ascii=False) + "\n"


def _panel(name: str) -> dict[str, Any]:
    metric = counters.known().get(name) or GAUGES[name]
    by, legend = ", ".join(metric.labels), " ".join(f"{{{{{label}}}}}" for label in metric.labels)
    if isinstance(metric, counters.Counter):
        rate = f"sum by ({by}) (max without (instance, pod) (rate({PREFIX}{name}_total[5m])))"
        expressions = [(rate, legend)]
    elif isinstance(metric, counters.Histogram):
        by = ", ".join(("le", *metric.labels))
        of = f"sum by ({by}) (max without (instance, pod) (rate({PREFIX}{name}_bucket[5m])))"
        expressions = [
            (f"histogram_quantile({part}, {of})", f"{legend} {part * 100:.0f} %".strip())
            for part in (0.5, 0.95, 0.99)
        ]
    else:
        expressions = [(f"max by ({by}) ({PREFIX}{name})", legend)]
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), "short")
    return {
        "type": "timeseries",
        "title": name.replace("_", " "),
        "description": metric.help,
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "fieldConfig": {
            "defaults": {"unit": unit, "min": None if "difference" in name else 0},
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + at), "expr": expression, "legendFormat": legend}
            for at, (expression, legend) in enumerate(expressions)
        ],
    }


# ── YAML ──────────────────────────────────────────────────────────────────────────────────────────────────


def _yaml(value: Any) -> str:
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Any) -> Iterator[str]:
    """Write mappings and lists in block style, and every text as JSON, which YAML reads alike."""
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list) and item:
                yield f"{key}:"
                yield from (f"  {line}" for line in _lines(item))
            else:
                yield f"{key}: {json.dumps(item, ensure_ascii=False)}"
        return
    for item in value:
        first, *rest = _lines(item) if isinstance(item, dict) else (json.dumps(item, ensure_ascii=False),)
        yield f"- {first}"
        yield from (f"  {line}" for line in rest)
