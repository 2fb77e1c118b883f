"""Logs: structlog, lines for people on a terminal and JSON elsewhere.

An event is a static snake_case name with ids as fields. Values that could be a secret, a card or personal
data are removed by key and by shape in the last step before writing, also in third-party records, so that a
careless call cannot leak them. The correlation id is bound with `bind` where work begins and is stored in the
row from the HTTP request to the last event.

Lines go to stderr, or to the file that the settings name, which is opened again when it was moved
(logrotate). No value can control the terminal that shows it. `own_output` makes lines of all other output of
a process, so that all of its output is JSON.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from logging.handlers import WatchedFileHandler
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import unquote_plus

import msgspec
import structlog

from orchestrator.text import escaped_json, neutralised, neutralised_lines

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

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
"""Loggers of libraries that repeat at info what our own lines log, or that write thousands of lines."""

HIDDEN: Final = "[hidden]"
_ENCODER: Final = msgspec.json.Encoder()

_SENSITIVE_WORDS: Final = (
    r"password|passwd|secret|token|authorization|signature|checksum|cookie|card|\bpan\b|cvc|cvv|email|e_mail|"
    r"first_?name|last_?name|customer|address|street|zip|phone|body|xml"
)
_SENSITIVE_KEYS: Final = re.compile(_SENSITIVE_WORDS, re.IGNORECASE)
_SENSITIVE_TEXT: Final = (
    # A JSON Web Token, with whatever it hangs on. Here and in addresses nothing begins in the middle of a run
    # of characters that may belong to it: a long run would be read once for each of them.
    (re.compile(r"(?<![\w-])(?=[\w-]*eyJ)[\w-]{11,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
    # Credentials in an Authorization header or in a URL.
    (re.compile(r"\b(Bearer|Basic)\s+[\w.+/=~-]{8,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"://[^/\s:@]*:[^/\s]+@"), f"://{HIDDEN}@"),
    # The signed part of our own callback URLs.
    (re.compile(r"(/callbacks/\w+/[\w-]+/)[^\s\"'?]+"), rf"\1{HIDDEN}"),
    # A card number: 13 to 19 digits with optional separators. Our ids are UUIDs and do not match.
    (re.compile(r"(?<![\w-])(?:\d[ +-]?){12,18}\d(?![\w-])"), HIDDEN),
    # An e-mail address, also in a form body.
    (re.compile(r"(?<![\w.+-])[\w.+-]+(?:(?:@|%40)[\w-]+\.[\w.+-]+)+"), HIDDEN),
    # A value behind a telling name, in a form, a query or JSON: first_name=Anna, "firstname": "Anna".
    # Everything is bounded: a text of any length takes time in proportion to it.
    (
        re.compile(
            rf"""(?P<name>(?:{_SENSITIVE_WORDS})[\w.\[\]%+-]{{0,40}}(?:["']\s{{0,3}}:\s{{0,3}}|=))"""
            r"""(?:"[^"]*"?|'[^']*'?|\{[^}]*\}?|\[[^\]]*\]?|[^\s&,;"'<>}]+)""",
            re.IGNORECASE,
        ),
        rf"\g<name>{HIDDEN}",
    ),
)
_ENCODED: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_MOST_DECODED: Final = 3
"""How often a text may be encoded over and over; what is so even more often is hidden as a whole."""


