"""The secret keys of the installation: which of them what is stored needs, and rotation to the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestrator.cli.attached import data_dir, on_database
from orchestrator.cli.lookup import table
from orchestrator.cli.output import plain_json_option, printer, say, say_document

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.settings import Settings
    from orchestrator.store.database import Database


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
@data_dir
@plain_json_option
def status(*, data_dir: Path, as_json: bool) -> int:
    """Count what is stored under each key; exit 1 if something is under a key that SECRET_KEYS lacks."""

    async def tell(settings: Settings, db: Database) -> int:
        from orchestrator.crypto import Encryptor
        from orchestrator.store import key_rotation

        encryptor = Encryptor(settings.secret_keys)
        counts = await key_rotation.counts(db)
        lost = sum(count.number for count in counts if encryptor.known(count.key_id) is None)
        if as_json:
            rows = [
                {
                    "kind": count.kind,
                    "key": count.key_id,
                    "number": count.number,
                    "role": _role(encryptor, count.key_id),
                }
                for count in counts
            ]
            say_document(rows)
            return 1 if lost else 0
        shown = table("kind", "key", "role", "number")
        for count in counts:
            shown.add_row(count.kind, count.key_id, _role(encryptor, count.key_id), str(count.number))
        printer().print(shown)
        if lost:
            say(
                f"{lost} values are under a key that SECRET_KEYS does not have: add it as an older one.",
                err=True,
            )
        return 1 if lost else 0

    return on_database(data_dir, tell)


@secrets.command(short_help="Encrypt all that is stored again under the newest key.")
@data_dir
@click.option(
    "--list-size",
    type=click.IntRange(1, 10_000),
    default=500,
    show_default=True,
    help="Rows of a transaction.",
)
@plain_json_option
def rotate(*, data_dir: Path, list_size: int, as_json: bool) -> int:
    """Encrypt what is stored under older keys again under the newest key, in lists, beside everything else.

    It may be interrupted at any moment and run again. Every process must already have the newest key (see
    docs/merchants.md). Exit 1 if something is under a key that SECRET_KEYS lacks.
    """

    async def work(settings: Settings, db: Database) -> int:
        from rich.text import Text

        from orchestrator.crypto import Encryptor
        from orchestrator.store import key_rotation

        encryptor = Encryptor(settings.secret_keys)
        with printer(err=True).status(Text("Encrypting …")) as line:

            def progress(done: key_rotation.Rotation) -> None:
                line.update(Text(f"Encrypting … {done.read} read, {done.encrypted} encrypted again"))

            done = await key_rotation.rotate(db, encryptor, list_size=list_size, progress=progress)
        if as_json:
            say_document(
                {
                    "key": encryptor.newest.id,
                    "read": done.read,
                    "encrypted": done.encrypted,
                    "failed": done.failed,
                }
            )
            return 1 if done.failed else 0
        say(
            f"{done.encrypted} of {done.read} values were encrypted again under key {encryptor.newest.id}; the others were already."
            if not done.failed
            else f"{done.encrypted} of {done.read} values were encrypted again under key {encryptor.newest.id}."
        )
        if done.failed:
            say(
                f"{done.failed} values do not open (see the log): SECRET_KEYS lacks their key, or they were changed.",
                err=True,
            )
        return 1 if done.failed else 0

    return on_database(data_dir, work)


def _role(encryptor: object, key_id: str) -> str:
    from orchestrator.crypto import Encryptor

    assert isinstance(encryptor, Encryptor)  # noqa: S101 - it is imported late
    if encryptor.newest.id == key_id:
        return "newest"
    return "older" if encryptor.known(key_id) is not None else "missing"
