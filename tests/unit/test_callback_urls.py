from __future__ import annotations

import base64
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from orchestrator import callback_urls
from orchestrator.callback_urls import with_query
from orchestrator.crypto import Encryptor

CHECKOUT = UUID("019aa000-0000-7000-8000-000000000001")
PAGES = {
    "success": "https://shop.example/paid?lang=da&orderId=A-1#top",
    "failure": "https://shop.example/not-paid",
    "redirect": None,
}


def keys(*names: str) -> Encryptor:
    return Encryptor([SecretStr(base64.b64encode(name.encode() * 32).decode()) for name in names])


ENCRYPTOR = keys("k")


def urls(
    encryptor: Encryptor = ENCRYPTOR, *, merchant_id: int = 1, **pages: str | None
) -> callback_urls.CallbackUrls:
    return callback_urls.callback_urls(
        encryptor, "https://pay.example/", CHECKOUT, PAGES | pages, merchant_id=merchant_id
    )


def older(encryptor: Encryptor, kind: str, page: str) -> str:
    """The signed part of a link as it was made before links named the merchant."""
    payload = page.encode()
    tag = encryptor.sign("callback-link", b"\0".join((kind.encode(), CHECKOUT.bytes, payload)))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (payload, tag))


def parts(url: str) -> tuple[str, UUID, str]:
    kind, checkout, signed = urlsplit(url).path.removeprefix("/callbacks/").split("/")
    return kind, UUID(checkout), signed


def test_a_link_opens_to_the_shops_page_with_the_checkout():
    made = urls()
    assert made.success.startswith(f"https://pay.example/callbacks/success/{CHECKOUT}/")
    opened = callback_urls.open_link(ENCRYPTOR, *parts(made.success))
    assert opened.page == f"https://shop.example/paid?lang=da&orderId=A-1&checkoutId={CHECKOUT}#top"
    assert callback_urls.open_link(ENCRYPTOR, *parts(made.failure)).page == (
        f"https://shop.example/not-paid?checkoutId={CHECKOUT}"
    )


def test_a_notification_leads_nowhere_and_is_signed_all_the_same():
    notification = urls().notification
    assert callback_urls.open_link(ENCRYPTOR, *parts(notification)).page == ""
    assert len(parts(notification)[2]) == 26


def test_a_shop_without_a_last_page_gets_no_link_for_it():
    assert urls().redirect is None
    redirect = urls(redirect="https://shop.example/done").redirect
    assert redirect is not None
    assert (
        callback_urls.open_link(ENCRYPTOR, *parts(redirect)).page
        == f"https://shop.example/done?checkoutId={CHECKOUT}"
    )


@given(st.integers(1, 2**31 - 1))
def test_a_link_names_its_merchant(merchant_id):
    made = urls(merchant_id=merchant_id, redirect="https://shop.example/done")
    for url in (made.success, made.failure, made.redirect, made.notification):
        assert callback_urls.open_link(ENCRYPTOR, *parts(url)).merchant_id == merchant_id


@pytest.mark.parametrize(
    ("kind", "page", "leads_to"),
    [
        ("success", "https://shop.example/paid", f"https://shop.example/paid?checkoutId={CHECKOUT}"),
        ("notification", "", ""),
    ],
)
def test_a_link_of_the_older_form_opens_and_names_no_merchant(kind, page, leads_to):
    opened = callback_urls.open_link(ENCRYPTOR, kind, CHECKOUT, older(ENCRYPTOR, kind, page))
    assert (opened.page, opened.merchant_id) == (leads_to, None)


def test_a_link_is_good_for_its_own_kind_checkout_and_merchant_only():
    kind, checkout, signed = parts(urls().success)
    assert callback_urls.open_link(ENCRYPTOR, kind, checkout, signed)
    for other in ("failure", "redirect", "notification", "merchant", "other"):
        assert callback_urls.open_link(ENCRYPTOR, other, checkout, signed) is None
    assert callback_urls.open_link(ENCRYPTOR, kind, uuid4(), signed) is None
    payload, _, tag = signed.partition(".")
    raw = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4))
    others = base64.urlsafe_b64encode(b"\x01\x02" + raw[2:]).rstrip(b"=").decode()
    assert callback_urls.open_link(ENCRYPTOR, kind, checkout, f"{others}.{tag}") is None


