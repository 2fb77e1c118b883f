"""The command `orchestrator` as a person runs it: a process of its own, an environment of its own, what it
said and how it ended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import psutil

from orchestrator.devkit.client import Unavailable
from tests.support import broker_option, forked, pooler
from tests.support.api import Api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
UNPRIVILEGED_USER = 65534

GOOD_CARD = {"action": "pay", "card_number": "4111 1111 1111 1111", "expiry": "12/39", "cvc": "123"}

INTENT: dict[str, Any] = {
    "order": {
        "orderId": "order-1",
        "amount": {"value": 139.95, "currency": "DKK"},
        "orderLines": [{"itemId": "a", "description": "Blanket", "quantity": 1, "unitPrice": 139.95}],
        "customer": {"email": "sam@example.com"},
    },
    "callbacks": {
        "success": {"type": "URL", "value": "https://shop.example/thanks"},
        "failure": {"type": "URL", "value": "https://shop.example/sorry"},
    },
    "configuration": {"paymentType": "PAYMENT"},
}


def environment(*arguments: str | Path, **settings: str) -> dict[str, str]:
    """The environment of the test run without its settings, and these instead; and what leads this command
    through a pooler, or to another broker.
    """
    settings |= pooler.settings_of(arguments, settings) | broker_option.settings_of(arguments, settings)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    return kept | {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}


def orchestrator(
    *arguments: str | Path, seconds: float = 60, given: str = "", user: int | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    account: dict[str, Any] = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    return forked.run(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        given=given,
        seconds=seconds,
        cwd=ROOT,
        env=environment(*arguments, **settings),
        **account,
    )


class Running:
    """A command that goes on, with what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], data_dir: Path) -> None:
        self.process, self.data_dir = process, data_dir
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        if process.stdout is not None:
            self._reader.start()
        self.family: dict[int, psutil.Process] = {}

    def _read(self) -> None:
        for line in self.process.stdout:
            self.said += line

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 40) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} within {seconds} s; it said:\n{self.said}"
            assert self.process.poll() is None, f"{what}, but it ended:\n{self.said}"
            time.sleep(0.05)
        return found

    def until_said(self, words: str, *, seconds: float = 40) -> None:
        self.until(lambda: words in self.said, repr(words), seconds=seconds)

    def until_line(self, begins: str) -> str:
        """Wait until it has said a whole line that begins so; return that line."""
        found: str = self.until(
            lambda: next((line for line in self.said.splitlines() if line.startswith(begins)), None),
            f"a line that begins with {begins!r}",
        )
        return found

    def until_up(self) -> dict[str, Any]:
        """Wait until everything answers; return the settings that its processes run with."""
        self.until_said("The orchestrator is up.")
        self._meet()
        return self.settings

    def until_ready(self) -> dict[str, Any]:
        """As `until_up`, for a command whose lines go elsewhere."""
        self.until(self._is_ready, "everything answers", seconds=60)
        self._meet()
        return self.settings

    @property
    def settings(self) -> dict[str, Any]:
        """What its processes run with."""
        settings: dict[str, Any] = json.loads((self.data_dir / "runtime.json").read_text())["settings"]
        return settings

    def _is_ready(self) -> bool:
        with suppress(OSError, httpx.HTTPError):
            return httpx.get(f"{self.settings['public_url']}/readyz", timeout=5).json()["status"] == "ready"
        return False

    def _meet(self) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.family[child.pid] = child

    def child(self, command: str) -> psutil.Process:
        """Wait for the process that runs one command of ours, such as `worker`."""
        found: psutil.Process = self.until(lambda: self.find(command), f"a process for {command}")
        return found

    def find(self, command: str) -> psutil.Process | None:
        """The process that runs one command of ours, if it runs."""
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                words = child.cmdline()
                if words[1:3] == ["-m", "orchestrator"] and words[3] == command:
                    return child
        return None

    def servers(self, name: str) -> list[psutil.Process]:
        """The servers of that name that it has started itself and that run."""
        found = []
        for process in self.family.values():
            with suppress(psutil.NoSuchProcess):
                if name in process.name() and process.ppid() == self.process.pid:
                    found.append(process)
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def crash(self) -> None:
        """Kill everything at once: no process ends in order, and nothing is started again."""
        self.process.send_signal(signal.SIGSTOP)
        self._meet()
        for process in [*self.family.values(), self.process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)

    def left(self, *, seconds: float = 10) -> list[str]:
        """What still runs of its processes when they have had time to end."""
        _, alive = psutil.wait_procs(list(self.family.values()), timeout=seconds)
        return [" ".join(process.cmdline()) for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    def end(self) -> int:
        """Press Ctrl-C; return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(30)
        self.read_to_the_end()
        return status

    def read_to_the_end(self) -> None:
        """Have all in `said` that it said, once it has ended."""
        self._reader.join(5)


class Shop:
    """A shop that talks to the API of a running installation."""

    def __init__(self, up: Running, url: str, authorization: str = "") -> None:
        self._up = up
        self.authorization = authorization or _authorized(up.data_dir)
        self._api = Api(url, self.authorization.removeprefix("Bearer "))

    def create(self, order: str = "order-1") -> str:
        # While Postgres starts again, 503 asks to send the same once more.
        def accepted() -> str | None:
            try:
                created = self._api.create({**INTENT, "order": {**INTENT["order"], "orderId": order}})
            except Unavailable as refusal:
                if refusal.status == 503:
                    return None
                raise
            return str(created.checkout.id)

        return self._up.until(accepted, "the checkout to be accepted", seconds=20)

    def read(self, checkout: str) -> dict[str, Any]:
        return self._api.get(f"/v1/checkouts/{checkout}")

    def until(self, checkout: str, state: str, *, seconds: float = 20) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            found = self.read(checkout)
            return found if found["state"] == state else None

        return self._up.until(there, f"state {state}", seconds=seconds)

    def pay(self, checkout: str) -> httpx.Response:
        found = self.read(checkout)
        method = next(each for each in found["paymentMethods"] if each["type"] == "CARD")
        started = httpx.post(
            method["onInitiatePayment"]["value"],
            json={"sessionId": found["session"]["id"], "paymentMethodId": method["id"]},
            headers={"authorization": f"Bearer {found['session']['token']}"},
            timeout=20,
        )
        return httpx.post(started.json()["url"], data=GOOD_CARD, timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()


def _authorized(data_dir: Path) -> str:
    scopes = "checkouts:write checkouts:read"
    said = orchestrator("token", "issue", "--merchant", "default", "--scope", scopes, "--data-dir", data_dir)
    return f"Bearer {said.stdout.strip()}"


@contextmanager
def running(
    *arguments: str | Path,
    data_dir: Path,
    user: int | None = None,
    output: int | None = None,
    **settings: str,
) -> Iterator[Running]:
    """Start a command that goes on (`up`, `demo`) on a data directory; nothing of it outlives the block.

    `output`: a descriptor that it writes to, instead of to us.
    """
    arguments = (*arguments, "--data-dir", data_dir)
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *map(str, arguments)],
        cwd=ROOT,
        env=environment(*arguments, **settings),
        stdout=subprocess.PIPE if output is None else output,
        stderr=subprocess.STDOUT,
        text=True,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )
    running = Running(process, data_dir)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.kill()  # its children end with it
            process.wait(10)
        running.left()
        if process.stdout is not None:
            process.stdout.close()
