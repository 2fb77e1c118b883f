"""The data of the sandbox that survives a kill: one SQLite file of small documents.

`put` marks a document as changed, `flushed` returns when everything marked so far is in the file. All changes
of one round of the event loop share one commit, so a busy second costs a few dozen commits, not thousands. An
answer is sent only after `flushed`: what the gateway acknowledged survives kill -9. The file is locked for
one process.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCHEMA = "CREATE TABLE IF NOT EXISTS documents (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id))"
_UPSERT = (
    "INSERT INTO documents (kind, id, body) VALUES (?, ?, ?) "
    "ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body"
)
_DELETE = "DELETE FROM documents WHERE kind = ? AND id = ?"


class Store:
    """Documents by kind and id; without a file all of them are lost at exit."""

    def __init__(self, path: Path | None) -> None:
        """Open (and lock) the file; raise `sqlite3.OperationalError` if another sandbox holds it."""
        self._connection: sqlite3.Connection | None = None
        self._changed: dict[tuple[str, str], object | None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._encoder = msgspec.msgpack.Encoder()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # It holds what shoppers entered and the key of the tokens. SQLite gives its other files the mode
            # of this one.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
            # The uvicorn thread may differ from the one that built the app; only one of them ever uses it.
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = WAL")
            # NORMAL: a killed process loses nothing; only a power cut could lose the newest commits.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            connection.execute(_SCHEMA)
            self._connection = connection

    def load(self, kind: str) -> Iterator[tuple[str, bytes]]:
        """Yield id and packed body of all documents of a kind, in the order of their first storing."""
        if self._connection is None:
            return
        yield from self._connection.execute(
            "SELECT id, body FROM documents WHERE kind = ? ORDER BY rowid", (kind,)
        )

    def put(self, kind: str, key: str, document: object) -> None:
        """Store a document with the next commit, as it is then (it may still change until that commit)."""
        if self._connection is not None:
            self._changed[kind, key] = document

    def remove(self, kind: str, key: str) -> None:
        self.put(kind, key, None)

    async def flushed(self) -> None:
        """Return when all changes so far are committed; raise what SQLite raised if they could not be."""
        if not self._changed:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiters.append(waiter)
        if len(self._waiters) == 1:
            loop.call_soon(self._commit_for_waiters)
        await waiter

    def flush(self) -> None:
        """Commit now (start, end and other places without a waiting request)."""
        if self._connection is None or not self._changed:
            return
        changed, self._changed = self._changed, {}
        kept = [
            (kind, key, self._encoder.encode(body))
            for (kind, key), body in changed.items()
            if body is not None
        ]
        gone = [key for key, body in changed.items() if body is None]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(_UPSERT, kept)
            self._connection.executemany(_DELETE, gone)
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._changed = changed | self._changed  # tried again by the next commit
            raise

    def close(self) -> None:
        """Commit what is left and release the file."""
        if self._connection is not None:
            self.flush()
            self._connection.close()
            self._connection = None

    def _commit_for_waiters(self) -> None:
        waiters, self._waiters = self._waiters, []
        try:
            self.flush()
        except sqlite3.Error as error:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)
            return
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
