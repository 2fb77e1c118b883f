"""Tokens that other systems sign: public keys of the settings, and keys that an identity provider
publishes.
"""

from __future__ import annotations

import asyncio
import json
import time
from functools import cache
from itertools import count

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import get_default_algorithms

from orchestrator import auth, issuer_keys
from orchestrator.auth import AccessDenied, Authenticator
from orchestrator.issuer_keys import KeySet, KeysUnavailable
from orchestrator.settings import Settings, SettingsError
from orchestrator.settings import load as load_settings

pytestmark = pytest.mark.anyio

SECRET = "secret-" * 6


def load_values(values: dict[str, str]) -> Settings:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in values.items():
            environment.setenv(name, value)
        return load_settings()


@cache
def private(kind: str):
    match kind:
        case "rsa" | "rsa-2":
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        case "small":
            return rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - refused
        case "p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "p521":
            return ec.generate_private_key(ec.SECP521R1())
        case _:
            return ed25519.Ed25519PrivateKey.generate()


def pem(kind: str) -> str:
    return private(kind).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


ALGORITHM_OF = {"rsa": "RS256", "rsa-2": "RS256", "p256": "ES256", "p384": "ES384", "ed": "EdDSA"}


def entry(kind: str, **more: object) -> dict[str, object]:
    known = get_default_algorithms()[ALGORITHM_OF[kind]]
    return {**json.loads(known.to_jwk(private(kind).public_key())), **more}


def key_set(*entries: dict[str, object]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def claims(**changed: object) -> dict[str, object]:
    """Return the claims of a token that is valid for a minute."""
    now = int(time.time())
    return {
        "iss": "orchestrator",
        "aud": "orchestrator",
        "sub": "shop",
        "merchant": "m",
        "scope": "ops",
        "iat": now,
        "exp": now + 60,
        **changed,
    }


def signed(key: object, algorithm: str, *, kid: str | None = None, **changed: object) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode(claims(**changed), key, algorithm=algorithm, headers=headers)


def refused(known: Settings, token: str, status: int = 401) -> str:
    with pytest.raises(AccessDenied) as caught:
        auth.verify(known, token)
    assert caught.value.status == status
    return caught.value.sentence


# ── Public keys of the settings ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [("rsa", "RS256"), ("rsa", "PS256"), ("p256", "ES256"), ("p384", "ES384"), ("ed", "EdDSA")],
)
def test_a_token_under_a_configured_public_key_is_accepted_without_any_secret(kind, algorithm):
    known = Settings(jwt_public_keys=(pem("rsa-2"), pem(kind)))
    assert auth.verify(known, signed(private(kind), algorithm))[0].merchant == "m"


def test_keys_and_secrets_serve_side_by_side_and_only_their_own_algorithms():
    known = Settings(jwt_secrets=(SECRET,), jwt_public_keys=(pem("rsa"),))
    assert auth.verify(known, signed(private("rsa"), "RS256"))[0]
    assert auth.verify(known, signed(SECRET, "HS256"))[0]
    assert "HS256 or RS256 or PS256" in refused(known, signed(private("p256"), "ES256"))
    assert "HS256 or RS256 or PS256" in refused(known, signed(private("rsa"), "RS512"))
    assert "signature is wrong" in refused(known, signed(private("rsa-2"), "RS256"))


def test_a_public_key_is_never_taken_for_a_shared_secret():
    """Algorithm confusion: a public key used as an HMAC secret."""
    text = pem("rsa").encode()
    header = {"alg": "HS256", "typ": "JWT"}
    encoded = [jwt.utils.base64url_encode(json.dumps(part).encode()) for part in (header, claims())]
    known = get_default_algorithms()["HS256"]
    mac = jwt.utils.base64url_encode(known.sign(b".".join(encoded), text))
    forged = b".".join([*encoded, mac]).decode()
    assert "RS256" in refused(Settings(jwt_public_keys=(pem("rsa"),)), forged)
    assert "signature is wrong" in refused(
        Settings(jwt_secrets=(SECRET,), jwt_public_keys=(pem("rsa"),)), forged
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no key", "public key in PEM form"),
        (pem("small"), "RSA with at least 2048 bits"),
        (pem("p521"), "P-256 or P-384"),
        (
            private("ed").private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "public key in PEM form",
        ),
    ],
    ids=["text", "small", "curve", "private"],
)
def test_what_is_no_usable_public_key_stops_the_start(text, said):
    with pytest.raises(SettingsError, match=f"ORCHESTRATOR_JWT_PUBLIC_KEYS.*{said}"):
        load_values({"ORCHESTRATOR_JWT_PUBLIC_KEYS": json.dumps([text.strip()])})


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("https://login.example.com/keys", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://localhost/keys", True),
        ("http://login.example.com/keys", False),
        ("http://10.0.0.7/keys", False),
        ("https://169.254.169.254/keys", False),
        ("https://user:secret@login.example.com/keys", False),
    ],
)
def test_keys_are_fetched_over_https_or_from_this_machine(url, accepted):
    if accepted:
        assert load_values({"ORCHESTRATOR_JWT_JWKS_URL": url}).jwt_jwks_url == url
    else:
        with pytest.raises(SettingsError, match="ORCHESTRATOR_JWT_JWKS_URL: must"):
            load_values({"ORCHESTRATOR_JWT_JWKS_URL": url})


