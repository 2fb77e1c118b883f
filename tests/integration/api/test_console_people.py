"""Persons of the console with their passwords, the search by e-mail, the feed, queues, gateways, a return,
paused merchants.
"""

from __future__ import annotations

import asyncio
import json
import re
from html import unescape
from threading import Event

import pytest
from sqlalchemy import text

from orchestrator import passwords
from orchestrator.console import queues as console_queues
from orchestrator.domain.attention import AttentionCode
from orchestrator.gateway.client import gateway_of
from orchestrator.messaging.app import app
from orchestrator.messaging.publisher import Message, Publisher
from orchestrator.messaging.queue_depths import QueueDepth
from orchestrator.store.console import lists, users
from tests.integration.api.test_console import EMPTY, ORIGIN, Person, hidden, place  # noqa: F401 - a fixture
from tests.support.scene import intent

pytestmark = pytest.mark.anyio

CHOSEN = "correct horse battery staple"


async def signed_in_by_link(place, page: str, name: str) -> Person:  # noqa: F811
    link = unescape(re.search(r"<pre>([^<]*)</pre>", page)[1])
    person = Person(place, name)
    path = link.removeprefix(place.api.services.settings.public_url)
    assert (await person.http.post(path, headers=EMPTY)).status_code == 303
    return person


async def login(place, name: str, password: str):  # noqa: F811
    person = Person(place, name)
    answer = await person.http.post(
        "/console/login", data={"name": name, "credential": password, "next": ""}, headers=ORIGIN
    )
    return person, answer


async def test_a_person_chooses_a_password_signs_in_with_it_and_loses_it_with_each_change(place):  # noqa: F811
    admin = await Person(place, "admin").signed_in()
    page = await admin.get("/console/users")
    path = "/console/users"
    wrong = await admin.post(path, page, name="<script>", role="king", reason="x")
    assert wrong.status_code == 422
    assert await place.api.count("console_users") == 0
    added = await admin.post(path, page, name="anna", role="operator", reason="new in the team")
    assert "A link for" in added.text
    again = await admin.post(path, page, name="anna", role="admin", reason="new in the team")
    assert again.status_code == 422
    anna = await signed_in_by_link(place, added.text, "anna")
    await anna.get("/console/users", 403)
    form = await anna.get("/console/password")
    for new, repeated in (("short", "short"), ("anna is a good name", "anna is a good name"), (CHOSEN, "x")):
        assert (await anna.post("/console/password", form, new=new, again=repeated)).status_code == 422
    assert (await anna.post("/console/password", form, new=CHOSEN, again=CHOSEN)).status_code == 303
    form = await anna.get("/console/password")
    assert "Present password" in form
    assert (
        await anna.post("/console/password", form, old="not it at all", new=CHOSEN, again=CHOSEN)
    ).status_code == 422
    for name, password in (("anna", "not it at all"), ("berta", CHOSEN), ("anna", "")):
        _, refused = await login(place, name, password)
        assert (refused.status_code, "The name or the password is wrong" in refused.text) == (401, True)
    second, opened = await login(place, "anna", CHOSEN)
    assert opened.status_code == 303
    assert "anna" in await second.get("/console/sessions")
    (row,) = await place.api.sql("SELECT * FROM console_users")
    assert CHOSEN not in row.password
    assert row.password.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    # Another role ends every session, and so do a new link and a disabled person.
    page = await admin.get("/console/users")
    changed = f"{path}/anna"
    assert (
        await admin.post(changed, page, what="role", role="viewer", reason="another team")
    ).status_code == 303
    assert (await second.http.get("/console")).status_code == 303
    third, opened = await login(place, "anna", CHOSEN)
    await third.get("/console/bulk", 403)
    # A role that was written outside counts for nothing.
    await place.api.sql("UPDATE console_users SET role = 'admin'")
    assert (await login(place, "anna", CHOSEN))[1].status_code == 401
    assert "changed outside" in await admin.get("/console/users")
    await place.api.sql("UPDATE console_users SET role = 'viewer'")
    relinked = await admin.post(changed, page, what="link", reason="forgotten")
    assert "A link for" in relinked.text
    assert (await login(place, "anna", CHOSEN))[1].status_code == 401
    assert (await admin.post(changed, page, what="disable", reason="left")).status_code == 303
    link = unescape(re.search(r"<pre>([^<]*)</pre>", relinked.text)[1])
    gone = await Person(place, "anna").http.post(link.removeprefix("http://127.0.0.1:8000"), headers=EMPTY)
    assert gone.status_code == 403
    trail = await admin.get("/console/actions")
    assert all(said in trail for said in ("user:added", "user:disable", "another team", "user:password"))
    assert CHOSEN not in trail


