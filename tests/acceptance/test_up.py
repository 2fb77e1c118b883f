"""`up` brings everything, keeps it running, leaves nothing behind, and goes on where a kill has interrupted it."""

from __future__ import annotations

import signal
import stat
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import psutil
import pytest

from orchestrator.settings import SECRET, SECRETS
from tests.acceptance.command import orchestrator, running

if TYPE_CHECKING:
    from collections.abc import Iterator

BRISK = {
    "HINT_GRACE": "0.5", "SWEEP_INTERVAL": "0.3", "FIRST_LOOK": "1", "RECHECK_AFTER_CALLBACK": "0.3",
    # What a killed worker held is taken over when its lease ends.
    "LEASE_SECONDS": "8", "GATEWAY_TOTAL_TIMEOUT": "2.4", "GATEWAY_READ_TIMEOUT": "2.2",
}  # fmt: skip
GOOD_CARD = {"action": "pay", "card_number": "4111 1111 1111 1111", "expiry": "12/39", "cvc": "123"}

INTENT = {
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


class Shop:
    """A shop that talks to the API of a running installation."""

    def __init__(self, up: Any, url: str) -> None:
        self._up = up
        said = orchestrator(
            "token",
            "issue",
            "--merchant",
            "default",
            "--scope",
            "checkouts:write checkouts:read",
            "--data-dir",
            up.data_dir,
        )
        self._http = httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {said.stdout.strip()}"}, timeout=10
        )

    def create(self) -> str:
        # While Postgres starts again, 503 asks to send the same once more.
        def accepted() -> str | None:
            answer = self._http.post("/v1/checkouts", json=INTENT)
            assert answer.status_code in {200, 202, 503}, answer.text
            return None if answer.status_code == 503 else answer.json()["id"]

        return self._up.until(accepted, "the checkout to be accepted", seconds=20)

    def read(self, checkout: str) -> dict[str, Any]:
        return self._http.get(f"/v1/checkouts/{checkout}").json()

    def until(self, checkout: str, state: str) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            found = self.read(checkout)
            return found if found["state"] == state else None

        return self._up.until(there, f"state {state}", seconds=20)

    def pay(self, checkout: str) -> httpx.Response:
        found = self.read(checkout)
        method = next(each for each in found["paymentMethods"] if each["type"] == "CARD")
        started = httpx.post(
            method["onInitiatePayment"]["value"],
            json={"sessionId": found["session"]["id"], "paymentMethodId": method["id"]},
            headers={"authorization": f"Bearer {found['session']['token']}"},
        )
        return httpx.post(started.json()["url"], data=GOOD_CARD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()


@pytest.mark.direct("it is about the servers that end with their parent")
def test_a_kill_of_up_alone_leaves_no_process_behind(tmp_path):
    with running("up", "--port", "0", data_dir=tmp_path / "data", **BRISK) as up:
        up.until_up()
        assert len(up.family) >= 6  # Postgres, Redis, API, worker, scheduler, sandbox
        up.kill()
        assert up.left() == []


def test_after_a_kill_of_everything_the_next_start_goes_on_with_what_was_open(tmp_path):
    place = tmp_path / "data"
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            checkout = shop.create()
            shop.until(checkout, "awaiting_payment")
            assert shop.pay(checkout).headers["location"].startswith("https://shop.example/thanks?")
            # Just after the shopper paid, and nobody can say goodbye to anybody.
            for one in [psutil.Process(up.process.pid), *up.family.values()]:
                one.kill()
        up.process.wait(10)
        assert up.left() == []

    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            assert shop.create() == checkout
            found = shop.until(checkout, "completed")
            assert found["money"]["reserved"] == 139.95
        assert up.end() == 0
        assert up.left() == []


def test_a_child_that_dies_is_started_again_and_ctrl_c_ends_everything_cleanly(tmp_path):
    with running("up", "--port", "0", "--workers", "2", data_dir=tmp_path / "data", **BRISK) as up:
        up.until_up()
        before = {up.child("worker").pid, up.child("scheduler").pid}
        for pid in before:
            psutil.Process(pid).kill()
        up.until_said("worker-1 ended by SIGKILL; starting it again")
        up.until_said("scheduler was started again")
        up.until_said("worker-1 was started again")
        assert before.isdisjoint({up.child("worker").pid, up.child("scheduler").pid})
        server = next(one for one in up.family.values() if "valkey-server" in one.name())
        server.kill()
        up.until_said("the embedded servers were started again")
        with Shop(up, up.until_up()["public_url"]) as shop:
            shop.until(shop.create(), "awaiting_payment")
        assert up.end() == 0
        assert up.left() == []
        assert not (tmp_path / "data" / "runtime.json").exists()


@pytest.mark.direct("it is about the files and the account of the Postgres that it starts")
def test_each_process_has_its_own_secrets_and_what_they_write_is_for_no_other_account(tmp_path):
    place = tmp_path / "data"
    place.mkdir(mode=0o755)
    # As an earlier version left it.
    (place / "sandbox.db").touch(mode=0o644)
    (place / "sandbox.db").chmod(0o644)
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            shop.until(shop.create(), "awaiting_payment")
        for process in ("api", "worker", "scheduler", "sandbox"):
            environment = up.child(process).environ()
            given = {
                name.removeprefix("ORCHESTRATOR_").lower()
                for name in environment
                if name.startswith("ORCHESTRATOR_")
            }
            # Without a Redis of its own for what processes share it is the broker's.
            assert given & SECRET == SECRETS[process]
            url = environment.get("ORCHESTRATOR_DATABASE_URL", "//orchestrator_app:")
            assert "//orchestrator_app:" in url
        ran = [one for one in up.family.values() if one.name() in {"postgres", "valkey-server"}]
        assert len(ran) >= 2
        open_ = [
            str(path)
            for path in place.rglob("*")
            if path.is_file() and "/postgres/data/" not in str(path) and path.stat().st_mode & 0o077
        ]
        assert open_ == []
        assert stat.S_IMODE((place / "postgres/data").stat().st_mode) == 0o700
        assert (place / "sandbox.db").stat().st_size
        assert up.end() == 0


def test_a_second_up_on_the_same_data_is_refused_while_commands_attach_to_the_first(tmp_path):
    place = tmp_path / "data"
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            shop.until(shop.create(), "awaiting_payment")
            second = orchestrator("up", "--port", "0", "--data-dir", place)
            shown = orchestrator("checkouts", "show", "order-1", "--data-dir", place)
            asked = orchestrator("checkouts", "cancel", "order-1", "--reason", "a test", "--data-dir", place)
            health = orchestrator("doctor", "--data-dir", place)
        assert up.end() == 0

    assert (second.returncode, "is in use by another orchestrator" in second.stderr) == (2, True)
    assert (shown.returncode, "awaiting_payment" in shown.stdout, "139.95 DKK" in shown.stdout) == (
        0,
        True,
        True,
    )
    assert asked.returncode == 0
    assert health.returncode == 0, health.stdout
    # Nothing runs any more: the command starts the embedded Postgres for itself.
    trail = orchestrator("checkouts", "show", "order-1", "--data-dir", place).stdout
    assert "cancel:requested" in trail
    assert "operator:command-line" in trail


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_an_ephemeral_installation_leaves_no_file_behind(tmp_path, signals):
    with running("up", "--port", "0", "--ephemeral", data_dir=tmp_path / "unused", **BRISK) as up:
        up.until_said("The orchestrator is up.")
        data = next(line.split()[1] for line in up.said.splitlines() if line.startswith("  Data"))
        for _ in range(signals):
            up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(30) == 0

    assert not Path(data).exists()
    assert not (tmp_path / "unused").exists()


@contextmanager
def somebody_elses_gateway() -> Iterator[tuple[str, list[str]]]:
    """A server that lets nobody in, and remembers what it was asked."""
    asked: list[str] = []

    class Refuses(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_with_a_gateway_url_no_sandbox_starts_and_that_gateway_alone_is_asked(tmp_path):
    with (
        somebody_elses_gateway() as (url, asked),
        running(
            "up", "--port", "0", data_dir=tmp_path / "data", GATEWAY_URL=url, GATEWAY_USERNAME="shop",
            GATEWAY_PASSWORD="wrong", **BRISK,
        ) as up,
    ):  # fmt: skip
        settings = up.until_up()
        assert up.child("worker")
        assert up.find("sandbox") is None
        assert not (tmp_path / "data" / "sandbox.db").exists()
        assert settings["gateway_url"] == url
        with Shop(up, settings["public_url"]) as shop:
            checkout = shop.create()
            up.until(lambda: asked, "a call to the gateway")
            up.until(lambda: shop.read(checkout)["attention"], "attention")
            assert shop.read(checkout)["state"] == "received"
        assert set(asked) == {"/checkout/v1/api/authenticate"}
        assert up.end() == 0
