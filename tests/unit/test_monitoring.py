"""Alert rules, their tests, the dashboard and the pages are made of one table that Prometheus accepts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator import counters
from orchestrator.monitoring import catalogue, generated
from orchestrator.monitoring.promises import PROMISES

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
MADE = {
    "monitoring/alerts.yml": generated.alerts,
    "monitoring/alerts_test.yml": generated.alert_tests,
    "monitoring/dashboard.json": generated.dashboard,
    "runbook-alerts.md": generated.runbook,
    "metrics.md": catalogue.reference,
}


@pytest.mark.parametrize("name", MADE)
def test_the_files_are_what_the_table_says(name: str) -> None:
    assert (DOCS / name).read_text() == MADE[name]()


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool of Prometheus is not installed (Debian: apt-get install prometheus)",
)
def test_every_rule_fires_for_its_cause_and_is_silent_in_an_hour_without_it(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(generated.alerts())
    (tmp_path / "tests.yml").write_text(generated.alert_tests())
    # And the configuration that the page shows.
    shown = re.findall(r"```yaml\n(.*?)```", catalogue.reference(), flags=re.DOTALL)
    assert len(shown) == 2
    for number, text in enumerate(shown):
        # Debian builds Prometheus without the discovery of Kubernetes.
        known = re.sub(r"kubernetes_sd_configs: .*", 'static_configs: [{targets: ["api:8000"]}]', text)
        (tmp_path / f"prometheus-{number}.yml").write_text(known)
    for command in (
        *(("check", "config", "--syntax-only", f"prometheus-{number}.yml") for number in range(len(shown))),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "tests.yml"),
    ):
        ran = subprocess.run(
            ("promtool", *command), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_links_to_a_chapter_and_uses_metrics_that_exist() -> None:
    headings = {
        line.removeprefix("## ").lower()
        for line in (DOCS / "runbook-alerts.md").read_text().splitlines()
        if line.startswith("## ")
    }
    rules = yaml.safe_load((DOCS / "monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == {promise.name for promise in PROMISES}
    names = {catalogue.PREFIX + name for name in catalogue.GAUGES} | {
        catalogue.PREFIX + name + end
        for name in counters.known()
        for end in ("_total", "_bucket", "_count", "_sum")
    }
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (page, anchor) == ("docs/runbook-alerts.md", rule["alert"].lower())
        assert anchor in headings
        assert set(re.findall(r"orchestrator_\w+", rule["expr"])) <= names


def test_the_dashboard_shows_every_metric() -> None:
    panels = json.loads((DOCS / "monitoring/dashboard.json").read_text())["panels"]
    shown = {panel["title"].replace(" ", "_") for panel in panels}
    everything = {*catalogue.GAUGES, *counters.known()}
    assert everything - shown == {"attention_oldest_seconds", "database_up", "merchant_waiting"}
