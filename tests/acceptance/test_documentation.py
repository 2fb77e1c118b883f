"""Every snippet of README, tutorial and integration guide does what the page says, against one running
installation.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.command import running
from tests.support.machine import until
from tests.support.snippets import Terminal, snippets, without_fences
from tests.support.world import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/tutorial.md", ROOT / "docs/integrate.md"]
PROGRAMS = {"python", "javascript", "php"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_is_one_that_is_run(page: Path):
    found = list(snippets(page))
    assert found
    for snippet in found:
        assert snippet.language in {"sh", *PROGRAMS}, snippet
        assert set(snippet.notes) <= {"file", "background", "started", "needs", "shows"}, snippet
        assert ("file" in snippet.notes) == (snippet.language in PROGRAMS), snippet
    assert not re.search(r"^ {4}\S", without_fences(page), re.MULTILINE), "code stands in fences"


def test_what_starts_everything_is_a_command_that_exists():
    for snippet in (each for page in PAGES for each in snippets(page) if "started" in each.notes):
        for line in snippet.text.splitlines():
            if line.startswith("make "):
                subprocess.run(["make", "-n", *line.split()[1:]], cwd=ROOT, check=True, capture_output=True)
            else:
                assert line == ".venv/bin/orchestrator up" or line.startswith("export ORCHESTRATOR_"), line


class Feed(ThreadingHTTPServer):
    """An API with a feed in which each checkout ends as its name says; its first answers break off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.broken, self.moved = 0, list[str]()


class _Answer(BaseHTTPRequestHandler):
    server: Feed

    def do_GET(self) -> None:
        name = self.path.rpartition("=")[2]
        found: list[dict[str, Any]] = []
        if "after=0&" not in self.path:
            kinds = ["expired", "completed"] if name in {"late", "reopened"} else [name]
            found = [{"type": "checkout.ready", "data": {}}]
            found += [{"type": f"checkout.{kind}", "data": {"late": name == "late"}} for kind in kinds]
        self._answer({"events": found, "next": "7"})

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.moved.append(f"{self.path} {self.headers['Idempotency-Key']} {asked}")
        self._answer({"state": "done"})

    def _answer(self, document: dict[str, Any]) -> None:
        self.server.broken += 1
        if self.server.broken == 1:  # the request is read, and the connection closed
            return
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:5] if self.server.broken == 2 else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def feed() -> Iterator[Feed]:
    with Feed() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


CLIENTS = {"shop_client.py": sys.executable, "shop_client.mjs": "node", "shop_client.php": "php"}


