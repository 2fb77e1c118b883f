"""The site of the documents: `make docs` makes it of the same Markdown, with a search without a server."""

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

project = "Checkout orchestrator"
copyright = "the authors of Checkout orchestrator, Apache-2.0"  # noqa: A001 - Sphinx reads this name
extensions = ["myst_parser"]
root_doc = "docs/README"
include_patterns = ["README.md", "CHANGELOG.md", "docs/*.md", "docs/*/*.md"]
myst_heading_anchors = 6
html_theme = "furo"
html_title = project
html_show_sphinx = False
html_copy_source = False
# A snippet that cannot be coloured is no fault.
suppress_warnings = ["misc.highlighting_failure"]


def add_contents(_: Sphinx, name: str, source: list[str]) -> None:
    """Give the page of all documents the contents of the site, in the order of its links."""
    if name == root_doc:
        pages = [page.removesuffix(".md") for page in re.findall(r"\]\(([\w./-]+\.md)\)", source[0])]
        tree = "\n".join(["../README", *dict.fromkeys(pages), "../CHANGELOG"])
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{tree}\n```\n"


def show_pictures(_: Sphinx, name: str, source: list[str]) -> None:
    """Show the drawn picture of a Mermaid diagram: the site runs no script of Mermaid."""
    source[0] = re.sub(
        r"<!-- picture: ([\w-]+\.svg) -->\n```mermaid\n.*?```",
        rf"![The diagram of {name}](\1)",
        source[0],
        flags=re.DOTALL,
    )


def setup(app: Sphinx) -> None:
    """Register what this file adds."""
    app.connect("source-read", add_contents)
    app.connect("source-read", show_pictures)
