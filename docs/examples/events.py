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
    """Open a transaction in the shop's database: the events that wait, and how far others were handled."""
    with closing(sqlite3.connect("events.db", timeout=30, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "CREATE TABLE IF NOT EXISTS waiting"
            " (subject, sequence INT, position INT, event, PRIMARY KEY (subject, sequence))"
        )
        db.execute("CREATE TABLE IF NOT EXISTS handled (subject PRIMARY KEY, sequence INT)")
        db.execute("CREATE TABLE IF NOT EXISTS feed (id INTEGER PRIMARY KEY, next INT)")
        yield db
        db.execute("COMMIT")


def cursor(db: sqlite3.Connection) -> int:
    """Return the position up to which the feed was read."""
    (found,) = db.execute("SELECT next FROM feed").fetchone() or (0,)
    return found


def handle(event: dict) -> None:
    """Ship, book, write to the customer: in the transaction of `books`."""
    print(f"handled {event['id']}", flush=True)


def keep(db: sqlite3.Connection, events: list[dict]) -> bool:
    """Keep events, handle what is next of each checkout, and return whether one before another is missing."""
    for event in events:
        row = (event["subject"], int(event["sequence"]), int(event["position"]), json.dumps(event))
        db.execute("INSERT OR IGNORE INTO waiting VALUES (?, ?, ?, ?)", row)
    read = cursor(db)
    for subject, sequence, position, event in db.execute(
        "SELECT * FROM waiting ORDER BY subject, sequence"
    ).fetchall():
        (done,) = db.execute("SELECT sequence FROM handled WHERE subject = ?", (subject,)).fetchone() or (0,)
        # The feed was read as far as its cursor: what is missing before that is no longer in it.
        if sequence > done + 1 and position > read:
            continue
        if sequence > done:
            handle(json.loads(event))
            db.execute("INSERT OR REPLACE INTO handled VALUES (?, ?)", (subject, sequence))
        db.execute("DELETE FROM waiting WHERE subject = ? AND sequence = ?", (subject, sequence))
    return db.execute("SELECT 1 FROM waiting").fetchone() is not None


@shop.task(name="shop.events")
def take(event: dict) -> None:
    """Take an event from the queue."""
    if event["type"] == "webhook.test":
        return
    with books() as db:
        missing = keep(db, [event])
    if missing:
        read_feed()


@shop.task(name="shop.feed")
def read_feed() -> None:
    """Read on in the feed: the queue may have lost any event, also the last of a checkout."""
    while True:
        with books() as db:
            after = cursor(db)
        # No transaction is open while the feed is asked: tasks of the queue would wait for it.
        answer = httpx.get(
            f"{os.environ['FEED_URL']}/v1/events",
            params={"after": after, "limit": 500},
            headers={"Authorization": f"Bearer {os.environ['TOKEN']}"},
            timeout=20,
        )
        if answer.status_code == httpx.codes.GONE:
            found = {"events": [], "next": answer.json()["oldest"]}
            print(f"events after {after} are missed: ask for the checkouts (GET /v1/checkouts)", flush=True)
        else:
            found = answer.raise_for_status().json()
        with books() as db:
            if cursor(db) != after:
                continue  # another process has read on meanwhile
            db.execute("INSERT OR REPLACE INTO feed VALUES (1, ?)", (int(found["next"]),))
            keep(db, found["events"])
        if int(found["next"]) == after:
            return
