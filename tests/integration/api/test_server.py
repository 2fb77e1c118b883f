"""The API as a process of its own, behind a real socket."""

from __future__ import annotations

import base64
import itertools
import json
import signal
import socket
import time
from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import pytest

from orchestrator import callback_urls
from orchestrator.crypto import Encryptor
from orchestrator.domain.ids import uuid7
from orchestrator.intents import BODY_LIMIT
from tests.conftest import JWT_SECRET, SECRET_KEY, make_settings
from tests.integration.api.process import PASSWORD, bearer
from tests.support.api_scene import PAGES, intent, path_of
from tests.support.pooler import direct

if TYPE_CHECKING:
    from tests.integration.api.process import Server


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(server: Server, number):
    assert server.client.post("/v1/checkouts", json=intent(), headers=bearer()).status_code == 202
    assert server.stop(number) == 0
    assert "api_ended" in server.log.read_text()


def test_a_request_under_way_is_finished_before_it_ends(server: Server, database_url):
    with psycopg.connect(direct(database_url)) as blocker:
        blocker.execute("LOCK TABLE checkouts IN ACCESS EXCLUSIVE MODE")
        raw = json.dumps(intent("A-1")).encode()
        head = f"POST /v1/checkouts HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
        head += f"Authorization: {bearer()['Authorization']}\r\n\r\n"
        with socket.create_connection(
            (server.client.base_url.host, server.client.base_url.port), timeout=20
        ) as caller:
            caller.sendall(head.encode() + raw)
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            blocker.rollback()
            assert caller.recv(65_536).startswith(b"HTTP/1.1 202")
    assert server.process.wait(timeout=20) == 0


def test_streams_end_with_the_process_and_do_not_delay_it(server: Server):
    taken = server.client.post("/v1/checkouts", json=intent(), headers=bearer()).json()
    headers = {"Authorization": f"Bearer {taken['clientToken']}"}
    with server.client.stream("GET", f"/v1/checkouts/{taken['id']}/stream", headers=headers) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "retry: 2000"
        assert next(line for line in lines if line.startswith("data: "))
        server.process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line] == ["event: end", 'data: {"reason":"shutdown"}']
    assert server.process.wait(timeout=20) == 0
    assert server.logged("requests_cut_off") == []
    (told,) = [line for line in server.logged("request_answered") if line["route"].endswith("/stream")]
    assert (told["status"], told["method"]) == (200, "GET")


def test_what_is_left_of_a_refused_body_is_not_read_as_a_request(server: Server):
    answer = server.client.post(
        "/v1/checkouts",
        content=b"x" * (BODY_LIMIT * 4),
        headers=bearer() | {"Content-Type": "application/json"},
    )
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"
    assert server.client.get("/healthz").status_code == 200


def test_a_shopper_is_sent_on_when_the_gateway_posts_more_than_is_taken(server: Server):
    urls = callback_urls.callback_urls(
        Encryptor(make_settings().secret_keys), "", uuid7(), PAGES, merchant_id=1
    )
    bodies = [
        body
        for size in (BODY_LIMIT + 1, BODY_LIMIT * 4)
        for body in (b"x" * size, [b"x" * 65_536] * (size // 65_536 + 1))
    ]
    for kind, body in itertools.product(("success", "failure", "redirect"), bodies):
        path = path_of(getattr(urls, kind))
        answer = server.client.post(path + "/", content=body if isinstance(body, bytes) else iter(body))
        assert (answer.status_code, answer.headers["connection"]) == (303, "close")
        assert answer.headers["location"].startswith(PAGES[kind].partition("#")[0])
    assert server.client.get("/healthz").status_code == 200


def test_no_secret_and_no_personal_data_reaches_a_log(server: Server, database_url):
    client, correlation = server.client, {"X-Correlation-Id": "find-me"}
    token = bearer()
    body = intent("A-1", userAgent="Agent Smith")
    taken = client.post("/v1/checkouts", json=body, headers=token | correlation)
    assert taken.status_code == 202
    checkout, client_token = taken.json()["id"], taken.json()["clientToken"]
    urls = callback_urls.callback_urls(
        Encryptor(make_settings().secret_keys), "", UUID(checkout), PAGES, merchant_id=1
    )
    for url in (urls.success, urls.failure, urls.redirect, urls.notification):
        form = {
            "shop_orderid": "A-1",
            "credit_card_masked_pan": "411111******1111",
            "email": "grace@example.com",
        }
        assert client.post(path_of(url), data=form).status_code in {200, 303}
        assert client.post(path_of(url)[:-6] + "AAAAAA", data=form).status_code == 404
    wrong = intent("A-2")
    wrong["order"]["customer"]["email"] = "not-an-address"
    assert client.post("/v1/checkouts", json=wrong, headers=token).status_code == 422
    stale = bearer(lifetime=1)
    time.sleep(2)
    assert client.get(f"/v1/checkouts/{checkout}", headers=stale).status_code == 401
    assert client.get(f"/v1/checkouts/{checkout}", headers=token).status_code == 200
    # What breaks is logged with a traceback: a secret could be in it.
    with psycopg.connect(direct(database_url), autocommit=True) as database:
        database.execute("ALTER TABLE callbacks RENAME COLUMN grade TO mark")
        database.execute("ALTER TABLE checkouts RENAME COLUMN late TO later")
    assert client.post(path_of(urls.notification), data={"email": "grace@example.com"}).status_code == 503
    assert client.get("/v1/checkouts", headers=token).status_code == 500
    assert server.stop() == 0

    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert {"api_serving", "request_answered", "request_failed", "api_ended"} <= {
        line["event"] for line in lines
    }
    assert any(line.get("correlation_id") == "find-me" for line in lines)
    secrets = {
        "token": token["Authorization"].partition(" ")[2].rpartition(".")[2],
        "stale token": stale["Authorization"].partition(" ")[2].rpartition(".")[2],
        "client token": client_token,
        "password": PASSWORD,
        "key": SECRET_KEY,
        "raw key": base64.b64decode(SECRET_KEY).decode(),
        "jwt secret": JWT_SECRET,
        "database password": database_url.partition("://")[2].partition("@")[0].partition(":")[2]
        or "no password",
        "first name": body["order"]["customer"]["firstName"],
        "email": body["order"]["customer"]["email"],
        "the gateway's customer": "grace@example.com",
        "wrong email": "not-an-address",
        "agent": "Agent Smith",
        "card": "411111",
        "street": body["order"]["customer"]["billingAddress"]["street"],
    }
    for url in (urls.success, urls.failure, urls.redirect, urls.notification):
        secrets[f"signature of {path_of(url)[:20]}"] = path_of(url).rpartition(".")[2]
        secrets[f"start of {path_of(url)[:20]}"] = path_of(url).rpartition("/")[2][:16]
    assert {name for name, secret in secrets.items() if secret in text} == set()
