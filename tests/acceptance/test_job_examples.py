"""The examples of producers in the documentation, each on the brokers that it supports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from celery import Celery

from tests.support.jobs import accepted_orders, shortest_message
from tests.support.scene import intent
from tests.support.world import token, world

if TYPE_CHECKING:
    from orchestrator.devkit.local.servers import Embedded
    from tests.support.jobs import Producer
    from tests.support.world import World

pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def orders_in(place: Path, *numbers: str) -> Path:
    file = place / "orders.json"
    file.write_text(json.dumps([json.loads(intent(number)) for number in numbers]))
    return file


def test_the_example_in_python_submits_orders(shop: tuple[World, Producer]):
    installation, producer = shop
    numbers = [f"P-{number:03}" for number in range(150)]
    done = subprocess.run(
        [sys.executable, EXAMPLES / "submit.py", orders_in(installation.place, *numbers)],
        env={**os.environ, "BROKER_URL": producer.broker_url, "TOKEN": producer.token},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "150 orders submitted\n"
    assert accepted_orders(installation, 150) == numbers


@pytest.mark.parametrize("shop", ["rabbitmq"], indirect=True)
def test_the_example_for_node_submits_orders(shop: tuple[World, Producer]):
    """Without amqplib, Node makes the message and the test sends it."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node, which is not installed here")
    installation, producer = shop
    file = orders_in(installation.place, "N-1", "N-2")
    environment = {**os.environ, "BROKER_URL": producer.broker_url, "TOKEN": producer.token}
    if subprocess.run([node, "-e", "require('amqplib')"], capture_output=True, check=False).returncode == 0:
        subprocess.run([node, EXAMPLES / "submit.js", file], env=environment, timeout=60, check=True)
    else:
        script = (
            "const [example, file] = process.argv.slice(1); const { message } = require(example);"
            "console.log(JSON.stringify(message(JSON.parse(require('fs').readFileSync(file)), process.env.TOKEN)))"
        )
        made = subprocess.run(
            [node, "-e", script, EXAMPLES / "submit.js", file],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        sent = json.loads(made.stdout)
        options = sent["options"]
        producer.send_raw(
            sent["body"].encode(),
            options["headers"],
            content_type=options["contentType"],
            content_encoding=options["contentEncoding"],
            correlation_id=options["correlationId"],
            delivery_mode=2,
        )
    assert accepted_orders(installation, 2) == ["N-1", "N-2"]


@pytest.mark.parametrize("shop", ["rabbitmq"], indirect=True)
def test_the_example_for_php_submits_orders(shop: tuple[World, Producer]):
    php, autoload = shutil.which("php"), "/usr/share/php/PhpAmqpLib/autoload.php"
    if php is None or not Path(autoload).exists():
        pytest.skip("needs php with php-amqplib, which is not installed here")
    installation, producer = shop
    host, _, port = producer.broker_url.partition("@")[2].partition("/")[0].partition(":")
    subprocess.run(
        [php, EXAMPLES / "submit.php", orders_in(installation.place, "H-1", "H-2")],
        env={
            **os.environ,
            "AUTOLOAD": autoload,
            "RABBITMQ_HOST": host,
            "RABBITMQ_PORT": port,
            "RABBITMQ_USER": "guest",
            "RABBITMQ_PASSWORD": "guest",
            "TOKEN": producer.token,
        },
        timeout=60,
        check=True,
    )
    assert accepted_orders(installation, 2) == ["H-1", "H-2"]


@pytest.mark.parametrize("shop", ["rabbitmq"], indirect=True)
def test_the_shortest_message_of_an_amqp_client_is_enough(shop: tuple[World, Producer]):
    """The examples for PHP and Node send these headers and this body."""
    installation, producer = shop
    body, headers = shortest_message([json.loads(intent("S-1"))], producer.token)
    producer.send_raw(body, headers, content_type="application/json", delivery_mode=2)
    assert accepted_orders(installation, 1) == ["S-1"]


def test_the_shortest_message_is_one_of_celerys_protocol():
    body, headers = shortest_message([{"order": 1}], "t")
    whole = Celery().amqp.as_task_v2(headers["id"], "orchestrator.submit", args=([{"order": 1}], "t"))
    assert headers.items() <= whole.headers.items()
    arguments, named, _ = json.loads(body)
    assert (tuple(arguments), named) == (whole.body[0], whole.body[1])


def test_the_documented_example_of_a_batch_submits_orders(
    servers: Embedded, database_url: str, tmp_path: Path
):
    (example,) = [
        line
        for line in (ROOT / "docs/jobs.md").read_text().splitlines()
        if line.startswith("    curl") and "checkouts/batch" in line
    ]
    with world(servers, database_url, tmp_path) as installation:
        installation.start("api")
        command = example.replace("http://127.0.0.1:8000", installation.api_url)
        answers = [
            json.loads(
                subprocess.run(
                    ["bash", "-c", command],
                    cwd=ROOT,
                    env={**os.environ, "TOKEN": token("default")},
                    capture_output=True,
                    timeout=60,
                    check=True,
                ).stdout
            )["results"]
            for _ in range(2)
        ]
    assert [row["status"] for rows in answers for row in rows] == [202, 200]
    (first,), (second,) = answers
    assert first["checkout"]["orderId"] == "A-1001"
    assert first["checkout"]["id"] == second["checkout"]["id"]


@pytest.mark.parametrize("name", ["submit.js", "submit.php", "submit.py"])
def test_an_example_is_short_and_declares_the_queue_as_the_orchestrator_does(name: str):
    text = (EXAMPLES / name).read_text()
    assert text.count("\n") <= 30
    for word in ("orchestrator.submit", "x-queue-type", "quorum", "x-delivery-limit", "intents"):
        assert word in text
    assert "1000000" in text.replace("_", "")
