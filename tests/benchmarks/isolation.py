"""The effect of a noisy merchant on a quiet merchant: p99 from intake to awaiting_payment, alone and while
another sends 20 times its rate.

    python -m tests.benchmarks.isolation [--rate 3] [--times 20] [--seconds 20] [--turns 2]
                                        [--latency 0] [--noisy-latency 3000]

The product runs as `up` runs it, on embedded servers that flush to disk, in front of light gateways; load is
open (arrivals on a schedule). Both phases are measured in one run and in turn, so that what else the machine
does meets both; only their ratio means something on another machine, and no test depends on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch
from urllib.parse import urlsplit
from uuid import uuid4

from sqlalchemy import text

from orchestrator import auth
from orchestrator.crypto import Encryptor
from orchestrator.devkit.bench import load
from orchestrator.devkit.local.servers.files import bound
from orchestrator.devkit.local.terminal import Terminal
from orchestrator.devkit.local.up import Options, Up
from orchestrator.store.database import Database
from orchestrator.store.merchants import Merchants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WARM_UP = 2.0
"""Seconds of load before anything is measured: connections are opened, statements prepared."""
MERCHANTS_KNOWN = 1.5
"""Seconds after which every process has read a merchant that was added."""
SETTLE = 120.0
"""Seconds within which what was taken must have come through."""
_TURN = 25.0
"""Seconds after which the phases of `quiet_merchant` take turns."""
SECRETS = {"ORCHESTRATOR_GATEWAY_USERNAME": "shop", "ORCHESTRATOR_GATEWAY_PASSWORD": "a password for load"}


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds from intake to awaiting_payment, and how many orders they are of."""

    orders: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Isolation:
    """What came of it: the quiet merchant alone, beside the noisy merchant, and the noisy merchant itself."""

    rate: float
    times: float
    alone: Percentiles
    beside: Percentiles
    noisy: Percentiles

    @property
    def ratio(self) -> float:
        """How much longer the quiet merchant's slowest hundredth waits beside the noisy merchant."""
        return self.beside.p99 / self.alone.p99


def measure(
    *,
    rate: float = 3.0,
    times: float = 20.0,
    seconds: float = 20.0,
    slots: int = 2,
    latency: str = "0",
    noisy_latency: str | None = None,
    workers: int = 1,
) -> Isolation:
    """Run the product with two merchants, and load it; main thread only.

    Both merchants' orders go to one gateway, unless `noisy_latency` gives the noisy merchant a gateway of its
    own.
    """
    with (
        tempfile.TemporaryDirectory() as place,
        _gateway(latency) as gateway,
        _gateway(noisy_latency) if noisy_latency else nullcontext(gateway) as noisys,
        patch.dict(os.environ, {"ORCHESTRATOR_GATEWAY_URL": gateway, **SECRETS}),
        Up(Options(port=0, data_dir=Path(place) / "data", workers=workers), Terminal(least="error")) as up,
    ):
        loading = _load(up, rate=rate, times=times, seconds=seconds, slots=slots, gateways=(gateway, noisys))
        return asyncio.run(loading)


@contextmanager
def _gateway(latency: str) -> Iterator[str]:
    port = bound(0)
    command = ["bench-gateway", "--port", str(port), "--latency", latency, "--no-shoppers"]
    process = subprocess.Popen([sys.executable, "-m", "orchestrator", *command])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def _load(
    up: Up, *, rate: float, times: float, seconds: float, slots: int, gateways: tuple[str, str]
) -> Isolation:
    watching = asyncio.create_task(up.watch())
    try:
        await up.ready()
        async with Database(up.settings.need("database_url"), pool_size=2) as db:
            merchants = Merchants(db, Encryptor(up.settings.secret_keys), up.settings)
            for name, gateway in zip(("quiet", "noisy"), gateways, strict=True):
                await merchants.add(
                    name,
                    gateway_url=gateway,
                    merchant_api_url=None,
                    username="shop",
                    password="a password",
                    callback_secrets=(),
                )
            await asyncio.sleep(MERCHANTS_KNOWN)
            shops = {name: _Shop(up, name) for name in ("quiet", "noisy")}
            await asyncio.gather(*(shop.send(10.0, WARM_UP, "W") for shop in shops.values()))
            await _settled(db)
            for _ in range(slots):
                await shops["quiet"].send(rate, seconds / slots, "A")
                await _settled(db)
                await asyncio.gather(
                    shops["quiet"].send(rate, seconds / slots, "B"),
                    shops["noisy"].send(rate * times, seconds / slots, "N"),
                )
                await _settled(db)
            found = {phase: await _percentiles(db, phase) for phase in "ABN"}
            return Isolation(rate, times, alone=found["A"], beside=found["B"], noisy=found["N"])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await up.shut(asyncio.Event())


class _Shop:
    """One merchant that sends orders on a schedule, independent of the orders before."""

    def __init__(self, up: Up, name: str) -> None:
        address = urlsplit(up.url)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._token = auth.issue(
            up.settings, merchant=name, scopes=("checkouts:write",), lifetime=3600, subject="load"
        )

    async def send(self, rate: float, seconds: float, phase: str) -> None:
        job = load.Job(
            self._host,
            self._port,
            self._token,
            f"{phase}-{uuid4().hex[:16]}",
            rate=rate,
            seconds=seconds,
            evenly=True,
        )
        sent = await load.fire(job, tell=lambda _: None)
        assert all(map(load.accepted, sent.statuses)), sent.statuses


async def _settled(db: Database) -> None:
    """Wait until whatever was taken is awaiting payment."""
    async with asyncio.timeout(SETTLE):
        while await db.read(  # noqa: ASYNC110
            text("SELECT 1 FROM checkouts WHERE state <> ALL (ARRAY['awaiting_payment', 'failed']) LIMIT 1")
        ):
            await asyncio.sleep(0.5)


async def _percentiles(db: Database, phase: str) -> Percentiles:
    (row,) = await db.read(
        text("""
            SELECT count(*) AS orders, percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (
                       ORDER BY 1000 * extract(epoch FROM offered_at - created_at)::float8) AS ms
              FROM checkouts WHERE starts_with(order_ref, :phase) AND offered_at IS NOT NULL
        """),
        {"phase": f"{phase}-"},
    )
    return Percentiles(row.orders, *(round(value, 1) for value in row.ms))


def quiet_merchant(*, seconds: float, show: Callable[[str], None]) -> dict[str, float]:
    """Return both p99s of the quiet merchant in milliseconds: alone, and while another sends 20 times its
    rate.
    """
    show(f"a quiet merchant alone and beside a busy merchant, in turn ({seconds:g} s each)")
    found = measure(seconds=seconds, slots=max(1, round(seconds / _TURN)))
    return {"alone_p99_ms": found.alone.p99, "beside_p99_ms": found.beside.p99}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.isolation")
    parser.add_argument("--rate", type=float, default=3.0, help="orders of the quiet merchant per second")
    parser.add_argument(
        "--times", type=float, default=20.0, help="how many times that the noisy merchant sends"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each of the two phases")
    parser.add_argument("--turns", type=int, default=2, help="parts in which the two phases take turns")
    parser.add_argument("--latency", default="0", help="of the gateway, as for `orchestrator bench`")
    parser.add_argument("--noisy-latency", help="the noisy merchant has a gateway of its own, this slow")
    parser.add_argument("--workers", type=int, default=1)
    found = measure(**vars(parser.parse_args()))
    print(json.dumps({**asdict(found), "ratio": round(found.ratio, 2)}))


if __name__ == "__main__":
    main()
