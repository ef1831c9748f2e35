"""The log on standard error: a JSON object a line, and on a terminal what people read."""

import dataclasses
import json
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TextIO, cast

import structlog

from caseload_server.config import Config, is_postgres

LEVELS: Final = ("info", "warning", "error")
_SECRETS: Final = ("keys_file", "tls_key")
"""Files of which only the names are told."""
_PATIENCE_SECONDS: Final = 5.0
"""For a reader of standard error that reads no more."""
_STANDARD_ERROR: Final = 2


_counter: Callable[[str], object] | None = None


def count_with(counter: Callable[[str], object]) -> None:
    """Tells it the level of each event that is logged from now on."""
    global _counter  # noqa: PLW0603 - there is one log
    _counter = counter


def _count(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if _counter:
        _counter(event["level"])
    return event


class StandardError:
    """Takes whole lines. A reader who is gone, or reads no more, keeps nobody waiting for ever.

    Nothing is kept to be written later: what is left in sys.stderr at the end makes another exit code.
    """

    def __init__(self) -> None:
        """Nothing is known of the reader yet."""
        self._lock = threading.Lock()
        self._patience = _PATIENCE_SECONDS
        self._room = select.poll()
        self._room.register(_STANDARD_ERROR, select.POLLOUT)

    def write(self, text: str) -> None:
        """Writes it. Raises OSError: after some seconds without room, and at once until there is room again."""
        if not self._lock.acquire(timeout=self._patience):
            self._patience = 0.0  # of several workers on a full pipe one may have taken the room that this one saw
            raise TimeoutError
        try:
            data = text.encode(errors="backslashreplace")
            while data:
                if not self._room.poll(self._patience * 1000):
                    self._patience = 0.0
                    raise TimeoutError
                data = data[os.write(_STANDARD_ERROR, data[: select.PIPE_BUF]) :]
            self._patience = _PATIENCE_SECONDS
        finally:
            self._lock.release()


STANDARD_ERROR: Final = StandardError()


class _Events:
    """What structlog writes to. An event that nobody takes is lost: whoever logs it goes on all the same."""

    def write(self, text: str) -> None:
        with suppress(OSError):
            STANDARD_ERROR.write(text)

    def flush(self) -> None:
        """Nothing: all is written."""


def configure(level: str) -> None:
    """Everything of this level and above goes to standard error from now on."""
    on_terminal = sys.stderr.isatty()
    time = structlog.processors.TimeStamper(fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal)
    last = _for_people() if on_terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[structlog.processors.add_log_level, _count, time, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _Events())),
        cache_logger_on_first_use=True,
    )
    logging.getLogger("grpc").addHandler(logging.NullHandler())  # its tracebacks quote what a handler raised


def start(config: Config) -> dict[str, Any]:
    """What the event of a start tells besides addresses: the version, and every setting, without secrets."""
    told = {
        name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
    }
    told |= {name: Path(told[name]).name for name in _SECRETS if told[name]}
    told |= {"database": _without_secrets(config.database)}
    return {"version": version("caseload-server"), "configuration": told}


class OnTerminal:
    """Shows the lines of the access log as the rest of the log is shown."""

    def __init__(self) -> None:
        """Nothing is shown yet."""
        self._render = _for_people()

    def write(self, line: str) -> None:
        """Shows one line of JSON."""
        STANDARD_ERROR.write(f"{self._render(None, '', {'level': 'info', **json.loads(line)})}\n")


def _for_people() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, pad_event_to=0, sort_keys=False)


def _without_secrets(database: str) -> str | dict[str, str]:
    """A database URL that the store was opened with. Which parts of one are secret, libpq knows."""
    if not is_postgres(database):
        return database
    from psycopg import pq

    given = pq.Conninfo.parse(database.encode())
    return {one.keyword.decode(): one.val.decode() for one in given if one.val is not None and not one.dispchar}
