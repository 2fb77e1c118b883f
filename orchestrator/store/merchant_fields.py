"""What a merchant's fields may hold: credentials, the gateway's address, callback secrets, policies."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal, get_args
from urllib.parse import urlsplit

from orchestrator.errors import OrchestratorError
from orchestrator.settings.hosts import reach_of
from orchestrator.settings.values import callback_secret, http_url

if TYPE_CHECKING:
    from orchestrator.settings import Settings

UnexpectedPaymentPolicy = Literal["ask", "keep", "return"]
"""What becomes of money without an order to pay: a person decides; it completes the checkout; it is given
back."""
Capture = Literal["manual", "automatic"]
Surcharge = Literal["ask", "keep"]
MAX_LOOKUPS_PER_MINUTE: Final = 100_000
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LONGEST_CREDENTIAL: Final = 255
MOST_SECRETS: Final = 10


class UnknownMerchant(OrchestratorError):  # noqa: N818 - named for the fact
    """No merchant has this id or name, or no known key opens its secrets."""

    def __init__(self, merchant: object) -> None:
        super().__init__(
            f"there is no merchant {merchant} that can be used: see `orchestrator merchants list`, and SECRET_KEYS"
        )
        self.merchant = merchant


class GatewayNotAllowed(OrchestratorError):  # noqa: N818 - named for the fact
    """Credentials may not be sent to this URL."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url} is not among the hosts of ORCHESTRATOR_GATEWAY_ALLOWED_HOSTS: correct the URL, or add its host to that list"
        )
        self.url = url


class MerchantRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """A value that a merchant cannot have; the sentence names the field, and repeats no secret."""

    def __init__(self, field_name: str, problem: str) -> None:
        super().__init__(f"{field_name} {problem}")
        self.field = field_name


class PolicyRejected(OrchestratorError):  # noqa: N818 - named for the fact
    """There is no such policy, or it does not take this value; the sentence says what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """What a merchant's policy does without a request.

    `late`: money for a checkout that had ended. `surplus`: a second payment for one order. `unknown_order`: a
    payment for an order number without an intent. `capture`: whether the worker captures what is reserved,
    where the checkout's intent does not say. `surcharge`: a payment of the order's amount and a surcharge
    that the gateway added: a person decides, or it pays the order. `lookups_per_minute`: lookups at the
    gateway that no shopper waits for, at most (see `processing.lookup_budget`).
    """

    late: UnexpectedPaymentPolicy = "ask"
    surplus: UnexpectedPaymentPolicy = "ask"
    unknown_order: UnexpectedPaymentPolicy = "ask"
    capture: Capture = "manual"
    surcharge: Surcharge = "ask"
    lookups_per_minute: int = 3000


_WORDS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("late", "surplus", "unknown_order"), get_args(UnexpectedPaymentPolicy)),
    "capture": get_args(Capture),
    "surcharge": get_args(Surcharge),
}
BOUND: Final = ("late", "surplus", "unknown_order", "capture", "surcharge")
"""Policies that decide on money, with those of later versions; they count only under our MAC."""
POLICIES: Final = tuple(field.name for field in fields(Policies))
RENAMED: Final = {"looks_per_minute": "lookups_per_minute"}
"""Earlier names of policies, which are refused with the present one. Migration 0011 renames what
is stored.
"""


def policy(name: str, value: object) -> str | int:
    """Return the value of a policy as it is stored, from text or from the row. Raises `PolicyRejected`."""
    if name in RENAMED:
        raise PolicyRejected(f"the policy {name} is now called {RENAMED[name]}")
    if name not in POLICIES:
        raise PolicyRejected(f"there is no policy {name!r}: there are {', '.join(POLICIES)}")
    if name in _WORDS:
        if value not in _WORDS[name]:
            raise PolicyRejected(f"{name} must be {' or '.join(_WORDS[name])}, not {value!r}")
        return str(value)
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_LOOKUPS_PER_MINUTE:
        raise PolicyRejected(
            f"{name} must be a whole number from 1 to {MAX_LOOKUPS_PER_MINUTE}, not {value!r}"
        )
    return number


def checked_gateway_url(field_name: str, url: str, settings: Settings) -> str:
    """Return the base URL of a merchant's gateway: HTTPS and a public host, unless the installation's own
    GATEWAY_URL names a private one, as of a sandbox; then a private one may be called, over http:// as well.
    """
    try:
        checked = http_url(url)
    except ValueError as error:
        raise MerchantRejected(field_name, str(error)) from None
    if _is_private(checked):
        if settings.gateway_url is None or not _is_private(settings.gateway_url):
            problem = "must name a public host: a private one is taken where the installation's own GATEWAY_URL names one too"
            raise MerchantRejected(field_name, problem)
    elif not checked.startswith("https://"):
        raise MerchantRejected(field_name, "must start with https://, since passwords are sent there")
    return checked


def _is_private(url: str) -> bool:
    return reach_of(urlsplit(url).hostname or "") == "private"


def checked_username(username: str) -> str:
    if not 1 <= len(username) <= LONGEST_CREDENTIAL:
        raise MerchantRejected("username", f"must have 1 to {LONGEST_CREDENTIAL} characters")
    if not username.isprintable() or ":" in username or username != username.strip():
        # RFC 7617: the colon ends the user name.
        problem = "must not hold a colon, control characters, or spaces at its ends: take it as the gateway shows it"
        raise MerchantRejected("username", problem)
    return username


def checked_password(password: str) -> str:
    if not 1 <= len(password) <= LONGEST_CREDENTIAL:
        raise MerchantRejected("password", f"must have 1 to {LONGEST_CREDENTIAL} characters")
    if not password.isprintable():
        raise MerchantRejected("password", "must not hold control characters: copy it without the line break")
    return password


def checked_secrets(secrets: tuple[str, ...]) -> tuple[str, ...]:
    if len(secrets) > MOST_SECRETS:
        raise MerchantRejected("callback secrets", f"are {len(secrets)}, and the most is {MOST_SECRETS}")
    for number, secret in enumerate(secrets, start=1):
        try:
            callback_secret(secret)
        except ValueError as error:
            raise MerchantRejected(f"callback secret {number}", str(error)) from None
    return secrets
