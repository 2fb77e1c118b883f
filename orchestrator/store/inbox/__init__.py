"""The intake of requests: intents, callbacks, commands. They are stored, answered and woken here, each kind
as a list in one transaction; nothing here moves a checkout or calls the gateway.

An intent becomes a checkout once, however often it is sent. A callback is stored raw before it is read; a
repeat wakes the checkout again unless the first was handled. A command is a row with its actor and the
version that the actor saw.
"""

from orchestrator.store.checkouts import Intake
from orchestrator.store.inbox.callbacks import (
    Arrival,
    CallbackKind,
    Callbacks,
    Caps,
    Sender,
    Stored,
    decrypt_body,
    decrypt_sender,
    encrypt_body,
)
from orchestrator.store.inbox.command_requests import StoredOrder, checkout_view, stored_order
from orchestrator.store.inbox.commands import Requested, fingerprint_of, request, request_all
from orchestrator.store.inbox.errors import AnswerUnreadable, KeyReused, OrderTaken, ReasonNotKept
from orchestrator.store.inbox.intents import Accepted, Intents
from orchestrator.store.inbox.unmatched import MerchantCallback, StoredCallback, UnmatchedCallbacks
