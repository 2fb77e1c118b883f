"""Callbacks to the merchant: browser callbacks while the shopper waits, notifications beside them, in the
order of a plan.

Success and failure are POSTed by the gateway's own server and their answer is relayed to the shopper; a
notification is a separate POST with a timeout of 5 s whose answer is discarded; the order between them is not
guaranteed (D7, part 2.1). Every callback, also one held back on purpose, is recorded in the books with its
result.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urljoin

import aiohttp

from orchestrator.devkit.sandbox.books import Delivery
from orchestrator.devkit.sandbox.documents import callback_body, signature_header
from orchestrator.devkit.sandbox.rules import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from orchestrator.devkit.sandbox.books import Books, Payment, Transaction
    from orchestrator.devkit.sandbox.config import SandboxConfig
    from orchestrator.devkit.sandbox.faults import Faults
    from orchestrator.devkit.sandbox.messages import Messages
    from orchestrator.devkit.sandbox.store import Store

_PAGE_LIMIT = 2_000_000  # the merchant's page may have 2 MB (D7)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_STALE_BY = 2 * 86400

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the merchant said to a callback: a place to go, a page to show, or neither and why."""

    status: int | None = None
    location: str | None = None
    page: bytes | None = None
    note: str | None = None


NOT_ASKED = Answer(note="no URL")
LOST = Answer(note="lost")
NOT_ALLOWED = Answer(note="not sent: the sandbox calls only loopback and the hosts that it was started with")


class Courier:
    """Sends callbacks; `start` and `stop` belong to the life of the server."""

    def __init__(
        self, config: SandboxConfig, books: Books, store: Store, faults: Faults, *, messages: Messages
    ) -> None:
        self._config = config
        self._books = books
        self._store = store
        self._faults = faults
        self._messages = messages
        self._session: aiohttp.ClientSession | None = None
        self._under_way: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=200),
            headers={"user-agent": "AltaPay sandbox"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        """Give up what is under way: an unsent callback is lost, as with the real gateway's outages."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def tell(self, payment: Payment, transaction: Transaction) -> Answer:
        """Send the callbacks of an ended attempt and return the answer that the shopper's browser gets."""
        if transaction.outcome == Outcome.OPEN:
            self.start_beside(self._repeat(payment, transaction, "notification", "open"))
            return NOT_ASKED
        kind = "success" if transaction.outcome == Outcome.SUCCEEDED else "failure"
        plan = self._faults.plan(payment.order_id).callbacks
        if plan.delay_ms:
            await asyncio.sleep(plan.delay_ms / 1000)

        repeat = partial(self._repeat, payment, transaction, status=transaction.outcome)
        match plan.order:
            case "notificationFirst":
                await repeat("notification")
                return await repeat(kind)
            case "successFirst":
                answer = await repeat(kind)
                self.start_beside(repeat("notification"))
                return answer
            case "race":
                self.start_beside(repeat("notification"))
                return await repeat(kind)

    async def call(self, payment: Payment, transaction: Transaction | None, kind: str, status: str) -> Answer:
        """Send one callback of a kind with a status, now and once: whether the real gateway repeats a
        notification is not documented (part 2.5).
        """
        url = payment.callbacks.get(kind)
        if url is None:
            return NOT_ASKED
        plan = self._faults.plan(payment.order_id).callbacks
        kept_back = None if self._config.may_call(url) else NOT_ALLOWED
        if kept_back is None and (self._faults.everywhere.callbacks == "lost" or not getattr(plan, kind)):
            kept_back = LOST
            self._messages.note(
                payment.order_id, ("gateway", "orchestrator"), "callback:lost", f"{kind}, {status}"
            )
        if kept_back is not None:
            self._note(payment, transaction, kind, status).note = kept_back.note
            await self._store.flushed()
            return kept_back
        return await self._post(payment, transaction, kind, status, url=url)

    def announce(self, payment: Payment) -> None:
        """Send the notification `new` of a payment that was created (Checkout API only; C1, C2)."""
        if "notification" in payment.callbacks:
            self.start_beside(self.call(payment, None, "notification", "new"))

    async def _repeat(self, payment: Payment, transaction: Transaction, kind: str, status: str) -> Answer:
        """Send a callback as often as planned; the first answer counts, the others follow behind it."""
        plan = self._faults.plan(payment.order_id).callbacks
        send = partial(self.call, payment, transaction, kind, status)
        if plan.simultaneous:
            first, *_ = [self.start_beside(send()) for _ in range(max(plan.times, 1))]
            return await first
        answer = await send()
        if plan.times > 1:
            self.start_beside(_one_by_one(send, plan.times - 1))
        return answer

    async def _post(
        self, payment: Payment, transaction: Transaction | None, kind: str, status: str, *, url: str
    ) -> Answer:
        if self._session is None:
            raise RuntimeError("the courier was not started: run the app with its lifespan")
        order_id = payment.order_id
        tamper = self._faults.plan(order_id).callbacks.tamper
        secret = self._config.terminal_secret
        body, content_type = callback_body(
            payment, transaction, status, terminal_secret=secret, tamper=tamper
        )
        headers = {"content-type": content_type}
        if self._config.callback_secrets and tamper != "noSignature":
            stamp = int(time.time()) - (_STALE_BY if tamper == "staleTimestamp" else 0)
            secrets = (
                ("not-the-merchants-secret",) if tamper == "badSignature" else self._config.callback_secrets
            )
            headers["altapay-signature"] = signature_header(body, secrets, stamp)
        seconds = (
            self._config.notification_timeout if kind == "notification" else self._config.browser_timeout
        )
        delivery = self._note(payment, transaction, kind, status)
        self._messages.note(order_id, ("gateway", "orchestrator"), f"callback:{kind}", status)
        try:
            async with self._session.post(
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                answer = await _answer(response, url)
        except TimeoutError:
            answer = Answer(note="timeout")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            answer = Answer(note=f"unreachable: {type(error).__name__}")
        delivery.answer_status, delivery.note = answer.status, answer.note
        said = answer.note or f"{answer.status}{' to the page of the shop' if answer.location else ''}"
        self._messages.note(order_id, ("orchestrator", "gateway"), f"callback:{kind}:answer", said)
        self._books.touch(payment)
        await self._store.flushed()
        return answer

    def _note(self, payment: Payment, transaction: Transaction | None, kind: str, status: str) -> Delivery:
        number = transaction.transaction_id if transaction is not None else None
        delivery = Delivery(kind=kind, status=str(status), sent_at=time.time(), transaction_id=number)
        payment.deliveries.append(delivery)
        self._books.touch(payment)
        return delivery

    def start_beside(self, coroutine: Coroutine[None, None, T]) -> asyncio.Task[T]:
        """Let something run beside the requests; at the end it is given up, as is an unsent callback."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task


async def _one_by_one(send: Callable[[], Awaitable[object]], times: int) -> None:
    for _ in range(times):
        await send()


async def _answer(response: aiohttp.ClientResponse, url: str) -> Answer:
    location = response.headers.get("location")
    if response.status in _REDIRECTS and location:
        return Answer(status=response.status, location=urljoin(url, location))
    page = await response.content.read(_PAGE_LIMIT + 1)
    if len(page) > _PAGE_LIMIT:
        return Answer(status=response.status, note="page of more than 2 MB")
    if response.status == HTTPStatus.OK and page and response.content_type == "text/html":
        return Answer(status=response.status, page=page)
    return Answer(status=response.status)
