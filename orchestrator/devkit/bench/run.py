"""One bench from start to verdict: bring everything up, warm it, find the rate if asked to, measure, check,
say what it came to.

The exit status is 0 only if nothing was lost, doubled or unequal in any run that counts. It never runs beside
what belongs to others: a database with unsettled checkouts, or with workers, is refused before anything is
started, because our workers would process those checkouts against the light gateway.
"""

from __future__ import annotations

import asyncio
import platform
import time
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Literal

from rich.text import Text

from orchestrator.devkit.bench import database_probe, display, ramp, report, result
from orchestrator.devkit.bench.setup import NAMED, TIMEOUT, BenchRun, prepared
from orchestrator.devkit.bench.shoppers import ShopperProfile
from orchestrator.devkit.bench.usage import cores, flush_time
from orchestrator.devkit.errors import BenchFailed
from orchestrator.devkit.local import up as supervise
from orchestrator.settings import PREFIX, SettingsError, load
from orchestrator.store import schema
from orchestrator.store.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from orchestrator.devkit.bench.ramp import Try
    from orchestrator.devkit.bench.setup import Progress, Run
    from orchestrator.devkit.local.terminal import Terminal
    from orchestrator.devkit.local.up import Up

DEFAULTS: Final[dict[str, object]] = {"first_check_after": 30.0}
"""Settings of the run where none are set: a lost callback is made up for within the timeout of a run."""
WITH_WEBHOOK: Final[dict[str, object]] = {**DEFAULTS, "webhook_allowed_networks": ("127.0.0.0/8",)}
"""The same where events are delivered to an endpoint on this machine."""

