"""The kinds of values that settings take, each checked with one sentence that says what it must be."""

from __future__ import annotations

import base64
import binascii
import math
import re
import ssl
from ipaddress import ip_network
from itertools import pairwise
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr

from orchestrator.settings.broker_url import AMQP, REDIS, parts_of
from orchestrator.settings.broker_url import read as read_broker_url
from orchestrator.settings.hosts import is_loopback, reach_of
from orchestrator.settings.postgres_url import parameters, prepare_threshold


def http_url(value: str) -> str:
    """Return a base URL without its final slash; `ValueError` with the end of a sentence about it."""
    if not value.isprintable() or " " in value:
        # urlsplit drops line breaks and tabs, so that what it reads is not what is used.
        raise ValueError("must be a URL without spaces, line breaks and other control characters")
    parts = parts_of(value, "http", "https")
    if "?" in value or "#" in value or "@" in parts.netloc:
        # Paths are put behind it, and it is shown in logs.
        raise ValueError("must be a URL without query, fragment or credentials")
    if reach_of(parts.hostname or "") == "forbidden":
        message = "must name a host that can be a gateway or an API, not a link-local, metadata, multicast or unspecified address"
        raise ValueError(message)
    return value.rstrip("/")


def postgres_url_text(value: str) -> str:
    scheme, separator, _ = value.partition("://")
    if scheme not in {"postgresql", "postgres", "postgresql+psycopg"} or not separator:
        message = "must be a URL that starts with postgresql:// or postgres:// or postgresql+psycopg://"
        raise ValueError(message)
    if value.partition("?")[0].count("@") > 1:
        raise ValueError("must have its user name and password percent-encoded: @ is written %40")
    known = parameters(value)
    prepare_threshold(known.get("prepare_threshold", "none"))
    if not (known.get("host") or known.get("dbname")):
        raise ValueError("must be a URL that starts with postgresql://, and this one names no host")
    return value.rstrip("/")


HttpUrl = Annotated[str, AfterValidator(http_url)]
PostgresUrl = Annotated[str, AfterValidator(postgres_url_text)]


def broker_url_text(*kinds: str) -> AfterValidator:
    def check(value: str) -> str:
        value = value.rstrip("/")
        read_broker_url(value, kinds=kinds)
        return value

    return AfterValidator(check)


BrokerUrl = Annotated[str, broker_url_text(*REDIS, *AMQP)]
RedisUrl = Annotated[str, broker_url_text(*REDIS)]


def certificates(value: str) -> str:
    try:
        ssl.create_default_context(cafile=value)
    except OSError as error:  # an SSLError is an OSError
        message = f"must be a file with certificates in PEM form ({error.strerror or 'it has none'})"
        raise ValueError(message) from None
    return value


def secret_key(value: SecretStr) -> SecretStr:
    try:
        size = len(base64.b64decode(value.get_secret_value(), validate=True))
    except (binascii.Error, ValueError):
        size = -1
    if size != 32:  # noqa: PLR2004 - AES-256
        raise ValueError("each key must be 32 bytes in base64 (openssl rand -base64 32)")
    return value


def jwt_secret(value: SecretStr) -> SecretStr:
    if len(value.get_secret_value()) < 32:  # noqa: PLR2004 - RFC 7518, 3.2: at least the hash's size
        raise ValueError("each secret must have at least 32 characters")
    return value


def public_key(value: str) -> str:
    from orchestrator.issuer_keys import of_pem  # noqa: PLC0415 - only where there are some

    of_pem(value)
    return value


def safe_url(value: str) -> str:
    """Refuse a URL whose answer could be altered in transit: plain http to another machine."""
    if value.startswith("http:") and not is_loopback(urlsplit(value).hostname or ""):
        message = "must start with https:// unless it is on this machine: the keys of tokens come from there"
        raise ValueError(message)
    return value


LEAST_CALLBACK_SECRET: Final = 6
LONGEST_CALLBACK_SECRET: Final = 255
"""Characters. The gateway's own webhook secrets have 16 at least; the shared secret of a terminal may be
shorter (D6, C5)."""


def callback_secret(value: str) -> str:
    """Return a callback secret as it is; `ValueError` with the end of a sentence about what is wrong."""
    if len(value) < LEAST_CALLBACK_SECRET:
        message = f"must have at least {LEAST_CALLBACK_SECRET} characters: take the one that the gateway shows (16 or more)"
        raise ValueError(message)
    if len(value) > LONGEST_CALLBACK_SECRET:
        raise ValueError(f"must have at most {LONGEST_CALLBACK_SECRET} characters, and has {len(value)}")
    if not value.isprintable() or value != value.strip():
        message = "must not hold control characters, nor spaces at its ends: copy it without the line break"
        raise ValueError(message)
    return value


def credential(value: str | SecretStr) -> str | SecretStr:
    given = value if isinstance(value, str) else value.get_secret_value()
    if not given.isprintable() or (isinstance(value, str) and ":" in given):
        # Basic authentication allows neither (RFC 7617).
        raise ValueError("must not hold line breaks or other control characters, and a user name no colon")
    return value


def secret_of_callbacks(value: SecretStr) -> SecretStr:
    callback_secret(value.get_secret_value())
    return value


def network(value: str) -> str:
    try:
        ip_network(value)
    except ValueError:
        message = "each entry must be an address or a network such as 192.0.2.0/24 or 2001:db8::/32"
        raise ValueError(message) from None
    return value


def host_name(value: str) -> str:
    if not HOST.fullmatch(value):
        raise ValueError(
            "each entry must be a host name without scheme and port, or *. and a domain such as *.example.com"
        )
    return value.lower().rstrip(".")


HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|\[?[0-9A-Fa-f:.]+\]?")


def ascending(value: tuple[float, ...]) -> tuple[float, ...]:
    rising = all(before < after for before, after in pairwise((0.0, *value)))
    if not rising or not all(math.isfinite(item) for item in value):
        raise ValueError("each number must be greater than 0 and greater than the one before it")
    return value


SafeUrl = Annotated[str, AfterValidator(http_url), AfterValidator(safe_url)]


def blank_around(value: object) -> str | None:
    """Say what white space a text, a secret or an entry of a list has at its ends; None where it has none."""
    if isinstance(value, list | tuple):
        found = (blank_around(item) for item in value)
        return next((f"an entry {fault}" for fault in found if fault is not None), None)
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if not isinstance(text, str) or text == text.strip():
        return None
    end = "ends in" if text.rstrip() != text else "begins with"
    around = text[len(text.rstrip()) :] if end == "ends in" else text[: len(text) - len(text.lstrip())]
    return f"{end} {'a line break' if set(around) & set(_BREAKS) else 'white space'}"


_BREAKS: Final = "\r\n\v\f\x85\u2028\u2029"
