"""`up`: servers, schema, sandbox, API, workers, scheduler and deliverer from nothing, kept running, and ended
in the right order.

Everything is started from the main thread, because the kernel ends a child with the thread that started it. A
child that ends is started again; the embedded servers too. Stopping is warm: a process with work in hand
finishes it while gateway and servers still answer. No process is left over, and open work is in Postgres with
its due time, so the next start continues it.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlencode

from orchestrator.crypto import Encryptor
from orchestrator.devkit.errors import UpFailed
from orchestrator.devkit.local import runtime_file
from orchestrator.devkit.local.child import Child, ending, is_well
from orchestrator.devkit.local.keys import NAME as KEYS
from orchestrator.devkit.local.keys import generated
from orchestrator.devkit.local.servers import Embedded
from orchestrator.devkit.local.servers.files import HOST, bound, free_port, withhold
from orchestrator.settings import environment, load
from orchestrator.settings.secrets import SECRETS
from orchestrator.shutdown import FAILED, end_within
from orchestrator.store import schema
from orchestrator.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from orchestrator.devkit.local.terminal import Terminal
    from orchestrator.settings import Settings

START_TIMEOUT: Final = 60.0
_POLL: Final = 0.1
_SERVERS_SHARE: Final = 0.4
"""Of SHUTDOWN_TIMEOUT, for the stand-in of the gateway and the servers after those that call them; at most as
many seconds as:"""
_SERVERS_TIME: Final = 10.0
_LEAST: Final = 2.0
"""Seconds that the servers get in any case."""
_LAST_RESORT: Final = 3.0
"""Seconds after SHUTDOWN_TIMEOUT until this process ends itself by force; the kernel ends what it started."""
_WRONG_SETTING: Final = 2
"""The exit status of a command that was given something wrong: starting it again cannot help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `up` on the command line. Port 0 takes a free port and stores it."""

    port: int = 8000
    data_dir: Path = Path(".orchestrator")
    ephemeral: bool = False
    workers: int = 1
    seed: int = 1
    durable: bool | None = None
    """Whether what is committed outlives the machine's end; None: unless it is ephemeral."""
    gateway: tuple[str, ...] = ()
    """A command of ours that stands in for the gateway, whatever GATEWAY_URL says. Empty: the sandbox, where
    none is set."""
    shop: bool = True
    """Whether the demo shop is started, beside the sandbox."""

    @property
    def lasting(self) -> bool:
        return not self.ephemeral if self.durable is None else self.durable