async def test_an_admin_on_the_list_cannot_disable_or_demote_oneself(place):  # noqa: F811
    services = place.api.services
    await users.add(services.db, services.encryptor, name="root", role="admin", by="test")
    await users.change(services.db, services.encryptor, "root", password=passwords.hashed(CHOSEN))
    root, opened = await login(place, "root", CHOSEN)
    assert opened.status_code == 303
    page = await root.get("/console/users")
    for what in ("role", "disable"):
        token = hidden(page, "/console/users")["token"]
        answer = await root.post(
            "/console/users/root", page, token=token, what=what, role="viewer", reason="by mistake"
        )
        assert answer.status_code == 409
    notes = await place.api.sql("SELECT actor, facts FROM console_actions WHERE action = 'form:refused'")
    assert [(note.actor, note.facts["page"]) for note in notes] == [
        ("operator:root", "/console/users/root")
    ] * 2
    assert (await users.by_name(services.db, services.encryptor, "root")).usable


def test_a_stored_password_matches_itself_alone():
    stored = passwords.hashed(CHOSEN)
    assert passwords.matches(CHOSEN, stored)
    assert not passwords.matches(CHOSEN + " ", stored)
    assert not passwords.matches(CHOSEN, "$argon2id$nonsense")
    assert stored != passwords.hashed(CHOSEN)


async def test_orders_are_found_by_an_address_that_stands_nowhere_in_clear(place, caplog):  # noqa: F811
    body = json.loads(intent("E-1"))
    body["order"]["customer"] = {"email": "Ada.Lovelace@Shop.example"}
    for order in ("E-1", "E-2"):
        body["order"]["orderId"] = order
        answer = await place.api.post(body)
        assert answer.status_code == 202, answer.text
    await place.data.order("E-3")
    person = await Person(place, "a").signed_in()
    page = await person.get("/console/orders")
    found = await person.post("/console/orders/by-email", page, email=" ada.lovelace@shop.EXAMPLE ")
    assert found.status_code == 200
    assert all(f">{order}</a>" in found.text for order in ("E-1", "E-2"))
    assert ">E-3</a>" not in found.text
    nothing = await person.post("/console/orders/by-email", page, email="ada.lovelace@shop.example.org")
    assert "No order matches" in nothing.text
    assert (await person.post("/console/orders/by-email", page, email="ada")).status_code == 422
    rows = await place.api.sql("SELECT email_tag FROM intents ORDER BY checkout_id")
    assert [row.email_tag is None for row in rows] == [False, False, True]
    assert rows[0].email_tag == rows[1].email_tag
    (note,) = await place.api.sql(
        "SELECT facts FROM console_actions WHERE action = 'orders:searched-by-email' ORDER BY id LIMIT 1"
    )
    assert note.facts == {"found": 2}
    assert "lovelace" not in (await person.get("/console/actions")).lower()
    assert "lovelace" not in caplog.text.lower()


