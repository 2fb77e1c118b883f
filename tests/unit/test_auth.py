from __future__ import annotations

import asyncio
import base64
import json
import time
from contextlib import suppress

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import auth
from orchestrator.auth import AccessDenied, Authenticator
from orchestrator.settings import Settings

pytestmark = pytest.mark.anyio

OLD, NEW, FOREIGN = "old-" * 10, "new-" * 16, "foreign-" * 5


def settings(*secrets: str) -> Settings:
    return Settings(jwt_secrets=secrets or (NEW,))


def token(known: Settings | None = None, **changes: object) -> str:
    asked = {
        "merchant": "default",
        "scopes": ["checkouts:read"],
        "lifetime": 60,
        "subject": "shop-1",
    } | changes
    return auth.issue(known or settings(), **asked)


def signed(secret: str = NEW, *, without: str = "", algorithm: str = "HS256", **claims: object) -> str:
    """A token of our own making, with anything in it."""
    now = int(time.time())
    whole = {
        "iss": "orchestrator",
        "aud": "orchestrator",
        "sub": "s",
        "merchant": "m",
        "scope": "ops",
        "iat": now,
        "exp": now + 60,
    } | claims
    whole.pop(without, None)
    return jwt.encode(whole, secret, algorithm=algorithm)


def denied(text: str, known: Settings | None = None) -> str:
    with pytest.raises(AccessDenied) as caught:
        auth.verify(known or settings(), text)
    assert caught.value.status == 401
    return caught.value.sentence


def test_a_token_says_who_calls_for_whom_and_what_for():
    caller = auth.verify(settings(), token(scopes=["checkouts:read", "checkouts:write"]))[0]
    assert (caller.merchant, caller.subject) == ("default", "shop-1")
    assert caller.scopes == {"checkouts:read", "checkouts:write"}
    assert caller.actor == "client:default/shop-1"


def test_the_newest_secret_signs_and_every_secret_verifies():
    both = settings(NEW, OLD)
    assert auth.verify(both, token(settings(OLD)))[0].merchant == "default"
    assert auth.verify(settings(NEW), token(both))[0].merchant == "default"
    assert "signature is wrong" in denied(token(both), settings(OLD))


def test_each_cause_has_a_sentence_of_its_own():
    said = {
        "expired": denied(signed(iat=1, exp=2)),
        "expired under an older secret": denied(signed(OLD, iat=1, exp=2), settings(NEW, OLD)),
        "signature": denied(signed(FOREIGN)),
        "issuer": denied(signed(iss="else")),
        "audience": denied(signed(aud="else")),
        "algorithm": denied(signed(algorithm="HS512")),
        "future": denied(signed(iat=int(time.time()) + 3600)),
        "nothing": denied("not a token"),
        "claim": denied(signed(without="merchant")),
    }
    assert "expired" in said["expired"]
    assert said["expired under an older secret"] == said["expired"]
    assert len(set(said.values())) == len(said) - 1


@pytest.mark.parametrize("claim", ["iss", "aud", "sub", "merchant", "scope", "iat", "exp"])
def test_a_token_that_lacks_a_claim_is_refused_by_its_name(claim):
    assert claim in denied(signed(without=claim))


@pytest.mark.parametrize(
    "claims", [{"merchant": 7}, {"scope": ["ops"]}, {"sub": ""}, {"merchant": "a\nb"}, {"sub": "s" * 101}]
)
def test_a_signed_token_with_nonsense_in_it_is_refused(claims):
    assert denied(signed(**claims))


def test_an_unsigned_token_is_refused():
    header, payload = ({"alg": "none", "typ": "JWT"}, {"sub": "s", "merchant": "m", "scope": "ops"})
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (header, payload)
    ]
    assert "HS256" in denied(".".join([*parts, ""]))


@given(
    st.text()
    | st.from_regex(r"[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}\.[A-Za-z0-9_-]{0,30}", fullmatch=True)
)
def test_an_invalid_token_is_refused_with_a_sentence(text):
    assert denied(text)


def test_a_header_nested_too_deeply_is_refused():
    header = base64.urlsafe_b64encode(b"[" * 3000).rstrip(b"=").decode()
    assert denied(f"{header}.e30.x")
    assert denied("x" * 5000)


def test_an_installation_without_secrets_knows_no_token():
    assert "JWT_SECRETS" in denied(token(), Settings())


