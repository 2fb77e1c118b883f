"""Peers (a) and (b): the usual design.

A Celery task per step, the ORM, one transaction per step, a synchronous HTTP client.

Written as an experienced engineer would: tasks are acknowledged late and safe to repeat (the row lock and the
state say what is still to be done), connections and the HTTP client live as long as the process, a step's row
lock, move and audit row are one transaction, and the next step is sent after the commit. The call is made
under the row lock: that saves a second transaction a step, and is the fastest form of this design. Redis as
broker, no result backend, no events, no gossip.

    celery -A tests.benchmarks.usual_celery worker --pool prefork|threads --concurrency N
    python -m tests.benchmarks.start usual_celery take MARK ORDERS  takes the orders in
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx
import psycopg
from celery import Celery
from celery.signals import worker_process_init
from sqlalchemy import create_engine, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from tests.benchmarks import work

AT_ONCE = int(os.environ.get("BENCH_AT_ONCE", "1"))
"""Threads that use this process's connections at the same time."""
HERE = work.Surroundings.here()

app = Celery("usual", broker=HERE.broker_url)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=1,
    worker_disable_rate_limits=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=max(10, AT_ONCE),
    broker_transport_options={"visibility_timeout": 3600, "socket_keepalive": True},
)
engine = create_engine(
    "postgresql+psycopg://" + HERE.database_url.partition("://")[2], pool_size=AT_ONCE, max_overflow=0
)
Transaction = sessionmaker(engine)


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSONB, list[Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's own way


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    order_ref: Mapped[str]
    state: Mapped[str]
    version: Mapped[int]
    document: Mapped[dict[str, Any]]
    token: Mapped[str | None]
    session_id: Mapped[str | None]
    methods: Mapped[list[Any] | None]
    updated_at: Mapped[datetime] = mapped_column(
        server_default=func.clock_timestamp(), onupdate=func.clock_timestamp()
    )


class AuditRow(Base):
    __tablename__ = "audit"
    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str]
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    evidence: Mapped[dict[str, Any]]


@worker_process_init.connect
def forget_the_parents_connections(**_: object) -> None:
    engine.dispose(close=False)


# For all threads of a process; it opens nothing before the first call, and so nothing before the fork.
gateway = httpx.Client(
    base_url=HERE.gateway_url + work.API,
    timeout=10,
    limits=httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE),
    trust_env=False,
)


def asked(method: str, path: str, authorization: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = gateway.request(method, path, headers={"Authorization": authorization}, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def locked(session: Session, order_id: str) -> Order:
    return session.get_one(Order, UUID(order_id), with_for_update=True)


def move(session: Session, order: Order, to: str, evidence: dict[str, Any] | None = None) -> None:
    session.add(
        AuditRow(
            order_id=order.id,
            sequence=order.version + 1,
            action="order:moved",
            from_state=order.state,
            to_state=to,
            evidence=evidence or {},
        )
    )
    order.state, order.version = to, order.version + 1


step = app.task(
    autoretry_for=(httpx.TransportError, OperationalError), retry_backoff=True, retry_jitter=True, max_retries=10,
    shared=False,
)  # fmt: skip


# A step that was done already (its task came twice) only sends the next task.


@step
def authenticate(order_id: str) -> None:
    with Transaction.begin() as session:
        order = locked(session, order_id)
        if order.state == "received":
            order.token = asked("POST", "/authenticate", work.BASIC)["token"]
            move(session, order, "authenticated")
    open_session.delay(order_id)


@step
def open_session(order_id: str) -> None:
    with Transaction.begin() as session:
        order = locked(session, order_id)
        if order.state == "authenticated":
            body = work.session_body(order.id, order.document)
            order.session_id = asked("POST", "/session", f"Bearer {order.token}", body)["sessionId"]
            move(session, order, "session_created", {"session": order.session_id})
    list_methods.delay(order_id)


@step
def list_methods(order_id: str) -> None:
    with Transaction.begin() as session:
        order = locked(session, order_id)
        if order.state == "session_created":
            path = f"/session/{order.session_id}/payment-methods"
            order.methods = asked("GET", path, f"Bearer {order.token}")["methods"]
            move(session, order, "methods_fetched", {"methods": len(order.methods)})
    offer.delay(order_id)


@step
def offer(order_id: str) -> None:
    with Transaction.begin() as session:
        order = locked(session, order_id)
        if order.state == "methods_fetched":
            move(session, order, "awaiting_payment")


def take(mark: str, orders: int) -> None:
    """Store the orders and send the first task of each, in bulk both."""
    with (
        psycopg.connect(HERE.database_url, autocommit=True) as connection,
        app.producer_pool.acquire() as producer,
    ):
        since = work.tell_began(connection)
        for chunk in work.chunks(mark, orders):
            connection.execute(work.TAKE, chunk.parameters())
            with producer.batch(work.CHUNK):
                for order_id in chunk.ids:
                    authenticate.apply_async((str(order_id),), producer=producer)
        work.tell_spent(since)


def main(_take: str, mark: str, orders: str) -> None:
    take(mark, int(orders))
