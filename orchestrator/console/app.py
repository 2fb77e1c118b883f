"""The routes of the console, and what every request of it passes: session, scope, form, and a page for
whatever is wrong.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from orchestrator import log
from orchestrator.api import correlation
from orchestrator.api.dependencies import DATABASE_TIMEOUT
from orchestrator.api.problems import Refusal
from orchestrator.console import (
    access,
    actions,
    approvals,
    bulk,
    deliveries,
    events,
    orders,
    pages,
    reading,
    single_sign_on,
    system,
    users,
)
from orchestrator.console.access import ADMIN, APPROVE, OPERATE, VIEW, Refused, SignedOut
from orchestrator.console.live import EventStream, Live
from orchestrator.console.queues import Queues
from orchestrator.console.run_worker import RunWorker
from orchestrator.store.console import actions as trail
from orchestrator.store.console import sessions
from orchestrator.store.database import is_away
from orchestrator.text import sentence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from uuid import UUID

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from orchestrator.api.dependencies import Services
    from orchestrator.console.reading import Fields
    from orchestrator.store.console.actions import Outcome
    from orchestrator.store.console.sessions import Session

_log = log.get(__name__)

PREFIX: Final = "/console"
HEALTH_KEPT: Final = 10.0
NOTED: Final = frozenset({403, 409})
"""Statuses of refused forms that stand in the list of actions: not allowed, and too late."""
LONGEST_PAGE: Final = 200
TOPICS: Final = ("overview", "decisions", "approvals")


@dataclass(slots=True, kw_only=True)
class Visit:
    """One request of a signed-in person. `form` has the fields of a POST, which is proven to be the
    person's.
    """

    request: Request
    services: Services
    console: Console
    session: Session
    form: Fields
    noted: bool = False
    """Whether what the person did is stored."""

    @property
    def actor(self) -> str:
        """The person's name in the audit trail."""
        return f"operator:{self.session.actor}"

    async def note(
        self,
        action: str,
        outcome: Outcome,
        *,
        checkout: UUID | None = None,
        merchant_id: int | None = None,
        command: UUID | None = None,
        subject: str = "",
        facts: Mapping[str, object] | None = None,
        reason: str | None = None,
    ) -> None:
        """Store what the person did, or was refused."""
        self.noted = True
        await trail.note(
            self.services.db,
            self.services.encryptor,
            actor=self.actor,
            action=action,
            outcome=outcome,
            merchant_id=merchant_id,
            checkout=checkout,
            command=command,
            subject=subject,
            facts=facts,
            reason=reason,
        )
        _log.info(
            "console_action", actor=self.actor, action=action, outcome=outcome, checkout=str(checkout or "")
        )


