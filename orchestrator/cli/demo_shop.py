"""`orchestrator shop`: the demo shop as a process of its own."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.attached import DATA_DIR, logged
from orchestrator.cli.extra import need_devkit

_LIFETIME = 30 * 86_400.0
_SCOPES = ("checkouts:write", "checkouts:read", "webhooks:write")


@click.command(short_help="Serve the demo shop.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=8002, show_default=True)
@click.option("--api", metavar="URL", help="Where the API is (default: PUBLIC_URL).")
@click.option("--merchant", default="default", show_default=True, help="Whose shop it is.")
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), default=DATA_DIR, show_default=True,
    help="The data directory of `orchestrator up`, where no setting says otherwise.",
)  # fmt: skip
def shop(*, host: str, port: int, api: str | None, merchant: str, data_dir: Path) -> None:
    """Serve the demo shop, beside a sandbox (GATEWAY_URL) and the API; `orchestrator up` starts it.

    Its webhooks come to this machine: WEBHOOK_ALLOWED_NETWORKS of API and deliverer must have its address,
    and BROWSER_ORIGINS of the API its origin.
    """
    need_devkit()
    from orchestrator import auth
    from orchestrator.cli.processes import check_listening
    from orchestrator.devkit.local.runtime_file import configured
    from orchestrator.devkit.shop import app

    settings = logged(configured(data_dir))
    sandbox = settings.need("gateway_url")
    settings.need("jwt_secrets")
    check_listening(host, port)
    token = auth.issue_own(
        settings, merchant=merchant, scopes=_SCOPES, lifetime=_LIFETIME, subject="demo-shop"
    )
    made = app.create_app(
        settings.demo_shop_url or f"http://{host}:{port}",
        (api or settings.public_url).rstrip("/"),
        token,
        sandbox=sandbox,
        control=settings.sandbox_token.get_secret_value(),
    )
    app.run(made, host, port)
