"""How a page is made: templates, headers, and the page of a refusal.

Autoescape is on for every template, and an undefined name is an error. Each page has a nonce of its own; the
policy allows the vendored scripts with it and nothing inline, and no page may be framed. What comes from
outside passes `neutralised` where it is shown, so that control characters change no line.
"""

from __future__ import annotations

import re
import secrets
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from orchestrator.api.problems import Refusal
from orchestrator.console import access, facts
from orchestrator.domain import money, sentences
from orchestrator.domain.attention import AttentionCode
from orchestrator.domain.last_error import WAITS_FOR_GATEWAY
from orchestrator.domain.payment_status import PaymentStatus
from orchestrator.domain.states import State
from orchestrator.text import duration, neutralised, sentence

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

    from orchestrator.console.app import Visit
    from orchestrator.console.reading import Fields

Row = TypeVar("Row")
STATIC: Final = Path(__file__).parent / "static"
ASSETS: Final = {
    "console.css": "text/css",
    "htmx-4.0.1.min.js": "text/javascript",
    "hx-csp-4.0.1.min.js": "text/javascript",
    "hx-sse-4.0.1.min.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}

_UNKNOWN: Final = "–"
WORDS: Final = {AttentionCode.POISONED.value: "dead letter"}
"""Words of the program for which people have another one."""
_FIGURES: Final[Mapping[str, str]] = {"hints": "wake-up messages"}
"""Figures of a heartbeat under another name."""
# Migration 0013 reads the sentence as it is.
_ONE_HOLDS: Final = re.compile(r"transactions ([^\s,]+) (also )?hold money for")
_HEAD, _CELL = re.compile("<th(?: [^>]*)?>(.*?)</th>", re.DOTALL), re.compile("<td([^>]*)>")
_ROW, _SPAN = re.compile("<tr>.*?</tr>", re.DOTALL), re.compile(r'colspan="(\d+)"')
_TIME: Final = re.compile(r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)Z")


def _price(minor: int | None, currency: str) -> str:
    return _UNKNOWN if minor is None else money.spelled(minor, currency, grouped=True)


def _moment(at: datetime | str) -> datetime:
    return datetime.fromisoformat(at) if isinstance(at, str) else at


def _when(at: datetime | str | None) -> str:
    """Write a time in UTC, to the second."""
    return _UNKNOWN if at is None else _moment(at).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _span(seconds: float | None) -> str:
    return _UNKNOWN if seconds is None else duration(seconds)


def _age(at: datetime | str | None, now: datetime) -> str:
    return _UNKNOWN if at is None else duration((now - _moment(at)).total_seconds())


def _word(value: object) -> str:
    return WORDS.get(str(value)) or str(value).replace("_", " ")


def _told(said: str) -> str:
    """Write a sentence of an explanation with times as tables have them; controls are replaced."""
    return _TIME.sub(r"\1 \2", neutralised(said))


def _capital(said: str) -> str:
    return f"{said[:1].upper()}{said[1:]}"


def _sentence(value: Any) -> str:
    return sentence(neutralised(_ONE_HOLDS.sub(r"transaction \1 \2holds money for", sentences.of(value))))


def _labelled(table: Markup) -> Markup:
    """Name in each cell of a table its column, for narrow screens, which show each row as a list."""
    names = [" ".join(name.split()) for name in _HEAD.findall(table)]

    def row(found: re.Match[str]) -> str:
        at = 0

        def cell(opening: re.Match[str]) -> str:
            nonlocal at
            spans = _SPAN.search(opening[0])
            wide = int(spans[1]) if spans else 1
            name = " / ".join(names[at : at + wide])
            at += wide
            return f'<td data-label="{name}"{opening[1]}>'

        return _CELL.sub(cell, found[0])

    return Markup(_ROW.sub(row, table))  # noqa: S704 - the template has escaped it


def _fact(value: Any) -> str:
    """Write a fact of an action: lists and mappings in words, not as Python writes them."""
    match value:
        case dict():
            return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
        case list() | tuple():
            return ", ".join(_fact(each) for each in value)
        case _:
            return neutralised(str(value))


TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("orchestrator.console"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {
    "price": _price,
    "when": _when,
    "span": _span,
    "age": _age,
    "word": _word,
    "words": facts.words,
    "figure": lambda name: facts.words(_FIGURES.get(name) or name),
    "told": _told,
    "labelled": _labelled,
    "means": facts.status,
    "capital": _capital,
    "sentence": _sentence,
    "fact": _fact,
    "plain": lambda text: neutralised(str(text)),
    "query": lambda values: urlencode(
        {name: value for name, value in values.items() if value not in (None, "")}
    ),
}

ERRORS: Final = {
    "unknown": "no clear answer",
    "circuit_open": "calls were paused",
    "not_sent": "not reached",
    "busy": "busy",
    "throttled": "too many calls",
    "unauthorized": "login refused",
    "refused": "call refused",
    "gateway_refused": "order refused",
}
"""Last errors of calls to the gateway, in words; the others are words already."""
# What a filter can be made of.
TEMPLATES.globals |= {"states": list(State), "statuses": list(PaymentStatus), "codes": list(AttentionCode)}
TEMPLATES.globals |= {"waits": sorted(WAITS_FOR_GATEWAY), "errors_said": ERRORS}


def draw(template: str, **told: Any) -> Markup:
    """Return a part of a page, without anything of one viewer."""
    return Markup(TEMPLATES.get_template(template).render(**told))  # noqa: S704 - the template has escaped it


def policy(nonce: str) -> str:
    """Return the content security policy of a page."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types htmx"
    )


def render(
    visit: Visit | None,
    template: str,
    *,
    status: int = 200,
    live: str | None = None,
    fields: Fields | None = None,
    **told: Any,
) -> Response:
    """Return a page of a signed-in person, or of a browser without a session; `live` is the topic whose
    change draws it anew. Where something is wrong with `fields`, the page says so, with the status 422.
    """
    nonce = secrets.token_urlsafe(16)
    values: dict[str, Any] = {"nonce": nonce, "session": None, "live": live, **told}
    if fields is not None:
        values["wrong"] = fields.wrong
        status = 422 if fields.wrong and status == HTTPStatus.OK else status
    if visit is not None:
        values |= {
            "session": visit.session,
            "form_token": access.form_token(visit.services, visit.session),
            "may": visit.session.may,
            "path": visit.request.url.path,
            "here": here(visit.request),
        }
    body = TEMPLATES.get_template(template).render(values)
    return HTMLResponse(
        body,
        status,
        {
            "Content-Security-Policy": policy(nonce),
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        },
    )


def refusal(visit: Visit | None, refused: access.Refused) -> Response:
    """Return the page that says why nothing was done."""
    said = neutralised(refused.sentence)
    return render(visit, "refused.html", status=refused.status, title=refused.title, said=said)


def here(request: Request) -> str:
    """Return path and query of a request."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


async def asset(request: Request) -> Response:
    """Serve one file; its name changes with its content, or it is small and asked for again each hour."""
    name = request.path_params["name"]
    if name not in ASSETS:
        raise Refusal(404, "the console has no such file")
    kept = "public, max-age=31536000, immutable" if "-4." in name else "public, max-age=3600"
    return Response(_asset(name), media_type=ASSETS[name], headers={"Cache-Control": kept})


@cache
def _asset(name: str) -> bytes:
    return (STATIC / name).read_bytes()


def paged(rows: Sequence[Row], size: int) -> tuple[Sequence[Row], Row | None]:
    """Return the rows of a page, and the last of them where there are more: the next page begins after it.

    `rows` were read with a limit of one more than `size`.
    """
    return rows[:size], rows[size - 1] if len(rows) > size else None


def listing(
    visit: Visit, template: str, found: Sequence[Any], size: int, *, key: str = "id", **told: Any
) -> Response:
    """Return a page of a list; the next one begins after the `key` of its last row, which is `more`."""
    rows, last = paged(found, size)
    return render(visit, template, rows=rows, more=last and getattr(last, key), **told)


def merchant_name(names: Mapping[int, str], merchant_id: int) -> str:
    """Return the name of a merchant for people."""
    return names.get(merchant_id, f"merchant {merchant_id}")