# ── Key sets ────────────────────────────────────────────────────────────────────────────────────


def test_of_a_key_set_only_usable_signature_keys_are_read():
    found = issuer_keys.of_key_set(
        key_set(
            entry("rsa", kid="a", use="sig"),
            entry("rsa-2", kid="b", alg="PS256"),
            entry("p256", kid="c", use="enc"),
            entry("ed", kid=7),
            {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "kid": "d"},
            {"kty": "RSA", "n": "AQAB", "e": "AQAB", "kid": "e"},
            {"kty": "RSA", "n": "?", "kid": "f"},
            {"kty": "later", "kid": "g"},
            {},
        )
    )
    assert [(key.kid, key.algorithms) for key in found] == [
        ("a", ("RS256", "PS256")),
        ("b", ("PS256",)),
        (None, ("EdDSA",)),
    ]


@pytest.mark.parametrize(
    "document",
    [b"", b"{", b"[]", b"{}", b'{"keys": 7}', b'{"keys": [7]}', b'{"keys": []}', b"\xff", b"[" * 100_000],
)
def test_what_is_no_key_set_is_refused(document):
    with pytest.raises(ValueError, match=r"key set|Key Set"):
        issuer_keys.of_key_set(document)


def test_a_key_set_of_any_length_costs_a_bounded_number_of_keys():
    key = entry("ed")
    assert len(issuer_keys.of_key_set(key_set(*[key] * 500))) == issuer_keys.MOST_KEYS


class Provider:
    """An identity provider on a clock of the test's own."""

    def __init__(self, *entries: dict[str, object]) -> None:
        self.answer: bytes | Exception = key_set(*entries)
        self.fetches = 0
        self.at = 1000.0
        self.keys = KeySet("https://login.example.com/keys", fetch=self.fetch, now=lambda: self.at)

    async def fetch(self, _: str) -> bytes:
        self.fetches += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def kids(self, kid: str | None = None) -> list[str | None]:
        found = await self.keys.for_token(kid)
        for _ in range(5):
            await asyncio.sleep(0)  # what was begun in the background ends
        return [key.kid for key in found]


async def test_keys_are_fetched_once_for_all_that_wait_and_then_kept():
    provider = Provider(entry("rsa", kid="a"))
    assert await asyncio.gather(*(provider.kids("a") for _ in range(50))) == [["a"]] * 50
    provider.at += issuer_keys.FRESH - 1
    assert await provider.kids("a") == ["a"]
    assert provider.fetches == 1


async def test_a_new_key_is_found_by_its_name_and_an_unknown_key_is_fetched_at_most_every_half_minute():
    provider = Provider(entry("rsa", kid="a"))
    await provider.kids("a")
    provider.answer = key_set(entry("rsa", kid="a"), entry("p256", kid="b"))
    provider.at += 40
    assert await provider.kids("b") == ["b"]
    for number in range(100):
        assert await provider.kids(f"unknown-{number}") == []
        provider.at += 0.2
    assert provider.fetches == 2
    provider.at += 40
    assert await provider.kids("unknown") == []
    assert provider.fetches == 3


async def test_a_key_that_is_published_no_more_verifies_nothing_after_ten_minutes():
    provider = Provider(entry("rsa", kid="a"), entry("p256", kid="b"))
    await provider.kids("a")
    provider.answer = key_set(entry("p256", kid="b"))
    provider.at += issuer_keys.FRESH + 1
    assert await provider.kids("b") == ["b"]  # fetches in the background
    assert await provider.kids("a") == []


