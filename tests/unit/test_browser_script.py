"""The script for shops' pages: small, complete in every language, never changed under its version."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from orchestrator.api import static_files
from orchestrator.cli import cli
from orchestrator.domain.shopper_state import ShopperState

LANGUAGES = {"en", "da", "sv", "nb", "de"}
SMALL = 10_000


@pytest.fixture(scope="module")
def source() -> str:
    return static_files.newest().body.decode()


@pytest.fixture(scope="module")
def texts(source: str) -> dict[str, dict[str, str]]:
    found = re.search(r"const TEXTS = (\{.*?\n  \});", source, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_each_version_is_what_was_recorded_for_it():
    recorded = json.loads((static_files.FOLDER / "integrity.json").read_text())
    assert {script.name: script.integrity for script in static_files.scripts().values()} == recorded


def test_it_is_small_names_its_version_and_writes_no_markup(source: str):
    script = static_files.newest()
    assert len(script.compressed) <= SMALL
    assert f'const VERSION = "{script.version}"' in source
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        ".style",
    ):
        assert way not in source, way


def test_no_language_lacks_a_text(texts, source):
    assert texts.keys() == LANGUAGES
    for language, words in texts.items():
        assert words.keys() == texts["en"].keys(), language
        assert all(words.values()), language
        assert "{reason}" in words["declined"], language
    # Every state of a checkout and every text that the code uses is there, and no other.
    used = set(re.findall(r"this\.texts\.(\w+)", source)) | set(ShopperState)
    assert texts["en"].keys() == used


def test_the_command_prints_the_address_the_hash_and_the_policy():
    given = [
        "helper",
        "csp",
        "--api",
        "https://pay.example/",
        "--gateway",
        "https://shop.altapaysecure.com/x",
    ]
    script = static_files.newest()
    plain = CliRunner().invoke(cli, given)
    assert plain.exit_code == 0, plain.output
    found = json.loads(CliRunner().invoke(cli, [*given, "--json"]).output)
    assert found["url"] == f"https://pay.example/static/checkout-{script.version}.js"
    assert found["integrity"] == script.integrity
    assert found["contentSecurityPolicy"].split("; ") == [
        "default-src 'none'",
        f"script-src '{script.integrity}'",
        "connect-src https://pay.example https://shop.altapaysecure.com",
        "img-src 'self' https://shop.altapaysecure.com",
        "style-src 'self'",
        "form-action 'self' https://shop.altapaysecure.com",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    for value in (found["url"], found["integrity"], found["contentSecurityPolicy"], found["script"]):
        assert value in plain.output
    refused = CliRunner().invoke(
        cli, ["helper", "csp", "--api", "pay.example", "--gateway", "https://x.example"]
    )
    assert refused.exit_code == 2
