from __future__ import annotations

import asyncio
import gzip
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from orchestrator.api.callback_intake import FIRST_PAUSE, TIMEOUT
from orchestrator.api.callbacks import BODY_LIMIT, VISIT_LIMIT
from orchestrator.store import inbox
from tests.conftest import make_settings
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, path_of, serving, without_database

if TYPE_CHECKING:
    from orchestrator.settings import Settings

pytestmark = pytest.mark.anyio

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
BODY = b"shop_orderid=A-1&transaction_id=7&status=succeeded"


async def call(api: Api, url: str | None, body: bytes = BODY, **headers: str):
    return await api.client.post(path_of(url), content=body, headers=FORM | headers)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("success", "https://shop.example/paid?lang=da&orderId=A-1&checkoutId={}"),
        ("failure", "https://shop.example/not-paid?orderId=A-1&checkoutId={}"),
    ],
)
async def test_a_browser_callback_is_stored_wakes_and_redirects_the_shopper(api: Api, kind, target):
    checkout = await api.taken()
    answer = await call(api, getattr(api.urls(checkout), kind))
    assert (answer.status_code, answer.headers["location"]) == (303, target.format(checkout))
    assert answer.headers["referrer-policy"] == "no-referrer"
    row = (await api.sql("SELECT checkout_id, kind, grade, body FROM callbacks"))[0]
    assert (str(row.checkout_id), row.kind, row.grade) == (checkout, kind, "unchecked")
    key = (await api.sql("SELECT data_key FROM intents"))[0].data_key
    assert inbox.decrypt_body(api.services.encryptor, UUID(checkout), key, bytes(row.body)) == BODY
    assert api.hint_publisher.published[-1] == ("callbacks", UUID(checkout))
    assert (await api.sql("SELECT wake FROM checkouts"))[0].wake == 1


async def test_a_notification_is_acknowledged(api: Api):
    answer = await call(api, api.urls(await api.taken()).notification)
    assert (answer.status_code, answer.text) == (200, "Acknowledged")
    assert await api.count("callbacks") == 1


TARGETS = {
    "success": "https://shop.example/paid?lang=da&orderId=A-1&checkoutId={}",
    "failure": "https://shop.example/not-paid?orderId=A-1&checkoutId={}",
    "redirect": "https://shop.example/done?orderId=A-1&checkoutId={}#end",
}
VISITS = [("GET", "redirect"), ("POST", "redirect"), ("GET", "success"), ("GET", "failure")]


@pytest.mark.parametrize(("method", "kind"), VISITS)
async def test_a_shoppers_browser_is_sent_on_and_nothing_of_what_it_brings_is_kept(api: Api, method, kind):
    checkout = await api.taken()
    api.hint_publisher.published.clear()
    answer = await api.client.request(
        method,
        path_of(getattr(api.urls(checkout), kind)),
        params={"x": "1"},
        headers={"User-Agent": "Phone"},
        content=BODY if method == "POST" else None,
    )
    assert (answer.status_code, answer.headers["location"]) == (303, TARGETS[kind].format(checkout))
    row = (await api.sql("SELECT checkout_id, kind, sender, body FROM callbacks"))[0]
    assert (str(row.checkout_id), row.kind, row.sender) == (checkout, "redirect", None)
    key = (await api.sql("SELECT data_key FROM intents"))[0].data_key
    assert inbox.decrypt_body(api.services.encryptor, UUID(checkout), key, bytes(row.body)) == b""
    assert api.hint_publisher.published == [("callbacks", UUID(checkout))]
    assert (await api.sql("SELECT wake FROM checkouts"))[0].wake == 1


