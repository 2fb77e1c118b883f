"""The chain of one checkout: the fields of an entry, how it is made, and whether entries follow from one
another.

An entry is canonical JSON text with a number in its checkout's sequence. Its MAC is HMAC-SHA256 over the
previous MAC and the text, under a key derived from the secret keys. A chain can continue from a stored head:
the entries before it are in an archive. Pure: nothing here uses a database or a file.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from orchestrator.domain.states import TRANSITIONS, State, Trigger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from sqlalchemy import Row

    from orchestrator.crypto import Encryptor, Key

PURPOSE: Final = "audit"
CHANGED: Final = "was changed: its text and its mac do not agree"
START: Final = b"\0" * 32
"""The mac before the first entry of every chain."""
_ENCODER: Final = msgspec.json.Encoder(order="sorted")
FROM_PAYMENT: Final = ("unmatched_payment", "stray")
"""Words in the evidence of a first entry that say that the checkout was created from a payment for an order
number that no shop had handed over. The first is written; the second stands in entries of versions before
migration 0011, which are never changed."""


class Action(StrEnum):
    """What an entry says, as subject:fact. Exhaustive: the trail has no other words."""

    CHECKOUT_RECEIVED = "checkout:received"
    CHECKOUT_MOVED = "checkout:moved"
    CHECKOUT_REOPENED = "checkout:reopened"
    CHECKOUT_ERASED = "checkout:erased"
    INTENT_MATCHED = "intent:matched"
    ORDER_CHANGED = "order:changed"
    SESSION_CHANGED = "session:changed"
    GATEWAY_ASKED = "gateway:asked"
    GATEWAY_FAILED = "gateway:failed"
    CALLBACK_READ = "callback:read"
    PAYMENT_SEEN = "payment:seen"
    TOKEN_RENEWED = "token:renewed"  # noqa: S105 - a word of the trail
    CANCEL_REQUESTED = "cancel:requested"
    COMMAND_REFUSED = "command:refused"
    COMMAND_TAKEN = "command:taken"
    MONEY_REQUESTED = "money:requested"
    MONEY_SUBMITTED = "money:submitted"
    MONEY_SUCCEEDED = "money:succeeded"
    MONEY_REJECTED = "money:rejected"
    MONEY_UNKNOWN = "money:unknown"
    MONEY_WITHDRAWN = "money:withdrawn"
    ATTENTION_RAISED = "attention:raised"
    ATTENTION_CLEARED = "attention:cleared"
    WATCH_ENDED = "watch:ended"


SYSTEM: Final = "system:orchestrator"
"""The actor when no person or client asked for it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, ready to be written: its number, text and mac."""

    sequence: int
    at: str
    action: Action
    text: str
    key_id: str
    mac: bytes

    @property
    def row(self) -> dict[str, object]:
        """Its columns beside the checkout."""
        return {
            "sequence": self.sequence,
            "at": self.at,
            "action": self.action,
            "entry": self.text,
            "key_id": self.key_id,
            "mac": self.mac,
        }


def chain_mac(key: Key, before: bytes, entry: str, purpose: str = PURPOSE) -> bytes:
    """Return the mac of an entry that follows `before`; each chain has a key of its own, by its `purpose`."""
    return hmac.digest(key.derived(purpose), before + entry.encode(), "sha256")


def unproven(
    encryptor: Encryptor,
    before: bytes,
    entry: str,
    *,
    key_id: str,
    mac: bytes,
    purpose: str = PURPOSE,
    changed: str = "was changed",
) -> str | None:
    """Say why the mac of an entry that follows `before` does not prove it; None if it does."""
    key = encryptor.known(key_id)
    if key is None:
        return f"was made under key {key_id}, which SECRET_KEYS does not have"
    return None if hmac.compare_digest(chain_mac(key, before, entry, purpose), bytes(mac)) else changed


def make(  # noqa: PLR0913 - the words of an entry
    encryptor: Encryptor,
    *,
    checkout: UUID,
    sequence: int,
    before: bytes,
    at: datetime,
    action: Action,
    actor: str,
    correlation_id: str,
    state: State | None,
    to: State,
    trigger: Trigger | None = None,
    evidence: Mapping[str, object] | None = None,
) -> Entry:
    """Make the entry that follows mac `before` as number `sequence`.

    `state` is where the checkout was (None for its first entry), `to` where it is now. `evidence` holds ids,
    amounts in minor units and outcomes, never personal data: the trail outlives the erasure of a customer.
    """
    moment = at.isoformat(timespec="microseconds")
    body = {
        "checkout": checkout,
        "sequence": sequence,
        "at": moment,
        "actor": actor,
        "action": action,
        "from": state,
        "to": to,
        "trigger": trigger,
        "evidence": dict(evidence or {}),
        "correlation": correlation_id,
    }
    entry = _ENCODER.encode(body).decode()
    key = encryptor.newest
    return Entry(sequence, moment, action, entry, key.id, chain_mac(key, before, entry))


@dataclass(frozen=True, slots=True)
class Link:
    """An entry as it is stored: its text, its mac, and the columns that help to find it."""

    sequence: int
    at: datetime
    action: str
    entry: str
    key_id: str
    mac: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """The number, MAC and state after the last entry of a chain or its archived part; default: none."""

    sequence: int = 0
    mac: bytes = START
    state: str | None = None


def walk(
    encryptor: Encryptor, checkout: UUID, links: Iterable[Link | Row[Any]], *, after: Head, head: Head
) -> tuple[int, str | None]:
    """Follow entries from one head to another; return how many were read, and what does not hold."""
    sequence, mac, state = after.sequence, after.mac, after.state
    read = 0
    for link in links:
        read += 1
        where = f"entry {link.sequence} of checkout {checkout}"
        if link.sequence <= after.sequence:
            return read, f"{where} stands here, though it was archived"
        if link.sequence != sequence + 1:
            return read, f"entry {sequence + 1} of checkout {checkout} is missing"
        problem = unproven(encryptor, mac, link.entry, key_id=link.key_id, mac=link.mac, changed=CHANGED)
        if problem is None:
            problem, state = _read_entry(link, checkout, state)
        if problem is not None:
            return read, f"{where} {problem}"
        sequence, mac = link.sequence, bytes(link.mac)
    if sequence != head.sequence:
        return read, (
            f"checkout {checkout} has {sequence} entries and should have {head.sequence}: its tail was cut"
        )
    if not hmac.compare_digest(mac, bytes(head.mac)):
        return read, f"checkout {checkout} does not carry the head of its chain"
    if state is not None and state != head.state:
        return read, f"checkout {checkout} is {head.state}, but its trail ends in {state}"
    return read, None


class _Read(msgspec.Struct, rename={"before": "from"}):
    """What verification reads of an entry's text."""

    checkout: UUID
    sequence: int
    at: str
    action: Action
    to: State
    before: State | None
    trigger: Trigger | None
    evidence: dict[str, Any]


