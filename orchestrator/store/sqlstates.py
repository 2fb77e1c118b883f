"""What Postgres's errors are about: one row, or the server and the way to it."""

from __future__ import annotations

from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError

READ_ONLY: Final = "25006"
OTHERS_STATEMENTS: Final = frozenset({"26000", "42P05"})
"""Prepared statements met those of another client, behind a pooler."""
ENDING: Final = ("08", "57P")
"""The connection, or the server, is ending or not there yet."""

NO_SCHEMA: Final = frozenset({"3F000", "42P01"})
"""The schema, or a table of it, is not there."""
OTHER_SCHEMA: Final = NO_SCHEMA | {"42703", "42883"}
"""As above, or a column or function of it: no fault of a row, and none that goes by itself."""

# Errors that would meet any row: beside those above a right that the role lost, resources (53: a full disk,
# too many connections), the operator (57), the system (58).
_ABOUT_SERVER: Final = frozenset({READ_ONLY, *OTHERS_STATEMENTS, *OTHER_SCHEMA, "42501"})
_CLASSES_ABOUT_SERVER: Final = ("08", "53", "57", "58")
# program_limit_exceeded (a row or an index entry that is too large). psycopg makes an OperationalError of it,
# as of a lost connection; but it is about the row, and would be the same for ever.
_TOO_LARGE: Final = "54"


def state_of(error: BaseException) -> str:
    """Return the SQLSTATE that Postgres gave; empty where it gave none, as for a lost connection."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def about_server(error: BaseException) -> bool:
    """Say whether an error of SQLAlchemy's is about the server, the way to it or the pool, not a row."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, SQLAlchemyError)
    state = state_of(error)
    if state in _ABOUT_SERVER or state.startswith(_CLASSES_ABOUT_SERVER):
        return True
    return not isinstance(error, IntegrityError | DataError | ProgrammingError) and not state.startswith(
        _TOO_LARGE
    )
