"""Which token opens which call, and the headers that every answer has."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
import pytest

from orchestrator import auth, callback_urls
from orchestrator.api import static_files
from tests.conftest import make_settings
from tests.integration.api.test_intake import problem
from tests.support.api_scene import Api, intent, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[3] / "docs/access.md"
UNKNOWN = "019aa000-0000-7000-8000-000000000001"


def secured(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield method and path of each call that needs a token."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if "security" in operation:
                yield method.upper(), path


def unscoped(api: Api, scope: str = "", *, merchant: str = "default") -> str:
    """Return a token with exactly this scope, which may be none."""
    settings, now = api.services.settings, int(time.time())
    claims = {
        "iss": settings.jwt_issuer,
        "aud": settings.jwt_audience,
        "sub": "shop-1",
        "merchant": merchant,
        "scope": scope,
        "iat": now,
        "exp": now + 60,
    }
    return jwt.encode(claims, settings.jwt_secrets[0].get_secret_value(), algorithm="HS256")


def table() -> dict[tuple[str, str], tuple[set[str], bool]]:
    """Return the scopes of each call as the page says, and whether the client token opens it, too."""
    rows = re.findall(r"^\| `(\w+) (/\S+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    return {
        (method, path): (set(re.findall(r"`([a-z]+:?[a-z]*)`", said)), "client token" in said)
        for method, path, said in rows
    }


async def test_the_document_and_the_table_of_scopes_say_the_same(api):
    document = api.client._transport.app.openapi()
    told = {}
    for method, path in secured(document):
        operation = document["paths"][path][method.lower()]
        ways = operation["security"]
        scopes = {scope for way in ways for scope in way.get("bearer", ())}
        assert scopes
        assert all(f"`{scope}`" in operation["description"] for scope in scopes)
        told[method, path] = scopes, any("clientToken" in way for way in ways)
    assert told == table()
    assert set().union(*(scopes for scopes, _ in told.values())) == auth.SCOPES


async def test_each_call_is_refused_with_every_scope_but_its_own(database_url):
    settings = make_settings(database_url=database_url, failed_authentications_per_minute=0)
    async with serving(settings) as api:
        taken = (await api.post(intent())).json()
        every = (*auth.SCOPES, "", "admin", "checkouts")
        for (method, path), (scopes, client) in table().items():
            address = re.sub(r"{\w+}", UNKNOWN, path)
            whose = auth.OPERATOR if path.startswith("/v1/merchants") else "default"
            tokens = {scope: unscoped(api, scope, merchant=whose) for scope in every}
            tokens["all but its own"] = unscoped(api, " ".join(auth.SCOPES - scopes), merchant=whose)
            for scope, token in tokens.items():
                answer = await api.client.request(
                    method, address, headers={"Authorization": f"Bearer {token}"}
                )
                refused = scope not in scopes
                assert (answer.status_code == 403) is refused, (method, path, scope, answer.text)
                if refused:
                    problem(answer, 403, "insufficient-scope")
            # Its own client token opens the two addresses, and no other.
            own = re.sub(r"{\w+}", taken["id"], path)
            if not client:
                headers = {"Authorization": f"Bearer {taken['clientToken']}"}
                problem(await api.client.request(method, own, headers=headers), 401, "invalid-token")


async def test_every_answer_has_the_headers_of_security(database_url, settings):
    async with serving(make_settings(database_url=database_url, hsts_max_age=31_536_000)) as api:
        checkout = await api.taken()
        urls = api.urls(checkout)
        answers = {
            "intake": await api.post(intent()),
            "a read": await api.get(f"/v1/checkouts/{checkout}"),
            "a problem": await api.post({}),
            "no token": await api.client.get("/v1/checkouts"),
            "nothing there": await api.client.get("/nothing"),
            "wrong method": await api.client.put("/v1/checkouts"),
            "options": await api.client.options("/v1/checkouts"),
            "health": await api.client.get("/healthz"),
            "a page": await api.client.get("/docs"),
            "a file": await api.client.get("/docs/assets/swagger-ui.css"),
            "no file": await api.client.get("/docs/assets/x"),
            "the document": await api.client.get("/openapi.json"),
            "a redirect": await api.client.post(urls.success),
            "no link of ours": await api.client.post("/callbacks/success/x/y"),
        }
    for name, answer in answers.items():
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff", name
        assert headers["referrer-policy"] == "no-referrer", name
        assert headers["strict-transport-security"] == "max-age=31536000", name
        assert "server" not in headers, name
        assert (headers["cache-control"] == "no-store") is (name != "a file"), name
        policy = headers.get("content-security-policy", "")
        framed = name in {"a redirect", "no link of ours"}
        assert ("frame-ancestors 'none'" in policy) is not framed, name
        assert ("default-src 'none'" in policy) is (not framed and name != "a page"), name
    async with serving(settings) as api:
        assert "strict-transport-security" not in (await api.client.get("/healthz")).headers


async def test_a_client_token_opens_no_other_checkout_and_is_not_taken_from_a_url(api):
    first, second = (await api.post(intent())).json(), (await api.post(intent())).json()
    headers = {"Authorization": f"Bearer {first['clientToken']}"}
    for end in ("status", "stream", "session"):
        other = await api.client.get(f"/v1/checkouts/{second['id']}/{end}", headers=headers)
        assert "another checkout" in problem(other, 403, "insufficient-scope")["detail"]
        path = f"/v1/checkouts/{first['id']}/{end}"
        for name in ("token", "access_token", "clientToken"):
            named = await api.client.get(f"{path}?{name}={first['clientToken']}")
            problem(named, 401, "invalid-token")
            problem(await api.client.get(f"{path}?{name}=x", headers=headers), 422, "invalid-request")
        invented = callback_urls._encode(b"i" * 32)
        answer = await api.client.get(path, headers={"Authorization": f"Bearer {invented}"})
        problem(answer, 401, "invalid-token")
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert (await api.client.request(method, path, headers=headers)).status_code == 405


@pytest.mark.parametrize("end", ["status", "stream"])
async def test_a_client_token_ends_an_hour_after_its_checkout(api, end):
    taken = (await api.post(intent())).json()
    path, headers = f"/v1/checkouts/{taken['id']}/{end}", {"Authorization": f"Bearer {taken['clientToken']}"}
    gone = "UPDATE checkouts SET state = :state, ended_at = clock() - make_interval(secs => :ago)"
    await api.sql(gone, state="expired", ago=3590)
    assert (await api.client.get(path, headers=headers)).status_code == 200
    await api.sql(gone, state="expired", ago=3601)
    assert (
        "ended more than"
        in problem(await api.client.get(path, headers=headers), 401, "invalid-token")["detail"]
    )
    await api.sql("UPDATE merchants SET disabled_at = clock()")
    await api.sql(gone, state="expired", ago=1)
    problem(await api.client.get(path, headers=headers), 403, "merchant-disabled")


async def test_another_merchants_token_sees_no_status(api):
    await api.sql("INSERT INTO merchants (name) VALUES ('other')")
    checkout = await api.taken()
    for end in ("status", "stream", "session"):
        problem(await api.get(f"/v1/checkouts/{checkout}/{end}", merchant="other"), 404, "unknown-checkout")


# ── Pages of other origins ────────────────────────────────────────────────────────────────────────────────

SHOP = {"Origin": "https://shop.example"}


async def test_pages_of_named_origins_may_read_status_stream_and_session_alone(database_url):
    settings = make_settings(database_url=database_url, browser_origins=("https://shop.example",))
    async with serving(settings) as api:
        checkout = await api.taken()
        for end in ("status", "stream", "session"):
            path = f"/v1/checkouts/{checkout}/{end}"
            asked = {
                "Access-Control-Request-Method": "GET",
                "Access-Control-Request-Headers": "authorization",
            }
            preflight = await api.client.options(path, headers=SHOP | asked)
            assert preflight.status_code == 204
            assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
            assert preflight.headers["access-control-allow-methods"] == "GET"
            assert "Authorization" in preflight.headers["access-control-allow-headers"]
            assert "access-control-allow-credentials" not in preflight.headers
            refused = await api.client.get(path, headers=SHOP)  # an error can be read, too
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == "https://shop.example"
            assert "Retry-After" in refused.headers["access-control-expose-headers"]
            for origin in (
                "https://evil.example",
                "https://shop.example.evil.example",
                "null",
                "http://shop.example",
            ):
                for answer in (
                    await api.client.options(path, headers=asked | {"Origin": origin}),
                    await api.client.get(path, headers={"Origin": origin}),
                ):
                    assert not any(name.startswith("access-control") for name in answer.headers)
                    assert answer.headers["vary"] == "Origin"
        for path in (
            "/v1/checkouts",
            f"/v1/checkouts/{checkout}",
            f"/v1/checkouts/{checkout}/explain",
            "/v1/events",
            "/healthz",
            "/docs",
        ):
            for method in ("OPTIONS", "GET"):
                answer = await api.client.request(method, path, headers=SHOP)
                assert not any(name.startswith("access-control") for name in answer.headers), path


async def test_without_the_setting_no_origin_may_read_and_with_a_star_any(database_url, api):
    path = f"/v1/checkouts/{await api.taken()}/status"
    answer = await api.client.options(path, headers=SHOP)
    assert answer.status_code == 204
    assert not any(name.startswith("access-control") for name in answer.headers)
    async with serving(make_settings(database_url=database_url, browser_origins=("*",))) as other:
        answer = await other.client.options(path, headers={"Origin": "https://any.example"})
        assert answer.headers["access-control-allow-origin"] == "https://any.example"


async def test_the_address_of_a_shopper_and_its_token_reach_no_log(database_url, capsys):
    from orchestrator import log

    log.configure(style="json")
    settings = make_settings(database_url=database_url, access_log=True, trusted_proxies=1)
    async with serving(settings) as api:
        taken = (await api.post(intent())).json()
        headers = {"Authorization": f"Bearer {taken['clientToken']}", "X-Forwarded-For": "203.0.113.77"}
        own = f"/v1/checkouts/{taken['id']}"
        assert (await api.client.get(f"{own}/status", headers=headers)).status_code == 200
        named = await api.client.get(f"{own}/status?token={taken['clientToken']}", headers=headers)
        assert named.status_code == 422
        assert (await api.client.get(own, headers=headers)).status_code == 401
        api.client._transport.app.state.access_log.flush()
    output = capsys.readouterr()
    lines = [line for line in (output.out + output.err).splitlines() if "request_answered" in line]
    shoppers = [line for line in lines if "/status" in line]
    assert len(shoppers) == 2
    assert not any("203.0.113.77" in line for line in shoppers)
    assert any("203.0.113.77" in line for line in lines)
    assert taken["clientToken"] not in output.out + output.err


# ── Pages ─────────────────────────────────────────────────────────────────────────────────────────────────

A_PERSON = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


async def test_pages_are_for_persons_and_an_api_client_is_answered_problems(api):
    for path in ("/", "/misspelt", "/v1/misspelt"):
        problem(await api.client.get(path), 404, None)
        problem(await api.client.post(path, headers=A_PERSON), 404 if path != "/" else 405, None)
    problem(await api.client.get("/v1/misspelt", headers=A_PERSON), 404, None)
    door = await api.client.get("/", headers=A_PERSON)
    assert door.status_code == 200
    missing = await api.client.get("/<script>", headers=A_PERSON)
    assert missing.status_code == 404
    for page in (door, missing):
        assert page.headers["content-type"].startswith("text/html")
        assert "'unsafe-inline'" not in page.headers["content-security-policy"]
        assert "<script" not in page.text
    assert 'href="/shop"' not in door.text
    problem(await api.client.get("/shop", headers=A_PERSON), 404, None)


async def test_the_root_page_leads_to_the_demo_shop_where_there_is_one(database_url):
    settings = make_settings(
        database_url=database_url,
        demo_shop_url="http://127.0.0.1:8002",
        gateway_url="http://127.0.0.1:8001",
    )
    async with serving(settings) as api:
        door = (await api.client.get("/", headers=A_PERSON)).text
        assert door.index('href="/shop"') < door.index('href="/docs"')
        assert 'href="http://127.0.0.1:8001/"' in door
        led = await api.client.get("/shop")
        assert (led.status_code, led.headers["location"]) == (303, "http://127.0.0.1:8002/shop")


async def test_the_script_has_an_address_for_ever_that_every_page_may_load(api):
    script = static_files.newest()
    kept = await api.client.get(f"/static/{script.name}")
    assert kept.content == script.body
    assert kept.headers["content-encoding"] == "gzip"
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert kept.headers["access-control-allow-origin"] == "*"
    newest = await api.client.get("/static/checkout.js", headers={"Accept-Encoding": "identity"})
    assert newest.content == script.body
    assert "immutable" not in newest.headers["cache-control"]
    assert "content-encoding" not in newest.headers
    for name in ("checkout-0.0.1.js", "integrity.json", "..%2fapp.py"):
        problem(await api.client.get(f"/static/{name}"), 404, None)
