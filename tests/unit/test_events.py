"""Events: each type is a CloudEvent by its own schema, thin documents hold no sentences, and a document never
changes.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from uuid import UUID, uuid4

import jsonschema
import msgspec
import pytest

from orchestrator.domain import events
from orchestrator.domain.attention import Attention, AttentionCode
from orchestrator.domain.command_result import ResultCode, result
from orchestrator.domain.events import Event, EventType, Totals
from orchestrator.domain.last_error import ErrorCode, error
from orchestrator.domain.records import Command, CommandKind, Operation
from orchestrator.domain.states import State
from tests.support.cloud_events import check, documents, validator

CHECKOUT = UUID("019b0000-0000-7000-8000-000000000001")
PAID = Totals(13900, 0, 0, 0)
SENTENCE = "a sentence about it that only a person reads"
ERROR = error(ErrorCode.OTHER, text=SENTENCE)
ASKED = Attention(code=AttentionCode.OTHER, facts={"text": SENTENCE})
OTHER = Attention(code=AttentionCode.OTHER, facts={"text": "another question"})


def operation(kind: str) -> Operation:
    return Operation(
        id=uuid4(),
        transaction_id="t-1",
        kind=kind,
        amount=3900,
        currency="DKK",
        state="succeeded",
        cause="asked",
        actor="x",
    )


def seen(**after: int) -> Event:
    totals = {"reserved": 13900, "captured": 5000, "refunded": 1000, "charged_back": 500}
    (event,) = events.money_seen(
        Totals(**totals), Totals(**{**totals, **after}), transaction_id="t-1", was_completed=True
    )
    return event


EXAMPLES = (
    events.ready(methods=3),
    events.attempt_declined(["t-1"], reason="Card Declined"),
    events.attempt_declined(["t-1", "t-2"], reason=None),
    events.completed(["t-1"], late=False, policy=None, surcharge=0),
    events.completed(["t-1", "t-2"], late=True, policy="return", surcharge=250),
    events.failed(ERROR),
    events.failed(None),
    Event(EventType.CHECKOUT_CANCELLED),
    Event(EventType.CHECKOUT_EXPIRED),
    Event(EventType.CHECKOUT_REOPENED),
    *events.attention_changed(None, ASKED),
    *events.attention_changed(ASKED, None),
    *(events.operation_succeeded(operation(kind), change=3900, role="accepted") for kind in ("capture", "refund", "release")),
    seen(captured=6000),
    seen(refunded=2000),
    seen(reserved=1000),
    seen(reserved=20000),
    seen(charged_back=700),
    seen(charged_back=0),
    events.surplus(["t-2"]),
    events.operation_rejected(Command(uuid4(), CommandKind.CAPTURE, "x"), result(ResultCode.OTHER, text=SENTENCE)),
    events.operation_rejected(operation("refund"), ERROR),
)  # fmt: skip


def row(event: Event, *, state: State = State.COMPLETED, totals: Totals = PAID, **changes: object):
    """Return a row of `events` as Postgres gives it back."""
    payload = events.stored(
        event, order_ref="A-1001", state=state, currency="DKK", amount=13900, totals=totals
    )
    values = {
        "checkout_id": CHECKOUT,
        "sequence": 7,
        "kind": str(event.type),
        "payload": json.loads(msgspec.json.encode(payload)),
        "correlation_id": "0af7651916cd43dd8448eb211c80319c",
        "created_at": datetime(2026, 1, 5, 10, 0, 3, 250_000, UTC),
        "position": 12,
    }
    return SimpleNamespace(**{**values, **changes})


def test_there_is_an_example_of_every_type():
    assert {example.type for example in EXAMPLES} == set(EventType) - {EventType.INTENT_REJECTED}


@pytest.mark.parametrize("order", ["A-1001", None])
def test_a_refused_intent_is_a_cloud_event_without_a_checkout(order):
    payload = events.intent_rejected(intent=CHECKOUT, order_ref=order, code="order_taken", reason=SENTENCE)
    values = vars(row(Event(EventType.CHECKOUT_CANCELLED))) | {
        "kind": "intent.rejected",
        "payload": json.loads(msgspec.json.encode(payload)),
    }
    event = documents(SimpleNamespace(**values))
    assert event["thin"]["data"] == {
        "rejectedIntentId": str(CHECKOUT),
        "orderId": order,
        "code": "order_taken",
    }
    assert event["full"]["data"]["details"] == {"reason": SENTENCE}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: str(event.type))
def test_every_type_is_a_cloud_event_and_follows_its_schema(event):
    told = documents(row(event))
    thin, full = told["thin"], told["full"]
    assert thin["type"] == full["type"] == event.type
    assert {name for name in thin if name not in {"data", "dataschema"} and thin[name] != full[name]} == set()
    assert (thin["specversion"], thin["datacontenttype"], thin["sequencetype"]) == (
        "1.0",
        "application/json",
        "Integer",
    )
    assert thin["data"].items() <= full["data"].items()
    assert set(full["data"]) - set(thin["data"]) == {"details"}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: str(event.type))
def test_a_thin_document_holds_ids_words_and_amounts_and_no_sentence_of_ours(event):
    told = documents(row(event))
    assert "sentence" not in json.dumps(told["thin"])
    assert ("sentence" in json.dumps(told["full"])) == bool(event.details.get("reason") == SENTENCE)


def test_a_document_says_what_the_contract_promises():
    (told,) = (documents(row(events.completed(["t-1"], late=False, policy=None, surcharge=0)))["thin"],)
    assert told == {
        "specversion": "1.0",
        "id": f"{CHECKOUT}-7",
        "type": "checkout.completed",
        "source": "urn:checkout-orchestrator:default",
        "subject": str(CHECKOUT),
        "time": "2026-01-05T10:00:03.250000Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:checkout-orchestrator:event:checkout.completed:thin:1",
        "sequence": "7",
        "sequencetype": "Integer",
        "traceparent": told["traceparent"],
        "position": "12",
        "data": {
            "checkoutId": str(CHECKOUT),
            "orderId": "A-1001",
            "state": "completed",
            "paymentStatus": "authorized",
            "amount": {"value": 139.0, "currency": "DKK"},
            "money": {"reserved": 139.0, "captured": 0.0, "refunded": 0.0, "chargedBack": 0.0},
            "transactionIds": ["t-1"],
            "late": False,
            "policy": None,
            "surcharge": None,
        },
    }


def test_money_is_an_exact_decimal_number():
    text = msgspec.json.Encoder(decimal_format="number").encode(
        events.document(
            events.StoredEvent(
                **{
                    **vars(row(events.operation_succeeded(operation("capture"), change=1, role="accepted"))),
                    "merchant": "m",
                }
            )
        )
    )
    data = json.loads(text, parse_float=Decimal)["data"]
    assert data["change"] == {"value": Decimal("0.01"), "currency": "DKK"}
    assert data["amount"]["value"] == Decimal("139.00")


@pytest.mark.parametrize(
    ("totals", "state", "word"),
    [
        (Totals(0, 0, 0, 0), State.AWAITING_PAYMENT, "unpaid"),
        (Totals(13900, 0, 0, 0), State.COMPLETED, "authorized"),
        (Totals(13900, 100, 0, 0), State.COMPLETED, "partially_captured"),
        (Totals(13900, 13900, 0, 0), State.COMPLETED, "captured"),
        (Totals(13900, 13900, 1, 0), State.COMPLETED, "partially_refunded"),
        (Totals(13900, 13900, 0, 1), State.COMPLETED, "charged_back"),
    ],
)
def test_the_payment_status_follows_from_the_totals_beside_it(totals, state, word):
    told = documents(row(events.ready(methods=1), state=state, totals=totals))["thin"]
    assert told["data"]["paymentStatus"] == word


def test_an_unknown_currency_leaves_amounts_empty_and_the_document_valid():
    broken = row(seen(captured=6000))
    broken.payload["currency"] = "QQQ"
    data = documents(broken)["thin"]["data"]
    assert data["amount"] == {"value": None, "currency": "QQQ"}
    assert set(data["money"].values()) == {None}


def test_outside_the_feed_there_is_no_position():
    assert "position" not in documents(row(events.ready(methods=1), position=None))["thin"]


@pytest.mark.parametrize(
    ("correlation", "trace"),
    [
        ("0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319c"),
        ("0AF76519-16CD-43DD-8448-EB211C80319C", "0af7651916cd43dd8448eb211c80319c"),
        ("order-1", None),
    ],
)
def test_the_trace_context_comes_from_the_correlation_id(correlation, trace):
    told = events.traceparent(correlation, "one")
    version, trace_id, parent, flags = told.split("-")
    assert (version, flags, len(parent)) == ("00", "00", 16)
    assert trace in {None, trace_id}
    assert told == events.traceparent(correlation, "one")
    other = events.traceparent(correlation, "two")
    assert other.split("-")[1] == trace_id
    assert other != told


def test_a_correlation_id_of_zeros_is_no_trace_id():
    assert int(events.traceparent("0" * 32, "one").split("-")[1], 16)


def test_the_schemas_refuse_what_is_no_such_event():
    told = documents(row(events.completed(["t-1"], late=False, policy=None, surcharge=0)))["thin"]
    for change in (
        {"type": "checkout.failed"},
        {"sequence": "0"},
        {"sequence": 7},
        {"traceparent": "00-1-2-00"},
        {"specversion": "0.3"},
        {"data": {**told["data"], "state": "shipped"}},
        {"data": {name: value for name, value in told["data"].items() if name != "paymentStatus"}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator("checkout.completed", "thin").validate({**told, **change})


def test_the_schemas_are_open_to_fields_of_later_versions():
    told = documents(row(events.ready(methods=1)))["thin"]
    validator("checkout.ready", "thin").validate({**told, "data": {**told["data"], "new": 1}})


def test_what_no_schema_names_is_in_no_document():
    strange = row(Event(EventType.CHECKOUT_CANCELLED))
    strange.payload["facts"] = {"unheardOf": 1}
    with pytest.raises(ValueError, match="unheardOf"):
        documents(strange)


@pytest.mark.parametrize("kind", EventType, ids=str)
def test_every_type_is_described_and_has_schemas_of_its_own(kind):
    assert kind.about.endswith(".")
    for content in ("thin", "full"):
        described = json.loads(msgspec.json.encode(events.schema(kind, content)))
        jsonschema.Draft202012Validator.check_schema(described)
        assert described["$id"].endswith(f":{kind}:{content}:1")
        assert (described["title"], described["description"]) == (kind, kind.about)


def test_money_that_moved_at_the_gateway_has_an_event_for_each_movement():
    def told(before: Totals, after: Totals, **more: bool) -> list[tuple[str, object]]:
        found = events.money_seen(before, after, transaction_id="t", was_completed=True, **more)
        return [(str(event.type), event.facts["change"]) for event in found]

    assert told(PAID, PAID) == []
    assert told(PAID, Totals(13900, 13900, 900, 0)) == [
        ("payment.captured", 13900),
        ("payment.refunded", 900),
    ]
    assert told(PAID, Totals(0, 0, 0, 0)) == [("payment.released", 13900)]
    assert told(PAID, Totals(13900, 0, 0, 5000)) == [("payment.chargeback", 5000)]
    first = events.money_seen(
        Totals(0, 0, 0, 0), Totals(13900, 13900, 0, 0), transaction_id="t", was_completed=False
    )
    assert [str(event.type) for event in first] == ["payment.captured"], "the completion itself has the rest"


def test_a_change_of_attention_is_one_event():
    assert events.attention_changed(None, None) == events.attention_changed(ASKED, ASKED) == ()
    assert [event.type for event in events.attention_changed(ASKED, OTHER)] == ["checkout.attention"]
    assert events.attention_changed(ASKED, None)[0].facts == {"attention": "other"}


def test_a_checked_document_may_not_lack_its_subject():
    told = documents(row(events.ready(methods=1)))["thin"]
    del told["subject"]
    with pytest.raises(jsonschema.ValidationError):
        check(told)
