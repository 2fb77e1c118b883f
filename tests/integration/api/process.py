"""The API as a process of its own, behind a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import psutil

from orchestrator import auth
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings
from tests.support.forked import Popen
from tests.support.machine import free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = """
import resource, sys
from orchestrator import log, settings
from orchestrator.api.server import run

if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
log.configure(style="json", level="debug")
run(settings.load(), "127.0.0.1", int(sys.argv[1]))
"""
PASSWORD = "correct horse battery staple"


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    client: httpx.Client
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=20)

    @property
    def memory(self) -> int:
        """Bytes of memory that the process holds."""
        return psutil.Process(self.process.pid).memory_info().rss

    def connect(self) -> socket.socket:
        url = self.client.base_url
        return socket.create_connection((url.host, url.port), timeout=40)

    def logged(self, event: str) -> list[dict]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["event"] == event]


@contextmanager
def api_process(
    database_url: str, broker_url: str, directory: Path, *, open_files: int | None = None, **settings: str
) -> Iterator[Server]:
    port = free_port()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")
    } | {
        "ORCHESTRATOR_DATABASE_URL": database_url,
        "ORCHESTRATOR_BROKER_URL": broker_url,
        "ORCHESTRATOR_GATEWAY_PASSWORD": PASSWORD,
        "ORCHESTRATOR_SECRET_KEYS": json.dumps([SECRET_KEY]),
        "ORCHESTRATOR_JWT_SECRETS": json.dumps([JWT_SECRET]),
    }
    environment |= {f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()}
    log = directory / "log"
    arguments = [str(port)] if open_files is None else [str(port), str(open_files)]
    with log.open("wb") as lines:
        process = Popen(
            [sys.executable, "-c", PROGRAM, *arguments], env=environment, stderr=lines, stdout=lines
        )
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.TransportError):
                if client.get("/healthz", timeout=2).status_code == 200:
                    break
            time.sleep(0.1)
        yield Server(process, client, log)
    finally:
        client.close()
        process.kill()
        process.wait()


def bearer(lifetime: float = 60) -> dict[str, str]:
    token = auth.issue(
        make_settings(),
        merchant="default",
        scopes=["checkouts:read", "checkouts:write"],
        lifetime=lifetime,
        subject="shop-1",
    )
    return {"Authorization": f"Bearer {token}"}
