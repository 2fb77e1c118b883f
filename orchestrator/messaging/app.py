"""The Celery app: its queues, its broker, and the settings that the facts about Celery on Redis ask for."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final, Literal

from celery import Celery
from kombu import Queue
from kombu.transport import TRANSPORT_ALIASES

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.settings.broker_url import Endpoint

QueueName = Literal["checkouts", "callbacks"]
QUEUES: Final = ("callbacks", "checkouts", "maintenance")
"""What Celery consumes in a worker. `intents` has a consumer of its own (`worker.intents`)."""
INTENTS: Final = Queue(
    "intents",
    routing_key="intents",
    queue_arguments={"x-queue-type": "quorum", "x-delivery-limit": 1_000_000},
)
"""The queue that merchants publish to. On RabbitMQ it is replicated, and a message is not dropped after 20
failed deliveries, which is RabbitMQ 4's default. Every client must declare it with the same arguments."""
PROCESS: Final = "orchestrator.process"
SWEEP: Final = "orchestrator.sweep"
SEAL: Final = "orchestrator.seal"
SEAL_EVERY: Final = 600.0

TRANSPORTS: Final = {
    "redis": "orchestrator.messaging.transport:Transport",
    "rediss": "orchestrator.messaging.transport:Transport",
    "sentinel": "orchestrator.messaging.transport:SentinelTransport",
}
"""Kombu's transports by scheme that are replaced by ours."""
_TIMEOUT: Final = 10
"""Seconds that the broker may take to answer."""
# A connection whose other end is gone without a word is noticed in seconds, not after the kernel's quarter of
# an hour.
_SOCKET: Final = {
    getattr(socket, name): value
    for name, value in (
        ("TCP_USER_TIMEOUT", 15_000), ("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3),
    )
    if hasattr(socket, name)
}  # fmt: skip

app = Celery("orchestrator")


def configure(settings: Settings) -> Celery:
    """Give the app its broker and the settings that the facts about Celery on Redis ask for."""
    broker = settings.broker
    TRANSPORT_ALIASES.update(TRANSPORTS)
    tls: dict[str, object] | None = None
    transport: dict[str, object]
    if broker.kind == "amqp":
        # A broker that hangs acknowledges, and answers nothing: who publishes or declares a queue must not
        # wait for it for ever.
        transport = {"socket_settings": _SOCKET, "read_timeout": _TIMEOUT, "write_timeout": _TIMEOUT}
        if broker.tls is not None:
            tls = broker.tls.for_amqp(broker.host)
    else:
        transport = {
            "visibility_timeout": 300,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # The lock under which messages of killed workers are put back ends by itself: a killed worker may
            # have held it.
            "unacked_mutex_expire": 30,
            "socket_timeout": _TIMEOUT,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "max_connections": settings.worker_threads + 20,
            "global_keyprefix": "orchestrator:",
        }
        if broker.tls is not None:
            tls = broker.tls.for_redis()
        if broker.kind == "sentinel":
            transport |= {"master_name": broker.master, "sentinel_kwargs": _sentinel_options(broker)}
    app.conf.update(
        broker_url=";".join(broker.urls),
        broker_use_ssl=tls,
        broker_transport_options=transport,
        broker_pool_limit=4,
        broker_connection_timeout=5,
        broker_pool_acquire_timeout=10,
        broker_heartbeat=10,
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        # A hint that is lost with its worker is a checkout that becomes due; to note down each and strike it
        # out again would cost half of what consuming it costs.
        task_queues=[Queue(name, routing_key=name, no_ack=True) for name in QUEUES],
        task_default_queue="checkouts",
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Access to the broker is no right to command a worker; and RabbitMQ holds the queue of a connection
        # that was cut for a while.
        worker_enable_remote_control=False,
        worker_consumer="orchestrator.worker.consumer:Consumer",
    )
    return app


def _sentinel_options(broker: Endpoint) -> dict[str, object]:
    options: dict[str, object] = {"socket_timeout": 2, "socket_connect_timeout": 2}
    if broker.sentinel_password is not None:
        options |= {"username": broker.sentinel_username, "password": broker.sentinel_password}
    if broker.tls is not None:
        options |= {"ssl": True, **broker.tls.for_redis()}
    return options
