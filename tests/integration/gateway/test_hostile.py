"""Answers that are expensive to read: read in another process, given up, counted against their gateway."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.gateway import answers, reader_process
from orchestrator.gateway.answers import Reader
from orchestrator.gateway.client import CIRCUIT_OPEN, gateway_of
from orchestrator.gateway.limits import answer_cost
from orchestrator.gateway.outcomes import Busy, Done, Unknown
from orchestrator.gateway.reader_process import ReaderProcess
from tests.integration.gateway import hostile
from tests.integration.gateway.misbehaving import Exchange, answering
from tests.integration.gateway.scene import gateway_that

PATIENT = {"gateway_total_timeout": 20, "gateway_read_timeout": 10, "gateway_answer_limit": 2_000_000}
PAYMENTS: Reader[object] = Reader("payments", 100)
HUNDRED = hostile.DOCUMENTS["hundred rows"]


# ── Beside ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_another_process_reads_is_read_as_it_is_here():
    async def scene():
        beside = ReaderProcess(60)
        try:
            return [
                await beside.read(PAYMENTS, document, queue_key=None)
                for document in hostile.DOCUMENTS.values()
            ]
        finally:
            beside.close()

    told = dict(zip(hostile.DOCUMENTS, asyncio.run(scene()), strict=True))
    assert told == {name: PAYMENTS.read(document) for name, document in hostile.DOCUMENTS.items()}
    assert [type(told[name]) for name in ("hundred rows", "elements")] == [Done, Unknown]


def test_methods_and_movements_are_read_there_too():
    methods = b'{"methods":[{"id":"m","type":"CARD","n":[1,2.5,null,true]},{"id":7}]}'
    asked: list[tuple[Reader[object], bytes]] = [
        (Reader("methods"), methods),
        (Reader("methods"), b'{"methods":[{"id":"m","n":' + b"9" * 40 + b"}]}"),
        (Reader("movement", "7"), hostile.rows(7)),
        (Reader("payments", 100), hostile.HEAD.replace(b">0<", b">17<") + hostile.TAIL),
    ]

    async def scene():
        beside = ReaderProcess(60)
        try:
            return [await beside.read(reader, raw, queue_key=None) for reader, raw in asked]
        finally:
            beside.close()

    told = asyncio.run(scene())
    here = [reader.read(raw) for reader, raw in asked]
    assert [told[0], *told[2:]] == [here[0], *here[2:]]
    assert isinstance(told[1], Done | Unknown), "a number that no answer has ends nothing"


def test_a_reader_that_takes_too_long_is_ended_and_the_next_answer_is_read_by_another():
    async def scene():
        beside = ReaderProcess(60)
        try:
            await beside.read(PAYMENTS, HUNDRED, queue_key=None)
            first = beside._process
            beside._timeout = 0.0
            late = await beside.read(PAYMENTS, hostile.DOCUMENTS["infos"], queue_key=None)
            beside._timeout = 60
            after = await beside.read(PAYMENTS, HUNDRED, queue_key=None)
            assert beside._process is not first
            assert beside._process is not None
            beside._process.kill()
            beside._process.wait()
            return late, after, await beside.read(PAYMENTS, HUNDRED, queue_key=None)
        finally:
            beside.close()

    late, after, again = asyncio.run(scene())
    assert (late, getattr(late, "unreadable", False)) == (
        Unknown("The gateway's answer could not be read in time."),
        True,
    )
    assert (type(after), type(again)) == (Done, Done)


def of_process(number: int) -> tuple[bytes, int]:
    return Path(f"/proc/{number}/environ").read_bytes(), os.getpriority(os.PRIO_PROCESS, number)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process's environment and priority in /proc")
def test_the_reader_has_no_secret_and_a_low_priority():
    async def scene():
        beside = ReaderProcess(60)
        try:
            await beside.read(PAYMENTS, HUNDRED, queue_key=None)
            assert beside._process is not None
            return of_process(beside._process.pid)
        finally:
            beside.close()

    environment, priority = asyncio.run(scene())
    assert environment == b""
    assert priority > os.getpriority(os.PRIO_PROCESS, 0) or priority == 19


@asynccontextmanager
async def reading(timeout: float = 60):
    """A reader whose process is started, unless there can be none."""
    beside = ReaderProcess(timeout)
    try:
        assert isinstance(await beside.read(PAYMENTS, HUNDRED, queue_key=None), Done)
        yield beside
    finally:
        beside.close()


def pid_of(beside: ReaderProcess) -> int:
    assert beside._process is not None
    return beside._process.pid


@pytest.mark.parametrize("fault", ["none can be started", "it ends at once"])
def test_where_there_can_be_no_process_answers_are_read_all_the_same_until_there_can(monkeypatch, fault):
    def refused(*_, **__):
        raise BlockingIOError

    async def scene():
        with monkeypatch.context() as broken:
            if fault == "it ends at once":
                broken.setattr(reader_process, "_START", "raise SystemExit(3)")
            else:
                broken.setattr(subprocess, "Popen", refused)
            async with reading() as beside:
                assert beside._process is None
                broken.undo()
                again = await beside.read(PAYMENTS, HUNDRED, queue_key=None)
                assert beside._process is None, "that is not tried again for every answer"
                beside._here_until = time.monotonic()
                later = await beside.read(PAYMENTS, HUNDRED, queue_key=None)
                assert beside._process is not None
                return again, later

    assert [type(outcome) for outcome in asyncio.run(scene())] == [Done, Done]


def test_a_reader_that_hangs_is_ended_although_no_call_waits_for_it_any_more():
    async def scene():
        async with reading() as beside:
            os.kill(pid_of(beside), signal.SIGSTOP)
            beside._timeout = 0.5
            gone = asyncio.create_task(beside.read(PAYMENTS, HUNDRED, queue_key="a"))
            await asyncio.sleep(0.1)
            gone.cancel()
            await asyncio.wait({gone})
            assert gone.cancelled()
            beside._timeout = 60
            return await beside.read(PAYMENTS, HUNDRED, queue_key="b")

    assert isinstance(asyncio.run(scene()), Done)


def test_a_call_that_waits_too_long_for_a_turn_fails_and_takes_no_turn():
    async def scene():
        async with reading() as beside:
            os.kill(pid_of(beside), signal.SIGSTOP)
            slow = asyncio.create_task(beside.read(PAYMENTS, HUNDRED, queue_key="a"))
            await asyncio.sleep(0)
            beside._timeout = 0.1
            early = await beside.read(PAYMENTS, HUNDRED, queue_key="b")
            os.kill(pid_of(beside), signal.SIGCONT)
            beside._timeout = 60
            return early, await slow, await beside.read(PAYMENTS, HUNDRED, queue_key="b")

    early, slow, after = asyncio.run(scene())
    assert early == Unknown("The gateway's answer came while too many large ones were being read.")
    assert not early.unreadable
    assert [type(slow), type(after)] == [Done, Done]


def test_a_reader_has_little_memory(monkeypatch):
    monkeypatch.setattr(
        reader_process,
        "_START",
        reader_process._START.replace(
            "reader_process.serve", "reader_process.MEMORY = 0, 0; reader_process.serve"
        ),
    )

    async def scene():
        beside = ReaderProcess(60)
        try:
            return await beside.read(PAYMENTS, hostile.DOCUMENTS["attribute"], queue_key=None)
        finally:
            beside.close()

    outcome = asyncio.run(scene())
    assert isinstance(outcome, Unknown)
    assert outcome.unreadable


def test_what_a_reader_returns_is_bounded():
    def told(message: bytes, *, most: int = 10):
        return reader_process._get(io.BytesIO(message), most)

    assert told(bytes(7) + b"\x03abc") == b"abc"
    assert told(b"\xff" * 8 + b"abc") is None
    assert told(bytes(7) + b"\x0babcdefghijk") is None
    assert told(bytes(7) + b"\x03ab") is None
    assert told(b"") is None


def test_a_reader_that_was_closed_reads_no_more():
    async def scene():
        async with reading() as beside:
            process = beside._process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)
            last = asyncio.create_task(beside.read(PAYMENTS, HUNDRED, queue_key="a"))
            await asyncio.sleep(0.1)
            beside.close()
            given_up, after = await last, await beside.read(PAYMENTS, HUNDRED, queue_key="a")
            return given_up, after, process.wait(10)

    given_up, after, status = asyncio.run(scene())
    assert given_up == Unknown("The gateway's answer could not be read in time.")
    assert after == Unknown("The gateway's answer came while too many large ones were being read.")
    assert status == -signal.SIGKILL


ALONE = """
import asyncio, sys
from orchestrator.gateway.answers import Reader
from orchestrator.gateway.reader_process import ReaderProcess

