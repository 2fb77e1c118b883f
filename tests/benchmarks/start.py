"""Starts a part of a design under its module's own name: tasks and workflows are known by that, and not as
those of `__main__`.

python -m tests.benchmarks.start MODULE COMMAND ...
"""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    import_module(f"tests.benchmarks.{sys.argv[1]}").main(*sys.argv[2:])
