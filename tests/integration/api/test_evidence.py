"""Evidence: what a callback proves, what a callback without proof is answered, and where it came from."""

from __future__ import annotations

import hmac
import html
import json
import time
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import httpx
import pytest
from structlog.testing import capture_logs

from orchestrator import callback_urls
from orchestrator.api.callbacks import UNPROVEN_LIMIT
from orchestrator.store import inbox
from tests.conftest import make_settings
from tests.integration.api.test_callbacks import BODY, FORM, call
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent, path_of, serving, without_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from orchestrator.api.callback_intake import CallbackIntake

pytestmark = pytest.mark.anyio

SECRET = "0123456789abcdef"
SHOP = {
    "gateway_url": "https://gateway.example.com", "merchant_api_url": None, "username": "u", "password": "p",
}  # fmt: skip
MARKER = "Anna-Berg-marker-7461"


def signed(body: bytes = BODY, *, secret: str = SECRET, age: float = 0) -> dict[str, str]:
    stamp = str(int(time.time() - age))
    signature = hmac.digest(secret.encode(), body + b"." + stamp.encode(), "sha256").hex()
    return {"AltaPay-Signature": f"t={stamp};s0={signature}"}


@asynccontextmanager
async def checking(database_url: str, **changes: object) -> AsyncIterator[Api]:
    """An installation whose merchant has a secret, and whose merchants have been read."""
    settings = make_settings(database_url=database_url, **{"gateway_secrets": (SECRET,), **changes})
    async with serving(settings) as api:
        await api.services.merchants.everyone()
        yield api


def callback_intake(api: Api) -> CallbackIntake:
    return api.client._transport.app.state.callback_intake


