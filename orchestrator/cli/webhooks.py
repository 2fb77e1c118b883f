"""Webhooks, and events as Celery tasks, for operators, straight from the database; the API has the same for
merchants.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from orchestrator.cli.attached import Installation, data_dir, database_command, on_database, options, query
from orchestrator.cli.lookup import (
    merchant_id,
    merchant_option,
    moment,
    span,
    span_to,
    table,
    types_option,
    uuid_of,
)
from orchestrator.cli.output import at_most, flag, plain_json_option, say, say_document, say_either, say_table
from orchestrator.cli.questions import confirmed, secret_of, yes_option

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from orchestrator.store.database import Database
    from orchestrator.store.deliveries import AttemptRow
    from orchestrator.store.webhooks import Webhook

WAIT: Final = 20.0
"""Seconds that `test` waits for what came of it."""
_POLL: Final = 0.2

_merchant = merchant_option("Whose webhook it is.")
_one = options(_merchant, click.argument("webhook", metavar="ID"))
_sent = options(
    types_option("Only these; may be repeated (without it: all)."),
    flag("--full", told="Send full documents, with sentences."),
    click.option("--description", default="", show_default=False, help="What it is for."),
    plain_json_option,
)


@click.group(short_help="Webhooks that events are sent to.")
def webhooks() -> None:
    """Webhooks that events are sent to."""


@webhooks.command("list")
@database_command
@_merchant
@plain_json_option
async def list_webhooks(here: Installation, *, merchant: str, as_json: bool) -> None:
    """List a merchant's webhooks, and what waits for each."""
    from orchestrator.store import webhooks as stored

    endpoints = await stored.page(
        here.db, merchant_id=await merchant_id(here.db, merchant), after=None, limit=stored.MOST_WEBHOOKS
    )
    if as_json:
        say_document([_facts(endpoint) for endpoint in endpoints])
        return
    shown = table(
        "id", "status", "target", "types", "content", "waiting", "since", "delivered", "failing since"
    )
    for endpoint in endpoints:
        why = "" if endpoint.pause_reason is None else f" ({endpoint.pause_reason})"
        shown.add_row(
            str(endpoint.id),
            f"{endpoint.status}{why}",
            _target(endpoint),
            "all" if endpoint.kinds is None else " ".join(endpoint.kinds),
            endpoint.content,
            str(endpoint.waiting),
            moment(endpoint.waiting_since),
            moment(endpoint.delivered_at),
            moment(endpoint.failing_since),
        )
    say_table(shown, empty=f"Merchant {merchant} has no webhook.")


@webhooks.command(short_help="Add a webhook, and print its secret.")
@database_command
@_merchant
@click.argument("url")
@_sent
async def add(here: Installation, *, url: str, as_json: bool, **described: Any) -> None:
    """Add a webhook, and print its secret, which is shown this once."""
    from orchestrator.delivery import signature
    from orchestrator.delivery.addresses import AddressPolicy, WebhookUrlRejected, checked_url

    try:
        checked_url(url, AddressPolicy(here.settings.webhook_ranges))
    except WebhookUrlRejected as error:
        raise click.UsageError(f"the URL {error}") from None
    secret = signature.new_secret()
    made = await _add(here, url=url, secret=secret, **described)
    if as_json:
        say_document({**_facts(made), "secret": signature.written(secret)})
        return
    say(f"added {made.id}")
    say(signature.written(secret))


@webhooks.command("add-task", short_help="Have events published as a Celery task.")
@data_dir
@_merchant
@click.argument("task")
@click.argument("queue")
@click.option(
    "--broker-from",
    metavar="SOURCE",
    help="The URL of the merchant's broker with its login: a file, env:NAME, or - for standard input (without it: our own broker).",
)
@_sent
def add_task(
    *, data_dir: Path, task: str, queue: str, broker_from: str | None, as_json: bool, **described: Any
) -> int:
    """Have a merchant's events published as a Celery task, to a queue of its broker or of ours."""
    url = "" if broker_from is None else secret_of("The URL of the broker", "--broker-from", broker_from)

    async def work(here: Installation) -> None:
        from orchestrator.delivery.addresses import AddressPolicy, WebhookUrlRejected
        from orchestrator.delivery.task_target import NameRejected, broker_of, checked_name, checked_queue

        if not url and not here.settings.webhook_queue_limit:
            raise click.UsageError("--broker-from is needed: ORCHESTRATOR_WEBHOOK_QUEUE_LIMIT is 0")
        what = "task"
        try:
            shown = broker_of(url, AddressPolicy(here.settings.webhook_ranges)).shown if url else ""
            checked_name(task)
            what = "queue"
            checked_queue(queue, merchant=described["merchant"], own=not url)
        except WebhookUrlRejected as error:
            raise click.UsageError(f"the URL of the broker {error}") from None
        except NameRejected as error:
            raise click.UsageError(f"the name of the {what} {error}") from None
        target: dict[str, Any] = {"url": shown, "task": task, "queue": queue, "secret": url.encode()}
        made = await _add(here, **target, **described)
        say_either(_facts(made), f"added {made.id}", as_json=as_json)

    return on_database(data_dir, work)


