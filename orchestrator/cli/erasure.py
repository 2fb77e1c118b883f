"""Erase the personal data of checkouts: those that are named, those of an order, or all that ended before a
time.

What is still needed is refused with the reason and what to do about it, and the rest is erased. Exit status 1
means that something was refused.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.lookup import ACTOR, find_checkout, merchant_id
from orchestrator.cli.output import say

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path
    from uuid import UUID

    from orchestrator.crypto import Encryptor
    from orchestrator.settings import Settings
    from orchestrator.store.checkouts import Fate
    from orchestrator.store.database import Database

_SHOWN: Final = 50
"""Refusals that are told one by one."""


class _Moment(click.ParamType[datetime]):
    """A day or a moment: 2026-01-31, 2026-01-31T12:00:00Z; UTC where it names no zone."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-01-31 or 2026-01-31T12:00:00Z", param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@click.command(short_help="Erase the personal data of checkouts, for good.")
@data_dir
@click.argument("checkouts", nargs=-1, metavar="[CHECKOUT]...")
@click.option("--order", metavar="NUMBER", help="All checkouts of this order number; with --merchant.")
@click.option(
    "--merchant", metavar="NAME", help="Whose order; or, with --ended-before, only this merchant's."
)
@click.option(
    "--ended-before",
    type=_Moment(),
    metavar="TIME",
    help="All that ended before: 2026-01-31, or with a time.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be erased, and what would not.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def erase(
    *,
    data_dir: Path,
    checkouts: Sequence[str],
    order: str | None,
    merchant: str | None,
    ended_before: datetime | None,
    dry_run: bool,
    yes: bool,
) -> int:
    """Erase the personal data of CHECKOUTS (ids or order numbers), of an order, or of a period, for good.

    Intents, contents of callbacks, tokens, answers of webhooks and reasons of commands go; state, money and
    the audit trail stay.
    """
    if [bool(checkouts), order is not None, ended_before is not None].count(True) != 1:
        raise click.UsageError("name checkouts, or an order with --order, or a period with --ended-before")
    if (order is not None and merchant is None) or (checkouts and merchant is not None):
        raise click.UsageError("--merchant goes with --order, which needs it, and with --ended-before")

    async def work(settings: Settings, db: Database) -> int:
        from orchestrator.crypto import Encryptor  # noqa: PLC0415 - each command imports what it needs

        number = None if merchant is None else await merchant_id(db, merchant)

        def lists() -> AsyncIterator[Sequence[UUID]]:
            return _lists(db, checkouts, order=order, merchant=number, before=ended_before)

        encryptor = Encryptor(settings.secret_keys)
        erased, refused = await _erase(db, encryptor, lists(), dry_run=True, tell=True)
        what = f"{erased} checkout{'' if erased == 1 else 's'}"
        if dry_run:
            say(f"The personal data of {what} would be erased{_but(refused)}.")
            return int(refused > 0)
        if not erased:
            say(f"There is nothing to erase{_but(refused)}.")
            return int(refused > 0)
        if not yes:
            click.confirm(
                f"Erase the personal data of {what} for good? It cannot be undone", abort=True, err=True
            )
        erased, refused = await _erase(db, encryptor, lists(), dry_run=False, tell=False)
        what = f"{erased} checkout{'' if erased == 1 else 's'}"
        say(f"The personal data of {what} was erased{_but(refused)}.")
        return int(refused > 0)

    return on_database(data_dir, work)


def _but(refused: int) -> str:
    return f"; {refused} {'was' if refused == 1 else 'were'} refused" if refused else ""


async def _lists(
    db: Database,
    named: Sequence[str],
    *,
    order: str | None,
    merchant: int | None,
    before: datetime | None,
) -> AsyncIterator[Sequence[UUID]]:
    """Yield the ids that are meant, in lists of what is erased at once."""
    from orchestrator.store import checkouts  # noqa: PLC0415

    if before is None:
        if order is None:
            ids = [(await find_checkout(db, name)).id for name in dict.fromkeys(named)]
        else:
            assert merchant is not None  # noqa: S101 - the options require it
            ids = await checkouts.of_order(db, merchant, order)
            if not ids:
                raise click.UsageError(f"this merchant has no checkout of order {order!r}")
        for some in _cut(ids):
            yield some
        return
    after: UUID | None = None
    while True:
        stretch = await checkouts.ended_before(db, before=before, merchant_id=merchant, after=after)
        for some in _cut(stretch.ids):
            yield some
        if stretch.until is None:
            return
        after = stretch.until


def _cut(ids: Sequence[UUID]) -> list[Sequence[UUID]]:
    from orchestrator.store import checkouts  # noqa: PLC0415

    most = checkouts.ERASED_AT_ONCE
    return [ids[first : first + most] for first in range(0, len(ids), most)]


async def _erase(
    db: Database, encryptor: Encryptor, lists: AsyncIterator[Sequence[UUID]], *, dry_run: bool, tell: bool
) -> tuple[int, int]:
    """Erase, or only find out; return how many checkouts are erased, and how many are refused."""
    from orchestrator.store import checkouts  # noqa: PLC0415

    erased = refused = 0
    async for ids in lists:
        for fate in await checkouts.erase(db, encryptor, ids, actor=ACTOR, cause="asked", dry_run=dry_run):
            erased += fate.erased
            refused += fate.hindrance is not None
            if tell and (fate.before is not None or (fate.hindrance is not None and refused <= _SHOWN)):
                _tell(fate)
    return erased, refused


def _tell(fate: Fate) -> None:
    if fate.hindrance is not None:
        say(
            f"Checkout {fate.id} (order {fate.order_ref}) is not erased: {fate.hindrance}: {fate.hindrance.way}.",
            err=True,
        )
    else:
        say(f"Checkout {fate.id} (order {fate.order_ref}) was erased at {fate.before:%Y-%m-%d %H:%M} UTC.")
