"""A server for each Postgres that the schema has to run on: the embedded server, and Debian's 15 where it is
installed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Iterator

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="session")
def postgres_15() -> Iterator[str]:
    """Debian's Postgres 15 on a socket of its own."""
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip(f"{DEBIAN_15} is not installed")
    # Below /tmp itself: the account that the server runs as may not enter the directories of pytest.
    home = Path(tempfile.mkdtemp(prefix="pg15-"))
    account = {}
    if os.geteuid() == 0:
        entry = pwd.getpwnam("nobody")
        os.chown(home, entry.pw_uid, entry.pw_gid)
        account = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    quiet = {
        "cwd": home,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.STDOUT,
        "env": {"LC_ALL": "C"},
        **account,
    }
    server = None
    try:
        subprocess.run(
            [
                DEBIAN_15 / "initdb",
                "-D",
                home / "data",
                "-U",
                "tester",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-sync",
            ],
            check=True,
            **quiet,
        )
        server = subprocess.Popen(
            [
                DEBIAN_15 / "postgres",
                "-D",
                home / "data",
                "-c",
                "listen_addresses=",
                "-c",
                f"unix_socket_directories={home}",
                "-c",
                "fsync=off",
                "-c",
                "synchronous_commit=off",
            ],
            **quiet,
        )
        url = f"postgresql://tester@/postgres?host={home}"
        deadline = time.monotonic() + 30
        while True:
            try:
                psycopg.connect(url).close()
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(30)
        shutil.rmtree(home)


@pytest.fixture(params=["embedded", "debian-15"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty database without a schema."""
    if request.param == "embedded":
        server = request.getfixturevalue("servers").administrator_url
    else:
        server = request.getfixturevalue("postgres_15")
    before, _, options = server.partition("?")
    name = f"migrating_{uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{before.rpartition('/')[0]}/{name}?{options}"
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
