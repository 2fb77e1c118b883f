"""A simulation of AltaPay on localhost: Checkout API, hosted payment pages, Merchant API, callbacks, and
faults on demand.

It is a gateway of its own: it shares nothing with the orchestrator but the rules of money, runs in its own
process, and keeps a ledger of what really happened to every shopper's money. Public: `SandboxConfig`,
`create_app`, `run`.
"""

from __future__ import annotations

from orchestrator.devkit.sandbox.app import create_app, run
from orchestrator.devkit.sandbox.config import SandboxConfig

__all__ = ["SandboxConfig", "create_app", "run"]
