"""What is lost of a database that was restored to an earlier point in time, before lookups compare it with
the gateway.

Orders that came after that point are missing: those of a file are looked up at the gateway by their order
numbers, and a payment that is found becomes a checkout under the id that it names, so that its callbacks and
its intent find it. Nothing here moves money or a state.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import click

from orchestrator.cli.attached import Installation, query
from orchestrator.domain.payment_meaning import MONEY, read
from orchestrator.gateway.client import Gateway
from orchestrator.gateway.outcomes import Done
from orchestrator.store import checkouts
from orchestrator.store.checkouts import UnmatchedPayment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.domain.transaction import Found
    from orchestrator.gateway.client import Account
    from orchestrator.store.database import Database
    from orchestrator.store.merchant_records import MerchantRecord

_AT_ONCE: Final = 100
"""Order numbers in one query."""
_CALLS: Final = 8
"""Lookups at the gateway at once."""


@dataclass(slots=True)
class Lost:
    """What came of the order numbers of a file: `known` have a checkout, `created` got one from their
    payment, `unpaid` have no payment at the gateway, `unanswered` could not be looked up.
    """

    known: int = 0
    created: int = 0
    unpaid: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)


async def find_lost(here: Installation, *, merchant: MerchantRecord, orders: Sequence[str]) -> Lost:
    """Look up at the gateway what has no checkout here, and create a checkout from each payment that is
    found.
    """
    lost = Lost()
    account = merchant.account
    if account is None or not account.url:
        raise click.UsageError(
            f"merchant {merchant.name} has no account that can be used: {merchant.problem}"
        )
    async with Gateway(here.settings) as gateway:
        for start in range(0, len(orders), _AT_ONCE):
            names = orders[start : start + _AT_ONCE]
            known = await _known(here.db, merchant.id, names)
            lost.known += len(known)
            missing = [name for name in names if name not in known]
            found = await _look_up(gateway, account, missing)
            lost.unanswered += [name for name in missing if found[name] is None]
            answered = {name: answer for name, answer in found.items() if answer is not None}
            payments = {name: _payment(merchant.id, name, answer) for name, answer in answered.items()}
            lost.unpaid += [name for name, payment in payments.items() if payment is None]
            lost.created += await _create(here, [paid for paid in payments.values() if paid])
    return lost


async def _known(db: Database, merchant_id: int, names: Sequence[str]) -> set[str]:
    known = await query(
        db,
        "SELECT DISTINCT order_ref FROM checkouts WHERE merchant_id = :merchant AND order_ref = ANY(:names)",
        merchant=merchant_id,
        names=list(names),
    )
    return {row.order_ref for row in known}


async def _look_up(gateway: Gateway, account: Account, names: Sequence[str]) -> dict[str, Found | None]:
    """Return what the gateway has of each order number; None where it did not answer."""
    slots = asyncio.Semaphore(_CALLS)

    async def answer(name: str) -> Found | None:
        async with slots:
            outcome = await gateway.find_payments(account, order_ref=name)
        return outcome.value if isinstance(outcome, Done) else None

    return dict(zip(names, await asyncio.gather(*map(answer, names)), strict=True))


async def _create(here: Installation, payments: Sequence[UnmatchedPayment]) -> int:
    """Create the checkouts of payments; return how many were created."""
    if not payments:
        return 0
    async with here.db.transaction() as tx:
        made = await checkouts.create_from_payment(tx, here.encryptor, payments, grace=0.0)
    return sum(match is not None and match.created for match in made)


def _payment(merchant_id: int, order: str, found: Found) -> UnmatchedPayment | None:
    """Return the payment of an order that the gateway holds money for: one that names a checkout, if there is
    one.
    """
    held = [
        (transaction, _named(transaction.payment_infos.get("checkout", "")))
        for transaction in found.transactions
        if transaction.order_ref == order and read(transaction) in MONEY
    ]
    if not held:
        return None
    transaction, named = next((pair for pair in held if pair[1] is not None), held[0])
    return UnmatchedPayment(
        merchant_id=merchant_id,
        order_ref=order,
        transaction_id=transaction.transaction_id,
        currency=transaction.currency,
        amount=max(transaction.reserved, transaction.captured),
        named=named,
        correlation_id="restored",
    )


def _named(given: str) -> UUID | None:
    try:
        return UUID(given.strip()) if re.fullmatch(r"[0-9a-fA-F-]{36}", given.strip()) else None
    except ValueError:
        return None
