"""Every answer of the API against its own OpenAPI document; `serving` asks this of each test's answers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    import httpx


class Contract:
    """A document, ready to be compared with answers; `seen` are the documented (method, path, status) that
    were answered.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        # What has fewer names in it is more specific.
        paths = sorted(document["paths"].items(), key=lambda item: item[0].count("{"))
        self.paths = [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path) for path, _ in paths]
        self.seen: set[tuple[str, str, str]] = set()

    async def check(self, response: httpx.Response) -> None:
        """Raise `AssertionError` for an answer that is not as the document says; addresses that it does not
        have do not exist.
        """
        await response.aread()
        method, address = response.request.method.lower(), response.request.url.path
        path = next((path for pattern, path in self.paths if pattern.fullmatch(address)), None)
        operation = self._document["paths"].get(path, {}).get(method)
        if operation is None:
            return
        status, asked = str(response.status_code), f"{method} {path}: {response.status_code}"
        described = operation["responses"].get(status)
        if described is None:
            assert not response.is_success, f"{asked} is not documented"
            described = operation["responses"]["default"]
        else:
            self.seen.add((method, str(path), status))
        kind = response.headers.get("content-type", "").partition(";")[0]
        if not kind.endswith("json"):
            return
        assert kind in described.get("content", {}), f"{asked} is {kind}"
        wrong = wrong_in(self._document, described["content"][kind]["schema"], json.loads(response.content))
        assert wrong == [], f"{asked} {wrong}: {response.text[:2000]}"


def wrong_in(document: dict[str, Any], schema: dict[str, Any], value: object) -> list[str]:
    """Return where a value is not as a schema of the document says."""
    rooted = {**schema, "components": document["components"]}
    validator = Draft202012Validator(rooted, format_checker=Draft202012Validator.FORMAT_CHECKER)
    return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]
