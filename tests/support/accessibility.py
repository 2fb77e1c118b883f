"""What axe-core finds on a page, and what a browser complains about."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

AXE = Path(__file__).parents[1] / "browser/vendor/axe-core-4.14.1.min.js"
_RUN = "axe.run({resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"


@cache
def _axe() -> str:
    return AXE.read_text()


def violations(page: Page) -> list[str]:
    """Return what axe-core finds, a line each."""
    # Over the protocol: the page's own policy lets no page of ours evaluate text.
    session = page.context.new_cdp_session(page)
    try:
        session.send("Runtime.evaluate", {"expression": f"{_axe()};0"})
        answer: dict[str, Any] = session.send(
            "Runtime.evaluate", {"expression": _RUN, "awaitPromise": True, "returnByValue": True}
        )
    finally:
        session.detach()
    assert "exceptionDetails" not in answer, answer
    return [
        f"{found['id']} ({found['impact']}): {node['html'][:200]}"
        for found in json.loads(answer["result"]["value"])
        for node in found["nodes"]
    ]


@dataclass
class Complaints:
    """Errors of scripts, and what the console says about them and about the policy of a page."""

    said: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.said.append(f"{message.type}: {message.text}")


def check(page: Page, complaints: Complaints, *, narrow: int = 390) -> None:
    """Check a page as it is: nothing for axe-core, in both colour schemes; nothing wider than a phone; no
    complaint.
    """
    size = page.viewport_size
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        found = violations(page)
        assert found == [], (page.url, scheme, found)
    page.set_viewport_size({"width": narrow, "height": 844})
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= narrow, (page.url, wide)
    if size is not None:
        page.set_viewport_size(size)
    assert complaints.said == [], (page.url, complaints.said)
