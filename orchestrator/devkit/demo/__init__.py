"""The demo: everything `up` starts, then shoppers who go through every outcome, and a verdict.

The shoppers use nothing but HTTP, like a shop and its customers. The exit status is 0 only if every order
ended as its shopper's script says and the sandbox's ledger agrees with our books to the minor unit.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from orchestrator.devkit.demo.orders import BURST, draw
from orchestrator.devkit.demo.scripts import choose
from orchestrator.devkit.local import up as supervise
from orchestrator.settings import PREFIX, SettingsError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from orchestrator.devkit.local.terminal import Terminal
    from orchestrator.devkit.local.up import Options, Up

BRISK: Final[dict[str, object]] = {
    "deadline_grace": 1.0,
    "cancel_grace": 1.0,
    "first_check_after": 2.0,
    "recheck_after_callback": 0.5,
    "retry_base": 0.5,
    "hint_grace": 2.0,
    "sweep_interval": 0.5,
}
"""Settings of the demo where none are set, so that a shopper who leaves is known to have left
within seconds.
"""

HASTY: Final[dict[str, object]] = {
    **BRISK,
    "gateway_connect_timeout": 1.5,
    "gateway_read_timeout": 1.5,
    "gateway_total_timeout": 2.0,
    "lease_seconds": 7.0,
    "operation_quiet": 3.0,
}
"""The same for scripts about money: the absence of a lost capture counts only when lease and quiet period are
over.

Not in a burst, which makes the calls themselves slow.
"""


def run(
    options: Options,
    terminal: Terminal,
    *,
    orders: int,
    scenarios: Sequence[str],
    stay: bool,
    greet: Callable[[Up], None],
) -> int:
    """Bring everything up, run the demo, and stay up if wanted; return the exit status."""
    from orchestrator.devkit.demo.runner import run_orders  # noqa: PLC0415 - what is wrong is said before the slow imports

    try:
        scripts = choose(scenarios)
    except ValueError as error:
        raise SettingsError(f"--scenario {error}") from None
    settings = load()
    given = settings.gateway_url
    if given is not None and not _is_sandbox(given, settings.sandbox_token.get_secret_value()):
        raise SettingsError(
            f"{PREFIX}GATEWAY_URL is set to a gateway without the sandbox's script API, which the demo needs, or to a "
            f"sandbox whose token is not {PREFIX}SANDBOX_TOKEN: unset it, and the demo brings its own sandbox"
        )
    number = f"{int(time.time()):x}"

    async def visit(up: Up) -> int:
        drawn = draw(scripts, count=orders, seed=options.seed, run=number)
        return await run_orders(up, drawn, run=number, gateway=up.sandbox_url or str(given), stay=stay)

    about_money = any(script.holds for script in scripts)
    if given is not None and about_money and not settings.gateway_secrets:
        raise SettingsError(
            f"{PREFIX}GATEWAY_SECRETS is not set, and the scripts about money need to know what the sandbox signs its callbacks "
            f"with: give it the sandbox's own, or unset {PREFIX}GATEWAY_URL, and the demo brings its own sandbox"
        )
    defaults = HASTY if about_money and orders <= BURST else BRISK
    if given is not None:
        # Where that sandbox calls from is not known here.
        defaults = {**defaults, "gateway_networks": ()}
    return supervise.run(options, terminal, defaults=defaults, greet=greet, visit=visit, stay=stay)


def _is_sandbox(url: str, token: str) -> bool:
    import httpx  # noqa: PLC0415 - wanted only where a gateway is set

    try:
        answer = httpx.get(
            f"{url}/sandbox/ledger",
            params={"limit": 1},
            headers={"X-Sandbox-Token": token},
            timeout=5.0,
            trust_env=False,
        )
        return answer.status_code == httpx.codes.OK and "orders" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False
