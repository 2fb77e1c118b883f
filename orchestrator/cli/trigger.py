"""`orchestrator trigger`: make a case on purpose in a running installation with a sandbox, and say what to
look at.

For developers and support: it takes the sandbox's own routes, and refuses a gateway that is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from orchestrator.cli.attached import (
    Installation,
    data_dir,
    data_dir_option,
    nothing_runs,
    on_database,
    whisper,
)
from orchestrator.cli.lookup import merchant_option
from orchestrator.cli.output import json_option, say, say_document

if TYPE_CHECKING:
    from pathlib import Path


NAMES: Final = (
    "late_payment",
    "chargeback",
    "surplus",
    "mismatch",
    "lost_callback",
    "gateway_down",
    "gateway_up",
)
"""The cases, as `devkit.demo.triggers` has them; named here so that the help needs no slow import."""


@click.command(short_help="Make a case in a running `up`: a surplus, a chargeback, a dead gateway …")
@data_dir
@click.argument("case", metavar="CASE", type=click.Choice(NAMES))
@merchant_option("The merchant whose order it is.")
@json_option
def trigger(*, data_dir: Path, case: str, merchant: str, as_json: bool) -> int:
    """Make a case with an order of its own, at the sandbox, and say which order, what happens, and what to
    look at.

    late_payment: paid after it expired. chargeback: taken back by the bank. surplus: paid twice. mismatch:
    paid with another amount. lost_callback: paid, and no callback comes. gateway_down, gateway_up: every call
    fails, and works again.
    """
    if nothing_runs(data_dir):
        raise click.UsageError(
            f"nothing runs in {data_dir}: start `orchestrator up` first, or name its --data-dir"
        )

    async def make(here: Installation) -> int:
        from orchestrator.devkit.demo import triggers
        from orchestrator.devkit.demo.shop import Unscripted

        here.settings.need("jwt_secrets")
        try:
            done = await triggers.trigger(
                triggers.CASES[case], here.settings, here.db, merchant=merchant, say=whisper
            )
        except Unscripted as error:
            say(f"The case did not come about: {error}.", err=True)
            return 1
        option = data_dir_option(data_dir)
        look = [f"{line.format(order=done.order)}{option}" for line in done.case.look]
        if as_json:
            say_document(
                {
                    "case": done.case.name,
                    "orderId": done.order,
                    "checkoutId": done.checkout,
                    "happened": done.case.about,
                    "then": done.case.then,
                    "stands": done.stands,
                    "youMay": done.you_may,
                    "lookAt": look,
                }
            )
            return 0
        rows = [("Happened", done.case.about), ("Then", done.case.then)]
        if done.order is not None:
            rows = [("Order", f"{done.order}, checkout {done.checkout}"), *rows, ("Now", done.stands)]
        for name, said in rows:
            say(f"{name:<10}{said}")
        for number, line in enumerate(look):
            say(f"{'' if number else 'Look at':<10}{line}")
        return 0

    return on_database(data_dir, make)
