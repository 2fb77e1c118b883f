"""Submit orders through the broker, with Celery.

BROKER_URL=… TOKEN=… python submit.py orders.json
"""

import json
import os
import sys
from pathlib import Path

from celery import Celery
from kombu import Queue

AT_ONCE = 100
broker = os.environ["BROKER_URL"]
shop = Celery("shop", broker=broker)
shop.conf.broker_transport_options = (
    # RabbitMQ confirms each message; on Redis the orchestrator's keys have a prefix.
    {"confirm_publish": True} if broker.startswith("amqp") else {"global_keyprefix": "orchestrator:"}
)
# The same arguments as the orchestrator's: RabbitMQ refuses others.
arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
intents = Queue("intents", routing_key="intents", queue_arguments=arguments)

orders = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
for start in range(0, len(orders), AT_ONCE):
    listed = orders[start : start + AT_ONCE]
    # `argsrepr` would show the token in the message's headers.
    shop.send_task("orchestrator.submit", args=[listed, os.environ["TOKEN"]], queue=intents, argsrepr="")
print(f"{len(orders)} orders submitted")