async def test_the_feed_is_shown_page_by_page_and_by_type(place):  # noqa: F811
    checkout = await place.data.order("F-1")
    await place.api.sql(
        """INSERT INTO events (checkout_id, sequence, merchant_id, kind, payload, correlation_id, position)
           SELECT :id, n, 1, CASE n % 10 WHEN 0 THEN 'checkout.completed' ELSE 'checkout.ready' END,
                  '{"orderId": "F-1", "state": "completed", "currency": "DKK", "amount": 13900, "facts": {"transactionId": "T-9", "amount": 500}}',
                  'c', n FROM generate_series(1, 130) n""",
        id=checkout,
    )
    person = await Person(place, "a").signed_in()
    seen: list[str] = []
    path = "/console/events"
    while path:
        page = await person.get(unescape(path))
        seen += re.findall(r'<tr><td class="n">(\d+)</td>', page)
        path = (re.search(r'rel="next" href="([^"]+)"', page) or [None, ""])[1]
    assert seen == [str(number) for number in range(130, 0, -1)]
    assert "T-9" in page
    assert "139.00 DKK" in page
    done = await person.get("/console/events?kind=checkout.completed&merchant=default")
    assert len(re.findall(r'<tr><td class="n">', done)) == 13
    assert "is not a known word" in await person.get("/console/events?kind=nonsense", 422)
    assert "is not a position" in await person.get("/console/events?before=x", 422)
    await person.get("/console/events?merchant=none", 422)
    rows, after = await lists.feed(place.api.services.db, 1, kind=None, before=None, limit=130)
    assert (len(rows), after) == (130, None)


async def test_queues_have_their_depth_and_the_age_of_their_oldest_message(settings, monkeypatch):
    read = console_queues.Queues(settings)
    publisher = Publisher(app)
    try:
        first = await read.read()
        assert first.trouble is None
        monkeypatch.setattr("orchestrator.messaging.publisher.time.time", lambda: 1_000_000.0)
        publisher.publish([Message("orchestrator.nothing", "maintenance", ())] * 2)
        monkeypatch.undo()
        rows = {row.name: row for row in read._ask().rows}
        assert rows.keys() == {"intents", "callbacks", "checkouts", "maintenance"}
        assert rows["maintenance"].number == 2
        assert rows["callbacks"].age is None
        if settings.broker.kind != "amqp":
            assert rows["maintenance"].age > 1_000_000
        assert rows["maintenance"].at_least is (settings.broker.kind == "amqp")
    finally:
        channel = publisher._connected().channel
        channel.queue_purge("maintenance")
        publisher.close()
        read.close()


async def test_a_broker_that_is_away_is_a_sentence_and_no_error(settings):
    away = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    read = console_queues.Queues(away)
    try:
        found = read._ask()
        assert found.rows == ()
        assert found.trouble
    finally:
        read.close()


async def test_old_figures_of_queues_are_not_shown_as_present_ones(place, monkeypatch):  # noqa: F811
    read = place.console.queues
    figures = console_queues.Read((QueueDepth("intents", 4, None, at_least=False),), known=True)
    held = Event()
    answers = [
        lambda: figures,
        lambda: held.wait(10) and figures,
        lambda: console_queues.Read(trouble="away", known=True),
    ]
    monkeypatch.setattr(read, "_ask", lambda: answers.pop(0)())  # noqa: PLW0108 - another answer each time
    person = await Person(place, "a").signed_in()

    async def shown() -> str:
        page = unescape(await person.get("/console"))
        return page.partition('id="queues"')[2].partition("</section>")[0]

    try:
        assert "<td>intents</td>" in await shown()
        since = f"since {read._figures_at:%Y-%m-%d %H:%M:%S}"
        # The next question gets no answer for a while.
        read._at -= console_queues.OLD
        page = await shown()
        assert f"There is no figure of the queues {since}: the broker has not answered" in page
        assert "<td>intents</td>" not in page
        reading = read._reading
        held.set()
        await asyncio.wait((reading,))
        assert "<td>intents</td>" in await shown()
        since = f"since {read._figures_at:%Y-%m-%d %H:%M:%S}"
        # The one after says that the broker is away.
        read._at -= console_queues.OLD
        page = await shown()
        assert f"The broker does not answer: away. There is no figure of its queues {since}." in page
        assert "<td>intents</td>" not in page
    finally:
        held.set()


