"""The root page: what this installation is, with links; and the page of an address that does not exist.

Pages are for browsers alone: a caller that does not ask for HTML is answered a problem, as everywhere.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, RedirectResponse, Response

from orchestrator.api import dependencies, static_files
from orchestrator.api.problems import Refusal, nothing_here, problem

if TYPE_CHECKING:
    from fastapi import Request

SHOP: Final = "/shop"
_MACHINES: Final = ("/v1/", "/callbacks/")
"""Below these a browser gets problem documents too, as every client."""
_STYLE: Final = """
:root { color-scheme:light dark; --ink:#16202e; --soft:#526073; --line:#d5dbe4; --ground:#f3f5f9; --paper:#fff; --act:#1f4b99; --act-ink:#fff; }
@media (prefers-color-scheme: dark) { :root { --ink:#e8edf5; --soft:#a5b0c2; --line:#3a4556; --ground:#121822; --paper:#1b2330;
  --act:#86aef5; --act-ink:#0d1726; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--ground); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif; }
main { max-width:58rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:1.7rem; line-height:1.25; margin:0 0 .5rem; } h2 { font-size:1.1rem; margin:0 0 .25rem; }
p { margin:0 0 1rem; max-width:46rem; } .soft { color:var(--soft); }
ul { list-style:none; margin:1.75rem 0; padding:0; display:grid; gap:1rem; grid-template-columns:repeat(auto-fit,minmax(15rem,1fr)); }
li { background:var(--paper); border:1px solid var(--line); border-radius:12px; padding:1.1rem 1.25rem; } li p { margin:0; color:var(--soft); }
a { color:var(--act); } h2 a { text-decoration:none; } h2 a:hover { text-decoration:underline; }
a:focus-visible { outline:3px solid var(--act); outline-offset:3px; border-radius:2px; }
li.first { background:var(--act); border-color:var(--act); } li.first a, li.first p { color:var(--act-ink); } li.first a:focus-visible { outline-color:var(--act-ink); }
pre { background:var(--paper); border:1px solid var(--line); border-radius:8px; padding:.75rem 1rem; white-space:pre-wrap; overflow-wrap:anywhere; font:.875rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace; }
@media (max-width:30rem) { main { padding-top:1.5rem; } h1 { font-size:1.4rem; } }
"""
_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
{main}
</main>
</body>
</html>
"""
_ABOUT: Final = """<h1>Checkout orchestrator</h1>
<p>A shop hands over a checkout intent. Workers take it through the payment gateway until the money is settled, and the shop
receives what happened as events. An order is never captured twice, and a lost callback never leaves a paid order pending.</p>
<ul>
{entries}
</ul>
<h2>Hand over an order</h2>
<pre tabindex="0" aria-label="Commands that hand over an order"># in the project's folder; after `make`, orchestrator is .venv/bin/orchestrator
TOKEN=$(orchestrator token issue --merchant default --scope "checkouts:write checkouts:read")
curl -s {url}/v1/checkouts -H "Authorization: Bearer $TOKEN" \\
  -H "Content-Type: application/json" -d @docs/intent.json</pre>"""
_ENTRY: Final = """<li{kind}><h2><a href="{href}">{name}</a></h2><p>{about}</p></li>"""
_NOT_FOUND: Final = """<h1>There is nothing at this address</h1>
<p>The address may be misspelt, or belong to another installation.</p>
<p><a href="/">What this is, and where to go on</a></p>"""


async def show(request: Request) -> Response:
    """Show what this is, with links to what this installation has."""
    if not wants_page(request):
        raise nothing_here()
    settings = dependencies.of(request).settings
    entries: list[tuple[str, str, str]] = []
    if settings.demo_shop_url is not None:
        entries.append((SHOP, "Demo shop", "Buy something as a shopper, and follow each message"))
    entries += request.app.state.entries
    entries.append(("/docs", "API documentation", "Every call with its fields, scopes and answers"))
    if settings.demo_shop_url is not None and settings.gateway_url is not None:
        about = "The simulated payment gateway: its ledger and its faults"
        entries.append((f"{settings.gateway_url}/", "Sandbox gateway", about))
    script = static_files.newest()
    href = static_files.PREFIX + script.name
    entries.append((href, f"checkout.js {script.version}", "The script for the shop's page"))
    entries.append(("/readyz", "Readiness", "Whether the installation does its work (JSON)"))
    items = "\n".join(
        _ENTRY.format(
            kind="" if number else ' class="first"', href=escape(href), name=escape(name), about=escape(about)
        )
        for number, (href, name, about) in enumerate(entries)
    )
    return _page("Checkout orchestrator", _ABOUT.format(entries=items, url=escape(settings.public_url)))


async def lead_to_shop(request: Request) -> Response:
    """Lead to the demo shop, which is a process and an origin of its own, as shops are."""
    url = dependencies.of(request).settings.demo_shop_url
    if url is None:
        raise Refusal(404, "this installation has no demo shop: `orchestrator up` starts one")
    return RedirectResponse(f"{url}{SHOP}", 303)


def wants_page(request: Request) -> bool:
    """Say whether a browser shows the answer to a person: it asks for HTML by name, as API clients do not."""
    return request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", "")


async def missing(request: Request, _: Exception) -> Response:
    """Answer for an address that does not exist: a page for a person, a problem for an API client."""
    if not wants_page(request) or request.url.path.startswith(_MACHINES):
        return problem(nothing_here())
    return _page("Not found", _NOT_FOUND, 404)


def _page(title: str, main: str, status: int = 200) -> Response:
    text = _PAGE.format(title=escape(title), style=_STYLE, main=main)
    return HTMLResponse(text, status, {"Content-Security-Policy": POLICY, "Vary": "Accept"})