class Up:
    """The processes of one machine; a context in which they run. Main thread only."""

    def __init__(
        self, options: Options, terminal: Terminal, *, defaults: Mapping[str, object] | None = None
    ) -> None:
        self.options, self.terminal = options, terminal
        self._defaults = dict(defaults or {})
        self._held = ExitStack()
        self._ready = False
        self._ends_at: float | None = None
        self.children: list[Child] = []
        self.result = 0
        """The exit status, once a visit has set it."""
        self.asked = False
        """Whether a signal asked it to end."""
        self.orderly = True
        """Whether everything that has ended so far came to its end by itself, with nothing left undone."""

    settings: Settings
    """What the children run with."""
    data_dir: Path
    sandbox_url: str | None
    """Where the stand-in for the gateway listens, if there is one."""
    shop_url: str | None
    """Where the demo shop listens, if there is one."""
    url: str
    servers: Embedded

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            self._start(starting)
            self._held = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _start(self, held: ExitStack) -> None:
        given = load()
        options = self.options
        if options.port:
            # Said now, and not in a child's log.
            try:
                bound(options.port)
            except OSError as error:
                raise UpFailed(
                    f"port {options.port} of {HOST} cannot be used ({error.strerror}): choose another with --port"
                ) from error
        self.data_dir = self._place(held)
        self.servers = self._start_servers(given)
        held.callback(self._stop_servers)
        ports = {"api": options.port or free_port(self.data_dir / "api.port")}
        if given.gateway_url is None or options.gateway:
            ports["sandbox"] = free_port(self.data_dir / "sandbox.port", but=ports.values())
        if options.shop and given.gateway_url is None and not options.gateway:
            ports["shop"] = free_port(self.data_dir / "shop.port", but=ports.values())
        urls = {name: f"http://{HOST}:{port}" for name, port in ports.items()}
        self.url, self.sandbox_url, self.shop_url = urls["api"], urls.get("sandbox"), urls.get("shop")
        self.settings = self._settings(given)
        held.callback(runtime_file.withdraw, self.data_dir)
        runtime_file.announce(self.data_dir, self.settings)
        self.terminal.step("Bringing the schema up to date …")
        self._prepare_database()
        log = self.data_dir / "log"
        log.mkdir(mode=0o700, exist_ok=True)
        withhold(self.data_dir, log)
        served = {name: ["--host", HOST, "--port", str(port)] for name, port in ports.items()}
        commands = {"api": ["api", *served["api"]], "scheduler": ["scheduler"], "deliverer": ["deliverer"]}
        commands |= {f"worker-{number}": ["worker"] for number in range(1, options.workers + 1)}
        if "sandbox" in ports:
            kept = ("--state-file", str(self.data_dir / "sandbox.db"), "--seed", str(options.seed))
            name, *rest = options.gateway or ("sandbox", *kept)
            commands[name] = [name, *served["sandbox"], *rest]
        if "shop" in ports:
            commands["shop"] = ["shop", *served["shop"], "--api", self.url]
        self.children = [
            Child(
                name,
                command,
                environment=environment(self.settings, command[0] if command[0] in SECRETS else "sandbox"),
                log=log / f"{name}.log",
                cwd=Path.cwd(),
            )
            for name, command in commands.items()
        ]
        held.callback(self._end_children)
        for child in self.children:
            child.start()

    def _start_servers(self, given: Settings) -> Embedded:
        return Embedded.start(
            self.data_dir,
            postgres=given.database_url is None,
            redis=given.broker_url is None,
            durable=self.options.lasting,
            announce=self.terminal.step,
        )

    def _prepare_database(self) -> None:
        """Bring the schema up to date; refuse a trail that was written under keys we do not have."""
        url = self.settings.owner_url

        async def newest_key() -> str | None:
            async with Database(url, pool_size=1, name="orchestrator-up") as db:
                return await schema.newest_key(db)

        with schema.reachable(url):
            schema.migrate(
                self.settings.migration_url or url,
                keys=self.settings.secret_keys,
                direct=self.settings.migration_url is not None,
            )
            key = asyncio.run(newest_key())
        if key is not None and Encryptor(self.settings.secret_keys).known(key) is None:
            raise UpFailed(
                f"the database was written under secret key {key}, which ORCHESTRATOR_SECRET_KEYS does not have: add that key to "
                f"the list (unset, the keys are those of {self.data_dir / KEYS}), or use the database that belongs to these keys"
            )

    def _place(self, held: ExitStack) -> Path:
        if not self.options.ephemeral:
            return self.options.data_dir.absolute()
        made = Path(tempfile.mkdtemp(prefix="orchestrator-"))
        held.callback(shutil.rmtree, made)
        return made

    def _settings(self, given: Settings) -> Settings:
        """Return the children's settings: what is set, then the caller's defaults, then generated."""
        keys = generated(self.data_dir)
        supplied = {
            name: value for name, value in self._defaults.items() if name not in given.model_fields_set
        }
        supplied |= keys.missing_from(given, sandbox=self.sandbox_url is not None)
        if given.database_url is None:
            supplied["database_url"] = self.servers.database_url
            # For migrations and `archive`; the processes are not given it.
            supplied["migration_url"] = self.servers.owner_url
        if given.broker_url is None:
            supplied["broker_url"] = self.servers.redis_url
        if given.redis_url is None and not str(given.broker_url or "").startswith("amqp"):
            supplied["redis_url"] = given.broker_url or self.servers.redis_url
        if self.sandbox_url is not None:
            supplied["gateway_url"] = self.sandbox_url
            if not given.sandbox_token.get_secret_value():
                supplied["sandbox_token"] = secrets.token_urlsafe(24)
            if "gateway_networks" not in given.model_fields_set:
                # The sandbox calls from this machine, and there is no other gateway here.
                supplied["gateway_networks"] = ("127.0.0.1", "::1")
        if self.shop_url is not None:
            # Its pages read from the API, and the deliverer sends to it on this machine.
            supplied["demo_shop_url"] = self.shop_url
            supplied["browser_origins"] = (*given.browser_origins, self.shop_url)
            supplied["webhook_allowed_networks"] = (*given.webhook_allowed_networks, HOST)
        if "public_url" not in given.model_fields_set:
            supplied["public_url"] = self.url
        if "access_log" not in given.model_fields_set:
            # Its logs are files that are set aside at a start only; a line for each request would fill the
            # disk.
            supplied["access_log"] = False
        # Files are read by programs; the terminal shows lines for people.
        return load({**supplied, "log_format": "json"})

    def ledger_url(self, gateway: str, **query: str) -> str:
        """Return where a browser shows the money at a sandbox, with the token of the control API."""
        token = self.settings.sandbox_token.get_secret_value()
        return f"{gateway}/sandbox/ledger?{urlencode({**query, **({'token': token} if token else {})})}"

    def data_dir_option(self, usual: str) -> str:
        """Return the option by which a command finds this installation: none for the usual place."""
        return "" if self.options.data_dir == Path(usual) else f" --data-dir {self.data_dir}"

    # While they run.

    @property
    def pids(self) -> dict[str, int]:
        """Every process that runs here now, by name; of Postgres and Redis those that were started here."""
        children = {child.name: child.pid for child in self.children if child.pid is not None}
        return {**children, **self.servers.pids}

    async def ready(self) -> None:
        """Wait until everything answers; `UpFailed` if it does not, with what the process said."""
        wanted = [f"{self.url}/readyz"]
        wanted += [f"{url}/healthz" for url in (self.sandbox_url, self.shop_url) if url is not None]
        deadline = time.monotonic() + START_TIMEOUT
        while wanted:
            if time.monotonic() > deadline:
                raise UpFailed(
                    f"{wanted[0]} has not answered within {START_TIMEOUT:g} s: see {self.data_dir / 'log'}"
                )
            if await is_well(wanted[0]):
                wanted.pop(0)
            else:
                await asyncio.sleep(_POLL)
        self._ready = True

    async def watch(self) -> None:
        """Look after the children until cancelled."""
        while True:
            for child in self.children:
                self.terminal.relay(child)
                status = child.fallen()
                if status is not None:
                    self._note_fall(child, status)
                if child.start_at is not None and time.monotonic() >= child.start_at:
                    child.start()
                    self.terminal.step(f"{child.name} was started again")
            sentence = self.servers.fallen()
            if sentence is not None:
                self._restart_servers(sentence)
            await asyncio.sleep(_POLL)

    def _note_fall(self, child: Child, status: int) -> None:
        if status == _WRONG_SETTING and not self._ready:
            raise UpFailed(f"{child.name} did not start: {child.last_words()}")
        self.terminal.trouble(
            f"{child.name} ended {ending(status)}; starting it again in {child.pause:g} s (its log: {child.log})"
        )

    def _restart_servers(self, sentence: str) -> None:
        self.terminal.trouble(f"{sentence}; starting the embedded servers again")
        given = load()
        self.servers.stop()
        self.servers = self._start_servers(given)
        self.terminal.step("the embedded servers were started again")
        redis_url = self.settings.broker_url if given.broker_url else self.servers.redis_url
        database_url = self.settings.database_url if given.database_url else self.servers.database_url
        if (redis_url, database_url) != (self.settings.broker_url, self.settings.database_url):
            raise UpFailed(
                "the embedded servers came back on another port, because theirs was taken: start `up` again"
            )

    def end_within(self, seconds: float) -> None:
        """Have everything end in so many seconds from now, whatever hangs; the first call counts."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + seconds

    async def shut(self, hurry: asyncio.Event) -> None:
        """End the children warmly: callers first, then the called. With `hurry` set, at once.

        All of it, the servers too, takes SHUTDOWN_TIMEOUT at most. `orderly` is true if no process had to be
        killed.
        """
        seconds = self.settings.shutdown_timeout
        self.end_within(seconds)
        assert self._ends_at is not None  # noqa: S101 - set by the line above
        kept = min(_SERVERS_SHARE * seconds, _SERVERS_TIME)
        last = [child for child in self.children if child.name in {"sandbox", *self.options.gateway[:1]}]
        callers = [child for child in self.children if child not in last]
        for group, deadline in ((callers, self._ends_at - kept), (last, self._ends_at - kept / 2)):
            told = [child for child in group if not child.gone]
            for child in group:
                child.tell(signal.SIGTERM)
            while time.monotonic() < deadline and not hurry.is_set():
                # Only a check shows whether a process has ended.
                if all(child.gone for child in group):
                    break
                await asyncio.sleep(0.02)
            for child in told:
                status = child.end()
                if hurry.is_set():
                    continue
                if status == -signal.SIGKILL:
                    self.terminal.trouble(f"{child.name} did not end in time and was killed")
                # One that SIGTERM itself ended was only starting, and had nothing in hand yet.
                if status == -signal.SIGKILL or (status not in {0, -signal.SIGTERM} and group is callers):
                    self.orderly = False

    def _stop_servers(self) -> None:
        within = None if self._ends_at is None else max(self._ends_at - time.monotonic(), _LEAST)
        for name in self.servers.stop(within):
            self.orderly = False
            self.terminal.trouble(
                f"{name} did not shut down in time and was killed; nothing committed is lost"
            )

    def _end_children(self) -> None:
        for child in self.children:
            child.tell(signal.SIGKILL)
        for child in self.children:
            child.end()


def run(
    options: Options,
    terminal: Terminal,
    *,
    defaults: Mapping[str, object] | None = None,
    greet: Callable[[Up], None],
    visit: Callable[[Up], Awaitable[int]] | None = None,
    stay: bool = True,
) -> int:
    """Bring everything up and keep it up until SIGINT or SIGTERM; return the exit status.

    `visit` runs once everything answers; its number is the exit status. Without `stay`, its end is the end of
    it all.
    """
    up = Up(options, terminal, defaults=defaults)
    seconds = load().shutdown_timeout

    def asked_before_it_was_up(*_: object) -> None:
        _end_within(up, seconds)
        raise KeyboardInterrupt

    # Until the loop handles signals, a signal unwinds what was started, so that no process is left over.
    _on_signals(asked_before_it_was_up)
    try:
        with up:
            status = asyncio.run(_live(up, greet=greet, visit=visit, stay=stay))
    except KeyboardInterrupt:
        terminal.step("stopped before it was up")
        return 128 + signal.SIGINT
    if up.asked:
        kept = f"The data stay in {up.data_dir}; the next start continues open work."
        terminal.step(f"Stopped. {'The data are removed.' if options.ephemeral else kept}")
    return status if status or up.orderly else FAILED


def _on_signals(handler: Callable[..., None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def _end_within(up: Up, seconds: float) -> None:
    up.end_within(seconds)
    end_within(seconds + _LAST_RESORT, "up")


async def _live(
    up: Up, *, greet: Callable[[Up], None], visit: Callable[[Up], Awaitable[int]] | None, stay: bool
) -> int:
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def note() -> None:
        if stop.is_set():
            hurry.set()
        else:
            up.asked = True
            stop.set()

    def asked(*_: object) -> None:
        # Python's own handler: the loop may be busy with servers that start, or be over.
        _end_within(up, up.settings.shutdown_timeout)
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(note)

    _on_signals(asked)
    watching = loop.create_task(up.watch(), name="watch")
    living = loop.create_task(_visited(up, greet=greet, visit=visit, stay=stay), name="visit")
    stopping = loop.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait((watching, living, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            await watching  # raises: only a failure ends it
        if living.done():
            return await living
        return up.result
    finally:
        if stop.is_set():
            up.terminal.step("Stopping: work in hand is finished first (Ctrl-C again to stop at once) …")
        for task in (watching, living, stopping):
            task.cancel()
        await asyncio.gather(watching, living, stopping, return_exceptions=True)
        await up.shut(hurry)


async def _visited(
    up: Up, *, greet: Callable[[Up], None], visit: Callable[[Up], Awaitable[int]] | None, stay: bool
) -> int:
    await up.ready()
    greet(up)
    if visit is not None:
        up.result = 1  # unless the visit comes to its end
        up.result = await visit(up)
    if stay:
        await asyncio.get_running_loop().create_future()
    return up.result
