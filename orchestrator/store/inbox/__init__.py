"""What comes in from outside: intents, callbacks, commands. Stored, answered, woken; decided elsewhere.

Each kind goes in as a list in one transaction. An intent becomes a checkout once, however often it is sent. A
callback is stored raw before anybody reads it; a repeat wakes the checkout again unless the first was acted
on. A command is a row with who asked and which version they saw. Nothing here moves a checkout and nothing
here talks to the gateway.
"""

from orchestrator.store.inbox.callbacks import (
    Arrival,
    CallbackKind,
    Callbacks,
    Caps,
    Stored,
    decrypt_body,
    encrypt_body,
)
from orchestrator.store.inbox.command_requests import checkout_view
from orchestrator.store.inbox.commands import Requested, fingerprint_of, request, request_all
from orchestrator.store.inbox.errors import KeyReused, OrderTaken
from orchestrator.store.inbox.intents import Accepted, Intake, Intents
from orchestrator.store.inbox.unmatched import MerchantCallback, StoredCallback, UnmatchedCallbacks

__all__ = [
    "Accepted",
    "Arrival",
    "CallbackKind",
    "Callbacks",
    "Caps",
    "Intake",
    "Intents",
    "KeyReused",
    "MerchantCallback",
    "OrderTaken",
    "Requested",
    "Stored",
    "StoredCallback",
    "UnmatchedCallbacks",
    "checkout_view",
    "decrypt_body",
    "encrypt_body",
    "fingerprint_of",
    "request",
    "request_all",
]
