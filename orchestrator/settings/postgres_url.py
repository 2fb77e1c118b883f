"""The URL of Postgres, split into libpq's own parameters; one host or several, in every usual spelling.

`postgresql://user:password@a,b/name`, `…@a:5432,b:5432/name`, `…@/name?host=a,b&port=5432,5433`,
`?host=a:5432&host=b:5432` and `?host=/directory/of/the/socket` mean what they mean to libpq and to
SQLAlchemy. Hosts are tried in this order.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, unquote

_URL: Final = re.compile(
    r"[^:/]+://(?:(?P<login>[^@/?#]*)@)?(?P<hosts>[^@/?#]*)(?:/(?P<name>[^?#]*))?(?:\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(?P<host>\[[^\]]+\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_LAST_PORT: Final = 65535


def parameters(url: str) -> dict[str, str]:
    """Return libpq's parameters for a URL; `ValueError` with the end of a sentence about what is wrong."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("must be a URL whose host and port can be read")
    query = parse_qsl(found["query"] or "", keep_blank_values=True)
    chosen = {name: value for name, value in query if name not in {"host", "port"}}
    given = [part for name, value in query if name == "host" for part in value.split(",")]
    ports = [part for name, value in query if name == "port" for part in value.split(",")]
    hosts = [_host(part) for part in (unquote(found["hosts"]).split(",") if found["hosts"] else given)]
    if len(ports) == 1:
        ports *= max(len(hosts), 1)
    if hosts:
        if len(ports) > len(hosts):
            raise ValueError(f"must not have more ports ({len(ports)}) than hosts ({len(hosts)})")
        ports += [""] * (len(hosts) - len(ports))
        chosen["host"] = ",".join(host for host, _ in hosts)
        ports = [port or general for (_, port), general in zip(hosts, ports, strict=True)]
    if any(ports):
        chosen["port"] = ",".join(ports)
    name, _, password = (found["login"] or "").partition(":")
    for key, value in (("user", name), ("password", password), ("dbname", found["name"] or "")):
        if value:
            chosen[key] = unquote(value)
    return chosen


def prepare_threshold(said: str) -> int | None:
    """Read this parameter as psycopg does: a statement is prepared after so many executions, or never."""
    if said.lower() == "none":
        return None
    if not said.isdecimal():
        raise ValueError(f"must have a whole number or none as prepare_threshold, and not {said!r}")
    return int(said)


def place(url: str) -> str:
    """Return where a URL leads, without login and options, for a message."""
    known = parameters(url)
    hosts = known.get("host", "").split(",")
    ports = known.get("port", "").split(",") + [""] * len(hosts)
    shown = ",".join(
        "its socket" if not host or host.startswith("/") else f"{host}:{port}" if port else host
        for host, port in zip(hosts, ports, strict=False)
    )
    return f"{shown}/{known['dbname']}" if "dbname" in known else shown


def _host(part: str) -> tuple[str, str]:
    """Split `host:port`; a directory of a socket and a bare IPv6 address have no port."""
    if part.startswith("/") or (part.count(":") > 1 and "[" not in part):
        return part, ""
    found = _HOST.fullmatch(part)
    if found is None or (found["port"] and not 0 < int(found["port"]) <= _LAST_PORT):
        raise ValueError("must be a URL whose host and port can be read")
    return found["host"].strip("[]"), found["port"] or ""
