"""Events to webhook endpoints, measured: a part of `make bench`, and alone
`python -m tests.benchmarks.deliveries`.

Postgres with fsync, the writer of events and the sequencer (this process), the deliverer and the endpoints
(`receiver`) share one machine. What is compared is measured in one run and in turn. Alone it writes
`build/deliveries.json`, and with `--page` the section of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from orchestrator.devkit.bench.result import percentile
from tests.benchmarks import delivery_clients, delivery_report, lifecycle
from tests.benchmarks.conditions import conditions
from tests.benchmarks.delivery_scene import NEARLY_NONE, WAIT, scene
from tests.benchmarks.ground import BenchmarkFailed, Ground
from tests.benchmarks.receiver import Conduct, Receiver, Seen, is_poisoned, receiving
from tests.benchmarks.work import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ON_GROUND: Final = ("stream", "backlog", "poison", "outage", "clients")
"""The parts on a database of their own; the others start everything themselves."""
PARTS: Final = (*ON_GROUND, "orders", "overload")
RATE: Final = 200.0
"""Events a second of the streams."""
QUIET: Final = 50.0
"""Events a second before, while and after an endpoint is down."""
BEARS: Final = 300.0
"""Requests a second that an endpoint bears which was down."""
AT_ONCE: Final = 8
"""Or: requests that it works on at a time."""
WORKS: Final = 0.02
"""Seconds for each of them."""
ENDPOINTS: Final = 4
HOURS: Final = 24
PROBED: Final = 5.0
"""Seconds within which an endpoint that is down is tried when the clock was moved on."""
WARM_UP: Final = 3.0
OVERLOADED: Final = 10
"""Seconds for which more orders arrive than can be completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """How long the parts are."""

    rounds: int = 3
    seconds: float = 15.0
    backlog: int = 20_000
    """Deliveries."""
    day: int = 8640
    """Events of the day for which an endpoint is down: a five-hundredth of a day at 50 a second."""
    clients: int = 4000
    orders_rate: float = 150.0
    orders_turns: int = 5
    overload_rate: float = 350.0
    overload_turns: int = 8


QUICK: Final = Length(
    rounds=1,
    seconds=3.0,
    backlog=2000,
    day=2400,
    clients=400,
    orders_rate=15.0,
    orders_turns=1,
    overload_rate=30.0,
    overload_turns=1,
)


def latencies(committed: Mapping[bytes, float], seen: Seen, *, sound: bool = False) -> list[float]:
    """Return the milliseconds from each commit to the first byte, ascending; `sound`: without those of
    poisoned checkouts.
    """
    return sorted(
        (seen.first[event] - at) * 1000
        for event, at in committed.items()
        if not (sound and is_poisoned(event))
    )


