"""Imports that only annotations need, which import-linter leaves out, go downwards too where a step
is processed.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import grimp
import pytest

HOUSE = Path(__file__).parents[2]
CONTRACTS = {
    container: contract["layers"]
    for contract in tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for container in contract.get("containers", ())
}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("orchestrator", exclude_type_checking_imports=False, cache_dir=None)


def upward(graph: grimp.ImportGraph, container: str, layers: list[str]) -> set[tuple[str, str]]:
    """Return the imports against the order of the layers: importer and imported."""
    drawn = [
        grimp.Layer(*(name.strip() for name in layer.replace("|", ":").split(":")), independent="|" in layer)
        for layer in layers
    ]
    found = graph.find_illegal_dependencies_for_layers(layers=drawn, containers={container})
    return {(dependency.importer, dependency.imported) for dependency in found}


def test_nothing_in_processing_imports_back_up(graph):
    assert upward(graph, "orchestrator.processing", CONTRACTS["orchestrator.processing"]) == set()


def test_processing_knows_nothing_of_the_packages_above_it(graph):
    layers = [layer.split(" : ") for layer in CONTRACTS["orchestrator"]]
    own = next(number for number, layer in enumerate(layers) if "processing" in layer)
    above = {name for layer in layers[:own] for name in layer}
    known = {
        imported
        for module in graph.find_descendants("orchestrator.processing")
        for imported in graph.find_modules_directly_imported_by(module)
    }
    assert {imported for imported in known if imported.split(".")[1] in above} == set()


def test_the_rule_can_fail(graph):
    layers = CONTRACTS["orchestrator.processing"]
    turned = [*reversed(layers[:2]), *layers[2:]]
    assert upward(graph, "orchestrator.processing", turned) == {
        ("orchestrator.processing.dispatcher", "orchestrator.processing.processor")
    }
