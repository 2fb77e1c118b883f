"""The feed of a merchant's events, with long polls, and the schemas of the events.

A cursor is the position after which reading continues. Positions have no gaps and are given after the commit,
so a client that continues with `next` of each answer gets every event once; events that are no longer kept
are reported, and never skipped silently.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Final
from uuid import UUID  # noqa: TC003 - FastAPI reads annotations at run time

from fastapi import Query, Request
from starlette.responses import Response  # noqa: TC002 - as above

from orchestrator import log
from orchestrator.api import dependencies, problems
from orchestrator.api.contract import answers
from orchestrator.api.dependencies import DATABASE_TIMEOUT, Services
from orchestrator.api.long_poll import TooManyWaiting, Waiting, while_connected
from orchestrator.api.problems import Refusal, answer
from orchestrator.domain import events
from orchestrator.domain.events import CloudEvent, Content, EventType
from orchestrator.store import events as feeds
from orchestrator.store.events import Page

if TYPE_CHECKING:
    from orchestrator.store.events import Feed

_log = log.get(__name__)

SCOPE: Final = "events:read"
LONGEST_WAIT: Final = 30
STRETCHES: Final = 20
"""Stretches of the feed that one request reads for its events; then the answer has the position reached."""
AT_A_TIME: Final = 100
"""Documents that are made before other requests continue."""
_CURSOR: Final = re.compile("0|[1-9][0-9]{0,17}")


async def show(  # noqa: PLR0917 - FastAPI calls it by name
    request: Request,
    after: Annotated[
        str | None,
        Query(
            max_length=19,
            description="`next` of the answer before; 0 or nothing: from the first that is kept",
        ),
    ] = None,
    wait: Annotated[
        int, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for an event, if there is none")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=answers.EVENT_PAGE)] = 100,
    type: Annotated[  # noqa: A002 - the parameter's name in the contract
        list[EventType] | None,
        Query(max_length=len(EventType), description="Only these; repeat it for several"),
    ] = None,
    checkout: Annotated[UUID | None, Query(description="Only those of this checkout")] = None,
    content: Annotated[Content, Query(description="`full` adds sentences")] = "thin",
) -> Response:
    """Return a merchant's events, the oldest first; with `wait` the answer comes as soon as there is an
    event.
    """
    services, _, merchant = await dependencies.admit(request, SCOPE)
    wanted = Waiting(
        merchant.id, _position(after), limit, None if type is None else frozenset(map(str, type)), checkout
    )
    page = await _stored(services, wanted)
    if page is None and wait:
        page = await _next(request, services, wanted, seconds=wait)
    page = page or Page((), wanted.after)
    return answer(answers.EventPage(events=await _documents(page, content), next=str(page.until)))


async def show_types(request: Request) -> Response:
    """Every type of event with its JSON Schemas, for thin and for full documents."""
    await dependencies.admit(request, SCOPE)
    return answer(
        answers.EventTypes(
            types=[
                answers.DescribedType(
                    kind=kind,
                    description=kind.about,
                    thin=events.schema(kind, "thin"),
                    full=events.schema(kind, "full"),
                )
                for kind in EventType
            ]
        )
    )


async def _stored(services: Services, wanted: Waiting) -> Page | None:
    """Return what the feed has for a client by now; None, with the client at its end, where that
    is nothing.
    """
    async with asyncio.timeout(DATABASE_TIMEOUT):
        feed = await feeds.feed(services.db, wanted.merchant_id)
        if wanted.after > feed.last:
            raise _wrong(
                f"after is {wanted.after}, and the feed ends at {feed.last}: it is no cursor of this feed"
            )
        begun = wanted.after
        wanted.after = _kept(wanted.after, feed)
        page = Page((), wanted.after)
        for _ in range(STRETCHES):
            page = await feeds.page(
                services.db,
                wanted.merchant_id,
                after=wanted.after,
                until=feed.last,
                limit=wanted.limit,
                kinds=wanted.kinds,
                checkout=wanted.checkout,
            )
            if page.events or page.until >= feed.last:
                break
            wanted.after = page.until
        # Events that are deleted during the read would seem never to have existed.
        kept = await feeds.feed(services.db, wanted.merchant_id)
    if kept.kept_after != feed.kept_after:
        _kept(begun, kept)
    if page.events or page.until < feed.last:
        return page
    wanted.after = page.until
    return None


def _kept(after: int, feed: Feed) -> int:
    """Return the position to read on from; 410 if events after this one are not kept any more."""
    if after == 0:
        return feed.kept_after
    if after < feed.kept_after:
        raise Refusal(
            410,
            f"events up to position {feed.kept_after} are not kept any more, and this cursor stands at {after}: go on with "
            f"after={feed.kept_after}, and ask for the checkouts whose events were missed",
            kind="cursor-expired",
            facts={"oldest": str(feed.kept_after)},
        )
    return after


async def _next(request: Request, services: Services, wanted: Waiting, *, seconds: float) -> Page | None:
    """Return the next events that a client waits for; the wait ends when the client disconnects."""
    try:
        return await while_connected(request, services.event_feed, wanted, seconds=seconds)
    except TooManyWaiting as error:
        whose = "of this merchant " if error.own else ""
        said = (
            f"{error.number} clients {whose}wait for events already: ask again without wait, or in some "
            "seconds"
        )
        raise error.refusal(said, kind="too-many-waiting") from None


async def _documents(page: Page, content: Content) -> list[CloudEvent]:
    found: list[CloudEvent] = []
    for number, row in enumerate(page.events, start=1):
        if number % AT_A_TIME == 0:
            await asyncio.sleep(0)  # a long page must not keep other requests waiting
        try:
            found.append(events.document(row, content=content))
        except (ValueError, KeyError):
            # Its place in the sequence of its checkout stays empty, which a client can see.
            _log.exception("event_unreadable", checkout=str(row.checkout_id), sequence=row.sequence)
    return found


def _position(after: str | None) -> int:
    if after is None:
        return 0
    if not _CURSOR.fullmatch(after):
        raise _wrong("after must be the next of an earlier answer, or 0")
    return int(after)


def _wrong(sentence: str) -> Refusal:
    return problems.wrong("after", sentence, kind="invalid-request", said=sentence)
