"""The app: which address leads where."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from fastapi import FastAPI, Request
from starlette.routing import Route

from orchestrator.api import (
    autoscale,
    basket,
    browser_access,
    callbacks,
    checkouts,
    command_progress,
    commands,
    docs,
    events,
    front_door,
    health,
    merchant_docs,
    merchants,
    metrics,
    problems,
    rejected_intents,
    shopper,
    static_files,
    webhook_docs,
    webhooks,
)
from orchestrator.api.callback_intake import CallbackIntake
from orchestrator.api.command_docs import changed_order, commanded, followed_command
from orchestrator.api.contract import answers
from orchestrator.api.contract import merchants as merchant_shapes
from orchestrator.api.contract import webhooks as shapes
from orchestrator.api.contract.autoscale import Autoscale
from orchestrator.api.docs import described, fed, json_answer
from orchestrator.api.middleware import Envelope, always, count_from_zero
from orchestrator.api.request_log import AccessLog, SecurityLog
from orchestrator.api.shopper_docs import shown_session, shown_status, streamed_status
from orchestrator.auth import AccessDenied
from orchestrator.shutdown import cancelled
from orchestrator.store.heartbeats import Heart

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from fastapi.telemetry import TelemetryConfig
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from orchestrator.api.dependencies import Services

LAST_HEARTBEAT: Final = 2.0
"""Seconds for what the process has counted, at its end."""
_DELIVERY: Final = "/v1/deliveries/{delivery_id}/replay"
VERSION: Final = "1"
"""Of the contract, as in the paths."""
# Spans and metrics would contain the URLs of callbacks, which are signed.
_UNWATCHED: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}


_Call: TypeAlias = tuple[str, str, "Callable[..., Any]", str, dict[str, Any]]
"""Method, path, what answers, summary, and the rest of FastAPI's description."""


class Pages(Protocol):
    """Pages for persons beside the API, of a package above it."""

    entry: tuple[str, str, str]
    """What the root page has of them: address, name, what is there."""

    def routes(self) -> list[BaseRoute]:
        """Return where they are."""

    def start(self) -> None:
        """Begin; on the event loop that serves."""

    def stop(self) -> None:
        """End what would wait: the process ends."""

    async def close(self) -> None:
        """End everything, before the services are closed."""


