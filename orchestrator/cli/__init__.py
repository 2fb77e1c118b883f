"""The command line. The only place that wires processes together; each command is imported when it is called.

A wrong argument or setting ends in one sentence on stderr and exit status 2. Status 1 means that the command
did its work and found a fault (a broken trail, an unhealthy installation, a demo that did not end as
scripted).
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final, NoReturn

import click

from orchestrator.cli.output import say_lines
from orchestrator.errors import OrchestratorError

_COMMANDS: Final = {
    "up": "processes:up",
    "demo": "processes:demo",
    "bench": "bench:bench",
    "bench-gateway": "bench:gateway",
    "bench-load": "bench:load",
    "api": "processes:api",
    "worker": "processes:worker",
    "scheduler": "processes:scheduler",
    "deliverer": "processes:deliverer",
    "sandbox": "processes:sandbox",
    "shop": "processes:shop",
    "helper": "browser_script:script",
    "migrate": "processes:migrate",
    "status": "status:status",
    "doctor": "doctor:doctor",
    "trigger": "trigger:trigger",
    "listen": "listen:listen",
    "token": "tokens:token",
    "merchants": "merchants:merchants",
    "secrets": "secret_keys:secrets",
    "checkouts": "checkouts:checkouts",
    "commands": "command_results:commands",
    "payments": "listings:payments",
    "rejected-intents": "rejected_intents:rejected_intents",
    "events": "events:events",
    "webhooks": "webhooks:webhooks",
    "console": "console:console",
    "audit": "trail:audit",
    "archive": "archive:archive",
    "monitoring": "monitoring:monitoring",
}
"""Command → module of this package and name in it, in the order of the help."""

WRONG: Final = 2
INTERRUPTED: Final = 130


class _Lazy(click.Group):
    """A group whose commands are imported when they are wanted."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(f"orchestrator.cli.{module}"), name)
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
@click.version_option(package_name="checkout-orchestrator", prog_name="orchestrator")
def cli() -> None:
    """Take checkout intents through the payment gateway until the money is settled."""


def main() -> None:
    """Run the command line and end the process."""
    # What any of our processes writes may hold personal data or secrets: it is for the account that runs it.
    os.umask(0o077)
    try:
        status = cli.main(prog_name="orchestrator", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as asked:
        say_lines(asked.ctx.get_help(), err=True)
        sys.exit(WRONG)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except OrchestratorError as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of the output has closed it (`| head`); nothing more may be written, not even at exit.
        sys.stderr.close()
        sys.exit(0)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(sentence: str) -> NoReturn:
    say_lines(f"orchestrator: {sentence}", err=True)
    sys.exit(WRONG)