@pytest.mark.parametrize(
    ("calls", "failed", "now"),
    [
        (100, 59, '<span class="flag">failing</span>'),
        (100, 15, '<span class="flag">failing</span>'),
        (100, 14, "normal"),
        (3, 2, "normal"),
        (2, 2, '<span class="flag">failing</span>'),
    ],
)
async def test_a_gateway_is_called_failing_though_its_circuit_is_closed(place, calls, failed, now):  # noqa: F811
    await place.data.everything()
    counted = {
        "gateway": "https://pay.example",
        "calls": calls,
        "failed": failed,
        "seconds": 2.5,
        "openFor": 0,
    }
    await place.api.sql(
        "UPDATE workers SET progress = CAST(:progress AS jsonb) WHERE kind = 'worker' RETURNING name",
        progress=json.dumps({"gateways": [counted]}),
    )
    person = await Person(place, "a").signed_in()
    table = (await person.get("/console")).partition('id="gateways"')[2].partition("</section>")[0]
    assert re.findall(r"<th[^>]*>([^<]*)</th>", table) == ["Gateway", "Now", "Failed", "Calls", "Mean time"]
    assert f'<td class="name">https://pay.example</td><td>{now}</td>' in table
    assert 'class="scroll"' in table


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("awaiting_payment", "The order then waits for another payment until its deadline"),
        ("completed", "The order has ended and stays as it is: completed."),
        ("expired", "The order has ended and stays as it is: expired."),
    ],
)
async def test_a_return_of_another_amount_says_what_becomes_of_the_order(place, state, said):  # noqa: F811
    checkout = await place.data.asking(AttentionCode.PAYMENT_MISMATCH, 1)
    await place.api.sql(
        "UPDATE checkouts SET state = :state, ended_at = CASE WHEN :state = 'awaiting_payment' THEN NULL ELSE clock() END "
        "WHERE id = :id RETURNING id",
        id=checkout,
        state=state,
    )
    person = await Person(place, "a").signed_in()
    form = f"/console/orders/{checkout}/do/resolve?decision"
    assert said in await person.get(f"{form}=return")
    assert said not in await person.get(f"{form}=keep")


async def test_the_page_of_an_order_hears_of_its_change_over_http(place):  # noqa: F811
    checkout = await place.data.order("L-1")
    person = await Person(place, "a").signed_in()
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    ended = asyncio.Event()
    scope = {
        "type": "http", "method": "GET", "path": "/console/live", "query_string": f"topic=order:{checkout}".encode(),
        "headers": [(b"host", b"pay.example"), (b"cookie", f"console={person.http.cookies['console']}".encode())],
        "scheme": "http", "server": ("pay.example", 80), "client": ("127.0.0.1", 1), "root_path": "", "http_version": "1.1",
        "raw_path": b"/console/live", "asgi": {"version": "3.0"},
    }  # fmt: skip
    sent = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        if (message := next(sent, None)) is not None:
            return message
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        heard.put_nowait(message.get("body", b""))

    async def told() -> None:
        while b"event: changed" not in await heard.get():
            pass

    stream = asyncio.create_task(place.api.client._transport.app(scope, receive, send))
    async with asyncio.timeout(20):
        await told()  # what changed between the page and its stream
        await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=checkout)
        await told()
    ended.set()
    await asyncio.wait_for(stream, 5)
    assert len(place.console.live) == 0


async def test_a_merchant_is_paused_and_resumed_with_a_reason(place):  # noqa: F811
    person = await Person(place, "a").signed_in()
    path = "/console/merchants/default"
    page = await person.get("/console/merchants")
    assert (await person.post(path, page, what="pause", reason="x")).status_code == 422
    assert (await person.post(path, page, what="pause", reason="the gateway is repaired")).status_code == 303
    assert "Resume calls" in await person.get("/console/merchants")
    place.console.live._read_at = float("-inf")
    assert "its gateway is not called" in await person.get("/console")
    assert (await place.api.services.merchants.named("default")).paused
    assert (await person.post(path, page, what="resume", reason="it works again")).status_code == 303
    assert not (await place.api.services.merchants.named("default")).paused
    for what, paused in (("pause", True), ("resume", False)):
        form = await person.get("/console/merchants")
        answer = await person.post("/console/gateways", form, what=what, reason="the gateway is repaired")
        assert answer.status_code == 303, answer.text
        assert (await place.api.services.merchants.named("default")).paused is paused
    form = await person.get("/console/merchants")
    notes = await place.api.sql(
        "SELECT action, subject, facts ? 'gateway' AS gateway FROM console_actions WHERE subject = 'default' ORDER BY id"
    )
    assert [(note.action, note.gateway) for note in notes] == [
        ("merchant:pause", False),
        ("merchant:resume", False),
        ("merchant:pause", True),
        ("merchant:resume", True),
    ]
    for gateway in ("https://x", f"https://{'a' * 200}.example:443"):
        unknown = await person.post(
            "/console/gateways", form, what="pause", reason="a guess", gateway=gateway
        )
        assert unknown.status_code == 404
    rows = await place.api.services.db.read(text("SELECT entry FROM merchant_changes ORDER BY sequence"))
    said = [json.loads(row.entry) for row in rows]
    assert [(each["action"], each["details"], each["actor"]) for each in said] == [
        ("merchant:paused", {"paused": True}, "operator:a"),
        ("merchant:resumed", {"paused": False}, "operator:a"),
    ] * 2


