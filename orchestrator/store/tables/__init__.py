"""All tables of the schema: those of checkouts in `core`, those of webhooks in `webhooks`, those beside
`merchants` in `merchants`, kept answers in `idempotency`, heartbeats in `processes`, those of the
operations console in `console`.
"""

from orchestrator.store.tables import console, idempotency, merchants, processes, webhooks
from orchestrator.store.tables.core import (
    IS_LISTED,
    IS_LIVE,
    IS_OPEN,
    IS_UNCONFIRMED,
    PARTITION,
    checkouts,
    metadata,
    money_operations,
    payments,
    sessions,
)