async def _add(
    here: Installation,
    *,
    merchant: str,
    kinds: Sequence[str],
    full: bool,
    description: str,
    **target: Any,
) -> Webhook:
    """Store an endpoint: its target, and what is sent to it."""
    from orchestrator.store import webhooks as stored

    return await stored.add(
        here.db,
        here.encryptor,
        merchant_id=await merchant_id(here.db, merchant),
        description=description[:200],
        kinds=kinds or None,
        content="full" if full else "thin",
        **target,
    )


@webhooks.command(short_help="Send nothing until it is resumed.")
@data_dir
@_one
@plain_json_option
def pause(**given: Any) -> int:
    """Send nothing to a webhook until it is resumed; its events wait."""
    return _changed("paused", lambda stored, db, endpoint: stored.pause(db, endpoint.id, "asked"), **given)


@webhooks.command()
@data_dir
@_one
@plain_json_option
def resume(**given: Any) -> int:
    """Serve a webhook again that is paused or off."""
    return _changed(
        "resumed",
        lambda stored, db, endpoint: stored.resume(db, endpoint.id, merchant_id=endpoint.merchant_id),
        **given,
    )


@webhooks.command(short_help="Delete a webhook.")
@data_dir
@_one
@yes_option
@plain_json_option
def delete(*, yes: bool, **given: Any) -> int:
    """Delete a webhook, with what waits for it; events stay in the feed."""
    if not confirmed(f"Delete webhook {given['webhook']}, with what waits for it", yes=yes):
        return 1
    return _changed(
        "deleted",
        lambda stored, db, endpoint: stored.delete(db, endpoint.id, merchant_id=endpoint.merchant_id),
        **given,
    )


@webhooks.command("rotate-secret", short_help="Give a webhook a new secret.")
@database_command
@_one
@click.option("--overlap", type=span_to(7), default="24h", help="How long the secret before signs too.")
@plain_json_option
async def rotate_secret(
    here: Installation, *, merchant: str, webhook: str, overlap: float, as_json: bool
) -> None:
    """Give a webhook a new secret, and print it; it is shown this once."""
    from orchestrator.delivery import signature
    from orchestrator.store import webhooks as stored

    endpoint = await _find(here.db, merchant, webhook)
    if endpoint.kind == "celery":
        raise click.UsageError(f"{endpoint.id} is a Celery task, which has no secret")
    secret = signature.new_secret()
    await stored.rotate(
        here.db,
        here.encryptor,
        endpoint.id,
        merchant_id=endpoint.merchant_id,
        secret=secret,
        overlap=overlap,
    )
    shown = signature.written(secret)
    say_either({"id": endpoint.id, "secret": shown}, shown, as_json=as_json)


@webhooks.command("test", short_help="Send a test event, and say what came of it.")
@database_command
@_one
@plain_json_option
async def send_test(here: Installation, *, merchant: str, webhook: str, as_json: bool) -> int:
    """Have a test event sent, and say what came of it; exit 1 if it was not delivered."""
    from orchestrator.store import deliveries

    endpoint = await _find(here.db, merchant, webhook)
    test = await deliveries.test(here.db, endpoint.id)
    try:
        async with asyncio.timeout(WAIT):
            while True:
                found = await deliveries.attempts(
                    here.db, here.encryptor, endpoint.id, before=None, limit=1, checkout=test
                )
                if found:
                    break
                await asyncio.sleep(_POLL)
    except TimeoutError:
        say(
            f"nothing has come of it within {WAIT:.0f} s: does a deliverer run (`orchestrator doctor`)?",
            err=True,
        )
        return 1
    (attempt,) = found
    if as_json:
        say_document(_attempt(attempt))
    else:
        status = "" if attempt.status is None else f", HTTP {attempt.status}"
        say(f"{attempt.outcome}{status}, {attempt.milliseconds} ms")
    return int(attempt.outcome != "delivered")


