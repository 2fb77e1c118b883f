"""Capture, refund, release: what is sent, what the answer means, and that nothing leaves once the lease guard
says no.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from urllib.parse import parse_qsl

import pytest
import structlog

from orchestrator.gateway import http
from orchestrator.gateway.client import Gateway
from orchestrator.gateway.outcomes import (
    Busy,
    Done,
    NotSent,
    Refused,
    Throttled,
    Unauthorized,
    Unknown,
)
from orchestrator.gateway.payments import Movement
from tests.integration.gateway.misbehaving import Exchange, answering
from tests.integration.gateway.scene import account, gateway_that, settings
from tests.integration.gateway.tls import certified

LATE = NotSent("The lease ran out before the call left.")


def answer_to(method: str, *, result: str = "Success", code: str = "0", captured: str = "50.00") -> bytes:
    """Return the documented XML of a money call about transaction 7 (facts, part 1.7)."""
    words = {
        "captureReservation": "<CaptureAmount>50.00</CaptureAmount><CaptureCurrency>208</CaptureCurrency>",
        "refundCapturedReservation": "<RefundedAmount>12.50</RefundedAmount><RefundCurrency>208</RefundCurrency>",
        "releaseReservation": "",
    }
    row = (
        "<Transaction><TransactionId>7</TransactionId><TransactionStatus>captured</TransactionStatus>"
        "<MerchantCurrencyAlpha>DKK</MerchantCurrencyAlpha><ReservedAmount>139.00</ReservedAmount>"
        f"<CapturedAmount>{captured}</CapturedAmount><RefundedAmount>0.00</RefundedAmount></Transaction>"
    )
    body = (
        f"{words[method]}<Result>{result}</Result><Transactions>{row}</Transactions>" if code == "0" else ""
    )
    return (
        f"<APIResponse><Header><ErrorCode>{code}</ErrorCode><ErrorMessage>Anna</ErrorMessage></Header>"
        f"<Body>{body}</Body></APIResponse>"
    ).encode()


CAPTURED = answer_to("captureReservation")


def yes() -> bool:
    return True


def no() -> bool:
    return False


def captures(gateway: Gateway, merchant, lease_guard=yes):
    return gateway.capture(
        merchant, transaction_id="7", amount=5000, currency="DKK", identifier="op-1", lease_guard=lease_guard
    )


def captured_at(answer, lease_guard=yes, **changed):
    async def scene():
        async with gateway_that(answer, **changed) as (gateway, server, merchant):
            return await captures(gateway, merchant, lease_guard), server.asked

    return scene()


class Recorder:
    """A server on a plain socket that keeps every byte; nothing of it runs unless a test says so."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(30)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        taken, _ = self.listener.accept()
        taken.settimeout(30)
        return taken

    def received_until_closed(self, taken: socket.socket) -> bytes:
        chunks = []
        with taken:
            while chunk := taken.recv(65536):
                chunks.append(chunk)
        return b"".join(chunks)


@pytest.fixture
def recorder():
    server = Recorder()
    yield server
    server.listener.close()


@pytest.fixture
def trusted(tmp_path, monkeypatch):
    """The TLS of a server on 127.0.0.1 that the client trusts."""
    server_side, client_side = certified(tmp_path)
    monkeypatch.setattr(http, "_tls", lambda: client_side)
    return server_side


# ── What is sent, and what the answer means ───────────────────────────────────────────────────────────────


