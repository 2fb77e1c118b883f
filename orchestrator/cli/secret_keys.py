"""The secret keys of the installation: which of them what is stored needs, and rotation to the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import Installation, database_command
from orchestrator.cli.lookup import table
from orchestrator.cli.output import plain_json_option, printer, say, say_document

if TYPE_CHECKING:
    from orchestrator.crypto import Encryptor

_MISSING = "missing"


@click.group(short_help="Keys of what is encrypted at rest, and their rotation.")
def secrets() -> None:
    """Keys of what is encrypted at rest (ORCHESTRATOR_SECRET_KEYS), and their rotation."""


@secrets.command("new-key")
def new_key() -> None:
    """Print a new secret key, and nothing else."""
    import base64
    import os

    say(base64.b64encode(os.urandom(32)).decode())


@secrets.command(short_help="Count what is stored under each key.")
@database_command
@plain_json_option
async def status(here: Installation, *, as_json: bool) -> int:
    """Count what is stored under each key; exit 1 if something is under a key that SECRET_KEYS lacks."""
    from orchestrator.store import key_rotation

    encryptor = here.encryptor
    counts = await key_rotation.counts(here.db)
    rows = [(count.kind, count.key_id, _role(encryptor, count.key_id), count.number) for count in counts]
    lost = sum(number for _, _, role, number in rows if role == _MISSING)
    if as_json:
        say_document(
            [{"kind": kind, "key": key, "number": number, "role": role} for kind, key, role, number in rows]
        )
        return int(lost > 0)
    shown = table("kind", "key", "role", "number")
    for *cells, number in rows:
        shown.add_row(*cells, str(number))
    printer().print(shown)
    if lost:
        say(
            f"{lost} values are under a key that SECRET_KEYS does not have: add it as an older one.",
            err=True,
        )
    return int(lost > 0)


@secrets.command(short_help="Encrypt all that is stored again under the newest key.")
@database_command
@click.option("--list-size", type=click.IntRange(1, 10_000), default=500, help="Rows of a transaction.")
@plain_json_option
async def rotate(here: Installation, *, list_size: int, as_json: bool) -> int:
    """Encrypt what is stored under older keys again under the newest key, in lists, beside everything else.

    It may be interrupted at any moment and run again. Every process must already have the newest key (see
    docs/merchants.md). Exit 1 if something is under a key that SECRET_KEYS lacks.
    """
    from rich.text import Text

    from orchestrator.store import key_rotation

    encryptor = here.encryptor
    newest = encryptor.newest.id
    with printer(err=True).status(Text("Encrypting …")) as line:
        done = await key_rotation.rotate(
            here.db,
            encryptor,
            list_size=list_size,
            progress=lambda done: line.update(
                Text(f"Encrypting … {done.read} read, {done.encrypted} encrypted again")
            ),
        )
    if as_json:
        say_document({"key": newest, "read": done.read, "encrypted": done.encrypted, "failed": done.failed})
    else:
        others = "." if done.failed else "; the others were already."
        say(f"{done.encrypted} of {done.read} values were encrypted again under key {newest}{others}")
        if done.failed:
            say(
                f"{done.failed} values do not open (see the log): SECRET_KEYS lacks their key, or they were changed.",
                err=True,
            )
    return int(done.failed > 0)


def _role(encryptor: Encryptor, key_id: str) -> str:
    if encryptor.newest.id == key_id:
        return "newest"
    return "older" if encryptor.known(key_id) is not None else _MISSING
