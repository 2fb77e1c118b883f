"""Events for merchants: their types, the facts of each type, and the CloudEvents 1.0 document.

Pure functions and values. A fact is stored with its move (`facts`), and a document is made of the stored row
alone (`documents`); both follow the schema of the type (`schemas`), which is made of the same classes.
"""

from orchestrator.domain.events.documents import (
    CloudEvent,
    Content,
    EventContent,
    EventData,
    StoredEvent,
    document,
    event_id,
    schema_id,
    traceparent,
)
from orchestrator.domain.events.facts import (
    Event,
    EventType,
    Policy,
    Totals,
    attempt_declined,
    attention_changed,
    completed,
    failed,
    intent_rejected,
    money_seen,
    operation_rejected,
    operation_succeeded,
    ready,
    stored,
    surplus,
)
from orchestrator.domain.events.schemas import schema
