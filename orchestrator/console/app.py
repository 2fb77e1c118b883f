"""The routes of the console, and what every request of it passes: session, scope, form, and a page for
whatever is wrong.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict
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
    orders,
    pages,
    reading,
    single_sign_on,
    system,
    users,
)
from orchestrator.console.access import ADMIN, APPROVE, OPERATE, VIEW, Refused, SignedOut, not_found
from orchestrator.console.live import EventStream, Live
from orchestrator.console.queues import Queues
from orchestrator.console.run_worker import RunWorker
from orchestrator.store.console import actions as trail
from orchestrator.store.console import sessions
from orchestrator.store.database import is_away
from orchestrator.text import sentence

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import TypeAlias, Unpack
    from uuid import UUID

    from starlette.requests import Request
    from starlette.routing import BaseRoute

    from orchestrator.api.dependencies import Services
    from orchestrator.console.reading import Fields
    from orchestrator.crypto import Encryptor
    from orchestrator.oidc import Provider
    from orchestrator.store.console.actions import Outcome
    from orchestrator.store.console.sessions import Session
    from orchestrator.store.database import Database

    Call: TypeAlias = Callable[["Visit"], Awaitable[Response]]

_log = log.get(__name__)

PREFIX: Final = "/console"
HEALTH_KEPT: Final = 10.0
NOTED: Final = frozenset({403, 409})
"""Statuses of refused forms that stand in the list of actions: not allowed, and too late."""
LONGEST_PAGE: Final = 200
TOPICS: Final = ("overview", "decisions", "approvals")


class About(TypedDict, total=False):
    """What an action was about."""

    checkout: UUID
    merchant_id: int
    command: UUID | None
    subject: str
    facts: Mapping[str, object]
    reason: str


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

    @property
    def db(self) -> Database:
        """Where the pages read and write."""
        return self.services.db

    @property
    def encryptor(self) -> Encryptor:
        """What proves and hides rows of the console."""
        return self.services.encryptor

    @property
    def id(self) -> UUID:
        """The id in the address; `Refused` where it is none."""
        return reading.uuid(self.request.path_params["id"])

    def query(self, *known: str) -> Fields:
        """Return the query parameters; `Refused` for those that are not known."""
        return reading.query(self.request, known)

    async def note(self, action: str, outcome: Outcome, **about: Unpack[About]) -> None:
        """Store what the person did, or was refused."""
        self.noted = True
        await trail.note(self.db, self.encryptor, actor=self.actor, action=action, outcome=outcome, **about)
        checkout = str(about.get("checkout", ""))
        _log.info("console_action", actor=self.actor, action=action, outcome=outcome, checkout=checkout)


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

        def page(path: str, scope: str, call: Call) -> Route:
            return Route(PREFIX + path, self._endpoint(scope, call), methods=["GET"])

        def form(path: str, scope: str, call: Call, *fields: str) -> Route:
            return Route(PREFIX + path, self._endpoint(scope, call, fields), methods=["POST"])

        def signed_out(path: str, call: Callable[[Request], Awaitable[Response]], *methods: str) -> Route:
            async def endpoint(request: Request) -> Response:
                return await _answer(None, call(request))

            return Route(PREFIX + path, endpoint, methods=["GET", *methods])

        async def without_slash(_: Request) -> Response:
            return RedirectResponse(PREFIX, 308)

        return [
            page("", VIEW, system.overview),
            Route(f"{PREFIX}/", without_slash, methods=["GET"]),
            page("/orders", VIEW, orders.search),
            form("/orders/by-email", VIEW, orders.search_email, "email"),
            page("/orders.csv", VIEW, orders.csv),
            page("/orders/{id}", VIEW, orders.show),
            form("/orders/{id}/verify", VIEW, orders.verify),
            page("/orders/{id}/do/{kind}", OPERATE, actions.show),
            form("/orders/{id}/do/{kind}", OPERATE, actions.act, *actions.FIELDS),
            page("/decisions", VIEW, orders.decisions),
            page("/approvals", VIEW, approvals.show_all),
            page("/approvals/{id}", VIEW, approvals.show),
            form("/approvals/{id}", APPROVE, approvals.decide, "decision"),
            page("/bulk", OPERATE, bulk.show_all),
            page("/bulk/new", OPERATE, bulk.preview),
            form("/bulk/new", OPERATE, bulk.begin, *bulk.FIELDS),
            page("/bulk/{id}", VIEW, bulk.show),
            form("/bulk/{id}/{what}", OPERATE, bulk.switch),
            page("/deliveries", VIEW, deliveries.show_all),
            page("/deliveries/{id}", VIEW, deliveries.show),
            form("/deliveries/{id}/do/{what}", OPERATE, deliveries.act, "reason", "attempt"),
            page("/events", VIEW, deliveries.feed),
            page("/rejected", VIEW, deliveries.rejected),
            page("/merchants", VIEW, system.merchants),
            form("/merchants/{name}", ADMIN, system.switch_merchant, "what", "reason"),
            form("/gateways", ADMIN, system.switch_gateway, "gateway", "what", "reason"),
            page("/users", ADMIN, users.show_all),
            form("/users", ADMIN, users.add, *users.NEW),
            form("/users/{name}", ADMIN, users.change, "what", "role", "reason"),
            page("/password", VIEW, users.show_password),
            form("/password", VIEW, users.set_password, *users.PASSWORD),
            page("/system", VIEW, system.show),
            page("/actions", VIEW, system.actions),
            page("/sessions", VIEW, system.sessions),
            form("/sessions", VIEW, system.end_session, "session", "name"),
            page("/live", VIEW, self._stream),
            signed_out("/login", self._login, "POST"),
            signed_out("/sso", self._begin_sso),
            signed_out("/sso/answer", self._finish_sso),
            signed_out("/link/{code}", self._link, "POST"),
            form("/logout", VIEW, self._logout),
            Route(f"{PREFIX}/assets/{{name}}", pages.asset, methods=["GET"]),
        ]

    def _endpoint(
        self, scope: str, call: Call, fields: tuple[str, ...] | None = None
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a page, or of a form with these fields."""

        async def allowed(visit: Visit) -> Response:
            try:
                access.need(visit.session, scope)
                if fields is not None:
                    access.check_origin(visit.request, self._services)
                    visit.form = await reading.form(visit.request, fields)
                    access.check_form(self._services, visit.session, visit.form.values.get("token", ""))
                return await call(visit)
            except Refused as refused:
                if fields is not None and refused.status in NOTED and not visit.noted:
                    about = {"page": visit.request.url.path[:LONGEST_PAGE], "refused": refused.title}
                    await visit.note("form:refused", "refused", facts=about)
                raise

        async def endpoint(request: Request) -> Response:
            found = await self._visit(request)
            return found if isinstance(found, Response) else await _answer(found, allowed(found))

        return endpoint

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
                return RedirectResponse(f"{PREFIX}/login?next={quote(pages.here(request))}", 303)
            said = "The session has ended. Nothing was done: sign in again."
            return pages.refusal(None, Refused(401, "Signed out", said))
        except Exception as error:  # noqa: BLE001 - every error has its page
            return _page_of(visit, error)
        return visit

    async def _stream(self, visit: Visit) -> Response:
        """Follow what a page shows."""
        topic = visit.query("topic").text("topic") or ""
        if topic not in TOPICS:
            kind, _, about = topic.partition(":")
            if kind not in {"order", "run"}:
                raise not_found("There is no such topic.")
            topic = f"{kind}:{reading.uuid(about)}"
        return EventStream(self.live, topic)

    async def _login(self, request: Request) -> Response:
        """Show the form, or open a session for a token."""
        if request.method == "GET":
            return self._login_page(_own(reading.query(request, ("next",)).values.get("next", "")))
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
            return self._login_page(there, wrong=refused.sentence, status=refused.status)
        return await self._opened(value, RedirectResponse(there, 303))

    def _login_page(self, there: str, *, wrong: str | None = None, status: int = 200) -> Response:
        sso = self._provider is not None
        return pages.render(None, "login.html", status=status, there=there, wrong=wrong, sso=sso)

    def _known_provider(self) -> Provider:
        if self._provider is None:
            raise not_found("This installation has no identity provider.")
        return self._provider

    async def _begin_sso(self, request: Request) -> Response:
        """Send the browser to the identity provider."""
        provider = self._known_provider()
        there = _own(reading.query(request, ("next",)).values.get("next", ""))
        address, kept = await single_sign_on.begin(self._services, provider, there)
        response = RedirectResponse(address, 303)
        single_sign_on.remember(response, self._services, kept)
        return response

    async def _finish_sso(self, request: Request) -> Response:
        """Open a session for the person whom the identity provider names."""
        value, there = await single_sign_on.finish(request, self._services, self._known_provider())
        response = await self._opened(value, pages.render(None, "signed_in.html", there=_own(there)))
        single_sign_on.remember(response, self._services, "")
        return response

    async def _link(self, request: Request) -> Response:
        """Ask whether to use a link; programs that look at links in advance do not use it."""
        code = request.path_params["code"]
        if request.method == "GET":
            return pages.render(None, "link.html", code=code)
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


async def _answer(visit: Visit | None, coming: Awaitable[Response]) -> Response:
    try:
        async with asyncio.timeout(DATABASE_TIMEOUT):
            return await coming
    except Exception as error:  # noqa: BLE001 - as above
        return _page_of(visit, error)


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
        return pages.refusal(None, Refused(503, "The database does not answer", said))
    _log.error("console_failed", exc_info=error)
    said = f"Something broke here. Name the correlation id {correlation.current()} when you ask about it."
    return pages.refusal(None, Refused(500, "Something broke", said))
