"""Every call of the API: its address, the function that answers it, and what the OpenAPI document says of it.

FastAPI reads parameters and description from the function. Intake and callbacks are bare routes, because
FastAPI's reading of parameters costs more than they do; `docs` describes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.api import (
    browser_access,
    callbacks,
    checkouts,
    commands,
    docs,
    events,
    front_door,
    health,
    merchants,
    metrics,
    problems,
    reads,
    shopper,
    static_files,
    webhooks,
)
from orchestrator.api.contract import Schema, answers, bodies, ref
from orchestrator.api.contract import merchants as merchant_shapes
from orchestrator.api.contract import webhooks as webhook_shapes
from orchestrator.api.contract.autoscale import Autoscale
from orchestrator.api.contract.shopper import CheckoutStatus
from orchestrator.api.docs import (
    KEY_BOUNDS,
    LONGEST_HEADER,
    Problems,
    described_problems,
    json_answer,
    parameter,
    secured,
)
from orchestrator.api.status_streams import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fastapi.telemetry import TelemetryConfig
    from starlette.routing import BaseRoute

# Spans and metrics would contain the URLs of callbacks, which are signed.
UNWATCHED: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
_CHECKOUTS: Final = "/v1/checkouts"
_CHECKOUT: Final = f"{_CHECKOUTS}/{{checkout_id}}"
_KEY: Final = "Idempotency-Key"
_BUSY: Final = f"request with this {_KEY} is being processed"

_READ: Final = (reads.SCOPE,)
_NO_CHECKOUT: Final[Problems] = {"unknown-checkout": (404, "The merchant has no such checkout")}


@cache
def routes() -> list[BaseRoute]:
    """Make the routes, which the apps of a process share: nothing of the services is in them."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, telemetry=UNWATCHED)
    # Most requests of the intake and of a checkout's callbacks do not come this way (`app`).
    app.router.routes[:0] = [
        Route(_CHECKOUTS, checkouts.accept, methods=["POST"]),
        Route(f"{_CHECKOUTS}/batch", checkouts.accept_batch, methods=["POST"]),
        Route(f"{_CHECKOUTS}/batch", problems.only_post, methods=["GET", "PATCH"]),
        Route(
            "/callbacks/merchant/{merchant}/{signed}", callbacks.accept_for_merchant, methods=["POST", "GET"]
        ),
        Route("/callbacks/{kind}/{checkout_id}/{signed}", callbacks.accept, methods=["POST", "GET"]),
        *(
            Route(f"{_CHECKOUT}{end}", browser_access.preflight, methods=["OPTIONS"])
            for end in browser_access.ENDS
        ),
    ]
    _add_checkouts(app)
    _add_commands(app)
    _add_events(app)
    _add_webhooks(app)
    _add_merchants(app)
    _add_health(app)
    for path, page in {
        "/": front_door.show,
        front_door.SHOP: front_door.lead_to_shop,
        static_files.PREFIX + "{name}": static_files.serve,
        metrics.PATH: metrics.show,
        "/docs": docs.page,
        "/docs/assets/{name}": docs.asset,
    }.items():
        app.add_route(path, page, include_in_schema=False)
    return app.routes


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of the API, which needs a token with one of `scopes`; it is added with what is said of it.

    `usual` are problems that it may be answered with, as the others of its tag.
    """

    app: FastAPI
    tag: str
    scopes: tuple[str, ...]
    method: str
    path: str
    call: Callable[..., Any]
    usual: Problems = field(default_factory=dict)

    def __call__(  # noqa: PLR0913 - all that is said of a call
        self,
        summary: str,
        shape: type | None,
        about: str = "Found",
        *,
        status: int = 200,
        body: type | None = None,
        required: bool = True,
        media: tuple[str, ...] = ("application/json",),
        client: bool = False,
        keyed: bool = False,
        parameters: Sequence[Schema] = (),
        problems: Problems = MappingProxyType({}),
        responses: Mapping[int, Schema] = MappingProxyType({}),
        **more: Any,
    ) -> None:
        """Add the call, which is answered with a shape, or with no body (None).

        `required`: whether it must have its `body`, of one of the types `media`. `client`: the client token
        of the checkout opens it, too. `keyed`: it takes an Idempotency-Key. `responses` are added as they
        are, and `more` is FastAPI's.
        """
        security = secured(*self.scopes)
        extra: Schema = {"security": [{"clientToken": []}, *security] if client else security}
        if body is not None:
            content = {kind: {"schema": ref(body)} for kind in media}
            extra["requestBody"] = {"required": required, "content": content}
        if keyed:
            same = "The same request with the same key has the same answer"
            parameters = [parameter(_KEY, "header", same, **KEY_BOUNDS)]
            busy = f"A {_BUSY}, or its answer cannot be read any more"
            problems = {"request-in-progress": (409, busy), **problems}
        if parameters:
            extra["parameters"] = list(parameters)
        answer = {"description": about} if shape is None else json_answer(about, shape)
        told: dict[Any, Schema] = {
            status: answer,
            **described_problems({**self.usual, **problems}),
            **responses,
        }
        self.app.api_route(
            self.path,
            methods=[self.method],
            tags=[self.tag],
            summary=summary,
            status_code=status,
            responses=told,
            openapi_extra=extra,
            **more,
        )(self.call)


def _add_checkouts(app: FastAPI) -> None:
    add = partial(_Call, app, "checkouts", _READ)
    add("GET", _CHECKOUTS, reads.search)("List checkouts", answers.CheckoutPage)
    add("GET", _CHECKOUT, reads.show)("Show a checkout", answers.Checkout)
    _add_change(app)
    explained = "Explain a checkout in plain sentences"
    add("GET", f"{_CHECKOUT}/explain", reads.show_explanation)(explained, answers.Explanation)
    add("GET", f"{_CHECKOUT}/status", shopper.show)(
        "Show a checkout to its shopper's browser", CheckoutStatus, client=True, problems=_NO_CHECKOUT
    )
    _add_stream(app)
    add("GET", f"{_CHECKOUT}/session", shopper.show_session)(
        "Show the session with which the shopper's browser pays",
        answers.Session,
        client=True,
        problems={**_NO_CHECKOUT, "not-payable": (409, "The checkout is not offered, or has ended")},
    )
    add("GET", f"{_CHECKOUT}/audit", reads.show_audit)("Show the audit trail", answers.AuditTrail)
    add("GET", "/v1/rejected-intents", reads.show_rejected)(
        "List refused intents of the queue",
        answers.RejectedIntentPage,
        operation_id="search_v1_rejected_intents_get",
    )
    payments = _Call(app, "payments", _READ, "GET", "/v1/payments", reads.show_payments)
    payments("List payments", answers.PaymentPage)


def _add_stream(app: FastAPI) -> None:
    about = (
        "Server-sent events: `status` with a `CheckoutStatus` as data and its digest as id, at once and at each change; "
        '`end` with `{"reason": "final"}`, `lifetime` or `shutdown` as the last'
    )
    many = (
        "As many streams of the checkout or the merchant are open as may, or a limit of requests is reached"
    )
    away = "Postgres is away, or as many streams are open as may: ask /status, or again later"
    last = "The `id` of the last event: the same is not sent again"
    _Call(app, "checkouts", _READ, "GET", f"{_CHECKOUT}/stream", shopper.stream)(
        "Follow a checkout as server-sent events",
        CheckoutStatus,
        client=True,
        parameters=[parameter("Last-Event-ID", "header", last, maxLength=LONGEST_HEADER)],
        problems={**_NO_CHECKOUT, "too-many-streams": (429, many), "database-away": (503, away)},
        responses={
            200: {"description": about, "content": {MEDIA_TYPE: {}}},
            204: {"description": "The browser has the final state already: it need not connect again"},
        },
        # Of the class alone FastAPI would say that it also answers JSON.
        response_class=Response,
    )


def _add_commands(app: FastAPI) -> None:
    wrong = f"A field or the {_KEY} is wrong, or the amount is more than is left"
    for kind, call in commands.CALLS.items():
        path, taking = f"{_CHECKOUT}/{kind}", commands.taking(kind)
        _Call(app, "commands", (call.scope,), "POST", path, taking, _NO_CHECKOUT)(
            call.about,
            answers.CommandAccepted,
            status=202,
            body=call.body,
            required=kind in commands.NEEDED,
            parameters=_of_commands(keyed=kind in commands.KEYED),
            problems={
                "version-changed": (409, "Not as the checkout stands now, or not at this version"),
                "invalid-command": (422, wrong),
            },
            responses=_to_commands(),
            operation_id=kind,
        )
    gone = f"The merchant has no such command, or its checkout was archived, and the command had no {_KEY}"
    _Call(app, "commands", _READ, "GET", "/v1/commands/{command_id}", commands.show)(
        "Show how far a command is", answers.CommandProgress, problems={"unknown-command": (404, gone)}
    )


def _add_change(app: FastAPI) -> None:
    seen = "A payment is seen or under way, the checkout has ended or is being cancelled, or it has another version"
    scopes = (commands.CHANGE_SCOPE,)
    _Call(app, "checkouts", scopes, "PATCH", _CHECKOUT, commands.change, _NO_CHECKOUT)(
        "Change the order before its payment",
        answers.CommandAccepted,
        status=202,
        body=bodies.Change,
        media=("application/merge-patch+json", "application/json"),
        parameters=_of_commands(keyed=False),
        problems={
            "payment-seen": (409, seen),
            "invalid-intent": (422, f"With the change it is no valid order, or the {_KEY} is wrong"),
        },
        responses=_to_commands(),
        operation_id="change",
        description="The body is a JSON Merge Patch (RFC 7396) of what was handed over: amount, order lines, customer, transactionInfo and "
        "callbacks may change. Done means that the order of the checkout is changed; the shopper can pay it from the next "
        "`checkout.ready` on, when the gateway has it as well. A payment of the order as it was raises attention, and is "
        "neither captured nor taken for the order.",
    )


def _of_commands(*, keyed: bool) -> list[Schema]:
    """Describe the headers that every command may be asked with; `keyed`: it needs its key."""
    same = "The same key with the same content is the same command; with other content it is refused"
    wait = (
        f"`wait=10` (RFC 7240): seconds to wait until the command is finished, at most {commands.LONGEST_WAIT}; "
        "what else is preferred is ignored"
    )
    return [
        {**parameter(_KEY, "header", same, **KEY_BOUNDS), "required": keyed},
        parameter("Prefer", "header", wait, maxLength=LONGEST_HEADER),
    ]


def _to_commands() -> dict[int, Schema]:
    """Describe how every command is answered."""
    accepted, progress = ref(answers.CommandAccepted), answers.CommandProgress
    waited = "The seconds that were waited for at most; absent where nothing was waited for"
    headers = {
        name: {"description": about, "schema": {"type": "string", "maxLength": 100}}
        for name, about in (("Location", "Where the command is followed"), ("Preference-Applied", waited))
    }
    return {
        202: {
            "description": "Stored; what becomes of it is shown at the `Location`; with `Prefer: wait`, as it stands when the time is over",
            "content": {"application/json": {"schema": {"anyOf": [accepted, ref(progress)]}}},
            "headers": headers,
        },
        200: {**json_answer("With `Prefer: wait`: it is finished", progress), "headers": headers},
    }


def _add_events(app: FastAPI) -> None:
    add = partial(_Call, app, "events", (events.SCOPE,))
    gone = "Events after this cursor are not kept any more; `oldest` is the cursor to go on with"
    many = "As many clients of the merchant wait as may: ask again without `wait`, or later"
    away = "Postgres is away, or as many clients wait as may: ask again later"
    add("GET", "/v1/events", events.show)(
        "Read the feed of events",
        answers.EventPage,
        problems={
            "cursor-expired": (410, gone),
            "too-many-waiting": (429, many),
            "database-away": (503, away),
        },
    )
    types = "List the types of events, with their schemas"
    add("GET", "/v1/event-types", events.show_types)(types, answers.EventTypes)


def _add_webhooks(app: FastAPI) -> None:
    path, own, shapes = webhooks.PATH, f"{webhooks.PATH}/{{webhook_id}}", webhook_shapes
    read = partial(_Call, app, "webhooks", webhooks.READ)
    write = partial(_Call, app, "webhooks", (webhooks.WRITE,))
    known: Problems = {"unknown-webhook": (404, "The merchant has no such webhook")}
    wrong: Problems = {"invalid-webhook": (422, "A field is wrong")}
    both = {**known, **wrong}
    write("POST", path, webhooks.add)(
        "Add a webhook",
        shapes.NewWebhook,
        "Added; the secret of a webhook is shown this once",
        status=201,
        body=shapes.AddWebhook,
        keyed=True,
        problems={**wrong, "too-many-webhooks": (409, f"The merchant has as many as it may, or a {_BUSY}")},
    )
    read("GET", path, webhooks.show_all)("List webhooks", shapes.WebhookPage)
    read("GET", own, webhooks.show)("Show a webhook", shapes.Webhook, problems=known)
    change, changed = "Change a webhook", shapes.ChangeWebhook
    write("PATCH", own, webhooks.change)(change, shapes.Webhook, "Changed", body=changed, problems=both)
    write("DELETE", own, webhooks.delete)("Delete a webhook", None, "Deleted", status=204, problems=known)
    write("POST", f"{own}/rotate-secret", webhooks.rotate_secret)(
        "Replace the secret",
        shapes.NewWebhook,
        "Replaced",
        body=shapes.RotateSecret,
        required=False,
        keyed=True,
        problems={**both, "no-secret": (409, f"A Celery task has no secret, or a {_BUSY}")},
    )
    write("POST", f"{own}/test", webhooks.send_test)(
        "Send a test event",
        shapes.TestSent,
        "It will be sent once",
        status=202,
        keyed=True,
        problems={**known, "too-many-tests": (429, "As many test events wait to be sent as may")},
    )
    write("POST", f"{own}/resume", webhooks.resume)(
        "Resume a webhook", shapes.Webhook, "Resumed", keyed=True, problems=known
    )
    write("POST", f"{own}/replay", webhooks.replay)(
        "Send events again",
        shapes.Replayed,
        "They will be sent",
        status=202,
        body=shapes.Replay,
        keyed=True,
        problems=both,
    )
    listed = "List attempts to deliver"
    read("GET", f"{own}/deliveries", webhooks.show_deliveries)(listed, shapes.DeliveryPage, problems=known)
    gone = "A test, or an event that the feed does not keep or the webhook does not want any more"
    write("POST", "/v1/deliveries/{delivery_id}/replay", webhooks.replay_delivery)(
        "Send the event of a delivery again",
        shapes.Replayed,
        "It will be sent",
        status=202,
        keyed=True,
        problems={"unknown-delivery": (404, "The merchant has no such delivery"), "event-gone": (410, gone)},
    )


def _add_merchants(app: FastAPI) -> None:
    path, own, shapes = merchants.PATH, f"{merchants.PATH}/{{merchant}}", merchant_shapes
    other = "Not a token of the operator with the scope "
    reader: Problems = {"insufficient-scope": (403, other + " or ".join(merchants.READ))}
    writer: Problems = {"insufficient-scope": (403, other + merchants.WRITE)}
    read = partial(_Call, app, "merchants", merchants.READ, usual=reader)
    write = partial(_Call, app, "merchants", (merchants.WRITE,), usual=writer)
    known: Problems = {"unknown-merchant": (404, "There is no such merchant")}
    wrong: Problems = {"invalid-merchant": (422, "A field is wrong")}
    both = {**known, **wrong}
    write("POST", path, merchants.add)(
        "Add a merchant",
        shapes.Merchant,
        "Added",
        status=201,
        body=shapes.AddMerchant,
        problems={**wrong, "merchant-exists": (409, "The name is taken")},
    )
    read("GET", path, merchants.show_all)("List merchants", shapes.MerchantPage)
    read("GET", own, merchants.show)("Show a merchant", shapes.Merchant, problems=known)
    change, changed = "Change a merchant", shapes.ChangeMerchant
    write("PATCH", own, merchants.change)(change, shapes.Merchant, "Changed", body=changed, problems=both)
    write("POST", f"{own}/rotate-secret", merchants.rotate_secret)(
        "Rotate the callback secret",
        shapes.CallbackSecret,
        "Valid from now on",
        body=shapes.RotateCallbackSecret,
        required=False,
        problems=both,
    )
    write("POST", f"{own}/disable", merchants.disable_merchant)(
        "Disable a merchant",
        shapes.Merchant,
        "Disabled",
        problems=known,
        description="Refuse the merchant's calls and new orders; orders under way are processed to their end, callbacks "
        "are taken, and events wait.",
    )
    write("POST", f"{own}/enable", merchants.enable_merchant)(
        "Enable a merchant",
        shapes.Merchant,
        "Enabled",
        problems=known,
        description="Let a disabled merchant in again; events that waited are sent.",
    )
    read("POST", f"{own}/check", merchants.check)(
        "Check the credentials",
        shapes.CheckedCredentials,
        "What the gateway said",
        problems={**known, "credentials-elsewhere": (409, "The API cannot make the call: `detail` says why")},
    )
    listed = "List changes of a merchant"
    read("GET", f"{own}/changes", merchants.show_changes)(listed, shapes.MerchantChangePage, problems=known)


def _add_health(app: FastAPI) -> None:
    alive: dict[int | str, Schema] = {200: json_answer("Alive", answers.Health)}
    ready: dict[int | str, Schema] = {
        200: json_answer("Ready, or degraded", answers.Health),
        503: json_answer("Not ready", answers.Health),
    }
    app.get("/healthz", tags=["health"], summary="Is the process alive", responses=alive)(health.alive)
    app.get("/readyz", tags=["health"], summary="Can it do its work", responses=ready)(health.ready)
    scopes = (health.AUTOSCALE_SCOPE,)
    needed = _Call(app, "health", scopes, "GET", health.AUTOSCALE, health.show_demand)
    needed("How many workers are needed", Autoscale, operation_id="show_autoscale_get")
