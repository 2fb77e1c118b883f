"""Variables that Kubernetes makes in every pod for the services of its namespace, distinguished from settings
by name and value.

A service named `orchestrator`, or whose name begins so, makes variables with the prefix of our settings
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables). They are no
settings, and nothing is read from them; a misspelt setting is never mistaken for such a variable.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

# The variables that Kubernetes makes in a pod for each service of its namespace (`enableServiceLinks`), upper
# case, with _ for -. A name may be read in several ways: ORCHESTRATOR_SERVICE_PORT is the port of the service
# `orchestrator`, or the URL of `orchestrator-service`.
_SERVICE: Final = r"ORCHESTRATOR(?:_[A-Z0-9_]+)?"
_SERVICE_HOST: Final = re.compile(rf"{_SERVICE}(?:_SERVICE_HOST|_PORT_[0-9]+_(?:TCP|UDP|SCTP)_ADDR)")
_SERVICE_PORT: Final = re.compile(rf"{_SERVICE}_SERVICE_PORT(?:_[A-Z0-9_]+)?")
_SERVICE_URL: Final = re.compile(rf"{_SERVICE}_PORT(?:_(?P<number>[0-9]+)_(?P<protocol>TCP|UDP|SCTP))?")
_SERVICE_PART: Final = re.compile(
    rf"{_SERVICE}_PORT_(?P<number>[0-9]+)_(?P<protocol>TCP|UDP|SCTP)_(?:PROTO|PORT)"
)
_LINK_URL: Final = re.compile(
    r"(?P<protocol>tcp|udp|sctp)://(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+):(?P<number>[0-9]+)"
)
_HIGHEST_PORT: Final = 65_535


def is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes made a variable for a service of our prefix, by its name and its value."""
    if _SERVICE_HOST.fullmatch(name) and _is_address(value):
        return True
    if _SERVICE_PORT.fullmatch(name) and _is_port(value):
        return True
    part = _SERVICE_PART.fullmatch(name)
    if part and value == (part["protocol"].lower() if name.endswith("_PROTO") else part["number"]):
        return True
    link, url = _SERVICE_URL.fullmatch(name), _LINK_URL.fullmatch(value)
    return (
        link is not None
        and url is not None
        and _is_address(url["host"].strip("[]"))
        and _is_port(url["number"])
        and link["number"] in {None, url["number"]}
        and link["protocol"] in {None, url["protocol"].upper()}
    )


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def _is_port(value: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", value) is not None and 0 < int(value) <= _HIGHEST_PORT
