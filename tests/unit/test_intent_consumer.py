"""The consumer of the queue `intents`: what it hands over is bounded, and each stored message is acknowledged
once.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.intents.submissions import MESSAGE_BYTES, TOKEN_REMOVED, without_token, without_tokens
from orchestrator.worker.intents import IntentConsumer
from tests.conftest import make_settings

if TYPE_CHECKING:
    from orchestrator.worker.submissions import Message


class EndsLate(Future[None]):
    """A future that ends right after the first call of `done`."""

    def done(self) -> bool:
        ended = super().done()
        if not ended:
            self.set_result(None)
        return ended


class Consumer:
    """A consumer without a broker, what it handed over, and what it acknowledged."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.acknowledged: list[str] = []
        self.consumer = IntentConsumer(make_settings(broker_url="redis://127.0.0.1:1/0"), self._accept)

    def _accept(self, message: Message) -> Future[None]:
        self.messages.append(message)
        return EndsLate()

    def receive(self, body: object, **fields: Any) -> Message:
        tag = str(len(self.messages))
        properties = {"headers": {}, "properties": {}, "content_type": None, **fields}
        message = SimpleNamespace(body=body, ack=lambda: self.acknowledged.append(tag), **properties)
        self.consumer._received(message)
        return self.messages[-1]


def test_a_message_that_is_stored_while_others_are_acknowledged_is_acknowledged_next():
    consumer = Consumer()
    for _ in range(3):
        consumer.receive(b"x")
    consumer.consumer._acknowledge()
    assert consumer.acknowledged == []
    consumer.consumer._acknowledge()
    assert consumer.acknowledged == ["0", "1", "2"]
    consumer.consumer._acknowledge()
    assert len(consumer.acknowledged) == 3


def test_bytes_that_redis_does_not_deliver_again_are_not_cancelled_with_a_connection():
    consumer = Consumer()
    consumer.receive(b"x")
    consumer.consumer._pass_on(None, consumer.messages[0])
    (_, delivered), (_, unreadable) = consumer.consumer._under_way
    consumer.consumer._abandon()
    assert delivered.cancelled()
    assert not unreadable.cancelled()
    consumer.consumer.stop()
    consumer.consumer._abandon()
    assert unreadable.cancelled()


@pytest.mark.parametrize(
    ("body", "raw"),
    [
        (b"x", b"x"),
        ("å\ud800", "å?".encode()),
        (None, b""),
        (10**12, b"1000000000000"),
        ([1, {"a": 2}], b'[1, {"a": 2}]'),
        (b"x" * (2 * MESSAGE_BYTES), b"x" * (MESSAGE_BYTES + 1)),
    ],
    ids=["bytes", "text", "nothing", "number", "list", "too long"],
)
def test_any_body_is_handed_over_as_bytes_of_bounded_length(body: object, raw: bytes):
    assert Consumer().receive(body).body == raw


def test_headers_and_properties_that_are_no_objects_are_none():
    message = Consumer().receive(b"", headers=[1], properties="x")
    assert (message.headers, message.properties) == ({}, {})


def test_a_consumer_that_ended_without_being_stopped_is_in_trouble():
    consumer = Consumer().consumer
    assert consumer.trouble is None
    consumer._run = lambda: None  # type: ignore[method-assign]
    consumer._thread._target = consumer._run  # type: ignore[attr-defined]
    consumer.start()
    consumer._thread.join(10)
    assert "ended" in str(consumer.trouble)
    consumer.stop()
    assert consumer.trouble is None


WORDS = (
    b"they. eyJ. key a@disney.com",
    b"https://money.shop.dk/paid",
    b"a@survey.company.com and https://www.disney.co.uk/eyJ",
    b"Grey.winter.jacket",
    b"https://eyewear.example.com/keyJ.v2.html",
    b"ey" * 1_000_000,
)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b'{"t": "eyJhbGciOiJ.eyJzdWIi.c2ln"}', b'{"t": "[token]"}'),
        (b'["\\neyJhbGciOiJ.eyJzdWIi.c2ln"]', b'["\\n[token]"]'),
        (b'{"t": "Bearer%20eyJhbGciOiJ.eyJzdWIi."}', b'{"t": "Bearer%20[token]"}'),
        *((words, words) for words in WORDS),
        (b"eyJ" * 1_000_000, b"eyJ" * 1_000_000),
        (b"eyJ" * 1_000_000 + b".eyJzdWIi.c2ln ey", b"[token] ey"),
        (b"a.eyJeyJeyJeyJ" * 300_000, b"a." + b".".join([b"[token]"] * 100_000)),
    ],
)
def test_tokens_are_left_out_of_what_is_kept_in_time_proportional_to_it(raw: bytes, kept: bytes):
    assert without_tokens(raw) == kept


@pytest.mark.parametrize("words", [*WORDS, b'{"session": "eyJhbGciOiJ.eyJzdWIi.c2ln"}'])
def test_of_intents_nothing_but_the_token_of_their_message_is_left_out(words: bytes):
    token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzaG9wIn0.c2lnbmF0dXJl"
    assert without_token(words, token) == words
    assert without_token(words + token.encode(), token) == words + TOKEN_REMOVED
    for short in ("", "e", "token"):
        assert without_token(words, short) == words
