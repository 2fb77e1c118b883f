"""All settings, read once from the environment into one frozen object.

Every name is an environment variable with the prefix ``ORCHESTRATOR_``; lists are JSON arrays. A wrong value
stops the start with one sentence that names the variable (``SettingsError``). This is the only module that
reads the environment; secrets are held so that printing the object does not show them.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal  # noqa: TC003 - pydantic reads it
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SourceError

from orchestrator.errors import OrchestratorError
from orchestrator.settings.access import AccessSettings
from orchestrator.settings.broker_url import AMQP, Endpoint
from orchestrator.settings.broker_url import read as read_broker_url
from orchestrator.settings.pod_environment import is_service_link
from orchestrator.settings.secrets import SECRET, SECRETS
from orchestrator.settings.values import (
    BrokerUrl,
    HttpUrl,
    PostgresUrl,
    RedisUrl,
    SafeUrl,
    ascending,
    blank_around,
    certificates,
    credential,
    host_name,
    jwt_secret,
    network,
    public_key,
    secret_key,
    secret_of_callbacks,
)
from orchestrator.text import neutralised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.issuer_keys import PublicKey

PREFIX = "ORCHESTRATOR_"


class SettingsError(OrchestratorError):
    """A setting is missing or wrong; the sentence names the environment variable and what it takes."""


class Settings(AccessSettings):
    """The settings of one process. Durations are seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    # Where things are. Unset URLs mean the embedded servers (only `up` and `demo` start those).
    # The first four hold a password.
    database_url: PostgresUrl | None = Field(default=None, repr=False)
    """Postgres 15 or newer: postgresql://user:password@host:port/name, or several hosts:
    user:password@a:5432,b:5432/name."""
    migration_url: PostgresUrl | None = Field(default=None, repr=False)
    """The same database for the role that owns its tables, without a pooler between, for `migrate` and
    `archive`; unset: DATABASE_URL."""
    database_prepared_statements: Literal["auto", "on", "off"] = "auto"
    """Whether statements are prepared; auto: not behind a pooler, which is recognised. `on` for a pooler that
    keeps them apart."""
    database_timeout: float = Field(default=3.0, ge=0.5, le=30)
    """How long Postgres may take to answer a statement of orders and callbacks; then its connection is
    dropped, and it is repeated."""
    broker_url: BrokerUrl | None = Field(default=None, repr=False)
    """The broker of the hints: redis://, amqp://, the same over TLS (rediss://, amqps://), or Redis behind
    Sentinel: sentinel://host:26379/0;sentinel://host2:26379?master_name=NAME."""
    broker_ca_file: Annotated[str, AfterValidator(certificates)] | None = None
    """Certificate authorities (a PEM file) that sign the certificates of the broker and of Redis; unset: the
    system's."""
    redis_url: RedisUrl | None = Field(default=None, repr=False)
    """Redis for what processes share beside the broker; unset: the broker's, where that is Redis."""
    gateway_url: HttpUrl | None = None
    """The gateway; both of its APIs are below it: /checkout/v1/api and /merchant/API."""
    merchant_api_url: HttpUrl | None = None
    """Only where the Merchant API lives elsewhere."""
    gateway_allowed_hosts: tuple[Annotated[str, AfterValidator(host_name)], ...] = ()
    """Hosts that merchants' credentials may be sent to, such as "shop.altapaysecure.com" or
    "*.altapaysecure.com"; empty: any."""
    public_url: HttpUrl = "http://127.0.0.1:8000"
    """Where the gateway reaches our callbacks."""

    # Who we are at the gateway (merchant `default`); further merchants live in the database.
    gateway_username: Annotated[str, AfterValidator(credential)] = ""
    """The API user of merchant `default`; further merchants are in the database."""
    gateway_password: Annotated[SecretStr, AfterValidator(credential)] = SecretStr("")
    """Its password."""
    gateway_secrets: tuple[Annotated[SecretStr, AfterValidator(secret_of_callbacks)], ...] = ()
    """Callback secrets of merchant `default`, newest first."""

    sandbox_token: SecretStr = SecretStr("")
    """The token of the control API of the sandbox; unset: `up` and `sandbox` make one."""

    # Keys, newest first; older ones only read.
    secret_keys: tuple[Annotated[SecretStr, AfterValidator(secret_key)], ...] = ()
    """Keys for encryption, audit trail and links, newest first: 32 bytes each in base64. Older ones still
    decrypt and verify."""
    jwt_secrets: tuple[Annotated[SecretStr, AfterValidator(jwt_secret)], ...] = ()
    """Secrets of the API's bearer tokens (HS256), newest first, at least 32 characters each."""
    jwt_public_keys: tuple[Annotated[str, AfterValidator(public_key)], ...] = ()
    """Public keys (PEM) that verify bearer tokens which another system signs: RSA (RS256, PS256), P-256
    (ES256), P-384 (ES384) or Ed25519 (EdDSA)."""
    jwt_jwks_url: SafeUrl | None = None
    """Where an identity provider publishes the keys of its tokens (JWKS), https unless on this machine:
    fetched when needed and kept for ten minutes, for a day while it cannot be reached."""
    jwt_issuer: str = "orchestrator"
    """Claim `iss` of those tokens."""
    jwt_audience: str = "orchestrator"
    """Claim `aud` of those tokens."""
    jwt_max_lifetime: float = Field(default=366 * 86_400.0, ge=60, le=3660 * 86_400)
    """The longest lifetime of a token, from its `iat` to its `exp`: a longer one is neither issued nor
    accepted."""

    approval_limits: dict[
        Annotated[str, Field(pattern=r"^([A-Z]{3}|\*)$")], Annotated[Decimal, Field(ge=0)]
    ] = Field(default={})
    """Amounts above which a second person approves in the console what moves money, by currency:
    {"DKK": 10000, "*": 1000}; `*` is every other currency; empty: no second person."""

    # Gateway calls. The total bounds a call however slow its answer is; a too large answer is an outcome.
    gateway_connect_timeout: float = Field(default=3.0, gt=0, le=60)
    """Name, connection and TLS handshake of one call."""
    gateway_read_timeout: float = Field(default=8.0, gt=0, le=60)
    """How long one call may be without new data."""
    gateway_total_timeout: float = Field(default=10.0, gt=0, le=60)
    """One call from start to end, also when data still arrives; to read a large answer may take as long
    again."""
    gateway_pool_size: int = Field(default=200, ge=1, le=2000)
    """Connections to one gateway (scheme, host and port) from one process."""
    gateway_pool_total: int = Field(default=600, ge=1, le=10_000)
    """Connections to all gateways from one process."""
    gateway_calls_per_second: float = Field(default=0.0, ge=0, le=100_000)
    """Calls to one gateway from all workers together; 0: no limit. Without Redis each worker takes its part
    of it."""
    breaker_failures: int = Field(default=10, ge=0, le=10_000)
    """Calls in a row that a gateway did not serve, after which its circuit opens: no worker calls it for a
    while; 0: never."""
    breaker_pause: float = Field(default=30.0, gt=0, le=600)
    """The longest time for which a circuit stays open; the first is 2 seconds, and it doubles while the
    gateway does not answer."""
    gateway_answer_limit: int = Field(default=2_000_000, ge=10_000, le=50_000_000)
    """Bytes; a longer answer counts as none."""

    # Leases, due times, retries.
    lease_seconds: float = Field(default=10.0, ge=1, le=3600)
    """How long a checkout waits after the worker that held it has ended; a live worker renews its leases, and
    a capture, refund or release makes its own last for 3 times GATEWAY_TOTAL_TIMEOUT."""
    hint_grace: float = Field(default=5.0, ge=0.2, le=300)
    """How long a published hint may take before the sweeper publishes it again."""
    hint_size: int = Field(default=50, ge=1, le=1000)
    """Checkouts in one message."""
    sweep_interval: float = Field(default=1.0, ge=0.1, le=60)
    """Seconds between two sweeps of due checkouts."""
    self_sweep_after: float = Field(default=10.0, ge=0.5, le=600)
    """A worker that has received no message for so long sweeps by itself."""
    retry_base: float = Field(default=1.0, gt=0, le=60)
    """Ceiling of the first back-off; it doubles, with full jitter."""
    retry_cap: float = Field(default=300.0, gt=0, le=3600)
    """Ceiling of every back-off."""
    operation_quiet: float = Field(default=120.0, ge=0.1, le=3600)
    """How long after a capture, refund or release may have been sent its absence at the gateway proves
    nothing."""
    poison_claims: int = Field(default=10, ge=2, le=1000)
    """Claims without any result after which a checkout is set aside for a person."""

    # Callbacks: what counts as the gateway's, and how much of it is kept.
    callback_max_age: float = Field(default=86_400.0, ge=1, le=366 * 86400)
    """A signature that is older proves nothing (a replay), where the unit of its timestamp is known."""
    gateway_networks: tuple[Annotated[str, AfterValidator(network)], ...] = (
        "185.206.120.0/24",
        "185.203.232.129",
        "185.203.233.129",
        "2a10:a200::/29",
    )
    """Addresses that the gateway calls from; an empty list: not checked."""
    trusted_proxies: int = Field(default=0, ge=0, le=20)
    """Proxies in front of the API, each of which appends to X-Forwarded-For the address that it was called
    from; 0: none."""
    require_gateway_network: bool = False
    """Whether a callback from outside GATEWAY_NETWORKS counts as unproven; otherwise its address is only
    noted."""
    callbacks_unproven_limit: int = Field(default=100, ge=1, le=100_000)
    """Callbacks without proof that are kept for one checkout."""
    callbacks_limit: int = Field(default=1000, ge=1, le=100_000)
    """Callbacks of any kind that are kept for one checkout."""

    # Deadlines and lookups of a checkout.
    checkout_expires_in: float = Field(default=3600.0, ge=1, le=30 * 86400)
    """From the offer to the deadline, where the intent names no expiresIn."""
    deadline_grace: float = Field(default=30.0, ge=0, le=86400)
    """From the deadline to the last lookup and `expired`."""
    cancel_grace: float = Field(default=30.0, ge=0, le=86400)
    """From a cancel request to the lookup and `cancelled`."""
    first_check_after: float = Field(default=120.0, gt=0, le=86400)
    """From the offer to the first lookup for a lost callback, while the shopper causes no callback."""
    check_interval_cap: float = Field(default=1800.0, gt=0, le=7 * 86400)
    """The longest time between two lookups of an unsettled checkout."""
    recheck_after_callback: float = Field(default=2.0, gt=0, le=3600)
    """From a callback that the gateway does not confirm yet to the next lookup; it doubles."""
    lapse_warning: float = Field(default=86_400.0, ge=0, le=30 * 86400)
    """How long before a reservation may lapse (Visa: 7 days) attention is raised if it is not captured."""
    post_settlement_checks: Annotated[tuple[float, ...], AfterValidator(ascending)] = (
        3600.0,
        86400.0,
        7 * 86400.0,
        30 * 86400.0,
    )
    """Status checks of an ended checkout, counted from its end, in ascending order."""

    # Events.
    event_retention_days: float = Field(default=90.0, ge=1, le=3660)
    """Days for which an event stays in the feed of its merchant."""
    rejected_intent_retention_days: float = Field(default=30.0, ge=1, le=3660)
    """Days for which a refused intent of the queue `intents` is kept."""
    personal_data_retention_days: float | None = Field(default=None, ge=1, le=36_600)
    """Days from the end of a checkout after which its personal data is erased, once it is settled; callbacks
    that belong to no checkout are deleted then, and after 30 days at the latest. Not set: no checkout is
    erased by itself."""

    # Webhooks.
    webhook_allowed_networks: tuple[Annotated[str, AfterValidator(network)], ...] = ()
    """Networks beside the public ones that events may be sent to, also over http://, such as "10.20.0.0/16";
    empty: none."""
    webhook_connect_timeout: float = Field(default=5.0, gt=0, le=60)
    """Name, connection and TLS handshake of one delivery."""
    webhook_total_timeout: float = Field(default=15.0, ge=0.1, le=60)
    """One delivery from start to end, also when data still arrives."""
    webhook_in_flight: int = Field(default=256, ge=1, le=10_000)
    """Deliveries that a deliverer has under way at once."""
    webhook_endpoint_in_flight: int = Field(default=64, ge=1, le=1000)
    """The same for one endpoint; the number that it can handle is measured by its answers."""
    webhook_attempt_retention_days: float = Field(default=30.0, ge=1, le=3660)
    """Days for which an attempt to deliver an event is kept, with the beginning of its answer."""
    webhook_queue_limit: int = Field(default=10_000, ge=0, le=10_000_000)
    """Messages that may wait in a queue of events on our own broker (BROKER_URL), of each endpoint; 0: events
    go to brokers of merchants only."""

    # Processes.
    intents_prefetch: int = Field(default=20, ge=0, le=1000)
    """Messages of the queue `intents` that a worker processes at once; with 0, or without a key of tokens, it
    consumes none."""
    worker_threads: int = Field(default=8, ge=1, le=512)
    """Hints that a worker claims at once; a thread is free again as soon as its checkouts are claimed or
    deferred."""
    in_flight_limit: int = Field(default=2000, ge=1, le=100_000)
    """Checkouts that a worker has in flight at once; of one gateway at most twice GATEWAY_POOL_SIZE."""
    shutdown_timeout: float = Field(default=25.0, ge=1, le=600)
    """Seconds after SIGTERM in which the API, a worker, a deliverer or the scheduler ends what it has in
    hand, and `up` all that it started; then it ends at once. The status is 0 where nothing was cut off, and 1
    otherwise."""
    database_pool: int = Field(default=6, ge=1, le=200)
    """Connections to Postgres from one process; an API process has four more, for requests that write, and
    two where it serves metrics; a deliverer has one more."""
    api_connections: int = Field(default=1000, ge=16, le=100_000)
    """Connections of callers to one API process, and an eighth more for callbacks; fewer where the limit of
    open files is lower."""
    batch_limit: int = Field(default=500, ge=1, le=5000)
    """Rows in one batch at the most."""
    log_format: Literal["auto", "console", "json"] = "auto"
    """`console` for people, `json` for machines, `auto`: console on a terminal."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """debug, info, warning or error."""
    log_file: str | None = None
    """A file that every process appends its log to, instead of stderr; opened again when it was moved away
    (logrotate)."""
    access_log: bool = True
    """Whether the API logs a line for each request: method, route, status, milliseconds, bytes, address,
    correlation id."""

    @model_validator(mode="before")
    @classmethod
    def _texts_have_no_blanks_around(cls, given: Any) -> Any:
        """Refuse white space at the ends of a text or secret, such as a file's last line break."""
        for name, value in given.items() if isinstance(given, dict) else ():
            field = cls.model_fields.get(name)
            number = field is None or field.annotation in {int, float, bool}
            if name == "jwt_public_keys":
                continue  # a PEM file ends with a line break
            if not number and (blank := blank_around(value)) is not None:
                raise ValueError(f"{name.upper()}: {blank}: remove it")
        return given

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        for name in ("secret_keys", "jwt_secrets", "jwt_public_keys"):
            if name in self.model_fields_set and not getattr(self, name):
                message = f"{name.upper()}: must not be an empty list: give it at least one entry, or leave it unset"
                raise ValueError(message)
        for name in ("gateway_url", "merchant_api_url"):
            url = getattr(self, name)
            if url is not None and not self.gateway_allowed(url):
                raise ValueError(f"{name.upper()} names a host that is not in GATEWAY_ALLOWED_HOSTS")
        if self.require_gateway_network and not self.gateway_networks:
            raise ValueError("REQUIRE_GATEWAY_NETWORK needs GATEWAY_NETWORKS, and that list is empty")
        return self

    @cached_property
    def broker(self) -> Endpoint:
        return read_broker_url(self.need("broker_url"), ca_file=self.broker_ca_file)

    @cached_property
    def redis(self) -> Endpoint | None:
        """Redis for what processes share: its own URL, or the broker's where that is Redis."""
        url = self.redis_url or self.broker_url
        if url is None or (self.redis_url is None and url.startswith(AMQP)):
            return None
        return read_broker_url(url, ca_file=self.broker_ca_file)

    @cached_property
    def public_keys(self) -> tuple[PublicKey, ...]:
        from orchestrator.issuer_keys import of_pem  # noqa: PLC0415 - only where there are some

        return tuple(map(of_pem, self.jwt_public_keys))

    @cached_property
    def gateway_ranges(self) -> tuple[IPv4Network | IPv6Network, ...]:
        return tuple(map(ip_network, self.gateway_networks))

    @cached_property
    def webhook_ranges(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks beside the public ones that events may be sent to."""
        return tuple(map(ip_network, self.webhook_allowed_networks))

    def gateway_allowed(self, url: str) -> bool:
        if not self.gateway_allowed_hosts:
            return True
        host = (urlsplit(url).hostname or "").rstrip(".")
        return any(
            host == allowed.strip("[]") or (allowed.startswith("*.") and host.endswith(allowed[1:]))
            for allowed in self.gateway_allowed_hosts
        )

    @cached_property
    def merchant_api(self) -> str:
        """Base of the Merchant API; below the gateway's own URL unless set apart."""
        return self.merchant_api_url or self.gateway_url or ""

    @property
    def owner_url(self) -> str:
        """Postgres for what changes tables: MIGRATION_URL, or DATABASE_URL, which must be set then."""
        return str(self.migration_url or self.need("database_url"))

    def need(self, name: str) -> str:
        """Return a setting as text that this process needs, or raise the sentence that names it."""
        value = getattr(self, name)
        if not value:
            message = f"{PREFIX}{name.upper()} is not set: this command needs it (only `orchestrator up` brings its own)"
            raise SettingsError(message)
        return str(value)


RENAMED: Final[Mapping[str, str]] = {
    "FIRST_LOOK": "FIRST_CHECK_AFTER",
    "LOOK_CAP": "CHECK_INTERVAL_CAP",
    "SETTLE_WATCH": "POST_SETTLEMENT_CHECKS",
}
"""Earlier names of settings, without the prefix; the start stops at such a name and shows the present one."""


def load(overrides: Mapping[str, object] | None = None) -> Settings:
    """Read the environment; raise `SettingsError` with one sentence for the first thing that is wrong."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    own = {name for name in os.environ if name.upper().startswith(PREFIX)}
    for name in sorted(own):
        if name != name.upper() and name.upper() in own:
            raise SettingsError(f"{neutralised(name)} and {name.upper()} are both set: remove one of them")
        if name.upper() not in known and not is_service_link(name, os.environ[name]):
            renamed = RENAMED.get(name.upper().removeprefix(PREFIX))
            if renamed is not None:
                raise SettingsError(
                    f"{neutralised(name)} is now called {PREFIX}{renamed}: rename the variable"
                )
            near = _nearest(name.upper(), known)
            message = f"{neutralised(name)} is not a setting of the orchestrator" + (
                f": did you mean {near}?" if near else ""
            )
            raise SettingsError(message)
    try:
        return Settings(**(overrides or {}))  # type: ignore[arg-type]  # values are validated by the model
    except ValidationError as error:
        raise SettingsError(_sentence(error.errors(include_url=False, include_input=False)[0])) from None
    except SourceError as error:
        name = str(error).split('"')[1] if '"' in str(error) else "?"
        raise SettingsError(f"{PREFIX}{name.upper()}: {_array(name)}") from None


_SAID: Final = {
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "string_type": "must be text in quotes",
}
"""Our words for what pydantic finds wrong, by its type of error."""


def _sentence(found: Any) -> str:
    """Return what is wrong with one value; its text is not repeated, since it may be a secret."""
    where = [str(part) for part in found["loc"]]
    said = str(found["msg"]).removeprefix("Value error, ")
    if not where:
        return f"{PREFIX}{said}"
    if found["type"] in {"tuple_type", "dict_type"}:
        said = _array(where[0])
    elif found["type"] in _SAID:
        said = ("each entry " if where[1:] else "") + _SAID[found["type"]]
    elif said.startswith("Input should be "):
        said = f"must be {said.removeprefix('Input should be ')}"
    return f"{PREFIX}{where[0].upper()}: {said}"


def _array(name: str) -> str:
    field = Settings.model_fields.get(name)
    if field is not None and get_origin(field.annotation) is dict:
        return 'must be a JSON object, for example {"DKK":10000}'
    numbers = field is not None and float in get_args(field.annotation)
    example = "[3600,86400]" if numbers else '["first","second"]'
    return f"must be a JSON array, for example {example}"


def environment(settings: Settings, process: str | None = None) -> dict[str, str]:
    """Return the environment of a child process that is to have these settings: ours, with every setting that
    is not a default; for a `process` of `SECRETS` with the secrets that it needs and no others.
    """
    passed = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    withheld = SECRET - SECRETS[process] if process is not None else frozenset()
    for name in sorted(settings.model_fields_set - withheld):
        value = getattr(settings, name)
        if value is not None:
            passed[PREFIX + name.upper()] = _spelled(value)
    return passed


def _spelled(value: object) -> str:
    return json.dumps(value, default=_text) if isinstance(value, tuple | dict) else _text(value)


def _text(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _nearest(name: str, known: set[str]) -> str | None:
    import difflib  # noqa: PLC0415 - only on the way out

    # The prefix is common to all and would make all names similar.
    bare = [setting.removeprefix(PREFIX) for setting in known]
    near = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1, cutoff=0.75)
    return PREFIX + near[0] if near else None
