"""The operations console over ASGI, on a real database: who may do what, what is refused, what is noted."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest

from orchestrator import auth
from orchestrator.console import Console
from orchestrator.domain.attention import AttentionCode
from orchestrator.store.console import approvals, lists, runs, sessions
from tests.support.api_scene import serving
from tests.support.console_data import HOSTILE, ConsoleData

pytestmark = pytest.mark.anyio

PAGES = (
    "/console", "/console/orders", "/console/decisions", "/console/approvals", "/console/bulk", "/console/deliveries",
    "/console/rejected", "/console/merchants", "/console/system", "/console/actions", "/console/sessions", "/console/users", "/console/password", "/console/events",
)  # fmt: skip
ALL = ("console:view", "console:operate", "console:approve", "console:admin")
ORIGIN = {"Origin": "http://pay.example", "Sec-Fetch-Site": "same-origin"}
EMPTY = {**ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}


class Person:
    """One person at one browser."""

    def __init__(self, place, name: str, scopes: tuple[str, ...] = ALL) -> None:
        self.place, self.name, self.scopes = place, name, scopes
        self.http = httpx.AsyncClient(
            transport=place.api.client._transport, base_url="http://pay.example", follow_redirects=False
        )

    async def signed_in(self) -> Person:
        credential = auth.issue(
            self.place.api.services.settings,
            merchant="*",
            scopes=self.scopes,
            lifetime=600,
            subject=self.name,
        )
        answer = await self.http.post(
            "/console/login", data={"credential": credential, "next": "/console/decisions"}, headers=ORIGIN
        )
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/decisions"), answer.text
        return self

    async def get(self, path: str, status: int = 200) -> str:
        """Return a page, without the names of columns that its cells have for narrow screens."""
        answer = await self.http.get(path)
        assert answer.status_code == status, (path, answer.status_code, answer.text)
        return re.sub(' data-label="[^"]*"', "", answer.text)

    async def post(
        self, path: str, page: str, headers: dict[str, str] = ORIGIN, **fields: str
    ) -> httpx.Response:
        """Submit the form of a page, as a browser does, with these fields changed."""
        return await self.http.post(path, data={**hidden(page, path), **fields}, headers=headers)


async def ended(services, run: UUID) -> runs.Run:
    """Return a bulk action once it is carried out no more."""
    async with asyncio.timeout(20):
        while True:
            found = await runs.by_id(services.db, services.encryptor, run)
            if found.state != "running":
                return found
            await asyncio.sleep(0.05)


def hidden(page: str, action: str) -> dict[str, str]:
    """Return the hidden fields of the form with this action."""
    form = page.partition(f'action="{action}"')[2].partition("</form>")[0]
    return {
        name: unescape(value)
        for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)
    }


@pytest.fixture
async def place(settings):
    made = []

    def pages(services):
        made.append(Console(services))
        return made[0]

    limited = settings.model_copy(update={"approval_limits": {"DKK": 100}})
    async with serving(limited, pages=pages) as api:
        data = ConsoleData(api.services.db, api.services.encryptor)
        yield SimpleNamespace(api=api, data=data, console=made[0])
        await made[0].close()
        await data.close()


async def test_every_page_shows_data_of_every_kind_as_text_and_costs_few_statements(place):
    named = await place.data.everything()
    person = await Person(place, "night-shift").signed_in()
    paths = [
        *PAGES,
        *(f"/console/orders/{checkout}" for name, checkout in named.items() if name != "endpoint"),
        f"/console/deliveries/{named['endpoint']}",
        f"/console/deliveries/{named['endpoint']}?failed=yes",
        f"/console/orders/{named['surplus_payment']}/do/resolve?decision=return",
        "/console/bulk/new?kind=retry&attention=any",
        "/console/orders?attention=any&state=completed&currency=DKK&least=1&most=200&since=2020-01-01",
    ]
    for path in paths:
        answer = await person.http.get(path)
        assert answer.status_code == 200, (path, answer.text)
        assert "<script>alert" not in answer.text, path
        assert "\u202e" not in answer.text, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert not re.search(r"\s(style|on\w+)=", answer.text), path
    listed = await person.get("/console/deliveries")
    assert "&lt;script&gt;" in listed
    assert "Celery task shop.events in shop at our own broker" in listed
    shown = await person.get("/console")
    for said in (
        "https://pay.example",
        "10.0 %",
        "50 ms",
        "calls paused until ",
        "Calls to the gateway https://pay.example are paused until ",
    ):
        assert said in shown
    system = await person.get("/console/system")
    assert ("in flight 3, queued intents 4" in system, "moves/completed" in system) == (True, False)
    risks = (await person.get("/console")).partition("Needs a decision")[0]
    for said in (
        "Paid more than once (surplus)",
        "Outcome of a capture",
        "Paid, and the shop is not told",
        "Reserved and not captured, under 1 day: usual before shipment",
    ):
        assert said in risks
    decisions = await person.get("/console/decisions")
    assert all(f'id="c-{code}"' in decisions for code in AttentionCode)


async def test_an_address_with_a_slash_at_its_end_leads_to_the_console_and_what_is_no_form_is_told(place):
    stranger = Person(place, "stranger")
    answer = await stranger.http.get("/console/")
    assert (answer.status_code, answer.headers["location"]) == (308, "/console")
    answer = await stranger.http.post("/console/link/none", headers=ORIGIN)
    assert answer.status_code == 415
    assert "its Content-Type is not application/x-www-form-urlencoded. Nothing was done." in answer.text


async def test_without_a_session_nothing_is_shown_and_nothing_is_done(place):
    checkout = await place.data.paid("A-1")
    stranger = Person(place, "stranger")
    for path in (*PAGES, f"/console/orders/{checkout}"):
        answer = await stranger.http.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/console/login?next="), path
    assert (await stranger.http.get("/console/live?topic=overview")).status_code == 401
    refused = await stranger.http.post(f"/console/orders/{checkout}/do/cancel", data={}, headers=ORIGIN)
    assert refused.status_code == 401
    for subject, scopes in (("default", ("ops",)), ("*", ("merchants:read",))):
        token = auth.issue(
            place.api.services.settings, merchant=subject, scopes=scopes, lifetime=60, subject="x"
        )
        answer = await stranger.http.post("/console/login", data={"credential": token}, headers=ORIGIN)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    for there in ("https://evil.example", "//evil.example", "/console\\evil", "/shop"):
        person = Person(place, "p", ("console:view",))
        credential = auth.issue(
            place.api.services.settings, merchant="*", scopes=person.scopes, lifetime=60, subject="p"
        )
        answer = await person.http.post(
            "/console/login", data={"credential": credential, "next": there}, headers=ORIGIN
        )
        assert answer.headers["location"] == "/console"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie


async def test_a_form_of_another_site_another_session_or_without_the_scope_does_nothing(place):
    checkout = await place.data.order("A-1")
    path = f"/console/orders/{checkout}/do/cancel"
    person, other = await Person(place, "a").signed_in(), await Person(place, "b").signed_in()
    viewer = await Person(place, "v", ("console:view",)).signed_in()
    page = await person.get(path)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "https://[evil"},
        {"Sec-Fetch-Site": "cross-site", **ORIGIN, "Origin": "null"},
        {},
    ):
        assert (await person.post(path, page, headers, reason="why not")).status_code == 403
    assert (await other.post(path, page, reason="why not")).status_code == 403
    await viewer.get(path, 403)
    assert (await viewer.post(path, page, reason="why not")).status_code == 403
    assert (await person.post(path, page, reason="why not", extra="x")).status_code == 400
    assert await place.api.count("commands") == 0
    assert (await person.post(path, page, reason="why not")).status_code == 303
    # Sent twice, and the order has moved by then: the answer is that of the first time.
    await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=checkout)
    again = await person.post(path, page, reason="why not")
    assert (again.status_code, again.headers["location"]) == (
        303,
        f"/console/orders/{checkout}?done=accepted",
    )
    assert (await person.post(path, page, reason="another reason")).status_code == 409
    assert (await person.post(path, page, reason="why not", nonce="")).status_code == 400
    rows = await place.api.sql("SELECT kind, actor, reason, expected_version FROM commands")
    assert [(row.kind, row.actor) for row in rows] == [("cancel", "operator:a")]
    assert rows[0].reason.startswith("sealed:")
    notes = await place.api.sql("SELECT actor, action, outcome, facts FROM console_actions ORDER BY id")
    refused = [
        (note.actor, note.action, note.facts["refused"]) for note in notes if note.outcome == "refused"
    ]
    assert refused == [
        *[("operator:a", "form:refused", "Refused")] * 4,
        ("operator:b", "form:refused", "Refused"),
        ("operator:v", "form:refused", "Not allowed"),
        ("operator:a", "form:refused", "Sent before"),
    ]


async def test_an_action_on_an_order_that_moved_is_refused_and_noted(place):
    checkout = await place.data.paid("A-1", captured=5000)
    person = await Person(place, "a").signed_in()
    shown = await person.get(f"/console/orders/{checkout}")
    link = unescape(re.search(r'href="(/console/orders/[^"]*/do/refund[^"]*)"', shown)[1])
    path = link.partition("?")[0]
    page = await person.get(link)
    for amount, said in (
        ("0", "more than 0"),
        ("abc", "is not an amount"),
        ("", "name an amount"),
        ("50.01", "more than the 50.00"),
    ):
        answer = await person.post(path, page, amount=amount, reason="a broken toy")
        assert answer.status_code in {409, 422}, (amount, answer.text)
        assert said in unescape(answer.text).lower(), (amount, answer.text)
    confirm = await person.post(path, page, amount="49.00", reason="a broken toy")
    assert "Refund 49.00 of 50.00 DKK of transaction" in confirm.text
    await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=checkout)
    refused = await person.post(path, confirm.text)
    assert refused.status_code == 409
    assert "has moved since this page was drawn" in refused.text
    assert await place.api.count("commands") == 0
    trail = await person.get("/console/actions")
    assert "version-changed" in trail
    assert "a broken toy" in trail
    confirm = await person.post(path, await person.get(link), amount="49.00", reason="a broken toy")
    assert (await person.post(path, confirm.text)).status_code == 303
    (row,) = await place.api.sql("SELECT kind, arguments FROM commands")
    assert (row.kind, row.arguments["amount"]) == ("refund", 4900)
    notes = await place.api.sql(
        "SELECT outcome FROM console_actions WHERE action = 'order:refund' ORDER BY id"
    )
    assert [note.outcome for note in notes] == ["refused", "refused", "accepted"]


async def test_above_the_limit_another_person_approves_and_a_moved_order_is_not_carried_out(place):
    checkout = await place.data.paid("A-1", captured=13900)
    first, second = await Person(place, "first").signed_in(), await Person(place, "second").signed_in()
    operator = await Person(place, "third", ("console:operate",)).signed_in()

    async def asked() -> str:
        link = unescape(
            re.search(r'href="([^"]*/do/refund[^"]*)"', await first.get(f"/console/orders/{checkout}"))[1]
        )
        path = link.partition("?")[0]
        confirm = await first.post(
            path, await first.get(link), amount="139.00", reason="returned by the shopper"
        )
        assert "second person" in confirm.text
        assert (await first.post(path, confirm.text)).headers["location"].endswith("?done=waiting")
        return re.search(r'href="(/console/approvals/[^"]+)"', await second.get("/console/approvals"))[1]

    path = await asked()
    assert await place.api.count("commands") == 0
    own = await first.get(path)
    assert "another person has to approve" in own
    assert 'value="approve"' not in own
    assert (await first.post(path, own, decision="approve")).status_code == 409
    assert (await operator.post(path, await operator.get(path), decision="approve")).status_code == 403
    page = await second.get(path)
    await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=checkout)
    moved = await second.post(path, page, decision="approve")
    assert moved.status_code == 409
    assert "has moved since" in moved.text
    assert await place.api.count("commands") == 0
    path = await asked()
    await place.api.sql("UPDATE console_approvals SET amount = 1 WHERE state = 'waiting'")
    await second.get(path, 404)  # changed outside: its MAC does not hold
    await place.api.sql("UPDATE console_approvals SET amount = 13900 WHERE state = 'waiting'")
    page = await second.get(path)
    assert (await second.post(path, page, decision="approve")).status_code == 303
    assert (await second.post(path, page, decision="approve")).status_code == 409
    (row,) = await place.api.sql("SELECT actor, arguments FROM commands")
    assert row.actor == "operator:first approved by operator:second"


async def test_a_bulk_action_that_is_killed_goes_on_and_does_each_order_once(place):
    orders = [await place.data.order(f"B-{number}") for number in range(7)]
    person = await Person(place, "a").signed_in()
    path = "/console/bulk/new"
    page = await person.get(f"{path}?kind=cancel&state=received")
    assert "Cancel: 7 orders" in page
    assert "973.00 DKK" in page
    moved = await place.api.sql(
        "UPDATE checkouts SET version = version + 1 WHERE id = :id RETURNING id", id=orders[0]
    )
    assert moved
    unreasoned = await person.post(path, page, reason=" ")
    assert unreasoned.status_code == 422
    assert "Cancel: 7 orders" in unreasoned.text
    assert "Say why, in a few words" in unreasoned.text
    changed = await person.post(path, page, reason="the shop has closed")
    assert changed.status_code == 409
    assert "since the preview" in changed.text
    begun = await person.post(path, changed.text, reason="the shop has closed")
    assert begun.status_code == 303, begun.text
    run = UUID(begun.headers["location"].rpartition("/")[2])
    await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=orders[1])
    services, worker = place.api.services, place.console.run_worker
    claimed = await runs.claim(services.db, services.encryptor)
    assert claimed is not None
    # Killed after it has stored two commands and noted none of them.
    for item in (await runs.next_items(services.db, run))[:3]:
        await worker._carry_out_item(claimed[0], item)
    assert await runs.claim(services.db, services.encryptor) is None
    await place.api.sql("UPDATE console_runs SET leased_until = clock()")
    worker.start()
    await ended(services, run)
    done = await runs.by_id(services.db, services.encryptor, run)
    assert (done.accepted, done.refused, done.left, done.reason) == (6, 1, 0, None)
    rows = await place.api.sql("SELECT checkout_id, actor FROM commands")
    assert len(rows) == len({row.checkout_id for row in rows}) == 6
    assert "6 accepted, 1 refused, 0 left" in await person.get(f"/console/bulk/{run}")
    # The same form again begins nothing new. What another program wrote to its rows is not carried out.
    sent_twice = await person.post(path, changed.text, reason="the shop has closed")
    assert sent_twice.headers["location"] == begun.headers["location"]
    assert await place.api.count("console_runs") == 1
    await worker.close()
    wrong = (
        "UPDATE console_runs SET kind = 'cancel' WHERE id = :id",
        "UPDATE console_runs SET number = 1, digest = sha256('') WHERE id = :id",
        "UPDATE console_run_items SET version = version + 1 WHERE run_id = :id",
        "DELETE FROM console_run_items WHERE run_id = :id AND checkout_id IN (SELECT id FROM checkouts LIMIT 1)",
    )
    for written in wrong:
        page = await person.get(f"{path}?kind=retry&state=received")
        begun = await person.post(path, page, reason="the gateway was down")
        forged = UUID(begun.headers["location"].rpartition("/")[2])
        await place.api.sql(written, id=forged)
        claimed = await runs.claim(services.db, services.encryptor)
        assert claimed[0].id == forged
        await worker._carry_out(*claimed)
        assert (await ended(services, forged)).state == "stopped", written
    assert await place.api.count("commands") == 6


async def test_a_link_opens_one_session_and_a_forged_row_opens_none(place):
    services = place.api.services
    code = await sessions.begin(
        services.db, services.encryptor, actor="me", scopes=("console:operate",), seconds=60, link=True
    )
    person = Person(place, "me")
    assert "Sign in" in await person.get(f"/console/link/{code}")
    assert "Sign in" in await person.get(f"/console/link/{code}")  # to look at it does not use it
    assert (await person.http.post(f"/console/link/{code}", headers=EMPTY)).status_code == 303
    assert (await person.http.post(f"/console/link/{code}", headers=EMPTY)).status_code == 403
    page = await person.get("/console/sessions")
    await place.api.sql("UPDATE console_sessions SET scopes = scopes || ' console:admin'")
    assert (await person.post("/console/sessions", page)).status_code == 401
    place.console.sessions.forget()
    assert (await person.http.get("/console")).status_code == 303
    await place.api.sql("UPDATE console_sessions SET scopes = replace(scopes, ' console:admin', '')")
    await person.get("/console")
    assert (await person.post("/console/logout", page)).status_code == 303
    assert (await person.http.get("/console")).status_code == 303


async def test_fifty_viewers_of_the_overview_cost_what_one_costs(place, monkeypatch):
    await place.data.everything()
    person = await Person(place, "a").signed_in()
    await person.get("/console")
    asked = []
    database = type(place.api.services.db)
    read = database.read

    async def counted(self, *given):
        asked.append(given)
        return await read(self, *given)

    monkeypatch.setattr(database, "read", counted)
    await asyncio.gather(*(person.get("/console") for _ in range(50)))
    assert len(asked) <= 2
    streams = [place.console.live.follow("overview") for _ in range(50)]
    await asyncio.sleep(2.5)
    assert place.console.live.queries <= 6
    for stream in streams:
        stream.changed.clear()
    await place.data.order("LATE-1")
    received = None
    async with asyncio.timeout(20):
        # The moment on the page is news too, so the first of it may come without the order.
        while received is None or received[1] != "2":
            await asyncio.gather(*(stream.changed.wait() for stream in streams))
            for stream in streams:
                stream.changed.clear()
            received = re.search(
                r'state=received">Received</a></td><td class="n">(\d+)', await person.get("/console")
            )


async def test_search_finds_by_order_id_and_transaction_and_pages_are_bounded(place):
    checkout = await place.data.paid("A-1")
    (payment,) = await place.api.sql("SELECT transaction_id FROM payments")
    person = await Person(place, "a").signed_in()
    for name in ("A-1", str(checkout), payment.transaction_id):
        found = await person.http.get("/console/orders", params={"name": name})
        assert found.headers["location"] == f"/console/orders/{checkout}"
    assert "No order matches" in await person.get("/console/orders?name=nothing")
    await person.get("/console/orders?nmae=A-1", 400)
    assert "there is no such merchant" in (await person.get("/console/orders?merchant=none", 422)).lower()
    await place.api.sql("UPDATE checkouts SET order_ref = '=1+1' WHERE id = :id", id=checkout)
    csv = await person.get("/console/orders.csv")
    assert "'=1+1" in csv
    assert ",139.00," in csv
    for number in range(3):
        await place.data.order(f"P-{number}")
    first = await lists.checkouts(place.api.services.db, lists.Filter(), before=None, limit=2)
    second = await lists.checkouts(place.api.services.db, lists.Filter(), before=first.after, limit=2)
    assert len({row.id for row in (*first.rows, *second.rows)}) == 4
    assert second.after is None


async def test_a_decision_is_shown_while_it_waits_and_then_with_what_became_of_it(place):
    checkout = await place.data.asking(AttentionCode.SURPLUS_PAYMENT, 1)
    person = await Person(place, "a").signed_in()
    address = f"/console/orders/{checkout}"
    page = await person.get(address)
    surplus = re.search(r"Return 129.00 DKK \(transaction (T-\w+)\) to the shopper", page)[1]
    for said in (
        "Beside it, by payments that are not accepted: 129.00 DKK",
        "must be captured in the gateway&#39;s own interface before the reservation lapses",
        f"Transaction {surplus} also holds money for this order.",
        "That cannot be undone. The order stays as it is, with its own payment (transaction",
        ", the payment of the order</span>",
    ):
        assert said in page
    # It is what the decision returns, and stands there alone.
    assert f"do/release?transaction={surplus}" not in page
    path = f"{address}/do/resolve"
    form = await person.get(f"{path}?decision=keep")
    assert re.search(
        r"State: <span[^>]*>completed</span>, version \d+\. If the order changes before you", form
    )
    stored = await person.post(path, form, reason="the shopper wants both")
    page = await person.get(stored.headers["location"])
    assert "Stored. A worker carries it out" in page
    assert "A worker carries out the decision." in page
    assert "Decision under way: surplus payment" in page
    assert "needs a decision" not in page.partition("<main")[2].lower()
    assert "do/resolve" not in page
    assert "<td>Resolve (keep)</td><td>Waits for a worker</td>" in page
    await place.api.sql(
        "UPDATE commands SET handled_at = clock(), result = 'done_decided' WHERE checkout_id = :id RETURNING id",
        id=checkout,
    )
    page = await person.get(stored.headers["location"])
    assert "Stored. A worker" not in page
    assert "Resolve (keep): decided: keep." in page
    assert "do/resolve" in page


async def test_a_return_of_money_is_shown_with_amount_and_transaction(place):
    checkout = await place.data.asking(AttentionCode.SURPLUS_PAYMENT, 1)
    person = await Person(place, "a").signed_in()
    returned = await place.data.returned(checkout, amount=123456)
    path = f"/console/orders/{checkout}"
    page = await person.get(path)
    assert f"<td>The release of 1,234.56 DKK of transaction {returned} has left for the gateway" in page
    assert "A worker carries out the decision." in page
    await place.api.sql(
        "UPDATE money_operations SET state = 'succeeded', settled_at = clock() WHERE checkout_id = :id RETURNING id",
        id=checkout,
    )
    page = await person.get(f"{path}?done=accepted")
    assert f"<td>Resolve (return)</td><td>1,234.56 DKK of transaction {returned} was released</td>" in page
    assert f"Resolve (return): 1,234.56 DKK of transaction {returned} was released." in page
    assert "do/resolve" in page


async def test_a_gateway_that_fails_has_a_warning_and_a_decision_is_no_error_of_it(place):
    await place.data.everything()
    waits = await place.data.order("A-WAITS")
    for code, number in (("needs_decision", 3), ("unknown", 4)):
        await place.api.sql(
            "UPDATE checkouts SET last_error = :code, attempts = :number WHERE id = :id RETURNING id",
            id=waits,
            code=code,
            number=number,
        )
        place.console.live._read_at = float("-inf")
        errors = (await person_of(place)).partition('id="errors"')[2].partition("</section>")[0]
        assert ("No clear answer" in errors) == (code == "unknown")
        assert "ecision" not in errors
    await place.api.sql(
        "UPDATE workers SET progress = jsonb_set(jsonb_set(progress, '{gateways,0,failed}', '40'), '{gateways,0,openFor}', '0')"
        " WHERE kind = 'worker' RETURNING name"
    )
    place.console.live._read_at = float("-inf")
    shown = await person_of(place)
    assert "Of the calls to the gateway https://pay.example in the last two minutes 80 % failed." in shown
    assert '<a href="/console/orders?state=open&amp;error=any">' in shown
    assert '<span class="flag">80.0 %</span>' in shown


async def person_of(place) -> str:
    """Return the overview as a person sees it."""
    return await (await Person(place, "a").signed_in()).get("/console")


async def test_endpoints_and_merchants_are_switched_with_a_reason_that_is_kept(place):
    named = await place.data.everything()
    person = await Person(place, "a").signed_in()
    path = f"/console/deliveries/{named['endpoint']}"
    page = await person.get(path)
    assert (
        await person.post(
            f"{path}/do/pause", page.replace("do/pause", "do/pause"), reason="it floods the log"
        )
    ).status_code == 303
    assert "paused (asked)" in await person.get(path)
    assert (
        await person.post(f"{path}/do/resume", await person.get(path), reason="mended")
    ).status_code == 303
    merchants = await person.get("/console/merchants")
    assert (
        await person.post("/console/merchants/default", merchants, what="disable", reason="x")
    ).status_code == 422
    assert (
        await person.post("/console/merchants/default", merchants, what="disable", reason="a stolen key")
    ).status_code == 303
    assert "disabled" in await person.get("/console/merchants")
    trail = await person.get("/console/actions")
    assert "it floods the log" in trail
    assert "a stolen key" in trail
    (forged,) = await place.api.sql(
        "SELECT count(*) AS number FROM console_actions WHERE outcome = 'accepted'"
    )
    assert forged.number >= 4
    assert await approvals.waiting(place.api.services.db, place.api.services.encryptor) == []
    assert HOSTILE not in trail
