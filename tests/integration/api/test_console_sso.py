"""Sign-in to the console by an identity provider: the test's own signs ID tokens, honest and other ones."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from orchestrator.console import Console
from tests.integration.api.test_console import Person
from tests.support.api_scene import serving
from tests.support.parties import serving as served

pytestmark = pytest.mark.anyio

CLIENT, SECRET = "console", "a secret: of the client/"


class IdentityProvider:
    """Answers as OpenID Connect says; `changes` are put over the claims of the next ID token."""

    def __init__(self) -> None:
        self.key, self.other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.changes: dict[str, Any] = {}
        self.foreign_key = False
        self.nonce = ""
        self.asked: list[dict[str, str]] = []
        self.url = ""
        self.app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", self.describe),
                Route("/keys", self.keys),
                Route("/token", self.token, methods=["POST"]),
            ]
        )

    async def describe(self, _):
        return JSONResponse(
            {
                "issuer": self.url,
                "authorization_endpoint": f"{self.url}/authorize",
                "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            }
        )

    async def keys(self, _):
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return JSONResponse({"keys": [{**public, "kid": "k-1", "use": "sig"}]})

    async def token(self, request):
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.asked.append({**form, "authorization": request.headers.get("authorization", "")})
        now = int(time.time())
        claims = {
            "iss": self.url, "aud": CLIENT, "sub": "person-1", "iat": now, "exp": now + 300, "nonce": self.nonce,
            "roles": ["operator"], **self.changes,
        }  # fmt: skip
        claims = {name: value for name, value in claims.items() if value is not None}
        key = self.other if self.foreign_key else self.key
        return JSONResponse({"id_token": jwt.encode(claims, key, algorithm="ES256", headers={"kid": "k-1"})})


@pytest.fixture
async def place(settings):
    provider, made = IdentityProvider(), []

    def pages(services):
        made.append(Console(services))
        return made[0]

    with served(provider.app) as url:
        provider.url = url
        changed = settings.model_copy(
            update={
                "console_oidc_issuer": url,
                "console_oidc_client_id": CLIENT,
                "console_oidc_client_secret": type(settings.sandbox_token)(SECRET),
                "public_url": "http://pay.example",
            }
        )
        async with serving(changed, pages=pages) as api:
            yield SimpleNamespace(api=api, provider=provider)
            await made[0].close()


async def begun(place, there: str = "") -> tuple[Person, dict[str, str]]:
    """Begin a sign-in; return the browser, and what it takes to the provider."""
    person = Person(place, "browser")
    answer = await person.http.get("/console/sso", params={"next": there})
    assert answer.status_code == 303, answer.text
    address = urlsplit(answer.headers["location"])
    assert f"{address.scheme}://{address.netloc}{address.path}" == f"{place.provider.url}/authorize"
    asked = {name: values[0] for name, values in parse_qs(address.query).items()}
    place.provider.nonce = asked["nonce"]
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Path=/console/sso"))
    return person, asked


async def answered(person: Person, asked: dict[str, str], **more: str):
    return await person.http.get(
        "/console/sso/answer", params={"code": "c-1", "state": asked["state"], "session_state": "x", **more}
    )


async def test_a_person_signs_in_with_the_roles_of_the_provider(place):
    assert "identity provider" in (await Person(place, "x").http.get("/console/login")).text
    person, asked = await begun(place, "/console/orders")
    assert asked["code_challenge_method"] == "S256"
    assert asked["redirect_uri"] == "http://pay.example/console/sso/answer"
    page = await answered(person, asked, iss=place.provider.url)
    assert page.status_code == 200, page.text
    assert 'content="0;url=/console/orders"' in page.text
    (sent,) = place.provider.asked
    assert sent["code"] == "c-1"
    assert sent["authorization"].startswith("Basic ")
    assert len(sent["code_verifier"]) >= 43
    sessions = await person.get("/console/sessions")
    assert "person-1" in sessions
    assert "console:operate, console:view" in sessions
    assert (await person.http.get("/console/users")).status_code == 403
    # A second use of the same answer opens nothing: the cookie of the sign-in is gone.
    again = await answered(person, asked)
    assert again.status_code == 403


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"roles": ["boss"]}, "none of the roles"),
        ({"roles": None}, "none of the roles"),
        ({"nonce": "another"}, "another sign-in"),
        ({"nonce": None}, "another sign-in"),
        ({"aud": "another"}, "InvalidAudienceError"),
        ({"iss": "https://evil.example"}, "InvalidIssuerError"),
        ({"exp": 1_000_000}, "ExpiredSignatureError"),
        ({"aud": [CLIENT, "another"], "azp": "another"}, "another application"),
        ({"sub": "a\nb"}, "no usable claim"),
    ],
)
async def test_an_id_token_that_is_not_ours_opens_nothing(place, changes, said):
    place.provider.changes = changes
    person, asked = await begun(place)
    refused = await answered(person, asked)
    assert (refused.status_code, said in refused.text) == (403, True), refused.text
    assert (await person.http.get("/console")).status_code == 303
    assert await place.api.count("console_sessions") == 0


async def test_another_browser_key_or_answer_opens_nothing(place):
    person, asked = await begun(place)
    assert (await answered(Person(place, "other"), asked)).status_code == 403
    assert (await answered(person, {"state": "guessed"})).status_code == 403
    assert (await answered(person, asked, iss="https://evil.example")).status_code == 403
    assert (await answered(person, asked, error="access_denied")).status_code == 403
    place.provider.foreign_key = True
    unsigned = await answered(person, asked)
    assert "signed by no key" in unsigned.text
    place.provider.foreign_key = False
    place.provider.url = "https://another.example"  # what the provider says of itself
    fresh = Console(place.api.services)
    with pytest.raises(Exception, match="another issuer"):
        await fresh._provider.begin("", seconds=60)
    await fresh.close()
    assert await place.api.count("console_sessions") == 0
