"""Where a Celery task may go: names of tasks and queues, and URLs of merchants' brokers.

A URL is read more narrowly than Celery reads it: no parameters, no files, nothing that programs read
differently. Its host is checked as that of a webhook is. On our own broker a merchant has queues of its own,
by their names; no queue of the orchestrator and of another merchant is among them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote

from orchestrator.delivery.addresses import (
    FIRST_FREE_PORT,
    LAST_PORT,
    LONGEST_URL,
    WebhookUrlRejected,
    check_host,
    check_name,
)

if TYPE_CHECKING:
    from orchestrator.delivery.addresses import AddressPolicy

LONGEST_NAME: Final = 200
NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.:-]*"
"""A name of a task or a queue, up to `LONGEST_NAME` characters."""
OWN_PREFIX: Final = "events:"
"""Of queues for events on our own broker; the merchant's name follows."""

_EXAMPLE: Final = "must be the URL of a broker, such as amqps://user:password@broker.shop.example:5671/vhost"
_WORD: Final = "[A-Za-z0-9._~!$&'()*+,;=%-]"
_URL: Final = re.compile(
    rf"(?P<scheme>amqps?|rediss?)://(?:(?P<user>{_WORD}*)(?::(?P<password>{_WORD}*))?@)?"
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[1-9][0-9]{0,4}))?"
    rf"(?:/(?P<path>(?:{_WORD}|[:@/])*))?"
)
_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PORTS: Final = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379}
_DATABASE: Final = re.compile(r"[0-9]{0,4}")


def own_key_prefix(queue: str) -> str:
    """Return the prefix of a merchant's keys on our own Redis, by a queue of it: kombu keeps what is
    unacknowledged under keys of its own, which merchants must not share.
    """
    return "".join(f"{part}:" for part in queue.split(":")[:2])


class NameRejected(ValueError):  # noqa: N818 - named for the fact
    """A name of a task or a queue that cannot be used; the sentence follows its field."""


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker as its URL names it; `vhost` is RabbitMQ's, `db` is Redis's."""

    kind: Literal["amqp", "redis"]
    secure: bool
    host: str
    port: int
    username: str | None
    password: str | None = field(repr=False)
    vhost: str = "/"
    db: int = 0
    shown: str = ""
    """The URL without its login."""


def broker_of(url: str, policy: AddressPolicy) -> Broker:
    """Read the URL of a merchant's broker; raise `WebhookUrlRejected` with the end of a sentence for one that
    nothing is sent to.

    amqps:// and rediss://; in allowed networks amqp:// and redis:// too.
    """
    if not 1 <= len(url) <= LONGEST_URL:
        raise WebhookUrlRejected(f"must have 1 to {LONGEST_URL} characters")
    found = _URL.fullmatch(url)
    if found is None or _PERCENT.search(url):
        raise WebhookUrlRejected(_EXAMPLE)
    scheme, host, path = found["scheme"], found["host"], found["path"] or ""
    port = int(found["port"] or _PORTS[scheme])
    if not FIRST_FREE_PORT <= port <= LAST_PORT:
        raise WebhookUrlRejected(f"must have a port from {FIRST_FREE_PORT} to {LAST_PORT}")
    if not host.startswith("["):
        check_name(host, example=_EXAMPLE)
    kind: Literal["amqp", "redis"] = "amqp" if scheme.startswith("amqp") else "redis"
    secure = scheme != kind
    check_host(host, policy, secure=secure, wanted=f"{kind}s://")
    if kind == "redis" and not _DATABASE.fullmatch(path):
        raise WebhookUrlRejected("must end with the number of Redis's database, for example /0")
    return Broker(
        kind=kind,
        secure=secure,
        host=host.strip("[]"),
        port=port,
        username=_decoded(found["user"]),
        password=_decoded(found["password"]),
        vhost=_decoded(path) or "/",
        db=int(path or 0) if kind == "redis" else 0,
        shown=f"{scheme}://{host}:{port}/{path}",
    )


def _decoded(text: str | None) -> str | None:
    """Return text without percent-encoding; None for nothing."""
    if not text:
        return None
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise WebhookUrlRejected("must have its login percent-encoded as UTF-8") from None
    if not decoded.isprintable() or len(decoded.encode()) > LONGEST_NAME:
        raise WebhookUrlRejected(
            f"must have a user name, a password and a virtual host of up to {LONGEST_NAME} bytes each"
        )
    return decoded


def checked_name(name: str) -> str:
    """Return the name of a task or of a queue, unchanged; raise `NameRejected` with the end of a sentence."""
    if not 1 <= len(name) <= LONGEST_NAME or not re.fullmatch(NAME, name):
        raise NameRejected(
            f"must have 1 to {LONGEST_NAME} letters, digits, and _ . : -, and begin with no point, colon or hyphen"
        )
    return name


def checked_queue(name: str, *, merchant: str, own: bool) -> str:
    """Return the name of a queue, unchanged; raise `NameRejected` for one that is not the merchant's.

    `own`: on our own broker.
    """
    checked_name(name)
    mine = f"{OWN_PREFIX}{merchant}"
    if own and name != mine and not name.startswith(f"{mine}:"):
        raise NameRejected(f"must be {mine}, or begin with {mine}: on the orchestrator's own broker")
    if name.startswith("amq."):
        raise NameRejected("must not begin with amq., which RabbitMQ keeps for itself")
    return name