async def test_however_often_a_link_is_opened_it_wakes_one_lookup_and_keeps_one_row(api: Api):
    checkout, other = await api.taken(), await api.taken()
    api.hint_publisher.published.clear()
    urls = api.urls(checkout)
    for number in range(30):
        for url in (urls.redirect, urls.success, urls.failure):
            answer = await api.client.get(path_of(url), params={"x": str(number)})
            assert answer.status_code == 303
    await api.client.get(path_of(api.urls(other).redirect))
    rows = await api.sql("SELECT checkout_id, times FROM callbacks ORDER BY checkout_id")
    assert [(row.checkout_id, row.times) for row in rows] == [(UUID(checkout), 1), (UUID(other), 1)]
    assert api.hint_publisher.published == [("callbacks", UUID(checkout)), ("callbacks", UUID(other))]
    assert (await call(api, urls.success)).status_code == 303
    assert api.hint_publisher.published[2:] == [("callbacks", UUID(checkout))], (
        "a callback of the gateway waits for no pause"
    )


async def test_the_pause_between_visits_that_wake_grows_and_is_reset(api: Api, monkeypatch):
    checkout = await api.taken()
    api.hint_publisher.published.clear()
    now = [1000.0]
    monkeypatch.setattr("orchestrator.api.callback_intake.time.monotonic", lambda: now[0])
    woken = []
    for second in range(300):
        now[0] = 1000.0 + second
        await api.client.get(path_of(api.urls(checkout).redirect))
        if len(api.hint_publisher.published) > len(woken):
            woken.append(second)
    assert woken == [0, 5, 15, 35, 75, 135, 195, 255]
    now[0] += 1000.0
    await api.client.get(path_of(api.urls(checkout).redirect))
    now[0] += FIRST_PAUSE
    await api.client.get(path_of(api.urls(checkout).redirect))
    assert len(api.hint_publisher.published) == len(woken) + 2


async def test_a_shopper_is_sent_on_whatever_is_posted(api: Api):
    checkout = await api.taken()
    answer = await call(api, api.urls(checkout).redirect, b"x" * (VISIT_LIMIT + 1))
    assert (answer.status_code, answer.headers["connection"]) == (303, "close")
    assert answer.headers["location"] == TARGETS["redirect"].format(checkout)
    assert await api.count("callbacks") == 1


@pytest.mark.parametrize("kind", ["success", "failure", "redirect"])
async def test_a_get_of_the_address_stores_nothing(api: Api, kind):
    answer = await api.client.head(path_of(getattr(api.urls(await api.taken()), kind)))
    assert answer.status_code == 303
    assert await api.count("callbacks") == 0


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("GET", "notification"),
        ("HEAD", "notification"),
        *(("PUT", kind) for kind in ("success", "failure", "notification")),
    ],
)
async def test_a_notification_is_posted_and_nothing_is_put(api: Api, method, kind):
    answer = await api.client.request(method, path_of(getattr(api.urls(await api.taken()), kind)))
    assert answer.status_code == 405
    assert await api.count("callbacks") == 0


@pytest.mark.parametrize("kind", ["success", "failure", "redirect", "notification"])
@pytest.mark.parametrize("change", ["{}/", "{}//", "/{}", "//{}/", "callbacks//", "//signed"])
async def test_a_link_with_more_slashes_is_served(api: Api, kind, change):
    checkout = await api.taken()
    path = path_of(getattr(api.urls(checkout), kind))
    match change:
        case "callbacks//":
            path = path.replace("/callbacks/", "/callbacks//")
        case "//signed":
            path = "//".join(path.rsplit("/", 1))
        case _:
            path = change.format(path)
    answer = await api.client.post(f"http://pay.example{path}", content=BODY, headers=FORM)
    assert answer.status_code == (200 if kind == "notification" else 303), path
    assert [row.kind for row in await api.sql("SELECT kind FROM callbacks")] == [kind]


async def test_elsewhere_a_slash_counts(api: Api):
    for path in ("/v1/checkouts/", "//v1/checkouts", "/healthz/", "//healthz"):
        answer = await api.client.get(f"http://pay.example{path}", headers=api.bearer())
        assert answer.status_code == 404, path


