"""What the console proves before money moves: what is sent twice, who approves, what is at stake, and what
stays true of it beside changes; over ASGI, on a real database.
"""

from __future__ import annotations

import json
import re
from html import unescape
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from orchestrator import passwords
from orchestrator.console import access, actions, orders
from orchestrator.domain.attention import WAYS_OUT, AttentionCode, Way
from orchestrator.store.console import approvals, lists, runs, sessions, users
from tests.integration.api.test_commands import EVERY
from tests.integration.api.test_console import ORIGIN, Person, ended, hidden, place  # noqa: F401 - a fixture
from tests.integration.api.test_console_people import CHOSEN, login, signed_in_by_link

if TYPE_CHECKING:
    import httpx

pytestmark = pytest.mark.anyio

ENTRIES = """
    INSERT INTO audit_entries (checkout_id, sequence, at, action, entry, key_id, mac)
    SELECT checkout_id, n, at, action, replace(entry, 'checkout:received', 'step-' || n), key_id, mac
      FROM audit_entries, generate_series(2, :last) n WHERE checkout_id = :id AND sequence = 1
"""
COPIES = """
    INSERT INTO checkouts (id, merchant_id, order_ref, state, deadline, ended_at, currency, amount, audit_sequence, audit_head, event_sequence,
                           correlation_id, attention, attention_since, attention_details)
    SELECT gen_random_uuid(), 1, 'K-' || n, 'expired', clock(), clock(), 'DKK', 100, 1, '', 0, 'c',
           CASE WHEN n % 2 = 0 THEN 'credited' ELSE 'over_refund' END, clock(), '{}' FROM generate_series(1, 1100) n
"""


async def bulk(place, person: Person, path: str) -> runs.Run:  # noqa: F811
    """Begin a bulk action from its preview, and return it once it is carried out."""
    page = await person.get(f"/console/bulk/new?{path}")
    begun = await person.post("/console/bulk/new", page, reason="seen by the night shift")
    assert begun.status_code == 303, begun.text
    place.console.run_worker.start()
    return await ended(place.api.services, UUID(begun.headers["location"].rpartition("/")[2]))


async def refund(person: Person, checkout: UUID, amount: str = "139.00") -> tuple[str, str]:
    """Return the address of a refund, and the page that asks to confirm it."""
    shown = await person.get(f"/console/orders/{checkout}")
    link = unescape(re.search(r'href="([^"]*/do/refund[^"]*)"', shown)[1])
    path = link.partition("?")[0]
    confirm = await person.post(path, await person.get(link), amount=amount, reason="returned by the shopper")
    return path, confirm.text


async def asked(place, person: Person, checkout: UUID) -> str:  # noqa: F811
    """Ask for a refund above the limit; return the address of its approval."""
    path, confirm = await refund(person, checkout)
    assert (await person.post(path, confirm)).headers["location"].endswith("?done=waiting")
    (row,) = await place.api.sql(
        "SELECT id FROM console_approvals WHERE checkout_id = :id AND state = 'waiting'", id=checkout
    )
    return f"/console/approvals/{row.id}"


async def test_many_questions_are_dismissed_only_where_that_answers_them(place):  # noqa: F811
    asking = {code: await place.data.asking(code, number) for number, code in enumerate(AttentionCode)}
    person = await Person(place, "a").signed_in()
    run = await bulk(place, person, "kind=dismiss&attention=any")
    assert run.number == len(AttentionCode)
    assert "<td>seen by the night shift</td>" in await person.get("/console/actions")
    dismissed = {code for code, ways in WAYS_OUT.items() if Way.DISMISS in ways}
    dismissed.remove(AttentionCode.OPERATION_UNCLEAR)
    rows = await place.api.sql("SELECT checkout_id FROM commands")
    assert {row.checkout_id for row in rows} == {asking[code] for code in dismissed}
    refused = await place.api.sql("SELECT sentence FROM console_run_items WHERE outcome = 'refused'")
    assert {row.sentence for row in refused} == {
        "this question is decided order by order, on the page of the order"
    }
    # One by one, money that is only kept or returned is not dismissed by any way.
    for code, held in ((AttentionCode.SURPLUS_PAYMENT, "129.00"), (AttentionCode.LATE_PAYMENT, "139.00")):
        address = f"/console/orders/{asking[code]}/do/resolve"
        form = await person.get(f"{address}?decision=dismiss")
        assert f"{held} DKK): say keep or return" in unescape(form).lower().replace("dkk", "DKK")
        answer = await place.api.client.post(
            f"/v1/checkouts/{asking[code]}/resolve",
            json={"decision": "dismiss"},
            headers=place.api.bearer(scopes=EVERY),
        )
        assert answer.status_code == 422
        assert answer.json()["type"].endswith("not-decidable")


