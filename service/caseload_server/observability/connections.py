"""The client connections and open files of this process. gRPC shows neither.

https://man7.org/linux/man-pages/man5/proc_pid_fd.5.html, https://man7.org/linux/man-pages/man7/tcp.7.html
"""

import os
import resource
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

import structlog

_FILES: Final = "/proc/self/fd"
_BACKLOG: Final = struct.Struct("24xI")
"""The field of struct tcp_info, tcpi_unacked, that has a listening socket's connections which wait to be accepted."""
_INTERVAL_SECONDS: Final = 1.0
_STOP_SECONDS: Final = 1.0
_RECOVERED: Final = 0.9
"""The part of the limit below which a process is no longer at its limit."""
_log = structlog.get_logger()


class _Found(NamedTuple):
    """What a descriptor, or all of them, contributes."""

    connections: int = 0
    waiting: int = 0


def open_files() -> int:
    """Returns the number of open files of this process."""
    return len(os.listdir(_FILES)) - 1  # noqa: PTH208 - a Path takes longer; without that of the listing


def open_files_limit() -> int:
    """Returns the limit on open files of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Connections:
    """Counts the connections that clients have to a port, and logs when they reach their limit."""

    def __init__(self, port: int, limit: int) -> None:
        """Args: port, on which this process listens; limit, the most connections that it accepts."""
        self.limit: Final = limit
        self._port = port
        self._at_limit = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="connections", daemon=True)

    def count(self) -> int:
        """Returns the number of open connections."""
        return sum(one.connections for one in self._sockets())

    def waiting(self) -> int:
        """Returns the number of connections that are not accepted yet, because the process lacks open files, say."""
        return sum(one.waiting for one in self._sockets())

    def gauges(self) -> list[tuple[str, Callable[[], float]]]:
        """Returns the gauges of connections and open files, as name and sampling function."""
        return [
            ("connections", self.count),
            ("connections_limit", lambda: self.limit),
            ("connections_waiting", self.waiting),
            ("open_files", open_files),
            ("open_files_limit", open_files_limit),
        ]

    def start(self) -> None:
        """Starts the thread that logs."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def check(self) -> None:
        """Logs when the connections have reached the limit, and when there are fewer again. Raises OSError."""
        # The open files are counted faster, and are more than the connections.
        count = self.count() if self._at_limit or open_files() >= self.limit else 0
        if count >= self.limit and not self._at_limit:
            self._at_limit = True
            _log.warning("connection limit reached", connections=count, max_connections=self.limit)
        elif self._at_limit and count < self.limit * _RECOVERED:
            self._at_limit = False
            _log.warning("connections below the limit again", connections=count, max_connections=self.limit)

    def _sockets(self) -> list[_Found]:
        """Returns what every descriptor contributes: about 5 us each."""
        return [_inspect(int(name), self._port) for name in os.listdir(_FILES)]  # noqa: PTH208 - a Path takes longer

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            with suppress(OSError):  # without /proc
                self.check()


def _inspect(descriptor: int, port: int) -> _Found:
    """Returns what a descriptor contributes: nothing unless it is a socket on the port."""
    try:
        found = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, descriptor)  # finding out its type takes longer
    except OSError:  # it is no socket, or was closed meanwhile
        return _Found()
    try:
        if found.getsockname()[1:2] != (port,):
            return _Found()
        if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return _Found(connections=1)
        info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG.size)
        return _Found(waiting=_BACKLOG.unpack(info)[0])
    except OSError:
        return _Found()
    finally:
        found.detach()  # so that the end of this object does not close the descriptor
