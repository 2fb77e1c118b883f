"""`orchestrator helper`: what a shop's page needs to load `checkout.js`, and evidence about that script."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import data_dir
from orchestrator.cli.output import json_flag, say, say_json

if TYPE_CHECKING:
    from pathlib import Path

PURPOSE = "lists the payment methods of a checkout, starts the payment at the gateway, shows its state"


@click.group(name="helper")
def script() -> None:
    """The script for the shop's page, checkout.js."""


@script.command()
@data_dir
@click.option("--api", metavar="URL", help="Where browsers reach the API (default: PUBLIC_URL).")
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="URL",
    help="The gateway that the merchant's payments start at; may be repeated (default: GATEWAY_URL).",
)
@json_flag("One document of JSON.")
def csp(*, data_dir: Path, api: str | None, gateways: tuple[str, ...], as_json: bool) -> None:
    """Print the script's address, its integrity hash, and the Content-Security-Policy of the shop's page.

    The last lines are the entry of an inventory of payment page scripts (PCI DSS 4.0.1, 6.4.3): what the
    script is for, and how its integrity is assured.
    """
    from orchestrator.api import static_files
    from orchestrator.devkit.local.runtime_file import configured

    settings = configured(data_dir)
    base = (api or settings.public_url).rstrip("/")
    called = gateways or ((settings.gateway_url,) if settings.gateway_url else ())
    if not called:
        raise click.UsageError(
            "no gateway is known, and the policy must name it: give --gateway, or set GATEWAY_URL"
        )
    for url in (base, *called):
        if not url.startswith(("https://", "http://")):
            raise click.UsageError(f"{url!r} is no URL such as https://pay.example")
    newest = static_files.newest()
    url = f"{base}{static_files.PREFIX}{newest.name}"
    policy = static_files.policy(newest, api=base, gateways=called)
    tag = f'<script src="{url}" integrity="{newest.integrity}" crossorigin="anonymous" defer></script>'
    if as_json:
        document = {
            "url": url,
            "version": newest.version,
            "integrity": newest.integrity,
            "script": tag,
            "contentSecurityPolicy": policy,
            "purpose": PURPOSE,
            "bytes": len(newest.body),
            "bytesCompressed": len(newest.compressed),
        }
        say_json(json.dumps(document))
        return
    for name, value in (
        ("URL", url),
        ("Integrity", newest.integrity),
        ("Script", tag),
        ("Policy", f"Content-Security-Policy: {policy}"),
        ("Size", f"{len(newest.body)} bytes, {len(newest.compressed)} compressed"),
        ("Purpose", PURPOSE),
        ("Authorised by", "the hash in the page and in the policy: a browser runs no other content"),
    ):
        say(f"{name:<15}{value}")