def test_money_calls_ask_as_the_gateway_documents_it(run):
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(200, answer_to(exchange.request_line.split()[1].rpartition("/")[2]))

    async def scene():
        async with gateway_that(answer) as (gateway, server, merchant):
            outcomes = [
                await captures(gateway, merchant),
                await gateway.refund(
                    merchant,
                    transaction_id="7",
                    amount=1250,
                    currency="DKK",
                    identifier="op 2&x",
                    lease_guard=yes,
                ),
                await gateway.release(merchant, transaction_id="7", lease_guard=yes),
                await gateway.capture(
                    merchant,
                    transaction_id="7",
                    amount=139,
                    currency="JPY",
                    identifier="op-4",
                    lease_guard=yes,
                ),
            ]
            return outcomes, server, server.url.removeprefix("http://")

    outcomes, server, host = run(scene())
    assert [exchange.request_line for exchange in server.asked] == [
        "POST /merchant/API/captureReservation HTTP/1.1",
        "POST /merchant/API/refundCapturedReservation HTTP/1.1",
        "POST /merchant/API/releaseReservation HTTP/1.1",
        "POST /merchant/API/captureReservation HTTP/1.1",
    ]
    assert [dict(parse_qsl(exchange.body.decode())) for exchange in server.asked] == [
        {"transaction_id": "7", "amount": "50.00", "reconciliation_identifier": "op-1"},
        {"transaction_id": "7", "amount": "12.50", "reconciliation_identifier": "op 2&x"},
        {"transaction_id": "7"},
        {"transaction_id": "7", "amount": "139", "reconciliation_identifier": "op-4"},
    ]
    for exchange in server.asked:
        assert exchange.headers["content-type"] == "application/x-www-form-urlencoded"
        assert exchange.headers["authorization"].startswith("Basic ")
        assert exchange.headers["host"] == host
        assert "transfer-encoding" not in exchange.headers
        assert "expect" not in exchange.headers
    moved = [outcome.value for outcome in outcomes]
    assert [(each.result, each.amount, each.transaction.captured) for each in moved] == [
        ("success", 5000, 5000),
        ("success", 1250, 5000),
        ("success", None, 5000),
        ("success", 5000, 5000),
    ]
    assert server.connections == 1, "money calls use the kept connection too"


def test_already_captured_is_an_answer_with_its_totals(run):
    body = answer_to("captureReservation", result="Error", captured="139.00")
    outcome, _ = run(captured_at(answering(200, body)))
    assert isinstance(outcome, Done)
    assert isinstance(outcome.value, Movement)
    assert (outcome.value.result, outcome.value.transaction.captured) == ("error", 13900)


@pytest.mark.parametrize("result", ["Failed", "PartialSuccess", "Incomplete", "levitating"])
def test_whatever_the_result_says_is_an_answer(run, result):
    outcome, _ = run(captured_at(answering(200, answer_to("captureReservation", result=result))))
    assert isinstance(outcome, Done)
    assert outcome.value.result == result.lower()


@pytest.mark.parametrize(
    ("status", "body", "headers", "expected"),
    [
        (200, answer_to("captureReservation", code="10000002"), {}, Refused(200, "The gateway refused the request.", "10000002")),
        (401, b"", {}, Unauthorized("The gateway did not accept the token or the credentials.")),
        (400, b"", {}, Refused(400, "The gateway refused with HTTP 400.")),
        (429, b"", {"retry_after": "3"}, Throttled(3.0, "The gateway asked for fewer calls.")),
        # A proxy says so of a request that went through.
        (503, b"", {"retry_after": "3"}, Unknown("The gateway answered HTTP 503.")),
        (503, b"", {}, Unknown("The gateway answered HTTP 503.")),
        (500, CAPTURED, {}, Unknown("The gateway answered HTTP 500.")),
        (302, b"", {"location": "/elsewhere"}, Unknown("The gateway answered HTTP 302.")),
        (200, b"", {}, Unknown("The gateway answered without a body.")),
        (200, b"<html/>", {}, Unknown("The gateway's XML is not an APIResponse.")),
        (200, CAPTURED[:-20], {}, Unknown("The gateway's answer is not XML: unclosed token in line 1.")),
        (200, CAPTURED.replace(b"<TransactionId>7<", b"<TransactionId>8<"), {}, Unknown("The gateway's XML is about another transaction.")),
        (200, CAPTURED.replace(b"<Result>Success</Result>", b""), {}, Unknown("The gateway's XML does not say what came of the call.")),
    ],
)  # fmt: skip
def test_each_other_answer_is_the_outcome_that_it_should_be(status, body, headers, expected):
    outcome, asked = asyncio.run(captured_at(answering(status, body, **headers)))
    assert (outcome, len(asked)) == (expected, 1)


