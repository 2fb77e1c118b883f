"""The pages of the sandbox: templates, their Content-Security-Policy, and the pages about ledger and faults.

No page has a script, and the one style sheet is named by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import jinja2
import msgspec
from markupsafe import Markup
from starlette.responses import HTMLResponse

from orchestrator.domain import money

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

    from orchestrator.devkit.sandbox.faults import Faults

MOST_PLANS: Final = 100
_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("orchestrator.devkit.sandbox"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_STYLE: Final = _TEMPLATES.get_template("style.css").render()
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# A shop may show the payment page in a frame, and its forms lead to the shop's own origin.
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src 'self' data:; base-uri 'none'"
_TEMPLATES.globals["style"] = Markup(_STYLE)  # noqa: S704 - a file of ours


def page(template: str, status: int = HTTPStatus.OK, **context: Any) -> HTMLResponse:
    """Return a page; no cache keeps it."""
    text = _TEMPLATES.get_template(template).render(**context)
    headers = {"cache-control": "no-store", "content-security-policy": _POLICY, "vary": "accept"}
    return HTMLResponse(text, status, {**headers, "x-content-type-options": "nosniff"})


def amount(minor: int, currency: str) -> str:
    """Return an amount with the decimals of its currency: 139.00 DKK, 139 JPY, 139.000 KWD."""
    return f"{money.to_decimal(minor, currency):.{money.exponent(currency)}f}"


def wants_page(request: Request) -> bool:
    """Say whether a browser shows the answer to a person: it asks for HTML by name."""
    return request.method == "GET" and "text/html" in request.headers.get("accept", "")


def ledger_page(document: dict[str, Any], *, only: str | None, limit: int) -> HTMLResponse:
    """Show a page of the ledger, as the control API returns it."""
    return page(
        "ledger.html",
        orders=document["orders"],
        totals=document["totals"],
        following=document["next"],
        only=only,
        limit=limit,
        amount=amount,
    )


def faults_page(faults: Faults) -> HTMLResponse:
    """Show the faults of all calls, and the newest plans of orders."""
    plans = [
        (order_id, list(_facts(plan)))
        for order_id, plan in islice(reversed(faults.plans.items()), MOST_PLANS)
    ]
    return page(
        "faults.html",
        everywhere=list(_facts(faults.everywhere)),
        plans=plans,
        more=max(len(faults.plans) - MOST_PLANS, 0),
    )


def _facts(plan: msgspec.Struct) -> Iterable[tuple[str, str]]:
    """Return what a plan changes, by its names in JSON."""
    usual = msgspec.to_builtins(type(plan)())
    for name, value in msgspec.to_builtins(plan).items():
        if value != usual[name]:
            before = usual[name] if isinstance(usual[name], dict) else {}
            changed = (
                {key: part for key, part in value.items() if part != before.get(key)}
                if isinstance(value, dict)
                else value
            )
            yield name, msgspec.json.encode(changed).decode()
