"""The event that an endpoint is tried out with: a CloudEvent of a type of its own, which belongs to no
checkout.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from orchestrator.domain.events import event_id, traceparent

if TYPE_CHECKING:
    from uuid import UUID

TYPE: Final = "webhook.test"


class TrialEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A CloudEvent 1.0 in its JSON format."""

    specversion: str
    id: str
    type: str
    source: str
    subject: str
    time: datetime
    datacontenttype: str
    sequence: str
    sequencetype: str
    traceparent: str
    data: dict[str, Any]


def document(test: UUID, merchant: str) -> TrialEvent:
    """Return the test event with this id."""
    identity = event_id(test, 1)
    return TrialEvent(
        specversion="1.0",
        id=identity,
        type=TYPE,
        source=f"urn:checkout-orchestrator:{merchant}",
        subject=str(test),
        time=datetime.now(UTC),
        datacontenttype="application/json",
        sequence="1",
        sequencetype="Integer",
        traceparent=traceparent(str(test), identity),
        data={"test": True},
    )
