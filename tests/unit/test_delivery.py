"""Pace, retries and signatures of deliveries, without I/O."""

from __future__ import annotations

import base64
import random
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from standardwebhooks.webhooks import Webhook

from orchestrator.delivery import retries, signature
from orchestrator.delivery.broker_links import RabbitMqLink
from orchestrator.delivery.endpoint_state import OPEN_AFTER, EndpointState
from orchestrator.delivery.pace import IN_A_ROW, Pace
from orchestrator.delivery.sender import OVERLOAD, Answer, Outcome
from orchestrator.delivery.task_target import Broker
from orchestrator.messaging.task_message import message
from orchestrator.retry_after import retry_after


def test_a_signature_is_what_the_public_package_verifies():
    secret = signature.new_secret()
    now = int(datetime.now(UTC).timestamp())
    headers = signature.headers("a-1", b'{"a": 1}', [b"n" * 32, secret], at=now)
    assert Webhook(signature.written(secret)).verify(b'{"a": 1}', headers) == {"a": 1}
    assert headers["webhook-signature"].split(" ")[1] == Webhook(signature.written(secret)).sign(
        "a-1", datetime.fromtimestamp(now, UTC), '{"a": 1}'
    )
    assert len(base64.b64decode(signature.written(secret).removeprefix("whsec_"))) == 32


def test_delays_grow_to_twelve_hours_and_are_never_shorter_than_what_was_asked_for():
    planned = [retries.delay(number, draw=lambda: 0.0) for number in range(1, 12)]
    assert planned == [5, 30, 120, 600, 1800, 7200, 18_000, 36_000, 43_200, 43_200, 43_200]
    assert retries.delay(1, at_least=900, draw=lambda: 0.0) == 900
    assert retries.delay(3, draw=lambda: 1.0) == 120 * (1 + retries.JITTER)
    assert [retries.open_for(number, draw=lambda: 0.0) for number in (1, 2, 3, 99)] == [5, 10, 20, 300]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({}, None), ({"retry-after": "120"}, 120.0), ({"retry-after": "-1"}, None), ({"retry-after": "9" * 50}, retries.RETRY_AFTER_CAP),
     ({"retry-after": "soon"}, None), ({"retry-after": "Wed, 21 Oct 2015 07:30:00 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 120.0),
     ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0), ({"retry-after": "١٢"}, None)],
)  # fmt: skip
def test_retry_after_is_read_as_seconds_or_a_date_within_bounds(headers, seconds):
    assert retry_after(headers, cap=retries.RETRY_AFTER_CAP) == seconds


def test_retry_after_counts_by_our_clock_where_the_endpoint_sends_no_date():
    when = datetime.now(UTC) + timedelta(hours=1)
    told = retry_after({"retry-after": when.strftime("%a, %d %b %Y %H:%M:%S GMT")}, cap=86_400.0)
    assert told == pytest.approx(3600, abs=30)