class Console:
    """The console of one API process; `routes` are added to its app."""

    entry = (PREFIX, "Console", "Money at risk, what waits for a decision, each order; for operations")

    def __init__(self, services: Services) -> None:
        self._services = services
        self.live = Live(services.db)
        self.sessions = access.Sessions(services)
        self._health: tuple[str | None, list[str]] = (None, [])
        self._health_at = float("-inf")
        self.queues = Queues(services.settings)
        self.drawn: system.Drawn | None = None
        self._provider = single_sign_on.provider(services)
        self.run_worker = RunWorker(services)

    def start(self) -> None:
        """Begin to look for bulk actions; on the event loop."""
        self.run_worker.start()

    def stop(self) -> None:
        """End all streams: the process ends."""
        self.live.stop()

    async def close(self) -> None:
        """End streams, and what this process carries out; another process goes on with it."""
        await self.live.close()
        self.queues.close()
        if self._provider is not None:
            await self._provider.close()
        await self.run_worker.close()

    async def health(self, request: Request) -> tuple[str | None, list[str]]:
        """Return what `/readyz` says, at most ten seconds old: why nothing is served, and what else is
        wrong.
        """
        if time.monotonic() - self._health_at >= HEALTH_KEPT:
            self._health_at = time.monotonic()
            self._health = await request.app.state.health.check()
        return self._health

    def routes(self) -> list[BaseRoute]:
        """Return where everything is."""
        get, post = ["GET"], ["POST"]
        view, act = self._view, self._act
        order, endpoint = f"{PREFIX}/orders/{{id}}", f"{PREFIX}/deliveries/{{id}}"
        return [
            Route(PREFIX, view(VIEW, system.overview), methods=get),
            Route(f"{PREFIX}/orders", view(VIEW, orders.search), methods=get),
            Route(f"{PREFIX}/orders/by-email", act(VIEW, orders.search_email, ("email",)), methods=post),
            Route(f"{PREFIX}/orders.csv", view(VIEW, orders.csv), methods=get),
            Route(order, view(VIEW, orders.show), methods=get),
            Route(f"{order}/verify", act(VIEW, orders.verify, ()), methods=post),
            Route(f"{order}/do/{{kind}}", view(OPERATE, actions.show), methods=get),
            Route(f"{order}/do/{{kind}}", act(OPERATE, actions.act, actions.FIELDS), methods=post),
            Route(f"{PREFIX}/decisions", view(VIEW, orders.decisions), methods=get),
            Route(f"{PREFIX}/approvals", view(VIEW, approvals.show_all), methods=get),
            Route(f"{PREFIX}/approvals/{{id}}", view(VIEW, approvals.show), methods=get),
            Route(
                f"{PREFIX}/approvals/{{id}}", act(APPROVE, approvals.decide, approvals.FIELDS), methods=post
            ),
            Route(f"{PREFIX}/bulk", view(OPERATE, bulk.show_all), methods=get),
            Route(f"{PREFIX}/bulk/new", view(OPERATE, bulk.preview), methods=get),
            Route(f"{PREFIX}/bulk/new", act(OPERATE, bulk.begin, bulk.FIELDS), methods=post),
            Route(f"{PREFIX}/bulk/{{id}}", view(VIEW, bulk.show), methods=get),
            Route(f"{PREFIX}/bulk/{{id}}/{{what}}", act(OPERATE, bulk.switch, ()), methods=post),
            Route(f"{PREFIX}/deliveries", view(VIEW, deliveries.show_all), methods=get),
            Route(endpoint, view(VIEW, deliveries.show), methods=get),
            Route(f"{endpoint}/do/{{what}}", act(OPERATE, deliveries.act, deliveries.FIELDS), methods=post),
            Route(f"{PREFIX}/events", view(VIEW, events.show), methods=get),
            Route(f"{PREFIX}/rejected", view(VIEW, deliveries.rejected), methods=get),
            Route(f"{PREFIX}/merchants", view(VIEW, system.merchants), methods=get),
            Route(
                f"{PREFIX}/merchants/{{name}}",
                act(ADMIN, system.switch_merchant, ("what", "reason")),
                methods=post,
            ),
            Route(
                f"{PREFIX}/gateways",
                act(ADMIN, system.switch_gateway, ("gateway", "what", "reason")),
                methods=post,
            ),
            Route(f"{PREFIX}/users", view(ADMIN, users.show_all), methods=get),
            Route(f"{PREFIX}/users", act(ADMIN, users.add, users.NEW), methods=post),
            Route(f"{PREFIX}/users/{{name}}", act(ADMIN, users.change, users.CHANGE), methods=post),
            Route(f"{PREFIX}/password", view(VIEW, users.show_password), methods=get),
            Route(f"{PREFIX}/password", act(VIEW, users.set_password, users.PASSWORD), methods=post),
            Route(f"{PREFIX}/system", view(VIEW, system.show), methods=get),
            Route(f"{PREFIX}/actions", view(VIEW, system.actions), methods=get),
            Route(f"{PREFIX}/sessions", view(VIEW, system.sessions), methods=get),
            Route(f"{PREFIX}/sessions", act(VIEW, system.end_session, ("session", "name")), methods=post),
            Route(f"{PREFIX}/live", view(VIEW, self._stream), methods=get),
            Route(f"{PREFIX}/login", self._shown(self._login), methods=["GET", "POST"]),
            Route(single_sign_on.PATH, self._shown(self._begin_sso), methods=get),
            Route(f"{single_sign_on.PATH}/answer", self._shown(self._finish_sso), methods=get),
            Route(f"{PREFIX}/link/{{code}}", self._shown(self._link), methods=["GET", "POST"]),
            Route(f"{PREFIX}/logout", act(VIEW, self._logout, ()), methods=post),
            Route(f"{PREFIX}/assets/{{name}}", pages.asset, methods=get),
        ]

    def _view(
        self, scope: str, call: Callable[[Visit], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a page."""

        async def visit(request: Request) -> Response:
            found = await self._visit(request)
            if isinstance(found, Response):
                return found

            async def allowed(visit: Visit) -> Response:
                access.need(visit.session, scope)
                return await call(visit)

            return await self._answer(found, allowed)

        return visit

    def _act(
        self, scope: str, call: Callable[[Visit], Awaitable[Response]], fields: tuple[str, ...]
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a form."""

        async def submit(request: Request) -> Response:
            found = await self._visit(request)
            if isinstance(found, Response):
                return found

            async def checked(visit: Visit) -> Response:
                try:
                    access.need(visit.session, scope)
                    access.check_origin(request, self._services)
                    visit.form = await reading.form(request, fields)
                    access.check_form(self._services, visit.session, visit.form.values.get("token", ""))
                    return await call(visit)
                except Refused as refused:
                    if refused.status in NOTED and not visit.noted:
                        page = request.url.path[:LONGEST_PAGE]
                        about: dict[str, object] = {"page": page, "refused": refused.title}
                        await visit.note("form:refused", "refused", facts=about)
                    raise

            return await self._answer(found, checked)

        return submit

    async def _visit(self, request: Request) -> Visit | Response:
        services = self._services
        visit: Visit | None = None
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                session = await self.sessions.of(request)
            visit = Visit(
                request=request, services=services, console=self, session=session, form=reading.Fields({})
            )
            services.limits.take(request.scope, services.limits.merchant, f"console:{session.actor}")
        except SignedOut:
            if request.method == "GET" and request.url.path != f"{PREFIX}/live":
                here = quote(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
                return RedirectResponse(f"{PREFIX}/login?next={here}", 303)
            return pages.bare(
                "refused.html",
                status=401,
                title="Signed out",
                said="The session has ended. Nothing was done: sign in again.",
                status_code=401,
            )
        except Exception as error:  # noqa: BLE001 - every error has its page
            return _page_of(visit, error)
        return visit

    async def _answer(self, visit: Visit, call: Callable[[Visit], Awaitable[Response]]) -> Response:
        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                return await call(visit)
        except Exception as error:  # noqa: BLE001 - as above
            return _page_of(visit, error)

    def _shown(
        self, call: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def shown(request: Request) -> Response:
            try:
                async with asyncio.timeout(DATABASE_TIMEOUT):
                    return await call(request)
            except Exception as error:  # noqa: BLE001 - as above
                return _page_of(None, error)

        return shown

    async def _stream(self, visit: Visit) -> Response:
        """Follow what a page shows."""
        topic = reading.query(visit.request, ("topic",)).text("topic") or ""
        kind, _, about = topic.partition(":")
        if topic not in TOPICS and kind not in {"order", "run"}:
            raise Refused(404, "Not found", "There is no such topic.")
        if topic not in TOPICS:
            topic = f"{kind}:{reading.uuid(about)}"
        return EventStream(self.live, topic)

    async def _login(self, request: Request) -> Response:
        """Show the form, or open a session for a token."""
        if request.method == "GET":
            there = _own(reading.query(request, ("next",)).values.get("next", ""))
            return pages.bare("login.html", there=there, wrong=None, sso=self._provider is not None)
        access.check_origin(request, self._services)
        form = await reading.form(request, ("name", "credential", "next"))
        there, credential = _own(form.values.get("next", "")), form.values.get("credential", "")
        try:
            if (name := form.values.get("name")) is not None:
                value = await access.sign_in_by_password(
                    request, self._services, self.sessions, name=name.strip(), password=credential
                )
            else:
                value = await access.sign_in(request, self._services, credential.strip())
        except Refused as refused:
            return pages.bare(
                "login.html",
                status=refused.status,
                there=there,
                wrong=refused.sentence,
                sso=self._provider is not None,
            )
        return await self._opened(value, RedirectResponse(there, 303))

    async def _begin_sso(self, request: Request) -> Response:
        """Send the browser to the identity provider."""
        if self._provider is None:
            raise Refused(404, "Not found", "This installation has no identity provider.")
        there = _own(reading.query(request, ("next",)).values.get("next", ""))
        address, kept = await single_sign_on.begin(self._services, self._provider, there)
        response = RedirectResponse(address, 303)
        single_sign_on.remember(response, self._services, kept)
        return response

    async def _finish_sso(self, request: Request) -> Response:
        """Open a session for the person whom the identity provider names."""
        if self._provider is None:
            raise Refused(404, "Not found", "This installation has no identity provider.")
        value, there = await single_sign_on.finish(request, self._services, self._provider)
        response = await self._opened(value, pages.bare("signed_in.html", there=_own(there)))
        single_sign_on.remember(response, self._services, "")
        return response

    async def _link(self, request: Request) -> Response:
        """Ask whether to use a link; programs that look at links in advance do not use it."""
        code = request.path_params["code"]
        if request.method == "GET":
            return pages.bare("link.html", code=code)
        access.check_origin(request, self._services)
        await reading.form(request, ())
        value = await access.use_link(request, self._services, code)
        return await self._opened(value, RedirectResponse(PREFIX, 303))

    async def _opened(self, value: str, response: Response) -> Response:
        """Note that a session was opened, and give the browser its cookie."""
        session = await sessions.find(self._services.db, self._services.encryptor, value)
        if session is not None:
            await trail.note(
                self._services.db,
                self._services.encryptor,
                actor=f"operator:{session.actor}",
                action="session:opened",
                outcome="accepted",
                facts={"scopes": sorted(session.scopes)},
            )
        access.set_cookie(response, self._services, value)
        return response

    async def _logout(self, visit: Visit) -> Response:
        await sessions.end(self._services.db, visit.session.key)
        self.sessions.forget()
        await visit.note("session:ended", "accepted")
        response = RedirectResponse(f"{PREFIX}/login", 303)
        access.drop_cookie(response, self._services)
        return response


def _own(there: str) -> str:
    """Return where to go after a sign-in: a page of the console, and nothing else."""
    inside = there == PREFIX or there.startswith((f"{PREFIX}/", f"{PREFIX}?"))
    harmless = len(there) <= 1000 and there.isascii() and there.isprintable() and "\\" not in there  # noqa: PLR2004 - ours are shorter
    return there if inside and harmless and f"{PREFIX}/login" not in there else PREFIX


def _page_of(visit: Visit | None, error: Exception) -> Response:
    """Return the page of an error: what was wrong, or, of one that was not expected, that something broke."""
    if isinstance(error, Refused):
        return pages.refusal(visit, error)
    if isinstance(error, Refusal):
        response = pages.refusal(visit, Refused(error.status, "Refused", sentence(error.detail)))
        response.headers.update(error.headers or {})
        return response
    if isinstance(error, TimeoutError) and visit is not None and visit.request.method == "GET":
        _log.warning("console_page_timed_out", path=visit.request.url.path, **log.cause(error))
        said = (
            "The page took too long to read. Nothing was changed: "
            "name fewer days or one merchant, or try again."
        )
        return pages.refusal(visit, Refused(503, "Too slow", said))
    if is_away(error):
        _log.warning("console_without_database", **log.cause(error))
        said = "The database does not answer. What you did last may or may not be stored: look at the order before you do it again."
        return pages.bare(
            "refused.html", status=503, title="The database does not answer", said=said, status_code=503
        )
    _log.error("console_failed", exc_info=error)
    said = f"Something broke here. Name the correlation id {correlation.current()} when you ask about it."
    return pages.bare("refused.html", status=500, title="Something broke", said=said, status_code=500)
