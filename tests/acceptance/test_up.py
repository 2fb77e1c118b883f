"""`up` starts everything, keeps it running, leaves no process behind, and continues after a kill."""

from __future__ import annotations

import itertools
import signal
import stat
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
import psutil
import psycopg
import pytest
from psycopg.rows import dict_row

from orchestrator.devkit.client import NoAnswer, Unavailable
from orchestrator.settings.secrets import SECRET, SECRETS
from tests.support.command import Shop, orchestrator, running
from tests.support.world import agree, ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.command import Running

BRISK = {
    "HINT_GRACE": "0.5", "SWEEP_INTERVAL": "0.3", "FIRST_CHECK_AFTER": "1", "RECHECK_AFTER_CALLBACK": "0.3",
    # What a killed worker held is taken over when its lease ends.
    "LEASE_SECONDS": "8", "GATEWAY_TOTAL_TIMEOUT": "2.4", "GATEWAY_READ_TIMEOUT": "2.2",
}  # fmt: skip


@pytest.mark.slow
def test_a_child_that_was_only_starting_when_all_was_ended_left_no_work_behind(tmp_path):
    with running("up", "--port", "0", "--workers", "1", data_dir=tmp_path / "data", **BRISK) as up:
        up.until_up()
        killed = up.child("worker")
        killed.kill()
        killed.wait(10)
        assert up.child("worker").pid != killed.pid
        assert up.end() == 0, up.said


@pytest.mark.slow
@pytest.mark.direct("it is about the servers that end with their parent")
@pytest.mark.embedded_broker("it is about the servers that end with their parent")
def test_a_kill_of_up_alone_leaves_no_process_behind(tmp_path):
    with running("up", "--port", "0", data_dir=tmp_path / "data", **BRISK) as up:
        up.until_up()
        assert len(up.family) >= 6  # Postgres, Redis, API, worker, scheduler, sandbox
        up.kill()
        assert up.left() == []


RECOVERY = 15.0
"""Seconds from the moment at which everything answers again to the last move of what a kill has interrupted,
with the settings that ship."""


def test_after_a_kill_of_everything_the_next_start_goes_on_with_what_was_open(tmp_path):
    place = tmp_path / "data"
    with running("up", "--port", "0", data_dir=place) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            checkout = shop.create()
            shop.until(checkout, "awaiting_payment")
            assert shop.pay(checkout).headers["location"].startswith("https://shop.example/thanks?")
            # Just after the shopper paid.
            up.crash()
        assert up.left() == []

    with running("up", "--port", "0", data_dir=place) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            found = shop.until(checkout, "completed", seconds=RECOVERY)
            assert shop.create() == checkout
            assert found["money"]["reserved"] == 139.95
        assert up.end() == 0
        assert f"Stopped. The data stay in {place};" in up.said
        assert up.left() == []


