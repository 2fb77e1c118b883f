"""Settings of metrics and traces. `Settings` takes them from here."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from orchestrator.settings.values import HttpUrl, host_name

_SHORTEST = 16
"""Characters of a token that cannot be guessed."""


def long_enough(value: SecretStr) -> SecretStr:
    """Return a token; `ValueError` with the end of a sentence about one that is too short."""
    if 0 < len(value.get_secret_value()) < _SHORTEST:
        message = f"must have at least {_SHORTEST} characters"
        raise ValueError(message)
    return value


class MonitoringSettings(BaseSettings):
    """What `Settings` says of metrics and traces."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    metrics_token: Annotated[SecretStr, AfterValidator(long_enough)] = SecretStr("")
    """The token that Prometheus shows at `/metrics` of the API (`Authorization: Bearer`); unset: there is no
    such address. It opens the figures of all merchants."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """A port of its own on which the API serves `/metrics` without a token; unset: none. Open it to the
    operator's network only."""
    metrics_host: Annotated[str, AfterValidator(host_name)] = "127.0.0.1"
    """The address of METRICS_PORT."""
    traces_url: HttpUrl | None = None
    """Where spans are sent by OTLP over HTTP, such as http://collector:4318/v1/traces; unset: no traces.
    Needs the extra `traces`."""
    traces_sample: float = Field(default=0.1, ge=0, le=1)
    """The part of the orders whose traces are kept, where the shop's own `traceparent` does not say it."""