async def main():
    beside = ReaderProcess(60)
    await beside.read(Reader("payments", 100), b"<" * 2_000, queue_key=None)
    print(beside._process.pid, flush=True)
    if sys.argv[1] == "exits":
        return
    while True:
        await beside.read(Reader("payments", 100), b"<a/>" * 50_000, queue_key=None)

asyncio.run(main())
"""


def is_there(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{number}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.mark.parametrize("end", ["killed", "exits"])
def test_a_reader_ends_with_the_process_that_it_reads_for(end):
    with subprocess.Popen([sys.executable, "-c", ALONE, end], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        number = int(process.stdout.readline())
        if end == "killed":
            assert is_there(number)
            process.kill()
        assert process.wait(60) == (-signal.SIGKILL if end == "killed" else 0)
    until = time.monotonic() + 60
    while is_there(number) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_there(number)


@pytest.mark.parametrize("name", ["all rows", "elements", "repaired, small", "bytes, small"])
def test_only_what_costs_next_to_nothing_is_read_on_the_loop(name):
    assert not answers.is_light(hostile.DOCUMENTS[name])
    assert answers.is_light(hostile.rows(3))
    assert answers.is_light(hostile.ABSENT)


@pytest.mark.parametrize("call", ["authenticate", "session"])
def test_a_token_is_never_so_large(call):
    async def scene():
        async with gateway_that(answering(200, b"[" * 100_000), **PATIENT) as (gateway, _, merchant):
            if call == "authenticate":
                return await gateway.authenticate(merchant)
            return await gateway.open_session(merchant, "token", {}, user_agent=None)

    assert asyncio.run(scene()) == Unknown("The gateway's answer holds far more than was asked for.")


# ── Counted ───────────────────────────────────────────────────────────────────────────────────────────────


def raw(kind: str):
    async def answer(exchange: Exchange) -> None:
        await exchange.write(hostile.ANSWERS[kind])

    return answer


@pytest.mark.parametrize("kind", ["chunks", "interim"])
def test_an_answer_that_costs_too_much_to_receive_is_given_up_and_the_circuit_of_its_gateway_is_opened(
    run, kind
):
    async def scene():
        async with gateway_that(raw(kind), **PATIENT) as (gateway, _, merchant):
            outcomes = [await gateway.authenticate(merchant) for _ in range(12)]
            return outcomes, gateway.limits.of(gateway_of(merchant.url)).wait(merchant.merchant)

    outcomes, wait = run(scene())
    assert outcomes[0] == Unknown("The gateway's answer came in a way that costs more than an answer may.")
    assert outcomes[0].unreadable
    assert (type(outcomes[-1]), outcomes[-1].reason) == (Busy, CIRCUIT_OPEN)
    assert 0 < wait <= answer_cost.LONGEST


def test_a_large_answer_in_small_pieces_is_read(run):
    document = hostile.whole(hostile.rows(100))

    async def piecemeal(exchange: Exchange) -> None:
        for start in range(0, len(document), 1_400):
            await exchange.write(document[start : start + 1_400])
            await asyncio.sleep(0)

    async def scene():
        async with gateway_that(piecemeal, **PATIENT) as (gateway, _, merchant):
            return await gateway._find(merchant, {"shop_orderid": "A"}, "desc", 99)

    outcome = run(scene())
    assert isinstance(outcome, Done)
    assert len(outcome.value.transactions) == 100


@pytest.mark.parametrize("size", [100, 4_000, 5_000, 8_000, 8_300, 20_000, 300_000, 1_500_000])
def test_every_byte_of_an_answer_arrives_once_whatever_pieces_it_comes_in(run, size):
    text = "".join(f"{number:07d}." for number in range(size // 8))
    document = hostile.whole(f'{{"methods":[{{"id":"m","text":"{text}"}}]}}'.encode())

    async def scene():
        async with gateway_that(lambda exchange: exchange.write(document), **PATIENT) as (
            gateway,
            _,
            merchant,
        ):
            return await gateway.list_methods(merchant, "token", "s", user_agent=None)

    assert run(scene()) == Done(({"id": "m", "text": text},))


def test_one_pause_of_the_process_opens_no_circuit(run, monkeypatch):
    document, clock = hostile.whole(hostile.rows(100)), [0.0]

    def thread_time() -> float:
        clock[0] += 1.0
        return clock[0]

    received = answer_cost.ResponseHandler.data_received

    def late(protocol, data: bytes) -> None:
        # By the wall clock it has taken more than is free.
        time.sleep(2 * answer_cost.FREE)
        received(protocol, data)

    async def scene():
        async with gateway_that(lambda exchange: exchange.write(document), **PATIENT) as (
            gateway,
            _,
            merchant,
        ):
            with monkeypatch.context() as paused:
                paused.setattr(answer_cost, "thread_time", thread_time)
                paused.setattr(answer_cost.ResponseHandler, "data_received", late)
                await gateway._find(merchant, {"shop_orderid": "A"}, "desc", 99)
            return await gateway._find(merchant, {"shop_orderid": "A"}, "desc", 99)

    outcome = run(scene())
    assert clock[0] > 1
    assert isinstance(outcome, Done)


def test_what_is_spent_is_paid_back_in_time_and_a_little_is_free(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(answer_cost, "monotonic", lambda: now)
    account = answer_cost.CostLimit()
    account.spend(answer_cost.BURST)
    assert account.wait() == 0
    account.spend(0.01)
    assert account.wait() == pytest.approx(0.01 / answer_cost.SHARE)
    account.spend(60.0)
    assert account.wait() == answer_cost.LONGEST
    now += answer_cost.LONGEST
    assert account.wait() == 0
