"""Refused intents of the queue `intents`, read straight from the database by the operators of the
installation; also those whose token proves no merchant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import Installation, data_dir, database_command, on_database
from orchestrator.cli.listings import merchants_option, order_option
from orchestrator.cli.lookup import merchant_id, merchant_names, moment, table, uuid_of
from orchestrator.cli.output import at_most, flag, json_option, say, say_document, say_json, say_table
from orchestrator.cli.questions import as_option

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from uuid import UUID

    from orchestrator.store.inbox.rejected import Code, RejectedIntent


@click.group("rejected-intents", short_help="Refused intents of the queue.")
def rejected_intents() -> None:
    """Refused intents of the queue `intents`."""


@rejected_intents.command("list")
@data_dir
@merchants_option
@order_option
@click.option("--limit", type=click.IntRange(1, 10_000), default=50)
@json_option
def list_rejected(
    *, data_dir: Path, merchant: str | None, order: str | None, limit: int, as_json: bool
) -> int:
    """List refused intents, the youngest first, with their reasons."""
    if order is not None and merchant is None:
        raise click.UsageError("--order needs --merchant: an order number is that of a merchant")

    async def show(here: Installation) -> None:
        from orchestrator.store.inbox import rejected

        names = await merchant_names(here.db)
        if merchant is None:
            found = await rejected.latest(here.db, limit=limit + 1)
        else:
            wanted = await merchant_id(here.db, merchant)
            found = await rejected.page(here.db, wanted, order_ref=order, before=None, limit=limit + 1)
        rows = at_most(found, limit, "ask for more with --limit, or for some with --merchant and --order")
        if as_json:
            say_document([_facts(row, names) for row in rows])
            return
        shown = table("id", "at", "merchant", "order", "code", "reason")
        for row in rows:
            more = f" (and {len(row.problems) - 1} more)" if len(row.problems) > 1 else ""
            shown.add_row(
                str(row.id),
                moment(row.created_at),
                _merchant(row, names),
                row.order_ref,
                row.code,
                f"{row.problems[0].field}: {row.problems[0].message}{more}" if row.problems else "",
            )
        say_table(shown, empty="No intent of the queue was refused.")

    return on_database(data_dir, show)


@rejected_intents.command("show")
@database_command
@click.argument("intent", metavar="ID")
@flag("--body", "with_body", told="Also what was sent, which is personal data.")
@json_option
async def show_rejected(here: Installation, *, intent: str, with_body: bool, as_json: bool) -> None:
    """Show a refused intent with every reason."""
    from orchestrator.store.inbox import rejected

    intent_id = uuid_of(intent)
    found = None if intent_id is None else await rejected.by_id(here.db, here.encryptor, intent_id)
    if found is None:
        raise click.UsageError(
            f"there is no refused intent {intent!r}: see `orchestrator rejected-intents list`"
        )
    row, body = found
    names = await merchant_names(here.db)
    if as_json:
        sent = None if body is None else body.decode(errors="replace")
        say_document({**_facts(row, names), **({"body": sent} if with_body else {})})
        return
    say(f"id        {row.id}")
    say(f"at        {row.created_at:%Y-%m-%d %H:%M:%S}")
    say(f"merchant  {_merchant(row, names) or 'not known'}")
    say(f"order     {row.order_ref or 'not known'}")
    say(f"message   {row.message_id}")
    say(f"code      {row.code}")
    for problem in row.problems:
        say(f"          {problem.field}: {problem.message}")
    if with_body and body is not None:
        say_json(body.decode(errors="replace"))
    elif with_body:
        say("what was sent was erased, or no key of this installation decrypts it", err=True)


@rejected_intents.command("resubmit", short_help="Submit refused intents once more.")
@data_dir
@click.argument("chosen", metavar="[ID]...", nargs=-1)
@click.option(
    "--code",
    type=click.Choice(["token_expired", "merchant_refused", "order_taken", "not_storable", "internal"]),
    help="All that were refused with this code, instead of IDs.",
)
@click.option(
    "--merchant",
    metavar="NAME",
    help="Whose orders they are: needed where no token proves it. With --code: only this merchant's.",
)
@as_option
def resubmit(
    *, data_dir: Path, chosen: tuple[str, ...], code: Code | None, merchant: str | None, actor: str
) -> int:
    """Submit refused intents once more, as they were sent, after what they were refused for is removed.

    Each intent has a result, as an import has them. An order that is there is reported as existing, so this
    may be repeated. The refusals stay in the list. Exit status 1 if an intent is refused.
    """
    if bool(chosen) == (code is not None):
        raise click.UsageError("name the IDs of refused intents, or --code")

    async def work(here: Installation) -> int:
        from orchestrator.cli.intakes import Resubmission

        named = None if merchant is None else await merchant_id(here.db, merchant)
        resubmission = Resubmission(here, merchant=named, actor=actor)
        return await resubmission.run(code, [_known(intent) for intent in chosen])

    return on_database(data_dir, work)


def _merchant(row: RejectedIntent, names: Mapping[int, str]) -> str | None:
    return None if row.merchant_id is None else names.get(row.merchant_id, str(row.merchant_id))


def _facts(row: RejectedIntent, names: Mapping[int, str]) -> dict[str, object]:
    return {
        "id": row.id,
        "at": row.created_at,
        "merchant": _merchant(row, names),
        "orderId": row.order_ref,
        "messageId": row.message_id,
        "code": row.code,
        "errors": [{"field": problem.field, "message": problem.message} for problem in row.problems],
    }


def _known(intent: str) -> UUID:
    found = uuid_of(intent)
    if found is None:
        raise click.UsageError(f"{intent!r} is not an ID: see `orchestrator rejected-intents list`")
    return found
