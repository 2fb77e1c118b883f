"""Webhooks as the API takes and shows them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import UNSET, UnsetType

from orchestrator.api.contract.values import Count, Id, NextCursor, Ordinal, Shape, Text, Time, about
from orchestrator.delivery.addresses import LONGEST_URL
from orchestrator.delivery.sender import Outcome
from orchestrator.delivery.task_target import LONGEST_NAME, NAME
from orchestrator.domain.events import Content, EventType
from orchestrator.store.deliveries import Purpose, Result
from orchestrator.store.webhooks import COUNTED, Kind, PauseReason, Status

WEBHOOK_PAGE: Final = 100
DELIVERY_PAGE: Final = 200
LONGEST_DESCRIPTION: Final = 200
LONGEST_OVERLAP: Final = 7 * 86_400
OVERLAP: Final = 86_400
ALL_TYPES: Final = "*"

Url = Annotated[
    str,
    about(
        "https:// and a public host, without credentials and fragment",
        "https://shop.example/webhooks",
        format="uri",
        maxLength=LONGEST_URL,
    ),
]
Type = Annotated[str, about(enum=[ALL_TYPES, *(kind.value for kind in EventType)])]
Types = Annotated[list[Type], about('`["*"]`: all', [ALL_TYPES], minItems=1, maxItems=len(EventType))]
Task = Annotated[
    str,
    about("The name of your Celery task", "shop.events", pattern=f"^{NAME}$", maxLength=LONGEST_NAME),
]
Queue = Annotated[
    str,
    about(
        "The queue that it goes to; on the orchestrator's own broker `events:` and your merchant's name, and what you like after another colon",
        "shop-events",
        pattern=f"^{NAME}$",
        maxLength=LONGEST_NAME,
    ),
]
Broker = Annotated[
    str,
    about(
        "amqps:// (RabbitMQ) or rediss:// (Redis) and a public host, with the login",
        "amqps://user:password@broker.shop.example:5671/shop",
        maxLength=LONGEST_URL,
    ),
]
Description = Annotated[str, about(maxLength=LONGEST_DESCRIPTION)]


class AddWebhook(Shape, kw_only=True):
    """Add a webhook, with its `url`; or a Celery task, with `task`, `queue` and `broker`."""

    kind: Annotated[Kind, about("How events come to you", default="webhook")] | UnsetType = UNSET
    url: Annotated[Url, about("Required of the kind `webhook`")] | UnsetType = UNSET
    task: Annotated[Task, about("Required of the kind `celery`")] | UnsetType = UNSET
    queue: Annotated[Queue, about("Required of the kind `celery`")] | UnsetType = UNSET
    broker: (
        Annotated[Broker, about("Of the kind `celery`; absent or null: the orchestrator's own broker")]
        | UnsetType
        | None
    ) = UNSET
    description: Description | UnsetType | None = UNSET
    types: Annotated[Types, about(default=[ALL_TYPES])] | UnsetType = UNSET
    content: Annotated[Content, about("`full` adds sentences", default="thin")] | UnsetType = UNSET


class ChangeWebhook(Shape, kw_only=True):
    """Change a webhook; what is absent stays as it is. Its kind cannot be changed."""

    url: Url | UnsetType = UNSET
    task: Task | UnsetType = UNSET
    queue: Queue | UnsetType = UNSET
    broker: Broker | UnsetType | None = UNSET
    description: Description | UnsetType | None = UNSET
    types: Types | UnsetType = UNSET
    content: Content | UnsetType = UNSET
    paused: Annotated[bool, about("Events wait while it is paused; false resumes it")] | UnsetType = UNSET


class RotateSecret(Shape, kw_only=True):
    """Replace the secret."""

    overlap: (
        Annotated[
            int,
            about(
                "Seconds for which the secret before signs too",
                minimum=0,
                maximum=LONGEST_OVERLAP,
                default=OVERLAP,
            ),
        ]
        | UnsetType
    ) = UNSET


class Replay(Shape, kw_only=True):
    """What is to be sent again: one event, a period, or all that was given up."""

    event_id: Annotated[str, about("The id of one event", maxLength=64)] | UnsetType = UNSET
    since: Annotated[Time, about("Events from this time on")] | UnsetType = UNSET
    before: Annotated[Time, about("And before this one; absent: until now")] | UnsetType = UNSET
    failed: Annotated[Literal[True], about("All that was given up")] | UnsetType = UNSET


class Webhook(Shape, kw_only=True):
    """A webhook that events are sent to."""

    id: Id
    kind: Kind
    url: Annotated[Url | None, about("Null of the kind `celery`")]
    task: Annotated[Task | None, about("Null of the kind `webhook`, as the next two")]
    queue: Queue | None
    broker: Annotated[
        Annotated[str, about(maxLength=LONGEST_URL + 10)] | None,
        about("Without its login; null: the orchestrator's own"),
    ]
    description: Description
    types: Types
    content: Content
    status: Annotated[Status, about("`off`: it has answered 410")]
    pause_reason: Annotated[PauseReason | None, about("Why it is not served; null while it is")]
    paused_at: Time | None
    created_at: Time
    delivered_at: Annotated[Time | None, about("The last delivery, to ten seconds")]
    failing_since: Annotated[Time | None, about("The first failure since the last delivery")]
    held_until: Annotated[Time | None, about("Nothing is sent before, because it failed or asked for it")]
    waiting: Annotated[
        int, about("Checkouts with an event that is not delivered yet", minimum=0, maximum=COUNTED)
    ]
    waiting_since: Annotated[Time | None, about("Since when an event is due")]
    previous_secret_until: Annotated[Time | None, about("Until then the secret before signs too")]


class NewWebhook(Webhook, kw_only=True):
    """A webhook with its secret, which is shown this once; a Celery task has none."""

    secret: (
        Annotated[str, about("Standard Webhooks", pattern="^whsec_[A-Za-z0-9+/]{43}=$", maxLength=50)] | None
    )


class WebhookPage(Shape, kw_only=True):
    """Webhooks in the order in which they were made."""

    webhooks: Annotated[list[Webhook], about(maxItems=WEBHOOK_PAGE)]
    next_cursor: NextCursor


class TestSent(Shape, kw_only=True):
    """A test event that will be sent once; what came of it stands among the attempts."""

    event_id: Annotated[Text, about("Its `webhook-id`")]


class Replayed(Shape, kw_only=True):
    """Events that will be sent again, with their ids."""

    events: Count


class Delivery(Shape, kw_only=True):
    """One attempt to deliver an event."""

    id: Id
    event_id: Annotated[Text, about("The `webhook-id`")]
    kind: Annotated[Text, about("The type of the event", "checkout.completed")]
    checkout_id: Annotated[Id, about("Of a test event an id of its own")]
    sequence: Ordinal
    purpose: Annotated[Purpose, about("`replay` and `test` were asked for")]
    number: Annotated[int, about("Of this event, from 1", minimum=1, maximum=2**31 - 1)]
    at: Annotated[Time, about("When it ended")]
    outcome: Outcome
    status: (
        Annotated[int, about("HTTP status; null where there was no answer", minimum=100, maximum=999)] | None
    )
    milliseconds: Count
    answer: (
        Annotated[str, about("The beginning of the answer's body; show it as text", maxLength=1024)] | None
    )
    result: Annotated[
        Result | None,
        about("How the event stands after it; null where it will be tried again, and of a test that failed"),
    ]


class DeliveryPage(Shape, kw_only=True):
    """Attempts to deliver, the youngest first."""

    deliveries: Annotated[list[Delivery], about(maxItems=DELIVERY_PAGE)]
    next_cursor: NextCursor