TRY_SECONDS: Final = 10.0
TRY_TIMEOUT: Final = 30.0
WARM_UP: Final = 24
"""Orders before the first that counts: pools open, code is compiled, and plans are made."""
FIRST_RATE: Final = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The options of the command line. `latency` is as it was typed; `rate` of None: the usual."""

    rate: float | None = None
    seconds: float = 30.0
    ramp: bool = False
    stage: Literal["whole", "ready"] = "whole"
    orders: int = 1000
    sequential: int = 0
    latency: str = "0"
    faults: float = 0.0
    think: float = 1.0
    evenly: bool = False
    workers: int = 1
    webhook: bool = False
    seed: int = 1
    report: Path | None = None

    @property
    def pays(self) -> bool:
        return self.stage == "whole" and not self.sequential

    def gateway(self) -> tuple[str, ...]:
        options = {"latency": self.latency, "faults": self.faults, "seed": self.seed, "think": self.think}
        given = (part for name, value in options.items() for part in (f"--{name}", str(value)))
        return ("bench-gateway", *given, "--shoppers" if self.pays else "--no-shoppers")


def run(plan: Plan, terminal: Terminal) -> tuple[int, dict[str, Any] | None]:
    """Do it; return the exit status and the result, which is None if it was broken off."""
    _refuse_others()
    documents: list[dict[str, Any]] = []

    async def visit(up: Up) -> int:
        async with prepared(up, run=f"{int(time.time()):x}", webhook=plan.webhook) as bench_run:
            bench = _Bench(plan, bench_run, terminal, await _conditions(plan, bench_run, up))
            status, document = await bench.whole()
            documents.append(document)
            return status

    options = supervise.Options(
        port=0, ephemeral=True, durable=True, workers=plan.workers, seed=plan.seed, gateway=plan.gateway()
    )
    status = supervise.run(
        options,
        terminal,
        defaults=WITH_WEBHOOK if plan.webhook else DEFAULTS,
        greet=lambda _: None,
        visit=visit,
        stay=False,
    )
    return status, documents[0] if documents else None


class _Bench:
    def __init__(
        self, plan: Plan, bench_run: BenchRun, terminal: Terminal, conditions: result.Conditions
    ) -> None:
        self._plan, self._bench_run, self._terminal, self._conditions = plan, bench_run, terminal, conditions
        self._twice: list[str] = []

    async def whole(self) -> tuple[int, dict[str, Any]]:
        plan, terminal = self._plan, self._terminal
        with display.watching(terminal) as show:
            await self._bench_run.measure(
                self._bench_run.job(orders=WARM_UP, at_once=4), whole=plan.pays, title="warming up", show=show
            )
            if plan.sequential:
                measured, beyond = await self._bench_run.one_by_one(plan.sequential, show=show)
                return self._told(measured, (), stage="sequential", beyond_gateway_ms=result.summary(beyond))
            rate = plan.rate or FIRST_RATE
            tries: list[Try] = []
            if plan.ramp:
                found, tries = await ramp.search(rate, lambda each: self._try(each, show))
                if found is None:
                    raise BenchFailed(
                        f"not even {tries[-1].rate:g} orders a second were held: {tries[-1].why}"
                    )
                rate = found
            measured = await self._measured(rate, show)
        return self._told(measured, tries)

    async def _try(self, rate: float, show: Callable[[Progress], None]) -> Try:
        job = self._bench_run.job(
            rate=rate, seconds=TRY_SECONDS, evenly=self._plan.evenly, seed=self._plan.seed
        )
        measured = await self._bench_run.measure(
            job, whole=self._plan.pays, title=f"{rate:.1f}/s", show=show, timeout=TRY_TIMEOUT
        )
        tried = result.tried(measured, think=self._conditions.think_s)
        mark, style = ("✓", "green") if tried.held else ("✗", "red")
        self._terminal.say(Text.assemble((f"  {mark} ", style), f"{tried.rate:7.1f}/s  ", (tried.why, "dim")))
        # What a rate beyond the limit leaves unfinished is the rate's fault; what it does twice is ours.
        self._twice += [
            f"at {rate:.1f}/s {order_ref}: {why}"
            for order_ref, why in (*measured.ledger.doubled.items(), *measured.ledger.unequal.items())
        ]
        return tried

    async def _measured(self, rate: float, show: Callable[[Progress], None]) -> Run:
        plan, bench_run = self._plan, self._bench_run
        if plan.stage == "ready":
            job, title = bench_run.job(orders=plan.orders), f"{plan.orders} orders"
        else:
            job = bench_run.job(rate=rate, seconds=plan.seconds, evenly=plan.evenly, seed=plan.seed)
            title = f"{rate:.1f}/s"
        return await bench_run.measure(job, whole=plan.pays, title=title, show=show, timeout=TIMEOUT)

    def _told(self, run: Run, tries: Sequence[Try], **extra: object) -> tuple[int, dict[str, Any]]:
        terminal = self._terminal
        document = result.document(run, self._conditions, tries=tries, extra=extra)
        if not run.taken:
            raise BenchFailed("the API took none of the intents: see what its log says with LOG_LEVEL=debug")
        terminal.say()
        terminal.say(display.summary(document))
        terminal.say()
        terminal.facts(*display.facts(document))
        if self._plan.report is not None:
            self._plan.report.write_text(report.page(run, document), encoding="utf-8")
            terminal.facts(("Report", str(self._plan.report)))
        terminal.say()
        wrong = [*run.ledger.sentences(), *self._twice]
        if run.events is not None and run.events.received != run.events.written:
            wrong.append(f"{run.events.received} of {run.events.written} events were delivered")
        if document["held"] is False:
            why = result.tried(run, think=self._conditions.think_s).why
            terminal.trouble(f"{run.job.rate:.1f} orders a second are more than it holds: {why}")
        if run.failed:
            terminal.trouble(f"{run.failed} of {len(run.sent.statuses)} intents were not taken")
        if wrong:
            for sentence in wrong:
                terminal.trouble(sentence)
            terminal.say("The books do not agree.", style="bold red")
        else:
            paid = ", paid and completed" if run.whole else " and offered to the shopper"
            terminal.say(
                f"All {run.taken} orders were taken{paid}; nothing was lost or doubled, and the gateway's books "
                "and ours agree to the minor unit.",
                style="bold green",
            )
        return int(bool(wrong)), document


async def _conditions(plan: Plan, bench_run: BenchRun, up: Up) -> result.Conditions:
    server = await bench_run.probe.server()
    usual = ShopperProfile()
    return result.Conditions(
        version=metadata.version("checkout-orchestrator"),
        python=platform.python_version(),
        cpus=cores(),
        postgres=server.version,
        durable=server.durable,
        flush_ms=flush_time(up.data_dir),
        workers=plan.workers,
        gateway_latency=plan.latency,
        faults=plan.faults,
        think_s=plan.think * (1 + usual.jitter) if plan.pays else 0.0,
    )


def _refuse_others() -> None:
    settings = load()
    url = settings.database_url
    if url is None:
        return
    if not settings.secret_keys:
        raise SettingsError(
            f"{PREFIX}SECRET_KEYS is not set, and what is written to {PREFIX}DATABASE_URL would be under keys that end with the "
            "bench: give it the keys of that database"
        )

    async def read() -> tuple[int, int]:
        async with Database(url, pool_size=1, name="orchestrator-bench") as db:
            return await database_probe.others(db, ours=NAMED)

    with schema.reachable(url):
        unsettled, workers = asyncio.run(read())
    if unsettled or workers:
        raise SettingsError(
            f"{PREFIX}DATABASE_URL names a database in use ({unsettled} unsettled checkouts, {workers} running workers), and the "
            "bench's own workers would process those checkouts against its own gateway: give it a database of its own, or none"
        )