@pytest.mark.parametrize("change", ["kind", "checkout", "signature", "page", "other kind", "no id"])
async def test_a_wrong_signature_stores_nothing_and_says_nothing(api: Api, change):
    checkout = await api.taken()
    _, _, kind, _, signed = path_of(api.urls(checkout).success).split("/")
    payload, _, tag = signed.partition(".")
    path = {
        "kind": f"/callbacks/failure/{checkout}/{signed}",
        "checkout": f"/callbacks/{kind}/{uuid4()}/{signed}",
        "signature": f"/callbacks/{kind}/{checkout}/{payload}.{tag[:-4]}AAAA",
        "page": f"/callbacks/{kind}/{checkout}/aHR0cHM6Ly9ldmlsLmV4YW1wbGUv.{tag}",
        "other kind": f"/callbacks/other/{checkout}/{signed}",
        "no id": f"/callbacks/{kind}/A-1/{signed}",
    }[change]
    wakes = len(api.hint_publisher.published)
    document = problem(await call(api, path), 404, "unknown-callback")
    assert document["detail"] == "this is no callback address of ours"
    assert await api.count("callbacks") == 0
    assert len(api.hint_publisher.published) == wakes


BOMB = gzip.compress(b"0" * 10_000_000, mtime=0)


@pytest.mark.parametrize("body", [b"x" * (BODY_LIMIT + 1), BOMB], ids=["long", "inflates"])
async def test_a_notification_over_the_limit_is_refused_and_not_stored(api: Api, body):
    url = api.urls(await api.taken()).notification
    problem(await call(api, url, body), 413, "too-large")
    assert await api.count("callbacks") == 0
    assert (await call(api, url, b"x" * BODY_LIMIT)).status_code == 200


@pytest.mark.parametrize("kind", ["success", "failure"])
@pytest.mark.parametrize("body", [b"x" * (BODY_LIMIT + 1), BOMB], ids=["long", "inflates"])
async def test_a_shopper_is_sent_on_when_the_body_is_over_the_limit(api: Api, kind, body):
    checkout = await api.taken()
    wakes = len(api.hint_publisher.published)
    answer = await call(api, getattr(api.urls(checkout), kind), body)
    assert (answer.status_code, answer.headers["location"]) == (303, TARGETS[kind].format(checkout))
    assert answer.headers.get("connection") == ("close" if body is not BOMB else None), (
        "what is left is no request"
    )
    assert await api.count("callbacks") == 0
    assert len(api.hint_publisher.published) == wakes


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="status"\r\n\r\nopen\r\n--b--\r\n',
        ),
        (FORM["Content-Type"], gzip.compress(BODY, mtime=0)),
        (FORM["Content-Type"], b"\xef\xbb\xbf" + BODY),
    ],
    ids=["multipart", "gzip", "mark"],
)
async def test_a_callback_of_any_form_is_stored_as_it_came(api: Api, content_type, body):
    checkout = await api.taken()
    headers = {
        "Content-Type": content_type,
        "Content-Encoding": "gzip" if body[:1] == b"\x1f" else "identity",
    }
    answer = await api.client.post(path_of(api.urls(checkout).notification), content=body, headers=headers)
    assert answer.status_code == 200
    (row,) = await api.sql(
        "SELECT b.body, b.sender, i.data_key FROM callbacks b JOIN intents i USING (checkout_id)"
    )
    assert inbox.decrypt_body(api.services.encryptor, UUID(checkout), row.data_key, bytes(row.body)) == body
    sender = inbox.decrypt_sender(api.services.encryptor, UUID(checkout), row.data_key, bytes(row.sender))
    assert sender.content_type == content_type


async def test_fifty_of_the_same_at_once_are_one_row(api: Api):
    url = api.urls(await api.taken()).notification
    answers = await asyncio.gather(*(call(api, url) for _ in range(50)))
    assert {answer.status_code for answer in answers} == {200}
    rows = await api.sql("SELECT times FROM callbacks")
    assert [row.times for row in rows] == [50]