class Page(HTMLParser):
    """What a browser finds in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str | None] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "a":
            self.links.append(dict(attrs).get("href"))


UNPROVEN = {
    "missing": {},
    "wrong": signed(secret="not the merchant's"),
    "stale": signed(age=2 * 86400),
}


# ── Grades ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["success", "failure", "notification"])
async def test_what_proves_to_be_the_gateways_is_answered_as_ever(database_url, kind):
    async with checking(database_url) as api:
        answer = await call(api, getattr(api.urls(await api.taken()), kind), BODY, **signed())
        assert answer.status_code == (200 if kind == "notification" else 303)
        assert [row.grade for row in await api.sql("SELECT grade FROM callbacks")] == ["signed"]
        assert callback_intake(api).arrived == {(kind, "signed"): 1}
        assert not callback_intake(api).unproven


@pytest.mark.parametrize("grade", UNPROVEN)
async def test_a_notification_without_proof_is_401_and_stored_and_causes_a_lookup(database_url, grade):
    async with checking(database_url) as api:
        checkout = await api.taken()
        api.hint_publisher.published.clear()
        answer = await call(api, api.urls(checkout).notification, BODY, **UNPROVEN[grade])
        document = problem(answer, 401, "unproven-callback")
        assert document["detail"] == "nothing in this callback proves that the gateway sent it"
        assert answer.headers["www-authenticate"] == "AltaPay-Signature"
        assert [row.grade for row in await api.sql("SELECT grade FROM callbacks")] == [grade]
        assert api.hint_publisher.published == [("callbacks", UUID(checkout))]
        assert (await api.sql("SELECT wake FROM checkouts"))[0].wake == 1
        assert callback_intake(api).arrived == {("notification", grade): 1}
        assert callback_intake(api).unproven == {("notification", grade, "outside"): 1}


async def test_of_what_proves_nothing_little_is_kept(database_url):
    async with checking(database_url) as api:
        checkout = await api.taken()
        body = BODY + b"&xml=" + b"x" * 200_000
        for url in (
            api.urls(checkout).notification,
            callback_urls.merchant_url(api.services.encryptor, "", "default"),
        ):
            assert (await call(api, url, body)).status_code == 401
        assert (await call(api, api.urls(checkout).notification, body, **signed(body))).status_code == 200
        rows = await api.sql("SELECT grade, length(body) AS size FROM callbacks ORDER BY received_at, id")
        assert [(row.grade, row.size > 200_000) for row in rows] == [
            ("missing", False),
            ("missing", False),
            ("signed", True),
        ]
        assert max(row.size for row in rows[:2]) < UNPROVEN_LIMIT + 100


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("success", "https://shop.example/paid?lang=da&orderId=A-1&checkoutId={}"),
        ("failure", "https://shop.example/not-paid?orderId=A-1&checkoutId={}"),
    ],
)
@pytest.mark.parametrize("grade", UNPROVEN)
async def test_a_browser_callback_without_proof_is_a_401_page_that_leads_on_to_the_shop(
    database_url, kind, target, grade
):
    async with checking(database_url) as api:
        checkout = await api.taken()
        answer = await call(api, getattr(api.urls(checkout), kind), BODY, **UNPROVEN[grade])
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "location" not in answer.headers
        page = Page(answer.text)
        assert page.links == [target.format(checkout)]
        assert not page.tags & {"script", "form", "img", "link", "iframe"}
        assert [row.grade for row in await api.sql("SELECT grade FROM callbacks")] == [grade]
        assert api.hint_publisher.published[-1] == ("callbacks", UUID(checkout))


async def test_the_page_of_a_shop_is_escaped(database_url):
    async with checking(database_url) as api:
        checkout = UUID(await api.taken())
        evil = "https://shop.example/?a=\"><script>alert(1)</script>&b='{page}'"
        pages = {"success": evil, "failure": evil}
        url = callback_urls.callback_urls(api.services.encryptor, "", checkout, pages, merchant_id=1).success
        answer = await call(api, url)
        assert answer.status_code == 401
        page = Page(answer.text)
        assert page.links == [f"{evil}&checkoutId={checkout}"]
        assert "script" not in page.tags
        assert html.escape(f"{evil}&checkoutId={checkout}") in answer.text


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_shoppers_own_browser_is_never_asked_for_a_proof(database_url, method):
    async with checking(database_url, require_gateway_network=True) as api:
        answer = await api.client.request(
            method, path_of(api.urls(await api.taken()).redirect), headers=FORM | UNPROVEN["wrong"]
        )
        assert answer.status_code == 303
        rows = await api.sql("SELECT grade, network, sender FROM callbacks")
        assert [tuple(row) for row in rows] == [("unchecked", "unchecked", None)]
        assert not callback_intake(api).unproven


async def test_a_terminals_checksum_proves_it_too(database_url):
    body = (
        b"amount=139.00&currency=208&shop_orderid=000000081&status=succeeded"
        b"&checksum=3b007b8c3869741109e016985e5289fd"
    )
    async with checking(database_url, gateway_secrets=("another", "s3cret")) as api:
        assert (await call(api, api.urls(await api.taken()).notification, body)).status_code == 200
        assert [row.grade for row in await api.sql("SELECT grade FROM callbacks")] == ["checksum"]


async def test_a_replay_is_refused_once_its_signature_is_too_old(database_url):
    headers = signed(age=100)
    async with checking(database_url) as api:
        url = api.urls(await api.taken()).notification
        assert (await call(api, url, BODY, **headers)).status_code == 200
    async with checking(database_url, callback_max_age=60) as api:
        assert (await call(api, url, BODY, **headers)).status_code == 401
        # It is the same callback: what proves less takes nothing back from what proved more.
        rows = await api.sql("SELECT grade, times FROM callbacks")
        assert [tuple(row) for row in rows] == [("signed", 2)]


# ── Whose secrets ─────────────────────────────────────────────────────────────────────────────────────────


async def test_each_merchants_callbacks_are_graded_with_its_own_secrets(database_url):
    async with checking(database_url) as api:
        await api.services.merchants.add("second", **SHOP, callback_secrets=("theirs",))
        second = await api.services.merchants.named("second")
        await api.services.merchants.everyone()
        theirs = (await api.post(intent(), merchant="second")).json()["id"]
        urls = api.urls(theirs, merchant_id=second.id)
        assert (await call(api, urls.notification, BODY, **signed(secret="theirs"))).status_code == 200
        assert (await call(api, urls.notification, b"x=1", **signed(b"x=1"))).status_code == 401
        ours = api.urls(await api.taken())
        assert (await call(api, ours.notification, BODY, **signed())).status_code == 200
        assert (
            await call(api, ours.notification, b"x=1", **signed(b"x=1", secret="theirs"))
        ).status_code == 401


async def test_a_merchant_without_a_secret_is_not_checked(database_url):
    async with checking(database_url, gateway_secrets=()) as api:
        assert (await call(api, api.urls(await api.taken()).notification)).status_code == 200
        assert [row.grade for row in await api.sql("SELECT grade FROM callbacks")] == ["unchecked"]


async def test_while_a_secret_is_replaced_both_work_and_then_only_the_new_secret(database_url):
    async with checking(database_url) as api:
        merchants = api.services.merchants
        await merchants.set_secrets("default", ("the newer secret", SECRET))
        await merchants.everyone()
        url = api.urls(await api.taken()).notification
        bodies = iter([b"n=%d" % number for number in range(9)])

        async def status(secret: str) -> int:
            body = next(bodies)
            return (await call(api, url, body, **signed(body, secret=secret))).status_code

        assert [await status(SECRET), await status("the newer secret")] == [200, 200]
        await merchants.set_secrets("default", ("the newer secret",))
        await merchants.everyone()
        assert [await status(SECRET), await status("the newer secret")] == [401, 200]


async def test_nothing_is_called_wrong_before_the_merchant_is_known_or_by_a_link_of_the_older_form(
    database_url,
):
    settings = make_settings(database_url=database_url, gateway_secrets=(SECRET,))
    async with serving(settings) as api:
        checkout = uuid4()
        url = api.urls(checkout).notification
        assert (await call(api, url, BODY, **UNPROVEN["wrong"])).status_code == 200
        await api.services.merchants.everyone()
        assert (await call(api, url, b"x=1", **UNPROVEN["wrong"])).status_code == 401
        tag = api.services.encryptor.sign("callback-link", b"notification\0" + checkout.bytes + b"\0")
        older = f"/callbacks/notification/{checkout}/.{callback_urls._encode(tag)}"
        assert (await call(api, older, b"x=2", **UNPROVEN["wrong"])).status_code == 200
        grades = [row.grade for row in await api.sql("SELECT grade FROM callbacks ORDER BY id")]
        assert grades == ["unchecked", "wrong", "unchecked"]


async def test_grading_makes_no_query_so_it_works_while_postgres_is_away(database_url):
    async with serving(without_database(gateway_secrets=(SECRET,))) as api:
        async with checking(database_url) as elsewhere:
            known = elsewhere.services.merchants
        object.__setattr__(api.services, "merchants", known)
        urls = api.urls(uuid4())
        assert (await call(api, urls.success, BODY, **signed())).status_code == 303
        answer = await call(api, urls.success, BODY, **UNPROVEN["wrong"])
        assert (answer.status_code, len(Page(answer.text).links)) == (401, 1)
        problem(await call(api, urls.notification, BODY, **UNPROVEN["wrong"]), 503, "database-away")


# ── Guesses and repeats ───────────────────────────────────────────────────────────────────────────────────


async def test_a_forged_callback_sent_before_does_not_suppress_the_real_callback(database_url):
    async with checking(database_url) as api:
        checkout = await api.taken()
        url = api.urls(checkout).notification
        assert (await call(api, url)).status_code == 401
        await api.sql("UPDATE callbacks SET handled_at = clock()")
        api.hint_publisher.published.clear()
        assert (await call(api, url)).status_code == 401
        assert api.hint_publisher.published == [], "it was looked up already"
        assert (await call(api, url, BODY, **signed())).status_code == 200
        assert api.hint_publisher.published == [("callbacks", UUID(checkout))]
        rows = await api.sql("SELECT grade, times, handled_at FROM callbacks")
        assert [tuple(row) for row in rows] == [("signed", 3, None)]
        assert "altapay-signature" in (await stored_sender(api))[0].headers


async def test_an_empty_callback_without_proof_wakes_once_and_with_proof_each_time(database_url):
    async with checking(database_url) as api:
        url = api.urls(await api.taken()).notification
        wakes = []
        for headers in ({}, {}, signed(b""), signed(b"")):
            api.hint_publisher.published.clear()
            await call(api, url, b"", **headers)
            wakes.append(len(api.hint_publisher.published))
            await api.sql("UPDATE callbacks SET handled_at = clock()")
        assert wakes == [1, 0, 1, 1]


# ── Where it came from ────────────────────────────────────────────────────────────────────────────────────


async def from_(
    api: Api, peer: str, forwarded: str | None = None, body: bytes = BODY, **headers: str
) -> httpx.Response:
    transport = httpx.ASGITransport(api.client._transport.app, client=(peer, 4711))
    url = api.urls(await api.taken()).notification
    if forwarded is not None:
        headers["X-Forwarded-For"] = forwarded
    async with httpx.AsyncClient(transport=transport, base_url="http://pay.example") as client:
        return await client.post(path_of(url), content=body, headers=FORM | headers)


async def stored_sender(api: Api) -> tuple[inbox.Sender, str]:
    (row,) = await api.sql(
        "SELECT b.sender, b.network, b.checkout_id, i.data_key FROM callbacks b JOIN intents i USING (checkout_id)"
    )
    keys = api.services.encryptor, row.checkout_id, row.data_key
    return inbox.decrypt_sender(*keys, bytes(row.sender)), row.network


async def stored_source(api: Api) -> tuple[str | None, str]:
    sender, network = await stored_sender(api)
    return sender.source, network


@pytest.mark.parametrize(
    ("depth", "came", "expected"),
    [
        (0, ("185.206.120.7", None), ("185.206.120.7", "inside")),
        (0, ("2a10:a200::1", None), ("2a10:a200::1", "inside")),
        (0, ("203.0.113.9", None), ("203.0.113.9", "outside")),
        # Without a proxy of ours the header is set by the caller.
        (0, ("203.0.113.9", "185.206.120.7"), ("203.0.113.9", "outside")),
        (1, ("10.0.0.1", "185.206.120.7"), ("185.206.120.7", "inside")),
        (1, ("10.0.0.1", "185.206.120.7, 203.0.113.9"), ("203.0.113.9", "outside")),
        (2, ("10.0.0.1", "185.206.120.7, 203.0.113.9, 10.0.0.2"), ("203.0.113.9", "outside")),
        (2, ("10.0.0.1", "6.6.6.6, [::ffff:185.203.232.129]:443, 10.0.0.2"), ("185.203.232.129", "inside")),
        (2, ("10.0.0.1", "185.206.120.7"), ("10.0.0.1", "unchecked")),
        (1, ("10.0.0.1", "unknown"), ("10.0.0.1", "unchecked")),
        (1, ("185.206.120.7", None), ("185.206.120.7", "unchecked")),
    ],
)
async def test_the_source_is_what_our_own_proxies_saw_and_nothing_that_a_caller_made_up(
    database_url, depth, came, expected
):
    async with checking(database_url, trusted_proxies=depth) as api:
        assert (await from_(api, *came, **signed())).status_code == 200
        assert await stored_source(api) == expected


async def test_an_empty_list_of_networks_is_not_checked(database_url):
    async with checking(database_url, gateway_networks=()) as api:
        assert (await from_(api, "203.0.113.9", **signed())).status_code == 200
        assert await stored_source(api) == ("203.0.113.9", "unchecked")


@pytest.mark.parametrize(
    ("peer", "status"), [("203.0.113.9", 401), ("185.206.120.7", 200), ("185.203.233.129", 200)]
)
@pytest.mark.parametrize("secrets", [(SECRET,), ()])
async def test_where_it_counts_what_comes_from_elsewhere_is_unproven_even_if_signed(
    database_url, peer, status, secrets
):
    async with checking(database_url, require_gateway_network=True, gateway_secrets=secrets) as api:
        assert (await from_(api, peer, **signed())).status_code == status
        assert await api.count("callbacks") == 1
        assert len(api.hint_publisher.published) == 2, "the intake and the callback"
        assert bool(callback_intake(api).unproven) is (status == 401)


# ── Floods ────────────────────────────────────────────────────────────────────────────────────────────────


async def test_beyond_the_caps_nothing_is_stored_and_the_answer_is_the_same(database_url):
    async with checking(database_url, callbacks_unproven_limit=3, callbacks_limit=6) as api:
        checkout = await api.taken()
        urls = api.urls(checkout)
        with capture_logs() as lines:
            for number in range(10):
                assert (await call(api, urls.notification, b"guess=%d" % number)).status_code == 401
                assert (await call(api, urls.success, b"guess=%d" % number)).status_code == 401
        assert await api.count("callbacks") == 3
        statuses = []
        for number in range(5):
            body = b"real=%d" % number
            statuses.append((await call(api, urls.notification, body, **signed(body))).status_code)
        assert statuses == [200] * 5
        rows = await api.sql("SELECT grade, count(*) FROM callbacks GROUP BY 1 ORDER BY 1")
        assert [tuple(row) for row in rows] == [("missing", 3), ("signed", 3)]
        counted = callback_intake(api)
        assert sum(counted.arrived.values()) == 25
        assert counted.over_limit == {
            ("notification", "missing"): 8,
            ("success", "missing"): 9,
            ("notification", "signed"): 2,
        }
        # Logged once a minute, however many they are.
        told = [(line["event"], line.get("kind")) for line in lines if line["log_level"] == "warning"]
        # The security log counts each refusal by itself, within bounds of its own.
        refused = [line for line in told if line[0] == "callback_without_proof"]
        assert 0 < len(refused) <= 20
        assert sorted(line for line in told if line not in refused) == [
            ("callback_over_limit", "success"),
            ("callback_unproven", "notification"),
            ("callback_unproven", "success"),
        ]


async def test_neither_body_nor_address_of_a_callback_reaches_the_log(database_url):
    body = f"cardholder={MARKER}&amount=x".encode()
    async with checking(database_url, callbacks_unproven_limit=1) as api:
        urls = api.urls(await api.taken())
        mine = path_of(callback_urls.merchant_url(api.services.encryptor, "", "default"))
        with capture_logs() as lines:
            for number in range(3):
                for url in (urls.success, urls.notification, mine):
                    await call(api, url, body + b"%d" % number)
        events = {line["event"] for line in lines}
        assert {"callback_unproven", "callback_over_limit", "unmatched_callback_stored"} <= events
        text = json.dumps(lines, default=str)
        signatures = [path_of(url).rsplit("/", 1)[1] for url in (urls.success, urls.notification, mine)]
        assert not [hidden for hidden in (MARKER, "cardholder", *signatures) if hidden in text]
