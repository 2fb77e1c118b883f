"""Signed links: the callback URLs for the gateway, and the token of a shopper's browser.

A callback link contains the shop's own page, under our signature, so that a shopper is redirected without a
query, also while Postgres is away, and so that the link cannot be used as a redirect to another site; and the
merchant, so that a callback is graded with that merchant's secrets without a query either. The signature
covers the kind, the checkout, the merchant and the page. A link opens with any key that the installation
still has; nothing about links is stored.

What a merchant's terminals send by default names no checkout: for that there is one link for each merchant.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_plus
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.crypto import Encryptor

KINDS: Final = frozenset({"success", "failure", "notification", "redirect"})
LONGEST: Final = 4096
"""Characters of the signed part: a page of 2,048 characters with its order number takes 2,900."""

_PURPOSE: Final = "callback-link"
_MERCHANT: Final = "merchant-link"
_CLIENT: Final = "client-token"
_TEXT: Final = re.compile(r"[A-Za-z0-9_-]*")
_TAG: Final = 16
_CLIENT_SIZE: Final = 16 + _TAG
# The first byte of a payload that names a merchant. A page is a URL and starts with no control character, so
# the older form, a page alone, is distinguished from it.
_NAMES_MERCHANT: Final = b"\x01"


@dataclass(frozen=True, slots=True)
class CallbackUrls:
    """The signed callback URLs for the gateway: a URL is all that a call needs, so they are never logged."""

    success: str = field(repr=False)
    failure: str = field(repr=False)
    redirect: str | None = field(repr=False)
    notification: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class OpenedLink:
    """The content of a callback link.

    `page` is where to send the shopper, with the checkout's id in its query; empty for a notification, which
    leads nowhere. `merchant_id` is None for a link of the older form.
    """

    page: str = field(repr=False)
    merchant_id: int | None


def callback_urls(
    encryptor: Encryptor,
    public_url: str,
    checkout_id: UUID,
    pages: Mapping[str, str | None],
    *,
    merchant_id: int,
) -> CallbackUrls:
    """Make a checkout's links from the shop's pages by kind; without a page there is no redirect."""

    def link(kind: str, page: str) -> str:
        payload = _NAMES_MERCHANT + _packed(merchant_id) + page.encode()
        tag = encryptor.sign(_PURPOSE, _message(kind, checkout_id, payload))
        return f"{public_url.rstrip('/')}/callbacks/{kind}/{checkout_id}/{_encode(payload)}.{_encode(tag)}"

    redirect = pages.get("redirect")
    return CallbackUrls(
        success=link("success", pages["success"] or ""),
        failure=link("failure", pages["failure"] or ""),
        redirect=None if redirect is None else link("redirect", redirect),
        notification=link("notification", ""),
    )


def open_link(encryptor: Encryptor, kind: str, checkout_id: UUID, signed: str) -> OpenedLink | None:
    """Return what a link says; None if we did not sign it."""
    if kind not in KINDS or len(signed) > LONGEST:
        return None
    payload_text, dot, tag_text = signed.partition(".")
    payload, tag = _decode(payload_text), _decode(tag_text)
    if not dot or payload is None or tag is None:
        return None
    if not encryptor.signed(_PURPOSE, _message(kind, checkout_id, payload), tag):
        return None
    merchant_id = None
    if payload.startswith(_NAMES_MERCHANT):
        merchant_id, payload = _unpacked(payload[1:])
    page = payload.decode()
    return OpenedLink(with_query(page, checkoutId=str(checkout_id)) if page else "", merchant_id)


def merchant_url(encryptor: Encryptor, public_url: str, merchant: str) -> str:
    """Make the link for what names no checkout: the address of a merchant's terminals for their default
    notification.

    It is the same each time, and as secret as the others: a sender who has it can call it.
    """
    tag = _encode(encryptor.sign(_MERCHANT, merchant.encode()))
    return f"{public_url.rstrip('/')}/callbacks/merchant/{quote(merchant, safe='')}/{tag}"


def open_merchant_link(encryptor: Encryptor, merchant: str, signed: str) -> bool:
    tag = _decode(signed) if len(signed) < 2 * _TAG else None
    return tag is not None and encryptor.signed(_MERCHANT, merchant.encode("utf-8", "surrogatepass"), tag)


def client_token(encryptor: Encryptor, checkout_id: UUID) -> str:
    """Return the token by which a browser follows this one checkout: 43 characters, always the same."""
    return _encode(checkout_id.bytes + encryptor.sign(_CLIENT, checkout_id.bytes))


def client_of(encryptor: Encryptor, token: str) -> UUID | None:
    """Return the checkout that a client token is for; None if we did not make it."""
    raw = _decode(token) if len(token) < 2 * _CLIENT_SIZE else None
    if raw is None or len(raw) != _CLIENT_SIZE or not encryptor.signed(_CLIENT, raw[:16], raw[16:]):
        return None
    return UUID(bytes=raw[:16])


def with_query(url: str, **values: str) -> str:
    """Add parameters to a URL's query, none twice; what is there stays as it is, also the fragment."""
    rest, hash_sign, fragment = url.partition("#")
    base, _, query = rest.partition("?")
    pairs = (part.partition("=") for part in query.split("&") if part)
    present = {(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs}
    added = "&".join(
        f"{quote(name, safe='')}={quote(value, safe='')}"
        for name, value in values.items()
        if (name, value) not in present
    )
    if not added:
        return url
    joined = f"{query}&{added}" if query and not query.endswith("&") else query + added
    return f"{base}?{joined}{hash_sign}{fragment}"


def _message(kind: str, checkout_id: UUID, payload: bytes) -> bytes:
    return b"\0".join((kind.encode(), checkout_id.bytes, payload))


def _packed(number: int) -> bytes:
    """Write a number in as few bytes as it takes, seven bits in each, the last one without its high bit."""
    packed = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*packed, number))


def _unpacked(packed: bytes) -> tuple[int, bytes]:
    """Return the number that `_packed` wrote in front, and what follows it. We signed it, so it is whole."""
    number = shift = size = 0
    for size, byte in enumerate(packed, 1):  # noqa: B007 - the last value counts
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:  # noqa: PLR2004 - the high bit
            break
    return number, packed[size:]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decode(text: str) -> bytes | None:
    """Decode base64url without padding; None unless it is exactly what `_encode` writes."""
    if not _TEXT.fullmatch(text):
        return None
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return raw if _encode(raw) == text else None
