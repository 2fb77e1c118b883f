"""A wheel holds all that the command needs: installed into an environment of its own, it runs from any
directory.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

import pytest

from tests.support.command import ROOT, environment

if TYPE_CHECKING:
    from pathlib import Path


def run(*command: object, cwd: Path, seconds: float = 60) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(300)
def test_an_installed_wheel_brings_everything_up_from_any_directory(tmp_path):
    run(
        sys.executable,
        *("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path),
        ROOT,
        cwd=ROOT,
    )
    (wheel,) = tmp_path.glob("*.whl")
    home, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=elsewhere)
    own = home / "bin/python"
    packages = run(own, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=elsewhere).strip()
    run(
        sys.executable,
        *("-m", "pip", "--python", own, "install", "--quiet", "--no-deps", "--no-index", wheel),
        cwd=elsewhere,
    )
    # Its dependencies are those of this environment; what is editable there is not installed here.
    (home / packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    assert str(home) in run(own, "-c", "import orchestrator; print(orchestrator.__file__)", cwd=elsewhere)
    said = run(
        home / "bin/orchestrator",
        *("demo", "--orders", "3", "--exit", "--port", "0", "--data-dir", tmp_path / "data"),
        cwd=elsewhere,
        seconds=150,
    )
    assert "All 3 orders ended as scripted" in said