class Shoppers:
    """Shoppers who come in sequence, several at once, until no server answers; `taken` and `paid` are
    their checkouts.
    """

    def __init__(self, up: Running, url: str, *, size: int) -> None:
        self._up, self._url, self._size = up, url, size
        self.taken: dict[str, str] = {}
        self.paid: list[str] = []
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        with Shop(self._up, self._url) as shop:
            self._authorization = shop.authorization
        for number in range(self._size):
            self._threads.append(threading.Thread(target=self._come, args=(number,), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _come(self, number: int) -> None:
        # The kill ends them in the middle of whatever they do.
        with (
            suppress(httpx.HTTPError, NoAnswer, Unavailable, AssertionError),
            Shop(self._up, self._url, self._authorization) as shop,
        ):
            for visit in itertools.count():
                if self._ended.is_set():
                    return
                order = f"C-{number}-{visit}"
                checkout = self.taken[order] = shop.create(order)
                while shop.read(checkout).get("state") != "awaiting_payment":  # it may be a problem
                    time.sleep(0.05)
                if shop.pay(checkout).headers.get("location", "").startswith("https://shop.example/thanks?"):
                    self.paid.append(checkout)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_kill_of_everything_under_load_loses_and_doubles_nothing_and_all_goes_on_in_seconds(tmp_path):
    place = tmp_path / "data"
    # The sandbox is killed too, and with it callbacks that it had not sent: what they would have said is
    # looked for soon.
    settings = {"FIRST_CHECK_AFTER": "4"}
    with running("up", "--port", "0", "--workers", "2", data_dir=place, **settings) as up:
        known = up.until_up()
        slowed = {"latencyMs": {"all": 300}}
        control(known, "faults", slowed)
        with Shoppers(up, known["public_url"], size=12) as shoppers:
            up.until(lambda: len(shoppers.paid) > 20, "shoppers pay", seconds=90)
            killed = time.time()
            up.crash()
        assert up.left() == []

    with running("up", "--port", "0", "--workers", "2", data_dir=place, **settings) as up:
        known = up.until_up()
        ready = time.time()
        up.until(lambda: all_rest(known), "everything goes on", seconds=60)
        moved = sql(
            known,
            "SELECT extract(epoch FROM max(at))::float8 AS at FROM audit_entries WHERE action = 'checkout:moved' "
            f"GROUP BY checkout_id HAVING max(at) > to_timestamp({killed + 0.5})",
        )
        assert moved, "some were in the middle of something"
        took = max(row["at"] for row in moved) - ready
        print(
            f"{len(moved)} went on, the last order {took:.1f} s after everything answered, {took + ready - killed:.1f} s after the kill"
        )
        rows = {str(row["id"]): row for row in checkouts(known)}
        books = ledger(lambda path: control(known, path))
        agree(books, list(rows.values()))
        assert rows.keys() >= set(shoppers.taken.values()), "what was acknowledged is there"
        assert {rows[order]["state"] for order in shoppers.paid} == {"completed"}
        assert all(len(entry["payments"]) <= 1 for entry in books.values())
        completed = sql(known, "SELECT checkout_id FROM events WHERE kind = 'checkout.completed'")
        assert len(completed) == len({row["checkout_id"] for row in completed}) >= len(shoppers.paid)
        verified = orchestrator("audit", "verify", "--data-dir", place)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert up.end() == 0
    assert took < RECOVERY


def all_rest(known: dict[str, Any]) -> bool:
    """Say whether every order is paid for, or waits for its shopper, as the gateway's ledger has it."""
    books = ledger(lambda path: control(known, path))
    paid = {
        order for order, entry in books.items() if any(payment["heldMinor"] for payment in entry["payments"])
    }
    return all(
        row["state"] == ("completed" if row["order_ref"] in paid else "awaiting_payment")
        for row in checkouts(known)
    )


def checkouts(known: dict[str, Any]) -> list[dict[str, Any]]:
    return sql(known, "SELECT * FROM checkouts")


def sql(known: dict[str, Any], statement: str) -> list[dict[str, Any]]:
    with psycopg.connect(known["database_url"], autocommit=True, row_factory=dict_row) as connection:
        return connection.execute(statement).fetchall()


def control(known: dict[str, Any], path: str, body: object = None) -> Any:
    """Call the sandbox's control API."""
    answer = httpx.request(
        "GET" if body is None else "PUT",
        f"{known['gateway_url']}/sandbox/{path}",
        json=body,
        headers={"X-Sandbox-Token": known["sandbox_token"]},
    )
    assert answer.is_success, answer.text
    return answer.json()


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
        # With another broker Postgres is the only server of its own.
        (up.servers("valkey-server") or up.servers("postgres"))[0].kill()
        up.until_said("the embedded servers were started again")
        with Shop(up, up.until_up()["public_url"]) as shop:
            shop.until(shop.create(), "awaiting_payment")
        assert up.end() == 0
        assert up.left() == []
        assert not (tmp_path / "data" / "runtime.json").exists()


@pytest.mark.direct("it is about the files and the account of the Postgres that it starts")
@pytest.mark.embedded_broker("it is about the files and the account of the broker that it starts")
def test_each_process_has_its_own_secrets_and_what_they_write_is_for_no_other_account(tmp_path):
    place = tmp_path / "data"
    place.mkdir(mode=0o755)
    # As an earlier version left it.
    (place / "sandbox.db").touch(mode=0o644)
    (place / "sandbox.db").chmod(0o644)
    with running("up", "--port", "0", data_dir=place, **BRISK) as up:
        with Shop(up, up.until_up()["public_url"]) as shop:
            shop.until(shop.create(), "awaiting_payment")
        for process in ("api", "worker", "scheduler", "sandbox", "shop"):
            environment = up.child(process).environ()
            given = {
                name.removeprefix("ORCHESTRATOR_").lower()
                for name in environment
                if name.startswith("ORCHESTRATOR_")
            }
            # Without a Redis of its own for what processes share it is the broker's.
            off = {"metrics_token", "console_oidc_client_secret"}
            assert given & SECRET == SECRETS[process] - off
            url = environment.get("ORCHESTRATOR_DATABASE_URL", "//orchestrator_app:")
            assert "//orchestrator_app:" in url
        ran = [process for process in up.family.values() if process.name() in {"postgres", "valkey-server"}]
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


@pytest.mark.parametrize(
    "signals", [pytest.param(1, id="once"), pytest.param(2, id="twice", marks=pytest.mark.slow)]
)
def test_an_ephemeral_installation_leaves_no_file_behind(tmp_path, signals):
    with running("up", "--port", "0", "--ephemeral", data_dir=tmp_path / "unused", **BRISK) as up:
        data = up.until_line("  Data").split()[1]
        for _ in range(signals):
            up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(30) == 0

    assert not Path(data).exists()
    assert not (tmp_path / "unused").exists()


@contextmanager
def foreign_gateway() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses every call, and records what it was asked."""
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
        foreign_gateway() as (url, asked),
        running(
            "up",
            "--port",
            "0",
            data_dir=tmp_path / "data",
            GATEWAY_URL=url,
            GATEWAY_USERNAME="shop",
            GATEWAY_PASSWORD="wrong",
            **BRISK,
        ) as up,
    ):
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
