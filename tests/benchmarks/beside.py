"""What consoles, scrapes and traces cost beside the work: `python -m tests.benchmarks.beside consoles`.

Runs `orchestrator bench` in turns, without and with: `consoles`, ten overviews that follow what happens and
draw themselves again as a browser would; `metrics`, a scrape each second and 10 % of the traces, sent to a
collector that takes everything; `webhook`, an endpoint that gets every event. Prints CPU ms an order of each
turn, also as a multiple of what the bench's own gateway took for the same work: the machine's speed changes
between turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

import httpx
import psutil

from orchestrator.crypto import Encryptor
from orchestrator.domain.console_roles import ROLES
from orchestrator.settings import Settings
from orchestrator.store.console import sessions
from orchestrator.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator

VIEWERS: Final = 10
SCRAPE_EVERY: Final = 1.0
TOKEN: Final = "a-token-of-the-benchmark"


class Collector(BaseHTTPRequestHandler):
    """Takes everything, and counts it."""

    taken = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).taken += 1
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def collector() -> Iterator[str]:
    """Serve a collector of spans; yields its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        finally:
            server.shutdown()
            thread.join()


def api_of(bench: psutil.Process) -> tuple[Settings, str] | None:
    """Return the settings and the address of a bench's API process, or None before it runs."""
    for child in bench.children(recursive=True):
        with suppress(psutil.Error):
            command = child.cmdline()
            if "api" in command and "ORCHESTRATOR_DATABASE_URL" in (told := child.environ()):
                known = {
                    name: value
                    for name, value in told.items()
                    if name.removeprefix("ORCHESTRATOR_").lower() in Settings.model_fields
                }
                before = dict(os.environ)
                os.environ.update(known)
                try:
                    return Settings(), f"http://127.0.0.1:{command[command.index('--port') + 1]}"
                finally:
                    os.environ.clear()
                    os.environ.update(before)
    return None


class Beside:
    """What is done beside one run, in a thread of its own."""

    def __init__(self, bench: psutil.Process, what: str) -> None:
        self._bench, self._what = bench, what
        self.done = 0
        """Pages that were drawn, or scrapes."""
        self.failed: str | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._work())
        except Exception as error:  # noqa: BLE001 - the run says it at its end
            self.failed = repr(error)

    async def _work(self) -> None:
        while (found := api_of(self._bench)) is None:
            if self._ended.wait(0.2):
                return
        settings, base = found
        async with httpx.AsyncClient() as client:
            while True:
                with suppress(httpx.HTTPError):
                    if (await client.get(f"{base}/healthz")).is_success:
                        break
                if self._ended.wait(0.2):
                    return
        work = self._scrape(base) if self._what == "metrics" else self._view(settings, base)
        task = asyncio.create_task(work)
        over = asyncio.create_task(asyncio.to_thread(self._ended.wait))
        await asyncio.wait((task, over), return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        with suppress(asyncio.CancelledError, httpx.HTTPError):
            await task

    async def _scrape(self, base: str) -> None:
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10) as client:
            while True:
                (await client.get(f"{base}/metrics")).raise_for_status()
                self.done += 1
                await asyncio.sleep(SCRAPE_EVERY)

    async def _view(self, settings: Settings, base: str) -> None:
        async with Database(settings.need("database_url"), pool_size=1, name="bench-viewers") as db:
            links = [
                await sessions.begin(
                    db,
                    Encryptor(settings.secret_keys),
                    actor=f"viewer-{number}",
                    scopes=ROLES["viewer"],
                    seconds=sessions.LONGEST_LINK,
                    link=True,
                )
                for number in range(VIEWERS)
            ]
        await asyncio.gather(*(self._console(base, settings.public_url, link) for link in links))

    async def _console(self, base: str, public: str, link: str) -> None:
        origin = {"Origin": public, "Sec-Fetch-Site": "same-origin"}
        async with httpx.AsyncClient(base_url=base, headers=origin, timeout=60) as client:
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            entered = await client.post(f"/console/link/{link}", headers=form)
            assert entered.status_code == 303, entered.text
            while True:
                (await client.get("/console")).raise_for_status()
                async with client.stream("GET", "/console/live?topic=overview") as stream:
                    async for line in stream.aiter_lines():
                        if line == "event: changed":
                            (await client.get("/console")).raise_for_status()
                            self.done += 1


def bench(given: argparse.Namespace, *, beside: bool) -> dict[str, Any]:
    """Run the bench once; return what it measured."""
    command = [sys.executable, "-m", "orchestrator", "bench", "--json"]
    command += ["--rate", str(given.rate), "--seconds", str(given.seconds), "--faults", "0.007"]
    command += ["--webhook"] if beside and given.what == "webhook" else []
    with ExitStack() as stack:
        told = dict(os.environ)
        if beside and given.what == "metrics":
            told |= {
                "ORCHESTRATOR_METRICS_TOKEN": TOKEN,
                "ORCHESTRATOR_TRACES_URL": stack.enter_context(collector()),
                "ORCHESTRATOR_TRACES_SAMPLE": "0.1",
            }
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=told)
        watching = (
            Beside(psutil.Process(process.pid), given.what) if beside and given.what != "webhook" else None
        )
        try:
            said, _ = process.communicate(timeout=given.seconds + 300)
        finally:
            if watching is not None:
                watching.end()
            if process.poll() is None:
                process.terminate()
                process.wait(30)
    if process.returncode:
        raise SystemExit(f"the bench ended with {process.returncode}: {said.decode()[-2000:]}")
    found = json.loads(said)
    cpu = found["cpu_ms_per_order"]
    return {
        "product": found["product_cpu_ms_per_order"],
        "gateway": cpu["gateway"],
        "ratio": round(found["product_cpu_ms_per_order"] / cpu["gateway"], 3),
        "others_percent": found["others_cpu_percent"],
        "parts": cpu,
        "done": 0 if watching is None else watching.done,
        "failed": None if watching is None else watching.failed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["consoles", "metrics", "webhook"])
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ratios: dict[bool, list[float]] = {False: [], True: []}
    for number in range(given.rounds):
        for beside in (False, True) if number % 2 == 0 else (True, False):
            found = bench(given, beside=beside)
            ratios[beside].append(found["ratio"])
            print(json.dumps({"with": given.what if beside else None, **found}), flush=True)
    without, with_it = statistics.median(ratios[False]), statistics.median(ratios[True])
    print(f"{given.what}: {100 * (with_it / without - 1):+.1f} % CPU an order", flush=True)


if __name__ == "__main__":
    main()
