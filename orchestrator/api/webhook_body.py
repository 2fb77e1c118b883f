"""The bodies of calls on webhooks, read field by field."""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, get_args
from uuid import UUID

from orchestrator.api.contract import webhooks as shapes
from orchestrator.api.request_body import BodyFields
from orchestrator.delivery.addresses import LONGEST_URL, AddressPolicy, WebhookUrlRejected, checked_url
from orchestrator.delivery.task_target import (
    LONGEST_NAME,
    NameRejected,
    broker_of,
    checked_name,
    checked_queue,
)
from orchestrator.domain.events import Content, EventType
from orchestrator.intents.fields import hint, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.api.dependencies import Services
    from orchestrator.store.merchants import Merchant
    from orchestrator.store.webhooks import Kind, Webhook

_KINDS: Final = frozenset(map(str, EventType))
_EVENT_ID: Final = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([1-9][0-9]{0,9})")
_LAST_SEQUENCE: Final = 2**31 - 1
_OF_WEBHOOKS: Final = ("url",)
_OF_TASKS: Final = ("task", "queue", "broker")


class Target(NamedTuple):
    """Where events go: the fields that are stored, and the secret that goes with them (of a Celery task the
    broker's URL with its login; None: as before, or to be made).
    """

    fields: dict[str, Any]
    secret: bytes | None


class WebhookBody(BodyFields):
    """The body of a request."""

    __slots__ = ()
    limit = 16 * 1024
    kind = "invalid-webhook"

    def target(self, services: Services, merchant: Merchant, before: Webhook | None = None) -> Target:
        """Read where events go: a URL, which deliveries must be allowed to go to, or a Celery task.

        `before`: the endpoint that is changed; what is absent stays as it is there.
        """
        kind = before.kind if before is not None else self._kind()
        for name in _OF_WEBHOOKS if kind == "celery" else _OF_TASKS:
            if name in self.given:
                self.wrong(name, f"is not of an endpoint of the kind {kind}")
        if kind == "celery":
            return self._task(services, merchant, before)
        return Target({"url": url} if (url := self._url(services, required=before is None)) else {}, None)

    def _kind(self) -> Kind:
        kind = self.given.get("kind", "webhook")
        if kind == "celery":
            return "celery"
        if kind != "webhook":
            self.wrong("kind", "must be webhook or celery")
        return "webhook"

    def _url(self, services: Services, *, required: bool) -> str | None:
        if not required and "url" not in self.given:
            return None
        url = self.text(self.given, "", "url", most=LONGEST_URL)
        if url is not None:
            with self._noting("url"):
                return checked_url(url, AddressPolicy(services.settings.webhook_ranges))
        return None

    def _task(self, services: Services, merchant: Merchant, before: Webhook | None) -> Target:
        changes: dict[str, Any] = {}
        secret: bytes | None = None
        if before is None or "broker" in self.given:
            changes["url"], secret = self._broker(services)
        for name in ("task", "queue"):
            if before is None or name in self.given:
                changes[name] = self.text(self.given, "", name, most=LONGEST_NAME)
        if (task := changes.get("task")) is not None:
            with self._noting("task"):
                checked_name(task)
        stays: dict[str, Any] = {} if before is None else {"url": before.url, "queue": before.queue}
        after = stays | changes
        self._check_queue(after["queue"], merchant, own=not after["url"])
        return Target(changes, secret)

    def _check_queue(self, queue: str | None, merchant: Merchant, *, own: bool) -> None:
        if queue is not None:
            with self._noting("queue"):
                checked_queue(queue, merchant=merchant.name, own=own)

    @contextmanager
    def _noting(self, field: str) -> Iterator[None]:
        try:
            yield
        except (NameRejected, WebhookUrlRejected) as error:
            self.wrong(field, str(error))

    def judge_target(self, merchant: Merchant, after: Webhook) -> None:
        """Refuse the request if the endpoint would have a queue that is not the merchant's: what `target` has
        read with it may have been changed since.
        """
        self._check_queue(after.queue, merchant, own=not after.url)
        self.judge()

    def _broker(self, services: Services) -> tuple[str, bytes]:
        """Read the URL of a broker; return it without and with its login, empty for our own broker."""
        if self.given.get("broker") is None:
            if not services.settings.webhook_queue_limit:
                self.wrong(
                    "broker", "must be the URL of a broker of yours: there are no queues of events here"
                )
            return "", b""
        url = self.text(self.given, "", "broker", most=LONGEST_URL)
        if url is not None:
            with self._noting("broker"):
                return broker_of(url, AddressPolicy(services.settings.webhook_ranges)).shown, url.encode()
        return "-", b""

    def settings(self) -> dict[str, Any]:
        """Read what a webhook is besides its URL; what is absent is left out."""
        found: dict[str, Any] = {}
        if "description" in self.given:
            found["description"] = (
                self.text(self.given, "", "description", most=shapes.LONGEST_DESCRIPTION, required=False)
                or ""
            )
        if "types" in self.given:
            found["kinds"] = self._kinds(self.given["types"])
        if "content" in self.given:
            found["content"] = self.given["content"]
            if found["content"] not in get_args(Content):
                self.wrong("content", "must be thin or full")
        return found

    def paused(self) -> bool | None:
        """Read whether it is to be paused or resumed."""
        if "paused" not in self.given:
            return None
        paused = self.given["paused"]
        if isinstance(paused, bool):
            return paused
        self.wrong("paused", f"must be true or false, not {kind_of(paused)}")
        return None

    def replay(self) -> tuple[str, Any]:
        """Read what is to be sent again."""
        given = self.given
        ways = [name for name in ("eventId", "since", "failed") if name in given]
        if len(ways) != 1 or ("before" in given and ways != ["since"]):
            self.wrong("body", "must have one of eventId, since (with before, or until now) and failed")
        elif ways == ["eventId"]:
            found = _EVENT_ID.fullmatch(given["eventId"]) if isinstance(given["eventId"], str) else None
            if found is not None and int(found[2]) <= _LAST_SEQUENCE:
                return "event", (UUID(found[1]), int(found[2]))
            self.wrong("eventId", "must be the id of an event, such as the webhook-id of a delivery")
        elif ways == ["since"]:
            return "period", (self._time("since"), self._time("before") if "before" in given else _END)
        elif given["failed"] is not True:
            self.wrong("failed", "must be true")
        return "failed", ()

    def _time(self, name: str) -> datetime:
        try:
            found = datetime.fromisoformat(self.given[name])
        except (ValueError, TypeError):
            found = None
        if found is not None and found.tzinfo is not None:
            return found
        self.wrong(name, "must be a time with its offset, such as 2026-01-05T10:00:00+00:00")
        return _END

    def _kinds(self, given: object) -> list[str] | None:
        """Read types of events; None stands for all, as it is stored."""
        if given == [shapes.ALL_TYPES]:
            return None
        if not isinstance(given, list) or not given or len(given) > len(EventType):
            self.wrong("types", f'must be a list of types of events, or ["*"] for all, not {kind_of(given)}')
            return None
        if shapes.ALL_TYPES in given:
            self.wrong("types", 'must be ["*"] alone for all, or a list of types of events')
            return None
        for number, kind in enumerate(given):
            if not isinstance(kind, str) or kind not in _KINDS:
                near = hint(kind, _KINDS) if isinstance(kind, str) else "GET /v1/event-types lists them"
                self.wrong(f"types[{number}]", f"is not a type of event: {near}")
                return None
        return sorted(set(given))


_END: Final = datetime(9999, 1, 1, tzinfo=UTC)
