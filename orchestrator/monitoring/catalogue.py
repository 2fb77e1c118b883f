"""Every metric, with its labels and what it says; docs/metrics.md is made of this and of `counters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator import counters

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX: Final = "orchestrator_"
AGES: Final = (("under_10m", 600.0), ("10m_to_1h", 3600.0), ("1h_to_1d", 86_400.0), ("over_1d", float("inf")))
"""The buckets of ages, with their upper bounds in seconds."""
MERCHANTS: Final = 20
"""Merchants that have series of their own, those that wait longest; the others are added up."""
QUEUES: Final = ("checkouts", "callbacks", "commands", "operations", "lookups", "events", "deliveries")
"""What waits: due checkouts without and with a new callback or command, commands, operations on money that
are not settled, lookups for their budget, events for their place in the feed, events for webhooks."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure that is read from Postgres."""

    help: str
    labels: tuple[str, ...] = ()


GAUGES: Final = {
    "database_up": Gauge("1 if the last reading of the group `now` succeeded: Postgres answers and has the tables of this version."),
    "ready": Gauge("1 if `/readyz` says that requests can be served."),
    "problems": Gauge("Sentences that `/readyz` gives; `orchestrator doctor` has them with what to do."),
    "reading_age_seconds": Gauge("How old the figures of this group are; since the start of the process where they were never read.", ("group",)),
    "clock_difference_seconds": Gauge("Postgres's clock minus that of a process's host, less what the time of the query may explain; of each kind the process that differs most.", ("kind",)),
    "processes": Gauge("Processes of a kind that gave a heartbeat in the last 20 s.", ("kind",)),
    "process_memory_bytes": Gauge("Memory in RAM of the live processes of a kind.", ("kind",)),
    "process_troubles": Gauge("What live processes of a kind say is wrong with them.", ("kind",)),
    "broker_messages": Gauge("Messages in a queue of the broker, as a worker saw it at its last sweep.", ("queue",)),
    "circuit_open_seconds": Gauge("For how long calls to a gateway have failed whose circuit is open.", ("gateway",)),
    "waiting": Gauge("What could be worked on now and is not; calls of a paused merchant wait on purpose, and are not counted.", ("queue",)),
    "oldest_due_seconds": Gauge("How long the oldest of it has waited since it was due; 0: nothing waits.", ("queue",)),
    "oldest_hint_seconds": Gauge("The same of what a hint was published for.", ("queue",)),
    "merchant_waiting": Gauge("Due checkouts of the merchants that wait longest.", ("merchant",)),
    "merchant_oldest_due_seconds": Gauge("How long the oldest of these has waited.", ("merchant",)),
    "attention": Gauge("Checkouts that need a decision, by code; the runbook has a chapter for each.", ("code",)),
    "attention_oldest_seconds": Gauge("For how long the oldest of them has needed it.", ("code",)),
    "operations": Gauge("Captures, refunds and releases that are not settled.", ("kind", "state")),
    "money_at_risk": Gauge(
        "Money, in units of the currency, that waits: for the result of an operation (`operation`), a decision "
        "(`attention`: what the payments hold that the decision names; the order's amount where it names none; of a chargeback what was "
        "taken back), as a payment beside the accepted one (`surplus`) or one that is not taken for the order's (`unknown`), "
        "for a callback that is not verified (`callback`; without paused merchants), reserved and not captured (`uncaptured`). The same money can be in several kinds: do not add kinds up. Amounts that cannot be read are not in it.",
        ("currency", "kind", "age"),
    ),
    "webhooks": Gauge("Endpoints for events: `served`; `circuit_open`; `off`: after five days of failures (API status `paused`) or a 410 (API status `off`); `paused`: by a person. None of disabled merchants.", ("state",)),
    "checkouts": Gauge("Checkouts by state and by what is held of the shopper's money.", ("state", "payment_status")),
    "money": Gauge("Totals of all checkouts, in units of the currency: reserved, captured, refunded, charged_back.", ("currency", "fact")),
}  # fmt: skip
"""By their names without the prefix."""

SCRAPING: Final = """\
## Scraping

`orchestrator monitoring alerts > alerts.yml` writes the rules and `orchestrator monitoring dashboard > dashboard.json` a dashboard to import in Grafana;
[runbook-alerts.md](runbook-alerts.md) has a chapter for each alert. In `prometheus.yml`:

```yaml
rule_files: [alerts.yml]
scrape_configs:
  - job_name: orchestrator
    scrape_interval: 15s
    authorization: {credentials_file: /etc/prometheus/orchestrator.token}
    static_configs: [{targets: ["api-1:8000", "api-2:8000"]}]
```

Each API process is a target of its own: each keeps figures for a second or longer, and through one address for several of them a counter would
seem to fall. On Kubernetes Prometheus finds the pods of the API:

```yaml
scrape_configs:
  - job_name: orchestrator
    scrape_interval: 15s
    authorization: {credentials_file: /etc/prometheus/orchestrator.token}
    kubernetes_sd_configs: [{role: pod, namespaces: {names: [payments]}}]
    relabel_configs:
      - {source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_component], regex: api, action: keep}
      - {source_labels: [__meta_kubernetes_pod_container_port_name], regex: http, action: keep}
      - {source_labels: [__meta_kubernetes_pod_name], target_label: pod}
```

The links of alerts to the runbook are relative unless the address of the documentation is given:
`orchestrator monitoring alerts --docs-url https://…/docs > alerts.yml`.

The names begin with `orchestrator_`, so Flower and celery-exporter can run beside it. They see the queues of the broker and nothing more: workers
send no task events and take no remote control. How long a broker's queue is says little here, since Postgres holds the work: use the ages."""


def reference() -> str:
    """Return the page of all metrics; docs/metrics.md is exactly this (a test compares)."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` of the API, in the text format of Prometheus, with the token of `ORCHESTRATOR_METRICS_TOKEN`; or on an address of its own",
        "without one (`ORCHESTRATOR_METRICS_LISTEN`). One API process answers for the whole installation, so one target is enough, and all are",
        "better: take `max` of gauges and counters over instances, never `sum`. The figures are those of all merchants, for the operator alone.",
        "",
        "Gauges are read from Postgres, at most once in a second. A group of figures whose statement takes more than 10 ms is read in the",
        "background, for at most 2 % of the time (what waits is read again after 45 s all the same), and `orchestrator_reading_age_seconds` says how old its figures are: so a scrape stays short",
        "among millions of checkouts, and a figure is a count of rows and never a sum of changes. Counters are totals of all processes, alive or",
        "ended: each writes its own with its heartbeat, so a killed process loses the counts of its last five seconds, and a counter never falls.",
        "What concerns money and orders is a gauge, which loses nothing.",
        "",
        *SCRAPING.splitlines(),
        "",
        "## Gauges",
        "",
        "| metric | labels | what it says |",
        "|---|---|---|",
        *(f"| `{PREFIX}{name}` | {_listed(gauge.labels)} | {gauge.help} |" for name, gauge in GAUGES.items()),
        "",
        f"Queues are {_listed(QUEUES)}; ages are {_listed(name for name, _ in AGES)}. At most {MERCHANTS} merchants have series of",
        "their own; the others are added up as `(others)`.",
        "",
        "## Counters and histograms",
        "",
        "| metric | labels | what it counts |",
        "|---|---|---|",
    ]
    for metric in counters.known().values():
        name = PREFIX + metric.name
        shown = f"`{name}_total`" if isinstance(metric, counters.Counter) else f"`{name}` (histogram)"
        lines.append(f"| {shown} | {_listed(metric.labels)} | {metric.help} |")
    return "\n".join(lines) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