async def test_any_bytes_are_stored_as_they_came(api: Api):
    checkout = await api.taken()
    raw = bytes(range(256)) * 3
    headers = {b"User-Agent": b"gate\xe9way\tx"}
    answer = await api.client.post(path_of(api.urls(checkout).notification), content=raw, headers=headers)
    assert answer.status_code == 200
    row = (
        await api.sql(
            "SELECT b.body, b.sender, i.data_key FROM callbacks b JOIN intents i USING (checkout_id)"
        )
    )[0]
    assert inbox.decrypt_body(api.services.encryptor, UUID(checkout), row.data_key, bytes(row.body)) == raw
    sender = inbox.decrypt_sender(api.services.encryptor, UUID(checkout), row.data_key, bytes(row.sender))
    assert sender.headers == {"user-agent": "gate?way?x"}


async def test_a_callback_for_a_checkout_that_is_not_there_yet_is_kept(api: Api):
    assert (await call(api, api.urls(uuid4()).notification)).status_code == 200
    assert await api.count("callbacks") == 1


# ── Postgres away ─────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def hanging_postgres():
    """A server that accepts connections and never answers."""

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    tasks_before = asyncio.all_tasks()
    try:
        yield f"postgresql://nouser@127.0.0.1:{port}/none"
    finally:
        server.close()
        for task in asyncio.all_tasks() - tasks_before:
            if "silent" in repr(task.get_coro()):
                task.cancel()
        await asyncio.sleep(0)


async def away(known: Settings) -> None:
    async with serving(known) as api:
        urls = api.urls(uuid4())
        started = time.monotonic()
        answers = await asyncio.gather(
            *(call(api, url) for url in (urls.success, urls.failure, urls.redirect, urls.notification))
        )
        assert TIMEOUT < 3, "the contract's bound"
        assert time.monotonic() - started < TIMEOUT + 10, "and none of them hung"
        assert [answer.status_code for answer in answers] == [303, 303, 303, 503]
        assert (
            answers[0]
            .headers["location"]
            .startswith("https://shop.example/paid?lang=da&orderId=A-1&checkoutId=")
        )
        problem(answers[3], 503, "database-away")
        assert int(answers[3].headers["retry-after"]) > 0
        assert api.hint_publisher.published == []


async def test_while_postgres_refuses_shoppers_are_sent_on_within_three_seconds():
    await away(without_database())


async def test_while_postgres_hangs_shoppers_are_sent_on_within_three_seconds():
    async with hanging_postgres() as url:
        await away(make_settings(database_url=url))


async def test_a_callback_that_was_answered_before_it_was_stored_is_still_stored_and_wakes(api: Api):
    checkout = await api.taken()
    api.hint_publisher.published.clear()
    async with api.services.db.transaction() as blocker:
        await blocker.execute(text("LOCK TABLE callbacks IN ACCESS EXCLUSIVE MODE"))
        answer = await call(api, api.urls(checkout).success)
        assert answer.status_code == 303
        assert api.hint_publisher.published == []
    for _ in range(200):
        if api.hint_publisher.published:
            break
        await asyncio.sleep(0.01)
    assert api.hint_publisher.published == [("callbacks", UUID(checkout))]
    assert await api.count("callbacks") == 1


async def test_a_flood_while_postgres_is_away_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("orchestrator.api.callback_intake.MOST_WAITING", 1000)
    async with serving(without_database()) as api:
        url = api.urls(uuid4()).notification
        waiting = asyncio.create_task(call(api, url, b"x" * 900))
        await asyncio.sleep(0.1)
        assert (await call(api, url, b"y" * 200)).status_code == 503
        assert not waiting.done(), "it was refused at once, not after the timeout of the first"
        assert (await waiting).status_code == 503