def test_a_missing_scope_is_forbidden_and_named():
    caller = auth.verify(settings(), token())[0]
    caller.need("checkouts:read")
    with pytest.raises(AccessDenied, match="needs the scope checkouts:write") as caught:
        caller.need("checkouts:write")
    assert caught.value.status == 403


@pytest.mark.parametrize(
    "changes", [{"scopes": ["checkout:write"]}, {"scopes": []}, {"merchant": ""}, {"subject": "s" * 101}]
)
def test_a_token_that_would_be_refused_is_not_issued(changes):
    with pytest.raises(ValueError, match="must be"):
        token(**changes)


@pytest.mark.parametrize("header", [None, "", "Basic abc", "Bearer", "Bearer  ", "token"])
async def test_a_call_without_a_token_is_answered_with_how_to_send_a_token(header):
    with pytest.raises(AccessDenied, match="Bearer <token>"):
        await Authenticator(settings()).admit(header)


async def test_a_cached_token_is_refused_after_its_end():
    keeper = Authenticator(settings())
    bearer = f"Bearer {signed(exp=time.time() + 1)}"
    assert await keeper.admit(bearer) is await keeper.admit(bearer)
    await asyncio.sleep(2)
    with pytest.raises(AccessDenied, match="expired"):
        await keeper.admit(bearer)


async def test_cached_tokens_are_bounded(monkeypatch):
    monkeypatch.setattr(auth, "_MOST_REMEMBERED", 3)
    keeper = Authenticator(settings())
    for number in range(9):
        await keeper.admit(f"Bearer {token(subject=f's{number}')}")
    assert len(keeper._seen) == 3


YEAR = 366 * 86_400
NOW = int(time.time())


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": int("9" * 400)},
        {"exp": 10**18},
        {"exp": 1e300},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"exp": True},
        {"exp": str(NOW + 60)},
        {"exp": [NOW]},
        {"exp": None},
        {"iat": -int("9" * 400)},
        {"iat": int("9" * 400)},
        {"iat": float("-inf")},
        {"iat": float("nan")},
        {"iat": str(NOW)},
        {"iat": None},
        {"iat": {}},
        {"nbf": int("9" * 400)},
    ],
    # Both processes of a test run must name a test alike, whatever the time is.
    ids=lambda claims: str(claims)[:9] + type(next(iter(claims.values()))).__name__,
)
def test_a_time_that_no_clock_can_show_is_refused(claims):
    assert denied(signed(**claims))


@given(
    st.dictionaries(
        st.sampled_from(["exp", "iat", "nbf", "sub", "merchant", "scope", "jti"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_whatever_a_signed_token_claims_it_is_accepted_or_refused_with_a_sentence(claims):
    with suppress(AccessDenied):  # any other error would be a 500
        assert auth.verify(settings(), signed(**claims))[0].merchant


def test_a_token_that_lives_too_long_is_neither_issued_nor_accepted():
    assert "366 days" in denied(signed(iat=NOW - 10, exp=NOW + 1000 * YEAR))
    assert "366 days" in denied(signed(iat=0, exp=NOW + 86_400))
    assert auth.verify(settings(), signed(iat=NOW, exp=NOW + YEAR))[0].merchant == "m"
    with pytest.raises(ValueError, match=r"366 days at the most, not 3660 days.*JWT_MAX_LIFETIME"):
        token(lifetime=10 * YEAR)


def test_processes_of_ours_issue_no_token_that_lives_too_long():
    for longest, lifetime, lives in ((60, 86_400, 60), (3600, 600, 600)):
        known = Settings(jwt_secrets=(NEW,), jwt_max_lifetime=longest)
        made = auth.issue_own(known, merchant="m", scopes=("ops",), lifetime=lifetime, subject="bench")
        claims = jwt.decode(made, options={"verify_signature": False})
        assert claims["exp"] - claims["iat"] == lives
        assert auth.verify(known, made)[0].merchant == "m"


def test_the_longest_life_is_a_setting():
    known = Settings(jwt_secrets=(NEW,), jwt_max_lifetime=3600)
    assert auth.verify(known, token(known, lifetime=3600))[0]
    with pytest.raises(ValueError, match="3600 seconds at the most"):
        token(known, lifetime=3601)
    assert "3600 seconds" in denied(signed(iat=NOW - 1, exp=NOW + 3601), known)
