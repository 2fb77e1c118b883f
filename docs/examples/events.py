"""Take events that come as a Celery task, each once and in order, and fill gaps from the feed.

BROKER_URL=… QUEUE=… FEED_URL=… TOKEN=… celery --app events worker --beat --concurrency 1
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
from celery import Celery
from kombu import Queue

queue = os.environ["QUEUE"]
shop = Celery("events", broker=os.environ["BROKER_URL"])
shop.conf.update(
    task_default_queue=queue,
    # On RabbitMQ durable and replicated; on Redis a list.
    task_queues=[Queue(queue, routing_key=queue, queue_arguments={"x-queue-type": "quorum"})],
    # Acknowledged once the task is done, also where its process was killed.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    broker_transport_options={"global_keyprefix": os.environ.get("KEY_PREFIX", "")},
    beat_schedule={"feed": {"task": "shop.feed", "schedule": float(os.environ.get("EVERY", "60"))}},
)


@contextmanager
def books() -> Iterator[sqlite3.Connection]:
    """Open a transaction in the shop's database, which has the events, and how far it has handled them."""
    with closing(sqlite3.connect("events.db", timeout=30, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "CREATE TABLE IF NOT EXISTS kept (subject, sequence INT, event, PRIMARY KEY (subject, sequence))"
        )
        db.execute("CREATE TABLE IF NOT EXISTS handled (subject PRIMARY KEY, sequence INT)")
        db.execute("CREATE TABLE IF NOT EXISTS feed (id INTEGER PRIMARY KEY, next)")
        yield db
        db.execute("COMMIT")


def keep(db: sqlite3.Connection, event: dict) -> bool:
    """Keep an event, and handle what is next of its checkout; return whether one before it is missing."""
    subject = event["subject"]
    row = (subject, int(event["sequence"]), json.dumps(event))
    db.execute("INSERT OR IGNORE INTO kept VALUES (?, ?, ?)", row)
    (done,) = db.execute("SELECT sequence FROM handled WHERE subject = ?", (subject,)).fetchone() or (0,)
    while found := db.execute(
        "SELECT event FROM kept WHERE subject = ? AND sequence = ?", (subject, done + 1)
    ).fetchone():
        done += 1
        print(f"handled {json.loads(found[0])['id']}", flush=True)  # ship, book, write to the customer
    db.execute("INSERT OR REPLACE INTO handled VALUES (?, ?)", (subject, done))
    return done < int(event["sequence"])


@shop.task(name="shop.events")
def take(event: dict) -> None:
    """Take an event from the queue."""
    if event["type"] == "webhook.test":
        return
    with books() as db:
        missing = keep(db, event)
    if missing:
        read_feed()


@shop.task(name="shop.feed")
def read_feed() -> None:
    """Read on in the feed: the queue may have lost any event, also the last of a checkout."""
    while True:
        with books() as db:
            (after,) = db.execute("SELECT next FROM feed").fetchone() or ("0",)
            page = httpx.get(
                f"{os.environ['FEED_URL']}/v1/events",
                params={"after": after, "limit": 500},
                headers={"Authorization": f"Bearer {os.environ['TOKEN']}"},
                timeout=20,
            )
            found = page.raise_for_status().json()
            for event in found["events"]:
                keep(db, event)
            db.execute("INSERT OR REPLACE INTO feed VALUES (1, ?)", (found["next"],))
        if not found["events"]:
            return
