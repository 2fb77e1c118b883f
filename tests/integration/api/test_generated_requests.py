"""Requests that Schemathesis makes from the OpenAPI document, valid and invalid: with every check that it
has the API does what its document says, with a full token, the operator's and a client token.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

from orchestrator import auth
from tests.conftest import make_settings
from tests.integration.api.process import Server, api_process, bearer
from tests.support.api_scene import intent

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = Path(sys.executable).with_name("schemathesis")
UNLIMITED = {
    "merchant_requests_per_second": "0",
    "client_requests_per_second": "0",
    "failed_authentications_per_minute": "0",
}


@pytest.fixture(name="server")
def _server(database_url: str, servers, tmp_path: Path) -> Iterator[Server]:
    with api_process(database_url, servers.redis_url, tmp_path, **UNLIMITED) as process:
        yield process


def checkout_of(server: Server, database_url: str) -> dict[str, str]:
    """Return a checkout that has ended, so that its streams end too."""
    taken = server.client.post("/v1/checkouts", json=intent(), headers=bearer()).json()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE checkouts SET state = 'expired', ended_at = clock()")
    return taken


def run(
    server: Server, directory: Path, token: str, *, checkout: str, examples: int, seconds: int, only: str = ""
) -> None:
    """Run every phase with every check; raise `AssertionError` with what it found."""
    config = directory / "schemathesis.toml"
    config.write_text(CONFIG.replace("CHECKOUT", checkout))
    arguments = [
        *("--config-file", str(config), "run", f"{server.client.base_url}/openapi.json", "--no-color"),
        *("--checks", "all", "--max-examples", str(examples), "--max-failures", "20"),
        *("--generation-deterministic", "--request-timeout", "20"),
        *("--header", f"Authorization: Bearer {token}", "--warnings", "off"),
        *(("--include-path-regex", only) if only else ()),
    ]
    done = subprocess.run(
        [PROGRAM, *arguments], cwd=directory, capture_output=True, text=True, timeout=seconds, check=False
    )
    told = re.sub(r"(.{1,12}?)\1{20,}", r"\1…", done.stdout + done.stderr)
    assert done.returncode == 0, told[-30_000:]
    assert server.logged("request_failed") == []


# What no schema says: a wait holds a request for so long, and a path has an id that exists. Data that a
# schema allows may still be refused with a reason: a URL that is not public, an amount that is not the sum of
# its lines, another key's content.
CONFIG = """
[parameters]
"path.checkout_id" = "CHECKOUT"

[checks]
# A part of the URL that is too long is 414, a header 431.
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 409, 410, 413, 414, 415, 422, 429, 431]
positive_data_acceptance.expected-statuses = ["2xx", 303, 401, 403, 404, 409, 410, 422, 429]

[[operations]]
include-path = "/v1/events"
parameters = { "query.wait" = 0 }
"""


def full_token() -> str:
    scopes = auth.SCOPES - auth.OPERATOR_SCOPES
    return auth.issue(make_settings(), merchant="default", scopes=scopes, lifetime=3600, subject="generated")


def operator_token() -> str:
    scopes, merchant = auth.OPERATOR_SCOPES, auth.OPERATOR
    return auth.issue(make_settings(), merchant=merchant, scopes=scopes, lifetime=3600, subject="generated")


def test_generated_requests_with_a_full_token_find_nothing_wrong(server, database_url, tmp_path):
    taken = checkout_of(server, database_url)
    run(server, tmp_path, full_token(), checkout=taken["id"], examples=2, seconds=110)


def test_generated_requests_of_the_operator_find_nothing_wrong(server, database_url, tmp_path):
    taken = checkout_of(server, database_url)
    run(
        server,
        tmp_path,
        operator_token(),
        checkout=taken["id"],
        examples=5,
        seconds=110,
        only="^/v1/merchants",
    )


def test_generated_requests_with_a_client_token_find_nothing_wrong(server, database_url, tmp_path):
    taken = checkout_of(server, database_url)
    run(
        server,
        tmp_path,
        taken["clientToken"],
        checkout=taken["id"],
        examples=10,
        seconds=110,
        only="/(status|stream)$",
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["full", "operator", "client"])
def test_many_generated_requests_find_nothing_wrong(server, database_url, tmp_path, kind):
    taken = checkout_of(server, database_url)
    token = {"full": full_token, "operator": operator_token, "client": lambda: taken["clientToken"]}[kind]()
    run(server, tmp_path, token, checkout=taken["id"], examples=50, seconds=1100)


def test_no_generated_request_reaches_another_machine(server):
    """The document names no server, so requests go where it was read."""
    document = json.loads(httpx.get(f"{server.client.base_url}/openapi.json").content)
    assert "servers" not in document
