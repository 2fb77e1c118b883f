"""Processes of ours that start at once: forked from a process that has imported everything, instead of
importing it each time.

What runs is what `python -m orchestrator …` or `python -c …` runs, in a process of its own, with its own
environment, directory, umask and standard streams. It is a child of the test process: it can be waited for,
signalled and killed as any. Only its command line in `/proc` is the forking process's.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

MAIN = "from orchestrator.cli import main; main()"
_ORDINARY = 3
_PR_SET_CHILD_SUBREAPER = 36
_LIMIT = 1 << 20
_SERVER = """
import gc, importlib, json, os, pkgutil, socket, sys, threading, time

def serve(asked):
    while True:
        request, fds, _, _ = socket.recv_fds(asked, %(limit)d, 3)
        if not request:
            sys.exit()
        told, tells = os.pipe()
        between = os.fork()
        if between == 0:
            if (ours := os.fork()) == 0:
                os.close(told)
                os.close(tells)
                asked.close()
                for number, fd in enumerate(fds):
                    os.dup2(fd, number)
                for fd in fds:
                    os.close(fd)
                return json.loads(request)
            os.write(tells, str(ours).encode())
            os._exit(0)
        os.close(tells)
        for fd in fds:
            os.close(fd)
        pid = os.read(told, 20)
        os.close(told)
        os.waitpid(between, 0)
        asked.send(pid)

import orchestrator
for module in pkgutil.walk_packages(orchestrator.__path__, "orchestrator."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert threading.active_count() == 1
gc.collect()
gc.freeze()
wanted = serve(socket.socket(fileno=int(sys.argv[1])))
os.chdir(wanted["cwd"])
os.umask(wanted["umask"])
os.environ.clear()
os.environ.update(wanted["environment"])
time.tzset()
sys.argv[:] = wanted["arguments"]
code = wanted["code"]
del wanted, serve, module
exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
""" % {"limit": _LIMIT}  # noqa: UP031 - the program has braces


class _Nursery:
    """The process that forks; started when the first process is wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asks: socket.socket | None = None
        self._of = 0

    def fork(self, request: dict[str, object], streams: tuple[int, int, int]) -> int:
        """Return the process id of a new child of this process."""
        with self._lock:
            if self._asks is None or self._of != os.getpid():
                self._start()
            assert self._asks is not None
            prctl = ctypes.CDLL(None, use_errno=True).prctl
            # What is forked in between loses its parent, and comes to the nearest of its ancestors that takes
            # such in.
            assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
            try:
                socket.send_fds(self._asks, [json.dumps(request).encode()], streams)
                answer = self._asks.recv(20)
            finally:
                prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
            assert answer, "the process that forks has ended"
            return int(answer)

    def _start(self) -> None:
        self._asks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._asks, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LIMIT)
        self._of = os.getpid()
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")
        }
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(theirs.fileno())],
                cwd=Path(__file__).resolve().parents[2],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self._end, process, self._asks)

    def _end(self, process: subprocess.Popen[bytes], asks: socket.socket) -> None:
        asks.close()
        process.wait(10)


_nursery = _Nursery()


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen` for `[sys.executable, "-m", "orchestrator", …]` and `[sys.executable, "-c", …]`;
    forked where that can be.
    """

    def __init__(self, command: list[str], **options: Any) -> None:
        self._plain = sys.platform != "linux" or not options.keys() <= {
            *("cwd", "env", "stdin", "stdout", "stderr", "text"),
        }
        super().__init__(command, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        cwd, env = rest[4], rest[5]
        p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = rest[9:15]
        words = [str(word) for word in args]
        if self._plain or words[0] != sys.executable or words[1] not in {"-m", "-c"}:
            super()._execute_child(args, *rest)
            return
        if words[1] == "-m":
            assert words[2] == "orchestrator"
            code, arguments = MAIN, words[2:]
        else:
            code, arguments = words[2], ["-c", *words[3:]]
        umask = os.umask(0o022)
        os.umask(umask)
        request = {
            "code": code,
            "arguments": arguments,
            "cwd": os.fspath(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "umask": umask,
        }
        given = (p2cread, c2pwrite, errwrite)
        streams = tuple(number if fd == -1 else fd for number, fd in enumerate(given))
        self.pid = _nursery.fork(request, streams)
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


def run(
    command: list[str], *, given: str = "", seconds: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as `subprocess.run` does; `given` is what it reads, and all
    streams are text.
    """
    pipe = subprocess.PIPE
    with Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            out, err = process.communicate(given, timeout=seconds)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