@webhooks.command(short_help="Send events again, with the same ids.")
@data_dir
@_one
@click.option("--event", metavar="EVENT_ID", help="One event.")
@click.option("--last", type=span, help="The events of this time span, such as 2h.")
@flag("--failed", told="All that was given up.")
@plain_json_option
def replay(
    *,
    data_dir: Path,
    merchant: str,
    webhook: str,
    event: str | None,
    last: float | None,
    failed: bool,
    as_json: bool,
) -> int:
    """Send events again, with the same ids: one, those of a time span, or all that was given up."""
    if sum((event is not None, last is not None, failed)) != 1:
        raise click.UsageError("name one of --event, --last and --failed")

    async def work(here: Installation) -> None:
        from orchestrator.store import replays

        endpoint = await _find(here.db, merchant, webhook)
        if event is not None:
            checkout, number = event.rpartition("-")[::2]
            found = uuid_of(checkout)
            if found is None or not number.isdecimal():
                raise click.UsageError(
                    f"{event!r} is no id of an event: it ends in a hyphen and its sequence"
                )
            count = await replays.event(
                here.db,
                endpoint.id,
                merchant_id=endpoint.merchant_id,
                checkout=found,
                sequence=int(number[:9]),
            )
        elif last is not None:
            ((now,),) = await query(here.db, "SELECT clock()")  # by which events have their times
            count = await replays.period(
                here.db,
                endpoint.id,
                merchant_id=endpoint.merchant_id,
                since=now - timedelta(seconds=last),
                before=now,
            )
        else:
            count = await replays.given_up(here.db, endpoint.id)
        said = f"{count} event{'' if count == 1 else 's'} will be sent again"
        say_either({"id": endpoint.id, "replayed": count}, said, as_json=as_json)

    return on_database(data_dir, work)


@webhooks.command()
@database_command
@_one
@flag("--failed", told="Only those that failed.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50)
@plain_json_option
async def deliveries(
    here: Installation, *, merchant: str, webhook: str, failed: bool, limit: int, as_json: bool
) -> None:
    """List attempts to reach an endpoint, the youngest first."""
    from orchestrator.store import deliveries

    endpoint = await _find(here.db, merchant, webhook)
    found: list[AttemptRow] = []
    before = None
    while len(found) <= limit:
        found += await deliveries.attempts(
            here.db,
            here.encryptor,
            endpoint.id,
            before=before,
            limit=limit + 1 - len(found),
            failed=True if failed else None,
        )
        before = await deliveries.scanned_to(here.db, endpoint.id, before=before) if failed else None
        if before is None:
            break
    how = "ask for more with --limit, or for some with --failed"
    told = [_attempt(row) for row in at_most(found, limit, how)]
    if as_json:
        say_document(told)
        return
    shown = table("at", "event", "type", "#", "outcome", "status", "ms", "answer")
    for row in told:
        cells = ("" if value is None else str(value) for value in list(row.values())[1:-1])
        shown.add_row(moment(row["at"]), *cells, " ".join((row["answer"] or "").split())[:60])
    say_table(shown, empty="Nothing was sent that is kept.")


def _attempt(row: AttemptRow) -> dict[str, Any]:
    """Return an attempt as data, in the order of the columns of the table."""
    from orchestrator.domain.events import event_id

    return {
        "at": row.at,
        "eventId": event_id(row.checkout_id, row.sequence),
        "type": row.kind,
        "attempt": row.number,
        "outcome": row.outcome,
        "status": row.status,
        "milliseconds": row.milliseconds,
        "answer": None if row.answer is None else row.answer.decode(errors="replace"),
    }


def _changed(
    what: str,
    change: Callable[[Any, Database, Webhook], Awaitable[bool]],
    *,
    data_dir: Path,
    merchant: str,
    webhook: str,
    as_json: bool,
) -> int:
    async def work(here: Installation) -> None:
        from orchestrator.store import webhooks as stored

        endpoint = await _find(here.db, merchant, webhook)
        await change(stored, here.db, endpoint)
        say_either({"id": endpoint.id, "result": what}, f"{what} {endpoint.id}", as_json=as_json)

    return on_database(data_dir, work)


async def _find(db: Database, merchant: str, webhook: str) -> Webhook:
    from orchestrator.store import webhooks as stored

    number = uuid_of(webhook)
    found = None
    if number is not None:
        found = await stored.by_id(db, number, merchant_id=await merchant_id(db, merchant))
    if found is None:
        raise click.UsageError(
            f"merchant {merchant} has no webhook {webhook!r}: see `orchestrator webhooks list`"
        )
    return found


def _facts(endpoint: Webhook) -> dict[str, object]:
    """Return an endpoint as data; of a URL without its query, which may hold a secret."""
    return {
        "id": endpoint.id,
        "kind": endpoint.kind,
        "status": endpoint.status,
        "pauseReason": endpoint.pause_reason,
        "url": endpoint.url.partition("?")[0],
        "task": endpoint.task,
        "queue": endpoint.queue,
        "types": endpoint.kinds,
        "content": endpoint.content,
        "waiting": endpoint.waiting,
        "waitingSince": endpoint.waiting_since,
        "deliveredAt": endpoint.delivered_at,
        "failingSince": endpoint.failing_since,
    }


def _target(endpoint: Webhook) -> str:
    if endpoint.kind == "celery":
        return f"task {endpoint.task} in {endpoint.queue} at {endpoint.url or 'our own broker'}"
    return endpoint.url.partition("?")[0]