class Bucket:
    """A receiver that can process so many deliveries a second, each of which takes it `seconds`; in
    simulated time.
    """

    def __init__(self, rate: float, seconds: float, burst: float) -> None:
        self.rate, self.seconds, self.burst = rate, seconds, burst
        self.tokens, self.at = burst, 0.0
        self.taken = self.refused = 0

    def takes(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            self.refused += 1
            return False
        self.tokens -= 1
        self.taken += 1
        return True


def drain(
    pace: Pace, receiver: Bucket, *, number: int, wait: float = 0.2, unsteady: float | None = None
) -> float:
    """Send so many, each as soon as the pace lets it, in steps of half a millisecond; return how long it
    took.

    `wait`: seconds in which nothing begins after an overload. `unsteady`: how much the logarithm of an
    answer's time varies; otherwise it varies by a tenth.
    """
    now, held, under_way = 0.0, 0.0, []
    while receiver.taken < number:
        for delivery in [delivery for delivery in under_way if delivery[0] <= now]:
            under_way.remove(delivery)
            _, began, well = delivery
            if well:
                pace.succeeded(began, now)
            else:
                pace.overloaded(began, now)
                held = now + wait
        for _ in range(max(pace.free(now), 0) if now >= held else 0):
            began = pace.begin(now)
            slower = random.lognormvariate(0, unsteady) if unsteady else random.uniform(0.9, 1.1)
            under_way.append((now + receiver.seconds * slower, began, receiver.takes(now)))
        now += 0.0005
    return now


@pytest.mark.parametrize(
    ("rate", "seconds"), [(50, 0.005), (200, 0.005), (200, 0.05), (1000, 0.02), (20, 0.2)]
)
def test_a_receiver_that_comes_back_gets_what_it_can_process_and_refuses_less_than_one_in_a_hundred(
    rate, seconds
):
    random.seed(7)
    receiver = Bucket(rate, seconds, burst=max(rate / 10, 5))
    pace = Pace(64)
    pace.restart()
    took = drain(pace, receiver, number=4000)
    assert receiver.refused / (receiver.taken + receiver.refused) < 0.01
    bearable = min(rate, 64 / seconds)
    assert receiver.taken / took > 0.5 * bearable, "and it is not starved either"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("seconds", [0.002, 0.004, 0.008])
def test_a_rate_is_kept_though_answers_take_unsteady_times_and_a_reserve_hides_the_overload(seconds, seed):
    random.seed(seed)
    receiver = Bucket(150, seconds, burst=30)
    pace = Pace(64)
    pace.restart()
    took = drain(pace, receiver, number=4000, wait=0.0, unsteady=0.6)
    assert receiver.refused / (receiver.taken + receiver.refused) < 0.01
    assert receiver.taken / took > 0.5 * receiver.rate


def test_an_allowance_grows_to_the_limit_and_shrinks_once_for_one_overload():
    pace = Pace(8)
    for number in range(200):
        pace.succeeded(pace.begin(number), number + 0.1)
    assert (pace.allowance, pace.free(999)) == (8, 8)
    began = [pace.begin(1000) for _ in range(8)]
    assert pace.free(1000) == 0
    for beginning in began:
        pace.overloaded(beginning, 1001)
    assert pace.allowance == pytest.approx(8 * 0.6)
    assert pace.in_flight == 0


def test_a_refused_event_changes_nothing_and_a_wait_holds_the_endpoint_and_not_its_pace():
    pace = Pace(8)
    before = pace.allowance
    pace.ended(pace.begin(0), 1)
    assert pace.allowance == before
    endpoint = EndpointState(webhook=None, secrets=(), pace=pace, open_at=0.0)
    now = time.monotonic()
    for outcome, wait in ((Outcome.THROTTLED, 60.0), (Outcome.REFUSED, 30.0), (Outcome.THROTTLED, None)):
        endpoint.answered(Answer(outcome, 0.05, wait=wait), pace.begin(now), first=True, probed=False)
        assert now + 60 <= endpoint.open_at <= now + 70
    assert pace.free(now) > 0
    assert endpoint.failures == 1, "what was under way when the first came shows nothing new"
    endpoint.answered(None, pace.begin(now), first=True, probed=False)
    assert (pace.in_flight, endpoint.failures) == (0, 1)


def test_what_the_row_says_shortens_no_wait_of_an_answer_that_is_not_in_it_yet():
    def row(**values: object) -> SimpleNamespace:
        known = {"target": "a", "paused_at": None, "opened": 0, "open_for": 0.0, "failing_since": None}
        return SimpleNamespace(**known | values)

    pace = Pace(8)
    endpoint = EndpointState(webhook=row(), secrets=(), pace=pace, open_at=0.0)
    now = time.monotonic()
    endpoint.answered(Answer(Outcome.THROTTLED, 0.05, wait=60.0), pace.begin(now), first=True, probed=False)
    endpoint.noting = 1
    endpoint.refresh(row())
    assert endpoint.open_at >= now + 60
    endpoint.refresh(row(open_for=900.0))
    assert endpoint.open_at >= now + 900
    endpoint.refresh(row(target="b"))
    assert endpoint.open_at < now + 60, "another URL asked for nothing"
    endpoint.open_at, endpoint.noting = now + 60, 0
    endpoint.refresh(row(target="b"))
    assert endpoint.open_at < now + 60, "all is in the row"


def test_after_a_circuit_was_open_for_long_deliveries_start_one_at_a_time_and_at_once():
    pace, receiver = Pace(64), Bucket(200, 0.05, burst=20)
    for number in range(400):
        pace.overloaded(pace.begin(number), number + 0.05)
    assert pace.allowance < 0.01, "each delivery is an overload of its own"
    pace.restart()
    assert (pace.allowance, pace.free(400.0)) == (1, 1)
    assert drain(pace, receiver, number=200) < 10


@pytest.mark.parametrize("seconds", [0.005, 0.5, 5.0])
@pytest.mark.parametrize("outcome", sorted(OVERLOAD - {Outcome.THROTTLED}))
def test_an_endpoint_that_took_nothing_for_a_moment_soon_gets_as_much_as_before(outcome, seconds):
    pace, now = Pace(64), 1000.0
    endpoint = EndpointState(webhook=None, secrets=(), pace=pace, open_at=0.0)
    for _ in range(300):
        pace.succeeded(pace.begin(now), now + seconds)
        now += seconds
    before = pace.allowance
    for _ in range(OPEN_AFTER - 1):
        pace.begin(time.monotonic())
        endpoint.answered(Answer(outcome, 0.01), time.monotonic(), first=True, probed=False)
    assert before * 0.2 < pace.allowance < before * 0.3
    now = time.monotonic()
    for _ in range(IN_A_ROW):
        pace.succeeded(pace.begin(now), now + seconds)
        pace.overloaded(pace.begin(now), now + seconds, throttled=False)
        now += seconds
    assert pace.allowance < before * 0.1, "taken and refused in turn it is a load that it does not take"


@pytest.mark.parametrize("outcome", sorted(OVERLOAD))
def test_a_probe_that_fails_shows_nothing_about_the_load_that_an_endpoint_takes(outcome):
    pace = Pace(64)
    endpoint = EndpointState(webhook=None, secrets=(), pace=pace, open_at=0.0)
    before = pace.allowance
    for probed, after in ((True, before), (False, before * 0.6)):
        pace.begin(time.monotonic())
        endpoint.answered(Answer(outcome, 0.05), time.monotonic(), first=True, probed=probed)
        assert (pace.allowance, pace.in_flight) == (pytest.approx(after), 0)


class Blocking:
    """A RabbitMQ that confirms nothing and says that it is short of memory, in place of py-amqp's objects."""

    link: RabbitMqLink

    def drain_events(self) -> None:
        self.link._note_blocked("low on memory")

    def __getattr__(self, _: str):
        return lambda *_, **__: None


def test_a_broker_that_takes_no_messages_is_named_with_its_reason():
    broker = Broker(kind="amqp", secure=False, host="localhost", port=5672, username=None, password=None)
    link = RabbitMqLink(broker, "events")
    link._wire = link._connection = link._channel = Blocking()
    link._wire.idle = lambda: True
    link._wire.link = link
    (answer,) = link.publish([message("task", "a-1", b"{}")], lambda: None, until=time.monotonic() + 5)
    assert answer.outcome is Outcome.THROTTLED
    assert answer.body == b"it takes no messages, because it is short of memory or disk"