# Words of ours and ids, which are most of what is logged, have none of those shapes: a token has dots,
# credentials have a space, a URL has slashes, a card is shorter than an id and has digits only, an address
# has its sign.
_PLAIN: Final = re.compile(r"[A-Za-z_]*|[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def scrub(text: str) -> str:
    """Return a text without what has the shape of a token, credential, signed URL, card or e-mail address."""
    if _PLAIN.fullmatch(text):
        return text
    clean = _without_shapes(text)
    decoded = clean
    for _ in range(_MOST_DECODED):
        if not _ENCODED.search(decoded):
            return clean
        decoded = unquote_plus(decoded)
        found = _without_shapes(decoded)
        if found != decoded:
            return found  # in the clear, since what is hidden can be detected only there
    return HIDDEN if _ENCODED.search(decoded) else clean


def _without_shapes(text: str) -> str:
    for pattern, replacement in _SENSITIVE_TEXT:
        text = pattern.sub(replacement, text)
    return text


def cause(error: BaseException) -> dict[str, str]:
    """Return what a log may contain of an error: its class; of an error that Postgres answered, also SQLSTATE
    and message.

    `error` is the class, `sqlstate` five characters, `said` the server's message or the driver's first line,
    without its detail and parameters. Messages of class 22 (data exceptions) quote the value of a row, which
    is left out.
    """
    driver: Any = getattr(error, "orig", None) or error
    facts = {"error": type(error).__name__}
    state = getattr(driver, "sqlstate", None)
    if state:
        facts["sqlstate"] = state
        said = getattr(getattr(driver, "diag", None), "message_primary", None)
    elif type(driver).__module__.partition(".")[0] in {"psycopg", "redis"} or isinstance(error, OSError):
        said = str(driver)
    else:
        said = None
    if said:
        line = said.strip().partition("\n")[0]
        # Such a message ends in the value: invalid input syntax for type uuid: "…".
        facts["said"] = re.split('[":]', line)[0].rstrip() if str(state).startswith("22") else line
    return facts


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


# What Postgres adds to an error about a row is the row: DETAIL: Key (order_ref)=(A-1) already exists. So is
# what it could not read.
_ROW_OF_ERROR: Final = re.compile(r"^(DETAIL|CONTEXT):.*|(?<=invalid input )(\w+ [^:\n]*):.*", re.MULTILINE)


def _without_rows(_logger: object, _method: str, event: MutableMapping[str, Any]) -> EventDict:
    if isinstance(trace := event.get("exception"), str):
        event["exception"] = _ROW_OF_ERROR.sub(rf"\1\2: {HIDDEN}", trace)
    return event


def _harmless(_logger: object, _method: str, event: MutableMapping[str, Any]) -> EventDict:
    """Keep every text in its line; a traceback is indented, so that no part of it looks like a line."""
    shown = {
        key: neutralised(value) if isinstance(value, str) and key != "exception" else value
        for key, value in event.items()
    }
    if isinstance(trace := event.get("exception"), str):
        shown["exception"] = "\n".join(f"    {line}" for line in neutralised_lines(trace).splitlines())
    return shown


def _escaped(_logger: object, _method: str, line: Any) -> str:
    return escaped_json(line)


def configure(*, style: str = "auto", level: str = "info", file: str | None = None) -> None:
    """Set up logging for this process: `style` is console, json, or auto (console on a terminal).

    Lines go to stderr, or to the end of `file`, which several processes may share; it is opened again when it
    was moved away.
    """
    console = style == "console" or (style == "auto" and file is None and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.format_exc_info,
        _without_rows,
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
    rendered: list[Processor] = (
        [_harmless, structlog.dev.ConsoleRenderer(colors=file is None and sys.stderr.isatty())]
        if console
        else [structlog.processors.JSONRenderer(sort_keys=True), _escaped]
    )
    handler: logging.Handler = (
        logging.StreamHandler(sys.stderr)
        if file is None
        else WatchedFileHandler(file, encoding="utf-8", errors="backslashreplace")
    )
    global _console  # noqa: PLW0603 - a process has one log
    _console = console
    handler.setFormatter(
        _Formatter(
            # What a library hands over as `extra`; ours comes as fields.
            foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
            processors=[*shared, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Access lines carry URLs with signatures; client libraries log every request at info.
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def get(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bind(**ids: object) -> None:
    """Put ids onto every line that this task or thread logs from now on."""
    structlog.contextvars.bind_contextvars(**ids)


def write_plain(name: str, records: Sequence[dict[str, Any]]) -> None:
    """Write records of a logger that hold no free text and nothing to hide, at once and past the steps of
    ordinary lines.

    Each has `event`, and `timestamp` where that is not now; the caller answers for every value. On a console
    they go the ordinary way.
    """
    if _console:
        for record in records:
            get(name).info(**{key: value for key, value in record.items() if key != "timestamp"})
        return
    if not logging.getLogger(name).isEnabledFor(logging.INFO):
        return
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    about = {"timestamp": now, "level": "info", "logger": name}
    text = b"\n".join(_ENCODER.encode(about | record) for record in records).decode()
    for handler in logging.getLogger().handlers:
        handler.handle(logging.makeLogRecord({"name": PLAIN, "levelno": logging.INFO, "msg": text}))


PLAIN: Final = "orchestrator.plain"
"""Name of a record whose message is written as it stands."""


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """The formatter of all lines but those that are finished already."""

    def format(self, record: logging.LogRecord) -> str:
        return record.msg if record.name == PLAIN else super().format(record)


_console = True


def own_output() -> None:
    """Make log lines of all other output of this process, where the log is JSON: prints of libraries,
    warnings, tracebacks.

    For processes whose only output is their log. Libraries write into a pipe instead of to stdout and stderr,
    also through the descriptor of `sys.__stdout__`; a thread logs each line. Output of the interpreter itself
    at a crash still goes to stderr.
    """
    if _console:
        return
    before = sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__
    out, err = _Piped("stdout", logging.INFO), _Piped("stderr", logging.WARNING)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = out.file, err.file  # type: ignore[misc]
    logger = get(__name__)

    def broke(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        logger.critical("process_broke", exc_info=(kind, error, trace))

    def thread_broke(told: threading.ExceptHookArgs) -> None:
        if told.exc_value is not None and told.exc_type is not SystemExit:
            logger.critical("thread_broke", exc_info=(told.exc_type, told.exc_value, told.exc_traceback))

    def unraisable(told: Any) -> None:
        logger.error("error_ignored", exc_info=(told.exc_type, told.exc_value, told.exc_traceback))

    sys.excepthook, threading.excepthook, sys.unraisablehook = broke, thread_broke, unraisable
    logging.captureWarnings(capture=True)

    def ended() -> None:
        sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__ = before  # type: ignore[misc]
        out.close()
        err.close()

    atexit.register(ended)


class _Piped:
    """A text file whose lines are logged by a thread."""

    def __init__(self, name: str, level: int) -> None:
        reading, writing = os.pipe()
        self.file = os.fdopen(writing, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        self._thread = threading.Thread(
            target=self._log, args=(os.fdopen(reading, "rb"), name, level), name=f"log-{name}", daemon=True
        )
        self._thread.start()

    @staticmethod
    def _log(lines: IO[bytes], name: str, level: int) -> None:
        logger = get(__name__)
        with lines:
            for line in lines:
                if said := line.decode(errors="backslashreplace").strip():
                    logger.log(level, "printed", to=name, line=said)

    def close(self) -> None:
        """Log what has been written, and end the thread."""
        with suppress(OSError):
            self.file.close()
        self._thread.join(2)
