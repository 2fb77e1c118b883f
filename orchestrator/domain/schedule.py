"""When a checkout is checked again (seconds from now), and until when a reservation can be captured."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from orchestrator.domain.payment_meaning import PaymentMeaning, read

if TYPE_CHECKING:
    from orchestrator.domain.transaction import Transaction
    from orchestrator.settings import Settings

_VALID_DAYS: Final = {"visa": 7, "mastercard": 3}
"""Days for which an authorisation is sure to be worth a capture (D9): Visa 7, Mastercard at least 3; others
as Visa."""
_OTHERS_DAYS: Final = 7


def next_lookup(settings: Settings, lookups: int) -> float:
    """Return the seconds until the lookup after `lookups` lookups since the last sign of life: doubling,
    capped, spread by jitter.
    """
    delay = min(settings.recheck_after_callback * 2.0 ** min(lookups, 40), settings.check_interval_cap)
    return delay * random.uniform(0.8, 1.2)  # noqa: S311 - jitter


def quiet_lookups(settings: Settings) -> int:
    """Return the number of lookups that a checkout starts with while its shopper has shown no
    sign of life.
    """
    lookups = 0
    while settings.recheck_after_callback * 2.0**lookups < settings.first_check_after and lookups < 40:  # noqa: PLR2004 - a bound
        lookups += 1
    return lookups


def thinned(due_in: float, age: float) -> float:
    """Return a due time that grows with the age (seconds) of what it is for: a tenth of it, at
    most a week.
    """
    return max(due_in, min(age / 10, 7 * 86_400.0))


def back_off(settings: Settings, attempts: int, *, at_least: float = 0.0) -> float:
    """Return the seconds until the next try after `attempts` failures: exponential with full jitter, never
    below `at_least`.
    """
    ceiling = min(settings.retry_base * 2.0 ** min(attempts, 40), settings.retry_cap)
    return at_least + random.uniform(0.05, 1.0) * ceiling  # noqa: S311 - jitter


def next_watch(settings: Settings, ended_at: datetime, now: datetime) -> float | None:
    """Return the seconds until the next lookup of an ended checkout, or None when the watch has run out."""
    since = (now - ended_at).total_seconds()
    return next((watch - since for watch in settings.post_settlement_checks if watch > since), None)


def valid_until(transaction: Transaction) -> datetime | None:
    """Return until when a reservation is sure to be worth a capture; None where nothing is left to capture,
    or no date is known.
    """
    if (
        read(transaction) not in {PaymentMeaning.RESERVED, PaymentMeaning.CAPTURED}
        or transaction.captured >= transaction.reserved
    ):
        return None
    if transaction.reserved_until is not None:
        return transaction.reserved_until
    made = made_at(transaction.created_at)
    if made is None:
        return None
    days = next((days for name, days in _VALID_DAYS.items() if name in transaction.scheme), _OTHERS_DAYS)
    return made + timedelta(days=days)


# The transactions of a busy second have one text, and reading it takes longer than all else of `valid_until`.
@lru_cache(maxsize=1024)
def made_at(created_at: str) -> datetime | None:
    """Return the gateway's time of creation of a transaction, read as UTC; None where it is missing."""
    try:
        return datetime.strptime(created_at, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
