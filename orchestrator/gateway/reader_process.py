"""Large answers are read in a process beside this one: a hostile answer takes no time from the event loop.

A thread would not do: what it computes it takes from the event loop, some milliseconds for each of the loop's
rounds. The process is started with the first large answer, runs at low priority and with little memory, has
no secrets (its environment is empty) and ends with its parent: at the end of its input, and during an answer
after `LONGEST` at the latest. It reads one answer after the other, gateways round-robin; an answer that takes
too long is dropped, and the process with it. Its output is decoded into the expected types, and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from orchestrator import log as logs
from orchestrator.domain.transaction import Found
from orchestrator.gateway.answers import Methods, Reader
from orchestrator.gateway.limits.round_robin import RoundRobinSemaphore
from orchestrator.gateway.outcomes import Done, Outcome, Refused, Unknown
from orchestrator.gateway.payments import Movement

if TYPE_CHECKING:
    from collections.abc import Hashable

T = TypeVar("T")
log = logs.get(__name__)

NICE: Final = 15
"""How much less of a busy processor the reader gets than we do: a thirtieth."""
LONGEST: Final = 120
"""Seconds after which a reader that was not ended ends itself; whole ones."""
MEMORY: Final = 256_000_000, 20
"""Bytes of address space of the reader, and more for each byte of an answer; it takes a quarter."""
TOLD: Final = 1_000_000, 4
"""Bytes that it may return, and how many more for each byte of an answer."""
AGAIN: Final = 60.0
"""Seconds for which answers are read here, where no process could be started, until that is tried again."""
_START: Final = "import sys; sys.path[:] = sys.argv[1:]; from orchestrator.gateway import reader_process; reader_process.serve()"
_SIZE: Final = 8
"""Bytes of the number of bytes that stands before each message."""
_NOT_READ: Final = Unknown("The gateway's answer could not be read in time.", unreadable=True)
_NO_TURN: Final = Unknown("The gateway's answer came while too many large ones were being read.")
_UNTELLABLE: Final = Unknown("The gateway's answer holds a number that no answer has.", unreadable=True)


_RESULTS: Final[dict[str, Any]] = {
    kind.__name__: kind for kind in (Found, Movement, Methods, Refused, Unknown)
}
"""What an answer is read into, by the names that the reader's output has for it."""
_READY: Final = b"ready"
_ENCODER: Final = msgspec.msgpack.Encoder()
_ASKED: Final = msgspec.msgpack.Decoder(tuple[str, int | str, bytes])
_READ: Final = msgspec.msgpack.Decoder(tuple[str, msgspec.Raw])


class ReaderProcess:
    """The reader of one process; an answer waits for `timeout` seconds at most, and is read in as many."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._slots = RoundRobinSemaphore(1)
        # Waits for the pipes; it computes nothing.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-answers")
        self._process: subprocess.Popen[bytes] | None = None
        self._here_until = float("-inf")
        self._closed = False

    def close(self) -> None:
        """End the reader; what it reads is given up."""
        self._closed = True
        if self._process is not None:
            self._kill()
            with suppress(RuntimeError):  # closed before
                self._thread.submit(self._end)
        self._thread.shutdown(wait=False)

    async def read(self, reader: Reader[T], raw: bytes, *, queue_key: Hashable) -> Outcome[T]:
        """Read an answer when its queue is next; `queue_key` names the queue it waits in."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                await self._slots.take(queue_key)
        except TimeoutError:
            return _NO_TURN
        try:
            work = self._thread.submit(self._read, reader, raw)
        except RuntimeError:  # closed, or there is no room for a thread
            self._slots.give_back()
            return _NO_TURN
        late = loop.call_later(self._timeout, self._kill)

        def over() -> None:
            late.cancel()
            self._slots.give_back()

        def ended(_: Future[Outcome[T]]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(over)

        # The caller may have been cancelled by then; what is read is still bounded.
        work.add_done_callback(ended)
        return await asyncio.wrap_future(work)

    def _read(self, reader: Reader[T], raw: bytes) -> Outcome[T]:
        process = self._running()
        if process is None:
            return reader.read(raw)
        assert process.stdin is not None and process.stdout is not None  # noqa: PT018, S101 - they are pipes
        with suppress(OSError, msgspec.DecodeError, KeyError):
            _put(process.stdin, _ENCODER.encode((reader.kind, reader.argument, raw)))
            told = _get(process.stdout, _of(TOLD, raw))
            if told is not None:
                name, encoded = _READ.decode(told)
                value = msgspec.msgpack.decode(encoded, type=_RESULTS[name])
                return value if isinstance(value, Refused | Unknown) else Done(value)
        self._end()
        return _NOT_READ

    def _running(self) -> subprocess.Popen[bytes] | None:
        """Return the process; None where there can be none, and answers are read here as well as can be."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None and monotonic() >= self._here_until:
            reason = self._start()
            if reason:
                log.warning("answers_read_in_a_thread", reason=reason)
                self._here_until = monotonic() + AGAIN
        return self._process

    def _start(self) -> str:
        """Start a process; return why there can be none. One that is ended meanwhile will be found so."""
        try:
            process = self._process = subprocess.Popen(  # noqa: S603 - our own code
                [sys.executable, "-I", "-c", _START, *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                process_group=0,
            )
        except OSError as error:
            return type(error).__name__
        if self._closed:
            process.kill()
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        if _get(process.stdout, len(_READY)) == _READY or process.wait() == -signal.SIGKILL:
            return ""
        self._end()
        return f"the reader ended with status {process.returncode}"

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError), process:  # what was not written yet finds no reader
                pass


def serve() -> None:
    """Read requests on stdin and write results to stdout until stdin ends: the reader's main function."""
    os.nice(NICE)
    with open(0, "rb") as source, open(1, "wb") as sink:
        _put(sink, _READY)
        while (asked := _get(source, sys.maxsize)) is not None:
            kind, argument, raw = _ASKED.decode(asked)
            signal.alarm(LONGEST)
            with suppress(ValueError, OSError):  # the limit is lower already, or the system has no such limit
                resource.setrlimit(
                    resource.RLIMIT_AS, (_of(MEMORY, raw), resource.getrlimit(resource.RLIMIT_AS)[1])
                )
            reader: Reader[Any] = Reader(kind, argument)
            outcome = reader.read(raw)
            value = outcome.value if isinstance(outcome, Done) else outcome
            try:
                message = _ENCODER.encode((type(value).__name__, value))
            except (OverflowError, ValueError):
                message = _ENCODER.encode((Unknown.__name__, _UNTELLABLE))
            _put(sink, message)
            signal.alarm(0)


def _of(bound: tuple[int, int], raw: bytes) -> int:
    return bound[0] + bound[1] * len(raw)


def _put(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_SIZE))
    pipe.write(message)
    pipe.flush()


def _get(pipe: IO[bytes], most: int) -> bytes | None:
    """Return the next message, None where there is none or it is larger than `most`."""
    size = int.from_bytes(pipe.read(_SIZE))
    if not 0 < size <= most:
        return None
    message = pipe.read(size)
    return message if len(message) == size else None
