"""A shop's checkout request: the checkout intent, read field by field, and the session that it becomes at the
gateway.

`parse` takes raw JSON from anywhere (HTTP, the broker) and returns an `Intent`, or raises `IntentRejected`
with every problem at once, each with its field and the remedy. Numbers are read as exact decimals, never
through a float. The stored form is canonical: the same content in another form (spacing, order of names, 139
or 139.00) has the same fingerprint.

Values of a customer are never repeated in a sentence, because sentences end up in answers, tables and logs.
"""

from orchestrator.intents.changes import changed
from orchestrator.intents.fields import Problem
from orchestrator.intents.reading import (
    BODY_LIMIT,
    LONGEST_ORDER,
    ORDER_NUMBER,
    Content,
    Intent,
    IntentRejected,
    may_be_order,
    parse,
)
from orchestrator.intents.sessions import session_body, shop_pages
