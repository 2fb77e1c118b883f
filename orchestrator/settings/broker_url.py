"""Where the broker and Redis are: one reading of their URLs for every client, so that each connects, and
verifies, in the same way.

    redis://user:password@host:port/db        rediss://… the same over TLS
    amqp://user:password@host:port/vhost      amqps://… the same over TLS
    sentinel://:password@host:port/db;sentinel://host:port?master_name=NAME
        Redis behind Sentinel; `ssl=true`: over TLS

TLS verifies the server's certificate and its name unless the URL says `ssl_cert_reqs=none`. No input and
output here.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

REDIS: Final = ("redis", "rediss", "sentinel")
AMQP: Final = ("amqp", "amqps")
SENTINEL_PORT: Final = 26379
_VERIFY: Final = {"required": True, "optional": True, "none": False}
_TLS_PARAMETERS: Final = (
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
)
_SENTINEL_PARAMETERS: Final = ("master_name", "sentinel_username", "sentinel_password", "ssl")


@dataclass(frozen=True, slots=True)
class Tls:
    """How TLS is done. Without `ca_file` the certificate authorities of the system count."""

    verify: bool = True
    check_hostname: bool = True
    ca_file: str | None = None
    certificate: str | None = None
    key: str | None = None

    def for_redis(self) -> dict[str, object]:
        """Return what redis-py takes, directly or through kombu."""
        return {
            "ssl_cert_reqs": "required" if self.verify else "none",
            "ssl_check_hostname": self.verify and self.check_hostname,
            "ssl_ca_certs": self.ca_file,
            "ssl_certfile": self.certificate,
            "ssl_keyfile": self.key,
        }

    def for_amqp(self, host: str) -> dict[str, object]:
        """Return py-amqp's options.

        It checks the server's name only if that is given; kombu fills in a name that is None.
        """
        name = {"server_hostname": host} if self.verify and self.check_hostname else {}
        return {
            **name,
            "cert_reqs": ssl.CERT_REQUIRED if self.verify else ssl.CERT_NONE,
            "ca_certs": self.ca_file,
            "certfile": self.certificate,
            "keyfile": self.key,
        }


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One broker or Redis, as its URL names it."""

    kind: Literal["redis", "amqp", "sentinel"]
    urls: tuple[str, ...]
    """Without parameters. More than one URL for Sentinel only, each with the credentials of Redis itself."""
    host: str
    username: str | None
    password: str | None
    db: int
    """Redis's database; 0 for AMQP."""
    tls: Tls | None
    sentinels: tuple[tuple[str, int], ...] = ()
    master: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None


def read(url: str, *, ca_file: str | None = None, kinds: tuple[str, ...] = (*REDIS, *AMQP)) -> Endpoint:
    """Read a URL, `ca_file` where it names none; `ValueError` with the end of a sentence ("must be …")."""
    urls = url.split(";") if url.startswith("sentinel://") else [url]
    first = parts_of(urls[0], *kinds)
    scheme = first.scheme
    all_parts = [first, *(parts_of(other, scheme) for other in urls[1:])]
    asked = _parameters(all_parts, scheme)
    tls = _tls(asked, ca_file) if scheme in {"rediss", "amqps"} or _flag(asked, "ssl", "false") else None
    if scheme == "sentinel" and not asked.get("master_name"):
        raise ValueError(
            "must name the primary that Sentinel watches, for example sentinel://host:26379/0?master_name=mymaster"
        )
    db = _database(first) if scheme in REDIS else 0
    bare = [
        urlunsplit(
            parts._replace(netloc=_with_credentials(first, parts), path=first.path, query="", fragment="")
        )
        for parts in all_parts
    ]
    return Endpoint(
        kind="sentinel" if scheme == "sentinel" else "amqp" if scheme in AMQP else "redis",
        urls=tuple(bare),
        host=first.hostname or "",
        username=unquote(first.username) if first.username else None,
        password=unquote(first.password) if first.password else None,
        db=db,
        tls=tls,
        sentinels=tuple((parts.hostname or "", parts.port or SENTINEL_PORT) for parts in all_parts)
        if scheme == "sentinel"
        else (),
        master=asked.get("master_name", ""),
        sentinel_username=asked.get("sentinel_username"),
        sentinel_password=asked.get("sentinel_password"),
    )


def parts_of(url: str, *schemes: str) -> SplitResult:
    """Split a URL of one of these schemes that names a host; `ValueError` as `read`."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL whose host and port can be read") from None
    wanted = "must be a URL that starts with " + " or ".join(f"{scheme}://" for scheme in schemes)
    if "://" not in url or parts.scheme not in schemes:
        raise ValueError(wanted)
    if not parts.hostname:
        raise ValueError(f"{wanted}, and this one names no host")
    if parts.netloc.count("@") > 1:
        raise ValueError("must have its user name and password percent-encoded: @ is written %40")
    return parts


def _parameters(all_parts: list[SplitResult], scheme: str) -> dict[str, str]:
    known = (*_TLS_PARAMETERS, *(_SENTINEL_PARAMETERS if scheme == "sentinel" else ()))
    asked: dict[str, str] = {}
    for parts in all_parts:
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name not in known or (name in _TLS_PARAMETERS and scheme in {"redis", "amqp"}):
                raise ValueError(f"has the parameter {name!r}, which a {scheme}:// URL does not take")
            asked[name] = value
    return asked


def _tls(asked: dict[str, str], ca_file: str | None) -> Tls:
    how = asked.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    if how not in _VERIFY:
        raise ValueError("has an ssl_cert_reqs that is none of required, optional and none")
    return Tls(
        verify=_VERIFY[how],
        check_hostname=_flag(asked, "ssl_check_hostname", "true"),
        ca_file=asked.get("ssl_ca_certs") or ca_file,
        certificate=asked.get("ssl_certfile"),
        key=asked.get("ssl_keyfile"),
    )


def _flag(asked: dict[str, str], name: str, default: str) -> bool:
    said = asked.get(name, default).lower()
    if said not in {"true", "false"}:
        raise ValueError(f"has an {name} that is neither true nor false")
    return said == "true"


def _database(parts: SplitResult) -> int:
    path = parts.path.strip("/")
    if path and not path.isdecimal():
        raise ValueError("must end with the number of Redis's database, for example /0")
    return int(path or 0)


def _with_credentials(first: SplitResult, parts: SplitResult) -> str:
    """Return host and port with the credentials of the first URL: all Sentinels name the same Redis."""
    credentials, at, _ = first.netloc.rpartition("@")
    return f"{credentials}{at}{parts.netloc.rpartition('@')[2]}"