@pytest.mark.parametrize("way", ["close", "reset", "silence", "half"])
def test_a_lost_answer_is_unknown_and_the_call_is_not_repeated(run, way):
    async def answer(exchange: Exchange) -> None:
        match way:
            case "close":
                exchange.close()
            case "reset":
                exchange.reset()
            case "silence":
                await asyncio.sleep(30)
            case _:
                await exchange.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n<APIResp")
                exchange.close()

    limits = {"gateway_read_timeout": 0.3} if way == "silence" else {}
    outcome, asked = run(captured_at(answer, **limits))
    assert isinstance(outcome, Unknown)
    assert len(asked) == 1


def test_neither_the_log_nor_the_outcome_repeats_what_was_sent_or_answered(run):
    with structlog.testing.capture_logs() as logs:
        body = answer_to("captureReservation", code="10000002")
        outcome, _ = run(captured_at(answering(200, body)))
    assert "Anna" not in repr(outcome)
    (line,) = [line for line in logs if line["event"] == "gateway_called"]
    assert {key: line[key] for key in ("call", "merchant", "outcome")} == {
        "call": "capture",
        "merchant": "default",
        "outcome": "Refused",
    }
    assert not any(word in repr(logs) for word in ("Anna", "op-1", "5000", "50.00", "pass"))


@pytest.mark.parametrize(
    "wrong",
    [{"amount": 0}, {"amount": -1}, {"identifier": ""}, {"identifier": "x" * 101}, {"transaction_id": ""}],
)
def test_a_call_that_would_move_more_than_meant_is_never_made(wrong):
    """Without an amount the gateway captures all there is, and without an identifier nothing can be found
    again.
    """

    async def scene():
        async with gateway_that(answering(200, CAPTURED)) as (gateway, server, merchant):
            call = {
                "transaction_id": "7",
                "amount": 1,
                "currency": "DKK",
                "identifier": "op",
                "lease_guard": yes,
                **wrong,
            }
            with pytest.raises(ValueError, match="needs"):
                await gateway.capture(merchant, **call)
            return server.asked

    assert asyncio.run(scene()) == []


# ── The lease guard ───────────────────────────────────────────────────────────────────────────────────────


def test_behind_a_lease_guard_that_refuses_no_byte_is_sent(run, recorder):
    async def scene():
        async with Gateway(settings()) as gateway:
            called = asyncio.create_task(captures(gateway, account(recorder.url), no))
            taken = await asyncio.to_thread(recorder.accept)
            received = await asyncio.to_thread(recorder.received_until_closed, taken)
            return await called, received

    assert run(scene()) == (LATE, b"")


def test_the_lease_guard_is_asked_once_and_only_when_a_connection_is_there(run):
    asked_at: list[int] = []

    async def scene():
        async with gateway_that(answering(200, CAPTURED)) as (gateway, server, merchant):
            outcome = await captures(gateway, merchant, lambda: not asked_at.append(server.connections))
            return outcome, server.asked

    outcome, asked = run(scene())
    assert isinstance(outcome, Done)
    assert (len(asked_at), len(asked)) == (1, 1)


def test_a_worker_that_is_stopped_while_it_connects_sends_nothing(run, recorder):
    """The stop is a sleep that holds the whole loop, as SIGSTOP does; the lease ends during it."""
    end = time.monotonic() + 0.1
    asked = []

    def lease() -> bool:
        asked.append(time.monotonic() < end)
        return asked[-1]

    async def scene():
        async with Gateway(settings()) as gateway:
            called = asyncio.create_task(captures(gateway, account(recorder.url), lease))
            await asyncio.sleep(0)  # it is on its way
            time.sleep(0.2)  # noqa: ASYNC251 - the stop
            taken = await asyncio.to_thread(recorder.accept)
            return await called, await asyncio.to_thread(recorder.received_until_closed, taken)

    assert run(scene()) == (LATE, b"")
    assert asked == [False]


