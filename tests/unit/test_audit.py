"""An audit entry: canonical text, a mac over everything before it, words from a closed list."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from uuid import UUID

import pytest

from orchestrator import audit
from orchestrator.audit import Action, chain_mac, make
from orchestrator.crypto import Encryptor
from orchestrator.domain.states import State, Trigger
from tests.conftest import OLDER_KEY, SECRET_KEY, make_settings

CHECKOUT = UUID("0190a5a0-0000-7000-8000-000000000001")
AT = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)


def entry(encryptor, **changes):
    values = {
        "checkout": CHECKOUT,
        "sequence": 2,
        "before": audit.START,
        "at": AT,
        "action": Action.CHECKOUT_MOVED,
        "actor": audit.SYSTEM,
        "correlation_id": "c-1",
        "state": State.RECEIVED,
        "to": State.AUTHENTICATED,
        "trigger": Trigger.AUTHENTICATED,
        "evidence": {"lifetime": 100, "call": "authenticate"},
        **changes,
    }
    return make(encryptor, **values)


def test_an_entry_is_canonical_json_of_everything_that_is_known(encryptor):
    made = entry(encryptor)
    assert made.text == json.dumps(json.loads(made.text), sort_keys=True, separators=(",", ":"))
    assert json.loads(made.text) == {
        "checkout": str(CHECKOUT),
        "sequence": 2,
        "at": "2026-01-02T03:04:05.000006+00:00",
        "actor": audit.SYSTEM,
        "action": "checkout:moved",
        "from": "received",
        "to": "authenticated",
        "trigger": "authenticated",
        "evidence": {"lifetime": 100, "call": "authenticate"},
        "correlation": "c-1",
    }
    assert (made.sequence, made.at, made.action) == (
        2,
        "2026-01-02T03:04:05.000006+00:00",
        Action.CHECKOUT_MOVED,
    )


def test_the_order_in_which_evidence_was_gathered_does_not_matter(encryptor):
    turned = entry(encryptor, evidence={"call": "authenticate", "lifetime": 100})
    assert turned == entry(encryptor)


@pytest.mark.parametrize(
    "change",
    [
        {"before": b"\1" * 32},
        {"sequence": 3},
        {"actor": "client:shop"},
        {"evidence": {"lifetime": 101, "call": "authenticate"}},
        {"correlation_id": "c-2"},
        {"at": AT.replace(microsecond=7)},
        {"checkout": UUID(int=CHECKOUT.int + 1)},
        {"state": None, "to": State.RECEIVED, "trigger": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_mac_covers_every_word_and_the_entry_before(encryptor, change):
    assert entry(encryptor, **change).mac != entry(encryptor).mac


def test_the_newest_key_chains_and_is_named(encryptor):
    rotated = Encryptor(make_settings(secret_keys=(OLDER_KEY, SECRET_KEY)).secret_keys)
    made = entry(rotated)
    assert made.key_id == rotated.newest.id != encryptor.newest.id
    assert made.mac == chain_mac(rotated.newest, audit.START, made.text)
    assert made.mac != entry(encryptor).mac


def test_every_action_reads_subject_and_fact():
    assert all(re.fullmatch(r"[a-z]+:[a-z]+", action) for action in Action)
