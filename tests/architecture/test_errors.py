"""The tree of errors in the docstring of `errors.py` is the tree of the classes."""

from __future__ import annotations

import importlib
import pkgutil

import orchestrator
from orchestrator import errors


def leaves(kind: type) -> set[str]:
    return {kind.__name__}.union(*(leaves(subclass) for subclass in kind.__subclasses__()))


def test_the_tree_of_errors_names_every_error():
    for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    drawn = (errors.__doc__ or "").replace(",", " ").replace(".", " ").split()
    assert leaves(errors.OrchestratorError) - set(drawn) == set()
