"""The callbacks of a checkout under its lease: decrypted, and summarised for the trail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import log
from orchestrator.crypto import EncryptionError
from orchestrator.gateway.callbacks import CallbackFacts, Grade, read_body
from orchestrator.store.inbox import decrypt_body, decrypt_sender

if TYPE_CHECKING:
    from uuid import UUID

    from orchestrator.domain.records import Callback
    from orchestrator.processing.step import Step

_log = log.get(__name__)


def is_evidence(callback: Callback) -> bool:
    """Return whether a callback proves enough to count as evidence.

    The shopper's own browser (redirect) proves nothing.
    """
    return callback.kind != "redirect" and Grade(callback.grade).is_evidence


def proves_all(callback: Callback) -> bool:
    """Say whether a callback proves every field of its body: the checksum leaves most of them out."""
    return is_evidence(callback) and callback.grade != Grade.CHECKSUM


def is_new(callback: Callback, facts: CallbackFacts) -> bool:
    """Say whether a callback announces a payment that was only just created."""
    return is_evidence(callback) and callback.kind == "notification" and facts.status == "new"


def counts(callback: Callback, facts: CallbackFacts) -> bool:
    return is_evidence(callback) and not is_new(callback, facts)


def opened(step: Step) -> list[tuple[Callback, CallbackFacts]]:
    """Decrypt the callbacks. One that cannot be read is left out: the lookup does not need it."""
    opened = []
    for callback in step.held.callbacks:
        if callback.id not in step.facts:
            step.facts[callback.id] = _read(step, callback)
        opened.append((callback, step.facts[callback.id]))
    return opened


def _read(step: Step, callback: Callback) -> CallbackFacts:
    if callback.body is not None:
        try:
            keys = step.context.encryptor, step.held.id, step.held.data_key
            sender = decrypt_sender(*keys, callback.sender)
            return read_body(sender.content_type, decrypt_body(*keys, callback.body))
        except EncryptionError as error:
            _log.warning("callback_unreadable", callback=str(callback.id), reason=str(error))
    return CallbackFacts(flags=("unreadable",))


def _digest(step: Step, callback: Callback) -> dict[str, object]:
    """Return the digest of a callback under the data key: it proves what came while that key exists. A plain
    hash would allow a guess to be confirmed for ever.
    """
    try:
        return {"digest": step.data_key().mac(callback.digest).hex()}
    except EncryptionError:
        return {}


def summaries(step: Step, callbacks: list[tuple[Callback, CallbackFacts]]) -> list[dict[str, object]]:
    """Return what the trail may keep of each callback: ids, kind, proof, status; nothing about the
    shopper.
    """
    return [
        {
            "id": str(callback.id),
            "kind": callback.kind,
            "grade": callback.grade,
            "network": callback.network,
            **_digest(step, callback),
            "status": (facts.status or "")[:40],
            "transaction": (facts.transaction_id or "")[:40],
            **({"flags": list(facts.flags)} if facts.flags else {}),
        }
        for callback, facts in callbacks
    ]


def with_callbacks(step: Step, evidence: dict[str, object]) -> dict[str, object]:
    return {**evidence, "callbacks": summaries(step, opened(step))} if step.held.callbacks else evidence


def ids(step: Step) -> tuple[UUID, ...]:
    return tuple(callback.id for callback in step.held.callbacks)
