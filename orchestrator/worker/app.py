"""The Celery app: its queues, its broker, and the settings that the facts about Celery on Redis ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from celery import Celery
from kombu import Queue

if TYPE_CHECKING:
    from orchestrator.settings import Settings

QueueName = Literal["checkouts", "callbacks"]
QUEUES: Final = ("callbacks", "checkouts", "maintenance")
"""What a worker consumes. `intents` and `deliveries` belong to stages of their own."""
SEAL_EVERY: Final = 600.0

app = Celery("orchestrator")


def configure(settings: Settings) -> Celery:
    """Give the app its broker and the settings that the facts about Celery on Redis ask for."""
    url = settings.broker_url or settings.need("broker_url")
    transport: dict[str, object] = {}
    if url.startswith("redis"):
        transport = {
            "visibility_timeout": 300,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "max_connections": settings.worker_threads + 20,
            "global_keyprefix": "orchestrator:",
        }
    app.conf.update(
        broker_url=url,
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
        task_queues=[
            # A hint that is lost with its worker is an alarm that rings; to note down each and strike it out again would cost half
            # of what consuming it costs.
            *(Queue(name, routing_key=name, no_ack=True) for name in QUEUES),
            *(Queue(name, routing_key=name) for name in ("intents", "deliveries")),
        ],
        task_default_queue="checkouts",
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_disable_rate_limits=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Access to the broker is no right to command a worker; and RabbitMQ holds the queue of a connection that was cut for a while.
        worker_enable_remote_control=False,
        worker_consumer="orchestrator.worker.consumer:Consumer",
    )
    return app
