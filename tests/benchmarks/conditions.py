"""The conditions of a measurement: the machine, the disk's flush time, and the versions of everything that
took part.
"""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import redis

from orchestrator.devkit.bench.usage import cores, flush_time

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.benchmarks.ground import Ground


def conditions(ground: Ground) -> dict[str, Any]:
    with ground.administering() as connection:
        told = connection.execute("""
            SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
                   current_setting('synchronous_commit') AS synchronous_commit, current_setting('full_page_writes') AS full_page_writes
        """).fetchone()
    assert told is not None
    with redis.Redis.from_url(ground.servers.redis_url) as client:
        broker = client.info("server")
    valkey = broker.get("valkey_version")
    redis_version = f"Valkey {valkey}" if valkey else str(broker["redis_version"])
    return {
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": cores(),
        "processor": _processor(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "postgres": str(told[0]),
        "durability": f"fsync {told[1]}, synchronous_commit {told[2]}, full_page_writes {told[3]}",
        "redis": redis_version,
        "flush_ms": round(flush_time(ground.place), 3),
        # Others on the machine: more than a few tenths at the start, and no figure is what it could be.
        "load_before": round(os.getloadavg()[0], 2),
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    return {name: metadata.version(name) for name in sorted({"checkout-orchestrator", *packages})}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
