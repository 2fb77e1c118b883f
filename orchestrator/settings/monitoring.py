"""Settings of metrics and traces. `Settings` takes them from here."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.settings.values import HOST, HttpUrl

_LAST_PORT = 65_535
_SHORTEST = 16
"""Characters of a token that cannot be guessed."""


def long_enough(value: SecretStr) -> SecretStr:
    """Return a token; `ValueError` with the end of a sentence about one that is too short."""
    if 0 < len(value.get_secret_value()) < _SHORTEST:
        message = f"must have at least {_SHORTEST} characters"
        raise ValueError(message)
    return value


def listening(value: str) -> str:
    """Return an address to listen on; `ValueError` with the end of a sentence about one that is none."""
    host, _, port = value.rpartition(":")
    if (
        not HOST.fullmatch(host)
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) <= _LAST_PORT
    ):
        message = "must be a host or an address and a port, such as 127.0.0.1:9100"
        raise ValueError(message)
    return value


class MonitoringSettings(BaseSettings):
    """What `Settings` says of metrics and traces."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    metrics_token: Annotated[SecretStr, AfterValidator(long_enough)] = SecretStr("")
    """The token that Prometheus shows at `/metrics` of the API (`Authorization: Bearer`); unset: there is no
    such address. It opens the figures of all merchants."""
    metrics_listen: Annotated[str, AfterValidator(listening)] | None = None
    """An address of its own on which the API serves `/metrics` without a token, such as 127.0.0.1:9100;
    unset: none. Only the operator's network may reach it."""
    traces_url: HttpUrl | None = None
    """Where spans are sent by OTLP over HTTP, such as http://collector:4318/v1/traces; unset: no traces.
    Needs the extra `traces`."""
    traces_sample: float = Field(default=0.1, ge=0, le=1)
    """The part of the traces that is kept; the trace id decides, so that all processes keep the same."""