async def test_a_form_above_the_limit_that_is_sent_twice_asks_once(place):  # noqa: F811
    checkout = await place.data.paid("A-1", captured=13900)
    first, other = await Person(place, "first").signed_in(), await Person(place, "other").signed_in()
    path, confirm = await refund(first, checkout)
    for _ in range(2):
        assert (await first.post(path, confirm)).headers["location"].endswith("?done=waiting")
        await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=checkout)
    assert await place.api.count("console_approvals") == 1
    assert (await first.post(path, confirm, amount="138.00")).status_code == 409
    token = re.search(r'name="token" value="(\w+)"', await other.get(f"/console/orders/{checkout}"))[1]
    assert (await other.post(path, confirm, token=token)).status_code == 409
    assert await place.api.count("console_approvals") == 1
    (note,) = await place.api.sql("SELECT facts FROM console_actions WHERE outcome = 'waiting'")
    assert note.facts["amount"] == 13900


async def test_approvals_that_have_expired_hide_none(place):  # noqa: F811
    checkout, other = [await place.data.paid(f"A-{number}", captured=13900) for number in range(2)]
    person = await Person(place, "first").signed_in()
    expired = await asked(place, person, checkout)
    columns = (
        "merchant_id, checkout_id, kind, arguments, version, amount, currency, reason, requested_by, mac"
    )
    await place.api.sql(
        f"INSERT INTO console_approvals (id, {columns}, expires_at) "
        f"SELECT CAST('00000000-0000-7000-8000-' || lpad(n::text, 12, '0') AS uuid), {columns}, clock() - n * interval '1 day' "
        f"FROM console_approvals, generate_series(1, {approvals.MOST}) n"
    )
    await place.api.sql("UPDATE console_approvals SET expires_at = clock() - interval '1 minute'")
    await place.api.sql(
        "UPDATE console_approvals SET expires_at = clock() - interval '31 days' WHERE id < '00000000-0000-7000-8000-000000000011'"
    )
    path = await asked(place, person, other)
    db, encryptor = place.api.services.db, place.api.services.encryptor
    (found,) = await approvals.waiting(db, encryptor)
    assert path.endswith(str(found.id))
    assert await approvals.waiting(db, encryptor, checkout=checkout) == []
    assert path in await person.get("/console/approvals")
    assert expired.startswith("/console/approvals/")
    rows = await place.api.sql("SELECT state, count(*) AS number FROM console_approvals GROUP BY state")
    assert {row.state: row.number for row in rows} == {"outdated": 10, "waiting": approvals.MOST - 10 + 2}


