"""The script for shops' pages, `checkout.js`: its versions, their addresses, integrity hashes and CSP.

A version's address is answered with the same bytes for ever, and `integrity.json` beside the scripts records
the hash of each (a test compares). `/static/checkout.js` is the newest version, for a page that sets no hash.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from starlette.responses import Response

from orchestrator.api.problems import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastapi import Request

FOLDER: Final = Path(__file__).with_name("static")
PREFIX: Final = "/static/"
NEWEST: Final = "checkout.js"
_NAME: Final = re.compile(r"checkout-(\d+)\.(\d+)\.(\d+)\.js")
_FOREVER: Final = "public, max-age=31536000, immutable"
_MINUTES: Final = "public, max-age=300"


@dataclass(frozen=True, slots=True)
class Script:
    """One version of the script; `integrity` is what the attribute of that name takes."""

    name: str
    version: str
    integrity: str
    body: bytes = field(repr=False)
    compressed: bytes = field(repr=False)


@cache
def scripts() -> Mapping[str, Script]:
    """Return every version by the name of its file, the newest last."""
    found: dict[tuple[int, ...], Script] = {}
    for path in FOLDER.glob("checkout-*.js"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        body = path.read_bytes()
        digest = base64.b64encode(hashlib.sha384(body).digest()).decode()
        version = tuple(map(int, name.groups()))
        found[version] = Script(
            path.name,
            ".".join(map(str, version)),
            f"sha384-{digest}",
            body,
            gzip.compress(body, 9, mtime=0),
        )
    return {found[version].name: found[version] for version in sorted(found)}


def newest() -> Script:
    """Return the newest version."""
    return list(scripts().values())[-1]


def origin_of(url: str) -> str:
    """Return the origin of a URL, as a policy names it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def policy(
    script: Script,
    *,
    api: str,
    gateways: Iterable[str],
    also: Iterable[str] = (),
    called: Iterable[str] = (),
) -> str:
    """Return the Content-Security-Policy of a shop's page that has this script and no other.

    `api` and `gateways` are URLs. The page's own styles and forms are its own origin's. `also`: the integrity
    hashes of further scripts; `called`: URLs that those call.
    """
    paid = list(dict.fromkeys(map(origin_of, gateways)))
    hashes = " ".join(f"'{integrity}'" for integrity in (script.integrity, *also))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {hashes}",
            " ".join(("connect-src", *dict.fromkeys((origin_of(api), *paid, *map(origin_of, called))))),
            " ".join(("img-src 'self'", *paid)),
            "style-src 'self'",
            " ".join(("form-action 'self'", *paid)),
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


async def serve(request: Request) -> Response:
    """Serve one version, or the newest one; pages of every origin may load it, with an integrity hash too."""
    name = request.path_params["name"]
    script = newest() if name == NEWEST else scripts().get(name)
    if script is None:
        raise Refusal(404, f"there is no such file: {PREFIX}{NEWEST} is the newest script")
    headers = {
        "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Cache-Control": _MINUTES if name == NEWEST else _FOREVER,
        "ETag": f'"{script.version}"',
        "Vary": "Accept-Encoding",
    }
    body = script.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body, headers["Content-Encoding"] = script.compressed, "gzip"
    return Response(body, headers=headers, media_type="text/javascript")