def test_a_lease_that_ends_while_the_call_waits_for_a_slot_sends_nothing(run):
    arrived, held = asyncio.Event(), asyncio.Event()
    valid = [True]

    async def answer(exchange: Exchange) -> None:
        arrived.set()
        await held.wait()
        await exchange.respond(200, CAPTURED)

    async def scene():
        async with gateway_that(answer, gateway_pool_size=1) as (gateway, server, merchant):
            first = asyncio.create_task(captures(gateway, merchant))
            await arrived.wait()
            second = asyncio.create_task(captures(gateway, merchant, lambda: valid[0]))
            await asyncio.sleep(0.02)
            valid[0] = False
            held.set()
            return await first, await second, len(server.asked)

    first, second, asked = run(scene())
    assert isinstance(first, Done)
    assert (second, asked) == (LATE, 1)


def test_a_call_that_is_given_up_while_it_connects_sends_nothing_later(run, recorder):
    asked = []

    async def scene():
        async with Gateway(settings()) as gateway:
            called = asyncio.create_task(
                captures(gateway, account(recorder.url), lambda: not asked.append(1))
            )
            await asyncio.sleep(0)
            called.cancel()
            with suppress(asyncio.CancelledError):
                await called
            recorder.listener.settimeout(0.1)
            with suppress(TimeoutError):
                taken = await asyncio.to_thread(recorder.accept)
                return await asyncio.to_thread(recorder.received_until_closed, taken)
            return b""  # it never came to a connection

    assert run(scene()) == b""
    assert asked == []


def test_a_call_that_never_gets_a_slot_is_busy_and_asks_no_lease_guard(run):
    arrived, held = asyncio.Event(), asyncio.Event()
    asked = []

    async def answer(exchange: Exchange) -> None:
        arrived.set()
        await held.wait()
        await exchange.respond(200, CAPTURED)

    async def scene():
        # A slot is waited for half of the time that a call has in all.
        changed = {"gateway_pool_size": 1, "gateway_total_timeout": 6}
        async with gateway_that(answer, **changed) as (gateway, server, merchant):
            first = asyncio.create_task(captures(gateway, merchant))
            await arrived.wait()
            second = await captures(gateway, merchant, lambda: not asked.append(1))
            held.set()
            return await first, second, len(server.asked)

    first, second, received = run(scene())
    assert isinstance(first, Done)
    assert isinstance(second, Busy)
    assert (asked, received) == ([], 1)


def test_a_lease_that_ends_during_a_slow_tls_handshake_sends_nothing(run, recorder, trusted):
    valid = [True]

    def serve() -> bytes:
        taken = recorder.accept()
        valid[0] = False  # the lease ends before the handshake has begun
        with trusted.wrap_socket(taken, server_side=True) as secured:
            try:
                return recorder.received_until_closed(secured)
            except OSError:  # closed without a FIN
                return b""

    async def scene():
        url = recorder.url.replace("http:", "https:")
        async with Gateway(settings()) as gateway:
            served = asyncio.create_task(asyncio.to_thread(serve))
            outcome = await captures(gateway, account(url), lambda: valid[0])
        return outcome, await served

    assert run(scene()) == (LATE, b"")


def test_on_a_kept_connection_the_lease_guard_is_asked_too(run, recorder):
    def serve() -> bytes:
        taken = recorder.accept()
        head = taken.recv(65536)
        taken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(CAPTURED), CAPTURED))
        assert head.endswith(b"reconciliation_identifier=op-1"), "headers and body come in one piece"
        return recorder.received_until_closed(taken)

    async def scene():
        merchant = account(recorder.url)
        async with Gateway(settings()) as gateway:
            served = asyncio.create_task(asyncio.to_thread(serve))
            first = await captures(gateway, merchant)
            second = await captures(gateway, merchant, no)
            return first, second, await served

    first, second, more = run(scene())
    assert isinstance(first, Done)
    assert (second, more) == (LATE, b"")


