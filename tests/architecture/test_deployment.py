"""What is deployed beside Compose: manifests of Kubernetes, units of systemd, and the schemas that they are
checked with.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from orchestrator.domain import operations
from orchestrator.settings import PREFIX, Settings
from orchestrator.settings.secrets import SECRET, SECRETS

ROOT = Path(__file__).parents[2]
VENDOR = Path(__file__).parent / "vendor"
KUBERNETES = ROOT / "deploy/kubernetes"
SYSTEMD = ROOT / "deploy/systemd"
DEFINITIONS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Job": "io.k8s.api.batch.v1.Job",
    "Service": "io.k8s.api.core.v1.Service",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "PodDisruptionBudget": "io.k8s.api.policy.v1.PodDisruptionBudget",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
}
SCHEMAS = json.loads((VENDOR / "kubernetes-1.37.json").read_text())
KNOWN = {PREFIX + name.upper() for name in Settings.model_fields}
PROCESSES = ("api", "worker", "scheduler", "deliverer")


def resources_of(folder: str) -> list[dict[str, Any]]:
    """Return the resources that a kustomization names itself, as they are written."""
    kustomization = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())
    files = [KUBERNETES / folder / name for name in kustomization["resources"] if name.endswith(".yaml")]
    return [resource for file in files for resource in yaml.safe_load_all(file.read_text())]


BASE = resources_of("base")
WORKLOADS = {
    resource["metadata"]["name"].removeprefix("orchestrator-"): resource
    for resource in BASE
    if resource["kind"] in {"Deployment", "Job"}
}


def pod(name: str) -> dict[str, Any]:
    return WORKLOADS[name]["spec"]["template"]["spec"]


def container(name: str) -> dict[str, Any]:
    (only,) = pod(name)["containers"]
    return only


def faults(resource: dict[str, Any]) -> list[str]:
    """Return what the schema of a kind of Kubernetes finds wrong, unknown fields too."""
    schema = {"$ref": f"#/$defs/{DEFINITIONS[resource['kind']]}", **SCHEMAS}
    found = Draft202012Validator(schema).iter_errors(resource)
    return [f"{list(error.absolute_path)}: {error.message}" for error in found]


def test_the_schemas_are_those_that_are_named() -> None:
    rows = re.findall(r"^\| (\S+) \|.*`(\S{64})` \|$", (VENDOR / "README.md").read_text(), re.MULTILINE)
    assert {name for name, _ in rows} == {path.name for path in VENDOR.glob("*.json")}
    for name, digest in rows:
        assert base64.b64encode(hashlib.sha384((VENDOR / name).read_bytes()).digest()).decode() == digest


@pytest.mark.parametrize(
    "resource", BASE, ids=lambda resource: f"{resource['kind']} {resource['metadata']['name']}"
)
def test_each_resource_is_valid_by_the_schema_of_kubernetes(resource: dict[str, Any]) -> None:
    assert faults(resource) == []


def test_the_schema_finds_a_misspelt_field_and_a_wrong_type() -> None:
    wrong = json.loads(json.dumps(WORKLOADS["worker"]))
    wrong["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 5
    wrong["spec"]["replicas"] = "two"
    assert len(faults(wrong)) == 2


def test_the_example_renders_and_every_reference_in_it_is_resolved() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed: nothing here renders a kustomization")
    command = [kubectl, "kustomize", str(KUBERNETES / "example")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    rendered = [resource for resource in yaml.safe_load_all(done.stdout) if resource]
    assert [faults(resource) for resource in rendered if resource["kind"] in DEFINITIONS] == [[]] * len(BASE)
    assert {resource["metadata"]["namespace"] for resource in rendered} == {"payments"}
    assert [r["metadata"]["name"] for r in rendered if r["kind"] not in DEFINITIONS] == [
        "orchestrator-worker"
    ]
    images = re.findall(r"image: (\S+)", done.stdout)
    assert set(images) == {"registry.example/checkout-orchestrator:0.1.0"}
    (settings,) = (resource["data"] for resource in rendered if resource["kind"] == "ConfigMap")
    assert set(settings) <= KNOWN
    assert f"{PREFIX}GATEWAY_URL" in settings
    labels = [
        resource["spec"]["template"]["metadata"]["labels"]
        for resource in rendered
        if resource["kind"] == "Deployment"
    ]
    selectors = [
        resource["spec"]["selector"]["matchLabels"]
        for resource in rendered
        if resource["kind"] in {"Deployment", "PodDisruptionBudget"}
    ]
    assert all(any(selector.items() <= label.items() for label in labels) for selector in selectors)


def test_there_is_one_deployment_for_each_process_and_a_job_for_the_migrations() -> None:
    assert set(WORKLOADS) == {*PROCESSES, "migrate"}
    assert WORKLOADS["migrate"]["kind"] == "Job"
    budgets = {
        resource["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        for resource in BASE
        if resource["kind"] == "PodDisruptionBudget"
    }
    assert budgets == {name for name in PROCESSES if WORKLOADS[name]["spec"]["replicas"] > 1}


@pytest.mark.parametrize("name", [*PROCESSES, "migrate"])
def test_each_process_is_given_the_secrets_that_it_needs_from_secrets_and_no_others(name: str) -> None:
    variables = container(name)["env"]
    assert {variable["name"] for variable in variables} <= KNOWN
    assert {variable["name"].removeprefix(PREFIX).lower() for variable in variables} == SECRETS[name]
    assert all(set(variable) == {"name", "valueFrom"} for variable in variables)
    (settings,) = (resource["data"] for resource in BASE if resource["kind"] == "ConfigMap")
    assert not {key.removeprefix(PREFIX).lower() for key in settings} & SECRET
    assert set(settings) <= KNOWN


@pytest.mark.parametrize("name", [*PROCESSES, "migrate"])
def test_no_process_has_rights_or_can_write_its_files(name: str) -> None:
    spec, only = pod(name), container(name)
    assert spec["securityContext"] | {"runAsNonRoot": True, "runAsUser": 10001} == spec["securityContext"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [mount["mountPath"] for mount in only["volumeMounts"]] == ["/tmp"]  # noqa: S108 - in a container
    assert set(only["resources"]["limits"]) == {"memory"}
    assert "10001" in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_is_probed_and_gets_the_time_that_its_longest_step_takes(name: str) -> None:
    settings = Settings(_env_file=None)
    longest = {
        "api": 10 + settings.shutdown_timeout,
        "worker": max(settings.shutdown_timeout, operations.lease_for(settings)),
        "scheduler": settings.shutdown_timeout,
        "deliverer": settings.shutdown_timeout + settings.webhook_total_timeout,
    }[name]
    assert pod(name)["terminationGracePeriodSeconds"] >= longest + 10
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container(name)[probe]
        if name == "api":
            assert asked["httpGet"]["path"] == ("/readyz" if probe == "readinessProbe" else "/healthz")
        else:
            assert asked["exec"]["command"] == ["orchestrator", "doctor", name]
            assert asked["timeoutSeconds"] >= 10
    assert WORKLOADS[name]["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_commands_are_those_of_compose() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name in (*PROCESSES, "migrate"):
        assert container(name)["command"] == services[name]["command"]


def test_only_the_api_can_be_called() -> None:
    policies = {r["metadata"]["name"]: r["spec"] for r in BASE if r["kind"] == "NetworkPolicy"}
    assert policies["orchestrator-api"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8000}]}]
    assert "ingress" not in policies["orchestrator-others"]
    (expression,) = policies["orchestrator-others"]["podSelector"]["matchExpressions"]
    assert set(expression["values"]) == {*PROCESSES, "migrate"} - {"api"}


def test_the_scaled_object_has_the_fields_of_kedas_postgresql_scaler() -> None:
    """KEDA's schema is not here: the fields are those of its documentation (keda.sh, scalers, PostgreSQL)."""
    (scaled,) = resources_of("keda")
    assert (scaled["apiVersion"], scaled["kind"]) == ("keda.sh/v1alpha1", "ScaledObject")
    assert scaled["spec"]["scaleTargetRef"]["name"] == WORKLOADS["worker"]["metadata"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["type"] == "postgresql"
    assert set(trigger["metadata"]) == {
        *("connectionFromEnv", "query", "targetQueryValue", "activationTargetQueryValue"),
    }
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    assert trigger["metadata"]["connectionFromEnv"] in {v["name"] for v in container("worker")["env"]}


# ── systemd ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_units_are_what_systemd_accepts(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed: nothing here reads a unit")
    for unit in SYSTEMD.glob("orchestrator*.*"):
        text = unit.read_text().replace("/opt/orchestrator/bin/orchestrator", "/bin/true")
        (tmp_path / unit.name).write_text(text)
    units = ["orchestrator@api.service", "orchestrator-migrate.service", "orchestrator.target"]
    done = subprocess.run(
        [analyze, "verify", *(str(tmp_path / unit) for unit in units)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "orchestrator" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("name", [*PROCESSES, "migrate"])
def test_the_files_of_variables_give_each_unit_what_its_process_needs(name: str) -> None:
    files = [
        SYSTEMD / f"{name}.env.example",
        *([SYSTEMD / "common.env.example"] if name != "migrate" else []),
    ]
    given = dict(line.split("=", 1) for file in files for line in file.read_text().splitlines())
    command = given.pop("COMMAND", name).split()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert command[0] == services[name]["command"][1]
    assert set(given) <= KNOWN
    assert {key.removeprefix(PREFIX).lower() for key in given} & SECRET == SECRETS[name]
    assert "…" in "".join(given.values()) or name == "scheduler"


def test_a_unit_gets_the_time_that_the_longest_step_takes() -> None:
    settings = Settings(_env_file=None)
    (seconds,) = re.findall(
        r"^TimeoutStopSec=(\d+)$", (SYSTEMD / "orchestrator@.service").read_text(), re.MULTILINE
    )
    assert int(seconds) >= max(settings.shutdown_timeout, operations.lease_for(settings)) + 10
