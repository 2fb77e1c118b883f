"""The event that an endpoint is tried out with: a CloudEvent of a type of its own, which belongs to no
checkout.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from orchestrator.domain.events import event_id, traceparent

if TYPE_CHECKING:
    from uuid import UUID

TYPE: Final = "webhook.test"


class TrialEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvent 1.0 in its JSON format."""

    specversion: str = "1.0"
    id: str
    type: str = TYPE
    source: str
    subject: str
    time: datetime
    datacontenttype: str = "application/json"
    sequence: str = "1"
    sequencetype: str = "Integer"
    traceparent: str
    data: dict[str, bool]


def document(test: UUID, merchant: str) -> TrialEvent:
    """Return the test event with this id."""
    identity = event_id(test, 1)
    return TrialEvent(
        id=identity,
        source=f"urn:checkout-orchestrator:{merchant}",
        subject=str(test),
        time=datetime.now(UTC),
        traceparent=traceparent(str(test), identity),
        data={"test": True},
    )