async def test_the_last_keys_serve_for_a_day_while_the_provider_cannot_be_reached_and_then_no_more():
    provider = Provider(entry("rsa", kid="a"))
    await provider.kids("a")
    provider.answer = OSError("away")
    for _ in range(200):
        provider.at += issuer_keys.USABLE / 201
        assert await provider.kids("a") == ["a"]
    provider.at += issuer_keys.USABLE / 100
    with pytest.raises(KeysUnavailable, match="OSError"):
        await provider.kids("a")


async def test_after_failures_the_pause_grows_to_half_a_minute_and_one_success_heals():
    provider = Provider(entry("rsa", kid="a"))
    good, provider.answer = provider.answer, ValueError("the answer was HTTP 502")
    for _ in range(1200):
        with pytest.raises(KeysUnavailable, match="HTTP 502"):
            await provider.kids("a")
        provider.at += 0.1
    assert 7 <= provider.fetches <= 10  # 1, 2, 4, 8, 16, 30, 30 … seconds, each a tenth more or less
    provider.answer = good
    provider.at += 40
    assert await provider.kids("a") == ["a"]


# ── From a token to a caller ────────────────────────────────────────────────────────────────────


@pytest.fixture
async def published():
    """Return (settings, answers): a provider on loopback that gives the answers in their order, the last
    answer for ever.
    """
    answers: list[web.StreamResponse] = []
    served = count()

    async def keys(_: web.Request) -> web.StreamResponse:
        return answers[min(next(served), len(answers) - 1)]()

    app = web.Application()
    app.router.add_get("/keys", keys)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]
    yield Settings(jwt_jwks_url=f"http://127.0.0.1:{port}/keys", jwt_secrets=(SECRET,)), answers
    await runner.cleanup()


async def test_a_token_of_the_identity_provider_is_accepted_and_a_token_of_another_key_is_not(published):
    known, answers = published
    answers.append(lambda: web.Response(body=key_set(entry("rsa", kid="a"), entry("ed", kid="b"))))
    keeper = Authenticator(known)
    try:
        for token in (
            signed(private("rsa"), "RS256", kid="a"),
            signed(private("ed"), "EdDSA"),
            signed(SECRET, "HS256"),
        ):
            assert (await keeper.admit(f"Bearer {token}")).merchant == "m"
        for token, said in (
            (signed(private("rsa-2"), "RS256", kid="a"), "signature is wrong"),
            (signed(private("rsa"), "RS256", kid="other"), "does not publish"),
            (signed(private("rsa"), "RS256", kid="b"), "does not publish"),
            (signed(private("rsa"), "RS256", kid="a", iss="else"), "its iss must be orchestrator"),
        ):
            with pytest.raises(AccessDenied, match=said) as caught:
                await keeper.admit(f"Bearer {token}")
            assert caught.value.status == 401
    finally:
        await keeper.close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda: web.Response(status=500), "HTTP 500"),
        (
            lambda: web.Response(status=302, headers={"Location": "https://elsewhere.example.com/"}),
            "HTTP 302",
        ),
        (lambda: web.Response(body=b" " * 300_000), "more than 262144 bytes"),
        (lambda: web.Response(body=b"<html>"), "not a JSON Web Key Set"),
    ],
    ids=["error", "redirect", "large", "page"],
)
async def test_while_the_keys_cannot_be_fetched_their_tokens_are_503_with_retry_after(
    published, answer, said
):
    known, answers = published
    answers.append(answer)
    keeper = Authenticator(known)
    try:
        with pytest.raises(AccessDenied, match=said) as caught:
            await keeper.admit(f"Bearer {signed(private('rsa'), 'RS256', kid='a')}")
        assert caught.value.status == 503
        assert (await keeper.admit(f"Bearer {signed(SECRET, 'HS256')}")).merchant == "m"
        with_own = Settings(jwt_jwks_url=known.jwt_jwks_url, jwt_public_keys=(pem("rsa"),))
        assert await Authenticator(with_own).admit(f"Bearer {signed(private('rsa'), 'RS256')}")
    finally:
        await keeper.close()


async def test_a_provider_that_does_not_answer_holds_up_no_request_for_long_and_no_shutdown(
    published, monkeypatch
):
    known, answers = published
    monkeypatch.setattr(issuer_keys, "TIMEOUT", 0.3)

    class Silent(web.StreamResponse):
        async def prepare(self, _: web.BaseRequest) -> None:
            await asyncio.sleep(5)

    answers.append(Silent)
    keeper = Authenticator(known)
    with pytest.raises(AccessDenied, match="no answer within") as caught:
        await keeper.admit(f"Bearer {signed(private('rsa'), 'RS256')}")
    assert caught.value.status == 503
    await keeper.close()
