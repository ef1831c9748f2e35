"""The event log on standard error: one JSON object per line, or readable text on a terminal."""

import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog

from caseload_server.config import Config, is_postgres
from caseload_server.observability.log_file import BoundedWriter

LEVELS: Final = ("info", "warning", "error")
_SECRET_FILES: Final = ("keys_file", "tls_key")
"""Settings that name a file with secrets. The log shows only the file's name, without its folder."""
_STDERR_DESCRIPTOR: Final = 2


_count_level: Callable[[str], object] | None = None
_count_lost: Callable[[], object] | None = None


def set_event_counters(count: Callable[[str], object], count_lost: Callable[[], object]) -> None:
    """Calls functions for each event from now on.

    Args: count, takes its level; count_lost, is called for an event that could not be written.
    """
    global _count_level, _count_lost
    _count_level, _count_lost = count, count_lost


def _count_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _count_level:
        _count_level(event["level"])
    return event


STDERR: Final = BoundedWriter(_STDERR_DESCRIPTOR)


def _rendered(name: str, **fields: object) -> str:
    """Returns the line of a warning. The logger cannot log while it writes: it holds a lock."""
    event: Any = {"event": name, **fields}
    for processor in structlog.get_config()["processors"]:
        event = processor(None, "warning", event)
    return f"{event}\n"


class _EventStream:
    """The file that structlog writes to. An event that cannot be written is lost, without an error for its logger.

    After the next event that can be written, an event of its own has the number of lost ones.
    """

    def __init__(self) -> None:
        self._lost = 0

    def write(self, text: str) -> None:
        try:
            STDERR.write(text)
        except OSError:
            self._lost += 1
            if _count_lost:
                _count_lost()
            return
        lost, self._lost = self._lost, 0
        if lost:
            with suppress(OSError):
                STDERR.write(_rendered("log written again", lost_events=lost))

    def flush(self) -> None:
        """Does nothing, because write keeps no buffer."""


def configure(level: str) -> None:
    """Sends every event of this level and above to standard error."""
    on_terminal = sys.stderr.isatty()
    timestamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal)
    renderer = _console_renderer() if on_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[structlog.processors.add_log_level, _count_event, timestamp, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _EventStream())),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("grpc").addHandler(logging.NullHandler())  # its tracebacks quote the texts of exceptions


def startup_fields(config: Config) -> dict[str, Any]:
    """Returns the fields of the event "started", except addresses: the version, and every setting without secrets."""
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
    }
    settings |= {name: Path(settings[name]).name for name in _SECRET_FILES if settings[name]}
    settings |= {"database": without_secrets(config.database)}
    return {"version": version("caseload-server"), "configuration": settings}


class ConsoleSink:
    """Shows the lines of the access log on a terminal, in the format of the event log."""

    def __init__(self) -> None:
        """Makes the renderer."""
        self._render = _console_renderer()

    def write(self, line: str) -> None:
        """Shows one line of JSON. Raises OSError."""
        STDERR.write(f"{self._render(None, '', {'level': 'info', **json.loads(line)})}\n")


def _console_renderer() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, pad_event_to=0, sort_keys=False)


def without_secrets(database: str) -> str | dict[str, str]:
    """Returns a database URL without its secrets; empty if it is not valid. libpq says which parameters are secret."""
    if not is_postgres(database):
        return database if database.startswith("sqlite:") else ""
    try:
        from psycopg import Error, pq

        options = pq.Conninfo.parse(database.encode())
    except (ImportError, UnicodeError, Error):
        return ""
    return {
        option.keyword.decode(): option.val.decode()
        for option in options
        if option.val is not None and not option.dispchar
    }