_READ: Final = msgspec.json.Decoder(_Read)


def from_unmatched_payment(evidence: Mapping[str, object]) -> bool:
    """Say whether a first entry is that of a checkout created from a payment for an unknown order number."""
    return any(evidence.get(word) is True for word in FROM_PAYMENT)


def _read_entry(row: Link | Row[Any], checkout: UUID, state: str | None) -> tuple[str | None, str | None]:
    """Check an entry against its row and the table of transitions; return (problem, state after)."""
    try:
        told = _READ.decode(row.entry)
    except msgspec.DecodeError:
        return "is not in the words of the trail", state
    moment = row.at.isoformat(timespec="microseconds")
    if (told.checkout, told.sequence, told.action, told.at) != (checkout, row.sequence, row.action, moment):
        return "disagrees with its own columns", state
    if told.before != state:
        return f"starts from {told.before}, but the one before ended in {state}", state
    if told.before is None:
        # A payment for an order number without an intent begins in the state in which its order would have
        # ended.
        from_payment = told.to is State.FAILED and from_unmatched_payment(told.evidence)
        created = told.to is State.RECEIVED or from_payment
        return (None if created else f"begins in {told.to}, and every checkout begins as received"), told.to
    moves = told.trigger is not None and TRANSITIONS.get((told.before, told.trigger)) is told.to
    if told.to is not told.before and not moves:
        return (
            f"moves from {told.before} to {told.to} by {told.trigger}, which the table does not have",
            state,
        )
    return None, told.to