def test_a_kept_connection_that_died_loses_the_call_and_nothing_is_sent_twice(run):
    """The gateway reads the request on the old connection and closes it: it is not known whether it was
    done.
    """

    async def closing(exchange: Exchange) -> None:
        exchange.close()

    async def scene():
        async with gateway_that(answering(200, CAPTURED)) as (gateway, server, merchant):
            first = await captures(gateway, merchant)
            server.answer = closing
            second = await captures(gateway, merchant)
            return first, second, server

    first, second, server = run(scene())
    assert isinstance(first, Done)
    assert second == Unknown("The connection to the gateway was lost before it answered.")
    assert (len(server.asked), server.connections) == (2, 1)


def test_a_connection_that_closes_before_the_call_leaves_was_not_sent_or_is_unknown_but_never_twice(run):
    """The gateway closes its kept connections at once after each answer, as the next call begins."""

    async def answer(exchange: Exchange) -> None:
        await exchange.respond(200, CAPTURED)
        exchange.close()

    async def scene():
        async with gateway_that(answer) as (gateway, server, merchant):
            outcomes = [await captures(gateway, merchant) for _ in range(20)]
            return outcomes, len(server.asked)

    outcomes, arrived = run(scene())
    assert arrived <= 20
    assert sum(isinstance(outcome, Done) for outcome in outcomes) == arrived
    assert all(isinstance(outcome, Done | NotSent | Unknown) for outcome in outcomes)


def test_a_refused_connection_was_not_sent_and_asks_no_lease_guard(run, recorder):
    recorder.listener.close()
    asked = []

    async def scene():
        async with Gateway(settings()) as gateway:
            return await captures(gateway, account(recorder.url), lambda: not asked.append(1))

    assert isinstance(run(scene()), NotSent)
    assert asked == []


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_the_whole_request_is_with_the_kernel_before_the_next_turn_of_the_loop(
    run, recorder, trusted, secured
):
    """Nothing else of the loop runs between the lease guard's check and the kernel's taking the bytes."""
    waiting: list[bytes] = []

    def serve_call() -> socket.socket:
        """Answer one call, then hand the bare connection over: what waits on it is what the
        kernel was given.
        """
        taken = recorder.accept()
        spoken = trusted.wrap_socket(taken, server_side=True) if secured else taken
        spoken.recv(65536)
        spoken.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(CAPTURED), CAPTURED))
        bare = socket.socket(fileno=spoken.detach())
        bare.setblocking(False)
        return bare

    async def scene():
        merchant = account(recorder.url.replace("http:", "https:") if secured else recorder.url)
        async with Gateway(settings()) as gateway:
            served = asyncio.create_task(asyncio.to_thread(serve_call))
            assert isinstance(await captures(gateway, merchant), Done)
            bare = await served

            def peek() -> None:
                with suppress(BlockingIOError):
                    waiting.append(bare.recv(65536, socket.MSG_PEEK))

            def lease() -> bool:
                peek()
                loop = asyncio.get_running_loop()
                loop.call_soon(peek)
                loop.call_soon(bare.close)
                return True

            outcome = await captures(gateway, merchant, lease)
            bare.close()
            return outcome

    assert isinstance(run(scene()), Unknown), "the second call was not answered"
    (request,) = waiting  # nothing when the lease guard was asked, everything one turn later
    if secured:
        assert len(request) > len("reconciliation_identifier=op-1") + 300
    else:
        assert request.startswith(b"POST /merchant/API/captureReservation HTTP/1.1\r\n")
        assert request.endswith(b"reconciliation_identifier=op-1")


def test_an_answer_that_comes_before_the_question_is_no_answer(run):
    """Once the exchange is over nothing may follow, whatever aiohttp still holds."""

    async def scene():
        gone = asyncio.Event()

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(CAPTURED), CAPTURED))
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            gone.set()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            async with Gateway(settings()) as gateway:
                outcome = await captures(gateway, account(url), no)
            await gone.wait()
        return outcome

    assert isinstance(run(scene()), NotSent)
