"""What is traced for the coverage of `make test`: the tests that it is made of, with their fixtures, and the
import of what is measured.

Tracing doubles what a test costs in this process; everything else runs without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

MEASURED = (
    "races",
    "integration/processing",
    "integration/api",
    "integration/test_rejected.py",
    "acceptance/mishaps",
    "unit/test_states.py",
    "unit/test_fair_share.py",
)
"""What meets every branch of states, checkouts, inbox and processing."""


def pytest_configure(config: pytest.Config) -> None:
    """End what pytest-cov started too early in a worker of xdist: it takes the worker for the process that
    distributes, starts another measurement later, and this one would trace everything whenever that pauses.
    """
    controller = _controller(config)
    if controller is not None and hasattr(config, "workerinput"):
        controller.cov.stop()


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    controller = _controller(session.config)
    if controller is None:
        return
    for name in controller.cov.get_option("run:source_pkgs"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(getattr(package, "__path__", ()), f"{name}."):
            importlib.import_module(module.name)
    controller.pause()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    controller = _controller(item.config)
    if controller is None or not _is_measured(item):
        return (yield)
    controller.resume()
    try:
        return (yield)
    finally:
        controller.pause()


def _is_measured(item: pytest.Item) -> bool:
    tests = item.config.rootpath / "tests"
    return any(item.path.is_relative_to(tests / place) for place in MEASURED)


def _controller(config: pytest.Config) -> Any:
    """What pytest-cov steers coverage with in this process; None without `--cov`."""
    plugin = config.pluginmanager.getplugin("_cov")
    return None if plugin is None else plugin.cov_controller
