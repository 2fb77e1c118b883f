"""Draws the Mermaid diagrams of docs/ as SVG files for the site of `make docs`, which runs no Mermaid:
`python -m tests.support.diagrams MERMAID_JS`, with `dist/mermaid.min.js` of the npm package `mermaid` 11.

A diagram that has a picture stands below a comment with its name: `<!-- picture: states.svg -->`. A picture
names the text that it was drawn from by its digest, and a test compares.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parents[2] / "docs"
_CONFIG = """{
  startOnLoad: false, theme: "neutral", htmlLabels: false, fontFamily: "sans-serif", securityLevel: "strict",
  deterministicIds: true, flowchart: {htmlLabels: false, useMaxWidth: true}, state: {useMaxWidth: true}
}"""


def diagrams() -> dict[str, str]:
    """Return the text of each diagram that has a picture, by the name of the picture."""
    found = {}
    for page in sorted(DOCS.rglob("*.md")):
        found.update(
            re.findall(r"<!-- picture: ([\w-]+\.svg) -->\n```mermaid\n(.*?)```", page.read_text(), re.DOTALL)
        )
    return found


def mark(text: str) -> str:
    """Return the comment by which a picture names the text that it was drawn from."""
    return f"<!-- drawn from sha256:{hashlib.sha256(text.encode()).hexdigest()} -->"


def draw(script: str) -> None:
    """Write the pictures of all diagrams with Mermaid's `script`, in Chromium without a network."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu", *sandbox])
        page = browser.new_page()
        page.route("**/*", lambda route: route.abort())
        page.set_content("<!doctype html><body></body>")
        page.add_script_tag(content=script)
        page.evaluate(f"mermaid.initialize({_CONFIG})")
        for name, text in diagrams().items():
            # The serializer of XML: a picture that stands alone is XML, not HTML.
            svg = page.evaluate(
                """async ([id, text]) => {
                    const {svg} = await mermaid.render(id, text);
                    const holder = document.createElement("div");
                    holder.innerHTML = svg;
                    const drawn = holder.firstElementChild;
                    drawn.style.backgroundColor = "white";
                    return new XMLSerializer().serializeToString(drawn);
                }""",
                [name.removesuffix(".svg"), text],
            )
            (DOCS / name).write_text(f"{mark(text)}\n{svg}\n")
        browser.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]).read_text())
