from __future__ import annotations

import base64
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator import links
from orchestrator.links import with_query
from orchestrator.vault import Vault

CHECKOUT = UUID("019aa000-0000-7000-8000-000000000001")
PAGES = {
    "success": "https://shop.example/paid?lang=da&orderId=A-1#top",
    "failure": "https://shop.example/not-paid",
    "redirect": None,
}


def keys(*names: str) -> Vault:
    return Vault([SecretStr(base64.b64encode(name.encode() * 32).decode()) for name in names])


VAULT = keys("k")


def parts(url: str) -> tuple[str, UUID, str]:
    kind, checkout, signed = urlsplit(url).path.removeprefix("/callbacks/").split("/")
    return kind, UUID(checkout), signed


def test_a_link_opens_to_the_shops_page_with_the_checkout():
    urls = links.callback_urls(VAULT, "https://pay.example/", CHECKOUT, PAGES)
    assert urls.success.startswith(f"https://pay.example/callbacks/success/{CHECKOUT}/")
    opened = links.open_link(VAULT, *parts(urls.success))
    assert opened == f"https://shop.example/paid?lang=da&orderId=A-1&checkoutId={CHECKOUT}#top"
    assert (
        links.open_link(VAULT, *parts(urls.failure)) == f"https://shop.example/not-paid?checkoutId={CHECKOUT}"
    )


def test_a_notification_leads_nowhere_and_is_signed_all_the_same():
    notification = links.callback_urls(VAULT, "https://pay.example", CHECKOUT, PAGES).notification
    assert links.open_link(VAULT, *parts(notification)) == ""
    assert len(parts(notification)[2]) == 23


def test_a_shop_without_a_last_page_gets_no_link_for_it():
    assert links.callback_urls(VAULT, "https://pay.example", CHECKOUT, PAGES).redirect is None
    pages = PAGES | {"redirect": "https://shop.example/done"}
    redirect = links.callback_urls(VAULT, "https://pay.example", CHECKOUT, pages).redirect
    assert redirect is not None
    assert links.open_link(VAULT, *parts(redirect)) == f"https://shop.example/done?checkoutId={CHECKOUT}"


def test_a_link_is_good_for_its_own_kind_and_checkout_only():
    kind, checkout, signed = parts(links.callback_urls(VAULT, "https://pay.example", CHECKOUT, PAGES).success)
    assert links.open_link(VAULT, kind, checkout, signed)
    for other in ("failure", "redirect", "notification", "other"):
        assert links.open_link(VAULT, other, checkout, signed) is None
    assert links.open_link(VAULT, kind, uuid4(), signed) is None


def test_a_link_made_under_an_older_key_stays_good():
    old = links.callback_urls(keys("o"), "https://pay.example", CHECKOUT, PAGES).success
    assert links.open_link(keys("n", "o"), *parts(old))
    assert links.open_link(keys("n"), *parts(old)) is None


def test_a_changed_page_does_not_open():
    kind, checkout, signed = parts(links.callback_urls(VAULT, "https://pay.example", CHECKOUT, PAGES).success)
    evil = base64.urlsafe_b64encode(b"https://evil.example/").rstrip(b"=").decode()
    assert links.open_link(VAULT, kind, checkout, f"{evil}.{signed.partition('.')[2]}") is None


@given(
    st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,60}\.?[A-Za-z0-9_-]{0,30}", fullmatch=True),
    st.sampled_from(sorted(links.KINDS)),
)
def test_whatever_a_stranger_makes_up_does_not_open(signed, kind):
    assert links.open_link(VAULT, kind, CHECKOUT, signed) is None


@given(st.data())
def test_one_changed_character_closes_a_link(data):
    kind, checkout, signed = parts(links.callback_urls(VAULT, "https://pay.example", CHECKOUT, PAGES).success)
    at = data.draw(st.integers(0, len(signed) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_.=").filter(lambda character: character != signed[at]))
    assert links.open_link(VAULT, kind, checkout, signed[:at] + other + signed[at + 1 :]) is None


def test_a_link_that_no_page_needs_is_not_looked_at():
    assert links.open_link(VAULT, "success", CHECKOUT, "A" * 5000) is None


def test_a_link_hides_itself_when_printed():
    urls = links.callback_urls(VAULT, "https://pay.example", CHECKOUT, PAGES)
    assert "callbacks" not in repr(urls)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example", "https://a.example?orderId=A%261"),
        ("https://a.example/", "https://a.example/?orderId=A%261"),
        ("https://a.example/?", "https://a.example/?orderId=A%261"),
        ("https://a.example/?x=1&", "https://a.example/?x=1&orderId=A%261"),
        ("https://a.example/?x=%20+&y#f?g", "https://a.example/?x=%20+&y&orderId=A%261#f?g"),
        ("https://a.example/#f", "https://a.example/?orderId=A%261#f"),
        ("https://a.example/?orderId=A%261#f", "https://a.example/?orderId=A%261#f"),
        ("https://a.example/?orderId=B", "https://a.example/?orderId=B&orderId=A%261"),
    ],
)
def test_a_query_is_added_to_and_never_rewritten(url, expected):
    assert with_query(url, orderId="A&1") == expected


@given(
    st.lists(st.tuples(st.text("ab%20+=", max_size=4), st.text("ab%2", max_size=4)), max_size=4),
    st.text(max_size=20),
)
def test_what_is_added_can_be_read_again(query, value):
    url = "https://a.example/p?" + "&".join(f"{name}={text}" for name, text in query) + "#frag"
    added = urlsplit(with_query(url, checkoutId=value))
    assert ("checkoutId", value) in parse_qsl(added.query, keep_blank_values=True)
    assert added.query.startswith(urlsplit(url).query)
    assert added.fragment == "frag"


def test_a_client_token_names_its_checkout_and_is_the_same_each_time():
    token = links.client_token(VAULT, CHECKOUT)
    assert token == links.client_token(VAULT, CHECKOUT)
    assert len(token) == 43
    assert links.client_of(VAULT, token) == CHECKOUT


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True))
def test_a_made_up_client_token_names_nobody(token):
    assert links.client_of(VAULT, token) is None


def test_a_client_token_made_under_an_older_key_stays_good():
    token = links.client_token(keys("o"), CHECKOUT)
    assert links.client_of(keys("n", "o"), token) == CHECKOUT
    assert links.client_of(keys("n"), token) is None