@pytest.mark.parametrize("name", CLIENTS)
def test_the_shops_client_repeats_what_broke_off_and_captures_only_what_is_paid_in_time(name, tmp_path):
    program = shutil.which(CLIENTS[name])
    if program is None:
        pytest.skip(f"{CLIENTS[name]} is not installed")
    (written,) = (each for each in snippets(PAGES[2]) if each.notes.get("file") == name)
    (tmp_path / name).write_text(written.text)
    with feed() as api:
        kept = {**os.environ, "API": f"http://127.0.0.1:{api.server_port}", "TOKEN": "t"}

        def settle(checkout: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [program, name, "settle", checkout],
                cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip

        paid = settle("completed")
        assert (paid.returncode, paid.stdout) == (0, "capture done\nrefund done\n"), paid.stderr
        assert [each.partition(" {")[0] for each in api.moved] == [
            "/v1/checkouts/completed/capture capture-completed",
            "/v1/checkouts/completed/refund refund-completed",
        ]
        assert settle("reopened").returncode == 0
        api.moved.clear()
        for end in ("failed", "cancelled", "expired", "late"):
            unpaid = settle(end)
            assert unpaid.returncode != 0, end
            assert "not to be shipped" in unpaid.stderr, unpaid.stderr
        assert api.moved == []


@contextmanager
def receiver(code: str, port: int, place: Path) -> Iterator[None]:
    """Run a receiver of webhooks that a page shows."""
    kept = {**os.environ, "PORT": str(port), "TOKEN": "t", "WEBHOOK_SECRET": "whsec_" + "c2VjcmV0" * 4}
    with subprocess.Popen([sys.executable, "-c", code], cwd=place, env=kept) as process:
        try:
            yield
        finally:
            process.kill()


FORGED = {"webhook-id": "1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
MOST = b"x" * 1_000_000


@pytest.mark.parametrize("page", [PAGES[1], ROOT / "docs/webhooks.md"], ids=lambda page: page.name)
def test_the_receivers_of_the_pages_read_a_bounded_body_and_refuse_what_is_not_signed(page, tmp_path):
    (code,) = (each.text for each in snippets(page) if "ThreadingHTTPServer" in each.text)
    port = free_port()

    def listens() -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    def answered(size: int, body: bytes, **headers: str) -> int:
        """Return the status of the answer to a request whose connection stays open."""
        given = FORGED | {f"webhook-{name}": value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        head = f"POST /webhooks HTTP/1.0\r\nContent-Length: {size}\r\n{lines}\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(head.encode("latin-1") + body)
            return int(connection.makefile("rb").readline().split()[1])

    with receiver(code.replace("5000", str(port)), port, tmp_path):
        until(listens, "it listens")
        assert answered(len(MOST), MOST) == 401
        if page == PAGES[1]:
            assert (answered(-1, b""), answered(len(MOST) + 1, b"")) == (413, 413)
            assert answered(2, b"{}", timestamp="\u00b2") == 401
            assert answered(2, b"{}", timestamp=str(int(time.time())), signature="v1,\u00e9") == 401
        else:  # what is beyond the bound is not read, and the rest has another signature
            assert (answered(-1, b""), answered(10 * len(MOST), MOST)) == (401, 401)


def test_the_pages_of_the_tutorials_shop_are_whole_pages_that_fit_a_phone(tmp_path):
    (code,) = (each.text for each in snippets(PAGES[1]) if each.notes.get("file") == "shop.py")
    port = free_port()
    with receiver(code.replace("5000", str(port)), port, tmp_path):
        until(lambda: bool(page_of(port)), "it listens")
        found = page_of(port)
    for part in ("<!doctype html>", '<meta name="viewport"', "<title>The lamp shop</title>", "</html>"):
        assert part in found
    script = (ROOT / "orchestrator/api/static/checkout-1.0.0.js").read_text()
    styled = set(re.findall(r"\.(checkout-[a-z]+)", found))
    assert {"checkout-method", "checkout-name", "checkout-description"} <= styled
    assert all(f'"{name}"' in script for name in styled), styled


def page_of(port: int) -> str:
    with suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{port}/").text
    return ""


def variables(page: Path, terminal: Terminal) -> dict[str, str]:
    """Return the settings that a page exports before it starts everything, without their prefix."""
    started = "".join(terminal.here(each.text) for each in snippets(page) if "started" in each.notes)
    return dict(re.findall(r"^export ORCHESTRATOR_(\w+)='?(.*?)'?$", started, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.embedded_broker("it reads what `up` itself started")
@pytest.mark.direct("it reads what `up` itself started")
def test_all_snippets_do_what_the_pages_say(tmp_path: Path):
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/orchestrator"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m orchestrator "$@"\n')
    command.chmod(0o755)
    (tmp_path / "docs").mkdir()
    port, shop = free_port(), free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    places = {
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        ":5000": f":{shop}",
        '"127.0.0.1", 5000': f'"127.0.0.1", {shop}',
    }
    first = Terminal(tmp_path, places, kept)
    settings = variables(PAGES[1], first)
    skipped = []
    with running("up", "--port", str(port), data_dir=tmp_path / ".orchestrator", **settings) as up:
        up.until_said("The orchestrator is up.", seconds=120)
        up.until_up()
        exported = {f"ORCHESTRATOR_{name}": value for name, value in settings.items()}
        shutil.copy(ROOT / "docs/intent.json", tmp_path / "docs")
        for page in (*PAGES, *PAGES):  # whoever repeats a page finds the orders of before, which are paid
            environment = {**kept, **exported, "PATH": f"{command.parent}:{kept['PATH']}"}
            terminal = Terminal(tmp_path, places, environment)
            try:
                reasons = [terminal.run(each) for each in snippets(page) if "started" not in each.notes]
                skipped += [reason for reason in reasons if reason]
            finally:
                terminal.close()
        assert up.end() == 0, up.said
    for reason in skipped:
        print(f"not run: {reason}")
    assert all(reason.endswith("php is not installed") for reason in skipped), skipped
