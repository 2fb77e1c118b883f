"""Erase the personal data of checkouts: those that are named, those of an order, or all that ended before a
time.

What is still needed is refused with the reason and what to do about it, and the rest is erased. Exit status 1
means that something was refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import Installation, data_dir, on_database
from orchestrator.cli.lookup import find_checkout, merchant_id, read_moment
from orchestrator.cli.output import flag, json_flag, say, say_either
from orchestrator.cli.questions import as_option, confirmed, yes_option

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from datetime import datetime
    from pathlib import Path
    from uuid import UUID

    from orchestrator.store.checkouts import Fate
    from orchestrator.store.read_model import CheckoutRecord

_SHOWN: Final = 50
"""Checkouts that are told of one by one."""
_NAMED: Final = 5
"""Orders that the question names."""


@click.command(short_help="Erase the personal data of checkouts, for good.")
@data_dir
@click.argument("checkouts", nargs=-1, metavar="[CHECKOUT]...")
@click.option("--order", metavar="NUMBER", help="All checkouts of this order number; with --merchant.")
@click.option(
    "--merchant", metavar="NAME", help="Whose order; or, with --ended-before, only this merchant's."
)
@click.option(
    "--ended-before",
    type=read_moment,
    metavar="TIME",
    help="All that ended before: 2026-01-31, or with a time.",
)
@flag("--dry-run", told="Only say what would be erased, and what would not.")
@yes_option
@as_option
@json_flag("Print JSON, and sentences on stderr.")
def erase(  # noqa: PLR0913 - the options of the command
    *,
    data_dir: Path,
    checkouts: Sequence[str],
    order: str | None,
    merchant: str | None,
    ended_before: datetime | None,
    dry_run: bool,
    yes: bool,
    actor: str,
    as_json: bool,
) -> int:
    """Erase the personal data of CHECKOUTS (ids or order numbers), of an order, or of a period, for good.

    Intents, contents of callbacks, tokens, answers of webhooks and reasons of commands go; state, money and
    the audit trail stay.
    """
    if [bool(checkouts), order is not None, ended_before is not None].count(True) != 1:
        raise click.UsageError("name checkouts, or an order with --order, or a period with --ended-before")
    if (order is not None and merchant is None) or (checkouts and merchant is not None):
        raise click.UsageError("--merchant goes with --order, which needs it, and with --ended-before")

    async def work(here: Installation) -> int:
        number = None if merchant is None else await merchant_id(here.db, merchant)
        named = [await find_checkout(here.db, name) for name in dict.fromkeys(checkouts)]
        chosen = _Chosen(here, named, order, number, ended_before, actor, quiet=as_json)
        found = await chosen.erase(dry_run=True)
        if dry_run:
            told = f"The personal data of {found} would be erased{found.but}."
        elif not (found.erased or found.intents):
            told = f"There is nothing to erase{found.but}."
        else:
            what = f"{found}: {chosen.described(merchant)}"
            if not confirmed(f"It cannot be undone. Erase the personal data of {what}, for good", yes=yes):
                return 1
            found = await chosen.erase(dry_run=False)
            told = f"The personal data of {found} was erased{found.but}."
        document = {
            "dryRun": dry_run,
            "checkouts": found.erased,
            "rejectedIntents": found.intents,
            "refused": found.refused,
        }
        say_either(document, told, as_json=as_json)
        return int(found.refused > 0)

    return on_database(data_dir, work)


@dataclass(slots=True)
class _Tally:
    """Checkouts and refused intents that are erased, and checkouts that are not because they are needed."""

    erased: int = 0
    intents: int = 0
    refused: int = 0

    def __str__(self) -> str:
        """Write what is erased."""
        more = f" and {self.intents} refused intent{'' if self.intents == 1 else 's'}" if self.intents else ""
        return f"{self.erased} checkout{'' if self.erased == 1 else 's'}{more}"

    @property
    def but(self) -> str:
        """Write what is not, if anything."""
        was = "was" if self.refused == 1 else "were"
        return f"; {self.refused} {was} refused" if self.refused else ""


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is meant: named checkouts, an order of a merchant, or all that ended before a time."""

    here: Installation
    named: Sequence[CheckoutRecord]
    order: str | None
    merchant: int | None
    before: datetime | None
    actor: str
    quiet: bool
    """Whether stdout is left to a document."""

    def described(self, merchant: str | None) -> str:
        """Write what is meant, with the merchant that was named."""
        if self.before is not None:
            of = "all merchants" if merchant is None else f"merchant {merchant}"
            return f"those of {of} that ended before {self.before:%Y-%m-%d %H:%M:%S %Z}"
        if self.order is not None:
            return f"order {self.order} of merchant {merchant}"
        told = [f"order {row.order_ref} of merchant {row.merchant}" for row in self.named[:_NAMED]]
        more = len(self.named) - len(told)
        return ", ".join(told) + (f" and {more} more" if more else "")

    async def erase(self, *, dry_run: bool) -> _Tally:
        """Erase it; or find out and tell what is refused, and what was erased before."""
        from orchestrator.store import checkouts
        from orchestrator.store.inbox import rejected

        tally = _Tally()
        if self.order is not None and self.merchant is not None:
            # Before the checkouts, which take those of their order along.
            work = rejected.readable if dry_run else rejected.erase
            tally.intents = await work(self.here.db, self.merchant, self.order)
        met = told = 0
        async for ids in self._lists():
            for fate in await checkouts.erase(
                self.here.db, self.here.encryptor, ids, actor=self.actor, cause="asked", dry_run=dry_run
            ):
                met += 1
                tally.erased += fate.erased
                tally.refused += fate.hindrance is not None
                if dry_run and not fate.erased and told < _SHOWN:
                    told += 1
                    _tell(fate, err=self.quiet)
        if self.order is not None and not (met or tally.intents):
            raise click.UsageError(f"this merchant has nothing of order {self.order!r}")
        return tally

    async def _lists(self) -> AsyncIterator[Sequence[UUID]]:
        """Yield ids in lists of what is erased at once."""
        from orchestrator.store import checkouts

        if self.before is None:
            if self.order is not None and self.merchant is not None:
                ids = await checkouts.of_order(self.here.db, self.merchant, self.order)
            else:
                ids = list(dict.fromkeys(row.id for row in self.named))
            for some in checkouts.erasure_lists(ids):
                yield some
            return
        after: UUID | None = None
        while True:
            stretch = await checkouts.ended_before(
                self.here.db, before=self.before, merchant_id=self.merchant, after=after
            )
            for some in checkouts.erasure_lists(stretch.ids):
                yield some
            if stretch.until is None:
                return
            after = stretch.until


def _tell(fate: Fate, *, err: bool) -> None:
    what = f"Checkout {fate.id} (order {fate.order_ref})"
    if fate.hindrance is not None:
        say(f"{what} is not erased: {fate.hindrance}: {fate.hindrance.way}.", err=True)
    else:
        say(f"{what} was erased at {fate.before:%Y-%m-%d %H:%M} UTC.", err=err)