class _App(FastAPI):
    """Takes intents and callbacks past the layers of the frameworks, which cost more than they do; everything
    else through them.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or request."""
        if scope["type"] == "http" and ("//" in scope["path"] or scope["path"].endswith("/")):
            scope["path"] = callbacks.tidy(scope["path"])
        if scope["type"] == "http" and scope["method"] == "POST" and _is_hot(scope):
            scope["app"] = self
            await _HOT(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _is_hot(scope: Scope) -> bool:
    """Say whether a POST is an intent or a checkout's callback, and note which endpoint takes it."""
    path = scope["path"]
    if path == "/v1/checkouts":
        scope["endpoint"], scope["path_params"] = checkouts.accept, {}
        return True
    match path.split("/"):
        case ["", "callbacks", kind, checkout_id, signed] if kind != "merchant" and checkout_id and signed:
            scope["endpoint"] = callbacks.accept
            scope["path_params"] = {"kind": kind, "checkout_id": checkout_id, "signed": signed}
            return True
    return False


async def _answer(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await scope["endpoint"](Request(scope, receive, send))
    except (problems.Refusal, AccessDenied) as error:
        problems.note_denied(scope, error)
        response = problems.refused(error)
    await response(scope, receive, send)


_HOT: Final = Envelope(_answer)


def create_app(services: Services, *, pages: Callable[[Services], Pages] | None = None) -> FastAPI:
    """Build the app, with pages beside the API; when its lifespan ends it writes what has gathered and closes
    the services.
    """
    shown = None if pages is None else pages(services)
    if shown is not None:
        services.ending.append(shown.stop)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(services.merchants.watch(), name="merchants")
        heart = Heart(services.inlet, "api")
        beating = asyncio.create_task(heart.run(), name="heartbeat")
        preparing = asyncio.create_task(app.state.metrics.prepare(), name="metrics")
        services.limits.start()
        if shown is not None:
            shown.start()
        try:
            yield
        finally:
            await cancelled([watch, beating, preparing])
            with suppress(TimeoutError):
                async with asyncio.timeout(min(LAST_HEARTBEAT, services.settings.shutdown_timeout / 5)):
                    await heart.end()
            await app.state.metrics.close()
            if shown is not None:
                await shown.close()
            await services.close()
            if app.state.access_log is not None:
                app.state.access_log.flush()
            app.state.security_log.flush()

    app = _App(
        title="Checkout orchestrator",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=_UNWATCHED,
    )
    app.state.services = services
    app.state.entries = () if shown is None else (shown.entry,)
    app.state.always = always(services.settings)
    app.state.health = health.Health(services)
    app.state.metrics = metrics.Metrics(services.settings, app.state.health)
    app.state.callback_intake = CallbackIntake(services)
    depth = services.settings.trusted_proxies
    app.state.security_log = SecurityLog(depth=depth)
    app.state.access_log = AccessLog(depth=depth) if services.settings.access_log else None
    app.add_middleware(Envelope)
    problems.install(app)
    app.add_exception_handler(HTTPStatus.NOT_FOUND, front_door.missing)
    docs.install(app)
    app.router.routes.extend(_routes())
    if shown is not None:
        app.router.routes.extend(shown.routes())
    count_from_zero(app)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """Make the routes, which the apps of a process share: nothing of the services is in them."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, telemetry=_UNWATCHED)

    # Bare routes: FastAPI's reading of parameters costs more than they do. Most of their requests do not come
    # this way (`_App`).
    app.router.routes[:0] = [
        Route("/v1/checkouts", checkouts.accept, methods=["POST"]),
        Route("/v1/checkouts/batch", checkouts.accept_batch, methods=["POST"]),
        Route("/v1/checkouts/batch", problems.only_post, methods=["GET", "PATCH"]),
        Route(
            "/callbacks/merchant/{merchant}/{signed}", callbacks.accept_for_merchant, methods=["POST", "GET"]
        ),
        Route("/callbacks/{kind}/{checkout_id}/{signed}", callbacks.accept, methods=["POST", "GET"]),
        *(
            Route(f"/v1/checkouts/{{checkout_id}}{end}", browser_access.preflight, methods=["OPTIONS"])
            for end in browser_access.ENDS
        ),
    ]
    own = "/v1/checkouts/{checkout_id}"
    app.get("/v1/checkouts", tags=["checkouts"], summary="List checkouts", **described(answers.CheckoutPage))(
        checkouts.search
    )
    app.get(own, tags=["checkouts"], summary="Show a checkout", **described(answers.Checkout))(checkouts.show)
    app.patch(own, tags=["checkouts"], operation_id="change", **changed_order())(basket.change)
    for kind, about in commands.ABOUT.items():
        app.post(f"{own}/{kind}", tags=["commands"], operation_id=kind, **commanded(kind, about))(
            commands.taking(kind)
        )
    app.get(
        "/v1/commands/{command_id}",
        tags=["commands"],
        summary="Show how far a command is",
        **followed_command(),
    )(command_progress.show)
    app.get(
        f"{own}/explain",
        tags=["checkouts"],
        summary="Explain a checkout in plain sentences",
        **described(answers.Explanation),
    )(checkouts.show_explanation)
    for end, call, told in (
        ("status", shopper.show, shown_status()),
        ("stream", shopper.stream, streamed_status()),
        ("session", shopper.show_session, shown_session()),
    ):
        app.get(f"{own}/{end}", tags=["checkouts"], **told)(call)
    app.get("/v1/payments", tags=["payments"], summary="List payments", **described(answers.PaymentPage))(
        checkouts.show_payments
    )
    app.get(
        f"{own}/audit", tags=["checkouts"], summary="Show the audit trail", **described(answers.AuditTrail)
    )(checkouts.show_audit)
    app.get(
        rejected_intents.PATH,
        tags=["checkouts"],
        summary="List refused intents of the queue",
        **described(answers.RejectedIntentPage),
    )(rejected_intents.search)
    app.get("/v1/events", tags=["events"], summary="Read the feed of events", **fed())(events.show)
    app.get(
        "/v1/event-types",
        tags=["events"],
        summary="List the types of events, with their schemas",
        **described(answers.EventTypes, scopes=(events.SCOPE,)),
    )(events.show_types)
    _route_webhooks(app)
    _route_merchants(app)
    alive: dict[int | str, dict[str, Any]] = {200: json_answer("Alive", answers.Health)}
    app.get("/healthz", tags=["health"], summary="Is the process alive", responses=alive)(health.alive)
    ready: dict[int | str, dict[str, Any]] = {
        200: json_answer("Ready, or degraded", answers.Health),
        503: json_answer("Not ready", answers.Health),
    }
    app.get("/readyz", tags=["health"], summary="Can it do its work", responses=ready)(health.ready)
    app.get(
        autoscale.PATH,
        tags=["health"],
        summary="How many workers are needed",
        **described(Autoscale, scopes=(autoscale.SCOPE,)),
    )(autoscale.show)
    app.add_route("/", front_door.show, include_in_schema=False)
    app.add_route(front_door.SHOP, front_door.lead_to_shop, include_in_schema=False)
    app.add_route(static_files.PREFIX + "{name}", static_files.serve, include_in_schema=False)
    app.add_route(metrics.PATH, metrics.show, include_in_schema=False)
    app.add_route("/docs", docs.page, include_in_schema=False)
    app.add_route("/docs/assets/{name}", docs.asset, include_in_schema=False)
    return app.routes


def _route_webhooks(app: FastAPI) -> None:
    path, single = webhooks.PATH, f"{webhooks.PATH}/{{webhook_id}}"
    read, write, shape = webhooks.READ, (webhooks.WRITE,), shapes.Webhook
    of, keyed = webhook_docs.of_webhook, webhook_docs.keyed
    changed = of(shape, "Changed", write, body=shapes.ChangeWebhook)
    listed = of(shapes.DeliveryPage, "Found", read)
    rotated, tested = webhook_docs.rotated_webhook(write), webhook_docs.tested_webhook(write)
    replayed = of(shapes.Replayed, "They will be sent", write, status=202, body=shapes.Replay)
    again = keyed(webhook_docs.replayed_delivery(write))
    calls: list[_Call] = [
        ("POST", path, webhooks.add, "Add a webhook", keyed(webhook_docs.added_webhook(write))),
        ("GET", path, webhooks.show_all, "List webhooks", webhook_docs.listed_webhooks(read)),
        ("GET", single, webhooks.show, "Show a webhook", of(shape, "Found", read)),
        ("PATCH", single, webhooks.change, "Change a webhook", changed),
        ("DELETE", single, webhooks.delete, "Delete a webhook", of(None, "Deleted", write, status=204)),
        ("POST", f"{single}/rotate-secret", webhooks.rotate_secret, "Replace the secret", keyed(rotated)),
        ("POST", f"{single}/test", webhooks.send_test, "Send a test event", keyed(tested)),
        ("POST", f"{single}/resume", webhooks.resume, "Resume a webhook", keyed(of(shape, "Resumed", write))),
        ("POST", f"{single}/replay", webhooks.replay, "Send events again", keyed(replayed)),
        ("GET", f"{single}/deliveries", webhooks.show_deliveries, "List attempts to deliver", listed),
        ("POST", _DELIVERY, webhooks.replay_delivery, "Send the event of a delivery again", again),
    ]  # fmt: skip
    _route(app, "webhooks", calls)


def _route_merchants(app: FastAPI) -> None:
    path, single, of = merchants.PATH, f"{merchants.PATH}/{{merchant}}", merchant_docs.of_merchant
    read, write, shape = merchants.READ, (merchants.WRITE,), merchant_shapes.Merchant
    secret, rotate = merchant_shapes.CallbackSecret, merchant_shapes.RotateCallbackSecret
    off, on = merchants.switching("disable"), merchants.switching("enable")
    checked = merchant_docs.checked_merchant(read)
    listed = of(merchant_shapes.MerchantChangePage, "Found", read)
    changed = of(shape, "Changed", write, body=merchant_shapes.ChangeMerchant)
    rotated = of(secret, "Valid from now on", write, body=rotate, required=False)
    calls: list[_Call] = [
        ("POST", path, merchants.add, "Add a merchant", merchant_docs.added_merchant(write)),
        ("GET", path, merchants.show_all, "List merchants", merchant_docs.listed_merchants(read)),
        ("GET", single, merchants.show, "Show a merchant", of(shape, "Found", read)),
        ("PATCH", single, merchants.change, "Change a merchant", changed),
        ("POST", f"{single}/rotate-secret", merchants.rotate_secret, "Rotate the callback secret", rotated),
        ("POST", f"{single}/disable", off, "Disable a merchant", of(shape, "Disabled", write)),
        ("POST", f"{single}/enable", on, "Enable a merchant", of(shape, "Enabled", write)),
        ("POST", f"{single}/check", merchants.check, "Check the credentials", checked),
        ("GET", f"{single}/changes", merchants.show_changes, "List changes of a merchant", listed),
    ]  # fmt: skip
    _route(app, "merchants", calls)


def _route(app: FastAPI, tag: str, calls: Sequence[_Call]) -> None:
    for method, path, call, summary, told in calls:
        app.api_route(path, methods=[method], tags=[tag], summary=summary, **told)(call)
