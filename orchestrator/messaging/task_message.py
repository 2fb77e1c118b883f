"""An event as a message of Celery: protocol 2, JSON, with one argument.

The task's id is the event's, so that a message that is sent again is known by it. On RabbitMQ the parts are
those of AMQP; on Redis they are one JSON document in kombu's format.
"""

from __future__ import annotations

import base64
from typing import Any, Final, NamedTuple
from uuid import uuid4

import msgspec

from orchestrator.messaging.app import app

ORIGIN: Final = "checkout-orchestrator"
CONTENT_TYPE: Final = "application/json"
ENCODING: Final = "utf-8"
PERSISTENT: Final = 2
_ENCODER: Final = msgspec.json.Encoder()


class TaskMessage(NamedTuple):
    """A message: the event's id, the headers, and the body."""

    id: str
    headers: dict[str, Any]
    body: bytes


def message(task: str, identity: str, document: bytes) -> TaskMessage:
    """Return the message that runs a task with an event (its JSON), which no header repeats."""
    made = app.amqp.as_task_v2(
        identity, task, args=(), argsrepr="", kwargsrepr="", origin=ORIGIN, ignore_result=True
    )
    _, named, embedded = made.body
    body = b"[[%s],%s,%s]" % (document, _ENCODER.encode(named), _ENCODER.encode(embedded))
    return TaskMessage(identity, made.headers, body)


def redis_item(sent: TaskMessage, queue: str) -> bytes:
    """Return a message as kombu keeps it in a list of Redis, with a tag of its own."""
    return _ENCODER.encode(
        {
            "body": base64.b64encode(sent.body).decode(),
            "content-encoding": ENCODING,
            "content-type": CONTENT_TYPE,
            "headers": sent.headers,
            "properties": {
                "correlation_id": sent.id,
                "reply_to": "",
                "delivery_mode": PERSISTENT,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
    )
