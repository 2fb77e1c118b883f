"""Processing: claim checkouts, take each through every step it can take, give the lease back with the next
due time.

A step is: ask the gateway (no transaction open), then write what came of it (one move). What each state needs
done is one function here; whether a fact may move a checkout is the table's business (`domain.states`), what
an answer of the gateway proves is `reconciliation`'s. A step that fails leaves a due time behind it, whatever
the failure: out of attempts only where nothing was offered to a shopper.

Nothing here trusts the lease for longer than it lasts: before each call the rest of the lease must cover it,
and each write is guarded by lease and version. An answer that comes too late is dropped, and whoever holds
the checkout by then asks again.
"""

from __future__ import annotations

from orchestrator.processing.context import StepContext
from orchestrator.processing.dispatcher import Dispatcher
from orchestrator.processing.processor import CheckoutProcessor

__all__ = ["CheckoutProcessor", "Dispatcher", "StepContext"]