def told(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles of a stream."""
    named = {f"p{share}_ms": round(percentile(values, share), 1) for share in (50, 95, 99)}
    return {"events": len(values), **named, "max_ms": round(values[-1], 1)}


def since(now: Mapping[str, float], before: Mapping[str, float], number: int) -> dict[str, Any]:
    """Return the CPU of each kind of process: milliseconds for one delivery, and shares of the machine."""
    used = {name: now[name] - before[name] for name in now}
    machine = used.pop("machine")
    return {
        "cpu_ms": {
            name: round(seconds * 1000 / number, 3) for name, seconds in used.items() if name != "others"
        },
        "cpu_percent": {name: round(seconds * 100 / machine, 1) for name, seconds in used.items()},
    }


# ── The parts ─────────────────────────────────────────────────────────────────────────────────────────────


async def stream(ground: Ground, receiver: Receiver, length: Length) -> list[dict[str, Any]]:
    """Measure from the commit to the first byte: one endpoint, and several."""
    found = []
    for number in (1, ENDPOINTS):
        async with scene(ground, receiver, f"stream_{number}") as there:
            for endpoint in range(number):
                await there.endpoint(endpoint)
            rate = RATE if number == 1 else 1000 / number
            with there.deliverer():
                await there.beating()
                await there.stream(rate, seconds=WARM_UP)
                before = there.spent()
                committed = await there.stream(rate, seconds=length.seconds)
                warm = round(rate * WARM_UP)
                for endpoint in range(number):
                    await there.received(endpoint, warm + len(committed))
                used = since(there.spent(), before, len(committed) * number)
            values: list[float] = []
            for endpoint in range(number):
                seen = receiver.seen(endpoint)
                there.check(endpoint, seen)
                values += latencies(committed, seen)
            found.append({"rate": rate, "endpoints": number, **told(sorted(values)), **used})
    return found


async def backlog(ground: Ground, receiver: Receiver, length: Length) -> list[dict[str, Any]]:
    """Measure how fast what waits is delivered: by one deliverer, and by two."""
    found = []
    for number in (1, 2):
        async with scene(ground, receiver, f"backlog_{number}") as there:
            for endpoint in range(ENDPOINTS):
                await there.endpoint(endpoint)
            checkouts = length.backlog // ENDPOINTS // 4
            await there.fill(checkouts, each=4)
            with (
                there.deliverer("deliverer-1"),
                there.deliverer("deliverer-2") if number == 2 else nullcontext(),
            ):
                await there.received(0, 1)
                before, began = there.spent(), time.time()
                for endpoint in range(ENDPOINTS):
                    await there.received(endpoint, checkouts * 4)
                every = [receiver.seen(endpoint) for endpoint in range(ENDPOINTS)]
                moments = sorted(
                    moment for seen in every for moment in seen.first.values() if moment >= began
                )
                used = since(there.spent(), before, len(moments))
            for endpoint, seen in enumerate(every):
                there.check(endpoint, seen)
            rate = len(moments) / (moments[-1] - began)
            found.append(
                {
                    "deliverers": number,
                    "endpoints": ENDPOINTS,
                    "checkouts": checkouts,
                    "deliveries": checkouts * 4 * ENDPOINTS,
                    "per_second": round(rate, 1),
                    **used,
                }
            )
    return found


async def poison(ground: Ground, receiver: Receiver, length: Length) -> dict[str, Any]:
    """Measure the other checkouts of an endpoint that refuses about one in a hundred for ever, in turn with
    an endpoint that refuses none.
    """
    turns: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    async with scene(ground, receiver, "poison") as there:
        merchants = (1, await there.merchant("poisoned"))
        for number, merchant in enumerate(merchants):
            await there.endpoint(number, merchant=merchant)
        receiver.conduct(1, Conduct(poisoned=True))
        with there.deliverer():
            await there.beating()
            for merchant in merchants:
                await there.stream(RATE, merchant=merchant, seconds=WARM_UP)
            for turn in range(length.rounds):
                for number in (0, 1)[:: 1 if turn % 2 else -1]:
                    await asyncio.sleep(1)
                    before = receiver.count(number)[0]
                    committed = await there.stream(RATE, merchant=merchants[number], seconds=length.seconds)
                    await there.received(number, before + len(committed))
                    taken = latencies(committed, receiver.seen(number), sound=True)
                    turns[("without", "with")[number]].append(told(taken))
        refused = receiver.count(1)[1][500]
    return {"rate": RATE, **turns, "refused": refused, "ratio": _ratio(turns["with"], turns["without"])}


def _ratio(those: Sequence[Mapping[str, float]], these: Sequence[Mapping[str, float]]) -> float:
    """Return how many times as long the p99 of those is as that of these: the median over the turns."""
    found = (that["p99_ms"] / this["p99_ms"] for that, this in zip(those, these, strict=True))
    return round(statistics.median(found), 2)


async def outage(ground: Ground, receiver: Receiver, length: Length) -> list[dict[str, Any]]:
    """Have an endpoint be down for a day, and measure how it is caught up with and what another merchant's
    endpoint notices: once it bears a rate (429 beyond), once so many requests at a time (503 beyond).
    """
    return [
        await _outage(ground, receiver, length, name=name, conduct=conduct)
        for name, conduct in (
            ("rate", Conduct(rate=BEARS)),
            ("at_once", Conduct(at_once=AT_ONCE, seconds=WORKS)),
        )
    ]


async def _outage(
    ground: Ground, receiver: Receiver, length: Length, *, name: str, conduct: Conduct
) -> dict[str, Any]:
    async with scene(ground, receiver, f"outage_{name}") as there:
        other = await there.merchant("other")
        down = await there.endpoint(0)
        await there.endpoint(1, merchant=other)
        receiver.conduct(0, conduct)
        with there.deliverer():
            await there.beating()

            async def both(**until: Any) -> tuple[dict[bytes, float], list[float]]:
                begun = receiver.count(1)[0]
                mine, others = await asyncio.gather(
                    there.stream(QUIET, **until), there.stream(QUIET, merchant=other, **until)
                )
                await there.received(1, begun + len(others))
                return mine, latencies(others, receiver.seen(1))

            await both(seconds=WARM_UP)
            _, alone = await both(seconds=length.seconds * length.rounds / 2)
            receiver.conduct(0, Conduct(away=True))
            for _ in range(HOURS):
                opened = await there.opened(down)
                await there.fill(length.day // HOURS)
                await there.later(3600)
                end = time.monotonic() + PROBED
                while time.monotonic() < end:
                    # Not the answer of the probe: the circuit opens a moment after it, by the moved clock.
                    if await there.opened(down) > opened:
                        break
                    await asyncio.sleep(0.05)
            if not await there.opened(down):
                raise BenchmarkFailed("the circuit of an endpoint that is down did not open")
            before = receiver.count(0)[1]
            receiver.conduct(0, conduct)
            await there.later(400)  # longer than a circuit stays open
            began, over = time.monotonic(), asyncio.Event()
            beside = asyncio.create_task(both(over=over))
            spent = there.spent()
            while await there.waiting(down) >= NEARLY_NONE:
                if time.monotonic() - began > WAIT:
                    raise BenchmarkFailed(f"the endpoint was not caught up with within {WAIT:g} s")
                await asyncio.sleep(0.2)
            seconds = time.monotonic() - began
            over.set()
            _, draining = await beside
            used = since(there.spent(), spent, length.day)
            after = receiver.count(0)[1]
            there.check(0, receiver.seen(0))
            _, again = await both(seconds=length.seconds * length.rounds / 2)
    answers = after - before
    refused = answers[429] + answers[503]
    quiet = told(sorted([*alone, *again]))
    busy = told(draining)
    return {
        "bears": asdict(conduct),
        "events": length.day,
        "tried_while_down": before[503],
        "seconds": round(seconds, 1),
        "per_second": round((sum(answers.values()) - refused) / seconds, 1),
        "requests": sum(answers.values()),
        "refused": refused,
        "refused_percent": round(100 * refused / sum(answers.values()), 2),
        "other_alone": quiet,
        "other_beside": busy,
        "ratio": round(busy["p99_ms"] / quiet["p99_ms"], 2),
        **used,
    }


def orders(length: Length, show: Callable[[str], None]) -> dict[str, Any]:
    """Measure `orchestrator bench` with a webhook and without, in turn, at one rate."""
    options = ("--rate", str(length.orders_rate), "--seconds", str(round(length.seconds)))
    return {"rate": length.orders_rate, **_in_turn(options, length.orders_turns, show)}


def overload(length: Length, show: Callable[[str], None]) -> dict[str, Any]:
    """Measure the highest rate, with a webhook and without, in turn: how many orders are completed a second
    where more arrive than can be. A search (`--ramp`) moves in steps of 6 % and takes minutes, in which the
    speed of a machine changes by more than the difference; these turns are short.
    """
    options = ("--rate", str(length.overload_rate), "--seconds", str(OVERLOADED))
    return {"rate": length.overload_rate, **_in_turn(options, length.overload_turns, show)}


def _in_turn(
    options: Sequence[str], rounds: int, show: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    turns: dict[str, list[dict[str, Any]]] = {"without": [], "with": []}
    for turn in range(rounds):
        for name in list(turns)[:: 1 if turn % 2 else -1]:
            show(f"orchestrator bench {' '.join(options)}, {name} a webhook")
            webhook = ("--webhook",) if name == "with" else ()
            turns[name].append(lifecycle.bench(*lifecycle.WHOLE, *options, *webhook, behind=True))
    return turns


# ── A run ─────────────────────────────────────────────────────────────────────────────────────────────────


def measure(
    ground: Ground | None, length: Length, show: Callable[[str], None], *, parts: Sequence[str] = PARTS
) -> dict[str, Any]:
    """Return the document of these parts, those of `ON_GROUND` on a ground; main thread only."""
    found: dict[str, Any] = {"rounds": length.rounds}
    works = {
        "stream": ("events to endpoints: from commit to first byte", stream),
        "backlog": ("events to endpoints: deliveries a second", backlog),
        "poison": ("an endpoint that refuses one checkout in a hundred", poison),
        "outage": ("an endpoint that was down for a day", outage),
        "clients": ("deliveries by aiohttp and by httpx", delivery_clients.compare),
    }
    with nullcontext() if ground is None else receiving() as receiver:
        for part, (title, work) in works.items():
            if part in parts and ground is not None and receiver is not None:
                show(title)
                found[part] = asyncio.run(work(ground, receiver, length))
                show(json.dumps(found[part]))
    for part, bench in (("orders", orders), ("overload", overload)):
        if part in parts:
            found[part] = bench(length, show)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.deliveries", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean nothing")
    parser.add_argument("--only", default=",".join(PARTS), help="some of the parts: %(default)s")
    parser.add_argument("--note", help="a sentence about the conditions, for the page")
    parser.add_argument("--page", action="store_true", help="write the section of docs/benchmarks.md")
    given = parser.parse_args()
    target, page = ROOT / "build/deliveries.json", ROOT / "docs/benchmarks.md"
    document: dict[str, Any] = {}
    if target.exists():
        document = json.loads(target.read_text())
    parts = [part for part in given.only.split(",") if part]
    if parts:
        with Ground.start() as ground:
            document["conditions"] = conditions(ground)
            target.parent.mkdir(exist_ok=True)
            for part in parts:
                document |= measure(ground, QUICK if given.quick else Length(), print, parts=(part,))
                target.write_text(json.dumps(document, indent=2) + "\n")
    if given.note is not None:
        document["note"] = given.note
        target.write_text(json.dumps(document, indent=2) + "\n")
    if given.page:
        page.write_text(delivery_report.placed(page.read_text(), document))


if __name__ == "__main__":
    main()
