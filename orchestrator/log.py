"""Logs: structlog, lines for people on a terminal and JSON elsewhere.

An event is a static snake_case name with ids as fields. Whatever could carry a secret, a card or a person is removed by
key and by shape in the last step before writing, also in third-party records, so that a careless call cannot leak it. The
correlation id is bound with `bind` where work begins and travels in the row from the HTTP request to the last event.
"""

from __future__ import annotations

import logging
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from structlog.typing import EventDict, Processor

_NOISY: Final = (
    "aiohttp.access",
    "alembic.runtime",
    "amqp",
    "celery",
    "httpcore",
    "httpx",
    "kombu",
    "uvicorn",
    "uvicorn.access",
    "uvicorn.error",
)
"""Loggers of libraries that say at info what a line of ours says, or what nobody wants to read thousands of times."""

HIDDEN: Final = "[hidden]"

_SENSITIVE_KEYS: Final = re.compile(
    r"password|passwd|secret|token|authorization|signature|checksum|cookie|card|\bpan\b|cvc|cvv|email|e_mail|"
    r"first_?name|last_?name|customer|address|street|zip|phone|body|xml",
    re.IGNORECASE,
)
_SENSITIVE_TEXT: Final = (
    # A JSON Web Token.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    # Credentials in an Authorization header or in a URL.
    (re.compile(r"\b(Bearer|Basic)\s+[\w.+/=~-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"://[^/\s:@]*:[^/\s]+@"), f"://{HIDDEN}@"),
    # The signed part of our own callback URLs.
    (re.compile(r"(/callbacks/\w+/[\w-]+/)[^\s\"'?]+"), rf"\1{HIDDEN}"),
    # A card number: 13 to 19 digits with optional separators. Ids of ours are UUIDs and do not look like this.
    (re.compile(r"(?<![\w-])(?:\d[ -]?){12,18}\d(?![\w-])"), HIDDEN),
    # An e-mail address, also in a form body.
    (re.compile(r"[\w.+-]+(?:@|%40)[\w-]+\.[\w.-]+"), HIDDEN),
)


# Words of ours and ids, which are most of what is logged, have none of those shapes: a token has dots, credentials have a space, a
# URL has slashes, a card is shorter than an id and has digits only, an address has its sign.
_PLAIN: Final = re.compile(r"[A-Za-z_]*|[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def scrub(text: str) -> str:
    """Return `text` without anything that has the shape of a token, credential, signed URL, card or e-mail address."""
    if _PLAIN.fullmatch(text):
        return text
    for pattern, replacement in _SENSITIVE_TEXT:
        text = pattern.sub(replacement, text)
    return text


@lru_cache(maxsize=1024)
def _is_sensitive(key: str) -> bool:
    return _SENSITIVE_KEYS.search(key) is not None


def _clean(value: object) -> object:
    match value:
        case str():
            return scrub(value)
        case dict():
            return {key: HIDDEN if _is_sensitive(str(key)) else _clean(item) for key, item in value.items()}
        case list() | tuple():
            return [_clean(item) for item in value]
        case bytes() | bytearray() | memoryview():
            return HIDDEN  # a body, a key or something sealed
        case int() if abs(value) >= 10**12:
            return scrub(str(value))  # as long as a card number
        case None | bool() | int() | float():
            return value
        case _:
            return scrub(str(value))


_META: Final = frozenset({"_record", "_from_structlog"})
"""What structlog's formatter puts among the fields and takes out again."""


def _redact(_logger: object, _method: str, event: MutableMapping[str, object]) -> EventDict:
    return {
        key: value if key in _META else HIDDEN if _is_sensitive(key) else _clean(value)
        for key, value in event.items()
    }


def configure(*, style: str = "auto", level: str = "info") -> None:
    """Set up logging for this process: `style` is console, json, or auto (console on a terminal)."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        _redact,
        # What no caller has a say in comes after.
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if console
        else structlog.processors.JSONRenderer(sort_keys=True)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            # What a library hands over as `extra`; ours comes as fields.
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[*shared, structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Access lines carry URLs with signatures; client libraries log every request at info.
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def get(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bind(**ids: object) -> None:
    """Put ids onto every line that this task or thread logs from now on."""
    structlog.contextvars.bind_contextvars(**ids)