async def test_an_approval_that_a_process_left_in_the_middle_is_shown_and_finished_once(place, monkeypatch):  # noqa: F811
    first, second = await Person(place, "first").signed_in(), await Person(place, "second").signed_in()
    third = await Person(place, "third").signed_in()
    stored, unstored, moved = [await place.data.paid(f"A-{number}", captured=13900) for number in range(3)]

    async def killed(*_, **__):
        raise RuntimeError

    paths = {checkout: await asked(place, first, checkout) for checkout in (stored, unstored, moved)}
    for checkout, ends in (
        (stored, (approvals, "executed")),
        (unstored, (actions, "store")),
        (moved, (actions, "store")),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(*ends, killed)
            page = await second.get(paths[checkout])
            assert (await second.post(paths[checkout], page, decision="approve")).status_code == 500
        for listing in ("/console/approvals", f"/console/orders/{checkout}"):
            assert "approved, not stored yet: open it to finish" in await second.get(listing)
    for checkout in (stored, moved):
        await place.api.sql("UPDATE checkouts SET version = version + 1 WHERE id = :id", id=checkout)
    assert ['value="approve"' in await third.get(path) for path in paths.values()] == [True, True, False]
    answers = {
        checkout: await third.post(path, await third.get(path), decision="approve")
        for checkout, path in paths.items()
    }
    assert [answer.status_code for answer in answers.values()] == [303, 303, 409]
    rows = await place.api.sql("SELECT checkout_id, actor FROM commands ORDER BY id")
    assert {row.checkout_id for row in rows} == {stored, unstored}
    assert {row.actor for row in rows} == {"operator:first approved by operator:second"}
    found = await place.api.sql("SELECT state, command_id IS NULL AS open FROM console_approvals ORDER BY id")
    assert [(row.state, row.open) for row in found] == [("approved", False)] * 2 + [("outdated", True)]
    assert "open it to finish" not in await second.get("/console/approvals")
    shown = await third.get(paths[stored])
    assert "It was approved by operator:second." in shown
    again = await third.post(paths[stored], shown, decision="approve")
    assert (again.status_code, "Decided already" in again.text) == (409, True)
    assert await place.api.count("commands") == 2


async def test_a_user_does_not_approve_for_the_person_who_made_its_link(place):  # noqa: F811
    checkout = await place.data.paid("A-1", captured=13900)
    anna, eve = await Person(place, "anna").signed_in(), await Person(place, "eve").signed_in()
    path = await asked(place, anna, checkout)

    async def added(admin: Person, name: str, role: str) -> Person:
        page = await admin.get("/console/users")
        linked = await admin.post("/console/users", page, name=name, role=role, reason="new in the team")
        return await signed_in_by_link(place, linked.text, name)

    async def approved(person: Person) -> int:
        page = await person.get(path)
        return (
            await person.post(path, page, decision="approve", token=hidden(page, path)["token"])
        ).status_code

    bob = await added(anna, "bob", "approver")
    assert await approved(bob) == 409
    assert "may be the same person" in unescape(await bob.get(path))
    # Nor by one more user in between.
    carol = await added(anna, "carol", "admin")
    dora = await added(carol, "dora", "approver")
    assert (await approved(carol), await approved(dora)) == (409, 409)
    assert await place.api.count("commands") == 0
    # Who made the link cannot be changed outside.
    await place.api.sql("UPDATE console_users SET linked_by = 'operator:eve' WHERE name = 'bob'")
    assert not (await users.by_name(place.api.services.db, place.api.services.encryptor, "bob")).authentic
    await place.api.sql("UPDATE console_users SET linked_by = 'operator:anna' WHERE name = 'bob'")
    # A link of which the maker is not known shows no second person.
    db, encryptor = place.api.services.db, place.api.services.encryptor
    old = encryptor.sign(
        users.PURPOSE,
        users._signed(
            {"name": "bob", "role": "approver", "password": None, "disabled": False, "linked_by": None}
        ),
    )
    await place.api.sql("UPDATE console_users SET linked_by = NULL, mac = :mac WHERE name = 'bob'", mac=old)
    await place.api.sql("UPDATE console_users SET password = NULL WHERE name = 'bob'")
    assert (await users.by_name(db, encryptor, "bob")).authentic
    assert await users.makers(db, encryptor, "bob") == {users.UNKNOWN}
    assert "is not known: it is from before schema 0024" in unescape(await bob.get(path))
    page = await eve.get("/console/users")
    relinked = await eve.post("/console/users/bob", page, what="link", reason="a link of another admin")
    bob = await signed_in_by_link(place, relinked.text, "bob")
    assert await approved(bob) == 303
    (row,) = await place.api.sql("SELECT actor FROM commands")
    assert row.actor == "operator:anna approved by operator:bob"


async def test_a_link_hides_no_link_before_it_and_its_maker_is_no_second_person(place):  # noqa: F811
    anna = await Person(place, "anna").signed_in()

    async def linked(admin: Person, whose: str, /, **values: str) -> httpx.Response:
        page = await admin.get("/console/users")
        values |= {"token": hidden(page, "/console/users")["token"], "reason": "new in the team"}
        return await admin.post(f"/console/users/{whose}".removesuffix("/"), page, **values)

    async def added(admin: Person, name: str, role: str) -> Person:
        answer = await linked(admin, "", name=name, role=role)
        return await signed_in_by_link(place, answer.text, name)

    bob = await added(anna, "bob", "admin")
    # Neither one's own link, nor that of the admin from whom it comes, over one more admin either.
    own = await linked(bob, "bob", what="link")
    assert (own.status_code, "Another admin" in unescape(own.text)) == (409, True)
    carol = await added(bob, "carol", "admin")
    circle = await linked(carol, "bob", what="link")
    assert (circle.status_code, "comes from this user" in unescape(circle.text)) == (409, True)
    assert 'action="/console/users/bob"' not in await bob.get("/console/users")
    # Who made a user's link does not approve what that user asks for.
    checkout = await place.data.paid("A-1", captured=13900)
    path = await asked(place, carol, checkout)
    for maker in (bob, anna):
        page = await maker.get(path)
        assert "You made the link of operator:carol" in unescape(page)
        answer = await maker.post(path, page, decision="approve", token=hidden(page, path)["token"])
        assert answer.status_code == 409
    assert await place.api.count("commands") == 0


async def test_a_bulk_action_has_what_its_preview_showed_however_many_orders_come(place, monkeypatch):  # noqa: F811
    monkeypatch.setattr(lists, "WINDOW", 5)
    shown = [await place.data.order(f"W-{number}") for number in range(20)]
    person = await Person(place, "a").signed_in()
    path = "/console/bulk/new"
    page = await person.get(f"{path}?kind=retry&state=received")
    assert "Retry now: 20 orders" in page
    await place.data.order("W-LATER")
    await place.data.paid("W-PAID")
    begun = await person.post(path, page, reason="the gateway was down")
    assert begun.status_code == 303, begun.text
    rows = await place.api.sql("SELECT checkout_id FROM console_run_items")
    assert {row.checkout_id for row in rows} == set(shown)
    # As many others are another choice, and what lies behind the bound of a reading is named.
    page = await person.get(f"{path}?kind=retry&state=received")
    for checkout, state in ((shown[0], "expired"), (shown[1], "expired")):
        await place.api.sql("UPDATE checkouts SET state = :state WHERE id = :id", state=state, id=checkout)
    assert (await person.post(path, page, reason="the gateway was down")).status_code == 409
    monkeypatch.setattr(lists, "MOST_READ", 10)
    page = await person.get(f"{path}?kind=retry&state=received")
    assert "The youngest 10 orders were read" in page
    assert "Retry now: 9 orders" in page


async def test_an_order_that_no_key_decrypts_stops_no_bulk_action(place):  # noqa: F811
    lost, other = await place.data.order("L-1"), await place.data.order("L-2")
    await place.api.sql(
        "UPDATE intents SET data_key = (SELECT data_key FROM intents WHERE checkout_id = :other) WHERE checkout_id = :lost",
        lost=lost,
        other=other,
    )
    person = await Person(place, "a").signed_in()
    run = await bulk(place, person, "kind=retry&state=received")
    assert (run.state, run.accepted, run.refused) == ("done", 1, 1)
    page = await person.get(f"/console/bulk/{run.id}")
    assert "no key of this installation decrypts it" in page


async def test_what_is_at_stake_is_what_our_books_hold(place):  # noqa: F811
    checkout = await place.data.asking(AttentionCode.SURPLUS_PAYMENT, 1)
    await place.api.sql("UPDATE payments SET reserved = 20000 WHERE role = 'surplus'")
    details = {"payments": [{"transaction_id": "T-0", "amount": 5000, "currency": "DKK"}]}
    await place.api.sql(
        "UPDATE checkouts SET attention_details = CAST(:said AS jsonb)", said=json.dumps(details)
    )
    person, second = await Person(place, "a").signed_in(), await Person(place, "b").signed_in()
    path = f"/console/orders/{checkout}/do/resolve"
    form = await person.get(f"{path}?decision=return")
    assert "Return 200.00 DKK" in form
    assert "above the limit" in form
    answer = await person.post(path, form, reason="paid twice")
    assert answer.headers["location"].endswith("?done=waiting")
    (row,) = await place.api.sql("SELECT id, amount, currency FROM console_approvals")
    assert (row.amount, row.currency) == (20000, "DKK")
    # The amount has changed since: what was asked for is not what would be done.
    await place.api.sql("UPDATE payments SET reserved = 90000 WHERE role = 'surplus'")
    address = f"/console/approvals/{row.id}"
    page = await second.get(address)
    assert "its amount has changed" in page
    assert (await second.post(address, page, decision="approve")).status_code == 409
    assert await place.api.count("commands") == 0
    limited = place.api.services.settings.model_copy(update={"approval_limits": {"SEK": 100, "*": 500}})
    sums = {"DKK": 40_000, "EUR": 50_001, "SEK": 9_000}
    assert actions.above_limit(limited, sums) == (50_001, "EUR")
    assert actions.above_limit(limited, sums | {"EUR": 50_000}) is None
    assert actions.above_limit(limited, {"SEK": 10_001}) == (10_001, "SEK")


async def test_the_overview_counts_orders_once_and_says_of_each_row_that_there_may_be_more(place):  # noqa: F811
    named = await place.data.everything()
    second = await place.data.endpoint()
    await place.api.sql(
        """INSERT INTO delivery_streams (endpoint_id, checkout_id, next_sequence, last_sequence, due_at)
           VALUES (:endpoint, :checkout, 1, 2, clock())""",
        endpoint=second,
        checkout=named["captured"],
    )
    payments = [{"transaction_id": f"T-{number}", "amount": 5000, "currency": "DKK"} for number in range(2)]
    await place.api.sql(
        "UPDATE checkouts SET attention_details = CAST(:said AS jsonb) WHERE id = :id",
        said=json.dumps({"payments": payments}),
        id=named["surplus_payment"],
    )
    taken_back = [{"transaction_id": "T-9", "amount": 0, "currency": "DKK"}]
    await place.api.sql(
        "UPDATE checkouts SET charged_back = 5000, attention_details = CAST(:said AS jsonb) WHERE id = :id",
        said=json.dumps({"payments": taken_back}),
        id=named["charged_back"],
    )
    person = await Person(place, "a").signed_in()

    async def row(what: str) -> str:
        place.console.live._read_at = float("-inf")
        cells = (await person.get("/console")).partition(f"{what}</a></td>")[2].partition("</tr>")[0]
        return " ".join(re.findall(r"<td[^>]*>([^<]*)</td>", cells))

    assert (await row("Paid, and the shop is not told yet")).startswith("1 139.00 DKK")
    assert (await row("Paid more than once (surplus)")).startswith("1 100.00 DKK")
    assert (await row("Charged back")).startswith("1 50.00 DKK"), "which its payments hold no more"
    assert (await row("Orders with unsent events")).startswith("1 ")
    await place.api.sql(COPIES)
    # The rows that are counted end at 1,000 together: each kind may have more.
    for what in ("Credited, not refunded", "Refunded more than was captured", "Over refund"):
        assert re.match(r"\d{1,3}\+ ", await row(what)), what
    assert (await row("Paid, and the shop is not told yet")).startswith("1 139.00 DKK")


async def test_the_page_of_an_order_shows_the_last_entries_and_verifies_one_moment(place, monkeypatch):  # noqa: F811
    checkout = await place.data.order("T-1")
    person = await Person(place, "a").signed_in()
    address = f"/console/orders/{checkout}"
    execute = lists.execute

    async def beside(tx, statement, values):
        found = await execute(tx, statement, values)
        if statement is lists._CHAIN:
            await place.api.sql(ENTRIES, id=checkout, last=130)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(lists, "execute", beside)
        verified = await person.post(f"{address}/verify", await person.get(address))
    assert verified.headers["location"].endswith("?done=verified"), verified.text
    await place.api.sql("UPDATE checkouts SET audit_sequence = 130 WHERE id = :id", id=checkout)
    page = await person.get(address)
    assert ("Step-130" in page, "Step-31" in page, "Step-30<" in page) == (True, True, False)
    assert f"orchestrator checkouts show {checkout}" in page
    monkeypatch.setattr(lists, "WINDOW", 100)
    long = await person.post(f"{address}/verify", page)
    assert (long.status_code, "orchestrator audit verify" in long.text) == (409, True)
    await place.api.sql(
        """INSERT INTO callbacks (id, merchant_id, checkout_id, kind, grade, times, body, digest, received_at)
           SELECT gen_random_uuid(), 1, :id, 'notification', 'signed', n, '', CAST(CAST(n AS text) AS bytea),
                  clock() - make_interval(mins => 200 - n) FROM generate_series(1, 120) n""",
        id=checkout,
    )
    rows = (await person.get(address)).partition('id="callbacks"')[2].partition("</section>")[0]
    times = re.findall(r'<td class="n">(\d+)</td>', rows)
    assert times == [str(number) for number in range(21, 121)]


async def test_a_change_of_a_user_ends_a_sign_in_that_has_begun(place, monkeypatch):  # noqa: F811
    services = place.api.services
    db, encryptor = services.db, services.encryptor
    matches = access.Sessions.matches
    changes = ({"disabled": True}, {"role": "viewer"}, {"password": passwords.hashed("another password")})
    for number, changed in enumerate(changes):
        name = f"user-{number}"
        await users.add(db, encryptor, name=name, role="operator", by="operator:test")
        await users.change(db, encryptor, name, password=passwords.hashed(CHOSEN))

        async def beside(self, password, stored, *, name=name, changed=changed):
            found = await matches(self, password, stored)
            await users.change(db, encryptor, name, **changed)
            return found

        with monkeypatch.context() as patched:
            patched.setattr(access.Sessions, "matches", beside)
            _, answer = await login(place, name, CHOSEN)
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
    assert await place.api.count("console_sessions") == 0
    assert (await login(place, "user-2", "another password"))[1].status_code == 303


async def test_only_the_session_of_a_link_chooses_the_first_password(place):  # noqa: F811
    services = place.api.services
    await users.add(services.db, services.encryptor, name="root", role="admin", by="operator:test")
    other = await Person(place, "root", ("console:view", "console:operate")).signed_in()
    form = await other.get("/console/password")
    refused = await other.post("/console/password", form, new=CHOSEN, again=CHOSEN)
    assert refused.status_code == 409
    assert (await users.by_name(services.db, services.encryptor, "root")).password is None
    admin = await Person(place, "admin").signed_in()
    page = await admin.get("/console/users")
    linked = await admin.post("/console/users/root", page, what="link", reason="the first sign-in")
    root = await signed_in_by_link(place, linked.text, "root")
    form = await root.get("/console/password")
    assert (await root.post("/console/password", form, new=CHOSEN, again=CHOSEN)).status_code == 303


async def test_every_session_is_listed_and_can_be_ended_one_by_one_or_by_name(place):  # noqa: F811
    services = place.api.services
    for number in range(101):
        await sessions.begin(
            services.db,
            services.encryptor,
            actor=f"user-{number % 3}",
            scopes=("console:view",),
            seconds=600,
            link=number == 100,
        )
    admin, viewer = (
        await Person(place, "admin").signed_in(),
        await Person(place, "user-1", ("console:view",)).signed_in(),
    )
    path, found, page = "/console/sessions", [], ""
    there: str | None = path
    while there:
        page = await admin.get(unescape(there))
        found += re.findall(r'name="session" value="(\w+)"', page)
        there = (re.search(r'rel="next" href="([^"]+)"', page) or [None, None])[1]
    assert len(found) == len(set(found)) == 102  # those of the two persons, and not the link
    own = await viewer.get(path)
    assert len(re.findall(r'name="session" value="', own)) == 34
    assert "user-2" not in own
    token = hidden(own, path)["token"]
    alien = await viewer.http.post(path, data={"token": token, "name": "user-0"}, headers=ORIGIN)
    assert alien.status_code == 403
    token = hidden(page, path)["token"]
    one = await admin.http.post(path, data={"token": token, "session": found[-1]}, headers=ORIGIN)
    assert one.status_code == 303
    gone = await admin.http.post(path, data={"token": token, "session": found[-1]}, headers=ORIGIN)
    assert gone.status_code == 404
    before = await place.api.count("console_sessions")
    assert (
        await admin.http.post(path, data={"token": token, "name": "user-1"}, headers=ORIGIN)
    ).status_code == 303
    left = await place.api.sql("SELECT DISTINCT actor FROM console_sessions")
    assert "user-1" not in {row.actor for row in left}
    assert before - await place.api.count("console_sessions") >= 33
    assert (await viewer.http.get(path)).status_code == 303
    (note,) = await place.api.sql(
        "SELECT facts FROM console_actions WHERE subject = 'user-1' AND action = 'session:ended' ORDER BY id DESC LIMIT 1"
    )
    assert note.facts["sessions"] >= 33


async def test_a_file_that_is_cut_says_so_and_a_page_that_takes_too_long_is_no_doubt(place, monkeypatch):  # noqa: F811
    for number in range(4):
        await place.data.order(f"C-{number}")
    person = await Person(place, "a").signed_in()
    assert "The file ends here" not in await person.get("/console/orders.csv")
    monkeypatch.setattr(orders, "MOST_EXPORTED", 3)
    lines = (await person.get("/console/orders.csv")).splitlines()
    assert (len(lines), "The file ends here" in lines[-1], "3 orders" in lines[-1]) == (5, True, True)
    monkeypatch.setattr(orders, "MOST_EXPORTED", 4)
    assert "The file ends here" not in await person.get("/console/orders.csv")
    monkeypatch.setattr(lists, "WINDOW", 2)
    monkeypatch.setattr(lists, "MOST_READ", 2)
    lines = (await person.get("/console/orders.csv?state=completed")).splitlines()
    assert (len(lines), "0 orders" in lines[-1]) == (2, True)

    async def slow(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(lists, "checkouts", slow)
    said = await person.get("/console/orders", 503)
    assert "took too long" in said
    assert "may or may not be stored" not in said