async def test_a_gateway_that_is_down_is_named_with_its_failure_and_the_orders_that_wait(place):  # noqa: F811
    await place.data.everything()
    waits, gateway = await place.data.order("A-WAITS"), gateway_of(place.api.services.settings.gateway_url)
    await place.api.sql(
        """UPDATE checkouts SET last_error = 'unknown', attempts = 1,
                  last_error_details = '{"reason": "The gateway answered HTTP 503."}' WHERE id = :id RETURNING id""",
        id=waits,
    )
    failing = {"failingFor": 60.0, "reason": "The gateway answered HTTP 503."}
    counted = {"gateway": gateway, "calls": 5, "failed": 5, "seconds": 1.0, "openFor": 40.0, "open": True}
    circuit = {"gateway": gateway, "seconds": 40.0, "since": 60.0, "reason": failing["reason"]}
    await place.api.sql(
        "UPDATE workers SET seen_at = clock(), progress = CAST(:progress AS jsonb) WHERE kind = 'worker' RETURNING name",
        progress=json.dumps({"gateways": [counted | failing], "circuits": [circuit]}),
    )
    await place.api.sql(
        "INSERT INTO workers (name, kind, progress, seen_at) VALUES ('away:17', 'deliverer', '{}', clock() - interval '3 minutes') RETURNING name"
    )
    person = await Person(place, "a").signed_in()
    for path in ("/console", "/console/system"):
        page = await person.get(path)
        assert f"Calls to the gateway {gateway} are paused until " in page
        assert "the last one with “The gateway answered HTTP 503”" in page
        assert "Everything works" not in page
    page = await person.get("/console")
    assert "Not heard: deliverer away:17, for 3 min" in page
    link = "/console/orders?state=open&amp;error=unknown&amp;merchant=default"
    assert f'<a href="{link}">No clear answer</a>: The gateway answered HTTP 503</td>' in page
    for path in (link.replace("&amp;", "&"), "/console/orders?state=open&error=any"):
        assert "A-WAITS" in await person.get(path)
    assert "A-WAITS" not in await person.get("/console/orders?error=not_sent")
    assert "calls paused until " in await person.get("/console/merchants")
    assert "Retry now: 1 order" in await person.get("/console/bulk/new?kind=retry&error=unknown")
    none = await person.get("/console/bulk/new?kind=retry&error=not_sent")
    assert "0 orders" not in none
    assert "Change the filter" in none


async def test_the_form_of_a_retry_says_until_when_calls_are_paused(place):  # noqa: F811
    waits = await place.data.order("A-WAITS")
    form = f"/console/orders/{waits}/do/retry"
    person = await Person(place, "a").signed_in()
    assert "are paused until" not in await person.get(form)
    gateway = gateway_of(place.api.services.settings.gateway_url)
    circuit = {"gateway": gateway, "seconds": 40.0, "since": 60.0, "reason": "The gateway answered HTTP 503."}
    await place.api.sql(
        "INSERT INTO workers (name, kind, progress) VALUES ('w', 'worker', CAST(:progress AS jsonb)) RETURNING name",
        progress=json.dumps({"circuits": [circuit]}),
    )
    shown = await person.get(form)
    assert "Calls to this gateway are paused until " in shown
    assert "the last one with “The gateway answered HTTP 503”" in shown