def test_a_link_made_under_an_older_key_stays_good():
    old = urls(keys("o")).success
    assert callback_urls.open_link(keys("n", "o"), *parts(old))
    assert callback_urls.open_link(keys("n"), *parts(old)) is None


def test_a_changed_page_does_not_open():
    kind, checkout, signed = parts(urls().success)
    evil = base64.urlsafe_b64encode(b"\x01\x01https://evil.example/").rstrip(b"=").decode()
    assert callback_urls.open_link(ENCRYPTOR, kind, checkout, f"{evil}.{signed.partition('.')[2]}") is None


@given(
    st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,60}\.?[A-Za-z0-9_-]{0,30}", fullmatch=True),
    st.sampled_from(sorted(callback_urls.KINDS)),
)
def test_an_invented_link_does_not_open(signed, kind):
    assert callback_urls.open_link(ENCRYPTOR, kind, CHECKOUT, signed) is None


@given(st.data())
def test_one_changed_character_closes_a_link(data):
    kind, checkout, signed = parts(urls().success)
    at = data.draw(st.integers(0, len(signed) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_.=").filter(lambda character: character != signed[at]))
    assert callback_urls.open_link(ENCRYPTOR, kind, checkout, signed[:at] + other + signed[at + 1 :]) is None


def test_a_link_that_no_page_needs_is_not_checked():
    assert callback_urls.open_link(ENCRYPTOR, "success", CHECKOUT, "A" * 5000) is None


def test_a_link_hides_itself_when_printed():
    assert "callbacks" not in repr(urls())
    assert "shop.example" not in repr(callback_urls.open_link(ENCRYPTOR, *parts(urls().success)))


# ── A merchant's own link ─────────────────────────────────────────────────────────────────────────────────


def merchant_parts(url: str) -> tuple[str, str]:
    before, merchant, signed = urlsplit(url).path.rsplit("/", 2)
    assert before == "/callbacks/merchant"
    return merchant, signed


def test_a_merchants_link_is_the_same_each_time_and_good_for_that_merchant_only():
    made = callback_urls.merchant_url(ENCRYPTOR, "https://pay.example/", "shop-1")
    assert made == callback_urls.merchant_url(ENCRYPTOR, "https://pay.example", "shop-1")
    name, signed = merchant_parts(made)
    assert callback_urls.open_merchant_link(ENCRYPTOR, name, signed)
    assert not callback_urls.open_merchant_link(ENCRYPTOR, "shop-2", signed)


def test_a_merchants_link_made_under_an_older_key_stays_good():
    name, signed = merchant_parts(callback_urls.merchant_url(keys("o"), "https://pay.example", "default"))
    assert callback_urls.open_merchant_link(keys("n", "o"), name, signed)
    assert not callback_urls.open_merchant_link(keys("n"), name, signed)


@given(st.text(), st.text() | st.from_regex(r"[A-Za-z0-9_-]{22}", fullmatch=True))
def test_an_invented_link_is_no_merchants_link(name, signed):
    assert not callback_urls.open_merchant_link(ENCRYPTOR, name, signed)
    assert not callback_urls.open_merchant_link(ENCRYPTOR, "\udcff", signed)


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
    token = callback_urls.client_token(ENCRYPTOR, CHECKOUT)
    assert token == callback_urls.client_token(ENCRYPTOR, CHECKOUT)
    assert len(token) == 43
    assert callback_urls.client_of(ENCRYPTOR, token) == CHECKOUT


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True))
def test_an_invented_client_token_names_no_checkout(token):
    assert callback_urls.client_of(ENCRYPTOR, token) is None


def test_a_client_token_made_under_an_older_key_stays_good():
    token = callback_urls.client_token(keys("o"), CHECKOUT)
    assert callback_urls.client_of(keys("n", "o"), token) == CHECKOUT
    assert callback_urls.client_of(keys("n"), token) is None
