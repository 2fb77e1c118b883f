"""Every client of the broker and of Redis verifies TLS in the same way, and finds Redis behind Sentinel."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import redis

from orchestrator.gateway.limits import shared_state
from orchestrator.messaging.hints import HintPublisher
from orchestrator.messaging.publisher import ANSWER_TIMEOUT
from tests.conftest import make_settings
from tests.integration.gateway.tls import certified
from tests.support.brokers import Server, answers, free_port, rabbitmq_server, redis_server, until
from tests.support.world import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from orchestrator.settings import Settings

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let handshakes take their time: the time-out of the shared state is not tested here."""
    monkeypatch.setattr(shared_state, "TIMEOUT", 10.0)


async def reached(settings: Settings) -> tuple[bool, bool | None]:
    """Say whether the hints' client reaches the broker, and the shared state its Redis (None: it
    has none).
    """
    hint_publisher = HintPublisher(settings)
    try:
        hint_publisher.depth("checkouts")
        hints = True
    except Exception as error:  # each transport has errors of its own
        if "certificate" not in str(error).lower():
            raise
        hints = False
    if settings.redis is None:
        return hints, None
    try:
        await shared_state.circuits_open(settings.redis)
    except redis.RedisError as error:
        if "certificate" not in str(error).lower():
            raise
        return hints, False
    return hints, True


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    place = tmp_path_factory.mktemp("tls")
    certified(place)
    pem = place / "server.pem"
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("needs redis-server, which is not installed here")
    port, plain = free_port(), free_port()
    server = Server(
        [
            binary,
            "--save",
            "",
            "--bind",
            "127.0.0.1",
            "--port",
            str(plain),
            "--tls-port",
            str(port),
            "--tls-cert-file",
            str(pem),
            "--tls-key-file",
            str(pem),
            "--tls-ca-cert-file",
            str(pem),
            "--tls-auth-clients",
            "no",
        ],
        port,
        place,
    )
    server.start()
    try:
        with redis.Redis(port=plain) as client:
            until(lambda: answers(client), "Redis answers")
        yield f"127.0.0.1:{port}", pem
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("url", "with_ca", "well"),
    [
        ("rediss://{}/0", True, True),
        ("rediss://{}/0?ssl_cert_reqs=required", True, True),
        ("rediss://{}/0?ssl_cert_reqs=CERT_REQUIRED", True, True),
        ("rediss://{}/0", False, False),
        ("rediss://{}/0?ssl_cert_reqs=CERT_REQUIRED", False, False),
        ("rediss://{}/0?ssl_cert_reqs=none", False, True),
        ("rediss://{}/0?ssl_cert_reqs=CERT_NONE", False, True),
        ("rediss://{}/0?ssl_ca_certs={ca}", False, True),
        ("rediss://{name}/0", True, False),
        ("rediss://{name}/0?ssl_check_hostname=false", True, True),
    ],
)
async def test_redis_over_tls_is_verified_by_every_client_in_the_same_way(
    secured: tuple[str, Path], url: str, with_ca: bool, well: bool
):
    address, ca = secured
    settings = make_settings(
        broker_url=url.format(address, ca=ca, name=address.replace("127.0.0.1", "localhost")),
        broker_ca_file=str(ca) if with_ca else None,
    )
    assert await reached(settings) == (well, well)


@pytest.mark.slow
async def test_amqps_is_verified():
    with rabbitmq_server() as server:
        amqps = f"amqps://guest:guest@127.0.0.1:{server.tls_port}//"
        ca = str(server.certificate)
        for url, given, well in (
            (amqps, ca, True),
            (f"{amqps}?ssl_cert_reqs=CERT_REQUIRED", ca, True),
            (amqps, None, False),
            (f"{amqps}?ssl_cert_reqs=none", None, True),
            (amqps.replace("127.0.0.1", "localhost"), ca, False),
        ):
            assert await reached(make_settings(broker_url=url, broker_ca_file=given)) == (well, None), url


# ── Sentinel ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
async def test_redis_behind_sentinel_is_found_again_after_a_failover(tmp_path: Path):
    config = tmp_path / "sentinel.conf"
    config.write_text("")
    with (
        redis_server(tmp_path / "one", "--requirepass", "pw", "--masterauth", "pw") as first,
        redis_server(
            tmp_path / "two",
            "--requirepass",
            "pw",
            "--masterauth",
            "pw",
            "--replicaof",
            f"127.0.0.1 {first.port}",
        ) as two,
        redis_server(tmp_path / "sentinel", str(config), "--sentinel", sentinel=True) as sentinel,
        redis.Redis(port=sentinel.port) as asked,
    ):
        with redis.Redis(port=two.port, password="pw") as replica:
            until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica follows")
        # Sentinel asks a primary for its replicas every ten seconds: the first time it is to find a replica.
        asked.execute_command("SENTINEL", "MONITOR", "shop", "127.0.0.1", first.port, 1)
        for name, value in (
            ("auth-pass", "pw"),
            ("down-after-milliseconds", 1000),
            ("failover-timeout", 5000),
            ("parallel-syncs", 1),
        ):
            asked.execute_command("SENTINEL", "SET", "shop", name, value)
        until(lambda: asked.execute_command("SENTINEL", "REPLICAS", "shop"), "Sentinel has found the replica")

        # The first of the Sentinels does not run.
        url = (
            f"sentinel://:pw@127.0.0.1:{free_port()}/0;sentinel://127.0.0.1:{sentinel.port}?master_name=shop"
        )
        settings = make_settings(broker_url=url)
        shared = shared_state.SharedGatewayState(settings.redis, name="worker")
        hint_publisher = HintPublisher(settings)
        hint_publisher.start()
        async with shared:
            hint_publisher.publish([uuid4()])
            until(lambda: hint_publisher.depth("checkouts") == 1, "the hint is in the queue")
            await reaches(shared)
            first.kill()
            await reaches(shared, away=True)
            await reaches(shared, seconds=60)
            assert (
                tuple(asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "shop"))[1]
                == str(two.port).encode()
            )

            def wakes() -> bool:
                hint_publisher.publish([uuid4()])
                try:
                    return hint_publisher.trouble is None and hint_publisher.depth("checkouts") > 1
                except redis.RedisError:
                    return False

            until(wakes, "hints go to the new primary", seconds=60)
        hint_publisher.close()


def test_how_many_messages_wait_is_asked_for_seconds_only_where_the_broker_is_silent(tmp_path: Path):
    """A worker asks before each sweep, and may be told to end meanwhile."""
    with redis_server(tmp_path / "redis") as server:
        assert server.process is not None
        hint_publisher = HintPublisher(make_settings(broker_url=f"redis://127.0.0.1:{server.port}/0"))
        assert hint_publisher.depth("checkouts") == 0
        with frozen(server.process.pid):
            began = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                hint_publisher.depth("checkouts")
        # Both tries of the client, and the end of its connection.
        assert time.monotonic() - began < 2 * ANSWER_TIMEOUT
        assert hint_publisher.depth("checkouts") == 0


async def reaches(
    shared: shared_state.SharedGatewayState, *, away: bool = False, seconds: float = 30
) -> None:
    async with asyncio.timeout(seconds):
        while shared.away is not away:  # noqa: ASYNC110 - it happens in the background
            await asyncio.sleep(0.05)
