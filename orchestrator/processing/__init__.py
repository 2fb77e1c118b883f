"""Processing: claim checkouts, run every step that each needs now, release the lease with the next due time.

A step makes its gateway calls with no transaction open, then writes the result (one move). Each state has one
function here. The transition table decides which fact may move a checkout (`domain.states`), `reconciliation`
what an answer of the gateway proves. A step that fails always leaves a due time; attempts run out only where
nothing was offered to a shopper.

No step relies on a lease beyond its end: before each call the rest of the lease must cover it, and each write
is guarded by lease and version. An answer that comes too late is dropped; the next holder of the lease
repeats the lookup.
"""

from __future__ import annotations

from orchestrator.processing.context import StepContext
from orchestrator.processing.dispatcher import Dispatcher
from orchestrator.processing.processor import CheckoutProcessor
