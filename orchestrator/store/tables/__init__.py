"""All tables of the schema: those of checkouts in `core`, those of webhooks in `webhooks`, those of the
operations console in `console`, all others in `installation`.
"""

from orchestrator.store.tables import console, installation, webhooks
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
    quoted,
    sessions,
)
